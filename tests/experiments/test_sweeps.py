"""Sweeps: a job that fails stops no other, is listed, and is all that the same command does again."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hydra.core import utils as hydra_clock
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from pyro_tvae.experiments.commands import hydra_entry, train
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.config.allowlist import PARTS_ONLY, Allowlist
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.config.errors import ConfigurationError
from pyro_tvae.experiments.interruption import Interrupted, override, typed
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.experiments.runs.sweeps import Sweep, begun, recipes_in
from pyro_tvae.files import FolderMoved


class Listener(Callback):
    """A Hydra callback that hears what every job returns, as a sweeper does."""

    heard: list[Any] = []  # noqa: RUF012 - Hydra makes the instance
    trained: list[int] = []  # noqa: RUF012

    def on_job_end(self, config: Any, job_return: JobReturn, **_: Any) -> None:
        Listener.heard.append(job_return.return_value)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, BaseException]:
    """A stand-in for training: seeds, and what goes wrong with them; every run is written as one that has ended."""
    wrong: dict[int, BaseException] = {}

    def train_run(config: DictConfig, path: Path, allow: object, logs: object = ()) -> float:
        if config.seed in wrong:
            raise wrong[config.seed]
        if (path / "config.yaml").exists():
            raise FileExistsError(f"{path} holds a run already")
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        rows = [{"step": 1, "val/elbo": -1.0 - config.seed}]
        (path / "history.json").write_text(json.dumps({"rows": rows, "seconds": 1.0}))
        for name in ("evaluation.json", "report.html", "model.safetensors", "plain_vae.safetensors"):
            (path / name).write_text("{}")
        Listener.trained.append(config.seed)
        return rows[0]["val/elbo"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pyro-tvae", "train"])
    monkeypatch.setattr(train, "train_run", train_run)
    monkeypatch.setitem(sys.modules, "listening", sys.modules[Listener.__module__])
    return wrong


def swept(*arguments: str) -> list[int]:
    """The seeds that a command trained."""
    Listener.trained.clear()
    Listener.heard.clear()
    # Options may stand among overrides.
    run_with_hydra([*arguments, "--multirun", "+hydra.callbacks.listener._target_=listening.Listener"])
    return [*Listener.trained]


@pytest.mark.parametrize("swept_over", ["seed=0,1", "network._target_=own_parts.Small,own_parts.Large"])
def test_jobs_of_parts_of_ones_own_are_swept_over(swept_over: str, jobs: dict[int, BaseException]) -> None:
    given = ["network=own", *(["network._target_=own_parts.Small"] if swept_over.startswith("seed") else [])]
    assert len(swept(*given, "+network.width=3", swept_over)) == 2
    with pytest.raises(ConfigurationError, match=r"there is no setting called 'netwrok\._target_'"):
        swept("network=own", "netwrok._target_=own_parts.Small", "seed=0,1")


def test_runs_of_code_that_was_edited_between_them_are_told_of(
    jobs: dict[int, BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def code_in(path: Path) -> dict[str, str]:
        number = path.parent.name
        return {"interpreter": "2" if number == "3" else "1", "mine.Guide": "new" if number in "13" else "old"}

    monkeypatch.setattr("pyro_tvae.storage.code_in", code_in)
    swept("seed=0,1,2,3", "hydra.sweep.dir=sweep")
    assert "the code of mine.Guide was edited between runs in sweep: 0; 2 / 1 / 3. How they" in capsys.readouterr().err
    swept("seed=0", "hydra.sweep.dir=other")
    assert "was edited" not in capsys.readouterr().err


@pytest.mark.parametrize("edited", ["mine", "base", "rate", "another"])
def test_jobs_are_composed_of_files_as_they_were_when_the_sweep_began(
    edited: str, jobs: dict[int, BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("recipes", "optimizer").mkdir(parents=True)
    Path("shared").mkdir()
    Path("recipes", "experiment").symlink_to(Path("shared").absolute())
    Path("shared", "around").symlink_to(Path("recipes").absolute())
    files = {name: Path("shared", f"{name}.yaml") for name in ("mine", "base", "another")}
    files["rate"] = Path("recipes", "optimizer", "rate.yaml")
    before = "optimizer:\n  optimizer:\n    lr: 0.001\n"
    parts = "defaults: [base, /optimizer@optimizer.optimizer: rate, _self_]\n"
    texts = {name: f"# @package _global_\n{parts if name == 'mine' else ''}{before}" for name in files}
    texts["rate"] = "lr: 0.001\n"
    for name, file in files.items():
        file.write_text(texts[name])
    whole = train.train_run

    def editing(config: DictConfig, *given: Any) -> float | None:
        files[edited].write_text(texts[edited].replace("0.001", "0.1"))
        return whole(config, *given)

    given = ["--config-dir", "recipes", "experiment=mine", "seed=0,1", "hydra.sweep.dir=sweep"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_run", editing)
        if edited == "another":  # which no job is composed of
            assert swept(*given) == [0, 1]
            return
        with pytest.raises(SystemExit):
            swept(*given)
    assert Listener.trained == [0]
    said = f"{'optimizer' if edited == 'rate' else 'experiment'}/{edited}.yaml was edited since this sweep began"
    assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):  # nor when it goes on
        swept(*given)
    assert Listener.trained == []
    files[edited].write_text(texts[edited])
    assert swept(*given) == [1]


def test_folders_of_recipes_that_lead_to_each_other_are_gone_through_once(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.yaml").touch()
        for other in "abcd".replace(name, ""):
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    assert len(recipes_in([tmp_path])) == 4 * (1 + 3 + 3 * 2 + 3 * 2 * 1)


def test_a_job_that_composes_another_configuration_leaves_the_sweep_to_the_next(
    jobs: dict[int, BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that goes on, to know what is the default of a setting that its run was begun without."""
    whole = train.train_run

    def composing(*given: Any) -> float | None:
        compose(["seed=7"])
        return whole(*given)

    monkeypatch.setattr(train, "train_run", composing)
    assert swept("seed=0,1,2", "hydra.sweep.dir=sweep") == [0, 1, 2]


def test_jobs_have_the_same_order_and_folders_where_a_sweep_goes_on(jobs: dict[int, BaseException]) -> None:
    given = ["seed=shuffle(range(0,5))", "hydra.sweep.dir=sweep"]
    jobs[2] = ConfigurationError("that cannot be.")
    with pytest.raises(SystemExit):
        swept(*given)
    assert sorted(Listener.trained) == [0, 1, 3, 4] != Listener.trained
    jobs.clear()
    assert swept(*given) == [2]
    for timed in ("hydra.sweep.subdir=${hydra.job.num}_${now:%H%M%S}", "name=of_${now:%H%M%S}"):
        with pytest.raises(ConfigurationError, match=f"{re.escape(timed)} names a time, by which no job would be"):
            swept("seed=0,1", timed)
    recipe = Path("recipes", "experiment", "search.yaml")
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n")
    with pytest.raises(ConfigurationError, match=r"MULTIRUN in a file of yours, .* and give --multirun"):
        run_with_hydra(["--config-dir", "recipes", "experiment=search"])


def test_patterns_match_recipes_of_ones_own_and_run_nothing_else(jobs: dict[int, BaseException]) -> None:
    folder = Path("recipes", "experiment")
    folder.mkdir(parents=True)
    for number, name in enumerate(("mine_a", "mine b", "other")):
        (folder / f"{name}.yaml").write_text(f"# @package _global_\nseed: {number}\n")
    given = ["--config-dir", "recipes"]
    assert swept(*given, "experiment=glob(mine*)") == [1, 0]  # by name
    assert swept(*given, "experiment=glob([mine_*,oth*])") == [0, 2]
    assert len(swept("topography=glob(*roll)")) == 1
    for pattern in ("experiment=glob(no_such*)", "topography=glob(mine*)"):
        with pytest.raises(ConfigurationError, match=rf"^{re.escape(pattern)} matches no \w+; expected some of "):
            swept(*given, pattern)


def test_a_sweeper_that_wants_several_numbers_of_a_run_is_refused(jobs: dict[int, BaseException]) -> None:
    with pytest.raises(ConfigurationError, match="asks for several numbers of each run, which returns one"):
        swept("seed=0,1", "+hydra.sweeper.direction=[maximize,minimize]")


def test_a_job_that_fails_stops_no_other_and_is_tried_again(
    jobs: dict[int, BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        0: (ConfigurationError("that cannot be."), "that cannot be."),
        2: (MemoryError(), "there is not enough memory for this"),
        3: (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        4: (SystemExit(3), "it ended itself with status 3."),
    }
    jobs |= {seed: error for seed, (error, _) in wrong.items()}
    with pytest.raises(SystemExit) as caught:
        swept("seed=0,1,2,3,4")
    assert caught.value.code == 2
    assert Listener.trained == [1]
    text = capsys.readouterr().err
    listed = text[text.index("pyro-tvae: 4 jobs failed in ") :].splitlines()[1:]
    assert [line.split(": ")[0] for line in listed] == [f"  {seed}  seed={seed}" for seed in wrong]
    assert all(words in line for line, (_, words) in zip(listed, wrong.values(), strict=True))
    assert [math.isnan(value) for value in Listener.heard] == [True, False, True, True, True]
    jobs.clear()
    assert swept("seed=0,1,2,3,4") == [0, 2, 3, 4]
    assert Listener.heard == [-1.0, -2.0, -3.0, -4.0, -5.0]  # those of the done ones too, for a sweeper
    (folder,) = Path.cwd().glob("runs/quickstart/*")
    assert json.loads((folder / "sweep.json").read_text())["finished"] is True
    assert not [*folder.rglob("*.failed.json")]


def test_a_folder_that_was_named_holds_one_sweep_and_what_is_finished_is_left_alone(
    jobs: dict[int, BaseException],
) -> None:
    """Hydra's basic sweeper looks at what a batch returned, and would stop at an error after it."""
    given = ["seed=0,1", override("hydra.sweep.dir", "a 'fixed' folder, of {mine}"), "hydra.sweeper.max_batch_size=1"]
    jobs[0] = ConfigurationError("no.")
    with pytest.raises(SystemExit):
        swept(*given)
    assert Listener.trained == [1]
    jobs.clear()
    assert swept(*given) == [0]
    assert swept(*given) == []
    assert sorted(path.name for path in Path("a 'fixed' folder, of {mine}").glob("[0-9]")) == ["0", "1"]
    with pytest.raises(FileExistsError, match="holds a sweep of other overrides"):
        swept("seed=5", *given[1:])


def test_an_interrupted_sweep_says_how_to_go_on_and_goes_on(
    jobs: dict[int, BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pyro-tvae", "train", "--multirun", "seed=0,1"])
    by_a_library = [ValueError("cannot be parsed"), SystemExit(1)]
    for error in by_a_library:  # which made an error of what interrupted it
        error.__context__ = Interrupted(143)
    interruptions = [(KeyboardInterrupt(), 130), *((error, 143) for error in (Interrupted(143), *by_a_library))]
    for error, status in interruptions:
        jobs[1] = error
        with pytest.raises(SystemExit) as caught:
            swept("seed=0,1")
        assert caught.value.code == status
        (folder,) = Path.cwd().glob("runs/quickstart/*")
        place = f"what is done is in {folder.relative_to(Path.cwd())} (1 of 2 done, 0 begun)"
        said = f"{place}; go on with: pyro-tvae train --multirun seed=0,1"
        assert said in capsys.readouterr().err
    jobs.clear()
    assert swept("seed=0,1") == [1]
    assert [path.name for path in sorted(folder.glob("[0-9]"))] == ["0", "1"]


def test_a_sweep_whose_folder_tells_the_time_is_gone_on_with_at_another_time(
    jobs: dict[int, BaseException],
) -> None:
    place = "hydra.sweep.dir=of/${now:%Y-%m-%d}/${now:%H-%M-%S.%f}"
    jobs[1] = KeyboardInterrupt()
    with pytest.raises(SystemExit):
        swept("seed=0,1", place)
    jobs.clear()
    assert swept("seed=0,1", place) == [1]
    (folder,) = Path("of").glob("*/*")
    os.renames(folder, Path("of", "1999-12-31", "23-59"))
    record = Path("of", "1999-12-31", "23-59", "sweep.json")
    record.write_text(record.read_text().replace("true", "false"))
    shutil.rmtree(record.with_name("1"))
    assert swept("seed=0,1", place) == [1]
    assert [path.parent.name for path in Path("of").glob("*/*/sweep.json")] == ["23-59"]
    assert swept("seed=0,1", place) == [0, 1]  # a finished one is left alone


def test_an_interrupted_sweep_counts_what_is_done(
    jobs: dict[int, BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of lists, ranges and patterns together; of other sweepers nobody knows how many there will be."""
    jobs[1] = Interrupted(143)
    for number, (more, words) in enumerate(
        (("model.eps=range(1,4)", "(3 of 6 done, 0 begun)"), ("topography=glob(*roll)", "(1 of 2 done, 0 begun)"))
    ):
        with pytest.raises(SystemExit):
            swept("seed=0,1", more, f"hydra.sweep.dir=sweep{number}")
        assert words in capsys.readouterr().err


def test_what_memory_or_a_disk_had_no_room_for_does_not_count_as_done(
    jobs: dict[int, BaseException], tmp_path: Path
) -> None:
    swept("seed=0,1,2", "hydra.sweep.dir=sweep")
    assert Sweep(tmp_path / "sweep").progress(3) == "3 of 3 done, 0 begun"
    for seed, content in (("1", '{"transient": ["e_eq"]}'), ("2", "no record")):
        (tmp_path / "sweep" / seed / "evaluation.json").write_text(content)
    assert Sweep(tmp_path / "sweep").progress(3) == "1 of 3 done, 2 begun"


def test_a_launcher_that_gives_up_leaves_a_sweep_to_go_on_with(
    jobs: dict[int, BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As joblib's does when the system kills a process of its own; Hydra makes a status of its error."""
    from pyro_tvae.experiments.commands import hydra_entry

    def dies(overrides: object, job: object) -> None:
        raise SystemExit(1)

    with monkeypatch.context() as patch:
        patch.setattr(hydra_entry, "_hydra", dies)
        with pytest.raises(SystemExit) as caught:
            swept("seed=0,1", "hydra.sweep.dir=sweep")
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "the sweep in sweep ended early, with status 1 (0 of 2 done, 0 begun)" in said
    assert "go on with: pyro-tvae train" in said
    assert swept("seed=0,1", "hydra.sweep.dir=sweep") == [0, 1]


def test_a_job_whose_data_lie_elsewhere_since_says_how_to_go_on_with_them_there(tmp_path: Path) -> None:
    """As of a project that was moved: the command that it names would look where they were."""
    then, now = (compose(["data=mnist", f"data.source.root={root}"]) for root in ("/there", "/here"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(then, resolve=True))
    with pytest.raises(
        FileExistsError, match=r"root was '/there' and is '/here'.*go on with it by: (.*); or"
    ) as caught:
        hydra_entry._trained(now, tmp_path / "run", Allowlist(), None)
    assert f"resume={tmp_path / 'run'} data.source.root=/here; or begin a new sweep" in str(caught.value)


def test_a_job_whose_folder_holds_a_run_of_other_settings_says_which_and_what_to_type(
    jobs: dict[int, BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a default has changed between two calls of one command; the same command can never end that job."""
    jobs[1] = ConfigurationError("no.")
    with pytest.raises(SystemExit):
        swept("seed=0,1", "hydra.sweep.dir=sweep")
    jobs.clear()
    file = Path("sweep/0/config.yaml")
    stored = OmegaConf.load(file)
    stored.network.activation = "relu"
    file.write_text(OmegaConf.to_yaml(stored))
    before = file.read_bytes()
    with pytest.raises(SystemExit):
        swept("seed=0,1", "hydra.sweep.dir=sweep")
    said = capsys.readouterr().err
    assert Listener.trained == [1]
    assert "holds a run with other settings than this job has now (network.activation was 'relu' and is 'silu')" in said
    assert f"go on with it by: pyro-tvae train resume={Path.cwd() / 'sweep' / '0'}; or begin a new sweep" in said
    assert file.read_bytes() == before


def test_runs_that_are_gone_on_with_together_take_no_other_settings_than_one_alone(
    jobs: dict[int, BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[Path, dict[str, object]]] = []

    def resume_run(path: Path, changes: dict[str, object], allow: Allowlist) -> dict[str, object]:
        called.append((path, changes))
        return {}

    monkeypatch.setattr(train, "resume_run", resume_run)
    with pytest.raises(SystemExit):
        swept("resume=a,b", "fit.max_epochs=5")
    assert "job 1 failed: resume goes on with the configuration that the run stored, so fit.max_epochs" in (
        capsys.readouterr().err
    )
    assert not called
    swept("resume=a,b", "fit.accelerator=cpu", "measure=val/kl", "hydra.sweep.dir=sweep")
    assert called == [(Path("a"), {"fit.accelerator": "cpu"}), (Path("b"), {"fit.accelerator": "cpu"})]
    called.clear()
    monkeypatch.setattr(hydra_entry, "place_among", lambda _: (0, 2))  # as one of two processes
    with pytest.raises(SystemExit):
        swept("resume=a,b", "fit.max_epochs=5")
    assert not called
    swept("resume=a,b", "fit.accelerator=cpu", "hydra.sweep.dir=sweep2")
    assert called == [(Path("a"), {"fit.accelerator": "cpu"}), (Path("b"), {"fit.accelerator": "cpu"})]


def test_a_trial_whose_number_another_one_has_is_trained_beside_it(jobs: dict[int, BaseException]) -> None:
    """A sweeper with a storage, or without a seed, counts from 0 again and proposes others."""

    def trial(seed: int, number: int) -> float | None:
        place = Path("sweep") / str(number)
        return hydra_entry._trained(compose([f"seed={seed}"]), place, PARTS_ONLY, ".hydra", proposed=True)

    written: list[str] = []
    Listener.trained.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra_entry, "_write_settings", lambda _, folder: written.append(str(folder)))
        assert [trial(seed, number) for seed, number in ((0, 0), (1, 1))] == [-1.0, -2.0]
        assert [trial(seed, 0) for seed in (5, 6, 5, 1, 0)] == [-6.0, -7.0, -6.0, -2.0, -1.0]
    assert Listener.trained == [0, 1, 5, 6]  # what was trained before is not again
    assert sorted(path.name for path in Path("sweep").iterdir()) == ["0", "0-1", "0-2", "1"]
    assert written == [f"sweep/{name}/.hydra" for name in ("0", "1", "0-1", "0-2")]
    (Path("sweep") / "0-1" / "report.html").unlink()
    assert [run.path.name for run in Sweep(Path("sweep")).begun()] == ["0-1"]
    resumed: list[Path] = []

    def resume_run(path: Path, *_: Any) -> dict[str, Any]:
        resumed.append(path)
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "resume_run", resume_run)
        trial(5, 1)
        assert resumed == [Path("sweep") / "0-1"]
        with Run(Path("sweep") / "0-1").held(), ThreadPoolExecutor(1) as threads:
            place = threads.submit(hydra_entry._proposed_before, compose(["seed=5"]), Path("sweep") / "1").result()
    assert place is None  # somebody is at work on it
    with pytest.raises(FileExistsError, match="holds a run with other settings than this job has now"):
        hydra_entry._trained(compose(["seed=9"]), Path("sweep") / "0", PARTS_ONLY, None)


def test_hydras_own_files_are_those_of_the_run_that_a_folder_holds(jobs: dict[int, BaseException]) -> None:
    """Whoever collects runs goes by them; a job that is refused is none."""
    with pytest.raises(SystemExit):
        swept("seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=of_both")
    assert Listener.trained == [0]
    own = Path("sweep/of_both/.hydra")
    assert {path.name for path in own.iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert "seed=0" in OmegaConf.load(own / "overrides.yaml")
    assert OmegaConf.load(own / "config.yaml").seed == 0
    assert OmegaConf.load(own / "hydra.yaml").hydra.job.num == 0
    for number, (given, there) in enumerate((("null", False), ("mine", True))):
        swept("seed=0", f"hydra.sweep.dir=other{number}", f"hydra.output_subdir={given}")
        assert not Path(f"other{number}/0/.hydra").exists()
        assert Path(f"other{number}/0/mine/hydra.yaml").exists() is there


@pytest.mark.parametrize("kept", [".lock", "link"])
def test_somebody_elses_sweep_that_cannot_be_written_is_passed_over(kept: str, tmp_path: Path) -> None:
    theirs = Sweep(tmp_path / "9-theirs")
    theirs.path.mkdir()
    theirs.write(["a"], {}, finished=False)
    if kept == "link":
        (theirs.path / "link").symlink_to("/etc/hostname")
    else:
        (theirs.path / ".lock").mkdir()  # which nobody can open for writing, root neither
    with begun(["a"], tmp_path / "now", 1) as sweep:
        assert sweep == Sweep(tmp_path / "now")
    with pytest.raises((OSError, ValueError)), begun(["a"], theirs.path, 0):
        pass


def test_a_job_fails_in_a_folder_of_a_long_name(jobs: dict[int, BaseException]) -> None:
    given = ["seed=0", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=" + "o" * 250]
    jobs[0] = ConfigurationError("no.")
    with pytest.raises(SystemExit):
        swept(*given)
    assert [one.sentence for one in Sweep(Path("sweep")).failures()] == ["no."]
    jobs.clear()
    assert swept(*given) == [0]
    assert Sweep(Path("sweep")).failures() == []


@pytest.mark.parametrize("given", [[], ["hydra.sweep.dir=sweep"]], ids=["default", "relative"])
def test_jobs_that_change_into_their_folders_are_a_sweep_like_any_other(
    given: list[str], jobs: dict[int, BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["seed=0,1,2", "hydra.job.chdir=true", *given]
    jobs[1] = ConfigurationError("no.")
    with pytest.raises(SystemExit) as caught:
        swept(*given)
    assert caught.value.code == 2
    assert Listener.trained == [0, 2]
    (folder,) = {path.parent.parent for path in Path().rglob("report.html")}
    assert f"1 job failed in {folder};" in capsys.readouterr().err
    jobs[1] = Interrupted(143)
    with pytest.raises(SystemExit) as caught:
        swept(*given)
    assert caught.value.code == 143
    assert f"what is done is in {folder} (2 of 3 done, 0 begun)" in capsys.readouterr().err
    jobs.clear()
    assert swept(*given) == [1]
    assert sorted(path.name for path in folder.glob("[0-9]")) == ["0", "1", "2"]


def test_a_failure_is_kept_where_the_next_job_shares_the_folder(
    jobs: dict[int, BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["seed=0,1,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=of_all"]
    jobs[0] = ConfigurationError("no.")
    for trained in ([1], []):  # what failed is tried again, where a run of other settings is by then
        with pytest.raises(SystemExit) as caught:
            swept(*given)
        assert caught.value.code == 2
        assert Listener.trained == trained
        said = capsys.readouterr().err
        assert f"pyro-tvae: 2 jobs failed in sweep; the same command tries again: {typed()}\n  0  seed=0: " in said
        assert [one.number for one in Sweep(Path("sweep")).failures()] == [0, 2]
        assert Sweep(Path("sweep")).record()["finished"] is False
    assert "(seed was 1 and is 2), as where jobs share a hydra.sweep.subdir, a default has changed" in said


def test_a_folder_at_work_is_refused(tmp_path: Path) -> None:
    with begun(["a"], tmp_path, 0):
        script = "import sys; from pathlib import Path; from pyro_tvae.experiments.runs.sweeps import begun\n"
        script += "begun(['a'], Path(sys.argv[1]), 0).__enter__()"
        said = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True).stderr
    assert f"another sweep is at work in {tmp_path}; wait for its end" in said


def test_two_sweeps_of_one_second_get_two_folders(tmp_path: Path) -> None:
    now = tmp_path / "now"
    with begun(["a"], now, 1) as one:
        one.write(["a"], {}, finished=False)
        script = "import sys; from pathlib import Path; from pyro_tvae.experiments.runs.sweeps import begun\n"
        script += "with begun(['a'], Path(sys.argv[1]), 1) as one: print(one)"
        said = subprocess.run([sys.executable, "-c", script, str(now)], capture_output=True, text=True)
        assert said.stdout.strip() == str(tmp_path / "now-1"), said.stderr
    with begun(["a"], tmp_path / "later", 1) as again:
        assert again == one  # which has not ended
        again.write(["a"], {}, finished=True)
    with begun(["a"], tmp_path / "later", 1) as new:
        assert new == Sweep(tmp_path / "later")


@pytest.mark.parametrize("when", ["the job trains", "the job has ended", "the next job begins"])
def test_a_sweep_that_is_renamed_ends_without_a_ghost_and_goes_on_where_it_lies(
    when: str,
    jobs: dict[int, BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hydra makes the folder of every job before it begins, whatever lies there, and goes on after an error."""
    sweep, whole = tmp_path / "sweep", train.train_run

    def renaming(config: DictConfig, path: Path, allow: Allowlist) -> float | None:
        measure = whole(config, path, allow)
        if config.seed == 1 and when != "the next job begins":
            sweep.rename(tmp_path / "renamed")
            if when == "the job trains":
                raise FileNotFoundError(f"no such file: {path}")
        return measure

    def between(self: Listener, *_: Any, **__: Any) -> None:
        if len(Listener.trained) == 2 and when == "the next job begins":
            sweep.rename(tmp_path / "renamed")

    given = ["seed=0,1,2,3", "hydra.sweep.dir=sweep"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_run", renaming)
        patch.setattr(Listener, "on_job_end", between)
        with pytest.raises(FolderMoved, match=r"sweep was moved, renamed or removed while this command was at work"):
            swept(*given)
    assert Listener.trained == [0, 1]
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["renamed"]
    assert swept(given[0], "hydra.sweep.dir=renamed") == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["renamed"]
    assert not [*tmp_path.rglob("*.failed.json")]


def test_what_somebody_began_by_a_renamed_sweep_s_name_is_left_alone(
    jobs: dict[int, BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, own = tmp_path / "sweep", tmp_path / "sweep" / "1" / ".hydra"

    def between(self: Listener, *_: Any, **__: Any) -> None:
        sweep.rename(tmp_path / "renamed")
        own.mkdir(parents=True)
        (sweep / ".lock").touch()

    monkeypatch.setattr(Listener, "on_job_end", between)
    with pytest.raises(FolderMoved):
        swept("seed=0,1", "hydra.sweep.dir=sweep")
    assert Listener.trained == [0]
    assert own.exists()


class Clock:
    """A clock that stands still, or was put back, so that what starts later is named as what was there."""

    @staticmethod
    def now() -> datetime:
        return datetime(2026, 1, 1)


def test_what_starts_when_the_clock_says_the_same_takes_nobodys_folder(
    jobs: dict[int, BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hydra_clock, "datetime", Clock)
    home = Path("runs/quickstart")
    left: dict[Path, bytes] = {}
    starts: list[Callable[[], object]] = [
        lambda: swept("seed=0"),
        lambda: run_with_hydra(["seed=0"]),
        lambda: swept("seed=0"),  # which is done, and so another one
        lambda: swept("seed=2"),
        lambda: run_with_hydra(["seed=0"]),
    ]
    for number, begin in enumerate(starts):
        begin()
        names = {"2026-01-01_00-00-00", *(f"2026-01-01_00-00-00-{n}" for n in range(1, number + 1))}
        assert {path.name for path in home.iterdir()} == names
        assert all(path.read_bytes() == content for path, content in left.items())
        left = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_files_of_another_program_in_the_folder_of_a_sweep_stay(tmp_path: Path) -> None:
    """What Hydra writes for a sweep, and what is called as the failures of one are but for the number."""
    own = {tmp_path / "multirun.yaml": "mine", tmp_path / "batch1.failed.json": "mine too"}
    for path, text in own.items():
        path.write_text(text)
    with (
        pytest.raises(FileExistsError, match=r"holds multirun\.yaml of a sweep of another program"),
        begun(["seed=0,1"], tmp_path, 0),
    ):
        pass
    (tmp_path / "multirun.yaml").rename(tmp_path / "elsewhere.yaml")
    with begun(["seed=0,1"], tmp_path, 0) as sweep:
        sweep.write(["seed=0,1"], {}, finished=False)
        sweep.forget_failures()
        assert sweep.failures() == []
    (tmp_path / "multirun.yaml").touch()  # by Hydra
    with begun(["seed=0,1"], tmp_path, 0):
        pass
    assert (tmp_path / "batch1.failed.json").read_text() == "mine too"
