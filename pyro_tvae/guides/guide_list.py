"""Several guides as one: each draws some of the model's sites, such as the latents and the random weights."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from ..programs import OnePlate, accepted, call

__all__ = ["GuideList"]


class GuideList(nn.Module):
    """Guides side by side, independent of each other: ``q(z, u, w | x) = q(z, u | x) q(w)``.

    Pyro's ``AutoGuideList`` makes the plates of all its parts itself, and a guide that has a plate of its own cannot
    stand in it. Here every part is a Pyro program that makes what it needs.

    Args:
        guides: Pyro programs of x and perhaps observed: a :class:`Guide`, an autoguide of a blocked model, a function.

    Raises:
        TypeError: one cannot be called.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro import poutine
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_tvae import TVAE, MeanFieldGuide
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> model.mu = pyro.nn.PyroSample(dist.Normal(30.0, 1.0))
        >>> weights = AutoNormal(poutine.block(model, expose=list(model.weight_sites())))
        >>> draws = GuideList(MeanFieldGuide(model), weights)(torch.rand(4, 6, 1, 8, 8))
        >>> draws["z"].shape, draws[next(iter(model.weight_sites()))].shape
        (torch.Size([4, 6, 2, 6]), torch.Size([]))
    """

    def __init__(self, *guides: Any) -> None:
        super().__init__()
        for guide in guides:
            if not callable(guide) or isinstance(guide, type):
                raise TypeError(f"GuideList: {guide!r} is no guide; expected Pyro programs, such as a pyro_tvae.Guide.")
        self.modules_among = nn.ModuleList(guide for guide in guides if isinstance(guide, nn.Module))
        self.guides = tuple(guides)

    @property
    def covariates(self) -> frozenset[str]:
        """Names of what one of the guides takes beside x and observed."""
        return frozenset().union(*(accepted(guide) for guide in self.guides))

    def forward(self, x: Tensor, observed: Tensor | None = None, **covariates: Tensor) -> dict[str, Tensor]:
        """One draw of every site of every guide, their parameters in Pyro's store, as SVI needs them."""
        return self._draw(x, observed, covariates, whole=True)

    def bare(self, x: Tensor, observed: Tensor | None = None, **covariates: Tensor) -> dict[str, Tensor]:
        """The same without the store, where a guide does without."""
        return self._draw(x, observed, covariates, whole=False)

    def _draw(
        self, x: Tensor, observed: Tensor | None, covariates: dict[str, Tensor], *, whole: bool
    ) -> dict[str, Tensor]:
        draws: dict[str, Tensor] = {}
        with OnePlate():
            for guide in self.guides:
                try:
                    drawn = call(guide, x, observed, covariates, whole=whole)()
                except RuntimeError as error:
                    twice = re.match(r"Multiple sample sites named (\S+)", str(error))
                    if twice is None:
                        raise
                    raise ValueError(
                        f"GuideList: {type(guide).__name__} draws site {twice[1]}, which a guide before it has drawn; "
                        "expected every site in one of them: leave it out of the others, as poutine.block does."
                    ) from error
                draws |= drawn if isinstance(drawn, dict) else {}
        return draws
