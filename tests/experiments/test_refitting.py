"""Refitting: a model that takes over another's weights has its law of x, and only such models are accepted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pyro_tvae
from pyro_tvae import TVAE, CapsuleRoll, GaussianEnergy, OrbitEnergy
from pyro_tvae.experiments.studies.refitting import take_over


def model(**options: Any) -> TVAE:
    return TVAE((1, 4, 4), 4, 2, 4, **{"topography": CapsuleRoll(4, 0), **options})


@pytest.mark.parametrize("centered", [False, True])
def test_what_is_taken_over_is_all_but_the_energies_and_is_held(centered: bool) -> None:
    torch.manual_seed(0)
    reference = model(prior=OrbitEnergy(), mu=3.0, centered=centered)
    other = model(prior=GaussianEnergy(), mu=5.0, centered=centered)
    held = take_over(other, reference)
    assert held is other
    assert float(held.mu) == 3.0
    t = torch.randn(5, 2, 4)
    assert torch.equal(held.decode(t).base_dist.logits, reference.decode(t).base_dist.logits)
    assert not any(parameter.requires_grad for parameter in held.parameters())
    assert isinstance(held.prior, GaussianEnergy)


@pytest.mark.parametrize(
    "options",
    [
        {"topography": CapsuleRoll(3, 0)},
        {"likelihood": pyro_tvae.Normal(learned=True)},
        {"network": pyro_tvae.MLP(decoder_widths=(1, 2))},
        {"centered": True},
    ],
    ids=["topography", "likelihood", "network", "centred"],
)
def test_models_of_another_law_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="differ in more than their energies; expected the same sizes"):
        take_over(model(**options), model(prior=OrbitEnergy()))
