"""Pareto k: how heavy the tail of importance weights is, by a generalised Pareto fitted to the largest of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["RELIABLE_PARETO_K", "pareto_shape"]

RELIABLE_PARETO_K = 0.7  # above it importance weights have no usable variance (Vehtari et al. 2024)

SHORTEST_TAIL = 5  # a distribution with two parameters is not fitted to fewer
BLOCK = 2**21  # numbers in one pass: (grid, tail, columns)
# The smallest power that exp cannot represent is a little above 709; from here on 1 + exp(y) is exp(y).
HUGE = 700.0


def pareto_shape(largest: Tensor, resolution: float = 0.0) -> Tensor:
    """Shape k of the generalised Pareto distribution of each column's tail: (M + 1, …) -> (…), lower is better.

    Of the M + 1 largest of K log-weights, ``M = ceil(min(K / 5, 3 √K))``, the last is the cutoff, and the tail lies
    strictly above it (`Vehtari et al. 2024, Pareto smoothed importance sampling <https://arxiv.org/abs/1507.02646>`__).
    With the n excesses ``x_1 ≤ … ≤ x_n`` of the weights over the cutoff, and ``x*`` the ``floor(n / 4 + 1 / 2)``-th of
    them::

        θ_j = 1 / x_n + (1 − √(m / (j − 1/2))) / (3 x*),   j = 1 … m,   m = 30 + floor(√n)
        k(θ) = mean log(1 − θ x),   ℓ(θ) = n (log(−θ / k(θ)) − k(θ) − 1)
        θ^ = Σ_j θ_j exp ℓ(θ_j) / Σ_j exp ℓ(θ_j),   k^ = (n k(θ^) + 10 · 0.5) / (n + 10)

    (`Zhang & Stephens 2009, A new and efficient estimation method for the generalized Pareto distribution
    <https://doi.org/10.1198/tech.2009.08017>`__; k^ is pulled towards 0.5 as by ten observations, after Vehtari et
    al.). Excesses are taken as logarithms, so that weights of any range, thousands of nats too, have the k that exact
    arithmetic gives them.

    Where nothing can be fitted: nan without a cutoff (K = 1) or without a positive finite weight, 0 where the M + 1
    largest are equal (weights that are bounded, and reach their bound), otherwise inf where fewer than five lie above
    the cutoff (K ≤ 20, or one weight that carries all).

    Args:
        largest: log-weights, largest first; −inf is a weight of 0.
        resolution: difference of two log-weights below which it is rounding, and they are equal; nats.

    Example:
        >>> tail = torch.tensor([[4.0, 0.0, 7.0], [3.0, 0.0, -torch.inf], [2.0, 0.0, -torch.inf]])
        >>> pareto_shape(tail)
        tensor([inf, 0., inf], dtype=torch.float64)
    """
    columns = largest.detach().double().flatten(1)
    if len(columns) < 2:
        return columns.new_full(largest.shape[1:], math.nan)
    grid = 30 + math.isqrt(len(columns) - 1)
    width = max(1, BLOCK // (grid * len(columns)))
    return torch.cat([_shape(part, resolution) for part in columns.split(width, dim=1)]).reshape(largest.shape[1:])


def _shape(largest: Tensor, resolution: float) -> Tensor:
    top, cutoff = largest[0], largest[-1]
    tail = largest[:-1] - top
    above = largest[:-1] > cutoff
    n = above.sum(0)
    # Largest first, so that those above the cutoff come first; the others are weights of 0 that count nowhere.
    excess = torch.where(above, tail + (-torch.expm1(cutoff - largest[:-1])).log(), -torch.inf)
    quartile = (n - (n / 4 + 0.5).floor().long()).clamp(min=0, max=len(tail) - 1)
    # In units of x*: log y may be thousands, but 1 / y of the largest is at most 1.
    log_y = torch.where(above, excess - excess.gather(0, quartile[None]), -torch.inf)

    m = 30 + n.double().sqrt().floor()
    j = torch.arange(1, int(m.max()) + 1, dtype=torch.float64)[:, None] - 0.5
    theta = (-log_y[0]).exp() + (1 - (m / j).sqrt()) / 3
    k = _mean_log(theta, log_y, n)
    # At θ = 0 the distribution is the exponential one: −θ / k(θ) is 1 / mean y.
    rate = torch.where(k == 0, n / log_y.clamp(max=HUGE).exp().sum(0), -theta / k)
    evidence = torch.where(j < m, n * (rate.log() - k - 1), -torch.inf)
    weight = (evidence - evidence.amax(0)).exp()
    fitted = _mean_log((theta * weight).sum(0, keepdim=True) / weight.sum(0), log_y, n)[0]

    shape = (n * fitted + 5) / (n + 10)
    shape = torch.where(n < SHORTEST_TAIL, torch.inf, shape)
    shape = torch.where((top == cutoff) | (top - cutoff <= resolution), 0.0, shape)
    return torch.where(top.isfinite(), shape, torch.nan)


def _mean_log(theta: Tensor, log_y: Tensor, n: Tensor) -> Tensor:
    """``k(θ) = mean log(1 − θ y)`` for a grid of θ: (m, N), (M, N) -> (m, N)."""
    minus = -theta[:, None]
    terms = torch.log1p(minus * log_y.clamp(max=HUGE).exp())
    if bool((log_y[0] > HUGE).any()):  # then 1 / y of the largest is nothing, and every θ is negative
        terms = torch.where(log_y > HUGE, minus.log() + log_y, terms)
    return terms.sum(1) / n
