"""Files that commands write: refused before anything is computed, and never at the price of another one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from untrained_runs import make_run

import pyro_tvae
from pyro_tvae.experiments.commands import calibrate, compare, likelihood, posterior
from pyro_tvae.experiments.commands.calibrate import calibrate_run
from pyro_tvae.experiments.commands.compare import compare_runs
from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run
from pyro_tvae.experiments.commands.likelihood import likelihood_run
from pyro_tvae.experiments.commands.posterior import posterior_run
from pyro_tvae.experiments.reports import figures
from pyro_tvae.experiments.runs.outputs import check_replaceable
from pyro_tvae.files import atomic_write


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


def test_the_same_command_again_takes_no_estimate_away_until_it_has_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "plain")
    likelihood_run(run, particles=[1, 2], sequences=2)
    file, estimate = run / "likelihood.json", likelihood.log_likelihood
    rows = json.loads(file.read_text())["rows"]

    def killed(*given: object, **options: object) -> object:
        if given[3] == 2:
            raise KeyboardInterrupt
        return estimate(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(likelihood, "log_likelihood", killed)
    with pytest.raises(KeyboardInterrupt):
        likelihood_run(run, particles=[1, 2], sequences=2)
    assert json.loads(file.read_text())["rows"] == rows


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
