"""Claims of ours, beyond the paper's: of guides, of priors, and of recipes, against what a record of them measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from ..evaluation.measures import COLLAPSED
from ..reports.tables import format_number, format_seconds
from .comparison import collapsed_seeds
from .records import Record, Row, RunInfo, curve
from .samples import LIKELIHOOD_COUNTS, Claim, at, caveat, listed, ranked, row_of, sample, spelled
from .verdicts import NOT_DECIDED, NOT_SEEN, SEEN, Verdict, above, greater, interval_of_difference, same

__all__ = ["catching_up", "guide_claims", "prior_claims", "rankings", "recipe_claims"]

CLOSED = 0.8  # share of the gap below log p(x)
LEAD = 3.0  # nats per frame by which the likelihood is to be the higher one
SAME = 1.0  # nats per frame within which two distributions of x are called the same


def _best(row: Row, seed: int) -> float | None:
    """The best estimate of log p(x) of one run."""
    return max(
        (n for key in ("few/iwae", "few/laplace", "few/ais") if (n := at(row, seed, key)) is not None), default=None
    )


def _estimates(row: Row | None) -> list[float]:
    """The best estimates of log p(x) over seeds."""
    return [n for seed in row["seeds"] if (n := _best(row, seed)) is not None] if row is not None else []


def rankings(record: Record) -> list[str]:
    """The rows by their bounds on the same test sequences."""
    labelled: dict[str, Callable[[Row], list[float]]] = {
        "ELBO": lambda row: sample(row, "few/elbo"),
        "best estimate of log p(x)": _estimates,
    }
    texts = {label: listed(ranked({r["name"]: of(r) for r in record["rows"]})) for label, of in labelled.items()}
    return [f"By {name} on the same test sequences, highest first: {text}." for name, text in texts.items() if text]


def guide_claims(record: Record) -> list[Claim]:
    """How much of the gap below log p(x) guides close, on each row's own model and on one that is held."""
    said = (
        f"The best guide closes at least {100 * CLOSED:.0f} % of the gap that the mean-field guide leaves between its "
        "ELBO and the best estimate of log p(x) {} (our aim, not the paper's)."
    )
    base = row_of(record, "mean_field")
    others = [row for row in record["rows"] if row is not base]
    if base is None or not others:
        missing = "the mean-field guide" if base is None else "any other guide"
        return [Claim(said.format("that any row found"), NOT_DECIDED, f"There are no runs of {missing}.")]
    collapsed = caveat(record, [row["name"] for row in record["rows"]], "those seeds do not count")

    def pairs(row: Row, key: str) -> list[tuple[int, float, float]]:
        """(seed, number of the row, that of the mean-field guide) for the seeds of both, collapsed in neither."""
        shared = set(row["seeds"]) & set(base["seeds"]) - {*collapsed_seeds(row), *collapsed_seeds(base)}
        numbers = ((seed, at(row, seed, key), at(base, seed, key)) for seed in sorted(shared))
        return [(seed, own, left) for seed, own, left in numbers if own is not None and left is not None]

    def by_elbo(row: Row) -> list[float]:
        shares = []
        for seed, own, low in pairs(row, "few/elbo"):
            estimates = (_best(any_row, seed) for any_row in record["rows"] if seed in any_row["seeds"])
            best = max((value for value in estimates if value is not None), default=low)
            if best > low:
                shares.append((own - low) / (best - low))
        return shares

    def by_gap(row: Row, key: str) -> list[float]:
        return [1 - own / left for _, own, left in pairs(row, key) if left > 0]

    # Without annealing, log p(x) is underestimated most, and the gap below it looks smaller than it is.
    annealed = [row for row in others if sample(row, "few/ais")]
    loose = [row["name"] for row in others if row not in annealed]
    remark = f" Not annealed, and so not eligible: {', '.join(loose)}." if loose else ""
    own_gaps = {row["name"]: by_gap(row, "few/gap") for row in annealed}
    claims = [
        _closing(said.format("that any row found"), {row["name"]: by_elbo(row) for row in others}, collapsed),
        _closing(said.format("of its own model"), own_gaps, remark + collapsed),
    ]
    if any(sample(row, "held/gap") for row in record["rows"]):
        held = "of one model, whose weights are held while every guide is fitted to it"
        gaps = {row["name"]: by_gap(row, "held/gap") for row in others}
        claims.append(_closing(said.format(held), gaps, collapsed))
    return claims


def _closing(said: str, shares: Mapping[str, Sequence[float]], further: str) -> Claim:
    best_first = ranked(shares)
    if not best_first:
        return Claim(said, NOT_DECIDED, f"No number.{further}")
    best = next(iter(best_first.values()))
    return Claim(said, above(best, CLOSED), f"Share closed: {listed(best_first)}.{further}")


def prior_claims(record: Record) -> list[Claim]:
    """Whether priors that give x the same distribution reach the same log p(x)."""
    said = (
        "{} energies give x the same law as Gaussian u, so that models fitted with either reach the same log p(x), "
        f"here within {SAME:g} nat per frame (our derivation, not the paper's)."
    )
    claims = []
    for name, prior in (("gamma", "Gamma(½, ½)"), ("orbit", "One χ² energy per orbit in place of u²: these")):
        first, second = (_estimates(row_of(record, row)) for row in ("gaussian", name))
        measured = f"Best estimate of log p(x): gaussian {spelled(first)}, {name} {spelled(second)}"
        if min(len(first), len(second)) > 1:
            apart, half = interval_of_difference(second, first)
            measured += f"; difference {format_number(apart)}, 95 % interval ± {format_number(half)}"
        measured += "." + caveat(record, ("gaussian", name), LIKELIHOOD_COUNTS)
        claims.append(Claim(said.format(prior), same(first, second, SAME), measured))
    return claims


# ---- recipes


def _until(run: RunInfo, seconds: float, key: str) -> float | None:
    """A curve's last value by that time."""
    values = [value for time, value in curve(run, key) if time <= seconds]
    return values[-1] if values else None


def _ends(row: Row) -> list[float]:
    return [max((time for time, _ in curve(run, "seconds")), default=0.0) for run in row["runs"]]


def recipe_claims(record: Record) -> list[Claim]:
    """Whether a recipe is ahead of the published one when the shorter of the two ends, or orbits of a plain VAE."""
    base = row_of(record, "published")
    others = [row for row in record["rows"] if row["name"] != "published" and row["seeds"]]
    if base is None:
        return _lead(record)
    if not base["seeds"]:
        return []
    alike = len({run.get("hardware") for row in record["rows"] for run in row["runs"]}) == 1
    claims = []
    for row in others:
        end = min([*_ends(base), *_ends(row)])
        further = "" if alike else " Not all runs were on the same hardware, so their times do not compare."
        for one in (row, base):
            explained = [_until(run, end, "explained") for run in one["runs"]]
            count = sum(share is not None and share < COLLAPSED for share in explained)
            if count:
                further += f" Collapsed at that time: {count} of {len(explained)} runs of {one['name']}."
        for key, measure, unit in (
            ("iwae", "test IWAE", "nats per frame"),
            ("forward_roll", "forward_roll", "nats per unseen frame"),
        ):
            own, published = (
                [value for run in one["runs"] if (value := _until(run, end, key)) is not None] for one in (row, base)
            )
            claims.append(
                Claim(
                    f"After the same wall-clock time, the recipe {row['name']} has a higher {measure} than the "
                    "published one (our aim, not the paper's).",
                    greater(own, published) if alike else NOT_DECIDED,
                    f"After {format_seconds(end)}, {unit}: {row['name']} {spelled(own)}, published "
                    f"{spelled(published)}.{further}",
                )
            )
    return claims


def _lead(record: Record) -> list[Claim]:
    """Whether orbits end with a higher likelihood than a plain VAE: by their bounds, and by what annealing found."""
    said = (
        f"A TVAE of orbits has a likelihood at least {LEAD:.0f} nats per frame above that of a plain VAE of the same "
        "size, data and number of steps{} (our aim, not the paper's)."
    )
    rows = [row_of(record, name) for name in ("orbits", "plain_vae")]
    own, plain = ([best for run in row["runs"] if (best := _bound(run)) is not None] if row else [] for row in rows)
    how = "Nats per frame at the end, by the higher of the bounds that average whole sequences and frame by frame"
    claims = [_ahead(said.format(""), how, own, plain)] if own and plain else []
    own, plain = map(_estimates, rows)
    if own and plain:
        by = ", by the best estimate of log p(x) of each"
        how = "On the first test sequences alone, by annealing or 1,000 draws, whichever is the highest"
        claims.append(_ahead(said.format(by), how, own, plain))
    return claims


def _ahead(said: str, how: str, own: Sequence[float], plain: Sequence[float]) -> Claim:
    """Whether orbits' numbers lie far enough above those of the plain VAE."""
    verdict: Verdict = NOT_DECIDED
    measured = f"{how}: orbits {spelled(own)}, plain VAE {spelled(plain)}"
    if min(len(own), len(plain)) > 1:
        lead, half = interval_of_difference(own, plain)
        if lead >= LEAD and lead > half:
            verdict = SEEN
        elif lead + half < LEAD:
            verdict = NOT_SEEN
        measured += f"; lead {lead:.1f} ± {half:.1f} (95 %)"
    return Claim(said, verdict, f"{measured}.")


def _bound(run: RunInfo) -> float | None:
    """The highest bound on log p(x) of a learning curve's last point."""
    ends = [points[-1][1] for key in ("iwae", "iwae_by_frames") if (points := curve(run, key))]
    return max(ends, default=None)


def catching_up(record: Record) -> list[str]:
    """How long every recipe takes to where the published one ends, in sentences."""
    base = row_of(record, "published")
    ends = [value for run in base["runs"] if (value := _until(run, math.inf, "iwae")) is not None] if base else []
    if base is None or not ends:
        return []
    goal = statistics.fmean(ends)
    sentences = []
    for row in record["rows"]:
        if row is base:
            continue
        times = [min((time for time, n in curve(run, "iwae") if n >= goal), default=None) for run in row["runs"]]
        spans = [format_seconds(time) for time in times if time is not None]
        sentences.append(
            f"{row['name']} reaches the test IWAE that the published recipe ends with ({format_number(goal)}, after "
            f"{format_seconds(statistics.fmean(_ends(base)))}) in {len(spans)} of {len(times)} runs"
            + (f", after {', '.join(spans)}." if spans else ".")
        )
    return sentences
