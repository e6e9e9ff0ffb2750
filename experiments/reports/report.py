"""The report: one self-contained page of a run, with the verdict first and everything needed to repeat it last.

All inputs are plain data, so that the page can be rebuilt from a run folder at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.attempts import Attempts
from ..evaluation.record import EvaluationRecord, ForwardRollRecord
from ..runs.files import write_text
from .pages import Caption, Picture, render, shown
from .tables import BLIND, MISSING, describe_data, filled, format_number, format_seconds, remarks, rows

if TYPE_CHECKING:
    from .figures import History

__all__ = ["write_report"]

FLOORS = {
    "model": "t of the last seen frame, rolled by the horizon and decoded",
    "repeat last frame": "the last seen frame, mixed with the mean frame as is best for every horizon",
    "mean frame": "the mean frame of the training set",
    "hold": "t of the last seen frame, decoded without a roll",
    "plain VAE, rolled": "the plain VAE's code of the last seen frame, rolled and decoded",
    "plain VAE, held": "the plain VAE's code of the last seen frame, decoded without a roll",
}


CAPTIONS = {
    "training_curves": Caption(
        "Training curves",
        "The ELBO should rise and level off, with validation close to training: a widening gap is overfitting. The "
        "ELBO is the reconstruction term minus the KL. A KL that falls to 0 means that the posterior has collapsed "
        "onto the prior and the code is empty.",
        "Three line plots over training steps, in nats per frame, training and validation: ELBO, reconstruction, KL.",
    ),
    "reconstructions": Caption(
        "Reconstructions",
        "Each lower row is decoded from the posterior of the row above. Shape and pose should match. Lower rows that "
        "all look alike, or like a blurred mean image, mean that the code carries nothing.",
        "Rows of test frames, each above its reconstruction.",
    ),
    "capsule_traversal": Caption(
        "Capsule traversal",
        "The third row is decoded from the first frame alone: its t, rolled by one position per frame. If the capsules "
        "are equivariant, it performs the transformation that the first row shows.",
        "For each sequence three rows of frames: true, reconstructed, and decoded by rolling the first frame's t.",
    ),
    "forward_roll_strip": Caption(
        "Forward roll, as pictures",
        "Left of the dashed line is what the model has seen. To the right of it, compare every prediction with the "
        "true frame above it, and see whether the motion goes on or merely stops.",
        "Seen frames on the left; on the right the unseen true frames above the predicted ones.",
    ),
    "forward_roll_film": Caption(
        "Film",
        "True frames, their reconstruction from all frames, and what is forecast: framed in orange are the frames that "
        "the model has not seen. Where the forecast is right, the third column moves as the first one does.",
        "An animation of sequences in rows: true, reconstructed and forecast frames side by side.",
    ),
    "forward_roll_curve": Caption(
        "Forward roll, as numbers",
        "The model is worth something as a predictor where its line lies above every floor. Below the mean frame, it "
        "does worse than a prediction that ignores the sequence.",
        "Line plot of log-likelihood in nats per unseen frame against horizon, for the model and the floors; the table "
        "above has the same numbers.",
    ),
    "capsule_stripes": Caption(
        "Capsule stripes",
        "Diagonal stripes: activity moves by one position per frame, a roll. Stripes in V alone come from the "
        "topography and not from learning; what counts is that T follows and still differs between inputs.",
        "Two heat maps of one capsule over one sequence, frame against position: T, and its local energy V.",
    ),
}


def write_report(
    run: str | Path,
    evaluation: EvaluationRecord,
    figures: Mapping[str, Picture],
    config_yaml: str,
    history: History | None = None,
) -> Path:
    """Write RUN/report.html: one page without scripts or outside resources, its pictures embedded.

    Args:
        run: the run's folder; it is made where it is missing.
        evaluation: the content of ``evaluation.json``.
        figures: pictures by name, each a matplotlib figure or the path of a PNG, JPEG or SVG file. Names that begin
            like a function of :mod:`.figures` (``reconstructions``, ``reconstructions_rotation``, …) get its caption.
        config_yaml: the run's configuration, shown as it is.
        history: training metrics as :func:`.figures.training_curves` takes them; drawn unless ``figures`` has them.
            The forward-roll curve is drawn from ``evaluation`` in the same way.

    Returns:
        The path of the page; it is written atomically, and takes the place of a former one.

    Raises:
        FileNotFoundError: a picture is not there.
        ValueError: a picture has another format, or the evaluation another schema; or no room for a figure.
    """
    figures = dict(figures)
    forward = evaluation.get("forward_roll") or {}
    attempts = Attempts()
    numbers = {"training_curves": history, "forward_roll_curve": forward if forward.get("log_likelihood") else None}
    for name, drawn_from in numbers.items():
        left_out = f"figure {name}" in (evaluation.get("failed") or {})
        if drawn_from and not left_out and not any(given.startswith(name) for given in figures):
            from . import figures as drawing  # matplotlib takes a second

            figure = attempts(f"figure {name}", partial(getattr(drawing, name), drawn_from), None)
            figures |= {name: figure} if figure is not None else {}
    for name in attempts.transient:  # no page is better than one that never gets its figure
        attempts.check(name)
    ranks = {kind: rank for rank, kind in enumerate((*CAPTIONS, ""))}
    pictures = [_picture(name, figures[name]) for name in sorted(figures, key=lambda name: (ranks[_kind(name)], name))]
    entries = rows(evaluation)
    page = render(
        "report.html",
        name=str(evaluation.get("name") or Path(run).name),
        data=describe_data(evaluation),
        verdict=[str(sentence) for sentence in evaluation.get("verdict") or ()],
        collapsed=bool(evaluation.get("collapsed")),
        rows=entries,
        columns=filled(entries),
        standard_errors=any("±" in row.trained for row in entries),
        blind=BLIND,
        notes=remarks(evaluation, attempts.failed),
        forward=_forward(forward),
        forward_pictures=[p for p in pictures if p["name"].startswith("forward_roll")],
        pictures=[p for p in pictures if not p["name"].startswith("forward_roll")],
        facts=_facts(evaluation),
        config_yaml=config_yaml,
    )
    return write_text(Path(run) / "report.html", page)


def _forward(forward: ForwardRollRecord) -> dict[str, Any] | None:
    """The forward-roll numbers as strings: one table per score, one row per prediction, one column per horizon."""
    scores = {
        "Log-likelihood, nats per unseen frame (higher is better)": forward.get("log_likelihood"),
        "Pixel error (lower is better)": forward.get("pixel_error"),
    }
    tables: list[dict[str, Any]] = []
    for caption, forecasts in scores.items():
        series = {str(name): [*(values or ())] for name, values in (forecasts or {}).items()}
        horizons = max((len(values) for values in series.values()), default=0)
        if horizons == 0:
            continue
        lines = []
        for name, values in series.items():
            values += [None] * (horizons - len(values))
            numbers = [format_number(value) for value in values]
            whole = MISSING not in numbers
            mean = format_number(sum(map(float, values)) / horizons) if whole else MISSING
            lines.append({"name": name, "mean": mean, "numbers": numbers})
        tables.append({"caption": caption, "horizons": range(1, horizons + 1), "lines": lines})
    if not tables:
        return None
    names = dict.fromkeys(line["name"] for table in tables for line in table["lines"])
    meanings = [(name, FLOORS[name]) for name in names if name in FLOORS]
    return {"context": forward.get("context"), "tables": tables, "meanings": meanings}


def _facts(evaluation: EvaluationRecord) -> list[tuple[str, str]]:
    """What is needed to repeat the run, as (name, value)."""
    facts = [("Data", describe_data(evaluation))]
    if evaluation.get("parameters") is not None:
        facts.append(("Parameters", f"{int(evaluation['parameters']):,}"))
    if evaluation.get("seed") is not None:
        facts.append(("Seed", str(evaluation["seed"])))
    seconds = evaluation.get("seconds") or {}
    facts += [(f"Time, {name}", format_seconds(value)) for name, value in seconds.items()]
    facts.append(("Hardware", str(evaluation.get("hardware") or "")))
    versions = evaluation.get("versions") or {}
    facts.append(("Versions", ", ".join(f"{package} {version}" for package, version in versions.items())))
    return [(name, value) for name, value in facts if value]


def _kind(name: str) -> str:
    """The figure whose caption fits a picture; empty if none does."""
    return next((key for key in CAPTIONS if name == key or name.startswith((f"{key}_", f"{key}-"))), "")


def _picture(name: str, source: Picture) -> dict[str, str]:
    kind = _kind(name)
    words = name.replace("_", " ").replace("-", " ").strip()
    caption, detail = CAPTIONS.get(kind, Caption(words[:1].upper() + words[1:], "", words)), words[len(kind) :].strip()
    return shown(name, source, caption._replace(title=f"{caption.title}: {detail}") if kind and detail else caption)
