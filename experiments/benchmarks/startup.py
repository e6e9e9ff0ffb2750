"""Start-up: wall-clock time of commands that compute nothing, in fresh processes, and the heavy modules they import."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pyro_tvae.inference.progress import progress_bar

from ..reports.tables import plain_table, yes_or_no
from .children import program
from .timing import seconds_of, spread

__all__ = ["HEAVY", "heavy_imports", "print_record", "run", "summary"]

COMMANDS = (("--help",), ("list",), ("train", "--cfg", "job"))
HEAVY = ("torch", "pyro", "lightning", "numpy", "matplotlib", "sklearn", "arviz", "torchvision")
TARGET = 1.0  # seconds of --help
COLD = "the first, not yet compiled"


def run(
    *, threads: int = 2, progress: bool = True, repeats: int = 7, commands: Sequence[Sequence[str]] = COMMANDS
) -> dict[str, Any]:
    """Start every command several times, beside an interpreter that does nothing.

    The first command is also started with an empty cache of bytecode, as after an installation.

    Args:
        threads: not used.
        progress: show a progress bar.
        repeats: starts of each.
        commands: arguments of ``pyro-tvae``; the first is the one with a target.

    Returns:
        A mapping ready for JSON: ``commands`` (command -> see :func:`summary`) and ``interpreter``, median seconds of a
        bare Python.

    Raises:
        ValueError: nothing to measure.
        RuntimeError: a command failed.
    """
    if repeats < 1 or not commands:
        raise ValueError(f"benchmark: repeats={repeats}, {len(commands)} commands; expected at least 1 of each.")
    names = {" ".join(words): ["-m", "pyro_tvae.experiments.cli", *words] for words in commands}
    first = " ".join(commands[0])
    seconds: dict[str, list[float]] = {name: [] for name in (first, COLD, *names)}
    bare: list[float] = []
    heavy = {}
    with tempfile.TemporaryDirectory() as folder, progress_bar(repeats + len(names), "start-up", shown=progress) as bar:
        for name, command in names.items():
            heavy[name] = heavy_imports(_start(["-X", "importtime", *command], folder))
            bar.update()
        for turn in range(repeats):
            bare.append(_seconds(["-c", "pass"], folder))
            for name, command in names.items():
                seconds[name].append(_seconds(command, folder))
            empty = str(Path(folder) / f"cache{turn}")
            seconds[COLD].append(_seconds(names[first], folder, PYTHONPYCACHEPREFIX=empty))
            bar.update()
    heavy[COLD] = heavy[first]
    targets = {first: TARGET, COLD: TARGET}
    measured = {name: summary(seconds[name], bare, heavy[name], targets.get(name)) for name in seconds}
    return {"commands": measured, "interpreter": spread(bare)["ratio"]}


def _seconds(command: Sequence[str], folder: str, **given: str) -> float:
    return seconds_of(lambda: _start(command, folder, **given))


def _start(command: Sequence[str], folder: str, **given: str) -> str:
    """Run a command to its end; its standard error."""
    return program(command, f"startup: {' '.join(command)}", os.environ | given, folder).stderr


def heavy_imports(report: str) -> list[str]:
    """Which of :data:`HEAVY` a process imported, from what ``python -X importtime`` reported.

    Example:
        >>> heavy_imports("import time:       120 |        300 |   torch.version\\nimport time: 1 | 1 | re")
        ['torch']
    """
    modules = re.findall(r"^import time:\s*\d+ \|\s*\d+ \|\s*([\w.]+)$", report, re.MULTILINE)
    return [name for name in HEAVY if name in {module.split(".")[0] for module in modules}]


def summary(
    seconds: Sequence[float], bare: Sequence[float], heavy: Sequence[str], target: float | None
) -> dict[str, Any]:
    """One command.

    Args:
        seconds: of its starts.
        bare: of an interpreter that does nothing, just before each.
        heavy: the heavy modules that it imports.
        target: most seconds at the median, or None.

    Example:
        >>> summary([0.2, 0.4, 0.3], [0.1, 0.1, 0.1], [], 1.0)["met"]
        True
    """
    starts = spread(seconds)
    median = starts.pop("ratio")
    return {
        "seconds": median,
        **starts,
        "ratio": spread([a / b for a, b in zip(seconds, bare, strict=True)])["ratio"],
        "heavy": list(heavy),
        "target": target,
        "met": None if target is None else median <= target,
    }


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    table = plain_table("starting pyro-tvae …", "seconds", "lowest to highest", "bare Python", "target", "met", gap=2)
    table.add_column("imports")
    for name, start in record["commands"].items():
        target = start["target"]
        table.add_row(
            name,
            f"{start['seconds']:.2f}",
            f"{start['low']:.2f} to {start['high']:.2f}",
            f"{start['ratio']:.0f} x",
            "–" if target is None else f"≤ {target:.0f}",
            yes_or_no(start["met"]),
            ", ".join(start["heavy"]) or "none heavy",
        )
    console.print(table)
    repeats = next(iter(record["commands"].values()))["repeats"]
    console.print(
        f"Medians of {repeats} fresh processes each; a bare Python takes {record['interpreter']:.3f} seconds."
    )
