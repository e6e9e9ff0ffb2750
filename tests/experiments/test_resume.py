"""Resuming a run: what is done is left alone, what is missing is made, and nothing is overwritten."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from complaints import refused
from omegaconf import DictConfig
from safetensors.torch import load_file
from tiny import TINY as SMALLEST

from pyro_tvae import MeanFieldGuide
from pyro_tvae.experiments.commands import evaluate, train
from pyro_tvae.experiments.commands.evaluate import evaluate_run
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.commands.train import resume_run, train_run
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.config.errors import ConfigurationError
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.files import _here

TINY = [*(word for word in SMALLEST if word != "baseline.enabled=false"), "baseline.max_epochs=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_run(compose(TINY), folder)
    return folder


def stamps(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_alone_but_for_its_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(train, "fit_parts", nothing)
    monkeypatch.setattr(evaluate, "evaluate", nothing)
    before = stamps(run)
    resume_run(run)
    assert {name for name, stamp in stamps(run).items() if before.get(name) != stamp} == {"report.html"}


@pytest.mark.parametrize("missing", ["model.safetensors", "untrained.safetensors", "plain_vae.safetensors"])
def test_what_is_missing_is_made_again_as_it_was(missing: str, run: Path) -> None:
    """A file that is gone stands for the kill just before it was written."""
    before = {path.name: load_file(path) for path in run.glob("*.safetensors")}
    measures = json.loads((run / "evaluation.json").read_text())["measures"]
    lost = {missing, "model.safetensors"} if missing == "untrained.safetensors" else {missing}
    for name in lost | {"evaluation.json", "report.html"}:
        (run / name).unlink()
    half = run / "figures" / f".reconstructions.png-{2**22 + 1}-{_here()}_x.partial"
    half.write_bytes(b"half a picture")
    resume_run(run)
    for name, tensors in before.items():
        assert all(tensors[key].equal(value) for key, value in load_file(run / name).items()), name
    assert json.loads((run / "evaluation.json").read_text())["measures"] == measures
    assert not half.exists()


def test_a_training_that_had_ended_does_not_begin_again_where_its_weights_are_lost(run: Path, tmp_path: Path) -> None:
    """As where they were moved away, and the checkpoints were removed to save room."""
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="put it back, or have it made again from the last checkpoint by: pyro"):
        evaluate.evaluate_run(copied)
    shutil.rmtree(copied / "checkpoints")
    before = stamps(copied)
    for command in (resume_run, evaluate.evaluate_run):
        with pytest.raises(
            FileNotFoundError, match=r"has lost model.safetensors and its checkpoints, and its training"
        ):
            command(copied)
    assert {name: stamp for name, stamp in stamps(copied).items() if name != ".lock"} == {
        name: stamp for name, stamp in before.items() if name != ".lock"
    }


def test_what_a_killed_command_had_not_tied_together_is_tied_when_it_is_given_again(run: Path, tmp_path: Path) -> None:
    """Between its weights and what says that they are of its history and configuration."""
    copied = tmp_path / "copy"
    shutil.copytree(run, copied)
    (copied / "trained.json").unlink()
    resume_run(copied)
    assert (copied / "trained.json").read_bytes() == (run / "trained.json").read_bytes()


def test_runs_in_threads_end_as_runs_alone(tmp_path: Path) -> None:
    """Generators and Pyro's handlers are the whole process's: weights were not those of the seed, or a run failed."""
    tiny = [*SMALLEST, "fit.max_epochs=1"]

    def weights(folder: str, seed: int) -> dict[str, torch.Tensor]:
        train_run(compose([*tiny, f"seed={seed}"]), tmp_path / folder)
        return load_file(tmp_path / folder / "model.safetensors")

    alone = [weights(f"alone{seed}", seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as threads:
        found = [*threads.map(weights, ("thread0", "thread1"), range(2))]
    for one, other in zip(alone, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_new_run_does_not_overwrite_an_old_one(run: Path, tmp_path: Path) -> None:
    before = stamps(run)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "model.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match=r"others holds model\.safetensors and no config\.yaml: a new run would"):
        train_run(compose(TINY), tmp_path / "others")
    assert [path.name for path in (tmp_path / "others").iterdir()] == ["model.safetensors"]
    with pytest.raises(FileExistsError, match="holds a run already, which is left as it is") as caught:
        train_run(compose([*TINY, "seed=1"]), run)
    assert "\n" not in str(caught.value)
    assert stamps(run) == before


def test_a_resumed_run_takes_no_other_settings_than_where_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Path, dict[str, object]]] = []
    monkeypatch.setattr(train, "resume_run", lambda path, changes, allow, logs: called.append((path, changes)))
    run_with_hydra(["resume=runs/a", "fit.devices=2", "fit.strategy=ddp", "data.num_workers=1"])
    assert called == [(Path("runs/a"), {"fit.devices": 2, "fit.strategy": "ddp", "data.num_workers": 1})]
    with pytest.raises(ConfigurationError, match=r"model\.mu cannot be given beside it; leave it out"):
        run_with_hydra(["resume=runs/a", "model.mu=3"])
    assert len(called) == 1


def test_a_run_goes_on_with_other_workers_and_one_whose_data_know_of_none_without(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[DictConfig] = []
    monkeypatch.setattr(train, "_finish", lambda _, config: heard.append(config))
    config, place = compose([*TINY, "data.num_workers=3"]), Path(shutil.copytree(run, tmp_path / "run"))
    assert Run(run).is_of(config)
    resume_run(run, {"data.num_workers": 3})
    text = (place / "config.yaml").read_text()
    (place / "config.yaml").write_text("".join(line for line in text.splitlines(True) if "num_workers" not in line))
    resume_run(place, {"data.num_workers": None})
    assert [one.data.get("num_workers", "none") for one in heard] == [3, "none"]


def test_a_judgement_before_the_plain_vae_does_not_stand_for_the_last_one(run: Path, tmp_path: Path) -> None:
    early = tmp_path / "early"
    shutil.copytree(run, early)
    whole = json.loads((run / "evaluation.json").read_text())["measures"]
    for name in ("plain_vae.safetensors", "evaluation.json"):
        (early / name).unlink()
    killed = f".posterior.zarr-{2**22 + 1}-{_here()}_x.partial"  # a store whose writer is no more
    (early / killed / "data").mkdir(parents=True)
    evaluate_run(early)
    assert "plain_vae" not in json.loads((early / "evaluation.json").read_text())["measures"]
    config = Run(early).config()
    assert not Run(early).ended(config)
    resume_run(early)
    assert json.loads((early / "evaluation.json").read_text())["measures"] == whole
    assert Run(early).ended(config)
    assert not [*early.rglob(".*.partial")]


def test_a_run_that_somebody_works_on_is_not_judged(run: Path) -> None:
    before = stamps(run)
    at_work, ends = threading.Event(), threading.Event()

    def other() -> None:
        with Run(run).held():
            at_work.set()
            ends.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert at_work.wait(60)
        with pytest.raises(BlockingIOError, match="another process is at work"):
            evaluate_run(run)
    finally:
        ends.set()
        thread.join()
    assert stamps(run) == before


def test_best_weights_are_not_replaced_where_the_last_checkpoint_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    monkeypatch.setattr(train, "judge", lambda *_: None)
    train_run(compose([*SMALLEST, "fit.max_epochs=3", "optimizer.optimizer.lr=1e-3"]), path)
    best, last = path / "checkpoints" / "best.ckpt", path / "checkpoints" / "last.ckpt"
    assert torch.load(best, weights_only=True)["epoch"] > 0
    for name in ("model.safetensors", "history.json"):
        (path / name).unlink()
    last.write_bytes(last.read_bytes()[:1000])
    kept = best.read_bytes()
    text = refused(lambda: resume_run(path))
    assert f"{last} is damaged" in text
    assert f"copy {best} over it" in text
    last.unlink()
    text = refused(lambda: resume_run(path))
    assert text.startswith(f"{best.parent} holds best.ckpt and no last.ckpt")
    assert "copy best.ckpt to last.ckpt there" in text
    assert best.read_bytes() == kept
    shutil.copy(best, last)
    rows = resume_run(path)["rows"]
    assert [row["epoch"] for row in rows if "val/elbo" in row] == [0, 1, 2]


def test_a_training_that_was_killed_in_its_first_epoch_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the best weights and the last ones, which are written in this order."""
    path = tmp_path / "run"
    monkeypatch.setattr(train, "judge", lambda *_: None)
    train_run(compose([*SMALLEST, "fit.max_epochs=1"]), path)
    weights = load_file(path / "model.safetensors")
    for name in ("model.safetensors", "history.json", "checkpoints/last.ckpt"):
        (path / name).unlink()
    resume_run(path)
    assert all(weights[key].equal(value) for key, value in load_file(path / "model.safetensors").items())
    assert {file.name for file in (path / "checkpoints").iterdir()} == {"best.ckpt", "best.former", "last.ckpt"}
    assert torch.load(path / "checkpoints" / "best.former", weights_only=True)["epoch"] == 0


class Moving(MeanFieldGuide):
    """An attribute that moves in training, from a step on."""

    since = 0

    def posterior(self, *given: Any, **options: Any) -> Any:
        self.steps = getattr(self, "steps", 0) + 1
        self.temperature = 0.5 if self.steps > self.since else 1.0
        return super().posterior(*given, **options)

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.temperature = 1.0


@pytest.mark.parametrize(("since", "more"), [(0, []), (3, []), (0, ["fit.compile=true"])])
def test_what_no_file_can_hold_ends_a_training_at_once_and_not_after_it(
    since: int, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "moving", sys.modules[Moving.__module__])
    monkeypatch.setattr(Moving, "since", since)
    own = ["prior=gaussian", "guide=mean_field", "guide._target_=moving.Moving", "fit.max_epochs=9", *more]
    text = refused(lambda: train_run(compose([*TINY, *own]), tmp_path / "run"))
    assert "guide.temperature is not what the constructors' arguments make" in text
    assert "where it moves in training, make it a buffer, or call it _temperature, which no file holds" in text
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert not last.exists() or torch.load(last, weights_only=True)["epoch"] <= 1
