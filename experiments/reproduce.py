"""The command ``reproduce``: a table of the paper, or of parts against each other, row by row and seed by seed.

Every cell is a run like any other, in a folder of its own. What is there is not computed again, so that a study goes on
where it was interrupted, and a later one adds seeds.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import ConfigurationError, compose
from .folders import CONFIG, EVALUATION, finite, history_of, trained, write_text
from .tables import MISSING, format_number

__all__ = ["STUDIES", "Study", "aggregate", "markdown", "reproduce"]

ANNEALED = "annealed.json"
Values = dict[str, float | None]


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
    progress: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Run what is missing of a study, and write ``table.md``, ``table.csv`` and ``table.json`` into its folder.

    Args:
        name: of the study, one of :data:`STUDIES`.
        budget: ``paper``, ``hour`` or ``minutes``, for the paper's tables.
        seeds: of the runs; each row has one run per seed.
        overrides: further Hydra overrides of every row, such as ``data.source.root=DIR``.
        output: where studies are kept, a folder each.
        progress: takes a line before every cell.

    Returns:
        The content of ``table.json``: ``rows``, one mapping per row with ``name``, ``seeds`` and ``values``, a list of
        one number per seed for each measure.

    Raises:
        ValueError: there is no such study or budget, or no seed; or an override is wrong.
    """
    if name not in STUDIES or not seeds:
        raise ValueError(
            f"reproduce: name={name!r}, seeds={list(seeds)}; expected one of {', '.join(STUDIES)}, and at least "
            "one seed."
        )
    study = STUDIES[name]
    recipe = [*study.shared, *([f"budget={budget}"] if study.budgets else []), *overrides]
    folder = output / (f"{name}-{budget}" if study.budgets else name)
    # A mistake in any row shows before the first hour is spent.
    configurations = {
        (row, seed): _composed([*own, *recipe, f"seed={seed}"]) for row, own in study.rows.items() for seed in seeds
    }
    cells = {cell: folder / cell[0].replace(" ", "_") / f"seed{cell[1]}" for cell in configurations}
    for number, (cell, run) in enumerate(cells.items(), start=1):
        if not (run / EVALUATION).is_file():
            progress(f"{name} {number}/{len(cells)}: {cell[0]}, seed {cell[1]} -> {run}")
            _run(configurations[cell], run)
        if study.annealing and not (run / ANNEALED).is_file():
            progress(f"{name} {number}/{len(cells)}: {cell[0]}, seed {cell[1]}, annealing")
            write_text(run / ANNEALED, json.dumps(finite(_anneal(run, **study.annealing))))
        _write(folder, study, budget, overrides)
    return _write(folder, study, budget, overrides)


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


def _write(folder: Path, study: Study, budget: str, overrides: Sequence[str]) -> dict[str, Any]:
    rows = [_row(folder / row.replace(" ", "_"), row) for row in study.rows]
    record = {
        "schema": 1,
        "kind": "reproduction",
        "title": study.title,
        "budget": budget if study.budgets else None,
        "overrides": list(overrides),
        "rows": [row for row in rows if row["seeds"]],
    }
    write_text(folder / "table.json", json.dumps(finite(record), indent=1))
    write_text(folder / "table.md", markdown(record))
    write_text(folder / "table.csv", _csv(record))
    return record


def _row(folder: Path, name: str) -> dict[str, Any]:
    """All seeds that a row has by now, asked for or not."""
    runs = sorted((path.parent for path in folder.glob(f"seed*/{EVALUATION}")), key=lambda run: int(run.name[4:]))
    values = [_values(run) for run in runs]
    names = list(dict.fromkeys(key for value in values for key in value))
    return {
        "name": name,
        "seeds": [int(run.name[4:]) for run in runs],
        "values": {key: [value.get(key) for value in values] for key in names},
        "hardware": sorted({json.loads((run / EVALUATION).read_text())["hardware"] for run in runs}),
    }


def _values(run: Path) -> Values:
    """One run's measures by name, flat; nats per frame where not said otherwise."""
    record = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    found: Values = {}
    for key, value in record["measures"]["trained"].items():
        found |= {f"{key}/{part}": item for part, item in value.items()} if isinstance(value, dict) else {key: value}
    forecast = record.get("forward_roll")
    if forecast:
        means = {
            key: statistics.fmean(value[: (len(value) + 1) // 2]) for key, value in forecast["log_likelihood"].items()
        }
        found["forward_roll"] = means.pop("model")
        found["forward_roll_floor"] = max(means.values())
    untrained = record["measures"].get("untrained")
    if untrained:
        found["e_eq_untrained"] = untrained["e_eq"]
    found["collapsed"] = float(record["collapsed"])
    history = history_of(run)
    steps = max((row["step"] for row in history.get("rows", ())), default=0)
    if steps:
        found["seconds"] = history["seconds"]
        found["seconds_per_step"] = history["seconds"] / steps
    if (run / ANNEALED).is_file():
        found |= {f"few/{key}": value for key, value in json.loads((run / ANNEALED).read_text()).items()}
    return found


COLUMNS = {
    "iwae": "IWAE ↑",
    "elbo": "ELBO ↑",
    "kl": "KL",
    "frame_unnormalised": "frame_unnormalised",
    "few/elbo": "ELBO, some sequences ↑",
    "few/iwae": "IWAE, K = 1,000, the same ↑",
    "few/ais": "AIS, the same ↑",
    "few/gap": "best of these − ELBO ↓",
    "explained": "explained ↑",
    "e_eq": "E_eq ↓",
    "e_eq_untrained": "E_eq, untrained",
    "forward_roll": "forward_roll ↑",
    "forward_roll_floor": "its best floor",
    "probe": "class probe ↑",
    "collapsed": "collapsed",
    "seconds": "training, s",
    "seconds_per_step": "s / step",
}
PREFIXES = {
    "roll": "roll correlation",
    "cap_corr": "CapCorr",
    "commutation": "commutation ↓",
    "pose": "pose probe",
    "active": "active latents",
}


def aggregate(values: Iterable[float | None]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds of the numbers that are there; nan and None where there are too few.

    Example:
        >>> aggregate([1.0, 3.0, None])
        (2.0, 1.4142135623730951)
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known else math.nan, statistics.stdev(known) if len(known) > 1 else None


def _columns(record: Mapping[str, Any]) -> dict[str, str]:
    present = list(dict.fromkeys(key for row in record["rows"] for key in row["values"]))
    parts = {
        key: f"{PREFIXES[key.split('/')[0]]}, {key.split('/')[1]}"
        for key in present
        if "/" in key and key.split("/")[0] in PREFIXES
    }
    return {key: label for key, label in COLUMNS.items() if key in present} | parts


def markdown(record: Mapping[str, Any]) -> str:
    """A record as a Markdown table, measures down and the study's rows across: mean ± standard deviation over seeds."""
    rows = record["rows"]
    lines = [f"### {record['title']}", ""]
    lines += ["| | " + " | ".join(row["name"] for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    lines += ["| seeds | " + " | ".join(", ".join(map(str, row["seeds"])) for row in rows) + " |"]
    for key, label in _columns(record).items():
        cells = [_cell(row["values"].get(key, ())) for row in rows]
        if any(cell != MISSING for cell in cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "Nats per frame where a measure is in nats; ± is the standard deviation over seeds."]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float | None]) -> str:
    mean, spread = aggregate(values)
    return format_number(mean, spread)


def _csv(record: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "seed", "measure", "value"])
    for row in record["rows"]:
        for key, values in row["values"].items():
            for seed, value in zip(row["seeds"], values, strict=True):
                writer.writerow([row["name"], seed, key, "" if value is None else repr(value)])
    return text.getvalue()
