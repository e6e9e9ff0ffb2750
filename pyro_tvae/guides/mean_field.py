"""Mean-field guides: every latent judged by its own frame, independently of all others."""

from __future__ import annotations

from torch import Tensor

from ..model import TVAE
from ..networks import Network
from ..posteriors import Posterior, SiteDistribution
from .base import Guide
from .encoders import FrameEncoder, energy_coordinate, shown, z_coordinate

__all__ = ["MeanFieldGuide", "SharedTrunkGuide"]


class FrameGuide(Guide):
    """Base of guides that judge every latent by its own frame: subclasses define :meth:`outputs`."""

    def __init__(self, model: TVAE, *, name: str | None = None) -> None:
        super().__init__(model, name=name)
        self.z, self.energy = z_coordinate(model), energy_coordinate(model, type(self).__name__)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Two numbers per latent for z and two more for the energies, each (B, S, C, D), frame by frame."""
        raise NotImplementedError

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, seen = shown(x, observed)
        outputs = self.outputs(x)
        q: dict[str, SiteDistribution] = {"z": self.z.independent(outputs[:2], seen)}
        if self.energy is not None:
            q[self.energy.site] = self.energy.independent(outputs[2:], seen)
        return q


class MeanFieldGuide(FrameGuide):
    """The paper's guide: ``q(z_l | x_l) q(u_l | x_l)``, independent Normals from two encoders of single frames.

    Positive energies, as those of GammaEnergy, get log-normals instead. The nearest one to Gamma(½, ½) is 0.15 nats
    away from it, which is paid for every energy that x says nothing about; u, whose prior is Normal, pays nothing, and
    neither does GammaGuide.

    Args:
        model: the TVAE it is for, with one energy per latent or without topography.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of the log-variances. The paper starts at 0 and, measured at its MNIST size, stays on
            a plateau where the posterior is the prior; small initial variances get off it.

    Raises:
        ValueError: the model has orbit energies, or others that are not one per latent.

    Example:
        >>> import torch
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> MeanFieldGuide(model).posterior(torch.rand(4, 6, 1, 8, 8))["u"].mean.shape
        torch.Size([4, 6, 2, 6])
    """

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name=name)
        network, biases = network if network is not None else model.network, (0.0, initial_log_variance)
        self.z_encoder = FrameEncoder(model, network, biases)
        self.u_encoder = None if self.energy is None else FrameEncoder(model, network, biases)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*self.z_encoder(x), *(self.u_encoder(x) if self.u_encoder is not None else ()))


class SharedTrunkGuide(FrameGuide):
    """Mean-field with one encoder for z and the energies: their parameters are read off the same features.

    ``q(z_l | x_l) q(u_l | x_l)`` as :class:`MeanFieldGuide`, with half its weights.

    Args:
        model: the TVAE it is for, with one energy per latent or without topography.
        network: recipe of the encoder; the model's own by default.
        initial_log_variance: bias of the log-variances.

    Raises:
        ValueError: the model has orbit energies, or others that are not one per latent.
    """

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name=name)
        biases = (0.0, initial_log_variance) * (1 if self.energy is None else 2)
        self.encoder = FrameEncoder(model, network if network is not None else model.network, biases)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.encoder(x)
        return outputs
