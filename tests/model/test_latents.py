"""Laws of z: each against a brute-force twin, the closed forms of their divergences, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_tvae import (
    TVAE,
    AutoregressiveLatent,
    CapsuleRoll,
    LaplaceLatent,
    LatentPrior,
    MeanFieldGuide,
    MixtureLatent,
    NormalLatent,
    PseudoInputLatent,
    StudentLatent,
)
from pyro_tvae.inference import ELBO, Annealing, annealed_importance, nuts, to_arviz
from pyro_tvae.inference.objectives import divergence

FRAME, S, C, D = (1, 2, 3), 4, 2, 4
FALSE_ALARM = 1e-4

LATENTS: dict[str, Callable[[], LatentPrior]] = {
    "normal": NormalLatent,
    "laplace": LaplaceLatent,
    "student": lambda: StudentLatent(4.0),
    "autoregressive": lambda: AutoregressiveLatent(0.7),
    "anticorrelated": lambda: AutoregressiveLatent(-0.6, learned=False),
    "mixture": lambda: MixtureLatent(3),
    "mixture of frames": lambda: MixtureLatent(3, per="frame"),
    "pseudo_inputs": lambda: PseudoInputLatent(3),
}
SAMPLED = (StudentLatent, MixtureLatent, PseudoInputLatent)  # their divergence from a Normal has no closed form
ALL = pytest.mark.parametrize("make", LATENTS.values(), ids=LATENTS)
MARGINALS = {
    "normal": stats.norm(),
    "laplace": stats.laplace(scale=0.5**0.5),
    "student": stats.t(4),
    "autoregressive": stats.norm(),
    "anticorrelated": stats.norm(),
}


def small(latent: LatentPrior) -> TVAE:
    return TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=latent, mu=2.0)


@pytest.mark.parametrize("name", MARGINALS)
@pytest.mark.parametrize("frame", [0, S - 1])
def test_marginals_are_the_documented_ones(name: str, frame: int) -> None:
    draws = small(LATENTS[name]()).prior_distributions()["z"].sample(torch.Size([4000]))
    assert draws.shape == (4000, S, C, D)
    # Ten tests at 1 in 10,000 each: one false alarm in 1,000 seeds.
    assert stats.kstest(draws[:, frame, 1, 2].double().numpy(), MARGINALS[name].cdf).pvalue > FALSE_ALARM
    assert stats.kstest(1.3 * draws[:, frame, 1, 2].double().numpy(), MARGINALS[name].cdf).pvalue < FALSE_ALARM


@pytest.mark.parametrize("phi", [0.7, -0.6, 0.0])
def test_the_process_is_a_normal_with_powers_of_phi_as_covariance(phi: float) -> None:
    latent = AutoregressiveLatent(phi)
    latent.fit_to(S, C, D)
    like = torch.zeros((), dtype=torch.float64)
    distribution = latent.double().distribution(like)
    covariance = torch.tensor([[phi ** abs(i - j) for j in range(S)] for i in range(S)], dtype=torch.float64)
    z = torch.randn(5, S, C, D, dtype=torch.float64)
    expected = torch.zeros(5, dtype=torch.float64)
    for c in range(C):
        for p in range(D):
            expected += dist.MultivariateNormal(torch.zeros(S).double(), covariance).log_prob(z[:, :, c, p])
    torch.testing.assert_close(distribution.log_prob(z).detach(), expected)
    draws = distribution.sample(torch.Size([20_000])).transpose(1, -1).flatten(0, 2)  # (N, S)
    # Entries of a sample covariance of 160,000 draws have errors below 0.0036: five of them.
    assert (draws.T @ draws / len(draws) - covariance).abs().max() < 0.018


def test_the_coefficient_is_learned_where_asked_and_stays_between_its_ends() -> None:
    latent = AutoregressiveLatent(0.5)
    model = small(latent)
    z = model.prior_distributions()["z"].rsample(torch.Size([7]))
    model.prior_distributions()["z"].log_prob(z).sum().backward()
    assert latent.raw.grad is not None
    assert latent.raw.grad != 0
    assert not list(AutoregressiveLatent(0.5, learned=False).parameters())
    with torch.no_grad():
        latent.raw.fill_(3.0)
    assert torch.isfinite(model.prior_distributions()["z"].log_prob(z)).all()


@ALL
def test_the_divergence_equals_monte_carlo(make: Callable[[], LatentPrior]) -> None:
    model = small(make()).double()
    p = model.prior_distributions()["z"]
    loc, scale = torch.randn(3, S, C, D).double(), torch.rand(3, S, C, D).double() + 0.2
    q = dist.Normal(loc, scale).to_event(3)
    draws = q.sample(torch.Size([20_000]))
    terms = (q.log_prob(draws) - p.log_prob(draws)).detach()
    error = terms.std(0) / len(terms) ** 0.5
    assert (error < 0.01 * terms.mean(0)).all()
    # Five standard errors on three sequences and five laws: a false alarm once in 100,000 seeds.
    if isinstance(model.latent, SAMPLED):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, p)
    else:
        assert ((kl_divergence(q, p).detach() - terms.mean(0)).abs() < 5 * error).all()


@ALL
def test_sampled_and_closed_divergences_agree_in_the_objective(make: Callable[[], LatentPrior]) -> None:
    model = small(make())
    guide = MeanFieldGuide(model, initial_log_variance=-1.0)
    x = torch.rand(3, S, *FRAME)
    with torch.no_grad():
        whole = divergence(model, guide.posterior(x), num_particles=2000)
        closed = ELBO(model, guide, 2000)(x).kl
        guide.mean_field = False
        draws = torch.stack([ELBO(model, guide, 50)(x).kl for _ in range(60)])
    error = draws.std(0) / 60**0.5
    # Six standard errors of means of 60, of which the Student-t's own draws of 2,000 add a third: below 1 in 10,000.
    assert ((draws.mean(0) - closed).abs() < 6 * 1.25 * error).all()
    assert ((draws.mean(0) - whole).abs() < 6 * 1.25 * error).all()
    assert (error < 0.01 * closed).all()


@ALL
def test_what_judges_a_model_takes_every_law(make: Callable[[], LatentPrior]) -> None:
    model = small(make())
    guide = MeanFieldGuide(model)
    x = torch.rand(2, S, *FRAME)
    assert annealed_importance(model, guide, x, annealing=Annealing(2, 4)).log_p.shape == (2,)
    data = to_arviz(model, guide, x, draws=3)
    assert data.prior["z"].dims[2:] == ("frame", "capsule", "position")
    result = nuts(model, x, init=guide, num_samples=4, warmup_steps=4, num_chains=1, max_tree_depth=2)
    assert result.draws["z"].shape == (1, 4, 2, S, C, D)


@ALL
def test_unseen_frames_have_the_spread_of_the_prior(make: Callable[[], LatentPrior]) -> None:
    model = small(make())
    seen = torch.tensor([True, False, True, False])
    z = MeanFieldGuide(model).posterior(torch.rand(2, S, *FRAME), seen)["z"]
    assert (z.mean[:, ~seen] == 0).all()
    distribution = model.prior_distributions()["z"]
    # The Student-t stands by its scale; mixtures, whose variance is learned, by the standard Normal that they start at.
    expected = torch.ones(()) if isinstance(model.latent, SAMPLED) else distribution.variance.flatten()[0].sqrt()
    torch.testing.assert_close(z.stddev[:, ~seen], expected.expand(2, 2, C, D))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LaplaceLatent(0.0), "scale is 0.0; expected a number above 0"),
        (lambda: StudentLatent(-1.0), "df is -1.0; expected a number above 0"),
        (lambda: AutoregressiveLatent(1.0), "coefficient is 1.0; expected a number between −1 and 1"),
    ],
)
def test_laws_that_are_none_get_one_sentence(call: Callable[[], LatentPrior], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


class Uniform(LatentPrior):
    """A law of a user's own."""

    def distribution(self, like: Tensor) -> dist.TorchDistribution:
        return dist.Uniform(like.new_tensor(-3.0), like.new_tensor(3.0)).expand(self.shape).to_event(3)


def test_a_law_of_ones_own_is_a_method() -> None:
    model = small(Uniform())
    assert model.prior_distributions()["z"].sample(torch.Size([9])).abs().max() <= 3
    assert model(n_sequences=3).shape == (3, S, *FRAME)
