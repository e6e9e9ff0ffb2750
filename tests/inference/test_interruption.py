"""Interruption: a fit that is stopped at any moment and resumed ends as one that was not, bit by bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyro_tvae import TVAE, CapsuleRoll, Guide, Matrix, MeanFieldGuide, Stationary, Topography, default_guide
from pyro_tvae.experiments.datasets import Images, SequenceDataModule, Splits, Transformations
from pyro_tvae.inference import ELBO, IWAE, Fitting, History, TrainerOptions, fit
from pyro_tvae.inference.checkpoints import KEY, read_checkpoint
from pyro_tvae.inference.course import described

FRAME, EPOCHS = (1, 4, 4), 4


def start(seed: int = 0) -> tuple[TVAE, Guide]:
    torch.manual_seed(seed)
    model = TVAE(FRAME, 3, 1, 3, CapsuleRoll(3, 0), mu=3.0)
    return model, default_guide(model)


def sequences(n: int = 20) -> Tensor:
    return torch.rand(n, 3, *FRAME, generator=torch.Generator().manual_seed(7))


def data_module(workers: int = 0) -> SequenceDataModule:
    pixels = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    part = Images(pixels, torch.zeros(20, dtype=torch.long))
    return SequenceDataModule(
        Splits(part, part, part), Transformations(rotation=(0, 120, 240)), n_frames=3, batch_size=8, num_workers=workers
    )


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def own_loader() -> DataLoader:
    return DataLoader(TensorDataset(sequences()), 8, shuffle=True, generator=torch.Generator().manual_seed(3))


def sampled(sampler: Sampler[int]) -> DataLoader:
    return DataLoader(TensorDataset(sequences()), 8, sampler=sampler)


class Walks(lightning.LightningDataModule):
    """Its loaders have generators of their own, and are made anew in every process."""

    def train_dataloader(self) -> DataLoader:
        return own_loader()

    def val_dataloader(self) -> list[DataLoader]:
        return [validated()]


def validated() -> DataLoader:
    data = TensorDataset(sequences())
    return DataLoader(data, 5, sampler=RandomSampler(data, num_samples=5, generator=torch.Generator().manual_seed(5)))


class Shared(lightning.LightningDataModule):
    """One generator for all that it draws."""

    def prepare_data(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(sequences()), 8, shuffle=True, generator=self.generator)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(sequences()), 5, shuffle=True, generator=self.generator)


class Noisy(Callback):
    """A user's callback that draws from all global generators."""

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        with torch.no_grad():
            noise = torch.randn(()) + random.random() + np.random.standard_normal()  # noqa: NPY002
            next(module.parameters()).add_(1e-4 * noise)


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "tensors, Adam": lambda: {"data": sequences(), "validation": sequences(5)},
    "tensors, schedule, no validation": lambda: {"data": sequences(), "schedule": cosine},
    "momentum, dropped frames, IWAE": lambda: {
        "data": sequences(),
        "validation": sequences(5),
        "optimizer": momentum,
        "frame_dropout": 0.5,
        "objective": IWAE,
        "num_particles": 3,
        "seed": None,
    },
    "a loader with a generator": lambda: {"data": own_loader(), "validation": sequences(5), "schedule": cosine},
    "a loader whose sampler has a generator": lambda: {
        "data": sampled(WeightedRandomSampler([1.0, 2.0] * 10, 20, generator=torch.Generator().manual_seed(4)))
    },
    "a validation loader whose sampler has a generator": lambda: {"data": sequences(), "validation": validated()},
    "a data module whose loaders have generators": lambda: {"data": Walks()},
    "a data module whose loaders share a generator": lambda: {"data": Shared()},
    "data module, schedule": lambda: {"data": data_module(), "schedule": cosine},
    "data module, persistent workers": lambda: {"data": data_module(workers=1)},
    "every generator, clipped": lambda: {"data": sequences(), "callbacks": [Noisy()], "gradient_clip": 0.1},
    "steps": lambda: {"data": sequences(), "validation": sequences(5), "max_steps": 10},
    "double precision": lambda: {
        "data": sequences(),
        "validation": sequences(5),
        "trainer": TrainerOptions("cpu", precision="64-true"),
    },
}


def quick(case: dict[str, Any], directory: Path, **options: Any) -> tuple[History, dict[str, Any]]:
    """A fit of fresh parts; its history and last checkpoint."""
    options = {"max_epochs": EPOCHS, "seed": 1, "progress": False, "warmup_steps": 6} | case | options
    if "trainer" not in case:
        options["accelerator"] = "cpu"
    model, guide = start(seed=0 if "resume" not in options else 9)
    history = fit(model, guide, directory=directory, **options)
    assert history.last_checkpoint is not None
    return history, torch.load(history.last_checkpoint, weights_only=True)


def same(one: Any, two: Any) -> bool:
    """Equality of nested states, bit by bit."""
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


def assert_same(one: dict[str, Any], two: dict[str, Any], *, persistent: bool = False) -> None:
    for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert same(one[part], two[part]), part
    # What a file holds depends on who else keeps something in it.
    own = [{name: value for name, value in state[KEY].items() if name not in ("holds", "fit")} for state in (one, two)]
    assert same(*own)
    # Workers that persist are given seeds once a process.
    once = {"train_dataloader"} if persistent else set()
    ranks = [[dict(mine) for mine in state["callbacks"]["RandomStates"]["ranks"]] for state in (one, two)]
    for mine in chain(*ranks):
        mine.update(dict.fromkeys(once))
    assert same(*ranks)
    assert one["callbacks"]["_Recorder"]["rows"] == two["callbacks"]["_Recorder"]["rows"]


class Copies(Callback):
    """Keeps every last.ckpt that is written, by the moment at which the next epoch starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.current_epoch:
            copy = self.folder.parent / f"at {trainer.current_epoch}" / "checkpoints"
            shutil.copytree(self.folder / "checkpoints", copy, dirs_exist_ok=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_fit_resumed_from_any_epoch_ends_as_the_whole_one(case: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    options = case()
    copies = Copies(tmp_path / "whole")
    if "trainer" in options:
        options["trainer"] = replace(options["trainer"], callbacks=[copies])
    else:
        options["callbacks"] = [*options.get("callbacks", []), copies]
    whole_history, whole = quick(options, tmp_path / "whole")
    folders = sorted(tmp_path.glob("at *"))
    assert len(folders) == EPOCHS - 1
    for folder in folders:
        torch.manual_seed(int(folder.name[-1]) + 100)  # where the generators stand before must not matter
        history, state = quick(case(), folder, resume=folder / "checkpoints" / "last.ckpt")
        persistent = case is CASES["data module, persistent workers"]
        assert_same(state, whole, persistent=persistent)
        assert history.rows == whole_history.rows
        if whole_history.best_checkpoint is not None:
            assert history.best_checkpoint == folder / "checkpoints" / "best.ckpt"
            best = (torch.load(h.best_checkpoint, weights_only=True) for h in (history, whole_history))
            assert_same(*best, persistent=persistent)


def test_a_fit_that_validates_every_second_epoch_goes_on_as_any_other(tmp_path: Path) -> None:
    """Lightning's own last checkpoint would then be of a moment within an epoch."""

    def trained(folder: Path, **options: Any) -> History:
        torch.manual_seed(3)
        quiet = {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 1, "accelerator": "cpu"}
        trainer = lightning.Trainer(max_epochs=4, check_val_every_n_epoch=2, callbacks=[Copies(folder)], **quiet)
        data = {"validation": sequences(5), "directory": folder, "progress": False}
        return fit(*start(seed=0), sequences(), trainer=trainer, **data, **options)

    whole = trained(tmp_path / "whole")
    for epoch in (1, 2, 3):
        shutil.copytree(tmp_path / f"at {epoch}", tmp_path / "from" / str(epoch))
    for folder in (tmp_path / "from").iterdir():
        assert trained(folder, resume=folder / "checkpoints" / "last.ckpt").rows == whole.rows


def test_a_fit_whose_folder_was_moved_goes_on_with_its_best(tmp_path: Path) -> None:
    """The weights get worse from the start, so that the best ones lie before the interruption."""
    worse = {
        "data": sequences(),
        "validation": sequences(5),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01, maximize=True),
        "warmup_steps": 0,
    }
    whole_history, _ = quick(worse, tmp_path / "whole")
    steps, elbo = whole_history.column("val/elbo")
    assert elbo[0] == max(elbo)
    quick(worse, tmp_path / "before", max_epochs=2)
    shutil.move(tmp_path / "before", tmp_path / "after")
    history, _ = quick(worse, tmp_path / "after", resume=tmp_path / "after" / "checkpoints" / "last.ckpt")
    assert history.column("val/elbo") == (steps, elbo)
    assert history.best_checkpoint == tmp_path / "after" / "checkpoints" / "best.ckpt"
    assert torch.load(history.best_checkpoint, weights_only=True)["epoch"] == 0


WORSE: dict[str, Any] = {  # from the start, so that the best weights are those of the first epoch
    "data": sequences(),
    "validation": sequences(5),
    "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01, maximize=True),
    "warmup_steps": 0,
    "progress": False,
    "seed": 0,
}


def test_a_fit_that_goes_on_without_a_folder_ends_with_the_best_of_its_history(tmp_path: Path) -> None:
    fit(*start(), directory=tmp_path, max_epochs=2, **WORSE)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 0
    pair, last = start(), tmp_path / "checkpoints" / "last.ckpt"
    fit(*pair, resume=last, max_epochs=4, **WORSE)
    assert same(dict(Fitting(*pair).state_dict()), dict(best["state_dict"]))
    better = WORSE | {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.02)}
    history = fit(*pair, resume=last, max_epochs=9, **better)
    assert history.column("val/elbo")[1][-1] == max(history.column("val/elbo")[1])
    assert not same(dict(Fitting(*pair).state_dict()), dict(best["state_dict"]))


@pytest.mark.parametrize("folder", [True, False])
def test_a_best_of_other_validation_data_beside_a_checkpoint_of_these_is_none(folder: bool, tmp_path: Path) -> None:
    """As where a fit goes on with others, and is killed between its best and its last checkpoint."""
    hard = WORSE | {"validation": sequences(5).round()}
    fit(*start(), directory=tmp_path, max_epochs=2, **hard)
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    gray = WORSE | {"validation": torch.full((5, 3, *FRAME), 0.5)}
    with pytest.warns(UserWarning, match="goes on with other validation data"):
        fit(*start(), directory=tmp_path, resume=last, max_epochs=3, **gray)
    last.write_bytes(before)
    pair, options = start(), {"directory": tmp_path} if folder else {}
    with pytest.warns(UserWarning, match="is the best of other validation data; of these the best begins anew"):
        history = fit(*pair, resume=last, max_epochs=4, **hard, **options)
    _, elbo = history.column("val/elbo")
    assert len(elbo) == 4
    bound = ELBO(*pair)(hard["validation"]).elbo
    assert float(bound.detach().mean()) / 3 == pytest.approx(max(elbo[2:]), abs=1.0)
    if folder:
        assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == 2
        assert len([*(tmp_path / "checkpoints").glob("best-*.ckpt")]) == 2


def test_best_weights_that_lie_before_a_users_own_checkpoint_are_told_of(tmp_path: Path) -> None:
    own = lightning.callbacks.ModelCheckpoint(tmp_path, filename="own")
    fit(*start(), max_epochs=2, trainer=TrainerOptions(callbacks=[own]), **WORSE)
    with pytest.warns(UserWarning, match=r"the best val/elbo, -[\d.]+, was before the checkpoint .* since then, -"):
        fit(*start(), resume=tmp_path / "own.ckpt", max_epochs=3, **WORSE)


@pytest.mark.parametrize("folder", [True, False])
def test_the_best_is_never_compared_over_two_sets_of_validation_data(folder: bool, tmp_path: Path) -> None:
    """Of gray frames the first epoch is far better than any is of black and white ones."""
    gray = WORSE | {"validation": torch.full((5, 3, *FRAME), 0.5), "patience": 1}
    fit(*start(), directory=tmp_path, max_epochs=3, **gray)
    hard = gray | {"validation": sequences(5).round()}
    pair, options = start(), {"directory": tmp_path} if folder else {}
    former = (tmp_path / "checkpoints" / "best.ckpt").read_bytes()
    with pytest.warns(UserWarning, match="goes on with other validation data, 5 other sequences, of which the best"):
        history = fit(*pair, resume=tmp_path / "checkpoints" / "last.ckpt", max_epochs=5, **hard, **options)
    beside = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").glob("best-*.ckpt")}
    assert beside == ({"best-1.ckpt": former} if folder else {})
    steps, elbo = history.column("val/elbo")
    begun = steps.index(max(step for step in steps if step <= 6)) + 1
    assert len(elbo) > begun
    after = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] if folder else None
    assert after in (None, begun)
    bound = ELBO(*pair)(hard["validation"]).elbo
    assert float(bound.detach().mean()) / 3 == pytest.approx(elbo[begun], abs=1.0)


@pytest.mark.parametrize(
    ("copied", "said"),
    [
        ("early", "is of an epoch before the best one"),
        ("another", "is of another fit than the best one"),
        ("missing", "is missing"),
    ],
)
def test_best_weights_of_another_epoch_or_fit_are_not_taken_for_the_best(
    copied: str, said: str, tmp_path: Path
) -> None:
    """In a copy that was made while a run trained, ``best.ckpt`` can be older than ``last.ckpt`` says."""
    case = {"data": sequences(), "validation": sequences(5), "optimizer": momentum}
    late, another = (tmp_path / name / "checkpoints" for name in ("late", "another"))
    quick(case, another.parent, max_epochs=4)  # with weights that are better by far
    quick(case, late.parent, max_epochs=1)
    early = shutil.copytree(late, tmp_path / "early")
    elbo = quick(case, late.parent, max_epochs=3, resume=late / "last.ckpt")[0].column("val/elbo")[1]
    assert elbo[-1] == max(elbo)
    late.joinpath("best.ckpt").unlink()
    if copied != "missing":
        shutil.copy({"early": early, "another": another}[copied] / "best.ckpt", late / "best.ckpt")
    with pytest.warns(UserWarning, match=f"best.ckpt {said}, whose val/elbo was {elbo[-1]:.4f}"):
        history, _ = quick(case, late.parent, max_epochs=4, resume=late / "last.ckpt")
    assert history.best_checkpoint == late / "best.ckpt"
    best = torch.load(history.best_checkpoint, weights_only=True)
    assert best["epoch"] == 3  # of the one epoch that was left: what was better is not there


def test_a_path_inside_a_checkpoint_is_not_followed(tmp_path: Path) -> None:
    """A checkpoint that names another folder's best weights goes on with those that lie beside it."""
    case = {"data": sequences(), "validation": sequences(5)}
    quick(case, tmp_path / "mine", max_epochs=2)
    outside = tmp_path / "outside" / "best.ckpt"
    outside.parent.mkdir()
    outside.write_bytes(b"not to be read")
    last = tmp_path / "mine" / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    keepers = [kept for kept in state["callbacks"].values() if "best_model_path" in kept]
    assert len(keepers) == 2
    for kept in keepers:
        kept |= {"best_model_path": str(outside), "dirpath": str(outside.parent), "last_model_path": str(outside)}
    torch.save(state, last)
    history, _ = quick(case, tmp_path / "mine", resume=last)
    assert history.best_checkpoint == last.with_name("best.ckpt")
    assert [path.name for path in outside.parent.iterdir()] == ["best.ckpt"]
    assert outside.read_bytes() == b"not to be read"


@pytest.mark.parametrize("by", ["patience", "a callback"])
def test_a_fit_that_ran_out_of_patience_stays_stopped_until_it_has_more(by: str, tmp_path: Path) -> None:
    def worse(patience: int) -> dict[str, Any]:
        own = TrainerOptions("cpu", callbacks=[EarlyStopping("val/elbo", mode="max", patience=patience)])
        return {
            "data": sequences(),
            "validation": sequences(5),
            "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.02, maximize=True),
            "max_epochs": 20,
            **({"patience": patience} if by == "patience" else {"trainer": own}),
        }

    last = tmp_path / "checkpoints" / "last.ckpt"
    _, whole = quick(worse(1), tmp_path)
    assert whole["epoch"] < 6
    for _ in range(2):
        _, state = quick(worse(1), tmp_path, resume=last)
        assert_same(state, whole)
    _, state = quick(worse(3), tmp_path, resume=last)
    assert state["epoch"] == whole["epoch"] + 2


@pytest.mark.parametrize("threshold", ["stopping_threshold", "divergence_threshold"])
def test_a_fit_that_reached_a_threshold_stays_stopped_until_it_has_another(threshold: str, tmp_path: Path) -> None:
    reached, other = (-1e9, 0.0) if threshold == "stopping_threshold" else (0.0, -1e9)

    def epochs(value: float, **options: Any) -> int:
        stopping: Any = EarlyStopping("val/elbo", mode="max", patience=9, **{threshold: value})
        case = {"data": sequences(), "validation": sequences(5), "trainer": TrainerOptions("cpu", callbacks=[stopping])}
        return int(quick(case | {"max_epochs": 4}, tmp_path, **options)[1]["epoch"])

    last = tmp_path / "checkpoints" / "last.ckpt"
    assert epochs(reached) == 0
    assert [epochs(reached, resume=last) for _ in range(2)] == [0, 0]
    assert epochs(other, resume=last) == 3


# --- fits that go on otherwise ----------------------------------------------------------------------------------------


def otherwise(directory: Path, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is warned of where a fit goes on with other options than before."""
    case = {"data": sequences(), "validation": sequences(5), "max_epochs": 2}
    last = directory / "then" / "checkpoints" / "last.ckpt"
    if not last.exists():
        quick(case | then, directory / "then")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick(case | {"max_epochs": 3} | now, directory / "now", resume=last)
    return [text for one in caught if (text := str(one.message)).startswith("fit: goes on")]


SECOND = sequences()
SECOND[7, 1, 0, 2, 3] = 1 - SECOND[7, 1, 0, 2, 3]
COURSES: dict[str, tuple[dict[str, Any], str]] = {
    "beta": ({"beta": 2.0}, "beta=2.0, which was 1.0"),
    "num_particles": ({"num_particles": 2}, "num_particles=2, which was 1"),
    "frame_dropout": ({"frame_dropout": 0.5}, "frame_dropout=0.5, which was 0.0"),
    "warmup_steps": ({"warmup_steps": 7}, "warmup_steps=7, which was 6"),
    "objective": ({"objective": IWAE}, "objective='IWAE', which was 'ELBO'"),
    "gradient_clip": ({"gradient_clip": 1.0}, "gradient_clip=1.0, which was None"),
    "precision": (
        {"trainer": TrainerOptions("cpu", precision="bf16-mixed")},
        "precision='bf16-mixed', which was '32-true'",
    ),
    "matmul_precision": ({"matmul_precision": "high"}, "matmul_precision='high', which was 'highest'"),
    "batch_size": ({"batch_size": 4}, "batch_size=4, which was 8"),
    "more data": ({"data": sequences(30)}, "other data, 30 sequences, which were 20"),
    "another pixel": ({"data": SECOND}, "other data, 20 other sequences"),
    "validation": (
        {"validation": sequences(7)},
        "other validation data, 7 sequences, which were 5, of which the best begins anew",
    ),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit that was stopped at the end of an epoch."""
    return tmp_path_factory.mktemp("stopped")


@pytest.mark.parametrize("setting", COURSES)
def test_another_course_is_warned_of_with_what_it_was(setting: str, stopped: Path) -> None:
    now, said = COURSES[setting]
    assert otherwise(stopped, {}, now) == [
        f"fit: goes on with {said}: from here on it is not the fit that was stopped."
    ]


def test_another_share_of_the_validation_data_is_other_validation_data(stopped: Path) -> None:
    otherwise(stopped, {}, {})
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", limit_val_batches=0.5, logger=False, enable_checkpointing=False
    )
    validation = DataLoader(TensorDataset(sequences(5)), batch_size=1)
    options: dict[str, Any] = {"resume": stopped / "then/checkpoints/last.ckpt", "directory": stopped / "share"}
    with pytest.warns(UserWarning, match="goes on with other validation data, 5 other sequences, of which the best"):
        fit(*start(), sequences(), validation=validation, trainer=trainer, warmup_steps=6, **options)


def test_what_is_trained_no_more_or_again_is_told_of(tmp_path: Path) -> None:
    def trained(frozen: bool, **options: Any) -> Path | None:
        model, guide = start()
        model.mu.requires_grad_(not frozen)
        return fit(model, guide, sequences(), directory=tmp_path, seed=1, progress=False, **options).last_checkpoint

    last = trained(True, max_epochs=1)
    with pytest.warns(UserWarning, match=r"goes on with frozen=\[\], which was \['model.mu'\]: from here on it is not"):
        trained(False, max_epochs=2, resume=last)


def test_the_same_course_is_no_matter_of_rounding_or_of_length(stopped: Path) -> None:
    assert otherwise(stopped, {}, {"data": sequences() * (1 + 1e-7), "max_epochs": 4, "patience": 3}) == []


def test_the_middle_of_an_epoch_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    then = {"max_steps": 4, "max_epochs": 4}
    for now, said in (({"data": sequences(30)}, "other data, 30 sequences"), ({"batch_size": 4}, "batch_size=4")):
        with pytest.raises(ValueError, match=f"cannot resume with {said}, which .* of the middle of an epoch"):
            otherwise(tmp_path, then, now | {"max_steps": 8})
    assert otherwise(tmp_path, then, {"max_steps": 8}) == []


def test_another_model_of_the_same_shapes_is_refused(tmp_path: Path) -> None:
    """Neither a kernel nor a matrix of one's own is among the weights; where a weight begins is no difference."""
    options: dict[str, Any] = {"seed": 1, "progress": False, "trainer": TrainerOptions("cpu")}
    eye, band = torch.eye(9), torch.eye(9) + torch.eye(9).roll(1, 0)
    for number, (one, two, words) in enumerate(
        [
            (CapsuleRoll(3, 0), CapsuleRoll(3, 1), r"model\.topography\.width is 0 there and 1 here"),
            (Matrix(eye), Matrix(band), r"model\.topography\.w is '\w{16}' there"),
            (CapsuleRoll(3, 0), Stationary((3, 1)), r"model\.topography is 'pyro_tvae.CapsuleRoll' there"),
        ]
    ):
        pairs = []
        for topography in (one, two):
            model = TVAE(FRAME, 3, 1, 3, topography, mu=3.0)
            pairs.append((model, MeanFieldGuide(model)))
        fit(*pairs[0], sequences(), max_epochs=1, directory=tmp_path / str(number), **options)
        last = tmp_path / str(number) / "checkpoints" / "last.ckpt"
        before = [value.clone() for value in pairs[1][0].parameters()]
        with pytest.raises(ValueError, match=f"is of another model: {words}"):
            fit(*pairs[1], sequences(), max_epochs=2, resume=last, **options)
        assert all(map(torch.equal, before, pairs[1][0].parameters()))
        again = TVAE(FRAME, 3, 1, 3, one, mu=9.0)
        fit(again, MeanFieldGuide(again), sequences(), max_epochs=2, resume=last, **options)


class Slanted(Topography):
    step = 1

    def offsets(self) -> list[tuple[int, ...]]:
        return [(k, self.step * k) for k in range(3)]


def test_a_topography_whose_code_has_changed_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def goes_on(epochs: int, **options: Any) -> None:
        model = TVAE(FRAME, 3, 1, 3, Slanted(learned=True), mu=3.0)
        fit(model, MeanFieldGuide(model), sequences(), max_epochs=epochs, progress=False, **options)

    goes_on(1, directory=tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    goes_on(2, resume=last)
    monkeypatch.setattr(Slanted, "step", 2)
    with pytest.raises(ValueError, match=r"is of another model: the neighborhood of model\.topography is '"):
        goes_on(2, resume=last)


class Diced(Dataset[Tensor]):
    """Items that are others at every reading, by a generator of their own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, item: int) -> Tensor:
        return torch.rand(3, *FRAME, generator=self.generator)


def test_data_that_are_others_at_every_reading_are_told_by_their_number(tmp_path: Path) -> None:
    then = {"data": DataLoader(Diced(0), 8)}
    assert otherwise(tmp_path, then, {"data": DataLoader(Diced(1), 8)}) == []
    (said,) = otherwise(tmp_path, then, {"data": sequences(24)})
    assert "other data, 24 sequences, which were 20" in said


@pytest.mark.parametrize("which", ["data", "validation"])
def test_another_fold_of_the_same_data_is_told_of(which: str, tmp_path: Path) -> None:
    def fold(start: int) -> dict[str, Any]:
        sampler = SubsetRandomSampler(range(start, start + 12))
        return {which: DataLoader(TensorDataset(sequences(20)), 4, sampler=sampler)}

    assert otherwise(tmp_path, fold(0), fold(0)) == []
    (said,) = otherwise(tmp_path, fold(0), fold(8))
    assert said.startswith(f"fit: goes on with other {'validation ' * (which != 'data')}data, 20 other sequences")


@pytest.mark.parametrize("item", [0, 8, -1])
def test_data_modules_and_data_sets_are_told_by_a_few_items(item: int, tmp_path: Path) -> None:
    other = data_module()
    other.datasets["train"].source.pixels[item] = 0.5
    assert (
        otherwise(tmp_path, {"data": data_module(), "validation": None}, {"data": data_module(), "validation": None})
        == []
    )
    (said,) = otherwise(tmp_path, {}, {"data": other, "validation": None})
    assert said.startswith("fit: goes on with other data, 20 other sequences")


def test_a_look_at_the_data_leaves_no_trace() -> None:
    dataset = Diced(0)
    before = torch.get_rng_state(), dataset.generator.get_state()
    told = described(DataLoader(dataset, 4))
    assert told == {"data": {"sequences": 20, "chosen": "all"}, "batch_size": 4, "drop_last": False}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(dataset.generator.get_state(), before[1])


# --- checkpoints that lack something ----------------------------------------------------------------------------------


def places(value: Any, under: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every entry at every depth is; of lists of numbers one item stands for all."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value)) if any(isinstance(item, dict | list | tuple | Tensor) for item in value) else []
        items = items or list(enumerate(value))[-1:]
    else:
        return
    for name, inner in items:
        yield (*under, name)
        yield from places(inner, (*under, name))


def without(value: Any, place: tuple[Any, ...]) -> Any:
    """A copy of a state that lacks one entry; what is beside it is shared."""
    name, *further = place
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    if further:
        items[name] = without(items[name], tuple(further))
    else:
        del items[name]
    return items if isinstance(value, dict) else type(value)(items.values())


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last checkpoint of a fit with everything in it that a fit can have."""
    own = TrainerOptions("cpu", callbacks=[EarlyStopping("val/elbo", mode="max")])
    history = fit(
        *start(),
        data_module(),
        schedule=cosine,
        patience=3,
        max_epochs=4,
        seed=1,
        progress=False,
        directory=tmp_path_factory.mktemp("interrupted"),
        trainer=own,
    )
    assert history.last_checkpoint is not None
    return torch.load(history.last_checkpoint, weights_only=True)


def test_a_checkpoint_that_lacks_any_entry_is_refused_by_name(
    interrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An entry that the list of what there is lacks is harmless: what it names is there, and is read.
    every = [place for place in places(interrupted) if place[:2] != (KEY, "holds") or len(place) == 2]
    assert len(every) > 300
    assert {len(place) for place in every} >= {1, 2, 3, 4, 5}
    damaged, module = tmp_path / "damaged.ckpt", Fitting(*start())
    damaged.touch()
    state = interrupted

    def load(*_: Any, **__: Any) -> dict[str, Any]:  # written and read, a case would take 30 ms
        return {name: dict(value) if isinstance(value, dict) else value for name, value in state.items()}

    monkeypatch.setattr(torch, "load", load)
    assert same(read_checkpoint(damaged, module)["callbacks"], interrupted["callbacks"])
    for place in every:
        state = without(interrupted, place)
        with pytest.raises(ValueError, match=r"^fit: cannot resume, .* is (incomplete|no checkpoint of fit)") as caught:
            read_checkpoint(damaged, module)
        said = str(caught.value)
        assert "\n" not in said, place
        if "incomplete" in said:  # the entry itself, or the list that it was in
            inner = next((k for k, name in enumerate(place) if isinstance(name, int)), len(place))
            names = "/".join(map(str, place)), "/".join(map(str, place[:inner]))
            assert any(f"without {name}" in said for name in names), (place, said)
        else:
            assert place[0] == KEY
            assert place[1:] in ((), ("version",))


@pytest.mark.parametrize(
    "place",
    [
        ("state_dict", "objective.model.mu"),
        ("optimizer_states", 0, "state", 0),
        ("callbacks", "RandomStates"),
        ("callbacks", "EarlyStopping{'monitor': 'val/elbo', 'mode': 'max'}"),
        ("SequenceDataModule",),
        ("lr_schedulers", 0),
    ],
    ids=str,
)
def test_no_fit_goes_on_from_a_checkpoint_that_lacks_something(
    place: tuple[Any, ...], interrupted: dict[str, Any], tmp_path: Path
) -> None:
    damaged = tmp_path / "last.ckpt"
    torch.save(without(interrupted, place), damaged)
    with pytest.raises(ValueError, match="is incomplete, without"):
        quick({"data": data_module(), "schedule": cosine, "patience": 3}, tmp_path, resume=damaged)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("SequenceDataModule", {"epoch": "soon"}, "cannot be put into place (ValueError: invalid literal for int()"),
        ("lr_schedulers", [3], "cannot be put into place"),
        ("loops", {"fit_loop": 3}, "cannot be put into place"),
    ],
)
def test_a_state_that_no_fit_wrote_gets_one_sentence(
    part: str, value: Any, said: str, interrupted: dict[str, Any], tmp_path: Path
) -> None:
    """In files of the version that has no list of what it holds."""
    damaged = tmp_path / "last.ckpt"
    torch.save({**interrupted, part: value, KEY: {**interrupted[KEY], "version": 1}}, damaged)
    with pytest.raises(ValueError, match=r"^fit: cannot resume, ") as caught:
        quick({"data": data_module(), "schedule": cosine, "patience": 3}, tmp_path, resume=damaged)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interruption_leaves_fit_as_itself(error: BaseException, tmp_path: Path) -> None:
    """Lightning would end the process with status 1."""

    class Stop(Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                raise error

    expected = KeyboardInterrupt if error is KeyboardInterrupt else SystemExit
    with pytest.raises(expected) as caught:
        quick({"data": sequences(), "callbacks": [Stop()]}, tmp_path)
    assert getattr(caught.value, "code", 143) == 143
    assert isinstance(caught.value.history, History)  # type: ignore[attr-defined]
    assert "4 batches had been trained on" in caught.value.__notes__[0]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    _, state = quick({"data": sequences()}, tmp_path, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert_same(state, quick({"data": sequences()}, tmp_path / "whole")[1])


def test_a_sigterm_after_the_last_batch_ends_the_process_too(tmp_path: Path) -> None:
    """Of which Lightning tells at batches alone; the fit is whole by then, and nothing is trained by the same call."""

    class Stop(Callback):
        def on_train_end(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        quick({"data": sequences(), "callbacks": [Stop()]}, tmp_path)
    assert caught.value.code == 143
    _, whole = quick({"data": sequences()}, tmp_path / "whole")
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert_same(torch.load(last, weights_only=True), whole)
    assert_same(quick({"data": sequences()}, tmp_path, resume=last)[1], whole)


class Interrupting(Callback):
    """Ctrl-C for all processes of a terminal: for the workers first, whose end is told of before it arrives here."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            workers = [*multiprocessing.active_children()]
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker.pid, signal.SIGINT)  # type: ignore[arg-type]
            time.sleep(0.2)
            self.alive = [worker.is_alive() for worker in workers]
            raise KeyboardInterrupt


@pytest.mark.parametrize("persistent", [False, True])
def test_an_interruption_with_workers_is_an_interruption(persistent: bool, capfd: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(
        TensorDataset(sequences(40)),
        8,
        num_workers=2,
        persistent_workers=persistent,
        multiprocessing_context="fork",
    )
    stop = Interrupting()
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(*start(), loader, progress=False, trainer=TrainerOptions("cpu", callbacks=[stop]))
    assert stop.alive == [True, True]
    assert isinstance(caught.value.history, History)  # type: ignore[attr-defined]
    assert "Traceback" not in capfd.readouterr().err
    loader._iterator = None
    assert multiprocessing.active_children() == []


def test_a_workers_end_that_overtakes_the_interruption_is_the_interruption() -> None:
    """As it was seen on a busy machine: SIGCHLD's error while KeyboardInterrupt was on its way."""

    class Overtaken(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                try:
                    raise KeyboardInterrupt
                finally:
                    raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    with pytest.raises(KeyboardInterrupt):
        fit(*start(), sequences(), progress=False, trainer=TrainerOptions("cpu", callbacks=[Overtaken()]))
