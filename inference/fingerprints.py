"""Fingerprints: a few numbers that tell tensors from others, and that rounding on another machine leaves alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import TypedDict

import torch
from torch import Tensor

__all__ = ["Fingerprint", "alike", "fingerprint"]

ROW, BLOCK = 1024, 1024  # entries of a row, and rows at a time
FREQUENCIES = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=torch.float64).sqrt()  # of weights that never repeat
# Other instructions of a processor moved scikit-learn's enlarged digits by 1e-7, and their sums by at most 4e-8 of the
# norm; a single one of their 850,000 pixels that changes by a hundredth moves a sum by 3e-5 of it.
TOLERANCE = 1e-6


class Fingerprint(TypedDict):
    """What is kept of tensors.

    Attributes:
        exact: a digest of their types and shapes, and of whatever in them is no floating-point number.
        sums: of the floating-point numbers: their norm, and sums with fixed weights.
    """

    exact: str
    sums: list[float]


def fingerprint(tensors: Iterable[Tensor]) -> Fingerprint:
    """The fingerprint of tensors, in their order.

    A digest of rounded floats would not do: whatever the rounding, of a million pixels some lie so near a boundary that
    another processor's last bit decides on which side. Of the digits above 68 of 1.4 million did at 8 bits a pixel.

    Example:
        >>> x = torch.linspace(0, 1, 5)
        >>> alike(fingerprint([x]), fingerprint([x * (1 + 1e-7)])), alike(fingerprint([x]), fingerprint([x.flip(0)]))
        (True, False)
    """
    exact, sums = hashlib.sha256(), torch.zeros(1 + len(FREQUENCIES), dtype=torch.float64)
    columns = (torch.arange(ROW, dtype=torch.float64).unsqueeze(-1) * FREQUENCIES).cos()
    for number, tensor in enumerate(tensors):
        exact.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        value = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        flat = value.reshape(-1)
        for start in range(0, len(flat), ROW * BLOCK):
            part = flat[start : start + ROW * BLOCK].cpu()
            if not value.is_floating_point():
                exact.update(part.contiguous().view(torch.uint8).numpy().data)
                continue
            rows = torch.nn.functional.pad(part.double(), (0, -len(part) % ROW)).reshape(-1, ROW)
            rows = rows.nan_to_num(2.0, 3.0, -3.0)  # frames that are missing may hold anything
            places = torch.arange(len(rows), dtype=torch.float64).unsqueeze(-1) + start // ROW + 0.1 * number
            weighted = (rows @ columns * (places * FREQUENCIES).cos()).sum(0)
            sums += torch.cat([rows.square().sum().reshape(1), weighted])
    sums[0] = sums[0].sqrt()
    return {"exact": exact.hexdigest()[:16], "sums": sums.tolist()}


def alike(one: Fingerprint, two: Fingerprint) -> bool:
    """Whether two fingerprints are of the same tensors, but for rounding."""
    if one["exact"] != two["exact"] or len(one["sums"]) != len(two["sums"]):
        return False
    first, second = (_numbers(own) for own in (one, two))
    return bool(((first - second).abs() <= TOLERANCE * max(first[0], second[0])).all())


def _numbers(own: Fingerprint) -> Tensor:
    """The sums; what a damaged file has in their place is like nothing."""
    return torch.tensor([math.nan if x is None else x for x in own["sums"]], dtype=torch.float64)
