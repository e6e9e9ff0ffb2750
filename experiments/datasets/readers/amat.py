""".amat, text with the pixels of one image and its label a line, as rotated MNIST is published."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..errors import Unsuitable
from .content import Content, Request

__all__ = ["WRITER", "read"]

WRITER = "an .amat file", "numpy.savetxt"


def read(path: Path, request: Request) -> Content:
    """Square images, kept column by column as MATLAB does, and their labels, the last number of each line."""
    if request.key is not None or request.labels_key is not None:
        raise Unsuitable("key and labels_key name what a file holds; leave them out, since an .amat has no names.")
    table = np.loadtxt(path, dtype=np.float32, ndmin=2)
    side = math.isqrt(max(0, table.shape[1] - 1))
    if side < 2 or side**2 != table.shape[1] - 1:
        raise Unsuitable(
            f"it has {table.shape[1]} numbers a line; expected those of a square image and a label, such as 784 + 1."
        )
    return Content(table[:, :-1].reshape(-1, side, side), ("NWH",), labels=table[:, -1], label_name="last number")
