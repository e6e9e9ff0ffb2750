"""Laplace approximation: a Gaussian at the mode of each sequence's posterior, with all correlations of its latents.

Mean-field guides leave out how latents depend on each other given x. Frames depend on each other through the energies
alone, so that the precision of a Gaussian fitted at the mode is an arrow: a block for z of each frame, and a border for
the energies that all frames share. Its Cholesky factor costs a frame's block each, and draws and densities of hundreds
of particles a triangular product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import ReshapeTransform

from ..likelihoods import of_seen, seen_pixels
from ..model import TVAE, mask_of
from ..posteriors import Posterior, moments, standalone
from ..programs import is_bayesian
from .base import Guide, LookingGuide, posterior_of

__all__ = ["Laplace", "LaplaceGuide"]

HALVINGS = 10  # of a step that would go down
LEAST = 1e-3  # precision that a prior gives a coordinate, where its curvature says less or nothing


class LaplaceGuide(LookingGuide):
    """The Laplace approximation of ``p(z, u | x)``, computed for each sequence from where another guide begins.

    Gauss-Newton steps from that guide's posterior means climb to the mode over unconstrained coordinates, logarithms of
    positive energies; the curvature there, ``prior precision + Jᵀ Λ J`` with J the Jacobian of the decoder's outputs
    and Λ what the likelihood says of each pixel, is the Gaussian's precision. See Tierney & Kadane 1986, "Accurate
    approximations for posterior moments and marginal densities", https://doi.org/10.1080/01621459.1986.10478240, and
    for the curvature Martens 2020, "New insights and perspectives on the natural gradient method",
    https://arxiv.org/abs/1412.1193.

    Nothing is trained: it is for judging a fitted model, by :func:`~pyro_tvae.inference.log_likelihood`, or as the
    start of :func:`~pyro_tvae.inference.annealed_importance`; bounds from it are far tighter than from a guide that was
    fitted. One mode is all that it sees: x does not tell the sign of Gaussian u, so that it is at its best where
    energies are positive, or where there are none.

    A sequence costs ``C·D`` forward derivatives of the decoder per frame and step, and memory for S matrices of
    ``(C·D)²`` and S of ``C·D`` times the number of energies. The guide looks at its model: copy or move both together.

    Args:
        model: the TVAE it is for.
        guide: where it begins; any guide of the model.
        max_iterations: Gauss-Newton steps at most.
        tolerance: nats per sequence; it ends where a step gains less.

    Attributes:
        tick: called after every step of a sequence, for whatever shows progress.

    Raises:
        ValueError: a number is too small; or the model has random weights, or a prior under which the frames' z depend
            on each other.

    Example:
        >>> import pyro_tvae
        >>> from pyro_tvae.inference import log_likelihood
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> laplace = pyro_tvae.LaplaceGuide(model, pyro_tvae.default_guide(model))
        >>> log_likelihood(model, laplace, torch.rand(2, 3, 1, 4, 4), num_particles=10).iwae.shape
        torch.Size([2])
    """

    mean_field = False

    def __init__(
        self,
        model: TVAE,
        guide: Guide,
        *,
        max_iterations: int = 5,
        tolerance: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(model, name=name)
        if max_iterations < 1 or not tolerance >= 0:
            raise ValueError(
                f"LaplaceGuide: max_iterations={max_iterations}, tolerance={tolerance}; expected at least 1 iteration "
                "and a tolerance of 0 or more nats."
            )
        guide.check(model)
        self.guide, self.max_iterations, self.tolerance = guide, max_iterations, tolerance
        self.tick: Callable[[], object] | None = None
        _check_sites(model)

    @property
    def covariates(self) -> frozenset[str]:
        return self.guide.covariates | {"measured"}

    def posterior(
        self, x: Tensor, observed: Tensor | None = None, measured: Tensor | None = None, **covariates: Any
    ) -> Posterior:
        return self.approximation(x, observed, measured, **covariates).posterior()

    def approximation(
        self, x: Tensor, observed: Tensor | None = None, measured: Tensor | None = None, **covariates: Any
    ) -> Laplace:
        """The Gaussian itself, of sequences x (B, S, channel, height, width); masks as elsewhere."""
        (model,) = self._model
        given = covariates | ({} if measured is None else {"measured": measured})
        with torch.no_grad():
            start = moments(posterior_of(self.guide, x, observed, given))
            points = {site: prior.point(start[site]) for site, prior in model.energies.items()}
            points["z"] = start["z"].mean
        # Evaluations run without gradients, some in inference mode, whose tensors cannot be differentiated.
        with torch.inference_mode(False), torch.no_grad():
            joint = _Joint(model, x.clone(), mask_of(observed, x), measured, self.tick)
            z, free = joint.coordinates(points)
            density = joint(z, free)
            for _ in range(self.max_iterations):
                factors = joint.factors(z, free)
                step_z, step_free = factors.ascent(*joint.slope(z, free))
                size = torch.ones_like(density)
                for _ in range(HALVINGS):
                    moved = z + size[:, None, None] * step_z, free + size[:, None] * step_free
                    reached = joint(*moved)
                    if (better := reached > density).all():
                        break
                    size = torch.where(better, size, size / 2)
                z = torch.where(better[:, None, None], moved[0], z)
                free = torch.where(better[:, None], moved[1], free)
                gain = torch.where(better, reached - density, 0)
                density = density + gain
                if float(gain.max()) <= self.tolerance:
                    break
            else:
                factors = joint.factors(z, free)
            parts = (factors.of_z, factors.by_energy, factors.of_energy)
            return Laplace(z, free, *parts, joint.shapes, joint.to_site)


@dataclass(frozen=True, eq=False)
class _Factors:
    """The Cholesky factors of an arrow-shaped precision.

    Attributes:
        of_z: (B, S, F, F), lower triangular, of each frame's block given the energies.
        by_energy: (B, S, F, m), by how much the mean of a frame's z falls as the energies rise.
        of_energy: (B, m, m), lower triangular, of the energies' marginal precision.
    """

    of_z: Tensor
    by_energy: Tensor
    of_energy: Tensor

    def ascent(self, slope_z: Tensor, slope_energy: Tensor) -> tuple[Tensor, Tensor]:
        """The Newton step from slopes (B, S, F) and (B, m): the precision's inverse times these."""
        rest = slope_energy - torch.einsum("bsfm,bsf->bm", self.by_energy, slope_z)
        energy = torch.cholesky_solve(rest.unsqueeze(-1), self.of_energy).squeeze(-1)
        z = torch.cholesky_solve(slope_z.unsqueeze(-1), self.of_z).squeeze(-1)
        return z - torch.einsum("bsfm,bm->bsf", self.by_energy, energy), energy


@dataclass(frozen=True, eq=False)
class Laplace:
    """A Gaussian over the unconstrained latents of B sequences, and the map between it and a standard one.

    Attributes:
        z, energy: the mode, (B, S, F) with F = C·D, and (B, m), with m = 0 where there are no energies.
        of_z, by_energy, of_energy: factors of the precision, as in :class:`_Factors`.
        shapes: site -> shape of its value.
        to_site: from unconstrained coordinates to the values of a site.
    """

    z: Tensor
    energy: Tensor
    of_z: Tensor
    by_energy: Tensor
    of_energy: Tensor
    shapes: Mapping[str, torch.Size]
    to_site: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Coordinates of a sequence."""
        return self.z[0].numel() + self.energy.shape[-1]

    @property
    def log_det(self) -> Tensor:
        """Log-determinant (B,) of the map from standard to unconstrained coordinates."""
        diagonals = self.of_z.diagonal(dim1=-2, dim2=-1).flatten(1), self.of_energy.diagonal(dim1=-2, dim2=-1)
        return -torch.cat(diagonals, -1).log().sum(-1)

    def unconstrained(self, w: Tensor) -> dict[str, Tensor]:
        """Site -> unconstrained values (K, B, *site) at standard coordinates w (K, B, size)."""
        of_energy, of_z = w[..., : self.energy.shape[-1]], w[..., self.energy.shape[-1] :]
        energy = _divided(of_energy, self.of_energy)
        z = _divided(of_z.unflatten(-1, self.z.shape[1:]), self.of_z) + self._given(energy)
        free = {site: self.energy + energy for site in self.shapes if site != "z"} | {"z": self.z + z}
        return {site: value.reshape(*w.shape[:2], *self.shapes[site]) for site, value in free.items()}

    def standard(self, free: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unconstrained`: w (K, B, size)."""
        moved = [free[site].flatten(2) - self.energy for site in self.shapes if site != "z"]
        energy = moved[0] if moved else free["z"].new_zeros(*free["z"].shape[:2], 0)
        z = free["z"].flatten(2).unflatten(-1, self.z.shape[1:]) - self.z - self._given(energy)
        return torch.cat([_multiplied(energy, self.of_energy), _multiplied(z, self.of_z).flatten(2)], -1)

    def posterior(self) -> Posterior:
        """Distributions by site: of the energies, and of z given a draw of these."""
        n_capsules, capsule_dim = self.shapes["z"][-2:]
        fold = ReshapeTransform(torch.Size([n_capsules * capsule_dim]), torch.Size([n_capsules, capsule_dim]))
        sites = [site for site in self.shapes if site != "z"]
        if not sites:
            return {"z": _Whitened.distribution(self.z, self.of_z, [fold])}
        (site,) = sites
        shape = self.shapes[site]
        unfold = ReshapeTransform(torch.Size([shape.numel()]), shape)

        def of_z(draws: Mapping[str, Tensor]) -> TorchDistribution:
            free = self.to_site[site].inv(draws[site]).flatten(-len(shape))
            return _Whitened.distribution(self.z + self._given(free - self.energy), self.of_z, [fold])

        energies = _Whitened.distribution(self.energy, self.of_energy, [unfold, self.to_site[site]])
        return {site: energies, "z": of_z}

    def _given(self, energy: Tensor) -> Tensor:
        """By how much energies (..., B, m) away from the mode move z, (..., B, S, F)."""
        return -torch.einsum("bsfm,...bm->...bsf", self.by_energy, energy)


class _Whitened(Transform):
    """``loc + L⁻ᵀ w``: standard normal w (..., n) to a Gaussian of precision ``L Lᵀ``; L (*batch, n, n)."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.loc, self.factor = loc, factor

    @classmethod
    def distribution(cls, loc: Tensor, factor: Tensor, further: list[Any]) -> TorchDistribution:
        """That Gaussian, after further transforms; batch shape that of loc (..., n)."""
        standard = dist.Normal(loc.new_zeros(()), loc.new_ones(())).expand(loc.shape).to_event(1)
        return dist.TransformedDistribution(standard, [cls(loc, factor), *further])

    def _call(self, w: Tensor) -> Tensor:
        return self.loc + _divided(w, self.factor)

    def _inverse(self, y: Tensor) -> Tensor:
        return _multiplied(y - self.loc, self.factor)

    def log_abs_det_jacobian(self, w: Tensor, y: Tensor) -> Tensor:
        return -self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(w.shape[:-1])


def _divided(w: Tensor, factor: Tensor) -> Tensor:
    """``L⁻ᵀ w`` for w (..., *batch, n) and L (*batch, n, n), which is not copied for every particle."""
    columns = _columns(w, factor)
    return torch.linalg.solve_triangular(factor.mT, columns, upper=True).movedim(-1, 0).reshape(w.shape)


def _multiplied(y: Tensor, factor: Tensor) -> Tensor:
    """``Lᵀ y``, the inverse of :func:`_divided`."""
    return (factor.mT @ _columns(y, factor)).movedim(-1, 0).reshape(y.shape)


def _columns(w: Tensor, factor: Tensor) -> Tensor:
    """w (..., *batch, n) as columns, (*batch, n, draws), for L (*batch, n, n)."""
    n_draws = w.shape[: w.dim() - factor.dim() + 1].numel()
    return w.reshape(n_draws, *factor.shape[:-1]).movedim(0, -1)


class _Joint:
    """``log p(x, z, u)`` of B sequences over unconstrained coordinates: z (B, S, F), and the energies' (B, m)."""

    def __init__(
        self,
        model: TVAE,
        x: Tensor,
        observed: Tensor | None,
        measured: Tensor | None,
        tick: Callable[[], object] | None,
    ) -> None:
        self.model, self.observed, self.measured, self.tick = model, observed, measured, tick
        seen = seen_pixels(observed, measured)
        self.x = x if seen is None else torch.where(seen, x, model.likelihood.blank)
        self.seen = None if seen is None else seen.expand(x.shape)
        self.priors: dict[str, Any] = model.prior_distributions()
        sites = [*model.energies, "z"]
        self.shapes = {site: self.priors[site].event_shape for site in sites}
        self.to_site: dict[str, Any] = {site: biject_to(self.priors[site].support) for site in sites}

    def coordinates(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """z (B, S, F) and the energies' coordinates (B, m) of values by site, (B, *site)."""
        z = values["z"].flatten(-2).clone()
        free = [self.to_site[site].inv(values[site]).flatten(1) for site in self.shapes if site != "z"]
        return z, free[0] if free else z.new_zeros(len(z), 0)

    def values(self, z: Tensor, free: Tensor) -> dict[str, Tensor]:
        """Values by site, of coordinates with any dimensions before those of a sequence."""
        made = {"z": z.unflatten(-1, self.shapes["z"][-2:])}
        for site, shape in self.shapes.items():
            if site != "z":
                made[site] = self.to_site[site](free.unflatten(-1, shape))
        return made

    def t(self, z: Tensor, free: Tensor) -> Tensor:
        """What is decoded, (..., S, F)."""
        return self.model.compose(self.values(z, free)).flatten(-2)

    def __call__(self, z: Tensor, free: Tensor) -> Tensor:
        """(B,), nats."""
        frames = of_seen(self.model.decode(self.model.compose(self.values(z, free))), self.observed, self.measured)
        return frames.log_prob(self.x).sum(-1) + self.log_prior(z, free)

    def log_prior(self, z: Tensor, free: Tensor) -> Tensor:
        """Of the coordinates, Jacobian included, (B,)."""
        values = self.values(z, free)
        total = self.priors["z"].log_prob(values["z"])
        for site, shape in self.shapes.items():
            if site != "z":
                coordinates = free.unflatten(-1, shape)
                jacobian = self.to_site[site].log_abs_det_jacobian(coordinates, values[site])
                total = total + self.priors[site].log_prob(values[site]) + jacobian.reshape(len(free), -1).sum(-1)
        return total

    def slope(self, z: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the log-density."""
        with torch.enable_grad():
            z, free = z.clone().requires_grad_(), free.clone().requires_grad_()
            slopes = torch.autograd.grad(self(z, free).sum(), (z, free), materialize_grads=True)
        return slopes[0], slopes[1]

    def pixels(self, t: Tensor) -> Tensor:
        """The likelihood's negative curvature in the decoder's outputs, (B, S, pixels), not negative."""
        outputs = self.model._decoder_outputs(t).detach()
        with torch.enable_grad():
            outputs.requires_grad_()
            density = self.model.likelihood(outputs).log_prob(self.x)
            (slope,) = torch.autograd.grad(density.sum(), outputs, create_graph=True)
            bent = slope.new_zeros(slope.shape)
            if slope.requires_grad:  # a density that is linear in its parameters has none
                (bent,) = torch.autograd.grad(slope.sum(), outputs, materialize_grads=True)
        curvature = (-bent).nan_to_num(0, 0, 0).clamp(min=0)
        return (curvature if self.seen is None else torch.where(self.seen, curvature, 0)).flatten(2)

    def factors(self, z: Tensor, free: Tensor) -> _Factors:
        """Gauss-Newton curvature, factored, sequence by sequence."""
        made = [self._of_one(*one) for one in zip(z, free, self.pixels(self.t(z, free)), strict=True)]
        return _Factors(*(torch.stack(parts) for parts in zip(*made, strict=True)))

    def _of_one(self, z: Tensor, free: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The factors of one sequence: z (S, F), free (m,), pixels (S, pixels)."""
        jacobian = torch.func.vmap(torch.func.jacfwd(self._outputs), chunk_size=CHUNK)(self.t(z, free))
        # What follows subtracts what is nearly the same: in double precision, where the device has it.
        kind = z.dtype if z.device.type == "mps" else torch.float64
        jacobian = (pixels.sqrt().unsqueeze(-1) * jacobian).to(kind)
        gram = jacobian.mT @ jacobian
        # z moves its own element of t alone.
        by_z = torch.func.jvp(lambda z: self.t(z, free), (z,), (torch.ones_like(z),))[1].to(kind)
        precision = (1 / self.priors["z"].variance).nan_to_num().clamp(min=LEAST).flatten(-2).to(kind)
        block = by_z.unsqueeze(-1) * gram * by_z.unsqueeze(-2) + torch.diag_embed(precision.expand(z.shape))
        of_z = _cholesky(block)
        by_free = torch.func.jacfwd(lambda free: self.t(z, free))(free).to(kind)  # (S, F, m)
        moved = gram @ by_free
        cross = by_z.unsqueeze(-1) * moved
        by_energy = torch.cholesky_solve(cross, of_z)

        def slope(free: Tensor) -> Tensor:
            return torch.func.grad(lambda free: self.log_prior(z.unsqueeze(0), free.unsqueeze(0)).sum())(free)

        bent = torch.func.jvp(slope, (free,), (torch.ones_like(free),))[1]
        if self.tick is not None:
            self.tick()
        border = torch.einsum("sfm,sfn->mn", by_free, moved) - torch.einsum("sfm,sfn->mn", cross, by_energy)
        of_energy = _cholesky(border + torch.diag((-bent).clamp(min=LEAST)).to(kind))
        return of_z.to(z), by_energy.to(z), of_energy.to(z)

    def _outputs(self, t: Tensor) -> Tensor:
        return self.model._decoder_outputs(t).flatten()


def _cholesky(matrix: Tensor) -> Tensor:
    """The Cholesky factors of matrices (..., n, n), with a little more on the diagonals of those that rounding broke.

    A Gaussian that is a little narrower is as good to draw from: bounds from it stay bounds.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    share = torch.finfo(matrix.dtype).eps
    while failed.any():
        share *= 10
        if share > 1:
            raise ValueError(
                "LaplaceGuide: the curvature of the decoder at the mode is no number, or none in this precision; judge "
                "the model in double precision, model.double() and guide.double(), or by another guide."
            )
        scale = matrix.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True) * (failed > 0).unsqueeze(-1)
        factor, failed = torch.linalg.cholesky_ex(matrix + torch.diag_embed(share * scale.expand(matrix.shape[:-1])))
    return factor


CHUNK = 8  # frames whose Jacobians are made at once


def _check_sites(model: TVAE) -> None:
    """Raise ValueError where a model has more than a Gaussian at a mode can say, or frames' z that are not free."""
    if is_bayesian(model):
        raise ValueError("LaplaceGuide: the model has random weights, of which it says nothing; fix them, or leave it.")
    alone = standalone({"z": model.prior_distributions()["z"]})
    if alone is None or alone["z"].event_shape:
        raise ValueError(
            f"LaplaceGuide: under {type(model.latent).__name__} elements of z depend on each other, and its precision "
            "is for elements that do not, such as those of NormalLatent; use another guide."
        )
