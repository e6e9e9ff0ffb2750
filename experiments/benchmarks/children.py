"""Children: measurements in processes of their own: programs, or forks of one process that has imported everything.

An interpreter needs seconds to import torch and Lightning. One that has done so, and has never used a thread, can be
forked in milliseconds, as often as there is something to measure: :mod:`multiprocessing`'s fork server.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

__all__ = ["call", "environment", "last_line", "program", "together"]

ENDING = 10  # seconds for a process that has answered
PRELOAD = [
    "sklearn.datasets",
    *(f"pyro_tvae.experiments.{name}" for name in ("benchmarks.growth", "benchmarks.scaling", "cli")),
]


def call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What a function returns in a process of its own; see :func:`together`.

    Example:
        >>> call(divmod, {"x": 7, "y": 2})
        Traceback (most recent call last):
        ...
        RuntimeError: benchmark: a process of its own failed: TypeError: divmod() takes no keyword arguments
    """
    return together(function, [arguments])[0]


def together(
    function: Callable[..., Any],
    calls: Sequence[Mapping[str, Any]],
    environments: Sequence[Mapping[str, str]] | None = None,
) -> list[Any]:
    """Call a function in as many fresh processes as there are mappings of arguments, all at once; answers in order.

    A script of your own that calls this needs the usual ``if __name__ == "__main__":``. What a function prints goes to
    standard error.

    Args:
        function: of a module's top level.
        calls: its keyword arguments, one mapping per process.
        environments: variables that each process adds to its environment.

    Raises:
        RuntimeError: one of them failed, and the others are ended; or the system cannot fork.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise RuntimeError("benchmark: this system cannot fork processes; expected Linux or macOS.")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    _start_server()
    processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
    answers: dict[Connection, Any] = {}
    try:
        for arguments, environment in zip(calls, environments or [{}] * len(calls), strict=True):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_answer, args=(writer, function, arguments, environment))
            process.start()
            processes[reader] = process
            writer.close()
        while len(answers) < len(processes):
            ready = wait(processes.keys() - answers.keys())
            for reader in (one for one in processes if one in ready):
                try:
                    answers[reader], error = reader.recv()
                except EOFError:
                    processes[reader].join()
                    error = f"it ended with status {processes[reader].exitcode}"
                if error:
                    raise RuntimeError(f"benchmark: a process of its own failed: {error}")
        return [answers[reader] for reader in processes]
    finally:
        for reader, child in processes.items():
            if reader in answers:  # and gives back what it holds, such as the semaphore of a progress bar
                child.join(ENDING)
            child.kill()  # one would wait for another that failed
            child.join()


def program(
    words: Sequence[str], what: str, given: Mapping[str, str], folder: str | Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter to its end, and return what it printed.

    Args:
        words: its arguments.
        what: names it where it fails.
        given: the variables of its environment; see :func:`environment`.
        folder: where it runs; here by default.

    Raises:
        RuntimeError: it failed; with the last line that it said.

    Example:
        >>> program(["-c", "print(7)"], "seven", environment()).stdout
        '7\\n'
        >>> program(["-c", "raise SystemExit('no eight')"], "eight", environment())
        Traceback (most recent call last):
        ...
        RuntimeError: benchmark eight ended with status 1: no eight
    """
    ended = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, env=dict(given))
    if ended.returncode:
        raise RuntimeError(f"benchmark {what} ended with status {ended.returncode}: {last_line(ended.stderr)}")
    return ended


def environment(threads: int = 1, root: str | None = None) -> dict[str, str]:
    """Variables of a program of so many threads, which imports this version of the package or that in ``root``."""
    return os.environ | {"OMP_NUM_THREADS": str(threads)} | ({} if root is None else {"PYTHONPATH": root})


def last_line(said: str) -> str:
    """The end of what a process said, which names an error.

    Example:
        >>> last_line("Traceback:\\n  deep\\nKeyError: 1\\n"), last_line("")
        ('KeyError: 1', 'it said nothing')
    """
    return (said.strip().splitlines() or ["it said nothing"])[-1][:500]


def _start_server() -> None:
    """OpenBLAS would start threads as soon as the server imports it, and threads do not survive a fork."""
    before = dict(os.environ)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("OPENBLAS_NUM_THREADS")
        os.environ.update(before)


def _answer(
    writer: Connection, function: Callable[..., Any], arguments: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent alone, which then ends its children
    os.dup2(2, 1)
    os.environ.update(environment)
    try:
        writer.send((function(**arguments), None))
    except BaseException as error:
        writer.send((None, " ".join(f"{type(error).__name__}: {error}".split())[:512]))
