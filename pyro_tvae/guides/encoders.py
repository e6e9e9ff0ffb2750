"""Encoders: from frames, observed or not, to the parameters of a guide's distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..distributions import Normal
from ..model import TVAE, frame_mask
from ..networks import Network, last_linear

__all__ = [
    "LOG_PARAMETERS",
    "MOST_PRECISE",
    "Coordinate",
    "Coupling",
    "FrameEncoder",
    "coordinates",
    "encoder",
    "shown",
    "z_coordinate",
]

# Of logarithms: of a vote's precision, of variances, of a Gamma's parameters. Beyond these one sequence in thousands
# would end a training in no number.
MOST_PRECISE, LOG_VARIANCES, LOG_PARAMETERS = 15.0, (-60.0, 30.0), (-20.0, 20.0)


def shown(x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x with unseen frames blank, whatever they held, and the mask of the others, (B or 1, S, 1, 1)."""
    if observed is None:
        return x, None
    mask = frame_mask(observed, x.shape[-5], x.shape[-4]).to(x.device)[..., None, None]
    return torch.where(mask.unsqueeze(-1), x, 0), mask


def encoder(model: TVAE, network: Network | None, n_outputs: int) -> nn.Module:
    """A network from one frame to so many numbers, by the model's own recipe where none is given."""
    recipe = model.network if network is None else network
    return recipe.encoder(model.frame_shape, model.n_latents, n_outputs)


class FrameEncoder(nn.Module):
    """One frame to k real numbers per latent: (..., channel, height, width) -> k tensors (..., C, D).

    Args:
        model: whose frames and latents.
        network: recipe of the network; the model's own by default.
        biases: what is added to each of the k outputs before anything was learned.
    """

    def __init__(self, model: TVAE, network: Network | None, biases: Sequence[float]) -> None:
        super().__init__()
        self.shape = (len(biases), model.n_capsules, model.capsule_dim)
        self.network = encoder(model, network, len(biases) * model.n_latents)
        with torch.no_grad():
            last_linear(self.network).bias.add_(torch.tensor(biases).repeat_interleave(model.n_latents))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.network(x).unflatten(-1, self.shape).unbind(-3)


class Coupling(nn.Module):
    """How draws of some latents of a frame shift and scale the others': one hidden layer, small at first.

    The frame's features enter by :meth:`context`, computed once however many draws there are.

    Args:
        n_features: numbers per latent that the encoders said of a frame.
        n: latents per frame, C·D.
    """

    def __init__(self, n_features: int, n: int) -> None:
        super().__init__()
        self.features, self.drawn = nn.Linear(n_features * n, 2 * n), nn.Linear(n, 2 * n, bias=False)
        self.last = nn.Linear(2 * n, 2 * n)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            self.last.bias.zero_()

    def context(self, outputs: Sequence[Tensor]) -> Tensor:
        """(B, S, hidden) from an encoder's outputs, each (B, S, C, D)."""
        hidden: Tensor = self.features(torch.cat([output.flatten(-2) for output in outputs], -1))
        return hidden

    def forward(self, context: Tensor, drawn: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Shifts and log-scales, within ±2, of latents (…, S, C, D) given draws of that shape; 0 in unseen frames."""
        hidden = (context + self.drawn(drawn.flatten(-2))).relu()
        shift, log_scale = self.last(hidden).unflatten(-1, (2, *drawn.shape[-2:])).unbind(-3)
        log_scale = 2 * (log_scale / 2).tanh()
        return (shift, log_scale) if mask is None else (shift * mask, log_scale * mask)


@dataclass(frozen=True)
class Coordinate:
    """A site of shape (S, C, D) as guides see it: real as it is, positive by its logarithm.

    Attributes:
        site: its name.
        positive: look at the logarithm.
        loc: mean of the Normal that stands for the prior; what an undecided encoder says, and unseen frames.
        scale: its standard deviation, for unseen frames.
    """

    site: str
    positive: bool
    loc: float
    scale: float

    def locate(self, outputs: Sequence[Tensor], mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Location and scale of the coordinate from an encoder's two outputs, those of the prior in unseen frames."""
        shift, log_variance = outputs
        loc, scale = shift + self.loc if self.loc else shift, (0.5 * log_variance.clamp(*LOG_VARIANCES)).exp()
        if mask is not None:  # a frame that was not seen tells nothing: its posterior is the prior
            loc, scale = torch.where(mask, loc, self.loc), torch.where(mask, scale, self.scale)
        return loc, scale

    def distribution(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """Normal, or log-normal of a positive site."""
        return dist.LogNormal(loc, scale) if self.positive else Normal(loc, scale)

    def independent(self, outputs: Sequence[Tensor], mask: Tensor | None) -> TorchDistribution:
        """The distribution from an encoder's two outputs."""
        return self.distribution(*self.locate(outputs, mask))


def energies_of(model: TVAE) -> str:
    """What a model's energies are, for a sentence."""
    return ", ".join(type(prior).__name__ for prior in model.energies.values()) or "none, as it has no topography"


def z_coordinate(model: TVAE) -> Coordinate:
    """z's coordinate."""
    return Coordinate("z", False, 0.0, model.latent.spread)


def coordinates(model: TVAE, owner: str) -> tuple[Coordinate, ...]:
    """z's coordinate, and where there is a topography that of the energies.

    Raises:
        ValueError: the energies have not one value per latent, as those of orbits; ``owner`` is who asks.
    """
    energies = []
    for site, prior in model.energies.items():
        shape = tuple(prior.distribution(model.like.detach()).event_shape)
        if shape != model.latent_shape:
            raise ValueError(
                f"{owner}: the model's energies are {type(prior).__name__} of shape {shape}; it is made for one energy "
                f"per latent, {model.latent_shape}, such as GaussianEnergy or GammaEnergy (use OrbitGuide for "
                "OrbitEnergy)."
            )
        energies.append(Coordinate(site, prior.positive, *prior.unseen()))
    return (z_coordinate(model), *energies)
