"""Interruption: Ctrl-C and SIGTERM end a command with one sentence that says where its results are and how to go on."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "INTERRUPTED",
    "NOTHING",
    "Interrupted",
    "catch_signals",
    "command",
    "goes_on_with",
    "leave_signals",
    "override",
    "typed",
]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = tuple(128 + number for number in SIGNALS)  # the status that shells expect
NOTHING = "this time nothing was written yet; the same command begins, or goes on, again."
AGAIN = 0.5  # seconds after which an interruption that was dropped is raised again
PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")  # what Hydra takes for text without quotes
WORDS = ("null", "true", "false", "nan", "inf")


class Interrupted(SystemExit):
    """SIGINT or SIGTERM, as an exception: files are closed, and half-written ones removed, on the way out."""


def catch_signals() -> None:
    """Turn SIGINT and SIGTERM into :class:`Interrupted`, in the main thread, from now on.

    What Python or a library drops, such as an exception in a destructor, in a fork or below a bare ``except``, is
    raised again until it is on its way up.
    """
    owner, asked, said = os.getpid(), 0, sys.unraisablehook

    def interrupt(signum: int, frame: Any) -> None:
        nonlocal asked
        # Ctrl-C reaches forked processes too, such as those that load data: they are this one's to end.
        if os.getpid() == owner and hasattr(signal, "setitimer"):
            asked = signum
            signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        if os.getpid() == owner or signum != signal.SIGINT:
            raise Interrupted(128 + signum)

    def insist(signum: int, frame: Any) -> None:
        if os.getpid() == owner and _interruption(sys.exc_info()[1]) is None:
            raise Interrupted(128 + asked)

    def unraisable(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Interrupted):
            said(dropped)

    sys.unraisablehook = unraisable
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, insist)
    for number in SIGNALS:
        signal.signal(number, interrupt)


def leave_signals() -> None:
    """Ask no more for an interruption that is on its way out of the process, whose end would be another one else."""
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


def command(*words: object) -> str:
    """A command that can be pasted into a shell: its words quoted where they need it, and paths no options.

    Example:
        >>> print(command("evaluate", Path("my run")), command("report", Path("-x")), sep="\\n")
        pyro-tvae evaluate 'my run'
        pyro-tvae report ./-x
    """
    paths = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words)
    return shlex.join(("pyro-tvae", *paths))


def override(name: str, value: object) -> str:
    """``name=value`` in Hydra's grammar, whatever the value holds; a shell's quotes come on top, by :func:`command`.

    Example:
        >>> print(override("resume", "runs/1"), override("resume", "it's ${one}"))
        resume=runs/1 resume='it\\'s \\${one}'
    """
    from hydra.core.override_parser.types import Quote, QuotedString  # takes a tenth of a second

    text = str(value) if value != Path("???") else "./???"  # which OmegaConf takes for a value that is missing
    if PLAIN.fullmatch(text) and not any(word in WORDS for word in text.lower().split("/")):
        return f"{name}={text}"
    # OmegaConf would look up what a ${ names; backslashes before it count, and are doubled.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return f"{name}={QuotedString(text, Quote.single).with_quotes()}"


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
    except BaseException as error:
        interruption = _interruption(error)
        if interruption is None:
            raise
        if passes_on:
            raise interruption from None
        # Impatience must not turn the sentence into a traceback.
        leave_signals()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        print(f"\npyro-tvae: interrupted; {sentence}", file=sys.stderr, flush=True)
        code = interruption.code if isinstance(interruption, Interrupted) else 128 + signal.SIGINT
        raise SystemExit(code) from None
    finally:
        _decided = passes_on


def _interruption(error: BaseException | None) -> BaseException | None:
    """The interruption that an error is, or on the way out of which it came; None where it was answered already."""
    if isinstance(error, SystemExit) and not isinstance(error, Interrupted):
        return None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt | Interrupted):
        cause = cause.__context__
    return cause
