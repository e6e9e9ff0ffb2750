"""Content: what a code holds, from how many latents are used to what a linear map reads out of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_tvae import roll

from .equivariance import is_open

__all__ = ["active_latents", "commutation", "pose_probe", "probe"]

ACTIVE = 0.01  # variance of a posterior mean above which its latent is called active
RIDGE = 1.0  # penalty of the probes, on standardised features
CHUNK = 2**20  # numbers per intermediate tensor, 8 MiB in float64


def active_latents(mean: Tensor, observed: Tensor | None = None) -> int:
    """How many latents vary with the data: ``Var_x(E_q[z | x]) > 0.01``, of C·D in all.

    `Burda et al. 2016, Importance weighted autoencoders <https://arxiv.org/abs/1509.00519>`__.

    Args:
        mean: posterior means (N, S, C, D); sequences and frames are the data.
        observed: (N, S) booleans, frames that count; None means all.

    Example:
        >>> active_latents(torch.stack([torch.zeros(2, 3, 1, 2), torch.ones(2, 3, 1, 2)]).flatten(0, 1)[..., :1])
        1
    """
    if mean.dim() != 4 or mean.shape[0] * mean.shape[1] < 2:
        raise ValueError(
            f"active_latents: the means have shape {tuple(mean.shape)}; expected (sequence, frame, capsule, position) "
            "with two frames or more in all."
        )
    if observed is not None:
        mean = mean[observed.to(mean.device)].unsqueeze(1)
        if len(mean) < 2:
            raise ValueError(f"active_latents: {len(mean)} frames were observed; expected two or more.")
    return int((_moments(mean)[1].square() > ACTIVE).sum())


def commutation(t: Tensor, moved: Tensor, *, boundary: str = "circular") -> float:
    """How far rolling the code is from encoding the transformed input: 0 is equivariance, 1 chance; lower is better.

    ``Σ ‖Roll_1(t[n]) − t'[n]‖ / Σ ‖Roll_1(t[n]) − t'[n + 1]‖`` with Euclidean norms over capsules and positions and
    sums over sequences and frames; t' encodes the same sequences with their factor one value further on. The
    denominator pairs each with another sequence's, so that a constant code, whose distance is 0 too, scores nan.

    Args:
        t: (N, S, C, D), codes of N >= 2 sequences.
        moved: the same for the transformed sequences.
        boundary: of the topography; at an open one the position that the roll brings in is left out.

    Raises:
        ValueError: the shapes differ, there is a single sequence or no such boundary, or at an open one a single
            position.

    Example:
        >>> t = torch.randn(4, 3, 2, 5)
        >>> commutation(t, roll(t, 1))
        0.0
    """
    if t.dim() != 4 or t.shape != moved.shape or len(t) < 2:
        raise ValueError(
            f"commutation: codes have shapes {tuple(t.shape)} and {tuple(moved.shape)}; expected twice (N, S, C, D) "
            "with at least 2 sequences."
        )
    kept = slice(1 if is_open("commutation", boundary, t.shape[-1]) else 0, None)
    own = chance = size = 0.0
    for rows in _chunks(t):
        rolled, another = roll(t[rows], 1)[..., kept], moved[torch.arange(len(t))[rows] - 1][..., kept]
        own, chance = (
            total + float((rolled - code).double().flatten(2).norm(dim=-1).sum())
            for total, code in ((own, moved[rows][..., kept]), (chance, another))
        )
        size += float(rolled.double().square().sum())
    return own / chance if chance > 1e-9 * math.sqrt(size) else math.nan


def probe(t: Tensor, labels: Tensor, test_t: Tensor, test_labels: Tensor) -> float:
    """Share of test frames whose class a linear map reads from t: accuracy of a ridge classifier, higher is better.

    Args:
        t: (N, S, C, D), codes it is fitted to.
        labels: (N,) or (N, S), whole numbers; below 0 where it is not known, which leaves the sequence or frame out.
        test_t: (M, S, C, D), codes it is judged on.
        test_labels: (M,) or (M, S), likewise.

    Returns:
        The accuracy; nan where there are fewer than two classes, or nothing to judge on.
    """
    (t, labels), (test_t, test_labels) = _known(t, labels), _known(test_t, test_labels)
    classes = labels[labels >= 0].unique()
    if len(classes) < 2 or not len(test_t):
        return math.nan
    hits = 0
    targets = 2.0 * (labels.unsqueeze(-1) == classes).double() - 1
    for rows, scores in _predictions(t, torch.where(labels.unsqueeze(-1) < 0, math.nan, targets), test_t):
        hits += int((classes[scores.argmax(-1)] == test_labels[rows]).sum())  # none is −1
    return hits / int((test_labels >= 0).sum())


def _known(t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and labels (n, S) of the sequences of which the class of a frame is known."""
    labels = (labels if labels.dim() == 2 else labels.unsqueeze(-1)).expand(t.shape[:2]).cpu()
    some = (labels >= 0).any(1)
    return t[some], labels[some]


def pose_probe(t: Tensor, index: Tensor, test_t: Tensor, test_index: Tensor, period: float | None) -> float:
    """How much of a factor a linear map reads from t: R², of a cyclic one that of its angle's cosine and sine.

    Higher is better.

    Args:
        t: (N, S, C, D), codes it is fitted to.
        index: (N, S), the factor's index in every frame; nan leaves a frame out.
        test_t, test_index: the same for the sequences it is judged on.
        period: values in the factor's cycle; None where its values do not begin again.

    Returns:
        R², at most 1; nan where the factor never changes.
    """
    values = [part.cpu().double() for part in (index, test_index)]
    if any(len(part[part.isfinite()].unique()) < 2 for part in values):
        return math.nan
    angles = [2 * math.pi * part / period for part in values] if period is not None else []
    targets = [torch.stack([angle.cos(), angle.sin()], -1) for angle in angles] or [one.unsqueeze(-1) for one in values]
    y, test_y = targets
    missed = torch.zeros(y.shape[-1], dtype=torch.float64)
    for rows, means in _predictions(t, y, test_t):
        missed += (means - test_y[rows]).square().nansum((0, 1))
    judged = test_y[values[1].isfinite()]
    spread = judged.var(0, correction=0)
    share = 1 - missed / (spread * len(judged))
    # With a period of 2 the sine is 0 but for rounding.
    return float(share[spread > (0 if period is None else 1e-12)].mean())


def _predictions(t: Tensor, targets: Tensor, test_t: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Ridge regression of targets (N, S, k) on standardised codes, and what it says of others: (rows, (n, S, k)).

    Its normal equations are summed over chunks: ``(ZᵀZ + RIDGE · 1) w = Zᵀ (y − ȳ)``, over frames of known targets.
    """
    mean, deviation = _moments(t)
    scale = torch.where(deviation > 1e-9 * (1 + mean.abs()), deviation, 1.0)

    def standardized(codes: Tensor) -> Tensor:
        return ((codes.cpu().double() - mean) / scale).flatten(2)

    known = targets.isfinite().all(-1)
    offset = targets[known].mean(0)
    square: Tensor = RIDGE * torch.eye(mean.numel(), dtype=torch.float64)
    product = torch.zeros(mean.numel(), targets.shape[-1], dtype=torch.float64)
    for rows in _chunks(t):
        z = standardized(t[rows])[known[rows].cpu()]
        square += z.T @ z
        product += z.T @ (targets[rows].cpu() - offset.cpu())[known[rows].cpu()]
    weight = torch.linalg.solve(square, product)
    for rows in _chunks(test_t):
        yield rows, standardized(test_t[rows]) @ weight + offset.cpu()


def _moments(t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over sequences and frames (unbiased), each (C, D) in float64, in two passes."""
    n = t.shape[0] * t.shape[1]
    zero = torch.zeros(t.shape[2:], dtype=torch.float64)
    mean = sum((t[rows].cpu().double().sum((0, 1)) for rows in _chunks(t)), zero) / n
    square = sum(((t[rows].cpu().double() - mean).square().sum((0, 1)) for rows in _chunks(t)), zero)
    return mean, (square / (n - 1)).sqrt()


def _chunks(t: Tensor) -> Iterator[slice]:
    """Slices over sequences that bound the memory of whatever has the size of t."""
    step = max(1, CHUNK // t[0].numel())
    return (slice(start, start + step) for start in range(0, len(t), step))
