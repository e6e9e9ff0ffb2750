"""Vectors of uniform direction: their density, their divergence, and the guide that pools their lengths."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from complaints import refused
from scipy import stats
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    GridRoll,
    Matrix,
    OrbitEnergy,
    RadialGuide,
    Stationary,
    Topography,
    Torus,
)
from pyro_tvae.guides.radial import Radial

FRAME, S, C, D = (1, 4, 4), 6, 2, 6


def model_of(topography: Topography | None = None, positions: int = D) -> TVAE:
    return TVAE(FRAME, S, C, positions, topography or CapsuleRoll(S, 1), mu=2.0).double()


def posterior(guide: RadialGuide, n: int = 3) -> Radial:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        u = guide.posterior(torch.rand(n, S, *FRAME, dtype=torch.float64))["u"]
    assert isinstance(u, Radial)
    return u


def test_with_chi_squares_it_is_the_standard_normal() -> None:
    """In density exactly, and as drawn: every latent by a Kolmogorov-Smirnov test, 1 in 10,000 seeds a false alarm."""
    q = posterior(RadialGuide(model_of()).double())
    half = torch.full((1, C, D), S / 2, dtype=torch.float64)
    normal = Radial(dist.Gamma(half, torch.full_like(half, 0.5)), q.index, q.size)
    torch.manual_seed(0)
    u = normal.rsample(torch.Size([4000]))
    torch.testing.assert_close(normal.log_prob(u), stats_normal(u))
    for value in (u[:, 0, 0, 0, 0], u[:, 0, 3, 1, 2], (u[:, 0, 0, 0, 0] + u[:, 0, 1, 0, 1]) / math.sqrt(2)):
        assert stats.kstest(value.numpy(), "norm").pvalue > 1e-4 / 3


def stats_normal(u: Tensor) -> Tensor:
    return dist.Normal(0.0, 1.0).log_prob(u).sum((-1, -2, -3))


def test_its_density_is_that_of_the_polar_transform() -> None:
    """Two latents a path: u = sqrt(e) (cos a, sin a), a uniform; the Jacobian by autograd."""
    index = torch.arange(3).repeat(2, 1)
    squares = dist.LogNormal(torch.randn(1, 1, 3, dtype=torch.float64), 0.7)
    q = Radial(squares, index, torch.full((3,), 2.0, dtype=torch.float64))

    def polar(parameters: Tensor) -> Tensor:
        e, angle = parameters
        return e.sqrt() * torch.stack([angle.cos(), angle.sin()])

    expected, u = torch.zeros((), dtype=torch.float64), torch.empty(1, 2, 1, 3, dtype=torch.float64)
    for path in range(3):
        parameters = torch.rand(2, dtype=torch.float64) + 0.5
        jacobian = torch.autograd.functional.jacobian(polar, parameters)
        law = dist.LogNormal(squares.loc[0, 0, path], squares.scale[0, 0, path])
        expected = expected + law.log_prob(parameters[0]) - math.log(2 * math.pi) - jacobian.det().abs().log()
        u[0, :, 0, path] = polar(parameters)
    torch.testing.assert_close(q.log_prob(u)[0], expected)


@pytest.mark.parametrize("standard", [True, False])
def test_its_divergence_from_independent_normals_is_exact(standard: bool) -> None:
    """Against the mean of log q − log p over 20,000 draws: five standard errors, six sequences, 1 in 250,000."""
    model = model_of()
    q, p = posterior(RadialGuide(model).double()), model.prior_distributions()["u"]
    if not standard:
        mean, scale = torch.randn(2, S, C, D, dtype=torch.float64)
        p = dist.Normal(mean, scale.exp()).to_event(3)
    torch.manual_seed(1)
    u = q.rsample(torch.Size([20_000]))
    ratio = q.log_prob(u) - p.log_prob(u)
    exact = kl_divergence(q, p)
    assert exact.shape == (3,)
    assert ((ratio.mean(0) - exact).abs() < 5 * ratio.std(0) / math.sqrt(20_000)).all()
    assert (exact > 20 * ratio.std(0) / math.sqrt(20_000)).all()


def test_no_divergence_from_anything_else_is_claimed() -> None:
    q = posterior(RadialGuide(model_of()).double())
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Laplace(torch.zeros(()), torch.ones(())).expand((S, C, D)).to_event(3))
    half = torch.full((1, C, D), S / 2)
    with pytest.raises(NotImplementedError):
        kl_divergence(Radial(dist.Gamma(half, half), q.index, q.size), model_of().prior_distributions()["u"])


def test_its_moments_are_those_of_its_draws() -> None:
    q = posterior(RadialGuide(model_of()).double(), n=1)
    torch.manual_seed(0)
    u = q.rsample(torch.Size([40_000]))
    error = u.square().std(0) / 200
    # 72 latents, two moments each: 5.5 standard errors, a false alarm in 100,000 seeds.
    assert (u.mean(0).abs() < 5.5 * u.std(0) / 200).all()
    assert ((u.square().mean(0) - q.variance).abs() < 5.5 * error).all()
    assert torch.equal(q.mean, torch.zeros_like(q.mean))


PATHS: dict[str, tuple[Topography, tuple[int, ...], int]] = {
    "roll": (CapsuleRoll(4, 1), (1,), D),
    "box": (Stationary((3, 2)), (0,), D),
    "no neighbors in time": (Stationary((1, 3)), (0,), D),
    "two a frame": (GridRoll(3, velocity=2.0), (2,), D),
    "grid": (GridRoll(3, grid=(2, 3), velocity=(1, 0)), (1, 0), D),
    "torus": (Torus((2, 2), (2, 3)), (0, 0), D),
    "learned": (CapsuleRoll(5, 1, learned=True), (1,), 9),
    "truncated": (CapsuleRoll(5, 1, boundary="truncate"), (1,), 4),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_follow_the_roll(name: str) -> None:
    """Each position of the first frame goes on by the velocity, walked frame by frame."""
    topography, velocity, positions = PATHS[name]
    guide = RadialGuide(model_of(topography, positions))
    grid = topography.grid or (positions,)
    for first in range(positions):
        place = list(torch.unravel_index(torch.tensor(first), grid))
        for frame in range(S):
            here = 0
            for one, size in zip(place, grid, strict=True):
                here = here * size + int(one)
            assert guide.index[frame, here] == first
            place = [(one + step) % size for one, step, size in zip(place, velocity, grid, strict=True)]
    assert torch.equal(guide.size, torch.full((positions,), float(S), dtype=guide.size.dtype))


def test_shifting_the_sequence_shifts_the_posterior() -> None:
    guide = RadialGuide(model_of()).double()
    posterior(guide)
    x = torch.rand(2, S, *FRAME, dtype=torch.float64)
    one, two = guide.posterior(x)["u"].variance, guide.posterior(x.roll(1, dims=1))["u"].variance
    torch.testing.assert_close(two, one.roll(1, dims=1))
    assert (two - one).abs().max() > 1e-3


def test_a_frame_that_was_not_seen_casts_no_vote() -> None:
    guide = RadialGuide(model_of()).double()
    posterior(guide)
    x, observed = torch.rand(2, S, *FRAME, dtype=torch.float64), torch.arange(S) < 3
    other = torch.where(observed[:, None, None, None], x, torch.rand_like(x))
    one, two = (guide.posterior(value, observed)["u"].variance for value in (x, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, guide.posterior(x)["u"].variance)


def test_what_makes_no_sense_is_refused() -> None:
    orbits = TVAE(FRAME, S, C, D, CapsuleRoll(S, 0), prior=OrbitEnergy())
    assert "expected GaussianEnergy" in refused(lambda: RadialGuide(orbits))
    matrix = model_of(Matrix(torch.eye(S * D)))
    assert "Matrix is no list of offsets" in refused(lambda: RadialGuide(matrix))
    RadialGuide(matrix, velocity=1)
    assert "expected whole positions" in refused(lambda: RadialGuide(model_of(), velocity=0.5))  # type: ignore[arg-type]
    assert "positions have 1 axes" in refused(lambda: RadialGuide(model_of(), velocity=(1, 1)))
