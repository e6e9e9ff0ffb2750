"""Every test starts from the same seed, an empty parameter store and at most two threads; generated cases are counted.

A whole run of the suite that has tried fewer generated cases than promised fails, and says so at its end.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import pyro
import pytest
import torch

PROMISED = 2000  # generated cases that a whole run tries at least

# Several workers share the processors: one thread each, and one for every process that a test starts.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1 if WORKERS > 1 else min(2, torch.get_num_threads()))
TRIED = pytest.StashKey[Counter[str]]()


@pytest.fixture(autouse=True)
def clean_slate() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TRIED] = Counter()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Count what a property is really called with, not what its settings allow."""
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    if handle is None:
        return (yield)
    tried, inner = pyfuncitem.config.stash[TRIED], handle.inner_test

    @functools.wraps(inner)
    def counted(*arguments: Any, **options: Any) -> Any:
        result = inner(*arguments, **options)
        tried[pyfuncitem.nodeid] += 1  # what an assumption refused or a failure stopped does not count
        return result

    handle.inner_test = counted
    try:
        return (yield)
    finally:
        handle.inner_test = inner


def whole(session: pytest.Session) -> bool:
    """Whether nothing was left out: no path, no choice of tests, and no early end."""
    option = session.config.option
    narrowing = ("keyword", "markexpr", "deselect", "lf", "ignore", "collectonly")  # lf only with pytest's cache
    chosen = any(getattr(option, name, None) for name in narrowing)
    ended = session.shouldstop or session.shouldfail
    return not (chosen or ended) and session.config.args_source is not pytest.Config.ArgsSource.ARGS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what the workers tried, where there are several (pytest-xdist)."""
    node.config.stash[TRIED].update(getattr(node, "workeroutput", {}).get("tried", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tried"] = dict(session.config.stash[TRIED])
    elif whole(session) and sum(session.config.stash[TRIED].values()) < PROMISED:
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tried = config.stash[TRIED]
    if tried:
        total = sum(tried.values())
        verdict = "" if total >= PROMISED else f"; a whole run has to try {PROMISED:,}"
        terminalreporter.write_line(f"{total:,} generated cases in {len(tried)} properties{verdict}")
