"""TIFF of one page or a stack of them, of any depth, with the axes that microscopes write; by tifffile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sources import Unsuitable
from .content import Content, Request, install

__all__ = ["WRITER", "count", "picture", "read"]

WRITER = "a TIFF file", "tifffile"
LETTERS = {"Y": "H", "X": "W", "S": "C", "C": "C", "T": "S"}


def read(path: Path, request: Request) -> Content:
    """All pages; what a further axis is, such as that of plain pages or of depth, is left open."""
    if request.key is not None or request.labels_key is not None:
        raise Unsuitable("key and labels_key name what a file holds; leave them out, since there is one stack.")
    array, axes = _read(path)
    open_axes = [letter for letter in axes if letter not in LETTERS]
    word = "".join(LETTERS.get(letter, "?") for letter in axes)
    if len(open_axes) > 1 or len(set(word)) < len(word):
        return Content(array, () if request.axes else _refused(array, axes))
    if not open_axes:
        return Content(array, (word,))
    return Content(array, tuple(word.replace("?", letter) for letter in ("SN" if "S" not in word else "N")))


def count(path: Path) -> int:
    """Pages of a file."""
    try:
        from tifffile import TiffFile
    except ImportError:
        raise install("tiff", path) from None
    with TiffFile(path) as file:
        return len(file.pages)


def picture(path: Path) -> NDArray[Any]:
    """One page, (height, width, channel)."""
    array, axes = _read(path)
    word = "".join(LETTERS.get(letter, "?") for letter in axes)
    if sorted(word) not in (["H", "W"], ["C", "H", "W"]):
        raise Unsuitable(f"it has the axes {axes}; expected one page.")
    array = array.transpose([word.index(letter) for letter in "HWC" if letter in word])
    return array.reshape(*array.shape[:2], -1)


def _read(path: Path) -> tuple[NDArray[Any], str]:
    try:
        from tifffile import PHOTOMETRIC, TiffFile
    except ImportError:
        raise install("tiff", path) from None
    with TiffFile(path) as file:
        if len(file.series) != 1:
            raise Unsuitable(f"it holds {len(file.series)} series of pages of unlike sizes; keep one in a file.")
        series = file.series[0]
        try:
            array = series.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise Unsuitable("it is compressed in a way that takes imagecodecs: pip install imagecodecs.") from error
        if file.pages.first.photometric == PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu":
            array = ~array  # kept as a negative
        return np.asarray(array), series.axes


def _refused(array: NDArray[Any], axes: str) -> tuple[str, ...]:
    raise Unsuitable(
        f"it has shape {array.shape} and the axes {axes}; expected at most one beside time, channels, height and "
        "width: say what each is by axes, or save fewer."
    )
