"""Former keywords: options that have moved into an object still work for one version, with a DeprecationWarning."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar, cast

from pyro_tvae.former_names import warn

__all__ = ["gathered"]

P = ParamSpec("P")
T = TypeVar("T")


def gathered(option: str, kind: type[Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator of a function whose keywords have become fields of ``kind``, which its parameter ``option`` takes.

    Raises:
        TypeError: when it is called, for a keyword that it neither has nor had, or both the object and its fields.
    """
    moved = {field.name for field in fields(kind)}

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        own, name = {*inspect.signature(function).parameters}, function.__name__

        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> T:
            former = {key: options[key] for key in options if key in moved}
            for key in options.keys() - own - moved:
                close = difflib.get_close_matches(key, sorted(own | moved), 1)
                now = [f"{option}={kind.__name__}({near}=…)" if near in moved else f"{near}=…" for near in close]
                expected = now[0] if now else f"some of {', '.join(sorted(own))}"
                raise TypeError(f"{name}: there is no option {key!r}; expected {expected}.")
            if former:
                given = ", ".join(f"{key}=…" for key in former)
                if options.get(option) is not None:
                    raise TypeError(f"{name}: {given} beside {option}; expected {option}={kind.__name__}({given}).")
                warn(f"{name}({given})", f"{name}({option}={kind.__name__}({given}))", 2)
                kept = {key: value for key, value in options.items() if key not in moved}
                options = cast(Any, kept | {option: kind(**former)})
            return function(*args, **options)

        return call

    return decorate
