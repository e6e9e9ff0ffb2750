"""smallNORB's own binary files: pictures of two cameras, with classes and poses in files beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

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
    """The pictures as two channels, and as labels and factors ``…-cat.mat`` beside it and columns of ``…-info.mat``."""
    if request.key is not None:
        raise Unsuitable("key names what a file holds; leave it out, since there is one array.")
    pixels, what = matrix(path), request.labels_key or "category"
    further = {name: [_beside(path, name, option)] for name, option in request.further.items()}
    labels = _beside(path, what, None if request.labels_key is None else "labels_key")
    return Content(pixels, ("NCHW",), labels=labels, label_name=what, further=further)


def _beside(path: Path, what: str, option: str | None) -> NDArray[Any] | None:
    """The categories, or a column of the information; None where nothing lies there and no setting asks for it."""
    if what not in ("category", *INFORMATION):
        raise Unsuitable(f"{option} is {what!r}; expected category, {', '.join(INFORMATION)}, or none.")
    beside = path.with_name(path.name.replace("-dat", "-cat" if what == "category" else "-info"))
    if beside == path or not beside.is_file():
        if option is None:
            return None
        raise Unsuitable(f"{option} is {what!r}, but {beside.name} does not lie beside the file; put it there.")
    return matrix(beside)[:] if what == "category" else matrix(beside)[:, INFORMATION.index(what)]


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
