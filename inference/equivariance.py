"""Equivariance, measured: do capsules roll as the input moves, and does rolling them foretell frames nobody has seen?

Everywhere t has shape (N, S, C, D): sequence, frame, capsule, position. Measures of t alone are blind to collapse: a
model that ignores its input can reach a low E_eq and a correlation of 1, because V rolls by construction. Show them
beside the likelihood and for the untrained model too; :func:`forward_roll`, scored on unseen pixels, is what decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import normalize

from pyro_tvae.guides.base import Guide, check_judged, posterior_of
from pyro_tvae.model import TVAE
from pyro_tvae.programs import check_covariates
from pyro_tvae.topographies.base import roll
from pyro_tvae.verbs import composed, posterior_means, weights_at

from . import likelihood
from .likelihood import seeded
from .own_programs import refuse_fixed

__all__ = [
    "Conditional",
    "ForwardRoll",
    "RollCorrelation",
    "capsule_correlation",
    "equivariance_error",
    "forward_roll",
    "roll_correlation",
]

CHUNK = 2**22  # numbers per intermediate tensor, 32 MiB in float64
TIE = 1e-13  # cross-correlations of unit capsules that differ by less are equal: single precision squared
MODEL, REPEAT = "model", "repeat last frame"
MIXTURES = [k / 10 for k in range(11)]  # weights of the mean frame in the floor that repeats the last frame


def equivariance_error(t: Tensor) -> float:
    """Equivariance error E_eq: how far rolled capsules are from the capsules they should be; lower is better.

    ``E_eq = sum over l < m and c of ‖Roll_{m−l}(t̂[l, c]) − t̂[m, c]‖₁`` with ``t̂ = t / ‖t‖₂`` per capsule and frame,
    averaged over sequences (Keller & Welling 2021). A capsule of norm 0 stays 0. Chance, for S = C = D = 18: 13,270.

    Args:
        t: (N, S, C, D), at least two frames.

    Raises:
        ValueError: t has another number of dimensions, a single frame, or values that are not finite.

    Example:
        >>> t = torch.stack([roll(torch.tensor([[2.0, 0.0, 0.0]]), shift) for shift in range(3)]).unsqueeze(0)
        >>> equivariance_error(t)
        0.0
    """
    _check("equivariance_error", t)
    total = 0.0
    for rows in _chunks(t):
        unit = _unit(t[rows])
        for lag in range(1, t.shape[1]):  # all pairs of one lag share their roll
            total += (roll(unit[:, :-lag], lag) - unit[:, lag:]).abs().sum().item()
    return total / len(t)


@dataclass(frozen=True, eq=False)
class RollCorrelation:
    """Observed against true rolls over all pairs of frames; higher is better: 1 is perfect, −1 rolls backwards.

    Attributes:
        correlation: circular correlation coefficient; the observed roll is the mode over capsules.
        exact: share of pairs whose pooled roll is exactly the true one; 1 / D by chance, and a little more where the
            capsules disagree, because both tied modes and the pairs of a sequence favour small rolls.
        per_capsule, exact_per_capsule: (C,), the same for every capsule by itself.
        n_pairs: how many pairs of frames they rest on.
    """

    correlation: float
    exact: float
    per_capsule: Tensor
    exact_per_capsule: Tensor
    n_pairs: int


def roll_correlation(t: Tensor, index: Tensor, period: int, *, turn: int | None = None) -> RollCorrelation:
    """Compare the roll observed between every two frames l < m with what the moving factor did between them.

    Observed: ``argmax_r sum_p t[l, c, p] · t[m, c, p + r]`` per capsule, pooled by the mode over capsules (ties: the
    smallest roll). True: ``(index[m] − index[l]) mod period``. ``2π · observed / turn`` and ``2π · true / period`` are
    correlated as in Fisher & Lee (1983, Biometrika 70), which needs no mean direction, so uniform angles are no
    trouble; nan where all angles of a series are equal or opposite. No pair is chosen by looking at the truth.

    Args:
        t: (N, S, C, D), sequences that share one moving factor.
        index: (N, S), integers, where in its cycle the factor is.
        period: values in the cycle. Unless it divides ``turn``, no roll matches some of the true ones exactly.
        turn: positions that a capsule moves while the factor goes once through its cycle; D, once around, by default.
            Where a factor repeats within the sequence, capsules that move one position a frame repeat every
            ``turn=period`` positions, and rolls that differ by whole turns are the same.

    Raises:
        ValueError: t or index has the wrong shape or dtype, there is a single frame, or period or turn is below 1.

    Example:
        >>> t = torch.stack([roll(torch.tensor([[1.0, 2.0, 4.0]]), shift) for shift in range(3)]).unsqueeze(0)
        >>> roll_correlation(t, torch.tensor([[0, 1, 2]]), period=3).exact
        1.0
    """
    _check("roll_correlation", t, index)
    n_frames, n_capsules, size = t.shape[1:]
    turn = size if turn is None else turn
    for name, value, what in (
        ("period", period, "the values in a cycle"),
        ("turn", turn, "the positions that a capsule moves in a cycle"),
    ):
        if value < 1:
            raise ValueError(f"roll_correlation: {name} is {value!r}; expected {what}, at least 1.")
    index = index.to(t.device).long()  # a difference of unsigned integers would wrap
    observed, true = [], []
    for rows in _chunks(t):
        spectrum = _spectrum(t[rows])
        for lag in range(1, n_frames):
            observed.append(_rolls(spectrum[:, :-lag], spectrum[:, lag:], size).flatten(0, 1).cpu())
            true.append((index[rows, lag:] - index[rows, :-lag]).flatten().cpu())
    capsules, moved = torch.cat(observed), torch.cat(true).unsqueeze(-1)  # moved counts modulo the period, below
    series = torch.cat([capsules, _mode(capsules, size).unsqueeze(-1)], dim=-1)  # (pairs, C + 1): the mode comes last
    correlation = _circular_correlation(2 * math.pi * series.double() / turn, 2 * math.pi * moved.double() / period)
    exact = ((series * period - moved * turn) % (turn * period) == 0).double().mean(0)
    per_capsule, exact_per_capsule = correlation[:n_capsules], exact[:n_capsules]
    return RollCorrelation(correlation[-1].item(), exact[-1].item(), per_capsule, exact_per_capsule, len(moved))


def capsule_correlation(t: Tensor, index: Tensor) -> float:
    """CapCorr as published (Keller & Welling 2021), for comparison with published numbers only; higher is better.

    Ω is a frame where the factor's index is 0, the true roll is the index at frame 0, and the observed roll is the one
    that carries t at Ω onto t at frame 0: the mode over capsules of the argmax of their cross-correlation. Returned is
    the Pearson correlation over sequences. Two flaws are part of the definition: of several Ω the one with the smallest
    ``|observed − true|`` counts (linear distance, the first of equals), so the truth leaks in, and a sequence that
    starts at 0 always scores a hit; and a linear coefficient is applied to a circle. Prefer :func:`roll_correlation`.

    Args:
        t: (N, S, C, D), sequences that share one moving factor.
        index: (N, S), integers, where in its cycle the factor is; sequences that never pass 0 are left out.

    Returns:
        The correlation; nan where it is undefined: a constant series, or fewer than two sequences with an Ω.

    Raises:
        ValueError: t or index has the wrong shape or dtype, or there is a single frame.

    Example:
        >>> index = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
        >>> t = roll(torch.tensor([1.0, 2.0, 4.0]).expand(3, 3, 1, 3), index.unsqueeze(-1))
        >>> round(capsule_correlation(t, index), 6)
        1.0
    """
    _check("capsule_correlation", t, index)
    pieces = []
    for rows in _chunks(t):
        spectrum = _spectrum(t[rows])
        pieces.append(_mode(_rolls(spectrum, spectrum[:, :1], t.shape[-1]), t.shape[-1]).cpu())
    rolls, index = torch.cat(pieces), index.cpu().long()  # (N, S): the roll from every frame to frame 0
    omega, true = index == 0, index[:, :1]
    best = (rolls - true).abs().masked_fill(~omega, torch.iinfo(torch.long).max).argmin(-1, keepdim=True)
    has = omega.any(-1)
    pair = torch.stack([rolls.gather(-1, best)[has, 0], true[has, 0]]).double()
    if bool((pair == pair[:, :1]).all(-1).any()):
        return math.nan
    return torch.corrcoef(pair)[0, 1].item()


class Conditional(NamedTuple):
    """Mean over sequences of log p(unseen frames | seen frames), nats per unseen frame, and its standard error.

    Higher is better. The difference of two lower bounds is no bound itself; both tighten with num_particles.
    """

    mean: float
    standard_error: float


@dataclass(frozen=True, eq=False)
class ForwardRoll:
    """Scores of forecasts of the frames that come 1, 2, …, H after the context; ``model`` first, then its floors.

    Attributes:
        context: number of frames that were encoded.
        log_likelihood: name -> (H,), nats per unseen frame; higher is better.
        pixel_error: name -> (H,), squared error per pixel; lower is better.
        frames: name -> (n_examples, H, channel, height, width), mean frames forecast for the first sequences.
        conditional: log p(unseen frames | seen frames) where ``num_particles`` was given, else None.
    """

    context: int
    log_likelihood: dict[str, Tensor]
    pixel_error: dict[str, Tensor]
    frames: dict[str, Tensor]
    conditional: Conditional | None = None

    @property
    def floors(self) -> list[str]:
        """Names of the forecasts that the model has to beat."""
        return [name for name in self.log_likelihood if name != MODEL]

    @property
    def half(self) -> int:
        """Half of the unseen frames, rounded up: as far as a forecast is judged."""
        return (len(self.log_likelihood[MODEL]) + 1) // 2

    def means(self) -> dict[str, float]:
        """Mean log-likelihood of the first half of the unseen frames, of the model and of every floor."""
        return {name: float(values[: self.half].mean()) for name, values in self.log_likelihood.items()}

    def gain(self, name: str) -> Tensor:
        """Log-likelihood of the model minus that of a floor, (H,), nats per unseen frame; higher is better."""
        if name not in self.floors:
            raise ValueError(f"gain: there is no floor {name!r}; choose one of {', '.join(map(repr, self.floors))}.")
        return self.log_likelihood[MODEL] - self.log_likelihood[name]

    def beats_floors(self, horizon: int | None = None) -> bool:
        """Whether the log-likelihood of the first ``horizon`` unseen frames together exceeds every floor's.

        Half of the unseen frames by default, rounded up. It compares means over sequences, without their errors;
        :meth:`gain` shows single horizons.
        """
        n, first = len(self.log_likelihood[MODEL]), self.half if horizon is None else horizon
        if not 1 <= first <= n:
            raise ValueError(f"beats_floors: horizon is {horizon!r}; expected 1 to {n}, the number of unseen frames.")
        return all(float(self.gain(name)[:first].double().mean()) > 0 for name in self.floors)


@torch.no_grad()
def forward_roll(
    model: TVAE,
    guide: Guide | Callable[..., object],
    x: Tensor,
    *,
    covariates: Mapping[str, Tensor] | None = None,
    context: int | None = None,
    mean_frame: Tensor | None = None,
    baseline: tuple[TVAE, Guide] | None = None,
    batch_size: int = 64,
    n_examples: int = 8,
    num_particles: int | None = None,
    seed: int | None = 0,
) -> ForwardRoll:
    """Forecast unseen frames by rolling capsules: the claim of Fig. 1 of Keller & Welling (2021) as a number.

    Only the first m frames are encoded; ``decode(Roll_h(t[m − 1]))`` is the forecast of frame m − 1 + h, h = 1…S − m,
    scored by the true frame. The same frames score these floors:

    - ``repeat last frame``: the model's family at the mean ``(1 − a) · last seen frame + a · mean_frame``; a = 0 alone
      can cost infinitely many nats. The best a of 0, 0.1, …, 1 is picked for every horizon and score on the very data
      scored: more than a forecaster could know, because a floor that is too strong errs on the honest side;
    - ``mean frame``: the family at ``mean_frame``;
    - ``hold``: the model's own t[m − 1], decoded without a roll; what rolling adds;
    - ``plain VAE, rolled`` and ``plain VAE, held``: the same two forecasts of ``baseline``.

    Args:
        model: the generative program; random weights are at their posterior means.
        guide: its posterior, or any Pyro program of x and observed with the model's sites, whose means are then taken
            over 64 draws.
        x: (N, S, channel, height, width), on the model's device. Unseen frames are masked, and zeros to the guides.
        covariates: what the programs take beside them by name, (N, …), such as labels.
        context: m, from 1 to S − 1; S // 2 by default.
        mean_frame: (channel, height, width), of the training set; by default the mean of the seen frames of x.
        baseline: (model, guide) of a plain VAE (``NoTopography``) with the same family of likelihoods.
        batch_size: sequences at a time; every sequence weighs the same whatever it is.
        n_examples: sequences whose forecasts are kept for figures.
        num_particles: also estimate ``conditional`` from so many importance weights per sequence,
            ``log p(all frames) − log p(seen frames)``; all the latents may move, not only roll.
        seed: of these weights.

    Raises:
        ValueError: x, context or mean_frame does not fit, the baseline's likelihood is of another family, or a guide
            holds the latents of fixed sequences, unseen frames included.

    Example:
        >>> from pyro_tvae import CapsuleRoll, MeanFieldGuide
        >>> model = TVAE((1, 4, 4), n_frames=6, n_capsules=2, capsule_dim=6, topography=CapsuleRoll(3))
        >>> result = forward_roll(model, MeanFieldGuide(model), torch.rand(5, 6, 1, 4, 4))
        >>> result.gain("hold").shape
        torch.Size([3])
    """
    if x.dim() != 5 or len(x) == 0 or x.shape[1] < 2:
        raise ValueError(
            f"forward_roll: x has shape {tuple(x.shape)}; expected (sequence, frame, channel, height, width) with one "
            "sequence and two frames or more."
        )
    if batch_size < 1:
        raise ValueError(f"forward_roll: batch_size is {batch_size!r}; expected at least 1.")
    check_judged(model, guide, x, None)
    check_covariates(model, guide, covariates, len(x))
    for one in (guide, *([] if baseline is None else baseline[1:])):
        refuse_fixed(one, "forward_roll")
    n, m = len(x), x.shape[1] // 2 if context is None else context
    if not 1 <= m < x.shape[1]:
        raise ValueError(f"forward_roll: context is {m!r}; expected 1 to {x.shape[1] - 1}, so that frames stay unseen.")
    if mean_frame is not None and mean_frame.shape != x.shape[2:]:
        raise ValueError(
            f"forward_roll: mean_frame has shape {tuple(mean_frame.shape)}; expected one frame, {tuple(x.shape[2:])}."
        )
    if baseline is not None and type(baseline[0].likelihood) is not type(model.likelihood):
        raise ValueError(
            f"forward_roll: the baseline's likelihood is {type(baseline[0].likelihood).__name__}, the model's is "
            f"{type(model.likelihood).__name__}; nats of two families do not compare: give both the same likelihood."
        )
    mean_frame = x[:, :m].mean((0, 1)) if mean_frame is None else mean_frame.to(x)
    log_likelihood: dict[str, Tensor] = {}
    squared_error: dict[str, Tensor] = {}
    examples: dict[str, list[Tensor]] = {}
    for start in range(0, n, batch_size):
        rows = slice(start, start + batch_size)
        seen, truth, known = x[rows, :m], x[rows, m:], {name: value[rows] for name, value in (covariates or {}).items()}
        for name, candidates in _forecasts(model, guide, seen, truth.shape[1], mean_frame, baseline, known).items():
            means = torch.stack([p.mean.expand_as(truth) for p in candidates])
            nats = torch.stack([p.log_prob(truth).reshape(*truth.shape[:2], -1).sum(-1) for p in candidates])
            error = (means - truth).square().flatten(3).mean(-1)
            log_likelihood[name] = log_likelihood.get(name, 0) + nats.cpu().double().sum(1)  # (candidates, H)
            squared_error[name] = squared_error.get(name, 0) + error.cpu().double().sum(1)
            examples.setdefault(name, []).append(means[:, : max(0, n_examples - start)].cpu())
    frames = {}
    for name, kept in examples.items():
        best = log_likelihood[name].argmax(0)  # which candidate, for every horizon
        frames[name] = torch.cat(kept, 1)[best, :, torch.arange(len(best))].transpose(0, 1)
    return ForwardRoll(
        context=m,
        log_likelihood={name: total.amax(0) / n for name, total in log_likelihood.items()},
        pixel_error={name: total.amin(0) / n for name, total in squared_error.items()},
        frames=frames,
        conditional=_conditional(model, guide, x, covariates, m, num_particles, batch_size, seed)
        if num_particles
        else None,
    )


def _conditional(
    model: TVAE,
    guide: Any,
    x: Tensor,
    covariates: Mapping[str, Tensor] | None,
    context: int,
    num_particles: int,
    batch_size: int,
    seed: int | None,
) -> Conditional:
    """Estimated log p of the frames after the context given the context, per unseen frame."""
    seen = torch.arange(x.shape[1], device=x.device) < context
    with seeded(seed):  # one stream for both, so that their errors are independent
        both, known = (
            likelihood.log_likelihood(
                model,
                guide,
                x,
                num_particles,
                observed=observed,
                covariates=covariates,
                batch_size=batch_size,
                seed=None,
            ).iwae
            for observed in (None, seen)
        )
    nats = (both - known) / (x.shape[1] - context)
    error = float(nats.std()) / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
    return Conditional(float(nats.mean()), error)


def _forecasts(
    model: TVAE,
    guide: Any,
    seen: Tensor,
    n_unseen: int,
    mean_frame: Tensor,
    baseline: tuple[TVAE, Guide] | None,
    covariates: Mapping[str, Tensor],
) -> dict[str, list[TorchDistribution]]:
    """The candidates of every forecast, given the seen frames alone; batch shapes broadcast to (B, H)."""
    rolled, held = _rolled_and_held(model, guide, seen, n_unseen, covariates)
    at_mean, last = model.likelihood.at_mean, seen[:, -1:]
    forecasts = {
        MODEL: [rolled],
        REPEAT: [at_mean(torch.lerp(last, mean_frame, a)) for a in MIXTURES],
        "mean frame": [at_mean(mean_frame.expand_as(last))],
        "hold": [held],
    }
    if baseline is not None:
        rolled, held = _rolled_and_held(*baseline, seen, n_unseen, covariates)
        forecasts |= {"plain VAE, rolled": [rolled], "plain VAE, held": [held]}
    return forecasts


def _rolled_and_held(
    model: TVAE, guide: Any, seen: Tensor, n_unseen: int, covariates: Mapping[str, Tensor]
) -> tuple[TorchDistribution, TorchDistribution]:
    """Decode t of the last seen frame, rolled by 1…H (batch shape (B, H)) and as it is (B, 1)."""
    m = seen.shape[1]
    x = torch.cat([seen, seen.new_zeros(len(seen), n_unseen, *seen.shape[2:])], dim=1)
    observed = torch.arange(x.shape[1], device=x.device) < m
    known = posterior_means(model, posterior_of(guide, x, observed, covariates))
    with weights_at(model, known):
        t = composed(model, known)[:, m - 1 : m]
        shifts = torch.arange(1, n_unseen + 1, device=t.device)
        return model.decode(roll(t, shifts.unsqueeze(-1))), model.decode(t)


def _unit(t: Tensor) -> Tensor:
    """Capsules over their norm, in float64 (on the CPU where the device has none); zero stays zero."""
    t = t.detach().to("cpu" if t.device.type == "mps" else t.device).double()
    return normalize(t, dim=-1, eps=torch.finfo(t.dtype).tiny)


def _spectrum(t: Tensor) -> Tensor:
    """Real FFT of the capsules of every frame, scaled to norm 1: a positive factor moves no argmax.

    Nor would centring, ``sum_p (a[p] − ā)(b[p + r] − b̄) = sum_p a[p] b[p + r] − D ā b̄``: the last term is free of r.
    """
    return torch.fft.rfft(_unit(t), dim=-1)


def _rolls(source: Tensor, target: Tensor, size: int) -> Tensor:
    """``argmax_r sum_p source[p] · target[p + r]`` from spectra (..., D // 2 + 1); the smallest r of equal ones."""
    correlation = torch.fft.irfft(source.conj() * target, n=size, dim=-1)
    return (correlation >= correlation.amax(-1, keepdim=True) - TIE).int().argmax(-1)


def _mode(rolls: Tensor, size: int) -> Tensor:
    """The most frequent of the whole numbers 0…size − 1 along the last dimension; the smallest of equal ones."""
    counts = rolls.new_zeros(*rolls.shape[:-1], size).scatter_add_(-1, rolls, torch.ones_like(rolls))
    return counts.argmax(-1)


def _circular_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Fisher & Lee's coefficient of angles (n, k) and (n, 1), over the first dimension: (k,).

    ``ρ = Σ sin(aᵢ − aⱼ) sin(bᵢ − bⱼ) / sqrt(Σ sin²(aᵢ − aⱼ) · Σ sin²(bᵢ − bⱼ))``, sums over pairs i < j. It takes O(n):
    the product of sines is ``½ [cos(xᵢ − xⱼ) − cos(yᵢ − yⱼ)]`` with x = a − b and y = a + b, and over all i and j
    ``Σ cos(xᵢ − xⱼ) = (Σ cos xᵢ)² + (Σ sin xᵢ)²``. The factors ½ and n² cancel.
    """

    def resultant(angle: Tensor) -> Tensor:
        return angle.cos().mean(0).square() + angle.sin().mean(0).square()

    shared = resultant(a - b) - resultant(a + b)
    spread_a, spread_b = 1 - resultant(2 * a), 1 - resultant(2 * b)
    correlation = shared / (spread_a.clamp_min(0) * spread_b.clamp_min(0)).sqrt()
    # A spread at rounding level is none: all angles are equal or opposite, and every product of sines vanishes.
    return torch.where((spread_a < 1e-12) | (spread_b < 1e-12), math.nan, correlation.clamp(-1, 1))


def _chunks(t: Tensor) -> Iterator[slice]:
    """Slices over sequences that bound the memory of whatever has the size of t."""
    step = max(1, CHUNK // t[0].numel())
    return (slice(start, start + step) for start in range(0, len(t), step))


def _check(owner: str, t: Tensor, index: Tensor | None = None) -> None:
    if t.dim() != 4 or t.numel() == 0 or t.shape[1] < 2:
        raise ValueError(
            f"{owner}: t has shape {tuple(t.shape)}; expected (sequence, frame, capsule, position) with two frames or "
            "more, because a roll is seen between frames: pass what pyro_tvae.encode returns."
        )
    if not bool(t.isfinite().all()):
        raise ValueError(
            f"{owner}: t holds nan or infinity; expected finite numbers: look at the input, and at the model's weights."
        )
    if index is not None and (index.shape != t.shape[:2] or index.is_floating_point() or index.dtype == torch.bool):
        raise ValueError(
            f"{owner}: index has shape {tuple(index.shape)} and dtype {index.dtype}; expected integers of shape "
            f"{tuple(t.shape[:2])}: where in its cycle the moving factor is, for every sequence and frame of t."
        )
