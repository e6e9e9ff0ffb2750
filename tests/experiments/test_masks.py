"""Runs whose data have masks: every command takes what was measured, and nothing of what the file holds elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import pyro_tvae
from pyro_tvae.experiments.commands.compare import compare_runs
from pyro_tvae.experiments.commands.likelihood import likelihood_run, print_likelihood
from pyro_tvae.experiments.commands.posterior import posterior_run
from pyro_tvae.experiments.config.building import build
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.datasets.splits import given_by, scored_in_words
from pyro_tvae.experiments.evaluation.evaluate import evaluate
from pyro_tvae.experiments.runs.files import write_text
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.inference import forward_roll, log_likelihood
from pyro_tvae.inference.posterior import from_netcdf, to_arviz

rng = np.random.default_rng(0)
N, S, SIDE = 20, 6, 8
GOOD = rng.random((N, S, SIDE, SIDE)) < 0.8
GOOD[rng.random((N, S)) < 0.15] = False  # frames of which nothing was measured
PIXELS = rng.random((N, S, SIDE, SIDE)).astype("f4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs: two of one model, on files that differ where nothing was measured, and one of another model."""
    folder = tmp_path_factory.mktemp("masked")
    for name, other in (("one", 0.0), ("two", 1.0)):
        (folder / name).mkdir()
        np.savez(folder / name / "films.npz", x=np.where(GOOD, PIXELS, other), good=GOOD)
    made = []
    for name, data, topography in (("first", "one", "orbits"), ("second", "two", "orbits"), ("plain", "one", "none")):
        words = [
            "data=sequences",
            f"data.source.path={folder / data / 'films.npz'}",
            "data.source.key=x",
            "data.source.mask=good",
            "data.source.axes=NSHW",
            f"data.n_frames={S}",
            "model.n_capsules=2",
            "fit.accelerator=cpu",
            "fit.progress=false",
            *(["experiment=plain_vae"] if topography == "none" else [f"model.capsule_dim={S}"]),
        ]
        config = compose(words)
        config.name = name
        torch.manual_seed(0)
        parts = build(config)
        write_text(folder / name / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        pyro_tvae.save(folder / name / "model.safetensors", parts.model, parts.guide)
        made.append(folder / name)
    return made


def numbers(record: Any) -> Any:
    """A record without names and times."""
    if isinstance(record, dict):
        return {
            key: numbers(value) for key, value in record.items() if key not in ("seconds", "name", "request", "run")
        }
    return [numbers(value) for value in record] if isinstance(record, list) else record


def test_likelihoods_count_what_was_measured(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"particles": (4,), "frame_particles": 2, "sequences": 4, "temperatures": 3, "chains": 2}
    first, second = (likelihood_run(run, **options) for run in runs[:2])
    assert numbers(first) == numbers(second)
    loaded = Run(runs[0]).load()
    batch = next(loaded.data.batches("test", batch_size=4))
    bound = log_likelihood(
        loaded.model, loaded.guide, batch["x"], 4, seed=4, **given_by(batch, loaded.model, loaded.guide)
    )
    frames = float(batch["observed"].sum(1).double().mean())
    assert frames < S
    assert first["rows"][0]["per_frame"] == pytest.approx(float(bound.iwae.mean()) / frames)
    share = float((batch["measured"] & batch["observed"][..., None, None, None]).double().mean())
    print_likelihood(first)
    assert f"Of these sequences {share:.1%} of the pixels were measured, and count." in capsys.readouterr().out


def test_runs_are_compared_on_what_was_measured(runs: list[Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"particles": 8, "sequences": 4}
    records = []
    for number in range(2):  # the files of the second pair differ where nothing was measured
        result = compare_runs((runs[number], runs[2]), **options, output=tmp_path / f"{number}.json")
        records.append(json.loads((tmp_path / f"{number}.json").read_text()))
        assert "of the pixels were measured" in records[-1]["scored"]
        assert result.n_frames < S
    assert [*records[0]["log_p"].values()] == [*records[1]["log_p"].values()]
    batch = next(Run(runs[2]).load().data.batches("test", batch_size=4))
    assert scored_in_words(batch) == records[0]["scored"]


def test_a_posterior_is_given_what_was_measured(runs: list[Path]) -> None:
    file, page = posterior_run(runs[0], draws=6, sequences=3)
    first, loaded = from_netcdf(file), Run(runs[1]).load()
    batch = next(loaded.data.batches("test", batch_size=3))
    second = to_arviz(
        loaded.model,
        loaded.guide,
        batch["x"],
        draws=6,
        num_particles=100,
        **given_by(batch, loaded.model, loaded.guide),
    )
    seen = (batch["measured"] & batch["observed"][..., None, None, None]).numpy()
    shown = first["observed_data"]["x"].values
    assert np.array_equal(np.isnan(shown), ~seen)
    assert np.array_equal(shown[seen], batch["x"].numpy()[seen])
    for group in ("posterior", "log_likelihood", "sequence_stats"):
        for name, values in first[group].data_vars.items():
            assert np.array_equal(values.values, second[group][name].values), name
    text = page.read_text(encoding="utf-8")
    assert "of the pixels were measured, and count." in text
    assert text.count("data:image/png") >= 6


def test_an_evaluation_forecasts_what_was_observed(runs: list[Path]) -> None:
    loaded = [Run(run).load() for run in runs[:2]]
    records = [evaluate(one.model, one.guide, one.data, num_particles=4, progress=False).record for one in loaded]
    assert not records[0]["failed"]
    for name in ("measures", "forward_roll", "verdict"):
        assert records[0][name] == records[1][name]  # type: ignore[literal-required]
    data = loaded[0].data
    batch = next(data.batches("test"))
    alone = forward_roll(
        loaded[0].model,
        loaded[0].guide,
        batch["x"],
        mean_frame=data.mean_frame(),
        **given_by(batch, loaded[0].model, loaded[0].guide),
    )
    assert records[0]["forward_roll"]["log_likelihood"]["model"] == pytest.approx(
        alone.log_likelihood["model"].tolist()
    )
