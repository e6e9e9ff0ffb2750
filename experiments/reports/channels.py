"""Channels: frames of any number of them as gray or color pictures."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "check_channels", "pictures"]

# How to look at them -> numbers of channels that can be looked at so.
KINDS = {"flow": (2,), "rgba": (4,), "pairs": (2, 4, 6, 8), "grid": range(1, 2**16)}
MOST = 16  # channels in a grid
LINE = 0.7  # gray, since what is white divides frames

Pixels = NDArray[np.float64]


def check_channels(kind: str | None, n: int) -> None:
    """Raise ValueError where frames of n channels cannot be shown so."""
    if kind is not None and n not in KINDS.get(kind, ()):
        fitting = [name for name, numbers in KINDS.items() if n in numbers]
        raise ValueError(
            f"evaluation.channels is {kind!r}, and frames have {n} channel{'s' * (n != 1)}; expected "
            f"{', '.join(fitting)}, or null, which leaves it to their number."
        )


def pictures(frames: Pixels, kind: str | None = None) -> Pixels:
    """Gray (1 channel) or color (3) pictures of frames (N, S, channel, height, width), pixels in [0, 1].

    Args:
        frames: of any number of channels.
        kind: ``"flow"``: of two channels, motion to the right and down, ½ where there is none: direction as hue and
            speed as saturation, as optical flow is drawn (Baker et al. 2011, "A Database and Evaluation Methodology for
            Optical Flow", https://doi.org/10.1007/s11263-010-0390-2), full at the ends of the range. ``"rgba"``: on
            white. ``"pairs"``: the first half of the channels on the left, as of the left eye, the second on the right.
            ``"grid"``: every channel in gray, 16 of them at most. None: gray, color, or a grid, by their number.

    Raises:
        ValueError: frames of so many channels cannot be shown so.
    """
    n = frames.shape[2]
    check_channels(kind, n)
    if kind == "flow":
        return _flow(*np.moveaxis(2 * frames - 1, 2, 0))
    if kind == "rgba":
        alpha = frames[:, :, 3:]
        return frames[:, :, :3] * alpha + 1 - alpha
    if kind == "pairs":
        return _tiled([pictures(half) for half in np.split(frames, 2, axis=2)], 2)
    if kind is None and n in (1, 3):
        return frames
    shown = min(n, MOST)
    columns = n if n < 4 else math.ceil(math.sqrt(shown))
    return _tiled(np.split(frames[:, :, :shown], shown, axis=2), columns)


def _flow(right: Pixels, down: Pixels) -> Pixels:
    """Hue of the direction, (N, S, height, width) each -> (N, S, 3, height, width)."""
    from matplotlib.colors import hsv_to_rgb

    hue, saturation = np.arctan2(-down, right) / (2 * np.pi) % 1, np.hypot(right, down).clip(0, 1)
    colors: Pixels = hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], -1))
    return np.moveaxis(colors, -1, 2)


def _tiled(parts: list[Pixels], columns: int) -> Pixels:
    """Pictures side by side in rows of so many, gray lines between them and white where none is left."""
    parts = parts + [np.ones_like(parts[0])] * (-len(parts) % columns)
    rows = [_joined(parts[k : k + columns], 4) for k in range(0, len(parts), columns)]
    return _joined(rows, 3)


def _joined(parts: list[Pixels], axis: int) -> Pixels:
    shape = list(parts[0].shape)
    shape[axis] = 1
    line = np.full(shape, LINE)
    return np.concatenate([piece for part in parts for piece in (line, part)][1:], axis=axis)
