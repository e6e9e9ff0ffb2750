"""Two levels: the mean bound of many particles and its error, against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_tvae.inference.likelihood import summarize
from pyro_tvae.inference.two_levels import GROWTH, MeanBound, TwoLevels

N, K, WIDTH = 320, 50, 4.0


class Weigher:
    """Log-weights ``a_i + s_i · Normal(0, 1)`` of sequences drawn anew, some with wider weights than others."""

    def __init__(self, seed: int, spread: float) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.place = spread * torch.randn(N, generator=self.random, dtype=torch.float64)
        self.width = WIDTH * torch.rand(N, generator=self.random, dtype=torch.float64)

    def all(self, k: int) -> Tensor:
        return self.place + self.width * torch.randn(k, N, generator=self.random, dtype=torch.float64)

    def mean(self, levels: TwoLevels) -> MeanBound:
        bounds = levels.bounds(self.all(levels.first))
        for places in levels.rounds(bounds):
            bounds[places] = levels.bounds(self.all(K)[:, places])
        return levels.mean(bounds)


@pytest.mark.parametrize("spread", [3.0, 0.3])
def test_the_mean_and_its_error_are_those_of_all_particles_for_all_sequences(spread: float) -> None:
    """Over 200 repetitions: the mean within 4 of its standard errors of a brute-force one (1 in 16,000), and the error
    that is told within 25 % of the spread that there is, of which 5 % is a standard error."""
    truth = torch.stack([bound(Weigher(10_000 + seed, spread).all(K)).mean() for seed in range(400)])
    of_few = torch.stack([bound(Weigher(10_000 + seed, spread).all(5)).mean() for seed in range(400)])
    told, n_drawn = [], []
    for seed in range(200):
        levels = TwoLevels(N, K, seed=seed)
        n_drawn.append(int(levels.drawn.sum()))
        told.append(Weigher(seed, spread).mean(levels))
    iwae, errors = (torch.tensor([getattr(one, name) for one in told]) for name in ("iwae", "iwae_error"))
    chance = math.hypot(float(iwae.std()) / 200**0.5, float(truth.std()) / 20)
    assert abs(float(iwae.mean() - truth.mean())) < 4 * chance
    assert float(truth.mean() - of_few.mean()) > 8 * chance  # fewer particles alone would be told from it
    assert float(errors.mean()) == pytest.approx(float(iwae.std()), rel=0.25)
    assert float(iwae.std()) < (GROWTH + 0.2) * float(truth.std())
    assert {*n_drawn} == {32}
    more = sum(one.n_drawn for one in told) / 200
    assert more < 40 if spread > 1 else 40 < more < N  # where the gain is most of the error, more are drawn


def test_an_error_that_is_small_enough_costs_no_more_sequences() -> None:
    """The error that is told within 25 % of the spread over 200 repetitions, of which 5 % is a standard error."""
    told = [Weigher(seed, 0.3).mean(TwoLevels(N, K, seed=seed, tolerance=0.16)) for seed in range(200)]
    strict = [Weigher(seed, 0.3).mean(TwoLevels(N, K, seed=seed)) for seed in range(200)]
    iwae, errors = (torch.tensor([getattr(one, name) for one in told]) for name in ("iwae", "iwae_error"))
    assert sum(one.n_drawn for one in told) < 0.7 * sum(one.n_drawn for one in strict)
    assert float(iwae.std()) < 0.16 * 1.2
    assert float(errors.mean()) == pytest.approx(float(iwae.std()), rel=0.25)


@pytest.mark.parametrize(("n", "k"), [(30, 50), (320, 8), (1, 20)])
def test_few_sequences_or_particles_are_weighed_as_they_always_were(n: int, k: int) -> None:
    levels, weights = TwoLevels(n, k, seed=0), torch.randn(k, n, dtype=torch.float64)
    assert levels.first == k
    assert [*levels.rounds(levels.bounds(weights))] == []
    mean, estimate = levels.mean(levels.bounds(weights)), summarize(weights, 1)
    assert mean.iwae == pytest.approx(estimate.per_frame)
    assert mean.iwae_error == pytest.approx(estimate.per_frame_error, nan_ok=True)
    assert mean.elbo == pytest.approx(float(estimate.elbo.mean()))
    assert mean.ess == pytest.approx(float(estimate.ess.median()))


def bound(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))
