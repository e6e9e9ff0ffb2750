"""NUTS against exact Gaussian posteriors, on small TVAEs, and as a judge of guides with planted faults."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from gaussian import FRAME, Toy
from pyro import poutine
from pyro.distributions import LogNormal, Normal
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from torch import Tensor

from pyro_tvae import TVAE, CapsuleRoll, GuideList, MeanFieldGuide, NoTopography, OrbitEnergy
from pyro_tvae.guides import default_guide
from pyro_tvae.inference import mcmc
from pyro_tvae.inference.arviz_adapter import diagnose
from pyro_tvae.inference.mcmc import NUTSResult, guide_quality, identified, nuts
from pyro_tvae.inference.posterior import from_netcdf, to_arviz, to_netcdf

MODELS: dict[str, Callable[[], TVAE]] = {
    "roll": lambda: TVAE(FRAME, 3, 1, 3, CapsuleRoll(3, 1), mu=1.0),
    "orbits": lambda: TVAE(FRAME, 3, 1, 3, CapsuleRoll(3, 0), prior=OrbitEnergy(), mu=1.0),
    "plain": lambda: TVAE(FRAME, 3, 1, 3, NoTopography()),
}


@pytest.fixture(scope="module")
def exact() -> tuple[Toy, Tensor, NUTSResult]:
    pyro.set_rng_seed(1)
    toy = Toy(0.0)
    x = toy.model(n_sequences=2).detach()
    # Started from a guide that is wrong, so that it cannot be the start that is right.
    wrong = MeanFieldGuide(toy.model).double()
    return toy, x, nuts(toy.model, x, init=wrong, num_samples=400, warmup_steps=150, num_chains=2)


def test_mean_and_variance_are_the_exact_ones(exact: tuple[Toy, Tensor, NUTSResult]) -> None:
    toy, x, result = exact
    assert result.draws["z"].shape == (2, 400, 2, 2, 1, 2)
    scaled = (result.draws["z"] - toy.mean(x)) / toy.sd
    # 16 numbers within 5 of their Monte-Carlo standard errors: one false alarm in 100,000 seeds, were ESS exact.
    assert (scaled.mean((0, 1)).abs() * result.ess["z"].sqrt()).max() < 5
    ess = diagnose("ess", scaled.square())
    assert ((scaled.square().mean((0, 1)) - 1).abs() * (ess / 2).sqrt()).max() < 5
    assert ess.min() > 100


def test_healthy_chains_say_so(exact: tuple[Toy, Tensor, NUTSResult]) -> None:
    _, _, result = exact
    assert result.rhat["z"].shape == result.ess["z"].shape == (2, 2, 1, 2)
    assert result.rhat["z"].max() < 1.05
    assert result.ess["z"].min() > 200
    assert result.diverging.shape == (2, 400)
    assert result.diverging.float().mean() < 0.01


@pytest.mark.parametrize("off", [0.0, 0.5, -0.5])
def test_a_planted_fault_of_the_guide_is_measured(exact: tuple[Toy, Tensor, NUTSResult], off: float) -> None:
    toy, x, result = exact
    layer = toy.guide.z_encoder.network[1]
    before = layer.bias.detach().clone()
    with torch.no_grad():
        layer.bias += torch.cat([off * toy.sd, torch.full_like(toy.sd, off)])
        quality = guide_quality(toy.model, toy.guide, x, result, num_particles=4000)
        layer.bias.copy_(before)
    # Errors of 400 or more effective draws: 0.05 for a mean, 0.07 for a variance; four of them.
    assert (quality.mean_difference["z"] - off).abs().max() < 0.2
    assert (quality.variance_ratio["z"].log() - off).abs().max() < 0.3
    assert quality.pareto_k.shape == (2,)
    if off >= 0:  # a guide that is too wide has bounded weights
        assert quality.pareto_k.max() < 0.7


@pytest.mark.parametrize("kind", MODELS)
def test_it_runs_on_a_small_tvae(kind: str) -> None:
    model = MODELS[kind]()
    guide = default_guide(model, initial_log_variance=-1.0)
    x = model.forward(n_sequences=2).detach()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = nuts(model, x, init=guide, num_samples=30, warmup_steps=100, num_chains=2, max_tree_depth=5)
    names = {"roll": {"z", "u_squared"}, "orbits": {"z", "e"}, "plain": {"z"}}[kind]
    assert set(result.rhat) == set(result.ess) == names
    for name, draws in identified(model, result.draws).items():
        assert draws.shape[:3] == (2, 30, 2)
        assert draws.isfinite().all()
        assert draws.std(1).min() > 0  # every latent moves
        assert not torch.equal(draws[0], draws[1])
        if name != "z":
            assert (draws > 0).all()
    # The model is fixed: no weight has moved, no gradient was left, the parameter store is untouched.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(pyro.get_param_store()) == 0
    quality = guide_quality(model, guide, x, result, num_particles=200)
    assert set(quality.mean_difference) == set(quality.variance_ratio) == names
    assert all(value.isfinite().all() for value in quality.mean_difference.values())


def test_the_sign_of_u_is_left_out() -> None:
    model = MODELS["roll"]()
    u = torch.randn(5, 3, 1, 3)
    known = identified(model, {"z": u, "u": u})
    assert torch.equal(known["u_squared"], identified(model, {"z": u, "u": -u})["u_squared"])
    assert torch.equal(known["z"], u)


def test_seeds_repeat_and_leave_the_global_state_alone() -> None:
    model = MODELS["plain"]()
    guide, x = default_guide(model), torch.rand(1, 3, *FRAME)
    state = torch.get_rng_state()
    first, again, other = (
        nuts(model, x, init=guide, num_samples=4, warmup_steps=4, num_chains=1, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.draws["z"], again.draws["z"])
    assert not torch.equal(first.draws["z"], other.draws["z"])
    assert torch.equal(state, torch.get_rng_state())


def test_arviz_data_of_nuts(tmp_path: Path) -> None:
    model = MODELS["roll"]()
    guide, x = default_guide(model), torch.rand(2, 3, *FRAME)
    data = to_arviz(model, guide, x, draws=10, method="nuts", num_chains=2, warmup_steps=10)
    data = from_netcdf(to_netcdf(data, tmp_path / "nuts.nc"))
    assert data["posterior"]["t"].shape == (2, 10, 2, 3, 1, 3)
    assert data["log_likelihood"]["x"].shape == (2, 10, 2)
    assert data["sample_stats"]["diverging"].dims == ("chain", "draw")
    assert data["sequence_stats"]["ess"].dims == data["sequence_stats"]["rhat"].dims == ("sequence",)


def test_a_guide_is_judged_in_chunks_that_make_up_all_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what decodes a thousand draws at once would end, for want of memory, what the chains took hours for."""
    model = MODELS["roll"]()
    guide, x = default_guide(model), torch.rand(2, 3, *FRAME)
    result = nuts(model, x, init=guide, num_samples=8, warmup_steps=8)
    whole, sizes = mcmc.weighted_particles, list[int]()

    def noted(*given: Any) -> Any:
        sizes.append(given[3])
        return whole(*given)

    monkeypatch.setattr(mcmc, "weighted_particles", noted)
    at_once = guide_quality(model, guide, x, result, num_particles=4000)
    assert sum(sizes) == 4000
    sizes.clear()
    monkeypatch.setattr(mcmc, "chunk_of", lambda *_: 700)
    in_parts = guide_quality(model, guide, x, result, num_particles=4000)
    assert sizes == [700] * 5 + [500]
    for name, ratio in at_once.variance_ratio.items():
        torch.testing.assert_close(in_parts.variance_ratio[name], ratio, rtol=0.5, atol=0)
    assert in_parts.pareto_k.isfinite().all()


def test_arviz_data_of_a_result_and_a_guides_quality() -> None:
    model = MODELS["roll"]()
    guide, x = default_guide(model), torch.rand(2, 3, *FRAME)
    result = nuts(model, x, init=guide, num_samples=8, warmup_steps=8)
    quality = guide_quality(model, guide, x, result, num_particles=50)
    data = to_arviz(model, guide, x, result=result, quality=quality)
    assert data["posterior"].attrs["method"] == "nuts"
    for name, value in result.draws.items():
        assert torch.equal(torch.from_numpy(data["posterior"][name].values), value)
    for name, value in result.stats.items():
        kept = torch.from_numpy(data["sample_stats"][name].values).to(value.dtype)
        # lp is once more the sum of log_likelihood and log_prior, in double precision.
        torch.testing.assert_close(kept, value, rtol=1e-5 if name == "lp" else 0, atol=0)
    worst = data["sequence_stats"]
    ratio = torch.cat([value.flatten(1) for value in quality.variance_ratio.values()], 1)
    for i in range(2):
        expected = max(ratio[i].tolist(), key=lambda value: abs(math.log(value)))
        assert float(worst["guide_variance_ratio"][i]) == pytest.approx(expected)
        difference = max(float(value[i].abs().max()) for value in quality.mean_difference.values())
        assert float(worst["guide_mean_difference"][i]) == pytest.approx(difference)
    assert torch.equal(torch.from_numpy(worst["pareto_k"].values), quality.pareto_k)
    with pytest.raises(ValueError, match="of 2 sequences, x has 1"):
        to_arviz(model, guide, x[:1], result=result)
    with pytest.raises(ValueError, match="expected none with method='importance'"):
        to_arviz(model, guide, x, result=result, method="importance")
    with pytest.raises(ValueError, match="expected none with method='guide'"):
        to_arviz(model, guide, x, quality=quality)


@pytest.mark.parametrize("option", ["num_samples", "warmup_steps", "num_chains", "max_tree_depth"])
def test_numbers_below_one_are_refused(option: str) -> None:
    model = MODELS["plain"]()
    with pytest.raises(ValueError, match=f"{option} is 0; expected a whole number"):
        nuts(model, torch.rand(1, 3, *FRAME), init=default_guide(model), **{option: 0})  # type: ignore[arg-type]


def test_draws_of_other_sequences_are_refused() -> None:
    model = MODELS["plain"]()
    result = NUTSResult({"z": torch.zeros(1, 5, 3, 3, 1, 3)}, {}, {}, torch.zeros(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="of 3 sequences, x has 2"):
        guide_quality(model, default_guide(model), torch.rand(2, 3, *FRAME), result)


@pytest.mark.parametrize("other", ["sequences", "order", "frames", "model", "mask"])
def test_draws_of_as_many_other_sequences_are_refused(other: str) -> None:
    model = MODELS["plain"]()
    guide, x, observed = default_guide(model), torch.rand(2, 3, *FRAME), torch.tensor([True, True, False])
    result = nuts(model, x, init=guide, observed=observed, num_samples=2, warmup_steps=2, num_chains=1)
    unseen = torch.cat([x[:, :2], torch.rand(2, 1, *FRAME)], 1)  # what nobody saw may be anything
    assert to_arviz(model, guide, unseen, observed=observed.expand(2, 3), result=result).posterior.sizes["draw"] == 2
    given = {
        "sequences": torch.rand(2, 3, *FRAME),
        "order": x.flip(0),
        "frames": x,
    }.get(other, x)
    covariates = None
    if other == "mask":
        covariates = {"measured": torch.rand(2, 3, *FRAME) < 0.5}
    if other == "model":
        with torch.no_grad():
            next(model.decoder.parameters()).add_(1e-3)
    seen = observed.flip(0) if other == "frames" else observed
    for function in (to_arviz, guide_quality):
        with pytest.raises(ValueError, match="of other sequences than x, of other frames or covariates of them, or"):
            function(model, guide, given, observed=seen, covariates=covariates, result=result)


def test_draws_of_another_model_of_the_same_weights_are_refused() -> None:
    one, two = (TVAE(FRAME, 3, 1, 3, CapsuleRoll(kernel, 0), mu=1.0) for kernel in (3, 1))
    two.load_state_dict(one.state_dict(), strict=False)
    x = torch.rand(2, 3, *FRAME)
    result = nuts(one, x, init=default_guide(one), num_samples=2, warmup_steps=2, num_chains=1)
    with pytest.raises(ValueError, match="or of another model; expected the model, x, 'observed' and 'covariates'"):
        to_arviz(two, default_guide(two), x, result=result)


def test_a_chain_that_cannot_start_is_told_of_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcmc, "MCMC", lambda *_, **__: pytest.fail("a chain was run"))

    class Steep(TVAE):
        def heads(self, t: Tensor) -> None:
            far = (pyro.sample("w", Normal(0.0, 1.0)) - 0.5).abs() > 0.5
            pyro.factor("steep", torch.where(far, -math.inf, 0.0))

    def init(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("w", Normal(0.5, 1.0))

    model = Steep(FRAME, 3, 1, 3, CapsuleRoll(3, 0))
    start = GuideList(default_guide(model), init)
    said = r"^nuts: chain 2 would start at a draw from the guide 'init', where log p\(x, latents\) is -inf"
    with pytest.raises(ValueError, match=said):
        nuts(model, torch.rand(2, 3, *FRAME), init=start, num_samples=2, warmup_steps=2)


class Told(TVAE):
    """A statement that can be told, and a buffer on which code counts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("calls", torch.tensor(0.0))

    def heads(self, t: Tensor, label: Tensor | None = None) -> None:
        self.calls += 1
        pyro.sample("y", Normal(t[..., 0, 0, 0], 1.0), obs=label)


def test_draws_of_a_model_that_was_told_something_else_are_refused() -> None:
    model = Told(FRAME, 3, 1, 3, CapsuleRoll(3, 0))
    guide, x = default_guide(model), torch.rand(2, 3, *FRAME)
    one, two = (poutine.condition(model, {"y": torch.full((2,), float(number))}) for number in (0, 3))
    result = nuts(one, x, init=guide, num_samples=2, warmup_steps=2, num_chains=1)
    to_arviz(one, guide, x, result=result)
    with pytest.raises(ValueError, match="or of another model; expected the model, x, 'observed' and 'covariates'"):
        to_arviz(two, guide, x, result=result)


@pytest.mark.parametrize("kind", MODELS)
def test_the_joint_density_of_every_draw(kind: str) -> None:
    """Against the program's trace, the latents put in: once more than the sampler does it, and on their own scale."""
    model = MODELS[kind]().double()
    x = torch.rand(2, 3, *FRAME).double()
    result = nuts(model, x, init=default_guide(model).double(), num_samples=8, warmup_steps=20, max_tree_depth=4)
    assert result.lp.shape == (2, 8)
    for chain, draw in itertools.product(range(2), range(8)):
        values = {name: value[chain, draw] for name, value in result.draws.items()}
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(x)
        assert float(result.lp[chain, draw]) == pytest.approx(trace.log_prob_sum().item(), rel=1e-9)


def test_the_joint_density_with_a_random_scalar() -> None:
    """One that all sequences share, and that is positive."""
    model, x = MODELS["roll"]().double(), torch.rand(2, 3, *FRAME).double()
    del model.mu
    model.mu = PyroSample(LogNormal(torch.zeros(()).double(), 1.0))
    guide = AutoNormal(model)
    guide(x)
    result = nuts(model, x, init=guide, num_samples=2, warmup_steps=2, num_chains=1)
    values = {name: value[0, 1] for name, value in result.draws.items()}
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(x)
    assert float(result.lp[0, 1]) == pytest.approx(trace.log_prob_sum().item(), rel=1e-9)


def test_energies_are_the_potential_and_a_chi_squared(exact: tuple[Toy, Tensor, NUTSResult]) -> None:
    _, _, result = exact
    kinetic = result.energy + result.lp  # no latent is constrained
    assert (kinetic > 0).all()
    # Half of |momentum|² of 8 coordinates is Gamma(4, 1): mean 4, variance 4, of 800 draws that are near independent.
    assert abs(float(kinetic.mean()) - 4) < 5 * 2 / math.sqrt(800)
    assert float(kinetic.var()) == pytest.approx(4, rel=0.35)
    # Each transition begins with a new momentum, and keeps its energy but for the integrator's error.
    before, after = -result.lp[:, :-1], result.energy[:, 1:]
    assert (after - before).min() > -1


def test_energies_of_constrained_latents_hold_the_jacobian() -> None:
    model = MODELS["orbits"]().double()
    x = torch.rand(1, 3, *FRAME).double()
    result = nuts(model, x, init=default_guide(model).double(), num_samples=100, warmup_steps=60, num_chains=1)
    kinetic = result.energy + result.lp + result.draws["e"].log().flatten(2).sum(2)
    n = sum(value[0, 0].numel() for value in result.draws.values())
    assert (kinetic > 0).all()
    assert abs(float(kinetic.mean()) - n / 2) < 5 * math.sqrt(n / 2 / 50)


def test_trees_steps_and_acceptance(exact: tuple[Toy, Tensor, NUTSResult]) -> None:
    toy, x, result = exact
    assert set(result.stats) == {"lp", "energy", "tree_depth", "step_size", "acceptance_rate", "diverging"}
    assert all(value.shape == (2, 400) for value in result.stats.values())
    assert result.tree_depth.min() >= 1
    assert result.tree_depth.max() <= 8
    assert (result.step_size == result.step_size[:, :1]).all()  # adapted no more
    assert (result.step_size > 0).all()
    assert ((result.acceptance_rate > 0) & (result.acceptance_rate <= 1)).all()
    assert abs(float(result.acceptance_rate.mean()) - 0.8) < 0.15  # what the step size is adapted to
    shallow = nuts(toy.model, x, init=toy.guide, num_samples=20, warmup_steps=5, num_chains=1, max_tree_depth=1)
    assert (shallow.tree_depth == 1).all()


def test_thinned_draws_have_the_ess_of_those_that_are_kept_and_say_their_seed() -> None:
    model = MODELS["roll"]()
    guide, x = default_guide(model), torch.rand(2, 3, *FRAME)
    result = nuts(model, x, init=guide, num_samples=40, warmup_steps=8, seed=7)
    data = to_arviz(model, guide, x, result=result, thin=4)
    kept = {name: value[:, 3::4] for name, value in result.draws.items()}
    latents = identified(model, kept)
    ess = torch.cat([diagnose("ess", value).flatten(1) for value in latents.values()], 1).amin(1)
    assert torch.allclose(torch.from_numpy(data["sequence_stats"]["ess"].values), ess, equal_nan=True)
    assert data["sample_stats"]["lp"].shape == (2, 10)
    assert data["posterior"].attrs["seed"] == 7
    assert to_arviz(model, guide, x, draws=3, seed=5)["posterior"].attrs["seed"] == 5


@pytest.mark.parametrize("other", ["x", "guide", "model"])
def test_the_quality_of_another_guide_model_or_data_is_refused(other: str) -> None:
    model = MODELS["roll"]()
    guide, x = default_guide(model), torch.rand(2, 3, *FRAME)
    result = nuts(model, x, init=guide, num_samples=4, warmup_steps=4)
    quality = guide_quality(model, guide, x, result, num_particles=20)
    with torch.no_grad():
        if other == "x":
            x, result = x.flip(0), replace(result, given=None)
        else:
            for p in {"guide": guide, "model": model}[other].parameters():
                p.add_(0.1)
            result = replace(result, given=None)
    with pytest.raises(ValueError, match="'quality' is of other sequences than x"):
        to_arviz(model, guide, x, result=result, quality=quality)


def test_draws_of_a_scaled_model_are_none_of_the_plain_one() -> None:
    model = MODELS["roll"]()
    guide, x = default_guide(model), torch.rand(2, 3, *FRAME)
    scaled = poutine.scale(model, 0.1)
    result = nuts(scaled, x, init=guide, num_samples=4, warmup_steps=4)
    to_arviz(scaled, guide, x, result=result)
    for another in (model, poutine.scale(model, 0.2)):
        with pytest.raises(ValueError, match="or of another model"):
            to_arviz(another, guide, x, result=result)
