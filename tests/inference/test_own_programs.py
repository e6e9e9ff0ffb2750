"""Models and guides with statements of their own, where they are judged: closed forms, or a refusal by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian import Affine
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    GuideList,
    MeanFieldGuide,
    Normal,
    NoTopography,
    default_guide,
    encode,
    interpolate,
    reconstruct,
    sample,
    traverse,
)
from pyro_tvae.experiments.datasets import SequenceDataModule, Transformations, digits
from pyro_tvae.experiments.evaluation.evaluate import measure
from pyro_tvae.experiments.evaluation.measures import flat
from pyro_tvae.inference import (
    ELBO,
    Annealing,
    annealed_importance,
    bracket,
    calibration,
    forward_roll,
    guide_quality,
    log_likelihood,
    log_weights,
    nuts,
    reverse_annealing,
    to_arviz,
)
from pyro_tvae.inference.annealing import simulate
from pyro_tvae.inference.posterior import from_netcdf, to_netcdf

FRAME = (1, 2, 3)
S, B, SIGMA, TILT, PRIOR = 4, 3, 0.5, 0.8, 0.7


class Tilted(TVAE):
    """A factor linear in z shifts a Gaussian posterior by the slope times its variance."""

    def heads(self, t: Tensor) -> None:
        pyro.factor("tilt", TILT * t.sum((-1, -2, -3)))


class Labeled(TVAE):
    """A class of every sequence, seen or not, given t."""

    def heads(self, t: Tensor, label: Tensor | None = None) -> None:
        if label is not None:
            pyro.sample("label", dist.Categorical(logits=t.sum((-2, -3))), obs=label)


class Shifted(TVAE):
    """Its forward draws z about 2, and a further latent w."""

    def forward(self, x: Any = None, observed: Any = None, *, n_sequences: Any = None, **covariates: Any) -> Tensor:
        n = len(x) if x is not None else n_sequences or 1
        with pyro.plate("sequence", n, dim=-1):
            z = pyro.sample("z", dist.Normal(2.0, torch.ones(self.latent_shape).double()).to_event(3))
            w = pyro.sample("w", dist.Normal(torch.tensor(0.0).double(), 1.0)) if self.further else 0 * z.sum((1, 2, 3))
            pyro.deterministic("t", z, event_dim=3)
            frames = self.decode(z + w[..., None, None, None]).to_event(1)
            value: Tensor = pyro.sample("x", frames, obs=x)
            return value

    further = True


class Moved(Shifted):
    further = False


class Toy:
    """x[l] = A z[l] + b + noise with orthogonal A; the guide is the exact posterior of z for b = 0."""

    def __init__(self, kind: type[TVAE] = TVAE) -> None:
        self.model = kind(FRAME, S, 1, 2, NoTopography(), likelihood=Normal(SIGMA), network=Affine()).double()
        self.guide = MeanFieldGuide(self.model).double()
        self.a = torch.linalg.qr(torch.randn(6, 2).double()).Q * torch.tensor([1.3, 0.7]).double()
        precision = 1 + self.a.square().sum(0) / SIGMA**2
        self.to_mean, self.sd = (self.a / SIGMA**2 / precision).T, precision.rsqrt()
        with torch.no_grad():
            self.model.decoder[0].weight.copy_(self.a)
            self.model.decoder[0].bias.zero_()
            layer = self.guide.z_encoder.network[1]
            layer.weight.copy_(torch.cat([self.to_mean, torch.zeros_like(self.to_mean)]))
            layer.bias.copy_(torch.cat([torch.zeros(2), -precision.log()]))

    def mean(self, x: Tensor) -> Tensor:
        return (x.flatten(-3) @ self.to_mean.T).unsqueeze(-2)

    def bayesian(self) -> GuideList:
        """Make b random, b ~ Normal(0, 0.7), and return a guide of it beside that of z."""
        to_pyro_module_(self.model.decoder)
        self.model.decoder[0].bias = PyroSample(dist.Normal(torch.zeros(6).double(), PRIOR).to_event(1))
        (self.b,) = self.model.weight_sites()
        return GuideList(self.guide, AutoNormal(poutine.block(self.model, expose=[self.b]), init_scale=0.1))

    def posterior_of_b(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of b given x, z integrated out: x[l] ~ Normal(b, A Aᵀ + σ²)."""
        inverse = torch.linalg.inv(self.a @ self.a.T + SIGMA**2 * torch.eye(6).double())
        covariance = torch.linalg.inv(torch.eye(6) / PRIOR**2 + B * S * inverse)
        return covariance @ inverse @ x.flatten(0, 1).flatten(1).sum(0), covariance.diagonal().sqrt()

    def nats(self, x: Tensor, z: Tensor, b: Tensor) -> Tensor:
        """log p(x | z, b), (…, B), of z (…, B, S, 1, 2) and b (…, 6)."""
        mean = z.squeeze(-2) @ self.a.T + b[..., None, None, :]
        return dist.Normal(mean, SIGMA).log_prob(x.flatten(2)).sum((-1, -2))


def frames() -> Tensor:
    return torch.randn(B, S, *FRAME).double()


def values(data: Any, group: str, name: str) -> Tensor:
    return torch.from_numpy(data[group][name].values)


def as_function(guide: Any) -> Callable[..., Any]:
    """The same guide as an ordinary program, whose laws nobody can look at."""

    def program(x: Tensor, observed: Tensor | None = None) -> None:
        guide(x, observed)

    return program


# --- factors ---------------------------------------------------------------------------------------------------------


def test_a_factor_shifts_what_nuts_draws() -> None:
    toy, x = Toy(Tilted), frames()
    result = nuts(toy.model, x, init=as_function(toy.guide), num_samples=300, warmup_steps=100)
    found = (result.draws["z"].flatten(0, 1).mean(0) - toy.mean(x) - TILT * toy.sd**2) / toy.sd
    # 24 means of about 600 independent draws: five standard errors, one false alarm in 50,000 seeds.
    assert float(found.abs().max()) < 5 / math.sqrt(float(result.ess["z"].min()))
    assert TILT * float(toy.sd.min()) > 0.25  # without the factor it would be off by this
    quality = guide_quality(toy.model, as_function(toy.guide), x, result, num_particles=4000)
    expected = -TILT * toy.sd
    assert float((quality.mean_difference["z"] - expected).abs().max()) < 0.35


def test_a_factor_weighs_the_resampled_draws_and_has_its_own_entry() -> None:
    toy, x = Toy(Tilted), frames()
    data = to_arviz(toy.model, toy.guide, x, method="importance", draws=2000, num_particles=20_000)
    shift = (values(data, "posterior", "z")[0].mean(0) - toy.mean(x)) / toy.sd
    # ESS of about 2,000 from weights of variance e^(S a² Σ sd²) − 1: five standard errors at 200.
    assert float((shift - TILT * toy.sd).abs().max()) < 5 / math.sqrt(200)
    tilt = values(data, "log_likelihood", "tilt")
    torch.testing.assert_close(tilt, TILT * values(data, "posterior", "z").sum((-1, -2, -3)))
    assert set(data["observed_data"].data_vars) == set(data["posterior_predictive"].data_vars) == {"x"}


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["guide", "importance", "nuts"])
def test_a_label_is_observed_predicted_and_scored(method: str) -> None:
    toy, x = Toy(Labeled), frames()
    label = torch.tensor([0, 1, 1])
    options: Any = {"draws": 5, "method": method, "warmup_steps": 20, "covariates": {"label": label}}
    data = to_arviz(toy.model, toy.guide, x, chunk_bytes=3000, **options)
    z = values(data, "posterior", "z")
    logits = z.sum((-2, -3)).log_softmax(-1)
    expected = logits.gather(-1, label.expand(*z.shape[:2], B).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(values(data, "log_likelihood", "label"), expected)
    torch.testing.assert_close(values(data, "log_likelihood", "x"), toy.nats(x, z, torch.zeros(6)))
    assert values(data, "observed_data", "label").tolist() == [0, 1, 1]
    predicted = data["posterior_predictive"]["label"]
    assert predicted.dims == ("chain", "draw", "sequence")
    assert set(predicted.values.flatten().tolist()) <= {0, 1}
    with pytest.raises(ValueError, match="cannot be called 'label', which is taken"):
        to_arviz(toy.model, toy.guide, x, coords={"label": label}, **options)
    with pytest.raises(ValueError, match="covariate 'colour' is taken neither"):
        to_arviz(toy.model, toy.guide, x, covariates={"colour": label})


def test_predicted_labels_follow_their_law() -> None:
    toy, x = Toy(Labeled), frames()
    data = to_arviz(toy.model, toy.guide, x, draws=4000, covariates={"label": torch.tensor([0, 1, 1])})
    share = values(data, "posterior_predictive", "label").double().mean((0, 1))
    expected = values(data, "posterior", "z").sum((-2, -3)).softmax(-1)[..., 1].mean((0, 1))
    assert float((share - expected).abs().max()) < 5 * 0.5 / math.sqrt(4000)  # one false alarm in a million


def test_a_label_bends_what_nuts_draws_as_it_bends_the_weights() -> None:
    toy, x = Toy(Labeled), frames()
    given: Any = {"covariates": {"label": torch.tensor([0, 1, 1])}}
    result = nuts(toy.model, x, init=toy.guide, num_samples=200, warmup_steps=50, **given)
    log_w = log_weights(toy.model, toy.guide, x, 20_000, seed=3, **given)
    share = log_w.softmax(0)
    with torch.no_grad():
        torch.manual_seed(3)
        with torch.random.fork_rng(), pyro.plate("particles", 20_000, dim=-2):
            torch.manual_seed(3)
            z = toy.guide.draw(toy.guide.posterior(x))["z"]
    exact = (share[..., None, None, None] * z).sum(0)
    found = result.draws["z"].flatten(0, 1).mean(0)
    error = ((found - exact) / toy.sd).abs().max()
    assert float(error) < 5 / math.sqrt(float(result.ess["z"].min())) + 5 / math.sqrt(5000)
    assert float(((toy.mean(x) - exact) / toy.sd).abs().max()) > 0.3  # what a dropped label would cost


# --- random weights --------------------------------------------------------------------------------------------------


def test_nuts_draws_random_weights_from_their_exact_posterior() -> None:
    toy, x = Toy(), frames()
    guide = toy.bayesian()
    result = nuts(toy.model, x, init=guide, num_samples=200, warmup_steps=100)
    mean, sd = toy.posterior_of_b(x)
    draws = result.draws[toy.b].flatten(0, 1)
    assert draws.shape == (400, 6)
    assert float(((draws.mean(0) - mean) / sd).abs().max()) < 5 / math.sqrt(float(result.ess[toy.b].min()))
    assert float((draws.std(0) / sd).log().abs().max()) < 0.35
    quality = guide_quality(toy.model, guide, x, result, num_particles=50)
    assert quality.variance_ratio[toy.b].shape == (6,)
    assert not [name for name in pyro.get_param_store() if "decoder" in name]


@pytest.mark.parametrize("method", ["guide", "nuts"])
def test_every_draw_is_decoded_under_its_own_weights(method: str, tmp_path: Any) -> None:
    toy, x = Toy(), frames()
    guide = toy.bayesian()
    data = to_arviz(toy.model, guide, x, draws=7, method=method, warmup_steps=20, chunk_bytes=3000)
    z, b = values(data, "posterior", "z"), values(data, "posterior", toy.b)
    assert data["posterior"][toy.b].dims == ("chain", "draw", f"{toy.b}_dim_0")
    assert float(b.flatten(0, 1).std(0).min()) > 0
    torch.testing.assert_close(values(data, "log_likelihood", "x"), toy.nats(x, z, b))
    prior = values(data, "prior", toy.b)
    assert prior.shape == (1, 7, 6)
    again = from_netcdf(to_netcdf(data, tmp_path / "bayesian.nc"))
    assert (again["posterior"][toy.b] == data["posterior"][toy.b]).all()
    with pytest.raises(ValueError, match=r"share site 'TVAE_\d+.decoder.0.bias'.*use method='guide' or 'nuts'"):
        to_arviz(toy.model, guide, x, method="importance")
    with pytest.raises(ValueError, match=r"latent site 'TVAE_\d+.decoder.0.bias' that the guide"):
        to_arviz(toy.model, toy.guide, x, method=method)


def test_the_prior_of_random_weights_and_of_frames_is_the_models_own() -> None:
    toy = Toy()
    guide = toy.bayesian()
    data = to_arviz(toy.model, guide, frames(), draws=2000, groups=["prior", "prior_predictive"])
    b, x = values(data, "prior", toy.b)[0], values(data, "prior_predictive", "x")[0].flatten(3)
    assert float((b.std(0) / PRIOR).log().abs().max()) < 5 / math.sqrt(2 * 2000)
    total = (toy.a.square().sum(1) + PRIOR**2 + SIGMA**2).sqrt()
    assert float((x[:, 0, 0].std(0) / total).log().abs().max()) < 5 / math.sqrt(2 * 2000)
    # All sequences share b: the frames of two of them are correlated by its variance.
    shared = (x[:, 0, 0] * x[:, 1, 0]).mean(0)
    assert float((shared - PRIOR**2).abs().max()) < 5 * float((total**2).max()) / math.sqrt(2000)


def test_a_random_mu_is_the_mu_of_every_draw() -> None:
    model = TVAE(FRAME, S, 1, 4, CapsuleRoll(4, 0), mu=3.0)
    model.mu = PyroSample(dist.Normal(3.0, 1.0))
    (mu,) = model.weight_sites()
    guide = GuideList(MeanFieldGuide(model), AutoNormal(poutine.block(model, expose=[mu]), init_scale=0.5))
    data = to_arviz(model, guide, torch.rand(B, S, *FRAME), draws=6)
    for group in ("posterior", "prior"):
        z, u, m = (values(data, group, name) for name in ("z", "u", "mu"))
        assert torch.equal(m, values(data, group, mu))
        assert len(m.unique()) == 6
        v = model.energy(u)
        torch.testing.assert_close(values(data, group, "v"), v)
        torch.testing.assert_close(values(data, group, "t"), (z + m[..., None, None, None, None]) / (v + 1e-6).sqrt())


def test_the_point_estimates_of_a_bayesian_model_are_those_of_its_mean_weights() -> None:
    toy, (x, other) = Toy(), (frames(), frames())
    guide = toy.bayesian()
    guide(x)  # sets the autoguide up
    known = {*pyro.get_param_store()}
    loc = next(value for name, value in guide.guides[1].named_parameters() if "locs" in name)
    with torch.no_grad():
        loc.copy_(torch.arange(6).double() / 10)
    twin = Toy()
    twin.model.load_state_dict({"decoder.0.weight": toy.a, "decoder.0.bias": loc.detach()}, strict=False)
    torch.testing.assert_close(encode(toy.model, guide, x), toy.mean(x), atol=5 * float(toy.sd.max()) / 8, rtol=0)
    code = encode(toy.model, guide, x)  # the same 64 draws every time
    # b of 64 draws with a spread of 0.1: five standard errors.
    close: Any = {"atol": 5 * 0.1 / 8, "rtol": 0}
    torch.testing.assert_close(reconstruct(toy.model, guide, x), twin.model.decode(code).mean, **close)
    shifts = torch.arange(S)
    rolled = torch.stack([code[:, 0].roll(int(shift), -1) for shift in shifts], 1)
    torch.testing.assert_close(traverse(toy.model, guide, x), twin.model.decode(rolled).mean, **close)
    way = interpolate(toy.model, guide, x, other, steps=3)
    middle = (code + encode(toy.model, guide, other)) / 2
    torch.testing.assert_close(way[:, 1], twin.model.decode(middle).mean, **close)
    assert {*pyro.get_param_store()} == known


def test_a_sample_of_a_bayesian_model_is_one_draw_of_its_weights() -> None:
    toy = Toy()
    toy.bayesian()
    torch.manual_seed(5)
    means = torch.stack([sample(toy.model, 2, mean=True) for _ in range(1500)]).flatten(3)
    assert means.shape == (1500, 2, S, 6)
    spread = (toy.a.square().sum(1) + PRIOR**2).sqrt()
    assert float((means[:, 0, 0].std(0) / spread).log().abs().max()) < 5 / math.sqrt(2 * 1500)
    shared = (means[:, 0, 0] * means[:, 1, 0]).mean(0)
    assert float((shared - PRIOR**2).abs().max()) < 5 * float((spread**2).max()) / math.sqrt(1500)


def test_random_weights_are_scored_again_and_again() -> None:
    toy, x = Toy(), frames()
    guide = toy.bayesian()
    # The first call sets the autoguide up.
    _, first, again = (log_likelihood(toy.model, guide, x, 4).iwae for _ in range(3))
    assert torch.equal(first, again)


# --- a forward of one's own ------------------------------------------------------------------------------------------


def test_what_a_forward_draws_by_itself_is_drawn_in_the_prior_and_scored() -> None:
    toy, x = Toy(Shifted), frames()

    def guide(x: Tensor) -> None:
        with pyro.plate("sequence", len(x), dim=-1):
            pyro.sample("z", dist.Normal(toy.mean(x), 0.3).to_event(3))
            pyro.sample("w", dist.Normal(torch.zeros(len(x)).double(), 0.5))

    data = to_arviz(toy.model, guide, x, draws=500)
    z, w = values(data, "prior", "z"), values(data, "prior", "w")
    assert abs(float(z.mean()) - 2) < 5 / math.sqrt(z.numel())
    assert abs(float(w.std()) - 1) < 5 / math.sqrt(2 * w.numel())
    assert data["posterior"]["w"].dims == ("chain", "draw", "sequence")
    z, w = values(data, "posterior", "z"), values(data, "posterior", "w")
    expected = toy.nats(x, z + w[..., None, None, None], torch.zeros(6).double())
    torch.testing.assert_close(values(data, "log_likelihood", "x"), expected)
    torch.manual_seed(1)
    mean = sample(toy.model, 4000, mean=True).flatten(2)[:, 0].mean(0)
    assert float((mean - 2 * toy.a.sum(1)).abs().max()) < 5 * 3 / math.sqrt(4000)


@pytest.mark.parametrize("kind", [Shifted, Moved, Tilted])
def test_what_works_from_laws_alone_refuses_what_they_do_not_say(kind: type[TVAE]) -> None:
    toy, x = Toy(kind), frames()
    calls: list[Callable[[], object]] = [
        lambda: annealed_importance(toy.model, toy.guide, x, annealing=Annealing(num_temperatures=3)),
        lambda: reverse_annealing(toy.model, toy.guide, 2, annealing=Annealing(num_temperatures=3)),
        lambda: bracket(toy.model, toy.guide, 2, annealing=Annealing(num_temperatures=3)),
        lambda: simulate(toy.model, 2),
    ]
    words = {
        Shifted: "further site 'w'",
        Moved: "site 'z' another distribution than its method 'prior_distributions'",
        Tilted: "'tilt'",
    }[kind]
    for refused in calls:
        with pytest.raises(ValueError, match=words) as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_random_weights_and_programs_are_refused_by_annealing() -> None:
    toy, x = Toy(), frames()
    with pytest.raises(ValueError, match=r"annealing needs a mean-field guide .* function is none"):
        annealed_importance(toy.model, as_function(toy.guide), x, annealing=Annealing(num_temperatures=3))  # type: ignore[arg-type]
    guide = toy.bayesian()
    for refused in (
        lambda: annealed_importance(toy.model, guide, x, annealing=Annealing(num_temperatures=3)),  # type: ignore[arg-type]
        lambda: simulate(toy.model, 2),
        lambda: calibration(toy.model, guide, 5, 9),
    ):
        with pytest.raises(ValueError, match=r"has a further site 'TVAE_\d+.decoder.0.bias'"):
            refused()


# --- ordinary guides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["guide", "importance"])
def test_an_ordinary_program_is_the_guide_that_it_runs(method: str) -> None:
    toy, x = Toy(), frames()
    one, two = (to_arviz(toy.model, guide, x, draws=5, method=method) for guide in (toy.guide, as_function(toy.guide)))
    for group, name in (("posterior", "z"), ("sample_stats", "log_weight"), ("posterior_predictive", "x")):
        assert torch.equal(values(one, group, name), values(two, group, name))


def test_an_exact_program_is_calibrated_and_a_biased_one_is_not() -> None:
    toy = Toy()

    def biased(x: Tensor) -> None:
        with pyro.plate("sequence", len(x), dim=-1):
            pyro.sample("z", dist.Normal(toy.mean(x) + toy.sd, toy.sd).to_event(3))

    result = calibration(toy.model, as_function(toy.guide), 200, 19, batch_size=100)
    assert result.uniform(level=1e-3, bins=5)  # false alarm: one seed in 1,000
    assert not calibration(toy.model, biased, 200, 19, batch_size=100).uniform(level=1e-3, bins=5)
    with pytest.raises(ValueError, match="calibration: Tilted has a further site 'tilt'"):
        calibration(Toy(Tilted).model, toy.guide, 5, 9)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_an_autoguide_serves_its_own_sequences_alone(kind: Any) -> None:
    toy, x = Toy(), frames()
    guide = kind(poutine.block(toy.model, hide=["x", "t"]))
    assert encode(toy.model, guide, x).shape == (B, S, 1, 2)
    for verb in (encode, reconstruct, traverse):
        with pytest.raises(ValueError, match="has 3 entries, x has 2 sequences"):
            verb(toy.model, guide, x[:2])
    for what, refused in (
        ("forward_roll", lambda: forward_roll(toy.model, guide, x)),
        ("calibration", lambda: calibration(toy.model, guide, 6, 9)),
    ):
        with pytest.raises(ValueError, match=f"{what}: {kind.__name__} holds the latents of the sequences"):
            refused()


def test_forecasts_of_a_program_are_those_of_its_means() -> None:
    toy, x = Toy(), frames()

    def sharp(x: Tensor, observed: Tensor | None = None) -> None:
        with pyro.plate("sequence", len(x), dim=-1):
            posterior = toy.guide.posterior(x, observed)["z"]
            pyro.sample("z", dist.Normal(posterior.mean, 1e-6).to_event(3))

    one, two = (forward_roll(toy.model, guide, x) for guide in (toy.guide, sharp))
    for name in one.log_likelihood:
        torch.testing.assert_close(one.log_likelihood[name], two.log_likelihood[name], atol=1e-4, rtol=1e-5)
    given = forward_roll(toy.model, as_function(toy.guide), x, num_particles=2000)
    exact = forward_roll(toy.model, toy.guide, x, num_particles=2000)
    assert given.conditional is not None
    assert exact.conditional is not None
    assert given.conditional.mean == pytest.approx(exact.conditional.mean, abs=0.01)


def test_forecasts_of_a_bayesian_model_are_those_of_its_mean_weights() -> None:
    toy, twin, x = Toy(), Toy(), frames()
    twin.model.load_state_dict(toy.model.state_dict())
    twin.guide.load_state_dict(toy.guide.state_dict())

    def guide(x: Tensor, observed: Tensor | None = None) -> None:
        pyro.sample(toy.b, dist.Normal(torch.full((6,), 0.2).double(), 1e-7).to_event(1))
        with pyro.plate("sequence", len(x), dim=-1):
            posterior = toy.guide.posterior(x, observed)["z"]
            pyro.sample("z", dist.Normal(posterior.mean, 1e-7).to_event(3))

    toy.bayesian()
    with torch.no_grad():
        twin.model.decoder[0].bias.fill_(0.2)
    one, two = forward_roll(toy.model, guide, x), forward_roll(twin.model, twin.guide, x)
    for name in ("model", "hold"):
        torch.testing.assert_close(one.log_likelihood[name], two.log_likelihood[name], atol=1e-5, rtol=1e-6)


def test_means_over_draws_have_the_error_that_is_said() -> None:
    toy, x = Toy(), frames()
    found = (encode(toy.model, as_function(toy.guide), x) - toy.mean(x)) / (toy.sd / 8)
    assert float(found.abs().max()) < 5  # 24 means: one false alarm in 70,000 seeds
    assert 0.5 < float(found.std()) < 1.6


def test_a_chain_may_be_short() -> None:
    toy, x = Toy(), frames()
    assert nuts(toy.model, x, init=toy.guide, num_samples=1, warmup_steps=2).diverging.shape == (2, 1)


def test_a_model_inside_a_handler_is_run_inside_it() -> None:
    toy, x = Toy(), frames()
    half = poutine.scale(toy.model, 0.5)
    data = to_arviz(half, toy.guide, x, draws=4)
    z = values(data, "posterior", "z")
    torch.testing.assert_close(values(data, "log_likelihood", "x"), 0.5 * toy.nats(x, z, torch.zeros(6).double()))
    torch.testing.assert_close(
        values(data, "sample_stats", "log_weight")[0], log_weights(half, toy.guide, x, 4, seed=0)
    )


def test_a_handler_is_refused_where_the_model_itself_is_asked() -> None:
    toy, x = Toy(), frames()
    half: Any = poutine.scale(toy.model, 0.5)
    for refused in (encode, reconstruct, traverse, forward_roll, annealed_importance):
        with pytest.raises(TypeError, match="expected a TVAE without a handler around it"):
            refused(half, toy.guide, x)


def test_a_start_without_a_site_is_refused() -> None:
    toy, x = Toy(), frames()
    toy.bayesian()
    with pytest.raises(ValueError, match=r"nuts: the model has a latent site 'TVAE_\d+.decoder.0.bias'"):
        nuts(toy.model, x, init=toy.guide, num_samples=1, warmup_steps=1)


def turning() -> SequenceDataModule:
    moves = Transformations(rotation=range(0, 360, 90), moving=["rotation"])
    return SequenceDataModule(digits(size=8), moves, n_frames=4, n_train=10, n_test=10, eval_batch_size=5)


def test_the_evaluation_counts_a_factor_and_refuses_random_weights() -> None:
    data = turning()
    model = Tilted((1, 8, 8), 4, 1, 4, CapsuleRoll(4, 0), mu=3.0)
    guide = MeanFieldGuide(model)
    scores = flat(measure(model, guide, data, num_particles=300, progress=False))
    x = torch.cat([batch["x"] for batch in data.batches("test")])
    with torch.no_grad():
        terms = ELBO(model, guide, num_particles=300)(x)
        tilt = TILT * float(encode(model, guide, x).sum((-1, -2, -3)).mean()) / 4
    assert scores["elbo"] == pytest.approx(float(terms.elbo.mean()) / 4, rel=5e-3)
    assert scores["kl"] == pytest.approx(float(terms.kl.mean()) / 4, rel=1e-3)
    assert abs(tilt) > 0.1 * abs(scores["elbo"])
    model.mu = PyroSample(dist.Normal(3.0, 1.0))
    with pytest.raises(ValueError, match="evaluate: Tilted has random weights"):
        measure(model, guide, data, progress=False)


def test_the_evaluation_counts_a_forward_of_the_guides_own() -> None:
    """A guide whose forward draws about other means than its posterior says is judged by what it draws."""

    class Own(MeanFieldGuide):
        def forward(self, x: Tensor, observed: Tensor | None = None, **_: Any) -> dict[str, Tensor]:
            distributions: Any = self.posterior(x, observed)
            return self.draw(
                {
                    site: dist.Normal(distribution.mean + 2, distribution.stddev)
                    for site, distribution in distributions.items()
                }
            )

    data = turning()
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), 4, 1, 4, CapsuleRoll(4, 0), mu=3.0)
    guide = Own(model)
    scores = flat(measure(model, guide, data, num_particles=300, progress=False))
    x = torch.cat([batch["x"] for batch in data.batches("test")])
    with torch.no_grad():
        terms = ELBO(model, guide, num_particles=300)(x)
        plain = ELBO(model, default_guide(model), num_particles=300)(x)
    assert scores["elbo"] == pytest.approx(float(terms.elbo.mean()) / 4, rel=2e-3)
    assert scores["kl"] == pytest.approx(float(terms.kl.mean()) / 4, rel=0.02)
    assert scores["kl"] > 1.5 * float(plain.kl.mean()) / 4
