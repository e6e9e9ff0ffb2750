"""Transformations: image sequences as one batched tensor program, from factor indices to frames."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["HUE", "PERSPECTIVE", "ROTATION", "SCALE", "Draw", "Transformations"]

ROTATION: tuple[float, ...] = tuple(float(angle) for angle in range(0, 360, 20))
HUE = ROTATION
PERSPECTIVE = ROTATION
SCALE: tuple[float, ...] = tuple((0.60 * (17 - i) + 1.26 * i) / 17 for i in range(18))

# As the published code lists them: to two decimals, 1.11 in place of 1.1047.
LISTED_SCALE = tuple(n / 100 for n in (60, 64, 68, 72, 76, 79, 83, 87, 91, 95, 99, 103, 107, 111, 114, 118, 122, 126))

PUBLISHED = {"rotation": ROTATION, "hue": HUE, "scale": SCALE, "perspective": PERSPECTIVE}

# How far the viewer of a plane that turns out of the picture stands, in half image sizes: far enough to be mild.
VIEWING_DISTANCE = 4.0

Values = Iterable[float] | bool | None


class Draw(NamedTuple):
    """Factor values of n sequences: ``index`` (n, S, F) int64 into each factor's values; ``moving`` (n,) int64."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    moving: Tensor


def movers(maker: str, moving: Sequence[str] | str, names: Sequence[str]) -> tuple[str, ...]:
    """What can move, entry by entry; ValueError where it is neither a name nor a list of names."""
    given = [moving] if isinstance(moving, str) else moving
    if not isinstance(given, Sequence) or not all(isinstance(entry, str) for entry in given):
        raise ValueError(
            f"{maker}: moving is {moving!r}; expected a name or a list of names, of {', '.join(names) or 'no factors'}."
        )
    return tuple(given)


class Transformations:
    """Factors of variation, and which of them move: one value a frame, cyclically; the others stay where they are.

    A frame is ``hue · clamp(P(scale · R(rotation) · image))``, with R and P about the true image centre, (width − 1)/2.

    Args:
        rotation: degrees, counter-clockwise as displayed.
        hue: degrees on the saturated colour wheel; at 0 grey goes to red. With this factor a frame has 3 channels.
        scale: ratio; above 1 the content grows.
        perspective: degrees out of the picture plane, about its vertical axis; at first the right side goes away.
            Past 90° one sees the back of the plane, mirrored; exactly edge-on nothing.
        moving: the factors that can move, one entry is drawn per sequence; ``"rotation+hue"`` moves both together.
            Default: every factor of more than one value, alone.
        published: what the `code of the paper <https://github.com/akandykeller/TopographicVAE>`__ does in place of the
            above: True stands for scales of two decimals, and perspective turns by the same angle out
            of the plane and, clockwise, in it, seen from nearer. The centre is the true one all the same.

    Each factor takes a list of values, True for the published ones, or None when it does not vary at all.

    Raises:
        ValueError: values that are no finite numbers, a scale that is not positive, a moving factor that is none.

    Example:
        >>> t = Transformations(rotation=True, scale=[0.8, 1.0, 1.2], moving=["rotation"])
        >>> index, moving = t.draw(2, n_frames=18, generator=torch.Generator().manual_seed(0))
        >>> t.render(torch.rand(2, 1, 28, 28), index).shape
        torch.Size([2, 18, 1, 28, 28])
    """

    def __init__(
        self,
        rotation: Values = None,
        hue: Values = None,
        scale: Values = None,
        perspective: Values = None,
        moving: Sequence[str] | str | None = None,
        published: bool = False,
    ) -> None:
        if not isinstance(published, bool):
            raise ValueError(f"Transformations: published is {published!r}; expected true or false.")
        self.published = published
        given = {"rotation": rotation, "hue": hue, "scale": scale, "perspective": perspective}
        self.factors: dict[str, tuple[float, ...]] = {
            name: _values(name, values, published)
            for name, values in given.items()
            if values is not None and values is not False
        }
        self.names = tuple(self.factors)
        self.periods = tuple(len(values) for values in self.factors.values())
        if moving is None:
            moving = [name for name, period in zip(self.names, self.periods, strict=True) if period > 1]
        self.moving = movers("Transformations", moving, self.names)
        self._moves = [self._parse(entry) for entry in self.moving]
        self._tables = {name: _table(name, values) for name, values in self.factors.items()}
        self._placed: dict[
            tuple[str, torch.dtype, torch.device], Tensor
        ] = {}  # on devices, where every batch needs them

    def __repr__(self) -> str:
        factors = "".join(f"{name}={list(values)}, " for name, values in self.factors.items())
        return f"Transformations({factors}moving={list(self.moving)}{', published=True' if self.published else ''})"

    @property
    def n_channels(self) -> int:
        """3 where hue is a factor, else 1."""
        return 3 if "hue" in self.factors else 1

    def draw(self, n: int, n_frames: int, generator: torch.Generator | None = None) -> Draw:
        """Draw the factors of n sequences of ``n_frames`` frames, on the CPU.

        Every phase is uniform; a moving factor advances by one value a frame, modulo its number of values.

        Returns:
            Draw: ``index`` (n, S, F), factors in the order of ``names``, and ``moving`` (n,), which entry of
            ``self.moving`` moves (zeros where nothing can move).
        """
        phase, moving = self.phases(n, generator)
        return Draw(self.unrolled(phase, moving, n_frames), moving)

    def phases(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """What :meth:`draw` draws of n sequences: the factors' first values (n, 1, F), and which entry moves (n,)."""
        phases = [torch.randint(period, (n, 1, 1), generator=generator) for period in self.periods]
        phase = torch.cat(phases, -1) if phases else torch.zeros(n, 1, 0, dtype=torch.long)
        if not self._moves:
            return phase, torch.zeros(n, dtype=torch.long)
        return phase, torch.randint(len(self._moves), (n,), generator=generator)

    def unrolled(self, phase: Tensor, moving: Tensor, n_frames: int) -> Tensor:
        """The values of all frames (n, S, F) that follow from those of the first."""
        if not self._moves:
            return phase.expand(-1, n_frames, -1).clone()
        moves = torch.tensor(self._moves)[moving].unsqueeze(1)  # (n, 1, F) of zeros and ones
        steps = torch.arange(n_frames).reshape(1, -1, 1)
        return (phase + steps * moves) % torch.tensor(self.periods)

    def render(self, images: Tensor, index: Tensor) -> Tensor:
        """Render sequences in one call: bilinear, zero outside the image, on the device of the images.

        Args:
            images: (n, channel, height, width), floating point in [0, 1], or uint8 in 0..255; gray where hue varies.
            index: (n, S, F), as from :meth:`draw`; counted modulo each factor's number of values.

        Returns:
            (n, S, channel, height, width) float32 in [0, 1].

        Raises:
            ValueError: shapes that do not fit together, or images of another type.
        """
        if images.dim() != 4 or images.shape[1] == 0 or (images.shape[1] > 1 and "hue" in self.factors):
            expected = f"(n, {'1' if 'hue' in self.factors else 'channel'}, height, width)"
            raise ValueError(f"images have shape {tuple(images.shape)}; expected {expected}.")
        if index.dim() != 3 or index.shape[0] != len(images) or index.shape[2] != len(self.names):
            expected = f"({len(images)}, frame, {len(self.names)}) for the factors {', '.join(self.names) or 'none'}"
            raise ValueError(f"index has shape {tuple(index.shape)}; expected {expected}.")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images have dtype {images.dtype}; expected uint8 (0..255) or floating point in [0, 1].")
        # In double precision rotations by 90 degrees are exact, and it costs a CPU nothing; MPS has only float32.
        dtype = torch.float32 if images.device.type == "mps" else torch.float64
        pixels = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
        tables = self._tables
        if self.published and "perspective" in tables:
            tables = tables | {"perspective": _turned_both_ways(self.factors["perspective"], *images.shape[-2:])}
        looked_up = {
            name: self._on(name, tables[name], pixels)[index[..., f].to(images.device) % self.periods[f]]
            for f, name in enumerate(self.names)
        }
        color = looked_up.pop("hue", None)
        x = pixels.unsqueeze(1).expand(-1, index.shape[1], -1, -1, -1)
        # grid_sample refuses empty batches, and factors that leave the geometry alone have nothing to sample.
        if looked_up and x.numel():
            x = _warp(pixels, list(looked_up.values()), flat="perspective" not in looked_up)
        gray = x.float().clamp(0, 1)
        return gray.contiguous() if color is None else gray * color.float()[..., None, None]

    def _on(self, name: str, table: Tensor, pixels: Tensor) -> Tensor:
        """A table where the pixels are."""
        if pixels.device.type == "cpu":
            return table.to(pixels)
        size = tuple(pixels.shape[-2:]) if name == "perspective" else ()  # the published one's own
        key = (f"{name} {size}", pixels.dtype, pixels.device)
        if key not in self._placed:
            self._placed[key] = table.to(pixels)
        return self._placed[key]

    def _parse(self, entry: str) -> list[int]:
        parts = [part.strip() for part in str(entry).split("+")]
        for part in parts:
            if part not in self.factors:
                raise ValueError(
                    f"Transformations: moving names {part!r}, which is not given as a factor; give it too, or name "
                    f"{' or '.join(self.names) or 'no name, as there are no factors'}, joined by '+' to move together"
                    f"{nearest(part, self.names)}."
                )
            if len(self.factors[part]) == 1:
                raise ValueError(
                    f"Transformations: moving names {part!r}, which has the single value {self.factors[part][0]:g} "
                    "and cannot move; give it at least two values."
                )
        return [int(name in parts) for name in self.names]


def _warp(pixels: Tensor, matrices: list[Tensor], flat: bool) -> Tensor:
    """Sample (n, c, H, W) through the product of the (n, S, 3, 3) maps from displayed to source: (n, S, c, H, W).

    ``flat`` says that the maps are affine, so that no depth has to be divided out.
    """
    n, channels, height, width = pixels.shape
    n_frames = matrices[0].shape[1]
    # Angles and scales live in units of half the longer side; grid_sample measures each axis in its own half side.
    longer = max(height, width)
    sides = torch.stack([pixels.new_full((), side) for side in (longer / width, longer / height, 1.0)])
    full = sides[:, None] * functools.reduce(torch.matmul, matrices) / sides
    full = full.reshape(n * n_frames, 3, 3)
    size = [n * n_frames, 1, height, width]
    grid = functional.affine_grid(full[:, :2], size, align_corners=False)
    if not flat:
        # The homogeneous coordinate as a grid of its own: affine_grid wants two rows, so it comes out twice.
        depth = functional.affine_grid(full[:, 2:].expand(-1, 2, -1), size, align_corners=False)
        # A plane seen exactly edge-on has no area: point outside the image instead of dividing by zero.
        grid = torch.where(depth.abs() < 1e-6, 10.0, grid / depth)
    # All frames of an image in one tall grid, so that the image need not be copied for each of them.
    grid = grid.reshape(n, n_frames * height, width, 2)
    x = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return x.reshape(n, channels, n_frames, height, width).transpose(1, 2)


def nearest(word: str, names: Sequence[str]) -> str:
    """The name that was probably meant, in brackets; empty if none comes close."""
    return "".join(f" (nearest: {name})" for name in difflib.get_close_matches(word, names, n=1))


def _table(name: str, values: Sequence[float]) -> Tensor:
    """One row per value: hue -> (V, 3) colours; the others -> (V, 3, 3) maps from displayed to source coordinates."""
    v = torch.tensor(values, dtype=torch.float64)
    if name == "hue":
        sector = (v % 360) / 60
        ramps = ((sector - 3).abs() - 1, 2 - (sector - 2).abs(), 2 - (sector - 4).abs())
        return torch.stack(ramps, -1).clamp(0, 1)
    one, zero = torch.ones_like(v), torch.zeros_like(v)
    cos, sin = torch.cos(v * math.pi / 180), torch.sin(v * math.pi / 180)
    rows = {
        "scale": (1 / v, zero, zero, zero, 1 / v, zero, zero, zero, one),
        # The vertical axis points down, so this inverse of a counter-clockwise turn looks like a forward one.
        "rotation": (cos, -sin, zero, sin, cos, zero, zero, zero, one),
        # From x' = d X cos / (d + X sin) and y' = d Y / (d + X sin), solved for X and Y.
        "perspective": (one, zero, zero, zero, cos, zero, -sin / VIEWING_DISTANCE, zero, cos),
    }[name]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


@functools.lru_cache(maxsize=16)  # every batch asks for it
def _turned_both_ways(values: tuple[float, ...], height: int, width: int) -> Tensor:
    """The published perspective, (V, 3, 3) maps from displayed to source coordinates; angles in degrees.

    A point (X, Y, z) of the plane, z one pixel, is turned by the angle about the line of sight and then about the
    vertical axis, and projected from the distance f = diagonal / (2 sin angle): (f X' / (f + Z'), f Y' / (f + Z')).
    """
    half = max(height, width) / 2  # the unit of length
    angle = torch.tensor([181.0 if value == 180 else value for value in values], dtype=torch.float64) * math.pi / 180
    cos, sin, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    depth, nearness = 1 / half, 2 * sin * half / math.hypot(height, width)  # z and 1 / f
    forward = [cos * cos, -cos * sin, -sin * depth, sin, cos, zero]
    forward += [nearness * sin * cos, -nearness * sin * sin, one + nearness * cos * depth]
    return torch.linalg.inv(torch.stack(forward, -1).reshape(-1, 3, 3))


def _values(name: str, values: Iterable[float] | bool, published: bool) -> tuple[float, ...]:
    if values is True:
        return LISTED_SCALE if published and name == "scale" else PUBLISHED[name]
    try:
        if isinstance(values, str):
            raise TypeError
        result = tuple(float(value) for value in values)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        result = ()
    if not result or not all(math.isfinite(value) for value in result) or (name == "scale" and min(result) <= 0):
        unit = "positive ratios" if name == "scale" else "degrees"
        raise ValueError(
            f"Transformations: {name} is {values!r}; expected a list of finite {unit}, or True for the published ones."
        )
    return result
