"""A file written under one version of ArviZ is read under the other, value by value.

``arviz-0.23.nc`` and ``arviz-1.3.nc`` were each written by ``python tests/inference/test_arviz_files.py FILE``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import xarray
from xarray import Dataset

from pyro_tvae import TVAE, CapsuleRoll, OrbitEnergy, default_guide, load, save
from pyro_tvae.experiments.runs.outputs import request_of
from pyro_tvae.inference import netcdf, posterior
from pyro_tvae.inference.arviz_adapter import ArvizData, assemble, close, groups_of, names_of, write
from pyro_tvae.inference.draws import guide_draws
from pyro_tvae.inference.netcdf import check_writes, open_dataset, open_file
from pyro_tvae.inference.posterior import from_netcdf, to_arviz, to_netcdf, to_zarr

HERE = Path(__file__).resolve().parent


def groups() -> dict[str, Dataset]:
    """Every kind of value that a file of draws holds, by formula."""
    t = (np.arange(2 * 5 * 3 * 4, dtype=np.float32) / 7).reshape(2, 5, 3, 4)
    t.flat[:5] = [np.nan, np.inf, -np.inf, -0.0, np.float32(1e-42)]
    labels = {"label": ("sequence", ["seven", "naïve", ""]), "frame": np.arange(0, 80, 20)}
    attributes = {"method": "importance", "seed": 0}
    sample = ("chain", "draw")
    diverging = np.arange(10).reshape(2, 5) % 3 == 0
    return {
        "posterior": Dataset(
            {"t": ((*sample, "sequence", "frame"), t), "mu": (sample, -np.exp(np.arange(10.0)).reshape(2, 5) / 3)},
            labels,
            attributes,
        ),
        "sample_stats": Dataset(
            {"diverging": (sample, diverging), "pareto_k": ("sequence", [0.5, np.inf, np.nan])}, attrs=attributes
        ),
    }


def test_a_file_of_draws_is_replaced_by_no_call_that_does_not_say_so(tmp_path: Path) -> None:
    """Others' draws, and groups and variables that were added to them."""
    path, model = tmp_path / "posterior.nc", TVAE((1, 4, 4), 3, 1, 3)

    def made(**options: Any) -> None:
        close(to_arviz(model, default_guide(model), torch.rand(2, 3, 1, 4, 4), draws=4, path=path, **options))

    path.touch()  # as the system's own for temporary files does
    made(groups=["posterior"])
    before = path.read_bytes()
    for options in ({}, {"groups": ["posterior"]}, {"groups": ["posterior"], "seed": 1}):
        with pytest.raises(FileExistsError, match=r"posterior\.nc is there already, and would be lost; choose"):
            made(**options)
    assert path.read_bytes() == before
    made(overwrite=True)
    assert {"posterior", "prior"} <= {*names_of(path)}
    assert [file.name for file in tmp_path.iterdir()] == ["posterior.nc"]


def test_a_home_folder_is_where_files_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = TVAE((1, 4, 4), 3, 1, 3)
    pair = model, default_guide(model)
    data = to_arviz(*pair, torch.rand(2, 3, 1, 4, 4), draws=4, path="~/posterior.nc")
    to_netcdf(data, "~/copy.nc")
    to_zarr(data, "~/copy.zarr")
    close(data)
    save("~/pair.safetensors", *pair)
    assert load("~/pair.safetensors")[0].n_frames == 3
    for name in ("posterior.nc", "copy.nc", "copy.zarr"):
        assert torch.as_tensor(from_netcdf(f"~/{name}")["posterior"]["t"].shape)[1] == 4
    names = {"posterior.nc", "copy.nc", "copy.zarr", "pair.safetensors"}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_an_address_is_no_folder_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zarr's own users write to buckets so; draws in a folder called s3: are not where they are looked for."""
    monkeypatch.chdir(tmp_path)
    model = TVAE((1, 4, 4), 3, 1, 3)
    data = to_arviz(model, default_guide(model), torch.rand(2, 3, 1, 4, 4), draws=4)
    for written in (
        lambda: to_zarr(data, "s3://bucket/draws.zarr"),
        lambda: to_netcdf(data, "s3://bucket/draws.nc"),
        lambda: to_arviz(model, default_guide(model), torch.rand(2, 3, 1, 4, 4), draws=4, path="s3://bucket/draws.nc"),
    ):
        with pytest.raises(
            OSError, match=r"s3:/bucket/draws\.\w+ cannot be written \(it is an address, and files are wr"
        ):
            written()
    assert not [*tmp_path.iterdir()]


@contextmanager
def no_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file that HDF5 cannot lock, since it is locked, on what is told to be a file system without locks."""

    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            open_file(path, "a")
        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", none)
            yield


def test_draws_are_written_and_read_where_a_file_system_knows_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS without its daemon: HDF5 opened nothing there, and draws that had taken a night were lost."""
    path, made = tmp_path / "draws.nc", assemble(groups())
    path.touch()
    with no_locks(path, monkeypatch):
        check_writes(path)
        assert not path.read_bytes()
        write(made, path)
    with no_locks(path, monkeypatch):
        for lazy in (False, True):
            again = from_netcdf(path, lazy=lazy)
            assert groups_of(again)["posterior"].identical(groups_of(made)["posterior"])
            close(again)
        assert request_of(path) is None
        with open_dataset(path, "posterior") as group:
            assert "t" in group


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EBADF])
def test_draws_are_written_where_a_file_system_cannot_allocate(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    def none(descriptor: int, start: int, size: int) -> None:
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", none)
    to_netcdf(assemble(groups()), tmp_path / "draws.nc")
    assert groups_of(from_netcdf(tmp_path / "draws.nc"))["posterior"].identical(groups()["posterior"])
    # With O_APPEND, or without leave to read, the C library cannot write zeros in its place.
    assert [mode & (os.O_APPEND | os.O_ACCMODE) for mode in modes] == [os.O_RDWR]


def test_what_no_draws_could_be_written_to_is_named_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, "no HDF5 here")

    model = TVAE((1, 4, 4), 3, 1, 3)
    monkeypatch.setattr(netcdf, "open_file", refuses)
    monkeypatch.setattr(posterior, "nuts", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(OSError, match=r"draws\.nc cannot be written \(no HDF5 here\)"):
        to_arviz(model, default_guide(model), torch.rand(2, 3, 1, 4, 4), method="nuts", path=tmp_path / "draws.nc")


def test_a_zarr_folder_that_was_copied_in_part_is_told_of(tmp_path: Path) -> None:
    model, path = TVAE((1, 4, 4), 3, 1, 3), tmp_path / "a.zarr"
    to_zarr(to_arviz(model, default_guide(model), torch.rand(2, 3, 1, 4, 4), draws=4), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not from_netcdf(path).attrs
    next(file for file in (path / "posterior" / "t").iterdir() if not file.name.startswith(".")).unlink()
    shutil.rmtree(path / "prior")
    # Nor do variables that were added since make up for what is lost.
    Dataset({"mine": ("x", np.arange(3.0))}).to_zarr(
        path, mode="a", group="posterior", zarr_format=2, consolidated=False
    )
    with pytest.warns(
        UserWarning, match=r"a.zarr holds 0 of \d+ files of prior, \d+ of \d+ files of posterior/t: it was copied"
    ):
        from_netcdf(path)


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_what_lies_beside_or_below_the_groups_is_told_of(suffix: str, tmp_path: Path) -> None:
    model, path = TVAE((1, 4, 4), 3, 1, 3), tmp_path / f"a.{suffix}"
    data = to_arviz(model, default_guide(model), torch.rand(2, 3, 1, 4, 4), draws=4)
    (to_netcdf if suffix == "nc" else to_zarr)(data, path)
    mine = Dataset({"mine": ("x", np.arange(3.0))})
    for group in ("posterior/deep", None):
        if suffix == "nc":
            mine.to_netcdf(path, mode="a", engine="h5netcdf", group=group)
        else:
            mine.to_zarr(path, mode="a", group=group, zarr_format=2, consolidated=False)
    with pytest.warns(
        UserWarning, match=rf"a.{suffix} holds mine, posterior/deep, .*which is in no group at the first"
    ):
        assert "posterior" in groups_of(from_netcdf(path))


NO_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "a path as attribute": ({"attributes": {"run": Path("a")}}, "no NetCDF file holds the attribute 'run'"),
    "a truth as attribute": ({"attributes": {"good": True}}, "no NetCDF file holds the attribute 'good'"),
    "paths as coordinate": ({"coords": {"file": [Path("a"), Path("b")]}}, "no NetCDF file holds the coordinate 'file'"),
    "a word of the format's": (
        {"attributes": {"coordinates": "z"}},
        "no NetCDF file holds the attribute 'coordinates'",
    ),
    "a name with a stroke": ({"coords": {"a/b": [1, 2]}}, "no NetCDF file holds the coordinate 'a/b'"),
    "below a file": ({"path": "file/a.nc"}, "file/a.nc cannot be written"),
    "a folder": ({"path": "folder"}, "folder cannot be written"),
    "a link to nothing": ({"path": "link"}, "link cannot be written"),
}


@pytest.mark.parametrize("case", NO_FILES)
def test_what_no_file_can_hold_is_named_before_the_draws(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("link").symlink_to("nowhere")
    before = {*tmp_path.rglob("*")}
    options, said = NO_FILES[case]
    model, x = TVAE((1, 4, 4), 3, 1, 3), torch.rand(2, 3, 1, 4, 4)
    monkeypatch.setattr(posterior, "guide_draws", lambda *_: pytest.fail("draws were made"))
    with pytest.raises((ValueError, OSError), match=said):
        to_arviz(model, default_guide(model), x, draws=4, **{"path": "a.nc", **options})
    assert {*tmp_path.rglob("*")} == before


# attributes by which readers decode values -> what is said of them
DECODED: dict[str, tuple[Any, str]] = {
    "missing_value": (3, r"mine\['a'\] has the attribute 'missing_value' \(3\), by which whoever reads the file would"),
    "units": ("days since 2000-01-01", r"mine\['a'\] has the attribute 'units' \('days since 2000-01-01'\), by which"),
    "dtype": ("bool", r"mine\['a'\] has the attribute 'dtype' \('bool'\), by which"),
}


@pytest.mark.parametrize("write_to", [to_netcdf, to_zarr])
def test_attributes_that_would_change_values_when_they_are_read_are_refused(
    write_to: Callable[[ArvizData, Path], Path], tmp_path: Path
) -> None:
    values = Dataset({"a": ("n", np.array([1.0, 2.0, 3.0]), {"unit": "nats", "comment": "of mine"})})
    for name, (value, said) in DECODED.items():
        spoiled = values.copy()
        spoiled["a"].attrs[name] = value
        with pytest.raises(ValueError, match=said):
            write_to(assemble({"mine": spoiled}, {}), tmp_path / "spoiled")
    spoiled["a"].attrs = {"units": "frames since the start"}
    with pytest.raises(ValueError, match=r"^mine has attributes by which no reader could decode its values \(.*\);"):
        write_to(assemble({"mine": spoiled}, {}), tmp_path / "spoiled")
    assert not [*tmp_path.iterdir()]
    again = from_netcdf(write_to(assemble({"mine": values}, {}), tmp_path / "sound"))["mine"]
    assert values["a"].identical(again["a"])


def test_a_tree_of_xarray_s_is_written_under_either_version_and_nothing_else(tmp_path: Path) -> None:
    made = groups()
    again = from_netcdf(to_netcdf(xarray.DataTree.from_dict(made), tmp_path / "a.nc"))
    assert made["posterior"]["t"].equals(again["posterior"]["t"])
    for other in (made, made["posterior"], None):
        with pytest.raises(TypeError, match=f"^the data are of type {type(other).__name__}; expected what to"):
            to_netcdf(other, tmp_path / "b.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]


def test_room_for_draws_by_nuts_is_looked_for_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(partial: Path, size: int) -> None:
        assert 2e5 < size < 2e6
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(posterior, "check_room", full)
    monkeypatch.setattr(posterior, "nuts", lambda *_, **__: pytest.fail("draws were made"))
    model, x = TVAE((1, 4, 4), 3, 1, 3), torch.rand(2, 3, 1, 4, 4)
    with pytest.raises(OSError, match=r"a.nc cannot be written \(No space left on device\); make room"):
        to_arviz(model, default_guide(model), x, method="nuts", draws=300, path=tmp_path / "a.nc")


@pytest.mark.parametrize("method", ["guide", "importance", "nuts"])
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("name", ["draw", "chain", "frame", "mine"])
def test_a_site_that_is_called_like_an_axis_is_refused_before_draws(
    name: str, written: bool, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Named(TVAE):
        def heads(self, t: torch.Tensor) -> None:
            pyro.deterministic(name, t.sum((-1, -2, -3)), event_dim=0)

    for drawing in ("nuts", "guide_draws"):
        monkeypatch.setattr(posterior, drawing, lambda *_, **__: pytest.fail("draws were made"))
    model, x = Named((1, 4, 4), 3, 1, 3), torch.rand(2, 3, 1, 4, 4)
    coords = {"mine": np.arange(2)} if name == "mine" else None
    with pytest.raises(ValueError, match=f"to_arviz: '{name}' is a site of the model and the name of an axis or a coo"):
        to_arviz(
            model, default_guide(model), x, method=method, coords=coords, path=tmp_path / "a.nc" if written else None
        )
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("draws", [1, 20])
@pytest.mark.parametrize("method", ["guide", "importance", "nuts"])
@pytest.mark.parametrize("axis", ["sequence", "frame", "capsule", "position", "channel", "height", "width", "orbit"])
def test_names_of_another_number_than_an_axis_has_are_refused_before_draws(
    axis: str, method: str, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, drawing = [], posterior.guide_draws

    def few(*given: Any) -> Any:
        made.append(given[5])
        return drawing(*given)

    monkeypatch.setattr(posterior, "guide_draws", few)
    monkeypatch.setattr(posterior, "nuts", lambda *_, **__: pytest.fail("draws were made"))
    model, x = TVAE((1, 4, 4), 3, 1, 3, CapsuleRoll(3, 0), prior=OrbitEnergy()), torch.rand(2, 3, 1, 4, 4)
    with pytest.raises(ValueError, match=rf"^to_arviz: coordinate '{axis}' has 9 values; expected \d\.$"):
        to_arviz(model, default_guide(model), x, method=method, draws=draws, coords={axis: range(9)})
    assert made == [min(draws, 2) if method != "nuts" else 2]


@pytest.mark.parametrize("lazy", [False, True])
def test_what_was_kept_as_whole_numbers_may_become_others(lazy: bool, tmp_path: Path) -> None:
    """Written by xarray, as ArviZ does, which writes what it has read as it was."""
    model = TVAE((1, 4, 4), 3, 1, 3)
    data = to_arviz(model, default_guide(model), torch.rand(2, 3, 1, 4, 4), draws=4, path=tmp_path / "a.nc")
    close(data)
    group = from_netcdf(tmp_path / "a.nc", lazy=lazy)["posterior_predictive"]
    x = 0.37 * Dataset(group.data_vars).x
    x.encoding = dict(group.x.encoding)
    Dataset({"x": x}).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "b.nc", engine="h5netcdf") as again:
        assert {*np.unique(again.x.values)} == {np.float32(0), np.float32(0.37)}


def test_two_calls_do_not_write_one_file_of_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that began later ends at once, and not the other one in vain when its draws are made."""
    path, model = tmp_path / "new" / "posterior.nc", TVAE((1, 4, 4), 3, 1, 3)

    def write() -> None:
        close(to_arviz(model, default_guide(model), torch.rand(2, 3, 1, 4, 4), draws=4, path=path))

    def drawn(*arguments: Any) -> Any:
        monkeypatch.setattr(posterior, "guide_draws", guide_draws)
        with pytest.raises(BlockingIOError, match=r"another call is writing .*posterior\.nc; wait for its end"):
            write()
        return guide_draws(*arguments)

    monkeypatch.setattr(posterior, "guide_draws", drawn)
    write()
    assert [file.name for file in path.parent.iterdir()] == ["posterior.nc"]


def same(data: ArvizData) -> None:
    for group, expected in groups().items():
        found = Dataset(data[group].data_vars, data[group].coords, data[group].attrs)
        for name, values in expected.variables.items():
            read = found.variables[name]
            assert read.dims == values.dims
            assert read.dtype.kind == values.dtype.kind or {read.dtype.kind, values.dtype.kind} <= set("UOT")
            if values.dtype.kind in "biufc":
                assert read.dtype == values.dtype
                assert read.values.tobytes() == values.values.tobytes()  # nan and −0 too, bit for bit
            else:
                assert [str(value) for value in read.values] == [str(value) for value in values.values]
        assert set(found.variables) == set(expected.variables)
        assert {name: found.attrs[name] for name in expected.attrs} == expected.attrs
        xarray.testing.assert_equal(found, expected)


@pytest.mark.parametrize("name", ["arviz-0.23.nc", "arviz-1.3.nc"])
def test_a_file_of_either_version_is_read(name: str, tmp_path: Path) -> None:
    data = from_netcdf(HERE / name)
    same(data)
    same(from_netcdf(to_netcdf(data, tmp_path / "again.nc")))


def test_a_file_written_here_is_read_here(tmp_path: Path) -> None:
    same(from_netcdf(to_netcdf(assemble(groups()), tmp_path / "file.nc")))


def test_numbers_are_compressed_under_either_version(tmp_path: Path) -> None:
    zeros = Dataset({"t": (("chain", "draw"), np.zeros((10, 100_000)))})
    path = to_netcdf(assemble({"posterior": zeros}), tmp_path / "file.nc")
    assert path.stat().st_size < 100_000  # of 8,000,000 bytes


if __name__ == "__main__":
    write(assemble(groups()), Path(sys.argv[1]))


def numbered(number: float) -> ArvizData:
    return assemble({"posterior": Dataset({"t": (("chain", "draw"), np.full((1, 4), number))})}, {"note": "mine"})


def test_data_that_are_read_lazily_stay_those_of_their_file(tmp_path: Path) -> None:
    """Whatever is written to its path meanwhile, and however many files xarray keeps open; a pickle says so instead."""
    path = to_netcdf(numbered(1.0), tmp_path / "same.nc")
    before = from_netcdf(path, lazy=True)
    part, kept = before.posterior["t"].isel(draw=slice(2)), pickle.dumps(before.posterior)
    assert float(pickle.loads(kept)["t"].sum()) == 4.0
    to_netcdf(numbered(22.0), path)
    os.utime(path, ns=(1, 1))  # as much later as a clock can tell
    with xarray.set_options(file_cache_maxsize=1):
        others = [from_netcdf(path, lazy=True) for _ in range(3)]
        assert [float(other.posterior["t"].sum()) for other in others] == [88.0] * 3
        assert float(part.sum()) == 2.0
        assert float(before.posterior["t"].sum()) == 4.0
    with pytest.raises(ValueError, match=r"same.nc was written anew, or removed, since these data were read"):
        pickle.loads(kept)["t"].sum()


@pytest.mark.parametrize("anew", [True, False])
def test_a_zarr_folder_that_is_read_lazily_is_the_one_that_was_opened(anew: bool, tmp_path: Path) -> None:
    """Zarr itself reads what lies there by then, and of what does not, missing values."""
    path = to_zarr(numbered(1.0), tmp_path / "same.zarr")
    before = from_netcdf(path, lazy=True)
    part, kept = before.posterior["t"].isel(draw=slice(2)), pickle.dumps(before.posterior)
    assert [float(one["t"].sum()) for one in (before.posterior.copy(), pickle.loads(kept))] == [4.0, 4.0]
    if anew:
        path.rename(tmp_path / "former.zarr")
        to_zarr(numbered(22.0), path)
        os.utime(path / ".zgroup", ns=(1, 1))
        assert float(from_netcdf(path, lazy=True).posterior["t"].sum()) == 88.0
    else:
        shutil.rmtree(path)
    for read in (part.sum, lambda: pickle.loads(kept)["t"].sum()):
        with pytest.raises(ValueError, match=r"same.zarr was written anew, or removed, since these data were read"):
            read()


def test_a_process_that_ends_with_lazy_data_ends_in_silence(tmp_path: Path) -> None:
    path = to_netcdf(numbered(1.0), tmp_path / "same.nc")
    code = "import sys\nfrom pyro_tvae.inference import from_netcdf\ndata = from_netcdf(sys.argv[1], lazy=True)\n"
    code += "print(float(data.posterior['t'].sum()))"
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.stderr) == ("4.0\n", "")


@pytest.mark.parametrize("write_to", [to_netcdf, to_zarr])
def test_attributes_of_the_whole_come_back(write_to: Callable[[ArvizData, Path], Path], tmp_path: Path) -> None:
    if write_to is to_zarr:
        pytest.importorskip("zarr")
    path = write_to(numbered(1.0), tmp_path / "data")
    assert from_netcdf(path).attrs == {"note": "mine"}
    assert float(from_netcdf(path).posterior["t"].sum()) == 4.0
