"""Numbers: extreme inputs and sizes work or are refused, and a fit that is no longer finite stops before it spreads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from complaints import answer
from torch import Tensor

from pyro_tvae import TVAE, Bernoulli, CapsuleRoll, ContinuousBernoulli, Likelihood, Normal, OrbitEnergy, default_guide
from pyro_tvae.inference import ELBO, Terms, TrainerOptions, fit, log_likelihood
from pyro_tvae.inference.training import NonFiniteError

INPUTS: dict[str, Callable[..., Tensor]] = {
    "black": lambda *shape: torch.zeros(shape),
    "white": lambda *shape: torch.ones(shape),
    "grey": lambda *shape: torch.full(shape, 0.5),
    "one pixel": lambda *shape: torch.zeros(shape).index_fill(-1, torch.tensor([0]), 1.0),
}
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous": ContinuousBernoulli,
    "normal": lambda: Normal(0.1, learned=True),
}


@pytest.mark.parametrize("paint", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
@pytest.mark.parametrize("orbits", [False, True], ids=["gaussian", "orbits"])
def test_extreme_pixels(paint: Callable[..., Tensor], likelihood: Callable[[], Likelihood], orbits: bool) -> None:
    model = TVAE(
        (1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0), prior=OrbitEnergy() if orbits else None, likelihood=likelihood()
    )
    guide = default_guide(model)
    x = paint(4, 3, 1, 2, 2)
    fit(model, guide, x, max_epochs=5, seed=0, progress=False, trainer=TrainerOptions("cpu"))
    assert torch.isfinite(log_likelihood(model, guide, x, 3).iwae).all()


@pytest.mark.parametrize(("s", "c", "d"), list(itertools.product((1, 2), repeat=3)))
def test_the_smallest_sizes_and_one_sequence(s: int, c: int, d: int) -> None:
    model = TVAE((1, 1, 1), s, c, d, CapsuleRoll(1, 0))
    guide = default_guide(model)
    x = torch.rand(1, s, 1, 1, 1)
    fit(model, guide, x, max_epochs=2, seed=0, progress=False, validation=x, trainer=TrainerOptions("cpu"))
    result = log_likelihood(model, guide, x, 1)
    assert torch.isfinite(result.iwae).all()


@pytest.mark.parametrize("u", [0.0, 1e-20, 1e15], ids=["zero", "tiny", "huge"])
def test_a_constant_energy(u: float) -> None:
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
    t = model.compose({"z": torch.zeros(2, 3, 1, 3), "u": torch.full((2, 3, 1, 3), u)})
    assert torch.isfinite(t).all()


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed", "32-true"])
def test_precisions_that_train(precision: str) -> None:
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
    guide = default_guide(model)
    history = fit(
        model,
        guide,
        torch.rand(20, 3, 1, 2, 2),
        max_epochs=4,
        progress=False,
        trainer=TrainerOptions("cpu", precision=precision),
    )
    assert history.rows
    assert all(torch.isfinite(p).all() for p in [*model.parameters(), *guide.parameters()])


def test_float16_trains_or_says_why_not() -> None:
    """eps = 1e-6 is hardly more than nothing in float16."""
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
    guide, x = default_guide(model), torch.rand(20, 3, 1, 2, 2)
    _, sentence = answer(
        lambda: fit(model, guide, x, max_epochs=4, progress=False, trainer=TrainerOptions("cpu", precision="16-true"))
    )
    assert sentence is not None or all(torch.isfinite(p).all() for p in model.parameters())


class Poisoned(ELBO):
    """A finite loss whose gradient is NaN, from the fifth step on."""

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Terms:
        terms = super().forward(x, observed)
        self.calls = getattr(self, "calls", 0) + self.training
        if self.calls > 4:
            nothing = (self.model.mu - self.model.mu.detach()).sqrt()
            return terms._replace(objective=terms.objective + 0 * nothing)
        return terms


def test_a_gradient_that_is_not_finite_stops_the_fit_before_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
    guide = default_guide(model)
    with pytest.raises(NonFiniteError) as caught:
        fit(
            model,
            guide,
            torch.rand(6, 3, 1, 2, 2),
            batch_size=2,
            max_epochs=4,
            seed=0,
            objective=Poisoned,
            directory=tmp_path,
            trainer=TrainerOptions("cpu"),
            progress=False,
        )
    text = str(caught.value)
    assert text.startswith("the gradient of model.mu (1 of ")
    assert "at step 4, batch 1 of epoch 1" in text
    assert "\n" not in text
    assert all(torch.isfinite(p).all() for p in [*model.parameters(), *guide.parameters()])
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert all(value.isfinite().all() for value in last["state_dict"].values())
