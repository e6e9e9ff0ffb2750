"""Benchmarks: what is measured at the paper's size, each as ratios within one run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["NAMES", "run_suite"]

NAMES = ("speed", "memory", "gradients")


def run_suite(
    names: Sequence[str] | None = None, *, threads: int = 2, output: str | Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Run benchmarks by name, print each as a table, and return their common record.

    Args:
        names: some of :data:`NAMES`; all by default.
        threads: of torch.
        output: JSON file of the record, written whole or not at all after every benchmark; None writes nothing.
        progress: show progress bars.

    Raises:
        ValueError: there is no such benchmark, or no thread.
    """
    from ..folders import write_text
    from . import record as records

    names = names or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown or threads < 1:
        raise ValueError(
            f"benchmark: names={', '.join(names)}, threads={threads}; expected some of {', '.join(NAMES)}, and at "
            "least 1 thread."
        )
    start = time.perf_counter()
    record: dict[str, Any] = {"schema": 2, "kind": "benchmark", "machine": records.machine(threads)}
    console = records.console()
    here = record["machine"]
    console.print(f"{here['cpu']}, {here['threads']} threads, torch {here['torch']}", highlight=False)
    for name in names:
        module = import_module(f".{name}", __name__)
        record[name] = module.run(threads=threads, progress=progress)
        module.print_record(record[name], console)
        record["seconds"] = time.perf_counter() - start
        record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        if output is not None:
            write_text(Path(output), json.dumps(record, indent=2) + "\n")
    if output is not None:
        console.print(f"record: {output}", highlight=False)
    return record
