"""Paired comparisons against exact evidences: intervals that hold, bounds that are loose and say so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from gaussian import Affine, Unsampled
from pyro import poutine
from scipy import stats
from torch import Tensor
from torch.distributions import kl_divergence
from torch.distributions.transforms import ReshapeTransform

import pyro_tvae
from pyro_tvae import (
    TVAE,
    BinarizedBernoulli,
    CapsuleRoll,
    Likelihood,
    MeanFieldGuide,
    Normal,
    NoTopography,
    OrbitEnergy,
    default_guide,
)
from pyro_tvae.inference import (
    Annealing,
    Comparison,
    bound_gap,
    compare,
    comparison,
    log_likelihood,
    log_weights,
    simulate,
)

FRAME, S, SIGMA = (1, 2, 3), 3, 0.5


class Toy:
    """x[l] = A z[l] + b + noise in float64, always the same A with orthogonal columns: the posterior is mean-field.

    The guide is that posterior, its means moved by ``off`` standard deviations and its log-variances by ``off``.
    """

    def __init__(self, off: float, shift: float = 0.0) -> None:
        self.model = TVAE(FRAME, S, 1, 2, NoTopography(), likelihood=Normal(SIGMA), network=Affine()).double()
        self.guide = MeanFieldGuide(self.model).double()
        random = torch.randn(6, 2, generator=torch.Generator().manual_seed(5)).double()
        a = torch.linalg.qr(random).Q * torch.tensor([1.3, 0.7]).double()
        b = torch.linspace(-0.4, 0.5, 6).double() + shift
        precision = 1 + a.square().sum(0) / SIGMA**2
        to_mean = (a / SIGMA**2 / precision).T
        layer: Any = self.guide.z_encoder.network[1]
        with torch.no_grad():
            self.model.decoder[0].weight.copy_(a)
            self.model.decoder[0].bias.copy_(b)
            layer.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
            layer.bias.copy_(torch.cat([-to_mean @ b + off * precision.rsqrt(), -precision.log() + off]))
        self.variance = 1 / precision
        self.marginal = dist.MultivariateNormal(b, a @ a.T + SIGMA**2 * torch.eye(6).double())

    def sequences(self, n: int) -> Tensor:
        return self.model(n_sequences=n).detach()

    def log_p(self, x: Tensor) -> Tensor:
        return self.marginal.log_prob(x.flatten(-3)).sum(-1)


def toys(*offs: float, shift: float = 0.0) -> dict[str, Toy]:
    """The same model several times with guides so far off, but that the last one's pixels are shifted."""
    return {f"toy {k}": Toy(off, shift * (k == len(offs) - 1)) for k, off in enumerate(offs)}


def pairs(of: Mapping[str, Toy]) -> dict[str, Any]:
    return {name: (toy.model, toy.guide) for name, toy in of.items()}


def true_difference(first: Toy, second: Toy) -> float:
    """Expectation over data of the first of its log p minus the second's: S Kullback-Leibler divergences."""
    return S * float(kl_divergence(first.marginal, second.marginal))


def test_with_exact_bounds_the_difference_is_that_of_the_evidences() -> None:
    made = toys(0.0, 0.0, shift=0.1)
    one, two = made.values()
    x = one.sequences(50)
    result = compare(pairs(made), x, 30)
    exact = one.log_p(x) - two.log_p(x)
    found = result.difference("toy 0", "toy 1")
    assert found.mean == pytest.approx(float(exact.mean()), abs=1e-8)
    assert found.standard_error == pytest.approx(float(exact.std()) / math.sqrt(50), abs=1e-8)
    assert result.looseness.abs().max() < 1e-8
    assert result.looseness_error.abs().max() < 1e-8
    reach = stats.t.ppf(0.975, 49) * found.standard_error
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach), abs=1e-6)
    back = result.difference("toy 1", "toy 0")
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_intervals_hold_the_difference_as_often_as_they_say(shift: float) -> None:
    """400 data sets of 20 sequences, exact bounds: binomial limits around 95 %, one false alarm in 10,000 each."""
    one, two = toys(0.0, 0.0, shift=shift).values()
    x = one.sequences(400 * 20)
    log_p = torch.stack([one.log_p(x), two.log_p(x)]).reshape(2, 400, 20)
    if shift == 0:  # equal models with noise of their own, as that of particles
        log_p = log_p + 0.3 * torch.randn(log_p.shape).double()
    zero = torch.zeros(2).double()
    found = [
        Comparison(("a", "b"), part, part * math.nan, zero, zero, S).difference("a", "b") for part in log_p.unbind(1)
    ]
    truth = true_difference(one, two)
    inside = sum(d.low <= truth <= d.high for d in found)
    low, high = stats.binom.interval(1 - 1e-4, 400, 0.95)
    assert low <= inside <= high
    assert sum(not d.warning and d.mean < 0 for d in found) <= 400 - low  # hardly ever is the wrong one decided for


def test_a_loose_bound_does_not_decide_between_equal_models() -> None:
    """The same model twice, one guide exact and one off: what differs is the guide, and the table says so."""
    made = toys(0.0, 1.2)
    x = next(iter(made.values())).sequences(60)
    result = compare(pairs(made), x, 20, n_simulations=60, frame_averages=False)
    found = result.difference("toy 0", "toy 1")
    assert found.mean > 4 * found.standard_error  # as a paired test alone would be sure of
    assert found.low <= 0 <= found.high
    assert found.warning == "within the bounds' looseness"
    table = result.table
    assert table.index.tolist() == ["toy 0", "toy 1"]
    assert table["warning"].tolist() == ["", "within the bounds' looseness"]
    assert table["log_p_diff"].tolist() == pytest.approx([0, -found.mean])
    assert (table["looseness"].to_numpy() >= [-1e-9, found.mean - 4 * found.standard_error]).all()
    by_frame = compare(pairs(made), x, 20, n_simulations=60)
    assert by_frame.looseness[1] < result.looseness[1] / 2
    assert abs(by_frame.difference("toy 0", "toy 1").mean) < found.mean / 2


def test_a_difference_beyond_looseness_and_error_is_decided() -> None:
    made = toys(0.1, 0.1, shift=0.5)
    one, two = made.values()
    x = one.sequences(40)
    found = compare(pairs(made), x, 200).difference("toy 1", "toy 0")
    assert found.high < 0
    assert found.warning == ""
    assert found.low <= -true_difference(one, two) <= found.high


@pytest.mark.parametrize("off", [0.4, 0.8])
def test_both_ends_of_the_gap_enclose_the_exact_evidence(off: float) -> None:
    """Upper and lower ends on 2,000 sequences of the model's own; each mean within four standard errors, or beyond."""
    toy = next(iter(toys(off).values()))
    simulated = simulate(toy.model, 2000)
    gap = bound_gap(toy.model, toy.guide, simulated, 5)
    lower = log_weights(toy.model, toy.guide, simulated.x, 5, seed=0).logsumexp(0) - math.log(5)
    exact = toy.log_p(simulated.x)
    for slack in (exact - lower, lower + gap - exact):
        assert float(slack.mean()) > 4 * float(slack.std()) / math.sqrt(2000)
    many = bound_gap(toy.model, toy.guide, simulated, 200)
    assert 0 < float(many.mean()) < 0.5 * float(gap.mean())


def test_with_one_particle_the_gap_is_the_sum_of_both_divergences() -> None:
    """``E log w`` under the posterior minus under the guide, in closed form; 4,000 sequences see its mean."""
    toy = next(iter(toys(0.5).values()))
    simulated = simulate(toy.model, 4000)
    gap = bound_gap(toy.model, toy.guide, simulated, 1)
    sd = toy.variance.sqrt()
    exact_posterior, guide = dist.Normal(0.0 * sd, sd), dist.Normal(0.5 * sd, sd * math.exp(0.25))
    both = kl_divergence(exact_posterior, guide) + kl_divergence(guide, exact_posterior)
    exact = S * float(both.sum())
    assert abs(float(gap.mean()) - exact) < 4 * float(gap.std()) / math.sqrt(4000)  # one false alarm in 16,000


GUIDES = {
    "covariance": lambda model: pyro_tvae.CovarianceGuide(model),
    "flow": lambda model: pyro_tvae.FlowGuide(model),
    "conditional": lambda model: pyro_tvae.ConditionalGuide(model),
    "gamma": lambda model: pyro_tvae.GammaGuide(model),
}


@pytest.mark.parametrize("kind", GUIDES)
def test_the_gap_is_measured_for_guides_of_every_form(kind: str) -> None:
    """With one particle and a guide that is the prior, w is p(x | t): then the gap needs no density of a guide's."""
    prior = pyro_tvae.GammaEnergy(2.0) if kind == "gamma" else pyro_tvae.GaussianEnergy()
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3), prior=prior)
    guide = GUIDES[kind](model)
    simulated = simulate(model, 40)
    gap = bound_gap(model, guide, simulated, 1)
    trace = pyro_tvae.guides.base.posterior_of(guide, simulated.x)  # what the weight of the exact latents is made of
    assert {*trace} >= {*simulated.latents}
    assert gap.isfinite().all()
    assert float(gap.mean()) > -4 * float(gap.std()) / math.sqrt(40)


def test_a_program_as_a_guide_has_no_measured_looseness() -> None:
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3))
    guide = MeanFieldGuide(model)

    def program(x: Tensor) -> None:
        guide(x)

    x = torch.rand(5, 3, 1, 2, 2)
    result = compare({"guide": (model, guide), "program": (model, program)}, x, 40)
    assert result.looseness.isnan().tolist() == [False, True]
    assert set(result.table["warning"]) <= {"", "looseness not known", "within the error over sequences"}


def test_annealed_bounds_are_compared_as_well() -> None:
    made = toys(0.8, 0.0)
    x = next(iter(made.values())).sequences(12)
    plain = compare(pairs(made), x, 8, n_simulations=8, frame_averages=False)
    annealed = compare(pairs(made), x, annealing=Annealing(num_chains=8, num_temperatures=30), n_simulations=8)
    assert float(annealed.looseness[0]) < float(plain.looseness[0])
    assert abs(annealed.difference("toy 0", "toy 1").mean) < abs(plain.difference("toy 0", "toy 1").mean)
    assert annealed.table["bad_k"].isna().all()


@pytest.mark.parametrize("of", ["model", "guide"])
def test_weights_that_are_not_finite_are_refused_before_others_are_judged(
    of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pyro_tvae.inference.comparison.annealed_importance", lambda *_, **__: pytest.fail("one was judged")
    )
    models = [TVAE((1, 4, 4), 3, 1, 3) for _ in range(2)]
    pairs = {name: (model, default_guide(model)) for name, model in zip(("one", "other"), models, strict=True)}
    with torch.no_grad():
        next(iter(pairs["other"][of == "guide"].parameters())).fill_(math.nan)
    with pytest.raises(ValueError, match=rf"'other' has weights that are not finite \(\S+ of its {of}\), and nothing"):
        compare(pairs, torch.rand(4, 3, 1, 4, 4), annealing=Annealing(4, 20))


def test_what_is_not_comparable_is_refused() -> None:
    def fitted(**options: Any) -> Any:
        model = TVAE((1, 2, 2), 3, 1, 3, NoTopography(), **options)
        return model, default_guide(model)

    x = torch.rand(4, 3, 1, 2, 2)
    with pytest.raises(ValueError, match="'b' by BinarizedBernoulli, whose nats are of different things"):
        compare({"a": fitted(), "b": fitted(likelihood=BinarizedBernoulli())}, x)
    with pytest.raises(ValueError, match="other binarized pixels"):
        compare({t: fitted(likelihood=BinarizedBernoulli(float(t))) for t in ("0.2", "0.6")}, x)
    with pytest.raises(ValueError, match=r"1 models.*expected two models"):
        compare({"a": fitted()}, x)


def test_intervals_widen_with_the_number_of_models() -> None:
    log_p = torch.randn(3, 10).double()
    zero = torch.zeros(3).double()
    two = Comparison(("a", "b"), log_p[:2], log_p[:2] * math.nan, zero[:2], zero[:2], S).difference("a", "b")
    three = Comparison(("a", "b", "c"), log_p, log_p * math.nan, zero, zero, S).difference("a", "b")
    assert three.high - two.mean == pytest.approx(
        (two.high - two.mean) * stats.t.ppf(1 - 0.05 / 6, 9) / stats.t.ppf(0.975, 9)
    )


def test_one_sequence_decides_nothing() -> None:
    zero = torch.zeros(2).double()
    one = Comparison(("a", "b"), torch.tensor([[1.0], [0.0]]), torch.zeros(2, 1), zero, zero, S)
    assert one.difference("a", "b").warning == "one sequence has no standard error"
    assert one.table["warning"].tolist()[1] == "one sequence has no standard error"


def test_orbits_are_compared() -> None:
    models = {
        k: TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0), prior=p) for k, p in {"e": OrbitEnergy(), "u": None}.items()
    }
    fitted = {name: (model, default_guide(model)) for name, model in models.items()}
    table = compare(fitted, torch.rand(4, 3, 1, 2, 2), 30, n_simulations=4).table
    assert table["looseness"].notna().all()


class Labelled(MeanFieldGuide):
    """Moves its means by the label."""

    def posterior(self, x: Tensor, observed: Tensor | None = None, label: Tensor | None = None) -> Any:
        found = super().posterior(x, observed)
        off = torch.zeros(len(x)) if label is None else label
        z: Any = found["z"]
        return {**found, "z": dist.Normal(z.loc + off.reshape(-1, 1, 1, 1).to(x), z.scale)}


@pytest.mark.parametrize("annealing", [None, Annealing(num_chains=4, num_temperatures=4)])
def test_every_pair_is_given_the_covariates_that_it_takes(annealing: Annealing | None) -> None:
    """A label that spoils a guide is seen in its bound alone, and its looseness is not known."""
    toy = Toy(0.1)
    guide = Labelled(toy.model).double()
    guide.load_state_dict(toy.guide.state_dict())
    x = toy.sequences(6)
    options: dict[str, Any] = {"annealing": annealing, "n_simulations": 2}
    fitted = {"told": (toy.model, guide), "plain": (toy.model, toy.guide)}
    without = compare(fitted, x, 5, **options)
    told = compare(fitted, x, 5, covariates={"label": torch.full((6,), 9.0)}, **options)
    assert torch.equal(told.log_p[1], without.log_p[1])
    assert float((without.log_p[0] - told.log_p[0]).mean()) > 5
    assert told.looseness.isnan().tolist() == [True, False]
    assert not without.looseness.isnan().any()
    assert told.difference("told", "plain").warning == "looseness not known"
    with pytest.raises(ValueError, match="covariate 'lable' is taken neither by the model nor by the guide"):
        compare(fitted, x, 5, covariates={"lable": torch.zeros(6)}, **options)


def test_a_table_that_cannot_be_made_is_told_of_before_anything_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ImportError("xarray")

    monkeypatch.setattr(comparison, "_rows", broken)
    monkeypatch.setattr(comparison, "log_likelihood", lambda *_, **__: pytest.fail("a model was judged"))
    made = toys(0.0, 0.0)
    with pytest.raises(ImportError):
        compare(pairs(made), made["toy 0"].sequences(4), 20)


class Scored(Normal):
    def forward(self, parameters: Tensor) -> Any:
        return Unsampled(parameters, SIGMA)


@pytest.mark.parametrize("annealing", [None, Annealing(num_chains=2, num_temperatures=3)])
def test_a_likelihood_that_draws_no_pixels_has_no_looseness(annealing: Annealing | None) -> None:
    made = toys(0.0, 0.0)
    made["toy 1"].model.likelihood = Scored(SIGMA)
    found = compare(pairs(made), made["toy 0"].sequences(4), 20, n_simulations=2, annealing=annealing)
    assert found.looseness.isnan().tolist() == [False, True]
    torch.testing.assert_close(found.log_p[1], found.log_p[0], rtol=0.05, atol=0.5)


class Sharp(Likelihood):
    """Pixels of an own family, as mass or as density."""

    def __init__(self, mass: bool) -> None:
        super().__init__()
        self.mass = mass

    def forward(self, parameters: Tensor) -> Any:
        return dist.Geometric(logits=parameters) if self.mass else dist.Normal(parameters, 1.0)


class Joint(MeanFieldGuide):
    """z of all frames drawn at once."""

    def posterior(self, x: Tensor, *given: Any, **options: Any) -> Any:
        sites = super().posterior(x, *given, **options)
        loc = sites["z"].mean
        flat = dist.Normal(loc.flatten(1), 1.0).to_event(1)
        z = dist.TransformedDistribution(flat, [ReshapeTransform((loc[0].numel(),), tuple(loc.shape[1:]))])
        return {**sites, "z": z}


class Bounded(MeanFieldGuide):
    """z that is nowhere far from its mean, as that of the prior may be."""

    def posterior(self, x: Tensor, *given: Any, **options: Any) -> Any:
        sites = super().posterior(x, *given, **options)
        return {**sites, "z": dist.Uniform(sites["z"].mean - 1, sites["z"].mean + 1).to_event(3)}


@pytest.mark.parametrize("kind", [Joint, Bounded])
def test_a_guide_that_frames_or_simulated_sequences_are_not_for_is_compared_all_the_same(kind: Any) -> None:
    """It was refused once its turn came, and what was computed of the others was lost."""
    model = TVAE((1, 2, 2), 3, 1, 3)
    x = torch.rand(6, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    guide = kind(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = compare({"first": (model, MeanFieldGuide(model)), "own": (model, guide)}, x, 20)
    said = [str(one.message) for one in caught if one.filename == __file__]
    assert all(len(text) < 300 for text in said)  # torch names all values
    assert result.log_p[1].equal(log_likelihood(model, guide, x, 20, seed=1).iwae.cpu())
    assert math.isfinite(result.looseness[0])
    assert math.isfinite(result.looseness[1]) == (kind is Joint)
    assert [text.startswith("compare: the looseness of 'own' is not known, since") for text in said] == [True] * (
        kind is Bounded
    )


def test_masses_and_densities_and_scaled_models_are_not_compared() -> None:
    def fitted(**options: Any) -> Any:
        model = TVAE((1, 2, 2), 3, 1, 3, NoTopography(), **options)
        return model, default_guide(model)

    x = torch.randint(3, (4, 3, 1, 2, 2)).float()
    with pytest.raises(ValueError, match=r"by Sharp and 'b' by Normal, whose nats .*\(mass, density"):
        compare({"a": fitted(likelihood=Sharp(True)), "b": fitted(likelihood=Normal(1.0))}, x, 2, n_simulations=2)
    compare({"a": fitted(likelihood=Sharp(False)), "b": fitted(likelihood=Normal(1.0))}, x, 2, n_simulations=2)
    model, guide = fitted(likelihood=Normal(1.0))
    for handler in (poutine.scale(model, 0.1), poutine.mask(model, mask=torch.tensor(False))):
        with pytest.raises(ValueError, match="'b' scales or masks site 'x' and others do not"):
            compare({"a": (model, guide), "b": (handler, guide)}, x, 2, n_simulations=2)
    both = compare({"a": (poutine.scale(model, 0.1), guide), "b": (poutine.scale(model, 0.1), guide)}, x, 2)
    assert both.looseness.isnan().all()
