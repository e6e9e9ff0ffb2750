"""Sources and their errors; sequences that depend on their seed alone; the data module with and without Lightning."""

from __future__ import annotations

import doctest
import pickle
import struct
from importlib import import_module
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_tvae.experiments import datasets
from pyro_tvae.experiments.datasets import (
    DataNotFound,
    Draw,
    EpochSampler,
    Frames,
    Images,
    SequenceDataModule,
    SequenceDataset,
    SequenceRenderer,
    Splits,
    Transformations,
    arrays,
    digits,
    mnist,
)
from pyro_tvae.experiments.datasets.dsprites_file import packed_images

rng = np.random.default_rng(0)
MOVING = {"rotation": [0, 90, 180, 270], "hue": [0, 120, 240]}


def images(n: int, size: int = 6) -> Images:
    pixels = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(n))
    return Images(pixels, torch.arange(n) % 3)


def splits(train: int = 21, validation: int = 9, test: int = 10) -> Splits:
    return Splits(images(train), images(validation), images(test))


def module(**options: object) -> SequenceDataModule:
    settings: dict = {"n_frames": 4, "batch_size": 4, "eval_batch_size": 4, **options}
    return SequenceDataModule(splits(), Transformations(**MOVING), **settings)


def all_x(data: SequenceDataModule, split: str) -> Tensor:
    return torch.cat([batch["x"] for batch in data.batches(split)])


# Sources


def test_digits_are_disjoint_stratified_and_reproducible() -> None:
    parts, again, other = digits(), digits(), digits(seed=1)
    assert [len(part.labels) for part in parts] == [1079, 359, 359]
    for part, twin in zip(parts, again, strict=True):
        assert torch.equal(part.pixels, twin.pixels)
        assert part.pixels.shape[1:] == (1, 28, 28)
        assert part.pixels.dtype == torch.float32
        assert 0 <= float(part.pixels.min()) <= float(part.pixels.max()) <= 1
    assert not torch.equal(parts.test.pixels, other.test.pixels)
    counts = torch.stack([part.labels.bincount(minlength=10) for part in parts])
    share = counts / counts.sum(1, keepdim=True)
    assert float((share - share[0]).abs().max()) < 0.005
    # A prefix is stratified as well: 50 of 10 nearly equal classes hold about 5 of each.
    prefix = parts.train.labels[:50].bincount(minlength=10)
    assert prefix.min() >= 4
    assert prefix.max() <= 6
    whole = torch.cat([part.pixels for part in parts]).flatten(1)
    assert len(whole) == 1797
    # All originals differ, so disjoint parts hold as many different images as there are.
    assert len(torch.unique(whole, dim=0)) == 1797


def test_digits_leave_room_to_turn_and_grow() -> None:
    pixels = digits().test.pixels
    turned = Transformations(rotation=[45], scale=[1.26]).render(
        pixels, torch.zeros(len(pixels), 1, 2, dtype=torch.long)
    )
    kept = turned.sum((1, 2, 3, 4)) / pixels.sum((1, 2, 3)) / 1.26**2
    assert float(kept.mean()) > 0.98
    assert float(kept.min()) > 0.9
    assert digits(size=8).train.pixels.shape[-2:] == (8, 8)
    assert digits(size=33, validation=0).validation.pixels.shape == (0, 1, 33, 33)


def test_bad_requests_for_digits_are_named() -> None:
    with pytest.raises(ValueError, match="size is 7; expected at least 8"):
        digits(size=7)
    with pytest.raises(ValueError, match="sum to less than 1"):
        digits(validation=0.5, test=0.5)


def idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def fake_mnist(root: Path) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, n in (("train", 50), ("t10k", 20)):
        idx(raw / f"{split}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        idx(raw / f"{split}-labels-idx1-ubyte", np.arange(n) % 10)
    return raw


def test_mnist_reads_its_four_files_and_keeps_the_test_split(tmp_path: Path) -> None:
    fake_mnist(tmp_path)
    parts, other = mnist(tmp_path), mnist(tmp_path, seed=1)
    assert [tuple(part.pixels.shape) for part in parts] == [(40, 1, 28, 28), (10, 1, 28, 28), (20, 1, 28, 28)]
    assert parts.train.pixels.dtype == torch.uint8
    assert parts.validation.labels.bincount().tolist() == [1] * 10
    assert torch.equal(parts.test.pixels, other.test.pixels)
    assert not torch.equal(parts.train.pixels, other.train.pixels)


def test_missing_mnist_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"not in .*MNIST.raw; pass download=True") as caught:
        mnist(tmp_path)
    assert isinstance(caught.value, FileNotFoundError)
    assert str(tmp_path) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_failed_download_of_mnist_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    def unreachable(self: MNIST) -> None:
        raise RuntimeError("Error downloading train-images:\nTried a mirror, got:\n<urlopen error>\n")

    monkeypatch.setattr(MNIST, "download", unreachable)
    with pytest.raises(DataNotFound, match=r"the download failed .*; put them there by hand") as caught:
        mnist(tmp_path, download=True)
    assert "\n" not in str(caught.value)


def test_damaged_mnist_is_not_called_missing(tmp_path: Path) -> None:
    raw = fake_mnist(tmp_path)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03 cut off")
    with pytest.raises(ValueError, match="are damaged"):
        mnist(tmp_path)


def test_for_want_of_memory_no_file_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told that they are damaged deletes them."""

    def none_left(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 5")

    from torchvision.datasets import MNIST

    fake_mnist(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros((20, 5, 5)))
    np.savez(tmp_path / "a.npz", imgs=np.zeros(3))
    with monkeypatch.context() as patch:
        patch.setattr(MNIST, "__init__", none_left)
        with pytest.raises(RuntimeError, match="allocate memory"):
            mnist(tmp_path)
    monkeypatch.setattr(np, "load", none_left)
    for read in (lambda: arrays(tmp_path / "a.npy"), lambda: packed_images(tmp_path / "a.npz", torch.arange(3))):
        with pytest.raises(RuntimeError, match="allocate memory"):
            read()


def test_arrays_of_images_and_of_sequences(tmp_path: Path) -> None:
    stills, moves = rng.random((20, 5, 7)), rng.integers(0, 256, (10, 4, 3, 5, 5)).astype(np.uint8)
    np.save(tmp_path / "stills.npy", stills)
    np.savez(tmp_path / "moves.npz", x=moves, y=np.arange(10) % 2, odd=np.array([{}], dtype=object))
    parts = arrays(tmp_path / "stills.npy")
    assert isinstance(parts.train, Images)
    assert parts.train.pixels.shape == (12, 1, 5, 7)
    assert parts.train.labels.unique().tolist() == [-1]
    sums = torch.cat([part.pixels for part in parts]).sum((1, 2, 3)).sort().values
    torch.testing.assert_close(sums, torch.tensor(stills, dtype=torch.float32).sum((1, 2)).sort().values)
    parts = arrays(str(tmp_path / "moves.npz"), key="x", labels_key="y", n_frames=4)
    assert isinstance(parts.test, Frames)
    assert parts.test.pixels.shape == (2, 4, 3, 5, 5)
    assert parts.test.labels.tolist() in ([0, 1], [1, 0])
    np.savez(tmp_path / "single.npz", x=moves, y=np.arange(10))
    assert isinstance(arrays(tmp_path / "single.npz", labels_key="y", axes="NSCHW").train, Frames)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((5, 5)), r"shape \(5, 5\); expected images \(N, height, width\), sequences"),
        (np.zeros((0, 5, 5)), r"none of them empty"),
        (np.zeros((4, 5, 5), dtype=np.int64), r"type int64 and run from 0 to 0; expected uint8"),
        (np.zeros((4, 5, 5), dtype=complex), r"type complex128; expected uint8"),
        (np.full((4, 5, 5), 1.5), r"run from 1.5 to 1.5; expected finite values within \[0, 1\]"),
        (np.full((4, 5, 5), np.nan), r"run from nan to nan"),
        (np.full((4, 5, 5), -0.5), r"run from -0.5"),
        (np.ones((4, 5, 5), dtype=np.uint8), r"uint8 pixels are at most 1.*range=\[0,1\]"),
        (np.array([[[{}]]], dtype=object), r"nothing is ever unpickled"),
    ],
)
def test_unusable_arrays_are_named_in_one_sentence(tmp_path: Path, array: np.ndarray, said: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=said) as caught:
        arrays(tmp_path / "a.npy")
    assert str(tmp_path / "a.npy") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_named_in_one_sentence(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    np.savez(good, x=rng.random((9, 4, 4)), y=np.arange(9), z=np.zeros(3))
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:200])
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "cut.npy", rng.random((9, 4, 4)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    for name, said in [
        ("pickled.npy", "nothing is ever unpickled"),
        ("cut.npz", "may be damaged"),
        ("empty.npy", "may be damaged"),
        ("cut.npy", "may be damaged"),
    ]:
        with pytest.raises(ValueError, match=said):
            arrays(tmp_path / name)
    with pytest.raises(DataNotFound, match="does not exist"):
        arrays(tmp_path / "none.npy")
    with pytest.raises(ValueError, match="key is None, but the file holds the arrays x, y, z; set key to one"):
        arrays(good)
    with pytest.raises(ValueError, match="labels_key is 'w', but the file holds the arrays x, y, z"):
        arrays(good, key="x", labels_key="w")
    with pytest.raises(ValueError, match=r"labels 'z' have shape \(3,\) and type float64; expected one whole number"):
        arrays(good, key="x", labels_key="z")
    np.save(tmp_path / "plain.npy", rng.random((9, 4, 4)))
    with pytest.raises(ValueError, match="key is 'x', but the file holds one unnamed array; leave it out"):
        arrays(tmp_path / "plain.npy", key="x")


# Sequences


def test_virtual_items_carry_their_epoch() -> None:
    source = images(5)
    dataset = SequenceDataset(source, Transformations(**MOVING), n_frames=4, seed=3)
    mixed = dataset.__getitems__([2, 5 * 7 + 2, 4])
    assert mixed["index"].shape == (3, 4, 2)
    assert torch.equal(mixed["image"], source.pixels[[2, 2, 4]])
    assert torch.equal(mixed["label"], source.labels[[2, 2, 4]])
    assert torch.equal(mixed["index"][1], dataset.draw(7).index[2])
    assert torch.equal(mixed["index"][2], dataset.draw(0).index[4])
    single = dataset[5 * 7 + 2]
    assert all(torch.equal(single[name], mixed[name][1]) for name in mixed)
    tables = torch.stack([dataset.draw(epoch).index[:, 0] for epoch in range(6)])
    assert len(torch.unique(tables.flatten(1), dim=0)) == 6


def test_workers_without_room_to_hand_batches_on_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with little of it, where torch would wait for the first batch without end."""
    asked: list[int] = []

    def share_memory_(self: torch.Tensor) -> torch.Tensor:
        asked.append(self.nbytes)
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
    module().train_dataloader()
    assert not asked
    with pytest.raises(ValueError, match=r"^num_workers is 3, and 0\.1 MB of batches find no room in shared memory"):
        module(num_workers=3).train_dataloader()
    assert asked == [2 * 3 * 4 * 4096]  # of four small tensors


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_seed_alone_decides_the_training_sequences(num_workers: int) -> None:
    expected, data = module(seed=5), module(seed=5, num_workers=num_workers)
    loaders = expected.train_dataloader(), data.train_dataloader()
    epochs = []
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        ours, theirs = list(loaders[0]), list(loaders[1])
        assert [len(batch["label"]) for batch in ours] == [4] * 5  # 21 sequences: the short last batch is dropped
        for a, b in zip(ours, theirs, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
        epochs.append(torch.cat([batch["index"] for batch in ours]))
    assert not torch.equal(epochs[0], epochs[1])
    other = torch.cat([batch["index"] for batch in module(seed=6).train_dataloader()])
    assert not torch.equal(other, epochs[0])


def test_evaluation_sequences_are_fixed_and_differ_between_splits() -> None:
    data, again = module(), module()
    assert torch.equal(all_x(data, "test"), all_x(again, "test"))
    loaded = torch.cat([data.on_after_batch_transfer(batch, 0)["x"] for batch in data.test_dataloader()])
    assert torch.equal(loaded, all_x(data, "test"))
    assert len(loaded) == 10
    assert len(torch.cat([batch["label"] for batch in data.val_dataloader()])) == 9
    # Splits of one size, so that only their seeds can tell their draws apart.
    alike = SequenceDataModule(splits(9, 9, 9), Transformations(**MOVING), n_frames=4)
    draws = [dataset.draw(0).index[:, 0] for dataset in alike.datasets.values()]
    assert len(torch.unique(torch.stack(draws).flatten(1), dim=0)) == 3


def test_sampler_covers_an_epoch_and_shares_it_between_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = SequenceDataset(images(11), None, n_frames=1)
    sampler = EpochSampler(dataset, seed=1)
    sampler.set_epoch(2)
    first = list(sampler)
    assert sorted(first) == list(range(22, 33))
    assert len(sampler) == 11
    sampler.set_epoch(3)
    assert [i - 11 for i in sampler] != first
    assert list(EpochSampler(dataset, shuffle=False)) == list(range(11))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        sampler = EpochSampler(dataset, seed=1)
        sampler.set_epoch(2)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1]) == 3
    assert len({item for share in shares for item in share}) == 9


def test_the_module_describes_its_sequences() -> None:
    data = module(n_train=3, n_validation=2, n_test=1)
    assert (data.frame_shape, data.n_frames) == ((3, 6, 6), 4)
    assert (data.factor_names, data.periods, data.moving) == (("rotation", "hue"), (4, 3), ("rotation", "hue"))
    assert [len(dataset) for dataset in data.datasets.values()] == [3, 2, 1]
    # Three sequences make one short batch, which must not be dropped.
    assert [len(batch["label"]) for batch in data.train_dataloader()] == [3]
    still = SequenceDataModule(splits(), None, n_frames=1)
    assert (still.frame_shape, still.factor_names, still.moving) == ((1, 6, 6), (), ())
    assert torch.equal(all_x(still, "test")[:, 0], splits().test.pixels)


def test_mean_frame_is_the_average_of_the_training_sequences() -> None:
    data = module(eval_batch_size=5)
    expected = all_x(data, "train").double().mean((0, 1)).float()
    torch.testing.assert_close(data.mean_frame(), expected, rtol=0, atol=1e-6)
    assert data.mean_frame().shape == data.frame_shape


def test_ready_sequences_are_used_as_they_are() -> None:
    pixels = torch.randint(256, (6, 4, 2, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = Frames(pixels, torch.arange(6))
    data = SequenceDataModule(Splits(part, part, part), None, n_frames=4, batch_size=2)
    assert (data.frame_shape, data.factor_names, data.periods, data.moving) == ((2, 5, 5), ("time",), (4,), ("time",))
    batch = next(data.batches("validation"))
    assert torch.equal(batch["x"], pixels.float() / 255)
    assert batch["index"][1, :, 0].tolist() == [0, 1, 2, 3]
    assert batch["moving"].tolist() == [0] * 6
    for loaded in data.train_dataloader():
        assert torch.equal(data.on_after_batch_transfer(loaded)["x"], pixels[loaded["label"]].float() / 255)
    with pytest.raises(ValueError, match="sequences of 4 frames, but n_frames is 18; set n_frames to 4"):
        SequenceDataModule(Splits(part, part, part), None)
    with pytest.raises(ValueError, match="ready sequences, used as they are; leave transformations out"):
        SequenceDataModule(Splits(part, part, part), Transformations(rotation=True), n_frames=4)


def test_the_test_split_can_move_otherwise() -> None:
    together = Transformations(**MOVING, moving=["rotation+hue"])
    data, usual = module(test_transformations=together), module()
    assert (data.moving, data.datasets["test"].moving) == (("rotation", "hue"), ("rotation+hue",))
    batch = next(data.batches("test"))
    steps = (batch["index"][:, 1:] - batch["index"][:, :-1]) % torch.tensor(data.periods)
    assert bool((steps == 1).all())
    assert torch.equal(batch["x"], together.render(batch["image"], batch["index"]))
    for split in ("train", "validation"):
        assert torch.equal(all_x(data, split), all_x(usual, split))
    # Other values, not only other moves: every split renders its own, by either road.
    tilted = module(test_transformations=Transformations(hue=[0], perspective=[0, 30]))
    for split, loader in (("test", tilted.test_dataloader()), ("validation", tilted.val_dataloader())):
        loaded = torch.cat([tilted.on_after_batch_transfer(batch)["x"] for batch in loader])
        assert torch.equal(loaded, all_x(tilted, split))
    with pytest.raises(
        ValueError, match=r"frames of shape \(1, 6, 6\), but the training frames have shape \(3, 6, 6\)"
    ):
        module(test_transformations=Transformations(rotation=[0, 90]))


class Counter:
    """A sequence renderer of one's own: frame l of item i shows the number of the item plus that of the frame."""

    names, periods, moving, frame_shape = ("number",), (5,), ("number",), (1, 2, 3)

    def __init__(self, n: int) -> None:
        self.labels = torch.arange(n)

    def first(self, n: int) -> Counter:
        return Counter(n)

    def draw(self, n_frames: int, generator: torch.Generator) -> Draw:
        phase = torch.randint(5, (len(self.labels), 1, 1), generator=generator)
        return Draw((phase + torch.arange(n_frames)[:, None]) % 5, torch.zeros(len(self.labels), dtype=torch.long))

    def pick(self, rows: Tensor) -> dict[str, Tensor]:
        return {"start": rows.float()}

    def render(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["start"][:, None, None] + batch["index"])[..., None, None].expand(-1, -1, 1, 2, 3)


def test_a_sequence_renderer_of_ones_own_fits() -> None:
    assert isinstance(Counter(1), SequenceRenderer)
    data = SequenceDataModule(Splits(Counter(9), Counter(4), Counter(4)), n_frames=4, n_train=8)
    assert (data.frame_shape, data.factor_names, data.periods) == ((1, 2, 3), ("number",), (5,))
    for batch in data.train_dataloader():
        x = data.on_after_batch_transfer(batch)["x"]
        assert x.shape == (8, 4, 1, 2, 3)
        assert torch.equal(x[:, :, 0, 0, 0], batch["label"][:, None] + batch["index"][..., 0])
    with pytest.raises(
        ValueError, match="the source holds Counter, which move by themselves; leave transformations out"
    ):
        SequenceDataModule(Splits(Counter(9), Counter(4), Counter(4)), Transformations(), n_frames=4)


def test_the_former_name_still_works_and_says_what_it_is_called_now() -> None:
    with pytest.warns(DeprecationWarning, match=r"datasets\.SequenceMaker is now .*datasets\.SequenceRenderer"):
        assert datasets.SequenceMaker is SequenceRenderer
    with pytest.raises(AttributeError, match="has no attribute 'SequenceMakers'"):
        _ = datasets.SequenceMakers


@pytest.mark.parametrize("name", ["sequences", "silhouettes", "transformations"])
def test_the_examples_run(name: str) -> None:
    result = doctest.testmod(import_module(f"pyro_tvae.experiments.datasets.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_bad_numbers_are_named_in_one_sentence() -> None:
    with pytest.raises(
        ValueError, match="n_test is 11, but the test split holds 10; expected 1 to 10, or None for all"
    ):
        module(n_test=11)
    with pytest.raises(ValueError, match="batch_size is 0"):
        module(batch_size=0)
    with pytest.raises(ValueError, match="n_frames is 0"):
        module(n_frames=0)
    with pytest.raises(ValueError, match="no split 'tset'; expected one of train, validation, test"):
        module().batches("tset")


class Recorder(lightning.LightningModule):
    """Trains nothing and notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.trained.append(batch["x"])
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self.validated.append(batch["x"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_gives_every_epoch_fresh_training_and_the_same_validation_sequences(tmp_path: Path) -> None:
    recorder, data = Recorder(), module()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder, datamodule=data)
    first, second = torch.cat(recorder.trained[:5]), torch.cat(recorder.trained[5:])
    assert first.shape == second.shape == (20, 4, 3, 6, 6)
    table = data.datasets["train"].draw(1)
    expected = data.transformations.render(data.datasets["train"].source.pixels, table.index)
    # Each sequence of the second epoch is one of that epoch's draw, and none was used twice.
    distance = torch.cdist(second.flatten(1), expected.flatten(1))
    assert float(distance.min(1).values.max()) < 1e-3
    assert len(distance.argmin(1).unique()) == 20
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(recorder.validated[:3]), torch.cat(recorder.validated[3:]))
    assert torch.equal(torch.cat(recorder.validated[:3]), all_x(data, "validation"))
