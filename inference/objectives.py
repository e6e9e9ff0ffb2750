"""Objectives: the terms of the evidence lower bound, per sequence, as a torch module over a model and a guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides import Posterior

__all__ = ["ELBO", "Terms", "divergence", "matched_sites"]


class Terms(NamedTuple):
    """The ELBO's terms in nats per sequence, each of shape (B,)."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """Reconstruction − KL: a lower bound of log p(x), higher is better."""
        return self.reconstruction - self.kl


class ELBO(nn.Module):
    """``E_q[log p(x | t)] − KL(q ‖ p)`` per sequence, reparametrised, KL in closed form where one is registered.

    Args:
        model: the generative program.
        guide: its posterior; for guides that are not mean-field the KL terms are sampled.
        num_particles: draws per sequence.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> terms = ELBO(model, pyro_tvae.MeanFieldGuide(model))(torch.rand(4, 6, 1, 8, 8))
        >>> terms.elbo.shape
        torch.Size([4])
    """

    def __init__(self, model: TVAE, guide: Guide, num_particles: int = 1) -> None:
        super().__init__()
        if num_particles < 1:
            raise ValueError(f"ELBO: num_particles is {num_particles}; expected at least 1.")
        self.model, self.guide, self.num_particles = model, guide, num_particles

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Terms:
        """Terms of the batch x (B, S, channel, height, width).

        With ``observed``, (S,) or (B, S) booleans, the guide sees only those frames while all are scored: still a
        bound, since it holds for every q.
        """
        arguments = (x,) if observed is None else (x, observed)
        # Calling forward leaves Pyro's parameter store out of it: this module holds the parameters itself, and a
        # statement for each of them at every access is most of what Pyro costs per step.
        guide, model = self.guide.forward, self.model.forward
        with pyro.plate("particles", self.num_particles, dim=-2):
            guide_trace = poutine.trace(guide).get_trace(*arguments)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
        latents = matched_sites(guide_trace, model_trace)
        sites: Mapping[str, Mapping[str, Any]] = model_trace.nodes
        proposals: Mapping[str, Mapping[str, Any]] = guide_trace.nodes
        observation = sites["x"]
        reconstruction = observation["fn"].log_prob(observation["value"])
        kl = torch.zeros_like(reconstruction)
        for name in latents:
            latent = sites[name]
            kl = kl + self._kl(proposals[name]["fn"], latent["fn"], latent["value"])
        return Terms(reconstruction.mean(0), kl.mean(0))

    def _kl(self, q: torch.distributions.Distribution, p: torch.distributions.Distribution, value: Tensor) -> Tensor:
        if getattr(self.guide, "mean_field", False):
            try:
                return kl_divergence(q, p)
            except NotImplementedError:
                pass
        return q.log_prob(value) - p.log_prob(value)


def matched_sites(guide_trace: Trace, model_trace: Trace) -> list[str]:
    """Latent sites of a guide, which must be those of the model; auxiliary ones are left out.

    Raises:
        ValueError: one has a site that the other lacks, so that their densities do not belong together.
    """
    guide, model = (
        [
            name
            for name in trace.stochastic_nodes
            if not isinstance(trace.nodes[name]["fn"], _Subsample)
            and not (trace.nodes[name]["infer"] or {}).get("is_auxiliary", False)
        ]
        for trace in (guide_trace, model_trace)
    )
    for name in sorted({*guide} ^ {*model}):
        has, lacks = ("guide", "model") if name in guide else ("model", "guide")
        raise ValueError(
            f"the {has} has a latent site {name!r} that the {lacks} lacks; expected the same sites in both: build the "
            "guide for this model."
        )
    return guide


def divergence(model: TVAE, posterior: Posterior) -> Tensor:
    """``KL(q(z, u | x) ‖ p(z, u))`` of a mean-field posterior computed before: (B,), nats per sequence."""
    laws = model.laws()
    terms = [kl_divergence(q.to_event(len(q.batch_shape) - 1), laws[site]) for site, q in posterior.items()]
    return torch.stack(terms).sum(0)
