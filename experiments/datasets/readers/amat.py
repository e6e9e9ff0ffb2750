""".amat, text with the pixels of one image and its label a line, as rotated MNIST is published."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..errors import Unsuitable
from .content import Content, Request

__all__ = ["WRITER", "read"]

WRITER = "an .amat file", "numpy.savetxt"

# Of the files of Larochelle et al. 2007 some lie sideways, column by column, and the others row by row.
SIDEWAYS = "mnist_background_", "mnist_noise_variations_"
UPRIGHT = "mnist_all_", "mnist_train", "mnist_test", "rectangles_", "convex_"


def read(path: Path, request: Request) -> Content:
    """Square images and their labels, the last number of each line; published files are known by their names.

    Rotated MNIST (``mnist_all_rotation_normalized_float_train_valid.amat``), with pictures behind it or without, lies
    row by row, and MNIST with random or pictured backgrounds or with noise column by column: ``TRANSPOSE_IMAGES`` in
    `skdata, larochelle_etal_2007/dataset.py
    <https://github.com/jaberg/skdata/blob/master/skdata/larochelle_etal_2007/dataset.py>`__, by an author of the data
    (Larochelle, Erhan, Courville, Bergstra & Bengio 2007, "An empirical evaluation of deep architectures on problems
    with many factors of variation"). A file of another name may lie either way, which has to be said.
    """
    if request.key is not None or request.labels_key is not None:
        raise Unsuitable("key and labels_key name what a file holds; leave them out, since an .amat has no names.")
    table = np.loadtxt(path, dtype=np.float32, ndmin=2)
    side = math.isqrt(max(0, table.shape[1] - 1))
    if side < 2 or side**2 != table.shape[1] - 1:
        raise Unsuitable(
            f"it has {table.shape[1]} numbers a line; expected those of a square image and a label, such as 784 + 1."
        )
    ways = ("NWH",) if path.name.startswith(SIDEWAYS) else ("NHW",) if path.name.startswith(UPRIGHT) else ("NHW", "NWH")
    return Content(table[:, :-1].reshape(-1, side, side), ways, labels=table[:, -1], label_name="last number")
