"""Priors of z, the latent that the energies scale: standard Normal as in the paper, heavy-tailed, or AR(1) in time."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from .distributions import Normal, standard_normal
from .parts import Part, hold

__all__ = ["AutoregressiveLatent", "LaplaceLatent", "LatentPrior", "NormalLatent", "StudentLatent"]


class LatentPrior(Part, nn.Module):
    """The prior of z over one sequence; subclasses define :meth:`distribution`.

    Attributes:
        spread: scale of the Normal that guides put in its place where a frame was not seen.
    """

    spread = 1.0

    def fit_to(self, n_frames: int, n_capsules: int, n_positions: int) -> None:
        """Called once by the model with the sizes (S, C, D) of its lattice."""
        self.shape = (n_frames, n_capsules, n_positions)

    def look_at(self, model: Any) -> None:
        """Called once at the end of a TVAE's constructor, for priors that need more of it; they must not keep it."""

    def distribution(self, like: Tensor) -> TorchDistribution:
        """The prior of one sequence's z, event shape (S, C, D), in ``like``'s dtype and device."""
        raise NotImplementedError


class NormalLatent(LatentPrior):
    """The paper's: ``z ~ Normal(0, 1)``, iid over (S, C, D)."""

    def distribution(self, like: Tensor) -> TorchDistribution:
        return standard_normal(like, self.shape)


class LaplaceLatent(LatentPrior):
    """``z ~ Laplace(0, scale)``, iid over (S, C, D): sparse codes.

    Args:
        scale: of the distribution; the default has unit variance, as the Normal has.
    """

    def __init__(self, scale: float = math.sqrt(0.5)) -> None:
        super().__init__()
        self.scale = _positive("LaplaceLatent", "scale", scale)
        self.spread = scale * math.sqrt(2)

    def distribution(self, like: Tensor) -> TorchDistribution:
        return dist.Laplace(like.new_zeros(()), like.new_full((), self.scale)).expand(self.shape).to_event(3)


class StudentLatent(LatentPrior):
    """``z ~ StudentT(df)`` with scale 1, iid over (S, C, D): heavy tails of its own, beside those of the energies.

    Args:
        df: degrees of freedom; Normal for df → ∞, no variance for df <= 2.
    """

    def __init__(self, df: float = 5.0) -> None:
        super().__init__()
        self.df = _positive("StudentLatent", "df", df)
        self._made: dict[tuple[torch.dtype, torch.device], TorchDistribution] = {}

    def distribution(self, like: Tensor) -> TorchDistribution:
        key = (like.dtype, like.device)
        if key not in self._made:  # once: the library copies numbers to the device
            with torch.inference_mode(False):
                zero, one = like.new_zeros(()), like.new_ones(())
                self._made[key] = dist.StudentT(like.new_full((), self.df), zero, one)
        return self._made[key].expand(torch.Size(self.shape)).to_event(3)


class AutoregressiveLatent(LatentPrior):
    """AR(1) over frames: ``z[0] ~ Normal(0, 1)``, ``z[l] = φ z[l − 1] + sqrt(1 − φ²) Normal(0, 1)``; unit variance.

    Args:
        coefficient: φ between −1 and 1, or where it starts when it is learned.
        learned: make φ a parameter, one for all latents.
    """

    raw: Tensor

    def __init__(self, coefficient: float = 0.5, *, learned: bool = True) -> None:
        super().__init__()
        if not -1 < coefficient < 1:
            raise ValueError(
                f"AutoregressiveLatent: coefficient is {coefficient!r}; expected a number between −1 and 1: no other "
                "process of this kind is stationary."
            )
        hold(self, "raw", torch.tensor(math.atanh(coefficient)), learned=learned)

    def distribution(self, like: Tensor) -> TorchDistribution:
        return Autoregressive(self.raw.to(like).tanh(), self.shape)


class SequenceDistribution(TorchDistribution):
    """Base of distributions over (S, C, D) that are the same for the whole batch.

    Args:
        shape: (S, C, D).
    """

    support = constraints.independent(constraints.real, 3)

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(torch.Size(), torch.Size(shape))

    def expand(self, batch_shape: Sequence[int], _instance: SequenceDistribution | None = None) -> SequenceDistribution:
        twin = copy.copy(self)
        TorchDistribution.__init__(twin, torch.Size(batch_shape), self.event_shape, validate_args=False)
        return twin

    def _everywhere(self, value: Tensor) -> Tensor:
        return value.expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        total = self._log_prob(value)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def _log_prob(self, value: Tensor) -> Tensor:
        """Of values (…, S, C, D), (…)."""
        raise NotImplementedError


class Autoregressive(SequenceDistribution):
    """Stationary AR(1) process over the first of three event dimensions, iid over the others, unit variance.

    Args:
        coefficient: φ, a scalar tensor between −1 and 1.
        shape: (S, C, D).
    """

    arg_constraints = {"coefficient": constraints.interval(-1, 1)}  # noqa: RUF012 - torch's own convention
    has_rsample = True

    def __init__(self, coefficient: Tensor, shape: Sequence[int]) -> None:
        self.coefficient = coefficient
        super().__init__(shape)

    @property
    def mean(self) -> Tensor:
        return self._everywhere(self.coefficient.new_zeros(()))

    @property
    def variance(self) -> Tensor:
        return self._everywhere(self.coefficient.new_ones(()))

    def _root(self) -> Tensor:
        """Lower triangular (S, S) that turns white noise into the process: all frames in one product."""
        phi, frames = self.coefficient, torch.arange(self.event_shape[0], device=self.coefficient.device)
        lag = frames.unsqueeze(1) - frames
        size = torch.where(frames == 0, 1.0, (1 - phi.square()).sqrt())
        return torch.where(lag >= 0, phi.pow(lag.clamp(min=0)) * size, 0)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        phi = self.coefficient
        noise = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=phi.dtype, device=phi.device)
        return (self._root() @ noise.flatten(-2)).unflatten(-1, self.event_shape[1:])

    def _log_prob(self, value: Tensor) -> Tensor:
        phi = self.coefficient
        first, later = value[..., :1, :, :], value[..., 1:, :, :] - phi * value[..., :-1, :, :]
        total = Normal(torch.zeros_like(phi), torch.ones_like(phi)).log_prob(first).sum((-1, -2, -3))
        return total + Normal(torch.zeros_like(phi), (1 - phi.square()).sqrt()).log_prob(later).sum((-1, -2, -3))


@torch.distributions.register_kl(torch.distributions.Independent, Autoregressive)
def _kl_normal_autoregressive(q: torch.distributions.Independent, p: Autoregressive) -> Tensor:
    """For independent Normals q: ``E_q[(z[l] − φ z[l−1])²] = (m[l] − φ m[l−1])² + s[l]² + φ² s[l−1]²``, in nats."""
    if not isinstance(q.base_dist, torch.distributions.Normal) or q.reinterpreted_batch_ndims != 3:
        raise NotImplementedError
    phi, mean, variance = p.coefficient, q.base_dist.mean, q.base_dist.variance
    rest = 1 - phi.square()
    noise = variance[..., 1:, :, :] + phi.square() * variance[..., :-1, :, :]
    noise = noise + (mean[..., 1:, :, :] - phi * mean[..., :-1, :, :]).square()
    first = (mean[..., :1, :, :].square() + variance[..., :1, :, :]).sum((-1, -2, -3))
    cross = first + (noise / rest + rest.log()).sum((-1, -2, -3))
    return 0.5 * (cross - (1 + variance.log()).sum((-1, -2, -3)))


def _positive(owner: str, name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{owner}: {name} is {value!r}; expected a number above 0.")
    return value
