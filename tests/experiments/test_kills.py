"""Kills: a command that is interrupted, terminated or killed at random moments loses nothing, and says how to go on.

PYRO_TVAE_KILLS=100 in the environment asks for a hundred kills instead of a few: half of them while a run trains and is
judged, a tenth each in a sweep, evaluate, posterior, likelihood and reproduce; and as many in a sweep whose data come
from processes of their own, and in one of joblib's launcher, where it is installed. PYRO_TVAE_SEED=1 chooses other
moments.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from pyro_tvae.inference import from_netcdf

TOTAL = max(10, int(os.environ.get("PYRO_TVAE_KILLS", "10")))
SHARE = TOTAL // 10
KILLS = TOTAL - 5 * SHARE
PATIENCE = 60 if TOTAL == 10 else 600  # seconds a kill; who asks for many has a busy machine, and looks for losses
SEED = int(os.environ.get("PYRO_TVAE_SEED", "0"))
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
SWEEP = [*TINY[:4], "fit.max_epochs=2", "fit.progress=false", "baseline.max_epochs=1", "evaluation.num_particles=3"]
STUDY = [*TINY[:4], "fit.max_steps=4", "fit.progress=false", "baseline.enabled=false", "evaluation.num_particles=3"]
# Children of one process that has imported everything: seconds less for each of many commands.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pyro_tvae.experiments.commands.train", "pyro_tvae.experiments.commands.posterior", "tensorboard.summary", "arviz"]
)

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
if ARGUMENTS[0] == "reproduce":
    from pyro_tvae.experiments.studies.reproduce import STUDIES, Study
    few = {"sequences": 2, "num_chains": 2, "num_temperatures": 3}
    STUDIES["tiny"] = Study("Tiny", {"a row": ("guide=orbit",), "b": ("guide=conditional_orbit",)}, STUDY, False, few)
open("started", "w").close()
try:
    cli.main()
finally:  # joblib's processes end with a program, not with a fork server's child, which ends queues before threads
    pool = sys.modules.get("joblib.externals.loky.reusable_executor")
    if pool is not None and pool._executor is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        pool._executor.shutdown(wait=True)
"""


def command(folder: Path, *arguments: str) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    (folder / "started").unlink(missing_ok=True)
    process = CONTEXT.Process(target=exec, args=(CODE, {"FOLDER": str(folder), "ARGUMENTS": arguments, "STUDY": STUDY}))
    process.start()
    while process.is_alive() and not (folder / "started").exists():
        time.sleep(0.005)
    return process


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have, where the system tells."""
    parents = dict[int, int]()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # just ended
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for ancestor in family:
        family += [child for child, parent in parents.items() if parent == ancestor]
    return family[1:]


def killed(process: BaseProcess, after: float, number: signal.Signals, sign: Path | None = None) -> bool:
    """Whether the signal found the process alive, so long after a file is there; waits for its end."""
    while sign is not None and process.is_alive() and not sign.exists():
        time.sleep(0.002)
    process.join(after)
    alive = process.is_alive()
    if alive:
        assert process.pid is not None
        helpers = descendants(process.pid) if number is signal.SIGKILL else []  # joblib's train on, and hold their runs
        for pid in (process.pid, *helpers):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    process.join(2 * PATIENCE)
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
    """The command in the one sentence of an interrupted one; None where this time it had done nothing yet."""
    assert process.exitcode == 128 + number
    said = (folder / "err").read_text().strip()
    assert "Traceback" not in said
    assert re.fullmatch(r"pyro-tvae: interrupted; [^\n]+", said), said
    if "this time nothing was written yet; the same command begins, or goes on, again" in said:
        return None
    assert f"what is done is in {folder / 'run'}; go on with: pyro-tvae train" in said
    return shlex.split(said.partition("go on with: ")[2])[1:]


SIGNS = (  # of a run's progress
    "config.yaml",
    "untrained.safetensors",
    "checkpoints/last.ckpt",
    "model.safetensors",
    "plain_vae/checkpoints/last.ckpt",
    "plain_vae.safetensors",
    "evaluation.json",
)


def moment(dice: random.Random, run: Path, length: float) -> tuple[Path | None, float]:
    """When to kill: soon after one of the next files is there, or after a share of the whole time."""
    left = [run / name for name in SIGNS if not (run / name).exists()]
    sign = dice.choice([None, *left[:3]])
    return sign, dice.uniform(0, 0.7 * length if sign is None else 0.08 * length)


def place(run: Path) -> str:
    """What a killed run was at."""
    for file, at in (
        ("config.yaml", "starting"),
        ("checkpoints/last.ckpt", "first epoch"),
        ("model.safetensors", "training"),
        ("plain_vae.safetensors", "plain VAE"),
        ("evaluation.json", "evaluation"),
    ):
        if not (run / file).is_file():
            return at
    return "report"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that was left alone, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    process = command(folder, "train", *TINY)
    since = time.monotonic()  # the first child waits for its parent's imports
    process.join(5 * PATIENCE)
    assert process.exitcode == 0, (folder / "err").read_text()
    return folder / "run", time.monotonic() - since


@pytest.mark.timeout(PATIENCE * (1 + KILLS))
def test_a_run_killed_at_random_moments_ends_as_the_whole_one(whole: tuple[Path, float], tmp_path: Path) -> None:
    dice, count, runs = random.Random(SEED), 0, 0
    counts, places = dict.fromkeys(SIGNALS, 0), Counter[str]()
    while count < KILLS:
        folder, runs = tmp_path / f"try {runs}", runs + 1
        arguments = ["train", *TINY]
        for attempt in range(9):
            number = SIGNALS[count % 3] if count < KILLS and attempt < 8 else None
            process = command(folder, *arguments)
            if number is None:
                process.join(5 * PATIENCE)
                break
            sign, after = moment(dice, folder / "run", whole[1])
            if not killed(process, after, number, sign):
                break
            count += 1
            counts[number] += 1
            places[place(folder / "run")] += 1
            done = (folder / "run" / "report.html").exists()  # the same command leaves a finished run alone
            arguments = ["train", f"resume={folder / 'run'}"] if done else ["train", *TINY]
            if number is not signal.SIGKILL and process.exitcode != 0:  # 0: it was ending anyway
                arguments = way_on(folder, process, number) or arguments
        assert process.exitcode == 0, (folder / "err").read_text()
        assert not list((folder / "run").rglob("*.partial"))
        assert_same(results(folder / "run"), results(whole[0]))
    said = ", ".join(f"{n} by {s.name}" for s, n in counts.items())
    print(f"train: {count} kills in {runs} runs ({said}; {dict(places)}); nothing lost")


def assert_whole(folder: Path) -> None:
    """Every file can be read to its end."""
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".nc":
            from_netcdf(path)
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        elif path.name == "config.yaml" and path.parent.name != ".hydra":
            assert OmegaConf.load(path).measure == "val/elbo", path
        elif path.suffix == ".csv" and path.parent.name == "tiny":
            assert path.read_text().endswith("\n")


def digest(weights: Path) -> str:
    """Of all tensors of a file. Not of the file: safetensors writes its metadata in another order every time."""
    summed = hashlib.sha256()
    for name, tensor in sorted(load_file(weights).items()):
        summed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return summed.hexdigest()


def numbers(folder: Path, name: str) -> object:
    """What a command leaves, but for wall-clock times."""
    if name == "posterior":
        posterior = from_netcdf(folder / "run" / "posterior.nc")["posterior"]
        return {key: torch.from_numpy(value.values).tolist() for key, value in posterior.items()}
    if name == "evaluate":
        return json.loads((folder / "run" / "evaluation.json").read_text())["measures"]
    if name == "likelihood":
        record = json.loads((folder / "run" / "likelihood.json").read_text())
        return [{key: value for key, value in row.items() if key != "seconds"} for row in record["rows"]]
    if "sweep" in name:
        weights = {
            str(path.relative_to(folder)): digest(path) for path in sorted((folder / "sweep").rglob("*.safetensors"))
        }
        assert len(weights) == 2 * 3
        return weights, [
            json.loads((folder / "sweep" / job / "evaluation.json").read_text())["measures"] for job in "01"
        ]
    rows = json.loads((folder / "studies" / "tiny" / "table.json").read_text())["rows"]
    return [{key: value for key, value in row["values"].items() if "seconds" not in key} for row in rows]


COMMANDS = {
    "evaluate": ["evaluate", "run"],
    "posterior": ["posterior", "run", "--draws", "30", "--sequences", "3"],
    "likelihood": ["likelihood", "run", "--particles", "1,10,100", "--sequences", "4"],
    "reproduce": ["reproduce", "tiny", "--output", "studies"],
    "sweep": ["train", "--multirun", *SWEEP, "hydra.sweep.dir=sweep", "seed=0,1"],
}
JOBLIB = "sweep by joblib"
if TOTAL > 10:
    COMMANDS["sweep with workers"] = [*COMMANDS["sweep"], "data.num_workers=2"]
    if find_spec("hydra_plugins") and find_spec("hydra_plugins.hydra_joblib_launcher"):
        COMMANDS[JOBLIB] = [*COMMANDS["sweep"], "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.timeout(PATIENCE * (2 + SHARE))
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_random_moments_goes_on_when_given_again(
    name: str, whole: tuple[Path, float], tmp_path: Path
) -> None:
    arguments = COMMANDS[name]
    for place_of in ("left alone", "killed"):
        shutil.copytree(whole[0], tmp_path / place_of / "run")
        (tmp_path / place_of / "run" / "evaluation.json").unlink()
    since = time.monotonic()
    process = command(tmp_path / "left alone", *arguments)
    process.join(5 * PATIENCE)
    assert process.exitcode == 0, (tmp_path / "left alone" / "err").read_text()
    length = time.monotonic() - since
    folder, dice, count, tries = tmp_path / "killed", random.Random(f"{name}{SEED}" if SEED else name), 0, 0
    counts = dict.fromkeys(SIGNALS, 0)
    while count < SHARE:
        number, tries = SIGNALS[(count + len(name)) % 3], tries + 1
        assert tries < 5 * SHARE + 10
        process = command(folder, *arguments)
        if killed(process, dice.uniform(0.1, 0.8) * length, number):
            count += 1
            counts[number] += 1
            print(f"{name}: kill {count} by {number.name}, ended with {process.exitcode}", flush=True)
            if number is not signal.SIGKILL and process.exitcode != 0:
                assert process.exitcode == 128 + number
                said = (folder / "err").read_text().strip()
                assert "Traceback" not in said
                assert shlex.join(["pyro-tvae", *arguments]) in said or "nothing was written" in said, said
        assert_whole(folder)
        begun = folder / ("sweep" if "sweep" in name else {"reproduce": "studies"}.get(name, "run"))
        if begun.name != "run" and process.exitcode == 0:
            assert numbers(folder, name) == numbers(tmp_path / "left alone", name)
            shutil.rmtree(begun)  # what is finished is not computed again
    process = command(folder, *arguments)
    process.join(5 * PATIENCE)
    assert process.exitcode == 0, (folder / "err").read_text()
    assert_whole(folder)
    assert not list(folder.rglob("*.partial"))
    assert numbers(folder, name) == numbers(tmp_path / "left alone", name)
    said = ", ".join(f"{n} by {s.name}" for s, n in counts.items())
    print(f"{name}: {count} kills ({said}); nothing lost")
