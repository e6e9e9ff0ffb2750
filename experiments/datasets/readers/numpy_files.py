""".npy and .npz, numpy's own files."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import Unsuitable
from .content import Content, Raw, Request, Sliceable, choose_names

__all__ = ["WRITER", "read"]

WRITER = "an .npy or .npz file", "numpy.save or numpy.savez"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip file: its mark, and how long its name and more are


def read(path: Path, request: Request) -> Content:
    """The chosen array and labels, in the file unless it is compressed; what else an .npz holds is not looked at."""
    # Without a suffix that says so, numpy takes anything for a pickle.
    file = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(file, np.ndarray):
        choose_names({"": file.shape}, request)
        with path.open("rb") as stream:
            return Content(_stored(path, stream, file.dtype) or file)
    with file:
        names = list(file)
        if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
            raise Unsuitable(
                "it is a file of torch.save, and nothing is ever unpickled; save it with numpy.save(path, x.numpy())."
            )
        key, labels_key = choose_names(dict.fromkeys(names, ()), request)
        pixels = _member(path, key) or file[key]
        if isinstance(pixels, bytes):
            raise Unsuitable(f"{key!r} is no array; give the name of one.")
        further = {name: [_plain(file, name, option, "numbers")] for name, option in request.further.items()}
        if labels_key is None:
            return Content(pixels, further=further)
        labels = _plain(file, labels_key, "labels", "whole numbers or as text (numpy.array(labels, dtype=str))")
        return Content(pixels, labels=np.asarray(labels), label_name=labels_key, further=further)


def _plain(file: Any, name: str, what: str, kinds: str) -> Any:
    """An array of an .npz that takes no unpickling."""
    try:
        return file[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise Unsuitable(
            f"{what} {name!r} are Python objects, and nothing is ever unpickled; save them as {kinds}."
        ) from error


def _stored(path: Path, stream: IO[bytes], dtype: Any = None) -> Raw | None:
    """The array whose header comes next; None of another version, or of Python objects."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        return None
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, own = read_header(stream)
    if own.hasobject or (dtype is not None and own != dtype):
        return None
    return Raw(path, own, stream.tell(), shape, "F" if fortran else "C")


def _member(path: Path, key: str) -> Sliceable | None:
    """An array of an .npz where it lies in the file; None where it is compressed, and has to be read whole."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        name = next((name for name in (f"{key}.npy", key) if name in archive.namelist()), None)
        if name is None or (info := archive.getinfo(name)).compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return None
        stream.seek(info.header_offset)
        mark, n_name, n_more = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
        if mark != b"PK\3\4":
            return None
        stream.seek(n_name + n_more, 1)
        if stream.read(6) != np.lib.format.MAGIC_PREFIX:
            return None
        stream.seek(-6, 1)
        return _stored(path, stream)
