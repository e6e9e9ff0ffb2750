"""Distributions that pyro-ppl has, evaluated in fewer passes over memory or where its own lose their density.

Log-probabilities of many particles are bound by memory, not by arithmetic: each pass that is saved is time saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["Bernoulli", "BinarizedBernoulli", "ContinuousBernoulli", "Normal"]

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Normal(dist.Normal):
    """The Normal with ``log p(x) = −½ ((x − loc) / scale)² − (log scale + ½ log 2π)``: three passes for six.

    Expanded, it goes on computing with the parameters it was built from.
    """

    def __init__(self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None) -> None:
        super().__init__(loc, scale, validate_args=validate_args)
        self._parameters = self.loc, self.scale

    def expand(self, batch_shape: Sequence[int], _instance: Normal | None = None) -> Normal:
        new = super().expand(torch.Size(batch_shape), self._get_checked_instance(Normal, _instance))
        new._parameters = self._parameters
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        loc, scale = self._parameters
        standardized = (value - loc).div_(scale)
        log_prob = torch.addcmul(-HALF_LOG_TWO_PI - scale.log(), standardized, standardized, value=-0.5)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


def standard_normal(like: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
    """``Normal(0, 1)`` iid over a shape, all of it event dimensions, in ``like``'s dtype and device."""
    return Normal(like.new_zeros(()), like.new_ones(())).expand(shape).to_event(len(shape))


@torch.distributions.register_kl(Normal, Normal)
def _kl_normal_normal(q: Normal, p: Normal) -> Tensor:
    (q_loc, q_scale), (p_loc, p_scale) = q._parameters, p._parameters
    ratio, shift = q_scale / p_scale, (q_loc - p_loc) / p_scale
    kl = torch.addcmul(torch.addcmul(-0.5 - ratio.log(), ratio, ratio, value=0.5), shift, shift, value=0.5)
    return kl.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


class Bernoulli(dist.Bernoulli):
    """The Bernoulli of logits η with ``log p(x) = η x − log(1 + exp(η))``: half the passes of torch's own."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # Above the threshold softplus is the identity; torch's own of 20 would show in double precision.
        return (self.logits * value).sub_(nn.functional.softplus(self.logits, threshold=40))


class BinarizedBernoulli(Bernoulli):
    """The Bernoulli of logits η that scores grey values as the zeros and ones on either side of a threshold."""

    def __init__(self, logits: Tensor, threshold: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(logits=logits, validate_args=validate_args)
        self.threshold = threshold

    def expand(self, batch_shape: Sequence[int], _instance: BinarizedBernoulli | None = None) -> BinarizedBernoulli:
        return BinarizedBernoulli(self.logits.expand(torch.Size(batch_shape)), self.threshold, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob((value > self.threshold).to(value))


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """The same distribution from its logit η alone: torch's own clamps probabilities and is no density beyond η = ±16.

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
