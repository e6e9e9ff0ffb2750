"""Guides for Gaussian energies whose neighborhoods overlap: radii along the roll, directions that nothing tells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints

from ..model import TVAE
from ..networks import Network
from ..posteriors import Posterior
from ..priors import GaussianEnergy
from ..topographies.base import Topography
from ..topographies.orbits import spread, summed
from .encoders import energies_of, shown
from .orbit import PooledGuide

__all__ = ["RadialGuide"]


class Radial(TorchDistribution):
    """Vectors of independent, uniformly distributed directions, whose squared lengths have a distribution of their own.

    Latents are cut into groups; group g of n_g members is ``u_g = sqrt(e_g) · direction``, ``e_g ~ squares``. With
    ``e_g ~ χ²`` of n_g degrees of freedom the latents are independent standard Normals; so the KL to those is that of
    the squared lengths, since given its length a Normal vector has a uniform direction as well.

    ``log q(u_g) = log q(e_g) + (1 − n_g / 2) log e_g − (n_g / 2) log π + log Γ(n_g / 2)`` at ``e_g = |u_g|²``: the
    density of e over the area of the sphere.

    Args:
        squares: distribution of the squared lengths, of batch shape (B, C, G).
        index: (S, D), which group a latent is in.
        size: (G,), how many are in it.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - torch's signature
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(
        self, squares: TorchDistribution, index: Tensor, size: Tensor, validate_args: bool | None = None
    ) -> None:
        self.squares, self.index, self.size = squares, index, size
        *batch, n_capsules, _ = squares.batch_shape
        n_frames, n_positions = index.shape
        super().__init__(
            torch.Size(batch), torch.Size([n_frames, n_capsules, n_positions]), validate_args=validate_args
        )

    def expand(self, batch_shape: Sequence[int], _instance: Radial | None = None) -> Radial:
        squares = self.squares.expand(torch.Size([*batch_shape, *self.squares.batch_shape[-2:]]))
        return Radial(squares, self.index, self.size, validate_args=False)

    def lengths(self, u: Tensor) -> Tensor:
        """Squared lengths (..., C, G) of u (..., S, C, D)."""
        return summed(u.square(), self.index, len(self.size))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        e = self.squares.rsample(torch.Size(sample_shape))
        noise = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=e.dtype, device=e.device)
        return noise * spread((e / self.lengths(noise)).sqrt(), self.index)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        e, half = self.lengths(value), self.size / 2
        area = half * math.log(math.pi) - torch.lgamma(half)
        return (self.squares.log_prob(e) + (1 - half) * e.log() - area).sum((-2, -1))

    @property
    def mean(self) -> Tensor:
        return self.squares.mean.new_zeros(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        return spread(self.squares.mean / self.size, self.index)


@torch.distributions.register_kl(Radial, Independent)
def _kl_radial_normal(q: Radial, p: Independent) -> Tensor:
    """From log-normal squared lengths to independent Normals of any means m and variances s², in nats.

    ``E log q = Σ_g (1 − n_g / 2) E log e_g − H(e_g) − (n_g / 2) log π + log Γ(n_g / 2)``, and a uniform direction has
    ``E u_i = 0`` and ``E u_i² = E e_g / n_g``, so that ``−E log p = ½ Σ_i (E u_i² + m_i²) / s_i² + log(2π s_i²)``.
    """
    squares, base = q.squares, p.base_dist
    if not isinstance(squares, dist.LogNormal) or not isinstance(base, torch.distributions.Normal):
        raise NotImplementedError
    half = q.size / 2
    entropy = squares.loc + 0.5 * math.log(2 * math.pi * math.e) + squares.scale.log()
    of_q = ((1 - half) * squares.loc - entropy - half * math.log(math.pi) + torch.lgamma(half)).sum((-2, -1))
    variance = base.variance
    of_p = (q.variance + base.mean.square()) / variance + (2 * math.pi * variance).log()
    return of_q + 0.5 * of_p.sum((-3, -2, -1))


class RadialGuide(PooledGuide):
    """For Gaussian u: how much energy lies along each path of the roll, pooled over frames; who has it is left open.

    ``V = W u²`` sums many squares, and x says little of each of them: neither its sign nor which one was large. A
    mean-field guide pays for every u that it holds near a value. Here all u on one path, one position per frame and
    further by ``velocity``, are a vector of uniform direction, whose squared length is log-normal, from the votes of
    its frames as in :class:`~pyro_tvae.OrbitGuide`. What is paid is the KL of one number per path. It fits where
    neighborhoods are long beside the sequence, and overlap; what differs along a path is left to z.

    Args:
        model: a TVAE with GaussianEnergy.
        velocity: positions per frame, one number for each axis of positions; None takes the roll under which the
            neighborhoods of a frame and of the next share most.
        network: recipe of the encoders; the model's own by default.
        initial_log_variance, initial_z_log_variance, vote_gain, shared_trunk: as in OrbitGuide.

    Raises:
        ValueError: the model has other energies, or none; or velocity is no whole number.

    Example:
        >>> from pyro_tvae import CapsuleRoll
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6, topography=CapsuleRoll(6, 1))
        >>> RadialGuide(model)(torch.rand(4, 6, 1, 8, 8))["u"].shape
        torch.Size([4, 6, 2, 6])
    """

    indexed = True
    size: Tensor

    def __init__(
        self,
        model: TVAE,
        *,
        velocity: int | Sequence[int] | None = None,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        initial_z_log_variance: float | None = None,
        vote_gain: float = 1.0,
        shared_trunk: bool = False,
        name: str | None = None,
    ) -> None:
        self.velocity = None
        if velocity is not None:
            steps = tuple(velocity) if isinstance(velocity, Sequence) else (velocity,)
            if not all(isinstance(one, int) and not isinstance(one, bool) for one in steps):
                raise ValueError(f"RadialGuide: velocity is {velocity!r}; expected whole positions per frame, or None.")
            self.velocity = steps
        super().__init__(
            model,
            network=network,
            initial_log_variance=initial_log_variance,
            initial_z_log_variance=initial_z_log_variance,
            vote_gain=vote_gain,
            shared_trunk=shared_trunk,
            name=name,
        )

    def groups(self, model: TVAE) -> tuple[Tensor, Tensor]:
        if not isinstance(model.prior, GaussianEnergy):
            raise ValueError(
                f"RadialGuide: the model's energies are {energies_of(model)}; expected GaussianEnergy "
                "(prior=gaussian), or another guide, such as OrbitGuide for OrbitEnergy (guide=orbit)."
            )
        _, *grid = model.topography.lattice(model.n_frames, model.capsule_dim)
        velocity = _roll(model.topography, grid) if self.velocity is None else self.velocity
        if len(velocity) != len(grid):
            raise ValueError(
                f"RadialGuide: velocity is {velocity}, and positions have {len(grid)} axes; expected one number "
                "for each."
            )
        path, axes = torch.arange(model.capsule_dim).reshape(grid), tuple(range(len(grid)))
        index = torch.stack([path.roll([k * one for one in velocity], axes) for k in range(model.n_frames)]).flatten(1)
        return index, index.new_full((model.capsule_dim,), model.n_frames).to(torch.get_default_dtype())

    def couple(self, model: TVAE) -> None:
        self.register_buffer("size", torch.full_like(self.prior_location, model.n_frames), persistent=False)

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        x, mask = shown(x, observed)
        z, shift, vote = self.read(x, mask)
        return {
            "z": self.z.distribution(*z),
            "u": Radial(dist.LogNormal(*self.pooled(shift, vote)), self.index, self.size),
        }


def _roll(topography: Topography, grid: Sequence[int]) -> tuple[int, ...]:
    """The shift of positions, one number per axis, by which a frame's neighborhoods lie most upon those of the next."""
    if topography.dense:
        raise ValueError(
            f"RadialGuide: {type(topography).__name__} is no list of offsets, so that its roll is not known; expected "
            "velocity, in positions per frame."
        )
    weight = dict(zip(topography.offsets(), topography.weight().tolist(), strict=True))
    frames: dict[int, dict[tuple[int, ...], float]] = {}
    for (dt, *place), one in weight.items():
        frames.setdefault(dt, {})[tuple(place)] = one
    shared: dict[tuple[int, ...], float] = {}
    for dt, places in frames.items():
        for to, one in places.items():
            for since, other in frames.get(dt - 1, {}).items():
                shift = tuple((p - q) % size for p, q, size in zip(to, since, grid, strict=True))
                shared[shift] = shared.get(shift, 0.0) + one * other
    return max(shared, key=shared.__getitem__) if shared else (0,) * len(grid)
