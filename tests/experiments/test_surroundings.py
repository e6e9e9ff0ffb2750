"""Surroundings: variables, folders and pipes around a command cost no work, and what stands in its way is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from complaints import refused
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure
from tiny import TINY
from untrained_runs import make_run

import pyro_tvae
from pyro_tvae.experiments.commands import hydra_entry, train
from pyro_tvae.experiments.commands.evaluate import evaluate_run
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.commands.train import resume_run, train_run
from pyro_tvae.experiments.config.composition import compose, located, make
from pyro_tvae.experiments.config.errors import ConfigurationError
from pyro_tvae.experiments.config.processes import RANKS, place_among
from pyro_tvae.experiments.runs.names import CONFIG, DATA
from pyro_tvae.experiments.runs.run import Run, claimed
from pyro_tvae.experiments.runs.sweeps import begun
from pyro_tvae.experiments.studies.reproduce import reproduce
from pyro_tvae.inference import TrainerOptions, fit
from pyro_tvae.inference.callbacks import History

STRAY = {
    "RANK=1": {"RANK": "1"},
    "LOCAL_RANK=1": {"LOCAL_RANK": "1"},
    "JSM_NAMESPACE_RANK=1": {"JSM_NAMESPACE_RANK": "1"},
    "RANK=x": {"RANK": "x"},
    "SLURM_PROCID=1, SLURM_NTASKS=2": {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "interactive",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
    },
    "SLURM_NTASKS=2": {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "2"},
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    for name in (*RANKS, "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("named", STRAY)
def test_a_stray_rank_is_named_and_nothing_is_trained_to_be_dropped(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(TINY)
    for name, value in STRAY[named].items():
        monkeypatch.setenv(name, value)
    attempts = [
        lambda: train_run(config, tmp_path / "run"),
        lambda: run_with_hydra([*TINY, "hydra.run.dir=run"]),
        lambda: run_with_hydra([*TINY, "--multirun", "seed=0,1", "hydra.sweep.dir=sweep"]),
        lambda: reproduce("guides", output=tmp_path / "studies"),
    ]
    for attempt in attempts if named == "RANK=1" else attempts[:1]:  # which all ask the same
        text = refused(attempt, ConfigurationError)
        assert text.startswith(f"{named} in the environment")
        assert all(f"-u {name.partition('=')[0]}" in text for name in named.split(", "))
    assert not list(tmp_path.iterdir())


SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "night", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


class Heard(lightning.Callback):
    """Whether a signal of Slurm's makes a checkpoint: kept when training starts."""

    handler: Any = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.handler = signal.getsignal(signal.SIGUSR1)


@pytest.mark.skipif(os.name != "posix", reason="it has no SIGUSR1")
def test_under_slurm_no_signal_leaves_a_checkpoint_for_every_later_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    heard, before = Heard(), signal.getsignal(signal.SIGUSR1)
    fit_tiny(callbacks=[heard])
    assert heard.handler == before
    assert not [*Path().iterdir()]


@pytest.mark.parametrize("how", ["slurm", "on exception"])
def test_what_lightning_finds_to_go_on_from_is_refused_where_nobody_asked(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_tiny(directory=Path("other"))
    callbacks: list[lightning.Callback] = []
    if how == "slurm":
        for name, value in SLURM.items():
            monkeypatch.setenv(name, value)
        name = "hpc_ckpt_1.ckpt"
    else:
        callbacks.append(OnExceptionCheckpoint(".", "failed"))
        name = "failed.ckpt"
    shutil.copy(Path("other", "checkpoints", "last.ckpt"), name)
    with pytest.raises(ValueError, match=rf"^fit: Lightning would go on from .*{name}, and resume is None; move that"):
        fit_tiny(callbacks=callbacks)
    assert len(fit_tiny(callbacks=callbacks, resume=Path(name), max_epochs=8).rows) == 1


def test_a_fit_of_its_own_in_one_task_of_many_writes_its_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes the rank of whoever logs from SLURM_PROCID when it is imported."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    fit_tiny(directory=Path("mine"), validation=torch.rand(4, 3, 1, 4, 4))
    assert len([*Path("mine").rglob("metrics.csv")]) == 1
    assert vars(rank_zero_only)["rank"] == 1


def test_a_variable_of_lightning_s_changes_no_course_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_DETERMINISTIC", "1")  # what is trained stays the same
    fit_tiny()
    monkeypatch.setenv("PL_TRAINER_FAST_DEV_RUN", "1")
    with pytest.raises(
        ValueError, match=r"^fit: PL_TRAINER_FAST_DEV_RUN=1 in the environment would make Lightning train"
    ):
        fit_tiny()


def fit_tiny(callbacks: Sequence[lightning.Callback] = (), **options: Any) -> History:
    torch.manual_seed(0)
    model = pyro_tvae.TVAE((1, 4, 4), 3, 1, 3, mu=1.0)
    given: dict[str, Any] = {"max_epochs": 1, "batch_size": 4, "progress": False, **options}
    trainer = TrainerOptions("cpu", callbacks=callbacks)
    return fit(model, pyro_tvae.default_guide(model), torch.rand(8, 3, 1, 4, 4), trainer=trainer, **given)


def test_a_run_that_is_gone_on_with_is_not_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_run(compose(TINY), tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    monkeypatch.setenv("RANK", "1")
    assert refused(lambda: resume_run(tmp_path / "run"), ConfigurationError).startswith("RANK=1 in the environment")


def test_a_process_helps_where_the_configuration_asks_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    several, one = compose([*TINY, "fit.devices=2", "fit.strategy=ddp"]), compose(TINY)
    assert place_among(several) == (0, 1)  # the one that starts the others
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert place_among(several) == (rank, 2)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert place_among(one) == (0, 1)


# --- files of the user's own ------------------------------------------------------------------------------------------


def test_a_run_is_begun_over_no_file_of_the_users(tmp_path: Path) -> None:
    mine = tmp_path / "run" / "data.json"
    mine.parent.mkdir()
    mine.write_text('{"mine": 1}')
    missing = ["data=sequences", "data.n_frames=6", "data.source.path=nothere.npy", "hydra.run.dir=run"]
    text = refused(lambda: run_with_hydra([*TINY[3:], *missing]), FileExistsError)
    assert "run holds data.json and no config.yaml: a new run would write over it" in text
    assert mine.read_text() == '{"mine": 1}'
    sweep = tmp_path / "sweep.json"
    sweep.write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match="is no record of a sweep, and is left as it is"):
        begun(["seed=0,1"], tmp_path, 0).__enter__()
    assert sweep.read_text() == '{"mine": 1}'


def test_a_mistake_takes_back_what_its_command_wrote_and_nothing_else(tmp_path: Path) -> None:
    splits = {"train": {"sequences": 1, "exact": "0", "sums": [0.0]}}
    Run(tmp_path).write(DATA, splits)  # of a process that was killed before it wrote a configuration
    (tmp_path / "notes.txt").write_text("mine")

    def mistaken() -> None:
        with claimed(tmp_path) as run, run.undone_after_mistakes():
            run.write(CONFIG, "seed: 0")
            raise ValueError("a mistake")

    assert refused(mistaken) == "a mistake"
    assert Run(tmp_path).names() == {DATA, "notes.txt", ".lock"}


def test_a_page_shows_no_picture_but_those_of_its_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "roll")
    (run / "figures").mkdir()
    Figure((1, 1)).savefig(run / "figures" / "mine.png")
    evaluate_run(run)
    drawn = json.loads((run / "evaluation.json").read_text())["figures"]
    assert "reconstructions" in drawn
    assert "mine" not in drawn
    shutil.copy(run / "figures" / "mine.png", run / "figures" / "added.png")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == len(drawn) + ("forward_roll_curve" not in drawn)
    assert "Mine" not in page


def test_paths_that_were_typed_start_where_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Hydra changes into the run's folder."""
    np.save("x.npy", np.random.default_rng(0).random((20, 4, 1, 6, 6), dtype=np.float32))
    trained: list[tuple[str, Path]] = []
    monkeypatch.setattr(train, "train_run", lambda config, path, *_: trained.append((config.data.source.path, path)))
    given = ["data=sequences", "data.n_frames=4", "data.source.path=x.npy", "hydra.run.dir=run", "hydra.job.chdir=true"]
    run_with_hydra(given)
    assert trained == [(str(tmp_path / "x.npy"), tmp_path / "run")]


def test_the_command_of_an_interrupted_run_names_a_way_out_where_its_data_are_others(tmp_path: Path) -> None:
    def given(*further: str) -> list[str]:
        few = [*TINY[3:], "data=sequences", "data.n_frames=4", "data.source.path=x.npy", "model.capsule_dim=4"]
        return [*few, "hydra.run.dir=run", *further]

    def films(seed: int) -> None:
        np.save("x.npy", np.random.default_rng(seed).random((20, 4, 1, 6, 6), dtype=np.float32))

    films(0)
    config = located(compose(given()[:-1]))
    Run(tmp_path / "run").begin(config, make(config.data))
    films(1)
    text = refused(lambda: run_with_hydra(given()))
    assert "was begun with other data" in text
    assert "or begin a new run by another name=… or hydra.run.dir=…" in text


# --- what is printed --------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from pyro_tvae.experiments.outlets import outlasting
with outlasting():
    for line in range(20_000):
        print("─", line)
    Path("done").touch()
    sys.exit(0)
"""


def printing(output: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that prints more than any buffer holds, and leaves a file when it is done."""
    Path("done").unlink(missing_ok=True)
    settings = {**os.environ, **environment}
    ended = subprocess.run([sys.executable, "-c", PROGRAM], stdout=output, stderr=-1, text=True, env=settings)
    assert Path("done").exists(), ended.stderr
    return ended


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_under_what_is_printed_stops_no_command() -> None:
    with open("/dev/full", "w") as full:
        ended = printing(full.fileno())
    assert ended.returncode == 1
    assert ended.stderr == (
        "pyro-tvae: what was printed could not be written (No space left on device); what the command makes is in its "
        "files\n"
    )


@pytest.mark.parametrize("opened", ["pipe", "openpty"])
def test_a_reader_that_leaves_or_a_terminal_that_cannot_be_written_stops_no_command(opened: str) -> None:
    other, output = getattr(os, opened)()
    os.close(other)
    try:
        ended = printing(output)
    finally:
        os.close(output)
    assert (ended.returncode, ended.stderr) == (0, "")


HANGUP = """
import fcntl, os, signal, sys, termios, time
from pathlib import Path
from pyro_tvae.experiments.interruption import catch_signals, goes_on_with
from pyro_tvae.experiments.outlets import outlasting
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # as a terminal's shell does
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)  # whatever tests left
catch_signals()
forked = os.fork()
with outlasting(), goes_on_with("go on."):
    try:
        Path(f"begun{forked}").touch()
        for _ in range(60 if sys.argv[1] == "plain" and forked else 4):
            print("at work", flush=True)
            time.sleep(0.5)
    finally:
        os.kill(os.getpid(), signal.SIGHUP)  # a shell's comes beside the system's
        Path("forked" if forked == 0 else "closed").touch()
if forked:
    os.wait()
    Path("done").touch()
"""


@pytest.mark.skipif(os.name != "posix", reason="it has no SIGHUP")
@pytest.mark.parametrize(("how", "status"), [("plain", 129), ("nohup", 0)])
def test_a_terminal_that_is_closed_ends_a_command_as_sigterm_does_and_none_under_nohup(how: str, status: int) -> None:
    """Before it tells all that it runs, and what is printed afterwards goes nowhere."""
    terminal, end = os.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", HANGUP, how], stdin=end, stdout=end, stderr=-1, text=True, start_new_session=True
    )
    os.close(end)
    while program.poll() is None and len([*Path().glob("begun*")]) < 2:
        time.sleep(0.05)
    os.close(terminal)
    said = program.communicate(timeout=60)[1]  # which ends when the forked process has, too
    assert (program.returncode, said) == (status, "\npyro-tvae: interrupted; go on.\n" if status else "")
    assert Path("closed").exists()
    assert Path("forked").exists()
    assert Path("done").exists() is (how == "nohup")


WITHOUT = """
import os, sys
from pyro_tvae.experiments.outlets import outlasting
from pyro_tvae.inference.progress import progress_bar
progress_bar(3, "before").close()
with outlasting():
    with open("kept.txt", "w") as file:
        for _ in progress_bar(3, "at work", iterable=range(3)):
            print("a sentence")
            print("another one", file=sys.stderr)
            os.system("echo of a library; echo of a library >&2")
            file.write("mine\\n")
        assert sys.stdin.read() == ""
"""


@pytest.mark.skipif(os.name != "posix", reason="it has another shell")
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-", "<&-"])
def test_a_process_without_outlets_works_and_prints_into_none_of_its_files(closed: str) -> None:
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, WITHOUT], timeout=120)
    assert done.returncode == 0
    assert Path("kept.txt").read_text() == "mine\n" * 3


def test_letters_that_are_unknown_there_stop_no_command() -> None:
    ended = printing(subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("? 0\n? 1\n")
    assert ended.stdout.endswith("? 19999\n")
    bare = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as some cron jobs have it
    listed = subprocess.run(
        [sys.executable, "-m", "pyro_tvae.experiments.cli", "list"], capture_output=True, timeout=120, env=bare
    )
    assert (listed.returncode, listed.stderr) == (0, b"")


HELPER = """
import subprocess, sys, time
if sys.argv[1:]:
    from pyro_tvae.experiments.interruption import end_with_parent
    end_with_parent()
    print("ready", flush=True)
    time.sleep(600)
subprocess.run([sys.executable, "-c", sys.stdin.read(), "helper"])
"""


def test_a_process_that_helps_ends_with_the_first_one() -> None:
    first = subprocess.Popen([sys.executable, "-c", HELPER], stdin=-1, stdout=-1, text=True)
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.write(HELPER)
    first.stdin.close()
    assert first.stdout.readline() == "ready\n"
    first.kill()
    assert first.stdout.read() == ""  # an end of the file, once the helper has ended
    first.wait()


@pytest.mark.parametrize(("local", "follows"), [("1", True), ("0", False), (None, False)])
def test_what_lightning_started_follows_it(local: str | None, follows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(hydra_entry, "end_with_parent", lambda: called.append(True))
    monkeypatch.setattr(train, "resume_run", lambda *_: {})
    monkeypatch.delenv("RANK", raising=False)
    if local is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", local)
    hydra_entry.run_with_hydra(["resume=run"])
    assert called == [True] * follows
