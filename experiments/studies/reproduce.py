"""The command ``reproduce``: tables and figures of the paper, and parts against each other, row by row, seed by seed.

Every cell is a run like any other, in a folder of its own. What is there is not computed again, so that a study goes on
where it was interrupted, and a later one adds seeds; a run that two studies of the paper show is made once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..config.composition import compose, fitting_overrides
from ..config.errors import ConfigurationError
from ..runs.folder import CONFIG, EVALUATION, SELECTIVITY, finite, read_record, trained, write_text
from .ledger import Ledger
from .records import ANNEALED, REFITTED, stem_of
from .registry import STUDIES, Study, home

__all__ = ["STUDIES", "Study", "reproduce", "reproduce_all"]


def reproduce(name: str, **options: Any) -> dict[str, Any]:
    """Run what is missing of one study; the options and errors are those of :func:`reproduce_all`.

    Returns:
        The content of ``table.json``: ``rows``, one mapping per row with ``name``, ``seeds`` and ``values``, a list of
        one number per seed for each measure; for a figure also ``figures``, the names of its PNG files in the folder.
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
) -> Iterator[dict[str, Any]]:
    """Run what is missing of several studies, one record after the other, and write each into its folder.

    A mistake in any row of any of them shows before the first hour is spent.

    Args:
        names: of the studies, of :data:`STUDIES`.
        budget: ``paper``, ``hour`` or ``minutes``, for the paper's tables and figures.
        seeds: of the runs; each row has one run per seed, and figures are drawn for the first of them.
        overrides: further Hydra overrides, such as ``data.source.root=DIR``, of every row that has such a setting.
        output: where studies are kept, a folder each, with ``table.md``, ``table.csv`` and ``table.json``.
        records: a folder of records (see :mod:`.records`); seeds that a study's record there has are not run again.
        keep: also write each study's record, and the pictures in its folder, into that folder, after every run.
        progress: takes a line before every cell.

    Raises:
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
    for name in names:
        study, used = STUDIES[name], budget if STUDIES[name].budgets else None
        folder = output / stem_of(name, used)
        homes = {row: output / stem_of(home(name, row), used) / row.replace(" ", "_") for row in study.rows}
        ledger = Ledger(
            name,
            study.title,
            used,
            overrides,
            configurations={row: configurations[name, row] for row in study.rows},
            homes=homes,
            folder=folder,
            records=records,
            keep=keep,
            complete=partial(_complete, study),
        )
        cells = [(row, seed) for row in study.rows for seed in seeds]
        if ledger.said(cells):
            progress(ledger.said(cells))
        for number, (row, seed) in enumerate(cells, start=1):
            if (row, seed) in ledger:
                continue
            run, said = homes[row] / f"seed{seed}", f"{name} {number}/{len(cells)}: {row}, seed {seed}"
            if not (run / EVALUATION).is_file():
                progress(f"{said} -> {run}")
                _run(_seeded(configurations[name, row], seed), run)
            if study.annealing and not (run / ANNEALED).is_file():
                progress(f"{said}, annealing")
                start = time.monotonic()
                annealed = _anneal(run, **study.annealing)
                write_text(run / ANNEALED, json.dumps(finite({**annealed, "seconds": time.monotonic() - start})))
            if study.reference and not (run / REFITTED).is_file():
                progress(f"{said}, its guide fitted to the model of {study.reference}")
                write_text(run / REFITTED, json.dumps(finite(_refit(run, homes[study.reference] / run.name, study))))
            if study.drawing:
                stem = folder / f"{row.replace(' ', '_')}-seed{seed}" if seed == seeds[0] else None
                _draw(study, run, stem, said, progress)
            ledger.write(_pictures(study, folder))
        yield ledger.write(_pictures(study, folder))


def _complete(study: Study, run: Path) -> bool:
    """Whether a run that was evaluated also has what the study needs beside that."""
    needed = {ANNEALED: study.annealing, REFITTED: study.reference, SELECTIVITY: study.drawing == "map"}
    return all((run / name).is_file() for name, wanted in needed.items() if wanted)


def _pictures(study: Study, folder: Path) -> dict[str, list[str]]:
    return {"figures": sorted(path.name for path in folder.glob("*.png"))} if study.drawing else {}


def _composed(recipes: Mapping[tuple[str, str], Sequence[str]], overrides: Sequence[str]) -> dict[tuple[str, str], Any]:
    """Every row's configuration; an override applies to the rows that have its setting, and one of them has to."""
    try:
        fitting = {row: fitting_overrides(recipe, overrides) for row, recipe in recipes.items()} if overrides else {}
        unknown = [text for text in overrides if not any(text in fits for fits in fitting.values())]
        if unknown:  # composed all the same, for the sentence that names what was meant
            compose([*next(iter(recipes.values())), *unknown])
        return {row: compose([*recipe, *fitting.get(row, ())]) for row, recipe in recipes.items()}
    except ConfigurationError as error:
        raise ValueError(f"reproduce: {error}") from None


def _seeded(config: Any, seed: int) -> Any:
    config = config.copy()
    config.seed = seed
    return config


def _draw(study: Study, run: Path, stem: Path | None, said: str, progress: Callable[[str], object]) -> None:
    """What a figure needs beside the run: the numbers of a map, and with a stem the pictures; unless they are there."""
    from .paper_figures import draw_run

    assert study.drawing is not None
    if study.drawing == "map" and not (run / SELECTIVITY).is_file():
        from .unit_map import organization

        progress(f"{said}, organisation of the map")
        write_text(run / SELECTIVITY, json.dumps(finite(organization(run)), indent=1))
    if stem is None:
        return
    pictures = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".pdf")]
    judged = (run / EVALUATION).stat().st_mtime
    if not all(picture.is_file() and picture.stat().st_mtime >= judged for picture in pictures):
        progress(f"{said}, drawing -> {pictures[0]}")
        draw_run(study.drawing, run, f"{study.title}; {stem.name}", stem)


def _run(config: Any, run: Path) -> None:
    """Train and evaluate, or go on where an earlier attempt stopped."""
    from omegaconf import open_dict

    from ..commands.train import train_run

    if (run / CONFIG).is_file():
        with open_dict(config):
            config.resume = str(run)
    train_run(config, run)


def _anneal(run: Path, sequences: int, num_chains: int, num_temperatures: int) -> dict[str, float | None]:
    """Annealed importance sampling for a run whose guide allows it; None elsewhere."""
    import torch

    from pyro_tvae.inference import Annealing, annealed_importance, log_likelihood

    loaded = trained(run)
    model, guide = loaded.model, loaded.guide
    x = next(loaded.data.batches("test", loaded.device, batch_size=sequences))["x"]
    bound = log_likelihood(model, guide, x, 1000, seed=0)
    found: dict[str, float | None] = {
        "elbo": float(bound.elbo.mean()) / model.n_frames,
        "iwae": bound.per_frame,
        "ais": None,
    }
    if guide.mean_field:
        with torch.enable_grad():
            annealed = annealed_importance(
                model, guide, x, annealing=Annealing(num_chains, num_temperatures), seed=0, progress=True
            )
        found["ais"] = annealed.per_frame
    best = max(value for value in (found["iwae"], found["ais"]) if value is not None)
    assert found["elbo"] is not None
    found["gap"] = best - found["elbo"]
    return found


def _refit(run: Path, reference: Path, study: Study) -> dict[str, float | None]:
    """What a guide leaves of the gap between its ELBO and log p(x) of the reference's model, as annealing finds it."""
    from .refitting import refit

    assert study.annealing is not None
    known = read_record(reference / ANNEALED)
    found = refit(run, reference, sequences=study.annealing["sequences"])
    best = max(value for value in (known["ais"], known["iwae"], found["iwae"]) if value is not None)
    return {**found, "best": best, "gap": best - found["elbo"]}
