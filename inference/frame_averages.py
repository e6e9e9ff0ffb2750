"""Frame averages: importance weights of sequences in which z is averaged over frame by frame, given the energies.

Frames are coupled through the energies e alone: given them, and where prior and posterior of z are independent over
frames, ``p(x | e)`` is a product over frames. Each factor is estimated by an average over M draws of its own,

``w_k = p(e_k) / q(e_k | x) · prod over l of mean over m of p(z_klm) p(x_l | z_klm, e_k) / q(z_klm | x, e_k)``,

and a product of independent unbiased estimates is unbiased: E[w_k] = p(x), so that ``log mean w_k`` is a lower bound of
log p(x) in expectation, for any K and M. It counts M^S combinations of draws at the price of M. (Importance sampling
with an estimated likelihood: `Tran, Scharth, Pitt & Kohn 2013, Importance sampling squared
<https://arxiv.org/abs/1309.3339>`__.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_tvae import TVAE
from pyro_tvae.likelihoods import of_seen, seen_pixels
from pyro_tvae.model import mask_of
from pyro_tvae.posteriors import Posterior, Program, all_events, standalone

from .chunks import in_chunks
from .inspection import plain_program

__all__ = ["frame_averaged_weights", "refuse_coupled_frames"]

REMEDY = "use frame_particles=1, whose weights are of whole sequences."


def refuse_coupled_frames(model: Any, posterior: Posterior | Program) -> None:
    """Raise ValueError where z cannot be averaged over frame by frame.

    The frames of z have to be independent in its prior, and in the posterior once the energies are drawn.
    """
    if not plain_program(model):
        raise ValueError(
            f"frame_particles: {type(model).__name__} has statements of its own, or a handler around it, which may "
            f"couple frames; expected a plain TVAE: {REMEDY}"
        )
    sites = [] if isinstance(posterior, Program) else [*posterior]
    if {*sites} != {"z", *model.energies} or not (sites[-1] == "z" or standalone(posterior)):
        raise ValueError(
            "frame_particles: this guide does not draw the energies, and z by itself or given them, each as a site of "
            f"its own, so that z cannot be averaged over given the energies: {REMEDY}"
        )
    if _base(model.prior_distributions()["z"]).batch_shape[:1] != (model.n_frames,):
        raise ValueError(f"frame_particles: {type(model.latent).__name__} couples the frames of z: {REMEDY}")


def frame_averaged_weights(
    model: TVAE,
    posterior: Posterior,
    x: Tensor,
    observed: Tensor | None,
    num_particles: int,
    frame_particles: int,
    chunk: int,
    exact: Mapping[str, Tensor] | None = None,
    measured: Tensor | None = None,
) -> Tensor:
    """Log-weights of K draws of the energies, each with M draws of z per frame.

    Args:
        model: a plain TVAE.
        posterior: energies first, then z.
        x: (B, S, channel, height, width).
        observed: (S,) or (B, S) booleans, or None for all.
        num_particles: K.
        frame_particles: M.
        chunk: draws of z that are decoded at once, for each of the K.
        exact: latents (B, *site) drawn from the posterior, as those are that made x: they take the place of the first
            draw of the energies and of the first of z in each of its frames. With the other weights as they are, the
            log of the mean weight is an upper bound of log p(x) in expectation.
        measured: (B, S, channel or 1, height, width) booleans, or None for all.

    Returns:
        (K, B), nats per sequence.
    """
    refuse_coupled_frames(model, posterior)
    priors, plates = model.prior_distributions(), (num_particles, x.shape[-5])
    values: dict[str, Tensor] = {}
    log_w = x.new_zeros(plates)
    for site in model.energies:
        energies: Any = posterior[site]
        energies = all_events(energies)
        values[site] = energies.sample(torch.Size(plates[:1]))
        if exact is not None:
            values[site][0] = exact[site]
        log_w = log_w + priors[site].log_prob(values[site]) - energies.log_prob(values[site])
    z: Any = posterior["z"]
    # By type: Pyro's distributions can be called as well.
    q = _base(z if isinstance(z, Distribution) else z(values))
    prior = _base(priors["z"])
    independent = 3 - len(q.event_shape)  # of the dimensions (S, C, D)
    if independent < 1:
        raise ValueError(f"frame_particles: this guide couples the frames of z: {REMEDY}")
    q = q.expand(torch.Size((*plates, *model.latent_shape[:independent])))
    mask = mask_of(observed, x)
    if (seen := seen_pixels(mask, measured)) is not None:  # what was not seen may hold anything
        x = torch.where(seen, x, model.likelihood.blank)
    total = x.new_full((*plates, model.n_frames), -math.inf)

    def of_frames(start: int, size: int) -> Tensor:
        drawn = q.sample(torch.Size([size]))
        if exact is not None and start == 0:
            drawn[0, 0] = exact["z"]
        log_frame = of_seen(model.decode(model.compose(values | {"z": drawn})), None, measured).log_prob(x)
        log_frame = log_frame + _per_frame(prior.log_prob(drawn)) - _per_frame(q.log_prob(drawn))
        return log_frame.logsumexp(0)

    for log_mean in in_chunks(frame_particles, chunk, of_frames):
        total = torch.logaddexp(total, log_mean)
    log_frame = total - math.log(frame_particles)
    if mask is not None:  # what was not seen is averaged over exactly: there draws of z weigh 1 on average
        log_frame = torch.where(mask, log_frame, 0)
    return log_w + log_frame.sum(-1)


def _base(distribution: Any) -> Any:
    """A distribution with its independent dimensions as batch dimensions."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def _per_frame(log_prob: Tensor) -> Tensor:
    """(draws, particles, sequences, frames, …), summed over what follows."""
    return log_prob.flatten(4).sum(-1) if log_prob.dim() > 4 else log_prob
