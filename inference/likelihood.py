"""Likelihood: per-sequence importance weights, and what they say about log p(x).

Frames are coupled through V, so the sequence is the unit of independence: one weight per particle and sequence, summed
over all frames. Averaging weights frame by frame is no bound; averaging z frame by frame, given V, is one.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import check_judged, posterior_of
from pyro_tvae.judging import check_whole, judges, seeded
from pyro_tvae.likelihoods import of_seen, seen_pixels
from pyro_tvae.model import frame_mask, mask_of, tvae_of
from pyro_tvae.posteriors import Posterior, Program, draw, standalone
from pyro_tvae.programs import accepted, call, propose, untouched_store

from .chunks import chunk_of, in_chunks
from .densities import INNER_PLATE, log_weight, refuse_plates, replay
from .frame_averages import frame_averaged_weights, refuse_coupled_frames
from .inspection import refuse_further_terms
from .pareto import pareto_shape, tail_length
from .progress import modes_shown, progress_bar

__all__ = ["LogLikelihood", "log_likelihood", "log_weights"]

ESTIMATORS = ("sequence", "frame", "frame_unnormalised")


@judges
def log_weights(
    model: TVAE | Callable[..., object],
    guide: Guide | Callable[..., object],
    x: Tensor,
    num_particles: int,
    *,
    frame_particles: int = 1,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    posterior: Posterior | Program | None = None,
    chunk_bytes: int | None = None,
    seed: int | None = None,
) -> Tensor:
    """Log importance weights ``log w_k = log p(x, z_k, u_k) − log q(z_k, u_k | x)``, summed over all frames.

    The encoders run once; particles are drawn and decoded in chunks, so memory does not grow with their number. Every
    sample statement counts, as in Pyro's own objectives, but for what belongs to all sequences at once, which is
    refused: a weight is a sequence's. What all of them share, such as random weights, counts in each whole, so that
    each weight estimates log p of its sequence alone, with the shared sites integrated out under their prior.

    Args:
        model: the generative program, a handler around it (``poutine.scale``, ``pyro.condition``) included.
        guide: a guide, or any Pyro program of x with the model's sites and a plate ``sequence`` at dim −1 (its encoders
            then run once per chunk).
        x: (B, S, channel, height, width).
        num_particles: draws K per sequence.
        frame_particles: draws M of z per frame within each of them, see :func:`log_likelihood`.
        observed: (S,) or (B, S) booleans: the guide sees and the model scores only these frames, so that the weights
            estimate log p of them. None means all.
        covariates: what the programs take beside them by name, one entry per sequence, such as labels.
        posterior: ``guide.posterior(x, observed)``, where it was computed before.
        chunk_bytes: bound on the decoded pixels of one chunk; None sizes it by the memory there is. Where memory runs
            out, chunks become smaller.
        seed: makes the draws reproducible without touching torch's global state.

    Returns:
        (K, B), nats per sequence.

    Raises:
        ValueError: x does not fit the model, a number of particles is below one, a term belongs to no single sequence,
            or frames are coupled by more than the energies.
    """
    check_judged(tvae_of(model), guide, x, observed, covariates)
    with seeded(seed), untouched_store():
        chunks = _chunks(
            model,
            guide,
            x,
            num_particles,
            observed,
            covariates,
            posterior,
            chunk_bytes,
            frame_particles=frame_particles,
        )
        return torch.cat(list(chunks))


@judges
def log_weights_by_frame(
    model: TVAE, guide: Guide, x: Tensor, num_particles: int, posterior: Posterior | Program
) -> Tensor:
    """Log-weights frame by frame, (K, B, S); their sums over frames are those of :func:`log_weights`."""
    return torch.cat([*_chunks(model, guide, x, num_particles, posterior=posterior, per_frame=True)])


def _chunks(
    model: Any,
    guide: Guide | Callable[..., object],
    x: Tensor,
    num_particles: int,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    posterior: Posterior | Program | None = None,
    chunk_bytes: int | None = None,
    per_frame: bool = False,
    frame_particles: int = 1,
) -> Iterator[Tensor]:
    """Log-weights (k, B), or (k, B, S) per frame, in chunks that make up all the particles."""
    tvae_of(model).check(x)
    check_whole("log_weights", num_particles=num_particles, frame_particles=frame_particles)
    chunk = chunk_of(x, chunk_bytes)
    posterior = posterior_of(guide, x, observed, covariates) if posterior is None else posterior
    by_site: Any = posterior  # frame averages refuse a program

    def make(start: int, size: int) -> Tensor:
        # All chunks share their parameters and draw from the distributions that score them: what is checked once holds
        # for all, and checking every draw anew would take a tenth of the time.
        with contextlib.nullcontext() if start == 0 else pyro.validation_enabled(False):
            if per_frame:
                return _chunk_by_frame(model, posterior, x, observed, covariates, size)
            if frame_particles > 1:
                measured = (covariates or {}).get("measured")
                return frame_averaged_weights(
                    model, by_site, x, observed, size, frame_particles, chunk, measured=measured
                )
            return _chunk_of_weights(model, posterior, x, observed, covariates, size)

    yield from in_chunks(num_particles, max(1, chunk // frame_particles), make, "particle")


def _chunk_of_weights(
    model: Any,
    posterior: Posterior | Program,
    x: Tensor,
    observed: Tensor | None,
    covariates: Mapping[str, Tensor] | None,
    size: int,
) -> Tensor:
    try:
        with pyro.plate("particles", size, dim=-2):
            program = posterior.program() if isinstance(posterior, Program) else partial(draw, posterior)
            proposal = propose(program, x)
            refuse_plates(proposal, x.shape[-5])
            scored = replay(call(model, x, observed, covariates), proposal)
    except ValueError as error:
        if "collide" in str(error):  # Pyro's words for a plate on the particles' dimension
            raise ValueError(INNER_PLATE) from None
        raise
    return log_weight(proposal, scored, x).expand(size, x.shape[-5])


def weighted_particles(
    model: Any,
    posterior: Posterior | Program,
    x: Tensor,
    size: int,
    covariates: Mapping[str, Tensor] | None = None,
    observed: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws from a posterior, each (size, B, *site), and their log-weights (size, B), nats per sequence."""
    values: dict[str, Tensor] = {}

    def program(_: Tensor) -> None:
        values.update(draw(posterior))

    takes = accepted(model)  # the posterior has the guide's
    given = {name: value for name, value in (covariates or {}).items() if name in takes}
    with torch.no_grad(), untouched_store():  # all at once, so that the program runs once
        return values, _chunk_of_weights(model, posterior_of(program, x), x, observed, given, size)


def has_frame_weights(model: Any, posterior: Posterior | Program) -> bool:
    """Whether every site has elements for each frame that are independent of the others', in prior and posterior."""
    alone = standalone(posterior)
    if not isinstance(model, TVAE) or alone is None:
        return False
    distributions: dict[str, Any] = {
        site: getattr(distribution, "base_dist", distribution)
        for site, distribution in model.prior_distributions().items()
    }
    if {*alone} != {*distributions}:
        return False
    shapes = [(one.batch_shape, one.event_shape) for one in distributions.values()] + [
        (q.batch_shape[1:], q.event_shape) for q in alone.values()
    ]
    return all(batch and batch + event == model.latent_shape for batch, event in shapes)


def _chunk_by_frame(
    model: Any,
    posterior: Posterior | Program,
    x: Tensor,
    observed: Tensor | None,
    covariates: Mapping[str, Tensor] | None,
    size: int,
) -> Tensor:
    """``log p(x_l | t_l) + log p(z_l, u_l) − log q(z_l, u_l | x)``: (k, B, S); 0 in frames that were not observed."""
    if not has_frame_weights(model, posterior):
        raise ValueError(
            "weights per frame need a guide whose sites are independent of each other and from frame to frame, and "
            "such a prior; orbit energies and plain functions have none: use estimator='sequence'."
        )
    refuse_further_terms(model, x, "weights per frame", covariates)
    distributions: dict[str, Any] = {
        site: getattr(distribution, "base_dist", distribution)
        for site, distribution in model.prior_distributions().items()
    }
    alone = standalone(posterior) or {}
    with pyro.plate("particles", size, dim=-2):
        values = draw(posterior)
    t = model.compose(values)
    mask = mask_of(observed, x)
    measured = (covariates or {}).get("measured")
    if (seen := seen_pixels(mask, measured)) is not None:  # what was not seen may hold anything
        x = torch.where(seen, x, model.likelihood.blank)
    log_w = of_seen(model.decode(t), None, measured).log_prob(x)
    for site, value in values.items():
        for log_prob, sign in ((distributions[site].log_prob(value), 1), (alone[site].log_prob(value), -1)):
            log_w = log_w + sign * log_prob.flatten(2).unflatten(2, (x.shape[-4], -1)).sum(-1)
    return log_w if mask is None else torch.where(mask, log_w, 0)


@dataclass(frozen=True)
class LogLikelihood:
    """Estimates per sequence, each of shape (N,), from K importance weights; nats per sequence.

    With the estimators per frame, ``standard_error`` is the sum over frames, a bound of the sum's own; ``ess`` and
    ``pareto_k`` are those of the worst frame.

    Attributes:
        iwae: ``logsumexp_k log w_k − log K``, a lower bound of log p(x) in expectation, tighter with K.
        standard_error: Monte-Carlo standard error of ``iwae`` (delta method).
        ess: effective sample size of the weights, 1 to K; a value near 1 says that one particle carries the estimate.
        elbo: mean of log w, the K = 1 bound.
        pareto_k: shape of the generalised Pareto distribution fitted to the largest weights; lower is better: below 0.5
            the weights have a variance, above 0.7 neither ``iwae`` nor its error can be trusted. nan for K = 1, inf
            where the tail has fewer than five weights (K ≤ 20), 0 where all weights are equal but for rounding; see
            :func:`.pareto_shape`.
        num_particles: K.
        n_frames: S, to convert to nats per frame; of frames that were ``observed`` in part, their mean number.
        estimator: how the weights were averaged, see :func:`log_likelihood`.
        lengths: frames of each sequence that were observed, (N,); None where all were. Of one of which nothing was
            ``iwae`` is 0, as log p of nothing is, and it counts for nothing per frame.
    """

    iwae: Tensor
    standard_error: Tensor
    ess: Tensor
    elbo: Tensor
    pareto_k: Tensor
    num_particles: int
    n_frames: float
    estimator: str = "sequence"
    lengths: Tensor | None = None

    @property
    def per_frame(self) -> float:
        """Mean IWAE over sequences by their mean number of observed frames, nats per frame; higher is better."""
        return float(self.iwae.mean()) / self.n_frames if self.n_frames else math.nan

    @property
    def per_frame_error(self) -> float:
        """Standard error of :attr:`per_frame`: sequences drawn from their distribution, particles included.

        Of a ratio, by the delta method, where sequences were observed in different numbers of frames.
        """
        lengths = torch.full_like(self.iwae, self.n_frames) if self.lengths is None else self.lengths.to(self.iwae)
        return ratio_error(self.iwae, lengths)


def ratio_error(values: Tensor, lengths: Tensor) -> float:
    """Standard error of ``values.mean() / lengths.mean()`` over sequences, each (N,), by the delta method.

    nan of a single sequence, and where none has a length.
    """
    mean = lengths.mean()
    if len(values) < 2 or not mean:
        return math.nan
    off = values - values.mean() / mean * lengths
    return float(off.std() / mean) / math.sqrt(len(off))


class Summary:
    """Running sums over particles, in double precision: memory does not grow with their number K.

    Per column: log Σ w, log Σ w², Σ log w, and the largest weights, which are all that Pareto k needs.
    """

    def __init__(self, num_particles: int) -> None:
        self.num_particles = num_particles
        # The tail of K weights, and the largest one below it as its threshold.
        self.kept = tail_length(num_particles) + 1
        self.total = self.square = torch.tensor(-math.inf, dtype=torch.float64)
        self.sum = torch.tensor(0.0, dtype=torch.float64)
        self.largest = torch.empty(0, dtype=torch.float64)
        self.eps = 0.0

    def add(self, log_w: Tensor) -> None:
        """Take in a chunk of log-weights (k, …), any number of them at a time."""
        self.eps = max(self.eps, torch.finfo(log_w.dtype).eps)
        log_w = log_w.cpu().double()
        self.total = torch.logaddexp(self.total, log_w.logsumexp(0))
        self.square = torch.logaddexp(self.square, (2 * log_w).logsumexp(0))
        self.sum = self.sum + log_w.sum(0)
        pool = torch.cat([self.largest.reshape(-1, *log_w.shape[1:]), log_w])
        self.largest = pool.topk(min(self.kept, len(pool)), dim=0).values

    def estimates(self, n_frames: float) -> LogLikelihood:
        """What K weights per column say; all have to be in."""
        k = self.num_particles
        concentration = (self.square - 2 * self.total).exp()  # Σ of squared normalised weights
        # Relative variance of the mean weight is (K Σ share² − 1) / (K − 1); the log has the same to first order.
        variance = (k * concentration - 1).clamp(min=0) / (k - 1) if k > 1 else torch.full_like(self.total, math.nan)
        return LogLikelihood(
            iwae=self.total - math.log(k),
            standard_error=variance.sqrt(),
            ess=1 / concentration,
            elbo=self.sum / k,
            pareto_k=pareto_shape(self.largest, self._resolution()),
            num_particles=k,
            n_frames=n_frames,
        )

    def _resolution(self) -> float:
        """What rounding makes of equal log-weights, each a sum of many terms in the precision that they came in."""
        finite = self.largest[self.largest.isfinite()]
        return 16 * self.eps * float(finite.abs().max()) if len(finite) else 0.0


def summarize(log_w: Tensor, n_frames: float) -> LogLikelihood:
    """Estimates from log-weights (K, N); the arithmetic is in double precision."""
    summary = Summary(len(log_w))
    summary.add(log_w)
    return summary.estimates(n_frames)


def concatenate(parts: Sequence[LogLikelihood]) -> LogLikelihood:
    """Estimates of several batches as one."""
    names = ("iwae", "standard_error", "ess", "elbo", "pareto_k")
    tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **tensors)


def check_likelihood(
    model: TVAE | Callable[..., object],
    guide: Guide | Callable[..., object],
    x: Tensor,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    frame_particles: int = 1,
) -> None:
    """Raise an error where :func:`log_likelihood` would, by the first sequence."""
    seen = mask_of(observed, x)
    given: dict[str, Any] = {"observed": None if seen is None else seen.expand(x.shape[:2])[:1]}
    given["covariates"] = {name: value[:1] for name, value in (covariates or {}).items()}
    log_likelihood(model, guide, x[:1], 1, frame_particles=frame_particles, **given)


@judges
def log_likelihood(
    model: TVAE | Callable[..., object],
    guide: Guide | Callable[..., object],
    x: Tensor,
    num_particles: int = 100,
    *,
    frame_particles: int = 1,
    estimator: str = "sequence",
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    batch_size: int = 16,
    seed: int | None = 0,
    progress: bool = False,
) -> LogLikelihood:
    """Per-sequence importance-weighted bound on log p(x) with its uncertainty.

    `Burda et al. 2016, Importance weighted autoencoders <https://arxiv.org/abs/1509.00519>`__. Weights are summed up as
    they are drawn, so memory does not grow with their number.

    Args:
        model: the generative program.
        guide: the proposal.
        x: (N, S, channel, height, width), any N.
        num_particles: draws K per sequence, 1 to 100,000 and more; the bound grows with K.
        frame_particles: draws M of z per frame within each of the K draws of the energies, which the frames share:
            given them frames are independent, and the average over z is taken frame by frame,
            ``w_k = p(e_k) / q(e_k) · prod over l of mean over m of p(z_klm) p(x_l | z_klm, e_k) / q(z_klm)``. A bound
            as well, which grows in both numbers, at the price of K M draws. A plain VAE has no energies,
            so that all K M draws of a frame count together; its error, ESS and Pareto k are then as with the estimators
            per frame. Only where frames of z are independent otherwise.
        estimator: ``"sequence"``, the bound. Two more serve comparison with published numbers, and warn:
            ``"frame"`` averages weights frame by frame, ``sum over l of (logsumexp_k log w_kl − log K)``, and is no
            bound because V couples frames; ``"frame_unnormalised"`` also leaves the log K out, and is no likelihood.
        observed: (S,) or (N, S) booleans: log p of these frames alone. So log p(unseen | seen) is a difference of two.
        covariates: what the programs take beside them by name, (N, …), such as labels: log p(x, labels) then; with
            ``measured``, (N, S, channel or 1, height, width) booleans, log p of these pixels alone.
        batch_size: sequences per pass of the encoders.
        seed: of the draws; None uses torch's global generator.
        progress: show a progress bar.

    Returns:
        :class:`LogLikelihood` with tensors of shape (N,) on the CPU, nats per sequence, higher is better.

    Raises:
        ValueError: nothing to estimate, an unknown estimator, x that does not fit the model, or weights per frame of
            a guide or prior that has none (orbit energies).

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> guide = pyro_tvae.MeanFieldGuide(model)
        >>> log_likelihood(model, guide, torch.rand(4, 6, 1, 8, 8), num_particles=10).iwae.shape
        torch.Size([4])
    """
    numbers = {"num_particles": num_particles, "frame_particles": frame_particles, "batch_size": batch_size}
    check_whole("log_likelihood", **numbers)
    tvae = tvae_of(model)
    check_judged(tvae, guide, x, observed, covariates)
    if estimator not in ESTIMATORS:
        raise ValueError(f"log_likelihood: estimator is {estimator!r}; expected one of {', '.join(ESTIMATORS)}.")
    per_frame = estimator != "sequence"
    if per_frame and frame_particles > 1:
        raise ValueError(
            f"log_likelihood: frame_particles={frame_particles} goes with estimator='sequence' alone; leave one out."
        )
    if per_frame:
        warnings.warn(REMARKS[estimator], stacklevel=3)
    if frame_particles > 1 and not tvae.energies:
        # Nothing couples the frames: an average per frame is a bound here, over all draws of a frame at once.
        first = {name: value[:1] for name, value in (covariates or {}).items()}
        refuse_coupled_frames(model, posterior_of(guide, x[:1], None, first))
        num_particles, frame_particles, per_frame = num_particles * frame_particles, 1, True
    whole = frame_mask(observed, len(x), tvae.n_frames).expand(len(x), -1) if observed is not None else None
    by_frame = "" if frame_particles == 1 else f", M = {frame_particles}"
    bar = progress_bar(len(x) * num_particles, f"IWAE, K = {num_particles}{by_frame}", shown=progress, leave=False)
    with seeded(seed), untouched_store(), bar, modes_shown(guide, len(x), progress):

        def of_batch(start: int, size: int) -> LogLikelihood:
            rows, summary = slice(start, start + size), Summary(num_particles)
            mask = None if whole is None else whole[rows]
            for log_w in _chunks(
                model,
                guide,
                x[rows],
                num_particles,
                mask,
                {name: value[rows] for name, value in (covariates or {}).items()},
                per_frame=per_frame,
                frame_particles=frame_particles,
            ):
                summary.add(log_w)
                bar.update(log_w.shape[0] * log_w.shape[1])
            part = summary.estimates(tvae.n_frames)
            return _over_frames(part, mask, estimator) if per_frame else part

        result = concatenate([*in_chunks(len(x), batch_size, of_batch, "sequence")])
        if whole is None:
            return result
        lengths = whole.sum(1).double().cpu()
        return replace(result, n_frames=float(lengths.mean()), lengths=lengths)


REMARKS = {
    "frame": "estimator='frame' averages importance weights frame by frame although frames share energies: it is NOT a "
    "lower bound of log p(x), and serves comparison with published numbers only.",
    "frame_unnormalised": "estimator='frame_unnormalised' averages importance weights frame by frame and leaves out "
    "the −log K of every frame: it is NOT a likelihood, and serves comparison with published numbers only.",
}


def _over_frames(part: LogLikelihood, observed: Tensor | None, estimator: str) -> LogLikelihood:
    """Estimates of frames (B, S) as estimates of sequences (B,)."""
    iwae = part.iwae + (math.log(part.num_particles) if estimator == "frame_unnormalised" else 0)
    if observed is not None:  # weights of 1 in frames that were not observed would still count as log K
        iwae = torch.where(observed.cpu(), iwae, 0)
    return replace(
        part,
        iwae=iwae.sum(-1),
        standard_error=part.standard_error.sum(-1),
        ess=part.ess.amin(-1),
        elbo=part.elbo.sum(-1),
        pareto_k=part.pareto_k.amax(-1),
        estimator=estimator,
    )
