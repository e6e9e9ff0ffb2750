"""Draws from a posterior: as a guide says, resampled by importance, or by NUTS, with how they were made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_tvae.posteriors import Posterior, draw
from pyro_tvae.programs import Program

from .chunks import chunk_of, in_chunks
from .likelihood import summarize, weighted_particles
from .mcmc import GuideQuality, NUTSResult
from .pareto import pareto_smooth
from .progress import progress_bar

__all__ = ["Draws", "guide_draws", "nuts_draws", "systematic"]


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
    observed: Tensor | None,
    covariates: Mapping[str, Tensor] | None,
    draws: int,
    n: int,
    resample: bool,
    shared: Collection[str],
    chunk_bytes: int | None,
    progress: bool,
) -> Draws:
    """The first of n weighted draws, or a resample of all; memory does not grow with n but for their weights.

    Resampling needs all weights first. The few draws that are kept are then made a second time, from the states that
    the random generators had, which costs less than decoding them did. It is systematic (`Kitagawa 1996, Monte Carlo
    filter and smoother <https://doi.org/10.1080/10618600.1996.10474692>`__), by Pareto-smoothed weights
    (:func:`.pareto_smooth`): a particle of weight p is kept ⌊draws · p⌋ or ⌈draws · p⌉ times, draws · p on average. So
    none is kept twice that need not be, and none is favored, as sampling without replacement would favor the light.
    """
    kept: dict[str, Tensor] = {}
    chunks, weights = list[Chunk](), []

    def make(start: int, size: int) -> tuple[Chunk, dict[str, Tensor], Tensor]:
        chunk = Chunk(start, size, _state(x.device))
        return chunk, *weighted_particles(model, posterior, x, size, covariates, observed)

    with progress_bar(n, "draws from the guide", shown=progress, leave=False) as bar:
        for chunk, values, log_w in in_chunks(n, chunk_of(x, chunk_bytes), make):
            start = chunk.start
            chunks.append(chunk)
            weights.append(log_w)
            bar.update(len(log_w))
            for name, value in values.items() if not resample and start < draws else ():
                if start == 0:
                    kept[name] = value.new_empty(draws, *value.shape[1:])
                kept[name][start : start + len(value)] = value[: draws - start]
    log_w = torch.cat(weights)
    estimate = summarize(log_w, x.shape[-4])
    of_sequences = {"pareto_k": estimate.pareto_k, "ess": estimate.ess}
    if resample:
        smoothed, _ = pareto_smooth(log_w)
        share = smoothed.softmax(0)
        chosen = systematic(share, draws)
        kept = _again(posterior, chosen.to(x.device), chunks)
        kept_weight = log_w.gather(0, chosen.to(x.device))
        of_sequences["distinct_draws"] = (chosen.sort(0).values.diff(dim=0) != 0).sum(0) + 1
        # A mean over the draws errs by what the weights leave uncertain, and by what resampling adds.
        of_sequences["ess"] = 1 / (share.square().sum(0) + 1 / draws)
    else:
        kept_weight = log_w[:draws]
    kept = {name: value.squeeze(1) if name in shared else value for name, value in kept.items()}
    latents = {name: value[None] for name, value in kept.items()}
    return Draws(latents, {"log_weight": kept_weight[None].double()}, of_sequences, {"num_particles": n})


def systematic(share: Tensor, draws: int) -> Tensor:
    """Indices of particles (draws, B), each as often as its share (K, B) says but for rounding, in random order.

    Example:
        >>> systematic(torch.tensor([[0.5], [0.0], [0.5]]), 4).sort(0).values.squeeze(1)
        tensor([0, 0, 2, 2])
    """
    share = share.double().cpu()
    place = torch.arange(draws, dtype=torch.float64)[:, None] + torch.rand(share.shape[1], dtype=torch.float64)
    upto = (share.cumsum(0) / share.sum(0)).T.contiguous()
    chosen = torch.searchsorted(upto, (place / draws).T.contiguous(), right=True).T.clamp(max=len(share) - 1)
    return chosen.gather(0, torch.rand(chosen.shape).argsort(0))


def _state(device: torch.device) -> tuple[Tensor, ...]:
    of_device = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return (torch.get_rng_state(), *of_device)


def _restore(state: tuple[Tensor, ...], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


class Chunk(NamedTuple):
    """Draws that were made at once, and the states of the generators that they were made from."""

    start: int
    size: int
    state: tuple[Tensor, ...]


def _again(posterior: Posterior | Program, chosen: Tensor, chunks: Sequence[Chunk]) -> dict[str, Tensor]:
    """The chosen of all draws, made a second time chunk by chunk: site -> (draw, B, *site)."""
    after, column = _state(chosen.device), torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)
    kept: dict[str, Tensor] = {}
    for start, size, state in chunks:
        here = (chosen >= start) & (chosen < start + size)
        if not here.any():
            continue
        _restore(state, chosen.device)
        with poutine.block(), pyro.plate("particles", size, dim=-2):
            values = draw(posterior)
        for name, value in values.items():
            if name not in kept:
                kept[name] = value.new_empty(*chosen.shape, *value.shape[2:])
            kept[name][here] = value[chosen[here] - start, column[here]]
    _restore(after, chosen.device)
    return kept


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
