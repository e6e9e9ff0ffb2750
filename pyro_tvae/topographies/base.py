"""The base of topographies: which local energies pool which latents on the (frame, position) lattice.

Every topography is a set of offsets (dt, dp) on the lattice of frames and positions, which stand for one non-negative
neighbourhood matrix W, shared by all capsules: ``v = W u²``. On small lattices one product with W applies it, on larger
ones sums over the offsets do. Pure tensors, no Pyro.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..parts import Part
from .orbits import Orbits, distinct, partition
from .sums import Sums, inside, numbered

__all__ = ["Orbits", "Topography", "pooled", "roll", "window"]

# What wraps: frames, positions.
BOUNDARIES = {"circular": (True, True), "truncate": (False, True), "open": (False, False)}
LARGEST = 2**30  # bytes of a W that is shown
# Rows of W up to which one product with it is the fastest: measured on one thread of a CPU, forward and backward.
ROWS = 450
MOST_OFFSETS = 2**20  # W takes as many numbers for each of its rows before they are added up


def window(length: int) -> range:
    """Offset window of a kernel: ``{-(k-1-k//2), …, +k//2}``; an even kernel reaches one step further ahead."""
    return range(-(length - 1 - length // 2), length // 2 + 1)


def check_offsets(owner: str, number: int, given: str) -> None:
    """Raise ValueError where a neighbourhood would have more offsets than anything can be done with."""
    if number > MOST_OFFSETS:
        raise ValueError(f"{owner}: {given} make more than {MOST_OFFSETS:,} offsets; expected smaller ones.")


def roll(t: Tensor, shift: int | Tensor, entering: Tensor | None = None) -> Tensor:
    """Roll every capsule: the activation at position p moves to position p + shift.

    Args:
        t: (..., D), any leading dimensions.
        shift: positions to move by; an integer, or an integer tensor that broadcasts against ``t.shape[:-1]``
            (one shift per capsule, frame, sequence, …).
        entering: (..., D), broadcasting against the result, what stands at the positions that nothing moves to, where
            what leaves a capsule at one end does not come back at the other. Default: it does, positions wrap.

    Returns:
        A tensor of the broadcast shape (..., D).

    Example:
        >>> roll(torch.tensor([1.0, 2.0, 3.0]), 1)
        tensor([3., 1., 2.])
        >>> roll(torch.tensor([1.0, 2.0, 3.0]), 1, entering=torch.zeros(3))
        tensor([0., 1., 2.])
    """
    if entering is not None:
        moved = roll(t, shift)
        source = torch.arange(t.shape[-1], device=t.device) - torch.as_tensor(shift, device=t.device).unsqueeze(-1)
        return torch.where((source >= 0) & (source < t.shape[-1]), moved, entering)
    if isinstance(shift, int):
        return torch.roll(t, shift, dims=-1)
    if not isinstance(shift, Tensor) or shift.is_floating_point() or shift.dtype == torch.bool:
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


class Topography(Part, nn.Module):
    """A neighbourhood structure on the (frame, position) lattice; subclasses only list its offsets.

    ``v[l, p] = sum over offsets (dt, dp) of weight[dt, dp] · u[l + dt, p + dp]²`` (Keller & Welling 2021,
    "Topographic VAEs learn Equivariant Capsules", https://arxiv.org/abs/2109.01394, eq. 8-10).

    Args:
        boundary: what closes. ``"circular"``: frames and positions wrap. ``"truncate"``: positions wrap, and terms
            before the first and after the last frame are dropped. ``"open"``: neither wraps, for a window of a motion
            that does not come back: a capsule shows D positions of an endless line, new ones enter it at one end, and
            what leaves it at the other is not seen again. Terms outside are dropped.
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
        self._made_of: tuple[tuple[int, int], ...] = ()
        self._sums: dict[tuple[object, ...], Sums] = {}
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

    def wraps(self, sizes: Sequence[int]) -> tuple[bool, ...]:
        """Whether each axis of a lattice of these sizes wraps, frames first."""
        frames, positions = BOUNDARIES[self.boundary]
        return (frames, *[positions] * (len(sizes) - 1))

    def neighborhood(self, n_frames: int, n_positions: int) -> Tensor:
        """W of shape (S·D, S·D): row = (frame, position) of v, column = (frame, position) of u.

        To be looked at: :meth:`pool` takes it for small lattices alone. Differentiable in the weights when they are
        learned. A subclass that defines its own W is applied by that.

        Raises:
            ValueError: W would be larger than 1 GiB.
        """
        sizes = self.lattice(n_frames, n_positions)
        weight = self.weight()
        n = n_frames * n_positions
        if n * n * weight.element_size() > LARGEST:
            raise ValueError(
                f"{type(self).__name__}: W of {n_frames:,} frames and {n_positions:,} positions would be {n:,} x {n:,} "
                f"numbers, {n * n * weight.element_size() / 2**30:,.1f} GiB; expected a lattice whose W has at most "
                "1 GiB: use pool or energy, which apply W without building it."
            )
        offsets = torch.tensor(self.offsets(), dtype=torch.long).reshape(-1, len(sizes))
        cells = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(-1, len(sizes))
        target = cells.unsqueeze(1) + offsets  # (S·D, offsets, axes)
        # Kernels longer than an axis that wraps meet a cell more than once; then its terms add up.
        value = weight * inside(target, sizes, self.wraps(sizes)).to(weight)
        column = numbered(target, sizes).to(value.device)
        return value.new_zeros(n, n).scatter_add(1, column, value.expand(n, -1))

    def weight(self) -> Tensor:
        """How much each offset counts now, (offsets,): differentiable when it is learned."""
        coefficients = torch.tensor(self.coefficients())
        raw = self.raw_weight
        return coefficients if raw is None else coefficients.to(raw) * nn.functional.softplus(raw)

    def matrix(self, n_frames: int, n_positions: int, like: Tensor) -> Tensor:
        """The neighbourhood matrix in ``like``'s dtype and device, built once unless its weights are learned."""
        key = (n_frames, n_positions, like.dtype, like.device)
        return self._kept(key, lambda: self.neighborhood(n_frames, n_positions).to(like))

    def _kept(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        """What is made of the weights, once unless they are learned; anew where what an own one is made of changed."""
        own = [*self.parameters(), *self.buffers()]
        if self.raw_weight is not None or any(value.requires_grad for value in own):
            return make()
        made_of = tuple((id(value), 0 if value.is_inference() else value._version) for value in own)
        if made_of != self._made_of:
            self._made_of = made_of
            self._cache.clear()
        if key not in self._cache:
            # Made outside inference mode, so that what an evaluation needs first also serves training.
            with torch.inference_mode(False):
                made = make()
            if type(made) not in (Tensor, nn.Parameter):  # a stand-in while the program is exported
                return made
            self._cache[key] = made
        return self._cache[key]

    @property
    def dense(self) -> bool:
        """W is a matrix of its own, and no list of offsets."""
        return type(self).neighborhood is not Topography.neighborhood or type(self).matrix is not Topography.matrix

    def pool(self, e: Tensor, *, signed: bool = False) -> Tensor:
        """Apply W to non-negative energies: (..., S, C, D) -> same shape.

        Time and memory grow as S does: W itself is built for small lattices alone, where it is the fastest, and where a
        topography is no list of offsets.

        Args:
            e: energies, or what else is to be summed.
            signed: e may hold negative numbers. Without, no energy is below 0, not by rounding either.
        """
        if e.dim() < 3:
            raise ValueError(
                f"energies (u or e) have shape {tuple(e.shape)}; expected (..., frame, capsule, position)."
            )
        n_frames, n_positions = e.shape[-3], e.shape[-1]
        if self.dense or n_frames * n_positions <= ROWS:
            return pooled(e, self.matrix(n_frames, n_positions, e))
        key = (n_frames, n_positions, e.dtype, e.device)
        sums = self._sums_on(n_frames, n_positions, e)
        v = sums.apply(e, self._kept(key, lambda: sums.operator(self.weight().to(e))))
        return v if signed or sums.convolves else v.clamp_min(0)

    def _sums_on(self, n_frames: int, n_positions: int, like: Tensor) -> Sums:
        key = (n_frames, n_positions, like.dtype, like.device)
        if key not in self._sums:
            sizes, learned = self.lattice(n_frames, n_positions), self.raw_weight is not None
            sums = Sums(self.offsets(), sizes, self.wraps(sizes), like, learned=learned)
            if type(sums.places) is not Tensor:  # as in _kept
                return sums
            self._sums[key] = sums
        return self._sums[key]

    def fixed(self, n_frames: int, n_positions: int, *, transposed: bool = False) -> tuple[Fixed, Tensor]:
        """Where this W, or its transpose, sums on this lattice, and the weights that it has now, for ``Fixed.sum``."""
        if self.dense:
            w = self.neighborhood(n_frames, n_positions).detach()
            return Fixed(boundary=self.boundary), w.mT.contiguous() if transposed else w
        # Who looks from here to there is seen from there in the opposite direction.
        sign = -1 if transposed else 1
        offsets = [tuple(sign * one for one in offset) for offset in self.offsets()]
        return Fixed(offsets, grid=self.grid, boundary=self.boundary), self.weight().detach()

    def energy(self, u: Tensor) -> Tensor:
        """Local energies (variances) ``v = W u²``: (..., S, C, D) -> same shape."""
        return self.pool(u.square())

    def orbits(self, n_frames: int, n_positions: int) -> Orbits:
        """The orbits of this lattice, where the neighbourhoods are disjoint: equal rows of W share one energy.

        With open boundaries an orbit's size is what it is on the endless line that a capsule shows a stretch of,
        whatever part of it is in sight, so that no position and no frame is unlike the others: S for a roll of one
        position a frame.

        Raises:
            ValueError: the neighbourhoods overlap, or W is not a matrix of zeros and ones.
        """
        orbits = None
        if self.raw_weight is None:
            if self.dense:
                orbits = distinct(self.neighborhood(n_frames, n_positions).detach(), n_frames)
            else:
                sizes = self.lattice(n_frames, n_positions)
                orbits = partition(self.offsets(), self.coefficients(), sizes, self.wraps(sizes))
        if orbits is None:
            raise ValueError(
                f"OrbitEnergy: the neighbourhoods of {type(self).__name__}({self.extra_repr()}) on {n_frames} frames "
                f"and {n_positions} positions are no disjoint orbits; choose CapsuleRoll(kernel={n_frames}, width=0) "
                f"with capsule_dim={n_frames}, as many positions as frames (topography=orbits model.capsule_dim="
                f"{n_frames}), or for motions that do not close CapsuleRoll(kernel={2 * n_frames - 1}, width=0, "
                "boundary='open') with any capsule_dim (topography=orbits topography.boundary=open), or GaussianEnergy "
                "with a guide for it (prior=gaussian guide=mean_field)."
            )
        return orbits

    def check(self, n_frames: int, n_positions: int) -> None:
        """Raise ValueError where this topography does not fit a lattice of that size."""
        if self.grid is not None and math.prod(self.grid) != n_positions:
            raise ValueError(
                f"{type(self).__name__}: grid {' x '.join(map(str, self.grid))} has {math.prod(self.grid)} positions, "
                f"but the capsule has {n_positions}; make capsule_dim the product of the grid."
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments().items())


class Fixed(Topography):
    """A topography whose weights are given with the terms, and never change: what guides sum by.

    Args:
        offsets: (frame, position, …); none where the weights are W itself.
        grid, boundary: see :class:`Topography`.
    """

    weights: Tensor

    def __init__(
        self,
        offsets: Sequence[tuple[int, ...]] = (),
        *,
        grid: Sequence[int] | None = None,
        boundary: str = "circular",
    ) -> None:
        self.grid, self._offsets = grid, list(offsets)
        super().__init__(boundary=boundary)

    def sum(self, weights: Tensor, terms: Tensor) -> Tensor:
        """The sums over terms of either sign, (..., S, C, D) -> same shape.

        Args:
            weights: of the offsets, (offsets,), or W; the same at every call, but for dtype and device.
        """
        self.weights = weights
        return self.pool(terms, signed=True)

    def offsets(self) -> list[tuple[int, ...]]:
        return self._offsets

    def weight(self) -> Tensor:
        return self.weights

    @property
    def dense(self) -> bool:
        return self.weights.dim() == 2

    def neighborhood(self, n_frames: int, n_positions: int) -> Tensor:
        return self.weights if self.dense else super().neighborhood(n_frames, n_positions)
