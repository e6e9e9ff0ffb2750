"""Likelihood estimates against exact log p(x), hand-made weights and Pyro's own bound, and their stated uncertainty."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian import Affine, OneEnergy
from pyro.infer import RenyiELBO
from scipy import stats
from torch import Tensor

from pyro_tvae import TVAE, CapsuleRoll, Guide, MeanFieldGuide, Normal, NoTopography, OrbitEnergy
from pyro_tvae.guides import default_guide
from pyro_tvae.inference import ELBO, LogLikelihood, log_likelihood, log_weights
from pyro_tvae.inference.likelihood import _chunks, summarize

FRAME = (1, 2, 3)
SIGMA = 0.5
S = 3


class Toy:
    """x[l] = A z[l] + b + noise in float64; A has orthogonal columns, so that the posterior is mean-field.

    The guide is that posterior, its means moved by ``off`` standard deviations and its log-variances by ``off``.
    """

    def __init__(self, off: float) -> None:
        self.model = TVAE(FRAME, S, 1, 2, NoTopography(), likelihood=Normal(SIGMA), network=Affine()).double()
        self.guide = MeanFieldGuide(self.model).double()
        a = torch.linalg.qr(torch.randn(6, 2).double()).Q * torch.tensor([1.3, 0.7]).double()
        b = torch.linspace(-0.4, 0.5, 6).double()
        precision = 1 + a.square().sum(0) / SIGMA**2
        to_mean = (a / SIGMA**2 / precision).T
        with torch.no_grad():
            self.model.decoder[0].weight.copy_(a)
            self.model.decoder[0].bias.copy_(b)
            layer = self.guide.z_encoder.network[1]
            layer.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
            layer.bias.copy_(torch.cat([-to_mean @ b + off * precision.rsqrt(), -precision.log() + off]))
        covariance = a @ a.T + SIGMA**2 * torch.eye(6).double()
        self.marginal = dist.MultivariateNormal(b, covariance)

    def sequences(self, n: int) -> Tensor:
        return self.model(n_sequences=n).detach()

    def log_p(self, x: Tensor) -> Tensor:
        return self.marginal.log_prob(x.flatten(-3)).sum(-1)


# --- against exact values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [0.0, 0.1, -0.1])
def test_ten_thousand_particles_find_log_p(off: float) -> None:
    toy = Toy(off)
    x = toy.sequences(6)
    found = log_likelihood(toy.model, toy.guide, x, 10_000, batch_size=4)
    # The weights' relative standard deviation is at most 0.4, the estimate's error 0.004: 0.02 is five of them.
    assert found.standard_error.max() < 0.004
    assert (found.iwae - toy.log_p(x)).abs().max() < 0.02
    assert (found.ess > 8_000).all()
    if off == 0:  # exact weights do not vary
        torch.testing.assert_close(found.iwae, toy.log_p(x))
        torch.testing.assert_close(found.ess, torch.full_like(found.ess, 10_000))


def test_the_bound_grows_with_k_and_stays_below_log_p() -> None:
    toy = Toy(0.5)
    x = toy.sequences(1)
    gap = []
    with torch.no_grad():
        for k in (1, 4, 16, 64):
            estimates = log_likelihood(toy.model, toy.guide, x.expand(2000, -1, -1, -1, -1), k, batch_size=500).iwae
            gap.append((float(estimates.mean() - toy.log_p(x)), float(estimates.std()) / 2000**0.5))
    # Every comparison at four standard errors: seven of them, one false alarm in 4,000 seeds.
    for value, error in gap:
        assert value < 4 * error
    for (low, error), (high, other) in itertools.pairwise(gap):
        assert high - low > 4 * math.hypot(error, other)
    # The K = 1 bound is the ELBO, log p less the divergence of six latents off by 0.5.
    assert abs(gap[0][0] + 6 * 0.5 * (0.25 + math.exp(0.5) - 1.5)) < 4 * gap[0][1]


def test_one_particle_is_the_elbo_in_expectation() -> None:
    model = TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, 1), mu=2.0)
    guide = default_guide(model, initial_log_variance=-1.0)
    x = torch.rand(1, 4, *FRAME)
    with torch.no_grad():
        one = log_likelihood(model, guide, x.expand(2000, -1, -1, -1, -1), 1, batch_size=500)
        two = torch.stack([ELBO(model, guide, 200)(x).elbo for _ in range(20)]).double()
        error = (one.iwae.var() / 2000 + two.var() / 20).sqrt()
    # Student's t with 19 degrees of freedom at least: beyond 5.5 once in 35,000 seeds.
    assert abs(float(one.iwae.mean() - two.mean())) < 5.5 * float(error)
    assert float(error) < 0.2
    assert torch.equal(one.iwae, one.elbo)
    assert one.standard_error.isnan().all()  # one weight says nothing of its spread
    assert torch.allclose(one.ess, torch.ones_like(one.ess))


# --- frames that are coupled -----------------------------------------------------------------------------------------


class Coupled(OneEnergy):
    def __init__(self, orbits: bool = False) -> None:
        super().__init__(OrbitEnergy() if orbits else None)
        self.orbits = orbits

    def guide(self, x: Tensor) -> None:
        """The prior as proposal, a plain function."""
        like = torch.zeros((), dtype=torch.float64)
        with pyro.plate("sequence", x.shape[-5], dim=-1):
            pyro.sample("z", dist.Normal(like, 1.0).expand((2, 1, 1)).to_event(3))
            if self.orbits:
                pyro.sample("e", dist.Gamma(1 + like, 0.5).expand((1, 1)).to_event(2))
            else:
                pyro.sample("u", dist.Normal(like, 1.0).expand((2, 1, 1)).to_event(3))


# Frames that agree on a large scale, that agree on a small one, and that disagree.
PAIRS = [(4.0, 3.5), (0.4, 0.3), (4.0, 0.1)]


@pytest.mark.parametrize("orbits", [False, True])
@pytest.mark.parametrize("pair", PAIRS)
def test_coupled_frames_are_weighted_together(pair: tuple[float, float], orbits: bool) -> None:
    toy = Coupled(orbits)
    x = torch.tensor(pair, dtype=torch.float64)
    copies = x.reshape(1, 2, 1, 1, 1).expand(20, -1, -1, -1, -1)
    found = log_likelihood(toy.model, toy.guide, copies, 100_000)
    # Twenty estimates; their own spread measures the error, t with 19 degrees of freedom beyond 5.5: one seed in
    # 35,000, over six cases one in 6,000. The bias of the bound is at most half the variance of the weights' mean.
    error = float(found.iwae.std()) / 20**0.5
    assert error < 0.03
    bias = float(found.standard_error.square().mean()) / 2
    assert abs(float(found.iwae.mean()) - float(toy.log_p(x))) < 5.5 * error + bias


def test_averaging_weights_frame_by_frame_is_not_a_bound() -> None:
    """The fallacy, planted: it exceeds log p(x) where frames disagree, and by more than any error."""
    toy = Coupled()
    x = torch.tensor(PAIRS[2], dtype=torch.float64)
    batch = x.reshape(1, 2, 1, 1, 1)
    k = 200_000
    with torch.no_grad():
        u, z = torch.randn(2, k, 2, 1, 1, dtype=torch.float64)
        # Prior as proposal: a frame's weight is its pixels' density.
        per_frame = toy.model.decode(toy.model.compose({"z": z, "u": u})).log_prob(batch[0]).double()
        fallacy = (per_frame.logsumexp(0) - math.log(k)).sum()
        honest = log_likelihood(toy.model, toy.guide, batch, k)
    exact = float(toy.log_p(x))
    assert float(fallacy) > exact + 0.8
    # It is, in fact, the sum of the frames' own marginals.
    assert float(fallacy) == pytest.approx(float(toy.log_p(x, [0])) + float(toy.log_p(x, [1])), abs=0.1)
    # The honest weights' standard error is 0.04 here: five of them, a false alarm below one in a million.
    assert float(honest.iwae) < exact + 5 * 0.045


def test_two_of_our_models_agree_on_coupled_frames() -> None:
    for pair in PAIRS:
        x = torch.tensor(pair, dtype=torch.float64)
        assert float(Coupled().log_p(x)) == pytest.approx(float(Coupled(orbits=True).log_p(x)))


# --- frames that were not observed ----------------------------------------------------------------------------------


def test_unobserved_frames_are_neither_seen_nor_scored() -> None:
    """With exact posteriors every weight is log p of the observed frames, whatever the others hold."""
    toy = Toy(0.0)
    x = toy.sequences(5)
    mask = torch.rand(5, S) > 0.4
    per_frame = toy.marginal.log_prob(x.flatten(-3))
    changed = torch.where(mask[..., None, None, None], x, torch.rand_like(x))
    for batch_size in (2, 5):
        for sequences in (x, changed):
            found = log_likelihood(toy.model, toy.guide, sequences, 3, observed=mask, batch_size=batch_size)
            torch.testing.assert_close(found.iwae, (per_frame * mask).sum(1))
    shared = torch.tensor([True, False, True])
    found = log_likelihood(toy.model, toy.guide, x, 3, observed=shared, batch_size=2)
    torch.testing.assert_close(found.iwae, per_frame[:, shared].sum(1))


def test_coupled_frames_predict_each_other() -> None:
    """log p(unseen | seen) is a difference of two estimates, here of two known integrals."""
    toy = Coupled()
    x = torch.tensor(PAIRS[0], dtype=torch.float64)
    mask = torch.tensor([True, False])

    def guide(x: Tensor, observed: Tensor | None = None) -> None:
        toy.guide(x)

    copies = x.reshape(1, 2, 1, 1, 1).expand(20, -1, -1, -1, -1)
    found = log_likelihood(toy.model, guide, copies, 20_000, observed=mask)
    error = float(found.iwae.std()) / 20**0.5  # t with 19 degrees of freedom: beyond 5.5 once in 35,000 seeds
    bias = float(found.standard_error.square().mean()) / 2
    assert error < 0.03
    assert abs(float(found.iwae.mean()) - float(toy.log_p(x, [0]))) < 5.5 * error + bias
    # The frames know of each other: the conditional is not the marginal, so scoring both would show.
    assert abs(float(toy.log_p(x)) - float(toy.log_p(x, [0])) - float(toy.log_p(x, [1]))) > 0.3


# --- weights by hand -------------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[], TVAE]] = {
    "roll": lambda: TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, 1), mu=2.0),
    "orbits": lambda: TVAE(FRAME, 4, 2, 4, CapsuleRoll(4, 0), prior=OrbitEnergy(), mu=2.0),
    "plain": lambda: TVAE(FRAME, 4, 2, 4, NoTopography()),
}
ALL = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


class Recorder:
    """A foreign guide that remembers what it drew."""

    def __init__(self, guide: Guide) -> None:
        self.inner = guide
        self.drawn: list[Any] = []

    def __call__(self, x: Tensor) -> None:
        self.drawn.append(self.inner(x))


def normal(value: Tensor, mean: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> Tensor:
    scale = torch.as_tensor(scale)
    return -0.5 * ((value - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


@torch.no_grad()
@ALL
def test_weights_equal_those_made_by_hand(build: Callable[[], TVAE]) -> None:
    """Particle by particle and sequence by sequence, from the equations."""
    model = build().double()
    guide = default_guide(model, initial_log_variance=-1.0).double()
    x = torch.rand(3, 4, *FRAME, dtype=torch.float64)
    recorder = Recorder(guide)
    log_w = log_weights(model, recorder, x, 5)
    assert log_w.shape == (5, 3)
    (drawn,) = recorder.drawn
    q = guide.posterior(x)
    for k in range(5):
        for n in range(3):
            z = drawn["z"][k, n]
            expected = normal(z).sum() - normal(z, q["z"].mean[n], q["z"].stddev[n]).sum()
            t = z
            if "u" in drawn:
                u = drawn["u"][k, n]
                expected += normal(u).sum() - normal(u, q["u"].mean[n], q["u"].stddev[n]).sum()
                w = model.topography.neighborhood(4, 4).double()
                v = torch.stack([(w @ u[:, c].square().flatten()).reshape(4, 4) for c in range(2)], 1)
                t = (z + 2.0) / (v + 1e-6).sqrt()
            if "e" in drawn:
                e = drawn["e"][k, n]
                # χ² with four degrees of freedom has density e exp(−e/2) / 4; the log-normal one is normal in log e.
                expected += (e.log() - e / 2 - math.log(4)).sum()
                expected -= (normal(e.log(), q["e"].loc[n], q["e"].scale[n]) - e.log()).sum()
                v = torch.stack([e[c][model.prior.index] for c in range(2)], 1)
                t = (z + 2.0) / (v + 1e-6).sqrt()
            p = torch.stack([model.decoder(t[frame].flatten()) for frame in range(4)]).sigmoid()
            expected += (x[n] * p.log() + (1 - x[n]) * (1 - p).log()).sum()
            assert float(log_w[k, n]) == pytest.approx(float(expected), rel=1e-6)


@ALL
def test_pyros_renyi_bound_is_the_same_number_for_one_sequence(build: Callable[[], TVAE]) -> None:
    """For one sequence, Pyro's sum over the batch does no harm, and it serves as an oracle, draw by draw."""
    model = build()
    guide = default_guide(model, initial_log_variance=0.0)
    x = torch.rand(1, 4, *FRAME)
    for seed in range(3):
        ours = log_likelihood(model, guide, x, 50, seed=seed).iwae
        pyro.set_rng_seed(seed)
        with torch.no_grad():
            bound = RenyiELBO(alpha=0, num_particles=50, vectorize_particles=True, max_plate_nesting=1)
            pyros = -bound.loss(model, guide, x)
        assert float(ours) == pytest.approx(pyros, rel=1e-5)


def test_the_summary_is_what_its_docstring_says() -> None:
    log_w = torch.randn(7, 3, dtype=torch.float64) * 2 - 700
    found = summarize(log_w, n_frames=4)
    w = (log_w + 700).exp()
    torch.testing.assert_close(found.iwae, w.mean(0).log() - 700)
    torch.testing.assert_close(found.ess, w.sum(0) ** 2 / (w**2).sum(0))
    torch.testing.assert_close(found.elbo, log_w.mean(0))
    # Delta method: the standard error of the mean weight over the mean weight.
    torch.testing.assert_close(found.standard_error, w.std(0) / 7**0.5 / w.mean(0))
    assert found.per_frame == pytest.approx(float(found.iwae.mean()) / 4)
    assert found.per_frame_error == pytest.approx(float(found.iwae.std()) / 3**0.5 / 4)
    equal = summarize(torch.full((7, 1), -3.0), 1)
    assert float(equal.iwae) == pytest.approx(-3.0)
    assert float(equal.standard_error) == pytest.approx(0, abs=1e-6)
    assert float(equal.ess) == pytest.approx(7)
    assert math.isnan(equal.per_frame_error)  # one sequence says nothing of the spread over sequences


def test_single_precision_weights_are_summed_in_double() -> None:
    log_w = -5000 + torch.randn(1000, 4)  # single precision has steps of 0.0005 here
    found = summarize(log_w, 1)
    assert found.iwae.dtype == torch.float64
    torch.testing.assert_close(found.iwae, log_w.double().logsumexp(0) - math.log(1000), rtol=0, atol=1e-9)


def test_standard_errors_cover_log_p() -> None:
    """95 % intervals of 400 repetitions hold log p as often as they say: exact binomial bounds at 1 in 10,000."""
    toy = Toy(0.3)
    x = toy.sequences(1)
    found = log_likelihood(toy.model, toy.guide, x.expand(400, -1, -1, -1, -1), 1000, batch_size=100)
    inside = ((found.iwae - toy.log_p(x)).abs() < 1.96 * found.standard_error).sum()
    low, high = stats.binom.interval(1 - 1e-4, 400, 0.95)
    assert low <= int(inside) <= high


# --- draws, chunks, seeds --------------------------------------------------------------------------------------------


def test_particles_and_sequences_are_drawn_apart() -> None:
    toy = Toy(0.5)
    x = toy.sequences(1).expand(4, -1, -1, -1, -1)
    log_w = log_weights(toy.model, toy.guide, x, 50, chunk_bytes=x.numel() * 8 * 7)
    assert len(log_w.flatten().unique()) == 200


@pytest.mark.parametrize("foreign", [False, True])
def test_chunks_change_neither_shape_nor_law(foreign: bool) -> None:
    toy = Toy(0.5)
    x = toy.sequences(2)
    guide = toy.guide if not foreign else lambda x: toy.guide(x)
    bytes_per_particle = x.numel() * 8
    whole = log_weights(toy.model, guide, x, 2000, seed=1, chunk_bytes=10**9)
    small = log_weights(toy.model, guide, x, 2000, seed=1, chunk_bytes=7 * bytes_per_particle)
    assert whole.shape == small.shape == (2000, 2)
    again = log_weights(toy.model, guide, x, 2000, seed=1, chunk_bytes=7 * bytes_per_particle)
    assert torch.equal(small, again)
    assert not torch.equal(small, whole)
    for n in range(2):  # two Kolmogorov-Smirnov tests, each with one false alarm in 10,000
        assert stats.ks_2samp(whole[:, n].numpy(), small[:, n].numpy()).pvalue > 1e-4


def test_chunks_bound_the_memory_and_keep_the_encoders_to_one_pass() -> None:
    toy = Toy(0.1)
    x = toy.sequences(2)
    encoded, decoded = [], []
    toy.guide.z_encoder.register_forward_hook(lambda *_: encoded.append(1))
    toy.model.decoder.register_forward_hook(lambda _, __, out: decoded.append(out.numel() * 8))
    log_weights(toy.model, toy.guide, x, 25, chunk_bytes=x.numel() * 8 * 10)
    assert len(encoded) == 1
    assert len(decoded) == 3
    assert max(decoded) <= x.numel() * 8 * 10
    log_weights(toy.model, toy.guide, x, 3, chunk_bytes=1)  # smaller than one particle: one at a time


def test_one_seed_is_one_result_and_leaves_the_global_generator_alone() -> None:
    toy = Toy(0.5)
    x = toy.sequences(3)
    before = torch.get_rng_state()
    one = log_likelihood(toy.model, toy.guide, x, 10, seed=4)
    weights = log_weights(toy.model, toy.guide, x, 10, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(one.iwae, log_likelihood(toy.model, toy.guide, x, 10, seed=4).iwae)
    assert torch.equal(weights, log_weights(toy.model, toy.guide, x, 10, seed=4))
    assert not torch.equal(one.iwae, log_likelihood(toy.model, toy.guide, x, 10, seed=5).iwae)
    # Without a seed the global generator is the source.
    torch.manual_seed(1)
    free = log_likelihood(toy.model, toy.guide, x, 10, seed=None).iwae
    assert not torch.equal(free, log_likelihood(toy.model, toy.guide, x, 10, seed=None).iwae)
    torch.manual_seed(1)
    assert torch.equal(free, log_likelihood(toy.model, toy.guide, x, 10, seed=None).iwae)


def test_no_gradient_and_no_trace_in_the_modules() -> None:
    toy = Toy(0.5)
    log_w = log_weights(toy.model, toy.guide, toy.sequences(2), 4)
    assert not log_w.requires_grad
    assert all(parameter.grad is None for parameter in toy.model.parameters())


def test_every_sequence_is_counted_once_in_batches_of_any_size() -> None:
    toy = Toy(0.0)  # exact weights, so that draws do not matter
    x = toy.sequences(7)
    for batch_size in (1, 3, 7, 100):
        found = log_likelihood(toy.model, toy.guide, x, 3, batch_size=batch_size)
        assert isinstance(found, LogLikelihood)
        torch.testing.assert_close(found.iwae, toy.log_p(x))
        assert (found.num_particles, found.n_frames) == (3, S)


# --- foreign guides --------------------------------------------------------------------------------------------------


def test_a_plain_function_is_a_guide() -> None:
    toy = Toy(0.1)
    x = toy.sequences(3)

    def guide(x: Tensor) -> None:
        q = toy.guide.posterior(x)["z"]
        with pyro.plate("sequence", len(x), dim=-1):
            pyro.sample("z", q.to_event(3))

    found = log_weights(toy.model, guide, x, 6, seed=2)
    assert torch.equal(found, log_weights(toy.model, toy.guide, x, 6, seed=2))


def framewise(place: str) -> Callable[[Tensor], None]:
    """Guides that put frames into a plate, where their weights would be averaged one by one."""
    dims = {"left of sequences": (-3, -1), "in the particles' place": (-2, -1), "right of sequences": (-1, -3)}

    def guide(x: Tensor) -> None:
        frame_dim, sequence_dim = dims[place]
        distribution = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).expand((1, 2)).to_event(2)
        with pyro.plate("frame", S, dim=frame_dim), pyro.plate("sequence", len(x), dim=sequence_dim):
            pyro.sample("z", distribution)

    return guide


PLACES = pytest.mark.parametrize("place", ["left of sequences", "in the particles' place", "right of sequences"])


@PLACES
@pytest.mark.parametrize("n_sequences", [1, S, 4])
@pytest.mark.parametrize("num_particles", [1, S, 5])
def test_frames_in_a_plate_are_always_refused(place: str, n_sequences: int, num_particles: int) -> None:
    """Also where frames, sequences and particles are equally many, so that shapes alone say nothing."""
    toy = Toy(0.1)
    with pytest.raises(ValueError, match=r"to_event|plate"):
        log_weights(toy.model, framewise(place), toy.sequences(n_sequences), num_particles)


@PLACES
def test_frames_in_a_plate_are_refused_in_one_sentence(place: str) -> None:
    toy = Toy(0.1)
    with pytest.raises(ValueError, match="to_event") as caught:
        log_weights(toy.model, framewise(place), toy.sequences(4), 5)
    assert "\n" not in str(caught.value)


def test_a_guide_with_a_site_too_many_is_refused() -> None:
    model = MODELS["plain"]()
    with pytest.raises(ValueError, match="'u'"):
        log_weights(model, MeanFieldGuide(MODELS["roll"]()), torch.rand(2, 4, *FRAME), 3)


def test_a_guide_that_lacks_a_site_is_refused() -> None:
    toy = Coupled()

    def guide(x: Tensor) -> None:
        with pyro.plate("sequence", x.shape[-5], dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).expand((2, 1, 1)).to_event(3))

    with pytest.raises(ValueError, match="'u'"):
        log_weights(toy.model, guide, torch.ones(1, 2, 1, 1, 1, dtype=torch.float64), 3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda toy, x: log_weights(toy.model, toy.guide, x, 0), "whole number of at least 1"),
        (lambda toy, x: log_likelihood(toy.model, toy.guide, x, 0), "num_particles is 0; expected a whole number"),
        (lambda toy, x: log_weights(toy.model, toy.guide, x[0], 3), "add the missing dimension"),
        (lambda toy, x: log_likelihood(toy.model, toy.guide, x[:, :2], 3), "this model expects"),
    ],
)
def test_wrong_arguments_get_one_sentence(call: Callable[[Toy, Tensor], object], sentence: str) -> None:
    toy = Toy(0.1)
    with pytest.raises(ValueError, match=sentence) as caught:
        call(toy, toy.sequences(2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("n", "batch_size"), [(0, 16), (2, 0)])
def test_nothing_to_estimate_gets_one_sentence(n: int, batch_size: int) -> None:
    toy = Toy(0.1)
    with pytest.raises(ValueError, match=r"at least (1|one)"):
        log_likelihood(toy.model, toy.guide, toy.sequences(2)[:n], 3, batch_size=batch_size)


def test_what_is_checked_once_is_left_as_it_was() -> None:
    """Later chunks are not validated again; validation is on before, between and after them."""
    model = TVAE((1, 2, 3), 3, 1, 3, CapsuleRoll(3, 1))
    guide = MeanFieldGuide(model)
    x = torch.rand(2, 3, 1, 2, 3)
    chunks = _chunks(model, guide, x, 6, chunk_bytes=2 * x.numel() * x.element_size())
    with torch.no_grad():
        for log_w in chunks:  # three of them
            assert log_w.shape == (2, 2)
            assert torch.distributions.Distribution._validate_args
            assert dist.is_validation_enabled()
