"""Rates: films of any number of frames per second become windows of one, of real frames, each near its time."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from complaints import answer, refused
from numpy.typing import NDArray
from PIL import Image

from pyro_tvae.experiments.datasets import arrays, from_torch
from pyro_tvae.experiments.datasets.rates import paced
from pyro_tvae.experiments.datasets.readers import read
from pyro_tvae.experiments.datasets.readers.content import Request
from pyro_tvae.experiments.datasets.readers.ordered import Ordered

HEIGHT, WIDTH = 16, 32
LEVELS = 12  # of gray, that even a lossy codec keeps apart


def film(n: int, first: int = 0) -> NDArray[np.uint8]:
    """Frames of plain gray that say which they are: three digits, a third of the width each."""
    frames = np.zeros((n, HEIGHT, WIDTH + 16, 3), np.uint8)
    for k in range(n):
        for place in range(3):
            frames[k, :, 16 * place : 16 * place + 16] = 20 + 20 * ((first + k) // LEVELS**place % LEVELS)
    return frames


def number(pixels: Any) -> NDArray[np.int64]:
    """Which frames (..., channel, height, width) are."""
    x = np.asarray(pixels, np.float64)
    x = x if x.max() > 1 else 255 * x
    return sum(  # type: ignore[no-any-return]
        np.round((x[..., 8, 16 * place + 8].mean(-1) - 20) / 20).astype(np.int64) * LEVELS**place for place in range(3)
    )


def nearest(times: NDArray[np.float64], rate: float) -> list[int]:
    """By trying every frame for every instant; of two that are as near the earlier."""
    times = times - times[0]
    instants = itertools.takewhile(
        lambda instant: instant <= times[-1] + 0.1 / rate, (k / rate for k in itertools.count())
    )
    return [min(range(len(times)), key=lambda k: (round(abs(times[k] - instant), 7), k)) for instant in instants]


def video(path: Path, n: int, rate: Fraction, codec: str = "mpeg4", layout: str = "yuv420p") -> NDArray[np.float64]:
    import av

    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH + 16, layout
        for frame in film(n):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return np.arange(n) / float(rate)


def uneven_video(path: Path, ticks: list[int]) -> NDArray[np.float64]:
    """Frames that are shown for unlike times, counted in hundredths of a second."""
    import av

    with av.open(path, "w") as container:
        stream: Any = container.add_stream("ffv1", rate=100)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH + 16, "bgr0"
        stream.codec_context.time_base = Fraction(1, 100)
        for tick, pixels in zip(ticks, film(len(ticks)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return np.array(ticks) / 100


def animation(path: Path, durations: list[int]) -> NDArray[np.float64]:
    first, *others = map(Image.fromarray, film(len(durations)))
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=durations, **options)
    return np.cumsum([0, *durations[:-1]]) / 1000


def mp4(path: Path) -> list[NDArray[np.float64]]:
    rates = (Fraction(25), Fraction(10), Fraction(30000, 1001))
    return [video(path / f"{k}.mp4", 30, rate) for k, rate in enumerate(rates)]


def mkv(path: Path) -> list[NDArray[np.float64]]:
    """Whose clock counts milliseconds."""
    rates = (Fraction(30000, 1001), Fraction(24), Fraction(12))
    times = [video(path / f"{k}.mkv", 30, rate, "ffv1", "bgr0") for k, rate in enumerate(rates)]
    return [np.round(own, 3) for own in times]


def mkv_uneven(path: Path) -> list[NDArray[np.float64]]:
    ticks = [[*np.cumsum(np.random.default_rng(k).integers(2, 9, 30))] for k in range(3)]
    return [uneven_video(path / f"{k}.mkv", [int(tick) for tick in own]) for k, own in enumerate(ticks)]


def gif(path: Path) -> list[NDArray[np.float64]]:
    durations = [[40] * 30, [100] * 20, [20, 50, 90, 30, 60] * 6]
    return [animation(path / f"{k}.gif", own) for k, own in enumerate(durations)]


def apng(path: Path) -> list[NDArray[np.float64]]:
    return [animation(path / f"{k}.png", own) for k, own in enumerate([[40] * 30, [100] * 20, [25, 50, 75] * 9])]


def webp(path: Path) -> list[NDArray[np.float64]]:
    return [animation(path / f"{k}.webp", own) for k, own in enumerate([[40] * 30, [100] * 20, [25, 50, 75] * 9])]


KINDS: list[Callable[[Path], list[NDArray[np.float64]]]] = [mp4, mkv, mkv_uneven, gif, apng, webp]


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_nearest_in_time(
    kind: Callable[[Path], list[NDArray[np.float64]]], memory: float | None, tmp_path: Path
) -> None:
    if kind in (mp4, mkv, mkv_uneven) and importlib.util.find_spec("av") is None:
        pytest.skip("needs av")
    times = kind(tmp_path)
    budget = np.inf if memory is None else 0
    for k, path in enumerate(sorted(tmp_path.iterdir())):
        found = read(path, Request(budget=budget)).times
        assert found is not None
        np.testing.assert_allclose(found[0], times[k] - times[k][0], atol=2e-4 if kind in (mp4, mkv) else 1e-9)
    options: dict[str, Any] = {"validation": 0.3, "test": 0.3, "n_frames": 2, "stride": 1, "split": "time", "gap": 0}
    said = arrays(tmp_path, memory=memory, **options).train.about  # type: ignore[union-attr]
    assert "taken FRAME BY FRAME as if they were alike: bring them to one rate by frame_rate" in said
    for rate in (10.0, 8.0):
        parts = arrays(tmp_path, memory=memory, frame_rate=rate, **options)
        shown: list[set[tuple[int, int]]] = []
        for part in parts:
            clips: Any = part.pixels
            pixels = number(clips[torch.arange(len(clips))])
            for row, (one, start) in enumerate(zip(clips.film.tolist(), clips.start.tolist(), strict=True)):
                assert pixels[row].tolist() == nearest(times[one], rate)[start : start + 2]
            shown.append({(one, int(k)) for one, row in zip(clips.film.tolist(), pixels, strict=True) for k in row})
        assert len(set.union(*shown)) == sum(map(len, shown))  # no part sees a frame of another
        assert {k for _, k in shown[0]}
        about = parts.train.about  # type: ignore[union-attr]
        off = max(
            np.abs(own[nearest(own, rate)] - own[0] - np.arange(len(nearest(own, rate))) / rate).max() for own in times
        )
        assert f"brought to {rate:g} frames per second by picking" in about
        assert f"at most {round(off, 6):.2g} s off" in about
        assert off <= 0.5 / rate
    text = refused(lambda: arrays(tmp_path, memory=memory, frame_rate=60, **options), ValueError)
    assert "frames are picked and never made up, so give at most" in text


def test_what_is_to_be_typed_is_taken(tmp_path: Path) -> None:
    gif(tmp_path)
    options: dict[str, Any] = {"n_frames": 2, "stride": 1, "split": "time"}
    about = arrays(tmp_path, **options).train.about  # type: ignore[union-attr]
    assert "films of 10 to 25 frames per second, not all of them shown for as long as others, taken FRAME BY" in about
    assert "(data.source.frame_rate=10)" in about
    text = refused(lambda: arrays(tmp_path, frame_rate=12, **options), ValueError)
    assert "frame_rate is 12, but film 1.gif is slower: it has 10 frames per second, and shows one for 0.1 s" in text
    assert text.endswith("so give at most 10 (data.source.frame_rate=10).")
    assert "brought to 10 frames" in arrays(tmp_path, frame_rate=10, **options).train.about  # type: ignore[union-attr]


def test_films_of_one_rate_are_what_they_were(tmp_path: Path) -> None:
    for k in range(4):
        animation(tmp_path / f"{k}.gif", [40] * 9)
    plain, asked = arrays(tmp_path), arrays(tmp_path, frame_rate=25, n_frames=9)
    assert "per second" not in plain.train.about  # type: ignore[union-attr]
    assert torch.equal(plain.train.pixels, asked.train.pixels)  # type: ignore[union-attr,arg-type]
    assert "by picking 36 of 36 frames, at most 0 s off" in asked.train.about  # type: ignore[union-attr]


FRAMES = np.stack([film(30, 30 * k)[..., 0] for k in range(6)])


@pytest.mark.parametrize("kind", ["npz", "h5", "beside"])
@pytest.mark.parametrize("memory", [None, 0])
def test_arrays_of_rates_and_of_times(kind: str, memory: float | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rates = np.array([10, 12.5, 20, 30, 25, 40.0])
    times = 100 + np.cumsum(rng.uniform(0.02, 0.09, (6, 30)), 1)
    angle = np.arange(180.0).reshape(6, 30)
    known = {"x": FRAMES, "rates": rates, "times": times, "angle": angle}
    if kind == "npz":
        np.savez(tmp_path / "a.npz", **known)  # type: ignore[arg-type]
    elif kind == "h5":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for name, value in known.items():
                file[name] = value
    else:
        np.save(tmp_path / "a.npy", FRAMES)
        for name, value in known.items():
            np.save(tmp_path / name, value)
    path = tmp_path / {"npz": "a.npz", "h5": "a.h5", "beside": "a.npy"}[kind]
    end = ".npy" if kind == "beside" else ""
    options: dict[str, Any] = {
        "key": None if end else "x",
        "axes": "NTHW",
        "n_frames": 3,
        "stride": 2,
        "memory": memory,
    }
    options |= {"path": path, "factors_key": f"angle{end}"}
    for setting, own in (("rates_key", np.arange(30) / rates[:, None]), ("times_key", times)):
        asked = {setting: f"{setting[:-4]}{end}", "frame_rate": 9.5}
        parts = arrays(**options, **asked)
        for part in parts:
            clips: Any = part.pixels
            expected = np.array(
                [nearest(own[one], 9.5)[start : start + 3] for one, start in zip(clips.film, clips.start, strict=True)]
            )
            assert np.array_equal(number(clips[torch.arange(len(clips))]), 30 * clips.film.numpy()[:, None] + expected)
            read_ = part.factors.values()[..., 0].numpy()  # type: ignore[union-attr]
            assert np.array_equal(read_, angle[clips.film.numpy()[:, None], expected])


def test_masks_are_picked_as_their_frames_are(tmp_path: Path) -> None:
    rates, good = np.array([10, 20, 20, 20, 10, 40.0]), np.random.default_rng(0).random((6, 30)) < 0.7
    line = np.random.default_rng(1).random(30) < 0.7
    np.savez(tmp_path / "a.npz", x=FRAMES, rates=rates, good=good, line=line)
    options: dict[str, Any] = {"key": "x", "axes": "NTHW", "n_frames": 3, "stride": 2, "rates_key": "rates"}
    for mask, true in (("good", good), ("line", np.broadcast_to(line, (6, 30)))):
        for memory in (None, 0):
            parts = arrays(tmp_path / "a.npz", frame_rate=10, mask=mask, memory=memory, **options)
            for part in parts:
                clips: Any = part.pixels
                _, observed, _ = clips.batch(torch.arange(len(clips)))
                steps = (rates[clips.film.numpy()] // 10).astype(int)[:, None]
                places = steps * (clips.start.numpy()[:, None] + np.arange(3))
                assert np.array_equal(observed, true[clips.film.numpy()[:, None], places])


def test_a_clock_for_all_films_and_films_of_torch(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.09, 30))
    np.savez(tmp_path / "a.npz", x=FRAMES, times=times, rate=50.0)
    options: dict[str, Any] = {"key": "x", "axes": "NTHW", "n_frames": 2, "stride": 1}
    clips: Any = arrays(tmp_path / "a.npz", times_key="times", frame_rate=10, **options).train.pixels
    expected = [nearest(times, 10)[start : start + 2] for start in clips.start]
    assert np.array_equal(number(clips[torch.arange(len(clips))]) - 30 * clips.film.numpy()[:, None], expected)
    clips = arrays(tmp_path / "a.npz", rates_key="rate", frame_rate=10, **options).train.pixels
    assert number(clips[0].numpy()).tolist() == [30 * clips.film[0] + 5 * clips.start[0] + 5 * k for k in (0, 1)]
    walks = [{"x": FRAMES[k, : 10 + 2 * k], "fps": [10, 20][k % 2]} for k in range(6)]
    clips = from_torch(walks, rates_key="fps", frame_rate=10, memory=0, **options).train.pixels
    for row, (one, start) in enumerate(zip(clips.film.tolist(), clips.start.tolist(), strict=True)):
        step = 1 + one % 2
        assert number(clips[row].numpy()).tolist() == [30 * one + step * (start + k) for k in (0, 1)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frame_rate": 0}, "frame_rate is 0; expected frames per second, above 0"),
        ({"frame_rate": "fast"}, "frame_rate is 'fast'"),
        ({"frame_rate": 5}, "not all films say when their frames are shown; say it by an array, rates_key"),
        ({"frame_rate": 5, "rates_key": "none"}, "rates_key is 'none', but the file holds the arrays"),
        ({"frame_rate": 5, "rates_key": "zero"}, "rates_key 'zero' holds 0; expected frames per second, above 0"),
        ({"frame_rate": 5, "rates_key": "times"}, "has a value for each frame; expected one for each film"),
        ({"frame_rate": 5, "times_key": "back"}, "'back' does not increase from frame to frame of film 0"),
        ({"frame_rate": 5, "times_key": "short"}, r"'short' has shape \(6, 29\), but there are 6 items of 30 frames"),
        ({"rates_key": "zero", "times_key": "times"}, "rates_key and times_key say the same of films; give one"),
        (
            {"frame_rate": 30, "times_key": "times"},
            "film 0 is slower: it has 10 frames per second, and shows one for 0.1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    times = np.broadcast_to(np.arange(30) / 10, (6, 30))
    known = {"zero": np.zeros(6), "times": times, "back": times[:, ::-1], "short": times[:, 1:]}
    np.savez(tmp_path / "a.npz", x=FRAMES, **known)  # type: ignore[arg-type]
    options = {"n_frames": 2, "stride": 1, **options}
    text = refused(lambda: arrays(tmp_path / "a.npz", key="x", axes="NTHW", **options), ValueError)
    assert said.replace("\\", "") in text


def test_still_images_have_no_rate(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FRAMES[0])
    with pytest.raises(ValueError, match="frame_rate is for films; leave it out"):
        arrays(tmp_path / "a.npy", axes="NHW", frame_rate=5)


def test_picks_are_the_nearest_in_thousands_of_films() -> None:
    """Rates that are drawn, clocks that round, against trying every frame; no frame twice, none too far."""
    dice, taken = np.random.default_rng(0), 0
    for _ in range(1000):
        n, own = int(dice.integers(2, 40)), float(dice.uniform(5, 60))
        times = np.arange(n) / own if dice.random() < 0.5 else np.cumsum(dice.uniform(0.3, 1.7, n)) / own
        times = np.round(times, int(dice.integers(2, 6))) if dice.random() < 0.5 else times
        if not (np.diff(times) > 0).all():
            continue
        rate = float(dice.uniform(2, 60))
        stored = Ordered(np.zeros((n, 5, 5)), "SHW")
        pace, sentence = answer(lambda: paced([times], stored, rate))  # noqa: B023
        if sentence is not None:
            assert "slower" in sentence
            assert (n - 1) / (times[-1] - times[0]) < rate * 0.99 or np.diff(times).max() > 1 / rate
            continue
        taken += 1
        chosen = [*range(n)] if pace.picks is None else pace.picks[0].tolist()
        assert chosen == nearest(times, rate)
        assert (np.diff(chosen) > 0).all()
    assert taken > 200
