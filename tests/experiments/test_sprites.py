"""Sprites: their pictures against drawn outlines and exact symmetries, their sequences, and the published file."""

from __future__ import annotations

import hashlib
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from torch import Tensor

from pyro_tvae.experiments.datasets import DataNotFound, SequenceDataModule, SequenceRenderer, Sprites, dsprites
from pyro_tvae.experiments.datasets import dsprites_file as file_module
from pyro_tvae.experiments.datasets.dsprites_file import packed_images, unpack
from pyro_tvae.experiments.datasets.silhouettes import flat_index, frames, latents, silhouettes

SCALES = torch.linspace(0.5, 1, 6, dtype=torch.float64)
TURN = 2 * math.pi
SQUARE, ELLIPSE, HEART = range(3)


def windows(shape: int, scale: float | Tensor, radians: float | Tensor) -> Tensor:
    return silhouettes(torch.tensor(shape), torch.as_tensor(scale), torch.as_tensor(radians, dtype=torch.float64))


def render(latents: Tensor) -> Tensor:
    """Frames of dSprites' own indices: scale i is a size of 0.5 + i / 10, orientation i an angle of i · 360° / 39."""
    shape, scale, orientation, x, y = latents.unbind(-1)
    return frames(
        silhouettes(shape.long(), 0.5 + scale.double() / 10, orientation.double() * TURN / 39), x.long(), y.long()
    )


# Pictures


def outline(shape: int) -> np.ndarray:
    """Corners of a sprite at scale 1, right and up of its centre."""
    angle = np.linspace(0, TURN, 2000, endpoint=False)
    right, up = np.cos(angle), np.sin(angle)
    if shape == SQUARE:
        return 10.75 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    if shape == ELLIPSE:
        return np.stack((15.2 * right, 7.6 * up), -1)
    low, high = np.zeros(2000), np.full(2000, 2.0)  # the heart's radius in every direction, by bisection
    for _ in range(50):
        middle = (low + high) / 2
        p, q = middle * right, middle * up
        inside = (p**2 + q**2 - 1) ** 3 <= p**2 * q**3
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return 10.6 * np.stack((low * right, low * up - 0.2), -1)


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_a_frame_is_the_turned_outline_filled(shape: int) -> None:
    for scale, orientation, x, y in ((5, 0, 16, 16), (5, 5, 0, 31), (0, 31, 31, 3), (3, 2.6, 10, 0)):
        angle = TURN * orientation / 39
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        corners = outline(shape) @ turn * (0.5 + scale / 10)  # rows are points: this turns them counter-clockwise
        columns, rows = np.meshgrid(np.arange(64), np.arange(64))
        pixels = np.stack((columns - (16 + x), (16 + y) - rows), -1).reshape(-1, 2)
        expected = Outline(corners).contains_points(pixels).reshape(64, 64)
        frame = render(torch.tensor([shape, scale, orientation, x, y], dtype=torch.float64))[0].numpy()
        # A polygon cuts corners of a curve by less than a thousandth of a pixel: one pixel may be decided otherwise.
        assert np.abs(frame - expected).sum() <= 1
        assert frame.sum() > 50


@pytest.mark.parametrize("scale", SCALES.tolist())
def test_quarter_turns_are_exact_and_counter_clockwise(scale: float) -> None:
    for shape in (SQUARE, ELLIPSE, HEART):
        for k in range(4):
            expected = torch.rot90(windows(shape, scale, 0.0), k, (-2, -1))
            assert torch.equal(windows(shape, scale, k * TURN / 4), expected)
    upright = windows(SQUARE, scale, 0.0)
    assert all(torch.equal(windows(SQUARE, scale, k * TURN / 4), upright) for k in range(4))
    assert not torch.equal(windows(SQUARE, scale, TURN / 8), upright)
    assert torch.equal(windows(ELLIPSE, scale, TURN / 2), windows(ELLIPSE, scale, 0.0))
    assert not torch.equal(windows(ELLIPSE, scale, TURN / 4), windows(ELLIPSE, scale, 0.0))


def test_the_last_orientation_is_the_first() -> None:
    first, last = (torch.tensor([[shape, 5, o, 9, 9] for shape in range(3)]) for o in (0, 39))
    assert torch.equal(render(first), render(last))
    assert not torch.equal(render(first), render(first + torch.tensor([0, 0, 38, 0, 0])))


def test_a_heart_has_one_mirror_and_nothing_else() -> None:
    angles = torch.arange(72) * TURN / 72
    hearts = windows(HEART, 1.0, angles)
    mirrored = windows(HEART, 1.0, -angles).flip(-1)
    # Mirrored about the upright axis it is itself, turned the other way.
    assert torch.equal(hearts, mirrored)
    # Any other mirror would be this one and a turn; but no turn leaves it as it is.
    changed = (hearts != hearts[0]).flatten(1).sum(1)
    assert changed[0] == 0
    assert int(changed[1:].min()) >= 10
    assert int(changed[36]) > 100


def test_a_step_of_position_is_a_pixel_and_nothing_leaves_the_frame() -> None:
    positions = torch.cartesian_prod(torch.arange(32), torch.arange(32))
    for shape in range(3):
        same = torch.tensor([shape, 5, 4]).expand(len(positions), 3)
        frames = render(torch.cat((same, positions), -1))
        for k in (0, 5, 31 * 32, 700, 1023):
            x, y = positions[k].tolist()
            assert torch.equal(frames[k], torch.roll(frames[0], (y, x), (-2, -1)))
        assert len(frames.sum((1, 2, 3)).unique()) == 1
    # Turning does not cut anything either: the window's rim is empty at any angle.
    rim = torch.ones(33, 33, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    every = silhouettes(torch.arange(3)[:, None], torch.tensor(1.0), torch.arange(360) * TURN / 360)
    assert not bool(every[..., rim].any())


def test_area_grows_with_the_square_of_the_scale() -> None:
    angles = torch.arange(40) * TURN / 40 + 0.01
    for shape in range(3):
        area = windows(shape, SCALES[:, None], angles).double().sum((-2, -1)).mean(-1)
        # Pixels on the outline fall on either side: over 40 angles that evens out to less than 2 %.
        torch.testing.assert_close(area / area[-1], SCALES**2, rtol=0.02, atol=0)
        corners = torch.tensor(outline(shape))
        following = corners.roll(-1, 0)
        whole = (corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]).sum() / 2
        assert float(area[-1]) == pytest.approx(float(whole), rel=0.01)


def test_places_are_those_of_the_published_arrays() -> None:
    flat = torch.arange(737280)
    classes = latents(flat)
    expected = np.stack(np.unravel_index(flat.numpy(), (1, 3, 6, 40, 32, 32)), -1)
    assert np.array_equal(classes.numpy(), expected[:, 1:])
    assert torch.equal(flat_index(classes), flat)
    assert set(render(latents(flat[::10007])).unique().tolist()) == {0.0, 1.0}


# Sequences


def sprites(**options: object) -> tuple[Sprites, Sprites, Sprites]:
    parts = dsprites(**options)  # type: ignore[arg-type]
    for part in parts:
        assert isinstance(part, Sprites)
        assert isinstance(part, SequenceRenderer)
    return parts  # type: ignore[return-value]


def told(part: Sprites) -> set[tuple[int, ...]]:
    """What tells sequences apart: moving factor, shape, values that stay."""
    return set(map(tuple, torch.cat((part.moves[:, None], part.labels[:, None], part.still), -1).tolist()))


def test_no_two_splits_share_a_sequence() -> None:
    parts = sprites()
    sequences = [told(part) for part in parts]
    assert sum(map(len, sequences)) == len(set.union(*sequences)) == 3 * (3 * 5 * 15 * 15 + 15**3)
    for share, part, rows in zip((0.8, 0.1, 0.1), parts, sequences, strict=True):
        assert len(rows) == pytest.approx(20250 * share, abs=4)
        assert len(set(part.moves.bincount().tolist())) == 1
        # Any prefix holds the moving factors in equal parts, and the shapes nearly so.
        assert part.moves[:40].bincount().tolist() == [10] * 4
        assert int(part.labels[:120].bincount().min()) >= 36
    assert told(sprites()[2]) == sequences[2]
    assert told(sprites(seed=1)[2]) != sequences[2]
    shares = sprites(validation=0, test=0.25, moving=["x", "scale"])
    assert [len(part.labels) for part in shares] == [2 * 7594, 0, 2 * 2531]
    assert len(sprites(moving="y")[0].labels) == 2699


def test_one_factor_moves_by_one_value_a_frame_and_wraps() -> None:
    part = sprites()[0]
    assert (part.names, part.periods) == (("scale", "orientation", "x", "y"), (5, 15, 15, 15))
    index, moving = part.draw(15, torch.Generator().manual_seed(0))
    steps = (index[:, 1:] - index[:, :-1]) % torch.tensor(part.periods)
    assert torch.equal(steps, torch.nn.functional.one_hot(moving, 4)[:, None].expand_as(steps))
    assert bool((index >= 0).all())
    assert bool((index < torch.tensor(part.periods)).all())
    for factor, period in enumerate(part.periods):
        phase = index[moving == factor, 0, factor]
        expected = len(phase) / period
        # Five standard deviations of a binomial count.
        assert float((phase.bincount(minlength=period) - expected).abs().max()) < 5 * expected**0.5
        assert torch.equal(
            index[moving == factor][:, :, factor].sort(-1).values[:, :: 15 // period][0], torch.arange(period)
        )
        stays = torch.arange(4) != factor
        assert torch.equal(index[moving == factor][:, 3][:, stays], part.still[moving == factor][:, stays])


@pytest.mark.parametrize("full_circle", [False, True])
def test_frames_are_those_of_the_places_they_name(full_circle: bool) -> None:
    data = SequenceDataModule(dsprites(full_circle=full_circle), n_frames=15, n_test=24)
    batch = next(data.batches("test"))
    scale, orientation, x, y = batch["index"].double().unbind(-1)
    shape = batch["label"].double()[:, None].expand(24, 15)
    named = torch.stack((shape, 1 + scale, (2.6 if full_circle else 2) * orientation, 2 * x, 2 * y), -1)
    assert torch.equal(batch["x"], render(named))
    if not full_circle:
        assert torch.equal(batch["x"], render(latents(flat_index(named.long()))))
    else:  # 24 degrees a frame, all around
        renderer: Any = data.datasets["test"].renderer
        heart = renderer.pixels(torch.tensor([[HEART, 4, k, 8, 8] for k in range(15)]))
        assert len(torch.unique(heart, dim=0)) == 15
        turned = windows(HEART, 1.0, torch.arange(15) * math.radians(24)).float()
        assert torch.equal(heart[:, 0, 16:49, 16:49], turned)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_seed_alone_decides(num_workers: int) -> None:
    options: dict = {"n_frames": 15, "n_train": 40, "n_validation": 8, "n_test": 8}
    one = SequenceDataModule(dsprites(), **options)
    two = SequenceDataModule(dsprites(), **options, num_workers=num_workers)
    assert (one.frame_shape, one.moving) == ((1, 64, 64), ("scale", "orientation", "x", "y"))
    assert one.factor_names == one.moving
    for a, b in zip(one.train_dataloader(), two.train_dataloader(), strict=True):
        assert torch.equal(one.on_after_batch_transfer(a)["x"], two.on_after_batch_transfer(b)["x"])
        assert torch.equal(a["index"], b["index"])
    assert torch.equal(next(one.batches("test"))["x"], next(two.batches("test"))["x"])
    other = SequenceDataModule(dsprites(), **options, seed=1)
    assert not torch.equal(next(one.batches("test"))["x"], next(other.batches("test"))["x"])
    # Every epoch has the same sequences at other phases.
    first, second = (one.datasets["train"].draw(epoch) for epoch in (0, 1))
    assert torch.equal(first.moving, second.moving)
    assert not torch.equal(first.index, second.index)


# The published file: a stand-in whose 20 pixels are the binary digits of an image's place.


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_module, "FILE_SHAPE", (737280, 4, 5))
    places = np.arange(737280)
    digits = (places[:, None] >> np.arange(20) & 1).astype(np.uint8).reshape(-1, 4, 5)
    classes = np.stack(np.unravel_index(places, (1, 3, 6, 40, 32, 32)), -1)
    path = tmp_path / "dsprites.npz"
    np.savez(path, imgs=digits, latents_classes=classes, metadata=np.array({"never": "unpickled"}, dtype=object))
    return path


def test_the_file_shows_the_images_that_are_named(stand_in: Path) -> None:
    digest = hashlib.sha256(stand_in.read_bytes()).hexdigest()
    for full_circle in (False, True):
        data = SequenceDataModule(dsprites(stand_in, full_circle=full_circle, sha256=digest), n_frames=15, n_test=40)
        assert data.frame_shape == (1, 4, 5)
        batch = next(data.batches("test"))
        place = (batch["x"].flatten(2).long() << torch.arange(20)).sum(-1)
        shape, scale, orientation, x, y = latents(place).unbind(-1)
        index = batch["index"].unbind(-1)
        assert torch.equal(shape, batch["label"][:, None].expand_as(shape))
        assert torch.equal(scale, 1 + index[0])
        assert torch.equal(orientation, (2.6 * index[1]).round().long() if full_circle else 2 * index[1])
        assert torch.equal(x, 2 * index[2])
        assert torch.equal(y, 2 * index[3])
    # 50,625 images of 20 pixels: three bytes each.
    stored: Any = data.datasets["test"].renderer
    assert stored.pixels.packed.shape == (50625, 3)
    wanted = torch.tensor([737279, 5, 5, 4096, 0])
    bits = unpack(packed_images(stand_in, wanted), (20,)).long()
    assert torch.equal((bits << torch.arange(20)).sum(-1), wanted)
    with pytest.raises(ValueError, match=f"has the SHA-256 {digest}; expected 00; fetch the file again"):
        dsprites(stand_in, sha256="00")


def test_other_files_are_refused_in_one_sentence(stand_in: Path, tmp_path: Path) -> None:
    with np.load(stand_in, allow_pickle=False) as stored:
        images, classes = stored["imgs"], stored["latents_classes"]
    swapped = classes[:, [0, 1, 2, 3, 5, 4]]
    objects = np.empty(3, dtype=object)
    for name, content, said in [
        (
            "shape",
            {"imgs": images[:, :3], "latents_classes": classes},
            r"imgs of shape \(737280, 3, 5\)",
        ),
        (
            "type",
            {"imgs": images.astype(bool), "latents_classes": classes},
            r"type bool, not \(737280, 4, 5\)",
        ),
        ("grey", {"imgs": images * 255, "latents_classes": classes}, "pixels of up to 255, not zeros and ones"),
        ("order", {"imgs": images, "latents_classes": swapped}, "its images in another order"),
        ("pickled", {"imgs": objects, "latents_classes": classes}, r"imgs of shape \(3,\) and type object"),
        ("classes", {"imgs": images, "latents_classes": objects}, "nothing is ever unpickled"),
        ("lacking", {"x": images}, "cannot be read as the published .npz file"),
    ]:
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(ValueError, match=said) as caught:
            dsprites(tmp_path / f"{name}.npz")
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    np.save(tmp_path / "array.npy", classes)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "cut.npz").write_bytes(stand_in.read_bytes()[:-1000])
    damaged = bytearray(stand_in.read_bytes())
    damaged[5_000_000] ^= 1  # one pixel, found by the archive's own checksum
    (tmp_path / "damaged.npz").write_bytes(damaged)
    for name in ("array.npy", "pickle.npz", "cut.npz", "damaged.npz"):
        with pytest.raises(
            ValueError, match=r"cannot be read as the published \.npz file, and nothing is ever unpickled"
        ):
            dsprites(tmp_path / name)
    with pytest.raises(DataNotFound, match=r"none\.npz does not exist; give the path .* or leave path out"):
        dsprites(tmp_path / "none.npz")


def test_wrong_requests_are_named_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="'orientaton', which is not a factor here; expected one of scale"):
        dsprites(moving=["x", "orientaton"])
    with pytest.raises(ValueError, match="a sha256 but no file to check; give its path too"):
        dsprites(sha256="00")
    with pytest.raises(ValueError, match="moving is empty; expected at least one of scale"):
        dsprites(moving=[])
    with pytest.raises(ValueError, match="sum to less than 1"):
        dsprites(validation=0.5, test=0.5)
