"""Records: what a study measured, one small JSON file per study and budget, to which later runs add seeds.

A record holds no path of the machine that made it. It is one mapping, :class:`Record`::

    {"schema": 2, "kind": "reproduction", "study": "table1", "budget": "hour", "title": "Table 1: …",
     "overrides": ["fit.beta=2"],              # what was given beside the study's own settings
     "settings": {"fit.max_steps": 3600, …},   # of all rows
     "rows": [{"name": "tvae_lhalf_mnist",
               "settings": {"topography.kernel": 18, …},        # what sets the row apart
               "seeds": [0, 1],
               "values": {"iwae": [-186.1, -185.9], …},         # per measure, one number or null per seed
               "runs": [{"hardware": "…", "versions": {…}, "seconds": {"training": 420.0, "evaluation": 35.0},
                         "forward_roll": {"context": 9, "log_likelihood": {"model": […], …}}, "digest": "…"}, …]}]}

Numbers are in nats per frame where a measure is in nats. A record of kind ``recipe`` holds learning curves against the
wall clock instead: the same mapping, with ``points`` in every run, and ``values`` of what was measured at their end
alone, if anything was::

    {"schema": 2, "kind": "recipe", "study": "recipe", "budget": null, "title": "…", "command": "…",
     "settings": {…}, "rows": [{"name": "published", "label": "SGD, as published", "settings": {…}, "seeds": [0, 1, 2],
               "runs": [{"hardware": "…", "versions": {…}, "seconds": {"training": 600.0},
                         "points": [{"seconds": 12.5, "step": 100, "iwae": -310.2, "explained": 0.1,
                                     "forward_roll": -420.0, "forward_roll_floor": -230.0}, …]}, …]}]}

``seconds`` of a point counts training alone, from its start, without the evaluations in between; the other numbers are
of the test split. Any run may have ``notes``, a list of sentences that must stand beside its numbers. Its ``digest``,
which older records lack, binds its numbers to its row and seed, whatever a hand does that merges records, and its
``splits``, fingerprints of the data as in a run's ``data.json``, keep other data out of the study. The row called
``published`` is the one that the others are compared with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

from ..evaluation.record import ForwardRollRecord
from ..runs.data import Splits
from ..runs.files import finite
from .settings import Settings, portable, shared_settings

__all__ = [
    "LEARNING_CURVES",
    "SCHEMA",
    "TABLE",
    "Cell",
    "Record",
    "Row",
    "RunInfo",
    "curve",
    "digest_of",
    "kept_cells",
    "record_of",
    "stem_of",
]

SCHEMA = 2
TABLE, LEARNING_CURVES = "reproduction", "recipe"  # kinds of records, as files name them

Values = dict[str, float | None]


class RunInfo(TypedDict, total=False):
    """How one run of a row was made, and what of it is no single number."""

    hardware: str
    versions: dict[str, str]
    seconds: dict[str, float]
    notes: list[str]
    digest: str
    splits: Splits
    forward_roll: ForwardRollRecord
    points: list[Values]


class Row(TypedDict):
    """One row over its seeds."""

    name: str
    label: NotRequired[str]
    settings: Settings
    seeds: list[int]
    values: NotRequired[dict[str, list[float | None]]]
    runs: list[RunInfo]


class Record(TypedDict):
    """A record, as its file has it."""

    schema: int
    kind: str
    study: str
    budget: NotRequired[str | None]
    title: str
    command: NotRequired[str]
    overrides: NotRequired[list[str]]
    settings: Settings
    rows: list[Row]
    figures: NotRequired[list[str]]
    pictures: NotRequired[dict[str, str]]


@dataclass(frozen=True)
class Cell:
    """One run of a row: its measures, and how they were come by.

    Attributes:
        values: measure -> number; nats per frame where not said otherwise; of a learning curve, what annealing found.
        run: see :class:`RunInfo`.
        settings: what the run was made from; empty where that is not known.
    """

    values: Values
    run: RunInfo
    settings: Settings = field(default_factory=dict)


Cells = Mapping[tuple[str, int], Cell]


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
    settings: Mapping[str, Settings],
    cells: Cells,
    labels: Mapping[str, str] | None = None,
) -> Record:
    """A record of a study's runs.

    Args:
        study: name of the study.
        title: heading of its table.
        budget: of the study, if it has any.
        overrides: what was given beside the study's own settings.
        settings: row -> settings, in the order of the rows.
        cells: (row, seed) -> what was measured; a row of a table that has none is left out.
        labels: row -> what figures call it, of learning curves, where every row keeps its place and so its color.
    """
    seeds = {name: sorted(seed for row, seed in cells if row == name) for name in settings}
    shown = {name: own for name, own in settings.items() if seeds[name] or labels is not None}
    shared = shared_settings(shown.values())
    return {
        "schema": SCHEMA,
        "kind": TABLE if labels is None else LEARNING_CURVES,
        "study": study,
        "budget": budget,
        "title": title,
        "overrides": portable(overrides),
        "settings": shared,
        "rows": [
            _row(name, own, shared, {seed: cells[name, seed] for seed in seeds[name]}, labels)
            for name, own in shown.items()
        ],
    }


def _row(
    name: str, settings: Settings, shared: Settings, cells: Mapping[int, Cell], labels: Mapping[str, str] | None
) -> Row:
    own = {key: value for key, value in settings.items() if key not in shared}
    seeds = list(cells)
    runs: list[RunInfo] = [{**cell.run, "digest": digest_of(name, seed, cell)} for seed, cell in cells.items()]
    measures = dict.fromkeys(key for cell in cells.values() for key in cell.values)
    values = {key: [cell.values.get(key) for cell in cells.values()] for key in measures}
    if labels is not None:
        row: Row = {"name": name, "label": labels.get(name, name), "settings": own, "seeds": seeds, "runs": runs}
        return row | {"values": values} if values else row
    return {"name": name, "settings": own, "seeds": seeds, "values": values, "runs": runs}


def digest_of(row: str, seed: int, cell: Cell) -> str:
    """What tells a cell from every other, and its numbers from others: not its notes, to which hands may add."""
    run = {key: value for key, value in cell.run.items() if key not in ("digest", "notes")}
    values = {key: value for key, value in finite(cell.values).items() if value is not None}
    text = json.dumps([row, seed, values, finite(run)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept_cells(record: Record) -> dict[tuple[str, int], Cell]:
    """The cells of a record: the inverse of :func:`record_of`."""
    return {
        (row["name"], seed): Cell(
            {key: values[n] for key, values in (row.get("values") or {}).items()},
            row["runs"][n],
            {**record["settings"], **row["settings"]},
        )
        for row in record["rows"]
        for n, seed in enumerate(row["seeds"])
    }


def curve(run: RunInfo, key: str) -> list[tuple[float, float]]:
    """A learning curve of a run, (seconds of training, value) in the order of time, without the points that lack it.

    Example:
        >>> points = [{"seconds": 9.0, "iwae": -2.0}, {"seconds": 3.0, "iwae": -5.0}, {"seconds": 6.0, "iwae": None}]
        >>> curve({"hardware": "", "versions": {}, "seconds": {}, "points": points}, "iwae")
        [(3.0, -5.0), (9.0, -2.0)]
    """
    numbers = ((point.get("seconds"), point.get(key)) for point in run.get("points") or ())
    return sorted((seconds, value) for seconds, value in numbers if seconds is not None and value is not None)
