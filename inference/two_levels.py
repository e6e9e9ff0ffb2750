"""Two levels: the mean over sequences of a bound of K particles, from few of every sequence and all K of some.

What more particles add to a bound differs less from sequence to sequence than the bound itself, so that it need not be
measured on every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MeanBound", "TwoLevels"]

SHARE = 10  # all particles for every tenth sequence at first, a tenth of the particles for every one
LEAST_SEQUENCES, LEAST_PARTICLES = 32, 10
GROWTH = 1.22  # how much larger the error may be than with all particles for all sequences


class MeanBound(NamedTuple):
    """Means over sequences in nats per sequence; the error is that of sequences and particles together."""

    elbo: float
    iwae: float
    iwae_error: float
    ess: float  # median over the sequences that were drawn
    n_drawn: int


class TwoLevels:
    """The mean over N sequences of the importance-weighted bound L_K, in down to a fifth of its work, without bias.

    ``mean over all of L_k + mean over those drawn of (L_K − L_k)``, where k is about K / 10 and the L_k of a sequence
    that was drawn is the mean over blocks of its K weights. `Giles 2015, Multilevel Monte Carlo methods
    <https://arxiv.org/abs/1304.5472>`__. So many are drawn that the error is at most ``GROWTH`` times that of all.

    Args:
        n_sequences: N; where there are few, all of them are drawn.
        num_particles: K.
        seed: of the draw.

    Attributes:
        few: k.
        drawn: (N,) booleans, the sequences that get all K particles.
        first: how many every sequence gets at first: K where all are drawn, else k.

    Example:
        >>> levels = TwoLevels(500, 100, seed=0)
        >>> levels.few, int(levels.drawn.sum())
        (10, 50)
    """

    def __init__(self, n_sequences: int, num_particles: int, *, seed: int) -> None:
        self.num_particles = num_particles
        self.few = max(num_particles // SHARE, min(num_particles, LEAST_PARTICLES))
        m = max(math.ceil(n_sequences / SHARE), LEAST_SEQUENCES) if self.few < num_particles else n_sequences
        self._order = torch.randperm(n_sequences, generator=torch.Generator().manual_seed(seed))
        self.drawn = self._order < m
        self.first = self.few if m < n_sequences else num_particles

    def bounds(self, log_w: Tensor) -> Tensor:
        """ELBO, L_k, and where there are K particles L_K and the effective sample size, else nan: (B, 4), float64.

        Args:
            log_w: (k or K, B), nats per sequence.
        """
        log_w = log_w.cpu().double()
        blocks = log_w[: len(log_w) // self.few * self.few].unflatten(0, (-1, self.few)).transpose(0, 1)
        whole = ess = torch.full_like(log_w[0], math.nan)
        if len(log_w) == self.num_particles:
            whole, ess = _bound(log_w), (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
        return torch.stack([log_w.mean(0), _bound(blocks).mean(0), whole, ess], 1)

    def rounds(self, bounds: Tensor) -> Iterator[Tensor]:
        """Numbers of the sequences that are to get all K particles, until there are enough of them.

        Args:
            bounds: those of all sequences, (N, 4); whoever asks puts in those of each round before the next.
        """
        lacking = self.drawn if self.first < self.num_particles else self.drawn & False
        while bool(lacking.any()):
            yield lacking.nonzero().squeeze(1)
            few, gain, together = self._spreads(bounds)
            of_all, enough = few + gain + 2 * together, 0.0
            if gain > 0 and math.isfinite(of_all):
                enough = len(bounds) / (1 + (GROWTH**2 - 1) * max(of_all, 0.0) / gain)
            lacking = (self._order < math.ceil(enough)) & ~self.drawn
            self.drawn = self.drawn | lacking

    def mean(self, bounds: Tensor) -> MeanBound:
        """What the bounds of all sequences, (N, 4), say of their mean.

        Sequences count as drawn from their distribution. The error is nan for a single one.
        """
        elbo, few, whole, ess = bounds.unbind(-1)
        of_few, of_gain, together = self._spreads(bounds)
        n, m = len(few), int(self.drawn.sum())
        variance = (of_few + 2 * together) / n + of_gain / m  # that of the L_K over N, where m = N
        return MeanBound(
            elbo=float(elbo.mean()),
            iwae=float(few.mean() + (whole - few)[self.drawn].mean()),
            iwae_error=math.nan if math.isnan(variance) else math.sqrt(max(variance, 0.0)),
            ess=float(ess[self.drawn].median()),
            n_drawn=m,
        )

    def _spreads(self, bounds: Tensor) -> tuple[float, float, float]:
        """Variances over sequences of L_k and of L_K − L_k, and their covariance; nan for a single sequence."""
        if len(bounds) < 2:
            return math.nan, math.nan, math.nan
        few = bounds[:, 1]
        together = torch.cov(torch.stack([few, bounds[:, 2] - few])[:, self.drawn])
        return float(few.var()), float(together[1, 1]), float(together[0, 1])


def _bound(log_w: Tensor) -> Tensor:
    """Log of the mean weight over the first dimension."""
    return log_w.logsumexp(0) - math.log(len(log_w))
