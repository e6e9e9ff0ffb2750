"""A linear Gaussian model, whose posterior and evidence are known exactly, with a guide that is that posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_tvae import TVAE, MeanFieldGuide, Network, Normal, NoTopography

FRAME = (1, 2, 2)


class Affine(Network):
    """Decoder and encoders of one affine layer: with Normal pixels and no topography, log p(x) has a closed form."""

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(-3), nn.Linear(math.prod(frame_shape), n_outputs))

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        return nn.Sequential(nn.Linear(n_latents, math.prod(frame_shape)), nn.Unflatten(-1, tuple(frame_shape)))


class Toy:
    """x[l] = A z[l] + noise with orthogonal A; the guide is the posterior, moved and widened by ``off``."""

    def __init__(self, off: float, sigma: float = 0.5) -> None:
        self.model = TVAE(FRAME, 2, 1, 2, NoTopography(), likelihood=Normal(sigma), network=Affine()).double()
        self.guide = MeanFieldGuide(self.model).double()
        self.a = torch.linalg.qr(torch.randn(4, 2).double()).Q * torch.tensor([1.3, 0.7]).double()
        self.sigma = sigma
        precision = 1 + self.a.square().sum(0) / sigma**2
        self.to_mean, self.sd = (self.a / sigma**2 / precision).T, precision.rsqrt()
        with torch.no_grad():
            self.model.decoder[0].weight.copy_(self.a)
            self.model.decoder[0].bias.zero_()
            layer = self.guide.z_encoder.network[1]
            layer.weight.copy_(torch.cat([self.to_mean, torch.zeros_like(self.to_mean)]))
            layer.bias.copy_(torch.cat([off * self.sd, -precision.log() + off]))

    def mean(self, x: Tensor) -> Tensor:
        """Posterior mean of z, (B, 2, 1, 2)."""
        return (x.flatten(-3) @ self.to_mean.T).unsqueeze(-2)

    def evidence(self, x: Tensor) -> Tensor:
        """log p(x), nats per sequence, (B,)."""
        covariance = self.a @ self.a.T + self.sigma**2 * torch.eye(4).double()
        frames = torch.distributions.MultivariateNormal(torch.zeros(4).double(), covariance)
        return frames.log_prob(x.flatten(-3)).sum(-1)
