"""Cells: what one run of a study measured, gathered from its folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypedDict

import torch

from pyro_tvae.inference import ForwardRoll

from ..evaluation.measures import CONTROLLED, flat
from ..evaluation.record import EvaluationRecord, judged_on
from ..interruption import command
from ..runs.files import finite
from ..runs.names import EVALUATION, SELECTIVITY, WEIGHTS
from ..runs.outputs import digest
from ..runs.run import Run
from .records import Cell, RunInfo, Values

__all__ = [
    "ADDED",
    "ANNEALED",
    "POINTS",
    "REFITTED",
    "Refitted",
    "add",
    "added",
    "followed",
    "judged",
    "last_weights",
    "measured",
    "weights_of",
]

ANNEALED, REFITTED, POINTS = "annealed.json", "refitted.json", "points.json"  # what a study adds to a run's folder
ADDED = (ANNEALED, SELECTIVITY)  # of the run's own weights
OF = "weights"  # the digest of those that it was measured of
DIGITS = 7  # more would be noise in the files' diffs


class Refitted(TypedDict, total=False):
    """The content of ``refitted.json``: nats per frame, and the digest of the reference's weights, ``of``."""

    elbo: float
    iwae: float
    best: float
    gap: float
    of: str | None


def added(run: Run, name: str) -> Values:
    """What a study has measured beside the evaluation; nothing where it was of weights that the folder had before."""
    if not run.has(name):
        return {}
    values: dict[str, Any] = run.read(name, dict[str, float | str | None])
    of = values.pop(OF, None)  # which older files do not say
    if any(isinstance(value, str) for value in values.values()):
        raise ValueError(
            f"{run.path / name} is damaged: it holds words in the place of numbers; remove it to have it made anew."
        )
    # Weights that are not there, as to free a disk, are not other ones.
    return values if of is None or weights_of(run) in (of, None) else {}


def add(run: Run, name: str, values: Values) -> None:
    """Write what a study has measured beside the evaluation, and of which weights."""
    run.write(name, json.dumps({**finite(values), OF: weights_of(run)}))


def weights_of(run: Run) -> str | None:
    """The digest of a run's weights; None where they are not there."""
    path = last_weights(run)
    return digest(path) if path is not None else None


def last_weights(run: Run) -> Path | None:
    """The file of the weights that a run ended with: of a learning curve, its last snapshot; None where there is none.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp(), "snapshots")
        >>> folder.mkdir()
        >>> for step in (90, 100):
        ...     (folder / f"step{step}.safetensors").touch()
        >>> last_weights(Run(folder.parent)).name
        'step100.safetensors'
    """
    if run.has(WEIGHTS):
        return run.path / WEIGHTS
    steps = {path.stem.removeprefix("step"): path for path in run.path.glob("snapshots/step*.safetensors")}
    last = max(filter(str.isdecimal, steps), key=int, default=None)  # copies may have further names
    return None if last is None else steps[last]


def judged(run: Run) -> EvaluationRecord:
    """The evaluation of a run.

    Raises:
        ValueError: it lacks what every evaluation of a study says, or is of other data or weights than the run's.
    """
    record = run.read(EVALUATION, EvaluationRecord, ("measures", "hardware", "versions"))
    if not record["measures"].get("trained"):
        raise ValueError(
            f"{run.path / EVALUATION} is damaged: it has no measures of the trained model; evaluate again."
        )
    run.check_weights(record.get("weights"), (ANNEALED, REFITTED, SELECTIVITY))
    if changed := run.changed():
        raise ValueError(
            f"{changed}, and a study is of runs as they were trained; put back what was there, or run that seed anew "
            "in an empty folder."
        )
    what = judged_on(record.get("data") or {})
    if what != judged_on({}):  # judged again by hand
        raise ValueError(
            f"{run.path / EVALUATION} is of {what}, and a study is of the runs' own test split; judge the run on that "
            f"again: {command('evaluate', '--overwrite', run.path)}"
        )
    return record


def measured(run: Run) -> Cell:
    """What an evaluated run holds, flat; nats per frame where not said otherwise."""
    record = judged(run)
    values: Values = {**flat(record["measures"]["trained"])}
    forecast = record.get("forward_roll")
    if forecast and forecast.get("context") and (forecast.get("log_likelihood") or {}).get("model"):
        scores = {  # null is minus infinity, for which JSON has no word
            name: torch.tensor([-math.inf if value is None else value for value in own], dtype=torch.float64)
            for name, own in forecast["log_likelihood"].items()
        }
        means = ForwardRoll(forecast["context"], scores, {}, {}).means()
        values["forward_roll"] = means.pop("model")
        values["forward_roll_floor"] = max(means.values(), default=math.nan)
    untrained = record["measures"].get("untrained") or {}
    values |= flat({f"{key}_untrained": untrained[key] for key in CONTROLLED if key in untrained})
    collapsed = record.get("collapsed")
    values["collapsed"] = math.nan if collapsed is None else float(collapsed)
    history = run.history()
    steps = max((row.get("step") or 0 for row in history.get("rows") or ()), default=0)
    if steps and history.get("seconds") is not None:
        values["seconds"] = history["seconds"]
        values["seconds_per_step"] = history["seconds"] / steps
    seconds = {key: value for key, value in (record.get("seconds") or {}).items() if value is not None}
    annealed, took = _annealing_of(run)
    values, seconds = values | annealed, seconds | took
    if run.has(REFITTED):
        refitted = run.read(REFITTED, Refitted)
        values |= {f"held/{key}": refitted[key] for key in ("elbo", "iwae", "best", "gap") if key in refitted}
    values |= {f"map/{key}": value for key, value in added(run, SELECTIVITY).items()}
    how = {"hardware": record["hardware"], "versions": record["versions"], "seconds": seconds}
    left_out = [
        f"{name} is left out: {said}"
        for name, said in (record.get("failed") or {}).items()
        if not name.startswith("figure ")  # which the run's own page shows, and no record
    ]
    if notes := [*(record.get("notes") or ()), *left_out]:
        how["notes"] = notes
    if forecast and "forward_roll" in values:
        how["forward_roll"] = {key: forecast[key] for key in ("context", "log_likelihood")}
    return Cell(_rounded(finite(values)), _rounded(finite(how)))


def followed(run: Run) -> Cell:
    """What a run of learning curves holds: its points, and what annealing found at their end."""
    curves = run.read(POINTS, RunInfo)
    values, took = _annealing_of(run)
    if took:
        curves["seconds"] = {**(curves.get("seconds") or {}), **took}
    return Cell(_rounded(values), curves)


def _annealing_of(run: Run) -> tuple[Values, dict[str, float]]:
    """What annealing measured of a run's weights, and the seconds that it took; nothing where there was none."""
    annealed = added(run, ANNEALED)
    seconds = annealed.pop("seconds", None)
    took = {} if seconds is None else {"annealing": seconds}
    return {f"few/{key}": value for key, value in annealed.items()}, took


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
