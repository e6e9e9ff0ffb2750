"""Growth: time and memory of a training step as frames, capsules, positions and sequences grow, with exponents."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

from pyro_tvae.inference import fit
from pyro_tvae.inference.progress import progress_bar

from ..reports.tables import plain_table
from .children import call
from .memory import begin, needed
from .speed import PAPER, Setting, step_products
from .timing import ONE_CPU, StepTimer, seconds_of

__all__ = ["print_record", "run", "step", "summary"]

AXES = {"S": "n_frames", "C": "n_capsules", "D": "capsule_dim", "N": "n_sequences"}
DOUBLINGS = (9, 18, 36, 72)
WARM_UP_STEPS = 2


def run(
    *,
    threads: int = 2,
    progress: bool = True,
    sizes: Mapping[str, Sequence[int]] | None = None,
    turns: int = 3,
    turn_seconds: float = 0.3,
    setting: Setting = PAPER,
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

    Returns:
        A mapping ready for JSON: ``axes`` (S, C, D, N -> ``sizes``, and ``seconds`` of a step, ``products`` and
        ``memory``, each as in :func:`summary`) and ``setting``.

    Raises:
        ValueError: unknown axes, or fewer than three sizes of one.
        RuntimeError: a process failed.
    """
    sizes = sizes or {"S": DOUBLINGS, "C": DOUBLINGS, "D": DOUBLINGS, "N": (4, 8, 16, 32)}
    if turns < 1 or any(axis not in AXES or len({*values}) < 3 for axis, values in sizes.items()):
        raise ValueError(
            f"benchmark: turns={turns}, sizes={dict(sizes)}; expected at least 1 turn, and at least 3 sizes for some "
            f"of {', '.join(AXES)}."
        )

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
    return {"axes": costs, "setting": asdict(setting)}


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


def _power(cost: Mapping[str, Any]) -> str:
    return f"{cost['exponent']:.2f} ± {cost['standard_error']:.2f}"
