"""Likelihoods: log-densities against formulas, normalisation against quadrature, means against the inverse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_tvae import Bernoulli, BinarizedBernoulli, ContinuousBernoulli, Likelihood, Normal

FAMILIES: dict[str, Callable[[], Likelihood]] = {
    "Bernoulli": Bernoulli,
    "BinarizedBernoulli": BinarizedBernoulli,
    "BinarizedBernoulli, seeded": lambda: BinarizedBernoulli(seed=3),
    "ContinuousBernoulli": ContinuousBernoulli,
    "Normal": lambda: Normal(0.3),
    "Normal, sigmoid": lambda: Normal(0.3, activation="sigmoid"),
    "Normal, learned": lambda: Normal(0.3, learned=True),
}
ALL = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)


@ALL
def test_the_distribution_is_elementwise(build: Callable[[], Likelihood]) -> None:
    parameters = torch.randn(5, 4, 1, 2, 3)
    frames = build()(parameters)
    assert frames.batch_shape == parameters.shape
    assert frames.event_shape == ()
    assert frames.log_prob(torch.rand(4, 1, 2, 3)).shape == parameters.shape


def test_bernoulli_on_grey_values_is_the_cross_entropy() -> None:
    logits, x = torch.randn(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    p = logits.sigmoid()
    expected = x * p.log() + (1 - x) * (1 - p).log()
    torch.testing.assert_close(Bernoulli()(logits).log_prob(x), expected)
    assert "pseudo-likelihood" in Bernoulli.remark


def test_a_bounded_bernoulli_is_that_of_torch_with_probabilities_in_single_precision() -> None:
    # From 10 to 16 the sigmoid itself has no digits left of its distance to 1.
    logits = torch.cat([torch.linspace(-40, -17, 24), torch.linspace(-10, 10, 41), torch.linspace(17, 40, 24)])
    published = torch.distributions.Bernoulli(probs=logits.sigmoid(), validate_args=False)
    for x in (0.0, 0.3, 1.0):
        pixel = torch.full_like(logits, x)
        ours = Bernoulli(max_logit=15.942385)(logits).log_prob(pixel)
        torch.testing.assert_close(ours, published.log_prob(pixel), rtol=2e-3, atol=2e-4)
        assert float(ours.min()) >= -15.9424
    assert float(Bernoulli()(logits).log_prob(torch.ones(len(logits))).min()) == -40
    with pytest.raises(ValueError, match=r"max_logit is -1; expected a positive number, or None"):
        Bernoulli(max_logit=-1)


def test_bernoulli_keeps_its_gradient_where_a_clamped_sigmoid_has_none() -> None:
    logits = torch.tensor([-60.0, 60.0], requires_grad=True)
    Bernoulli()(logits).log_prob(torch.tensor([1.0, 0.0])).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize("parameter", [-8.0, -1.0, -1e-3, 0.0, 0.5, 6.0])
@pytest.mark.parametrize("name", ["ContinuousBernoulli", "Normal", "Normal, sigmoid"])
def test_true_likelihoods_integrate_to_one(name: str, parameter: float) -> None:
    frames = FAMILIES[name]().double()(torch.tensor(parameter, dtype=torch.float64))
    low, high = (0.0, 1.0) if name == "ContinuousBernoulli" else (parameter - 3, parameter + 3)
    if name == "Normal, sigmoid":
        low, high = -3.0, 4.0
    grid = torch.linspace(low, high, 20_001, dtype=torch.float64)
    assert integrate.simpson(frames.log_prob(grid).exp().numpy(), x=grid.numpy()) == pytest.approx(1, abs=1e-3)


def test_bernoulli_on_grey_values_does_not_integrate_to_one() -> None:
    """Why its remark is shown with every number."""
    grid = torch.linspace(0, 1, 2001)
    area = integrate.simpson(Bernoulli()(torch.tensor(0.0)).log_prob(grid).exp().numpy(), x=grid.numpy())
    assert area == pytest.approx(0.5, abs=1e-5)
    assert not ContinuousBernoulli.remark
    assert not Normal.remark


@ALL
def test_at_mean_has_that_mean(build: Callable[[], Likelihood]) -> None:
    mean = torch.tensor([0.07, 0.1, 0.3, 0.4999, 0.5, 0.5004, 0.77, 0.93])
    found = build().at_mean(mean).mean
    assert found.shape == mean.shape
    torch.testing.assert_close(found.detach(), mean, rtol=0, atol=2e-3)


@pytest.mark.parametrize("mean", [0.08, 0.4, 0.62, 0.9, 0.05])
def test_the_continuous_bernoullis_mean_is_found_by_quadrature_too(mean: float) -> None:
    grid = np.linspace(0, 1, 20_001)
    frames = ContinuousBernoulli().at_mean(torch.tensor(mean))
    density = frames.log_prob(torch.tensor(grid, dtype=torch.float32)).double().exp().numpy()
    assert integrate.simpson(grid * density, x=grid) == pytest.approx(mean, abs=2e-3)


@pytest.mark.parametrize("logit", [-20.0, 20.0, -100.0])
def test_the_continuous_bernoulli_is_a_density_for_dark_pixels_in_single_precision(logit: float) -> None:
    grid = torch.linspace(0, 1, 200_001)
    density = ContinuousBernoulli()(torch.tensor(logit)).log_prob(grid).double().exp()
    assert integrate.simpson(density.numpy(), x=grid.double().numpy()) == pytest.approx(1, abs=1e-3)


@ALL
def test_black_and_white_means_stay_finite(build: Callable[[], Likelihood]) -> None:
    frames = build().at_mean(torch.tensor([0.0, 1.0]))
    assert torch.isfinite(frames.log_prob(torch.tensor([1.0, 0.0]))).all()


def test_normal_has_the_scale_it_was_given() -> None:
    value = Normal(0.25)(torch.tensor(0.2)).log_prob(torch.tensor(0.7))
    assert float(value) == pytest.approx(stats.norm(0.2, 0.25).logpdf(0.7), rel=1e-5)
    sigmoid = Normal(0.25, activation="sigmoid")(torch.tensor(0.0)).mean
    assert float(sigmoid) == 0.5


def test_a_learned_scale_gets_a_gradient_and_a_fixed_one_is_kept_in_the_state() -> None:
    learned, fixed = Normal(0.25, learned=True), Normal(0.25)
    learned(torch.zeros(3)).log_prob(torch.ones(3)).sum().backward()
    assert float(dict(learned.named_parameters())["log_scale"].grad) != 0
    assert list(fixed.parameters()) == []
    assert "log_scale" in fixed.state_dict()


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Normal(0.0), "a number above 0"),
        (lambda: Normal(-1.0), "a number above 0"),
        (lambda: BinarizedBernoulli(1.0), "expected a number from 0 to below 1"),
        (lambda: Normal(0.1, activation="tanh"), "expected 'identity' or 'sigmoid'"),
    ],
)
def test_wrong_arguments_get_one_sentence(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


# --- binarised pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 5])
def test_binarised_pixels_are_scored_as_zeros_and_ones(seed: int | None) -> None:
    likelihood = BinarizedBernoulli(0.4, seed=seed).double()
    logits, x = torch.randn(5, 4, 1, 2, 3, dtype=torch.float64), torch.rand(5, 4, 1, 2, 3, dtype=torch.float64)
    bits = likelihood.binarize(x)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    expected = torch.where(bits == 1, logits.sigmoid().log(), (-logits).sigmoid().log())
    torch.testing.assert_close(likelihood(logits).log_prob(x), expected)
    torch.testing.assert_close(likelihood(logits).log_prob(bits), expected)  # what is binary stays as it is
    assert likelihood(logits).to_event(3).expand([7, 5, 4]).log_prob(x).shape == (7, 5, 4)


def test_a_true_likelihood_sums_to_one_over_all_frames() -> None:
    frames = BinarizedBernoulli(seed=5)(torch.randn(1, 2, 2)).to_event(3)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).reshape(16, 1, 2, 2)
    assert float(frames.log_prob(every).logsumexp(0)) == pytest.approx(0, abs=1e-5)
    assert "pseudo" not in BinarizedBernoulli.remark


def test_without_a_seed_the_threshold_decides() -> None:
    bits = BinarizedBernoulli(0.3).binarize(torch.tensor([0.0, 0.29, 0.3, 0.31, 1.0]))
    assert bits.tolist() == [0, 0, 0, 1, 1]


def test_a_seed_binarises_once_and_for_all() -> None:
    x = torch.rand(6, 4, 1, 8, 8)
    bits = BinarizedBernoulli(seed=1).binarize(x)
    assert torch.equal(bits, BinarizedBernoulli(seed=1).binarize(x))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(bits, BinarizedBernoulli(seed=1).binarize(x))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(bits[2:3, 1:2], BinarizedBernoulli(seed=1).binarize(x[2:3, 1:2]))
    assert torch.equal(bits.double(), BinarizedBernoulli(seed=1).binarize(x.double()))
    assert not torch.equal(bits, BinarizedBernoulli(seed=2).binarize(x))
    # Over seeds a pixel of grey value g is 1 with probability g: 400 seeds of 64 pixels have an error of 0.003.
    share = torch.stack([BinarizedBernoulli(seed=s).binarize(torch.full((1, 8, 8), 0.3)).mean() for s in range(400)])
    assert abs(float(share.mean()) - 0.3) < 5 * 0.003
