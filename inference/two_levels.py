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

__all__ = ["MeanBound", "TwoLevels", "few_of"]

SHARE = 10  # all particles for every tenth sequence at first, a tenth of the particles for every one
LEAST_SEQUENCES, LEAST_PARTICLES = 32, 10
GROWTH = 1.23  # how much larger the error may be than with all particles for all sequences


class MeanBound(NamedTuple):
    """Means over sequences in nats per sequence; the error is that of sequences and particles together."""

    elbo: float
    iwae: float
    iwae_error: float
    ess: float  # median over the sequences that were drawn
    n_drawn: int


def few_of(num_particles: int) -> int:
    """How many particles every sequence gets, of as many as some get."""
    return max(num_particles // SHARE, min(num_particles, LEAST_PARTICLES))


class TwoLevels:
    """The mean over N sequences of the importance-weighted bound L_K, in down to a fifth of its work.

    ``mean over those drawn of L_K + c (mean over all of L_k − mean over those drawn of L_k)``, where k is about K / 10,
    the L_k of a sequence that was drawn is the mean over blocks of its K weights, and c is that of the least variance:
    1 where particles add about the same to all, 0 where L_k says nothing of L_K (`Giles 2015, Multilevel Monte Carlo
    methods <https://arxiv.org/abs/1304.5472>`__; double sampling with a regression). So many are drawn that the error
    is about ``GROWTH`` times that of all at most, or ``tolerance``. Without bias but for c, whose own error counts in
    second order.

    Args:
        n_sequences: N; where there are few, all of them are drawn.
        num_particles: K.
        seed: of the draw.
        tolerance: an error, in nats per sequence, below which no more are drawn: an untrained model's bounds differ so
            little that the error of all would be far below what anybody asks for.

    Attributes:
        few: k.
        drawn: (N,) booleans, the sequences that get all K particles.
        first: how many every sequence gets at first: K where all are drawn, else k.

    Example:
        >>> levels = TwoLevels(500, 100, seed=0)
        >>> levels.few, int(levels.drawn.sum())
        (10, 50)
    """

    def __init__(self, n_sequences: int, num_particles: int, *, seed: int, tolerance: float = 0.0) -> None:
        self.num_particles, self.tolerance = num_particles, tolerance
        self.few = few_of(num_particles)
        m = max(math.ceil(n_sequences / SHARE), LEAST_SEQUENCES) if self.few < num_particles else n_sequences
        self._order = torch.randperm(n_sequences, generator=torch.Generator().manual_seed(seed))
        self.drawn = self._order < m
        self.first = self.few if m < n_sequences else num_particles

    def bounds(self, log_w: Tensor) -> Tensor:
        """ELBO, L_k, and where there are K particles L_K, the effective sample size, and by how much the variance of a
        single block's L_k exceeds that of their mean, else nan: (B, 5), float64.

        Args:
            log_w: (k or K, B), nats per sequence.
        """
        log_w = log_w.cpu().double()
        blocks = log_w[: len(log_w) // self.few * self.few].unflatten(0, (-1, self.few)).transpose(0, 1)
        few = _bound(blocks)
        whole = ess = excess = torch.full_like(log_w[0], math.nan)
        if len(log_w) == self.num_particles:
            whole, ess = _bound(log_w), (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
            excess = few.var(0) * (1 - 1 / len(few)) if len(few) > 1 else torch.zeros_like(whole)
        return torch.stack([log_w.mean(0), few.mean(0), whole, ess, excess], 1)

    def rounds(self, bounds: Tensor) -> Iterator[Tensor]:
        """Numbers of the sequences that are to get all K particles, until there are enough of them.

        Args:
            bounds: those of all sequences, (N, 5); whoever asks puts in those of each round before the next.
        """
        n = len(self.drawn)
        lacking = self.drawn if self.first < self.num_particles else self.drawn & False
        while bool(lacking.any()):
            yield lacking.nonzero().squeeze(1)
            numbers = torch.arange(int(self.drawn.sum()), n + 1, dtype=torch.float64)
            aim = (GROWTH**2 * bounds[self.drawn, 2].var() / n).clamp(min=self.tolerance**2)
            enough = self._weighed(bounds, numbers)[1] <= aim
            m = int(numbers[enough].min()) if bool(enough.any()) else 0
            lacking = (self._order < m) & ~self.drawn
            self.drawn = self.drawn | lacking

    def mean(self, bounds: Tensor) -> MeanBound:
        """What the bounds of all sequences, (N, 5), say of their mean.

        Sequences count as drawn from their distribution. The error is nan for a single one.
        """
        elbo, few, whole, ess, _ = bounds.unbind(-1)
        n, m, iwae, error = len(bounds), int(self.drawn.sum()), whole[self.drawn].mean(), math.nan
        if n > 1:
            share = float(self._weighed(bounds, torch.tensor(m, dtype=torch.float64))[0])
            if share:
                iwae = iwae + share * (few.mean() - few[self.drawn].mean())
            # What few particles say of all sequences varies as it does among all of them, the rest among those drawn.
            rest = torch.cov(torch.stack([whole - share * few, few])[:, self.drawn])
            variance = float(rest[0, 0] / m + (share**2 * few.var() + 2 * share * rest[0, 1]) / n)
            error = math.sqrt(variance) if variance >= 0 else math.nan
        return MeanBound(float(elbo.mean()), float(iwae), error, float(ess[self.drawn].median()), m)

    def _weighed(self, bounds: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """If m sequences were drawn: the coefficient c of the least variance of the mean, and that variance.

        With the bounds L of K particles and F of few, each by a variance, the F of those drawn a mean over blocks.
        """
        n, drawn = len(bounds), bounds[self.drawn]
        together = torch.cov(drawn[:, 1:3].T)
        of_blocks, both, of_all = together[0, 0], together[0, 1], together[1, 1]
        excess = (1 - m / n) * drawn[:, 4].mean()  # those that were not drawn have the F of one block
        slope, curve = both * (1 / m - 1 / n), of_blocks * (1 / m - 1 / n) + excess / n
        share = torch.where(curve > 0, slope / curve, 0.0).nan_to_num(0.0)
        return share, of_all / m - 2 * share * slope + share.square() * curve


def _bound(log_w: Tensor) -> Tensor:
    """Log of the mean weight over the first dimension."""
    return log_w.logsumexp(0) - math.log(len(log_w))
