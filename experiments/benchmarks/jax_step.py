"""The training step written in JAX: the same model, sizes and optimizer, jitted, in turns with the step of ``fit``.

Needs ``pip install pyro-tvae[jax]``. What it costs to stay with Pyro is the ratio of the two.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_tvae import TVAE, MeanFieldGuide

from ..reports.tables import plain_table
from .children import call
from .speed import PAPER, STEPS, WARM_UP_STEPS, Setting, linears, make_batches
from .timing import ONE_CPU, StepTimer, isolated, ratios, spread

__all__ = ["loss", "measure", "print_record", "run", "stepper", "weights_of"]

MIN_REPEATS = 3
GENERATORS = {"threefry2x32": "JAX's default generator", "rbg": "its faster one"}
RATE, DECAY, SQUARE_DECAY, EPS = 1e-3, 0.9, 0.999, 1e-8  # Adam's, as those of fit
Weights = dict[str, Any]  # network -> layers of (weight, bias), and μ


def run(*, threads: int = 2, progress: bool = True, seconds: float = 30.0, setting: Setting = PAPER) -> dict[str, Any]:
    """Time steps of ``fit`` and of JAX in turns, for about ``seconds`` for each of JAX's generators.

    Times are those of the processor: what other processes do in between is not counted.

    Args:
        threads: of both; JAX is held to them by the processors that the measuring process may use.
        progress: not used; a process of its own measures.
        seconds: time to spend, three turns at least.
        setting: the sizes; the paper's MNIST configuration by default.

    Returns:
        A mapping ready for JSON: generator -> ``ratio`` of fit's step to JAX's (lower is better, below 1 fit is the
        faster), its ``low``, ``high``, ``repeats``; and ``setting``.

    Raises:
        RuntimeError: JAX is not installed.
    """
    options = {"threads": threads, "seconds": seconds, "sizes": asdict(setting)}
    measures = {name: call(measure, options | {"generator": name}) for name in GENERATORS}
    return {"measures": measures, "setting": asdict(setting)}


def measure(threads: int, seconds: float, sizes: Mapping[str, int], generator: str) -> dict[str, Any]:
    """One ratio, in a process that has not used JAX before."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    jax, setting = _jax(), Setting(**sizes)
    jax.config.update("jax_default_prng_impl", generator)
    start = time.perf_counter()
    with isolated(threads):
        model, guide = setting.build()
        few = [make_batches(setting)() for _ in range(4)]
        loader = DataLoader(TensorDataset(torch.stack(few)), batch_size=None, sampler=[*range(len(few))] * 250_000)
        turns = StepTimer(
            stepper(model, guide, few[0]),
            steps=STEPS,
            warm_up=WARM_UP_STEPS,
            enough=lambda count: count >= MIN_REPEATS and time.perf_counter() > start + seconds,
            clock=time.process_time,
        )
        turns.during(model, guide, loader, ONE_CPU)
    return spread(ratios(turns.steps, turns.others[: len(turns.steps) + 1]))


def weights_of(model: TVAE, guide: MeanFieldGuide) -> Weights:
    """Weights of the networks and μ as JAX has them."""
    array = _jax().numpy.array
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
    jax, numpy = _jax(), _jax().numpy
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
    jax = _jax()
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
        value = _jax().nn.relu(value @ inner.T + shift)
    return value @ weight.T + bias


def _jax() -> Any:
    try:
        return import_module("jax")
    except ImportError:
        raise RuntimeError("benchmark jax_step: JAX is not installed; pip install pyro-tvae[jax].") from None


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    table = plain_table("training step of fit against the jitted step in JAX", "measured", "lowest to highest", gap=1)
    for name, ratio in record["measures"].items():
        low, high = ratio["low"], ratio["high"]
        table.add_row(f"with {GENERATORS[name]} ({name})", f"{ratio['ratio']:.2f} x", f"{low:.2f} to {high:.2f}")
    console.print(table)
    console.print("Lower is better, below 1 fit is the faster; processor time, in turns.")
