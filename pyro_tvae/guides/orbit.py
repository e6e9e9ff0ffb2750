"""Orbit guides: log-normals over the energies of orbits, pooled along the roll, or with covariance."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import ExpTransform, ReshapeTransform

from ..distributions import cholesky, scale_of_precision
from ..model import TVAE
from ..networks import Network, last_linear
from ..posteriors import Posterior
from ..priors import OrbitEnergy
from ..topographies.orbits import spread, summed
from .encoders import MOST_PRECISE, Coupling, encoder, energies_of, shown
from .frames import EncoderGuide

__all__ = ["ConditionalOrbitGuide", "OrbitCovarianceGuide", "OrbitGuide"]


PRODUCT = 2**20  # latents x orbits up to which votes are summed by one product, whose order is the same on every device


# Of a vote, from the prior's location: energies of 3,000 times what the prior expects, or a billionth of it, mean
# nothing, and a KL grows exponentially in a location. Now and then an encoder says 30 of one sequence in thousands.
SHIFTS = (-20.0, 8.0)


class PooledGuide(EncoderGuide):
    """Base of guides for orbit energies, whose frames vote for the energy of every orbit that passes through them.

    Attributes:
        indexed: its distributions look up which orbit a latent is in, however few there are.
    """

    indexed = False
    prior_location: Tensor
    prior_precision: Tensor
    index: Tensor
    members: Tensor | None

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        initial_z_log_variance: float | None = None,
        vote_gain: float = 1.0,
        shared_trunk: bool = False,
        name: str | None = None,
    ) -> None:
        if not isinstance(shared_trunk, bool):
            raise ValueError(f"{type(self).__name__}: shared_trunk is {shared_trunk!r}; expected True or False.")
        index, size = self.groups(model)
        vote_bias = -initial_log_variance - float(size.mean().log())
        of_z = initial_log_variance if initial_z_log_variance is None else initial_z_log_variance
        biases = {"z": (0.0, of_z), "e": (0.0, vote_bias)}
        super().__init__(model, biases, network=network, shared_trunk=shared_trunk, name=name)
        with torch.no_grad():
            last, n = last_linear(getattr(self, self.encoders[-1]).network), model.n_latents
            for numbers in (last.weight, last.bias):
                numbers[-2 * n : -n].mul_(vote_gain)
        self.register_buffer("prior_location", torch.digamma(size / 2) + torch.log(torch.tensor(2.0)), persistent=False)
        self.register_buffer("prior_precision", 1 / torch.polygamma(1, size / 2), persistent=False)
        small = index.numel() * len(size) <= PRODUCT
        self.register_buffer("members", _one_hot(index).to(size) if small else None, persistent=False)
        if self.indexed or not small:
            self.register_buffer("index", index, persistent=False)
        self.couple(model)

    def groups(self, model: TVAE) -> tuple[Tensor, Tensor]:
        """Which group of latents (frame, position) belongs to, (S, D), and how many each has, (G,)."""
        if not isinstance(model.prior, OrbitEnergy):
            raise ValueError(
                f"{type(self).__name__}: the model's energies are {energies_of(model)}; expected OrbitEnergy "
                "(prior=orbit), or another guide, such as MeanFieldGuide (guide=mean_field)."
            )
        return model.prior.index, model.prior.size

    def read(self, x: Tensor, mask: Tensor | None) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Location and scale of z, and of every frame's votes the shift and the precision: each (B, S, C, D)."""
        *of_z, shift, log_precision = self.outputs(x)
        shift, vote = shift.clamp(*SHIFTS), log_precision.clamp(max=MOST_PRECISE).exp()
        return self.z.locate(of_z, mask), shift, vote if mask is None else vote * mask

    def pooled(self, shift: Tensor, vote: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of log e, (B, C, orbits): the prior's and the votes of its members, multiplied."""
        precision = self.prior_precision + self._pool(vote)
        # Votes are cast relative to the prior's location, so an undecided frame agrees with the prior.
        return self.prior_location + self._pool(vote * shift) / precision, precision.rsqrt()

    def _pool(self, votes: Tensor) -> Tensor:
        """Sum (B, S, C, D) over the members of each orbit: (B, C, orbits)."""
        if self.members is not None:
            return votes.transpose(-3, -2).flatten(-2) @ self.members
        return summed(votes, self.index, len(self.prior_location))


def _one_hot(index: Tensor) -> Tensor:
    """Which latents (S·D) belong to which orbit: (S·D, orbits)."""
    return nn.functional.one_hot(index.flatten())


class OrbitGuide(PooledGuide):
    """A log-normal over each orbit's energy that pools the frames' evidence along the roll; z as in the paper.

    Every frame l votes for the log-energy of position p with a location a[l, p] and a precision λ[l, p]. An orbit's
    posterior multiplies the votes of its members into the log-normal that has the prior's moments of log e:
    ``precision = λ₀ + Σ λ``, ``location = (λ₀ m₀ + Σ λ a) / precision``, with ``m₀ = digamma(ν/2) + log 2`` and
    ``1/λ₀ = trigamma(ν/2)`` for χ² with ν degrees of freedom. A frame that was not seen casts no vote, and shifting the
    sequence along the roll shifts the posterior.

    Args:
        model: a TVAE with OrbitEnergy.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of the orbit's log-variances before any evidence was learned, and of z's.
        initial_z_log_variance: of z's alone. At 0 z starts as its prior, and costs nothing until it is of use.
        vote_gain: factor on the weights that the votes' locations start with. Above 1 energies differ from the start,
            so that the decoder has something to learn from.
        shared_trunk: one encoder for z and the votes, read off the same features, so that a step costs less.

    Raises:
        ValueError: the model's prior is not OrbitEnergy.
    """

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, mask = shown(x, observed)
        z, shift, vote = self.read(x, mask)
        return {"z": self.z.distribution(*z), "e": dist.LogNormal(*self.pooled(shift, vote))}


class OrbitCovarianceGuide(PooledGuide):
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
        initial_log_variance, initial_z_log_variance, vote_gain, shared_trunk: as in OrbitGuide.

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
        initial_z_log_variance: float | None = None,
        vote_gain: float = 1.0,
        shared_trunk: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            model,
            network=network,
            initial_log_variance=initial_log_variance,
            initial_z_log_variance=initial_z_log_variance,
            vote_gain=vote_gain,
            shared_trunk=shared_trunk,
            name=name,
        )
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"OrbitCovarianceGuide: rank is {rank!r}; expected a whole number, at least 1.")
        self.rank = rank
        self.factors = encoder(model, network, model.n_latents * rank)
        # Covariances start small beside the variances.
        self.gain = nn.Parameter(torch.tensor(0.3))

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, mask = shown(x, observed)
        z, shift, vote = self.read(x, mask)
        factors = self.gain * self.factors(x).unflatten(-1, (*vote.shape[-2:], self.rank))
        if mask is not None:
            factors = factors * mask.unsqueeze(-1)
        shape = torch.Size([self.n_capsules, len(self.prior_location)])
        size = torch.Size([shape.numel()])
        diagonal = (self.prior_precision + self._pool(vote)).flatten(-2)
        columns = self._columns(factors)
        precision = torch.diag_embed(diagonal) + columns @ columns.mT
        pull = self._pool(vote * shift).flatten(-2, -1).unsqueeze(-1)
        root = cholesky(precision)
        location = self.prior_location.repeat(self.n_capsules) + torch.cholesky_solve(pull, root).squeeze(-1)
        normal = dist.MultivariateNormal(location, scale_tril=scale_of_precision(precision))
        e = dist.TransformedDistribution(normal, [ReshapeTransform(size, shape), ExpTransform()])
        return {"z": self.z.distribution(*z), "e": e}

    def _columns(self, factors: Tensor) -> Tensor:
        """The frames' factors (B, S, C, D, r) on their orbits, side by side: (B, C·orbits, S·r)."""
        # A position of a frame belongs to one orbit, (S, D) -> orbit, but several may belong to the same.
        members = _one_hot(self.index).to(factors) if self.members is None else self.members
        members = members.unflatten(0, (self.n_frames, self.capsule_dim))
        spread: Tensor = torch.einsum("bscdr,sdo->bcosr", factors, members)
        return spread.flatten(-2).flatten(1, 2)


class ConditionalOrbitGuide(PooledGuide):
    """``q(e | x) q(z | e, x)`` for orbit energies: the pooled log-normals first, then z given their draws.

    With x saying much of ``t = (z + μ) / sqrt(V)``, z is known but for the factor sqrt(V), which a whole orbit shares:
    the location and scale of z follow the draw of its orbit's energy by a network of one hidden layer.

    Args:
        model: a TVAE with OrbitEnergy.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance, initial_z_log_variance, vote_gain, shared_trunk: as in OrbitGuide.

    Raises:
        ValueError: the model's prior is not OrbitEnergy.
    """

    mean_field = False
    indexed = True

    def couple(self, model: TVAE) -> None:
        self.coupling = Coupling(4, model.n_latents)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, mask = shown(x, observed)
        (z_loc, z_scale), shift, vote = self.read(x, mask)
        loc, scale = self.pooled(shift, vote)
        of_energies = [spread(value, self.index) for value in (loc, scale.log())]
        context = self.coupling.context([z_loc, z_scale.log(), *of_energies])

        def given(draws: Mapping[str, Tensor]) -> TorchDistribution:
            drawn = spread((draws["e"].log() - loc) / scale, self.index)
            shift, log_scale = self.coupling(context, drawn, mask)
            return self.z.distribution(z_loc + z_scale * shift, z_scale * log_scale.exp())

        return {"e": dist.LogNormal(loc, scale), "z": given}
