"""Posteriors: the distributions of a guide's sites in the order in which they are drawn, each given the draws before.

One rule for their shapes: what is not particles or sequences is an event. A distribution has the shape (B, *site), the
result of a function of draws (particles, B, *site), or (B, *site) where it looks at no draw; how that is split into
batch and event dimensions makes no difference.
"""

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
from torch.distributions import Distribution, Independent, Transform, constraints

from .priors import Moments
from .programs import PLATE_TWICE, OnePlate, Program, untouched_store

__all__ = [
    "MonteCarlo",
    "Posterior",
    "Program",
    "SiteDistribution",
    "all_events",
    "draw",
    "for_sequences",
    "joint",
    "moments",
    "standalone",
]

# Names of sites that begin with "_" are of the guide alone.
SiteDistribution: TypeAlias = TorchDistribution | Callable[[Mapping[str, Tensor]], TorchDistribution]
Posterior: TypeAlias = Mapping[str, SiteDistribution]

JOINT = "_latents"  # site of draws that hold several of the model's sites at once
MOMENT_DRAWS = 64


class MonteCarlo(NamedTuple):
    """Moments of a site, each (B, *site), estimated from draws."""

    mean: Tensor
    variance: Tensor


def all_events(q: TorchDistribution, plates: Sequence[int] = (0,)) -> TorchDistribution:
    """The distribution with all dimensions but those of the plates as event dimensions, however they were split.

    Args:
        q: of the shape (*plates, *site), or (B, *site) where it is the same for all particles.
        plates: sizes of particles and sequences; by default there are sequences alone, any number of them.
    """
    shape, n = q.batch_shape, len(plates)
    while n > 1 and (len(shape) < n or any(a not in (1, b) for a, b in zip(shape, plates[-n:], strict=False))):
        n -= 1
    return q.to_event(max(len(shape) - n, 0))


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
    plates: Sequence[int] = (0,)
    with pyro.plate("sequence", first.batch_shape[0], dim=-1):
        for site, one in posterior.items():
            # By type: Pyro's distributions can be called as well.
            q: Any = all_events(one) if isinstance(one, Distribution) else all_events(one(values), plates)
            value = values[site] = pyro.sample(site, q, infer={"is_auxiliary": True} if site.startswith("_") else {})
            plates = value.shape[: value.dim() - q.event_dim] or plates
    return {site: value for site, value in values.items() if not site.startswith("_")}


def for_sequences(posterior: Posterior, n_sequences: int) -> Posterior:
    """The posterior with what is the same for all sequences, of batch shape (1, *site), taken for each of them."""
    return {
        site: distribution.expand(torch.Size([n_sequences, *distribution.batch_shape[1:]]))
        if isinstance(distribution, Distribution) and distribution.batch_shape[:1] == (1,) != (n_sequences,)
        else distribution
        for site, distribution in posterior.items()
    }


def standalone(posterior: Posterior | Program) -> dict[str, TorchDistribution] | None:
    """The distributions by site where none is given by others, as in mean-field guides; None where one is.

    Here the dimensions of a site are batch dimensions again, wherever its elements are independent of each other.
    """
    if isinstance(posterior, Program) or not all(isinstance(one, Distribution) for one in posterior.values()):
        return None
    alone: dict[str, Any] = dict(posterior)
    for site, one in posterior.items():
        while isinstance(one, Independent):
            alone[site] = one = one.base_dist
    return alone


def moments(posterior: Posterior | Program) -> Mapping[str, Moments]:
    """Mean and variance of every site: exact where all are known and stand by themselves, else from 64 draws, always
    the same, so that the error of a mean is an eighth of the site's posterior standard deviation.
    """
    alone = standalone(posterior)
    if alone is not None and all(_has_mean(q) for q in alone.values()):
        return alone
    with torch.no_grad(), untouched_store(), torch.random.fork_rng():
        torch.manual_seed(0)
        with pyro.plate("particles", MOMENT_DRAWS, dim=-2):
            values = draw(posterior)
    return {site: MonteCarlo(value.mean(0), value.var(0)) for site, value in values.items()}


def _has_mean(q: TorchDistribution) -> bool:
    try:
        return q.mean is not None
    except NotImplementedError:  # as of a Normal behind a transform
        return False


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
        self.blocks = positive

    def positive(self, like: Tensor) -> Tensor:
        """Which blocks are exponentials, (n, 1, 1), made on the device: a copy there would hold up every step."""
        flags = [torch.full((), positive, device=like.device) for positive in self.blocks]
        return torch.stack(flags).reshape(-1, 1, 1)

    def _call(self, x: Tensor) -> Tensor:
        positive = self.positive(x)
        return torch.where(positive, torch.where(positive, x, 0).exp(), x)

    def _inverse(self, y: Tensor) -> Tensor:
        positive = self.positive(y)
        return torch.where(positive, torch.where(positive, y, 1).log(), y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(self.positive(x), x, 0).sum((-1, -2, -3))
