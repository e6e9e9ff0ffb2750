"""dSprites sequences: one factor of a sprite moves, the others stay; drawn here, or looked up in the published file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from . import dsprites_file, silhouettes
from .sequences import mix
from .splits import Batch, Splits, check_seed, cuts
from .transformations import Draw, movers, nearest

__all__ = ["FULL_CIRCLE", "PUBLISHED_CIRCLE", "DrawnPixels", "Pixels", "Sprites", "StoredPixels", "dsprites"]

NAMES = ("scale", "orientation", "x", "y")

# Which of dSprites' own values are used: the published choice.
SCALES = (1, 2, 3, 4, 5)
POSITIONS = tuple(range(0, 30, 2))
PUBLISHED_CIRCLE = tuple(float(index) for index in range(0, 30, 2))
# 39 steps are a whole turn in dSprites, whose last orientation is its first.
FULL_CIRCLE = tuple(39 * frame / 15 for frame in range(15))


class DrawnPixels:
    """Frames drawn when they are needed: every sprite once, upright and turned, then put where it belongs.

    Args:
        orientations: in dSprites' count, 39 to the turn; fractions are drawn exactly.
    """

    frame_shape = (1, silhouettes.SIDE, silhouettes.SIDE)

    def __init__(self, orientations: Sequence[float]) -> None:
        shape = torch.arange(len(silhouettes.SHAPES)).reshape(-1, 1, 1)
        scale = 0.5 + torch.tensor(SCALES).unsqueeze(-1) / 10
        radians = torch.tensor(orientations, dtype=torch.float64) * 2 * math.pi / 39
        self.pictures = silhouettes.silhouettes(shape, scale, radians)  # (3, scales, orientations, 33, 33)
        self.positions = torch.tensor(POSITIONS)

    def __call__(self, index: Tensor) -> Tensor:
        device = index.device
        shape, scale, orientation, x, y = index.unbind(-1)
        positions = self.positions.to(device)
        return silhouettes.frames(self.pictures.to(device)[shape, scale, orientation], positions[x], positions[y])


class StoredPixels:
    """Frames of the published file; those of the values in use are kept in memory, 26 MB.

    Args:
        path: the file.
        orientations: in dSprites' count; a fraction takes the nearest one there is, at most 4.6° away.
        sha256: of the file, or None.
    """

    def __init__(self, path: str | Path, orientations: Sequence[float], sha256: str | None = None) -> None:
        values = ((0, 1, 2), SCALES, [round(index) for index in orientations], POSITIONS, POSITIONS)
        used = torch.cartesian_prod(*map(torch.tensor, values))
        self.sizes = tuple(map(len, values))
        self.packed = dsprites_file.packed_images(path, silhouettes.flat_index(used), sha256)
        self.frame_shape = (1, *dsprites_file.FILE_SHAPE[1:])

    def __call__(self, index: Tensor) -> Tensor:
        row = silhouettes.flat_index(index, self.sizes)
        # Looked up where the file's images are, so that a device only ever gets the packed bytes of its batch.
        packed = self.packed[row.to(self.packed.device)].to(index.device)
        return dsprites_file.unpack(packed, self.frame_shape)


# Frames of factor values: indices (..., 5) of shape, scale, orientation, x, y -> (..., 1, height, width). Indices count
# the values in use (5 scales, 15 of each other factor), not dSprites' own.
Pixels: TypeAlias = DrawnPixels | StoredPixels


@dataclass(frozen=True)
class Sprites:
    """N sequences of sprites, all but their phase: a sequence renderer.

    Attributes:
        pixels: where frames come from.
        labels: shape of each sprite, (N,) int64: square, ellipse, heart.
        still: index of each factor where it stays, (N, 4) int64; 0 where it moves.
        moves: which factor moves, (N,) int64 into ``moving``.
        moving: the factors that can move.
    """

    pixels: Pixels
    labels: Tensor
    still: Tensor
    moves: Tensor
    moving: tuple[str, ...]

    names = NAMES
    periods = (len(SCALES), len(PUBLISHED_CIRCLE), len(POSITIONS), len(POSITIONS))

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        return self.pixels.frame_shape

    def first(self, n: int) -> Sprites:
        return replace(self, labels=self.labels[:n], still=self.still[:n], moves=self.moves[:n])

    def draw(self, n_frames: int, generator: torch.Generator) -> Draw:
        """Every phase is uniform; the moving factor advances by one value a frame, modulo its number of values."""
        periods = torch.tensor(self.periods)
        column = torch.tensor([NAMES.index(name) for name in self.moving])[self.moves]
        phase = (torch.rand(len(self.labels), generator=generator, dtype=torch.float64) * periods[column]).long()
        where = (phase[:, None] + torch.arange(n_frames)) % periods[column, None]
        moved = torch.nn.functional.one_hot(column, len(NAMES))  # (N, 4)
        return Draw(self.still[:, None] + moved[:, None] * where[..., None], self.moves)

    def pick(self, rows: Tensor) -> Batch:
        return {}  # shape and index say it all

    def render(self, batch: Batch) -> Tensor:
        shape = batch["label"][:, None, None].expand(-1, batch["index"].shape[1], 1)
        return self.pixels(torch.cat((shape, batch["index"]), -1))


def dsprites(
    path: str | Path | None = None,
    full_circle: bool = False,
    moving: Sequence[str] | str = NAMES,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    sha256: str | None = None,
) -> Splits:
    """Sequences of 64 x 64 binary sprites (Matthey et al. 2017) with one moving factor, as published for the TVAE.

    5 scales (values 1 to 5 of 6) and 15 each of orientation, x and y (every second value below 30). A moving factor
    runs through its values in order, one a frame, and wraps: over 15 frames the 5 scales pass three times. The
    published orientations end at 258° and jump over the rest of the turn.

    A sequence is told by its shape, its moving factor and the values of the others; its phase is drawn every epoch.
    Train, validation and test share no such sequence, at whatever phase. They do share single frames, as every frame
    lies on one sequence of each factor. Each moving factor has the same share of a split: scale has three times as many
    sequences as the others, so theirs come three times.

    References:
        Matthey, Higgins, Hassabis & Lerchner, "dSprites: Disentanglement testing Sprites dataset", 2017,
        https://github.com/google-deepmind/dsprites-dataset

    Args:
        path: the published .npz file; None draws the sprites instead: other outlines, the same factors.
        full_circle: 15 orientations that close the circle, 24° apart; from the file those nearest to them.
        moving: the factors that can move.
        validation: share of all sequences.
        test: share of all sequences; the published code had no test split.
        seed: of the split.
        sha256: of the file, checked if given.

    Returns:
        Splits of :class:`Sprites`, whose labels are the shapes.

    Raises:
        DataNotFound: there is no file at ``path``.
        ValueError: the file holds something else, a digest without a file, a moving factor that is none, or shares
            that leave nothing to train on.
    """
    moving = movers("dsprites", moving, NAMES)
    check_seed(seed)
    for name in moving:
        if name not in NAMES:
            raise ValueError(
                f"dsprites: moving names {name!r}, which is not a factor here; expected one of {', '.join(NAMES)}"
                f"{nearest(str(name), NAMES)}."
            )
    if not moving:
        raise ValueError(f"dsprites: moving is empty; expected at least one of {', '.join(NAMES)}.")
    if path is None and sha256 is not None:
        raise ValueError("dsprites: there is a sha256 but no file to check; give its path too, or leave both out.")
    orientations = FULL_CIRCLE if full_circle else PUBLISHED_CIRCLE
    sequences = [_sequences(name) for name in moving]
    order = [cuts(still[:, 0], validation, test, mix(seed, k)) for k, still in enumerate(sequences)]
    pixels = DrawnPixels(orientations) if path is None else StoredPixels(path, orientations, sha256)
    return Splits(*(_interleaved(sequences, part, pixels, moving) for part in zip(*order, strict=True)))


def _sequences(moving: str) -> Tensor:
    """All sequences of one moving factor: shape and the four factors' indices, 0 for the one that moves; (M, 5)."""
    values = (torch.arange(1 if name == moving else n) for name, n in zip(NAMES, Sprites.periods, strict=True))
    return torch.cartesian_prod(torch.arange(len(silhouettes.SHAPES)), *values)


def _interleaved(
    sequences: Sequence[Tensor], part: Sequence[Tensor], pixels: Pixels, moving: tuple[str, ...]
) -> Sprites:
    """One split, its factors taking turns; the shorter ones start again until the longest has ended."""
    n = max(map(len, part)) if min(map(len, part)) else 0
    rows = [still[places[torch.arange(n) % max(1, len(places))]] for still, places in zip(sequences, part, strict=True)]
    table = torch.stack(rows, 1).flatten(0, 1)
    moves = torch.arange(len(moving)).repeat(n)
    return Sprites(pixels, table[:, 0], table[:, 1:], moves, moving)
