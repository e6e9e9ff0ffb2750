"""Guides: amortised posteriors over the latents of a sequence.

A guide says ``posterior(x)``: one distribution per sample site. Everything else, being a Pyro program for SVI and
drawing many particles from one pass of the encoders, follows from that.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .model import TVAE, frame_mask
from .naming import NamedModule
from .networks import Network, last_linear
from .parts import Part
from .priors import GaussianEnergy, OrbitEnergy

__all__ = ["Guide", "MeanFieldGuide", "OrbitGuide", "default_guide"]

Posterior = dict[str, TorchDistribution]


class Guide(Part, NamedModule):
    """Base of all guides: subclasses define :meth:`posterior`.

    Attributes:
        mean_field: the sites are independent given x, so that KL terms are taken site by site in closed form.
    """

    mean_field = True

    def __init__(self, model: TVAE) -> None:
        super().__init__()
        self.n_frames, self.n_capsules, self.capsule_dim = model.latent_shape

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        """Site name -> distribution with batch shape (B, *site); q of the latents given the observed frames.

        Args:
            x: (B, S, channel, height, width).
            observed: (S,) or (B, S) booleans, true where a frame was seen; None means all. What x holds in unseen
                frames has no influence.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, observed: Tensor | None = None) -> dict[str, Tensor]:
        """The Pyro program: one draw of every site."""
        return self.draw(self.posterior(x, observed))

    def draw(self, posterior: Posterior) -> dict[str, Tensor]:
        """Sample every site of a posterior computed before, so that many particles cost one pass of the encoders."""
        n_sequences = next(iter(posterior.values())).batch_shape[0]
        with pyro.plate("sequence", n_sequences, dim=-1):
            return {site: pyro.sample(site, q.to_event(len(q.batch_shape) - 1)) for site, q in posterior.items()}

    def arguments(self) -> dict[str, Any]:
        # The model is described beside the guide, not inside it.
        return {name: value for name, value in super().arguments().items() if name != "model"}


def _shown(x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x with unseen frames blank, whatever they held, and the seen ones as (B or 1, S, 1, 1) against (B, S, C, D)."""
    if observed is None:
        return x, None
    seen = frame_mask(observed, x.shape[-5], x.shape[-4]).to(x.device)[..., None, None]
    return torch.where(seen.unsqueeze(-1), x, 0), seen


class _FrameEncoder(nn.Module):
    """One frame to two real numbers per latent: (..., channel, height, width) -> two tensors (..., C, D)."""

    def __init__(self, model: TVAE, network: Network, second_bias: float) -> None:
        super().__init__()
        n = model.n_latents
        self.shape = (2, model.n_capsules, model.capsule_dim)
        self.network = network.encoder(model.frame_shape, n, 2 * n)
        with torch.no_grad():
            last_linear(self.network).bias[n:] += second_bias

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.network(x).unflatten(-1, self.shape).unbind(-3)
        return first, second


def _normal(parameters: tuple[Tensor, Tensor], seen: Tensor | None) -> TorchDistribution:
    loc, log_variance = parameters
    scale = (0.5 * log_variance).exp()
    if seen is not None:  # a frame that was not seen tells nothing: its posterior is the prior
        loc, scale = loc * seen, torch.where(seen, scale, 1.0)
    return dist.Normal(loc, scale)


class MeanFieldGuide(Guide):
    """The paper's guide: ``q(z_l | x_l) q(u_l | x_l)``, independent Normals from two encoders of single frames.

    Args:
        model: the TVAE it is for, with Gaussian energies or without topography.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of the log-variances. The paper starts at 0 and, measured at its MNIST size, stays on
            a plateau where the posterior is the prior; small initial variances get off it.

    Raises:
        ValueError: the model's energies are not Gaussian.

    Example:
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> MeanFieldGuide(model).posterior(torch.rand(4, 6, 1, 8, 8))["u"].mean.shape
        torch.Size([4, 6, 2, 6])
    """

    def __init__(self, model: TVAE, *, network: Network | None = None, initial_log_variance: float = -5.0) -> None:
        super().__init__(model)
        if model.prior is not None and not isinstance(model.prior, GaussianEnergy):
            raise ValueError(
                f"MeanFieldGuide: the model's energies are {type(model.prior).__name__}; it is made for GaussianEnergy "
                "(use OrbitGuide for OrbitEnergy)."
            )
        network = network if network is not None else model.network
        self.z_encoder = _FrameEncoder(model, network, initial_log_variance)
        self.u_encoder = None if model.prior is None else _FrameEncoder(model, network, initial_log_variance)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, seen = _shown(x, observed)
        q: Posterior = {"z": _normal(self.z_encoder(x), seen)}
        if self.u_encoder is not None:
            q["u"] = _normal(self.u_encoder(x), seen)
        return q


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

    Raises:
        ValueError: the model's prior is not OrbitEnergy.
    """

    index: Tensor
    prior_location: Tensor
    prior_precision: Tensor
    members: Tensor

    def __init__(self, model: TVAE, *, network: Network | None = None, initial_log_variance: float = -5.0) -> None:
        super().__init__(model)
        if not isinstance(model.prior, OrbitEnergy):
            raise ValueError("OrbitGuide: the model has no orbit energies; build it with prior=OrbitEnergy().")
        network = network if network is not None else model.network
        index, size = model.prior.index, model.prior.size
        vote_bias = -initial_log_variance - float(size.mean().log())
        self.z_encoder = _FrameEncoder(model, network, initial_log_variance)
        self.e_encoder = _FrameEncoder(model, network, vote_bias)
        self.register_buffer("prior_location", torch.digamma(size / 2) + torch.log(torch.tensor(2.0)), persistent=False)
        self.register_buffer("prior_precision", 1 / torch.polygamma(1, size / 2), persistent=False)
        self.register_buffer("members", nn.functional.one_hot(index.flatten()).to(size), persistent=False)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, seen = _shown(x, observed)
        z = _normal(self.z_encoder(x), seen)
        shift, log_precision = self.e_encoder(x)
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


def default_guide(model: TVAE, **options: Any) -> Guide:
    """The guide made for the model's prior: MeanFieldGuide, or OrbitGuide for orbit energies."""
    return (OrbitGuide if isinstance(model.prior, OrbitEnergy) else MeanFieldGuide)(model, **options)
