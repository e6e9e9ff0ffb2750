"""The command ``likelihood``: how a run's bound of log p(x) grows with the particles, and what annealing finds.

Importance weights say by their Pareto k when their bound is not to be trusted; annealed importance sampling is a second
estimator that shares nothing with them but the model and the guide's starting point.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyro_tvae.inference import RELIABLE_PARETO_K, Annealing, annealed_importance, bracket, log_likelihood

from ..runs.folder import finite, trained, write_text

__all__ = ["LIKELIHOOD", "likelihood_run", "print_likelihood"]

LIKELIHOOD = "likelihood.json"


def likelihood_run(
    run: Path,
    *,
    particles: Sequence[int] = (1, 10, 100, 1000),
    sequences: int = 32,
    temperatures: int = 0,
    chains: int = 16,
    split: str = "test",
    seed: int = 0,
) -> dict[str, Any]:
    """Estimate log p(x) of a trained run's sequences over K, and by annealing; writes ``likelihood.json``.

    The file is written anew after every estimate, so that an interrupted command leaves those that it had.

    Args:
        run: the run's folder.
        particles: the K of the importance-weighted bound, each with draws of its own.
        sequences: the first ones of the split.
        temperatures: of annealed importance sampling, and of the bracket on as many simulated sequences; 0 for none.
        chains: of annealing, per sequence.
        split: ``"test"`` or ``"validation"``.
        seed: of all draws.

    Returns:
        The content of the file: ``rows``, one mapping per estimate, ``remark``, and what was computed on.

    Raises:
        FileNotFoundError: the folder is not a run's, or its training has not ended.
        ValueError: nothing to estimate, or a number that is too small.
    """
    for name, value, sound, expected in (
        ("particles", list(particles), bool(particles) and min(particles, default=0) >= 1, "numbers of at least 1"),
        ("sequences", sequences, sequences >= 1, "at least 1"),
        ("temperatures", temperatures, temperatures == 0 or temperatures >= 2, "0 for none, or at least 2"),
        ("chains", chains, chains >= 1, "at least 1"),
    ):
        if not sound:
            raise ValueError(f"likelihood: {name} is {value}; expected {expected}.")
    loaded = trained(run)
    model, guide, data = loaded.model, loaded.guide, loaded.data
    x = next(data.batches(split, loaded.device, batch_size=sequences))["x"]
    record: dict[str, Any] = {
        "kind": "likelihood",
        "name": str(loaded.config.name),
        "split": split,
        "sequences": len(x),
        "n_frames": model.n_frames,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "remark": model.likelihood.remark,
        "rows": [],
    }
    show = bool(loaded.config.fit.progress)
    first: Tensor | None = None
    for k in sorted(set(particles)):
        since = time.perf_counter()
        found = log_likelihood(model, guide, x, k, seed=seed + k, progress=show)
        first = found.iwae if first is None else first
        row = _row(f"IWAE, K = {k:,}", found.iwae, first, found.standard_error, model.n_frames)
        row |= {
            "k": k,
            "ess": float(found.ess.median()),
            # Without a tail of five weights there is no Pareto k to count.
            "unreliable": int((found.pareto_k > RELIABLE_PARETO_K).sum()) if k > 20 else None,
            "seconds": time.perf_counter() - since,
        }
        _add(record, row, run)
    if temperatures:
        options: dict[str, Any] = {
            "annealing": Annealing(num_chains=chains, num_temperatures=temperatures),
            "seed": seed,
            "progress": show,
        }
        since = time.perf_counter()
        annealed = annealed_importance(model, guide, x, **options)
        row = _row(f"AIS, {temperatures} temperatures", annealed.log_p, first, annealed.standard_error, model.n_frames)
        row |= {"ess": float(annealed.ess.median()), "unreliable": None, "seconds": time.perf_counter() - since}
        _add(record, row, run)
        found_bracket = bracket(model, guide, len(x), **options)
        record["bracket"] = {
            "gap": found_bracket.mean_gap,
            "gap_error": found_bracket.mean_gap_error,
            "what": "upper minus lower bound of log p(x) on sequences simulated from the model, nats per sequence",
        }
        _write(record, run)
    return record


def _row(what: str, bound: Tensor, first: Tensor | None, error: Tensor, n_frames: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "what": what,
        "per_frame": float(bound.mean()) / n_frames,
        "per_frame_error": _error(bound) / n_frames,
        "particle_error": float(error.square().mean().sqrt()),
    }
    if first is not None:  # of the same sequences: what differs between them cancels
        row |= {"gain": float((bound - first).mean()) / n_frames, "gain_error": _error(bound - first) / n_frames}
    return row


def _error(values: Tensor) -> float:
    """Standard error of the mean over sequences."""
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _add(record: dict[str, Any], row: dict[str, Any], run: Path) -> None:
    record["rows"].append(row)
    _write(record, run)


def _write(record: Mapping[str, Any], run: Path) -> None:
    write_text(run / LIKELIHOOD, json.dumps(finite(record), indent=1))


def print_likelihood(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a record of :func:`likelihood_run` as a table with units."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=max(110, console.width))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("lower bound of log p(x)")
    for heading in ("nats / frame", "above the first", "median ESS", f"Pareto k > {RELIABLE_PARETO_K}", "seconds"):
        table.add_column(heading, justify="right")
    n = record["sequences"]
    for row in record["rows"]:
        unreliable = row["unreliable"]
        table.add_row(
            row["what"],
            f"{row['per_frame']:.2f} ± {row['per_frame_error']:.2f}",
            f"{row['gain']:.3f} ± {row['gain_error']:.3f}",
            f"{row['ess']:.1f}",
            "–" if unreliable is None else f"{unreliable} of {n}",
            f"{row['seconds']:.1f}",
        )
    console.print(f"{record['name']}: {n} {record['split']} sequences of {record['n_frames']} frames", highlight=False)
    console.print(table)
    console.print("± is the standard error over sequences; higher is better.", highlight=False)
    if "bracket" in record:
        gap = record["bracket"]
        console.print(
            f"On simulated sequences, where log p(x) can be bounded from above too, annealing leaves a gap of "
            f"{gap['gap']:.2f} ± {gap['gap_error']:.2f} nats per sequence.",
            highlight=False,
        )
    if record["remark"]:
        console.print(record["remark"], highlight=False)
