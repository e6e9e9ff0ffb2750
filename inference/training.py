"""Training: a Lightning module around an objective, and ``fit``, which runs it and hands the history back."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from pyro_tvae import TVAE, Guide

from .checkpoints import KEY, VERSION, Keeper, Patience, WholeFiles, read_checkpoint
from .memory import keep_freed_memory
from .objectives import ELBO, Objective, Terms
from .progress import progress_bar
from .randomness import RandomStates
from .subnormals import EVERY, sweep

__all__ = ["Fitting", "History", "NonFiniteError", "fit"]

Optimizers = Callable[[Iterable[Tensor]], Optimizer]
Objectives = Callable[[TVAE, Guide, int], Objective]
Schedules = Callable[[Optimizer, int], LRScheduler]
MATMUL_PRECISIONS = ("highest", "high", "medium")


class NonFiniteError(FloatingPointError):
    """The objective or its gradient became infinite or NaN."""


def adam(parameters: Iterable[Tensor]) -> Optimizer:
    """The default optimizer: Adam at 1e-3 in one fused kernel."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


class Fitting(lightning.LightningModule):
    """Maximises an objective per frame, the weight of its KL rising linearly from 0 over the warm-up.

    Args:
        model: the generative program.
        guide: its posterior.
        optimizer: parameters -> torch optimizer.
        schedule: (optimizer, number of training steps) -> learning-rate scheduler stepped once a step, or None.
        warmup_steps: length of the KL warm-up; shortened to half the run where that is less.
        objective: (model, guide, num_particles) -> :class:`~pyro_tvae.inference.Objective`; ``ELBO``, ``DReG``, …
        num_particles: draws per sequence and step.
        beta: weight of the KL after the warm-up.
        frame_dropout: share of training sequences of which the guide sees only a run of consecutive frames, of random
            length and start, while all frames are scored: the bound holds for every q, and a guide that has met gaps
            can forecast.
        report_every: steps averaged into one reported training value.
        max_steps: gradient steps at most; −1 for no limit.
    """

    def __init__(
        self,
        model: TVAE,
        guide: Guide,
        *,
        optimizer: Optimizers | None = None,
        schedule: Schedules | None = None,
        warmup_steps: int = 1500,
        objective: Objectives = ELBO,
        num_particles: int = 1,
        beta: float = 1.0,
        frame_dropout: float = 0.0,
        report_every: int = 10,
        max_steps: int = -1,
    ) -> None:
        super().__init__()
        self.objective, self.final_beta = objective(model, guide, num_particles), beta
        self.optimizer, self.schedule = optimizer or adam, schedule
        if not 0 <= frame_dropout <= 1:
            raise ValueError(f"frame_dropout is {frame_dropout!r}; expected a share between 0 and 1.")
        self.warmup_steps, self.frame_dropout, self.report_every = warmup_steps, frame_dropout, report_every
        self.max_steps = max_steps
        self._recent: list[Tensor] = []

    @property
    def n_steps(self) -> float:
        """Length of the whole run in steps."""
        epochs = self.trainer.estimated_stepping_batches if self._trainer is not None else math.inf
        return min(epochs, self.max_steps) if self.max_steps >= 0 else epochs

    @property
    def beta(self) -> float:
        """Weight of the KL at the current step."""
        length = min(self.warmup_steps, self.n_steps / 2)
        return self.final_beta * (min(1.0, (self.global_step + 1) / length) if length >= 1 else 1.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._batch_idx = batch_idx
        x = frames_of(batch)
        self.objective.model.check(x)
        self.objective.beta = self.beta
        terms = self._terms(x, self._context(x), batch_idx)
        n_frames = self.objective.model.n_frames
        loss = -terms.objective.mean() / n_frames
        if not torch.isfinite(loss):  # before the optimizer can spread it into the weights
            remedy = "lower the learning rate, raise eps, or look at the data of that batch"
            term = "the log-probability of site 'x'"
            if terms.reconstruction.isfinite().all():
                term = "the KL of the latents"
                if terms.kl.isfinite().all():
                    term, remedy = (
                        type(self.objective).__name__,
                        "its reconstruction and KL are: look at what it does to them",
                    )
            raise NonFiniteError(f"{term} is not finite at {self._moment(batch_idx)}; {remedy}.")
        self._recent.append(torch.stack([term.mean().detach() / n_frames for term in terms]))
        if (self.global_step + 1) % self.report_every == 0:
            self._report_recent()
        return loss

    def _terms(self, x: Tensor, observed: Tensor | None, batch_idx: int) -> Terms:
        try:
            return self.objective(x, observed)
        except ValueError as error:
            if not any(words in str(error) for words in ("to satisfy the constraint", "to be within the support")):
                raise
            # A distribution was handed what it cannot take; its own message prints every number of the tensor.
            if x.isfinite().all() and ((x < 0) | (x > 1)).any():
                raise ValueError(
                    f"the pixels of batch {batch_idx} run from {float(x.min()):.3g} to {float(x.max()):.3g}; expected "
                    "those that the likelihood can give, 0 to 1 for all but Normal: rescale them."
                ) from None
            sound = bool(x.isfinite().all())
            cause = "an encoder's output" if sound else "the data"
            remedy = "lower the learning rate or set gradient_clip" if sound else "look at that batch, and mend it"
            raise NonFiniteError(f"{cause} is not finite at {self._moment(batch_idx)}; {remedy}.") from None

    def _moment(self, batch_idx: int) -> str:
        return f"step {self.global_step}, batch {batch_idx} of epoch {self.current_epoch}"

    def _context(self, x: Tensor) -> Tensor | None:
        """Frames the guide may see, (B, S); None for all."""
        if self.frame_dropout == 0:
            return None
        n_sequences, n_frames = x.shape[0], self.objective.model.n_frames
        length = torch.randint(1, n_frames + 1, (n_sequences, 1), device=x.device)
        wraps = self.objective.model.topography.boundary == "circular"
        starts = n_frames if wraps else n_frames + 1 - length
        start = (torch.rand(n_sequences, 1, device=x.device) * starts).long()
        whole = torch.rand(n_sequences, 1, device=x.device) >= self.frame_dropout
        return ((torch.arange(n_frames, device=x.device) - start) % n_frames < length) | whole

    def _report_recent(self) -> None:
        reconstruction, kl, objective = torch.stack(self._recent).mean(0).tolist()
        self._recent.clear()
        values = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl, "objective": objective}
        self.log_dict(values, prog_bar=True, logger=False)
        self.log_dict({f"train/{name}": value for name, value in values.items()} | {"beta": self.beta})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x = frames_of(batch)
        terms = Terms(*(term.mean() / self.objective.model.n_frames for term in self._terms(x, None, batch_idx)))
        values = {"val/elbo": terms.elbo, "val/reconstruction": terms.reconstruction, "val/kl": terms.kl}
        self.log_dict(values, batch_size=len(x), sync_dist=True)

    # Not the Trainer's own limit: with one, it resumes in the wrong epoch and stops early.
    def on_train_start(self) -> None:
        self._stop_at_the_limit()

    def on_train_batch_end(self, *_: Any) -> None:
        self._stop_at_the_limit()

    def _stop_at_the_limit(self) -> None:
        if 0 <= self.max_steps <= self.global_step:
            self.trainer.should_stop = True

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.global_step % EVERY == 0:  # before the step, so that a resumed run sweeps when one left alone does
            sweep(optimizer)
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return  # float16: the scaler leaves out steps with infinite gradients, and goes on
        gradients = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        # A bias sums up what the weight beside it multiplies, so that it tells of both, and costs nothing.
        telling = [
            gradient
            for name, gradient in gradients.items()
            if not name.endswith("weight") or f"{name.removesuffix('weight')}bias" not in gradients
        ]
        if not torch.nn.utils.get_total_norm(telling).isfinite():
            # The sum of squares overflows before its terms do: only what holds such a number is at fault.
            faulty = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
            if faulty:
                raise NonFiniteError(
                    f"the gradient of {faulty[0].removeprefix('objective.')} ({len(faulty)} of {len(gradients)} "
                    f"parameters) is not finite at {self._moment(self._batch_idx)}; lower the learning rate, raise eps "
                    "or look at the data of that batch; the weights are those before it."
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The values since the last report too: it averages steps of both sides of an interruption.
        checkpoint[KEY] = {"version": VERSION, "recent": list(self._recent)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._recent = [value.to(self.device) for value in checkpoint[KEY]["recent"]]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        if math.isinf(self.n_steps):
            raise ValueError("fit: a schedule needs to know the end of the run; give max_epochs or max_steps.")
        scheduler = self.schedule(optimizer, int(self.n_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def frames_of(batch: Any) -> Tensor:
    """The sequences of a batch: a tensor, the entry ``x`` of a mapping, or the first item of a tuple."""
    if isinstance(batch, Mapping):
        if "x" not in batch:
            raise ValueError(f"fit: a batch has the entries {', '.join(map(str, batch))}; expected one called x.")
        return batch["x"]
    return batch[0] if isinstance(batch, list | tuple) else batch


@dataclass
class History:
    """What a fit went through.

    Attributes:
        rows: one mapping per report, with ``step``, ``epoch`` and values in nats per frame (``train/elbo``,
            ``train/reconstruction``, ``train/kl``, ``val/elbo``, …).
        seconds: wall-clock time spent training, resumed parts included.
        best_checkpoint: file of the best validation ELBO, or None.
        last_checkpoint: file of the last epoch, or None.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    best_checkpoint: Path | None = None
    last_checkpoint: Path | None = None

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of one quantity."""
        rows = [row for row in self.rows if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]


class _Recorder(Callback):
    """Keeps the history, inside checkpoints too, so that a resumed run has all of it."""

    def __init__(self, history: History) -> None:
        self.history = history
        self._since = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._since = time.monotonic() - self.history.seconds

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Fitting, *_: Any) -> None:  # type: ignore[override]
        self.history.seconds = time.monotonic() - self._since
        if trainer.global_step % module.report_every == 0:
            self._take(trainer, "train/")

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._take(trainer, "val/")

    def _take(self, trainer: lightning.Trainer, prefix: str) -> None:
        metrics = trainer.callback_metrics if prefix == "val/" else trainer.logged_metrics
        row = {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}
        if row:
            self.history.rows.append({"step": trainer.global_step, "epoch": trainer.current_epoch, **row})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.history.rows, "seconds": self.history.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history.rows[:] = state_dict["rows"]
        self.history.seconds = state_dict["seconds"]


def fit(
    model: TVAE,
    guide: Guide,
    data: Tensor | DataLoader | lightning.LightningDataModule,
    *,
    validation: Tensor | DataLoader | None = None,
    max_epochs: int = 10,
    max_steps: int = -1,
    batch_size: int = 8,
    optimizer: Optimizers | None = None,
    schedule: Schedules | None = None,
    objective: Objectives = ELBO,
    warmup_steps: int = 1500,
    beta: float = 1.0,
    num_particles: int = 1,
    frame_dropout: float = 0.0,
    gradient_clip: float | None = None,
    patience: int | None = None,
    directory: str | Path | None = None,
    resume: str | Path | None = None,
    seed: int | None = None,
    accelerator: str = "auto",
    devices: int | str | list[int] = "auto",
    strategy: str = "auto",
    precision: str = "32-true",
    matmul_precision: str | None = None,
    progress: bool = True,
    logger: Logger | Sequence[Logger] | bool | None = True,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Fit model and guide by stochastic variational inference; they are trained in place.

    With validation data the weights with the best validation ELBO are the ones left in place.

    Args:
        model: the generative program.
        guide: its posterior.
        data: sequences (N, S, channel, height, width); or a loader of such batches (tensors, tuples that begin with
            one, or mappings with ``x``); or a Lightning data module.
        validation: the same for the validation split; a data module brings its own.
        max_epochs: passes over the data.
        max_steps: gradient steps at most; −1 for no limit.
        batch_size: sequences per step where ``data`` is a tensor.
        optimizer: parameters -> torch optimizer; Adam at 1e-3 by default.
        schedule: (optimizer, number of steps) -> learning-rate scheduler stepped once a step.
        objective: what is maximised, :class:`~pyro_tvae.inference.ELBO` by default; ``IWAE`` and ``DReG`` want
            ``num_particles`` above 1. Any (model, guide, num_particles) -> Objective. Validation goes by the ELBO.
        warmup_steps: steps over which the weight of the KL rises from 0.
        beta: weight of the KL after the warm-up; 1 for a bound of log p(x).
        num_particles: draws per sequence and step.
        frame_dropout: share of training sequences that the guide sees only in part, see :class:`Fitting`.
        gradient_clip: bound on the norm of the gradient.
        patience: stop after that many epochs without a better validation ELBO.
        directory: where checkpoints (``checkpoints/best.ckpt``, ``last.ckpt``) and logs (CSV, TensorBoard) go; None
            writes nothing.
        resume: a ``last.ckpt`` to go on from. With the other arguments as they were, the fit ends as one that was
            never stopped, bit by bit: weights, optimizer, schedule, order of the data and every random generator.
        seed: of everything random in the run.
        accelerator, devices, strategy, precision: as in Lightning's Trainer.
        matmul_precision: of matrix products while the fit lasts, as in ``torch.set_float32_matmul_precision``; None
            leaves what is set. With ``"medium"`` their operands are rounded to bfloat16, sums and all else are float32:
            faster on processors and GPUs that have instructions for it.
        progress: show a progress bar with ELBO, reconstruction and KL in nats per frame.
        logger: a Lightning logger, or several; True for CSV and TensorBoard in ``directory``, None or False for none.
        callbacks: further Lightning callbacks.

    Returns:
        The :class:`History`.

    Raises:
        ValueError: data that does not fit the model, or nothing to do.
        ValueError: ``resume`` is damaged, foreign, of another model or from a newer version.
        FileNotFoundError: ``resume`` does not exist.
        NonFiniteError: the objective or a gradient became infinite or NaN; the checkpoints are from before.
    """
    whole = {"max_epochs": max_epochs, "max_steps": max_steps, "batch_size": batch_size, "warmup_steps": warmup_steps}
    _check_numbers(whole | {"num_particles": num_particles}, {"beta": beta, "frame_dropout": frame_dropout})
    if min(max_epochs, max_steps) < -1 or 0 in (max_epochs, max_steps) or batch_size < 1 or min(warmup_steps, beta) < 0:
        raise ValueError(
            f"fit: {_named(whole | {'beta': beta})}; expected at least one epoch, step and sequence (-1 means no "
            "limit), warmup_steps >= 0 and a finite beta >= 0."
        )
    for name, value in {"patience": patience, "seed": seed}.items():
        if value is not None and not (isinstance(value, Integral) and 0 <= value < 2**32):
            raise ValueError(f"fit: {name} is {value!r}; expected a whole number from 0 to 4294967295, or None.")
    if matmul_precision not in (*MATMUL_PRECISIONS, None):
        expected = ", ".join(map(repr, MATMUL_PRECISIONS))
        raise ValueError(f"fit: matmul_precision is {matmul_precision!r}; expected {expected}, or None.")
    for name, maker, example in (
        ("optimizer", optimizer, "a function of the parameters that makes one, such as torch.optim.Adam"),
        ("schedule", schedule, "a function of the optimizer and the number of steps that makes one"),
        ("objective", objective, "a class or a function of model, guide and num_particles, such as DReG"),
    ):
        if maker is not None and (not callable(maker) or isinstance(maker, nn.Module)):
            made = "" if isinstance(maker, str) else ", not what it makes"
            raise TypeError(f"fit: {name} is of type {type(maker).__name__}; expected {example}{made}.")
    if gradient_clip is not None and not (isinstance(gradient_clip, Real) and 0 < gradient_clip < math.inf):
        raise ValueError(f"fit: gradient_clip is {gradient_clip!r}; expected a finite number above 0, or None.")
    for name, given in ({"data": data} | ({} if validation is None else {"validation": validation})).items():
        if not isinstance(given, Tensor | DataLoader | lightning.LightningDataModule):
            raise TypeError(f"fit: {name} is a {type(given).__name__}; expected a tensor, a loader or a data module.")
    for name, place in {"resume": resume, "directory": directory}.items():
        if not isinstance(place, str | Path | None):
            raise TypeError(f"fit: {name} is a {type(place).__name__}; expected a path.")
    keep_freed_memory()
    if seed is not None:
        lightning.seed_everything(seed, workers=True, verbose=False)
    module = Fitting(
        model,
        guide,
        optimizer=optimizer,
        schedule=schedule,
        objective=objective,
        warmup_steps=warmup_steps,
        beta=beta,
        num_particles=num_particles,
        frame_dropout=frame_dropout,
        max_steps=max_steps,
    ).train()  # a loaded model comes in evaluation mode, and Lightning trains it as it comes
    if resume is not None:
        read_checkpoint(resume, module)
    history = History()
    recorder = _Recorder(history)
    validates = validation is not None or isinstance(data, lightning.LightningDataModule)
    generators = [data.generator] if isinstance(data, DataLoader) and data.generator is not None else []
    hooks: list[Callback] = [recorder, RandomStates(generators), *callbacks]
    keeper, last, best = None, None, _Best()
    if directory is None and validates:
        hooks.append(best)
    if directory is not None:
        keeper = Keeper(
            Path(directory) / "checkpoints",
            filename="best",
            monitor="val/elbo" if validates else None,
            mode="max",
            enable_version_counter=False,
            resume=resume,
        )
        # A keeper of its own: Lightning's save_last copies the best one and so can lie epochs back.
        last = Keeper(keeper.dirpath, filename="last", enable_version_counter=False, resume=resume)
        hooks += [keeper, last] if validates else [last]
    if patience is not None:
        if not validates:
            raise ValueError("fit: patience needs validation data; pass validation=… or leave patience out.")
        hooks.append(Patience("val/elbo", mode="max", patience=patience))
    if progress:
        hooks.append(_Progress())
    if matmul_precision is not None:
        hooks.append(_Products(matmul_precision))
    logs = Path(directory or ".") / "logs"
    loggers: list[Logger] = []
    if logger is True:
        loggers = [] if directory is None else [CSVLogger(logs, "csv"), TensorBoardLogger(logs, "tensorboard")]
    elif logger:
        loggers = [logger] if isinstance(logger, Logger) else list(logger)
    with _quiet(), _plain_ends():
        trainer = lightning.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=max_epochs,
            callbacks=hooks,
            logger=loggers or False,
            log_every_n_steps=module.report_every,
            gradient_clip_val=gradient_clip,
            num_sanity_val_steps=0,
            enable_checkpointing=directory is not None,
            plugins=[WholeFiles()],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=not isinstance(data, lightning.LightningDataModule),
        )
        if isinstance(data, lightning.LightningDataModule):
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        else:
            unseen = None if validation is None else _loader(validation, model, batch_size, shuffle=False)
            loader = _loader(data, model, batch_size, shuffle=True)
            trainer.fit(module, loader, unseen, ckpt_path=resume, weights_only=True)
        if validates and not history.column("val/elbo")[0]:  # max_steps fell within the first epoch
            if isinstance(data, lightning.LightningDataModule):
                trainer.validate(module, datamodule=data, verbose=False)
            else:
                trainer.validate(module, unseen, verbose=False)
    if last is not None and last.best_model_path:
        history.last_checkpoint = Path(last.best_model_path)
    if keeper is not None and keeper.best_model_path:
        history.best_checkpoint = Path(keeper.best_model_path)
        checkpoint = read_checkpoint(keeper.best_model_path, module, "take the best weights")
        module.load_state_dict(checkpoint["state_dict"])
    elif best.weights:
        module.load_state_dict(best.weights)
    return history


class _Best(Callback):
    """The weights of the best validation ELBO, in memory, for fits that write nothing."""

    def __init__(self) -> None:
        self.elbo, self.weights = -math.inf, dict[str, Tensor]()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        elbo = float(trainer.callback_metrics["val/elbo"])
        if elbo > self.elbo:
            self.elbo, self.weights = elbo, {name: value.clone() for name, value in module.state_dict().items()}


class _Products(Callback):
    """The precision of matrix products for as long as a fit lasts, in each of its processes."""

    def __init__(self, precision: str) -> None:
        self.precision, self.before = precision, precision

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        torch.set_float32_matmul_precision(self.before)

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        torch.set_float32_matmul_precision(self.before)


class _Progress(Callback):
    """One bar over the whole run, in steps, with the latest values in nats per frame and the time that is left."""

    def on_train_start(self, trainer: lightning.Trainer, module: Fitting) -> None:  # type: ignore[override]
        total = module.n_steps
        self.bar = progress_bar(
            int(total) if math.isfinite(total) else None,
            "fit",
            shown=trainer.is_global_zero,
            initial=trainer.global_step,
            unit="step",
        )

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        values = {name: trainer.progress_bar_metrics.get(name) for name in ("elbo", "reconstruction", "kl")}
        self.bar.set_postfix(
            {name: f"{value:.1f}" for name, value in values.items() if value is not None}, refresh=False
        )
        self.bar.update()

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


def _loader(data: Tensor | DataLoader, model: TVAE, batch_size: int, shuffle: bool) -> DataLoader:
    if not isinstance(data, Tensor):
        return data
    if len(data) == 0:
        raise ValueError("fit: there are no sequences; expected at least one.")
    model.check(data)
    return DataLoader(TensorDataset(data), batch_size=batch_size, shuffle=shuffle)


def _check_numbers(whole: Mapping[str, object], real: Mapping[str, object]) -> None:
    integral = all(isinstance(value, Integral) and not isinstance(value, bool) for value in whole.values())
    if not integral or not all(isinstance(value, Real) and math.isfinite(value) for value in real.values()):
        raise ValueError(
            f"fit: {_named({**whole, **real})}; expected whole numbers, and finite ones for {' and '.join(real)}."
        )


def _named(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


@contextmanager
def _plain_ends() -> Iterator[None]:
    """Leave a fit as any other function is left: Lightning exits the process on Ctrl-C, and has errors of its own."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if isinstance(error, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    except MisconfigurationException as error:
        raise ValueError(f"fit: {' '.join(str(error).split())}") from None


class _quiet:
    """Lightning's advertisements and advice on workers, silenced for the length of a fit."""

    def __enter__(self) -> None:
        self._loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.WARNING)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        for message in (
            ".*does not have many workers.*",
            ".*exists and is not empty.*",
            ".*litlogger.*",
            ".*number of training batches.*smaller than the logging interval.*",
            ".*LeafSpec.*is deprecated.*",
            ".*validation_step.*but have no.*val_dataloader.*",
        ):
            warnings.filterwarnings("ignore", message)

    def __exit__(self, *error: Any) -> None:
        self._warnings.__exit__(*error)
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
