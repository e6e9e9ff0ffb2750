"""Outputs: a file says what it was asked for, so that a repeat may replace it and nothing else does unasked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import read_record

__all__ = ["REQUEST", "check_replaceable", "digest", "request_of"]

REQUEST = "request"  # key of a record, or attribute of a file's groups


def digest(path: Path) -> str:
    """Of a file's content, to tell weights apart."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def request_of(path: Path) -> dict[str, Any] | None:
    """What a file was asked for; None where it does not say."""
    try:
        if path.suffix == ".json":
            stored: Any = read_record(path).get(REQUEST)
        elif path.is_dir():  # a Zarr store, whose attributes lie in JSON files of their own
            found = [json.loads(file.read_text()) for name in (".zattrs", "zarr.json") for file in path.rglob(name)]
            texts = [node.get(REQUEST) or node.get("attributes", {}).get(REQUEST) for node in found]
            stored = json.loads(next(text for text in texts if text))
        else:
            import h5py

            with h5py.File(path) as file:
                stored = json.loads(
                    next(node.attrs[REQUEST] for node in (file, *file.values()) if REQUEST in node.attrs)
                )
    except (OSError, ValueError, LookupError, AttributeError, TypeError, StopIteration):
        return None
    return stored if isinstance(stored, dict) else None


def check_replaceable(path: Path, request: Mapping[str, Any], overwrite: bool) -> None:
    """Raise FileExistsError where a file is there that was asked for otherwise, unless it may be overwritten."""
    if overwrite or not path.exists():
        return
    stored = request_of(path)
    wanted = json.loads(json.dumps(dict(request)))
    if stored == wanted:
        return  # the same command again: what it writes is what is there
    differs = [] if stored is None else sorted(name for name in wanted | stored if wanted.get(name) != stored.get(name))
    why = f"was made with other {', '.join(differs)}" if differs else "is there already"
    raise FileExistsError(f"{path} {why}; give --overwrite to replace it, or --output for another file.")
