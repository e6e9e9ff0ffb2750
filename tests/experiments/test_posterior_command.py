"""The command posterior: a file that ArviZ reads, a page that stands alone, and mistakes answered in a sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_tvae
from pyro_tvae.experiments.commands.posterior import posterior_run
from pyro_tvae.experiments.config.building import build
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.datasets import Transformations
from pyro_tvae.experiments.reports import posterior_page
from pyro_tvae.experiments.runs.files import write_text
from pyro_tvae.inference.posterior import from_netcdf, to_arviz

SMALL = ["data.n_train=8", "data.n_validation=4", "data.n_test=6", "model.n_capsules=2", "fit.accelerator=cpu"]
KINDS = {
    "orbits": [],
    "roll": ["topography=capsule_roll", "prior=gaussian", "guide=mean_field"],
    "plain": ["experiment=plain_vae"],
}


def make_run(folder: Path, kind: str) -> Path:
    """A run's folder as training leaves it, with untrained weights and a name that wants escaping."""
    from omegaconf import OmegaConf

    config = compose([*SMALL, *KINDS[kind]])
    config.name = "a <b> & c"
    parts = build(config)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    pyro_tvae.save(folder / "model.safetensors", parts.model, parts.guide)
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pyro_tvae.experiments.cli", "posterior", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_writes_a_file_and_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "orbits")
    result = command(tmp_path, "run", "--draws", "30", "--sequences", "5")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["posterior: run/posterior.nc", "page: run/posterior.html"]
    assert "draws from the guide" in result.stderr  # progress
    data = from_netcdf(run / "posterior.nc")
    assert data["posterior"]["e"].shape == (1, 30, 5, 2, 18)
    assert set(data["observed_data"].coords) >= {"label", "moving", "rotation_index", "scale_index"}
    assert data["observed_data"]["rotation_index"].dims == ("sequence", "frame")
    degrees = data["observed_data"]["rotation_value"]
    assert np.array_equal(degrees, 20.0 * data["observed_data"]["rotation_index"])
    assert set(np.unique(data["observed_data"]["scale_value"])) <= set(Transformations(scale=True).factors["scale"])
    page = (run / "posterior.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(posterior_page.CAPTIONS)
    assert page.count("alt=") == len(posterior_page.CAPTIONS)
    assert not re.search(r"https?://|<script", page)  # nothing from outside
    assert "a &lt;b&gt; &amp; c" in page
    assert "<b>" not in page
    assert "pseudo-likelihood" in page
    assert not list(run.glob("*.partial"))


@pytest.mark.parametrize("kind", ["roll", "plain"])
def test_every_prior_has_its_page(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path / "run", kind)
    file, page = posterior_run(run, draws=30, sequences=2, method="importance")
    assert file.is_file()
    assert page.read_text(encoding="utf-8").count("data:image/png") == len(posterior_page.CAPTIONS)


def test_nuts_has_its_page(tmp_path: Path) -> None:
    model = pyro_tvae.TVAE((1, 2, 2), 3, 1, 3, pyro_tvae.CapsuleRoll(3), mu=1.0)
    guide = pyro_tvae.MeanFieldGuide(model)
    data = to_arviz(model, guide, torch.rand(2, 3, 1, 2, 2), draws=10, method="nuts", warmup_steps=20)
    page = posterior_page.write_page(tmp_path / "page.html", data, model, name="small", facts={"Draws": "10"})
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png") == len(posterior_page.CAPTIONS) - 1  # no weights, no Pareto k
    assert "R-hat" in text


@pytest.mark.parametrize(
    ("k", "words"),
    [
        ([0.1, 0.2], "2 of 2 .* stand for the posterior"),
        ([0.1, 9.0], "1 of 2 .* of the others"),
        ([3.0, 9.0], "0 of 2"),
    ],
)
def test_the_verdict_counts_usable_sequences(k: list[float], words: str) -> None:
    import xarray

    stats = xarray.Dataset({"pareto_k": ("sequence", k), "ess": ("sequence", [50.0, 60.0])})
    assert re.search(words, posterior_page._verdict({"sequence_stats": stats}))


@pytest.mark.parametrize("k", [[0.1, 0.5], [0.1, 300.0, np.inf], [np.nan, 0.2], [-0.5]])
def test_pareto_k_is_drawn_at_any_size(k: list[float], tmp_path: Path) -> None:
    figure = posterior_page.pareto_k_plot(k)
    figure.savefig(tmp_path / "k.png")
    assert (tmp_path / "k.png").stat().st_size > 5000


def test_densities_are_the_kernels_of_all_values() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 4000)
    place, height = posterior_page.density(values)
    assert height.sum() * (place[1] - place[0]) == pytest.approx(1, abs=0.01)
    exact = np.exp(-0.5 * ((place - 2) / 3) ** 2) / (3 * np.sqrt(2 * np.pi))
    assert abs(height - exact).max() < 0.012  # five standard deviations of such an estimate at its top
    for equal in (np.full(10, 0.5), np.zeros(3), np.array([0.25])):
        place, height = posterior_page.density(equal)
        assert np.isfinite(height).all()
        assert place[height.argmax()] == pytest.approx(equal[0], abs=1e-3)


def test_the_shortest_interval_holds_its_share() -> None:
    skewed = np.sort(np.random.default_rng(0).exponential(size=(20_000, 2)) * [1.0, -1.0], axis=0)
    low, high = posterior_page.shortest_interval(skewed, 0.94)
    # Of an exponential law: from 0 to −log 0.06. Its 94 % point has a standard error of 0.028.
    assert low == pytest.approx([0, -2.813], abs=0.14)
    assert high == pytest.approx([2.813, 0], abs=0.14)


def test_the_forest_shows_medians_quartiles_and_intervals() -> None:
    import xarray

    draws = np.stack([np.linspace(0, 1, 101), np.linspace(10, 30, 101)], 1)[None]
    values = xarray.DataArray(draws, dims=("chain", "draw", "orbit"), coords={"orbit": ["a", "b"]}, name="e")
    axis = posterior_page.forest(values, "title", "log e", (0.0, 2.0)).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b"]
    assert axis.get_lines()[0].get_xdata() == pytest.approx([0.5, 20])
    whole, half = ([s[:, 0] for s in lines.get_segments()] for lines in axis.collections)  # type: ignore[attr-defined]
    assert half[0] == pytest.approx([0.25, 0.75])
    assert half[1] == pytest.approx([15, 25])
    assert np.diff(whole[0]) == pytest.approx(0.94)
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title(loc="left")) == ("log e", "orbit", "title")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["unfinished"], "its training has not ended"),
        (["run", "--method", "magic"], "expected one of guide, importance, nuts"),
    ],
)
def test_mistakes_get_one_sentence_and_a_status(tmp_path: Path, arguments: list[str], words: str) -> None:
    make_run(tmp_path / "run", "plain")
    make_run(tmp_path / "unfinished", "plain")
    (tmp_path / "unfinished" / "model.safetensors").unlink()
    result = command(tmp_path, *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert not (tmp_path / "run" / "posterior.nc").exists()
