"""Own code: digests of the classes that a user wrote, as they run, so that code which was edited since is noticed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dis import get_instructions
from functools import cached_property, partial, partialmethod
from importlib.util import MAGIC_NUMBER
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .marks import mark
from .parts import Part, dotted

__all__ = ["digests", "edited", "several"]

INTERPRETER = "interpreter"  # beside the classes: bytes of code compare within one version of Python
COUNTS = "STORE_GLOBAL"  # what code does to a name of its module that is no constant
MANY = 10_000  # values of a table, more of which are data
OTHERS = {"pyro_tvae", "torch", "pyro", *sys.stdlib_module_names}
# What says nothing of what a class computes, or is in another order every time.
ASIDE = {"__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__"}


def digests(*modules: nn.Module) -> dict[str, str]:
    """Class -> digest of its code and of what that calls by name, of the user's classes that modules are made of.

    Not of source files, which may have been edited since they were imported. Empty where there are no such classes.

    Example:
        >>> import pyro_tvae
        >>> digests(pyro_tvae.CapsuleRoll(3, 0))
        {}
    """
    seen: set[int] = set()
    classes = {cls for module in modules for one in _objects(module, seen) for cls in type(one).__mro__ if _own(cls)}
    made: dict[str, str] = {}
    for cls in classes:
        with suppress(Exception):  # of objects that do not let themselves be looked at
            made[dotted(cls)] = hashlib.sha256("\n".join(_of(cls, set())).encode()).hexdigest()[:16]
    interpreter = f"{MAGIC_NUMBER.hex()}{sys.flags.optimize}"
    return {INTERPRETER: interpreter, **dict(sorted(made.items()))} if made else {}


def edited(now: Mapping[str, str], then: Mapping[str, str]) -> list[str]:
    """Names of the classes whose code is another one than then; none where another version of Python ran it."""
    if now.get(INTERPRETER) != then.get(INTERPRETER):
        return []
    return [name for name in now if name in then and now[name] != then[name]]


def several(codes: Mapping[str, Mapping[str, str]]) -> dict[str, list[list[str]]]:
    """Class -> whose code of it is the same, of those classes of which there are several codes.

    Args:
        codes: name -> its :func:`digests`.

    Example:
        >>> several({"a": {"mine.Guide": "1"}, "b": {"mine.Guide": "2"}, "c": {"mine.Guide": "1"}})
        {'mine.Guide': [['a', 'c'], ['b']]}
    """
    found: dict[str, dict[tuple[str | None, str], list[str]]] = {}
    for owner, code in codes.items():
        for name, digest in code.items():
            if name != INTERPRETER:
                found.setdefault(name, {}).setdefault((code.get(INTERPRETER), digest), []).append(owner)
    # Of another version of Python nothing can be said.
    return {name: [*same.values()] for name, same in found.items() if len(same) > len({version for version, _ in same})}


def _own(value: type | FunctionType | ModuleType) -> bool:
    """Whether something is of the user's, neither of a library nor Python's."""
    if isinstance(value, FunctionType):  # a wrapper bears the module of what it wraps
        name = str(value.__globals__.get("__name__", ""))
    else:
        name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name.partition(".")[0] not in OTHERS and not {"site-packages", "dist-packages"} & {*file.split("/")}


def _objects(value: Any, seen: set[int]) -> Iterator[object]:
    """Modules and parts, and those within that are children or arguments."""
    if id(value) in seen:
        return
    seen.add(id(value))
    inner: list[Any] = []
    if isinstance(value, nn.Module | Part):
        yield value
        inner = [*value.children()] if isinstance(value, nn.Module) else []
        inner += value.arguments().values() if isinstance(value, Part) else []
    elif isinstance(value, list | tuple | dict):
        inner = [*value.values()] if isinstance(value, dict) else [*value]
    for one in inner:
        yield from _objects(one, seen)


def _of(value: Any, seen: set[int]) -> Iterator[str]:
    """What a class, a function or a constant says, and whatever of the user's is called in it by name."""
    if isinstance(value, partial | partialmethod):
        for one in (value.func, value.args, value.keywords):
            yield from _of(one, seen)
        return
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    if isinstance(value, property | cached_property):
        value = value.fget if isinstance(value, property) else value.func
    while isinstance(value, FunctionType) and not _own(value) and "__wrapped__" in vars(value):
        value = vars(value)["__wrapped__"]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        yield " ".join([str(value.dtype), *map(str, value.shape), *(f"{one:.4e}" for one in mark(value))])
    elif _plain(value):
        yield _text(value)
    elif isinstance(value, dict | list | tuple) and len(value) <= MANY and id(value) not in seen:  # as of functions
        seen.add(id(value))
        for one in value.values() if isinstance(value, dict) else value:
            yield from _of(one, seen)
    elif not isinstance(value, type | FunctionType):
        value = type(value)  # of an object, as of one that is called
    if id(value) in seen or not isinstance(value, type | FunctionType) or not _own(value):
        return
    seen.add(id(value))
    if isinstance(value, type):
        for name, inner in sorted(vars(value).items()):
            if name not in ASIDE:
                yield name
                yield from _of(inner, seen)
        return
    for one in (value.__defaults__, value.__kwdefaults__, *_enclosed(value)):
        yield from _of(one, seen)
    counted = {one.argval for code in _codes(value.__code__) for one in get_instructions(code) if one.opname == COUNTS}
    for code in _codes(value.__code__):
        yield code.co_code.hex()
        for constant in code.co_consts:
            if constant != value.__doc__:
                yield from _of(constant, seen)
        yield from code.co_names
        for one in _named({*code.co_names} - counted, value.__globals__):
            yield from _of(one, seen)


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) <= MANY and all(_plain(one) for item in value.items() for one in item)
    if isinstance(value, tuple | list | set | frozenset):
        return len(value) <= MANY and all(map(_plain, value))
    return value is None or value is ... or isinstance(value, bool | int | float | complex | str | bytes)


def _text(value: Any) -> str:
    """As repr has it, of sets in an order."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(name)}: {_text(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, tuple | list | set | frozenset):
        items = [*map(_text, value)]
        return f"{type(value).__name__}{items if isinstance(value, tuple | list) else sorted(items)}"
    return repr(value)


def _enclosed(function: FunctionType) -> Iterator[Any]:
    """What a function holds of those around it, as one that another function made."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            yield cell.cell_contents


def _named(names: Set[str], scope: Mapping[str, Any]) -> Iterator[Any]:
    """What code calls by name, also of modules of the user's; of tables those that are called like constants."""
    scopes = [scope, *(vars(scope[name]) for name in sorted(names) if _is_own_module(scope.get(name)))]
    for one in scopes:
        for name in sorted(names & one.keys()):
            if name.isupper() or not isinstance(one[name], dict | list | set):
                yield one[name]


def _is_own_module(value: Any) -> bool:
    return isinstance(value, ModuleType) and _own(value)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those within."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)
