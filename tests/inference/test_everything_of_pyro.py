"""All of Pyro's inference against the package: estimators, samplers, predictives and autoguides, each one placed."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as auto
import pytest
import torch
from placing import (
    SEED,
    B,
    K,
    Place,
    agrees,
    by_elbo,
    by_iwae,
    by_likelihood,
    by_weights,
    complaint,
    counts,
    no_sense,
    public,
    pyros,
    refused,
    renyis,
    same,
    sampled,
    sequences,
    tiny,
    unplaced,
    weight_at,
)
from pyro import infer, poutine
from pyro.contrib import easyguide
from pyro.contrib.gp.kernels import RBF
from pyro.distributions.transforms import affine_autoregressive, iterated
from pyro.infer import mcmc
from torch import Tensor

from pyro_tvae import TVAE, Guide, GuideList, Normal, encode, reconstruct
from pyro_tvae.inference import ELBO, IWAE, DReG, log_likelihood, log_weights
from pyro_tvae.inference.densities import densities, run

MODULES = (infer, infer.autoguide, mcmc, easyguide)


def pair(**options: Any) -> tuple[TVAE, Guide, Tensor]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = tiny(**options)
    return model, sampled(model), sequences()


# --- estimators


def of_the_elbo(loss: Any) -> Callable[[], None]:
    def check() -> None:
        model, guide, x = pair()
        number = pyros(model, guide, x, loss=loss)
        for ours in (by_elbo, by_likelihood, by_weights):
            same(ours(model, guide, x), number)

    return check


def of_the_closed_kl(loss: Any) -> Callable[[], None]:
    def check() -> None:
        model, guide, x = pair()
        guide.mean_field = True
        same(by_elbo(model, guide, x), pyros(model, guide, x, loss=loss))

    return check


def of_renyi() -> None:
    model, guide, x = pair()
    for objective in (IWAE, DReG):
        same(by_iwae(model, guide, x, objective), renyis(model, guide, x))
    same(log_likelihood(model, guide, x, K, seed=SEED).iwae.sum(), renyis(model, guide, x))


def of_wake_sleep() -> None:
    """Its wake phase is IWAE, for one sequence: of several, Pyro sums the weights over the batch first."""
    model, guide, x = pair()
    pyro.set_rng_seed(SEED)
    loss = infer.ReweightedWakeSleep(num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    same(by_iwae(model, guide, x[:1]), -_seeded(lambda: loss.loss(model, guide, x[:1]))[0])


def of_tail_adaptive() -> None:
    """It has no number, but the gradient of the batch's log-weights, each particle's by its rank."""
    model, guide, x = pair()
    loss = infer.TraceTailAdaptive_ELBO(num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    weight = model.decoder[0].weight
    (found,) = torch.autograd.grad(_seeded(lambda: loss.differentiable_loss(model, guide, x)), weight)
    with pyro.plate("particles", K, dim=-2):
        likelihood, kl = densities(*_seeded(lambda: run(model, guide, x)), x)
    weights = (likelihood - kl).sum(1)
    rank = weights.argsort()  # of the particles, as Pyro takes it: which one is at a rank, not which rank one has
    gamma = (rank + 1.0) ** loss.tail_adaptive_beta
    (expected,) = torch.autograd.grad(-(weights * gamma).sum() / gamma.sum() / K, weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def of_mmd() -> None:
    """With no weight on its penalty it is the expected reconstruction."""
    model, guide, x = pair()
    loss = partial(infer.Trace_MMD, kernel=RBF(input_dim=1), mmd_scale=0)
    expected = pyros(model, guide, x, loss=loss)
    same(_seeded(lambda: ELBO(model, guide, K)(x).reconstruction.sum()), expected)


def of_energy_distance() -> None:
    """Pyro takes t, a deterministic site, for data, so that it is hidden; by hand from the same draws then."""
    model, guide, x = pair(likelihood=Normal(0.3))
    loss = infer.EnergyDistance(num_particles=2, max_plate_nesting=2)
    hidden = poutine.block(model, hide=["t"])
    with torch.no_grad():
        found = _seeded(lambda: loss(hidden, guide, x))
        pyro.set_rng_seed(SEED)
        with pyro.plate("particles", 2, dim=-2):
            q = poutine.trace(guide).get_trace(x)
            drawn = poutine.replay(poutine.uncondition(model), trace=q)(x)
    same(found, (drawn - x).flatten(1).norm(dim=-1).mean() - (drawn[0] - drawn[1]).norm() / 2)


def of_a_step() -> None:
    model, guide, x = pair()
    number = pyros(model, guide, x, k=1)
    svi = infer.SVI(model, guide, pyro.optim.SGD({"lr": 1e-2}), infer.Trace_ELBO())
    same(_seeded(lambda: svi.step(x)), -number)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def of_importance() -> None:
    model, guide, x = pair()
    with torch.no_grad():
        found = _seeded(lambda: infer.Importance(model, guide, 1).run(x).log_weights[0])
    same(found, by_weights_of_one(model, guide, x))


def by_weights_of_one(model: Any, guide: Any, x: Tensor) -> float:
    return float(log_weights(model, guide, x, 1, seed=SEED).sum())


def of_csis() -> None:
    model, guide, x = pair()
    csis = infer.CSIS(
        lambda observations: pyro.condition(model, data=observations)(n_sequences=B),
        lambda observations: guide(observations["x"]),
        pyro.optim.SGD({"lr": 0.1}),
        num_inference_samples=1,
    )
    same(_seeded(lambda: csis.run(observations={"x": x}).log_weights[0]), by_weights_of_one(model, guide, x))
    before = copy.deepcopy(guide.state_dict())
    csis.step(observations={"x": x})
    assert all(not torch.equal(value, before[name]) for name, value in guide.state_dict().items())


def of_the_marginal() -> None:
    """Posterior means by importance weights, once by Pyro and once by hand from its own draws."""
    model, guide, x = pair()
    with torch.no_grad():
        run = infer.Importance(model, guide, 20).run(x[:1])
        draws = torch.stack([trace.nodes["z"]["value"] for trace in run.exec_traces])
        shares = torch.tensor(
            [weight_at(model, guide, x[:1], {s: t.nodes[s]["value"] for s in ("z", "u")}) for t in run.exec_traces]
        ).softmax(0)
        mean = infer.EmpiricalMarginal(run, sites="z").mean
    torch.testing.assert_close(mean, (shares.view(-1, 1, 1, 1, 1) * draws).sum(0))


def of_discrete(enumerated: bool) -> Callable[[], None]:
    def check() -> None:
        model, guide, x = pair()
        program = infer.config_enumerate(model) if enumerated else model
        same(by_likelihood(program, guide, x), pyros(model, guide, x))
        assert infer.infer_discrete(infer.config_enumerate(model), first_available_dim=-2)(x) is x
        # A discrete latent of one's own has to be in the guide: nothing here sums over it.
        model = tiny(Switched)
        for judge in (by_elbo, by_likelihood, by_iwae):
            assert "'switch' that the guide lacks" in complaint(partial(judge, model, sampled(model), x))

    return check


class Switched(TVAE):
    """A model with a discrete latent."""

    def heads(self, t: Tensor) -> None:
        pyro.sample("switch", dist.Categorical(logits=t.flatten(-3)[..., :2]), infer={"enumerate": "parallel"})


def of_validation() -> None:
    model, guide, x = pair()
    number = by_elbo(model, guide, x)
    assert infer.is_validation_enabled()
    infer.enable_validation(False)
    try:
        assert not infer.is_validation_enabled()
        same(by_elbo(model, guide, x), number)
    finally:
        infer.enable_validation(True)


# --- samplers


def of_stein(kernel: Any) -> Callable[[], None]:
    """The step of a particle is by hand the mean of kernel times gradient, and the kernel's own gradient.

    The gradient is the model's. The rows are Pyro's: of a model with several sites they mix parts of its particles.
    """

    def check() -> None:
        model, _, x = pair()
        lr, n = 1e-3, 3
        svgd = infer.SVGD(model, kernel(), pyro.optim.SGD({"lr": lr}), n, 1)
        svgd.guide(x)  # the particles are born in the first call
        start = pyro.param("svgd_particles").detach().clone().requires_grad_()
        values = {site["name"]: value for site, value in svgd.guide._unpack_latent(start)}
        log_p = 0
        for i in range(n):
            given = poutine.condition(model, data={site: value[i] for site, value in values.items()})
            log_p = log_p + poutine.trace(given).get_trace(x).log_prob_sum()
        (gradient,) = torch.autograd.grad(log_p, start)
        rows, gradient = start.detach().reshape(n, -1), gradient.reshape(n, -1)
        log_kernel, kernel_gradient = svgd.kernel.log_kernel_and_grad(rows)
        moved = rows + lr * (log_kernel.exp() * (gradient - kernel_gradient)).mean(1)
        svgd.step(x)
        torch.testing.assert_close(pyro.param("svgd_particles").detach().reshape(n, -1), moved)

    return check


def of_a_chain(kernel: Callable[[TVAE], Any], run: Any = mcmc.MCMC) -> Callable[[], None]:
    """A kernel moves by minus the joint log-density, which is the one of the trace."""

    def check() -> None:
        model, _, x = pair()
        chosen = kernel(model)
        run(chosen, num_samples=2, warmup_steps=2, disable_progbar=True).run(x)
        values = {site: torch.randn(B, 3, 1, 3) for site in ("z", "u")}
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(x)
        same(chosen.potential_fn(values), -trace.log_prob_sum())

    return check


def full_mass(adapter: type) -> Callable[[TVAE], Any]:
    def build(model: TVAE) -> Any:
        kernel = mcmc.NUTS(model, full_mass=True, max_tree_depth=2)
        kernel.mass_matrix_adapter = adapter()
        return kernel

    return build


# --- predictives


def of_predictive() -> None:
    model, guide, x = pair()
    with torch.no_grad():
        of_prior = infer.Predictive(model, num_samples=K)(n_sequences=B)
        given = infer.Predictive(poutine.uncondition(model), guide=guide, num_samples=K, parallel=True)(x)
    for drawn in (of_prior, given):
        torch.testing.assert_close(drawn["t"].reshape(K, B, 3, 1, 3), model.compose(drawn))
        assert drawn["x"].shape == (K, B, 3, 1, 2, 2)
        assert not torch.equal(drawn["x"][0], x)


def of_weighed(resampled: bool) -> Callable[[], None]:
    """A weight is the batch's in Pyro's, so that for one sequence it is ours; each is taken at its own draw."""

    def check() -> None:
        model, guide, x = pair()
        predictive = infer.WeighedPredictive(model, guide=guide, num_samples=K, parallel=True)
        with torch.no_grad():
            found = (infer.MHResampler(predictive) if resampled else predictive)(x[:1])
            for k in range(K):
                draw = {site: found.samples[site][k] for site in ("z", "u")}
                same(found.log_weights[k], weight_at(model, guide, x[:1], draw))

    return check


def of_trace_predictive() -> None:
    model, guide, x = pair()
    with torch.no_grad():
        posterior = infer.Importance(model, guide, 5).run(x)
        run = infer.TracePredictive(poutine.uncondition(model), posterior, 3).run(x)
    for trace in run.exec_traces:
        z, u, t = (trace.nodes[site]["value"] for site in ("z", "u", "t"))
        torch.testing.assert_close(t, model.compose({"z": z, "u": u}))


def _seeded(action: Callable[[], Any]) -> Any:
    pyro.set_rng_seed(SEED)
    return action()


# --- autoguides


def built(make: Callable[[TVAE], Any], x: Tensor) -> tuple[TVAE, Any]:
    """A model, and its guide set up on x."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model = tiny()
    guide = make(model)
    guide(x)
    return model, guide


def of_a_guide(make: Callable[[TVAE], Any], joint: str = "") -> Callable[[], None]:
    """A guide that draws each sequence for itself counts everywhere; a joint one where the sum alone is needed.

    Args:
        joint: its site outside the plate, by whose name a weight per sequence is refused.
    """

    def check() -> None:
        x = sequences()
        model, guide = built(make, x)
        number = pyros(model, guide, x)
        same(by_elbo(model, guide, x), number)
        if joint:
            for judge in (by_likelihood, by_weights, by_iwae):
                assert f"site '{joint}'" in complaint(partial(judge, model, guide, x))
        else:
            same(by_likelihood(model, guide, x), number)
            same(by_weights(model, guide, x), number)
            same(by_iwae(model, guide, x), renyis(model, guide, x))
        assert encode(model, guide, x).shape == (B, 3, 1, 3)
        assert reconstruct(model, guide, x).shape == x.shape
        for judge in (by_elbo, by_likelihood, by_iwae, encode):
            assert "sequences" in complaint(partial(judge, model, guide, sequences(8)))
        model, guide = built(make, x[:1])
        number = pyros(model, guide, x[:1])
        for judge in (by_elbo, by_likelihood, by_weights):
            same(judge(model, guide, x[:1]), number)
        same(by_iwae(model, guide, x[:1]), renyis(model, guide, x[:1]))

    return check


def of_init(init: Any) -> Callable[[], None]:
    return of_a_guide(lambda model: auto.AutoNormal(model, init_loc_fn=init))


def values_for(site: dict[str, Any]) -> Tensor:
    return auto.init_to_value(site, values={"z": torch.full(site["fn"].shape(), 0.5)})


def listed(*kinds: Any) -> Callable[[TVAE], Any]:
    def build(model: TVAE) -> Any:
        guides = auto.AutoGuideList(model)
        for site, kind in zip(("z", "u"), kinds, strict=True):
            guides.append(kind(poutine.block(model, expose=[site])))
        return guides

    return build


def program(x: Tensor) -> dict[str, Tensor]:
    """A guide that is a function without parameters and with a plate of its own."""
    distribution = dist.Normal(0.0, 1.0).expand([3, 1, 3]).to_event(3)
    with pyro.plate("sequence", len(x), dim=-1):
        return {site: pyro.sample(site, distribution) for site in ("z", "u")}


def within_a_list(part: Callable[[TVAE], Any]) -> tuple[Callable[[], object], ...]:
    def run(judge: Any) -> object:
        model = tiny()
        guides = auto.AutoGuideList(model)
        guides.append(part(model))
        return judge(model, guides, sequences())

    return tuple(partial(run, judge) for judge in (by_elbo, by_likelihood, encode))


def of_entropy() -> None:
    model, guide, x = pair()
    entropy = sum(distribution.entropy().sum() for distribution in guide.posterior(x).values())
    same(auto.mean_field_entropy(guide, [x]).sum(), entropy)
    # With it the closed KL: −H(q) − E_q log p, for a standard Normal by hand.
    guide.mean_field = True
    cross = sum(
        (-0.5 * (distribution.mean.square() + distribution.variance) - 0.5 * math.log(2 * math.pi)).sum()
        for distribution in guide.posterior(x).values()
    )
    same(ELBO(model, guide)(x).kl.sum(), -entropy - cross)


def of_a_discrete_guide() -> Place:
    """Its draws have no gradient, so that objectives refuse them; a weight needs none and counts them."""

    def build() -> tuple[TVAE, Any]:
        model = tiny(Switched)
        switch = auto.AutoDiscreteParallel(poutine.block(model, expose=["switch"]))
        switch(sequences())
        return model, GuideList(sampled(model), switch)

    def objective() -> object:
        return by_elbo(*build(), sequences())

    return refused("'switch' from Categorical, which is not reparametrised", objective)


# --- easy guides


class Easy(easyguide.EasyGuide):
    """z and u in one draw of each sequence."""

    def guide(self, x: Tensor) -> None:
        group = self.group("z|u")
        with self.plate("sequence", len(x), dim=-1):
            group.sample("both", dist.Normal(torch.zeros(group.event_shape), 1.3).to_event(1))


class Point(easyguide.EasyGuide):
    """A point for z, a draw for u."""

    def guide(self, x: Tensor) -> None:
        with self.plate("sequence", len(x), dim=-1):
            self.map_estimate("z")
            pyro.sample("u", dist.Normal(torch.zeros(3, 1, 3), 1.3).to_event(3))


def decorated(model: TVAE) -> Any:
    @easyguide.easy_guide(model)
    def guide(self: Any, x: Tensor) -> None:
        Easy.guide(self, x)

    return guide


def of_easy(*makes: Any) -> Callable[[], None]:
    def check() -> None:
        for make in makes:
            x = sequences()
            model, guide = built(make, x)
            for judge in (by_elbo, by_likelihood, by_weights):
                same(judge(model, guide, x), pyros(model, guide, x))
            same(by_iwae(model, guide, x), renyis(model, guide, x))
            assert encode(model, guide, x).shape == (B, 3, 1, 3)

    return check


flow = partial(auto.AutoNormalizingFlow, init_transform_fn=partial(iterated, 1, affine_autoregressive))
ABSTRACT = "an abstract base, which has no number of its own"
INFER: dict[str, Place] = {
    "CSIS": agrees(of_csis),
    "ELBO": no_sense(ABSTRACT),
    "EmpiricalMarginal": agrees(of_the_marginal),
    "EnergyDistance": agrees(of_energy_distance),
    "HMC": agrees(of_a_chain(lambda model: infer.HMC(model, num_steps=2))),
    "IMQSteinKernel": agrees(of_stein(infer.IMQSteinKernel)),
    "Importance": agrees(of_importance),
    "JitTraceEnum_ELBO": agrees(of_the_elbo(infer.JitTraceEnum_ELBO)),
    "JitTraceGraph_ELBO": agrees(of_the_elbo(infer.JitTraceGraph_ELBO)),
    "JitTraceMeanField_ELBO": agrees(of_the_closed_kl(infer.JitTraceMeanField_ELBO)),
    "JitTrace_ELBO": agrees(of_the_elbo(infer.JitTrace_ELBO)),
    "MCMC": agrees(of_a_chain(lambda model: infer.NUTS(model, max_tree_depth=2))),
    "MHResampler": agrees(of_weighed(resampled=True)),
    "NUTS": agrees(of_a_chain(lambda model: infer.NUTS(model, max_tree_depth=2))),
    "Predictive": agrees(of_predictive),
    "RBFSteinKernel": agrees(of_stein(infer.RBFSteinKernel)),
    "RandomWalkKernel": agrees(of_a_chain(infer.RandomWalkKernel)),
    "RenyiELBO": agrees(of_renyi),
    "ReweightedWakeSleep": agrees(of_wake_sleep),
    "SMCFilter": no_sense("it filters a model with init and step; frames here are event dimensions of one site"),
    "SVGD": agrees(of_stein(infer.RBFSteinKernel)),
    "SVI": agrees(of_a_step),
    "TraceEnum_ELBO": agrees(of_the_elbo(infer.TraceEnum_ELBO)),
    "TraceGraph_ELBO": agrees(of_the_elbo(infer.TraceGraph_ELBO)),
    "TraceMeanField_ELBO": agrees(of_the_closed_kl(infer.TraceMeanField_ELBO)),
    "TracePosterior": no_sense(ABSTRACT),
    "TracePredictive": agrees(of_trace_predictive),
    "TraceTMC_ELBO": agrees(of_the_elbo(infer.TraceTMC_ELBO)),
    "TraceTailAdaptive_ELBO": agrees(of_tail_adaptive),
    "Trace_ELBO": agrees(of_the_elbo(infer.Trace_ELBO)),
    "Trace_MMD": agrees(of_mmd),
    "WeighedPredictive": agrees(of_weighed(resampled=False)),
    "config_enumerate": agrees(of_discrete(enumerated=True)),
    "enable_validation": agrees(of_validation),
    "infer_discrete": agrees(of_discrete(enumerated=False)),
    "is_validation_enabled": agrees(of_validation),
}
MCMC: dict[str, Place] = {
    "ArrowheadMassMatrix": agrees(of_a_chain(full_mass(mcmc.ArrowheadMassMatrix))),
    "BlockMassMatrix": agrees(of_a_chain(full_mass(mcmc.BlockMassMatrix))),
    "HMC": INFER["HMC"],
    "MCMC": INFER["MCMC"],
    "NUTS": INFER["NUTS"],
    "RandomWalkKernel": INFER["RandomWalkKernel"],
    "StreamingMCMC": agrees(of_a_chain(lambda model: infer.NUTS(model, max_tree_depth=2), mcmc.StreamingMCMC)),
}
AUTOGUIDE: dict[str, Place] = {
    "AutoCallable": refused("pyro_tvae.GuideList", *within_a_list(lambda model: program)),
    "AutoContinuous": no_sense(ABSTRACT),
    "AutoDelta": agrees(of_a_guide(auto.AutoDelta)),
    "AutoDiagonalNormal": agrees(of_a_guide(auto.AutoDiagonalNormal, "_AutoDiagonalNormal_latent")),
    "AutoDiscreteParallel": of_a_discrete_guide(),
    "AutoGaussian": agrees(of_a_guide(auto.AutoGaussian, "_AutoGaussianDense_latent")),
    "AutoGuide": no_sense(ABSTRACT),
    "AutoGuideList": agrees(of_a_guide(listed(auto.AutoNormal, auto.AutoDelta))),
    "AutoHierarchicalNormalMessenger": agrees(of_a_guide(auto.AutoHierarchicalNormalMessenger)),
    "AutoIAFNormal": agrees(of_a_guide(auto.AutoIAFNormal, "_AutoIAFNormal_latent")),
    "AutoLaplaceApproximation": agrees(of_a_guide(auto.AutoLaplaceApproximation, "_AutoLaplaceApproximation_latent")),
    "AutoLowRankMultivariateNormal": agrees(
        of_a_guide(auto.AutoLowRankMultivariateNormal, "_AutoLowRankMultivariateNormal_latent")
    ),
    "AutoMessenger": no_sense(ABSTRACT),
    "AutoMultivariateNormal": agrees(of_a_guide(auto.AutoMultivariateNormal, "_AutoMultivariateNormal_latent")),
    "AutoNormal": agrees(of_a_guide(auto.AutoNormal)),
    "AutoNormalMessenger": agrees(of_a_guide(auto.AutoNormalMessenger)),
    "AutoNormalizingFlow": agrees(of_a_guide(flow, "_AutoNormalizingFlow_latent")),
    "AutoRegressiveMessenger": agrees(of_a_guide(auto.AutoRegressiveMessenger)),
    "AutoStructured": agrees(of_a_guide(auto.AutoStructured, "z_aux")),
    "init_to_feasible": agrees(of_init(auto.init_to_feasible)),
    "init_to_generated": agrees(of_init(auto.init_to_generated(generate=lambda: auto.init_to_sample))),
    "init_to_mean": agrees(of_init(auto.init_to_mean)),
    "init_to_median": agrees(of_init(auto.init_to_median)),
    "init_to_sample": agrees(of_init(auto.init_to_sample)),
    "init_to_uniform": agrees(of_init(auto.init_to_uniform)),
    "init_to_value": agrees(of_init(values_for)),
    "mean_field_entropy": agrees(of_entropy),
}
EASY: dict[str, Place] = {
    "EasyGuide": agrees(of_easy(Easy, Point)),
    "easy_guide": agrees(of_easy(decorated)),
}
PLACES = {
    f"{module.__name__}.{name}": place
    for module, places in zip(MODULES, (INFER, AUTOGUIDE, MCMC, EASY), strict=True)
    for name, place in places.items()
}


def test_every_public_name_of_pyros_inference_is_placed() -> None:
    assert unplaced(MODULES, PLACES) == []


def test_a_fresh_name_of_pyros_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "__all__", [*infer.__all__, "Fresh_ELBO"])
    assert unplaced(MODULES, PLACES) == ["pyro.infer.Fresh_ELBO"]


@pytest.mark.parametrize("name", sorted({*PLACES} & set().union(*(public(module) for module in MODULES))))
def test_it_stands_where_it_was_placed(name: str) -> None:
    PLACES[name].check()


def test_the_verdicts_are_counted() -> None:
    found = counts(PLACES)
    sys.stdout.write(f"Pyro's inference: {found}\n")
    assert sum(found.values()) == len(PLACES)
    assert found["agrees"] > 0.8 * len(PLACES)


# --- what belongs to autoguides, beside the numbers


def test_an_autodelta_is_encoded_where_its_points_are() -> None:
    x = sequences()
    model, guide = built(auto.AutoDelta, x)
    with torch.no_grad():
        points = guide(x)
        t = model.compose(points)
        torch.testing.assert_close(encode(model, guide, x), t)
        torch.testing.assert_close(reconstruct(model, guide, x), model.decode(t).mean)


def test_a_weight_counts_a_discrete_draw() -> None:
    """A guide that samples it with the model's own law: the two terms cancel, draw by draw."""
    x = sequences()
    model = tiny(Switched)
    plain = tiny()
    plain.load_state_dict(model.state_dict())
    latents = sampled(model)

    def guide(x: Tensor) -> None:
        drawn = latents(x)
        with pyro.plate("switches", len(x), dim=-1):
            pyro.sample("switch", dist.Categorical(logits=model.compose(drawn).flatten(-3)[..., :2]))

    same(by_likelihood(model, guide, x), by_likelihood(plain, latents, x))


def test_an_autoguide_of_many_sequences_needs_them_in_one_batch() -> None:
    x = sequences(20)
    model, guide = built(auto.AutoNormal, x)
    assert "all in one batch" in complaint(lambda: log_likelihood(model, guide, x, K))
    found = log_likelihood(model, guide, x, K, batch_size=20, seed=SEED)
    same(found.elbo.sum(), pyros(model, guide, x))
