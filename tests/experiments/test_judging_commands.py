"""The commands calibrate and compare: what they refuse before sampling, how they go on, and what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray
from matplotlib.patches import Rectangle
from typer.testing import CliRunner
from untrained_runs import make_run

import pyro_tvae
from pyro_tvae.experiments.cli import app
from pyro_tvae.experiments.commands import calibrate as command
from pyro_tvae.experiments.commands.calibrate import calibrate_run
from pyro_tvae.experiments.commands.compare import compare_runs
from pyro_tvae.experiments.commands.likelihood import likelihood_run
from pyro_tvae.experiments.reports import calibration_page
from pyro_tvae.experiments.runs.outputs import check_replaceable, request_of
from pyro_tvae.inference import Calibration

FEW: dict[str, Any] = {"simulations": 50, "draws": 9}


def test_an_interrupted_calibration_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", "roll")
    whole, *_ = calibrate_run(run, output=tmp_path / "whole.nc", **FEW)
    real, calls = command.calibration, []

    def cut(*arguments: Any, **options: Any) -> Calibration:
        calls.append(options["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(command, "calibration", cut)
    with pytest.raises(KeyboardInterrupt):
        calibrate_run(run, **FEW)
    file, page, verdict = calibrate_run(run, **FEW)
    assert len(calls) == 2 + 2  # of three batches the first was not done again
    one, two = (xarray.open_dataset(path, engine="h5netcdf").load() for path in (whole, file))
    assert one.equals(two)
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png") == 1
    assert "black or white" in text
    assert verdict.split(" (")[0].replace("ranks of ", "") in text.replace("ranks of ", "")
    before = file.read_bytes()
    calibrate_run(run, **FEW)  # there already: nothing is simulated again
    assert len(calls) == 4
    assert file.read_bytes() == before
    calibrate_run(run, **FEW | {"simulations": 61})
    assert len(calls) == 5  # more are added


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draws": 100}, "such as 99"),
        ({"simulations": 49}, "expected at least 50, five for each of 10 bins"),
        ({"method": "magic"}, "expected guide or nuts"),
        ({"bins": 1}, "two bins"),
    ],
)
def test_what_a_histogram_cannot_hold_is_refused_before_anything_is_drawn(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        calibrate_run(tmp_path / "not even there", **options)


def test_other_settings_do_not_replace_a_file_unasked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    file, *_ = calibrate_run(run, **FEW)
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match=r"made with other seed; give --overwrite .* or --output"):
        calibrate_run(run, **FEW, seed=1)
    assert file.read_bytes() == before
    calibrate_run(run, **FEW, seed=1, overwrite=True)
    assert file.read_bytes() != before
    model, guide = pyro_tvae.load(run / "model.safetensors")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    pyro_tvae.save(run / "model.safetensors", model, guide)
    with pytest.raises(FileExistsError, match="made with other weights"):
        calibrate_run(run, **FEW, seed=1)


def test_a_file_that_says_nothing_is_not_replaced(tmp_path: Path) -> None:
    for name in ("a.json", "a.nc"):
        path = tmp_path / name
        check_replaceable(path, {"seed": 0}, overwrite=False)
        path.write_text("{}")
        assert request_of(path) is None
        with pytest.raises(FileExistsError, match=f"{name} is there already; give --overwrite"):
            check_replaceable(path, {"seed": 0}, overwrite=False)
        check_replaceable(path, {"seed": 0}, overwrite=True)


def uniform(n: int = 2000, draws: int = 99) -> torch.Tensor:
    return torch.randint(0, draws + 1, (n, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (uniform(), "none tells this posterior from an exact one"),
        (torch.where(uniform() < 50, uniform() // 2, 99 - (99 - uniform()) // 2), "both ends: overconfident"),
        (25 + uniform() // 2, "in the middle: too wide"),
        (uniform() // 2, "at one end: biased"),
    ],
)
def test_the_verdict_names_the_shape(ranks: torch.Tensor, words: str) -> None:
    result = Calibration({"z": ranks}, 99)
    assert words in calibration_page.verdict(result)
    axis = calibration_page.rank_histograms(result).axes[0]
    bars = [patch for patch in axis.patches if isinstance(patch, Rectangle)]  # not the band of older matplotlib
    assert sum(bar.get_height() for bar in bars if bar.get_width() == 0.9) == pytest.approx(1)


def test_runs_are_compared_on_the_sequences_that_they_share(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / kind, kind) for kind in ("orbits", "plain")]
    output = tmp_path / "comparison.json"
    arguments = ["compare", *map(str, runs), "--particles", "30", "--sequences", "3", "--output", str(output)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert [row["rank"] for row in record["rows"]] == [0, 1]
    assert {row["model"] for row in record["rows"]} == {*map(str, runs)} == {*record["log_p"]}
    means = [sum(values) / 3 for values in record["log_p"].values()]
    assert record["rows"][0]["log_p"] == pytest.approx(max(means))
    assert record["rows"][1]["log_p_diff"] == pytest.approx(min(means) - max(means))
    assert "pseudo-likelihood" in record["remark"]
    compare_runs(runs, particles=30, sequences=3, output=output)  # the same again is fine
    with pytest.raises(FileExistsError, match="made with other particles"):
        compare_runs(runs, particles=31, sequences=3, output=output)


def test_runs_of_other_sequences_are_not_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, "plain") for name in ("one", "two")]
    text = (runs[1] / "config.yaml").read_text()
    (runs[1] / "config.yaml").write_text(text.replace("n_test: 6", "n_test: 2").replace("  seed: 0", "  seed: 1"))
    with pytest.raises(ValueError, match=r"two are not those of .*one; expected runs with the same data"):
        compare_runs(runs, particles=5, sequences=6)
    (tmp_path / "link").symlink_to(runs[0])
    for again in (runs[0], tmp_path / "link", runs[0] / ".." / runs[0].name):
        with pytest.raises(ValueError, match="1 runs; expected two or more"):
            compare_runs([runs[0], again])


def test_a_record_of_likelihoods_is_not_replaced_by_another(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    likelihood_run(run, particles=[1, 2], sequences=2)
    likelihood_run(run, particles=[2, 1], sequences=2)  # the same again is fine
    before = (run / "likelihood.json").read_bytes()
    with pytest.raises(FileExistsError, match="made with other particles"):
        likelihood_run(run, particles=[1], sequences=2)
    assert (run / "likelihood.json").read_bytes() == before
    likelihood_run(run, particles=[1], sequences=2, output=tmp_path / "other.json")
    assert len(json.loads((tmp_path / "other.json").read_text())["rows"]) == 1
    likelihood_run(run, particles=[1], sequences=2, overwrite=True)
    assert len(json.loads((run / "likelihood.json").read_text())["rows"]) == 1


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("mixture", {"frame_particles": 4}, "MixtureLatent couples the frames of z"),
        ("conditional", {"temperatures": 4, "chains": 2}, "annealing needs a mean-field guide"),
    ],
)
def test_what_the_last_estimate_is_refused_for_is_said_before_the_first(
    kind: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", kind)
    with pytest.raises(ValueError, match=said):
        likelihood_run(run, particles=[1, 8], sequences=2, **options)
    assert not [*run.glob("likelihood*")]


@pytest.mark.parametrize("name", ["likelihood", "calibrate", "compare", "posterior"])
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_generator_takes_is_refused_before_anything_is_read(
    name: str, seed: int, tmp_path: Path
) -> None:
    runs = [str(tmp_path / "a"), *([str(tmp_path / "b")] if name == "compare" else [])]
    ended = CliRunner().invoke(app, [name, *runs, "--seed", str(seed)])
    said = " ".join((ended.output + str(ended.exception)).split())
    assert ended.exit_code != 0
    assert f"{name}: seed is {seed}; expected a whole number from 0 to" in said
    assert [*tmp_path.iterdir()] == []
