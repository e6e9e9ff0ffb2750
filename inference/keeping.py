"""Keeping: what is left of a fit, whether it ends or fails: its history, its best weights and its last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from .callbacks import History
from .checkpoints import Keeper, read_checkpoint

__all__ = ["Keeping"]


class BestWeights(Callback):
    """The weights of the best validation ELBO, in memory, for fits that write nothing."""

    def __init__(self) -> None:
        self.elbo, self.weights = -math.inf, dict[str, Tensor]()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        elbo = float(trainer.callback_metrics["val/elbo"])
        if elbo > self.elbo:
            self.elbo, self.weights = elbo, {name: value.clone() for name, value in module.state_dict().items()}


class Keeping:
    """What a fit keeps: in files where it has a directory, else in memory.

    Args:
        directory: whose folder ``checkpoints`` takes ``best.ckpt`` and ``last.ckpt``.
        resume: checkpoint that the fit goes on from.
        validates: whether there is a validation ELBO to be the best of.

    Attributes:
        history: of the fit.
        callbacks: what keeps the weights.
    """

    def __init__(self, directory: str | Path | None, resume: str | Path | None, validates: bool) -> None:
        self.history = History()
        self.best: Keeper | BestWeights | None = None
        self.last: Keeper | None = None
        if directory is not None:
            folder = Path(directory) / "checkpoints"
            options: dict[str, Any] = {"enable_version_counter": False, "resume": resume}
            if validates:
                self.best = Keeper(folder, filename="best", monitor="val/elbo", mode="max", **options)
            # A keeper of its own: Lightning's save_last copies the best one and so can lie epochs back.
            self.last = Keeper(folder, filename="last", **options)
        elif validates:
            self.best = BestWeights()
        self.callbacks: list[Callback] = [one for one in (self.best, self.last) if one is not None]

    def finish(self, module: lightning.LightningModule) -> None:
        """Put the best weights in place, and the files that there are into the history."""
        self._note_last()
        if isinstance(self.best, BestWeights) and self.best.weights:
            module.load_state_dict(self.best.weights)
        elif isinstance(self.best, Keeper) and self.best.best_model_path:
            self.history.best_checkpoint = Path(self.best.best_model_path)
            checkpoint = read_checkpoint(self.best.best_model_path, module, "take the best weights")
            module.load_state_dict(checkpoint["state_dict"])

    def _note_last(self) -> None:
        if self.last is not None and self.last.best_model_path:
            self.history.last_checkpoint = Path(self.last.best_model_path)

    @contextmanager
    def whatever_fails(self, module: Any) -> Iterator[None]:
        """What was trained outlives what fails: the weights stay in place, and the error carries the history."""
        try:
            yield
        except Exception as error:
            if module.steps_taken:
                self._note_last()
                path = self.history.last_checkpoint
                error.history = self.history  # type: ignore[attr-defined]
                error.add_note(
                    f"fit: {module.steps_taken} batches had been trained on before this; the weights reached are in "
                    f"place, and the history is the error's attribute 'history'"
                    f"{f'; the last checkpoint is {path}' if path is not None else ''}."
                )
            raise
