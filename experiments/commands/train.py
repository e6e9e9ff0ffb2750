"""The command ``train``: a run's folder filled, from its configuration to its page, or gone on with."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict

import pyro_tvae
from pyro_tvae.files import NO_ROOM
from pyro_tvae.storage import check_storable
from pyro_tvae.wording import in_words

from ..config.allowlist import PARTS_ONLY, Allowlist
from ..config.building import Parts, build, check_fit, fit_parts
from ..config.composition import FILES, PLACES, keys, located
from ..config.errors import ConfigurationError
from ..config.loggers import check_loggers, check_stored_loggers, files_only, log_folders
from ..config.processes import place_among
from ..datasets import SequenceDataModule
from ..interruption import goes_on_with
from ..runs.names import EVALUATION, HISTORY, PICTURE, PLAIN_VAE, REPORT, TRAINED, UNTRAINED, WEIGHTS
from ..runs.run import Run, claimed
from .evaluate import check_judgeable, check_whole, judge, set_aside, standing, write_page

__all__ = ["measured", "resume_run", "train_run"]

MEASURES = ("val/elbo", "val/reconstruction", "val/kl")


def train_run(
    config: DictConfig, path: Path, allow: Allowlist = PARTS_ONLY, logs: tuple[str, ...] = ()
) -> float | None:
    """Train, evaluate and report into a run's folder; prints the table.

    Args:
        config: what to train, as it was typed.
        path: of the folder.
        allow: what its configuration may call, for the command that goes on.
        logs: overrides of loggers, as they were typed, for the command that goes on.

    Returns:
        What a sweeper goes by: ``config.measure``, on the validation split and of the weights that are kept, those of
        the best validation ELBO; nats per frame. Higher is better, but for ``val/kl``. None in processes that help.

    Raises:
        FileExistsError: the folder holds a run already.
        BlockingIOError: another process is at work on it.
        ConfigurationError: there is no such measure, or a logger's package is not installed.
    """
    if config.measure not in MEASURES:
        raise ConfigurationError(f"measure is {config.measure!r}; expected one of {', '.join(MEASURES)}.")
    config = located(config)
    _check_apart(config, path)
    check_loggers(config)
    check_fit(config)
    place_among(config)
    if not _first():
        parts = build(config)
        check_judgeable(config, parts)
        return measured(_finish(Run(path), config, parts), config.measure)
    with claimed(path) as run, run.undone_after_mistakes():
        parts = build(config)
        check_judgeable(config, parts)
        run.begin(config, parts.data)
        run = replace(
            run, allow=allow.naming(config), logs=logs
        )  # so that the command to go on with names what it needs
        return measured(_finish(run, config, parts), config.measure)


def _check_apart(config: DictConfig, path: Path) -> None:
    """Raise ConfigurationError where a run or its curves would lie in the folder of its data, and be a part of them."""
    place = OmegaConf.select(config, PLACES[0])
    if not (isinstance(place, str) and os.path.isdir(place)):
        return
    for folder in (path, *log_folders(config)):
        if folder.resolve().is_relative_to(Path(place).resolve()):
            raise ConfigurationError(
                f"{folder} lies in {place}, the folder of the data, and would be a part of them when the run goes on; "
                "choose another place, by hydra.run.dir=… or for curves by the save_dir of the logger."
            )


def measured(history: Mapping[str, Any], measure: str) -> float | None:
    """A measure in the row of the history with the best validation ELBO, whose weights are the ones kept."""
    rows = [row for row in history.get("rows", []) if None not in (row.get("val/elbo"), row.get(measure))]
    return float(max(rows, key=lambda row: row["val/elbo"])[measure]) if rows else None


def resume_run(
    path: Path,
    changes: Mapping[str, Any] | None = None,
    allow: Allowlist = PARTS_ONLY,
    logs: tuple[str, ...] = (),
) -> Mapping[str, Any]:
    """Go on with a run that was interrupted: what is done is left alone, each step recognised by its file.

    Args:
        path: of the run's folder.
        changes: settings that may differ from the stored ones: where and how it computes, and where its files lie.
        allow: what its configuration may call.
        logs: overrides of loggers, as they were typed, for the command that goes on.

    Returns:
        The training history, ``rows`` and ``seconds``; empty in processes that help.

    Raises:
        FileNotFoundError: the folder is not a run's, or its data are not there.
        BlockingIOError: another process is at work on it.
        ValueError: its configuration or its last checkpoint is damaged, or its data are others than before.
    """
    places = tuple((name, value) for name, value in (changes or {}).items() if name in FILES)
    run = Run(path, allow, places, logs)
    config = run.config()  # nothing is written, not even a lock, in a folder that is no run's
    settings = keys(config)
    for name, value in (changes or {}).items():
        if name not in FILES and name in settings:
            OmegaConf.update(config, name, value, merge=False)
    place_among(config)
    with run.held() if _first() else nullcontext():
        if "logger" not in (changes or {}):
            if not run.has(WEIGHTS):
                check_stored_loggers(config, path)
            elif config.baseline.enabled and not run.has(PLAIN_VAE):  # which logs to files alone
                check_stored_loggers(OmegaConf.create({"logger": files_only(config)}), path)
        check_loggers(config)
        return _finish(run, config)


def _finish(run: Run, config: DictConfig, parts: Parts | None = None) -> Mapping[str, Any]:
    """All steps of a run whose files are not there yet, in a folder that is held; its training history."""
    kept = run.kept() if _first() else nullcontext(lambda: None)
    with goes_on_with(f"what is done is in {run}; go on with: {run.resume}"), _naming_the_run(run), kept as put_back:
        if _first():
            print(f"run: {run}", flush=True)
            run.sweep()
        compares = config.baseline.enabled and not run.has(PLAIN_VAE)
        # More than its page is made where there is none.
        record = standing(run) if run.has(WEIGHTS) and not compares else None
        if parts is None:
            run.check_matrix(config)
        data = parts.data if parts is not None else None
        if data is None and record is None:
            data = run.data(config)
        if run.has(WEIGHTS):
            history: Mapping[str, Any] = run.history()
            if _first() and history and not run.has(TRAINED):  # it was killed between the two
                run.end_training()
        else:
            if compares:
                _check_baseline(config, data)
            history = _trained(run, config, parts or build(config, data), put_back)
        if compares:
            plain_config = _plain_vae(config)
            plain = build(plain_config, data)
            if _first():
                print("the plain VAE, for comparison:", flush=True)
            fit_parts(plain_config, plain, run.path / "plain_vae")
            _save(run, PLAIN_VAE, plain)
        if not _first():
            return {}
        if record is not None:
            print(f"report: {write_page(run, config, record, history)}")
            check_whole(run, record)
        else:
            judge(run, run.load(config=config, data=data), history)
        return history


@contextmanager
def _naming_the_run(run: Run) -> Iterator[None]:
    """Say of a full disk, or one that fails, which run it stops, where a logger meets it, which says nothing of it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*NO_ROOM, errno.EIO, errno.ESTALE, errno.EROFS) or error.filename is not None:
            raise
        full = error.errno in NO_ROOM
        what, remedy = ("has no room left on", "make room") if full else ("was stopped by", "see to it")
        raise type(error)(
            f"{run} {what} its disk ({error.strerror}); {remedy}, and go on with: {run.resume}"
        ) from error


class _Storable(Callback):
    """Ends a training whose parts no file could hold any more after its first batch or epoch, not after its last."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.looked = parts, False

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.looked:
            self.looked = True
            check_storable(self.parts.model, self.parts.guide)

    def on_train_epoch_end(self, *_: Any) -> None:
        check_storable(self.parts.model, self.parts.guide)


def _trained(run: Run, config: DictConfig, parts: Parts, put_back: Callable[[], None]) -> dict[str, Any]:
    """The step of training; its history. What was removed meanwhile is put back before the run's files are tied."""
    run.check_can_go_on()
    if not run.has(PICTURE):
        _show_data(run, parts.data, config.evaluation.channels)
    if not run.has(UNTRAINED):
        # The control of the evaluation; and parts that cannot be written to a file fail now, not after training.
        _save(run, UNTRAINED, parts)
    fitted = fit_parts(config, parts, run.path, [_Storable(parts)])
    history = {"rows": fitted.rows, "seconds": fitted.seconds}
    if _first():
        (run.path / TRAINED).unlink(missing_ok=True)  # of a former training
        run.write(HISTORY, json.dumps(history))
        put_back()
    _save(run, WEIGHTS, parts)  # where it is, the step is done
    if _first():
        run.end_training()
    return history


def _show_data(run: Run, data: SequenceDataModule, channels: str | None) -> None:
    """Say how a user's file was read and keep its first sequence as a picture, so that a misreading is seen early."""
    if not (_first() and data.about):
        return
    from ..reports import figures  # matplotlib takes a second

    print(f"data: {data.about}", flush=True)
    picture = run.path / PICTURE
    with suppress(ValueError, MemoryError):  # no picture is worth a training
        x = next(data.batches("train", batch_size=1))["x"]
        figures.save(figures.first_sequence(x, data.about, channels), picture)
        print(f"its first training sequence: {picture}", flush=True)


def _first() -> bool:
    """Whether this process is the one that writes, of several that train together."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _save(run: Run, name: str, parts: Parts) -> None:
    if _first():
        set_aside(run)
        for judged in (REPORT, EVALUATION):  # of other weights, or before the run had ended
            (run.path / judged).unlink(missing_ok=True)
        pyro_tvae.save(run.path / name, parts.model, parts.guide)


def _check_baseline(config: DictConfig, data: SequenceDataModule | None) -> None:
    """Raise ConfigurationError where an objective of one's own takes no plain VAE, by a step before the training."""
    target = str(OmegaConf.select(config, "objective._target_") or "pyro_tvae.")
    if target.startswith("pyro_tvae."):
        return
    plain_config = _plain_vae(config)
    with open_dict(plain_config):
        plain_config.logger, plain_config.fit.progress = None, False
        plain_config.fit.max_steps = plain_config.baseline.max_epochs = plain_config.fit.max_epochs = 1
    plain = build(plain_config, data)
    try:
        fit_parts(plain_config, plain)
    except Exception as error:  # of code of one's own, in any way
        raise ConfigurationError(
            f"{target} cannot train the plain VAE, which is set beside the model ({in_words(error).rstrip('.')}); give "
            "baseline.enabled=false, or let it take a model without topography and energies."
        ) from error


def _plain_vae(config: DictConfig) -> DictConfig:
    """The same run without a topography."""
    plain = config.copy()
    with open_dict(plain):
        plain.topography = {"_target_": "pyro_tvae.NoTopography"}
        plain.prior = None
        plain.guide = {"_target_": "pyro_tvae.MeanFieldGuide", "_partial_": True}
        if "initial_log_variance" in config.guide:
            of_z = config.guide.get("initial_z_log_variance")
            plain.guide.initial_log_variance = config.guide.initial_log_variance if of_z is None else of_z
        plain.logger = files_only(config)
        plain.fit.max_epochs = config.baseline.max_epochs
        plain.fit.warmup_steps = config.baseline.warmup_steps
        plain.fit.frame_dropout = 0.0
    return plain
