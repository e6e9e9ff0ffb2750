"""smallNORB's own binary files: pictures of two cameras, with classes and poses in files beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import Unsuitable
from .content import Content, Raw, Request

__all__ = ["MAGIC", "WRITER", "read"]

WRITER = "one of smallNORB's binary files", "the program that made it"
MAGIC = {
    0x1E3D4C51: "f4",
    0x1E3D4C53: "f8",
    0x1E3D4C54: "i4",
    0x1E3D4C55: "u1",
    0x1E3D4C56: "i2",
}
INFORMATION = ("instance", "elevation", "azimuth", "lighting")


def read(path: Path, request: Request) -> Content:
    """The pictures as two channels, and as labels those of ``…-cat.mat`` beside it, or a column of ``…-info.mat``."""
    if request.key is not None:
        raise Unsuitable("key names what a file holds; leave it out, since there is one array.")
    pixels, what = matrix(path), request.labels_key or "category"
    if what not in ("category", *INFORMATION):
        raise Unsuitable(f"labels_key is {what!r}; expected category, {', '.join(INFORMATION)}, or none.")
    beside = path.with_name(path.name.replace("-dat", "-cat" if what == "category" else "-info"))
    if beside == path or not beside.is_file():
        if request.labels_key is not None:
            raise Unsuitable(f"labels_key is {what!r}, but {beside.name} does not lie beside the file; put it there.")
        return Content(pixels, ("NCHW",))
    labels = matrix(beside)
    return Content(
        pixels,
        ("NCHW",),
        labels=labels[:] if what == "category" else labels[:, INFORMATION.index(what)],
        label_name=what,
    )


def matrix(path: Path) -> Raw:
    """The array of one file, of either order of bytes; it stays in the file."""
    with path.open("rb") as file:
        mark = file.read(4)
        order: Literal["little", "big"] = "little" if int.from_bytes(mark, "little") in MAGIC else "big"
        if int.from_bytes(mark, order) not in MAGIC:
            raise Unsuitable("it does not begin as the files of smallNORB do.")
        dtype = np.dtype(MAGIC[int.from_bytes(mark, order)]).newbyteorder(order)
        n_axes = int.from_bytes(file.read(4), order)
        # There are at least three sizes, of which those beyond the number of axes mean nothing.
        sizes = np.frombuffer(file.read(4 * max(3, n_axes)), np.dtype("i4").newbyteorder(order))[:n_axes]
        return Raw(path, dtype, file.tell(), sizes.tolist())
