"""Summary: RESULTS.md, generated from kept records, so that nothing stands there that was not run.

Claims are judged by rules and never by hand: :mod:`.verdicts` says what decides. Collapsed models are named, and their
measures of equivariance do not count.

A folder of records holds ``<study>-<budget>.json`` or ``<study>.json``, a record each (see :mod:`.records`); pictures,
``<record>.png`` and ``<record>-<anything>.png``; ``notes/<record>.md`` or ``notes/<study>.md``, in words what no record
can hold; and ``robustness.md``, if there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from ..evaluation.measures import COLLAPSED
from ..interruption import command
from ..reports.style import save
from ..reports.tables import format_seconds
from ..runs.files import check_inside, write_text
from ..runs.outputs import put_aside
from .comparison import collapsed_seeds, ends, in_code, in_markdown, table
from .curves import forecast_curves, recipe_curves
from .kept import read_kept
from .own_claims import catching_up, guide_claims, prior_claims, rankings, recipe_claims
from .paper_claims import figure_claims, table_claims
from .records import LEARNING_CURVES, TABLE, Record, stem_of
from .samples import Claim
from .verdicts import NOT_DECIDED, NOT_SEEN, SEEN

__all__ = ["NAME", "check_own", "claims_of", "remarks_of", "results_text", "write_results"]

NAME = "RESULTS.md"
MARK = {"Source": "drawn by pyro-tvae results"}  # in the pictures, whose names somebody's own may have
NOTES = "notes"
ROBUSTNESS = "robustness.md"
ORDER = ("table", "fig", "radial", "guides", "priors", "recipe")  # as the paper tells it, then what goes beyond it
TOLD = (  # what a budget is
    "data.n_train", "data.n_test", "data.batch_size", "fit.max_epochs", "fit.max_steps", "fit.warmup_steps",
    "evaluation.num_particles",
)  # fmt: skip


def write_results(folder: Path) -> Path:
    """Write ``RESULTS.md`` into a folder of records, and the pictures that are drawn from them.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file in it is no record, or a damaged one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; {command('reproduce', 'STUDY', '--keep', '--records', folder)} makes it."
        )
    check_inside(folder)
    check_own(folder)
    for stem, record in _records(folder).items():
        figure = (recipe_curves if record["kind"] == LEARNING_CURVES else forecast_curves)(record)
        picture = folder / _drawn(stem, record)[0]
        own = picture.is_file() and MARK["Source"].encode() in picture.read_bytes()[:1000]
        if figure is not None:
            if picture.exists() and not own:
                put_aside(picture, "was not drawn by this command")
            save(figure, picture, MARK)
        elif own:  # of what the record held before
            picture.unlink()
    return write_text(folder / NAME, results_text(folder))


def check_own(folder: Path) -> None:
    """Raise FileExistsError where a folder's ``RESULTS.md`` is somebody's own."""
    path = folder / NAME
    if path.is_file() and not path.read_text(errors="replace").startswith(HEAD[: HEAD.index(" from the records")]):
        raise FileExistsError(
            f"{path} was not written by {command('results')}, and is left as it is; move it away, or choose another "
            "--records."
        )


def results_text(folder: Path) -> str:
    """The content of ``RESULTS.md`` for a folder of records: the same text for the same files."""
    records = {stem: in_markdown(record) for stem, record in _records(folder).items()}
    sections = [HEAD]
    judged = {stem: claims_of(record) for stem, record in records.items()}
    if any(judged.values()):
        sections.append(_overview(records, judged))
    used: set[Path] = set()
    for stem, record in records.items():
        notes = [
            path for name in dict.fromkeys((stem, record["study"])) if (path := folder / NOTES / f"{name}.md").is_file()
        ]
        used.update(notes)
        sections.append(_section(folder, stem, record, judged[stem], notes))
    if not records:
        sections.append("No study has been kept here yet: nothing is claimed.\n")
    others = [path for path in sorted((folder / NOTES).glob("*.md")) if path not in used]
    for path in [*others, folder / ROBUSTNESS]:
        if path.is_file():
            sections.append(_verbatim(path))
    return "\n".join(sections)


HEAD = """# Results

Written by `pyro-tvae results` from the records (JSON) in this folder: tables and claims hold what is in them and
nothing else; paragraphs below them are from `notes`, and say where further numbers come from.
`pyro-tvae reproduce STUDY --seeds … --keep` adds seeds to a record; those that are there are not run again. Commands
leave out where data lie (`data.source.root=DIR`); every setting is in the records. Seconds are of shared cores: they
rank nothing where no note says how they were taken.

± is the standard deviation over seeds, which are all judged on one fixed test set: the error of drawing that set is not
in it, and stands in the tables as the standard error over test sequences. A claim is **seen** where the 95 % interval
over seeds (Welch's t for a difference, Student's t for a mean) lies on the claimed side, **not seen** where it lies on
the other, **not decided** where it holds both or there are fewer than two seeds. E_eq, CapCorr and roll correlations
are blind to collapse: those of models that explain less than 0.05 of what there is to explain beyond the mean frame do
not count.
"""


def _records(folder: Path) -> dict[str, Record]:
    records = {path.stem: read_kept(path) for path in sorted(folder.glob("*.json"))}
    for stem, record in records.items():
        expected = stem_of(record["study"], record.get("budget"))
        if stem != expected:
            raise ValueError(f"{folder / stem}.json is a record of {expected}; rename it {expected}.json.")
    place = {stem: next((n for n, start in enumerate(ORDER) if stem.startswith(start)), len(ORDER)) for stem in records}
    return {stem: records[stem] for stem in sorted(records, key=lambda stem: (place[stem], stem))}


def _heading(record: Record) -> str:
    return record["title"] + (f" (budget: {record['budget']})" if record.get("budget") else "")


def _overview(records: Mapping[str, Record], judged: Mapping[str, Sequence[Claim]]) -> str:
    """How many claims were seen, study by study."""
    lines = ["| study | seen | not seen | not decided |", "|---|---|---|---|"]
    for stem, claims in judged.items():
        if claims:
            counts = [sum(claim.verdict == verdict for claim in claims) for verdict in (SEEN, NOT_SEEN, NOT_DECIDED)]
            lines.append(f"| {_heading(records[stem])} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


def _section(folder: Path, stem: str, record: Record, claims: Sequence[Claim], notes: Sequence[Path]) -> str:
    parts = [f"## {_heading(record)}\n", _how(record, stem)]
    parts.append(table(record) if record["kind"] == TABLE else ends(record))
    said = {note for row in record["rows"] for run in row["runs"] for note in run.get("notes") or ()}
    parts += [f"{note[:1].upper()}{note[1:].rstrip('.')}.\n" for note in sorted(said)]
    for picture, caption in _pictures(folder, stem, record):
        parts.append(f"![{caption}]({quote(picture)})\n\n*{caption}*\n")
    if claims:
        lines = [f"- **{one.verdict.capitalize()}**: {one.said}\n  - Measured: {one.measured}" for one in claims]
        parts.append("### What was claimed, and what was seen\n\n" + "\n".join(lines) + "\n")
    remarks = remarks_of(record)
    if remarks:
        parts.append("\n\n".join(remarks) + "\n")
    parts += [path.read_text(encoding="utf-8").strip() + "\n" for path in notes]
    return "\n".join(parts)


def _how(record: Record, stem: str) -> str:
    """Command, seeds, hardware, time and versions of a record."""
    runs = [run for row in record["rows"] for run in row["runs"]]
    seeds = sorted({seed for row in record["rows"] for seed in row["seeds"]})
    incomplete = [row["name"] for row in record["rows"] if row["seeds"] != seeds]
    words = ["reproduce", record["study"]]
    words += ["--budget", str(record["budget"])] if record.get("budget") else []
    words += ["--seeds", ",".join(map(str, seeds)), *(record.get("overrides") or ())]
    lines = [f"- Command: {in_code(record.get('command') or command(*words))}"]
    short = f" (fewer for {', '.join(incomplete)})" if incomplete else ""
    lines.append(f"- Seeds: {', '.join(map(str, seeds)) or 'none'}{short}; {len(runs)} runs")
    lines.append(f"- Hardware: {_counted([str(run.get('hardware') or 'not recorded') for run in runs])}")
    totals: dict[str, float] = {}
    for run in runs:
        for name, seconds in (run.get("seconds") or {}).items():
            totals[name] = totals.get(name, 0.0) + (seconds or 0.0)
    spans = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in totals.items())
    lines.append(f"- Time, all runs together: {spans or 'not recorded'}")
    versions = _counted([", ".join(f"{k} {v}" for k, v in (run.get("versions") or {}).items()) for run in runs])
    lines.append(f"- Versions: {versions or 'not recorded'}")
    shared = record["settings"]
    # No limit is written as null or -1.
    told = [f"{name}={shared[name]}" for name in TOLD if shared.get(name) not in (None, -1)]
    if told:
        lines.append(f"- Among the settings of all rows: {', '.join(told)}")
    lines.append(f"- Record: [{stem}.json]({quote(stem)}.json)")
    return "\n".join(lines) + "\n"


def _counted(texts: Sequence[str]) -> str:
    """Every text once; with how many runs it holds of, where there are several."""
    kinds = list(dict.fromkeys(texts))
    if len(kinds) < 2:
        return kinds[0] if kinds else ""
    return "; ".join(f"{kind} ({texts.count(kind)} runs)" for kind in kinds)


# ---- claims


def claims_of(record: Record) -> list[Claim]:
    """The claims that a record can speak to, judged; none for a study that has no rules."""
    if record["kind"] == LEARNING_CURVES:
        return recipe_claims(record)
    rules = {"table1": table_claims, "table2": table_claims, "guides": guide_claims, "priors": prior_claims}
    rule = figure_claims if record["study"].startswith("fig") else rules.get(record["study"])
    return rule(record) if rule else []


def remarks_of(record: Record) -> list[str]:
    """What else the numbers say, in sentences without a verdict."""
    if record["kind"] == LEARNING_CURVES:
        return catching_up(record)
    sentences = rankings(record) if record["study"] in ("guides", "priors") else []
    counts = {row["name"]: (len(collapsed_seeds(row)), len(row["seeds"])) for row in record["rows"]}
    collapsed = [f"{name} ({count} of {n_seeds})" for name, (count, n_seeds) in counts.items() if count]
    if collapsed:
        share = f"they explain less than {COLLAPSED} of what there is to explain."
        sentences.append(f"Collapsed: {', '.join(collapsed)}; {share}")
    return sentences


# ---- pictures


def _drawn(stem: str, record: Record) -> tuple[str, str]:
    """The name and the caption of the picture that is drawn from a record itself."""
    if record["kind"] == LEARNING_CURVES:
        shown = "Test IWAE and forward_roll against wall-clock time; bands reach from the lowest seed to the highest."
        return f"{stem}-curves.png", shown
    shown = "Log-likelihood of frames not seen, against how far they lie ahead; means over seeds."
    return f"{stem}-forward_roll.png", shown


def _pictures(folder: Path, stem: str, record: Record) -> Iterator[tuple[str, str]]:
    """Names and captions of a record's pictures; ``table1-hour-…`` is none of a record called ``table1``."""
    stems = sorted((path.stem for path in folder.glob("*.json")), key=len, reverse=True)
    for path in sorted(folder.glob("*.png")):
        if stem == next((own for own in stems if path.stem == own or path.stem.startswith(f"{own}-")), None):
            rest = path.stem.removeprefix(stem).strip("-").replace("_", " ") or record["title"]
            captions = {path.name: rest} | dict([_drawn(stem, record)]) | (record.get("pictures") or {})
            yield path.name, captions[path.name]


def _verbatim(path: Path) -> str:
    text = path.read_text(encoding="utf-8").strip()
    return text + "\n" if text.startswith("#") else f"## {path.stem.replace('_', ' ').capitalize()}\n\n{text}\n"
