"""What a run is made from: fingerprints of its splits and of its file of W, by which others are told from these."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from omegaconf import DictConfig, OmegaConf

from pyro_tvae.files import state_of

from ..config.composition import MATRIX as SETTING
from ..config.composition import flat, make

if TYPE_CHECKING:
    from torch import Tensor

    from ..datasets import SequenceDataModule, SequenceDataset

__all__ = [
    "MATRIX",
    "SplitRecord",
    "Splits",
    "files_of",
    "fingerprints",
    "in_words",
    "made_fingerprints",
    "matrix_fingerprint",
    "other_splits",
]

MATRIX = "matrix"  # the name of that file's fingerprint, beside those of splits

ROWS = 4096  # at a time
LOOKED_AT = 256  # sequences, evenly spaced, of a split that is too large for memory
MANY = 10_000  # files, more of which are not looked at for whether they have changed
KNOWN = ("pyro_tvae.", "torchvision.")  # whose files are named by settings
RENDERED = 32  # sequences, evenly spaced, of what others render, which may hand out none of its pixels


class SplitRecord(TypedDict):
    """One split in ``data.json``: its number of sequences, and what tells them from others; of a file, of bytes."""

    sequences: int
    exact: str
    sums: list[float]


Splits = dict[str, SplitRecord]


def fingerprints(data: SequenceDataModule, config: DictConfig | None = None) -> Splits:
    """What ``data.json`` holds: the fingerprint of each split, and of the file of W that a configuration names.

    Of what sequences are rendered from, not of rendered frames, which would take as long as an epoch: pixels, labels,
    and the factors that are drawn for epoch 0, as every epoch of a fixed split has them. Of pixels that are too many
    for memory, 256 sequences of a split: the others may change unnoticed.
    """
    from pyro_tvae.inference.fingerprints import fingerprint

    splits: Splits = {
        name: {"sequences": len(dataset), **fingerprint(_contents(dataset))} for name, dataset in data.datasets.items()
    }
    return splits | ({} if config is None else matrix_fingerprint(config))


def made_fingerprints(config: DictConfig) -> Splits:
    """Those of what a configuration describes.

    Raises:
        InstantiationException: the data cannot be had.
    """
    return _made(OmegaConf.to_yaml(config.data, resolve=True), _state(config)) | matrix_fingerprint(config)


@functools.lru_cache(maxsize=16)  # jobs and runs mostly have the same data, and files may be large
def _made(data: str, state: object) -> Splits:
    """Of data as YAML, and as of a state of their files."""
    return fingerprints(make(OmegaConf.create(data)))


def files_of(config: DictConfig) -> list[Path]:
    """Files and folders that settings of the data name, those beside others among them, and the file of W."""
    texts = {*_texts([value for _, value in flat(OmegaConf.to_container(config.data, resolve=True))])}
    homes = {Path(), *(Path(text).expanduser().parent for text in texts if os.path.lexists(os.path.expanduser(text)))}
    texts |= {*_texts([OmegaConf.select(config, SETTING)])}
    places = {home / os.path.expanduser(text) for home in homes for text in texts}
    return sorted(place for place in places if os.path.lexists(place))


def _state(config: DictConfig) -> object:
    """Names, sizes and times of all files that data may come from.

    Something new each time where there are too many, or where code of others decides what is read.
    """
    settings = dict(flat(OmegaConf.to_container(config.data, resolve=True)))
    if any(name.endswith("_target_") and not str(value).startswith(KNOWN) for name, value in settings.items()):
        return object()
    found: list[tuple[object, ...]] = []
    for place in files_of(config):
        for file in itertools.chain([place], place.rglob("*") if place.is_dir() else ()):
            if len(found) == MANY:
                return object()
            found.append((str(file), *state_of(file)))
    return tuple(found)


def _texts(values: Sequence[Any]) -> Iterator[str]:
    """What may name a file, lists of names among it."""
    for value in values:
        if isinstance(value, list):
            yield from _texts(value)
        elif isinstance(value, str) and value:
            yield value


def matrix_fingerprint(config: DictConfig) -> Splits:
    """That of the file of W that a configuration names; nothing of one that is gone."""
    place = OmegaConf.select(config, SETTING)
    if not (isinstance(place, str) and os.path.isfile(place)):
        return {}
    import torch  # takes seconds, for which a run without such a file does not wait

    from pyro_tvae.inference.fingerprints import fingerprint

    content = torch.frombuffer(bytearray(Path(place).read_bytes()) or bytearray(1), dtype=torch.uint8)
    return {MATRIX: {"sequences": len(content), **fingerprint([content])}}


def other_splits(then: Splits, now: Splits) -> list[str]:
    """The names of splits that are not what they were."""
    from pyro_tvae.inference.fingerprints import alike

    return [name for name, split in now.items() if name in then and not alike(then[name], split)]


def in_words(names: Sequence[str]) -> str:
    """What :func:`other_splits` found.

    Example:
        >>> in_words(["test"]), in_words(["train", "test"]), in_words(["test", "matrix"])
        ('test split', 'train and test splits', 'test split and matrix')
    """
    splits = [name for name in names if name != MATRIX]
    told = [f"{' and '.join(splits)} split{'s' if len(splits) > 1 else ''}"] if splits else []
    return " and ".join([*told, *([MATRIX] if MATRIX in names else [])])


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
