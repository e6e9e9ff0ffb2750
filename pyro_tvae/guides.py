"""Guides: amortised posteriors over the latents of a sequence, and those whose sites are independent of each other.

A guide says ``posterior(x)``: one distribution per sample site. Everything else, being a Pyro program for SVI and
drawing many particles from one pass of the encoders, follows from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .encoders import FrameEncoder, energies_of, energy_coordinate, shown, z_coordinate
from .model import TVAE, check_finite
from .naming import NamedModule
from .networks import Network
from .parts import Part
from .posteriors import Law, Posterior, Program, draw, for_sequences
from .priors import OrbitEnergy
from .programs import accepted, is_bayesian, keywords

__all__ = ["Guide", "MeanFieldGuide", "OrbitGuide", "Posterior", "SharedTrunkGuide", "default_guide"]


class Guide(Part, NamedModule):
    """Base of all guides: subclasses define :meth:`posterior`.

    Args:
        model: the TVAE it is for.
        name: what its parameters are called in Pyro's store, for those who save and load that store; one of its own by
            default. See :class:`~pyro_tvae.naming.NamedModule`.

    Attributes:
        mean_field: the sites are independent given x, so that KL terms are taken site by site in closed form. Where it
            is False they are sampled, and ``MeanFieldELBO`` refuses the guide. Pyro's own ``TraceMeanField_ELBO`` takes
            it and stays right for the guides here, since the model's sites are independent a priori and each site of
            the guide is given by those before it.
    """

    bare_forward = True  # see programs.py
    mean_field = True

    def __init__(self, model: TVAE, *, name: str | None = None) -> None:
        super().__init__(name)
        self.n_frames, self.n_capsules, self.capsule_dim = model.latent_shape
        self.frame_shape = model.frame_shape

    def check(self, model: TVAE) -> None:
        """Raise ValueError where this guide was made for sequences or latents of another shape."""
        made = ((self.n_frames, *self.frame_shape), (self.n_frames, self.n_capsules, self.capsule_dim))
        found = ((model.n_frames, *model.frame_shape), model.latent_shape)
        for name, own, wanted in zip(("sequences", "latents"), made, found, strict=True):
            if own != wanted:
                raise ValueError(
                    f"the guide was made for {name} of shape {own}, the model has {wanted}; build the guide for this "
                    "model."
                )

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        """Site name -> distribution with batch shape (B, *site); q of the latents given the observed frames.

        An entry may also be a function of the draws of the entries before it; see :mod:`pyro_tvae.posteriors`.

        Args:
            x: (B, S, channel, height, width).
            observed: (S,) or (B, S) booleans, true where a frame was seen; None means all. What x holds in unseen
                frames has no influence.
        """
        raise NotImplementedError

    @property
    def covariates(self) -> frozenset[str]:
        """Names of what the guide takes beside x and observed: keyword arguments of ``posterior`` or ``forward``."""
        return keywords(type(self).posterior) | keywords(type(self).forward)

    def forward(self, x: Tensor, observed: Tensor | None = None, **covariates: Any) -> dict[str, Tensor]:
        """The Pyro program: one draw of every site. Covariates that only the model takes are left to it."""
        taken = {name: value for name, value in covariates.items() if name in self.covariates}
        posterior = self.posterior(x, observed, **taken)
        return self.draw(posterior if isinstance(posterior, Program) else for_sequences(posterior, x.shape[-5]))

    def draw(self, posterior: Posterior) -> dict[str, Tensor]:
        """Sample every site of a posterior computed before, so that many particles cost one pass of the encoders."""
        return draw(posterior)

    def arguments(self) -> dict[str, Any]:
        # The model is described beside the guide, not inside it.
        return {name: value for name, value in super().arguments().items() if name != "model"}


def posterior_of(
    guide: Any, x: Tensor, observed: Tensor | None = None, covariates: Mapping[str, Tensor] | None = None
) -> Posterior | Program:
    """The posterior that a guide says of x: its laws, or where it is a program only, the program to draw from.

    A posterior with a batch of one, which says the same of every sequence, is taken for each of them.
    """
    takes = accepted(guide)
    given = {name: value for name, value in (covariates or {}).items() if name in takes}
    plain = type(guide).forward is Guide.forward if isinstance(guide, Guide) else hasattr(guide, "posterior")
    if not plain or is_bayesian(guide):
        return Program(guide, x, observed, given)
    return for_sequences(guide.posterior(x, observed, **given), x.shape[-5])


def check_judged(model: TVAE, guide: object, x: Tensor, observed: Tensor | None) -> None:
    """Raise ValueError or TypeError where x is nothing for the model and its likelihood, or the guide is another's.

    Any object with a posterior will do for a guide; only a :class:`Guide` knows what it was made for.
    """
    if not hasattr(model, "check"):
        raise TypeError(
            f"the model is of type {type(model).__name__}; expected a TVAE without a handler around it, whose latents "
            "and decoder can be asked for; log_likelihood, to_arviz and nuts take handlers."
        )
    model.check(x)
    if isinstance(guide, Guide):
        guide.check(model)
    check_finite(x, observed)
    model.likelihood.check(x, observed)


class FrameGuide(Guide):
    """Base of guides that judge every latent by its own frame: subclasses define :meth:`outputs`."""

    def __init__(self, model: TVAE, *, name: str | None = None) -> None:
        super().__init__(model, name=name)
        self.z, self.energy = z_coordinate(model), energy_coordinate(model, type(self).__name__)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Two numbers per latent for z and two more for the energies, each (B, S, C, D), frame by frame."""
        raise NotImplementedError

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, seen = shown(x, observed)
        outputs = self.outputs(x)
        q: dict[str, Law] = {"z": self.z.independent(outputs[:2], seen)}
        if self.energy is not None:
            q[self.energy.site] = self.energy.independent(outputs[2:], seen)
        return q


class MeanFieldGuide(FrameGuide):
    """The paper's guide: ``q(z_l | x_l) q(u_l | x_l)``, independent Normals from two encoders of single frames.

    Positive energies, as those of GammaEnergy, get log-normals instead. The nearest one to Gamma(½, ½) is 0.15 nats
    away from it, which is paid for every energy that x says nothing about; u, whose prior is Normal, pays nothing, and
    neither does GammaGuide.

    Args:
        model: the TVAE it is for, with one energy per latent or without topography.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of the log-variances. The paper starts at 0 and, measured at its MNIST size, stays on
            a plateau where the posterior is the prior; small initial variances get off it.

    Raises:
        ValueError: the model has orbit energies, or others that are not one per latent.

    Example:
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> MeanFieldGuide(model).posterior(torch.rand(4, 6, 1, 8, 8))["u"].mean.shape
        torch.Size([4, 6, 2, 6])
    """

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name=name)
        network, biases = network if network is not None else model.network, (0.0, initial_log_variance)
        self.z_encoder = FrameEncoder(model, network, biases)
        self.u_encoder = None if self.energy is None else FrameEncoder(model, network, biases)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*self.z_encoder(x), *(self.u_encoder(x) if self.u_encoder is not None else ()))


class SharedTrunkGuide(FrameGuide):
    """Mean-field with one encoder for z and the energies: their parameters are read off the same features.

    ``q(z_l | x_l) q(u_l | x_l)`` as :class:`MeanFieldGuide`, with half its weights.

    Args:
        model: the TVAE it is for, with one energy per latent or without topography.
        network: recipe of the encoder; the model's own by default.
        initial_log_variance: bias of the log-variances.

    Raises:
        ValueError: the model has orbit energies, or others that are not one per latent.
    """

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name=name)
        biases = (0.0, initial_log_variance) * (1 if self.energy is None else 2)
        self.encoder = FrameEncoder(model, network if network is not None else model.network, biases)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.encoder(x)
        return outputs


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


def default_guide(model: TVAE, **options: Any) -> Guide:
    """The guide made for the model's prior: MeanFieldGuide, or OrbitGuide for orbit energies."""
    return (OrbitGuide if isinstance(model.prior, OrbitEnergy) else MeanFieldGuide)(model, **options)
