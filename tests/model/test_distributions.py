"""The lean distributions against torch's own, in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal, kl_divergence

from pyro_tvae import distributions

NORMALS = {
    "elementwise": (torch.randn(4, 3).double(), torch.rand(4, 3).double() + 0.1),
    "scalar": (torch.tensor(0.3).double(), torch.tensor(2.0).double()),
    "narrow": (torch.tensor(100.0).double(), torch.tensor(1e-4).double()),
}


def same_with_gradients(ours: Distribution, theirs: Distribution, value: Tensor, parameters: list[Tensor]) -> None:
    value = value.requires_grad_()
    a, b = ours.log_prob(value), theirs.log_prob(value)
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weight = torch.rand_like(a)
    for left, right in zip(
        *(torch.autograd.grad((weight * y).sum(), [value, *parameters]) for y in (a, b)), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NORMALS)
@pytest.mark.parametrize("expanded", [False, True])
def test_normal_is_torchs_normal(name: str, expanded: bool) -> None:
    loc, scale = (parameter.clone().requires_grad_() for parameter in NORMALS[name])
    ours, theirs = distributions.Normal(loc, scale), Normal(loc, scale)
    if expanded:
        ours, theirs = ours.expand((5, 4, 3)), theirs.expand((5, 4, 3))
    value = theirs.sample((2,))
    same_with_gradients(ours, theirs, value, [loc, scale])


def test_normal_gives_its_own_shape_to_a_value_that_broadcasts() -> None:
    distribution = distributions.Normal(0.0, 1.0).expand((6, 2))
    assert distribution.log_prob(torch.zeros(2)).shape == (6, 2)
    assert distribution.expand((4, 6, 2)).log_prob(torch.tensor(0.0)).shape == (4, 6, 2)


def test_normal_refuses_nan() -> None:
    with pytest.raises(ValueError, match="within the support"):
        distributions.Normal(0.0, 1.0).log_prob(torch.tensor(float("nan")))


@pytest.mark.parametrize("q_name", NORMALS)
@pytest.mark.parametrize("p_name", NORMALS)
def test_divergence_of_normals_is_torchs(q_name: str, p_name: str) -> None:
    parameters = [parameter.clone().requires_grad_() for name in (q_name, p_name) for parameter in NORMALS[name]]
    results = []
    for distribution in (distributions.Normal, Normal):
        q, p = distribution(*parameters[:2]), distribution(*parameters[2:]).expand((5, 4, 3))
        results.append(kl_divergence(q, p))
    assert results[0].shape == results[1].shape == (5, 4, 3)
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(result.sum(), parameters) for result in results]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_bernoulli_is_torchs_on_grey_values_and_far_logits() -> None:
    logits = torch.cat([torch.linspace(-60, 60, 241), torch.tensor([-800.0, 800.0])]).double().requires_grad_()
    gray = torch.linspace(0, 1, 7).double()[:, None].expand(7, len(logits)).clone()
    ours, theirs = (
        distribution(logits=logits, validate_args=False) for distribution in (distributions.Bernoulli, Bernoulli)
    )
    same_with_gradients(ours, theirs, gray, [logits])


def test_continuous_bernoulli_against_quadrature() -> None:
    logits = torch.tensor([-60.0, -17.0, -1.0, -0.02, -0.0041, 0.0, 0.0041, 0.5, 3.0, 20.0, 60.0])
    ours = distributions.ContinuousBernoulli(logits=logits)
    x = torch.linspace(0, 1, 40_001).double()[:, None]
    eta = logits.double()
    energy = eta * x
    log_density = energy - torch.logsumexp(energy + _simpson(len(x)).log(), 0)

    def mean(values: Tensor) -> Tensor:
        return (_simpson(len(x)) * log_density.exp() * values).sum(0)

    close = {"rtol": 1e-4, "atol": 2e-5, "check_dtype": False}
    torch.testing.assert_close(ours.mean, mean(x), **close)
    torch.testing.assert_close(
        ours.variance, mean(x.square()) - mean(x).square(), rtol=1e-3, atol=1e-4, check_dtype=False
    )
    torch.testing.assert_close(ours.entropy(), -mean(log_density), **close)
    several = torch.tensor([0.0, 0.03, 0.5, 0.97, 1.0])[:, None]
    exact = torch.where(eta == 0, several, torch.expm1(eta * several.double()) / torch.expm1(eta))
    torch.testing.assert_close(ours.cdf(several), exact, **close)
    torch.testing.assert_close(ours.cdf(ours.icdf(several)), several.expand(-1, len(eta)), rtol=0, atol=3e-3)
    q = distributions.ContinuousBernoulli(logits=logits[:, None])
    kl = torch.stack([mean(log_density - log_density[:, [i]]) for i in range(len(eta))], 1)  # of each q, to each p
    torch.testing.assert_close(kl_divergence(q, ours), kl, **close)


def _simpson(n: int) -> Tensor:
    """Simpson's weights of n equally spaced points of [0, 1], (n, 1)."""
    weights = torch.full((n,), 2.0).double()
    weights[1::2], weights[0], weights[-1] = 4, 1, 1
    return (weights / (3 * (n - 1)))[:, None]
