"""Topographies beyond the paper: rolls over a grid of positions at any velocity, and any matrix of a user's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..parts import DESCRIBED
from .base import Topography, check_offsets, window

__all__ = ["GridRoll", "Matrix"]


class GridRoll(Topography):
    """Neighbourhoods that roll over a grid of positions, any number of axes, at any velocity on each.

    ``v[l, p] = sum of u[l + dt, p + velocity · dt + d]²`` over dt in the kernel's window and d in the box of half-width
    ``width`` around 0 on every axis. Where velocity · dt is no whole position, u² is interpolated linearly between the
    cells around it (bilinearly on two axes, …), so that a row of W sums to the number of terms. Positions wrap. Unlike
    :class:`CapsuleRoll`, which agrees for one axis, velocity 1 and width 0, the box is not cut at the window's ends.

    Args:
        kernel: window length over frames.
        width: half-width of the box over positions.
        grid: lengths of the position axes; their product is the number of positions D. None is one axis of D.
        velocity: positions per frame, one number for every axis or one each; negative and fractional ones too.
        boundary: see :class:`Topography`.
        learned: see :class:`Topography`.

    Raises:
        ValueError: sizes below one, a velocity per axis too many or too few, or a grid that does not make D positions.

    Example:
        >>> GridRoll(kernel=2, velocity=0.5).neighborhood(2, 2)[0]
        tensor([1.0000, 0.0000, 0.5000, 0.5000])
    """

    def __init__(
        self,
        kernel: int = 13,
        width: int = 0,
        *,
        grid: Sequence[int] | None = None,
        velocity: float | Sequence[float] = 1.0,
        boundary: str = "circular",
        learned: bool = False,
    ) -> None:
        self.grid = None if grid is None else tuple(int(size) for size in grid)
        axes = 1 if self.grid is None else len(self.grid)
        speeds = (velocity,) * axes if isinstance(velocity, int | float) else tuple(velocity)
        self.velocity = tuple(float(speed) for speed in speeds)
        if kernel < 1 or width < 0 or min(self.grid or (1,), default=0) < 1 or len(self.velocity) != axes:
            raise ValueError(
                f"GridRoll: kernel={kernel}, width={width}, grid={grid}, velocity={velocity}; expected kernel >= 1, "
                "width >= 0, axes of at least 1 position and one velocity, or one for each axis."
            )
        given = f"kernel={kernel}, width={width} and {axes} axes"
        check_offsets("GridRoll", kernel * (2 * (2 * width + 1)) ** min(axes, 64), given)
        self.kernel, self.width = kernel, width
        self._terms = self._interpolated()
        super().__init__(boundary=boundary, learned=learned)

    def _interpolated(self) -> dict[tuple[int, ...], float]:
        """Whole offsets and their shares: every term's is split among the cells around where it falls."""
        terms: dict[tuple[int, ...], float] = {}
        box = range(-self.width, self.width + 1)
        for dt in window(self.kernel):
            for d in itertools.product(box, repeat=len(self.velocity)):
                place = [speed * dt + step for speed, step in zip(self.velocity, d, strict=True)]
                for corner in itertools.product((0, 1), repeat=len(place)):
                    cell = tuple(math.floor(x) + up for x, up in zip(place, corner, strict=True))
                    share = math.prod(1 - abs(x - c) for x, c in zip(place, cell, strict=True))
                    if share > 1e-9:  # what rounding leaves of a whole position is no neighbour
                        terms[(dt, *cell)] = terms.get((dt, *cell), 0.0) + share
        return terms

    def offsets(self) -> list[tuple[int, ...]]:
        return list(self._terms)

    def coefficients(self) -> list[float]:
        return list(self._terms.values())


class Matrix(Topography):
    """A neighbourhood matrix of a user's own: ``v = w u²`` with frame and position flattened, the same per capsule.

    Args:
        w: (S·D, S·D) numbers of at least 0, as nested lists, a tensor, or the path of a .npy file. Row (l, p) lists
            what v[l, p] sums, at l · D + p; no row may be all zeros.
        learned: make the positive entries parameters (softplus) that start at ``w``; zeros stay zeros.

    Raises:
        ValueError: w is not square, has negative entries or an empty row, or does not fit the lattice; the file of that
            path is no array; or the path is said by a model file, which holds numbers and names no other file.

    Example:
        >>> Matrix([[1.0, 0.5], [0.5, 1.0]]).energy(torch.ones(2, 1, 1)).flatten()
        tensor([1.5000, 1.5000])
    """

    w: Tensor

    def __init__(self, w: Sequence[Sequence[float]] | Tensor | str, *, learned: bool = False) -> None:
        super().__init__()
        if isinstance(w, str):
            w = _from_file(w)
        values = torch.as_tensor(w, dtype=torch.get_default_dtype())
        if values.dim() != 2 or values.shape[0] != values.shape[1] or not bool((values >= 0).all()):
            raise ValueError(
                f"Matrix: w has shape {tuple(values.shape)} and its smallest entry is "
                f"{float(values.min()) if values.numel() else math.nan}; expected a square matrix of numbers >= 0."
            )
        if not bool((values.sum(1) > 0).all()):
            raise ValueError("Matrix: a row of w is all zeros, which makes an energy of 0; give every row a neighbour.")
        self.register_buffer("w", values, persistent=False)
        self.learned = learned
        if learned:
            positive = values[values > 0].double()
            self.raw_weight = nn.Parameter((positive + torch.log(-torch.expm1(-positive))).to(values))

    def arguments(self) -> dict[str, Any]:
        # The numbers themselves, so that a model file needs no second one.
        return super().arguments() | {"w": self.w.tolist()}

    def offsets(self) -> list[tuple[int, ...]]:
        return []

    def neighborhood(self, n_frames: int, n_positions: int) -> Tensor:
        self.check(n_frames, n_positions)
        if self.raw_weight is None:
            return self.w
        return torch.zeros_like(self.w).masked_scatter(self.w > 0, nn.functional.softplus(self.raw_weight))

    def check(self, n_frames: int, n_positions: int) -> None:
        if len(self.w) != n_frames * n_positions:
            raise ValueError(
                f"Matrix: w has {len(self.w)} rows; expected {n_frames * n_positions}, one for each of {n_frames} "
                f"frames times {n_positions} positions."
            )

    def extra_repr(self) -> str:
        return f"{len(self.w)} x {len(self.w)}, learned={self.learned}"


def _from_file(path: str) -> Tensor:
    """The array in a .npy file; nothing is unpickled."""
    import numpy as np

    if DESCRIBED.get():
        raise ValueError(f"Matrix: w is the path {path!r}; expected numbers, since no path in a model file is opened.")
    if not Path(path).is_file():
        what = "is no file" if Path(path).exists() else "does not exist"
        raise ValueError(f"Matrix: {path} {what}; give the path of a .npy file.")
    try:
        with open(path, "rb") as file:
            return torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))
    except (OSError, ValueError, TypeError, EOFError, MemoryError, SyntaxError) as error:
        raise ValueError(
            f"Matrix: {path} cannot be read as a .npy file ({' '.join(str(error).split())[:200]}); write it with "
            "numpy.save."
        ) from None
