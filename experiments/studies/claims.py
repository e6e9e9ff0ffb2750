"""Claims: what was published, or hoped for, against what a record measured, by rules and never by hand.

:mod:`.verdicts` says what decides. Collapsed models are named, and their measures of equivariance do not count.
"""

from __future__ import annotations

from ..evaluation.measures import COLLAPSED
from .comparison import collapsed_seeds
from .own_claims import catching_up, guide_claims, prior_claims, rankings, recipe_claims
from .paper_claims import figure_claims, table_claims
from .records import LEARNING_CURVES, Record
from .samples import Claim

__all__ = ["Claim", "claims_of", "remarks_of"]


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
