"""Interpolation between two sequences: its ends, its shape, and that it goes one way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    EnergyPrior,
    GammaEnergy,
    GaussianEnergy,
    NoTopography,
    OrbitEnergy,
    default_guide,
    interpolate,
    reconstruct,
)

FRAME, S, C, D, R = (1, 2, 3), 4, 2, 4, 5

PRIORS: dict[str, Callable[[], EnergyPrior] | None] = {
    "gaussian": GaussianEnergy,
    "gamma": GammaEnergy,
    "orbit": OrbitEnergy,
    "none": None,
}


def small(name: str) -> TVAE:
    make = PRIORS[name]
    topography = NoTopography() if make is None else CapsuleRoll(4, 0) if name == "orbit" else CapsuleRoll(3, 1)
    return TVAE(FRAME, S, C, D, topography, prior=None if make is None else make(), mu=2.0)


@pytest.mark.parametrize("path", ["latent", "t"])
@pytest.mark.parametrize("name", PRIORS)
def test_the_ends_are_the_reconstructions_and_the_way_goes_one_way(
    name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(name)
    guide = default_guide(model)
    x_a, x_b = torch.rand(2, 3, S, *FRAME)
    seen: dict[str, torch.Tensor] = {}
    compose, decode = model.compose, model.decode

    def composing(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        seen.update(zip(("z", "u"), values.values(), strict=False))
        return compose(values)

    def decoding(t: torch.Tensor) -> object:
        seen["t"] = t
        return decode(t)

    monkeypatch.setattr(model, "compose", composing)
    monkeypatch.setattr(model, "decode", decoding)
    frames = interpolate(model, guide, x_a, x_b, steps=R, path=path)
    assert frames.shape == (3, R, S, *FRAME)
    way = ["t"] if path == "t" or model.prior is None else ["z", "u"]
    for coordinate in (seen[key] for key in way):
        assert coordinate.shape[:2] == (3, R)
        rise = coordinate.diff(dim=1)
        # At rounding level a coordinate that hardly moves may turn.
        assert ((rise >= -1e-6).all(1) | (rise <= 1e-6).all(1)).all()
        assert rise.abs().max() > 1e-3
    if "u" in way:
        assert (seen["u"] > 0).all()
        even = (seen["u"].log() if model.prior is not None and model.prior.positive else seen["u"]).diff(dim=1)
        torch.testing.assert_close(even, even.mean(1, keepdim=True).expand_as(even), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(frames[:, 0], reconstruct(model, guide, x_a))
    torch.testing.assert_close(frames[:, -1], reconstruct(model, guide, x_b))


def test_what_cannot_be_interpolated_gets_one_sentence() -> None:
    model = small("gaussian")
    guide, x = default_guide(model), torch.rand(3, S, *FRAME)
    for call, words in (
        (lambda: interpolate(model, guide, x, x, steps=1), "steps is 1; expected a whole number of at least 2"),
        (lambda: interpolate(model, guide, x, x, path="v"), "path is 'v'; expected 'latent' or 't'"),
        (lambda: interpolate(model, guide, x, x[:2]), "expected equal shapes"),
        (lambda: interpolate(model, guide, x, x[:, 1:]), "this model expects"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
