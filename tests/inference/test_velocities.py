"""Roll velocities against loops, rolls made by hand, and the p-values of a test whose hypothesis holds."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide, NoTopography, OrbitEnergy, OrbitGuide, roll
from pyro_tvae.inference import roll_velocity, roll_velocity_test


def by_loops(t: Tensor) -> tuple[float, float]:
    """Velocity and concentration, every roll by itself and velocities tried one by one."""
    n, n_frames, n_capsules, size = t.shape
    observed = []
    for i in range(n):
        for c in range(n_capsules):
            for first in range(n_frames):
                for second in range(first + 1, min(n_frames, first + size // 2 + 1)):
                    scores = [float(t[i, first, c] @ torch.roll(t[i, second, c], -r)) for r in range(size)]
                    observed.append((scores.index(max(scores)), second - first))

    def concentration(v: float) -> float:
        return sum(math.cos(2 * math.pi * (r - v * lag) / size) for r, lag in observed) / len(observed)

    tried = [size * (k / 4000 - 0.5) for k in range(1, 4001)]
    best = max(tried, key=concentration)
    return best, concentration(best)


@pytest.mark.parametrize("shape", [(2, 5, 3, 6), (1, 4, 2, 7), (3, 2, 1, 5), (2, 9, 1, 4)])
def test_it_is_what_the_loops_find(shape: tuple[int, ...]) -> None:
    t = torch.randn(shape, dtype=torch.float64)
    result = roll_velocity(t)
    velocity, concentration = by_loops(t)
    assert result.concentration == pytest.approx(concentration, abs=1e-4)
    assert result.concentration >= concentration - 1e-12
    apart = (result.velocity - velocity + shape[-1] / 2) % shape[-1] - shape[-1] / 2
    assert abs(apart) < 0.01
    assert result.spread == pytest.approx(math.sqrt(-2 * math.log(result.concentration)) * shape[-1] / 2 / math.pi)


@pytest.mark.parametrize("velocity", [0.0, 1.0, -2.0, 3.0, 0.5, -0.25, 1 / 3])
def test_capsules_that_roll_have_their_velocity(velocity: float) -> None:
    size, frames = 12, 9
    place = torch.arange(size) - velocity * torch.arange(frames).unsqueeze(-1)
    t = torch.stack([torch.cos(2 * math.pi / size * place + phase).exp() for phase in (0.3, 1.1)], 1).unsqueeze(0)
    result = roll_velocity(t.expand(3, -1, -1, -1))
    assert result.velocity == pytest.approx(velocity, abs=0.06)  # rolls are whole positions
    assert result.standard_error == pytest.approx(0.0, abs=1e-6)
    assert result.spread < 0.5
    if velocity == int(velocity):
        assert (result.concentration, result.velocity) == pytest.approx((1.0, velocity))


def test_the_error_is_the_spread_of_velocities_over_data() -> None:
    """The jackknife against 40 data sets: the ratio of two standard deviations, 0.6 to 1.6 in all but 1 of 1,000."""
    generator = torch.Generator().manual_seed(0)

    def data() -> Tensor:
        speed = torch.randint(0, 3, (30, 1), generator=generator) * torch.arange(6)
        pattern = torch.rand(30, 1, 2, 10, generator=generator).expand(-1, 6, -1, -1)
        return roll(pattern, speed.unsqueeze(-1).expand(-1, -1, 2))

    results = [roll_velocity(data()) for _ in range(40)]
    spread = torch.tensor([one.velocity for one in results]).std()
    claimed = torch.tensor([one.standard_error for one in results]).square().mean().sqrt()
    assert 0.6 < float(claimed / spread) < 1.6


def pair(kind: str) -> tuple[TVAE, MeanFieldGuide | OrbitGuide]:
    torch.manual_seed(0)
    if kind == "orbits":
        model = TVAE((1, 3, 3), 5, 2, 6, CapsuleRoll(9, 0, boundary="open"), prior=OrbitEnergy(), mu=5.0)
        return model, OrbitGuide(model)
    model = TVAE((1, 3, 3), 5, 2, 6, NoTopography())
    guide = MeanFieldGuide(model)
    guide.z_encoder.network = torch.nn.Sequential(torch.nn.Flatten(-3), torch.nn.Linear(9, 24, bias=False))
    return model, guide


@pytest.mark.parametrize("kind", ["orbits", "none"])
def test_p_values_are_uniform_where_order_says_nothing(kind: str) -> None:
    """Noise, whose frames are exchangeable, 120 times with 9 shuffles each; false alarms: 1 in 1,000 seeds."""
    model, guide = pair(kind)
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(10)
    for seed in range(120):
        x = torch.rand(3, 5, 1, 3, 3, generator=generator)
        result = roll_velocity_test(model, guide, x, n_shuffles=9, seed=seed)
        assert result.p_value is not None
        counts[round(10 * result.p_value) - 1] += 1
    assert chisquare(counts).pvalue > 1e-3


def test_what_rolls_with_the_frames_is_told_from_shuffled_frames() -> None:
    model, guide = pair("none")
    with torch.no_grad():  # both capsules are the first six pixels: what moves in x rolls
        weight = guide.z_encoder.network[1].weight.zero_()
        for p in range(6):
            weight[p, p] = weight[6 + p, p] = 1.0
    x = torch.zeros(4, 5, 1, 3, 3)
    for n in range(4):
        for l in range(5):  # noqa: E741
            x[n, l].view(-1)[(n + l) % 6] = 1.0
    result = roll_velocity_test(model, guide, x, n_shuffles=19)
    assert result.null is not None
    assert (result.velocity, result.concentration, result.p_value) == pytest.approx((1.0, 1.0, 0.05))
    assert float(result.null.max()) < 0.9
    again = roll_velocity_test(model, guide, x, n_shuffles=19, batch_size=7)
    assert again.p_value == result.p_value


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"n_shuffles": 0}, "n_shuffles is 0; expected"), ({"batch_size": 2.5}, "batch_size is 2.5; expected")],
)
def test_wrong_arguments_get_one_sentence(options: dict[str, object], sentence: str) -> None:
    model, guide = pair("none")
    with pytest.raises(ValueError, match=sentence):
        roll_velocity_test(model, guide, torch.rand(2, 5, 1, 3, 3), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="have 1 position; expected two or more"):
        roll_velocity(torch.rand(2, 3, 4, 1))


def test_pixels_that_were_not_measured_count_in_no_order_of_the_frames() -> None:
    torch.manual_seed(0)
    model = TVAE((1, 4, 4), 6, 1, 6)
    guide, x, measured = MeanFieldGuide(model), torch.rand(8, 6, 1, 4, 4), torch.rand(8, 6, 1, 4, 4) > 0.4
    one, two = (
        roll_velocity_test(
            model, guide, torch.where(measured, x, junk), n_shuffles=9, covariates={"measured": measured}
        )
        for junk in (0.0, 1.0)
    )
    torch.testing.assert_close(one.null, two.null)
    assert one.concentration == two.concentration
