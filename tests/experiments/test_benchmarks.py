"""The benchmark: the products it compares with are those of the model, and its ratios are arithmetic, not timings."""

from __future__ import annotations

import doctest
import io
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from pyro_tvae.experiments import benchmarks
from pyro_tvae.experiments.benchmarks import (
    children,
    contender,
    device_check,
    gpu,
    gradients,
    growth,
    memory,
    quickstart,
    scaling,
    speed,
    startup,
    sums,
    throughput,
    timing,
    turns,
)
from pyro_tvae.inference import TrainerOptions, fit

TINY = speed.Setting(2, 3, 8, 2, 3, 3, 1, num_particles=3)


def printed(module: ModuleType, record: Mapping[str, Any]) -> str:
    """What a record that went through JSON looks like."""
    out = io.StringIO()
    module.print_record(json.loads(json.dumps(record)), Console(file=out, width=100))
    return out.getvalue()


@pytest.fixture(scope="module", autouse=True)
def _large() -> None:
    block = torch.ones(300_000_000)  # 1.2 GB before the server of the children starts: see the test on inherited peaks
    del block


def test_the_bare_products_of_a_step_are_those_of_its_linear_layers() -> None:
    setting = speed.Setting()
    model, guide = setting.build()
    parameters = sum(p.numel() for module in (model, guide) for p in module.parameters())
    assert parameters == pytest.approx(9.8e6, rel=0.01)
    # Forward and both gradients of the decoder, no gradient towards pixels in the encoders' first layers.
    n = 324
    encoder = 2352 * 3 * n * 2 + (3 * n * 2 * n + 2 * n * 2 * n) * 3
    decoder = (n * 2 * n + 2 * n * 3 * n + 3 * n * 2352) * 3
    products = speed.step_products(model, guide, 8).operands
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in products)
    assert flops >= 2 * 8 * 18 * (2 * encoder + decoder)


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


def test_a_child_s_peak_is_not_inherited() -> None:
    assert children.call(memory.peak, {}) < memory.peak() - 1_000_000_000


def test_memory_is_compared_between_processes() -> None:
    record = memory.run(
        threads=1, progress=False, particles=(1, 2), frames=(3, 6, 12), sequences=(2, 4000), setting=TINY
    )
    assert {*record["peaks"]} == {"1", "2"}
    assert record["met"] is (record["ratio"] <= 1.05)
    for name in ("weights", "training"):
        assert {axis: [*found] for axis, found in record[name].items()} == {
            "S": ["3", "6", "12"],
            "batch": ["2", "4000"],
        }
        # 4,000 sequences of 3 colour frames of 8 x 8 take 9.2 MB.
        assert record[name]["batch"]["4000"] > record[name]["batch"]["2"] + 9e6
    table = printed(memory, record)
    assert all(word in table for word in ("K = 1", "S = 12", "batch = 4000", "importance weights", "training"))


def test_what_a_process_held_before_is_not_counted() -> None:
    assert memory.needed(memory.peak()) > 0  # where nothing was needed there is still a ratio
    needed = children.call(memory.weigh, {"sizes": vars(TINY), "threads": 1})
    assert 0 < needed < 50e6  # the libraries alone take hundreds


def test_children_are_processes_of_their_own() -> None:
    first, second = children.together(os.getpid, [{}, {}])
    assert len({first, second, os.getpid()}) == 3
    names = children.together(os.getenv, [{"key": "WHO"}] * 2, [{"WHO": "one"}, {"WHO": "two"}])
    assert names == ["one", "two"]
    assert children.call(os.getenv, {"key": "WHO"}) is None  # what one was told is not left to the next
    assert children.call(os.getenv, {"key": "OPENBLAS_NUM_THREADS"}) == "1"
    assert len(children.call(textwrap.dedent, {"text": "x" * 100_000})) == 100_000  # more than a pipe holds


def test_a_child_that_fails_ends_the_others_and_is_named() -> None:
    start = time.monotonic()
    work = {"sizes": vars(TINY), "n_processes": 2, "turns": 1}  # the second does not meet the first
    with pytest.raises(RuntimeError, match=r"a process of its own failed: TypeError: .*'steps'"):
        children.together(scaling.train, [{**work, "steps": 1}, work], scaling._ranks(2))
    assert time.monotonic() - start < 200  # it did not wait for the other
    assert multiprocessing.active_children() == []
    with pytest.raises(RuntimeError, match="it ended with status 3"):
        children.call(os._exit, {"status": 3})


INTERRUPTED = """
import functools, os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells take from what they start in the background
from pyro_tvae.experiments.benchmarks import children
print(children.call(os.system, {"command": "echo words"}), flush=True)
children.call(functools.partial(time.sleep, 300), {})
"""


def test_ctrl_c_ends_every_process_and_what_children_print_is_no_output() -> None:
    line = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        time.sleep(1)  # until the second child sleeps; where it does not yet, it is ended all the same
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, errors = process.communicate(timeout=100)
    assert output == ""
    assert errors.startswith("words\n")
    assert errors.count("KeyboardInterrupt") == 1  # the parent's alone
    for _ in range(500):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("processes are left")


def test_exponents_are_those_of_known_powers() -> None:
    sizes = [2**k for k in range(1, 9)]
    for power in (-1.0, 0.0, 0.5, 2.0):
        found = growth.summary(sizes, [3.7 * n**power for n in sizes])
        assert found["exponent"] == pytest.approx(power, abs=1e-9)
        assert found["standard_error"] < 1e-7
    # The error is that of a mean over known noise: sigma / sqrt(Sxx) for logarithms with noise sigma.
    draw = random.Random(0)
    z = []
    for _ in range(400):
        noisy = growth.summary(sizes, [n**1.5 * math.exp(draw.gauss(0, 0.1)) for n in sizes])
        z.append((noisy["exponent"] - 1.5) / noisy["standard_error"])
    # Student's t with 6 degrees of freedom: variance 1.5, kurtosis 6, so the mean square of 400 has error 0.17 and the
    # mean 0.061. Four errors: about one false alarm in 5,000 seeds.
    assert abs(sum(z) / 400) < 0.25
    assert abs(sum(value**2 for value in z) / 400 - 1.5) < 0.68
    # A fixed cost on top is no power, and the error says so.
    assert growth.summary(sizes, [n + 50.0 for n in sizes])["standard_error"] > 0.05


@pytest.mark.parametrize(
    ("sizes", "values"), [([1, 2], [1.0, 2.0]), ([1, 2, 4], [1.0, 0.0, 2.0]), ([1, 1, 1], [1.0] * 3)]
)
def test_exponents_that_cannot_be_are_refused(sizes: list[int], values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected 3 positive pairs"):
        growth.summary(sizes, values)


def test_growth_measures_every_size_once_per_axis() -> None:
    sizes = {"S": (3, 6, 12), "C": (2, 4, 8), "D": (3, 6, 12), "N": (500, 1000, 2000)}
    one = [next(iter(sums.TOPOGRAPHIES))]
    small: dict[str, Any] = {"frames": (3, 40, 80), "fewer": (3, 6, 12), "topographies": one}
    record = growth.run(threads=1, progress=False, sizes=sizes, turns=1, turn_seconds=0.001, setting=TINY, **small)
    assert [*record["axes"]] == [*sizes]
    for axis, found in record["axes"].items():
        assert found["sizes"] == [*sizes[axis]]
        for name in ("seconds", "products", "memory"):
            assert found[name] == growth.summary(sizes[axis], found[name]["values"])
    # Each sequence is kept at least once, in 2.3 kB.
    held = record["axes"]["N"]["memory"]["values"]
    assert held[2] - held[0] > 1500 * 2304
    assert "N, 500 to 2000" in printed(growth, record)
    energies = record["energies"][one[0]]
    for frames, costs in (((3, 40, 80), energies), ((3, 6, 12), energies["beside"])):
        assert costs["sizes"] == [*frames]
        for name in ("seconds", "memory"):
            assert costs[name] == growth.summary(frames, costs[name]["values"])
    energies["paper"] = {"ratio": 0.98, "low": 0.9, "high": 1.1, "repeats": 3}
    assert "0.98 (0.90–1.10)" in printed(growth, record)
    with pytest.raises(ValueError, match="is no checkout; expected a folder that holds pyro_tvae"):
        growth.run(beside="nowhere")
    with pytest.raises(ValueError, match="at least 3 sizes for some of S, C, D, N"):
        growth.run(sizes={"K": (1, 2, 3)})


@pytest.mark.parametrize("name", sums.TOPOGRAPHIES)
@pytest.mark.parametrize("dense", [False, True])
def test_every_topography_of_the_sums_is_measured(name: str, dense: bool) -> None:
    found = sums.costs(name, (6, 30), n_sequences=2, dense=dense, seconds=0.0)
    assert [len(values) for values in found.values()] == [2, 2]
    assert min(map(min, found.values())) > 0


def test_every_step_is_compared_with_products_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[str] = []
    steps: list[str] = []

    class Spied(speed.Products):
        def __call__(self) -> None:
            products.append(torch.get_float32_matmul_precision())
            super().__call__()

    def spied_fit(*arguments: Any, **options: Any) -> Any:
        witness = Callback()
        witness.on_train_batch_end = lambda *_: steps.append(torch.get_float32_matmul_precision())  # type: ignore[method-assign]
        trainer = options["trainer"]
        return fit(*arguments, **options | {"trainer": replace(trainer, callbacks=[*trainer.callbacks, witness])})

    monkeypatch.setattr(speed, "Products", Spied)
    monkeypatch.setattr(timing, "fit", spied_fit)
    monkeypatch.setattr(speed, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(speed, "STEPS", 1)
    record = speed.run(threads=1, seconds=0.1, progress=False, setting=TINY)
    assert {*products} == {"highest"}
    assert [*dict.fromkeys(steps)] == ["highest", "medium"]
    assert torch.get_float32_matmul_precision() == "highest"
    assert {*record["measures"]} == {*speed.TARGETS}
    for found in record["measures"].values():
        assert found["repeats"] >= speed.MIN_REPEATS
        assert 0 < found["low"] <= found["ratio"] <= found["high"]
    assert "fit.matmul_precision" in printed(speed, record)


def test_turns_time_steps_between_what_they_are_compared_with() -> None:
    model, guide = TINY.build()
    calls = []
    timed = timing.StepTimer(lambda: calls.append(0), steps=2, warm_up=1, enough=lambda count: count >= 3)
    x, trainer = torch.rand(3, 3, *TINY.frame_shape), TrainerOptions(callbacks=[timed])
    history = fit(model, guide, x, batch_size=1, max_epochs=99, warmup_steps=0, progress=False, trainer=trainer)
    assert len(timed.steps) == 3  # over several epochs of three steps
    assert len(timed.others) == 4
    assert len(calls) == 8
    assert all(value > 0 for value in timed.steps)
    assert history.seconds >= 6 * min(timed.steps)


def test_rates_are_shares_of_the_bare_rate_and_higher_is_better() -> None:
    slow, fast = (throughput.measure("particles", 100, [s] * 3, [1.0] * 4) for s in (4.0, 2.0))
    assert (slow["rate"], slow["bare_rate"], slow["ratio"]) == (25.0, 100.0, 0.25)
    assert fast["ratio"] == 0.5
    # A machine that gets slower from turn to turn does not change the share.
    assert throughput.measure("particles", 1, [2.0, 4.0, 6.0], [0.5, 1.5, 2.5, 3.5])["ratio"] == 0.5


def test_throughput_measures_both_rates_on_digits_that_turn() -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    record = throughput.run(threads=1, seconds=0.1, progress=False, setting=TINY)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    for found in record["measures"].values():
        assert found["repeats"] >= throughput.MIN_REPEATS
        assert 0 < found["low"] <= found["ratio"] <= found["high"]
        assert found["rate"] > 0
    table = printed(throughput, record)
    assert "training sequences" in table
    assert "K = 3" in table
    batch = next(iter(throughput.turning_digits(speed.Setting()).batches("train", batch_size=8)))
    assert batch["x"].shape == (8, 18, 3, 28, 28)
    assert len(batch["x"].flatten(1).unique(dim=0)) == 8


def test_the_ratio_of_scaling_is_2_where_a_second_process_doubles_the_rate() -> None:
    found = scaling.summary(8, [1.0, 1.0, 1.0], [1.0, 1.0])
    assert (found["one"], found["two"], found["ratio"]) == (8.0, 16.0, 2.0)
    assert scaling.summary(8, [1.0, 1.0], [2.0])["ratio"] == 1.0


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without distributed")
def test_scaling_trains_with_one_process_and_with_two() -> None:
    record = scaling.run(progress=False, rounds=1, turns=1, steps=2, setting=TINY)
    for found in record["measures"].values():
        assert found["repeats"] == 1
        # The rates are for two processes' sequences; a ratio above 2 can be noise, above 20 it would be arithmetic.
        assert 0 < found["ratio"] < 20
    assert "DDP over gloo" in printed(scaling, record)


@pytest.mark.parametrize("kind", ["svi", "svi_fused", "loop", "weights"])
def test_a_contender_makes_as_many_steps_as_it_is_told_to(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[int] = []
    repeat = contender.repeat

    def counted(step: Callable[[torch.Tensor], object], batches: list[torch.Tensor]) -> None:
        def counting(x: torch.Tensor) -> object:
            made.append(1)
            return step(x)

        repeat(counting, batches)

    monkeypatch.setattr(contender, "repeat", counted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n3\n"))
    with pytest.raises(SystemExit):
        contender.main(kind, [2, 3, 8, 2, 3, 3, 1], torch.get_num_threads())
    assert len(made) == contender.WARM_UP + 4
    first, *seconds = capsys.readouterr().out.split()
    assert first == "ready"
    assert len(seconds) == 2
    assert all(float(one) > 0 for one in seconds)


def test_turns_compare_fit_with_another_checkout_s() -> None:
    pairs = (turns.Pair("fit", "beside fit", "against itself", 1e9), turns.Pair("fit", "rbg", "JAX"))
    beside = Path(__file__).parents[2]
    record = turns.run(progress=False, beside=beside, turns=1, steps=1, setting=TINY, pairs=pairs[:1])
    (pair,) = record["pairs"]
    assert pair["repeats"] == 1
    assert pair["met"] is True
    assert pair["ratio"] == pytest.approx(
        record["contenders"]["fit"]["seconds"] / record["contenders"]["beside fit"]["seconds"]
    )
    assert "against itself" in printed(turns, record)
    with turns.site(beside) as folder:
        assert (Path(folder) / "pyro_tvae" / "inference" / "training.py").is_file()
        assert (Path(folder) / "pyro_tvae" / "model.py").is_file()
    with pytest.raises(ValueError, match=r"is no checkout; expected a folder that holds"):
        turns.run(beside=beside / "tests")
    with pytest.raises(RuntimeError, match=r"^benchmark turns: the contender 'none' failed: KeyError: 'none'$"):
        turns.run(progress=False, turns=1, setting=TINY, pairs=(turns.Pair("none", "none", "nothing"),))


def test_the_quickstart_s_commands_are_timed_in_turns_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, ...]] = []

    def seconds(root: str | None, folder: Path, threads: int, *words: str) -> float:
        given.append(words)
        run = folder / words[-1].removeprefix("hydra.run.dir=")
        run.mkdir(exist_ok=True)
        score = 0.5 if root is None else 0.25
        record = {
            "measures": {"trained": {"explained": score}, "plain_vae": {"iwae": -2.0}},
            "forward_roll": {"log_likelihood": {"model": [-1.0, -3.0, -9.0]}},
        }
        (run / "evaluation.json").write_text(json.dumps(record))
        (run / "history.json").write_text(json.dumps({"seconds": 7.0}))
        return len(words) * (1.0 if root is None else 4.0)

    monkeypatch.setattr(quickstart, "_seconds", seconds)
    record = quickstart.run(progress=False, beside=Path(__file__).parents[2], turns=2, overrides=["seed=1"])
    assert given[:2] == [
        ("train", "fit.progress=false", "seed=1", f"hydra.run.dir={version}") for version in ("here", "beside")
    ]
    assert given[2:] == [("evaluate", version) for version in ("here", "beside")] * 2
    assert record["evaluate"]["ratio"] == 0.25
    assert record["evaluate"]["repeats"] == 2
    assert record["train"]["met"] is True
    assert record["here"]["scores"]["trained"] == {
        "explained": 0.5, "iwae": None, "iwae_error": None, "elbo": None, "kl": None, "forward_roll": -2.0
    }  # fmt: skip
    table = printed(quickstart, record)
    assert re.search(r"explained, trained +0.50 +0.25", table)
    assert "0.25" in printed(quickstart, {"here": record["here"], "beside": record["beside"], **record})
    assert "pyro-tvae train" in printed(quickstart, {"here": record["here"]})


def test_startup_names_the_heavy_modules_that_a_command_imports() -> None:
    record = startup.run(progress=False, repeats=1, commands=(("--help",), ("benchmark", "--help")))
    assert [*record["commands"]] == ["--help", startup.COLD, "benchmark --help"]
    for found in record["commands"].values():
        assert found["heavy"] == []  # lazy imports: this is what makes help fast on any machine
        assert found["seconds"] > 0
        assert found["ratio"] > 0
    assert record["commands"]["benchmark --help"]["met"] is None
    table = printed(startup, record)
    assert "none" in table
    assert startup.COLD in table
    report = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import numpy"], capture_output=True, text=True, check=True
    ).stderr
    assert startup.heavy_imports(report) == ["numpy"]
    assert startup.summary([2.0], [1.0], [], target=1.0)["met"] is False
    with pytest.raises(RuntimeError, match="no-such-command ended with status 2"):
        startup.run(progress=False, repeats=1, commands=(("no-such-command",),))


def test_every_benchmark_has_what_the_suite_needs() -> None:
    for name in benchmarks.NAMES:
        module = import_module(f"pyro_tvae.experiments.benchmarks.{name}")
        assert callable(module.run)
        assert callable(module.print_record)
    assert benchmarks.remaining(benchmarks.NAMES, 0, 0.0).endswith("minutes")
    assert benchmarks.remaining(["speed", "startup"], 1, spent=600.0) == "2 minutes"


def test_the_gpu_s_benchmark_is_tried_on_a_cpu_and_named_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WARM_UP", 5)
    record = gpu.run(threads=1, progress=False, device="cpu", rounds=1, steps=4)
    assert record["replays"] == 5 + 4 - 4  # the warm-up's steps and the timed ones, but for those until one is recorded
    assert {*record["measures"]} == {*gpu.WHAT}
    assert all(one["card"].startswith("none") and one["milliseconds"][0] > 0 for one in record["measures"].values())
    assert "times as fast" in printed(gpu, record)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^benchmark gpu: torch finds no GPU here; .* --device cpu\.$"):
            benchmarks.run_suite(["gpu"], progress=False)


def test_the_device_check_keeps_what_each_part_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> dict[str, Any]:
        raise RuntimeError("out of\norder")

    monkeypatch.setattr(gpu, "run", lambda **_: {"card": "none"})
    monkeypatch.setattr(device_check, "training", fails)
    found = device_check.check("cpu", steps=10, output=tmp_path / "record.json", tests=tmp_path / "none")
    assert found["losses"]["bit by bit"] is True
    assert found["losses"]["largest difference of losses"] == 0.0
    assert found["resume"] == {"bit by bit": True, "largest difference of weights": 0.0}
    assert "no folder" in found["tests"]["why"]
    assert found["training"] == {"error": "RuntimeError: out of order"}
    assert json.loads((tmp_path / "record.json").read_text()) == json.loads(json.dumps(found))


def test_the_device_check_writes_over_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("equal_losses", "resumed", "marked_tests", "training"):
        monkeypatch.setattr(device_check, name, lambda *_: {})
    monkeypatch.setattr(gpu, "run", lambda **_: {})
    record = tmp_path / "record.json"
    words = ["--device", "cpu", "--output", str(record)]
    record.write_text("my notes")
    with pytest.raises(SystemExit, match="2"):
        device_check.main(words)
    assert "is there already, and is no record of a device check; choose another --output" in capsys.readouterr().err
    assert record.read_text() == "my notes"
    record.unlink()
    device_check.main(words)
    first = record.read_text()
    device_check.main(words)
    assert f"the former record is in {tmp_path / 'record-1.json'}" in capsys.readouterr().out
    assert (tmp_path / "record-1.json").read_text() == first


def test_an_interrupted_suite_keeps_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**options: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    done = {"commands": {}, "interpreter": 0.1}
    monkeypatch.setattr(startup, "run", lambda **options: done)
    monkeypatch.setattr(startup, "print_record", lambda *arguments: None)
    monkeypatch.setattr(growth, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        benchmarks.run_suite(["startup", "growth", "speed"], threads=1, output=tmp_path / "a" / "record.json")
    (part,) = (tmp_path / "a").iterdir()
    assert part.name.startswith("record.unfinished-")  # a whole record that was there would have stayed
    stored = json.loads(part.read_text())
    assert stored["startup"] == done
    assert "growth" not in stored


@pytest.mark.parametrize(
    "name", ["children", "growth", "scaling", "speed", "startup", "throughput", "timing", "gradients", ""]
)
def test_the_examples_run(name: str) -> None:
    module = import_module(f"pyro_tvae.experiments.benchmarks{'.' if name else ''}{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_benchmarks_that_cannot_be_run_are_named() -> None:
    with pytest.raises(ValueError, match=r"no benchmark called 'sped'; expected some of speed, throughput, memory, "):
        benchmarks.run_suite(["sped"])
    with pytest.raises(ValueError, match=r"threads is 0; expected at least 1"):
        benchmarks.run_suite(["speed"], threads=0)


def test_help_names_every_benchmark() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "pyro_tvae.experiments.cli", "benchmark", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [name for name in benchmarks.NAMES if not re.search(rf"\b{name}\b", text)] == []
