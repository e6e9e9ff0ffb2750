"""Randomness: the states of all random generators as tensors and plain numbers, so that a stopped run can go on.

Nothing here needs pickle to be written or read: a checkpoint that holds such states is loaded with weights_only=True.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

__all__ = ["RandomStates", "generators_of", "own_randomness", "random_states", "restore"]

States = dict[str, Any]


def random_states(loaders: Sequence[torch.Generator] = ()) -> States:
    """States of the global generators of torch (every device in use), NumPy and Python, and of further torch ones."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the global one is what is meant
    version, numbers, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "python": {"version": version, "numbers": list(numbers), "next_gauss": next_gauss},
        "loaders": _states(loaders),
    }


def restore(states: States, loaders: Sequence[torch.Generator] = ()) -> None:
    """Put all generators back into states that :func:`random_states` took; devices that are gone are left out."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
    if torch.backends.mps.is_available():
        for state in states["mps"]:
            torch.mps.set_rng_state(state)
    numpy, python = states["numpy"], states["python"]
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["gauss"]))  # noqa: NPY002
    random.setstate((python["version"], tuple(python["numbers"]), python["next_gauss"]))
    _put(loaders, states["loaders"])


def _states(generators: Sequence[torch.Generator]) -> list[torch.Tensor]:
    return [generator.get_state() for generator in generators]


def _put(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=False):
        generator.set_state(state)


def generators_of(*loaders: Any) -> list[torch.Generator]:
    """Generators that data loaders and their samplers draw from, each once."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        if isinstance(loader, DataLoader):
            batches = loader.batch_sampler
            parts = (loader, loader.sampler, batches, getattr(batches, "sampler", None))
            made = (getattr(part, "generator", None) for part in parts)
            found |= {id(one): one for one in made if isinstance(one, torch.Generator)}
    return [*found.values()]


@contextmanager
def own_randomness(seed: int | None, resumes: bool) -> Iterator[None]:
    """Leave all generators, and Lightning's seed in the environment, as they were by a fit that brings its own.

    Without a seed of its own, and where it goes on from no checkpoint, it draws from the global generators.
    """
    if seed is None and not resumes:
        yield
        return
    states, variables = random_states(), ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    before = {name: os.environ[name] for name in variables if name in os.environ}
    try:
        if seed is not None:
            lightning.seed_everything(seed, workers=True, verbose=False)
        yield
    finally:
        restore(states)
        if not states["cuda"] and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(torch.initial_seed())  # where it would have begun
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


class RandomStates(Callback):
    """Keeps the generators' states in checkpoints, one set per process, and gives every process noise of its own.

    They are restored while the checkpoint is loaded, before the first batch is drawn: from there on, the resumed run
    draws what the uninterrupted one drew after it had written the checkpoint.

    Args:
        loaders: of the user's own, by what for; those of a data module are told of when they are made, by
            :meth:`following`.
    """

    def __init__(self, **loaders: Any) -> None:
        self._generators = {name: generators_of(loader) for name, loader in loaders.items()}
        self._stored: States = {}  # of loaders that are not made yet

    @contextmanager
    def following(self, data: lightning.LightningDataModule) -> Iterator[None]:
        """Have the loaders of a data module go on with the states that a checkpoint holds of their generators."""
        hooks = ("train_dataloader", "val_dataloader")
        before = {name: vars(data)[name] for name in hooks if name in vars(data)}
        for name in hooks:
            setattr(data, name, self._followed(name, getattr(data, name)))
        try:
            yield
        finally:
            for name in hooks:
                delattr(data, name)
            vars(data).update(before)

    def _followed(self, name: str, make: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(make)
        def made() -> Any:
            loaders = make()
            several = [*loaders.values()] if isinstance(loaders, Mapping) else loaders
            generators = generators_of(*(several if isinstance(several, list | tuple) else [several]))
            # One that loaders share has been put back already, and the first of them may have drawn from it since.
            taken = {id(one) for others in self._generators.values() for one in others}
            states = zip(generators, self._stored.pop(name, ()), strict=False)
            for generator, state in (pair for pair in states if id(pair[0]) not in taken):
                generator.set_state(state)
            self._generators[name] = generators
            return loaders

        return made

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        self.rank = trainer.global_rank
        # Lightning gives every process the same seed: different data, but the same noise.
        _own_noise(self.rank)

    def state_dict(self) -> dict[str, Any]:
        mine = random_states() | {name: _states(generators) for name, generators in self._generators.items()}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [mine]}
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, mine)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ranks = state_dict["ranks"]
        further = self.rank >= len(ranks)  # more processes than before
        self._stored = {**ranks[0 if further else self.rank]}
        restore(self._stored)
        for name, generators in self._generators.items():
            _put(generators, self._stored.get(name, ()))
        if further:  # they go on from the first one's state, each its own way
            torch.manual_seed(int(torch.randint(2**62, ())))
            _own_noise(self.rank)


def _own_noise(rank: int) -> None:
    if rank > 0:
        seed = np.random.SeedSequence([torch.initial_seed(), rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]) >> 1)
