"""A ready Trainer does what a fit of options does, keeps what is its own, and is handed back; former keywords warn."""

from __future__ import annotations

import csv
import math
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pyro.optim
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from pyro_tvae import TVAE, CapsuleRoll, Guide, default_guide
from pyro_tvae.inference import (
    Annealing,
    Fitting,
    NonFiniteError,
    TrainerOptions,
    annealed_importance,
    bracket,
    fit,
    reverse_annealing,
)
from pyro_tvae.inference.checkpoints import WholeFiles
from pyro_tvae.inference.trainer import lent

CPU = TrainerOptions(accelerator="cpu")


def start(seed: int = 0) -> tuple[TVAE, Guide]:
    torch.manual_seed(seed)
    model = TVAE((1, 2, 3), 4, 1, 4, CapsuleRoll(4, 0), mu=3.0)
    return model, default_guide(model)


def sequences(n: int = 24) -> Tensor:
    return torch.rand(n, 4, 1, 2, 3, generator=torch.Generator().manual_seed(7))


def weights(*modules: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def rising(parameters: Any) -> torch.optim.Optimizer:
    """An optimizer that makes everything worse."""
    return torch.optim.SGD(parameters, lr=0.02, maximize=True)


class Witness(Callback):
    """Steps and plugins of a run, and the weights at the end of every validation."""

    def __init__(self) -> None:
        self.steps, self.plugins, self.taken = 0, set[type](), list[list[Tensor]]()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.steps += 1
        self.plugins.add(type(trainer.strategy.checkpoint_io))

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.taken.append(weights(module))


def own_trainer(folder: Path, *further: Callback, **options: Any) -> lightning.Trainer:
    """As somebody would make it: 50 steps between logs, two batches of sanity checks."""
    keeper = ModelCheckpoint(folder / "kept", filename="{epoch}", save_top_k=-1)
    options = {"max_epochs": 4, "accelerator": "cpu", "logger": CSVLogger(folder), **options}
    return lightning.Trainer(callbacks=[keeper, *further], enable_model_summary=False, **options)


def test_a_ready_trainer_trains_as_the_fits_own(tmp_path: Path) -> None:
    x = sequences()
    options: dict[str, Any] = {"validation": x[:8], "seed": 3, "frame_dropout": 0.5}
    expected = start()
    history = fit(*expected, x, max_epochs=4, progress=False, trainer=CPU, **options)
    parts, witness = start(), Witness()
    trainer = own_trainer(tmp_path, witness, log_every_n_steps=10)
    again = fit(*parts, x, trainer=trainer, **options)
    assert equal(weights(*parts), weights(*expected))
    assert again.rows == history.rows
    assert again.column("train/elbo")[0] == [10]
    assert again.seconds > 0
    assert witness.steps == trainer.global_step == 12
    assert trainer.current_epoch == 4


def test_a_sigterm_is_passed_on_without_waiting_for_the_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may wait for this one elsewhere, as at a barrier."""
    sent: list[int] = []

    class Launcher:
        def kill(self, number: int) -> None:
            sent.append(number)

    def waits(*_: object, **__: object) -> None:
        raise AssertionError("a collective within a signal's handler")

    trainer: Any = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", waits)
    trainer.strategy._launcher = Launcher()
    handlers = trainer._signal_connector
    with lent(trainer, [], []):
        for _ in range(2):
            handlers._sigterm_notifier_fn(signal.SIGTERM, None)
        assert sent == [signal.SIGTERM]
        assert trainer.received_sigterm
    assert "_sigterm_notifier_fn" not in vars(handlers)


def test_what_is_the_trainers_own_works(tmp_path: Path) -> None:
    witness, x = Witness(), sequences()
    trainer = own_trainer(tmp_path, witness, log_every_n_steps=2)
    history = fit(*start(), x, validation=x[:8], trainer=trainer, directory=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [f"epoch={k}.ckpt" for k in range(4)]
    rows = [row for path in tmp_path.rglob("metrics.csv") for row in csv.DictReader(path.open())]
    logged = {int(row["step"]) + 1: float(row["train/elbo"]) for row in rows if row["train/elbo"]}
    assert logged == pytest.approx(dict(zip(*history.column("train/elbo"), strict=True)), rel=1e-5)
    assert [*logged] == [2, 4, 6, 8, 10, 12]
    assert not (tmp_path / "run" / "logs").exists()
    # The fit's own checkpoints lie where they always do, and the Trainer's can be gone on from, too.
    assert history.best_checkpoint == tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert history.last_checkpoint == tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert witness.plugins == {WholeFiles}


@pytest.mark.parametrize("file", ["kept/epoch=1.ckpt", "run/checkpoints/last.ckpt"])
def test_a_fit_with_a_ready_trainer_is_gone_on_with_bit_by_bit(file: str, tmp_path: Path) -> None:
    x, whole, parts = sequences(), start(), start(seed=9)
    options: dict[str, Any] = {"seed": 1, "warmup_steps": 0, "frame_dropout": 0.5}
    history = fit(*whole, x, trainer=own_trainer(tmp_path / "whole"), **options)
    fit(*start(), x, trainer=own_trainer(tmp_path, max_epochs=2), directory=tmp_path / "run", **options)
    again = fit(*parts, x, resume=tmp_path / file, trainer=own_trainer(tmp_path / "again"), **options)
    assert equal(weights(*parts), weights(*whole))
    assert again.rows == history.rows


def test_a_callback_that_goes_on_from_another_fit_is_told_of() -> None:
    """As of seeds that share one EarlyStopping, of which all but the first end after an epoch."""
    x, stopping = sequences(), EarlyStopping("val/elbo", patience=1, mode="max")
    options: dict[str, Any] = {"validation": x[:8], "max_epochs": 3, "progress": False}
    worse = torch.optim.SGD
    options["optimizer"] = lambda parameters: worse(parameters, lr=0.01, maximize=True)
    fit(*start(), x, trainer=TrainerOptions("cpu", callbacks=[stopping, Witness()]), **options)
    with pytest.warns(UserWarning, match=r"^fit: EarlyStopping has been in a fit before, and goes on from its state"):
        fit(*start(), x, trainer=TrainerOptions("cpu", callbacks=[stopping, Witness()]), **options)


@pytest.mark.parametrize("written", [False, True])
def test_the_best_weights_are_left_in_place(written: bool, tmp_path: Path) -> None:
    parts, witness, x = start(), Witness(), sequences()
    directory = tmp_path / "run" if written else None
    trainer = own_trainer(tmp_path, witness)
    history = fit(*parts, x, validation=x, trainer=trainer, optimizer=rising, directory=directory, warmup_steps=0)
    elbo = history.column("val/elbo")[1]
    best = elbo.index(max(elbo))
    assert best < 3
    assert equal(weights(*parts), witness.taken[best])


def test_patience_and_the_watch_for_infinities_hold(tmp_path: Path) -> None:
    x = sequences()
    trainer = own_trainer(tmp_path, max_epochs=30)
    history = fit(*start(), x, validation=x, trainer=trainer, optimizer=rising, patience=2, warmup_steps=0)
    assert len(history.column("val/elbo")[0]) < 8
    before = [*(trainer := own_trainer(tmp_path)).callbacks]  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError) as caught:
        fit(*start(), x, trainer=trainer, optimizer=lambda p: torch.optim.SGD(p, lr=1e30))
    assert "the history is the error's attribute" in caught.value.__notes__[0]
    assert trainer.callbacks == before  # type: ignore[attr-defined]


def test_a_ready_trainer_is_handed_back(tmp_path: Path) -> None:
    trainer: Any = own_trainer(tmp_path, Witness())
    before, loggers = [*trainer.callbacks], trainer.loggers
    x = sequences()
    fit(*start(), x, validation=x[:8], trainer=trainer)
    assert trainer.callbacks == before
    assert trainer.loggers == loggers
    assert type(trainer.strategy.checkpoint_io) is TorchCheckpointIO
    module = Fitting(*start())
    loader: Any = torch.utils.data.DataLoader(x, batch_size=8)
    (found,) = trainer.validate(module, loader, verbose=False)
    assert math.isfinite(found["val/elbo"])
    trainer.fit_loop.max_epochs = 6  # and it can be told to go on
    fit(*start(), x, trainer=trainer)
    assert trainer.current_epoch == 6


def test_a_bar_of_the_trainers_own_is_the_only_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(*start(), sequences(), trainer=own_trainer(tmp_path))
    said = capsys.readouterr()
    assert "fit:" not in said.err
    fit(*start(), sequences(), trainer=own_trainer(tmp_path, enable_progress_bar=False))
    assert "fit:" in capsys.readouterr().err


def ended(folder: Path) -> lightning.Trainer:
    trainer = own_trainer(folder, max_epochs=1)
    fit(*start(), sequences(), trainer=trainer)
    return trainer


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (own_trainer, {"max_epochs": 3}, "max_epochs=3 beside a ready Trainer, which has its own"),
        (own_trainer, {"gradient_clip": 1.0}, "gradient_clip=1.0 beside a ready Trainer"),
        (lambda _: lightning.Trainer(barebones=True), {}, "the Trainer is barebones"),
        (ended, {}, "nothing left to do after 1 epochs and 3 steps"),
        (lambda _: "gpu", {}, "trainer is of type str; expected TrainerOptions"),
        (lambda _: TrainerOptions, {}, "trainer is of type type; expected TrainerOptions"),
        (lambda _: CPU, {"devices": 1}, "devices=… beside trainer; expected trainer=TrainerOptions"),
    ],
)
def test_what_does_not_fit_a_trainer_is_said(
    make: Callable[[Path], Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        fit(*start(), sequences(), **options, trainer=make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches is 0"),
        ({"logger": "wandb"}, "logger is 'wandb'"),
        ({"callbacks": [3]}, "expected a list of callbacks"),
    ],
)
def test_options_are_looked_at_when_they_are_given(options: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        TrainerOptions(**options)


def scaled(**options: Any) -> lightning.Trainer:
    """float16 with scaled gradients, as on a GPU."""
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    return lightning.Trainer(accelerator="cpu", plugins=[plugin], max_epochs=1, logger=False, **options)


def test_gradients_scaled_for_float16_are_clipped_or_the_optimizer_is_refused() -> None:
    parts, x = start(), sequences()
    trainer = scaled(gradient_clip_val=1e-3, enable_checkpointing=False)
    fit(*parts, x, progress=False, trainer=trainer)
    assert not equal(weights(*parts), weights(*start()))
    assert not trainer.optimizers[0].param_groups[0]["fused"]
    fused = [
        (lambda p: torch.optim.Adam(p, fused=True), {"gradient_clip_val": 1.0}),
        (pyro.optim.Adam({"fused": True}, {"clip_norm": 1.0}), {}),
    ]
    for optimizer, clipped in fused:
        with pytest.raises(
            ValueError, match=r"make the Adam with fused=False, leave gradient clipping out, or"
        ) as said:
            fit(*start(), x, optimizer=optimizer, progress=False, trainer=scaled(enable_checkpointing=False, **clipped))
        assert "\n" not in str(said.value)


def test_without_clipping_a_fused_optimizer_trains_in_float16() -> None:
    parts, trainer = start(), scaled(enable_checkpointing=False)
    fit(*parts, sequences(), progress=False, trainer=trainer)
    assert trainer.optimizers[0].param_groups[0]["fused"]
    assert not equal(weights(*parts), weights(*start()))


def test_callbacks_that_write_checkpoints_need_no_directory(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, filename="mine")
    fit(*start(), sequences(), max_epochs=1, progress=False, trainer=TrainerOptions("cpu", callbacks=[keeper]))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.ckpt"]


# --- former keywords -------------------------------------------------------------------------------------------------


def test_former_keywords_of_fit_do_what_they_did(tmp_path: Path) -> None:
    x, runs = sequences(), []
    former: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "accumulate_grad_batches": 2,
        "precision": "bf16-mixed",
    }
    with pytest.warns(
        DeprecationWarning, match=r"is now fit\(trainer=TrainerOptions\(accelerator=…, devices=…"
    ) as said:
        fit(*(parts := start()), x, max_epochs=3, seed=1, progress=False, **former)
    assert said[0].filename == __file__
    runs.append(weights(*parts))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        fit(*(parts := start()), x, max_epochs=3, seed=1, progress=False, trainer=TrainerOptions(**former))
    assert equal(runs[0], weights(*parts))


def test_former_keywords_of_annealing_do_what_they_did() -> None:
    parts, x = start(), sequences(2)
    few: dict[str, Any] = {"num_chains": 2, "num_temperatures": 4, "leapfrog_steps": 2}
    calls: list[Callable[..., Any]] = [
        lambda **options: annealed_importance(*parts, x, **options).log_p,
        lambda **options: reverse_annealing(*parts, 2, **options).log_p,
        lambda **options: bracket(*parts, 2, **options).gap,
    ]
    for call in calls:
        with pytest.warns(DeprecationWarning, match=r"annealing=Annealing\(num_chains=…, num_temperatures=…"):
            former = call(**few)
        assert torch.equal(former, call(annealing=Annealing(**few)))


@pytest.mark.parametrize(
    ("function", "misspelt", "said"),
    [
        (fit, {"max_epoch": 1}, "fit: there is no option 'max_epoch'; expected max_epochs=…."),
        (fit, {"acelerator": "cpu"}, "expected trainer=TrainerOptions(accelerator=…)."),
        (fit, {"zebra": 1}, "there is no option 'zebra'; expected some of batch_size, beta"),
        (annealed_importance, {"num_chain": 1}, "expected annealing=Annealing(num_chains=…)."),
        (bracket, {"sead": 1}, "bracket: there is no option 'sead'; expected seed=…."),
    ],
)
def test_a_misspelt_option_is_answered_in_a_sentence(
    function: Callable[..., Any], misspelt: dict[str, Any], said: str
) -> None:
    with pytest.raises(TypeError) as caught:
        function(*start(), sequences(2), **misspelt)
    assert said in str(caught.value)
