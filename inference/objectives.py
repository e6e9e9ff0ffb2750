"""Objectives: bounds of log p(x) per sequence, as torch modules over a model and a guide, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import functional_call

from pyro_tvae import TVAE, Guide
from pyro_tvae.posteriors import Posterior, draw, standalone

__all__ = ["ELBO", "IWAE", "DReG", "MeanFieldELBO", "Objective", "Terms", "divergence", "matched_sites"]


class Terms(NamedTuple):
    """What an objective says of a batch in nats per sequence, each of shape (B,).

    Attributes:
        reconstruction: ``log p(x | t)``, mean over the draws.
        kl: ``KL(q ‖ p)``, or its estimate from the draws.
        objective: what is maximised; higher is better.
    """

    reconstruction: Tensor
    kl: Tensor
    objective: Tensor

    @property
    def elbo(self) -> Tensor:
        """Reconstruction − KL: a lower bound of log p(x), whatever is maximised; higher is better."""
        return self.reconstruction - self.kl


class Objective(nn.Module):
    """Base of the objectives: a module whose ``forward(x, observed=None)`` returns :class:`Terms`.

    Args:
        model: the generative program.
        guide: its posterior.
        num_particles: draws K per sequence.
        beta: weight of the KL. An attribute: set it between steps to anneal; :func:`~pyro_tvae.inference.fit` does.

    Raises:
        ValueError: num_particles below one, or a negative beta.
    """

    def __init__(self, model: TVAE, guide: Guide, num_particles: int = 1, *, beta: float = 1.0) -> None:
        super().__init__()
        if num_particles < 1:
            raise ValueError(f"{type(self).__name__}: num_particles is {num_particles!r}; expected at least 1.")
        if not 0 <= beta < math.inf:
            raise ValueError(f"{type(self).__name__}: beta is {beta!r}; expected a finite weight of at least 0.")
        self.model, self.guide, self.num_particles, self.beta = model, guide, num_particles, beta

    def forward(
        self, x: Tensor, observed: Tensor | None = None, *, shown: Tensor | None = None, **covariates: Any
    ) -> Terms:
        """Terms of the batch x (B, S, channel, height, width).

        With ``observed``, (S,) or (B, S) booleans, the other frames do not exist: neither are they seen by the guide
        nor scored. With ``shown``, likewise, the guide sees only those while all that exist are scored: still a bound,
        since it holds for every q. Further tensors of the batch go by name to the programs that take them.
        """
        raise NotImplementedError

    # Calling forward leaves Pyro's parameter store out of it: this module holds the parameters itself, and a statement
    # for each of them at every access is most of what Pyro costs per step.
    def _propose(self, arguments: tuple[Tensor, ...], covariates: Mapping[str, Any]) -> Trace:
        return poutine.trace(self.guide.forward).get_trace(*arguments, **_taken(self.guide, covariates))

    def _score(self, x: Tensor, observed: Tensor | None, proposal: Trace, covariates: Mapping[str, Any]) -> Trace:
        arguments, taken = _seen(x, observed, None), _taken(self.model, covariates)
        return poutine.trace(poutine.replay(self.model.forward, trace=proposal)).get_trace(*arguments, **taken)


def _seen(x: Tensor, observed: Tensor | None, shown: Tensor | None) -> tuple[Tensor, ...]:
    seen = shown if observed is None else observed if shown is None else observed & shown
    return (x,) if seen is None else (x, seen)


def _taken(program: object, covariates: Mapping[str, Any]) -> dict[str, Any]:
    return {name: covariates[name] for name in getattr(program, "covariates", ()) if name in covariates}


class ELBO(Objective):
    """``E_q[log p(x | t)] − β KL(q ‖ p)`` per sequence, reparametrised, KL in closed form where one is registered.

    With β = 1 the evidence lower bound; another weight gives the β-VAE's objective (Higgins et al. 2017). For guides
    that are not mean-field the KL is estimated from the draws.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> terms = ELBO(model, pyro_tvae.MeanFieldGuide(model))(torch.rand(4, 6, 1, 8, 8))
        >>> terms.elbo.shape
        torch.Size([4])
    """

    def forward(
        self, x: Tensor, observed: Tensor | None = None, *, shown: Tensor | None = None, **covariates: Any
    ) -> Terms:
        # One draw needs no plate; entering it at every site would cost a few percent of a step.
        many = self.num_particles > 1
        with pyro.plate("particles", self.num_particles, dim=-2) if many else nullcontext():
            guide_trace = self._propose(_seen(x, observed, shown), covariates)
            model_trace = self._score(x, observed, guide_trace, covariates)
        latents = _reparametrised(guide_trace, model_trace)
        sites: Mapping[str, Mapping[str, Any]] = model_trace.nodes
        proposals: Mapping[str, Mapping[str, Any]] = guide_trace.nodes
        reconstruction = _log_prob(model_trace, "x")
        kl = torch.zeros_like(reconstruction)
        for name in latents:
            latent = sites[name]
            kl = kl + self._kl(proposals[name]["fn"], latent["fn"], latent["value"])
        # Where a guide draws several sites at once, log q is that of the joint draw.
        for name in _latents(guide_trace, auxiliary=True):
            kl = kl + _log_prob(guide_trace, name)
        if many:
            reconstruction, kl = reconstruction.mean(0), kl.mean(0)
        return Terms(reconstruction, kl, reconstruction - self.beta * kl)

    def _kl(self, q: torch.distributions.Distribution, p: torch.distributions.Distribution, value: Tensor) -> Tensor:
        if getattr(self.guide, "mean_field", False):
            try:
                return kl_divergence(q, p)
            except NotImplementedError:
                pass
        return q.log_prob(value) - p.log_prob(value)


class MeanFieldELBO(ELBO):
    """The bound of :class:`ELBO` with every KL in closed form: what would have to be sampled is refused.

    Pyro's ``TraceMeanField_ELBO`` and :class:`ELBO` sample a KL where they have to, and do not say so. Use this one
    where the KL is to be exact.

    Raises:
        ValueError: the guide is not mean-field, or a site's KL has no closed form.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> MeanFieldELBO(model, pyro_tvae.FlowGuide(model))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: MeanFieldELBO: FlowGuide is not mean-field...
    """

    def __init__(self, model: TVAE, guide: Guide, num_particles: int = 1, *, beta: float = 1.0) -> None:
        super().__init__(model, guide, num_particles, beta=beta)
        blank = next(model.decoder.parameters()).new_zeros(1, model.n_frames, *model.frame_shape)
        with torch.no_grad():
            alone, laws = standalone(guide.posterior(blank)), model.laws()
        if not guide.mean_field or alone is None:
            raise ValueError(
                f"MeanFieldELBO: {type(guide).__name__} is not mean-field: some of its latents depend on draws of "
                "others, so that the KL is no sum over sites; use ELBO, which samples it, or a mean-field guide such "
                "as MeanFieldGuide."
            )
        for site, q in alone.items():
            try:
                kl_divergence(q.to_event(len(q.batch_shape) - 1), laws[site])
            except NotImplementedError:
                raise ValueError(
                    f"MeanFieldELBO: the KL of site {site!r} from {_family(q)} to {_family(laws[site])} has no closed "
                    "form; use ELBO, which samples it, or another law."
                ) from None


def _family(law: torch.distributions.Distribution) -> str:
    return type(getattr(law, "base_dist", law)).__name__


class IWAE(Objective):
    """``E[logsumexp_k log w_k − log K]`` per sequence, the importance-weighted bound (Burda et al. 2016).

    The weights are the sequence's, over all its frames: ``log w_k = log p(x | t_k) − β (log q − log p)(z_k, u_k)``, a
    bound of log p(x) for β = 1. With K = 1 it is the ELBO, its KL estimated from the draw.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> terms = IWAE(model, pyro_tvae.MeanFieldGuide(model), num_particles=5)(torch.rand(4, 6, 1, 8, 8))
        >>> bool((terms.objective >= terms.elbo).all())
        True
    """

    def forward(
        self, x: Tensor, observed: Tensor | None = None, *, shown: Tensor | None = None, **covariates: Any
    ) -> Terms:
        with pyro.plate("particles", self.num_particles, dim=-2):
            proposal = self._propose(_seen(x, observed, shown), covariates)
            return self._terms(*_densities(proposal, self._score(x, observed, proposal, covariates)))

    def _terms(self, reconstruction: Tensor, kl: Tensor) -> Terms:
        """From log p(x | t_k) and (log q − log p)(z_k, u_k), both (K, B)."""
        objective = (reconstruction - self.beta * kl).logsumexp(0) - math.log(self.num_particles)
        return Terms(reconstruction.mean(0), kl.mean(0), objective)


class DReG(IWAE):
    """The bound of :class:`IWAE` with doubly reparametrised gradients of the guide (Tucker et al. 2019).

    IWAE's gradient of the guide drowns in noise as K grows; this one does not. With normalised weights w̃ it is
    ``Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ``: the score of q, which averages to a path derivative, is replaced by it. For a
    KL weighted by β the same argument gives ``w̃_k (1 − β + β w̃_k)`` in place of ``w̃_k²``. The model's gradient is
    IWAE's. Costs one more pass of the encoders, without gradients.
    """

    def forward(
        self, x: Tensor, observed: Tensor | None = None, *, shown: Tensor | None = None, **covariates: Any
    ) -> Terms:
        arguments = _seen(x, observed, shown)
        frozen = {name: parameter.detach() for name, parameter in self.guide.named_parameters(prefix="guide")}
        with pyro.plate("particles", self.num_particles, dim=-2):
            proposal = self._propose(_seen(x, observed, shown), covariates)
            draws = _stand_ins(proposal)
            # log q with the guide's parameters held: what is left depends on them through the draws alone.
            scored = partial(functional_call, _Program(self.guide), frozen, arguments, _taken(self.guide, covariates))
            held = poutine.trace(poutine.replay(scored, trace=proposal)).get_trace()
            reconstruction, kl = _densities(held, self._score(x, observed, proposal, covariates))
        with torch.no_grad():
            share = (reconstruction - self.beta * kl).softmax(0)
            factor = 1 - self.beta + self.beta * share
        for stand_in in draws:
            # The bound's own gradient brings the first factor w̃.
            stand_in.register_hook(lambda gradient: gradient * factor[(...,) + (None,) * (gradient.dim() - 2)])
        return self._terms(reconstruction, kl)


class _Program(nn.Module):
    """The guide's forward without the parameter store, as a module whose parameters functional_call can replace."""

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, *arguments: Tensor, **covariates: Any) -> object:
        return self.guide.forward(*arguments, **covariates)


def _stand_ins(proposal: Trace) -> list[Tensor]:
    """Puts a view in the place of every draw that depends on parameters, and returns the views.

    Where one draw of a guide depends on another, the dependence goes on through the original: a gradient is then
    weighted once, at the stand-in, and not again on its way back.
    """
    draws = []
    for name in proposal.stochastic_nodes:
        site: Any = proposal.nodes[name]
        if site["value"].requires_grad:
            site["value"] = site["value"].view_as(site["value"])
            draws.append(site["value"])
    return draws


def _densities(proposal: Trace, model: Trace) -> tuple[Tensor, Tensor]:
    """``log p(x | t)`` and ``log q − log p`` of the latents, both of the shape of the plates."""
    reconstruction = _log_prob(model, "x")
    kl = torch.zeros_like(reconstruction)
    for name in _reparametrised(proposal, model):
        kl = kl + _log_prob(proposal, name) - _log_prob(model, name)
    for name in _latents(proposal, auxiliary=True):
        kl = kl + _log_prob(proposal, name)
    return reconstruction, kl


def _reparametrised(proposal: Trace, model: Trace) -> list[str]:
    """The latent sites, whose draws have to be differentiable: no objective here has a score-function term."""
    latents = matched_sites(proposal, model)
    for name in [*latents, *_latents(proposal, auxiliary=True)]:
        law: Any = proposal.nodes[name]["fn"]
        if not law.has_rsample:
            raise ValueError(
                f"the guide draws site {name!r} from {type(getattr(law, 'base_dist', law)).__name__}, which is not "
                "reparametrised; expected a distribution with rsample, or train with pyro.infer.Trace_ELBO."
            )
    return latents


def _log_prob(trace: Trace, name: str) -> Tensor:
    site: Mapping[str, Any] = trace.nodes[name]
    return site["fn"].log_prob(site["value"])


def matched_sites(guide_trace: Trace, model_trace: Trace) -> list[str]:
    """Latent sites of a guide, which must be those of the model; auxiliary ones are left out.

    Raises:
        ValueError: one has a site that the other lacks, so that their densities do not belong together.
    """
    guide, model = _latents(guide_trace), _latents(model_trace)
    for name in sorted({*guide} ^ {*model}):
        has, lacks = ("guide", "model") if name in guide else ("model", "guide")
        raise ValueError(
            f"the {has} has a latent site {name!r} that the {lacks} lacks; expected the same sites in both: build the "
            "guide for this model."
        )
    return guide


def _latents(trace: Trace, auxiliary: bool = False) -> list[str]:
    """Names of the sites that are sampled, plates aside: those of the model, or those of a guide alone."""
    return [
        name
        for name in trace.stochastic_nodes
        if not isinstance(trace.nodes[name]["fn"], _Subsample)
        and (trace.nodes[name]["infer"] or {}).get("is_auxiliary", False) == auxiliary
    ]


def divergence(model: TVAE, posterior: Posterior, num_particles: int = 100) -> Tensor:
    """``KL(q(z, u | x) ‖ p(z, u))`` of a posterior computed before: (B,), nats per sequence.

    In closed form where the sites are independent and one is registered for each; else the mean over particles.
    """
    laws, alone = model.laws(), standalone(posterior)
    if alone is not None:
        try:
            terms = [kl_divergence(q.to_event(len(q.batch_shape) - 1), laws[site]) for site, q in alone.items()]
            return torch.stack(terms).sum(0)
        except NotImplementedError:
            pass
    with pyro.plate("particles", num_particles, dim=-2):
        trace = poutine.trace(draw).get_trace(posterior)
    trace.compute_log_prob()
    sites: Mapping[str, Mapping[str, Any]] = trace.nodes
    drawn = [*_latents(trace), *_latents(trace, auxiliary=True)]
    log_q = torch.stack([sites[name]["log_prob"] for name in drawn]).sum(0)
    log_p = torch.stack([law.log_prob(sites[site]["value"]) for site, law in laws.items()]).sum(0)
    return (log_q - log_p).mean(0)
