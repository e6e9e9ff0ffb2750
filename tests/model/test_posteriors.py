"""One rule for the shapes of posteriors: what is not particles or sequences is an event, however a guide splits it."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    Guide,
    MeanFieldGuide,
    NoTopography,
    OrbitCovarianceGuide,
    OrbitEnergy,
    Posterior,
    encode,
    sample,
)
from pyro_tvae.inference import ELBO, Annealing, MeanFieldELBO, annealed_importance, log_likelihood
from pyro_tvae.inference.annealing import simulate
from pyro_tvae.posteriors import MonteCarlo, all_events, draw, moments, standalone

FRAME, S, C, D, B, K = (1, 2, 3), 4, 2, 5, 3, 6


@pytest.mark.parametrize("plates", [(B,), (K, B), (K, 1, B)])
@pytest.mark.parametrize("n", range(4))
def test_every_split_is_the_same(plates: tuple[int, ...], n: int) -> None:
    q = dist.Normal(torch.randn(*plates, S, C, D), 1.0).to_event(n)
    for one in (all_events(q, plates), all_events(all_events(q, plates), plates)):
        assert (one.batch_shape, one.event_shape) == (plates, (S, C, D))
    # What looks at no draw has no particles.
    same = all_events(dist.Normal(torch.randn(B, S, C, D), 1.0).to_event(n), plates)
    assert (same.batch_shape, same.event_shape) == ((B,), (S, C, D))


class Split(Guide):
    """The mean-field guide's distributions, with so many dimensions as events; u also as a function of draws."""

    def __init__(self, model: TVAE, n: int, given: str = "") -> None:
        super().__init__(model)
        self.inner, self.n, self.given = MeanFieldGuide(model, initial_log_variance=-1.0), n, given
        self.mean_field = not given

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        q: dict[str, Any] = {site: one.to_event(self.n) for site, one in self.inner.posterior(x, observed).items()}
        base = self.inner.posterior(x, observed)["u"]
        u = q["u"]
        of_no_draw = {"z": q["z"], "u": lambda draws: u}
        of_z = {"z": q["z"], "u": lambda draws: dist.Normal(base.loc + 0 * draws["z"], base.scale).to_event(self.n)}
        return {"": q, "no draw": of_no_draw, "z": of_z}[self.given]


def pair(n: int, given: str = "") -> tuple[TVAE, Split, Tensor]:
    torch.manual_seed(0)
    model = TVAE(FRAME, S, C, D, CapsuleRoll(3), mu=2.0).double()
    return model, Split(model, n, given).double(), torch.rand(B, S, *FRAME, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:estimator='frame'")
def test_every_judge_says_the_same_of_every_split(n: int) -> None:
    (model, plain, x), (_, split, _) = pair(0), pair(n)

    def judged(guide: Guide) -> list[Tensor]:
        torch.manual_seed(1)
        annealed = annealed_importance(model, guide, x, annealing=Annealing(2, 3, 2))
        return [
            ELBO(model, guide, num_particles=3)(x).elbo,
            MeanFieldELBO(model, guide)(x).elbo,
            log_likelihood(model, guide, x, 5).iwae,
            log_likelihood(model, guide, x, 5, estimator="frame").iwae,
            annealed.log_p,
            encode(model, guide, x),
        ]

    for one, other in zip(judged(plain), judged(split), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", ["no draw", "z"])
@pytest.mark.parametrize("n", range(4))
def test_a_function_of_draws_obeys_the_same_rule(given: str, n: int) -> None:
    (_, plain, x), (_, split, _) = pair(0), pair(n, given)
    for size in (0, K):
        traces = []
        for guide in (plain, split):
            torch.manual_seed(1)
            with pyro.plate("particles", size, dim=-2) if size else poutine.block(hide=[]):
                traces.append(poutine.trace(guide).get_trace(x))
        for site in ("z", "u"):
            one, other = (trace.nodes[site]["fn"].log_prob(trace.nodes[site]["value"]) for trace in traces)  # type: ignore[attr-defined]
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
            assert one.shape == ((size, B) if size else (B,))


def test_what_has_no_mean_is_drawn() -> None:
    model = TVAE(FRAME, S, C, S, CapsuleRoll(S, 0), prior=OrbitEnergy())
    posterior = OrbitCovarianceGuide(model, initial_log_variance=-1.0).posterior(torch.rand(B, S, *FRAME))
    assert standalone(posterior) is not None
    estimates = moments(posterior)
    assert all(isinstance(one, MonteCarlo) for one in estimates.values())
    with pyro.plate("particles", 4000, dim=-2):
        draws = draw(posterior)["e"]
    error = draws.std(0) * (1 / 64 + 1 / 4000) ** 0.5
    # 24 means at six standard errors of heavy-tailed draws.
    assert ((estimates["e"].mean - draws.mean(0)).abs() < 6 * error).all()


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topography", [CapsuleRoll(3), NoTopography()], ids=["roll", "none"])
def test_samples_are_the_programs_own(topography: Any) -> None:
    model = TVAE(FRAME, S, C, D, topography, mu=2.0)
    torch.manual_seed(1)
    draws = {site: q.sample(torch.Size([B])) for site, q in model.prior_distributions().items()}
    frames = model.decode(model.compose(draws))
    pixels = frames.sample()
    torch.manual_seed(1)
    assert torch.equal(sample(model, B, mean=False), pixels)
    torch.manual_seed(1)
    assert torch.equal(sample(model, B, mean=True), frames.mean)
    torch.manual_seed(1)
    assert torch.equal(model(n_sequences=B), pixels)
    torch.manual_seed(1)
    predictive = pyro.infer.Predictive(model, num_samples=1, return_sites=("x",))
    assert predictive(n_sequences=B)["x"].shape == (1, B, S, *FRAME)
    torch.manual_seed(3 + 1_000_003)
    latents = {site: q.sample(torch.Size([B])) for site, q in model.prior_distributions().items()}
    simulated = simulate(model, B, seed=3)
    assert [*simulated.latents] == [*latents]
    assert all(torch.equal(simulated.latents[site], latents[site]) for site in latents)
    assert torch.equal(simulated.x, model.decode(model.compose(latents)).sample())


def test_the_default_of_sample_is_said_to_change() -> None:
    model = TVAE(FRAME, S, C, D)
    torch.manual_seed(1)
    with pytest.warns(DeprecationWarning, match="mean=True or False") as caught:
        frames = sample(model, 2)
    assert caught[0].filename == __file__
    torch.manual_seed(1)
    assert torch.equal(frames, sample(model, 2, mean=True))
