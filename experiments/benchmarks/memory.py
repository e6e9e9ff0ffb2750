"""Memory: how much processes that weigh particles and that train need, over particles, frames and sequences."""

from __future__ import annotations

import functools
import itertools
import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from pyro_tvae import TVAE, MeanFieldGuide
from pyro_tvae.inference import fit, log_likelihood
from pyro_tvae.inference.progress import progress_bar

from ..reports.tables import plain_table
from .children import call
from .speed import PAPER, Setting
from .timing import ONE_CPU

__all__ = ["begin", "needed", "peak", "print_record", "run", "train", "weigh"]

LIMIT = 1.05  # of the peak with the most particles to that with the fewest
AXES = {"S": "n_frames", "batch": "n_sequences"}
STEPS = 4
FEW = 2  # sequences for which many particles are drawn: a chunk of them is then as large as with more


def run(
    *,
    threads: int = 2,
    progress: bool = True,
    particles: Sequence[int] = (1_000, 10_000),
    frames: Sequence[int] = (9, 18, 36, 72),
    sequences: Sequence[int] = (4, 8, 16, 32),
    setting: Setting = PAPER,
) -> dict[str, Any]:
    """Peak memory of ``log_likelihood`` over K, and of it and of training over S and the batch.

    Every number is from a process of its own, and counts what that process needed beyond the imported libraries.

    Args:
        threads: of torch.
        progress: show progress bars.
        particles: the K, for two sequences.
        frames: the S, at the setting's batch, and K for the weights.
        sequences: in a batch, likewise.
        setting: the other sizes; the paper's MNIST configuration by default, with K = 100.

    Returns:
        A mapping ready for JSON: ``peaks`` (K -> bytes), ``ratio`` of the last to the first, ``target``, ``met``;
        ``weights`` and ``training``, each a mapping of ``S`` and ``batch`` to (size -> bytes); ``setting``.

    Raises:
        RuntimeError: a process failed, or the system does not say how much memory one used.
    """
    sizes = {"S": frames, "batch": sequences}
    peaks = {}
    for k in particles:
        many = asdict(replace(setting, num_particles=k, n_sequences=FEW))
        peaks[k] = int(call(weigh, {"sizes": many, "threads": threads, "progress": progress}))

    @functools.cache  # two sizes share a setting
    def bytes_of(job: Callable[..., int], here: Setting) -> int:
        return int(call(job, {"sizes": asdict(here), "threads": threads}))

    jobs = {"weights": weigh, "training": train}
    grown: dict[str, dict[str, dict[str, int]]] = {name: {axis: {} for axis in sizes} for name in jobs}
    total = len(jobs) * sum(map(len, sizes.values()))
    with progress_bar(total, "memory over S and batch", shown=progress, unit="process") as bar:
        for name, axis in itertools.product(jobs, sizes):
            for n in sizes[axis]:
                grown[name][axis][str(n)] = bytes_of(jobs[name], replace(setting, **{AXES[axis]: n}))
                bar.update()
    ratio = peaks[particles[-1]] / peaks[particles[0]]
    return {
        "peaks": {str(k): value for k, value in peaks.items()},
        "ratio": ratio,
        "target": LIMIT,
        "met": ratio <= LIMIT,
        **grown,
        "setting": asdict(setting),
    }


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    table = plain_table("peak memory in MB, the libraries' left out", "importance weights", "training", gap=3)
    for k, value in record["peaks"].items():
        table.add_row(f"K = {int(k):,}, batch = {FEW}", f"{value / 1e6:,.0f}", "–")
    for axis in AXES:
        for n, value in record["weights"][axis].items():
            table.add_row(f"{axis} = {n}", f"{value / 1e6:,.0f}", f"{record['training'][axis][n] / 1e6:,.0f}")
    console.print(table)
    met, size = "met" if record["met"] else "NOT met", record["setting"]
    console.print(
        f"Most to fewest particles {record['ratio']:.3f}, target at most {record['target']} {met}; a process each; "
        f"where not said otherwise K = {size['num_particles']}, S = {size['n_frames']}, batch = {size['n_sequences']}."
    )


def peak() -> int:
    """Largest resident memory of this process so far, in bytes.

    Linux hands the number on to a program that a process starts, but not to a process that it forks.

    Raises:
        RuntimeError: the system does not say.
    """
    try:
        import resource
    except ImportError:
        raise RuntimeError("benchmark memory: this system does not report a process's peak memory.") from None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def weigh(sizes: Mapping[str, int], threads: int, progress: bool = False) -> int:
    """Bytes that this process needs for the importance weights of one batch."""
    before, setting, model, guide, x = begin(sizes, threads)
    log_likelihood(model, guide, x, setting.num_particles, batch_size=setting.n_sequences, progress=progress)
    return needed(before)


def train(sizes: Mapping[str, int], threads: int) -> int:
    """Bytes that this process needs for a few training steps."""
    before, setting, model, guide, x = begin(sizes, threads)
    fit(model, guide, x, batch_size=setting.n_sequences, max_epochs=STEPS, progress=False, trainer=ONE_CPU)
    return needed(before)


def needed(before: int) -> int:
    """Bytes of the peak beyond ``before``; at least a page, since nothing has neither a ratio nor a logarithm."""
    return max(peak() - before, mmap.PAGESIZE)


def begin(sizes: Mapping[str, int], threads: int) -> tuple[int, Setting, TVAE, MeanFieldGuide, Tensor]:
    """The peak so far of a process whose libraries have all done something small; then what it is to work on."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    small, setting = Setting(2, 3, 4, 1, 3, 3, 0), Setting(**sizes)
    model, guide = small.build()
    x = torch.rand(2, 3, *small.frame_shape)
    fit(model, guide, x, batch_size=2, max_epochs=1, progress=False, trainer=ONE_CPU)
    log_likelihood(model, guide, x, 30)
    return peak(), setting, *setting.build(), torch.rand(setting.n_sequences, setting.n_frames, *setting.frame_shape)
