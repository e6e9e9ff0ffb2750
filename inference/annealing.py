"""Annealing: log p(x) bracketed from below and above by annealed importance sampling along one path of densities.

Importance weights from the guide alone fail where the guide misses the posterior. Here chains walk from the guide to
the posterior, ``log f_β = (1 − β) log q(z, u | x) + β log p(x, z, u)`` for β from 0 to 1, by Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import check_judged, posterior_of
from pyro_tvae.posteriors import standalone

from .likelihood import concatenate, seeded, summarize
from .own_programs import refuse_own_terms
from .progress import progress_bar

__all__ = [
    "AnnealedEstimate",
    "Bracket",
    "Simulated",
    "annealed_importance",
    "bracket",
    "reverse_annealing",
    "simulate",
]

SCHEDULES = ("sigmoid", "linear")
TARGET = 0.65  # the acceptance rate at which HMC in many dimensions costs least (Beskos et al. 2013)
PILOT_DRAWS, PILOT_CHAINS = 64, 8


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
        n_frames: S, to convert to nats per frame.
    """

    log_p: Tensor
    standard_error: Tensor
    ess: Tensor
    acceptance: Tensor
    num_chains: int
    n_frames: int

    @property
    def per_frame(self) -> float:
        """Mean of ``log_p`` in nats per frame over sequences, each weighted equally."""
        return float(self.log_p.mean()) / self.n_frames


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


def annealed_importance(
    model: TVAE,
    guide: Guide,
    x: Tensor,
    *,
    num_chains: int = 16,
    num_temperatures: int = 200,
    leapfrog_steps: int = 5,
    schedule: str = "sigmoid",
    batch_size: int = 64,
    seed: int | None = 0,
    progress: bool = False,
) -> AnnealedEstimate:
    """Lower bound of log p(x) by annealed importance sampling (Neal 2001) from the guide to the posterior.

    ``log w = sum over t of (β_t − β_{t−1}) (log p(x, y_{t−1}) − log q(y_{t−1} | x))``, y_0 from the guide and y_t from
    an HMC transition that leaves f at β_t invariant. ``logsumexp(log w) − log num_chains`` is a lower bound of log p(x)
    in expectation, for any number of chains, temperatures and steps. Positive sites move by their logarithm, with its
    Jacobian. Step sizes per sequence and temperature come from a pilot run of 8 chains that are thrown away: adapted on
    the chains themselves they would break the invariance, and the reverse chains need the very same ones.

    Args:
        model: the generative program.
        guide: a mean-field guide: sites independent given x, whose ``posterior`` has densities.
        x: (N, S, channel, height, width).
        num_chains: chains per sequence.
        num_temperatures: densities on the path with both ends, 2 or more; 2 is plain importance sampling. The bound
            tightens with it.
        leapfrog_steps: gradients per transition.
        schedule: ``"sigmoid"`` (slow at both ends) or ``"linear"`` in β.
        batch_size: sequences in one tensor program, all chains with them.
        seed: of all draws; None uses torch's global generator.
        progress: show a progress bar.

    Returns:
        :class:`AnnealedEstimate` with tensors of shape (N,) on the CPU; higher is better.

    Raises:
        ValueError: x or the guide does not fit the model, the guide is not mean-field, a number is too small, or the
            model has further sites, such as random weights or factors, which the path would leave out.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> guide = pyro_tvae.MeanFieldGuide(model)
        >>> annealed_importance(model, guide, torch.rand(2, 3, 1, 4, 4), num_temperatures=5).log_p.shape
        torch.Size([2])
    """
    settings = _Settings(num_chains, num_temperatures, leapfrog_steps, schedule, batch_size)
    return _run(model, guide, x, None, settings, seed, progress)[0]


def reverse_annealing(
    model: TVAE,
    guide: Guide,
    simulated: Simulated | int = 16,
    *,
    num_chains: int = 16,
    num_temperatures: int = 200,
    leapfrog_steps: int = 5,
    schedule: str = "sigmoid",
    batch_size: int = 64,
    seed: int | None = 0,
    progress: bool = False,
) -> AnnealedEstimate:
    """Upper bound of log p(x) on data of the model's own, by annealing from an exact posterior draw to the guide.

    Latents drawn with x are one exact draw from their posterior. Walking the path of :func:`annealed_importance`
    backwards from them, with the same transitions, gives weights whose mean estimates 1 / p(x) without bias, so
    ``−(logsumexp(log w) − log num_chains)`` is an upper bound in expectation over simulated data (Grosse, Ghahramani &
    Adams 2015; Wu et al. 2017). It says nothing of data that the model did not make.

    Args:
        simulated: from :func:`simulate`, or how many sequences to simulate.

    The other arguments, the result and the errors are those of :func:`annealed_importance`; lower is tighter.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> reverse_annealing(model, pyro_tvae.MeanFieldGuide(model), 2, num_temperatures=5).log_p.shape
        torch.Size([2])
    """
    settings = _Settings(num_chains, num_temperatures, leapfrog_steps, schedule, batch_size)
    simulated = _simulated("reverse_annealing", model, simulated, seed)
    return _run(model, guide, simulated.x, simulated.latents, settings, seed, progress, forward=False)[0]


def bracket(
    model: TVAE,
    guide: Guide,
    simulated: Simulated | int = 16,
    *,
    num_chains: int = 16,
    num_temperatures: int = 200,
    leapfrog_steps: int = 5,
    schedule: str = "sigmoid",
    batch_size: int = 64,
    seed: int | None = 0,
    progress: bool = False,
) -> Bracket:
    """Both bounds of log p(x) on the same simulated sequences: bidirectional Monte Carlo (Grosse et al. 2015).

    Where the ends meet, every other estimate on these sequences can be judged against them: how far an
    importance-weighted bound stays below is then known instead of guessed.

    Args:
        simulated: from :func:`simulate`, or how many sequences to simulate.

    The other arguments and the errors are those of :func:`annealed_importance`; one pilot run serves both directions.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> bracket(model, pyro_tvae.MeanFieldGuide(model), 2, num_temperatures=5).gap.shape
        torch.Size([2])
    """
    settings = _Settings(num_chains, num_temperatures, leapfrog_steps, schedule, batch_size)
    simulated = _simulated("bracket", model, simulated, seed)
    lower, upper = _run(model, guide, simulated.x, simulated.latents, settings, seed, progress)
    return Bracket(lower, upper, simulated)


@torch.no_grad()
def simulate(model: TVAE, n_sequences: int, *, seed: int | None = 0) -> Simulated:
    """Sequences from the model, with the latents that made them: latents from the prior, x from the likelihood.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> simulate(model, 2).x.shape
        torch.Size([2, 3, 1, 4, 4])
    """
    if n_sequences < 1:
        raise ValueError(f"simulate: n_sequences is {n_sequences!r}; expected at least 1.")
    refuse_own_terms(model, model.like.new_zeros(1, model.n_frames, *model.frame_shape), "simulate")
    # Random numbers of their own: were they the annealing's too, its step sizes would know the latents.
    with seeded(None if seed is None else seed + 1_000_003):
        latents = {
            site: distribution.sample(torch.Size([n_sequences]))
            for site, distribution in model.prior_distributions().items()
        }
        u = None if model.prior is None else latents[model.prior.site]
        return Simulated(model.decode(model.compose(latents["z"], u)).sample(), latents)


def _simulated(owner: str, model: TVAE, simulated: Simulated | int, seed: int | None) -> Simulated:
    if isinstance(simulated, Simulated):
        return simulated
    if not isinstance(simulated, int) or simulated < 1:
        found = "a tensor" if isinstance(simulated, Tensor) else repr(simulated)
        raise ValueError(
            f"{owner}: simulated is {found}; expected a number of sequences, at least 1, or what simulate returns: the "
            "upper bound holds on data of the model's own only."
        )
    return simulate(model, simulated, seed=seed)


# ---- the path


class Point(NamedTuple):
    """Where chains are: y (K, B, n), and there log q, log p(x, ·), (K, B, 1), and their gradients, (K, B, n)."""

    y: Tensor
    log_q: Tensor
    log_p: Tensor
    slope_q: Tensor
    slope_p: Tensor

    def log_f(self, beta: float) -> Tensor:
        """``(1 − β) log q + β log p``, (K, B, 1)."""
        return torch.lerp(self.log_q, self.log_p, beta)

    def slope(self, beta: float) -> Tensor:
        """Gradient of :meth:`log_f`, (K, B, n)."""
        return torch.lerp(self.slope_q, self.slope_p, beta)

    def accept(self, accepted: Tensor, proposal: Point) -> Point:
        """The proposal where accepted (K, B, 1), this point elsewhere."""
        return Point(*(torch.where(accepted, new, old) for new, old in zip(proposal, self, strict=True)))


class Path:
    """The densities between q(z, u | x) and p(x, z, u) over unconstrained coordinates y of all sites, side by side.

    Real sites stand for themselves and positive ones for their logarithm; both ends carry the Jacobian.
    """

    def __init__(self, model: TVAE, guide: Guide, x: Tensor) -> None:
        model.check(x)
        refuse_own_terms(model, x, "annealing")
        self.model, self.x, self.prior_distributions = model, x, model.prior_distributions()
        posterior = standalone(posterior_of(guide, x)) if isinstance(guide, Guide) and guide.mean_field else None
        if posterior is None or {*posterior} != {*self.prior_distributions}:
            raise ValueError(
                f"annealing needs a mean-field guide with the model's sites {', '.join(self.prior_distributions)}, "
                f"whose posterior(x) has a density; {type(guide).__name__} is none: use default_guide(model)."
            )
        self.to_site = {site: biject_to(q.support) for site, q in posterior.items()}
        self.posterior = {site: q.to_event(len(q.batch_shape) - 1) for site, q in posterior.items()}
        # Beyond these bounds numbers overflow; a trajectory that leaves them is rejected, as its reverse would be.
        bounds = {site: 1e6 if q.support is constraints.real else 80.0 for site, q in posterior.items()}
        self.bound = torch.cat([x.new_full((q.event_shape.numel(),), bounds[s]) for s, q in self.posterior.items()])
        self.scale = self.draw(PILOT_DRAWS).std(0)

    def draw(self, n: int) -> Tensor:
        """Unconstrained draws from the guide, (n, B, coordinates)."""
        return self.unconstrain({site: q.sample(torch.Size([n])) for site, q in self.posterior.items()})

    def unconstrain(self, latents: dict[str, Tensor]) -> Tensor:
        """Values of the sites (K, B, *site) as coordinates (K, B, n)."""
        return torch.cat([self.to_site[site].inv(latents[site]).flatten(2) for site in self.posterior], -1)

    def densities(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """log q and log p(x, ·) of coordinates (K, B, n), Jacobian included: each (K, B)."""
        values: dict[str, Tensor] = {}
        log_q = log_prior = y.new_zeros(())
        sizes = [q.event_shape.numel() for q in self.posterior.values()]
        for (site, q), part in zip(self.posterior.items(), y.split(sizes, -1), strict=True):
            free = part.unflatten(-1, q.event_shape)
            value = values[site] = self.to_site[site](free)
            jacobian = self.to_site[site].log_abs_det_jacobian(free, value).flatten(2).sum(-1)
            log_q = log_q + q.log_prob(value) + jacobian
            log_prior = log_prior + self.prior_distributions[site].log_prob(value) + jacobian
        t = self.model.compose(values["z"], None if self.model.prior is None else values[self.model.prior.site])
        return log_q, log_prior + self.model.decode(t).log_prob(self.x).sum(-1)

    def at(self, y: Tensor) -> Point:
        """Densities and gradients at y, from one pass through the decoder and one back."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            log_q, log_p = self.densities(y)
            (slope_q,) = torch.autograd.grad(log_q.sum(), y, retain_graph=True)
            (slope_p,) = torch.autograd.grad(log_p.sum(), y)
        return Point(y.detach(), log_q.detach().unsqueeze(-1), log_p.detach().unsqueeze(-1), slope_q, slope_p)


# ---- Hamiltonian Monte Carlo


def leapfrog(
    path: Path, point: Point, momentum: Tensor, beta: float, step: Tensor, n_steps: int
) -> tuple[Point, Tensor, Tensor]:
    """Follow Hamilton's equations of ``−log f_β + |momentum|² / 2`` for n steps: reversible, volume-preserving.

    Args:
        momentum: (K, B, n).
        step: step size of every coordinate, broadcasts against (K, B, n).

    Returns:
        Where it ends, the momentum there, and (K, B, 1) whether it stayed within the path's bounds.
    """
    start, inside = point.y, torch.ones_like(point.log_q, dtype=torch.bool)
    momentum = momentum + step / 2 * point.slope(beta)
    for i in range(n_steps):
        y = point.y + step * momentum
        inside = inside & (y.abs() <= path.bound).all(-1, keepdim=True)
        point = path.at(torch.where(inside, y, start))
        momentum = momentum + (step / 2 if i == n_steps - 1 else step) * point.slope(beta)
    return point, momentum, inside


def transition(path: Path, point: Point, beta: float, step: Tensor, n_steps: int) -> tuple[Point, Tensor]:
    """One HMC step that leaves f_β invariant: the new point, and the acceptance probabilities (K, B, 1)."""
    momentum = torch.randn_like(point.y)
    # A size of its own for every trajectory, over a decade: where energies are small, t is steep, and chains that
    # start there stay there with the size that suits the rest.
    step = step * 10 ** -torch.rand_like(point.log_q)
    proposal, end, inside = leapfrog(path, point, momentum, beta, step, n_steps)
    gain = proposal.log_f(beta) - point.log_f(beta)
    gain = gain - (end.square() - momentum.square()).sum(-1, keepdim=True) / 2
    probability = torch.where(inside & gain.isfinite(), gain.clamp(max=0).exp(), 0)
    return point.accept(torch.rand_like(probability) < probability, proposal), probability


# ---- runs over the path


@dataclass(frozen=True)
class _Settings:
    num_chains: int
    num_temperatures: int
    leapfrog_steps: int
    schedule: str
    batch_size: int

    def __post_init__(self) -> None:
        least = min(self.num_chains, self.num_temperatures - 1, self.leapfrog_steps, self.batch_size)
        if least < 1 or self.schedule not in SCHEDULES:
            raise ValueError(
                f"annealing: num_chains={self.num_chains}, num_temperatures={self.num_temperatures}, leapfrog_steps="
                f"{self.leapfrog_steps}, schedule={self.schedule!r}, batch_size={self.batch_size}; expected two "
                f"temperatures or more, at least 1 of the others, and a schedule of {', '.join(SCHEDULES)}."
            )


def temperatures(n: int, schedule: str = "sigmoid") -> list[float]:
    """β from 0 to 1 in n values: ``σ(8 i / (n − 1) − 4)``, stretched to both ends, or evenly spaced."""
    even = torch.linspace(0, 1, n, dtype=torch.float64)
    if schedule == "linear":
        return even.tolist()
    curve = torch.sigmoid(8 * even - 4)
    return ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()


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


@torch.no_grad()
def _run(
    model: TVAE,
    guide: Guide,
    x: Tensor,
    latents: dict[str, Tensor] | None,
    settings: _Settings,
    seed: int | None,
    progress: bool,
    *,
    forward: bool = True,
) -> list[AnnealedEstimate]:
    """The forward estimate, where asked for, and the reverse one, where the latents are known, batch by batch."""
    check_judged(model, guide, x, None)
    betas, n_steps = temperatures(settings.num_temperatures, settings.schedule), settings.leapfrog_steps
    directions = [1] * forward + [-1] * (latents is not None)
    runs: dict[int, list[tuple[Tensor, Tensor]]] = {direction: [] for direction in directions}
    total = math.ceil(len(x) / settings.batch_size) * (len(betas) - 2) * (1 + len(runs))
    with seeded(seed), progress_bar(total, "annealing", shown=progress, leave=False) as bar:
        for start in range(0, len(x), settings.batch_size):
            rows = slice(start, start + settings.batch_size)
            path = Path(model, guide, x[rows])
            steps = _pilot(path, betas, n_steps, bar.update)
            for direction, run in runs.items():
                y = path.draw(settings.num_chains)
                if latents is not None and direction < 0:
                    exact = path.unconstrain({site: value[rows].unsqueeze(0) for site, value in latents.items()})
                    y = exact.expand_as(y)
                run.append(_anneal(path, y, betas[::direction], steps[::direction], n_steps, bar.update))
    return [_estimate(run, direction, model.n_frames) for direction, run in runs.items()]


def _estimate(run: list[tuple[Tensor, Tensor]], direction: int, n_frames: int) -> AnnealedEstimate:
    """Batches of log-weights (K, B) and acceptance rates (B,) as one estimate; reverse weights estimate 1 / p(x)."""
    found = concatenate([summarize(log_w, n_frames) for log_w, _ in run])
    rate = torch.cat([rate for _, rate in run])
    k = found.num_particles
    return AnnealedEstimate(direction * found.iwae, found.standard_error, found.ess, rate, k, n_frames)
