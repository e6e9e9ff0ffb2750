"""Places: whatever stands where something is to be written is left as it is, and named in one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from complaints import answer
from matplotlib.figure import Figure
from tiny import TINY
from untrained_runs import make_run

import pyro_tvae
from pyro_tvae.experiments.benchmarks import run_suite
from pyro_tvae.experiments.commands.calibrate import calibrate_run
from pyro_tvae.experiments.commands.compare import compare_runs
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.commands.likelihood import likelihood_run
from pyro_tvae.experiments.commands.posterior import posterior_run
from pyro_tvae.experiments.reports.style import save
from pyro_tvae.experiments.runs.files import write_text
from pyro_tvae.experiments.runs.sweeps import begun
from pyro_tvae.experiments.studies.reproduce import reproduce
from pyro_tvae.inference import to_arviz, to_netcdf, to_zarr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / name, "plain") for name in ("one", "two")]


@pytest.fixture(scope="module")
def pair() -> tuple[pyro_tvae.TVAE, pyro_tvae.Guide, torch.Tensor]:
    model = pyro_tvae.TVAE((1, 4, 4), n_frames=4, n_capsules=2, capsule_dim=4)
    return model, pyro_tvae.MeanFieldGuide(model), torch.rand(2, 4, 1, 4, 4)


def begin(folder: Path) -> None:
    with begun(["a"], folder, 0):
        pass


FILES = (
    "save",
    "to_netcdf",
    "to_arviz",
    "figure",
    "text",
    "likelihood",
    "calibrate",
    "posterior",
    "compare",
    "benchmark",
)
FOLDERS = ("to_zarr", "sweep", "train", "reproduce")


@pytest.fixture(scope="module")
def writers(
    runs: list[Path], pair: tuple[pyro_tvae.TVAE, pyro_tvae.Guide, torch.Tensor]
) -> dict[str, Callable[[Path], object]]:
    model, guide, x = pair
    drawn = to_arviz(model, guide, x, draws=2)
    return {
        "save": lambda path: pyro_tvae.save(path, model, guide),
        "to_netcdf": lambda path: to_netcdf(drawn, path),
        "to_arviz": lambda path: to_arviz(model, guide, x, draws=2, path=path),
        "figure": lambda path: save(Figure((1, 1)), path),
        "text": lambda path: write_text(path, "text"),
        "likelihood": lambda path: likelihood_run(runs[0], particles=[1], sequences=2, output=path, overwrite=True),
        "calibrate": lambda path: calibrate_run(runs[0], output=path, overwrite=True),
        "posterior": lambda path: posterior_run(runs[0], draws=4, output=path, overwrite=True),
        "compare": lambda path: compare_runs(runs, output=path, overwrite=True),
        "benchmark": lambda path: run_suite(["startup"], output=path, progress=False),
        "to_zarr": lambda path: to_zarr(drawn, path),
        "sweep": begin,
        "train": lambda path: run_with_hydra([*TINY, f"hydra.run.dir={path}"]),
        "reproduce": lambda path: reproduce("fig22", output=path),
    }


def link_to_nothing(place: Path) -> Path:
    place.symlink_to(place.with_name("nothing.png"))
    return place


def link_to_itself(place: Path) -> Path:
    place.symlink_to(place.name)
    return place


def link_to_a_folder(place: Path) -> Path:
    place.with_name("folder").mkdir()
    place.symlink_to(place.with_name("folder"))
    return place


def pipe(place: Path) -> Path:
    os.mkfifo(place)
    return place


def device(place: Path) -> Path:
    place.symlink_to("/dev/null")
    return place


def folder(place: Path) -> Path:
    place.mkdir()
    return place


def file(place: Path) -> Path:
    place.write_text("mine")
    return place


def under_a_file(place: Path) -> Path:
    return file(place) / "deep.png"


def not_to_be_written(place: Path) -> Path:
    return Path("/proc/nowhere") / place.name


NO_FILE = (link_to_nothing, link_to_itself, link_to_a_folder, pipe, device, folder, under_a_file, not_to_be_written)
NO_FOLDER = (link_to_nothing, link_to_itself, pipe, device, file, under_a_file, not_to_be_written)


def seen(home: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mode, path.lstat().st_ino) for path in home.rglob("*")}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs pipes, and a place that nobody can write")
@pytest.mark.parametrize(
    ("name", "place"), [(n, p) for n in FILES for p in NO_FILE] + [(n, p) for n in FOLDERS for p in NO_FOLDER]
)
@pytest.mark.timeout(60)
def test_what_stands_in_the_way_is_named_and_left(
    name: str, place: Callable[[Path], Path], writers: dict[str, Callable[[Path], object]], tmp_path: Path
) -> None:
    path = place(tmp_path / "place.png")
    before = seen(tmp_path)
    _, sentence = answer(lambda: writers[name](path))
    assert sentence is not None
    assert "place.png" in sentence or "nothing.png" in sentence
    assert seen(tmp_path) == before
