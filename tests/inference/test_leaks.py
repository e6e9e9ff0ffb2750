"""Leaks: a process that fits and judges one model after another holds no more than it did after the first few.

PYRO_TVAE_SOAK=500 in the environment asks for so many fits, and twice as many judgements, and prints what the process
held along the way.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_tvae import TVAE, CapsuleRoll, Guide, MeanFieldGuide, OrbitEnergy, default_guide, encode
from pyro_tvae.experiments.datasets import Images, SequenceDataModule, Splits, Transformations
from pyro_tvae.experiments.evaluation.evaluate import evaluate
from pyro_tvae.inference import TrainerOptions, fit, forward_roll, log_likelihood, to_arviz

FITS = int(os.environ.get("PYRO_TVAE_SOAK", "0"))
FRAME = (1, 4, 4)


def parts(orbits: bool = False) -> tuple[TVAE, Guide]:
    model = TVAE(FRAME, 3, 1, 3, CapsuleRoll(3, 0), mu=3.0, prior=OrbitEnergy() if orbits else None)
    return model, default_guide(model)


def module() -> SequenceDataModule:
    part = Images(torch.rand(8, 1, 4, 4), torch.arange(8) % 2)
    return SequenceDataModule(Splits(part, part, part), Transformations(rotation=(0, 120, 240)), n_frames=3)


def fitted(x: Tensor, folder: Path | None, orbits: bool = False) -> tuple[TVAE, Guide]:
    model, guide = parts(orbits)
    options = TrainerOptions("cpu")
    fit(model, guide, x, validation=x, max_epochs=1, progress=False, directory=folder, trainer=options)
    return model, guide


def judged(k: int, model: TVAE, guide: Guide, x: Tensor, data: SequenceDataModule) -> None:
    """One of the ways to judge."""

    def program(x: Tensor, observed: Tensor | None = None) -> object:
        return guide(x, observed)

    ways = (
        lambda: log_likelihood(model, guide, x, 3),
        lambda: log_likelihood(model, program, x, 3),
        lambda: forward_roll(model, guide, x, num_particles=2),
        lambda: encode(model, guide, x),
        lambda: evaluate(model, guide, data, num_particles=2, progress=False),
        lambda: to_arviz(model, guide, x),
    )
    ways[k % len(ways)]()


@pytest.mark.parametrize("orbits", [False, True])
def test_models_that_were_fitted_and_judged_are_let_go_of(orbits: bool, tmp_path: Path) -> None:
    x, data, living = torch.rand(8, 3, *FRAME), module(), []
    for k in range(3):
        model, guide = fitted(x, tmp_path if k == 0 else None, orbits)
        for way in range(6):
            judged(way, model, guide, x, data)
        living += [weakref.ref(model), weakref.ref(guide)]
        del model, guide
    gc.collect()
    assert [one() for one in living] == [None] * 6
    assert len(pyro.get_param_store()) == 0


def test_a_guide_that_is_a_function_is_let_go_of_with_what_it_holds() -> None:
    model = TVAE(FRAME, 3, 1, 3, CapsuleRoll(3), mu=3.0)
    guide = MeanFieldGuide(model)
    x, living = torch.rand(8, 3, *FRAME), (weakref.ref(model), weakref.ref(guide))
    judged(1, model, guide, x, module())
    del model, guide
    gc.collect()
    assert [one() for one in living] == [None, None]


def held() -> dict[str, float]:
    """What this process holds: MiB, and numbers of things."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "store": len(pyro.get_param_store()),
        "modules": sum(isinstance(one, nn.Module) for one in gc.get_objects()),
        "objects": len(gc.get_objects()),
    }


@pytest.mark.timeout(0)
@pytest.mark.skipif(FITS < 20, reason="takes minutes: PYRO_TVAE_SOAK says how many fits")
def test_what_a_process_holds_stays_as_it_is_after_the_first_ten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, data, rows = torch.rand(8, 3, *FRAME), module(), {}
    for k in range(FITS):
        model, guide = fitted(x, tmp_path / str(k) if k % 5 == 0 else None, orbits=k % 2 == 1)
        for way in (2 * k, 2 * k + 1):
            judged(way, model, guide, x, data)
        del model, guide
        if k + 1 in (1, 10, 20, 50) or (k + 1) % 100 == 0:
            rows[k + 1] = held()
            with capsys.disabled():
                print(k + 1, {name: round(value, 1) for name, value in rows[k + 1].items()}, flush=True)
    first, last = rows[10], rows[max(rows)]
    assert {name: last[name] for name in ("threads", "files", "store", "modules")} == {
        name: first[name] for name in ("threads", "files", "store", "modules")
    }
    assert last["objects"] < first["objects"] + 20 * FITS / 100
    assert last["MiB"] < first["MiB"] + 40  # a heap settles; a model of this size kept alive would cost as much a fit
