"""The study ``recipe``: how good a model is after so many seconds of training, for several recipes on the same data.

Weights are kept at a few moments of a run and judged afterwards, so that judging costs the curves no time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

import pyro_tvae
from pyro_tvae import TVAE, Guide
from pyro_tvae.inference import fit, forward_roll, log_likelihood
from pyro_tvae.inference.progress import progress_bar

from .config import Parts, build, make
from .datasets import SequenceDataModule
from .evaluation import ends_of_explained, hardware
from .folders import finite, read_record, write_text
from .interruption import command, goes_on_with

__all__ = ["MOMENTS", "RECIPES", "Snapshots", "judge", "recipe_cell"]

MOMENTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of a run's steps
POINTS = "points.json"

SHARED = (
    "data.n_train=4000",
    "data.n_validation=96",
    "data.n_test=500",
    "model.n_capsules=18",
    "model.capsule_dim=18",
    "baseline.enabled=false",
    "fit.max_epochs=-1",
    "fit.max_steps=7000",
)
OURS = ("optimizer=adam", "guide.initial_log_variance=-5.0", "fit.warmup_steps=1500")
ORBITS = ("topography=orbits", "fit.frame_dropout=0.3", "fit.warmup_steps=3000", "model.mu=100")
RECIPES: dict[str, tuple[str, ...]] = {
    "published": ("experiment=tvae_lpartial_mnist", *SHARED),
    "lpartial": ("experiment=tvae_lpartial_mnist", *SHARED, *OURS),
    "lhalf": ("experiment=tvae_lhalf_mnist", *SHARED, *OURS),
    "plain_vae": ("experiment=nontvae_mnist", *SHARED, *OURS),
    "orbits_mean_field": ("data=mnist", *SHARED, *OURS, *ORBITS, "prior=gaussian", "guide=mean_field"),
    "orbits": ("data=mnist", *SHARED, *ORBITS),
}


class Snapshots(Callback):
    """Keeps model and guide as files at some steps of a fit, with the seconds of training that they took.

    Args:
        folder: where ``step<n>.safetensors`` go, each beside ``step<n>.json``.
        steps: when.
        model, guide: what is fitted.
    """

    def __init__(self, folder: Path, steps: Sequence[int], model: TVAE, guide: Guide) -> None:
        self.folder, self.steps, self.model, self.guide = folder, set(steps), model, guide
        self.seconds, self._since = 0.0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._since = time.monotonic() - self.seconds

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        self.seconds = time.monotonic() - self._since
        if trainer.global_step in self.steps and trainer.is_global_zero:
            name = f"step{trainer.global_step}"
            pyro_tvae.save(self.folder / f"{name}.safetensors", self.model, self.guide)
            write_text(self.folder / f"{name}.json", json.dumps({"step": trainer.global_step, "seconds": self.seconds}))
            self._since = time.monotonic() - self.seconds

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = float(state_dict["seconds"])


@torch.inference_mode()
def judge(
    model: TVAE,
    guide: Guide,
    data: SequenceDataModule,
    *,
    split: str = "test",
    sequences: int = 128,
    num_particles: int = 100,
    seed: int = 0,
) -> dict[str, float | None]:
    """One point of a curve: ``elbo``, ``iwae``, ``explained``, ``forward_roll`` and its best floor, in nats per frame.

    Args:
        model, guide: what is judged.
        data: where from.
        split: ``test``, or ``validation`` while a recipe is being chosen.
        sequences: how many, the first of the split.
        num_particles: K of the importance-weighted bound.
        seed: of the draws.
    """
    device = next(model.parameters()).device
    x = next(data.batches(split, device, batch_size=min(sequences, len(data.datasets[split]))))["x"]
    bound = log_likelihood(model, guide, x, num_particles, seed=seed, progress=False)
    mean_frame = data.mean_frame(device)
    mean, best = (float(end.double().mean()) / model.n_frames for end in ends_of_explained(model, mean_frame, x))
    elbo = float(bound.elbo.mean()) / model.n_frames
    point: dict[str, float | None] = {
        "elbo": elbo,
        "iwae": bound.per_frame,
        "explained": (elbo - mean) / (best - mean),
    }
    if model.n_frames > 1:
        found = forward_roll(model, guide, x, mean_frame=mean_frame).log_likelihood
        half = (len(found["model"]) + 1) // 2
        means = {name: float(values[:half].mean()) for name, values in found.items()}
        point["forward_roll"] = means.pop("model")
        point["forward_roll_floor"] = max(means.values())
    return point


def recipe_cell(config: DictConfig, folder: Path, *, sequences: int = 128, num_particles: int = 100) -> dict[str, Any]:
    """Train one recipe with one seed, judge its snapshots, and return them; what the folder holds is not done again.

    Args:
        config: of the run; ``fit.max_steps`` is its length.
        folder: of the cell.
        sequences, num_particles: see :func:`judge`.

    Returns:
        ``points``, one mapping per snapshot with ``step``, ``seconds`` (of training) and what :func:`judge` finds;
        and ``hardware``.

    Raises:
        ValueError: the configuration sets no number of steps.
    """
    if (folder / POINTS).is_file():
        return read_record(folder / POINTS)
    if config.fit.max_steps < 1:
        raise ValueError(f"recipe: fit.max_steps is {config.fit.max_steps}; expected the length of a run in steps.")
    steps = sorted({max(1, round(share * config.fit.max_steps)) for share in MOMENTS})
    with goes_on_with(f"what is done is in {folder}; give the same command again to go on."):
        parts = build(config)
        snapshots = folder / "snapshots"
        if not (snapshots / f"step{steps[-1]}.json").is_file():
            write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
            _fit(config, parts, folder, Snapshots(snapshots, steps, parts.model, parts.guide))
        points = []
        moments = [read_record(snapshots / f"step{step}.json") for step in steps]
        for moment in progress_bar(len(moments), "judging", shown=config.fit.progress, iterable=moments):
            model, guide = pyro_tvae.load(snapshots / f"step{moment['step']}.safetensors")
            points.append(
                moment | judge(model, guide, parts.data, sequences=sequences, num_particles=num_particles)
            )
        record = {"points": points, "hardware": hardware(torch.device("cpu"))}
        write_text(folder / POINTS, json.dumps(finite(record), indent=1))
    return record


def _fit(config: DictConfig, parts: Parts, folder: Path, snapshots: Callback) -> None:
    last = folder / "checkpoints" / "last.ckpt"
    options = {str(name): value for name, value in OmegaConf.to_container(config.fit, resolve=True).items()}
    fit(
        parts.model,
        parts.guide,
        parts.data,
        optimizer=make(config.optimizer.optimizer),
        schedule=make(config.optimizer.schedule),
        objective=make(config.objective),
        directory=folder,
        resume=last if last.is_file() else None,
        seed=config.seed,
        callbacks=[snapshots],
        **options,
    )
