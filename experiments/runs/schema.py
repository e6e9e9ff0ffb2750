"""Schemas: what a record's TypedDict says, held against what a file holds, and the first difference in words.

A record may be damaged, made by hand, or a stranger's. It is checked once, where it is read, so that nothing behind
that meets a number that is none, or a text that no page and no terminal can show.
"""

from __future__ import annotations

import functools
import types
import unicodedata
from collections.abc import Mapping
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["problem"]

CONTAINERS: dict[type, Any] = {dict: dict[str, Any], list: list[Any]}
LARGEST = 1e100  # what sums of squares of do not overflow
WORDS = {
    str: "text",
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def problem(value: Any, kind: Any, where: str = "it") -> str | None:
    """The first thing in a value that is not as its type says, in words; None where all is.

    Numbers may be null everywhere, since JSON has no word for what is undefined, and so may whatever may be missing.
    What a type does not name is left alone: a newer version may have written it.

    Args:
        value: plain data, as JSON has it.
        kind: str, bool, int, float, None, Any, lists, mappings and unions of these, or a TypedDict.
        where: what the value is called in the words.

    Example:
        >>> problem({"epochs": [1, 2, "3"]}, dict[str, list[int]])
        'epochs[2] is text, expected a whole number'
    """
    if value is None and kind in (Any, object, int, float, type(None)):
        return None
    if kind in (Any, object):
        kind = CONTAINERS.get(type(value), type(value))
    if is_typeddict(kind):
        return _difference(value, kind, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        faults = [problem(value, one, where) for one in arguments]
        # Of several, what is wrong inside the one that it resembles.
        return None if None in faults else max((text for text in faults if text), key=lambda text: text.find(" is "))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            return _unlike(value, dict, where)
        return next(filter(None, (_inside(key, one, arguments[1], where) for key, one in value.items())), None)
    if origin is list:
        if not isinstance(value, list):
            return _unlike(value, list, where)
        return next(filter(None, (problem(one, arguments[0], f"{where}[{n}]") for n, one in enumerate(value))), None)
    return _plain(value, kind, where)


def _difference(value: Any, kind: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return _unlike(value, dict, where)
    for key, (own, needed) in _fields(kind).items():
        if key in value and (needed or value[key] is not None):
            text = _inside(key, value[key], own, where)
            if text:
                return text
        elif needed:
            return f"{where} has no {key}"
    return None


def _inside(key: Any, value: Any, kind: Any, where: str) -> str | None:
    text = _plain(key, str, f"a name in {where}")
    return text or problem(value, kind, key if where == "it" else f"{where}.{key}")


def _plain(value: Any, kind: Any, where: str) -> str | None:
    numbers = {float: (int, float), int: (int,)}
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, numbers.get(kind, kind)):
        return _unlike(value, kind, where)
    if isinstance(value, str):
        # Escapes move a terminal's cursor, and half a surrogate pair can be written into no file.
        if any(unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t" for one in value):
            return f"{where} holds a control character"
    elif isinstance(value, int | float) and not abs(value) <= LARGEST:
        return f"{where} is a number of more than 100 digits"
    return None


def _unlike(value: Any, kind: Any, where: str) -> str:
    own = "null" if value is None else WORDS.get(type(value), type(value).__name__)
    return f"{where} is {own}, expected {WORDS.get(kind, 'null')}"


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """What each key holds, and whether it has to be there."""
    said = get_type_hints(kind, include_extras=True)  # __required_keys__ does not see through postponed annotations
    return {
        key: (own, kind.__total__ and get_origin(said[key]) is not NotRequired)
        for key, own in get_type_hints(kind).items()
    }
