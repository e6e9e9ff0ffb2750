"""Turns: steps of ``fit`` beside loops of one's own, JAX and another version, each in a process, a few at a time.

Processor time, so that what other programs do in between counts little; ratios within a round, so that a machine that
drifts slows both sides.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from pyro_tvae.inference.progress import progress_bar

from ..reports.tables import plain_table, yes_or_no
from .children import environment, last_line
from .speed import PAPER, Setting
from .sums import most_resident
from .timing import spread

__all__ = ["Pair", "check_checkout", "print_record", "run", "site"]

BESIDE = "beside "  # before what another version does


class Pair(NamedTuple):
    """What is compared with what: names of contenders, and the largest ratio that is aimed at."""

    above: str
    below: str
    what: str
    target: float | None = None


PAIRS = (
    Pair("fit", BESIDE + "fit", "step of fit, against the other version's", 0.75),
    Pair("fit", "threefry2x32", "step of fit, against the same in JAX", 1.0),
    Pair("fit", "rbg", "the same, with JAX's faster generator", 1.0),
    Pair("compiled", "fit", "step of fit(compile=True), against fit's"),
    Pair("compiled", "threefry2x32", "step of fit(compile=True), against the same in JAX", 1.0),
    Pair("compiled", "rbg", "the same, with JAX's faster generator", 1.0),
    Pair("loop", "fit", "a loop of one's own, Trace_ELBO()(model, guide) and torch.optim.Adam, against fit", 1.1),
    Pair("svi_fused", "fit", "SVI.step with pyro.optim.Adam({…, 'fused': True}), against fit", 1.1),
    Pair("svi", "fit", "SVI.step with pyro.optim.Adam, against fit", 1.1),
    Pair("weights", BESIDE + "weights", "importance weights, K = 50, against the other version's", 0.8),
)


def run(
    *,
    threads: int = 1,
    progress: bool = True,
    beside: str | Path | None = None,
    turns: int = 12,
    steps: int = 2,
    setting: Setting = PAPER,
    pairs: tuple[Pair, ...] = PAIRS,
) -> dict[str, Any]:
    """Let every contender make a few steps, one after the other, again and again.

    Args:
        threads: of each; JAX is held to them by the processors that it may use.
        progress: show a progress bar.
        beside: a checkout of another version; pairs with one are left out without.
        turns: of each contender; those with JAX are left out where it is not installed.
        steps: of a turn.
        setting: the sizes; the paper's MNIST configuration by default.
        pairs: what is compared.

    Returns:
        A mapping ready for JSON: ``pairs``, each with ``what``, ``ratio``, ``low``, ``high``, ``repeats``, ``target``
        and ``met``; ``contenders``, each with the median ``seconds`` of a step and the peak ``memory`` in bytes (None
        where the system does not tell); ``left_out`` and ``setting``.

    Raises:
        ValueError: nothing to measure, or no checkout there.
        RuntimeError: a contender failed.
    """
    if min(threads, turns, steps) < 1:
        raise ValueError(f"benchmark: threads={threads}, turns={turns}, steps={steps}; expected at least 1 of each.")
    missing = [] if beside is not None else [BESIDE]
    missing += [] if find_spec("jax") else ["threefry2x32", "rbg"]
    there = [pair for pair in pairs if not any(name.startswith(one) for name in pair[:2] for one in missing)]
    names = list(dict.fromkeys(name for pair in there for name in (pair.below, pair.above)))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        root = stack.enter_context(site(beside)) if beside is not None else None
        bar = stack.enter_context(progress_bar(turns * len(names), "turns", shown=progress, unit="turn"))
        asked = {name: stack.enter_context(_contender(name, root, threads, setting)) for name in names}
        for _ in range(turns):
            for name, child in asked.items():
                seconds[name].append(float(_told(child, f"{steps}\n")))
                bar.update()
        memory = {name: most_resident(child.pid) for name, child in asked.items()}
    return {
        "pairs": [_compared(pair, seconds) for pair in there],
        "contenders": {
            name: {"seconds": statistics.median(values), "memory": memory[name]} for name, values in seconds.items()
        },
        "left_out": [pair.what for pair in pairs if pair not in there],
        "setting": asdict(setting),
    }


def _compared(pair: Pair, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    ratios = spread([a / b for a, b in zip(seconds[pair.above], seconds[pair.below], strict=True)])
    met = None if pair.target is None else ratios["ratio"] <= pair.target
    return {**pair._asdict(), **ratios, "met": met}


def check_checkout(folder: str | Path) -> Path:
    """The whole path of a checkout; raises ValueError where there is none."""
    root = Path(folder).resolve()
    if not (root / "pyro_tvae" / "__init__.py").is_file():
        raise ValueError(f"benchmark: {folder} is no checkout; expected a folder that holds pyro_tvae/__init__.py.")
    return root


@contextmanager
def site(checkout: str | Path) -> Iterator[str]:
    """A folder to import another version's package from, whose parts lie side by side in a checkout.

    Raises:
        ValueError: there is no checkout.
    """
    root = check_checkout(checkout)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pyro_tvae"
        package.mkdir()
        for part in (*(root / "pyro_tvae").iterdir(), root / "inference", root / "experiments"):
            (package / part.name).symlink_to(part)
        yield folder


@contextmanager
def _contender(name: str, root: str | None, threads: int, setting: Setting) -> Iterator[subprocess.Popen[str]]:
    """A process that makes steps when it is told to, of this version or of that in ``root``."""
    kind, sizes = name.removeprefix(BESIDE), astuple(setting)[:-1]
    program = str(Path(__file__).with_name("contender.py"))
    given = environment(threads, root if kind != name else None)
    command = [sys.executable, "-P", program, json.dumps({"kind": kind, "sizes": sizes, "threads": threads})]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=given
        )
        try:
            while "ready" not in (line := _told(child)):
                if not line:
                    said.seek(0)
                    raise RuntimeError(f"benchmark turns: the contender {name!r} failed: {last_line(said.read())}")
            yield child
        finally:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()


def _told(child: subprocess.Popen[str], asked: str = "") -> str:
    """The next line that a process prints, after what it is asked; "" where it has ended."""
    assert child.stdin is not None
    assert child.stdout is not None
    if asked:
        child.stdin.write(asked)
        child.stdin.flush()
    return child.stdout.readline()


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    table = plain_table("processor time, in turns", "measured", "lowest to highest", "target", "met", gap=1, wraps=True)
    for pair in record["pairs"]:
        table.add_row(
            pair["what"],
            f"{pair['ratio']:.2f} x",
            f"{pair['low']:.2f} to {pair['high']:.2f}",
            "–" if pair["target"] is None else f"≤ {pair['target']}",
            yes_or_no(pair["met"]),
        )
    console.print(table)
    costs = plain_table("a step of", "ms here", "MB at most", gap=2)
    for name, cost in record["contenders"].items():
        costs.add_row(name, f"{1e3 * cost['seconds']:.0f}", f"{cost['memory'] / 1e6:,.0f}" if cost["memory"] else "–")
    console.print(costs)
    if record["left_out"]:
        console.print(f"Left out, without JAX or --beside: {'; '.join(record['left_out'])}.")
