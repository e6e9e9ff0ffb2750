"""The ELBO's terms against closed forms, Monte Carlo, Pyro's own ELBO and an exact log p(x)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    Guide,
    MeanFieldGuide,
    Network,
    Normal,
    NoTopography,
    OrbitEnergy,
    Stationary,
    default_guide,
)
from pyro_tvae.inference import ELBO, Terms

FRAME = (1, 2, 3)

MODELS: dict[str, Callable[[], TVAE]] = {
    "roll": lambda: TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, 1), mu=2.0),
    "orbits": lambda: TVAE(FRAME, 4, 2, 4, CapsuleRoll(4, 0), prior=OrbitEnergy(), mu=2.0),
    "orbits, stationary": lambda: TVAE(FRAME, 4, 2, 4, Stationary((4, 1)), prior=OrbitEnergy(), mu=2.0),
    "plain": lambda: TVAE(FRAME, 4, 2, 4, NoTopography()),
}
ALL = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


@ALL
def test_terms_are_per_sequence(build: Callable[[], TVAE]) -> None:
    model = build()
    terms = ELBO(model, default_guide(model))(torch.rand(5, 4, *FRAME))
    assert isinstance(terms, Terms)
    for term in (*terms, terms.elbo):
        assert term.shape == (5,)
    assert torch.equal(terms.elbo, terms.reconstruction - terms.kl)
    assert (terms.kl > 0).all()


@ALL
def test_closed_form_kl_equals_monte_carlo(build: Callable[[], TVAE]) -> None:
    model = build()
    guide = default_guide(model, initial_log_variance=-1.0)
    x = torch.rand(3, 4, *FRAME)
    with torch.no_grad():
        kl = ELBO(model, guide)(x).kl
        trace = poutine.trace(model).get_trace(x)
        sampled = torch.zeros(20_000, 3)
        for site, q in guide.posterior(x).items():
            values = q.sample(torch.Size([20_000]))
            p = trace.nodes[site]["fn"].base_dist
            sampled += (q.log_prob(values) - p.log_prob(values)).flatten(2).sum(-1)
    error = sampled.std(0) / 20_000**0.5
    # Five standard errors on three sequences: a false alarm once in 500,000 seeds. 1 % would miss no factor of two.
    assert ((kl - sampled.mean(0)).abs() < 5 * error).all()
    assert (error < 0.01 * kl).all()


def test_the_kl_to_gaussian_priors_is_the_textbooks() -> None:
    model = MODELS["roll"]()
    guide = default_guide(model)
    x = torch.rand(3, 4, *FRAME)
    expected = torch.zeros(3)
    for q in guide.posterior(x).values():
        expected = expected + 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).flatten(1).sum(-1)
    torch.testing.assert_close(ELBO(model, guide)(x).kl, expected)
    # Being closed, it does not depend on the draws or their number.
    torch.testing.assert_close(ELBO(model, guide, num_particles=7)(x).kl, expected)


@ALL
def test_the_bound_is_pyros_draw_by_draw(build: Callable[[], TVAE]) -> None:
    model = build()
    guide = default_guide(model)
    x = torch.rand(3, 4, *FRAME)
    with torch.no_grad():
        for seed in range(3):
            pyro.set_rng_seed(seed)
            ours = float(ELBO(model, guide)(x).elbo.sum())
            pyro.set_rng_seed(seed)
            assert -TraceMeanField_ELBO().loss(model, guide, x) == pytest.approx(ours, rel=1e-5)


@ALL
def test_a_guide_that_is_not_mean_field_has_its_kl_sampled(build: Callable[[], TVAE]) -> None:
    model = build()
    guide = default_guide(model)
    guide.mean_field = False
    x = torch.rand(3, 4, *FRAME)
    with torch.no_grad():
        pyro.set_rng_seed(3)
        ours = float(ELBO(model, guide)(x).elbo.sum())
        pyro.set_rng_seed(3)
        assert -Trace_ELBO().loss(model, guide, x) == pytest.approx(ours, rel=1e-5)


def test_gradients_are_pyros() -> None:
    model = MODELS["roll"]()
    guide = default_guide(model)
    x = torch.rand(3, 4, *FRAME)
    pyro.set_rng_seed(1)
    ours = ELBO(model, guide)
    (-ours(x).elbo.sum()).backward()
    expected = [parameter.grad.clone() for parameter in ours.parameters()]
    ours.zero_grad()
    pyro.set_rng_seed(1)
    TraceMeanField_ELBO()(model, guide)(x).backward()
    for parameter, gradient in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


def test_more_particles_average_more_draws() -> None:
    model = MODELS["roll"]()
    guide = default_guide(model, initial_log_variance=0.0)
    x = torch.rand(1, 4, *FRAME)
    with torch.no_grad():
        spread = [torch.stack([ELBO(model, guide, k)(x).elbo for _ in range(150)]).std() for k in (1, 16)]
    # The standard deviation shrinks fourfold; each is known to 6 %, so 2.7 to 6 are 4.5 standard errors of the ratio.
    assert 2.7 < float(spread[0] / spread[1]) < 6


def test_no_particle_is_refused() -> None:
    model = MODELS["roll"]()
    with pytest.raises(ValueError, match="expected at least 1"):
        ELBO(model, default_guide(model), num_particles=0)


# --- a model whose log p(x) is known ---------------------------------------------------------------------------------

SIGMA = 0.5


class Affine(Network):
    """Decoder and encoders of one affine layer: with Normal pixels and no topography, log p(x) has a closed form."""

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(-3), nn.Linear(math.prod(frame_shape), n_outputs))

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        return nn.Sequential(nn.Linear(n_latents, math.prod(frame_shape)), nn.Unflatten(-1, tuple(frame_shape)))


def linear_gaussian(off: float = 0.0) -> tuple[TVAE, Guide, Tensor, Tensor]:
    """x[l] = A z[l] + b + noise, with orthogonal columns in A so that the posterior is mean-field, in float64.

    ``off`` takes the guide away from that posterior: its means by so many standard deviations, its log-variances too.
    """
    model = TVAE(FRAME, 3, 1, 2, NoTopography(), likelihood=Normal(SIGMA), network=Affine()).double()
    guide = MeanFieldGuide(model, initial_log_variance=0.0).double()
    a = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64)).Q * torch.tensor([1.3, 0.7], dtype=torch.float64)
    b = torch.linspace(-0.4, 0.5, 6, dtype=torch.float64)
    precision = 1 + (a.T @ a).diagonal() / SIGMA**2
    with torch.no_grad():
        model.decoder[0].weight.copy_(a)
        model.decoder[0].bias.copy_(b)
        layer = guide.z_encoder.network[1]
        to_mean = (a / SIGMA**2 / precision).T
        layer.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        layer.bias.copy_(torch.cat([-to_mean @ b + off * precision.rsqrt(), -precision.log() + off]))
    return model, guide, a, b


def exact(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """log p(x) per sequence: frames are independent Normals with covariance A Aᵀ + σ² I."""
    covariance = a @ a.T + SIGMA**2 * torch.eye(6, dtype=torch.float64)
    return dist.MultivariateNormal(b, covariance).log_prob(x.flatten(-3)).sum(-1)


def test_with_the_exact_posterior_every_elbo_is_log_p() -> None:
    model, guide, a, b = linear_gaussian()
    x = model(n_sequences=5).detach()
    with torch.no_grad():
        trace = poutine.trace(guide).get_trace(x)
        replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)
        trace.compute_log_prob()
        replayed.compute_log_prob()
        log_w = replayed.nodes["x"]["log_prob"] + replayed.nodes["z"]["log_prob"] - trace.nodes["z"]["log_prob"]
    torch.testing.assert_close(log_w, exact(x, a, b))


def test_the_elbo_is_log_p_minus_the_gap() -> None:
    off = 0.3
    model, guide, a, b = linear_gaussian(off)
    x = model(n_sequences=4).detach()
    with torch.no_grad():
        draws = torch.stack([ELBO(model, guide, 100)(x).elbo for _ in range(100)])
    # KL(q ‖ posterior) for six latents of mean off and log-variance off, in units of the posterior.
    gap = 6 * 0.5 * (off**2 + math.exp(off) - 1 - off)
    error = draws.std(0) / 10
    # Five standard errors on four sequences: a false alarm once in 400,000 seeds.
    assert ((draws.mean(0) - (exact(x, a, b) - gap)).abs() < 5 * error).all()
    assert (error < 0.1 * gap).all()


MASK = torch.tensor([True, False, False])


def masked_draws(x: Tensor, model: TVAE, guide: Guide) -> Tensor:
    with torch.no_grad():
        return torch.stack([ELBO(model, guide, 100)(x, MASK).elbo for _ in range(100)])


def test_with_frames_unseen_the_elbo_is_still_a_bound() -> None:
    """All frames are scored, and unseen ones by their prior: both the bound and its value are known."""
    model, guide, a, b = linear_gaussian()
    x = model(n_sequences=4).detach()
    draws = masked_draws(x, model, guide)
    error = draws.std(0) / 10
    # For an unseen frame, E over the prior of log p(x | z) = log N(x; b, σ²) − ‖A‖² / (2 σ²).
    unseen = dist.Normal(b, SIGMA).log_prob(x.flatten(-3)).sum(-1) - a.square().sum() / (2 * SIGMA**2)
    seen = exact(x[:, :1], a, b)
    expected = seen + unseen[:, 1:].sum(-1)
    # Five standard errors on four sequences: a false alarm once in 400,000 seeds.
    assert ((draws.mean(0) - expected).abs() < 5 * error).all()
    assert (draws.mean(0) <= exact(x, a, b) + 5 * error).all()
    # Control: what scoring the seen frames alone would give exceeds the bound for these sequences.
    assert (seen > exact(x, a, b) + 5 * error).any()


def test_a_guide_with_a_site_too_many_gets_one_sentence() -> None:
    model = MODELS["plain"]()
    guide = copy.deepcopy(MeanFieldGuide(MODELS["roll"]()))
    with pytest.raises(ValueError, match="site 'u'"):
        ELBO(model, guide)(torch.rand(2, 4, *FRAME))
