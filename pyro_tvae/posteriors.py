"""Posteriors: the laws of a guide's sites in the order in which they are drawn, each given the draws before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from .priors import Moments
from .programs import PLATE_TWICE, OnePlate, Program, untouched_store

__all__ = [
    "MonteCarlo",
    "Posterior",
    "Program",
    "SiteDistribution",
    "draw",
    "for_sequences",
    "joint",
    "moments",
    "standalone",
]

# A distribution with batch shape (B, *site), or a function of the draws so far that returns one whose dimensions other
# than particles and sequences are event dimensions. Names that begin with "_" are of the guide alone.
SiteDistribution: TypeAlias = TorchDistribution | Callable[[Mapping[str, Tensor]], TorchDistribution]
Posterior: TypeAlias = Mapping[str, SiteDistribution]

JOINT = "_latents"  # site of draws that hold several of the model's sites at once
MOMENT_DRAWS = 64


class MonteCarlo(NamedTuple):
    """Moments of a site, each (B, *site), estimated from draws."""

    mean: Tensor
    variance: Tensor


def draw(posterior: Posterior | Program) -> dict[str, Tensor]:
    """Sample the sites in order, as Pyro sample statements in the plate ``sequence``; returns those of the model."""
    if isinstance(posterior, Program):
        return posterior.draw()
    made = any(isinstance(handler, TraceMessenger) and "sequence" in handler.trace for handler in _PYRO_STACK)
    if made and not any(isinstance(handler, OnePlate) for handler in _PYRO_STACK):
        raise ValueError(PLATE_TWICE)
    first = next(iter(posterior.values()), None)
    if not isinstance(first, Distribution):
        raise TypeError(
            f"the posterior begins with a {type(first).__name__}; expected a distribution of batch shape (sequences, "
            "…) first, since nothing was drawn that a function could take."
        )
    values: dict[str, Tensor] = {}
    with pyro.plate("sequence", first.batch_shape[0], dim=-1):
        for site, distribution in posterior.items():
            # By type: Pyro's distributions can be called as well.
            q: Any = (
                distribution.to_event(len(distribution.batch_shape) - 1)
                if isinstance(distribution, Distribution)
                else distribution(values)
            )
            values[site] = pyro.sample(site, q, infer={"is_auxiliary": True} if site.startswith("_") else {})
    return {site: value for site, value in values.items() if not site.startswith("_")}


def for_sequences(posterior: Posterior, n_sequences: int) -> Posterior:
    """The laws with one that is the same for all sequences, of batch shape (1, *site), taken for each of them."""
    return {
        site: distribution.expand(torch.Size([n_sequences, *distribution.batch_shape[1:]]))
        if isinstance(distribution, Distribution) and distribution.batch_shape[:1] == (1,) != (n_sequences,)
        else distribution
        for site, distribution in posterior.items()
    }


def standalone(posterior: Posterior | Program) -> dict[str, TorchDistribution] | None:
    """The laws by site where each stands by itself, as in mean-field guides; None where one is given by others."""
    if isinstance(posterior, Program):
        return None
    alone = {site: distribution for site, distribution in posterior.items() if isinstance(distribution, Distribution)}
    return alone if len(alone) == len(posterior) else None


def moments(posterior: Posterior | Program) -> Mapping[str, Moments]:
    """Mean and variance of every site: exact where all laws stand by themselves, else from 64 draws, always the same.

    The error of a mean is then an eighth of the site's posterior standard deviation.
    """
    alone = standalone(posterior)
    if alone is not None:
        return alone
    with torch.no_grad(), untouched_store(), torch.random.fork_rng():
        torch.manual_seed(0)
        with pyro.plate("particles", MOMENT_DRAWS, dim=-2):
            values = draw(posterior)
    return {site: MonteCarlo(value.mean(0), value.var(0)) for site, value in values.items()}


def joint(q: TorchDistribution, sites: Mapping[str, bool]) -> dict[str, SiteDistribution]:
    """A posterior whose sites are drawn as one: q has values (…, n, C, D), one block for each of n sites, in order.

    A site marked positive is the exponential of its block. The whole density, Jacobian included, is that of the joint
    draw; each site is a point mass on its block, so that Pyro's objectives and log-weights all count it once.
    """
    if any(sites.values()):
        q = dist.TransformedDistribution(q, [_Exponential(list(sites.values()))])
    return {JOINT: q} | {site: _block(i) for i, site in enumerate(sites)}


def _block(index: int) -> SiteDistribution:
    return lambda draws: dist.Delta(draws[JOINT][..., index, :, :], event_dim=3)


class _Exponential(Transform):
    """The exponential of some blocks of (n, C, D), the others as they are."""

    domain = constraints.independent(constraints.real, 3)
    codomain = constraints.independent(constraints.real, 3)
    bijective = True

    def __init__(self, positive: Sequence[bool]) -> None:
        # torch's cache gives the inverse of what was just drawn, so that no draw is scored through a logarithm.
        super().__init__(cache_size=1)
        self.positive = torch.tensor(positive).reshape(-1, 1, 1)

    def _call(self, x: Tensor) -> Tensor:
        positive = self.positive.to(x.device)
        return torch.where(positive, torch.where(positive, x, 0).exp(), x)

    def _inverse(self, y: Tensor) -> Tensor:
        positive = self.positive.to(y.device)
        return torch.where(positive, torch.where(positive, y, 1).log(), y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(self.positive.to(x.device), x, 0).sum((-1, -2, -3))
