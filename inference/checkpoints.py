"""Checkpoints: what a fit goes on from; written whole, read without running anything, checked before they are used."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pyro_tvae.files import atomic_write, free_name, may_pass
from pyro_tvae.memory import exhausted
from pyro_tvae.parts import dotted

from .course import differing, other_part, parts_of

__all__ = [
    "KEY",
    "VERSION",
    "Keeper",
    "Patience",
    "WholeFiles",
    "forget_best",
    "holdings",
    "in_plain",
    "read_checkpoint",
    "restored",
    "stay_stopped",
]

# 2: with a list of what the file holds. 3: data are told by fingerprints that former versions take for those of others.
KEY, VERSION = "pyro_tvae", 3
OPTIMIZERS = "optimizer_states"
PARTS = {
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    OPTIMIZERS: list,
    "lr_schedulers": list,
}


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all. Lightning's own go through the system's temporary folder: across file
    systems they are copied to their place, and a killed process leaves a half."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_write(path) as partial:
            torch.save(checkpoint, partial)
            _check_read_again(partial, checkpoint)


class Keeper(ModelCheckpoint):
    """Lightning's, which looks for what was kept beside the checkpoint that is resumed, wherever that lies now.

    A run's folder can so be moved, and a path inside a file decides nothing. What lies elsewhere is read and stays; the
    best weights come along, so that the fit's own folder is all that it needs to go on again.
    """

    def __init__(self, *args: Any, resume: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Behind a link it is the file that the link leads to, and then what is beside that.
        places = [] if resume is None else [Path(resume).resolve().parent, Path(resume).absolute().parent]
        self.beside = list(dict.fromkeys(places))
        self.told = False  # whether weights that are lost were warned of
        self.fit: str | None = None  # which one's checkpoint is gone on from
        self.restored = False  # whether that says what was the best

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.fit = checkpoint[KEY].get("fit")

    def forget(self) -> None:
        """Begin anew: what was the best of other sequences is not compared with."""
        if self.monitor is not None:
            self._copy_former()
            self.best_k_models, self.kth_best_model_path, self.best_model_path = {}, "", ""
            self.best_model_score, self.kth_value, self.told = None, torch.tensor(-torch.inf), True

    @rank_zero_only
    def _copy_former(self) -> None:
        """Keep the best weights of other sequences beside those that will take their place."""
        own = Path(self.dirpath or "", f"{self.filename}.ckpt")
        if self.dirpath is not None and own.is_file():
            with atomic_write(other := free_name(own)) as partial:
                shutil.copyfile(own, partial)
            warnings.warn(f"fit: {other} keeps the best weights of the former validation data.", stacklevel=2)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = True
        kept = self._beside(state_dict["best_model_path"])
        if kept is None:
            return
        score = state_dict["best_model_score"]
        own, foreign = (None, False) if self.monitor is None else self._score_of(kept)
        if own is not None and not own >= score:
            # As in a copy that was made while a run trained: the best weights of one epoch, the last of a later one.
            what = "is of an epoch before the best one" if kept.is_file() else "is missing"
            what = "is of another fit than the best one" if foreign else what
            warnings.warn(
                f"fit: {kept} {what}, whose {self.monitor} was {float(score):.4f}, so that its weights are lost; "
                "those are kept that are the best from here on.",
                stacklevel=2,
            )
            self.told = True
        if own is not None:  # of a later epoch than this checkpoint's, it is not to be lost to a worse
            score = own
        if kept.is_file() and not foreign:
            state = {**state_dict, "best_model_path": str(kept), "kth_best_model_path": str(kept)}
            state |= {"best_model_score": score, "kth_value": score}
            scores = {str(kept): score for _ in state_dict["best_k_models"]}
            super().load_state_dict({**state, "best_k_models": scores, "last_model_path": "", "dirpath": self.dirpath})

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, module)
        if self.monitor is None:  # of the two keepers one is enough
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            brought = {part: held for part, held in checkpoint.items() if part not in ("state_dict", OPTIMIZERS)}
            torch.save(brought, trial := io.BytesIO())
            _check_read_again(trial, brought)
        if self.monitor is not None and self.best_model_path:
            self._bring_along(trainer)

    def adopt(self, trainer: lightning.Trainer, course: Mapping[str, Any]) -> None:
        """Take what lies beside the checkpoint that is gone on from for the best, where its fit was not validated.

        Where it was, begin anew if what lies there is of other validation data: of a fit that went on from there with
        those, and was killed before it wrote its last checkpoint.

        Args:
            trainer: of the fit.
            course: what the fit is told and shown: only of the same validation data values compare.
        """
        name = self.best_model_path if self.restored else f"{self.filename}.ckpt"
        kept = self._beside(name) if self.monitor is not None else None
        if kept is None or not kept.is_file():
            return
        score, foreign = self._score_of(kept)
        if score is None or foreign:
            return
        then = torch.load(kept, weights_only=True, mmap=True)[KEY].get("course", {})
        if "validation" in differing(course, then):
            warnings.warn(
                f"fit: {kept} is the best of other validation data; of these the best begins anew.", stacklevel=2
            )
            self.forget()
        elif not self.restored:
            self.best_model_path = self.kth_best_model_path = str(kept)
            self.best_model_score, self.kth_value = score, score
            self.best_k_models = {str(kept): score}
            if self.dirpath is not None:
                self._bring_along(trainer)

    def _bring_along(self, trainer: lightning.Trainer) -> None:
        """Copy the best weights into the fit's own folder, where they are not in it."""
        assert self.dirpath is not None
        own = os.path.join(self.dirpath, os.path.basename(self.best_model_path))
        if os.path.realpath(own) != os.path.realpath(self.best_model_path):
            if trainer.is_global_zero:
                with atomic_write(own) as partial:
                    shutil.copyfile(self.best_model_path, partial)
            trainer.strategy.barrier()
            self.best_model_path = self.kth_best_model_path = own
            self.best_k_models = dict.fromkeys([own], self.kth_value)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        # Where validation alone is a moment to keep what was reached, a fit may end long after the last one.
        unsaved = self._last_global_step_saved != trainer.global_step and module.steps_taken
        if self.monitor is None and unsaved:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        super().on_train_end(trainer, module)

    def _should_save_on_train_epoch_end(self, trainer: lightning.Trainer) -> bool:
        # Of an epoch's end, after its validation: what goes on from within an epoch draws an order of the data anew.
        return (self.monitor is None and trainer.val_check_interval == 1.0) or super()._should_save_on_train_epoch_end(
            trainer
        )

    def _should_remove_checkpoint(self, trainer: lightning.Trainer, previous: str, current: str) -> bool:
        return False  # what a fit writes takes the place of what it wrote before; all else is another one's

    def _score_of(self, kept: Path) -> tuple[Any, bool]:
        """The score of the weights that a file holds, as it says itself, and whether they are another fit's.

        Minus infinity where there is no such file, or another fit's; None where it is damaged.
        """
        none = torch.tensor(-torch.inf)
        if not kept.is_file():
            return none, False
        try:
            stored = torch.load(kept, weights_only=True, mmap=True)
            if stored[KEY].get("fit") != self.fit:
                return none, True
            return stored["callbacks"][self.state_key]["best_model_score"], False
        except Exception as error:  # damaged in whatever way, which is said when its weights are needed
            if exhausted(error):
                raise
            if may_pass(error):  # else the next ones would be written over them
                raise type(error)(
                    f"fit: cannot resume, {kept} cannot be read ({error.strerror}); see to it that it can be."
                ) from error
            return None, False

    def _beside(self, path: str) -> Path | None:
        kept = [place / os.path.basename(path) for place in self.beside] if path else []
        return next((file for file in kept if file.is_file()), kept[0] if kept else None)


# Of what a callback stops for, what a new patience decides on anew.
PATIENT = (EarlyStoppingReason.NOT_STOPPED, EarlyStoppingReason.PATIENCE_EXHAUSTED)


class Patience(EarlyStopping):
    """Lightning's, by a name of its own in checkpoints; a new patience wins over that of a checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})


def stay_stopped(trainer: Any, changed: Collection[str]) -> None:
    """Stop a fit that goes on from where a callback had stopped it: Lightning would train one more epoch each time.

    Args:
        trainer: of the fit.
        changed: keys of callbacks that are made with other settings than then, which may let it go on.
    """
    for one in trainer.callbacks:
        if isinstance(one, EarlyStopping):
            reached = one.stopping_reason not in PATIENT and one.state_key not in changed
            trainer.should_stop = trainer.should_stop or reached or one.wait_count >= one.patience


def forget_best(stopping: EarlyStopping, trainer: lightning.Trainer) -> None:
    """Begin anew: what was the best of other sequences is not compared with, nor what was reached of them."""
    if stopping.monitor.startswith("val"):
        if stopping.stopping_reason not in PATIENT or stopping.wait_count >= stopping.patience:
            trainer.should_stop = False
        worst = torch.inf if stopping.monitor_op is torch.lt else -torch.inf
        stopping.best_score, stopping.wait_count = torch.tensor(worst), 0


def in_plain(value: Any) -> Any:
    """The same with numbers and words of other types, such as NumPy's, as Python's own, which files can say.

    Example:
        >>> in_plain({"rates": [np.float64(0.5), 1], "name": np.str_("adam")})
        {'rates': [0.5, 1], 'name': 'adam'}
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        items = {in_plain(name): in_plain(inner) for name, inner in value.items()}
        same = [*map(id, value), *map(id, value.values())] == [*map(id, items), *map(id, items.values())]
        return value if same else items  # as it is, an OrderedDict of weights too
    if type(value) in (list, tuple):
        inner = [in_plain(item) for item in value]
        return value if all(a is b for a, b in zip(value, inner, strict=True)) else type(value)(inner)
    kind = next((kind for kind in (bool, int, float, complex, str, bytes) if isinstance(value, kind)), type(value))
    return value if type(value) is kind else kind(value)


def _check_read_again(file: Path | io.BytesIO, checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError where a checkpoint holds what could be read only by running what a file says."""
    if isinstance(file, io.BytesIO):
        file.seek(0)
    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=isinstance(file, Path) or None)
    except Exception as error:  # of many kinds, by the version of torch
        if isinstance(error, OSError) or exhausted(error):
            return  # of which the file is not the cause
        name, value = next(((name, value) for name, value in _leaves(checkpoint) if not _is_plain(value)), ("", None))
        raise ValueError(
            f"fit: a checkpoint cannot hold {name or 'this'}, of type {dotted(type(value))}, which could not be read "
            "from it again; expected that states of callbacks, schedules and optimizers are tensors, numbers, words, "
            "and lists and dictionaries of them."
        ) from None


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in entries:
            yield from _leaves(inner, f"{path}/{name}" if path else str(name))
    yield path, value


def _is_plain(value: Any) -> bool:
    try:
        torch.save(value, file := io.BytesIO())
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # as above
        return False
    return True


def holdings(checkpoint: Mapping[Any, Any], under: str = "") -> dict[str, str]:
    """What a checkpoint holds: the kind of every entry, by its path, so that a reader misses what is not there.

    Example:
        >>> holdings({"epoch": 3, "state_dict": {"weight": torch.zeros(2)}})
        {'epoch': 'int', 'state_dict': 'dict', 'state_dict/weight': 'torch.float32 of (2,)'}
    """
    entries: dict[str, str] = {}
    for name, value in checkpoint.items():
        path = f"{under}{name}"
        entries[path] = "dict" if isinstance(value, Mapping) else _kind(value)
        if isinstance(value, Mapping):
            entries |= holdings(value, f"{path}/")
    return entries


def _kind(value: Any) -> str:
    """Type and size; of a list also a digest of its items' kinds, since a history has thousands of rows."""
    if isinstance(value, int | float | str):
        return type(value).__name__
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return " ".join([f"{name}:{_kind(inner)}" for name, inner in value.items()])
    if isinstance(value, list | tuple):
        items = hashlib.sha256("|".join(map(_kind, value)).encode()).hexdigest()
        return f"{type(value).__name__} of {len(value)} {items[:16]}"
    return type(value).__name__


def _shapes(state: Mapping[str, Any]) -> dict[str, str]:
    """Of each tensor its shape; what a module keeps beside, by torch's ``get_extra_state``, may be of any kind."""
    return {
        name: str(tuple(value.shape)) if isinstance(value, torch.Tensor) else "no tensor"
        for name, value in state.items()
    }


@contextmanager
def restored(path: str | Path | None) -> Iterator[None]:
    """Turn what Lightning meets while it puts a checkpoint's state into place into one sentence about the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        frame, restoring = error.__traceback__, False
        while frame is not None:
            restoring = restoring or os.path.basename(frame.tb_frame.f_code.co_filename) == "checkpoint_connector.py"
            frame = frame.tb_next
        if path is None or not restoring or str(error).startswith("fit: "):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"fit: cannot resume, {path} holds a state that cannot be put into place ({type(error).__name__}: "
            f"{reason}); expected a file as fit wrote it, and the data, devices and callbacks of then."
        ) from error


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
    except Exception as error:  # a damaged or hostile file may fail in any way; each means the same to its owner
        if exhausted(error):  # which says nothing about the file
            raise
        best = path.with_name("best.ckpt")
        remedy = "To start again, leave resume out; in the folder of a run, move the file away."
        if path != best and best.is_file():  # which a fit that starts again would replace
            remedy = f"To go on from the best epoch, copy {best} over it; or start again in another folder."
        raise ValueError(
            f"fit: cannot {purpose}, {path} is damaged or no checkpoint, and nothing in it was run; expected a file "
            f"that fit wrote. {remedy}"
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
    if stamp["version"] > 1 and not missing:
        written, there = stamp.pop("holds", None), holdings(checkpoint)
        if not isinstance(written, dict):
            written = {f"{KEY}/holds": "dict"}
        missing = [path for path, kind in written.items() if there.get(path) != kind]
        # What is inside of something missing needs no word of its own.
        missing = [path for path in missing if not any(path.startswith(f"{other}/") for other in missing)]
    if missing:
        raise ValueError(
            f"fit: cannot {purpose}, {path} is incomplete, without {', '.join(missing[:8])} as fit wrote it; expected "
            "a file that fit wrote."
        )
    stored, own = (_shapes(state) for state in (checkpoint["state_dict"], module.state_dict()))
    for key in sorted({*stored, *own}):
        if stored.get(key) != own.get(key):
            raise ValueError(
                f"fit: cannot {purpose}, {path} is of another model: {key} is {stored.get(key, 'nothing')} there and "
                f"{own.get(key, 'nothing')} here; resume with the model, guide and objective that it was trained with."
            )
    objective: Any = module.objective
    parts, then = parts_of(objective.model, objective.guide), stamp.get("parts", {})
    name = other_part(parts, then)
    if name is not None:
        raise ValueError(
            f"fit: cannot {purpose}, {path} is of another model: {name} is {then[name]!r} there and {parts[name]!r} "
            "here; resume with the model and guide that it was trained with."
        )
    return checkpoint
