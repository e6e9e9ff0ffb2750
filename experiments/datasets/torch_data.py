"""Data that a program has already: a torch Dataset or DataLoader as images or sequences in splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, default_collate

from pyro_tvae.opening import Opened, unopened

from .axes import Axes, parse
from .errors import Unsuitable
from .factors import Known
from .looks import Look
from .masks import by_nan
from .own_files import Reading, to_splits
from .readers.content import Content, Pieces, Request
from .readers.pictures import pixels_of
from .splits import Splits
from .windows import Cut

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
    stride: int | None = None,
    dilation: int = 1,
    short: str | None = None,
    split: str | None = None,
    gap: int | None = None,
    mask: str | int | None = None,
    crop: int | Sequence[int] | None = None,
    resize: int | Sequence[int] | None = None,
    color: str | None = None,
    memory: float | None = 1.0,
    factors_key: str | int | Sequence[str | int] | None = None,
    factor_names: Sequence[str | None] | None = None,
    factor_axes: str | Sequence[str] | None = None,
    periods: Mapping[str, float] | None = None,
    frame_rate: float | None = None,
    rates_key: str | int | None = None,
    times_key: str | int | None = None,
) -> Splits:
    """A torch Dataset or DataLoader: still images, or sequences, which are used as they are, or films cut into windows.

    It is gone through once. Up to ``memory`` gigabytes of pixels are kept; of more, the items of each batch are read
    again when it is made. That takes a Dataset with a length, or a DataLoader of one in any order of all its items,
    joined in torch's own way; what can be gone through once only is kept whole.

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
        stride, dilation, short, split, gap: how films become windows, see :func:`.arrays`; items are films then, their
            first axis that of frames, of which each may have its own number.
        mask: ``"isnan"``, or the name or place of an item's mask; see :func:`.arrays`.
        crop, resize, color: what becomes of a frame, see :func:`.arrays`.
        memory: gigabytes of pixels that are kept; None: all.
        factors_key, factor_names, factor_axes, periods: of names or places of an item's factors, see :func:`.arrays`.
        frame_rate, rates_key, times_key: likewise, of films of other rates.

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
    name = f"DataLoader of {type(data.dataset).__name__}" if isinstance(data, DataLoader) else type(data).__name__
    cut = Cut(n_frames, stride, dilation, short, split, gap)
    try:
        asked = [factors_key] if isinstance(factors_key, str | int) else [*(factors_key or ())]
        known = Known(tuple(map(str, asked)), factor_names, factor_axes, periods)
        look, paced = Look(crop, resize, color), [None if one is None else str(one) for one in (rates_key, times_key)]
        shares = (validation, test)
        reading = Reading(range, None, mask, look, cut, memory, shares, seed, known, frame_rate, *paced)
        beside = [part for part in (*asked, rates_key, times_key) if part is not None]
        beside += [] if mask is None or by_nan(mask) else [mask]
        content = _gone_through(data, key, labels_key, beside, reading, name)
        length, span = (n_frames, cut.span) if frame_rate is None else (None, cut.span or n_frames)
        request = Request(axes=parse(axes), n_frames=length, span=span)
        return to_splits(content, request, reading, name)
    except Unsuitable as error:
        raise ValueError(f"{name}: {error}") from None


def _gone_through(
    data: Iterable[Any],
    key: str | int,
    labels_key: str | int | None,
    beside: Sequence[str | int],
    reading: Reading,
    name: str,
) -> Content:
    """All items, or what reads them again; their labels; and what else is beside each."""
    batched, ragged = isinstance(data, DataLoader), reading.cut.stride is not None or reading.cut.short is not None
    pixels: list[NDArray[Any]] = []
    further: dict[str | int, list[NDArray[Any]]] = {part: [] for part in beside}
    labels: list[Any] = []
    shapes: list[tuple[int, ...]] = []
    budget, again = reading.bytes, _again(data)

    def rows(item: Any, part: str | int) -> list[NDArray[Any]]:
        array = np.array(_array(_part(item, part, name)))  # of its own: some sources fill one array again and again
        return [*array] if batched else [array]

    data = unopened(data)
    unending = not hasattr(data, "__iter__")  # a Dataset may say by its length alone where it ends
    for item in _by_length(again) if unending and again is not None else data:
        for one in (own := rows(item, key)):
            shapes.append(one.shape)
            if one.shape[ragged:] != shapes[0][ragged:] or one.ndim != len(shapes[0]):
                raise Unsuitable(
                    f"item {len(shapes) - 1} has shape {one.shape}, but item 0 has {shapes[0]}; bring all to one size."
                )
        budget -= sum(one.nbytes for one in own)
        if budget < 0 and batched and again is not None:  # its Dataset is gone through instead, whose order is known
            return _gone_through(again, key, labels_key, beside, reading, name)
        labels += rows(item, labels_key) if labels_key is not None else []
        if budget >= 0 or again is None:
            pixels += own
            for part, values in further.items():
                values += rows(item, part)
    if not shapes:
        raise Unsuitable("it holds no items; expected images or sequences.")
    if again is not None and len(shapes) != len(again):
        raise Unsuitable(
            f"it gave {len(shapes)} of its {len(again)} items; a data set that raises StopIteration is taken to be at "
            "its end: let it raise another error, or say how long it is."
        )
    names = [f"item {place}" for place, _ in enumerate(shapes)]

    def pieces(part: str | int, kept: list[NDArray[Any]]) -> Pieces:
        load: Any = kept.__getitem__ if len(kept) == len(shapes) else partial(_read, again, part, name)
        own = load(0).shape[:1] == shapes[0][:1]
        return Pieces(load, names, [shape[0] for shape in shapes] if ragged and own else None)

    others = {str(part): [pieces(part, values)] for part, values in further.items()}
    joined = np.stack(labels) if labels else None
    return Content(pieces(key, pixels), labels=joined, label_name=str(labels_key), further=others)


def _again(data: Any) -> Any:
    """What the same items can be read from once more, by their places; None where there is no such thing."""
    if not isinstance(data, DataLoader):
        return Opened(data) if _by_place(data) else None
    orders = isinstance(data.sampler, SequentialSampler) or (
        isinstance(data.sampler, RandomSampler) and not data.sampler.replacement
    )
    own_batches = getattr(data.batch_sampler, "sampler", data.sampler) is not data.sampler
    if not (orders and _by_place(data.dataset) and data.collate_fn is default_collate) or own_batches or data.drop_last:
        return None
    own: Any = data.dataset
    return Opened(own) if len(data.sampler) == len(own) else None  # type: ignore[arg-type]


def _by_length(data: Any) -> Iterator[Any]:
    for place in range(len(data)):
        try:
            yield data[place]
        except StopIteration:  # which no generator may pass on
            return


def _by_place(data: Any) -> bool:
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _read(data: Any, key: str | int, name: str, place: int) -> NDArray[Any]:
    return _array(_part(data[place], key, name))


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
