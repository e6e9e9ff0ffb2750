"""Labels: names and coordinates for the dimensions of a posterior's arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_tvae import TVAE

__all__ = ["Coordinates", "Layout", "check_apart", "coordinates", "layout"]

SAMPLE = ("chain", "draw")
LATTICE = ("sequence", "frame", "capsule", "position")
PIXELS = ("sequence", "frame", "channel", "height", "width")
SITES = {"z": LATTICE, "u": LATTICE, "v": LATTICE, "t": LATTICE, "e": ("sequence", "capsule", "orbit"), "mu": ()}
OF_GUIDE = ("guide_mean_difference", "guide_variance_ratio")
STATISTICS: dict[str, tuple[str, ...]] = {
    "log_weight": (*SAMPLE, "sequence"),
    **dict.fromkeys(("lp", "energy", "tree_depth", "step_size", "acceptance_rate", "diverging"), SAMPLE),
    **dict.fromkeys(("ess", "pareto_k", "distinct_draws", "rhat", *OF_GUIDE), ("sequence",)),
}
ITEM = "item"  # the sequence's place in its split

Coordinates: TypeAlias = Mapping[str, tuple[tuple[str, ...], NDArray[Any]]]


class Layout(NamedTuple):
    """A group's dimensions, coordinates and attributes, before there are values.

    Attributes:
        dims: variable -> names of its dimensions.
        shapes: variable -> its shape.
        coords: name -> (dimensions, values).
    """

    dims: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]
    coords: Coordinates
    attributes: Mapping[str, Any]


def _dimensions(group: str, name: str, n: int, shared: Collection[str], one_prior: bool) -> tuple[str, ...]:
    """Names of a variable's n dimensions."""
    if group in ("sample_stats", "sequence_stats"):
        return STATISTICS[name]
    if group == "constant_data":
        return _own_dimensions(name, n)
    if group == "observed_data":
        return PIXELS if name == "x" else ("sequence", *_own_dimensions(name, n - 1))
    if group == "log_likelihood" or (group == "log_prior" and name not in shared):
        return (*SAMPLE, "sequence")[:n]
    if name in shared or group == "log_prior":
        return (*SAMPLE, *_own_dimensions(name, n - 2))
    of_prior = one_prior and group.startswith("prior")
    if of_prior:
        n += 1
    if name == "x":
        own: tuple[str, ...] = PIXELS
    elif name == "e" and n == len(SAMPLE) + len(LATTICE):  # one energy per latent, not per orbit
        own = LATTICE
    else:
        # An energy prior of a user's has dimensions of its own, named as ArviZ would.
        own = SITES.get(name, ("sequence", *_own_dimensions(name, n - 3)))
    return (*SAMPLE, *(dim for dim in own if not (of_prior and dim == "sequence")))


def _own_dimensions(name: str, n: int) -> tuple[str, ...]:
    return tuple(f"{name}_dim_{i}" for i in range(n))


def coordinates(
    coords: Mapping[str, Any], model: TVAE, x: Tensor, taken: Collection[str]
) -> dict[str, tuple[tuple[str, ...], NDArray[Any]]]:
    """User's coordinates as name -> (dimensions, values); those of a dimension replace its 0, 1, 2, …

    Sequences are called by their items, so that what is joined by label is joined rightly.
    """
    dimensions = {*PIXELS, *LATTICE, "orbit"}
    placed: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {ITEM: (("sequence",), np.arange(len(x)))}
    for name, given in coords.items():
        values = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
        values = values.copy()  # the user's own may change
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
    item = placed[ITEM][1]
    if item.ndim == 1 and len(np.unique(item)) == len(item):
        placed.setdefault("sequence", (("sequence",), item))
    return placed


def check_apart(variables: Collection[str], coords: Coordinates) -> None:
    """Raise ValueError where a variable is called like an axis or a coordinate, beside which it has no place."""
    if taken := sorted({*variables} & {*SAMPLE, *LATTICE, *PIXELS, "orbit", *coords}):
        raise ValueError(
            f"to_arviz: {taken[0]!r} is a site of the model and the name of an axis or a coordinate; call one of the "
            "two otherwise."
        )


def layout(
    group: str,
    shapes: Mapping[str, tuple[int, ...]],
    coords: Coordinates,
    attributes: Mapping[str, Any],
    shared: Collection[str],
    one_prior: bool = False,
) -> Layout:
    """How variables of these shapes are laid out in a group.

    Raises:
        ValueError: a coordinate has another length than its dimension.
    """
    dims = {name: _dimensions(group, name, len(shape), shared, one_prior) for name, shape in shapes.items()}
    sizes = {dim: n for name, shape in shapes.items() for dim, n in zip(dims[name], shape, strict=True)}
    for name, (_, values) in coords.items():
        if name in sizes and len(values) != sizes[name]:
            raise ValueError(f"to_arviz: coordinate {name!r} has {len(values)} values; expected {sizes[name]}.")
    index = {name: ((name,), np.arange(n)) for name, n in sizes.items()}
    # ArviZ 1.x cannot stack variables of which some have a coordinate and some (random weights, energies of orbits)
    # have not. Nobody stacks statistics.
    every = [*map(set, dims.values())]
    common = (set.union if group == "sample_stats" else set.intersection)(*every) if every else set()
    named = {name: entry for name, entry in coords.items() if name in sizes or set(entry[0]) <= common}
    return Layout(dims, dict(shapes), index | named, attributes)
