""".npy and .npz, numpy's own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..sources import Unsuitable
from .content import Content, Request, choose_names

__all__ = ["WRITER", "read"]

WRITER = "an .npy or .npz file", "numpy.save or numpy.savez"


def read(path: Path, request: Request) -> Content:
    """The chosen array and labels; what else an .npz holds is not looked at."""
    # Without a suffix that says so, numpy takes anything for a pickle.
    file = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(file, np.ndarray):
        choose_names({"": file.shape}, request)
        return Content(file)
    with file:
        names = list(file)
        if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
            raise Unsuitable(
                "it is a file of torch.save, and nothing is ever unpickled; save it with numpy.save(path, x.numpy())."
            )
        key, labels_key = choose_names(dict.fromkeys(names, ()), request)
        pixels = file[key]
        if not isinstance(pixels, np.ndarray):
            raise Unsuitable(f"{key!r} is no array; give the name of one.")
        if labels_key is None:
            return Content(pixels)
        try:
            labels = file[labels_key]
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            raise Unsuitable(
                f"labels {labels_key!r} are Python objects, and nothing is ever unpickled; save them as whole numbers "
                "or as text (numpy.array(labels, dtype=str))."
            ) from error
        return Content(pixels, labels=np.asarray(labels), label_name=labels_key)
