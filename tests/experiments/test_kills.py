"""Kills: a command that is interrupted, terminated or killed at random moments loses nothing, and says how to go on.

PYRO_TVAE_KILLS=100 in the environment asks for a hundred kills instead of a few.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

KILLS = int(os.environ.get("PYRO_TVAE_KILLS", "6"))
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
TINY = [
    "data.n_train=48",
    "data.n_validation=8",
    "data.n_test=12",
    "model.n_capsules=2",
    "fit.max_epochs=4",
    "fit.progress=false",
    "baseline.max_epochs=2",
    "evaluation.num_particles=3",
    "hydra.run.dir=run",
]
# Children of one process that has imported everything: seconds less for each of many commands.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pyro_tvae.experiments.cli", "pyro_tvae.experiments.runs", "tensorboard.summary"])

CODE = """
import os, signal, sys
os.chdir(FOLDER)
for number, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch
torch.set_num_threads(1)
from pyro_tvae.experiments import cli
sys.argv = ["pyro-tvae", *ARGUMENTS]
open("started", "w").close()
cli.main()
"""


def command(folder: Path, *arguments: str) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    (folder / "started").unlink(missing_ok=True)
    process = CONTEXT.Process(target=exec, args=(CODE, {"FOLDER": str(folder), "ARGUMENTS": arguments}))
    process.start()
    while process.is_alive() and not (folder / "started").exists():
        time.sleep(0.005)
    return process


def killed(process: BaseProcess, after: float, number: signal.Signals) -> bool:
    """Whether the signal found the process alive; waits for its end."""
    process.join(after)
    alive = process.is_alive()
    if alive:
        assert process.pid is not None
        os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode is not None
    return alive


def results(run: Path) -> dict[str, object]:
    """All numbers of a finished run but the wall-clock times."""
    record = json.loads((run / "evaluation.json").read_text())
    return {
        "weights": {file.name: load_file(file) for file in sorted(run.glob("*.safetensors"))},
        "history": json.loads((run / "history.json").read_text())["rows"],
        "measures": record["measures"],
        "verdict": record["verdict"],
        "figures": sorted(path.name for path in (run / "figures").iterdir()),
    }


def assert_same(one: dict[str, object], two: dict[str, object]) -> None:
    first, second = one.pop("weights"), two.pop("weights")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first.keys() == second.keys() == {"model.safetensors", "untrained.safetensors", "plain_vae.safetensors"}
    for name, tensors in first.items():
        assert all(torch.equal(tensors[key], second[name][key]) for key in tensors), name
    assert one == two


def way_on(folder: Path, process: BaseProcess, number: signal.Signals) -> list[str] | None:
    """The command in the one sentence of an interrupted one; None where nothing had been done yet."""
    assert process.exitcode == 128 + number
    said = (folder / "err").read_text().strip()
    assert "Traceback" not in said
    assert re.fullmatch(r"pyro-tvae: interrupted; [^\n]+", said), said
    if "nothing was written" in said:
        assert not (folder / "run" / "checkpoints").exists()
        return None
    assert f"what is done is in {folder / 'run'}; go on with: pyro-tvae train" in said
    return shlex.split(said.partition("go on with: ")[2])[1:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that was left alone, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    process = command(folder, "train", *TINY)
    since = time.monotonic()  # the first child waits for its parent's imports
    process.join(300)
    assert process.exitcode == 0, (folder / "err").read_text()
    return folder / "run", time.monotonic() - since


@pytest.mark.timeout(60 + 60 * KILLS)
def test_a_run_killed_at_random_moments_ends_as_the_whole_one(whole: tuple[Path, float], tmp_path: Path) -> None:
    dice, count, runs = random.Random(0), 0, 0
    counts = dict.fromkeys(SIGNALS, 0)
    while count < KILLS:
        folder, runs = tmp_path / f"try {runs}", runs + 1
        arguments = ["train", *TINY]
        for _ in range(40):
            number = SIGNALS[count % 3] if count < KILLS else None
            process = command(folder, *arguments)
            if number is None:
                process.join(300)
                hit = False
            else:
                hit = killed(process, dice.uniform(0, 0.7 * whole[1]), number)
            if not hit:
                break
            count += 1
            counts[number] += 1
            started = (folder / "run" / "config.yaml").is_file()
            arguments = ["train", f"resume={folder / 'run'}"] if started else ["train", *TINY]
            if number is not signal.SIGKILL and process.exitcode != 0:  # 0: it was ending anyway
                arguments = way_on(folder, process, number) or arguments
        assert process.exitcode == 0, (folder / "err").read_text()
        assert not list((folder / "run").rglob("*.partial"))
        assert_same(results(folder / "run"), results(whole[0]))
    print(f"{count} kills in {runs} runs: {', '.join(f'{n} by {s.name}' for s, n in counts.items())}; nothing lost")
