"""Orbits: how a topography cuts a lattice into disjoint neighborhoods, from its offsets, without W."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .sums import numbered

__all__ = ["Orbits", "distinct", "partition", "spread", "summed"]

CHUNK = 2**22  # cells that are looked at together


@dataclass(frozen=True)
class Orbits:
    """Disjoint neighbourhoods: ``index[l, p]`` names the orbit of (frame, position); ``size[o]`` counts its members."""

    index: Tensor
    size: Tensor


def spread(value: Tensor, index: Tensor) -> Tensor:
    """One value per orbit, (..., C, orbits), at all its members: (..., S, C, D)."""
    return value[..., index].transpose(-3, -2)


def summed(values: Tensor, index: Tensor, n_orbits: int) -> Tensor:
    """The sums of values (..., S, C, D) over the members of each orbit: (..., C, orbits)."""
    values = values.transpose(-3, -2).flatten(-2)
    sums = values.new_zeros(*values.shape[:-1], n_orbits)
    return sums.scatter_add(-1, index.flatten().expand(values.shape), values)


def partition(
    offsets: Sequence[Sequence[int]], weights: Sequence[float], sizes: Sequence[int], wraps: Sequence[bool]
) -> Orbits | None:
    """The orbits of a lattice where any two neighborhoods are the same or disjoint and every cell is in one, else None.

    None too where W is no matrix of zeros and ones.

    Args:
        offsets: whole numbers (frame, position, …).
        weights: how much each of them counts.
        sizes: lengths of the axes, frames first.
        wraps: whether each axis does, positions all alike. Where they do not, they are a stretch of an endless line,
            and orbits are those of that line, members out of sight included.
    """
    n_frames, *grid = sizes
    circular = wraps[0]
    if not all(wraps[1:]):
        near = [offset for offset in offsets if circular or abs(offset[0]) < n_frames]
        far = [max(map(abs, steps), default=0) for steps in zip(*near, strict=True)] or [0] * len(sizes)
        # On a ring so long that no two neighborhoods that meet reach around it, all is as on the line.
        ring = (n_frames, *(size + 4 * reach for size, reach in zip(grid, far[1:], strict=True)))
        orbits = partition(offsets, weights, ring, (circular, *[True] * len(grid)))
        if orbits is None:
            return None
        seen = orbits.index.view(ring)[tuple(map(slice, sizes))].reshape(n_frames, -1)
        names, index = torch.unique(seen, return_inverse=True)
        return Orbits(index, orbits.size[names])
    terms: dict[tuple[int, ...], float] = {}
    for (dt, *place), weight in zip(offsets, weights, strict=True):
        if circular or abs(dt) < n_frames:
            cell = (dt % n_frames if circular else dt, *(p % size for p, size in zip(place, grid, strict=True)))
            terms[cell] = terms.get(cell, 0.0) + weight
    if not {*terms.values()} <= {0.0, 1.0} or 1.0 not in terms.values():
        return None
    cells = torch.tensor([cell for cell, weight in terms.items() if weight])
    labels = _cosets(cells, sizes) if circular or not bool(cells[:, 0].any()) else _sets(cells, sizes)
    if labels is None:
        return None
    # In the order of W's rows: they are 0 for longer, the later their first member.
    _, index = torch.unique(-labels, return_inverse=True)
    return Orbits(index.reshape(n_frames, -1), index.flatten().bincount())


def distinct(w: Tensor, n_frames: int) -> Orbits | None:
    """The same from a matrix W: equal rows are one orbit."""
    rows, index = torch.unique(w, dim=0, return_inverse=True)
    if not bool(((rows == 0) | (rows == 1)).all()) or bool((rows.sum(0) != 1).any()):
        return None
    return Orbits(index.reshape(n_frames, -1), rows.sum(1).long())


def _cosets(cells: Tensor, sizes: Sequence[int]) -> Tensor | None:
    """The first member of every cell's neighborhood where both axes wrap; None where some overlap.

    On a torus the neighborhood of a cell is the cell plus the set A of offsets. Two of them are the same or disjoint,
    for all cells, exactly where A is a coset ``a + H`` of a subgroup H; then they are H's cosets. H is grown from
    elements of ``A − a``, each of which at least doubles it: a cyclic subgroup by sums of 1, 2, 4, … times its element.
    """
    n, axes = math.prod(sizes), tuple(range(len(sizes)))
    members = torch.zeros(n, dtype=torch.bool)
    members[numbered(cells - cells[0], sizes)] = True
    members, label = members.view(*sizes), torch.arange(n).view(*sizes)
    spanned = torch.zeros_like(members)
    spanned[(0,) * len(sizes)] = True
    while bool((rest := members & ~spanned).any()):
        step = rest.nonzero()[0].tolist()
        order = math.lcm(*(size // math.gcd(size, shift) for size, shift in zip(sizes, step, strict=True)))
        for power in range(math.ceil(math.log2(order))):
            shift = [2**power * one % size for one, size in zip(step, sizes, strict=True)]
            spanned, label = spanned | spanned.roll(shift, axes), torch.minimum(label, label.roll(shift, axes))
        if bool((spanned & ~members).any()):
            return None
    return label.roll((-cells[0]).tolist(), axes)  # row r is about the coset of r + a


def _sets(cells: Tensor, sizes: Sequence[int]) -> Tensor | None:
    """The same where frames do not wrap: every cell's neighborhood is compared with that of its first member."""
    n = math.prod(sizes)
    rows = torch.cartesian_prod(*map(torch.arange, sizes)).reshape(n, 1, -1)
    pieces = cells.split(max(1, CHUNK // n))

    def met(piece: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and the cells in them that these offsets lead to."""
        target = rows + piece
        inside = (target[..., 0] >= 0) & (target[..., 0] < sizes[0])
        return inside.nonzero()[:, 0], numbered(target[inside], sizes)

    label, owner = torch.full((n,), n), torch.full((n,), n)
    for piece in pieces:
        row, cell = met(piece)
        label.scatter_reduce_(0, row, cell, "amin")
    size = torch.zeros(n, dtype=torch.long)
    for piece in pieces:
        row, cell = met(piece)
        owner[cell] = label[row]
        size += row.bincount(minlength=n)
    if bool((owner == n).any()) or not torch.equal(size, owner.bincount(minlength=n + 1)[label]):
        return None
    for piece in pieces:
        row, cell = met(piece)
        if not torch.equal(owner[cell], label[row]):
            return None
    return label
