"""The benchmark: the products it compares with are those of the model, and its ratios are arithmetic, not timings."""

from __future__ import annotations

import pytest

from pyro_tvae.experiments.benchmarks import speed


def test_the_bare_products_of_a_step_are_those_of_its_linear_layers() -> None:
    setting = speed.Setting()
    model, guide = setting.build()
    parameters = sum(p.numel() for module in (model, guide) for p in module.parameters())
    assert parameters == pytest.approx(9.8e6, rel=0.01)
    # Forward and both gradients of the decoder, no gradient towards pixels in the encoders' first layers.
    n = 324
    encoder = 2352 * 3 * n * 2 + (3 * n * 2 * n + 2 * n * 2 * n) * 3
    decoder = (n * 2 * n + 2 * n * 3 * n + 3 * n * 2352) * 3
    assert speed.step_products(model, guide, 8).flops >= 2 * 8 * 18 * (2 * encoder + decoder)


def test_ratios_are_medians_over_turns() -> None:
    found = speed.summary("step", [2.0, 3.0, 8.0], [1.0, 1.0, 1.0])
    assert found["ratio"] == 3.0
