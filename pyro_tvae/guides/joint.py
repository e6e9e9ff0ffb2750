"""Guides in which the latents of a frame depend on each other: Normals with covariance, and energies given z."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform

from ..model import TVAE
from ..networks import Network
from ..posteriors import Posterior, joint
from .base import Guide
from .encoders import NO_ENERGIES, Coupling, FrameEncoder, energy_coordinate, shown, z_coordinate
from .mean_field import MeanFieldGuide

__all__ = ["ConditionalGuide", "CovarianceGuide"]


class CovarianceGuide(Guide):
    """One Normal per frame over z and u together (log e, where energies are positive), with covariances.

    ``q(z_l, u_l | x_l) = Normal(m, Σ)``: with ``rank`` r, ``Σ = diag(s²) + F Fᵀ`` and F of r columns; without, a full
    Cholesky factor of (2 C D)² / 2 numbers per frame, for small capsules. Not mean-field: KL terms are sampled.

    Args:
        model: the TVAE it is for, with one energy per latent or without topography.
        rank: columns of F; None is full covariance.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of the log-variances; covariances start at zero.

    Raises:
        ValueError: a rank below one, or energies that are not one per latent.

    Example:
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> CovarianceGuide(model, rank=3)(torch.rand(4, 6, 1, 8, 8))["z"].shape
        torch.Size([4, 6, 2, 6])
    """

    mean_field = False

    def __init__(
        self,
        model: TVAE,
        *,
        rank: int | None = 8,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name=name)
        energy = energy_coordinate(model, type(self).__name__)
        self.parts = [z_coordinate(model)] if energy is None else [z_coordinate(model), energy]
        self.rank, self.size = rank, len(self.parts) * model.n_latents
        if rank is not None and rank < 1:
            raise ValueError(f"CovarianceGuide: rank is {rank!r}; expected at least 1, or None for full covariance.")
        network = network if network is not None else model.network
        n_factors = self.size * (self.size - 1) // 2 if rank is None else self.size * rank
        self.encoder = FrameEncoder(model, network, (0.0, initial_log_variance) * len(self.parts))
        self.factors = network.encoder(model.frame_shape, model.n_latents, n_factors)
        # Relative to the standard deviations, so that the covariances start small beside the variances.
        self.gain = nn.Parameter(torch.tensor(0.1))

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, seen = shown(x, observed)
        outputs, factors = self.encoder(x), self.gain * self.factors(x)
        known = [part.parameters(outputs[2 * i : 2 * i + 2], seen) for i, part in enumerate(self.parts)]
        loc, scale = (torch.cat([pair[i].flatten(-2) for pair in known], -1) for i in range(2))
        if seen is not None:
            factors = factors * seen.flatten(-2)
        q: TorchDistribution
        if self.rank is None:
            root = torch.diag_embed(torch.ones_like(loc))
            row, column = torch.tril_indices(self.size, self.size, -1, device=x.device)
            root[..., row, column] = factors
            q = dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * root)
        else:
            columns = factors.unflatten(-1, (self.size, self.rank)) * scale.unsqueeze(-1)
            q = dist.LowRankMultivariateNormal(loc, columns, scale.square())
        flat = torch.Size([self.size])
        shape = torch.Size([len(self.parts), self.n_capsules, self.capsule_dim])
        blocks = dist.TransformedDistribution(q, [ReshapeTransform(flat, shape)])
        return joint(blocks, {one.site: one.positive for one in self.parts})


class ConditionalGuide(MeanFieldGuide):
    """``q(z_l | x_l) q(u_l | z_l, x_l)``: the energies' law knows which z was drawn, and so is not mean-field.

    x says much of ``t = (z + μ) / sqrt(V)`` and little of z and V apart: a larger z goes with a larger V. Here the
    location and scale of u (of log e, where energies are positive) follow the draw of z by a network of one hidden
    layer; before it has learned anything the guide is :class:`MeanFieldGuide`.

    Args:
        model: a TVAE with one energy per latent.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of the log-variances.

    Raises:
        ValueError: the model has no energies, or energies that are not one per latent.
    """

    mean_field = False

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, network=network, initial_log_variance=initial_log_variance, name=name)
        if self.energy is None:
            raise ValueError(NO_ENERGIES.format(type(self).__name__))
        self.coupling = Coupling(4, model.n_latents)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, seen = shown(x, observed)
        outputs = self.outputs(x)
        z_loc, z_scale = self.z.parameters(outputs[:2], seen)
        energy = self.energy
        assert energy is not None
        loc, scale = energy.parameters(outputs[2:], seen)
        context = self.coupling.context(outputs)

        def given(draws: Mapping[str, Tensor]) -> TorchDistribution:
            shift, log_scale = self.coupling(context, (draws["z"] - z_loc) / z_scale, seen)
            return energy.distribution(loc + scale * shift, scale * log_scale.exp()).to_event(3)

        return {"z": self.z.distribution(z_loc, z_scale), energy.site: given}
