"""Likelihoods: what the decoder's output means. Parameters in, a Pyro distribution over pixels out."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .parts import Part

__all__ = ["Bernoulli", "ContinuousBernoulli", "Likelihood", "Normal"]


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
        return dist.Bernoulli(logits=parameters, validate_args=False)

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        return self(torch.logit(mean.clamp(1e-6, 1 - 1e-6)))


class ContinuousBernoulli(Likelihood):
    """The continuous Bernoulli: the Bernoulli's normalised density on [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    def forward(self, parameters: Tensor) -> TorchDistribution:
        return _ContinuousBernoulli(logits=parameters)

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        # The mean grows with the logit; bisection inverts it.
        mean = mean.clamp(1e-3, 1 - 1e-3)
        target = mean.double()
        low, high = torch.full_like(target, -2e3), torch.full_like(target, 2e3)
        for _ in range(60):
            middle = (low + high) / 2
            below = _ContinuousBernoulli(logits=middle).mean < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return self(((low + high) / 2).to(mean))


class _ContinuousBernoulli(dist.ContinuousBernoulli):
    """The same law from its logit η alone: torch's own clamps probabilities and is no density beyond η = ±16.

    ``log p(x) = η x − A(η)`` with ``A(η) = log((exp(η) − 1) / η)``; mean and variance are A's derivatives.
    """

    def _flat(self) -> tuple[Tensor, Tensor]:
        """Where η is so near 0 that its series is exact, and η with those places moved away from 0."""
        flat = self.logits.abs() < 1e-2
        return flat, torch.where(flat, 1.0, self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        eta = self.logits
        flat, safe = self._flat()
        size = safe.abs()
        far = safe.clamp(min=0) + torch.log1p(-torch.exp(-size)) - size.log()
        return eta * value - torch.where(flat, eta / 2 + eta.square() / 24, far)

    @property
    def mean(self) -> Tensor:
        flat, safe = self._flat()
        return torch.where(flat, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)

    @property
    def variance(self) -> Tensor:
        flat, safe = self._flat()
        return torch.where(flat, 1 / 12, safe.square().reciprocal() - (2 * torch.sinh(safe / 2)).square().reciprocal())

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - torch's signature
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        flat, safe = self._flat()
        size = safe.abs()
        # The inverse distribution function for a positive logit; a negative one mirrors it.
        upper = 1 + torch.log(uniform + (1 - uniform) * torch.exp(-size)) / size
        return torch.where(flat, uniform, torch.where(safe > 0, upper, 1 - upper)).clamp(0, 1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - torch's signature
        with torch.no_grad():
            return self.rsample(sample_shape)


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
            raise ValueError(f"Normal likelihood: scale is {scale}; expected a number above 0.")
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
        return dist.Normal(mean, self.log_scale.exp())

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        return dist.Normal(mean, self.log_scale.exp())
