"""The figures of the paper, each drawn from one run: unseen frames forecast, capsule traversals, a map of units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

import pyro_tvae

from ..datasets.splits import given_by
from ..evaluation.measures import flat
from ..reports.mosaics import MAX_COLUMNS, Floats, as_array, as_frames, mosaic, pick, stack
from ..reports.style import WIDTH, canvas, save, wrap
from ..reports.tables import format_number
from ..runs.names import SELECTIVITY
from ..runs.run import Run, Trained
from .cells import added, judged
from .unit_map import UnitMap, map_units

__all__ = ["DRAWINGS", "Drawing", "draw_map", "draw_run"]

Drawing = Callable[[Trained, Mapping[str, float], str], Figure]

SHARPNESS = 112  # pixels of a frame on the canvas, so that the cells of a capsule beside it stay even
N_SEQUENCES = 3


def draw_run(drawing: str, run: Run, title: str, paths: Iterable[Path]) -> None:
    """Draw a run, the same figure into all files.

    Args:
        drawing: one of :data:`DRAWINGS`.
        run: trained and evaluated.
        title: of the figure; what the run explains is added.
        paths: of the files, whose suffixes choose their formats.
    """
    record = judged(run)
    explained = flat(record["measures"]["trained"]).get("explained")
    title = f"{title} (explained: {format_number(explained)}{', collapsed' if record.get('collapsed') else ''})"
    numbers = {name: value for name, value in added(run, SELECTIVITY).items() if value is not None}
    figure = DRAWINGS[drawing](run.load(), numbers, title)
    for path in paths:
        save(figure, path)


@torch.inference_mode()
def _forecast(run: Trained, numbers: Mapping[str, float], title: str) -> Figure:
    """Fig. 1: encode the first frames, roll t of the last of them, decode; beside the true continuation."""
    batch = next(run.data.batches("test", run.device, batch_size=2))
    x, covariates = batch["x"], given_by(batch, run.model, run.guide)["covariates"]
    n_frames = x.shape[1]
    context = run.config.evaluation.context or n_frames // 2
    observed = torch.arange(n_frames, device=run.device) < context
    # Zeros in place of the unseen frames: nothing of them can reach the guide.
    context_alone = x * observed.reshape(-1, 1, 1, 1)
    t = pyro_tvae.encode(run.model, run.guide, context_alone, observed=observed, covariates=covariates)
    ahead = torch.arange(1, n_frames - context + 1, device=run.device)
    t = torch.cat([t[:, :context], run.model.rolled(t[:, context - 1 : context], ahead.unsqueeze(-1))], dim=1)
    truth, decoded = as_frames(x), as_frames(run.model.decode(t).mean)
    first, then = pick(context, MAX_COLUMNS // 2), context + pick(n_frames - context, MAX_COLUMNS // 2)
    shown = [*first, *then]
    rows: list[list[Floats | None]] = []
    for n in range(len(x)):
        capsules = _colored(as_array(t[n] / t[n].abs().mean((-2, -1), keepdim=True)))
        rows += [[_enlarged(source[n, i]) for i in shown] for source in (truth, decoded)]
        rows.append([_enlarged(capsules[i]) for i in shown])
    figure = mosaic(
        rows, ["true", "decoded", "capsules, t"] * len(x), shown, title,
        row_breaks=[3 * n for n in range(1, len(x))], column_break=len(first),
    )  # fmt: skip
    figure.axes[0].set_xlabel(
        "frame; to the right, t of the last seen frame, every capsule (a row) rolled on by one position per frame",
        fontsize=9,
    )
    return figure


@torch.inference_mode()
def _traversals(run: Trained, numbers: Mapping[str, float], title: str) -> Figure:
    """Figs. 4, 6, 22 and 23: for what moves, a true sequence, its reconstruction, and the rolled t of frame 0."""
    batch = next(run.data.batches("test", run.device))
    names = run.data.datasets["test"].moving
    # One sequence of every factor that moves alone, or the first few where there is one motion only.
    each = 1 if len(names) > 1 else N_SEQUENCES
    chosen = [int(n) for k in range(len(names)) for n in (batch["moving"] == k).nonzero()[:each]]
    shown = {name: value[chosen] for name, value in batch.items()}
    x, given = shown["x"], given_by(shown, run.model, run.guide)
    parts = {
        "true": x,
        "reconstructed": pyro_tvae.reconstruct(run.model, run.guide, x, **given),
        "frame 0, rolled": pyro_tvae.traverse(run.model, run.guide, x, **given),
    }
    return stack(parts, title, len(x), [names[int(batch["moving"][n])] for n in chosen])


DRAWINGS: dict[str, Drawing] = {
    "forecast": _forecast,
    "traversals": _traversals,
    "map": lambda run, numbers, title: draw_map(map_units(run.model, run.guide, run.data), numbers, title),
}


def draw_map(units: UnitMap, numbers: Mapping[str, float], title: str) -> Figure:
    """Fig. 3: the strongest image of every unit of a map, the class it prefers, and its slant and stroke width.

    Args:
        units: what :func:`.map_units` returns.
        numbers: what :func:`.organization` returns; panels say what it holds.
        title: of the figure.
    """
    figure = canvas(9.2)
    figure.suptitle(wrap(title, WIDTH), x=0.01, ha="left", fontsize=11)
    images, classes, slant, width = figure.subplots(2, 2).flat
    _show(images, _sheet(units.strongest), "The image that activates each unit most", cmap="gray", vmin=0, vmax=1)
    n_classes = len(units.selectivity)
    colors = ListedColormap(colormaps["tab10" if n_classes <= 10 else "tab20"].colors[:n_classes])  # type: ignore[attr-defined]
    selective = int((units.preferred >= 0).sum())
    drawn = _show(
        classes,
        np.ma.masked_less(units.preferred.numpy(), 0),
        f"Class of each of the {selective} units with d′ ≥ 0.85\n{_test(numbers, 'selectivity', ' of d′')}",
        cmap=colors,
        norm=BoundaryNorm(np.arange(n_classes + 1) - 0.5, n_classes),
    )
    figure.colorbar(drawn, ax=classes, ticks=range(n_classes), shrink=0.8, label="class")
    for axis, value, name, what, color in (
        (slant, units.slant, "slant", "Preferred slant (right of upright is positive)", "RdBu_r"),
        (width, units.stroke_width, "stroke_width", "Preferred stroke width (pixels)", "viridis"),
    ):
        bound = float(value.abs().max())
        limits = {"vmin": -bound, "vmax": bound} if name == "slant" else {}
        drawn = _show(axis, value.numpy(), f"{what}\n{_test(numbers, name)}", cmap=color, **limits)
        figure.colorbar(drawn, ax=axis, shrink=0.8)
    return figure


def _test(numbers: Mapping[str, float], name: str, of: str = "") -> str:
    if name not in numbers:
        return ""
    p, least = numbers[f"{name}_p"], 0.001
    chance = f"p < {least}" if p < least else f"p = {p:.3f}"
    untrained = numbers.get(f"{name}_untrained")
    control = "" if untrained is None else f"; untrained {untrained:.2f}"
    return f"neighbour correlation{of} {numbers[name]:.2f}, {chance}{control}"


def _show(axis: Axes, image: Any, title: str, **options: Any) -> Any:
    drawn = axis.imshow(image, interpolation="nearest", **options)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    return drawn


def _sheet(images: Tensor) -> Floats:
    """(rows, columns, channel, height, width) to one grey or coloured sheet."""
    sheet = as_array(images).clip(0, 1).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(sheet.shape[0] * sheet.shape[1], sheet.shape[2] * sheet.shape[3], sheet.shape[4])
    return sheet[..., 0] if sheet.shape[-1] == 1 else sheet


def _colored(t: Floats) -> Floats:
    """Capsules (S, C, D) of a sequence as S pictures (3, C, D), on one scale of colours."""
    low, high = np.quantile(t, (0.02, 0.98))
    scaled = (t - low) / max(high - low, 1e-12)
    return np.asarray(colormaps["viridis"](scaled.clip(0, 1)))[..., :3].transpose(0, 3, 1, 2)


def _enlarged(frame: Floats) -> Floats:
    """A picture (channel, height, width) in colour, on a square of many pixels, by the nearest of its own."""
    frame = frame.repeat(3, axis=0) if len(frame) == 1 else frame
    rows, columns = (np.arange(SHARPNESS) * length // SHARPNESS for length in frame.shape[1:])
    return frame[:, rows[:, None], columns]
