"""Likelihoods: what the decoder's output means. Parameters in, a Pyro distribution over pixels out."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from . import distributions
from .parts import Part

__all__ = ["Bernoulli", "BinarisedBernoulli", "ContinuousBernoulli", "Likelihood", "Normal"]


class Likelihood(Part, nn.Module):
    """A family of pixel distributions with one real parameter per pixel.

    Attributes:
        remark: a sentence to print wherever numbers of this likelihood are shown, or "".
    """

    remark = ""

    def forward(self, parameters: Tensor) -> TorchDistribution:
        """The elementwise distribution of pixels; parameters (..., channel, height, width), any real numbers."""
        raise NotImplementedError

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        """The member of the family whose mean is ``mean`` (any shape, values in [0, 1]), elementwise."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Bernoulli on grey values in [0, 1], logits in: the paper's pseudo-likelihood.

    Example:
        >>> Bernoulli()(torch.zeros(2)).log_prob(torch.tensor([0.3, 1.0]))
        tensor([-0.6931, -0.6931])
    """

    remark = (
        "Bernoulli on grey values is a pseudo-likelihood: it is not normalised over [0, 1], so its nats compare models "
        "on the same pixels and are not densities."
    )

    def forward(self, parameters: Tensor) -> TorchDistribution:
        # Grey values are outside Bernoulli's support {0, 1}: validation is off here and nowhere else.
        return distributions.Bernoulli(logits=parameters, validate_args=False)

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        return self(torch.logit(mean.clamp(1e-6, 1 - 1e-6)))


class BinarisedBernoulli(Likelihood):
    """Bernoulli on binarised pixels, a true likelihood: ``log p(b(x))`` where b sets a pixel to 1 above a threshold.

    With a seed the thresholds are uniform, one for each pixel of a frame and the same for all frames, sequences and
    draws: stochastic binarisation (a pixel is 1 with the probability that its grey value says, over seeds), done once.
    Fresh noise at every evaluation would be no likelihood: importance weights of one sequence would be of many.

    Args:
        threshold: where pixels turn to 1, without a seed.
        seed: of the thresholds; the same seed binarises the same frames alike, on any device.

    Raises:
        ValueError: a threshold outside [0, 1).

    Example:
        >>> BinarisedBernoulli()(torch.zeros(1, 1, 2)).log_prob(torch.tensor([[[0.3, 1.0]]]))
        tensor([[[-0.6931, -0.6931]]])
    """

    remark = "Pixels were binarised before they were scored: nats compare models on the same binarised pixels."

    def __init__(self, threshold: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise ValueError(f"BinarisedBernoulli: threshold is {threshold!r}; expected a number from 0 to below 1.")
        self.threshold, self.seed = threshold, seed

    def thresholds(self, like: Tensor) -> Tensor:
        """Thresholds of a frame's pixels (channel, height, width), or one number, in ``like``'s dtype and device."""
        if self.seed is None:
            return like.new_tensor(self.threshold)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(like.shape[-3:], generator=generator).to(like)

    def binarise(self, x: Tensor) -> Tensor:
        """What is scored in the place of x (..., channel, height, width): zeros and ones."""
        return (x > self.thresholds(x)).to(x)

    def forward(self, parameters: Tensor) -> TorchDistribution:
        return distributions.BinarisedBernoulli(parameters, self.thresholds(parameters))

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        return self(torch.logit(mean.clamp(1e-6, 1 - 1e-6)))


class ContinuousBernoulli(Likelihood):
    """The continuous Bernoulli: the Bernoulli's normalised density on [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    def forward(self, parameters: Tensor) -> TorchDistribution:
        return distributions.ContinuousBernoulli(logits=parameters)

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        # The mean grows with the logit; bisection inverts it.
        mean = mean.clamp(1e-3, 1 - 1e-3)
        target = mean.double()
        low, high = torch.full_like(target, -2e3), torch.full_like(target, 2e3)
        for _ in range(60):
            middle = (low + high) / 2
            below = distributions.ContinuousBernoulli(logits=middle).mean < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return self(((low + high) / 2).to(mean))


class Normal(Likelihood):
    """Normal pixels with one scale for all of them.

    Args:
        scale: the standard deviation, or where it starts when it is learned.
        learned: make the scale a parameter.
        activation: ``"identity"`` or ``"sigmoid"``, from the decoder's output to the mean.
    """

    def __init__(self, scale: float = 0.1, *, learned: bool = False, activation: str = "identity") -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"Normal likelihood: scale is {scale!r}; expected a number above 0.")
        if activation not in ("identity", "sigmoid"):
            raise ValueError(f"Normal likelihood: activation is {activation!r}; expected 'identity' or 'sigmoid'.")
        self.activation = activation
        log_scale = torch.tensor(math.log(scale))
        self.log_scale: Tensor
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, parameters: Tensor) -> TorchDistribution:
        mean = parameters.sigmoid() if self.activation == "sigmoid" else parameters
        return distributions.Normal(mean, self.log_scale.exp())

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        return distributions.Normal(mean, self.log_scale.exp())
