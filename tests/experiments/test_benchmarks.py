"""The benchmark: the products it compares with are those of the model, and its ratios are arithmetic, not timings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pyro_tvae.experiments import benchmarks
from pyro_tvae.experiments.benchmarks import gradients, memory, speed


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


def test_signal_to_noise_is_that_of_known_gradients() -> None:
    # Mean of norm 5, noise of variance 4 in each of 10 entries: 5 / sqrt(40).
    mean = torch.zeros(10)
    mean[:2] = torch.tensor([3.0, 4.0])
    draws = mean + 2 * torch.randn(5000, 10, generator=torch.Generator().manual_seed(1))
    value, error = gradients.signal_to_noise(draws)
    # Four standard errors: a false alarm once in 10,000 seeds.
    assert abs(value - 5 / 40**0.5) < 4 * error
    assert 0 < error < 0.02
    # The noise of the mean is not taken for a signal.
    few = torch.randn(100, 1000, generator=torch.Generator().manual_seed(2))
    assert gradients.signal_to_noise(few)[0] < 0.03 < float(few.mean(0).norm() / few.var(0).sum().sqrt())


def test_the_suite_runs_by_name_and_writes_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"particles": (1, 4), "repeats": 20, "epochs": 1}
    run = gradients.run
    monkeypatch.setattr(gradients, "run", lambda **options: run(**options, **small))
    before = torch.get_rng_state()
    record = benchmarks.run_suite(["gradients"], threads=1, output=tmp_path / "record.json", progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert "DReG / IWAE" in capsys.readouterr().out
    stored = json.loads((tmp_path / "record.json").read_text())
    assert stored == json.loads(json.dumps(record))
    assert stored["gradients"]["particles"] == [1, 4]
    assert stored["machine"]["threads"] == 1


def test_the_peak_of_memory_is_the_process_s_own() -> None:
    before = memory.peak()
    block = torch.ones(before // 4 + 50_000_000)  # four bytes each: more than there was
    assert memory.peak() >= before + 100_000_000
    del block
    assert 0 < before < 64e9


def test_memory_is_compared_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    record = memory.run(threads=1, progress=False, particles=(1, 2))
    assert record["peaks"]["1"] > 5e7
    assert record["met"] is (record["ratio"] <= 1.05)


@pytest.mark.parametrize(("names", "threads"), [(["sped"], 2), (["speed"], 0)])
def test_benchmarks_that_cannot_be_run_are_named(names: list[str], threads: int) -> None:
    with pytest.raises(ValueError, match="expected some of speed, memory, gradients, and at least 1 thread"):
        benchmarks.run_suite(names, threads=threads)
