"""The step in JAX: what it computes is what ``fit`` minimizes, from the same weights and draws."""

from __future__ import annotations

import pytest
import torch

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.experiments.benchmarks import jax_step
from pyro_tvae.inference import ELBO

jax = pytest.importorskip("jax", reason="an extra of its own")


def test_the_loss_in_jax_is_that_of_the_elbo_with_its_gradients() -> None:
    torch.manual_seed(0)
    model = TVAE((3, 6, 6), n_frames=5, n_capsules=2, capsule_dim=5, topography=CapsuleRoll(3, 1), mu=3.0)
    guide, x = MeanFieldGuide(model), torch.rand(4, 5, 3, 6, 6)
    torch.manual_seed(1)
    expected = -ELBO(model, guide, beta=0.5)(x).objective.mean() / model.n_frames
    expected.backward()
    torch.manual_seed(1)
    draws, posterior = guide(x), guide.posterior(x)
    noise = {site: ((value - posterior[site].mean) / posterior[site].stddev) for site, value in draws.items()}

    def loss(weights: jax_step.Weights) -> object:
        given = {site: value.detach().numpy() for site, value in noise.items()}
        pooling = model.topography.neighborhood(5, 5).numpy()
        return jax_step.loss(weights, x.numpy(), given, pooling, eps=model.eps, beta=0.5)

    value, gradient = jax.value_and_grad(loss)(jax_step.weights_of(model, guide))
    torch.testing.assert_close(torch.tensor(float(value)), expected.detach(), rtol=1e-5, atol=0)
    pairs = [(gradient["mu"], model.mu)]
    for name, network in (("z", guide.z_encoder), ("u", guide.u_encoder), ("decoder", model.decoder)):
        for layers, layer in zip(gradient[name], jax_step.linears(network), strict=True):
            pairs += zip(layers, (layer.weight, layer.bias), strict=True)
    for ours, parameter in pairs:
        assert parameter.grad is not None
        torch.testing.assert_close(torch.tensor(ours.tolist()), parameter.grad, rtol=1e-3, atol=1e-5)
