"""Predictive checks: silent at the rate that they say where the model is right, loud where a misfit was planted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_tvae import TVAE, Bernoulli, BinarizedBernoulli, CapsuleRoll, ContinuousBernoulli, Likelihood, Normal
from pyro_tvae.inference import frame_statistics, predictive_check, simulate
from pyro_tvae.inference.predictive_checks import STATISTICS, PredictiveCheck
from pyro_tvae.inference.simulation_based_calibration import Calibration

LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": Bernoulli,
    "binarized": BinarizedBernoulli,
    "continuous": ContinuousBernoulli,
    "normal": lambda: Normal(0.3),
}
N = 200  # sequences of 4 frames


def born(likelihood: str = "bernoulli") -> TVAE:
    return TVAE((1, 5, 6), 4, 1, 4, CapsuleRoll(4, 0), likelihood=LIKELIHOODS[likelihood](), mu=1.0)


def last(model: TVAE) -> Any:
    """The decoder's last layer."""
    return [module for module in model.decoder.modules() if isinstance(module, torch.nn.Linear)][-1]


def drawn(model: TVAE) -> tuple[Tensor, Tensor]:
    """Sequences and the t that made them, which is an exact draw from their posterior."""
    x, latents = simulate(model, N)
    return x, model.compose(latents).detach()


def test_statistics_are_those_of_a_frame_drawn_by_hand() -> None:
    x = torch.zeros(1, 2, 1, 3, 5)
    x[0, 0, 0, 0, 4], x[0, 1, 0, 1, 2] = 1.0, 0.5
    found = frame_statistics(x)
    assert {*found} | {"log_likelihood"} == {*STATISTICS}
    assert found["ink"].tolist() == [[pytest.approx(1 / 15), pytest.approx(0.5 / 15)]]
    assert found["centroid_x"].tolist() == [[2, 0]]
    assert found["centroid_y"].tolist() == [[-1, 0]]
    assert found["change"].tolist() == [[pytest.approx(1.25 / 15)]]
    assert torch.equal(frame_statistics(torch.zeros(1, 2, 1, 3, 5))["centroid_x"], torch.zeros(1, 2))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_data_of_the_model_pass_at_the_nominal_rate(likelihood: str) -> None:
    """Each statistic: 5 % outside, a uniform histogram, z of variance 1; one false alarm in 10,000 each."""
    model = born(likelihood)
    x, t = drawn(model)
    result = predictive_check(model, t, x)
    for name in STATISTICS:
        outside, n = result.outside(name)
        low, high = stats.binom.interval(1 - 1e-4, n, 0.05)
        assert low <= outside <= high, name
        assert result.ranks.p_value(name) > 1e-4, name
    assert n == 4 * N
    z = result.scores["ink"]
    assert abs(float(z.mean())) < 4 / math.sqrt(4 * N)
    assert float(z.var()) == pytest.approx(1, abs=0.25)  # beyond five standard errors, the replicates' noise included


def blurred(x: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(x.flatten(0, 1), 3, 1, 1).reshape(x.shape)


MISFITS: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "brighter": ("bernoulli", lambda x: (x + 0.3).clamp(max=1), "ink"),
    "moved across": ("bernoulli", lambda x: x.roll(1, -1), "centroid_x"),
    "moved down": ("normal", lambda x: x.roll(1, -2), "centroid_y"),
    "the same frame twice": ("normal", lambda x: x[:, [0, 0, 2, 2]], "change"),
    "less noise": ("normal", blurred, "log_likelihood"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_planted_misfit_is_seen_by_its_statistic(misfit: str) -> None:
    likelihood, plant, name = MISFITS[misfit]
    model = born(likelihood)
    with torch.no_grad():  # bright at the lower right
        last(model).bias.copy_((torch.linspace(-2, 2, 5)[:, None] + torch.linspace(-2, 2, 6)).flatten())
    x, t = drawn(model)
    result = predictive_check(model, t, plant(x))
    outside, n = result.outside(name)
    assert outside > 2 * stats.binom.ppf(1 - 1e-4, n, 0.05)
    assert result.ranks.p_value(name) < 1e-6
    assert not result.ranks.uniform()


def test_gray_frames_under_a_bernoulli_likelihood_are_no_misfit() -> None:
    """Frames as gray as their probabilities: pooled densities of noisy replicates had called these wrong."""
    model = born()
    _, t = drawn(model)
    gray = model.decode(t).mean.detach()
    result = predictive_check(model, t, gray)
    for name in STATISTICS:
        outside, n = result.outside(name)
        assert outside <= stats.binom.ppf(1 - 1e-4, n, 0.05), name
        assert result.ranks.p_value(name) > 1e-4, name


def test_many_replicates_cost_no_memory_and_change_no_shape() -> None:
    model = born()
    x, t = drawn(model)
    small = predictive_check(model, t[:4], x[:4], 19, chunk_bytes=1)
    assert small.scores["change"].shape == (4, 3)
    assert small.ranks.ranks["change"].shape == (8,)  # pairs of frames that share none
    assert torch.equal(small.scores["ink"], predictive_check(model, t[:4], x[:4], 19, chunk_bytes=1).scores["ink"])


def test_a_statistic_without_spread_scores_nothing_or_everything() -> None:
    model = born()
    x, t = drawn(model)
    with torch.no_grad():
        last(model).weight.zero_()
        last(model).bias.fill_(-200.0)  # every replicate is black
    assert predictive_check(model, t, x * 0, 19).scores["ink"].eq(0).all()
    assert predictive_check(model, t, x * 0 + 1, 19).scores["ink"].eq(math.inf).all()


@pytest.mark.parametrize(("n_replicates", "each"), [(39, 1), (59, 1), (99, 2), (199, 5)])
def test_tails_hold_at_most_the_probability_that_was_asked_for(n_replicates: int, each: int) -> None:
    """Of every possible rank once: both tails, whole ranks, no more than 5 % of R + 1."""
    ranks = Calibration({"ink": torch.arange(n_replicates + 1)}, n_replicates)
    assert PredictiveCheck({}, ranks).outside("ink") == (2 * each, n_replicates + 1)
    assert 2 * each <= 0.05 * (n_replicates + 1) < 2 * (each + 1)


def test_too_few_replicates_have_no_tails_and_codes_of_other_sequences_are_refused() -> None:
    ranks = Calibration({"ink": torch.arange(20)}, 19)
    with pytest.raises(ValueError, match=r"level is 0.05, and 19 replicates have no tails"):
        PredictiveCheck({}, ranks).outside("ink")
    assert PredictiveCheck({}, ranks).outside("ink", 0.1) == (2, 20)
    model = born()
    x, t = drawn(model)
    with pytest.raises(ValueError, match=r"t has shape \(1, .*expected one draw for each sequence"):
        predictive_check(model, t[:1], x, 19)
