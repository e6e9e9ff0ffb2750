"""Selectivity: what every unit of a topographic map prefers, and whether neighbours prefer the same.

A map has shape (rows, columns) on a torus: its last row neighbours its first, its last column the first. Neighbours on
an untrained map may agree too, because they share their energies: show the numbers of the untrained model beside these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "NeighborCorrelation",
    "class_selectivity",
    "neighbor_correlation",
    "preferred_class",
    "preferred_value",
]

SELECTIVE = 0.85  # d′ from which Keller & Welling (2021) call a unit selective
CHUNK = 2**22  # numbers per intermediate tensor
TIE = 1e-12  # sums of the same numbers in another order


def class_selectivity(t: Tensor, label: Tensor, n_classes: int | None = None) -> Tensor:
    """d′ of every unit for every class: how far its response to the class lies above its response to all others.

    ``d′ = (mean of t in the class − mean of t outside) / sqrt((variance in the class + variance outside) / 2)`` (Fig. 3
    of `Keller & Welling 2021, Topographic VAEs learn equivariant capsules <https://arxiv.org/abs/2109.01394>`__). 0 is
    no preference; so it is for a unit that never changes, and for a class with fewer than two images in it or outside
    it. Posterior means hide how noisy a code is, and d′ has no scale: give draws from the posterior, else a unit that
    says next to nothing can be called selective.

    Args:
        t: (N, *units), responses to N still images.
        label: (N,), whole numbers, the class of every image.
        n_classes: K; by default one more than the largest label.

    Returns:
        (K, *units), in float64.

    Raises:
        ValueError: t is not finite, or label is not one whole number from 0 to K − 1 per image.

    Example:
        >>> t = torch.tensor([[1.0], [3.0], [7.0], [9.0]])
        >>> class_selectivity(t, torch.tensor([0, 0, 1, 1])).flatten().tolist()
        [-6.0, 6.0]
    """
    size = int(label.max()) + 1 if n_classes is None and len(label) else n_classes or 0
    labeled = label.shape == t.shape[:1] and not label.is_floating_point() and len(label) > 0
    if not labeled or t.dim() < 2 or not bool(t.isfinite().all()) or int(label.min()) < 0 or int(label.max()) >= size:
        raise ValueError(
            f"class_selectivity: t has shape {tuple(t.shape)}, label {tuple(label.shape)} of {label.dtype}, n_classes "
            f"is {n_classes}; expected finite t (image, *units), and for every image a whole number below n_classes."
        )
    # Centred first: a variance as a difference of large squares would lose its digits.
    values = t.detach().cpu().double()
    values = values - values.mean(0)
    of_classes = []
    for k in range(size):
        inside = label.cpu() == k
        if min(int(inside.sum()), int((~inside).sum())) < 2:
            of_classes.append(torch.zeros_like(values[0]))
            continue
        parts = values[inside], values[~inside]
        spread = ((parts[0].var(0, unbiased=False) + parts[1].var(0, unbiased=False)) / 2).sqrt()
        of_classes.append(torch.where(spread > 0, (parts[0].mean(0) - parts[1].mean(0)) / spread, 0.0))
    return torch.stack(of_classes)


def preferred_class(selectivity: Tensor, threshold: float = SELECTIVE, *, last: bool = False) -> Tensor:
    """The class of the highest d′ of every unit, −1 where even that is below the threshold.

    Args:
        selectivity: (K, *units), from :func:`class_selectivity`.
        threshold: of d′.
        last: the last class that reaches the threshold in place of the best, as the map in the code of `Keller &
            Welling 2021, Topographic VAEs learn equivariant capsules <https://arxiv.org/abs/2109.01394>`__ has it;
            where several reach it, that depends on how classes are numbered.

    Returns:
        (*units), int64.

    Example:
        >>> preferred_class(torch.tensor([[0.2, 1.0], [0.5, -1.0]])).tolist()
        [-1, 0]
    """
    if last:
        numbered = torch.arange(len(selectivity), device=selectivity.device).reshape(-1, *[1] * (selectivity.dim() - 1))
        return torch.where(selectivity >= threshold, numbered, -1).amax(0)
    best = selectivity.max(0)
    return torch.where(best.values >= threshold, best.indices, -1)


def preferred_value(t: Tensor, value: Tensor, top: int = 10) -> Tensor:
    """What every unit prefers of a quantity: its mean over the images that activate the unit most.

    Args:
        t: (N, *units), responses to N images.
        value: (N,), the quantity of every image, such as its slant.
        top: over how many images.

    Returns:
        (*units).

    Raises:
        ValueError: value does not fit t, or top is not between 1 and N.

    Example:
        >>> preferred_value(torch.tensor([[0.0], [5.0], [6.0]]), torch.tensor([1.0, 2.0, 4.0]), top=2).item()
        3.0
    """
    if value.shape != t.shape[:1] or not 1 <= top <= len(t):
        raise ValueError(
            f"preferred_value: t has shape {tuple(t.shape)}, value {tuple(value.shape)} and top is {top}; expected one "
            "number per image, and a top from 1 to the number of images."
        )
    return value[t.topk(top, dim=0).indices].mean(0)


@dataclass(frozen=True, eq=False)
class NeighborCorrelation:
    """How alike neighbours on a torus are, against the same units in random places.

    Attributes:
        value: mean over all pairs of neighbours of the correlation of their features; higher is more organised.
        null_mean, null_deviation: mean and standard deviation of the same number over random arrangements.
        p_value: share of random arrangements that are at least as organised, this one counted among them:
            ``(1 + number with null ≥ value) / (1 + n_permutations)``. Valid at any number of permutations.
    """

    value: float
    null_mean: float
    null_deviation: float
    p_value: float


def neighbor_correlation(features: Tensor, n_permutations: int = 9999, seed: int = 0) -> NeighborCorrelation:
    """Test whether neighbours on a torus are alike: a permutation test that moves units to random places.

    With several features per unit the statistic is the mean Pearson correlation, over features, between a unit and its
    four neighbours; with a single one it is Moran's I, ``mean over pairs of neighbours of (a − ā)(b − b̄) / variance``
    (`Moran 1950, Notes on continuous stochastic phenomena <https://doi.org/10.1093/biomet/37.1-2.17>`__). A unit whose
    features are all equal correlates 0 with everything.

    Args:
        features: (F, rows, columns), at least 3 rows and columns; F = 1 for a single quantity.
        n_permutations: random arrangements; the smallest possible p-value is ``1 / (1 + n_permutations)``.
        seed: of the arrangements.

    Raises:
        ValueError: features has another shape, fewer than 3 rows or columns, or values that are not finite; or there
            is no permutation.

    Example:
        >>> angle = torch.arange(8) * torch.pi / 4
        >>> smooth = (angle.sin().unsqueeze(1) + angle.cos()).unsqueeze(0)
        >>> result = neighbor_correlation(smooth, n_permutations=999)
        >>> round(result.value, 3), result.p_value
        (0.854, 0.001)
    """
    if features.dim() != 3 or min(features.shape[1:]) < 3 or not bool(features.isfinite().all()) or n_permutations < 1:
        raise ValueError(
            f"neighbor_correlation: features has shape {tuple(features.shape)}, n_permutations is {n_permutations}; "
            "expected finite features (feature, row, column), 3 rows and columns or more, and 1 permutation or more."
        )
    values = features.detach().cpu().double().flatten(1)
    if len(values) > 1:
        centered = values - values.mean(0)
        unit = torch.nn.functional.normalize(centered, dim=0, eps=torch.finfo(values.dtype).tiny)
    else:
        centered = values - values.mean()
        spread = centered.square().mean().sqrt()
        unit = torch.where(spread > 0, centered / spread, 0.0)
    similarity = unit.T @ unit
    here = torch.arange(values.shape[1]).reshape(features.shape[1:])
    ends = torch.stack([torch.stack([here, here.roll(-1, axis)]).flatten(1) for axis in (0, 1)], dim=1).flatten(1)
    observed = similarity[ends[0], ends[1]].mean()
    generator = torch.Generator().manual_seed(seed)
    step = max(1, CHUNK // ends.shape[1])
    null = torch.cat(
        [
            _rearranged(similarity, ends, min(step, n_permutations - start), generator)
            for start in range(0, n_permutations, step)
        ]
    )
    reached = int((null >= observed - TIE).sum())
    return NeighborCorrelation(
        value=observed.item(),
        null_mean=null.mean().item(),
        null_deviation=null.std(unbiased=False).item(),
        p_value=(1 + reached) / (1 + n_permutations),
    )


def _rearranged(similarity: Tensor, ends: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Mean similarity of neighbours in so many random arrangements, (count,)."""
    places = torch.rand(count, len(similarity), generator=generator, dtype=torch.float64).argsort(-1)
    pairs = places[:, ends[0]].mul_(len(similarity)).add_(places[:, ends[1]])
    return similarity.flatten()[pairs].mean(-1)
