"""The map of the paper's Fig. 3: what every unit of a torus prefers on still test images, and how organised that is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import pyro_tvae
from pyro_tvae import TVAE, Guide, Torus
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.inference import class_selectivity, neighbor_correlation, preferred_class, preferred_value
from pyro_tvae.inference.likelihood import seeded
from pyro_tvae.inference.progress import progress_bar
from pyro_tvae.posteriors import draw
from pyro_tvae.verbs import point_estimate

from ..datasets import SequenceDataModule
from ..datasets.splits import given_by
from ..evaluation.handwriting import slant, stroke_width
from ..runs.names import UNTRAINED
from ..runs.run import Run

__all__ = ["UnitMap", "map_units", "organization"]

N_PERMUTATIONS = 9999  # of every test of neighbours
TOP = 10  # images whose mean slant and stroke width a unit is said to prefer


@dataclass(frozen=True, eq=False)
class UnitMap:
    """What units on a torus of (rows, columns) prefer; selectivity and preferences rest on draws from the posterior.

    Attributes:
        strongest: (rows, columns, channel, height, width), the image of the highest posterior mean of t.
        selectivity: (K, rows, columns), d′ for every class.
        preferred: (rows, columns), the class of the highest d′, −1 below 0.85.
        slant, stroke_width: (rows, columns), means over the ten images of the highest t.
    """

    strongest: Tensor
    selectivity: Tensor
    preferred: Tensor
    slant: Tensor
    stroke_width: Tensor


@torch.inference_mode()
def map_units(model: TVAE, guide: Guide, data: SequenceDataModule) -> UnitMap:
    """Show the test split of still images to every unit of a torus.

    Args:
        model, guide: a fitted model of single frames with one capsule on a :class:`.Torus`.
        data: its data, with labels.

    Raises:
        ValueError: the model is no torus of single frames.
    """
    if not isinstance(model.topography, Torus) or model.n_frames != 1 or model.n_capsules != 1:
        raise ValueError(
            f"a map of units needs one capsule on a torus and single frames; this model has {model.n_capsules} "
            f"capsules, {model.n_frames} frames and the topography {type(model.topography).__name__}."
        )
    kept: list[tuple[Tensor, ...]] = []
    with seeded(0):  # draws from the guide, one per image
        for batch in data.batches("test", model.like.device):
            posterior = posterior_of(guide, batch["x"], *given_by(batch, model, guide).values())
            drawn = draw(posterior)
            means, draws = point_estimate(model, posterior), model.compose(drawn)
            kept.append(tuple(value.cpu() for value in (means, draws, batch["label"], batch["x"][:, 0])))
    means, t, label, images = (torch.cat(column) for column in zip(*kept, strict=True))
    means, t = (value.reshape(len(label), *model.topography.grid) for value in (means, t))
    selectivity = class_selectivity(t, label)
    top, gray = min(TOP, len(t)), images.mean(1)
    return UnitMap(
        strongest=images[means.argmax(0)],
        selectivity=selectivity,
        preferred=preferred_class(selectivity),
        slant=preferred_value(t, slant(gray), top),
        stroke_width=preferred_value(t, stroke_width(gray), top),
    )


def organization(run: Run) -> dict[str, float]:
    """How many units of a run's map are selective, and how alike neighbours are; the same for the untrained model.

    Returns:
        ``selective`` (units with d′ ≥ 0.85), ``classes`` (that any of them prefers), ``last_class`` (selective units
        that the published map shows in another colour, see :func:`.preferred_class`), and for ``selectivity``,
        ``slant`` and ``stroke_width`` the correlation between neighbours, ``…_null``, its mean over arrangements,
        and ``…_p``; each again with ``_untrained``.
    """
    loaded = run.load()
    models = {"": (loaded.model, loaded.guide)}
    if run.has(UNTRAINED):
        models["_untrained"] = pyro_tvae.load(run.path / UNTRAINED, loaded.device)
    numbers: dict[str, float] = {}
    with progress_bar(3 * len(models), "permutations", unit="test", leave=False) as bar:
        for suffix, (model, guide) in models.items():
            units = map_units(model, guide, loaded.data)
            numbers[f"selective{suffix}"] = float((units.preferred >= 0).sum())
            numbers[f"classes{suffix}"] = float(len(units.preferred[units.preferred >= 0].unique()))
            last = preferred_class(units.selectivity, last=True)
            numbers[f"last_class{suffix}"] = float((last != units.preferred).sum())
            for name in ("selectivity", "slant", "stroke_width"):
                features = getattr(units, name).reshape(-1, *units.preferred.shape)
                result = neighbor_correlation(features, N_PERMUTATIONS, seed=0)
                numbers[f"{name}{suffix}"] = result.value
                numbers[f"{name}_null{suffix}"], numbers[f"{name}_p{suffix}"] = result.null_mean, result.p_value
                bar.update()
    return numbers
