"""The table of the command ``likelihood``: bounds of log p(x) of a run, with units, and the record that holds them."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from rich.console import Console

from pyro_tvae.inference.pareto import RELIABLE_PARETO_K

from .terminal import plain_table, wide_console

__all__ = ["Bracket", "LikelihoodRecord", "LikelihoodRow", "print_likelihood"]


class LikelihoodRow(TypedDict):
    """One estimate; nats per frame, but ``particle_error``, nats per sequence. ``gain`` is over the first estimate."""

    what: str
    per_frame: float
    per_frame_error: float
    particle_error: float
    gain: float
    gain_error: float
    k: NotRequired[int]
    ess: float
    unreliable: int | None
    seconds: float


class Bracket(TypedDict):
    """Upper minus lower bound on simulated sequences, nats per sequence."""

    gap: float
    gap_error: float
    what: str


class LikelihoodRecord(TypedDict):
    """The content of ``likelihood.json``."""

    kind: str
    name: str
    split: str
    sequences: int
    n_frames: int
    threads: int
    seed: int
    remark: str | None
    rows: list[LikelihoodRow]
    bracket: NotRequired[Bracket]


def print_likelihood(record: LikelihoodRecord, console: Console | None = None) -> None:
    """Print a record of :func:`.likelihood_run` as a table with units."""
    console = console or wide_console(110)
    headings = ("nats / frame", "above the first", "median ESS", f"Pareto k > {RELIABLE_PARETO_K}", "seconds")
    table = plain_table("lower bound of log p(x)", *headings, gap=2)
    n = record["sequences"]
    for row in record["rows"]:
        unreliable = row["unreliable"]
        table.add_row(
            row["what"],
            f"{row['per_frame']:.2f} ± {row['per_frame_error']:.2f}",
            f"{row['gain']:.3f} ± {row['gain_error']:.3f}",
            f"{row['ess']:.1f}",
            "–" if unreliable is None else f"{unreliable} of {n}",
            f"{row['seconds']:.1f}",
        )
    console.print(f"{record['name']}: {n} {record['split']} sequences of {record['n_frames']} frames", highlight=False)
    console.print(table)
    console.print("± is the standard error over sequences; higher is better.", highlight=False)
    if "bracket" in record:
        gap = record["bracket"]
        console.print(
            f"On simulated sequences, where log p(x) can be bounded from above too, annealing leaves a gap of "
            f"{gap['gap']:.2f} ± {gap['gap_error']:.2f} nats per sequence.",
            highlight=False,
        )
    if record["remark"]:
        console.print(record["remark"], highlight=False)
