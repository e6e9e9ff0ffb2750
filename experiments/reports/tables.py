"""Tables: the numbers of an evaluation as text, with as many digits as they can carry, and tables for the terminal.

:func:`rows` turns an evaluation into strings once; the terminal and the report show the same ones.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.record import EvaluationRecord, MeasureRow

__all__ = [
    "BLIND",
    "Row",
    "describe_data",
    "evaluation_table",
    "filled",
    "format_number",
    "format_seconds",
    "plain_table",
    "print_evaluation",
    "remarks",
    "rows",
    "wide_console",
    "yes_or_no",
]

SCHEMA = 1
MISSING = "–"
BLIND = (
    "E_eq and CapCorr are blind to collapse: a model whose code says nothing about its input can score perfectly on "
    "both. Read them beside the likelihood."
)


class Row(NamedTuple):
    """One measure, as it is printed; an empty string means that there is nothing to say."""

    key: str
    label: str
    unit: str
    better: str
    trained: str
    untrained: str
    plain_vae: str
    note: str


def format_number(value: float | None, standard_error: float | None = None) -> str:
    """A number with the digits it can carry.

    With a standard error: to the second significant digit of that error. Without one: four significant digits, and
    never fewer than all digits before the point. Whole numbers stay whole; a missing or undefined number is "–".

    Example:
        >>> format_number(-152.3061, 0.2812), format_number(0.98765), format_number(13273.4), format_number(None)
        ('-152.31 ± 0.28', '0.9877', '13,273', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if standard_error is not None and math.isfinite(standard_error) and standard_error > 0:
        decimals = _decimals(standard_error, digits=2)
        if decimals <= 8:
            return f"{_fixed(value, decimals)} ± {_fixed(standard_error, decimals)}"
    if isinstance(value, int) or value == 0:
        return _fixed(value, 0)
    if abs(value) < 1e-4 or abs(value) >= 1e12:
        return f"{value:.3e}"
    return _fixed(value, _decimals(value, digits=4))


def format_seconds(seconds: float | None) -> str:
    """A duration in words.

    Example:
        >>> format_seconds(4.21), format_seconds(185.0), format_seconds(7384)
        ('4.2 s', '3 min 5 s', '2 h 3 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def rows(evaluation: EvaluationRecord) -> list[Row]:
    """The measures of an evaluation as strings, in their order.

    Args:
        evaluation: the content of a run's ``evaluation.json``. Any number may be None or NaN: it becomes "–", and the
            note says that it is undefined.

    Raises:
        ValueError: the evaluation was written in another format.
    """
    schema = evaluation.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise ValueError(
            f"the evaluation has schema {schema!r}, this pyro-tvae reads {SCHEMA}; update pyro-tvae, or evaluate again."
        )
    return [_row(entry) for entry in evaluation.get("rows") or ()]


def evaluation_table(evaluation: EvaluationRecord) -> Table:
    """The measures as a table for the terminal: trained ± standard error, beside the untrained model and a plain VAE.

    A column that is empty in every row is left out. A bracketed number refers to a note, which
    :func:`print_evaluation` prints below.

    Args:
        evaluation: the content of a run's ``evaluation.json``.
    """
    entries = rows(evaluation)
    marks = {note: number for number, note in enumerate(_notes(entries), start=1)}
    labels = [f"{entry.label} [{marks[entry.note]}]" if entry.note else entry.label for entry in entries]
    table = _frameless(1)
    table.add_column("measure", min_width=min(24, _longest_word(labels)))
    shown = filled(entries)
    columns = {"unit": "unit", "better": "better", "trained": _trained_heading(evaluation)}
    columns |= {"untrained": "untrained", "plain_vae": "plain VAE"}
    columns = {field: heading for field, heading in columns.items() if shown.get(field, True)}
    for field, heading in columns.items():
        cells = [heading, *(getattr(entry, field) for entry in entries)]
        if field in ("unit", "better"):
            table.add_column(heading, min_width=min(24, _longest_word(cells)))
        else:
            # A number that is cut is a wrong number: its column never shrinks.
            table.add_column(heading, justify="right", no_wrap=True, min_width=max(len(cell) for cell in cells))
    for label, entry in zip(labels, entries, strict=True):
        # Text, not markup: a name with brackets in it is a name.
        cells = [label, *(getattr(entry, field) for field in columns)]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def print_evaluation(evaluation: EvaluationRecord, console: Console | None = None) -> None:
    """Print an evaluation: the table, its notes, and the verdict in words.

    Args:
        evaluation: the content of a run's ``evaluation.json``.
        console: where to; None is standard output. Where that is no terminal (a pipe, a file), lines are up to 100
            columns long and plain text.
    """
    console = console or wide_console()
    console.print(Text(str(evaluation.get("name") or "evaluation"), style="bold"))
    data = describe_data(evaluation)
    if data:
        console.print(Text(data))
    console.print()
    console.print(evaluation_table(evaluation), crop=False)
    console.print()
    for number, note in enumerate(_notes(rows(evaluation)), start=1):
        console.print(_hanging(f"[{number}]", note, console.width))
    collapsed = bool(evaluation.get("collapsed"))
    for number, sentence in enumerate(evaluation.get("verdict") or ()):
        style = ("bold red" if collapsed else "bold") if number == 0 else ""
        if number == 0:
            console.print()
        console.print(Text(str(sentence), style=style))
    console.print()
    for note in (*remarks(evaluation), BLIND):
        console.print(_hanging("Note:", note, console.width))


def remarks(evaluation: EvaluationRecord, failed: Mapping[str, str] | None = None) -> list[str]:
    """What is said beside the table: the evaluation's notes, and what could not be measured or drawn, then or now."""
    left_out = {**(evaluation.get("failed") or {}), **(failed or {})}
    notes = [str(note) for note in evaluation.get("notes") or ()]
    return notes + [f"{name} is left out: {sentence}" for name, sentence in left_out.items()]


def describe_data(evaluation: EvaluationRecord) -> str:
    """What was evaluated, in one line: data set, split, number of sequences and frames, moving factors."""
    data = evaluation.get("data") or {}
    parts = [" ".join(str(word) for word in (data.get("name"), data.get("split")) if word)]
    if data.get("n_sequences") is not None:
        frames = f" of {data['n_frames']} frames" if data.get("n_frames") is not None else ""
        parts.append(f"{data['n_sequences']:,} sequences{frames}")
    if data.get("moving"):
        parts.append("moving: " + ", ".join(str(factor) for factor in data["moving"]))
    return "; ".join(part for part in parts if part)


def _row(entry: MeasureRow) -> Row:
    trained, untrained, plain = entry.get("trained"), entry.get("untrained"), entry.get("plain_vae")
    remarks = []
    if _undefined(trained) or trained is None:
        remarks.append("undefined")
    # None is a model that was not measured; NaN is one where the measure has no value.
    elsewhere = [name for name, value in (("untrained model", untrained), ("plain VAE", plain)) if _undefined(value)]
    if elsewhere:
        remarks.append("undefined for the " + " and the ".join(elsewhere))
    note = str(entry.get("note") or "")
    if note and "undefined" in note.lower():
        remarks = []
    return Row(
        key=str(entry.get("key") or ""),
        label=str(entry.get("label") or entry.get("key") or ""),
        unit=str(entry.get("unit") or ""),
        better=str(entry.get("better") or ""),
        trained=format_number(trained, entry.get("standard_error")),
        untrained=format_number(untrained),
        plain_vae=format_number(plain),
        note="; ".join([*remarks, note] if note else remarks),
    )


def _undefined(value: float | None) -> bool:
    return isinstance(value, float) and math.isnan(value)


def filled(entries: list[Row]) -> dict[str, bool]:
    """Which of the columns that may be empty are not."""
    fields = ("unit", "better", "untrained", "plain_vae")
    return {field: any(getattr(entry, field) not in ("", MISSING) for entry in entries) for field in fields}


def _trained_heading(evaluation: EvaluationRecord) -> str:
    errors = (format_number(row.get("standard_error")) for row in evaluation.get("rows") or ())
    return "trained ± s.e." if any(error != MISSING for error in errors) else "trained"


def _notes(entries: list[Row]) -> list[str]:
    return list(dict.fromkeys(entry.note for entry in entries if entry.note))


def _decimals(value: float, digits: int) -> int:
    """Places after the point that show ``digits`` significant digits of ``value``, after rounding to them."""
    exponent = int(f"{abs(value):.{digits - 1}e}".split("e")[1])
    return max(0, digits - 1 - exponent)


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    whole, point, rest = text.partition(".")
    sign, whole = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    # A thousands separator only where it helps: in numbers of five digits and more.
    whole = f"{int(whole):,}" if len(whole) >= 5 else whole
    # A tiny negative that rounds away is zero, not minus zero.
    sign = "" if float(text) == 0 else sign
    return sign + whole + point + rest


def _longest_word(texts: Iterable[str]) -> int:
    return max((len(word) for text in texts for word in text.split()), default=1)


def _hanging(mark: str, text: str, width: int) -> Text:
    indent = " " * (len(mark) + 1)
    return Text(textwrap.fill(f"{mark} {text}", max(width, 40), subsequent_indent=indent, break_long_words=False))


# ---- the terminal


def wide_console(least: int = 100) -> Console:
    """Standard output; at least so many columns wide where it is no terminal (a pipe, a file)."""
    console = Console()
    return console if console.is_terminal else Console(width=max(least, console.width))


def plain_table(first: str, *headings: str, gap: int, wraps: bool = False) -> Table:
    """A table with names in the first column, which may wrap, and numbers in the others, which never do."""
    table = _frameless(gap)
    table.add_column(first, no_wrap=not wraps)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def yes_or_no(met: bool | None) -> Text:
    """Whether a target was met, in its colour; a dash where there is none."""
    if met is None:
        return Text("–")
    return Text("yes", "green") if met else Text("no", "bold red")


def _frameless(gap: int) -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, gap, 0, 0))
