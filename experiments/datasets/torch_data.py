"""Data that a program has already: a torch Dataset or DataLoader as images or sequences in splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .axes import Axes, parse
from .own_files import to_items
from .readers.content import Content, Request
from .readers.pictures import pixels_of
from .sources import Unsuitable
from .splits import Splits, split

__all__ = ["from_torch"]


def from_torch(
    data: Iterable[Any],
    key: str | int = 0,
    labels_key: str | int | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    axes: Axes = None,
    range: Sequence[float] | None = None,
    n_frames: int | None = None,
) -> Splits:
    """A torch Dataset or DataLoader, gone through once: still images, or sequences, which are used as they are.

    Args:
        data: of items that are tensors, arrays or Pillow's pictures; pairs of these and a label; or mappings. A
            DataLoader's batches are joined.
        key: of an item that is a mapping, the name of its pixels; of a pair, their place.
        labels_key: likewise of its label. Default: none, all −1.
        validation: share of all items.
        test: share of all items.
        seed: of the split.
        axes: one letter for each axis of all items together, such as NCHW or NSHWC; see :func:`.arrays`.
        range: values of black and white, [low, high]. Default: 0 and 255 for uint8, 0 and 1 for floating point.
        n_frames: frames of a sequence, where sequences are wanted: leaves the readings that have as many.

    Raises:
        ValueError: there are no items, they are unlike each other, or they can be read in several ways.

    Example:
        >>> import torch
        >>> films = torch.utils.data.TensorDataset(torch.rand(10, 6, 1, 8, 8), torch.arange(10) % 2)
        >>> parts = from_torch(films, labels_key=1, n_frames=6)
        >>> parts.train.pixels.shape, parts.train.about
        (torch.Size([6, 6, 1, 8, 8]), 'TensorDataset read as 10 sequences of 6 frames, 1 channel, 8 x 8 pixels \
(axes=NSCHW, inferred); 0 is black and 1 is white; labels 1: 2 kinds (0, 1)')
    """
    name, batched = type(data).__name__, hasattr(data, "batch_size") and hasattr(data, "dataset")
    if batched:
        name = f"DataLoader of {type(data.dataset).__name__}"  # type: ignore[attr-defined]
    pixels: list[NDArray[Any]] = []
    labels: list[Any] = []
    for item in data:
        pixels.append(_array(_part(item, key, name)))
        if labels_key is not None:
            labels.append(np.asarray(_part(item, labels_key, name)))
        if pixels[-1].shape[batched:] != pixels[0].shape[batched:]:
            raise ValueError(
                f"{name}: item {len(pixels) - 1} has shape {pixels[-1].shape}, but item 0 has {pixels[0].shape}; bring "
                "all to one size."
            )
    if not pixels:
        raise ValueError(f"{name}: it holds no items; expected images or sequences.")
    join = np.concatenate if batched else np.stack
    request = Request(axes=parse(axes), n_frames=n_frames)
    content = Content(join(pixels), labels=join(labels) if labels else None, label_name=str(labels_key))
    try:
        whole = to_items(content, request, range, None, name)
    except Unsuitable as error:
        raise ValueError(f"{name}: {error}") from None
    return split(whole, validation, test, seed)


def _part(item: Any, key: str | int, name: str) -> Any:
    """The pixels or the label of one item."""
    if not isinstance(item, Mapping | tuple | list):
        if key == 0:
            return item
        raise ValueError(f"{name}: {key!r} is to be a part of each item, but items are {type(item).__name__}s.")
    try:
        return item[key]  # type: ignore[index]
    except (LookupError, TypeError):
        parts = ", ".join(map(repr, item)) if isinstance(item, Mapping) else f"0 to {len(item) - 1}"
        raise ValueError(f"{name}: an item has no part {key!r}; expected one of {parts}.") from None


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return pixels_of(value) if hasattr(value, "getexif") else np.asarray(value)
