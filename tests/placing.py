"""A tiny model, Pyro's own number for it, and where each name of Pyro's API stands: for tests that walk all of it.

A name agrees with an oracle, is refused in one sentence that names what cannot be had, or has no sense here for a
written reason. With the same seed Pyro's vectorised estimate and ours make the same draws, so that numbers are compared
draw by draw, to the rounding of single precision: there is no statistical error, and no false alarm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyro
import pytest
import torch
from complaints import answer
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.inference import ELBO, IWAE, log_likelihood, log_weights

K, B, SEED = 7, 4, 1


@dataclass(frozen=True)
class Place:
    """How a name is placed: its verdict, the check that proves it, and what is said of it.

    Attributes:
        verdict: "agrees", "refused" or "no sense".
        check: raises AssertionError where the verdict is wrong.
        words: words of the refusal, or the reason why there is no sense.
    """

    verdict: str
    check: Callable[[], None]
    words: str = ""


def agrees(check: Callable[[], None]) -> Place:
    return Place("agrees", check)


def refused(words: str, *actions: Callable[[], object]) -> Place:
    """Every action ends in one sentence of this project that holds the words."""

    def check() -> None:
        for action in actions:
            assert words in complaint(action)

    return Place("refused", check, words)


def no_sense(reason: str) -> Place:
    def check() -> None:
        assert len(reason.split()) >= 6, "a reason is a sentence"

    return Place("no sense", check, reason)


def public(module: ModuleType) -> set[str]:
    """Qualified names of what a module says is public."""
    return {f"{module.__name__}.{name}" for name in module.__all__}


def unplaced(modules: tuple[ModuleType, ...], places: Mapping[str, object]) -> list[str]:
    return sorted(set().union(*(public(module) for module in modules)) - {*places})


def counts(places: Mapping[str, Place]) -> dict[str, int]:
    """How many names have each verdict."""
    return dict(Counter(place.verdict for place in places.values()))


def complaint(action: Callable[[], object]) -> str:
    """The one sentence that an action is refused with."""
    found, text = answer(action)
    assert text is not None, f"not refused: {found}"
    return text


# --- the model and the numbers


def sequences(n: int = B) -> Tensor:
    return torch.rand(n, 3, 1, 2, 2, generator=torch.Generator().manual_seed(3))


def tiny(kind: type[TVAE] = TVAE, **options: Any) -> TVAE:
    return kind((1, 2, 2), 3, 1, 3, CapsuleRoll(3), mu=1.0, **options)


def sampled(model: TVAE, kind: type[MeanFieldGuide] = MeanFieldGuide) -> MeanFieldGuide:
    """A mean-field guide whose KL is sampled all the same, as Trace_ELBO's is."""
    guide = kind(model, initial_log_variance=0.0)
    guide.mean_field = False
    return guide


def pyros(model: Any, guide: Any, x: Tensor, *, loss: Any = Trace_ELBO, k: int = K, **covariates: Tensor) -> float:
    """Minus Pyro's loss: nats, summed over the sequences."""
    pyro.set_rng_seed(SEED)
    with torch.no_grad():
        judged = loss(num_particles=k, vectorize_particles=True, max_plate_nesting=1)
        return -float(judged.loss(model, guide, x, **covariates))


def renyis(model: Any, guide: Any, x: Tensor) -> float:
    """Pyro's importance-weighted bound, its weights those of the entries of the plate."""
    return pyros(model, guide, x, loss=lambda **options: RenyiELBO(alpha=0, **options))


def by_elbo(model: Any, guide: Any, x: Tensor, k: int = K, **covariates: Tensor) -> float:
    pyro.set_rng_seed(SEED)
    with torch.no_grad():
        return float(ELBO(model, guide, k)(x, **covariates).elbo.sum())


def by_iwae(model: Any, guide: Any, x: Tensor, objective: Any = IWAE) -> float:
    pyro.set_rng_seed(SEED)
    return float(objective(model, guide, K)(x).objective.sum().detach())


def by_likelihood(model: Any, guide: Any, x: Tensor, **covariates: Tensor) -> float:
    return float(log_likelihood(model, guide, x, K, seed=SEED, covariates=covariates).elbo.sum())


def by_weights(model: Any, guide: Any, x: Tensor, **covariates: Tensor) -> float:
    return float(log_weights(model, guide, x, K, seed=SEED, covariates=covariates).mean(0).sum())


def weight_at(model: Any, guide: Any, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """``log p(x, values) − log q(values | x)`` of one draw, summed over the sequences."""
    q = poutine.trace(poutine.condition(guide, data=dict(values))).get_trace(x)
    p = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(x)
    return p.log_prob_sum() - q.log_prob_sum()  # type: ignore[return-value]


def same(found: float | Tensor, expected: float | Tensor) -> None:
    found, expected = (value.item() if isinstance(value, Tensor) else value for value in (found, expected))
    assert found == pytest.approx(expected, rel=2e-5, abs=2e-4)
