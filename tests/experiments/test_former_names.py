"""Former names: commands and stored configurations of older versions mean what they meant, under what is right now."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf
from tiny import TINY
from typer.testing import CliRunner

from pyro_tvae.experiments.cli import app
from pyro_tvae.experiments.commands import train
from pyro_tvae.experiments.commands.evaluate import evaluate_run
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.commands.train import resume_run, train_run
from pyro_tvae.experiments.config.composition import compose, fitting_overrides, keys, options
from pyro_tvae.experiments.config.former_names import (
    OPTIONS,
    SETTINGS,
    announced,
    current_overrides,
    current_settings,
)
from pyro_tvae.experiments.evaluation.record import EvaluationRecord
from pyro_tvae.experiments.runs.run import Run, unfinished
from pyro_tvae.experiments.studies import reproduce

FORMER = ["likelihood=binarised_bernoulli", "model.centred=false"]
NOW = ["likelihood=binarized_bernoulli", "model.centered=false"]


@pytest.mark.parametrize(
    ("former", "now"),
    [
        *zip(FORMER, NOW, strict=True),
        ("+model.centred=true", "+model.centered=true"),
        ("~model.centred", "~model.centered"),
        ("guide=semi_amortised,orbit", "guide=semi_amortized,orbit"),
        ("guide=choice(orbit,semi_amortised)", "guide=choice(orbit,semi_amortized)"),
        ("guide._target_=pyro_tvae.SemiAmortisedGuide", "guide._target_=pyro_tvae.SemiAmortizedGuide"),
        ("topography._target_=pyro_tvae.topography.Torus", "topography._target_=pyro_tvae.Torus"),
        ("+a={_target_:pyro_tvae.BinarisedBernoulli,seed:1}", "+a={_target_:pyro_tvae.BinarizedBernoulli,seed:1}"),
    ],
)
def test_an_override_says_what_it_is_called_now(
    former: str, now: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert announced([former, "seed=1"]) == [now, "seed=1"]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"pyro-tvae: {former} is now {now}; the former name goes with the next version."]
    assert announced([now]) == [now]
    monkeypatch.setenv("LOCAL_RANK", "1")  # a process that Lightning started by the same command
    assert announced([former]) == [now]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text",
    [
        "name=semi_amortised",
        "guide=my_semi_amortised",
        "topography=semi_amortised",
        "mymodel.centred=1",
        "+model.centred.x=1",
        "guide._target_=my.pyro_tvae.SemiAmortisedGuide",
        "guide._target_=pyro_tvae.SemiAmortisedGuide2",
        "--cfg",
        "three words here",
        "name=a\nb",
        "",
    ],
)
def test_what_only_looks_like_a_former_name_is_left_alone(text: str) -> None:
    assert current_overrides([text]) == [text]


def test_the_present_names_are_there_and_the_former_ones_are_not() -> None:
    names, groups = keys(compose()), options()
    assert {*SETTINGS.values()} <= {*names}
    assert not {*SETTINGS} & {*names}
    for group, renamed in OPTIONS.items():
        assert {*renamed.values()} <= {*groups[group]}
        assert not {*renamed} & {*groups[group]}


def test_settings_are_translated_flat_and_nested() -> None:
    flat = {"model.centred": True, "likelihood._target_": "pyro_tvae.BinarisedBernoulli", "name": "centred", "seed": 1}
    assert current_settings(flat) == {
        "model.centered": True,
        "likelihood._target_": "pyro_tvae.BinarizedBernoulli",
        "name": "centred",
        "seed": 1,
    }
    nested: dict[Any, Any] = {"model": {"centred": 1, 2: "pyro_tvae.BinarisedBernoulli"}, "centred": [{"centred": 0}]}
    assert current_settings(nested) == nested | {"model": {"centered": 1, 2: "pyro_tvae.BinarisedBernoulli"}}
    assert current_settings({"a": [{"_target_": "pyro_tvae.SemiAmortisedGuide"}]}) == {
        "a": [{"_target_": "pyro_tvae.SemiAmortizedGuide"}]
    }


def test_former_overrides_compose_to_the_same() -> None:
    assert compose([*TINY, *FORMER]) == compose([*TINY, *NOW])
    assert compose(["guide=semi_amortised", "guide.steps=2"]).guide._target_ == "pyro_tvae.SemiAmortizedGuide"
    recipe = ["experiment=lpartial"]
    assert fitting_overrides(recipe, ["model.centred=true", "guide.shared_trunk=true"]) == ["model.centred=true"]


@pytest.mark.parametrize(
    ("fits", "overrides"),
    [
        (True, ["network._target_=mine.Net"]),
        (True, ["++network._target_=mine.Net"]),
        (True, ["optimizer.optimizer._target_=torch.optim.SGD"]),
        (True, ["optimizer.optimizer._partial_=true"]),
        (True, ["data=mnist", "data.source.root=DIR"]),
        (True, ["guide=semi_amortized", "guide.steps=2"]),
        (True, ["network=own", "network._target_=mine.Net", "+network.width=3"]),
        (True, ["data=sequences", "data/motion=film"]),
        (True, ["name=other"]),
        (True, ["fit={max_epochs: 3}"]),
        (False, ["guide.steps=2"]),
        (False, ["network._taget_=mine.Net"]),
        (False, ["hydra.verbose=true"]),
    ],
)
def test_overrides_fit_a_recipe_that_has_their_setting(fits: bool, overrides: list[str]) -> None:
    assert fitting_overrides(["experiment=lpartial"], overrides) == (overrides if fits else [])


def test_a_command_and_a_sweep_take_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    composed: list[DictConfig] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pyro-tvae", "train"])
    monkeypatch.setattr(train, "train_run", lambda config, *_: composed.append(config))
    run_with_hydra([*TINY, *FORMER])
    run_with_hydra(["--multirun", *TINY, *FORMER, "guide=semi_amortised,orbit", "prior=gaussian,orbit"])
    assert [config.model.centered for config in composed] == [False] * 5
    assert composed[0].likelihood._target_ == "pyro_tvae.BinarizedBernoulli"
    assert [config.guide._target_ for config in composed[1:]] == [
        f"pyro_tvae.{name}" for name in ("SemiAmortizedGuide", "SemiAmortizedGuide", "OrbitGuide", "OrbitGuide")
    ]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert all("is now" in line for line in said)


def test_reproduce_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def reproduce_all(names: object, **options: object) -> list[object]:
        asked.append(options["overrides"])
        return []

    monkeypatch.setattr(reproduce, "reproduce_all", reproduce_all)
    result = CliRunner().invoke(app, ["reproduce", "table1", "--fresh", *FORMER])
    assert result.exit_code == 0, result.output
    assert asked == [NOW]
    assert result.stderr.count("is now") == 2


# --- stored configurations --------------------------------------------------------------------------------------------


def as_it_was(text: str) -> str:
    """A configuration as the former version stored it."""
    stored = yaml.safe_load(text)
    stored["model"]["centred"] = stored["model"].pop("centered")
    stored["likelihood"]["_target_"] = "pyro_tvae.BinarisedBernoulli"
    return yaml.safe_dump(stored, sort_keys=False)


def test_a_former_run_goes_on_and_is_judged_and_told_apart(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    config = compose([*TINY, *NOW])
    train_run(config, run.path)
    whole = run.read("evaluation.json", EvaluationRecord)["measures"]
    former = as_it_was((run.path / "config.yaml").read_text())
    (run.path / "config.yaml").write_text(former)
    assert run.config() == OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    evaluate_run(run.path)
    assert run.read("evaluation.json", EvaluationRecord)["measures"] == whole
    for name in ("evaluation.json", "model.safetensors"):
        (run.path / name).unlink()
    # The same command, by either name, goes on with what the former version began.
    for wanted, folder, timed, expected in (
        (config, run.path, 0, run),
        (compose([*TINY, *FORMER]), tmp_path / "now", 1, run),
        (compose([*TINY, NOW[0]]), run.path, 0, None),
    ):
        with unfinished(wanted, folder, timed) as begun:
            assert begun == expected
    resume_run(run.path)
    assert json.loads((run.path / "evaluation.json").read_text())["measures"] == whole
    assert (run.path / "config.yaml").read_text() == former
