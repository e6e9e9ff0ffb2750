"""Selectivity: d′ by hand, organised maps found, and random ones not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyro_tvae.inference import (
    class_selectivity,
    neighbor_correlation,
    preferred_class,
    preferred_value,
)


def smooth(rows: int = 8, columns: int = 8) -> torch.Tensor:
    """One sine along each axis of a torus, (1, rows, columns)."""
    down, across = (torch.arange(n, dtype=torch.float64) * 2 * math.pi / n for n in (rows, columns))
    return (down.sin().unsqueeze(1) + across.cos()).unsqueeze(0)


def test_selectivity_is_the_difference_of_means_over_the_pooled_deviation() -> None:
    t = torch.randn(60, 2, 3, dtype=torch.float64) + 5
    label = torch.arange(60) % 3
    found = class_selectivity(t, label)
    assert found.shape == (3, 2, 3)
    one, rest = t[label == 1, 1, 2], t[label != 1, 1, 2]
    by_hand = (one.mean() - rest.mean()) / ((one.var(unbiased=False) + rest.var(unbiased=False)) / 2).sqrt()
    assert found[1, 1, 2].item() == pytest.approx(by_hand.item())
    # It has neither origin nor scale, whatever the digits that a large mean costs.
    torch.testing.assert_close(class_selectivity(3 * t + 1e6, label), found, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(class_selectivity(-t, label), -found)


def test_what_never_changes_and_what_is_hardly_known_is_not_selective() -> None:
    t = torch.randn(9, 4)
    t[:, 0] = 2.0
    found = class_selectivity(t, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2]), n_classes=5)
    assert bool((found[:, 0] == 0).all())
    assert bool((found[2:] == 0).all())  # classes of one image and of none
    assert bool((found[:2, 1:] != 0).all())
    assert preferred_class(torch.tensor([[0.84, 0.85, 0.2], [0.0, 0.1, 2.0]])).tolist() == [-1, 0, 1]
    # Unit 1 answers most to class 0, and class 2 is the last to reach the threshold: the published map shows that.
    several = torch.tensor([[0.2, 3.0, 0.9], [0.1, 0.1, 0.9], [0.3, 0.9, 0.1]])
    assert preferred_class(several, last=True).tolist() == [-1, 2, 1]
    assert preferred_class(several).tolist() == [-1, 0, 0]


def test_preferred_values_are_means_over_the_strongest_images() -> None:
    t = torch.tensor([[0.0, 9.0], [1.0, 8.0], [2.0, 7.0]])
    value = torch.tensor([10.0, 20.0, 40.0])
    assert preferred_value(t, value, top=1).tolist() == [40.0, 10.0]
    assert preferred_value(t, value, top=2).tolist() == [30.0, 15.0]


def test_a_smooth_map_is_organised_and_a_checkerboard_is_the_opposite() -> None:
    result = neighbor_correlation(smooth(), n_permutations=999)
    # Along an axis its own sine correlates with cos(2π/8), the other with 1; both have the same variance.
    assert result.value == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert result.p_value == 1 / 1000
    board = (torch.arange(8).unsqueeze(1) + torch.arange(8)).remainder(2).double().unsqueeze(0)
    result = neighbor_correlation(board, n_permutations=999)
    assert (result.value, result.p_value) == (pytest.approx(-1), 1.0)
    flat = neighbor_correlation(torch.ones(1, 4, 4), n_permutations=99)
    assert (flat.value, flat.p_value) == (0.0, 1.0)


def test_vectors_of_features_correlate_as_pearson_says() -> None:
    features = torch.randn(6, 3, 4, dtype=torch.float64)
    pairs = [(i, j, (i + di) % 3, (j + dj) % 4) for i in range(3) for j in range(4) for di, dj in ((0, 1), (1, 0))]
    by_hand = [torch.corrcoef(torch.stack([features[:, i, j], features[:, k, m]]))[0, 1].item() for i, j, k, m in pairs]
    result = neighbor_correlation(features, n_permutations=99)
    assert result.value == pytest.approx(sum(by_hand) / len(by_hand))


def test_the_map_has_no_edge() -> None:
    features = torch.randn(4, 5, 6)
    here = neighbor_correlation(features, n_permutations=9).value
    for shift in ((1, 0), (0, 1), (3, 4)):
        assert neighbor_correlation(features.roll(shift, (1, 2)), n_permutations=9).value == pytest.approx(here)
    assert neighbor_correlation(features.transpose(1, 2), n_permutations=9).value == pytest.approx(here)
    # A step between the first row and the last is a step between neighbours.
    ramp = torch.arange(6.0).unsqueeze(1).expand(6, 6).unsqueeze(0)
    assert neighbor_correlation(ramp, n_permutations=9).value < neighbor_correlation(smooth(6, 6), 9).value


@pytest.mark.parametrize("n_features", [1, 5])
def test_the_p_values_of_random_maps_are_uniform(n_features: int) -> None:
    """Kolmogorov's distance of 300 p-values to uniform ones; false alarms: 1 in 1,000 if it were not seeded."""
    n = 300
    p = torch.tensor(
        [neighbor_correlation(torch.randn(n_features, 4, 5), 199, seed=k).p_value for k in range(n)]
    ).double()
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = (p.sort().values - steps).abs().max().item()
    assert distance < math.sqrt(-math.log(0.001 / 2) / 2 / n) + 1 / 200 + 1 / n


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: class_selectivity(torch.zeros(3, 2), torch.zeros(4, dtype=torch.long)), "label"),
        (lambda: class_selectivity(torch.zeros(3, 2), torch.tensor([0, 1, -1])), "below n_classes"),
        (lambda: class_selectivity(torch.zeros(3, 2), torch.tensor([0, 1, 2]), n_classes=2), "n_classes is 2"),
        (lambda: class_selectivity(torch.full((2, 2), math.nan), torch.tensor([0, 1])), "finite"),
        (lambda: preferred_value(torch.zeros(3, 2), torch.zeros(3), top=4), "top is 4"),
        (lambda: neighbor_correlation(torch.zeros(2, 8)), "feature, row, column"),
        (lambda: neighbor_correlation(torch.zeros(1, 2, 8)), "3 rows"),
        (lambda: neighbor_correlation(torch.zeros(1, 3, 3), n_permutations=0), "n_permutations is 0"),
    ],
)
def test_mistakes_are_named(action: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        action()
