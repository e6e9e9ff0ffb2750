"""The course of a fit: what it was told and shown, kept in checkpoints, so that none goes on otherwise in silence."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from pyro_tvae.former_names import current
from pyro_tvae.marks import TOPOGRAPHY, marks
from pyro_tvae.opening import unopened
from pyro_tvae.own_code import edited
from pyro_tvae.parts import describe

from .batches import chosen, same_randomness
from .fingerprints import alike, fingerprint

__all__ = ["CODE", "check_course", "described", "differing", "other_part", "parts_of"]

LOOKED_AT = 8  # items of data that may lie on a disk
CODE = "code"  # digests of that of the user's classes
ORDER = ("batch_size", "data")  # what the order of an epoch's sequences hangs on


def parts_of(model: Any, guide: Any) -> dict[str, Any]:
    """What model and guide are made of, by dotted names, long values as a digest; empty where they do not say.

    Shapes of weights do not tell: energies of another kernel, or of another matrix, have weights of the same shapes.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), 3, 1, 3, pyro_tvae.CapsuleRoll(3, 0))
        >>> parts_of(model, pyro_tvae.default_guide(model))["model.topography.kernel"]
        3
    """
    try:
        said = {**_flat(describe(model), "model"), **_flat(describe(guide, {"model": model}), "guide")}
        if model.topography.dense and any(True for _ in model.topography.parameters()):
            return said  # a W that is learned is another at every step
        return {**said, "the neighborhood of model.topography": _coarse(marks(model, model, {})[TOPOGRAPHY])}
    except (AttributeError, TypeError, ValueError):
        return {}


def _coarse(numbers: list[float]) -> str:
    """Numbers that another processor's rounding leaves alike, all but never."""
    return " ".join(f"{one / (numbers[0] or 1):.4f}" for one in numbers)


def other_part(now: Mapping[str, Any], then: Mapping[str, Any]) -> str | None:
    """The first name under which model or guide have something else than then; None where they have not."""
    return next((name for name in now if name in then and _named(now[name]) != _named(then[name])), None)


def _named(value: Any) -> Any:
    """A class by its present name, wherever it is defined: a script is its module, and may be another one's."""
    return current(value).rpartition(".")[2] if isinstance(value, str) else value


def _flat(node: Any, name: str) -> dict[str, Any]:
    if isinstance(node, Mapping) and "part" in node:
        inner = [_flat(value, f"{name}.{key}") for key, value in node["arguments"].items() if not _begins(key)]
        return {name: node["part"]} | {key: value for part in inner for key, value in part.items()}
    text = json.dumps(node)
    return {name: node if len(text) <= 80 else _digest(text)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _begins(argument: str) -> bool:
    """Whether an argument says where a weight begins, which a checkpoint says for itself."""
    return argument == "mu" or argument.startswith("initial_")


def described(loader: object) -> dict[str, Any]:
    """A loader's number of sequences, fingerprint of its data and size of batches, as far as reading leaves no trace.

    Tensors are looked at whole; of other data, which may lie on a disk, a few items, the first to the last, unless two
    readings differ. What is read from a stream would be gone, so streams are left alone.
    """
    if not isinstance(loader, DataLoader):
        return {}
    data: dict[str, Any] = {}
    dataset: Any = loader.dataset
    if not isinstance(dataset, IterableDataset):
        length = sized_len(dataset)
        data = {} if length is None else {"sequences": length}
        if isinstance(dataset, TensorDataset):
            data |= fingerprint(dataset.tensors)
        elif length:
            data |= _of_items(loader, sorted({(length - 1) * n // (LOOKED_AT - 1) for n in range(LOOKED_AT)}))
        if data:
            some = chosen(loader)
            data["chosen"] = "all" if some is None else _digest(str(sorted(map(int, some))))
            # Which part of data it is that are others at every reading, as augmented ones.
            if parts := [str([*map(int, one.indices)]) for one in _subsets(dataset)]:
                data["subset"] = _digest(" ".join(parts))
    batches = {"batch_size": loader.batch_size, "drop_last": loader.drop_last} if loader.batch_size else {}
    return ({"data": data} if data else {}) | batches


def _subsets(dataset: Any) -> Iterator[Subset[Any]]:
    while isinstance(dataset, Subset):
        yield dataset
        dataset = dataset.dataset


def _of_items(loader: DataLoader, numbers: Sequence[int]) -> Mapping[str, Any]:
    """The fingerprint of these items of a loader's data; nothing where reading them is no use."""
    try:
        with same_randomness(loader):
            dataset = unopened(loader.dataset)
            one, two = (fingerprint(part for n in numbers for part in _tensors(dataset[n])) for _ in range(2))
    except Exception:  # data of which only their sampler knows the items, or that fail: the first batch tells of that
        return {}
    return {**one, "items": len(numbers)} if alike(one, two) else {}


def _tensors(item: Any) -> Iterator[Tensor]:
    """The tensors and arrays of an item, in their order."""
    if isinstance(item, Tensor | np.ndarray):
        yield torch.as_tensor(item)
    elif isinstance(item, Mapping | list | tuple):
        for inner in item.values() if isinstance(item, Mapping) else item:
            yield from _tensors(inner)


def check_course(now: Mapping[str, Any], then: Mapping[str, Any], *, mid_epoch: bool) -> None:
    """Warn where a fit goes on otherwise than the one that wrote its checkpoint, which may be meant.

    Args:
        now, then: by name; what one of them does not say is no difference.
        mid_epoch: the checkpoint is of the middle of an epoch.

    Raises:
        ValueError: the middle of an epoch has other data, or another batch size: which of the sequences come next
            cannot be said.
    """
    others = differing(now, then)
    if mid_epoch and any(name in ORDER for name in others):
        name = next(name for name in others if name in ORDER)
        raise ValueError(
            f"fit: cannot resume with {_said(name, now, then)}: the checkpoint is of the middle of an epoch, whose "
            "remaining sequences would be others; give what it was made with, or resume from the end of an epoch."
        )
    if others:
        warnings.warn(
            f"fit: goes on with {'; '.join(_said(name, now, then) for name in others)}: from here on it is not the fit "
            "that was stopped.",
            stacklevel=3,  # that of what called back
        )
    if "validation" in then and "validation" not in now:
        warnings.warn(
            "fit: goes on without validation data, so that the weights left in place are the last, and not the best.",
            stacklevel=3,
        )


def check_untrained(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Warn where nothing was left to train, and so what is said otherwise than then had no effect."""
    if others := differing(now, then):
        warnings.warn(
            f"fit: nothing is trained with {'; '.join(_said(name, now, then) for name in others)}, since the "
            "checkpoint is of a fit that ended; max_epochs counts from the beginning: give more to go on.",
            stacklevel=5,
        )


def differing(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Names of what both say, and say otherwise."""
    others = [name for name in now if name in then and name != CODE and not _same(now[name], then[name])]
    return [*others, *([CODE] if edited(now.get(CODE, {}), then.get(CODE, {})) else [])]


def _same(now: Any, then: Any) -> bool:
    if not isinstance(now, Mapping):
        return bool(now == then)
    fingerprints = "exact" in now and "exact" in then and now.get("items") == then.get("items")
    # Which older checkpoints do not say.
    items = all(then.get(name, now.get(name)) == now.get(name) for name in ("chosen", "subset"))
    number = now.get("sequences") == then.get("sequences")
    number = number and then.get("limit", now.get("limit")) == now.get("limit")  # of batches that are looked at
    return items and number and (not fingerprints or alike(now, then))  # type: ignore[arg-type]


def _said(name: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    if name == CODE:
        return f"other code of {', '.join(edited(now[name], then[name]))}"
    if name not in ("data", "validation"):
        return f"{name}={now[name]!r}, which was {then[name]!r}"
    counts = [one[name].get("sequences") for one in (now, then)]
    what, since = ("other data", "") if name == "data" else ("other validation data", ", of which the best begins anew")
    said = (
        f"{counts[0]} sequences, which were {counts[1]}" if counts[0] != counts[1] else f"{counts[0]} other sequences"
    )
    return f"{what}, {said}{since}"
