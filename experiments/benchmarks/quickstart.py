"""Quickstart: processor time of ``pyro-tvae train`` and ``evaluate`` as a user gives them, beside another version's.

With the scores of both, since what is faster has to be as good.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from pyro_tvae.inference.progress import progress_bar

from ..reports.tables import plain_table, yes_or_no
from .children import environment, program
from .timing import spread
from .turns import site

__all__ = ["print_record", "run"]

TARGET = 0.5  # of the other version's time
SCORES = ("explained", "iwae", "iwae_error", "elbo", "kl")
ROLES = ("trained", "untrained", "plain_vae")


def run(
    *,
    threads: int = 1,
    progress: bool = True,
    beside: str | Path | None = None,
    turns: int = 3,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Train the quickstart once, then evaluate it a few times, each version its own run and in turns.

    Args:
        threads: of each process.
        progress: show a progress bar.
        beside: a checkout of another version; without one this version's time is told alone.
        turns: of evaluating.
        overrides: settings of the training, such as ``fit.max_epochs=1`` for a trial.

    Returns:
        A mapping ready for JSON: version (``here``, ``beside``) -> ``train`` and ``evaluate``, processor seconds of
        each call, ``fit``, wall seconds of the training alone, and ``scores``, role -> measure -> number, with the
        model's forecast; and where there are two, ``train`` and ``evaluate``, the ratios, ``target`` and ``met``.

    Raises:
        ValueError: nothing to measure, or no checkout there.
        RuntimeError: a command failed.
    """
    if min(threads, turns) < 1:
        raise ValueError(f"benchmark: threads={threads}, turns={turns}; expected at least 1 of each.")
    record: dict[str, Any] = {}
    with ExitStack() as stack:
        roots = {"here": None} | ({} if beside is None else {"beside": stack.enter_context(site(beside))})
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bar = stack.enter_context(progress_bar(len(roots) * (turns + 1), "quickstart", shown=progress, unit="command"))

        def seconds(version: str, *words: str) -> float:
            spent = _seconds(roots[version], folder, threads, *words)
            bar.update()
            return spent

        for version in roots:
            given = ("fit.progress=false", *overrides, f"hydra.run.dir={version}")
            record[version] = {"train": [seconds(version, "train", *given)], "evaluate": []}
        for _ in range(turns):
            for version in roots:
                record[version]["evaluate"].append(seconds(version, "evaluate", version))
        for version in roots:
            record[version] |= _results(folder / version)
    if len(roots) > 1:
        for what in ("train", "evaluate"):
            pairs = zip(record["here"][what], record["beside"][what], strict=True)
            ratios = spread([here / other for here, other in pairs])
            record[what] = {**ratios, "target": TARGET, "met": ratios["ratio"] <= TARGET}
    return record


def _seconds(root: str | None, folder: Path, threads: int, *words: str) -> float:
    """Processor seconds of a command in a folder, of this version or of that in ``root``."""
    before = sum(os.times()[2:4])
    command = ["-P", "-m", "pyro_tvae.experiments.cli", *words]
    program(command, f"quickstart: pyro-tvae {words[0]}", environment(threads, root), folder)
    return sum(os.times()[2:4]) - before


def _results(run: Path) -> dict[str, Any]:
    """How long a run trained, and what its evaluation says."""
    record = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    history = json.loads((run / "history.json").read_text(encoding="utf-8"))
    scores = {
        role: {name: record["measures"][role].get(name) for name in SCORES}
        for role in ROLES
        if role in record["measures"]
    }
    forecast = record.get("forward_roll", {}).get("log_likelihood", {}).get("model", [])
    first = forecast[: (len(forecast) + 1) // 2]
    if first and "trained" in scores:
        scores["trained"]["forward_roll"] = sum(first) / len(first)
    return {"fit": history.get("seconds"), "scores": scores}


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as tables."""
    versions = [name for name in ("here", "beside") if name in record]
    table = plain_table("processor seconds", *versions, "ratio", "lowest to highest", "target", "met", gap=1)
    for what in ("train", "evaluate"):
        cells: list[Any] = [", ".join(f"{one:.0f}" for one in record[version][what]) for version in versions]
        if what in record:
            ratio = record[what]
            cells += [f"{ratio['ratio']:.2f}", f"{ratio['low']:.2f} to {ratio['high']:.2f}", f"≤ {ratio['target']}"]
            cells.append(yes_or_no(ratio["met"]))
        table.add_row(f"pyro-tvae {what}", *cells)
    console.print(table)
    scores = plain_table("scores", *versions, gap=2)
    for role, own in record["here"]["scores"].items():
        for name in own:
            values = [record[version]["scores"].get(role, {}).get(name) for version in versions]
            scores.add_row(f"{name}, {role}", *("–" if value is None else f"{value:.2f}" for value in values))
    console.print(scores)
