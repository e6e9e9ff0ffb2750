"""Runs: a folder each, with configuration, checkpoints, weights, metrics, figures and report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

import pyro_tvae
from pyro_tvae import TVAE, Guide
from pyro_tvae.inference import History, fit

from . import figures
from .config import build, make
from .datasets import SequenceDataModule
from .evaluation import Evaluation, evaluate
from .report import write_report
from .tables import print_evaluation

__all__ = ["evaluate_run", "report_run", "train_run"]

CONFIG = "config.yaml"
WEIGHTS, UNTRAINED, PLAIN_VAE = "model.safetensors", "untrained.safetensors", "plain_vae.safetensors"
EVALUATION, HISTORY = "evaluation.json", "history.json"


def train_run(config: DictConfig, run: Path) -> None:
    """Train, evaluate and report into a run's folder; prints the table."""
    if config.resume is not None:
        previous = Path(config.resume)
        config = _configuration(previous)
        run, resume = previous, previous / "checkpoints" / "last.ckpt"
    else:
        resume = None
    parts = build(config)
    print(f"run: {run}")
    if resume is None:
        write_text(run / CONFIG, OmegaConf.to_yaml(config, resolve=True))
        # The control of the evaluation; and parts that cannot be written to a file fail now, not after training.
        pyro_tvae.save(run / UNTRAINED, parts.model, parts.guide)
    history = _fit(config, parts.model, parts.guide, parts.data, run, resume)
    pyro_tvae.save(run / WEIGHTS, parts.model, parts.guide)
    write_text(run / HISTORY, json.dumps({"rows": history.rows, "seconds": history.seconds}))
    if config.baseline.enabled:
        plain = build(_plain_vae(config), parts.data)
        print("the plain VAE, for comparison:")
        _fit(_plain_vae(config), plain.model, plain.guide, parts.data, run / "plain_vae", None)
        pyro_tvae.save(run / PLAIN_VAE, plain.model, plain.guide)
    evaluate_run(run)


def _fit(
    config: DictConfig, model: TVAE, guide: Guide, data: SequenceDataModule, directory: Path, resume: Path | None
) -> History:
    options = OmegaConf.to_container(config.fit, resolve=True)
    assert isinstance(options, dict)
    return fit(
        model,
        guide,
        data,
        optimizer=make(config.optimizer.optimizer),
        schedule=make(config.optimizer.schedule),
        directory=directory,
        resume=resume,
        seed=config.seed,
        **{str(key): value for key, value in options.items()},
    )


def _plain_vae(config: DictConfig) -> DictConfig:
    """The same run without a topography."""
    plain = config.copy()
    with open_dict(plain):
        plain.topography = {"_target_": "pyro_tvae.NoTopography"}
        plain.prior = None
        plain.guide = {"_target_": "pyro_tvae.MeanFieldGuide", "_partial_": True}
        plain.fit.max_epochs = config.baseline.max_epochs
        plain.fit.warmup_steps = config.baseline.warmup_steps
        plain.fit.frame_dropout = 0.0
    return plain


def evaluate_run(run: Path, split: str = "test") -> None:
    """Judge a trained run, write ``evaluation.json``, the figures and the report; prints the table."""
    config = _configuration(run)
    weights = run / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(
            f"{run} holds no {WEIGHTS}: its training has not ended; run 'pyro-tvae train resume={run}'."
        )
    device = _device(config)
    model, guide = pyro_tvae.load(weights, device)
    rivals = {
        role: pyro_tvae.load(run / file, device) if (run / file).is_file() else None
        for role, file in (("untrained", UNTRAINED), ("plain_vae", PLAIN_VAE))
    }
    data = make(config.data)
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
    history = _history(run)
    result.record["seconds"] = {"training": history.get("seconds"), **result.record["seconds"]}
    write_text(run / EVALUATION, json.dumps(_finite(result.record), indent=1))
    draw(run, model, guide, data, result, history)
    report_run(run)
    print_evaluation(result.record)
    print(f"report: {run / 'report.html'}")


def report_run(run: Path) -> Path:
    """Write ``report.html`` again from what the run's folder holds."""
    config = _configuration(run)
    if not (run / EVALUATION).is_file():
        raise FileNotFoundError(f"{run} holds no {EVALUATION}; run 'pyro-tvae evaluate {run}' first.")
    record = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    pictures = {path.stem: path for path in sorted((run / "figures").glob("*.png"))}
    ordered = {name: pictures[name] for name in ORDER if name in pictures}
    return write_report(run, record, ordered | pictures, OmegaConf.to_yaml(config), _history(run).get("rows"))


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
    batch = next(data.batches("test", next(model.parameters()).device, batch_size=8))
    order = _interleaved(batch["moving"])
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
        figures.save(figure(), folder / f"{name}.png")


def _interleaved(moving: torch.Tensor) -> torch.Tensor:
    """Order of sequences in which the moving factors take turns, so that the first few show all of them."""
    turn = torch.stack([(moving[:k] == factor).sum() for k, factor in enumerate(moving)])
    return torch.argsort(turn * (int(moving.max()) + 1) + moving, stable=True)


def _energy(model: TVAE, guide: Guide, x: torch.Tensor) -> torch.Tensor | None:
    if model.prior is None:
        return None
    posterior = guide.posterior(x)
    return model.energy(model.prior.point(posterior[model.prior.site]))[0].cpu()


def _configuration(run: Path) -> DictConfig:
    if not (run / CONFIG).is_file():
        raise FileNotFoundError(f"{run} is not a run's folder: it holds no {CONFIG}; 'pyro-tvae list' shows the runs.")
    config = OmegaConf.load(run / CONFIG)
    assert isinstance(config, DictConfig)
    return config


def _history(run: Path) -> dict[str, Any]:
    path = run / HISTORY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _device(config: DictConfig) -> torch.device:
    if config.fit.accelerator in ("cpu", "mps", "cuda"):
        return torch.device(config.fit.accelerator)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None and config.fit.accelerator != "cpu" else torch.device("cpu")


def _finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
