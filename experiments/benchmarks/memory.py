"""Memory of importance weights: the peak of a process that draws few particles against one that draws many."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from pyro_tvae.inference import log_likelihood

from .record import console as record_console
from .speed import Setting, make_batches

__all__ = ["peak", "print_record", "run"]

PARTICLES = (1_000, 10_000)
LIMIT = 1.05  # of the second peak to the first


def run(*, threads: int = 2, progress: bool = True, particles: Sequence[int] = PARTICLES) -> dict[str, Any]:
    """Peak memory of ``log_likelihood`` at the paper's MNIST size for several K, each in a process of its own.

    Returns:
        A mapping ready for JSON: ``peaks`` (K -> bytes), ``ratio`` of the last to the first, ``target``, ``met``.

    Raises:
        RuntimeError: a process failed.
    """
    peaks = {}
    for k in particles:
        command = [sys.executable, "-m", __name__, str(k), str(threads), str(int(progress))]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if child.returncode != 0:
            raise RuntimeError(f"benchmark memory: the process with K = {k} ended with status {child.returncode}.")
        peaks[k] = int(json.loads(child.stdout))
    ratio = peaks[particles[-1]] / peaks[particles[0]]
    return {
        "peaks": {str(k): value for k, value in peaks.items()},
        "ratio": ratio,
        "target": LIMIT,
        "met": ratio <= LIMIT,
        "setting": "the paper's MNIST model, one batch of 8 sequences",
    }


def print_record(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a record of :func:`run` as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("importance weights: particles per sequence")
    table.add_column("peak memory of the process, MB", justify="right")
    for k, value in record["peaks"].items():
        table.add_row(f"{int(k):,}", f"{value / 1e6:,.0f}")
    console = console or record_console()
    console.print(table)
    met = "met" if record["met"] else "NOT met"
    console.print(f"last to first {record['ratio']:.3f}, target at most {record['target']} {met}; {record['setting']}.")


def peak() -> int:
    """Largest resident memory of this process so far, in bytes.

    Raises:
        RuntimeError: the system does not say.
    """
    try:
        import resource
    except ImportError:
        raise RuntimeError("benchmark memory: this system does not report a process's peak memory.") from None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _child(num_particles: int, threads: int, progress: bool) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    setting = Setting()
    model, guide = setting.build()
    log_likelihood(model, guide, make_batches(setting)(), num_particles, progress=progress)
    print(json.dumps(peak()))


if __name__ == "__main__":
    _child(int(sys.argv[1]), int(sys.argv[2]), bool(int(sys.argv[3])))
