"""Likelihoods: what the decoder's output means. Parameters in, a Pyro distribution over pixels out."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from . import distributions
from .parts import Part, hold

__all__ = [
    "Bernoulli",
    "BinarizedBernoulli",
    "ContinuousBernoulli",
    "Likelihood",
    "Normal",
    "binarized",
    "of_measured",
    "of_seen",
    "scored_alike",
    "seen_pixels",
]


SLACK = 1e-5  # beyond an end: what rounding leaves of interpolated pixels


class Likelihood(Part, nn.Module):
    """A family of pixel distributions with one real parameter per pixel.

    Attributes:
        remark: a sentence to print wherever numbers of this likelihood are shown, or "".
        pixels: the least and the largest pixel that can be scored; None where the distribution's support says so.
        blank: a pixel that can be scored, to stand in frames that were not seen.
    """

    remark = ""
    pixels: tuple[float, float] | None = None
    blank = 0.0

    def forward(self, parameters: Tensor) -> TorchDistribution:
        """The elementwise distribution of pixels; parameters (..., channel, height, width), any real numbers."""
        raise NotImplementedError

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        """The member of the family whose mean is ``mean`` (any shape, values in [0, 1]), elementwise."""
        raise NotImplementedError

    @torch.no_grad()
    def interval(self, like: Tensor) -> tuple[float, float]:
        """The least and the largest pixel that can be scored, infinite where there is no bound or none is known.

        Args:
            like: sequences (B, S, channel, height, width), for the shape, precision and device of a frame.
        """
        if self.pixels is not None:
            return self.pixels
        try:
            distribution = self(torch.zeros_like(like[:1, :1]))
            support = distribution.support
            while isinstance(support, constraints.independent):
                support = support.base_constraint
            if support is constraints.boolean:
                return (0.0, 1.0)
            bounds = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
            return float(torch.as_tensor(bounds[0]).min()), float(torch.as_tensor(bounds[1]).max())
        except Exception:  # a distribution of one's own that says nothing of its support refuses nothing here
            return (-math.inf, math.inf)

    @torch.no_grad()
    def check(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Raise ValueError where a pixel of a frame that was seen lies outside :meth:`interval`.

        Args:
            x: (B, S, channel, height, width).
            observed: (S,) or (B, S) booleans, true where a frame was seen; None means all.
        """
        low, high = self.interval(x)
        if math.isinf(low) and math.isinf(high):
            return
        if observed is None:
            least, most = (float(bound) for bound in x.aminmax())
        else:  # frame by frame: to blank the pixels of the others would take a copy of x
            seen, blank = observed.to(x.device), min(max(self.blank, low), high)
            least = float(torch.where(seen, x.amin((-3, -2, -1)), blank).min())
            most = float(torch.where(seen, x.amax((-3, -2, -1)), blank).max())
        if refusal := self.refusal(least, most, (low, high)):
            raise ValueError(refusal)

    def refusal(self, least: float, most: float, interval: tuple[float, float]) -> str:
        """Why pixels from the least to the largest cannot be scored, in a sentence; "" where they can."""
        low, high = interval
        if not (least < low - SLACK or most > high + SLACK):
            return ""
        return (
            f"x holds pixels from {least:.4g} to {most:.4g}; {type(self).__name__} takes {low:g} to {high:g}: "
            f"{_remedy(least, most, (low, high))}, or choose a likelihood for such pixels, such as Normal "
            "(likelihood=normal)."
        )


def binarized(likelihood: Any, x: Tensor) -> Tensor | None:
    """The zeros and ones that a likelihood scores in the place of x; None of one that scores x itself."""
    return likelihood.binarize(x) if hasattr(likelihood, "binarize") else None


def scored_alike(one: Likelihood, other: Likelihood, x: Tensor) -> bool:
    """Whether two likelihoods score sequences in the same measure: as mass or density, of the same pixels."""
    binary = [pixels for likelihood in (one, other) if (pixels := binarized(likelihood, x)) is not None]
    if one.remark != other.remark or (len(binary) == 2 and not torch.equal(*binary)):
        return False
    masses = {_is_mass(likelihood, x) for likelihood in (one, other)} - {None}
    return len(masses) < 2


@torch.no_grad()
def _is_mass(likelihood: Likelihood, x: Tensor) -> bool | None:
    """Whether what it says of a pixel is a probability; None where its distribution does not tell."""
    try:
        return bool(likelihood(torch.zeros_like(x[:1, :1])).support.is_discrete)
    except Exception:  # a distribution of one's own may have no support
        return None


def of_measured(frames: TorchDistribution, measured: Tensor) -> TorchDistribution:
    """The same frames of which only pixels that were measured are scored: ``sum over those of log p(x_i)``.

    Args:
        frames: event shape (channel, height, width), of pixels that are independent of each other.
        measured: booleans whose last three dimensions are those of a frame, or of one channel for all.

    Raises:
        ValueError: the pixels are not independent, so that some of them cannot be left out.

    Example:
        >>> frames = Normal(1.0)(torch.zeros(5, 1, 2, 2)).to_event(3)
        >>> seen = torch.tensor([[[True, False], [False, False]]])
        >>> of_measured(frames, seen).log_prob(torch.zeros(5, 1, 2, 2))[0].mul(100).round()
        tensor(-92.)
    """
    if not isinstance(frames, torch.distributions.Independent) or frames.reinterpreted_batch_ndims != 3:
        raise ValueError(
            f"decode gives a {type(frames).__name__}, whose pixels are not independent; expected pixels that are, of "
            "which those that were not measured can be left out: give data without a mask, or another likelihood."
        )
    return frames.base_dist.mask(measured).to_event(3)


def of_seen(frames: TorchDistribution, observed: Tensor | None, measured: Tensor | None) -> TorchDistribution:
    """The same frames, (..., B, S), of which those that were observed, (B or 1, S), are scored as far as measured.

    None means all. Raises what :func:`of_measured` does.
    """
    if measured is not None:
        frames = of_measured(frames, measured)
    return frames if observed is None else frames.mask(observed)


def seen_pixels(observed: Tensor | None, measured: Tensor | None) -> Tensor | None:
    """The pixels that count, those that were measured of frames that were observed; None where all are.

    Args:
        observed: (S,) or (B, S) booleans.
        measured: (B, S, channel or 1, height, width) booleans.

    Returns:
        Booleans that broadcast against x (B, S, channel, height, width).

    Example:
        >>> seen_pixels(torch.tensor([True, False]), torch.ones(3, 2, 1, 4, 4, dtype=torch.bool)).sum().item()
        48
    """
    if observed is None:
        return measured
    frames = observed.reshape(-1, observed.shape[-1], 1, 1, 1)
    return frames if measured is None else frames & measured


def _remedy(least: float, most: float, expected: tuple[float, float]) -> str:
    if expected != (0.0, 1.0):
        return "rescale them"
    if least >= 0 and 2 < most <= 255:
        return "divide bytes by 255"
    return "map [-1, 1] to them by (x + 1) / 2" if least >= -1 - SLACK and most <= 1 + SLACK else "rescale them"


class Bernoulli(Likelihood):
    """Bernoulli on grey values in [0, 1], logits in: the paper's pseudo-likelihood.

    Args:
        max_logit: where logits are clamped, so that no pixel costs more nats than this and none beyond it is learned
            from; None leaves them as they are. 15.942385 is what the `code of the paper
            <https://github.com/akandykeller/TopographicVAE>`__ does, whose probabilities keep 2⁻²³ from 0 and 1.

    Raises:
        ValueError: a bound that is not positive.

    Example:
        >>> Bernoulli()(torch.zeros(2)).log_prob(torch.tensor([0.3, 1.0]))
        tensor([-0.6931, -0.6931])
    """

    pixels = (0.0, 1.0)
    remark = (
        "Bernoulli on grey values is a pseudo-likelihood: it is not normalised over [0, 1], so its nats compare models "
        "on the same pixels and are not densities."
    )

    def __init__(self, max_logit: float | None = None) -> None:
        super().__init__()
        if max_logit is not None and not max_logit > 0:
            raise ValueError(
                f"Bernoulli: max_logit is {max_logit!r}; expected a positive number, or None for no bound."
            )
        self.max_logit = max_logit

    def forward(self, parameters: Tensor) -> TorchDistribution:
        if self.max_logit is not None:
            parameters = parameters.clamp(-self.max_logit, self.max_logit)
        # Grey values are outside Bernoulli's support {0, 1}: validation is off here and nowhere else.
        return distributions.Bernoulli(logits=parameters, validate_args=False)

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        return self(torch.logit(mean.clamp(1e-6, 1 - 1e-6)))


class BinarizedBernoulli(Likelihood):
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
        >>> BinarizedBernoulli()(torch.zeros(1, 1, 2)).log_prob(torch.tensor([[[0.3, 1.0]]]))
        tensor([[[-0.6931, -0.6931]]])
    """

    pixels = (0.0, 1.0)
    remark = "Pixels were binarised before they were scored: nats compare models on the same binarised pixels."

    def __init__(self, threshold: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise ValueError(f"BinarizedBernoulli: threshold is {threshold!r}; expected a number from 0 to below 1.")
        self.threshold, self.seed = threshold, seed
        self._drawn: dict[tuple[object, ...], Tensor] = {}

    def thresholds(self, like: Tensor) -> Tensor:
        """Thresholds of a frame's pixels (channel, height, width), or one number, in ``like``'s dtype and device."""
        if self.seed is None:
            return like.new_full((), self.threshold)
        key = (tuple(like.shape[-3:]), like.dtype, like.device)
        if key not in self._drawn:  # on the CPU, whose draws all devices share
            with torch.inference_mode(False):
                generator = torch.Generator().manual_seed(self.seed)
                # In single precision, whatever the default is: others would be drawn in double.
                drawn = torch.rand(like.shape[-3:], generator=generator, dtype=torch.float32)
                self._drawn[key] = drawn.to(like)
        return self._drawn[key]

    def binarize(self, x: Tensor) -> Tensor:
        """What is scored in the place of x (..., channel, height, width): zeros and ones."""
        return (x > self.thresholds(x)).to(x)

    def forward(self, parameters: Tensor) -> TorchDistribution:
        return distributions.BinarizedBernoulli(parameters, self.thresholds(parameters))

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        return self(torch.logit(mean.clamp(1e-6, 1 - 1e-6)))


class ContinuousBernoulli(Likelihood):
    """The Bernoulli's normalised density on [0, 1].

    Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders",
    https://arxiv.org/abs/1907.06845.
    """

    pixels = (0.0, 1.0)

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

    pixels = (-math.inf, math.inf)
    log_scale: Tensor

    def __init__(self, scale: float = 0.1, *, learned: bool = False, activation: str = "identity") -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"Normal likelihood: scale is {scale!r}; expected a number above 0.")
        if activation not in ("identity", "sigmoid"):
            raise ValueError(f"Normal likelihood: activation is {activation!r}; expected 'identity' or 'sigmoid'.")
        self.activation = activation
        hold(self, "log_scale", torch.tensor(math.log(scale)), learned=learned)

    def forward(self, parameters: Tensor) -> TorchDistribution:
        mean = parameters.sigmoid() if self.activation == "sigmoid" else parameters
        return distributions.Normal(mean, self.log_scale.exp())

    def at_mean(self, mean: Tensor) -> TorchDistribution:
        return distributions.Normal(mean, self.log_scale.exp())
