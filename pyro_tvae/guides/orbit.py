"""Orbit guides: log-normals over the energies of orbits, pooled along the roll, or with covariance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import ExpTransform, ReshapeTransform

from ..model import TVAE
from ..networks import Network
from ..posteriors import Posterior
from ..priors import OrbitEnergy
from .base import Guide
from .encoders import Coupling, FrameEncoder, energies_of, shown, z_coordinate

__all__ = ["ConditionalOrbitGuide", "OrbitCovarianceGuide", "OrbitGuide"]


class OrbitGuide(Guide):
    """A log-normal over each orbit's energy that pools the frames' evidence along the roll; z as in the paper.

    Every frame l votes for the log-energy of position p with a location a[l, p] and a precision λ[l, p]. An orbit's
    posterior multiplies the votes of its members into the log-normal that has the prior's moments of log e:
    ``precision = λ₀ + Σ λ``, ``location = (λ₀ m₀ + Σ λ a) / precision``, with ``m₀ = digamma(ν/2) + log 2`` and
    ``1/λ₀ = trigamma(ν/2)`` for χ² with ν degrees of freedom. A frame that was not seen casts no vote, and shifting the
    sequence along the roll shifts the posterior.

    Args:
        model: a TVAE with OrbitEnergy.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of z's log-variances, and of the orbit's before any evidence was learned.
        shared_trunk: one encoder for z and the votes, read off the same features, so that a step costs less.

    Raises:
        ValueError: the model's prior is not OrbitEnergy.
    """

    index: Tensor
    prior_location: Tensor
    prior_precision: Tensor
    members: Tensor

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        shared_trunk: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name=name)
        if not isinstance(model.prior, OrbitEnergy):
            raise ValueError(
                f"{type(self).__name__}: the model's energies are {energies_of(model)}; expected OrbitEnergy "
                "(prior=orbit), or another guide, such as MeanFieldGuide (guide=mean_field)."
            )
        if not isinstance(shared_trunk, bool):
            raise ValueError(f"{type(self).__name__}: shared_trunk is {shared_trunk!r}; expected True or False.")
        network = network if network is not None else model.network
        index, size = model.prior.index, model.prior.size
        vote_bias = -initial_log_variance - float(size.mean().log())
        biases = ((0.0, initial_log_variance), (0.0, vote_bias))
        self.z = z_coordinate(model)
        self.encoder = FrameEncoder(model, network, biases[0] + biases[1]) if shared_trunk else None
        self.z_encoder, self.e_encoder = (None if shared_trunk else FrameEncoder(model, network, b) for b in biases)
        self.register_buffer("prior_location", torch.digamma(size / 2) + torch.log(torch.tensor(2.0)), persistent=False)
        self.register_buffer("prior_precision", 1 / torch.polygamma(1, size / 2), persistent=False)
        self.register_buffer("members", nn.functional.one_hot(index.flatten()).to(size), persistent=False)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Location and log-variance of z, location and log-precision of the votes, a frame at a time: (B, S, C, D)."""
        if self.z_encoder is None or self.e_encoder is None:
            assert self.encoder is not None
            shared: tuple[Tensor, ...] = self.encoder(x)
            return shared
        return (*self.z_encoder(x), *self.e_encoder(x))

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, seen = shown(x, observed)
        *of_z, shift, log_precision = self.outputs(x)
        z = self.z.independent(of_z, seen)
        vote = log_precision.exp()
        if seen is not None:
            vote = vote * seen
        precision = self.prior_precision + self._pool(vote)
        # Votes are cast relative to the prior's location, so an undecided frame agrees with the prior.
        location = self.prior_location + self._pool(vote * shift) / precision
        return {"z": z, "e": dist.LogNormal(location, precision.rsqrt())}

    def _pool(self, votes: Tensor) -> Tensor:
        """Sum (B, S, C, D) over the members of each orbit: (B, C, orbits)."""
        return votes.transpose(-3, -2).flatten(-2) @ self.members


class OrbitCovarianceGuide(OrbitGuide):
    """One log-normal over all orbits' energies together, whose precision the frames vote for; z as in the paper.

    x tells sums and ratios of energies better than each by itself. Where a frame of :class:`OrbitGuide` votes with a
    diagonal precision λ, here it votes with ``diag(λ) + F Fᵀ``, F of ``rank`` columns over the frame's latents: every
    frame is a Gaussian expert on log e, their product has
    ``precision = diag(λ₀) + Σ_l R_l (diag(λ_l) + F_l F_lᵀ) R_lᵀ`` and ``location = m₀ + precision⁻¹ Σ_l R_l λ_l a_l``,
    with R_l from the latents of frame l to their orbits. So a frame that was not seen casts no vote, and shifting the
    sequence along the roll shifts the posterior. Not mean-field: KL terms are sampled.

    Args:
        model: a TVAE with OrbitEnergy.
        rank: columns of F, per frame.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance, shared_trunk: as in OrbitGuide.

    Raises:
        ValueError: the model's prior is not OrbitEnergy, or a rank below one.

    Example:
        >>> from pyro_tvae import CapsuleRoll
        >>> model = TVAE((1, 8, 8), 6, 2, 6, CapsuleRoll(6, 0), prior=OrbitEnergy())
        >>> OrbitCovarianceGuide(model)(torch.rand(4, 6, 1, 8, 8))["e"].shape
        torch.Size([4, 2, 6])
    """

    mean_field = False

    def __init__(
        self,
        model: TVAE,
        *,
        rank: int = 4,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        shared_trunk: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            model,
            network=network,
            initial_log_variance=initial_log_variance,
            shared_trunk=shared_trunk,
            name=name,
        )
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"OrbitCovarianceGuide: rank is {rank!r}; expected a whole number, at least 1.")
        self.rank = rank
        network = network if network is not None else model.network
        self.factors = network.encoder(model.frame_shape, model.n_latents, model.n_latents * rank)
        # Covariances start small beside the variances.
        self.gain = nn.Parameter(torch.tensor(0.3))

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, seen = shown(x, observed)
        *of_z, shift, log_precision = self.outputs(x)
        z = self.z.independent(of_z, seen)
        vote = log_precision.exp()
        factors = self.gain * self.factors(x).unflatten(-1, (*vote.shape[-2:], self.rank))
        if seen is not None:
            vote, factors = vote * seen, factors * seen.unsqueeze(-1)
        shape = torch.Size([self.n_capsules, self.members.shape[-1]])
        size = torch.Size([shape.numel()])
        diagonal = (self.prior_precision + self._pool(vote)).flatten(-2)
        columns = self._columns(factors)
        precision = torch.diag_embed(diagonal) + columns @ columns.mT
        pull = self._pool(vote * shift).flatten(-2, -1).unsqueeze(-1)
        root = torch.linalg.cholesky(precision)
        location = self.prior_location.repeat(self.n_capsules) + torch.cholesky_solve(pull, root).squeeze(-1)
        normal = dist.MultivariateNormal(location, precision_matrix=precision)
        q = dist.TransformedDistribution(normal, [ReshapeTransform(size, shape), ExpTransform()])
        # As a function of no draw, since its dimensions beside the sequences are event dimensions.
        return {"z": z, "e": lambda draws: q}

    def _columns(self, factors: Tensor) -> Tensor:
        """The frames' factors (B, S, C, D, r) on their orbits, side by side: (B, C·orbits, S·r)."""
        # A position of a frame belongs to one orbit, (S, D) -> orbit, but several may belong to the same.
        members = self.members.unflatten(0, (self.n_frames, self.capsule_dim))
        spread: Tensor = torch.einsum("bscdr,sdo->bcosr", factors, members)
        return spread.flatten(-2).flatten(1, 2)


class ConditionalOrbitGuide(OrbitGuide):
    """``q(e | x) q(z | e, x)`` for orbit energies: the pooled log-normals first, then z given their draws.

    With x saying much of ``t = (z + μ) / sqrt(V)``, z is known but for the factor sqrt(V), which a whole orbit shares:
    the location and scale of z follow the draw of its orbit's energy by a network of one hidden layer.

    Args:
        model: a TVAE with OrbitEnergy.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance, shared_trunk: as in OrbitGuide.

    Raises:
        ValueError: the model's prior is not OrbitEnergy.
    """

    mean_field = False
    index: Tensor

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        shared_trunk: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            model,
            network=network,
            initial_log_variance=initial_log_variance,
            shared_trunk=shared_trunk,
            name=name,
        )
        assert isinstance(model.prior, OrbitEnergy)
        self.register_buffer("index", model.prior.index, persistent=False)
        self.coupling = Coupling(4, model.n_latents)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        alone: Any = super().posterior(x, observed)
        seen = shown(x, observed)[1]
        z, e = alone["z"], alone["e"]
        context = self.coupling.context([z.loc, z.scale.log(), self._spread(e.loc), self._spread(e.scale.log())])

        def given(draws: Mapping[str, Tensor]) -> TorchDistribution:
            drawn = self._spread((draws["e"].log() - e.loc) / e.scale)
            shift, log_scale = self.coupling(context, drawn, seen)
            return self.z.distribution(z.loc + z.scale * shift, z.scale * log_scale.exp()).to_event(3)

        return {"e": e, "z": given}

    def _spread(self, value: Tensor) -> Tensor:
        """One value per orbit, (..., C, orbits), at all its members: (..., S, C, D)."""
        return value[..., self.index].transpose(-3, -2)
