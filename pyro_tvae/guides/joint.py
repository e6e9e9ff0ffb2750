"""Guides in which the latents of a frame depend on each other: Normals with covariance, and energies given z."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform

from ..distributions import LowRankMultivariateNormal
from ..model import TVAE
from ..networks import Network
from ..posteriors import Posterior, joint
from .encoders import Coupling, encoder, shown
from .frames import FrameGuide

__all__ = ["ConditionalGuide", "CovarianceGuide"]


class CovarianceGuide(FrameGuide):
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
    shared_trunk = True

    def __init__(
        self,
        model: TVAE,
        *,
        rank: int | None = 8,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, network=network, initial_log_variance=initial_log_variance, name=name)
        self.rank, self.size = rank, len(self.coordinates) * model.n_latents
        if rank is not None and rank < 1:
            raise ValueError(f"CovarianceGuide: rank is {rank!r}; expected at least 1, or None for full covariance.")
        n_factors = self.size * (self.size - 1) // 2 if rank is None else self.size * rank
        self.factors = encoder(model, network, n_factors)
        # Relative to the standard deviations, so that the covariances start small beside the variances.
        self.gain = nn.Parameter(torch.tensor(0.1))

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, mask = shown(x, observed)
        pairs, factors = self.locate(self.outputs(x), mask), self.gain * self.factors(x)
        loc, scale = (torch.cat([one.flatten(-2) for one in each], -1) for each in zip(*pairs, strict=True))
        if mask is not None:
            factors = factors * mask.flatten(-2)
        q: TorchDistribution
        if self.rank is None:
            root = torch.diag_embed(torch.ones_like(loc))
            row, column = torch.tril_indices(self.size, self.size, -1, device=x.device)
            root[..., row, column] = factors
            q = dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * root)
        else:
            columns = factors.unflatten(-1, (self.size, self.rank)) * scale.unsqueeze(-1)
            q = LowRankMultivariateNormal(loc, columns, scale.square())
        flat = torch.Size([self.size])
        shape = torch.Size([len(self.coordinates), self.n_capsules, self.capsule_dim])
        blocks = dist.TransformedDistribution(q, [ReshapeTransform(flat, shape)])
        return joint(blocks, {one.site: one.positive for one in self.coordinates})


class ConditionalGuide(FrameGuide):
    """``q(z_l | x_l) q(u_l | z_l, x_l)``: the energies are given the z that was drawn, and so it is not mean-field.

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
    couples = True

    def couple(self, model: TVAE) -> None:
        self.coupling = Coupling(4, model.n_latents)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, mask = shown(x, observed)
        outputs = self.outputs(x)
        (z_loc, z_scale), (loc, scale) = self.locate(outputs, mask)
        z, energy = self.coordinates
        context = self.coupling.context(outputs)

        def given(draws: Mapping[str, Tensor]) -> TorchDistribution:
            shift, log_scale = self.coupling(context, (draws["z"] - z_loc) / z_scale, mask)
            return energy.distribution(loc + scale * shift, scale * log_scale.exp())

        return {"z": z.distribution(z_loc, z_scale), energy.site: given}
