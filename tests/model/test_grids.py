"""Rolls over grids and matrices of a user's against loops written from their definitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_tvae import TVAE, CapsuleRoll, GridRoll, Matrix, MeanFieldGuide, OrbitEnergy, Torus, load, roll, save

BOUNDARIES = ("circular", "truncate")


def hat(distance: float, size: int) -> float:
    """Linear interpolation on a circle: how much of a term that falls ``distance`` away a cell gets, all laps."""
    return sum(max(0.0, 1 - abs(distance + lap * size)) for lap in range(-40, 41))


def brute_force(
    n_frames: int, grid: tuple[int, ...], kernel: int, width: int, velocity: tuple[float, ...], boundary: str
) -> Tensor:
    """W entry by entry, from the definition: a term at p + velocity · dt + d, split between the cells around it."""
    cells = list(itertools.product(*(range(size) for size in grid)))
    w = torch.zeros(n_frames, len(cells), n_frames, len(cells), dtype=torch.float64)
    reach = range(-(kernel - 1 - kernel // 2), kernel // 2 + 1)
    for l in range(n_frames):  # noqa: E741 - the model's own index
        for i, p in enumerate(cells):
            for dt in reach:
                m = l + dt
                if boundary == "truncate" and not 0 <= m < n_frames:
                    continue
                for d in itertools.product(range(-width, width + 1), repeat=len(grid)):
                    for j, q in enumerate(cells):
                        w[l, i, m % n_frames, j] += math.prod(
                            hat(q[a] - (p[a] + velocity[a] * dt + d[a]), grid[a]) for a in range(len(grid))
                        )
    return w.reshape(n_frames * len(cells), -1)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    ("n_frames", "grid", "kernel", "width", "velocity"),
    [
        (4, (5,), 3, 0, (1.0,)),
        (4, (5,), 4, 1, (2.0,)),
        (5, (4,), 3, 0, (0.5,)),
        (3, (6,), 3, 1, (-1.25,)),
        (4, (3,), 6, 0, (0.0,)),
        (3, (3, 4), 3, 0, (1.0, 0.5)),
        (3, (3, 3), 2, 1, (0.0, -1.0)),
        (2, (2, 3, 2), 3, 0, (1.0, 0.25, -0.5)),
    ],
)
def test_rolls_over_grids_equal_the_loops(
    n_frames: int, grid: tuple[int, ...], kernel: int, width: int, velocity: tuple[float, ...], boundary: str
) -> None:
    w = GridRoll(kernel, width, grid=grid, velocity=velocity, boundary=boundary)
    found = w.neighborhood(n_frames, math.prod(grid)).double()
    torch.testing.assert_close(found, brute_force(n_frames, grid, kernel, width, velocity, boundary), rtol=0, atol=1e-6)
    if boundary == "circular":
        torch.testing.assert_close(
            found.sum(1), torch.full((len(found),), float(kernel * (2 * width + 1) ** len(grid))).double()
        )


def test_the_grid_may_be_left_to_the_capsule() -> None:
    assert torch.equal(
        GridRoll(3, velocity=0.5).neighborhood(4, 5), GridRoll(3, grid=(5,), velocity=0.5).neighborhood(4, 5)
    )


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_velocity_one_and_width_zero_is_the_capsule_roll(kernel: int) -> None:
    assert torch.equal(GridRoll(kernel).neighborhood(5, 4), CapsuleRoll(kernel, 0).neighborhood(5, 4))


def test_without_time_a_grid_is_a_torus() -> None:
    one, two = GridRoll(1, 1, grid=(3, 4)), Torus((3, 3), (3, 4))
    assert torch.equal(one.neighborhood(2, 12), two.neighborhood(2, 12))


@pytest.mark.parametrize("velocity", [2, -1, 3])
def test_energies_roll_at_the_velocity(velocity: int) -> None:
    v = GridRoll(6, velocity=velocity).energy(torch.randn(3, 6, 2, 6, dtype=torch.float64))
    for frame in range(6):
        torch.testing.assert_close(roll(v[:, frame], velocity), v[:, (frame + 1) % 6], rtol=1e-12, atol=1e-12)


def test_two_axes_roll_at_two_velocities() -> None:
    v = (
        GridRoll(6, grid=(3, 2), velocity=(1, 1))
        .energy(torch.randn(6, 2, 6, dtype=torch.float64))
        .unflatten(-1, (3, 2))
    )
    for frame in range(6):
        torch.testing.assert_close(v[frame].roll((1, 1), (-2, -1)), v[(frame + 1) % 6], rtol=1e-12, atol=1e-12)
    assert (v[0].roll((1, 0), (-2, -1)) - v[1]).abs().max() > 0.1


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_learned_weights_of_a_grid_start_at_the_interpolated_ones(boundary: str) -> None:
    fixed, learned = (GridRoll(3, 1, velocity=0.3, boundary=boundary, learned=on) for on in (False, True))
    torch.testing.assert_close(learned.neighborhood(4, 5), fixed.neighborhood(4, 5), rtol=0, atol=1e-6)
    learned.energy(torch.randn(4, 2, 5)).square().sum().backward()
    assert learned.raw_weight is not None
    assert learned.raw_weight.grad is not None
    assert (learned.raw_weight.grad != 0).all()


def test_orbits_exist_where_whole_velocities_close() -> None:
    twice = GridRoll(5, velocity=2)
    model = TVAE((1, 2, 3), 5, 2, 5, twice, prior=OrbitEnergy())
    v = model.energy(model.prior_distributions()["e"].sample())
    for frame in range(5):
        assert torch.equal(roll(v[frame], 2), v[(frame + 1) % 5])
    with pytest.raises(ValueError, match="no disjoint orbits"):
        TVAE((1, 2, 3), 5, 2, 5, GridRoll(5, velocity=0.5), prior=OrbitEnergy())


# --- a matrix of one's own -------------------------------------------------------------------------------------------


def own() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    w = torch.rand(12, 12, generator=generator)
    return torch.where(w > 0.6, w, 0) + torch.eye(12)


@pytest.mark.parametrize("learned", [False, True])
def test_a_matrix_is_applied_as_it_stands(learned: bool) -> None:
    w, u = own(), torch.randn(2, 3, 2, 4)
    v = Matrix(w, learned=learned).energy(u)
    for n in range(2):
        for c in range(2):
            expected = w @ u[n, :, c].square().flatten()
            torch.testing.assert_close(v[n, :, c].flatten(), expected, rtol=1e-4, atol=1e-5)


def test_learned_entries_move_and_zeros_stay() -> None:
    topography = Matrix(own(), learned=True)
    assert topography.raw_weight is not None
    topography.energy(torch.randn(3, 2, 4)).square().sum().backward()
    assert (topography.raw_weight.grad != 0).all()
    with torch.no_grad():
        topography.raw_weight.add_(1.0)
    w = topography.neighborhood(3, 4)
    assert torch.equal(w > 0, own() > 0)
    assert (w[own() > 0] > own()[own() > 0]).all()


@pytest.mark.parametrize("kind", ["lists", "tensor", "file"])
def test_a_matrix_travels_with_its_model(kind: str, tmp_path: Path) -> None:
    given: dict[str, Callable[[], object]] = {
        "lists": lambda: own().tolist(),
        "tensor": own,
        "file": lambda: np.save(tmp_path / "w.npy", own().numpy()) or str(tmp_path / "w.npy"),  # type: ignore[func-returns-value]
    }
    model = TVAE((1, 2, 3), 3, 2, 4, Matrix(given[kind]()))  # type: ignore[arg-type]
    path = save(tmp_path / "m.safetensors", model, MeanFieldGuide(model))
    (tmp_path / "w.npy").unlink(missing_ok=True)
    again, _ = load(path)
    assert torch.equal(again.topography.neighborhood(3, 4), own())


COMPLAINTS: dict[str, tuple[str, Callable[[], object]]] = {
    "kernel": ("kernel=0", lambda: GridRoll(0)),
    "velocities": ("one velocity, or one for each axis", lambda: GridRoll(3, grid=(2, 2), velocity=(1.0,))),
    "empty axis": ("axes of at least 1 position", lambda: GridRoll(3, grid=(0, 2))),
    "grid": ("product of the grid", lambda: TVAE((1, 2, 3), 3, 2, 5, GridRoll(3, grid=(2, 2)))),
    "not square": ("expected a square matrix", lambda: Matrix([[1.0, 2.0]])),
    "negative": ("expected a square matrix of numbers >= 0", lambda: Matrix([[1.0, -2.0], [0.0, 1.0]])),
    "nothing": ("expected a square matrix", lambda: Matrix([])),
    "a number missing": ("numbers >= 0", lambda: Matrix([[1.0, math.nan], [0.0, 1.0]])),
    "empty row": ("give every row a neighbour", lambda: Matrix([[1.0, 1.0], [0.0, 0.0]])),
    "other lattice": ("expected 15, one for each of 3 frames", lambda: TVAE((1, 2, 3), 3, 2, 5, Matrix(own()))),
}


@pytest.mark.parametrize(("words", "call"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints_are_one_sentence(words: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
