"""Figures: what a person looks at to judge a run, as matplotlib figures without any global state.

Every function takes plain arrays (torch tensors or numpy) and returns a :class:`matplotlib.figure.Figure`; nothing
touches pyplot or the backend, so they work in a notebook, in a script and on a machine without a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation.record import ForwardRollRecord
from .mosaics import (
    DPI,
    MAX_COLUMNS,
    WIDTH,
    Array,
    Floats,
    as_array,
    as_frames,
    mosaic,
    pick,
    save,
    seen_and_unseen,
    stack,
    wrap,
)

if TYPE_CHECKING:  # torch takes seconds to import, for which figures of plain numbers do not wait
    from torch import Tensor

__all__ = [
    "capsule_stripes",
    "capsule_traversal",
    "forward_roll_curve",
    "forward_roll_strip",
    "interleaved",
    "reconstructions",
    "save",
    "training_curves",
]

History: TypeAlias = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]

# Okabe & Ito's palette: eight colours that stay apart under every common colour vision deficiency.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
)  # fmt: skip
FLOORS = (VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (2, 2)))
MARKERS = "s^Dv*X"
GRAY = "#555555"


def training_curves(history: History) -> Figure:
    """ELBO, reconstruction and KL over training steps, training and validation, in nats per frame.

    Args:
        history: a list of records, or a dictionary of columns, with the keys ``step`` and any of ``train/elbo``,
            ``train/reconstruction``, ``train/kl``, ``val/elbo``, … (nats per frame). Missing and non-finite entries
            are left out. Where the first steps would squeeze all others, the axis leaves them out and says so.
    """
    panels = (
        ("elbo", "ELBO\n(higher is better)"),
        ("reconstruction", "Reconstruction, E log p(x | t)\n(higher is better)"),
        ("kl", "KL from posterior to prior\n(at 0 the code is empty)"),
    )
    figure = Figure(figsize=(WIDTH, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (key, title) in zip(axes, panels, strict=True):
        curves = {split: _series(history, f"{split}/{key}") for split in ("train", "val")}
        for split, label, color in (("train", "training", SKY), ("val", "validation", VERMILLION)):
            steps, values = curves[split]
            if len(steps) == 0:
                continue
            marked = len(steps) == 1 or (split == "val" and len(steps) <= 60)
            axis.plot(
                steps, values, color=color, label=label, linewidth=1.0 if split == "train" else 1.8,
                marker="o" if marked else None, markersize=3.5, zorder=2 if split == "train" else 3,
            )  # fmt: skip
        _plain(axis)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("training step")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        if not axis.lines:
            axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", va="center", color=GRAY)
            axis.set_xticks([])
            axis.set_yticks([])
            continue
        _leave_out_start(axis, floor=0.0 if key == "kl" else None)
    axes[0].set_ylabel("nats per frame")
    drawn = [axis for axis in axes if axis.lines]
    if drawn:
        drawn[0].legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def reconstructions(x: Array, reconstruction: Array, *, max_sequences: int = 4) -> Figure:
    """For a few sequences, the true frames above the frames decoded from their own posterior.

    Args:
        x: (N, S, channel, height, width) or one sequence without N; pixels in [0, 1]; 1 or 3 channels.
        reconstruction: same shape as ``x``.
        max_sequences: how many of the N sequences to draw.
    """
    return stack(
        {"true": x, "reconstructed": reconstruction}, max_sequences,
        "Reconstructions: each pair of rows should show the same shape in the same pose",
    )  # fmt: skip


def capsule_traversal(x: Array, reconstruction: Array, rolled: Array, *, max_sequences: int = 3) -> Figure:
    """True frames, their reconstruction, and the frames decoded by rolling the first frame's t through the capsules.

    Args:
        x: (N, S, channel, height, width) or one sequence without N; pixels in [0, 1]; 1 or 3 channels.
        reconstruction: same shape as ``x``.
        rolled: same shape as ``x``; frame l is decoded from ``Roll_l(t_0)``, so that it saw frame 0 only.
        max_sequences: how many of the N sequences to draw.
    """
    return stack(
        {"true": x, "reconstructed": reconstruction, "t of frame 0, rolled": rolled}, max_sequences,
        "Capsule traversal: a roll that learned the transformation makes the third row follow the first",
    )  # fmt: skip


def forward_roll_strip(
    x: Array,
    predicted: Array,
    context: int,
    floors: Mapping[str, Array] | None = None,
    *,
    max_sequences: int = 3,
) -> Figure:
    """The seen frames, then the unseen true frames above the frames predicted by rolling t forward.

    Args:
        x: (N, S, channel, height, width) or one sequence without N; pixels in [0, 1]; 1 or 3 channels.
        predicted: (N, S − context, channel, height, width), the prediction of every unseen frame.
        context: number of frames the model has seen, m.
        floors: further predictions to draw below, by name; shapes as ``predicted``.
        max_sequences: how many of the N sequences to draw.

    Raises:
        ValueError: the number of predicted frames is not S − context.
    """
    truth = as_frames(x)
    n_frames = truth.shape[1]
    if not 0 < context < n_frames:
        raise ValueError(f"forward_roll_strip: context={context}; expected 1 to {n_frames - 1} of {n_frames} frames.")
    predictions = {"predicted": as_frames(predicted)}
    predictions.update({name: as_frames(frames) for name, frames in (floors or {}).items()})
    expected = (truth.shape[0], n_frames - context, *truth.shape[2:])
    for name, frames in predictions.items():
        if frames.shape != expected:
            raise ValueError(f"forward_roll_strip: {name} has shape {frames.shape}; expected {expected}.")
    before = pick(context, MAX_COLUMNS // 2)
    after = pick(n_frames - context, MAX_COLUMNS // 2)
    rows: list[list[Floats | None]] = []
    labels: list[str] = []
    breaks: list[int] = []
    for n in range(min(len(truth), max_sequences)):
        breaks.append(len(rows))
        rows.append([truth[n, i] for i in (*before, *(context + after))])
        labels.append("true")
        for name, frames in predictions.items():
            rows.append([None] * len(before) + [frames[n, i] for i in after])
            labels.append(name)
    ticks = [str(i) for i in (*before, *(context + after))]
    figure, axis, edge = mosaic(
        rows, labels, ticks, "Forward roll: below each unseen frame, what the model expected to see",
        row_breaks=breaks[1:], column_break=len(before),
    )  # fmt: skip
    seen_and_unseen(axis, edge)
    return figure


def forward_roll_curve(forward_roll: ForwardRollRecord) -> Figure:
    """Log-likelihood of the unseen frames against the horizon, for the model and every floor.

    Args:
        forward_roll: ``{"context": m, "log_likelihood": {"model": [H numbers], floor: [H numbers], …}}``, in nats per
            unseen frame, higher is better. A floor so low that it would squeeze the others runs off the axis, and the
            figure says so.
    """
    series = {name: _numbers(values) for name, values in forward_roll["log_likelihood"].items()}
    drawn = {name: values for name, values in series.items() if np.isfinite(values).any()}
    figure = Figure(figsize=(WIDTH, 4.2), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    colors: dict[str, str] = {}
    floor = 0
    for name, values in drawn.items():
        horizon = np.arange(1, len(values) + 1)
        if name == "model":
            colors[name] = BLUE
            axis.plot(horizon, values, color=BLUE, linewidth=3.0, marker="o", markersize=6, label=name, zorder=4)
        else:
            colors[name] = FLOORS[floor % len(FLOORS)]
            axis.plot(
                horizon, values, color=colors[name], label=name, linewidth=1.6, zorder=3,
                linestyle=DASHES[floor % len(DASHES)], marker=MARKERS[floor % len(MARKERS)], markersize=4.5,
            )  # fmt: skip
            floor += 1
    context = forward_roll.get("context")
    _plain(axis)
    title = "Forward roll: log-likelihood of frames the model has not seen"
    axis.set_title(title + (f" (context: {context} frames)" if context else ""), loc="left", fontsize=11)
    axis.set_xlabel("horizon: frames after the last one seen")
    axis.set_ylabel("nats per unseen frame (higher is better)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not drawn:
        axis.text(0.5, 0.5, "undefined", transform=axis.transAxes, ha="center", va="center", color=GRAY)
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
        _footnote(figure, "Cut off below, so that the others stay readable: " + "; ".join(cut) + ".")
    return figure


def capsule_stripes(t: Array, v: Array | None = None, capsule: int | None = None) -> Figure:
    """T and its energy V of one capsule over one sequence: a capsule that rolls shows diagonal stripes.

    Args:
        t: (S, C, D), the topographic variables of one sequence.
        v: (S, C, D), their local energies; None (a plain VAE has none) draws T alone.
        capsule: which capsule; None takes the one whose t varies most over the frames.
    """
    values = {"T": as_array(t)} | ({} if v is None else {"V = W U², the local energy": as_array(v)})
    for name, value in values.items():
        if value.ndim != 3 or value.shape != values["T"].shape:
            raise ValueError(f"capsule_stripes: {name} has shape {value.shape}; expected (frame, capsule, position).")
    n_frames, n_capsules, n_positions = values["T"].shape
    if capsule is None:
        capsule = int(values["T"].var(axis=0).mean(axis=-1).argmax())
    figure = Figure(figsize=(WIDTH if len(values) == 2 else WIDTH / 2, 4.4), dpi=DPI, layout="constrained")
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
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    title = f"Capsule {capsule} of {n_capsules} over one sequence: diagonal stripes are a roll"
    figure.suptitle(wrap(title, figure.get_figwidth()), x=0.01, ha="left", fontsize=11)
    return figure


# ---- arrays


def interleaved(moving: Tensor) -> Tensor:
    """Order of sequences in which the moving factors take turns, so that the first few show all of them."""
    factors = moving.tolist()
    turns = [factors[:k].count(factor) for k, factor in enumerate(factors)]
    return moving.new_tensor(sorted(range(len(factors)), key=lambda k: (turns[k], factors[k])))


def _number(value: Any) -> float:
    # Logged tables have empty strings where a row has no value.
    return float("nan") if value is None or value == "" else float(value)


def _numbers(values: Sequence[Any] | None) -> Floats:
    return np.array([_number(value) for value in values or ()], dtype=np.float64)


def _series(history: History, key: str) -> tuple[Floats, Floats]:
    """Steps and finite values of one metric."""
    if isinstance(history, Mapping):
        values = _numbers(history.get(key))
        steps = _numbers(history["step"]) if "step" in history else np.arange(len(values), dtype=np.float64)
    else:
        values = _numbers([record.get(key) for record in history])
        steps = _numbers([record.get("step", index) for index, record in enumerate(history)])
    steps = steps[: len(values)]
    kept = np.isfinite(values) & np.isfinite(steps)
    return steps[kept], values[kept]


# ---- axes


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)


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
        axis.annotate(
            f"{name} ↓" if below else name, (1.0, place), xytext=(6, 0), xycoords="axes fraction",
            textcoords="offset points", va="center", annotation_clip=False, fontsize=10,
            color=colors[name] if model else _darker(colors[name]), fontweight="bold" if model else "normal",
        )  # fmt: skip


def _darker(color: str) -> tuple[float, ...]:
    # The light colours of the palette are good lines and faint letters.
    return tuple(0.65 * part for part in to_rgb(color))


def _footnote(figure: Figure, text: str) -> None:
    figure.supxlabel(wrap(text, figure.get_figwidth(), 9), x=0.01, ha="left", fontsize=9, color=GRAY)
