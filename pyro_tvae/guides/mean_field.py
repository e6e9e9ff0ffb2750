"""Mean-field guides: every latent judged by its own frame, independently of all others."""

from __future__ import annotations

from torch import Tensor

from ..posteriors import Posterior
from .encoders import shown
from .frames import FrameGuide

__all__ = ["MeanFieldGuide", "SharedTrunkGuide"]


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
        initial_z_log_variance: of z's alone. At 0 z starts as its prior, and costs nothing until it is of use.

    Raises:
        ValueError: the model has orbit energies, or others that are not one per latent.

    Example:
        >>> import torch
        >>> from pyro_tvae import TVAE
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> MeanFieldGuide(model).posterior(torch.rand(4, 6, 1, 8, 8))["u"].mean.shape
        torch.Size([4, 6, 2, 6])
    """

    by_frame = True

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, mask = shown(x, observed)
        pairs = zip(self.coordinates, self.locate(self.outputs(x), mask), strict=True)
        return {one.site: one.distribution(*parameters) for one, parameters in pairs}


class SharedTrunkGuide(MeanFieldGuide):
    """Mean-field with one encoder for z and the energies: their parameters are read off the same features.

    ``q(z_l | x_l) q(u_l | x_l)`` as :class:`MeanFieldGuide`, with half its weights, the same arguments and errors.
    """

    by_frame = True
    shared_trunk = True
