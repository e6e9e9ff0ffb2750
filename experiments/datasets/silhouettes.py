"""Silhouettes: square, ellipse and heart as a tensor program from dSprites' factor indices to 64 x 64 binary frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["CLASSES", "SHAPES", "SIDE", "flat_index", "frames", "latents", "silhouettes"]

SHAPES = ("square", "ellipse", "heart")
# Values of shape, scale, orientation, x and y; dSprites counts one colour before them, which changes nothing.
CLASSES = (3, 6, 40, 32, 32)

SIDE = 64
# A position is a whole pixel: the sprite's centre is pixel REACH + position of its row or column, so that the 32
# positions lie about the middle of the frame, and whatever stays within REACH of its centre stays inside the frame.
REACH = (SIDE - CLASSES[-1]) // 2

# Sizes at scale 1, in pixels. None of the outlines runs through a pixel's centre when it stands upright, so rounding
# decides no pixel; the corner of the square is 15.2 from the centre and nothing reaches further.
HALF_SQUARE = 10.75
HALF_AXES = (15.2, 7.6)
HEART = 10.6
HEART_LIFT = 0.2  # from the origin of the heart's equation to about the middle of its area, in its own units


def flat_index(latents: Tensor, sizes: Sequence[int] = CLASSES) -> Tensor:
    """Place of an image in dSprites: row-major over (shape, scale, orientation, x, y); (..., 5) int64 -> (...)."""
    flat = torch.zeros_like(latents[..., 0])
    for factor, size in enumerate(sizes):
        flat = flat * size + latents[..., factor]
    return flat


def latents(flat: Tensor) -> Tensor:
    """Factor indices of the images at these places, the inverse of :func:`flat_index`: (...) int64 -> (..., 5).

    Example:
        >>> latents(torch.tensor([0, 737279])).tolist()
        [[0, 0, 0, 0, 0], [2, 5, 39, 31, 31]]
    """
    return torch.stack(torch.unravel_index(flat, CLASSES), -1)


def silhouettes(shape: Tensor, scale: Tensor, radians: Tensor) -> Tensor:
    """Which pixels of a window about its centre a sprite covers: those whose middle lies inside the outline.

    The heart is ``(p² + q² − 1)³ ≤ p² q³``, the usual sextic.

    Args:
        shape: (...) int64 into ``SHAPES``; the three broadcast.
        scale: (...), at most 1.
        radians: (...), counter-clockwise as displayed.

    Returns:
        (..., 33, 33) bool.
    """
    right = torch.arange(-REACH, REACH + 1, dtype=torch.float64, device=shape.device)
    up = -right.unsqueeze(-1)
    shape, size, angle = shape[..., None, None], scale.double()[..., None, None], radians.double()[..., None, None]
    # Turned back by the angle and brought to scale 1: where in the upright sprite is this pixel?
    a = (angle.cos() * right + angle.sin() * up) / size
    b = (angle.cos() * up - angle.sin() * right) / size
    square = torch.maximum(a.abs(), b.abs()) <= HALF_SQUARE
    ellipse = (a / HALF_AXES[0]).square() + (b / HALF_AXES[1]).square() <= 1
    p, q = a / HEART, b / HEART + HEART_LIFT
    heart = (p.square() + q.square() - 1) ** 3 <= p.square() * q**3
    return torch.where(shape == 0, square, torch.where(shape == 1, ellipse, heart))


def frames(pictures: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Put windows into frames, in one gather.

    Args:
        pictures: (..., 33, 33), as from :func:`silhouettes`.
        x, y: (...) int64, positions from 0 to 31.

    Returns:
        (..., 1, 64, 64) float32.
    """
    lead, window = pictures.shape[:-2], pictures.shape[-1]
    # Every pixel outside the window looks at a ring of zeros around it.
    ringed = torch.nn.functional.pad(pictures.reshape(-1, window, window), (1, 1, 1, 1))
    pixel = torch.arange(SIDE, device=pictures.device)
    rows, columns = ((pixel - start.reshape(-1, 1)).clamp(-1, window) + 1 for start in (y, x))
    n = torch.arange(len(ringed), device=pictures.device)[:, None, None]
    return ringed[n, rows[:, :, None], columns[:, None, :]].float().reshape(*lead, 1, SIDE, SIDE)
