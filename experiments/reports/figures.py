"""Figures: what a person looks at to judge a run, as matplotlib figures without any global state.

Every function takes plain arrays (torch tensors or numpy) and returns a :class:`matplotlib.figure.Figure`; nothing
touches pyplot or the backend, so they work in a notebook, in a script and on a machine without a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ..evaluation.record import ForwardRollRecord
from . import style
from .mosaics import MAX_COLUMNS, Array, Floats, as_array, as_frames, mosaic, pick, stack
from .style import save

if TYPE_CHECKING:  # torch takes seconds to import, for which figures of plain numbers do not wait
    from torch import Tensor

__all__ = [
    "capsule_stripes",
    "capsule_traversal",
    "first_sequence",
    "forward_roll_curve",
    "forward_roll_strip",
    "interleaved",
    "reconstructions",
    "save",
    "training_curves",
]

History: TypeAlias = Sequence[Mapping[str, Any]]

FLOORS = style.COLORS[1:]
N_SEQUENCES = 3  # in pictures of more than two rows each


def training_curves(history: History) -> Figure:
    """ELBO, reconstruction and KL over training steps, training and validation, in nats per frame.

    Args:
        history: records with the keys ``step`` and any of ``train/elbo``, ``train/reconstruction``, ``train/kl``,
            ``val/elbo``, … (nats per frame). Missing and non-finite entries are left out. Where the first steps would
            squeeze all others, the axis leaves them out and says so.
    """
    panels = (
        ("elbo", "ELBO\n(higher is better)"),
        ("reconstruction", "Reconstruction, E log p(x | t)\n(higher is better)"),
        ("kl", "KL from posterior to prior\n(at 0 the code is empty)"),
    )
    figure = style.canvas(3.4)
    axes = figure.subplots(1, 3)
    for axis, (key, title) in zip(axes, panels, strict=True):
        for split, label, color in (("train", "training", style.SKY), ("val", "validation", style.VERMILLION)):
            steps, values = _series(history, f"{split}/{key}")
            if len(steps) == 0:
                continue
            marked = len(steps) == 1 or (split == "val" and len(steps) <= 60)
            axis.plot(
                steps, values, color=color, label=label, linewidth=1.0 if split == "train" else 1.8,
                marker="o" if marked else None, markersize=3.5, zorder=2 if split == "train" else 3,
            )  # fmt: skip
        style.gridded(axis, title, 10)
        axis.set_xlabel("training step")
        style.whole_numbers(axis.xaxis, 4)
        if not axis.lines:
            _instead(axis, "not recorded")
            axis.set_xticks([])
            axis.set_yticks([])
            continue
        _leave_out_start(axis, floor=0.0 if key == "kl" else None)
    axes[0].set_ylabel("nats per frame")
    drawn = [axis for axis in axes if axis.lines]
    if drawn:
        drawn[0].legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def first_sequence(x: Array, about: str, channels: str | None = None) -> Figure:
    """The frames of one sequence, to be looked at before anything is trained on it.

    Args:
        x: (N, S, channel, height, width), of which the first is shown; pixels in [0, 1].
        about: how it was read, in words.
        channels: as in :func:`.channels.pictures`.
    """
    return stack({"true": x}, f"The first training sequence, {about}", most=1, channels=channels)


def reconstructions(x: Array, reconstruction: Array, channels: str | None = None) -> Figure:
    """For a few sequences, the true frames above the frames decoded from their own posterior.

    Args:
        x: (N, S, channel, height, width) or one sequence without N; pixels in [0, 1].
        reconstruction: same shape as ``x``.
        channels: as in :func:`.channels.pictures`.
    """
    title = "Reconstructions: each pair of rows should show the same shape in the same pose"
    return stack({"true": x, "reconstructed": reconstruction}, title, most=4, channels=channels)


def capsule_traversal(x: Array, reconstruction: Array, rolled: Array, channels: str | None = None) -> Figure:
    """True frames, their reconstruction, and the frames decoded by rolling the first frame's t through the capsules.

    Args:
        x: (N, S, channel, height, width) or one sequence without N; pixels in [0, 1].
        reconstruction: same shape as ``x``.
        rolled: same shape as ``x``; frame l is decoded from ``Roll_l(t_0)``, so that it saw frame 0 only.
        channels: as in :func:`.channels.pictures`.
    """
    title = "Capsule traversal: a roll that learned the transformation makes the third row follow the first"
    named = {"true": x, "reconstructed": reconstruction, "t of frame 0, rolled": rolled}
    return stack(named, title, N_SEQUENCES, channels=channels)


def forward_roll_strip(
    x: Array,
    predicted: Array,
    context: int,
    floors: Mapping[str, Array] | None = None,
    channels: str | None = None,
) -> Figure:
    """The seen frames, then the unseen true frames above the frames predicted by rolling t forward.

    Args:
        x: (N, S, channel, height, width) or one sequence without N; pixels in [0, 1].
        predicted: (N, S − context, channel, height, width), the prediction of every unseen frame.
        context: number of frames the model has seen, m.
        floors: further predictions to draw below, by name; shapes as ``predicted``.
        channels: as in :func:`.channels.pictures`.

    Raises:
        ValueError: the number of predicted frames is not S − context.
    """
    truth = as_frames(x, channels)
    n_frames = truth.shape[1]
    if not 0 < context < n_frames:
        raise ValueError(f"forward_roll_strip: context={context}; expected 1 to {n_frames - 1} of {n_frames} frames.")
    named = {"predicted": predicted} | dict(floors or {})
    predictions = {name: as_frames(frames, channels) for name, frames in named.items()}
    expected = (truth.shape[0], n_frames - context, *truth.shape[2:])
    for name, frames in predictions.items():
        if frames.shape != expected:
            raise ValueError(f"forward_roll_strip: {name} has shape {frames.shape}; expected {expected}.")
    before = pick(context, MAX_COLUMNS // 2)
    after = pick(n_frames - context, MAX_COLUMNS // 2)
    shown = [*before, *(context + after)]
    rows: list[list[Floats | None]] = []
    count = min(len(truth), N_SEQUENCES)
    for n in range(count):
        rows.append([truth[n, i] for i in shown])
        rows += [[None] * len(before) + [frames[n, i] for i in after] for frames in predictions.values()]
    labels = ["true", *predictions]
    return mosaic(
        rows, labels * count, shown, "Forward roll: below each unseen frame, what the model expected to see",
        row_breaks=[n * len(labels) for n in range(1, count)], column_break=len(before),
    )  # fmt: skip


def forward_roll_curve(forward_roll: ForwardRollRecord) -> Figure:
    """Log-likelihood of the unseen frames against the horizon, for the model and every floor.

    Args:
        forward_roll: ``{"context": m, "log_likelihood": {"model": [H numbers], floor: [H numbers], …}}``, in nats per
            unseen frame, higher is better. A floor so low that it would squeeze the others runs off the axis, and the
            figure says so.
    """
    series = {name: np.array(values, dtype=np.float64) for name, values in forward_roll["log_likelihood"].items()}
    drawn = {name: values for name, values in series.items() if np.isfinite(values).any()}
    figure = style.canvas(4.2)
    axis = figure.subplots()
    colors = {"model": style.BLUE}
    for name, color, dashes, marker in zip(
        (name for name in drawn if name != "model"),
        cycle(FLOORS), cycle(style.DASHES), cycle(style.MARKERS), strict=False,
    ):  # fmt: skip
        colors[name] = color
        axis.plot(
            np.arange(1, len(drawn[name]) + 1), drawn[name], color=color, label=name, linewidth=1.6, zorder=3,
            linestyle=dashes, marker=marker, markersize=4.5,
        )  # fmt: skip
    if "model" in drawn:
        axis.plot(
            np.arange(1, len(drawn["model"]) + 1), drawn["model"], color=style.BLUE, label="model", linewidth=3.0,
            zorder=4, marker="o", markersize=6,
        )  # fmt: skip
    context = forward_roll.get("context")
    title = "Forward roll: log-likelihood of frames the model has not seen"
    style.gridded(axis, title + (f" (context: {context} frames)" if context else ""))
    axis.set_xlabel("horizon: frames after the last one seen")
    axis.set_ylabel("nats per unseen frame (higher is better)")
    style.whole_numbers(axis.xaxis)
    if not drawn:
        _instead(axis, "undefined")
        return figure
    off, (low, high) = _squeezers(drawn)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    axis.set_ylim(low, high)
    last = max(len(values) for values in drawn.values())
    axis.set_xlim(1 - 0.03 * last, last + 0.03 * last)
    _label_ends(axis, drawn, colors, low, high)
    if off:
        ranges = [f"{np.nanmin(series[name]):,.0f} to {np.nanmax(series[name]):,.0f} nats" for name in off]
        # Matplotlib's own tick labels use the typographic minus sign.
        cut = [f"{name} ({text.replace('-', '−')})" for name, text in zip(off, ranges, strict=True)]
        text = f"Cut off below, so that the others stay readable: {'; '.join(cut)}."
        figure.supxlabel(style.wrap(text, style.WIDTH, 9), x=0.01, ha="left", fontsize=9, color=style.GRAY)
    return figure


def capsule_stripes(t: Array, v: Array | None = None) -> Figure:
    """T and its energy V of the capsule whose t varies most over one sequence: one that rolls shows diagonal stripes.

    Args:
        t: (S, C, D), the topographic variables of one sequence.
        v: (S, C, D), their local energies; None (a plain VAE has none) draws T alone.
    """
    values = {"T": as_array(t)} | ({} if v is None else {"V = W U², the local energy": as_array(v)})
    for name, value in values.items():
        if value.ndim != 3 or value.shape != values["T"].shape:
            raise ValueError(f"capsule_stripes: {name} has shape {value.shape}; expected (frame, capsule, position).")
    n_frames, n_capsules, n_positions = values["T"].shape
    capsule = int(values["T"].var(axis=0).mean(axis=-1).argmax())
    figure = style.canvas(4.4, style.WIDTH if len(values) == 2 else style.WIDTH / 2)
    for axis, (name, value) in zip(figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True):
        image = value[:, capsule]
        scale: dict[str, Any] = {"cmap": "cividis"}
        if image.min() < 0 < image.max():
            bound = float(np.abs(image).max())
            scale = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
        # Square cells make a roll of one position per frame a stripe at 45 degrees.
        square = 0.4 <= n_frames / n_positions <= 2.5
        drawn = axis.imshow(image, aspect="equal" if square else "auto", interpolation="nearest", **scale)
        figure.colorbar(drawn, ax=axis, shrink=0.85)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_xlabel("position in the capsule")
        axis.set_ylabel("frame")
        style.whole_numbers(axis.xaxis)
        style.whole_numbers(axis.yaxis)
    title = f"Capsule {capsule} of {n_capsules} over one sequence: diagonal stripes are a roll"
    figure.suptitle(style.wrap(title, figure.get_figwidth()), x=0.01, ha="left", fontsize=11)
    return figure


def interleaved(moving: Tensor) -> Tensor:
    """Order of sequences in which the moving factors take turns, so that the first few show all of them."""
    factors = moving.tolist()
    turns = [factors[:k].count(factor) for k, factor in enumerate(factors)]
    return moving.new_tensor(sorted(range(len(factors)), key=lambda k: (turns[k], factors[k])))


def _series(history: History, key: str) -> Floats:
    """Steps and finite values of one metric: (2, n)."""
    points = [(record.get("step", index), record.get(key)) for index, record in enumerate(history)]
    numbers = np.array(points, dtype=np.float64).reshape(-1, 2)
    return numbers[np.isfinite(numbers).all(axis=1)].T


def _instead(axis: Axes, word: str) -> None:
    """Say why nothing is drawn."""
    axis.text(0.5, 0.5, word, transform=axis.transAxes, ha="center", va="center", color=style.GRAY)


def _leave_out_start(axis: Axes, floor: float | None) -> None:
    """Fit the y axis to what follows the first twentieth of training, if its first steps dwarf all that follows."""
    points = np.concatenate([np.asarray(line.get_xydata(), dtype=np.float64) for line in axis.lines])
    steps, values = points[:, 0], points[:, 1]
    late = values[steps >= steps.min() + 0.05 * (steps.max() - steps.min())]
    low, high = float(late.min()), float(late.max())
    if floor is not None:
        low = min(low, floor)
    if high > low and values.max() - min(values.min(), low) > 2.5 * (high - low):
        margin = 0.06 * (high - low)
        axis.set_ylim(low - margin, high + margin)
        axis.set_xlabel("training step\n(the first ones run off the axis)")
    if floor is not None:
        axis.set_ylim(bottom=low, top=max(axis.get_ylim()[1], floor + 1e-3))


def _squeezers(series: Mapping[str, Floats]) -> tuple[list[str], tuple[float, float]]:
    """Floors that would stretch the axis more than fivefold, lowest first, and the range of all the others."""
    order = sorted(series, key=lambda name: float(np.nanmin(series[name])))
    off: list[str] = []

    def span(names: Sequence[str]) -> tuple[float, float]:
        values = np.concatenate([series[name] for name in names])
        return float(np.nanmin(values)), float(np.nanmax(values))

    # As few as help go, but never the model, and two curves always stay.
    for i in range(1, len(order) - 1):
        if "model" in order[:i]:
            break
        (low, high), (rest_low, rest_high) = span(order[len(off) :]), span(order[i:])
        if high - low > 5.0 * (rest_high - rest_low) > 0.0:
            off = order[:i]
    return off, span(order[len(off) :])


def _label_ends(axis: Axes, series: Mapping[str, Floats], colors: Mapping[str, str], low: float, high: float) -> None:
    """Write every curve's name at its right end, moved apart where two would collide."""
    visible = {name: values for name, values in series.items() if np.nanmax(values) >= low}
    ends = {name: float(values[np.isfinite(values)][-1]) for name, values in visible.items()}
    order = sorted(ends, key=lambda name: ends[name])
    gap = 0.065
    wanted = [min(max((ends[name] - low) / (high - low), 0.0), 1.0) for name in order]
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else place)
    # Pushed beyond the top: push back down from there.
    top = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - gap
    for name, place in zip(order, places, strict=True):
        below, model = ends[name] < low, name == "model"
        # The light colours of the palette are good lines and faint letters.
        color = colors[name] if model else tuple(0.65 * part for part in to_rgb(colors[name]))
        axis.annotate(
            f"{name} ↓" if below else name, (1.0, place), xytext=(6, 0), xycoords="axes fraction",
            textcoords="offset points", va="center", annotation_clip=False, fontsize=10,
            color=color, fontweight="bold" if model else "normal",
        )  # fmt: skip
