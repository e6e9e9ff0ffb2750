"""Judging: what every measure of a fitted pair runs in: evaluation mode, no gradients, one thread at a time."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

import torch
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.lift_messenger import LiftMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.scale_messenger import ScaleMessenger
from pyro.poutine.substitute_messenger import SubstituteMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn

from .naming import NamedModule

__all__ = [
    "as_they_were",
    "check_seed",
    "check_whole",
    "evaluating",
    "in_turn",
    "judges",
    "reads",
    "refuse_inference_mode",
    "seeded",
]

P = ParamSpec("P")
T = TypeVar("T")

CHANGING = (
    ConditionMessenger,
    LiftMessenger,
    MaskMessenger,
    ReparamMessenger,
    ReplayMessenger,
    ScaleMessenger,
    SubstituteMessenger,
)
SEEDS = 2**62  # torch takes 64 bits, and some measures add to a seed
LONG = 60  # seconds
_turn = threading.RLock()


def _anew() -> None:
    """A forked process has but one thread, and none that would ever let go of another's turn."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


@contextmanager
def in_turn() -> Iterator[None]:
    """Let threads take turns, since random generators and Pyro's stack of handlers are the whole process's.

    Warns:
        UserWarning: this one has waited for a minute.
    """
    turn = _turn
    if not turn.acquire(timeout=LONG):
        warnings.warn(
            f"a thread has waited {LONG} s for the fit or the measure of another one, since threads take turns; where "
            "that one waits for what this one makes, such as data, neither ever ends: make them in another process, or "
            "before.",
            stacklevel=2,
        )
        turn.acquire()
    try:
        yield
    finally:
        turn.release()


@contextmanager
def as_they_were(*programs: object) -> Iterator[list[nn.Module]]:
    """All modules of these programs, each put back into its mode, training or evaluation, at the end."""
    modules = list(dict.fromkeys(_modules(programs)))
    modes = [module.training for module in modules]
    try:
        yield modules
    finally:
        for module, mode in zip(modules, modes, strict=True):
            _set_mode(module, mode)


@contextmanager
def evaluating(*programs: object) -> Iterator[None]:
    """All modules of these programs in evaluation mode, with what was loaded into Pyro's store since."""
    with as_they_were(*programs) as modules:
        for module in modules:
            _set_mode(module, False)
            if isinstance(module, NamedModule):
                module.follow_store()
        yield


def _set_mode(module: nn.Module, training: bool) -> None:
    if module.training != training:
        if "training" in vars(module):  # what Pyro does at every assignment takes long
            vars(module)["training"] = training
        else:
            module.training = training


def _modules(program: object) -> Iterator[nn.Module]:
    """Those of a module, in a handler of Pyro's, a partial or a method of it, and of pairs and tables of such."""
    if isinstance(program, Mapping | tuple | list):
        for inner in program.values() if isinstance(program, Mapping) else program:
            yield from _modules(inner)
    elif callable(program):
        program = inspect.unwrap(program)
        owner = getattr(program, "__self__", program) if inspect.ismethod(program) else program
        if isinstance(program, functools.partial):
            yield from _modules((program.func, program.args, program.keywords))
        elif isinstance(owner, nn.Module):
            yield from owner.modules()


def judges(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator of a measure: every module among its arguments is in evaluation mode for as long as it lasts.

    Numbers are so the same before and after ``save`` and ``load``, whatever mode a pair is in; a module in the closure
    of a function stays in its own. What was loaded into Pyro's store is taken over, as by a call. No gradients are
    kept, and threads take turns. A measure that draws in a plate of its own is refused inside one of Pyro's, inside a
    trace, and inside any other handler, which would change what it draws or counts.
    """
    return _measure(function, draws=True)


def reads(function: Callable[P, T]) -> Callable[P, T]:
    """The same of what draws nothing, and may be asked inside a Pyro program too."""
    return _measure(function, draws=False)


def _measure(function: Callable[P, T], draws: bool) -> Callable[P, T]:
    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        check_seed(options.get("seed"), owner=function.__name__)
        with in_turn(), evaluating(args, options), torch.no_grad():
            _refuse_surroundings(function.__name__, (*args, *options.values()), draws)
            return function(*args, **options)

    return call


def _refuse_surroundings(owner: str, given: tuple[object, ...], draws: bool) -> None:
    if any(isinstance(value, Tensor) and torch._C._functorch.is_batchedtensor(value) for value in given):
        raise ValueError(
            f"{owner}: called under torch.vmap, where no values can be looked at; call it once, with all sequences as "
            "one batch."
        )
    for handler in _PYRO_STACK if draws else ():
        if isinstance(handler, IndepMessenger | TraceMessenger):
            where = f"the plate {handler.name!r}" if isinstance(handler, IndepMessenger) else "a trace"
            raise ValueError(
                f"{owner}: called inside {where} of Pyro's, where its own draws have no place; call it outside, with "
                "all sequences at once."
            )
        if isinstance(handler, CHANGING):
            name = type(handler).__name__.removesuffix("Messenger").lower()
            raise ValueError(
                f"{owner}: called inside Pyro's handler {name!r}, which would change what is drawn or counted in part; "
                "put the handler around the model, and call it outside."
            )


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run a block under its own seed and leave torch's global generators as they were; None draws from those."""
    check_seed(seed, 2 * SEEDS)
    with in_turn():
        if seed is None:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(int(seed))
            yield


def check_seed(seed: object, most: int = SEEDS, owner: str = "") -> None:
    """Raise ValueError where a seed is neither None nor a whole number from 0 to below ``most``."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < most):
        raise ValueError(f"{owner}{': ' * bool(owner)}seed is {seed!r}; expected a whole number from 0 to {most - 1}.")


def check_whole(owner: str, least: int = 1, **numbers: Any) -> None:
    """Raise ValueError at the first of these that is no whole number, or below ``least``."""
    for name, value in numbers.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{owner}: {name} is {value!r}; expected a whole number of at least {least}.")


def refuse_inference_mode(owner: str) -> None:
    """Raise RuntimeError where gradients that are needed cannot be had."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{owner}: called inside torch.inference_mode, in which there are no gradients to move by; call it "
            "outside, or under torch.no_grad."
        )
