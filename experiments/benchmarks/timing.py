"""Timing: a few steps inside a fit, then what they are compared with, so that a machine that drifts slows both.

Benchmarks that take a time share their threads, seed and bar here too.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning.pytorch as lightning
import pyro
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from pyro_tvae import TVAE, Guide
from pyro_tvae.inference import TrainerOptions, fit
from pyro_tvae.inference.likelihood import seeded
from pyro_tvae.inference.progress import progress_bar
from pyro_tvae.inference.training import Optimizers

from ..datasets import SequenceDataModule

__all__ = ["ONE_CPU", "StepTimer", "between", "in_turns", "isolated", "measuring", "ratios", "seconds_of", "spread"]


ONE_CPU = TrainerOptions(accelerator="cpu", devices=1)


class StepTimer(Callback):
    """Times steps of a fit, data and validation included, in turns with something else, until there are enough.

    Args:
        other: is called as often as there are steps in a turn.
        steps: of one turn.
        warm_up: steps before the first turn.
        enough: number of turns so far -> whether to stop.
        report: is told the latest seconds of a step and of ``other``.
        clock: seconds; the wall's by default.

    Attributes:
        steps: seconds of one step, one value per turn.
        others: seconds of one call of ``other``: one turn more, since it is measured before and after every step's.
    """

    def __init__(
        self,
        other: Callable[[], object],
        *,
        steps: int,
        warm_up: int,
        enough: Callable[[int], bool],
        report: Callable[[float, float], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.other, self.per_turn, self.warm_up, self.enough, self.report = other, steps, warm_up, enough, report
        self.clock = clock
        self.steps: list[float] = []
        self.others: list[float] = []
        self._since = 0.0

    def during(
        self,
        model: TVAE,
        guide: Guide,
        data: DataLoader | SequenceDataModule,
        trainer: TrainerOptions,
        optimizer: Optimizers | None = None,
        precision: str | None = None,
    ) -> None:
        """Time steps of a fit, which goes on until there are enough turns."""
        options = replace(trainer, callbacks=[self])
        end = 1_000_000  # never reached
        fit(
            model, guide, data, optimizer=optimizer, max_epochs=end, matmul_precision=precision, progress=False,
            trainer=options,
        )  # fmt: skip

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        done = trainer.global_step - self.warm_up
        if done < 0 or done % self.per_turn:
            return
        if done:
            self.steps.append((self.clock() - self._since) / self.per_turn)
        self.others.append(seconds_of(self.other, self.per_turn, self.clock))
        if self.steps and self.report is not None:
            self.report(self.steps[-1], self.others[-1])
        if self.enough(len(self.steps)):
            trainer.should_stop = True
        self._since = self.clock()


def seconds_of(action: Callable[[], object], times: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Mean time of one call, by the wall's clock if not said otherwise."""
    since = clock()
    for _ in range(times):
        action()
    return (clock() - since) / times


def in_turns(
    action: Callable[[], object],
    other: Callable[[], object],
    enough: Callable[[int], bool],
    report: Callable[[float, float], None],
) -> tuple[list[float], list[float]]:
    """Seconds of an action's calls, and of another's before and after each; the arguments are those of StepTimer."""
    seconds, others = list[float](), [seconds_of(other, 2)]
    while not enough(len(seconds)):
        seconds.append(seconds_of(action))
        others.append(seconds_of(other))
        report(seconds[-1], others[-1])
    return seconds, others


def between(values: Sequence[float]) -> list[float]:
    """Means of neighbours: what was measured before and after something else, so that a steady drift cancels."""
    return [(before + after) / 2 for before, after in itertools.pairwise(values)]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios of neighbouring turns; ``below`` was measured before and after every turn of ``above``.

    Example:
        >>> ratios([3.0, 3.0], [1.0, 2.0, 4.0])
        [2.0, 1.0]
    """
    return [a / b for a, b in zip(above, between(below), strict=True)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest, highest and number of values, ready for JSON."""
    return {"ratio": statistics.median(values), "low": min(values), "high": max(values), "repeats": len(values)}


@contextmanager
def measuring(threads: int, seconds: float, shown: bool) -> Iterator[Callable[[str, float], None]]:
    """Threads, seed, parameters and a bar, which is told the name and ratio of each turn, of a benchmark of so long.

    Raises:
        ValueError: no threads, or no time.
    """
    if threads < 1 or not 0 < seconds < math.inf:
        raise ValueError(f"benchmark: threads={threads}, seconds={seconds}; expected at least 1 thread and some time.")
    start = time.perf_counter()
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    bar = progress_bar(seconds, "benchmark", shown=shown, bar_format=form)

    def report(name: str, ratio: float) -> None:
        bar.set_postfix({name: f"{ratio:.2f}"}, refresh=False)
        bar.update(min(seconds, time.perf_counter() - start) - bar.n)

    with isolated(threads), bar:
        yield report


@contextmanager
def isolated(threads: int) -> Iterator[None]:
    """Let torch use so many threads for a while, from a seed of its own, with no parameters of Pyro's at first."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with seeded(0), pyro.get_param_store().scope():
            yield
    finally:
        torch.set_num_threads(before)
