"""Models whose evidence is known: a linear Gaussian one, with its posterior as the guide, and one integral away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_tvae import TVAE, EnergyPrior, MeanFieldGuide, Network, Normal, NoTopography, Stationary

FRAME = (1, 2, 2)


class Affine(Network):
    """Decoder and encoders of one affine layer: with Normal pixels and no topography, log p(x) has a closed form."""

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(-3), nn.Linear(math.prod(frame_shape), n_outputs))

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        return nn.Sequential(nn.Linear(n_latents, math.prod(frame_shape)), nn.Unflatten(-1, tuple(frame_shape)))


class OneEnergy:
    """Two frames, one latent each, one energy for both: log p(x) is a one-dimensional integral.

    Given v ~ χ² with 2 degrees of freedom, frames are independent Normals of mean a μ / √v, variance a² / v + σ².

    Args:
        prior: of the energy; Gaussian u by default.
    """

    a, mu, sigma, eps = 0.8, 1.0, 0.3, 1e-6

    def __init__(self, prior: EnergyPrior | None = None) -> None:
        topography, likelihood = Stationary((2, 1)), Normal(self.sigma)
        parts: dict[str, Any] = {"prior": prior, "likelihood": likelihood, "network": Affine()}
        self.model = TVAE((1, 1, 1), 2, 1, 1, topography, mu=self.mu, eps=self.eps, **parts).double()
        with torch.no_grad():
            self.model.decoder[0].weight.fill_(self.a)
            self.model.decoder[0].bias.zero_()

    def log_p(self, x: Tensor, frames: Sequence[int] = (0, 1)) -> Tensor:
        """(N,), of these frames of sequences x, N times two numbers."""
        w = torch.linspace(-14, 5, 40_001, dtype=torch.float64)  # log v
        v = w.exp() + self.eps
        distribution = dist.Normal(self.a * self.mu / v.sqrt(), (self.a**2 / v + self.sigma**2).sqrt())
        of_frames = distribution.log_prob(x.reshape(-1, 2, 1)[:, list(frames)]).sum(1)
        return (math.log(0.5) - w.exp() / 2 + w + of_frames).logsumexp(-1) + math.log(float(w[1] - w[0]))


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


class Unsampled(dist.Normal):
    """Scores pixels, and draws none."""

    def sample(self, *_: object) -> Any:
        raise NotImplementedError

    rsample = sample
