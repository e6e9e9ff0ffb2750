"""Pyro's own ELBOs as objectives: trained by their differentiable loss, judged by the ELBO of this package."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro.infer
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_tvae import TVAE, Guide
from pyro_tvae.programs import call, is_plate

from .densities import both
from .objectives import ELBO, Objective, Terms

__all__ = ["PyroObjective", "adapted"]


class _Weigh(Messenger):
    """Weighs whatever is drawn by β, in model and guide alike; what is observed keeps its weight."""

    def __init__(self, beta: float | Tensor) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not is_plate(msg):
            msg["scale"] = msg["scale"] * self.beta


class PyroObjective(Objective):
    """One of Pyro's ELBOs, its loss negated so that it is to maximise, shared out evenly among a batch's sequences.

    Only its sum over the batch is known, so reconstruction and KL are NaN while it trains. Without gradients, where a
    fit validates, the terms are those of :class:`ELBO`.

    Args:
        model: the generative program.
        guide: its posterior.
        loss: Pyro's object, such as ``pyro.infer.Trace_ELBO(num_particles=4)``.
        beta: weight of what is drawn; above 0.
    """

    def __init__(self, model: TVAE, guide: Guide, loss: pyro.infer.ELBO, *, beta: float = 1.0) -> None:
        super().__init__(model, guide, 1, beta=beta)
        self.loss, self.judge = loss, [ELBO(model, guide)]  # in a list: its parameters are those of this module

    def forward(
        self, x: Tensor, observed: Tensor | None = None, *, shown: Tensor | None = None, **covariates: Any
    ) -> Terms:
        if not torch.is_grad_enabled():
            terms: Terms = self.judge[0](x, observed, shown=shown, **covariates)
            return terms
        fixed = not isinstance(self.beta, Tensor)  # else it changes, and is not looked at
        if fixed and self.beta <= 0:
            raise ValueError("fit: Pyro's ELBOs take no KL of weight 0; give a beta above 0, or objective=ELBO.")
        model = call(self.model, x, observed, covariates)
        guide = call(self.guide, x, both(observed, shown), covariates)
        with _Weigh(self.beta) if not fixed or self.beta != 1 else nullcontext():
            differentiable_loss: Any = getattr(self.loss, "differentiable_loss")  # noqa: B009 - unknown to the base
            loss = differentiable_loss(model, guide)
        each = (-loss / len(x)).expand(len(x))
        unknown = torch.full_like(each, torch.nan).detach()
        return Terms(unknown, unknown, each)


def adapted(objective: Any) -> Callable[[TVAE, Guide, int], Objective]:
    """(model, guide, num_particles) -> Objective of one of Pyro's ELBOs, class or instance; others as they are.

    Raises:
        ValueError: Pyro gives it no differentiable loss.
    """
    kind = objective if inspect.isclass(objective) else type(objective)
    if not issubclass(kind, pyro.infer.ELBO):
        unchanged: Callable[[TVAE, Guide, int], Objective] = objective
        return unchanged
    name = kind.__name__
    if not hasattr(kind, "differentiable_loss") or kind.differentiable_loss is getattr(
        pyro.infer.ELBO, "differentiable_loss", None
    ):
        raise ValueError(
            f"fit: Pyro's {name} has no differentiable loss; use objective=IWAE or DReG with num_particles=…, or train "
            "with pyro.infer.SVI."
        )

    def make(model: TVAE, guide: Guide, num_particles: int) -> Objective:
        if kind is objective:
            if num_particles < 1:
                raise ValueError(f"fit: num_particles is {num_particles!r}; expected at least 1.")
            options = {"num_particles": num_particles, "vectorize_particles": num_particles > 1, "max_plate_nesting": 1}
            return PyroObjective(model, guide, kind(**options))
        if num_particles not in (1, objective.num_particles):
            raise ValueError(
                f"fit: num_particles is {num_particles}, the {name} has {objective.num_particles}; set it there."
            )
        return PyroObjective(model, guide, objective)

    return make
