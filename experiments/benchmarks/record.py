"""Records: what every benchmark shares, from the machine it ran on to the file it leaves."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import pyro
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from pyro_tvae.inference.progress import progress_bar

from ..provenance import processor

__all__ = ["Bar", "console", "machine", "table", "with_threads"]


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


def console() -> Console:
    """A console wide enough for the tables where standard output is no terminal."""
    made = Console()
    return made if made.is_terminal else Console(width=max(100, made.width))


def table(first: str, *headings: str, gap: int, wraps: bool = False) -> Table:
    """A table of a record: names in the first column, which may wrap, and numbers in the others, which never do."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, gap, 0, 0))
    made.add_column(first, no_wrap=not wraps)
    for heading in headings:
        made.add_column(heading, justify="right", no_wrap=True)
    return made


class Bar:
    """A bar over the time of the run; the time that is left is known, since it is what was asked for."""

    def __init__(self, seconds: float, shown: bool) -> None:
        self.bar = progress_bar(
            seconds,
            "benchmark",
            shown=shown,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )
        self.start = time.perf_counter()

    def __call__(self, name: str, ratio: float) -> None:
        """Move to the present, and show the ratio of the latest turn."""
        elapsed = min(self.bar.total, time.perf_counter() - self.start)
        self.bar.set_postfix({name: f"{ratio:.2f}"}, refresh=False)
        self.bar.update(elapsed - self.bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


@contextmanager
def with_threads(n: int) -> Iterator[None]:
    """Let torch use n threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
