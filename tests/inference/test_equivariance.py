"""Measures of equivariance against brute force, closed forms and capsules whose rolls are known."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_tvae import (
    TVAE,
    BinarizedBernoulli,
    CapsuleRoll,
    ContinuousBernoulli,
    MeanFieldGuide,
    Normal,
    NoTopography,
    OrbitEnergy,
    OrbitGuide,
    encode,
    roll,
    traverse,
)
from pyro_tvae.inference import commutation, equivariance, roll_velocity
from pyro_tvae.inference.equivariance import capsule_correlation, equivariance_error, roll_correlation
from pyro_tvae.inference.forecasts import ForwardRoll, forward_roll


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def indices(n: int, n_frames: int, period: int) -> Tensor:
    """(N, S): a factor that moves by one value a frame, from a random phase."""
    return (torch.randint(period, (n, 1)) + torch.arange(n_frames)) % period


def rolling(index: Tensor, n_capsules: int, size: int, speed: int = 1) -> Tensor:
    """Perfect capsules: a random pattern per sequence and capsule, rolled by speed · index."""
    pattern = torch.randn(len(index), 1, n_capsules, size)
    return roll(pattern.expand(-1, index.shape[1], -1, -1), (speed * index).unsqueeze(-1))


def brute_force_roll(a: Tensor, b: Tensor) -> int:
    scores = [float((roll(a, shift) * b).sum()) for shift in range(len(a))]
    return scores.index(max(scores))


def test_equivariance_error_equals_the_loop_over_pairs() -> None:
    t = torch.randn(3, 5, 2, 7, dtype=torch.float64)
    t[1, 2, 0] = 0
    expected = 0.0
    for n in range(3):
        for first in range(5):
            for second in range(first + 1, 5):
                for c in range(2):
                    a, b = t[n, first, c], t[n, second, c]
                    a, b = a / (a.norm() or 1.0), b / (b.norm() or 1.0)
                    expected += float((torch.roll(a, second - first) - b).abs().sum()) / 3
    assert equivariance_error(t) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("frames", "size"), [(5, 7), (6, 3), (7, 2)])
def test_equivariance_error_along_a_line_equals_the_loop_over_positions_that_stay(frames: int, size: int) -> None:
    t = torch.randn(3, frames, 2, size, dtype=torch.float64)
    t[1, 2, 0] = 0
    expected = 0.0
    for n in range(3):
        for first in range(frames):
            for second in range(first + 1, min(frames, first + size)):
                for c in range(2):
                    shift = second - first
                    a = [float(t[n, first, c, p - shift]) for p in range(shift, size)]
                    b = [float(t[n, second, c, p]) for p in range(shift, size)]
                    norms = [math.sqrt(sum(value**2 for value in one)) or 1.0 for one in (a, b)]
                    expected += sum(abs(x / norms[0] - y / norms[1]) for x, y in zip(a, b, strict=True)) / 3
    assert equivariance_error(t, boundary="open") == pytest.approx(expected, rel=1e-12)
    assert equivariance_error(t, boundary="truncate") == equivariance_error(t)
    pairs = sum(frames - lag for lag in range(1, min(frames, size)))
    sampled = [equivariance_error(t, boundary="open", max_pairs=pairs - 1, seed=seed) for seed in range(200)]
    error = torch.tensor(sampled).std() / math.sqrt(200)  # beyond four of them once in 15,000 seeds
    assert abs(float(torch.tensor(sampled).double().mean()) - expected) < 4 * float(error) + 1e-9
    assert {one.n_pairs for one in sampled} == {pairs - 1}


def test_a_motion_along_a_line_has_no_error_there_and_one_around_a_circle() -> None:
    line = torch.randn(4, 1, 3, 13)
    t = torch.stack([line[:, 0, :, 5 - frame : 13 - frame] for frame in range(6)], 1)  # what enters was never in sight
    assert equivariance_error(t, boundary="open") == pytest.approx(0, abs=1e-4)
    assert equivariance_error(t) > 10
    assert equivariance_error(t.flip(1), boundary="open") > 10
    velocity = roll_velocity(t, boundary="open")
    assert (velocity.velocity, velocity.concentration) == pytest.approx((1.0, 1.0))
    assert roll_velocity(t).concentration < 0.9
    index = torch.arange(6).expand(4, -1)
    assert roll_correlation(t, index, 8, boundary="open").exact == 1.0
    assert roll_correlation(t, index, 8, boundary="open").n_pairs == 4 * (5 + 4 + 3 + 2)
    assert commutation(t[:, :-1], t[:, 1:], boundary="open") == pytest.approx(0, abs=1e-6)
    assert commutation(t[:, :-1], t[:, 1:]) > 0.2


@pytest.mark.parametrize("size", [2, 5, 7, 8])
def test_rolls_along_a_line_equal_the_loop_over_positions_that_stay(size: int) -> None:
    a, b = (equivariance._unit(torch.randn(40, size, dtype=torch.float64) + 3) for _ in range(2))
    for first, second, r in zip(a, b, equivariance._rolls(a, b, size).tolist(), strict=True):
        apart = {}
        for shift in range(-((size - 1) // 2), size // 2 + 1):
            stays = [p for p in range(size) if 0 <= p + shift < size]
            apart[shift % size] = sum(float(first[p] - second[p + shift]) ** 2 for p in stays) / len(stays)
        assert r == min(apart, key=lambda shift: apart[shift])


@pytest.mark.parametrize("measure", [equivariance_error, roll_velocity])
def test_boundaries_are_named_and_an_open_one_needs_positions(measure: Any) -> None:
    with pytest.raises(ValueError, match="boundary is 'closed'; expected one of circular, truncate, open"):
        measure(torch.randn(2, 3, 2, 4), boundary="closed")
    with pytest.raises(ValueError, match="have 1 position"):
        measure(torch.randn(2, 3, 2, 1), boundary="open")


def test_equivariance_error_of_perfect_and_of_zero_capsules_is_zero() -> None:
    t = rolling(indices(4, 6, 6), n_capsules=3, size=6)
    scale = 0.1 + torch.rand(4, 6, 3, 1)  # E_eq compares directions only
    assert equivariance_error(scale * t) == pytest.approx(0, abs=1e-4)
    assert equivariance_error(rolling(indices(4, 6, 6), 3, 6, speed=-1)) > 10
    assert equivariance_error(torch.zeros(2, 4, 3, 5)) == 0


def test_equivariance_error_of_random_capsules_is_the_closed_form_of_chance() -> None:
    # For independent uniform directions a, b the norm of a − b is independent of its direction, so
    # E‖a − b‖₁ = D · E|s| · E‖a − b‖, s one coordinate of a direction and ‖a − b‖² / 4 ~ Beta(α, α), α = (D − 1) / 2.
    size, alpha = 18, 17 / 2
    coordinate = math.exp(math.lgamma(size / 2) - math.lgamma((size + 1) / 2)) / math.sqrt(math.pi)
    log_root = math.lgamma(alpha + 0.5) + math.lgamma(2 * alpha) - math.lgamma(alpha) - math.lgamma(2 * alpha + 0.5)
    chance = 153 * 18 * size * coordinate * 2 * math.exp(log_root)
    assert chance == pytest.approx(13_270, rel=1e-3)
    sequences = [equivariance_error(torch.randn(1, 18, 18, 18)) for _ in range(20)]
    mean, spread = torch.tensor(sequences).mean(), torch.tensor(sequences).std()
    assert abs(mean - chance) < 4 * spread / math.sqrt(20)
    assert spread < 0.01 * chance


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index = indices(7, 6, 6)
    t = rolling(index, 2, 6) + 2 * torch.randn(7, 6, 2, 6)

    def measures() -> list[float]:
        result = roll_correlation(t, index, 6)
        pooled = [equivariance_error(t), result.correlation, result.exact, capsule_correlation(t, index)]
        return [*pooled, *result.per_capsule.tolist(), *result.exact_per_capsule.tolist(), result.n_pairs]

    whole = measures()
    monkeypatch.setattr(equivariance, "CHUNK", 2 * t[0].numel())
    assert [len(t[rows]) for rows in equivariance._chunks(t)] == [2, 2, 2, 1]
    assert measures() == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_observed_rolls_equal_the_loop_over_shifts(size: int) -> None:
    a, b = torch.randn(40, size, dtype=torch.float64) + 30, torch.randn(40, size, dtype=torch.float64) + 30
    observed = equivariance._rolls(equivariance._spectrum(a), equivariance._spectrum(b), size)
    assert observed.tolist() == [brute_force_roll(x, y) for x, y in zip(a, b, strict=True)]


def test_ties_go_to_the_smallest_roll() -> None:
    thrice = torch.randn(200, 7).repeat(1, 3)  # rolls r, r + 7 and r + 14 fit equally well
    spectrum = equivariance._spectrum(thrice)
    assert equivariance._rolls(spectrum, equivariance._spectrum(roll(thrice, 17)), 21).tolist() == [3] * 200
    flat = equivariance._spectrum(torch.rand(200, 1).expand(-1, 21) * (1 + 1e-7 * torch.randn(200, 21)))
    assert equivariance._rolls(flat, flat.roll(1, 0), 21).tolist() == [0] * 200  # flat up to single precision
    assert equivariance._mode(torch.tensor([[5, 2, 5, 2, 7], [7, 7, 1, 0, 3]]), 8).tolist() == [2, 7]


def correlation_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return equivariance._circular_correlation(equivariance._sines(a, b) / len(a))


def test_circular_correlation_equals_the_sum_over_pairs() -> None:
    a, b = 7 * torch.rand(25, 3, dtype=torch.float64), 7 * torch.rand(25, 1, dtype=torch.float64)
    a[:, 0] = b[:, 0] + 0.3 * a[:, 0]
    for k, value in enumerate(correlation_of(a, b).tolist()):
        sines = [
            (math.sin(a[i, k] - a[j, k]), math.sin(b[i, 0] - b[j, 0])) for i in range(25) for j in range(i + 1, 25)
        ]
        top = sum(x * y for x, y in sines)
        expected = top / math.sqrt(sum(x * x for x, _ in sines) * sum(y * y for _, y in sines))
        assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("flip", [False, True])
def test_circular_correlation_is_nan_where_a_series_is_constant_or_opposite(flip: bool) -> None:
    any_angle = 7 * torch.rand(999, 1, dtype=torch.float64)
    for k in range(1, 18):
        constant = torch.full((999, 1), 2 * math.pi * k / 18, dtype=torch.float64)
        constant[500:] += math.pi * flip
        assert correlation_of(constant, any_angle).isnan().all()
        assert correlation_of(any_angle, constant).isnan().all()


@pytest.mark.parametrize(("size", "period"), [(18, 18), (18, 9), (7, 7)])
def test_perfect_capsules_reach_one_and_backward_ones_minus_one(size: int, period: int) -> None:
    index = indices(6, 9, period)
    forward = roll_correlation(rolling(index, 3, size, speed=size // period), index, period)
    assert forward.correlation == pytest.approx(1, abs=1e-9)
    assert forward.exact == 1
    assert forward.per_capsule.tolist() == pytest.approx([1, 1, 1], abs=1e-9)
    assert forward.exact_per_capsule.tolist() == [1, 1, 1]
    assert forward.n_pairs == 6 * 36
    backward = roll_correlation(rolling(index, 3, size, speed=-(size // period)), index, period)
    assert backward.correlation == pytest.approx(-1, abs=1e-9)
    assert backward.exact < 0.2


def test_unsigned_indices_do_not_wrap() -> None:
    index = indices(6, 7, 7)
    assert roll_correlation(rolling(index, 2, 7), index.to(torch.uint8), 7).exact == 1
    assert capsule_correlation(rolling(index, 2, 7), index.to(torch.uint8)) == pytest.approx(1)


def test_a_period_that_does_not_divide_the_capsule_leaves_no_exact_hit() -> None:
    index = torch.tensor([[0, 1, 2], [1, 2, 3]])
    result = roll_correlation(rolling(index, 2, 7), index, period=5)  # true rolls 1 and 2 of 5, never a seventh
    assert result.exact == 0
    assert result.correlation > 0.9


def test_a_factor_that_repeats_within_the_sequence_is_judged_by_its_own_turn() -> None:
    index = indices(6, 15, 5)
    pattern = torch.randn(6, 1, 2, 5).repeat(1, 1, 1, 3)  # one position a frame, and equal again after five
    t = roll(pattern.expand(-1, 15, -1, -1), index.unsqueeze(-1))
    result = roll_correlation(t, index, period=5, turn=5)
    assert result.correlation == pytest.approx(1, abs=1e-9)
    assert result.exact == 1
    assert roll_correlation(t, index, period=5).exact < 0.3
    noisy = t + 1e-3 * torch.randn_like(t)  # breaks the ties anywhere: whole turns still make no difference
    assert roll_correlation(noisy, index, period=5, turn=5).exact == 1


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_the_mode_outvotes_a_wrong_capsule(wrong: int) -> None:
    index = indices(10, 8, 8)
    t = rolling(index, 3, 8)
    t[:, :, wrong] = torch.randn(10, 8, 8)
    result = roll_correlation(t, index, 8)
    assert result.exact == 1
    assert [result.exact_per_capsule[c] for c in range(3) if c != wrong] == [1, 1]
    assert abs(result.per_capsule[wrong]) < 0.3
    assert capsule_correlation(t, index) == pytest.approx(1)


def test_noise_lies_between_chance_and_perfection() -> None:
    index = indices(60, 10, 10)
    clean = rolling(index, 3, 10)
    noisy = roll_correlation(clean + 0.8 * torch.randn_like(clean), index, 10)
    assert 0.3 < noisy.correlation < 0.99
    assert 0.3 < noisy.exact < 0.99
    random = roll_correlation(torch.randn_like(clean), index, 10)
    assert abs(random.correlation) < 0.1
    assert random.exact == pytest.approx(0.1, abs=0.05)


def test_invariant_capsules_have_no_roll() -> None:
    index = torch.tensor([[0, 0, 1, 2], [3, 3, 3, 0]])  # 4 of the 12 pairs do not move
    result = roll_correlation(torch.randn(2, 1, 3, 5).expand(-1, 4, -1, -1), index, 5)
    assert math.isnan(result.correlation)
    assert result.per_capsule.isnan().all()
    assert result.exact == pytest.approx(4 / 12)


def test_capsule_correlation_of_perfect_backward_and_random_capsules() -> None:
    index = indices(300, 9, 9)
    assert capsule_correlation(rolling(index, 3, 9), index) == pytest.approx(1)
    # Backwards, the roll from Ω is −i mod 9 where the index i is not 0: perfectly wrong but for the sequences at 0.
    start = index[:, 0].double()
    expected = torch.corrcoef(torch.stack([(9 - start) % 9, start]))[0, 1].item()
    assert capsule_correlation(rolling(index, 3, 9, speed=-1), index) == pytest.approx(expected)
    assert expected < -0.4
    moving = index[index[:, 0] > 0]  # frame 0 as its own Ω is a hit by definition
    assert abs(capsule_correlation(torch.randn(len(moving), 9, 3, 9), moving)) < 0.25


def test_capsule_correlation_takes_the_most_favourable_omega_in_linear_distance() -> None:
    pattern = torch.randn(9)

    def sequence(start: int, rolls: list[int]) -> Tensor:
        """(3, 1, 9): frame 0, then two frames from which the roll to frame 0 is as given."""
        return torch.stack([pattern, *(roll(pattern, -r) for r in rolls)]).unsqueeze(1)

    index = torch.tensor([[2, 0, 0], [8, 0, 0], [5, 1, 2], [4, 0, 3]])
    # First: 4 is nearer to 2 than 7 is. Second: 6 is linearly nearer to 8 than 0 is, though 0 is nearer on the circle.
    t = torch.stack([sequence(2, [7, 4]), sequence(8, [0, 6]), sequence(5, [1, 1]), sequence(4, [5, 4])])
    expected = torch.corrcoef(torch.tensor([[4.0, 6.0, 5.0], [2.0, 8.0, 4.0]]))[0, 1].item()  # the third has no Ω
    assert capsule_correlation(t, index) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_capsule_correlation_is_nan_where_it_is_undefined() -> None:
    t = torch.randn(3, 4, 2, 5)
    assert math.isnan(capsule_correlation(t, torch.full((3, 4), 1)))  # no Ω
    assert math.isnan(capsule_correlation(t, torch.tensor([[1, 2, 3, 4], [2, 3, 4, 0], [1, 2, 3, 4]])))  # one Ω
    assert math.isnan(capsule_correlation(t, torch.tensor([[2, 3, 4, 0]]).expand(3, -1)))  # the truth is constant
    still = t[:, :1].expand(-1, 4, -1, -1)
    assert math.isnan(capsule_correlation(still, torch.tensor([[2, 3, 4, 0], [3, 4, 0, 1], [4, 0, 1, 2]])))


@pytest.mark.parametrize(
    ("t", "index", "period", "message"),
    [
        (torch.zeros(3, 4, 5), torch.zeros(3, 4).long(), 5, "t has shape"),
        (torch.zeros(3, 1, 2, 5), torch.zeros(3, 1).long(), 5, "two frames"),
        (torch.full((3, 4, 2, 5), math.nan), torch.zeros(3, 4).long(), 5, "nan"),
        (torch.zeros(3, 4, 2, 5), torch.zeros(4, 3).long(), 5, "index has shape"),
        (torch.zeros(3, 4, 2, 5), torch.zeros(3, 4) > 0, 5, "bool; expected numbers of shape"),
        (torch.zeros(3, 4, 2, 5), torch.full((3, 4), math.nan), 5, "index holds nan"),
        (torch.zeros(3, 4, 2, 5), torch.zeros(3, 4).long(), 0, "period is 0"),
    ],
)
def test_what_does_not_fit_is_named(t: Tensor, index: Tensor, period: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roll_correlation(t, index, period)
    if index.shape == t.shape[:2] and index.dtype == torch.long and period:
        with pytest.raises(ValueError, match="equivariance_error"):
            equivariance_error(t)


class MirrorModel:
    """Its t are the frames themselves, (1, C, D) pixels, and its pixels are Normal around t."""

    energies: dict[str, Any] = {}  # noqa: RUF012 - none

    def __init__(self, likelihood: Any = None) -> None:
        self.likelihood = likelihood or Normal(scale=0.5)

    def check(self, x: Tensor) -> None:
        pass

    def compose(self, values: dict[str, Tensor]) -> Tensor:
        return values["z"]

    def rolled(self, t: Tensor, shift: Tensor) -> Tensor:
        return roll(t, shift)

    def decode(self, t: Tensor) -> Distribution:
        return self.likelihood.at_mean(t.unsqueeze(-3)).to_event(3)


class MirrorGuide:
    """Reads one frame at a time, and adds whatever the unseen frames hold: a leak would show."""

    def posterior(self, x: Tensor, observed: Tensor) -> dict[str, Distribution]:
        self.seen = observed
        leak = x[:, ~observed].sum((1, 2)).unsqueeze(1)
        return {"z": dist.Normal(x.squeeze(2) + leak, 1.0)}


def log_normal(error: Tensor, scale: float = 0.5) -> Tensor:
    """Log-density of a frame, from squared errors summed over its pixels, (…, channel, height, width) -> (…)."""
    pixels = -0.5 * error / scale**2 - math.log(scale) - 0.5 * math.log(2 * math.pi)
    return pixels.sum((-3, -2, -1))


def mirror(x: Tensor, **options: Any) -> ForwardRoll:
    return forward_roll(MirrorModel(), MirrorGuide(), x, **options)


def test_forward_roll_is_perfect_where_the_frames_roll_and_its_floors_are_those_of_a_loop() -> None:
    x = rolling(indices(6, 8, 8), 3, 8).unsqueeze(2)
    mean_frame = torch.randn(1, 3, 8)
    result = mirror(x, context=3, mean_frame=mean_frame, n_examples=2)
    assert result.context == 3
    assert list(result.log_likelihood) == ["model", "repeat last frame", "mean frame", "hold"]
    perfect = 24 * (-math.log(0.5) - 0.5 * math.log(2 * math.pi))
    assert result.log_likelihood["model"].tolist() == pytest.approx([perfect] * 5, rel=1e-5)
    assert result.pixel_error["model"].tolist() == pytest.approx([0] * 5, abs=1e-9)
    torch.testing.assert_close(result.frames["model"], x[:2, 3:])
    torch.testing.assert_close(result.frames["hold"], x[:2, 2:3].expand(-1, 5, -1, -1, -1))
    chosen = set()
    for h in range(5):
        last, truth = x[:, 2], x[:, 3 + h]
        mixtures = [(1 - a / 10) * last + a / 10 * mean_frame for a in range(11)]
        scores = [float(log_normal((mixed - truth).square()).mean()) for mixed in mixtures]
        chosen.add(best := scores.index(max(scores)))
        assert result.log_likelihood["repeat last frame"][h].item() == pytest.approx(scores[best], rel=1e-5)
        errors = [float((mixed - truth).square().mean()) for mixed in mixtures]
        assert result.pixel_error["repeat last frame"][h].item() == pytest.approx(min(errors), rel=1e-5)
        torch.testing.assert_close(result.frames["repeat last frame"][:, h], mixtures[best][:2])
        assert result.log_likelihood["mean frame"][h].item() == pytest.approx(scores[10], rel=1e-5)
        assert result.pixel_error["mean frame"][h].item() == pytest.approx(errors[10], rel=1e-5)
        assert result.log_likelihood["hold"][h].item() == pytest.approx(scores[0], rel=1e-5)
    assert len(chosen) > 1  # the mixture is picked anew for every horizon
    assert result.gain("hold").min() > 0
    assert result.beats_floors(5)


def test_forward_roll_fails_where_the_frames_roll_backwards() -> None:
    x = rolling(indices(6, 8, 8), 3, 8, speed=-1).unsqueeze(2)
    result = mirror(x)
    assert result.context == 4
    assert not result.beats_floors()
    assert result.log_likelihood["model"][3] > result.log_likelihood["hold"][3]  # four steps of eight, either way


def test_unseen_frames_change_the_scores_and_nothing_else() -> None:
    x = torch.randn(5, 6, 1, 2, 6)
    other = x.clone()
    other[:, 3:] = torch.randn(5, 3, 1, 2, 6)
    one, two = mirror(x, n_examples=5), mirror(other, n_examples=5)
    for name in ("model", "hold", "mean frame"):
        assert torch.equal(one.frames[name], two.frames[name])
        assert not torch.equal(one.log_likelihood[name], two.log_likelihood[name])
    guide = MirrorGuide()
    forward_roll(MirrorModel(), guide, x, context=2)
    assert guide.seen.tolist() == [True, True, False, False, False, False]


def test_beats_floors_wants_every_floor_over_the_early_frames() -> None:
    def result(model: list[float], floor: list[float]) -> ForwardRoll:
        scores = {"model": torch.tensor(model), "easy": torch.full((len(model),), -9.0), "hard": torch.tensor(floor)}
        return ForwardRoll(3, scores, scores, {})

    assert result([-1, -1, -1, -5, -5], [-2, -2, -2, -2, -2]).beats_floors()  # 3 of 5 frames count
    assert not result([-1, -1, -5, -1, -1], [-2, -2, -2, -2, -2]).beats_floors()
    assert not result([-1, -1, -1, -5, -5], [-2, -2, -2, -2, -2]).beats_floors(4)
    assert result([-1, -3, -1, -1, -1], [-2, -2, -2, -2, -2]).beats_floors()  # the frames count together
    assert not result([-1, -3, -1, -1, -1], [-2, -2, -2, -2, -2]).beats_floors(2)
    assert not result([math.nan] * 2, [-2, -2]).beats_floors()
    assert result([-1, -1], [-2, -4]).gain("hard").tolist() == [1, 3]
    with pytest.raises(ValueError, match="'easy', 'hard'"):
        result([-1, -1], [-2, -4]).gain("model")
    with pytest.raises(ValueError, match="horizon is 3; expected 1 to 2"):
        result([-1, -1], [-2, -4]).beats_floors(3)


def test_forward_roll_of_real_models_equals_a_loop_over_sequences_and_horizons() -> None:
    shape: dict[str, Any] = {"frame_shape": (2, 3, 4), "n_frames": 6, "n_capsules": 2, "capsule_dim": 6}
    model, plain = TVAE(**shape, topography=CapsuleRoll(3), mu=3.0), TVAE(**shape, topography=NoTopography())
    guide, plain_guide = MeanFieldGuide(model), MeanFieldGuide(plain)
    x = (torch.rand(5, 6, 2, 3, 4) > 0.5).float()  # zeros and ones, where repeating a frame costs most
    options: dict[str, Any] = {"context": 4, "baseline": (plain, plain_guide), "n_examples": 4}
    result = forward_roll(model, guide, x, batch_size=2, **options)
    whole = forward_roll(model, guide, x, **options)
    observed = torch.arange(6) < 4
    for a_model, a_guide, rolled, held in (
        (model, guide, "model", "hold"),
        (plain, plain_guide, "plain VAE, rolled", "plain VAE, held"),
    ):
        t = encode(a_model, a_guide, x, observed=observed)[:, 3]
        for h in (1, 2):
            for name, value in ((rolled, torch.roll(t, h, -1)), (held, t)):
                p = a_model.decode(value)
                assert result.log_likelihood[name][h - 1].item() == pytest.approx(p.log_prob(x[:, 3 + h]).mean().item())
                error = (p.mean - x[:, 3 + h]).square().mean().item()
                assert result.pixel_error[name][h - 1].item() == pytest.approx(error, rel=1e-5)
    assert len(result.log_likelihood) == 6
    for name in result.log_likelihood:
        torch.testing.assert_close(result.log_likelihood[name], whole.log_likelihood[name])
        torch.testing.assert_close(result.pixel_error[name], whole.pixel_error[name])
        assert result.frames[name].shape == (4, 2, 2, 3, 4)
        torch.testing.assert_close(result.frames[name], whole.frames[name])
    assert result.log_likelihood["repeat last frame"].min() > -1.2 * 24 * math.log(
        2
    )  # not the clamp's 13.8 nats a pixel
    assert (result.gain("repeat last frame") <= result.gain("mean frame")).all()


def test_forward_roll_of_a_film_brings_in_what_was_never_seen_and_nothing_that_left() -> None:
    """By hand, position by position: what enters is μ / sqrt(S + eps), as every orbit has S members a priori."""
    topography = CapsuleRoll(11, 0, boundary="open")
    model = TVAE((1, 3, 3), 6, 2, 4, topography, prior=OrbitEnergy(), mu=3.0, eps=0.25)
    guide = OrbitGuide(model)
    x = torch.rand(5, 6, 1, 3, 3).round()
    result = forward_roll(model, guide, x, context=2)
    t = encode(model, guide, x, observed=torch.arange(6) < 2)[:, 1]
    for h in range(1, 5):  # at the last there is nothing left of what was seen
        moved = torch.empty_like(t)
        for p in range(4):
            moved[..., p] = t[..., p - h] if p >= h else 3.0 / math.sqrt(6 + 0.25)
        own = model.decode(moved).log_prob(x[:, 1 + h]).mean().item()
        assert result.log_likelihood["model"][h - 1].item() == pytest.approx(own)
    shifts = torch.tensor([3, -1])
    steps, seen = traverse(model, guide, x, frame=2, shifts=shifts), encode(model, guide, x)[:, 2]
    for k, h in enumerate(shifts.tolist()):
        places = [seen[..., p - h] if 0 <= p - h < 4 else torch.full((5, 2), 1.2) for p in range(4)]
        torch.testing.assert_close(steps[:, k], model.decode(torch.stack(places, -1)).mean)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 6, 2, 6), {}, "x has shape"),
        ((4, 1, 1, 2, 6), {}, "two frames"),
        ((4, 6, 1, 2, 6), {"batch_size": 0}, "batch_size is 0"),
        ((4, 6, 1, 2, 6), {"context": 6}, "context is 6; expected 1 to 5"),
        ((4, 6, 1, 2, 6), {"context": 0}, "context is 0"),
        ((4, 6, 1, 2, 6), {"mean_frame": torch.zeros(2, 6)}, "mean_frame has shape"),
        ((4, 6, 1, 2, 6), {"baseline": (MirrorModel(ContinuousBernoulli()), MirrorGuide())}, "ContinuousBernoulli"),
    ],
)
def test_forward_roll_names_what_does_not_fit(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mirror(torch.rand(shape), **options)


def test_drawn_pairs_estimate_all_pairs_within_their_errors() -> None:
    """Twelve draws of 300 of 780 pairs: chi-square of their misses over their errors, false alarms 1 in 10,000."""
    index = indices(3, 40, 8)
    t = rolling(index, 2, 8) + torch.randn(3, 40, 2, 8)
    whole, rolls = equivariance_error(t), roll_correlation(t, index, 8)
    assert (whole.standard_error, whole.n_pairs) == (0.0, 780)
    assert (rolls.correlation_error, rolls.exact_error, rolls.n_pairs) == (0.0, 0.0, 3 * 780)
    misses: list[list[float]] = []
    for seed in range(12):
        one = equivariance_error(t, max_pairs=300, seed=seed)
        drawn = roll_correlation(t, index, 8, max_pairs=300, seed=seed)
        assert one.n_pairs == 300
        assert drawn.n_pairs == 900
        misses.append(
            [
                (one - whole) / one.standard_error,
                (drawn.correlation - rolls.correlation) / drawn.correlation_error,
                (drawn.exact - rolls.exact) / drawn.exact_error,
            ]
        )
    squares = torch.tensor(misses).square().sum(0)
    assert bool(((squares > 1.5) & (squares < 39.1)).all()), squares  # 0.01 % and 99.99 % of chi-square with 12


def test_drawn_pairs_are_compared_as_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    index = indices(2, 7, 7)
    t = rolling(index, 3, 7) + torch.randn(2, 7, 3, 7)
    every = torch.combinations(torch.arange(7)).T
    monkeypatch.setattr(equivariance, "_drawn", lambda *_: (21, every))
    drawn, its = equivariance_error(t), roll_correlation(t, index, 7)
    monkeypatch.undo()
    whole, rolls = equivariance_error(t), roll_correlation(t, index, 7)
    assert drawn == pytest.approx(whole, rel=1e-12)
    assert (its.correlation, its.exact) == pytest.approx((rolls.correlation, rolls.exact), rel=1e-12)
    assert its.per_capsule.tolist() == pytest.approx(rolls.per_capsule.tolist(), rel=1e-12)


def test_every_pair_is_as_likely() -> None:
    """Chi-square of the 28,000 drawn pairs' distances in ten groups: false alarms 1 in 10,000."""
    total, pairs = equivariance._drawn("", 300, 28_000, 1)
    assert total == 300 * 299 / 2
    assert pairs is not None
    assert bool((pairs[0] < pairs[1]).all())
    lags = (pairs[1] - pairs[0]).bincount(minlength=300)[1:].double()
    expected = 28_000 * (300 - torch.arange(1, 300).double()) / total
    met, wanted = ([float(part.sum()) for part in one.tensor_split(10)] for one in (lags, expected))
    assert sum((a - b) ** 2 / b for a, b in zip(met, wanted, strict=True)) < 33.7  # 99.99 % of chi-square with 9


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="max_pairs is 1; expected at least 2"):
        equivariance_error(torch.randn(1, 4, 1, 4), max_pairs=1)


def test_forward_roll_takes_bounds_and_baselines_of_the_same_pixels_alone() -> None:
    def pair(threshold: float) -> Any:
        model = TVAE((1, 2, 3), 4, 1, 4, CapsuleRoll(3), likelihood=BinarizedBernoulli(threshold))
        return model, MeanFieldGuide(model)

    x = torch.rand(3, 4, 1, 2, 3)
    with pytest.raises(ValueError, match="nats of two families, or of other binarized pixels, do not compare"):
        forward_roll(*pair(0.5), x, baseline=pair(0.2))
    forward_roll(*pair(0.5), x, baseline=pair(0.5))
    for bounds in (torch.zeros(1), torch.zeros(3, 1), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"bounds has shape .*; expected one for each of 3 sequences"):
            forward_roll(*pair(0.5), x, num_particles=2, bounds=bounds)
