"""Learning curves: how good a model is after so many seconds of training, for several recipes on the same data.

Weights are kept at a few moments of a run and judged afterwards, so that judging costs the curves no time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

import pyro_tvae
from pyro_tvae import TVAE, Guide
from pyro_tvae.files import make_folder
from pyro_tvae.inference import forward_roll, log_likelihood
from pyro_tvae.inference.progress import progress_bar

from ..config.building import build, fit_parts
from ..config.composition import located
from ..datasets import SequenceDataModule
from ..datasets.splits import given_by
from ..evaluation.scoring import ends_of_explained, explained_share
from ..provenance import hardware, versions
from ..runs.data import fingerprints
from ..runs.files import write_text
from ..runs.names import CONFIG, DATA
from ..runs.outputs import digest, room_kept
from ..runs.run import Run, Trained, device_of
from .cells import POINTS, last_weights
from .records import RunInfo, Values

__all__ = ["MOMENTS", "Snapshots", "ended", "follow", "judge"]

ENDERS = ("max_epochs", "patience")  # settings by which a fit may end before its last step
KINDS = ("json", "safetensors")  # of files that a snapshot is made of
MOMENTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of a run's steps


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
def judge(model: TVAE, guide: Guide, data: SequenceDataModule, sequences: int, num_particles: int) -> Values:
    """One point of a curve: ``elbo``, ``iwae``, ``explained``, ``forward_roll`` and its best floor, in nats per frame.

    ``iwae_by_frames`` is the bound that averages frame by frame, of as many decoded frames: within a tenth of the draws
    of the energies, or within one where there are none.

    Args:
        model, guide: what is judged.
        data: where from.
        sequences: how many, the first of the test split.
        num_particles: K of the importance-weighted bound.
    """
    device = model.like.device
    batch = next(data.batches("test", device, batch_size=sequences))
    x, masks, mean_frame = batch["x"], given_by(batch, model, guide), data.mean_frame(device)
    bound = log_likelihood(model, guide, x, num_particles, seed=0, progress=False, **masks)
    ends = ends_of_explained(model, mean_frame, x, batch.get("observed"), batch.get("measured"))
    mean, best = (float(end.double().mean()) / bound.n_frames for end in ends)
    elbo = float(bound.elbo.mean()) / bound.n_frames
    n_shared = 1 if model.prior is None else max(1, num_particles // 10)
    by_frames = log_likelihood(
        model, guide, x, n_shared, frame_particles=num_particles // n_shared, seed=0, progress=False, **masks
    )
    point: Values = {"elbo": elbo, "iwae": bound.per_frame, "iwae_by_frames": by_frames.per_frame}
    point["explained"] = explained_share(elbo, mean, best)
    if model.n_frames > 1:
        means = forward_roll(model, guide, x, mean_frame=mean_frame, **masks).means()
        point["forward_roll"] = means.pop("model")
        point["forward_roll_floor"] = max(means.values())
    return point


def ended(run: Run, config: DictConfig) -> Trained:
    """What a run that was followed ended with: its last snapshot, on the data that a configuration names."""
    path, device = last_weights(run), device_of(config)
    assert path is not None
    model, guide = pyro_tvae.load(path, device)
    return Trained(config, model, guide, run.data(located(config)), device, digest(path), {})


def follow(config: DictConfig, folder: Path, *, sequences: int = 128, num_particles: int = 100) -> RunInfo:
    """Train one recipe with one seed, judge its snapshots, and write them; what the folder holds is not done again.

    Args:
        config: of the run; ``fit.max_steps`` is its length.
        folder: of the run, to which ``points.json`` is added: the run of a record, see :mod:`.records`.
        sequences, num_particles: see :func:`judge`.

    Raises:
        ValueError: the configuration sets no number of steps, or something by which it may end before, or the folder's
            run was begun with other data.
        BlockingIOError: another process is at work on it.
    """
    if config.fit.max_steps < 1:
        raise ValueError(f"recipe: fit.max_steps is {config.fit.max_steps}; expected the length of a run in steps.")
    if shorter := [f"fit.{name}={config.fit[name]}" for name in ENDERS if config.fit[name] not in (-1, None)]:
        raise ValueError(
            f"recipe: {' and '.join(shorter)} may end a run before fit.max_steps={config.fit.max_steps}, and a curve "
            "has all steps; leave it out."
        )
    steps = sorted({max(1, round(share * config.fit.max_steps)) for share in MOMENTS})
    config = located(config)
    parts, run = build(config), Run(folder)
    make_folder(folder)
    with run.held():
        if run.has(CONFIG) and run.has(DATA):
            run.check_data(config, fingerprints(parts.data, config))
        else:
            run.begin(config, parts.data)
        if not run.has(f"snapshots/step{steps[-1]}.json"):
            fit_parts(config, parts, folder, [Snapshots(folder / "snapshots", steps, parts.model, parts.guide)])
        kept = [step for step in steps if all(run.has(f"snapshots/step{step}.{kind}") for kind in KINDS)]
        if steps[-1] not in kept:
            raise FileNotFoundError(
                f"{run} has lost snapshots/step{steps[-1]}.safetensors, with which its training ended; put the file "
                "back from a copy, or move the folder away, and it is trained anew."
            )
        moments = [run.read(f"snapshots/step{step}.json", Values, ("step", "seconds")) for step in kept]
        points: list[Values] = []
        with room_kept(folder / POINTS):
            for moment in progress_bar(len(moments), "judging", shown=config.fit.progress, iterable=moments):
                model, guide = pyro_tvae.load(folder / f"snapshots/step{moment['step']}.safetensors")
                points.append(moment | judge(model, guide, parts.data, sequences, num_particles))
        curves: RunInfo = {
            "hardware": hardware(device_of(config)),
            "versions": versions(),
            "seconds": {"training": moments[-1]["seconds"] or 0.0},
            "points": points,
        }
        if lost := [str(step) for step in steps if step not in kept]:  # as of a copy made while it was trained
            curves["notes"] = [f"a run's curve leaves out steps {', '.join(lost)}, whose snapshots it has lost"]
        run.write(POINTS, curves)
        return curves
