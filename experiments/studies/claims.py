"""Claims: what was published, or hoped for, against what a record measured, by rules and never by hand.

:mod:`.verdicts` says what decides. Collapsed models are named, and their measures of equivariance do not count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..evaluation.evaluate import COLLAPSED
from ..reports.tables import format_number, format_seconds
from .comparison import aggregate, collapsed_seeds
from .verdicts import NOT_DECIDED, NOT_SEEN, SEEN, above, all_of, greater, interval_of_difference, same

__all__ = ["Claim", "claims_of", "remarks_of"]

COHERENT = ("tvae_lhalf", "tvae_lpartial", "tvae_lshort")  # the paper's rows with a coherence over time, longest first
HALF, STILL, BUBBLES, PLAIN = "tvae_lhalf", "tvae_l0", "bubbles", "nontvae"
NAMES = {
    "tvae_lhalf": "TVAE (half)",
    "tvae_lpartial": "TVAE (partial)",
    "tvae_lshort": "TVAE (short)",
    "tvae_l0": "TVAE (L = 0)",
    "bubbles": "BubbleVAE",
    "nontvae": "plain VAE",
}
CORRELATED, UNCORRELATED = 0.9, 0.3
ORGANIZED = 0.001  # chance that a map without order looks as ordered
CLOSED = 0.8  # share of the gap below log p(x)
SAME = 1.0  # nats per frame within which two laws of x are called the same

Record = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it.

    Attributes:
        said: the claim in our words, and where it is made.
        verdict: ``"seen"``, ``"not seen"`` or ``"not decided"``.
        measured: the numbers that decide it, mean ± standard deviation over seeds, and what speaks against them.
    """

    said: str
    verdict: str
    measured: str


# ---- samples


def _row(record: Record, name: str) -> Row | None:
    """The row of that name, or of that name on a data set (``tvae_lhalf`` finds ``tvae_lhalf_mnist``)."""
    for row in record["rows"]:
        if row["name"] == name or (name in NAMES and row["name"].startswith(f"{name}_")):
            return row
    return None


def _sample(row: Row | None, key: str, *, blind: bool = False, missing: float | None = None) -> list[float]:
    """A measure's numbers over seeds; of a measure that is blind to collapse, without the collapsed models.

    ``missing`` stands in for a number that was asked for and is undefined; None leaves it out.
    """
    if row is None or key not in row["values"]:
        return []
    gone = collapsed_seeds(row) if blind else []
    alive = [value for seed, value in zip(row["seeds"], row["values"][key], strict=True) if seed not in gone]
    filled = [missing if value is None or not math.isfinite(value) else value for value in alive]
    return [float(value) for value in filled if value is not None]


def _spelled(values: Sequence[float]) -> str:
    if not values:
        return "no number"
    return format_number(*aggregate(values)) + ("" if len(values) > 1 else " (1 seed)")


def _called(name: str) -> str:
    return NAMES.get(name, name)


def _factors(record: Record, prefix: str) -> list[str]:
    keys = dict.fromkeys(key for row in record["rows"] for key in row["values"] if key.startswith(f"{prefix}/"))
    return [key.partition("/")[2] for key in keys]


def _caveat(record: Record, names: Sequence[str], consequence: str) -> str:
    """What is missing or collapsed among the rows that a claim is about, in words."""
    rows = {name: _row(record, name) for name in names}
    missing = [_called(name) for name, row in rows.items() if row is None]
    gone = {_called(name): collapsed_seeds(row) for name, row in rows.items() if row is not None}
    collapsed = [
        f"{called} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
        for called, seeds in gone.items()
        if seeds
    ]
    text = f" There are no runs of: {', '.join(missing)}." if missing else ""
    return text + (f" Collapsed: {', '.join(collapsed)}; {consequence}." if collapsed else "")


EQUIVARIANCE_GONE = "measures of equivariance there do not count"
LIKELIHOOD_COUNTS = "likelihoods there count all the same"
FORECASTS_COUNT = "forecasts there count all the same"


def _numbers(record: Record, names: Sequence[str], key: str, *, blind: bool = False) -> str:
    parts = [(name, _sample(_row(record, name), key, blind=blind)) for name in names]
    return ", ".join(f"{_called(name)} {_spelled(values)}" for name, values in parts if values)


def _undecided(pairs: Mapping[str, str]) -> str:
    """Which parts of a claim were not seen, and which are open."""
    text = ""
    for verdict in (NOT_SEEN, NOT_DECIDED):
        parts = [pair for pair, found in pairs.items() if found == verdict]
        if parts and set(pairs.values()) != {verdict}:
            text += f" {verdict.capitalize()}: {'; '.join(parts)}."
    return text


def _judged(
    record: Record, names: Sequence[str], said: str, parts: Mapping[str, str], measured: str, consequence: str
) -> Claim:
    """A claim about some rows, in parts that have a verdict each; ``consequence`` is what a collapse of a row means."""
    return Claim(said, all_of(parts.values()), measured + _undecided(parts) + _caveat(record, names, consequence))


# ---- tables 1 and 2


def _table(record: Record) -> list[Claim]:
    first = record["study"] == "table1"
    source = "Table 1" if first else "Table 2"
    claims = [_order(record, source), _coherence(record, source), _capsules(record, first), _rolls(record)]
    likelihood = source if first else "the abstract; asked here of dSprites"
    for key, how in (
        ("iwae", "by the importance-weighted bound of log p(sequence)"),
        ("frame_unnormalised", "by the published estimator, which is not a likelihood"),
    ):
        claims.append(_likelihoods(record, likelihood, key, how))
    return [*claims, _forecasts(record, COHERENT, "Figure 1")]


def _order(record: Record, source: str) -> Claim:
    names = (*COHERENT, BUBBLES, PLAIN)
    values = {name: _sample(_row(record, name), "e_eq", blind=True) for name in names}
    pairs = {
        f"{_called(low)} below {_called(high)}": greater(values[high], values[low])
        for low, high in (*((name, BUBBLES) for name in COHERENT), (BUBBLES, PLAIN))
    }
    measured = f"E_eq: {_numbers(record, names, 'e_eq', blind=True) or 'no number'}."
    controls = _numbers(record, names, "e_eq_untrained")
    if controls:
        measured += f" Untrained: {controls}."
    return _judged(
        record,
        names,
        "The equivariance error of TVAEs with temporal coherence is below that of the BubbleVAE, and that of the "
        f"BubbleVAE below that of the plain VAE ({source}).",
        pairs,
        measured,
        EQUIVARIANCE_GONE,
    )


def _coherence(record: Record, source: str) -> Claim:
    names = (*COHERENT, STILL)
    values = {name: _sample(_row(record, name), "e_eq", blind=True) for name in names}
    pairs = {
        f"{_called(low)} below {_called(high)}": greater(values[high], values[low]) for low, high in pairwise(names)
    }
    return _judged(
        record,
        names,
        f"The longer the temporal coherence L, the smaller the equivariance error ({source}).",
        pairs,
        f"E_eq: {_numbers(record, names, 'e_eq', blind=True) or 'no number'}.",
        EQUIVARIANCE_GONE,
    )


def _contrast(record: Record, prefix: str, said: str) -> Claim:
    """A correlation that is high for the TVAE (half), and absent in the plain VAE, for every factor."""
    names = (HALF, PLAIN)
    parts, verdicts, constant = [], {}, False
    for factor in _factors(record, prefix):
        key = f"{prefix}/{factor}"
        high, low = (_sample(_row(record, name), key, blind=True, missing=0.0) for name in names)
        constant = constant or any(
            len(_sample(_row(record, name), key, blind=True)) < len(values)
            for name, values in zip(names, (high, low), strict=True)
        )
        verdicts[factor] = all_of([above(high, CORRELATED), above([-value for value in low], -UNCORRELATED)])
        untrained = _sample(_row(record, HALF), f"{prefix}_untrained/{factor}")
        control = f" (untrained {_spelled(untrained)})" if untrained else ""
        parts.append(f"{factor}: {_spelled(high)}{control} against {_spelled(low)}")
    measured = f"TVAE (half) against plain VAE, {'; '.join(parts)}." if parts else "No number."
    if constant:
        measured += " Where the observed roll never varies, the correlation is undefined, and counts as 0 here."
    return _judged(record, names, said, verdicts, measured, EQUIVARIANCE_GONE)


def _capsules(record: Record, first: bool) -> Claim:
    source = "Table 2 says so of dSprites; asked here of MNIST" if first else "Table 2"
    return _contrast(
        record,
        "cap_corr",
        f"CapCorr, the correlation of the observed roll with the true one, is near 1 for the TVAE (half), here at "
        f"least {CORRELATED}, and near 0 for the plain VAE, here below {UNCORRELATED} ({source}).",
    )


def _rolls(record: Record) -> Claim:
    return _contrast(
        record,
        "roll",
        f"The same of the roll correlation, which no truth leaks into: at least {CORRELATED} for the TVAE (half), "
        f"below {UNCORRELATED} for the plain VAE (our measure; the paper has none like it).",
    )


def _likelihoods(record: Record, source: str, key: str, how: str) -> Claim:
    names = (*COHERENT, PLAIN)
    values = {name: _sample(_row(record, name), key) for name in names}
    pairs = {f"{_called(name)} above {_called(PLAIN)}": greater(values[name], values[PLAIN]) for name in COHERENT}
    others = _numbers(record, (BUBBLES, STILL), key)
    return _judged(
        record,
        names,
        f"TVAEs with temporal coherence give test sequences a higher likelihood than the plain VAE ({source}), {how}.",
        pairs,
        f"Nats per frame: {_numbers(record, names, key) or 'no number'}{f'; {others}' if others else ''}.",
        LIKELIHOOD_COUNTS,
    )


def _forecasts(record: Record, names: Sequence[str], source: str) -> Claim:
    verdicts, parts = {}, []
    for name in names:
        row = _row(record, name)
        if row is None:
            continue
        # Model and floors are scored on the same frames of the same run.
        values, floors = (row["values"].get(key, []) for key in ("forward_roll", "forward_roll_floor"))
        gains = [a - b for a, b in zip(values, floors, strict=False) if a is not None and b is not None]
        verdicts[_called(name)] = above(gains, 0.0)
        parts.append(f"{_called(name)} {_spelled(gains)}")
    return _judged(
        record,
        names,
        f"How a sequence goes on can be generated by rolling the capsules of its last encoded frame ({source}); here: "
        "better than every floor, such as repeating that frame.",
        verdicts,
        f"Gain over the best floor, nats per unseen frame: {', '.join(parts) or 'no number'}.",
        FORECASTS_COUNT,
    )


def _figure(record: Record) -> list[Claim]:
    source = f"Figure {record['study'].removeprefix('fig')}"
    rows = [row["name"] for row in record["rows"] if row["values"].get("forward_roll")]
    claims = [_forecasts(record, rows, source)] if rows else []
    for row in record["rows"]:
        if _tested(row):
            claims.append(_neighbors(record, row, source))
        if _controlled(row):
            claims.append(_map(record, row, source))
    return claims


def _tested(row: Row) -> list[str]:
    """The measures of a map that were tested against random places of its units."""
    return [key.removesuffix("_p") for key in row["values"] if key.startswith("map/") and key.endswith("_p")]


def _controlled(row: Row) -> list[str]:
    """The measures of a map that have an untrained control beside them."""
    own = (key for key in row["values"] if key.startswith("map/") and not key.endswith(("_p", "_null")))
    return [key for key in own if f"{key}_untrained" in row["values"]]


def _neighbors(record: Record, row: Row, source: str) -> Claim:
    verdicts, parts = {}, []
    for key in _tested(row):
        called = key.removeprefix("map/").replace("_", " ")
        chances = _sample(row, f"{key}_p", blind=True)
        verdicts[called] = SEEN if chances and max(chances) < ORGANIZED else NOT_SEEN if chances else NOT_DECIDED
        shown = f"{max(chances):.2g}" if chances else "–"
        untrained = [_sample(row, f"{name}_untrained") for name in (key, f"{key}_p")]
        control = f" (untrained {_spelled(untrained[0])}, p at most {max(untrained[1]):.2g})" if all(untrained) else ""
        parts.append(f"{called} {_spelled(_sample(row, key, blind=True))}, p at most {shown}{control}")
    return _judged(
        record,
        [row["name"]],
        f"Neighbours on the map prefer what is alike ({source}); here: their correlations beat those of units in "
        f"random places at p < {ORGANIZED:g}, in every seed.",
        verdicts,
        f"{row['name']}: {'; '.join(parts)}.",
        EQUIVARIANCE_GONE,
    )


def _map(record: Record, row: Row, source: str) -> Claim:
    verdicts, parts = {}, []
    for key in _controlled(row):
        called = key.removeprefix("map/").replace("_", " ")
        trained, untrained = _sample(row, key, blind=True), _sample(row, f"{key}_untrained", blind=True)
        verdicts[called] = greater(trained, untrained)
        parts.append(f"{called} {_spelled(trained)}, untrained {_spelled(untrained)}")
    return _judged(
        record,
        [row["name"]],
        "On a two-dimensional topography, units come to be selective, and neighbours to prefer what is alike "
        f"({source}); here: every measure of it is above that of the untrained model.",
        verdicts,
        f"{row['name']}: {'; '.join(parts)}.",
        EQUIVARIANCE_GONE,
    )


# ---- guides and priors


def _best(row: Row, seed: int) -> float | None:
    """The best estimate of log p(x) of one run."""
    n = row["seeds"].index(seed)
    found = [row["values"][key][n] for key in ("few/iwae", "few/ais") if key in row["values"]]
    return max((value for value in found if value is not None), default=None)


def _pairs(row: Row, other: Row, value: Callable[[Row, int], float | None]) -> list[tuple[int, float, float]]:
    """(seed, value of the row, value of the other) for the seeds that both have, collapsed in neither."""
    shared = set(row["seeds"]) & set(other["seeds"]) - {*collapsed_seeds(row), *collapsed_seeds(other)}
    found = [(seed, value(row, seed), value(other, seed)) for seed in sorted(shared)]
    return [(seed, own, base) for seed, own, base in found if own is not None and base is not None]


def _at(row: Row, seed: int, key: str) -> float | None:
    return row["values"][key][row["seeds"].index(seed)] if key in row["values"] else None


def _guides(record: Record) -> list[Claim]:
    said = (
        f"The best guide closes at least {100 * CLOSED:.0f} % of the gap that the mean-field guide leaves between its "
        "ELBO and the best estimate of log p(x) {} (our aim, not the paper's)."
    )
    base = _row(record, "mean_field")
    others = [row for row in record["rows"] if row is not base]
    if base is None or not others:
        missing = "the mean-field guide" if base is None else "any other guide"
        return [Claim(said.format("that any row found"), NOT_DECIDED, f"There are no runs of {missing}.")]
    everyone = [row["name"] for row in record["rows"]]
    gone = _caveat(record, everyone, "those seeds do not count")

    def by_elbo(row: Row) -> list[float]:
        shares = []
        for seed, own, low in _pairs(row, base, lambda r, s: _at(r, s, "few/elbo")):
            estimates = [_best(any_row, seed) for any_row in record["rows"] if seed in any_row["seeds"]]
            best = max((value for value in estimates if value is not None), default=low)
            if best > low:
                shares.append((own - low) / (best - low))
        return shares

    def by_gap(row: Row, key: str) -> list[float]:
        return [1 - own / left for _, own, left in _pairs(row, base, lambda r, s: _at(r, s, key)) if left > 0]

    # Without annealing, log p(x) is underestimated most, and the gap below it looks smaller than it is.
    annealed = [row for row in others if _sample(row, "few/ais")]
    loose = [row["name"] for row in others if row not in annealed]
    remark = f" Not eligible, as annealing needs a mean-field guide: {', '.join(loose)}." if loose else ""
    shares = {row["name"]: by_gap(row, "few/gap") for row in annealed}
    claims = [
        _closing(said.format("that any row found"), {row["name"]: by_elbo(row) for row in others}, gone),
        _closing(said.format("of its own model"), shares, remark + gone),
    ]
    if any(_sample(row, "held/gap") for row in record["rows"]):
        shares = {row["name"]: by_gap(row, "held/gap") for row in others}
        held = "of one model, whose weights are held while every guide is fitted to it"
        claims.append(_closing(said.format(held), shares, gone))
    return claims


def _closing(said: str, shares: Mapping[str, list[float]], caveat: str) -> Claim:
    ranked = sorted((name for name in shares if shares[name]), key=lambda name: -statistics.fmean(shares[name]))
    if not ranked:
        return Claim(said, NOT_DECIDED, f"No number.{caveat}")
    spelled = ", ".join(f"{name} {_spelled(shares[name])}" for name in ranked)
    return Claim(said, above(shares[ranked[0]], CLOSED), f"Share closed: {spelled}.{caveat}")


def _priors(record: Record) -> list[Claim]:
    said = (
        "{} energies give x the same law as Gaussian u, so that models fitted with either reach the same log p(x), "
        f"here within {SAME:g} nat per frame (our derivation, not the paper's)."
    )
    pairs = (("gamma", "Gamma(½, ½)"), ("orbit", "One χ² energy per orbit in place of u²: these"))
    return [_same(record, "gaussian", name, said.format(called)) for name, called in pairs]


def _same(record: Record, first: str, second: str, said: str) -> Claim:
    samples = []
    for name in (first, second):
        row = _row(record, name)
        found = [_best(row, seed) for seed in row["seeds"]] if row is not None else []
        samples.append([value for value in found if value is not None])
    difference = ""
    if min(map(len, samples)) > 1:
        apart, half = interval_of_difference(samples[1], samples[0])
        difference = f"; difference {format_number(apart)}, 95 % interval ± {format_number(half)}"
    measured = (
        f"Best estimate of log p(x): {first} {_spelled(samples[0])}, {second} {_spelled(samples[1])}{difference}."
    )
    return Claim(
        said, same(samples[0], samples[1], SAME), measured + _caveat(record, (first, second), LIKELIHOOD_COUNTS)
    )


# ---- recipe


def _until(run: Row, seconds: float, key: str) -> float | None:
    """A curve's last value by that time."""
    found = [point for point in run["points"] if point["seconds"] <= seconds and point.get(key) is not None]
    return max(found, key=lambda point: point["seconds"])[key] if found else None


def _ends(row: Row) -> list[float]:
    return [max((point["seconds"] for point in run["points"]), default=0.0) for run in row["runs"]]


def _recipe(record: Record) -> list[Claim]:
    base = _row(record, "published")
    others = [row for row in record["rows"] if row["name"] != "published" and row["seeds"]]
    if base is None or not base["seeds"] or not others:
        return []
    alike = len({run.get("hardware") for row in record["rows"] for run in row["runs"]}) == 1
    claims = []
    for row in others:
        end = min([*_ends(base), *_ends(row)])
        caveat = "" if alike else " Not all runs were on the same hardware, so their times do not compare."
        for one in (row, base):
            explained = [_until(run, end, "explained") for run in one["runs"]]
            count = sum(share is not None and share < COLLAPSED for share in explained)
            if count:
                caveat += f" Collapsed at that time: {count} of {len(explained)} runs of {one['name']}."
        for key, called, unit in (
            ("iwae", "test IWAE", "nats per frame"),
            ("forward_roll", "forward_roll", "nats per unseen frame"),
        ):
            own, published = (
                [value for run in one["runs"] if (value := _until(run, end, key)) is not None] for one in (row, base)
            )
            claims.append(
                Claim(
                    f"After the same wall-clock time, the recipe {row['name']} has a higher {called} than the "
                    "published one (our aim, not the paper's).",
                    greater(own, published) if alike else NOT_DECIDED,
                    f"After {format_seconds(end)}, {unit}: {row['name']} {_spelled(own)}, published "
                    f"{_spelled(published)}.{caveat}",
                )
            )
    return claims


def _catching_up(record: Record) -> list[str]:
    """How long every recipe takes to where the published one ends."""
    base = _row(record, "published")
    if base is None or not base["seeds"]:
        return []
    ends = [_until(run, math.inf, "iwae") for run in base["runs"]]
    known = [value for value in ends if value is not None]
    if not known:
        return []
    goal = statistics.fmean(known)
    sentences = []
    for row in record["rows"]:
        if row["name"] == "published":
            continue
        times = []
        for run in row["runs"]:
            reached = [p["seconds"] for p in run["points"] if p.get("iwae") is not None and p["iwae"] >= goal]
            times.append(min(reached) if reached else None)
        arrived = [time for time in times if time is not None]
        spans = ", ".join(format_seconds(time) for time in arrived)
        sentences.append(
            f"{row['name']} reaches the test IWAE that the published recipe ends with ({format_number(goal)}, after "
            f"{format_seconds(statistics.fmean(_ends(base)))}) in {len(arrived)} of {len(times)} runs"
            + (f", after {spans}." if arrived else ".")
        )
    return sentences


# ---- all


def claims_of(record: Record) -> list[Claim]:
    """The claims that a record can speak to, judged; none for a study that has no rules."""
    if record["kind"] == "recipe":
        return _recipe(record)
    rules = {"table1": _table, "table2": _table, "guides": _guides, "priors": _priors}
    rule = _figure if record["study"].startswith("fig") else rules.get(record["study"])
    return rule(record) if rule else []


def remarks_of(record: Record) -> list[str]:
    """What else the numbers say, in sentences without a verdict."""
    if record["kind"] == "recipe":
        return _catching_up(record)
    sentences = []
    if record["study"] in ("guides", "priors"):
        for label, value in (
            ("ELBO", lambda row: _sample(row, "few/elbo")),
            ("best estimate of log p(x)", lambda row: [v for s in row["seeds"] if (v := _best(row, s)) is not None]),
        ):
            found = {row["name"]: value(row) for row in record["rows"]}
            ranked = sorted((name for name in found if found[name]), key=lambda name: -statistics.fmean(found[name]))
            if ranked:
                spelled = ", ".join(f"{name} {_spelled(found[name])}" for name in ranked)
                sentences.append(f"By {label} on the same test sequences, highest first: {spelled}.")
    gone = [
        f"{row['name']} ({len(collapsed_seeds(row))} of {len(row['seeds'])})"
        for row in record["rows"]
        if collapsed_seeds(row)
    ]
    if gone:
        sentences.append(
            f"Collapsed: {', '.join(gone)}; they explain less than {COLLAPSED} of what there is to explain."
        )
    return sentences
