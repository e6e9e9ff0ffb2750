"""The command ``reproduce``: tables, figures and learning curves, row by row and seed by seed.

Every cell is a run like any other, in a folder of its own. What is there is not computed again, so that a study goes on
where it was interrupted, and a later one adds seeds; a run that two studies of the paper show is made once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pyro_tvae import LaplaceGuide
from pyro_tvae.files import check_stays, make_folder, staying
from pyro_tvae.inference import Annealing, annealed_importance, log_likelihood

from ..commands.train import resume_run, train_run
from ..config.allowlist import Allowlist
from ..config.composition import FILES, compose, fitting_overrides, located, parsed
from ..config.errors import failing
from ..config.processes import place_among
from ..datasets.splits import given_by
from ..runs.files import finite, read_record, write_text
from ..runs.names import CONFIG, EVALUATION, SELECTIVITY
from ..runs.outputs import digest, put_aside, room_kept
from ..runs.run import Run
from .cells import ANNEALED, REFITTED, Refitted, add, added, last_weights, weights_of
from .learning_curves import ended, follow
from .ledger import Ledger
from .paper_figures import draw_run
from .records import Record
from .refitting import refit
from .registry import STUDIES, Study
from .settings import portable
from .unit_map import organization

__all__ = ["STUDIES", "CellsFailed", "Study", "reproduce", "reproduce_all"]

DRAWS = 1000  # of the bounds of a run's first test sequences
DRAWN = "drawn.json"  # in a study's folder: of which evaluation, by its digest, the pictures of a run are
# What no override sets, though runs have it, and what to do.
OF_STUDIES = {
    "seed": "give --seeds",
    "budget": "give --budget",
    "experiment": "leave it out: every row has its own",
    "resume": "leave it out: a study goes on where it stopped",
}


class CellsFailed(Exception):
    """Runs of studies failed, each with its sentence; the others were made."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        number = f"{len(failures)} runs" if len(failures) > 1 else "1 run"
        lines = [f"{number} failed, which the same command tries again; all others are done"]
        super().__init__("\n  ".join([*lines, *(f"{name}: {said}" for name, said in failures.items())]))


def reproduce(name: str, **options: Any) -> Record:
    """Run what is missing of one study; the options and errors are those of :func:`reproduce_all`.

    Returns:
        The content of ``table.json``, or of ``record.json`` for learning curves; for a figure it also names
        ``figures``, PNG files in the folder.
    """
    if name not in STUDIES:
        raise ValueError(f"reproduce: name={name!r}; expected one of {', '.join(STUDIES)}.")
    [record] = reproduce_all((name,), **options)
    return record


def reproduce_all(
    names: Sequence[str],
    *,
    budget: str = "minutes",
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    output: Path = Path("runs/reproduce"),
    records: Path | None = None,
    keep: bool = False,
    progress: Callable[[str], object] = print,
) -> Iterator[Record]:
    """Run what is missing of several studies, one record after the other, and write each into its folder.

    A mistake in any row of any of them shows before the first hour is spent.

    Args:
        names: of the studies, of :data:`STUDIES`.
        budget: ``paper``, ``hour`` or ``minutes``, for the paper's tables and figures.
        seeds: of the runs; each row has one run per seed, and figures are drawn for the first of them.
        overrides: further Hydra overrides, such as ``data.source.root=DIR``, of every row that has such a setting.
        output: where studies are kept, a folder each, with ``table.md``, ``table.csv`` and ``table.json``, or for
            learning curves ``record.json``.
        records: a folder of records (see :mod:`.records`); seeds that a study's record there has are not run again.
        keep: also write each study's record, and the pictures in its folder, into that folder, after every run.
        progress: takes a line before every cell.

    Raises:
        CellsFailed: runs failed, or are damaged; all others were made, and all records are there.
        ValueError: there is no such budget, or no seed; an override is wrong; or runs that are there already were made
            from other settings.
    """
    if not seeds:
        raise ValueError("reproduce: seeds is empty; expected at least one seed, such as 0.")
    recipes = {
        (name, row): [*own, *STUDIES[name].shared, *([f"budget={budget}"] if STUDIES[name].budgets else [])]
        for name in names
        for row, own in STUDIES[name].rows.items()
    }
    configurations = _composed(recipes, overrides)
    without = _composed(recipes, ()) if portable(overrides) else configurations
    typed, failures = {str(one.key_or_group) for one in parsed(overrides)}, dict[str, str]()
    if own := sorted(typed & OF_STUDIES.keys()):
        raise ValueError(f"reproduce: {own[0]} is set by the study itself; {OF_STUDIES[own[0]]}.")
    for name in names:
        study, used = STUDIES[name], budget if STUDIES[name].budgets else None
        composed = {row: configurations[name, row] for row in study.rows}
        for config in composed.values():
            place_among(config)
        plain = {row: without[name, row] for row in study.rows}
        ledger = Ledger(name, used, overrides, composed, output, records, keep, plain)
        cells = [(row, seed) for row in study.rows for seed in seeds]
        if told := ledger.said(cells):
            progress(told)
        make_folder(output)
        with staying(output):
            for number, (row, seed) in enumerate(cells, start=1):
                if (row, seed) in ledger:
                    continue
                said = f"{name} {number}/{len(cells)}: {row}, seed {seed}"
                config = composed[row].copy()
                config.seed = seed
                places = [one for one in FILES if one in typed and OmegaConf.select(config, one) is not None]
                stem = ledger.picture(row, seed) if seed == seeds[0] else None
                with failing(partial(failures.__setitem__, f"{name}: {row}, seed {seed}")):
                    _cell(ledger, row, config, places, stem, said, progress)
                check_stays(output)
                ledger.write()
            record = ledger.write()
            for told in (*ledger.told, *ledger.other_codes()):
                progress(told)
            for (row, seed), why in ledger.unreadable.items():
                failures.setdefault(f"{name}: {row}, seed {seed}", why)
        yield record
    if failures:
        raise CellsFailed(failures)


def _cell(
    ledger: Ledger,
    row: str,
    config: DictConfig,
    places: Sequence[str],
    stem: Path | None,
    said: str,
    progress: Callable[[str], object],
) -> None:
    """Make what a run of a study lacks: its training, judgement, and what the study asks for beside it.

    Args:
        ledger: of the study.
        row: of the run.
        config: of the run.
        places: the settings that were given of where its files lie.
        stem: of its pictures; None draws none.
        said: begins the lines that ``progress`` takes.
    """
    study, run = ledger.study, ledger.run(row, config.seed)
    if not (run.ended(config) if study.labels is None else run.has(ledger.needed[0])):
        progress(f"{said} -> {run}")
        ledger.check_data(row, config)
        if study.labels is None:
            _run(config, run.path, run.allow, places)
        else:
            follow(config, run.path)
    elif places:
        here = located(config)
        if {*places} & {*run.places(here)}:
            run.data(here)  # a file of that name in another folder may be another one
            run.check_matrix(here)
    if study.annealing and not added(run, ANNEALED):
        if last_weights(run) is None:
            progress(f"{said}: its weights are gone, and what annealing would find of them is left out")
        else:
            progress(f"{said}, annealing")
            start = time.monotonic()
            with room_kept(run.path / ANNEALED):
                annealed = _anneal(run, None if study.labels is None else config, **study.annealing)
            add(run, ANNEALED, {**annealed, "seconds": time.monotonic() - start})
    if study.reference and study.annealing:
        reference = ledger.run(study.reference, config.seed)
        weights, done = weights_of(reference), run.has(REFITTED)
        of = run.read(REFITTED, Refitted).get("of") if done else None  # which older files do not say
        if not done or (None not in (of, weights) and of != weights):  # the reference was run anew
            progress(f"{said}, its guide fitted to the model of {study.reference}")
            with room_kept(run.path / REFITTED):
                values = finite(refit(run, reference, study.annealing["sequences"]))
            run.write(REFITTED, json.dumps({**values, "of": weights}))
    if study.drawing:
        _draw(study, run, stem, said, progress)


def _composed(
    recipes: Mapping[tuple[str, str], Sequence[str]], overrides: Sequence[str]
) -> dict[tuple[str, str], DictConfig]:
    """Every row's configuration; an override applies to the rows that have its setting, and one of them has to."""
    try:
        fitting = {row: fitting_overrides(recipe, overrides) for row, recipe in recipes.items()} if overrides else {}
        unknown = [text for text in overrides if not any(text in fits for fits in fitting.values())]
        if unknown:  # composed all the same, for the sentence that names what was meant
            compose([*next(iter(recipes.values())), *unknown])
            raise ValueError(f"{unknown[0]} sets nothing in any of these runs; leave it out.")
        return {row: compose([*recipe, *fitting.get(row, ())]) for row, recipe in recipes.items()}
    except ValueError as error:
        raise ValueError(f"reproduce: {error}") from None


def _draw(study: Study, run: Run, stem: Path | None, said: str, progress: Callable[[str], object]) -> None:
    """What a figure needs beside the run: the numbers of a map, and with a stem the pictures; unless they are there."""
    assert study.drawing is not None
    if study.drawing == "map" and not added(run, SELECTIVITY):
        progress(f"{said}, organisation of the map")
        add(run, SELECTIVITY, {**organization(run)})
    if stem is None:
        return
    pictures = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".pdf")]
    # Not by the time of the files, which clocks and copies change.
    judged, file = digest(run.path / EVALUATION), stem.with_name(DRAWN)
    drawn = read_record(file, dict[str, str]) if file.is_file() else {}
    if drawn.get(stem.name) != judged or not all(picture.is_file() for picture in pictures):
        if stem.name not in drawn:
            for picture in filter(Path.exists, pictures):
                put_aside(picture, "was not drawn by this study")
            write_text(file, json.dumps({**drawn, stem.name: ""}, indent=1))  # from here on, though this be killed
        progress(f"{said}, drawing -> {pictures[0]}")
        draw_run(study.drawing, run, f"{study.title}; {stem.name}", pictures)
        write_text(file, json.dumps({**drawn, stem.name: judged}, indent=1))


def _run(config: DictConfig, folder: Path, allow: Allowlist, places: Sequence[str]) -> None:
    """Train and evaluate, or go on where an earlier attempt stopped, its files where these settings say."""
    if (folder / CONFIG).is_file():
        resume_run(folder, {name: OmegaConf.select(config, name) for name in places}, allow)
    else:
        train_run(config, folder, allow)


def _anneal(
    run: Run, config: DictConfig | None, sequences: int, num_chains: int, num_temperatures: int
) -> dict[str, float | None]:
    """Bounds of a run's first test sequences: from its guide, from the Laplace approximation, and by annealing.

    Annealing begins at the Laplace approximation, or where the prior has none at a mean-field guide; None elsewhere,
    and where nothing couples frames: an average over each frame's own draws is the tighter bound there.

    Args:
        run: any, or one of learning curves, with its configuration.
        config: None for any other.
        sequences, num_chains, num_temperatures: see :class:`.Study`.
    """
    trained = run.load() if config is None else ended(run, config)
    model, guide = trained.model, trained.guide
    batch = next(trained.data.batches("test", trained.device, batch_size=sequences))
    x, given = batch["x"], given_by(batch, model, guide)
    num_particles, frame_particles = (DRAWS, 1) if model.energies else (1, DRAWS)
    draws = {"num_particles": num_particles, "frame_particles": frame_particles, "seed": 0, "progress": True, **given}
    bound = log_likelihood(model, guide, x, **draws)
    elbo = float(bound.elbo.mean()) / bound.n_frames
    found: dict[str, float | None] = {"iwae": bound.per_frame, "laplace": None, "ais": None}
    start = guide if guide.mean_field else None
    with suppress(ValueError):  # of a prior that couples z, random weights, or curvatures that are no numbers
        laplace = LaplaceGuide(model, guide)
        found["laplace"] = log_likelihood(model, laplace, x, **draws).per_frame
        start = laplace
    if start is not None and model.energies:
        annealing = Annealing(num_chains, num_temperatures)
        annealed = annealed_importance(model, start, x, **given, annealing=annealing, seed=0, progress=True)
        found["ais"] = annealed.per_frame
    best = max(value for value in found.values() if value is not None)
    return {"elbo": elbo, **found, "gap": best - elbo}
