"""Linear layers by oneDNN: what torch's own give to rounding, any number of derivatives included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from pyro_tvae import products
from pyro_tvae.distributions import Bernoulli
from pyro_tvae.products import Linear


@pytest.fixture(autouse=True)
def _chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_is_faster", lambda: True)


def derivatives(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """A value, its gradients, and those of its gradient's length."""
    x = x.clone().requires_grad_()
    value = layer(x).tanh().square().sum()
    wanted = [x, *layer.parameters()]
    first = torch.autograd.grad(value, wanted, create_graph=True)
    length = torch.stack([one.square().sum() for one in first]).sum()
    return [value, *first, *torch.autograd.grad(length, wanted)]


@pytest.mark.parametrize("shape", [(7,), (3, 7), (4, 3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_two_derivatives_are_those_in_double_precision(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(7, 5, bias=bias), torch.randn(shape)
    assert products._by_onednn(x, layer.weight)
    exact = nn.Linear(7, 5, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    for ours, theirs in zip(derivatives(layer, x), derivatives(exact, x.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_what_follows_tensors_sees_torchs_own_layer() -> None:
    layer, x = Linear(7, 5), torch.randn(3, 7)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(torch.vmap(layer)(x), expected)
    gradient = torch.func.grad(lambda one: layer(one).sum())(x)
    torch.testing.assert_close(gradient, layer.weight.sum(0).expand(3, -1))
    with forward_ad.dual_level():
        ahead = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, x))).tangent
    torch.testing.assert_close(ahead, nn.functional.linear(x, layer.weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert Linear(7, 5, device="meta")(x.to("meta")).shape == (3, 5)
    assert Linear(7, 5)(x[:0]).shape == (0, 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(7, 5)(torch.randn(1, 14))  # which would make two rows of 7


def test_a_bernoulli_has_two_derivatives_towards_logits_and_values_that_broadcast() -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 4, 5, dtype=torch.float64)).requires_grad_()
    value = torch.rand(5, dtype=torch.float64).requires_grad_()

    def log_prob(logits: Tensor, value: Tensor) -> Tensor:
        return Bernoulli(logits=logits, validate_args=False).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, (logits, value))
    assert torch.autograd.gradgradcheck(log_prob, (logits, value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bernoulli_of_extreme_logits_is_right_to_the_rounding_of_one(dtype: torch.dtype) -> None:
    logits = torch.tensor([-1e4, -90.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 90.0, 1e4], dtype=dtype).requires_grad_()
    for x in (0.0, 0.3, 1.0):
        log_prob = Bernoulli(logits=logits, validate_args=False).log_prob(torch.tensor(x, dtype=dtype))
        exact = x * logits.detach().double() - torch.logaddexp(logits.detach().double(), torch.zeros(()).double())
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(log_prob.double(), exact, rtol=4 * eps, atol=2 * eps)
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        torch.testing.assert_close(gradient, (x - logits.detach().sigmoid()).to(dtype))
