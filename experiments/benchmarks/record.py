"""What benchmarks share: the machine they ran on, and the threads, seed and bar of those that take a time."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import pyro
import torch

from pyro_tvae.inference.likelihood import seeded
from pyro_tvae.inference.progress import progress_bar

from ..provenance import processor

__all__ = ["machine", "measuring", "with_threads"]


def machine(threads: int) -> dict[str, Any]:
    """What the seconds depend on."""
    return {
        "cpu": processor(),
        "threads": threads,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


@contextmanager
def measuring(threads: int, seconds: float, shown: bool) -> Iterator[Callable[[str, float], None]]:
    """Threads, seed, parameters and a bar of a benchmark that takes so many seconds.

    Yields:
        What moves the bar to the present, and shows the name and the ratio of the latest turn.

    Raises:
        ValueError: no threads, or no time.
    """
    if threads < 1 or not 0 < seconds < math.inf:
        raise ValueError(f"benchmark: threads={threads}, seconds={seconds}; expected at least 1 thread and some time.")
    start = time.perf_counter()
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    bar = progress_bar(seconds, "benchmark", shown=shown, bar_format=form)

    def report(name: str, ratio: float) -> None:
        bar.set_postfix({name: f"{ratio:.2f}"}, refresh=False)
        bar.update(min(seconds, time.perf_counter() - start) - bar.n)

    with with_threads(threads), seeded(0), pyro.get_param_store().scope(), bar:
        yield report


@contextmanager
def with_threads(n: int) -> Iterator[None]:
    """Let torch use n threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
