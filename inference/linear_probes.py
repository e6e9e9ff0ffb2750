"""Content: what a code holds, from how many latents are used to what a linear map reads out of it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pyro_tvae import roll

__all__ = ["active_latents", "commutation", "pose_probe", "probe"]

ACTIVE = 0.01  # variance of a posterior mean above which its latent is called active
RIDGE = 1.0  # penalty of the probes, on standardised features


def active_latents(mean: Tensor) -> int:
    """How many latents vary with the data: ``Var_x(E_q[z | x]) > 0.01`` (Burda et al. 2016), of C·D in all.

    Args:
        mean: posterior means (N, S, C, D); sequences and frames are the data.

    Example:
        >>> active_latents(torch.stack([torch.zeros(2, 3, 1, 2), torch.ones(2, 3, 1, 2)]).flatten(0, 1)[..., :1])
        1
    """
    if mean.dim() != 4 or mean.shape[0] * mean.shape[1] < 2:
        raise ValueError(
            f"active_latents: the means have shape {tuple(mean.shape)}; expected (sequence, frame, capsule, position) "
            "with two frames or more in all."
        )
    return int((mean.double().flatten(0, 1).var(0) > ACTIVE).sum())


def commutation(t: Tensor, moved: Tensor) -> float:
    """How far rolling the code is from encoding the transformed input: 0 is equivariance, 1 chance; lower is better.

    ``Σ ‖Roll_1(t[n]) − t'[n]‖ / Σ ‖Roll_1(t[n]) − t'[n + 1]‖`` with Euclidean norms over capsules and positions and
    sums over sequences and frames; t' encodes the same sequences with their factor one value further on. The
    denominator pairs each with another sequence's, so that a constant code, whose distance is 0 too, scores nan.

    Args:
        t: (N, S, C, D), codes of N >= 2 sequences.
        moved: the same for the transformed sequences.

    Raises:
        ValueError: the shapes differ, or there is a single sequence.

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
    rolled, other = roll(t, 1), moved.roll(1, 0)
    own, chance = ((rolled - code).double().flatten(2).norm(dim=-1).sum() for code in (moved, other))
    return float(own / chance) if chance > 1e-9 * rolled.double().norm() else math.nan


def probe(t: Tensor, labels: Tensor, test_t: Tensor, test_labels: Tensor) -> float:
    """Share of test frames whose class a linear map reads from t: accuracy of a ridge classifier, higher is better.

    Args:
        t: (N, S, C, D), codes it is fitted to.
        labels: (N,), whole numbers.
        test_t: (M, S, C, D), codes it is judged on.
        test_labels: (M,).

    Returns:
        The accuracy; nan where there are fewer than two classes.
    """
    from sklearn.linear_model import RidgeClassifier  # slow to import

    if len(labels.unique()) < 2:
        return math.nan
    x, test_x = _features(t, test_t)
    y, test_y = (part.repeat_interleave(t.shape[1]).cpu().numpy() for part in (labels, test_labels))
    return float(RidgeClassifier(alpha=RIDGE).fit(x, y).score(test_x, test_y))


def pose_probe(t: Tensor, index: Tensor, test_t: Tensor, test_index: Tensor, period: int) -> float:
    """How much of a cyclic factor a linear map reads from t: R² of the angle's cosine and sine, higher is better.

    Args:
        t: (N, S, C, D), codes it is fitted to.
        index: (N, S), the factor's index in every frame.
        test_t, test_index: the same for the sequences it is judged on.
        period: values in the factor's cycle.

    Returns:
        R², at most 1; nan where the factor never changes.
    """
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score

    if len(index.unique()) < 2 or len(test_index.unique()) < 2:
        return math.nan
    angles = [2 * math.pi * part.flatten().cpu().double().numpy() / period for part in (index, test_index)]
    y, test_y = (np.stack([np.cos(angle), np.sin(angle)], -1) for angle in angles)
    x, test_x = _features(t, test_t)
    return float(r2_score(test_y, Ridge(alpha=RIDGE).fit(x, y).predict(test_x)))


def _features(t: Tensor, test_t: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Frames by latents (N·S, C·D), standardised by the ones that are fitted to."""
    rows, test_rows = (part.flatten(2).flatten(0, 1).cpu().double() for part in (t, test_t))
    mean, scale = rows.mean(0), rows.std(0)
    scale = torch.where(scale > 1e-9 * (1 + mean.abs()), scale, 1.0)
    return ((rows - mean) / scale).numpy(), ((test_rows - mean) / scale).numpy()
