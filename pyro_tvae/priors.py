"""Priors of the local energy: which variable carries it, under which law, and how it becomes V."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .parts import Part
from .topography import Topography

__all__ = ["EnergyPrior", "GaussianEnergy", "OrbitEnergy"]


class EnergyPrior(Part, nn.Module):
    """The law of the variable behind V; the prior owns its sample site's name.

    Attributes:
        site: name of the Pyro sample site.
    """

    site = "u"

    def fit_to(self, topography: Topography, n_frames: int, n_capsules: int, n_positions: int) -> None:
        """Called once by the model, so that the prior can read the lattice it lives on; raises where it cannot."""
        self.shape = (n_frames, n_capsules, n_positions)

    def law(self, like: Tensor) -> TorchDistribution:
        """The prior of one sequence, in ``like``'s dtype and device; all its dimensions are event dimensions."""
        raise NotImplementedError

    def energy(self, value: Tensor, topography: Topography) -> Tensor:
        """V (..., S, C, D) from a value (..., *event) of the site."""
        raise NotImplementedError

    def point(self, posterior: torch.distributions.Distribution) -> Tensor:
        """The value of the site whose energy is the posterior's expected energy."""
        raise NotImplementedError


class GaussianEnergy(EnergyPrior):
    """The paper's: ``u ~ Normal(0, 1)`` iid over (S, C, D) and ``V = W u²``."""

    def law(self, like: Tensor) -> TorchDistribution:
        return dist.Normal(like.new_zeros(()), like.new_ones(())).expand(self.shape).to_event(3)

    def energy(self, value: Tensor, topography: Topography) -> Tensor:
        return topography.energy(value)

    def point(self, posterior: torch.distributions.Distribution) -> Tensor:
        # E[u²] = mean² + variance, and V is linear in u².
        return (posterior.mean.square() + posterior.variance).sqrt()


class OrbitEnergy(EnergyPrior):
    """One energy per orbit, ``e ~ χ²`` with as many degrees of freedom as the orbit has members.

    Where the neighbourhoods are disjoint, V takes one value on each of them, a sum of that many squared standard
    normals. Sampling the sum directly leaves the law of x unchanged and has one variable where u has many; the sign of
    u, which x cannot identify, is gone. Needs a topography with disjoint orbits: capsule roll with kernel = S = D and
    width 0, or a stationary one with kernel (S, 1).

    Site ``e``: (C, orbits), any positive numbers.
    """

    site = "e"
    index: Tensor
    size: Tensor

    def fit_to(self, topography: Topography, n_frames: int, n_capsules: int, n_positions: int) -> None:
        super().fit_to(topography, n_frames, n_capsules, n_positions)
        orbits = topography.orbits(n_frames, n_positions)
        self.register_buffer("index", orbits.index, persistent=False)
        self.register_buffer("size", orbits.size.to(torch.get_default_dtype()), persistent=False)

    def law(self, like: Tensor) -> TorchDistribution:
        half = self.size.to(like) / 2
        return dist.Gamma(half, like.new_tensor(0.5)).expand((self.shape[1], len(half))).to_event(2)

    def energy(self, value: Tensor, topography: Topography) -> Tensor:
        # (..., C, orbits) -> (..., C, S, D) -> (..., S, C, D)
        return value[..., self.index].transpose(-3, -2)

    def point(self, posterior: torch.distributions.Distribution) -> Tensor:
        return posterior.mean


@torch.distributions.register_kl(dist.LogNormal, dist.Gamma)
def _kl_log_normal_gamma(q: dist.LogNormal, p: dist.Gamma) -> Tensor:
    """KL(LogNormal(m, s) ‖ Gamma(a, b)) = −½ log(2πe s²) − a log b + log Γ(a) − a m + b exp(m + s²/2), in nats."""
    entropy_of_log = 0.5 * math.log(2 * math.pi * math.e) + q.scale.log()
    a, b = p.concentration, p.rate
    return b * (q.loc + q.scale.square() / 2).exp() - a * (q.loc + b.log()) + torch.lgamma(a) - entropy_of_log
