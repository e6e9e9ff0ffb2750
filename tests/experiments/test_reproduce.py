"""The command reproduce: every row composes, cells are run once, and tables are the mean and spread over seeds."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from untrained_runs import make_run

import pyro_tvae
from pyro_tvae.experiments.cli import app
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.experiments.studies import reproduce as study_module
from pyro_tvae.experiments.studies.cells import add, added, measured
from pyro_tvae.experiments.studies.comparison import aggregate, markdown
from pyro_tvae.experiments.studies.ledger import Ledger
from pyro_tvae.experiments.studies.registry import STUDIES, Study
from pyro_tvae.experiments.studies.reproduce import CellsFailed, reproduce

QUICK = (
    "data.n_train=16",
    "data.n_validation=8",
    "data.n_test=12",
    "model.n_capsules=2",
    "fit.max_steps=4",
    "fit.progress=false",
    "baseline.enabled=false",
    "evaluation.num_particles=3",
    "fit.accelerator=cpu",
)
TINY = Study(
    "Two guides",
    {"mean field": ("prior=gaussian", "guide=mean_field"), "conditional": ("prior=gaussian", "guide=conditional")},
    QUICK,
    budgets=False,
    annealing={"sequences": 2, "num_chains": 2, "num_temperatures": 3},
    reference="mean field",
)


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_of_every_study_composes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    for training in ("_run", "follow"):
        monkeypatch.setattr(study_module, training, lambda config, run, *_: ran.append((config, run)))
    monkeypatch.setattr(study_module, "_anneal", lambda *_, **__: {})
    monkeypatch.setattr(study_module, "refit", lambda *_: {})
    monkeypatch.setattr(study_module, "_draw", lambda *_: None)
    reproduce(name, seeds=[3], output=tmp_path, progress=lambda _: None)
    assert len(ran) == len(STUDIES[name].rows)
    assert all(config.seed == 3 for config, _ in ran)
    assert len({run for _, run in ran}) == len(ran)


@pytest.mark.parametrize("name", ["annealed.json", "selectivity.json"])
def test_what_a_study_measured_of_former_weights_counts_no_more(name: str, tmp_path: Path) -> None:
    """As where a run was trained anew in its folder, on another machine's last digits; older files do not say."""
    run = Run(make_run(tmp_path / "run", "roll"))
    assert added(run, name) == {}
    add(run, name, {"ais": -1.5, "gap": None})
    assert added(run, name) == {"ais": -1.5, "gap": None}
    model, guide = pyro_tvae.load(run.path / "model.safetensors")
    with torch.no_grad():
        next(guide.parameters()).add_(1e-6)
    pyro_tvae.save(run.path / "model.safetensors", model, guide)
    assert added(run, name) == {}
    (run.path / name).write_text('{"ais": -1.5}')
    assert added(run, name) == {"ais": -1.5}
    (run.path / name).write_text('{"ais": "-1.5"}')
    with pytest.raises(ValueError, match=f"{name} is damaged: it holds words in the place of numbers"):
        added(run, name)


def test_a_study_runs_what_is_missing_and_adds_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "tiny", TINY)
    said: list[str] = []
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "table.md").write_text("mine")
    first = reproduce("tiny", output=tmp_path, progress=said.append)
    assert (tmp_path / "tiny" / "table-1.md").read_text() == "mine"
    assert len(said) == 6  # two cells, each trained, annealed and refitted
    again = reproduce("tiny", output=tmp_path, progress=said.append)
    assert len(said) == 6
    assert json.dumps(again) == json.dumps(first)
    more = reproduce("tiny", seeds=[1], output=tmp_path, progress=said.append)
    assert [row["seeds"] for row in more["rows"]] == [[0, 1], [0, 1]]
    folder = tmp_path / "tiny"
    assert json.loads((folder / "table.json").read_text())["rows"][0]["name"] == "mean field"
    table = (folder / "table.md").read_text()
    assert "| IWAE ↑ |" in table
    assert table.count("±") > 5
    with (folder / "table.csv").open() as file:
        entries = list(csv.DictReader(file))
    assert {entry["seed"] for entry in entries} == {"0", "1"}
    iwae = [float(entry["value"]) for entry in entries if (entry["row"], entry["measure"]) == ("conditional", "iwae")]
    assert iwae == [pytest.approx(value) for value in more["rows"][1]["values"]["iwae"]]
    for row in more["rows"]:
        found: Any = {key: row["values"][f"few/{key}"] for key in ("elbo", "iwae", "laplace", "ais", "gap")}
        best = [max(bounds) for bounds in zip(found["iwae"], found["laplace"], found["ais"], strict=True)]
        assert found["gap"] == pytest.approx(
            [top - elbo for top, elbo in zip(best, found["elbo"], strict=True)], abs=1e-3
        )
        held = [row["values"][f"held/{key}"] for key in ("best", "elbo", "gap")]
        assert all(gap == pytest.approx(best - elbo, abs=1e-3) for best, elbo, gap in zip(*held, strict=True))
    # A guide that was fitted to the model of a reference that was run anew since is fitted again, and is in no table
    # before: not in one that is written when another cell is made.
    path, count = folder / "conditional" / "seed0" / "refitted.json", len(said)
    refitted = json.loads(path.read_text())
    path.write_text(json.dumps(refitted | {"of": "0" * 16, "gap": -1.0}))
    composed = {row: compose([*TINY.rows[row], *TINY.shared]) for row in TINY.rows}
    stale = Ledger("tiny", None, (), composed, tmp_path).write()
    assert [row["seeds"] for row in stale["rows"]] == [[0, 1], [1]]
    reproduce("tiny", output=tmp_path, progress=said.append)
    assert [line.split(": ")[1] for line in said[count:]] == [
        "conditional, seed 0, its guide fitted to the model of mean field"
    ]
    assert json.loads(path.read_text())["of"] == refitted["of"]
    # Nor is it judged by a reference that could not be annealed, for then its own bound would be the best.
    path.unlink()
    next(folder.glob("mean*/seed0/annealed.json")).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(study_module, "_anneal", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(CellsFailed, match=r"annealed\.json is not made yet, by which the guides of the other runs"):
            reproduce("tiny", output=tmp_path, progress=said.append)
    assert not path.exists()
    reproduce("tiny", output=tmp_path, progress=said.append)
    assert json.loads(path.read_text()) == refitted


@pytest.mark.parametrize("given", [{"data.n_test": 9}, None])
def test_a_run_that_was_judged_otherwise_by_hand_is_in_no_table(given: dict[str, Any] | None, tmp_path: Path) -> None:
    record = {"measures": {"trained": {"elbo": -1.0}}, "hardware": "", "versions": {}}
    run = Run(tmp_path)
    run.write("evaluation.json", record | {"data": {"split": "test"}})
    assert measured(run).values["elbo"] == -1
    run.write("evaluation.json", record | {"data": {"given": given} if given else {"split": "validation"}})
    what = r"the test split of other data \(data\.n_test=9\)" if given else "the validation split"
    way_on = f"pyro-tvae evaluate --overwrite {tmp_path}"
    with pytest.raises(ValueError, match=f"evaluation.json is of {what}, .* again: {way_on}"):
        measured(run)


def test_means_and_spreads_leave_out_what_is_not_there() -> None:
    assert aggregate([1.0, 3.0, None, math.nan]) == (2.0, pytest.approx(math.sqrt(2)))
    assert aggregate([5.0]) == (5.0, None)
    mean, spread = aggregate([None])
    assert math.isnan(mean)
    assert spread is None
    rows = [{"name": "a", "seeds": [0, 1], "values": {"iwae": [-1.0, -3.0], "ess": [1.0, 2.0], "roll/hue": [0.5, 0.5]}}]
    record: Any = {"kind": "reproduction", "title": "T", "rows": rows}
    table = markdown(record)
    assert "| IWAE ↑ | -2.0 ± 1.4 |" in table
    assert "| roll correlation, hue | 0.5000 |" in table
    assert "ess" not in table


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("table3", {}, "expected one of table1"),
        ("table1", {"seeds": []}, "at least one seed"),
        ("table1", {"budget": "day"}, "no budget called 'day'"),
        ("guides", {"overrides": ["fit.max_step=3"]}, "fit.max_steps"),
        ("guides", {"overrides": ["seed=5"]}, "seed is set by the study itself; give --seeds"),
        ("guides", {"overrides": ["budget=minutes"]}, "budget is set by the study itself; give --budget"),
        ("guides", {"overrides": ["hydra.verbose=true"]}, "hydra.verbose=true sets nothing in any of these runs"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    name: str, options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        reproduce(name, output=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def trained_by_hand(monkeypatch: pytest.MonkeyPatch, broken: int, error: BaseException) -> list[int]:
    """Put an evaluation in the place of every training, of which that of one seed fails; the seeds of all."""
    seeds: list[int] = []

    def run(config: Any, folder: Path, *_: object) -> None:
        seeds.append(config.seed)
        if config.seed == broken:
            raise error
        record = {"measures": {"trained": {"elbo": -1.0 - config.seed}}, "hardware": "", "versions": {}}
        Run(folder).write("evaluation.json", record)
        Run(folder).write("report.html", "")

    monkeypatch.setattr(study_module, "_run", run)
    return seeds


PLAIN = Study("One guide", {"a": ("prior=gaussian", "guide=mean_field")}, QUICK, budgets=False)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FloatingPointError("the loss is nan at step 3."), "the loss is nan at step 3."),
        (BlockingIOError("another process is at work on it."), "another process is at work on it."),
        (SystemExit(1), "it ended itself with status 1."),
        (RuntimeError("a library's"), "RuntimeError: a library's"),
    ],
)
def test_a_run_that_fails_stops_no_other(
    error: BaseException, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STUDIES, "plain", PLAIN)
    with monkeypatch.context() as patched:
        seeds = trained_by_hand(patched, 1, error)
        with pytest.raises(CellsFailed, match=f"1 run failed, .*\n  plain: a, seed 1: {said}"):
            reproduce("plain", seeds=[1, 0], output=tmp_path, progress=lambda _: None)
        assert seeds == [1, 0]
    [row] = json.loads((tmp_path / "plain" / "table.json").read_text())["rows"]
    assert row["seeds"] == [0]
    seeds = trained_by_hand(monkeypatch, 2, error)  # fails nothing
    [row] = reproduce("plain", seeds=[1, 0], output=tmp_path, progress=lambda _: None)["rows"]
    assert (seeds, row["seeds"]) == ([1], [0, 1])


def test_runs_of_code_that_was_edited_between_them_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "plain", PLAIN)
    trained_by_hand(monkeypatch, 9, RuntimeError())

    def code_in(path: Path) -> dict[str, str]:
        return {"interpreter": "1", "mine.Net": "new" if path.parent.name == "seed1" else "old"}

    monkeypatch.setattr("pyro_tvae.storage.code_in", code_in)
    for seeds in ([0, 2], [0, 1, 2]):
        told: list[str] = []
        reproduce("plain", seeds=seeds, output=tmp_path, progress=told.append)
        for seed in seeds:
            (tmp_path / f"plain/a/seed{seed}/model.safetensors").touch()
    reproduce("plain", seeds=[0, 1, 2], output=tmp_path, progress=told.append)
    said = f"the code of mine.Net was edited between runs in {tmp_path}/plain: a, seed 0; a, seed 2 / a, seed 1. How "
    assert [text.startswith(said) for text in told if "mine.Net" in text] == [True]


def test_classes_that_are_given_are_those_of_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(study_module, "_run", lambda config, *_: made.append(config))
    own = ["network._target_=pyro_tvae.Linear", "optimizer.optimizer._target_=torch.optim.SGD"]
    reproduce("table2", overrides=own, output=tmp_path, progress=lambda _: None)
    assert len(made) == len(STUDIES["table2"].rows)
    assert {config.network._target_ for config in made} == {"pyro_tvae.Linear"}
    assert {config.optimizer.optimizer._target_ for config in made} == {"torch.optim.SGD"}


OTHER = ("optimizer.schedule=null", "+optimizer.optimizer.weight_decay=0.9", "fit.beta=2")


@pytest.mark.parametrize("other", OTHER)
def test_runs_of_other_settings_are_shown_as_no_others(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that are left out or added too; of runs that are here and of those in a record."""
    monkeypatch.setitem(STUDIES, "plain", PLAIN)
    options: dict[str, Any] = {"output": tmp_path / "runs", "progress": lambda _: None}
    for first, then in (((), (other,)), ((other,), ())):
        kept: dict[str, Any] = {"records": tmp_path / "kept", "keep": True, "progress": lambda _: None}
        reproduce("plain", overrides=first, output=tmp_path / "runs", **kept)
        before = (tmp_path / "kept" / "plain.json").read_bytes()
        for seeds in ([0], [0, 1]):
            with pytest.raises(ValueError, match=r"seed0 was made with .*, and .* is asked for; choose another"):
                reproduce("plain", overrides=then, seeds=seeds, **options)
            with pytest.raises(ValueError, match=r"plain.json was made with .* is asked for; --fresh leaves it out"):
                reproduce("plain", overrides=then, seeds=seeds, output=tmp_path / "elsewhere", **kept)
        assert (tmp_path / "kept" / "plain.json").read_bytes() == before
        shutil.rmtree(tmp_path / "runs")
        shutil.rmtree(tmp_path / "kept")


def test_runs_that_another_process_has_made_with_other_settings_are_not_shown_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STUDIES, "plain", PLAIN)
    run, options = study_module._run, {"output": tmp_path, "progress": lambda _: None}

    def meanwhile(*arguments: Any) -> None:
        monkeypatch.setattr(study_module, "_run", run)
        reproduce("plain", seeds=[1], overrides=["fit.max_steps=2"], **options)
        run(*arguments)

    monkeypatch.setattr(study_module, "_run", meanwhile)
    with pytest.raises(ValueError, match=r"seed1 was made with fit.max_steps=2, and 4 is asked for; choose another"):
        reproduce("plain", seeds=[0], **options)


def test_a_run_whose_page_is_missing_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it was killed, or a disk was full, just after it was judged."""
    monkeypatch.setitem(STUDIES, "plain", PLAIN)
    reproduce("plain", output=tmp_path, progress=lambda _: None)
    page, judged = (tmp_path / "plain" / "a" / "seed0" / name for name in ("report.html", "evaluation.json"))
    page.unlink()
    before = judged.read_bytes()
    reproduce("plain", output=tmp_path, progress=lambda _: None)
    assert page.is_file()
    assert judged.read_bytes() == before


def test_another_file_of_the_same_name_is_no_run_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("Films", {"a": ("data=arrays", "data.n_frames=3", "model.capsule_dim=3")}, QUICK)
    monkeypatch.setitem(STUDIES, "films", replace(study, budgets=False))
    for name in ("mine", "theirs", "moved"):
        (tmp_path / name).mkdir()
        films = np.random.default_rng(name == "theirs").random((40, 3, 1, 8, 8), dtype=np.float32)
        np.save(tmp_path / name / "films.npy", films)

    def run(name: str, output: str = "runs", **options: Any) -> Any:
        path = tmp_path / name / "films.npy"
        given = [f"data.source.path={path}", "data.n_train=null", "data.n_test=null", "data.n_validation=null"]
        given.append("data.transformations=null")
        return reproduce("films", overrides=given, output=tmp_path / output, progress=lambda _: None, **options)

    records = {"records": tmp_path / "records", "seeds": [1]}
    assert run("mine", records=tmp_path / "records", keep=True) == run("moved")
    with pytest.raises(CellsFailed, match=r"seed1 would be of other data than the runs in .*films.json, by"):
        run("theirs", "others", **records)
    assert not (tmp_path / "others" / "films" / "a" / "seed1").exists()
    (row,) = run("moved", "others of the same", **records)["rows"]
    assert row["seeds"] == [0, 1]
    # In its place, while the rows of a study are made.
    both = dict.fromkeys("ab", study.rows["a"])
    monkeypatch.setitem(STUDIES, "films", replace(study, budgets=False, rows=both))
    shutil.copy(tmp_path / "theirs" / "films.npy", tmp_path / "mine" / "films.npy")
    with pytest.raises(CellsFailed, match=r"b/seed0 would be of other data than .*a/seed0, by its train and"):
        run("mine")
    monkeypatch.setitem(STUDIES, "films", replace(study, budgets=False))
    shutil.copy(tmp_path / "moved" / "films.npy", tmp_path / "mine" / "films.npy")
    with pytest.raises(CellsFailed, match=r"seed0 was begun with other data: its .* not what data.source.path=.*the"):
        run("theirs")


def test_an_interruption_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDIES, "plain", PLAIN)
    seeds = trained_by_hand(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        reproduce("plain", seeds=[1, 0], output=tmp_path, progress=lambda _: None)
    assert seeds == [1]


def test_the_command_lists_what_failed_and_ends_with_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study_module, "_run", lambda *_: (_ for _ in ()).throw(FloatingPointError("no number.")))
    monkeypatch.setitem(STUDIES, "guides", PLAIN)
    ended = CliRunner().invoke(app, ["reproduce", "guides", "--output", str(tmp_path), "--fresh"])
    assert ended.exit_code == 2
    assert "pyro-tvae: 1 run failed, which the same command tries again; all others are done\n" in ended.stderr
    assert ended.stderr.endswith("\n  guides: a, seed 0: no number.\n")
    assert f"tables, figures and runs: {tmp_path}" in ended.stdout


def test_a_run_is_complete_when_nothing_of_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure that memory had no room for is made by the same command; a damaged run costs its cell alone."""
    monkeypatch.setitem(STUDIES, "plain", PLAIN)

    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("pyro_tvae.experiments.evaluation.scoring.equivariance_error", fails)
        with pytest.raises(CellsFailed, match=r"a, seed 0: [^ ]*evaluation.json lacks e_eq, .*not enough memory"):
            reproduce("plain", output=tmp_path, progress=lambda _: None)
    assert json.loads((tmp_path / "plain" / "table.json").read_text())["rows"] == []
    weights = (run := tmp_path / "plain" / "a" / "seed0") / "model.safetensors"
    before = weights.read_bytes()
    [row] = reproduce("plain", output=tmp_path, progress=lambda _: None)["rows"]
    assert row["values"]["e_eq"][0] > 0
    assert weights.read_bytes() == before
    evaluation = json.loads((run / "evaluation.json").read_text())
    # What can never be measured is said beside the numbers.
    (run / "evaluation.json").write_text(json.dumps(evaluation | {"failed": {"iwae": "It cannot.", "figure a": "No."}}))
    [row] = reproduce("plain", output=tmp_path, progress=lambda _: None)["rows"]
    assert row["runs"][0]["notes"] == [*evaluation["notes"], "iwae is left out: It cannot."]
    (run / "evaluation.json").write_text("{")
    trained_by_hand(monkeypatch, 2, MemoryError())
    with pytest.raises(CellsFailed, match=r"plain: a, seed 0: .*evaluation.json is damaged"):
        reproduce("plain", seeds=[0, 1], output=tmp_path, progress=lambda _: None)
    assert json.loads((tmp_path / "plain" / "table.json").read_text())["rows"][0]["seeds"] == [1]
