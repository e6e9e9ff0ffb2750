"""The training step written in JAX: the same model, sizes and optimizer, jitted, to be compared with that of ``fit``.

Needs ``pip install pyro-tvae[jax]``. What it costs to stay with Pyro is the ratio of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor

from pyro_tvae import TVAE, MeanFieldGuide

from .speed import linears

__all__ = ["library", "loss", "stepper", "weights_of"]

RATE, DECAY, SQUARE_DECAY, EPS = 1e-3, 0.9, 0.999, 1e-8  # Adam's, as those of fit
Weights = dict[str, Any]  # network -> layers of (weight, bias), and μ


def weights_of(model: TVAE, guide: MeanFieldGuide) -> Weights:
    """Weights of the networks and μ as JAX has them."""
    array = library().numpy.array
    networks = {"z": guide.z_encoder, "u": guide.u_encoder, "decoder": model.decoder}
    layers = {
        name: [(array(layer.weight.detach().numpy()), array(layer.bias.detach().numpy())) for layer in linears(part)]
        for name, part in networks.items()
    }
    return {**layers, "mu": array(model.mu.detach().numpy())}


def loss(weights: Weights, x: Any, noise: Mapping[str, Any], pooling: Any, *, eps: float, beta: float = 1.0) -> Any:
    """Negative ELBO per frame, the mean over sequences: what ``fit`` minimizes.

    Args:
        weights: as :func:`weights_of`.
        x: (B, S, channel, height, width).
        noise: standard normal draws of z and u, each (B, S, C, D).
        pooling: W, (S·D, S·D).
        eps: of the model.
        beta: weight of the KL.
    """
    jax, numpy = library(), library().numpy
    shape = noise["z"].shape
    frames = x.reshape(*shape[:2], -1)
    values, kl = {}, 0.0
    for site in ("z", "u"):
        mean, log_variance = numpy.split(_network(weights[site], frames), 2, -1)
        mean, log_variance = mean.reshape(shape), log_variance.reshape(shape)
        values[site] = mean + numpy.exp(0.5 * log_variance) * noise[site]
        kl += 0.5 * (numpy.exp(log_variance) + mean**2 - 1 - log_variance).sum((1, 2, 3))
    square = (values["u"] ** 2).transpose(0, 2, 1, 3)  # (B, C, S, D)
    energy = (square.reshape(*square.shape[:2], -1) @ pooling.T).reshape(square.shape).transpose(0, 2, 1, 3)
    t = (values["z"] + weights["mu"]) * jax.lax.rsqrt(energy + eps)
    logits = _network(weights["decoder"], t.reshape(*shape[:2], -1))
    log_p = (logits * frames - jax.nn.softplus(logits)).sum((1, 2))
    return -(log_p - beta * kl).mean() / shape[1]


def stepper(model: TVAE, guide: MeanFieldGuide, x: Tensor) -> Callable[[], None]:
    """A jitted step of Adam on a batch, from the weights of model and guide; they are left as they are."""
    jax = library()
    numpy, tree = jax.numpy, jax.tree
    weights = weights_of(model, guide)
    pooling = numpy.array(model.topography.neighborhood(model.n_frames, model.capsule_dim).detach().numpy())
    shape, eps = (len(x), *model.latent_shape), model.eps

    def step(state: Any, x: Any) -> Any:
        weights, first, second, count, key = state
        key, *keys = jax.random.split(key, 3)
        noise = {site: jax.random.normal(one, shape) for site, one in zip("zu", keys, strict=True)}
        gradient = jax.grad(loss)(weights, x, noise, pooling, eps=eps)
        count = count + 1
        first = tree.map(lambda m, g: DECAY * m + (1 - DECAY) * g, first, gradient)
        second = tree.map(lambda v, g: SQUARE_DECAY * v + (1 - SQUARE_DECAY) * g * g, second, gradient)
        scale, square_scale = 1 - DECAY**count, 1 - SQUARE_DECAY**count
        weights = tree.map(
            lambda w, m, v: w - RATE * (m / scale) / (numpy.sqrt(v / square_scale) + EPS), weights, first, second
        )
        return weights, first, second, count, key

    jitted = jax.jit(step, donate_argnums=0)  # in place, as an optimizer of torch's
    state = weights, tree.map(numpy.zeros_like, weights), tree.map(numpy.zeros_like, weights), 0.0, jax.random.key(0)
    pixels = numpy.array(x.numpy())

    def once() -> None:
        nonlocal state
        state = jax.block_until_ready(jitted(state, pixels))

    once()  # compiles
    return once


def _network(layers: Any, value: Any) -> Any:
    *hidden, (weight, bias) = layers
    for inner, shift in hidden:
        value = library().nn.relu(value @ inner.T + shift)
    return value @ weight.T + bias


def library() -> Any:
    """JAX itself.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        return import_module("jax")
    except ImportError:
        raise RuntimeError("benchmark turns: JAX is not installed; pip install pyro-tvae[jax].") from None
