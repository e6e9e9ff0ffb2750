"""A file written under one version of ArviZ is read under the other, value by value.

``arviz-0.23.nc`` and ``arviz-1.3.nc`` were each written by ``python tests/inference/test_arviz_files.py FILE``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import xarray
from xarray import Dataset

from pyro_tvae.inference.arviz_adapter import ArvizData, assemble, write
from pyro_tvae.inference.posterior import from_netcdf, to_netcdf

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
