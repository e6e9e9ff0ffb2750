"""Curves over seeds: a record's learning curves against the wall clock, and its forecasts against the horizon."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..reports.style import COLORS, DASHES, GRAY, MARKERS, canvas, gridded, whole_numbers
from .records import Record, curve

__all__ = ["forecast_curves", "recipe_curves"]

Floats = NDArray[np.float64]
DPI = 100
COMMON_FLOORS = ("repeat last frame", "mean frame")  # those that no model has a part in


def recipe_curves(record: Record) -> Figure:
    """Test IWAE and forward_roll against wall-clock minutes of training: one colour per recipe.

    The thick line is the mean over seeds, the band reaches from the lowest seed to the highest, over the time that all
    seeds have; thin lines are the seeds. The dashed line is the best floor of forward_roll.

    Args:
        record: of kind ``recipe``, see :mod:`.records`.
    """
    figure = canvas(4.3, dpi=DPI)
    axes = figure.subplots(1, 2)
    panels = (
        ("iwae", "Test IWAE", "nats per frame (higher is better)"),
        ("forward_roll", "forward_roll: frames not seen", "nats per unseen frame (higher is better)"),
    )
    for axis, (key, title, unit) in zip(axes, panels, strict=True):
        for row, color in zip(record["rows"], cycle(COLORS), strict=False):
            curves = [np.array(curve(run, key)).reshape(-1, 2).T for run in row["runs"]]
            _spread(axis, curves, color, row.get("label", row["name"]))
        gridded(axis, title)
        axis.set_ylabel(unit)
        axis.set_xlabel("wall-clock minutes of training")
    floors = [n for row in record["rows"] for run in row["runs"] for _, n in curve(run, "forward_roll_floor")]
    if floors:
        axes[1].axhline(max(floors), color=GRAY, linestyle="--", linewidth=1.2, label="best floor")
    for axis in axes:
        _leave_out_start(axis)
    lines, labels = axes[1].get_legend_handles_labels()
    figure.legend(
        lines, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=min(3, max(1, len(labels)))
    )
    return figure


def forecast_curves(record: Record) -> Figure | None:
    """Log-likelihood of unseen frames against the horizon, mean over seeds, one curve per row; None if none has any.

    Args:
        record: of kind ``reproduction``, see :mod:`.records`.
    """
    series: dict[str, Floats] = {}
    floors: dict[str, list[list[float | None]]] = {name: [] for name in COMMON_FLOORS}
    for row in record["rows"]:
        scores = [(run.get("forward_roll") or {}).get("log_likelihood") or {} for run in row["runs"]]
        own = [score["model"] for score in scores if score.get("model") and None not in score["model"]]
        if not own:
            continue
        series[row["name"]] = np.mean(np.array(own, dtype=np.float64), axis=0)
        for name, levels in floors.items():
            levels += [score[name] for score in scores if score.get(name) and None not in score[name]]
    if not series:
        return None
    if len({len(values) for values in series.values()}) > 1:  # rows on different data, which have no floors in common
        floors = {}
    figure = canvas(4.2, dpi=DPI)
    axis = figure.subplots()
    for n, (name, values) in enumerate(series.items()):
        axis.plot(
            np.arange(1, len(values) + 1), values, label=name, color=COLORS[n % len(COLORS)], linewidth=1.8,
            marker=MARKERS[n % len(MARKERS)], markersize=4.5, zorder=3,
        )  # fmt: skip
    shown, ground = list(series.values()), float("inf")
    for n, (name, levels) in enumerate(floors.items()):
        if levels:
            values = np.mean(np.array(levels, dtype=np.float64), axis=0)
            axis.plot(np.arange(1, len(values) + 1), values, label=name, color=GRAY, linewidth=1.4, linestyle=DASHES[n])
            shown.append(values)
            ground = min(ground, float(values.min()))
    # A model that forecasts far below the others and every floor would squeeze them.
    best = max(float(values.min()) for values in shown)
    top = max(float(values.max()) for values in shown)
    low = max(min(float(values.min()) for values in shown), min(ground, best - 6 * max(top - best, 1.0)))
    margin = 0.06 * (top - low) or 1.0
    axis.set_ylim(low - margin, top + margin)
    gridded(axis, "Forward roll: log-likelihood of frames not seen, mean over seeds")
    axis.set_ylabel("nats per unseen frame")
    below = [name for name, values in series.items() if float(values.max()) < low]
    axis.set_xlabel(
        "horizon: frames after the last one seen" + (f"\n(below the axis: {'; '.join(below)})" if below else "")
    )
    whole_numbers(axis.xaxis)
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _spread(axis: Axes, curves: Sequence[Floats], color: str, label: str) -> None:
    """Draw curves, (seconds, values) each."""
    series = [(seconds / 60, values) for seconds, values in curves if len(seconds)]
    if not series:
        return
    for minutes, values in series:
        axis.plot(minutes, values, color=color, linewidth=0.7, alpha=0.5, zorder=2)
    start, end = max(minutes[0] for minutes, _ in series), min(minutes[-1] for minutes, _ in series)
    grid = np.unique(np.concatenate([minutes for minutes, _ in series]))
    grid = grid[(grid >= start) & (grid <= end)]
    if not len(grid):
        return
    stacked = np.stack([np.interp(grid, minutes, values) for minutes, values in series])
    count = f" ({len(series)} seed{'s' if len(series) > 1 else ''})"
    marker = "o" if len(grid) == 1 else None
    axis.plot(grid, stacked.mean(0), color=color, linewidth=2.2, label=label + count, zorder=4, marker=marker)
    axis.fill_between(grid, stacked.min(0), stacked.max(0), color=color, alpha=0.18, linewidth=0, zorder=1)


def _leave_out_start(axis: Axes) -> None:
    """Where the first twentieth of the time dwarfs all that follows, fit the axis to what follows, and say so."""
    points = [np.asarray(line.get_xydata(), dtype=np.float64) for line in axis.lines if line.get_linestyle() != "--"]
    if not points:
        return
    everything = np.concatenate(points)
    late = everything[everything[:, 0] >= 0.05 * everything[:, 0].max()][:, 1]
    others = [float(y) for line in axis.lines if line.get_linestyle() == "--" for y in np.asarray(line.get_ydata())]
    low, high = min([float(late.min()), *others]), max([float(late.max()), *others])
    if float(everything[:, 1].min()) < low - 1.5 * (high - low):
        margin = 0.06 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)
        axis.set_xlabel(f"{axis.get_xlabel()}\n(the first ones run off the axis)")
