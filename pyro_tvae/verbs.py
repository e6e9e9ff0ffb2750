"""What one does with a fitted model: encode, reconstruct, sample, traverse. No gradients."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .guides import check_judged, posterior_of
from .model import TVAE
from .posteriors import Posterior, moments
from .programs import is_bayesian
from .topography import roll

__all__ = ["encode", "reconstruct", "sample", "traverse"]


@torch.no_grad()
def encode(
    model: TVAE,
    guide: Any,
    x: Tensor,
    observed: Tensor | None = None,
    *,
    covariates: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Topographic variables at the posterior mean of z and the posterior mean of the energies.

    Args:
        model: the generative program.
        guide: its posterior, or any Pyro program with the model's sites, whose means are then taken over 64 draws.
        x: (B, S, channel, height, width).
        observed: (S,) or (B, S) booleans, true where a frame was seen; None means all.
        covariates: what the guide takes beside them, by name.

    Returns:
        t of shape (B, S, C, D).
    """
    check_judged(model, guide, x, observed)
    return point_estimate(model, posterior_of(guide, x, observed, covariates))


def point_estimate(model: TVAE, posterior: Posterior) -> Tensor:
    """t (B, S, C, D) at the mean of z and the mean of the energies of a posterior computed before."""
    known = _means(model, posterior)
    with _held(model, known):
        return _composed(model, known)


def _means(model: TVAE, posterior: Posterior) -> dict[str, Tensor]:
    """Site -> posterior mean, of an energy the point whose V is the expected one."""
    known = moments(posterior)
    for site in ("z", *([] if model.prior is None else [model.prior.site])):
        if site not in known:
            raise ValueError(f"the model has a site {site!r} that the guide lacks; build the guide for this model.")
    weights = model.weight_sites() if is_bayesian(model) else {}
    means = {site: one.mean for site, one in known.items() if site in ("z", *weights)}
    if model.prior is not None:
        means[model.prior.site] = model.prior.point(known[model.prior.site])
    return means


def _held(model: TVAE, values: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    return model.held(values) if is_bayesian(model) else nullcontext()


def _composed(model: TVAE, values: Mapping[str, Tensor]) -> Tensor:
    return values["z"] if model.prior is None else model.compose(values["z"], values[model.prior.site])


@torch.no_grad()
def reconstruct(
    model: TVAE,
    guide: Any,
    x: Tensor,
    observed: Tensor | None = None,
    *,
    covariates: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Mean frames (B, S, channel, height, width) decoded from :func:`encode`, random weights at their means; pixels."""
    check_judged(model, guide, x, observed)
    known = _means(model, posterior_of(guide, x, observed, covariates))
    with _held(model, known):
        return model.decode(_composed(model, known)).mean


@torch.no_grad()
def sample(model: TVAE, n_sequences: int = 1) -> Tensor:
    """Mean frames of sequences drawn from the prior: (n_sequences, S, channel, height, width), pixels."""
    if n_sequences < 1:
        raise ValueError(f"sample: n_sequences is {n_sequences!r}; expected at least 1.")
    if is_bayesian(model):
        trace = poutine.block(poutine.trace(model).get_trace)(n_sequences=n_sequences)
        nodes: dict[str, Any] = dict(trace.nodes)
        with model.held({site: nodes[site]["value"] for site in model.weight_sites()}):
            return model.decode(nodes["t"]["value"]).mean
    draws = {site: law.sample(torch.Size([n_sequences])) for site, law in model.laws().items()}
    return model.decode(_composed(model, draws)).mean


@torch.no_grad()
def traverse(model: TVAE, guide: Any, x: Tensor, *, frame: int = 0, shifts: Tensor | None = None) -> Tensor:
    """Capsule traversal: roll t of one frame through the capsule and decode every step.

    Args:
        x: (B, S, channel, height, width).
        frame: the frame whose t is rolled.
        shifts: whole positions to roll by, (R,); by default 0, 1, …, S − 1 counted from ``frame``, so that step l is
            the model's own forecast of frame l.

    Returns:
        Mean frames (B, R, channel, height, width).
    """
    check_judged(model, guide, x, None)
    known = _means(model, posterior_of(guide, x))
    if shifts is None:
        shifts = torch.arange(model.n_frames) - frame
    with _held(model, known):
        t = _composed(model, known)[:, frame]
        return model.decode(roll(t.unsqueeze(1), shifts.to(t.device).reshape(1, -1, 1))).mean
