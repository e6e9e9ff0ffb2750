"""The Laplace guide against closed forms, a dense twin of its precision, quadrature, and what it cannot be asked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from gaussian import FRAME, OneEnergy, Toy
from pyro.nn import PyroSample
from torch import Tensor

import pyro_tvae
from pyro_tvae import (
    TVAE,
    AutoregressiveLatent,
    BinarizedBernoulli,
    CapsuleRoll,
    ContinuousBernoulli,
    Convolutional,
    GammaEnergy,
    Guide,
    LaplaceGuide,
    LaplaceLatent,
    MeanFieldGuide,
    Normal,
    NoTopography,
    OrbitEnergy,
    OrbitGuide,
    StudentLatent,
    default_guide,
    load,
    save,
)
from pyro_tvae.guides.laplace import Laplace, _cholesky
from pyro_tvae.inference import Annealing, annealed_importance, bracket, log_likelihood, log_weights, to_arviz

S, C, D = 3, 2, 3


def model_of(**options: Any) -> TVAE:
    torch.manual_seed(0)
    topography = options.pop("topography", CapsuleRoll(3, 0))
    return TVAE(FRAME, S, C, D, topography, **({"mu": 2.0} | options)).double()


MODELS: dict[str, Callable[[], TVAE]] = {
    "orbit": lambda: model_of(prior=OrbitEnergy()),
    "gamma": lambda: model_of(topography=CapsuleRoll(2, 1), prior=GammaEnergy(0.8)),
    "gaussian": lambda: model_of(topography=CapsuleRoll(2, 1)),
    "plain": lambda: model_of(topography=NoTopography()),
    "normal pixels": lambda: model_of(prior=OrbitEnergy(), likelihood=Normal(0.3)),
}
ALL = pytest.mark.parametrize("name", MODELS)


def laplace_of(name: str, **options: Any) -> tuple[TVAE, LaplaceGuide]:
    model = MODELS[name]()
    return model, LaplaceGuide(model, default_guide(model).double(), **options)


def pixels(n: int = 4) -> Tensor:
    return torch.rand(n, S, *FRAME, dtype=torch.float64)


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_where_the_posterior_is_gaussian_every_weight_is_the_evidence(masked: bool) -> None:
    toy = Toy(0.6)
    x = torch.rand(5, 2, *FRAME, dtype=torch.float64)
    laplace = LaplaceGuide(toy.model, toy.guide)
    observed, measured = None, None
    covariance = (toy.a @ toy.a.T + toy.sigma**2 * torch.eye(4)).expand(5, 2, 4, 4)
    seen = torch.ones(5, 2, 4, dtype=torch.bool)
    if masked:
        observed, measured = torch.rand(5, 2) < 0.7, torch.rand(5, 2, *FRAME) < 0.6
        seen = observed.unsqueeze(-1) & measured.flatten(2)
        # What was not seen, of variance 1 and no correlation, and at its mean: its density is a constant.
        both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
        covariance = torch.where(both, covariance, torch.eye(4, dtype=torch.float64))
    values = torch.where(seen, x.flatten(2), 0)
    exact = dist.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(values).sum(-1)
    exact = exact + (~seen).sum((1, 2)) * math.log(2 * math.pi) / 2
    given = {} if measured is None else {"covariates": {"measured": measured}}
    log_w = log_weights(toy.model, laplace, x, 7, observed=observed, **given)
    torch.testing.assert_close(log_w, exact.expand(7, 5))
    by_frame = log_likelihood(toy.model, laplace, x, 1, frame_particles=3, observed=observed, **given)
    torch.testing.assert_close(by_frame.iwae.double(), exact)
    annealed = annealed_importance(toy.model, laplace, x, observed=observed, annealing=Annealing(2, 3), **given)
    torch.testing.assert_close(annealed.log_p.double(), exact)


def test_weights_are_unbiased_beside_quadrature() -> None:
    """40,000 weights of 4 sequences; five standard errors, false alarm 6e-7 for each."""
    toy = OneEnergy(OrbitEnergy())
    x = torch.tensor([[0.4, 0.6], [1.5, 1.2], [0.2, 0.1], [3.0, 2.0]], dtype=torch.float64).reshape(4, 2, 1, 1, 1)
    laplace = LaplaceGuide(toy.model, default_guide(toy.model).double(), max_iterations=30)
    ratio = (log_weights(toy.model, laplace, x, 40_000, seed=0) - toy.log_p(x)).exp()
    assert ratio.std(0).max() < 4
    assert (ratio.mean(0) - 1).abs().div(ratio.std(0) / 200).max() < 5


# --- the Gaussian ----------------------------------------------------------------------------------------------------


def dense(model: TVAE, found: Laplace, x: Tensor) -> Tensor:
    """The Gauss-Newton precision of one sequence, from Jacobians and Hessians of all its coordinates at once."""
    sites = list(found.shapes)
    sizes = [found.shapes[site].numel() for site in sites]
    free = {site: (found.z if site == "z" else found.energy)[0].flatten() for site in sites}
    y = torch.cat([free[site] for site in sites])

    def values(y: Tensor) -> dict[str, Tensor]:
        parts = zip(sites, y.split(sizes), strict=True)
        return {site: found.to_site[site](part.reshape(found.shapes[site])) for site, part in parts}

    def outputs(y: Tensor) -> Tensor:
        return model.decoder(model.compose(values(y)).flatten(-2)).flatten()

    def log_prior(y: Tensor) -> Tensor:
        made, total = values(y), torch.zeros((), dtype=torch.float64)
        for site, part in zip(sites, y.split(sizes), strict=True):
            total = total + model.prior_distributions()[site].log_prob(made[site])
            total = total + found.to_site[site].log_abs_det_jacobian(part.reshape(found.shapes[site]), made[site]).sum()
        return total

    jacobian: Any = torch.autograd.functional.jacobian(outputs, y)
    bent: Any = torch.autograd.functional.hessian(
        lambda o: model.likelihood(o.reshape(x.shape)).log_prob(x).sum(), outputs(y)
    )
    curvature: Any = torch.autograd.functional.hessian(log_prior, y)
    return -jacobian.T @ bent @ jacobian - curvature


@ALL
@torch.no_grad()
def test_its_precision_is_the_gauss_newton_curvature_at_the_mode(name: str) -> None:
    model, laplace = laplace_of(name, max_iterations=100, tolerance=0.0)
    x = pixels(2)
    found = laplace.approximation(x[:1])
    units = torch.eye(found.size, dtype=torch.float64).unsqueeze(1)
    map_back = torch.cat([part.flatten(2) for part in found.unconstrained(units).values()], -1)[:, 0]
    map_back = map_back - torch.cat([found.energy[0], found.z[0].flatten()])
    precision = torch.linalg.inv(map_back.T @ map_back)
    with torch.enable_grad():
        torch.testing.assert_close(precision, dense(model, found, x[0]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.log_det[0], torch.linalg.slogdet(map_back).logabsdet)
    # The mode is one: what is lost beside it is the quadratic form, to third order.
    w = 1e-3 * torch.randn(50, 1, found.size, dtype=torch.float64)
    drops = torch.cat([_log_joint(model, found, x[:1], sign * w) for sign in (1, -1)]).mean(0)
    assert (drops - _log_joint(model, found, x[:1], 0 * w[:1])[0]) < 0


def _log_joint(model: TVAE, found: Laplace, x: Tensor, w: Tensor) -> Tensor:
    values, total = {}, torch.zeros(w.shape[:2], dtype=torch.float64)
    for site, free in found.unconstrained(w).items():
        values[site] = found.to_site[site](free)
        total = total + model.prior_distributions()[site].log_prob(values[site])
        total = total + found.to_site[site].log_abs_det_jacobian(free, values[site]).reshape(*w.shape[:2], -1).sum(-1)
    return total + model.decode(model.compose(values)).log_prob(x).sum(-1)


@ALL
@torch.no_grad()
def test_the_map_is_inverted_and_its_density_is_the_posteriors(name: str) -> None:
    model, laplace = laplace_of(name)
    x = pixels()
    found = laplace.approximation(x)
    w = torch.randn(6, 4, found.size, dtype=torch.float64)
    free = found.unconstrained(w)
    torch.testing.assert_close(found.standard(free), w)
    values = {site: found.to_site[site](one) for site, one in free.items()}
    posterior, log_q = found.posterior(), torch.zeros(6, 4, dtype=torch.float64)
    for site, one in posterior.items():
        q: Any = one if isinstance(one, torch.distributions.Distribution) else one(values)  # type: ignore[operator]
        log_q = log_q + q.log_prob(values[site]).reshape(6, 4, -1).sum(-1)
    jacobian = found.log_det.expand(6, 4)
    for site, one in free.items():
        jacobian = jacobian + found.to_site[site].log_abs_det_jacobian(one, values[site]).reshape(6, 4, -1).sum(-1)
    torch.testing.assert_close(log_q, -(w.square() + math.log(2 * math.pi)).sum(-1) / 2 - jacobian)
    assert model.compose(values).shape == (6, 4, S, C, D)


# --- what it is for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["orbit", "plain"])
def test_bounds_from_it_close_where_those_from_a_guide_do_not(name: str) -> None:
    model, laplace = laplace_of(name)
    far = laplace.guide
    simulated = pyro_tvae.inference.simulate(model, 16, seed=0)
    loose = bracket(model, far, simulated, annealing=Annealing(4, 10))
    tight = bracket(model, laplace, simulated, annealing=Annealing(4, 10))
    assert loose.mean_gap > 10
    assert abs(tight.mean_gap) < 0.5
    middle = (tight.lower.log_p + tight.upper.log_p) / 2
    bound = log_likelihood(model, laplace, simulated.x, 200)
    assert abs(float((bound.iwae.double() - middle).mean())) < 0.5
    assert float(bound.elbo.mean()) > float(log_likelihood(model, far, simulated.x, 200).iwae.mean())


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_judges_in_every_mode_and_leaves_no_gradient(inside: Callable[[], Any]) -> None:
    model, laplace = laplace_of("orbit")
    with inside():
        bound = log_likelihood(model, laplace, pixels(), 20)
    assert torch.isfinite(bound.iwae).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    data = to_arviz(model, laplace, pixels(2), draws=3)
    assert set(data.posterior) == {"z", "e", "v", "t"}


@pytest.mark.parametrize(
    "options",
    [
        {"likelihood": BinarizedBernoulli(seed=1)},
        {"likelihood": ContinuousBernoulli()},
        {"likelihood": Normal(0.3, learned=True)},
        {"latent": LaplaceLatent()},
        {"latent": StudentLatent(1.5)},
        {"prior": None, "topography": NoTopography(), "latent": StudentLatent(4.0)},
    ],
    ids=repr,
)
def test_other_laws_are_judged_too(options: dict[str, Any]) -> None:
    model = model_of(**({"prior": OrbitEnergy()} | options))
    guide = default_guide(model).double()
    x = pixels()
    bound = log_likelihood(model, LaplaceGuide(model, guide), x, 200)
    assert torch.isfinite(bound.iwae).all()
    assert bound.iwae.mean() > log_likelihood(model, guide, x, 200).iwae.mean()


def test_any_guide_may_be_where_it_begins_and_any_decoder_be_judged() -> None:
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), 4, 2, 4, CapsuleRoll(4, 0), prior=OrbitEnergy(), network=Convolutional((3,), 1))
    x = torch.rand(2, 4, 1, 8, 8)
    for guide in (
        OrbitGuide(model),
        pyro_tvae.ConditionalOrbitGuide(model),
        pyro_tvae.OrbitCovarianceGuide(model, rank=1),
    ):
        assert torch.isfinite(log_likelihood(model, LaplaceGuide(model, guide), x, 10).iwae).all()


def test_pixels_that_were_not_measured_and_frames_that_were_not_observed_say_nothing() -> None:
    model, laplace = laplace_of("orbit")
    x, observed, measured = pixels(), torch.rand(4, S) < 0.7, torch.rand(4, S, *FRAME) < 0.7
    junk = torch.where(observed.reshape(4, S, 1, 1, 1) & measured, x, math.nan)
    given: dict[str, Any] = {"observed": observed, "covariates": {"measured": measured}}
    whole, torn = (log_weights(model, laplace, one, 5, seed=0, **given) for one in (x, junk))
    torch.testing.assert_close(whole, torn)


def test_curvatures_that_rounding_breaks_are_factored_all_the_same() -> None:
    torch.manual_seed(0)
    steep = torch.randn(4, 30, 3)
    broken = 1e8 * steep @ steep.mT + torch.eye(30)
    assert torch.linalg.cholesky_ex(broken).info.any()
    factor = _cholesky(broken)
    torch.testing.assert_close(factor @ factor.mT, broken, rtol=1e-4, atol=1e4)
    with pytest.raises(ValueError, match=r"^LaplaceGuide: the curvature .* is no number, .* judge the model in double"):
        _cholesky(torch.full((1, 3, 3), math.nan))
    model = TVAE((1, 8, 8), 3, 4, 3, CapsuleRoll(3, 0), prior=OrbitEnergy(), likelihood=Normal(1e-3))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(10)
    assert torch.isfinite(
        log_likelihood(model, LaplaceGuide(model, default_guide(model)), torch.rand(2, 3, 1, 8, 8)).iwae
    ).all()


def test_the_way_to_the_modes_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    model, laplace = laplace_of("orbit")
    log_likelihood(model, laplace, pixels(), 5, progress=True)
    assert "modes:" in capsys.readouterr().err
    annealed_importance(model, laplace, pixels(), annealing=Annealing(2, 3), progress=True)
    assert "modes:" in capsys.readouterr().err
    log_likelihood(model, laplace, pixels(), 5, progress=False)
    assert capsys.readouterr().err == ""
    assert laplace.tick is None


def test_labels_reach_the_guide_where_it_begins() -> None:
    class Labelled(MeanFieldGuide):
        seen: Any = None

        def posterior(self, x: Tensor, observed: Tensor | None = None, label: Tensor | None = None) -> Any:
            type(self).seen = label
            return super().posterior(x, observed)

    model = model_of()
    label = torch.arange(4)
    laplace = LaplaceGuide(model, Labelled(model).double())
    log_weights(model, laplace, pixels(), 3, covariates={"label": label})
    assert torch.equal(Labelled.seen, label)


def test_frames_of_orbits_share_energies_even_where_all_sizes_are_the_same() -> None:
    model = TVAE((1, 2, 2), 2, 2, 2, CapsuleRoll(2, 0), prior=OrbitEnergy())
    with (
        pytest.raises(ValueError, match="weights per frame need"),
        pytest.warns(UserWarning, match="per frame|by frame"),
    ):
        log_likelihood(model, OrbitGuide(model), torch.rand(2, 2, 1, 2, 2), 4, estimator="frame")


def test_it_is_saved_with_the_model(tmp_path: Any) -> None:
    model, laplace = laplace_of("orbit")
    save(tmp_path / "pair.safetensors", model, laplace)
    again = load(tmp_path / "pair.safetensors")
    x = pixels()
    torch.testing.assert_close(log_weights(*again, x, 3, seed=0), log_weights(model, laplace, x, 3, seed=0))
    with pytest.raises(ValueError, match=r"^LaplaceGuide: it looks at another model than the one given"):
        log_weights(copy.deepcopy(model), laplace, x, 3)
    assert torch.isfinite(log_weights(*copy.deepcopy((model, laplace)), x, 3)).all()


def random_weights() -> LaplaceGuide:
    model = model_of()
    model.mu = PyroSample(dist.Normal(2.0, 1.0))
    return LaplaceGuide(model, default_guide(model))


def of_another_size() -> LaplaceGuide:
    other: Guide = default_guide(TVAE(FRAME, S, C, D + 1, CapsuleRoll(2, 0)))
    return LaplaceGuide(model_of(), other)


COMPLAINTS: dict[str, tuple[str, Callable[[], object]]] = {
    "iterations": ("max_iterations=0, .*expected at least 1", lambda: laplace_of("orbit", max_iterations=0)),
    "tolerance": ("tolerance of 0 or more", lambda: laplace_of("orbit", tolerance=-1.0)),
    "coupled z": (
        "under AutoregressiveLatent elements of z depend on each other",
        lambda: LaplaceGuide(m := model_of(latent=AutoregressiveLatent()), default_guide(m)),
    ),
    "random weights": ("random weights", random_weights),
    "another guide": ("the guide was made for latents of shape", of_another_size),
}


@pytest.mark.parametrize(("words", "call"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints_are_one_sentence(words: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
