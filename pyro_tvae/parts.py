"""Parts: objects that remember how they were built, so that a file can describe them and a fresh copy can be made.

A saved model is weights plus a JSON description of its parts. The description names classes; only classes that are
already imported are found, so a file can never make Python import or run anything.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["Part", "UnknownPartError", "build", "describe"]


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
        Part._classes[f"{cls.__module__}.{cls.__qualname__}"] = cls
        if "__init__" in cls.__dict__:
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, defaults included."""
        return dict(self.__dict__.get("_arguments", {}))


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
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
            sentence = f"{type(self).__name__} cannot be built from {given} ({error})."
            raise ArgumentError(" ".join(sentence.split())) from error

    return __init__


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def _names(signature: inspect.Signature) -> str:
    return ", ".join(list(signature.parameters)[1:]) or "no argument"


def describe(value: Any) -> Any:
    """A JSON-ready description of a part and, recursively, of the parts it was built from.

    Raises:
        TypeError: an argument is neither a part nor plain data.
    """
    if isinstance(value, Part):
        cls = type(value)
        arguments = {name: describe(argument) for name, argument in value.arguments().items()}
        return {"part": f"{cls.__module__}.{cls.__qualname__}", "arguments": arguments}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a {type(value).__name__} cannot be written into a model file; parts take numbers, strings, lists and other "
        "parts (classes that inherit from pyro_tvae.Part)."
    )


def build(description: Any, **extra: Any) -> Any:
    """Build what :func:`describe` described; ``extra`` are further arguments of the outermost part.

    Raises:
        UnknownPartError: the description names a class that is not an imported part.
    """
    if isinstance(description, list):
        return tuple(build(item) for item in description)
    if not isinstance(description, dict):
        return description
    if "part" not in description:
        return {key: build(item) for key, item in description.items()}
    name = description["part"]
    if name not in Part._classes:
        raise UnknownPartError(
            f"the file describes a part {name!r} that is not loaded; import its module first, then retry."
        )
    arguments = {key: build(item) for key, item in description.get("arguments", {}).items()}
    return Part._classes[name](**arguments, **extra)
