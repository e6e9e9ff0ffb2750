"""Pareto k and smoothing: the published formulas in fifty digits, and what ArviZ says where it says anything."""

from __future__ import annotations

import decimal
import math
import warnings
from collections.abc import Callable
from decimal import Decimal
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_tvae.inference.likelihood import summarize
from pyro_tvae.inference.pareto import pareto_shape, pareto_smooth

DIGITS = decimal.Context(prec=50, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)


def published(log_w: list[float]) -> float:
    """Pareto k of K log-weights, number by number: tail, Zhang & Stephens' estimate, and PSIS's prior on k."""
    return published_smoothing(log_w)[0]


def published_smoothing(log_w: list[float]) -> tuple[float, list[float]]:
    """Pareto k, and the log-weights in descending order with their tail as its distribution expects it."""
    size = len(log_w)
    descending = sorted(log_w, reverse=True)
    if size < 2 or not math.isfinite(max(log_w)):
        return math.nan, descending
    length = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    cutoff = descending[length]
    if cutoff == descending[0]:
        return 0.0, descending
    with decimal.localcontext(DIGITS):
        weight = [Decimal(value).exp() if value > -math.inf else Decimal(0) for value in descending[: length + 1]]
        x = sorted(w - weight[length] for w, value in zip(weight, descending, strict=False) if value > cutoff)
        n = len(x)
        if n < 5:
            return math.inf, descending
        quartile = x[math.floor(n / 4 + 0.5) - 1]
        m = 30 + math.isqrt(n)

        def shape(theta: Decimal) -> Decimal:
            return sum(((1 - theta * value).ln() for value in x), Decimal(0)) / n

        grid, evidence = [], []
        for j in range(1, m + 1):
            theta = 1 / x[-1] + (1 - (m / (j - Decimal("0.5"))).sqrt()) / (3 * quartile)
            k = shape(theta)
            rate = -theta / k if theta else n / sum(x)
            grid.append(theta)
            evidence.append(n * (rate.ln() - k - 1))
        posterior = [(value - max(evidence)).exp() for value in evidence]
        theta = sum(t * p for t, p in zip(grid, posterior, strict=True)) / sum(posterior)
        raw = shape(theta)
        k = (n * raw + 10 * Decimal("0.5")) / (n + 10)
        scale, smoothed = -raw / theta, []
        for i in range(n):  # largest first
            survival = (i + Decimal("0.5")) / n
            expected = weight[length] + scale * ((-k * survival.ln()).exp() - 1) / k
            smoothed.append(float(min(expected, weight[0]).ln()))
        return float(k), smoothed + descending[n:]


def normal(size: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return scale * torch.randn(size, 1, generator=generator, dtype=torch.float64).squeeze(1)


def pareto(size: int, shape: float) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return -shape * torch.rand(size, generator=generator, dtype=torch.float64).log()


def put(base: Tensor, **places: float) -> Tensor:
    """``base`` with other values: ``first_7=value`` for the first seven, ``last_7=value`` for the last."""
    changed = base.clone()
    for place, value in places.items():
        end, count = place.split("_")
        changed[slice(int(count)) if end == "first" else slice(-int(count), None)] = value
    return changed


INF = math.inf
# What the tail looks like: log-weights, and the k that has to come out where it is no matter of fitting.
CASES: dict[str, tuple[Tensor, float | None]] = {
    "one weight": (normal(1), math.nan),
    "two weights": (normal(2), INF),
    "six weights, a tail of two": (normal(6), INF),
    "twenty weights, a tail of four": (normal(20), INF),
    "21, the first tail of five": (normal(21), None),
    "25, a tail of five": (normal(25), None),
    "26, a tail of six": (normal(26), None),
    "99, a tail that is rounded up": (normal(99), None),
    "100, a tail of twenty": (normal(100), None),
    "225, where a fifth and the root meet": (normal(225), None),
    "999, a root that is rounded up": (normal(999), None),
    "10,000": (normal(10_000), None),
    "weights without variance": (pareto(1_000, 0.9), None),
    "weights without mean": (pareto(1_000, 2.0), None),
    "bounded weights": (torch.linspace(0.0, 1.0, 500, dtype=torch.float64).sqrt().log(), None),
    "far from zero": (normal(100) - 80_000.0, None),
    "far above zero": (normal(100) + 80_000.0, None),
    "a range of 1,000 nats": (normal(100, 400.0), None),
    "a range of 100,000 nats": (normal(100, 30_000.0), None),
    "a tail of five over 10,000 nats": (normal(25, 5_000.0), None),
    "a single one, 10,000 nats above the others": (put(normal(100), first_1=10_000.0), None),
    "differences near rounding": (normal(100, 1e-9), None),
    "all equal": (torch.full((100,), -3.0, dtype=torch.float64), 0.0),
    "few and equal": (torch.full((4,), -3.0, dtype=torch.float64), 0.0),
    "the largest equal, others lower": (put(normal(100), first_30=9.0), 0.0),
    "the tail equal, the cutoff lower": (put(normal(100), first_20=9.0), None),
    "an equal tail of a hundred": (put(normal(1_200), first_104=9.0), None),  # 104: a grid of forty has θ = 0
    "eight above a cutoff that many share": (put(put(normal(100), first_60=2.5), last_8=2.6), None),
    "a tail with ties of its own": ((normal(400) * 4).round() / 4, None),
    "four above a cutoff that many share": (put(torch.zeros(100, dtype=torch.float64), last_4=1.0), INF),
    "five above a cutoff that many share": (put(torch.zeros(100, dtype=torch.float64), last_5=1.0), None),
    "one finite weight": (put(torch.full((100,), -INF, dtype=torch.float64), first_1=-7.0), INF),
    "four finite weights": (put(normal(100), last_96=-INF), INF),
    "five finite weights": (put(normal(100), last_95=-INF), None),
    "as many finite weights as the tail": (put(normal(100), last_80=-INF), None),
    "half of them zero": (put(normal(100), last_50=-INF), None),
    "no weight above zero": (torch.full((100,), -INF, dtype=torch.float64), math.nan),
    "not a number": (put(normal(100), first_1=math.nan), math.nan),
    "an infinite weight": (put(normal(100), first_1=INF), math.nan),
}


def found(log_w: Tensor) -> float:
    return float(summarize(log_w[:, None], 1).pareto_k)


@pytest.mark.parametrize("case", CASES)
def test_k_is_the_published_one_in_fifty_digits(case: str) -> None:
    log_w, known = CASES[case]
    expected = published(log_w.tolist()) if known is None else known
    if known is None:
        assert math.isfinite(expected)
    assert found(log_w) == pytest.approx(expected, rel=1e-9, abs=1e-11, nan_ok=True)


@pytest.mark.parametrize("case", CASES)
def test_smoothed_weights_are_the_published_ones_in_fifty_digits(case: str) -> None:
    log_w, known = CASES[case]
    if log_w.isnan().any() or log_w.max() == INF:
        return
    smoothed, k = pareto_smooth(log_w[:, None])
    if known is not None:  # nothing was fitted
        assert torch.equal(smoothed[:, 0], log_w)
        return
    expected_k, expected = published_smoothing(log_w.tolist())
    assert float(k) == pytest.approx(expected_k, rel=1e-9, abs=1e-11)
    # A tail is a difference of weights: what they lose in doubles, relative to the largest, is lost to either.
    assert smoothed[:, 0].sort(descending=True).values.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    # Ranks stay, but for ties, and what is below the tail is as it was.
    assert (smoothed[log_w.argsort()].squeeze(1).diff() >= 0).nan_to_num().all() or len(log_w.unique()) < len(log_w)
    assert int((smoothed[:, 0] != log_w).sum()) <= math.ceil(min(len(log_w) / 5, 3 * math.sqrt(len(log_w))))


def test_the_reference_says_so_of_what_it_does_not_fit() -> None:
    for log_w, known in CASES.values():
        if known is not None and not log_w.isnan().any():
            assert published(log_w.tolist()) == pytest.approx(known, nan_ok=True)


def test_columns_have_tails_of_their_own() -> None:
    columns = [log_w for log_w, _ in CASES.values() if len(log_w) == 100]
    together = summarize(torch.stack(columns, 1), 1).pareto_k
    alone = torch.tensor([found(column) for column in columns], dtype=torch.float64)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14, equal_nan=True)
    assert len(columns) > 15


def test_more_columns_than_fit_one_pass_and_more_axes() -> None:
    log_w = torch.randn(300, 7, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k = summarize(log_w, 1).pareto_k
    assert k.shape == (7, 400)
    for place in ((0, 0), (3, 250), (6, 399)):
        assert float(k[place]) == pytest.approx(published(log_w[:, *place].tolist()), rel=1e-9)


def test_k_needs_no_arviz(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0].startswith("arviz")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "arviz", None)  # importing it is an error
    assert math.isfinite(found(normal(100)))


# --- the libraries ---------------------------------------------------------------------------------------------------


def arviz_psis() -> tuple[bool, Callable[[Tensor], float]]:
    """Whether ArviZ is older than 1, and its own Pareto k of log-weights; nan where it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz: Any = import_module("arviz")
    if int(arviz.__version__.split(".")[0]) < 1:
        return True, lambda log_w: float(arviz.psislw(log_w.numpy().copy())[1])
    stats: Any = import_module("arviz_stats.base").array_stats

    def psis(log_w: Tensor) -> float:
        try:
            return float(stats.psislw(-log_w.numpy())[1])  # it takes log-likelihoods and turns their sign itself
        except ValueError:  # a tail that is equal or shorter than five
            return math.nan

    return False, psis


# Log-weights whose tail both versions cut alike: its length needs no rounding, no ties, all of it above exp(−708).
SHARED = {
    case: log_w
    for case, (log_w, known) in CASES.items()
    if known is None
    and len(log_w) in (25, 100, 225, 400, 10_000)
    and len(log_w.unique()) == len(log_w)
    and float(log_w.max() - log_w.sort(descending=True).values[len(log_w) // 5]) < 700
}


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.filterwarnings("ignore")
def test_either_version_of_arviz_agrees_where_it_answers(case: str) -> None:
    legacy, psis = arviz_psis()
    theirs = psis(SHARED[case])
    if len(SHARED[case]) == 25 and not legacy:
        assert math.isnan(theirs)  # of five excesses the first quartile is the smallest, and 1.x does not fit that
        return
    # Differences of 1e-9 between weights near 1 are known to them to seven digits.
    assert found(SHARED[case]) == pytest.approx(theirs, rel=3e-6 if case == "differences near rounding" else 1e-9)


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.filterwarnings("ignore")
def test_smoothed_weights_are_those_of_arviz(case: str) -> None:
    legacy, _ = arviz_psis()
    log_w = SHARED[case]
    if not legacy:
        return  # 1.x smooths before it normalizes, and tests k otherwise: its k is compared above
    theirs = torch.from_numpy(import_module("arviz").psislw(log_w.numpy().copy())[0])
    ours = pareto_smooth(log_w[:, None])[0][:, 0].log_softmax(0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6 if case == "differences near rounding" else 1e-9)


def test_some_cases_are_shared() -> None:
    assert len(SHARED) >= 6


@pytest.mark.parametrize("size", [21, 99, 999, 10_001])
@pytest.mark.filterwarnings("ignore")
def test_before_version_1_arviz_rounds_the_tail_up_too(size: int) -> None:
    legacy, psis = arviz_psis()
    log_w = normal(size)
    if legacy:
        assert found(log_w) == pytest.approx(psis(log_w), rel=1e-9)
    else:  # rounded down: one weight less
        kept = log_w.sort(descending=True).values[: math.floor(min(size / 5, 3 * math.sqrt(size))) + 1]
        theirs = psis(log_w)
        assert math.isnan(theirs) or float(pareto_shape(kept[:, None])) == pytest.approx(theirs, rel=1e-9)


# --- what it is for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_k_is_the_shape_of_pareto_weights(shape: float) -> None:
    """Fifty estimates from 949 of 100,000 weights: each has deviation (1 + k) / sqrt(949), their mean a seventh."""
    log_w = -shape * torch.rand(100_000, 50).double().log()
    k = summarize(log_w, 1).pareto_k
    # Five of its deviations and the pull towards 0.5, by 10 of 959 parts.
    assert abs(float(k.mean()) - shape) < 5 * (1 + shape) / math.sqrt(949 * 50) + 0.01 * abs(0.5 - shape)
