"""Records: what a study measured, one small JSON file per study and budget, to which later runs add seeds.

A record holds no path of the machine that made it. It is one mapping::

    {"schema": 2, "kind": "reproduction", "study": "table1", "budget": "hour", "title": "Table 1: …",
     "overrides": ["fit.beta=2"],              # what was given beside the study's own settings
     "settings": {"fit.max_steps": 3600, …},   # of all rows
     "rows": [{"name": "tvae_lhalf_mnist",
               "settings": {"topography.kernel": 18, …},        # what sets the row apart
               "seeds": [0, 1],
               "values": {"iwae": [-186.1, -185.9], …},         # per measure, one number or null per seed
               "runs": [{"hardware": "…", "versions": {…}, "seconds": {"training": 420.0, "evaluation": 35.0},
                         "forward_roll": {"context": 9, "log_likelihood": {"model": […], …}}}, …]}]}

Numbers are in nats per frame where a measure is in nats. A record of kind ``recipe`` holds learning curves against the
wall clock instead: the same mapping, with ``values`` left out and ``points`` in every run::

    {"schema": 2, "kind": "recipe", "study": "recipe", "budget": null, "title": "…", "command": "…",
     "settings": {…}, "rows": [{"name": "published", "label": "SGD, as published", "settings": {…}, "seeds": [0, 1, 2],
               "runs": [{"hardware": "…", "versions": {…}, "seconds": {"training": 600.0},
                         "points": [{"seconds": 12.5, "step": 100, "iwae": -310.2, "explained": 0.1,
                                     "forward_roll": -420.0, "forward_roll_floor": -230.0}, …]}, …]}]}

``seconds`` of a point counts training alone, from its start, without the evaluations in between; the other numbers are
of the test split. Any run may have ``notes``, a list of sentences that must stand beside its numbers. The row called
``published`` is the one that the others are compared with.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pyro_tvae.inference.forecasts import half

from ..config.composition import ELSEWHERE
from ..runs.folder import EVALUATION, SELECTIVITY, configuration, finite, history_of, read_record, write_text

__all__ = [
    "ANNEALED",
    "FOLDER",
    "KINDS",
    "REFITTED",
    "SCHEMA",
    "Cell",
    "check_settings",
    "kept_cells",
    "measured",
    "portable",
    "read_kept",
    "record_of",
    "settings_of",
    "shared_settings",
    "stem_of",
    "stored_settings",
    "write_record",
]

SCHEMA = 2
KINDS = ("reproduction", "recipe")
FOLDER = Path("experiments/results")  # where records are kept, seen from a checkout
ANNEALED, REFITTED = "annealed.json", "refitted.json"
DIGITS = 7  # more would be noise in the files' diffs

Values = dict[str, float | None]
# Where and how a run computes, and what it is called; none of it changes what is computed.
LOCAL = (*ELSEWHERE, "data.source.root", "data.source.download", "data.num_workers", "name", "seed", "resume")
FILES = ("data.source.path",)  # which file it is matters; the folder it lies in does not


@dataclass(frozen=True)
class Cell:
    """One run of a row: its measures, and how they were come by.

    Attributes:
        values: measure -> number; nats per frame where not said otherwise.
        run: ``hardware``, ``versions``, ``seconds`` and, where there are any, ``notes`` and ``forward_roll``.
        settings: what the run was made from; empty where that is not known.
    """

    values: Values
    run: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


Cells = Mapping[tuple[str, int], Cell]


# ---- settings


def settings_of(config: DictConfig) -> dict[str, Any]:
    """All settings by their dotted names, without those that only say where and how a run computes.

    Example:
        >>> settings_of(OmegaConf.create({"seed": 3, "data": {"source": {"root": "/mine", "path": "/mine/x.npz"}}}))
        {'data.source.path': 'x.npz'}
    """
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    flat = {name: value for name, value in _flat(container) if name not in LOCAL and not name.startswith("hydra.")}
    for name in FILES:
        if flat.get(name) is not None:
            flat[name] = Path(str(flat[name])).name
    return dict(sorted(json.loads(json.dumps(finite(flat))).items()))


def _flat(node: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def portable(overrides: Sequence[str]) -> list[str]:
    """Overrides without the paths of one machine.

    Example:
        >>> portable(["data.source.root=/mine", "data.source.path=/mine/x.npz", "fit.beta=2"])
        ['data.source.path=x.npz', 'fit.beta=2']
    """
    kept = []
    for override in overrides:
        name, _, value = override.partition("=")
        if name.lstrip("+~") in LOCAL:
            continue
        kept.append(f"{name}={Path(value).name}" if name.lstrip("+~") in FILES and value else override)
    return kept


def check_settings(where: Path, found: Mapping[str, Any], asked: Mapping[str, Any], remedy: str) -> None:
    """Refuse numbers that were made from other settings; settings that only one side knows are no difference.

    Raises:
        ValueError: a setting that both know differs.
    """
    for name in sorted(found.keys() & asked.keys()):
        if found[name] != asked[name]:
            raise ValueError(f"{where} was made with {name}={found[name]}, and {asked[name]} is asked for; {remedy}")


def shared_settings(settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What several settings agree on.

    Example:
        >>> shared_settings([{"a": 1, "b": 2}, {"a": 1, "b": 3}])
        {'a': 1}
    """
    first, *others = [*settings] or [{}]
    return {key: value for key, value in first.items() if all(key in own and own[key] == value for own in others)}


def stored_settings(run: Path) -> dict[str, Any]:
    """The settings that a run's folder says it was made from; nothing in the file is called."""
    return settings_of(configuration(run))


# ---- one run


def measured(run: Path) -> Cell:
    """What an evaluated run holds, flat; nats per frame where not said otherwise."""
    record = read_record(run / EVALUATION)
    values: Values = {}
    for key, value in record["measures"]["trained"].items():
        values |= _named(key, value)
    forecast = record.get("forward_roll")
    if forecast:
        means = {key: statistics.fmean(value[: half(value)]) for key, value in forecast["log_likelihood"].items()}
        values["forward_roll"] = means.pop("model")
        values["forward_roll_floor"] = max(means.values())
    untrained = record["measures"].get("untrained") or {}
    for key in ("e_eq", "roll", "cap_corr"):
        if key in untrained:
            values |= _named(f"{key}_untrained", untrained[key])
    values["collapsed"] = float(record["collapsed"])
    history = history_of(run)
    steps = max((row["step"] for row in history.get("rows", ())), default=0)
    if steps:
        values["seconds"] = history["seconds"]
        values["seconds_per_step"] = history["seconds"] / steps
    seconds = {key: value for key, value in (record.get("seconds") or {}).items() if value is not None}
    if (run / ANNEALED).is_file():
        annealed = read_record(run / ANNEALED)
        if "seconds" in annealed:
            seconds["annealing"] = annealed.pop("seconds")
        values |= {f"few/{key}": value for key, value in annealed.items()}
    for file, prefix in ((REFITTED, "held"), (SELECTIVITY, "map")):
        if (run / file).is_file():
            values |= {f"{prefix}/{key}": value for key, value in read_record(run / file).items()}
    how = {"hardware": record["hardware"], "versions": record["versions"], "seconds": seconds}
    if record.get("notes"):
        how["notes"] = record["notes"]
    if forecast:
        how["forward_roll"] = {key: forecast[key] for key in ("context", "log_likelihood")}
    return Cell(_rounded(finite(values)), _rounded(finite(how)))


def _named(key: str, value: Any) -> Values:
    return {f"{key}/{part}": item for part, item in value.items()} if isinstance(value, dict) else {key: value}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


# ---- one record


def stem_of(study: str, budget: str | None) -> str:
    """The name of a record without its suffix.

    Example:
        >>> stem_of("table1", "hour"), stem_of("guides", None)
        ('table1-hour', 'guides')
    """
    return f"{study}-{budget}" if budget else study


def record_of(
    study: str,
    title: str,
    budget: str | None,
    overrides: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    cells: Cells,
) -> dict[str, Any]:
    """A record of kind ``reproduction``.

    Args:
        study: name of the study.
        title: heading of its table.
        budget: of the study, if it has any.
        overrides: what was given beside the study's own settings.
        settings: row -> settings, in the order of the rows.
        cells: (row, seed) -> what was measured; a row with none is left out.
    """
    ran = {row: own for row, own in settings.items() if any(name == row for name, _ in cells)}
    shared = shared_settings(ran.values())
    rows = []
    for row, own in ran.items():
        seeds = sorted(seed for name, seed in cells if name == row)
        chosen = [cells[row, seed] for seed in seeds]
        names = list(dict.fromkeys(key for cell in chosen for key in cell.values))
        rows.append(
            {
                "name": row,
                "settings": {key: value for key, value in own.items() if key not in shared},
                "seeds": seeds,
                "values": {key: [cell.values.get(key) for cell in chosen] for key in names},
                "runs": [cell.run for cell in chosen],
            }
        )
    return {
        "schema": SCHEMA,
        "kind": "reproduction",
        "study": study,
        "budget": budget,
        "title": title,
        "overrides": portable(overrides),
        "settings": shared,
        "rows": rows,
    }


def kept_cells(record: Mapping[str, Any]) -> dict[tuple[str, int], Cell]:
    """The cells of a record of kind ``reproduction``: the inverse of :func:`record_of`."""
    return {
        (row["name"], seed): Cell(
            {key: values[n] for key, values in row["values"].items()},
            row["runs"][n],
            {**record["settings"], **row["settings"]},
        )
        for row in record["rows"]
        for n, seed in enumerate(row["seeds"])
    }


def read_kept(path: Path) -> dict[str, Any]:
    """Read a record, and refuse what is none.

    Raises:
        ValueError: the file is damaged, of another schema, or not a record.
    """
    record = read_record(path)
    if record.get("schema") != SCHEMA or record.get("kind") not in KINDS:
        raise ValueError(
            f"{path} has schema {record.get('schema')!r} and kind {record.get('kind')!r}; expected schema {SCHEMA} and "
            f"one of {', '.join(KINDS)}: move it away, and make it again with this version."
        )
    problem = _problem(record)
    if problem:
        raise ValueError(f"{path} is damaged: {problem}; take the file from version control again, or delete it.")
    return record


def _problem(record: Mapping[str, Any]) -> str | None:
    """The first thing that a record lacks, in words."""
    if not all(isinstance(record.get(key), str) for key in ("study", "title")):
        return "it has no study or no title"
    if not isinstance(record.get("rows"), list):
        return "it has no rows"
    tables = record["kind"] == "reproduction"
    if not isinstance(record.get("settings"), dict):
        return "it has no settings"
    for row in record["rows"]:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            return "a row has no name"
        name, seeds, runs = row["name"], row.get("seeds"), row.get("runs")
        if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds):
            return f"the row {name} has no seeds"
        if len(set(seeds)) != len(seeds):
            return f"the row {name} has a seed twice"
        if not isinstance(runs, list) or len(runs) != len(seeds) or not all(isinstance(run, dict) for run in runs):
            return f"the row {name} does not say of every seed how it was run"
        if not isinstance(row.get("settings"), dict):
            return f"the row {name} has no settings"
        if tables:
            values = row.get("values")
            if not isinstance(values, dict) or not all(
                isinstance(numbers, list)
                and len(numbers) == len(seeds)
                and all(number is None or isinstance(number, int | float) for number in numbers)
                for numbers in values.values()
            ):
                return f"the row {name} does not have one number per seed for every measure"
        elif not all(isinstance(run.get("points"), list) for run in runs):
            return f"the row {name} has no points"
    names = [row["name"] for row in record["rows"]]
    return "two rows have the same name" if len(set(names)) != len(names) else None


def write_record(path: Path, record: Mapping[str, Any]) -> Path:
    """Write a record whole or not at all, lists and runs on a line each, so that a new seed is a small difference."""
    return write_text(path, _laid_out(finite(dict(record))) + "\n")


def _laid_out(value: Any, depth: int = 0) -> str:
    inner, outer = " " * (depth + 1), " " * depth
    if isinstance(value, dict) and (depth == 0 or any(isinstance(item, dict | list) for item in value.values())):
        if depth > 4:
            return json.dumps(value, ensure_ascii=False)
        parts = [f"{inner}{json.dumps(key)}: {_laid_out(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{outer}}}" if parts else "{}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value) and depth <= 4:
        return "[\n" + ",\n".join(inner + _laid_out(item, depth + 1) for item in value) + f"\n{outer}]"
    return json.dumps(value, ensure_ascii=False)
