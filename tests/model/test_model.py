"""The generative program: its laws, its shapes, its gradients and its complaints."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from scipy import stats
from torch import Tensor
from torch.distributions.transforms import PowerTransform

from pyro_tvae import (
    MLP,
    TVAE,
    CapsuleRoll,
    ContinuousBernoulli,
    Convolutional,
    EnergyPrior,
    GammaEnergy,
    GaussianEnergy,
    MeanFieldGuide,
    Network,
    Normal,
    NoTopography,
    OrbitEnergy,
    Stationary,
    Topography,
    Torus,
    default_guide,
    encode,
    reconstruct,
    roll,
    sample,
    traverse,
)

FRAME = (1, 2, 3)


def small(topography: Topography | None = None, **options: object) -> TVAE:
    """S = 4, C = 2, D = 4."""
    return TVAE(FRAME, 4, 2, 4, topography if topography is not None else CapsuleRoll(3, 1), **options)  # type: ignore[arg-type]


def prior_draws(model: TVAE, n: int) -> dict[str, Tensor]:
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(n_sequences=n)
    return {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}


# --- laws ------------------------------------------------------------------------------------------------------------

# A goodness-of-fit test that is right raises a false alarm once in 10,000 seeds.
FALSE_ALARM = 1e-4

STUDENT = {
    1: (CapsuleRoll(1, 0), 2, 3),
    2: (CapsuleRoll(2, 0), 3, 2),
    3: (Torus((1, 3), (2, 4)), 1, 8),
    4: (Stationary((2, 2)), 3, 3),
    7: (CapsuleRoll(3, 1), 4, 5),
    15: (Stationary((5, 3)), 6, 4),
}


def one_position_per_sequence(nu: int, n: int = 6000) -> np.ndarray:
    """Independent draws of one t from models with μ = 0 whose rows of W hold ν ones."""
    topography, n_frames, capsule_dim = STUDENT[nu]
    w = topography.neighborhood(n_frames, capsule_dim)
    assert torch.equal(w.sum(1), torch.full((len(w),), float(nu)))
    assert w.max() == 1
    model = TVAE((1, 1, 1), n_frames, 1, capsule_dim, topography, mu=0.0, eps=0.0)
    return prior_draws(model, n)["t"][:, -1, 0, -1].double().numpy()


@pytest.mark.parametrize("nu", STUDENT)
def test_scaled_t_is_student_t(nu: int) -> None:
    draws = one_position_per_sequence(nu)
    assert stats.kstest(np.sqrt(nu) * draws, stats.t(nu).cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize("nu", [nu for nu in STUDENT if nu > 1])
def test_unscaled_t_is_not_student_t(nu: int) -> None:
    assert stats.kstest(one_position_per_sequence(nu), stats.t(nu).cdf).pvalue < FALSE_ALARM


def test_student_t_with_a_wrong_degree_of_freedom_is_noticed() -> None:
    assert stats.kstest(np.sqrt(2) * one_position_per_sequence(2), stats.t(1).cdf).pvalue < FALSE_ALARM
    assert stats.kstest(np.sqrt(4) * one_position_per_sequence(4), stats.t(2).cdf).pvalue < FALSE_ALARM


ORBITS = {"roll": lambda: CapsuleRoll(4, 0), "stationary": lambda: Stationary((4, 1))}


@pytest.mark.parametrize("build", ORBITS.values(), ids=ORBITS)
def test_orbit_energies_and_gaussian_ones_have_the_same_law(build: Callable[[], Topography]) -> None:
    one = prior_draws(small(build(), prior=GaussianEnergy(), mu=1.0), 4000)
    two = prior_draws(small(build(), prior=OrbitEnergy(), mu=1.0), 4000)
    statistics: dict[str, Callable[[dict[str, Tensor], TVAE | None], Tensor]] = {
        "t at one place": lambda d, _: d["t"][:, 2, 1, 3],
        "t at another": lambda d, _: d["t"][:, 0, 0, 0],
        "sum of t over a frame": lambda d, _: d["t"][:, 1].sum((-1, -2)),
        "product of neighbours in time": lambda d, _: d["t"][:, 0, 0, 0] * d["t"][:, 1, 0, 1],
        "product at one position": lambda d, _: d["t"][:, 0, 0, 0] * d["t"][:, 1, 0, 0],
        "largest in a sequence": lambda d, _: d["t"].flatten(1).max(1).values,
    }
    for name, statistic in statistics.items():
        test = stats.ks_2samp(statistic(one, None).numpy(), statistic(two, None).numpy())
        assert test.pvalue > FALSE_ALARM, name


def test_two_laws_that_differ_are_told_apart() -> None:
    """Control: the statistics above see a wrong number of degrees of freedom."""
    one = prior_draws(small(CapsuleRoll(4, 0), mu=1.0), 4000)["t"][:, 0, 0, 0]
    two = prior_draws(small(CapsuleRoll(3, 0), mu=1.0), 4000)["t"][:, 0, 0, 0]
    assert stats.ks_2samp(one.numpy(), two.numpy()).pvalue < FALSE_ALARM


def test_orbit_energies_roll_exactly() -> None:
    model = small(CapsuleRoll(4, 0), prior=OrbitEnergy())
    assert model.prior is not None
    e = model.prior.distribution(torch.zeros(())).sample(torch.Size([5]))
    assert e.shape == (5, 2, 4)
    v = model.energy(e)
    for frame in range(4):
        assert torch.equal(roll(v[:, frame], 1), v[:, (frame + 1) % 4])


@pytest.mark.parametrize(("m", "s", "a", "b"), [(0.3, 0.8, 2.0, 0.5), (-1.0, 0.2, 0.5, 0.5), (0.9, 0.5, 9.0, 3.0)])
def test_kl_of_log_normal_and_gamma_equals_monte_carlo(m: float, s: float, a: float, b: float) -> None:
    q = dist.LogNormal(torch.tensor(m).double(), torch.tensor(s).double())
    p = dist.Gamma(torch.tensor(a).double(), torch.tensor(b).double())
    draws = q.sample(torch.Size([200_000]))
    terms = q.log_prob(draws) - p.log_prob(draws)
    # Five standard errors: false alarm below one in a million; the standard error must be small to mean something.
    error = float(terms.std()) / len(terms) ** 0.5
    assert error < 0.02
    assert abs(float(torch.distributions.kl_divergence(q, p)) - float(terms.mean())) < 5 * error


# --- the program -----------------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[], TVAE]] = {
    "roll": lambda: small(CapsuleRoll(3, 1)),
    "roll, truncated": lambda: small(CapsuleRoll(3, 1, boundary="truncate")),
    "roll, learned": lambda: small(CapsuleRoll(3, 1, learned=True)),
    "stationary": lambda: small(Stationary((3, 2))),
    "torus": lambda: small(Torus((2, 2), (2, 2)), mu=10.0),
    "none": lambda: small(NoTopography()),
    "orbits": lambda: small(CapsuleRoll(4, 0), prior=OrbitEnergy()),
    "orbits, stationary": lambda: small(Stationary((4, 1)), prior=OrbitEnergy()),
    "continuous": lambda: small(likelihood=ContinuousBernoulli()),
    "normal": lambda: small(likelihood=Normal(0.2, learned=True, activation="sigmoid")),
}
ALL = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def site_shapes(model: TVAE) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"z": (4, 2, 4), "t": (4, 2, 4), "x": (4, *FRAME)}
    if model.prior is not None:
        shapes[model.prior.site] = (2, 4) if isinstance(model.prior, OrbitEnergy) else (4, 2, 4)
    return shapes


@ALL
def test_sites_have_the_documented_shapes(build: Callable[[], TVAE]) -> None:
    model = build()
    trace = poutine.trace(model).get_trace(n_sequences=3)
    values = {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}
    for name, shape in site_shapes(model).items():
        assert values[name].shape == (3, *shape), name
    trace.compute_log_prob()
    for name in site_shapes(model):
        assert trace.nodes[name]["log_prob"].shape == (3,), name
    plates = {frame.name for node in trace.nodes.values() for frame in node.get("cond_indep_stack", ())}
    assert plates == {"sequence"}


@ALL
def test_the_program_scores_what_it_is_given_and_samples_otherwise(build: Callable[[], TVAE]) -> None:
    model = build()
    x = torch.rand(5, 4, *FRAME)
    assert model(x) is x
    drawn = model(n_sequences=4)
    assert drawn.shape == (4, 4, *FRAME)
    assert torch.isfinite(drawn).all()


@ALL
def test_the_equations_hold_on_a_trace(build: Callable[[], TVAE]) -> None:
    model = build()
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(torch.rand(3, 4, *FRAME))
        z, t = trace.nodes["z"]["value"], trace.nodes["t"]["value"]
        if model.prior is None:
            assert torch.equal(t, z)
            return
        u = trace.nodes[model.prior.site]["value"]
        w = model.topography.neighborhood(4, 4)
        if isinstance(model.prior, OrbitEnergy):
            v = torch.stack([torch.stack([e[c][model.prior.index] for c in range(2)], 1) for e in u])
        else:
            v = torch.einsum("ij,ncj->nci", w, u.square().transpose(-3, -2).flatten(-2)).unflatten(-1, (4, 4))
            v = v.transpose(-3, -2)
        torch.testing.assert_close(t, (z + model.mu) / torch.sqrt(v + model.eps), rtol=1e-4, atol=1e-5)
        # One frame at a time: the decoder's answer to frame 2 does not depend on its neighbours.
        alone = model.decode(t[:, 2:3])
        torch.testing.assert_close(alone.mean, model.decode(t).mean[:, 2:3])


def test_mu_starts_where_it_was_put_and_shifts_t() -> None:
    model = small(mu=12.0)
    assert float(model.mu) == 12.0
    assert float(small().mu) == 30.0
    z, u = torch.zeros(1, 4, 2, 4), torch.ones(1, 4, 2, 4)
    # Seven neighbours of energy one: t = μ / sqrt(7 + eps), with a plus sign.
    torch.testing.assert_close(model.compose({"z": z, "u": u}), torch.full_like(z, 12 / 7**0.5))
    assert not hasattr(small(NoTopography()), "mu")


def test_eps_is_added_under_the_root() -> None:
    model = small(mu=2.0, eps=0.25)
    z = torch.zeros(1, 4, 2, 4)
    torch.testing.assert_close(model.compose({"z": z, "u": z}), torch.full_like(z, 4.0))


class Reciprocal(GaussianEnergy):
    """Energies 1 / u², which have no mean."""

    def energy(self, value: Tensor, topography: Topography) -> Tensor:
        return topography.energy(1 / value)

    def distribution(self, like: Tensor) -> dist.TorchDistribution:
        distribution = super().distribution(like)
        return dist.TransformedDistribution(distribution, [PowerTransform(torch.tensor(-1.0))])


class HalfCauchyEnergy(GammaEnergy):
    """Energies whose mean is infinite."""

    def distribution(self, like: Tensor) -> dist.TorchDistribution:
        return dist.HalfCauchy(like.new_ones(())).expand(self.shape).to_event(3)


class LaplaceEnergy(EnergyPrior):
    """Energies u² without a ``point`` of their own: the mean of u says nothing about that of u²."""

    site = "u"

    def distribution(self, like: Tensor) -> dist.TorchDistribution:
        return dist.Laplace(like.new_zeros(()), like.new_ones(())).expand(self.shape).to_event(3)

    def energy(self, value: Tensor, topography: Topography) -> Tensor:
        return topography.energy(value)


@pytest.mark.parametrize(
    ("topography", "prior", "expected"),
    [
        (CapsuleRoll(4, 0), GaussianEnergy(), 12 / 4**0.5),
        (CapsuleRoll(4, 0), OrbitEnergy(), 12 / 4**0.5),
        (CapsuleRoll(3, 1), GammaEnergy(1.5), 12 / 21**0.5),  # seven neighbours of mean 2 · 1.5
        # Frames at the ends have neighbours on one side only: sums of 5, 7, 7 and 5.
        (CapsuleRoll(3, 1, boundary="truncate"), GaussianEnergy(), 12 * (5**-0.5 + 7**-0.5) / 2),
        (NoTopography(), None, 0.0),
    ],
)
def test_the_centre_is_t_at_the_mean_energy(topography: Topography, prior: EnergyPrior | None, expected: float) -> None:
    model = small(topography, prior=prior, mu=12.0, centered=True)
    torch.testing.assert_close(model.center(), torch.tensor(expected))


@pytest.mark.parametrize("network", [MLP(), Convolutional((4, 8))], ids=["mlp", "convolutional"])
def test_a_centred_model_says_the_same_with_other_biases(network: Network) -> None:
    plain, centered = (small(network=network, mu=12.0, centered=centered).double() for centered in (False, True))
    weights = dict(zip(dict(centered.decoder.named_parameters()), plain.decoder.parameters(), strict=True))
    centered.decoder.load_state_dict(weights, strict=False)
    t = 5 * torch.randn(3, 4, 2, 4, dtype=torch.float64)
    assert not torch.allclose(centered.decode(t).mean, plain.decode(t).mean)
    first = next(layer for layer in centered.decoder.modules() if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        first.bias += first.weight.sum(1) * centered.center()
    torch.testing.assert_close(centered.decode(t).mean, plain.decode(t).mean)
    # The shift is no parameter, and stays where it was put when μ is learned.
    assert len([*centered.parameters()]) == len([*plain.parameters()])
    with torch.no_grad():
        centered.mu += 1
    torch.testing.assert_close(centered.decode(t).mean, plain.decode(t).mean)


@pytest.mark.parametrize("leading", [(), (3,), (5, 3)])
def test_compose_and_decode_take_any_leading_dimensions(leading: tuple[int, ...]) -> None:
    model = small()
    z, u = torch.randn(*leading, 4, 2, 4), torch.randn(*leading, 4, 2, 4)
    t = model.compose({"z": z, "u": u})
    assert t.shape == z.shape
    frames = model.decode(t)
    assert frames.batch_shape == (*leading, 4)
    assert frames.event_shape == FRAME
    flat = model.compose({"z": z.reshape(-1, 4, 2, 4), "u": u.reshape(-1, 4, 2, 4)}).reshape(t.shape)
    torch.testing.assert_close(t, flat)


@ALL
def test_predictive_draws_new_images(build: Callable[[], TVAE]) -> None:
    model = build()
    x = torch.rand(3, 4, *FRAME)
    drawn = Predictive(poutine.uncondition(model), num_samples=6)(x)
    assert drawn["x"].shape == (6, 3, 4, *FRAME)
    assert not torch.equal(drawn["x"][0], x)
    assert drawn["t"].shape == (6, 3, 4, 2, 4)
    vectorized = Predictive(poutine.uncondition(model), num_samples=6, parallel=True)(x)
    assert vectorized["x"].shape[0] == 6
    assert vectorized["x"].numel() == drawn["x"].numel()


@ALL
def test_particles_are_indexed_from_the_right(build: Callable[[], TVAE]) -> None:
    """Scores of K particles at once equal those of each particle alone."""
    model = build()
    x = torch.rand(3, 4, *FRAME)
    with torch.no_grad():
        with pyro.plate("particles", 5, dim=-2):
            together = poutine.trace(model).get_trace(x)
        together.compute_log_prob()
        assert together.nodes["x"]["log_prob"].shape == (5, 3)
        latents = [name for name in site_shapes(model) if name not in ("t", "x")]
        for k in range(5):
            one = {name: together.nodes[name]["value"][k] for name in latents}
            alone = poutine.trace(poutine.condition(model, data=one)).get_trace(x)
            alone.compute_log_prob()
            for name in (*latents, "x"):
                torch.testing.assert_close(alone.nodes[name]["log_prob"], together.nodes[name]["log_prob"][k])


@ALL
def test_double_precision(build: Callable[[], TVAE]) -> None:
    model = build().double()
    trace = poutine.trace(model).get_trace(torch.rand(3, 4, *FRAME, dtype=torch.float64))
    trace.compute_log_prob()
    for name in site_shapes(model):
        assert trace.nodes[name]["value"].dtype == torch.float64, name
        assert name == "t" or trace.nodes[name]["log_prob"].dtype == torch.float64, name  # t carries no probability


def test_argument_validation_stays_on_elsewhere() -> None:
    """The exemption for grey values is made at one site, not for the process."""
    model = small()
    model(torch.rand(2, 4, *FRAME))
    with pytest.raises(ValueError, match="support"):
        dist.Bernoulli(torch.tensor(0.5)).log_prob(torch.tensor(0.3))
    with pytest.raises(ValueError, match="constraint"):
        dist.Normal(torch.tensor(0.0), torch.tensor(-1.0))


def test_a_deep_copy_computes_the_same_and_trains_apart() -> None:
    model = small()
    twin = copy.deepcopy(model)
    x = torch.rand(2, 4, *FRAME)
    values = [float(poutine.trace(m).get_trace(x).log_prob_sum()) for m in (model, twin) if not pyro.set_rng_seed(3)]  # type: ignore[func-returns-value]
    assert values[0] == values[1]
    with torch.no_grad():
        twin.mu += 1
    assert float(model.mu) == 30.0
    model(x)
    twin(x)
    assert len(pyro.get_param_store()) == 2 * len(list(model.parameters()))


def test_networks_have_the_papers_widths() -> None:
    model = TVAE((3, 28, 28), 18, 18, 18)
    sizes = [tuple(layer.weight.shape) for layer in model.decoder.modules() if isinstance(layer, torch.nn.Linear)]
    assert sizes == [(648, 324), (972, 648), (2352, 972)]
    encoder = MLP().encoder((3, 28, 28), 324, 648)
    sizes = [tuple(layer.weight.shape) for layer in encoder.modules() if isinstance(layer, torch.nn.Linear)]
    assert sizes == [(972, 2352), (648, 972), (648, 648)]
    assert model.latent_shape == (18, 18, 18)
    assert model.n_latents == 324


def test_the_published_decoder_has_a_bias_per_channel_and_the_starts_of_transposed_convolutions() -> None:
    """Against torch's own transposed convolutions: same numbers from the same weights, same spread of fresh ones."""
    torch.manual_seed(0)
    n, channels, size = 12, 3, 5
    decoder = MLP((3, 2), (2, 3), published=True).decoder(n, (channels, size, size))
    twin = torch.nn.Sequential(
        torch.nn.ConvTranspose2d(n, 2 * n, 1),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(2 * n, 3 * n, 1),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(3 * n, channels, size),
    )
    ours = [layer.weight for layer in decoder.modules() if isinstance(layer, torch.nn.Linear)]
    theirs = [layer.weight for layer in twin if isinstance(layer, torch.nn.ConvTranspose2d)]
    for mine, other in zip(ours, theirs, strict=True):
        # Uniform within a bound that thousands of draws all but reach: the two bounds agree to a few in a hundred.
        assert mine.abs().max().item() == pytest.approx(other.abs().max().item(), rel=0.03)
    parameters = dict(decoder.named_parameters())
    assert [tuple(value.shape) for name, value in parameters.items() if not name.endswith("weight")] == [
        (2 * n,),
        (3 * n,),
        (channels, 1, 1),
    ]
    with torch.no_grad():
        for k, layer in enumerate(layer for layer in twin if isinstance(layer, torch.nn.ConvTranspose2d)):
            layer.weight.copy_(ours[k].T.reshape(layer.weight.shape))
            layer.bias.copy_([*parameters.values()][[1, 3, -1][k]].flatten())
    t = torch.randn(4, n)
    torch.testing.assert_close(decoder(t), twin(t[..., None, None]))


# --- complaints ------------------------------------------------------------------------------------------------------

COMPLAINTS: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "frame missing": (
        ValueError,
        r"this model expects .* = \(any, 4, 1, 2, 3\): give such sequences",
        lambda: small()(torch.rand(2, 3, *FRAME)),
    ),
    "channel": (ValueError, "x has shape", lambda: small()(torch.rand(2, 4, 3, 2, 3))),
    "no batch": (ValueError, "add the missing dimension", lambda: small()(torch.rand(4, *FRAME))),
    "bytes": (TypeError, "divide bytes by 255", lambda: small()(torch.zeros(2, 4, *FRAME, dtype=torch.uint8))),
    "centred without a mean": (
        ValueError,
        r"of Reciprocal give none; .* centered=False",
        lambda: small(prior=Reciprocal(), centered=True),
    ),
    "centred with an infinite mean": (
        ValueError,
        r"of HalfCauchyEnergy give none; give the distribution a mean",
        lambda: small(prior=HalfCauchyEnergy(), centered=True),
    ),
    "centred with u² and the mean of u": (
        ValueError,
        r"of LaplaceEnergy give none; .* override 'point'",
        lambda: small(prior=LaplaceEnergy(), centered=True),
    ),
    "centered in words": (ValueError, "centered is 'no'; expected True or False", lambda: small(centered="no")),
    "frame shape": (ValueError, r"expected \(channel, height, width\)", lambda: TVAE((28, 28))),
    "no frames": (ValueError, "sizes of at least 1", lambda: TVAE(FRAME, 0)),
    "no capsules": (ValueError, "sizes of at least 1", lambda: TVAE(FRAME, 4, 0)),
    "no positions": (ValueError, "sizes of at least 1", lambda: TVAE(FRAME, 4, 2, 0)),
    "eps": (ValueError, "eps >= 0", lambda: small(eps=-1.0)),
    "torus size": (ValueError, "product of the grid", lambda: small(Torus((3, 3), (3, 3)))),
    "prior without energies": (ValueError, "has no energies", lambda: small(NoTopography(), prior=GaussianEnergy())),
    "orbits that overlap": (ValueError, "no disjoint orbits", lambda: small(prior=OrbitEnergy())),
    "energy of a plain VAE": (ValueError, "t = z", lambda: small(NoTopography()).energy(torch.zeros(4, 2, 4))),
    "no u": (ValueError, "needs a value of site 'u'", lambda: small().compose({"z": torch.zeros(4, 2, 4)})),
    "no z": (ValueError, "needs a value of site 'z'", lambda: small().compose({"u": torch.zeros(4, 2, 4)})),
    "covariate of nobody": (
        ValueError,
        "taken neither by the model nor by the guide",
        lambda: traverse(
            one := small(), default_guide(one), torch.rand(1, 4, *FRAME), covariates={"no": torch.rand(1)}
        ),
    ),
    "t to decode": (ValueError, "expected .* 4 positions", lambda: small().decode(torch.zeros(3, 2, 5))),
    "unknown argument": (TypeError, "it takes frame_shape", lambda: TVAE(FRAME, frames=4)),  # type: ignore[call-arg]
    "no sequences to sample": (ValueError, "whole number of at least 1", lambda: sample(small(), 0)),
}


@pytest.mark.parametrize(("error", "sentence", "call"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints_are_one_sentence(error: type[Exception], sentence: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- verbs -----------------------------------------------------------------------------------------------------------


@ALL
def test_verbs_return_frames_and_capsules(build: Callable[[], TVAE]) -> None:
    model = build()
    guide = default_guide(model)
    x = torch.rand(3, 4, *FRAME)
    t = encode(model, guide, x)
    assert t.shape == (3, 4, 2, 4)
    assert not t.requires_grad
    frames = reconstruct(model, guide, x)
    assert frames.shape == x.shape
    torch.testing.assert_close(frames, model.decode(t).mean.detach())
    assert sample(model, 5, mean=True).shape == (5, 4, *FRAME)
    model, guide, x = model.double(), guide.double(), x.double()  # so that the order of sums does not matter below
    t, frames = encode(model, guide, x), reconstruct(model, guide, x)
    # Step l of a traversal from frame 1 is the model's forecast of frame l: t of frame 1 rolled by l - 1.
    steps = traverse(model, guide, x, frame=1)
    assert steps.shape == (3, 4, *FRAME)
    for step in range(4):
        expected = model.decode(torch.roll(t[:, 1:2], step - 1, dims=-1)).mean[:, 0]
        torch.testing.assert_close(steps[:, step], expected.detach())
    chosen = traverse(model, guide, x, frame=2, shifts=torch.tensor([0, -1]))
    torch.testing.assert_close(chosen[:, 0], frames[:, 2])
    torch.testing.assert_close(chosen[:, 1], model.decode(torch.roll(t[:, 2:3], -1, dims=-1)).mean[:, 0].detach())


def test_encode_uses_the_expected_energy() -> None:
    model = small()
    guide = MeanFieldGuide(model, initial_log_variance=0.0)
    x = torch.rand(1, 4, *FRAME)
    with torch.no_grad():
        q = guide.posterior(x)
        u = q["u"].sample(torch.Size([200_000]))[:, 0]
        v = model.energy(u)
        expected = (q["z"].mean[0] + model.mu) * (v.mean(0) + model.eps).rsqrt()
        # The relative error of the mean energy is at most sqrt(2 / 200,000) = 0.3 %, half of it in t: 1 % is six
        # standard errors, so a false alarm is rarer than one in 10,000 over all 32 values.
        torch.testing.assert_close(encode(model, guide, x)[0], expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("boundary", ["circular", "open"])
def test_a_frame_counted_from_the_end_is_that_frame(boundary: str) -> None:
    torch.manual_seed(0)
    model = TVAE((1, 4, 4), 4, 2, 6, CapsuleRoll(3, 0, boundary=boundary))
    guide, x = MeanFieldGuide(model), torch.rand(2, 4, 1, 4, 4)
    for frame in range(4):
        expected = traverse(model, guide, x, frame=frame)
        assert torch.equal(traverse(model, guide, x, frame=frame - 4), expected)
        # Step l is the forecast of frame l, so that of the frame itself is its reconstruction.
        torch.testing.assert_close(expected[:, frame], reconstruct(model, guide, x)[:, frame])
    assert torch.equal(traverse(model, guide, x, shifts=[0, 1]), traverse(model, guide, x, shifts=torch.tensor([0, 1])))
    for frame in (4, -5, 1.0):
        with pytest.raises(ValueError, match="expected one from 0 to 3, or from -1 backwards"):
            traverse(model, guide, x, frame=frame)  # type: ignore[arg-type]
