"""ArviZ, 0.x and 1.x: the one module that imports it and knows where its versions part ways.

In 0.x groups of data are an ``InferenceData``, in 1.x an ``xarray.DataTree``, and they go to files by other roads.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["ArvizData", "assemble", "diagnose", "read", "write"]

# InferenceData under ArviZ 0.x, DataTree under 1.x: both have their groups as attributes.
ArvizData: TypeAlias = Any

ENGINE = "h5netcdf"


def arviz() -> Any:
    """The arviz module, imported when first needed and without its announcement of version 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return import_module("arviz")


def is_legacy() -> bool:
    # By number: ArviZ 1.x answers to the old names, with a warning.
    return int(arviz().__version__.split(".")[0]) < 1


def assemble(groups: Mapping[str, Dataset]) -> ArvizData:
    """One object of ArviZ's from its groups, log-likelihoods in double precision: ``az.loo`` goes wrong in single."""
    groups = {name: group.astype(np.float64) if name == "log_likelihood" else group for name, group in groups.items()}
    # Whole data sets, since the two versions of ``from_dict`` take different arguments.
    if is_legacy():
        return arviz().InferenceData(**groups)
    from xarray import DataTree

    return DataTree.from_dict(dict(groups))


def write(data: ArvizData, path: Path) -> None:
    """Write all groups into one NetCDF file, numbers compressed."""
    if is_legacy():
        data.to_netcdf(str(path), engine=ENGINE)
        return
    # 0.x compresses by itself; a tree is told to.
    numbers = {
        node.path: {name: {"zlib": True} for name, value in node.variables.items() if value.dtype.kind in "biufc"}
        for node in data.leaves
    }
    data.to_netcdf(str(path), engine=ENGINE, encoding=numbers)


def read(path: Path) -> ArvizData:
    """All groups of a NetCDF file, in memory; OSError or ValueError where it is none."""
    if is_legacy():
        # Eager: a lazy file stays open and could not be written again.
        with arviz().rc_context({"data.load": "eager"}):
            return arviz().from_netcdf(str(path), engine=ENGINE)
    from xarray import open_datatree

    with open_datatree(path, engine=ENGINE) as tree:
        return tree.load()


def diagnose(kind: str, draws: Tensor) -> Tensor:
    """Rank-normalised R-hat (``"rhat"``) or bulk ESS (``"ess"``) of every latent: (chain, draw, …) -> (…)."""
    from xarray import Dataset

    flat = draws.reshape(*draws.shape[:2], -1)  # a random scalar has no further dimension
    columns = Dataset({"value": (("chain", "draw", "column"), flat.double().numpy())})
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few draws: the answer is nan
        values = np.asarray(getattr(arviz(), kind)(columns)["value"].values, dtype=np.float64)
    return torch.from_numpy(values).reshape(draws.shape[2:])
