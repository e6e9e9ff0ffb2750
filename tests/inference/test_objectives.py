"""The ELBO's terms against closed forms, Monte Carlo, Pyro's own ELBO and an exact log p(x)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian import Affine
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    ConditionalGuide,
    CovarianceGuide,
    FlowGuide,
    Guide,
    MeanFieldGuide,
    Normal,
    NoTopography,
    OrbitEnergy,
    Stationary,
    StudentLatent,
    default_guide,
)
from pyro_tvae.inference import ELBO, IWAE, DReG, MeanFieldELBO, Objective, Terms, fit, log_weights

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
            p = trace.nodes[site]["fn"].base_dist  # type: ignore[attr-defined]
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


@ALL
def test_the_mean_field_elbo_is_the_elbo_where_it_is_allowed(build: Callable[[], TVAE]) -> None:
    model = build()
    guide = default_guide(model)
    x = torch.rand(3, 4, *FRAME)
    found = []
    for objective in (ELBO, MeanFieldELBO):
        pyro.set_rng_seed(3)
        found.append(objective(model, guide, beta=0.5)(x).objective)
    assert torch.equal(*found)
    fit(model, guide, x, objective=MeanFieldELBO, max_epochs=1, progress=False)


def claims_too_much(model: TVAE) -> Guide:
    """A user's guide whose author forgot to say that it is not mean-field."""
    guide = ConditionalGuide(model)
    guide.mean_field = True
    return guide


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (ConditionalGuide, {}, "ConditionalGuide is not mean-field"),
        (CovarianceGuide, {}, "CovarianceGuide is not mean-field"),
        (FlowGuide, {}, "FlowGuide is not mean-field"),
        (claims_too_much, {}, "ConditionalGuide is not mean-field"),
        (MeanFieldGuide, {"latent": StudentLatent()}, "site 'z' from Normal to StudentT has no closed form; use ELBO"),
    ],
)
def test_the_mean_field_elbo_refuses_what_it_would_have_to_sample(
    make: Callable[[TVAE], Guide], options: dict[str, object], words: str
) -> None:
    model = TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, 1), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words) as caught:
        MeanFieldELBO(model, make(model))
    assert "\n" not in str(caught.value)


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
        return torch.stack([ELBO(model, guide, 100)(x, shown=MASK).elbo for _ in range(100)])


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


# --- importance-weighted bounds ---------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("objective", [IWAE, DReG])
def test_the_importance_weighted_bound_is_that_of_the_weights(
    build: Callable[[], TVAE], objective: type[Objective]
) -> None:
    model = build()
    guide = default_guide(model)
    x = torch.rand(3, 4, *FRAME)
    with torch.no_grad():
        pyro.set_rng_seed(2)
        terms = objective(model, guide, 6)(x)
        pyro.set_rng_seed(2)
        log_w = log_weights(model, guide, x, 6)
    torch.testing.assert_close(terms.objective, log_w.logsumexp(0) - math.log(6), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(terms.elbo, log_w.mean(0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("objective", [ELBO, IWAE, DReG])
def test_beta_weights_the_kl(objective: type[Objective]) -> None:
    model = MODELS["roll"]()
    guide = default_guide(model)
    x = torch.rand(3, 4, *FRAME)
    found = {}
    with torch.no_grad():
        for beta in (0.0, 0.5, 4.0):
            pyro.set_rng_seed(2)
            terms = objective(model, guide, beta=beta)(x)
            torch.testing.assert_close(terms.objective, terms.reconstruction - beta * terms.kl)
            found[beta] = terms
    # The weight changes what is maximised and nothing else that is reported.
    torch.testing.assert_close(found[0.0].elbo, found[4.0].elbo)


@pytest.mark.parametrize("beta", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(beta: float) -> None:
    model = MODELS["roll"]()
    with pytest.raises(ValueError, match="beta is"):
        ELBO(model, default_guide(model), beta=beta)


def rough(n_frames: int = 3) -> tuple[TVAE, Guide, Tensor]:
    """A small smooth model in float64 with weights that differ, for gradients."""
    model = TVAE(FRAME, n_frames, 1, 3, CapsuleRoll(3, 1), mu=1.0, eps=0.1, network=Affine()).double()
    guide = MeanFieldGuide(model, initial_log_variance=-1.0).double()
    return model, guide, torch.rand(2, n_frames, *FRAME, dtype=torch.float64)


def gradients(objective: Objective, x: Tensor, seed: int, observed: Tensor | None = None) -> dict[str, Tensor]:
    objective.zero_grad()
    pyro.set_rng_seed(seed)
    objective(x, shown=observed).objective.sum().backward()
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("objective", [ELBO, IWAE])
def test_gradients_are_finite_differences(objective: type[Objective], beta: float) -> None:
    """With the noise held, the objective is a function of the parameters, and its slope can be measured."""
    model, guide, x = rough()
    loss = objective(model, guide, 5, beta=beta)
    found = gradients(loss, x, seed=0)
    assert set(found) == {name for name, _ in loss.named_parameters()}
    for name, parameter in loss.named_parameters():
        direction = torch.randn_like(parameter)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step * direction
                pyro.set_rng_seed(0)
                values.append(float(loss(x).objective.sum()))
                parameter -= step * direction
        slope = (values[0] - values[1]) / 2e-5
        assert float((found[name] * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("observed", [None, torch.tensor([True, True, False])])
def test_doubly_reparametrised_gradients_are_the_formula(beta: float, observed: Tensor | None) -> None:
    """``Σ_k w̃_k (1 − β + β w̃_k) ∂log w_k/∂(z, u)_k · ∂(z, u)_k/∂φ``, particle by particle and by hand."""
    k = 5
    model, guide, x = rough()
    loss = DReG(model, guide, k, beta=beta)
    found = gradients(loss, x, 0, observed)

    pyro.set_rng_seed(0)
    with pyro.plate("particles", k, dim=-2):
        draws = guide.draw(posterior := guide.posterior(x, observed))
    held = {site: torch.distributions.Normal(q.mean.detach(), q.stddev.detach()) for site, q in posterior.items()}
    leaves = {site: value.detach().requires_grad_() for site, value in draws.items()}
    log_p = model.decode(model.compose(leaves)).log_prob(x).sum(-1)
    ratio = sum(
        (held[site].log_prob(v) - torch.distributions.Normal(0, 1).log_prob(v)).flatten(2).sum(-1)
        for site, v in leaves.items()
    )
    log_w = log_p - beta * ratio
    share = log_w.detach().softmax(0)
    slopes = torch.autograd.grad(log_w.sum(), list(leaves.values()))
    weight = (share * (1 - beta + beta * share))[..., None, None, None]
    surrogate = sum((weight * slope * draws[site]).sum() for site, slope in zip(leaves, slopes, strict=True))
    names, parameters = zip(*guide.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(surrogate, parameters), strict=True))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"guide.{name}"], gradient)
    # The model's gradient is that of the importance-weighted bound.
    plain = gradients(IWAE(model, guide, k, beta=beta), x, 0, observed)
    for name, gradient in plain.items():
        if name.startswith("model."):
            torch.testing.assert_close(found[name], gradient)
    # Control: the guide's is not.
    assert any(not torch.allclose(plain[f"guide.{name}"], expected[name], rtol=0.1) for name in expected)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_doubly_reparametrised_gradients_average_to_the_bounds_own(beta: float) -> None:
    model, guide, x = rough()
    x = x[:1].expand(500, -1, -1, -1, -1)  # many independent gradients of one sequence in one pass
    means, errors = [], []
    for objective in (IWAE, DReG):
        draws = []
        for seed in range(40):
            found = gradients(objective(model, guide, 4, beta=beta), x, seed)
            draws.append(torch.cat([g.flatten() for name, g in found.items() if name.startswith("guide.")]) / len(x))
        stacked = torch.stack(draws)
        means.append(stacked.mean(0))
        errors.append(stacked.std(0) / 40**0.5)
    error = (errors[0].square() + errors[1].square()).sqrt()
    # 252 correlated entries, t with about 78 degrees of freedom: beyond 5.5 errors once in 5,000 seeds.
    assert ((means[0] - means[1]).abs() < 5.5 * error + 1e-12).all()
    # The comparison has teeth: a tenth off would be seen in many entries.
    assert (0.1 * means[0].abs() > 5.5 * error).sum() > 20


COUPLED: dict[str, Callable[[TVAE], Guide]] = {
    "u given z": lambda model: ConditionalGuide(model, initial_log_variance=-1.0),
    "joint": lambda model: CovarianceGuide(model, rank=2, initial_log_variance=-1.0),
}


@pytest.mark.parametrize("kind", COUPLED)
def test_draws_that_depend_on_draws_are_weighted_once(kind: str) -> None:
    """Doubly reparametrised gradients of guides that are not mean-field average to the bound's own."""
    model, _, x = rough()
    guide = COUPLED[kind](model).double()
    with torch.no_grad():  # so that the dependence is felt
        for name, parameter in guide.named_parameters():
            if "coupling" in name or "factors" in name or name == "gain":
                parameter.add_(0.5)
    x = x[:1].expand(500, -1, -1, -1, -1)
    sums = []
    for objective in (IWAE, DReG):
        draws = []
        for seed in range(40):
            found = gradients(objective(model, guide, 4), x, seed)
            draws.append(torch.cat([g.flatten() for name, g in found.items() if name.startswith("guide.")]) / len(x))
        stacked = torch.stack(draws)
        sums.append((stacked.mean(0), stacked.var(0) / 40))
    (one, first), (two, second) = sums
    error = (first + second).sqrt()
    # Up to a thousand correlated entries, t with about 78 degrees of freedom: beyond 5.5 errors once in 2,000 seeds.
    assert ((one - two).abs() < 5.5 * error + 1e-12).all()
    assert (0.2 * one.abs() > 5.5 * error).sum() > 5


def test_at_the_exact_posterior_the_doubly_reparametrised_gradient_is_zero() -> None:
    model, guide, _, _ = linear_gaussian()
    x = model(n_sequences=5).detach()
    for k in (1, 7):
        found = gradients(DReG(model, guide, k), x, 0)
        noisy = gradients(IWAE(model, guide, k), x, 0)
        for name in found:
            if name.startswith("guide."):
                torch.testing.assert_close(found[name], torch.zeros_like(found[name]), rtol=0, atol=1e-6)
                assert noisy[name].abs().max() > 1e-2


def test_objectives_are_the_same_for_the_same_seed_and_leave_the_store_alone() -> None:
    model = MODELS["orbits"]()
    guide = default_guide(model)
    x = torch.rand(3, 4, *FRAME)
    pyro.clear_param_store()
    one, two = (gradients(DReG(model, guide, 3), x, 5) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert len(pyro.get_param_store()) == 0
    assert all(parameter.requires_grad for parameter in guide.parameters())


class Frozen(dist.Normal):
    """A Normal that cannot be reparametrised."""

    has_rsample = False


@pytest.mark.parametrize("objective", [ELBO, IWAE, DReG])
def test_draws_without_a_gradient_are_refused(objective: type[Objective], monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["plain"]()
    guide = MeanFieldGuide(model)
    shape = (2, *model.latent_shape)
    monkeypatch.setattr(guide, "posterior", lambda x, observed=None: {"z": Frozen(0.0, 1.0).expand(shape)})
    with pytest.raises(ValueError, match="site 'z' from Frozen, which is not reparametrised"):
        objective(model, guide)(torch.rand(2, 4, *FRAME))
