"""Whatever Pyro counts is counted, and what cannot be is refused: factors, heads, scales, random weights, plates.

Numbers are Pyro's own, from the same draws, but where a false-alarm rate is given.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from placing import (
    SEED,
    B,
    K,
    by_elbo,
    by_iwae,
    by_likelihood,
    by_weights,
    complaint,
    pyros,
    renyis,
    same,
    sampled,
    sequences,
    tiny,
)
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

from pyro_tvae import TVAE, Guide, GuideList, MeanFieldGuide, encode, reconstruct, sample
from pyro_tvae.guides.base import Posterior
from pyro_tvae.inference import (
    ELBO,
    IWAE,
    Annealing,
    DReG,
    MeanFieldELBO,
    annealed_importance,
    log_likelihood,
    log_weights,
)

LABELS = torch.tensor([0, 1, 2, 1])


class Factored(TVAE):
    """A term of one's own."""

    def heads(self, t: Tensor) -> None:
        pyro.factor("told", -0.1 * t.square().sum((-1, -2, -3)))


class Labeled(TVAE):
    """A further observed site with parameters of its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.head = nn.Linear(self.n_latents, 3)

    def heads(self, t: Tensor, label: Tensor | None = None) -> None:
        if label is not None:
            pyro.sample("label", dist.Categorical(logits=self.head(t.flatten(-2).mean(-2))), obs=label)


class Scaled(Labeled):
    """Labels that count three times, as in semi-supervised recipes."""

    def heads(self, t: Tensor, label: Tensor | None = None) -> None:
        with poutine.scale(scale=3.0):
            super().heads(t, label)


class Masked(Labeled):
    """Labels that not all sequences have."""

    def heads(self, t: Tensor, label: Tensor | None = None) -> None:
        if label is not None:
            logits = self.head(t.flatten(-2).mean(-2))
            distribution = dist.Categorical(logits=logits).mask(label >= 0)
            pyro.sample("label", distribution, obs=label.clamp(min=0))


CASES: dict[str, tuple[type[TVAE], dict[str, Tensor]]] = {
    "factor": (Factored, {}),
    "label": (Labeled, {"label": LABELS}),
    "no label": (Labeled, {}),
    "label, scaled": (Scaled, {"label": LABELS}),
    "label, masked": (Masked, {"label": torch.tensor([0, -1, 2, -1])}),
}


@pytest.mark.parametrize("name", CASES)
def test_terms_of_ones_own_count_everywhere(name: str) -> None:
    kind, covariates = CASES[name]
    model, x = tiny(kind), sequences()
    guide = sampled(model)
    number = pyros(model, guide, x, **covariates)
    for judge in (by_elbo, by_likelihood, by_weights):
        same(judge(model, guide, x, **covariates), number)
    pyro.set_rng_seed(SEED)
    bound = IWAE(model, guide, K)(x, **covariates).objective
    found = log_likelihood(model, guide, x, K, seed=SEED, covariates=covariates)
    torch.testing.assert_close(bound.detach().double(), found.iwae, rtol=1e-5, atol=1e-4)
    pyro.set_rng_seed(SEED)
    same(DReG(model, guide, K)(x, **covariates).objective.sum(), bound.sum())
    if name != "no label":
        assert abs(by_elbo(tiny(), guide, x) - number) > 0.5  # small, beside a dropped term


@pytest.mark.parametrize("objective", [ELBO, IWAE, DReG, MeanFieldELBO])
def test_a_head_is_trained_as_pyro_trains_it(objective: Any) -> None:
    """With one particle every objective's gradient of the head is Pyro's, from the same draw."""
    model, x = tiny(Labeled), sequences()
    guide = MeanFieldGuide(model, initial_log_variance=0.0)
    pyro.set_rng_seed(SEED)
    objective(model, guide)(x, label=LABELS).objective.sum().backward()
    assert model.head.weight.grad is not None
    assert model.head.weight.grad.abs().max() > 1e-3
    pyro.set_rng_seed(SEED)
    loss = Trace_ELBO().differentiable_loss(model, guide, x, label=LABELS)
    (expected,) = torch.autograd.grad(-loss, model.head.weight)
    torch.testing.assert_close(model.head.weight.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrap", ["scale", "mask", "condition"])
def test_a_model_in_a_handler_is_judged(wrap: str) -> None:
    """Conditioned on labels is judged as given the labels."""

    class Open(Labeled):
        def heads(self, t: Tensor) -> None:  # type: ignore[override]
            pyro.sample("label", dist.Categorical(logits=self.head(t.flatten(-2).mean(-2))))

    model, x = tiny(Open), sequences()
    guide = sampled(model)
    inner = pyro.condition(model, data={"label": LABELS})
    handled = {
        "scale": poutine.scale(inner, scale=0.3),
        "mask": poutine.mask(inner, mask=torch.tensor([True, False, True, True])),
        "condition": inner,
    }[wrap]
    for judge in (by_likelihood, by_weights):
        same(judge(handled, guide, x), pyros(handled, guide, x))
        assert "'label' that the guide lacks" in complaint(partial(judge, model, guide, x))


# --- covariates


def test_a_covariate_that_nobody_takes_is_refused() -> None:
    model, x = tiny(Labeled), sequences()
    guide = sampled(model)
    for judge in (by_likelihood, by_weights):
        assert "covariate 'lable'" in complaint(partial(judge, model, guide, x, lable=LABELS))
        assert "one entry for each of 4 sequences" in complaint(partial(judge, model, guide, x, label=LABELS[:3]))
    for objective in (ELBO, IWAE, DReG):
        assert "'lable'" in complaint(lambda objective=objective: objective(model, guide)(x, lable=LABELS))


class Conditional(MeanFieldGuide):
    """A guide that is told the labels."""

    def posterior(self, x: Tensor, observed: Tensor | None = None, *, label: Tensor | None = None) -> Posterior:
        shift = 0.0 if label is None else label.reshape(-1, 1, 1, 1).to(x)
        q = dict(super().posterior(x, observed))
        return {site: dist.Normal(distribution.mean + shift, 1.0) for site, distribution in q.items()}  # type: ignore[union-attr]


def test_covariates_reach_the_guide_and_batches_of_it() -> None:
    model, x = tiny(Labeled), sequences()
    guide = sampled(model, Conditional)
    number = pyros(model, guide, x, label=LABELS)
    for judge in (by_elbo, by_likelihood, by_weights):
        same(judge(model, guide, x, label=LABELS), number)
    one = log_likelihood(model, guide, x, 2000, covariates={"label": LABELS}, batch_size=1)
    all_ = log_likelihood(model, guide, x, 2000, covariates={"label": LABELS}, seed=9)
    # Six standard errors of the difference, on four sequences: a false alarm once in 10^8 seeds.
    error = (one.standard_error.square() + all_.standard_error.square()).sqrt()
    assert ((one.iwae - all_.iwae).abs() < 6 * error).all()
    t = [encode(model, guide, x, covariates=given) for given in (None, {"label": LABELS})]
    assert torch.equal(t[0][0], t[1][0])  # its label is 0
    assert not torch.allclose(t[0][1:], t[1][1:])


# --- random weights


def bayesian() -> tuple[TVAE, GuideList]:
    """A random decoder and μ, with a guide for them beside the amortised one."""
    model = tiny()
    to_pyro_module_(model.decoder)
    for part in model.decoder.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            setattr(part, name, PyroSample(dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())))
    del model.mu
    model.mu = PyroSample(dist.Normal(1.0, 0.1))
    guide = GuideList(sampled(model), AutoNormal(poutine.block(model, expose=list(model.weight_sites()))))
    guide(sequences())
    return model, guide


@pytest.mark.parametrize("k", [1, K])
def test_a_bayesian_decoder_counts_once_for_all_sequences(k: int) -> None:
    model, guide = bayesian()
    x = sequences()
    number = pyros(model, guide, x, k=k)
    same(by_elbo(model, guide, x, k=k), number)
    if k == 1:
        # The plate of particles changes nothing, in Pyro's estimate either.
        pyro.set_rng_seed(SEED)
        with torch.no_grad():
            same(-Trace_ELBO().loss(model, guide, x), number)


def test_a_bayesian_decoder_is_judged_sequence_by_sequence() -> None:
    model, guide = bayesian()
    x = sequences()
    words = "is drawn once for all sequences"
    assert words in complaint(partial(by_iwae, model, guide, x))
    assert "whose parameters cannot be held" in complaint(partial(by_iwae, model, guide, x, DReG))
    same(by_likelihood(model, guide, x[:1]), pyros(model, guide, x[:1]))
    same(by_iwae(model, guide, x[:1]), renyis(model, guide, x[:1]))
    together = log_likelihood(model, guide, x, 4000)
    for i in range(B):
        alone = log_likelihood(model, guide, x[i : i + 1], 4000, seed=i + 1)
        # Mean log-weights, whose standard deviation is estimated from draws: 6 errors, one in 10^8 seeds.
        spread = log_weights(model, guide, x[i : i + 1], 1000, seed=9).std()
        assert abs(float(alone.elbo - together.elbo[i])) < 6 * float(spread) * (2 / 4000) ** 0.5


def test_a_bayesian_model_is_used_like_another() -> None:
    model, guide = bayesian()
    x = sequences()
    assert encode(model, guide, x).shape == (B, 3, 1, 3)
    assert reconstruct(model, guide, x).shape == x.shape
    assert sample(model, 3, mean=True).shape == (3, 3, 1, 2, 2)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    svi.step(x)
    assert all(not torch.equal(old, new) for old, new in zip(before, guide.parameters(), strict=True))


def test_guides_side_by_side_train_on_both_roads() -> None:
    """Each half of the latents by a guide of its own; Pyro's number, and every parameter moved by SVI and by ours."""

    class Half(MeanFieldGuide):
        site = "z"

        def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
            return {self.site: super().posterior(x, observed)[self.site]}  # type: ignore[index]

    class Other(Half):
        site = "u"

    model, x = tiny(), sequences()
    for guide in (
        GuideList(sampled(model, Half), sampled(model, Other)),
        GuideList(AutoNormal(poutine.block(model, expose=["z"])), sampled(model, Other)),
    ):
        guide(x)
        number = pyros(model, guide, x)
        for judge in (by_elbo, by_likelihood, by_weights):
            same(judge(model, guide, x), number)
        same(by_iwae(model, guide, x), renyis(model, guide, x))
        learning = [value for name, value in guide.named_parameters() if "_encoder" not in name]
        learning += [value for part in guide.guides if isinstance(part, Half) for value in used(part)]
        for step in (
            lambda guide=guide: SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO()).step(x),
            lambda guide=guide, learning=learning: descend(ELBO(model, guide), learning, x),
        ):
            before = [value.detach().clone() for value in learning]
            step()
            assert learning
            assert all(not torch.equal(old, new) for old, new in zip(before, learning, strict=True))
    guide = GuideList(sampled(model, Half), sampled(model, Other))
    same(by_iwae(model, guide, x, DReG), renyis(model, guide, x))


def used(part: Any) -> list[Tensor]:
    return list((part.z_encoder if part.site == "z" else part.u_encoder).parameters())


def descend(objective: ELBO, parameters: list[Tensor], x: Tensor) -> None:
    gradients = torch.autograd.grad(-objective(x).elbo.sum(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 0.1 * gradient


def test_a_guide_without_the_random_weights_is_refused() -> None:
    model, guide = bayesian()
    latents = guide.guides[0]
    for judge in (by_elbo, by_likelihood, by_iwae, reconstruct):
        assert "that the guide lacks" in complaint(partial(judge, model, latents, sequences()))


def test_what_all_sequences_share_counts_once_in_an_epoch() -> None:
    """Batches of an epoch, each with N: their KLs of the shared sites add up to one. From means over 2,000 draws."""
    model = tiny()
    del model.mu
    model.mu = PyroSample(dist.Normal(1.0, 0.1))
    shared = AutoNormal(poutine.block(model, expose=list(model.weight_sites())), init_scale=0.3)
    guide = GuideList(sampled(model), shared)
    x = sequences()
    guide(x)
    q = dist.Normal(next(iter(shared.locs.buffers()), next(shared.locs.parameters())).detach(), 0.3)
    kl = torch.distributions.kl_divergence(q, dist.Normal(1.0, 0.1))
    with torch.no_grad():
        found = {}
        for n in (2, B):
            pyro.set_rng_seed(SEED)
            terms = ELBO(model, guide, 2000, dataset_size=n)(x[:2])
            found[n] = float(terms.kl.sum())
    # The same draws: the rest of the KL cancels, a half of the shared one is left (its error: 0.03 of 3.5 nats, six
    # of which once in 10^8 seeds).
    assert found[2] - found[B] == pytest.approx(float(kl) / 2, abs=0.06 * float(kl))


class Shared(TVAE):
    """Weights that are sampled by hand, and multiplied by what takes no particles."""

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        self.drawn = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        return super().forward(*arguments, **options)

    def heads(self, t: Tensor) -> None:
        pyro.factor("told", nn.functional.linear(t, self.drawn).sum((-1, -2, -3)))


def test_weights_that_take_no_particles_are_named() -> None:
    model, x = tiny(Shared), sequences()
    guide = GuideList(sampled(model), AutoNormal(poutine.block(model, expose=["w"])))
    guide(x)
    for judge in (by_elbo, by_likelihood):
        assert "several particles of site 'w'" in complaint(partial(judge, model, guide, x))
    pyro.set_rng_seed(SEED)
    number = -Trace_ELBO().loss(model, guide, x)
    same(by_elbo(model, guide, x, k=1), number)


# --- plates


class Pooled(MeanFieldGuide):
    """The same posterior for every sequence."""

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        rows = x.shape[-5] if self.expanded else 1
        distribution = dist.Normal(0.2, 0.8).expand([rows, *(self.n_frames, self.n_capsules, self.capsule_dim)])
        return {"z": distribution, "u": distribution}

    expanded = False


def test_a_posterior_with_a_batch_of_one_is_every_sequences() -> None:
    model, x = tiny(), sequences()
    guide = sampled(model, Pooled)
    found = []
    for guide.expanded in (False, True):
        number = pyros(model, guide, x)
        for judge in (by_elbo, by_likelihood, by_weights):
            same(judge(model, guide, x), number)
        same(by_iwae(model, guide, x), renyis(model, guide, x))
        found.append((number, encode(model, guide, x)))
    same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("n", [1, 8])
def test_an_autoguide_of_other_sequences_is_refused(n: int) -> None:
    model = tiny()
    guide = AutoNormal(model)
    guide(sequences(n))
    for judge in (by_elbo, by_likelihood, by_weights, by_iwae, encode, reconstruct):
        said = complaint(partial(judge, model, guide, sequences()))
        assert f"has {n} entries, x has 4 sequences" in said


@pytest.mark.parametrize("k", [1, K])
def test_a_term_in_a_plate_of_ones_own_is_summed(k: int) -> None:
    class Plated(TVAE):
        def heads(self, t: Tensor) -> None:
            with pyro.plate("sensors", 5, dim=-3):
                pyro.sample("seen", dist.Normal(t.sum((-1, -2, -3)), 1.0), obs=torch.arange(5.0).reshape(5, 1, 1))

    model, x = tiny(Plated), sequences()
    guide = sampled(model)
    pyro.set_rng_seed(SEED)
    with torch.no_grad():
        number = -Trace_ELBO(num_particles=k, vectorize_particles=True, max_plate_nesting=3).loss(model, guide, x)
    same(by_elbo(model, guide, x, k=k), number)
    if k > 1:
        for judge in (by_likelihood, by_weights):
            same(judge(model, guide, x), number)


# --- objectives and estimators that cannot


def autoguided() -> tuple[TVAE, AutoNormal]:
    model = tiny()
    guide = AutoNormal(model, init_scale=0.8)
    guide(sequences())
    return model, guide


def test_doubly_reparametrised_gradients_of_an_autoguide_average_to_iwaes() -> None:
    """Means of 400 gradients of a location: six standard errors, on 36 entries, a false alarm once in 10^7 seeds."""
    model, guide = autoguided()
    x, site = sequences(), guide.locs.z_unconstrained
    with torch.no_grad():
        site += 1.0  # where the gradient is not near zero
    means, errors = [], []
    for objective in (IWAE, DReG):
        judged = objective(model, guide, 3)
        draws = []
        for _ in range(400):
            (gradient,) = torch.autograd.grad(judged(x).objective.sum(), site)
            draws.append(gradient)
        stacked = torch.stack(draws)
        means.append(stacked.mean(0))
        errors.append(stacked.std(0) / 400**0.5)
    assert ((means[0] - means[1]).abs() < 6 * (errors[0].square() + errors[1].square()).sqrt()).all()
    assert (errors[1] < 0.2 * means[1].abs().max()).all()


def test_the_closed_form_refuses_a_program() -> None:
    model, guide = autoguided()
    for program in (guide, lambda x: None):
        assert "is a program, whose distributions cannot be looked at" in complaint(
            lambda p=program: MeanFieldELBO(model, p)
        )


@pytest.mark.parametrize("kind", [Factored, Scaled])
def test_estimators_that_know_the_plain_model_alone_refuse_another(kind: type[TVAE]) -> None:
    model, x = tiny(kind), sequences()
    guide = MeanFieldGuide(model)
    if kind is Factored:
        assert "a further site 'told'" in complaint(
            lambda: annealed_importance(model, guide, x, annealing=Annealing(2))
        )
        with pytest.warns(UserWarning, match="NOT a lower"):
            assert "a further site 'told'" in complaint(lambda: log_likelihood(model, guide, x, 2, estimator="frame"))
    wrapped = poutine.scale(model, scale=0.5)
    with pytest.warns(UserWarning, match="NOT a lower"):
        assert "frame" in complaint(lambda: log_likelihood(wrapped, guide, x, 2, estimator="frame"))


# --- the store


@pytest.mark.parametrize("pair", [lambda: (tiny(), None), bayesian, autoguided])
def test_judging_leaves_the_store_and_the_models_memory_alone(pair: Callable[[], tuple[TVAE, Any]]) -> None:
    model, guide = pair()
    guide = MeanFieldGuide(model) if guide is None else guide
    x = sequences()
    known = set(pyro.get_param_store().keys())
    log_likelihood(model, guide, x, 3)
    log_likelihood(poutine.scale(model, scale=0.5), guide, x, 3)
    encode(model, guide, x)
    assert set(pyro.get_param_store().keys()) == known


def test_a_judged_model_leaves_the_memory() -> None:
    model = tiny()
    guide = MeanFieldGuide(model)
    for judged in (model, poutine.scale(model, scale=0.5)):
        log_likelihood(judged, guide, sequences(), 3)
    ELBO(model, guide)(sequences())
    gone = weakref.ref(model)
    del model, guide, judged
    gc.collect()
    assert gone() is None


# --- a forward of one's own


def test_a_forward_of_ones_own_runs_as_pyro_runs_it() -> None:
    """What it asks of the parameters by Pyro's handlers is answered; the package's own forward asks nothing."""

    class Lifting(TVAE):
        def forward(self, *arguments: Any, **options: Any) -> Tensor:
            with poutine.lift(prior=dist.Normal(0.0, 1.0)):
                return super().forward(*arguments, **options)

    class LiftingGuide(MeanFieldGuide):
        def forward(self, *arguments: Any, **options: Any) -> dict[str, Tensor]:
            with poutine.lift(prior=dist.Normal(0.0, 1.0)):
                return super().forward(*arguments, **options)

    x = sequences()
    model: TVAE = tiny(Lifting)
    guide: Guide = sampled(model, LiftingGuide)
    for judge in (by_elbo, by_likelihood):
        assert "that the guide lacks" in complaint(partial(judge, model, sampled(model), x))
        assert "that the model lacks" in complaint(partial(judge, tiny(), guide, x))
