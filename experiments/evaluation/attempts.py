"""Attempts: what goes wrong with one measure or one figure costs that one alone, and is kept in words."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Attempts"]

T = TypeVar("T")


class Attempts:
    """Things made one by one, of which any may fail.

    Attributes:
        failed: what went wrong, in a sentence, by the name of what it cost.

    Example:
        >>> attempts = Attempts()
        >>> attempts("half", lambda: 1 / 2, 0.0), attempts("all", lambda: 1 / 0, 0.0), attempts.failed
        (0.5, 0.0, {'all': 'ZeroDivisionError: division by zero'})
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}

    def __call__(self, name: str, make: Callable[[], T], instead: T) -> T:
        """What ``make`` makes; ``instead`` where it cannot. Interruptions are no failures, and pass.

        HYDRA_FULL_ERROR=1 in the environment shows the traceback of a failure.
        """
        try:
            return make()
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exc()
            text = " ".join(str(error).split())
            # A ValueError is ours, and says what is the matter.
            self.failed[name] = text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
            return instead
