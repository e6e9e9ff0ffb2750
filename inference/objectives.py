"""Objectives: bounds of log p(x) per sequence, as torch modules over a model and a guide, with their gradients."""

from __future__ import annotations

import inspect
import math
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.func import functional_call

from pyro_tvae import TVAE, Guide
from pyro_tvae.posteriors import Posterior, Program, all_events, draw, standalone
from pyro_tvae.programs import CALLS, call, check_covariates, is_bayesian, propose, runnable

from .densities import Densities, both, densities, log_prob, refuse_shared, reparametrized, replay, run, scored

__all__ = ["ELBO", "IWAE", "DReG", "MeanFieldELBO", "Objective", "Terms"]


class Terms(NamedTuple):
    """What an objective says of a batch in nats per sequence, each of shape (B,).

    Attributes:
        reconstruction: ``log p(x | t)``, mean over the draws, and with it whatever else the model observes or adds as a
            factor.
        kl: ``KL(q ‖ p)``, or its estimate from the draws. What all sequences share, such as random weights, is divided
            among them.
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
    """Base of the objectives: ``forward(x, observed=None, …)`` returns :class:`Terms` to maximise; Pyro's is a loss.

    Whatever Pyro counts is counted: factors, further observed sites, scales, masks, random weights. What cannot be
    counted is refused by name.

    Args:
        model: the generative program.
        guide: its posterior: a :class:`~pyro_tvae.Guide`, an autoguide, or any Pyro program with the model's sites.
        num_particles: draws K per sequence.
        beta: weight of the KL. An attribute: set it between steps to anneal; :func:`~pyro_tvae.inference.fit` does.
        dataset_size: sequences N of the whole data set: the KL of what all sequences share counts once for all of it,
            and so by B / N in a batch. None takes the batch for the whole, as Pyro does. An attribute too.

    Raises:
        ValueError: num_particles below one, or a negative beta.
        TypeError: the model is no TVAE.
    """

    def __init__(
        self,
        model: TVAE,
        guide: Any,
        num_particles: int = 1,
        *,
        beta: float = 1.0,
        dataset_size: int | None = None,
    ) -> None:
        super().__init__()
        if num_particles < 1:
            raise ValueError(f"{type(self).__name__}: num_particles is {num_particles!r}; expected at least 1.")
        if not 0 <= beta < math.inf:
            raise ValueError(f"{type(self).__name__}: beta is {beta!r}; expected a finite weight of at least 0.")
        if not isinstance(model, TVAE):
            inside = isinstance(inspect.unwrap(model), TVAE) if callable(model) else False
            what = "a handler around a TVAE" if inside else f"of type {type(model).__name__}"
            remedy = "; put the handler inside the model, around the statements it is for" if inside else ""
            raise TypeError(f"{type(self).__name__}: the model is {what}; expected a TVAE{remedy}.")
        self.model, self.guide, self.num_particles = model, guide, num_particles
        self.beta: float | Tensor = beta  # on the device where a step is captured
        self.dataset_size = dataset_size
        self._check_guide()

    def _check_guide(self) -> None:
        """Raise ValueError where the guide is nothing for this objective."""

    def forward(
        self, x: Tensor, observed: Tensor | None = None, *, shown: Tensor | None = None, **covariates: Tensor
    ) -> Terms:
        """Terms of a batch.

        Args:
            x: (B, S, channel, height, width).
            observed: (S,) or (B, S) booleans, frames that there are: the guide sees and the model scores no others.
            shown: frames that the guide sees, where all observed ones are scored: still a bound, since it holds for
                every q.
            covariates: what model and guide take beside these, by name.
        """
        raise NotImplementedError

    def _run(
        self,
        x: Tensor,
        observed: Tensor | None,
        shown: Tensor | None,
        covariates: dict[str, Tensor],
        subsample: Tensor | None = None,
    ) -> tuple[Trace, Trace]:
        check_covariates(self.model, self.guide, covariates, x.shape[-5])
        traces = run(self.model, self.guide, x, observed, shown, covariates, subsample)
        reparametrized(*traces)
        return traces


class ELBO(Objective):
    """``E_q[log p(x | t)] − β KL(q ‖ p)`` per sequence, to maximise, where ``pyro.infer.Trace_ELBO`` is a loss.

    Reparametrised, the KL in closed form where one is registered; for guides that are not mean-field it is estimated
    from the draws. With ``subsample``, (B, n) numbers of frames, those alone are decoded and scored, each S / n times.
    With β = 1 the evidence lower bound; another weight gives the objective of the β-VAE (`Higgins et al.
    2017, beta-VAE: Learning basic visual concepts with a constrained variational framework
    <https://openreview.net/forum?id=Sy2fzU9gl>`__).

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> terms = ELBO(model, pyro_tvae.MeanFieldGuide(model))(torch.rand(4, 6, 1, 8, 8))
        >>> terms.elbo.shape
        torch.Size([4])
    """

    def forward(
        self,
        x: Tensor,
        observed: Tensor | None = None,
        *,
        shown: Tensor | None = None,
        subsample: Tensor | None = None,
        **covariates: Tensor,
    ) -> Terms:
        # One draw needs no plate; entering it at every site would cost a few percent of a step.
        many = self.num_particles > 1
        with pyro.plate("particles", self.num_particles, dim=-2) if many else nullcontext():
            traces = self._run(x, observed, shown, covariates, subsample)
        closed_form = getattr(self.guide, "mean_field", False)
        reconstruction, kl = densities(*traces, x, closed_form=closed_form, n_sequences=self.dataset_size)
        if many:
            reconstruction, kl = (term.mean(0) if term.dim() > 1 else term for term in (reconstruction, kl))
        kl = kl.expand_as(reconstruction)
        return Terms(reconstruction, kl, reconstruction - self.beta * kl)


class MeanFieldELBO(ELBO):
    """The bound of :class:`ELBO`, to maximise, with every KL in closed form: what would have to be sampled is refused.

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

    def _check_guide(self) -> None:
        model, guide = self.model, self.guide
        if not isinstance(guide, Guide):
            raise ValueError(
                f"MeanFieldELBO: {type(guide).__name__} is a program, whose distributions cannot be looked at; use "
                "ELBO, which samples the KL, or a mean-field guide such as MeanFieldGuide."
            )
        with torch.no_grad():
            alone, distributions = standalone(guide.posterior(model.blank_sequence)), model.prior_distributions()
        if not guide.mean_field or alone is None:
            raise ValueError(
                f"MeanFieldELBO: {type(guide).__name__} is not mean-field: some of its latents depend on draws of "
                "others, so that the KL is no sum over sites; use ELBO, which samples it, or a mean-field guide such "
                "as MeanFieldGuide."
            )
        for site, q in alone.items():
            try:
                kl_divergence(all_events(q), distributions[site])
            except NotImplementedError:
                raise ValueError(
                    f"MeanFieldELBO: the KL of site {site!r} from {_family(q)} to {_family(distributions[site])} has "
                    "no closed form; use ELBO, which samples it, or another distribution."
                ) from None


def _family(distribution: torch.distributions.Distribution) -> str:
    return type(getattr(distribution, "base_dist", distribution)).__name__


class IWAE(Objective):
    """``E[logsumexp_k log w_k − log K]`` per sequence, to maximise, where ``pyro.infer.RenyiELBO`` is a loss.

    The importance-weighted bound of `Burda et al. 2016, Importance weighted autoencoders
    <https://arxiv.org/abs/1509.00519>`__. The weights are the sequence's, over all its frames:
    ``log w_k = log p(x | t_k) − β (log q − log p)(z_k, u_k)``, a bound of log p(x) for β = 1. With K = 1 it is the
    ELBO, its KL estimated from the draw.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> terms = IWAE(model, pyro_tvae.MeanFieldGuide(model), num_particles=5)(torch.rand(4, 6, 1, 8, 8))
        >>> bool((terms.objective >= terms.elbo).all())
        True
    """

    def forward(
        self, x: Tensor, observed: Tensor | None = None, *, shown: Tensor | None = None, **covariates: Tensor
    ) -> Terms:
        with pyro.plate("particles", self.num_particles, dim=-2):
            traces = self._run(x, observed, shown, covariates)
        return self._terms(self._weighed(*traces, x))

    def _weighed(self, proposal: Trace, model: Trace, x: Tensor) -> Densities:
        if x.shape[-5] > 1:
            refuse_shared(proposal, type(self).__name__)
        terms, shape = densities(proposal, model, x, weights=True), (self.num_particles, x.shape[-5])
        return Densities(*(term.expand(shape) for term in terms))

    def _terms(self, of_particles: Densities) -> Terms:
        """From log p(x | t_k) and (log q − log p)(z_k, u_k), both (K, B)."""
        reconstruction, kl = of_particles
        objective = (reconstruction - self.beta * kl).logsumexp(0) - math.log(self.num_particles)
        return Terms(reconstruction.mean(0), kl.mean(0), objective)


class DReG(IWAE):
    """The bound of :class:`IWAE`, to maximise, with doubly reparametrised gradients of the guide.

    `Tucker et al. 2019, Doubly reparameterized gradient estimators for Monte Carlo objectives
    <https://arxiv.org/abs/1810.04152>`__. IWAE's gradient of the guide drowns in noise as K grows; this one does not.
    With normalised weights w̃ it is ``Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ``: the score of q, which averages to a path
    derivative, is replaced by it. For a KL weighted by β the same argument gives ``w̃_k (1 − β + β w̃_k)`` in place of
    ``w̃_k²``. The model's gradient is IWAE's. Costs one more pass of the encoders, without gradients.
    """

    def _check_guide(self) -> None:
        guide = self.guide
        if not isinstance(guide, nn.Module) or (
            (isinstance(guide, PyroModule) and (type(guide).__call__ not in CALLS or is_bayesian(guide)))
            # A part that asks the store for its parameters would not see the held ones.
            or any(runnable(part) is part for part in getattr(guide, "guides", ()))
        ):
            raise ValueError(
                f"DReG: the guide is of type {type(guide).__name__}, whose parameters cannot be held while it is "
                "scored again; expected a module with a forward, such as a pyro_tvae.Guide, or use IWAE."
            )

    def forward(
        self, x: Tensor, observed: Tensor | None = None, *, shown: Tensor | None = None, **covariates: Tensor
    ) -> Terms:
        check_covariates(self.model, self.guide, covariates, x.shape[-5])
        visible = both(observed, shown)
        with pyro.plate("particles", self.num_particles, dim=-2):
            proposal = propose(call(self.guide, x, visible, covariates), x)
            draws = _stand_ins(proposal)
            # log q with the guide's parameters held: what is left depends on them through the draws alone.
            frozen = {name: parameter.detach() for name, parameter in self.guide.named_parameters(prefix="guide")}
            again = call(getattr(self.guide, "bare", self.guide.forward), x, visible, covariates)
            fixed = partial(functional_call, _Program(self.guide), frozen, (again,))
            held = replay(fixed, proposal)
            model = replay(call(self.model, x, observed, covariates), proposal)
        reparametrized(proposal, model)
        terms = self._weighed(held, model, x)
        with torch.no_grad():
            share = (terms.likelihood - self.beta * terms.kl).softmax(0)
            factor = 1 - self.beta + self.beta * share
        for stand_in in draws:
            # The bound's own gradient brings the first factor w̃.
            stand_in.register_hook(lambda gradient: gradient * factor[(...,) + (None,) * (gradient.dim() - 2)])
        return self._terms(terms)


class _Program(nn.Module):
    """A call of the guide as a module around it, whose parameters functional_call can replace."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, program: Any) -> object:
        return program()


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


def divergence(model: TVAE, posterior: Posterior | Program, num_particles: int = 100) -> Tensor:
    """``KL(q(z, u | x) ‖ p(z, u))`` of a posterior computed before: (B,), nats per sequence.

    In closed form where the sites are independent and one is registered for each; else the mean over particles.
    """
    distributions, alone = model.prior_distributions(), standalone(posterior)
    if alone is not None:
        try:
            return torch.stack([kl_divergence(all_events(q), distributions[site]) for site, q in alone.items()]).sum(0)
        except NotImplementedError:
            pass
    with pyro.plate("particles", num_particles, dim=-2):
        trace = poutine.trace(draw).get_trace(posterior)
    log_q = torch.stack([log_prob(site) for _, site in scored(trace)]).sum(0)
    sites: Any = trace.nodes
    log_p = torch.stack([prior.log_prob(sites[site]["value"]) for site, prior in distributions.items()]).sum(0)
    return (log_q - log_p).mean(0)
