"""The record of an evaluation, as ``evaluation.json`` holds it: plain data, of which any number may be null."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, TypedDict

from .measures import MEASURES, Measure, Scores, flat, score

__all__ = ["EvaluationRecord", "ForwardRollRecord", "MeasureRow", "rows"]


class MeasureRow(TypedDict, total=False):
    """One line of the table of measures: a number per model."""

    key: str
    label: str
    unit: str
    better: str
    trained: float | None
    standard_error: float | None
    untrained: float | None
    plain_vae: float | None
    note: str


class DataRecord(TypedDict, total=False):
    """What was judged."""

    name: str
    split: str
    n_sequences: int
    n_frames: int
    moving: list[str]
    given: dict[str, Any]  # settings that stood in the place of the run's own, so that other data were judged
    splits: dict[str, Any]  # the fingerprints of these data, as in data.json


def judged_on(data: DataRecord) -> str:
    """What was judged, in words.

    Example:
        >>> judged_on({"split": "test"})
        'the test split'
        >>> judged_on({"split": "test", "given": {"data.source.path": "x.npy"}})
        'the test split of other data (data.source.path=x.npy)'
    """
    given = [f"{name}={value}" for name, value in (data.get("given") or {}).items()]
    return f"the {data.get('split', 'test')} split" + (f" of other data ({', '.join(given)})" if given else "")


class ForwardRollRecord(TypedDict, total=False):
    """A :class:`.ForwardRoll` without its frames: forecast -> one number for each unseen frame, by how far it lies."""

    context: int
    log_likelihood: dict[str, list[float | None]]
    pixel_error: dict[str, list[float | None]]
    conditional: dict[str, float] | None


class EvaluationRecord(TypedDict, total=False):
    """The whole file; a part may be missing where another version wrote it."""

    schema: int
    name: str
    collapsed: bool | None  # null where `explained` is undefined
    verdict: list[str]
    data: DataRecord
    rows: list[MeasureRow]
    measures: dict[str, Scores]
    notes: list[str]
    failed: dict[str, str]  # what could not be measured or drawn, and why
    transient: list[str]  # which of it for a cause that may pass, so that the same command tries again
    figures: dict[str, str]  # what was drawn, and a digest of it
    weights: dict[str, str]  # the files of what was judged, and a digest of each
    seed: int
    versions: dict[str, str]
    hardware: str
    seconds: dict[str, float | None]
    parameters: int
    forward_roll: ForwardRollRecord


def rows(scores: Mapping[str, Scores], num_particles: int) -> list[MeasureRow]:
    """The table of measures: of the roles ``trained``, ``untrained`` and ``plain_vae``, those that were scored."""
    trained = scores["trained"]
    scored = [measure for measure in MEASURES if measure.key in trained]
    errors = flat({measure.error_of: trained[measure.key] for measure in scored if measure.error_of})

    def row(measure: Measure, part: str) -> MeasureRow:
        name = f"{measure.key}/{part}" if part else measure.key
        values = {role: score(own, name) for role, own in scores.items()}
        label = measure.label.format(k=num_particles)
        return {
            "key": name,
            "label": f"{label}, {part}" if part else label,
            "unit": measure.unit.format(k=num_particles),
            "better": measure.direction,
            "trained": values["trained"],
            "standard_error": errors.get(name),
            "untrained": values.get("untrained"),
            "plain_vae": values.get("plain_vae"),
            "note": measure.note or ("blind to collapse" if measure.blind_to_collapse else ""),
        }

    listed = sorted((measure for measure in scored if not measure.error_of), key=lambda measure: measure.place)
    table = []
    for _, group in itertools.groupby(listed, key=lambda measure: measure.beside or measure.key):
        together = list(group)
        values = [trained[measure.key] for measure in together]
        parts = dict.fromkeys(part for value in values for part in (value if isinstance(value, dict) else ("",)))
        table += [
            row(measure, part)
            for part in parts
            for measure, value in zip(together, values, strict=True)
            if not isinstance(value, dict) or part in value
        ]
    return table
