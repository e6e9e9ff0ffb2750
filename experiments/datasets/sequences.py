"""Sequence data sets: seeded factor draws for every image, and the Lightning data module that renders them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from pyro_tvae.likelihoods import seen_pixels

from .factors import Factors
from .films import Clips
from .renderers import renderer
from .splits import SPLITS, Batch, Frames, Items, Splits
from .transformations import Draw, Transformations

__all__ = ["EpochSampler", "SequenceDataModule", "SequenceDataset"]


class SequenceDataset(Dataset[Batch]):
    """Sequences that are described, not rendered: item ``epoch · N + i`` is item i with the factors of that epoch.

    The draw of an epoch is one table that depends on (seed, epoch) alone: the same seed gives the same sequences
    whatever the number of workers. A batch of B items holds ``index`` (B, S, F), ``moving`` (B,), ``label`` (B,) and
    what its renderer needs to render it: still images ``image`` (B, 1, height, width), ready sequences ``x`` itself.

    Args:
        source: N still images, N ready sequences, or a sequence renderer of N items.
        transformations: how still images become sequences; None leaves them as they are.
        n_frames: frames of a sequence, S.
        seed: of all draws, at least 0.

    Raises:
        ValueError: ready sequences of another length, or with transformations; a seed or length that is too small.
    """

    def __init__(
        self, source: Items, transformations: Transformations | None, n_frames: int = 18, seed: int = 0
    ) -> None:
        if not isinstance(n_frames, int) or not isinstance(seed, int) or n_frames < 1 or seed < 0:
            raise ValueError(f"n_frames is {n_frames} and seed is {seed!r}; expected n_frames >= 1 and seed >= 0.")
        self.source, self.renderer = source, renderer(source, transformations, n_frames)
        self.n_frames, self.seed = n_frames, seed
        self._latest: tuple[int, Draw] | None = None

    def __len__(self) -> int:
        return len(self.renderer.labels)

    def __getitem__(self, item: int) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([item]).items()}

    def __getitems__(self, items: Sequence[int]) -> Batch:
        virtual = torch.as_tensor(items, dtype=torch.long)
        rows, epochs = virtual % len(self), virtual // len(self)
        batch = {
            "label": self.renderer.labels[rows],
            "index": torch.empty(len(rows), self.n_frames, len(self.renderer.names), dtype=torch.long),
            "moving": torch.empty(len(rows), dtype=torch.long),
        }
        for epoch in epochs.unique().tolist():
            here, draw = epochs == epoch, self.draw(epoch)
            batch["index"][here], batch["moving"][here] = draw.index[rows[here]], draw.moving[rows[here]]
        return batch | self.renderer.pick(rows)

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the factors in ``index``; ready sequences have the one factor ``time``, the frame number."""
        return self.renderer.names

    @property
    def factors(self) -> Factors | None:
        """What a user's data say of their items beside the pixels; None where nothing was said."""
        return getattr(self.source, "factors", None)

    @property
    def periods(self) -> tuple[int, ...]:
        """Number of values of each factor; S for ``time``."""
        return self.renderer.periods

    @property
    def moving(self) -> tuple[str, ...]:
        """What the numbers in ``moving`` stand for, such as ``rotation+hue``; empty where nothing moves."""
        return self.renderer.moving

    def first(self, n: int) -> SequenceDataset:
        """The first n sequences, as they are here."""
        fewer = copy.copy(self)
        fewer.source, fewer.renderer = self.source.first(n), self.renderer.first(n)
        draw = self.draw(0)
        fewer._latest = (0, Draw(draw.index[:n], draw.moving[:n]))
        return fewer

    def draw(self, epoch: int) -> Draw:
        """The factors of all N items in an epoch: ``index`` (N, S, F) and ``moving`` (N,); the latest one is kept."""
        if self._latest is None or self._latest[0] != epoch:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            self._latest = (epoch, self.renderer.draw(self.n_frames, generator))
        return self._latest[1]

    def moved_on(self, batch: Batch) -> Batch | None:
        """The same sequences with what moves in each one value further on, rendered; None where there is no more.

        Ready sequences are what they are, and cannot be moved.
        """
        if isinstance(self.source, Frames) or not self.moving:
            return None
        moves = torch.tensor([[name in entry.split("+") for name in self.factor_names] for entry in self.moving])
        step = moves.long().to(batch["index"].device)[batch["moving"]].unsqueeze(1)
        periods = torch.tensor(self.periods, device=step.device)
        return self.render({**batch, "index": (batch["index"] + step) % periods})

    def render(self, batch: Batch) -> Batch:
        """Add ``x`` (B, S, channel, height, width) float32 to a batch, on its device."""
        batch["x"] = self.renderer.render(batch)
        return batch


# A DistributedSampler, because Lightning replaces any other kind when it runs on several devices.
class EpochSampler(DistributedSampler[Any]):
    """The items of one epoch, ``epoch · N + i``, in an order that depends on (seed, epoch) alone.

    Under ``torch.distributed`` every rank gets its own share, all of one length; what is left over is dropped.

    Args:
        dataset: what is sampled; only its length is used.
        seed: of the order, at least 0.
        shuffle: False keeps the order of the data set.
    """

    def __init__(self, dataset: SequenceDataset, seed: int = 0, shuffle: bool = True) -> None:
        parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
        replicas, rank = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if parallel else (1, 0)
        super().__init__(dataset, replicas, rank, shuffle=shuffle, seed=seed, drop_last=True)
        self.num_samples = len(dataset) // replicas

    def __iter__(self) -> Iterator[int]:
        n = self.num_samples * self.num_replicas
        order = np.arange(len(self.dataset))  # type: ignore[arg-type]
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        start = self.epoch * len(order)
        own = order[self.rank : n : self.num_replicas]
        # Millions of Python's numbers would take more memory than a batch.
        return (start + row for block in range(0, len(own), ROWS) for row in own[block : block + ROWS].tolist())


ROWS = 65_536  # at a time
PREFETCHED, PAGE = 2, 4096  # batches of every worker that torch has fetched ahead; bytes that the least tensor takes
PATIENCE = 1800.0  # seconds for a batch of a worker's, after which it is not to come
MOST_WORKERS = 256  # a mistyped number must not take a machine down


class SequenceDataModule(lightning.LightningDataModule):
    """Sequences for training, validation and test; works with a Lightning Trainer and without one.

    Training sequences are drawn afresh every epoch. Validation and test sequences are one fixed, seeded set each, in
    one fixed order. Batches are rendered on their device, after the transfer.

    Args:
        source: the three splits.
        transformations: how still images become sequences; None for anything else, or to leave images as they are.
        n_frames: frames of a sequence, S.
        batch_size: sequences in a training batch.
        eval_batch_size: sequences in a validation or test batch.
        n_train: use only the first n of the (seeded, stratified) split; None uses all.
        n_validation: likewise.
        n_test: likewise.
        num_workers: processes that load training batches.
        seed: of all draws and orders; each split has its own stream.
        test_transformations: of the test split, where they are not those of the others: does what was learned from
            one factor at a time hold for two that move together? None: the same.

    Raises:
        ValueError: a number that does not fit the splits; test transformations whose frames have another shape; or see
            :class:`SequenceDataset`.

    Example:
        >>> from pyro_tvae.experiments.datasets import digits
        >>> data = SequenceDataModule(digits(), Transformations(rotation=True), n_test=2)
        >>> next(data.batches("test"))["x"].shape
        torch.Size([2, 18, 1, 28, 28])
    """

    def __init__(
        self,
        source: Splits,
        transformations: Transformations | None = None,
        n_frames: int = 18,
        batch_size: int = 8,
        eval_batch_size: int = 64,
        n_train: int | None = None,
        n_validation: int | None = None,
        n_test: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        test_transformations: Transformations | None = None,
    ) -> None:
        super().__init__()
        least = {"n_frames": 1, "batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "seed": 0}
        given = dict(zip(least, (n_frames, batch_size, eval_batch_size, num_workers, seed), strict=True))
        for name, number in given.items():
            if not isinstance(number, int) or isinstance(number, bool) or not least[name] <= number < 2**63:
                raise ValueError(
                    f"{name} is {number!r}; expected a whole number of at least {least[name]}, and below 2**63."
                )
        self.n_frames, self.batch_size, self.eval_batch_size = n_frames, batch_size, eval_batch_size
        if num_workers > MOST_WORKERS:
            raise ValueError(f"num_workers is {num_workers!r}; expected 0 to {MOST_WORKERS} processes.")
        self.num_workers, self.seed = num_workers, seed
        for name, move in (("transformations", transformations), ("test_transformations", test_transformations)):
            if move is not None and not isinstance(move, Transformations):
                raise ValueError(f"{name} is {move!r}; expected Transformations(…), or None (null).")
        limits = (n_train, n_validation, n_test)
        moves = (transformations, transformations, test_transformations or transformations)
        self.datasets = {
            name: SequenceDataset(_first(part, limit, name), move, n_frames, mix(seed, k))
            for k, (name, part, move, limit) in enumerate(zip(SPLITS, source, moves, limits, strict=True))
        }
        tested = self.datasets["test"].renderer.frame_shape
        if tested != self.frame_shape:
            raise ValueError(
                f"test_transformations make frames of shape {tested}, but the training frames have shape "
                f"{self.frame_shape}; give both or neither of them the factor hue."
            )
        self.transformations = transformations or Transformations()
        self._mean_frame: Tensor | None = None
        self._first_epoch = 0

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(channel, height, width) of a frame."""
        return self.datasets["train"].renderer.frame_shape

    def at_most(self, n: int) -> SequenceDataModule:
        """The same with the first n sequences of validation and test, each prefix of which is stratified, or fewer.

        Codes of all sequences are kept while they are judged, which memory may not hold where the data do not fit it.
        """
        fewer = copy.copy(self)
        fewer.datasets = dict(self.datasets)
        for name in SPLITS[1:]:
            own = self.datasets[name]
            if len(own) > n:
                fewer.datasets[name] = own.first(n)
        return fewer

    @property
    def in_memory(self) -> bool:
        """Whether all sequences are in memory as they are; False where some stay in a file, or are cut from films."""
        return not any(isinstance(getattr(one.source, "pixels", None), Clips) for one in self.datasets.values())

    @property
    def about(self) -> str:
        """How a user's file was read, in words; empty for other data."""
        return str(getattr(self.datasets["train"].source, "about", ""))

    @property
    def factor_names(self) -> tuple[str, ...]:
        """Names of the training split's factors; a split of other transformations has its own, in ``datasets``."""
        return self.datasets["train"].factor_names

    @property
    def periods(self) -> tuple[int, ...]:
        """Number of values of each of the training split's factors."""
        return self.datasets["train"].periods

    @property
    def moving(self) -> tuple[str, ...]:
        """What the numbers in the training split's ``moving`` stand for."""
        return self.datasets["train"].moving

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches with fresh draws every epoch (Lightning, or you, call ``loader.sampler.set_epoch``)."""
        dataset = self.datasets["train"]
        sampler = EpochSampler(dataset, seed=mix(self.seed, len(SPLITS)))
        first, self._first_epoch = self._first_epoch, 0  # used once: the next fit begins anew
        sampler.set_epoch(first)
        if self.num_workers:
            _check_shared(dataset.__getitems__(range(min(self.batch_size, len(dataset)))), self.num_workers)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            # A short last batch would weigh its sequences more; but never drop the only one.
            drop_last=len(sampler) >= self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            timeout=PATIENCE if self.num_workers else 0,
            collate_fn=_as_is,
            # The loader draws a seed for its workers whenever they start; no other draw may depend on how often.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the epoch that comes next."""
        return {"epoch": self.trainer.current_epoch + 1 if self.trainer is not None else self._first_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint. Workers fetch ahead before Lightning says which epoch it is: the sampler has to know."""
        self._first_epoch = int(state_dict["epoch"])

    def val_dataloader(self) -> DataLoader[Batch]:
        """The fixed validation sequences in order."""
        return self._fixed("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The fixed test sequences in order."""
        return self._fixed("test")

    def _fixed(self, split: str) -> DataLoader[Batch]:
        # No EpochSampler: Lightning would advance its epoch, and the fixed sequences with it.
        return DataLoader(self.datasets[split], batch_size=self.eval_batch_size, collate_fn=partial(_of, split))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Batch:
        """Render: adds ``x`` (B, S, channel, height, width) on the batch's device."""
        # Splits may render differently, and Lightning does not say which one a batch is from: the batch does.
        split = batch.pop("split", "train")
        trained = self.trainer.lightning_module if self.trainer is not None else None
        if split == "train" and getattr(trained, "renders", False):
            return batch
        return self.datasets[split].render(batch)

    def rendered(self, batch: Batch) -> Batch:
        """A training batch with ``x``, for a module that ``renders`` in its own step: one that is captured with it."""
        return self.datasets["train"].render(dict(batch))

    def batches(
        self,
        split: str,
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        places: Sequence[int] | None = None,
    ) -> Iterator[Batch]:
        """Rendered batches over a whole split, in order: all of it, once; for training the draw of epoch 0.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            device: where to render.
            batch_size: default ``eval_batch_size``.
            places: of these sequences alone, by their numbers in the split.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self.datasets:
            raise ValueError(f"there is no split {split!r}; expected one of {', '.join(SPLITS)}.")
        dataset, size = self.datasets[split], batch_size or self.eval_batch_size
        chosen = range(len(dataset)) if places is None else places
        parts = (dataset.__getitems__(chosen[start : start + size]) for start in range(0, len(chosen), size))
        return (dataset.render({name: value.to(device) for name, value in part.items()}) for part in parts)

    def mean_frame(self, device: torch.device | str = "cpu") -> Tensor:
        """Average frame (channel, height, width) of the training sequences in the draw of epoch 0; computed once."""
        if self._mean_frame is None:
            # Summed on the CPU in double precision, so that the mean depends on neither batch size nor device.
            total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
            for batch in self.batches("train", device):
                of_batch, seen = _sums(batch)
                total, count = total + of_batch, count + seen
            self._mean_frame = (total / count.clamp(min=1)).float()
        return self._mean_frame.to(device)


def _sums(batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of a batch's frames that were seen (channel, height, width), and how many of them each pixel is from."""
    x, seen = batch["x"], seen_pixels(batch.get("observed"), batch.get("measured"))
    if seen is None:
        return x.sum((0, 1)).double().cpu(), torch.tensor(len(x) * x.shape[1], dtype=torch.float64)
    return torch.where(seen, x, 0).sum((0, 1)).double().cpu(), seen.expand_as(x).sum((0, 1)).double().cpu()


def mix(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several, so that neighbouring seeds and epochs share nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _as_is(batch: Any) -> Any:
    return batch


def _check_shared(batch: Batch, num_workers: int) -> None:
    """Raise ValueError where such batches find no room in what workers hand them on by, for which torch would wait."""
    one = sum(-(-value.nbytes // PAGE) * PAGE for value in batch.values() if isinstance(value, Tensor))
    wanted = PREFETCHED * num_workers * one
    try:
        torch.empty(wanted, dtype=torch.uint8).share_memory_()
    except RuntimeError:
        raise ValueError(
            f"num_workers is {num_workers}, and {wanted / 2**20:,.1f} MB of batches find no room in "
            "shared memory (/dev/shm on Linux); give data.num_workers=0, a smaller data.batch_size, or a container "
            "more of it (docker run --shm-size)."
        ) from None


def _of(split: str, batch: Any) -> Any:
    return {**batch, "split": split}


def _first(part: Items, limit: int | None, name: str) -> Items:
    n = len(part.labels)
    if limit is None:
        return part
    if not isinstance(limit, int) or not 0 < limit <= n:
        raise ValueError(f"n_{name} is {limit!r}, but the {name} split holds {n}; expected 1 to {n}, or None for all.")
    return part.first(limit)
