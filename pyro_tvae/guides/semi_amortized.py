"""Semi-amortized inference: the encoders' answer for each sequence, improved by a few gradient steps of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import kl_divergence

from ..model import TVAE
from ..networks import Network
from ..posteriors import Posterior, all_events
from .base import LookingGuide
from .default import default_guide
from .encoders import shown
from .sequence import SequenceGuide

__all__ = ["SemiAmortizedGuide"]

BETA, EPS = (0.9, 0.99), 1e-8


class SemiAmortizedGuide(LookingGuide):
    """A mean-field posterior that starts at an encoder's answer and takes k gradient steps on each sequence's own ELBO.

    With the start ``loc₀, scale₀`` the sites are ``Normal(loc₀ + scale₀ a, scale₀ exp(b))``, log-normal for positive
    energies; Adam moves a and b from 0 (Kim et al. 2018, "Semi-Amortized Variational Autoencoders",
    https://arxiv.org/abs/1802.02550). Its noise comes from a fixed seed and is the same for all sequences and on all
    devices, so that the posterior of a sequence is a function of it alone; whatever that makes of a and b, q is a
    density and its ELBO a bound. Training passes gradients to the encoder through ``loc₀, scale₀`` and treats a and b
    as constants: first order, no second derivatives.

    The guide looks at its model: copy or move both together.

    Args:
        model: the TVAE it is for.
        steps: gradient steps k; 0 is the start itself.
        step_size: of Adam, in standard deviations of the start.
        num_particles: antithetic pairs of draws behind each gradient.
        pooled: start at :class:`SequenceGuide` instead of the default guide of the model.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance: bias of the log-variances.

    Raises:
        ValueError: negative steps, no particle, or a start that does not fit the model.
    """

    def __init__(
        self,
        model: TVAE,
        *,
        steps: int = 10,
        step_size: float = 0.1,
        num_particles: int = 2,
        pooled: bool = False,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name=name)
        if steps < 0 or num_particles < 1 or not step_size > 0:
            raise ValueError(
                f"SemiAmortizedGuide: steps={steps}, step_size={step_size}, num_particles={num_particles}; expected "
                "steps of 0 or more, a size above 0 and at least 1 particle."
            )
        self.steps, self.step_size, self.num_particles = steps, step_size, num_particles
        make = SequenceGuide if pooled else default_guide
        self.start = make(model, network=network, initial_log_variance=initial_log_variance)
        self._noise: list[Tensor] = []

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        start: Any = self.start.posterior(x, observed)
        for q in start.values():
            if not isinstance(q, torch.distributions.Normal | torch.distributions.LogNormal):
                raise TypeError(
                    f"SemiAmortizedGuide: the start has a {type(q).__name__}; expected Normals and log-normals."
                )
        # Evaluations run without gradients, some in inference mode, whose tensors cannot be differentiated.
        with torch.inference_mode(False), torch.enable_grad():
            fixed = {site: type(q)(q.loc.detach().clone(), q.scale.detach().clone()) for site, q in start.items()}
            moves = self._refine(shown(x, observed)[0].detach().clone(), observed, fixed)
        return {site: _moved(q, *moves[site]) for site, q in start.items()}

    def _refine(self, x: Tensor, observed: Tensor | None, start: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """The moves (a, b) of every site that k steps of Adam on the ELBO of x make."""
        noise = iter(self._draws([q.loc for q in start.values()]))
        moves = [torch.zeros_like(q.loc).requires_grad_() for q in start.values() for _ in range(2)]
        state = [(torch.zeros_like(move), torch.zeros_like(move)) for move in moves]
        for step in range(1, self.steps + 1):
            pairs = zip(moves[::2], moves[1::2], strict=True)
            distributions = {site: _moved(q, *pair) for (site, q), pair in zip(start.items(), pairs, strict=True)}
            slopes = torch.autograd.grad(self._bound(x, observed, distributions, noise).sum(), moves)
            for move, slope, (first, second) in zip(moves, slopes, state, strict=True):
                first.lerp_(slope, 1 - BETA[0])
                second.lerp_(slope.square(), 1 - BETA[1])
                size = (second / (1 - BETA[1] ** step)).sqrt() + EPS
                with torch.no_grad():
                    move += self.step_size * first / (1 - BETA[0] ** step) / size
        fixed = [move.detach() for move in moves]
        return dict(zip(start, zip(fixed[::2], fixed[1::2], strict=True), strict=True))

    def _draws(self, locs: list[Tensor]) -> list[Tensor]:
        """Standard normal draws of every step and site, (P, 1, *site): made once, on the CPU, whose draws all share."""
        like = locs[0]
        shapes = [(self.num_particles, 1, *loc.shape[1:]) for loc in locs] * self.steps
        kinds = [(*one.shape, one.dtype, one.device) for one in self._noise]
        if kinds != [(*shape, like.dtype, like.device) for shape in shapes]:
            generator = torch.Generator().manual_seed(0)
            self._noise = [
                torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device) for shape in shapes
            ]
        return self._noise

    def _bound(
        self, x: Tensor, observed: Tensor | None, distributions: Mapping[str, Any], noise: Iterator[Tensor]
    ) -> Tensor:
        """The ELBO of every sequence, (B,): the pixels' term from antithetic draws, KL closed where it can be."""
        (model,) = self._model
        priors, values, bound = model.prior_distributions(), {}, x.new_zeros(())
        for site, q in distributions.items():
            half = next(noise)
            value = q.loc + q.scale * torch.cat([half, -half])
            values[site] = value.exp() if isinstance(q, dist.LogNormal) else value
            whole = all_events(q)
            try:
                bound = bound - kl_divergence(whole, priors[site])
            except NotImplementedError:
                bound = bound + (priors[site].log_prob(values[site]) - whole.log_prob(values[site])).mean(0)
        frames = model.decode(model.compose(values)).log_prob(x)
        if observed is not None:
            frames = frames * observed.to(frames)
        return bound + frames.sum(-1).mean(0)


def _moved(q: Any, a: Tensor, b: Tensor) -> TorchDistribution:
    """A Normal or log-normal of the start, moved by a of its standard deviations and widened by exp(b)."""
    moved: TorchDistribution = type(q)(q.loc + q.scale * a, q.scale * b.exp())
    return moved
