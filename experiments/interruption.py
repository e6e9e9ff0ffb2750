"""Interruption: a signal ends a command with one sentence that says where its results are and how to go on."""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = [
    "INTERRUPTED",
    "NOTHING",
    "Interrupted",
    "catch_signals",
    "command",
    "goes_on_with",
    "interruption_of",
    "leave_signals",
    "leave_to_parent",
    "override",
    "typed",
]

HANGUP = getattr(signal, "SIGHUP", None)  # what a terminal that is closed sends to all that it runs; not on Windows
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if HANGUP is None else [HANGUP]))
INTERRUPTED = tuple(128 + number for number in SIGNALS)  # the status that shells expect
NOTHING = "this time nothing was written yet; the same command begins, or goes on, again."
AGAIN = 0.5  # seconds after which an interruption that was dropped is raised again
PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")  # what Hydra takes for text without quotes
WORDS = ("null", "true", "false", "nan", "inf")


class Interrupted(SystemExit):
    """SIGINT, SIGTERM or SIGHUP, as an exception: files are closed, and half-written ones removed, on the way out."""


_asked = 0  # the signal by which this process was asked to end, until that is answered


def catch_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into :class:`Interrupted`, in the main thread, from now on.

    A SIGHUP that the process was started to ignore, as by ``nohup``, stays ignored.
    What Python or a library drops, such as an exception in a destructor, in a fork or below a bare ``except``, is
    raised again until it is on its way up.
    """
    global _asked
    owner, said, _asked = os.getpid(), sys.unraisablehook, 0

    def interrupt(signum: int, frame: Any) -> None:
        global _asked
        # Ctrl-C and a hangup reach forked processes too, such as those that load data: they are this one's to end.
        if os.getpid() == owner:
            if signum == HANGUP == _asked:  # a shell says it before it ends, and the system when it has
                return
            _asked = signum
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        if os.getpid() == owner or signum == signal.SIGTERM:
            raise Interrupted(128 + signum)

    def insist(signum: int, frame: Any) -> None:
        if os.getpid() == owner and _on_its_way(sys.exc_info()[1]) is None:
            raise Interrupted(128 + _asked)

    def unraisable(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Interrupted):
            said(dropped)

    sys.unraisablehook = unraisable
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, insist)
    for number in SIGNALS:
        if number != HANGUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forgive_sharing)


def leave_to_parent() -> None:
    """Ignore Ctrl-C and hangups in a process that joblib keeps for jobs: its parent, which ends it, has them too."""
    if _works_for_joblib(multiprocessing.current_process()):
        for number in SIGNALS:
            if number != signal.SIGTERM:
                signal.signal(number, signal.SIG_IGN)
        end_with_parent()


def end_with_parent() -> None:
    """End this process within seconds of its parent's end, also where that was killed: it would work or wait on."""
    if all(thread.name != _end_after.__name__ for thread in threading.enumerate()):
        arguments = (os.getppid(),)
        threading.Thread(target=_end_after, args=arguments, name=_end_after.__name__, daemon=True).start()


def _end_after(parent: int) -> None:
    """End this process, whose files are whole whenever it ends, when its parent is another one."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


def _end_jobs() -> None:
    """End what joblib keeps for jobs: a second Ctrl-C stops it from doing so, and it would wait for their trainings."""
    for process in filter(_works_for_joblib, multiprocessing.active_children()):
        with suppress(ProcessLookupError):
            assert process.pid is not None  # it was started
            os.kill(process.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


def _works_for_joblib(process: BaseProcess) -> bool:
    return type(process).__name__ == "LokyProcess"


def _forgive_sharing() -> None:
    """Say nothing in a process that loads data when whom it hands memory to was interrupted while taking it."""
    said = sys.excepthook

    def hook(kind: Any, error: BaseException, trace: Any) -> None:
        sharing = trace is not None and trace.tb_frame.f_globals.get("__name__") == "multiprocessing.resource_sharer"
        if not (sharing and isinstance(error, EOFError | ConnectionError | AuthenticationError)):
            said(kind, error, trace)

    sys.excepthook = hook


def leave_signals() -> None:
    """Ask no more for an interruption that is on its way out of the process, whose end would be another one else."""
    global _asked
    _asked = 0
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
def goes_on_with(sentence: str | Callable[[], str], *, decides: bool = False) -> Iterator[None]:
    """End with ``interrupted; <sentence>`` on standard error, and the status that shells expect: 129, 130 or 143.

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
        interruption = None if _answered(error) and not _asked else interruption_of(error)
        if interruption is None:
            raise
        if passes_on:
            raise interruption from None
        # Impatience must not turn the sentence into a traceback.
        leave_signals()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        _end_jobs()
        said = sentence if isinstance(sentence, str) else sentence()
        print(f"\npyro-tvae: interrupted; {said}", file=sys.stderr, flush=True)
        code = interruption.code if isinstance(interruption, SystemExit) else 128 + signal.SIGINT
        raise SystemExit(code) from None
    finally:
        _decided = passes_on


def interruption_of(error: BaseException) -> BaseException | None:
    """The interruption that an error is, on the way out of which it came, or in whose place a library put it.

    Lightning ends with status 0 after a batch, when its own handler heard SIGTERM and ours was dropped, Hydra with 1.
    """
    return _on_its_way(error) or (Interrupted(128 + _asked) if _asked else None)


def _on_its_way(error: BaseException | None) -> BaseException | None:
    while error is not None and not (isinstance(error, KeyboardInterrupt | Interrupted) or _answered(error)):
        error = error.__context__
    return error


def _answered(error: BaseException) -> bool:
    """Whether it is the end of a process with the status of an interruption, after its sentence or in its place."""
    return isinstance(error, SystemExit) and not isinstance(error, Interrupted) and error.code in INTERRUPTED
