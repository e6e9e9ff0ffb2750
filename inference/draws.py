"""Draws from a posterior: as a guide says, resampled by importance, or by NUTS, with how they were made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_tvae.posteriors import Posterior
from pyro_tvae.programs import Program

from .likelihood import summarize, weighted_particles
from .mcmc import GuideQuality, NUTSResult
from .progress import progress_bar

__all__ = ["Draws", "guide_draws", "nuts_draws"]


@dataclass(frozen=True)
class Draws:
    """Draws of the latent sites, and statistics of how they were made.

    Attributes:
        latents: each (chain, draw, sequence, *site), or (chain, draw, *site) where all sequences share it.
        stats: of every draw, (chain, draw) or (chain, draw, sequence).
        sequence_stats: of every sequence, (sequence,).
        facts: of all of them, by name.
    """

    latents: dict[str, Tensor]
    stats: dict[str, Tensor] = field(default_factory=dict)
    sequence_stats: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def guide_draws(
    model: Any,
    posterior: Posterior | Program,
    x: Tensor,
    covariates: Mapping[str, Tensor] | None,
    draws: int,
    n: int,
    resample: bool,
    shared: Collection[str],
    chunk_bytes: int,
    progress: bool,
) -> Draws:
    """The first of n weighted draws, or a resample of all; memory does not grow with n.

    Resampling is multinomial and needs one pass: after every chunk each of the kept draws gives way to one of the
    chunk's with the probability that the chunk's weights have among all weights so far.
    """
    chunk = max(1, chunk_bytes // (x.numel() * x.element_size()))
    column = torch.arange(len(x), device=x.device)
    kept: dict[str, Tensor] = {}
    kept_weight, weights = x.new_empty(0, len(x)), []
    total = x.new_full((len(x),), -torch.inf)
    with progress_bar(n, "draws from the guide", shown=progress, leave=False) as bar:
        for start in range(0, n, chunk):
            values, log_w = weighted_particles(model, posterior, x, min(chunk, n - start), covariates)
            weights.append(log_w)
            bar.update(len(log_w))
            if not resample:
                more = draws - len(kept_weight)
                kept = {name: torch.cat([kept[name], v[:more]]) if kept else v[:more] for name, v in values.items()}
                kept_weight = torch.cat([kept_weight, log_w[:more]])
                continue
            # A sequence is resampled by its own weights: a sum over the batch would weigh what belongs to others.
            share = log_w.logsumexp(0)
            total = torch.logaddexp(total, share)
            row = torch.distributions.Categorical(logits=log_w.T).sample(torch.Size([draws]))
            fresh = torch.rand(draws, len(x), device=x.device) < (share - total).exp()
            picked = {name: v[row, column] for name, v in values.items()}
            kept = {name: torch.where(_like(fresh, v), v, kept.get(name, v)) for name, v in picked.items()}
            kept_weight = torch.where(fresh, log_w[row, column], kept_weight if start else log_w[row, column])
    estimate = summarize(torch.cat(weights), x.shape[-4])
    of_sequences = {"pareto_k": estimate.pareto_k, "ess": estimate.ess}
    kept = {name: value.squeeze(1) if name in shared else value for name, value in kept.items()}
    latents = {name: value[None] for name, value in kept.items()}
    return Draws(latents, {"log_weight": kept_weight[None].double()}, of_sequences, {"num_particles": n})


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *(1,) * (value.dim() - mask.dim()))


def nuts_draws(
    result: NUTSResult, n_sequences: int, shared: Collection[str], quality: GuideQuality | None = None
) -> Draws:
    """The draws of :func:`nuts`, and of each sequence the worst that its diagnostics and a guide's quality say."""

    def of_sequences(values: Mapping[str, Tensor]) -> Tensor:
        # What all sequences share is as much a latent of each of them.
        rows = (
            value.reshape(1 if name in shared else n_sequences, -1).expand(n_sequences, -1)
            for name, value in values.items()
        )
        return torch.cat([*rows], 1)

    worst = {"ess": of_sequences(result.ess).amin(1), "rhat": of_sequences(result.rhat).amax(1)}
    if quality is not None:
        ratio = of_sequences(quality.variance_ratio)
        worst |= {
            "pareto_k": quality.pareto_k,
            "guide_mean_difference": of_sequences(quality.mean_difference).abs().amax(1),
            "guide_variance_ratio": ratio.gather(1, ratio.log().abs().argmax(1, keepdim=True)).squeeze(1),
        }
    return Draws(result.draws, result.stats, worst)
