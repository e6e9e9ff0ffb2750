"""The command line, as a user runs it: a tiny run from training to report, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = [
    "data.n_train=16",
    "data.n_validation=8",
    "data.n_test=12",
    "model.n_capsules=2",
    "fit.max_steps=4",
    "baseline.max_epochs=1",
    "evaluation.num_particles=3",
]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyro_tvae.experiments.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("cli")
    result = run(folder, "train", *TINY)
    assert result.returncode == 0, result.stderr
    return next((folder / "runs" / "quickstart").iterdir()), result


def test_train_leaves_a_whole_run(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, result = trained
    names = [
        "config.yaml",
        "evaluation.json",
        "history.json",
        "model.safetensors",
        "untrained.safetensors",
        "plain_vae.safetensors",
        "report.html",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    ]
    figures = (
        "training_curves",
        "reconstructions",
        "capsule_traversal",
        "forward_roll_strip",
        "forward_roll_curve",
        "capsule_stripes",
    )
    assert [name for name in names if not (folder / name).is_file()] == []
    assert sorted(path.stem for path in (folder / "figures").iterdir()) == sorted(figures)
    assert list(folder.glob("logs/csv/*/metrics.csv"))
    assert list(folder.glob("logs/tensorboard/*/events*"))
    assert not list(folder.rglob("*.partial"))
    assert "explained" in result.stdout
    assert str(folder) in result.stdout
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png") >= len(figures)


def test_the_evaluation_says_that_four_steps_are_not_enough(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, result = trained
    record = json.loads((folder / "evaluation.json").read_text())
    assert record["collapsed"] is True
    assert record["verdict"][0].startswith("Collapsed: ")
    assert "Collapsed: " in result.stdout
    assert record["data"]["n_sequences"] == 12
    assert {"explained", "iwae", "elbo", "e_eq", "roll/rotation", "cap_corr/scale"} <= {
        r["key"] for r in record["rows"]
    }
    assert next(iter(record["forward_roll"]["log_likelihood"])) == "model"


def test_evaluate_repeats_itself_and_report_rebuilds(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = trained
    before = json.loads((folder / "evaluation.json").read_text())
    again = run(folder.parents[2], "evaluate", str(folder))
    assert again.returncode == 0, again.stderr
    after = json.loads((folder / "evaluation.json").read_text())
    assert after["measures"] == before["measures"]
    (folder / "report.html").unlink()
    result = run(folder.parents[2], "report", str(folder))
    assert result.returncode == 0, result.stderr
    assert (folder / "report.html").is_file()
    listed = run(folder.parents[2], "list").stdout
    assert folder.name in listed
    assert "topography=orbits" in listed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "fit.max_epoch=3"], "fit.max_epochs"),
        (["train", "topography=capsule_rol"], "capsule_roll"),
        (["train", "topography=capsule_roll"], "disjoint orbits"),
        (["train", "resume=nowhere"], "there is no folder nowhere"),
        (["evaluate", "nowhere"], "there is no folder nowhere"),
        (["report", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_mistakes_get_one_sentence_and_a_status(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = run(tmp_path, *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("module", ["cli", "commands.hydra_entry", "runs.run"])
def test_help_and_mistyped_commands_and_lists_of_runs_do_not_wait_for_torch(module: str, tmp_path: Path) -> None:
    code = f"import sys, pyro_tvae.experiments.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_likelihood_shows_the_bound_growing_and_the_annealed_estimate(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = trained
    options = ["--particles", "30,1", "--sequences", "3", "--temperatures", "3", "--chains", "2"]
    result = run(folder.parent, "likelihood", folder.name, *options)
    assert result.returncode == 0, result.stderr
    assert "IWAE, K = 30" in result.stdout
    assert "AIS, 3 temperatures" in result.stdout
    assert "pseudo-likelihood" in result.stdout
    record = json.loads((folder / "likelihood.json").read_text())
    one, thirty, annealed = record["rows"]
    assert (one["k"], thirty["k"]) == (1, 30)
    assert one["gain"] == 0
    assert one["unreliable"] is None
    assert thirty["per_frame"] == pytest.approx(one["per_frame"] + thirty["gain"])
    assert thirty["unreliable"] == 3
    assert thirty["gain"] > 0
    assert annealed["ess"] <= 2
    assert record["bracket"]["gap"] is not None
    tight = run(folder.parent, "likelihood", folder.name, *options, "--laplace", "--output", "laplace.json")
    assert tight.returncode == 0, tight.stderr
    assert "Drawn from the Laplace approximation" in tight.stdout
    other = json.loads((folder.parent / "laplace.json").read_text())
    assert other["rows"][0]["per_frame"] > one["per_frame"]
    assert abs(other["bracket"]["gap"]) < abs(record["bracket"]["gap"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--particles", "1,many"], "expected whole numbers, such as 1,10,100"),
        (["--particles", "0"], "expected numbers of at least 1"),
        (["--temperatures", "1"], "expected 0 for none, or at least 2"),
    ],
)
def test_likelihood_answers_mistakes_in_a_sentence(
    trained: tuple[Path, subprocess.CompletedProcess[str]], arguments: list[str], expected: str
) -> None:
    result = run(trained[0].parent, "likelihood", trained[0].name, *arguments)
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
