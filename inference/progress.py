"""Progress: one bar for whatever takes more than two seconds, redrawn often on a terminal and seldom in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

__all__ = ["progress_bar"]


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


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})
