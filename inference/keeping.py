"""Keeping: what is left of a fit, whether it ends or fails: its history, its best weights and its last checkpoint."""

from __future__ import annotations

import copy
import itertools
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor

from pyro_tvae.files import check_stays, make_folder, refusal
from pyro_tvae.locks import lock, unlock

from .callbacks import History
from .checkpoints import Keeper, read_checkpoint
from .trainer import like

__all__ = ["Keeping", "claimed"]

FOLDER, LAST, LOCK = "checkpoints", "last", ".lock"
TAKE = "take the best weights"

TUNES = (
    "trains some steps for a value of an attribute of Lightning's module, which is not where fit has it; find it in a "
    "fit of its own, and give it to this one."
)
REFUSED = {  # callbacks with which a fit would not go on as it was, or not begin
    ModelPruning: "makes its masks permanent in what checkpoints hold, from which a fit would go on otherwise; prune "
    "the fitted model with torch.nn.utils.prune.",
    BatchSizeFinder: TUNES,
    LearningRateFinder: TUNES,
}


@contextmanager
def claimed(directory: str | Path | None, resume: str | Path | None, first: bool) -> Iterator[Path | None]:
    """A folder for the checkpoints of one fit, which no other one writes to: ``checkpoints``, ``checkpoints-v1``, ….

    A fit that goes on from the last checkpoint in one of them goes on there; a new one, and one that goes on from any
    other checkpoint, after which more may have been trained there, takes the first that holds no checkpoint and that no
    fit is at work in. The system lets go of it however the process ends, SIGKILL included.

    Args:
        directory: where; None for nowhere.
        resume: checkpoint that the fit goes on from.
        first: whether this process decides; Lightning tells the others what it has decided.

    Raises:
        BlockingIOError: another fit is at work in the folder of ``resume``.
        FileNotFoundError: the directory was moved away meanwhile.
        OSError: it cannot be written.
    """
    if directory is None or not first:
        yield None if directory is None else Path(directory) / FOLDER
        return
    own = (
        [] if resume is None else [name for name in _ours(Path(directory)) if _lies_in(resume, Path(directory) / name)]
    )
    goes_on = bool(own)
    names = own[:1] or (f"{FOLDER}-v{n}" if n else FOLDER for n in itertools.count())
    for name in names:
        folder = Path(directory) / name
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        with suppress(BlockingIOError):
            descriptor = _locked(folder)
            if goes_on or not any(folder.glob("*.ckpt")):
                break
            unlock(descriptor, folder / LOCK)
    else:
        raise BlockingIOError(
            f"fit: cannot resume, another fit is at work in {folder}; wait for its end, or give a directory of its own."
        )
    try:
        yield folder
    except FileNotFoundError as error:
        if folder.parent.exists():
            raise
        message = (
            f"fit: {folder.parent} was moved or removed while the fit was at work in it; leave it where it is, and go "
            f"on with resume=… the {LAST}.ckpt in the folder that it has become."
        )
        raise like(error, FileNotFoundError(message)) from error
    finally:
        unlock(descriptor, folder / LOCK)
        with suppress(OSError):  # what holds something stays
            for path in made:
                path.rmdir()


def _locked(folder: Path) -> int:
    """Hold a folder, made where it is missing, by a file in it."""
    while True:
        check_stays(folder)
        make_folder(folder)
        try:
            return lock(folder / LOCK)
        except FileNotFoundError:  # removed by one that had made it
            continue
        except BlockingIOError:
            raise
        except OSError as error:
            raise type(error)(refusal(folder, error)) from error


def _paths(kept: ModelCheckpoint, trainer: lightning.Trainer) -> list[str]:
    """The files that are written under fixed names, in a folder that the first logger names where none was given."""
    if (folder := kept.dirpath) is None:  # as Lightning has it
        folder = trainer.default_root_dir
        if trainer.loggers:
            first = trainer.loggers[0]
            version = first.version if isinstance(first.version, str) else f"version_{first.version}"
            folder = os.path.join(first.save_dir or folder, str(first.name), version)
        folder = os.path.join(folder, FOLDER)
    names = [kept.filename, *([kept.CHECKPOINT_NAME_LAST] if kept.save_last else [])]
    return [os.path.join(os.path.realpath(str(folder)), f"{name}.ckpt") for name in names]


def _ours(directory: Path) -> list[str]:
    """Names of the folders of checkpoints in a directory."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return [name for name in names if re.fullmatch(rf"{FOLDER}(-v\d+)?", name)]


def _lies_in(file: str | Path, folder: Path) -> bool:
    """Whether a file is the last checkpoint in a folder, where either of them may be a link."""
    files = (Path(file).resolve(), Path(file).absolute())
    return any(one.name == f"{LAST}.ckpt" and one.parent.resolve() == folder.resolve() for one in files)


class BestWeights(Callback):
    """The weights of the best validation ELBO, in memory, for fits that write nothing.

    Args:
        before: finds those beside the checkpoint that the fit goes on from.
    """

    def __init__(self, before: Keeper) -> None:
        self.elbo, self.weights, self.before = -math.inf, dict[str, Tensor](), before

    @property
    def state_key(self) -> str:
        return self.before.state_key

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.before.on_load_checkpoint(trainer, module, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before.load_state_dict(state_dict)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._take(module)

    def adopt(self, trainer: lightning.Trainer, course: Mapping[str, Any]) -> None:
        """As :meth:`.Keeper.adopt`."""
        taken = bool(self.weights)
        self.before.adopt(trainer, course)
        if not taken:
            self._take(trainer.lightning_module)
        elif not self.before.best_model_path:
            self.elbo, self.weights = -math.inf, {}

    def _take(self, module: lightning.LightningModule) -> None:
        if self.before.best_model_path:
            checkpoint = read_checkpoint(self.before.best_model_path, module, TAKE)
            self.elbo, self.weights = float(self.before.best_model_score or -math.inf), checkpoint["state_dict"]

    def forget(self) -> None:
        """Begin anew, as the best of other sequences."""
        self.elbo, self.weights = -math.inf, {}
        self.before.forget()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        elbo = float(trainer.callback_metrics["val/elbo"])
        if elbo > self.elbo:
            # As a checkpoint has them: averaged ones, where a callback averages.
            weights = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)["state_dict"]
            self.elbo, self.weights = elbo, copy.deepcopy(dict(weights))


class Keeping:
    """What a fit keeps: in files where it has a directory, else in memory.

    Args:
        folder: takes ``best.ckpt`` and ``last.ckpt``; None for memory.
        resume: checkpoint that the fit goes on from.
        validates: whether there is a validation ELBO to be the best of.

    Attributes:
        history: of the fit.
        callbacks: what keeps the weights.
    """

    def __init__(self, folder: Path | None, resume: str | Path | None, validates: bool) -> None:
        self.history = History()
        self.best: Keeper | BestWeights | None = None
        self.last: Keeper | None = None
        self.resumes = resume is not None
        options: dict[str, Any] = {"enable_version_counter": False, "resume": resume}
        best: dict[str, Any] = {"filename": "best", "monitor": "val/elbo", "mode": "max", **options}
        if folder is not None:
            if validates:
                self.best = Keeper(folder, **best)
            # A keeper of its own: Lightning's save_last copies the best one and so can lie epochs back.
            self.last = Keeper(folder, filename=LAST, **options)
        elif validates:
            self.best = BestWeights(Keeper(**best))
        self.callbacks: list[Callback] = [one for one in (self.best, self.last) if one is not None]

    def check_no_other(self, trainer: lightning.Trainer) -> None:
        """Raise ValueError where a callback of the user's would write over what is kept here."""
        ours = {path for kept in (self.best, self.last) if isinstance(kept, Keeper) for path in _paths(kept, trainer)}
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, StochasticWeightAveraging) and self.best is not None:
                raise ValueError(
                    "fit: StochasticWeightAveraging puts its average in place after the last validation, where fit "
                    "leaves the best weights that were validated; take WeightAveraging, whose averages are validated, "
                    "or leave validation out."
                )
            if told := next((said for kind, said in REFUSED.items() if isinstance(other, kind)), None):
                raise ValueError(f"fit: {type(other).__name__} {told}")
            taken = None
            if isinstance(other, ModelCheckpoint):
                taken = ours.intersection(_paths(other, trainer))
            elif isinstance(other, OnExceptionCheckpoint):
                taken = ours.intersection([os.path.realpath(other.ckpt_path)])
            if taken:
                raise ValueError(
                    f"fit: {type(other).__name__} writes {taken.pop()}, which fit keeps itself; give it another "
                    "filename or dirpath."
                )

    def tell_of_lost(self) -> None:
        """Warn where better weights than the best that are kept lie before the checkpoint that was gone on from."""
        if not self.resumes or self.best is None:
            return
        before = self.best.before if isinstance(self.best, BestWeights) else self.best
        score = self.best.elbo if isinstance(self.best, BestWeights) else self.best.best_model_score
        values, kept = self.history.column("val/elbo")[1], -math.inf if score is None else float(score)
        if values and max(values) > kept and not before.told:
            since = "the last ones are left" if math.isinf(kept) else f"the best since then, {kept:.4f}, are left"
            warnings.warn(
                f"fit: the best val/elbo, {max(values):.4f}, was before the checkpoint that this fit went on from, and "
                f"no weights of then lie beside it; {since}.",
                stacklevel=4,
            )

    def finish(self, module: lightning.LightningModule) -> None:
        """Put the best weights in place, and the files that there are into the history."""
        self._note_files()
        if isinstance(self.best, BestWeights) and self.best.weights:
            module.load_state_dict(self.best.weights)
        elif self.history.best_checkpoint is not None:
            checkpoint = read_checkpoint(self.history.best_checkpoint, module, TAKE)
            if not self._is_older(checkpoint):
                module.load_state_dict(checkpoint["state_dict"])

    def _is_older(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether an older file lies in the best one's place, as a sync of folders may put it there; which is told."""
        if not isinstance(self.best, Keeper) or self.best.best_model_score is None:
            return False
        score = float(self.best.best_model_score)
        own = checkpoint.get("callbacks", {}).get(self.best.state_key, {}).get("best_model_score")
        if own is None or float(own) >= score:
            return False
        warnings.warn(
            f"fit: {self.history.best_checkpoint} is not the one that this fit wrote, whose {self.best.monitor} was "
            f"{score:.4f}: something put an older one in its place, so that those weights are lost; the weights of "
            "the last step are in place.",
            stacklevel=5,
        )
        return True

    def _note_files(self) -> None:
        if isinstance(self.best, Keeper) and self.best.best_model_path:
            self.history.best_checkpoint = Path(self.best.best_model_path)
        if self.last is not None and self.last.best_model_path:
            self.history.last_checkpoint = Path(self.last.best_model_path)

    @contextmanager
    def whatever_fails(self, module: Any) -> Iterator[None]:
        """What was trained outlives what fails: weights stay in place, and the error carries the history.

        They are those reached, or where nothing but memory holds the best ones, these.
        """
        try:
            yield
        except BaseException as error:  # Ctrl-C and SIGTERM too
            if module.steps_taken:
                module.settle(answer=True)  # puts weights back that are not sound
                which = "the weights reached"
                if isinstance(self.best, BestWeights) and self.best.weights:
                    module.load_state_dict(self.best.weights)
                    which = f"the weights of the best val/elbo, {self.best.elbo:.4f},"
                self._note_files()
                files = {"best": self.history.best_checkpoint, "last": self.history.last_checkpoint}
                written = [
                    f"; the {name} checkpoint is {path}" for name, path in files.items() if path and path.is_file()
                ]
                error.history = self.history  # type: ignore[attr-defined]
                error.add_note(
                    f"fit: {module.steps_taken} batches had been trained on before this; {which} are in place, and the "
                    f"history is the error's attribute 'history'{''.join(written)}."
                )
            raise
