"""What a file holds, as any reader gives it: pixels that can be sliced, and what its format knows of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..axes import choose
from ..sources import Unsuitable

__all__ = ["Content", "Pieces", "Request", "Sliceable", "choose_names", "install"]


class Sliceable(Protocol):
    """What pixels are read from: an array, one in a file, or pieces that are read when they are wanted."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""

    @property
    def dtype(self) -> Any:
        """Type of a value, as numpy has it."""

    def __getitem__(self, index: Any) -> Any:
        """A part as an array; ``[:]`` is all."""


@dataclass(frozen=True)
class Request:
    """What a user said of a file.

    Args:
        key: name of the array.
        labels_key: name of the labels.
        axes: words of letters, such as NSHWC.
        n_frames: of a sequence, where sequences are wanted.
    """

    key: str | None = None
    labels_key: str | None = None
    axes: tuple[str, ...] = ()
    n_frames: int | None = None


@dataclass(frozen=True)
class Content:
    """Pixels as they are in a file.

    Args:
        pixels: sliced along the first axis, most cheaply.
        axes: words for their axes that the format leaves; none: it knows nothing of axes.
        labels: one an item, or a table of one row an item; None: there are none.
        label_name: where the labels are from.
        classes: names of the labels' whole numbers, where the file has them.
        final: ``axes`` is the word for them, into which what was said has gone already.
    """

    pixels: Sliceable
    axes: tuple[str, ...] = ()
    labels: NDArray[Any] | None = None
    label_name: str = "labels"
    classes: tuple[str, ...] = ()
    final: bool = False

    def word(self, request: Request) -> str:
        """The word for the axes of the pixels; what is said goes before what the format knows.

        Raises:
            Unsuitable: as :func:`.axes.choose` does.
        """
        return choose(self.pixels.shape, () if self.final else request.axes, request.n_frames, self.axes)


class Pieces:
    """Arrays of one shape and type, each read when it is wanted, as one array with a further first axis.

    Args:
        load: the piece of a place.
        names: of the pieces, for messages.

    Raises:
        Unsuitable: while they are read: a piece is unlike the first.
    """

    def __init__(self, load: Callable[[int], NDArray[Any]], names: Sequence[object]) -> None:
        self.load, self.names = load, names
        first = load(0)
        self.shape, self.dtype = (len(names), *first.shape), first.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        first, *rest = index if isinstance(index, tuple) else (index,)
        places = np.arange(self.shape[0])[first]
        out = np.empty((places.size, *self.shape[1:]), self.dtype)
        for row, place in enumerate(places.reshape(-1).tolist()):
            piece = self.load(place)
            if piece.shape != out.shape[1:] or piece.dtype != out.dtype:
                raise Unsuitable(
                    f"{self.names[place]} has shape {piece.shape} and type {piece.dtype}, but {self.names[0]} has "
                    f"{self.shape[1:]} and {self.dtype}; bring all to one size and kind."
                )
            out[row] = piece
        return out.reshape(*places.shape, *self.shape[1:])[(slice(None),) * places.ndim + tuple(rest)]


def choose_names(arrays: Mapping[str, Sequence[int]], request: Request) -> tuple[str, str | None]:
    """Names of the pixels and of the labels among a file's arrays, by name and shape.

    Raises:
        Unsuitable: one is named that is not there, or several are, and none is named.
    """
    names = list(arrays)
    candidates = [name for name in names if name != request.labels_key]
    key = candidates[0] if request.key is None and len(candidates) == 1 else request.key
    for option, name in (("key", key), ("labels_key", request.labels_key)):
        if name in names or (option == "labels_key" and name is None):
            continue
        holds = "one unnamed array" if names == [""] else f"the arrays {', '.join(names) or '(none)'}"
        advice = "leave it out" if names == [""] else f"set {option} to one of them"
        raise Unsuitable(f"{option} is {name!r}, but the file holds {holds}; {advice}.")
    assert key is not None
    return key, request.labels_key


def install(extra: str, path: Path) -> ImportError:
    """For a package that is not there, and what brings it."""
    return ImportError(f"{path}: reading it takes another package; install it with: pip install 'pyro-tvae[{extra}]'.")
