"""Gamma energies: the law of x is that of the paper's, by samples and by log p(x), and α is what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    EnergyPrior,
    GammaEnergy,
    GaussianEnergy,
    MeanFieldGuide,
    Normal,
    Stationary,
    Topography,
    Torus,
)
from pyro_tvae.inference import Annealing, annealed_importance, fit, nuts, to_arviz

FRAME = (1, 2, 3)
FALSE_ALARM = 1e-4


def small(topography: Topography, **options: object) -> TVAE:
    return TVAE(FRAME, 4, 2, 4, topography, **options)  # type: ignore[arg-type]


def prior_draws(model: TVAE, n: int) -> dict[str, Tensor]:
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(n_sequences=n)
    return {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}


TOPOGRAPHIES: dict[str, Callable[[], Topography]] = {
    "roll": lambda: CapsuleRoll(3, 1),
    "roll, truncated": lambda: CapsuleRoll(4, 0, boundary="truncate"),
    "stationary": lambda: Stationary((3, 2)),
    "torus": lambda: Torus((2, 2), (2, 2)),
}
STATISTICS: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "t at one place": lambda d: d["t"][:, 2, 1, 3],
    "sum of t over a frame": lambda d: d["t"][:, 1].sum((-1, -2)),
    "product of neighbours in time": lambda d: d["t"][:, 0, 0, 0] * d["t"][:, 1, 0, 1],
    "product at one position": lambda d: d["t"][:, 0, 0, 0] * d["t"][:, 1, 0, 0],
    "a pixel": lambda d: d["x"][:, 3, 0, 1, 2],
    "mean pixel of a frame": lambda d: d["x"][:, 0].mean((-1, -2, -3)),
}


@pytest.mark.parametrize("build", TOPOGRAPHIES.values(), ids=TOPOGRAPHIES)
def test_gamma_energies_and_gaussian_ones_have_the_same_law(build: Callable[[], Topography]) -> None:
    one = small(build(), prior=GaussianEnergy(), mu=1.0, likelihood=Normal(0.1))
    two = small(build(), prior=GammaEnergy(), mu=1.0, likelihood=Normal(0.1))
    two.decoder.load_state_dict(one.decoder.state_dict())
    three = small(build(), prior=GammaEnergy(1.0), mu=1.0, likelihood=Normal(0.1))
    three.decoder.load_state_dict(one.decoder.state_dict())
    draws = [prior_draws(model, 4000) for model in (one, two, three)]
    told = 0
    for name, statistic in STATISTICS.items():
        a, b, c = (statistic(d).numpy() for d in draws)
        # 24 tests over four topographies at 1 in 10,000 each: one false alarm in 400 seeds.
        assert stats.ks_2samp(a, b).pvalue > FALSE_ALARM, name
        told += stats.ks_2samp(a, c).pvalue < FALSE_ALARM
    assert told >= 2  # control: another α is noticed


@pytest.mark.parametrize("alpha", [0.5, 0.8, 2.0])
def test_degrees_of_freedom_are_real_numbers(alpha: float) -> None:
    """With μ = 0 and ν ones in a row of W, sqrt(2αν) t is Student-t with 2αν degrees of freedom."""
    model = TVAE((1, 1, 1), 4, 1, 5, CapsuleRoll(3, 1), prior=GammaEnergy(alpha), mu=0.0, eps=0.0)
    df = 2 * alpha * 7
    draws = np.sqrt(df) * prior_draws(model, 6000)["t"][:, -1, 0, -1].double().numpy()
    assert stats.kstest(draws, stats.t(df).cdf).pvalue > FALSE_ALARM
    assert stats.kstest(1.15 * draws, stats.t(df).cdf).pvalue < FALSE_ALARM


def test_log_p_is_that_of_gaussian_energies() -> None:
    """Annealed from two guides over two spaces, with the same weights: one log p(x)."""

    def build(prior: EnergyPrior) -> TVAE:
        return TVAE(FRAME, 4, 1, 4, CapsuleRoll(3, 1), prior=prior, mu=2.0, likelihood=Normal(0.5)).double()

    models = [build(GaussianEnergy()), build(GammaEnergy()), build(GammaEnergy(2.0))]
    with torch.no_grad():
        for parameter in models[0].decoder.parameters():
            parameter.mul_(2.0)
    for model in models[1:]:
        model.decoder.load_state_dict(models[0].decoder.state_dict())
    x = models[0](n_sequences=5).detach()
    found = []
    for model in models:
        guide = MeanFieldGuide(model, initial_log_variance=-1.0).double()
        # A copy, since a fit moves the decoder too.
        fit(copy.deepcopy(model), guide, x, max_epochs=200, warmup_steps=0, progress=False)
        found.append(annealed_importance(model, guide, x, annealing=Annealing(32, 150, 4), seed=1))
    gaussian, gamma, other = found
    error = (gaussian.standard_error.square() + gamma.standard_error.square()).sqrt()
    assert (error < 0.4).all()
    # Five standard errors (delta method over 32 chains) and 0.05 nats for the bias that is left, on five sequences: a
    # false alarm once in 100,000 seeds where the errors are Normal.
    assert ((gaussian.log_p - gamma.log_p).abs() < 5 * error + 0.05).all()
    # Control: another α changes log p by more.
    assert ((gaussian.log_p - other.log_p).abs() > 5 * error + 0.05).any()


def test_log_p_by_sampling_the_prior_is_that_of_gaussian_energies() -> None:
    """The same from draws of the prior alone: where few pixels are seen, its error is a hundredth of a nat."""

    def log_p(prior: EnergyPrior) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        model = TVAE((1, 1, 2), 2, 1, 2, CapsuleRoll(2, 1), prior=prior, mu=1.0, likelihood=Normal(0.5))
        model.decoder.load_state_dict(weights)
        found = []
        for _ in range(20):
            t = prior_draws(model, 50_000)["t"]
            distribution = model.decode(t)
            found.append(torch.stack([distribution.log_prob(frames).sum(-1) for frames in x]))
        every = torch.cat(found, dim=1).double()
        best = every.amax(1, keepdim=True)
        terms = (every - best).exp()
        error = terms.std(1) / terms.mean(1) / terms.shape[1] ** 0.5
        return terms.mean(1).log() + best.squeeze(1), error

    torch.manual_seed(0)
    model = TVAE((1, 1, 2), 2, 1, 2, CapsuleRoll(2, 1), mu=1.0, likelihood=Normal(0.5))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2.0)
    weights, x = model.decoder.state_dict(), model(n_sequences=4).detach()
    (one, e1), (two, e2), (three, e3) = (log_p(p) for p in (GaussianEnergy(), GammaEnergy(), GammaEnergy(0.6)))
    assert max(e1.max(), e2.max()) < 0.01
    # Five standard errors, on four sequences: a false alarm once in 400,000 seeds.
    assert ((one - two).abs() < 5 * (e1**2 + e2**2).sqrt()).all()
    # Control: an α that is off by a tenth is noticed.
    assert ((one - three).abs() > 5 * (e1**2 + e3**2).sqrt()).any()


def test_the_concentration_is_learned_where_asked() -> None:
    prior = GammaEnergy(0.7, learned=True)
    model = small(CapsuleRoll(3, 1), prior=prior)
    assert float(prior.concentration.detach()) == pytest.approx(0.7)
    e = model.prior_distributions()["e"].sample(torch.Size([5]))
    model.prior_distributions()["e"].log_prob(e).sum().backward()
    assert prior.raw.grad is not None
    assert prior.raw.grad != 0
    assert not list(GammaEnergy().parameters())
    with pytest.raises(ValueError, match="concentration is 0; expected a number above 0"):
        GammaEnergy(0)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_unseen_energies_have_the_log_normal_nearest_the_prior(alpha: float) -> None:
    model = small(CapsuleRoll(3, 1), prior=GammaEnergy(alpha))
    q = MeanFieldGuide(model).posterior(torch.rand(2, 4, *FRAME), torch.zeros(4, dtype=torch.bool))["e"]
    loc, scale = (value.flatten()[0].double() for value in (q.loc, q.scale))
    p = dist.Gamma(torch.tensor(alpha).double(), torch.tensor(0.5).double())
    best = kl_divergence(dist.LogNormal(loc, scale), p)
    for step in (-1e-2, 1e-2):
        assert kl_divergence(dist.LogNormal(loc + step, scale), p) > best
        assert kl_divergence(dist.LogNormal(loc, scale + step), p) > best
    if alpha == 0.5:
        assert float(best) == pytest.approx(0.1535, abs=1e-4)  # the price that MeanFieldGuide's text names


def test_gamma_energies_go_to_arviz_and_nuts() -> None:
    model = small(CapsuleRoll(3, 1), prior=GammaEnergy())
    guide = MeanFieldGuide(model)
    x = torch.rand(2, 4, *FRAME)
    data = to_arviz(model, guide, x, draws=3)
    assert data.posterior["e"].dims == ("chain", "draw", "sequence", "frame", "capsule", "position")
    assert data.prior["e"].dims == ("chain", "draw", "frame", "capsule", "position")
    result = nuts(model, x, init=guide, num_samples=4, warmup_steps=4, num_chains=1, max_tree_depth=2)
    assert (result.draws["e"] > 0).all()
