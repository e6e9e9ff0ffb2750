"""Loggers by one word, and what a run hands to a sweeper."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightning_loggers
import pytest
import yaml
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback

from pyro_tvae.experiments.commands import hydra_entry, train
from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.commands.train import resume_run, train_run
from pyro_tvae.experiments.config import loggers
from pyro_tvae.experiments.config.composition import compose, options
from pyro_tvae.experiments.config.errors import ConfigurationError
from pyro_tvae.experiments.config.loggers import check_loggers, check_stored_loggers
from pyro_tvae.experiments.runs.run import Run

TINY = [
    "data.n_train=16",
    "data.n_validation=8",
    "data.n_test=12",
    "model.n_capsules=2",
    "fit.max_epochs=2",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "baseline.enabled=false",
    "evaluation.num_particles=2",
]


@pytest.mark.parametrize("word", ["csv_tensorboard", "csv", "tensorboard", "none"])
def test_a_word_chooses_the_files(word: str, tmp_path: Path) -> None:
    made = loggers.loggers(compose([f"logger={word}"]), tmp_path)
    assert [type(one).__name__.removesuffix("Logger").lower() for one in made] == word.replace("none", "").split(
        "_"
    ) * (word != "none")
    assert all(str(one.log_dir).startswith(str(tmp_path / "logs")) for one in made)


@pytest.mark.parametrize(("word", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_package_is_said_before_training(
    word: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=f"pip install {package}, or choose") as caught:
        train_run(compose([*TINY, f"logger={word}"]), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_stored_file_starts_no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    value = train_run(compose(TINY), run)
    rows = json.loads((run / "history.json").read_text())["rows"]
    assert value == max(row["val/elbo"] for row in rows if "val/elbo" in row)
    stored = yaml.safe_load((run / "config.yaml").read_text())

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a logger was made")

    monkeypatch.setattr(lightning_loggers, "MLFlowLogger", never)
    monkeypatch.setattr(lightning_loggers, "CSVLogger", never)
    monkeypatch.setattr(loggers, "find_spec", lambda name: True)
    stored["logger"] = {"m": {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://evil"}}
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    evaluate_run(run)
    report_run(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="may not start by itself; say it again beside resume"):
        resume_run(run)
    stored["logger"] = {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "/", "name": "csv"}}
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ConfigurationError, match="may not start by itself"):
        check_stored_loggers(Run(run).config(), run)
    # A logger's name is none outside its group, nor deeper in it.
    for place in ("topography", "deep"):
        bad = yaml.safe_load(yaml.safe_dump(stored))
        node = {"_target_": "lightning.pytorch.loggers.CSVLogger"}
        bad["logger" if place == "deep" else place] = {"x": {**node, "y": node}} if place == "deep" else node
        (run / "config.yaml").write_text(yaml.safe_dump(bad))
        with pytest.raises(ValueError, match="which is no part of pyro-tvae"):
            Run(run).config()
    # Runs from before there were loggers go on with the default ones; and one typed anew is taken.
    del stored["logger"], stored["measure"]
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    assert {*Run(run).config().logger} == {"csv", "tensorboard"}
    resume_run(run, {"logger": compose(["logger=none"]).logger})
    assert (run / "model.safetensors").is_file()


def test_a_logger_that_cannot_be_made_is_named_with_its_settings(tmp_path: Path) -> None:
    config = compose(["logger=csv", "logger.csv.save_dir=0"])
    with pytest.raises(
        ConfigurationError, match=r"CSVLogger cannot be made from save_dir=0, name='csv' \(expected str"
    ):
        loggers.loggers(config, tmp_path)


def test_a_measure_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="measure is 'test/elbo'; expected one of val/elbo"):
        train_run(compose([*TINY, "measure=test/elbo"]), tmp_path / "run")


class Listener(Callback):
    """A Hydra callback that hears what every job returns, as a sweeper does."""

    heard: list[Any] = []  # noqa: RUF012 - Hydra makes the instance

    def on_job_end(self, config: Any, job_return: JobReturn, **_: Any) -> None:
        Listener.heard.append(job_return.return_value)


def test_a_multirun_hands_the_measure_of_every_run_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Listener, "heard", [])
    monkeypatch.setitem(sys.modules, "listening", sys.modules[Listener.__module__])
    arguments = ["--multirun", *TINY, "seed=0,1", "measure=val/reconstruction"]
    arguments += ["+hydra.callbacks.listener._target_=listening.Listener"]
    monkeypatch.setattr(sys, "argv", ["pyro-tvae", "train", *arguments])
    run_with_hydra(arguments)
    expected = []
    for seed in (0, 1):
        (file,) = tmp_path.glob(f"runs/*/*/{seed}/history.json")
        rows = [row for row in json.loads(file.read_text())["rows"] if "val/elbo" in row]
        expected.append(max(rows, key=lambda row: row["val/elbo"])["val/reconstruction"])
    assert Listener.heard == expected
    assert all(isinstance(value, float) for value in Listener.heard)


def test_check_takes_every_word_but_what_lacks_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: True)
    for word in {*options()["logger"]} - {"own"}:
        check_loggers(compose([f"logger={word}"]))


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        (["seed=1", "logger=csv"], ()),
        (["logger=csv", "logger.csv.save_dir=my logs", "fit.beta=2"], ("logger=csv", "logger.csv.save_dir=my logs")),
        (["+logger.csv.version=mine"], ("+logger.csv.version=mine",)),
    ],
)
def test_the_command_that_goes_on_says_loggers_again_that_no_stored_file_may_start(
    settings: list[str], again: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heard: list[tuple[str, ...]] = []
    monkeypatch.setattr(train, "train_run", lambda config, path, allow, logs: heard.append(logs))
    monkeypatch.setattr(train, "resume_run", lambda path, changes, allow, logs: heard.append(logs))
    monkeypatch.chdir(tmp_path)
    hydra_entry.run_with_hydra([*settings, "hydra.run.dir=run"])
    monkeypatch.setattr(hydra_entry, "_check_beside_resume", lambda *_: None)
    hydra_entry.run_with_hydra([*settings, "resume=run"])
    assert heard == [again, again]
    words = shlex.split(Run(Path("run"), logs=again).resume)
    assert words == ["pyro-tvae", "train", "resume=run", *again]
