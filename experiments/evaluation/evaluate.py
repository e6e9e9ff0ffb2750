"""Evaluation: a fitted model on the test split, beside its untrained self and a plain VAE, as a record and in words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pyro_tvae import TVAE, Guide
from pyro_tvae.inference import ForwardRoll, forward_roll

from ..datasets import SequenceDataModule
from ..provenance import hardware, versions
from .measures import COLLAPSED, score
from .record import EvaluationRecord, rows
from .scoring import ends_of_explained, measure
from .verdict import remarks, verdict

__all__ = ["COLLAPSED", "Evaluation", "Rival", "ends_of_explained", "evaluate", "measure"]

CONDITIONAL_K = 10  # at most: log p(unseen frames | seen frames) takes two passes over all sequences

Rival = tuple[TVAE, Guide]


@dataclass(frozen=True)
class Evaluation:
    """A report's contents: ``record`` is plain data for JSON, the rest is for figures."""

    record: EvaluationRecord
    forward_roll: ForwardRoll | None


def evaluate(
    model: TVAE,
    guide: Guide,
    data: SequenceDataModule,
    *,
    name: str = "model",
    untrained: Rival | None = None,
    plain_vae: Rival | None = None,
    split: str = "test",
    num_particles: int = 100,
    context: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Everything the report shows.

    Args:
        model, guide: the fitted model.
        data: its data module.
        name: of the run.
        untrained: the model before training, as a control.
        plain_vae: a plain VAE fitted to the same data, as the bar to clear.
        split: which split to judge on.
        num_particles: K of the importance-weighted bound.
        context: frames that ``forward_roll`` sees; half of them by default.
        seed: of the draws from the guide.
        progress: show progress bars.

    Returns:
        An :class:`Evaluation`.
    """
    start = time.monotonic()
    rivals: Mapping[str, Rival | None] = {"trained": (model, guide), "untrained": untrained, "plain_vae": plain_vae}
    scores = {
        role: measure(*rival, data, split=split, num_particles=num_particles, seed=seed, label=role, progress=progress)
        for role, rival in rivals.items()
        if rival is not None
    }
    device = model.like.device
    x = torch.cat([batch["x"] for batch in data.batches(split, device)])
    forecast = None
    if model.n_frames > 1:
        mean_frame = data.mean_frame(device)
        forecast = forward_roll(
            model,
            guide,
            x,
            context=context,
            mean_frame=mean_frame,
            baseline=plain_vae,
            num_particles=min(num_particles, CONDITIONAL_K),
            seed=seed,
        )
    record: EvaluationRecord = {
        "schema": 1,
        "name": name,
        "collapsed": score(scores["trained"], "explained") < COLLAPSED,
        "verdict": verdict(scores, forecast),
        "data": {
            "name": name,
            "split": split,
            "n_sequences": len(data.datasets[split]),
            "n_frames": data.n_frames,
            "moving": list(data.datasets[split].moving),
        },
        "rows": rows(scores, num_particles),
        "measures": scores,
        "notes": remarks(model, x),
        "seed": seed,
        "versions": versions(),
        "hardware": hardware(device),
        "seconds": {"evaluation": time.monotonic() - start},
        "parameters": sum(p.numel() for module in (model, guide) for p in module.parameters()),
    }
    if forecast is not None:
        record["forward_roll"] = {
            "context": forecast.context,
            "log_likelihood": {key: value.tolist() for key, value in forecast.log_likelihood.items()},
            "pixel_error": {key: value.tolist() for key, value in forecast.pixel_error.items()},
            "conditional": forecast.conditional._asdict() if forecast.conditional is not None else None,
        }
    return Evaluation(record, forecast)
