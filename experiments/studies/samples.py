"""Samples: the numbers of a record's rows over seeds, and how a claim about them is worded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..reports.tables import format_number
from .comparison import aggregate, collapsed_seeds
from .records import Record, Row
from .verdicts import NOT_DECIDED, NOT_SEEN, Verdict, all_of

__all__ = ["Claim", "at", "called", "caveat", "judged", "listed", "numbers", "ranked", "row_of", "sample", "spelled"]

NAMES = {
    "tvae_lhalf": "TVAE (half)",
    "tvae_lpartial": "TVAE (partial)",
    "tvae_lshort": "TVAE (short)",
    "tvae_l0": "TVAE (L = 0)",
    "bubbles": "BubbleVAE",
    "nontvae": "plain VAE",
}
EQUIVARIANCE_VOID = "measures of equivariance there do not count"
LIKELIHOOD_COUNTS = "likelihoods there count all the same"


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Attributes:
        said: the claim in our words, and where it is made.
        verdict: ``"seen"``, ``"not seen"`` or ``"not decided"``.
        measured: the numbers that decide it, mean ± standard deviation over seeds, and what speaks against them.
    """

    said: str
    verdict: Verdict
    measured: str


def row_of(record: Record, name: str) -> Row | None:
    """The row of that name, or of that name on a data set (``tvae_lhalf`` stands for ``tvae_lhalf_mnist``)."""
    for row in record["rows"]:
        if row["name"] == name or (name in NAMES and row["name"].startswith(f"{name}_")):
            return row
    return None


def sample(row: Row | None, key: str, *, blind: bool = False, missing: float | None = None) -> list[float]:
    """A measure's numbers over seeds; of a measure that is blind to collapse, without the collapsed models.

    ``missing`` stands in for a number that was asked for and is undefined; None leaves it out.
    """
    if row is None or key not in row.get("values", ()):
        return []
    collapsed = collapsed_seeds(row) if blind else []
    alive = [value for seed, value in zip(row["seeds"], row["values"][key], strict=True) if seed not in collapsed]
    filled = [missing if value is None or not math.isfinite(value) else value for value in alive]
    return [float(value) for value in filled if value is not None]


def at(row: Row, seed: int, key: str) -> float | None:
    """A measure of one seed."""
    return row["values"][key][row["seeds"].index(seed)] if key in row.get("values", ()) else None


def called(name: str) -> str:
    """A row's name in prose."""
    return NAMES.get(name, name)


def spelled(values: Sequence[float]) -> str:
    """A sample as mean ± standard deviation."""
    if not values:
        return "no number"
    return format_number(*aggregate(values)) + ("" if len(values) > 1 else " (1 seed)")


def listed(samples: Mapping[str, Sequence[float]]) -> str:
    """Samples by their rows, without the empty ones."""
    return ", ".join(f"{called(name)} {spelled(values)}" for name, values in samples.items() if values)


def ranked(samples: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The samples that are not empty, the highest mean first."""
    return dict(sorted(((n, v) for n, v in samples.items() if v), key=lambda item: -statistics.fmean(item[1])))


def numbers(record: Record, names: Sequence[str], key: str, *, blind: bool = False) -> str:
    """A measure of several rows, in words."""
    return listed({name: sample(row_of(record, name), key, blind=blind) for name in names})


def caveat(record: Record, names: Sequence[str], consequence: str) -> str:
    """What is missing or collapsed among the rows that a claim is about, in words."""
    rows = {called(name): row_of(record, name) for name in names}
    missing = [name for name, row in rows.items() if row is None]
    collapsed = [
        f"{name} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        for name, row in rows.items()
        if row is not None and (seeds := collapsed_seeds(row))
    ]
    text = f" There are no runs of: {', '.join(missing)}." if missing else ""
    return text + (f" Collapsed: {', '.join(collapsed)}; {consequence}." if collapsed else "")


def judged(
    record: Record, names: Sequence[str], said: str, parts: Mapping[str, Verdict], measured: str, consequence: str
) -> Claim:
    """A claim about some rows, in parts that have a verdict each; ``consequence`` is what a collapse of a row means."""
    text = measured
    for verdict in (NOT_SEEN, NOT_DECIDED):
        open_parts = [part for part, own in parts.items() if own == verdict]
        if open_parts and set(parts.values()) != {verdict}:
            text += f" {verdict.capitalize()}: {'; '.join(open_parts)}."
    return Claim(said, all_of(parts.values()), text + caveat(record, names, consequence))
