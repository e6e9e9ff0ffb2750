"""A full disk, as every library that writes our files meets it: one sentence, and the old file as it was.

A limit on the size of files stands for it: each of them fails in the middle, as it does on a disk without room.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_tvae
from pyro_tvae.experiments.reports.style import canvas, save
from pyro_tvae.experiments.runs.files import write_text
from pyro_tvae.files import FolderMoved, atomic_write, check_stays, staying
from pyro_tvae.inference.checkpoints import WholeFiles
from pyro_tvae.inference.posterior import to_arviz, to_netcdf

resource = pytest.importorskip("resource")


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def weights(path: Path) -> None:
    model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
    pyro_tvae.save(path, model, pyro_tvae.MeanFieldGuide(model))


def posterior(path: Path) -> None:
    model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
    to_netcdf(to_arviz(model, pyro_tvae.MeanFieldGuide(model), torch.rand(4, 6, 1, 8, 8), draws=30), path)


def figure(path: Path) -> None:
    drawing = canvas(4)
    drawing.subplots().imshow(np.random.default_rng(0).random((200, 200)))
    save(drawing, path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": weights,
    "last.ckpt": lambda path: WholeFiles().save_checkpoint({"weights": torch.zeros(100_000)}, path),
    "evaluation.json": lambda path: write_text(path, "1" * 100_000),
    "posterior.nc": posterior,
    "figure.png": figure,
    "figure.pdf": figure,
    "figure.svg": figure,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("size", [0, 8192])
def test_a_writer_that_finds_no_room_says_so_in_one_sentence(name: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OSError, match="make room") as caught, file_limit(size):
        WRITERS[name](path)
    assert caught.value.errno is None or caught.value.errno == errno.EFBIG
    assert str(caught.value).startswith(f"{path} cannot be written (File too large); make room.")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert path.read_text() == "old"


def test_what_fails_with_room_left_is_said_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="another kind"), atomic_write(tmp_path / "a"):
        raise RuntimeError("another kind")
    with pytest.raises(PermissionError, match="choose a place that can be"), atomic_write(tmp_path / "a"):
        raise PermissionError(errno.EPERM, "not allowed")
    assert not list(tmp_path.iterdir())


def test_what_a_writer_meets_in_a_temporary_file_is_said_of_the_file_that_it_becomes(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"cannot be written") as caught,
        atomic_write(tmp_path / "a") as outer,
        atomic_write(outer),
    ):
        raise OSError(errno.EIO, "Input/output error")
    assert str(caught.value) == f"{tmp_path / 'a'} cannot be written (Input/output error); choose a place that can be."


def test_a_folder_that_was_made_anew_is_not_the_one_that_was_there(tmp_path: Path) -> None:
    """Though it may get the number of the one that was removed, for a file system gives such a number again."""
    folder = tmp_path / "run"
    folder.mkdir()
    with staying(folder):
        check_stays(folder / "file")
        folder.rmdir()
        folder.mkdir()
        with pytest.raises(FolderMoved, match="was moved, renamed or removed"):
            check_stays(folder / "file")


def test_a_shared_disk_has_another_number_on_every_machine(tmp_path: Path) -> None:
    """As where the jobs of a sweep are done by machines of a cluster, which are told what the first one saw."""
    there = list(os.stat(tmp_path))
    there[stat.ST_DEV] += 7
    with staying(tmp_path, os.stat_result(there)):
        check_stays(tmp_path / "file")
    there[stat.ST_INO] += 1
    with staying(tmp_path, os.stat_result(there)), pytest.raises(FolderMoved):
        check_stays(tmp_path / "file")


def test_a_name_that_is_too_long_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot be written \(File name too long\)"):
        write_text(tmp_path / ("a" * 256), "")
