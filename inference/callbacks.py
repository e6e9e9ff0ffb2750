"""Callbacks of a fit: its history, its bar and the precision of its products."""

from __future__ import annotations

import inspect
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback

from .progress import progress_bar

__all__ = ["History", "MatmulPrecision", "ProgressBar", "Settings"]


@dataclass
class History:
    """What a fit went through.

    Attributes:
        rows: one mapping per report (every 10 steps, or a ready Trainer's ``log_every_n_steps``, and every validation),
            with ``step``, ``epoch`` and values in nats per frame (``train/elbo``, ``train/reconstruction``,
            ``train/kl``, ``val/elbo``, …): sums over a batch's sequences divided by its frames, of which only observed
            ones count.
        seconds: wall-clock time spent training, resumed parts included.
        best_checkpoint: file of the best validation ELBO, or None.
        last_checkpoint: file of the last epoch, or None.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    best_checkpoint: Path | None = None
    last_checkpoint: Path | None = None

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of one quantity."""
        rows = [row for row in self.rows if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]


class _Recorder(Callback):
    """Keeps the history, inside checkpoints too, so that a resumed run has all of it."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._since, self._steps = time.monotonic(), -1

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._since = time.monotonic() - self.history.seconds

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        self.history.seconds = time.monotonic() - self._since
        steps, self._steps = self._steps, trainer.global_step
        if steps == trainer.global_step:
            return  # gradients are still being gathered
        if trainer.global_step % module.report_every == 0:
            self._take(trainer, "train/")

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._take(trainer, "val/")

    def _take(self, trainer: lightning.Trainer, prefix: str) -> None:
        metrics = trainer.callback_metrics if prefix == "val/" else trainer.logged_metrics
        row = {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}
        if row:
            self.history.rows.append({"step": trainer.global_step, "epoch": trainer.current_epoch, **row})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.history.rows, "seconds": self.history.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.rows[:] = state_dict["rows"]
        self.history.seconds = state_dict["seconds"]


class Settings(Callback):
    """What a callback is made with wins over a checkpoint, where it is something else than then.

    A callback's state may hold its settings beside how far it is, as EarlyStopping's holds its patience. It has to come
    before the others, so that it sees them as they were made.
    """

    def __init__(self) -> None:
        self.given: dict[str, dict[str, Any]] = {}
        self.then: dict[str, dict[str, Any]] = {}
        self.changed: set[str] = set()  # keys of callbacks whose settings are others than then

    def setup(self, trainer: Any, module: lightning.LightningModule, stage: str) -> None:
        self.given = {one.state_key: _given(one) for one in trainer.callbacks}

    def state_dict(self) -> dict[str, Any]:
        return self.given

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.then = state_dict

    def on_train_start(self, trainer: Any, module: lightning.LightningModule) -> None:
        for one in trainer.callbacks:
            now, then = self.given[one.state_key], self.then.get(one.state_key, {})
            for name, value in now.items():
                if name in then and then[name] != value:
                    self.changed.add(one.state_key)
                    if vars(one)[name] == then[name]:
                        setattr(one, name, value)
        self.then = {}


def _given(callback: Callback) -> dict[str, Any]:
    """Plain values of a callback that are called as an argument of its constructor is."""
    names = inspect.signature(type(callback)).parameters
    simple = bool | int | float | str | None
    return {name: value for name, value in vars(callback).items() if name in names and isinstance(value, simple)}


class MatmulPrecision(Callback):
    """The precision of matrix products for as long as a fit lasts, in each of its processes."""

    def __init__(self, precision: str) -> None:
        self.precision, self.before = precision, precision

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        torch.set_float32_matmul_precision(self.before)

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        torch.set_float32_matmul_precision(self.before)


class ProgressBar(Callback):
    """One bar over the whole run, in steps, with the latest values in nats per frame and the time that is left."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        total = float(module.n_steps)  # type: ignore[arg-type]
        self.bar = progress_bar(
            int(total) if math.isfinite(total) else None,
            "fit",
            shown=trainer.is_global_zero,
            initial=trainer.global_step,
            unit="step",
        )

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        values = {name: trainer.progress_bar_metrics.get(name) for name in ("elbo", "reconstruction", "kl")}
        self.bar.set_postfix(
            {name: f"{value:.1f}" for name, value in values.items() if value is not None}, refresh=False
        )
        self.bar.update(trainer.global_step - self.bar.n)

    def tell_of_compiling(self, seconds: float | None) -> None:
        """Say that a step is being compiled, or how long it took."""
        self.bar.set_description("fit: compiling a step, up to minutes" if seconds is None else "fit")
        if seconds is not None and not self.bar.disable:
            self.bar.write(f"fit: compiled a step in {seconds:.0f} s", file=sys.stderr)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
