"""Mutations: seeded damage of every kind to a file that was good, for tests that hand in bad input by the thousand."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from complaints import damaged

TEXTS = [
    "",
    "x",
    "=1+1",
    "<b>x</b>",
    "$x^$",
    "\\frac{",
    "a|b\n# c",
    "[x](y)",
    "\x1b[31m",
    "\ud800",
    "../../x",
    "é" * 300,
]
NUMBERS = [0, 1, -1, 1.5, -0.0, 1e-320, 1e308, -1e308, 2**63, 10**30, float("nan"), float("inf"), -float("inf")]
JUNK: list[Any] = [
    None,
    True,
    False,
    *TEXTS,
    *NUMBERS,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    {"": None},
    ["x", 1],
    [1.5] * 50,
]


def junk(dice: random.Random) -> Any:
    """Something of any type; sometimes nested more deeply than any of ours."""
    if dice.random() < 0.04:
        value: Any = 1
        for _ in range(dice.choice((30, 300))):
            value = [value] if dice.random() < 0.5 else {"a": value}
        return value
    return copy.deepcopy(dice.choice(JUNK))


def changed(tree: Any, dice: random.Random) -> Any:
    """A copy of plain data with one to three things in it of another type, missing, added, doubled or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        places = _places(tree)
        if not places or dice.random() < 0.01:
            return junk(dice)
        owner, key = dice.choice(places)
        kind = dice.choice(("replace", "replace", "replace", "remove", "add", "rename", "double", "move"))
        if kind == "remove":
            del owner[key]
        elif kind == "add" and isinstance(owner, dict):
            owner[dice.choice(["new", "", "_target_", "$", "<b>", "\x07"])] = junk(dice)
        elif kind == "rename" and isinstance(owner, dict):
            owner[dice.choice(["new", "", "=x", "a/b"])] = owner.pop(key)
        elif kind == "double" and isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        elif kind == "move":
            other, place = dice.choice(places)
            owner[key] = copy.deepcopy(other[place])
        else:
            owner[key] = junk(dice)
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) at any depth."""
    if not isinstance(tree, dict | list):
        return []
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    return [place for key in keys for place in [(tree, key), *_places(tree[key])]]


def spoiled(content: bytes, dice: random.Random) -> bytes:
    """Bytes that were cut, overwritten, written in another encoding, or replaced by something else altogether."""
    kind = dice.randrange(8)
    if kind < 4:
        return damaged(content, dice.randrange(10**9))
    if kind == 4:
        return content.decode("latin-1").encode(dice.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
    if kind == 5:
        return dice.choice((b"[", b'{"a":', b"- ", b"{")) * dice.choice((10, 1000, 100_000))
    if kind == 6:
        return dice.choice(
            (b"null", b"3", b'"x"', b"[]", b"{}", b"1e999", b"9" * 5000, b"\x00" * 64, b"\xff\xfe", b"PK\x03\x04")
        )
    return content + content


def spoiled_json(tree: Any, dice: random.Random, dump: Callable[[Any], str] = json.dumps) -> bytes:
    """A record's file: mostly whole and wrong inside, sometimes damaged."""
    if dice.random() < 0.15:
        return spoiled(json.dumps(tree).encode(), dice)
    return dump(changed(tree, dice)).encode("utf-8", "surrogatepass")
