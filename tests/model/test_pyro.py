"""Plain Pyro scripts: every parameter trains with no further call, and no two models share one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    ContinuousBernoulli,
    Guide,
    Normal,
    NoTopography,
    OrbitEnergy,
    Stationary,
    Topography,
    Torus,
    default_guide,
)
from pyro_tvae.inference import ELBO

FRAME = (1, 2, 3)


def build(topography: Topography, **options: object) -> Callable[[], TVAE]:
    # A copy per model: parts hold parameters. μ = 1 keeps gradients of u visible in single precision.
    return lambda: TVAE(FRAME, 4, 2, 4, copy.deepcopy(topography), mu=1.0, **options)  # type: ignore[arg-type]


MODELS: dict[str, Callable[[], TVAE]] = {
    "roll": build(CapsuleRoll(3, 1)),
    "roll, truncated": build(CapsuleRoll(3, 1, boundary="truncate")),
    "roll, learned": build(CapsuleRoll(3, 1, learned=True)),
    "stationary": build(Stationary((3, 2))),
    "stationary, learned": build(Stationary((3, 2), learned=True)),
    "torus": build(Torus((2, 2), (2, 2))),
    "torus, learned": build(Torus((2, 2), (2, 2), learned=True)),
    "none": build(NoTopography()),
    "orbits": build(CapsuleRoll(4, 0), prior=OrbitEnergy()),
    "orbits, stationary": build(Stationary((4, 1)), prior=OrbitEnergy()),
    "continuous": build(CapsuleRoll(3), likelihood=ContinuousBernoulli()),
}
ALL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def pair(make: Callable[[], TVAE]) -> tuple[TVAE, Guide, Tensor]:
    model = make()
    # Variances of one, so that z, u and their gradients are not tiny beside the noise of single precision.
    return model, default_guide(model, initial_log_variance=0.0), torch.rand(16, 4, *FRAME)


def weights(*modules: nn.Module) -> dict[str, Tensor]:
    return {f"{i}.{name}": p.detach().clone() for i, m in enumerate(modules) for name, p in m.named_parameters()}


def unmoved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if torch.equal(before[name], after[name])}


@ALL
@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_trains_every_parameter(make: Callable[[], TVAE], loss: Callable[[], object]) -> None:
    model, guide, x = pair(make)
    before = weights(model, guide)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1.0}), loss())
    assert svi.step(x) > 0
    after = weights(model, guide)
    assert unmoved(before, after) == set()
    assert len(pyro.get_param_store()) == len(before)


@ALL
def test_the_module_road_reaches_every_parameter_and_needs_no_store(make: Callable[[], TVAE]) -> None:
    model, guide, x = pair(make)
    loss = TraceMeanField_ELBO()(model, guide)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-2)
    before = weights(model, guide)
    loss(x).backward()
    for name, parameter in [*model.named_parameters(), *guide.named_parameters()]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    optimizer.step()
    assert unmoved(before, weights(model, guide)) == set()


@ALL
def test_our_objective_reaches_every_parameter(make: Callable[[], TVAE]) -> None:
    model, guide, x = pair(make)
    objective = ELBO(model, guide, num_particles=2)
    (-objective(x).elbo.mean()).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert len(list(objective.parameters())) == len(weights(model, guide))


def test_a_learned_scale_trains_too() -> None:
    model, guide, x = pair(build(CapsuleRoll(3), likelihood=Normal(0.3, learned=True, activation="sigmoid")))
    before = weights(model, guide)
    SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), Trace_ELBO()).step(x)
    assert unmoved(before, weights(model, guide)) == set()
    assert "0.likelihood.log_scale" in before


def test_svi_improves_the_bound() -> None:
    model, guide, _ = pair(MODELS["roll"])
    x = (torch.rand(1, 1, *FRAME) > 0.5).float().expand(16, 4, *FRAME)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
    losses = [svi.step(x) for _ in range(150)]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


@pytest.mark.parametrize("road", ["svi", "module", "ours"])
@pytest.mark.parametrize("twin", ["built alike", "deep copy"])
def test_two_models_in_one_process_train_apart(road: str, twin: str) -> None:
    model, guide, x = pair(MODELS["roll"])
    if twin == "deep copy":
        # Copied after use, when its parameters are in the store already.
        Trace_ELBO().loss(model, guide, x)
        other, its_guide = copy.deepcopy(model), copy.deepcopy(guide)
    else:
        other, its_guide, _ = pair(MODELS["roll"])
    # The other is in use as well, so that its names are in the store.
    Trace_ELBO().loss(other, its_guide, x)
    still, moving = weights(other, its_guide), weights(model, guide)
    if road == "svi":
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 1.0}), Trace_ELBO())
        svi.step(x)
    else:
        loss = ELBO(model, guide) if road == "ours" else TraceMeanField_ELBO()(model, guide)
        optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
        value = loss(x)
        (-value.elbo.sum() if road == "ours" else value).backward()
        optimizer.step()
    assert unmoved(moving, weights(model, guide)) == set()
    assert unmoved(still, weights(other, its_guide)) == set(still)
    # Then the other way round.
    moving = weights(model, guide)
    SVI(other, its_guide, pyro.optim.SGD({"lr": 1.0}), Trace_ELBO()).step(x)
    assert unmoved(still, weights(other, its_guide)) == set()
    assert unmoved(moving, weights(model, guide)) == set(moving)


def test_the_copy_starts_where_the_original_was() -> None:
    model, guide, x = pair(MODELS["roll"])
    SVI(model, guide, pyro.optim.SGD({"lr": 1e-2}), Trace_ELBO()).step(x)
    trained = weights(model, guide)
    other, its_guide = copy.deepcopy(model), copy.deepcopy(guide)
    Trace_ELBO().loss(other, its_guide, x)
    assert unmoved(trained, weights(other, its_guide)) == set(trained)


def test_svi_goes_on_from_loaded_weights() -> None:
    """The store must follow the module, not bring old weights back."""
    model, guide, x = pair(MODELS["roll"])
    start = copy.deepcopy(model.state_dict())
    SVI(model, guide, pyro.optim.SGD({"lr": 1e-2}), Trace_ELBO()).step(x)
    model.load_state_dict(start)
    Trace_ELBO().loss(model, guide, x)
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


@ALL
def test_vectorised_particles_estimate_the_same_bound(make: Callable[[], TVAE]) -> None:
    """Pyro's vectorised estimate and ours have one expectation.

    Means of 40 repetitions of 50 particles, compared at 5.5 standard errors of the difference: with 39 degrees of
    freedom at least and 11 models, a false alarm is rarer than one in 10,000 seeds.
    """
    model, guide, x = pair(make)
    x = x[:3]
    with torch.no_grad():
        pyros = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
        one = torch.tensor([-pyros.loss(model, guide, x) for _ in range(40)])
        objective = ELBO(model, guide, num_particles=50)
        two = torch.stack([objective(x).elbo.sum() for _ in range(40)])
    error = ((one.var() + two.var()) / 40).sqrt()
    assert abs(float(one.mean() - two.mean())) < 5.5 * float(error)
    assert float(error) < 0.05 * abs(float(two.mean()))  # small enough to notice a missing term


@ALL
def test_vectorised_and_looped_particles_estimate_the_same_bound(make: Callable[[], TVAE]) -> None:
    """As above, five standard errors, between Pyro's two ways; Rényi's bound only needs to run on many sequences."""
    model, guide, x = pair(make)
    x = x[:2]
    fast = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    slow = Trace_ELBO(num_particles=20)
    with torch.no_grad():
        one = torch.tensor([fast.loss(model, guide, x) for _ in range(20)])
        two = torch.tensor([slow.loss(model, guide, x) for _ in range(12)])
        error = (one.var() / 20 + two.var() / 12).sqrt()
        # Student's t with 11 degrees of freedom at least: beyond 7.5 once in 80,000 seeds.
        assert abs(float(one.mean() - two.mean())) < 7.5 * float(error)
        renyi = RenyiELBO(alpha=0, num_particles=20, vectorize_particles=True, max_plate_nesting=1)
        assert renyi.loss(model, guide, x) < float(one.mean()) + 5 * float(one.std())


@ALL
def test_double_precision_trains(make: Callable[[], TVAE]) -> None:
    model, guide, x = pair(make)
    model, guide, x = model.double(), guide.double(), x.double()
    before = weights(model, guide)
    SVI(model, guide, pyro.optim.SGD({"lr": 1e-2}), TraceMeanField_ELBO()).step(x)
    after = weights(model, guide)
    assert unmoved(before, after) == set()
    assert {value.dtype for value in after.values()} == {torch.float64}
