"""Faults around a run: full and read-only disks, newer files, two processes at once; nothing is lost or overwritten."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from complaints import refused
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from pyro_tvae import TVAE, default_guide
from pyro_tvae.experiments.commands import calibrate, evaluate, likelihood, posterior, train
from pyro_tvae.experiments.commands.calibrate import calibrate_run
from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.commands.likelihood import likelihood_run
from pyro_tvae.experiments.commands.posterior import posterior_run
from pyro_tvae.experiments.commands.train import resume_run, train_run
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.datasets import arrays
from pyro_tvae.experiments.interruption import SIGNALS, leave_to_parent
from pyro_tvae.experiments.runs.run import Run, unfinished
from pyro_tvae.files import FolderMoved, atomic_write, start_of_partial
from pyro_tvae.inference import to_arviz, to_zarr

TINY = [
    "data.n_train=16",
    "data.n_validation=8",
    "data.n_test=12",
    "model.n_capsules=2",
    "fit.max_epochs=3",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "baseline.enabled=false",
    "evaluation.num_particles=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_run(compose(TINY), folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("number", [1, 5])
def test_a_disk_that_fills_up_while_training_costs_an_epoch_at_most(
    number: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that finds no room is the first or the last but one."""
    save, calls = torch.save, 0

    def full(state: Any, path: Any) -> None:
        nonlocal calls
        calls += isinstance(path, Path)  # and not a trial in memory
        if calls == number and isinstance(path, Path):
            path.write_bytes(b"as much as there was room for")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, path)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        text = refused(lambda: train_run(compose(TINY), tmp_path / "run"), OSError)
    assert "cannot be written (No space left on device); make room" in text
    assert not list(tmp_path.rglob("*.partial"))
    for path in tmp_path.rglob("*.ckpt"):
        torch.load(path, weights_only=True)
    resume_run(tmp_path / "run")
    one, two = load_file(run / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    measures = (json.loads((folder / "evaluation.json").read_text())["measures"] for folder in (run, tmp_path / "run"))
    assert next(measures) == next(measures)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "has no room left on its disk (No space left on device); make room, and go on with: "),
        (errno.EIO, "was stopped by its disk (Input/output error); see to it, and go on with: "),
    ],
)
def test_a_disk_that_fills_up_or_fails_under_a_logger_is_one_sentence(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(CSVLogger, "save", full)
    text = refused(lambda: train_run(compose([*TINY, "fit.max_epochs=1"]), tmp_path / "run"), OSError)
    assert text.startswith(f"{tmp_path / 'run'} {said}")
    monkeypatch.undo()
    resume_run(tmp_path / "run")


COMMANDS: dict[str, Callable[[Path], object]] = {
    "evaluate": evaluate_run,
    "report": report_run,
    "posterior": lambda run: posterior_run(run, draws=20, sequences=2),
    "likelihood": lambda run: likelihood_run(run, particles=[1], sequences=2),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_is_named_and_left_as_it_was(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, truly = files(run), os.open

    def read_only(path: Any, flags: int, *mode: Any, **options: Any) -> int:
        if flags & os.O_CREAT and str(path).startswith(str(run)):
            raise OSError(errno.EROFS, "Read-only file system")
        return truly(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", read_only)
    text = refused(lambda: COMMANDS[name](run), OSError)
    assert str(run) in text
    assert "cannot be written (Read-only file system)" in text
    assert files(run) == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="others have no masks of permissions")
@pytest.mark.parametrize(
    ("name", "command"),
    [
        *((name, "likelihood") for name in (".", "config.yaml", "data.json", "model.safetensors")),
        *((name, "report") for name in ("history.json", "evaluation.json", "untrained.safetensors")),
        ("figures/training_curves.png", "report"),
        ("checkpoints", "resume"),
        ("checkpoints/last.ckpt", "resume"),
    ],
)
def test_what_may_not_be_read_is_said_to_be_so(name: str, command: str, run: Path, tmp_path: Path) -> None:
    path, owner = tmp_path / "run", os.geteuid()
    shutil.copytree(run, path)
    if command == "resume":
        (path / "model.safetensors").unlink()
    for entry in (path, *path.rglob("*")):
        entry.chmod(0o777)  # nothing else is in the way
    for folder in (path, *path.parents):  # of which pytest makes one more for each worker
        if any(part.startswith("pytest-") for part in folder.parts):
            folder.chmod(0o755)
    (path / name).chmod(0)
    try:
        if owner == 0:  # whom no mask keeps out
            os.seteuid(65534)
            if not os.access(hydra.__file__, os.R_OK, effective_ids=True):
                pytest.skip("other users cannot read this environment, nor what its libraries have in files")
        text = refused(lambda: {**COMMANDS, "resume": resume_run}[command](path), Exception)
    finally:
        os.seteuid(owner)
        (path / name).chmod(0o755)
    assert text.count(f"{path / name} cannot be read (Permission denied); ") == 1, text
    assert "Errno" not in text


def moving(run: Path, whole: Callable[..., Any], after: int = 0) -> Callable[..., Any]:
    """A function in whose later call somebody renames the run's folder."""
    calls = 0

    def renaming(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            run.rename(run.with_name("renamed"))
        return whole(*given, **options)

    return renaming


MOVED: dict[str, tuple[Any, str]] = {  # a command, and what it computes while its run is renamed
    "evaluate": (evaluate, "evaluate"),
    "report": (evaluate, "write_report"),
    "posterior": (posterior, "to_arviz"),
    "likelihood": (likelihood, "log_likelihood"),
    "calibrate": (calibrate, "calibration"),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_folder_that_is_renamed_under_a_command_gets_no_ghost(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    module, function = MOVED[name]
    monkeypatch.setattr(module, function, moving(path, getattr(module, function)))
    command = COMMANDS.get(name, lambda run: calibrate_run(run, simulations=20, draws=9, bins=2))
    text = refused(lambda: command(path), FolderMoved)
    assert text.startswith(f"{path} was moved, renamed or removed while this command was at work in it")
    assert [entry.name for entry in tmp_path.iterdir()] == ["renamed"]
    assert files(run).keys() - {".lock"} <= files(tmp_path / "renamed").keys() | {"report.html"}


@pytest.mark.parametrize(
    ("module", "function", "after"),
    [(torch, "save", 1), (CSVLogger, "save", 0), (train, "_plain_vae", 0)],
)
def test_a_run_that_is_renamed_while_it_trains_gets_no_ghost(
    module: Any, function: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = tmp_path / "run", [*TINY, "fit.max_epochs=2", "baseline.enabled=true", "baseline.max_epochs=1"]
    with monkeypatch.context() as patched:
        patched.setattr(module, function, moving(path, getattr(module, function), after))
        text = refused(lambda: train_run(compose(settings), path), FolderMoved)
    assert text.startswith(f"{path} was moved, renamed or removed while this command was at work in it")
    assert [entry.name for entry in tmp_path.iterdir()] == ["renamed"]
    resume_run(tmp_path / "renamed")
    assert Run(tmp_path / "renamed").ended(compose(settings))


def test_a_page_that_cannot_be_written_is_not_said_to_be_as_it_was(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evaluation is a new one, so that the old page was removed."""
    path = tmp_path / "run"
    shutil.copytree(run, path)
    truly = os.open

    def full(name: Any, flags: int, *mode: Any, **options: Any) -> int:
        if flags & os.O_CREAT and ".report.html-" in str(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return truly(name, flags, *mode, **options)

    monkeypatch.setattr(os, "open", full)
    text = refused(lambda: evaluate_run(path), OSError)
    assert text == f"{path / 'report.html'} cannot be written (No space left on device); make room."
    assert not (path / "report.html").exists()
    monkeypatch.undo()
    page = report_run(path).read_bytes()
    monkeypatch.setattr(os, "open", full)
    assert refused(lambda: report_run(path), OSError).endswith("make room. What was there before is as it was.")
    assert (path / "report.html").read_bytes() == page


def test_an_evaluation_of_a_newer_version_is_refused_and_kept(run: Path) -> None:
    path = run / "evaluation.json"
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | {"schema": 2}))
    newer = path.read_bytes()
    try:
        assert "schema 2" in refused(lambda: report_run(run), ValueError)
        assert path.read_bytes() == newer
    finally:
        path.write_bytes(before)


def test_paths_inside_an_archive_are_names_and_nothing_else(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((10, 4, 4), dtype=np.float32)
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    np.savez(folder / "data.npz", **{"../../escaped": pixels, "/tmp/escaped-too": pixels})
    for key in ("../../escaped", "/tmp/escaped-too"):
        assert arrays(folder / "data.npz", key=key).train.pixels.shape[1:] == (1, 4, 4)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["data.npz"]
    assert not Path("/tmp/escaped-too.npy").exists()


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def renumbered(path: Path, pid: int) -> str:
    """How another process on this machine would call what it is writing."""
    return start_of_partial(path).replace(f"-{os.getpid()}-", f"-{pid}-") + "x.partial"


def test_what_killed_processes_left_goes_with_the_next_writing(dead: int, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    inner = tmp_path / renumbered(path, dead)  # written to by what is itself written so
    left = {inner.name, f".{inner.name}.lock", renumbered(inner, dead)}
    others = {renumbered(path, 1), ".a.json-mine.partial", f".{renumbered(path, 1)}.lock"}  # process 1 is always there
    for name in left | others:
        (tmp_path / name).touch()
    with atomic_write(path) as partial:
        partial.write_text("{}")
    assert {entry.name for entry in tmp_path.iterdir()} == {*others, path.name}


def test_what_killed_processes_left_of_a_zarr_store_goes_with_the_next_writing(dead: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    left, other = renumbered(path, dead), renumbered(path, 1)
    for name in (left, other):
        (tmp_path / name / "data").mkdir(parents=True)
    model = TVAE((1, 4, 4), 3, 1, 3, mu=1.0)
    to_zarr(to_arviz(model, default_guide(model), torch.rand(2, 3, 1, 4, 4), draws=2), path)
    assert {entry.name for entry in tmp_path.iterdir()} == {other, path.name}


@pytest.mark.parametrize("pid", ["dead", "alive"])
def test_what_another_machine_is_writing_is_left_to_it_until_it_is_old(pid: str, dead: int, tmp_path: Path) -> None:
    """On a disk that several share a process number says nothing of those on another machine, or in a container."""
    number = dead if pid == "dead" else 1
    names = (f".a.nc-{number}-0123abcd89abcdef.partial", f".a.nc-{number}-89abcdef.partial")  # one of a former version
    for name in names:
        (tmp_path / name).touch()

    def written() -> None:
        with atomic_write(tmp_path / "a.nc") as partial:
            partial.touch()
        Run(tmp_path).sweep()

    written()
    assert {path.name for path in tmp_path.iterdir()} == {*names, "a.nc"}
    for name in names:
        os.utime(tmp_path / name, (0, 0))
    written()
    assert {path.name for path in tmp_path.iterdir()} == {"a.nc"}


def test_what_goes_on_with_a_run_leaves_what_others_are_writing_in_it(dead: int, tmp_path: Path) -> None:
    for pid in (dead, 2**80):
        (tmp_path / renumbered(tmp_path / "a.nc", pid)).touch()
    (tmp_path / renumbered(tmp_path / "b.zarr", dead) / "posterior").mkdir(parents=True)
    with atomic_write(tmp_path / "c.nc") as partial:  # such as draws, which are written without the lock
        partial.write_text("draws")
        others = tmp_path / renumbered(tmp_path / "b.zarr", 1)
        others.mkdir()
        Run(tmp_path).sweep()
        assert {path.name for path in tmp_path.iterdir()} == {partial.name, others.name}


# --- the same command ------------------------------------------------------------------------------------------------


def test_the_same_command_finds_what_it_began_and_no_other(run: Path, tmp_path: Path) -> None:
    (day := tmp_path / "day").mkdir()
    for name in ("earlier", "later", "done"):
        (day / name).mkdir()
        (day / name / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    for name in ("evaluation.json", "report.html"):
        (day / "done" / name).touch()
    (day / "other").mkdir()
    (day / "other" / "config.yaml").write_text("just words")
    new = day / "now"
    for overrides, folder, timed, expected in (
        (TINY, new, 1, Run(day / "later")),
        ([*TINY, "fit.progress=true"], new, 1, Run(day / "later")),
        (TINY, new, 0, None),
        (TINY, day / "earlier", 0, Run(day / "earlier")),
        ([*TINY, "seed=1"], new, 1, None),
        (TINY, tmp_path / "another day" / "now", 2, Run(day / "later")),
    ):
        with unfinished(compose(overrides), folder, timed) as begun:
            assert begun == expected


def test_the_same_command_goes_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    text = (run / "config.yaml").read_text()
    (tmp_path / "runs" / "config.yaml").write_text(text.replace("devices: auto", "devices: 2"))
    called: list[Path] = []
    devices: list[object] = []

    def resume_run(path: Path, changes: dict[str, object], *_: object) -> None:
        called.append(path)
        devices.append(changes["fit.devices"])

    monkeypatch.setattr(sys, "argv", ["pyro-tvae", "train"])
    monkeypatch.setattr(train, "train_run", lambda config, path, allow, logs: called.append(path / "anew"))
    monkeypatch.setattr(train, "resume_run", resume_run)
    run_with_hydra([*TINY, f"hydra.run.dir={tmp_path / 'runs'}"])
    assert called == [tmp_path / "runs"]
    assert devices == ["auto"]  # as it says now: further processes are started by its words
    run_with_hydra([*TINY, f"hydra.run.dir={tmp_path}/${{now:%Y-%m-%d_%H-%M-%S}}"])
    assert called == [tmp_path / "runs"] * 2


def test_two_processes_do_not_work_on_one_run(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        assert "another process is at work on" in refused(lambda: resume_run(tmp_path), OSError)
        with unfinished(compose(TINY), tmp_path, 0) as begun:
            assert begun is None
    finally:
        holder.kill()  # as SIGKILL does: the system lets go of the folder
        holder.communicate()
    with unfinished(compose(TINY), tmp_path, 0) as begun:
        assert begun == Run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.yaml"]


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    file, link = tmp_path / "there" / "a", tmp_path / "link"
    file.parent.mkdir()
    file.write_text("old")
    link.symlink_to(file)
    with atomic_write(link) as partial:
        assert partial.parent == file.parent  # elsewhere a rename is a copy
        partial.write_text("new")
    assert (link.is_symlink(), file.read_text()) == (True, "new")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="others have no masks of permissions")
def test_a_read_only_file_is_not_replaced(tmp_path: Path) -> None:
    file, owner = tmp_path / "a", os.geteuid()
    file.write_text("kept")
    file.chmod(0o444)
    tmp_path.chmod(0o777)
    before = os.getcwd()
    os.chdir(tmp_path)  # whose parents another user may not enter
    try:
        if owner == 0:  # whom no mask keeps out
            os.seteuid(65534)
        said = refused(lambda: atomic_write("a").__enter__(), OSError)
        names = os.listdir()
    finally:
        os.seteuid(owner)
        os.chdir(before)
    assert (
        said
        == "a cannot be written (Permission denied); choose a place that can be. What was there before is as it was."
    )
    assert (names, file.read_text()) == (["a"], "kept")


def test_a_file_whose_name_is_as_long_as_can_be_is_written(tmp_path: Path) -> None:
    """The name that it has meanwhile is longer by a number and a suffix; letters take up to four bytes."""
    for name in ("o" * 255, "ö" * 127, "🌀" * 63):
        with atomic_write(tmp_path / name) as partial:
            partial.write_text(name)
        assert (tmp_path / name).read_text() == name


def test_a_process_of_joblibs_ends_after_its_parent() -> None:
    """It would train on, and hold its run."""
    script = """
import multiprocessing, os, time
from pyro_tvae.experiments.interruption import leave_to_parent
if os.fork() == 0:
    if os.fork() == 0:
        multiprocessing.current_process = type("LokyProcess", (), {})
        leave_to_parent()
        print("working", flush=True)
        time.sleep(120)
        print("trained on", flush=True)
    time.sleep(3)
    os._exit(9)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )  # reads to its end
    assert (ended.stdout, ended.stderr) == ("working\n", "")


DROPPED = {
    "a destructor": "class Closing:\n    def __del__(self):\n        told()\nClosing()",
    "a bare except": "try:\n    told()\nexcept:\n    pass",
}


@pytest.mark.parametrize("drops", DROPPED)
def test_a_signal_that_is_dropped_is_raised_again(drops: str) -> None:
    """And one that is on its way up is left alone, however long that takes."""
    script = """
import os, signal, sys, time
from pyro_tvae.experiments.interruption import catch_signals, goes_on_with
def told():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
catch_signals()
with goes_on_with("go on."):
    try:
        exec(sys.argv[1])
        time.sleep(20)
    finally:
        time.sleep(1.2)
        print("closed", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", script, DROPPED[drops]], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (143, "closed\n")
    assert ended.stderr == "\npyro-tvae: interrupted; go on.\n"


@pytest.mark.parametrize("end", ["SystemExit(1)", "SystemExit()", "SystemExit(143)", "RuntimeError()", "EOFError()"])
def test_whatever_a_library_makes_of_a_signal_ends_with_its_status(end: str) -> None:
    """Hydra ends with 1 after an error, Lightning with 0 after the batch in which its own handler heard SIGTERM."""
    script = f"""
import os, signal, sys
from pyro_tvae.experiments import cli
from pyro_tvae.experiments.commands import hydra_entry
def run(*_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except:
        pass
    failed = {end}
    failed.__context__ = None
    raise failed
hydra_entry.run_with_hydra = run
sys.argv = ["pyro-tvae", "train"]
cli.main()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 143
    assert re.fullmatch(r"\npyro-tvae: interrupted; [^\n]+\n", ended.stderr)


def test_what_loads_data_says_nothing_of_a_reader_that_was_interrupted() -> None:
    script = """
import multiprocessing, os, socket, time
from multiprocessing.resource_sharer import DupFd
from pyro_tvae.experiments.interruption import catch_signals
catch_signals()
ours, theirs = multiprocessing.Pipe()
if os.fork() == 0:
    theirs.send(DupFd(1)._id[0])
    theirs.recv()
    multiprocessing.resource_sharer.stop()
    os._exit(0)
with socket.socket(socket.AF_UNIX) as reader:
    reader.connect(ours.recv())
time.sleep(0.5)
ours.send("enough")
print(os.wait()[1])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_a_process_of_joblibs_leaves_ctrl_c_and_hangups_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    loky = pytest.importorskip("joblib.externals.loky.backend.process")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        leave_to_parent()  # here it is nobody else's
        assert all(signal.getsignal(number) is handler for number, handler in before.items())
        monkeypatch.setattr("multiprocessing.current_process", loky.LokyProcess)
        leave_to_parent()
        ignored = {number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN}
        assert ignored == {*SIGNALS} - {signal.SIGTERM}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_interruption_ends_what_joblib_would_wait_for() -> None:
    """As after a second Ctrl-C, which had stopped joblib from ending its processes: their trainings take hours."""
    pytest.importorskip("joblib")
    script = """
import os, signal, time
from joblib.externals.loky import get_reusable_executor
from pyro_tvae.experiments.interruption import catch_signals, goes_on_with
catch_signals()
with goes_on_with("go on."):
    executor = get_reusable_executor(2)
    jobs = [executor.submit(time.sleep, 600) for _ in range(2)]
    executor.submit(print, 1)
    while not all(job.running() for job in jobs):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (130, "\npyro-tvae: interrupted; go on.\n")
