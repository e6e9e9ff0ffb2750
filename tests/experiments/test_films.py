"""Films: windows that share no frame between parts, files read by pieces, and pixels that were not measured.

PYRO_TVAE_FILMS=2000 in the environment cuts so many sets of films instead of 100.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr
from complaints import answer, refused
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

import pyro_tvae
from pyro_tvae.experiments.benchmarks import large_file
from pyro_tvae.experiments.benchmarks.speed import Setting
from pyro_tvae.experiments.commands.train import train_run
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.datasets import Clips, SequenceDataModule, arrays, from_torch
from pyro_tvae.experiments.datasets.errors import Unsuitable
from pyro_tvae.experiments.datasets.films import InMemory
from pyro_tvae.experiments.datasets.looks import Look
from pyro_tvae.experiments.datasets.readers.content import Raw
from pyro_tvae.experiments.datasets.windows import Cut, Windows
from pyro_tvae.experiments.evaluation.evaluate import evaluate
from pyro_tvae.experiments.runs.data import fingerprints, other_splits
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.inference import ELBO, fit

TOTAL = int(os.environ.get("PYRO_TVAE_FILMS", "100"))
rng = np.random.default_rng(0)
FILMS = rng.integers(0, 256, (9, 14, 8, 10, 3), dtype=np.uint8)
ALL = torch.arange
SMALL = ["model.n_capsules=2", "model.capsule_dim=4", "data.n_frames=4", "fit.max_epochs=1", "fit.accelerator=cpu"]
SMALL += ["baseline.enabled=false", "evaluation.num_particles=2", "fit.progress=false", "logger=none"]


def frames_of(windows: Windows, cut: Cut, lengths: NDArray[np.int64]) -> list[list[list[tuple[int, int]]]]:
    """(film, frame) of every window of each part, those beyond the end of a film left out."""
    n = cut.n_frames or 0
    return [
        [
            [(f, s + cut.dilation * k) for k in range(n) if s + cut.dilation * k < lengths[f]]
            for f, s in zip(film.tolist(), start.tolist(), strict=True)
        ]
        for film, start in windows.parts
    ]


def naive(first: int, end: int, cut: Cut) -> list[int]:
    """Where the windows start that lie within [first, end), by trying every frame."""
    starts, last = [], None
    for frame in range(first, end):
        inside = frame + (cut.n_frames - 1) * cut.dilation < end  # type: ignore[operator]
        if inside and (last is None or frame - last == cut.stride):
            starts.append(frame)
            last = frame
    return starts


@pytest.mark.parametrize("start", range(0, TOTAL, 50))
def test_no_part_sees_a_frame_of_another(start: int) -> None:
    for seed in range(start, min(TOTAL, start + 50)):
        check_one(seed)


def check_one(seed: int) -> None:
    dice = random.Random(seed)
    n = dice.choice([1, 1, 2, 3, 5, 12])
    lengths = np.array([dice.randint(1, 80) for _ in range(n)])
    by, short = dice.choice([None, "film", "time"]), dice.choice([None, "leave", "pad"])
    gap = dice.choice([None, 0, 3])
    cut = Cut(dice.randint(1, 6), dice.randint(1, 7), dice.randint(1, 4), short, by, gap)
    shares = dice.choice([(0.2, 0.2), (0.34, 0.3), (0.0, 0.25)])
    labels = torch.tensor([dice.randint(0, 2) for _ in range(n)])
    windows, said = answer(lambda: cut.windows(lengths, labels, shares, seed))
    span = cut.dilation * (cut.n_frames - 1) + 1  # type: ignore[operator]
    if windows is None:
        assert said is not None
        # Nothing that can be cut is refused: there are too few films, or all are too short for three parts.
        enough = [length for length in lengths if length >= (1 if short == "pad" else span)]
        assert len(enough) < 12 or (by == "time" and max(lengths) < 10 * span + 2 * (span if gap is None else gap)), (
            said
        )
        return
    parts = frames_of(windows, cut, lengths)
    used = [{frame for window in part for frame in window} for part in parts]
    assert all(not one & other for one, other in itertools.combinations(used, 2))
    assert parts[0]
    for k, share in enumerate((1, *shares)):
        assert bool(parts[k]) == (share > 0)
    in_time = "split by time" in windows.about
    starts = {(f, s) for film, start in windows.parts for f, s in zip(film.tolist(), start.tolist(), strict=True)}
    assert len(starts) == sum(len(film) for film, _ in windows.parts)
    if in_time:
        for film in range(n):
            own = [sorted(frame for f, frame in part if f == film) for part in used]
            ends = [(part[0], part[-1]) for part in own if part]
            apart = span if gap is None else gap
            assert all(after[0] - before[1] > apart for before, after in itertools.pairwise(ends))
            for first, last in ends:
                inside = {s for f, s in starts if f == film and first <= s <= last}
                assert inside == {*naive(first, last + 1, cut)}
    else:
        expected = {
            (film, first)
            for film in range(n)
            for first in (naive(0, lengths[film], cut) or ([0] if short == "pad" else []))
        }
        assert starts == expected
        owners = [{film for film, _ in part} for part in used]
        assert all(not one & other for one, other in itertools.combinations(owners, 2))


def test_windows_are_stratified_and_say_what_was_done() -> None:
    cut = Cut(4, 2, short="leave")
    labels = torch.arange(12) % 3
    windows = cut.windows(np.array([14] * 11 + [3]), labels, (0.25, 0.25), 0)
    for film, _ in windows.parts:
        share = labels[film].bincount(minlength=3) / len(film)
        for n in range(1, len(film)):
            assert (labels[film[:n]].bincount(minlength=3) - n * share).abs().max() <= 1.5
    assert "cut into windows of 4 frames a window every 2" in windows.about
    assert windows.about.endswith("split by film (5, 3, 3); 1 of 12 films too short, and left out")


@pytest.mark.parametrize(
    ("options", "lengths", "said"),
    [
        (
            {"n_frames": 4, "stride": 0},
            [9],
            r"stride is 0; expected a whole number of frames, at least 1 \(data.s",
        ),
        ({"n_frames": 4, "stride": 1, "dilation": 0}, [9], "dilation is 0; expected"),
        ({"n_frames": 4, "stride": True}, [9], "stride is True"),
        ({"n_frames": 4, "stride": 1, "gap": -1}, [9], "gap is -1; expected a whole number of frames, at least 0"),
        ({"n_frames": 4, "stride": 1, "short": "no"}, [9], "short is 'no'; expected leave or pad"),
        ({"n_frames": 4, "stride": 1, "by": "fim"}, [9], r"split is 'fim'; expected film or time \(data.source.split"),
        ({"n_frames": 4, "dilation": 2}, [9], "dilation is for films that are cut into windows; say .* by stride"),
        ({"n_frames": 4, "by": "time"}, [9], "split is for films that are cut"),
        ({"stride": 2}, [9], r"not how many frames a window has; say it by n_frames \(data.n_frames=18"),
        (
            {"n_frames": 5, "stride": 1, "dilation": 3},
            [9, 12],
            r"spans 13, and the longest film has 12: .* most 4 \(",
        ),
        (
            {"n_frames": 4, "stride": 1},
            [15],
            r"15 frames, which split by time leave 3 for train .*data.source.gap=0",
        ),
        ({"n_frames": 4, "stride": 1, "by": "film"}, [15, 15], r"of 2 films none is left for validation.*split=time"),
        ({"n_frames": 4}, [4, 3], r"films of 3 to 4 frames; expected as many in each: cut them .*data.source.stride=4"),
        ({"n_frames": 4, "short": "pad"}, [5, 3], "films of 3 to 5 frames; expected at most 4"),
        ({"n_frames": 4, "short": "pad"}, [5, 5], "films of 5 frames; expected at most 4"),
        ({"n_frames": 4, "short": "leave"}, [3, 3], r"longest film has 3 frames, and n_frames is 4; give .*short=pad"),
    ],
)
def test_what_cannot_be_cut_is_refused(options: dict[str, Any], lengths: list[int], said: str) -> None:
    labels = torch.zeros(len(lengths), dtype=torch.long)
    with pytest.raises(ValueError, match=said):
        Cut(**options).windows(np.array(lengths), labels, (0.25, 0.25), 0)
    refused(lambda: Cut(**options).windows(np.array(lengths), labels, (0.25, 0.25), 0), ValueError)


# Files that are read by pieces


def npy(path: Path) -> dict[str, Any]:
    np.save(path / "a.npy", FILMS)
    return {"path": path / "a.npy", "axes": "NTHWC"}


def npy_of_other_orders(path: Path) -> dict[str, Any]:
    np.save(path / "a.npy", np.asfortranarray(FILMS.transpose(1, 4, 0, 2, 3)))
    return {"path": path / "a.npy", "axes": "TCNHW"}


def npz(path: Path) -> dict[str, Any]:
    np.savez(path / "a.npz", films=FILMS.astype(">f4") / 255, kinds=np.arange(9) % 3)
    return {"path": path / "a.npz", "axes": "NTHWC", "key": "films", "labels_key": "kinds"}


def hdf5(path: Path) -> dict[str, Any]:
    with h5py.File(path / "a.h5", "w") as file:
        file.create_dataset("films", data=FILMS, chunks=(2, 5, 8, 10, 3), compression="gzip")
    return {"path": path / "a.h5", "axes": "NTHWC"}


def zarr_store(path: Path) -> dict[str, Any]:
    zarr.save_array(path / "a.zarr", FILMS.astype("u2"), zarr_format=3)
    return {"path": path / "a.zarr", "axes": "NTHWC", "range": [0, 255]}


def matlab(path: Path) -> dict[str, Any]:
    with h5py.File(path / "a.mat", "w", userblock_size=512) as file:
        file["im"] = FILMS.transpose(2, 3, 4, 1, 0).T
    with (path / "a.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    return {"path": path / "a.mat", "axes": "HWCTN"}


def stacks(compression: str | None, path: Path) -> dict[str, Any]:
    for number, film in enumerate(FILMS):
        tifffile.imwrite(path / f"{number}.tif", film[: 8 + number, ..., 0], photometric="minisblack",
                         compression=compression)  # fmt: skip
    return {"path": path, "axes": "THW"}


def plain_stacks(path: Path) -> dict[str, Any]:
    return stacks(None, path)


def packed_stacks(path: Path) -> dict[str, Any]:
    return stacks("zlib", path)


def gifs(path: Path) -> dict[str, Any]:
    for number, film in enumerate(FILMS):
        gray = film[: 8 + number % 3, ..., 0] if number % 2 else film[..., 0]
        first, *others = map(Image.fromarray, gray)
        first.save(path / f"{number}.gif", save_all=True, append_images=others)
    return {"path": path}


def folders(path: Path) -> dict[str, Any]:
    for number, film in enumerate(FILMS):
        (path / str(number)).mkdir()
        for place, frame in enumerate(film[: 7 + number % 4]):
            Image.fromarray(frame).save(path / str(number) / f"{place}.png")
    return {"path": path}


def films(path: Path) -> dict[str, Any]:
    import av

    for number, film in enumerate(FILMS.repeat(4, 2).repeat(4, 3)):
        with av.open(path / f"{number}.mp4", "w") as container:
            stream = container.add_stream("mpeg4", rate=10, options={"g": "5", "bf": "2"})
            stream.height, stream.width, stream.pix_fmt = 32, 40, "yuv420p"
            for frame in film[: 9 + number % 3]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return {"path": path}


KINDS: list[Callable[[Path], dict[str, Any]]]
KINDS = [npy, npy_of_other_orders, npz, hdf5, zarr_store, matlab, plain_stacks, packed_stacks, gifs, folders, films]


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_in_its_file_is_read_as_in_memory(kind: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    if kind is films and importlib.util.find_spec("av") is None:
        pytest.skip("needs av")
    options = kind(tmp_path) | {"n_frames": 3, "stride": 2, "dilation": 2}
    whole, pieces = (arrays(**options, memory=memory) for memory in (None, 0))
    for kept, stored in zip(whole, pieces, strict=True):
        assert isinstance(kept.pixels, Clips)
        assert isinstance(stored.pixels, Clips)
        assert isinstance(kept.pixels.films, InMemory)
        assert not isinstance(stored.pixels.films, InMemory)
        assert torch.equal(kept.labels, stored.labels)
        assert kept.pixels.shape == stored.pixels.shape
        assert kept.pixels.dtype == stored.pixels.dtype
        assert torch.equal(kept.pixels[ALL(len(kept.labels))], stored.pixels[ALL(len(kept.labels))])
    sent: Any = pickle.loads(pickle.dumps(pieces.train.pixels))  # as to workers that are not forked
    assert torch.equal(sent[ALL(2)], pieces.train.pixels[ALL(2)])
    assert "which stay where they are and are read batch by batch (data.source.memory=1 " in pieces.train.about
    if kind is npy:  # the pixels of the file itself
        clips = pieces.train.pixels
        for row, (film, start) in enumerate(zip(clips.film, clips.start, strict=True)):
            expected = FILMS[film, start : start + 5 : 2].transpose(0, 3, 1, 2)
            assert np.array_equal(clips[row], expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [npy, hdf5, zarr_store])
def test_workers_read_the_same(kind: Callable[[Path], dict[str, Any]], workers: int, tmp_path: Path) -> None:
    options = kind(tmp_path) | {"n_frames": 14}
    expected = SequenceDataModule(arrays(**options), n_frames=14, batch_size=3)
    data = SequenceDataModule(arrays(**options, memory=0), n_frames=14, batch_size=3, num_workers=workers)
    next(data.batches("test"))  # files that are open already, when workers begin
    for one, two in zip(data.train_dataloader(), expected.train_dataloader(), strict=True):
        assert torch.equal(one["x"], two["x"])


def test_still_images_that_stay_in_their_file_move_as_others(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FILMS.reshape(-1, 8, 10, 3))
    whole, pieces = (
        SequenceDataModule(
            arrays(tmp_path / "a.npy", memory=memory, crop=[8, 8]), pyro_tvae_motion(), n_frames=3, batch_size=5
        )
        for memory in (None, 0)
    )
    assert torch.equal(next(whole.batches("test"))["x"], next(pieces.batches("test"))["x"])
    assert torch.equal(whole.mean_frame(), pieces.mean_frame())


def pyro_tvae_motion() -> Any:
    from pyro_tvae.experiments.datasets import Transformations

    return Transformations(rotation=True)


def test_a_file_that_shrinks_while_it_is_read_ends_in_a_sentence(tmp_path: Path) -> None:
    parts = arrays(**npy(tmp_path), n_frames=14, memory=0)
    os.truncate(tmp_path / "a.npy", 1000)
    text = refused(lambda: parts.train.pixels[ALL(2)], ValueError)
    assert text.startswith(f"{tmp_path / 'a.npy'}: it was changed or replaced while it was being read; leave it as")
    with pytest.raises(Unsuitable, match=r"^it is shorter than it says, and may be damaged; write it again\."):
        Raw(tmp_path / "a.npy", "u1", 128, (10, 100))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_anew_while_it_is_read_ends_in_a_sentence(
    kind: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    """Of as many bytes: its values would be read as if they were of the type and the places of the former ones."""
    if kind is films and importlib.util.find_spec("av") is None:
        pytest.skip("needs av")
    options = kind(tmp_path) | {"n_frames": 3, "stride": 3}
    parts = arrays(**options, memory=0)
    parts.train.pixels[ALL(2)]
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        shutil.copy(file, tmp_path / "other")
        os.utime(tmp_path / "other", ns=(0, 0))
        (tmp_path / "other").replace(file)
    text = refused(lambda: parts.train.pixels[ALL(2)], ValueError)
    assert text.startswith(str(options["path"]))
    assert ": it was changed or replaced while it was being read; leave it as it is until what reads it has" in text


def test_chunks_that_are_not_there_are_told_of(tmp_path: Path) -> None:
    """As of a folder that was copied in part, or of frames that are black."""
    options = zarr_store(tmp_path)
    chunks = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "zarr.json"]
    chunks[0].unlink()
    with pytest.warns(
        UserWarning, match=rf"a.zarr: 1 of {len(chunks)} chunks of the array are not there and read as 0"
    ):
        arrays(**options, n_frames=14)


def test_fingerprints_tell_films_apart_by_a_sample(tmp_path: Path) -> None:
    def taken(memory: float | None, stride: int = 2) -> Any:
        data = SequenceDataModule(arrays(**options, n_frames=4, stride=stride, memory=memory), n_frames=4)
        return fingerprints(data)

    for memory in (None, 0):
        options = npy(tmp_path)
        before = taken(memory)
        assert other_splits(before, taken(memory)) == []
        assert other_splits(before, taken(memory, stride=3))
        np.save(tmp_path / "a.npy", np.where(np.arange(9)[:, None, None, None, None] == 4, FILMS[::-1], FILMS) // 2 * 2)
        assert other_splits(before, taken(memory))


class Counted(Dataset):
    """Films of unlike lengths, which counts how often each was made."""

    def __init__(self) -> None:
        self.made = [0] * len(FILMS)

    def __len__(self) -> int:
        return len(FILMS)

    def __getitem__(self, place: int) -> dict[str, Any]:
        self.made[place % 9] += 1  # which says nowhere that there are no more
        film = FILMS[place % 9, : 8 + place % 3].transpose(0, 3, 1, 2)
        return {"film": torch.from_numpy(film), "kind": place % 2}


def test_items_of_a_dataset_are_read_when_a_batch_wants_them() -> None:
    data = Counted()
    options: dict[str, Any] = {"key": "film", "labels_key": "kind", "n_frames": 4, "stride": 3, "axes": "NTCHW"}
    kept = from_torch(data, **options)
    assert data.made == [1] * 9
    read = from_torch(data, **options, memory=1e-9)
    before = sum(data.made)
    rows = torch.tensor([0, 3])
    assert torch.equal(read.train.pixels[rows], kept.train.pixels[rows])
    assert sum(data.made) == before + 2
    assert "9 sequences of 8 to 10 frames" in read.train.about


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_of_too_many_items_is_read_by_its_dataset(shuffle: bool) -> None:
    class Same(Counted):
        def __getitem__(self, place: int) -> dict[str, Any]:
            super().__getitem__(place)
            return {"film": torch.from_numpy(FILMS[place].transpose(0, 3, 1, 2)), "kind": place % 2}

    data = Same()
    loader = DataLoader(data, batch_size=4, shuffle=shuffle)
    parts = from_torch(loader, key="film", labels_key="kind", n_frames=14, axes="NTCHW", memory=1e-5)
    assert isinstance(parts.train.pixels, Clips)
    expected = from_torch(data, key="film", labels_key="kind", n_frames=14, axes="NTCHW")
    assert torch.equal(parts.train.pixels[ALL(3)], expected.train.pixels[:3])
    assert torch.equal(parts.train.labels, expected.train.labels)


# What was not measured


def test_short_films_are_filled_up_by_frames_that_are_not_observed(tmp_path: Path) -> None:
    for number, film in enumerate(FILMS):
        np.save(tmp_path / f"{number}.npy", film[: 14 if number % 2 else 3 + number])
    options: dict[str, Any] = {"path": tmp_path, "axes": "THWC", "n_frames": 14, "short": "pad"}
    for memory in (None, 0):
        parts = arrays(**options, memory=memory)
        assert "films filled up to 14 frames" in parts.train.about
        data = SequenceDataModule(parts, n_frames=14)
        batch = next(data.batches("train"))
        for x, seen in zip(batch["x"], batch["observed"], strict=True):
            n = int(seen.sum())
            assert seen[:n].all()
            number = next(k for k, film in enumerate(FILMS) if np.allclose(x[0], film[0].transpose(2, 0, 1) / 255))
            assert n == (14 if number % 2 else 3 + number)
            assert np.allclose(x[:n], FILMS[number, :n].transpose(0, 3, 1, 2) / 255)
            assert not x[n:].any()
        seen = batch["observed"][..., None, None, None]
        expected = (batch["x"] * seen).sum((0, 1)) / seen.sum((0, 1))
        assert torch.allclose(data.mean_frame(), expected, atol=1e-6)


def masked(path: Path) -> tuple[NDArray, dict[str, Any]]:
    x = rng.random((9, 14, 6, 7), dtype=np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[3, 5:8] = np.nan
    np.save(path / "a.npy", x)
    return x, {"path": path / "a.npy", "axes": "NTHW", "n_frames": 4, "stride": 2}


@pytest.mark.parametrize("memory", [None, 0])
def test_nan_and_masks_say_what_was_measured(memory: float | None, tmp_path: Path) -> None:
    x, options = masked(tmp_path)
    assert "mask=isnan" in refused(lambda: arrays(**options, memory=memory), ValueError)
    by_nan = arrays(**options, mask="isnan", memory=memory)
    np.save(tmp_path / "b.npy", np.where(np.isnan(x), 77.0, x))  # whatever stands there
    np.save(tmp_path / "mask.npy", ~np.isnan(x))
    by_file = arrays(**(options | {"path": tmp_path / "b.npy"}), mask="mask.npy", memory=memory)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["good"] = np.where(np.isnan(x), -1.0, x), (~np.isnan(x)).astype("u1")
    by_name = arrays(**(options | {"path": tmp_path / "a.h5"}), key="x", mask="good", memory=memory)
    for parts in (by_nan, by_file, by_name):
        assert f"{1 - np.isnan(x).mean():.1%} of the pixels measured, in 123 of 126 frames" in parts.train.about
        for part in parts:
            clips: Any = part.pixels
            pixels, observed, measured = clips.batch(ALL(len(clips)))
            for row, (film, start) in enumerate(zip(clips.film, clips.start, strict=True)):
                true = x[film, start : start + 4]
                assert np.array_equal(measured[row, :, 0], ~np.isnan(true))
                assert np.array_equal(observed[row], ~np.isnan(true).all((1, 2)))
                assert np.allclose(pixels[row, :, 0], np.nan_to_num(true), atol=1e-6)


def test_a_mask_of_frames_or_of_a_camera(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FILMS)
    options: dict[str, Any] = {"path": tmp_path / "a.npy", "axes": "NTHWC", "n_frames": 14}
    frames = rng.random((9, 14)) < 0.7
    np.save(tmp_path / "frames.npy", frames)
    parts = arrays(**options, mask="frames.npy", validation=0, test=0)
    _, observed, measured = parts.train.pixels.batch(ALL(9))
    assert measured is None
    assert np.array_equal(observed, frames[parts.train.pixels.film])
    camera = rng.random((8, 10)) < 0.7
    np.save(tmp_path / "camera.npy", camera)
    _, observed, measured = arrays(**options, mask="camera.npy", validation=0, test=0).train.pixels.batch(ALL(9))
    assert observed.all()
    assert (measured == torch.from_numpy(camera)).all()
    np.save(tmp_path / "all.npy", np.ones((9, 14)) > 0)
    assert isinstance(arrays(**options, mask="all.npy").train.pixels, torch.Tensor)
    for name, wrong, said in (
        ("shape", np.ones((9, 13)) > 0, r"has shape \(9, 13\), but the pixels have \(9, 14, 8, 10, 3\) \(NSHWC\) or"),
        ("type", np.ones((9, 14)), "has type float64; expected booleans or whole numbers"),
        ("none", np.zeros((9, 14)) > 0, "says that nothing was measured"),
    ):
        np.save(tmp_path / f"{name}.npy", wrong)
        with pytest.raises(ValueError, match=said):
            arrays(**options, mask=f"{name}.npy")
    for mask, said in (("nan", "pixels of type uint8 have none"), ("other", "give one of these, the name of a file")):
        with pytest.raises(ValueError, match=said):
            arrays(**options, mask=mask)
    with pytest.raises(ValueError, match="mask is for sequences"):
        arrays(tmp_path / "camera.npy", axes="HW", mask="nan")


def test_a_masked_film_trains_and_is_judged_on_what_was_measured(tmp_path: Path) -> None:
    _, options = masked(tmp_path)
    data = SequenceDataModule(arrays(**options, mask="isnan"), n_frames=4)
    model = pyro_tvae.TVAE(data.frame_shape, 4, 2, 4, topography=pyro_tvae.CapsuleRoll(3))
    guide = pyro_tvae.MeanFieldGuide(model)
    fit(model, guide, data, max_epochs=1, progress=False)
    batch = next(data.batches("test"))
    with torch.no_grad():
        torch.manual_seed(0)
        terms = ELBO(model, guide)(batch["x"], batch["observed"], measured=batch["measured"])
        torch.manual_seed(0)
        draws = guide(batch["x"], batch["observed"])
        pixels = model.likelihood(model.decode(model.compose(draws)).base_dist.logits).log_prob(batch["x"])
        seen = batch["measured"] & batch["observed"][..., None, None, None]
    by_hand = torch.where(seen, pixels, 0).flatten(1).sum(1)
    assert torch.allclose(terms.reconstruction, by_hand, rtol=1e-5)
    other = {**batch, "x": torch.where(seen, batch["x"], 0.7)}
    torch.manual_seed(0)
    again = ELBO(model, guide)(torch.where(seen, other["x"], 0), batch["observed"], measured=batch["measured"])
    assert torch.equal(again.elbo, terms.elbo)
    result = evaluate(model, guide, data, num_particles=2, progress=False)
    measures: Any = result.record["measures"]["trained"]
    frames = float(torch.cat([b["observed"] for b in data.batches("test")]).sum(1).double().mean())
    mean = data.mean_frame()
    ends = (
        model.likelihood.at_mean(mean).log_prob(batch["x"]),
        model.likelihood.at_mean(batch["x"]).log_prob(batch["x"]),
    )
    low, high = (float(torch.where(seen, end, 0).flatten(1).sum(1).mean()) / frames for end in ends)
    assert measures["explained"] == pytest.approx((measures["elbo"] - low) / (high - low), rel=1e-4)
    assert not result.record["failed"]


# Crops, sizes and colors


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_looks_are_those_of_torchvision(dtype: torch.dtype) -> None:
    x = torch.from_numpy(FILMS[0].transpose(0, 3, 1, 2).copy())
    x = x if dtype == torch.uint8 else x / 255
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"crop": 6}, lambda x: functional.center_crop(x, [6, 6])),
        ({"crop": [4, 9]}, lambda x: functional.center_crop(x, [4, 9])),
        ({"crop": [1, 2, 4, 5]}, lambda x: x[..., 1:5, 2:7]),
        ({"resize": 4}, lambda x: functional.resize(x, [4], antialias=True)),
        ({"resize": [12, 5]}, lambda x: functional.resize(x, [12, 5], antialias=True)),
        ({"color": "gray"}, functional.rgb_to_grayscale),
        ({"color": "rgb"}, lambda x: x),
        (
            {"crop": 6, "resize": 3, "color": "gray"},
            lambda x: functional.rgb_to_grayscale(functional.resize(functional.center_crop(x, [6, 6]), [3, 3])),
        ),
    ]
    for options, expected in cases:
        look = Look(**options)
        assert torch.equal(look(x), expected(x))
        assert look(x).shape[1:] == look.shape(x.shape[1:])
    assert torch.equal(Look(color="rgb")(x[:, :1]), x[:, :1].expand(-1, 3, -1, -1))


def test_a_resized_pixel_was_measured_where_all_that_it_is_made_of_was() -> None:
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 3, 5] = False
    look = Look(resize=4)
    small = look(mask, mask=True)
    for row in range(8):
        for column in range(8):
            one = torch.zeros(1, 1, 8, 8)
            one[..., row, column] = 1
            if not mask[0, 0, row, column]:
                assert torch.equal(small, look(one) < 1e-4)
    assert 1 <= int((~small).sum()) <= 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": -1}, "memory is -1; expected gigabytes of pixels"),
        ({"memory": "all"}, "memory is 'all'; expected"),
        ({"crop": 9}, r"crop is 9, and frames have 8 x 10 pixels; expected a part of these"),
        ({"crop": [1, 2, 8, 8]}, "expected a part of these"),
        ({"crop": [1, 2, 3]}, r"crop is \[1, 2, 3\]; expected a number of pixels, \[height,width\] or \[top,left"),
        ({"resize": 0}, r"resize is 0; expected a number of pixels, \[height,width\] \('data.source.resize"),
        ({"resize": "4"}, "resize is '4'"),
        ({"color": "blue"}, "color is 'blue'; expected gray or rgb"),
    ],
)
def test_looks_that_are_none_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        arrays(**npy(tmp_path), **options)


def test_color_takes_one_channel_or_three(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FILMS[..., :2])
    with pytest.raises(ValueError, match="color is 'gray', and frames have 2 channels; expected 1 or 3"):
        arrays(tmp_path / "a.npy", axes="NTHWC", color="gray")


# From films to a report


def test_from_films_of_unlike_lengths_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "films").mkdir()
    for number, film in enumerate(np.concatenate([FILMS, FILMS[:, ::-1]])):
        np.save(tmp_path / "films" / f"{number}.npy", film[: 6 + number % 5].astype("f4") / 255)
    words = ["path=films", "axes=THWC", "stride=3", "resize=8", "color=gray", "memory=0"]
    config = compose(["data=sequences", *SMALL, *(f"data.source.{word}" for word in words)])
    config.data.source.path = str(tmp_path / "films")
    train_run(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert "18 sequences of 6 to 10 frames" in said
    assert "cut into windows of 4 frames a window every 3: " in said
    assert "split by film (10, 4, 4)" in said
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/png") >= 5
    assert Run(tmp_path / "run").load().data.frame_shape == (1, 8, 10)


def test_sequences_that_are_longer_say_how_to_cut_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"or cut windows of 5 frames from them by stride \(data.source.stride=5\)"):
        SequenceDataModule(arrays(**npy(tmp_path)), n_frames=5)


# What it costs


def test_the_large_file_s_benchmark_reads_one_by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_file, "call", lambda function, options: function(**options))
    monkeypatch.setattr(large_file, "arrays", lambda path, **options: arrays(path, **options | {"memory": 1e-4}))
    setting = Setting(2, 3, 8, 1, 3, 3, 0)
    record = large_file.run(threads=1, progress=False, small=1, large=2e5, turns=2, steps=2, setting=setting)
    assert record["files"]["small"] < 64 * 3 * 64 + 200 < 1.9e5 < record["files"]["large"]
    assert record["speed"]["repeats"] == 2
    assert record["more"] == record["peaks"]["large"] - record["peaks"]["small"]
    console = Console(width=100, record=True)
    large_file.print_record(record, console)
    assert "MB more, at most 2,000" in console.export_text()
