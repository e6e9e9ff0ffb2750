"""Wording: errors of libraries on one line; needs no torch, which commands that compute nothing do not load."""

from __future__ import annotations

__all__ = ["in_words"]


def in_words(error: BaseException) -> str:
    """What an error says, on one line, without the stack in C++ that torch adds to some.

    Example:
        >>> in_words(RuntimeError("no room\\nException raised from f at a.h:1 (most recent call first): …"))
        'no room'
    """
    return " ".join(str(error).partition("Exception raised from ")[0].split())
