"""Content measures against constructed codes: perfect, constant, random, and ones that hold a known factor."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_tvae import roll
from pyro_tvae.inference import active_latents, commutation, pose_probe, probe


def test_active_latents_are_those_whose_means_vary() -> None:
    mean = torch.zeros(50, 4, 3, 5)
    mean[..., 1, :] = torch.randn(50, 4, 5)  # over sequences and frames
    mean[..., 2, 0] = torch.randn(50, 1)  # over sequences alone
    mean[..., 2, 1] = 3 + 0.05 * torch.randn(50, 4)  # a variance of 0.0025: a constant, nearly
    assert active_latents(mean) == 6
    with pytest.raises(ValueError, match=r"expected \(sequence, frame, capsule, position\)"):
        active_latents(mean[0])


def test_commutation_is_0_for_equivariant_and_1_for_unrelated_codes() -> None:
    t = torch.randn(200, 4, 2, 6, generator=torch.Generator().manual_seed(0))
    assert commutation(t, roll(t, 1)) == 0
    # Rolling the wrong way, or not at all, is no better than another sequence's code.
    for wrong in (roll(t, -1), t):
        assert commutation(t, wrong) == pytest.approx(1, abs=0.05)
    half = roll(t, 1) + 0.5 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1))
    assert commutation(t, half) == pytest.approx(0.5 / math.sqrt(2.25), abs=0.02)


def test_commutation_of_a_constant_code_is_undefined() -> None:
    t = torch.ones(5, 4, 2, 6) * 3.7
    assert math.isnan(commutation(t, t))


def test_commutation_does_not_depend_on_scale() -> None:
    t, moved = torch.randn(9, 4, 2, 6), torch.randn(9, 4, 2, 6)
    assert commutation(100 * t, 100 * moved) == pytest.approx(commutation(t, moved), rel=1e-5)


@pytest.mark.parametrize("shapes", [((1, 4, 2, 6), (1, 4, 2, 6)), ((3, 4, 2, 6), (2, 4, 2, 6)), ((3, 4, 6), (3, 4, 6))])
def test_commutation_refuses_codes_that_do_not_belong_together(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 sequences"):
        commutation(*(torch.randn(shape) for shape in shapes))


def test_probes_read_what_is_there_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(3)
    labels, test_labels = torch.randint(4, (300,), generator=generator), torch.randint(4, (200,), generator=generator)
    phase, test_phase = (torch.randint(6, (n, 1), generator=generator) for n in (300, 200))
    index, test_index = ((start + torch.arange(5)) % 6 for start in (phase, test_phase))

    def code(classes: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
        angle = 2 * math.pi * poses / 6
        parts = [torch.nn.functional.one_hot(classes, 4)[:, None].expand(-1, 5, -1), angle.cos()[..., None] + 50]
        parts += [angle.sin()[..., None], torch.full((len(classes), 5, 1), 7.0)]
        noise = torch.randn(len(classes), 5, 5, generator=generator)
        return torch.cat([*parts, noise], -1).reshape(len(classes), 5, 2, 6)

    t, test_t = code(labels, index), code(test_labels, test_index)
    assert probe(t, labels, test_t, test_labels) == 1
    unknown = (
        torch.cat([labels, labels.new_full((len(t),), -1)]),
        torch.cat([test_labels, test_labels.new_full((1,), -1)]),
    )
    noise = torch.cat([t, torch.randn_like(t)]), torch.cat([test_t, test_t[:1]])
    assert probe(noise[0], unknown[0], noise[1], unknown[1]) == 1  # of those whose class is known
    assert math.isnan(probe(t, labels, test_t, torch.full_like(test_labels, -1)))
    assert pose_probe(t, index, test_t, test_index, 6) > 0.999
    # Controls: noise alone is at chance, 1/4, and below an R² of 0 up to its error.
    empty, test_empty = torch.randn(300, 5, 2, 6, generator=generator), torch.randn(200, 5, 2, 6, generator=generator)
    assert probe(empty, labels, test_empty, test_labels) < 0.35
    assert pose_probe(empty, index, test_empty, test_index, 6) < 0.02


def test_probes_of_what_never_changes_are_undefined() -> None:
    t = torch.randn(4, 3, 1, 2)
    assert math.isnan(probe(t, torch.ones(4), t, torch.ones(4)))
    assert math.isnan(pose_probe(t, torch.ones(4, 3), t, torch.ones(4, 3), 6))


def test_frames_that_were_not_observed_count_for_nothing() -> None:
    """Codes of other frames may be anything: neither a class is read from them, nor is a latent active by them."""
    torch.manual_seed(0)
    labels = torch.arange(40) % 2
    t = torch.zeros(40, 4, 1, 2)
    t[..., 0] = (2.0 * labels - 1)[:, None, None]
    there = torch.arange(4) < torch.arange(40)[:, None] % 4 + 1
    t = torch.where(there[..., None, None], t, -t)
    known = torch.where(there, labels[:, None], -1)
    assert probe(t, known, t, known) == 1
    assert probe(t, labels, t, labels) < 0.9
    assert probe(t, known, t[:, :0], known[:, :0]) != 1  # nothing to judge on
    mean = torch.where(there[..., None, None], torch.zeros(40, 4, 1, 2), torch.randn(40, 4, 1, 2))
    assert active_latents(mean, there) == 0
    assert active_latents(mean) == 2
    with pytest.raises(ValueError, match="1 frames were observed; expected two or more"):
        active_latents(mean, torch.arange(160).reshape(40, 4) == 3)
