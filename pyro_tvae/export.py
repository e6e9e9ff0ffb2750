"""Encoder and decoder to be shipped: plain torch modules for ``torch.export`` and ONNX, any number of sequences."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from .guides.base import Guide
from .guides.semi_amortized import SemiAmortizedGuide
from .judging import evaluating
from .model import TVAE
from .posteriors import MonteCarlo, moments
from .verbs import point_estimate

__all__ = ["Decoder", "Encoder"]


class Encoder(nn.Module):
    """What :func:`~pyro_tvae.encode` computes, as a module that can be exported: x to t, for a closed posterior mean.

    ``t = (E[z | x] + μ) / sqrt(E[V | x] + eps)``. Weights are shared with the pair, the decoder's left out. What only
    data can tell, such as that pixels are finite, is checked by ``encode`` and not here.

    Args:
        model: the generative program.
        guide: its posterior, whose sites stand by themselves given x: MeanFieldGuide, SharedTrunkGuide, SequenceGuide,
            GammaGuide, OrbitGuide, or one of your own.

    Shapes: x (B, S, channel, height, width) to t (B, S, C, D).

    Raises:
        ValueError: the guide is another model's, or its posterior mean has no closed form: it takes draws or gradients.
        TypeError: the guide is a program only, such as an autoguide.

    Example:
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> from pyro_tvae import MeanFieldGuide
        >>> encoder = Encoder(model, MeanFieldGuide(model)).eval()
        >>> sizes = {"x": {0: torch.export.Dim("batch")}}
        >>> program = torch.export.export(encoder, (torch.rand(2, 6, 1, 8, 8),), dynamic_shapes=sizes, strict=False)
        >>> program.module()(torch.rand(7, 6, 1, 8, 8)).shape
        torch.Size([7, 6, 2, 6])
    """

    def __init__(self, model: TVAE, guide: Guide) -> None:
        super().__init__()
        if not isinstance(guide, Guide):
            raise TypeError(
                f"Encoder: the guide is of type {type(guide).__name__}, whose means take draws; expected a Guide whose "
                "sites stand by themselves, such as MeanFieldGuide."
            )
        guide.check(model)
        x = model.blank_sequence
        closed = not isinstance(guide, SemiAmortizedGuide)
        with torch.no_grad(), evaluating(model, guide):
            if not closed or any(isinstance(one, MonteCarlo) for one in moments(guide.posterior(x)).values()):
                means = "draws" if closed else "gradients"
                raise ValueError(
                    f"Encoder: the posterior mean of {type(guide).__name__} takes {means}, "
                    "which no exported program has; use a guide whose sites stand by themselves, such as "
                    "MeanFieldGuide, SequenceGuide or OrbitGuide."
                )
            point_estimate(model, guide.posterior(x))  # makes the neighborhood matrix, a constant of the program
        self.guide, self.model = guide, _without(model, ("decoder", "likelihood"))

    def forward(self, x: Tensor) -> Tensor:
        with pyro.validation_enabled(False):  # of parameters, by their values
            return point_estimate(self.model, self.guide.posterior(x))


class Decoder(nn.Module):
    """Mean frames given t, as a module that can be exported: :class:`Encoder`'s other half.

    Args:
        model: the generative program; the weights are shared with it.

    Shapes: t (B, S, C, D) to pixels (B, S, channel, height, width).

    Raises:
        ValueError: the model has random weights.

    Example:
        >>> Decoder(TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6))(torch.rand(4, 6, 2, 6)).shape
        torch.Size([4, 6, 1, 8, 8])
    """

    def __init__(self, model: TVAE) -> None:
        super().__init__()
        self.model = _without(model, [name for name in model._modules if name not in ("decoder", "likelihood")])
        random = [site for site, (_, name) in self.model.weight_sites().items() if name != "mu"]
        if random:  # each call would draw another one, and an exported program hold one draw
            raise ValueError(
                f"Decoder: the model has a random weight {random[0]!r}, of which no exported program has a value; give "
                "the model a torch.nn.Parameter of its posterior's mean in its place."
            )

    def forward(self, t: Tensor) -> Tensor:
        with pyro.validation_enabled(False):
            distribution: Any = self.model.decode(t)
            mean: Tensor = distribution.mean
            return mean


def _without(model: TVAE, names: Collection[str]) -> TVAE:
    """The same model, same weights, without some of its parts."""
    half = copy.copy(model)
    half.__dict__["_modules"] = {name: part for name, part in model._modules.items() if name not in names}
    return half
