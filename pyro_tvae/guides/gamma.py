"""The guide that keeps Gamma energies Gamma, so that energies of which x says nothing cost nothing."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ..model import TVAE
from ..posteriors import Posterior
from ..priors import GammaEnergy
from .encoders import LOG_PARAMETERS, energies_of, shown
from .frames import FrameGuide

__all__ = ["GammaGuide"]


class GammaGuide(FrameGuide):
    """``q(z_l | x_l) q(e_l | x_l)``, Normals and Gammas: ``e ~ Gamma(α exp(b), ½ exp(b − a))``, of mean ``2α exp(a)``.

    With a = b = 0 this is the prior Gamma(α, ½), which no log-normal is (see :class:`MeanFieldGuide`). Draws are
    reparametrised implicitly (Figurnov et al. 2018, "Implicit Reparameterization Gradients",
    https://arxiv.org/abs/1805.08498), and KL terms are closed.

    Args:
        model: a TVAE with GammaEnergy. Where its α is learned, "the prior" is that of the start.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of z's log-variances, and of those of log e (about ``−log(α exp(b))``).
        initial_z_log_variance: of z's alone.

    Raises:
        ValueError: the model's prior is not GammaEnergy.

    Example:
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6, prior=GammaEnergy())
        >>> GammaGuide(model)(torch.rand(4, 6, 1, 8, 8))["e"].shape
        torch.Size([4, 6, 2, 6])
    """

    by_frame = True

    def biases(self, model: TVAE, initial_log_variance: float) -> dict[str, tuple[float, ...]]:
        if not isinstance(model.prior, GammaEnergy):
            raise ValueError(
                f"GammaGuide: the model's energies are {energies_of(model)}; expected GammaEnergy (prior=gamma), or "
                "another guide, such as MeanFieldGuide (guide=mean_field)."
            )
        start = -initial_log_variance - float(torch.tensor(float(model.prior.concentration.detach())).log())
        return {"z": (0.0, initial_log_variance), "e": (0.0, start)}

    def couple(self, model: TVAE) -> None:
        assert isinstance(model.prior, GammaEnergy)
        self.alpha = float(model.prior.concentration.detach())

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, mask = shown(x, observed)
        *of_z, a, b = self.outputs(x)
        a, b = a.clamp(*LOG_PARAMETERS), b.clamp(*LOG_PARAMETERS)
        if mask is not None:
            a, b = torch.where(mask, a, 0), torch.where(mask, b, 0)
        e = dist.Gamma(self.alpha * b.exp(), 0.5 * (b - a).exp())
        return {"z": self.z.independent(of_z, mask), "e": e}
