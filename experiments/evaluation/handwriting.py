"""Handwriting: slant and stroke width of images of digits, which the units of a map may prefer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["slant", "stroke_width"]


def slant(images: Tensor) -> Tensor:
    """Slant of every image from its second moments, ``mu11 / mu02`` with y upwards: a shear ``x + a·y`` adds a.

    0 stands upright, positive leans to the right, 1 by 45 degrees; an image without height has 0.

    Args:
        images: (..., height, width), grey values, 0 the background.

    Example:
        >>> round(slant(torch.eye(5).flip(0)).item(), 6)  # from bottom left to top right
        1.0
    """
    images = images.double()
    height, width = images.shape[-2:]
    y = torch.arange(height, 0, -1, dtype=torch.float64, device=images.device).unsqueeze(-1)
    x = torch.arange(width, dtype=torch.float64, device=images.device)
    mass = images.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    up = y - (images * y).sum((-2, -1), keepdim=True) / mass
    right = x - (images * x).sum((-2, -1), keepdim=True) / mass
    rises = (images * up.square()).sum((-2, -1))
    return torch.where(rises > 0, (images * up * right).sum((-2, -1)) / rises, 0.0)


def stroke_width(images: Tensor) -> Tensor:
    """Mean width of the strokes of every image, in pixels: twice the grey mass over the length of the edges.

    The length of the edges is the total variation of the image. For a ring this is its width, but for the few percent
    that pixels make oblique edges longer; free ends make a stroke of width w and length L appear narrower, as
    ``w L / (w + L)``. An empty image has 0.

    Args:
        images: (..., height, width), grey values between 0, the background, and 1.

    Example:
        >>> bar = torch.zeros(40, 40)
        >>> bar[:, 10:14] = 1.0
        >>> 3.5 < stroke_width(bar).item() < 4.0
        True
    """
    images = pad(images.double(), (1, 1, 1, 1))
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    edges = (down.square() + right.square()).sqrt().sum((-2, -1))
    return torch.where(edges > 0, 2 * images.sum((-2, -1)) / edges, 0.0)
