"""Optimizers: what a user brings, torch's or Pyro's, as one torch optimizer that holds whatever is to be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.optim import HorovodOptimizer, PyroLRScheduler, PyroOptim
from pyro.optim.multi import MultiOptimizer
from pyro.params.param_store import module_from_param_with_module_name, normalize_param_name, user_param_name
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_tvae.parts import dotted

__all__ = [
    "Clips",
    "Made",
    "Optimizers",
    "adam",
    "check_optimizer",
    "check_resumed",
    "make",
    "settings",
    "take_over",
    "unscales",
]

Optimizers = Callable[[Iterable[Tensor]], Optimizer] | PyroOptim
Clips = list[tuple[Tensor, Mapping[str, float]]]
UNCONSTRAINED = "_unconstrained"  # what Pyro appends to the name of a PyroParam's parameter


class Made(NamedTuple):
    """A torch optimizer, the scheduler that Pyro's object wraps, and what bounds single parameters' gradients."""

    optimizer: Optimizer
    scheduler: Any = None
    clips: Clips = []  # noqa: RUF012 - never changed


def adam(parameters: Iterable[Tensor]) -> Optimizer:
    """The default optimizer: Adam at 1e-3 in one fused kernel."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def check_optimizer(maker: object) -> None:
    """Raise TypeError or ValueError where no torch optimizer can be made of it."""
    if maker is None:
        return
    if isinstance(maker, HorovodOptimizer | MultiOptimizer):
        raise TypeError(
            f"fit: optimizer is a {type(maker).__name__} of Pyro, which wraps no torch optimizer of one process; give "
            "one such as pyro.optim.Adam({'lr': 1e-3}) or torch.optim.Adam."
        )
    if isinstance(maker, PyroOptim):
        if maker.optim_objs or maker._state_waiting_to_be_consumed:
            raise ValueError(
                "fit: the Pyro optimizer holds the state of another run, which would be lost; make a fresh one (and "
                "resume a fit by resume=…)."
            )
    elif isinstance(maker, nn.Module | Optimizer) or not callable(maker):
        made = "" if isinstance(maker, str) else ", not what it makes"
        raise TypeError(
            f"fit: optimizer is of type {type(maker).__name__}; expected a function of the parameters that makes one, "
            f"such as torch.optim.Adam, or pyro.optim.Adam({{'lr': 1e-3}}){made}."
        )


def make(maker: Optimizers, named: Mapping[str, Tensor]) -> Made:
    """The optimizer of parameters by name; frozen ones (``requires_grad=False``) may be left out.

    Raises:
        TypeError: no torch optimizer was made.
        ValueError: there is nothing to train, or the optimizer leaves out what is to be trained.
    """
    wanted = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    if not wanted:
        raise ValueError("fit: there is nothing to train; every parameter of model and guide has requires_grad=False.")
    made = _from_pyro(maker, wanted) if isinstance(maker, PyroOptim) else Made(maker(iter(named.values())))
    if not isinstance(made.optimizer, Optimizer):
        raise TypeError(
            f"fit: optimizer made a {type(made.optimizer).__name__}; expected that it returns a torch optimizer of the "
            "parameters it is called with, such as lambda parameters: torch.optim.Adam(parameters, lr=1e-3)."
        )
    held = {id(parameter) for group in made.optimizer.param_groups for parameter in group["params"]}
    left = [name for name, parameter in wanted.items() if id(parameter) not in held]
    if left:
        raise ValueError(
            f"fit: the optimizer holds {len(wanted) - len(left)} of {len(wanted)} parameters to be trained and leaves "
            f"out {left[0]}; make it of the parameters it is called with, and set requires_grad=False for those that "
            "are to stay."
        )
    return made


def _from_pyro(maker: PyroOptim, named: Mapping[str, Tensor]) -> Made:
    """Pyro makes one torch optimizer for each parameter; here those with equal arguments share a group."""
    groups: list[tuple[dict[str, Any], list[Tensor]]] = []
    clips: Clips = []
    for name, parameter in named.items():
        arguments = _arguments(maker.pt_optim_args, name, one=getattr(maker, "pt_optim_args_argc", 2) == 1)
        members = next((members for others, members in groups if others == arguments), None)
        if members is None:
            groups.append((arguments, [parameter]))
        else:
            members.append(parameter)
        clip = _arguments(maker.pt_clip_args, name, one=False)
        if clip:
            clips.append((parameter, clip))
    constructor: Any = maker.pt_optim_constructor
    parts = [constructor(members, **arguments) for arguments, members in groups]
    optimizer, *others = parts
    for other in others:
        for group in other.param_groups:
            optimizer.add_param_group(group)
    if isinstance(maker, PyroLRScheduler):
        return Made(optimizer, maker.pt_scheduler_constructor(optimizer, **maker.kwargs), clips)
    return Made(optimizer, None, clips)


def _arguments(given: Any, name: str, one: bool) -> dict[str, Any]:
    """Pyro's arguments of a parameter: said once, or by a function of its name in one piece or in two."""
    if not callable(given):
        return dict(given)
    name = name.removesuffix(UNCONSTRAINED)
    pieces = (module_from_param_with_module_name(name), user_param_name(name))
    arguments = given(normalize_param_name(name)) if one else given(*pieces)
    if not isinstance(arguments, dict):
        raise TypeError(
            f"fit: the Pyro optimizer's arguments for {name} are of type {type(arguments).__name__}; expected a "
            "dictionary."
        )
    return arguments


def clip(clips: Clips) -> None:
    """Bound gradients as Pyro does: each parameter by itself, first its norm, then its values."""
    for parameter, bounds in clips:
        PyroOptim._clip_grad(parameter, **bounds)


def unscales(optimizer: Optimizer) -> bool:
    """Whether an optimizer, a fused one, unscales float16's gradients in its own step, too late to clip them."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def settings(optimizer: Optimizer, scheduler: Any) -> dict[str, Any]:
    """What optimizer and scheduler were built with, in plain numbers and words, for a checkpoint."""
    return {
        "name": dotted(type(optimizer)),
        "sizes": [len(group["params"]) for group in optimizer.param_groups],
        "groups": [_plain(group) for group in optimizer.param_groups],
        "schedule": None if scheduler is None else dotted(type(scheduler)),
        "scheduler": None if scheduler is None else _plain(scheduler.state_dict()),
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is said in numbers and words; of schedulers in a scheduler too."""
    simple = bool | int | float | str | dict | None
    plain = {}
    for name, value in values.items():
        if isinstance(value, Tensor) and value.dim() == 0:
            value = value.item()  # such as a learning rate on the device
        if isinstance(value, list | tuple):
            value = type(value)(_plain(item) if isinstance(item, dict) else item for item in value)
        many = value if isinstance(value, list | tuple) else [value]
        if name not in ("params", "param_names", "_last_lr") and all(isinstance(item, simple) for item in many):
            plain[name] = _plain(value) if isinstance(value, dict) else value
    return plain


def check_resumed(built: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raise ValueError where an optimizer cannot go on from another's state."""
    if built["name"] != stored["name"] or built["sizes"] != stored["sizes"]:
        was, now = (f"{one['name']} of {sum(one['sizes'])} parameters" for one in (stored, built))
        if sum(stored["sizes"]) == sum(built["sizes"]):
            was, now = (f"{text} in {len(one['sizes'])} groups" for text, one in ((was, stored), (now, built)))
        raise ValueError(
            f"fit: cannot resume, the checkpoint's optimizer is {was}, this one {now}; resume with the same optimizer, "
            "or begin a new fit from the weights."
        )
    was, now = (one.get("schedule", built["schedule"]) or "none" for one in (stored, built))
    if was != now:
        raise ValueError(
            f"fit: cannot resume, the checkpoint's schedule is {was}, this one {now}; resume with the same schedule, "
            "or begin a new fit from the weights."
        )


def take_over(optimizer: Optimizer, scheduler: Any, built: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Let what was built otherwise than in the checkpoint win, which is returned in words; what was run goes on.

    The checkpoint's state of optimizer and scheduler was loaded before, and with it the settings of then.
    """
    moved, told = False, dict[str, None]()
    for group, new, old in zip(optimizer.param_groups, built["groups"], stored["groups"], strict=True):
        for name, value in new.items():
            if name in old and old[name] == value:
                continue
            if name == "lr" and scheduler is not None and "initial_lr" in new:
                continue  # where the schedule has led to: moves with the rate that it began at
            moved = moved or name == "initial_lr"
            if name in old:  # other versions of torch know others
                now, was = (f"{one:.6g}" if isinstance(one, float) else str(one) for one in (value, old[name]))
                told |= {f"{name}={now}, which was {was}": None}
            if name == "initial_lr" and old.get(name):
                group["lr"] = group["lr"] * (value / old[name])
            if isinstance(group.get(name), Tensor):
                group[name].fill_(value)
            else:
                group[name] = value
    if scheduler is None:
        return [*told]
    if stored["scheduler"] is not None and built["scheduler"] is not None:
        moved = _renew(scheduler, built["scheduler"], stored["scheduler"]) or moved
    if moved and isinstance(scheduler, LRScheduler) and hasattr(scheduler, "_get_closed_form_lr"):
        for group, rate in zip(optimizer.param_groups, scheduler._get_closed_form_lr(), strict=True):
            group["lr"] = rate
    return [*told]


def _renew(part: Any, built: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Set what differs, in the schedulers of a scheduler too; whether anything did."""
    moved = False
    for name, value in built.items():
        if name not in stored or stored[name] == value:
            continue
        before = stored[name]
        lists = isinstance(value, list | tuple) and isinstance(before, list | tuple) and len(value) == len(before)
        if lists and all(isinstance(one, dict) for one in (*value, *before)):
            for inner, new, old in zip(getattr(part, name), value, before, strict=True):
                moved = _renew(inner, new, old) or moved
        else:
            (part if isinstance(part, dict) else vars(part))[name] = value  # some schedulers hold dictionaries
            moved = True
    return moved
