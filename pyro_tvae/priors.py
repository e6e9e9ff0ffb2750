"""Priors of the local energy: which variable carries it, how it is distributed, and how it becomes V."""

from __future__ import annotations

import math
from typing import Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .distributions import standard_normal
from .parts import Part, hold
from .topographies.base import Topography
from .topographies.orbits import spread

__all__ = ["EnergyPrior", "GammaEnergy", "GaussianEnergy", "OrbitEnergy"]


class Moments(Protocol):
    """What a point estimate needs to know of a posterior: its first two moments, each (B, *site)."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def variance(self) -> Tensor: ...


class EnergyPrior(Part, nn.Module):
    """The prior of the variable behind V; it owns its sample site's name.

    Attributes:
        site: name of the Pyro sample site.
        positive: its values are positive; guides then look at their logarithm.
    """

    site = "u"
    positive = False

    def fit_to(self, topography: Topography, n_frames: int, n_capsules: int, n_positions: int) -> None:
        """Called once by the model, so that the prior can read the lattice it lives on; raises where it cannot."""
        self.shape = (n_frames, n_capsules, n_positions)

    def distribution(self, like: Tensor) -> TorchDistribution:
        """The prior of one sequence, in ``like``'s dtype and device; all its dimensions are event dimensions."""
        raise NotImplementedError

    def energy(self, value: Tensor, topography: Topography) -> Tensor:
        """V (..., S, C, D) from a value (..., *event) of the site."""
        raise NotImplementedError

    def point(self, posterior: Moments) -> Tensor:
        """The value of the site whose energy is the posterior's expected energy; the mean where V is linear in it."""
        return posterior.mean

    def unseen(self) -> tuple[float, float]:
        """Mean and standard deviation of the Normal nearest the prior of the site, or of its logarithm where positive.

        Guides put it where a frame was not seen, and encoders say shifts from its mean; it need not be exact.
        """
        return 0.0, 1.0


class GaussianEnergy(EnergyPrior):
    """The paper's: ``u ~ Normal(0, 1)`` iid over (S, C, D) and ``V = W u²``."""

    def distribution(self, like: Tensor) -> TorchDistribution:
        return standard_normal(like, self.shape)

    def energy(self, value: Tensor, topography: Topography) -> Tensor:
        return topography.energy(value)

    def point(self, posterior: Moments) -> Tensor:
        # E[u²] = mean² + variance, and V is linear in u².
        return (posterior.mean.square() + posterior.variance).sqrt()


class GammaEnergy(EnergyPrior):
    """``e ~ Gamma(α, ½)`` iid over (S, C, D) in place of u², and ``V = W e``.

    A squared standard normal is Gamma(½, ½), so α = ½ leaves p(x) as it is for every W, without the sign of u, which x
    cannot identify. Other α > 0 are χ² terms with 2α degrees of freedom, whole or not: with μ = 0 and
    ν ones in a row of W, ``sqrt(2α ν) t`` is Student-t with 2αν degrees of freedom.

    Site ``e``: (S, C, D), positive numbers.

    Args:
        concentration: α, or where it starts when it is learned.
        learned: make α a parameter, one for all latents.
    """

    site = "e"
    positive = True
    raw: Tensor

    def __init__(self, concentration: float = 0.5, *, learned: bool = False) -> None:
        super().__init__()
        if not concentration > 0:
            raise ValueError(f"GammaEnergy: concentration is {concentration!r}; expected a number above 0.")
        hold(self, "raw", torch.tensor(math.log(concentration)), learned=learned)

    @property
    def concentration(self) -> Tensor:
        """α, half the degrees of freedom of every term."""
        return self.raw.exp()

    def distribution(self, like: Tensor) -> TorchDistribution:
        return dist.Gamma(self.concentration.to(like), like.new_full((), 0.5)).expand(self.shape).to_event(3)

    def energy(self, value: Tensor, topography: Topography) -> Tensor:
        return topography.pool(value)

    def unseen(self) -> tuple[float, float]:
        # Of all log-normals the nearest to the prior: 0.15 nats at α = ½. That with the moments of log e is 1.00 away,
        # by its heavier tail.
        alpha = float(self.concentration.detach())
        return math.log(2 * alpha) - 1 / (2 * alpha), alpha**-0.5


class OrbitEnergy(EnergyPrior):
    """One energy per orbit, ``e ~ χ²`` with as many degrees of freedom as the orbit has members.

    Where the neighbourhoods are disjoint, V takes one value on each of them, a sum of that many squared standard
    normals. Sampling the sum directly leaves p(x) unchanged and has one variable where u has many, without the
    sign of u, which x cannot identify. Needs a topography with disjoint orbits: capsule roll with kernel = S = D and
    width 0, or a stationary one with kernel (S, 1).

    With an open boundary, ``CapsuleRoll(2 S − 1, 0, boundary="open")``, a capsule of any D shows a stretch of an
    endless line along which energies move by one position a frame: the D + S − 1 diagonals ``p − l`` of the window are
    its orbits, ``V[l, p] = e[p − l]``, and each has S members on that line, one a frame, those out of sight included.
    So all e are χ² with S degrees of freedom, and the law of V is the same at every frame and position, as that of a
    window cut from a longer motion should be; sums over the members in sight would have heavier tails at the corners.

    Site ``e``: (C, orbits), any positive numbers.
    """

    site = "e"
    positive = True
    index: Tensor
    size: Tensor

    def fit_to(self, topography: Topography, n_frames: int, n_capsules: int, n_positions: int) -> None:
        super().fit_to(topography, n_frames, n_capsules, n_positions)
        orbits = topography.orbits(n_frames, n_positions)
        self.register_buffer("index", orbits.index, persistent=False)
        self.register_buffer("size", orbits.size.to(torch.get_default_dtype()), persistent=False)

    def distribution(self, like: Tensor) -> TorchDistribution:
        half = self.size.to(like) / 2
        return dist.Gamma(half, like.new_full((), 0.5)).expand((self.shape[1], len(half))).to_event(2)

    def energy(self, value: Tensor, topography: Topography) -> Tensor:
        return spread(value, self.index)


@torch.distributions.register_kl(dist.LogNormal, dist.Gamma)
def _kl_log_normal_gamma(q: dist.LogNormal, p: dist.Gamma) -> Tensor:
    """KL(LogNormal(m, s) ‖ Gamma(a, b)) = −½ log(2πe s²) − a log b + log Γ(a) − a m + b exp(m + s²/2), in nats."""
    entropy_of_log = 0.5 * math.log(2 * math.pi * math.e) + q.scale.log()
    a, b = p.concentration, p.rate
    return b * (q.loc + q.scale.square() / 2).exp() - a * (q.loc + b.log()) + torch.lgamma(a) - entropy_of_log
