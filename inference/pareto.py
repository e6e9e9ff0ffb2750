"""Pareto k and Pareto smoothing: a generalised Pareto fitted to the largest of importance weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RELIABLE_PARETO_K", "UnreliableWeights", "pareto_shape", "pareto_smooth"]

RELIABLE_PARETO_K = 0.7  # above it importance weights have no usable variance (Vehtari et al. 2024)

SHORTEST_TAIL = 5  # a distribution with two parameters is not fitted to fewer
BLOCK = 2**21  # numbers in one pass: (grid, tail, columns)
# The smallest power that exp cannot represent is a little above 709; from here on 1 + exp(y) is exp(y).
HUGE = 700.0


class UnreliableWeights(UserWarning):
    """Importance weights were used although their Pareto k says that they cannot be trusted."""


def tail_length(num_particles: int) -> int:
    """``M = ceil(min(K / 5, 3 √K))``, how many of K weights are the tail."""
    return math.ceil(min(num_particles / 5, 3 * math.sqrt(num_particles)))


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
    return torch.cat([_fit(part, resolution).shape for part in _blocks(columns)]).reshape(largest.shape[1:])


def pareto_smooth(log_w: Tensor, resolution: float = 0.0) -> tuple[Tensor, Tensor]:
    """Log-weights (K, B) with those of the tail replaced by what their fitted distribution expects, and k (B,).

    The i-th smallest of the n weights above the cutoff u becomes ``u + σ ((1 − p)^(−k) − 1) / k`` with
    ``p = (i − 1/2) / n`` and ``σ = −k(θ^) / θ^``, and none becomes larger than the largest was (`Vehtari et al. 2024
    <https://arxiv.org/abs/1507.02646>`__). Weights whose tail is not fitted, see :func:`pareto_shape`, stay as they
    are.

    Args:
        log_w: log importance weights, in any order.
        resolution: as in :func:`pareto_shape`.

    Returns:
        In double precision, on the CPU, in the given order and not normalised.

    Example:
        >>> smoothed, k = pareto_smooth(torch.randn(1000, 2))
        >>> smoothed.shape, k.shape
        (torch.Size([1000, 2]), torch.Size([2]))
    """
    smoothed = log_w.detach().cpu().double()
    largest, place = smoothed.topk(min(tail_length(len(log_w)) + 1, len(log_w)), dim=0)
    if len(largest) < 2:
        return smoothed, smoothed.new_full(smoothed.shape[1:], math.nan)
    fits = [_fit(part, resolution) for part in _blocks(largest)]
    tail = torch.cat([_expected(part, fit) for part, fit in zip(_blocks(largest), fits, strict=True)], 1)
    return smoothed.scatter(0, place[:-1], tail), torch.cat([fit.shape for fit in fits])


class _Fit(NamedTuple):
    """Of each column: k, pulled towards 0.5 or the word for what was not fitted; log σ; whether a weight is above the
    cutoff, (M, N), and how many are.
    """

    shape: Tensor
    log_scale: Tensor
    above: Tensor
    n: Tensor


def _blocks(largest: Tensor) -> tuple[Tensor, ...]:
    grid = 30 + math.isqrt(len(largest) - 1)
    return largest.split(max(1, BLOCK // (grid * len(largest))), dim=1)


def _expected(largest: Tensor, fit: _Fit) -> Tensor:
    """What the M largest log-weights become, largest first."""
    k, rank = fit.shape, torch.arange(len(largest) - 1, dtype=torch.float64)[:, None]
    survival = (rank + 0.5) / fit.n.clamp(min=1)
    grown = -k * survival.log()
    # log of expm1(grown) / k in a form that does not overflow; its limit at k = 0 is log(−log survival).
    log_excess = grown.clamp(min=0) + (-torch.expm1(-grown.abs())).log() - k.abs().log()
    log_excess = torch.where(k.abs() < torch.finfo(k.dtype).eps, (-survival.log()).log(), log_excess)
    expected = torch.logaddexp(largest[-1], fit.log_scale + log_excess)
    # Equal weights, and tails too short for a fit, are left as they are.
    fitted = fit.above & k.isfinite() & fit.log_scale.isfinite()
    return torch.where(fitted, torch.minimum(expected, largest[0]), largest[:-1])


def _fit(largest: Tensor, resolution: float) -> _Fit:
    top, cutoff = largest[0], largest[-1]
    tail = largest[:-1] - top
    above = largest[:-1] > cutoff
    n = above.sum(0)
    # Largest first, so that those above the cutoff come first; the others are weights of 0 that count nowhere.
    excess = torch.where(above, tail + (-torch.expm1(cutoff - largest[:-1])).log(), -torch.inf)
    quartile = (n - (n / 4 + 0.5).floor().long()).clamp(min=0, max=len(tail) - 1)
    # In units of x*: log y may be thousands, but 1 / y of the largest is at most 1.
    unit = excess.gather(0, quartile[None])
    log_y = torch.where(above, excess - unit, -torch.inf)

    m = 30 + n.double().sqrt().floor()
    j = torch.arange(1, int(m.max()) + 1, dtype=torch.float64)[:, None] - 0.5
    theta = (-log_y[0]).exp() + (1 - (m / j).sqrt()) / 3
    k = _mean_log(theta, log_y, n)
    # At θ = 0 the distribution is the exponential one: −θ / k(θ) is 1 / mean y.
    mean = log_y.clamp(max=HUGE).exp().sum(0) / n
    rate = torch.where(k == 0, 1 / mean, -theta / k)
    evidence = torch.where(j < m, n * (rate.log() - k - 1), -torch.inf)
    weight = (evidence - evidence.amax(0)).exp()
    best = (theta * weight).sum(0, keepdim=True) / weight.sum(0)
    fitted = _mean_log(best, log_y, n)[0]
    log_scale = top + unit[0] + torch.where(fitted == 0, mean, -fitted / best[0]).log()

    shape = (n * fitted + 5) / (n + 10)
    shape = torch.where(n < SHORTEST_TAIL, torch.inf, shape)
    equal = (top == cutoff) | (top - cutoff <= resolution)
    shape = torch.where(equal, 0.0, shape)
    log_scale = torch.where(equal, torch.nan, log_scale)
    return _Fit(torch.where(top.isfinite(), shape, torch.nan), log_scale, above, n)


def _mean_log(theta: Tensor, log_y: Tensor, n: Tensor) -> Tensor:
    """``k(θ) = mean log(1 − θ y)`` for a grid of θ: (m, N), (M, N) -> (m, N)."""
    minus = -theta[:, None]
    terms = torch.log1p(minus * log_y.clamp(max=HUGE).exp())
    if bool((log_y[0] > HUGE).any()):  # then 1 / y of the largest is nothing, and every θ is negative
        terms = torch.where(log_y > HUGE, minus.log() + log_y, terms)
    return terms.sum(1) / n
