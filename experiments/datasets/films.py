"""Films: images and sequences that stay where they are, or in memory once, and are read by the rows of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .looks import Look
from .masks import Mask
from .readers.content import Raw
from .readers.ordered import Ordered
from .values import Scale

__all__ = ["Clips", "Films", "InFile", "InMemory"]

FRAMES = 4096  # looked at at a time


class Films(Protocol):
    """Films of any length, or still images, films of one frame."""

    lengths: NDArray[np.int64]
    first: Tensor
    seen: Tensor | None

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(channel, height, width)."""

    @property
    def dtype(self) -> torch.dtype:
        """uint8 in 0..255 or float32 in [0, 1]."""

    def read(self, film: Tensor, start: Tensor, n_frames: int, dilation: int) -> tuple[Tensor, Tensor | None]:
        """Windows (B, frame, channel, height, width), zero where nothing was measured; and what was."""


class InFile:
    """Films that stay where they are stored, read, scaled, cropped and resized when they are wanted.

    Args:
        stored: their pixels.
        scale: of the values.
        look: what becomes of a frame.
        mask: what of them was measured; None: all.
        said: a context in which what goes wrong while they are read is said in a sentence.
    """

    def __init__(
        self,
        stored: Ordered,
        scale: Scale,
        look: Look,
        mask: Mask | None = None,
        said: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.stored, self.scale, self.look, self.mask, self.said = stored, scale, look, mask, said
        self.lengths, self.first = stored.lengths, firsts(stored.lengths)
        self.frame_shape = look.shape(stored.frame_shape)
        self.dtype = torch.uint8 if scale.white is None else torch.float32
        self.seen = None if mask is None else mask.seen

    @property
    def nbytes(self) -> int:
        """Of all pixels as a model sees them."""
        return int(self.lengths.sum()) * math.prod(self.frame_shape) * self.dtype.itemsize

    def read(self, film: Tensor, start: Tensor, n_frames: int, dilation: int) -> tuple[Tensor, Tensor | None]:
        try:
            return self._read(film, start, n_frames, dilation)
        except Exception:
            with self.said():
                raise

    def _read(self, film: Tensor, start: Tensor, n_frames: int, dilation: int) -> tuple[Tensor, Tensor | None]:
        whole = isinstance(self.stored.array, np.ndarray | Raw) and self.mask is None and self.stored.picks is None
        if whole and dilation == 1 and n_frames == self.lengths[0] and not start.any():  # rows of one array
            return self._seen(self.stored.items(film.numpy()), None)
        x = torch.zeros(len(film), n_frames, *self.frame_shape, dtype=self.dtype)
        measured: Tensor | None = None
        for row, (number, first) in enumerate(zip(film.tolist(), start.tolist(), strict=True)):
            frames = slice(first, min(first + dilation * (n_frames - 1) + 1, int(self.lengths[number])), dilation)
            raw = self.stored.item(number, frames)
            pixels, own = self._seen(raw, None if self.mask is None else self.mask.look(raw, number, frames))
            x[row, : len(pixels)] = pixels
            if own is not None:
                measured = torch.zeros(*x.shape[:2], *own.shape[1:], dtype=torch.bool) if measured is None else measured
                measured[row, : len(own)] = own
        return x, measured

    def loaded(self) -> InMemory:
        """The same in memory."""
        n = int(self.lengths.sum())
        pixels, measured, place = torch.empty(n, *self.frame_shape, dtype=self.dtype), None, 0
        for items, frames, raw in self.stored.pieces():
            part, own = self._seen(raw, None if self.mask is None else self.mask.look(raw, items, frames))
            part = part.flatten(0, -4)
            pixels[place : place + len(part)] = part
            if own is not None:
                measured = torch.empty(n, *own.shape[-3:], dtype=torch.bool) if measured is None else measured
                measured[place : place + len(part)] = own.flatten(0, -4)
            place += len(part)
        return InMemory(pixels, self.lengths, measured, self.seen)

    def _seen(self, raw: NDArray[Any], measured: NDArray[np.bool_] | None) -> tuple[Tensor, Tensor | None]:
        """Stored pixels as a model sees them, with an axis of frames, and what of them was measured in part."""
        raw = raw if self.stored.with_frames else np.expand_dims(raw, -4)
        if measured is None or self.mask is None:
            return self.look(torch.from_numpy(self.scale(raw))), None
        # What was not measured may be anything, also nothing that can be scaled.
        raw = np.where(measured, raw, raw.dtype.type(self.scale.black or 0))
        pixels = self.look(torch.from_numpy(self.scale(raw)))
        if not self.mask.by_pixel:
            return pixels, None
        whole = np.broadcast_to(measured, (*raw.shape[:-3], measured.shape[-3], *raw.shape[-2:]))
        kept = self.look(torch.from_numpy(whole.copy()), mask=True)
        return torch.where(kept, pixels, torch.zeros((), dtype=pixels.dtype)), kept


class InMemory:
    """The same in memory, as a model sees it: every frame once, whatever windows are cut from it.

    Args:
        pixels: (all frames, channel, height, width).
        lengths: of the films, which follow each other.
        measured: booleans that fit ``pixels``.
        seen: (all frames,) booleans.
    """

    def __init__(
        self, pixels: Tensor, lengths: NDArray[np.int64], measured: Tensor | None = None, seen: Tensor | None = None
    ) -> None:
        self.pixels, self.lengths, self.measured, self.seen = pixels, lengths, measured, seen
        self.dtype = pixels.dtype
        self.first = firsts(lengths)
        self.last = self.first + torch.from_numpy(lengths) - 1

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels.shape[-3:]
        return channels, height, width

    def read(self, film: Tensor, start: Tensor, n_frames: int, dilation: int) -> tuple[Tensor, Tensor | None]:
        places = (self.first[film] + start).unsqueeze(1) + dilation * torch.arange(n_frames)
        last = self.last[film].unsqueeze(1)
        x = self.pixels[places.minimum(last)]
        measured = None if self.measured is None else self.measured[places.minimum(last)]
        if bool((places > last).any()):
            x[places > last] = 0
            if measured is not None:
                measured[places > last] = False
        return x, measured


@dataclass(frozen=True)
class Clips:
    """Windows of films, or still images, which are read when rows are asked for, as those of a tensor are.

    Args:
        films: what they are cut from.
        film: (N,) which one.
        start: (N,) first frame.
        n_frames: of a window; None for still images, which have no axis of frames.
        dilation: from one frame of a window to the next.
        padded: windows may reach beyond the end of their film, where there are no frames.

    Example:
        >>> films = InMemory(torch.rand(10, 1, 4, 4), np.array([6, 4]))
        >>> clips = Clips(films, torch.tensor([0, 0, 1]), torch.tensor([0, 3, 1]), n_frames=3)
        >>> clips.shape, clips[torch.tensor([2])].shape
        (torch.Size([3, 3, 1, 4, 4]), torch.Size([1, 3, 1, 4, 4]))
    """

    films: Films
    film: Tensor
    start: Tensor
    n_frames: int | None
    dilation: int = 1
    padded: bool = False

    @property
    def shape(self) -> torch.Size:
        """(N, S, channel, height, width), or (N, channel, height, width) of still images."""
        frames = () if self.n_frames is None else (self.n_frames,)
        return torch.Size((len(self), *frames, *self.films.frame_shape))

    @property
    def dtype(self) -> torch.dtype:
        """uint8 in 0..255 or float32 in [0, 1]."""
        return self.films.dtype

    def __len__(self) -> int:
        return len(self.film)

    def __getitem__(self, rows: Any) -> Any:
        """A slice are fewer clips; rows (B,), or one row, are their pixels, read now."""
        if isinstance(rows, slice):
            return self.take(torch.arange(len(self))[rows])
        rows = torch.as_tensor(rows)
        pixels = self.batch(rows.reshape(-1))[0]
        return pixels if rows.dim() else pixels[0]

    def take(self, rows: Tensor) -> Clips:
        """Some of them, in the order of ``rows`` (B,); nothing is read."""
        return replace(self, film=self.film[rows], start=self.start[rows])

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Pixels (B, S, …); frames that there are and of which anything was measured (B, S); pixels that were."""
        film, start = self.film[rows], self.start[rows]
        x, measured = self.films.read(film, start, self.n_frames or 1, self.dilation)
        if self.n_frames is None:
            return x[:, 0], None, None
        return x, self.observed(rows), measured

    def contents(self, most: int) -> Iterator[Tensor]:
        """What tells these clips from others: where they lie, and what there is.

        Args:
            most: of clips that stay in their file so many are looked at, evenly spaced.
        """
        yield torch.tensor([*self.shape, self.dilation])
        yield from (self.film, self.start)
        if self.films.seen is not None:
            yield self.films.seen
        if isinstance(self.films, InMemory):  # frames of several windows once
            used = torch.zeros(len(self.films.pixels), dtype=torch.bool)
            for frame in range(self.n_frames or 1):
                place = self.films.first[self.film] + self.start + self.dilation * frame
                used[place.minimum(self.films.last[self.film])] = True
            for part in used.nonzero()[:, 0].split(FRAMES):
                yield self.films.pixels[part]
                if self.films.measured is not None:
                    yield self.films.measured[part]
        else:
            step = max(1, -(-len(self) // most))
            for rows in torch.arange(0, len(self), step).split(16):
                x, _, measured = self.batch(rows)
                yield from (x,) if measured is None else (x, measured)

    def shown(self) -> Tensor:
        """The rows of those that show anything: what shows nothing teaches nothing."""
        rows = torch.arange(len(self))
        if self.n_frames is None or (not self.padded and self.films.seen is None):
            return rows
        parts = [part[own.any(1)] for part in rows.split(FRAMES) if (own := self.observed(part)) is not None]
        return torch.cat(parts) if parts else rows

    def observed(self, rows: Tensor) -> Tensor | None:
        """Frames that there are and of which anything was measured, (B, S); None: all."""
        if self.n_frames is None or (not self.padded and self.films.seen is None):
            return None
        film = self.film[rows].unsqueeze(1)
        places = self.start[rows].unsqueeze(1) + self.dilation * torch.arange(self.n_frames)
        there = places < torch.from_numpy(self.films.lengths)[film]
        if self.films.seen is not None:
            there = there & self.films.seen[(self.films.first[film] + places).clamp(max=len(self.films.seen) - 1)]
        return there


def firsts(lengths: NDArray[np.int64]) -> Tensor:
    """The place of each film's first frame, where films follow each other."""
    return torch.from_numpy(np.cumsum(lengths) - lengths)
