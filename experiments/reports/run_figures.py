"""The figures of a run: what its folder shows of the fitted model, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import pyro_tvae
from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.inference import ForwardRoll
from pyro_tvae.posteriors import moments

from ..datasets.splits import given_by
from ..evaluation.attempts import Attempts
from ..evaluation.evaluate import Evaluation
from ..runs.run import Trained
from . import figures, films

__all__ = ["draw"]

FILM = "forward_roll_film"


@torch.no_grad()
def draw(
    folder: Path,
    trained: Trained,
    result: Evaluation,
    rows: Sequence[Mapping[str, float]] | None,
    attempts: Attempts,
) -> list[Path]:
    """Draw all figures of a run into a folder; one that cannot be drawn is left out.

    Args:
        folder: where to.
        trained: the run.
        result: its evaluation.
        rows: of its training history.
        attempts: keeps why a figure was left out, by ``figure <name>``.

    Returns:
        The pictures.
    """
    model, guide, forecast = trained.model, trained.guide, result.forward_roll
    split = result.record["data"]["split"]
    channels = trained.config.evaluation.channels

    @cache
    def shown() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """A few sequences of all motions, their places in the batch, t, reconstruction, and what is told beside x."""
        batch = next(trained.data.batches(split, model.like.device, batch_size=8))
        order = figures.interleaved(batch["moving"])
        batch = {name: value[order] for name, value in batch.items()}
        x, given = batch["x"], given_by(batch, model, guide)
        t = pyro_tvae.encode(model, guide, x, **given)
        return x, order.cpu(), t, model.decode(t).mean.cpu(), given

    def stripes() -> Figure:
        x, _, t, _, given = shown()
        return figures.capsule_stripes(t[0].cpu(), _energy(model, guide, x, **given))

    def reconstructions() -> Figure:
        x, _, _, reconstruction, _ = shown()
        return figures.reconstructions(x.cpu(), reconstruction, channels)

    def traversal() -> Figure:
        x, _, _, reconstruction, given = shown()
        rolled = pyro_tvae.traverse(model, guide, x, **given).cpu()
        return figures.capsule_traversal(x.cpu(), reconstruction, rolled, channels)

    def strip(forecast: ForwardRoll) -> Figure:
        x, order, *_ = shown()
        predicted, hold = (forecast.frames[name][order] for name in ("model", "hold"))
        return figures.forward_roll_strip(x.cpu(), predicted, forecast.context, {"hold": hold}, channels)

    def film(path: Path, forecast: ForwardRoll) -> None:
        x, order, _, reconstruction, _ = shown()
        films.save_film(path, x, reconstruction, forecast.frames["model"][order], forecast.context, channels=channels)

    made: dict[str, Callable[[], Figure]] = {"reconstructions": reconstructions, "capsule_stripes": stripes}
    if rows:
        made["training_curves"] = lambda: figures.training_curves(rows)
    if model.n_frames > 1:
        made["capsule_traversal"] = traversal
    if forecast is not None:
        made["forward_roll_curve"] = lambda: figures.forward_roll_curve(result.record["forward_roll"])
        made["forward_roll_strip"] = lambda: strip(forecast)
    for name, figure in made.items():
        attempts(f"figure {name}", partial(_save, figure, folder / f"{name}.png"), None)
    names = [*made]
    if forecast is not None and trained.data.factor_names == ("time",):
        attempts(f"figure {FILM}", partial(film, folder / f"{FILM}.png", forecast), None)
        names.append(FILM)
    return [folder / f"{name}.png" for name in names if f"figure {name}" not in attempts.failed]


def _save(figure: Callable[[], Figure], path: Path) -> None:
    figures.save(figure(), path)


def _energy(model: TVAE, guide: Guide, x: torch.Tensor, **given: Any) -> torch.Tensor | None:
    for site, prior in model.energies.items():
        return model.energy(prior.point(moments(posterior_of(guide, x, **given))[site]))[0].cpu()
    return None
