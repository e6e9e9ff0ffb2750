"""Calibration: an exact posterior passes, planted faults fail, each in the shape that the histogram should show."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from gaussian import Affine
from scipy import stats

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide, Normal, NoTopography, OrbitEnergy
from pyro_tvae.guides import default_guide
from pyro_tvae.inference.simulation_based_calibration import Calibration, calibration

FRAME = (1, 2, 2)


def toy(shift: float = 0.0, widen: float = 0.0, sigma: float = 0.5) -> tuple[TVAE, MeanFieldGuide]:
    """x[l] = A z[l] + noise, orthogonal A, and its posterior, moved by standard deviations and log-variance changed."""
    model = TVAE(FRAME, 2, 1, 2, NoTopography(), likelihood=Normal(sigma), network=Affine()).double()
    guide = MeanFieldGuide(model).double()
    a = torch.linalg.qr(torch.randn(4, 2).double()).Q * torch.tensor([1.3, 0.7]).double()
    precision = 1 + a.square().sum(0) / sigma**2
    to_mean = (a / sigma**2 / precision).T
    with torch.no_grad():
        model.decoder[0].weight.copy_(a)
        model.decoder[0].bias.zero_()
        layer = guide.z_encoder.network[1]
        layer.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        layer.bias.copy_(torch.cat([shift * precision.rsqrt(), widen - precision.log()]))
    return model, guide


@pytest.mark.parametrize(("n_draws", "n_simulations", "told"), [(100, 4, 1), (99, 4, 0), (63, 4, 0), (100, 505, 0)])
def test_draws_whose_ranks_fill_no_bins_are_told_of_before(n_draws: int, n_simulations: int, told: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ranks = calibration(*toy(), n_simulations, n_draws, batch_size=505).ranks
    assert len(ranks["z"]) == n_simulations
    said = "calibration: 100 draws make 101 ranks, which fill no number of bins up to 20 evenly, .* such as 99.$"
    assert sum(bool(re.match(said, str(one.message))) and one.filename == __file__ for one in caught) == told


def test_the_exact_posterior_is_calibrated() -> None:
    result = calibration(*toy(), n_simulations=1000, batch_size=500)
    assert set(result.ranks) == {"z", "log_likelihood"}
    assert result.ranks["z"].shape == (1000, 2, 1, 2)
    assert result.ranks["log_likelihood"].shape == (1000,)
    # False alarm: one seed in 1,000.
    assert result.uniform(level=1e-3)
    # Here the four latents are independent, so all 4,000 ranks are one sample: chi-square at 1 in 10,000.
    counts = torch.bincount(result.ranks["z"].flatten(), minlength=100)
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    ("shift", "widen", "shape"),
    [
        (0.0, -1.0, "ends"),  # overconfident
        (0.0, 1.0, "middle"),
        (0.6, 0.0, "low"),  # the guide lies above the truth, so few draws are below it
        (-0.6, 0.0, "high"),
    ],
)
def test_a_planted_fault_fails_in_its_own_shape(shift: float, widen: float, shape: str) -> None:
    result = calibration(*toy(shift, widen), n_simulations=400, batch_size=400)
    assert not result.uniform(level=1e-6)
    assert result.p_value("z") < 1e-6
    counts = result.histogram("z").flatten(1).sum(1).double() / 1600
    ends, middle = counts[[0, -1]].mean(), counts[4:6].mean()
    low, high = result.band()
    expected = {
        "ends": ends > high and middle < 0.1,
        "middle": ends < low and middle > 0.1,
        "low": counts[0] > high and counts[-1] < low,
        "high": counts[-1] > high and counts[0] < low,
    }
    assert expected[shape], counts


def test_the_false_alarm_rate_is_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    level, n = 0.1, 400
    alarms = 0
    for _ in range(n):
        ranks = {name: torch.randint(0, 20, (100, 3), generator=generator) for name in ("z", "e")}
        alarms += not Calibration(ranks, 19).uniform(level)
    # Independent quantities: Bonferroni is nearly exact. Five standard errors above, and far from never.
    assert alarms < n * level + 5 * math.sqrt(n * level)
    assert alarms > n * level / 4


def test_ranks_count_draws_below_the_truth() -> None:
    model, guide = toy(shift=-100.0)
    assert (calibration(model, guide, 5, 19).ranks["z"] == 19).all()
    model, guide = toy(shift=100.0)
    assert (calibration(model, guide, 5, 19).ranks["z"] == 0).all()


def test_histogram_and_p_value_against_scipy() -> None:
    ranks = torch.randint(0, 100, (300, 2), generator=torch.Generator().manual_seed(0))
    result = Calibration({"z": ranks}, 99)
    counts = result.histogram("z", 20)
    assert counts.shape == (20, 2)
    by_hand = [[int(((ranks[:, i] >= 5 * b) & (ranks[:, i] < 5 * b + 5)).sum()) for i in range(2)] for b in range(20)]
    assert counts.tolist() == by_hand
    p = min(stats.chisquare(counts[:, i]).pvalue for i in range(2))
    assert result.p_value("z", 20) == pytest.approx(min(1, 2 * p))


def test_the_band_is_binomial() -> None:
    low, high = Calibration({"z": torch.zeros(200, 1, dtype=torch.long)}, 99).band(level=0.05, bins=10)
    assert (low, high) == (
        stats.binom.ppf(0.05 / 20, 200, 0.1) / 200,
        stats.binom.ppf(1 - 0.05 / 20, 200, 0.1) / 200,
    )


MODELS: dict[str, Callable[[], TVAE]] = {
    "roll": lambda: TVAE(FRAME, 3, 1, 3, CapsuleRoll(3, 1), mu=1.0),
    "orbits": lambda: TVAE(FRAME, 3, 1, 3, CapsuleRoll(3, 0), prior=OrbitEnergy(), mu=1.0),
}


@pytest.mark.parametrize(("kind", "name", "site"), [("roll", "u_squared", (3, 1, 3)), ("orbits", "e", (1, 3))])
def test_the_prior_is_calibrated_where_x_says_nothing(kind: str, name: str, site: tuple[int, ...]) -> None:
    # A decoder that ignores t makes the prior the exact posterior, and the guide can be set to it.
    model = MODELS[kind]()
    guide = default_guide(model, initial_log_variance=0.0)
    with torch.no_grad():
        for parameter in [*model.decoder.parameters(), *guide.parameters()]:
            parameter.zero_()
        if kind == "orbits":  # no votes: the log-normal with the moments of the prior's log e, nearly the prior
            guide.e_encoder.network[-1].bias[-3:] = -30.0
    result = calibration(model, guide, 300, 99, batch_size=300)
    assert result.ranks[name].shape == (300, *site)
    # log p(x | t) is the same for every draw: ties fall by lot. False alarm: three seeds in 1,000.
    assert result.p_value("z") > 1e-3
    assert result.p_value("log_likelihood") > 1e-3
    if kind == "roll":
        assert result.p_value(name) > 1e-3


def test_nuts_is_calibrated() -> None:
    model, _ = toy()
    wrong = MeanFieldGuide(model).double()  # an untrained guide only decides where the chains start
    result = calibration(model, wrong, 60, 19, method="nuts", batch_size=60, warmup_steps=100, thin=3)
    # Five bins of 12 expected simulations each; false alarm: one seed in 1,000.
    assert result.uniform(level=1e-3, bins=5)


def test_seeds_repeat_and_leave_the_global_state_alone() -> None:
    model, guide = toy()
    state = torch.get_rng_state()
    first, again, other = (calibration(model, guide, 20, 19, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.ranks["z"], again.ranks["z"])
    assert not torch.equal(first.ranks["z"], other.ranks["z"])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model, guide: calibration(model, guide, method="magic"), "expected 'guide' or 'nuts'"),
        (lambda model, guide: calibration(model, guide, 0), "n_simulations is 0"),
        (lambda model, guide: calibration(model, guide, 5, 20).uniform(), "21 ranks, which do not fill 10 bins"),
    ],
)
def test_mistakes_get_one_sentence(call: Callable[[TVAE, MeanFieldGuide], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call(*toy())
    assert "\n" not in str(caught.value)
