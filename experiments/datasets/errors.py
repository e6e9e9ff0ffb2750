"""Errors: data that are not there, and files that hold something else than was wanted."""

from __future__ import annotations

__all__ = ["DataNotFound", "Unsuitable"]


class DataNotFound(FileNotFoundError):
    """A data set is not where it was looked for; the message says where that was and what to do."""


class Unsuitable(ValueError):
    """A file can be read, and does not hold what is wanted; the message follows the file's name."""
