"""Fitting: it improves the bound, repeats itself, goes on where it stopped, keeps the best and says what went wrong."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_tvae import TVAE, CapsuleRoll, FlowGuide, Guide, MeanFieldGuide, Normal, OrbitEnergy, default_guide
from pyro_tvae.inference import (
    ELBO,
    IWAE,
    DReG,
    Fitting,
    History,
    Objective,
    Terms,
    TrainerOptions,
    WarmupCosineLR,
    fit,
)
from pyro_tvae.inference.batches import batch_of
from pyro_tvae.inference.callbacks import ProgressBar
from pyro_tvae.inference.compiling import Compiled
from pyro_tvae.inference.training import NonFiniteError

FRAME = (1, 2, 3)


def start(seed: int = 0, orbits: bool = False) -> tuple[TVAE, Guide]:
    torch.manual_seed(seed)
    prior = OrbitEnergy() if orbits else None
    model = TVAE(FRAME, 4, 1, 4, CapsuleRoll(4, 0), prior=prior, mu=3.0)
    return model, default_guide(model)


def moving_bar(n: int = 24) -> Tensor:
    """(N, 4, 1, 2, 3): a bright column that steps on by one a frame, wrapping."""
    column = (torch.randint(3, (n, 1)) + torch.arange(4)) % 3
    return nn.functional.one_hot(column, 3).float()[:, :, None, None, :].expand(-1, -1, 1, 2, -1).contiguous()


def weights(*modules: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def quick(model: TVAE, guide: Guide, data: object = None, **options: object) -> History:
    options = {"max_epochs": 2, "seed": 1, "accelerator": "cpu", "progress": False} | options
    own: dict = {field.name: options.pop(field.name) for field in fields(TrainerOptions) if field.name in options}
    trainer = TrainerOptions(**own)
    return fit(model, guide, moving_bar() if data is None else data, trainer=trainer, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("orbits", [False, True])
def test_fit_improves_the_bound(orbits: bool) -> None:
    model, guide = start(orbits=orbits)
    x = moving_bar(64)
    with torch.no_grad():
        before = float(ELBO(model, guide, 20)(x).elbo.mean())
    history = quick(model, guide, x, max_epochs=20, warmup_steps=20)
    with torch.no_grad():
        after = float(ELBO(model, guide, 20)(x).elbo.mean())
    assert after > before + 5
    _, elbo = history.column("train/elbo")
    assert elbo[-1] > elbo[0]
    # Reported values are nats per frame of what was measured here per sequence: the run's last ten steps, and draws.
    assert elbo[-1] == pytest.approx(after / 4, rel=0.25)
    assert history.seconds > 0


def test_the_same_seed_gives_the_same_weights_bit_by_bit() -> None:
    x = moving_bar()
    runs = []
    for seed in (1, 1, 2):
        model, guide = start()
        quick(model, guide, x, seed=seed, frame_dropout=0.5)
        runs.append(weights(model, guide))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])
    assert not equal(runs[0], weights(*start()))


def test_history_has_its_columns() -> None:
    model, guide = start()
    x = moving_bar()  # 24 sequences: three steps an epoch
    history = quick(model, guide, x, validation=x[:8], max_epochs=8)
    steps, elbo = history.column("train/elbo")
    assert steps == [10, 20]
    assert all(math.isfinite(value) for value in elbo)
    parts = [history.column(f"train/{name}")[1] for name in ("reconstruction", "kl")]
    for value, reconstruction, kl in zip(elbo, *parts, strict=True):
        assert value == pytest.approx(reconstruction - kl, rel=1e-5)
    steps, elbo = history.column("val/elbo")
    assert steps == [3 * epoch for epoch in range(1, 9)]
    parts = [history.column(f"val/{name}")[1] for name in ("reconstruction", "kl")]
    for value, reconstruction, kl in zip(elbo, *parts, strict=True):
        assert value == pytest.approx(reconstruction - kl, rel=1e-5)
    assert history.column("nothing") == ([], [])
    assert history.best_checkpoint is None
    assert history.last_checkpoint is None


def test_validation_weights_every_sequence_equally() -> None:
    """A mean of batch means would favour the one sequence of the last batch."""
    model, guide = start()
    with torch.no_grad():
        for encoder in (guide.z_encoder, guide.u_encoder):
            encoder.network[-1].bias[4:] = -30.0  # no spread, so that draws do not matter
    x = torch.cat([moving_bar(8), 1 - moving_bar(1)])
    with torch.no_grad():
        expected = float(ELBO(model, guide)(x).elbo.mean()) / 4
        batches = [float(ELBO(model, guide)(part).elbo.mean()) / 4 for part in x.split(8)]
    history = quick(model, guide, x, validation=x, max_epochs=1, optimizer=still, batch_size=8)
    (_, (found, *_)) = history.column("val/elbo")
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(sum(batches) / 2 - expected) > 1e-3 * abs(expected)


def still(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)  # type: ignore[arg-type]


def rising(parameters: object) -> torch.optim.Optimizer:
    """An optimizer that makes everything worse."""
    return torch.optim.SGD(parameters, lr=0.02, maximize=True)  # type: ignore[arg-type]


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Snapshots(Callback):
    """Weights at the end of every validation, to see which ones are left in place."""

    def __init__(self) -> None:
        self.taken: list[list[Tensor]] = []

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.taken.append(weights(module))


def test_the_best_weights_are_left_in_place(tmp_path: Path) -> None:
    model, guide = start()
    x = moving_bar()
    snapshots = Snapshots()
    history = quick(
        model, guide, x, validation=x, max_epochs=4, optimizer=rising, directory=tmp_path, callbacks=[snapshots]
    )
    _, elbo = history.column("val/elbo")
    best = elbo.index(max(elbo))
    assert best < 3  # it went downhill, so best and last differ
    assert equal(weights(model, guide), snapshots.taken[best])
    assert not equal(weights(model, guide), snapshots.taken[-1])
    assert history.best_checkpoint == tmp_path / "checkpoints" / "best.ckpt"
    assert history.last_checkpoint == tmp_path / "checkpoints" / "last.ckpt"
    assert list(tmp_path.rglob("metrics.csv"))
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_the_last_checkpoint_is_of_the_last_epoch(tmp_path: Path) -> None:
    """Otherwise a resumed run goes back to its best epoch, and repeats what came after for ever."""
    model, guide = start()
    x = moving_bar()
    history = quick(model, guide, x, validation=x, max_epochs=4, optimizer=rising, directory=tmp_path)
    last = torch.load(history.last_checkpoint, weights_only=True)
    assert last["epoch"] == 3
    assert last["global_step"] == 12


def test_a_run_that_ends_within_an_epoch_is_validated_too() -> None:
    x = moving_bar()
    assert quick(*start(), x, validation=x, max_steps=2).column("val/elbo")[0] == [2]


def test_the_best_weights_are_left_in_place_without_a_directory() -> None:
    """What the docstring of fit promises with validation data, whatever the directory."""
    model, guide = start()
    x = moving_bar()
    snapshots = Snapshots()
    history = quick(model, guide, x, validation=x, max_epochs=4, optimizer=rising, callbacks=[snapshots])
    _, elbo = history.column("val/elbo")
    assert equal(weights(model, guide), snapshots.taken[elbo.index(max(elbo))])


def test_without_validation_the_last_weights_stay(tmp_path: Path) -> None:
    model, guide = start()
    history = quick(model, guide, optimizer=rising, directory=tmp_path)
    assert history.best_checkpoint is None
    state = torch.load(history.last_checkpoint, weights_only=True)["state_dict"]
    assert equal(list(state.values()), list(Fitting(model, guide).state_dict().values()))


def test_a_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    x = moving_bar()
    model, guide = start()
    whole = quick(model, guide, x, validation=x, max_epochs=8, directory=tmp_path / "whole")
    model, guide = start()
    first = quick(model, guide, x, validation=x, max_epochs=4, directory=tmp_path / "parts")
    steps = first.column("val/elbo")[0]
    assert steps[-1] == 12
    # A fresh model and guide: everything comes from the file.
    model, guide = start(seed=5)
    second = quick(
        model, guide, x, validation=x, max_epochs=8, directory=tmp_path / "parts", resume=first.last_checkpoint
    )
    for column in ("train/elbo", "val/elbo"):
        assert second.column(column)[0] == whole.column(column)[0]
        assert len(set(second.column(column)[0])) == len(second.column(column)[0])
    earlier = first.column("val/elbo")[1]
    assert second.column("val/elbo")[1][: len(earlier)] == earlier
    assert second.seconds > first.seconds
    state = torch.load(second.last_checkpoint, weights_only=True)
    assert state["global_step"] == 24
    assert state["epoch"] == 7


def test_resuming_takes_the_weights_and_the_optimizers_state(tmp_path: Path) -> None:
    """With lr 0 after resuming, the weights are the checkpoint's."""
    x = moving_bar()
    model, guide = start()
    first = quick(model, guide, x, optimizer=still, directory=tmp_path)
    expected = weights(model, guide)
    model, guide = start(seed=5)
    assert not equal(weights(model, guide), expected)
    quick(model, guide, x, max_epochs=3, optimizer=still, directory=tmp_path, resume=first.last_checkpoint)
    assert equal(weights(model, guide), expected)


def test_nothing_is_written_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, guide = start()
    x = moving_bar()
    quick(model, guide, x, validation=x, patience=1)
    assert list(tmp_path.iterdir()) == []


def test_a_second_fit_into_the_same_directory_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    x = moving_bar()
    first = quick(*start(), x, validation=x, directory=tmp_path)
    assert first.best_checkpoint is not None
    assert first.last_checkpoint is not None
    before = first.best_checkpoint.read_bytes(), first.last_checkpoint.read_bytes()
    second = quick(*(parts := start(seed=5)), x, validation=x, directory=tmp_path, max_epochs=3)
    assert second.best_checkpoint == tmp_path / "checkpoints-v1" / "best.ckpt"
    assert second.last_checkpoint == tmp_path / "checkpoints-v1" / "last.ckpt"
    third = quick(*start(seed=6), x, validation=x, directory=tmp_path)
    assert third.last_checkpoint == tmp_path / "checkpoints-v2" / "last.ckpt"
    assert (first.best_checkpoint.read_bytes(), first.last_checkpoint.read_bytes()) == before
    # Each goes on where it is, logs included, and ends with its own best weights.
    again = quick(
        *start(), x, validation=x, directory=tmp_path, max_epochs=5, resume=second.last_checkpoint, optimizer=None
    )
    assert again.last_checkpoint == second.last_checkpoint
    assert again.column("val/elbo")[1][:3] == second.column("val/elbo")[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{what}{version}" for what in ("checkpoints", "logs") for version in ("", "-v1", "-v2")
    ]
    assert len(list((tmp_path / "logs-v1").rglob("metrics.csv"))) == 2
    assert not equal(weights(*parts), weights(*start()))


@pytest.mark.parametrize("kept", ["best.ckpt", "last.ckpt"])
def test_a_folder_with_any_checkpoint_of_another_fit_is_taken(kept: str, tmp_path: Path) -> None:
    x = moving_bar()
    quick(*start(), x, validation=x, directory=tmp_path)
    folder = tmp_path / "checkpoints"
    before = (folder / kept).read_bytes()
    next(path for path in folder.iterdir() if path.name != kept).unlink()
    second = quick(*start(seed=5), x, validation=x, directory=tmp_path)
    assert second.best_checkpoint == tmp_path / "checkpoints-v1" / "best.ckpt"
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(kept, before)]


class Another(Callback):
    """Starts another fit into the same directory while one is under way."""

    def __init__(self, directory: Path, resume: Path | None = None) -> None:
        self.directory, self.resume, self.history = directory, resume, History()
        self.parts = start(seed=5)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:  # type: ignore[override]
        if trainer.global_step % 6 == 1:  # within the first epoch, of a resumed fit too
            self.history = quick(*self.parts, directory=self.directory, resume=self.resume)


def test_two_fits_at_once_into_one_directory_keep_apart(tmp_path: Path) -> None:
    other = Another(tmp_path)
    parts = start()
    history = quick(*parts, directory=tmp_path, callbacks=[other])
    assert history.last_checkpoint == tmp_path / "checkpoints" / "last.ckpt"
    assert other.history.last_checkpoint == tmp_path / "checkpoints-v1" / "last.ckpt"
    for kept, (model, guide) in ((history, parts), (other.history, other.parts)):
        state = torch.load(kept.last_checkpoint, weights_only=True)["state_dict"]  # type: ignore[arg-type]
        assert equal(list(state.values()), list(Fitting(model, guide).state_dict().values()))


def test_a_fit_that_somebody_goes_on_with_is_not_gone_on_with_twice(tmp_path: Path) -> None:
    last = quick(*start(), directory=tmp_path).last_checkpoint
    assert last is not None
    with pytest.raises(BlockingIOError, match="another fit is at work in") as caught:
        quick(*start(), directory=tmp_path, resume=last, max_epochs=4, callbacks=[Another(tmp_path, last)])
    assert "\n" not in str(caught.value)
    quick(*start(), directory=tmp_path, resume=last, max_epochs=4)  # let go of, whatever happened


def test_what_is_refused_leaves_no_folder_for_checkpoints_behind(tmp_path: Path) -> None:
    class Broken(Callback):
        def setup(self, *_: object, **__: object) -> None:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        quick(*start(), directory=tmp_path / "a" / "b", callbacks=[Broken()])
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["logs"]


def test_patience_stops_a_run_that_gets_no_better() -> None:
    model, guide = start()
    x = moving_bar()
    history = quick(model, guide, x, validation=x, max_epochs=30, optimizer=rising, patience=2)
    assert 2 <= len(history.column("val/elbo")[0]) <= 6


# --- resumed with another setting ------------------------------------------------------------------------------------


class Effect(Callback):
    """What a fit goes by in its first step, and what it is given."""

    def __init__(self) -> None:
        self.trainer: lightning.Trainer = None  # type: ignore[assignment]
        self.module: Fitting = None  # type: ignore[assignment]
        self.size, self.pixels, self.matmul, self.rate = 0, 0.0, "", 0.0
        self.patience: list[int] = []
        self.bar = False

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Fitting, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        if self.trainer is None:
            self.trainer, self.module, self.size = trainer, module, len(batch[0])
            self.pixels, self.matmul = float(batch[0].sum()), torch.get_float32_matmul_precision()
            self.bar = any(isinstance(one, ProgressBar) for one in trainer.callbacks)  # type: ignore[attr-defined]
            self.rate = trainer.optimizers[0].param_groups[0]["lr"]
            self.patience = [one.patience for one in trainer.callbacks if isinstance(one, EarlyStopping)]  # type: ignore[attr-defined]


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def sgd(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.5)


# Of each argument of fit: another value than then, and what shows that it is taken; or the words of its refusal.
CHANGED: dict[str, tuple[Callable[[Path], Any], Callable[[Effect, History], object] | str, object]] = {
    "model": (lambda _: TVAE(FRAME, 4, 2, 4, CapsuleRoll(4, 0), mu=3.0), "is of another model", None),
    "guide": (lambda _: FlowGuide(start()[0]), "is of another model", None),
    "data": (lambda _: torch.zeros(24, 4, *FRAME), lambda effect, _: effect.pixels, 0.0),
    "validation": (
        lambda _: torch.zeros(9, 4, *FRAME),
        lambda effect, _: len(effect.trainer.val_dataloaders.dataset),  # type: ignore[union-attr]
        9,
    ),
    "max_epochs": (lambda _: 4, lambda effect, _: effect.trainer.current_epoch, 4),
    "max_steps": (lambda _: 8, lambda effect, _: effect.trainer.global_step, 8),
    "batch_size": (lambda _: 4, lambda effect, _: effect.size, 4),
    "optimizer": (lambda _: sgd(0.25), lambda effect, _: effect.rate, 0.25),
    "schedule": (lambda _: cosine, r"schedule is none, this one .*CosineAnnealingLR", None),
    "objective": (lambda _: IWAE, lambda effect, _: type(effect.module.objective), IWAE),
    "warmup_steps": (lambda _: 99, lambda effect, _: effect.module.warmup_steps, 99),
    "beta": (lambda _: 0.5, lambda effect, _: effect.module.final_beta, 0.5),
    "num_particles": (lambda _: 3, lambda effect, _: effect.module.objective.num_particles, 3),
    "frame_dropout": (lambda _: 0.5, lambda effect, _: effect.module.frame_dropout, 0.5),
    "subsample_frames": (lambda _: 2, lambda effect, _: effect.module.subsample_frames, 2),
    "gradient_clip": (lambda _: 0.5, lambda effect, _: effect.trainer.gradient_clip_val, 0.5),
    "patience": (lambda _: 9, lambda effect, _: effect.patience, [9]),
    "directory": (
        lambda path: path / "b",
        lambda _, history: history.last_checkpoint.parts[-3:-1],
        ("b", "checkpoints"),
    ),  # type: ignore[union-attr]
    "resume": (lambda path: path / "none.ckpt", "cannot resume, .* does not exist", None),
    "seed": (lambda _: 2, "cannot resume with seed=2, the checkpoint is of a fit with seed=1", None),
    "matmul_precision": (lambda _: "medium", lambda effect, _: effect.matmul, "medium"),
    "capture": (lambda _: True, lambda effect, _: effect.module.capture is not None, True),
    "compile": (lambda _: True, lambda effect, _: type(effect.module.capture.recorder), Compiled),
    "progress": (lambda _: True, lambda effect, _: effect.bar, True),
    "trainer": (
        lambda _: TrainerOptions("cpu", accumulate_grad_batches=3),
        lambda effect, _: effect.trainer.accumulate_grad_batches,
        3,
    ),
}


def test_every_argument_of_fit_has_its_place_here() -> None:
    signature = inspect.signature(fit).parameters.values()
    assert [one.name for one in signature if one.kind is not one.VAR_KEYWORD] == [*CHANGED]


@pytest.mark.parametrize("name", CHANGED)
def test_another_setting_than_then_is_taken_or_refused(name: str, tmp_path: Path) -> None:
    model, guide = start()
    options: dict[str, Any] = {
        "model": model,
        "guide": guide,
        "data": moving_bar(),
        "validation": moving_bar(8),
        "max_epochs": 2,
        "optimizer": sgd(0.001),
        "patience": 2,
        "directory": tmp_path / "a",
        "seed": 1,
        "progress": False,
        "trainer": TrainerOptions("cpu"),
    }
    options["resume"] = fit(**options).last_checkpoint
    make, shows, expected = CHANGED[name]
    effect = Effect()
    options |= {"max_epochs": 3, name: make(tmp_path)}
    if name == "model":
        options["guide"] = default_guide(options["model"])
    options["trainer"] = replace(options["trainer"], callbacks=[effect])
    if isinstance(shows, str):
        with pytest.raises((ValueError, FileNotFoundError), match=shows) as caught:
            fit(**options)
        assert "\n" not in str(caught.value)
    else:
        assert shows(effect, fit(**options)) == expected


def two_stages(first: int, rate: float) -> Callable[[torch.optim.Optimizer, int], Any]:
    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        parts = [
            torch.optim.lr_scheduler.LinearLR(optimizer, rate, total_iters=first),
            torch.optim.lr_scheduler.ExponentialLR(optimizer, rate),
        ]
        return torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [first])

    return schedule


LR = torch.optim.lr_scheduler
SCHEDULES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[[Any], object], object]] = {
    "StepLR": (
        lambda o, _: LR.StepLR(o, 3, 0.9),
        lambda o, _: LR.StepLR(o, 5, 0.8),
        lambda s: (s.step_size, s.gamma),
        (5, 0.8),
    ),
    "CosineAnnealingLR": (
        lambda o, _: LR.CosineAnnealingLR(o, 6),
        lambda o, _: LR.CosineAnnealingLR(o, 60),
        lambda s: s.T_max,
        60,
    ),
    "WarmupCosineLR": (
        lambda o, _: WarmupCosineLR(o, 6, warmup_steps=2),
        lambda o, _: WarmupCosineLR(o, 60, warmup_steps=4),
        lambda s: (s.T_max, s.warmup_steps),
        (60, 4),
    ),
    "ReduceLROnPlateau": (
        lambda o, _: LR.ReduceLROnPlateau(o, "max", patience=2),
        lambda o, _: LR.ReduceLROnPlateau(o, "max", patience=7),
        lambda s: s.patience,
        7,
    ),
    "OneCycleLR": (
        lambda o, _: LR.OneCycleLR(o, 0.01, total_steps=12),
        lambda o, _: LR.OneCycleLR(o, 0.01, total_steps=40),
        lambda s: (s.total_steps, s._schedule_phases[1]["end_step"]),
        (40, 39),
    ),
    "SequentialLR": (
        two_stages(3, 0.5),
        two_stages(7, 0.25),
        lambda s: (s._schedulers[0].total_iters, s._schedulers[1].gamma, s._milestones),
        (7, 0.25, [7]),
    ),
}


@pytest.mark.parametrize(("then", "now", "shows", "expected"), SCHEDULES.values(), ids=SCHEDULES)
def test_another_setting_of_a_schedule_is_taken(
    then: Any, now: Any, shows: Callable[[Any], object], expected: object, tmp_path: Path
) -> None:
    x = moving_bar()
    options: dict[str, Any] = {"validation": x, "directory": tmp_path, "optimizer": sgd(0.001)}
    last = quick(*start(), x, schedule=then, **options).last_checkpoint
    effect = Effect()
    quick(*start(), x, schedule=now, max_epochs=3, resume=last, callbacks=[effect], **options)
    (config,) = effect.trainer.lr_scheduler_configs
    assert shows(config.scheduler) == expected
    assert config.scheduler.last_epoch == 9 if "Plateau" not in type(config.scheduler).__name__ else 3


@pytest.mark.parametrize("on_the_device", [False, True])
def test_another_learning_rate_is_taken_as_a_number_and_as_a_tensor(on_the_device: bool, tmp_path: Path) -> None:
    def adam(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
        return lambda p: torch.optim.Adam(p, lr=torch.tensor(rate) if on_the_device else rate)

    last = quick(*start(), optimizer=adam(1e-3), directory=tmp_path).last_checkpoint
    effect = Effect()
    with pytest.warns(UserWarning, match=r"^fit: the optimizer goes on with lr=0.0001, which was 0.001\.$"):
        quick(*start(), optimizer=adam(1e-4), max_epochs=3, resume=last, callbacks=[effect], directory=tmp_path)
    assert float(effect.rate) == pytest.approx(1e-4)


class Counting(EarlyStopping):
    """A callback that keeps how far it is under the name of an argument of its constructor."""

    def __init__(self, patience: int, count: int = 0) -> None:
        super().__init__("val/elbo", mode="max", patience=patience)
        self.count = count

    def on_train_epoch_end(self, *_: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.count = state_dict["count"]


def test_a_users_callback_has_its_new_settings_and_goes_on_from_where_it_was(tmp_path: Path) -> None:
    x = moving_bar()
    last = quick(*start(), x, validation=x, directory=tmp_path, callbacks=[Counting(2)]).last_checkpoint
    state = torch.load(last, weights_only=True)["callbacks"]  # type: ignore[arg-type]
    assert state["Settings"][Counting(2).state_key]["patience"] == 2
    own, effect = Counting(10), Effect()
    quick(
        *start(),
        x,
        validation=x,
        directory=tmp_path,
        callbacks=[own, effect],
        max_epochs=3,
        resume=last,
        progress=False,
    )
    assert effect.patience == [10]
    assert own.patience == 10
    assert own.count == 3


# --- warm-up, schedule, clipping, particles --------------------------------------------------------------------------


class Betas(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Fitting, *_: object) -> None:  # type: ignore[override]
        self.seen.append(module.beta)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (4, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (0, [1.0] * 12),
        (1, [1.0] * 12),
        (1500, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1, 1, 1, 1, 1]),  # no longer than half the run
    ],
)
def test_the_kl_warms_up(warmup: int, expected: list[float]) -> None:
    model, guide = start()
    betas = Betas()
    quick(model, guide, max_epochs=4, warmup_steps=warmup, callbacks=[betas])
    assert betas.seen == pytest.approx(expected)


def test_beta_weighs_the_kl_in_the_loss() -> None:
    model, guide = start()
    module = Fitting(model, guide, warmup_steps=4)
    x = moving_bar(8)
    torch.manual_seed(3)
    terms = module.objective(x)
    for beta in (0.25, 1.0):
        torch.manual_seed(3)
        fixed = type("Fixed", (Fitting,), {"beta": beta})
        other = fixed(model, guide)
        loss = other.training_step((x,), 0)
        expected = (beta * terms.kl - terms.reconstruction).mean().detach() / 4
        assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_beta_is_what_the_warm_up_ends_at() -> None:
    assert Fitting(*start(), warmup_steps=8, beta=4.0).beta == pytest.approx(4 / 8)
    assert Fitting(*start(), warmup_steps=0, beta=4.0).beta == 4.0


@pytest.mark.parametrize("objective", [IWAE, DReG])
def test_other_objectives_are_followed_and_reported(objective: type[Objective]) -> None:
    model, guide = start()
    history = quick(model, guide, objective=objective, num_particles=4, max_epochs=8)
    steps, bound = history.column("train/objective")
    _, elbo = history.column("train/elbo")
    assert steps
    assert all(tight > loose for tight, loose in zip(bound, elbo, strict=True))


def test_an_objective_of_ones_own_is_a_class() -> None:
    class Reconstruction(ELBO):
        """Leaves the KL out."""

        def forward(self, x: torch.Tensor, observed: torch.Tensor | None = None) -> Terms:
            terms = super().forward(x, observed)
            return terms._replace(objective=terms.reconstruction)

    model, guide = start()
    history = quick(model, guide, objective=Reconstruction, max_epochs=8)
    assert history.rows
    assert history.column("train/objective")[1] == pytest.approx(history.column("train/reconstruction")[1])


def test_a_module_outside_a_trainer_warms_up_over_its_own_length() -> None:
    assert Fitting(*start(), warmup_steps=8).beta == pytest.approx(1 / 8)


def test_the_schedule_is_stepped_once_a_step() -> None:
    lengths, rates = [], []

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        lengths.append(steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)

    class Rates(Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:  # type: ignore[override]
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    quick(*start(), schedule=schedule, callbacks=[Rates()])
    assert lengths == [6]
    assert rates == pytest.approx([1e-3 * (1 - step / 6) for step in range(6)])


def test_gradients_are_clipped_by_their_norm() -> None:
    norms = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer: lightning.Trainer, module: Fitting, *_: object) -> None:  # type: ignore[override]
            norms.append(float(torch.cat([p.grad.flatten() for p in module.parameters()]).norm()))

    # Lightning clips after this hook, so the step is what tells: with SGD at lr 1 it is as long as the gradient.
    model, guide = start()
    before = torch.cat([p.flatten() for p in weights(model, guide)])
    quick(
        model,
        guide,
        max_steps=1,
        gradient_clip=0.01,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        callbacks=[Norms()],
    )
    moved = torch.cat([p.flatten() for p in weights(model, guide)]) - before
    assert norms[0] > 0.02
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-2)


def test_max_steps_stops_within_an_epoch() -> None:
    betas = Betas()
    quick(*start(), max_steps=5, max_epochs=10, callbacks=[betas])
    assert len(betas.seen) == 5


# --- frames dropped --------------------------------------------------------------------------------------------------


def test_frame_dropout_hides_runs_of_frames_from_a_share_of_sequences() -> None:
    model = TVAE(FRAME, 6, 1, 6, CapsuleRoll(3))
    module = Fitting(model, MeanFieldGuide(model), frame_dropout=0.6)
    seen = module._context(torch.rand(4000, 6, *FRAME))
    assert seen is not None
    assert seen.shape == (4000, 6)
    assert seen.dtype == torch.bool
    assert (seen.sum(1) >= 1).all()
    # Runs are consecutive on the circle of frames: at most one beginning.
    beginnings = (seen & ~seen.roll(1, dims=1)).sum(1)
    assert (beginnings <= 1).all()
    # A run of all six frames hides nothing; so 0.6 · 5/6 = 0.5 of the sequences lose frames. Four standard errors of
    # 0.5 ± 0.0079: one false alarm in 15,000 seeds, and the lengths beside it (0.1 each, ± 0.0047) one in 3,000.
    lengths = seen.sum(1).bincount(minlength=7) / 4000
    assert abs(float(lengths[1:6].sum()) - 0.5) < 4 * 0.0079
    assert ((lengths[1:6] - 0.1).abs() < 4 * 0.0048).all()
    # Every frame is as often seen as any other.
    assert float(seen.float().mean(0).std()) < 0.02


def test_without_frame_dropout_everything_is_seen() -> None:
    assert Fitting(*start())._context(moving_bar()) is None
    model, guide = start()
    everything = Fitting(model, guide, frame_dropout=1.0)._context(torch.rand(500, 4, *FRAME))
    assert everything is not None
    # Only runs of full length see all: one in four, 125 ± 9.7; five standard errors.
    assert abs(int(everything.all(1).sum()) - 125) < 5 * 9.7


def test_frame_dropout_reaches_the_guide_in_training_and_not_in_validation() -> None:
    model, guide = start()
    masks: dict[bool, list[object]] = {True: [], False: []}
    inner = guide.posterior

    def posterior(x: Tensor, observed: Tensor | None = None) -> object:
        masks[torch.is_grad_enabled()].append(observed)
        return inner(x, observed)

    guide.posterior = posterior  # type: ignore[method-assign,assignment]
    x = moving_bar()
    quick(model, guide, x, validation=x, max_epochs=1, frame_dropout=1.0)
    assert [type(mask) for mask in masks[True]] == [Tensor] * 3
    assert masks[False] == [None] * 4  # and once before the first step, on the first batch


# --- data ------------------------------------------------------------------------------------------------------------


class Precisions(Callback):
    """Matrix products' precision at every step; raises in the second one where it is to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.seen: list[str] = []
        self.error = error

    def on_train_batch_start(self, *_: object) -> None:
        self.seen.append(torch.get_float32_matmul_precision())
        if self.error is not None and len(self.seen) == 2:
            raise self.error


@pytest.fixture
def high_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("given", "expected"), [("medium", "medium"), ("highest", "highest"), (None, "high")])
@pytest.mark.parametrize("error", [None, RuntimeError("a fault"), KeyboardInterrupt()], ids=repr)
def test_products_have_their_precision_while_the_fit_lasts(
    high_products: None, given: str | None, expected: str, error: BaseException | None
) -> None:
    steps = Precisions(error)
    with nullcontext() if error is None else pytest.raises(type(error)):
        quick(*start(), max_steps=3, matmul_precision=given, callbacks=[steps])
    assert steps.seen == [expected] * (3 if error is None else 2)
    assert torch.get_float32_matmul_precision() == "high"


class Module(lightning.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader([{"x": frames, "y": 0} for frames in moving_bar()], batch_size=8)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([{"x": frames, "y": 0} for frames in moving_bar(8)], batch_size=8)


DATA: dict[str, Callable[[], object]] = {
    "tensor": moving_bar,
    "loader of tuples": lambda: DataLoader(TensorDataset(moving_bar(), torch.zeros(24)), batch_size=8),
    "loader of tensors": lambda: DataLoader(list(moving_bar()), batch_size=8),
    "data module": Module,
}


@pytest.mark.parametrize("make", DATA.values(), ids=DATA)
def test_data_of_every_kind(make: Callable[[], object]) -> None:
    model, guide = start()
    before = weights(model, guide)
    history = quick(model, guide, make(), max_epochs=4)
    assert not equal(before, weights(model, guide))
    assert history.column("train/elbo")[0] == [10]
    assert bool(history.column("val/elbo")[0]) == (make is Module)


def test_what_was_loaded_is_trained_in_training_mode() -> None:
    model, guide = start()
    model.eval(), guide.eval()
    seen: list[bool] = []

    class Modes(Callback):
        def on_train_batch_start(self, *_: object) -> None:
            seen.append(model.decoder.training and all(module.training for module in guide.modules()))

    quick(model, guide, callbacks=[Modes()], max_epochs=1)
    assert seen
    assert all(seen)


def test_batch_of_a_batch() -> None:
    x = torch.zeros(1)
    for batch in (x, (x, 1), [x], {"x": x, "y": 1}):
        assert batch_of(batch).x is x


def test_fitting_a_copy_leaves_the_original_alone() -> None:
    model, guide = start()
    before = weights(model, guide)
    quick(copy.deepcopy(model), copy.deepcopy(guide))
    assert equal(before, weights(model, guide))


# --- complaints ------------------------------------------------------------------------------------------------------

COMPLAINTS: dict[str, tuple[type[Exception], str, dict]] = {
    "resume": (FileNotFoundError, "cannot resume, nowhere.ckpt does not exist", {"resume": "nowhere.ckpt"}),
    "patience": (ValueError, "patience needs validation data", {"patience": 3}),
    "dropout": (ValueError, "a share between 0 and 1", {"frame_dropout": 1.5}),
    "particles": (ValueError, "expected at least 1", {"num_particles": 0}),
    "no batch": (ValueError, "add the missing dimension", {"data": torch.rand(4, *FRAME)}),
    "other frames": (ValueError, "this model expects", {"data": torch.rand(2, 5, *FRAME)}),
    "bytes": (TypeError, "divide bytes by 255", {"data": torch.zeros(2, 4, *FRAME, dtype=torch.uint8)}),
    "validation": (ValueError, "this model expects", {"validation": torch.rand(2, 5, *FRAME)}),
}


@pytest.mark.parametrize(("error", "sentence", "options"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints_are_one_sentence(error: type[Exception], sentence: str, options: dict) -> None:
    with pytest.raises(error, match=sentence) as caught:
        quick(*start(), **options)
    assert "\n" not in str(caught.value)


VAGUE: dict[str, dict] = {
    "no data": {"data": torch.zeros(0, 4, *FRAME)},
    "no batch": {"batch_size": 0},
    "no epoch": {"max_epochs": 0},
    "no step": {"max_steps": 0},
    "no warm-up": {"warmup_steps": -1},
    "no precision": {"matmul_precision": "bfloat16"},
    "no x": {"data": DataLoader([{"y": 1}])},
}


@pytest.mark.parametrize("options", VAGUE.values(), ids=VAGUE)
def test_nothing_to_do_gets_one_sentence(options: dict) -> None:
    with pytest.raises(ValueError, match=r"^fit: ") as caught:
        quick(*start(), **options)
    assert "\n" not in str(caught.value)


class NotAnOptimum(torch.optim.SGD):
    """One step to infinity."""

    def step(self, closure: Callable | None = None) -> object:  # type: ignore[override]
        value = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.fill_(math.nan)
        return value


def with_nan() -> Tensor:
    x = moving_bar()
    x[3, 1] = math.nan
    return x


NOT_FINITE: dict[str, dict] = {
    "data": {"data": with_nan()},
    "data, few steps": {"data": with_nan(), "max_steps": 4},
    "weights": {"optimizer": lambda p: NotAnOptimum(p, lr=0.0)},
    "explosion": {"optimizer": lambda p: torch.optim.SGD(p, lr=1e30)},
}


@pytest.mark.parametrize("options", NOT_FINITE.values(), ids=NOT_FINITE)
def test_what_is_not_finite_gets_its_own_error(options: dict) -> None:
    with pytest.raises(NonFiniteError) as caught:
        quick(*start(), **({"max_epochs": 10} | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("max_steps", [1, 5, 30])
def test_a_likelihood_that_overflows_is_noticed_before_it_reaches_the_weights(max_steps: int) -> None:
    """Finite latents, infinite log-density: the check that fit makes itself, in the first step and in short runs."""
    torch.manual_seed(0)
    model = TVAE(FRAME, 4, 1, 4, CapsuleRoll(4, 0), likelihood=Normal(1e-25), mu=3.0)
    guide = MeanFieldGuide(model)
    with pytest.raises(NonFiniteError, match="log-probability of site 'x' is not finite at step 0") as caught:
        quick(model, guide, max_epochs=10, max_steps=max_steps)
    assert "\n" not in str(caught.value)
    assert all(torch.isfinite(weight).all() for weight in weights(model, guide))


def test_the_progress_bar_says_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    quick(*start(), max_epochs=4, progress=True)
    said = capsys.readouterr()
    assert "elbo" in said.err
    assert "12/12" in said.err
    assert "advert" not in said.out


def test_a_folder_that_is_moved_away_is_named_with_what_to_do(tmp_path: Path) -> None:
    class Moves(Callback):
        def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
            if trainer.current_epoch == 2:
                (tmp_path / "here").rename(tmp_path / "there")

    pair, x = start(), moving_bar()
    with pytest.raises(FileNotFoundError, match=r"here was moved or removed while .* last\.ckpt in") as caught:
        quick(*pair, x, validation=x, directory=tmp_path / "here", max_epochs=4, callbacks=[Moves()])
    assert caught.value.history.rows  # type: ignore[attr-defined]
    last = tmp_path / "there" / "checkpoints" / "last.ckpt"
    assert (
        quick(*pair, x, validation=x, directory=tmp_path / "there", max_epochs=4, resume=last).last_checkpoint == last
    )


def test_fewer_epochs_than_a_checkpoint_has_had_are_said(tmp_path: Path) -> None:
    quick(*start(), directory=tmp_path, max_epochs=3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.warns(UserWarning, match="has had 3 epochs, and max_epochs is 2, so that nothing is trained"):
        quick(*start(), directory=tmp_path, max_epochs=2, resume=last)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "fit: ")
        quick(*start(), directory=tmp_path, max_epochs=3, resume=last)
    with pytest.warns(
        UserWarning, match=r"nothing is trained with beta=0\.5, which was 1\.0, since the checkpoint is of"
    ):
        quick(*start(), directory=tmp_path, max_epochs=3, resume=last, beta=0.5)
