"""Links, pipes and devices in a run's folder: nothing outside it is read or written, and nothing hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyro_tvae.experiments.runs.files import check_inside, inside


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
