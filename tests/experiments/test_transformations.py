"""Rendering against independent twins, and the laws of the factor draws."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_tvae.experiments.datasets import HUE, ROTATION, SCALE, Transformations


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 3, height: int = 28, width: int = 28) -> Tensor:
    return torch.rand(n, 1, height, width, generator=seeded(7))


def constant(n: int, *values: int) -> Tensor:
    return torch.tensor(values).expand(n, 1, -1)


def sampled(image: np.ndarray, y: float, x: float) -> float:
    """Bilinear value at (y, x) in pixels, zero outside: the definition, one pixel at a time."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * float(image[row, column])
    return total


def twin(image: np.ndarray, rotation: float, scale: float, tilt: float = 0.0) -> np.ndarray:
    """One frame by walking over its pixels: where was this point before it was tilted, turned and scaled?"""
    height, width = image.shape
    cy, cx = (height - 1) / 2, (width - 1) / 2
    half = max(height, width) / 2
    frame = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            # Right and up, as on paper.
            right, up = column - cx, cy - row
            c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
            before = right * 4 * half / (4 * half * c - right * s)
            right, up = before, up * (4 * half + before * s) / (4 * half)
            back = math.radians(-rotation)
            right, up = right * math.cos(back) - up * math.sin(back), right * math.sin(back) + up * math.cos(back)
            frame[row, column] = sampled(image, cy - up / scale, cx + right / scale)
    return frame


@pytest.mark.parametrize("size", [28, 27])
def test_quarter_turns_are_exact_and_counter_clockwise(size: int) -> None:
    pictures = images(3, size, size)
    x = Transformations(rotation=[0, 90, 180, 270, 360]).render(
        pictures, torch.arange(5).reshape(1, 5, 1).expand(3, 5, 1)
    )
    for k in range(5):
        torch.testing.assert_close(x[:, k], torch.rot90(pictures, k, (-2, -1)), rtol=0, atol=1e-6)


def test_identity_returns_the_image() -> None:
    pictures = images(4, 28, 20)
    still = Transformations(rotation=[0], scale=[1], perspective=[0])
    assert still.moving == ()
    torch.testing.assert_close(still.render(pictures, constant(4, 0, 0, 0))[:, 0], pictures, rtol=0, atol=1e-6)
    assert torch.equal(Transformations().render(pictures, torch.zeros(4, 2, 0, dtype=torch.long))[:, 1], pictures)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (11, 8)])
def test_render_agrees_with_a_pixel_by_pixel_twin(height: int, width: int) -> None:
    pictures = images(2, height, width)
    factors = Transformations(rotation=[0, 33, 200], scale=[0.6, 1.0, 1.26], perspective=[0, 40, 160])
    index = torch.randint(3, (2, 5, 3), generator=seeded(1))
    x = factors.render(pictures, index)
    assert x.shape == (2, 5, 1, height, width)
    assert x.dtype == torch.float32
    for n in range(2):
        for frame in range(5):
            values = [factors.factors[name][int(index[n, frame, f])] for f, name in enumerate(factors.names)]
            expected = twin(pictures[n, 0].double().numpy(), *values)
            np.testing.assert_allclose(x[n, frame, 0].numpy(), expected, rtol=0, atol=1e-5)


def test_hue_is_the_saturated_colour_wheel() -> None:
    pictures = images(1)
    x = Transformations(hue=True).render(pictures, torch.arange(18).reshape(1, 18, 1))
    assert x.shape == (1, 18, 3, 28, 28)
    for k, hue in enumerate(HUE):
        color = torch.tensor(colorsys.hsv_to_rgb(hue / 360, 1, 1)).reshape(3, 1, 1)
        torch.testing.assert_close(x[0, k], pictures[0] * color, rtol=0, atol=1e-6)


def test_scale_grows_the_area_by_its_square() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = (14.0 - ((y - 31.5) ** 2 + (x - 31.5) ** 2).sqrt() + 0.5).clamp(0, 1).reshape(1, 1, 64, 64)
    area = Transformations(scale=True).render(disc, torch.arange(18).reshape(1, 18, 1)).sum((0, 2, 3, 4))
    torch.testing.assert_close(area / disc.sum(), torch.tensor(SCALE).square(), rtol=0.01, atol=0)


def test_perspective_shows_the_mirrored_back_and_nothing_edge_on() -> None:
    pictures = images(2, 27, 27)
    x = Transformations(perspective=[0, 90, 180]).render(pictures, torch.arange(3).reshape(1, 3, 1).expand(2, 3, 1))
    torch.testing.assert_close(x[:, 2], pictures.flip(-1), rtol=0, atol=1e-6)
    assert float(x[:, 1].abs().max()) == 0


def turned_both_ways(image: np.ndarray, degrees: float) -> np.ndarray:
    """The published perspective, a point at a time: turned in space, projected, and solved for where it came from."""
    height, width = image.shape
    cy, cx = (height - 1) / 2, (width - 1) / 2
    angle = math.radians(181.0 if degrees == 180 else degrees)
    c, s = math.cos(angle), math.sin(angle)
    focal = math.hypot(height, width) / (2 * s)
    about_sight = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    about_vertical = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    turn = about_vertical @ about_sight
    frame = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            # (focal x', focal y') = (z' + focal) (right, down): two equations for the point (x, y, 1) before it turned.
            right, down = column - cx, row - cy
            rows = np.stack([focal * turn[0] - right * turn[2], focal * turn[1] - down * turn[2]])
            x, y = np.linalg.solve(rows[:, :2], focal * np.array([right, down]) - rows[:, 2])
            frame[row, column] = sampled(image, cy + y, cx + x)
    return frame


@pytest.mark.parametrize(("height", "width"), [(12, 12), (11, 8)])
def test_the_published_perspective_turns_in_the_plane_and_out_of_it(height: int, width: int) -> None:
    pictures, angles = images(2, height, width), [0, 20, 100, 180, 260, 340]
    factors = Transformations(perspective=angles, published=True)
    x = factors.render(pictures, torch.arange(6).reshape(1, 6, 1).expand(2, 6, 1))
    torch.testing.assert_close(x[:, 0], pictures, rtol=0, atol=1e-6)
    for n in range(2):
        for k in range(1, 6):
            expected = turned_both_ways(pictures[n, 0].double().numpy(), angles[k])
            np.testing.assert_allclose(x[n, k, 0].numpy(), expected, rtol=0, atol=1e-5)


def test_the_published_scales_are_as_listed() -> None:
    listed = "0.60 0.64 0.68 0.72 0.76 0.79 0.83 0.87 0.91 0.95 0.99 1.03 1.07 1.11 1.14 1.18 1.22 1.26"
    rounded = Transformations(scale=True, rotation=True, published=True)
    assert rounded.factors["scale"] == tuple(map(float, listed.split()))
    assert rounded.factors["rotation"] == ROTATION
    assert Transformations(scale=True).factors["scale"] == SCALE
    assert Transformations(scale=[0.123], published=True).factors["scale"] == (0.123,)
    assert "published=True" in repr(rounded)
    with pytest.raises(ValueError, match="published is 'yes'; expected true or false"):
        Transformations(published="yes")  # type: ignore[arg-type]


def test_a_batch_equals_its_members_one_by_one() -> None:
    pictures, factors = images(4), Transformations(rotation=True, hue=True, scale=True, perspective=True)
    index, _ = factors.draw(4, 6, seeded())
    x = factors.render(pictures, index)
    for n in range(4):
        for frame in range(6):
            alone = factors.render(pictures[n : n + 1], index[n : n + 1, frame : frame + 1])
            torch.testing.assert_close(alone[0, 0], x[n, frame], rtol=0, atol=1e-6)


def test_render_takes_bytes_wraps_indices_and_stays_in_the_unit_interval() -> None:
    pictures, factors = images(3), Transformations(rotation=True, scale=True)
    index, _ = factors.draw(3, 4, seeded())
    coarse = (pictures * 255).round().to(torch.uint8)
    torch.testing.assert_close(factors.render(coarse, index), factors.render(coarse.float() / 255, index))
    assert torch.equal(factors.render(pictures, index + 18), factors.render(pictures, index))
    x = factors.render(pictures * 3 - 1, index)
    assert x.min() >= 0
    assert x.max() <= 1
    assert factors.render(pictures[:0], index[:0]).shape == (0, 4, 1, 28, 28)


def test_the_moving_factor_advances_by_one_and_the_others_stay() -> None:
    factors = Transformations(rotation=True, hue=[0, 90, 180], scale=True, moving=["rotation", "scale", "hue+rotation"])
    index, moving = factors.draw(600, 20, seeded())
    assert index.shape == (600, 20, 3)
    assert index.dtype == moving.dtype == torch.int64
    steps = (index[:, 1:] - index[:, :-1]) % torch.tensor(factors.periods)
    expected = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 1, 0]])[moving]
    assert torch.equal(steps, expected.unsqueeze(1).expand(-1, 19, -1))
    assert set(moving.tolist()) == {0, 1, 2}


def test_phases_are_uniform_and_jointly_moving_ones_independent() -> None:
    # Four chi-square tests at a false-alarm rate of 1e-4 each; the draw is seeded, so a pass stays a pass.
    def p_value(counts: Tensor) -> float:
        n = counts.numel()
        expected = counts.sum() / n
        statistic = ((counts - expected) ** 2 / expected).sum()
        return float(torch.special.gammaincc(torch.tensor((n - 1) / 2), statistic / 2))

    factors = Transformations(rotation=True, hue=True, moving=["rotation", "rotation+hue"])
    index, moving = factors.draw(20_000, 3, seeded(3))
    first = index[:, 0]
    for factor in range(2):
        assert p_value(first[:, factor].bincount(minlength=18).float()) > 1e-4
    assert p_value((first[:, 0] * 18 + first[:, 1])[moving == 1].bincount(minlength=324).float()) > 1e-4
    assert p_value(moving.bincount(minlength=2).float()) > 1e-4


def test_published_values_and_shapes_of_the_description() -> None:
    factors = Transformations(rotation=True, scale=True, perspective=False)
    assert tuple(range(0, 360, 20)) == ROTATION
    assert len(SCALE) == 18
    assert (round(SCALE[0], 9), round(SCALE[-1], 9)) == (0.60, 1.26)
    assert (factors.names, factors.periods, factors.n_channels) == (("rotation", "scale"), (18, 18), 1)
    assert factors.moving == ("rotation", "scale")
    assert Transformations(hue=[0, 120], moving="hue").n_channels == 3
    index, moving = Transformations().draw(4, 3, seeded())
    assert index.shape == (4, 3, 0)
    assert moving.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rotation": [0, float("nan")]}, r"rotation is .* expected a list of finite degrees"),
        ({"rotation": []}, r"rotation is \[\]"),
        ({"hue": "0,20"}, r"hue is '0,20'"),
        ({"hue": 20}, r"hue is 20"),
        ({"scale": [0.5, 0.0]}, r"scale is .* positive ratios"),
        ({"rotation": True, "moving": ["rotaton"]}, r"moving names 'rotaton'.*nearest: rotation"),
        ({"rotation": True, "moving": ["rotation+hue"]}, r"moving names 'hue'.*give it too, or name rotation"),
        ({"moving": ["hue"]}, r"moving names 'hue'.*there are no factors"),
        ({"hue": [0], "moving": ["hue"]}, r"'hue', which has the single value 0 and cannot move"),
    ],
)
def test_bad_values_are_named_in_one_sentence(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Transformations(**arguments)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_bad_tensors_are_named_in_one_sentence() -> None:
    factors = Transformations(rotation=True)
    index = torch.zeros(2, 3, 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"images have shape \(2, 28, 28\); expected"):
        factors.render(images(2)[:, 0], index)
    with pytest.raises(ValueError, match=r"index has shape \(2, 3, 2\); expected \(2, frame, 1\)"):
        factors.render(images(2), index.expand(2, 3, 2))
    with pytest.raises(ValueError, match=r"dtype torch.int64; expected uint8"):
        factors.render(images(2).long(), index)
