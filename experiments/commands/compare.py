"""The command ``compare``: which of several runs explains the same sequences better, and whether bounds can tell."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_tvae.inference import RELIABLE_PARETO_K, Annealing, Comparison, compare
from pyro_tvae.judging import check_seed

from ..config.allowlist import PARTS_ONLY, Allowlist
from ..config.composition import data_settings
from ..datasets.splits import given_by, scored_in_words
from ..reports.tables import format_number, plain_table, wide_console
from ..runs.files import finite, write_text
from ..runs.outputs import REQUEST, RESERVE, additions, replacing
from ..runs.run import Run

__all__ = ["compare_runs", "print_comparison"]


def compare_runs(
    runs: Sequence[Path],
    *,
    particles: int = 1000,
    sequences: int = 32,
    temperatures: int = 0,
    chains: int = 16,
    split: str = "test",
    seed: int = 0,
    output: Path | None = None,
    overwrite: bool = False,
    allow: Allowlist = PARTS_ONLY,
    data: Sequence[str] = (),
) -> Comparison:
    """Compare trained runs by :func:`.compare` on the first sequences of a split that they share.

    Args:
        runs: their folders, two or more.
        particles: K of the importance weights.
        sequences: how many of the split, and how many are simulated to measure looseness.
        temperatures: of annealed importance sampling instead of importance weights; 0 for these.
        chains: of annealing, per sequence.
        split: ``"test"``, or ``"validation"`` while models are being chosen.
        seed: of all draws.
        output: a JSON file of the table and every sequence's bounds; none by default.
        overwrite: replace a file that was made otherwise.
        allow: what the runs' configurations may call.
        data: overrides of settings of their data, which may then be others than they were begun with.

    Raises:
        FileNotFoundError: a folder is not a run's, or its training has not ended.
        FileExistsError: the output is there, made otherwise.
        ValueError: numbers that are too small, runs of other sequences, or what :func:`.compare` refuses.
    """
    check_seed(seed, owner="compare")
    different = len({path.resolve() for path in runs})  # a link leads to the same one
    if different != len(runs) or different < 2:
        raise ValueError(f"compare: {different} runs; expected two or more, each once.")
    if sequences < 2 or particles < 1 or chains < 1 or temperatures == 1 or temperatures < 0:
        raise ValueError(
            f"compare: sequences={sequences}, particles={particles}, temperatures={temperatures}, chains={chains}; "
            "expected two sequences or more, at least 1 particle and chain, and 0 temperatures or at least 2."
        )
    stored = [Run(path, allow, data_settings(data)) for path in runs]
    loaded = [run.load() for run in stored]
    request = {
        "runs": {str(run): one.weights for run, one in zip(stored, loaded, strict=True)},
        "particles": None if temperatures else particles,
        "sequences": sequences,
        "temperatures": temperatures,
        "chains": chains if temperatures else None,
        "split": split,
        "seed": seed,
        **({"code": code} if (code := {name: one for each in loaded for name, one in each.code.items()}) else {}),
        **({"data": others} if (others := next((one.others for one in loaded if one.others), None)) else {}),
    }
    with nullcontext() if output is None else replacing(output, request, overwrite) as written:
        if written is not None:
            written.keep_room(RESERVE + 100 * len(runs) * sequences)
        first, *further = (next(one.data.batches(split, one.device, batch_size=sequences)) for one in loaded)
        given = given_by(first, *(program for one in loaded for program in (one.model, one.guide)))
        for run, batch in zip(stored[1:], further, strict=True):
            if not all(
                _equal(first.get(name), batch.get(name)) for name in ("x", "observed", "measured", *given["covariates"])
            ):
                raise ValueError(
                    f"compare: the {split} sequences of {run} are not those of {stored[0]}; expected runs with the "
                    "same data and seed of the data."
                )
        result = compare(
            {str(run): (one.model, one.guide) for run, one in zip(stored, loaded, strict=True)},
            first["x"],
            particles,
            **given,
            annealing=Annealing(num_chains=chains, num_temperatures=temperatures) if temperatures else None,
            n_simulations=len(first["x"]),
            seed=seed,
            progress=any(bool(one.config.fit.progress) for one in loaded),
        )
        if written is not None and output is not None:
            record: dict[str, Any] = {
                "kind": "comparison",
                REQUEST: request,
                "unit": "nats per sequence",
                "remark": loaded[0].model.likelihood.remark,
                **({"scored": scored} if (scored := scored_in_words(first)) else {}),
                "rows": [{"model": name, **row} for name, row in result.table.to_dict("index").items()],
                "log_p": dict(zip(result.names, result.log_p.tolist(), strict=True)),
                "pareto_k": dict(zip(result.names, result.pareto_k.tolist(), strict=True)),
            }
            with written() as partial:
                write_text(partial, json.dumps(finite(record | additions(output, record)), indent=1))
        return result


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are the same, or both missing."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(other.to(one), one)


def print_comparison(result: Comparison) -> None:
    """Print a comparison as a table with units, and what it cannot decide."""
    console = wide_console(120)
    headings = ("log p ≥", "difference", "log p differs by", "loose by", f"k > {RELIABLE_PARETO_K}")
    table = plain_table("nats per sequence", *headings, gap=2)
    n, told = result.log_p.shape[1], []
    for name, row in result.table.iterrows():
        unknown, first = format_number(None), row["rank"] == 0
        interval = unknown if math.isnan(row["low"]) else f"{row['low']:.1f} … {row['high']:.1f}"
        table.add_row(
            str(name),
            format_number(row["log_p"], row["se"]),
            "" if first else format_number(row["log_p_diff"], row["dse"]),
            "" if first else interval,
            format_number(row["looseness"]),
            unknown if math.isnan(row["bad_k"]) else f"{round(row['bad_k'] * n)} of {n}",
        )
        if not first:
            told.append(f"{name} is {f'not told from the best: {why}' if (why := row['warning']) else 'worse'}.")
    console.print(table)
    console.print(
        f"± is the standard error over {n} sequences, paired for differences. A bound may be loose by the gap between "
        "an upper and a lower one on sequences that its model made, which the interval of how log p itself differs "
        f"includes ({result.level:.0%}); annealing (--temperatures 300) narrows it.",
        *told,
        sep="\n",
        highlight=False,
    )
