"""Device check: whether captured training is fast, exact and resumable on a GPU, in at most six minutes, as one record.

``python -m pyro_tvae.experiments.benchmarks.device_check`` measures :mod:`.gpu` in turns, compares the losses and
weights of captured and eager steps, stops a captured run and goes on with it, runs the tests that are marked for a
device, and trains ``tvae_lpartial_mnist`` as published for the time that is left. The record is written after each
part, and a part that fails leaves its error in it. ``--device cpu`` tries all of it at tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback

from pyro_tvae.files import free_name
from pyro_tvae.inference import History, TrainerOptions, fit

from ..config.building import build, fit_parts
from ..config.composition import compose
from ..provenance import hardware, versions
from ..runs.files import read_record, write_text
from . import gpu
from .speed import PAPER, Setting
from .throughput import turning_digits

__all__ = ["check", "main"]

SECONDS = 360.0
TESTS = 90.0  # seconds at most for the tests that are marked for a device
RESERVE = 10.0  # for the last writes


class Until(Callback):
    """Ends a fit at a time, or after so many steps."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if time.monotonic() >= self.deadline:
            trainer.should_stop = True


def options(device: torch.device, *callbacks: Callback) -> TrainerOptions:
    return TrainerOptions("gpu" if device.type == "cuda" else "cpu", devices=1, callbacks=callbacks)


def trained(
    setting: Setting, device: torch.device, captures: bool, steps: int, n_train: int | None = None, **further: Any
) -> tuple[list[torch.Tensor], History]:
    """Weights and history of so many steps, always from the same start."""
    torch.manual_seed(0)
    model, guide = setting.build()
    history = fit(
        model, guide, turning_digits(setting, n_train), max_steps=steps, seed=1, capture=captures, progress=False,
        trainer=options(device), **({"max_epochs": 1_000_000, "warmup_steps": 50} | further),
    )  # fmt: skip
    return [p.detach().cpu().clone() for p in [*model.parameters(), *guide.parameters()]], history


def equal_losses(setting: Setting, device: torch.device, steps: int = 200) -> dict[str, Any]:
    """Losses of captured and eager steps, ten to a value, and how far they and the weights are apart."""
    weights, losses = [], []
    for captures in (False, True):
        found, history = trained(setting, device, captures, steps)
        weights.append(found)
        losses.append(history.column("train/objective")[1])
    pairs = list(zip(*weights, strict=True))
    return {
        "steps": steps,
        "eager": losses[0],
        "captured": losses[1],
        "largest difference of losses": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "largest difference of weights": max(float((a - b).abs().max()) for a, b in pairs),
        "bit by bit": all(torch.equal(a, b) for a, b in pairs),
    }


def resumed(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Whether a captured run that was stopped after its second epoch of three ends as one left alone."""
    few: dict[str, Any] = {"max_epochs": 3, "warmup_steps": 10, "n_train": 20 * setting.n_sequences}
    whole, _ = trained(setting, device, True, -1, **few)
    with tempfile.TemporaryDirectory() as folder:
        trained(setting, device, True, -1, **few | {"max_epochs": 2}, directory=folder)
        last = Path(folder) / "checkpoints" / "last.ckpt"
        found, _ = trained(setting, device, True, -1, **few, resume=last, directory=folder)
    pairs = list(zip(whole, found, strict=True))
    return {
        "bit by bit": all(torch.equal(a, b) for a, b in pairs),
        "largest difference of weights": max(float((a - b).abs().max()) for a, b in pairs),
    }


def marked_tests(tests: Path) -> dict[str, Any]:
    """The end of what pytest says of the tests that are marked for a device."""
    if not tests.is_dir():
        return {"ran": False, "why": f"there is no folder {tests}; run this from the root of the repository."}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "device", "-p", "no:cacheprovider", str(tests / "inference")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TESTS, check=False)
    return {"ran": True, "status": done.returncode, "said": done.stdout.strip().splitlines()[-15:]}


def training(device: torch.device, deadline: float, overrides: Sequence[str]) -> dict[str, Any]:
    """``tvae_lpartial_mnist`` as published until a time; on scikit-learn's digits where MNIST cannot be had."""
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    config = compose(["experiment=tvae_lpartial_mnist", f"fit.accelerator={accelerator}", *overrides])
    config.fit.progress, config.fit.devices = False, 1
    config.fit.capture = True
    told = "MNIST, as published"
    try:
        parts = build(config)
    except Exception as error:  # no file and no network
        told = f"scikit-learn's digits in the place of MNIST: {' '.join(str(error).split())[:300]}"
        parts = build(config, turning_digits(PAPER if device.type == "cuda" else gpu.SMALL))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config.logger = None
        history = fit_parts(config, parts, Path(folder), callbacks=[Until(deadline)])
    steps = int(history.rows[-1]["step"]) if history.rows else 0
    return {
        "data": told,
        "overrides": list(overrides),
        "steps": steps,
        "seconds": time.monotonic() - start,
        "rows": history.rows[:: max(1, len(history.rows) // 500)],
    }


def check(
    device: str = "cuda",
    *,
    seconds: float = SECONDS,
    output: str | Path | None = None,
    tests: str | Path = "tests",
    setting: Setting | None = None,
    steps: int = 200,
    rounds: int = gpu.ROUNDS,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Run all parts, and return their record.

    Args:
        device: ``"cuda"``, or ``"cpu"`` for a trial at tiny sizes.
        seconds: that all may take; what is left of them goes into the training.
        output: JSON file of the record, written after each part; a former record there is put aside.
        tests: the folder of tests.
        setting: the sizes.
        steps: of the comparison of losses, and of a turn of the timing.
        rounds: of the timing.
        overrides: of the training's configuration, such as ``data.source.root=DIR``.

    Raises:
        FileExistsError: the file of the record is there, and is none.
        ValueError: there is no such device.
    """
    start, place = time.monotonic(), gpu.chosen_device(device)
    if output is not None:
        _make_way(Path(output))
    setting = setting or (PAPER if device == "cuda" else gpu.SMALL)
    record: dict[str, Any] = {"schema": 1, "kind": "device check", "hardware": hardware(place), "versions": versions()}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: gpu.run(device=device, progress=False, setting=setting, rounds=rounds, steps=steps),
        "losses": lambda: equal_losses(setting, place, steps),
        "resume": lambda: resumed(setting, place),
        "tests": lambda: marked_tests(Path(tests)),
        "training": lambda: training(place, start + seconds - RESERVE, overrides),
    }
    for name, part in parts.items():
        print(f"{name}, {time.monotonic() - start:.0f} s", flush=True)
        try:
            record[name] = part()
        except Exception as error:  # the other parts can still be had, on a machine that is lent for minutes
            record[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
            print(f"  {record[name]['error']}", flush=True)
        record["seconds"] = time.monotonic() - start
        if output is not None:
            write_text(Path(output), json.dumps(record, indent=2) + "\n")
    return record


def _make_way(output: Path) -> None:
    """Put a former record aside, which a machine that is lent for minutes may not give again."""
    if not os.path.lexists(output):
        return
    record: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        record = read_record(output, dict[str, Any])
    if record.get("kind") != "device check":
        raise FileExistsError(
            f"{output} is there already, and is no record of a device check; choose another --output, or move it away."
        )
    former = output.rename(free_name(output))
    print(f"the former record is in {former}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The script."""
    parser = argparse.ArgumentParser(
        prog="python -m pyro_tvae.experiments.benchmarks.device_check", description=__doc__
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it at tiny sizes")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that all may take")
    parser.add_argument("--output", type=Path, default=Path("device_check.json"), help="the record")
    parser.add_argument("--tests", type=Path, default=Path("tests"), help="the folder of tests")
    parser.add_argument("overrides", nargs="*", help="of the training's configuration, such as data.source.root=DIR")
    given = parser.parse_args(arguments)
    try:
        check(given.device, seconds=given.seconds, output=given.output, tests=given.tests, overrides=given.overrides)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    print(f"record: {given.output}")


if __name__ == "__main__":
    main()
