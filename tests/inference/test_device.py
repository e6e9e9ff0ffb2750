"""On a GPU: captured steps are eager ones, nothing waits in a replay, and estimates agree with those of the CPU.

Where there is no GPU all of this is left out: ``python -m pytest -m device`` says how much.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.inference import History, TrainerOptions, fit, log_likelihood

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


class Strict(Callback):
    """Lets no replayed step wait for the device, but for those that report."""

    def __init__(self) -> None:
        self.replays = 0

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        capture = module.capture
        reports = (trainer.global_step + 1) % module.report_every == 0
        strict = capture is not None and capture.recorded > 0 and not reports
        torch.cuda.set_sync_debug_mode("error" if strict else "default")

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.replays = 0 if module.capture is None else module.capture.replays


def trained(captures: bool, **options: Any) -> tuple[list[Tensor], History, int]:
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), 6, 3, 6, CapsuleRoll(5, 1), mu=2.0)
    guide = MeanFieldGuide(model)
    x = torch.rand(64, 6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    strict = Strict()
    options = {"max_epochs": 5, "batch_size": 8, "warmup_steps": 10, "frame_dropout": 0.5} | options
    trainer = TrainerOptions("gpu", devices=1, callbacks=[strict])
    history = fit(model, guide, x, seed=1, capture=captures, progress=False, trainer=trainer, **options)
    return [p.detach().cpu().clone() for p in [*model.parameters(), *guide.parameters()]], history, strict.replays


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)])
def test_captured_steps_are_eager_ones(optimizer: Any) -> None:
    eager, expected, _ = trained(False, optimizer=optimizer)
    found, history, replays = trained(True, optimizer=optimizer)
    assert replays == 40 - 4
    for one, two in zip(eager, found, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)
    assert history.column("train/objective")[1] == pytest.approx(expected.column("train/objective")[1], rel=1e-5)


def test_a_resumed_captured_fit_ends_as_one_left_alone(tmp_path: Any) -> None:
    whole, _, _ = trained(True)
    trained(True, max_epochs=3, directory=tmp_path)
    found, _, _ = trained(True, resume=tmp_path / "checkpoints" / "last.ckpt", directory=tmp_path)
    assert all(torch.allclose(one, two, rtol=1e-5, atol=1e-6) for one, two in zip(whole, found, strict=True))


def test_the_bound_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), 6, 3, 6, CapsuleRoll(5, 1), mu=2.0)
    guide = MeanFieldGuide(model)
    x = torch.rand(16, 6, 1, 8, 8)
    here = log_likelihood(model, guide, x, 400)
    both = copy.deepcopy([model, guide])
    there = log_likelihood(both[0].cuda(), both[1].cuda(), x.cuda(), 400)
    # Means over sequences and draws of log w, whose error is small: four standard errors, a false alarm in 16,000.
    error = float((here.elbo - there.elbo).std()) / 16**0.5
    assert abs(float((here.elbo - there.elbo).mean())) < 4 * error + 1e-3
