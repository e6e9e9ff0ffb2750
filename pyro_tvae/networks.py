"""Networks: encoders of single frames and decoders to single frames, for any leading dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from .parts import Part, hold
from .products import Linear

__all__ = ["MLP", "Network"]


class Network(Part):
    """A recipe for encoders and decoders; the model and the guide ask it for modules of the sizes they need."""

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        """A module (..., channel, height, width) -> (..., n_outputs)."""
        raise NotImplementedError

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        """A module (..., n_latents) -> (..., channel, height, width), unbounded."""
        raise NotImplementedError


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "silu": nn.SiLU,  # its gradient asks for what went in
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}


def activation_of(owner: str, name: str) -> Callable[[], nn.Module]:
    """What makes a nonlinearity, by its name.

    Raises:
        ValueError: there is none of that name; ``owner`` is who asks.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"{owner}: activation is {name!r}; expected one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


class MLP(Network):
    """Fully connected networks; the defaults are the paper's widths and its ReLU.

    Args:
        encoder_widths: hidden widths of the encoder in units of the number of latents n = C·D.
        decoder_widths: hidden widths of the decoder in the same units.
        published: a decoder as that of the `code of the paper <https://github.com/akandykeller/TopographicVAE>`__,
            which is made of transposed convolutions: one output bias per channel instead of one per pixel, and
            weights that start in ±1/√(outputs of the layer) instead of ±1/√(inputs).
        activation: ``relu``, ``silu``, ``gelu``, ``elu`` or ``tanh``, after every layer but the last.

    Raises:
        ValueError: there is no such activation.
    """

    def __init__(
        self,
        encoder_widths: Sequence[float] = (3, 2),
        decoder_widths: Sequence[float] = (2, 3),
        published: bool = False,
        activation: str = "relu",
    ) -> None:
        self.activation, self._nonlinearity = activation, activation_of("MLP", activation)
        self.encoder_widths, self.decoder_widths = tuple(encoder_widths), tuple(decoder_widths)
        self.published = published

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        widths = [round(width * n_latents) for width in self.encoder_widths]
        return nn.Sequential(nn.Flatten(-3), *self._layers([math.prod(frame_shape), *widths, n_outputs]))

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        widths = [round(width * n_latents) for width in self.decoder_widths]
        layers = self._layers([n_latents, *widths, math.prod(frame_shape)])
        whole = nn.Unflatten(-1, tuple(frame_shape))
        if not self.published:
            return nn.Sequential(*layers, whole)
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        for layer in linear:
            bound = 1 / math.sqrt(layer.out_features)
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)
        last = linear[-1]
        channels = nn.Parameter(last.bias[: frame_shape[0]].detach().reshape(-1, 1, 1).clone())
        last.register_parameter("bias", None)
        return nn.Sequential(*layers, whole, Shift(channels))

    def _layers(self, sizes: Sequence[int]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [Linear(n_in, n_out), self._nonlinearity()]
        return layers[:-1]


class Shift(nn.Module):
    """Adds a tensor to what passes: a parameter, or a buffer that is not learned."""

    by: Tensor

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        hold(self, "by", by, learned=isinstance(by, nn.Parameter))

    def forward(self, value: Tensor) -> Tensor:
        return value + self.by


def last_linear(network: nn.Module) -> nn.Linear:
    """The layer whose bias sets what a network says before it has learned anything."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
