"""All of ArviZ against what to_arviz makes, in either version: each public name works and is right, or says why not.

A number is right by a second road: NumPy, a formula written out, brute force, or the exact posterior and evidence of a
linear Gaussian model. A plot shows the numbers that it is of. Where one number per sequence is asked for, as by all
that leaves observations out, it is the brightness of the sequence: a sequence, not a pixel, is left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from gaussian import Toy
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from placing import Place, agrees, no_sense
from scipy import stats
from scipy.integrate import trapezoid

from pyro_tvae import TVAE, Bernoulli, CapsuleRoll, default_guide
from pyro_tvae.inference import nuts, to_arviz
from pyro_tvae.inference.arviz_adapter import arviz, is_legacy
from pyro_tvae.inference.pareto import pareto_shape

az: Any = arviz()
LEGACY = is_legacy()
Array = NDArray[np.float64]
PIXELS = ["frame", "channel", "height", "width"]
SAMPLE = ["chain", "draw"]
DRAWS = 256  # of which the tail of a fit is 48, 3 √256, whichever way a version rounds it
NUTS_DRAWS = 60


# --- data


@cache
def toy() -> Toy:
    torch.manual_seed(0)
    # So much noise that a sequence can be left out: otherwise its Pareto k says that it cannot.
    return Toy(0.0, sigma=2.0)


@cache
def films() -> torch.Tensor:
    torch.manual_seed(1)
    x: torch.Tensor = toy().model(n_sequences=32)
    return x.detach()


@cache
def of_guide(seed: int = 0) -> Any:
    """Draws from the exact posterior of 32 sequences."""
    return to_arviz(toy().model, toy().guide, films(), draws=DRAWS, seed=seed)


@cache
def of_importance() -> Any:
    return to_arviz(toy().model, toy().guide, films()[:4], draws=50, method="importance", num_particles=400)


@cache
def of_nuts() -> Any:
    result = nuts(toy().model, films()[:2], init=toy().guide, num_samples=NUTS_DRAWS, warmup_steps=30, num_chains=2)
    return to_arviz(toy().model, toy().guide, films()[:2], result=result)


@cache
def of_bits() -> Any:
    """A Topographic VAE of black and white pixels."""
    torch.manual_seed(2)
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 1), mu=1.0, likelihood=Bernoulli())
    x: torch.Tensor = model(n_sequences=6)
    return to_arviz(model, default_guide(model), x.detach().bernoulli(), draws=40)


def made(**groups: Any) -> Any:
    if LEGACY:
        return az.InferenceData(**groups)
    from xarray import DataTree

    return DataTree.from_dict(groups)


@cache
def per_sequence(seed: int = 0) -> Any:
    """One number for each sequence, its brightness, in the groups that predict it and that score its sequence."""
    data = of_guide(seed)
    bright = {
        group: data[group]["x"].mean(PIXELS).to_dataset(name="brightness")
        for group in ("posterior_predictive", "observed_data")
    }
    scores = data["log_likelihood"]["x"].to_dataset(name="brightness")
    return made(posterior=plain(data["posterior"]), log_likelihood=scores, **bright)


def plain(group: Any) -> Any:
    """A group as a data set, of either version."""
    return group if LEGACY else group.to_dataset()


def numbers(result: Any, name: str = "z") -> Array:
    """Values of a variable in whatever a function of ArviZ hands back."""
    values = result[name] if hasattr(result, "data_vars") else result
    return np.asarray(getattr(values, "values", values), dtype=float)


def z(data: Any) -> Array:
    return np.asarray(data["posterior"]["z"].values)


def flat(data: Any) -> Array:
    """All draws of z, (draw, latent)."""
    values = z(data)
    return values.reshape(values.shape[0] * values.shape[1], -1)


def close(found: Any, expected: Any, rtol: float = 1e-6, atol: float = 1e-9) -> None:
    np.testing.assert_allclose(np.asarray(found, dtype=float), np.asarray(expected, dtype=float), rtol=rtol, atol=atol)


# --- numbers


def of_each(function: Callable[[Array], Any]) -> Array:
    """Of the draws of each latent of the exact posterior, (sequence, frame, capsule, position)."""
    return np.asarray([function(column) for column in flat(of_guide()).T]).reshape(z(of_guide()).shape[2:])


def summarized(name: str, function: Callable[[Array], Any], rtol: float = 1e-6) -> Place:
    """A function of ArviZ that sums the draws of each latent up into one number, as NumPy does."""
    return agrees(
        lambda: close(numbers(getattr(az, name)(of_guide(), var_names="z", round_to="none")), of_each(function), rtol)
    )


def the_summary() -> None:
    table = az.summary(of_guide(), var_names=["z"], round_to="none").astype(float)
    close(table["mean"], flat(of_guide()).mean(0))
    close(table["sd"], flat(of_guide()).std(0, ddof=1))
    # And they are those of the exact posterior: within five standard errors, of 128 latents; a false alarm in 10,000.
    exact = toy().mean(films()).flatten().numpy()
    sd = toy().sd.numpy().repeat(1)[np.arange(len(exact)) % 2]
    assert np.abs((table["mean"] - exact) / sd).max() < 5 / math.sqrt(DRAWS)


def narrowest(prob: float) -> Callable[[Array], Array]:
    def interval(x: Array) -> Array:
        x = np.sort(x)
        inside = math.floor(prob * len(x))
        start = int(np.argmin(x[inside:] - x[: len(x) - inside]))
        return x[[start, start + inside]]

    return interval


def the_hdi() -> None:
    option = {"hdi_prob" if LEGACY else "prob": 0.8}
    expected = np.asarray([narrowest(0.8)(column) for column in flat(of_guide()).T])
    found = numbers(az.hdi(of_guide(), var_names=["z"], **option))
    close(found.reshape(-1, 2), expected, 1e-5)


def the_ess() -> None:
    """Of independent draws it is their number; of four copies of each it is a quarter of theirs."""
    found = numbers(az.ess(of_guide(), var_names=["z"], method="mean"))
    assert abs(found.mean() / DRAWS - 1) < 0.1
    copies = plain(of_guide()["posterior"])[["z"]].isel(draw=np.arange(DRAWS).repeat(4))
    copies = copies.assign_coords(draw=np.arange(4 * DRAWS))
    assert abs(numbers(az.ess(copies, method="mean")).mean() / DRAWS - 1) < 0.25


def split(chains: Array) -> Array:
    half = chains.shape[1] // 2
    return np.concatenate([chains[:, :half], chains[:, -half:]])


def the_rhat() -> None:
    chains = split(z(of_nuts()))
    n = chains.shape[1]
    within = chains.var(1, ddof=1).mean(0)
    between = n * chains.mean(1).var(0, ddof=1)
    close(numbers(az.rhat(of_nuts(), var_names=["z"], method="split")), np.sqrt((n - 1) / n + between / within / n))


def the_nested_rhat() -> None:
    """With as many superchains as chains it compares what R-hat compares."""
    found = numbers(az.rhat_nested(of_nuts(), var_names=["z"], superchain_ids=[0, 1]))
    assert np.abs(found - 1).max() < 0.1


def the_error_of_a_mean() -> None:
    ess = numbers(az.ess(of_nuts(), var_names=["z"], method="mean"))
    close(
        numbers(az.mcse(of_nuts(), var_names=["z"])), flat(of_nuts()).std(0, ddof=1).reshape(ess.shape) / np.sqrt(ess)
    )


def the_bfmi() -> None:
    energy = np.asarray(of_nuts()["sample_stats"]["energy"].values)
    expected = np.square(np.diff(energy)).sum(1) / np.square(energy - energy.mean(1, keepdims=True)).sum(1)
    close(numbers(az.bfmi(of_nuts()), "energy"), expected, rtol=0.02)  # one version divides by n, the other by n - 1
    assert expected.min() > 0.3


def the_diagnosis() -> None:
    trouble, found = az.diagnose(
        of_nuts(), var_names=["z"], rhat_max=1.2, ess_threshold=10, return_diagnostics=True, show_diagnostics=False
    )
    assert not trouble
    close(found["bfmi"]["bfmi_values"], numbers(az.bfmi(of_nuts()), "energy"))


def log_likelihood(data: Any = None) -> Array:
    return np.asarray((data or of_guide())["log_likelihood"]["x"].values[0])


def the_loo() -> None:
    """Each sequence has latents of its own: to leave it out is to integrate them out, E[1 / p(x|t)] = 1 / p(x)."""
    # Independent draws; from one chain 1.x would estimate how dependent they are, 0.x takes them for independent.
    result = az.loo(of_guide(), pointwise=True, reff=1.0)
    found, k = (
        np.asarray(result[name].values) for name in (("loo_i", "pareto_k") if LEGACY else ("elpd_i", "pareto_k"))
    )
    nats = torch.from_numpy(-log_likelihood())
    tail = math.ceil(min(DRAWS / 5, 3 * math.sqrt(DRAWS)))
    close(k, pareto_shape(nats.sort(dim=0, descending=True).values[: tail + 1]), 0.02, 0.02)
    exact = toy().evidence(films()).numpy()
    # Of sequences whose weights can be trusted, within what 250 draws of heavy-tailed weights leave.
    assert (k < 0.7).sum() > 10
    assert np.abs(found - exact)[k < 0.7].mean() < 0.3
    crude = -np.log(np.exp(-log_likelihood()).mean(0))
    assert np.abs(found - crude)[k < 0.5].max() < 0.2


def the_comparison() -> None:
    fitted = {"first": of_guide(), "second": of_guide(1)}
    table = az.compare(fitted, round_to="none") if not LEGACY else az.compare(fitted)
    of_one = {name: az.loo(data) for name, data in fitted.items()}
    name = "elpd_loo" if LEGACY else "elpd"
    for model, result in of_one.items():
        close(table.loc[model, name], result[name])
    best, other = table.index
    # The sign is the versions' own: 0.x says how much worse, 1.x how much better.
    close(abs(table.loc[other, "elpd_diff"]), of_one[best][name] - of_one[other][name])


def the_waic() -> None:
    nats = log_likelihood()
    lppd = np.log(np.exp(nats).mean(0)).sum()
    close(az.waic(of_guide())["elpd_waic"], lppd - nats.var(0).sum(), 1e-6)


def smoothed() -> Array:
    """Weights that leave each sequence out, (sequence, draw), as az.loo makes them, and their sums 1."""
    nats = of_guide()["log_likelihood"]["x"].stack(__sample__=SAMPLE)
    if LEGACY:
        log_w = az.psislw(-nats)[0]
    else:
        log_w = az.loo(of_guide(), pointwise=True).log_weights.stack(__sample__=SAMPLE)
    weights = np.exp(np.asarray(log_w.transpose("sequence", "__sample__").values))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def the_smoothed_weights() -> None:
    nats = log_likelihood()
    order = nats.argsort(0)  # the largest weight first
    tail = math.ceil(min(DRAWS / 5, 3 * math.sqrt(DRAWS)))
    weights, rows = smoothed(), np.arange(nats.shape[1])[:, None]
    # What is not in the tail is as it was, and the tail has the order that it had.
    inner = order[tail + 1 :].T
    ratio = weights[rows, inner] / np.exp(-nats.T[rows, inner])
    close(ratio / ratio[:, :1], np.ones_like(ratio))
    assert (np.diff(weights[rows, order.T], axis=1) < 1e-12).all()


def brightness() -> tuple[Array, Array]:
    """Of the sequences, (sequence,), and of predictions of them, (draw, sequence)."""
    groups = (per_sequence()[name]["brightness"].values for name in ("observed_data", "posterior_predictive"))
    observed, predicted = groups
    return np.asarray(observed), np.asarray(predicted)[0]


def the_loo_pit() -> None:
    """Uniform, since these sequences are the model's own, and what weights that leave them out say."""
    if LEGACY:
        found = np.asarray(az.loo_pit(per_sequence(), y="brightness"))
    else:
        found = numbers(az.loo_pit(per_sequence(), var_names="brightness"), "brightness")
    observed, predicted = brightness()
    # Each sequence is predicted by its own latents: squared errors of 256 means, 1 within five standard errors.
    frames = np.asarray(of_guide()["posterior_predictive"]["x"].values)[0].reshape(DRAWS, -1)
    decoded = (toy().mean(films()).squeeze(-2) @ toy().a.T).flatten().numpy()
    error = np.square((frames.mean(0) - decoded) / frames.std(0)).mean() * DRAWS
    assert abs(error - 1) < 5 * math.sqrt(2 / len(decoded))
    expected = (smoothed() * (predicted <= observed).T).sum(1)
    close(found, expected, 1e-4, 1e-4)
    assert stats.kstest(found, "uniform").pvalue > 1e-4  # the false-alarm rate


def expected_without() -> Array:
    """Mean prediction of each sequence's brightness with itself left out."""
    return np.asarray((smoothed() * brightness()[1].T).sum(1))


def the_expectations() -> None:
    values, _ = az.loo_expectations(per_sequence(), var_name="brightness")
    close(values, expected_without(), 1e-4, 1e-6)


def the_loo_metrics() -> None:
    found = az.loo_metrics(per_sequence(), kind="rmse", var_name="brightness", round_to="none")
    close(found.mean, math.sqrt(np.square(brightness()[0] - expected_without()).mean()), 1e-4)


def the_metrics() -> None:
    found = az.metrics(per_sequence(), kind="rmse", var_name="brightness", round_to="none")
    observed, predicted = brightness()
    close(found.mean, math.sqrt(np.square(observed - predicted.mean(0)).mean()), 1e-4)


def the_loo_score() -> None:
    """The continuous ranked probability score, E|y' − y| − E|y' − y''| / 2, negated, as ArviZ has it."""
    found = az.loo_score(per_sequence(), var_name="brightness", round_to="none")
    observed, predicted = brightness()
    weights = smoothed()
    apart = np.abs(predicted.T[:, :, None] - predicted.T[:, None])
    scores = (weights * np.abs(predicted - observed).T).sum(1) - np.einsum("nd,ne,nde->n", weights, weights, apart) / 2
    close(found.mean, -scores.mean(), 0.02)


def the_loo_influence() -> None:
    found, _ = az.loo_influence(per_sequence(), var_names="brightness", kind="mean", standardize=False)
    close(
        np.abs(numbers(found, "brightness")).mean(), np.abs(expected_without() - brightness()[1].mean(0)).mean(), 0.05
    )


def the_loo_of_one() -> None:
    whole = az.loo(of_guide(), pointwise=True)
    close(az.loo_i({"sequence": 3}, of_guide()).elpd, whole.elpd_i.values[3])


def the_loo_of_some() -> None:
    """Of all of them it is the whole; more of them change the estimate to it."""
    some = az.loo_subsample(of_guide(), observations=np.arange(16), pointwise=True)
    chosen = np.asarray(some.elpd_i.values)
    whole = np.asarray(az.loo(of_guide(), pointwise=True).elpd_i.values)
    close(chosen[~np.isnan(chosen)], whole[~np.isnan(chosen)], 1e-6)
    assert abs(some.elpd - whole.sum()) < 5 * max(some.subsampling_se, 1.0)


def the_updated_loo() -> None:
    first = az.loo_subsample(of_guide(), observations=np.arange(8), pointwise=True)
    more = az.update_subsample(first, of_guide(), observations=np.arange(8, 16))
    both = az.loo_subsample(of_guide(), observations=np.arange(16), pointwise=True)
    close(more.elpd, both.elpd, 1e-6)


def the_corrected_loo() -> None:
    """The guide is the posterior, so that weights log p(x, z) − log q(z) correct nothing."""
    data = of_guide()
    log_p = data["sample_stats"]["lp"]
    found = az.loo_approximate_posterior(data, log_p, log_p - data["sample_stats"]["log_weight"].sum("sequence"))
    close(found.elpd, az.loo(data).elpd, 0.02)


def the_loo_r2() -> None:
    found = az.loo_r2(per_sequence(), "brightness", summary=False)
    observed = brightness()[0]
    expected = 1 - np.square(observed - expected_without()).mean() / observed.var()
    assert abs(float(np.mean(found)) - expected) < 0.1


def distance(x: Array, weights: Array) -> float:
    """Cumulative Jensen-Shannon distance between draws and the same with weights, the larger of both directions."""

    def one_way(x: Array, w: Array) -> float:
        order = np.argsort(x)
        width, q = np.diff(x[order]), np.cumsum(w[order])[:-1]
        p = np.arange(1, len(x)) / len(x)
        mean = np.log2((p + q) / 2)
        apart = (width * (p * (np.log2(p) - mean))).sum() + (width * (q * (np.log2(q) - mean))).sum()
        # The terms (q - p) / (2 ln 2) of both directions cancel.
        return float(math.sqrt(max(apart, 0.0) / (width * (p + q)).sum()))

    return max(one_way(x, weights), one_way(-x, weights))


def power_scaled(group: str) -> float:
    """Kallioinen et al. 2024: how far draws of a latent go with its sequence's prior, or likelihood, to a power."""
    latents = z(of_guide())[0, :, 0, :, 0]  # of the first sequence, (draw, frame, position)
    if group == "log_prior":
        nats = normal(0, 1).logpdf(latents).sum((1, 2))
    else:
        pixels = films()[0].flatten(1).numpy()
        nats = normal(latents @ toy().a.T.numpy(), toy().sigma).logpdf(pixels).sum((1, 2))
    draws = latents[:, 0, 0]
    alphas = (1 / 1.01, 1.01) if LEGACY else (0.99, 1.01)
    moved = []
    for alpha in alphas:
        weights = np.exp((alpha - 1) * (nats - nats.mean()))
        moved.append(distance(draws, weights / weights.sum()) / abs(math.log2(alpha)))
    return float(np.mean(moved))


def the_sensitivities() -> None:
    """To the prior and to the likelihood of its own sequence: those of others add nothing but noise."""
    for group, component in (("log_prior", "prior"), ("log_likelihood", "likelihood")):
        if LEGACY:
            # Its argument component_coords changes nothing: select the sequence before.
            found = az.psens(of_guide().sel(sequence=[0]), component=component, var_names=["z"])
        else:
            found = az.psense(of_guide(), group=component, var_names="z", group_coords={"sequence": 0})
        found = float(numbers(found).reshape(-1)[0])
        assert found == pytest.approx(power_scaled(group), rel=0.05), component


def the_table_of_sensitivities() -> None:
    only = {"sequence": 0}
    table = az.psense_summary(
        of_guide(), var_names="z", coords={"sequence": [0]}, prior_coords=only, likelihood_coords=only
    )
    close(
        table.iloc[0][["prior", "likelihood"]], [power_scaled("log_prior"), power_scaled("log_likelihood")], 0.05, 1e-3
    )


def normal(mean: Any, sd: float) -> Any:
    return stats.norm(mean, sd)


def the_bayes_factor() -> None:
    """Of a latent that is 0, against one that is free: the ratio of its densities there, both known exactly."""
    data = latent()
    found = az.bayes_factor(data, "z", 0.0)
    exact = normal(0, 1).pdf(0) / normal(float(toy().mean(films())[0, 0, 0, 0]), float(toy().sd[0])).pdf(0)
    value = found["BF10"] if LEGACY else float(np.asarray(found["z"].sel(bf_type="BF10")))
    assert value == pytest.approx(exact, rel=0.35)


@cache
def latent() -> Any:
    """One latent of one sequence and its prior, without the coordinates of which the prior has not all."""
    at = {"sequence": 0, "frame": 0, "capsule": 0, "position": 0}
    groups = {name: plain(of_guide()[name])[["z"]] for name in ("posterior", "prior")}
    return made(**{name: group.isel(at, drop=True, missing_dims="ignore") for name, group in groups.items()})


def the_explained_variance() -> None:
    observed, predicted = brightness()
    found = az.r2_score(observed, predicted)
    of_draws = predicted.var(1) / (predicted.var(1) + (observed - predicted).var(1))
    close([found["r2"], found["r2_std"]], [of_draws.mean(), of_draws.std()])
    close(az.r2_samples(observed, predicted), of_draws)


def the_residual_r2() -> None:
    observed, predicted = brightness()
    of_draws = predicted.var(1) / (predicted.var(1) + (observed - predicted).var(1))
    data = made(
        posterior=plain(per_sequence()["posterior_predictive"]),
        observed_data=plain(per_sequence()["observed_data"]),
    )
    found = az.residual_r2(data, pred_mean="brightness", obs_name="brightness", summary=False)
    close(np.asarray(found).reshape(-1), of_draws, 1e-4)


def the_weighted_predictions() -> None:
    fitted = [of_guide(), of_guide(1)]
    found = az.weight_predictions(fitted, weights=[0.4, 0.6])
    values = found["posterior_predictive"]["x"]
    assert abs(values.sizes["sample"] - DRAWS) <= 1
    pools = [data["posterior_predictive"]["x"].stack(sample=SAMPLE).transpose("sample", ...).values for data in fitted]
    rows = values.transpose("sample", ...).values
    of_first = sum(bool((pools[0] == row).all(axis=tuple(range(1, row.ndim + 1))).any()) for row in rows)
    of_second = sum(bool((pools[1] == row).all(axis=tuple(range(1, row.ndim + 1))).any()) for row in rows)
    assert abs(of_first - 0.4 * DRAWS) <= 1
    assert of_first + of_second == len(rows)


def the_extract() -> None:
    found = az.extract(of_nuts(), var_names="z", keep_dataset=True)["z"].transpose("sample", ...)
    close(found.values.reshape(len(found), -1), flat(of_nuts()))


def the_former_extract() -> None:
    close(
        az.extract_dataset(of_nuts(), var_names="z").transpose("sample", ...).values.reshape(2 * NUTS_DRAWS, -1),
        flat(of_nuts()),
    )


def the_density() -> None:
    column = flat(of_guide())[:, 0]
    if LEGACY:
        grid, density = az.kde(column)
    else:
        found = az.kde(latent(), var_names="z")
        grid, density = np.asarray(found["z"].values)
    assert trapezoid(density, grid) == pytest.approx(1, abs=0.02)
    exact = normal(float(toy().mean(films())[0, 0, 0, 0]), float(toy().sd[0])).pdf(grid)
    assert np.abs(density - exact).max() < 0.25 * exact.max()
    assert column.mean() == pytest.approx(trapezoid(grid * density, grid), abs=0.05)


def the_histogram() -> None:
    found = np.asarray(az.histogram(latent(), var_names="z")["z"].values)
    counts, left, right = found
    column = flat(of_guide())[:, 0]
    expected, _ = np.histogram(column, bins=[*left, right[-1]], density=True)
    close(counts, expected)


def the_plane() -> None:
    """Histogram, hexagons and density of two latents: as many draws as there are, and a mass of one."""
    x, y = (of_guide()["posterior"]["z"].isel(sequence=0, frame=0, capsule=0, position=i) for i in (0, 1))
    found = az.histogram2d(x, y, dim=SAMPLE, density=False)
    values = found if not hasattr(found, "data_vars") else found[next(iter(found.data_vars))]
    assert float(np.nansum(values.values)) == pytest.approx(DRAWS)


def the_density_of_two() -> None:
    x, y = (of_guide()["posterior"]["z"].isel(sequence=0, frame=0, capsule=0, position=i) for i in (0, 1))
    found = az.kde2d(x, y, dim=SAMPLE)
    density = np.asarray(found["density"].values)
    assert density.min() >= 0
    grid = [np.linspace(float(v.min()), float(v.max()), n) for v, n in zip((x, y), density.shape, strict=True)]
    mass = density / density.sum()
    close([mass.sum(1) @ grid[0], mass.sum(0) @ grid[1]], [x.mean(), y.mean()], atol=0.1)


def the_step_function() -> None:
    column = np.sort(flat(of_guide())[:, 0])
    found = np.asarray(az.ecdf(plain(latent()["posterior"]), var_names="z")["z"].values)
    grid, share = found
    close(share, np.searchsorted(column, grid, side="right") / len(column), atol=1.01 / DRAWS)


def the_dots() -> None:
    found = np.asarray(az.qds(latent(), var_names="z", nquantiles=50)["z"].values)
    column = flat(of_guide())[:, 0]
    assert found.shape[1] == 50
    assert np.sort(found[0]).mean() == pytest.approx(column.mean(), abs=0.1)
    assert (found[0] >= column.min()).all()
    assert (found[0] <= column.max()).all()


def the_mode() -> None:
    found = numbers(az.mode(of_guide(), var_names="z"))
    exact = toy().mean(films()).numpy()
    assert np.abs(found - exact).mean() < 0.5 * float(toy().sd.max())


def the_rope() -> None:
    found = numbers(az.ci_in_rope(of_guide(), rope=(-100, 100), var_names="z"))
    close(found, np.full_like(found, found.flat[0]))
    assert found.flat[0] in (1, 100)
    inside = numbers(az.ci_in_rope(of_guide(), rope=(-100, 0), var_names="z", ci_prob=0.99, ci_kind="eti"))
    assert np.corrcoef(inside.ravel(), of_each(lambda x: (x < 0).mean()).ravel())[0, 1] > 0.99


def the_divergence() -> None:
    """Of a latent from itself moved by a standard deviation: a half; and the transport takes one."""
    here = plain(latent()["posterior"])
    moved = here + float(toy().sd[0])
    options = {"num_samples": 100, "round_to": "none"}
    one, other = made(posterior=here), made(posterior=moved)
    assert float(az.kl_divergence(one, other, **options)) == pytest.approx(0.5, abs=0.4)
    assert float(az.kl_divergence(one, one, **options)) < 0.2
    assert float(az.wasserstein(one, other, joint=False, **options)) == pytest.approx(float(toy().sd[0]), rel=0.25)


def the_thinned() -> None:
    found = az.thin(of_nuts(), factor=5)
    close(numbers(found), z(of_nuts())[:, ::5])


def the_unconstrained() -> None:
    found = az.get_unconstrained_samples(of_guide(), var_names=["z"], transform_funcs={}, return_dataset=True)
    close(numbers(found), z(of_guide()))


def the_autocorrelation() -> None:
    chain = z(of_nuts())[0, :, 0, 0, 0, 0]
    centered = chain - chain.mean()
    sums = np.asarray([(centered[: len(chain) - k] * centered[k:]).sum() for k in range(20)])
    close(az.autocov(chain)[:20], sums / len(chain), 1e-4, 1e-9)
    close(az.autocorr(chain)[:20], sums / sums[0], 1e-4, 1e-9)


def the_applied() -> None:
    """Of two chains: the dimension of a single one would be dropped."""
    data = made(**{name: of_nuts()[name] for name in ("posterior", "posterior_predictive", "observed_data")})
    found = az.apply_test_function(data, lambda x, _: np.mean(x), inplace=False)
    close(
        found["posterior_predictive"]["T"].values, data["posterior_predictive"]["x"].mean(["sequence", *PIXELS]).values
    )
    close(found["observed_data"]["T"].values, films()[:2].mean())


def the_ufuncs() -> None:
    wrapped = az.wrap_xarray_ufunc(np.mean, plain(of_guide()["posterior"])["z"])
    close(wrapped, of_each(np.mean))
    close(az.make_ufunc(np.mean)(np.moveaxis(z(of_guide()), (0, 1), (-2, -1))), of_each(np.mean))


def the_scores() -> None:
    for name in ("get_log_likelihood",):
        close(getattr(az, name)(of_guide(), var_name="x").values[0], log_likelihood())


def the_concatenated() -> None:
    """Statistics of sequences are of one set of draws, and are left behind where two are joined."""
    joined = [name for name in of_guide().groups() if name != "sequence_stats"]
    parts = [az.InferenceData(**{name: data[name] for name in joined}) for data in (of_guide(), of_guide(1))]
    for dim, axis in (("draw", 1), ("chain", 0)):
        found = az.concat(*parts, dim=dim)
        close(found["posterior"]["z"].values, np.concatenate([z(of_guide()), z(of_guide(1))], axis))
    rest = az.InferenceData(sequence_stats=of_guide()["sequence_stats"])
    assert set(az.concat(parts[0], rest).groups()) == set(of_guide().groups())


# --- files and other forms


def same_groups(found: Any) -> None:
    for group in ("posterior", "posterior_predictive", "log_likelihood", "observed_data", "sequence_stats"):
        for name, values in plain(of_importance()[group]).data_vars.items():
            close(found[group][name].values, values.values)


@cache
def the_json() -> None:
    """Of groups where a name has one set of dimensions, told by its coordinates, so that a further one is left out."""
    kept = {name: of_importance()[name].drop_vars("item") for name in ("posterior", "observed_data", "sample_stats")}
    with TemporaryDirectory() as folder:
        found = az.from_json(az.to_json(made(**kept), f"{folder}/posterior.json"))
    for group, data in kept.items():
        for name, values in data.data_vars.items():
            close(found[group][name].values, values.values)


@cache
def the_file() -> None:
    with TemporaryDirectory() as folder:
        if LEGACY:
            az.to_netcdf(of_importance(), f"{folder}/posterior.nc")
        else:
            of_importance().to_netcdf(f"{folder}/posterior.nc")
        found = az.from_netcdf(f"{folder}/posterior.nc")
        same_groups(found)
        found.close()


@cache
def the_tree() -> None:
    same_groups(az.from_datatree(az.to_datatree(of_importance())))


def the_converted() -> None:
    same_groups(getattr(az, "convert_to_inference_data" if LEGACY else "convert_to_datatree")(of_importance()))


def the_data_set() -> None:
    close(numbers(az.convert_to_dataset(of_nuts(), group="posterior")), z(of_nuts()))


def the_table() -> None:
    table = az.dataset_to_dataframe(plain(of_nuts()["posterior"])[["z"]])
    close(table.to_numpy(), flat(of_nuts()))


def the_stacked() -> None:
    found = az.dataset_to_dataarray(plain(of_nuts()["posterior"])[["z"]])
    close(found.values.reshape(2 * NUTS_DRAWS, -1), flat(of_nuts()))


def the_exploded() -> None:
    found = az.explode_dataset_dims(plain(of_nuts()["posterior"])[["z"]], "position")
    assert len(found.data_vars) == 2
    for i, values in enumerate(found.data_vars.values()):
        close(values.values, z(of_nuts())[..., i])


def the_references() -> None:
    found = az.references_to_dataset({"z": 0.5}, plain(of_nuts()["posterior"])[["z"]])
    assert (found["z"] == 0.5).all()
    assert found["z"].sizes["position"] == 2


def the_array() -> None:
    _, found = az.xarray_to_ndarray(plain(of_nuts()["posterior"]), var_names=["z"])
    close(found.T, flat(of_nuts()))


def the_iterated() -> None:
    data = plain(of_nuts()["posterior"])
    values = [value for *_, value in az.xarray_var_iter(data, var_names=["z"], combined=True)]
    close(np.stack([value.ravel() for value in values], 1), flat(of_nuts()))


def the_selections() -> None:
    data = plain(of_nuts()["posterior"])
    found = [
        data[name].sel(choice) for name, choice, _ in az.xarray_sel_iter(data, var_names=["z"], skip_dims={*SAMPLE})
    ]
    close(np.stack([value.values.ravel() for value in found], 1), flat(of_nuts()))


# --- plots


def shown() -> Array:
    """Every coordinate that the current figure draws."""
    parts: list[Any] = [np.empty(0)]
    for axes in plt.gcf().axes:
        parts += [line.get_xydata() for line in axes.lines]
        for collection in axes.collections:
            parts.append(collection.get_offsets())
            parts += [path.vertices for path in collection.get_paths()]
        for patch in axes.patches:
            parts.append(patch.get_patch_transform().transform(patch.get_path().vertices))
            if isinstance(patch, Rectangle):
                parts.append([patch.get_height(), patch.get_width()])
    flat = np.concatenate([np.ma.getdata(part).astype(float).ravel() for part in parts])
    return np.unique(flat[np.isfinite(flat)])


def shows(expected: Callable[[], Any] | None, draw: Callable[[], object]) -> Place:
    """A plot that is drawn, and has all these numbers among its coordinates, to a thousandth of their range."""

    def check() -> None:
        plt.close("all")
        draw()
        plt.gcf().canvas.draw()
        coordinates = shown()
        assert len(coordinates) > 2
        if expected is not None:
            wanted = np.asarray(expected(), dtype=float).ravel()
            apart = np.abs(coordinates[:, None] - wanted).min(0)
            assert apart.max() <= 1e-3 * max(float(np.ptp(wanted)), 1e-6), wanted[apart.argmax()]

    return agrees(check)


def plot(name: str, *arguments: Any, **options: Any) -> Callable[[], object]:
    """A call of ArviZ's plot, arguments that are functions called first."""
    return lambda: getattr(az, name)(
        *(a() if callable(a) else a for a in arguments), **{n: o() if callable(o) else o for n, o in options.items()}
    )


# Two latents of one frame.
TWO: dict[str, Any] = {"var_names": ["z"], "coords": {"sequence": [0], "frame": [0]}}


def two(data: Any) -> Array:
    """Their draws, (chain, draw, 2)."""
    return z(data)[:, :, 0, 0, 0]


def ends(data: Any) -> Array:
    """Smallest and largest draw, where a density begins and ends."""
    values = two(data).reshape(-1, 2)
    return np.asarray([values.min(0), values.max(0)])


def means() -> Array:
    return two(of_nuts()).mean((0, 1))


def khats() -> Array:
    return np.asarray(az.loo(of_guide(), pointwise=True).pareto_k.values)


def column(position: int = 0) -> Array:
    return flat(of_guide())[:, position]


def energies() -> Array:
    values = np.asarray(of_nuts()["sample_stats"]["energy"].values)
    return np.ravel(values - values.mean())


def points() -> Array:
    """All draws that a scatter of two latents has."""
    return two(of_nuts()).reshape(-1, 2)


def bits(reduce: Callable[[Any], Any], name: str) -> Any:
    """Something of black and white films, in the groups that observe it, predict it and score its sequence."""
    data = of_bits()
    groups = {
        group: reduce(data[group]["x"]).to_dataset(name=name) for group in ("posterior_predictive", "observed_data")
    }
    scores = data["log_likelihood"]["x"].to_dataset(name=name)
    number = groups["observed_data"][name].copy(data=np.arange(6.0)).to_dataset(name="number")
    return made(posterior=plain(data["posterior"]), log_likelihood=scores, constant_data=number, **groups)


@cache
def lit() -> Any:
    """Whether the first pixel of a film is lit."""
    return bits(lambda x: x.isel(frame=0, channel=0, height=0, width=0, drop=True).astype(int), "lit")


@cache
def counted() -> Any:
    """How many pixels of a film are lit."""
    return bits(lambda x: x.sum(PIXELS).astype(int), "lit")


def the_line() -> None:
    """What is observed of each sequence over its number."""
    if LEGACY:
        az.plot_lm(y="lit", x="number", idata=lit(), num_samples=5)
    else:
        az.plot_lm(lit(), x="number", y="lit", plot_dim="sequence")


def the_separation() -> None:
    data = lit()
    az.plot_separation(
        y=data["observed_data"]["lit"].values, y_hat=data["posterior_predictive"]["lit"].mean(SAMPLE).values
    )


def the_uniform_ranks() -> None:
    """Ranks of simulation-based calibration are uniform: those of what the posterior is drawn for."""
    observed, predicted = brightness()
    from xarray import Dataset

    ranks = Dataset({"rank": (("chain", "draw"), (predicted < observed).mean(0)[None])})
    az.plot_ecdf_pit(made(prior_sbc=ranks))


ONE_SEQUENCE = {"sequence": 0}
NUTS = of_nuts
EXACT = of_guide
BRIGHT = per_sequence
PLOTS: dict[str, Place] = {
    "plot_autocorr": shows(None, plot("plot_autocorr", NUTS, **TWO)),
    "plot_compare": shows(
        lambda: [az.loo(of_guide())["elpd_loo" if LEGACY else "elpd"]] if LEGACY else [0.0],
        lambda: az.plot_compare(az.compare({"first": of_guide(), "second": of_guide(1)})),
    ),
    "plot_energy": shows(lambda: [energies().min(), energies().max()], plot("plot_energy", NUTS)),
    "plot_ess": shows(None, plot("plot_ess", NUTS, **TWO)),
    "plot_forest": shows(
        lambda: np.quantile(points(), [0.25, 0.75], axis=0) if LEGACY else means(),
        plot("plot_forest", NUTS, combined=True, **TWO),
    ),
    "plot_khat": shows(khats, plot("plot_khat", lambda: az.loo(of_guide(), pointwise=True))),
    "plot_loo_pit": shows(None, plot("plot_loo_pit", BRIGHT, **({"y": "brightness"} if LEGACY else {}))),
    "plot_mcse": shows(None, plot("plot_mcse", NUTS, **TWO)),
    "plot_pair": shows(points, plot("plot_pair", NUTS, **TWO)),
    "plot_parallel": shows(points if LEGACY else None, plot("plot_parallel", NUTS, **TWO)),
    "plot_rank": shows(None, plot("plot_rank", NUTS, **TWO)),
    "plot_trace": shows(points, plot("plot_trace", NUTS, **TWO)),
    "plot_dist": shows(
        lambda: [column().min(), column().max()],
        plot("plot_dist", lambda: column()) if LEGACY else plot("plot_dist", latent, var_names=["z"]),
    ),
    "plot_bf": shows(None, plot("plot_bf", latent, **{"var_name" if LEGACY else "var_names": "z"})),
    "plot_lm": shows(None, the_line),
    # 0.x alone
    "plot_bpv": shows(None, plot("plot_bpv", BRIGHT)),
    "plot_density": shows(
        lambda: narrowest(0.9)(column()), plot("plot_density", latent, var_names=["z"], hdi_prob=0.9)
    ),
    "plot_dist_comparison": shows(
        lambda: [column().min(), column().max()], plot("plot_dist_comparison", latent, var_names=["z"])
    ),
    "plot_dot": shows(None, plot("plot_dot", column)),
    "plot_ecdf": shows(None, plot("plot_ecdf", column)),
    "plot_elpd": shows(
        lambda: (
            az.loo(of_guide(), pointwise=True)["loo_i"].values - az.loo(of_guide(1), pointwise=True)["loo_i"].values
        ),
        lambda: az.plot_elpd({"first": of_guide(), "second": of_guide(1)}),
    ),
    "plot_hdi": shows(
        lambda: [narrowest(0.8)(x) for x in flat(of_guide())[:, :2].T],
        lambda: az.plot_hdi([0, 1], two(of_guide()), hdi_prob=0.8, smooth=False),
    ),
    "plot_kde": shows(lambda: [column().min(), column().max()], plot("plot_kde", column)),
    "plot_posterior": shows(lambda: [column().min(), column().max()], plot("plot_posterior", latent, var_names=["z"])),
    "plot_ppc": shows(
        lambda: [brightness()[0].min(), brightness()[0].max()],
        plot("plot_ppc", BRIGHT, num_pp_samples=5, random_seed=0, kind="cumulative"),
    ),
    "plot_separation": shows(None, the_separation),
    "plot_ts": shows(
        lambda: films()[0, :, 0, 0, 0],
        lambda: az.plot_ts(of_guide().sel(sequence=0, channel=0, height=0, width=0), y="x"),
    ),
    "plot_violin": shows(lambda: [column().min(), column().max()], plot("plot_violin", latent, var_names=["z"])),
    # 1.x alone
    "combine_plots": shows(
        points, lambda: az.combine_plots(of_nuts(), [(az.plot_trace, {}), (az.plot_dist, {})], **TWO)
    ),
    "plot_convergence_dist": shows(
        lambda: [
            numbers(az.rhat(of_nuts(), var_names=["z"])).min(),
            numbers(az.rhat(of_nuts(), var_names=["z"])).max(),
        ],
        plot("plot_convergence_dist", NUTS, var_names=["z"], diagnostics=["rhat_rank"]),
    ),
    "plot_dgof": shows(None, plot("plot_dgof", NUTS, **TWO)),
    "plot_dgof_dist": shows(None, plot("plot_dgof_dist", NUTS, **TWO)),
    "plot_ecdf_pit": shows(None, the_uniform_ranks),
    "plot_ess_evolution": shows(None, plot("plot_ess_evolution", NUTS, **TWO)),
    "plot_loo_interval": shows(lambda: brightness()[0], plot("plot_loo_interval", BRIGHT)),
    "plot_loo_pava": shows(None, lambda: az.plot_loo_pava(lit())),
    "plot_pair_focus": shows(
        points,
        lambda: az.plot_pair_focus(
            of_nuts(), "z", focus_var_coords={"sequence": 0, "frame": 0, "capsule": 0, "position": 0}, **TWO
        ),
    ),
    "plot_ppc_dist": shows(None, plot("plot_ppc_dist", BRIGHT, num_samples=5)),
    "plot_ppc_dist_pit": shows(None, plot("plot_ppc_dist_pit", BRIGHT, num_samples=5)),
    "plot_ppc_interval": shows(lambda: brightness()[0], plot("plot_ppc_interval", BRIGHT)),
    "plot_ppc_pava": shows(None, lambda: az.plot_ppc_pava(lit())),
    "plot_ppc_pava_residuals": shows(None, lambda: az.plot_ppc_pava_residuals(lit(), x_var="number")),
    "plot_ppc_pit": shows(None, plot("plot_ppc_pit", BRIGHT)),
    "plot_ppc_rootogram": shows(None, lambda: az.plot_ppc_rootogram(counted())),
    "plot_ppc_tstat": shows(lambda: [np.median(brightness()[0])], plot("plot_ppc_tstat", BRIGHT)),
    "plot_prior_posterior": shows(
        lambda: [column().min(), column().max()], plot("plot_prior_posterior", latent, var_names=["z"])
    ),
    "plot_psense_dist": shows(
        None, lambda: az.plot_psense_dist(of_guide(), prior_coords=ONE_SEQUENCE, likelihood_coords=ONE_SEQUENCE, **TWO)
    ),
    "plot_psense_quantities": shows(
        None,
        lambda: az.plot_psense_quantities(of_guide(), prior_coords=ONE_SEQUENCE, likelihood_coords=ONE_SEQUENCE, **TWO),
    ),
    "plot_rank_dist": shows(lambda: ends(of_nuts()), plot("plot_rank_dist", NUTS, **TWO)),
    "plot_ridge": shows(lambda: ends(of_nuts()), plot("plot_ridge", NUTS, **TWO)),
    "plot_trace_dist": shows(points, plot("plot_trace_dist", NUTS, **TWO)),
    "add_lines": shows(lambda: [0.25], lambda: az.add_lines(az.plot_dist(latent(), var_names=["z"]), {"z": 0.25})),
    "add_bands": shows(
        lambda: [-0.25, 0.25], lambda: az.add_bands(az.plot_dist(latent(), var_names=["z"]), {"z": [(-0.25, 0.25)]})
    ),
}

NUMBERS: dict[str, Place] = {
    **{
        name: agrees(check)
        for name, check in {
            "summary": the_summary,
            "hdi": the_hdi,
            "ess": the_ess,
            "rhat": the_rhat,
            "rhat_nested": the_nested_rhat,
            "mcse": the_error_of_a_mean,
            "bfmi": the_bfmi,
            "diagnose": the_diagnosis,
            "loo": the_loo,
            "compare": the_comparison,
            "waic": the_waic,
            "psislw": the_smoothed_weights,
            "loo_pit": the_loo_pit,
            "loo_expectations": the_expectations,
            "loo_metrics": the_loo_metrics,
            "metrics": the_metrics,
            "loo_score": the_loo_score,
            "loo_influence": the_loo_influence,
            "loo_i": the_loo_of_one,
            "loo_subsample": the_loo_of_some,
            "update_subsample": the_updated_loo,
            "loo_approximate_posterior": the_corrected_loo,
            "loo_r2": the_loo_r2,
            "psens": the_sensitivities,
            "psense": the_sensitivities,
            "psense_summary": the_table_of_sensitivities,
            "bayes_factor": the_bayes_factor,
            "r2_score": the_explained_variance,
            "r2_samples": the_explained_variance,
            "residual_r2": the_residual_r2,
            "weight_predictions": the_weighted_predictions,
            "extract": the_extract,
            "extract_dataset": the_former_extract,
            "kde": the_density,
            "histogram": the_histogram,
            "histogram2d": the_plane,
            "kde2d": the_density_of_two,
            "ecdf": the_step_function,
            "qds": the_dots,
            "mode": the_mode,
            "ci_in_rope": the_rope,
            "kl_divergence": the_divergence,
            "wasserstein": the_divergence,
            "thin": the_thinned,
            "get_unconstrained_samples": the_unconstrained,
            "autocorr": the_autocorrelation,
            "autocov": the_autocorrelation,
            "apply_test_function": the_applied,
            "wrap_xarray_ufunc": the_ufuncs,
            "make_ufunc": the_ufuncs,
            "get_log_likelihood": the_scores,
            "concat": the_concatenated,
            "to_json": the_json,
            "from_json": the_json,
            "to_netcdf": the_file,
            "from_netcdf": the_file,
            "to_datatree": the_tree,
            "from_datatree": the_tree,
            "convert_to_inference_data": the_converted,
            "convert_to_datatree": the_converted,
            "convert_to_dataset": the_data_set,
            "dataset_to_dataframe": the_table,
            "dataset_to_dataarray": the_stacked,
            "explode_dataset_dims": the_exploded,
            "references_to_dataset": the_references,
            "xarray_to_ndarray": the_array,
            "xarray_var_iter": the_iterated,
            "xarray_sel_iter": the_selections,
        }.items()
    },
    "mean": summarized("mean", np.mean),
    "median": summarized("median", np.median),
    "std": summarized("std", lambda x: np.std(x, ddof=1)),
    "var": summarized("var", lambda x: np.var(x, ddof=1)),
    "iqr": summarized("iqr", lambda x: np.subtract(*np.quantile(x, [0.75, 0.25]))),
    "mad": summarized("mad", lambda x: np.median(np.abs(x - np.median(x)))),
    "eti": agrees(
        lambda: close(
            numbers(az.eti(of_guide(), var_names="z", prob=0.8)).reshape(-1, 2),
            np.quantile(flat(of_guide()), [0.1, 0.9], axis=0).T,
        )
    ),
}

# Names that are not of a posterior's groups, by what they are.
WITHOUT: dict[str, tuple[str, ...]] = {
    "a class of what other functions return, whose numbers are judged there": (
        "ELPDData",
        "ELPDDataLFO",
        "ELPDDataLOO",
        "ELPDDataLOOKFold",
        "ELPDDataLOOSubsample",
        "InferenceData",
        "PlotCollection",
        "PlotMatrix",
    ),
    "a module, an accessor or its classes, whose functions are placed under their own names": (
        "AzStatsDaAccessor",
        "AzStatsDsAccessor",
        "AzStatsDtAccessor",
        "accessors",
        "base",
        "data",
        "labels",
        "manipulation",
        "plot_collection",
        "plot_matrix",
        "plots",
        "preview",
        "rcparams",
        "sampling_diagnostics",
        "sel_utils",
        "stats",
        "style",
        "survival",
        "testing",
        "utils",
        "validate",
        "visualization",
        "visuals",
        "wrappers",
        "loo_helper",
    ),
    "a setting of ArviZ or of its plots, which reads no data": (
        "CoordSpec",
        "Dask",
        "DimSpec",
        "MigrationWarning",
        "Numba",
        "citations",
        "clear_data_home",
        "get_data_home",
        "get_function",
        "info",
        "interactive_backend",
        "list_datasets",
        "load_arviz_data",
        "make_attrs",
        "rcParams",
        "rc_context",
    ),
    "it draws by Bokeh, or lays a Bokeh figure out, which this project does not need": (
        "ColumnDataSource",
        "create_layout",
        "output_file",
        "output_notebook",
        "show_layout",
        "to_cds",
    ),
    "it reads what another sampler returns, where to_arviz reads what this project returns": (
        "MCMCAdapter",
        "NumPyroInferenceAdapter",
        "SVIAdapter",
        "from_beanmachine",
        "from_cmdstan",
        "from_cmdstanpy",
        "from_emcee",
        "from_numpyro",
        "from_numpyro_svi",
        "from_pyjags",
        "from_pystan",
    ),
    "it reads an MCMC of Pyro's own, whose draws have no names for their dimensions: nuts and to_arviz give those": (
        "from_pyro",
    ),
    "it makes data from plain arrays, as to_arviz does with names for the dimensions of a film": (
        "dict_to_dataset",
        "from_dict",
        "from_pytree",
        "generate_dims_coords",
        "ndarray_to_dataarray",
        "numpy_to_data_array",
        "pytree_to_dataset",
    ),
    "it needs the package zarr, and that of a certain version, which this project does not install": (
        "from_zarr",
        "to_zarr",
    ),
    "it fits the model again without some observations; each sequence has latents of its own, and is held out by a "
    "split of the data, not by a refit": (
        "CmdStanPySamplingWrapper",
        "PyMCSamplingWrapper",
        "PyStan2SamplingWrapper",
        "PyStanSamplingWrapper",
        "SamplingWrapper",
        "lfo_cv",
        "loo_kfold",
        "reloo",
    ),
    "it moves draws by the posterior of parameters that observations share; the latents of one sequence see no other": (
        "loo_moment_match",
    ),
    "it takes times until an event, some of them censored, and no film has one": (
        "generate_survival_curves",
        "kaplan_meier",
        "plot_ppc_censored",
    ),
    "it takes the mean and scale of a regression's outcome, which a film's decoder gives per pixel: az.loo_r2 and "
    "az.residual_r2 judge predictions": ("bayesian_r2",),
    "it smooths integers for a plot and is of no use by itself": ("smooth_data",),
    "it makes hexagons for a plot of two variables, as az.histogram2d makes squares": ("hexbin",),
}
PLACES = NUMBERS | PLOTS | {name: no_sense(reason) for reason, names in WITHOUT.items() for name in names}
PUBLIC = sorted(name for name in dir(az) if not name.startswith("_"))


def test_every_public_name_is_placed() -> None:
    missing = [name for name in PUBLIC if name not in PLACES]
    assert not missing, f"say where these stand: {', '.join(missing)}"


@pytest.fixture(scope="module", autouse=True)
def quiet_plots() -> Iterator[None]:
    before = mpl.get_backend()
    plt.switch_backend("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small samples, and of ArviZ among themselves
        yield
    plt.close("all")
    plt.switch_backend(before)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name in PLACES])
def test_where_it_stands(name: str) -> None:
    PLACES[name].check()
