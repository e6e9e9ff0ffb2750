"""The figures of a run: what its folder shows of the fitted model, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import pyro_tvae
from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.posteriors import moments

from ..evaluation.evaluate import Evaluation
from ..runs.run import Trained
from . import figures

__all__ = ["draw"]


@torch.no_grad()
def draw(folder: Path, trained: Trained, result: Evaluation, rows: Sequence[Mapping[str, float]] | None) -> None:
    """Draw all figures of a run into a folder; one that cannot be drawn is left out, and said.

    Args:
        folder: where to.
        trained: the run.
        result: its evaluation.
        rows: of its training history.
    """
    model, guide = trained.model, trained.guide
    batch = next(trained.data.batches("test", model.like.device, batch_size=8))
    order = figures.interleaved(batch["moving"])
    x = batch["x"][order]
    t = pyro_tvae.encode(model, guide, x)
    reconstruction = model.decode(t).mean.cpu()
    made: dict[str, Callable[[], Any]] = {
        "reconstructions": lambda: figures.reconstructions(x.cpu(), reconstruction),
        "capsule_stripes": lambda: figures.capsule_stripes(t[0].cpu(), _energy(model, guide, x)),
    }
    if rows:
        made["training_curves"] = lambda: figures.training_curves(rows)
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
    for site, prior in model.energies.items():
        return model.energy(prior.point(moments(posterior_of(guide, x))[site]))[0].cpu()
    return None
