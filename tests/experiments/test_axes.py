"""Axes, types, orders and ranges: an array is read as what it is, or refused with the word that says what it is.

PYRO_TVAE_ARRAYS=2000 in the environment tries so many arrays instead of 200.
"""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from complaints import answer
from numpy.typing import NDArray

from pyro_tvae.experiments.datasets import Frames, SequenceDataModule, arrays
from pyro_tvae.experiments.datasets.axes import CONVENTIONS, choose, parse
from pyro_tvae.experiments.datasets.readers.ordered import Ordered

TOTAL = int(os.environ.get("PYRO_TVAE_ARRAYS", "200"))
TYPES = ["u1", "<u2", ">u2", "<i4", ">i2", "<f2", "<f4", ">f4", "<f8", ">f8", "b1"]


def scenes(n: int, s: int, c: int, height: int, width: int) -> NDArray[np.float64]:
    """Pixels in [0, 1] that are all different where that is possible, so that no two orders look alike."""
    size = n * s * c * height * width
    return np.random.default_rng(size).permutation(size).reshape(n, s, c, height, width) / max(1, size - 1)


def kept(pixels: NDArray[np.float64], kind: str, dice: random.Random) -> tuple[NDArray, list[float] | None, NDArray]:
    """Pixels as a type keeps them, the range that has to be said of them, and what should be read."""
    dtype = np.dtype(kind)
    limits: list[float] | None = None
    if kind == "b1":
        stored = pixels > 0.5
        return stored, None, stored.astype(np.float64)
    if dtype.kind in "ui":
        low, high = (0, 255) if kind == "u1" else dice.choice([(0, 4095), (0, 15), (100, 1123), (0, 32767)])
        if kind == "u1" and dice.random() < 0.3:
            high = 15
        stored = np.round(low + pixels * (high - low)).astype(dtype)
        if kind != "u1" or high != 255:
            limits = [low, high]
    else:
        low, high = dice.choice([(0.0, 1.0), (-1.0, 1.0), (0.0, 1000.0), (-0.25, 0.125)])
        stored = (low + pixels * (high - low)).astype(dtype)
        if (low, high) != (0.0, 1.0):
            limits = [low, high]
    return stored, limits, (stored.astype(np.float64) - low) / (high - low)


def laid_out(array: NDArray, dice: random.Random) -> NDArray:
    """The same values in another order of memory."""
    way = dice.choice(["C", "F", "strided", "reversed"])
    if way == "strided":
        spread = np.zeros([2 * size for size in array.shape], array.dtype)
        spread[tuple(slice(None, None, 2) for _ in array.shape)] = array
        return spread[tuple(slice(None, None, 2) for _ in array.shape)]
    if way == "reversed":
        return np.ascontiguousarray(array[::-1])[::-1]
    return np.asarray(array, order=way)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("start", range(0, TOTAL, 50))
def test_no_array_is_misread(start: int, tmp_path: Path) -> None:
    for seed in range(start, min(TOTAL, start + 50)):
        check_one(seed, tmp_path / "a.npy")


def check_one(seed: int, path: Path) -> None:
    dice = random.Random(seed)
    moving = dice.random() < 0.6
    c, sides = dice.choice([1, 1, 2, 3, 3, 4, 7]), [dice.randint(5, 9), dice.randint(5, 9)]
    n, s = dice.randint(5, 24), dice.randint(2, 24) if moving else 1
    true = scenes(n, s, c, *sides)
    stored, limits, expected = kept(true, dice.choice(TYPES), dice)
    named = [("N", n), ("C", c), ("H", sides[0]), ("W", sides[1])] + [("S", s)] * moving
    letters = [letter for letter, size in named if letter != "C" or size > 1 or dice.random() < 0.5]
    if dice.random() < 0.6:  # as arrays are kept commonly; else in any order
        fitting = [word for words in CONVENTIONS.values() for word in words if set(word) == set(letters)]
        word = dice.choice(fitting or ["".join(dice.sample(letters, len(letters)))])
    else:
        word = "".join(dice.sample(letters, len(letters)))
    full = "NSCHW"
    squeezed = stored[tuple(slice(None) if letter in letters else 0 for letter in full)]
    order = [letter for letter in full if letter in letters]
    array = laid_out(squeezed.transpose([order.index(letter) for letter in word]), dice)
    np.save(path, array)

    def read(axes: str | None, n_frames: int | None) -> NDArray[np.float64]:
        parts = arrays(path, axes=axes, range=limits, n_frames=n_frames)
        whole = np.concatenate([part.pixels.numpy() for part in parts])
        assert isinstance(parts.train, Frames) == moving
        return whole / 255 if whole.dtype == np.uint8 else whole

    def same(pixels: NDArray[np.float64]) -> bool:
        wanted = expected if moving else expected[:, 0]
        if pixels.shape != wanted.shape:
            return False
        rows = [rows.reshape(n, -1) for rows in (pixels, wanted)]
        ordered = [row[np.lexsort(np.round(row, 3).T[::-1])] for row in rows]
        return bool(np.allclose(*ordered, atol=2e-3 if stored.dtype == np.float16 else 1e-6))

    spelled = word.replace("S", dice.choice("ST")) if dice.random() < 0.7 else word.lower()
    assert same(read(spelled, None)), f"{seed}: what was said is what was read"
    if word not in CONVENTIONS.get(len(word), ()):
        return  # no shape tells an uncommon order: it has to be said
    # Unasked: the length of a sequence is said, or there are more sequences than frames, as is presumed.
    n_frames = s if moving and (dice.random() < 0.5 or n <= s) else None

    def unasked() -> NDArray[np.float64]:
        parts = arrays(path, range=limits, n_frames=n_frames)
        SequenceDataModule(parts, n_frames=s if moving else 3)
        whole = np.concatenate([part.pixels.numpy() for part in parts])
        return whole / 255 if whole.dtype == np.uint8 else whole

    pixels, sentence = answer(unasked)
    if sentence is None:
        assert same(pixels), f"{seed}: {array.shape} kept as {word} was read as {pixels.shape}"
    elif "can be read as" in sentence:
        offered = re.findall(r"\(axes=(\w+)\)", sentence)
        assert len(offered) >= 2
        assert word in offered or (word == "NCSHW" and c > 4)


@pytest.mark.parametrize(
    ("shape", "n_frames", "word"),
    [
        ((100, 28, 28), None, "NHW"),
        ((9, 4, 4), None, "NHW"),
        ((100, 18, 1, 28, 28), None, "NSCHW"),
        ((40, 4, 2, 6, 6), None, None),
        ((40, 4, 2, 6, 6), 4, "NSCHW"),
        ((20, 3, 1, 2, 2), None, "NSCHW"),
        ((64, 20, 12, 12, 3), None, "NSHWC"),
        ((20, 10000, 64, 64), 20, "SNHW"),  # Moving MNIST
        ((20, 64, 1, 32, 32), 20, "SNCHW"),
        ((64, 3, 16, 32, 32), 16, "NCSHW"),
        ((60000, 28, 28, 1), None, "NHWC"),
        ((60000, 32, 32, 3), None, "NHWC"),
        ((60000, 1, 28, 28), None, "NCHW"),
        ((480, 18, 64, 64), 18, "NSHW"),
        ((18, 64, 64), 18, "SHW"),
        ((3, 5, 64, 64, 3), 5, "NSHWC"),
        ((20, 10000, 64, 64), None, None),
        ((20, 64, 1, 32, 32), None, None),
        ((1000, 3, 32, 32), None, None),
        ((64, 64, 3), None, None),
        ((10, 4, 3, 5, 5), None, None),
        ((64, 3, 16, 32, 32), None, None),
        ((18, 18, 1, 28, 28), 18, None),
        ((5, 5), None, None),
        ((2,) * 6, None, None),
    ],
)
def test_what_a_shape_leaves(shape: tuple[int, ...], n_frames: int | None, word: str | None) -> None:
    chosen, sentence = answer(lambda: choose(shape, [], n_frames))
    assert chosen == word, sentence
    assert (sentence is None) == (word is not None)


def test_a_refusal_names_the_readings_and_their_words() -> None:
    with pytest.raises(ValueError, match="can be read as") as caught:
        choose((20, 64, 1, 32, 32), [])
    text = str(caught.value)
    assert "20 sequences of 64 frames, 1 channel, 32 x 32 pixels (axes=NSCHW)" in text
    assert "64 sequences of 20 frames, 1 channel, 32 x 32 pixels (axes=SNCHW)" in text
    assert "data.source.axes=NSCHW on the command line" in text


@pytest.mark.parametrize("word", ["NSCH", "NHWX", "NSTHW", "NNHW", "", 5, ["NHW", "H"]])
def test_words_that_are_none_are_refused(word: object) -> None:
    with pytest.raises(ValueError, match="one letter for each axis"):
        parse(word)  # type: ignore[arg-type]


def test_a_word_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one word of 4 letters"):
        choose((3, 4, 5, 6), ["NHW"])
    assert choose((3, 4, 5), ["NHW", "NSCHW"]) == "NHW"


def test_an_order_is_a_transpose() -> None:
    x = np.random.default_rng(0).random((2, 3, 4, 5, 6))
    for word, at in (("WHCSN", x.transpose(4, 3, 2, 1, 0)), ("SNHWC", x.transpose(1, 0, 4, 2, 3)), ("NSCHW", x)):
        assert np.array_equal(Ordered(x, word).items(slice(None)), at)
    assert Ordered(x[0, 0], "HWS").items(slice(None)).shape == (1, 6, 1, 4, 5)
