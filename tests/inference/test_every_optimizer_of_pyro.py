"""Every optimizer and scheduler of Pyro's: SVI moves the parameters to where the module road moves a copy's."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from placing import Place, agrees, counts, no_sense, public, sampled, sequences, tiny, unplaced
from pyro import optim
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_tvae import TVAE, MeanFieldGuide
from pyro_tvae.inference import ELBO


def of_an_optimizer(make: Any, twin: Any, **arguments: Any) -> Callable[[], None]:
    """SVI moves the parameters to where the module road and the bare optimizer move a copy's, from the same draws."""

    def check() -> None:
        model, guide, other, its_guide, x = twins()
        svi = SVI(model, guide, make(dict(arguments)), Trace_ELBO())
        objective = ELBO(other, its_guide)
        # One optimizer per parameter, as Pyro has it.
        optimizers = [twin([parameter], **arguments) for parameter in objective.parameters()]
        train(lambda: svi.step(x), lambda: None, objective, optimizers, [], x)
        compare(model, guide, other, its_guide)

    return check


def of_a_scheduler(make: Any, twin: Any, *, metric: bool = False, **arguments: Any) -> Callable[[], None]:
    def check() -> None:
        model, guide, other, its_guide, x = twins()
        options = {"lr": 1e-3, "momentum": 0.9}
        scheduler = make({"optimizer": torch.optim.SGD, "optim_args": options, **arguments})
        svi = SVI(model, guide, scheduler, Trace_ELBO())
        objective = ELBO(other, its_guide)
        optimizers = [torch.optim.SGD([parameter], **options) for parameter in objective.parameters()]
        schedulers = [
            partial(twin(optimizer, **arguments).step, *([1.0] if metric else [])) for optimizer in optimizers
        ]
        train(
            lambda: svi.step(x),
            partial(scheduler.step, *([1.0] if metric else [])),
            objective,
            optimizers,
            schedulers,
            x,
        )
        compare(model, guide, other, its_guide)

    return check


def twins() -> tuple[TVAE, MeanFieldGuide, TVAE, MeanFieldGuide, Tensor]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = tiny()
    guide = sampled(model)
    other, its_guide = copy.deepcopy(model).double(), copy.deepcopy(guide).double()
    return model.double(), guide.double(), other, its_guide, sequences().double()


def train(step: Any, turn: Any, objective: ELBO, optimizers: list[Any], schedulers: list[Any], x: Tensor) -> None:
    for seed in range(3):
        pyro.set_rng_seed(seed)
        step()
        turn()
        pyro.set_rng_seed(seed)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (-objective(x).elbo.sum()).backward()
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler()


def compare(model: TVAE, guide: MeanFieldGuide, other: TVAE, its_guide: MeanFieldGuide) -> None:
    fresh = twins()
    for found, twin, start in ((model, other, fresh[0]), (guide, its_guide, fresh[1])):
        for (name, value), expected, before in zip(
            found.named_parameters(), twin.parameters(), start.parameters(), strict=True
        ):
            torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-9, msg=name)
            assert not torch.equal(value, before), f"{name} is not trained"


def of_torch(name: str, **arguments: Any) -> Place:
    return agrees(of_an_optimizer(getattr(optim, name), getattr(torch.optim, name), **({"lr": 1e-3} | arguments)))


def of_schedule(name: str, **arguments: Any) -> Place:
    return agrees(of_a_scheduler(getattr(optim, name), getattr(torch.optim.lr_scheduler, name), **arguments))


def of_pyro_optim() -> None:
    of_an_optimizer(partial(optim.PyroOptim, torch.optim.SGD), torch.optim.SGD, lr=1e-3)()


def of_pyro_scheduler() -> None:
    exponential = torch.optim.lr_scheduler.ExponentialLR
    of_a_scheduler(partial(optim.PyroLRScheduler, exponential), exponential, gamma=0.5)()


def says(words: str, name: str, **arguments: Any) -> Callable[[], None]:
    """torch's own refusal reaches the user of SVI."""

    def check() -> None:
        model, guide, *_, x = twins()
        svi = SVI(model, guide, getattr(optim, name)({"lr": 1e-3, **arguments}), Trace_ELBO())
        with pytest.raises((ValueError, RuntimeError), match=words):
            svi.step(x)

    return check


def half(step: int) -> float:
    return 0.5


BASE = "an abstract base, which takes no step of its own"
ONE = "it joins schedulers of one optimizer, and Pyro has an optimizer for each parameter"
OPTIM: dict[str, Place] = {
    **{
        name: of_torch(name)
        for name in (
            *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"),
            *("Rprop", "SGD"),
        )
        if hasattr(optim, name)
    },
    "AdagradRMSProp": agrees(of_an_optimizer(optim.AdagradRMSProp, optim.adagrad_rmsprop.AdagradRMSProp, eta=0.1)),
    "ClippedAdam": agrees(of_an_optimizer(optim.ClippedAdam, optim.clipped_adam.ClippedAdam, lr=1e-3)),
    "DCTAdam": agrees(of_an_optimizer(optim.DCTAdam, optim.dct_adam.DCTAdam, lr=1e-3)),
    "HorovodOptimizer": no_sense("it needs horovod; several devices are Lightning's here"),
    "Muon": Place("refused", says("2D", "Muon"), "2D"),
    "PyroOptim": agrees(of_pyro_optim),
    "PyroLRScheduler": agrees(of_pyro_scheduler),
    "SparseAdam": Place("refused", says("dense gradients", "SparseAdam"), "dense gradients"),
    "ChainedScheduler": no_sense(ONE),
    "ConstantLR": of_schedule("ConstantLR"),
    "CosineAnnealingLR": of_schedule("CosineAnnealingLR", T_max=4),
    "CosineAnnealingWarmRestarts": of_schedule("CosineAnnealingWarmRestarts", T_0=2),
    "CyclicLR": of_schedule("CyclicLR", base_lr=1e-3, max_lr=1e-2, step_size_up=2),
    "ExponentialLR": of_schedule("ExponentialLR", gamma=0.5),
    "LRScheduler": no_sense(BASE),
    "LambdaLR": of_schedule("LambdaLR", lr_lambda=half),
    "LinearLR": of_schedule("LinearLR"),
    "MultiStepLR": of_schedule("MultiStepLR", milestones=[1, 2]),
    "MultiplicativeLR": of_schedule("MultiplicativeLR", lr_lambda=half),
    "OneCycleLR": of_schedule("OneCycleLR", max_lr=1e-2, total_steps=5),
    "PolynomialLR": of_schedule("PolynomialLR", total_iters=4),
    "ReduceLROnPlateau": of_schedule("ReduceLROnPlateau", metric=True, patience=0),
    "SequentialLR": no_sense(ONE),
    "StepLR": of_schedule("StepLR", step_size=1, gamma=0.5),
    "_LRScheduler": no_sense(BASE),
}

PLACES = {f"{optim.__name__}.{name}": place for name, place in OPTIM.items()}


def test_every_optimizer_is_placed() -> None:
    assert unplaced((optim,), PLACES) == []


@pytest.mark.parametrize("name", sorted({*PLACES} & public(optim)))
def test_it_stands_where_it_was_placed(name: str) -> None:
    PLACES[name].check()


def test_the_verdicts_are_counted() -> None:
    found = counts(PLACES)
    sys.stdout.write(f"Pyro's optimizers: {found}\n")
    assert sum(found.values()) == len(PLACES)
