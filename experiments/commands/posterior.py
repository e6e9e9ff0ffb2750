"""The command ``posterior``: draws of a run's posterior as a file for ArviZ, and a page of plots that judge them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyro_tvae.inference.posterior import to_arviz, to_netcdf

from ..config.allowlist import PARTS_ONLY, Allowlist
from ..datasets.renderers import MovingImages
from ..reports.figures import interleaved
from ..reports.posterior_page import POSTERIOR, write_page
from ..runs.run import Run

__all__ = ["posterior_run"]

PAGE = "posterior.html"


def posterior_run(
    run: Path,
    *,
    draws: int = 100,
    sequences: int = 8,
    method: str = "guide",
    seed: int = 0,
    allow: Allowlist = PARTS_ONLY,
) -> tuple[Path, Path]:
    """Write ``posterior.nc`` and ``posterior.html`` into a trained run's folder.

    Args:
        run: the run's folder.
        draws: draws per sequence (and chain, for NUTS).
        sequences: the first ones of the test split.
        method: ``"guide"``, ``"importance"`` or ``"nuts"``; see :func:`.to_arviz`.
        seed: of the draws.
        allow: what the run's configuration may call.

    Returns:
        The paths of both files.

    Raises:
        FileNotFoundError: the folder is not a run's, or its training has not ended.
        ValueError: fewer than one sequence, or what :func:`.to_arviz` refuses.
    """
    loaded = Run(run, allow).load()
    if sequences < 1:
        raise ValueError(f"posterior: sequences is {sequences!r}; expected at least 1.")
    config, model, guide, data = loaded.config, loaded.model, loaded.guide, loaded.data
    described = data.datasets["test"]
    batch = next(data.batches("test", loaded.device, batch_size=sequences))
    order = interleaved(batch["moving"])
    batch = {name: value[order] for name, value in batch.items()}
    coords: dict[str, Any] = {"item": order, "label": batch["label"]}
    # A factor may be called like a variable (x, scale), its index never is.
    coords |= {f"{name}_index": batch["index"][..., k] for k, name in enumerate(described.factor_names)}
    if isinstance(described.renderer, MovingImages):
        for k, (name, values) in enumerate(described.renderer.transformations.factors.items()):
            coords[f"{name}_value"] = np.asarray(values)[batch["index"][..., k].cpu().numpy() % len(values)]
    if described.moving:
        coords["moving"] = [described.moving[k] for k in batch["moving"].tolist()]
    show = config.fit.progress
    drawn = to_arviz(model, guide, batch["x"], draws=draws, method=method, coords=coords, seed=seed, progress=show)
    file = to_netcdf(drawn, run / POSTERIOR)
    facts = {
        "Sequences": f"the first {len(batch['x'])} of the test split",
        "Draws": f"{drawn['posterior'].sizes['draw']} per sequence, method {method}, seed {seed}",
        "μ": "none, a plain VAE" if model.prior is None else f"{float(model.mu.detach()):.2f}, a point estimate",
    }
    return file, write_page(run / PAGE, drawn, model, name=str(config.name), facts=facts)
