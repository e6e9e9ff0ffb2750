"""The data of a run: other ones than it was begun with are refused wherever they are built again, and named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from complaints import refused
from typer.testing import CliRunner

from pyro_tvae.experiments.cli import app
from pyro_tvae.experiments.commands import evaluate, hydra_entry, posterior, train
from pyro_tvae.experiments.commands.calibrate import calibrate_run
from pyro_tvae.experiments.commands.compare import compare_runs
from pyro_tvae.experiments.commands.evaluate import evaluate_run
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.commands.likelihood import likelihood_run
from pyro_tvae.experiments.commands.posterior import posterior_run
from pyro_tvae.experiments.commands.train import resume_run, train_run
from pyro_tvae.experiments.config.allowlist import PARTS_ONLY
from pyro_tvae.experiments.config.composition import compose, data_settings, located
from pyro_tvae.experiments.config.errors import ConfigurationError
from pyro_tvae.experiments.datasets import SequenceDataModule, Transformations, digits, dsprites
from pyro_tvae.experiments.interruption import Interrupted
from pyro_tvae.experiments.runs import data as runs_data
from pyro_tvae.experiments.runs.data import fingerprints, other_splits
from pyro_tvae.experiments.runs.run import Run, unfinished
from pyro_tvae.experiments.studies import ledger
from pyro_tvae.inference.fingerprints import alike, fingerprint

SMALL = ["data=sequences", "data.n_frames=4", "model.n_capsules=1", "model.capsule_dim=4", "fit.max_epochs=1"]
SMALL += ["evaluation.num_particles=2", "fit.progress=false", "fit.accelerator=cpu", "baseline.enabled=false"]
SMALL += ["logger=none", "data.source.path=x.npy"]


def film(seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((20, 4, 1, 6, 6), dtype=np.float32)


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """Which would take most of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "draw", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run on them, begun by a path that is relative to it."""
    folder = tmp_path_factory.mktemp("project")
    np.save(folder / "x.npy", film())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_run(compose(SMALL), Path("run"))
    return folder


@pytest.fixture
def own(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another working folder, with other data under the same name; the project is left as it was."""
    np.save(tmp_path / "x.npy", film(1))
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    runs_data._made.cache_clear()
    yield project
    for path in project.rglob("*"):
        if path.is_file() and path not in before:
            path.unlink()
    for path, content in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def measures(run: Path) -> Any:
    return json.loads((run / "evaluation.json").read_text())["measures"]["trained"]["iwae"]


def test_a_run_is_judged_on_its_own_data_from_any_folder(own: Path) -> None:
    assert yaml.safe_load((own / "run" / "config.yaml").read_text())["data"]["source"]["path"] == str(own / "x.npy")
    before = measures(own / "run")
    evaluate_run(own / "run")
    assert measures(own / "run") == before
    record = json.loads((own / "run" / "evaluation.json").read_text())
    assert "given" not in record["data"]
    assert not [note for note in record["notes"] if "other data" in note]


def interrupted(run: Path) -> None:
    """Resume a copy without its weights."""
    if not Path("copy").exists():
        shutil.copytree(run, "copy")
        Path("copy", "model.safetensors").unlink()
    resume_run(Path("copy"))


COMMANDS: dict[str, Callable[[Path], object]] = {
    "evaluate": evaluate_run,
    "posterior": lambda run: posterior_run(run, draws=4, sequences=2),
    "likelihood": lambda run: likelihood_run(run, particles=[1], sequences=2),
    "compare": lambda run: compare_runs([run, Path(shutil.copytree(run, "copy"))], particles=2, sequences=2),
    "resume": interrupted,
    "a done job": lambda run: hydra_entry._trained(Run(run).config(), run, PARTS_ONLY, None),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_replaced_file_is_refused_by_every_command_and_changes_nothing(command: str, own: Path) -> None:
    changed = film()
    rest = int(np.flatnonzero([np.array_equal(one, changed[7]) for one in changed])[0])
    changed[rest, 1, 0, 2, 2] = 1 - changed[rest, 1, 0, 2, 2]  # one pixel of one sequence
    np.save(own / "x.npy", changed)
    before = {path: path.read_bytes() for path in (own / "run").rglob("*") if path.is_file()}
    text = refused(lambda: COMMANDS[command](own / "run"))
    split = next(name for name in ("train", "validation", "test") if f" {name} split is not" in text)
    parts = SequenceDataModule(compose_source(own / "x.npy"), n_frames=4).datasets
    assert any(np.array_equal(one, changed[7]) for one in parts[split].source.pixels.numpy())  # type: ignore[union-attr]
    assert f"its {split} split is not what data.source.path={own / 'x.npy'} gives now" in text
    assert "where it lies now" in text
    assert {path: path.read_bytes() for path in (own / "run").rglob("*") if path.is_file()} == before
    if command != "posterior":  # which draws a page
        shutil.rmtree("copy", ignore_errors=True)
        np.save(own / "x.npy", film())
        runs_data._made.cache_clear()
        COMMANDS[command](own / "run")  # given back


def compose_source(path: Path) -> Any:
    from pyro_tvae.experiments.datasets import arrays

    return arrays(path)


def test_other_data_that_are_named_are_judged_and_the_records_say_so(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = measures(own / "run")
    words = ["evaluate", str(own / "run"), "data.source.path=x.npy"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "give --overwrite to replace it" in " ".join(result.output.split())
    assert measures(own / "run") == before
    result = CliRunner().invoke(app, [*words, "--overwrite"])
    assert result.exit_code == 0, result.output
    record = json.loads((own / "run" / "evaluation.json").read_text())
    assert record["data"]["given"] == {"data.source.path": "x.npy"}
    other = SequenceDataModule(compose_source(tmp_path / "x.npy"), n_frames=4)
    assert not other_splits(record["data"]["splits"], fingerprints(other))
    said = "Judged on the test split, of other data than the run's own: data.source.path=x.npy."
    assert said in record["notes"]
    assert said.replace("'", "&#39;") in (own / "run" / "report.html").read_text().replace("&#x27;", "&#39;")
    assert measures(own / "run") != before
    run = str(own / "run")
    few = ["--particles", "1", "--sequences", "2"]
    result = CliRunner().invoke(app, ["likelihood", run, "data.source.path=x.npy", *few])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["likelihood", run, *few])
    assert "was made with other data; give --overwrite" in result.output
    asked: list[dict[str, Any]] = []

    def ask(path: Path, request: dict[str, Any], *_: Any, **__: Any) -> None:
        asked.append(request)
        raise FileExistsError("enough.")

    monkeypatch.setattr(posterior, "replacing", ask)
    for words in (["data.source.path=x.npy"], []):
        assert CliRunner().invoke(app, ["posterior", run, *words]).exit_code == 2
    assert [request.get("data", {}).get("given") for request in asked] == [{"data.source.path": "x.npy"}, None]
    shutil.copytree(run, "copy")
    words = ["compare", run, "copy", "data.source.path=x.npy", "--particles", "2", "--sequences", "2"]
    result = CliRunner().invoke(app, [*words, "--output", "c.json"])
    assert result.exit_code == 0, result.output
    assert json.loads(Path("c.json").read_text())["request"]["data"]["given"] == {"data.source.path": "x.npy"}


def test_a_project_that_was_moved_names_the_setting_and_takes_its_own_data_alone(own: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(own, tmp_path / "moved"))
    (own / "x.npy").unlink()
    for name, command in COMMANDS.items():
        if name == "a done job":
            command(moved / "run")  # data that are not there are no other ones
            continue
        text = refused(lambda command=command: command(moved / "run"))  # type: ignore[misc]
        assert "x.npy does not exist" in text
        assert "lie elsewhere now, add data.source.path=… to the command." in text
        shutil.rmtree("copy", ignore_errors=True)
    before = measures(moved / "run")
    evaluate_run(moved / "run", data=[f"data.source.path={moved / 'x.npy'}"])
    assert measures(moved / "run") == before
    assert "given" not in json.loads((moved / "run" / "evaluation.json").read_text())["data"]
    (moved / "run" / "model.safetensors").unlink()
    run_with_hydra([f"resume={moved / 'run'}", "data.source.path=moved/x.npy"])
    assert measures(moved / "run") == before
    (moved / "run" / "model.safetensors").unlink()
    text = refused(lambda: run_with_hydra([f"resume={moved / 'run'}", "data.source.path=x.npy"]))
    assert f"its train and validation and test splits are not what data.source.path={tmp_path / 'x.npy'}" in text


@pytest.mark.parametrize("by", ["run", "sweep"])
@pytest.mark.parametrize("there", ["gone", "still there", "others", "another name"])
def test_the_same_command_goes_on_in_a_project_that_was_moved_with_its_data_and_with_no_others(
    own: Path, there: str, by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = measures(own / "run")
    moved = Path(shutil.copytree(own, tmp_path / "moved"))
    for name in ("model.safetensors", "evaluation.json", "report.html"):
        (moved / "run" / name).unlink()
    if there != "still there":  # where it is, one elsewhere may be another version of it
        (own / "x.npy").unlink()
    if there == "others":
        np.save(moved / "x.npy", film(1))
    os.chdir(moved)
    settings = list(SMALL)
    if there == "another name":
        os.rename("x.npy", "y.npy")
        settings.append("data.source.path=y.npy")

    def again() -> None:
        if by == "sweep":
            hydra_entry._trained(compose(settings), Path("run"), PARTS_ONLY, None)
        else:
            run_with_hydra([*settings, "hydra.run.dir=run"])

    if there != "gone":
        said = "was 'VALUE' and is" if by == "sweep" else "holds a run already, which is left as it is"
        assert said.replace("VALUE", str(own / "x.npy")) in refused(again)
        assert not Path("run/model.safetensors").exists()
        return
    again()
    assert ("this command was interrupted before, and goes on" in capsys.readouterr().out) is (by == "run")
    assert measures(moved / "run") == before


@pytest.mark.parametrize("replaced", ["x.npy", "w.npy"])
def test_jobs_that_say_the_same_of_their_data_are_of_one_data_set(
    replaced: str, matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_with_its_matrix(matrix, tmp_path, monkeypatch, [])
    text = Path("run", "config.yaml").read_text()
    Path("run", "config.yaml").write_text(text.replace(str(tmp_path / "gone"), str(tmp_path / "moved")))
    before = Path(replaced).read_bytes()
    np.save(replaced, film(1) if replaced == "x.npy" else np.eye(16, dtype=np.float32) + 0.2)

    def job(folder: str = "next") -> None:
        hydra_entry._trained(compose([*MATRIX, "seed=1"]), Path(folder), PARTS_ONLY, None, Path())

    for folder in ("next", "next/of/seed1"):
        assert "run was begun with " in refused(lambda: job(folder))  # noqa: B023
        assert not Path("next").exists()
    # That of other settings may be another one.
    hydra_entry._trained(compose([*MATRIX, "data.n_train=8"]), Path("other"), PARTS_ONLY, None)
    shutil.rmtree("other")
    Path(replaced).write_bytes(before)
    job()


def test_a_run_of_exactly_these_data_goes_before_one_whose_data_were_moved(own: Path, tmp_path: Path) -> None:
    for name in ("evaluation.json", "report.html"):
        (own / "run" / name).unlink()
    config = compose([*SMALL, f"data.source.path={own / 'x.npy'}"])
    other = Path(shutil.copytree(own / "run", own / "z"))  # which is tried first, by its name
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace(str(own / "x.npy"), str(tmp_path / "gone" / "x.npy")))
    assert Run(other).moved(config)
    assert not Run(own / "run").moved(config)
    with unfinished(config, own / "new", 1) as run:
        assert run is not None
        assert (run.path.name, run.given) == ("run", ())
    shutil.rmtree(own / "run")
    with unfinished(config, own / "new", 1) as run:
        assert run is not None
        assert run.path.name == "z"
        assert run.given == (("data.source.path", str(own / "x.npy")),)
    shutil.rmtree(other)


def test_what_is_no_setting_of_the_data_is_refused(own: Path) -> None:
    for words in ("seed=3", "+data.x=3", "data.n_test=1,2", "data=digits"):
        with pytest.raises(ConfigurationError, match=r"is no setting of the data; expected data\.SETTING=VALUE"):
            data_settings([words])
    assert "no setting 'data.source.pth'; expected one of " in refused(
        lambda: evaluate_run(own / "run", data=["data.source.pth=x.npy"])
    )


def test_ranks_of_simulations_need_no_data(own: Path) -> None:
    (own / "x.npy").unlink()
    calibrate_run(own / "run", simulations=10, draws=1, bins=2, output=Path("c.nc"))
    assert Path("c.nc").is_file()


def test_an_older_run_that_says_nothing_of_its_data_goes_on(own: Path) -> None:
    shutil.copytree(own / "run", "older")
    Path("older", "data.json").unlink()
    others = {"data": ["data.source.path=x.npy"]}
    text = refused(lambda: evaluate_run(Path("older"), **others))  # type: ignore[arg-type]
    assert "is of the test split, and the test split of other data (data.source.path=" in text
    evaluate_run(Path("older"), **others, overwrite=True)  # type: ignore[arg-type]
    assert json.loads(Path("older", "evaluation.json").read_text())["data"]["given"] == {"data.source.path": "x.npy"}
    np.save(own / "x.npy", film(1))
    evaluate_run(Path("older"), overwrite=True)


def test_a_damaged_fingerprint_is_one_sentence(own: Path) -> None:
    shutil.copytree(own / "run", "damaged")
    for content, words in (("{", "is damaged"), ('{"test": 3}', "test is a whole number, expected a mapping")):
        Path("damaged", "data.json").write_text(content)
        assert words in refused(lambda: evaluate_run(Path("damaged")))
    record = json.loads((own / "run" / "data.json").read_text())
    record["test"]["sums"][0] = None
    Path("damaged", "data.json").write_text(json.dumps(record))
    assert "its test split is not" in refused(lambda: evaluate_run(Path("damaged")))


def test_the_same_command_from_another_folder_is_another_run(own: Path) -> None:
    (own / "run" / "report.html").unlink()
    config = compose(SMALL)
    assert not Run(own / "run").is_of(config)
    os.chdir(own)
    assert Run(own / "run").is_of(config)


def test_every_path_in_a_stored_configuration_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", film())
    np.save("w.npy", np.eye(16, dtype=np.float32))
    config = compose([*SMALL, "topography=matrix", "topography.w=w.npy", "prior=gaussian", "guide=mean_field"])
    monkeypatch.setattr(train, "_finish", lambda *_: {})
    train_run(config, Path("run"))
    stored = Run(Path("run")).config()
    assert (stored.topography.w, stored.data.source.path) == (str(tmp_path / "w.npy"), str(tmp_path / "x.npy"))
    assert config.topography.w == "w.npy"


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run has a matrix from a file, and was interrupted before it was judged."""
    folder = tmp_path_factory.mktemp("matrix")
    np.save(folder / "x.npy", film())
    np.save(folder / "w.npy", np.eye(16, dtype=np.float32) + 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_with_hydra([*MATRIX, "hydra.run.dir=run"])
    return folder


MATRIX = [*SMALL, "topography=matrix", "topography.w=w.npy", "prior=gaussian", "guide=mean_field"]


def moved_with_its_matrix(matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: Sequence[str]) -> Path:
    moved = tmp_path / "moved"
    shutil.copytree(matrix, moved)
    for name in lost:
        (moved / "run" / name).unlink()
    text = (moved / "run" / "config.yaml").read_text()
    (moved / "run" / "config.yaml").write_text(text.replace(str(matrix), str(tmp_path / "gone")))
    (moved / "run" / "trained.json").unlink()  # of the configuration before it was changed
    monkeypatch.chdir(moved)
    return moved


@pytest.mark.parametrize("by", ["run", "sweep"])
@pytest.mark.parametrize("lost", ["evaluation.json", "model.safetensors"])
def test_a_run_with_a_matrix_goes_on_where_its_project_was_moved(
    lost: str,
    by: str,
    matrix: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (matrix / "run" / "model.safetensors").read_bytes()
    moved_with_its_matrix(matrix, tmp_path, monkeypatch, ["report.html", lost])
    if by == "sweep":
        hydra_entry._trained(compose(MATRIX), Path("run"), PARTS_ONLY, None)
    else:
        run_with_hydra([*MATRIX, "hydra.run.dir=run"])
        assert "this command was interrupted before, and goes on" in capsys.readouterr().out
    assert Path("run", "model.safetensors").read_bytes() == before
    assert Path("run", "evaluation.json").is_file()


def test_another_matrix_of_that_name_joins_no_run(
    matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_with_its_matrix(matrix, tmp_path, monkeypatch, ["report.html", "evaluation.json", "model.safetensors"])
    np.save("w.npy", np.eye(16, dtype=np.float32) + 0.2)
    assert Run(Path("run")).moved(compose(MATRIX)) is None
    resume = ["resume=run", f"data.source.path={tmp_path / 'moved' / 'x.npy'}"]
    assert "there is no file" in refused(lambda: run_with_hydra(resume))
    assert "was begun with another matrix than topography.w=" in refused(
        lambda: run_with_hydra([*resume, "topography.w=w.npy"])
    )
    assert not Path("run", "model.safetensors").exists()
    np.save("own.npy", np.eye(16, dtype=np.float32) + 0.1)
    run_with_hydra([*resume, "topography.w=own.npy"])
    assert Path("run", "model.safetensors").read_bytes() == (matrix / "run" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("lost", [["report.html"], ["report.html", "evaluation.json"], []])
def test_a_matrix_that_was_changed_since_is_noticed_by_the_command_that_goes_on(
    lost: Sequence[str], matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_with_its_matrix(matrix, tmp_path, monkeypatch, lost)
    text = Path("run", "config.yaml").read_text()
    Path("run", "config.yaml").write_text(text.replace(str(tmp_path / "gone"), str(tmp_path / "moved")))
    np.save("w.npy", np.eye(16, dtype=np.float32) + 0.2)
    words = "was begun with another matrix than topography.w="
    assert words in refused(lambda: hydra_entry._trained(compose(MATRIX), Path("run"), PARTS_ONLY, None))
    if lost:
        assert words in refused(lambda: run_with_hydra([*MATRIX, "hydra.run.dir=run"]))
    Path("w.npy").unlink()
    hydra_entry._trained(compose(MATRIX), Path("run"), PARTS_ONLY, None)  # what is trained needs it no more


def test_a_matrix_that_was_changed_before_the_first_checkpoint_is_noticed(
    matrix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(matrix, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    run = Path("run")
    shutil.rmtree(run / "checkpoints")
    for name in ("report.html", "evaluation.json", "model.safetensors", "trained.json"):
        (run / name).unlink()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(matrix), str(tmp_path / "copy")))
    np.save("w.npy", np.eye(16, dtype=np.float32) + 0.2)
    assert "was begun with another matrix than topography.w=" in refused(lambda: run_with_hydra(["resume=run"]))


def test_a_run_builds_its_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", film())
    built: list[object] = []
    init = SequenceDataModule.__init__

    def counted(self: SequenceDataModule, *arguments: Any, **options: Any) -> None:
        built.append(self)
        init(self, *arguments, **options)

    monkeypatch.setattr(SequenceDataModule, "__init__", counted)
    train_run(compose([*SMALL, "baseline.enabled=true", "baseline.max_epochs=1"]), Path("run"))
    assert len(built) == 1
    for name in ("plain_vae.safetensors", "evaluation.json"):
        Path("run", name).unlink()
    built.clear()
    resume_run(Path("run"))
    assert len(built) == 1
    built.clear()
    resume_run(Path("run"))  # only its page is written
    assert not built


def test_what_was_stopped_before_its_configuration_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", film())
    write = Run.write

    def stopped(run: Run, name: str, content: Any) -> Path:
        if name == "config.yaml":
            assert run.has("data.json")
            raise Interrupted(143)
        return write(run, name, content)

    monkeypatch.setattr(Run, "write", stopped)
    with pytest.raises(Interrupted):
        train_run(compose(SMALL), Path("run"))
    assert not Path("run").exists()


def test_a_row_of_a_study_is_of_one_data_set(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 1):
        (tmp_path / "row" / f"seed{seed}").mkdir(parents=True)
        shutil.copy(own / "run" / "data.json", tmp_path / "row" / f"seed{seed}" / "data.json")
    book = object.__new__(ledger.Ledger)
    vars(book).update(file=None, folder=tmp_path, name="table1", homes={"row": tmp_path / "row"}, kept={})
    vars(book).update(settings={"row": {}}, without={"row": {}}, allow=PARTS_ONLY)
    book._check_runs()
    record = json.loads((own / "run" / "data.json").read_text())
    record["validation"]["sums"][1] += 1e-3
    (tmp_path / "row" / "seed1" / "data.json").write_text(json.dumps(record))
    text = refused(book._check_runs)
    assert "seed1 was begun with other data than" in text
    assert "by its validation split" in text


def test_no_run_lies_in_the_folder_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures, one folder a class: it would be taken for another class when it goes on."""
    (tmp_path / "photos" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    given = ["data=arrays", "data.source.path=."]
    for settings, run in (([], "out"), (["logger=csv", "logger.csv.save_dir=curves"], "../out")):
        text = refused(lambda: train_run(compose([*given, *settings]), Path(run)))  # noqa: B023
        assert "the folder of the data, and would be a part of them when the run goes on; choose another place" in text
        assert not Path(run).exists()


OF_ONES_OWN = ["data=sequences", "data.source.path=films/x.npy", "data.n_frames=4"]
READ = {  # settings -> a file that is read
    "a folder": (["data=mnist", "data.source.root=films"], "films/MNIST/images"),
    "pixels": (OF_ONES_OWN, "films/x.npy"),
    "a mask beside them": ([*OF_ONES_OWN, "data.source.mask=seen.npy"], "films/seen.npy"),
    "factors beside them": ([*OF_ONES_OWN, "data.source.factors_key=[a.npy,b.npy]"], "films/b.npy"),
    "labels beside them": ([*OF_ONES_OWN, "data.source.labels_key=labels.npy"], "films/labels.npy"),
}


@pytest.mark.parametrize("what", READ)
def test_files_that_were_replaced_meanwhile_are_read_again(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read: list[object] = []

    def fingerprints(data: object) -> dict[str, Any]:
        read.append(data)
        return {}

    monkeypatch.setattr(runs_data, "fingerprints", fingerprints)
    monkeypatch.setattr(runs_data, "make", lambda _: None)
    settings, file = READ[what]
    for one in (Path(file), Path("films", "x.npy")):
        one.parent.mkdir(parents=True, exist_ok=True)
        one.write_text("one")
    config = located(compose(settings))
    for _ in range(2):
        runs_data.made_fingerprints(config)
    assert len(read) == 1
    Path(file).write_text("two, of which this process has read nothing")
    runs_data.made_fingerprints(config)
    assert len(read) == 2
    monkeypatch.setattr(runs_data, "MANY", 0)
    for _ in range(2):
        runs_data.made_fingerprints(config)
    assert len(read) == 4


def test_files_are_found_that_settings_name_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    for name in ("films/x.npy", "films/seen.npy", "mine.npy", "w.npy", "another.npy"):
        Path(name).touch()
    settings = ["data.source.mask=seen.npy", "+data.source.file=mine.npy", "topography=matrix", "topography.w=w.npy"]
    found = runs_data.files_of(located(compose([*OF_ONES_OWN, *settings])))
    assert {path.name for path in found} == {"x.npy", "seen.npy", "mine.npy", "w.npy"}
    assert runs_data.files_of(compose([])) == []


def test_what_code_of_others_reads_is_read_again_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    monkeypatch.setattr(runs_data, "make", read.append)
    monkeypatch.setattr(runs_data, "fingerprints", lambda _: {})
    for _ in range(2):
        runs_data.made_fingerprints(compose(["data=arrays", "data.source._target_=mine.films", "data.source.path=x"]))
    assert len(read) == 2


# --- fingerprints -----------------------------------------------------------------------------------------------------


def module(source: Any = None, **options: Any) -> SequenceDataModule:
    return SequenceDataModule(
        digits() if source is None else source, Transformations(rotation=True), n_frames=3, **options
    )


def test_rounding_leaves_a_fingerprint_alike_and_any_change_does_not() -> None:
    splits = digits()
    own = fingerprints(module(splits))
    noise = torch.Generator().manual_seed(1)
    # As the processor's other instructions round them: by up to an eighth of a millionth.
    rounded = [
        part._replace(
            pixels=(part.pixels + 1.2e-7 * (torch.rand(part.pixels.shape, generator=noise) - 0.5)).clamp(0, 1)
        )
        for part in splits
    ]
    assert any((one.pixels != two.pixels).any() for one, two in zip(splits, rounded, strict=True))
    assert other_splits(own, fingerprints(module(type(splits)(*rounded)))) == []
    for place in ((0, 0, 14, 14), (300, 0, 7, 20)):
        pixels = splits.test.pixels.clone()
        pixels[place] += 0.02 if pixels[place] < 0.5 else -0.02
        changed = splits._replace(test=splits.test._replace(pixels=pixels))
        assert other_splits(own, fingerprints(module(changed))) == ["test"]
    labels = splits.train.labels.clone()
    labels[5] = (labels[5] + 1) % 10
    changed = splits._replace(train=splits.train._replace(labels=labels))
    assert other_splits(own, fingerprints(module(changed))) == ["train"]
    assert other_splits(own, fingerprints(module(seed=1))) == ["train", "validation", "test"]  # other phases
    assert other_splits(own, fingerprints(module(n_validation=200))) == ["validation"]
    assert other_splits(own, fingerprints(module(batch_size=3, num_workers=1))) == []


def test_what_renders_itself_is_told_by_what_it_renders() -> None:
    splits = dsprites(moving=["scale"])
    own = fingerprints(SequenceDataModule(splits, n_frames=15, n_train=64, n_validation=32, n_test=16))
    pixels = dsprites(moving=["scale"]).test.pixels  # type: ignore[union-attr]
    pixels.pictures = pixels.pictures.clone()
    pixels.pictures[:, 3] = ~pixels.pictures[:, 3]
    changed = splits._replace(test=replace(splits.test, pixels=pixels))  # type: ignore[type-var]
    other = fingerprints(SequenceDataModule(changed, n_frames=15, n_train=64, n_validation=32, n_test=16))
    assert other_splits(own, other) == ["test"]


class Foreign:
    """A renderer of somebody else's, of which nothing but the protocol is given."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def first(self, n: int) -> Foreign:
        return Foreign(self._inner.first(n))


def test_what_others_render_is_told_by_its_frames() -> None:
    numbers = {"n_frames": 15, "n_train": 40, "n_validation": 8, "n_test": 8}
    made = []
    for altered in (False, False, True):
        splits = dsprites(moving=["scale"])
        pixels: Any = splits.train.pixels  # type: ignore[union-attr]
        pixels.pictures = pixels.pictures.clone()
        pixels.pictures[:, 3] ^= altered
        made.append(fingerprints(SequenceDataModule(type(splits)(*map(Foreign, splits)), **numbers)))  # type: ignore[arg-type]
    assert other_splits(*made[:2]) == []
    assert other_splits(*made[1:]) == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ([torch.zeros(3)], [torch.zeros(4)]),
        ([torch.zeros(3)], [torch.zeros(3, dtype=torch.float64)]),
        ([torch.arange(3)], [torch.tensor([0, 2, 1])]),
        ([torch.tensor([True, False])], [torch.tensor([False, True])]),
        ([torch.ones(2), torch.zeros(2)], [torch.zeros(2), torch.ones(2)]),
        ([torch.tensor([0.0, torch.nan])], [torch.tensor([torch.nan, 0.0])]),
        ([torch.eye(3000)[:2].flatten()], [torch.eye(3000)[:2].flip(0).flatten()]),
    ],
)
def test_tensors_are_told_apart(one: list[torch.Tensor], two: list[torch.Tensor]) -> None:
    assert alike(fingerprint(one), fingerprint(one))
    assert not alike(fingerprint(one), fingerprint(two))


def test_a_fingerprint_is_of_values_and_not_of_how_they_lie() -> None:
    x = torch.rand(700, 9, 500, generator=torch.Generator().manual_seed(0))  # several blocks
    sums = fingerprint([x])["sums"]
    assert sums[0] == pytest.approx(float(x.double().norm()))
    flat = x.double().flatten()
    row, column = torch.arange(len(flat)) // 1024, torch.arange(len(flat)) % 1024
    for k, prime in enumerate((2.0, 3.0, 5.0, 7.0)):
        weights = (row.double() * prime**0.5).cos() * (column.double() * prime**0.5).cos()
        assert sums[1 + k] == pytest.approx(float((flat * weights).sum()), abs=1e-8 * sums[0])
    assert alike(fingerprint([x]), fingerprint([x.transpose(0, 1).contiguous().transpose(0, 1)]))
