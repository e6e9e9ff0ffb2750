"""Factors: what a user's file says of what varies is read as it was written, cut as the pixels are, and judged by.

PYRO_TVAE_FILMS=2000 in the environment tries so many sets of films instead of 100.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
import zarr
from complaints import answer, refused
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

import pyro_tvae
from pyro_tvae.experiments.commands import posterior
from pyro_tvae.experiments.commands.train import train_run
from pyro_tvae.experiments.config.composition import compose, make
from pyro_tvae.experiments.datasets import Factors, Frames, SequenceDataModule, Splits, Transformations, arrays
from pyro_tvae.experiments.datasets import from_torch as read_torch
from pyro_tvae.experiments.evaluation import scoring
from pyro_tvae.experiments.evaluation.evaluate import evaluate
from pyro_tvae.experiments.runs.data import fingerprints, other_splits
from pyro_tvae.experiments.runs.run import Run

TOTAL = int(os.environ.get("PYRO_TVAE_FILMS", "100"))
N, S, HEIGHT, WIDTH = 12, 5, 6, 7
rng = np.random.default_rng(0)
# Each frame says in its pixels which it is.
FILMS = rng.integers(0, 200, (N, S, HEIGHT, WIDTH), dtype=np.uint8)
FILMS[..., 0, 0], FILMS[..., 0, 1] = np.arange(N)[:, None], np.arange(S)
FILMS[..., 0, 2] = 255
ANGLES = rng.random((N, S)) * 360
BOTH = np.stack([ANGLES, rng.random((N, S))], -1)
SIZES = rng.random(N)
PAIRS = rng.random((N, 2))


def told(part: Any) -> tuple[NDArray, NDArray]:
    """Which item and frame each frame of a split is, by its pixels."""
    pixels = part.pixels[torch.arange(len(part.labels))]
    pixels = pixels if pixels.dim() == 5 else pixels.unsqueeze(1)
    pixels = pixels if pixels.dtype == torch.uint8 else (255 * pixels).round()
    return pixels[:, :, 0, 0, 0].long().numpy(), pixels[:, :, 0, 0, 1].long().numpy()


def check(parts: Splits, expected: NDArray) -> None:
    """Values (item, frame, factor) belong to the pixels that they stand beside."""
    assert sum(len(part.labels) for part in parts) >= 3
    for part in parts:
        items, frames = told(part)
        values = part.factors.values()  # type: ignore[union-attr]
        assert np.array_equal(values.numpy(), expected[items, frames if expected.shape[1] > 1 else 0 * frames])


def npz(path: Path) -> tuple[dict[str, Any], NDArray]:
    np.savez(path / "a.npz", x=FILMS, angle=ANGLES, size=SIZES)
    both = np.stack([ANGLES, SIZES[:, None].repeat(S, 1)], -1)
    return {"path": path / "a.npz", "factors_key": ["angle", "size"], "axes": "NSHW"}, both


def packed_npz(path: Path) -> tuple[dict[str, Any], NDArray]:
    np.savez_compressed(path / "a.npz", x=FILMS.transpose(1, 0, 2, 3), both=BOTH.transpose(1, 0, 2))
    return {"path": path / "a.npz", "factors_key": "both", "axes": "TNHW"}, BOTH


def table_beside(path: Path) -> tuple[dict[str, Any], NDArray]:
    np.save(path / "a.npy", FILMS)
    table = np.zeros((N, S), [("angle", "f8"), ("raised", "<i2")])
    table["angle"], table["raised"] = ANGLES, np.arange(S)
    np.save(path / "poses.npy", table)
    both = np.stack([ANGLES, np.broadcast_to(np.arange(S), (N, S))], -1)
    return {"path": path / "a.npy", "factors_key": "poses.npy", "axes": "NSHW"}, both


def said_order(path: Path) -> tuple[dict[str, Any], NDArray]:
    np.savez(path / "a.npz", x=FILMS, both=BOTH.transpose(2, 1, 0))
    return {"path": path / "a.npz", "factors_key": "both", "axes": "NSHW", "factor_axes": "FTN"}, BOTH


def hdf5(path: Path) -> tuple[dict[str, Any], NDArray]:
    """As 3dshapes.h5: a table of one row an item, some of whose columns are left out."""
    table = np.concatenate([PAIRS, rng.random((N, 1)), SIZES[:, None]], 1)
    with h5py.File(path / "a.h5", "w") as file:
        file["images"], file["labels"] = FILMS, table
    options = {"key": "images", "factors_key": "labels", "factor_names": ["hue", None, "floor", "size"]}
    expected = np.broadcast_to(table[:, None, [0, 2, 3]], (N, S, 3))
    return {"path": path / "a.h5", "axes": "NSHW", **options}, expected


def hdf5_table(path: Path) -> tuple[dict[str, Any], NDArray]:
    table = np.zeros(N, [("hue", "f8"), ("size", "f4")])
    table["hue"], table["size"] = PAIRS.T
    with h5py.File(path / "a.h5", "w") as file:
        file["deep/x"], file["deep/poses"] = FILMS, table
    expected = np.stack([table["hue"], table["size"].astype("f8")], -1)
    options = {"path": path / "a.h5", "key": "deep/x", "factors_key": "deep/poses", "axes": "NSHW"}
    return options, np.broadcast_to(expected[:, None], (N, S, 2))


def zarr_store(path: Path) -> tuple[dict[str, Any], NDArray]:
    group = zarr.open_group(path / "a.zarr", mode="w")
    for name, value in (("x", FILMS), ("poses/both", BOTH)):
        group.create_array(name, shape=value.shape, dtype=value.dtype)[...] = value
    return {"path": path / "a.zarr", "key": "x", "factors_key": "poses/both", "axes": "NSHW"}, BOTH


def matlab(path: Path) -> tuple[dict[str, Any], NDArray]:
    values = {"im": FILMS.transpose(2, 3, 1, 0), "angle": ANGLES.T, "size": SIZES}  # a row, as MATLAB has vectors
    scipy.io.savemat(path / "a.mat", values)
    both = np.stack([ANGLES, SIZES[:, None].repeat(S, 1)], -1)
    return {"path": path / "a.mat", "key": "im", "factors_key": ["angle", "size"], "axes": "HWTN"}, both


def matlab_7_3(path: Path) -> tuple[dict[str, Any], NDArray]:
    with h5py.File(path / "a.mat", "w", userblock_size=512) as file:
        file["im"], file["angle"], file["size"] = FILMS.transpose(2, 3, 1, 0).T, ANGLES, SIZES[:, None]
    with (path / "a.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    both = np.stack([ANGLES, SIZES[:, None].repeat(S, 1)], -1)
    return {"path": path / "a.mat", "key": "im", "factors_key": ["angle", "size"], "axes": "HWTN"}, both


def norb(path: Path) -> tuple[dict[str, Any], NDArray]:
    poses = rng.integers(0, 36, (N, 4)).astype("<i4")
    for name, magic, array in (("dat", 0x1E3D4C55, FILMS[:, :1]), ("info", 0x1E3D4C54, poses)):
        sizes = [*array.shape, *[1] * (3 - array.ndim)]
        header = np.array([magic, array.ndim, *sizes], "<i4").tobytes()
        (path / f"a-{name}.mat").write_bytes(header + array.tobytes())
    options = {"path": path / "a-dat.mat", "factors_key": ["azimuth", "elevation", "lighting"]}
    return options, poses[:, None, [2, 1, 3]].astype("f8")


def folder_of_arrays(path: Path) -> tuple[dict[str, Any], NDArray]:
    for number in range(N):
        np.savez(path / f"{number}.npz", x=FILMS[number], both=BOTH[number], size=SIZES[number])
    expected = np.concatenate([BOTH, np.broadcast_to(SIZES[:, None, None], (N, S, 1))], -1)
    options = {"path": path, "key": "x", "factors_key": ["both", "size"], "axes": "THW"}
    return options | {"factor_names": ["a", "b", "c"]}, expected


def gifs(path: Path) -> tuple[dict[str, Any], NDArray]:
    (path / "films").mkdir()
    for number, film in enumerate(FILMS):
        first, *others = map(Image.fromarray, film)
        first.save(path / "films" / f"{number}.gif", save_all=True, append_images=others, duration=100)
    np.save(path / "angle.npy", ANGLES.astype("f4"))
    return {"path": path / "films", "factors_key": "angle.npy"}, ANGLES.astype("f4").astype("f8")[..., None]


def hugging_face(path: Path) -> tuple[dict[str, Any], NDArray]:
    from datasets import Dataset

    columns = {"film": FILMS.tolist(), "angle": ANGLES.tolist(), "both": BOTH.tolist(), "size": SIZES.tolist()}
    Dataset.from_dict(columns).save_to_disk(path / "a")
    expected = np.concatenate([ANGLES[..., None], BOTH, np.broadcast_to(SIZES[:, None, None], (N, S, 1))], -1)
    options = {"key": "film", "axes": "NSHW", "range": [0, 255], "factors_key": ["angle", "both", "size"]}
    return {"path": path / "a", **options}, expected


KINDS: list[Callable[[Path], tuple[dict[str, Any], NDArray]]]
KINDS = [npz, packed_npz, table_beside, said_order, hdf5, hdf5_table, zarr_store, matlab, matlab_7_3, norb]
KINDS += [folder_of_arrays, gifs, hugging_face]


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_written(kind: Callable[[Path], Any], memory: float | None, tmp_path: Path) -> None:
    if kind is hugging_face and importlib.util.find_spec("datasets") is None:
        pytest.skip("needs datasets")
    options, expected = kind(tmp_path)
    check(arrays(**options, memory=memory), expected)
    if kind is not norb:
        check(arrays(**options, memory=memory, n_frames=2, stride=1, dilation=2), expected)


def test_items_of_torch(tmp_path: Path) -> None:
    items = [{"x": torch.from_numpy(FILMS[k]), "both": BOTH[k], "size": SIZES[k]} for k in range(N)]
    parts = read_torch(items, key="x", factors_key=["both", "size"], axes="NSHW", periods={"both_0": 360})
    check(parts, np.concatenate([BOTH, np.broadcast_to(SIZES[:, None, None], (N, S, 1))], -1))
    assert parts.train.factors is not None  # type: ignore[union-attr]
    assert parts.train.factors.names == ("both_0", "both_1", "size")  # type: ignore[union-attr]
    walks = [{"x": torch.from_numpy(FILMS[k, : 2 + k % 4]), "angle": ANGLES[k, : 2 + k % 4]} for k in range(N)]
    check(
        read_torch(walks, key="x", factors_key="angle", axes="NSHW", n_frames=2, stride=1, memory=0), ANGLES[..., None]
    )


@pytest.mark.parametrize("start", range(0, TOTAL, 50))
def test_factors_are_cut_as_pixels_are(start: int, tmp_path: Path) -> None:
    for seed in range(start, min(TOTAL, start + 50)):
        check_one(seed, tmp_path / "a.npz")


def check_one(seed: int, path: Path) -> None:
    """Any axes, kinds of factors, windows, masks of frames and rates, against pixels that say which they are."""
    dice, own = random.Random(seed), np.random.default_rng(seed)
    n, s, f = dice.randint(4, 12), dice.randint(4, 24), dice.randint(1, 3)
    films = own.integers(0, 200, (n, s, 5, 6), dtype=np.uint8)
    films[..., 0, 0], films[..., 0, 1], films[..., 0, 2] = np.arange(n)[:, None], np.arange(s), 255
    by_frame, table = dice.random() < 0.7, dice.random() < 0.5 or f > 1
    values = own.random((n, s, f)) if by_frame else np.broadcast_to(own.random((n, 1, f)), (n, s, f))
    if dice.random() < 0.3:
        values = np.floor(10 * values)
    word = dice.choice(["NSHW", "SNHW", "HWSN", "NHSW", "SHWN"])
    order = [letter for letter in word if letter in "NS"]
    letters = "".join(letter for letter in order if by_frame or letter == "N") + "F" * table
    said = "".join(dice.sample(letters, len(letters))) if dice.random() < 0.5 else None
    stored = values if by_frame else values[:, 0]
    full = "NSF" if by_frame else "NF"
    stored = stored if table else stored[..., 0]
    shown = [letter for letter in full if letter in letters]
    stored = stored.transpose([shown.index(letter) for letter in said or letters])
    saved = {
        "x": films.transpose(["NSHW".index(letter) for letter in word]),
        "f": stored.astype(dice.choice(["f8", ">f8"])),
    }
    options: dict[str, Any] = {"key": "x", "axes": word, "factors_key": "f", "factor_axes": said, "seed": seed}
    options |= {"factor_names": [f"f{k}" for k in range(f)], "memory": dice.choice([None, 0, 1])}
    if dice.random() < 0.5:
        options |= {"n_frames": dice.randint(1, 3), "stride": dice.randint(1, 4), "dilation": dice.randint(1, 2)}
        options |= {"split": dice.choice([None, "film", "time"]), "short": dice.choice([None, "pad"])}
    good = np.ones((n, s), bool)
    if dice.random() < 0.3:
        good = own.random((n, s)) < 0.8
        good[0] = True
        saved["good"] = good.transpose() if order == ["S", "N"] else good
        options["mask"] = "good"
        if by_frame:
            hidden = np.where(good[..., None], values, np.nan)
            values = hidden
            stored = hidden if table else hidden[..., 0]
            saved["f"] = stored.transpose([shown.index(letter) for letter in said or letters])
    if dice.random() < 0.4:
        rates = own.uniform(10, 40, n)
        saved["rates"] = rates
        options |= {"rates_key": "rates", "frame_rate": float(dice.choice([5, 10, min(rates)]))}
        options |= {"n_frames": options.get("n_frames", 2), "stride": options.get("stride", 1)}
    np.savez(path, **saved)  # type: ignore[arg-type]
    parts, sentence = answer(lambda: arrays(path, **options))
    if parts is None:
        assert re.search("can be of|no window|split by time|none is left|longest film|spans|films of", str(sentence)), (
            sentence
        )
        return
    seen: list[set[tuple[int, int]]] = []
    for part in parts:
        items, frames = told(part)
        read = part.factors.values().numpy()
        there = np.isfinite(read).all(-1)
        observed = None
        if hasattr(part.pixels, "observed"):
            observed = part.pixels.observed(torch.arange(len(items)))
        kept = np.ones_like(there) if observed is None else observed.numpy()
        assert (there | ~kept).all(), seed
        # Of frames that were not observed nothing says which they are.
        assert np.array_equal(read[kept], values[items, frames][kept]), seed
        seen.append({*zip(items[kept].tolist(), frames[kept].tolist(), strict=True)})
        if "rates" in saved:
            rate, rates = options["frame_rate"], saved["rates"]
            for row in range(len(items)):
                times = [
                    frame / rates[item] for item, frame, k in zip(items[row], frames[row], kept[row], strict=True) if k
                ]
                places = [place for place, k in enumerate(kept[row]) if k]
                for place, time in zip(places[1:], times[1:], strict=True):
                    due = times[0] + (place - places[0]) * options.get("dilation", 1) / rate
                    assert abs(time - due) <= 1 / rates[items[row][places[0]]] + 1e-6, seed  # half a frame each
    assert len(set.union(*seen)) == sum(map(len, seen)), seed


# What is judged


def mirror(monkeypatch: pytest.MonkeyPatch, capsules: int) -> None:
    """Codes that are the pixels: each row of a frame is a capsule, so that capsules roll as the picture does."""
    shown: list[Tensor] = []
    real = scoring.posterior_of

    def posterior_of(guide: Any, x: Tensor, *masks: Any) -> Any:
        shown[:] = [x]
        return real(guide, x, *masks)

    monkeypatch.setattr(scoring, "posterior_of", posterior_of)
    monkeypatch.setattr(scoring, "point_estimate", lambda model, posterior: shown[0][:, :, 0, :capsules].clone())


def rolled(values: NDArray, scale: float, size: int) -> NDArray:
    """Films (N, S, 5, size) of one picture, at ``values · scale`` pixels to the right, around the edge."""
    picture = np.random.default_rng(3).random((5, size))
    shifts = np.round(values * scale).astype(int)
    return np.stack([[np.roll(picture, int(shift), -1) for shift in film] for film in shifts]).astype("f4")


def judged(path: Path, films: NDArray, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    known = {name: options.pop(name) for name in [*options] if isinstance(options[name], np.ndarray)}
    np.savez(path / "a.npz", x=films, **known)  # type: ignore[arg-type]
    parts = arrays(path / "a.npz", key="x", axes="NTHW", factors_key=[*known], **options)
    n_frames = parts.train.pixels.shape[1]  # type: ignore[union-attr]
    data = SequenceDataModule(parts, n_frames=n_frames)
    topography = pyro_tvae.CapsuleRoll(3)
    model = pyro_tvae.TVAE(data.frame_shape, n_frames, films.shape[2], films.shape[3], topography=topography)
    mirror(monkeypatch, films.shape[2])
    result = evaluate(model, pyro_tvae.MeanFieldGuide(model), data, num_particles=2, progress=False)
    assert not result.record["failed"]
    measures = dict(result.record["measures"]["trained"])
    return measures | {"rows": [row["key"] for row in result.record["rows"]], "data": result.record["data"]}


SIDE = 12
START, TIME = np.random.default_rng(1).integers(0, SIDE, (40, 1)), np.arange(6)
WAYS = {
    # values, pixels a unit or in each frame, period: what the film shows is known, whatever the unit
    "index": ((START + TIME) % SIDE, 1, SIDE),
    "degrees": (((START + TIME) % SIDE) * 30.0, SIDE / 360, 360),
    "radians": (((START + TIME) % SIDE) * (2 * math.pi / SIDE) - math.pi, SIDE / (2 * math.pi), 2 * math.pi),
    "backwards": (((START - TIME) % SIDE) * 30.0, SIDE / 360, 360),
    "one of three": (((START + TIME) % 3) * 1.0, 4, 3),
    "longer than a capsule": (((25 + START + TIME) % 30) * 10.0, START + TIME, 300),
    "longer, backwards": ((START - TIME) % 30 * 10.0, START - TIME, 300),
    "no period": (5.0 + 0.5 * (START + TIME), 2, None),
    "to and fro": (np.where(START % 2, START + TIME, START - TIME) * 0.25, 4, None),
}


@pytest.mark.parametrize("way", WAYS)
def test_capsules_that_roll_as_the_factor_moves_correlate_at_one(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, scale, period = WAYS[way]
    if way == "one of three":  # capsules that repeat after three positions roll by one a frame
        films = np.tile(rolled(values, 1, 3), (1, 1, 1, 4))
    else:
        shifts = scale if isinstance(scale, np.ndarray) else values * scale
        films = rolled(shifts, 1, SIDE)
    periods = None if period is None else {"angle": period}
    found = judged(tmp_path, films, monkeypatch, angle=np.asarray(values), periods=periods)
    assert found["roll"]["angle"] == pytest.approx(1)
    assert found["roll_exact"]["angle"] == 1
    indexed = way in ("index", "degrees", "radians", "backwards", "one of three")
    assert (found["pose"]["angle"] > 0.5) == indexed  # others repeat in the pixels
    assert (found["cap_corr"].keys() == {"angle"}) == indexed
    assert ("cap_corr/angle" in found["rows"]) == indexed
    assert found["data"]["moving"] == ["angle"]
    assert not any(key.startswith(("velocity", "commutation")) for key in found["rows"])
    opposite = judged(tmp_path, films[:, ::-1], monkeypatch, angle=np.asarray(values), periods=periods)
    if way not in ("to and fro", "one of three"):
        assert opposite["roll"]["angle"] == pytest.approx(-1)
    shuffled = np.random.default_rng(4).permuted(np.asarray(values), axis=1)
    assert abs(judged(tmp_path, films, monkeypatch, angle=shuffled, periods=periods)["roll"]["angle"]) < 0.5


def test_each_factor_is_judged_where_it_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of several moves shows in the values; what stays is read by the probe alone."""
    moves = np.arange(40) % 4  # angle, other, both, nothing
    angle = np.where(np.isin(moves, (0, 2))[:, None], (START + TIME) % SIDE, START)
    other = np.where(np.isin(moves, (1, 2))[:, None], 3.0 * TIME, 0.0)
    found = judged(
        tmp_path,
        rolled(angle, 1, SIDE),
        monkeypatch,
        angle=angle,
        other=other,
        size=START[:, 0],
        periods={"angle": SIDE},
        test=0.4,
        seed=2,
    )
    assert {*found["data"]["moving"]} == {"angle", "other", "angle+other", "nothing"}
    assert found["roll"].keys() == {"angle", "other"}
    assert found["roll"]["angle"] == pytest.approx(1)
    assert found["pose"].keys() == {"angle", "other", "size"}
    nothing = judged(tmp_path, rolled(angle, 1, SIDE), monkeypatch, size=START[:, 0])
    assert nothing["roll"] == {}
    assert "velocity" in nothing["rows"]  # no factor moves, so that its true roll is not known


def test_frames_that_were_not_measured_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ((START + TIME) % SIDE) * 30.0
    films, good = rolled(values, SIDE / 360, SIDE), np.ones(values.shape, bool)
    good[::3, 2] = False
    films[~good], values[~good] = np.nan, np.nan
    np.savez(tmp_path / "a.npz", x=films, angle=values)
    options: dict[str, Any] = {"key": "x", "axes": "NTHW", "factors_key": "angle"}
    text = refused(lambda: arrays(tmp_path / "a.npz", range=[0, 1], mask=None, **options), ValueError)
    assert "nan" in text
    data = SequenceDataModule(arrays(tmp_path / "a.npz", mask="isnan", periods={"angle": 360}, **options), n_frames=6)
    model = pyro_tvae.TVAE(data.frame_shape, 6, 5, SIDE, topography=pyro_tvae.CapsuleRoll(3))
    mirror(monkeypatch, 5)
    result = evaluate(model, pyro_tvae.MeanFieldGuide(model), data, num_particles=2, progress=False)
    assert not result.record["failed"]
    measures: Any = result.record["measures"]["trained"]
    assert measures["roll"]["angle"] == pytest.approx(1)
    assert measures["pose"]["angle"] > 0.5


def test_factors_of_still_images_are_read_by_the_probe(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((40, 8, 8)).astype("f4")
    np.savez(tmp_path / "a.npz", x=images, light=images.mean((1, 2)), scale=np.arange(40.0))
    parts = arrays(tmp_path / "a.npz", key="x", factors_key="light")
    data = SequenceDataModule(parts, Transformations(rotation=True), n_frames=4)
    model = pyro_tvae.TVAE(data.frame_shape, 4, 2, 4, topography=pyro_tvae.CapsuleRoll(3))
    result = evaluate(model, pyro_tvae.MeanFieldGuide(model), data, num_particles=2, progress=False)
    measures: Any = result.record["measures"]["trained"]
    assert measures["pose"].keys() == {"rotation", "light"}
    assert measures["roll"].keys() == {"rotation"}
    assert not result.record["failed"]
    named = arrays(tmp_path / "a.npz", key="x", factors_key="scale")
    with pytest.raises(ValueError, match="scale is a factor of the images and of the transformations; call"):
        SequenceDataModule(named, Transformations(scale=True))


def test_sequences_made_in_a_program() -> None:
    values = torch.from_numpy(((START + TIME) % SIDE)[..., None].astype("f8"))
    frames = Frames(torch.rand(40, 6, 1, 5, SIDE), torch.zeros(40).long(), "", Factors.of(values, ["angle"], [SIDE]))
    data = SequenceDataModule(Splits(frames, frames.first(20), frames.first(9)), n_frames=6)
    assert data.datasets["test"].factors is not None
    assert torch.equal(data.datasets["test"].factors.values(), values[:9])
    assert data.moving == ("angle",)


def test_other_factors_are_other_data(tmp_path: Path) -> None:
    prints = []
    for angle in (ANGLES, ANGLES, ANGLES + 1):
        np.savez(tmp_path / "a.npz", x=FILMS, angle=angle)
        parts = arrays(tmp_path / "a.npz", key="x", axes="NSHW", factors_key="angle")
        prints.append(fingerprints(SequenceDataModule(parts, n_frames=S)))
    assert other_splits(prints[0], prints[1]) == []
    assert other_splits(prints[0], prints[2]) == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"factors_key": "other"},
            "factors_key is 'other', but the file holds the arrays x, .*the name of a file beside",
        ),
        ({"factors_key": "short"}, r"'short' has shape \(11,\), but there are 12 items of 5 frames; expected NS or"),
        ({"factors_key": "words"}, "'words' has type <U3; expected numbers: number what is text, or name it by labels"),
        ({"factors_key": "infinite"}, "'infinite' holds infinity; expected finite numbers"),
        ({"factors_key": "gaps"}, "factor gaps is nan in frame 3 of item 2; expected finite numbers wherever"),
        ({"factors_key": "objects"}, "factors_key 'objects' are Python objects, and nothing is ever unpickled"),
        ({"factors_key": "angle", "periods": {"angle": 100}}, "period of angle is 100, but its values run from 17 to"),
        ({"factors_key": "angle", "periods": {"angel": 360}}, r"periods names 'angel', .*\(nearest: angle\)"),
        ({"factors_key": "angle", "periods": {"angle": 0}}, "the period of angle is 0; expected a number above 0"),
        ({"factors_key": "angle", "periods": {"angle": "x"}}, "the period of angle is 'x'"),
        ({"factors_key": "angle", "periods": 360}, r"periods is 360; .*'data.source.periods=\{angle:360\}'"),
        ({"factors_key": "angle", "factor_names": ["a", "b"]}, r"has shape \(12, 5\), .* with 2 columns, as factor_n"),
        ({"factors_key": ["angle", "x2"], "factor_names": ["a"]}, r"names 3 columns \(angle, x2_0, x2_1\); expected"),
        ({"factors_key": ["angle", "x2"], "factor_names": ["a", "b", "a"]}, "two factors are called 'a'"),
        ({"factors_key": "angle", "factor_names": ["a+b"]}, r"called 'a\+b'; expected a word without \+ and /"),
        ({"factors_key": "angle", "factor_names": [None]}, "factor_names leaves out all"),
        ({"factors_key": "angle", "factor_axes": "NQ"}, "factor_axes is 'NQ'; expected one letter for each axis"),
        ({"factors_key": "angle", "factor_axes": "SN"}, r"has shape \(12, 5\), but .*; expected SN"),
        ({"periods": {"angle": 360}}, "periods is given, but not which array holds the factors; say it by factors_key"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    gaps = ANGLES.copy()
    gaps[2, 3] = np.nan
    known = {"angle": np.floor(ANGLES), "short": SIZES[1:], "words": np.array(["one"] * N), "gaps": gaps, "x2": BOTH}
    known |= {"infinite": np.full(N, np.inf), "objects": np.array([None] * N)}
    np.savez(tmp_path / "a.npz", x=FILMS, **known)  # type: ignore[arg-type]
    text = refused(lambda: arrays(tmp_path / "a.npz", key="x", axes="NSHW", **options), ValueError)
    assert re.search(said, text), text


def test_a_file_without_names_takes_factors_from_beside_it(tmp_path: Path) -> None:
    _, expected = gifs(tmp_path)
    with pytest.raises(
        ValueError, match=r"factors_key is 'angel.npy', but what this holds has no names, and no such f"
    ):
        arrays(tmp_path / "films", factors_key="angel.npy")
    # Films of unlike lengths follow each other.
    first, *others = (Image.fromarray(film) for film in FILMS[0, :3])
    first.save(tmp_path / "films" / "0.gif", save_all=True, append_images=others, duration=100)
    np.save(tmp_path / "angle.npy", np.concatenate([expected[0, :3], *expected[1:]])[:, 0])
    check(arrays(tmp_path / "films", factors_key="angle.npy", n_frames=2, stride=1), expected)


def test_from_a_file_with_factors_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = ((START + TIME) % SIDE) * 30
    films = rolled(values, SIDE / 360, SIDE).repeat(2, 2)[:, :, :8]
    np.savez(tmp_path / "a.npz", films=films, poses=np.stack([values, 0 * values + START], -1))
    words = ["key=films", "factors_key=poses", 'factor_names=[azimuth,"<b>"]', "periods={azimuth:360}", "axes=NTHW"]
    small = ["data.n_frames=6", "model.n_capsules=2", f"model.capsule_dim={SIDE}", "fit.max_epochs=1", "logger=none"]
    small += ["baseline.enabled=false", "evaluation.num_particles=2", "fit.progress=false", "fit.accelerator=cpu"]
    path = f"data.source.path={tmp_path / 'a.npz'}"
    config = compose(["data=sequences", path, *small, *(f"data.source.{word}" for word in words)])
    train_run(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert "factors azimuth (0 to 330, period 360, moves by 30 a frame), <b> (" in " ".join(said.split())
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {*record["measures"]["trained"]["roll"]} == {"azimuth"}
    assert {*record["measures"]["trained"]["pose"]} == {"azimuth", "<b>"}
    assert not record["failed"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "roll correlation, azimuth" in page
    assert "pose probe, &lt;b&gt;" in page
    assert "<b>" not in page
    assert any(
        "Roll correlation: " in sentence and " for azimuth (untrained" in sentence for sentence in record["verdict"]
    )
    data = Run(tmp_path / "run").load().data
    labels = posterior._coordinates(data, next(data.batches("test", batch_size=2)))  # of what posterior.nc holds
    factors = data.datasets["test"].factors
    assert factors is not None
    assert np.array_equal(labels["azimuth_value"], factors.values()[:2, :, 0].numpy())
    assert labels["moving"] == ["azimuth"] * 2


def test_settings_of_a_stored_run_and_of_the_command_line() -> None:
    made = OmegaConf.to_container(compose(["data=arrays", "data.source.path=x"]).data.source)
    assert {"factors_key", "factor_names", "factor_axes", "periods"} <= {*made}  # type: ignore[misc]
    with pytest.raises(Exception, match="periods is given"):
        make(compose(["data=arrays", f"data.source.path={__file__}.npy", "data.source.periods={a:1}"]).data)
