"""The default guide: the one made for a model's prior."""

from __future__ import annotations

from typing import Any

from ..model import TVAE
from ..priors import OrbitEnergy
from .base import Guide
from .mean_field import MeanFieldGuide
from .orbit import OrbitGuide

__all__ = ["default_guide"]


def default_guide(model: TVAE, **options: Any) -> Guide:
    """The guide made for the model's prior: MeanFieldGuide, or OrbitGuide for orbit energies."""
    return (OrbitGuide if isinstance(model.prior, OrbitEnergy) else MeanFieldGuide)(model, **options)
