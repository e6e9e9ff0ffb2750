"""Hamiltonian Monte Carlo on the densities between a guide and its posterior, many chains in one tensor program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.guides.laplace import Laplace, LaplaceGuide
from pyro_tvae.likelihoods import of_seen, seen_pixels
from pyro_tvae.posteriors import all_events, standalone

from .inspection import refuse_own_terms

__all__ = ["Path", "Point", "leapfrog", "transition"]

PILOT_DRAWS = 64


class Point(NamedTuple):
    """Where chains are: y (K, B, n), and there log q, log p(x, ·), (K, B, 1), and their gradients, (K, B, n)."""

    y: Tensor
    log_q: Tensor
    log_p: Tensor
    slope_q: Tensor
    slope_p: Tensor

    def log_f(self, beta: float) -> Tensor:
        """``(1 − β) log q + β log p``, (K, B, 1)."""
        return torch.lerp(self.log_q, self.log_p, beta)

    def slope(self, beta: float) -> Tensor:
        """Gradient of :meth:`log_f`, (K, B, n)."""
        return torch.lerp(self.slope_q, self.slope_p, beta)

    def accept(self, accepted: Tensor, proposal: Point) -> Point:
        """The proposal where accepted (K, B, 1), this point elsewhere."""
        return Point(*(torch.where(accepted, new, old) for new, old in zip(proposal, self, strict=True)))


class Coordinates(Protocol):
    """Coordinates y (K, B, n) of all latents, and the distribution over them at which a path begins."""

    @property
    def bound(self) -> Tensor | float:
        """Beyond it, (n,) or a number, others overflow; a trajectory that leaves it is rejected, as its reverse."""
        ...

    def draw(self, n: int) -> Tensor:
        """Draws (n, B, coordinates) from where the path begins."""
        ...

    def unconstrain(self, latents: dict[str, Tensor]) -> Tensor:
        """Values of the sites (K, B, *site) as coordinates (K, B, n)."""
        ...

    def values(self, y: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Values of the sites; log q of the coordinates and the log-determinant of the map, (K, B)."""
        ...


class MeanFieldCoordinates:
    """Those of independent sites, side by side: real ones stand for themselves and positive ones for their logarithm.

    Args:
        posterior: distributions by site, which need no other's draw.
        like: a tensor of the model, for its precision and device.
    """

    def __init__(self, posterior: dict[str, Any], like: Tensor) -> None:
        self.to_site = {site: biject_to(q.support) for site, q in posterior.items()}
        self.posterior = {site: all_events(q) for site, q in posterior.items()}
        real = {
            site: getattr(q.support, "base_constraint", q.support) is constraints.real for site, q in posterior.items()
        }
        bounds = {site: 1e6 if real[site] else 80.0 for site in posterior}
        self.bound = torch.cat([like.new_full((q.event_shape.numel(),), bounds[s]) for s, q in self.posterior.items()])

    def draw(self, n: int) -> Tensor:
        return self.unconstrain({site: q.sample(torch.Size([n])) for site, q in self.posterior.items()})

    def unconstrain(self, latents: dict[str, Tensor]) -> Tensor:
        return torch.cat([self.to_site[site].inv(latents[site]).flatten(2) for site in self.posterior], -1)

    def values(self, y: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        values: dict[str, Tensor] = {}
        log_q = log_det = y.new_zeros(())
        sizes = [q.event_shape.numel() for q in self.posterior.values()]
        for (site, q), part in zip(self.posterior.items(), y.split(sizes, -1), strict=True):
            free = part.unflatten(-1, q.event_shape)
            value = values[site] = self.to_site[site](free)
            # Of a joint distribution of all of a site, as a radial one, it is summed already.
            jacobian = self.to_site[site].log_abs_det_jacobian(free, value).reshape(*y.shape[:2], -1).sum(-1)
            log_q, log_det = log_q + q.log_prob(value) + jacobian, log_det + jacobian
        return values, log_q, log_det


class StandardCoordinates:
    """Those in which a Laplace approximation is a standard normal, and the posterior near one: chains mix at once."""

    bound = 1e6

    def __init__(self, laplace: Laplace) -> None:
        self.laplace = laplace

    def draw(self, n: int) -> Tensor:
        z = self.laplace.z
        return torch.randn(n, len(z), self.laplace.size, dtype=z.dtype, device=z.device)

    def unconstrain(self, latents: dict[str, Tensor]) -> Tensor:
        return self.laplace.standard({site: self.laplace.to_site[site].inv(latents[site]) for site in latents})

    def values(self, y: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        values, log_det = {}, self.laplace.log_det.expand(y.shape[:2])
        for site, free in self.laplace.unconstrained(y).items():
            to_site = self.laplace.to_site[site]
            values[site] = to_site(free)
            log_det = log_det + to_site.log_abs_det_jacobian(free, values[site]).reshape(*y.shape[:2], -1).sum(-1)
        log_q = -(y.square() + math.log(2 * math.pi)).sum(-1) / 2
        return values, log_q, log_det


class Path:
    """The densities between q(z, u | x) and p(x, z, u) over :class:`Coordinates` of all sites; both carry the Jacobian.

    With masks, (B, S) of frames and, among the guide's covariates, ``measured`` pixels, x is what was seen of it.
    """

    def __init__(
        self,
        model: TVAE,
        guide: Guide,
        x: Tensor,
        observed: Tensor | None = None,
        covariates: Mapping[str, Tensor] | None = None,
    ) -> None:
        model.check(x)
        refuse_own_terms(model, x, "annealing")
        self.model, self.prior_distributions = model, model.prior_distributions()
        self.observed, self.measured = observed, (covariates or {}).get("measured")
        seen = seen_pixels(observed, self.measured)
        self.x = x if seen is None else torch.where(seen, x, model.likelihood.blank)
        self.coordinates = self._coordinates(guide, x, covariates or {})
        self.scale = self.draw(PILOT_DRAWS).std(0)

    def _coordinates(self, guide: Guide, x: Tensor, covariates: Mapping[str, Tensor]) -> Coordinates:
        if isinstance(guide, LaplaceGuide):
            return StandardCoordinates(guide.approximation(x, self.observed, **covariates))
        posterior = (
            standalone(posterior_of(guide, x, self.observed, covariates))
            if isinstance(guide, Guide) and guide.mean_field
            else None
        )
        if posterior is None or {*posterior} != {*self.prior_distributions}:
            raise ValueError(
                f"annealing needs a mean-field guide with the model's sites {', '.join(self.prior_distributions)}, "
                f"whose posterior(x) has a density; {type(guide).__name__} is none: use default_guide(model), or begin "
                "at the posterior's mode with LaplaceGuide(model, guide)."
            )
        return MeanFieldCoordinates(posterior, x)

    def draw(self, n: int) -> Tensor:
        """Coordinates drawn from where the path begins, (n, B, coordinates)."""
        return self.coordinates.draw(n)

    def unconstrain(self, latents: dict[str, Tensor]) -> Tensor:
        """Values of the sites (K, B, *site) as coordinates (K, B, n)."""
        return self.coordinates.unconstrain(latents)

    def densities(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """log q and log p(x, ·) of coordinates (K, B, n), Jacobian included: each (K, B)."""
        values, log_q, log_prior = self.coordinates.values(y)
        for site, prior in self.prior_distributions.items():
            log_prior = log_prior + prior.log_prob(values[site])
        frames = of_seen(self.model.decode(self.model.compose(values)), self.observed, self.measured)
        return log_q, log_prior + frames.log_prob(self.x).sum(-1)

    def at(self, y: Tensor) -> Point:
        """Densities and gradients at y, from one pass through the decoder and one back."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            log_q, log_p = self.densities(y)
            (slope_q,) = torch.autograd.grad(log_q.sum(), y, retain_graph=True)
            (slope_p,) = torch.autograd.grad(log_p.sum(), y)
        return Point(y.detach(), log_q.detach().unsqueeze(-1), log_p.detach().unsqueeze(-1), slope_q, slope_p)


def leapfrog(
    path: Path, point: Point, momentum: Tensor, beta: float, step: Tensor, n_steps: int
) -> tuple[Point, Tensor, Tensor]:
    """Follow Hamilton's equations of ``−log f_β + |momentum|² / 2`` for n steps: reversible, volume-preserving.

    Args:
        momentum: (K, B, n).
        step: step size of every coordinate, broadcasts against (K, B, n).

    Returns:
        Where it ends, the momentum there, and (K, B, 1) whether it stayed within the path's bounds.
    """
    start, inside = point.y, torch.ones_like(point.log_q, dtype=torch.bool)
    momentum = momentum + step / 2 * point.slope(beta)
    for i in range(n_steps):
        y = point.y + step * momentum
        inside = inside & (y.abs() <= path.coordinates.bound).all(-1, keepdim=True)
        point = path.at(torch.where(inside, y, start))
        momentum = momentum + (step / 2 if i == n_steps - 1 else step) * point.slope(beta)
    return point, momentum, inside


def transition(path: Path, point: Point, beta: float, step: Tensor, n_steps: int) -> tuple[Point, Tensor]:
    """One HMC step that leaves f_β invariant: the new point, and the acceptance probabilities (K, B, 1)."""
    momentum = torch.randn_like(point.y)
    # A size of its own for every trajectory, over a decade: where energies are small, t is steep, and chains that
    # start there stay there with the size that suits the rest.
    step = step * 10 ** -torch.rand_like(point.log_q)
    proposal, end, inside = leapfrog(path, point, momentum, beta, step, n_steps)
    gain = proposal.log_f(beta) - point.log_f(beta)
    gain = gain - (end.square() - momentum.square()).sum(-1, keepdim=True) / 2
    probability = torch.where(inside & gain.isfinite(), gain.clamp(max=0).exp(), 0)
    return point.accept(torch.rand_like(probability) < probability, proposal), probability
