"""Checkpoints: what a fit goes on from; written whole, read without running anything, checked before they are used."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pyro_tvae.files import atomic_write

__all__ = ["KEY", "VERSION", "Keeper", "Patience", "WholeFiles", "read_checkpoint"]

KEY, VERSION = "pyro_tvae", 1
PARTS = {
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all. Lightning's own go through the system's temporary folder: across file
    systems they are copied to their place, and a killed process leaves a half."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_write(path) as partial:
            torch.save(checkpoint, partial)


class Keeper(ModelCheckpoint):
    """Lightning's, which looks for what was kept beside the checkpoint that is resumed, wherever that lies now.

    A run's folder can so be moved, and a path inside a file decides nothing.
    """

    def __init__(self, *args: Any, resume: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beside = Path(resume).absolute().parent if resume is not None else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kept = self._beside(state_dict["best_model_path"])
        if kept is not None and kept.is_file():
            state = {**state_dict, "best_model_path": str(kept), "kth_best_model_path": str(kept)}
            scores = {str(kept): score for score in state_dict["best_k_models"].values()}
            super().load_state_dict({**state, "best_k_models": scores, "last_model_path": "", "dirpath": self.dirpath})

    def _beside(self, path: str) -> Path | None:
        return self.beside / os.path.basename(path) if self.beside is not None and path else None


class Patience(EarlyStopping):
    """Lightning's, which also stays stopped when a run is resumed that had run out of patience; a new patience wins."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def read_checkpoint(path: str | Path, module: lightning.LightningModule, purpose: str = "resume") -> dict[str, Any]:
    """A checkpoint of a fit like this one, after a look at everything that may be wrong with it.

    Args:
        path: the file.
        module: what it has to fit.
        purpose: what it is read for, for the error messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, foreign, from a newer version, or of another model.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"fit: cannot {purpose}, {path} {what}; expected a checkpoint (last.ckpt).")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, on pickles that it then refuses
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(
            f"fit: cannot {purpose}, {path} cannot be read ({error.strerror or error}); see to it that it can."
        ) from None
    except Exception:  # a damaged or hostile file may fail in any way; each means the same to its owner
        raise ValueError(
            f"fit: cannot {purpose}, {path} is damaged or no checkpoint, and nothing in it was run; expected a file "
            "that fit wrote. To start again, leave resume out; in the folder of a run, delete the file."
        ) from None
    stamp = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(stamp, dict) or not isinstance(stamp.get("version"), int):
        raise ValueError(f"fit: cannot {purpose}, {path} is no checkpoint of fit; expected a file that fit wrote.")
    if stamp["version"] > VERSION:
        raise ValueError(
            f"fit: cannot {purpose}, {path} has version {stamp['version']}, this pyro-tvae reads up to {VERSION}; "
            "update pyro-tvae."
        )
    missing = [part for part, kind in PARTS.items() if not isinstance(checkpoint.get(part), kind)]
    if missing:
        raise ValueError(
            f"fit: cannot {purpose}, {path} is incomplete, without {', '.join(missing)}; expected a file that fit "
            "wrote."
        )
    stored, own = checkpoint["state_dict"], module.state_dict()
    shapes = {name: tuple(value.shape) for name, value in stored.items() if isinstance(value, torch.Tensor)}
    for name in sorted({*shapes, *own}):
        expected = tuple(own[name].shape) if name in own else "nothing"
        if shapes.get(name, "nothing") != expected:
            raise ValueError(
                f"fit: cannot {purpose}, {path} is of another model: {name} is {shapes.get(name, 'nothing')} there and "
                f"{expected} here; resume with the model, guide and objective that it was trained with."
            )
    return checkpoint
