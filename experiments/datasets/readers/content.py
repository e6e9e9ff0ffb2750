"""What a file holds, as any reader gives it: pixels that can be sliced, and what its format knows of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pyro_tvae.files import state_of
from pyro_tvae.opening import PerProcess

from ..axes import choose
from ..errors import Unsuitable

__all__ = [
    "Content",
    "Pieces",
    "Raw",
    "Reopened",
    "Request",
    "Sliceable",
    "Unchanged",
    "by_place",
    "choose_names",
    "install",
]


def by_place(
    index: Any, outer: Sequence[int], inner: Sequence[int], read: Callable[[list[int]], NDArray[Any]]
) -> NDArray[Any]:
    """What an index picks of (*outer, *inner), where things of shape ``inner`` are read one by one.

    Args:
        index: as of an array.
        outer, inner: shapes.
        read: from places in ``outer``, counted through, to what is there, one below the other.
    """
    index = index if isinstance(index, tuple) else (index,)
    index += (slice(None),) * (len(outer) - len(index))
    places = np.arange(math.prod(outer)).reshape(outer)[index[: len(outer)]]
    items = read(places.reshape(-1).tolist()).reshape(*places.shape, *inner)
    return items[(slice(None),) * places.ndim + index[len(outer) :]]


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
        span: frames from the first to the last of a window, where films are to be cut into windows.
        further: names of other arrays that are wanted, such as a mask, and the setting that names each.
        budget: bytes of pixels that may be decoded at once; what takes more is read by pieces where its format can be.
    """

    key: str | None = None
    labels_key: str | None = None
    axes: tuple[str, ...] = ()
    n_frames: int | None = None
    span: int | None = None
    further: Mapping[str, str] = field(default_factory=dict)
    budget: float = math.inf


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
        further: the other arrays that were asked for, by their names, one of each file; empty where it has no names.
        shares: items of each of several files, which follow each other; none: there is one.
        times: when each frame of each film is shown, in seconds, increasing; None of a film, or of all, where that is
            not said.
    """

    pixels: Sliceable
    axes: tuple[str, ...] = ()
    labels: NDArray[Any] | None = None
    label_name: str = "labels"
    classes: tuple[str, ...] = ()
    final: bool = False
    further: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    shares: tuple[int, ...] = ()
    times: Sequence[NDArray[np.float64] | None] | None = None

    def word(self, request: Request) -> str:
        """The word for the axes of the pixels; what is said goes before what the format knows.

        Raises:
            Unsuitable: as :func:`.axes.choose` does.
        """
        said = () if self.final else request.axes
        return choose(self.pixels.shape, said, request.n_frames, self.axes, request.span)


class Pieces:
    """Arrays of one shape and type, each read when it is wanted, as one array with a further first axis.

    Args:
        load: the piece of a place: an array, or what is sliced like one.
        names: of the pieces, for messages.
        lengths: of the pieces' own first axes, where these may differ, as those of films do; the shape has the longest.

    Raises:
        Unsuitable: while they are read: a piece is unlike the first.
    """

    def __init__(
        self, load: Callable[[int], Sliceable], names: Sequence[object], lengths: Sequence[int] | None = None
    ) -> None:
        self.load, self.names = load, names
        first = load(0)
        self.lengths = None if lengths is None or len({*lengths}) == 1 else np.asarray(lengths, np.int64)
        longest = first.shape if self.lengths is None else (int(self.lengths.max()), *first.shape[1:])
        self.shape, self.dtype = (len(names), *longest), first.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        first, *rest = index if isinstance(index, tuple) else (index,)
        places = np.arange(self.shape[0])[first]
        within: Any = tuple(rest) or (slice(None) if self.shape[1:] else ())
        if places.ndim == 0:
            return np.asarray(self.piece(int(places))[within])
        rows = [np.asarray(self.piece(place)[within]) for place in places.tolist()]
        return np.stack(rows) if rows else np.empty((0, *self.shape[1:]), self.dtype)

    def piece(self, place: int) -> Sliceable:
        """One of them, which may still lie in its file."""
        piece = self.load(place)
        length = self.shape[1:2] if self.lengths is None else (self.lengths[place],)
        if piece.shape != (*length, *self.shape[2:]) or piece.dtype != self.dtype:
            raise Unsuitable(
                f"{self.names[place]} has shape {piece.shape} and type {piece.dtype}, but {self.names[0]} has "
                f"{self.shape[1:]} and {self.dtype}; bring all to one size and kind."
            )
        return piece


class Unchanged:
    """Files as they were when this was made, by size and time of writing.

    Args:
        paths: of files and folders; those that are not there are to stay away.
    """

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self.states = [state_of(path) for path in paths]

    def check(self) -> None:
        """Raise Unsuitable where one of them is another one now."""
        if [state_of(path) for path in self.paths] != self.states:
            raise Unsuitable(
                "it was changed or replaced while it was being read; leave it as it is until what reads it "
                "has ended, and try again; a run goes on where its values are what they were."
            )


class Raw:
    """An array whose values lie in a file one after the other; each part is mapped while it is read, and no longer.

    What stays mapped counts as memory of the process, as much of it as was ever looked at.

    Args:
        path: of the file.
        dtype: of the values.
        offset: of the first one, in bytes.
        shape: of the array.
        order: of its axes, as numpy has it.
    """

    def __init__(
        self, path: Path, dtype: Any, offset: int, shape: Sequence[int], order: Literal["C", "F"] = "C"
    ) -> None:
        self.path, self.dtype, self.offset, self.order = path, np.dtype(dtype), offset, order
        self.shape = tuple(shape)
        size = self.offset + math.prod(self.shape) * self.dtype.itemsize
        self.unchanged = Unchanged(path)
        if min(self.shape, default=0) < 0 or os.path.getsize(path) < size:
            raise Unsuitable("it is shorter than it says, and may be damaged; write it again.")

    def __getitem__(self, index: Any) -> NDArray[Any]:
        self.unchanged.check()  # reading beyond the end of what is mapped would end the process
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)[index]
        return np.array(np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)[index])


class Reopened:
    """An array in a file that a library opens, which is opened anew in every process that reads it.

    Args:
        unchanged: what it lies in.
        open: gives the array in the file; a function of a module's top level, so that workers can be sent it.
        arguments: of it.
    """

    def __init__(self, unchanged: Unchanged, open: Callable[..., Any], *arguments: Any) -> None:
        self.unchanged, self._opened = unchanged, PerProcess(open, *arguments)
        self.shape, self.dtype = tuple(self.array.shape), self.array.dtype

    @property
    def array(self) -> Any:
        """The array, of this process."""
        self.unchanged.check()
        return self._opened()

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]


def choose_names(arrays: Mapping[str, Sequence[int]], request: Request) -> tuple[str, str | None]:
    """Names of the pixels and of the labels among a file's arrays, by name and shape.

    Raises:
        Unsuitable: one is named that is not there, or several are, and none is named.
    """
    names = list(arrays)
    candidates = [name for name in names if name != request.labels_key and name not in request.further]
    key = candidates[0] if request.key is None and len(candidates) == 1 else request.key
    further = [(option, name) for name, option in request.further.items()]
    for option, name in [("key", key), ("labels_key", request.labels_key), *further]:
        if name in names or (option == "labels_key" and name is None):
            continue
        holds = "one unnamed array" if names == [""] else f"the arrays {', '.join(names) or '(none)'}"
        advice = "leave it out" if names == [""] else f"set {option} to one of them"
        if option in dict(further):
            advice = "give one of these, the name of a file beside it, or isnan"
            advice = advice if option == "mask" else "give one of these, or the name of a file beside it"
        raise Unsuitable(f"{option} is {name!r}, but the file holds {holds}; {advice}.")
    assert key is not None
    return key, request.labels_key


def install(extra: str, path: Path) -> ImportError:
    """For a package that is not there, and what brings it."""
    return ImportError(f"{path}: reading it takes another package; install it with: pip install 'pyro-tvae[{extra}]'.")
