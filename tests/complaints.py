"""What a good complaint is, for the tests that hand in nonsense by the hundred."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import pyro_tvae
import pyro_tvae.inference

HOUSE = {str(Path(module).resolve().parent) for module in (pyro_tvae.__file__, pyro_tvae.inference.__file__)}
HOUSE |= {str(Path(folder).with_name("experiments")) for folder in HOUSE}
EXPECTED = (ValueError, OSError)
FAMILY = (ValueError, TypeError, LookupError, OSError, FloatingPointError)


def cases(number: int) -> Any:
    """The same so many cases every time, without a deadline."""
    return settings(
        max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


def answer(action: Callable[[], Any], *, deep: bool = False) -> tuple[Any, str | None]:
    """What the action returns, or the sentence that it was refused with; any other end is an error of the test.

    A complaint is one line, of the families that callers catch, and raised by a line of this project: what a library
    says deep inside is no answer to a user, unless ``deep`` allows it: Lightning's about its own options is one.
    """
    try:
        return action(), None
    except FAMILY as error:
        text = str(error)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = str(Path(frame.filename).resolve().parent)
        assert deep or any(where == folder or where.startswith(folder + os.sep) for folder in HOUSE), (frame, text)
        assert text, frame
        assert "\n" not in text, text
        assert len(text) < 1200, text
        return None, text


def damaged(content: bytes, seed: int) -> bytes:
    """A truncated, overwritten or padded copy."""
    dice = random.Random(seed)
    kind = dice.choice(("cut", "flip", "zeros", "junk", "pad", "empty"))
    place = dice.randrange(len(content))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << dice.randrange(8))]) + content[place + 1 :]
    if kind == "zeros":
        return content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :]
    if kind == "junk":
        return dice.randbytes(dice.randrange(1, 400))
    return content + dice.randbytes(20) if kind == "pad" else b""


def refused(action: Callable[[], object], kind: type[Exception] | tuple[type[Exception], ...] = EXPECTED) -> str:
    """The sentence, in one line, that an action is refused with."""
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text
