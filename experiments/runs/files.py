"""Text and JSON files, written whole or not at all, and read with a sentence where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyro_tvae.files import atomic_write

__all__ = ["finite", "read_record", "write_text"]


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that holds one mapping; ValueError where it does not."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and make it again.") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}, not a record; delete it and make it again.")
    return record


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all: readers see the old one or the new one, never a half."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them.

    Example:
        >>> finite({"elbo": float("nan"), "counts": (1, 2.5)})
        {'elbo': None, 'counts': [1, 2.5]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
