"""Links, pipes and devices in a run's folder: nothing outside it is read or written, and nothing hangs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TINY

from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run
from pyro_tvae.experiments.commands.likelihood import likelihood_run
from pyro_tvae.experiments.commands.posterior import posterior_run
from pyro_tvae.experiments.commands.train import resume_run, train_run
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.runs.files import check_inside, inside
from pyro_tvae.experiments.studies.registry import STUDIES
from pyro_tvae.experiments.studies.reproduce import reproduce


def test_what_lies_in_a_folder_is_taken_and_what_leads_out_of_it_is_named(tmp_path: Path) -> None:
    home, outside = tmp_path / "run", tmp_path / "outside"
    (home / "figures").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (home / "plain").write_text("plain")
    (home / "near").symlink_to("plain")
    (home / "new").symlink_to("figures/later.png")
    (tmp_path / "alias").symlink_to(home)  # the owner's choice
    for folder in (home, tmp_path / "alias"):
        for name in ("plain", "near", "new", "nothing", "figures", "figures/a.png", "figures/../plain"):
            assert inside(folder, name) == folder / name
        with pytest.raises(ValueError, match=f"x cannot be there, since {folder / 'plain'} is no folder"):
            inside(folder / "plain", "x")
        check_inside(folder)
    (home / "far").symlink_to(outside / "secret")
    (home / "unmade").symlink_to(outside / "new")
    (home / "deep").symlink_to("../outside")
    (home / "loop").symlink_to("loop")
    os.mkfifo(home / "pipe")
    (home / "device").symlink_to("/dev/zero")
    for name, link, what in (
        ("far", "far", f"to {outside / 'secret'}"),
        ("unmade", "unmade", f"to {outside / 'new'}"),
        ("deep/secret", "deep", f"to {outside}"),
        ("../outside/secret", "../outside/secret", "neither read nor written"),
        ("loop", "loop", "cannot be looked at"),
        ("pipe", "pipe", "a pipe"),
        ("device", "device", "to /dev/zero"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            inside(home, name)
        assert str(caught.value).startswith(str(home / link))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["", "figures", "logs", "logs/csv/version_0", "plain_vae/checkpoints"])
def test_a_folder_is_looked_through_before_it_is_used(place: str, tmp_path: Path) -> None:
    where = tmp_path / "run" / place
    where.mkdir(parents=True)
    check_inside(tmp_path / "run")
    (where / "link").symlink_to("/tmp")
    with pytest.raises(ValueError, match="leads out of"):
        check_inside(tmp_path / "run")


def test_links_among_the_files_of_a_service_are_its_own(tmp_path: Path) -> None:
    where = tmp_path / "logs" / "wandb" / "run-1"
    where.mkdir(parents=True)
    (where / "debug.log").symlink_to("/tmp/debug.log")
    check_inside(tmp_path)


# --- the folder of a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_run(compose(TINY), folder)
    return folder


COMMANDS: dict[str, Callable[[Path], object]] = {
    "train": resume_run,
    "evaluate": evaluate_run,
    "report": report_run,
    "posterior": lambda run: posterior_run(run, draws=4, sequences=2),
    "likelihood": lambda run: likelihood_run(run, particles=[1], sequences=2),
}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


LINKS = ("figures", "checkpoints", "logs", "logs/csv", ".lock", "history.json", "evaluation.json", "report.html")
PIPES = ("config.yaml", ".lock", "evaluation.json", "checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("command", "name"), [*(("train", name) for name in LINKS), *((c, "figures") for c in COMMANDS)]
)
def test_nothing_is_written_or_read_through_a_link(command: str, name: str, whole: Path, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(whole, run)
    place = run / name
    if command == "train":  # so that it has every step to do
        for step in ("model.safetensors", "untrained.safetensors"):
            (run / step).unlink()
    if place.is_dir():
        place.rename(outside)
    elif place.exists():
        outside.write_bytes(place.read_bytes())
        place.unlink()
    place.symlink_to(outside)  # of .lock nothing is there
    before, inner = snapshot(tmp_path), os.path.lexists(outside)
    with pytest.raises((ValueError, OSError)) as caught:
        COMMANDS[command](run)
    assert str(caught.value).startswith(f"{place} leads out of {run}")
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before
    assert os.path.lexists(outside) == inner


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("command", "name"), [*(("train", name) for name in PIPES), *((c, ".lock") for c in COMMANDS)])
def test_a_pipe_is_not_waited_for(command: str, name: str, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises((ValueError, OSError), match="is a pipe"):
        COMMANDS[command](run)
    with pytest.raises((ValueError, OSError), match="is a pipe"):
        train_run(compose(TINY), run)


def test_a_new_run_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    for name in ("checkpoints", "figures", ".lock", "config.yaml", ".hydra"):
        run = tmp_path / f"run {name}"
        run.mkdir()
        (run / name).symlink_to(tmp_path / "outside")
        with pytest.raises(ValueError, match="leads out of"):
            train_run(compose(TINY), run)
    assert not list((tmp_path / "outside").iterdir())


def test_a_study_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "studies" / "guides").mkdir(parents=True)
    row = next(iter(STUDIES["guides"].rows)).replace(" ", "_")
    (tmp_path / "studies" / "guides" / row).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="leads out of"):
        reproduce("guides", output=tmp_path / "studies")
    assert not list((tmp_path / "outside").iterdir())
