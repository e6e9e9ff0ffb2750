"""Labels: names and coordinates for the dimensions of a posterior's arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_tvae import TVAE

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["coordinates", "dataset"]

SAMPLE = ("chain", "draw")
LATTICE = ("sequence", "frame", "capsule", "position")
PIXELS = ("sequence", "frame", "channel", "height", "width")
SITES = {"z": LATTICE, "u": LATTICE, "v": LATTICE, "t": LATTICE, "e": ("sequence", "capsule", "orbit"), "mu": ()}
STATISTICS = {
    "log_weight": (*SAMPLE, "sequence"),
    "diverging": SAMPLE,
    "pareto_k": ("sequence",),
    "ess": ("sequence",),
    "rhat": ("sequence",),
}


def _dimensions(group: str, name: str, value: Tensor, shared: Collection[str]) -> tuple[str, ...]:
    if group == "sample_stats":
        return STATISTICS[name]
    if group == "observed_data":
        return PIXELS if name == "x" else ("sequence", *_own_dimensions(name, value.dim() - 1))
    if group == "log_likelihood" and name != "x":
        return (*SAMPLE, "sequence")[: value.dim()]
    if name in shared:
        return (*SAMPLE, *_own_dimensions(name, value.dim() - 2))
    if name == "x":
        return (*SAMPLE, "sequence") if group == "log_likelihood" else (*SAMPLE, *PIXELS)
    if name == "e" and value.dim() == len(SAMPLE) + len(LATTICE):  # one energy per latent, not per orbit
        return (*SAMPLE, *LATTICE)
    # An energy prior of a user's has dimensions of its own, named as ArviZ would.
    return (*SAMPLE, *SITES.get(name, ("sequence", *_own_dimensions(name, value.dim() - 3))))


def _own_dimensions(name: str, n: int) -> tuple[str, ...]:
    return tuple(f"{name}_dim_{i}" for i in range(n))


def coordinates(
    coords: Mapping[str, Any], model: TVAE, x: Tensor, taken: Collection[str]
) -> dict[str, tuple[tuple[str, ...], NDArray[Any]]]:
    """User's coordinates as name -> (dimensions, values); those of a dimension replace its 0, 1, 2, …"""
    dimensions = {*PIXELS, *LATTICE, "orbit"}
    placed: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
    for name, given in coords.items():
        values = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
        if name in dimensions and values.ndim == 1:
            placed[name] = ((name,), values)
        elif name in {*SAMPLE, *dimensions, *SITES, *STATISTICS, *taken}:
            raise ValueError(f"to_arviz: a coordinate cannot be called {name!r}, which is taken; choose another name.")
        elif values.shape in ((len(x),), (len(x), model.n_frames)):
            placed[name] = (("sequence", "frame")[: values.ndim], values)
        else:
            raise ValueError(
                f"to_arviz: coordinate {name!r} has shape {values.shape}; expected ({len(x)},), one value per "
                f"sequence, or ({len(x)}, {model.n_frames}), one per sequence and frame."
            )
    return placed


def dataset(
    group: str,
    variables: Mapping[str, Tensor],
    coords: Mapping[str, tuple[tuple[str, ...], NDArray[Any]]],
    attributes: Mapping[str, Any],
    shared: Collection[str],
) -> Dataset:
    from xarray import Dataset

    data = {
        name: (_dimensions(group, name, value, shared), value.detach().cpu().numpy())
        for name, value in variables.items()
    }
    sizes = {name: n for dims, value in data.values() for name, n in zip(dims, value.shape, strict=True)}
    for name, (_, values) in coords.items():
        if name in sizes and len(values) != sizes[name]:
            raise ValueError(f"to_arviz: coordinate {name!r} has {len(values)} values; expected {sizes[name]}.")
    index = {name: ((name,), np.arange(n)) for name, n in sizes.items()}
    # ArviZ 1.x cannot stack variables of which some have a coordinate and some (μ, energies of orbits) have not.
    shared = set.intersection(*(set(dims) for dims, _ in data.values())) if data else set()
    named = {name: entry for name, entry in coords.items() if name in sizes or set(entry[0]) <= shared}
    return Dataset(data, coords=index | named, attrs=dict(attributes))
