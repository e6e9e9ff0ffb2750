"""Batches: which part of what a loader hands out is x, which says what was observed, and what the others are."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from pyro_tvae.guides.base import blanked
from pyro_tvae.opening import unopened

from .randomness import random_states, restore

__all__ = ["Batch", "batch_of", "chosen", "is_mask", "n_sequences", "peek", "same_randomness", "tell_of_mask"]


class Batch(NamedTuple):
    """A batch in parts.

    Attributes:
        x: (B, S, channel, height, width).
        observed: (S,) or (B, S) booleans, true for frames that exist; None means all.
        others: the further entries of a mapping.
    """

    x: Tensor
    observed: Tensor | None
    others: Mapping[str, Any]


def batch_of(batch: Any) -> Batch:
    """A batch in parts: x is a tensor, the entry of that name in a mapping, or the first item of a tuple.

    ``observed`` is the entry of that name, or a tuple's second item if it is (B, S) booleans. Pixels that were not
    ``measured`` may hold anything, and are zeros in x.
    """
    if isinstance(batch, Mapping):
        if "x" not in batch:
            raise ValueError(f"fit: a batch has the entries {', '.join(map(str, batch))}; expected one called x.")
        others = {str(name): value for name, value in batch.items() if name not in ("x", "observed")}
        x: Any = batch["x"]
        if is_mask(others.get("measured")) and _fits(others["measured"], x):
            x = blanked(x, others)
        return Batch(x, batch.get("observed"), others)
    x = batch[0] if isinstance(batch, list | tuple) else batch
    if isinstance(batch, list | tuple) and len(batch) > 1 and isinstance(x, Tensor):
        second = batch[1]
        if isinstance(second, Tensor) and second.dtype == torch.bool and second.shape == x.shape[:2]:
            return Batch(x, second, {})
    return Batch(x, None, {})


def is_mask(value: object) -> bool:
    """Whether an entry called ``measured`` says of pixels whether they were, and is not something else of that name."""
    return isinstance(value, Tensor) and value.dtype == torch.bool and value.dim() == 5


def _fits(mask: Tensor, x: object) -> bool:
    sizes = x.shape if isinstance(x, Tensor) else ()
    return len(sizes) == mask.dim() and all(own in (1, size) for own, size in zip(mask.shape, sizes, strict=True))


def peek(loader: object) -> Any:
    """The first batch of a loader, read in this process and leaving its randomness as it was; None where it cannot be.

    What is read from a stream would be gone, so streams are left alone.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or not loader.batch_sampler:
        return None
    with same_randomness(loader):
        items = next(iter(loader.batch_sampler), None)
        if items is None:
            return None
        dataset = unopened(loader.dataset)
        fetch = getattr(dataset, "__getitems__", None)
        try:
            return loader.collate_fn(fetch(items) if fetch is not None else [dataset[item] for item in items])
        except Exception:
            if loader.num_workers:  # a data set may work in workers alone, which say by themselves what is wrong
                return None
            raise


def chosen(loader: DataLoader) -> Sequence[int] | None:
    """Which items of its data a loader takes, as of a fold of cross-validation; None for all."""
    sampler = getattr(loader.batch_sampler, "sampler", None)
    return sampler.indices if isinstance(sampler, SubsetRandomSampler) else None


def n_sequences(loader: object) -> int | None:
    """Of how many sequences the batches of a loader are, as far as it says."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is loader.batch_size is None:
        return None  # as of data that come in batches of their own
    some = chosen(loader)
    return sized_len(loader.dataset) if some is None else len(some)


def tell_of_mask(batch: object) -> None:
    """Warn of a batch whose second item may be meant to say which frames exist, and is not taken for that."""
    if isinstance(batch, list | tuple) and len(batch) > 1 and all(isinstance(one, Tensor) for one in batch[:2]):
        x, second = batch[:2]
        if second.dtype != torch.bool and second.shape == x.shape[:2] and {*second.unique().tolist()} == {0, 1}:
            warnings.warn(
                f"fit: the second item of a batch, {tuple(second.shape)} of {second.dtype}, is left alone, and every "
                "frame is taken for observed; where it says which frames exist, make it booleans.",
                stacklevel=5,
            )


@contextmanager
def same_randomness(loader: DataLoader) -> Iterator[None]:
    """Leave all random generators as they were, the global ones and those of a loader, its data and its samplers."""
    sampler: Any = loader.batch_sampler
    owners = (loader, loader.dataset, sampler, getattr(sampler, "sampler", None))
    own = [value for owner in owners for value in getattr(owner, "__dict__", {}).values()]
    generators = list({id(value): value for value in own if isinstance(value, torch.Generator)}.values())
    numpy = [
        (value.bit_generator, value.bit_generator.state) for value in own if isinstance(value, np.random.Generator)
    ]
    python = [(value, value.getstate()) for value in own if isinstance(value, random.Random)]
    states = random_states(generators)
    try:
        yield
    finally:
        restore(states, generators)
        for generator, state in numpy:
            generator.state = state
        for dice, before in python:
            dice.setstate(before)
