"""A large file: peak memory and steps per second of training on one that memory does not hold, beside a small one."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.inference import fit
from pyro_tvae.inference.progress import progress_bar

from ..datasets import SequenceDataModule, arrays
from ..reports.tables import plain_table
from ..runs.data import fingerprints
from .children import call
from .memory import needed, peak
from .speed import Setting
from .timing import ONE_CPU, isolated, ratios, spread

__all__ = ["print_record", "run", "train"]

# A third of the paper's capsules: the sooner a step is done, the sooner it waits for its data.
SETTING = Setting(n_sequences=8, n_frames=18, image_size=64, n_capsules=6, capsule_dim=18, kernel=13, width=1)
MOST_MORE, LEAST_SPEED = 2e9, 0.9  # bytes, and a share of the small file's steps per second
HEAD = 64  # sequences that hold noise; the others are zeros, which take no room on the disk


def run(
    *,
    threads: int = 2,
    progress: bool = True,
    small: float = 1e8,
    large: float = 2e10,
    turns: int = 8,
    steps: int = 10,
    setting: Setting = SETTING,
) -> dict[str, Any]:
    """Train on a file of uint8 films that is read by pieces and on a small one that is read whole.

    Args:
        threads: of torch.
        progress: show a progress bar.
        small, large: sizes of the files, bytes; the large one has holes, and takes little room on the disk.
        turns: of steps on the small file and on the large one.
        steps: in a turn.
        setting: sizes of model and batch.

    Returns:
        A mapping ready for JSON: ``peaks`` (bytes beyond the libraries' of a process each that reads, fingerprints and
        trains) and ``seconds_to_read`` of both files, ``more`` (bytes) and its ``most``; ``speed`` (of steps, a ratio
        as in :func:`.spread`) and its ``least``; ``met``; ``files`` and ``setting``.

    Raises:
        RuntimeError: a process failed.
        OSError: the files cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="pyro-tvae-large-file-") as folder:
        sizes = {"small": small, "large": large}
        files = {name: _write(Path(folder) / f"{name}.npy", size, setting) for name, size in sizes.items()}
        common = {"threads": threads, "sizes": asdict(setting)}
        with progress_bar(3, "large file", shown=progress, unit="process") as bar:
            costs = {}
            for name, path in files.items():
                costs[name] = call(train, {"path": str(path), "steps": steps * turns, **common})
                bar.update()
            paths = [str(path) for path in files.values()]
            small_steps, large_steps = call(in_turns, {"paths": paths, "turns": turns, "steps": steps, **common})
            bar.update()
        more = costs["large"]["peak"] - costs["small"]["peak"]
        speed = spread([1 / ratio for ratio in ratios(large_steps, small_steps)])
        return {
            "files": {name: path.stat().st_size for name, path in files.items()},
            "peaks": {name: cost["peak"] for name, cost in costs.items()},
            "seconds_to_read": {name: cost["seconds_to_read"] for name, cost in costs.items()},
            "more": more,
            "most": MOST_MORE,
            "seconds": {"small": statistics.median(small_steps), "large": statistics.median(large_steps)},
            "speed": speed,
            "least": LEAST_SPEED,
            "met": more <= MOST_MORE and speed["ratio"] >= LEAST_SPEED,
            "setting": asdict(setting),
        }


def _write(path: Path, size: float, setting: Setting) -> Path:
    """Films of about so many bytes, of which the first ones hold noise."""
    shape = (setting.n_frames, 1, setting.image_size, setting.image_size)
    n = max(HEAD, round(size / np.prod(shape)))
    films = np.lib.format.open_memmap(path, "w+", np.uint8, (n, *shape))
    films[:HEAD] = np.random.default_rng(0).integers(0, 256, (HEAD, *shape), dtype=np.uint8)
    films.flush()
    return path


def _data(path: str | Path, setting: Setting) -> SequenceDataModule:
    parts = arrays(path, n_frames=setting.n_frames, memory=1.0)
    return SequenceDataModule(parts, n_frames=setting.n_frames, batch_size=setting.n_sequences, n_validation=8)


def _model(setting: Setting) -> tuple[TVAE, MeanFieldGuide]:
    topography = CapsuleRoll(setting.kernel, setting.width)
    shape = (1, setting.image_size, setting.image_size)
    model = TVAE(shape, setting.n_frames, setting.n_capsules, setting.capsule_dim, topography)
    return model, MeanFieldGuide(model)


def train(path: str, steps: int, threads: int, sizes: Mapping[str, int]) -> dict[str, float]:
    """Bytes that this process needs to read, fingerprint and train on a file, and seconds before it trains."""
    setting = Setting(**sizes)
    with isolated(threads):
        model, guide = _model(replace(setting, image_size=8, n_frames=3, n_capsules=1, capsule_dim=3, kernel=3))
        fit(model, guide, torch.rand(8, 3, 1, 8, 8), max_epochs=1, progress=False, trainer=ONE_CPU)
        before, since = peak(), time.perf_counter()
        del model, guide
        data = _data(path, setting)
        fingerprints(data)
        seconds = time.perf_counter() - since
        fit(*_model(setting), data, max_steps=steps, progress=False, trainer=ONE_CPU)
        return {"peak": needed(before), "seconds_to_read": seconds}


class _Turns(IterableDataset):
    """Batches of each of some data in turns, which notes when each turn ended."""

    def __init__(self, data: Sequence[SequenceDataModule], turns: int, steps: int) -> None:
        self.data, self.turns, self.steps = data, turns, steps
        self.seconds: list[list[float]] = [[] for _ in data]

    def __iter__(self) -> Iterator[Any]:
        batches = [_endless(own) for own in self.data]
        each = [*range(len(batches))]
        # The first ones warm up; the small file's comes before and after each of the large one's.
        for turn, number in enumerate([*each * (self.turns + 1), 0]):
            since = time.perf_counter()
            for batch in islice(batches[number], self.steps):
                yield self.data[number].rendered(batch)
            if turn >= len(each):
                self.seconds[number].append((time.perf_counter() - since) / self.steps)


def _endless(data: SequenceDataModule) -> Iterator[Any]:
    while True:
        yield from data.train_dataloader()


def in_turns(
    paths: Sequence[str], turns: int, steps: int, threads: int, sizes: Mapping[str, int]
) -> tuple[list[float], list[float]]:
    """Seconds of a step on each of two files, data included, in turns of one fit: the first file's once more."""
    setting = Setting(**sizes)
    with isolated(threads):
        source = _Turns([_data(path, setting) for path in paths], turns, steps)
        fit(*_model(setting), DataLoader(source, batch_size=None), max_epochs=1, progress=False, trainer=ONE_CPU)
        return source.seconds[0], source.seconds[1]


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    table = plain_table("file", "GB", "MB of memory", "s to the first step", "ms a step", gap=0)
    for name, size in record["files"].items():
        table.add_row(
            name,
            f"{size / 1e9:,.1f}",
            f"{record['peaks'][name] / 1e6:,.0f}",
            f"{record['seconds_to_read'][name]:,.1f}",
            f"{1e3 * record['seconds'][name]:,.1f}",
        )
    console.print(table)
    speed = record["speed"]
    console.print(
        f"{record['more'] / 1e6:,.0f} MB more, at most {record['most'] / 1e6:,.0f}; steps per second "
        f"{speed['ratio']:.3f} of the small file's ({speed['low']:.3f} to {speed['high']:.3f}), at least "
        f"{record['least']}: {'met' if record['met'] else 'NOT met'}."
    )
