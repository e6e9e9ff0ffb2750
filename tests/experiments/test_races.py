"""Races: commands started at once in one place each end well or say in a sentence why not; nobody's files are mixed.

PYRO_TVAE_STARTS=16 in the environment starts so many at once instead of two, PYRO_TVAE_ROUNDS=5 so often each.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import pyro_tvae
from pyro_tvae import locks
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.runs.holding import holding
from pyro_tvae.experiments.runs.names import CONFIG, WRITTEN
from pyro_tvae.experiments.runs.run import Run, claimed, unfinished

pytest.importorskip("fcntl")

STARTS = int(os.environ.get("PYRO_TVAE_STARTS", "2"))
ROUNDS = int(os.environ.get("PYRO_TVAE_ROUNDS", "1"))
TINY = [
    "data.n_train=16",
    "data.n_validation=8",
    "data.n_test=12",
    "fit.max_epochs=1",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "baseline.enabled=false",
    "evaluation.num_particles=2",
    "logger=csv",
]
# Children of one process that has imported everything: seconds less for each of many commands.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pyro_tvae.experiments.commands.train", "tensorboard.summary", "arviz"])
CODE = """
import os, sys, time
os.chdir(FOLDER)
for number, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{name}{NUMBER}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
import torch
torch.set_num_threads(1)
from pyro_tvae.experiments import cli
sys.argv = ["pyro-tvae", "train", *ARGUMENTS]
class Clock:  # everybody's is the same
    @staticmethod
    def now():
        from datetime import datetime
        return datetime(2026, 1, 1)
import hydra.core.utils
hydra.core.utils.datetime = Clock
time.sleep(max(0, START - time.time()))
cli.main()
"""


def start(folder: Path, commands: Sequence[Sequence[str]], spread: float = 0.0) -> list[BaseProcess]:
    """Give commands in one folder, all at once or at random moments within so many seconds, and wait for their end."""
    dice, begin = random.Random(0), time.time() + 1.0 + 0.1 * len(commands)
    processes: list[BaseProcess] = []
    for number, arguments in enumerate(commands):
        names = {
            "FOLDER": str(folder),
            "NUMBER": number,
            "ARGUMENTS": [*TINY, *arguments],
            "START": begin + dice.uniform(0, spread),
        }
        process = CONTEXT.Process(target=exec, args=(CODE, names))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(60 + 20 * len(commands))
        assert process.exitcode is not None
    return processes


def said(folder: Path, number: int) -> str:
    return (folder / f"err{number}").read_text().strip()


def assert_whole(run: Path) -> None:
    """A run of one configuration from its first file to its last."""
    config = yaml.safe_load((run / CONFIG).read_text())
    record = json.loads((run / "evaluation.json").read_text())
    overrides = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())
    assert f"seed={config['seed']}" in overrides
    assert f"model.n_capsules={config['model']['n_capsules']}" in overrides
    assert record["seed"] == config["seed"]
    assert pyro_tvae.load(run / "model.safetensors")[0].n_capsules == config["model"]["n_capsules"]
    assert (run / "report.html").is_file()
    assert not list(run.rglob("*.partial"))


def configurations(number: int) -> list[int]:
    """Of one round: two of each, all equal, or all different."""
    return [(k // 2, 0, k)[number % 3] for k in range(STARTS)]


def settings(kind: int) -> list[str]:
    return [f"seed={kind}", f"model.n_capsules={2 + kind % 3}"]


@pytest.mark.timeout(60 + 30 * STARTS * ROUNDS)
def test_starts_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        kinds = configurations(number)
        for process in start(folder, [settings(kind) for kind in kinds], spread=0.6 * (number % 2)):
            assert process.exitcode == 0, [said(folder, k) for k in range(STARTS)]
        place = folder / "runs" / "quickstart"
        first = "2026-01-01_00-00-00"
        assert {run.name for run in place.iterdir()} == {first, *(f"{first}-{k}" for k in range(1, STARTS))}
        for run in place.iterdir():
            assert_whole(run)
        seeds = sorted(yaml.safe_load((run / CONFIG).read_text())["seed"] for run in place.iterdir())
        assert seeds == sorted(kinds)


@pytest.mark.timeout(60 + 30 * STARTS * ROUNDS)
def test_starts_at_once_in_one_folder_leave_one_run(tmp_path: Path) -> None:
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        kinds = configurations(number)
        commands = [[*settings(kind), "hydra.run.dir=run"] for kind in kinds]
        ends = [process.exitcode for process in start(folder, commands, spread=0.6 * (number % 2))]
        assert sorted(map(str, ends)) == ["0"] + ["2"] * (STARTS - 1), [said(folder, k) for k in range(STARTS)]
        assert_whole(folder / "run")
        winner = ends.index(0)
        assert f"seed={kinds[winner]}" in (folder / "run" / ".hydra" / "overrides.yaml").read_text()
        for k in set(range(STARTS)) - {winner}:
            assert len(said(folder, k).splitlines()) == 1
            assert "another process is at work on" in said(folder, k) or "holds a run already" in said(folder, k)


@pytest.mark.timeout(60 + 30 * STARTS * ROUNDS)
def test_of_several_that_find_an_interrupted_run_one_goes_on_with_it(tmp_path: Path) -> None:
    place = tmp_path / "runs" / "quickstart"
    with claimed(place / "begun") as run:
        run.write(CONFIG, OmegaConf.to_yaml(compose([*TINY, *settings(0)]), resolve=True))
    for process in start(tmp_path, [settings(0)] * STARTS):
        assert process.exitcode == 0, [said(tmp_path, k) for k in range(STARTS)]
    outs = [(tmp_path / f"out{k}").read_text() for k in range(STARTS)]
    assert sum("this command was interrupted before, and goes on" in out for out in outs) == 1
    assert sum(f"run: {place / 'begun'}\n" in out for out in outs) == 1
    assert len(list(place.iterdir())) == STARTS
    assert all((run / "report.html").is_file() and (run / CONFIG).is_file() for run in place.iterdir())


# --- holding ---------------------------------------------------------------------------------------------------------


def other(action: str, folder: Path) -> int:
    """The exit code of another process that does this with a folder."""
    code = (
        "import sys\nfrom pyro_tvae.experiments.runs.run import Run, claimed\n"
        f"try:\n    with {action}:\n        pass\n"
        "except BlockingIOError:\n    sys.exit(3)\nexcept FileExistsError:\n    sys.exit(4)"
    )
    process = CONTEXT.Process(target=exec, args=(code, {"FOLDER": folder}))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def test_a_folder_is_held_until_its_holder_lets_go_whatever_it_opens_meanwhile(tmp_path: Path) -> None:
    with claimed(tmp_path / "run") as run:
        run.write(CONFIG, "seed: 0")
        with run.held():
            pass  # held once more by the same process, and let go of once
        (run.path / ".lock").read_bytes()  # a POSIX lock would be lost here
        with unfinished(compose(TINY), run.path, 0) as begun:
            assert begun is None
        assert other("Run(FOLDER).held()", run.path) == 3
        assert other("claimed(FOLDER)", run.path) == 3
    assert other("Run(FOLDER).held()", run.path) == 0
    assert other("claimed(FOLDER)", run.path) == 4


def test_a_folder_is_removed_by_nobody_but_its_maker_and_only_while_nothing_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name, automatic, expected in (("new", False, "new"), ("there", False, "there"), ("there", True, "there-1")):
        with claimed(tmp_path / name, automatic=automatic) as run:
            assert run == Run(tmp_path / expected)
            assert run.path.is_dir()
        assert run.path.exists() == (expected == "there")
    with claimed(tmp_path / "filled") as run:
        (run.path / "notes").touch()
    assert (run.path / "notes").exists()
    for part in WRITTEN:
        (tmp_path / part / part).mkdir(parents=True)
        with pytest.raises(FileExistsError, match=f"holds {part} and no config.yaml: a new run would write over it"):
            claimed(tmp_path / part).__enter__()


def test_a_lock_whose_file_was_removed_or_made_anew_is_taken_again(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with holding(lock):
        lock.unlink()
        assert other("Run(FOLDER).held()", tmp_path) == 0  # of another file of that name: the maker's to prevent
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OSError, match="symbolic links"), holding(tmp_path / "link"):
        pass
    assert not (tmp_path / "nowhere").exists()
    with holding(tmp_path / "pipe"):  # does not hang
        pass


def test_a_forked_process_does_not_hold_on(tmp_path: Path) -> None:
    """Loaders' workers outlive a killed process by seconds."""
    reads, writes = os.pipe()
    with holding(tmp_path / ".lock"):
        child = os.fork()
        if child == 0:
            os.close(writes)
            os.read(reads, 1)
            os._exit(0)
    try:
        assert other("Run(FOLDER).held()", tmp_path) == 0
    finally:
        os.close(writes)
        os.waitpid(child, 0)
        os.close(reads)


def test_a_copy_of_a_descriptor_does_not_hold_on(tmp_path: Path) -> None:
    """As a forked process has one that is too slow to close it."""
    before = {*locks._held}
    with holding(tmp_path / ".lock"):
        [descriptor] = locks._held - before
        copied = os.dup(descriptor)
        assert other("Run(FOLDER).held()", tmp_path) == 3
    try:
        assert other("Run(FOLDER).held()", tmp_path) == 0
    finally:
        os.close(copied)


def test_settings_that_hydra_wrote_for_another_program_stay(tmp_path: Path) -> None:
    """Those of a run of this one that was killed before its own first file do not stand in its way."""
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    for text in ("", "config_sources:\n- path: pyro_tvae.experiments.conf\n"):
        (folder / ".hydra" / "config.yaml").write_text("topography: {}")
        if text:
            (folder / ".hydra" / "hydra.yaml").write_text(text)
        with claimed(folder):
            pass
    (folder / ".hydra" / "hydra.yaml").write_text("config_sources:\n- path: somebody.conf\n")
    with pytest.raises(FileExistsError, match=r"holds \.hydra of another program and no config\.yaml"), claimed(folder):
        pass
    assert (folder / ".hydra" / "config.yaml").read_text() == "topography: {}"
