"""Mosaics: frames of sequences side by side on one canvas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .channels import pictures
from .style import DPI, WIDTH, wrap

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MAX_COLUMNS", "Array", "Floats", "as_array", "as_frames", "mosaic", "pick", "stack"]

Array: TypeAlias = "Tensor | NDArray[Any]"
Floats: TypeAlias = NDArray[np.float64]

MAX_COLUMNS = 24


def as_array(value: Array) -> Floats:
    """A tensor or array as numpy's, in float64."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)


def as_frames(value: Array, channels: str | None = None) -> Floats:
    """Gray or color pictures of frames (N, S, channel, height, width), pixels in [0, 1]; a single sequence gets its N.

    Args:
        channels: how to look at frames of several, see :func:`.channels.pictures`.
    """
    frames = as_array(value)
    if frames.ndim == 4:
        frames = frames[None]
    if frames.ndim != 5 or frames.shape[2] == 0:
        raise ValueError(f"frames have shape {frames.shape}; expected (sequence, frame, channel, height, width).")
    return pictures(frames.clip(0.0, 1.0), channels)


def pick(n: int, limit: int) -> NDArray[np.int64]:
    """At most ``limit`` indices, evenly spread over 0 … n − 1, ends included."""
    return np.unique(np.linspace(0, n - 1, min(n, limit)).round().astype(np.int64))


def stack(
    named: Mapping[str, Array], title: str, most: int, moving: Sequence[str] = (), channels: str | None = None
) -> Figure:
    """One row of frames per name and sequence, at most so many, the sequences apart; labels say what moves in each."""
    frames = {name: as_frames(value, channels) for name, value in named.items()}
    shape = frames["true"].shape
    for name, value in frames.items():
        if value.shape != shape:
            raise ValueError(f"{name} frames have shape {value.shape}; expected {shape}, as the true ones.")
    shown, count = pick(shape[1], MAX_COLUMNS), min(shape[0], most)
    rows = [[value[n, i] for i in shown] for n in range(count) for value in frames.values()]
    labels = [f"{moving[n]}: true" if moving and name == "true" else name for n in range(count) for name in frames]
    return mosaic(rows, labels, shown, title, row_breaks=[n * len(frames) for n in range(1, count)])


def mosaic(
    rows: Sequence[Sequence[Floats | None]],
    labels: Sequence[str],
    numbers: Iterable[int],
    title: str,
    *,
    row_breaks: Sequence[int] = (),
    column_break: int | None = None,
) -> Figure:
    """All frames, (channel, height, width) each, on one white canvas, drawn by one ``imshow``.

    ``numbers`` of the frames stand below the columns; a break is a gap before a row, or before a column the wide one
    that divides what a model has seen from what it has not.
    """
    channels, height, width = next(frame for row in rows for frame in row if frame is not None).shape
    # Small pictures are enlarged first, so that the gaps between them stay thin lines.
    factor = math.ceil(56 / max(height, width))
    height, width = height * factor, width * factor
    gap, wide = 3, max(14, width // 3)
    left = [(width + gap) * i + (wide if column_break is not None and i >= column_break else 0)
            for i in range(len(rows[0]))]  # fmt: skip
    top = [(height + gap) * i + sum(wide // 2 for b in row_breaks if i >= b) for i in range(len(rows))]
    canvas = np.ones((top[-1] + height, left[-1] + width, channels))
    for y, row in zip(top, rows, strict=True):
        for x, frame in zip(left, row, strict=True):
            if frame is not None:
                enlarged = frame.repeat(factor, axis=1).repeat(factor, axis=2)
                canvas[y : y + height, x : x + width] = enlarged.transpose(1, 2, 0)
    # Exact places in inches: the number of rows and columns decides the size of the figure.
    margin = 0.15 + 0.07 * max(len(label) for label in labels)
    across = min(WIDTH - margin - 0.1, 0.9 * canvas.shape[1] / width)
    tall = across * canvas.shape[0] / canvas.shape[1]
    size = max(across + margin + 0.1, 4.0)
    wrapped = wrap(title, size)
    foot, head = 0.5, 0.2 + 0.2 * (1 + wrapped.count("\n")) + (0.18 if column_break is not None else 0.0)
    total = foot + tall + head
    figure = Figure(figsize=(size, total), dpi=DPI)
    figure.text(0.1 / size, 1 - 0.1 / total, wrapped, ha="left", va="top", fontsize=11)
    axis = figure.add_axes((margin / size, foot / total, across / size, tall / total))
    if channels == 1:
        axis.imshow(canvas[..., 0], cmap="gray", vmin=0.0, vmax=1.0)
    else:
        axis.imshow(canvas)
    axis.set_xticks([x + (width - 1) / 2 for x in left], [str(i) for i in numbers], fontsize=8)
    axis.set_yticks([y + (height - 1) / 2 for y in top], labels, fontsize=9)
    axis.set_xlabel("frame", fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if column_break is not None:
        _divide(axis, left[column_break] - (wide + gap + 1) / 2)
    return figure


def _divide(axis: Axes, edge: float) -> None:
    axis.axvline(edge, color="black", linewidth=1.2, linestyle="--")
    offset: dict[str, Any] = {"textcoords": "offset points", "xycoords": ("data", "axes fraction"), "va": "bottom"}
    axis.annotate("◂ seen", (edge, 1.0), xytext=(-6, 3), ha="right", **offset)
    axis.annotate("unseen ▸", (edge, 1.0), xytext=(6, 3), ha="left", **offset)
