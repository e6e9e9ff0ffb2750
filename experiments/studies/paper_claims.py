"""Claims of the paper: what its tables and figures say, against what a record of them measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from .records import Record, Row
from .samples import EQUIVARIANCE_VOID, LIKELIHOOD_COUNTS, Claim, called, judged, numbers, row_of, sample, spelled
from .verdicts import NOT_DECIDED, NOT_SEEN, SEEN, Verdict, above, all_of, greater

__all__ = ["figure_claims", "table_claims"]

COHERENT = ("tvae_lhalf", "tvae_lpartial", "tvae_lshort")  # the paper's rows with a coherence over time, longest first
HALF, STILL, BUBBLES, PLAIN = "tvae_lhalf", "tvae_l0", "bubbles", "nontvae"
CORRELATED, UNCORRELATED = 0.9, 0.3
ORGANIZED = 0.001  # chance that a map without order looks as ordered


def table_claims(record: Record) -> list[Claim]:
    """The claims of Tables 1 and 2."""
    first = record["study"] == "table1"
    source = "Table 1" if first else "Table 2"
    capsules = "Table 2 says so of dSprites; asked here of MNIST" if first else "Table 2"
    likelihood = source if first else "the abstract; asked here of dSprites"
    controls = numbers(record, (*COHERENT, BUBBLES, PLAIN), "e_eq_untrained")
    claims = [
        _ordered(
            record,
            "The equivariance error of TVAEs with temporal coherence is below that of the BubbleVAE, and that of the "
            f"BubbleVAE below that of the plain VAE ({source}).",
            "e_eq",
            (*COHERENT, BUBBLES, PLAIN),
            (*((name, BUBBLES) for name in COHERENT), (BUBBLES, PLAIN)),
            f". Untrained: {controls}" if controls else "",
        ),
        _ordered(
            record,
            f"The longer the temporal coherence L, the smaller the equivariance error ({source}).",
            "e_eq",
            (*COHERENT, STILL),
            pairwise((*COHERENT, STILL)),
        ),
        _contrast(
            record,
            "cap_corr",
            f"CapCorr, the correlation of the observed roll with the true one, is near 1 for the TVAE (half), here at "
            f"least {CORRELATED}, and near 0 for the plain VAE, here below {UNCORRELATED} ({capsules}).",
        ),
        _contrast(
            record,
            "roll",
            f"The same of the roll correlation, which no truth leaks into: at least {CORRELATED} for the TVAE (half), "
            f"below {UNCORRELATED} for the plain VAE (our measure; the paper has none like it).",
        ),
    ]
    for key, how in (
        ("iwae", "by the importance-weighted bound of log p(sequence)"),
        ("frame_unnormalised", "by the published estimator, which is not a likelihood"),
    ):
        others = numbers(record, (BUBBLES, STILL), key)
        claims.append(
            _ordered(
                record,
                "TVAEs with temporal coherence give test sequences a higher likelihood than the plain VAE "
                f"({likelihood}), {how}.",
                key,
                (*COHERENT, PLAIN),
                ((PLAIN, name) for name in COHERENT),
                f"; {others}" if others else "",
            )
        )
    return [*claims, _forecasts(record, COHERENT, "Figure 1")]


def _ordered(
    record: Record, said: str, key: str, names: Sequence[str], pairs: Iterable[tuple[str, str]], further: str = ""
) -> Claim:
    """A claim that E_eq, or a likelihood, is lower in the first row of every pair than in the second."""
    error = key == "e_eq"
    values = {name: sample(row_of(record, name), key, blind=error) for name in names}
    verdicts = {
        f"{called(low)} below {called(high)}" if error else f"{called(high)} above {called(low)}": greater(
            values[high], values[low]
        )
        for low, high in pairs
    }
    measured = f"{'E_eq' if error else 'Nats per frame'}: {numbers(record, names, key, blind=error) or 'no number'}"
    consequence = EQUIVARIANCE_VOID if error else LIKELIHOOD_COUNTS
    return judged(record, names, said, verdicts, f"{measured}{further}.", consequence)


def _contrast(record: Record, prefix: str, said: str) -> Claim:
    """A correlation that is high for the TVAE (half), and absent in the plain VAE, for every factor."""
    rows = [row_of(record, name) for name in (HALF, PLAIN)]
    keys = dict.fromkeys(key for row in record["rows"] for key in row["values"] if key.startswith(f"{prefix}/"))
    parts, verdicts, constant = [], {}, False
    for key in keys:
        factor = key.partition("/")[2]
        high, low = (sample(row, key, blind=True, missing=0.0) for row in rows)
        constant = constant or len(high) + len(low) > sum(len(sample(row, key, blind=True)) for row in rows)
        verdicts[factor] = all_of([above(high, CORRELATED), above([-value for value in low], -UNCORRELATED)])
        untrained = sample(rows[0], f"{prefix}_untrained/{factor}")
        control = f" (untrained {spelled(untrained)})" if untrained else ""
        parts.append(f"{factor}: {spelled(high)}{control} against {spelled(low)}")
    measured = f"TVAE (half) against plain VAE, {'; '.join(parts)}." if parts else "No number."
    if constant:
        measured += " Where the observed roll never varies, the correlation is undefined, and counts as 0 here."
    return judged(record, (HALF, PLAIN), said, verdicts, measured, EQUIVARIANCE_VOID)


def _forecasts(record: Record, names: Sequence[str], source: str) -> Claim:
    verdicts, parts = {}, []
    for name in names:
        row = row_of(record, name)
        if row is None:
            continue
        # Model and floors are scored on the same frames of the same run.
        values, floors = (row["values"].get(key, []) for key in ("forward_roll", "forward_roll_floor"))
        gains = [a - b for a, b in zip(values, floors, strict=False) if a is not None and b is not None]
        verdicts[called(name)] = above(gains, 0.0)
        parts.append(f"{called(name)} {spelled(gains)}")
    return judged(
        record,
        names,
        f"How a sequence goes on can be generated by rolling the capsules of its last encoded frame ({source}); here: "
        "better than every floor, such as repeating that frame.",
        verdicts,
        f"Gain over the best floor, nats per unseen frame: {', '.join(parts) or 'no number'}.",
        "forecasts there count all the same",
    )


def figure_claims(record: Record) -> list[Claim]:
    """The claims of a figure: of forecasts, and of maps of units."""
    source = f"Figure {record['study'].removeprefix('fig')}"
    rows = [row["name"] for row in record["rows"] if row["values"].get("forward_roll")]
    claims = [_forecasts(record, rows, source)] if rows else []
    for row in record["rows"]:
        of_map = [key for key in row["values"] if key.startswith("map/")]
        tested = [key.removesuffix("_p") for key in of_map if key.endswith("_p")]
        controlled = [key for key in of_map if not key.endswith(("_p", "_null")) and f"{key}_untrained" in of_map]
        if tested:
            claims.append(_neighbors(record, row, tested, source))
        if controlled:
            claims.append(_map(record, row, controlled, source))
    return claims


def _neighbors(record: Record, row: Row, keys: Sequence[str], source: str) -> Claim:
    """On measures of a map that were tested against random places of its units."""
    verdicts: dict[str, Verdict] = {}
    parts = []
    for key in keys:
        chances = sample(row, f"{key}_p", blind=True)
        verdicts[_property(key)] = NOT_DECIDED if not chances else SEEN if max(chances) < ORGANIZED else NOT_SEEN
        shown = f"{max(chances):.2g}" if chances else "–"
        untrained = [sample(row, f"{name}_untrained") for name in (key, f"{key}_p")]
        control = f" (untrained {spelled(untrained[0])}, p at most {max(untrained[1]):.2g})" if all(untrained) else ""
        parts.append(f"{_property(key)} {spelled(sample(row, key, blind=True))}, p at most {shown}{control}")
    said = (
        f"Neighbours on the map prefer what is alike ({source}); here: their correlations beat those of units in "
        f"random places at p < {ORGANIZED:g}, in every seed."
    )
    return judged(record, [row["name"]], said, verdicts, f"{row['name']}: {'; '.join(parts)}.", EQUIVARIANCE_VOID)


def _map(record: Record, row: Row, keys: Sequence[str], source: str) -> Claim:
    """On measures of a map that have an untrained control beside them."""
    samples = {
        _property(key): (sample(row, key, blind=True), sample(row, f"{key}_untrained", blind=True)) for key in keys
    }
    verdicts = {name: greater(trained, untrained) for name, (trained, untrained) in samples.items()}
    parts = [f"{name} {spelled(trained)}, untrained {spelled(before)}" for name, (trained, before) in samples.items()]
    said = (
        "On a two-dimensional topography, units come to be selective, and neighbours to prefer what is alike "
        f"({source}); here: every measure of it is above that of the untrained model."
    )
    return judged(record, [row["name"]], said, verdicts, f"{row['name']}: {'; '.join(parts)}.", EQUIVARIANCE_VOID)


def _property(key: str) -> str:
    return key.removeprefix("map/").replace("_", " ")
