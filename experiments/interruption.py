"""Interruption: Ctrl-C and SIGTERM end a command with one sentence that says where its results are and how to go on."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["INTERRUPTED", "NOTHING", "Interrupted", "catch_signals", "command", "goes_on_with", "override", "typed"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = tuple(128 + number for number in SIGNALS)  # the status that shells expect
NOTHING = "this time nothing was written yet; the same command begins, or goes on, again."
PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")  # what Hydra takes for text without quotes
WORDS = ("null", "true", "false", "nan", "inf")


class Interrupted(SystemExit):
    """SIGINT or SIGTERM, as an exception: files are closed, and half-written ones removed, on the way out."""


def catch_signals() -> None:
    """Turn SIGINT and SIGTERM into :class:`Interrupted`, in the main thread, from now on."""

    def interrupt(signum: int, frame: Any) -> NoReturn:
        raise Interrupted(128 + signum)

    for number in SIGNALS:
        signal.signal(number, interrupt)


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

    text = str(value)
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
