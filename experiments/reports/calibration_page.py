"""The page of a calibration: ranks of true values among posterior draws, against the band of an exact posterior."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pyro_tvae import TVAE
from pyro_tvae.inference import Calibration

from ..runs.files import write_text
from .pages import Caption, render, shown
from .style import BLUE, GRAY, VERMILLION, canvas, gridded

__all__ = ["rank_histograms", "verdict", "write_page"]

LABELS = {"u_squared": "u²", "log_likelihood": "log p(x | t)"}
LEVEL = 0.01
CAPTION = Caption(
    "Ranks of the true values",
    "Bars inside the gray band are an exact posterior's. Bars that are high at both ends mean that the posterior is "
    "overconfident, high in the middle that it is too wide, high at one end that it is biased. Bars average over all "
    "latents of a name; the points are the one latent that is most uneven.",
    "A histogram of ranks for each quantity, with the band that holds an exact posterior's.",
)


def rank_histograms(result: Calibration, bins: int = 10) -> Figure:
    """A histogram for each quantity: shares of ranks, averaged over its latents, and those of the most uneven one.

    Args:
        result: of :func:`.calibration`.
        bins: of the histograms.
    """
    figure = canvas(2.9)
    axes = np.atleast_1d(figure.subplots(1, len(result.ranks), sharey=True))
    place, tallest = np.arange(bins), 0.0
    for axis, name in zip(axes, result.ranks, strict=True):
        n = len(result.ranks[name])
        shares = result.histogram(name, bins).double().reshape(bins, -1) / n
        low, high = Calibration({name: result.ranks[name]}, result.n_draws).band(LEVEL, bins)
        axis.axhspan(low, high, color="#e4e4e4", zorder=-10)
        axis.axhline(1 / bins, color=GRAY, linewidth=0.8, linestyle="--")
        axis.bar(place, shares.mean(1).numpy(), width=0.9, color=BLUE, alpha=0.85)
        if shares.shape[1] > 1:
            worst = int((shares - 1 / bins).square().sum(0).argmax())
            axis.plot(place, shares[:, worst].numpy(), ".", color=VERMILLION, markersize=5)
        axis.set_xticks([-0.5, bins - 0.5], ["0", str(result.n_draws)])
        axis.set_xlabel("draws below the true value", fontsize=9)
        gridded(axis, LABELS.get(name, name))
        tallest = max(tallest, high, float(shares.mean(1).max()), float(shares.max()))
    axes[0].set_ylim(0, 1.05 * tallest)  # of all, which share it
    axes[0].set_ylabel("share of simulations", fontsize=9)
    return figure


def verdict(result: Calibration, bins: int = 10) -> str:
    """One sentence on whether the posterior holds what it promises."""
    n = len(next(iter(result.ranks.values())))
    uneven = []
    for name in result.ranks:
        p = result.p_value(name, bins)
        if p * len(result.ranks) <= LEVEL:
            shares = (result.histogram(name, bins).double().reshape(bins, -1) / n).mean(1)
            uneven.append(
                f"{LABELS.get(name, name)} (p {'< 1e-6' if p < 1e-6 else f'= {p:.1g}'}{_shape(shares.numpy())})"
            )
    if not uneven:
        return f"Of {n} simulations none tells this posterior from an exact one (at a level of {LEVEL:.0%})."
    return f"NOT calibrated: the ranks of {', '.join(uneven)} are uneven over {n} simulations."


def _shape(shares: np.ndarray) -> str:
    """What an average histogram says of the posterior; nothing where latents cancel each other."""
    even = 1 / len(shares)
    first, last, middle = (
        shares[0] / even,
        shares[-1] / even,
        shares[len(shares) // 2 - 1 : len(shares) // 2 + 1].mean(),
    )
    if min(first, last) > 1.2:
        return ", heaped at both ends: overconfident"
    if max(first, last) < 0.8 and middle > even:
        return ", heaped in the middle: too wide"
    return ", heaped at one end: biased" if max(first, last) > 1.2 else ""


def write_page(
    path: Path, result: Calibration, model: TVAE, *, name: str, facts: Mapping[str, str], file: str, bins: int = 10
) -> Path:
    """Write the page: one file, the picture embedded, whole or not at all.

    Args:
        path: where to.
        result: the ranks.
        model: for the remark on its likelihood.
        name: of the run.
        facts: lines of the table: what was simulated, and how.
        file: that holds the ranks.
        bins: of the histograms.
    """
    remark = model.likelihood.remark
    if remark:
        remark += (
            " Simulated pixels are drawn from the likelihood: black or white, even for a guide fitted to gray ones."
        )
    page = render(
        "posterior.html",
        heading=f"Calibration of {name}",
        verdict=verdict(result, bins),
        facts=dict(facts),
        remark=remark,
        pictures=[shown("ranks", rank_histograms(result, bins), CAPTION)],
        file=file,
        code=f'import xarray\nranks = xarray.open_dataset("{file}", engine="h5netcdf")',
    )
    return write_text(path, page)
