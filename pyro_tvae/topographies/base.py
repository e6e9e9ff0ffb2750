"""The base of topographies: which local energies pool which latents on the (frame, position) lattice.

Every topography is a set of offsets (dt, dp) on the lattice of frames and positions. It builds one non-negative
neighbourhood matrix W, shared by all capsules, and one matrix product applies it: ``v = W u²``. Pure tensors, no Pyro.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..parts import Part

__all__ = ["Orbits", "Topography", "pooled", "roll", "window"]

BOUNDARIES = ("circular", "truncate")
MOST_OFFSETS = 2**20  # W takes as many numbers for each of its rows before they are added up


def window(length: int) -> range:
    """Offset window of a kernel: ``{-(k-1-k//2), …, +k//2}``; an even kernel reaches one step further ahead."""
    return range(-(length - 1 - length // 2), length // 2 + 1)


def check_offsets(owner: str, number: int, given: str) -> None:
    """Raise ValueError where a neighbourhood would have more offsets than anything can be done with."""
    if number > MOST_OFFSETS:
        raise ValueError(f"{owner}: {given} make more than {MOST_OFFSETS:,} offsets; expected smaller ones.")


def roll(t: Tensor, shift: int | Tensor) -> Tensor:
    """Roll every capsule: the activation at position p moves to position p + shift (circular).

    Args:
        t: (..., D), any leading dimensions.
        shift: positions to move by; an integer, or an integer tensor that broadcasts against ``t.shape[:-1]``
            (one shift per capsule, frame, sequence, …).

    Returns:
        A tensor of the broadcast shape (..., D).

    Example:
        >>> roll(torch.tensor([1.0, 2.0, 3.0]), 1)
        tensor([3., 1., 2.])
    """
    if isinstance(shift, int):
        return torch.roll(t, shift, dims=-1)
    if not isinstance(shift, Tensor) or shift.is_floating_point():
        what = f"has dtype {shift.dtype}" if isinstance(shift, Tensor) else f"is {shift!r}"
        raise TypeError(f"roll: shift {what}; expected whole positions (int or an integer tensor).")
    size = t.shape[-1]
    source = (torch.arange(size, device=t.device) - shift.to(t.device).unsqueeze(-1)) % size
    shape = torch.broadcast_shapes(t.shape, source.shape)
    return t.expand(shape).gather(-1, source.expand(shape))


def pooled(e: Tensor, w: Tensor) -> Tensor:
    """``W e`` for every capsule, with W of shape (S·D, S·D): (..., S, C, D) -> same shape."""
    rows = e.transpose(-3, -2).flatten(-2) @ w.mT
    return rows.unflatten(-1, (e.shape[-3], e.shape[-1])).transpose(-3, -2)


@dataclass(frozen=True)
class Orbits:
    """Disjoint neighbourhoods: ``index[l, p]`` names the orbit of (frame, position); ``size[o]`` counts its members."""

    index: Tensor
    size: Tensor


class Topography(Part, nn.Module):
    """A neighbourhood structure on the (frame, position) lattice; subclasses only list its offsets.

    ``v[l, p] = sum over offsets (dt, dp) of weight[dt, dp] · u[l + dt, p + dp]²`` (Keller & Welling 2021,
    "Topographic VAEs learn Equivariant Capsules", https://arxiv.org/abs/2109.01394, eq. 8-10).

    Args:
        boundary: ``"circular"`` wraps frames; ``"truncate"`` drops the terms before the first and after the last frame
            (for sequences that do not close). Positions always wrap.
        learned: make the weight of every offset a positive parameter (softplus), initialised to 1 as in the paper.

    Attributes:
        grid: lengths of the position axes, a tuple whose product is the number of positions D; None is one axis of D.
    """

    grid: Any = None

    def __init__(self, *, boundary: str = "circular", learned: bool = False) -> None:
        super().__init__()
        if boundary not in BOUNDARIES:
            raise ValueError(
                f"{type(self).__name__}: boundary is {boundary!r}; expected one of {', '.join(BOUNDARIES)}."
            )
        self.boundary = boundary
        self._cache: dict[tuple[object, ...], Tensor] = {}
        # log(e - 1) is where softplus gives exactly the paper's weight of one.
        self.raw_weight = nn.Parameter(torch.full((len(self.offsets()),), 0.5413248546129181)) if learned else None

    def offsets(self) -> list[tuple[int, ...]]:
        """The offsets (dt, dp) of the latents that are summed into one local energy."""
        raise NotImplementedError

    def coefficients(self) -> list[float]:
        """How much each offset counts, one number of at least 0 per offset; 1 unless a subclass says otherwise."""
        return [1.0] * len(self.offsets())

    def lattice(self, n_frames: int, n_positions: int) -> tuple[int, ...]:
        """Lengths of the axes that the offsets run over, frames first; their product is S·D."""
        self.check(n_frames, n_positions)
        return (n_frames, *(self.grid or (n_positions,)))

    def neighborhood(self, n_frames: int, n_positions: int) -> Tensor:
        """W of shape (S·D, S·D): row = (frame, position) of v, column = (frame, position) of u.

        Differentiable in the weights when they are learned.
        """
        sizes = self.lattice(n_frames, n_positions)
        offsets = torch.tensor(self.offsets(), dtype=torch.long).reshape(-1, len(sizes))
        cells = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(-1, len(sizes))
        target = cells.unsqueeze(1) + offsets  # (S·D, offsets, axes)
        inside = torch.ones(target.shape[:-1], dtype=torch.bool)
        if self.boundary == "truncate":
            inside = (target[..., 0] >= 0) & (target[..., 0] < n_frames)
        target = target % torch.tensor(sizes)
        column = torch.zeros(target.shape[:-1], dtype=torch.long)
        for axis, size in enumerate(sizes):
            column = column * size + target[..., axis]
        # Kernels longer than an axis meet a cell more than once; then its terms add up.
        raw = self.raw_weight
        weight = torch.tensor(self.coefficients())
        if raw is not None:
            weight = weight.to(raw) * nn.functional.softplus(raw)
        value = weight * inside.to(weight)
        n = n_frames * n_positions
        return value.new_zeros(n, n).scatter_add(1, column.to(value.device), value.expand(n, -1))

    def matrix(self, n_frames: int, n_positions: int, like: Tensor) -> Tensor:
        """The neighbourhood matrix in ``like``'s dtype and device, built once unless its weights are learned."""
        if self.raw_weight is not None:
            return self.neighborhood(n_frames, n_positions).to(like)
        key = (n_frames, n_positions, like.dtype, like.device)
        if key not in self._cache:
            # Built outside inference mode, so that a matrix first needed by an evaluation also serves training.
            with torch.inference_mode(False):
                w = self.neighborhood(n_frames, n_positions).to(dtype=like.dtype, device=like.device)
            if type(w) not in (Tensor, nn.Parameter):  # a stand-in while the program is exported
                return w
            self._cache[key] = w
        return self._cache[key]

    def pool(self, e: Tensor) -> Tensor:
        """Apply W to non-negative energies: (..., S, C, D) -> same shape."""
        if e.dim() < 3:
            raise ValueError(
                f"energies (u or e) have shape {tuple(e.shape)}; expected (..., frame, capsule, position)."
            )
        return pooled(e, self.matrix(e.shape[-3], e.shape[-1], e))

    def energy(self, u: Tensor) -> Tensor:
        """Local energies (variances) ``v = W u²``: (..., S, C, D) -> same shape."""
        return self.pool(u.square())

    def orbits(self, n_frames: int, n_positions: int) -> Orbits:
        """The orbits of this lattice, where the neighbourhoods are disjoint: equal rows of W share one energy.

        Raises:
            ValueError: the neighbourhoods overlap, or W is not a matrix of zeros and ones.
        """
        w = self.neighborhood(n_frames, n_positions).detach()
        rows, index = torch.unique(w, dim=0, return_inverse=True)
        if self.raw_weight is not None or not bool(((rows == 0) | (rows == 1)).all()) or bool((rows.sum(0) != 1).any()):
            raise ValueError(
                f"OrbitEnergy: the neighbourhoods of {type(self).__name__}({self.extra_repr()}) on {n_frames} frames "
                f"and {n_positions} positions are no disjoint orbits; choose CapsuleRoll(kernel={n_positions}, "
                f"width=0) with {n_positions} frames (topography=orbits), or GaussianEnergy with a guide for it "
                "(prior=gaussian guide=mean_field)."
            )
        return Orbits(index.reshape(n_frames, n_positions), rows.sum(1).long())

    def check(self, n_frames: int, n_positions: int) -> None:
        """Raise ValueError where this topography does not fit a lattice of that size."""
        if self.grid is not None and math.prod(self.grid) != n_positions:
            raise ValueError(
                f"{type(self).__name__}: grid {' x '.join(map(str, self.grid))} has {math.prod(self.grid)} positions, "
                f"but the capsule has {n_positions}; make capsule_dim the product of the grid."
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments().items())
