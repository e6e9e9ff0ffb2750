"""A Hugging Face data set on disk: the folder that ``Dataset.save_to_disk`` writes; nothing is fetched."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsuitable
from .content import Content, Pieces, Request, choose_names, install
from .pictures import pixels_of

__all__ = ["METADATA", "WRITER", "read"]

WRITER = "a Hugging Face data set", "Dataset.save_to_disk"
METADATA = ("dataset_dict.json", "state.json")


def read(path: Path, request: Request) -> Content:
    """The chosen columns, those of a split under ``split/column``; pictures are decoded when they are wanted."""
    try:
        from datasets import ClassLabel, Dataset, DatasetDict, load_from_disk
    except ImportError:
        raise install("huggingface", path) from None
    data = load_from_disk(str(path))
    splits: dict[str, Dataset] = {"": data}
    if isinstance(data, DatasetDict):
        splits = {f"{name}/": part for name, part in data.items()}
    columns = {f"{split}{name}": (part, name) for split, part in splits.items() for name in part.column_names}
    key, labels_key = choose_names(dict.fromkeys(columns, ()), request)
    part, name = columns[key]
    pixels = Pieces(partial(_row, part, name, key), [f"row {place}" for place in range(len(part))])
    kinds = {"picture": ("NHWC",), "pictures": ("NSHWC",)}
    axes = kinds.get(_kind(part[0][name]), ())
    further = {name: [_column(*columns[name], name)] for name in request.further}
    if labels_key is None:
        return Content(pixels, axes, further=further)
    owner, column = columns[labels_key]
    feature = owner.features[column]
    classes = tuple(feature.names) if isinstance(feature, ClassLabel) else ()
    return Content(pixels, axes, np.asarray(owner[column][:]), labels_key, classes, further=further)


def _column(part: Any, name: str, key: str) -> Pieces:
    """What each row has there, as one array, in which rows may be of unlike lengths."""
    numbers = _kind(part[0][name]) == "numbers"
    lengths = [len(value) for value in part[name] if isinstance(value, list)] if numbers else []
    rows = [f"row {place}" for place in range(len(part))]
    return Pieces(partial(_row, part, name, key), rows, lengths if len(lengths) == len(part) else None)


def _row(part: Any, name: str, key: str, place: int) -> NDArray[Any]:
    return _array(part[place][name], key)


def _kind(value: Any) -> str:
    if hasattr(value, "mode"):
        return "picture"
    return "pictures" if isinstance(value, list) and value and hasattr(value[0], "mode") else "numbers"


def _array(value: Any, key: str) -> NDArray[Any]:
    kind = _kind(value)
    if kind == "numbers":
        value = np.asarray(value)
        if value.dtype.kind not in "buif":
            raise Unsuitable(f"{key!r} is no column of pictures or of arrays of numbers; choose one that is.")
        return value
    return pixels_of(value) if kind == "picture" else np.stack([pixels_of(one) for one in value])
