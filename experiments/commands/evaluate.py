"""The commands ``evaluate`` and ``report``: a trained run judged, drawn, and shown on one page."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import pyro_tvae
from pyro_tvae.files import make_folder

from ..config.allowlist import PARTS_ONLY, Allowlist
from ..config.building import Parts
from ..config.composition import data_settings
from ..config.errors import ConfigurationError, LeftOut
from ..evaluation.attempts import Attempts
from ..evaluation.evaluate import Evaluation, evaluate
from ..evaluation.record import EvaluationRecord, judged_on
from ..interruption import command, override
from ..reports.channels import check_channels
from ..reports.report import CAPTIONS, write_report
from ..reports.run_figures import draw
from ..reports.tables import print_evaluation
from ..runs.files import finite
from ..runs.names import EVALUATION, FIGURES, PLAIN_VAE, REPORT, TRAINED, UNTRAINED, WEIGHTS
from ..runs.outputs import DAMAGED, aside, digest, put_aside, room_kept, shown_on
from ..runs.run import Run, Trained

__all__ = [
    "check_judgeable",
    "check_whole",
    "evaluate_run",
    "judge",
    "report_run",
    "set_aside",
    "standing",
    "write_page",
]

MOST_PARTICLES = 1_000_000  # more would take days, and their weights all memory


def evaluate_run(
    path: Path,
    split: str = "test",
    allow: Allowlist = PARTS_ONLY,
    data: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Judge a trained run, write ``evaluation.json``, the figures and the report; prints the table.

    Args:
        path: of the run's folder.
        split: ``"test"`` or ``"validation"``.
        allow: what its configuration may call.
        data: overrides of settings of its data, which may then be others than it was begun with.
        overwrite: replace a judgement of another split, of other data, or beside models that are lost.

    Raises:
        BlockingIOError: another process is at work on it.
        FileExistsError: it was judged on another split, on other data, or beside models that are not there any more.
        LeftOut: all is written but for what memory or a disk had no room for.
        ValueError: its data are others than it was begun with, and none were named.
    """
    run = Run(path, allow, data_settings(data))
    config = run.config()  # nothing is written, not even a lock, in a folder that cannot be judged
    run.check_trained()
    with run.held():
        run.sweep()
        trained = run.load(config=config)
        if not overwrite:
            _check_replaceable(run, judged_on({"split": split, "given": (trained.others or {}).get("given", {})}))
        judge(run, trained, run.history(), split)


def _check_replaceable(run: Run, wanted: str) -> None:
    """Raise FileExistsError where the run was judged on what is not wanted now, or beside what is lost."""
    if not run.has(EVALUATION):
        return
    try:
        record = run.read(EVALUATION, EvaluationRecord)
    except ValueError:  # damaged, and to be made anew
        return
    lost = sorted({*(record.get("weights") or ())} - {*run.weights()})
    if lost:
        raise FileExistsError(
            f"{run.path / EVALUATION} was made with {' and '.join(lost)}, which the folder lacks now; put back what "
            "was there, or give --overwrite to replace it by an evaluation without."
        )
    stored = judged_on(record.get("data") or {})
    if stored != wanted:
        raise FileExistsError(
            f"{run.path / EVALUATION} is of {stored}, and {wanted} was asked for; give --overwrite to replace it."
        )


def report_run(path: Path, allow: Allowlist = PARTS_ONLY) -> Path:
    """Write ``report.html`` again from what the run's folder holds."""
    run = Run(path, allow)
    config = run.config()
    if not run.has(EVALUATION):
        run.check_trained()
        raise FileNotFoundError(
            f"{run} holds no {EVALUATION}; make it first: {command('evaluate', path, *run.imports)}"
        )
    with run.held():  # so that the page is of the evaluation that is there when it is written
        record = run.read(EVALUATION, EvaluationRecord)
        run.check_weights(record.get("weights"))
        return write_page(run, config, record, run.history())


def standing(run: Run) -> EvaluationRecord | None:
    """The evaluation of the weights that are in a run's folder; None where there is none, or one of other weights.

    One that lacks what may be there when it is made again is none, but for one that was asked for by hand.
    """
    record = _of_these_weights(run)
    by_hand = record is not None and judged_on(record.get("data") or {}) != judged_on({})
    return record if by_hand or _is_whole(run, record) else None


def set_aside(run: Run) -> None:
    """Put an evaluation that will not be made again by itself aside, and say where it is.

    That is one that was asked for by hand, of other data or another split, or beside an untrained model that is lost.
    """
    if not run.has(EVALUATION):
        return
    try:
        record = run.read(EVALUATION, EvaluationRecord)
    except (OSError, ValueError):
        put_aside(run.path / EVALUATION, DAMAGED)
        return
    what = judged_on(record.get("data") or {})
    if UNTRAINED in (record.get("weights") or {}) and not run.has(UNTRAINED):
        put_aside(run.path / EVALUATION, f"was beside {UNTRAINED}, which is lost")
    elif what != judged_on({}):
        put_aside(run.path / EVALUATION, f"was of {what}")


def _of_these_weights(run: Run) -> EvaluationRecord | None:
    record = run.read(EVALUATION, EvaluationRecord) if run.has(EVALUATION) else None
    return None if record is None or run.other_weights(record.get("weights")) else record


def _is_whole(run: Run, record: EvaluationRecord | None) -> bool:
    """Whether there is an evaluation, and lacks nothing that may be there when it is made again."""
    return record is not None and not (record.get("transient") or _undrawn(record, _pictures(run, record)))


def _stands_whole(run: Run) -> bool:
    """Whether there is such an evaluation of the weights that are in a run's folder, asked for by hand or not."""
    with suppress(ValueError):  # it is damaged
        return _is_whole(run, _of_these_weights(run))
    return False


def check_whole(run: Run, record: EvaluationRecord, written: bool = True) -> None:
    """Raise LeftOut where an evaluation, ``written`` or not, lacks what may be there when it is made again."""
    names, failed, data = record.get("transient") or [], record.get("failed") or {}, record.get("data") or {}
    if not names:
        return
    cause = f"for a cause that may pass ({failed.get(names[0], '').rstrip('.')})"
    if not written:
        raise LeftOut(
            f"{run.path / EVALUATION} stays as it was, whole, since the new one lacks {', '.join(names)}, {cause}; the "
            "same command tries again."
        )
    split = ["--split", data["split"]] if data.get("split", "test") != "test" else []
    given = [
        override(name, value) if isinstance(value, str) else f"{name}={json.dumps(value)}"
        for name, value in (data.get("given") or {}).items()
    ]
    raise LeftOut(
        f"{run.path / EVALUATION} lacks {', '.join(names)}, {cause}; all else is there, and the same command tries "
        f"again, as does: {command('evaluate', run.path, *given, *split, *run.imports)}"
    )


def judge(run: Run, trained: Trained, history: Mapping[str, Any], split: str = "test") -> None:
    """What :func:`evaluate_run` does with a run that is loaded, and its training history."""
    config, weights = trained.config, {**run.weights(), WEIGHTS: trained.weights}
    rivals = {
        role: pyro_tvae.load(run.path / file, trained.device) if run.has(file) else None
        for role, file in (("untrained", UNTRAINED), ("plain_vae", PLAIN_VAE))
    }
    with room_kept(run.path / EVALUATION):
        result = evaluate(
            trained.model,
            trained.guide,
            trained.data,
            name=config.name,
            **rivals,
            split=split,
            num_particles=config.evaluation.num_particles,
            context=config.evaluation.context,
            seed=config.seed,
            progress=config.fit.progress,
        )
    if trained.others:
        result.record["data"] |= {"given": trained.others["given"], "splits": trained.others["splits"]}
        result.record["notes"].append(f"Judged on the {split} split{trained.aside}.")
    if trained.code:
        result.record["notes"].append(
            f"Judged by code of {', '.join(trained.code)} that was edited since the training."
        )
    if run.has(TRAINED) and not run.has(UNTRAINED):  # which every training leaves
        result.record["notes"].append(f"{UNTRAINED}, the model before training, is not there any more to set beside.")
    if run.weights() != weights:
        raise ValueError(f"weights in {run} were replaced while it was judged; give the command again.")
    result.record["weights"] = weights
    result.record["seconds"] = {"training": history.get("seconds"), **result.record["seconds"]}
    written = _replace(run, trained, result, history)
    for name, sentence in result.record["failed"].items():
        print(f"pyro-tvae: {name} is left out: {sentence}", file=sys.stderr, flush=True)
    page = write_page(run, config, finite(result.record), history) if written else None
    print_evaluation(result.record)
    if page is not None:
        print(f"report: {page}")
    check_whole(run, result.record, written)


def _replace(run: Run, trained: Trained, result: Evaluation, history: Mapping[str, Any]) -> bool:
    """Write an evaluation and its figures in the place of the former ones, which stay until all are made.

    Those stay, too, where they are whole and something of the new ones finds no room: False is returned.
    """
    record, attempts = result.record, Attempts()
    folder, page = run.path / FIGURES, run.path / REPORT
    with aside(folder) as place:
        pictures = draw(place, trained, result, history.get("rows"), attempts)

        def told() -> None:
            said = {name: sentence.replace(str(place), str(folder)) for name, sentence in attempts.failed.items()}
            record["failed"] |= said
            record["transient"] = sorted({*record["transient"]} | attempts.transient)

        def write(partial: Path) -> None:
            told()
            kept = [picture for picture in pictures if f"figure {picture.stem}" not in attempts.failed]
            record["figures"] = {picture.stem: digests[picture.stem] for picture in kept}
            partial.write_text(json.dumps(finite({**added, **record}), indent=1), encoding="utf-8")

        told()
        added = _added(run, record)
        digests = {picture.stem: digest(picture) for picture in pictures}
        if record["transient"] and _stands_whole(run):
            return False
        with shown_on(run.path / EVALUATION, page) as partial:
            write(partial)  # before anything is replaced, so that there is room for it
            page.unlink(missing_ok=True)  # while the pictures are others than the record names, the run has not ended
            for picture in pictures:
                attempts(f"figure {picture.stem}", functools.partial(_move, picture, folder), None)
            write(partial)
    return True


def _added(run: Run, record: EvaluationRecord) -> dict[str, Any]:
    """What a hand has added to the evaluation of these weights whose place another one takes."""
    with suppress(OSError, ValueError):  # none there, or none that can be read
        former = run.read(EVALUATION, dict[str, Any])
        if former.get("weights") == record["weights"]:
            return {name: value for name, value in former.items() if name not in EvaluationRecord.__annotations__}
    return {}


def _move(picture: Path, folder: Path) -> None:
    make_folder(folder)
    os.replace(picture, folder / picture.name)


def write_page(run: Run, config: DictConfig, record: EvaluationRecord, history: Mapping[str, Any]) -> Path:
    """Write ``report.html`` from the run's configuration, evaluation and training history, and its pictures."""
    text = OmegaConf.to_yaml(config, resolve=True)
    said = [f"{changed}: what is shown may not belong together."] if (changed := run.changed()) else []
    pictures = _pictures(run, record)
    if undrawn := _undrawn(record, pictures):
        said.append(
            f"{', '.join(undrawn)} in {run.path / FIGURES} {'is' if len(undrawn) == 1 else 'are'} not what the "
            "evaluation drew, and not shown; judge the run again: "
            f"{command('evaluate', run.path, *run.imports)}"
        )
    for sentence in said:
        print(f"pyro-tvae: {sentence}", file=sys.stderr, flush=True)
    shown: EvaluationRecord = {**record, "notes": [*(record.get("notes") or ()), *said]}
    return write_report(run.path, shown, pictures, text, history.get("rows"))


def _pictures(run: Run, record: EvaluationRecord) -> dict[str, Path]:
    """The pictures of an evaluation, by name."""
    # What an earlier evaluation drew is not this one's, nor what one drew that was killed before it wrote its record,
    # nor what somebody else put there. Older records do not say what they drew.
    failed, drawn = record.get("failed") or {}, record.get("figures")
    return {
        path.stem: path
        for path in (run.path / FIGURES).glob("*.png")
        if path.is_file()
        and f"figure {path.stem}" not in failed
        and (path.stem.startswith((*CAPTIONS,)) if drawn is None else drawn.get(path.stem) == digest(path))
    }


def _undrawn(record: EvaluationRecord, pictures: Mapping[str, Path]) -> list[str]:
    """What an evaluation drew, by name, that is not there as it was drawn."""
    return sorted({*(record.get("figures") or ())} - {*pictures})


def check_judgeable(config: DictConfig, parts: Parts) -> None:
    """Raise ConfigurationError where a run could be trained, and not be judged afterwards."""
    for name, dataset in parts.data.datasets.items():
        least = 2 if name == "test" else 1  # spreads over sequences are among what is measured
        if len(dataset) < least:
            raise ConfigurationError(
                f"the number of sequences in the {name} split is {len(dataset)}; expected at least {least}: give more "
                "items, or another share of them."
            )
    try:
        check_channels(config.evaluation.channels, parts.data.frame_shape[0])
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    context, n_frames = config.evaluation.context, parts.model.n_frames
    if context is not None and not (_whole(context, 1) and context < n_frames):
        raise ConfigurationError(
            f"evaluation.context is {context!r}; expected 1 to {n_frames - 1} of {n_frames} frames, so that some stay "
            "unseen, or null for half of them."
        )
    particles, baseline = config.evaluation.num_particles, config.baseline
    if not _whole(particles, 1) or particles > MOST_PARTICLES:
        raise ConfigurationError(
            f"evaluation.num_particles is {particles!r}; expected a whole number from 1 to {MOST_PARTICLES:,}."
        )
    if not isinstance(baseline.enabled, bool):
        raise ConfigurationError(f"baseline.enabled is {baseline.enabled!r}; expected true or false.")
    if baseline.enabled and (not _whole(baseline.max_epochs, -1) or baseline.max_epochs == 0):
        raise ConfigurationError(
            f"baseline.max_epochs is {baseline.max_epochs!r}; expected a whole number of at least 1, -1 for no limit "
            "by epochs, or baseline.enabled=false."
        )
    if baseline.enabled and baseline.max_epochs == config.fit.max_steps == -1:
        raise ConfigurationError(
            "baseline.max_epochs and fit.max_steps are -1, so that the plain VAE would train without end; limit one."
        )
    if baseline.enabled and not _whole(baseline.warmup_steps, 0):
        raise ConfigurationError(
            f"baseline.warmup_steps is {baseline.warmup_steps!r}; expected a whole number of at least 0."
        )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
