"""Values: pixels of any type brought to 0..255 or [0, 1] by a range that is known or said, and labels to numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Unsuitable

__all__ = ["Scale", "exact", "number_labels", "scale_of"]

DARK = 64  # uint8 pixels below are more likely of fewer than 256 levels
BLOCK = 1 << 24  # pixels converted at a time
SAY = "'data.source.range=[{},{}]' on the command line"


def exact(value: float) -> str:
    """A number in few digits where these say it, else in all."""
    return f"{value:g}" if float(f"{value:g}") == value or not math.isfinite(value) else repr(value)


@dataclass(frozen=True)
class Scale:
    """How pixels of a type become uint8 in 0..255 or float32 in [0, 1].

    Args:
        black, white: the values of these; None: bytes are what they are, and true is white.
        words: the range in which they are read.
    """

    black: float | None
    white: float | None
    words: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what comes out."""
        return np.dtype(np.uint8 if self.white is None else np.float32)

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        """Pixels of any shape, as a new array in order; what is outside of black and white is brought to these."""
        if self.black is None or self.white is None:
            return array.astype(np.uint8) * np.uint8(255) if array.dtype.kind == "b" else _own(array)
        pixels = np.empty(array.shape, np.float32)
        rows = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
        for start in range(0, len(array), rows):  # in double precision a block at a time, never the whole
            block = array[start : start + rows].astype(np.float64)
            pixels[start : start + rows] = np.clip((block - self.black) / (self.white - self.black), 0, 1)
        return pixels


def scale_of(dtype: np.dtype[Any], pieces: Iterable[NDArray[Any]], limits: Sequence[float] | None = None) -> Scale:
    """The scale of pixels that come in pieces, which are gone through as far as is needed to be sure of it.

    Args:
        dtype: of the pixels: bool, whole numbers or floating point.
        pieces: of all of them, of any shape; what is no pixel left out.
        limits: black and white, (low, high). Default: 0 and 255 for uint8, false and true, 0 and 1 for floating point.

    Raises:
        Unsuitable: another type, values outside the range, or a range that has to be said and is not.
    """
    given = None if limits is None else _limits(limits)
    kind = dtype.kind
    if kind not in "buif":
        raise Unsuitable(
            f"the pixels have type {dtype}; expected uint8 (0..255), floating point in [0, 1], or any numbers "
            "with a range=[low,high]; convert them and save the file again."
        )
    if kind == "b":
        return Scale(None, None, "false is black and true is white")
    if dtype == np.uint8 and given in (None, (0, 255)):
        high = 0
        for piece in pieces if given is None else ():
            high = max(high, int(piece.max(initial=0)))
            if high >= DARK:
                break
        if 0 < high < DARK:  # dividing it by 255 would silently make it black
            raise Unsuitable(
                f"the uint8 pixels are at most {high}, which as 0..255 is nearly black; say what is white, "
                f"range=[0,{high}] ({SAY.format(0, high)}), or range=[0,255] where they are dark."
            )
        return Scale(None, None, "0 is black and 255 is white")
    ends = [(piece.min().item(), piece.max().item()) for piece in pieces if piece.size]
    lows, highs = [low for low, _ in ends], [high for _, high in ends]
    unordered = [one for one in (*lows, *highs) if one != one]
    low, high = (unordered[0],) * 2 if unordered else (min(lows, default=0), max(highs, default=0))
    if given is None and kind in "ui":
        levels = next((most for most in (255, 4095, 65535) if high <= most), high)
        raise Unsuitable(
            f"the pixels have type {dtype} and run from {low} to {high}; expected uint8 (0..255), floating "
            f"point in [0, 1], or what is black and white, such as range=[{min(0, low)},{levels}] "
            f"({SAY.format(min(0, low), levels)})."
        )
    black, white = given or (0.0, 1.0)
    # A computation that ends at white may end a rounding above it.
    slack = 4 * float(np.finfo(dtype).eps) * max(abs(black), abs(white)) if kind == "f" else 0.0
    if not (low >= black - slack and high <= white + slack):  # also true for nan
        wide = "rescale them and save the file again"
        if math.isfinite(low) and math.isfinite(high) and low < high:
            wide = f"rescale them, or say range=[{exact(low)},{exact(high)}] ({SAY.format(exact(low), exact(high))})"
        elif math.isnan(low):
            wide = "mend them, or say mask=isnan where nan is what was not measured (data.source.mask=isnan)"
        raise Unsuitable(
            f"the pixels run from {exact(low)} to {exact(high)}; expected finite values within [{exact(black)}, "
            f"{exact(white)}]; {wide}."
        )
    return Scale(black, white, f"{exact(black)} is black and {exact(white)} is white")


def _own(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """In order, and in memory: a file that is mapped there may change."""
    return np.ascontiguousarray(array) if array.flags.writeable else np.array(array, order="C", subok=False)


def _limits(limits: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(limit) for limit in limits)
    except (TypeError, ValueError):
        low = high = math.nan
    if isinstance(limits, str) or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise Unsuitable(f"range is {limits!r}; expected the values of black and white, [low, high] with low < high.")
    return low, high


def number_labels(
    labels: NDArray[Any], n: int, name: object, column: int | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as whole numbers, (n,) int64; and what these stand for, where they were not whole numbers before.

    Args:
        labels: (n,) whole numbers or text, or a table (n, columns).
        n: how many there should be.
        name: of the labels, for messages.
        column: of a table; its values are numbered in their order.

    Raises:
        Unsuitable: there are others, or as many as to be no classes.
    """
    shape, kind = labels.shape, labels.dtype
    columns = labels.ndim == 2 and len(labels) == n and min(shape) > 1
    if columns and column is None:
        raise Unsuitable(
            f"labels {name!r} are a table of shape {shape}; expected one label for each of the {n} items: choose one "
            "of its columns, such as label_column=0 (data.source.label_column=0 on the command line)."
        )
    if column is not None:
        if not columns or isinstance(column, bool) or not isinstance(column, int) or not 0 <= column < shape[1]:
            table = f"{shape[1]} columns, counted from 0" if columns else f"no columns (shape {shape})"
            raise Unsuitable(
                f"label_column is {column!r}, but labels {name!r} have {table}; choose one or leave it out."
            )
        labels = labels[:, column]
    elif labels.ndim == 2 and 1 in shape:  # as MATLAB keeps vectors
        labels = labels.reshape(-1)
    if labels.dtype.kind == "O" and all(isinstance(label, str | bytes) for label in labels.flat):
        labels = np.array([label.decode() if isinstance(label, bytes) else label for label in labels.flat], dtype=str)
    fits = labels.shape == (n,) and n > 0
    if fits and (labels.dtype.kind in "US" or (column is not None and labels.dtype.kind == "f")):
        classes, numbers = np.unique(labels, return_inverse=True)
        text = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in classes.tolist()]
        return numbers.reshape(n).astype(np.int64), tuple(text)
    whole = fits and (labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and bool((labels % 1 == 0).all())))
    if whole and max(abs(float(labels.max())), abs(float(labels.min()))) < 2**62:
        return labels.astype(np.int64), ()
    raise Unsuitable(
        f"labels {name!r} have shape {shape} and type {kind}; expected one whole number or class name for each of the "
        f"{n} items."
    )
