"""Neighbourhood matrices against loops written from the model's definition, and what follows from them exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_tvae import CapsuleRoll, NoTopography, Stationary, Topography, Torus, roll
from pyro_tvae.topographies.base import BOUNDARIES, window

# S and D differ both ways; 4 is shorter than most kernels below, so that windows overlap themselves.
SIZES = [(1, 6), (4, 6), (6, 4), (5, 5), (9, 2)]


def offsets(k: int) -> list[int]:
    """D_k = {-(k-1-k//2), …, +k//2}, collected one by one."""
    return [d for d in range(-2 * k, 2 * k + 1) if -(k - 1 - k // 2) <= d <= k // 2]


def brute_force(n_frames: int, n_positions: int, boundary: str, terms: Callable[[int, int], bool], *k: int) -> Tensor:
    """W entry by entry: how often u[m, q] is met from v[l, p] by an allowed pair of offsets."""
    kt, kp = k
    w = torch.zeros(n_frames * n_positions, n_frames * n_positions)
    for l in range(n_frames):  # noqa: E741 - the model's own index
        for p in range(n_positions):
            for m in range(n_frames):
                for q in range(n_positions):
                    met = 0
                    for dt in offsets(kt):
                        for dp in offsets(kp):
                            frames, positions = l + dt - m, p + dp - q
                            same_frame = (frames if boundary != "circular" else frames % n_frames) == 0
                            same_position = (positions if boundary == "open" else positions % n_positions) == 0
                            met += terms(dt, dp) and same_frame and same_position
                    w[l * n_positions + p, m * n_positions + q] = met
    return w


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("n_frames", "n_positions"), SIZES)
@pytest.mark.parametrize(("kernel", "width"), [(1, 0), (2, 0), (2, 1), (3, 1), (4, 0), (4, 2), (5, 1), (6, 9)])
def test_capsule_roll_equals_the_loops(n_frames: int, n_positions: int, kernel: int, width: int, boundary: str) -> None:
    expected = brute_force(n_frames, n_positions, boundary, lambda dt, dp: abs(dt - dp) <= width, kernel, kernel)
    w = CapsuleRoll(kernel, width, boundary=boundary).neighborhood(n_frames, n_positions)
    assert torch.equal(w, expected)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("n_frames", "n_positions"), SIZES)
@pytest.mark.parametrize("kernel", [(1, 3), (5, 3), (2, 4), (4, 1), (3, 2), (1, 1)])
def test_stationary_equals_the_loops(n_frames: int, n_positions: int, kernel: tuple[int, int], boundary: str) -> None:
    expected = brute_force(n_frames, n_positions, boundary, lambda dt, dp: True, *kernel)
    assert torch.equal(Stationary(kernel, boundary=boundary).neighborhood(n_frames, n_positions), expected)


@pytest.mark.parametrize("n_frames", [1, 2])
@pytest.mark.parametrize(("kernel", "grid"), [((3, 3), (4, 3)), ((2, 3), (3, 4)), ((5, 4), (2, 3)), ((1, 2), (3, 3))])
def test_torus_equals_the_loops(n_frames: int, kernel: tuple[int, int], grid: tuple[int, int]) -> None:
    rows, columns = grid
    size = rows * columns
    expected = torch.zeros(n_frames * size, n_frames * size)
    for frame in range(n_frames):
        for r in range(rows):
            for c in range(columns):
                for r2 in range(rows):
                    for c2 in range(columns):
                        met = sum(
                            (r + dr - r2) % rows == 0 and (c + dc - c2) % columns == 0
                            for dr in offsets(kernel[0])
                            for dc in offsets(kernel[1])
                        )
                        expected[frame * size + r * columns + c, frame * size + r2 * columns + c2] = met
    assert torch.equal(Torus(kernel, grid).neighborhood(n_frames, size), expected)


def test_no_topography_has_a_zero_matrix_and_no_energy() -> None:
    assert torch.equal(NoTopography().neighborhood(3, 4), torch.zeros(12, 12))
    assert torch.equal(NoTopography().energy(torch.randn(2, 3, 1, 4)), torch.zeros(2, 3, 1, 4))


def test_even_kernels_reach_further_ahead() -> None:
    assert list(window(1)) == [0]
    assert list(window(2)) == [0, 1]
    assert list(window(3)) == [-1, 0, 1]
    assert list(window(4)) == [-1, 0, 1, 2]
    # v[l] = u[l]² + u[l + 1]²: a row of the matrix looks ahead, never back.
    expected = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]])
    assert torch.equal(Stationary((2, 1)).neighborhood(4, 1), expected)
    expected[3, 0] = 0
    assert torch.equal(Stationary((2, 1), boundary="truncate").neighborhood(4, 1), expected)


def test_the_band_is_cut_at_the_ends_of_the_window() -> None:
    # k = 3, n = 1 leaves out (-1, 1) and (1, -1): seven terms, not nine, although -1 and 1 are neighbours modulo 3.
    assert CapsuleRoll(3, 1).neighborhood(7, 7).sum(1).eq(7).all()


TOPOGRAPHIES = {
    "roll": lambda: CapsuleRoll(3, 1),
    "roll, even, truncated": lambda: CapsuleRoll(4, 1, boundary="truncate"),
    "stationary": lambda: Stationary((2, 3)),
    "torus": lambda: Torus((3, 2), (2, 3)),
    "learned": lambda: CapsuleRoll(3, 0, learned=True),
}


@pytest.mark.parametrize("build", TOPOGRAPHIES.values(), ids=TOPOGRAPHIES)
@pytest.mark.parametrize("leading", [(), (2,), (3, 2)])
def test_energy_is_w_times_u_squared(build: Callable[[], Topography], leading: tuple[int, ...]) -> None:
    topography = build().double()
    n_frames, n_capsules, n_positions = 4, 2, 6
    u = torch.randn(*leading, n_frames, n_capsules, n_positions, dtype=torch.float64)
    w = topography.neighborhood(n_frames, n_positions).detach()
    v = topography.energy(u).detach()
    assert v.shape == u.shape
    for index in torch.cartesian_prod(*(torch.arange(size) for size in (*leading, 1))).reshape(-1, len(leading) + 1):
        one, energy = u[tuple(index[:-1])], v[tuple(index[:-1])]
        for l in range(n_frames):  # noqa: E741
            for c in range(n_capsules):
                for p in range(n_positions):
                    expected = sum(
                        float(w[l * n_positions + p, m * n_positions + q]) * float(one[m, c, q]) ** 2
                        for m in range(n_frames)
                        for q in range(n_positions)
                    )
                    assert float(energy[l, c, p]) == pytest.approx(expected, rel=1e-10)


def test_energies_without_a_capsule_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(\.\.\., frame, capsule, position\)"):
        CapsuleRoll(3).energy(torch.randn(4, 4))


def test_a_matrix_first_needed_in_inference_mode_serves_training_later() -> None:
    topography = CapsuleRoll(3)
    with torch.inference_mode():
        topography.energy(torch.randn(4, 1, 4))
    u = torch.randn(4, 1, 4, requires_grad=True)
    topography.energy(u).sum().backward()
    assert u.grad is not None


@pytest.mark.parametrize("make", [lambda **k: CapsuleRoll(4, 1, **k), lambda **k: Stationary((3, 2), **k)])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_learned_weights_start_at_the_fixed_ones(make: Callable[..., Topography], boundary: str) -> None:
    fixed, learned = make(boundary=boundary), make(boundary=boundary, learned=True)
    assert learned.raw_weight is not None
    assert fixed.raw_weight is None
    torch.testing.assert_close(learned.neighborhood(5, 4), fixed.neighborhood(5, 4), rtol=0, atol=1e-6)


def test_learned_weights_get_gradients_and_never_turn_negative() -> None:
    topography = CapsuleRoll(3, 1, learned=True)
    raw = topography.raw_weight
    assert raw is not None
    u = torch.randn(5, 2, 4)
    topography.energy(u).square().sum().backward()
    assert raw.grad is not None
    assert (raw.grad != 0).all()
    with torch.no_grad():
        raw.copy_(torch.linspace(-50, 50, len(raw)))
    changed = topography.energy(u)
    assert (topography.neighborhood(5, 4) >= 0).all()
    # A changed weight must show at once: a cached matrix would not.
    rows = u.square().transpose(-3, -2).flatten(-2)
    expected = (rows @ topography.neighborhood(5, 4).T).unflatten(-1, (5, 4)).transpose(-3, -2)
    torch.testing.assert_close(changed, expected)


@pytest.mark.parametrize("size", [2, 5, 6])
def test_full_kernel_of_width_zero_is_exactly_equivariant(size: int) -> None:
    v = CapsuleRoll(size, 0).energy(torch.randn(3, size, 2, size, dtype=torch.float64))
    for frame in range(size):
        torch.testing.assert_close(roll(v[:, frame], 1), v[:, (frame + 1) % size], rtol=1e-13, atol=1e-13)


def test_a_shorter_kernel_rolls_only_nearly() -> None:
    """Control of the test above: it would see a topography that does not roll."""
    u = torch.randn(3, 5, 2, 5)
    for topography in (CapsuleRoll(3, 0), Stationary((5, 2))):
        v = topography.energy(u)
        assert (roll(v[:, 0], 1) - v[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("shift", [0, 1, -1, 4, 5, -7, 23])
def test_roll_by_one_number_is_torch_roll(shift: int) -> None:
    t = torch.randn(3, 2, 5)
    assert torch.equal(roll(t, shift), torch.roll(t, shift, dims=-1))
    assert torch.equal(roll(t, torch.tensor(shift)), torch.roll(t, shift, dims=-1))


def test_roll_by_one_shift_per_row_is_torch_roll_row_by_row() -> None:
    t = torch.randn(3, 2, 5)
    shift = torch.randint(-9, 10, (3, 2))
    expected = torch.stack([torch.stack([torch.roll(t[n, c], int(shift[n, c])) for c in range(2)]) for n in range(3)])
    assert torch.equal(roll(t, shift), expected)
    per_sequence = torch.stack([torch.roll(t[n], int(shift[n, 0]), dims=-1) for n in range(3)])
    assert torch.equal(roll(t, shift[:, :1]), per_sequence)
    # Without a way back, position by position; what enters broadcasts.
    entering = torch.arange(5.0) + 10
    for s in (-7, -2, 0, 3, 5):
        expected = torch.tensor([float(t[0, 0, p - s]) if 0 <= p - s < 5 else 10.0 + p for p in range(5)])
        assert torch.equal(roll(t[0, 0], s, entering), expected)
        assert torch.equal(roll(t[:1], torch.tensor([[s]]), entering)[0, 0], expected)
    # A shift may also add dimensions: every roll of one capsule.
    assert torch.equal(roll(t[0, 0], torch.arange(5)), torch.stack([torch.roll(t[0, 0], s) for s in range(5)]))


@pytest.mark.parametrize("shift", [0.5, True])
def test_roll_refuses_fractions_of_positions_and_truths(shift: float) -> None:
    with pytest.raises(TypeError, match="whole positions"):
        roll(torch.randn(5), torch.tensor(shift))


@pytest.mark.parametrize(
    ("topography", "n_frames", "n_positions", "n_orbits"),
    [
        (CapsuleRoll(5, 0), 5, 5, 5),
        (CapsuleRoll(4, 0), 4, 4, 4),
        (Stationary((4, 1)), 4, 3, 3),
        (CapsuleRoll(1, 0), 2, 3, 6),
    ],
)
def test_orbits_partition_the_lattice(topography: Topography, n_frames: int, n_positions: int, n_orbits: int) -> None:
    orbits = topography.orbits(n_frames, n_positions)
    index, size = orbits.index, orbits.size
    assert index.shape == (n_frames, n_positions)
    assert len(size) == n_orbits
    assert torch.equal(index.flatten().bincount(), size)
    # Two cells share an orbit exactly where W couples them.
    flat = index.flatten()
    assert torch.equal(flat[:, None] == flat[None, :], topography.neighborhood(n_frames, n_positions) == 1)


@pytest.mark.parametrize(
    "topography",
    [
        CapsuleRoll(5, 1),
        CapsuleRoll(3, 0),
        CapsuleRoll(6, 0),
        Stationary((5, 2)),
        CapsuleRoll(5, 0, learned=True),
        CapsuleRoll(5, 0, boundary="truncate"),
        NoTopography(),
    ],
    ids=lambda topography: f"{type(topography).__name__}({topography.extra_repr()})",
)
def test_neighbourhoods_that_overlap_have_no_orbits(topography: Topography) -> None:
    with pytest.raises(ValueError, match="no disjoint orbits"):
        topography.orbits(5, 5)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: CapsuleRoll(0), "expected kernel >= 1"),
        (lambda: CapsuleRoll(3, -1), "width >= 0"),
        (lambda: CapsuleRoll(3, boundary="reflect"), "expected one of circular, truncate"),
        (lambda: Stationary((1, 2, 3)), "two whole numbers"),
        (lambda: Stationary((0, 2)), "at least 1"),
        (lambda: Torus((3, 3), (0, 3)), "at least 1"),
        (lambda: Torus((3, 3), (2, 3)).neighborhood(1, 5), "has 6 positions, but the capsule has 5"),
    ],
)
def test_wrong_arguments_get_one_sentence(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("n_frames", "n_positions"), [(1, 3), (3, 3), (4, 3), (3, 5), (5, 2)])
def test_an_open_capsule_shows_a_stretch_of_an_endless_line(n_frames: int, n_positions: int) -> None:
    """Orbits against sums on a line so long that no diagonal of the window leaves it: one χ² of S terms a diagonal."""
    orbits = CapsuleRoll(2 * n_frames - 1, 0, boundary="open").orbits(n_frames, n_positions)
    assert len(orbits.size) == n_positions + n_frames - 1
    margin = n_frames - 1
    line = brute_force(
        n_frames, n_positions + 2 * margin, "open", lambda dt, dp: dt == dp, 2 * n_frames - 1, 2 * n_frames - 1
    ).view(n_frames, n_positions + 2 * margin, -1)[:, margin : margin + n_positions]
    # The covariance of χ² sums is twice the number of terms that they share.
    shared = line.flatten(0, 1) @ line.flatten(0, 1).T
    same = orbits.index.flatten()[:, None] == orbits.index.flatten()
    assert torch.equal(shared, same * orbits.size[orbits.index].flatten().float())
    assert orbits.size.unique().tolist() == [n_frames]


@pytest.mark.parametrize("n_positions", [3, 5, 8])
def test_orbits_of_frames_that_do_not_wrap_need_not_be_as_many_as_positions(n_positions: int) -> None:
    """Whole diagonals on a ring of any D; where D = S they are those of the closed lattice."""
    topography = CapsuleRoll(9, 0, boundary="truncate")
    orbits = topography.orbits(5, n_positions)
    assert orbits.size.tolist() == [5] * n_positions
    if n_positions == 5:
        assert torch.equal(topography.neighborhood(5, 5), CapsuleRoll(5, 0).neighborhood(5, 5))


class OwnOffsets(CapsuleRoll):
    """Offsets that count as much as a number of its own says."""

    def __init__(self, trained: bool) -> None:
        super().__init__(3, 0)
        self.raw = torch.nn.Parameter(torch.zeros(()), requires_grad=trained)

    def weight(self) -> Tensor:
        return self.raw.exp() * torch.ones(len(self.offsets()))


class OwnMatrix(OwnOffsets):
    """The same as a matrix."""

    def neighborhood(self, n_frames: int, n_positions: int) -> Tensor:
        return self.raw.exp() * CapsuleRoll(3, 0).neighborhood(n_frames, n_positions)


@pytest.mark.parametrize("kind", [OwnOffsets, OwnMatrix])
@pytest.mark.parametrize("n_frames", [4, 300])
def test_what_an_own_topography_is_made_of_counts_as_it_is_now(kind: type[OwnOffsets], n_frames: int) -> None:
    if kind is OwnMatrix and n_frames > 4:
        return  # no list of offsets to be summed over
    u, trained, frozen = torch.randn(n_frames, 1, 4), kind(True), kind(False)
    expected = CapsuleRoll(3, 0).energy(u)
    for _ in range(2):  # a second step, through a graph of its own
        (gradient,) = torch.autograd.grad(trained.energy(u).sum(), trained.raw)
        assert float(gradient) == pytest.approx(float(expected.sum()), rel=1e-4)
    assert torch.allclose(frozen.energy(u), expected)
    frozen.load_state_dict({"raw": torch.tensor(2.0).log()})
    assert torch.allclose(frozen.energy(u), 2 * expected)
    with torch.no_grad():
        frozen.raw.copy_(torch.tensor(3.0).log())
    assert torch.allclose(frozen.energy(u), 3 * expected, rtol=1e-4)
    assert len(frozen._cache) == 1
