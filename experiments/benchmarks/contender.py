"""Contender: one way to make a step, as a program that makes n of them whenever it is told to, on whichever version.

``python -P contender.py '{"kind": …, "sizes": […], "threads": 1}'`` prints ``ready``, then for every line with a number
of steps that it reads the CPU seconds of one step. It needs nothing of this package but what all its versions have, so
that another one, first on PYTHONPATH, is measured by the same lines.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as lightning
import pyro
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_tvae as p
from pyro_tvae import inference

__all__ = ["KINDS"]

WARM_UP, FEW, RATE = 5, 4, 1e-3


def fit(model: p.TVAE, guide: Any, batches: list[torch.Tensor], **further: Any) -> None:
    """Steps of ``fit``, as many as are asked for at a time."""

    class Turns(lightning.Callback):
        def __init__(self) -> None:
            self.turns = turns()
            self.left = WARM_UP

        def on_train_batch_start(self, *_: Any) -> None:
            if self.left == 0:
                self.left = next(self.turns)
            self.left -= 1

    endless = DataLoader(TensorDataset(torch.stack(batches)), batch_size=None, sampler=[*range(FEW)] * 250_000)
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "callbacks": [Turns()]}
    if hasattr(inference, "TrainerOptions"):
        options = {"trainer": inference.TrainerOptions(**options)}
    inference.fit(model, guide, endless, max_epochs=1000, progress=False, **options, **further)


def svi(model: p.TVAE, guide: Any, batches: list[torch.Tensor], **options: Any) -> None:
    """Pyro's own ``SVI.step``."""
    optim: Any = pyro.optim  # made at import, one for each of torch's
    own = pyro.infer.SVI(model, guide, optim.Adam({"lr": RATE, **options}), pyro.infer.Trace_ELBO())
    repeat(own.step, batches)


def loop(model: p.TVAE, guide: Any, batches: list[torch.Tensor]) -> None:
    """Pyro's ELBO as a module of torch, and an optimizer of torch."""
    elbo: Any = pyro.infer.Trace_ELBO()(model, guide)
    elbo(batches[0])  # makes what is made once
    optimizer = torch.optim.Adam(elbo.parameters(), lr=RATE, fused=True)

    def step(x: torch.Tensor) -> None:
        elbo(x).backward()
        optimizer.step()
        optimizer.zero_grad()

    repeat(step, batches)


def weights(model: p.TVAE, guide: Any, batches: list[torch.Tensor]) -> None:
    """Importance weights of a batch, K = 50."""
    repeat(lambda x: inference.log_weights(model, guide, x, 50), batches)


def jax(model: p.TVAE, guide: Any, batches: list[torch.Tensor], generator: str) -> None:
    """The step that is written in JAX."""
    from pyro_tvae.experiments.benchmarks import jax_step

    if hasattr(os, "sched_setaffinity"):  # it has no setting for its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: torch.get_num_threads()])
    jax_step.library().config.update("jax_default_prng_impl", generator)
    step = jax_step.stepper(model, guide, batches[0])
    repeat(lambda _: step(), batches)


KINDS: dict[str, Callable[[p.TVAE, Any, list[torch.Tensor]], None]] = {
    "fit": fit,
    "compiled": functools.partial(fit, compile=True),
    "svi": svi,
    "svi_fused": functools.partial(svi, fused=True),
    "loop": loop,
    "weights": weights,
    "threefry2x32": functools.partial(jax, generator="threefry2x32"),
    "rbg": functools.partial(jax, generator="rbg"),
}


def repeat(step: Callable[[torch.Tensor], object], batches: list[torch.Tensor]) -> None:
    """Steps of a loop of one's own, as many as are asked for at a time."""
    for i in range(WARM_UP):
        step(batches[i % FEW])
    for n in turns():
        for i in range(n):
            step(batches[i % FEW])


def turns() -> Iterator[int]:
    """Numbers of steps that are asked for, until nobody asks any more; what they took is told before the next."""
    print("ready", flush=True)
    for line in sys.stdin:
        since = time.process_time()
        yield int(line)
        print((time.process_time() - since) / int(line), flush=True)
    sys.exit()


def main(kind: str, sizes: list[int], threads: int) -> None:
    """Build the model of these sizes, and make steps.

    Args:
        kind: one of :data:`KINDS`.
        sizes: sequences of a batch, frames, side of a frame, capsules, positions, kernel and width of the roll.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    n, n_frames, side, n_capsules, capsule_dim, kernel, width = sizes
    model = p.TVAE((3, side, side), n_frames, n_capsules, capsule_dim, p.CapsuleRoll(kernel, width))
    distance = torch.arange(side).sub((side - 1) / 2).square()
    near = (distance[:, None] + distance).sqrt() < side / 4  # as large as a digit
    batches = [torch.rand(n, n_frames, 3, side, side) * near for _ in range(FEW)]
    KINDS[kind](model, p.MeanFieldGuide(model), batches)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
