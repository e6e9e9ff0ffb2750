"""The page of a posterior: its figures with what to look for, and one sentence on how far its draws can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyro_tvae import TVAE
from pyro_tvae.inference.arviz_adapter import ArvizData
from pyro_tvae.inference.pareto import RELIABLE_PARETO_K

from ..runs.files import write_text
from .pages import Caption, render, shown
from .posterior_figures import figures_of, method_of

__all__ = ["POSTERIOR", "verdict", "write_page"]

POSTERIOR = "posterior.nc"

CAPTIONS = {
    "expected_frames": Caption(
        "What the draws say of each frame",
        "The second row is the posterior mean of E[x | t], the third twice its standard deviation over draws, white "
        "where draws disagree. {draws}",
        "Rows of observed frames, the mean that the draws give, and their spread.",
    ),
    "scores": Caption(
        "Predictive check, frame by frame",
        "Each point is a frame's statistic against 199 replicates drawn given one posterior draw of its sequence: "
        "under the right model and posterior one in twenty lies outside the gray band. Of changes every second one is "
        "counted, since neighbors share a frame. {gray}",
        "z-scores of five statistics of every frame, sequence by sequence.",
    ),
    "pit": Caption(
        "Predictive check, calibration",
        "Where the observed statistics rank among their replicates. Bars inside the gray band are those of a right "
        "model; at both ends, frames vary more than the model says, in the middle less, at one end it is off.",
        "A histogram of ranks for each statistic, with the band of a right model.",
    ),
    "traversal": Caption(
        "A traversal with its uncertainty",
        "The capsules of frame 0 are rolled one position a frame in every draw: the second row is the mean of what "
        "comes out, the third twice its standard deviation. {draws}",
        "Rows of observed frames, the mean rolled ones, and their spread.",
    ),
    "energies": Caption(
        "Energies of one capsule",
        "Lines that stand apart from each other, narrower than the grey band, are what the sequence told the "
        "capsule. Lines that all fill the band are the prior: the code is empty. μ, the shift of z, is a learned "
        "number without a spread; it stands in the table. {draws}",
        "Median and intervals of the energies, one line for each orbit or position, over the prior's interval.",
    ),
    "pareto_k": Caption(
        "Does the guide cover the posterior",
        "Points should lie below the dashed line. Above it, the guide's draws miss so much of the posterior that "
        "reweighting them cannot repair it, and the importance-weighted likelihood is a loose bound. From few draws k "
        "itself is uncertain: ask for more. {draws}",
        f"Pareto k of each sequence against the limit of {RELIABLE_PARETO_K}.",
    ),
    "traces": Caption(
        "Chains of NUTS",
        "Traces should look like noise around one level, the same for all chains, and every chain should hold as many "
        "low ranks as high ones.",
        "Traces of the chains, and histograms of their ranks.",
    ),
    "energy": Caption(
        "Energy of NUTS",
        "The two histograms should be alike. Changes much narrower than the energies mean that the chains creep, and "
        "have not reached the tails.",
        "Histograms of the energies of draws and of their changes.",
    ),
    "likelihoods": Caption(
        "Log-likelihood of each sequence",
        "Sequences far to the left are the ones that the model explains badly: look at these. Wide lines mean that "
        "draws of one posterior disagree about the picture. {draws}",
        "Median and intervals of log p(x | t), one line for each sequence.",
    ),
}


CODE = """import arviz as az
data = az.from_netcdf("{file}")
az.summary(data, var_names=["z"], coords={{"sequence": {item}, "capsule": 0, "frame": 0}})"""


def write_page(
    path: Path, data: ArvizData, model: TVAE, *, name: str, facts: Mapping[str, str], file: str = POSTERIOR
) -> Path:
    """Write the page of plots of what :func:`.to_arviz` made: one file, pictures embedded, written whole or not at all.

    Args:
        path: where to.
        data: draws; a picture of a group that is not there is left out.
        model: that decodes, and for the remark on its likelihood.
        name: of the run.
        facts: lines of the table: what was drawn, and how.
        file: that holds the draws.
    """
    words = {
        "draws": _trust(data),
        "gray": "Gray pixels were made black or white first, as the likelihood takes them."
        if model.likelihood.remark
        else "",
    }
    pictures = [
        shown(key, figure, CAPTIONS[key]._replace(look_for=CAPTIONS[key].look_for.format(**words).strip()))
        for key, figure in figures_of(data, model).items()
    ]
    page = render(
        "posterior.html",
        heading=f"Posterior of {name}",
        verdict=verdict(data),
        facts=dict(facts),
        remark=model.likelihood.remark,
        pictures=pictures,
        file=file,
        code=CODE.format(file=file, item=data["sequence_stats"]["sequence"].values[0]),
    )
    return write_text(path, page)


def _trust(data: ArvizData) -> str:
    """What the draws of a picture are."""
    method, stats = method_of(data), data["sequence_stats"]
    if method == "nuts":
        return "Draws are those of the chains: see whether these have mixed."
    bad = int((~(stats["pareto_k"].values <= RELIABLE_PARETO_K)).sum())
    if method == "guide":
        return "Draws are the guide's own, not reweighted: its opinion of the posterior." if bad else ""
    return (
        "Draws are resampled by weight: where k is above 0.7 they are copies of the few that its name counts as "
        "distinct, and their spread is that of these few, neither the posterior's nor the guide's."
        if bad
        else ""
    )


def verdict(data: ArvizData) -> str:
    """One sentence on how far the draws can be trusted."""
    stats = data["sequence_stats"]
    if method_of(data) == "nuts":
        rhat, divergent = float(stats["rhat"].max()), int(data["sample_stats"]["diverging"].sum())
        word = "have mixed" if rhat < 1.01 and divergent == 0 else "have NOT mixed well enough"
        return f"The chains {word}: the largest R-hat is {rhat:.2f} (below 1.01 is good), with {divergent} divergences."
    k = stats["pareto_k"].values
    good, ess = int((k <= RELIABLE_PARETO_K).sum()), float(np.median(stats["ess"].values))
    whose = "" if good == 0 else "of the others "
    tail = "stand for the posterior" if good == len(k) else f"{whose}are the guide's opinion, not the posterior"
    if method_of(data) == "importance":
        few = stats["distinct_draws"].values[~(k <= RELIABLE_PARETO_K)]
        if len(few):
            tail = f"{whose}are copies of a few ({int(np.median(few))} distinct in the median), not the posterior"
    return (
        f"{good} of {len(k)} sequences have a Pareto k of at most {RELIABLE_PARETO_K} (median effective sample size "
        f"{ess:.1f}): the draws {tail}."
    )
