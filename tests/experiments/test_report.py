"""What people look at: figures show the numbers they were given, tables cut none, the report is one safe page."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from torch import Tensor

from pyro_tvae.experiments.reports import figures, films, report, tables
from pyro_tvae.experiments.reports.mosaics import as_frames

MISSING = "–"
VOID = {"meta", "img", "link", "br", "hr", "input"}


def row(key: str, **values: Any) -> dict[str, Any]:
    blank = {"label": key, "unit": "", "better": "", "trained": None, "standard_error": None, "untrained": None}
    return {"key": key, **blank, "plain_vae": None, "note": "", **values}


def forward_roll() -> dict[str, Any]:
    likelihood = {
        "model": [-152.5, -153.5, -154.5],
        "repeat last frame": [-900.25, -1200.0, -1500.0],
        "mean frame": [-190.0, -190.5, -191.0],
        "hold": [-160.0, -180.0, -200.0],
    }
    error = {name: [abs(value) / 10000 for value in values] for name, values in likelihood.items()}
    return {"context": 4, "log_likelihood": likelihood, "pixel_error": error}


def evaluation() -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "digits lpartial",
        "verdict": ["The code carries information.", "The roll predicts unseen frames."],
        "collapsed": False,
        "data": {"name": "digits", "split": "test", "n_sequences": 360, "n_frames": 18, "moving": ["rotation"]},
        "rows": [
            row("iwae", label="IWAE, K = 100", unit="nats / frame", better="higher", trained=-152.3061,
                standard_error=0.2812, untrained=-405.13, plain_vae=-149.06),
            row("e_eq", label="E_eq", better="lower", trained=497.13, untrained=492.44, plain_vae=13273.2,
                note="as low without training"),
            row("roll", label="roll correlation, scale", better="higher", trained=float("nan"), untrained=0.0123),
        ],
        "forward_roll": forward_roll(),
        "notes": ["Bernoulli on grey values is a pseudo-likelihood."],
        "seed": 7,
        "versions": {"python": "3.11.9", "torch": "2.14.1"},
        "hardware": "2 cores",
        "seconds": {"training": 185.2, "evaluation": 4.21},
        "parameters": 1234567,
    }  # fmt: skip


def frames(n: int, s: int, channels: int, size: int = 8) -> Tensor:
    return torch.rand(n, s, channels, size, size, generator=torch.Generator().manual_seed(0))


class Page(HTMLParser):
    """Checks that tags nest and close, and keeps what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def as_text(content: dict[str, Any], width: int = 100) -> str:
    stream = io.StringIO()
    tables.print_evaluation(content, Console(file=stream, width=width))
    return stream.getvalue()


# ---- numbers


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (-152.3061, 0.2812, "-152.31 ± 0.28"),
        (-152.3061, 0.0996, "-152.31 ± 0.10"),
        (13273.4, 123.0, "13,273 ± 123"),
        (0.6213, 0.0041, "0.6213 ± 0.0041"),
        (-150.1, None, "-150.1"),
        (-150.1, float("nan"), "-150.1"),
        (1.0, 0.0, "1.000"),
        (0.98765, None, "0.9877"),
        (0.99999, None, "1.000"),
        (13273.4, None, "13,273"),
        (1234567.0, None, "1,234,567"),
        (-0.00012346, None, "-0.0001235"),
        (1.5e-7, None, "1.500e-07"),
        (-1e-9, 0.1, "0.00 ± 0.10"),
        (0.0, None, "0"),
        (100, None, "100"),
        (None, 0.3, MISSING),
        (float("nan"), None, MISSING),
        (-math.inf, None, "-∞"),
    ],
)
def test_numbers_have_the_digits_they_can_carry(value: float | None, error: float | None, expected: str) -> None:
    assert tables.format_number(value, error) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(4.21, "4.2 s"), (59.97, "1 min 0 s"), (185.2, "3 min 5 s"), (7384.0, "2 h 3 min"), (None, MISSING)],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert tables.format_seconds(seconds) == expected


# ---- the table


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_printed_table_has_every_label_and_number_uncut(width: int) -> None:
    text = as_text(evaluation(), width)
    for word in ("IWAE, K = 100", "-152.31 ± 0.28", "-405.1", "-149.1", "497.1", "492.4", "13,273", "0.01230"):
        assert word in text
    assert "…" not in text
    assert "\x1b" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    flat = " ".join(text.split())
    assert "The code carries information." in flat
    assert "[1] as low without training" in flat
    assert "[2] undefined" in flat
    assert "Bernoulli on grey values is a pseudo-likelihood." in flat
    assert " ".join(tables.BLIND.split()) in flat


def test_a_narrow_terminal_cuts_no_number() -> None:
    text = as_text(evaluation(), width=60)
    for number in ("-152.31 ± 0.28", "-405.1", "13,273"):
        assert number in text


def test_output_to_a_pipe_is_plain_and_wide(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_evaluation(evaluation())
    text = capsys.readouterr().out
    assert "-152.31 ± 0.28" in text
    assert "\x1b" not in text


def test_empty_columns_are_left_out() -> None:
    content = evaluation()
    content["rows"] = [row("a", trained=1.5), row("b", trained=None, untrained=float("nan"))]
    headings = [column.header for column in tables.evaluation_table(content).columns]
    assert headings == ["measure", "trained"]
    full = [column.header for column in tables.evaluation_table(evaluation()).columns]
    assert full == ["measure", "unit", "better", "trained ± s.e.", "untrained", "plain VAE"]


def test_undefined_numbers_say_so() -> None:
    content = {"rows": [row("a"), row("b", trained=1.0, plain_vae=float("nan"), note="why"),
                        row("c", note="Undefined for a constant series.")]}  # fmt: skip
    a, b, c = tables.rows(content)
    assert (a.trained, a.note) == (MISSING, "undefined")
    assert (b.plain_vae, b.note) == (MISSING, "undefined for the plain VAE; why")
    assert c.note == "Undefined for a constant series."


def test_names_with_brackets_are_no_markup_and_a_collapse_is_announced() -> None:
    content = {**evaluation(), "name": "[red]run[/red]", "collapsed": True}
    text = as_text(content)
    assert "[red]run[/red]" in text
    assert "The code" in text


def test_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema 2"):
        tables.rows({"schema": 2, "rows": []})


# ---- the report


def written(run: Path, content: dict[str, Any], **parts: Any) -> tuple[Page, str]:
    path = report.write_report(run, content, parts.pop("figures", {}), parts.pop("config_yaml", "seed: 7"), **parts)
    assert path == run / "report.html"
    assert [entry.name for entry in run.iterdir() if entry.suffix == ".html"] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def test_the_report_is_one_valid_page_with_everything_in_it(tmp_path: Path) -> None:
    x = frames(2, 3, 1)
    picture = figures.save(figures.capsule_stripes(torch.rand(4, 2, 5), torch.rand(4, 2, 5)), tmp_path / "stripes.png")
    page, text = written(
        tmp_path / "run", evaluation(),
        figures={"reconstructions_rotation": figures.reconstructions(x, x), "capsule_stripes": picture,
                 "mine": picture},
        config_yaml="model:\n  n_capsules: 18", history=[{"step": 1, "train/elbo": -200.0}],
    )  # fmt: skip
    words = page.words()
    for entry in tables.rows(evaluation()):
        for part in (entry.label, entry.trained, entry.untrained, entry.plain_vae, entry.note):
            assert part in words
    for part in ("The code carries information.", "n_capsules: 18", "torch 2.14.1", "3 min 5 s", "1,234,567", "2 cores",
                 "Reconstructions: rotation", "Mine", "360 sequences of 18 frames", "-152.5", "-900.2",
                 "repeat last frame", tables.BLIND):  # fmt: skip
        assert part in words
    assert "<title>digits lpartial</title>" in text
    assert words.index("The code carries information.") < words.index("IWAE, K = 100") < words.index("n_capsules")
    # The three given ones, and two that are drawn from the data.
    images = page.all("img")
    assert len(images) == 5
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)  # type: ignore[union-attr]


def test_the_report_needs_nothing_from_outside_and_runs_nothing(tmp_path: Path) -> None:
    page, text = written(tmp_path, evaluation())
    assert not page.all("script")
    assert not page.all("link")
    assert "url(" not in text
    assert "@import" not in text
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)


def test_the_report_is_accessible(tmp_path: Path) -> None:
    page, text = written(tmp_path, evaluation())
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert "prefers-color-scheme: dark" in text
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))


def test_the_report_escapes_every_text(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\"'&"
    content = evaluation()
    content.update(name=bad, verdict=[bad], notes=[bad], hardware=bad, versions={bad: bad}, seed=bad)
    content["data"].update(name=bad, moving=[bad])
    content["rows"] = [row(bad, label=bad, unit=bad, better=bad, note=bad, trained=1.0)]
    content["forward_roll"]["log_likelihood"][bad] = [1.0, 2.0, 3.0]
    content["seconds"] = {bad: 1.0}
    figure = figures.training_curves([])
    page, text = written(tmp_path, content, figures={bad: figure}, config_yaml=bad)
    assert "<script" not in text
    assert not page.all("script")
    assert page.words().count("<script>alert(1)</script>") >= 10


def test_a_collapse_is_warned_of_before_anything_else(tmp_path: Path) -> None:
    page, text = written(tmp_path, {**evaluation(), "collapsed": True})
    assert 'class="verdict warning"' in text
    assert page.words().index("this model has collapsed") < page.words().index("IWAE")
    assert 'class="verdict warning"' not in written(tmp_path, evaluation())[1]


def test_missing_parts_are_left_out(tmp_path: Path) -> None:
    content = {"schema": 1, "name": "short", "verdict": ["So."], "rows": [row("a", trained=None)]}
    page, _ = written(tmp_path, content, config_yaml="")
    words = page.words()
    assert MISSING in words
    assert "undefined" in words
    for part in ("Plain VAE", "Untrained", "Forward roll", "Figures", "None", "nan"):
        assert part not in words
    assert not page.all("img")
    written(tmp_path, {}, config_yaml="")


def test_missing_horizons_are_dashes(tmp_path: Path) -> None:
    content = evaluation()
    content["forward_roll"] = {"context": 4, "log_likelihood": {"model": [-1.5, None, float("nan")], "hold": [-2.25]}}
    page, _ = written(tmp_path, content)
    words = page.words()
    assert f"model {MISSING} -1.500 {MISSING} {MISSING}" in words
    assert f"hold {MISSING} -2.250 {MISSING} {MISSING}" in words
    assert "nan" not in words


def test_a_report_survives_the_json_of_its_run(tmp_path: Path) -> None:
    content = json.loads(json.dumps(evaluation()))
    first = report.write_report(tmp_path, content, {}, "seed: 7").read_bytes()
    assert report.write_report(tmp_path, content, {}, "seed: 7").read_bytes() == first


def test_a_picture_that_is_not_there_or_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        report.write_report(tmp_path, evaluation(), {"a": tmp_path / "no.png"}, "")
    with pytest.raises(ValueError, match=r"figure a: .*no\.exe"):
        report.write_report(tmp_path, evaluation(), {"a": tmp_path / "no.exe"}, "")


# ---- the figures


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "s"), [(1, 2), (2, 5), (6, 30)])
def test_mosaics_show_the_frames_they_were_given(tmp_path: Path, n: int, s: int, channels: int) -> None:
    x, y, z = frames(n, s, channels), 0.5 * frames(n, s, channels), 0.25 * frames(n, s, channels)
    context = s // 2
    drawn = {
        "reconstructions": (figures.reconstructions(x, y.numpy()), [x, y]),
        "traversal": (figures.capsule_traversal(x, y, z), [x, y, z]),
        "strip": (figures.forward_roll_strip(x, y[:, context:], context, {"hold": z[:, context:]}), [x]),
    }
    for name, (figure, shown) in drawn.items():
        (axis,) = figure.axes
        (image,) = axis.images
        canvas = np.asarray(image.get_array())
        assert canvas.ndim == (2 if channels == 1 else 3)
        if channels == 1:
            assert (image.get_clim(), image.get_cmap().name) == ((0.0, 1.0), "gray")
        # The labels of the axes name row and frame; the picture around their crossing is that frame.
        size = 56
        for row_index, frames_of_row in enumerate(shown):
            top = round(axis.get_yticks()[row_index] - (size - 1) / 2)
            for tick, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True):
                left = round(tick - (size - 1) / 2)
                cell = canvas[top : top + size : 7, left : left + size : 7].reshape(8, 8, channels)
                frame = frames_of_row[0, int(label.get_text())].permute(1, 2, 0)
                np.testing.assert_allclose(cell, frame.numpy(), atol=1e-6)
        path = figures.save(figure, tmp_path / f"{name}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_strip_separates_seen_from_unseen() -> None:
    x = frames(1, 6, 1)
    figure = figures.forward_roll_strip(x[0], x[0, 4:], 4)
    (axis,) = figure.axes
    (line,) = axis.lines
    edge = float(np.asarray(line.get_xdata())[0])
    ticks = axis.get_xticks()
    assert ticks[3] < edge < ticks[4]
    assert ticks[4] - ticks[3] > 1.2 * (ticks[3] - ticks[2])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["true", "predicted"]
    with pytest.raises(ValueError, match="context=6"):
        figures.forward_roll_strip(x, x, 6)
    with pytest.raises(ValueError, match="predicted has shape"):
        figures.forward_roll_strip(x, x, 4)


@pytest.mark.parametrize(("channels", "columns"), [(2, 2), (4, 2), (5, 3), (12, 4), (20, 4)])
def test_other_channels_come_in_a_grid(channels: int, columns: int) -> None:
    x = frames(1, 2, channels)
    height, width = x.shape[-2:]
    one, shown = as_frames(x), min(channels, 16)
    rows = -(-shown // columns)
    assert one.shape == (1, 2, 1, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for k in range(columns * rows):
        top, left = k // columns * (height + 1), k % columns * (width + 1)
        cell = one[:, :, 0, top : top + height, left : left + width]
        expected = as_frames(x[:, :, k : k + 1])[:, :, 0] if k < shown else np.ones(1)
        assert np.array_equal(cell, np.broadcast_to(expected, cell.shape))
    figures.reconstructions(x, x)
    figures.forward_roll_strip(x, x[:, 1:], 1)


def test_flow_is_hue_of_its_direction_and_saturation_of_its_speed() -> None:
    ways = {"right": (1.0, 0.5), "up": (0.5, 0.0), "left": (0.0, 0.5), "down": (0.5, 1.0), "still": (0.5, 0.5)}
    x = torch.tensor([*ways.values()]).T.reshape(1, 1, 2, 1, 5)
    shown = as_frames(x, "flow")[0, 0, :, 0].T
    colors = dict(zip(ways, shown.tolist(), strict=True))
    assert colors["still"] == pytest.approx([1, 1, 1])
    assert colors["right"] == pytest.approx([1, 0, 0])  # hue 0, and a quarter of the circle further each
    assert colors["up"] == pytest.approx([0.5, 1, 0])
    assert colors["left"] == pytest.approx([0, 1, 1])
    assert colors["down"] == pytest.approx([0.5, 0, 1])
    slow = as_frames(torch.tensor([0.75, 0.5]).reshape(1, 1, 2, 1, 1), "flow").flatten()
    assert slow.tolist() == pytest.approx([1, 0.5, 0.5])


def test_rgba_lies_on_white_and_pairs_side_by_side() -> None:
    x = frames(2, 3, 4)
    shown = as_frames(x, "rgba")
    alpha = x[1, 2, 3, 4, 5]
    assert shown[1, 2, 0, 4, 5] == pytest.approx(float(x[1, 2, 0, 4, 5] * alpha + (1 - alpha)))
    colored = frames(1, 2, 6)
    shown = as_frames(colored, "pairs")
    assert shown.shape == (1, 2, 3, 8, 17)
    assert np.array_equal(shown[..., :8], as_frames(colored[:, :, :3]))
    assert np.array_equal(shown[..., 9:], as_frames(colored[:, :, 3:]))


@pytest.mark.parametrize(("kind", "channels"), [("flow", 3), ("rgba", 3), ("pairs", 5), ("movie", 2)])
def test_channels_that_cannot_be_shown_so_are_refused_with_what_can(kind: str, channels: int) -> None:
    with pytest.raises(ValueError, match=f"evaluation.channels is '{kind}', and frames have {channels} .* grid, or"):
        as_frames(frames(1, 2, channels), kind)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_film_shows_truth_reconstruction_and_forecast_in_turn(tmp_path: Path, channels: int) -> None:
    x = frames(5, 6, channels)
    path = films.save_film(tmp_path / "film.png", x, 0.5 * x, 0.25 * x[:, 4:], 4)
    columns = [as_frames(value) for value in (x, 0.5 * x, torch.cat([x[:, :4], 0.25 * x[:, 4:]], 1))]
    height, width = columns[0].shape[-2:]
    scale = round(films.TILE / width)
    with Image.open(path) as film:
        assert film.n_frames == 6  # type: ignore[attr-defined]
        for frame, row, column in itertools.product(range(6), range(4), range(3)):
            film.seek(frame)
            left = films.GAP + (scale * width + films.GAP) * column + scale // 2
            top = films.HEAD + (scale * height + films.GAP) * row + scale // 2
            shown = np.asarray(film.convert("RGB"))[top::scale, left::scale, 0][:height, :width] / 255
            assert np.abs(shown - columns[column][row, frame, 0]).max() < 0.01
    page, text = written(tmp_path, evaluation(), figures={"forward_roll_film": path})
    assert text.count("<details open>") == 1
    assert "the third column moves as the first one does" in page.words()


def test_a_film_is_cut_to_two_mebibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = frames(4, 20, 3, size=24)
    whole = films.save_film(tmp_path / "film.png", x, x, x[:, 10:], 10)
    monkeypatch.setattr(films, "MOST_BYTES", whole.stat().st_size // 3)
    cut = films.save_film(tmp_path / "cut.png", x, x, x[:, 10:], 10)
    assert cut.stat().st_size <= films.MOST_BYTES
    with Image.open(cut) as film:
        assert 1 < getattr(film, "n_frames", 0) < 20
    monkeypatch.setattr(films, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="look at the strip"):
        films.save_film(tmp_path / "no.png", x, x, x[:, 10:], 10)
    assert not (tmp_path / "no.png").exists()


def test_mosaics_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"expected \(sequence, frame, channel, height, width"):
        figures.reconstructions(frames(1, 2, 1)[0, 0], frames(1, 2, 1)[0, 0])
    with pytest.raises(ValueError, match="reconstructed frames have shape"):
        figures.reconstructions(frames(1, 2, 1), frames(1, 3, 1))


def lines(figure: Figure, panel: int = 0) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[panel].lines}


def test_training_curves_draw_the_history() -> None:
    records: list[dict[str, Any]] = [
        {"step": 1, "train/elbo": -3.0, "train/reconstruction": -2.0, "train/kl": 1.0},
        {"step": 2, "train/elbo": float("nan"), "val/elbo": -2.5, "val/reconstruction": -2.25, "val/kl": 0.25},
        {"step": 3, "train/elbo": -2.0, "train/reconstruction": -1.5, "train/kl": 0.5},
    ]
    figure = figures.training_curves(records)
    np.testing.assert_array_equal(lines(figure, 0)["training"], [[1, -3], [3, -2]])
    np.testing.assert_array_equal(lines(figure, 0)["validation"], [[2, -2.5]])
    np.testing.assert_array_equal(lines(figure, 1)["training"], [[1, -2], [3, -1.5]])
    np.testing.assert_array_equal(lines(figure, 2)["validation"], [[2, 0.25]])
    assert figure.axes[0].get_ylabel() == "nats per frame"
    assert figure.axes[2].get_ylim()[0] == 0.0


def test_training_curves_say_where_the_start_is_off_the_axis() -> None:
    history = [{"step": i, "train/elbo": -150.0 + i / 100 if i > 3 else -5000.0} for i in range(200)]
    axis = figures.training_curves(history).axes[0]
    assert axis.get_ylim()[0] > -200
    assert "off the axis" in axis.get_xlabel()
    assert "off the axis" not in figures.training_curves(history[10:]).axes[0].get_xlabel()


def words_of(figure: Figure) -> str:
    found = [text.get_text() for axis in figure.axes for text in axis.texts]
    return " | ".join([*found, figure.get_supxlabel()])


def test_the_forward_roll_curve_draws_every_series_and_says_what_it_cuts() -> None:
    content = forward_roll()
    figure = figures.forward_roll_curve(content)
    drawn = lines(figure)
    for name, values in content["log_likelihood"].items():
        np.testing.assert_array_equal(drawn[name], np.stack([[1, 2, 3], values], axis=1))
    low, high = figure.axes[0].get_ylim()
    assert -300 < low < -200
    assert high > -152.5
    words = words_of(figure).replace("\n", " ")
    assert "repeat last frame (−1,500 to −900 nats)" in words
    assert all(name in words for name in ("model", "hold", "mean frame"))
    assert "nats per unseen frame" in figure.axes[0].get_ylabel()


def test_the_forward_roll_curve_never_cuts_the_model() -> None:
    figure = figures.forward_roll_curve({"log_likelihood": {"model": [-9000.0], "a": [-1.0], "b": [-2.0], "c": [None]}})
    assert figure.axes[0].get_ylim()[0] < -9000
    assert figure.get_supxlabel() == ""
    assert set(lines(figure)) == {"model", "a", "b"}
    undefined = figures.forward_roll_curve({"log_likelihood": {"model": [None]}})
    assert "undefined" in words_of(undefined)


def test_capsule_stripes_show_one_capsule_the_liveliest() -> None:
    t = 0.1 * torch.rand(6, 3, 5) + 1.0
    t[:, 2] *= torch.arange(6.0)[:, None]
    v = torch.rand(6, 3, 5)
    figure = figures.capsule_stripes(t, v)
    for axis, expected in zip(figure.axes[:2], (t, v), strict=True):
        np.testing.assert_allclose(np.asarray(axis.images[0].get_array()), expected[:, 2].numpy(), rtol=1e-6)
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("position in the capsule", "frame")
    alone = figures.capsule_stripes(t[:, :1].numpy() - 1.05)
    image = alone.axes[0].images[0]
    np.testing.assert_allclose(np.asarray(image.get_array()), t[:, 0].numpy() - 1.05, atol=1e-6)
    assert image.get_clim()[0] == -image.get_clim()[1]
    with pytest.raises(ValueError, match=r"expected \(frame, capsule, position\)"):
        figures.capsule_stripes(t[0])


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.png"
    figures.save(figures.training_curves([]), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        figures.save(figures.training_curves([{"step": 1, "val/kl": 1.0}]), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]
