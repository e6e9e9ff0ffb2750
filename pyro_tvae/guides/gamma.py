"""The guide that keeps Gamma energies Gamma, so that energies of which x says nothing cost nothing."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ..model import TVAE
from ..networks import Network
from ..posteriors import Posterior
from ..priors import GammaEnergy
from .base import Guide
from .encoders import FrameEncoder, energies_of, shown, z_coordinate

__all__ = ["GammaGuide"]


class GammaGuide(Guide):
    """``q(z_l | x_l) q(e_l | x_l)``, Normals and Gammas: ``e ~ Gamma(α exp(b), ½ exp(b − a))``, of mean ``2α exp(a)``.

    With a = b = 0 this is the prior Gamma(α, ½), which no log-normal is (see :class:`MeanFieldGuide`). Draws are
    reparametrised implicitly (Figurnov et al. 2018), and KL terms are closed.

    Args:
        model: a TVAE with GammaEnergy. Where its α is learned, "the prior" is that of the start.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of z's log-variances, and of those of log e (about ``−log(α exp(b))``).

    Raises:
        ValueError: the model's prior is not GammaEnergy.

    Example:
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6, prior=GammaEnergy())
        >>> GammaGuide(model)(torch.rand(4, 6, 1, 8, 8))["e"].shape
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
        if not isinstance(model.prior, GammaEnergy):
            raise ValueError(
                f"GammaGuide: the model's energies are {energies_of(model)}; expected GammaEnergy (prior=gamma), or "
                "another guide, such as MeanFieldGuide (guide=mean_field)."
            )
        network = network if network is not None else model.network
        self.alpha = float(model.prior.concentration.detach())
        self.z, self.z_encoder = z_coordinate(model), FrameEncoder(model, network, (0.0, initial_log_variance))
        start = -initial_log_variance - float(torch.tensor(self.alpha).log())
        self.e_encoder = FrameEncoder(model, network, (0.0, start))

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, seen = shown(x, observed)
        a, b = self.e_encoder(x)
        if seen is not None:
            a, b = torch.where(seen, a, 0), torch.where(seen, b, 0)
        e = dist.Gamma(self.alpha * b.exp(), 0.5 * (b - a).exp())
        return {"z": self.z.independent(self.z_encoder(x), seen), "e": e}
