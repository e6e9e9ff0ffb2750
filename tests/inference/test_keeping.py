"""Keeping: no checkpoint that was there is deleted or written over, and the best weights outlive whatever happens."""

from __future__ import annotations

import datetime
import enum
import errno
import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_tvae import TVAE, CapsuleRoll, Guide, default_guide, save
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


def test_a_best_file_that_a_sync_put_back_is_not_taken_for_the_best(tmp_path: Path) -> None:
    """The version of an epoch before, at the end of a fit; the weights of the last step stay, and it is told."""
    best = tmp_path / "checkpoints" / "best.ckpt"

    class Sync(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                shutil.copy(best, tmp_path / "former")

        def on_train_end(self, trainer: Any, module: Any) -> None:
            shutil.copy(tmp_path / "former", best)

    pair = start()
    with pytest.warns(
        UserWarning, match=r"best\.ckpt is not the one that this fit wrote, whose val/elbo was .* are lost"
    ):
        history = fit(*pair, directory=tmp_path, max_epochs=4, trainer=TrainerOptions(callbacks=[Sync()]), **LEARNING)
    assert history.last_checkpoint is not None
    last = torch.load(history.last_checkpoint, weights_only=True)["state_dict"]
    weights = "decoder.0.weight"
    assert torch.equal(pair[0].state_dict()[weights], next(v for name, v in last.items() if name.endswith(weights)))


@pytest.mark.parametrize("lies", ["beside the file", "beside the link"])
def test_the_best_weights_are_found_behind_a_link(lies: str, tmp_path: Path) -> None:
    """A link to the last checkpoint, and checkpoints that are links into a store, as a version control makes them."""
    link, folder = tmp_path / "latest.ckpt", tmp_path / "1" / "checkpoints"
    fit(*start(), directory=tmp_path / "1", max_epochs=1, **WORSE)
    if lies == "beside the link":
        link = folder / "last.ckpt"
        (tmp_path / "store").mkdir()
        link.rename(tmp_path / "store" / "0a1b")
        link.symlink_to(tmp_path / "store" / "0a1b")
    else:
        link.symlink_to(folder / "last.ckpt")
    best = fit(*start(), directory=tmp_path / "1", resume=link, max_epochs=3, **WORSE).best_checkpoint
    assert torch.load(best, weights_only=True)["epoch"] == 0


@pytest.mark.parametrize("name", ["checkpoints", "of a run"])
def test_a_folder_of_checkpoints_that_is_a_link_is_gone_on_in(name: str, tmp_path: Path) -> None:
    """As where they lie on a larger disk."""
    (tmp_path / "scratch" / name).mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "scratch" / name)
    last = fit(*start(), directory=tmp_path / "run", max_epochs=1, **LEARNING).last_checkpoint
    again = fit(*start(), directory=tmp_path / "run", resume=last, max_epochs=2, **LEARNING)
    assert again.last_checkpoint == last
    assert [path.name for path in (tmp_path / "run").iterdir() if "checkpoints" in path.name] == ["checkpoints"]


def test_a_callback_that_would_keep_what_failed_in_the_place_of_the_best_is_refused(tmp_path: Path) -> None:
    trainer = TrainerOptions("cpu", callbacks=[OnExceptionCheckpoint(tmp_path / "checkpoints", "best")])
    with pytest.raises(
        ValueError, match=r"OnExceptionCheckpoint writes .*checkpoints/best\.ckpt, which fit keeps itself"
    ):
        fit(*start(), directory=tmp_path, trainer=trainer, max_epochs=1, **LEARNING)


@pytest.mark.parametrize("options", [{"save_last": True}, {"filename": "best", "monitor": "val/elbo", "mode": "max"}])
def test_a_callback_whose_folder_a_logger_names_is_refused_too(options: dict[str, Any], tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = TrainerOptions("cpu", logger=logger, callbacks=[ModelCheckpoint(**options)])
    with pytest.raises(ValueError, match=r"ModelCheckpoint writes .*checkpoints/\w+\.ckpt, which fit keeps itself"):
        fit(*start(), directory=tmp_path, trainer=trainer, max_epochs=1, **LEARNING)


def test_curves_of_a_former_fit_outlast_one_whose_logger_has_the_same_version(tmp_path: Path) -> None:
    last, curves = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "logs" / "csv" / "mine" / "metrics.csv"

    def on(max_epochs: int, **options: Any) -> None:
        trainer = TrainerOptions("cpu", logger=CSVLogger(tmp_path / "logs", "csv", version="mine"))
        fit(*start(), directory=tmp_path, trainer=trainer, max_epochs=max_epochs, **LEARNING, **options)

    on(1)
    former = curves.read_text()
    said = r"fit: the curves that .*metrics\.csv held are in .*metrics-1\.csv now\."
    with pytest.warns(UserWarning, match=said) as told:
        on(2, resume=last)
    assert not any("will be deleted" in str(one.message) for one in told)
    assert curves.with_name("metrics-1.csv").read_text() == former
    assert curves.read_text() not in (former, "")


@pytest.mark.parametrize(("kind", "file"), [(CSVLogger, "metrics.csv"), (TensorBoardLogger, "events.*")])
def test_fits_that_begin_at_the_same_moment_have_curves_of_their_own(
    kind: Any, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has looked for the next version before the other made its folder."""
    monkeypatch.setattr(kind, "_get_next_version", lambda _: 0)
    for number in range(3):
        trainer = TrainerOptions("cpu", logger=kind(tmp_path / "logs", "mine"))
        fit(*start(), trainer=trainer, max_epochs=1, **LEARNING)
        assert len([*(tmp_path / "logs" / "mine" / f"version_{number}").glob(file)]) == 1
    assert len([*tmp_path.rglob(file)]) == 3


@pytest.mark.parametrize(
    ("callback", "why"),
    [
        (
            ModelPruning("l1_unstructured", amount=0.1),
            "ModelPruning makes its masks permanent in what",
        ),
        (BatchSizeFinder(), "BatchSizeFinder trains some steps for a value"),
        (LearningRateFinder(), "LearningRateFinder trains some steps for a value"),
    ],
)
def test_callbacks_with_which_no_fit_goes_on_as_it_was_are_refused(
    callback: Callback, why: str, tmp_path: Path
) -> None:
    trainer = TrainerOptions("cpu", callbacks=[callback])
    with pytest.raises(ValueError, match=f"^fit: {why}"):
        fit(*start(), directory=tmp_path, trainer=trainer, max_epochs=1, **LEARNING)


def test_a_callback_whose_folder_lightning_chooses_is_refused_too(tmp_path: Path) -> None:
    kept = ModelCheckpoint(filename="best", every_n_epochs=1)
    trainer = lightning.Trainer(
        default_root_dir=tmp_path, logger=False, callbacks=[kept], max_epochs=1, accelerator="cpu"
    )
    options = {name: value for name, value in LEARNING.items() if name != "progress"}
    with pytest.raises(ValueError, match=r"ModelCheckpoint writes .*checkpoints/best.ckpt, which fit keeps itself"):
        fit(*start(), directory=tmp_path, trainer=trainer, progress=False, **options)


@pytest.mark.parametrize("place", ["the same folder", "another one", "memory"])
def test_the_best_weights_outlast_a_part_of_the_fit_without_validation(place: str, tmp_path: Path) -> None:
    last = tmp_path / "1" / "checkpoints" / "last.ckpt"
    fit(*start(), directory=tmp_path / "1", max_epochs=1, **WORSE)
    with pytest.warns(
        UserWarning, match="fit: goes on without validation data, so that the weights left in place are the last"
    ):
        fit(*start(), directory=tmp_path / "1", resume=last, max_epochs=2, **WORSE | {"validation": None})
    folder = {"the same folder": tmp_path / "1", "another one": tmp_path / "2", "memory": None}[place]
    model, guide = start()
    best = fit(model, guide, directory=folder, resume=last, max_epochs=4, **WORSE).best_checkpoint
    stored = torch.load(tmp_path / "1" / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored["epoch"] == 0
    assert best == (None if folder is None else folder / "checkpoints" / "best.ckpt")
    if best is not None:
        assert torch.load(best, weights_only=True)["epoch"] == 0
    weights = {name.removeprefix("objective.model."): value for name, value in stored["state_dict"].items()}
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    # Of other validation data it is no better and no worse.
    if folder == tmp_path / "1":
        fit(*start(), directory=folder, resume=last, max_epochs=5, **WORSE | {"validation": None})
        with pytest.warns(
            UserWarning, match=r"best.ckpt is the best of other validation data; of these the best begins"
        ):
            fit(*start(), directory=folder, resume=last, max_epochs=7, **WORSE | {"validation": X[5:]})
        assert torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 5


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


@pytest.mark.parametrize(
    ("directory", "said"),
    [
        ("s3://bucket/run", "s3:/bucket/run/checkpoints cannot be written (it is an address, and files are written to"),
        ("file:/run", "file:/run/checkpoints cannot be written (it is an address, and files are written to folders of"),
        (
            "a::b",
            "fit: directory is {here}/a::b, in which Lightning takes '::' for a chain of addresses; choose another",
        ),
        ("$PLACE/x", "fit: directory is {here}/$PLACE/x, which TensorBoard takes for {here}/there/x; give one of the"),
    ],
)
def test_a_directory_that_would_be_two_places_is_refused_before_anything_is_made(
    directory: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights in a folder called s3: on a machine that is given back are lost, and logs elsewhere are not found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", "there")
    with pytest.raises((OSError, ValueError), match=re.escape(said.format(here=tmp_path))):
        fit(*start(), directory=directory, max_epochs=1, **LEARNING)
    assert not [*tmp_path.iterdir()]
    if "::" not in directory and "$" not in directory:
        with pytest.raises(OSError, match="it is an address"):
            save(directory, *start())
        assert not [*tmp_path.iterdir()]
        Path(directory.partition("/")[0]).mkdir()  # a folder of that name is one
        assert save(directory, *start()).exists()


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match=r"lock cannot be locked \(No locks available\): see to it yourself"):
        unlock(lock(tmp_path / "lock"))


def test_a_file_system_that_numbers_files_anew_at_every_look_is_locked_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "samestat", lambda one, other: False)
    descriptor = lock(tmp_path / "lock")  # which was looked for without an end
    with pytest.raises(BlockingIOError):
        lock(tmp_path / "lock")
    unlock(descriptor)
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


def test_a_home_folder_is_the_one_that_is_held_and_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("checkpoints", "checkpoints-v1"):
        assert fit(*start(), directory="~/fits", **LEARNING).best_checkpoint == tmp_path / "fits" / name / "best.ckpt"
    history = fit(*start(), directory="~/fits", resume="~/fits/checkpoints/last.ckpt", max_epochs=11, **LEARNING)
    assert history.last_checkpoint == tmp_path / "fits" / "checkpoints" / "last.ckpt"


class Leaves(Callback):
    """Changes the working directory in a fit."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        os.chdir("/")


def test_a_fit_does_not_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    history = fit(*start(), directory="fits", max_epochs=3, trainer=TrainerOptions(callbacks=[Leaves()]), **LEARNING)
    assert history.last_checkpoint == tmp_path / "fits" / "checkpoints" / "last.ckpt"
    assert sorted(path.name for path in (tmp_path / "fits").iterdir()) == ["checkpoints", "logs"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("best", {"filename": "best"}), ("last", {"filename": "last"}), ("last", {"save_last": "link"})],
)
def test_a_callback_that_would_write_over_what_is_kept_is_refused(name: str, options: Any, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    other = ModelCheckpoint(tmp_path / "link" / "checkpoints", monitor="train/kl", **options)
    with pytest.raises(ValueError, match=rf"^fit: ModelCheckpoint writes .*{name}\.ckpt, which fit keeps itself; give"):
        fit(*start(), directory=tmp_path, trainer=TrainerOptions(callbacks=[other]), **LEARNING)


@pytest.mark.parametrize("folder", [None, "fits"])
def test_averaged_weights_are_left_in_place_where_a_callback_averages(folder: str | None, tmp_path: Path) -> None:
    """They are those that were validated."""
    averages = EMAWeightAveraging(decay=0.9)
    pair, options = start(), LEARNING | {"optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.01)}
    directory = None if folder is None else tmp_path / folder
    history = fit(*pair, directory=directory, max_epochs=3, trainer=TrainerOptions(callbacks=[averages]), **options)
    left = torch.cat([value.flatten() for part in pair for value in part.state_dict().values()])
    averaged = averages._average_model.module.objective  # type: ignore[union-attr]
    expected = [value.flatten() for part in (averaged.model, averaged.guide) for value in part.state_dict().values()]
    assert history.column("val/elbo")[1][-1] == max(history.column("val/elbo")[1])
    assert torch.equal(left, torch.cat(expected))


def test_averages_that_the_best_weights_would_replace_are_refused() -> None:
    averages = StochasticWeightAveraging(swa_lrs=0.01)
    options = {**LEARNING, "trainer": TrainerOptions(callbacks=[averages])}
    with pytest.raises(ValueError, match=r"^fit: StochasticWeightAveraging puts its average in place after the last"):
        fit(*start(), **options)


class Holds(Callback):
    """Has a state of its own, and keeps what it gets back."""

    def __init__(self, value: object) -> None:
        self.value, self.back = value, None

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "more": [self.value]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.back = state_dict["value"]


class Whole(enum.IntEnum):
    FIVE = 5


@pytest.mark.parametrize("value", [np.float64(0.5), np.int32(5), np.str_("word"), np.bool_(True), Whole.FIVE])
def test_numbers_of_other_types_come_back_from_a_checkpoint(value: Any, tmp_path: Path) -> None:
    """In states and in settings."""
    options: dict[str, Any] = LEARNING | {
        "seed": np.int64(0),
        "warmup_steps": np.int64(0),
        "beta": np.float64(1),
        "gradient_clip": np.float32(1),
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=np.float64(0.01)),
        "schedule": lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=np.float64(1e-4)),
        "directory": tmp_path,
    }
    fit(*start(), max_epochs=1, trainer=TrainerOptions(callbacks=[Holds(value)]), **options)
    holds, last = Holds(value), tmp_path / "checkpoints" / "last.ckpt"
    history = fit(*start(), max_epochs=2, resume=last, trainer=TrainerOptions(callbacks=[holds]), **options)
    assert history.column("val/elbo")[0][-1] == 6
    assert holds.back == value


@pytest.mark.parametrize("value", [Path("word"), np.zeros(2), {1: datetime.timedelta(1)}], ids=repr)
def test_what_a_checkpoint_could_not_give_back_is_named_before_the_first_step(value: object, tmp_path: Path) -> None:
    holds = TrainerOptions(callbacks=[Holds(value)])
    with pytest.raises(ValueError, match=r"^fit: a checkpoint cannot hold callbacks/Holds/value.*, of type ") as caught:
        fit(*start(), directory=tmp_path, trainer=holds, **LEARNING)
    assert not hasattr(caught.value, "history")  # which an error has that comes after a step
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: 5"), MemoryError()])
def test_for_want_of_memory_no_checkpoint_is_blamed(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told that it is damaged throws it away."""
    last = fit(*start(), directory=tmp_path, max_epochs=1, **LEARNING).last_checkpoint

    def none_left(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", none_left)
    with pytest.raises(type(error)) as caught:
        fit(*start(), directory=tmp_path, resume=last, max_epochs=2, **LEARNING)
    assert caught.value is error


class Ending(Dataset[Tensor]):
    """Sequences whose reader comes to its end."""

    def __init__(self, n: int) -> None:
        self.reader = iter(range(n))

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Tensor:
        next(self.reader)
        return X[index]


def test_an_epoch_that_an_error_of_the_data_ends_is_no_whole_one() -> None:
    options = {name: value for name, value in LEARNING.items() if name != "data"}
    with pytest.raises(ValueError, match=r"^fit: the loader gave \d of its 5 batches in epoch 1; a data set that"):
        fit(*start(), DataLoader(Ending(30), 4), max_epochs=5, **options)
    options["validation"] = DataLoader(Ending(50), 4)
    with pytest.raises(ValueError, match=r"^fit: the validation loader gave \d of its 5 batches in epoch 2; a data"):
        fit(*start(), X, max_epochs=5, **options)


def test_a_fit_that_ends_between_validations_keeps_its_end(tmp_path: Path) -> None:
    """Where a Trainer validates every so many steps, wherever an epoch ends."""
    options = {name: value for name, value in LEARNING.items() if name != "seed"}
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    for every, step in ((5, 7), (50, 7)):
        trainer = lightning.Trainer(max_steps=step, val_check_interval=every, check_val_every_n_epoch=None, **quiet)
        history = fit(*start(), directory=tmp_path / str(every), trainer=trainer, **options)
        assert history.last_checkpoint is not None
        assert torch.load(history.last_checkpoint, weights_only=True)["global_step"] == step
