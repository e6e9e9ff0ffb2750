"""Kept records: their files, read and checked whole, and rewritten by one process at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from pyro_tvae.files import check_stays, mkdir

from ..config.former_names import current_settings
from ..runs.files import MEND, finite, read_record, write_text
from ..runs.holding import holding
from ..runs.schema import problem
from .records import LEARNING_CURVES, SCHEMA, TABLE, Record, Row, digest_of, kept_cells

__all__ = ["FOLDER", "check_kept", "held", "read_kept", "with_additions", "write_record"]

KINDS = (TABLE, LEARNING_CURVES)
FEW = 5  # different numbers of a run at least, for those of another to be a copy
FOLDER = Path("experiments/results")  # where records are kept, seen from a checkout


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a record for this process while it is read and rewritten; whoever else wants to, waits.

    The lock is a file beside it, which is not left behind.

    Raises:
        OSError: the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    with ExitStack() as stack:
        check_stays(path)
        try:
            mkdir(path.parent)
            stack.enter_context(holding(lock, wait=True))
        except OSError as error:
            raise type(error)(f"{path} cannot be written ({error.strerror}); choose a place that can be.") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def read_kept(path: Path) -> Record:
    """Read a record, its settings under their present names, and refuse what is none.

    Raises:
        ValueError: the file is damaged, of another schema, or not a record.
    """
    record = read_record(path, dict[str, Any])
    if record.get("schema") != SCHEMA or record.get("kind") not in KINDS:
        raise ValueError(
            f"{path} has schema {record.get('schema')!r} and kind {record.get('kind')!r}; expected schema {SCHEMA} and "
            f"one of {', '.join(KINDS)}: move it away, and make it again with this version."
        )
    problem = _problem(record)
    if problem:
        raise ValueError(f"{path} is damaged: {problem}; {MEND}")
    for part in (record, *record["rows"]):
        part["settings"] = current_settings(part["settings"])
    return cast(Record, record)


def check_kept(path: Path, record: Record) -> None:
    """Raise ValueError where a record that is to be kept would be refused when it is read."""
    problem = _problem(finite(dict(record)))
    if problem:
        raise ValueError(
            f"{path} is left as it was, since what the runs give for it cannot be: {problem}; move the folder of the "
            "run that is a copy away, or run that seed anew."
        )


def with_additions(record: Record, path: Path) -> Record:
    """A record with what hands have added to the one that it takes the place of, such as captions and notes of rows."""
    if not path.is_file():
        return record
    former = read_kept(path)
    own = {row["name"]: row for row in former["rows"]}
    rows = [cast(Row, {**own.get(row["name"], {}), **row}) for row in record["rows"]]
    return cast(Record, {**former, **record, "rows": rows})


def _problem(record: Mapping[str, Any]) -> str | None:
    """The first thing that a record lacks, in words."""
    fault = problem(record, Record)
    if fault:
        return fault
    for row in record["rows"]:
        name, seeds, runs = row["name"], row["seeds"], row["runs"]
        if len(set(seeds)) != len(seeds):
            return f"the row {name} has a seed twice"
        if None in seeds or len(runs) != len(seeds):
            return f"the row {name} does not say of every seed how it was run"
        if record["kind"] == TABLE:
            if not all(len(numbers) == len(seeds) for numbers in (row.get("values") or {"": ()}).values()):
                return f"the row {name} does not have one number per seed for every measure"
        elif not all(run.get("points") for run in runs):
            return f"the row {name} has no points"
        scores = [run["forward_roll"].get("log_likelihood") or {} for run in runs if run.get("forward_roll")]
        if len({len(series) for score in scores for series in score.values()}) > 1:
            return f"the row {name} has forecasts of different lengths"
    names = [row["name"] for row in record["rows"]]
    return "two rows have the same name" if len(set(names)) != len(names) else _by_hand(cast(Record, record))


def _by_hand(record: Record) -> str | None:
    """A cell that a hand that merged records has given another's numbers, in words: no two trainings agree so."""
    measured: dict[tuple[float | None, ...], tuple[str, int]] = {}
    for (row, seed), cell in kept_cells(record).items():
        points = [value for point in cell.run.get("points") or () for _, value in sorted(point.items())]
        # A hand may have left the times of the wall clock.
        measures = (value for key, value in sorted(cell.values.items()) if not key.startswith("seconds"))
        numbers = (*(value for value in measures if value is not None), *points)
        if len({*numbers}) >= FEW and numbers in measured:
            name, other = measured[numbers]
            of = f" of the row {name}" if name != row else ""
            return f"the row {row} has for seed {seed} the numbers of seed {other}{of}, to the last digit"
        measured[numbers] = row, seed
        if cell.run.get("digest") not in (None, digest_of(row, seed, cell)):
            return f"the row {row} has for seed {seed} other numbers than its run gave, by their digest"
    return None


def write_record(path: Path, record: Record) -> Path:
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
