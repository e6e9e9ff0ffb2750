"""Rates: films of any number of frames per second brought to one, by picking the frame that is nearest in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import Unsuitable
from .factors import Stored, by_item
from .readers.ordered import Ordered

__all__ = ["Pace", "paced", "times_of"]

Times = Sequence[NDArray[np.float64] | None]

ALIKE = 0.01  # rates that differ by less are one: 24 and 23.976 frames per second
UNEVEN = 0.1  # of a frame: clocks count in milliseconds or hundredths of a second, and no film is uneven for that


@dataclass(frozen=True)
class Pace:
    """Which frames of each film there are, None for all; and in words how fast films are, where that is to be said."""

    picks: list[NDArray[np.int64]] | None = None
    words: str = ""


def times_of(rates: Stored | None, times: Stored | None, stored: Ordered, name: str) -> Times:
    """When each frame of each film is shown, in seconds, from arrays of rates, or of times.

    Args:
        rates: frames per second of each film, or of all.
        times: when frames are shown, in seconds.
        stored: the films.
        name: of the arrays.

    Raises:
        Unsuitable: a rate is none, times do not increase, or there are others than there are films and frames.
    """
    if rates is not None:
        items, _ = by_item(rates, stored, name, "rates_key", _shared(rates), 1)
        if any(len({*item[:, 0].tolist()}) > 1 for item in items):
            raise Unsuitable(f"rates_key {name!r} has a value for each frame; expected one for each film.")
        slow = [float(item.min(initial=1.0)) for item in items]
        if not min(slow) > 0:
            raise Unsuitable(f"rates_key {name!r} holds {min(slow):g}; expected frames per second, above 0.")
        return [np.arange(len(item)) / float(item[0, 0]) if len(item) else np.zeros(0) for item in items]
    assert times is not None
    items, _ = by_item(times, stored, name, "times_key", _shared(times, "S"), 1)
    for number, item in enumerate(items):
        if not (np.diff(item[:, 0]) > 0).all() or not np.isfinite(item).all():
            raise Unsuitable(
                f"times_key {name!r} does not increase from frame to frame of film {number}; expected when each is "
                "shown, in seconds."
            )
    return [item[:, 0] for item in items]


def _shared(arrays: Stored, letters: str = "") -> str | None:
    """One value, or row of times, for all films."""
    shape = [size for size in arrays[0][0].shape if size > 1] if len(arrays) == 1 else None
    return letters if shape is not None and len(shape) == len(letters) else None


def paced(times: Times | None, stored: Ordered, rate: float | None) -> Pace:
    """Films at one rate: the frames whose times are nearest to ``t₀ + j / rate``; of two as near ones the earlier.

    No frame is taken twice, none is made up, and every one is at most half an interval from where it should be.

    Args:
        times: of the frames of each film, in seconds, None where that is not known.
        stored: the films.
        rate: frames per second that are asked for; None leaves all as they are.

    Raises:
        Unsuitable: rate is none, the times of a film are not known, or it is slower than that.
    """
    known = [own for own in times or () if own is not None]
    films = [own for own in known if len(own) > 1]
    slowest = min((_mean(own) if _is_even(own) else 1 / float(np.diff(own).max()) for own in films), default=0.0)
    if rate is None:
        return Pace(None, _said(films, slowest))
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not number or not 0 < rate < math.inf:
        raise Unsuitable(
            f"frame_rate is {rate!r}; expected frames per second, above 0 (data.source.frame_rate=10), or null for all "
            "frames as they are."
        )
    if not stored.with_frames:
        raise Unsuitable("frame_rate is for films; leave it out, or say by axes which axis is that of frames.")
    if times is None or len(known) < len(times):
        raise Unsuitable(
            "frame_rate is given, but not all films say when their frames are shown; say it by an array, rates_key "
            "(frames per second of each film) or times_key (seconds of each frame)."
        )
    picks, errors = [], [0.0]
    for place, own in enumerate(known):
        own = own - own[:1]
        wanted = np.arange(math.floor(float(own[-1]) * rate + UNEVEN) + 1) / rate if len(own) else np.zeros(0)
        after = np.searchsorted(own, wanted).clip(0, max(len(own) - 1, 0))
        before = np.maximum(after - 1, 0)
        nearer = np.abs(own[after] - wanted) < np.abs(own[before] - wanted) - 1e-6 / rate
        chosen = np.where(nearer, after, before).astype(np.int64)
        error = float(np.abs(own[chosen] - wanted).max(initial=0.0))
        mean = _mean(own) if len(own) > 1 else math.inf
        if mean < rate * (1 - ALIKE) or error > (0.5 + UNEVEN) / rate or (np.diff(chosen) < 1).any():
            names = getattr(stored.array, "names", None)
            longest = float(np.diff(own).max())
            raise Unsuitable(
                f"frame_rate is {rate:g}, but film {names[place] if names else place} is slower: it has {mean:.4g} "
                f"frames per second, and shows one for {longest:.4g} s; frames are picked and never made up, so give "
                f"at most {_below(slowest)} (data.source.frame_rate={_below(slowest)})."
            )
        picks.append(chosen)
        errors.append(error)
    kept, n = sum(map(len, picks)), int(stored.stored_lengths.sum())
    off = f"at most {round(max(errors), 6):.2g} s off"
    words = f"brought to {rate:g} frames per second by picking {kept:,} of {n:,} frames, {off}"
    whole = all(len(own) == length for own, length in zip(picks, stored.stored_lengths, strict=True))
    return Pace(None if whole else picks, words)


def _mean(own: NDArray[np.float64]) -> float:
    """Frames per second of a film of several."""
    return (len(own) - 1) / float(own[-1] - own[0])


def _is_even(own: NDArray[np.float64]) -> bool:
    """Whether all frames but the last are shown for as long, but for the rounding of clocks."""
    interval = 1 / _mean(own)
    return bool(np.abs(own - own[0] - interval * np.arange(len(own))).max() <= UNEVEN * interval)


def _said(films: Sequence[NDArray[np.float64]], slowest: float) -> str:
    """What is to be said of films that are taken frame by frame though their rates differ; "" where they do not."""
    even, means = all(map(_is_even, films)), [_mean(own) for own in films]
    low, high = min(means, default=0.0), max(means, default=0.0)
    if even and high <= low * (1 + ALIKE):
        return ""
    rates = f"{low:.4g} to {high:.4g}" if high > low * (1 + ALIKE) else f"{low:.4g}"
    uneven = "" if even else ", not all of them shown for as long as others"
    return (
        f"films of {rates} frames per second{uneven}, taken FRAME BY FRAME as if they were alike: bring them to one "
        f"rate by frame_rate (data.source.frame_rate={_below(slowest)})"
    )


def _below(rate: float) -> str:
    """A rate in few digits, not above it."""
    digits = 10.0 ** (3 - math.floor(math.log10(rate)))
    return f"{math.floor(rate * digits + 1e-6) / digits:g}"
