"""HDF5, as 3dshapes.h5 is: data sets that are read by slices, wherever in the file they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_tvae.locks import unlocked

from ..errors import Unsuitable
from .content import Content, Reopened, Request, Unchanged, choose_names

__all__ = ["WRITER", "datasets_of", "node", "read", "whole"]

WRITER = "an HDF5 file", "h5py"


def datasets_of(file: Any) -> dict[str, Any]:
    """The data sets of an open file by their names; what is behind links, to other files too, is not among them."""
    import h5py

    nodes: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            nodes[name] = node

    file.visititems(visit)
    return nodes


def read(path: Path, request: Request) -> Content:
    """The chosen data sets; the pixels stay in the file, which stays open as long as they are used."""
    import h5py  # takes a while, and few files need it

    unchanged = Unchanged(path)
    nodes = datasets_of(h5py.File(path, **unlocked(path)))
    key, labels_key = choose_names({name: node.shape or () for name, node in nodes.items()}, request)
    for name in (key, labels_key, *request.further):
        if name is not None and (nodes[name].external or nodes[name].is_virtual):
            raise Unsuitable(f"{name!r} is kept in other files, which are not opened; write its values into this one.")
    pixels = nodes[key]
    if pixels.dtype.kind not in "buif":
        raise Unsuitable(f"{key!r} has type {pixels.dtype}; expected numbers.")
    further = {name: [Reopened(unchanged, node, path, name)] for name in request.further}
    labels = None if labels_key is None else whole(nodes[labels_key])
    return Content(Reopened(unchanged, node, path, key), labels=labels, label_name=labels_key or "", further=further)


def node(path: Path, name: str) -> Any:
    """A data set of a file, which it keeps open."""
    import h5py

    return h5py.File(path, **unlocked(path))[name]


def whole(node: Any) -> NDArray[Any]:
    """The values of a data set; text as text."""
    import h5py

    return np.asarray(node.asstr()[()] if h5py.check_string_dtype(node.dtype) is not None else node[()])
