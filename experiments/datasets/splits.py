"""Splits: the parts of a data set, what each may hold, and how items are cut into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pyro_tvae.likelihoods import seen_pixels
from pyro_tvae.programs import taken

from .errors import Unsuitable
from .factors import Factors
from .films import Clips
from .transformations import Draw

__all__ = [
    "SPLITS",
    "Batch",
    "Frames",
    "Images",
    "Items",
    "SequenceRenderer",
    "Splits",
    "check_seed",
    "cuts",
    "given_by",
    "scored_in_words",
    "split",
]

Batch = dict[str, Tensor]
SPLITS = ("train", "validation", "test")


def given_by(batch: Mapping[str, Tensor], *programs: object) -> dict[str, Any]:
    """What functions of a model, a guide and x are told beside them, as in training.

    That is ``observed`` frames and, as ``covariates``, ``measured`` pixels and whatever else of a batch these programs
    take by its name, such as ``label``.
    """
    masks = {"measured": batch["measured"]} if "measured" in batch else {}  # refused where no program takes it
    return {"observed": batch.get("observed"), "covariates": taken(batch, *programs) | masks}


def scored_in_words(batch: Mapping[str, Tensor]) -> str:
    """Which share of the pixels of a batch counts, in a sentence; "" where all do."""
    seen, x = seen_pixels(batch.get("observed"), batch.get("measured")), batch["x"]
    share = 1.0 if seen is None else int(seen.expand_as(x).sum()) / x.numel()
    return "" if share == 1 else f"Of these sequences {share:.1%} of the pixels were measured, and count."


class Images(NamedTuple):
    """Still images: ``pixels`` (N, channel, height, width), uint8 or float32 in [0, 1]; ``labels`` (N,) int64.

    A label of −1 is unknown; ``about`` says in words how they were read; ``factors`` are what else is known of them.
    Pixels that are too many for memory are :class:`.Clips`, which are indexed like a tensor.
    """

    pixels: Tensor | Clips
    labels: Tensor
    about: str = ""
    factors: Factors | None = None

    def first(self, n: int) -> Images:
        """The first n alone."""
        factors = None if self.factors is None else self.factors.first(n)
        return self._replace(pixels=self.pixels[:n], labels=self.labels[:n], factors=factors)


class Frames(NamedTuple):
    """Ready sequences: ``pixels`` (N, S, channel, height, width), uint8 or float32 in [0, 1]; ``labels`` (N,) int64.

    A label of −1 is unknown; ``about`` says in words how they were read; ``factors`` are what varies in them, if it is
    known. Windows of films, pixels that are too many for memory, and those of which not all were measured, are
    :class:`.Clips`, which are indexed like a tensor.
    """

    pixels: Tensor | Clips
    labels: Tensor
    about: str = ""
    factors: Factors | None = None

    def first(self, n: int) -> Frames:
        """The first n alone."""
        factors = None if self.factors is None else self.factors.first(n)
        return self._replace(pixels=self.pixels[:n], labels=self.labels[:n], factors=factors)


@runtime_checkable
class SequenceRenderer(Protocol):
    """N items that become sequences once their factors are drawn; any class with these members is one.

    A data set of your own whose frames are computed from factor values is a ``Splits`` of three of these.
    """

    @property
    def labels(self) -> Tensor:
        """One whole number per item, (N,) int64; −1 where unknown."""

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(channel, height, width) of a frame."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the F factors."""

    @property
    def periods(self) -> tuple[int, ...]:
        """Number of values of each factor; a moving factor wraps there."""

    @property
    def moving(self) -> tuple[str, ...]:
        """What the numbers in a draw's ``moving`` stand for: a factor, or several joined by ``+``."""

    def first(self, n: int) -> SequenceRenderer:
        """The first n items alone."""

    def draw(self, n_frames: int, generator: torch.Generator) -> Draw:
        """The factors of all N items: ``index`` (N, S, F) and ``moving`` (N,), on the CPU."""

    def pick(self, rows: Tensor) -> Batch:
        """What rendering the items ``rows`` (B,) needs beside ``index``, ``moving`` and ``label``: rows of tensors."""

    def render(self, batch: Batch) -> Tensor:
        """Frames (B, S, channel, height, width), float32 in [0, 1], on the device of the batch."""


Items: TypeAlias = Images | Frames | SequenceRenderer


class Splits(NamedTuple):
    """Disjoint parts of one data set; every prefix of a part is stratified by label."""

    train: Items
    validation: Items
    test: Items


def cuts(labels: Tensor, validation: float, test: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a stratified, seeded order of N items into training, validation and test, any prefix stratified too.

    Returns:
        The places of the items of each part, int64.

    Raises:
        Unsuitable: shares that leave nothing to train on, or are no numbers; a seed that is none, or would not repeat.
    """
    n = len(labels)
    numbers = all(isinstance(share, int | float) and not isinstance(share, bool) for share in (validation, test))
    if not (numbers and validation >= 0 and test >= 0 and validation + test < 1):
        raise Unsuitable(
            f"validation is {validation!r} and test is {test!r}; expected two shares of at least 0 that sum to less "
            "than 1, so that something is left to train on (data.source.validation=0.2)."
        )
    check_seed(seed)
    shuffled = np.random.default_rng(seed).permutation(n)
    _, kind, counts = np.unique(labels.numpy()[shuffled], return_inverse=True, return_counts=True)
    rank = np.empty(n)
    rank[np.argsort(kind, kind="stable")] = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    # Items of each class sit at evenly spaced places in (0, 1); sorting by place interleaves the classes.
    order = torch.from_numpy(shuffled[np.argsort((rank + 0.5) / counts[kind], kind="stable")])
    n_test, n_validation = round(test * n), round(validation * n)
    return order[n_test + n_validation :], order[n_test : n_test + n_validation], order[:n_test]


def check_seed(seed: int) -> None:
    """Raise Unsuitable where a split's seed is none; null would cut another split every time."""
    if not isinstance(seed, int) or seed < 0:
        raise Unsuitable(f"seed is {seed!r}; expected a whole number of at least 0, of the split (data.source.seed=0).")


def split(whole: Images | Frames, validation: float, test: float, seed: int) -> Splits:
    """Cut images or sequences as :func:`cuts` says; the errors are its own."""
    parts = cuts(whole.labels, validation, test, seed)
    return Splits(*(whole._replace(pixels=whole.pixels[part], labels=whole.labels[part]) for part in parts))
