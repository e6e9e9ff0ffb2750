"""What the tests of captured and of compiled steps share: a small fit whose steps are counted, and what befalls it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pyro_tvae.inference import ELBO, History, TrainerOptions, fit


class Counted(Callback):
    """Keeps the module of a fit, and how many steps were replays."""

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.module, self.replays = module, 0 if module.capture is None else module.capture.replays


def fitted(
    parts: tuple[Any, Any],
    data: Any,
    callbacks: tuple[Callback, ...] = (),
    precision: Any = "32-true",
    **options: Any,
) -> tuple[list[Tensor], History, Counted]:
    """Weights, history and counts of 3 epochs in batches of 4 sequences."""
    counted = Counted()
    trainer = TrainerOptions("cpu", precision=precision, callbacks=[counted, *callbacks])
    options = {"batch_size": 4, "max_epochs": 3, "seed": 3, "warmup_steps": 6, "frame_dropout": 0.5} | options
    history = fit(*parts, data, progress=False, trainer=trainer, **options)
    return [p.detach().clone() for part in parts for p in part.parameters()], history, counted


def cosine(optimizer: Any, steps: int) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


class Stop(Callback):
    """Ctrl-C as the third epoch begins."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: object) -> None:  # type: ignore[override]
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


class Halve(Callback):
    """Sets the learning rate by hand as the third epoch begins."""

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 2:
            trainer.optimizers[0].param_groups[0]["lr"] /= 2


class Reads(ELBO):
    """Decides by a value."""

    def forward(self, x: Tensor, observed: Tensor | None = None, **options: Any) -> Any:
        terms = super().forward(x, observed, **options)
        return terms if terms.kl.sum() > 0 else terms._replace(objective=terms.reconstruction)
