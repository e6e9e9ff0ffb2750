"""Equivariance, measured: do capsules roll as the input moves?

Everywhere t has shape (N, S, C, D): sequence, frame, capsule, position. Measures of t alone are blind to collapse: a
model that ignores its input can reach a low E_eq and a correlation of 1, because V rolls by construction. Show them
beside the likelihood and for the untrained model too; :func:`.forward_roll`, scored on unseen pixels, is what decides.

A capsule whose boundary is open shows D positions of an endless line: a roll by h takes h of them out of sight and
brings h in that were not in sight before, so that measures there are of the D − h positions that stay. At the other
boundaries positions wrap, with ``truncate`` too, where frames alone end; no measure ever compares frames across the end
of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pyro_tvae.topographies.base import BOUNDARIES, roll

__all__ = ["PairEstimate", "RollCorrelation", "capsule_correlation", "equivariance_error", "roll_correlation"]

CHUNK = 2**20  # numbers per intermediate tensor, 8 MiB in float64
MOST_PAIRS = 2**17  # pairs of frames that are all compared: up to 512 frames; as many are drawn where there are more
GROUPS = 32  # of drawn pairs, from whose differences the standard errors are estimated
TIE = 1e-13  # cross-correlations of unit capsules that differ by less are equal: single precision squared


class PairEstimate(float):
    """A number, and how sure it is: that of all pairs of frames, or its estimate from pairs that were drawn.

    Attributes:
        standard_error: over the drawn pairs; 0 where all were compared.
        n_pairs: of frames, that were compared in every sequence.
    """

    standard_error: float
    n_pairs: int

    def __new__(cls, value: float, standard_error: float = 0.0, n_pairs: int = 0) -> PairEstimate:
        self = super().__new__(cls, value)
        self.standard_error, self.n_pairs = standard_error, n_pairs
        return self


def equivariance_error(
    t: Tensor, *, boundary: str = "circular", max_pairs: int = MOST_PAIRS, seed: int = 0
) -> PairEstimate:
    """Equivariance error E_eq: how far rolled capsules are from the capsules they should be; lower is better.

    ``E_eq = sum over l < m and c of ‖Roll_{m−l}(t̂[l, c]) − t̂[m, c]‖₁`` with ``t̂ = t / ‖t‖₂`` per capsule and frame,
    averaged over sequences (`Keller & Welling 2021, Topographic VAEs learn equivariant capsules
    <https://arxiv.org/abs/2109.01394>`__). A capsule of norm 0 stays 0. Chance, for S = C = D = 18: 13,270.

    At an open boundary the sum is over pairs that keep a position, ``h = m − l < D``, and of each pair over those that
    it keeps, with their own norms: ``‖n(t[l, c, :D − h]) − n(t[m, c, h:])‖₁``, ``n(v) = v / ‖v‖₂``. It is 0 where
    capsules roll along the line, whatever enters, and by chance smaller than around a circle: the two do not compare.

    Args:
        t: (N, S, C, D), at least two frames.
        boundary: of the topography, ``"circular"``, ``"truncate"``, which is the same here, or ``"open"``.
        max_pairs: where S frames make more pairs than that, so many of them are drawn, the same for all sequences, and
            the sum over all is estimated from them: what is returned has a ``standard_error``.
        seed: of that draw.

    Raises:
        ValueError: t has another number of dimensions, a single frame, or values that are not finite; max_pairs is
            below 2; there is no such boundary, or at an open one a single position.

    Example:
        >>> t = torch.stack([roll(torch.tensor([[2.0, 0.0, 0.0]]), shift) for shift in range(3)]).unsqueeze(0)
        >>> equivariance_error(t)
        0.0
    """
    _check("equivariance_error", t)
    ends = is_open("equivariance_error", boundary, t.shape[-1])
    longest = min(t.shape[1], t.shape[-1]) - 1 if ends else t.shape[1] - 1
    total, drawn = _drawn("equivariance_error", t.shape[1], max_pairs, seed, longest)
    if drawn is None:
        summed = 0.0
        for rows in _chunks(t):
            unit = _unit(t[rows])
            for lag in range(1, longest + 1):  # all pairs of one lag share their roll
                summed += _apart(unit[:, :-lag], unit[:, lag:], lag, ends).sum().item()
        return PairEstimate(summed / len(t), 0.0, total)
    distances = torch.zeros(drawn.shape[1], dtype=torch.double)
    for rows in _chunks(t):
        unit = _unit(t[rows])
        for start, (first, second) in _pieces(drawn, unit):
            apart = _apart(unit[:, first], unit[:, second], (second - first).unsqueeze(-1), ends)
            distances[start : start + len(first)] += apart.sum((0, 2, 3)).cpu() / len(t)
    error = float(distances.std()) / math.sqrt(len(distances))
    return PairEstimate(total * float(distances.mean()), total * error, len(distances))


@dataclass(frozen=True, eq=False)
class RollCorrelation:
    """Observed against true rolls over all pairs of frames; higher is better: 1 is perfect, −1 rolls backwards.

    Attributes:
        correlation: circular correlation coefficient; the observed roll is the mode over capsules.
        exact: share of pairs whose pooled roll is exactly the true one; 1 / D by chance, and a little more where the
            capsules disagree, because both tied modes and the pairs of a sequence favour small rolls.
        per_capsule, exact_per_capsule: (C,), the same for every capsule by itself.
        n_pairs: how many pairs of frames they rest on, those of all sequences.
        correlation_error, exact_error: standard errors over the pairs of frames that were drawn; 0 where all were
            compared.
    """

    correlation: float
    exact: float
    per_capsule: Tensor
    exact_per_capsule: Tensor
    n_pairs: int
    correlation_error: float = 0.0
    exact_error: float = 0.0


def roll_correlation(
    t: Tensor,
    index: Tensor,
    period: float,
    *,
    turn: float | None = None,
    boundary: str = "circular",
    max_pairs: int = MOST_PAIRS,
    seed: int = 0,
) -> RollCorrelation:
    """Compare the roll observed between every two frames l < m with what the moving factor did between them.

    Observed: ``argmax_r sum_p t[l, c, p] · t[m, c, p + r]`` per capsule, pooled by the mode over capsules (ties: the
    smallest roll). True: ``(index[m] − index[l]) mod period``. ``2π · observed / turn`` and ``2π · true / period`` are
    correlated as in `Fisher & Lee 1983, A correlation coefficient for circular data
    <https://doi.org/10.1093/biomet/70.2.327>`__, which needs no mean direction, so uniform angles are no trouble; nan
    where all angles of a series are equal or opposite. No pair is chosen by looking at the truth.

    At an open boundary the roll is the one whose kept positions differ least, ``argmin_r`` of the mean of
    ``(t̂[l, c, p] − t̂[m, c, p + r])²`` over the positions p that stay in sight, which around a circle is the same as the
    argmax above; ``|r|`` is at most D / 2, and so are the lags m − l of the pairs: beyond, most of a capsule has left.

    Args:
        t: (N, S, C, D), sequences that share one moving factor.
        index: (N, S), where in its cycle the factor is, whole numbers or any; of these a roll is exact that is nearest.
        period: values in the cycle. Unless it divides ``turn``, no roll matches some of the true ones exactly.
        turn: positions that a capsule moves while the factor goes once through its cycle; D, once around, by default.
            Where a factor repeats within the sequence, capsules that move one position a frame repeat every
            ``turn=period`` positions, and rolls that differ by whole turns are the same.
        boundary: as in :func:`equivariance_error`.
        max_pairs, seed: as in :func:`equivariance_error`; standard errors are by the jackknife over groups of pairs.

    Raises:
        ValueError: t or index has the wrong shape or dtype, there is a single frame, period or turn is below 1,
            max_pairs below 2, there is no such boundary, or at an open one a single position.

    Example:
        >>> t = torch.stack([roll(torch.tensor([[1.0, 2.0, 4.0]]), shift) for shift in range(3)]).unsqueeze(0)
        >>> roll_correlation(t, torch.tensor([[0, 1, 2]]), period=3).exact
        1.0
    """
    _check("roll_correlation", t, index, real=True)
    n_frames, n_capsules, size = t.shape[1:]
    turn = size if turn is None else turn
    for name, value, what in (
        ("period", period, "the values in a cycle"),
        ("turn", turn, "the positions that a capsule moves in a cycle"),
    ):
        if not (math.isfinite(value) and value >= 1):
            raise ValueError(f"roll_correlation: {name} is {value!r}; expected {what}, at least 1.")
    whole = not index.is_floating_point()
    index = index.cpu().long() if whole else index.cpu().double()  # a difference of unsigned integers would wrap
    ends = is_open("roll_correlation", boundary, size)
    longest = min(n_frames - 1, size // 2) if ends else n_frames - 1
    _, drawn = _drawn("roll_correlation", n_frames, max_pairs, seed, longest)
    # One group of all pairs, or groups of drawn ones.
    groups = 1 if drawn is None else min(GROUPS, drawn.shape[1])
    sums, exact = torch.zeros(groups, 8, n_capsules + 1).double(), torch.zeros(groups, n_capsules + 1).double()
    n_pairs = torch.zeros(groups, 1).double()

    def add(group: int, rows: slice, spectrum: Tensor, first: Tensor | slice, second: Tensor | slice) -> None:
        capsules = _rolls(spectrum[:, first], spectrum[:, second], size).flatten(0, 1).cpu()
        # moved counts modulo the period
        start, end = (index[rows, one if isinstance(one, slice) else one.cpu()] for one in (first, second))
        moved = (end - start).flatten().unsqueeze(-1)
        series = torch.cat([capsules, _mode(capsules, size).unsqueeze(-1)], dim=-1)  # (pairs, C + 1): mode last
        sums[group] += _sines(2 * math.pi * series.double() / turn, 2 * math.pi * moved.double() / period)
        off = (series * period - moved * turn) % (turn * period)
        hits = off == 0 if whole else torch.minimum(off, turn * period - off) < period / 2
        exact[group] += hits.double().sum(0)
        n_pairs[group] += len(moved)

    for rows in _chunks(t):
        spectrum = _unit(t[rows]) if ends else _spectrum(t[rows])
        if drawn is None:
            for lag in range(1, longest + 1):
                add(0, rows, spectrum, slice(None, -lag), slice(lag, None))
        else:
            for group, pairs in enumerate(drawn.tensor_split(groups, 1)):
                for _, (first, second) in _pieces(pairs, t[rows]):
                    add(group, rows, spectrum, first, second)

    correlation, share = _circular_correlation(sums.sum(0) / n_pairs.sum()), exact.sum(0) / n_pairs.sum()
    per_capsule, exact_per_capsule = correlation[:n_capsules], share[:n_capsules]
    errors = [0.0, 0.0]
    if drawn is not None:  # what the pooled rolls say without one group
        others = n_pairs.sum() - n_pairs[:, 0]
        without = (sums.sum(0) - sums)[..., -1].T / others, (exact.sum(0) - exact)[:, -1] / others
        varied = (_circular_correlation(without[0]), without[1])
        errors = [math.sqrt((groups - 1) * float(values.var(correction=0))) for values in varied]
    n = int(n_pairs.sum())
    return RollCorrelation(correlation[-1].item(), share[-1].item(), per_capsule, exact_per_capsule, n, *errors)


def capsule_correlation(t: Tensor, index: Tensor) -> float:
    """CapCorr as published, for comparison with published numbers only; higher is better.

    `Keller & Welling 2021, Topographic VAEs learn equivariant capsules <https://arxiv.org/abs/2109.01394>`__.
    Ω is a frame where the factor's index is 0, the true roll is the index at frame 0, and the observed roll is the one
    that carries t at Ω onto t at frame 0: the mode over capsules of the argmax of their cross-correlation. Returned is
    the Pearson correlation over sequences. Two flaws are part of the definition: of several Ω the one with the smallest
    ``|observed − true|`` counts (linear distance, the first of equals), so the truth leaks in, and a sequence that
    starts at 0 always scores a hit; and a linear coefficient is applied to a circle. Positions wrap, whatever the
    boundary. Prefer :func:`roll_correlation`.

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


def _unit(t: Tensor) -> Tensor:
    """Capsules over their norm, in float64 (on the CPU where the device has none); zero stays zero."""
    t = t.detach().to("cpu" if t.device.type == "mps" else t.device).double()
    return normalize(t, dim=-1, eps=torch.finfo(t.dtype).tiny)


def _spectrum(t: Tensor) -> Tensor:
    """Real FFT of the capsules of every frame, scaled to norm 1: a positive factor moves no argmax.

    Nor would centring, ``sum_p (a[p] − ā)(b[p + r] − b̄) = sum_p a[p] b[p + r] − D ā b̄``: the last term is free of r.
    """
    return torch.fft.rfft(_unit(t), dim=-1)


def is_open(owner: str, boundary: str, size: int) -> bool:
    """Whether positions end; raises ValueError where there is no such boundary, or nothing stays in sight."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"{owner}: boundary is {boundary!r}; expected one of {', '.join(BOUNDARIES)}.")
    ends = not BOUNDARIES[boundary][1]
    if ends and size < 2:
        raise ValueError(
            f"{owner}: capsules have 1 position, which leaves an open one that rolls; expected two or more."
        )
    return ends


def _apart(first: Tensor, second: Tensor, shift: int | Tensor, ends: bool) -> Tensor:
    """``|Roll(first) − second|`` of unit capsules; where positions end, of those that stay, over their own norm."""
    moved = roll(first, shift)
    if ends:
        place = torch.arange(first.shape[-1], device=first.device)
        stays = place >= torch.as_tensor(shift, device=first.device).unsqueeze(-1)
        moved, second = (_unit(torch.where(stays, one, 0)) for one in (moved, second))
    return (moved - second).abs()


def _rolls(source: Tensor, target: Tensor, size: int) -> Tensor:
    """``argmax_r sum_p source[p] · target[p + r]`` from spectra (..., D // 2 + 1); the smallest r of equal ones.

    From unit capsules (..., D), whose positions end: the r, modulo D, whose kept positions differ least in the mean.
    """
    if source.is_complex():
        correlation = torch.fft.irfft(source.conj() * target, n=size, dim=-1)
        return (correlation >= correlation.amax(-1, keepdim=True) - TIE).int().argmax(-1)
    spectra = (torch.fft.rfft(one, n=2 * size, dim=-1) for one in (source, target))
    ahead = torch.arange(size, device=source.device) <= size // 2  # of rolls modulo D, those that are not backwards
    product = torch.fft.irfft(next(spectra).conj() * next(spectra), n=2 * size, dim=-1)
    product = torch.where(ahead, product[..., :size], product[..., size:])
    # Of squares up to and from each position: those that stay of one capsule are at its start, of the other at its end.
    upto = [one.square().cumsum(-1).flip(-1) for one in (source, target)]  # the first D − r, by r
    since = [one.square().flip(-1).cumsum(-1).flip(-1) for one in (source, target)]  # those from r on
    backwards = [torch.cat([one[..., :1], one[..., 1:].flip(-1)], -1) for one in (since[0], upto[1])]  # by D − r
    kept = torch.where(ahead, upto[0] + since[1], backwards[0] + backwards[1])
    place = torch.arange(size, device=source.device)
    difference = (kept - 2 * product) / torch.where(ahead, size - place, place)
    return (difference <= difference.amin(-1, keepdim=True) + TIE).int().argmax(-1)


def _mode(rolls: Tensor, size: int) -> Tensor:
    """The most frequent of the whole numbers 0…size − 1 along the last dimension; the smallest of equal ones."""
    counts = rolls.new_zeros(*rolls.shape[:-1], size).scatter_add_(-1, rolls, torch.ones_like(rolls))
    return counts.argmax(-1)


def _sines(a: Tensor, b: Tensor) -> Tensor:
    """Sums over angles (n, k) and (n, 1) that their correlation rests on: (8, k)."""
    angles = (a - b, a + b, 2 * a, (2 * b).expand_as(a))
    return torch.stack([part.sum(0) for angle in angles for part in (angle.cos(), angle.sin())])


def _circular_correlation(means: Tensor) -> Tensor:
    """Fisher & Lee's coefficient from the means that belong to :func:`_sines`: (k,).

    ``ρ = Σ sin(aᵢ − aⱼ) sin(bᵢ − bⱼ) / sqrt(Σ sin²(aᵢ − aⱼ) · Σ sin²(bᵢ − bⱼ))``, sums over pairs i < j. It takes O(n):
    the product of sines is ``½ [cos(xᵢ − xⱼ) − cos(yᵢ − yⱼ)]`` with x = a − b and y = a + b, and over all i and j
    ``Σ cos(xᵢ − xⱼ) = (Σ cos xᵢ)² + (Σ sin xᵢ)²``. The factors ½ and n² cancel.
    """
    difference, total, twice_a, twice_b = means.unflatten(0, (4, 2)).square().sum(1)
    spread_a, spread_b = 1 - twice_a, 1 - twice_b
    correlation = (difference - total) / (spread_a.clamp_min(0) * spread_b.clamp_min(0)).sqrt()
    # A spread at rounding level is none: all angles are equal or opposite, and every product of sines vanishes.
    return torch.where((spread_a < 1e-12) | (spread_b < 1e-12), math.nan, correlation.clamp(-1, 1))


def _chunks(t: Tensor) -> Iterator[slice]:
    """Slices over sequences that bound the memory of whatever has the size of t."""
    step = max(1, CHUNK // t[0].numel())
    return (slice(start, start + step) for start in range(0, len(t), step))


def _drawn(
    owner: str, n_frames: int, max_pairs: int, seed: int, longest: int | None = None
) -> tuple[int, Tensor | None]:
    """How many pairs l < m, at most ``longest`` apart, there are, and those that stand for them if too many: (2, n).

    They are drawn evenly and with replacement.
    """
    if max_pairs < 2:
        raise ValueError(f"{owner}: max_pairs is {max_pairs!r}; expected at least 2 pairs of frames.")
    longest = n_frames - 1 if longest is None else longest
    total = longest * n_frames - longest * (longest + 1) // 2
    if total <= max_pairs:
        return total, None
    generator = torch.Generator().manual_seed(seed)
    if longest < n_frames - 1:  # lag by lag
        place, counts = torch.randint(total, (max_pairs,), generator=generator), n_frames - torch.arange(1, longest + 1)
        lag = torch.searchsorted(counts.cumsum(0), place, right=True)
        first = place - (counts.cumsum(0) - counts)[lag]
        return total, torch.stack([first, first + lag + 1])
    first, ahead = (torch.randint(low, n_frames, (max_pairs,), generator=generator) for low in (0, 1))
    pairs = torch.stack([first, (first + ahead) % n_frames])
    return total, pairs.sort(0).values


def _pieces(pairs: Tensor, t: Tensor) -> Iterator[tuple[int, Tensor]]:
    """A few pairs (2, n) at a time, on t's device, so that a t for each of them stays small; and where they begin."""
    step = max(1, CHUNK // t[:, 0].numel())
    return ((start, pairs[:, start : start + step].to(t.device)) for start in range(0, pairs.shape[1], step))


def _check(owner: str, t: Tensor, index: Tensor | None = None, real: bool = False) -> None:
    if t.dim() != 4 or t.numel() == 0 or t.shape[1] < 2:
        raise ValueError(
            f"{owner}: t has shape {tuple(t.shape)}; expected (sequence, frame, capsule, position) with two frames or "
            "more, because a roll lies between frames: pass what pyro_tvae.encode returns."
        )
    if not all(bool(end.isfinite()) for end in t.aminmax()):  # isfinite of all of t would be as large as t
        raise ValueError(
            f"{owner}: t holds nan or infinity; expected finite numbers: look at the input, and at the model's weights."
        )
    if index is not None and (
        index.shape != t.shape[:2] or index.dtype == torch.bool or (index.is_floating_point() and not real)
    ):
        raise ValueError(
            f"{owner}: index has shape {tuple(index.shape)} and dtype {index.dtype}; expected "
            f"{'numbers' if real else 'integers'} of shape {tuple(t.shape[:2])}: where in its cycle the moving factor "
            "is, for every sequence and frame of t."
        )
    if index is not None and not bool(index.isfinite().all()):
        raise ValueError(f"{owner}: index holds nan or infinity; leave out sequences whose factor is not known.")
