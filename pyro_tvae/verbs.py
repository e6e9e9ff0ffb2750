"""What one does with a fitted model: encode, reconstruct, sample, traverse. No gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .guides import Guide, check_judged
from .model import TVAE
from .posteriors import Posterior, moments
from .topography import roll

__all__ = ["encode", "reconstruct", "sample", "traverse"]


@torch.no_grad()
def encode(model: TVAE, guide: Guide, x: Tensor, observed: Tensor | None = None) -> Tensor:
    """Topographic variables at the posterior mean of z and the posterior mean of the energies.

    Args:
        x: (B, S, channel, height, width).
        observed: (S,) or (B, S) booleans, true where a frame was seen; None means all.

    Returns:
        t of shape (B, S, C, D).
    """
    check_judged(model, guide, x, observed)
    return point_estimate(model, guide.posterior(x, observed))


def point_estimate(model: TVAE, posterior: Posterior) -> Tensor:
    """t (B, S, C, D) at the mean of z and the mean of the energies of a posterior computed before."""
    known = moments(posterior)
    for site in ("z", *([] if model.prior is None else [model.prior.site])):
        if site not in known:
            raise ValueError(f"the model has a site {site!r} that the guide lacks; build the guide for this model.")
    z = known["z"].mean
    return z if model.prior is None else model.compose(z, model.prior.point(known[model.prior.site]))


@torch.no_grad()
def reconstruct(model: TVAE, guide: Guide, x: Tensor, observed: Tensor | None = None) -> Tensor:
    """Mean frames decoded from :func:`encode`: (B, S, channel, height, width), pixels."""
    return model.decode(encode(model, guide, x, observed)).mean


@torch.no_grad()
def sample(model: TVAE, n_sequences: int = 1) -> Tensor:
    """Mean frames of sequences drawn from the prior: (n_sequences, S, channel, height, width), pixels."""
    if n_sequences < 1:
        raise ValueError(f"sample: n_sequences is {n_sequences!r}; expected at least 1.")
    draws = {site: law.sample(torch.Size([n_sequences])) for site, law in model.laws().items()}
    return model.decode(model.compose(draws["z"], draws[model.prior.site] if model.prior is not None else None)).mean


@torch.no_grad()
def traverse(model: TVAE, guide: Guide, x: Tensor, *, frame: int = 0, shifts: Tensor | None = None) -> Tensor:
    """Capsule traversal: roll t of one frame through the capsule and decode every step.

    Args:
        x: (B, S, channel, height, width).
        frame: the frame whose t is rolled.
        shifts: whole positions to roll by, (R,); by default 0, 1, …, S − 1 counted from ``frame``, so that step l is
            the model's own forecast of frame l.

    Returns:
        Mean frames (B, R, channel, height, width).
    """
    t = encode(model, guide, x)[:, frame]
    if shifts is None:
        shifts = torch.arange(model.n_frames) - frame
    return model.decode(roll(t.unsqueeze(1), shifts.to(t.device).reshape(1, -1, 1))).mean
