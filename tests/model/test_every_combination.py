"""Every prior with every guide, topography and likelihood: trains, is judged, is saved and comes back the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from combinations import (
    ALL,
    FRAME,
    GUIDES,
    LATENTS,
    LIKELIHOODS,
    NETWORKS,
    PRIORS,
    TOPOGRAPHIES,
    TRIPLES,
    S,
    build,
    sensible,
)

from pyro_tvae import load, save
from pyro_tvae.inference import ELBO, log_weights


@pytest.mark.parametrize("combination", ALL, ids=["-".join(map(str, one)) for one in ALL])
def test_it_trains_is_judged_and_comes_back_the_same(
    combination: tuple[str, str | None, str, str, str, str], tmp_path: Path
) -> None:
    topography, prior, name, likelihood, latent, network = combination
    model = build(topography, prior, likelihood, latent, network, centered=ALL.index(combination) % 3 == 1)
    guide = GUIDES[name](model)
    x = torch.rand(2, S, *FRAME)
    objective = ELBO(model, guide)
    optimizer = torch.optim.Adam(objective.parameters(), 1e-3)
    before = [parameter.detach().clone() for parameter in objective.parameters()]
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        (-objective(x).elbo.mean()).backward()
        optimizer.step()
    assert not any(torch.equal(one, two) for one, two in zip(before, objective.parameters(), strict=True))
    expected = log_weights(model, guide, x, 3, seed=7)
    assert expected.shape == (3, 2)
    assert torch.isfinite(expected).all()
    again, its_guide = load(save(tmp_path / "m.safetensors", model, guide))
    assert torch.equal(log_weights(again, its_guide, x, 3, seed=7), expected)


@pytest.mark.parametrize(
    ("topography", "prior", "guide"),
    [triple for triple in TRIPLES if not sensible(*triple) and (triple[0] == "none" or triple[1] is not None)],
)
def test_what_makes_no_sense_is_refused_when_it_is_built(topography: str, prior: str | None, guide: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z].*; |expected|use |build it with") as caught:
        GUIDES[guide](build(topography, prior))
    assert "\n" not in str(caught.value)


def test_the_product_is_whole() -> None:
    for index, options in enumerate((TOPOGRAPHIES, (*PRIORS, None), GUIDES, LIKELIHOODS, LATENTS, NETWORKS)):
        assert {one[index] for one in ALL} == {*options}
    assert {(one[2], one[4]) for one in ALL} == {*itertools.product(GUIDES, LATENTS)}
    assert {(one[2], one[5]) for one in ALL} == {*itertools.product(GUIDES, NETWORKS)}
    assert {(one[3], one[4]) for one in ALL} == {*itertools.product(LIKELIHOODS, LATENTS)}
