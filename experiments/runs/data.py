"""The data of a run: a fingerprint of each split, by which data that are built anew are told from those of before."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypedDict

from omegaconf import OmegaConf

if TYPE_CHECKING:
    from torch import Tensor

    from ..datasets import SequenceDataModule, SequenceDataset

__all__ = ["SplitRecord", "Splits", "fingerprints", "made_fingerprints", "other_splits"]

ROWS = 4096  # at a time
LOOKED_AT = 256  # sequences, evenly spaced, of a split that is too large for memory
RENDERED = 32  # sequences, evenly spaced, of what others render, which may hand out none of its pixels


class SplitRecord(TypedDict):
    """One split in ``data.json``: its number of sequences, and what tells them from others."""

    sequences: int
    exact: str
    sums: list[float]


Splits = dict[str, SplitRecord]


def fingerprints(data: SequenceDataModule) -> Splits:
    """What ``data.json`` holds: the fingerprint of each split.

    Of what sequences are rendered from, not of rendered frames, which would take as long as an epoch: pixels, labels,
    and the factors that are drawn for epoch 0, as every epoch of a fixed split has them. Of pixels that are too many
    for memory, 256 sequences of a split: the others may change unnoticed.
    """
    from pyro_tvae.inference.fingerprints import fingerprint

    return {
        name: {"sequences": len(dataset), **fingerprint(_contents(dataset))} for name, dataset in data.datasets.items()
    }


@functools.lru_cache(maxsize=16)  # jobs and runs mostly have the same data, and files may be large
def made_fingerprints(data: str) -> Splits:
    """Those of data that a configuration describes, as YAML."""
    from ..config.composition import make

    return fingerprints(make(OmegaConf.create(data)))


def other_splits(then: Splits, now: Splits) -> list[str]:
    """The names of splits that are not what they were."""
    from pyro_tvae.inference.fingerprints import alike

    return [name for name, split in now.items() if name in then and not alike(then[name], split)]


def _contents(dataset: SequenceDataset) -> Iterator[Tensor]:
    import torch  # takes seconds, for which a list of runs does not wait

    from ..datasets import Clips, Frames, Images, Sprites
    from ..datasets.sprites import StoredPixels

    source = dataset.source
    pixels: Any = getattr(source, "pixels", None)
    known = () if dataset.factors is None else (dataset.factors.table, dataset.factors.place)
    if isinstance(pixels, Clips):
        yield from pixels.contents(LOOKED_AT)
        yield source.labels
        yield from known
        if isinstance(source, Images):  # frames are drawn from nothing
            draw: Any = dataset.draw(0)
            yield from (draw.index.phase, draw.moving)
        return
    draw = dataset.draw(0)
    yield from (dataset.renderer.labels, draw.index, draw.moving)
    if isinstance(source, Images | Frames):
        yield pixels
        yield from known
        return
    if isinstance(source, Sprites):
        yield pixels.packed if isinstance(pixels, StoredPixels) else pixels.pictures
        return
    for rows in torch.arange(len(dataset)).split(ROWS):
        yield from dataset.renderer.pick(rows).values()
    if len(dataset):
        yield dataset.render(dataset.__getitems__(range(0, len(dataset), -(-len(dataset) // RENDERED))))["x"]
