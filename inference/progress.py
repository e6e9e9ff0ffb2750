"""Progress: one bar for whatever takes more than two seconds, redrawn often on a terminal and seldom in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from pyro_tvae.guides.laplace import LaplaceGuide

__all__ = ["modes_shown", "progress_bar"]


def progress_bar(total: float | None, what: str, *, shown: bool = True, **options: Any) -> tqdm:
    """A tqdm bar on standard error, with the time that is left.

    Args:
        total: how many units there are; None where that is not known.
        what: is under way.
        shown: false for a bar that counts and shows nothing.
        options: further ones of tqdm.
    """
    # A terminal or a notebook is redrawn often; a log file gets a line every ten seconds.
    there: Any = sys.stderr  # None in a process that was started without
    pause = 0.5 if (there is not None and there.isatty()) or _in_notebook() else 10.0
    return tqdm(total=total, desc=what, disable=not shown or there is None, mininterval=pause, **options)


@contextmanager
def modes_shown(guide: object, n_sequences: int, shown: bool) -> Iterator[None]:
    """A bar of its own while a :class:`.LaplaceGuide` climbs to the modes of sequences; nothing for other guides."""
    if not isinstance(guide, LaplaceGuide) or not shown:
        yield
        return
    with progress_bar(n_sequences * guide.max_iterations, "modes", leave=False) as bar:
        guide.tick = bar.update
        try:
            yield
        finally:
            guide.tick = None


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})
