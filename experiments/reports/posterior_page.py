"""The page of a posterior: plots that judge its draws, and one sentence on how far these can be trusted.

The figures are matplotlib figures without global state, as in :mod:`.figures`, the same under every version of ArviZ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from pyro_tvae import TVAE
from pyro_tvae.inference.arviz_adapter import ArvizData
from pyro_tvae.inference.pareto import RELIABLE_PARETO_K

from ..runs.files import write_text
from .mosaics import pick
from .pages import Caption, render, shown
from .style import BLUE, GRAY, VERMILLION, canvas, whole_numbers

if TYPE_CHECKING:
    from xarray import DataArray

__all__ = ["POSTERIOR", "energies", "forest", "intensity_check", "likelihoods", "pareto_k_plot", "write_page"]

POSTERIOR = "posterior.nc"


def intensity_check(data: ArvizData) -> Figure:
    """Posterior-predictive check: densities of the mean pixel of a frame, predicted and observed."""
    pixels = ["channel", "height", "width"]
    predicted = data["posterior_predictive"]["x"].mean(pixels).values.astype(np.float64)
    predicted = predicted.reshape(predicted.shape[0] * predicted.shape[1], -1)
    chosen = predicted[pick(len(predicted), 50)]
    observed = data["observed_data"]["x"].mean(pixels).values.astype(np.float64).ravel()
    figure = canvas(3.6)
    axis = figure.add_subplot()
    for i, values in enumerate(chosen):
        label = f"predicted, {len(chosen)} draws" if i == 0 else None
        axis.plot(*density(values), color=BLUE, alpha=0.25, linewidth=0.8, label=label)
    axis.plot(*density(predicted.ravel()), color=VERMILLION, linestyle="--", linewidth=1.5, label="all draws together")
    axis.plot(*density(observed), color="black", linewidth=1.5, label="observed")
    axis.set_ylim(bottom=0)
    axis.set_yticks([])
    axis.spines.left.set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    _words(axis, "Mean pixel of a frame, predicted and observed", "mean pixel of a frame")
    return figure


def density(values: NDArray[np.float64], points: int = 200) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kernel estimate of a density: places and heights, from M values.

    Gaussian kernels of ``0.9 min(s, IQR / 1.34) M^(-1/5)`` (Silverman, "Density estimation for statistics and data
    analysis", 1986, eq. 3.31); values that are all equal get one narrow bump. Many values are first counted in narrow
    bins, so that memory does not grow with them.
    """
    low, high = np.quantile(values, [0.25, 0.75])
    spread = min(s for s in (values.std(), (high - low) / 1.34, np.inf) if s > 0)
    floor = 1e-3 * max(1e-6, float(np.ptp(values)), abs(float(values.mean())))
    width = max(0.9 * spread * len(values) ** -0.2, floor) if np.isfinite(spread) else floor
    counts, edges = np.histogram(values, bins=4 * points, range=(values.min() - 3 * width, values.max() + 3 * width))
    centers = (edges[:-1] + edges[1:]) / 2
    place = np.linspace(edges[0], edges[-1], points)
    kernel = np.exp(-0.5 * ((place[:, None] - centers) / width) ** 2)
    return place, kernel @ counts / (len(values) * width * np.sqrt(2 * np.pi))


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


def energies(data: ArvizData) -> Figure:
    """One sequence's energies in the capsule where they differ most, over orbits or over the positions of a frame.

    Without a topography there are none; z takes their place.
    """
    posterior, prior = data["posterior"], data["prior"]
    name = next(site for site in ("e", "v", "z") if site in posterior)
    fixed = {"sequence": 0, "frame": 0} if "frame" in posterior[name].dims else {"sequence": 0}
    values, before = (np.log(group[name]) if name != "z" else group[name] for group in (posterior, prior))
    values, before = values.isel(fixed), before.isel(fixed, missing_dims="ignore")
    capsule = int(np.argmax(values.mean(["chain", "draw"]).var(values.dims[-1]).values))
    low, high = np.quantile(before.isel(capsule=capsule).values, [0.03, 0.97])
    where = " in frame 0" if "frame" in fixed else ""
    return forest(
        values.isel(capsule=capsule),
        f"Capsule {capsule} of one sequence{where}: {'z' if name == 'z' else 'log energies'} (grey: the prior)",
        {"e": "log e", "v": "log v, v = W u²", "z": "z"}[name],
        (float(low), float(high)),
    )


def likelihoods(data: ArvizData) -> Figure:
    """log p(x | t) of every sequence over the draws."""
    title = "Log-likelihood of each sequence given its latents"
    return forest(data["log_likelihood"]["x"], title, "log p(x | t), nats per sequence (higher is better)")


def pareto_k_plot(k: ArrayLike) -> Figure:
    """Pareto k of each sequence's importance weights (N,) against the limit of what is reliable."""
    values = np.asarray(k, dtype=np.float64)
    figure = canvas(2.8)
    axis = figure.add_subplot()
    good = values <= RELIABLE_PARETO_K
    shown = np.where(np.isfinite(values), values, np.nan)
    place = np.arange(len(values))
    axis.axhline(RELIABLE_PARETO_K, color=GRAY, linestyle="--", linewidth=1.0)
    axis.plot(place[good], shown[good], "o", color=BLUE, label=f"{good.sum()} usable (k ≤ {RELIABLE_PARETO_K})")
    axis.plot(place[~good], shown[~good], "X", color=VERMILLION, label=f"{(~good).sum()} not usable")
    if np.nanmax(shown, initial=0.0) > 20:
        axis.set_yscale("symlog", linthresh=1.0)
    axis.yaxis.set_major_formatter("{x:g}")
    _words(axis, "Pareto k of the importance weights", "sequence", "k (lower is better)")
    whole_numbers(axis.xaxis)
    axis.legend(frameon=False, fontsize=9)
    return figure


def _words(axis: Axes, title: str, across: str, up: str = "") -> None:
    """Title and labels of axes without a frame."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(across, fontsize=9)
    axis.set_ylabel(up, fontsize=9)


# ---- the page

CAPTIONS: dict[str, tuple[Callable[[ArvizData], Figure], Caption]] = {
    "intensity": (
        intensity_check,
        Caption(
            "Posterior-predictive check",
            "The black line, the observed frames, should run inside the bundle of predicted ones. A bundle that is too "
            "narrow or stands beside it means that the model cannot reproduce how bright frames are.",
            "Densities of the mean pixel of a frame: many predicted ones and the observed one.",
        ),
    ),
    "energies": (
        energies,
        Caption(
            "Energies of one capsule",
            "Lines that stand apart from each other, narrower than the grey band, are what the sequence told the "
            "capsule. Lines that all fill the band are the prior: the code is empty. μ, the shift of z, is a learned "
            "number without a spread; it stands in the table.",
            "Median and intervals of the energies, one line for each orbit or position, over the prior's interval.",
        ),
    ),
    "pareto_k": (
        lambda data: pareto_k_plot(data["sequence_stats"]["pareto_k"].values),
        Caption(
            "Does the guide cover the posterior",
            "Points should lie below the dashed line. Above it, the guide's draws miss so much of the posterior that "
            "reweighting them cannot repair it: read intervals on this page as the guide's opinion, and the "
            "importance-weighted likelihood as a loose bound. From few draws k itself is uncertain: ask for more.",
            f"Pareto k of each sequence against the limit of {RELIABLE_PARETO_K}.",
        ),
    ),
    "likelihoods": (
        likelihoods,
        Caption(
            "Log-likelihood of each sequence",
            "Sequences far to the left are the ones that the model explains badly: look at these. Wide lines mean that "
            "draws of one posterior disagree about the picture.",
            "Median and intervals of log p(x | t), one line for each sequence.",
        ),
    ),
}


def write_page(path: Path, data: ArvizData, model: TVAE, *, name: str, facts: Mapping[str, str]) -> Path:
    """Write the page of plots of what :func:`.to_arviz` made: one file, pictures embedded, written whole or not at all.

    Args:
        path: where to.
        data: draws with all groups.
        model: for the remark on its likelihood.
        name: of the run.
        facts: lines of the table: what was drawn, and how.
    """
    stats = data["sequence_stats"]
    pictures = [
        shown(key, figure(data), caption)
        for key, (figure, caption) in CAPTIONS.items()
        if key != "pareto_k" or key in stats
    ]
    page = render(
        "posterior.html",
        name=name,
        verdict=_verdict(data),
        facts=dict(facts),
        remark=model.likelihood.remark,
        pictures=pictures,
        file=POSTERIOR,
    )
    return write_text(path, page)


def _verdict(data: ArvizData) -> str:
    """One sentence on how far the draws can be trusted."""
    stats = data["sequence_stats"]
    if "pareto_k" not in stats:
        rhat, divergent = float(stats["rhat"].max()), int(data["sample_stats"]["diverging"].sum())
        word = "have mixed" if rhat < 1.01 and divergent == 0 else "have NOT mixed well enough"
        return f"The chains {word}: the largest R-hat is {rhat:.2f} (below 1.01 is good), with {divergent} divergences."
    k = stats["pareto_k"].values
    good, ess = int((k <= RELIABLE_PARETO_K).sum()), float(np.median(stats["ess"].values))
    whose = "" if good == 0 else "of the others "
    tail = "stand for the posterior" if good == len(k) else f"{whose}are the guide's opinion, not the posterior"
    return (
        f"{good} of {len(k)} sequences have a Pareto k of at most {RELIABLE_PARETO_K} (median effective sample size "
        f"{ess:.1f}): the draws {tail}."
    )
