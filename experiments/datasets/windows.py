"""Windows: films cut into sequences of one length, and split so that no frame of one part is seen in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import Unsuitable
from .splits import SPLITS, cuts

__all__ = ["Cut", "Windows"]

FEWEST = 3  # films that can be split: one for each part
SHORT, WAYS = ("leave", "pad"), ("film", "time")


class Windows(NamedTuple):
    """Windows of each split, (film, start) each (N,) int64; and in words how they were cut and split."""

    parts: tuple[tuple[Tensor, Tensor], ...]
    about: str


@dataclass(frozen=True)
class Cut:
    """How films become sequences.

    Args:
        n_frames: of a window; None: those of the films, which have to be of one length.
        stride: from the start of one window to that of the next; None: films are sequences, used as they are.
        dilation: from one frame of a window to the next.
        short: films that are shorter than a window are left out (``"leave"``), or filled up by frames that were not
            observed (``"pad"``); None: left out where films are cut, and refused where they are not.
        by: ``"film"``, whose windows are then all in one part, or ``"time"``: the first frames of each film are for
            training, the next ones for validation and the last ones for the test. None: by film, where there are three
            or more.
        gap: frames between the parts of a film that is split by time, which are in none; None: as many as a window
            spans.

    Raises:
        ValueError: one of them is none of these.
    """

    n_frames: int | None = None
    stride: int | None = None
    dilation: int = 1
    short: str | None = None
    by: str | None = None
    gap: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("stride", self.stride, 1), ("dilation", self.dilation, 1), ("gap", self.gap, 0)):
            if value is None and name != "dilation":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name} is {value!r}; expected a whole number of frames, at least {least} "
                    f"(data.source.{name}={least} on the command line)."
                )
        for name, word, words in (("short", self.short, SHORT), ("split", self.by, WAYS)):
            if word not in (None, *words):
                raise ValueError(
                    f"{name} is {word!r}; expected {' or '.join(words)} (data.source.{name}={words[0]} on the command "
                    "line), or null."
                )
        if self.stride is None:
            for name, value in (("dilation", self.dilation > 1), ("split", self.by == "time"), ("gap", self.gap)):
                if value:
                    raise ValueError(
                        f"{name} is for films that are cut into windows; say where these start by stride "
                        f"(data.source.stride={self.n_frames or 1} on the command line), or leave it out."
                    )
        elif self.n_frames is None:
            raise ValueError(
                "stride is given, but not how many frames a window has; say it by n_frames (data.n_frames=18 on the "
                "command line)."
            )

    @property
    def span(self) -> int | None:
        """Frames from the first to the last of a window; None where films are not cut."""
        return None if self.stride is None else self.dilation * ((self.n_frames or 1) - 1) + 1

    def windows(self, lengths: NDArray[np.int64], labels: Tensor, shares: tuple[float, float], seed: int) -> Windows:
        """The windows of films of these lengths.

        Args:
            lengths: frames of each film, (n,).
            labels: of the films, (n,), by which the parts are stratified.
            shares: of validation and test, among films, or among the frames of each.
            seed: of which films go where, and of the order of windows.

        Raises:
            Unsuitable: all films are too short, or a part would have no window.
            ValueError: shares that leave nothing to train on.
        """
        if self.stride is None:
            return self._whole(lengths, labels, shares, seed)
        span = self.span or 1
        long = lengths >= (1 if self.short == "pad" else span)
        if not long.any():
            longest, most = int(lengths.max(initial=0)), (int(lengths.max(initial=0)) - 1) // self.dilation + 1
            raise Unsuitable(
                f"a window of {self.n_frames} frames{self._dilated()} spans {span}, and the longest film has "
                f"{longest}: give n_frames of at most {max(most, 1)} (data.n_frames={max(most, 1)}), or fill short "
                "films up (data.source.short=pad)."
            )
        by = self.by or ("film" if int(long.sum()) >= FEWEST else "time")
        if by == "film":
            parts = self._by_film(lengths, long, labels, shares, seed)
        else:
            parts = self._by_time(lengths, long, labels, shares)
        shuffled = []
        for k, (film, start) in enumerate(parts):
            order = cuts(labels[film], 0.0, 0.0, seed + k)[0] if len(film) else torch.arange(0)
            shuffled.append((film[order], start[order]))
        return Windows(tuple(shuffled), self._said(lengths, long, by, parts))

    def _whole(self, lengths: NDArray[np.int64], labels: Tensor, shares: tuple[float, float], seed: int) -> Windows:
        """Films as they are, all of one length; shorter ones filled up, or left out."""
        n_frames, shortest, longest = self.n_frames, int(lengths.min()), int(lengths.max())
        wanted = n_frames if self.short is not None else None
        if (wanted is None and longest > shortest) or (wanted is not None and longest > wanted):
            n = n_frames or shortest
            held = f"films of {shortest} to {longest} frames" if longest > shortest else f"films of {longest} frames"
            raise Unsuitable(
                f"it holds {held}; expected {'as many in each' if wanted is None else f'at most {wanted}'}: cut them "
                f"into windows of {n} frames (data.n_frames={n} data.source.stride={n}), or fill them up to the "
                f"longest (data.n_frames={longest} data.source.short=pad)."
            )
        short = lengths < (wanted or 0)
        usable = torch.from_numpy(np.flatnonzero(~short | (self.short == "pad")))
        if not len(usable):
            raise Unsuitable(
                f"the longest film has {longest} frames, and n_frames is {wanted}; give at most that many "
                f"(data.n_frames={longest}), or fill films up (data.source.short=pad)."
            )
        fate = f"filled up to {wanted} frames" if self.short == "pad" else f"of fewer than {wanted} frames left out"
        about = f"{int(short.sum()):,} of {len(lengths):,} films {fate}" if short.any() else ""
        parts = (usable[part] for part in cuts(labels[usable], *shares, seed))
        train, validation, test = ((part, torch.zeros_like(part)) for part in parts)
        return Windows((train, validation, test), about)

    def _by_film(
        self,
        lengths: NDArray[np.int64],
        long: NDArray[np.bool_],
        labels: Tensor,
        shares: tuple[float, float],
        seed: int,
    ) -> list[tuple[Tensor, Tensor]]:
        usable = torch.from_numpy(np.flatnonzero(long))
        parts = [usable[places] for places in cuts(labels[usable], *shares, seed)]
        for name, part, share in zip(SPLITS, parts, (1 - sum(shares), *shares), strict=True):
            if share > 0 and not len(part):
                raise Unsuitable(
                    f"of {len(usable)} films none is left for {name}, whose share is {share:.2g}; give more films, "
                    "another share, or split each film by time (data.source.split=time)."
                )
        return [self._cut(films, torch.zeros_like(films), torch.from_numpy(lengths)[films]) for films in parts]

    def _by_time(
        self, lengths: NDArray[np.int64], long: NDArray[np.bool_], labels: Tensor, shares: tuple[float, float]
    ) -> list[tuple[Tensor, Tensor]]:
        cuts(labels, *shares, 0)  # for what it refuses
        span, gap = self.span or 1, self._gap
        films, used = torch.from_numpy(np.flatnonzero(long)), [share > 0 for share in (1.0, *shares)]
        length = torch.from_numpy(lengths)[films]
        rest = (length - gap * (sum(used) - 1)).clamp(min=0)
        later = [(share * rest.double()).round().long() for share in shares]
        sizes = [rest - later[0] - later[1], *later]
        parts, start = [], torch.zeros_like(length)
        for name, size, share, use in zip(SPLITS, sizes, (1 - sum(shares), *shares), used, strict=True):
            fits = (size >= span) & use
            if use and not bool(fits.any()):
                n = int(length.max())
                raise Unsuitable(
                    f"the longest film has {n} frames, which split by time leave {max(int(size.max()), 0)} for {name} "
                    f"(a share of {share:.2g}, {gap} frames left out between two parts), and a window spans {span}; "
                    f"give a longer film or more films, shorter windows (data.n_frames), another share "
                    f"(data.source.{name if name != 'train' else 'test'}), or no gap (data.source.gap=0)."
                )
            parts.append(self._cut(films[fits], start[fits], size[fits]))
            start = start + size + gap * use
        return parts

    def _cut(self, films: Tensor, start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """All windows within so many frames of each film, from a first one on; one of a film that is too short."""
        span, stride = self.span or 1, self.stride or 1
        counts = (size - span).clamp(min=0) // stride + 1
        film = films.repeat_interleave(counts)
        before = (counts.cumsum(0) - counts).repeat_interleave(counts)
        return film, start.repeat_interleave(counts) + stride * (torch.arange(len(film)) - before)

    @property
    def _gap(self) -> int:
        return (self.span or 1) if self.gap is None else self.gap

    def _dilated(self) -> str:
        return f", every {self.dilation} frames one," if self.dilation > 1 else ""

    def _said(
        self, lengths: NDArray[np.int64], long: NDArray[np.bool_], by: str, parts: list[tuple[Tensor, Tensor]]
    ) -> str:
        left, span = len(lengths) - len(torch.cat([film for film, _ in parts]).unique()), self.span or 1
        counts = ", ".join(f"{len(film):,} for {name}" for (film, _), name in zip(parts, SPLITS, strict=True))
        words = f"cut into windows of {self.n_frames} frames{self._dilated()} a window every {self.stride}: {counts}"
        if by == "film":
            films = ", ".join(f"{len(film.unique()):,}" for film, _ in parts)
            words += f"; split by film ({films})"
        else:
            words += f"; split by time, {self._gap} frames left out between two parts"
        if left:
            words += f"; {left:,} of {len(lengths):,} films too short, and left out"
        padded = int((lengths[long] < span).sum()) if by == "film" else 0
        return words + (f"; {padded:,} films of fewer than {span} frames filled up" if padded else "")
