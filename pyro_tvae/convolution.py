"""Convolutional networks: encoders and decoders of frames of any size, for any leading dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from .networks import Network, activation_of

__all__ = ["Convolutional"]


class Convolutional(Network):
    """Convolutions that halve the frame, a linear layer, and the same in reverse to decode.

    Encoder: for each entry of ``channels`` a 3 x 3 convolution of stride 2, then one hidden layer. Decoder:
    a hidden layer, a small frame of features, then for each entry nearest-neighbour upsampling to the size that the
    encoder had there, and a 3 x 3 convolution. So frames may have any size, odd ones too.

    Args:
        channels: features after each halving.
        hidden: width of the hidden layers in units of the number of latents n = C·D.
        activation: as of :class:`~pyro_tvae.MLP`, after every layer but the last.

    Raises:
        ValueError: no channels, a width that is not above 0, or no such activation.

    Example:
        >>> import torch
        >>> Convolutional((4, 8)).decoder(12, (1, 7, 5))(torch.rand(2, 3, 12)).shape
        torch.Size([2, 3, 1, 7, 5])
    """

    def __init__(self, channels: Sequence[int] = (16, 32), hidden: float = 2, activation: str = "relu") -> None:
        self.activation, self._nonlinearity = activation, activation_of("Convolutional", activation)
        self.channels, self.hidden = tuple(int(c) for c in channels), hidden
        if not self.channels or min(self.channels) < 1 or not hidden > 0:
            raise ValueError(
                f"Convolutional: channels={tuple(channels)}, hidden={hidden}; expected one number of channels "
                "or more, each of at least 1, and a width above 0."
            )

    def _sizes(self, frame_shape: Sequence[int]) -> list[tuple[int, int]]:
        """(height, width) before the first halving and after each."""
        sizes = [(frame_shape[1], frame_shape[2])]
        for _ in self.channels:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        return sizes

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        height, width = self._sizes(frame_shape)[-1]
        hidden = max(1, round(self.hidden * n_latents))
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((frame_shape[0], *self.channels)):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), self._nonlinearity()]
        layers += [nn.Flatten(), nn.Linear(self.channels[-1] * height * width, hidden), self._nonlinearity()]
        return _AnyLeading(3, *layers, nn.Linear(hidden, n_outputs))

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        sizes = self._sizes(frame_shape)
        hidden, features = max(1, round(self.hidden * n_latents)), (self.channels[-1], *sizes[-1])
        layers: list[nn.Module] = [nn.Linear(n_latents, hidden), self._nonlinearity()]
        layers += [nn.Linear(hidden, math.prod(features)), nn.Unflatten(-1, features)]
        steps = pairwise((*reversed(self.channels), frame_shape[0]))
        for (n_in, n_out), size in zip(steps, reversed(sizes[:-1]), strict=True):
            layers += [self._nonlinearity(), nn.Upsample(size), nn.Conv2d(n_in, n_out, 3, padding=1)]
        return _AnyLeading(1, *layers)


class _AnyLeading(nn.Module):
    """Layers for (N, *event) applied to (..., *event); convolutions know one leading dimension only."""

    def __init__(self, event_dim: int, *layers: nn.Module) -> None:
        super().__init__()
        self.event_dim, self.layers = event_dim, nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        leading, event = x.shape[: -self.event_dim], x.shape[-self.event_dim :]
        y: Tensor = self.layers(x.reshape(-1, *event))
        return y.reshape(*leading, *y.shape[1:])
