"""Pairs for sequences of another length: the same numbers wherever the neighbourhoods are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from combinations import FRAME, GUIDES, ORBITS, C, D, S, build
from torch import Tensor

from pyro_tvae import MeanFieldGuide, encode, reconstruct, verbs, with_n_frames
from pyro_tvae.guides.base import Posterior
from pyro_tvae.guides.encoders import FrameEncoder
from pyro_tvae.topographies.base import window

LONG = 9
PER_FRAME = [guide for guide in GUIDES if guide not in (*ORBITS, "sequence", "semi_amortized")]


@pytest.mark.parametrize("guide", ["mean_field", "shared_trunk", "gamma"])
def test_posterior_and_decoding_are_frame_by_frame_the_same(guide: str) -> None:
    model = build("roll", "gamma" if guide == "gamma" else "gaussian", centered=True)
    own = GUIDES[guide](model)
    longer, its_guide = with_n_frames(model, own, LONG)
    x = torch.rand(3, LONG, *FRAME)
    whole, part = its_guide.posterior(x), own.posterior(x[:, :S])
    for site, distribution in part.items():
        torch.testing.assert_close(whole[site].mean[:, :S], distribution.mean)  # type: ignore[union-attr]
        torch.testing.assert_close(whole[site].variance[:, :S], distribution.variance)  # type: ignore[union-attr]
    t = torch.randn(3, LONG, C, D)
    torch.testing.assert_close(longer.decode(t).mean[:, :S], model.decode(t[:, :S]).mean)


def test_energies_are_those_of_the_formula_at_either_length() -> None:
    """v[l, p] = sum of u[l + dt, p + dp]² over dt, dp in the window with |dt − dp| <= 1, wrapped; kernel 3."""
    model = build("roll", "gaussian")
    longer, _ = with_n_frames(model, GUIDES["mean_field"](model), LONG)
    u = torch.randn(LONG, C, D)
    for one, frames in ((model, S), (longer, LONG)):
        v = torch.zeros(frames, C, D)
        for frame in range(frames):
            for position in range(D):
                for dt in window(3):
                    for dp in window(3):
                        if abs(dt - dp) <= 1:
                            v[frame, :, position] += u[(frame + dt) % frames, :, (position + dp) % D] ** 2
        torch.testing.assert_close(one.energy(u[:frames]), v)
    z = torch.randn(LONG, C, D)
    # Inside, where no window wraps, the neighbourhoods are the same.
    torch.testing.assert_close(
        longer.compose({"z": z, "u": u})[1 : S - 1], model.compose({"z": z[:S], "u": u[:S]})[1 : S - 1]
    )


@pytest.mark.parametrize("n_frames", [2, LONG])
@pytest.mark.parametrize("topography", ["roll", "learned", "truncated", "stationary", "torus", "velocity", "grid"])
@pytest.mark.parametrize("guide", [guide for guide in GUIDES if guide not in (*ORBITS, "gamma")])
def test_every_guide_of_single_latents_runs_at_another_length(guide: str, topography: str, n_frames: int) -> None:
    model = build(topography, "gaussian")
    longer, its_guide = with_n_frames(model, GUIDES[guide](model), n_frames)
    assert its_guide(torch.rand(2, n_frames, *FRAME))["z"].shape == (2, n_frames, C, D)
    assert longer(n_sequences=2).shape == (2, n_frames, *FRAME)


def test_the_copy_trains_by_itself() -> None:
    model = build("roll", "gaussian")
    longer, _ = with_n_frames(model, GUIDES["mean_field"](model), LONG)
    assert longer.mu is not model.mu
    assert longer._pyro_name != model._pyro_name


@pytest.mark.parametrize(
    ("topography", "prior", "guide"),
    [("matrix", "gaussian", "mean_field"), ("orbits", "orbit", "orbit"), ("orbits", "orbit", "orbit_covariance")],
)
def test_what_belongs_to_a_length_is_refused_by_name(topography: str, prior: str, guide: str) -> None:
    model = build(topography, prior)
    own = GUIDES[guide](model)
    with pytest.raises(ValueError, match=f"with_n_frames: .* {type(own).__name__} belongs to 4 frames") as caught:
        with_n_frames(model, own, LONG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("guide", ["mean_field", "shared_trunk", "gamma"])
def test_long_sequences_are_encoded_in_pieces(guide: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("roll", "gamma" if guide == "gamma" else "gaussian")
    longer, own = with_n_frames(model, GUIDES[guide](model), LONG)
    x = torch.rand(2, LONG, *FRAME)
    observed = torch.rand(2, LONG) > 0.3 if masked else None
    covariates = {"measured": torch.rand(x.shape) > 0.3} if masked else None
    given: dict[str, Any] = {"observed": observed, "covariates": covariates}
    whole, mean = encode(longer, own, x, **given), reconstruct(longer, own, x, **given)
    seen: list[int] = []
    for part in own.modules():
        if isinstance(part, FrameEncoder):
            part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    monkeypatch.setattr(verbs, "SHORT", 1)
    monkeypatch.setattr(verbs, "PIECE", 8)
    torch.testing.assert_close(encode(longer, own, x, **given), whole)
    torch.testing.assert_close(reconstruct(longer, own, x, **given), mean)
    assert {*seen} == {4, 1}


def test_a_guide_that_looks_at_other_frames_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(MeanFieldGuide):
        def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
            return super().posterior(x.roll(1, 1), observed)

    model, x = build("roll", "gaussian"), torch.rand(2, S, *FRAME)
    guides = Later(model), GUIDES["sequence"](model)
    before = [encode(model, guide, x) for guide in guides]
    monkeypatch.setattr(verbs, "SHORT", 1)
    monkeypatch.setattr(verbs, "PIECE", 2)
    for guide, t in zip(guides, before, strict=True):
        assert torch.equal(encode(model, guide, x), t)
