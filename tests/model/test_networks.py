"""Fully connected and convolutional networks: which nonlinearity stands between their layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from complaints import refused
from torch import Tensor, nn
from torch.nn import functional

from pyro_tvae import MLP, TVAE, Convolutional, Network, load, save
from pyro_tvae.guides import MeanFieldGuide

BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_an_activation_stands_after_every_layer_but_the_last(name: str) -> None:
    network, x = MLP((3, 2), (2,), activation=name), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    encoder = network.encoder((1, 4, 4), 6, 7).double()
    one, two, three = (layer for layer in encoder.modules() if isinstance(layer, nn.Linear))
    hidden = BY_HAND[name](functional.linear(x.flatten(1), one.weight, one.bias))
    hidden = BY_HAND[name](functional.linear(hidden, two.weight, two.bias))
    torch.testing.assert_close(encoder(x), functional.linear(hidden, three.weight, three.bias))
    decoder = network.decoder(6, (1, 4, 4)).double()
    one, two = (layer for layer in decoder.modules() if isinstance(layer, nn.Linear))
    t = torch.randn(5, 6, dtype=torch.float64)
    hidden = BY_HAND[name](functional.linear(t, one.weight, one.bias))
    torch.testing.assert_close(decoder(t).flatten(1), functional.linear(hidden, two.weight, two.bias))


@pytest.mark.parametrize("kind", [MLP, Convolutional])
def test_it_is_the_one_that_was_asked_for_and_comes_back_from_a_file(kind: type[Network], tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = TVAE((1, 6, 6), 4, 2, 4, network=kind(activation="elu"))  # type: ignore[call-arg]
    guide = MeanFieldGuide(model)
    for part in (*load(save(tmp_path / "m.safetensors", model, guide)), model, guide):
        kinds = {type(module) for module in part.modules()}
        assert nn.ELU in kinds
        assert nn.ReLU not in kinds


@pytest.mark.parametrize("kind", [MLP, Convolutional])
def test_an_unknown_one_is_refused(kind: type[Network]) -> None:
    message = refused(lambda: kind(activation="swish"))  # type: ignore[call-arg]
    assert message == f"{kind.__name__}: activation is 'swish'; expected one of relu, silu, gelu, elu, tanh."
