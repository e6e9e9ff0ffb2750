"""Masks: which pixels were measured and which frames are there, said by nan or by an array beside the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import Unsuitable
from .readers.content import Sliceable
from .readers.ordered import Ordered

__all__ = ["Mask", "by_nan", "mask_of"]

NAN = "isnan"  # not nan, which the command line takes for a number that is unlike itself
SAY = "true (1) where a pixel was measured"


class Mask:
    """What of stored pixels was measured.

    Args:
        stored: the pixels.
        array: booleans, of the same items and frames, or of one that stand for all; None: what is not nan.

    Attributes:
        seen: (all frames,) booleans, films one after the other: whether anything of a frame was measured.
        by_pixel: whether some frame was measured in part.
        words: how much was measured.

    Raises:
        Unsuitable: nothing was measured.
    """

    def __init__(self, stored: Ordered, array: Ordered | None) -> None:
        self.array, self.picks = array, stored.picks
        self.seen, self.by_pixel, self.words = torch.empty(0), False, ""
        seen: list[NDArray[np.bool_]] = []
        n_measured = n = 0
        for items, frames, pixels in stored.pieces():
            of_frames = np.broadcast_to(self.look(pixels, items, frames), pixels.shape)
            part = of_frames.reshape(-1, *pixels.shape[-3:])
            seen.append(np.asarray(part.any((1, 2, 3))))
            self.by_pixel = self.by_pixel or bool((seen[-1] & ~np.asarray(part.all((1, 2, 3)))).any())
            n_measured, n = n_measured + int(part.sum()), n + part.size
        self.seen = torch.from_numpy(np.concatenate(seen))
        if not n_measured:
            raise Unsuitable(f"the mask says that nothing was measured; expected it to be {SAY}.")
        frames_seen = int(self.seen.sum())
        self.words = (
            f"{n_measured / n:.1%} of the pixels measured, in {frames_seen:,} of {len(self.seen):,} frames; the others "
            "are neither shown to the guide nor scored"
        )

    def look(self, pixels: NDArray[Any], items: slice | int, frames: slice) -> NDArray[np.bool_]:
        """What of some stored pixels was measured, of a shape that is broadcast to theirs."""
        if self.array is None:
            return ~np.isnan(pixels)
        if isinstance(items, int):
            picks = None if self.picks is None else self.picks[items]
            return self.array.item(items if self.array.n > 1 else 0, frames, picks).astype(bool)
        return self.array.items(items if self.array.n > 1 else slice(0, 1), frames).astype(bool)


def by_nan(said: object) -> bool:
    """Whether a mask is said to be what is nan.

    Example:
        >>> by_nan("isnan"), by_nan("nan"), by_nan(float("nan")), by_nan("good.npy")
        (True, True, True, False)
    """
    return said in (NAN, "nan") or said != said


def mask_of(said: str | int | None, array: Any, stored: Ordered) -> Mask | None:
    """The mask of stored pixels; None where nothing is said, or all were measured.

    Args:
        said: ``"isnan"``, or the name of the array.
        array: of that name, whose axes are told by its shape where it is not ordered already.
        stored: the pixels.

    Raises:
        Unsuitable: it has another shape or type, or there can be no nan.
    """
    if said is None:
        return None
    if by_nan(said):
        if np.dtype(stored.dtype).kind != "f":
            raise Unsuitable(
                f"mask is {NAN}, and pixels of type {stored.dtype} have none; give the name of an array that is {SAY}."
            )
        mask = Mask(stored, None)
    else:
        ordered = array if isinstance(array, Ordered) else Ordered(array, _word(said, array, stored))
        shapes = [(one.n, one.stored_lengths.tolist()[:9], one.frame_shape[1:]) for one in (ordered, stored)]
        if isinstance(array, Ordered) and shapes[0] != shapes[1]:
            raise Unsuitable(
                f"mask {said!r} has {shapes[0][0]} items of {shapes[0][1]} frames of {shapes[0][2]} pixels, but the "
                f"pixels are {shapes[1][0]} of {shapes[1][1]} of {shapes[1][2]}; expected one that is {SAY} of these."
            )
        if np.dtype(ordered.dtype).kind not in "bui":
            raise Unsuitable(
                f"mask {said!r} has type {ordered.dtype}; expected booleans or whole numbers, {SAY}, 0 where not."
            )
        mask = Mask(stored, ordered)
    return None if bool(mask.seen.all()) and not mask.by_pixel else mask


def _word(said: str | int, array: Sliceable, stored: Ordered) -> str:
    """What the axes of a mask are, by its shape."""
    word, shape = stored.word, tuple(array.shape)
    sizes = dict(zip(word, stored.array.shape, strict=True))
    fitting: list[str] = []
    for letters in ("NSCHW", "NSHW", "NS", "HW", "S"):
        own = "".join(letter for letter in word if letter in letters)
        if own and own not in fitting and tuple(sizes[letter] for letter in own) == shape:
            fitting.append(own)
    if len(fitting) == 1 and stored.regular:
        return fitting[0]
    expected = [word, word.replace("C", ""), "".join(letter for letter in word if letter in "NS"), "HW"]
    ways = " or ".join(f"{tuple(sizes[letter] for letter in own)} ({own})" for own in dict.fromkeys(expected) if own)
    if fitting:
        raise Unsuitable(
            f"mask {said!r} of shape {shape} can be of {' or '.join(fitting)}; expected one of all axes, {ways}."
        )
    raise Unsuitable(
        f"mask {said!r} has shape {shape}, but the pixels have {ways}; expected one that is {SAY} of these."
    )
