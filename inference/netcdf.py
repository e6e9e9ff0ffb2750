"""NetCDF files, by HDF5: also on file systems without locks, such as some network disks, which HDF5 refuses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_tvae.files import check_room, state_of
from pyro_tvae.locks import unlocked

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["OVERHEAD", "check_same", "check_writes", "open_dataset", "open_file", "write_datasets"]

OVERHEAD = 2**20  # bytes of names and indices, at most


def open_file(path: Path, mode: str = "r", **options: Any) -> Any:
    """A file of h5netcdf's; with ``mode`` ``"w"``, an empty one that is there and nobody else writes."""
    import h5netcdf

    return h5netcdf.File(path, mode, **unlocked(path), **options)


def open_dataset(path: Path, group: str | None = None) -> Dataset:
    """A group of a file, whose values are read when they are used; without a name, its root."""
    import xarray

    options: dict[str, Any] = {"driver_kwds": told} if (told := unlocked(path)) else {}
    return xarray.open_dataset(path, group=group, engine="h5netcdf", **options)


def write_datasets(
    path: Path, groups: Mapping[str | None, Dataset], encodings: Mapping[str | None, Mapping[Hashable, Any]]
) -> None:
    """Write groups into a file that is there and empty; None is its root.

    Not by ``Dataset.to_netcdf``, which cannot tell HDF5 to do without locks.
    """
    from xarray.backends import H5NetCDFStore

    with open_file(path, "w") as file:
        for name, group in groups.items():
            whole = group.compute() if group.chunks else group  # Dask would write when the file is closed
            store = H5NetCDFStore(file if name is None else file.create_group(name))
            whole.dump_to_store(store, encoding=encodings.get(name, {}))


def check_writes(path: Path) -> None:
    """Raise an error where HDF5 writes nothing into a file that is there and empty, which it is afterwards as well."""
    check_room(path, OVERHEAD)  # a full disk HDF5 takes badly
    with open_file(path, "w") as file:
        file.create_group("nothing")
    path.write_bytes(b"")


def check_same(path: Path, mark: Path, written: tuple[int, int]) -> None:
    """Raise ValueError where what data are read from, when they are used, is not what was opened.

    Args:
        path: of the file or folder.
        mark: the file, or one in the folder.
        written: its state when it was opened, see :func:`.state_of`.
    """
    if state_of(mark) != tuple(written):
        raise ValueError(
            f"{path} was written anew, or removed, since these data were read from it; read them again, or read with "
            f"lazy=False what is to outlast {'its file' if path == mark else 'its folder'}."
        )
