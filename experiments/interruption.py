"""Interruption: Ctrl-C and SIGTERM end a command with one sentence that says where its results are and how to go on."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

__all__ = ["NOTHING", "Interrupted", "catch_signals", "command", "goes_on_with", "typed"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTHING = "this time nothing was written yet; the same command begins, or goes on, again."


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


def typed() -> str:
    """The command as it was typed."""
    return command(*sys.argv[1:])


_decided = False  # by a command of many runs, whose sentence goes before those of its runs


@contextmanager
def goes_on_with(sentence: str, *, decides: bool = False) -> Iterator[None]:
    """End with ``interrupted; <sentence>`` on standard error, and the status that shells expect: 130 or 143.

    Args:
        sentence: where results are, and how to go on. The innermost block's is said.
        decides: this block's is said whatever the blocks inside it would say.
    """
    global _decided
    passes_on = _decided
    _decided = _decided or decides
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        if passes_on:
            raise
        # Impatience must not turn the sentence into a traceback.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        print(f"\npyro-tvae: interrupted; {sentence}", file=sys.stderr, flush=True)
        raise SystemExit(error.code if isinstance(error, Interrupted) else 128 + signal.SIGINT) from None
    finally:
        _decided = passes_on
