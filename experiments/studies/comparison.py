"""Comparison: a record of several rows and seeds as one table, in Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, cast
from urllib.parse import quote

from ..evaluation.measures import BLIND, HEADINGS
from ..reports.tables import MISSING, format_number
from .records import TABLE, Record, Row

__all__ = ["aggregate", "as_csv", "collapsed_seeds", "ends", "in_code", "in_markdown", "markdown", "table"]

MARK = "†"
AS_TYPED = ("command", "overrides")  # which stand in code, see in_code
UNITS = "Nats per frame where a measure is in nats; ± is the standard deviation over seeds."


def aggregate(values: Iterable[float | None]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds of the numbers that are there; nan and None where there are too few.

    Example:
        >>> aggregate([1.0, 3.0, None])
        (2.0, 1.4142135623730951)
    """
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(numbers) if numbers else math.nan, statistics.stdev(numbers) if len(numbers) > 1 else None


def collapsed_seeds(row: Row) -> list[int]:
    """The seeds of a row whose model has collapsed."""
    flags = row.get("values", {}).get("collapsed", [None] * len(row["seeds"]))
    return [seed for seed, flag in zip(row["seeds"], flags, strict=True) if flag]


def markdown(record: Record) -> str:
    """A record as Markdown: a heading, and measures down and rows across, mean ± standard deviation over seeds."""
    record = in_markdown(record)
    body = table(record) if record["kind"] == TABLE else ends(record)
    pictures = "".join(f"\n![{name.removesuffix('.png')}]({quote(name)})\n" for name in record.get("figures") or ())
    return f"### {record['title']}\n\n{body}{pictures}"


def in_markdown(record: Record) -> Record:
    """A record whose texts stand in Markdown as they are: a title may be a stranger's, and hold HTML or a link.

    Example:
        >>> in_markdown({"title": "a <b> | [c](d)"})
        {'title': 'a &lt;b> \\\\| [c\\\\](d)'}
    """
    return cast(Record, {key: value if key in AS_TYPED else _escaped(value) for key, value in record.items()})


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if not isinstance(value, str):
        return value
    text = re.sub(r"[\\|`]|\](?=[(\[:])", r"\\\g<0>", " ".join(value.split()))
    return re.sub(r"&(?=[#\w])", "&amp;", text).replace("<", "&lt;")


def in_code(text: str) -> str:
    """A text as code within a line of Markdown, whatever it holds.

    Example:
        >>> in_code("pyro-tvae train"), in_code("a`b")
        ('`pyro-tvae train`', '`` a`b ``')
    """
    text = " ".join(text.split())
    longest = max(map(len, re.findall("`+", text)), default=0)
    return f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}" if longest else f"`{text}`"


def table(record: Record) -> str:
    """The table of a record without a heading."""
    rows = record["rows"]
    lines = _head("", rows)
    marked = gaps = False
    for key, label in _columns(record).items():
        cells = [_cell(row, key) for row in rows]
        if any(cell != MISSING for cell in cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
            marked = marked or any(cell.endswith(MARK) for cell in cells)
            gaps = gaps or any(None in row["values"].get(key, (None,)) for row in rows)
    lines += ["", UNITS]
    if gaps:
        lines[-1] += f" Undefined numbers are left out of means; {MISSING}: undefined or not measured in all seeds."
    if marked:
        lines += ["", f"{MARK} over models of which some have collapsed: their measures of equivariance mean nothing."]
    return "\n".join(lines) + "\n"


ENDS = ("seconds", "step", "elbo", "iwae", "explained", "forward_roll", "forward_roll_floor")


def ends(record: Record) -> str:
    """A record of kind ``recipe`` as a table of where its curves end."""
    rows = record["rows"]
    lines = _head(" at the end", rows)
    for key in ENDS:
        last = [aggregate([run["points"][-1].get(key) for run in row["runs"]]) for row in rows]
        lines.append(f"| {HEADINGS[key]} | " + " | ".join(format_number(*value) for value in last) + " |")
    for key, label in _columns(record).items():
        lines.append(f"| {label} | " + " | ".join(_cell(row, key) for row in rows) + " |")
    return "\n".join(lines) + f"\n\n{UNITS}\n"


def _head(corner: str, rows: Sequence[Row]) -> list[str]:
    """The first lines of a table: names of the rows, and their seeds."""
    seeds = [", ".join(map(str, row["seeds"])) or MISSING for row in rows]
    names = f"|{corner} | " + " | ".join(row["name"] for row in rows) + " |"
    return [names, "|---" * (len(rows) + 1) + "|", f"| seeds | {' | '.join(seeds)} |"]


def _columns(record: Record) -> dict[str, str]:
    present = list(dict.fromkeys(key for row in record["rows"] for key in row.get("values", ())))
    split = {key: key.partition("/") for key in present}
    parts = {key: f"{HEADINGS[name]}, {part}" for key, (name, _, part) in split.items() if part and name in HEADINGS}
    return {key: heading for key, heading in HEADINGS.items() if key in present} | parts


def _cell(row: Row, key: str) -> str:
    values: Sequence[float | None] = row.get("values", {}).get(key, ())
    collapsed = collapsed_seeds(row)
    if key == "collapsed":
        return f"{len(collapsed)} of {len(row['seeds'])}" if any(value is not None for value in values) else MISSING
    text = format_number(*aggregate(values))
    return f"{text} {MARK}" if collapsed and text != MISSING and key.partition("/")[0] in BLIND else text


def as_csv(record: Record) -> str:
    """A record as CSV, one number a line: row, seed, measure, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "seed", "measure", "value"])
    for row in record["rows"]:
        for key, values in row["values"].items():
            for seed, value in zip(row["seeds"], values, strict=True):
                writer.writerow([_cell_text(row["name"]), seed, _cell_text(key), "" if value is None else repr(value)])
    return text.getvalue()


def _cell_text(text: str) -> str:
    """A text as a cell, which no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
