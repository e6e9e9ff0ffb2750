"""From a user's file to a report by one command: every format on the command line, colors that turn, and torch's data.

PYRO_TVAE_FORMATS=all in the environment trains and judges on every format, where otherwise one is trained on and the
data of the others are made.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import torch
import yaml
import zarr
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_tvae.experiments.commands.train import train_run
from pyro_tvae.experiments.config.composition import compose, keys, make
from pyro_tvae.experiments.datasets import (
    Frames,
    Images,
    SequenceDataModule,
    Splits,
    Transformations,
    arrays,
    from_torch,
)
from pyro_tvae.experiments.runs.run import Run

EVERY = os.environ.get("PYRO_TVAE_FORMATS") == "all"
N, S, SIDE = 20, 4, 8
rng = np.random.default_rng(0)
STILLS = rng.integers(0, 256, (N, SIDE, SIDE), dtype=np.uint8)
COLORS = rng.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
FILMS = rng.integers(0, 256, (N, S, SIDE, SIDE, 3), dtype=np.uint8)
SMALL = ["model.n_capsules=2", f"model.capsule_dim={S}", f"data.n_frames={S}", "fit.max_epochs=1"]
SMALL += ["baseline.enabled=false", "evaluation.num_particles=2", "fit.progress=false", "fit.accelerator=cpu"]
Made = tuple[str, list[str], tuple[int, int, int]]


def hdf5(path: Path) -> Made:
    with h5py.File(path / "a.h5", "w") as file:
        file["images"], file["labels"] = COLORS, np.stack([np.arange(N) % 3, rng.random(N)], 1)
    return "arrays", [
        *("path=a.h5", "key=images", "labels_key=labels", "label_column=0", "axes=NHWC"),
    ], (3, SIDE, SIDE)  # fmt: skip


def arrays_of_films(path: Path) -> Made:
    np.save(path / "a.npy", FILMS.transpose(1, 0, 2, 3, 4))  # frames first
    return "sequences", ["path=a.npy"], (3, SIDE, SIDE)


def zarr_store(path: Path) -> Made:
    zarr.save_array(path / "a.zarr", FILMS[..., :2].astype("u2"), zarr_format=3)
    return "sequences", ["path=a.zarr", "range=[0,255]"], (2, SIDE, SIDE)


def matlab(path: Path) -> Made:
    scipy.io.savemat(path / "a.mat", {"im": FILMS.transpose(2, 3, 4, 1, 0)})
    return "sequences", ["path=a.mat", "axes=HWCTN"], (3, SIDE, SIDE)


def amat(path: Path) -> Made:
    np.savetxt(path / "a.amat", np.column_stack([STILLS.reshape(N, -1) / 255, np.arange(N) % 4]))
    return "arrays", ["path=a.amat", "axes=NHW"], (1, SIDE, SIDE)


def norb(path: Path) -> Made:
    header = np.array([0x1E3D4C55, 4, N, 2, SIDE, SIDE], "<i4").tobytes()
    (path / "a-dat.mat").write_bytes(header + FILMS[:, :2, :, :, 0].tobytes())
    return "arrays", ["path=a-dat.mat"], (2, SIDE, SIDE)


def classes(path: Path) -> Made:
    for number, frame in enumerate(COLORS):
        (path / f"kind{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(frame).save(path / f"kind{number % 2}" / f"{number}.png")
    return "arrays", ["path=.", "axes=NHWC"], (3, SIDE, SIDE)


def folders(path: Path) -> Made:
    for number, film in enumerate(FILMS):
        (path / str(number)).mkdir()
        for place, frame in enumerate(film):
            Image.fromarray(frame).save(path / str(number) / f"{place}.jpg")
    return "sequences", ["path=."], (3, SIDE, SIDE)


def gifs(path: Path) -> Made:
    for number, film in enumerate(FILMS):
        first, *others = map(Image.fromarray, film)
        first.save(path / f"{number}.gif", save_all=True, append_images=others)
    return "sequences", ["path=."], (3, SIDE, SIDE)


def stacks(path: Path) -> Made:
    for number, film in enumerate(FILMS):
        tifffile.imwrite(path / f"{number}.tif", film[..., 0].astype("f4") / 255, photometric="minisblack")
    return "sequences", ["path=."], (1, SIDE, SIDE)


def videos(path: Path) -> Made:
    import av

    for number, film in enumerate(FILMS.repeat(2, 2).repeat(2, 3)):
        with av.open(path / f"{number}.avi", "w") as container:
            stream = container.add_stream("mjpeg", rate=10)
            stream.height, stream.width, stream.pix_fmt = 2 * SIDE, 2 * SIDE, "yuvj420p"
            for frame in film:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    return "sequences", ["path=."], (3, 2 * SIDE, 2 * SIDE)


def hugging_face(path: Path) -> Made:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    columns = {"image": [*map(Image.fromarray, COLORS)], "label": [n % 2 for n in range(N)]}
    features = Features(image=Picture(), label=ClassLabel(names=["ant", "bee"]))
    Dataset.from_dict(columns, features=features).save_to_disk(path / "a")
    return "arrays", ["path=a", "key=image", "labels_key=label"], (3, SIDE, SIDE)


FORMATS = [arrays_of_films, hdf5, zarr_store, matlab, amat, norb, classes, folders, gifs, stacks, videos, hugging_face]
NEEDS = {videos: "av", hugging_face: "datasets"}


@pytest.mark.parametrize("kind", FORMATS)
def test_from_file_to_report(kind: Callable[[Path], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None:
        pytest.skip(f"needs {NEEDS[kind]}")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    data, typed, frame_shape = kind(Path())
    config = compose([f"data={data}", *(f"data.source.{word}" for word in typed), *SMALL])
    if not (EVERY or kind is classes):
        made = make(config.data)
        assert made.frame_shape == frame_shape
        assert made.n_frames == S
        assert "read as 20" in made.about
        return
    train_run(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/png") >= 5
    assert (tmp_path / "run" / "data.png").stat().st_size > 1000
    assert Run(tmp_path / "run").load().data.frame_shape == frame_shape


def test_how_a_file_was_read_is_said_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", FILMS)
    config = compose(["data=sequences", f"data.source.path={tmp_path / 'a.npy'}", *SMALL, "fit.max_steps=many"])
    with pytest.raises((ValueError, TypeError)):  # the first step is never made
        train_run(config, tmp_path / "run")
    said = "a.npy read as 20 sequences of 4 frames, 3 channels, 8 x 8 pixels (axes=NSHWC, inferred); 0 is black"
    assert said in capsys.readouterr().out


def test_a_mistake_that_shows_after_the_picture_leaves_no_folder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FILMS)
    config = compose(["data=sequences", f"data.source.path={tmp_path / 'a.npy'}", *SMALL, "guide.vote_gain=true"])
    with pytest.raises(ValueError, match="vote_gain is True"):  # so it could not be read back
        train_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_are_listed_though_one_has_no_value_yet() -> None:
    assert {"data.n_frames", "data.source.axes", "data.source.n_frames"} <= {*keys(compose(["data=sequences"]))}


def test_runs_from_before_are_read_as_before(tmp_path: Path) -> None:
    """What is refused unasked today was taken for sequences, frames, channels: a stored run still does."""
    np.save(tmp_path / "a.npy", FILMS.transpose(0, 1, 4, 2, 3)[:, :3])
    with pytest.raises(ValueError, match="can be read as"):
        arrays(tmp_path / "a.npy")
    stored = OmegaConf.to_container(compose(["data=sequences", "data.n_frames=3", "data.source.path=x"]), resolve=True)
    assert isinstance(stored, dict)
    source = {"_target_": stored["data"]["source"]["_target_"], "path": str(tmp_path / "a.npy")}
    stored["data"]["source"] = source | {"key": None, "labels_key": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    data = make(Run(tmp_path).config().data)
    read = data.datasets["train"].source.pixels.numpy()
    assert read.shape == (12, 3, 3, SIDE, SIDE)
    assert {one.tobytes() for one in read} <= {one.tobytes() for one in np.load(tmp_path / "a.npy")}


# Colors that turn


def test_each_channel_turns_as_it_would_alone() -> None:
    motion = Transformations(rotation=True, scale=[0.8, 1.2], perspective=[0, 30])
    images = torch.rand(5, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    index, _ = motion.draw(5, 6, torch.Generator().manual_seed(0))
    x = motion.render(images, index)
    assert x.shape == (5, 6, 3, 9, 12)
    assert x.is_contiguous()
    for channel in range(3):
        assert torch.equal(x[:, :, channel], motion.render(images[:, channel : channel + 1], index)[:, :, 0])
    assert Transformations().render(images, torch.zeros(5, 2, 0, dtype=torch.long)).shape == (5, 2, 3, 9, 12)


def test_hue_colors_what_is_gray() -> None:
    colored = Images(torch.rand(9, 2, 6, 6), torch.zeros(9, dtype=torch.long))
    parts = Splits(colored, colored, colored)
    assert SequenceDataModule(parts, Transformations(rotation=True)).frame_shape == (2, 6, 6)
    with pytest.raises(ValueError, match="the images have 2 channels, and hue colors gray ones; leave hue out"):
        SequenceDataModule(parts, Transformations(hue=True))
    with pytest.raises(ValueError, match=r"expected \(n, 1, height, width\)"):
        Transformations(hue=True).render(colored.pixels, torch.zeros(9, 1, 1, dtype=torch.long))


def test_another_length_names_what_else_to_set() -> None:
    films = Frames(torch.rand(9, 5, 1, 6, 6), torch.zeros(9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"set n_frames to 5 \(data.n_frames=5 .* model.capsule_dim=5"):
        SequenceDataModule(Splits(films, films, films), n_frames=4)


# What a program has already


class Rows(Dataset):
    """Items as a data set of one's own gives them."""

    def __init__(self, rows: list[object]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> object:
        return self.rows[place]


def pixels_of(parts: Splits) -> NDArray:
    return np.concatenate([part.pixels.numpy() for part in parts if isinstance(part, Images | Frames)])


@pytest.mark.parametrize("batched", [False, True])
def test_a_dataset_and_a_loader(batched: bool) -> None:
    x, labels = torch.from_numpy(FILMS), torch.arange(N) % 2
    data = TensorDataset(x, labels)
    given = DataLoader(data, batch_size=6) if batched else data
    parts = from_torch(given, labels_key=1, n_frames=S)
    assert sorted(map(bytes, pixels_of(parts))) == sorted(map(bytes, FILMS.transpose(0, 1, 4, 2, 3).copy()))
    assert [part.labels.sum() for part in parts] == [6, 2, 2]
    assert SequenceDataModule(parts, n_frames=S).about.startswith("DataLoader of TensorD" if batched else "TensorD")


class Ending(Dataset[Any]):
    """Stills whose reader comes to its end early."""

    def __init__(self) -> None:
        self.reader = iter(STILLS[:7])

    def __len__(self) -> int:
        return 12

    def __getitem__(self, item: int) -> NDArray[Any]:
        return next(self.reader)


def refilled(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """One tensor that is filled again and again, as some readers of videos do."""
    frames = torch.empty_like(x[0])
    for one in x:
        yield frames.copy_(one)


def test_a_source_that_fills_one_tensor_again_and_again_is_read_item_by_item() -> None:
    x = torch.rand(10, S, 1, 8, 8)
    parts = from_torch(refilled(x), n_frames=S)
    pixels = torch.cat([torch.as_tensor(part.pixels[:]) for part in (parts.train, parts.validation, parts.test)])
    assert {*pixels.flatten(1).sum(1).tolist()} == {*x.flatten(1).sum(1).tolist()}


@pytest.mark.parametrize("memory", [1.0, 1e-9])
def test_a_loader_with_batches_of_its_own_hands_out_what_it_hands_out(memory: float) -> None:
    data = torch.utils.data.TensorDataset(torch.rand(10, S, 1, 8, 8), torch.arange(10))
    twice = torch.utils.data.BatchSampler([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], 5, drop_last=False)
    loader = torch.utils.data.DataLoader(data, batch_sampler=twice)
    parts = from_torch(loader, labels_key=1, n_frames=S, axes="NSCHW", memory=memory)
    labels = [part.labels for part in (parts.train, parts.validation, parts.test)]
    assert sorted(int(label) for part in labels for label in part) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: DataLoader(data, 1)], ids=["data set", "loader"])
def test_a_data_set_that_ends_early_is_no_whole_one(wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r": it gave 7 of its 12 items; a data set that raises StopIteration is taken"):
        from_torch(wrap(Ending()))


def test_items_of_other_kinds() -> None:
    pictures = Rows([{"image": Image.fromarray(one), "kind": "ab"[n % 2]} for n, one in enumerate(STILLS)])
    parts = from_torch(pictures, key="image", labels_key="kind")
    assert isinstance(parts.train, Images)
    assert np.array_equal(np.sort(pixels_of(parts), None), np.sort(STILLS, None))
    assert "2 kinds (a, b)" in parts.train.about
    for data, options, said in (
        (pictures, {"key": "x"}, "an item has no part 'x'; expected one of 'image', 'kind'"),
        (Rows([STILLS[0], STILLS[1][:5]]), {}, r"item 1 has shape \(5, 8\), but item 0 has \(8, 8\)"),
        (Rows([]), {}, "it holds no items"),
        (Rows([torch.rand(3)]), {}, r"Rows: the array has shape \(1, 3\)"),
        (Rows([torch.rand(8, 8)]), {"labels_key": 1}, "1 is to be a part of each item"),
    ):
        with pytest.raises(ValueError, match=said):
            from_torch(data, **options)  # type: ignore[arg-type]
