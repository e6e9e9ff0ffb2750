"""Frame averages against closed forms: unbiased given the energies, bounds that grow in both numbers, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian import Affine
from torch import Tensor

import pyro_tvae
from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide, Normal, NoTopography
from pyro_tvae.guides import default_guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.inference import bound_gap, log_likelihood, log_weights, simulate
from pyro_tvae.inference.frame_averages import frame_averaged_weights

from .test_likelihood import FRAME, SIGMA, S, Toy

EPS = 1e-6


def rolling(**options: object) -> TVAE:
    """A small model in double precision whose p(x | energies) is Gaussian."""
    torch.manual_seed(0)
    sizes = (FRAME, S, 2, 3, CapsuleRoll(2, 0))
    return TVAE(*sizes, likelihood=Normal(SIGMA), network=Affine(), mu=1.0, **options).double()  # type: ignore[arg-type]


def log_p_given(model: TVAE, u: Tensor, x: Tensor) -> Tensor:
    """``log p(x | u)`` by frames, (..., B, S): x[l] = A r (z + μ) + b + noise with r = 1 / sqrt(V + eps)."""
    a, b = model.decoder[0].weight, model.decoder[0].bias
    root = (model.energy(u) + EPS).rsqrt().flatten(-2)
    loads = a * root.unsqueeze(-2)  # (..., B, S, pixels, latents)
    covariance = loads @ loads.mT + SIGMA**2 * torch.eye(len(a)).double()
    return dist.MultivariateNormal(loads.sum(-1) * model.mu + b, covariance).log_prob(x.flatten(-3))


@pytest.mark.parametrize("chunk", [200, 70])
@torch.no_grad()
def test_given_the_energies_weights_estimate_the_closed_form_without_bias(chunk: int) -> None:
    """500 weights of 200 draws for each of 3 sequences; five standard errors, false alarm 6e-7 for each."""
    model = rolling()
    u = 1 + 0.3 * torch.randn(3, S, 2, 3).double()
    root = (model.energy(u) + EPS).rsqrt()
    x = model.decode((torch.randn(3, S, 2, 3).double() + model.mu) * root).sample()
    proposal = dist.Normal(0.1, torch.tensor(1.1).double()).expand(u.shape)
    posterior = {"u": dist.Delta(u, event_dim=3), "z": proposal}
    log_w = frame_averaged_weights(model, posterior, x, None, 500, 200, chunk)
    exact = model.prior_distributions()["u"].log_prob(u) + log_p_given(model, u, x).sum(-1)
    ratio = (log_w - exact).exp()
    error = ratio.std(0) / math.sqrt(500)
    assert error.max() < 0.1
    assert (ratio.mean(0) - 1).abs().div(error).max() < 5


def test_the_bound_holds_grows_in_both_numbers_and_beats_draws_of_whole_sequences() -> None:
    """Means over 4,000 sequences; a difference of five standard errors is seen by chance 3e-7 times."""
    torch.manual_seed(1)
    toy = Toy(0.6)
    x = toy.sequences(4000)
    exact = toy.log_p(x)
    bounds = {
        (k, m): log_likelihood(toy.model, toy.guide, x, k, frame_particles=m, batch_size=4000).iwae
        for k, m in ((1, 1), (1, 4), (1, 16), (4, 16), (16, 1))
    }
    for smaller, larger in (
        ((1, 1), (1, 4)),
        ((1, 4), (1, 16)),
        ((1, 16), (4, 16)),
        ((16, 1), (1, 16)),
    ):
        gain = bounds[larger] - bounds[smaller]
        assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain)), (smaller, larger)
    for bound in bounds.values():
        gap = exact - bound
        assert gap.mean() > -5 * gap.std() / math.sqrt(len(gap))


@torch.no_grad()
def test_weights_of_a_plain_vae_are_unbiased_and_frames_that_were_not_seen_count_for_nothing() -> None:
    """40,000 weights of 2 draws; five standard errors, false alarm 6e-7 for each of 6 numbers."""
    torch.manual_seed(2)
    toy = Toy(0.3)
    x = toy.sequences(3)
    seen = torch.tensor([True, False, True])
    for observed, exact in (
        (None, toy.log_p(x)),
        (seen, toy.marginal.log_prob(x.flatten(-3))[:, seen].sum(-1)),
    ):
        log_w = log_weights(toy.model, toy.guide, x, 40_000, frame_particles=2, observed=observed, seed=0)
        ratio = (log_w - exact).exp()
        assert (ratio.mean(0) - 1).abs().div(ratio.std(0) / 200).max() < 5
    blank = torch.where(seen.reshape(-1, 1, 1, 1), x, float("nan"))
    again = log_weights(toy.model, toy.guide, blank, 40_000, frame_particles=2, observed=seen, seed=0)
    assert torch.equal(log_w, again)


GUIDES: dict[str, Callable[[TVAE], pyro_tvae.Guide]] = {
    "mean-field": MeanFieldGuide,
    "shared trunk": pyro_tvae.SharedTrunkGuide,
    "sequence": pyro_tvae.SequenceGuide,
    "semi-amortized": pyro_tvae.SemiAmortizedGuide,
}
ORBIT_GUIDES: dict[str, Callable[[TVAE], pyro_tvae.Guide]] = {
    "orbit": pyro_tvae.OrbitGuide,
    "conditional orbit": pyro_tvae.ConditionalOrbitGuide,
    "orbit covariance": pyro_tvae.OrbitCovarianceGuide,
}


def orbits() -> TVAE:
    torch.manual_seed(0)
    parts = {"prior": pyro_tvae.OrbitEnergy(), "likelihood": Normal(SIGMA), "network": Affine()}
    return TVAE(FRAME, S, 2, 3, CapsuleRoll(3, 0), mu=1.0, **parts).double()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "guide_of"),
    [(rolling, one) for one in GUIDES.values()] + [(orbits, one) for one in ORBIT_GUIDES.values()],
    ids=[*GUIDES, *ORBIT_GUIDES],
)
@torch.no_grad()
def test_a_single_draw_is_a_weight_of_the_whole_sequence(
    build: Callable[[], TVAE], guide_of: Callable[[TVAE], pyro_tvae.Guide]
) -> None:
    """Means of log w, against weights of whole sequences; five standard errors, false alarm 6e-7 for each of 2."""
    model = build()
    guide, x = guide_of(model).double(), model(n_sequences=2).detach()
    n = 4000
    whole = log_weights(model, guide, x, n, seed=0)
    torch.manual_seed(1)
    single = frame_averaged_weights(model, posterior_of(guide, x, None, None), x, None, n, 1, 1)  # type: ignore[arg-type]
    error = ((whole.var(0) + single.var(0)) / n).sqrt()
    assert ((whole.mean(0) - single.mean(0)).abs() / error).max() < 5
    many = log_weights(model, guide, x, 50, frame_particles=20, seed=0)
    assert many.shape == (50, 2)
    assert (many.mean(0) > single.mean(0)).all()


class Headed(TVAE):
    def heads(self, t: Tensor) -> None:
        pyro.factor("all frames", t.sum((-1, -2, -3)))


REFUSED: dict[str, tuple[Callable[[], TVAE], Callable[[TVAE], pyro_tvae.Guide], str]] = {
    "autoregressive": (
        lambda: rolling(latent=pyro_tvae.AutoregressiveLatent()),
        MeanFieldGuide,
        "AutoregressiveLatent couples the frames of z: use frame_particles=1",
    ),
    "conditional": (rolling, pyro_tvae.ConditionalGuide, "does not draw the energies, and z by itself or given them"),
    "flow": (rolling, pyro_tvae.FlowGuide, "each as a site of its own"),
    "covariance": (rolling, pyro_tvae.CovarianceGuide, "each as a site of its own"),
    "heads": (
        lambda: Headed(FRAME, S, 2, 3, CapsuleRoll(2, 0), likelihood=Normal(SIGMA), network=Affine()).double(),
        MeanFieldGuide,
        "Headed has statements of its own",
    ),
}


@pytest.mark.parametrize(("build", "guide_of", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_couples_frames_otherwise_is_refused(
    build: Callable[[], TVAE], guide_of: Callable[[TVAE], pyro_tvae.Guide], sentence: str
) -> None:
    model = build()
    guide = guide_of(model).double()
    x = torch.rand(2, S, *FRAME).double()
    with pytest.raises(ValueError, match=sentence):
        log_likelihood(model, guide, x, 3, frame_particles=2)
    log_likelihood(model, guide, x, 3)


def test_mistakes_are_named() -> None:
    model = TVAE(FRAME, S, 1, 2, NoTopography(), likelihood=Normal(SIGMA), network=Affine())
    guide, x = default_guide(model), torch.rand(2, S, *FRAME)
    with pytest.raises(ValueError, match="frame_particles is 0; expected a whole number of at least 1"):
        log_likelihood(model, guide, x, 3, frame_particles=0)
    with pytest.raises(ValueError, match="frame_particles is 0; expected a whole number of at least 1"):
        log_weights(model, guide, x, 3, frame_particles=0)
    with pytest.raises(ValueError, match="goes with estimator='sequence' alone"):
        log_likelihood(model, guide, x, 3, frame_particles=2, estimator="frame")


def test_with_exact_latents_in_their_place_frame_averages_bound_from_above() -> None:
    """Means over 4,000 sequences; what is asserted of noise is off by five standard errors 6e-7 of the times."""
    torch.manual_seed(3)
    toy = Toy(0.6)
    simulated = simulate(toy.model, 4000)
    exact = toy.log_p(simulated.x)
    lower = log_likelihood(toy.model, toy.guide, simulated.x, 16, frame_particles=2, batch_size=4000, seed=0).iwae
    gap = bound_gap(toy.model, toy.guide, simulated, 16, frame_particles=2)
    whole = bound_gap(toy.model, toy.guide, simulated, 32)
    above = lower + gap - exact
    assert above.mean() > -5 * above.std() / math.sqrt(4000)
    assert gap.mean() > 5 * gap.std() / math.sqrt(4000)
    assert whole.mean() - gap.mean() > 5 * (whole - gap).std() / math.sqrt(4000)
    model = rolling()
    gap = bound_gap(model, MeanFieldGuide(model).double(), simulate(model, 500), 3, frame_particles=2)
    assert gap.shape == (500,)
    assert gap.median() > 0
