"""Convolutional networks: any frame size, any leading dimensions, every parameter trained."""

from __future__ import annotations

import pytest
import torch

from pyro_tvae import TVAE, CapsuleRoll, Convolutional, MeanFieldGuide
from pyro_tvae.inference import ELBO


@pytest.mark.parametrize("frame", [(1, 1, 1), (1, 6, 6), (3, 7, 5), (1, 28, 28), (2, 9, 16)])
@pytest.mark.parametrize("channels", [(4,), (3, 5, 4)])
@pytest.mark.parametrize("leading", [(), (3,), (2, 1, 3)])
def test_any_frame_and_any_leading_dimensions(
    frame: tuple[int, int, int], channels: tuple[int, ...], leading: tuple[int, ...]
) -> None:
    network = Convolutional(channels)
    encoder, decoder = network.encoder(frame, 6, 11), network.decoder(6, frame)
    x, t = torch.rand(*leading, *frame), torch.randn(*leading, 6)
    assert encoder(x).shape == (*leading, 11)
    assert decoder(t).shape == (*leading, *frame)
    for module, value, event in ((encoder, x, frame), (decoder, t, (6,))):
        flat = torch.stack([module(one) for one in value.reshape(-1, *event)])
        torch.testing.assert_close(module(value).reshape(flat.shape), flat)


def test_features_are_local() -> None:
    """The first layer sees 3 x 3 pixels: far pixels do not change a feature."""
    encoder = Convolutional((4,)).encoder((1, 8, 8), 6, 11)
    first = encoder.layers[0]
    x = torch.rand(1, 1, 8, 8)
    other = x.clone()
    other[..., 7, 7] += 1
    changed = (first(x) != first(other)).any(1)[0]
    assert changed[3, 3]
    assert not changed[:3].any()
    assert not changed[:, :3].any()


def test_every_parameter_trains() -> None:
    model = TVAE((2, 7, 5), 4, 2, 4, CapsuleRoll(3, 1), network=Convolutional((4, 6)), mu=1.0)
    guide = MeanFieldGuide(model, initial_log_variance=-1.0)
    objective = ELBO(model, guide)
    (-objective(torch.rand(8, 4, 2, 7, 5)).elbo.sum()).backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_variances_start_where_they_were_put() -> None:
    model = TVAE((1, 6, 6), 4, 2, 4, CapsuleRoll(3, 1), network=Convolutional())
    q = MeanFieldGuide(model, initial_log_variance=-5.0).posterior(torch.rand(2, 4, 1, 6, 6))
    assert (q["z"].variance.log() + 5).abs().max() < 1.5


@pytest.mark.parametrize(("channels", "hidden"), [((), 2), ((0,), 2), ((4,), 0)])
def test_networks_that_are_none_get_one_sentence(channels: tuple[int, ...], hidden: float) -> None:
    with pytest.raises(ValueError, match="expected one number of channels or more") as caught:
        Convolutional(channels, hidden)
    assert "\n" not in str(caught.value)
