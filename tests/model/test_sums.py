"""Sums over offsets against the product with W: every topography, all ways of summing, sizes drawn at random."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    ConditionalOrbitGuide,
    FlowGuide,
    GridRoll,
    Matrix,
    MeanFieldGuide,
    NoTopography,
    OrbitCovarianceGuide,
    OrbitEnergy,
    OrbitGuide,
    SequenceGuide,
    Stationary,
    Topography,
    Torus,
)
from pyro_tvae.guides import orbit
from pyro_tvae.topographies import base, sums
from pyro_tvae.topographies.base import BOUNDARIES, pooled
from pyro_tvae.topographies.orbits import Orbits, distinct, partition

# Above how many rows of W it is not multiplied with, up to how many terms there is a convolution, and how many frames
# are transformed at once.
WAYS = {"convolution": (0, 10**9, 480), "transform": (0, 0, 480), "transforms of pieces": (0, 0, 1)}


class Ahead(Topography):
    """A user's list of offsets, none of which is the cell itself, and some of which are longer than an axis."""

    def offsets(self) -> list[tuple[int, ...]]:
        return [(2, 0), (2, 1), (5, -1), (-9, 3), (2, 0)]

    def coefficients(self) -> list[float]:
        return [1.0, 0.5, 2.0, 0.25, 1.0]


MAKERS: dict[str, Callable[..., Topography]] = {
    "roll": lambda k, n, **o: CapsuleRoll(k, n, **o),
    "stationary": lambda k, n, **o: Stationary((k, n + 1), **o),
    "velocity": lambda k, n, **o: GridRoll(k, n, velocity=0.75 - n, **o),
    "own": lambda k, n, **o: Ahead(**o),
    "grid": lambda k, n, **o: GridRoll(k, n, grid=(2, 3), velocity=(1, -0.5), **o),
    "three axes": lambda k, n, **o: GridRoll(k, 0, grid=(2, 3, 2), velocity=(1, 0.25, n), **o),
}
GRIDS = {"grid": 6, "three axes": 12}
CASES = list(itertools.product(MAKERS, BOUNDARIES, (False, True)))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    rows, terms, piece = WAYS[request.param]
    monkeypatch.setattr(base, "ROWS", rows)
    monkeypatch.setattr(sums, "TERMS", terms)
    monkeypatch.setattr(sums, "PIECE", piece)
    monkeypatch.setattr(sums, "CONVOLVED", (torch.float32, torch.float64))
    return str(request.param)


def moved(topography: Topography) -> Topography:
    """With weights away from where they start."""
    if topography.raw_weight is not None:
        with torch.no_grad():
            topography.raw_weight.add_(torch.randn_like(topography.raw_weight))
    return topography


@pytest.mark.parametrize(("name", "boundary", "learned"), CASES)
def test_sums_and_their_gradients_are_those_of_the_product_with_w(
    name: str, boundary: str, learned: bool, way: str
) -> None:
    draw = random.Random(f"{name}{boundary}{learned}")
    for dtype in (torch.float64, torch.float32):
        n_frames, kernel, width = draw.randint(1, 9), draw.randint(1, 12), draw.randint(0, 2)
        n_frames += 120 if way == "transforms of pieces" else 0  # eight times what the offsets reach
        n_positions = GRIDS.get(name) or draw.randint(1, 7)
        topography = moved(MAKERS[name](kernel, width, boundary=boundary, learned=learned)).to(dtype)
        leading = draw.choice([(), (2,), (2, 1, 3)])
        u = torch.randn(*leading, n_frames, draw.randint(1, 3), n_positions, dtype=dtype, requires_grad=True)
        weights = [one for one in (u, topography.raw_weight) if one is not None]
        slope = torch.randn_like(u)

        def answers(v: Tensor, wanted: list[Tensor] = weights, slope: Tensor = slope) -> list[Tensor]:
            return [v, *torch.autograd.grad(v, wanted, slope)]

        expected = answers(pooled(u.square(), topography.neighborhood(n_frames, n_positions).to(dtype)))
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        for one, other in zip(answers(topography.energy(u)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
        assert bool((topography.energy(u) >= 0).all())
        assert not topography._cache or not learned
        in_pieces = [one.hop < n_frames for one in topography._sums.values()]
        assert in_pieces == [way == "transforms of pieces"]


@pytest.mark.parametrize(("topography", "size"), [(Torus((3, 2), (2, 3)), 6), (NoTopography(), 4)])
def test_the_torus_and_no_topography_too(topography: Topography, size: int, way: str) -> None:
    u = torch.randn(2, 5, 3, size)
    torch.testing.assert_close(topography.energy(u), pooled(u.square(), topography.neighborhood(5, size)))


@pytest.mark.parametrize(
    ("name", "boundary"), [("roll", "truncate"), ("own", "circular"), ("grid", "truncate"), ("grid", "open")]
)
def test_gradients_of_gradients(name: str, boundary: str, way: str) -> None:
    topography = MAKERS[name](3, 1, boundary=boundary, learned=True).double()
    raw = topography.raw_weight
    assert raw is not None
    e = torch.rand(1, 3, 1, GRIDS.get(name, 3), dtype=torch.float64, requires_grad=True)

    def energies(e: Tensor, weights: Tensor) -> Tensor:
        return torch.func.functional_call(Pooling(topography), {"topography.raw_weight": weights}, (e,))

    assert torch.autograd.gradcheck(energies, (e, raw))
    assert torch.autograd.gradgradcheck(energies, (e, raw))


class Pooling(nn.Module):
    def __init__(self, topography: Topography) -> None:
        super().__init__()
        self.topography = topography

    def forward(self, e: Tensor) -> Tensor:
        return self.topography.pool(e, signed=True)


def test_transforms_of_functions(way: str) -> None:
    """vmap, jacrev and jvp of a fixed topography, first met inside them, and what is kept serves ordinary calls."""
    topography = CapsuleRoll(3, 1, boundary="truncate")
    e = torch.rand(4, 5, 2, 6)
    w = topography.neighborhood(5, 6)
    one = torch.func.grad(lambda e: topography.pool(e).square().sum())(e)
    torch.testing.assert_close(one, 2 * pooled(pooled(e, w), w.mT))
    torch.testing.assert_close(torch.vmap(topography.pool)(e), pooled(e, w))
    _, forward = torch.func.jvp(topography.pool, (e,), (e,))
    torch.testing.assert_close(forward, pooled(e, w))
    torch.testing.assert_close(topography.pool(e), pooled(e, w))


@pytest.mark.parametrize("learned", [False, True])
def test_exported_and_on_meta(learned: bool, way: str) -> None:
    if way.startswith("transform") and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 exports no Fourier transforms")
    module = Pooling(CapsuleRoll(4, 1, learned=learned))
    e = torch.rand(3, 5, 2, 6)
    module(e)
    sizes = {"e": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(module, (e,), dynamic_shapes=sizes, strict=False).module()
    other = torch.rand(7, 5, 2, 6)
    torch.testing.assert_close(program(other), module(other))
    assert module.to("meta")(e.to("meta")).shape == e.shape


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("learned", [False, True])
def test_the_transpose_is_summed_in_the_opposite_direction(boundary: str, learned: bool, way: str) -> None:
    topography = moved(Ahead(boundary=boundary, learned=learned))
    w = topography.neighborhood(6, 5).detach()
    (fixed, weights), (turned, its) = topography.fixed(6, 5), topography.fixed(6, 5, transposed=True)
    votes = torch.randn(3, 6, 2, 5)
    if learned:
        with torch.no_grad():
            topography.raw_weight.zero_()  # type: ignore[union-attr]
    torch.testing.assert_close(fixed.sum(weights, votes), pooled(votes, w), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned.sum(its, votes), pooled(votes, w.mT), rtol=1e-5, atol=1e-5)
    assert not list(fixed.parameters())
    assert not fixed.state_dict()


def test_a_matrix_of_ones_own_stays_one() -> None:
    w = torch.rand(800, 800)
    topography = Matrix(w)
    e, (turned, its) = torch.rand(80, 2, 10), topography.fixed(80, 10, transposed=True)
    assert torch.equal(topography.pool(e), pooled(e, w))
    torch.testing.assert_close(turned.sum(its, e), pooled(e, w.mT), rtol=1e-5, atol=0)

    class Halved(CapsuleRoll):
        def neighborhood(self, n_frames: int, n_positions: int) -> Tensor:
            return super().neighborhood(n_frames, n_positions) / 2

    torch.testing.assert_close(Halved(3).pool(e), CapsuleRoll(3).pool(e) / 2)


def test_small_energies_keep_their_digits_beside_large_ones(way: str) -> None:
    e = torch.full((40, 1, 6), 1e-4)
    e[7] = 1e4
    topography = CapsuleRoll(3, 0)
    exact = pooled(e.double(), topography.neighborhood(40, 6).double())
    torch.testing.assert_close(topography.pool(e).double(), exact, rtol=1e-6, atol=0)


def test_small_lattices_go_on_by_the_product() -> None:
    """The published sizes, 18 x 18 and 15 x 15, bit for bit; twice as many frames are summed."""
    topography = CapsuleRoll(13, 1)
    for frames in (15, 18):
        e = torch.rand(2, frames, 3, frames)
        assert torch.equal(topography.pool(e), pooled(e, topography.neighborhood(frames, frames)))
    assert not topography._sums
    topography.pool(torch.rand(2, 36, 3, 18))
    assert topography._sums


def test_a_matrix_that_is_too_large_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"would be 18,000 x 18,000 numbers, 1.2 GiB; expected .* use pool") as caught:
        CapsuleRoll().neighborhood(1000, 18)
    assert "\n" not in str(caught.value)


GROUPS = [(kernel, width, frames, size) for kernel in (1, 2, 3, 4, 6, 9, 12) for width in (0, 1) for frames, size in
          ((1, 4), (4, 1), (3, 3), (4, 4), (6, 4), (4, 6), (5, 2))]  # fmt: skip


def on_the_line(topography: Topography, frames: int, size: int) -> Orbits | None:
    """The orbits of a lattice, read off W; where positions are open, off that of a capsule with more on both sides.

    Of the long capsule only rows are compared that are whole, those that its ends do not cut: enough of them for any
    two neighborhoods that meet.
    """
    if topography.boundary != "open":
        return distinct(topography.neighborhood(frames, size), frames)
    reach = max(abs(offset[1]) for offset in topography.offsets())
    w = topography.neighborhood(frames, size + 4 * reach).view(frames, size + 4 * reach, -1)
    whole = w[:, reach : reach + size + 2 * reach].flatten(0, 1)
    rows, index = torch.unique(whole, dim=0, return_inverse=True)
    stretch = index.view(frames, -1)[:, reach : reach + size]
    if not bool(((rows == 0) | (rows == 1)).all()) or bool((rows.sum(0) > 1).any()) or bool((rows.sum(1) == 0).any()):
        return None
    names, index = torch.unique(stretch, return_inverse=True)
    return Orbits(index, rows[names].sum(1).long())


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("make", ["roll", "stationary", "velocity", "back", "own", "pieces"])
def test_orbits_are_the_distinct_rows_of_w(make: str, boundary: str) -> None:
    makers = MAKERS | {
        "back": lambda k, n, **o: GridRoll(k, 0, velocity=-n - 1, **o),
        "pieces": lambda k, n, **o: GridRoll(k, n, velocity=0.5, **o),
    }
    met = 0
    for kernel, width, frames, size in GROUPS:
        topography = makers[make](kernel, width, boundary=boundary)
        expected = on_the_line(topography, frames, size)
        sizes = (frames, size)
        orbits = partition(topography.offsets(), topography.coefficients(), sizes, topography.wraps(sizes))
        assert (orbits is None) == (expected is None), (kernel, width, frames, size)
        if orbits is not None and expected is not None:
            met += 1
            pairs = {*zip(orbits.index.flatten().tolist(), expected.index.flatten().tolist(), strict=True)}
            assert len(pairs) == len(orbits.size) == len(expected.size)
            assert boundary == "open" or all(own == other for own, other in pairs)  # in the order of the rows
            assert all(orbits.size[own] == expected.size[other] for own, other in pairs)
    assert met > 3 or make == "own"


def test_orbits_of_a_lattice_whose_matrix_would_be_too_large() -> None:
    orbits = CapsuleRoll(180, 0).orbits(180, 180)
    place, frame = torch.arange(180), torch.arange(180)[:, None]
    assert orbits.size.tolist() == [180] * 180
    along = (place - frame) % 180  # what rolls with the frames
    assert len({*zip(along.flatten().tolist(), orbits.index.flatten().tolist(), strict=True)}) == 180
    blocks = Stationary((2000, 1)).orbits(2000, 18)
    assert torch.equal(blocks.index, torch.arange(17, -1, -1).expand(2000, 18))


@pytest.mark.parametrize("guide", [MeanFieldGuide, SequenceGuide, FlowGuide])
def test_long_sequences_are_modeled(guide: type) -> None:
    model = TVAE((1, 2, 2), 1500, 2, 12, CapsuleRoll(3, 1))
    x = torch.rand(1, 1500, 1, 2, 2)
    values = guide(model)(x)
    t = model.compose(values)
    assert t.shape == (1, 1500, 2, 12)
    assert bool(t.isfinite().all())
    t.sum().backward()


def test_votes_over_many_orbits_are_summed_as_over_few(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TVAE((1, 2, 2), 6, 2, 6, CapsuleRoll(6, 0), prior=OrbitEnergy())
    x = torch.rand(2, 6, 1, 2, 2)
    for kind in (OrbitGuide, ConditionalOrbitGuide, OrbitCovarianceGuide):
        guide = kind(model)
        monkeypatch.setattr(orbit, "PRODUCT", 0)
        scattered = kind(model)
        monkeypatch.undo()
        scattered.load_state_dict(guide.state_dict())
        one, other = (each.posterior(x)["e"] for each in (guide, scattered))
        value = torch.rand(2, 2, 6)
        torch.testing.assert_close(one.log_prob(value), other.log_prob(value))  # type: ignore[union-attr]


def test_long_sequences_have_orbits() -> None:
    model = TVAE((1, 2, 2), 1500, 2, 4, Stationary((1500, 1)), prior=OrbitEnergy())
    assert model.prior_distributions()["e"].mean.unique().tolist() == [1500.0]
    assert math.prod(model.energy(torch.rand(2, 4)).shape) == 1500 * 8
