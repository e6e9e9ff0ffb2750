"""Zarr, a folder of chunks: arrays that are read by slices, at any depth of groups."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Unsuitable
from .content import Content, Reopened, Request, Unchanged, choose_names, install

__all__ = ["METADATA", "WRITER", "read"]

WRITER = "a Zarr store", "zarr"
METADATA = ("zarr.json", ".zarray", ".zgroup")


def read(path: Path, request: Request) -> Content:
    """The chosen arrays; the pixels stay in their chunks."""
    _check_codecs(path)
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise install("zarr", path) from None
    nodes = _nodes(path)
    key, labels_key = choose_names({name: node.shape for name, node in nodes.items()}, request)
    if nodes[key].dtype.kind not in "buif":
        raise Unsuitable(f"{key!r} has type {nodes[key].dtype}; expected numbers.")
    absent = nodes[key].nchunks - nodes[key].nchunks_initialized
    if absent:
        warnings.warn(
            f"{path}: {absent} of {nodes[key].nchunks} chunks of {key or 'the array'} are not there and read as "
            f"{nodes[key].fill_value}: as many had no other values when they were written, or the folder was copied "
            "in part.",
            stacklevel=2,
        )
    labels = None if labels_key is None else np.asarray(nodes[labels_key][...])
    further = {name: [_reopened(path, name)] for name in request.further}
    return Content(_reopened(path, key), labels=labels, label_name=labels_key or "", further=further)


def _reopened(path: Path, name: str) -> Reopened:
    """An array, and what shows that it was written anew; single chunks may lie in more folders than can be watched."""
    within = path / name
    return Reopened(Unchanged(within, within / "c", *(within / file for file in METADATA)), _node, path, name)


def _nodes(path: Path) -> dict[str, Any]:
    """All arrays of a store by their names; an array alone has none."""
    import zarr

    root = zarr.open(path, mode="r")
    if isinstance(root, zarr.Array):
        return {"": root}
    return {name: node for name, node in sorted(root.members(max_depth=None)) if isinstance(node, zarr.Array)}


def _node(path: Path, name: str) -> Any:
    import zarr

    root: Any = zarr.open(path, mode="r")
    return root[name] if name else root


def _check_codecs(path: Path) -> None:
    """The second version of the format can pickle objects: that is refused before anything is opened."""
    for name in METADATA:
        for file in sorted(path.rglob(name)):
            if file.is_file() and "pickle" in _words(json.loads(file.read_text(encoding="utf-8"))):
                raise Unsuitable(f"{file.relative_to(path)} asks for pickled objects, and nothing is ever unpickled.")


def _words(node: Any) -> set[str]:
    if isinstance(node, dict):
        node = [*node.values()]
    return {str(node)} if not isinstance(node, list) else {word for part in node for word in _words(part)}
