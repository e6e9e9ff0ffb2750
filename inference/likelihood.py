"""Likelihood: per-sequence importance weights, and what they say about log p(x).

Frames are coupled through V, so the sequence is the unit of independence: one weight per particle and sequence, summed
over all frames. Averaging weights frame by frame is not a bound.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from tqdm.auto import tqdm

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides import Posterior
from pyro_tvae.model import frame_mask

from .objectives import matched_sites

__all__ = ["LogLikelihood", "log_likelihood", "log_weights", "seeded"]

CHUNK_BYTES = 16 * 2**20  # of decoded pixels: small enough to stay in a processor's cache, large enough to fill it


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run a block under its own seed and leave torch's global generators as they were; None changes nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def log_weights(
    model: TVAE,
    guide: Guide | Callable[..., object],
    x: Tensor,
    num_particles: int,
    *,
    observed: Tensor | None = None,
    posterior: Posterior | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    seed: int | None = None,
) -> Tensor:
    """Log importance weights ``log w_k = log p(x, z_k, u_k) − log q(z_k, u_k | x)``, summed over all frames.

    The encoders run once; particles are drawn and decoded in chunks, so memory does not grow with their number.

    Args:
        model: the generative program.
        guide: a guide, or any Pyro program of x with the model's sites and a plate ``sequence`` at dim −1 (its encoders
            then run once per chunk).
        x: (B, S, channel, height, width).
        num_particles: draws K per sequence.
        observed: (S,) or (B, S) booleans: the guide sees and the model scores only these frames, so that the weights
            estimate log p of them. None means all.
        posterior: ``guide.posterior(x, observed)``, where it was computed before.
        chunk_bytes: bound on the decoded pixels of one chunk.
        seed: makes the draws reproducible without touching torch's global state.

    Returns:
        (K, B), nats per sequence.

    Raises:
        ValueError: x does not fit the model, or num_particles is below one.
    """
    model.check(x)
    if num_particles < 1:
        raise ValueError(f"log_weights: num_particles is {num_particles}; expected at least 1.")
    chunk = max(1, chunk_bytes // (x.numel() * x.element_size()))
    program: Callable[[], object]
    if isinstance(guide, Guide):
        program = partial(guide.draw, guide.posterior(x, observed) if posterior is None else posterior)
    else:
        program = partial(guide, x) if observed is None else partial(guide, x, observed)
    with seeded(seed):
        sizes = [min(chunk, num_particles - start) for start in range(0, num_particles, chunk)]
        return torch.cat([_chunk_of_weights(model, program, x, observed, size) for size in sizes])


INNER_PLATE = (
    "the guide has a plate beside 'sequence'; expected frames, capsules and positions in event dimensions (to_event) "
    "and sequences in a plate at dim=-1, since a weight belongs to a whole sequence."
)


def _refuse_inner_plates(trace: Trace) -> None:
    for name in trace.stochastic_nodes:
        if not {frame.name for frame in trace.nodes[name]["cond_indep_stack"]} <= {"particles", "sequence"}:
            raise ValueError(INNER_PLATE)


def _chunk_of_weights(
    model: TVAE, program: Callable[[], object], x: Tensor, observed: Tensor | None, size: int
) -> Tensor:
    try:
        with pyro.plate("particles", size, dim=-2):
            guide_trace = poutine.trace(program).get_trace()
            _refuse_inner_plates(guide_trace)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x, observed)
    except ValueError as error:
        if "collide" in str(error):  # Pyro's words for a plate on the particles' dimension
            raise ValueError(INNER_PLATE) from None
        raise
    matched_sites(guide_trace, model_trace)
    log_w = x.new_zeros(size, x.shape[0])
    for sign, trace in ((1, model_trace), (-1, guide_trace)):
        trace.compute_log_prob()
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            term = site["log_prob"]
            if term.dim() not in (0, 2) or (term.dim() == 2 and term.shape[-1] not in (1, x.shape[0])):
                raise ValueError(
                    f"site {name!r} has log-probabilities of shape {tuple(term.shape)}; expected (particles, "
                    "sequences): keep frames in event dimensions (to_event) and sequences in a plate at dim=-1."
                )
            log_w = log_w + sign * term
    return log_w


@dataclass(frozen=True)
class LogLikelihood:
    """Estimates per sequence, each of shape (N,), from K importance weights; nats per sequence.

    Attributes:
        iwae: ``logsumexp_k log w_k − log K``, a lower bound of log p(x) in expectation, tighter with K.
        standard_error: Monte-Carlo standard error of ``iwae`` (delta method).
        ess: effective sample size of the weights, 1 to K; a value near 1 says that one particle carries the estimate.
        elbo: mean of log w, the K = 1 bound.
        num_particles: K.
        n_frames: S, to convert to nats per frame.
    """

    iwae: Tensor
    standard_error: Tensor
    ess: Tensor
    elbo: Tensor
    num_particles: int
    n_frames: int

    @property
    def per_frame(self) -> float:
        """Mean IWAE in nats per frame over sequences, each weighted equally; higher is better."""
        return float(self.iwae.mean()) / self.n_frames

    @property
    def per_frame_error(self) -> float:
        """Standard error of :attr:`per_frame`: sequences drawn from their distribution, particles included."""
        if len(self.iwae) < 2:
            return math.nan
        return float(self.iwae.std()) / math.sqrt(len(self.iwae)) / self.n_frames


def summarise(log_w: Tensor, n_frames: int) -> LogLikelihood:
    """Estimates from log-weights (K, N); the arithmetic is in double precision."""
    log_w = log_w.double()
    k = log_w.shape[0]
    total = log_w.logsumexp(0)
    share = (log_w - total).exp()  # normalised weights, summing to one over particles
    square = share.square().sum(0)
    # Relative variance of the mean weight is (K Σ share² − 1) / (K − 1); the log has the same to first order.
    error = ((k * square - 1).clamp(min=0) / (k - 1)).sqrt() if k > 1 else torch.full_like(total, math.nan)
    return LogLikelihood(total - math.log(k), error, 1 / square, log_w.mean(0), k, n_frames)


def concatenate(parts: Sequence[LogLikelihood]) -> LogLikelihood:
    """Estimates of several batches as one."""
    tensors = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in ("iwae", "standard_error", "ess", "elbo")
    }
    return LogLikelihood(**tensors, num_particles=parts[0].num_particles, n_frames=parts[0].n_frames)


def log_likelihood(
    model: TVAE,
    guide: Guide | Callable[..., object],
    x: Tensor,
    num_particles: int = 100,
    *,
    observed: Tensor | None = None,
    batch_size: int = 16,
    seed: int | None = 0,
    progress: bool = False,
) -> LogLikelihood:
    """Per-sequence importance-weighted bound on log p(x) (Burda et al. 2016) with its uncertainty.

    Args:
        model: the generative program.
        guide: the proposal.
        x: (N, S, channel, height, width), any N.
        num_particles: draws K per sequence; the bound grows with K.
        observed: (S,) or (N, S) booleans: log p of these frames alone. So log p(unseen | seen) is a difference of two.
        batch_size: sequences per pass of the encoders.
        seed: of the draws; None uses torch's global generator.
        progress: show a progress bar.

    Returns:
        :class:`LogLikelihood` with tensors of shape (N,) on the CPU.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> guide = pyro_tvae.MeanFieldGuide(model)
        >>> log_likelihood(model, guide, torch.rand(4, 6, 1, 8, 8), num_particles=10).iwae.shape
        torch.Size([4])
    """
    if len(x) < 1 or batch_size < 1:
        raise ValueError(f"log_likelihood: {len(x)} sequences in batches of {batch_size}; expected at least 1 of each.")
    whole = frame_mask(observed, len(x), model.n_frames).expand(len(x), -1) if observed is not None else None
    masks = whole.split(batch_size) if whole is not None else itertools.repeat(None)
    batches = tqdm(x.split(batch_size), desc=f"IWAE, K = {num_particles}", disable=not progress, leave=False)
    with seeded(seed):
        parts = [
            summarise(log_weights(model, guide, batch, num_particles, observed=mask).cpu(), model.n_frames)
            for batch, mask in zip(batches, masks, strict=False)
        ]
    return concatenate(parts)
