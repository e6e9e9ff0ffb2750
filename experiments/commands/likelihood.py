"""The command ``likelihood``: how a run's bound of log p(x) grows with the particles, and what annealing finds.

Importance weights say by their Pareto k when their bound is not to be trusted; annealed importance sampling is a second
estimator that shares nothing with them but the model and the guide's starting point.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor

from pyro_tvae import LaplaceGuide
from pyro_tvae.inference import RELIABLE_PARETO_K, Annealing, annealed_importance, bracket, log_likelihood
from pyro_tvae.inference.annealing import check_annealing
from pyro_tvae.inference.likelihood import check_likelihood, ratio_error
from pyro_tvae.judging import check_seed

from ..config.allowlist import PARTS_ONLY, Allowlist
from ..config.composition import data_settings
from ..datasets.splits import given_by, scored_in_words
from ..reports.tables import plain_table, wide_console
from ..runs.files import finite, read_record, write_text
from ..runs.outputs import DAMAGED, additions, put_aside, replacing, unfinished
from ..runs.run import Run

__all__ = ["LIKELIHOOD", "Bracket", "LikelihoodRecord", "LikelihoodRow", "likelihood_run", "print_likelihood"]

LIKELIHOOD = "likelihood.json"


class LikelihoodRow(TypedDict):
    """One estimate; nats per frame, but ``particle_error``, nats per sequence. ``gain`` is over the first estimate."""

    what: str
    per_frame: float
    per_frame_error: float
    particle_error: float
    gain: float
    gain_error: float
    k: NotRequired[int]
    ess: float
    unreliable: int | None
    seconds: float


class Bracket(TypedDict):
    """Upper minus lower bound on simulated sequences, nats per sequence."""

    gap: float
    gap_error: float
    what: str


class LikelihoodRecord(TypedDict):
    """The content of ``likelihood.json``."""

    kind: str
    request: dict[str, Any]
    name: str
    split: str
    sequences: int
    n_frames: int
    threads: int
    seed: int
    remark: str | None
    rows: list[LikelihoodRow]
    bracket: NotRequired[Bracket]
    scored: NotRequired[str]


class PartRecord(TypedDict):
    """What was estimated so far, and per sequence the bounds of the first estimate, as hexadecimal numbers."""

    rows: list[LikelihoodRow]
    first: list[str]


def likelihood_run(
    run: Path,
    *,
    particles: Sequence[int] = (1, 10, 100, 1000),
    frame_particles: int = 1,
    sequences: int = 32,
    temperatures: int = 0,
    chains: int = 16,
    laplace: bool = False,
    split: str = "test",
    seed: int = 0,
    output: Path | None = None,
    overwrite: bool = False,
    allow: Allowlist = PARTS_ONLY,
    data: Sequence[str] = (),
) -> LikelihoodRecord:
    """Estimate log p(x) of a trained run's sequences over K, and by annealing; writes ``likelihood.json``.

    Every estimate is kept when it is made, in a file beside it, so that an interrupted command goes on when it is given
    again; what was there before stays until all are made.

    Args:
        run: the run's folder.
        particles: the K of the importance-weighted bound, each with draws of its own.
        frame_particles: M; above 1, also K / M draws of the energies with M of z per frame in each, see
            :func:`.log_likelihood`; all K of a plain VAE, which has no energies.
        sequences: the first ones of the split.
        temperatures: of annealed importance sampling, and of the bracket on as many simulated sequences; 0 for none.
        chains: of annealing, per sequence.
        laplace: draw from the Laplace approximation of each sequence's posterior, see :class:`.LaplaceGuide`, and begin
            to anneal there, instead of at the run's guide.
        split: ``"test"`` or ``"validation"``.
        seed: of all draws.
        output: the file, by default ``likelihood.json`` in the run's folder.
        overwrite: replace a file that was made with other settings.
        allow: what the run's configuration may call.
        data: overrides of settings of its data, which may then be others than it was begun with.

    Returns:
        The content of the file: ``rows``, one mapping per estimate, ``remark``, and what was computed on.

    Raises:
        FileNotFoundError: the folder is not a run's, or its training has not ended.
        FileExistsError: the file is there, made with other settings.
        ValueError: nothing to estimate, or a number that is too small.
    """
    check_seed(seed, owner="likelihood")
    for name, value, sound, expected in (
        ("particles", list(particles), bool(particles) and min(particles, default=0) >= 1, "numbers of at least 1"),
        ("frame_particles", frame_particles, frame_particles >= 1, "at least 1"),
        ("sequences", sequences, sequences >= 1, "at least 1"),
        ("temperatures", temperatures, temperatures == 0 or temperatures >= 2, "0 for none, or at least 2"),
        ("chains", chains, chains >= 1, "at least 1"),
    ):
        if not sound:
            raise ValueError(f"likelihood: {name} is {value}; expected {expected}.")
    stored = Run(run, allow, data_settings(data))
    loaded = stored.load()
    model, guide = loaded.model, loaded.guide
    if laplace:
        guide = LaplaceGuide(model, guide)
    batch = next(loaded.data.batches(split, loaded.device, batch_size=sequences))
    x, given, scored = batch["x"], given_by(batch, model, guide), scored_in_words(batch)
    # Before the rows that come first, what is refused of the others.
    if temperatures:
        check_annealing(model, guide, x, given["observed"], given["covariates"])
    if frame_particles > 1:
        check_likelihood(model, guide, x, given["observed"], given["covariates"], frame_particles=2)
    request = {
        "particles": sorted(set(particles)),
        "frame_particles": frame_particles,
        "sequences": sequences,
        "temperatures": temperatures,
        "chains": chains if temperatures else None,
        **({"laplace": True} if laplace else {}),
        "split": split,
        "seed": seed,
        "weights": loaded.weights,
        **({"data": loaded.others} if loaded.others else {}),
        **({"code": loaded.code} if loaded.code else {}),
    }
    file = output or run / LIKELIHOOD
    with replacing(file, request, overwrite) as written:
        begun = unfinished(file, request)
        done, first = _begun(begun)
        record: LikelihoodRecord = {
            "kind": "likelihood",
            "request": request,
            "name": str(loaded.config.name),
            "split": split,
            "sequences": len(x),
            "n_frames": model.n_frames,
            "threads": torch.get_num_threads(),
            "seed": seed,
            "remark": model.likelihood.remark,
            "rows": [*done.values()],
        }
        if scored:
            record["scored"] = scored
        show = bool(loaded.config.fit.progress)
        observed = torch.ones(x.shape[:2]) if given["observed"] is None else given["observed"]
        lengths = observed.expand(x.shape[:2]).sum(1).double().cpu()
        for k in sorted(set(particles)):
            m = min(frame_particles if model.energies else k, k) if frame_particles > 1 else 1
            for draws, of_frame in dict.fromkeys([(k, 1), (k // m, m)]):
                what = f"IWAE, K = {k:,}" if of_frame == 1 else f"by frames, K = {draws:,}, M = {of_frame:,}"
                if what not in done:
                    since = time.perf_counter()
                    bound = log_likelihood(
                        model, guide, x, draws, frame_particles=of_frame, seed=seed + k, progress=show, **given
                    )
                    first = bound.iwae.double().cpu() if first is None else first
                    row = _row(what, bound.iwae, first, bound.standard_error, bound.ess, since, lengths, draws)
                    if bound.num_particles > 20:  # without a tail of five weights there is no Pareto k to count
                        row["unreliable"] = int((bound.pareto_k > RELIABLE_PARETO_K).sum())
                    done[what] = row
                    record["rows"] = [*done.values()]
                    _write(begun, record, first)
        if temperatures:
            options: dict[str, Any] = {
                "annealing": Annealing(num_chains=chains, num_temperatures=temperatures),
                "seed": seed,
                "progress": show,
            }
            what = f"AIS, {temperatures} temperatures"
            if what not in done:
                since = time.perf_counter()
                annealed = annealed_importance(model, guide, x, **given, **options)
                log_p, error = annealed.log_p, annealed.standard_error
                assert first is not None
                done[what] = _row(what, log_p, first, error, annealed.ess, since, lengths)
                record["rows"] = [*done.values()]
                _write(begun, record, first)
            if given["covariates"].keys() <= {"measured"}:  # nothing tells what else belongs to simulated sequences
                masks = {"observed": given["observed"], **given["covariates"]}
                bounds = bracket(model, guide, len(x), **masks, **options)
                record["bracket"] = {
                    "gap": bounds.mean_gap,
                    "gap_error": bounds.mean_gap_error,
                    "what": "upper minus lower bound of log p(x) on sequences simulated from the model, nats per "
                    "sequence",
                }
        with written() as partial:
            _write(partial, cast(LikelihoodRecord, {**record, **additions(file, record)}))
        begun.unlink(missing_ok=True)
        return record


def _write(file: Path, record: LikelihoodRecord, first: Tensor | None = None) -> None:
    """Write a record; one that is not whole with the first estimate's bounds, which the further ones are gains over."""
    kept = {} if first is None else {"first": [one.hex() for one in first.tolist()]}
    write_text(file, json.dumps(finite(dict(record)) | kept, indent=1))


def _begun(path: Path) -> tuple[dict[str, LikelihoodRow], Tensor | None]:
    """The estimates that the same command made before it was interrupted, by name, and the first one's bounds."""
    try:
        record = read_record(path, PartRecord)
        first = torch.tensor([float.fromhex(one) for one in record["first"]], dtype=torch.float64)
    except FileNotFoundError:
        return {}, None
    except ValueError:
        put_aside(path, DAMAGED)
        return {}, None
    for row in record["rows"]:
        for name in ("per_frame_error", "gain_error", "particle_error"):  # which JSON has no word for where undefined
            row[name] = math.nan if row[name] is None else row[name]
    return {row["what"]: row for row in record["rows"]}, first


def _row(
    what: str, bound: Tensor, first: Tensor, error: Tensor, ess: Tensor, since: float, lengths: Tensor, k: int = 0
) -> LikelihoodRow:
    gain = bound.double().cpu() - first  # of the same sequences: what differs between them cancels
    row: LikelihoodRow = {
        "what": what,
        "per_frame": float(bound.mean() / lengths.mean()),
        "per_frame_error": ratio_error(bound.double().cpu(), lengths),
        "particle_error": float(error.square().mean().sqrt()),
        "gain": float(gain.mean() / lengths.mean()),
        "gain_error": ratio_error(gain, lengths),
        "k": k,
        "ess": float(ess.median()),
        "unreliable": None,
        "seconds": time.perf_counter() - since,
    }
    if not k:
        del row["k"]
    return row


def print_likelihood(record: LikelihoodRecord) -> None:
    """Print a record of :func:`likelihood_run` as a table with units."""
    console = wide_console(110)
    headings = ("nats / frame", "above the first", "median ESS", f"Pareto k > {RELIABLE_PARETO_K}", "seconds")
    table = plain_table("lower bound of log p(x)", *headings, gap=2)
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
    if record["request"].get("laplace"):
        console.print("Drawn from the Laplace approximation of each sequence's posterior.", highlight=False)
    if "bracket" in record:
        gap = record["bracket"]
        console.print(
            f"On simulated sequences, where log p(x) can be bounded from above too, annealing leaves a gap of "
            f"{gap['gap']:.2f} ± {gap['gap_error']:.2f} nats per sequence.",
            highlight=False,
        )
    for remark in (record.get("scored"), record["remark"]):
        if remark:
            console.print(remark, highlight=False)
