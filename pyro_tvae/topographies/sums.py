"""Sums over offsets: ``W e`` without W, in time and memory that grow with the lattice and not with its square."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Sums", "inside", "numbered"]

# Terms of one energy (frames that its offsets reach x positions) up to which a convolution is faster than a transform:
# measured on one thread of a CPU, forward and backward in float32.
TERMS = 1000
# Frames of one transform at least, where there are many more: its numbers stay in a processor's cache.
PIECE = 480
CONVOLVED = (torch.float32, torch.bfloat16)  # the dtypes that convolutions on a CPU are made for


class Sums:
    """Where a list of offsets lies on one lattice, and how ``v[l, p] = Σ weight · e[l + dt, p + dp]`` is summed there.

    Two ways, each with an operator that holds the weights and is made once for weights that stay as they are:

    - a convolution over frames, whose channels are the positions: ``frames reached · D`` multiplications an energy,
      for offsets that reach few frames, and few positions;
    - a circular convolution over the whole lattice by the fast Fourier transform (Cooley & Tukey 1965, "An algorithm
      for the machine calculation of complex Fourier series", https://doi.org/10.1090/S0025-5718-1965-0178586-1), at
      log(S·D) an energy, however many offsets there are. It is done in float64, whose rounding is 1e-16 of the largest
      energies around, so that small ones, too, keep the digits of float32. Many frames are transformed in pieces of one
      length, each with the frames around it that its offsets reach, so that time grows as S does.

    Args:
        offsets: whole numbers (frame, position, …), one tuple for each.
        sizes: lengths of the axes, frames first.
        wraps: whether each axis does.
        like: of the dtype and device of the terms. Convolutions are for CPUs, since others may round them to TF32, and
            for MPS, which has no float64.
        learned: the operator is to have a gradient.
    """

    def __init__(
        self,
        offsets: Sequence[Sequence[int]],
        sizes: Sequence[int],
        wraps: Sequence[bool],
        like: Tensor,
        *,
        learned: bool = False,
    ) -> None:
        n_frames, *grid = sizes
        circular = wraps[0]
        # Further away than an axis is long there are the same cells again, or none.
        near = [
            all(wrap or abs(step) < size for step, size, wrap in zip(offset, sizes, wraps, strict=True))
            for offset in offsets
        ]
        kept = [i for i, here in enumerate(near) if here]
        cells = torch.tensor([offsets[i] for i in kept], dtype=torch.long).reshape(-1, len(sizes))
        self.first, self.last = (end([0, *(offsets[i][0] for i in kept)]) for end in (min, max))
        if circular and self.last - self.first >= n_frames:
            cells[:, 0] %= n_frames
            self.first, self.last = 0, n_frames - 1
        self.n_frames, self.grid, self.circular, self.learned = n_frames, grid, circular, learned
        n_positions, reach = math.prod(grid), self.last - self.first + 1
        few = reach * n_positions <= TERMS and like.dtype in CONVOLVED
        self.span, self.hop = n_frames, n_frames  # frames that one transform looks at, and those that it is for
        self.convolves = like.device.type == "mps" or (like.device.type == "cpu" and few)
        # Where the weights belong in the operator: (offsets, 1), or once in every row, (offsets, D).
        if self.convolves:
            self.shape: tuple[int, ...] = (n_positions, n_positions, reach, 1)
            rows = torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid))
            target = cells[:, None, 1:] + rows
            lines = torch.arange(n_positions) * n_positions + numbered(target, grid)
            self.places = lines * reach + cells[:, :1] - self.first
            self.counts = None if all(wraps[1:]) else inside(target, grid, wraps[1:])
        else:
            # An axis that does not wrap is followed by as many empty cells as the offsets reach, and may then wrap.
            far = [max((abs(offsets[i][axis]) for i in kept), default=0) for axis in range(len(sizes))]
            self.shape = tuple(
                size if wrap else _smooth(size + reach) for size, wrap, reach in zip(sizes, wraps, far, strict=True)
            )
            span = _smooth(max(PIECE, 4 * reach))
            if n_frames >= 2 * span:
                self.shape, self.span, self.hop = (span, *self.shape[1:]), span, span + 1 - reach
            self.places, self.counts = numbered(cells, self.shape)[:, None], None
        self.kept = torch.tensor(kept, dtype=torch.long)

    def operator(self, weight: Tensor) -> Tensor:
        """What energies are multiplied with, from the weights of the offsets, (offsets,): differentiable.

        A kernel (D, D, frames reached, 1), or half of a spectrum over the lattice, (S // 2 + 1, *grid).
        """
        places = self.places.to(weight.device)
        weight = weight[self.kept.to(weight.device), None]
        weight = weight if self.convolves else weight.double()
        # Offsets that meet the same cell add up.
        if self.counts is not None:
            weight = weight * self.counts.to(weight)
        flat = weight.new_zeros(math.prod(self.shape))
        kernel = flat.scatter_add(0, places.flatten(), weight.expand(places.shape).flatten()).view(self.shape)
        return kernel if self.convolves else torch.fft.rfftn(kernel, dim=self._axes).conj_physical()

    def apply(self, e: Tensor, operator: Tensor) -> Tensor:
        """The sums over terms (..., S, C, D): same shape."""
        if self.convolves:
            # Seen as (N, positions, frames, capsules) this lies channels-last, as convolutions like it.
            frames = self._reached(e).permute(0, 3, 1, 2)
            return nn.functional.conv2d(frames, operator).permute(0, 2, 3, 1).reshape(e.shape)
        if self.hop == self.n_frames:
            return self._transformed(e, operator)
        frames = nn.functional.pad(self._reached(e), (0, 0, 0, 0, 0, -self.n_frames % self.hop))
        pieces = frames.unfold(1, self.span, self.hop).movedim(-1, -3).unbind(1)
        sums = [self._transformed(piece, operator).narrow(1, -self.first, self.hop) for piece in pieces]
        return torch.cat(sums, 1)[:, : self.n_frames].reshape(e.shape)

    def _reached(self, e: Tensor) -> Tensor:
        """Frames (N, S + further, C, D): with those before and after that the offsets reach."""
        frames = e.reshape(-1, *e.shape[-3:])
        if self.circular:
            return torch.cat([frames[:, self.n_frames + self.first :], frames, frames[:, : self.last]], 1)
        return nn.functional.pad(frames, (0, 0, 0, 0, -self.first, self.last))

    def _transformed(self, e: Tensor, spectrum: Tensor) -> Tensor:
        sizes = [*self.shape[1:], self.shape[0]]
        # A capsule's lattice lies together, (..., C, S, *grid): long transforms over strides miss the cache.
        lattices = e.transpose(-3, -2).to(torch.float64, memory_format=torch.contiguous_format)
        spectra = torch.fft.rfftn(lattices.unflatten(-1, self.grid), s=sizes, dim=self._axes)
        # Where the weights are learned their gradient needs both factors; else the product takes the first one's place.
        spectra = spectra * spectrum if self.learned else spectra.mul_(spectrum)
        v = torch.fft.irfftn(spectra, s=sizes, dim=self._axes)
        for axis, size in zip(self._axes, (*self.grid, self.span), strict=True):
            v = v.narrow(axis, 0, size)
        return v.flatten(-len(self.grid)).to(e.dtype).transpose(-3, -2)

    @property
    def _axes(self) -> list[int]:
        """The axes of positions, then that of frames, counted from the right: the last is halved."""
        n = len(self.grid)
        return [*range(-n, 0), -1 - n]


def numbered(cells: Tensor, sizes: Sequence[int]) -> Tensor:
    """The numbers of cells (..., axes), which wrap, in a lattice of these sizes: (...)."""
    number = torch.zeros(cells.shape[:-1], dtype=torch.long)
    for axis, size in enumerate(sizes):
        number = number * size + cells[..., axis] % size
    return number


def inside(cells: Tensor, sizes: Sequence[int], wraps: Sequence[bool]) -> Tensor:
    """Which cells (..., axes) lie in a lattice of these sizes, whatever lies along axes that wrap: (...)."""
    lies = torch.ones(cells.shape[:-1], dtype=torch.bool)
    for axis, (size, wrap) in enumerate(zip(sizes, wraps, strict=True)):
        if not wrap:
            lies &= (cells[..., axis] >= 0) & (cells[..., axis] < size)
    return lies


def _smooth(size: int) -> int:
    """The smallest length from ``size`` on without prime factors above 5, whose transforms are fast.

    Example:
        >>> _smooth(17), _smooth(1013)
        (18, 1024)
    """
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
