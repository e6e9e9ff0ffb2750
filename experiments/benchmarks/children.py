"""Children: measurements in processes of their own, forked from one that has imported everything and computed nothing.

An interpreter needs seconds to import torch and Lightning. One that has done so, and has never used a thread, can be
forked in milliseconds, as often as there is something to measure.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

__all__ = ["Nursery"]

PRELOAD = ("pyro_tvae.experiments.benchmarks.speed", "pyro_tvae.experiments.datasets", "sklearn.datasets")
LONGEST_ANSWER = 4096  # bytes, which a pipe takes at once and keeps until it is read


class Nursery:
    """Calls functions of modules in fresh processes; use it in a ``with`` block, whose end ends them all.

    Arguments and answers travel as JSON. What a function prints goes to standard error.

    Raises:
        RuntimeError: the system cannot fork.

    Example:
        >>> with Nursery(preload=()) as nursery:
        ...     nursery.call(len, {"obj": [1, 2]})
        Traceback (most recent call last):
        ...
        RuntimeError: benchmark: a process of its own failed: TypeError: len() takes no keyword arguments
    """

    def __init__(self, preload: Sequence[str] = PRELOAD) -> None:
        if not hasattr(os, "fork"):
            raise RuntimeError("benchmark: this system cannot fork processes; expected Linux or macOS.")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # OpenBLAS would start threads as soon as it is imported, and threads do not survive a fork.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            # Ctrl-C is for the parent alone, which then ends the whole group.
            start_new_session=True,
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def call(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """What the function returns in a process of its own."""
        return self.together(function, [arguments])[0]

    def together(
        self,
        function: Callable[..., Any],
        calls: Sequence[Mapping[str, Any]],
        environments: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Any]:
        """Call a function in as many processes as there are mappings of arguments, all at once; answers in order.

        Args:
            function: of a module's top level.
            calls: its keyword arguments, one mapping per process.
            environments: variables that each process adds to its environment.

        Raises:
            RuntimeError: one of them failed; the others are ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        work = {
            "function": [function.__module__, function.__qualname__],
            "calls": list(calls),
            "environments": list(environments or [{}] * len(calls)),
        }
        try:
            self._process.stdin.write(json.dumps(work) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"benchmark: the parent of the processes ended with status {self._process.wait()}.")
        answers = json.loads(line)
        failed = [answer["error"] for answer in answers if "error" in answer]
        if failed:
            raise RuntimeError(f"benchmark: a process of its own failed: {failed[0]}")
        return [answer["value"] for answer in answers]


def _serve() -> None:
    """Fork a process for every call of every line of work, and answer in a line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        import_module(name)
    for line in sys.stdin:
        work = json.loads(line)
        print(json.dumps(_together(**work)), file=answers, flush=True)


def _together(
    function: tuple[str, str], calls: Sequence[Mapping[str, Any]], environments: Sequence[Mapping[str, str]]
) -> list[dict[str, Any]]:
    running: dict[int, int] = {}
    for arguments, environment in zip(calls, environments, strict=True):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _answer(writing, function, arguments, environment)
        os.close(writing)
        running[pid] = reading
    pipes, answers = dict(running), dict[int, dict[str, Any]]()
    ended: list[int] = []  # by us, so that what they say is of no interest
    while running:
        pid, status = os.wait()
        with os.fdopen(running.pop(pid), "rb") as pipe:
            text = pipe.read()
        code = os.waitstatus_to_exitcode(status)
        if pid in ended:
            continue
        answers[pid] = json.loads(text) if text else {"error": f"it ended with status {code}"}
        if "error" in answers[pid]:
            ended += running
            for other in running:  # it would wait for the one that failed
                os.kill(other, signal.SIGKILL)
    return [answers[pid] for pid in pipes if pid in answers]


def _answer(
    pipe: int, function: tuple[str, str], arguments: Mapping[str, Any], environment: Mapping[str, str]
) -> NoReturn:
    try:
        os.environ.update(environment)
        module, name = function
        answer = json.dumps({"value": getattr(import_module(module), name)(**arguments)})
    except BaseException as error:
        answer = json.dumps({"error": f"{type(error).__name__}: {error}"[: LONGEST_ANSWER // 8]})
    if len(answer) > LONGEST_ANSWER:
        answer = json.dumps({"error": f"its answer has {len(answer)} characters; expected {LONGEST_ANSWER} at most"})
    os.write(pipe, answer.encode())
    # Without the parent's own ends: its buffers and its exit handlers are not this process's.
    os._exit(0)


if __name__ == "__main__":
    _serve()
