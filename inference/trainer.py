"""The Trainer of a fit: made from a few options or brought ready, and lent what a fit adds for as long as it runs."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy, StrategyRegistry
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pyro_tvae.files import free_name

from .checkpoints import WholeFiles

__all__ = [
    "TrainerOptions",
    "check_strategy",
    "file_loggers",
    "lent",
    "like",
    "make_trainer",
    "plain_ends",
    "quiet",
    "tell_of_used",
]

COPIES = (
    "trains in copies of this process, from which neither the history nor the best weights come home; in a script use "
    "strategy='ddp', in a notebook devices=1."
)

VARIABLE = "PL_TRAINER_"  # of defaults of Lightning's Trainer
COURSE = (
    *("FAST_DEV_RUN", "OVERFIT_BATCHES", "LIMIT_TRAIN_BATCHES", "LIMIT_VAL_BATCHES", "MAX_STEPS", "MIN_STEPS"),
    *("MIN_EPOCHS", "MAX_TIME", "VAL_CHECK_INTERVAL", "CHECK_VAL_EVERY_N_EPOCH", "RELOAD_DATALOADERS_EVERY_N_EPOCHS"),
    *("GRADIENT_CLIP_ALGORITHM", "BAREBONES", "NUM_NODES"),
)


@dataclass(frozen=True)
class TrainerOptions:
    """What :func:`fit` hands to Lightning's `Trainer <https://lightning.ai/docs/pytorch/stable/common/trainer.html>`_.

    Attributes:
        accelerator, devices, strategy, precision: as there; of the strategies those that keep the weights whole and
            leave this process among those that train: one device, or ``"ddp"`` in a script.
        accumulate_grad_batches: batches whose gradients are averaged into one step.
        callbacks: further Lightning callbacks.
        logger: loggers of Lightning's in the place of those in the fit's ``directory``; False for none.

    Raises:
        ValueError: accumulate_grad_batches is no whole number above 0.
        TypeError: callbacks or logger are no callbacks or loggers of Lightning's.

    Example:
        >>> TrainerOptions(devices=2, strategy="ddp").precision
        '32-true'
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    callbacks: Sequence[Callback] = ()
    logger: Logger | Sequence[Logger] | bool | None = None

    def __post_init__(self) -> None:
        batches: object = self.accumulate_grad_batches
        if not isinstance(batches, Integral) or isinstance(batches, bool) or batches < 1:
            raise ValueError(f"fit: accumulate_grad_batches is {batches!r}; expected a whole number of at least 1.")
        callbacks: Any = self.callbacks
        if not isinstance(callbacks, Sequence) or not all(isinstance(one, Callback) for one in callbacks):
            raise TypeError(f"fit: callbacks is {callbacks!r}; expected a list of callbacks of Lightning's.")
        loggers = (
            self.logger if isinstance(self.logger, Sequence) and not isinstance(self.logger, str) else [self.logger]
        )
        if self.logger not in (None, False) and not all(isinstance(one, Logger) for one in loggers):
            raise TypeError(
                f"fit: logger is {self.logger!r}; expected a logger of Lightning's, a list of them, False for none, or "
                "None."
            )


def make_trainer(
    options: TrainerOptions,
    *,
    max_epochs: int,
    gradient_clip: float | None,
    shares_data: bool,
) -> lightning.Trainer:
    """A Trainer for one fit, which draws no bar, and writes no checkpoints and no logs but those of the options.

    Each of several processes is given its share of the data where ``shares_data``; a data module sees to that itself.

    Raises:
        ValueError: see :func:`check_strategy`.
    """
    check_strategy(options.strategy)
    _check_environment()
    loggers: Any = options.logger
    make = partial(
        lightning.Trainer,
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        precision=options.precision,  # type: ignore[arg-type]
        max_epochs=max_epochs,
        callbacks=[*options.callbacks],
        logger=loggers or False,
        log_every_n_steps=10,
        gradient_clip_val=gradient_clip,
        accumulate_grad_batches=options.accumulate_grad_batches,
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(one, Checkpoint) for one in options.callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=shares_data,
    )
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        # At a signal it would write a checkpoint where the process was started, from which later fits there go on.
        make = partial(make, plugins=[SLURMEnvironment(auto_requeue=False)])
    try:
        return make()
    except MisconfigurationException as error:
        if "interactive" in str(error):  # it recommends copies of this process
            raise ValueError(f"fit: the strategy {options.strategy!r} {COPIES}") from None
        raise


def _check_environment() -> None:
    """Raise ValueError where a variable would make Lightning train otherwise than it is told and than is recorded."""
    for name, value in os.environ.items():
        if name.startswith(VARIABLE) and name.removeprefix(VARIABLE) in COURSE:
            raise ValueError(
                f"fit: {name}={value} in the environment would make Lightning train another course than this one, "
                f"which no file would say; leave it out (env -u {name} …), or make a Trainer of your own."
            )


def check_strategy(given: str | Strategy) -> None:
    """Raise ValueError where history and best weights would not come home, or where weights are not kept whole."""
    name: object = given if isinstance(given, str) else type(given).__name__
    if isinstance(given, Strategy):
        whole = isinstance(given, DDPStrategy | SingleDeviceStrategy)
        copies = isinstance(getattr(given, "launcher", None), _MultiProcessingLauncher)
        copies = copies or getattr(given, "_start_method", "popen") != "popen"
    elif str(given).lower() in StrategyRegistry:
        entry = StrategyRegistry[str(given).lower()]
        whole = entry["strategy"] in (DDPStrategy, SingleDeviceStrategy)
        copies = entry["init_params"].get("start_method", "popen") != "popen"
    else:
        return  # "auto", or a name that Lightning refuses
    if whole and copies:
        raise ValueError(f"fit: the strategy {name!r} {COPIES}")
    if not whole:
        raise ValueError(
            f"fit: the strategy {name!r} is none that fit can keep history, best weights and checkpoints with; "
            "expected 'auto', 'single_device' or 'ddp', which keep the weights whole."
        )


def file_loggers(folder: Path) -> list[Logger]:
    """Loggers beside a folder of checkpoints: those of ``checkpoints-v1`` are in ``logs-v1``."""
    logs = folder.with_name("logs" + folder.name.removeprefix("checkpoints"))
    return [CSVLogger(logs, "csv"), TensorBoardLogger(logs, "tensorboard")]


_begun: WeakKeyDictionary[Callback, str] = WeakKeyDictionary()  # the states of callbacks before their first fits


def tell_of_used(callbacks: Sequence[Callback], *, resumed: bool) -> None:
    """Warn of callbacks that go on with the state of another fit, as one EarlyStopping for several seeds does."""
    for callback in callbacks:
        state = repr(callback.state_dict())
        if _begun.setdefault(callback, state) != state and not resumed:  # a checkpoint brings a state of its own
            warnings.warn(
                f"fit: {type(callback).__name__} has been in a fit before, and goes on from its state of then; make "
                "one for each fit.",
                stacklevel=3,
            )


@contextmanager
def lent(trainer: Any, before: Sequence[Callback], after: Sequence[Callback]) -> Iterator[None]:
    """A Trainer with further callbacks before and after its own, and checkpoints that are written whole or not at all.

    What writes checkpoints comes last of all, so that they hold what the others did. A checkpoint plugin of the
    Trainer's stays. A process that trains alone writes its logs whatever SLURM_PROCID, as in one task of many, says.
    """
    own, strategy, signals = trainer.callbacks, trainer.strategy, trainer._signal_connector
    logs: Any = rank_zero_only
    plugin, rank = strategy.checkpoint_io, logs.rank
    if trainer.world_size == 1:
        logs.rank = 0
    trainer.callbacks = sorted([*before, *own, *after], key=lambda one: isinstance(one, Checkpoint))
    if trainer.is_global_zero:
        _keep_curves(trainer.loggers)
    signals._sigterm_notifier_fn = partial(_pass_on, trainer)
    if type(plugin) is TorchCheckpointIO:
        strategy.checkpoint_io = WholeFiles()
    try:
        yield
    finally:
        trainer.callbacks, strategy.checkpoint_io, logs.rank = own, plugin, rank
        vars(signals).pop("_sigterm_notifier_fn", None)  # that of its class is back


def _pass_on(trainer: Any, number: int, _: Any) -> None:
    """Send SIGTERM to the processes that this one has started.

    Lightning's own handler then broadcasts as well, wherever the signal finds it. The others may be in another
    collective, as in the barrier after a checkpoint, and all would wait for ever; its loop tells them at every batch.
    """
    signals, launcher = trainer._signal_connector, trainer.strategy.launcher
    if launcher is not None and not signals.received_sigterm:
        launcher.kill(number)
    signals.received_sigterm = True


def _keep_curves(loggers: Sequence[Logger]) -> None:
    """Put former curves aside that a CSVLogger with a version of the user's deletes where it begins.

    Without one, several processes that begin at the same moment would write into one ``version_0``: each makes its own.
    """
    for logger in loggers:
        if not isinstance(logger, CSVLogger | TensorBoardLogger) or logger._experiment is not None:
            continue
        if logger._version is None:
            if "://" not in str(logger.root_dir):
                _make_version(logger)
        elif isinstance(logger, CSVLogger):
            file = Path(logger.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            if file.is_file():
                former = file.rename(free_name(file))
                warnings.warn(f"fit: the curves that {file} held are in {former} now.", stacklevel=2)
                with warnings.catch_warnings():  # it would say that they will be deleted
                    warnings.filterwarnings("ignore", "Experiment logs directory")
                    _ = logger.experiment


def _make_version(logger: Any) -> None:
    """Make the folder of a logger's next version, one that is not there yet."""
    number = logger._get_next_version()
    while logger._version is None:
        logger._version = number
        try:
            Path(logger.log_dir).mkdir(parents=True)
        except FileExistsError:  # another process was faster
            logger._version, number = None, number + 1


@contextmanager
def plain_ends() -> Iterator[None]:
    """Leave a fit as any other function is left: Lightning exits the process on Ctrl-C, and has errors of its own.

    A Ctrl-C reaches the workers of loaders too: they leave it to this process, which tells them to end.
    """
    global _running
    _running += 1
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(f"fit: {' '.join(str(error).split())}") from None
    except (RuntimeError, SystemExit) as error:
        if isinstance(error, SIGTERMException):
            raise like(error, SystemExit(128 + signal.SIGTERM)) from None
        # A worker's end may be told of while the interruption that ended it is on its way up.
        if isinstance(error, SystemExit) or "DataLoader worker" in str(error):
            for cause in _contexts(error):
                if isinstance(cause, KeyboardInterrupt):
                    raise like(error, KeyboardInterrupt()) from None
                if isinstance(cause, SystemExit):
                    raise like(error, cause) from None
        raise
    finally:
        _running -= 1


_running = 0  # fits of this process


def _contexts(error: BaseException) -> Iterator[BaseException]:
    while error.__context__ is not None:
        error = error.__context__
        yield error


def like(error: BaseException, other: BaseException) -> BaseException:
    """Another error with the notes and the history of the first."""
    for note in getattr(error, "__notes__", ()):
        other.add_note(note)
    if hasattr(error, "history"):
        other.history = error.history  # type: ignore[attr-defined]
    return other


def _leave_interrupts() -> None:
    if _running:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_interrupts)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advertisements and advice on workers, silenced for the length of a fit."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",
            "Checkpoint directory .* exists and is not empty.*",
            ".*litlogger.*",
            ".*number of training batches.*smaller than the logging interval.*",
            ".*LeafSpec.*is deprecated.*",
            ".*validation_step.*but have no.*val_dataloader.*",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
