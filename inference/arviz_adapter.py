"""ArviZ, 0.x and 1.x: the one module that imports it and knows where its versions part ways.

In 0.x groups of data are an ``InferenceData``, in 1.x an ``xarray.DataTree``, and they go to files by other roads.
"""

from __future__ import annotations

import json
import math
import warnings
import weakref
from collections.abc import Collection, Hashable, Mapping
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_tvae.files import check_room, state_of
from pyro_tvae.wording import in_words

from .labels import Coordinates, Layout
from .netcdf import OVERHEAD, check_same, open_dataset, open_file, write_datasets

if TYPE_CHECKING:
    from xarray import Dataset, Variable

__all__ = [
    "ArvizData",
    "InFile",
    "InMemory",
    "arviz",
    "assemble",
    "check_holds",
    "close",
    "diagnose",
    "groups_of",
    "names_of",
    "read",
    "write",
    "write_zarr",
]

# InferenceData under ArviZ 0.x, DataTree under 1.x: both have their groups as attributes.
ArvizData: TypeAlias = Any

CHUNK = 2**20  # bytes of an array that are compressed as one
LEAST_CHUNK = 2**16  # below, finding them costs more than it saves
REPEATED = "v"  # shuffled bytes compress better, but for energies that many positions share
FILES = "pyro_tvae_files"  # of a Zarr folder: how many files each group and variable has
PACKED = {"scale_factor": np.float32(1)}  # integers that are read as float32


def arviz() -> Any:
    """The arviz module, imported when first needed and without its announcement of version 1.

    Raises:
        FileNotFoundError: it looks for a home folder, and there is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return import_module("arviz")
        except RuntimeError as error:
            if "home" not in str(error):
                raise
            raise FileNotFoundError(
                "ArviZ cannot be imported by a user without a home folder, as of a container; set HOME to a folder "
                "that is there (HOME=/tmp)."
            ) from error


def is_legacy() -> bool:
    # By number: ArviZ 1.x answers to the old names, with a warning.
    return int(arviz().__version__.split(".")[0]) < 1


def assemble(groups: Mapping[str, Dataset], attributes: Mapping[str, Any] | None = None) -> ArvizData:
    """One object of ArviZ's from its groups, with attributes of its own."""
    # Whole data sets, since the two versions of ``from_dict`` take different arguments.
    if is_legacy():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a group, sequence_stats, that its schema does not list
            return arviz().InferenceData(attrs=dict(attributes or {}), **groups)
    from xarray import Dataset, DataTree

    return DataTree.from_dict({"/": Dataset(attrs=dict(attributes or {})), **groups})


class InMemory:
    """Groups whose arrays are filled piece by piece."""

    def __init__(self) -> None:
        self.groups: dict[str, Dataset] = {}

    def open(
        self, group: str, layout: Layout, dtypes: Mapping[str, np.dtype[Any]], rows: int, binary: bool
    ) -> Mapping[str, Any]:
        """Empty arrays of a group, to be filled."""
        from xarray import Dataset

        arrays = {name: np.empty(shape, dtypes[name]) for name, shape in layout.shapes.items()}
        variables = {name: (layout.dims[name], array) for name, array in arrays.items()}
        self.groups[group] = Dataset(variables, coords=layout.coords, attrs=dict(layout.attributes))
        return arrays

    def close(self) -> None:
        """Nothing is left to do."""


class InFile:
    """Groups of a NetCDF file whose arrays are filled piece by piece, so that none is ever whole in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: Any = None

    def open(
        self, group: str, layout: Layout, dtypes: Mapping[str, np.dtype[Any]], rows: int, binary: bool
    ) -> Mapping[str, Any]:
        """Places of a group's arrays, to be filled ``rows`` draws at a time; ``binary`` ones hold zeros and ones."""
        from xarray import Dataset
        from xarray.backends import H5NetCDFStore

        size = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in layout.shapes.items())
        check_room(self.path, size + OVERHEAD)
        if self.file is None:  # opened once: room that is free when it is closed is lost
            self.file = open_file(self.path, "w")
        made = self.file.create_group(group)
        Dataset(coords=layout.coords, attrs=dict(layout.attributes)).dump_to_store(H5NetCDFStore(made))
        places = {}
        for name, shape in layout.shapes.items():
            dtype, attributes = dtypes[name], dict[str, Any]()
            options: dict[str, Any] = {}
            if shape:
                options = {"compression": "gzip", "compression_opts": _level(name), "shuffle": name != REPEATED}
            if dtype.kind == "b":
                dtype, attributes = np.dtype("int8"), {"dtype": "bool"}  # NetCDF has none: this is how xarray says so
            elif binary and dtype == np.float32:
                dtype, attributes = np.dtype("int8"), PACKED
            if shape:
                options["chunks"] = _chunks(layout.dims[name], shape, dtype.itemsize, rows, name)
            variable = made.create_variable(name, layout.dims[name], dtype, **options)
            variable.attrs.update(attributes)
            places[name] = _Place(variable)
        return places

    def close(self) -> None:
        """Write out what is held back."""
        if self.file is not None:
            self.file.close()
            self.file = None


def check_holds(coords: Coordinates, attributes: Mapping[str, Any]) -> None:
    """Raise ValueError where a NetCDF file cannot hold a coordinate or an attribute, before anything is computed."""
    import h5netcdf
    from xarray import Dataset
    from xarray.backends import H5NetCDFStore

    parts: dict[str, dict[str, Any]] = {f"the coordinate {name!r}": {"coords": {name: coords[name]}} for name in coords}
    parts |= {f"the attribute {name!r}": {"attrs": {name: value}} for name, value in attributes.items()}
    for name, part in parts.items():
        with h5netcdf.File(BytesIO(), "w") as file:
            try:
                Dataset(**part).dump_to_store(H5NetCDFStore(file))
                _check_comes_back(Dataset(**part), "every group")
            except Exception as error:  # of many kinds
                raise ValueError(
                    f"to_arviz: no NetCDF file holds {name} ({in_words(error).rstrip('.')}); expected numbers or text, "
                    "under a name without '/'."
                ) from None


def _coming_back(data: ArvizData) -> dict[str, Dataset]:
    """Name -> group, for a file; ValueError where one would not be read as it is."""
    groups = groups_of(data)
    for name, group in groups.items():
        _check_comes_back(group, name)
    return groups


def _check_comes_back(data: Dataset, name: str) -> None:
    """Raise ValueError where a reader would take attributes for how the values are to be decoded, and give others."""
    from xarray import decode_cf

    first = data.isel(dict.fromkeys(data.dims, slice(0, 1)))
    try:
        decoded = decode_cf(first)
    except Exception as error:  # of many kinds
        raise ValueError(
            f"{name} has attributes by which no reader could decode its values ({in_words(error).rstrip('.')}); give "
            "them other names."
        ) from None
    parts = [(name, first.attrs, decoded.attrs)]
    parts += [(f"{name}[{key!r}]", one.attrs, decoded.variables[key].attrs) for key, one in first.variables.items()]
    for place, before, after in parts:
        for lost in before.keys() - after.keys():
            raise ValueError(
                f"{place} has the attribute {lost!r} ({before[lost]!r}), by which whoever reads the file would decode "
                "it into something else; give that attribute another name."
            )


class _Place:
    """An array in a file, that takes values of another type."""

    def __init__(self, variable: Any) -> None:
        self.variable = variable

    def __setitem__(self, place: Any, values: NDArray[Any]) -> None:
        self.variable[place] = values.astype(self.variable.dtype)


def _level(name: Hashable) -> int:
    return 4 if name == REPEATED else 6  # more makes repeated numbers larger, and others smaller


def _chunks(dims: tuple[str, ...], shape: tuple[int, ...], itemsize: int, rows: int, name: str) -> tuple[int, ...]:
    """What is compressed as one: a small array as a whole, of others the draws that are written together."""
    if dims[:2] != ("chain", "draw") or math.prod(shape) * itemsize <= CHUNK:
        return shape
    chunk = (1, min(rows, shape[1]), *shape[2:])
    if math.prod(chunk) * itemsize > CHUNK and dims[2:3] == ("sequence",):
        chunk = (*chunk[:2], 1, *chunk[3:])
    k = dims.index("capsule") if name == REPEATED and "capsule" in dims else None
    if k is not None and math.prod(chunk) * itemsize >= LEAST_CHUNK * chunk[k]:
        chunk = (*chunk[:k], 1, *chunk[k + 1 :])  # one capsule's frames side by side, which repeat each other
    return chunk


def groups_of(data: ArvizData) -> dict[str, Dataset]:
    """Name -> group, whatever the version of ArviZ; TypeError for what is of none."""
    if callable(getattr(data, "groups", None)):
        return {name: data[name] for name in data.groups()}
    if not hasattr(data, "children"):
        raise TypeError(
            f"the data are of type {type(data).__name__}; expected what to_arviz makes, an InferenceData of ArviZ 0.x "
            "or an xarray.DataTree."
        )
    inner = [f"{name}/{deeper}" for name, node in data.children.items() for deeper in node.children]
    inner += [str(name) for name in data.data_vars]
    if inner:
        raise ValueError(
            f"the data hold {', '.join(sorted(inner))} beside groups, or in groups of groups, where ArviZ looks for "
            "nothing; keep them in a group of their own at the first level, or take xarray's own functions."
        )
    return {name: node.to_dataset() for name, node in data.children.items()}


def close(data: ArvizData) -> None:
    """Close the file that data are read from."""
    for group in groups_of(data).values():
        group.close()


def write(data: ArvizData, path: Path) -> None:
    """Write all groups into one NetCDF file, numbers compressed; OSError where they would not fit uncompressed."""
    from xarray import Dataset

    groups = _coming_back(data)
    check_room(path, sum(group.nbytes for group in groups.values()) + OVERHEAD)

    written: dict[str | None, Dataset] = {None: Dataset(attrs=dict(data.attrs))}
    encodings: dict[str | None, dict[Hashable, Any]] = {}
    for name, group in groups.items():
        numbers = {key: value for key, value in group.variables.items() if value.dtype.kind in "biufc"}
        encodings[name] = {key: _encoding(name, key, value) for key, value in numbers.items()}
        written[name] = group
    write_datasets(path, written, encodings)


def _encoding(group: str, name: Hashable, value: Variable) -> dict[str, Any]:
    packed = group.endswith("_predictive") and value.dtype == np.float32 and bool(((value == 0) | (value == 1)).all())
    compression = {"zlib": True, "complevel": _level(name), "shuffle": name != REPEATED}
    return compression | ({"dtype": "int8", "_FillValue": -1, **PACKED} if packed else {})


def write_zarr(data: ArvizData, path: Path) -> None:
    """Write all groups into one Zarr folder; ModuleNotFoundError without the package zarr."""
    from xarray import Dataset

    groups = _coming_back(data)
    Dataset(attrs=dict(data.attrs)).to_zarr(path, mode="a", zarr_format=2, consolidated=False)
    for name, group in groups.items():
        for value in group.variables.values():
            value.encoding = {}  # that of a NetCDF file, where it was read from one
        # Format 2 has strings of fixed length, which format 3 has not yet agreed on.
        texts = {key: value.astype(str) for key, value in group.variables.items() if value.dtype.kind in "OT"}
        group.assign(texts).to_zarr(path, mode="a", group=name, zarr_format=2, consolidated=False)
    # A chunk that is not there reads as nan or 0, and a group as if it had never been.
    file = path / ".zattrs"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    places = [*groups, *(f"{name}/{key}" for name, group in groups.items() for key in group.variables)]
    counts = {place: _count(path / place) for place in places}
    file.write_text(json.dumps({**told, FILES: json.dumps(counts)}), encoding="utf-8")


def _count(folder: Path) -> int:
    """Files in a folder, such as an array's chunks."""
    return sum(path.is_file() for path in folder.glob("*"))


def _tell_of_lost(path: Path, counts: Mapping[str, int]) -> None:
    """Warn where a Zarr folder holds fewer files of a group or variable than were written."""
    lost = [
        f"{there} of {count} files of {name}"
        for name, count in counts.items()
        if (there := _count(path / name)) < count and (path / name).parent.is_dir()  # else its group is named
    ]
    if lost:
        warnings.warn(
            f"{path} holds {', '.join(lost)}: it was copied in part, or written in since; what is missing reads as nan "
            "or 0, or not at all.",
            stacklevel=4,
        )


def read(path: Path, groups: Collection[str] | None = None, lazy: bool = False) -> ArvizData:
    """Groups of a NetCDF file or Zarr folder, in memory or read when used; OSError or ValueError where it is none."""
    names = names_of(path)
    unknown = sorted(set(groups or ()) - set(names))
    if unknown:
        raise KeyError(unknown[0])
    made = {}
    with _opened(path) as root:
        attributes = dict(root.attrs)
    _tell_of_lost(path, json.loads(attributes.pop(FILES, "{}")))
    held = None if not lazy else _held(path) if path.is_file() else _held_folder(path)
    for name in names if groups is None else groups:
        group = _opened(path, name) if held is None else _of_held(held, name)
        # Else a lazy file stays open and could not be written again.
        for value in group.variables.values():
            if "scale_factor" in value.encoding:  # else xarray would write other values of it as whole numbers
                value.encoding = {}
        made[name] = group if lazy else group.load()
        if not lazy:
            group.close()
    return assemble(made, attributes)


def _opened(path: Path, group: str | None = None) -> Dataset:
    return _of_zarr(path, group) if path.is_dir() else open_dataset(path, group)


def _of_zarr(store: Any, group: str | None) -> Dataset:
    import xarray

    return xarray.open_dataset(store, group=group, engine="zarr", consolidated=False)


def _held_folder(path: Path) -> Any:
    from .zarr_folder import SameFolder

    return SameFolder(path.absolute())


def _held(path: Path) -> Any:
    """A file that stays open as long as data are read from it, and so is the one that was there when it was opened.

    xarray's own would be opened again by its name, where others have pushed it out of a cache or a pickle was read; by
    then another file may be there.
    """
    from xarray.backends import CachingFileManager

    path, files = path.absolute(), dict[Any, Any]()
    held = CachingFileManager(_same_file, str(path), state_of(path), mode="r", cache=files)
    weakref.finalize(held, _close_unread, files)  # at the latest while HDF5 can still be asked to
    return held


def _close_unread(files: dict[Any, Any]) -> None:
    while files:
        files.popitem()[1].close()


def _of_held(held: Any, group: str) -> Dataset:
    from xarray import open_dataset
    from xarray.backends import CachingFileManager, H5NetCDFStore

    is_file = isinstance(held, CachingFileManager)
    return open_dataset(H5NetCDFStore(held, group=group)) if is_file else _of_zarr(held, group)


def _same_file(path: str, written: tuple[int, int], mode: str) -> Any:
    check_same(Path(path), Path(path), written)
    return open_file(Path(path), mode, decode_vlen_strings=True, phony_dims="access")


def names_of(path: Path) -> list[str]:
    """Names of the groups in a NetCDF file or Zarr folder; warns of what is in none of them, or deeper."""
    if path.is_dir():
        entries = [entry for entry in path.iterdir() if entry.is_dir()]
        names = sorted(entry.name for entry in entries if (entry / ".zgroup").exists())
        others = [entry.name for entry in entries if entry.name not in names]
        others += [f"{name}/{entry.parent.name}" for name in names for entry in (path / name).glob("*/.zgroup")]
    else:
        with open_file(path) as file:
            names, others = list(file.groups), list(file.variables)
            others += [f"{name}/{inner}" for name in names for inner in file.groups[name].groups]
    if others:
        warnings.warn(
            f"{path} holds {', '.join(sorted(others))}, which is in no group at the first level and not read; take "
            "xarray.open_datatree for that.",
            stacklevel=3,
        )
    return names


def diagnose(kind: str, draws: Tensor) -> Tensor:
    """Rank-normalised R-hat (``"rhat"``) or bulk ESS (``"ess"``) of every latent: (chain, draw, …) -> (…)."""
    from xarray import Dataset

    flat = draws.reshape(*draws.shape[:2], -1)  # a random scalar has no further dimension
    columns = Dataset({"value": (("chain", "draw", "column"), flat.double().numpy())})
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few draws: the answer is nan
        values = np.asarray(getattr(arviz(), kind)(columns)["value"].values, dtype=np.float64)
    return torch.from_numpy(values).reshape(draws.shape[2:])
