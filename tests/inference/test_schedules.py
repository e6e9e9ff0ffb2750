"""The learning rate that rises and falls: its formula, its short fits, and fits that were interrupted."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from complaints import refused

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.inference import WarmupCosineLR, fit

FRAME = (1, 2, 3)


def rates(steps: int, **options: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule, found = WarmupCosineLR(optimizer, steps, **options), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_it_rises_along_a_line_and_falls_along_a_cosine() -> None:
    expected = [0.5 * min(1, (k + 1) / 30) * (1 + math.cos(math.pi * k / 400)) / 2 for k in range(401)]
    assert rates(400, warmup_steps=30) == pytest.approx(expected, abs=1e-12)
    assert rates(400, warmup_steps=30)[-1] == 0


def test_a_short_fit_rises_over_a_tenth_of_it() -> None:
    assert rates(50, warmup_steps=100) == rates(50, warmup_steps=5)
    assert rates(50, warmup_steps=0)[0] == 0.5
    assert rates(1)[0] == 0.5


@pytest.mark.parametrize(("steps", "warmup"), [(0, 1), (5, -1)])
def test_what_makes_no_sense_is_refused(steps: int, warmup: int) -> None:
    assert "expected at least one step" in refused(lambda: rates(steps, warmup_steps=warmup) or rates(0))


def test_an_interrupted_fit_goes_on_with_its_rates(tmp_path: Path) -> None:
    """Bit by bit: half of the steps, then the rest from the checkpoint, with the whole course in view."""

    def pair() -> tuple[TVAE, MeanFieldGuide]:
        torch.manual_seed(0)
        model = TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, 1), mu=2.0)
        return model, MeanFieldGuide(model)

    x = torch.rand(8, 4, *FRAME, generator=torch.Generator().manual_seed(0))

    def schedule(optimizer: torch.optim.Optimizer, _: int) -> WarmupCosineLR:
        return WarmupCosineLR(optimizer, 12, warmup_steps=3)

    options = {"batch_size": 2, "schedule": schedule, "warmup_steps": 0, "seed": 0, "progress": False}
    whole, parts = pair(), pair()
    fit(*whole, x, max_epochs=3, **options)  # type: ignore[arg-type]
    first = fit(*parts, x, max_epochs=1, directory=tmp_path, **options)  # type: ignore[arg-type]
    parts = pair()
    fit(*parts, x, max_epochs=3, directory=tmp_path, resume=first.last_checkpoint, **options)  # type: ignore[arg-type]
    for one, two in zip(whole, parts, strict=True):
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(p, q)
