"""Order: arrays of any order of axes read item by item, frames before channels before height and width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .content import Pieces, Raw, Sliceable

__all__ = ["Item", "Ordered"]

ALL = slice(None)
PIECE = 1 << 24  # bytes


class Ordered:
    """An array read in the order (item, frame, channel, height, width), whatever its own is; items without frames too.

    Args:
        array: of films or still images.
        word: of letters, what its axes are.
        picks: of each item, which of its frames there are, increasing; None: all.

    Example:
        >>> Ordered(np.zeros((20, 64, 12, 10)), "SNHW").item(5, slice(0, 20, 4)).shape
        (5, 1, 12, 10)
    """

    def __init__(self, array: Sliceable, word: str, picks: Sequence[NDArray[np.int64]] | None = None) -> None:
        self.array, self.word, self.dtype, self.picks = array, word, array.dtype, picks
        sizes = dict(zip(word, array.shape, strict=True))
        self.n, self.with_frames = int(sizes.get("N", 1)), "S" in word
        self.frame_shape = tuple(int(sizes.get(letter, 1)) for letter in "CHW")
        own = getattr(array, "lengths", None)
        self.stored_lengths = np.full(self.n, sizes.get("S", 1), np.int64) if own is None else own
        self.lengths = self.stored_lengths if picks is None else np.array([len(one) for one in picks], np.int64)

    @property
    def regular(self) -> bool:
        """Whether all items have as many frames stored."""
        return getattr(self.array, "lengths", None) is None

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return int(self.stored_lengths.sum()) * math.prod(self.frame_shape) * np.dtype(self.dtype).itemsize

    def loaded(self) -> Ordered:
        """The same in memory; what lies in a file as it would in memory stays there."""
        array = self.array
        if isinstance(array, np.ndarray | Raw):
            return self
        if isinstance(array, Pieces) and array.lengths is not None:
            pieces = [np.asarray(array.piece(place)[:]) for place in range(self.n)]
            return Ordered(Pieces(pieces.__getitem__, array.names, array.lengths.tolist()), self.word, self.picks)
        return Ordered(np.asarray(array[:]), self.word, self.picks)

    def pieces(self) -> Iterator[tuple[slice | int, slice, NDArray[Any]]]:
        """All of it in its order, a few megabytes at a time: which items, which of their frames, and their values."""
        frame = max(1, math.prod(self.frame_shape) * np.dtype(self.dtype).itemsize)
        longest = int(self.lengths.max(initial=1))
        step = PIECE // (frame * longest)
        if self.regular and self.picks is None and step:
            for start in range(0, self.n, step):
                items = slice(start, min(start + step, self.n))
                yield items, ALL, self.items(items)
            return
        step = max(1, PIECE // frame)
        for number, length in enumerate(self.lengths.tolist()):
            for start in range(0, length, step):
                frames = slice(start, min(start + step, length))
                yield number, frames, self.item(number, frames)

    def items(self, items: slice | int | NDArray[np.int64], frames: slice = ALL) -> NDArray[Any]:
        """Some items, (item, frame, channel, height, width); of one alone (frame, …); no axis of frames in stills.

        Rows (B,) of any order are for arrays of numpy's own kind.
        """
        single = isinstance(items, int)
        index = tuple(items if letter == "N" else frames if letter == "S" else ALL for letter in self.word)
        array = np.asarray(self.array[index])
        letters = [letter for letter in self.word if not (single and letter == "N")]
        order = "N" * (not single) + "S" * self.with_frames + "CHW"
        array = array.transpose([letters.index(letter) for letter in order if letter in letters])
        return np.expand_dims(array, [place for place, letter in enumerate(order) if letter not in letters])

    def item(self, n: int, frames: slice = ALL, picks: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """One item, (frame, channel, height, width), or (channel, height, width) of a still image.

        Args:
            n: which.
            frames: of those that were picked.
            picks: in the place of its own.
        """
        picks = picks if self.picks is None else self.picks[n]
        if picks is None or not self.with_frames:
            return self.items(n, frames)
        places = picks[frames]
        if not len(places):
            return self.items(n, slice(0, 0))
        first, step = int(places[0]), int(np.gcd.reduce(np.diff(places))) or 1  # slices are what every format reads
        return self.items(n, slice(first, int(places[-1]) + 1, step))[(places - first) // step]


class Item:
    """One item as an array by itself, which stays where it is until it is sliced."""

    def __init__(self, ordered: Ordered, n: int) -> None:
        self.ordered, self.n, self.dtype = ordered, n, ordered.dtype
        frames = (int(ordered.lengths[n]),) if ordered.with_frames else ()
        self.shape = (*frames, *ordered.frame_shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, slice) and self.ordered.with_frames:
            return self.ordered.item(self.n, first)[(ALL, *rest)]
        return self.ordered.item(self.n)[(first, *rest)]
