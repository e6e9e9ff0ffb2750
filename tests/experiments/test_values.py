"""Ranges of pixels and kinds of labels: every type in its own range, and what has none asked for it in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_tvae.experiments.datasets import arrays
from pyro_tvae.experiments.datasets.values import exact, number_labels, scale_of


def scale_pixels(array: np.ndarray, limits: list[float] | None = None) -> tuple[np.ndarray, str]:
    scale = scale_of(array.dtype, np.array_split(array, 2), limits)
    assert scale.dtype == scale(array).dtype
    return scale(array), scale.words


ONE_UP = float(np.nextafter(np.float32(1), np.float32(2)))


@pytest.mark.parametrize(
    ("array", "limits", "expected"),
    [
        (np.array([0, 128, 255], "u1"), None, [0, 128, 255]),
        (np.array([False, True]), None, [0, 255]),
        (np.array([0, 0], "u1"), None, [0, 0]),
        (np.array([0, 15], "u1"), [0, 15], [0.0, 1.0]),
        (np.array([0, 15], "u1"), [0, 255], [0, 15]),
        (np.array([100, 1123], ">u2"), (100, 1123), [0.0, 1.0]),
        (np.array([-5, 5], "i8"), [-5, 5], [0.0, 1.0]),
        (np.array([2**63, 2**63 + 2048], "u8"), [2**63, 2**63 + 4096], [0.0, 0.5]),
        (np.array([0.0, 1.0], "f2"), None, [0.0, 1.0]),
        (np.array([0.0, ONE_UP], "f4"), None, [0.0, 1.0]),  # a rounding above white
        (np.array([-1.0, 1.0]), [-1, 1], [0.0, 1.0]),
        (np.array([1e9, 1e9 + 0.5]), [1e9, 1e9 + 1], [0.0, 0.5]),  # beyond single precision
    ],
)
def test_values_in_their_range(array: np.ndarray, limits: list[float] | None, expected: list[float]) -> None:
    pixels, words = scale_pixels(array, limits)
    assert pixels.dtype in (np.uint8, np.float32)
    assert pixels.tolist() == expected
    assert "black" in words


@pytest.mark.parametrize(
    ("array", "limits", "said"),
    [
        (np.array([0, 15], "u1"), None, r"at most 15.*say what is white, range=\[0,15\].*or range=\[0,255\]"),
        (np.array([3, 900], "u2"), None, r"type uint16 and run from 3 to 900.*range=\[0,4095\]"),
        (np.array([0.0, 1.00001]), None, r"run from 0 to 1.00001; expected finite values within \[0, 1\]"),
        (np.array([0.0, 1.0 + 1e-9]), None, r"to 1.000000001;"),  # as many digits as it takes
        (np.array([0.0, 255.0]), None, r"or say range=\[0,255\]"),
        (np.array([0.0, np.nan]), None, "run from nan to nan"),
        (np.array([0.0, np.inf]), [0, 1], "run from 0 to inf"),
        (np.array([0, 256], "u2"), [0, 255], r"run from 0 to 256; expected finite values within \[0, 255\]"),
        (np.array([0.5]), [1, 0], r"range is \[1, 0\]"),
        (np.array([0.5]), "01", "range is '01'"),
        (np.array([0.5]), 5, "range is 5"),
        (np.array([1j]), None, "type complex128"),
        (np.array(["a"]), None, "type <U1"),
    ],
)
def test_values_outside_it(array: np.ndarray, limits: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scale_pixels(array, limits)  # type: ignore[arg-type]


def test_many_blocks_are_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 4096, (7, 5, 3)).astype("u2")
    whole, _ = scale_pixels(array, [0, 4095])
    monkeypatch.setattr("pyro_tvae.experiments.datasets.values.BLOCK", 31)
    assert np.array_equal(scale_pixels(array, [0, 4095])[0], whole)
    assert np.allclose(whole, array / 4095)


def test_numbers_are_told_apart() -> None:
    assert [exact(value) for value in (1.0, 0.5, 1.0000001192092896)] == ["1", "0.5", "1.0000001192092896"]


@pytest.mark.parametrize(
    ("labels", "column", "numbers", "classes"),
    [
        (np.array([3, 1, 3], "u1"), None, [3, 1, 3], ()),
        (np.array([[3.0, 1.0, 3.0]]), None, [3, 1, 3], ()),  # MATLAB's vectors and numbers
        (np.array(["cat", "ant", "cat"]), None, [1, 0, 1], ("ant", "cat")),
        (np.array([b"cat", b"ant", b"cat"]), None, [1, 0, 1], ("ant", "cat")),
        (np.array(["cat", "ant", "cat"], dtype=object), None, [1, 0, 1], ("ant", "cat")),
        (np.array([True, False, True]), None, [1, 0, 1], ()),
        (np.array([[0, 0.5], [1, 0.25], [0, 0.5]]), 1, [1, 0, 1], ("0.25", "0.5")),
        (np.array([[7, 5], [8, 5], [7, 5]]), 0, [7, 8, 7], ()),
    ],
)
def test_labels_become_numbers(
    labels: np.ndarray, column: int | None, numbers: list[int], classes: tuple[str, ...]
) -> None:
    given, names = number_labels(labels, 3, "y", column)
    assert given.dtype == np.int64
    assert (given.tolist(), names) == (numbers, classes)


@pytest.mark.parametrize(
    ("labels", "column", "said"),
    [
        (np.zeros((3, 2)), None, r"are a table of shape \(3, 2\).*label_column=0"),
        (np.zeros((3, 2)), 2, "label_column is 2, but labels 'y' have 2 columns, counted from 0"),
        (np.zeros(3), 0, r"label_column is 0, but labels 'y' have no columns"),
        (
            np.zeros(4),
            None,
            r"shape \(4,\) and type float64; expected one whole number or class name for each of the 3",
        ),
        (np.array([0.5, 1, 2]), None, "type float64; expected one whole number"),
        (np.array([np.nan, 1, 2]), None, "type float64"),
        (np.array([2**63, 1, 2], "u8"), None, "type uint64"),
        (np.array([{}, [], ()], dtype=object), None, "type object"),
    ],
)
def test_labels_that_are_none(labels: np.ndarray, column: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        number_labels(labels, 3, "y", column)


def test_python_objects_and_torch_files_are_blamed_for_what_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((9, 5, 5))
    np.savez(tmp_path / "a.npz", x=pixels, y=np.array([{}] * 9, dtype=object), z=np.array(["b", "a", "c"] * 3))
    with pytest.raises(ValueError, match="labels 'y' are Python objects, and nothing is ever unpickled"):
        arrays(tmp_path / "a.npz", key="x", labels_key="y")
    parts = arrays(tmp_path / "a.npz", key="x", labels_key="z")
    assert sorted(torch.cat([part.labels for part in parts]).tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "labels z: 3 kinds (a, b, c)" in parts.train.about
    torch.save(torch.rand(9, 5, 5), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"is a file of torch\.save, and nothing is ever unpickled"):
        arrays(tmp_path / "a.pt")
