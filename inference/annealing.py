"""Annealing: log p(x) bracketed from below and above by annealed importance sampling along one path of densities.

Importance weights from the guide alone fail where the guide misses the posterior. Here chains walk from the guide to
the posterior, ``log f_β = (1 − β) log q(z, u | x) + β log p(x, z, u)`` for β from 0 to 1, by Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import check_judged
from pyro_tvae.judging import check_whole, judges, refuse_inference_mode, seeded
from pyro_tvae.model import mask_of
from pyro_tvae.programs import accepted
from pyro_tvae.verbs import ancestral_sample

from .chunks import in_chunks
from .former import gathered
from .hamiltonian import Path, transition
from .inspection import refuse_own_terms
from .likelihood import concatenate, summarize
from .progress import modes_shown, progress_bar

__all__ = [
    "AnnealedEstimate",
    "Annealing",
    "Bracket",
    "Simulated",
    "annealed_importance",
    "bracket",
    "reverse_annealing",
    "simulate",
]

SCHEDULES = ("sigmoid", "linear")
TARGET = 0.65  # the acceptance rate at which HMC costs least (Beskos et al. 2013, https://arxiv.org/abs/1001.4460)
PILOT_CHAINS = 8


@dataclass(frozen=True)
class Annealing:
    """How chains walk between a guide and its posterior.

    Attributes:
        num_chains: chains per sequence.
        num_temperatures: densities on the path with both ends, 2 or more; 2 is plain importance sampling. The bounds
            tighten with it.
        leapfrog_steps: gradients per transition.
        schedule: ``"sigmoid"`` (slow at both ends) or ``"linear"`` in β.
        batch_size: sequences in one tensor program, all chains with them.

    Raises:
        ValueError: a number is too small, or the schedule is none of these.

    Example:
        >>> [round(beta, 2) for beta in Annealing(num_temperatures=5).betas]
        [0.0, 0.1, 0.5, 0.9, 1.0]
    """

    num_chains: int = 16
    num_temperatures: int = 200
    leapfrog_steps: int = 5
    schedule: str = "sigmoid"
    batch_size: int = 64

    def __post_init__(self) -> None:
        least = min(self.num_chains, self.num_temperatures - 1, self.leapfrog_steps, self.batch_size)
        if least < 1 or self.schedule not in SCHEDULES:
            raise ValueError(
                f"annealing: num_chains={self.num_chains}, num_temperatures={self.num_temperatures}, leapfrog_steps="
                f"{self.leapfrog_steps}, schedule={self.schedule!r}, batch_size={self.batch_size}; expected two "
                f"temperatures or more, at least 1 of the others, and a schedule of {', '.join(SCHEDULES)}."
            )

    @property
    def betas(self) -> list[float]:
        """β from 0 to 1 in n values: ``σ(8 i / (n − 1) − 4)``, stretched to both ends, or evenly spaced."""
        even = torch.linspace(0, 1, self.num_temperatures, dtype=torch.float64)
        if self.schedule == "linear":
            return even.tolist()
        curve = torch.sigmoid(8 * even - 4)
        return ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()


@dataclass(frozen=True, eq=False)
class AnnealedEstimate:
    """A stochastic bound of log p(x) per sequence, each tensor of shape (N,); nats per sequence.

    Attributes:
        log_p: the bound: from below by :func:`annealed_importance`, from above by :func:`reverse_annealing`.
        standard_error: Monte-Carlo error of ``log_p`` over chains (delta method). Reverse chains of a sequence share
            their start, whose share of the error it cannot see.
        ess: effective sample size of the chains' weights, 1 to num_chains; higher is better.
        acceptance: mean acceptance rate of the transitions; step sizes aim at 0.65.
        num_chains: chains per sequence.
        n_frames: S, to convert to nats per frame; of frames that were observed in part, their mean number.
    """

    log_p: Tensor
    standard_error: Tensor
    ess: Tensor
    acceptance: Tensor
    num_chains: int
    n_frames: float

    @property
    def per_frame(self) -> float:
        """Mean of ``log_p`` in nats per frame over sequences, each weighted equally."""
        return float(self.log_p.mean()) / self.n_frames if self.n_frames else math.nan


class Simulated(NamedTuple):
    """Sequences x (N, S, channel, height, width) drawn from a model, and the latents (N, *site) that made them."""

    x: Tensor
    latents: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Bracket:
    """Both ends for log p of the same simulated sequences: ``E[lower] <= E[log p(x)] <= E[upper]``.

    Attributes:
        lower: forward estimate.
        upper: reverse estimate.
        simulated: the sequences, for whatever else should be compared on them.
    """

    lower: AnnealedEstimate
    upper: AnnealedEstimate
    simulated: Simulated

    @property
    def gap(self) -> Tensor:
        """Upper minus lower end, (N,), nats per sequence; nearer to 0 is better, and noise may make it negative."""
        return self.upper.log_p - self.lower.log_p

    @property
    def mean_gap(self) -> float:
        """Mean of :attr:`gap`: what is left unknown of mean log p(x), in nats per sequence."""
        return float(self.gap.mean())

    @property
    def mean_gap_error(self) -> float:
        """Standard error of :attr:`mean_gap` over sequences, chains included; nan for a single sequence."""
        return float(self.gap.std()) / math.sqrt(len(self.gap)) if len(self.gap) > 1 else math.nan


@gathered("annealing", Annealing)
@judges
def annealed_importance(
    model: TVAE,
    guide: Guide,
    x: Tensor,
    *,
    observed: Tensor | None = None,
    measured: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    annealing: Annealing | None = None,
    seed: int | None = 0,
    progress: bool = False,
) -> AnnealedEstimate:
    """Lower bound of log p(x) by annealed importance sampling from the guide to the posterior.

    `Neal 2001, Annealed importance sampling <https://arxiv.org/abs/physics/9803008>`__:
    ``log w = sum over t of (β_t − β_{t−1}) (log p(x, y_{t−1}) − log q(y_{t−1} | x))``, y_0 from the guide and y_t from
    an HMC transition that leaves f at β_t invariant. ``logsumexp(log w) − log num_chains`` is a lower bound of log p(x)
    in expectation, for any number of chains, temperatures and steps. Positive sites move by their logarithm, with its
    Jacobian. Step sizes per sequence and temperature come from a pilot run of 8 chains that are thrown away: adapted on
    the chains themselves they would break the invariance, and the reverse chains need the very same ones.

    Args:
        model: the generative program.
        guide: a mean-field guide: sites independent given x, whose ``posterior`` has densities.
        x: (N, S, channel, height, width).
        observed: (S,) or (N, S) booleans: of these frames alone. None means all.
        measured: (N, S, channel or 1, height, width) booleans: of these pixels alone.
        covariates: what the guide takes beside x by name, (N, …); ``measured`` may be among them.
        annealing: chains, temperatures and transitions; ``Annealing()`` by default.
        seed: of all draws; None uses torch's global generator.
        progress: show a progress bar.

    Returns:
        :class:`AnnealedEstimate` with tensors of shape (N,) on the CPU; higher is better.

    Raises:
        ValueError: x or the guide does not fit the model, the guide is not mean-field, or the model has
            further sites, such as random weights or factors, or takes a covariate, which the path would leave out.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> guide = pyro_tvae.MeanFieldGuide(model)
        >>> x, short = torch.rand(2, 3, 1, 4, 4), Annealing(num_temperatures=5)
        >>> annealed_importance(model, guide, x, annealing=short).log_p.shape
        torch.Size([2])
    """
    given = _beside(measured) | dict(covariates or {})
    _check_covariates(model, given)
    return _run(model, guide, x, None, observed, given, annealing, seed, progress)[0]


@judges
def check_annealing(
    model: TVAE,
    guide: Guide,
    x: Tensor,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise ValueError where :func:`annealed_importance` would, by its first sequence, before anything is computed."""
    given = dict(covariates or {})
    _check_covariates(model, given)
    check_judged(model, guide, x, observed, given)
    first = {name: value[:1] for name, value in given.items()}
    whole = mask_of(observed, x, each=True)
    with seeded(0):
        Path(model, guide, x[:1], None if whole is None else whole[:1], first)


def _check_covariates(model: TVAE, given: Mapping[str, Tensor]) -> None:
    if refused := sorted({*given} & accepted(model) - {"measured"}):
        raise ValueError(
            f"annealed_importance: {type(model).__name__} takes the covariate {refused[0]!r}, and the path would leave "
            "out what its program makes of that; leave it out, or use log_likelihood, which runs the program."
        )


@gathered("annealing", Annealing)
@judges
def reverse_annealing(
    model: TVAE,
    guide: Guide,
    simulated: Simulated | int = 16,
    *,
    observed: Tensor | None = None,
    measured: Tensor | None = None,
    annealing: Annealing | None = None,
    seed: int | None = 0,
    progress: bool = False,
) -> AnnealedEstimate:
    """Upper bound of log p(x) on data of the model's own, by annealing from an exact posterior draw to the guide.

    Latents drawn with x are one exact draw from their posterior. Walking the path of :func:`annealed_importance`
    backwards from them, with the same transitions, gives weights whose mean estimates 1 / p(x) without bias, so
    ``−(logsumexp(log w) − log num_chains)`` is an upper bound in expectation over simulated data (`Wu et al. 2017, On
    the quantitative analysis of decoder-based generative models <https://arxiv.org/abs/1611.04273>`__). It says nothing
    of data that the model did not make.

    Args:
        simulated: from :func:`simulate`, or how many sequences to simulate.

    The other arguments, the result and the errors are those of :func:`annealed_importance`; lower is tighter.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> guide, short = pyro_tvae.MeanFieldGuide(model), Annealing(num_temperatures=5)
        >>> reverse_annealing(model, guide, 2, annealing=short).log_p.shape
        torch.Size([2])
    """
    simulated = _simulated("reverse_annealing", model, simulated, seed)
    run = _run(model, guide, *simulated, observed, _beside(measured), annealing, seed, progress, forward=False)
    return run[0]


@gathered("annealing", Annealing)
@judges
def bracket(
    model: TVAE,
    guide: Guide,
    simulated: Simulated | int = 16,
    *,
    observed: Tensor | None = None,
    measured: Tensor | None = None,
    annealing: Annealing | None = None,
    seed: int | None = 0,
    progress: bool = False,
) -> Bracket:
    """Both bounds of log p(x) on the same simulated sequences: bidirectional Monte Carlo.

    `Grosse, Ghahramani & Adams 2015, Sandwiching the marginal likelihood using bidirectional Monte Carlo
    <https://arxiv.org/abs/1511.02543>`__.
    Where the ends meet, every other estimate on these sequences can be judged against them: how far an
    importance-weighted bound stays below is then measured instead of guessed.

    Args:
        simulated: from :func:`simulate`, or how many sequences to simulate.

    The other arguments and the errors are those of :func:`annealed_importance`; one pilot run serves both directions.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> bracket(model, pyro_tvae.MeanFieldGuide(model), 2, annealing=Annealing(num_temperatures=5)).gap.shape
        torch.Size([2])
    """
    simulated = _simulated("bracket", model, simulated, seed)
    lower, upper = _run(model, guide, *simulated, observed, _beside(measured), annealing, seed, progress)
    return Bracket(lower, upper, simulated)


@judges
def simulate(model: TVAE, n_sequences: int, *, seed: int | None = 0) -> Simulated:
    """Sequences from the model, with the latents that made them: latents from the prior, x from the likelihood.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> simulate(model, 2).x.shape
        torch.Size([2, 3, 1, 4, 4])
    """
    check_whole("simulate", n_sequences=n_sequences)
    refuse_own_terms(model, model.blank_sequence, "simulate")
    # Random numbers of their own: were they the annealing's too, its step sizes would know the latents.
    with seeded(None if seed is None else seed + 1_000_003):
        _, values = ancestral_sample(model, n_sequences)
    return Simulated(values["x"], {site: values[site] for site in model.prior_distributions()})


def _simulated(owner: str, model: TVAE, simulated: Simulated | int, seed: int | None) -> Simulated:
    if isinstance(simulated, Simulated):
        return simulated
    if not isinstance(simulated, int) or simulated < 1:
        what = "a tensor" if isinstance(simulated, Tensor) else repr(simulated)
        raise ValueError(
            f"{owner}: simulated is {what}; expected a number of sequences, at least 1, or what simulate returns: the "
            "upper bound holds on data of the model's own only."
        )
    return simulate(model, simulated, seed=seed)


def _pilot(path: Path, betas: list[float], n_steps: int, tick: Callable[[], object]) -> list[Tensor]:
    """Step sizes (B, n) for every temperature between the ends, from chains that are thrown away."""
    log_size = path.scale.new_zeros(path.scale.shape[0], 1)
    point, steps = path.at(path.draw(PILOT_CHAINS)), list[Tensor]()
    for beta in betas[1:-1]:
        for _ in range(1 if steps else 10):  # the first temperature starts from a guess
            point, probability = transition(path, point, beta, log_size.exp() * path.scale, n_steps)
            log_size = log_size + 0.5 * (probability.mean(0) - TARGET)
        steps.append(log_size.exp() * path.scale)
        tick()
    return steps


def _anneal(
    path: Path, y: Tensor, betas: list[float], steps: list[Tensor], n_steps: int, tick: Callable[[], object]
) -> tuple[Tensor, Tensor]:
    """Walk from the first β to the last: log-weights (K, B) and mean acceptance (B,)."""
    point = path.at(y)
    log_w, accepted = torch.zeros(y.shape[:2], dtype=torch.float64), []
    for i, (here, there) in enumerate(pairwise(betas)):
        log_w += (there - here) * (point.log_p - point.log_q).squeeze(-1).cpu().double()
        if i < len(steps):  # at the last β nothing is weighed any more
            point, probability = transition(path, point, there, steps[i], n_steps)
            accepted.append(probability.mean(0).squeeze(-1))
            tick()
    rate = torch.stack(accepted).mean(0) if accepted else torch.full_like(y[0, :, 0], math.nan)
    return log_w, rate.cpu().double()


def _beside(measured: Tensor | None) -> dict[str, Tensor]:
    return {} if measured is None else {"measured": measured}


@torch.no_grad()
def _run(
    model: TVAE,
    guide: Guide,
    x: Tensor,
    latents: dict[str, Tensor] | None,
    observed: Tensor | None,
    covariates: Mapping[str, Tensor],
    annealing: Annealing | None,
    seed: int | None,
    progress: bool,
    *,
    forward: bool = True,
) -> list[AnnealedEstimate]:
    """The forward estimate, where asked for, and the reverse one, where the latents are given, batch by batch."""
    refuse_inference_mode("annealing")
    check_judged(model, guide, x, observed, covariates)
    whole = mask_of(observed, x, each=True)
    annealing = annealing or Annealing()
    betas, n_steps = annealing.betas, annealing.leapfrog_steps
    directions = [1] * forward + [-1] * (latents is not None)
    total = math.ceil(len(x) / annealing.batch_size) * (len(betas) - 2) * (1 + len(directions))
    shown = progress_bar(total, "annealing", shown=progress, leave=False)
    with seeded(seed), shown as bar, modes_shown(guide, len(x), progress):

        def of_batch(start: int, size: int) -> dict[int, tuple[Tensor, Tensor]]:
            rows, made = slice(start, start + size), {}
            given = {name: value[rows] for name, value in covariates.items()}
            path = Path(model, guide, x[rows], None if whole is None else whole[rows], given)
            steps = _pilot(path, betas, n_steps, bar.update)
            for direction in directions:
                y = path.draw(annealing.num_chains)
                if latents is not None and direction < 0:
                    exact = path.unconstrain({site: value[rows].unsqueeze(0) for site, value in latents.items()})
                    y = exact.expand_as(y)
                made[direction] = _anneal(path, y, betas[::direction], steps[::direction], n_steps, bar.update)
            return made

        parts = [*in_chunks(len(x), annealing.batch_size, of_batch, "sequence")]
    n_frames = model.n_frames if whole is None else float(whole.sum(1).double().mean())
    return [_estimate([part[direction] for part in parts], direction, n_frames) for direction in directions]


def _estimate(run: list[tuple[Tensor, Tensor]], direction: int, n_frames: float) -> AnnealedEstimate:
    """Batches of log-weights (K, B) and acceptance rates (B,) as one estimate; reverse weights estimate 1 / p(x)."""
    bound = concatenate([summarize(log_w, n_frames) for log_w, _ in run])
    rate = torch.cat([rate for _, rate in run])
    return AnnealedEstimate(
        direction * bound.iwae, bound.standard_error, bound.ess, rate, bound.num_particles, n_frames
    )
