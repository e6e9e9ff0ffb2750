"""Growth: time and memory of a training step as frames, capsules, positions and sequences grow, with exponents.

Of the energies ``W u²`` by themselves as well, for every kind of topography and up to thousands of frames, beside the
product with W or another version's.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

from pyro_tvae.inference import fit
from pyro_tvae.inference.progress import progress_bar

from ..reports.tables import plain_table
from .children import call, environment, program
from .memory import begin, needed
from .speed import PAPER, Setting, step_products
from .sums import TOPOGRAPHIES
from .timing import ONE_CPU, StepTimer, ratios, seconds_of, spread
from .turns import check_checkout, site

__all__ = ["print_record", "run", "step", "summary"]

AXES = {"S": "n_frames", "C": "n_capsules", "D": "capsule_dim", "N": "n_sequences"}
DOUBLINGS = (9, 18, 36, 72)
WARM_UP_STEPS = 2
FRAMES = (100, 300, 1_000, 3_000, 10_000)
FEWER = (100, 200, 400)  # of which a product with W is still possible


def run(
    *,
    threads: int = 2,
    progress: bool = True,
    sizes: Mapping[str, Sequence[int]] | None = None,
    turns: int = 3,
    turn_seconds: float = 0.3,
    setting: Setting = PAPER,
    frames: Sequence[int] = FRAMES,
    fewer: Sequence[int] = FEWER,
    topographies: Sequence[str] = tuple(TOPOGRAPHIES),
    beside: str | Path | None = None,
) -> dict[str, Any]:
    """Double one size at a time, from half the paper's, and fit ``value ~ size^exponent``.

    Every size is measured in a process of its own, which times steps of ``fit`` in turns with their bare products.

    Args:
        threads: of torch.
        progress: show a progress bar.
        sizes: the sizes of S, C, D and N, at least three of each, growing.
        turns: of steps and products at each size.
        turn_seconds: about how long the products of a turn take; one call at least.
        setting: where the sizes that do not grow stay; the paper's MNIST configuration by default.
        frames: the S of the energies by themselves, of one sequence of 18 capsules and 18 positions, on one thread.
        fewer: the S of what they are compared with.
        topographies: which of :data:`.sums.TOPOGRAPHIES`.
        beside: a checkout of another version to compare with, at the paper's size as well, in turns; the product with W
            by default.

    Returns:
        A mapping ready for JSON: ``axes`` (S, C, D, N -> ``sizes``, and ``seconds`` of a step, ``products`` and
        ``memory``, each as in :func:`summary`), ``setting``, and ``energies`` as of :func:`energies`.

    Raises:
        ValueError: unknown axes, fewer than three sizes of one, or no checkout there.
        RuntimeError: a process failed.
    """
    sizes = sizes or {"S": DOUBLINGS, "C": DOUBLINGS, "D": DOUBLINGS, "N": (4, 8, 16, 32)}
    if turns < 1 or any(axis not in AXES or len({*values}) < 3 for axis, values in sizes.items()):
        raise ValueError(
            f"benchmark: turns={turns}, sizes={dict(sizes)}; expected at least 1 turn, and at least 3 sizes for some "
            f"of {', '.join(AXES)}."
        )

    if beside is not None:
        check_checkout(beside)

    @functools.cache  # the axes share a setting
    def measured(here: Setting) -> dict[str, float]:
        options = {"sizes": asdict(here), "threads": threads, "turns": turns, "turn_seconds": turn_seconds}
        values: dict[str, float] = call(step, options)
        return values

    costs: dict[str, Any] = {}
    total = sum(len(values) for values in sizes.values())
    with progress_bar(total, "growth", shown=progress, unit="size") as bar:
        for axis, values in sizes.items():
            points = []
            for n in values:
                bar.set_postfix({axis: n}, refresh=False)
                points.append(measured(replace(setting, **{AXES[axis]: n})))
                bar.update()
            costs[axis] = {"sizes": list(values)}
            costs[axis] |= {name: summary(values, [point[name] for point in points]) for name in points[0]}
    record = {"axes": costs, "setting": asdict(setting)}
    return record | {"energies": energies(topographies, frames, fewer, beside, turns, turn_seconds, progress)}


def energies(
    topographies: Sequence[str],
    frames: Sequence[int],
    fewer: Sequence[int],
    beside: str | Path | None,
    turns: int,
    turn_seconds: float,
    progress: bool,
) -> dict[str, Any]:
    """Time and memory of ``W u²`` and its gradient over frames, beside another version's or the product with W.

    Returns:
        Topography -> ``sizes``, ``seconds`` and ``memory`` as in :func:`summary`; the same of ``beside``; and where
        that is another version ``paper``, the ratio to its time at 18 frames and 8 sequences, taken in turns.
    """
    other = {"dense": True} if beside is None else {}
    record: dict[str, Any] = {}
    with (
        nullcontext() if beside is None else site(beside) as root,
        progress_bar(len(topographies), "energies", shown=progress, unit="topography") as bar,
    ):
        for name in topographies:
            common: dict[str, Any] = {"topography": name, "seconds": turn_seconds}
            own = _costs(None, **common, sizes=list(frames))
            its = _costs(root, **common, **other, sizes=list(fewer))
            record[name] = _grown(frames, own) | {"beside": _grown(fewer, its)}
            if root is not None:
                paper = common | {"sizes": [18], "n_sequences": 8}
                above: list[float] = []
                below = _costs(root, **paper)["seconds"]
                for _ in range(turns):
                    above += _costs(None, **paper)["seconds"]
                    below += _costs(root, **paper)["seconds"]
                record[name]["paper"] = spread(ratios(above, below))
            bar.update()
    return record


def _grown(sizes: Sequence[int], costs: Mapping[str, list[float]]) -> dict[str, Any]:
    return {"sizes": list(sizes), **{name: summary(sizes, values) for name, values in costs.items()}}


def _costs(root: str | None, **options: Any) -> dict[str, list[float]]:
    """What :mod:`.sums` says in a process of its own, of this version or of the one in that folder."""
    words = ["-P", str(Path(__file__).with_name("sums.py")), json.dumps(options)]
    said = program(words, f"growth: {options['topography']}", environment(1, root)).stdout
    answer: dict[str, list[float]] = json.loads(said.splitlines()[-1])
    return answer


def summary(sizes: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    """``values``, and the ``exponent`` of ``value ~ size^exponent`` with its ``standard_error``.

    Least squares between the logarithms. The error is large where no single power fits, since a cost that does not
    grow at all is part of every small size.

    Args:
        sizes: n of them, at least three.
        values: positive, one for each.

    Raises:
        ValueError: too few, or one that has no logarithm.

    Example:
        >>> power = summary([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0])
        >>> round(power["exponent"], 6), round(power["standard_error"], 6)
        (2.0, 0.0)
    """
    if len({*sizes}) < 3 or len(sizes) != len(values) or min(*sizes, *values) <= 0:
        raise ValueError(f"an exponent of {list(values)} over {list(sizes)}: expected 3 positive pairs at least.")
    (exponent, _), covariance = np.polyfit(np.log(sizes), np.log(values), 1, cov=True)
    return {"values": list(values), "exponent": float(exponent), "standard_error": float(covariance[0, 0]) ** 0.5}


def step(sizes: Mapping[str, int], threads: int, turns: int, turn_seconds: float) -> dict[str, float]:
    """Median seconds of a training step and of its bare products, and bytes that this process needed for it."""
    before, setting, model, guide, x = begin(sizes, threads)
    n = setting.n_sequences
    fit(model, guide, x, batch_size=n, max_epochs=WARM_UP_STEPS, progress=False, trainer=ONE_CPU)
    memory = needed(before)  # the products that follow have matrices of their own
    products = step_products(model, guide, n)
    products()
    times = max(1, min(20, round(turn_seconds / seconds_of(products))))
    timed = StepTimer(products, steps=times, warm_up=WARM_UP_STEPS, enough=lambda count: count >= turns)
    again = x.expand(times * turns + WARM_UP_STEPS + 1, *x.shape)
    loader = DataLoader(TensorDataset(again), batch_size=None)
    timed.during(model, guide, loader, ONE_CPU)
    seconds, bare = statistics.median(timed.steps), statistics.median(timed.others)
    return {"seconds": seconds, "products": bare, "memory": memory}


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    table = plain_table("step, as this grows", "ms here", "exponent", "bare products'", "MB", "exponent", gap=2)
    for axis, costs in record["axes"].items():
        sizes, seconds, memory = costs["sizes"], costs["seconds"], costs["memory"]
        table.add_row(
            f"{axis}, {sizes[0]} to {sizes[-1]}",
            f"{1e3 * seconds['values'][0]:.0f} to {1e3 * seconds['values'][-1]:.0f}",
            _power(seconds),
            _power(costs["products"]),
            f"{memory['values'][0] / 1e6:,.0f} to {memory['values'][-1] / 1e6:,.0f}",
            _power(memory),
        )
    console.print(table)
    size = record["setting"]
    console.print(
        f"Cost ~ size^exponent, ± standard error. Those that do not grow: {size['n_frames']} frames S, "
        f"{size['n_capsules']} capsules C of {size['capsule_dim']} positions D, {size['n_sequences']} sequences N of "
        f"{size['image_size']} x {size['image_size']} pixels; memory without the libraries'."
    )
    _print_energies(record["energies"], console)


def _print_energies(record: Mapping[str, Any], console: Console) -> None:
    if not record:
        return
    table = plain_table("energies and gradient", "S", "ms", "exponent", "MB", "exponent", "S = 18", gap=1)
    for name, costs in record.items():
        for label, one in ((name, costs), ("  beside", costs["beside"])):
            seconds, memory, paper = one["seconds"], one["memory"], one.get("paper")
            table.add_row(
                label,
                f"{one['sizes'][0]:,} to {one['sizes'][-1]:,}",
                f"{1e3 * seconds['values'][0]:.1f} to {1e3 * seconds['values'][-1]:,.0f}",
                _power(seconds),
                f"{memory['values'][0] / 1e6:,.0f} to {memory['values'][-1] / 1e6:,.0f}",
                _power(memory),
                f"{paper['ratio']:.2f} ({paper['low']:.2f}–{paper['high']:.2f})" if paper else "",
            )
    console.print(table)
    console.print(
        "One sequence of 18 capsules x 18 positions, CPU time of one thread; S = 18: ratio to beside of 8 sequences."
    )


def _power(cost: Mapping[str, Any]) -> str:
    return f"{cost['exponent']:.2f} ± {cost['standard_error']:.2f}"
