"""Every handler and reparametrization of Pyro's against the package, around and inside model and guide."""

from __future__ import annotations

import pickle
import queue
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from placing import (
    B,
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
    renyis,
    same,
    sampled,
    sequences,
    tiny,
    unplaced,
)
from pyro import poutine
from pyro.infer import reparam
from pyro.infer.autoguide import AutoIAFNormal, AutoNormal, AutoStructured
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor

from pyro_tvae import TVAE, MeanFieldGuide, encode

# --- handlers, in four places


Handler = Callable[[Any], Any]
Z = torch.randn(B, 3, 1, 3, generator=torch.Generator().manual_seed(5))
ROWS = torch.tensor([True, False, True, True])


def nothing_to_extend(program: Any) -> Any:
    """Sequential enumeration of a program without discrete sites: the first trace is whole."""

    def run(*args: Any, **options: Any) -> Any:
        waiting: queue.Queue[poutine.Trace] = queue.Queue()
        waiting.put(poutine.Trace())
        return poutine.queue(program, queue=waiting)(*args, **options)

    return run


HANDLERS: dict[str, Handler] = {
    "block": lambda program: poutine.block(program, hide=["t"]),
    "block, of x": lambda program: poutine.block(program, hide=["x"]),
    "block, of z": lambda program: poutine.block(program, hide=["z"]),
    "broadcast": poutine.broadcast,
    "condition": lambda program: poutine.condition(program, data={"z": Z}),
    "condition, of x": lambda program: poutine.condition(program, data={"x": 0.5 * sequences()}),
    "do": lambda program: poutine.do(program, data={"z": Z}),
    "enum": lambda program: poutine.enum(program, first_available_dim=-3),
    "equalize": lambda program: poutine.equalize(program, ["z", "u"]),
    "escape": lambda program: poutine.escape(program, escape_fn=lambda site: False),
    "infer_config": lambda program: poutine.infer_config(program, config_fn=lambda site: {"told": True}),  # type: ignore[typeddict-unknown-key]
    "lift": lambda program: poutine.lift(program, prior=dist.Normal(0.0, 1.0)),
    "markov": poutine.markov,
    "mask": lambda program: poutine.mask(program, mask=ROWS),
    "mask, of all": lambda program: poutine.mask(program, mask=False),
    "replay": lambda program: poutine.replay(program, trace=poutine.Trace()),
    "reparam": lambda program: poutine.reparam(program, config={"z": reparam.LocScaleReparam(0.5)}),
    "scale": lambda program: poutine.scale(program, scale=0.5),
    "scale, by row": lambda program: poutine.scale(program, scale=torch.tensor([0.5, 1.0, 2.0, 0.1])),
    "seed": lambda program: poutine.seed(program, rng_seed=3),
    "substitute": lambda program: poutine.substitute(program, data={}),
    "trace": poutine.trace,
    "uncondition": poutine.uncondition,
}


def inside(base: type, handler: Handler) -> type:
    """A subclass that runs its program in the handler."""

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        return handler(partial(base.forward, self))(*args, **options)  # type: ignore[attr-defined]

    return type("Inside", (base,), {"forward": forward})


def around_the_model(handler: Handler) -> tuple[Any, Any]:
    model = tiny()
    return handler(model), sampled(model)


def inside_the_model(handler: Handler) -> tuple[Any, Any]:
    model = tiny(inside(TVAE, handler))
    return model, sampled(model)


def around_the_guide(handler: Handler) -> tuple[Any, Any]:
    model = tiny()
    return model, handler(sampled(model))


def inside_the_guide(handler: Handler) -> tuple[Any, Any]:
    model = tiny()
    return model, sampled(model, inside(MeanFieldGuide, handler))


POSITIONS = {
    f.__name__.replace("_", " "): f for f in (around_the_model, inside_the_model, around_the_guide, inside_the_guide)
}
MODEL, GUIDE = list(POSITIONS)[:2], list(POSITIONS)[2:]
# (handler, position) -> words of the sentence, which name the site.
REFUSED = {
    **{("block, of z", place): "guide has a latent site 'z' that the model lacks" for place in MODEL},
    **{("block, of z", place): "model has a latent site 'z' that the guide lacks" for place in GUIDE},
    **{("condition", place): "guide has a latent site 'z' that the model lacks" for place in MODEL},
    **{("condition", place): "the guide observes or replaces site 'z'" for place in GUIDE},
    **{("equalize", place): "guide has a latent site 'u' that the model lacks" for place in MODEL},
    **{("equalize", place): "the guide observes or replaces site 'u'" for place in GUIDE},
    **{("lift", place): "decoder$$$0.bias' that the guide lacks" for place in MODEL},
    **{("lift", place): "encoder$$$network.1.bias' that the model lacks" for place in GUIDE},
    **{("reparam", place): "guide has a latent site 'z' that the model lacks" for place in MODEL},
    **{("reparam", place): "the guide observes or replaces site 'z'" for place in GUIDE},
    **{("uncondition", place): "model has a latent site 'x' that the guide lacks" for place in MODEL},
}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_counts_as_pyro_counts_it_or_is_refused(name: str, position: str) -> None:
    model, guide = POSITIONS[position](HANDLERS[name])
    x = sequences()
    judges: list[Any] = [by_likelihood, by_weights]
    if isinstance(model, TVAE):
        judges.append(by_elbo)
    else:
        # Objectives own the model's parameters, and want the model itself.
        assert "put the handler inside the model" in complaint(partial(by_elbo, model, guide, x))
    words = REFUSED.get((name, position))
    if words is not None:
        for judge in judges:
            assert words in complaint(partial(judge, model, guide, x))
        return
    number = pyros(model, guide, x)
    for judge in judges:
        same(judge(model, guide, x), number)
    if isinstance(model, TVAE):
        same(by_iwae(model, guide, x), renyis(model, guide, x))
        assert encode(model, guide, x).isfinite().all()


def test_what_a_handler_changes_is_noticed() -> None:
    """Were a handler dropped by both, the numbers would be those of the bare pair."""
    x = sequences()
    for name in ("mask", "scale", "scale, by row", "block, of x", "condition, of x"):
        model, guide = around_the_model(HANDLERS[name])
        bare = pyros(poutine.unwrap(model), guide, x)
        assert abs(pyros(model, guide, x) - bare) > 0.1


def of_a_handler(name: str) -> Callable[[], None]:
    """The four positions have a test each."""

    def check() -> None:
        assert name in HANDLERS

    return check


# --- what is no handler


def of_queue() -> None:
    model, guide = around_the_guide(nothing_to_extend)
    x = sequences()
    for judge in (by_elbo, by_likelihood):
        same(judge(model, guide, x), pyros(model, guide, x))


def of_an_early_end() -> None:
    """A program that is left early has no number; the exception is the caller's."""
    model, guide = around_the_guide(lambda program: poutine.escape(program, escape_fn=lambda site: site["name"] == "z"))
    for judge in (by_elbo, by_likelihood):
        with pytest.raises(poutine.NonlocalExit):
            judge(model, guide, sequences())


def of_a_mask_that_is_read() -> None:
    """What the program asks of the mask around it has to be told there."""

    class Asking(TVAE):
        def heads(self, t: Tensor) -> None:
            mask = poutine.get_mask()
            pyro.factor("told", t.new_zeros(t.shape[:-3]) - (0.0 if mask is None else mask.float()))

    model = tiny(Asking)
    guide, x = sampled(model), sequences()
    masked = poutine.mask(model, mask=ROWS)
    for judge in (by_likelihood, by_weights):
        same(judge(masked, guide, x), pyros(masked, guide, x))


def of_a_trace() -> None:
    """Our laws are the trace's: its sum of log-probabilities is the joint density by hand."""
    model = tiny()
    x = sequences()
    trace = poutine.trace(model).get_trace(x)
    assert isinstance(trace, poutine.Trace)
    z, u = (trace.nodes[site]["value"] for site in ("z", "u"))
    distributions = model.prior_distributions()
    by_hand = model.decode(model.compose({"z": z, "u": u})).log_prob(x).sum() + distributions["z"].log_prob(z).sum()
    same(trace.log_prob_sum(), by_hand + distributions["u"].log_prob(u).sum())


def of_unwrapping() -> None:
    model = tiny()
    assert poutine.unwrap(poutine.scale(poutine.mask(model, mask=ROWS), scale=0.5)) is model
    both = poutine.scale(poutine.mask(model, mask=ROWS), scale=0.5)
    guide, x = sampled(model), sequences()
    same(by_likelihood(both, guide, x), pyros(both, guide, x))


def of_validation() -> None:
    model, guide = around_the_guide(poutine.broadcast)
    number = by_elbo(model, guide, sequences())
    assert poutine.is_validation_enabled()
    poutine.enable_validation(False)
    try:
        same(by_elbo(model, guide, sequences()), number)
    finally:
        poutine.enable_validation(True)


def of_condition() -> None:
    """A guide that leaves the conditioned latent out belongs to the conditioned model."""
    of_a_guide_without("z", HANDLERS["condition"])


def of_equalize() -> None:
    """A guide of the first site belongs to a model whose second repeats it."""
    of_a_guide_without("u", HANDLERS["equalize"])


def of_a_guide_without(site: str, handler: Handler) -> None:
    for place in MODEL:
        model, guide = POSITIONS[place](handler)
        guide = poutine.block(guide, hide=[site])
        x = sequences()
        for judge in (by_likelihood, by_weights, *([by_elbo] if isinstance(model, TVAE) else [])):
            same(judge(model, guide, x), pyros(model, guide, x))


def of_lift() -> None:
    """A lifted μ is read in the plate, one for each sequence; a layer's weights are drawn before it, one for all."""
    # By the names that lift knows parameters by, which are the modules' own.
    distributions = {"model.mu": dist.Normal(1.0, 0.3), "0.weight": dist.Normal(0.0, 1.0).expand([6, 3]).to_event(2)}
    for parameter, distribution in distributions.items():
        pyro.clear_param_store()
        model = tiny()
        model._pyro_name = "model"
        lifted = poutine.lift(model, prior={parameter: distribution})
        guide = AutoNormal(lifted)
        # What all sequences share counts whole in the weight of each, so that sums differ but for one.
        x = sequences(B if parameter == "model.mu" else 1)
        assert len(guide(x)) == 3
        for judge in (by_likelihood, by_weights):
            same(judge(lifted, guide, x), pyros(lifted, guide, x))


def of_reparam() -> None:
    of_a_reparam(dist.Normal(0.3, 0.8), reparam.LocScaleReparam(0.3))()


def everywhere(name: str) -> bool:
    return all((name, position) in REFUSED for position in POSITIONS)


HANDLED: dict[str, Place] = {
    f"{name} {position}": Place("refused" if (name, position) in REFUSED else "agrees", lambda: None)
    for name in HANDLERS
    for position in POSITIONS
}
FURTHER = {"condition": of_condition, "equalize": of_equalize, "lift": of_lift, "reparam": of_reparam}


# --- reparametrizations


def of_a_reparam(distribution: Any, config: Any) -> Callable[[], None]:
    """A further latent of the law, reparametrized around and inside the model, with an autoguide of the outcome."""

    class Further(TVAE):
        def heads(self, t: Tensor) -> None:
            value = pyro.sample("further", distribution)
            rest = value.reshape(*value.shape[: value.dim() - distribution.event_dim], -1).sum(-1)
            pyro.factor("told", -0.3 * (rest - 1.0).square())

    given = {"further": config} if isinstance(config, Reparam) else config

    def check() -> None:
        x = sequences()
        handler = partial(poutine.reparam, config=given)
        around, within = handler(tiny(Further)), tiny(inside(Further, handler))
        for model in (around, within):
            pyro.clear_param_store()
            guide = AutoNormal(model)
            assert "further" not in guide(x) or len(guide(x)) > 3, "nothing was reparametrized"
            number = pyros(model, guide, x)
            for judge in (by_likelihood, by_weights):
                same(judge(model, guide, x), number)
        same(by_elbo(within, guide, x), number)
        same(by_iwae(within, guide, x), renyis(within, guide, x))

    return check


def of_a_learned_reparam(kind: Any, first: Any, site: str) -> Callable[[], None]:
    """It draws the latents of all sequences at once: of one sequence it counts, of several the sum alone does."""

    def check() -> None:
        for n in (1, B):
            pyro.clear_param_store()
            x = sequences(n)
            learned = first(tiny())
            learned(x)
            handler = kind(learned).reparam
            model = tiny(inside(TVAE, handler))
            guide = AutoNormal(model)
            guide(x)
            number = pyros(model, guide, x)
            same(by_elbo(model, guide, x), number)
            for judge in (by_likelihood, by_weights, by_iwae):
                if n > 1:
                    assert f"site '{site}" in complaint(partial(judge, model, guide, x))
                elif judge is not by_iwae:
                    same(judge(model, guide, x), number)

    return check


def hmm(distribution: Any) -> Any:
    return dist.LinearHMM(distribution, torch.eye(1), distribution, torch.eye(1), distribution, duration=3)


NORMAL, FOUR = dist.Normal(0.3, 0.8), dist.Normal(0.3, 0.8).expand([4]).to_event(1)
STUDENT = dist.StudentT(4.0, torch.zeros(1), 1.0).to_event(1)
RELAXED = dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=torch.tensor([0.0, 1.0, 0.5]))
REPARAM: dict[str, Place] = {
    "AutoReparam": agrees(of_a_reparam(NORMAL, reparam.AutoReparam())),
    "ConjugateReparam": agrees(of_a_reparam(dist.Gamma(2.0, 1.0), reparam.ConjugateReparam(dist.Gamma(3.0, 1.0)))),
    "DiscreteCosineReparam": agrees(of_a_reparam(FOUR, reparam.DiscreteCosineReparam(dim=-1))),
    "GumbelSoftmaxReparam": agrees(of_a_reparam(RELAXED, reparam.GumbelSoftmaxReparam())),
    "HaarReparam": agrees(of_a_reparam(FOUR, reparam.HaarReparam(dim=-1))),
    "LatentStableReparam": agrees(of_a_reparam(dist.Stable(1.5, 0.1, 1.0, 0.0), reparam.LatentStableReparam())),
    "LinearHMMReparam": agrees(
        of_a_reparam(hmm(STUDENT), reparam.LinearHMMReparam(*(reparam.StudentTReparam() for _ in range(3))))
    ),
    "LocScaleReparam": agrees(of_a_reparam(NORMAL, reparam.LocScaleReparam(0.3))),
    "MinimalReparam": agrees(of_a_reparam(dist.Stable(1.5, 0.0, 1.0, 0.0), reparam.MinimalReparam())),
    "NeuTraReparam": agrees(of_a_learned_reparam(reparam.NeuTraReparam, AutoIAFNormal, "z_shared_latent")),
    "ProjectedNormalReparam": agrees(
        of_a_reparam(dist.ProjectedNormal(torch.tensor([0.3, 0.2, 0.1])), reparam.ProjectedNormalReparam())
    ),
    "SplitReparam": agrees(of_a_reparam(FOUR, reparam.SplitReparam([1, 3], -1))),
    "StableReparam": agrees(of_a_reparam(dist.Stable(1.5, 0.1, 1.0, 0.0), reparam.StableReparam())),
    "StructuredReparam": agrees(of_a_learned_reparam(reparam.StructuredReparam, AutoStructured, "z_aux")),
    "StudentTReparam": agrees(of_a_reparam(dist.StudentT(4.0, 0.1, 0.9), reparam.StudentTReparam())),
    "SymmetricStableReparam": agrees(of_a_reparam(dist.Stable(1.5, 0.0, 1.0, 0.0), reparam.SymmetricStableReparam())),
    "TransformReparam": agrees(of_a_reparam(dist.LogNormal(0.1, 0.5), reparam.TransformReparam())),
    "UnitJacobianReparam": agrees(
        of_a_reparam(FOUR, reparam.UnitJacobianReparam(T.Permute(torch.tensor([2, 0, 3, 1]))))
    ),
}


# --- the whole


POUTINE: dict[str, Place] = {
    **{
        name: Place(
            "refused" if everywhere(name) and name not in FURTHER else "agrees", FURTHER.get(name, lambda: None)
        )
        for name in HANDLERS
        if "," not in name
    },
    "NonlocalExit": agrees(of_an_early_end),
    "Trace": agrees(of_a_trace),
    "collapse": no_sense("it needs funsor, which is no dependency, and a latent with a conjugate prior"),
    "enable_validation": agrees(of_validation),
    "get_mask": agrees(of_a_mask_that_is_read),
    "is_validation_enabled": agrees(of_validation),
    "queue": agrees(of_queue),
    "unwrap": agrees(of_unwrapping),
}
MODULES = (poutine, reparam)
PLACES = {
    f"{module.__name__}.{name}": place
    for module, places in zip(MODULES, (POUTINE, REPARAM), strict=True)
    for name, place in places.items()
}


def test_every_public_name_is_placed() -> None:
    assert unplaced(MODULES, PLACES) == []


def test_a_fresh_name_of_pyros_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poutine, "__all__", [*poutine.__all__, "fresh"])
    assert unplaced(MODULES, PLACES) == ["pyro.poutine.fresh"]


@pytest.mark.parametrize("name", sorted({*PLACES} & set().union(*(public(module) for module in MODULES))))
def test_it_stands_where_it_was_placed(name: str) -> None:
    PLACES[name].check()


def test_the_verdicts_are_counted() -> None:
    found = counts(PLACES)
    sys.stdout.write(f"Pyro's handlers and reparametrizations: {found}; in positions: {counts(HANDLED)}\n")
    assert sum(found.values()) == len(PLACES)
    assert sum(counts(HANDLED).values()) == 4 * len(HANDLERS)


# --- copies, which have no name in a module of Pyro's


def test_a_pickled_pair_has_the_number_of_the_first() -> None:
    model = tiny()
    guide = sampled(model)
    number = pyros(model, guide, sequences())
    other, its_guide = pickle.loads(pickle.dumps((model, guide)))
    for judge in (pyros, by_elbo, by_likelihood):
        same(judge(other, its_guide, sequences()), number)
