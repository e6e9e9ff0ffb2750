"""Figures of a posterior: what its draws say, how far they can be trusted, and what data follow from them.

The figures are matplotlib figures without global state, as in :mod:`.figures`, the same under every version of ArviZ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyro_tvae import TVAE
from pyro_tvae.inference import PredictiveCheck, predictive_check
from pyro_tvae.inference.arviz_adapter import ArvizData
from pyro_tvae.inference.pareto import RELIABLE_PARETO_K
from pyro_tvae.inference.predictive_checks import STATISTICS

from .calibration_page import rank_histograms
from .figures import interleaved
from .mosaics import MAX_COLUMNS, as_frames, mosaic, pick
from .style import BLUE, COLORS, GRAY, VERMILLION, canvas, gridded, whole_numbers

if TYPE_CHECKING:
    from xarray import DataArray

__all__ = [
    "check_of",
    "energies",
    "energy_plot",
    "expected_frames",
    "figures_of",
    "forest",
    "integral_transforms",
    "likelihoods",
    "mean_and_spread",
    "method_of",
    "names_of",
    "pareto_k_plot",
    "scores_plot",
    "shortest_interval",
    "traces",
    "traversal",
]


def method_of(data: ArvizData) -> str:
    """How the draws were made: ``"guide"``, ``"importance"`` or ``"nuts"``."""
    return str(data["sequence_stats"].attrs.get("method", "guide"))


def names_of(data: ArvizData) -> list[str]:
    """A name for every sequence: its item, and what says how far its draws can be trusted."""
    stats = data["sequence_stats"]
    items = [str(value) for value in stats["sequence"].values]
    if method_of(data) != "nuts":
        names = [f"{item}: k {k:.2g}" for item, k in zip(items, stats["pareto_k"].values, strict=True)]
    else:
        names = [f"{item}: R-hat {rhat:.2f}" for item, rhat in zip(items, stats["rhat"].values, strict=True)]
    if method_of(data) == "importance":
        names = [f"{name}, {n} distinct" for name, n in zip(names, stats["distinct_draws"].values, strict=True)]
    return names


def _shown_sequences(data: ArvizData, most: int) -> list[int]:
    """The first sequences, those in which different factors move before others."""
    n = data["observed_data"].sizes["sequence"]
    if "moving" not in data["observed_data"].coords:
        return [*range(min(n, most))]
    moving = data["observed_data"]["moving"].values
    factors = {name: i for i, name in enumerate(dict.fromkeys(moving.tolist()))}
    return interleaved(torch.tensor([factors[name] for name in moving.tolist()]))[:most].tolist()


def _codes(data: ArvizData, sequences: Sequence[int], most: int = 100) -> Tensor | None:
    """t of at most so many draws, spread over all of them: (draw, sequence, S, C, D); None where it was left out."""
    if "posterior" not in data or "t" not in data["posterior"]:
        return None
    t = data["posterior"]["t"].isel(sequence=list(sequences)).values
    t = t.reshape(-1, *t.shape[2:])
    return torch.from_numpy(np.ascontiguousarray(t[pick(len(t), most)]))


@torch.no_grad()
def mean_and_spread(model: TVAE, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over draws of E[x | t], and its standard deviation: t (draw, …, C, D) -> frames (…, channel, height, width).

    One draw at a time, so that memory does not grow with their number.
    """
    total = square = torch.zeros(())
    for part in t:
        frames = model.decode(part.to(model.like)).mean.double().cpu()
        total, square = total + frames, square + frames.square()
    mean = total / len(t)
    return mean, (square / len(t) - mean.square()).clamp(min=0).sqrt()


def expected_frames(data: ArvizData, model: TVAE, most: int = 3) -> Figure | None:
    """Observed frames, the posterior mean of E[x | t], and its standard deviation over draws."""
    sequences = _shown_sequences(data, most)
    t = _codes(data, sequences)
    return (
        None
        if t is None
        else _strips(data, sequences, *mean_and_spread(model, t), "mean", "What the draws say of each frame")
    )


def traversal(data: ArvizData, model: TVAE, most: int = 2) -> Figure | None:
    """Frame 0 of every draw, its capsules rolled one position a frame and decoded: mean and standard deviation."""
    sequences = _shown_sequences(data, most)
    t = _codes(data, sequences)
    if t is None:
        return None
    shifts = torch.arange(model.n_frames).reshape(1, -1, 1)
    rolled = torch.stack([model.rolled(one[:, 0].unsqueeze(1), shifts) for one in t])
    return _strips(
        data, sequences, *mean_and_spread(model, rolled), "rolled", "Frame 0, its capsules rolled and decoded"
    )


def _strips(data: ArvizData, sequences: list[int], mean: Tensor, spread: Tensor, word: str, title: str) -> Figure:
    """Rows of frames: what was observed, a mean, and twice its standard deviation, black where all draws agree.

    What was not measured is gray.
    """
    x, names = np.nan_to_num(data["observed_data"]["x"].values, nan=0.5), names_of(data)
    columns = pick(x.shape[1], MAX_COLUMNS)
    rows, labels = [], []
    for i, sequence in enumerate(sequences):
        for label, frames in ((names[sequence], x[sequence]), (word, mean[i]), ("2 s.d.", 2 * spread[i])):
            values = as_frames(frames)[0]
            rows.append([values[k] for k in columns])
            labels.append(label)
    return mosaic(rows, labels, columns, title, row_breaks=[3 * k for k in range(1, len(sequences))])


def check_of(data: ArvizData, model: TVAE) -> PredictiveCheck | None:
    """Frames against replicates given the last draw of every sequence; None where there are no frames or codes."""
    t = _codes(data, range(data["observed_data"].sizes["sequence"]), most=1 << 30) if "observed_data" in data else None
    if t is None:
        return None
    return predictive_check(
        model, t[-1].to(model.like), torch.from_numpy(data["observed_data"]["x"].values).to(model.like)
    )


def scores_plot(check: PredictiveCheck, names: Sequence[str]) -> Figure:
    """z-scores of the statistics of every frame, sequence by sequence."""
    figure = canvas(1.0 + 1.5 * len(check.scores))
    axes = np.atleast_1d(figure.subplots(len(check.scores), 1, sharex=True))
    for axis, (name, scores) in zip(axes, check.scores.items(), strict=True):
        values = scores.numpy().clip(-1e4, 1e4)
        n, s = values.shape
        highest = np.nan_to_num(abs(values)).max()
        place = np.arange(n)[:, None] + 0.8 * (np.arange(s) / max(s - 1, 1) - 0.5)
        outside, count = check.outside(name)
        axis.axhspan(-1.96, 1.96, color="#e4e4e4", zorder=-10)
        beyond = abs(values) > 1.96
        axis.plot(place[~beyond], values[~beyond], ".", color=BLUE, markersize=4)
        axis.plot(place[beyond], values[beyond], "X", color=VERMILLION, markersize=4)
        if highest > 6:
            axis.set_yscale("symlog", linthresh=2.0)
            axis.set_yticks([tick for tick in (-1e3, -100, -10, -2, 0, 2, 10, 100, 1e3) if abs(tick) <= highest])
            axis.yaxis.set_major_formatter("{x:g}")
        else:
            axis.set_ylim(-max(3.2, highest * 1.1), max(3.2, highest * 1.1))
        gridded(
            axis, f"{STATISTICS[name]}: {outside} of {count} outside the central 95 % ({0.05 * count:.0f} expected)", 10
        )
        axis.set_ylabel("z", fontsize=9)
    axes[-1].set_xticks(range(len(names)), names, fontsize=8, rotation=0 if len(names) <= 4 else 20)
    axes[-1].set_xlabel("sequence; its frames side by side", fontsize=9)
    return figure


def integral_transforms(check: PredictiveCheck, bins: int = 10) -> Figure:
    """Histograms of the observed statistics' ranks among replicates: probability integral transforms."""
    figure = rank_histograms(check.ranks, bins)
    for axis in figure.axes:
        axis.set_xlabel("replicates below", fontsize=9)
        axis.set_title(SHORT.get(axis.get_title(loc="left"), axis.get_title(loc="left")), loc="left", fontsize=10)
    figure.axes[0].set_ylabel("share of frames", fontsize=9)
    return figure


SHORT = {
    "ink": "mean pixel",
    "centroid_x": "center, across",
    "centroid_y": "center, down",
    "change": "change",
    "log p(x | t)": "log p(frame | t)",
}


def forest(values: DataArray, title: str, label: str, band: tuple[float, float] | None = None) -> Figure:
    """Medians, quartiles and 94 % intervals of one variable, a line for each value of its last dimension.

    Args:
        values: (chain, draw, K), with names.
        title: of the figure.
        label: of the axis.
        band: an interval to draw behind them in grey, such as the prior's.
    """
    dimension = values.dims[-1]
    names = [str(name) for name in values[dimension].values]
    draws = np.sort(values.values.reshape(-1, len(names)).astype(np.float64), axis=0)
    low, high = shortest_interval(draws, 0.94)
    first, middle, third = np.quantile(draws, [0.25, 0.5, 0.75], axis=0)
    figure = canvas(1.2 + 0.22 * len(names))
    axis = figure.add_subplot()
    if band is not None:
        axis.axvspan(*band, color="#e4e4e4", zorder=-10)
    place = np.arange(len(names))
    axis.hlines(place, low, high, color=BLUE, linewidth=1.2)
    axis.hlines(place, first, third, color=BLUE, linewidth=3.0)
    axis.plot(middle, place, "o", color=BLUE, markerfacecolor="white", markersize=4)
    axis.set_yticks(place, names, fontsize=9)
    axis.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    _words(axis, title, label, str(dimension))
    return figure


def shortest_interval(draws: NDArray[np.float64], share: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the shortest interval that holds a share of each column's draws, sorted: (n, K) -> (K,), (K,)."""
    n = len(draws)
    reach = min(n - 1, int(np.floor(share * n)))
    start = np.argmin(draws[reach:] - draws[: n - reach], axis=0)
    column = np.arange(draws.shape[1])
    return draws[start, column], draws[start + reach, column]


def energies(data: ArvizData) -> Figure | None:
    """One sequence's energies in the capsule where they differ most, over orbits or over the positions of a frame.

    Without a topography there are none; z takes their place.
    """
    if "posterior" not in data or "prior" not in data:
        return None
    posterior, prior = data["posterior"], data["prior"]
    name = next((site for site in ("e", "v", "z") if site in posterior and site in prior), None)
    if name is None:
        return None
    fixed = {"sequence": 0, "frame": 0} if "frame" in posterior[name].dims else {"sequence": 0}
    values, before = (np.log(group[name]) if name != "z" else group[name] for group in (posterior, prior))
    values, before = values.isel(fixed), before.isel(fixed, missing_dims="ignore")
    capsule = int(np.argmax(values.mean(["chain", "draw"]).var(values.dims[-1]).values))
    low, high = np.quantile(before.isel(capsule=capsule).values, [0.03, 0.97])
    where = ", frame 0" if "frame" in fixed else ""
    label = {"e": "log e", "v": "log v, v = W u²", "z": "z"}[name]
    return forest(
        values.isel(capsule=capsule),
        f"Capsule {capsule} of sequence {names_of(data)[0]}{where}: {label.partition(',')[0]} (grey: prior)",
        label,
        (float(low), float(high)),
    )


def likelihoods(data: ArvizData) -> Figure | None:
    """log p(x | t) of every sequence over the draws."""
    if "log_likelihood" not in data:
        return None
    values = data["log_likelihood"]["x"].assign_coords(sequence=names_of(data))
    title = "Log-likelihood of each sequence given its latents"
    return forest(values, title, "log p(x | t), nats per sequence (higher is better)")


def pareto_k_plot(k: ArrayLike, names: Sequence[str] | None = None) -> Figure | None:
    """Pareto k of each sequence's importance weights (N,) against the limit of what is reliable; None without a k."""
    values = np.asarray(k, dtype=np.float64)
    if not np.isfinite(values).any():
        return None
    figure = canvas(3.0)
    axis = figure.add_subplot()
    good, infinite = values <= RELIABLE_PARETO_K, np.isposinf(values)
    top = max(1.0, float(values[np.isfinite(values)].max()))
    shown = np.where(infinite, 1.3 * top, values)
    place = np.arange(len(values))
    axis.axhline(RELIABLE_PARETO_K, color=GRAY, linestyle="--", linewidth=1.0)
    if good.any():
        axis.plot(place[good], shown[good], "o", color=BLUE, label=f"{good.sum()} usable (k ≤ {RELIABLE_PARETO_K})")
    if not good.all():
        axis.plot(place[~good], shown[~good], "X", color=VERMILLION, label=f"{(~good).sum()} not usable")
    for i in np.flatnonzero(infinite):
        axis.annotate("∞", (i, shown[i]), textcoords="offset points", xytext=(6, -4))
    if top > 20:
        axis.set_yscale("symlog", linthresh=1.0)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlim(-0.6, len(values) - 0.4)
    _words(axis, "Pareto k of the importance weights", "sequence", "k (lower is better)")
    if names is not None and len(names) <= 12:
        axis.set_xticks(place, names, fontsize=8, rotation=0 if len(names) <= 4 else 20)
    else:
        whole_numbers(axis.xaxis)
    axis.legend(frameon=False, fontsize=9)
    return figure


def traces(data: ArvizData) -> Figure | None:
    """Chains of NUTS as they ran, and how often each holds the low and the high ranks of all: alike if they mixed."""
    if method_of(data) != "nuts":
        return None
    series: dict[str, NDArray[np.float64]] = {}
    if "lp" in data["sample_stats"]:
        series["log p(x, latents)"] = data["sample_stats"]["lp"].values
    if "log_likelihood" in data:
        worst = int(np.nan_to_num(data["sequence_stats"]["rhat"].values, nan=np.inf).argmax())
        name = names_of(data)[worst]
        series[f"log p(x | t) of sequence {name}"] = data["log_likelihood"]["x"].isel(sequence=worst).values
    if not series:
        return None
    figure = canvas(0.4 + 2.1 * len(series))
    axes = figure.subplots(len(series), 2, squeeze=False, width_ratios=(3, 2))
    for (trace, ranks), (name, values) in zip(axes, series.items(), strict=True):
        chains, n = values.shape
        order = values.ravel().argsort().argsort().reshape(values.shape)
        bins = max(2, min(20, n // 5))
        for chain in range(chains):
            color = COLORS[chain % len(COLORS)]
            trace.plot(values[chain], color=color, linewidth=0.8, alpha=0.8)
            counts, edges = np.histogram(order[chain], bins=bins, range=(0, values.size))
            ranks.stairs(counts, edges, color=color, label=f"chain {chain}")
        ranks.axhline(n / bins, color=GRAY, linestyle="--", linewidth=0.8)
        ranks.set_ylim(bottom=0)
        gridded(trace, name, 10)
        gridded(ranks, "ranks of each chain", 10)
        trace.set_ylabel("nats", fontsize=9)
    axes[-1][0].set_xlabel("draw", fontsize=9)
    axes[-1][1].set_xlabel("rank among all draws", fontsize=9)
    if len(values) > 1:
        axes[0][1].legend(frameon=False, fontsize=8)
    return figure


def energy_plot(data: ArvizData) -> Figure | None:
    """Energies of the draws and how far one draw moves them: the latter must be as wide (`Betancourt 2016
    <https://arxiv.org/abs/1604.00695>`__), as the fraction of missing information says.
    """
    if method_of(data) != "nuts" or "energy" not in data["sample_stats"]:
        return None
    energy = data["sample_stats"]["energy"].values
    if energy.shape[1] < 4:
        return None
    moves = np.diff(energy, axis=1)
    figure = canvas(2.8)
    axis = figure.add_subplot()
    centered = energy - energy.mean(1, keepdims=True)
    edges = np.histogram_bin_edges(np.concatenate([centered.ravel(), moves.ravel()]), bins=30)
    for values, color, label in (
        (centered, BLUE, "energy of a draw, less its mean"),
        (moves, VERMILLION, "change to the next"),
    ):
        axis.hist(
            values.ravel(), bins=edges.tolist(), density=True, histtype="step", color=color, linewidth=1.4, label=label
        )
    bfmi = np.square(moves).mean(1) / energy.var(1)
    axis.set_yticks([])
    axis.legend(frameon=False, fontsize=9)
    _words(
        axis,
        f"Energy of NUTS: E-BFMI {', '.join(f'{value:.2f}' for value in bfmi)} by chain (above 0.3 is good)",
        "nats",
    )
    return figure


def _words(axis: Axes, title: str, across: str, up: str = "") -> None:
    """Title and labels of axes without a frame."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(across, fontsize=9)
    axis.set_ylabel(up, fontsize=9)


def figures_of(data: ArvizData, model: TVAE) -> dict[str, Figure]:
    """The page's figures by name, those left out that have nothing to show."""
    check = check_of(data, model)
    stats = data["sequence_stats"]
    made = {
        "expected_frames": expected_frames(data, model) if "observed_data" in data else None,
        "scores": scores_plot(check, names_of(data)) if check is not None else None,
        "pit": integral_transforms(check) if check is not None else None,
        "traversal": traversal(data, model) if "observed_data" in data else None,
        "energies": energies(data),
        "pareto_k": pareto_k_plot(stats["pareto_k"].values, names_of(data)) if "pareto_k" in stats else None,
        "traces": traces(data),
        "energy": energy_plot(data),
        "likelihoods": likelihoods(data),
    }
    return {name: figure for name, figure in made.items() if figure is not None}
