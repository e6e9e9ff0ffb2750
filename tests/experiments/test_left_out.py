"""What memory or a disk had no room for is said, and made by the same command; what can never be stays left out."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner
from untrained_runs import KINDS, SMALL, make_run

import pyro_tvae
from pyro_tvae.experiments.cli import app
from pyro_tvae.experiments.commands import evaluate, train
from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run, standing
from pyro_tvae.experiments.commands.train import resume_run
from pyro_tvae.experiments.config.building import Parts
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.config.errors import LeftOut, transient
from pyro_tvae.experiments.evaluation.attempts import Attempts
from pyro_tvae.experiments.reports import figures
from pyro_tvae.experiments.runs.run import Run

NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
# As torch and glibc say it.
NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
)


def because(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (NO_MEMORY, True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("std::bad_alloc"), True),
        (ImportError("_isfinite.so: failed to map segment from shared object"), True),
        (NO_ROOM, True),
        (BlockingIOError("busy"), True),
        (RuntimeError("HDF5: write failed: No space left on device"), True),
        (because(RuntimeError("a library's words"), NO_ROOM), True),
        (because(ValueError("a library's words"), MemoryError()), True),
        (because(ValueError("it holds no such name"), FileNotFoundError()), False),
        (ValueError("5 channels cannot be drawn"), False),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_what_may_pass_is_told_from_what_may_not(error: Exception, expected: bool) -> None:
    attempts = Attempts()

    def fails() -> None:
        raise error

    attempts("it", fails, None)
    attempts("what rests on it", lambda: attempts.check("it"), None)
    assert transient(error) is expected
    assert attempts.transient == ({"it", "what rests on it"} if expected else set())


def test_an_interruption_that_a_library_made_an_error_of_is_no_failure() -> None:
    def library() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("a worker has died") from None

    attempts = Attempts()
    with pytest.raises(KeyboardInterrupt):
        attempts("it", library, None)
    assert not attempts.failed


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with untrained weights, whose figures are cheap."""
    run = Run(make_run(tmp_path / "run", "roll"))
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("  enabled: true", "  enabled: false"))
    for name in ("reconstructions", "capsule_stripes", "capsule_traversal", "forward_roll_curve", "forward_roll_strip"):
        monkeypatch.setattr(figures, name, lambda *_: Figure((1, 1)))
    return run


def content(run: Run) -> dict[str, Any]:
    """An evaluation but for what time it took."""
    record = json.loads((run.path / "evaluation.json").read_text())
    del record["seconds"]
    return dict(record)


def files(run: Run) -> dict[str, bytes]:
    shown = [run.path / "evaluation.json", run.path / "report.html", *(run.path / "figures").iterdir()]
    return {path.name: path.read_bytes() for path in shown}


# What is made to fail, how, and what it costs at least.
FAILING = {
    "a measure": ("evaluation.scoring.equivariance_error", MemoryError(), "e_eq"),
    "what measures rest on": ("evaluation.scoring.divergence", NO_MEMORY, "kl"),
    "forecasts": ("evaluation.evaluate.forward_roll", NO_MEMORY, "forward_roll"),
    "a figure": ("reports.figures.reconstructions", NO_ROOM, "figure reconstructions"),
    "a figure that finds no room in the end": ("commands.evaluate._move", NO_ROOM, "figure reconstructions"),
}


@pytest.mark.parametrize(("what", "again"), zip(FAILING, itertools.cycle((resume_run, evaluate_run)), strict=False))
def test_what_found_no_room_is_told_and_made_by_the_same_command(
    what: str, again: Callable[[Path], object], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_run(run.path)
    whole, config = content(run), run.config()
    assert run.ended(config)
    part, error, cost = FAILING[what]
    (run.path / "evaluation.json").unlink()

    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"pyro_tvae.experiments.{part}", fails)
        with pytest.raises(LeftOut, match=rf"lacks .*{cost}.*the same command .*: pyro-tvae evaluate {run}"):
            evaluate_run(run.path)
    record = content(run)
    assert cost in record["transient"]
    assert {*record["transient"]} <= {*record["failed"]}
    assert f"{cost} is left out: " in (run.path / "report.html").read_text()
    assert not run.ended(config)
    again(run.path)
    assert content(run) == whole
    assert run.ended(config)


@pytest.mark.parametrize("what", ["a measure", "a figure"])
def test_an_evaluation_that_is_whole_stays_where_a_new_one_finds_no_room(
    what: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_run(run.path)
    before, (part, error, cost) = files(run), FAILING[what]

    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"pyro_tvae.experiments.{part}", fails)
        with pytest.raises(LeftOut, match=f"stays as it was, whole, since the new one lacks {cost}, for a cause that"):
            evaluate_run(run.path, "validation", overwrite=True)
    assert files(run) == before
    assert run.ended(run.config())


def test_what_can_never_be_is_left_out_for_good(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("5 channels cannot be drawn.")

    monkeypatch.setattr(figures, "reconstructions", fails)
    evaluate_run(run.path)
    assert content(run)["failed"] == {"figure reconstructions": "5 channels cannot be drawn."}
    assert content(run)["transient"] == []
    assert run.ended(run.config())
    assert standing(run) is not None


def test_what_was_judged_by_hand_is_made_again_by_hand(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(figures, "reconstructions", fails)
        with pytest.raises(LeftOut, match=r"pyro-tvae evaluate .* data\.n_test=5 --split validation"):
            evaluate_run(run.path, "validation", data=["data.n_test=5"])
        with pytest.raises(LeftOut, match=r"data\.n_test=5 --split validation"):
            resume_run(run.path)
    assert content(run)["data"]["split"] == "validation"
    evaluate_run(run.path, "validation", data=["data.n_test=5"])
    assert content(run)["transient"] == []


def test_what_was_judged_by_hand_is_put_aside_where_the_run_is_judged_anew(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where its plain VAE was removed and is trained once more; an evaluation of its own kind makes room for it."""
    files = [run.path / f"evaluation{n}.json" for n in ("", "-1", "-2")]
    for split, kept in (("validation", 1), ("test", 1), ("validation", 2)):
        evaluate_run(run.path, split, overwrite=True)
        before, there = files[0].read_bytes(), [path.exists() for path in files[1:]]
        capsys.readouterr()
        train._save(run, "plain_vae.safetensors", cast(Parts, run.load()))
        assert [path.exists() for path in files[1:]] == [n < kept for n in range(2)]
        assert not files[0].exists()
        said = capsys.readouterr().out
        if split == "validation":
            assert f"{files[0]} was of the validation split, and is {files[kept]} now" in said
            assert files[kept].read_bytes() == before
        else:
            assert (said, there) == ("", [True, False])
    loaded = run.load()
    pyro_tvae.save(run.path / "untrained.safetensors", loaded.model, loaded.guide)
    evaluate_run(run.path)
    (run.path / "untrained.safetensors").unlink()
    train._save(run, "plain_vae.safetensors", cast(Parts, run.load()))
    assert f"was beside untrained.safetensors, which is lost, and is {run.path / 'evaluation-3.json'} now" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("call", [1, 3])
def test_an_evaluation_that_is_killed_while_it_draws_leaves_the_former_one(
    call: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_run(run.path)
    before, names = files(run), run.names()
    saved: list[Path] = []
    save = figures.save

    def killed(figure: Figure, path: Path) -> Path:
        saved.append(path)
        if len(saved) == call:
            raise KeyboardInterrupt
        return save(Figure((2, 2)), path)  # another picture than before

    monkeypatch.setattr(figures, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run.path, "validation", overwrite=True)
    assert files(run) == before
    assert run.names() == names


def test_what_killed_processes_were_drawing_goes(run: Run) -> None:
    left = run.path / f".figures-{2**22 + 1}-0123abcd12345678.partial"  # of another machine, and old
    left.mkdir()
    (left / "reconstructions.png").touch()
    os.utime(left, (0, 0))
    evaluate_run(run.path)
    assert not left.exists()


@pytest.mark.parametrize("call", [1, 2])
def test_an_evaluation_that_is_killed_between_its_figures_and_its_record_is_made_again(
    call: int, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_run(run.path)
    whole, move, moved = content(run), evaluate._move, list[Path]()

    def killed(picture: Path, folder: Path) -> None:
        moved.append(picture)
        move(picture, folder)
        if len(moved) == call:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "_move", killed)
        patched.setattr(figures, "save", lambda _, path: path.write_bytes(b"another picture"))
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run.path)
    assert not run.ended(run.config())
    assert standing(run) is None
    report_run(run.path)
    said = f"{', '.join(sorted(path.stem for path in moved))} in {run.path / 'figures'} "
    assert f"pyro-tvae: {said}" in capsys.readouterr().err
    (run.path / "report.html").unlink()
    resume_run(run.path)
    assert content(run) == whole
    record: Any = content(run)
    assert not evaluate._undrawn(record, evaluate._pictures(run, record))


@pytest.mark.parametrize("killed", [True, False])
def test_what_a_run_is_made_from_is_put_back_where_it_was_removed_meanwhile(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, truly = tmp_path / "run", train.fit_parts
    settings = [*SMALL, *KINDS["plain"], "fit.max_epochs=1", "fit.progress=false", "evaluation.num_particles=2"]
    before: dict[str, bytes] = {}

    def removing(*given: Any) -> Any:
        for name in ("config.yaml", "data.json"):
            before[name] = (path / name).read_bytes()
            (path / name).unlink()
        if killed:
            raise KeyboardInterrupt
        return truly(*given)

    monkeypatch.setattr(evaluate, "draw", lambda *_: [])
    with monkeypatch.context() as patched:
        patched.setattr(train, "fit_parts", removing)
        if killed:
            with pytest.raises(SystemExit):
                train.train_run(compose(settings), path)
            assert not Run(path).has("model.safetensors")
        else:
            train.train_run(compose(settings), path)
    assert {name: (path / name).read_bytes() for name in before} == before
    resume_run(path)
    assert Run(path).ended(compose(settings))
    assert Run(path).changed() is None


@pytest.mark.parametrize("way", ["--multirun", "hydra.job.chdir=false"])
def test_the_same_training_or_sweep_makes_what_found_no_room(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [*SMALL, *KINDS["plain"], "fit.max_epochs=1", "fit.progress=false", "evaluation.num_particles=2"]
    words = ["train", *settings, "seed=3", way]
    monkeypatch.setattr(sys, "argv", ["pyro-tvae", *words])

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(evaluate, "draw", lambda *_: [])
    with monkeypatch.context() as patched:
        patched.setattr("pyro_tvae.experiments.evaluation.scoring.equivariance_error", fails)
        assert CliRunner().invoke(app, words).exit_code == 2
    [folder] = {path.parent for path in tmp_path.glob("runs/**/model.safetensors")}
    weights = (folder / "model.safetensors").read_bytes()
    assert content(Run(folder))["transient"] == ["e_eq"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert [path.parent for path in tmp_path.glob("runs/**/model.safetensors")] == [folder]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert content(Run(folder))["transient"] == []
