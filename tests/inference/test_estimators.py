"""Importance weights summed as they come: coverage of the errors, Pareto k, published estimators, the conditional."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
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
    default_guide,
)
from pyro_tvae.inference import LogLikelihood, forward_roll, likelihood, log_likelihood, log_weights
from pyro_tvae.inference.likelihood import Summary, summarize

FRAME, S, SIGMA = (1, 2, 3), 3, 0.5


class Linear(Network):
    """A decoder of one affine layer: with Normal pixels and no topography, x is Gaussian."""

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(-3), nn.Linear(math.prod(frame_shape), n_outputs))

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        return nn.Sequential(nn.Linear(n_latents, math.prod(frame_shape)), nn.Unflatten(-1, tuple(frame_shape)))


class Mixing(TVAE):
    """Frames share latents: ``t[l] = sum over m of mixing[l, m] z[m]``."""

    mixing: Tensor

    def compose(self, values: Mapping[str, Tensor], u: Tensor | None = None) -> Tensor:
        return torch.einsum("lm, ...mcd -> ...lcd", self.mixing, values["z"])


class Marginals(Guide):
    """The exact posterior mean and variance of every latent, as if independent; ``wide`` times the deviations."""

    def __init__(self, model: Mixing, gain: Tensor, wide: float) -> None:
        super().__init__(model)
        covariance = torch.linalg.inv(torch.eye(gain.shape[1]).to(gain) + gain.T @ gain / SIGMA**2)
        self.to_mean, self.bias = covariance @ gain.T / SIGMA**2, model.decoder[0].bias.detach().repeat(S)
        self.scale = wide * covariance.diag().sqrt()

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> dict[str, TorchDistribution]:
        mean = (x.flatten(1) - self.bias) @ self.to_mean.T
        shape = (self.n_frames, self.n_capsules, self.capsule_dim)
        # Exact where frames are independent: one that was not seen keeps its prior.
        seen = torch.ones(S, 1, 1, dtype=torch.bool) if observed is None else observed[..., None, None]
        return {"z": dist.Normal(mean.unflatten(-1, shape) * seen, torch.where(seen, self.scale.reshape(shape), 1.0))}


class Toy:
    """``x = G z + b + noise`` in float64 with known log p(x); ``coupling`` of 0 makes frames independent."""

    def __init__(self, coupling: float = 0.0, wide: float = 1.0, mixing: Tensor | None = None) -> None:
        self.model = Mixing(FRAME, S, 1, 2, NoTopography(), likelihood=Normal(SIGMA), network=Linear()).double()
        frames = torch.eye(S).double()
        self.model.mixing = frames + coupling * (1 - frames) if mixing is None else mixing.double()
        a = torch.linalg.qr(torch.randn(6, 2).double()).Q * torch.tensor([1.3, 0.7]).double()
        a = a.contiguous()
        b = torch.linspace(-0.4, 0.5, 6).double()
        with torch.no_grad():
            self.model.decoder[0].weight.copy_(a)
            self.model.decoder[0].bias.copy_(b)
        gain = torch.kron(self.model.mixing, a)
        self.distribution = dist.MultivariateNormal(b.repeat(S), gain @ gain.T + SIGMA**2 * torch.eye(6 * S).double())
        self.guide = Marginals(self.model, gain, wide)

    def sequences(self, n: int) -> Tensor:
        return self.model(n_sequences=n).detach()

    def log_p(self, x: Tensor) -> Tensor:
        return self.distribution.log_prob(x.flatten(1))


# --- the bound and its error -----------------------------------------------------------------------------------------


def test_intervals_cover_log_p_as_often_as_they_say() -> None:
    """A thousand repetitions as sequences: 93 to 97 % by chance for 99.6 % of seeds."""
    toy = Toy(wide=1.2)
    x = toy.sequences(1000)
    found = log_likelihood(toy.model, toy.guide, x, 1000, batch_size=250)
    assert (found.pareto_k < 0.5).float().mean() > 0.95
    inside = (found.iwae - toy.log_p(x)).abs() < 1.96 * found.standard_error
    assert 0.93 <= float(inside.double().mean()) <= 0.97


@pytest.mark.parametrize("coupling", [0.0, 0.1])
def test_ten_thousand_particles_find_log_p(coupling: float) -> None:
    """Within 0.02 nats, four standard errors of one estimate: four of them, a false alarm in 4,000 seeds."""
    toy = Toy(coupling, wide=1.1)
    x = toy.sequences(4)
    found = log_likelihood(toy.model, toy.guide, x, 10_000)
    assert found.standard_error.max() < 0.005
    assert (found.iwae - toy.log_p(x)).abs().max() < 0.02


# --- sums in chunks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1000,), (1,) * 30 + (970,), (400, 599, 1)])
def test_the_summary_does_not_depend_on_its_chunks(sizes: tuple[int, ...]) -> None:
    log_w = 3 * torch.randn(1000, 4).double() - 5000
    log_w[:20, 0] = -math.inf  # particles that cannot be
    summary = Summary(1000)
    for chunk in log_w.split(sizes):
        summary.add(chunk)
        assert len(summary.largest) <= 96  # ceil(3 sqrt(1000)) and their threshold
    found, whole = summary.estimates(S), summarize(log_w, S)
    w = (log_w + 5000).exp()
    torch.testing.assert_close(found.iwae, w.mean(0).log() - 5000)
    torch.testing.assert_close(found.ess, w.sum(0).square() / w.square().sum(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.standard_error, w.std(0) / 1000**0.5 / w.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.elbo, log_w.mean(0))
    for name in ("iwae", "ess", "standard_error", "elbo", "pareto_k"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=0)


def test_estimates_are_those_of_the_weights_with_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(0.3)
    x = toy.sequences(3)
    chunk_bytes = 7 * x.numel() * 8  # seven particles
    whole = summarize(log_weights(toy.model, toy.guide, x, 100, seed=3, chunk_bytes=chunk_bytes), S)
    chunks, sizes = likelihood._chunks, []

    def small(*args: Any, **options: Any) -> Iterator[Tensor]:
        for chunk in chunks(*args, chunk_bytes=chunk_bytes, **options):
            sizes.append(len(chunk))
            yield chunk

    monkeypatch.setattr(likelihood, "_chunks", small)
    found = log_likelihood(toy.model, toy.guide, x, 100, seed=3)
    assert sizes == [7] * 14 + [2]
    for name in ("iwae", "ess", "standard_error", "elbo", "pareto_k"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=0)


# --- Pareto k --------------------------------------------------------------------------------------------------------


def test_a_collapsed_model_whose_guide_is_the_prior_is_judged() -> None:
    toy = Toy()
    with torch.no_grad():
        toy.model.decoder[0].weight.zero_()
    toy.guide = Marginals(toy.model, torch.zeros(6 * S, 2 * S).double(), 1.0)
    found = log_likelihood(toy.model, toy.guide, toy.sequences(2), 100)
    # The weights are all equal, but for the last digit of a few: ArviZ 1.x answers that with an exception.
    assert (found.pareto_k == 0).all()
    assert (found.standard_error < 1e-6).all()
    torch.testing.assert_close(found.ess, torch.full((2,), 100.0).double())


def test_weights_that_rounding_alone_tells_apart_are_equal() -> None:
    terms = torch.randn(1000, generator=torch.Generator().manual_seed(0)) - 1.0
    sums = torch.stack([terms[torch.randperm(1000)].sum() for _ in range(100)])
    assert len(sums.unique()) > 3
    assert float(summarize(sums[:, None], 1).pareto_k) == 0
    # In double precision the same differences would be real ones.
    assert float(summarize(sums.double()[:, None], 1).pareto_k) != 0


def test_one_weight_has_no_tail() -> None:
    toy = Toy()
    one = log_likelihood(toy.model, toy.guide, toy.sequences(2), 1)
    assert one.pareto_k.isnan().all()
    assert one.pareto_k.shape == (2,)


# --- the published estimators ----------------------------------------------------------------------------------------


def by_frame(toy: Toy, x: Tensor, k: int, estimator: str = "frame", observed: Tensor | None = None) -> LogLikelihood:
    with pytest.warns(UserWarning, match="NOT a"):
        return log_likelihood(toy.model, toy.guide, x, k, estimator=estimator, observed=observed)


def test_weights_averaged_per_frame_break_the_bound() -> None:
    """The fallacy, planted: frames share latents, log p(x) is known, and 'frame' exceeds it by nats, on average."""
    toy = Toy(mixing=torch.eye(S).roll(1, 0))  # every frame shows the latents of another one
    x = toy.sequences(200)
    exact = toy.log_p(x).mean()
    honest = log_likelihood(toy.model, toy.guide, x, 2000).iwae.mean()
    fallacy = by_frame(toy, x, 2000).iwae.mean()
    assert abs(float(honest - exact)) < 0.05
    assert float(fallacy - exact) > 2.0


def test_weights_per_frame_are_right_where_frames_are_independent() -> None:
    toy = Toy(0.0)  # exact posteriors: every weight is its frame's log p
    x = toy.sequences(5)
    found = by_frame(toy, x, 50)
    torch.testing.assert_close(found.iwae, toy.log_p(x))
    torch.testing.assert_close(found.elbo, toy.log_p(x))
    torch.testing.assert_close(found.ess, torch.full_like(found.ess, 50))
    assert found.estimator == "frame"
    assert found.pareto_k.shape == found.standard_error.shape == (5,)
    unnormalised = by_frame(toy, x, 50, "frame_unnormalised")
    torch.testing.assert_close(unnormalised.iwae, toy.log_p(x) + S * math.log(50))
    seen = torch.tensor([True, False, True])
    for estimator, extra in (("frame", 0.0), ("frame_unnormalised", 2 * math.log(50))):
        part = by_frame(toy, x, 50, estimator, seen)
        frames = dist.MultivariateNormal(
            toy.distribution.mean[:6], toy.distribution.covariance_matrix[:6, :6]
        ).log_prob(x.flatten(2))
        torch.testing.assert_close(part.iwae, frames[:, seen].sum(1) + extra)


def test_weights_per_frame_sum_to_those_of_the_sequence() -> None:
    """With one particle, averaging does nothing: also with a topography, draw by draw."""
    model = TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, 1), likelihood=Normal(0.3), mu=2.0).double()
    guide = MeanFieldGuide(model).double()
    x = torch.rand(3, 4, *FRAME).double()
    sequence = log_likelihood(model, guide, x, 1, seed=5).iwae
    with pytest.warns(UserWarning, match="NOT a"):
        torch.testing.assert_close(log_likelihood(model, guide, x, 1, seed=5, estimator="frame").iwae, sequence)


def test_each_published_estimator_says_what_it_is_not() -> None:
    toy = Toy()
    x = toy.sequences(2)
    for estimator, words in (("frame", "NOT a lower bound"), ("frame_unnormalised", "NOT a likelihood")):
        with pytest.warns(UserWarning, match=words):
            log_likelihood(toy.model, toy.guide, x, 2, estimator=estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_likelihood(toy.model, toy.guide, x, 2)


@pytest.mark.filterwarnings("ignore:estimator")
def test_what_has_no_weights_per_frame_is_refused() -> None:
    orbits = TVAE(FRAME, 4, 1, 4, CapsuleRoll(4, 0), prior=OrbitEnergy())
    x = torch.rand(2, 4, *FRAME)
    for guide in (default_guide(orbits), lambda x: None):
        with pytest.raises(ValueError, match="orbit energies") as caught:
            log_likelihood(orbits, guide, x, 2, estimator="frame")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="expected one of sequence, frame, frame_unnormalised"):
        log_likelihood(orbits, default_guide(orbits), x, 2, estimator="frames")


# --- unseen frames given seen ones -----------------------------------------------------------------------------------


def test_the_conditional_of_independent_frames_is_their_own_density() -> None:
    toy = Toy(0.0)
    x = toy.sequences(6)
    frames = dist.MultivariateNormal(toy.distribution.mean[:6], toy.distribution.covariance_matrix[:6, :6]).log_prob(
        x.flatten(2)
    )
    expected = frames[:, 1:].mean(1)  # per unseen frame
    found = forward_roll(toy.model, toy.guide, x, context=1, num_particles=3).conditional
    assert found is not None
    assert found.mean == pytest.approx(float(expected.mean()))
    assert found.standard_error == pytest.approx(float(expected.std()) / 6**0.5)
    assert forward_roll(toy.model, toy.guide, x, context=1).conditional is None
