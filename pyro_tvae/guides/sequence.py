"""The guide that sees the whole sequence: evidence flows back through the topography to the latents it is about."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model import TVAE
from ..networks import Network
from ..posteriors import Posterior
from .base import Guide
from .encoders import MOST_PRECISE, FrameEncoder, coordinates, shown

__all__ = ["SequenceGuide"]


class SequenceGuide(Guide):
    """``q(z_l | x) q(u_l | x)``, mean-field, from a pool of all frames' evidence along the roll.

    Every frame l says of each position p two values a[l, p] and a precision λ[l, p], about v[l, p]. Since
    ``v = W u²``, what is said of v[l, p] is evidence on every u[m, q] that W sums into it, so the transpose pools it:
    ``g[m, q] = Σ W[(l, p), (m, q)] λ[l, p] a[l, p] / Σ W[(l, p), (m, q)] λ[l, p]``. With a capsule roll that is along
    the roll; with a stationary topography along no roll; without one, or frame by frame, other frames add nothing.
    One network, the same for all frames, reads a frame's own values and the pool and gives the parameters of its q.

    Where frames wrap, W commutes with a shift of the sequence, and so does all of this: shifting the frames by one
    shifts the posterior by one frame, to rounding. Unseen frames have λ = 0, and are inferred from the others.

    Args:
        model: the TVAE it is for, with one energy per latent or without topography. A learned W pools as it started.
        network: recipe of the encoder of single frames; the model's own by default.
        initial_log_variance: bias of the log-variances.

    Raises:
        ValueError: the model has orbit energies (OrbitGuide pools those), or others that are not one per latent.

    Example:
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> x = torch.rand(4, 6, 1, 8, 8)
        >>> guide = SequenceGuide(model)
        >>> one, two = guide.posterior(x)["u"].mean, guide.posterior(x.roll(1, dims=1))["u"].mean
        >>> bool((one.roll(1, dims=1) - two).abs().max() < 1e-5)
        True
    """

    w: Tensor

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name=name)
        self.coordinates = coordinates(model, type(self).__name__)
        n, k = model.n_latents, 2 * len(self.coordinates)
        self.encoder = FrameEncoder(model, network, (0.0,) * 3)
        # Three values of the frame's own, three of the pool, and whether the frame was seen.
        self.head = nn.Sequential(nn.Linear(6 * n + 1, 2 * n), nn.ReLU(), nn.Linear(2 * n, k * n))
        with torch.no_grad():
            last = self.head[-1]
            assert isinstance(last, nn.Linear)
            last.bias.view(k, n)[1::2] += initial_log_variance
        self.transposed, w = model.topography.fixed(model.n_frames, model.capsule_dim, transposed=True)
        self.register_buffer("w", w, persistent=False)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, observed_frames = shown(x, observed)
        first, second, log_precision = self.encoder(x)
        n = first.shape[0]
        mask = torch.ones_like(first[..., :1, :1])
        if observed_frames is not None:
            mask = observed_frames.to(first).expand(n, -1, -1, -1)
        vote = log_precision.clamp(max=MOST_PRECISE).exp() * mask
        evidence = self.transposed.sum(self.w, torch.stack([vote, vote * first, vote * second]))
        total = evidence[0]
        own = [first * mask, second * mask, vote]
        pool = [total.log1p(), *(evidence[1:] / total.clamp(min=1e-6))]
        features = torch.cat([*(value.flatten(-2) for value in (*own, *pool)), mask.flatten(-2)], -1)
        outputs = self.head(features).unflatten(-1, (-1, self.n_capsules, self.capsule_dim)).unbind(-3)
        # Unseen frames are inferred as well, so that no prior takes their place.
        return {one.site: one.independent(outputs[2 * i : 2 * i + 2], None) for i, one in enumerate(self.coordinates)}
