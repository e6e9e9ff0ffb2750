"""Runs: a folder each, with configuration, checkpoints, weights, metrics, figures and report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict

import pyro_tvae
from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.posteriors import moments

from ..config.allowlist import trust_targets
from ..config.building import Parts, build, fit_parts
from ..config.errors import ConfigurationError
from ..config.loggers import check_loggers, check_stored_loggers, files_only
from ..datasets import SequenceDataModule
from ..evaluation.evaluate import Evaluation, evaluate
from ..interruption import command, goes_on_with
from ..reports import figures
from ..reports.report import write_report
from ..reports.tables import print_evaluation
from ..runs.folder import (
    CONFIG,
    EVALUATION,
    HISTORY,
    PLAIN_VAE,
    UNTRAINED,
    WEIGHTS,
    check_trained,
    configuration,
    finite,
    history_of,
    read_record,
    sweep,
    trained,
    write_text,
)
from ..runs.unfinished import no_folder_for_mistakes, occupied

__all__ = ["evaluate_run", "report_run", "resume_run", "train_run"]


def train_run(config: DictConfig, run: Path) -> float | None:
    """Train, evaluate and report into a run's folder; prints the table.

    Returns:
        What a sweeper goes by: ``config.measure``, on the validation split and of the weights that are kept, those of
        the best validation ELBO; nats per frame. Higher is better, but for ``val/kl``. None in processes that help.

    Raises:
        FileExistsError: the folder holds a run already.
        ConfigurationError: there is no such measure, or a logger's package is not installed.
    """
    if config.measure not in MEASURES:
        raise ConfigurationError(f"measure is {config.measure!r}; expected one of {', '.join(MEASURES)}.")
    if config.resume is not None:  # one of several, under --multirun
        resume_run(Path(config.resume))
        return _measured(Path(config.resume), config.measure)
    check_loggers(config)
    if _first() and (run / CONFIG).is_file():
        raise FileExistsError(
            f"{run} holds a run already, which is left as it is; choose another folder, or go on with: "
            f"{command('train', f'resume={run}')}"
        )
    with no_folder_for_mistakes(run) if _first() else nullcontext():
        trust_targets(config)
        parts = build(config)
        _check_judgeable(config, parts)
        if _first():
            write_text(run / CONFIG, OmegaConf.to_yaml(config, resolve=True))
        with _interruptible(run):
            _finish(run, config, parts)
    return _measured(run, config.measure)


def _check_judgeable(config: DictConfig, parts: Parts) -> None:
    """Raise ConfigurationError where the run could be trained, and not be judged afterwards."""
    for name, dataset in parts.data.datasets.items():
        least = 2 if name == "test" else 1  # spreads over sequences are among what is measured
        if len(dataset) < least:
            raise ConfigurationError(
                f"the number of sequences in the {name} split is {len(dataset)}; expected at least {least}: give more "
                "items, or another share of them."
            )
    context, n_frames = config.evaluation.context, parts.model.n_frames
    if context is not None and not (isinstance(context, int) and 1 <= context < n_frames):
        raise ConfigurationError(
            f"evaluation.context is {context!r}; expected 1 to {n_frames - 1} of {n_frames} frames, so that some stay "
            "unseen, or null for half of them."
        )
    particles, epochs = config.evaluation.num_particles, config.baseline.max_epochs
    if not isinstance(particles, int) or particles < 1:
        raise ConfigurationError(f"evaluation.num_particles is {particles!r}; expected a whole number of at least 1.")
    if config.baseline.enabled and (not isinstance(epochs, int) or epochs == 0 or epochs < -1):
        raise ConfigurationError(
            f"baseline.max_epochs is {epochs!r}; expected a whole number of at least 1, -1 for no limit by epochs, or "
            "baseline.enabled=false."
        )


MEASURES = ("val/elbo", "val/reconstruction", "val/kl")


def _measured(run: Path, measure: str) -> float | None:
    """A measure in the row of the history with the best validation ELBO, whose weights are the ones kept."""
    if not _first():
        return None
    rows = [row for row in history_of(run).get("rows", []) if "val/elbo" in row]
    return float(max(rows, key=lambda row: row["val/elbo"])[measure]) if rows else None


def resume_run(run: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Go on with a run that was interrupted: what is done is left alone, each step recognised by its file.

    Args:
        run: the run's folder.
        changes: settings that may differ from the stored ones: where and how it computes.

    Raises:
        FileNotFoundError: the folder is not a run's.
        ValueError: its configuration or its last checkpoint is damaged.
    """
    config = configuration(run)
    for name, value in (changes or {}).items():
        OmegaConf.update(config, name, value, merge=False)
    if "logger" not in (changes or {}) and not (run / WEIGHTS).is_file():
        check_stored_loggers(config, run)
    check_loggers(config)
    with _interruptible(run):
        _finish(run, config, None)


def _interruptible(run: Path) -> AbstractContextManager[None]:
    return goes_on_with(f"what is done is in {run}; go on with: {command('train', f'resume={run}')}")


def _finish(run: Path, config: DictConfig, parts: Parts | None) -> None:
    """All steps of a run whose files are not there yet."""
    with occupied(run) if _first() else nullcontext():
        _finish_alone(run, config, parts)


def _finish_alone(run: Path, config: DictConfig, parts: Parts | None) -> None:
    if _first():
        print(f"run: {run}", flush=True)
        sweep(run)
    data = None
    if not (run / WEIGHTS).is_file():
        parts = parts or build(config)
        data = parts.data
        if not (run / UNTRAINED).is_file():
            # The control of the evaluation; and parts that cannot be written to a file fail now, not after training.
            _save(run / UNTRAINED, parts)
        history = fit_parts(config, parts, run)
        if _first():
            write_text(run / HISTORY, json.dumps({"rows": history.rows, "seconds": history.seconds}))
        _save(run / WEIGHTS, parts)  # the last file of this step: where it is, the step is done
    if config.baseline.enabled and not (run / PLAIN_VAE).is_file():
        plain_config = _plain_vae(config)
        plain = build(plain_config, data)
        if _first():
            print("the plain VAE, for comparison:", flush=True)
        fit_parts(plain_config, plain, run / "plain_vae")
        _save(run / PLAIN_VAE, plain)
    if not _first():
        return
    if not (run / EVALUATION).is_file():
        evaluate_run(run)
    else:
        print(f"report: {report_run(run)}")


def _first() -> bool:
    """Whether this process is the one that writes, of several that train together."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _save(path: Path, parts: Parts) -> None:
    if _first():
        pyro_tvae.save(path, parts.model, parts.guide)


def _plain_vae(config: DictConfig) -> DictConfig:
    """The same run without a topography."""
    plain = config.copy()
    with open_dict(plain):
        plain.topography = {"_target_": "pyro_tvae.NoTopography"}
        plain.prior = None
        plain.guide = {"_target_": "pyro_tvae.MeanFieldGuide", "_partial_": True}
        if "initial_log_variance" in config.guide:
            plain.guide.initial_log_variance = config.guide.initial_log_variance
        plain.logger = files_only(config)
        plain.fit.max_epochs = config.baseline.max_epochs
        plain.fit.warmup_steps = config.baseline.warmup_steps
        plain.fit.frame_dropout = 0.0
    return plain


def evaluate_run(run: Path, split: str = "test") -> None:
    """Judge a trained run, write ``evaluation.json``, the figures and the report; prints the table."""
    loaded = trained(run)
    config, model, guide, data = loaded.config, loaded.model, loaded.guide, loaded.data
    rivals = {
        role: pyro_tvae.load(run / file, loaded.device) if (run / file).is_file() else None
        for role, file in (("untrained", UNTRAINED), ("plain_vae", PLAIN_VAE))
    }
    result = evaluate(
        model,
        guide,
        data,
        name=config.name,
        **rivals,
        split=split,
        num_particles=config.evaluation.num_particles,
        context=config.evaluation.context,
        seed=config.seed,
        progress=config.fit.progress,
    )
    history = history_of(run)
    result.record["seconds"] = {"training": history.get("seconds"), **result.record["seconds"]}
    draw(run, model, guide, data, result, history)
    write_text(run / EVALUATION, json.dumps(finite(result.record), indent=1))
    report_run(run)
    print_evaluation(result.record)
    print(f"report: {run / 'report.html'}")


def report_run(run: Path) -> Path:
    """Write ``report.html`` again from what the run's folder holds."""
    config = configuration(run)
    if not (run / EVALUATION).is_file():
        check_trained(run)
        raise FileNotFoundError(f"{run} holds no {EVALUATION}; run 'pyro-tvae evaluate {run}' first.")
    record = read_record(run / EVALUATION)
    pictures = {path.stem: path for path in sorted((run / "figures").glob("*.png"))}
    ordered = {name: pictures[name] for name in ORDER if name in pictures}
    return write_report(run, record, ordered | pictures, OmegaConf.to_yaml(config), history_of(run).get("rows"))


ORDER = (
    "training_curves",
    "reconstructions",
    "capsule_traversal",
    "forward_roll_strip",
    "forward_roll_curve",
    "capsule_stripes",
)


@torch.no_grad()
def draw(
    run: Path, model: TVAE, guide: Guide, data: SequenceDataModule, result: Evaluation, history: dict[str, Any]
) -> None:
    """All figures of a run, as PNG files in its folder."""
    folder = run / "figures"
    batch = next(data.batches("test", model.like.device, batch_size=8))
    order = figures.interleaved(batch["moving"])
    x = batch["x"][order]
    t = pyro_tvae.encode(model, guide, x)
    reconstruction = model.decode(t).mean.cpu()
    made: dict[str, Callable[[], Any]] = {
        "reconstructions": lambda: figures.reconstructions(x.cpu(), reconstruction),
        "capsule_stripes": lambda: figures.capsule_stripes(t[0].cpu(), _energy(model, guide, x)),
    }
    if history.get("rows"):
        made["training_curves"] = lambda: figures.training_curves(history["rows"])
    forecast = result.forward_roll
    if forecast is not None:
        rolled = pyro_tvae.traverse(model, guide, x).cpu()
        made["capsule_traversal"] = lambda: figures.capsule_traversal(x.cpu(), reconstruction, rolled)
        made["forward_roll_curve"] = lambda: figures.forward_roll_curve(result.record["forward_roll"])
        made["forward_roll_strip"] = lambda: figures.forward_roll_strip(
            x.cpu(),
            forecast.frames["model"][order.cpu()],
            forecast.context,
            {"hold": forecast.frames["hold"][order.cpu()]},
        )
    for name, figure in made.items():
        try:
            figures.save(figure(), folder / f"{name}.png")
        except ValueError as error:  # such as frames of two channels: the judgement is not lost to a picture
            print(f"figure {name} is left out: {error}", flush=True)


def _energy(model: TVAE, guide: Guide, x: torch.Tensor) -> torch.Tensor | None:
    if model.prior is None:
        return None
    posterior = posterior_of(guide, x)
    return model.energy(model.prior.point(moments(posterior)[model.prior.site]))[0].cpu()
