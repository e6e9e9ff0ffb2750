"""What was not observed or not measured: judgments of the rest are exact, and what the others hold changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gaussian import FRAME, Toy
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide, OrbitEnergy, OrbitGuide
from pyro_tvae.inference import (
    ELBO,
    Annealing,
    annealed_importance,
    bound_gap,
    bracket,
    compare,
    fit,
    forward_roll,
    log_likelihood,
    log_weights,
    nuts,
    predictive_check,
    simulate,
    to_arviz,
)
from pyro_tvae.inference.arviz_adapter import groups_of
from pyro_tvae.likelihoods import seen_pixels

OBSERVED = torch.tensor([[True, False], [True, True], [False, True]])
MEASURED = torch.tensor(
    [
        [[[[1, 1], [0, 1]]], [[[1, 1], [1, 1]]]],
        [[[[1, 0], [0, 1]]], [[[1, 1], [1, 0]]]],
        [[[[1, 1], [1, 1]]], [[[0, 1], [1, 1]]]],
    ]
).bool()
MASKS = {"frames": (OBSERVED, None), "pixels": (None, MEASURED), "both": (OBSERVED, MEASURED)}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def given(observed: Tensor | None, measured: Tensor | None) -> dict[str, Any]:
    return {"observed": observed, "covariates": None if measured is None else {"measured": measured}}


def evidence(toy: Toy, x: Tensor, observed: Tensor | None, measured: Tensor | None) -> Tensor:
    """log p of what was seen: of each frame the marginal of a Gaussian."""
    seen: Any = seen_pixels(observed, measured)
    covariance = toy.a @ toy.a.T + toy.sigma**2 * torch.eye(4).double()
    frames, masks = x.flatten(-3).flatten(0, 1), seen.expand_as(x).flatten(-3).flatten(0, 1)
    total = torch.zeros(len(frames), dtype=torch.float64)
    for mask in masks.unique(dim=0):
        alike = (masks == mask).all(1)
        if mask.any():
            zeros = torch.zeros(int(mask.sum()), dtype=torch.float64)
            marginal = torch.distributions.MultivariateNormal(zeros, covariance[mask][:, mask])
            total[alike] = marginal.log_prob(frames[alike][:, mask])
    return total.reshape(x.shape[:2]).sum(1)


def junk(x: Tensor, observed: Tensor | None, measured: Tensor | None) -> Tensor:
    seen: Any = seen_pixels(observed, measured)
    return torch.where(seen, x, 7.0 + torch.rand_like(x))


@pytest.mark.parametrize("kind", MASKS)
@torch.no_grad()
def test_weights_estimate_the_evidence_of_what_was_seen(kind: str) -> None:
    """20,000 weights; five standard errors, false alarm 6e-7 for each of 3 sequences and 2 estimators."""
    toy, masks = Toy(0.5), MASKS[kind]
    x = toy.model(n_sequences=3)
    exact = evidence(toy, x, *masks)
    for m in (1, 2):
        log_w = log_weights(toy.model, toy.guide, x, 20_000, frame_particles=m, seed=0, **given(*masks))
        ratio = (log_w - exact).exp()
        assert (ratio.mean(0) - 1).abs().div(ratio.std(0) / math.sqrt(20_000)).max() < 5
        again = log_weights(toy.model, toy.guide, junk(x, *masks), 20_000, frame_particles=m, seed=0, **given(*masks))
        assert torch.equal(again, log_w)


@torch.no_grad()
def test_a_bound_is_per_frame_that_was_observed_and_frame_by_frame_of_what_was_measured() -> None:
    toy = Toy(0.5)
    x = toy.model(n_sequences=3)
    found = log_likelihood(toy.model, toy.guide, x, 50, **given(OBSERVED, MEASURED))
    assert found.n_frames == pytest.approx(4 / 3)
    assert found.per_frame == pytest.approx(float(found.iwae.mean()) * 3 / 4)
    with pytest.warns(UserWarning, match="NOT a lower bound"):
        by_frame = log_likelihood(toy.model, toy.guide, x, 20_000, estimator="frame", **given(OBSERVED, MEASURED))
    # Frames of a plain VAE share nothing: the product of their averages is the evidence, too, within five errors.
    assert ((by_frame.iwae - evidence(toy, x, OBSERVED, MEASURED)).abs() < 5 * by_frame.standard_error).all()


@pytest.mark.parametrize("kind", MASKS)
def test_annealing_meets_the_evidence_of_what_was_seen(kind: str) -> None:
    """From below and from above on simulated sequences, within five standard errors over 64 chains, which are noisy."""
    toy, (observed, measured) = Toy(0.8), MASKS[kind]
    simulated = simulate(toy.model, 3, seed=3)
    options: dict[str, Any] = {
        "annealing": Annealing(num_chains=64, num_temperatures=20),
        "observed": observed,
        "measured": measured,
    }
    both = bracket(toy.model, toy.guide, simulated, **options)
    exact = evidence(toy, simulated.x, observed, measured)
    for end in (both.lower, both.upper):
        assert ((end.log_p - exact).abs() < 5 * end.standard_error + 0.05).all()
    one = annealed_importance(toy.model, toy.guide, simulated.x, **options)
    other = annealed_importance(toy.model, toy.guide, junk(simulated.x, observed, measured), **options)
    assert torch.equal(one.log_p, other.log_p)
    assert one.n_frames == pytest.approx(2 if observed is None else 4 / 3)


@pytest.mark.parametrize("frame_particles", [1, 2])
def test_gaps_on_simulated_sequences_see_as_much_of_them(frame_particles: int) -> None:
    """The weight w of exact latents has E[p(x) / w] = 1, with further draws of a frame beside them too.

    6,000 sequences, five standard errors: false alarm 6e-7.
    """
    toy = Toy(0.3)
    simulated = simulate(toy.model, 6000, seed=1)
    observed, measured = OBSERVED.repeat(2000, 1), MEASURED.repeat(2000, 1, 1, 1, 1)
    options: dict[str, Any] = {"frame_particles": frame_particles, "seed": 0}
    gap = bound_gap(toy.model, toy.guide, simulated, 1, observed=observed, measured=measured, **options)
    log_w = log_weights(toy.model, toy.guide, simulated.x, 1, **options, **given(observed, measured))[0]
    ratio = (evidence(toy, simulated.x, observed, measured) - gap - log_w).exp().detach()
    error = float(ratio.std()) / math.sqrt(6000)
    assert abs(float(ratio.mean()) - 1) < 5 * error < 0.1
    whole = bound_gap(toy.model, toy.guide, simulated, 1, frame_particles=frame_particles)
    assert not torch.allclose(gap, whole, atol=0.1)


def test_models_are_compared_on_what_was_seen() -> None:
    toys = {"near": Toy(0.2), "far": Toy(0.9)}
    fitted: Any = {name: (toy.model, toy.guide) for name, toy in toys.items()}
    x = toys["near"].model(n_sequences=3).detach()
    options: dict[str, Any] = {"num_particles": 500, "n_simulations": 4, **given(OBSERVED, MEASURED)}
    for annealing in (None, Annealing(num_chains=8, num_temperatures=5)):
        one = compare(fitted, x, annealing=annealing, **options)
        other = compare(fitted, junk(x, OBSERVED, MEASURED), annealing=annealing, **options)
        assert torch.equal(one.log_p, other.log_p)
        assert torch.equal(one.looseness, other.looseness)
        assert one.n_frames == pytest.approx(4 / 3)
    exact = [float(evidence(toy, x, OBSERVED, MEASURED).mean()) for toy in toys.values()]
    found = compare(fitted, x, **options, frame_averages=False)
    turns, toy = [0, 1, 2, 0], toys["near"]
    masks: dict[str, Any] = {"observed": OBSERVED[turns], "measured": MEASURED[turns]}
    gap = bound_gap(toy.model, toy.guide, simulate(toy.model, 4), 500, **masks)
    assert float(found.looseness[0]) == pytest.approx(float(gap.mean()))
    difference = found.difference("near", "far")
    assert difference.low < exact[0] - exact[1] < difference.high


def orbits(n_frames: int = 5) -> tuple[TVAE, OrbitGuide]:
    model = TVAE(FRAME, n_frames, 2, n_frames, CapsuleRoll(n_frames, 0), prior=OrbitEnergy(), mu=5.0)
    return model, OrbitGuide(model)


def test_a_forecast_is_that_of_a_loop_over_what_was_seen() -> None:
    model, guide = orbits()
    n, s, m = 7, 5, 3
    x, observed, measured = torch.rand(n, s, *FRAME), torch.rand(n, s) < 0.7, torch.rand(n, s, *FRAME) < 0.8
    observed[0] = torch.tensor([True, True, False, True, True])  # the last frame of the context is missing
    seen, mean_frame = observed[..., None, None, None] & measured, torch.rand(FRAME)
    found = forward_roll(
        model, guide, x, context=m, mean_frame=mean_frame, n_examples=n, batch_size=3, **given(observed, measured)
    )
    shown = torch.where(measured, x, 0)
    shown[:, m:] = 0
    for h in range(s - m):
        mixtures = [k / 10 for k in range(11)]
        nats: dict[Any, list[float]] = {name: [] for name in ("model", "hold", "mean frame", *mixtures)}
        for i in range(n):
            if not observed[i, m + h]:
                continue
            of_context = observed[i : i + 1].clone()
            of_context[:, m:] = False
            means = {site: q.mean for site, q in guide.posterior(shown[i : i + 1], of_context).items()}
            t = model.compose(means)[:, m - 1]
            last = mean_frame.clone()
            for l in range(m):  # noqa: E741
                last = torch.where(seen[i, l], x[i, l], last)
            frames: dict[Any, Tensor] = {
                "model": model.decode(model.rolled(t, h + 1)).mean[0],
                "hold": model.decode(t).mean[0],
                "mean frame": mean_frame,
                **{a: torch.lerp(last, mean_frame, a) for a in mixtures},
            }
            torch.testing.assert_close(found.frames["model"][i, h], frames["model"].detach())
            for name, frame in frames.items():
                pixels = model.likelihood.at_mean(frame.detach()).log_prob(x[i, m + h])
                nats[name].append(float(pixels[measured[i, m + h]].sum()))
        for name in ("model", "hold", "mean frame"):
            expected = sum(nats[name]) / len(nats[name])
            assert float(found.log_likelihood[name][h]) == pytest.approx(expected, rel=1e-4)
        repeat = max(sum(nats[a]) / len(nats[a]) for a in mixtures)
        assert float(found.log_likelihood["repeat last frame"][h]) == pytest.approx(repeat, rel=1e-4)
    again = forward_roll(
        model,
        guide,
        junk(x, observed, measured).clamp(max=1),
        context=m,
        mean_frame=mean_frame,
        **given(observed, measured),
    )
    for name, values in found.log_likelihood.items():
        assert torch.allclose(again.log_likelihood[name], values)
        assert torch.allclose(again.pixel_error[name], found.pixel_error[name])


def test_masks_of_everything_change_no_forecast_and_no_conditional() -> None:
    model, guide = orbits()
    x = torch.rand(6, 5, *FRAME)
    plain = forward_roll(model, guide, x, num_particles=5)
    masks = given(torch.ones(5, dtype=torch.bool), torch.ones(6, 5, 1, 2, 2, dtype=torch.bool))
    masked = forward_roll(model, guide, x, num_particles=5, **masks)
    for name, values in plain.log_likelihood.items():
        assert torch.allclose(values, masked.log_likelihood[name], rtol=1e-6)
        assert torch.allclose(plain.pixel_error[name], masked.pixel_error[name], rtol=1e-6)
    assert plain.conditional is not None
    assert masked.conditional == pytest.approx(plain.conditional, rel=1e-5)


def test_what_is_never_observed_is_left_out_of_a_forecast_or_refused() -> None:
    model, guide = orbits()
    x, observed = torch.rand(6, 5, *FRAME), torch.tensor([True, True, False, False, True])
    found = forward_roll(model, guide, x, context=2, **given(observed, None))
    assert found.log_likelihood["model"].isnan().tolist() == [True, True, False]
    assert math.isnan(found.means()["model"])
    assert not found.beats_floors()
    assert math.isfinite(float(found.gain("hold")[2]))
    for dead, what in (([0, 1], "the context of 2 frames"), ([2, 3, 4], "the frames after the context")):
        observed = torch.ones(5, dtype=torch.bool)
        observed[dead] = False
        with pytest.raises(ValueError, match=f"nothing of {what} was observed"):
            forward_roll(model, guide, x, context=2, **given(observed, None))


def test_a_posterior_is_given_what_was_seen_and_scores_that_alone() -> None:
    toy = Toy(0.4)
    x = toy.model(n_sequences=3).detach()
    seen: Any = seen_pixels(OBSERVED, MEASURED)
    for method in ("guide", "importance"):
        data = groups_of(to_arviz(toy.model, toy.guide, x, draws=20, method=method, **given(OBSERVED, MEASURED)))
        z = torch.from_numpy(data["posterior"]["z"].values[0])
        pixels = toy.model.likelihood(toy.model.decoder(z.flatten(-2)))
        by_hand = torch.where(seen, pixels.log_prob(x), 0).flatten(2).sum(-1)
        assert torch.allclose(torch.from_numpy(data["log_likelihood"]["x"].values[0]), by_hand)
        shown = torch.from_numpy(data["observed_data"]["x"].values)
        assert torch.equal(shown.isnan(), ~seen.expand_as(x))
        assert torch.equal(shown[seen.expand_as(x)], x[seen.expand_as(x)])
        again = groups_of(
            to_arviz(
                toy.model, toy.guide, junk(x, OBSERVED, MEASURED), draws=20, method=method, **given(OBSERVED, MEASURED)
            )
        )
        for group in ("posterior", "log_likelihood", "sample_stats", "sequence_stats", "observed_data"):
            assert again[group].equals(data[group])


def test_nuts_walks_the_density_of_what_was_seen() -> None:
    toy = Toy(0.0)
    x = toy.model(n_sequences=3).detach()
    options: dict[str, Any] = {"init": toy.guide, "num_samples": 4, "warmup_steps": 4, "num_chains": 1}
    result = nuts(toy.model, junk(x, OBSERVED, MEASURED), **options, **given(OBSERVED, MEASURED))
    z = result.draws["z"][0]
    pixels = torch.distributions.Normal(toy.model.decoder(z.flatten(-2)), toy.sigma).log_prob(x)
    seen: Any = seen_pixels(OBSERVED, MEASURED)
    by_hand = torch.where(seen, pixels, 0).flatten(1).sum(1)
    by_hand = by_hand + torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
    assert torch.allclose(result.lp[0], by_hand.detach(), rtol=1e-6)


def test_predictive_checks_leave_out_what_was_not_seen() -> None:
    """Of data that the model made, ranks of the rest are uniform: a chi-square in ten bins, false alarm 1 in 1,000."""
    from scipy.stats import chisquare

    model, _ = orbits()
    t = 2 * torch.randn(300, 5, 2, 5)
    x = model.decode(t).sample()
    observed, measured = torch.rand(300, 5) < 0.8, torch.rand(300, 5, *FRAME) < 0.8
    seen: Any = seen_pixels(observed, measured)
    some = seen.flatten(2).any(-1)
    check = predictive_check(model, t, torch.where(seen, x, math.nan), 99)
    assert torch.equal(check.scores["ink"].isnan(), ~some)
    assert torch.equal(check.scores["change"].isnan(), ~(some[:, 1:] & some[:, :-1]))
    assert check.ranks.ranks["ink"].numel() == int(some.sum())
    for name in ("ink", "log_likelihood", "change"):
        counts = torch.histc(check.ranks.ranks[name].float(), 10, 0, 99.5)
        assert chisquare(counts.numpy()).pvalue > 1e-3


@torch.no_grad()
def test_the_error_per_frame_is_of_a_ratio_and_unseen_sequences_count_for_nothing() -> None:
    """Against the spread over 400 samples of 20 sequences; off by more than 15 % in one seed of a thousand."""
    toy = Toy(0.5)
    torch.manual_seed(0)
    x, observed = toy.model(n_sequences=8000), torch.rand(8000, 2) < 0.6
    found = log_likelihood(toy.model, toy.guide, x, 2, observed=observed, batch_size=8000)
    assert found.lengths is not None
    assert torch.equal(found.lengths, observed.sum(1).double())
    sums, lengths = found.iwae.reshape(400, 20), found.lengths.reshape(400, 20)
    spread = float((sums.mean(1) / lengths.mean(1)).std())
    few = [
        replace(found, iwae=a, lengths=n, n_frames=float(n.mean())).per_frame_error
        for a, n in zip(sums, lengths, strict=True)
    ]
    assert sum(few) / len(few) == pytest.approx(spread, rel=0.15)
    assert float(sums.std(1).mean()) / math.sqrt(20) / found.n_frames > 1.5 * spread  # as if all were of one length
    some = observed.any(1)
    seen = log_likelihood(toy.model, toy.guide, x[some], 2, observed=observed[some], batch_size=8000)
    assert (found.iwae[~some] == 0).all()
    assert found.per_frame == pytest.approx(float(found.iwae[some].sum()) / float(found.lengths.sum()))
    assert found.per_frame_error == pytest.approx(seen.per_frame_error, rel=0.05)
    both = {"a": (toy.model, toy.guide), "b": (toy.model, toy.guide)}
    with pytest.raises(ValueError, match=r"nothing of \d+ of the 100 sequences was observed"):
        compare(both, x[:100], 2, observed=observed[:100], n_simulations=2)


class Listening(MeanFieldGuide):
    """Remembers what it was shown."""

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Any:
        self.__dict__.setdefault("shown", []).append(x.detach().clone())
        return super().posterior(x, observed)


def listening() -> tuple[TVAE, Listening, Tensor, Tensor]:
    torch.manual_seed(4)
    model = TVAE((1, 2, 2), 2, 1, 2, CapsuleRoll(2))
    x = torch.rand(3, 2, 1, 2, 2)
    return model, Listening(model), x, junk(x, None, MEASURED)


WAYS: dict[str, Callable[[TVAE, Listening, Tensor], object]] = {
    "ELBO": lambda m, g, x: ELBO(m, g)(x, measured=MEASURED).elbo.tolist(),
    "SVI": lambda m, g, x: SVI(m, g, Adam({"lr": 1e-3}), Trace_ELBO()).step(x, measured=MEASURED),
    "fit": lambda m, g, x: fit(m, g, batches(x), validation=batches(x), max_epochs=1, progress=False, seed=0).column(
        "val/elbo"
    ),
    "log_likelihood": lambda m, g, x: log_likelihood(m, g, x, 5, covariates={"measured": MEASURED}).iwae.tolist(),
}


def batches(x: Tensor) -> DataLoader:
    return DataLoader([{"x": one, "measured": mask} for one, mask in zip(x, MEASURED, strict=True)], batch_size=3)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_not_measured_is_shown_as_zeros_in_training_as_in_judging(way: str) -> None:
    """The very same numbers, whatever the other pixels hold; of the likelihood's kind or not numbers at all."""
    found = []
    for fill in (0.0, 5.0, math.nan):
        model, guide, x, _ = listening()
        torch.manual_seed(5)
        found.append(WAYS[way](model, guide, torch.where(MEASURED, x, fill)))
        assert guide.shown
        for shown in guide.shown:
            rows = [int((x - one).abs().where(MEASURED, 0).sum((-1, -2, -3, -4)).argmin()) for one in shown]
            assert torch.equal(shown, torch.where(MEASURED[rows], x[rows], 0))
    assert found[0] == found[1] == found[2]


def test_annealing_takes_masks_among_covariates_and_what_the_guide_takes_alone() -> None:
    toy = Toy(0.5)
    x = toy.model(n_sequences=3)
    short: dict[str, Any] = {"annealing": Annealing(num_chains=4, num_temperatures=4), "seed": 3}
    own = annealed_importance(toy.model, toy.guide, x, measured=MEASURED, **short)
    beside = annealed_importance(toy.model, toy.guide, x, covariates={"measured": MEASURED}, **short)
    assert torch.equal(own.log_p, beside.log_p)
    with pytest.raises(ValueError, match="covariate 'label' is taken neither"):
        annealed_importance(toy.model, toy.guide, x, covariates={"label": torch.arange(3)}, **short)
