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
