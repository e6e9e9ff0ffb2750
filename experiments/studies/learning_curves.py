"""Courses of training: how good a model is after so many seconds of training, for several recipes on the same data.

Weights are kept at a few moments of a run and judged afterwards, so that judging costs the curves no time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

import pyro_tvae
from pyro_tvae import TVAE, Guide
from pyro_tvae.inference import forward_roll, log_likelihood
from pyro_tvae.inference.progress import progress_bar

from ..config.allowlist import PARTS_ONLY
from ..config.building import build, fit_parts
from ..config.composition import compose
from ..datasets import SequenceDataModule
from ..evaluation.evaluate import ends_of_explained
from ..interruption import goes_on_with
from ..provenance import hardware, versions
from ..runs.files import finite, read_record, write_text
from ..runs.run import CONFIG, device_of
from .records import (
    SCHEMA,
    check_settings,
    portable,
    read_kept,
    settings_of,
    shared_settings,
    stored_settings,
    write_record,
)

__all__ = ["COURSES", "MOMENTS", "Course", "Snapshots", "follow", "judge", "reproduce_course"]

MOMENTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of a run's steps
POINTS = "points.json"

SIZE = (
    "data.n_validation=96",
    "data.n_test=500",
    "model.n_capsules=18",
    "model.capsule_dim=18",
    "baseline.enabled=false",
    "fit.max_epochs=-1",
)
SHORT = (*SIZE, "data.n_train=4000", "fit.max_steps=7000")
LONG = (*SIZE, "data.n_train=20000", "fit.max_steps=15000")
# Adam, q's variances small at first, and a KL warm-up: what gets the published models off their plateau.
OURS = ("optimizer=adam", "guide.initial_log_variance=-5.0", "fit.warmup_steps=1500")
# The quickstart's recipe at the paper's size.
ORBITS = ("data=mnist", "fit.warmup_steps=3000", "fit.frame_dropout=0.3", "model.mu=100", "model.centered=true")


def _published(kind: str, *overrides: str) -> tuple[str, ...]:
    return (f"experiment={kind}_mnist", *overrides)


@dataclass(frozen=True)
class Course:
    """Recipes to follow on the same data: row -> its label in figures, and the overrides of its runs."""

    title: str
    rows: Mapping[str, tuple[str, tuple[str, ...]]]


COURSES: dict[str, Course] = {
    "recipe": Course(
        "Recipes at the paper's MNIST size, 4,000 training sequences",
        {
            "published": ("lpartial, SGD, as published", _published("tvae_lpartial", *SHORT)),
            "lpartial": ("lpartial, Adam and warm-up", _published("tvae_lpartial", *SHORT, *OURS)),
            "lhalf": ("lhalf, Adam and warm-up", _published("tvae_lhalf", *SHORT, *OURS)),
            "plain_vae": ("plain VAE, Adam and warm-up", _published("nontvae", *SHORT, *OURS)),
            "orbits_mean_field": (
                "orbits, the paper's guide",
                (*ORBITS, *SHORT, "prior=gaussian", "guide=mean_field", "fit.warmup_steps=1500", "fit.max_steps=28000"),
            ),
            "orbits": ("orbits, the orbit guide", (*ORBITS, *SHORT, "fit.max_steps=8000")),
            "orbits_bfloat16": (
                "orbits, products in bfloat16",
                (*ORBITS, *SHORT, "fit.max_steps=8000", "fit.matmul_precision=medium"),
            ),
        },
    ),
    "recipe_hour": Course(
        "Recipes at the paper's MNIST size, 20,000 training sequences",
        {
            "lpartial": ("lpartial, Adam and warm-up", _published("tvae_lpartial", *LONG, *OURS)),
            "lhalf": ("lhalf, Adam and warm-up", _published("tvae_lhalf", *LONG, *OURS)),
            "plain_vae": ("plain VAE, Adam and warm-up", _published("nontvae", *LONG, *OURS)),
            "orbits": ("orbits, the orbit guide", (*ORBITS, *LONG)),
        },
    ),
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
        self._since = monotonic() - self.seconds

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
        self.seconds = monotonic() - self._since
        if trainer.global_step in self.steps and trainer.is_global_zero:
            name = f"step{trainer.global_step}"
            pyro_tvae.save(self.folder / f"{name}.safetensors", self.model, self.guide)
            write_text(self.folder / f"{name}.json", json.dumps({"step": trainer.global_step, "seconds": self.seconds}))
            self._since = monotonic() - self.seconds

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
    device = model.like.device
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
        means = forward_roll(model, guide, x, mean_frame=mean_frame).means()
        point["forward_roll"] = means.pop("model")
        point["forward_roll_floor"] = max(means.values())
    return point


def follow(config: DictConfig, folder: Path, *, sequences: int = 128, num_particles: int = 100) -> dict[str, Any]:
    """Train one recipe with one seed, judge its snapshots, and return them; what the folder holds is not done again.

    Args:
        config: of the run; ``fit.max_steps`` is its length.
        folder: of the run.
        sequences, num_particles: see :func:`judge`.

    Returns:
        A run of a record of kind ``recipe`` (see :mod:`.records`): ``points``, ``hardware``, ``versions``, ``seconds``.

    Raises:
        ValueError: the configuration sets no number of steps, or the folder holds a run of another.
    """
    if (folder / CONFIG).is_file():
        remedy = "choose another --output, or give again what it was made with."
        check_settings(folder, stored_settings(folder, PARTS_ONLY.typed(config)), settings_of(config), remedy)
    if (folder / POINTS).is_file():
        return read_record(folder / POINTS)
    if config.fit.max_steps < 1:
        raise ValueError(f"recipe: fit.max_steps is {config.fit.max_steps}; expected the length of a run in steps.")
    steps = sorted({max(1, round(share * config.fit.max_steps)) for share in MOMENTS})
    parts, snapshots = build(config), folder / "snapshots"
    if not (snapshots / f"step{steps[-1]}.json").is_file():
        write_text(folder / CONFIG, OmegaConf.to_yaml(config, resolve=True))
        fit_parts(config, parts, folder, [Snapshots(snapshots, steps, parts.model, parts.guide)])
    moments = [read_record(snapshots / f"step{step}.json") for step in steps]
    points = []
    for moment in progress_bar(len(moments), "judging", shown=config.fit.progress, iterable=moments):
        model, guide = pyro_tvae.load(snapshots / f"step{moment['step']}.safetensors")
        points.append(moment | judge(model, guide, parts.data, sequences=sequences, num_particles=num_particles))
    run = {
        "hardware": hardware(device_of(config)),
        "versions": versions(),
        "seconds": {"training": moments[-1]["seconds"]},
        "points": points,
    }
    write_text(folder / POINTS, json.dumps(finite(run), indent=1))
    return run


def reproduce_course(
    name: str,
    *,
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    output: Path = Path("runs/reproduce"),
    records: Path | None = None,
    keep: bool = False,
    progress: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Follow every recipe of a course that was not followed yet, seed by seed.

    Args:
        name: of the course, one of :data:`COURSES`.
        seeds: one run each, per recipe.
        overrides: further Hydra overrides of every run, such as ``data.source.root=DIR``.
        output: where runs are kept.
        records: a folder of records; seeds that the course's record there has are not run again.
        keep: also write the record into that folder, after every run.
        progress: takes a line before every run.

    Returns:
        The record, of kind ``recipe`` (see :mod:`.records`), which is also ``record.json`` in the course's folder.

    Raises:
        ValueError: there is no such course, an override is wrong, or the kept record is of other overrides.
    """
    course, folder = COURSES[name], output / name
    file = records / f"{name}.json" if records is not None else None
    configurations = {row: compose([*own, *overrides]) for row, (_, own) in course.rows.items()}
    asked = portable(overrides)
    kept: dict[str, Any] = (
        read_kept(file) if file is not None and file.is_file() else {"rows": [], "settings": {}, "overrides": asked}
    )
    if kept["overrides"] != asked:
        raise ValueError(
            f"{file} was made with the overrides {kept['overrides']}, and {asked} are given; give --fresh to leave it "
            "out, or the same ones."
        )
    runs = {(row["name"], seed): row["runs"][n] for row in kept["rows"] for n, seed in enumerate(row["seeds"])}
    settings = {row: settings_of(config) for row, config in configurations.items()}
    for known in kept["rows"]:
        made = kept["settings"] | known["settings"]
        check_settings(
            Path(f"{file} ({known['name']})"), made, settings.get(known["name"], {}), "give --fresh to leave it out."
        )
    shared = shared_settings(settings.values())
    wanted = [(row, seed) for row in course.rows for seed in seeds]
    record: dict[str, Any] = {}
    for number, (row, seed) in enumerate(wanted, start=1):
        if (row, seed) not in runs:
            place = folder / row / f"seed{seed}"
            progress(f"{name} {number}/{len(wanted)}: {row}, seed {seed} -> {place}")
            config = configurations[row].copy()
            config.seed = seed
            with goes_on_with(f"what is done is in {place}; give the same command again to go on."):
                runs[row, seed] = follow(config, place)
        record = {
            "schema": SCHEMA,
            "kind": "recipe",
            "study": name,
            "budget": None,
            "title": course.title,
            "overrides": asked,
            "settings": shared,
            "rows": [_row(known, label, settings, shared, runs) for known, (label, _) in course.rows.items()],
        }
        write_record(folder / "record.json", record)
        if keep and file is not None:
            write_record(file, record)
    return record


def _row(
    name: str,
    label: str,
    settings: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
    runs: Mapping[tuple[str, int], dict[str, Any]],
) -> dict[str, Any]:
    seeds = sorted(seed for row, seed in runs if row == name)
    own = {key: value for key, value in settings[name].items() if key not in shared}
    return {"name": name, "label": label, "settings": own, "seeds": seeds, "runs": [runs[name, seed] for seed in seeds]}
