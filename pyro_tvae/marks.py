"""Marks: a few numbers of what a file does not hold since code makes it anew, so that other code is noticed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .topographies import Topography

__all__ = ["checksum", "marks", "other_mark"]

TOPOGRAPHY = "model.topography"
TOLERANCE = 1e-5  # of rounding, as by another processor
Marks = dict[str, list[float]]


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names and bytes: one bit that flips changes it."""
    crc = 0
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        crc = zlib.crc32(name.encode(), crc)
        if value.numel():
            crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


def marks(model: Any, pair: nn.Module, derived: Mapping[str, object]) -> Marks:
    """Of the buffers that are derived, and of what the model's topography sums over."""
    made = {}
    for name in derived:
        path, _, key = name.rpartition(".")
        value = pair.get_submodule(path)._buffers.get(key)
        if value is not None:
            made[name] = _mark(value)
    topography = getattr(model, "topography", None)
    if isinstance(topography, Topography):
        made[TOPOGRAPHY] = _mark(_neighbors(topography, *model.latent_shape))
    return made


def other_mark(now: Marks, then: Mapping[str, list[float]]) -> str | None:
    """The first name whose numbers are not those of then, but for rounding; None where there is none."""
    for name, own in now.items():
        if (before := then.get(name)) is None:
            continue
        scale = TOLERANCE * max(own[0], before[0], 1e-30)
        if len(own) != len(before) or not all(abs(a - b) <= scale for a, b in zip(own, before, strict=True)):
            return name
    return None


@torch.no_grad()
def _neighbors(topography: Topography, n_frames: int, _: int, n_positions: int) -> Tensor:
    """W where it is a matrix of its own, else the offsets with their coefficients."""
    if topography.dense:
        return topography.neighborhood(n_frames, n_positions)
    rows = [(*offset, c) for offset, c in zip(topography.offsets(), topography.coefficients(), strict=True)]
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def _mark(value: Tensor) -> list[float]:
    """The norm of a tensor's entries, and two sums with fixed weights that never repeat."""
    value = (torch.view_as_real(value) if value.is_complex() else value).detach().cpu().double().nan_to_num(2.0)
    if not value.numel():
        return [0.0, 0.0, 0.0]
    rows = value.reshape(-1, value.shape[-1] if value.dim() else 1)
    sums = []
    for frequency in (math.sqrt(2), math.sqrt(3)):
        down, across = ((torch.arange(n, dtype=torch.float64) * frequency).cos() for n in rows.shape)
        sums.append(float(down @ (rows @ across)))
    return [float(rows.norm()), *sums]
