"""Distributions that pyro-ppl has, evaluated in fewer passes over memory or where its own lose their density.

Log-probabilities of many particles are bound by memory, not by arithmetic: each pass that is saved is time saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .products import is_plain

__all__ = [
    "Bernoulli",
    "BinarizedBernoulli",
    "ContinuousBernoulli",
    "LowRankMultivariateNormal",
    "Normal",
    "cholesky",
    "scale_of_precision",
]

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
        if is_plain(self.logits, value):
            log_prob: Tensor = _LogProb.apply(*torch.broadcast_tensors(self.logits, value))
            return log_prob
        # Above the threshold softplus is the identity; torch's own of 20 would show in double precision.
        return (self.logits * value).sub_(nn.functional.softplus(self.logits, threshold=40))


class _LogProb(torch.autograd.Function):
    """``η x − max(η, 0) − log(1 + exp(−|η|))``, right to the rounding of 1: a third of the time of torch's softplus.

    Its gradient is one expression, ``x − σ(η)``, where autograd would add up that of two terms.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(logits, value)
        softplus = logits.abs().neg_().exp_().add_(1).log_().add_(logits.clamp(min=0))
        return torch.addcmul(softplus.neg_(), logits, value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, value = ctx.saved_tensors
        for_logits, for_value = ctx.needs_input_grad
        return (
            (value - logits.sigmoid()) * gradient if for_logits else None,
            gradient * logits if for_value else None,
        )


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

    ``log p(x) = η x − A(η)`` with ``A(η) = log((exp(η) − 1) / η)``; mean and variance are A's derivatives, and entropy
    and divergences follow from A and the mean.
    """

    def _flat(self) -> tuple[Tensor, Tensor]:
        """Where η is so near 0 that its series is exact, and η with those places moved away from 0."""
        flat = self.logits.abs() < 1e-2
        return flat, torch.where(flat, 1.0, self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - self.log_normalizer

    @property
    def log_normalizer(self) -> Tensor:
        """A(η)."""
        flat, safe = self._flat()
        size = safe.abs()
        far = safe.clamp(min=0) + torch.log1p(-torch.exp(-size)) - size.log()
        return torch.where(flat, self.logits / 2 + self.logits.square() / 24, far)

    def entropy(self) -> Tensor:
        return self.log_normalizer - self.logits * self.mean

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value, flat = value.clamp(0, 1), self.logits == 0
        # Of a positive logit both exponents are taken below 0; a negative one mirrors it.
        inside = torch.where(self.logits > 0, value, 1 - value)
        size = torch.where(flat, 1.0, self.logits.abs())
        upper = torch.exp(size * (inside - 1)) * torch.expm1(-size * inside) / torch.expm1(-size)
        return torch.where(flat, value, torch.where(self.logits > 0, upper, 1 - upper))

    @property
    def mean(self) -> Tensor:
        flat, safe = self._flat()
        return torch.where(flat, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)

    @property
    def variance(self) -> Tensor:
        # A difference of numbers near 1 / η²: the series goes further than the others.
        flat = self.logits.abs() < 0.3
        square = torch.where(flat, 1.0, self.logits).square()
        far = square.reciprocal() - (2 * torch.sinh(square.sqrt() / 2)).square().reciprocal()
        square = self.logits.square()
        return torch.where(flat, 1 / 12 - square / 240 + square.square() / 6048, far)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - torch's signature
        shape = self._extended_shape(sample_shape)
        return self._inverse(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device), mirrored=False)

    def icdf(self, value: Tensor) -> Tensor:
        return self._inverse(value, mirrored=True)

    def _inverse(self, value: Tensor, mirrored: bool) -> Tensor:
        """The inverse distribution function at ``value``; unless mirrored, at 1 − value where the logit is negative."""
        flat, safe = self._flat()
        size = safe.abs()
        share = torch.where(safe > 0, value, 1 - value) if mirrored else value
        upper = 1 + torch.log(share + (1 - share) * torch.exp(-size)) / size
        return torch.where(flat, value, torch.where(safe > 0, upper, 1 - upper)).clamp(0, 1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 - torch's signature
        with torch.no_grad():
            return self.rsample(sample_shape)


@torch.distributions.register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _kl_continuous_bernoullis(q: ContinuousBernoulli, p: ContinuousBernoulli) -> Tensor:
    return (q.logits - p.logits) * q.mean - q.log_normalizer + p.log_normalizer


class LowRankMultivariateNormal(dist.LowRankMultivariateNormal):
    """The Normal of covariance ``F Fᵀ + diag(d)``, built without asking the device whether ``1 + Fᵀ F / d`` has a root.

    Args:
        loc: (..., n).
        cov_factor: F, (..., n, r).
        cov_diag: d, (..., n).
    """

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(loc.shape, cov_factor.shape[:-1], cov_diag.shape)
        self.loc, self.cov_diag = loc.expand(shape), cov_diag.expand(shape)
        self.cov_factor = cov_factor.expand(*shape, -1)
        self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag = cov_factor, cov_diag
        capacitance = (cov_factor.mT / cov_diag.unsqueeze(-2)) @ cov_factor
        self._capacitance_tril = cholesky(
            capacitance + torch.eye(cov_factor.shape[-1], dtype=loc.dtype, device=loc.device)
        )
        torch.distributions.Distribution.__init__(self, shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(
        self, batch_shape: Sequence[int], _instance: LowRankMultivariateNormal | None = None
    ) -> LowRankMultivariateNormal:
        instance = self._get_checked_instance(LowRankMultivariateNormal, _instance)
        expanded: LowRankMultivariateNormal = super().expand(torch.Size(batch_shape), instance)
        return expanded


def cholesky(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor (..., n, n); NaN where there is none: whether there is stays on the device."""
    root, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0)[..., None, None], root, math.nan)


def scale_of_precision(precision: Tensor) -> Tensor:
    """The lower factor L (..., n, n) with ``L Lᵀ = precision⁻¹``; NaN where there is none.

    Example:
        >>> scale_of_precision(torch.tensor([[4.0]]))
        tensor([[0.5000]])
    """
    inverse = cholesky(precision.flip(-2, -1)).flip(-2, -1).mT
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(inverse, eye, upper=False)
