"""Mixtures as priors of z: learned Normal components, or components that an encoder reads off learned pseudo-inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from .distributions import HALF_LOG_TWO_PI
from .guides.encoders import FrameEncoder
from .latents import LatentPrior, SequenceDistribution
from .model import TVAE
from .networks import Network
from .parts import ArgumentError

__all__ = ["MixtureLatent", "PseudoInputLatent"]

UNITS = ("sequence", "frame")


class Components(LatentPrior):
    """Base of mixtures of K components, whose parameters belong to the lattice of one model.

    Parameters of one lattice cannot serve another, and fresh ones would change the model that had them first.
    """

    n_components: int

    def __init__(self, n_components: int) -> None:
        super().__init__()
        if not isinstance(n_components, Integral) or isinstance(n_components, bool) or n_components < 1:
            owner = type(self).__name__
            raise ValueError(f"{owner}: n_components is {n_components!r}; expected a whole number of at least 1.")
        self.n_components = int(n_components)

    def fit_to(self, n_frames: int, n_capsules: int, n_positions: int) -> None:
        shape = (n_frames, n_capsules, n_positions)
        if getattr(self, "shape", shape) != shape:
            raise ValueError(
                f"{type(self).__name__}: it belongs to a model with latents of shape {self.shape}, this one has "
                f"{shape}; make one for each model."
            )
        super().fit_to(*shape)


class MixtureLatent(Components):
    """A mixture of K learned Normals with diagonal covariance, one component a sequence or one a frame.

    ``per="sequence"``: ``p(z) = Σ_k π_k Π_l Normal(z[l]; m_k, s_k)``, one component for what all frames show.
    ``per="frame"``: ``p(z) = Π_l Σ_k π_k Normal(z[l]; m_k, s_k)``, every frame with a component of its own. Components
    have the shape (C, D) of a frame, the same in all frames, so that the prior is unchanged when frames are permuted.

    Args:
        n_components: K.
        per: ``"sequence"`` or ``"frame"``.
        separation: distance of two components at the start, in standard deviations along the line between them, on
            average over components. It is small enough for the components to overlap, so that all of them learn, and
            above 0, so that they learn different things. One component with separation 0 is the standard Normal.

    Raises:
        ValueError: K is no whole number of at least 1, ``per`` is another word, or a negative separation.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), 6, 2, 6, latent=MixtureLatent(5))
        >>> model.prior_distributions()["z"].sample(torch.Size([4])).shape
        torch.Size([4, 6, 2, 6])
    """

    logits: nn.Parameter
    means: nn.Parameter
    log_scales: nn.Parameter
    per: str
    separation: float

    def __init__(self, n_components: int = 10, *, per: str = "sequence", separation: float = 2.0) -> None:
        super().__init__(n_components)
        if per not in UNITS:
            raise ValueError(f"MixtureLatent: per is {per!r}; expected 'sequence' or 'frame'.")
        if not isinstance(separation, Real) or not 0 <= separation < math.inf:
            raise ValueError(f"MixtureLatent: separation is {separation!r}; expected a finite number of at least 0.")
        self.per, self.separation = per, separation

    def fit_to(self, n_frames: int, n_capsules: int, n_positions: int) -> None:
        super().fit_to(n_frames, n_capsules, n_positions)
        if hasattr(self, "logits"):
            return
        block = (n_capsules, n_positions)
        n = math.prod(block) * (n_frames if self.per == "sequence" else 1)
        self.logits = nn.Parameter(torch.zeros(self.n_components))
        self.means = nn.Parameter(self.separation / math.sqrt(2 * n) * torch.randn(self.n_components, *block))
        self.log_scales = nn.Parameter(torch.zeros(self.n_components, *block))

    def distribution(self, like: Tensor) -> TorchDistribution:
        means, scales = self.means.to(like).unsqueeze(1), self.log_scales.to(like).exp().unsqueeze(1)  # (K, 1, C, D)
        return Mixture(self.logits.to(like), means, scales, self.shape, per_frame=self.per == "frame")


class PseudoInputLatent(Components):
    """A VampPrior whose encoder is its own: ``p(z) = 1/K Σ_k Π_l Normal(z[l]; m(y_k[l]), s(y_k[l]))``.

    The K pseudo-inputs y_k are learned sequences of frames; an encoder of single frames reads means and variances off
    them. In the VampPrior of Tomczak & Welling, "VAE with a VampPrior" (AISTATS 2018,
    https://arxiv.org/abs/1705.07120), the encoder is the guide's, ``p(z) = 1/K Σ_k q(z | y_k)``. Here it is not, since
    p(x) would then be another with every guide: one model could not be judged by two of them. To share it as they do,
    for a guide that has an encoder of z alone::

        guide = MeanFieldGuide(model)
        guide.z_encoder = model.latent.encoder  # the same module in both: trained once, with both gradients

    All K pseudo-inputs go through the encoder whenever the prior is asked for, which costs what K sequences cost.

    Args:
        n_components: K.
        network: recipe of the encoder; the model's own by default.
        initial_log_variance: bias of the log-variances; at 0 the prior starts close to a standard Normal.

    Raises:
        ValueError: K is no whole number of at least 1.
        ArgumentError: network is none.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), 6, 2, 6, latent=PseudoInputLatent(5))
        >>> model.latent.pseudo_inputs.shape
        torch.Size([5, 6, 1, 8, 8])
    """

    raw: nn.Parameter
    encoder: nn.Module

    def __init__(
        self, n_components: int = 10, *, network: Network | None = None, initial_log_variance: float = 0.0
    ) -> None:
        super().__init__(n_components)
        if network is not None and not isinstance(network, Network):
            raise ArgumentError(
                f"PseudoInputLatent: network is {network!r}; expected a pyro_tvae.Network, such as MLP(), or None."
            )
        self.network, self.initial_log_variance = network, initial_log_variance

    def look_at(self, model: TVAE) -> None:
        frames = (self.n_components, model.n_frames, *model.frame_shape)
        if not hasattr(self, "raw"):
            self.raw = nn.Parameter(torch.randn(frames))
            self.encoder = FrameEncoder(model, self.network, (0.0, self.initial_log_variance))
        elif self.raw.shape != frames:
            raise ValueError(
                f"PseudoInputLatent: it belongs to a model with frames of shape {tuple(self.raw.shape[2:])}, this one "
                f"has {model.frame_shape}; make one for each model."
            )

    @property
    def pseudo_inputs(self) -> Tensor:
        """The sequences y (K, S, channel, height, width): pixels between 0 and 1."""
        return self.raw.sigmoid()

    def distribution(self, like: Tensor) -> TorchDistribution:
        means, log_variances = self.encoder(self.pseudo_inputs)
        logits = like.new_zeros(self.n_components)
        return Mixture(logits, means.to(like), (0.5 * log_variances).exp().to(like), self.shape)


class Mixture(SequenceDistribution):
    """A mixture of Normals with diagonal covariance over (S, C, D), the component drawn once or for every frame.

    Args:
        logits: (K,), of the weights π.
        means: (K, S or 1, C, D).
        scales: of the same shape.
        shape: (S, C, D).
        per_frame: frames are independent, each from its own component; otherwise all are from the same one.
    """

    arg_constraints = {  # noqa: RUF012 - torch's own convention
        "logits": constraints.real_vector,
        "means": constraints.independent(constraints.real, 4),
        "scales": constraints.independent(constraints.positive, 4),
    }

    def __init__(
        self, logits: Tensor, means: Tensor, scales: Tensor, shape: Sequence[int], *, per_frame: bool = False
    ) -> None:
        self.logits, self.means, self.scales, self.per_frame = logits, means, scales, per_frame
        super().__init__(shape)

    @property
    def mean(self) -> Tensor:
        """``Σ π_k m_k``."""
        return self._everywhere(self._averaged(self.means))

    @property
    def variance(self) -> Tensor:
        """``Σ π_k (s_k² + (m_k − mean)²)``."""
        centered = self.means - self._averaged(self.means)
        return self._everywhere(self._averaged(self.scales.square() + centered.square()))

    def _averaged(self, values: Tensor) -> Tensor:
        return torch.einsum("k,k...->...", self.logits.softmax(-1), values)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            n_frames, lead = shape[-3], shape[:-3]
            drawn = (*lead, n_frames) if self.per_frame else (*lead, 1)
            draws = torch.multinomial(self.logits.softmax(-1), math.prod(drawn), replacement=True)
            component = draws.reshape(drawn).expand(*lead, n_frames)
            frame = torch.arange(n_frames, device=component.device)
            chosen = (component, frame.expand_as(component) if self.means.shape[1] > 1 else torch.zeros_like(component))
            noise = torch.randn(shape, dtype=self.means.dtype, device=self.means.device)
            return self.means[chosen] + self.scales[chosen] * noise

    def _log_prob(self, value: Tensor) -> Tensor:
        # (…, K, S, C, D): the differences are taken first, since expanded squares cancel where scales are small.
        squares = ((value.unsqueeze(-4) - self.means) / self.scales).square().sum((-1, -2))  # (…, K, S)
        size = math.prod(self.event_shape[1:]) * HALF_LOG_TWO_PI
        frames = -0.5 * squares - self.scales.log().sum((-1, -2)) - size
        weights = self.logits.log_softmax(-1)
        if self.per_frame:
            return (frames + weights.unsqueeze(-1)).logsumexp(-2).sum(-1)
        return (frames.sum(-1) + weights).logsumexp(-1)
