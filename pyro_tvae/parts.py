"""Parts: objects that remember how they were built, so that a file can describe them and a fresh copy can be made.

A saved model is weights plus a JSON description of its parts. The description names classes: ours by their public path,
``pyro_tvae.MLP``, wherever they are defined; those of others by module and name. Only public parts of ours, and parts
that are already imported, are found, so a file can never make Python import or run anything else.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Container, Mapping, Sequence
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from .former_names import ARGUMENTS, current, follow_methods, warn
from .wording import in_words

__all__ = ["ArgumentError", "Part", "UnknownPartError"]

# Set while a part is built from a description, which may be a stranger's file: then no path in it is opened.
LARGEST = 2**20  # of the sizes in a description, over which constructors loop; a file may say any number
DESCRIBED: ContextVar[bool] = ContextVar("DESCRIBED", default=False)


class UnknownPartError(LookupError):
    """A description names a class that is not an imported part."""


class ArgumentError(TypeError):
    """Arguments that a part cannot be built from."""


class Part:
    """Mixin that records the arguments of the outermost constructor of every subclass."""

    _classes: dict[str, type[Part]] = {}  # noqa: RUF012 - one table for all parts, on purpose
    _arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Part._classes[dotted(cls)] = cls
        follow_methods(cls)
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, defaults included."""
        return dict(self.__dict__.get("_arguments", {}))


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)
    names = {former for table in ARGUMENTS.values() for former in table} - {*signature.parameters}

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if not names.isdisjoint(kwargs):
            renamed = _renamed(type(self), signature.parameters)
            for name in kwargs.keys() & renamed.keys():
                warn(f"{type(self).__name__}({name}=…)", f"{renamed[name]}=…", 2)
            kwargs = {current(name, renamed): value for name, value in kwargs.items()}
        outermost = "_arguments" not in self.__dict__
        if outermost:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}: {error}; it takes {_names(signature)}.") from None
            bound.apply_defaults()
            arguments = dict(list(bound.arguments.items())[1:])
            self.__dict__["_arguments"] = arguments
        try:
            init(self, *args, **kwargs)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            # What is checked raises ValueError with a sentence of its own; what a constructor stumbles over gets one.
            if not outermost or isinstance(error, ArgumentError):
                raise
            given = ", ".join(f"{name}={_short(value)}" for name, value in self.__dict__["_arguments"].items())
            sentence = f"{type(self).__name__} cannot be built from {given} ({in_words(error)})."
            raise ArgumentError(" ".join(sentence.split())) from error

    return __init__


def hold(module: nn.Module, name: str, value: Tensor, *, learned: bool) -> None:
    """Give a part a tensor of its own: a parameter where it is learned, else a buffer."""
    if learned:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def _names(signature: inspect.Signature) -> str:
    return ", ".join(list(signature.parameters)[1:]) or "no argument"


def dotted(cls: Any) -> str:
    """Module and name of a class or a function."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _public(name: str) -> type[Part] | None:
    """The part that is the attribute of that name of the package, if it is public."""
    package: Any = import_module(__package__ or "")  # as its users see it, its parts loaded by their names
    value = getattr(package, name) if name in package.__all__ else None
    return value if isinstance(value, type) and issubclass(value, Part) and value is not Part else None


def _path(cls: type) -> str:
    """What a file calls a class: the public path of ours, which outlives any move, and the dotted name of others."""
    return f"pyro_tvae.{cls.__name__}" if _public(cls.__name__) is cls else dotted(cls)


def _named(name: str) -> type[Part]:
    """The part that a file calls so, or called so once.

    Raises:
        UnknownPartError: there is none.
    """
    package, _, attribute = current(name).rpartition(".")
    part = (_public(attribute) if package == "pyro_tvae" else None) or Part._classes.get(name)
    if part is None:
        ours = name.startswith("pyro_tvae.")
        remedy = "update pyro-tvae, if a newer one wrote it" if ours else "import its module first, then retry"
        raise UnknownPartError(f"the file describes a part {name!r} that is not loaded; {remedy}.")
    return part


def describe(value: Any, references: Mapping[str, object] | None = None, whose: str = "") -> Any:
    """A JSON-ready description of a part and, recursively, of the parts it was built from.

    Args:
        value: the part.
        references: objects that are described elsewhere, by the names under which :func:`build` will be given them.
        whose: how the sentence about what no file can hold begins, ``"MLP: decoder_widths holds "``.

    Raises:
        TypeError: an argument is neither a part nor plain data.
    """
    for name, one in (references or {}).items():
        if value is one:
            return {"known": name}
    if isinstance(value, Part):
        cls = type(value)
        arguments = {
            name: describe(argument, references, f"{cls.__name__}: {name} holds ")
            for name, argument in value.arguments().items()
        }
        return {"part": _path(cls), "arguments": arguments}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: describe(item, references, whose) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item, references, whose) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = "dict of other keys than strings" if isinstance(value, dict) else type(value).__name__
    raise TypeError(
        f"{whose}a {kind} cannot be written into a model file; parts take numbers, strings, lists and other "
        "parts (classes that inherit from pyro_tvae.Part)."
    )


def build(description: Any, **references: Any) -> Any:
    """Build what :func:`describe` described.

    Args:
        description: of a part, or plain data.
        references: what the description calls by a name; the outermost part is given an argument of that name as well.

    Raises:
        UnknownPartError: the description names a class that is not an imported part.
        ValueError: something in it is of another type than it has to be.
    """
    if isinstance(description, list):
        return tuple(build(item, **references) for item in description)
    if not isinstance(description, dict):
        return description
    if description.keys() == {"known"}:
        return references[description["known"]]
    if "part" not in description:
        return {key: build(item, **references) for key, item in description.items()}
    name, described = description["part"], description.get("arguments", {})
    if not isinstance(name, str) or not isinstance(described, dict) or not {*description} <= {"part", "arguments"}:
        raise ValueError(f"a part is {_short(description)}; expected its name, and a mapping of its arguments")
    part = _named(name)
    arguments = {key: build(item, **references) for key, item in described.items()}
    for name, value in arguments.items():
        sizes = value if isinstance(value, tuple) else (value,)
        if name != "seed" and any(isinstance(size, int) and abs(size) > LARGEST for size in sizes):
            raise ValueError(f"{part.__name__}: {name} is {_short(value)}; expected no size above {LARGEST:,}")
    return _call(part, arguments, references)


def _renamed(cls: type, parameters: Container[str]) -> dict[str, str]:
    """Former arguments of a class and of those it inherits from -> arguments."""
    return {
        former: now
        for one in reversed(cls.__mro__)
        for former, now in ARGUMENTS.get(_path(one), {}).items()
        if former not in parameters  # a class of others may take by that name what it always did
    }


def _call(part: type[Part], arguments: dict[str, Any], references: Mapping[str, Any]) -> Any:
    """Call a constructor with arguments as they were bound, those of ``*args`` and ``**kwargs`` among them."""
    signature = inspect.signature(part)
    renamed = _renamed(part, signature.parameters)
    own = {name: value for name, value in references.items() if name in signature.parameters}
    bound = inspect.BoundArguments(signature, own | arguments)
    further = {name: value for name, value in arguments.items() if name not in signature.parameters}
    keywords = {current(name, renamed): value for name, value in (further | bound.kwargs).items()}
    if part.__module__.startswith(f"{__package__}."):  # what others mean by their annotations is theirs
        _check_types(part, signature, own | {current(name, renamed): value for name, value in arguments.items()})
    token = DESCRIBED.set(True)
    try:
        return part(*bound.args, **keywords)
    finally:
        DESCRIBED.reset(token)


def _check_types(part: type[Part], signature: inspect.Signature, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError at an argument that its annotation does not allow; a description can hold any."""
    hints = get_type_hints(part.__init__)
    for name, value in arguments.items():
        one = signature.parameters.get(name)
        if one is None or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or _fits(value, hints.get(name, Any)):
            continue
        raise ValueError(f"{part.__name__}: {name} is {_short(value)}; expected {one.annotation}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether plain data, or a part, is what an annotation says; what is no annotation of such fits."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, int) and value in (0, 1)
    return not isinstance(hint, type) or isinstance(value, hint)
