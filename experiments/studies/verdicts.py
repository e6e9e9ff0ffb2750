"""Verdicts: what numbers over seeds decide, and what they leave open.

A comparison is decided by the 95 % interval of a difference of means (Welch's t), a threshold by that of a mean
(Student's t). "seen": the interval lies on the claimed side. "not seen": it lies on the other. "not decided": it holds
both, or there are fewer than two seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from scipy import stats

__all__ = ["NOT_DECIDED", "NOT_SEEN", "SEEN", "Verdict", "above", "all_of", "greater", "interval_of_difference", "same"]

Verdict = Literal["seen", "not seen", "not decided"]
SEEN: Final = "seen"
NOT_SEEN: Final = "not seen"
NOT_DECIDED: Final = "not decided"
LEVEL = 0.975  # two-sided 95 %


def above(values: Sequence[float], threshold: float) -> Verdict:
    """Whether the mean of one sample lies above a threshold.

    Example:
        >>> above([0.97, 0.98, 0.99], 0.9), above([0.2, 0.3], 0.9), above([0.97], 0.9)
        ('seen', 'not seen', 'not decided')
    """
    if len(values) < 2:
        return NOT_DECIDED
    half = float(stats.t.ppf(LEVEL, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return _judged(statistics.fmean(values) - threshold, half)


def greater(larger: Sequence[float], smaller: Sequence[float]) -> Verdict:
    """Whether the mean of one sample lies above that of another.

    Example:
        >>> greater([3.0, 3.1], [1.0, 1.1]), greater([1.0, 1.1], [3.0, 3.1]), greater([1.0, 3.0], [0.9, 2.9])
        ('seen', 'not seen', 'not decided')
    """
    if min(len(larger), len(smaller)) < 2:
        return NOT_DECIDED
    return _judged(*interval_of_difference(larger, smaller))


def same(first: Sequence[float], second: Sequence[float], margin: float) -> Verdict:
    """Whether two means differ by less than a margin: not finding a difference is not enough.

    Example:
        >>> same([1.0, 1.1], [1.0, 1.1], 1.0), same([1.0, 1.1], [9.0, 9.1], 1.0), same([0.0, 4.0], [0.0, 4.0], 1.0)
        ('seen', 'not seen', 'not decided')
    """
    if min(len(first), len(second)) < 2:
        return NOT_DECIDED
    difference, half = interval_of_difference(first, second)
    if abs(difference) + half <= margin:
        return SEEN
    return NOT_SEEN if abs(difference) - half > margin else NOT_DECIDED


def interval_of_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The difference of two means, first minus second, and half its 95 % interval; two values each at least."""
    difference = statistics.fmean(first) - statistics.fmean(second)
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    whole = sum(parts)
    if whole == 0:
        return difference, 0.0
    # Welch and Satterthwaite's degrees of freedom, by shares, whose squares do not underflow.
    terms = [(part / whole) ** 2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)]
    return difference, float(stats.t.ppf(LEVEL, 1 / sum(terms))) * math.sqrt(whole)


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim of several parts: not seen if any part is, seen if all are."""
    parts = set(verdicts)
    if NOT_SEEN in parts:
        return NOT_SEEN
    return SEEN if parts == {SEEN} else NOT_DECIDED


def _judged(difference: float, half: float) -> Verdict:
    if difference > half:
        return SEEN
    return NOT_SEEN if difference < -half else NOT_DECIDED
