"""ArviZ, 0.x and 1.x: the one module that imports it and knows where its versions part ways.

In 0.x groups of data are an ``InferenceData``, in 1.x an ``xarray.DataTree``; plots have other names, arguments and
results. What is handed out here is the same under both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import Dataset

__all__ = ["ArvizData", "assemble", "diagnose", "forest_figure", "predictive_figure", "read", "write"]

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
    """One object of ArviZ's from its groups."""
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


def diagnose(kind: str, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank-normalised R-hat (``"rhat"``) or bulk ESS (``"ess"``) of every column: (chain, draw, N) -> (N,)."""
    from xarray import Dataset

    columns = Dataset({"value": (("chain", "draw", "column"), draws)})
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few draws: the answer is nan
        return np.asarray(getattr(arviz(), kind)(columns)["value"].values, dtype=np.float64)


def predictive_figure(data: ArvizData, draws: int, canvas: Callable[[], Figure]) -> Figure:
    """Densities of ``draws`` predicted data sets and of the observed one, in the first axis of a figure.

    Args:
        data: with the groups ``posterior_predictive`` and ``observed_data``.
        draws: how many predicted ones to draw.
        canvas: makes an empty figure, where ArviZ draws on one that it is given.
    """
    if is_legacy():
        figure = canvas()
        arviz().plot_ppc(data, num_pp_samples=draws, random_seed=0, textsize=9, ax=figure.add_subplot(), show=False)
        return figure
    return _figure(arviz().plot_ppc_dist(data, num_samples=draws))


def forest_figure(data: ArvizData, canvas: Callable[[], Figure]) -> Figure:
    """Medians, quartiles and 94 % intervals of the group ``posterior``, in the last axis of a figure."""
    if is_legacy():
        figure = canvas()
        arviz().plot_forest(data, combined=True, hdi_prob=0.94, textsize=9, ax=figure.add_subplot(), show=False)
        return figure
    return _figure(arviz().plot_forest(data, combined=True, ci_kind="hdi", ci_probs=(0.5, 0.94)))


def _figure(collection: Any) -> Figure:
    """The figure of what ArviZ 1.x draws on."""
    figure: Figure = collection.viz["figure"].item()
    return figure
