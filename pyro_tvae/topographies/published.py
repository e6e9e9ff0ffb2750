"""The published topographies: capsules that roll, boxes that do not, a torus, and none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

from .base import Topography, check_offsets, window

__all__ = ["CapsuleRoll", "NoTopography", "Stationary", "Torus"]


class CapsuleRoll(Topography):
    """Capsule roll: neighbourhoods run along a roll through the capsule, one position per frame.

    ``v[l, p] = sum of u[l + dt, p + dp]²`` over dt, dp in the kernel's window with ``|dt − dp| <= width``; the band is
    cut at the ends of the window. So ``v[l + 1, p + 1] ≈ v[l, p]``, exactly for kernel = S = D and width 0.

    Args:
        kernel: window length k over frames and positions.
        width: half-width n of the band; a row sums about k · (2n + 1) terms.
        boundary, learned: see :class:`Topography`.

    Example:
        >>> CapsuleRoll(kernel=3, width=0).neighborhood(3, 3).sum(1)
        tensor([3., 3., 3., 3., 3., 3., 3., 3., 3.])
    """

    def __init__(self, kernel: int = 13, width: int = 1, *, boundary: str = "circular", learned: bool = False) -> None:
        if kernel < 1 or width < 0:
            raise ValueError(f"CapsuleRoll: kernel={kernel}, width={width}; expected kernel >= 1 and width >= 0.")
        check_offsets("CapsuleRoll", kernel * (2 * min(width, kernel) + 1), f"kernel={kernel}, width={width}")
        self.kernel, self.width = kernel, width
        super().__init__(boundary=boundary, learned=learned)

    def offsets(self) -> list[tuple[int, ...]]:
        span = window(self.kernel)
        near = range(-self.width, self.width + 1) if self.width < self.kernel else range(-self.kernel, self.kernel + 1)
        return [(dt, dt + n) for dt in span for n in near if dt + n in span]


class Stationary(Topography):
    """A box of frames x positions that does not roll: the BubbleVAE; kernel (1, k) is the TVAE with L = 0.

    Args:
        kernel: (kt, kp), window lengths over frames and over positions.
    """

    def __init__(self, kernel: Sequence[int] = (5, 3), *, boundary: str = "circular", learned: bool = False) -> None:
        self.kernel = _pair("Stationary", "kernel", kernel)
        super().__init__(boundary=boundary, learned=learned)

    def offsets(self) -> list[tuple[int, ...]]:
        return [(dt, dp) for dt in window(self.kernel[0]) for dp in window(self.kernel[1])]


class Torus(Topography):
    """A box on a 2-D grid of positions whose two axes wrap, one frame at a time: the map of the paper's Fig. 3.

    Args:
        kernel: (rows, columns) of the box.
        grid: (rows, columns) of the grid; their product is the number of positions D.
    """

    grid: tuple[int, int]

    def __init__(
        self, kernel: Sequence[int] = (5, 5), grid: Sequence[int] = (18, 18), *, learned: bool = False
    ) -> None:
        self.kernel = _pair("Torus", "kernel", kernel)
        self.grid = _pair("Torus", "grid", grid)
        super().__init__(learned=learned)

    def offsets(self) -> list[tuple[int, ...]]:
        return [(0, dr, dc) for dr in window(self.kernel[0]) for dc in window(self.kernel[1])]


class NoTopography(Topography):
    """No neighbours and no u at all: t = z, the plain VAE. Its neighbourhood matrix is zero."""

    def __init__(self) -> None:
        super().__init__()

    def offsets(self) -> list[tuple[int, ...]]:
        return []


def _pair(owner: str, name: str, value: Sequence[int]) -> tuple[int, int]:
    pair = tuple(value)
    if len(pair) != 2 or not all(isinstance(v, Integral) and v >= 1 for v in pair):
        raise ValueError(f"{owner}: {name} is {value!r}; expected two whole numbers of at least 1.")
    if name == "kernel":
        check_offsets(owner, math.prod(map(int, pair)), f"kernel={pair}")
    return (int(pair[0]), int(pair[1]))
