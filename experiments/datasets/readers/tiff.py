"""TIFF of one page or a stack of them, of any depth, with the axes that microscopes write; by tifffile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsuitable
from .content import Content, Raw, Request, Sliceable, Unchanged, by_place, install

__all__ = ["WRITER", "count", "picture", "read"]

WRITER = "a TIFF file", "tifffile"
LETTERS = {"Y": "H", "X": "W", "S": "C", "C": "C", "T": "S"}


def read(path: Path, request: Request) -> Content:
    """All pages; what a further axis is, such as that of plain pages or of depth, is left open."""
    if request.key is not None or request.labels_key is not None:
        raise Unsuitable("key and labels_key name what a file holds; leave them out, since there is one stack.")
    array, axes = _read(path, request.budget)
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
    pixels, axes = _read(path)
    array = np.asarray(pixels)
    word = "".join(LETTERS.get(letter, "?") for letter in axes)
    if sorted(word) not in (["H", "W"], ["C", "H", "W"]):
        raise Unsuitable(f"it has the axes {axes}; expected one page.")
    array = array.transpose([word.index(letter) for letter in "HWC" if letter in word])
    return array.reshape(*array.shape[:2], -1)


def _read(path: Path, budget: float = math.inf) -> tuple[Sliceable, str]:
    try:
        from tifffile import TiffFile
    except ImportError:
        raise install("tiff", path) from None
    with TiffFile(path) as file:
        if len(file.series) != 1:
            raise Unsuitable(f"it holds {len(file.series)} series of pages of unlike sizes; keep one in a file.")
        series = file.series[0]
        if series.nbytes > budget:
            return Pages(path, series.shape, series.dtype, series.keyframe.shape), series.axes
        return _decoded(file, series.asarray), series.axes


def _decoded(file: Any, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    from tifffile import PHOTOMETRIC

    try:
        array = decode()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise Unsuitable("it is compressed in a way that takes imagecodecs: pip install imagecodecs.") from error
    if file.pages.first.photometric == PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu":
        array = ~array  # kept as a negative
    return np.asarray(array)


class Pages:
    """A stack whose pages are decoded when they are wanted.

    Args:
        path: of the file.
        shape: of the stack.
        dtype: of its values.
        page: shape of a page, the last axes of the stack but for those of one.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: Any, page: Sequence[int]) -> None:
        self.path, self.shape, self.dtype = path, tuple(shape), np.dtype(dtype)
        self.unchanged = Unchanged(path)
        inner, self.n_outer = math.prod(page), len(self.shape)
        while self.n_outer and math.prod(self.shape[self.n_outer :]) < inner:
            self.n_outer -= 1

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return by_place(index, self.shape[: self.n_outer], self.shape[self.n_outer :], self._read)

    def _read(self, places: list[int]) -> NDArray[Any]:
        self.unchanged.check()
        from tifffile import TiffFile

        with TiffFile(self.path) as file:
            series: Any = file.series[0]
            offset, size = series.dataoffset, math.prod(self.shape[self.n_outer :])
            if offset is not None:  # one block, whose pages need not be described one by one
                values = Raw(
                    self.path, file.byteorder + self.dtype.char, offset, (math.prod(self.shape[: self.n_outer]), size)
                )
                pages = [_decoded(file, partial(values.__getitem__, place)) for place in places]
            else:
                pages = [_decoded(file, series.pages[place].asarray) for place in places]
        return np.array(pages, self.dtype)


def _refused(array: Sliceable, axes: str) -> tuple[str, ...]:
    raise Unsuitable(
        f"it has shape {array.shape} and the axes {axes}; expected at most one beside time, channels, height and "
        "width: say what each is by axes, or save fewer."
    )
