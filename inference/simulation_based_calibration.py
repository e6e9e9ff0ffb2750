"""Calibration: does a posterior hold what it promises, on sequences whose latents were drawn with them?

Simulation-based calibration (`Talts et al. 2018, Validating Bayesian inference algorithms with simulation-based
calibration <https://arxiv.org/abs/1804.06788>`__): latents from the prior, a sequence from the likelihood, draws from
the posterior under test. Under the exact posterior the rank of the true value among the draws is uniform.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.judging import check_whole, judges, seeded
from pyro_tvae.posteriors import draw
from pyro_tvae.programs import untouched_store

from .annealing import simulate
from .inspection import refuse_fixed, refuse_further_terms
from .mcmc import identified, nuts
from .progress import progress_bar

__all__ = ["Calibration", "calibration"]

LOG_LIKELIHOOD = "log_likelihood"
MANY_BINS = 20  # as many as a histogram of ranks is looked at with; each wants five simulations


@dataclass(frozen=True)
class Calibration:
    """Ranks of true values among posterior draws.

    Attributes:
        ranks: quantity -> (n_simulations, *site) whole numbers 0 … n_draws: how many draws lie below the true value.
            Quantities are the identified latents (z, and u_squared or e) and ``log_likelihood``, log p(x | t), one
            number per simulation that sees faults common to many latents.
        n_draws: draws L per simulation.
    """

    ranks: dict[str, Tensor]
    n_draws: int

    def histogram(self, name: str, bins: int = 10) -> Tensor:
        """Counts of ranks in equal bins: (bins, *site).

        Raises:
            ValueError: the L + 1 possible ranks do not fill the bins evenly.
        """
        if bins < 2 or (self.n_draws + 1) % bins:
            raise ValueError(
                f"calibration: {self.n_draws} draws make {self.n_draws + 1} ranks, which do not fill {bins} bins "
                "evenly; expected bins >= 2 that divide n_draws + 1."
            )
        which = self.ranks[name] * bins // (self.n_draws + 1)
        return torch.stack([(which == b).sum(0) for b in range(bins)])

    def p_value(self, name: str, bins: int = 10) -> float:
        """Probability of ranks at least as uneven if the posterior were exact; small is bad.

        Chi-square per latent; the smallest of its p-values times their number (Bonferroni), which holds however the
        latents of a sequence depend on each other. The approximation wants five simulations or more per bin.
        """
        counts = self.histogram(name, bins).double().reshape(bins, -1)
        expected = len(self.ranks[name]) / bins
        statistic = (counts - expected).square().sum(0) / expected
        half = torch.full_like(statistic, (bins - 1) / 2)
        p = torch.special.gammaincc(half, statistic / 2)  # the survival function of chi-square
        return min(1.0, float(p.min()) * p.numel())

    def uniform(self, level: float = 0.01, bins: int = 10) -> bool:
        """Whether no quantity is uneven: an exact posterior fails with a probability of at most ``level``."""
        return min(self.p_value(name, bins) for name in self.ranks) * len(self.ranks) > level

    def band(self, level: float = 0.01, bins: int = 10) -> tuple[float, float]:
        """Share of ranks per bin within which all bins of an exact posterior stay with probability 1 − level.

        Binomial for one latent and Bonferroni over bins; for the average over latents it is wider than needed.
        """
        n, share = len(next(iter(self.ranks.values()))), 1 / bins
        tail = level / (2 * bins)
        counts = torch.arange(n + 1, dtype=torch.float64)
        log_p = torch.distributions.Binomial(n, torch.tensor(share, dtype=torch.float64)).log_prob(counts)
        cumulative = log_p.exp().cumsum(0)
        low, high = int((cumulative < tail).sum()), int((cumulative < 1 - tail).sum())
        return low / n, high / n


@judges
def calibration(
    model: TVAE,
    guide: Guide | Callable[..., object],
    n_simulations: int = 200,
    n_draws: int = 99,
    *,
    method: str = "guide",
    batch_size: int = 20,
    warmup_steps: int = 300,
    thin: int = 5,
    seed: int | None = 0,
    progress: bool = False,
) -> Calibration:
    """Ranks of simulated latents among posterior draws, for a guide or for NUTS.

    `Talts et al. 2018, Validating Bayesian inference algorithms with simulation-based calibration
    <https://arxiv.org/abs/1804.06788>`__. Ranks heap up at both ends where the posterior is overconfident, in the
    middle where it is too wide, and at one end where it is biased. Pixels are drawn from the likelihood: under
    Bernoulli they are 0 or 1, even for a guide that was fitted to grey values.

    Args:
        model: the generative program.
        guide: the posterior under test, or where NUTS starts; any Pyro program of x with the model's sites.
        n_simulations: sequences to simulate.
        n_draws: draws L per sequence; L + 1 should be a multiple of the bins, 10.
        method: ``"guide"``, or ``"nuts"`` to test the sampler (small models).
        batch_size: sequences at a time.
        warmup_steps: of NUTS.
        thin: keep every so many draws of NUTS, since neighbours resemble each other.
        seed: of everything.
        progress: show a progress bar.

    Raises:
        ValueError: numbers below one, an unknown method, a model with further sites (a factor or random weights are of
            no one simulation), or a guide of fixed sequences.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 2, 2), 3, 1, 3, pyro_tvae.CapsuleRoll(3), mu=1.0)
        >>> result = calibration(model, pyro_tvae.MeanFieldGuide(model), n_simulations=50, n_draws=19)
        >>> result.ranks["u_squared"].shape
        torch.Size([50, 3, 1, 3])
    """
    if method not in ("guide", "nuts"):
        raise ValueError(f"calibration: method is {method!r}; expected 'guide' or 'nuts'.")
    numbers = {"n_simulations": n_simulations, "n_draws": n_draws, "batch_size": batch_size}
    check_whole("calibration", **numbers, warmup_steps=warmup_steps, thin=thin)
    refuse_further_terms(model, model.blank_sequence, "calibration")
    refuse_fixed(guide, "calibration")
    if all((n_draws + 1) % bins for bins in range(2, max(MANY_BINS, n_simulations // 5) + 1)):  # before hours of NUTS
        warnings.warn(
            f"calibration: {n_draws} draws make {n_draws + 1} ranks, which fill no number of bins up to {MANY_BINS} "
            "evenly, as histograms and p-values want; expected one draw less than a multiple of the bins, such as "
            f"{max(1, round((n_draws + 1) / 10)) * 10 - 1}.",
            stacklevel=3,
        )
    parts: list[dict[str, Tensor]] = []
    with seeded(seed), progress_bar(n_simulations, "calibration", shown=progress, leave=False) as bar:
        for start in range(0, n_simulations, batch_size):
            x, truth = simulate(model, min(batch_size, n_simulations - start), seed=None)
            if method == "nuts":
                draws = _nuts_draws(model, guide, x, n_draws, warmup_steps, thin)
            else:
                draws = _guide_draws(guide, x, n_draws)
            true = _quantities(model, truth, x)
            parts.append({name: rank_among(q, true[name]).cpu() for name, q in _quantities(model, draws, x).items()})
            bar.update(len(x))
    return Calibration({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, n_draws)


def rank_among(draws: Tensor, truth: Tensor) -> Tensor:
    """How many of the draws (L, …) lie below the truth (…); ties, as where x ignores t, fall by lot."""
    ties = (draws == truth).sum(0)
    return (draws < truth).sum(0) + (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long()


@torch.no_grad()
def _guide_draws(guide: Any, x: Tensor, n: int) -> dict[str, Tensor]:
    posterior = posterior_of(guide, x)
    with untouched_store(), pyro.plate("particles", n, dim=-2):
        return draw(posterior)


def _nuts_draws(model: TVAE, guide: Any, x: Tensor, n: int, warmup_steps: int, thin: int) -> dict[str, Tensor]:
    result = nuts(model, x, init=guide, num_samples=n * thin, warmup_steps=warmup_steps, num_chains=1, seed=None)
    return {name: value[0, thin - 1 :: thin].to(x.device) for name, value in result.draws.items()}


@torch.no_grad()
def _quantities(model: TVAE, latents: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """What is ranked: (…, B, *site) of each identified latent, and log p(x | t) (…, B)."""
    frames = model.decode(model.compose(latents))
    return identified(model, latents) | {LOG_LIKELIHOOD: frames.log_prob(x).sum(-1)}
