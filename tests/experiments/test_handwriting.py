"""Slant and stroke width against shapes whose slant and width are theirs by construction."""

from __future__ import annotations

import pytest
import torch

import pyro_tvae.inference
from pyro_tvae.experiments.evaluation.handwriting import slant, stroke_width


def bar(lean: float, middle: float = 20.0) -> torch.Tensor:
    """An upright stroke, 4 wide with soft edges, sheared by ``lean`` to the right of every pixel up."""
    up = torch.arange(20.0, -21.0, -1.0).unsqueeze(1)
    across = torch.arange(41.0) - middle - lean * up
    return torch.exp(-(across.square()) / 8) * (up.abs() <= 12)


def test_a_shear_adds_to_the_slant() -> None:
    for lean in (-0.4, 0.0, 0.3):
        assert slant(bar(lean)).item() == pytest.approx(lean, abs=1e-3)
        assert slant(bar(lean, middle=17.0)).item() == pytest.approx(lean, abs=1e-3)
        assert slant(bar(lean).flip(-1)).item() == pytest.approx(-lean, abs=1e-3)
    assert slant(torch.stack([bar(0.2), torch.zeros(41, 41)])).tolist() == [pytest.approx(0.2, abs=1e-3), 0.0]


@pytest.mark.parametrize("width", [3.0, 6.0])
def test_the_width_of_a_ring_is_its_width(width: float) -> None:
    place = torch.arange(101.0) - 50
    radius = (place.square() + place.unsqueeze(1).square()).sqrt()
    ring = (0.5 + width / 2 - (radius - 30).abs()).clamp(0, 1)
    assert stroke_width(ring).item() == pytest.approx(width, rel=0.08)
    assert stroke_width(0.5 * ring).item() == pytest.approx(width, rel=0.08)  # of grey strokes too
    assert stroke_width(torch.zeros(2, 5, 5)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("measure", [slant, stroke_width])
def test_the_former_names_still_work(measure: object) -> None:
    name = measure.__name__  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match=f"pyro_tvae.experiments.evaluation.handwriting.{name}"):
        assert getattr(pyro_tvae.inference, name) is measure
