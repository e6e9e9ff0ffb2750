"""Files as people have them, each made here by the library that its field uses, and read back as it was."""

from __future__ import annotations

import importlib.util
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import torch
import zarr
from complaints import answer, damaged
from numpy.typing import NDArray
from PIL import Image

from pyro_tvae.experiments.datasets import DataNotFound, Frames, Images, arrays
from pyro_tvae.experiments.datasets.readers import matlab, read, reader
from pyro_tvae.experiments.datasets.readers.content import Pieces, Reopened, Request
from pyro_tvae.experiments.datasets.splits import cuts

N, S, HEIGHT, WIDTH = 12, 4, 6, 7
rng = np.random.default_rng(0)
STILLS = rng.integers(0, 256, (N, HEIGHT, WIDTH), dtype=np.uint8)
COLORS = rng.integers(0, 256, (N, HEIGHT, WIDTH, 3), dtype=np.uint8)
FILMS = rng.integers(0, 256, (N, S, HEIGHT, WIDTH), dtype=np.uint8)
LABELS = np.arange(N) % 3


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


def whole(path: Path, **options: object) -> tuple[NDArray, NDArray, str]:
    """All pixels and labels in the order of the file, and what is said of them."""
    parts = arrays(path, validation=0.0, test=0.0, seed=1, **options).train  # type: ignore[arg-type]
    assert isinstance(parts, Images | Frames)
    n, labeled = len(parts.labels), len(parts.labels.unique()) > 1
    # What the split did to the order shows when it is done again.
    order = torch.argsort(cuts(torch.as_tensor(LABELS[:n] if labeled else np.full(n, -1)), 0.0, 0.0, 1)[0])
    return parts.pixels[order].numpy(), parts.labels[order].numpy(), parts.about


def pictures(folder: Path, frames: NDArray, name: str = "{}.png", **options: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(number), **options)


# Files of arrays


def test_hdf5_as_3dshapes_keeps_it(tmp_path: Path) -> None:
    table = np.stack([rng.random(N), LABELS, np.linspace(0.75, 1.25, N)], 1)
    with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
        file.create_dataset("images", data=COLORS, chunks=(2, HEIGHT, WIDTH, 3), compression="gzip")
        file["labels"] = table
        file["group/names"] = [f"kind {label}" for label in LABELS]
    request = {"key": "images", "axes": "NHWC"}
    pixels, labels, about = whole(tmp_path / "3dshapes.h5", labels_key="labels", label_column=1, **request)
    assert np.array_equal(pixels, COLORS.transpose(0, 3, 1, 2))
    assert np.array_equal(labels, LABELS)
    assert "12 images, 3 channels, 6 x 7 pixels (axes=NHWC, as said)" in about
    assert np.array_equal(whole(tmp_path / "3dshapes.h5", labels_key="group/names", **request)[1], LABELS)
    with pytest.raises(ValueError, match=r"holds the arrays group/names, images, labels; set key"):
        arrays(tmp_path / "3dshapes.h5")
    with pytest.raises(ValueError, match=r"are a table of shape \(12, 3\)"):
        arrays(tmp_path / "3dshapes.h5", labels_key="labels", **request)  # type: ignore[arg-type]
    stored = read(tmp_path / "3dshapes.h5", Request(key="images"))
    assert isinstance(stored.pixels, Reopened)
    assert isinstance(stored.pixels.array, h5py.Dataset)  # which is read by slices
    assert np.array_equal(stored.pixels[3:5], COLORS[3:5])


def test_hdf5_opens_no_other_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = STILLS
    (tmp_path / "raw").write_bytes(STILLS.tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("other.h5", "secret")
        file.create_dataset("outside", STILLS.shape, "u1", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
        layout = h5py.VirtualLayout(STILLS.shape, "u1")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", STILLS.shape)
        file.create_virtual_dataset("virtual", layout)
    for key, said in (
        ("linked", "holds the arrays outside, virtual"),
        ("outside", "other files"),
        ("virtual", "other"),
    ):
        with pytest.raises(ValueError, match=said):
            arrays(tmp_path / "a.h5", key=key)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_of_both_versions(version: int, tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    for name, value in (("deep/films", FILMS), ("kinds", LABELS)):
        group.create_array(name, shape=value.shape, dtype=value.dtype, chunks=(5, S, 4, 4)[: value.ndim])[...] = value
    request = {"key": "deep/films", "labels_key": "kinds"}
    pixels, labels, about = whole(tmp_path / "a.zarr", n_frames=S, **request)
    assert np.array_equal(pixels[:, :, 0], FILMS)
    assert np.array_equal(labels, LABELS)
    assert "axes=NSHW, inferred" in about
    stored = read(tmp_path / "a.zarr", Request(**request)).pixels  # type: ignore[arg-type]
    assert isinstance(stored, Reopened)
    assert isinstance(stored.array, zarr.Array)
    zarr.save_array(tmp_path / "alone", STILLS, zarr_format=version)  # a folder without a suffix
    assert np.array_equal(whole(tmp_path / "alone")[0][:, 0], STILLS)


def test_zarr_that_asks_for_a_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / ".zarray").write_text(
        '{"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": null, "order": "C", '
        '"compressor": null, "filters": [{"id": "pickle", "protocol": 5}]}'
    )
    with pytest.raises(ValueError, match="asks for pickled objects, and nothing is ever unpickled"):
        arrays(tmp_path / "a.zarr")


def matlab_7_3(path: Path, **variables: NDArray) -> None:
    """As MATLAB writes it: HDF5 behind a block of its own, axes the other way round, kinds as attributes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            file.create_dataset(name, data=value.T.astype("u1") if value.dtype == bool else value.T)
            file[name].attrs["MATLAB_class"] = np.bytes_("logical" if value.dtype == bool else str(value.dtype))
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_matlab_in_its_own_order(version: str, tmp_path: Path) -> None:
    """cars3d: (height, width, channel, turn, raised), of which each height of the camera is a sequence of turns."""
    path, car = tmp_path / "car_001_mesh.mat", rng.integers(0, 256, (HEIGHT, WIDTH, 3, S, 5), dtype=np.uint8)
    values = {"im": car, "kind": np.array([[0.0, 1, 2, 0, 1]]), "mask": STILLS.transpose(1, 2, 0) > 127}
    scipy.io.savemat(path, values) if version == "5" else matlab_7_3(path, **values)
    pixels, labels, _ = whole(path, key="im", labels_key="kind", axes="HWCSN")
    assert np.array_equal(pixels, car.transpose(4, 3, 2, 0, 1))
    assert labels.tolist() == [0, 1, 2, 0, 1]
    pixels, _, about = whole(path, key="mask", axes="HWN")
    assert np.array_equal(pixels[:, 0] > 0, STILLS > 127)
    assert "false is black" in about
    with pytest.raises(ValueError, match=r"can be read as .*\(axes=HWN\) or as .*\(axes=HWS\) or as .*\(axes=NHW\)"):
        arrays(path, key="mask")


def test_matlab_keeps_words(tmp_path: Path) -> None:
    words = ["ant", "bee", "cat"] * 4
    scipy.io.savemat(tmp_path / "a.mat", {"x": STILLS, "y": words, "cells": np.array([{}, 1], dtype=object)})
    assert np.array_equal(whole(tmp_path / "a.mat", key="x", labels_key="y", axes="NHW")[1], LABELS)
    with pytest.raises(ValueError, match="holds the arrays x, y; set key"):
        arrays(tmp_path / "a.mat", key="cells")


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_of_a_type_that_is_not_known_is_refused(
    compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"y": LABELS, "x": STILLS}, do_compression=compressed)
    assert np.array_equal(whole(path, key="x", labels_key="y", axes="NHW")[0][:, 0], STILLS)
    bytes_ = 2  # how the format numbers whole numbers of one byte
    monkeypatch.setattr(matlab, "TYPES", tuple(kind for kind in matlab.TYPES if kind != bytes_))
    with pytest.raises(ValueError, match="'x' are of no type that there is: it may be damaged"):
        arrays(path, key="x", axes="NHW")


SEVEN = np.array(
    [[float(mark) for mark in row] for row in ("011111", "000001", "000010", "000100", "001000", "001000")]
)


@pytest.mark.parametrize(
    ("name", "lines", "word"),
    [
        ("mnist_all_rotation_normalized_float_train_valid", SEVEN, "NHW"),
        ("mnist_all_background_images_rotation_normalized_test", SEVEN, "NHW"),
        ("mnist_background_random_train", SEVEN.T, "NWH"),
        ("mnist_noise_variations_all_3", SEVEN.T, "NWH"),
    ],
)
def test_published_variations_of_mnist_are_upright(tmp_path: Path, name: str, lines: NDArray, word: str) -> None:
    """By the name of a file, whose lines go through the digit row by row, or column by column; axes say otherwise."""
    path = tmp_path / f"{name}.amat"
    np.savetxt(path, np.column_stack([np.tile(lines.ravel(), (N, 1)), LABELS]), fmt="%.9g")
    pixels, labels, about = whole(path)
    assert all(np.array_equal(one, SEVEN) for one in pixels[:, 0])
    assert np.array_equal(labels, LABELS)
    assert f"axes={word}, as this kind of file has it" in about
    assert np.array_equal(whole(path, axes=word[0] + word[:0:-1])[0][0, 0], SEVEN.T)


def test_other_text_may_lie_either_way(tmp_path: Path) -> None:
    pictures_ = rng.random((N, 28, 28)).astype("f4")
    columns = pictures_.transpose(0, 2, 1).reshape(N, -1)
    np.savetxt(tmp_path / "a.amat", np.column_stack([columns, LABELS]), fmt="%.9g")
    with pytest.raises(ValueError, match=r"read as .*\(axes=NHW\) or as .*\(axes=NWH\); say which"):
        arrays(tmp_path / "a.amat")
    assert np.array_equal(whole(tmp_path / "a.amat", axes="NWH")[0][:, 0], pictures_)
    np.savetxt(tmp_path / "b.amat", rng.random((3, 12)))
    with pytest.raises(ValueError, match="has 12 numbers a line; expected those of a square image and a label"):
        arrays(tmp_path / "b.amat")


def norb(path: Path, array: NDArray, magic: int, order: str) -> None:
    sizes = [*array.shape, *[1] * (3 - array.ndim)]
    header = struct.pack(f"{order}{2 + len(sizes)}i", magic, array.ndim, *sizes)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(order)).tobytes())


@pytest.mark.parametrize("order", ["<", ">"])
def test_small_norb(order: str, tmp_path: Path) -> None:
    pairs = rng.integers(0, 256, (N, 2, 96, 96), dtype=np.uint8)
    poses = np.stack([np.arange(N), LABELS, 2 * LABELS, LABELS], 1).astype("i4")
    name = "smallnorb-5x46789x9x18x6x2x96x96-training-{}.mat"
    norb(tmp_path / name.format("dat"), pairs, 0x1E3D4C55, order)
    norb(tmp_path / name.format("cat"), LABELS.astype("i4"), 0x1E3D4C54, order)
    norb(tmp_path / name.format("info"), poses, 0x1E3D4C54, order)
    path = tmp_path / name.format("dat")
    pixels, labels, about = whole(path)
    assert np.array_equal(pixels, pairs)
    assert np.array_equal(labels, LABELS)
    assert "12 images, 2 channels, 96 x 96 pixels" in about
    assert np.array_equal(whole(path, labels_key="azimuth")[1], 2 * LABELS)
    (tmp_path / name.format("info")).unlink()
    with pytest.raises(ValueError, match=r"training-info.mat does not lie beside the file"):
        arrays(path, labels_key="azimuth")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="may be damaged"):
        arrays(path)


# Pictures, stacks and films


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
@pytest.mark.parametrize("frames", [STILLS, COLORS], ids=["gray", "colors"])
def test_a_folder_of_pictures(suffix: str, frames: NDArray, tmp_path: Path) -> None:
    lossless = {"lossless": True} if suffix == "webp" else {}
    pictures(tmp_path, frames, f"frame{{}}.{suffix}", **lossless)  # frame10 comes after frame9
    (tmp_path / "notes.txt").write_text("not one of them")
    (tmp_path / f".hidden.{suffix}").write_text("nor this")
    pixels, labels, _ = whole(tmp_path)
    if frames.ndim == 3 and suffix == "webp":  # which has no gray pictures
        frames = np.repeat(frames[..., None], 3, -1)
    assert np.array_equal(pixels, frames[:, None] if frames.ndim == 3 else frames.transpose(0, 3, 1, 2))
    assert labels.tolist() == [-1] * N


def test_jpeg_is_read_as_it_was_held(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 32 * 24).reshape(32, 24).astype("u1")
    sideways = Image.fromarray(np.rot90(smooth))
    data = Image.Exif()
    data[0x0112] = 6  # to be turned a quarter clockwise
    for number in range(3):
        sideways.save(tmp_path / f"{number}.jpg", exif=data, quality=95)
    pixels, _, _ = whole(tmp_path)
    assert pixels.shape == (3, 1, 32, 24)
    assert np.abs(pixels[0, 0].astype(int) - smooth).max() < 12


def test_folders_are_classes_or_sequences_as_is_said(tmp_path: Path) -> None:
    for label in range(3):
        pictures(tmp_path / f"kind {label}", COLORS[4 * label : 4 * label + 4])
    ways = r"12 images, the folders their classes \(axes=NHWC\) or as 3 sequences \(axes=NSHWC\).*data.source.axes=NHWC"
    with pytest.raises(ValueError, match=ways):
        arrays(tmp_path)
    with pytest.raises(ValueError, match=ways):
        arrays(tmp_path, n_frames=5)
    stills = arrays(tmp_path, axes="NHWC", validation=0, test=0).train
    assert isinstance(stills, Images)
    assert stills.labels.bincount().tolist() == [4, 4, 4]
    assert "labels of the folders: 3 kinds (kind 0, kind 1, kind 2)" in stills.about
    for pixels, label in zip(stills.pixels, stills.labels, strict=True):  # each beside its own folder
        assert any(np.array_equal(pixels.permute(1, 2, 0), one) for one in COLORS[4 * label : 4 * label + 4])
    for said in ({"axes": "NTHWC"}, {"n_frames": 4}):
        pixels, _, _ = whole(tmp_path, **said)  # type: ignore[arg-type]
        assert np.array_equal(pixels, COLORS.reshape(3, 4, HEIGHT, WIDTH, 3).transpose(0, 1, 4, 2, 3))
    (tmp_path / "kind 1" / "3.png").unlink()
    with pytest.raises(ValueError, match="holds films of 3 to 4 frames; expected as many in each: cut them"):
        arrays(tmp_path, axes="NSHWC")


def test_classes_of_sequences(tmp_path: Path) -> None:
    for number, film in enumerate(FILMS[:6]):
        pictures(tmp_path / f"{'ab'[number % 2]}" / f"film{number}", film)
    parts = arrays(tmp_path, validation=0, test=0).train
    assert isinstance(parts, Frames)
    for pixels, label in zip(parts.pixels, parts.labels, strict=True):
        assert any(np.array_equal(pixels[:, 0], film) for film in FILMS[label:6:2])


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        ("1", rng.random((N, HEIGHT, WIDTH)) > 0.5),
        ("I;16", rng.integers(0, 65536, (N, HEIGHT, WIDTH), dtype=np.uint16)),
        ("RGBA", rng.integers(0, 256, (N, HEIGHT, WIDTH, 4), dtype=np.uint8)),
    ],
)
def test_kinds_of_png(kind: str, array: NDArray, tmp_path: Path) -> None:
    pictures(tmp_path, array)
    pixels, _, _ = whole(tmp_path, range=[0, 65535] if kind == "I;16" else None)
    expected = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
    scale = {"1": 255, "I;16": 1 / 65535, "RGBA": 1}[kind]
    assert np.allclose(pixels, expected * np.float32(scale), atol=1e-7)


def test_a_palette_is_colors_and_not_numbers(tmp_path: Path) -> None:
    for number, frame in enumerate(COLORS):
        Image.fromarray(frame).quantize(64).save(tmp_path / f"{number}.png")
    pixels, _, _ = whole(tmp_path)
    assert np.array_equal(pixels, COLORS.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("kind", [0, 2, 4, 6])
def test_colors_of_sixteen_bits_are_not_cut_to_eight(kind: int, tmp_path: Path) -> None:
    """By the format's own words: 0 is gray, 2 is red, green and blue, 4 and 6 have opacity too."""
    values = rng.integers(0, 65536, (HEIGHT, WIDTH, {0: 1, 2: 3, 4: 2, 6: 4}[kind]), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    parts = (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    if kind == 0:
        pixels = whole(tmp_path / "a.png", axes="HWC", range=[0, 65535])[0]
        np.testing.assert_allclose(pixels.squeeze() * 65535, values.squeeze(), rtol=1e-6)
    else:
        with pytest.raises(ValueError, match="channels have 16 bits each, of which 8 would be lost; keep it as TIFF"):
            arrays(tmp_path / "a.png", axes="HWC")


def test_unlike_pictures_are_named(tmp_path: Path) -> None:
    pictures(tmp_path / "sizes", STILLS)
    Image.fromarray(STILLS[0, :-1]).save(tmp_path / "sizes" / "5.png")
    with pytest.raises(ValueError, match=r"5.png has shape \(5, 7, 1\) and type uint8, but 0.png has \(6, 7, 1\)"):
        arrays(tmp_path / "sizes")
    Image.fromarray(STILLS[0]).convert("CMYK").save(tmp_path / "ink.jpg")
    with pytest.raises(ValueError, match="holds files beside folders of files"):
        arrays(tmp_path)
    with pytest.raises(ValueError, match=r"ink.jpg: has pixels of kind CMYK|has pixels of kind CMYK"):
        arrays(tmp_path / "ink.jpg")
    os.mkfifo(tmp_path / "sizes" / "6b.png")
    with pytest.raises(ValueError, match=r"holds 6b.png, a pipe"):
        arrays(tmp_path / "sizes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files that are read"):
        arrays(tmp_path / "empty")


@pytest.mark.parametrize("frames", [FILMS[0], COLORS[:S]], ids=["gray", "colors"])
def test_gifs_are_films(frames: NDArray, tmp_path: Path) -> None:
    for number in range(3):
        first, *others = (Image.fromarray(np.roll(frame, number, 0)) for frame in frames)
        first.save(tmp_path / f"{number}.gif", save_all=True, append_images=others, duration=50, loop=0)
    pixels, _, about = whole(tmp_path)
    assert pixels.shape == (3, S, 1 if frames.ndim == 3 else 3, HEIGHT, WIDTH)
    expected = frames[:, None] if frames.ndim == 3 else frames.transpose(0, 3, 1, 2)
    assert np.array_equal(pixels[1], np.roll(expected, 1, 2))
    assert "axes=NSCHW, as this kind of file has it" in about


def test_tiff_stacks(tmp_path: Path) -> None:
    deep = rng.integers(0, 4096, (S, HEIGHT, WIDTH), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "pages.tif", deep, photometric="minisblack")
    with pytest.raises(ValueError, match=r"\(axes=SHW\) or as 4 images.*\(axes=NHW\)"):
        arrays(tmp_path / "pages.tif", range=[0, 4095])
    assert np.allclose(whole(tmp_path / "pages.tif", range=[0, 4095], axes="NHW")[0][:, 0], deep / 4095)
    with pytest.raises(ValueError, match=r"type uint16 and run from .*range=\[0,4095\]"):
        arrays(tmp_path / "pages.tif", axes="THW")
    movies = tmp_path / "movies"
    movies.mkdir()
    for number in range(3):  # with the axes that ImageJ writes
        both = np.stack([deep + number, deep], 1)
        tifffile.imwrite(movies / f"{number}.tif", both, imagej=True, metadata={"axes": "TCYX"})
    pixels, _, _ = whole(movies, range=[0, 8191])
    assert pixels.shape == (3, S, 2, HEIGHT, WIDTH)
    assert np.allclose(pixels[2, :, 0], (deep + 2) / 8191)
    singles = tmp_path / "singles"
    singles.mkdir()
    for number, frame in enumerate(rng.random((N, HEIGHT, WIDTH), dtype=np.float32)):
        tifffile.imwrite(singles / f"{number}.tiff", frame)
    assert whole(singles)[0].shape == (N, 1, HEIGHT, WIDTH)
    tifffile.imwrite(tmp_path / "negative.tif", STILLS[0], photometric="miniswhite")
    assert np.array_equal(whole(tmp_path / "negative.tif", axes="HW")[0][0, 0], 255 - STILLS[0])
    tifffile.imwrite(tmp_path / "many.tif", np.zeros((2, 3, 4, 5), "u1"), photometric="minisblack")
    with pytest.raises(ValueError, match="expected at most one beside time"):
        arrays(tmp_path / "many.tif")


def film(path: Path, frames: NDArray, codec: str, layout: str) -> None:
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], layout
        for frame in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(frame, format="gray" if frame.ndim == 2 else "rgb24"))
            )
        container.mux(stream.encode())


@needs("av")
@pytest.mark.parametrize(("layout", "gray"), [("gray", True), ("bgr0", False)])
def test_films_of_a_video_codec(layout: str, gray: bool, tmp_path: Path) -> None:
    frames = rng.integers(0, 256, (S, 32, 48) if gray else (S, 32, 48, 3), dtype=np.uint8)
    for kind in ("walk", "run"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            film(tmp_path / kind / f"{number}.mkv", frames, "ffv1", layout)
    parts = arrays(tmp_path, validation=0, test=0).train
    assert parts.pixels.shape == (6, S, 1 if gray else 3, 32, 48)
    assert parts.labels.bincount().tolist() == [3, 3]
    expected = frames[:, None] if gray else frames.transpose(0, 3, 1, 2)
    assert np.array_equal(parts.pixels[0], expected)  # the codec loses nothing
    assert "labels of the folders: 2 kinds (run, walk)" in parts.about
    film(tmp_path / "walk" / "2.mkv", frames[:-1], "ffv1", layout)
    with pytest.raises(ValueError, match="holds films of 3 to 4 frames; expected as many in each"):
        arrays(tmp_path)


@needs("av")
def test_a_film_that_is_cut_off(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", rng.integers(0, 256, (9, 32, 48, 3), dtype=np.uint8), "mpeg4", "yuv420p")
    assert read(tmp_path / "a.mp4", Request()).pixels.shape == (9, 32, 48, 3)
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:400])
    with pytest.raises(ValueError, match="cannot be read as a video file and may be damaged"):
        arrays(tmp_path / "a.mp4")


# Data sets


@needs("datasets")
def test_a_hugging_face_data_set(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence
    from datasets import Image as Picture

    features = Features(image=Picture(), film=Sequence(Picture()), label=ClassLabel(names=["ant", "bee", "cat"]))
    columns = {
        "image": [Image.fromarray(one) for one in COLORS],
        "film": [[Image.fromarray(frame) for frame in one] for one in FILMS],
        "label": LABELS.tolist(),
    }
    table = Dataset.from_dict(columns, features=features)
    table.save_to_disk(tmp_path / "table")
    DatasetDict(train=table).save_to_disk(tmp_path / "splits")
    for name, split in (("table", ""), ("splits", "train/")):
        pixels, labels, about = whole(tmp_path / name, key=f"{split}image", labels_key=f"{split}label")
        assert np.array_equal(pixels, COLORS.transpose(0, 3, 1, 2))
        assert np.array_equal(labels, LABELS)
        assert "3 kinds (ant, bee, cat)" in about
    assert np.array_equal(whole(tmp_path / "table", key="film", labels_key="label")[0][:, :, 0], FILMS)
    with pytest.raises(ValueError, match="holds the arrays image, film, label; set key"):
        arrays(tmp_path / "table")
    with pytest.raises(ValueError, match=r"train/label|no column of pictures|shape \(12,\)"):
        arrays(tmp_path / "table", key="label")


# What is common to all


def made(folder: Path) -> dict[str, Callable[[Path], None]]:
    """A small file of every kind, by suffix."""

    def hdf5(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["x"] = STILLS

    first, *others = (Image.fromarray(frame) for frame in STILLS)
    return {
        ".npy": lambda path: np.save(path, STILLS),
        ".npz": lambda path: np.savez(path, STILLS),
        ".h5": hdf5,
        ".mat": lambda path: scipy.io.savemat(path, {"x": STILLS}),
        ".amat": lambda path: np.savetxt(path, np.column_stack([rng.random((N, 25)), LABELS]), fmt="%.3f"),
        "-dat.mat": lambda path: norb(path, STILLS[:, None], 0x1E3D4C55, "<"),
        ".tif": lambda path: tifffile.imwrite(path, STILLS, photometric="minisblack"),
        ".gif": lambda path: first.save(path, save_all=True, append_images=others),
        ".png": first.save,
    }


@pytest.mark.parametrize("suffix", made(Path()))
def test_damaged_files_are_answered_in_a_sentence(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    made(tmp_path)[suffix](path)
    content, word = path.read_bytes(), {"-dat.mat": "NCHW", ".gif": "SHWC", ".png": "HWC"}.get(suffix, "NHW")
    assert arrays(path, axes=word, validation=0, test=0).train.labels.shape
    ends = set()
    for seed in range(40):
        # MATLAB's files are cut alone: SciPy trusts what else they hold.
        cut = content[: len(content) * seed // 40]
        path.write_bytes(cut if suffix == ".mat" else damaged(content, seed))
        _, sentence = answer(lambda: arrays(path, axes=word))
        assert sentence is None or str(path) in sentence
        ends.add(sentence is None)
    assert False in ends


def test_content_goes_before_the_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STILLS)
    os.rename(tmp_path / "a.npy", tmp_path / "a.h5")
    assert np.array_equal(whole(tmp_path / "a.h5")[0][:, 0], STILLS)
    (tmp_path / "a.xyz").write_bytes(b"whatever")
    with pytest.raises(ValueError, match=r"is of no kind that is read; expected \.npy, .npz, HDF5"):
        arrays(tmp_path / "a.xyz")
    with pytest.raises(DataNotFound, match="does not exist; give the path of a file or folder of data"):
        arrays(tmp_path / "b.xyz")
    assert reader(tmp_path).__name__.endswith("folders")


def test_pieces_are_read_as_one_array() -> None:
    read_ones: list[int] = []

    def load(number: int) -> NDArray:
        read_ones.append(number)
        return COLORS[number]

    pieces = Pieces(load, range(N))
    for index in (slice(2, 5), [4, 1], 3, -1, (slice(None, None, 3), 0), (2, slice(1, 3)), np.array([True] * N)):
        assert np.array_equal(pieces[index], COLORS[index])
    read_ones.clear()
    pieces[7:9]
    assert read_ones == [7, 8]


@pytest.mark.parametrize(
    ("package", "name", "content", "extra"),
    [("tifffile", "a.tif", b"II*\0", "tiff"), ("av", "a.mp4", b"", "video"), ("zarr", "a/zarr.json", b"{}", "zarr")],
)
def test_what_is_not_installed_is_named(
    package: str, name: str, content: bytes, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"install it with: pip install 'pyro-tvae\[{extra}\]'"):
        arrays(path if path.parent == tmp_path else path.parent)
