"""Benchmarks: what is measured at the paper's size, each as ratios within one run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["ABOUT", "EXTRA", "NAMES", "run_suite"]

# Seconds that each takes, about, on two cores: an estimate before anything has been measured.
ABOUT = {
    "speed": 60,
    "throughput": 40,
    "memory": 100,
    "scaling": 60,
    "growth": 150,
    "startup": 15,
    "gradients": 60,
    "turns": 120,
    "quickstart": 1_000,
    "gpu": 90,
    "large_file": 120,
}
NAMES = tuple(ABOUT)
# Need another version, JAX, a GPU or a large disk to say much: run where they are asked for.
EXTRA = ("turns", "quickstart", "gpu", "large_file")


def run_suite(
    names: Sequence[str] | None = None,
    *,
    threads: int = 2,
    output: str | Path | None = None,
    progress: bool = True,
    beside: str | Path | None = None,
    device: str = "cuda",
) -> dict[str, Any]:
    """Run benchmarks by name, print each as a table, and return their common record.

    Args:
        names: some of :data:`NAMES`; all but :data:`EXTRA` by default.
        threads: of torch.
        output: JSON file of the record; None writes none. Until all are done it is written beside it, before the first
            benchmark and after each, so that an interruption loses only the one under way.
        progress: show progress bars, and how long the rest will take.
        beside: a checkout of another version, which ``growth``, ``turns`` and ``quickstart`` compare with.
        device: of the benchmark ``gpu``: ``"cuda"``, or ``"cpu"`` for a trial.

    Raises:
        ValueError: there is no such benchmark, or no thread.
        OSError: the record cannot be written.
    """
    from pyro_tvae.files import free_name

    from ..interruption import command
    from ..provenance import machine
    from ..reports.tables import wide_console
    from ..runs.files import write_text
    from ..runs.outputs import put_aside, replacing, unfinished

    names = list(dict.fromkeys(names or [name for name in NAMES if name not in EXTRA]))
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(f"there is no benchmark called {unknown[0]!r}; expected some of {', '.join(NAMES)}.")
    if threads < 1:
        raise ValueError(f"benchmark: threads is {threads}; expected at least 1.")
    start = time.perf_counter()
    record: dict[str, Any] = {"schema": 4, "kind": "benchmark", "seed": 0, "machine": machine(threads)}
    record["command"] = command(
        "benchmark", *names, "--threads", threads, *(["--beside", beside] if beside is not None else [])
    )

    if output is not None:
        former = _former(Path(output)) if Path(output).is_file() else {}
        if former is None:
            raise FileExistsError(
                f"{output} is there already, and is no record of benchmarks; choose another --output, or move it away."
            )
        kept = [name for name in NAMES if name in former]
        if others := [name for name in kept if name not in names]:
            raise FileExistsError(
                f"{output} holds {', '.join(others)}, which was not asked for and would be lost; choose another "
                "--output, or move it away."
            )
        if kept and former.get("command") not in (None, record["command"]):
            put_aside(Path(output), "was measured by another command")
    with nullcontext() if output is None else replacing(Path(output), {}, overwrite=True) as written:
        part = unfinished(Path(output), {"benchmarks": names, "threads": threads}) if output is not None else None

        def write(path: Path | None = part) -> None:
            record["seconds"] = time.perf_counter() - start
            record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
            if path is not None:
                write_text(path, json.dumps(record, indent=2) + "\n")

        if part is not None and part.exists():  # of one that was interrupted, whose measurements took their time
            print(f"what was finished before is in {part.rename(free_name(part))}", flush=True)
        write()
        console = wide_console()
        here = record["machine"]
        console.print(f"{here['cpu']}, {here['threads']} threads, torch {here['torch']}", highlight=False)
        for position, name in enumerate(names):
            if progress:
                left = remaining(names, position, time.perf_counter() - start)
                where = f"{name}, {position + 1} of {len(names)}"
                console.print(f"\n{where}; about {left} to go", style="dim", highlight=False)
            module = import_module(f".{name}", __name__)
            options: dict[str, dict[str, Any]] = {"gpu": {"device": device}}
            options |= {one: {"beside": beside} for one in ("growth", "turns", "quickstart")}
            record[name] = module.run(threads=threads, progress=progress, **options.get(name, {}))
            module.print_record(record[name], console)
            write()
        if part is not None and written is not None:
            with written() as place:
                write(place)
            part.unlink()
            console.print(f"record: {output}", highlight=False)
        return record


def _former(path: Path) -> dict[str, Any] | None:
    """A record of benchmarks, which newer ones of them may replace; None of what is no record."""
    from ..runs.files import read_record

    with suppress(OSError, ValueError):
        record = read_record(path, dict[str, Any])
        if record.get("kind") == "benchmark":
            return record
    return None


def remaining(names: Sequence[str], position: int, spent: float) -> str:
    """How long a suite will still take, judged by the pace of what is done: before benchmark ``position`` of ``names``.

    Example:
        >>> remaining(["speed", "startup"], 1, spent=120.0)
        '30 seconds'
    """
    done, left = (sum(ABOUT[name] for name in part) for part in (names[:position], names[position:]))
    seconds = left * (spent / done if done else 1)
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
