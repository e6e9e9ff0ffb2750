"""Scaling: training sequences per second of two processes with one thread each, against one such process."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from pyro_tvae.inference import TrainerOptions
from pyro_tvae.inference.progress import progress_bar

from ..reports.tables import plain_table
from .children import together
from .speed import PAPER, Setting, step_products
from .throughput import rates_in_words, turning_digits
from .timing import StepTimer, ratios, spread

__all__ = ["print_record", "run", "summary", "train"]

WARM_UP_STEPS = 5


def run(
    *,
    threads: int = 1,
    progress: bool = True,
    rounds: int = 3,
    turns: int = 3,
    steps: int = 10,
    setting: Setting = PAPER,
) -> dict[str, Any]:
    """Train with one process and with two in turns: Lightning's DDP over gloo, a batch per process of the same size.

    Two processes that multiply bare matrices at the same time show what the machine itself allows: cores share caches
    and memory, and what the two fall short of that is what DDP costs.

    Args:
        threads: not used; every process has one, whatever the rest of the suite has.
        progress: show a progress bar.
        rounds: trainings with two processes; there is one more with one process.
        turns: of steps and products in each training.
        steps: of a turn.
        setting: the sizes; the paper's MNIST configuration by default.

    Returns:
        A mapping ready for JSON: ``measures`` (``training`` and ``products``, see :func:`summary`) and ``setting``.

    Raises:
        ValueError: nothing to measure.
        RuntimeError: a process failed, or PyTorch was built without distributed training.
    """
    if min(rounds, turns, steps) < 1:
        raise ValueError(f"benchmark: rounds={rounds}, turns={turns}, steps={steps}; expected at least 1 of each.")
    if not torch.distributed.is_available():
        raise RuntimeError("benchmark scaling: PyTorch was built without torch.distributed; leave scaling out.")
    call = {"sizes": asdict(setting), "turns": turns, "steps": steps}
    seconds: dict[int, dict[str, list[float]]] = {n: {"training": [], "products": []} for n in (1, 2)}
    plan = [1, *[2, 1] * rounds]
    with progress_bar(len(plan), "scaling", shown=progress, unit="training") as bar:
        for n in plan:
            calls = [{**call, "n_processes": n}] * n
            answers = together(train, calls, _ranks(n) if n > 1 else None)
            for name, values in seconds[n].items():
                # Processes that wait for each other take the same time; bare products need not.
                values.append(statistics.mean(statistics.median(answer[name]) for answer in answers))
            bar.update()
    return {
        "measures": {
            name: summary(setting.n_sequences, seconds[1][name], seconds[2][name]) for name in ("training", "products")
        },
        "setting": asdict(setting),
    }


def summary(count: int, one: Sequence[float], two: Sequence[float]) -> dict[str, Any]:
    """Sequences per second of both, and their ratio: 2 where a second process doubles the rate, 1 where it is in vain.

    Args:
        count: sequences that one process handles in a step.
        one: seconds of a step with one process, before and after every run of two.
        two: seconds of a step in which each of two processes handles ``count``.

    Example:
        >>> summary(8, [1.0, 1.0], [1.25])["ratio"]
        1.6
    """
    return {
        "one": count / statistics.median(one),
        "two": 2 * count / statistics.median(two),
        **spread([2 / ratio for ratio in ratios(two, one)]),
    }


def _ranks(n: int) -> list[dict[str, str]]:
    """What tells n processes of one machine who they are and where they meet."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = str(opened.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0"}
    return [{**place, "LOCAL_RANK": str(rank)} for rank in range(n)]


def train(sizes: Mapping[str, int], n_processes: int, turns: int, steps: int) -> dict[str, list[float]]:
    """Seconds of a training step and of its bare products, one value per turn, as one of ``n_processes``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    setting = Setting(**sizes)
    model, guide = setting.build()
    timed = StepTimer(
        # After a step all processes begin their products together: they compete as steps do.
        step_products(model, guide, setting.n_sequences),
        steps=steps,
        warm_up=WARM_UP_STEPS,
        # All processes have to stop after the same step, so that none waits for another's gradients.
        enough=lambda count: count >= turns,
    )
    trainer = TrainerOptions("cpu", n_processes, "ddp" if n_processes > 1 else "auto")
    timed.during(model, guide, turning_digits(setting), trainer)
    if n_processes > 1:
        torch.distributed.barrier()  # the one that keeps the store must not end before the others
        torch.distributed.destroy_process_group()
    return {"training": timed.steps, "products": timed.others}


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    first = "sequences per second here, one thread per process"
    table = plain_table(first, "1 process", "2 processes", "ratio", "lowest to highest", gap=1, wraps=True)
    for name, what in (("training", "training, DDP over gloo"), ("products", "bare products, no DDP")):
        rates = record["measures"][name]
        table.add_row(*rates_in_words(what, (rates["one"], rates["two"]), rates))
    console.print(table)
    console.print(
        f"2 is perfect; every process has a batch of its own of {record['setting']['n_sequences']} sequences."
    )
