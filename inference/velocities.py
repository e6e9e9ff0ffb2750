"""Roll velocity: by how many positions a frame capsules roll where nobody knows what moves, and whether they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tvae.guides.base import Guide, check_judged
from pyro_tvae.judging import check_whole, judges
from pyro_tvae.model import TVAE
from pyro_tvae.verbs import encode

from .equivariance import _check, _chunks, _rolls, _spectrum, _unit, is_open
from .inspection import refuse_fixed

__all__ = ["RollVelocity", "roll_velocity", "roll_velocity_test"]

FINE = 64  # velocities that are tried, per position


@dataclass(frozen=True, eq=False)
class RollVelocity:
    """How fast capsules roll over time, how much at one, and whether frames in any other order do so, too.

    Attributes:
        velocity: positions per frame, above −D/2 and up to D/2; negative ones roll backwards.
        standard_error: of it, by the jackknife over sequences; nan for a single one.
        concentration: mean cosine between the rolls that are observed and those of that velocity, at most 1, where all
            agree; higher is better. What chance gives, ``null`` says: the velocity is the best of many.
        spread: circular standard deviation of the observed rolls about it, positions; infinite where none is left.
        n_pairs: pairs of frames, each of all capsules.
        null: (n,) concentrations of the same sequences with their frames shuffled; None where that was not asked for.
        p_value: share of shuffled and true orders together whose concentration is at least the true one's; uniform, or
            above, where the order of the frames says nothing. None without a null.
    """

    velocity: float
    standard_error: float
    concentration: float
    spread: float
    n_pairs: int
    null: Tensor | None = None
    p_value: float | None = None


def roll_velocity(t: Tensor, *, boundary: str = "circular") -> RollVelocity:
    """The velocity at which capsules roll, from t alone: no factor has to be known.

    Observed, as in :func:`.roll_correlation`: ``r = argmax_r sum_p t[l, c, p] · t[l + h, c, p + r]`` for all frames l,
    capsules c and lags h up to half a capsule, ``D // 2``; beyond, most of what an open capsule held has left it. The
    velocity maximizes ``C(v) = mean cos(2π (r − v h) / D)``, the frequency of a rotation by least squares of its
    phasors (Mardia & Jupp 2000, "Directional Statistics", chapter 2, for C, and for the circular standard deviation
    ``sqrt(−2 log C) · D / 2π``). Velocities between whole positions are told apart by the longer lags.

    Blind to collapse, and to learning where the topography rolls by construction: :func:`roll_velocity_test` shuffles
    the frames before they are encoded, which the topography rolls as well.

    Args:
        t: (N, S, C, D), two frames or more, two positions or more.
        boundary: of the topography; at an open one rolls are observed as in :func:`.roll_correlation`.

    Raises:
        ValueError: t has another shape, or values that are not finite.

    Example:
        >>> import pyro_tvae
        >>> frames = [pyro_tvae.roll(torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0]]), 2 * frame) for frame in range(4)]
        >>> round(roll_velocity(torch.stack(frames).unsqueeze(0)).velocity, 6)
        2.0
    """
    _check_positions("roll_velocity", t)
    ends = is_open("roll_velocity", boundary, t.shape[-1])
    return _fitted(torch.cat([_phasors(t[rows], ends) for rows in _chunks(t)]), *t.shape[1:])


@judges
def roll_velocity_test(
    model: TVAE,
    guide: Guide | Callable[..., object],
    x: Tensor,
    *,
    covariates: Mapping[str, Tensor] | None = None,
    boundary: str | None = None,
    n_shuffles: int = 99,
    batch_size: int = 64,
    seed: int = 0,
) -> RollVelocity:
    """Do capsules roll because of the order of the frames? :func:`roll_velocity`, against shuffled frames.

    A permutation test (Fisher 1935, "The Design of Experiments"; Phipson & Smyth 2010, "Permutation P-values should
    never be zero", https://doi.org/10.2202/1544-6115.1585). The frames of every sequence are put into an order drawn
    for it, encoded, and their concentration is measured at the velocity that suits them best, ``n_shuffles`` times;
    ``p = (1 + number of concentrations at least the true order's) / (1 + n_shuffles)``. Under the hypothesis that
    frames are exchangeable p is at most α with probability at most α, whatever model and guide are, since shuffled
    sequences go through both: a topography that rolls by construction rolls those too.

    Args:
        model, guide: as in :func:`pyro_tvae.encode`.
        x: (N, S, channel, height, width), on the model's device.
        covariates: what the guide takes beside x, by name, (N, …).
        boundary: as in :func:`roll_velocity`; that of the model's topography by default.
        n_shuffles: orders that are drawn; p is no smaller than ``1 / (1 + n_shuffles)``.
        batch_size: sequences that are encoded together.
        seed: of the orders.

    Raises:
        ValueError: fewer than one shuffle, sequences of one frame, capsules of one position, or a guide that holds the
            latents of fixed sequences.

    Example:
        >>> from pyro_tvae import CapsuleRoll, MeanFieldGuide
        >>> model = TVAE((1, 4, 4), n_frames=6, n_capsules=2, capsule_dim=6, topography=CapsuleRoll(3))
        >>> roll_velocity_test(model, MeanFieldGuide(model), torch.rand(5, 6, 1, 4, 4), n_shuffles=19).null.shape
        torch.Size([19])
    """
    check_whole("roll_velocity_test", n_shuffles=n_shuffles, batch_size=batch_size)
    check_judged(model, guide, x, None, covariates)
    refuse_fixed(guide, "roll_velocity_test")
    n, n_frames = x.shape[:2]
    _check_positions("roll_velocity_test", model.like.new_zeros(1, *model.latent_shape))
    ends = is_open("roll_velocity_test", boundary or model.topography.boundary, model.capsule_dim)
    generator = torch.Generator().manual_seed(seed)
    shuffled: Any = 0
    true = []
    for rows in torch.arange((1 + n_shuffles) * n).split(batch_size):
        which, row = rows // n, rows % n  # of the orders, the true one first; of the sequences
        order = torch.rand(len(rows), n_frames, generator=generator).argsort(-1)
        order = torch.where(which.unsqueeze(-1) == 0, torch.arange(n_frames), order).to(x.device)
        row = row.to(x.device)
        given = {name: value[row.to(value.device)] for name, value in (covariates or {}).items()}
        if "measured" in given:  # which pixels of a frame were measured goes with the frame
            measured = (covariates or {})["measured"].to(x.device).expand(x.shape)
            given["measured"] = measured[row.unsqueeze(-1), order]
        t = encode(model, guide, x[row.unsqueeze(-1), order], covariates=given)
        phasors = torch.cat([_phasors(t[piece], ends) for piece in _chunks(t)])
        shuffled = shuffled + phasors.new_zeros(1 + n_shuffles, phasors.shape[1]).index_add(0, which, phasors)
        true.append(phasors[which == 0])
    result = _fitted(torch.cat(true), *model.latent_shape)
    _, concentration = _best(shuffled[1:], model.capsule_dim)
    null = concentration / (result.n_pairs * model.n_capsules)
    # Orders whose concentrations are the same but for rounding are as good.
    beaten = int((null >= result.concentration - 1e-9).sum())
    return RollVelocity(
        result.velocity,
        result.standard_error,
        result.concentration,
        result.spread,
        result.n_pairs,
        null,
        (1 + beaten) / (1 + n_shuffles),
    )


def _phasors(t: Tensor, ends: bool) -> Tensor:
    """``sum over l and c of exp(2πi r / D)`` for each sequence and lag 1, 2, …: (N, lags), complex."""
    size = t.shape[-1]
    spectrum = _unit(t) if ends else _spectrum(t)
    sums = []
    for lag in range(1, _lags(t.shape[1], size) + 1):  # all pairs of one lag together
        angles = 2 * math.pi / size * _rolls(spectrum[:, :-lag], spectrum[:, lag:], size).double()
        sums.append(torch.polar(torch.ones_like(angles), angles).sum((1, 2)).cpu())
    return torch.stack(sums, -1)


def _lags(n_frames: int, size: int) -> int:
    return min(n_frames - 1, max(1, size // 2))


def _best(phasors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The v that maximizes ``Re sum over h of A[h] exp(−2πi v h / D)`` for phasors A (n, lags), and the maximum: (n,).

    Of a grid the best, by one transform; then by Newton's method on what is a sum of cosines.
    """
    lags = torch.arange(1, phasors.shape[-1] + 1).double()
    padded = torch.nn.functional.pad(phasors, (1, 0))  # lag 0 first
    grid = torch.fft.fft(padded, n=max(FINE * size, 2 * padded.shape[-1])).real
    omega = grid.argmax(-1).double() * (2 * math.pi / grid.shape[-1])
    for _ in range(4):
        turned = phasors * torch.polar(torch.ones_like(lags), -omega.unsqueeze(-1) * lags)
        slope, curvature = (lags * turned.imag).sum(-1), (lags.square() * turned.real).sum(-1)
        omega = omega + torch.where(curvature > 0, slope / curvature.clamp_min(1e-300), 0)
    turned = phasors * torch.polar(torch.ones_like(lags), -omega.unsqueeze(-1) * lags)
    velocity = omega * size / (2 * math.pi)
    return size / 2 - (size / 2 - velocity) % size, turned.real.sum(-1)


def _fitted(phasors: Tensor, n_frames: int, n_capsules: int, size: int) -> RollVelocity:
    """From the phasors of every sequence, (N, lags)."""
    n = len(phasors)
    n_pairs = n * sum(n_frames - lag for lag in range(1, phasors.shape[-1] + 1))
    velocity, maximum = (float(value) for value in _best(phasors.sum(0, keepdim=True), size))
    concentration = maximum / (n_pairs * n_capsules)
    error = math.nan
    if n > 1:
        others, _ = _best(phasors.sum(0) - phasors, size)  # without one sequence
        apart = (others - velocity + size / 2) % size - size / 2  # the short way around
        error = math.sqrt((n - 1) * float(apart.var(correction=0)))
    at_most = min(concentration, 1.0)
    spread = math.sqrt(-2 * math.log(at_most)) * size / (2 * math.pi) if at_most > 0 else math.inf
    return RollVelocity(velocity, error, concentration, spread, n_pairs)


def _check_positions(owner: str, t: Tensor) -> None:
    _check(owner, t)
    if t.shape[-1] < 2:
        raise ValueError(f"{owner}: capsules have {t.shape[-1]} position; expected two or more, so that they can roll.")
