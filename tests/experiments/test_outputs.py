"""Files that commands write: refused before anything is computed, and never at the price of another one."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from untrained_runs import make_run

import pyro_tvae
from pyro_tvae.experiments.benchmarks import run_suite
from pyro_tvae.experiments.commands import calibrate, compare, evaluate, likelihood, posterior
from pyro_tvae.experiments.commands.calibrate import calibrate_run
from pyro_tvae.experiments.commands.compare import compare_runs
from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run, standing
from pyro_tvae.experiments.commands.likelihood import likelihood_run
from pyro_tvae.experiments.commands.posterior import posterior_run
from pyro_tvae.experiments.commands.train import resume_run
from pyro_tvae.experiments.reports import figures
from pyro_tvae.experiments.runs.outputs import check_replaceable, shown_on
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.experiments.studies.cells import judged
from pyro_tvae.files import atomic_write
from pyro_tvae.inference import from_netcdf


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_page_takes_the_place_of_nothing_else(overwrite: bool, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    with pytest.raises(ValueError, match=r"where the page goes; choose another suffix, such as .*report\.nc"):
        check_replaceable(page, {}, overwrite, page=page)
    page.write_text("of a run")
    if overwrite:
        check_replaceable(tmp_path / "report.nc", {}, overwrite, page=page)
    else:
        with pytest.raises(FileExistsError, match=r"report\.html is there already, where the page goes; give --overw"):
            check_replaceable(tmp_path / "report.nc", {}, overwrite, page=page)
    assert page.read_text() == "of a run"
    assert [*tmp_path.iterdir()] == [page]


def test_the_commands_with_pages_leave_those_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", "plain")
    (run / "report.html").write_text("of the run")
    monkeypatch.setattr(posterior, "to_arviz", None)
    monkeypatch.setattr(calibrate, "calibration", None)
    for begun in (posterior_run, calibrate_run):
        with pytest.raises(FileExistsError, match="where the page goes"):
            begun(run, output=run / "report.nc")
    assert (run / "report.html").read_text() == "of the run"


def test_a_file_that_cannot_be_written_is_refused_before_it_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = make_run(tmp_path / "run", "plain"), make_run(tmp_path / "other", "plain")
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "file").write_text("mine")
    for module, name in ((posterior, "to_arviz"), (calibrate, "calibration"), (likelihood, "log_likelihood")):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(compare, "compare", None)
    for output in (tmp_path / "folder.nc", tmp_path / "file" / "a.nc"):
        for begun in (posterior_run, calibrate_run, likelihood_run):
            with pytest.raises(OSError, match="cannot be written"):
                begun(run, output=output, overwrite=True)
        with pytest.raises(OSError, match="cannot be written"):
            compare_runs([run, other], output=output, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
    assert [*(tmp_path / "folder.nc").iterdir()] == []


def killed_at(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, call: int) -> None:
    """Let a function end as a process that is interrupted at one of its calls, counted from 1."""
    whole, calls = getattr(module, name), itertools.count(1)

    def kills(*given: object, **options: object) -> object:
        if next(calls) == call:
            raise KeyboardInterrupt
        return whole(*given, **options)

    monkeypatch.setattr(module, name, kills)


def rows(run: Path) -> list[dict[str, object]]:
    record = json.loads((run / "likelihood.json").read_text())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in record["rows"]]


@pytest.fixture
def plain_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, which take seconds."""

    def write_page(page: Path, *_: object, **__: object) -> Path:
        page.write_text("a page")
        return page

    monkeypatch.setattr(posterior, "write_page", write_page)
    monkeypatch.setattr(calibrate, "write_page", write_page)
    monkeypatch.setattr(evaluate, "draw", lambda *_: [])


FEW: dict[str, Any] = {"simulations": 40, "draws": 9, "bins": 2}
K: dict[str, Any] = {"particles": [1, 2, 30], "sequences": 2, "frame_particles": 2, "temperatures": 2, "chains": 1}
# command -> how it is run, its file, what is interrupted at which call, and what its file says
REPLACED: dict[str, tuple[Callable[..., object], str, tuple[ModuleType, str, int], Callable[[Path], object]]] = {
    "likelihood": (
        lambda run, **options: likelihood_run(run, **K, **options),
        "likelihood.json",
        (likelihood, "log_likelihood", 4),
        rows,
    ),
    "annealing": (
        lambda run, **options: likelihood_run(run, **K, **options),
        "likelihood.json",
        (likelihood, "bracket", 1),
        rows,
    ),
    "calibrate": (
        lambda run, **options: calibrate_run(run, **FEW, **options),
        "calibration.nc",
        (calibrate, "calibration", 2),
        lambda run: xarray.load_dataset(run / "calibration.nc", engine="h5netcdf"),
    ),
    "posterior": (
        lambda run, **options: posterior_run(run, draws=4, sequences=2, **options),
        "posterior.nc",
        (posterior, "verdict", 1),
        lambda run: from_netcdf(run / "posterior.nc").posterior["z"].values.tolist(),
    ),
}


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.parametrize("name", REPLACED)
def test_what_was_there_before_stays_until_the_new_one_is_whole(name: str, tmp_path: Path) -> None:
    command, file, interrupted, said = REPLACED[name]
    run, other = make_run(tmp_path / "run", "plain"), tmp_path / "other"
    shutil.copytree(run, other)
    command(run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    module, function, call = interrupted
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, module, function, call)
        with pytest.raises(KeyboardInterrupt):
            command(run, seed=1, overwrite=True)
    assert {path: (run / path).read_bytes() for path in before} == before
    begun = {path.name for path in run.iterdir()} - {*before}
    assert len(begun - {".lock"}) == (name != "posterior")
    if name != "posterior":  # whose draws are one estimate
        with pytest.MonkeyPatch.context() as patch:  # from the beginning it would get as far again
            again = ("annealed_importance", 1) if name == "annealing" else (function, call)
            killed_at(patch, module, *again)
            command(run, seed=1, overwrite=True)
    else:
        command(run, seed=1, overwrite=True)
    command(other, seed=1)
    one, two = said(run), said(other)
    assert one.identical(two) if isinstance(one, xarray.Dataset) else one == two
    assert {path.name for path in run.iterdir()} - {".lock"} == {*before} - {".lock"}
    assert (run / file).read_bytes() != before[file]


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.parametrize("name", [*REPLACED, "compare"])
def test_what_another_one_is_making_is_not_made_twice(name: str, tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run", "plain"), make_run(tmp_path / "other", "plain")
    command, file, (module, function, _), _ = REPLACED.get(name, (None, "compared.json", (compare, "compare", 1), None))
    if command is None:
        output = run / file

        def command(run: Path, **options: Any) -> object:
            return compare_runs([run, other], particles=2, sequences=2, output=output, **options)

    whole, answers = getattr(module, function), list[BaseException | None]()

    def meanwhile(*given: object, **options: object) -> object:
        if not answers:  # from another thread, which has as little to do with this one as another process
            answers.append(None)
            with ThreadPoolExecutor(1) as threads:
                answers[0] = threads.submit(command, run, seed=1).exception()
        return whole(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, function, meanwhile)
        command(run)
    assert isinstance(answers[0], BlockingIOError)
    assert re.fullmatch(f"another process is making .*{file}; wait for its end, or give --output .*", str(answers[0]))
    with pytest.raises(FileExistsError, match="was made with other seed"):
        command(run, seed=1)
    assert not [*run.glob(".*.lock")]

    def copied_in(*given: object, **options: object) -> object:  # by what asks for no lock
        (run / file).write_text("copied in")
        return whole(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, function, copied_in)
        with pytest.raises(ValueError, match=f"{file} was written by something else meanwhile, and stays"):
            command(run, seed=1, overwrite=True)
    assert (run / file).read_text() == "copied in"
    assert (run / file).with_stem(f"{Path(file).stem}-1").stat().st_size > 100


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_something_else_writes_meanwhile_stays_and_so_does_what_was_made(
    there: bool, tmp_path: Path
) -> None:
    path, page = tmp_path / "posterior.nc", tmp_path / "posterior.html"
    page.touch()
    if there:
        path.write_text("old")

    def write() -> None:
        with shown_on(path, page) as partial:
            partial.write_text("made")
            path.write_text("copied in")

    for name in ("posterior-1.nc", "posterior-2.nc"):
        with pytest.raises(
            ValueError, match=rf"posterior.nc was written by something else meanwhile, .* is .*{name}\.$"
        ):
            write()
        assert (tmp_path / name).read_text() == "made"
    assert path.read_text() == "copied in"
    assert {file.name for file in tmp_path.iterdir()} == {"posterior.nc", "posterior.html", *("posterior-1.nc", name)}


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.parametrize("name", ["calibrate", "posterior", "evaluate"])
def test_no_page_lies_beside_a_file_that_it_does_not_show(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    command, file, *_ = REPLACED.get(name, (lambda run, **_: evaluate_run(run), "evaluation.json"))
    page = run / ("report.html" if name == "evaluate" else file.replace(".nc", ".html"))
    command(run)
    old = (run / file).read_bytes()
    assert page.exists()
    module = {"calibrate": calibrate, "posterior": posterior, "evaluate": evaluate}[name]
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, module, "write_page", 1)
        with pytest.raises(KeyboardInterrupt):
            command(run, seed=1, overwrite=True)
    assert (run / file).read_bytes() != old  # seconds, of an evaluation
    assert not page.exists()
    command(run, seed=1, overwrite=True)
    assert page.exists()


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.parametrize("name", ["posterior", "posterior of few groups", "calibrate"])
def test_what_was_added_to_a_file_is_not_lost_to_the_same_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "plain")
    file = run / ("calibration.nc" if name == "calibrate" else "posterior.nc")
    few: dict[str, Any] = {"groups": ["posterior"]} if "few" in name else {}

    def given_again(**options: Any) -> object:
        if name == "calibrate":
            return calibrate_run(run, **{**FEW, "simulations": 60 if file.exists() else 40}, **options)
        return posterior_run(run, draws=4, sequences=2, **few, **options)

    given_again()
    capsys.readouterr()
    xarray.Dataset({"x": ("n", [1.0, 2.0])}).to_netcdf(file, group="mine", mode="a", engine="h5netcdf")
    content = file.read_bytes()
    if name != "calibrate":  # nothing of it is to be made
        (run / "posterior.html").unlink()
        given_again()
        assert (run / "posterior.html").exists()
        assert "stays as it is; its page is written anew" in capsys.readouterr().out
    else:
        with pytest.raises(
            FileExistsError, match=r"\.nc holds mine, which was added to it and would be lost; give --ov"
        ):
            given_again()
    assert file.read_bytes() == content
    given_again(overwrite=True)
    assert file.read_bytes() != content


@pytest.mark.usefixtures("plain_pages")
def test_a_variable_that_was_added_to_ranks_is_neither_one_nor_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    file, _, before = calibrate_run(run, **{**FEW, "simulations": 40})
    notes = {"steps": ("simulation", np.arange(40)), "note": ((), "of mine")}
    xarray.Dataset(notes).to_netcdf(file, mode="a", engine="h5netcdf")
    content = file.read_bytes()
    *_, verdict = calibrate_run(run, **{**FEW, "simulations": 40})
    assert verdict == before
    with pytest.raises(FileExistsError, match=r"\.nc holds note, steps, which was added to it and would be lost"):
        calibrate_run(run, **{**FEW, "simulations": 60})
    assert file.read_bytes() == content


@pytest.mark.usefixtures("plain_pages")
@pytest.mark.parametrize("simulations", [40, 60])
def test_what_was_added_to_ranks_is_not_lost_to_more_of_them_that_were_begun(
    simulations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "plain")
    file, *_ = calibrate_run(run, **{**FEW, "simulations": 40})
    with monkeypatch.context() as patched:
        killed_at(patched, calibrate, "calibration", 2)
        with pytest.raises(KeyboardInterrupt):
            calibrate_run(run, **{**FEW, "simulations": 400})
    assert [*run.glob("*unfinished*")]
    xarray.Dataset({"x": ("n", [1.0, 2.0])}).to_netcdf(file, group="mine", mode="a", engine="h5netcdf")
    content = file.read_bytes()
    with pytest.raises(FileExistsError, match=r"\.nc holds mine, which was added to it and would be lost"):
        calibrate_run(run, **{**FEW, "simulations": simulations})
    assert file.read_bytes() == content


@pytest.mark.usefixtures("plain_pages")
def test_what_was_begun_is_not_begun_anew_since_it_cannot_be_read_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By another program that holds it, or a network disk that hiccups; what is damaged is put aside."""
    run = make_run(tmp_path / "run", "plain")
    with monkeypatch.context() as patched:
        killed_at(patched, calibrate, "calibration", 2)
        killed_at(patched, likelihood, "log_likelihood", 2)
        for command in (lambda: calibrate_run(run, **FEW), lambda: likelihood_run(run, particles=[1, 5])):
            with pytest.raises(KeyboardInterrupt):
                command()
    ranks, record = (next(run.glob(f"{name}.unfinished*")) for name in ("calibration", "likelihood"))
    before = ranks.read_bytes(), record.read_bytes()
    with ranks.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does
        with pytest.raises(
            OSError, match=r"unfinished-\w+\.nc cannot be read \(.*\); see to it that it can be, and try"
        ):
            calibrate_run(run, **FEW)
    with monkeypatch.context() as patched:
        read = Path.read_text

        def fails(path: Path, *given: Any, **options: Any) -> str:
            if path == record:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(path, *given, **options)

        patched.setattr(Path, "read_text", fails)
        with pytest.raises(
            OSError, match=r"unfinished-\w+\.json cannot be read \(Input/output error\); see to it that"
        ):
            likelihood_run(run, particles=[1, 5])
    assert (ranks.read_bytes(), record.read_bytes()) == before
    with monkeypatch.context() as patched:
        killed_at(patched, calibrate, "calibration", 1)  # what was begun is gone on with
        killed_at(patched, likelihood, "log_likelihood", 2)
        with pytest.raises(KeyboardInterrupt):
            calibrate_run(run, **FEW)
        likelihood_run(run, particles=[1, 5])
    assert not record.exists()
    content = ranks.read_bytes()[:-100]
    ranks.write_bytes(content)
    calibrate_run(run, **FEW)
    aside = ranks.with_stem(f"{ranks.stem}-1")
    assert aside.read_bytes() == content
    assert f"{ranks} could not be read, and is {aside} now" in capsys.readouterr().out


def test_rows_that_are_kept_stay_kept_while_further_ones_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "plain")
    with monkeypatch.context() as patched:
        killed_at(patched, likelihood, "log_likelihood", 3)
        with pytest.raises(KeyboardInterrupt):
            likelihood_run(run, particles=[1, 5, 9])
    rows, write = [], likelihood._write

    def counts(path: Path, record: Any, *given: Any) -> None:
        rows.append(len(record["rows"]))
        write(path, record, *given)

    monkeypatch.setattr(likelihood, "_write", counts)
    likelihood_run(run, particles=[1, 5, 9])
    assert rows == [3, 3]  # what was kept and the further row, and the whole file


@pytest.mark.usefixtures("plain_pages")
def test_room_for_what_is_computed_is_kept_until_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up meanwhile took a comparison of hours, and all draws of a sampler."""
    runs = [make_run(tmp_path / name, "plain") for name in ("one", "other")]
    kept = dict[str, int]()

    def seen(module: ModuleType, name: str) -> None:
        whole = getattr(module, name)

        def sees(*given: object, **options: object) -> object:
            kept[name] = sum(room.stat().st_blocks * 512 for room in tmp_path.rglob("room"))
            return whole(*given, **options)

        monkeypatch.setattr(module, name, sees)

    seen(evaluate, "evaluate")
    seen(compare, "compare")
    seen(compare, "write_text")
    seen(posterior, "sample_nuts")
    evaluate_run(runs[0])
    compare_runs(runs, output=tmp_path / "table.json", particles=2, sequences=3)
    posterior_run(runs[0], method="nuts", draws=4, chains=1, warmup=2, sequences=2)
    assert kept.pop("write_text") == 0
    assert kept["sample_nuts"] > (runs[0] / "posterior.nc").stat().st_size / 2
    assert all(size >= 2**18 for size in kept.values())
    assert not [
        path for path in tmp_path.rglob("*") if path.name.endswith((".json.lock", ".nc.lock", ".partial", "room"))
    ]


def test_what_a_hand_added_to_a_record_outlasts_the_same_command(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, "plain") for name in ("one", "other")]
    table, few = tmp_path / "table.json", {"particles": 2, "sequences": 3}
    commands: dict[Path, Callable[..., object]] = {
        runs[0] / "likelihood.json": lambda **options: likelihood_run(runs[0], particles=[1, 2], **options),
        table: lambda **options: compare_runs(runs, output=table, **few, **options),  # type: ignore[arg-type]
    }
    for file, command in commands.items():
        command()
        whole = json.loads(file.read_text())
        file.write_text(json.dumps({"caption": "mine", **whole, "rows": []}))
        command()
        again = json.loads(file.read_text())
        assert (again["caption"], {*again}) == ("mine", {*whole, "caption"})
        assert len(again["rows"]) == len(whole["rows"])
        file.write_text(json.dumps({**whole, "caption": "mine", "request": {**whole["request"], "seed": 5}}))
        command(overwrite=True)
        assert {*json.loads(file.read_text())} == {*whole}  # of another request
    evaluate_run(runs[0])
    file = runs[0] / "evaluation.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({"caption": "mine", **whole}))
    evaluate_run(runs[0], overwrite=True)
    assert {*json.loads(file.read_text())} == {*whole, "caption"}
    file.write_text(json.dumps({"caption": "mine", **whole, "weights": {"model.safetensors": "of another model"}}))
    evaluate_run(runs[0], overwrite=True)
    assert {*json.loads(file.read_text())} == {*whole}


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "history.json", "../mine.ckpt"])
def test_no_output_takes_the_place_of_what_was_trained(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    (tmp_path / "mine.ckpt").write_bytes(b"mine")
    (run / "history.json").write_text('{"rows": [], "seconds": 1.0}')
    content = (run / name).read_bytes()
    for command in (posterior_run, calibrate_run, likelihood_run):
        with pytest.raises(ValueError, match="is what a training made, and --overwrite replaces none of it"):
            command(run, output=run / name, overwrite=True)
    assert (run / name).read_bytes() == content


@pytest.mark.usefixtures("plain_pages")
def test_a_variable_that_was_added_to_draws_is_not_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    file, page = posterior_run(run, draws=4, sequences=2, variables=["z"])
    xarray.Dataset({"mine": ("n", [1.0])}).to_netcdf(file, group="posterior", mode="a", engine="h5netcdf")
    content = file.read_bytes()
    page.unlink()
    posterior_run(run, draws=4, sequences=2, variables=["z"])
    assert file.read_bytes() == content
    assert page.exists()


@pytest.mark.usefixtures("plain_pages")
def test_a_damaged_file_of_ranks_is_replaced_where_that_is_asked_for_and_what_was_begun_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "plain")
    with monkeypatch.context() as patched:
        killed_at(patched, calibrate, "calibration", 2)
        with pytest.raises(KeyboardInterrupt):
            calibrate_run(run, **FEW)
    [begun] = run.glob("*unfinished*")

    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 5")

    with monkeypatch.context() as patched:
        patched.setattr("xarray.open_dataset", no_memory)
        with pytest.raises(RuntimeError, match="allocate memory"):  # of which no file is the cause
            calibrate_run(run, **FEW)
    assert begun.exists()

    def no_files(*_: object, **__: object) -> None:
        raise OSError("Unable to synchronously open file (errno = 24, error message = 'Too many open files')")

    with monkeypatch.context() as patched:
        patched.setattr("xarray.open_dataset", no_files)
        with pytest.raises(OSError, match="Too many open files"):
            calibrate_run(run, **FEW)
    assert begun.exists()

    def damaged(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to get group info (incorrect metadata checksum after all read attempts)")

    with monkeypatch.context() as patched:
        patched.setattr("xarray.open_dataset", damaged)
        calibrate_run(run, **FEW)
        assert not begun.exists()
        before = (run / "calibration.nc").read_bytes()
        with pytest.raises(
            ValueError, match=r"calibration\.nc is damaged .*; put a copy of it back, or give --overwrite"
        ):
            calibrate_run(run, **FEW)
        assert (run / "calibration.nc").read_bytes() == before
        calibrate_run(run, **FEW, overwrite=True)
        patched.setattr("h5py.File", damaged)
        with pytest.raises(FileExistsError, match=r"calibration\.nc is there already"):
            calibrate_run(run, **FEW)


@pytest.mark.usefixtures("plain_pages")
def test_an_evaluation_beside_models_that_are_lost_is_replaced_only_where_that_is_asked_for(tmp_path: Path) -> None:
    """As in a run's folder that was copied in part: the new one would have fewer columns."""
    run = make_run(tmp_path / "run", "plain")
    shutil.copy(run / "model.safetensors", run / "untrained.safetensors")
    evaluate_run(run)
    before = (run / "evaluation.json").read_bytes()
    (run / "untrained.safetensors").unlink()
    with pytest.raises(FileExistsError, match=r"json was made with untrained.safetensors, which the folder lacks now;"):
        evaluate_run(run)
    assert (run / "evaluation.json").read_bytes() == before
    evaluate_run(run, overwrite=True)
    assert "untrained" not in json.loads((run / "evaluation.json").read_text())["measures"]


@pytest.mark.usefixtures("plain_pages")
def test_an_evaluation_of_other_weights_is_shown_nowhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "plain")
    evaluate_run(run)
    old = (run / "evaluation.json").read_text()
    model, guide = pyro_tvae.load(run / "model.safetensors")
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.5)
    pyro_tvae.save(run / "model.safetensors", model, guide)
    again = re.escape("is of other weights than model.safetensors holds now; judge the run again: pyro-tvae evaluate")
    with pytest.raises(ValueError, match=again):
        report_run(run)
    with pytest.raises(ValueError, match=again):
        judged(Run(run))
    (run / "annealed.json").touch()
    with pytest.raises(ValueError, match=r"so is annealed\.json beside it: move that away, and judge the run again"):
        judged(Run(run))
    resume_run(run)
    assert standing(Run(run)) is not None
    assert json.loads((run / "evaluation.json").read_text())["measures"] != json.loads(old)["measures"]
    report_run(run)
    # A record of a former version does not say of which weights it is.
    (run / "evaluation.json").write_text(json.dumps({k: v for k, v in json.loads(old).items() if k != "weights"}))
    report_run(run)


@pytest.mark.usefixtures("plain_pages")
def test_what_is_of_another_training_is_told_on_the_page_and_in_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(make_run(tmp_path / "run", "plain"))
    run.write("history.json", {"rows": [], "seconds": 1.0})
    run.end_training()
    evaluate_run(run.path)
    assert judged(run)
    assert "pyro-tvae: " not in capsys.readouterr().err
    for name in ("config.yaml", "history.json"):
        file = run.path / name
        before = file.read_text()
        file.write_text(before.replace("seed: 0", "seed: 7").replace("1.0", "2.0"))
        said = f"{name} in {run} is not what it was when the training ended"
        report_run(run.path)
        assert f"{said}: what is shown may not belong together" in capsys.readouterr().err
        assert said in (run.path / "report.html").read_text()
        with pytest.raises(ValueError, match=re.escape(f"{said}, and a study is of runs as they were trained")):
            judged(run)
        file.write_text(before)
    report_run(run.path)
    assert "pyro-tvae: " not in capsys.readouterr().err
    # An older run does not say; another model is seen all the same.
    (run.path / "trained.json").unlink()
    shutil.copy(make_run(tmp_path / "roll", "roll") / "model.safetensors", run.path)
    for command in (evaluate_run, likelihood_run):
        with pytest.raises(ValueError, match=r"model.safetensors holds another model than config.yaml beside it desc"):
            command(run.path)


@pytest.mark.usefixtures("plain_pages")
def test_the_digest_that_is_recorded_is_of_the_weights_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = Run(make_run(tmp_path / "run", "plain")), tmp_path / "other.safetensors"
    model, guide = pyro_tvae.load(run.path / "model.safetensors")
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.5)
    pyro_tvae.save(other, model, guide)
    options: dict[str, Any] = {"particles": [2], "sequences": 2}
    before = likelihood_run(run.path, output=tmp_path / "before.json", **options)
    made, loading = Run._made, pyro_tvae.load

    def swap(self: Run, config: Any) -> Any:
        shutil.copy(other, run.path / "model.safetensors")
        return made(self, config)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_made", swap)
        during = likelihood_run(run.path, output=tmp_path / "during.json", **options)
    assert during["request"] == before["request"]
    assert during["rows"][0]["per_frame"] == before["rows"][0]["per_frame"]

    def slow(path: Path, *device: Any) -> Any:
        pair = loading(path, *device)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        pyro_tvae.save(path, model, guide)
        return pair

    monkeypatch.setattr(pyro_tvae, "load", slow)
    for command in (evaluate_run, calibrate_run):
        with pytest.raises(
            ValueError, match=r"model\.safetensors was replaced while it was read; give the command aga"
        ):
            command(run.path)


def test_a_benchmark_replaces_a_record_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_tvae.experiments.benchmarks import startup

    output = tmp_path / "record.json"
    output.write_text("mine")
    with pytest.raises(FileExistsError, match=r"record.json is there already, and is no record of benchmarks; choose"):
        run_suite(["startup"], output=output, progress=False)
    of_before = json.dumps({"kind": "benchmark", "startup": {}})
    output.write_text(of_before)
    monkeypatch.setattr(startup, "run", lambda **_: {"seconds": 1.0})
    monkeypatch.setattr(startup, "print_record", lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        killed_at(patch, startup, "run", 1)
        with pytest.raises(KeyboardInterrupt):
            run_suite(["startup"], output=output, progress=False)
    assert output.read_text() == of_before
    run_suite(["startup"], output=output, progress=False)
    assert json.loads(output.read_text())["startup"] == {"seconds": 1.0}
    # What was finished before the interruption is not lost to the same command.
    [former] = [path for path in tmp_path.iterdir() if path != output]
    assert "unfinished" in former.name
    with ThreadPoolExecutor(1) as other:

        def at_once(**_: object) -> dict[str, float]:
            with pytest.raises(BlockingIOError, match=r"another process is making .*record\.json; wait for its end"):
                other.submit(run_suite, ["startup"], output=output, progress=False).result()
            return {"seconds": 2.0}

        monkeypatch.setattr(startup, "run", at_once)
        run_suite(["startup"], output=output, progress=False)
    assert json.loads(output.read_text())["startup"] == {"seconds": 2.0}
    monkeypatch.setattr(startup, "run", lambda **_: {"seconds": 3.0})
    run_suite(["startup"], output=output, progress=False, threads=1)  # which is another measurement
    [aside] = [path for path in tmp_path.iterdir() if path != output and "unfinished" not in path.name]
    assert json.loads(aside.read_text())["command"] != json.loads(output.read_text())["command"]
    of_others = json.dumps({"kind": "benchmark", "startup": {}, "gradients": {}})
    output.write_text(of_others)
    with pytest.raises(
        FileExistsError, match=r"record\.json holds gradients, which was not asked for and would be lost"
    ):
        run_suite(["startup"], output=output, progress=False)
    assert output.read_text() == of_others


@pytest.mark.skipif(os.name != "posix", reason="others have no masks of permissions")
@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022])
def test_files_are_as_private_as_their_owner_wants_them(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "text") as partial:
            partial.write_text("mine")
        pyro_tvae.save(tmp_path / "weights", *pyro_tvae.load(make_run(tmp_path / "run", "plain") / "model.safetensors"))
    finally:
        os.umask(before)
    for name in ("text", "weights"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


@pytest.mark.skipif(os.name != "posix", reason="others have no masks of permissions")
def test_what_others_could_read_they_still_can_when_it_is_written_anew(tmp_path: Path) -> None:
    """As in a group's folder, where the one who writes last has a stricter mask than the others."""
    path = tmp_path / "evaluation.json"
    path.write_text("ours")
    path.chmod(0o664)
    before = os.umask(0o077)
    try:
        with atomic_write(path) as partial:
            partial.write_text("ours, anew")
    finally:
        os.umask(before)
    assert path.read_text() == "ours, anew"
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_a_file_system_without_modes_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(path: object, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", none)
    for text in ("once", "anew"):
        with atomic_write(tmp_path / "text") as partial:
            partial.write_text(text)
        assert [path.read_text() for path in tmp_path.iterdir()] == [text]


def test_a_split_is_judged_and_drawn_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", "plain")
    drawn: list[tuple[int, ...]] = []
    strip = figures.forward_roll_strip

    def seen(x: object, predicted: object, *rest: object) -> object:
        drawn.append((len(x), len(predicted)))  # type: ignore[arg-type]
        return strip(x, predicted, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(figures, "forward_roll_strip", seen)
    evaluate_run(run, "validation")  # of 4 sequences, where the test split has 6
    assert drawn == [(4, 4)]
    # A later evaluation that was killed when it had drawn, and had not written its record:
    whole = report_run(run).read_text().count("data:image/png")
    picture = run / "figures" / "reconstructions.png"
    picture.write_bytes((run / "figures" / "forward_roll_strip.png").read_bytes())
    assert report_run(run).read_text().count("data:image/png") == whole - 1


def test_what_edited_code_judged_is_not_gone_on_with_by_the_code_of_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "plain")
    with monkeypatch.context() as patch:
        patch.setattr("pyro_tvae.storage.edited_since", lambda *_: {"mine.Guide": "0123"})
        calibrate_run(run, simulations=20, draws=3, bins=4)
        likelihood_run(run, particles=(1,), sequences=2)
        evaluate_run(run)
    for again in (
        lambda: calibrate_run(run, simulations=40, draws=3, bins=4),
        lambda: likelihood_run(run, particles=(1,), sequences=2),
    ):
        with pytest.raises(FileExistsError, match="was made with other code"):
            again()
    said = "Judged by code of mine.Guide that was edited since the training."
    report_run(run)
    assert said in (run / "report.html").read_text()
    evaluate_run(run)
    assert said not in (run / "report.html").read_text()
