"""The command posterior: a file that ArviZ reads, a page that stands alone, and mistakes answered in a sentence."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from untrained_runs import make_run

import pyro_tvae
from pyro_tvae import Network, Normal
from pyro_tvae.experiments.commands import posterior as posterior_command
from pyro_tvae.experiments.commands.posterior import FOR_THE_PAGE, posterior_run
from pyro_tvae.experiments.datasets import Transformations
from pyro_tvae.experiments.reports import posterior_figures, posterior_page
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.inference import nuts
from pyro_tvae.inference.posterior import from_netcdf, to_arviz

OF_WEIGHTS = {*posterior_page.CAPTIONS} - {"traces", "energy"}


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pyro_tvae.experiments.cli", "posterior", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_writes_a_file_and_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "orbits")
    result = command(tmp_path, "run", "--draws", "30", "--sequences", "5")
    assert result.returncode == 0, result.stderr
    size, verdict, *lines = result.stdout.splitlines()
    told = float(re.fullmatch(r"writing about ([0-9.]+) MB to run/posterior.nc", size)[1])  # type: ignore[index]
    assert 0.8 < told / ((run / "posterior.nc").stat().st_size / 1e6) < 1.25
    assert "the draws are the guide's opinion" in verdict
    assert lines == ["posterior: run/posterior.nc", "page: run/posterior.html"]
    assert "draws from the guide" in result.stderr  # progress
    data = from_netcdf(run / "posterior.nc")
    assert data["posterior"]["e"].shape == (1, 30, 5, 2, 18)
    assert set(data["observed_data"].coords) >= {"label", "moving", "rotation_index", "scale_index"}
    assert data["observed_data"]["rotation_index"].dims == ("sequence", "frame")
    degrees = data["observed_data"]["rotation_value"]
    assert np.array_equal(degrees, 20.0 * data["observed_data"]["rotation_index"])
    assert set(np.unique(data["observed_data"]["scale_value"])) <= set(Transformations(scale=True).factors["scale"])
    page = (run / "posterior.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(OF_WEIGHTS)
    assert page.count("alt=") == len(OF_WEIGHTS)
    assert data["posterior"]["sequence"].values.tolist() == [*range(5)]  # the first ones, in the order of the split
    batch = next(Run(run).load().data.batches("test", batch_size=5))
    assert np.array_equal(data["observed_data"]["x"].values, batch["x"].cpu().numpy())
    assert np.array_equal(data["observed_data"]["label"].values, batch["label"].cpu().numpy())
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
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png") == len(OF_WEIGHTS)
    assert "copies of a few" in text  # untrained: k is far above 0.7
    assert "opinion" not in text


def test_nuts_has_its_page(tmp_path: Path) -> None:
    model = pyro_tvae.TVAE((1, 2, 2), 3, 1, 3, pyro_tvae.CapsuleRoll(3), mu=1.0)
    guide = pyro_tvae.MeanFieldGuide(model)
    data = to_arviz(model, guide, torch.rand(2, 3, 1, 2, 2), draws=10, method="nuts", warmup_steps=20)
    page = posterior_page.write_page(tmp_path / "page.html", data, model, name="small", facts={"Draws": "10"})
    text = page.read_text(encoding="utf-8")
    assert (
        text.count("data:image/png") == len(posterior_page.CAPTIONS) - 1
    )  # no weights, no Pareto k; traces and energies instead
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
    assert re.search(words, posterior_page.verdict({"sequence_stats": stats}))


@pytest.mark.parametrize("k", [[0.1, 0.5], [0.1, 300.0, np.inf], [np.nan, 0.2], [-0.5]])
def test_pareto_k_is_drawn_at_any_size(k: list[float], tmp_path: Path) -> None:
    figure = posterior_figures.pareto_k_plot(k)
    figure.savefig(tmp_path / "k.png")
    assert (tmp_path / "k.png").stat().st_size > 5000


def test_without_a_k_nothing_is_drawn_over_empty_axes() -> None:
    assert posterior_figures.pareto_k_plot([np.inf, np.nan]) is None


class Halves(Network):
    """A decoder that shows t itself: E[x | t] is known by hand."""

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(-3), nn.Linear(math.prod(frame_shape), n_outputs))

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        return nn.Unflatten(-1, tuple(frame_shape))


def test_mean_and_spread_of_frames_are_those_of_the_draws() -> None:
    model = pyro_tvae.TVAE((1, 2, 2), 3, 1, 4, pyro_tvae.NoTopography(), network=Halves(), likelihood=Normal(0.1))
    t = torch.randn(50, 2, 3, 1, 4)
    mean, spread = posterior_figures.mean_and_spread(model, t)
    frames = t.double().reshape(50, 2, 3, 1, 2, 2)
    torch.testing.assert_close(mean, frames.mean(0))
    torch.testing.assert_close(spread, frames.std(0, correction=0), rtol=1e-5, atol=1e-6)


def test_what_was_left_out_is_left_out_of_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "roll")
    file, page = posterior_run(
        run, draws=4, sequences=2, groups=["posterior"], variables=["z"], output=tmp_path / "small.nc"
    )
    data = from_netcdf(file)
    assert "prior" not in data
    assert "observed_data" not in data
    assert [*data["posterior"].data_vars] == ["z"]
    assert page == tmp_path / "small.html"
    # The page shows what was drawn: t, against the frames; of the prior and of log p(x | t) there is nothing to show.
    assert page.read_text(encoding="utf-8").count("data:image/png") == len(OF_WEIGHTS) - 2
    with pytest.MonkeyPatch.context() as patch:  # by NUTS, hours may have gone by else
        patch.setattr(posterior_command, "sample_nuts", lambda *_, **__: pytest.fail("sampled"))
        for wrong in ({"variables": ["zz"]}, {"groups": ["posteriors"]}, {"groups": [*FOR_THE_PAGE, "posteriors"]}):
            with pytest.raises(ValueError, match=r"there is no (variable 'zz'|group 'posteriors')"):
                posterior_run(run, draws=4, sequences=2, method="nuts", output=tmp_path / "other.nc", **wrong)
    with pytest.raises(ValueError, match="there is no variable 'zz'; expected some of z"):
        posterior_run(run, draws=4, sequences=2, variables=["zz"], output=tmp_path / "other.nc")
    with pytest.raises(ValueError, match="there is no group 'x'"):
        posterior_run(run, draws=4, sequences=2, groups=["x"], output=tmp_path / "other.nc")


def test_a_repeat_is_fine_and_other_settings_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior_command, "write_page", lambda path, *_, **__: path)
    run = make_run(tmp_path / "run", "plain")
    file, _ = posterior_run(run, draws=4, sequences=2)
    first = from_netcdf(file)["posterior"]["z"].values
    posterior_run(run, draws=4, sequences=2)
    assert np.array_equal(from_netcdf(file)["posterior"]["z"].values, first)
    with pytest.raises(FileExistsError, match=r"made with other draws, seed; give --overwrite .* or --output"):
        posterior_run(run, draws=5, sequences=2, seed=1)
    assert np.array_equal(from_netcdf(file)["posterior"]["z"].values, first)
    posterior_run(run, draws=5, sequences=2, seed=1, overwrite=True)
    assert from_netcdf(file)["posterior"].sizes["draw"] == 5


def test_nuts_is_thinned_and_keeps_its_diagnostics() -> None:
    model = pyro_tvae.TVAE((1, 2, 2), 3, 1, 3, pyro_tvae.CapsuleRoll(3), mu=1.0)
    guide, x = pyro_tvae.MeanFieldGuide(model), torch.rand(2, 3, 1, 2, 2)
    result = nuts(model, x, init=guide, num_samples=12, warmup_steps=5, num_chains=2)
    data = to_arviz(model, guide, x, result=result, thin=3)
    assert np.array_equal(data["posterior"]["z"].values, result.draws["z"][:, 2::3].numpy())
    assert np.array_equal(data["sample_stats"]["energy"].values, result.energy[:, 2::3].numpy())
    assert data["posterior"].sizes["draw"] == data["prior"].sizes["draw"] == 4
    assert data["posterior"].attrs["thinning"] == 3
    assert np.allclose(
        data["sequence_stats"]["rhat"].values, to_arviz(model, guide, x, result=result)["sequence_stats"]["rhat"]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draws": 3}, "at least 4 draws, which diagnostics need"),
        ({"thin": 2}, "thin=1 but for nuts"),
        ({"method": "magic"}, "expected one of guide, importance, nuts"),
        ({"warmup": 0}, "and 1 of the others"),
    ],
)
def test_too_few_draws_are_refused_before_sampling(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        posterior_run(tmp_path / "not even there", **options)


def test_the_shortest_interval_holds_its_share() -> None:
    skewed = np.sort(np.random.default_rng(0).exponential(size=(20_000, 2)) * [1.0, -1.0], axis=0)
    low, high = posterior_figures.shortest_interval(skewed, 0.94)
    # Of an exponential law: from 0 to −log 0.06. Its 94 % point has a standard error of 0.028.
    assert low == pytest.approx([0, -2.813], abs=0.14)
    assert high == pytest.approx([2.813, 0], abs=0.14)


def test_the_forest_shows_medians_quartiles_and_intervals() -> None:
    import xarray

    draws = np.stack([np.linspace(0, 1, 101), np.linspace(10, 30, 101)], 1)[None]
    values = xarray.DataArray(draws, dims=("chain", "draw", "orbit"), coords={"orbit": ["a", "b"]}, name="e")
    axis = posterior_figures.forest(values, "title", "log e", (0.0, 2.0)).axes[0]
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
