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

from pyro_tvae.inference.progress import progress_bar

from ..provenance import processor

__all__ = ["Bar", "machine", "with_threads"]


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
