"""A normalising flow over z and the energies of a whole sequence, coupled as the model couples them."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ..distributions import Normal
from ..model import TVAE
from ..networks import Network
from ..posteriors import Posterior, joint
from .encoders import Coupling, shown
from .frames import FrameGuide

__all__ = ["FlowGuide"]

MOST_LAYERS = 1000  # each of which is built, so that a slip of the keyboard would take for ever


class FlowGuide(FrameGuide):
    """``q(z, u | x)`` of a sequence as a flow of affine couplings from the mean-field guide's Normals.

    Each layer moves u (log e, where energies are positive) given z, then z given ``log W u²`` of the values that u has
    then: z shares information over frames exactly where the topography shares energy. Couplings have triangular
    Jacobians, so log q is exact (Dinh et al. 2017, "Density estimation using Real NVP",
    https://arxiv.org/abs/1605.08803). Before it has learned anything it nearly is :class:`MeanFieldGuide`. Not
    mean-field: KL terms are sampled.

    Args:
        model: a TVAE with one energy per latent. A learned W couples as it started.
        layers: pairs of couplings.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of the log-variances.

    Raises:
        ValueError: no layers or too many, no energies, or energies that are not one per latent.

    Example:
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> FlowGuide(model, layers=2)(torch.rand(4, 6, 1, 8, 8))["u"].shape
        torch.Size([4, 6, 2, 6])
    """

    mean_field = False
    couples = True
    w: Tensor

    def __init__(
        self,
        model: TVAE,
        *,
        layers: int = 2,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, network=network, initial_log_variance=initial_log_variance, name=name)
        if not 1 <= layers <= MOST_LAYERS:
            expected = "at least 1" if layers < 1 else f"at most {MOST_LAYERS}"
            raise ValueError(f"FlowGuide: layers is {layers!r}; expected {expected}.")
        self.couplings = nn.ModuleList(Coupling(4, model.n_latents) for _ in range(2 * layers))
        self.sums, w = model.topography.fixed(model.n_frames, model.capsule_dim)
        self.register_buffer("w", w, persistent=False)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, mask = shown(x, observed)
        outputs = self.outputs(x)
        loc, scale = (torch.stack(each, -3) for each in zip(*self.locate(outputs, mask), strict=True))
        base = Normal(torch.zeros_like(loc), torch.ones_like(scale)).to_event(4)
        flow = Couplings(self, outputs, loc, scale, mask)
        return joint(dist.TransformedDistribution(base, [flow]), {one.site: one.positive for one in self.coordinates})

    def log_energy(self, value: Tensor) -> Tensor:
        """``log W u²`` (``log W e``) from u (or log e): (..., S, C, D) -> same shape."""
        e = value.exp() if self.coordinates[1].positive else value.square()
        # The small number keeps the slope of u² finite where all of a neighbourhood is near 0.
        return (self.sums.sum(self.w, e) + 1e-4).log()


class Couplings(Transform):
    """From white noise (…, S, 2, C, D) to z and u side by side: couplings of the noise, then location and scale.

    ``y_u ← y_u exp(a) + b`` with (a, b) of y_z, ``y_z ← y_z exp(a) + b`` with (a, b) of ``log W u²``, and so on;
    last ``loc + scale · y``. The logarithm of the Jacobian is the sum of all a and of ``log scale``.
    """

    domain = constraints.independent(constraints.real, 4)
    codomain = constraints.independent(constraints.real, 4)
    bijective = True

    def __init__(
        self, guide: FlowGuide, outputs: Sequence[Tensor], loc: Tensor, scale: Tensor, mask: Tensor | None
    ) -> None:
        # torch's cache gives the inverse of what was just drawn, so that scoring a draw costs no second pass.
        super().__init__(cache_size=1)
        self.guide, self.loc, self.scale, self.mask = guide, loc, scale, mask
        self.layers = [(one, one.context(outputs)) for one in guide.couplings if isinstance(one, Coupling)]
        self.last: tuple[Tensor, Tensor] | None = None

    def _move(self, i: int, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log-scale of layer i: of u given z in even layers, of z given the energies in odd ones."""
        coupling, context = self.layers[i]
        drawn = z if i % 2 == 0 else self.guide.log_energy(self.loc[..., 1, :, :] + self.scale[..., 1, :, :] * u)
        moves: tuple[Tensor, Tensor] = coupling(context, drawn, self.mask)
        return moves

    def _call(self, x: Tensor) -> Tensor:
        values = [*x.unbind(-3)]  # z and u
        total = self.scale.log().sum((-1, -2, -3, -4))
        for i in range(len(self.layers)):
            shift, log_scale = self._move(i, *values)
            moved = 1 - i % 2
            values[moved] = values[moved] * log_scale.exp() + shift
            total = total + log_scale.sum((-1, -2, -3))
        self.last = x, total
        return self.loc + self.scale * torch.stack(values, -3)

    def _inverse(self, y: Tensor) -> Tensor:
        values = [*((y - self.loc) / self.scale).unbind(-3)]
        for i in reversed(range(len(self.layers))):
            shift, log_scale = self._move(i, *values)
            moved = 1 - i % 2
            values[moved] = (values[moved] - shift) * (-log_scale).exp()
        return torch.stack(values, -3)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self.last is None or self.last[0] is not x:
            self._call(x)
        assert self.last is not None
        return self.last[1]
