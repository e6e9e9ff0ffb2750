"""The command ``reproduce``: tables and figures of the paper, and parts against each other, row by row, seed by seed.

Every cell is a run like any other, in a folder of its own. What is there is not computed again, so that a study goes on
where it was interrupted, and a later one adds seeds; a run that two studies of the paper show is made once.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import ConfigurationError, compose, fitting_overrides
from .folders import CONFIG, EVALUATION, SELECTIVITY, finite, history_of, trained, write_text
from .studies import STUDIES, Study, home
from .tables import MISSING, format_number

__all__ = ["STUDIES", "Study", "aggregate", "markdown", "reproduce", "reproduce_all"]

ANNEALED = "annealed.json"
Values = dict[str, float | None]


def reproduce(
    name: str,
    *,
    budget: str = "minutes",
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    output: Path = Path("runs/reproduce"),
    progress: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Run what is missing of a study, and write ``table.md``, ``table.csv`` and ``table.json`` into its folder.

    Args:
        name: of the study, one of :data:`STUDIES`.
        budget: ``paper``, ``hour`` or ``minutes``, for the paper's tables and figures.
        seeds: of the runs; each row has one run per seed, and figures are drawn for the first of them.
        overrides: further Hydra overrides, such as ``data.source.root=DIR``, of every row that has such a setting.
        output: where studies are kept, a folder each.
        progress: takes a line before every cell.

    Returns:
        The content of ``table.json``: ``rows``, one mapping per row with ``name``, ``seeds`` and ``values``, a list of
        one number per seed for each measure; for a figure also ``figures``, the names of its PNG files in the folder.

    Raises:
        ValueError: there is no such study or budget, or no seed; or an override is wrong.
    """
    if name not in STUDIES:
        raise ValueError(f"reproduce: name={name}; expected one of {', '.join(STUDIES)}.")
    [record] = reproduce_all((name,), budget=budget, seeds=seeds, overrides=overrides, output=output, progress=progress)
    return record


def reproduce_all(
    names: Sequence[str],
    *,
    budget: str = "minutes",
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    output: Path = Path("runs/reproduce"),
    progress: Callable[[str], object] = print,
) -> Iterator[dict[str, Any]]:
    """Reproduce several studies, one record after the other; arguments as for :func:`reproduce`.

    A mistake in any row of any of them shows before the first hour is spent.
    """
    if not seeds:
        raise ValueError("reproduce: seeds is empty; expected a seed or more, such as 0.")
    recipes = {
        (name, row): [*own, *STUDIES[name].shared, *([f"budget={budget}"] if STUDIES[name].budgets else [])]
        for name in names
        for row, own in STUDIES[name].rows.items()
    }
    configurations = _composed(recipes, overrides)
    for name in names:
        study, folder = STUDIES[name], _folder(output, name, budget)
        homes = {row: _folder(output, home(name, row), budget) / row.replace(" ", "_") for row in study.rows}
        cells = [(row, seed) for row in study.rows for seed in seeds]
        record: dict[str, Any] = {}
        for number, (row, seed) in enumerate(cells, start=1):
            run = homes[row] / f"seed{seed}"
            said = f"{name} {number}/{len(cells)}: {row}, seed {seed}"
            if not (run / EVALUATION).is_file():
                progress(f"{said} -> {run}")
                _run(_seeded(configurations[name, row], seed), run)
            if study.annealing and not (run / ANNEALED).is_file():
                progress(f"{said}, annealing")
                write_text(run / ANNEALED, json.dumps(finite(_anneal(run, **study.annealing))))
            if study.drawing:
                drawn = seed == seeds[0]
                _draw(study, run, folder / f"{row.replace(' ', '_')}-seed{seed}" if drawn else None, said, progress)
                record = _write_figure(folder, study, budget, overrides, homes)
            else:
                record = _write(folder, study, budget, overrides)
        yield record


def _folder(output: Path, name: str, budget: str) -> Path:
    return output / (f"{name}-{budget}" if STUDIES[name].budgets else name)


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
        from .unit_map import organisation

        progress(f"{said}, organisation of the map")
        write_text(run / SELECTIVITY, json.dumps(finite(organisation(run)), indent=1))
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

    from .runs import train_run

    if (run / CONFIG).is_file():
        with open_dict(config):
            config.resume = str(run)
    train_run(config, run)


def _anneal(run: Path, sequences: int, num_chains: int, num_temperatures: int) -> dict[str, float | None]:
    """Annealed importance sampling for a run whose guide allows it; None elsewhere."""
    import torch

    from pyro_tvae.inference import annealed_importance, log_likelihood

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
                model, guide, x, num_chains=num_chains, num_temperatures=num_temperatures, seed=0, progress=True
            )
        found["ais"] = annealed.per_frame
    best = max(value for value in (found["iwae"], found["ais"]) if value is not None)
    assert found["elbo"] is not None
    found["gap"] = best - found["elbo"]
    return found


def _write(folder: Path, study: Study, budget: str, overrides: Sequence[str]) -> dict[str, Any]:
    rows = [_row(folder / row.replace(" ", "_"), row) for row in study.rows]
    record = {
        "schema": 1,
        "kind": "reproduction",
        "title": study.title,
        "budget": budget if study.budgets else None,
        "overrides": list(overrides),
        "rows": [row for row in rows if row["seeds"]],
    }
    write_text(folder / "table.json", json.dumps(finite(record), indent=1))
    write_text(folder / "table.md", markdown(record))
    write_text(folder / "table.csv", _csv(record))
    return record


def _write_figure(
    folder: Path, study: Study, budget: str, overrides: Sequence[str], homes: Mapping[str, Path]
) -> dict[str, Any]:
    """The record of a figure: as a table's, with the names of the pictures beside it."""
    rows = [_row(homes[row], row) for row in study.rows]
    record: dict[str, Any] = {
        "schema": 1,
        "kind": "reproduction",
        "title": study.title,
        "budget": budget if study.budgets else None,
        "overrides": list(overrides),
        "rows": [row for row in rows if row["seeds"]],
        "figures": sorted(path.name for path in folder.glob("*.png")),
    }
    pictures = "".join(f"\n![{name.removesuffix('.png')}]({name})\n" for name in record["figures"])
    write_text(folder / "table.json", json.dumps(finite(record), indent=1))
    write_text(folder / "table.md", markdown(record) + pictures)
    write_text(folder / "table.csv", _csv(record))
    return record


def _row(folder: Path, name: str) -> dict[str, Any]:
    """All seeds that a row has by now, asked for or not."""
    runs = sorted((path.parent for path in folder.glob(f"seed*/{EVALUATION}")), key=lambda run: int(run.name[4:]))
    values = [_values(run) for run in runs]
    names = list(dict.fromkeys(key for value in values for key in value))
    return {
        "name": name,
        "seeds": [int(run.name[4:]) for run in runs],
        "values": {key: [value.get(key) for value in values] for key in names},
        "hardware": sorted({json.loads((run / EVALUATION).read_text())["hardware"] for run in runs}),
    }


def _values(run: Path) -> Values:
    """One run's measures by name, flat; nats per frame where not said otherwise."""
    record = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    found: Values = {}
    for key, value in record["measures"]["trained"].items():
        found |= {f"{key}/{part}": item for part, item in value.items()} if isinstance(value, dict) else {key: value}
    forecast = record.get("forward_roll")
    if forecast:
        means = {
            key: statistics.fmean(value[: (len(value) + 1) // 2]) for key, value in forecast["log_likelihood"].items()
        }
        found["forward_roll"] = means.pop("model")
        found["forward_roll_floor"] = max(means.values())
    untrained = record["measures"].get("untrained")
    if untrained:
        found["e_eq_untrained"] = untrained["e_eq"]
    found["collapsed"] = float(record["collapsed"])
    history = history_of(run)
    steps = max((row["step"] for row in history.get("rows", ())), default=0)
    if steps:
        found["seconds"] = history["seconds"]
        found["seconds_per_step"] = history["seconds"] / steps
    for file, prefix in ((ANNEALED, "few"), (SELECTIVITY, "map")):
        if (run / file).is_file():
            found |= {f"{prefix}/{key}": value for key, value in json.loads((run / file).read_text()).items()}
    return found


COLUMNS = {
    "iwae": "IWAE ↑",
    "elbo": "ELBO ↑",
    "kl": "KL",
    "frame_unnormalised": "frame_unnormalised",
    "few/elbo": "ELBO, some sequences ↑",
    "few/iwae": "IWAE, K = 1,000, the same ↑",
    "few/ais": "AIS, the same ↑",
    "few/gap": "best of these − ELBO ↓",
    "explained": "explained ↑",
    "e_eq": "E_eq ↓",
    "e_eq_untrained": "E_eq, untrained",
    "forward_roll": "forward_roll ↑",
    "forward_roll_floor": "its best floor",
    "probe": "class probe ↑",
    "map/selective": "units with d′ ≥ 0.85 ↑",
    "map/selective_untrained": "such units, untrained",
    "map/classes": "classes they prefer",
    "map/selectivity": "neighbours' d′: correlation ↑",
    "map/selectivity_p": "neighbours' d′: p",
    "map/selectivity_untrained": "neighbours' d′: untrained",
    "map/slant": "neighbours' slant: correlation ↑",
    "map/slant_p": "neighbours' slant: p",
    "map/slant_untrained": "neighbours' slant: untrained",
    "map/stroke_width": "neighbours' stroke width: correlation ↑",
    "map/stroke_width_p": "neighbours' stroke width: p",
    "map/stroke_width_untrained": "neighbours' stroke width: untrained",
    "collapsed": "collapsed",
    "seconds": "training, s",
    "seconds_per_step": "s / step",
}
PREFIXES = {
    "roll": "roll correlation",
    "cap_corr": "CapCorr",
    "commutation": "commutation ↓",
    "pose": "pose probe",
    "active": "active latents",
}


def aggregate(values: Iterable[float | None]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds of the numbers that are there; nan and None where there are too few.

    Example:
        >>> aggregate([1.0, 3.0, None])
        (2.0, 1.4142135623730951)
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known else math.nan, statistics.stdev(known) if len(known) > 1 else None


def _columns(record: Mapping[str, Any]) -> dict[str, str]:
    present = list(dict.fromkeys(key for row in record["rows"] for key in row["values"]))
    parts = {
        key: f"{PREFIXES[key.split('/')[0]]}, {key.split('/')[1]}"
        for key in present
        if "/" in key and key.split("/")[0] in PREFIXES
    }
    return {key: label for key, label in COLUMNS.items() if key in present} | parts


def markdown(record: Mapping[str, Any]) -> str:
    """A record as a Markdown table, measures down and the study's rows across: mean ± standard deviation over seeds."""
    rows = record["rows"]
    lines = [f"### {record['title']}", ""]
    lines += ["| | " + " | ".join(row["name"] for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    lines += ["| seeds | " + " | ".join(", ".join(map(str, row["seeds"])) for row in rows) + " |"]
    for key, label in _columns(record).items():
        cells = [_cell(row["values"].get(key, ())) for row in rows]
        if any(cell != MISSING for cell in cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "Nats per frame where a measure is in nats; ± is the standard deviation over seeds."]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float | None]) -> str:
    mean, spread = aggregate(values)
    return format_number(mean, spread)


def _csv(record: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "seed", "measure", "value"])
    for row in record["rows"]:
        for key, values in row["values"].items():
            for seed, value in zip(row["seeds"], values, strict=True):
                writer.writerow([row["name"], seed, key, "" if value is None else repr(value)])
    return text.getvalue()
