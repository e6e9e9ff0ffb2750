"""The command ``reproduce``: a table of the paper, or of parts against each other, row by row and seed by seed.

Every cell is a run like any other, in a folder of its own. What is there is not computed again, so that a study goes on
where it was interrupted, and a later one adds seeds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import ConfigurationError, compose
from .folders import CONFIG, EVALUATION, finite, trained, write_text
from .ledger import Ledger
from .records import ANNEALED, stem_of

__all__ = ["STUDIES", "Study", "reproduce"]


@dataclass(frozen=True)
class Study:
    """Rows to run under one recipe and to compare.

    Attributes:
        title: heading of the table.
        rows: name -> overrides of the row.
        shared: overrides of all rows.
        budgets: whether the presets of the group ``budget`` apply; else the recipe is in ``shared``.
        annealing: keywords of :func:`.annealed_importance` for rows whose guide allows it, and ``sequences``.
    """

    title: str
    rows: Mapping[str, Sequence[str]]
    shared: Sequence[str] = ()
    budgets: bool = True
    annealing: Mapping[str, int] | None = None


def _experiments(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (f"experiment={name}",) for name in names}


def _table(data: str) -> dict[str, tuple[str, ...]]:
    kinds = ("tvae_lhalf", "tvae_lpartial", "tvae_lshort", "bubbles", "tvae_l0", "nontvae")
    return _experiments(*(f"{kind}_{data}" for kind in kinds))


GAUSSIAN, GAMMA = "prior=gaussian", "prior=gamma"
# One generative model for all rows: where neighbourhoods are disjoint orbits, Gaussian u, Gamma(½, ½) energies and one
# χ² energy per orbit give x the same law, so that rows differ in the variables that the guide has to infer alone.
PARTS = (
    "+data.source.size=14",
    "data.transformations.rotation=[0,60,120,180,240,300]",
    "data.transformations.scale=null",
    "data.n_frames=6",
    "data.batch_size=16",
    "data.n_test=128",
    "data.n_validation=64",
    "model.n_capsules=4",
    "model.capsule_dim=6",
    "model.mu=30",
    "fit.max_epochs=-1",
    "fit.max_steps=4000",
    "fit.warmup_steps=1000",
    "fit.frame_dropout=0.0",
    "baseline.enabled=false",
)

STUDIES: dict[str, Study] = {
    "table1": Study("Table 1: MNIST, one of rotation, hue and scale moves", _table("mnist")),
    "table2": Study("Table 2: dSprites, one of x, y, orientation and scale moves", _table("dsprites")),
    "guides": Study(
        "Guides: one generative model (orbits), one recipe",
        {
            "mean_field": (GAUSSIAN, "guide=mean_field"),
            "shared_trunk": (GAUSSIAN, "guide=shared_trunk"),
            "sequence": (GAUSSIAN, "guide=sequence"),
            "low_rank": (GAUSSIAN, "guide=low_rank"),
            "conditional": (GAUSSIAN, "guide=conditional"),
            "flow": (GAUSSIAN, "guide=flow"),
            "semi_amortised": (GAUSSIAN, "guide=semi_amortised"),
            "gamma": (GAMMA, "guide=gamma"),
            "orbit": ("prior=orbit", "guide=orbit"),
            "conditional_orbit": ("prior=orbit", "guide=conditional_orbit"),
            "orbit_covariance": ("prior=orbit", "guide=orbit_covariance"),
        },
        PARTS,
        budgets=False,
        annealing={"sequences": 32, "num_chains": 8, "num_temperatures": 300},
    ),
    "priors": Study(
        "Priors under the guide that is best for each: orbits, one recipe",
        {
            "gaussian": (GAUSSIAN, "guide=sequence"),
            "gamma": (GAMMA, "guide=gamma"),
            "orbit": ("prior=orbit", "guide=orbit"),
            "orbit, Laplace z": ("prior=orbit", "guide=orbit", "latent=laplace"),
            "orbit, Student z": ("prior=orbit", "guide=orbit", "latent=student"),
            "orbit, AR(1) z": ("prior=orbit", "guide=orbit", "latent=autoregressive"),
        },
        PARTS,
        budgets=False,
        annealing={"sequences": 32, "num_chains": 8, "num_temperatures": 300},
    ),
}


def reproduce(
    name: str,
    *,
    budget: str = "minutes",
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    output: Path = Path("runs/reproduce"),
    records: Path | None = None,
    keep: bool = False,
    progress: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Run what is missing of a study, and write ``table.md``, ``table.csv`` and ``table.json`` into its folder.

    Args:
        name: of the study, one of :data:`STUDIES`.
        budget: ``paper``, ``hour`` or ``minutes``, for the paper's tables.
        seeds: of the runs; each row has one run per seed.
        overrides: further Hydra overrides of every row, such as ``data.source.root=DIR``.
        output: where studies are kept, a folder each.
        records: a folder of records (see :mod:`.records`); seeds that the study's record there has are not run again.
        keep: also write the study's record, and the pictures in its folder, into that folder, after every run.
        progress: takes a line before every cell.

    Returns:
        The content of ``table.json``: ``rows``, one mapping per row with ``name``, ``seeds`` and ``values``, a list of
        one number per seed for each measure.

    Raises:
        ValueError: there is no such study or budget, or no seed; an override is wrong; or runs that are there already
            were made from other settings.
    """
    if name not in STUDIES or not seeds:
        raise ValueError(
            f"reproduce: name={name!r}, seeds={list(seeds)}; expected one of {', '.join(STUDIES)}, and at least "
            "one seed."
        )
    if keep and records is None:
        raise ValueError("reproduce: keep=True, records=None; expected the folder of records to keep it in.")
    study = STUDIES[name]
    used = budget if study.budgets else None
    recipe = [*study.shared, *([f"budget={budget}"] if study.budgets else []), *overrides]
    folder = output / stem_of(name, used)
    # A mistake in any row shows before the first hour is spent.
    configurations = {
        (row, seed): _composed([*own, *recipe, f"seed={seed}"]) for row, own in study.rows.items() for seed in seeds
    }
    homes = {row: folder / row.replace(" ", "_") for row in study.rows}
    ledger = Ledger(
        name,
        study.title,
        used,
        overrides,
        configurations={row: configurations[row, seeds[0]] for row in study.rows},
        homes=homes,
        folder=folder,
        records=records,
        keep=keep,
        complete=lambda run: not study.annealing or (run / ANNEALED).is_file(),
    )
    if ledger.said(configurations):
        progress(ledger.said(configurations))
    for number, (cell, config) in enumerate(configurations.items(), start=1):
        if cell in ledger:
            continue
        run = homes[cell[0]] / f"seed{cell[1]}"
        if not (run / EVALUATION).is_file():
            progress(f"{name} {number}/{len(configurations)}: {cell[0]}, seed {cell[1]} -> {run}")
            _run(config, run)
        if study.annealing and not (run / ANNEALED).is_file():
            progress(f"{name} {number}/{len(configurations)}: {cell[0]}, seed {cell[1]}, annealing")
            start = time.monotonic()
            annealed = _anneal(run, **study.annealing)
            write_text(run / ANNEALED, json.dumps(finite({**annealed, "seconds": time.monotonic() - start})))
        ledger.write()
    return ledger.write()


def _composed(overrides: Sequence[str]) -> Any:
    experiment = [override for override in overrides if override.startswith("experiment=")]
    try:
        return compose([*experiment, *(override for override in overrides if override not in experiment)])
    except ConfigurationError as error:
        raise ValueError(f"reproduce: {error}") from None


def _run(config: Any, run: Path) -> None:
    """Train and evaluate, or go on where an earlier attempt stopped."""
    from omegaconf import open_dict

    from .runs import train_run

    if (run / CONFIG).is_file():
        with open_dict(config):
            config.resume = str(run)
    train_run(config, run)


def _anneal(run: Path, sequences: int, num_chains: int, num_temperatures: int) -> dict[str, float | None]:
    """Annealed importance sampling for a run whose guide allows it; None elsewhere."""
    import torch

    from pyro_tvae.inference import annealed_importance, log_likelihood

    loaded = trained(run)
    model, guide = loaded.model, loaded.guide
    x = next(loaded.data.batches("test", loaded.device, batch_size=sequences))["x"]
    bound = log_likelihood(model, guide, x, 1000, seed=0)
    found: dict[str, float | None] = {
        "elbo": float(bound.elbo.mean()) / model.n_frames,
        "iwae": bound.per_frame,
        "ais": None,
    }
    if guide.mean_field:
        with torch.enable_grad():
            annealed = annealed_importance(
                model, guide, x, num_chains=num_chains, num_temperatures=num_temperatures, seed=0, progress=True
            )
        found["ais"] = annealed.per_frame
    best = max(value for value in (found["iwae"], found["ais"]) if value is not None)
    assert found["elbo"] is not None
    found["gap"] = best - found["elbo"]
    return found
