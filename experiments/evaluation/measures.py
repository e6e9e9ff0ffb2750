"""Measures: what each number of an evaluation or a study is called, which way it is better, and what it cannot tell.

A new measure is a number in what :func:`.scoring.measure` returns, and its entry here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["BLIND", "COLLAPSED", "CONTROLLED", "HEADINGS", "MEASURES", "Measure", "Scores", "flat", "score"]

Scores: TypeAlias = Mapping[str, float | dict[str, float]]  # measure -> one number, or one for each of its parts
COLLAPSED = 0.05  # `explained` below this is called a collapse
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


@dataclass(frozen=True)
class Measure:
    """One measure, or one for each part (a moving factor, a latent), whose numbers are called ``key/part``.

    Attributes:
        key: its name in files.
        label: in the table of one evaluation; ``{k}`` stands for the number of particles.
        unit: likewise.
        direction: which way it is better.
        note: what a reader of one evaluation should know.
        column: its name where a study's rows are compared; empty where it is not; the label and an arrow by default.
        blind_to_collapse: a code that says nothing about its input can score perfectly on it.
        has_untrained_control: studies keep the untrained model's beside it, as ``key_untrained``.
        beside: the measure that it takes turns with, part by part, in the table of one evaluation.
        error_of: the measure whose standard error it is, which has no row of its own in that table.
        place: in that table: before (−1), among (0) or after (1) the others, which keep the order that they have here.
    """

    key: str
    label: str
    unit: str = ""
    direction: Literal["higher", "lower", ""] = ""
    note: str = ""
    column: str | None = None
    blind_to_collapse: bool = False
    has_untrained_control: bool = False
    beside: str = ""
    error_of: str = ""
    place: int = 0

    @property
    def headings(self) -> dict[str, str]:
        """What a study calls the measure and its control."""
        column = self.label + ARROWS[self.direction] if self.column is None else self.column
        control = {f"{self.key}_untrained": f"{self.label}, untrained"} if self.has_untrained_control else {}
        return ({self.key: column} if column else {}) | control


NATS = "nats / frame"
PROBED = "a linear map reads it from t; fitted on the validation split"
# fmt: off
MEASURES = (
    Measure("iwae", "IWAE, K = {k}", NATS, "higher", column="IWAE ↑",
            note="importance-weighted bound of log p(sequence); the error is over test sequences and their draw"),
    Measure("iwae_error", "its standard error over test sequences", NATS, error_of="iwae"),
    Measure("ess", "effective sample size", "of {k}", "higher", column="its effective sample size, median",
            note="median over sequences"),
    Measure("iwae_sequences", "sequences with all K = {k}", "count", column="",
            note="drawn; the others have a tenth of K, and what K adds on these is added to the mean over all"),
    Measure("elbo", "ELBO", NATS, "higher"),
    Measure("reconstruction", "reconstruction", NATS, "higher", column=""),
    Measure("kl", "KL", NATS, note="0 is a collapse"),
    Measure("frame_unnormalised", "frame_unnormalised", NATS, place=1,
            note="the published estimator, K = 10: per frame, without −log K; NOT a likelihood, for comparison with "
                 "print"),
    Measure("few/elbo", "ELBO, the first test sequences alone", NATS, "higher"),
    Measure("few/iwae", "IWAE, K = 1,000, the same", NATS, "higher"),
    Measure("few/laplace", "IWAE from the Laplace approximation, the same", NATS, "higher"),
    Measure("few/ais", "AIS, the same", NATS, "higher"),
    Measure("few/gap", "best of these − ELBO", NATS, "lower"),
    Measure("held/elbo", "ELBO of the guide fitted to one model that is held", NATS, "higher"),
    Measure("held/best", "the best estimate of that model's log p(x)", NATS),
    Measure("held/gap", "that − ELBO", NATS, "lower"),
    Measure("explained", "explained", "share", "higher", "0: the mean frame; 1: a perfect code at no cost", place=-1),
    Measure("e_eq", "E_eq", "L1", "lower", blind_to_collapse=True, has_untrained_control=True),
    Measure("e_eq_error", "its standard error over drawn pairs of frames", "L1", "", column="", error_of="e_eq"),
    Measure("roll", "roll correlation", "circular r", "higher", column="roll correlation",
            blind_to_collapse=True, has_untrained_control=True),
    Measure("roll_error", "its standard error over drawn pairs of frames", column="", error_of="roll"),
    Measure("roll_exact", "exact rolls", "share", "higher", column="", blind_to_collapse=True, beside="roll"),
    Measure("cap_corr", "CapCorr", "Pearson r", "higher", "as published: the truth leaks in", column="CapCorr",
            blind_to_collapse=True, has_untrained_control=True, beside="roll"),
    Measure("velocity", "roll velocity", "positions / frame", column="", blind_to_collapse=True,
            note="where no factor is known; blind to collapse, and to who rolls: the topography does, untrained"),
    Measure("velocity_error", "its standard error over sequences", column="", error_of="velocity"),
    Measure("velocity_spread", "roll velocity, spread", "positions", "lower", column="",
            note="circular standard deviation of the observed rolls about that velocity"),
    Measure("velocity_concentration", "roll velocity, concentration", "mean cosine", "higher", column="",
            note="1: every roll is that of the velocity"),
    Measure("velocity_shuffled", "the same, frames shuffled", "mean cosine", column="",
            note="mean over shuffled orders, encoded anew, each at the velocity that suits it best"),
    Measure("velocity_p", "roll velocity, p", "share", "lower", column="",
            note="orders of the frames that are at least as concentrated; small where their order matters"),
    Measure("commutation", "commutation", "ratio", "lower", blind_to_collapse=True,
            note="rolling the code against encoding the moved input: 0 equivariant, 1 chance"),
    Measure("forward_roll", "forward_roll", NATS, "higher"),
    Measure("forward_roll_floor", "its best floor", NATS),
    Measure("probe", "class probe", "accuracy", "higher", PROBED),
    Measure("pose", "pose probe", "R²", "higher", PROBED, column="pose probe"),
    Measure("active", "active latents", "count",
            note="posterior means (of log energies, where they are positive) whose variance over the data is above "
                 "0.01"),
    Measure("map/selective", "units with d′ ≥ 0.85", "count", "higher"),
    Measure("map/selective_untrained", "such units, untrained", "count"),
    Measure("map/classes", "classes they prefer", "count"),
    Measure("map/last_class", "units of another colour if the last such class is shown, as published", "count"),
    Measure("map/selectivity", "neighbours' d′: correlation", direction="higher"),
    Measure("map/selectivity_p", "neighbours' d′: p"),
    Measure("map/selectivity_untrained", "neighbours' d′: untrained"),
    Measure("map/slant", "neighbours' slant: correlation", direction="higher"),
    Measure("map/slant_p", "neighbours' slant: p"),
    Measure("map/slant_untrained", "neighbours' slant: untrained"),
    Measure("map/stroke_width", "neighbours' stroke width: correlation", direction="higher"),
    Measure("map/stroke_width_p", "neighbours' stroke width: p"),
    Measure("map/stroke_width_untrained", "neighbours' stroke width: untrained"),
    Measure("collapsed", "collapsed"),
    Measure("seconds", "training, s"),
    Measure("step", "steps"),
    Measure("seconds_per_step", "s / step"),
)
# fmt: on
BLIND = tuple(measure.key for measure in MEASURES if measure.blind_to_collapse)
CONTROLLED = tuple(measure.key for measure in MEASURES if measure.has_untrained_control)
HEADINGS = {key: heading for measure in MEASURES for key, heading in measure.headings.items()}


def score(scores: Scores, name: str) -> float:
    """The number called ``key`` or ``key/part``; nan where a model has no such part, or it could not be measured.

    Example:
        >>> score({"kl": 2.0, "roll": {"rotation": 0.5}}, "roll/rotation")
        0.5
    """
    key, _, part = name.partition("/")
    value = scores.get(key, math.nan)
    return value.get(part, math.nan) if isinstance(value, dict) else value


def flat(scores: Scores) -> dict[str, float]:
    """All numbers by their names.

    Example:
        >>> flat({"kl": 2.0, "roll": {"rotation": 0.5}})
        {'kl': 2.0, 'roll/rotation': 0.5}
    """
    return {
        f"{key}/{part}" if part else key: number
        for key, value in scores.items()
        for part, number in (value if isinstance(value, dict) else {"": value}).items()
    }
