"""Names in Pyro's parameter store: one per living module, so that two models never share a parameter without a word."""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import pyro
import torch
from pyro.nn import PyroModule
from pyro.nn.module import _Context
from pyro.params.param_store import param_with_module_name
from torch import Tensor, nn

__all__ = ["NamedModule", "check_store", "restoring"]

_Self = TypeVar("_Self", bound="NamedModule")

_count = itertools.count()
# A name belongs to whoever runs in its context: to a module, its parts, and shallow copies, which are the same weights.
_living: WeakValueDictionary[str, _Context] = WeakValueDictionary()
_lenient = False


class NamedModule(PyroModule):
    """A PyroModule whose parameters enter Pyro's store below a name of its own, ``<class>_<count>`` or a chosen one.

    Pyro finds parameters by name, and what the store holds under a name stands for the module's own. Two models under
    one name would therefore share their weights, or train nothing, without a word. So a name belongs to one living
    module; deep copies and what was unpickled get a new one, as does an unnamed module whose turn's name the store
    knows already.

    A chosen name is what finds parameters again in ``pyro.get_param_store().load(file)``: a module of that name takes
    over the stored values when it is next called. A copy, a pickle or a model file keeps a chosen name where nobody
    living has it and the store has nothing under it, so that restored weights are never replaced.

    Args:
        name: the chosen name, or None.

    Raises:
        ValueError: the name is a living module's, or no name for Pyro's store.
    """

    _chosen: str | None

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name="")
        if name is not None and (not isinstance(name, str) or not name or {".", "$"} & {*name}):
            raise ValueError(
                f"{type(self).__name__}: name is {name!r}; expected a word without '.' and '$' to be found by in "
                "Pyro's parameter store, or None."
            )
        if name is not None and not _lenient and _taken(name):
            gc.collect()  # what nobody can reach any more is not living
            if _taken(name):
                raise ValueError(
                    f"{type(self).__name__}: the name {name!r} is that of a living module, with which it would share "
                    "its parameters in Pyro's store; choose another name, or delete that module first."
                )
        self._chosen = name
        # Built anew, a module of a chosen name is to find what the store holds; a restored one brings its own.
        self._settle(adopting=not _lenient)

    def _settle(self, *, adopting: bool = False) -> None:
        """Take the chosen name where it is to be had, and a fresh one otherwise."""
        name = self._chosen
        if name is None or (not adopting and (_taken(name) or _stored(name))):
            name = next(name for name in self._fresh_names() if not _taken(name) and not _stored(name))
        context = _Context()
        _living[name] = context
        _rename(self, name, context)

    @classmethod
    def _fresh_names(cls) -> Iterator[str]:
        return (f"{cls.__name__}_{n}" for n in _count)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.agree_with_store()
        return super().__call__(*args, **kwargs)

    def agree_with_store(self) -> None:
        """Take over what was loaded into the store, and put there what was replaced in the module; every call does so.

        Pyro goes on with a stored parameter and leaves a plain module's own as it is: the module would then stay
        untrained.
        """
        if self._pyro_context.active or pyro.settings.get("module_local_params"):
            return
        store: Any = pyro.get_param_store()
        in_store: dict[str, Tensor] = self.__dict__.setdefault("_in_store", {})
        for name, parameter in _named(self, self._pyro_name):
            stored = store._params.get(name)
            if stored is not None and stored is not parameter:
                if stored is not in_store.get(name):  # not one that this module put there
                    if stored.shape != parameter.shape:
                        raise ValueError(
                            f"Pyro's parameter store holds {name} of shape {tuple(stored.shape)}, and the module's own "
                            f"has {tuple(parameter.shape)}; build it as it was when the store was saved, give it "
                            "another name, or call pyro.clear_param_store()."
                        )
                    with torch.no_grad():
                        parameter.copy_(stored)
                del store[name]  # the module's own takes its place at the next statement
            in_store[name] = parameter

    def follow_store(self) -> None:
        """Take over what was loaded into the store since, as a call would, and stand there in its place."""
        if self._pyro_context.active or pyro.settings.get("module_local_params"):
            return
        params: Any = pyro.get_param_store()._params
        in_store = self.__dict__.get("_in_store", {})
        for name, parameter in _named(self, self._pyro_name):
            stored = params.get(name)
            if stored is not None and stored is not parameter and stored is not in_store.get(name):
                self.agree_with_store()
                self._state_parameters()
                return

    def claim_store(self) -> list[str]:
        """Let the module's own parameters stand, whatever the store holds under their names; those that were others."""
        store: Any = pyro.get_param_store()
        in_store: dict[str, Tensor] = self.__dict__.setdefault("_in_store", {})
        others = []
        for name, parameter in _named(self, self._pyro_name):
            stored = store._params.get(name)
            if stored is not None and stored is not parameter:
                if stored is not in_store.get(name):
                    others.append(name)
                del store[name]
            in_store[name] = parameter
        return others

    def enter_store(self) -> None:
        """Put the parameters of a module of a chosen name into the store, as calls do, for whoever saves that."""
        if self._chosen != self._pyro_name or self._pyro_context.active or pyro.settings.get("module_local_params"):
            return
        self.claim_store()
        self._state_parameters()

    def _state_parameters(self) -> None:
        with self._pyro_context, torch.no_grad():
            for part in self.modules():
                if isinstance(part, PyroModule):
                    for key in (*part._parameters, *part._pyro_params, *part._modules):
                        getattr(part, key)  # which is a statement

    def _state(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_in_store"}

    def __getstate__(self) -> dict[str, Any]:
        for parameter in self.parameters():
            parameter.__dict__.pop("unconstrained", None)  # a weak reference of the store's, which cannot be pickled
        return self._state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # No constructor is called when something is unpickled, perhaps in a process where the old name is another's.
        super().__setstate__(state)
        self.__dict__.setdefault("_chosen", None)
        self._settle()

    def __copy__(self: _Self) -> _Self:
        # A shallow copy holds the very same parameters: under the same name they stay one.
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self: _Self, memo: dict[int, Any]) -> _Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self._state().items()})
        twin._settle()
        return twin


def check_store(program: object) -> None:
    """Raise ValueError where Pyro would put other parameters from its store in the place of a module's own.

    As of two autoguides, which are all called ``AutoNormal`` or the like: the one that is called later becomes the
    other one. Modules with names of their own are none of them.
    """
    if not isinstance(program, PyroModule) or isinstance(program, NamedModule):
        return
    if program._pyro_context.active or pyro.settings.get("module_local_params"):
        return
    params: Any = pyro.get_param_store()._params
    for part in program.modules():
        if not isinstance(part, PyroModule) or isinstance(part, NamedModule):
            continue
        for key, parameter in part._parameters.items():
            name = f"{part._pyro_name}.{key.removesuffix('_unconstrained')}"
            stored = params.get(name)
            if parameter is not None and stored is not None and stored is not parameter:
                raise ValueError(
                    f"Pyro's parameter store holds another {name} than this {type(program).__name__} has, such as that "
                    "of another module of its class, and would put it in its place; call pyro.clear_param_store() to "
                    f"keep the module's own, or call the {type(program).__name__} once to take over what is stored."
                )


@contextmanager
def restoring() -> Iterator[None]:
    """Within it, a constructor whose chosen name is taken chooses a fresh one: what it builds is a copy."""
    global _lenient
    before, _lenient = _lenient, True
    try:
        yield
    finally:
        _lenient = before


def _taken(name: str) -> bool:
    return name in _living


def _stored(name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in pyro.get_param_store())


def _rename(module: PyroModule, name: str, context: _Context) -> None:
    """Name a module and its parts; Pyro's own way refuses parts that were in use before they were copied."""
    module.__dict__.update(_pyro_name=name, _pyro_context=context)
    for key, part in module._modules.items():
        if isinstance(part, PyroModule):
            _rename(part, f"{name}.{key}", context)


def _named(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Names in the store of what a module holds, constrained parameters aside, whose two sides Pyro keeps together."""
    for key, parameter in module._parameters.items():
        if parameter is not None and not key.endswith("_unconstrained"):
            yield f"{prefix}.{key}", parameter
    for key, part in module._modules.items():
        if isinstance(part, PyroModule):
            yield from _named(part, f"{prefix}.{key}")
        elif part is not None:
            for name, parameter in part.named_parameters():
                yield param_with_module_name(f"{prefix}.{key}", name), parameter
