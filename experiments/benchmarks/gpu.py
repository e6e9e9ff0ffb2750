"""GPU: a captured training step against an eager one and bare products, batches, importance weights and memory.

On a machine without a GPU the same script runs at a small size with ``device="cpu"``, where steps are recorded by a
tape: that shows that it runs, and says nothing of speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.text import Text

from pyro_tvae.inference import TrainerOptions, fit
from pyro_tvae.inference.likelihood import log_weights

from ..datasets import SequenceDataModule
from ..reports.tables import plain_table
from .speed import PAPER, Setting, step_products, weight_products
from .throughput import turning_digits
from .timing import isolated

__all__ = ["SMALL", "TARGETS", "Steps", "chosen_device", "print_record", "run"]

SMALL = Setting(2, 3, 8, 2, 3, 3, 1, num_particles=3)  # for a trial on a CPU
TARGETS = {"speed-up": 5.0, "milliseconds": 1.0}  # of a captured step at the paper's size
WARM_UP, STEPS = 20, 200
ROUNDS = 3


class Steps(Callback):
    """Seconds of a fit's steps after its warm-up, the device waited for at both ends."""

    def __init__(self, steps: int) -> None:
        self.last, self.steps, self.seconds, self.replays = WARM_UP + steps, steps, 0.0, 0

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == WARM_UP:
            synchronize(module.device)
            self.seconds = -time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step == self.last:
            synchronize(module.device)
            self.seconds += time.perf_counter()
            self.replays = 0 if module.capture is None else module.capture.replays
            trainer.should_stop = True


def synchronize(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def chosen_device(name: str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in ("cuda", "cpu"):
        raise ValueError(f"benchmark gpu: device is {name!r}; expected cuda, or cpu for a trial.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "benchmark gpu: torch finds no GPU here; run it where there is one, or try it at a small size with "
            "--device cpu."
        )
    return torch.device(name)


def run(
    *,
    threads: int = 2,
    progress: bool = True,
    device: str = "cuda",
    setting: Setting | None = None,
    rounds: int = ROUNDS,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Measure in turns, ``rounds`` times.

    Args:
        threads: of torch.
        progress: say which round is under way.
        device: ``"cuda"``, or ``"cpu"`` for a trial.
        setting: the sizes; the paper's MNIST configuration on a GPU, tiny ones on a CPU.
        rounds: turns of each measure.
        steps: of a turn; a quarter as many eager ones.

    Returns:
        A mapping ready for JSON: ``card``, ``measures`` (each with its ``card`` and ``milliseconds``, one per round),
        ``speed-up`` of captured steps, ``particles per second``, ``replays``, ``bytes`` of memory and the ``setting``.

    Raises:
        ValueError: there is no such device.
    """
    place = chosen_device(device)
    setting = setting or (PAPER if device == "cuda" else SMALL)
    card = torch.cuda.get_device_name(place) if device == "cuda" else f"none: a trial on {threads} threads of a CPU"
    seconds: dict[str, list[float]] = {name: [] for name in WHAT}
    peaks: dict[str, int] = {}
    replays = 0
    with isolated(threads):
        for index in range(rounds):
            if progress:
                print(f"round {index + 1} of {rounds}", flush=True)
            for name, captures, n in (("eager step", False, max(1, steps // 4)), ("captured step", True, steps)):
                timed = step_seconds(setting, place, captures, n)
                seconds[name].append(timed.seconds / n)
                replays = max(replays, timed.replays)
                peaks[name] = _peak(place)
            model, guide = setting.build()
            model, guide = model.to(place), guide.to(place)
            with torch.device(place):
                products = step_products(model, guide, setting.n_sequences)
                weights = weight_products(model, setting.n_sequences, setting.num_particles)
            seconds["products of a step"].append(_each(products, place, steps))
            data = turning_digits(setting)
            batch = {name: value.to(place) for name, value in _first(data).items()}
            seconds["batch"].append(_each(partial(data.rendered, batch), place, steps))
            x = data.rendered(batch)["x"]
            k = setting.num_particles
            seconds["importance weights"].append(_each(partial(log_weights, model, guide, x, k), place, 3))
            seconds["products of the weights"].append(_each(weights, place, 3))
            peaks["importance weights"] = _peak(place)
    return {
        "card": card,
        "measures": {
            name: {"what": WHAT[name], "card": card, "milliseconds": [1e3 * one for one in values]}
            for name, values in seconds.items()
        },
        "speed-up": _median_ratio(seconds["eager step"], seconds["captured step"]),
        "particles per second": setting.n_sequences * setting.num_particles
        / statistics.median(seconds["importance weights"]),
        "replays": replays,
        "bytes": peaks,
        "targets": TARGETS,
        "setting": asdict(setting),
    }  # fmt: skip


WHAT = {
    "eager step": "training step, one operation at a time, its batch rendered on the device",
    "captured step": "the same step recorded once and replayed",
    "products of a step": "its bare matrix products",
    "batch": "rendering its batch, one operation at a time",
    "importance weights": "importance weights of a batch",
    "products of the weights": "their bare matrix products",
}


def step_seconds(setting: Setting, device: torch.device, captures: bool, steps: int) -> Steps:
    """Time the steps of a fit after its warm-up."""
    model, guide = setting.build()
    timed = Steps(steps)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    options = TrainerOptions("gpu" if device.type == "cuda" else "cpu", devices=1, callbacks=[timed])
    fit(
        model, guide, turning_digits(setting), max_epochs=1_000_000, seed=0, capture=captures, progress=False,
        trainer=options,
    )  # fmt: skip
    return timed


def _first(data: SequenceDataModule) -> dict[str, torch.Tensor]:
    """The first training batch as it comes, before it is rendered."""
    return data.datasets["train"].__getitems__(range(data.batch_size))


def _each(action: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds of one of several calls, after one that allocates and plans."""
    action()
    synchronize(device)
    since = time.perf_counter()
    for _ in range(times):
        action()
    synchronize(device)
    return (time.perf_counter() - since) / times


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    table = plain_table("what", "milliseconds", "lowest to highest", gap=1, wraps=True)
    for measure in record["measures"].values():
        values = measure["milliseconds"]
        span = f"{min(values):.3f} to {max(values):.3f}"
        table.add_row(Text(measure["what"]), Text(f"{statistics.median(values):.3f}", "bold"), span)
    console.print(table)
    console.print(
        f"Card: {record['card']}. A captured step is {record['speed-up']:.2f} times as fast (aim on a GPU: "
        f"{record['targets']['speed-up']:g}, and at most {record['targets']['milliseconds']:g} ms); "
        f"{record['particles per second']:,.0f} particles per second; {record['replays']} steps were replays.",
        highlight=False,
    )
