"""Attempts: what goes wrong with one measure or one figure costs that one alone, and is kept in words."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import TypeVar

from pyro_tvae.memory import no_memory

from ..config.errors import sentence, transient
from ..interruption import interruption_of

__all__ = ["Attempts"]

T = TypeVar("T")


class _Dependent(ValueError):
    """What rests on something that was lost is lost with it, for the same cause."""

    def __init__(self, said: str, cause_may_pass: bool) -> None:
        super().__init__(said)
        self.cause_may_pass = cause_may_pass


class Attempts:
    """Things made one by one, of which any may fail.

    Attributes:
        failed: what went wrong, in a sentence, by the name of what it cost.
        transient: those of the names whose cause may pass, such as a full disk, so that they are worth another try.

    Example:
        >>> attempts = Attempts()
        >>> attempts("half", lambda: 1 / 2, 0.0), attempts("all", lambda: 1 / 0, 0.0), attempts.failed
        (0.5, 0.0, {'all': 'ZeroDivisionError: division by zero'})
        >>> attempts("much", lambda: bytes(2**62), b""), attempts.transient
        (b'', {'much'})
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.transient: set[str] = set()

    def __call__(self, name: str, make: Callable[[], T], instead: T) -> T:
        """What ``make`` makes; ``instead`` where it cannot. Interruptions are no failures, and pass.

        HYDRA_FULL_ERROR=1 in the environment shows the traceback of a failure.
        """
        try:
            return make()
        except Exception as error:
            if (asked := interruption_of(error)) is not None:  # which a library has put an error of its own in place of
                raise asked from None
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exc()
            if transient(error) or (isinstance(error, _Dependent) and error.cause_may_pass):
                self.transient.add(name)
            text = " ".join(str(error).split())
            # A ValueError is ours, and says what is the matter.
            said = text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
            self.failed[name] = (sentence(error) if no_memory(error) else None) or said
            return instead

    def check(self, name: str) -> None:
        """Raise ValueError where this failed, for something else that rests on it."""
        if name in self.failed:
            raise _Dependent(self.failed[name], name in self.transient)

    def add(self, other: Attempts, suffix: str = "") -> None:
        """Take over what failed elsewhere, under names with a suffix; what failed here in the same way is said once."""
        for name, said in other.failed.items():
            if self.failed.get(name) != said:
                self.failed[f"{name}{suffix}"] = said
                self.transient |= {f"{name}{suffix}"} if name in other.transient else set()
