"""Scoring a part of the frames: over all parts, the average is what all frames say, and so is its gradient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from complaints import refused
from torch import Tensor

from pyro_tvae import TVAE, CapsuleRoll, Guide, MeanFieldGuide, OrbitEnergy, default_guide
from pyro_tvae.inference import ELBO, IWAE, MeanFieldELBO, Objective, fit
from pyro_tvae.inference.training import Fitting

FRAME, S = (1, 2, 3), 4


def pair(orbits: bool = False) -> tuple[TVAE, Guide]:
    topography, prior = (CapsuleRoll(S, 0), OrbitEnergy()) if orbits else (CapsuleRoll(3, 1), None)
    model = TVAE(FRAME, S, 2, S, topography, prior=prior, mu=2.0).double()
    return model, default_guide(model).double()


def gradient(objective: Objective, value: Tensor) -> Tensor:
    parts = torch.autograd.grad(value, [*objective.parameters()])
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_the_average_over_all_subsets_is_the_bound_of_all_frames(n: int, particles: int, masked: bool) -> None:
    """At the same draws of the latents, exactly: terms and gradients of every subset of n of the S frames."""
    model, guide = pair(orbits=n % 2 == 0)
    objective = ELBO(model, guide, particles)
    x = torch.rand(3, S, *FRAME, dtype=torch.float64)
    observed = torch.tensor([[True, True, False, True]] * 3) if masked else None
    torch.manual_seed(1)
    whole = objective(x, observed)
    subsets = list(itertools.combinations(range(S), n))
    elbo, gradients = torch.zeros(3, dtype=torch.float64), []
    for subset in subsets:
        torch.manual_seed(1)
        terms = objective(x, observed, subsample=torch.tensor([subset] * 3))
        assert torch.equal(terms.kl, whole.kl)
        elbo += terms.elbo.detach() / len(subsets)
        gradients.append(gradient(objective, terms.objective.sum()))
    torch.testing.assert_close(elbo, whole.elbo.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.stack(gradients).mean(0), gradient(objective, whole.objective.sum()))


def test_each_sequence_has_frames_of_its_own() -> None:
    model, guide = pair()
    objective = ELBO(model, guide)
    x = torch.rand(2, S, *FRAME, dtype=torch.float64)
    torch.manual_seed(0)
    terms = objective(x, subsample=torch.tensor([[0, 1], [3, 2]]))
    blank = x.clone()
    blank[0, 2:], blank[1, :2] = 0, 0
    torch.manual_seed(0)
    t = model.compose(guide(x))
    scored = (t[0, :2], x[0, :2]), (t[1, 2:], x[1, 2:])
    twin = 2 * torch.stack([model.decode(one).log_prob(frames).sum() for one, frames in scored])
    torch.testing.assert_close(terms.reconstruction, twin)


def test_fit_draws_them_anew_in_training_and_scores_all_in_validation() -> None:
    model, guide = pair()
    seen: list[Tensor | None] = []
    forward = ELBO.forward

    class Watched(ELBO):
        def forward(self, *args, **options):  # type: ignore[no-untyped-def]
            seen.append(options.get("subsample"))
            return forward(self, *args, **options)

    x = torch.rand(8, S, *FRAME, dtype=torch.float64)
    options = {"validation": x, "objective": Watched, "seed": 0, "progress": False}
    fit(model, guide, x, max_epochs=60, batch_size=8, subsample_frames=2, **options)  # type: ignore[arg-type]
    drawn = torch.stack([one for one in seen if one is not None])
    assert drawn.shape == (60, 8, 2)
    assert len([one for one in seen if one is None]) >= 60
    assert (drawn[..., 0] != drawn[..., 1]).all()
    counts = drawn.flatten().bincount(minlength=S)
    # Binomial(480, 1/2) each: five standard deviations, a false alarm in 400,000 seeds.
    assert ((counts - 240).abs() < 55).all()


@pytest.mark.parametrize("n", [0, 5, 2.0, 1.0, 0.0, -0.5, math.nan, True])
def test_impossible_numbers_are_refused(n: object) -> None:
    model, guide = pair()
    message = refused(lambda: Fitting(model, guide, subsample_frames=n))  # type: ignore[arg-type]
    assert f"subsample_frames is {n!r}; expected 1 to 4 frames" in message


@pytest.mark.parametrize(("share", "n"), [(0.5, 2), (0.3, 1), (0.01, 1), (0.99, 4)])
def test_a_share_is_rounded_to_frames(share: float, n: int) -> None:
    model, guide = pair()
    drawn = Fitting(model, guide, subsample_frames=share)._subsample(torch.rand(5, S, *FRAME))
    assert drawn is not None
    assert drawn.shape == (5, n)


def test_objectives_that_are_no_average_over_frames_are_refused() -> None:
    model, guide = pair()
    message = refused(lambda: Fitting(model, guide, subsample_frames=2, objective=IWAE, num_particles=2))
    assert "IWAE" in message
    Fitting(model, guide, subsample_frames=2, objective=MeanFieldELBO)


def test_a_program_that_takes_no_subsample_is_refused() -> None:
    class Own(TVAE):
        def forward(self, x=None, observed=None, *, n_sequences=None):  # type: ignore[no-untyped-def, override]
            return super().forward(x, observed, n_sequences=n_sequences)

    model = Own(FRAME, S, 2, S, CapsuleRoll(3, 1))
    assert "takes no 'subsample'" in refused(lambda: Fitting(model, MeanFieldGuide(model), subsample_frames=2))
