"""Interruption: Ctrl-C and SIGTERM end a command with one sentence that says where its results are and how to go on."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

__all__ = ["NOTHING", "Interrupted", "catch_signals", "command", "goes_on_with"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTHING = "nothing was written; give the same command again."


class Interrupted(SystemExit):
    """SIGINT or SIGTERM, as an exception: files are closed, and half-written ones removed, on the way out."""


def catch_signals() -> None:
    """Turn SIGINT and SIGTERM into :class:`Interrupted`, in the main thread, from now on."""

    def interrupt(signum: int, frame: Any) -> NoReturn:
        raise Interrupted(128 + signum)

    for number in SIGNALS:
        signal.signal(number, interrupt)


def command(*words: object) -> str:
    """A command of the shell: its words quoted where they need it."""
    return shlex.join(map(str, ("pyro-tvae", *words)))


@contextmanager
def goes_on_with(sentence: str) -> Iterator[None]:
    """End with ``interrupted; <sentence>`` on standard error, and the status that shells expect: 130 or 143."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        # Impatience must not turn the sentence into a traceback.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        print(f"\npyro-tvae: interrupted; {sentence}", file=sys.stderr, flush=True)
        raise SystemExit(error.code if isinstance(error, Interrupted) else 128 + signal.SIGINT) from None
