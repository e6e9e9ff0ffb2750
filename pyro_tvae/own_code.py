"""Own code: digests of the classes that a user wrote, as they run, so that code which was edited since is noticed."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dis import get_instructions
from functools import cached_property, partial, partialmethod
from importlib.util import MAGIC_NUMBER, resolve_name
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from .parts import Part, dotted

__all__ = ["digests", "edited", "several"]

INTERPRETER = "interpreter"  # beside the classes: bytes of code compare within one version of Python
LOOKS = 2  # counts the ways in which this module has looked at code, between which nothing compares either
LOADED = ("LOAD_GLOBAL", "LOAD_NAME")
MANY = 10_000  # values of a table, more of which are data
OTHERS = {"pyro_tvae", "torch", "pyro", *sys.stdlib_module_names}
# What says nothing of what a class computes, or is in another order every time.
ASIDE = {"__doc__", "__module__", "__qualname__", "__firstlineno__", "__static_attributes__"}
_read: dict[str, tuple[tuple[dict[str, Any], Any], dict[str, list[Any]]]] = {}  # file -> as what, and its content


def digests(*modules: nn.Module, functions: Iterable[Any] = ()) -> dict[str, str]:
    """Class -> digest of its code and of what that calls by name, of the user's classes that modules are made of.

    And of functions of the user's, where some are given.

    With the numbers, words and tuples that it names, but for those that code counts on. What else it names, as tables
    and tensors, a program may change while it runs: of that counts how the module's file makes it, as the file stood
    when it was first asked for, as a fit does when it begins. Empty where there are no such classes.

    Example:
        >>> import pyro_tvae
        >>> digests(pyro_tvae.CapsuleRoll(3, 0))
        {}
    """
    seen: set[int] = set()
    classes = {cls for module in modules for one in _objects(module, seen) for cls in type(one).__mro__ if _own(cls)}
    made: dict[str, str] = {}
    own = [one for one in functions if isinstance(one, FunctionType) and _own(one)]
    for one in (*classes, *own):
        with suppress(Exception):  # of objects that do not let themselves be looked at
            said = [made.get(dotted(one), ""), *_Code().of(one)]  # several functions may have one name, as <lambda>
            made[dotted(one)] = hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]
    interpreter = f"{MAGIC_NUMBER.hex()}{sys.flags.optimize}.{LOOKS}"
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


class _Code:
    """What a class of the user's says, and whatever of his is called in it by name, each once."""

    def __init__(self) -> None:
        self._seen: set[int | _Imported] = set()
        self._counted: dict[int, set[str]] = {}  # by namespace

    def of(self, value: Any) -> Iterator[str]:
        """What a class, a function, an object that is called, or a constant says."""
        if isinstance(value, partial | partialmethod):
            yield from self._all(value.func, *value.args, *_items(value.keywords))
            return
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        if isinstance(value, property | cached_property):
            value = value.fget if isinstance(value, property) else value.func
        # Wrappers of others', functions or objects as those of functools.lru_cache.
        while not (isinstance(value, type) or (isinstance(value, FunctionType) and _own(value))) and (
            inner := getattr(value, "__dict__", {}).get("__wrapped__")
        ):
            value = inner
        if _plain(value):
            yield repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
            return
        if isinstance(value, tuple):
            yield from self._all(*(value if len(value) <= MANY else ()))
            return
        if not isinstance(value, type | FunctionType):
            value = type(value)
        if id(value) in self._seen or not _own(value):
            return
        self._seen.add(id(value))
        yield from self._of_class(value) if isinstance(value, type) else self._of_function(value)

    def _all(self, *values: Any) -> Iterator[str]:
        for one in values:
            yield from self.of(one)

    def _of_class(self, cls: type) -> Iterator[str]:
        counted = {name for function in _functions(vars(cls)) for name in _stored(function, "STORE_ATTR")}
        for name, value in sorted(vars(cls).items()):
            if name not in ASIDE and not (name in counted and _plain(value)):
                said = [*self.of(value), *self._made(value, f"{cls.__qualname__}.{name}", _scope_of(cls))]
                yield from [name, *said] if said else ()  # of what others put there, nothing

    def _of_function(self, function: FunctionType) -> Iterator[str]:
        yield from self._all(*(function.__defaults__ or ()), *_items(function.__kwdefaults__ or {}))
        yield from self._made(function, function.__qualname__, function.__globals__)
        counted = _stored(function, "STORE_DEREF")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # it is empty
                if name not in counted:
                    yield from self.of(cell.cell_contents)
        yield from self._of_code(function.__code__, function.__globals__, function.__doc__)

    def _of_code(self, whole: CodeType, scope: dict[str, Any], doc: str | None = None) -> Iterator[str]:
        for code in _codes(whole):
            yield code.co_code.hex()
            yield from self._all(*(one for one in code.co_consts if one != doc))
            yield from code.co_names
            yield from self._named(code, scope)

    def _named(self, code: CodeType, scope: dict[str, Any]) -> Iterator[str]:
        """What is said by what code calls by name, also in modules of the user's."""
        called = _named_by(code, *LOADED)  # of attributes that are called the same as a value of the module, none
        modules = (vars(scope[name]) for name in sorted(called) if _is_own_module(scope.get(name)))
        for one, names in ((scope, called), *((module, {*code.co_names}) for module in modules)):
            if id(one) not in self._counted:
                self._counted[id(one)] = {name for each in _functions(one) for name in _stored(each, "STORE_GLOBAL")}
            for name in sorted(names & one.keys() - self._counted[id(one)]):
                yield from self.of(one[name])
                yield from self._made(one[name], name, one)

    def _made(self, value: Any, name: str, scope: dict[str, Any]) -> Iterator[str]:
        """What the module's file says of how a value that does not speak for itself is made; each once."""
        if _plain(value) or isinstance(value, ModuleType):
            return
        said = _expressions(scope)
        for one in (*said.get(name, ()), *said.get("*", ())):
            key: Any = id(one)
            if isinstance(one, _Imported):
                key = one = _Imported(one.module, name if one.name == "*" else one.name)
            if key in self._seen:
                continue
            self._seen.add(key)
            if isinstance(one, CodeType):
                yield from self._of_code(one, scope)
            elif _is_own_module(module := sys.modules.get(one.module)):
                yield from self._made(value, one.name, vars(module))


def _scope_of(cls: type) -> dict[str, Any]:
    """The module that a class is of; nothing where that is of no process, as for a class of a removed module."""
    return vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}


class _Imported(NamedTuple):
    """Where a name is of that a file imports."""

    module: str
    name: str


def _expressions(scope: dict[str, Any]) -> dict[str, list[CodeType | _Imported]]:
    """What a module's file says of names, as it stood when it was first asked for since the module was imported.

    What was edited after that is not what runs, until the module is reloaded, which gives it another spec.
    """
    file, imported = scope.get("__file__"), (scope, scope.get("__spec__"))
    if not isinstance(file, str):
        return {}
    if file not in _read or any(one is not other for one, other in zip(imported, _read[file][0], strict=True)):
        _read[file] = imported, _expressions_in(file, str(scope.get("__package__") or ""))
    return _read[file][1]


def _expressions_in(file: str, package: str) -> dict[str, list[CodeType | _Imported]]:
    """Name -> what a module's file makes it of outside of functions, and of a function its defaults; as code."""
    found: dict[str, list[CodeType | _Imported]] = {}

    def look(within: ast.AST, prefix: str = "") -> None:
        for one in ast.iter_child_nodes(within):
            names, values = set[str](), list[ast.expr | None]()
            if isinstance(one, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
                values = [one.value]
            elif isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
                names, values = {one.name}, [*one.decorator_list, *one.args.defaults, *one.args.kw_defaults]
            elif isinstance(one, ast.ClassDef):
                names, values = {one.name}, [*one.decorator_list, *(keyword.value for keyword in one.keywords)]
                look(one, f"{prefix}{one.name}.")
            elif isinstance(one, ast.Expr) and isinstance(one.value, ast.Call):  # as TABLE.update(…)
                inner: ast.AST = one.value.func
                while isinstance(inner, ast.Attribute | ast.Subscript):
                    inner = inner.value
                if isinstance(inner, ast.Name) and inner is not one.value.func:
                    names, values = {inner.id}, [one.value]
            elif isinstance(one, ast.ImportFrom):
                with suppress(ImportError):  # beyond the package
                    module = resolve_name("." * one.level + (one.module or ""), package)
                    for part in one.names:
                        found.setdefault(prefix + (part.asname or part.name), []).append(_Imported(module, part.name))
            elif isinstance(one, ast.stmt | ast.excepthandler | ast.match_case):
                look(one, prefix)
            code = [compile(ast.Expression(value), file, "eval") for value in values if value is not None]
            for name in names if code else ():
                found.setdefault(prefix + name, []).extend(code)

    with suppress(OSError, SyntaxError, ValueError):  # of no file, or of one without source
        look(ast.parse(Path(file).read_bytes()))
    return found


def _items(given: Mapping[str, Any]) -> list[Any]:
    return [part for item in sorted(given.items()) for part in item]


def _functions(scope: Mapping[str, Any]) -> Iterator[FunctionType]:
    """The functions in a namespace, and the methods of classes in it."""
    for value in scope.values():  # of which some may not let themselves be looked at
        kind = type(value)
        if issubclass(kind, classmethod | staticmethod):
            value, kind = value.__func__, type(value.__func__)
        if issubclass(kind, type) and _own(value):
            yield from (one for one in vars(value).values() if isinstance(one, FunctionType))
        elif kind is FunctionType:
            yield value


def _stored(function: FunctionType, how: str) -> set[str]:
    """What code writes by an instruction, so that it is no constant."""
    return {name for code in _codes(function.__code__) for name in _named_by(code, how)}


def _named_by(code: CodeType, *how: str) -> set[str]:
    """The names that instructions of a kind are about."""
    return {one.argval for one in get_instructions(code) if one.opname in how}


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return len(value) <= MANY and all(map(_plain, value))
    return value is None or value is ... or isinstance(value, bool | int | float | complex | str | bytes)


def _is_own_module(value: Any) -> bool:
    return isinstance(value, ModuleType) and _own(value)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those within."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)
