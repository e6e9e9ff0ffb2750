"""Keeping: no checkpoint that was there is deleted or written over, and the best weights outlive whatever happens."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pyro_tvae import TVAE, CapsuleRoll, Guide, default_guide
from pyro_tvae.inference import Fitting, NonFiniteError, TrainerOptions, fit
from pyro_tvae.inference.keeping import claimed
from pyro_tvae.locks import lock, unlock


def start() -> tuple[TVAE, Guide]:
    torch.manual_seed(0)
    model = TVAE((1, 4, 4), 3, 1, 3, CapsuleRoll(3, 0), mu=3.0)
    return model, default_guide(model)


X = torch.rand(20, 3, 1, 4, 4, generator=torch.Generator().manual_seed(7))
LEARNING: dict[str, Any] = {"data": X, "validation": X[:5], "progress": False, "seed": 0, "warmup_steps": 0}
WORSE = LEARNING | {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01, maximize=True)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.ckpt")}


@pytest.mark.parametrize("resumed", ["last.ckpt", "copy.ckpt"])
def test_checkpoints_in_a_folder_below_the_new_ones_stay(resumed: str, tmp_path: Path) -> None:
    """Lightning deletes what its own replaces, if it lies anywhere below its folder."""
    fit(*start(), directory=tmp_path / "before", max_epochs=1, **LEARNING)
    below = tmp_path / "now" / "checkpoints" / "former"
    shutil.copytree(tmp_path / "before" / "checkpoints", below)
    shutil.copy(below / "last.ckpt", below / "copy.ckpt")
    before = files(below)
    history = fit(*start(), directory=tmp_path / "now", resume=below / resumed, max_epochs=3, **LEARNING)
    assert history.column("val/elbo")[1][0] < max(history.column("val/elbo")[1])  # a better one was kept meanwhile
    assert files(below) == before
    assert history.best_checkpoint == below.parent / "best.ckpt"


@pytest.mark.parametrize("resumed", ["early.ckpt", "best.ckpt"])
def test_what_goes_on_from_an_earlier_checkpoint_leaves_the_later_ones(resumed: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    fit(*start(), directory=tmp_path, max_epochs=1, **WORSE)
    shutil.copy(folder / "last.ckpt", folder / "early.ckpt")
    fit(*start(), directory=tmp_path, resume=folder / "last.ckpt", max_epochs=3, **WORSE)
    before = files(folder)
    history = fit(*start(), directory=tmp_path, resume=folder / resumed, max_epochs=2, **WORSE)
    assert files(folder) == before
    assert history.last_checkpoint == tmp_path / "checkpoints-v1" / "last.ckpt"
    assert history.best_checkpoint == tmp_path / "checkpoints-v1" / "best.ckpt"
    assert torch.load(history.best_checkpoint, weights_only=True)["epoch"] == 0


def test_better_weights_of_a_later_epoch_are_not_lost_to_an_earlier_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    fit(*start(), directory=tmp_path, max_epochs=1, **LEARNING)
    shutil.copy(folder / "last.ckpt", tmp_path / "early")
    fit(*start(), directory=tmp_path, resume=folder / "last.ckpt", max_epochs=4, **LEARNING)
    best = (folder / "best.ckpt").read_bytes()
    shutil.copy(tmp_path / "early", folder / "last.ckpt")
    fit(*start(), directory=tmp_path, resume=folder / "last.ckpt", max_epochs=2, **LEARNING)  # better than the first
    assert (folder / "best.ckpt").read_bytes() == best


def test_the_best_weights_come_along_into_another_folder(tmp_path: Path) -> None:
    """Where they stayed behind, a fit that was stopped twice would miss them."""
    last = fit(*start(), directory=tmp_path / "1", max_epochs=1, **WORSE).last_checkpoint
    last = fit(*start(), directory=tmp_path / "2", resume=last, max_epochs=2, **WORSE).last_checkpoint
    shutil.rmtree(tmp_path / "1")
    history = fit(*start(), directory=tmp_path / "3", resume=last, max_epochs=3, **WORSE)
    assert history.best_checkpoint == tmp_path / "3" / "checkpoints" / "best.ckpt"
    assert torch.load(history.best_checkpoint, weights_only=True)["epoch"] == 0


def test_folders_are_held_where_what_is_read_alone_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where a lock of a file is one of its bytes, for which it has to be open for writing."""
    flock = fcntl.flock

    def of_nfs(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with claimed(tmp_path, None, True) as one, claimed(tmp_path, None, True) as two:
        assert (one, two) == (tmp_path / "checkpoints", tmp_path / "checkpoints-v1")
        (tmp_path / "checkpoints" / "last.ckpt").touch()
        with pytest.raises(BlockingIOError), claimed(tmp_path, tmp_path / "checkpoints" / "last.ckpt", True):
            pass
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "checkpoints",
        "checkpoints/last.ckpt",
    ]


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match=r"lock cannot be locked \(No locks available\): see to it yourself"):
        unlock(lock(tmp_path / "lock"))


def test_who_lets_go_of_a_file_removes_no_other_one_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    descriptor = lock(file)
    file.rename(tmp_path / "renamed")
    file.touch()
    unlock(descriptor, file)
    assert file.exists()
    unlock(lock(file), file)
    assert not file.exists()


class Ends(Callback):
    """Ends a fit in its third epoch, and keeps the weights of every validation."""

    def __init__(self, error: BaseException | None) -> None:
        self.error, self.weights = error, list[dict[str, Tensor]]()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.weights.append({name: value.clone() for name, value in module.state_dict().items()})

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.current_epoch == 2:
            if self.error is not None:
                raise self.error
            with torch.no_grad():
                next(module.parameters()).fill_(torch.nan)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), None], ids=["Ctrl-C", "NaN"])
def test_the_best_weights_in_memory_are_left_in_place_however_a_fit_ends(error: BaseException | None) -> None:
    ends, pair = Ends(error), start()
    with pytest.raises(NonFiniteError if error is None else type(error)) as caught:
        fit(*pair, max_epochs=4, trainer=TrainerOptions("cpu", callbacks=[ends]), **WORSE)
    assert len(ends.weights) == 2
    assert any(not torch.equal(ends.weights[0][name], ends.weights[1][name]) for name in ends.weights[0])
    state = Fitting(*pair).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ends.weights[0].items())
    best = caught.value.history.column("val/elbo")[1][0]  # type: ignore[attr-defined]
    assert f"the weights of the best val/elbo, {best:.4f}, are in place" in caught.value.__notes__[0]


def test_an_interrupted_fit_names_its_best_checkpoint(tmp_path: Path) -> None:
    ends = Ends(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(*start(), directory=tmp_path, max_epochs=4, trainer=TrainerOptions("cpu", callbacks=[ends]), **WORSE)
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert f"the best checkpoint is {best}; the last checkpoint is {best.with_name('last.ckpt')}." in str(
        caught.value.__notes__
    )
    assert caught.value.history.best_checkpoint == best  # type: ignore[attr-defined]
