"""Learning curves of recipes: their seconds are those of training, a run is followed once, and kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_tvae
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.experiments.studies import learning_curves
from pyro_tvae.experiments.studies.kept import read_kept
from pyro_tvae.experiments.studies.learning_curves import follow
from pyro_tvae.experiments.studies.registry import STUDIES, Study
from pyro_tvae.experiments.studies.reproduce import reproduce
from pyro_tvae.experiments.studies.results import results_text
from pyro_tvae.inference import log_likelihood

TINY = (
    "+data.source.size=8",
    "data.transformations.rotation=[0,90,180,270]",
    "data.transformations.scale=null",
    "data.n_frames=4",
    "data.n_train=32",
    "data.n_validation=4",
    "data.n_test=8",
    "data.batch_size=4",
    "model.n_capsules=2",
    "model.capsule_dim=4",
    "fit.max_epochs=-1",
    "fit.max_steps=16",
    "fit.progress=false",
    "baseline.enabled=false",
)


def two_recipes(adam: tuple[str, ...] = ()) -> Study:
    rows = {"published": (*TINY, "optimizer=sgd"), "adam": (*TINY, *adam)}
    return Study("Recipes", rows, budgets=False, labels={"published": "SGD", "adam": "Adam"})


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(STUDIES, "recipe", two_recipes())
    return "recipe"


def points(folder: Path, **options: Any) -> list[dict[str, Any]]:
    return follow(compose([*TINY, *options.pop("more", ())]), folder, **options)["points"]


def test_every_recipe_has_a_length() -> None:
    for study in STUDIES.values():
        for row in study.labels or ():
            assert compose(study.rows[row]).fit.max_steps > 0


def test_a_curve_has_its_moments_and_judging_takes_none_of_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(learning_curves, "monotonic", lambda: float(next(clock)))  # a second for each look at it
    curve = points(tmp_path, sequences=8, num_particles=5)
    assert [point["step"] for point in curve] == [1, 2, 4, 8, 12, 16]
    assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
    # One look at the start, one per step, one after each of the snapshots: those that wrote files are not counted.
    assert curve[-1]["seconds"] == 16
    assert {"elbo", "iwae", "explained", "forward_roll", "forward_roll_floor"} <= curve[0].keys()
    assert all(point["iwae"] >= point["elbo"] for point in curve)


def test_a_run_that_was_interrupted_ends_with_the_same_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = points(tmp_path / "whole", sequences=8, num_particles=5)
    saved = learning_curves.pyro_tvae.save

    def interrupted(path: Path, *arguments: Any) -> object:
        if Path(path).name == "step12.safetensors":
            raise KeyboardInterrupt
        return saved(path, *arguments)

    monkeypatch.setattr(learning_curves.pyro_tvae, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        points(tmp_path / "cut", sequences=8, num_particles=5)
    monkeypatch.undo()
    again = points(tmp_path / "cut", sequences=8, num_particles=5)
    for one, two in zip(whole, again, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_a_snapshot_that_is_lost_costs_its_point_and_the_last_one_is_named_with_what_to_do(tmp_path: Path) -> None:
    """As of a copy of a run that was made while it was trained: hours are not lost for a point of a curve."""
    whole = points(tmp_path, sequences=8, num_particles=5)
    (tmp_path / "points.json").unlink()
    (tmp_path / "snapshots" / "step8.safetensors").unlink()
    curves = follow(compose([*TINY]), tmp_path, sequences=8, num_particles=5)
    assert curves["points"] == [point for point in whole if point["step"] != 8]
    assert curves["notes"] == ["a run's curve leaves out steps 8, whose snapshots it has lost"]
    (tmp_path / "points.json").unlink()
    (tmp_path / "snapshots" / "step16.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has lost snapshots/step16.safetensors, .*; put the file back from"):
        points(tmp_path, sequences=8, num_particles=5)


def test_seeds_are_added_to_the_kept_record_and_none_is_run_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tmp_path / "records"
    said: list[str] = []
    options: dict[str, Any] = {"output": tmp_path / "runs", "records": records, "keep": True, "progress": said.append}
    first = reproduce(name, seeds=(0,), **options)
    assert [row["seeds"] for row in first["rows"]] == [[0], [0]]
    assert len(said) == 2
    kept = read_kept(records / "recipe.json")
    assert kept["rows"] == json.loads(json.dumps(first["rows"]))
    assert "explained" in results_text(records)
    second = reproduce(name, seeds=(0, 1), **{**options, "output": tmp_path / "elsewhere"})
    assert len(said) == 5
    assert "2 of 4 runs are in" in said[2]
    assert [row["seeds"] for row in second["rows"]] == [[0, 1], [0, 1]]
    assert [row["runs"][0] for row in second["rows"]] == [row["runs"][0] for row in kept["rows"]]
    with pytest.raises(ValueError, match=r"recipe\.json was made with fit\.beta=1.*2 is asked.*--fresh"):
        reproduce(name, overrides=["fit.beta=2"], **options)


def test_the_end_of_a_curve_is_annealed_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of runs that were followed before it was; and anew where the weights are others since."""
    monkeypatch.setitem(STUDIES, "recipe", two_recipes())
    said: list[str] = []
    options: dict[str, Any] = {"output": tmp_path / "runs", "progress": said.append}
    before = reproduce("recipe", **options)
    assert all("values" not in row for row in before["rows"])
    annealing = {"sequences": 3, "num_chains": 2, "num_temperatures": 4}
    monkeypatch.setitem(STUDIES, "recipe", replace(two_recipes(), annealing=annealing))
    count = len(said)
    record = reproduce("recipe", **options, records=tmp_path / "records", keep=True)
    assert [line.endswith(", annealing") for line in said[count:]] == [True, True]  # nothing was trained again
    for row, former in zip(record["rows"], before["rows"], strict=True):
        assert row["runs"][0]["points"] == former["runs"][0]["points"]
        assert row["runs"][0]["seconds"].keys() == {"training", "annealing"}
        values = row["values"]
        best = max(values[f"few/{key}"][0] or -math.inf for key in ("iwae", "laplace", "ais"))
        assert values["few/gap"][0] == pytest.approx(best - (values["few/elbo"][0] or 0.0), abs=1e-3)
    # What is annealed is what the run ended with, as its last snapshot has it.
    run = Run(tmp_path / "runs" / "recipe" / "adam" / "seed0")
    model, guide = pyro_tvae.load(run.path / "snapshots" / "step16.safetensors")
    x = next(run.data(run.config()).batches("test", torch.device("cpu"), batch_size=3))["x"]
    elbo = log_likelihood(model, guide, x, 1000, seed=0).elbo.mean() / model.n_frames
    assert record["rows"][1]["values"]["few/elbo"] == [pytest.approx(float(elbo), rel=1e-5)]
    assert read_kept(tmp_path / "records" / "recipe.json")["rows"] == json.loads(json.dumps(record["rows"]))
    assert "| AIS, the same ↑ |" in results_text(tmp_path / "records")
    count = len(said)
    assert reproduce("recipe", **options) == record
    assert len(said) == count
    with torch.no_grad():
        next(guide.parameters()).add_(1e-3)
    pyro_tvae.save(run.path / "snapshots" / "step16.safetensors", model, guide)
    reproduce("recipe", **options)
    assert [line.split(": ", 1)[1] for line in said[count:]] == ["adam, seed 0, annealing"]


def test_a_run_whose_weights_are_gone_stays_in_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As to free a disk: what was measured stands, and what is asked for since is left out, which is told."""
    monkeypatch.setitem(STUDIES, "recipe", two_recipes())
    said: list[str] = []
    options: dict[str, Any] = {"output": tmp_path / "runs", "progress": said.append}
    before = reproduce("recipe", **options)
    snapshots = tmp_path / "runs" / "recipe" / "adam" / "seed0" / "snapshots"
    (snapshots / "step16 (copy).safetensors").write_bytes((snapshots / "step16.safetensors").read_bytes())
    annealing = {"sequences": 3, "num_chains": 2, "num_temperatures": 4}
    monkeypatch.setitem(STUDIES, "recipe", replace(two_recipes(), annealing=annealing))
    annealed = reproduce("recipe", **options)
    for path in (tmp_path / "runs").rglob("*.safetensors"):
        path.unlink()
    assert reproduce("recipe", **options) == annealed
    (snapshots.parent / "annealed.json").unlink()
    count = len(said)
    again = reproduce("recipe", **options)
    assert again["rows"][0] == annealed["rows"][0]
    assert again["rows"][1] == before["rows"][1]
    assert said[count:][0] == (
        "recipe 2/2: adam, seed 0: its weights are gone, and what annealing would find of them is left out"
    )
    [former] = [path for path in snapshots.parents[2].glob("record*.json") if path.name != "record.json"]
    assert json.loads(former.read_text())["rows"] == json.loads(json.dumps(annealed["rows"]))


def test_a_kept_seed_takes_what_its_run_is_asked_for_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what annealing took hours to find of a run that is kept entered no record; another run's never does."""
    monkeypatch.setitem(STUDIES, "recipe", two_recipes())
    said: list[str] = []
    options: dict[str, Any] = {"output": tmp_path / "runs", "progress": said.append, "seeds": (0, 1)}
    options |= {"records": tmp_path / "records", "keep": True}
    reproduce("recipe", **options)
    path = tmp_path / "records" / "recipe.json"
    by_hand = json.loads(path.read_text())
    by_hand["rows"][1]["runs"][0]["notes"] = ["seen twice"]
    path.write_text(json.dumps(by_hand))
    for part in ("points.json", "snapshots"):  # the run of another machine; and one whose weights are gone
        (tmp_path / "runs" / "recipe" / "published" / "seed1" / part).rename(tmp_path / part)
    monkeypatch.setitem(
        STUDIES, "recipe", replace(two_recipes(), annealing={"sequences": 3, "num_chains": 2, "num_temperatures": 4})
    )
    elsewhere = {**options, "output": tmp_path / "elsewhere"}
    assert [row["runs"] for row in reproduce("recipe", **elsewhere)["rows"]] == [row["runs"] for row in by_hand["rows"]]
    count = len(said)
    record = reproduce("recipe", **options)
    assert [line.split(": ", 1)[1] for line in said[count:]] == [
        "1 of 4 runs are in " + str(path),
        "published, seed 0, annealing",
        "adam, seed 0, annealing",
        "adam, seed 1, annealing",
    ]
    assert [[ais is not None for ais in row["values"]["few/ais"]] for row in record["rows"]] == [
        [True, False],
        [True, True],
    ]
    assert record["rows"][1]["runs"][0]["notes"] == ["seen twice"]
    assert read_kept(path)["rows"] == json.loads(json.dumps(record["rows"]))
    for row, former in zip(record["rows"], by_hand["rows"], strict=True):
        assert [run["points"] for run in row["runs"]] == [run["points"] for run in former["runs"]]
    count = len(said)
    assert reproduce("recipe", **options)["rows"] == record["rows"]
    assert [line.split(": ", 1)[1] for line in said[count:]] == [f"4 of 4 runs are in {path}"]


def test_what_was_made_from_other_settings_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tmp_path / "records"
    options: dict[str, Any] = {"output": tmp_path / "runs", "records": records, "keep": True, "progress": str}
    reproduce(name, **options)
    monkeypatch.setitem(STUDIES, "recipe", two_recipes(("model.mu=7",)))
    with pytest.raises(ValueError, match=r"recipe\.json was made with model\.mu=.* 7\.?0? is asked.*--fresh.*\(adam\)"):
        reproduce(name, **options)
    with pytest.raises(ValueError, match=r"adam/seed0 was made with model\.mu=.*another --output"):
        reproduce(name, **{**options, "records": None, "keep": False})


def test_a_curve_needs_a_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fit\.max_steps is -1; expected the length"):
        points(tmp_path, more=["fit.max_steps=-1"])
    with pytest.raises(ValueError, match=r"fit\.max_epochs=1 may end a run before fit\.max_steps=16, .* leave it out"):
        points(tmp_path / "short", more=["fit.max_epochs=1"])
    with pytest.raises(ValueError, match=r"fit\.patience=2 may end a run before"):
        points(tmp_path / "short", more=["fit.patience=2"])
    assert not (tmp_path / "short").exists()
