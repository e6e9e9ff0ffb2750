"""Guides that pool, couple or refine: exact densities, equivariance, unseen frames, and what does not fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_tvae import (
    TVAE,
    AutoregressiveLatent,
    CapsuleRoll,
    ConditionalGuide,
    ConditionalOrbitGuide,
    CovarianceGuide,
    FlowGuide,
    GammaEnergy,
    GammaGuide,
    GaussianEnergy,
    Guide,
    Matrix,
    MeanFieldGuide,
    NoTopography,
    OrbitCovarianceGuide,
    OrbitEnergy,
    OrbitGuide,
    RadialGuide,
    SemiAmortizedGuide,
    SequenceGuide,
    SharedTrunkGuide,
    Stationary,
    Topography,
    Torus,
    encode,
    reconstruct,
    save,
)
from pyro_tvae.inference import ELBO, Annealing, annealed_importance, fit, log_likelihood, log_weights, nuts, to_arviz
from pyro_tvae.inference.objectives import divergence
from pyro_tvae.networks import last_linear
from pyro_tvae.posteriors import JOINT, moments, standalone
from pyro_tvae.topographies.orbits import spread

FRAME, S, C, D = (1, 2, 3), 4, 2, 4
# How q is made of the encoders' answers; the rest is common to them all.
GUIDES: dict[str, Callable[..., Guide]] = {
    "mean field": MeanFieldGuide,
    "shared trunk": SharedTrunkGuide,
    "sequence": SequenceGuide,
    # Beside Gaussian energies there is no Gamma: the cases of that prior take the mean-field guide's place twice.
    "gamma": lambda model, **o: (GammaGuide if isinstance(model.prior, GammaEnergy) else MeanFieldGuide)(model, **o),
    "low rank": lambda model, **o: CovarianceGuide(model, rank=3, **o),
    "full covariance": lambda model, **o: CovarianceGuide(model, rank=None, **o),
    "conditional": ConditionalGuide,
    "flow": FlowGuide,
    "semi-amortised": lambda model, **o: SemiAmortizedGuide(model, steps=3, **o),
    "semi-amortised, pooled": lambda model, **o: SemiAmortizedGuide(model, steps=3, pooled=True, **o),
}
ALL = pytest.mark.parametrize("name", GUIDES)
COUPLED = pytest.mark.parametrize("name", ["low rank", "full covariance", "conditional", "flow"])
PRIORS = {"gaussian": GaussianEnergy, "gamma": GammaEnergy}
BOTH = pytest.mark.parametrize("prior", PRIORS)


def small(prior: str = "gaussian", topography: Topography | None = None) -> TVAE:
    return TVAE(FRAME, S, C, D, topography or CapsuleRoll(3, 1), prior=PRIORS[prior](), mu=2.0)


def undecided(guide: Guide) -> Guide:
    """Weights moved at random, so that laws are far from the prior, and couplings and factors far from zero."""
    with torch.no_grad():
        for parameter in guide.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 4
            parameter.add_(torch.randn_like(parameter) * 0.4 * fan_in**-0.5)
        if isinstance(guide, CovarianceGuide):
            guide.gain.fill_(1.0)
    return guide


def pair(name: str, prior: str = "gaussian", topography: Topography | None = None) -> tuple[TVAE, Guide, Tensor]:
    model = small(prior, topography).double()
    guide = undecided(GUIDES[name](model, initial_log_variance=-1.0).double())
    return model, guide, torch.rand(3, S, *FRAME, dtype=torch.float64)


# --- densities -------------------------------------------------------------------------------------------------------


@ALL
@BOTH
def test_every_objective_and_the_weights_estimate_one_bound(name: str, prior: str) -> None:
    """Pyro's two ELBOs, ours and the mean log-weight count every density once."""
    model, guide, x = pair(name, prior)
    with torch.no_grad():
        objective, options = ELBO(model, guide, 50), {"vectorize_particles": True, "max_plate_nesting": 1}
        pyros = {"Trace_ELBO": Trace_ELBO(50, **options), "TraceMeanField_ELBO": TraceMeanField_ELBO(50, **options)}
        found = {
            "ours": torch.stack([objective(x).elbo.sum() for _ in range(30)]),
            **{one: torch.tensor([-loss.loss(model, guide, x) for _ in range(30)]) for one, loss in pyros.items()},
            "TraceMeanField_ELBO": torch.tensor(
                [-TraceMeanField_ELBO(**options).loss(model, guide, x) for _ in range(30)]
            ),
            "log weights": log_weights(model, guide, x, 1500).sum(-1).reshape(30, 50).mean(-1),
        }
    for one in ("Trace_ELBO", "TraceMeanField_ELBO", "log weights"):
        error = ((found["ours"].var() + found[one].var()) / 30).sqrt()
        # With 29 degrees of freedom and 54 comparisons six standard errors are a false alarm in 10,000 seeds.
        assert abs(float(found["ours"].mean() - found[one].mean())) < 6 * float(error) + 1e-9, one
        assert float(error) < 0.03 * abs(float(found["ours"].mean()))


def unwrapped(q: Any) -> tuple[Any, list[Any]]:
    """The innermost law of a transformed one, and all the transforms in the order they act."""
    transforms: list[Any] = []
    while hasattr(q, "transforms"):
        q, transforms = q.base_dist, [*q.transforms, *transforms]
    return q, transforms


@COUPLED
@BOTH
def test_log_q_is_the_density_of_what_is_drawn(name: str, prior: str) -> None:
    """Against a twin by brute force: white noise pushed through the guide, its Jacobian by autograd."""
    model, guide, x = pair(name, prior)
    assert model.prior is not None
    x, n = x[:1], S * C * D
    site = model.prior.site
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    log_q = sum(node["log_prob"].sum() for node in trace.nodes.values() if node["type"] == "sample")
    z, u = (trace.nodes[one]["value"].detach() for one in ("z", site))
    posterior = guide.posterior(x)

    def push(noise: Tensor) -> Tensor:
        """(2 n,) white noise to (z, u)."""
        if name == "conditional":
            q, given = posterior["z"], posterior[site]
            first = q.mean + q.stddev * noise[:n].reshape(1, S, C, D)
            distribution = given({"z": first})
            second = distribution.loc + distribution.scale * noise[n:].reshape(1, S, C, D)
            return torch.cat([first.flatten(), (second.exp() if model.prior.positive else second).flatten()])
        base, transforms = unwrapped(posterior[JOINT])
        value = noise.reshape(1, S, 2, C, D)
        if name != "flow":
            value = base.loc + (torch.linalg.cholesky(base.covariance_matrix) @ value.reshape(1, S, -1, 1)).squeeze(-1)
        for transform in transforms:
            value = transform(value)
        return torch.cat([value[:, :, 0].flatten(), value[:, :, 1].flatten()])

    # Which noise makes this draw: found backwards, and checked by pushing it.
    if name == "conditional":
        first = posterior["z"]
        distribution = posterior[site]({"z": z})
        free = u.log() if model.prior.positive else u
        noise = torch.cat(
            [((z - first.mean) / first.stddev).flatten(), ((free - distribution.loc) / distribution.scale).flatten()]
        )
    else:
        value = torch.stack([z, u], 2)
        base, transforms = unwrapped(posterior[JOINT])
        for transform in reversed(transforms):
            value = transform.inv(value)
        if name != "flow":
            root = torch.linalg.cholesky(base.covariance_matrix)
            value = torch.linalg.solve_triangular(root, (value - base.loc).unsqueeze(-1), upper=False)
        noise = value.flatten()
    noise = noise.detach()
    torch.testing.assert_close(push(noise), torch.cat([z.flatten(), u.flatten()]), rtol=1e-8, atol=1e-8)
    jacobian = torch.autograd.functional.jacobian(push, noise)
    expected = dist.Normal(0, 1).log_prob(noise).sum() - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_q.detach(), expected, rtol=1e-8, atol=1e-6)


@BOTH
def test_the_flow_inverts(prior: str) -> None:
    _model, guide, x = pair("flow", prior)
    q = guide.posterior(x)[JOINT]
    value = q.rsample(torch.Size([5]))
    # A copy is not in the cache: its density goes through the inverse.
    torch.testing.assert_close(q.log_prob(value.clone()), q.log_prob(value), rtol=1e-9, atol=1e-8)


@COUPLED
@BOTH
def test_densities_integrate_to_one(name: str, prior: str) -> None:
    """``E_q[p(z, u) / q(z, u)] = 1``, by importance sampling in a model so small that its weights behave.

    The estimate's own standard error is its scale: five of them, on eight tests, is a false alarm in 100,000 seeds.
    """
    model = TVAE((1, 1, 1), 2, 1, 1, CapsuleRoll(1, 0), prior=PRIORS[prior](), mu=2.0).double()
    guide = GUIDES[name](model, initial_log_variance=1.0).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        x = torch.rand(1, 2, 1, 1, 1, dtype=torch.float64)
        with pyro.plate("particles", 200_000, dim=-2):
            trace = poutine.trace(guide).get_trace(x)
        trace.compute_log_prob()
        log_q = sum(
            node["log_prob"]
            for node in trace.nodes.values()
            if "log_prob" in node and node["fn"] is not None and node["name"] not in ("particles", "sequence")
        )
        log_p = sum(
            distribution.log_prob(trace.nodes[site]["value"])
            for site, distribution in model.prior_distributions().items()
        )
        weight = (log_p - log_q).exp()
    error = float(weight.std()) / len(weight) ** 0.5
    assert error < 0.05
    assert abs(float(weight.mean()) - 1) < 5 * error


@COUPLED
def test_sites_of_a_frame_depend_on_each_other(name: str) -> None:
    """Which is what these guides are for: the mean-field guide is the control."""
    for one, coupled in ((name, True), ("mean field", False)):
        _model, guide, x = pair(one)
        with torch.no_grad(), pyro.plate("particles", 4000, dim=-2):
            values = guide(x[:1])
        z, u = (values[site].flatten(1) for site in ("z", "u"))
        both = torch.corrcoef(torch.cat([z, u], 1).T)[: z.shape[1], z.shape[1] :]
        # 1,024 correlations of 4,000 draws, error 0.016: chance keeps them below 0.1.
        assert (float(both.abs().max()) > 0.15) == coupled, one


# --- what users see --------------------------------------------------------------------------------------------------


@ALL
@BOTH
def test_every_parameter_trains_and_every_judge_runs(name: str, prior: str) -> None:
    model = small(prior)
    guide = GUIDES[name](model, initial_log_variance=-1.0)
    x = torch.rand(8, S, *FRAME)
    objective = ELBO(model, guide, num_particles=2)
    (-objective(x).elbo.sum()).backward()
    for label, parameter in objective.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label
        assert parameter.grad.abs().max() > 0, label
    assert all(not label.startswith("guide._model") for label, _ in objective.named_parameters())
    x = x[:2]
    assert encode(model, guide, x).shape == (2, S, C, D)
    assert reconstruct(model, guide, x).shape == x.shape
    assert torch.isfinite(log_likelihood(model, guide, x, 10).iwae).all()
    assert torch.isfinite(divergence(model, guide.posterior(x))).all()
    data = to_arviz(model, guide, x, draws=3)
    assert set(data.posterior) == {"z", model.prior.site, "v", "t"}  # type: ignore[union-attr]
    result = nuts(model, x, init=guide, num_samples=4, warmup_steps=4, num_chains=2, max_tree_depth=2)
    assert result.draws["z"].shape == (2, 4, 2, S, C, D)
    if guide.mean_field:
        assert annealed_importance(model, guide, x, annealing=Annealing(2, 3)).log_p.shape == (2,)
    else:
        with pytest.raises(ValueError, match="annealing needs a mean-field guide"):
            annealed_importance(model, guide, x, annealing=Annealing(2, 3))
        with (
            pytest.raises(ValueError, match="weights per frame need"),
            pytest.warns(UserWarning, match="per frame|frame by frame"),
        ):
            log_likelihood(model, guide, x, 4, estimator="frame")


@ALL
@BOTH
def test_sampled_divergences_agree_with_the_closed_form_or_with_each_other(name: str, prior: str) -> None:
    model, guide, x = pair(name, prior)
    with torch.no_grad():
        posterior = guide.posterior(x)
        expected = divergence(model, posterior, num_particles=4000)
        guide.mean_field = False
        draws = torch.stack([ELBO(model, guide, 50)(x).kl for _ in range(80)])
    error = draws.std(0) / 80**0.5 * (1 if standalone(posterior) else 2**0.5)
    # Six standard errors of means of 80, three sequences, 18 tests: a false alarm in 100,000 seeds.
    assert ((draws.mean(0) - expected).abs() < 6 * error).all()
    assert (error < 0.05 * expected).all()


@ALL
def test_particles_cost_one_pass_of_the_encoders(name: str) -> None:
    _model, guide, x = pair(name)
    passes: list[int] = []
    for label, module in guide.named_modules():
        if label.endswith("encoder"):
            module.register_forward_hook(lambda *_: passes.append(1))
    guide.posterior(x)
    once = len(passes)
    with pyro.plate("particles", 7, dim=-2):
        drawn = guide(x)
    assert drawn["z"].shape == (7, 3, S, C, D)
    assert 0 < once == len(passes) - once


@ALL
def test_the_point_estimate_is_the_posterior_mean(name: str) -> None:
    model, guide, x = pair(name)
    with torch.no_grad():
        posterior = guide.posterior(x)
        with pyro.plate("particles", 20_000, dim=-2):
            values = guide.draw(posterior)
        for site, known in moments(posterior).items():
            spread = values[site].std(0)
            # The coupled guides' own moments come from 64 draws: errors of an eighth of the spread, six of them.
            assert ((known.mean - values[site].mean(0)).abs() < 6 / 8 * spread).all()
        before = torch.random.get_rng_state()
        assert torch.equal(encode(model, guide, x), encode(model, guide, x))
        assert torch.equal(torch.random.get_rng_state(), before)


# --- unseen frames ---------------------------------------------------------------------------------------------------

MASKS = {
    "one for all": torch.tensor([True, True, False, False]),
    "one each": torch.tensor([[True, True, False, False], [False, True, True, True], [True, False, False, True]]),
    "nothing": torch.zeros(S, dtype=torch.bool),
}


@ALL
@BOTH
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_unseen_pixels_have_no_influence(name: str, prior: str, mask: Tensor) -> None:
    _model, guide, x = pair(name, prior)
    hidden = torch.where(mask.expand(3, S)[..., None, None, None], x, math.nan)
    drawn = []
    for frames in (x, hidden):
        pyro.set_rng_seed(5)
        drawn.append(guide(frames, mask))
    for site, value in drawn[0].items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, drawn[1][site])
    # Control: with the frames seen, the same change shows.
    pyro.set_rng_seed(5)
    assert not torch.equal(guide(torch.rand_like(x))["z"], guide(x)["z"])


@ALL
def test_gradients_survive_missing_values(name: str) -> None:
    _model, guide, x = pair(name)
    x = torch.where(MASKS["one each"][..., None, None, None], x, math.nan)
    drawn = guide(x, MASKS["one each"])
    (drawn["z"].sum() + drawn["u"].square().sum()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in guide.parameters())


def test_the_sequence_guide_infers_unseen_frames_from_the_others() -> None:
    model, guide, x = pair("sequence")
    mask = torch.tensor([True, False, True, True])
    one, two = guide.posterior(x, mask)["u"], guide.posterior(torch.rand_like(x), mask)["u"]
    assert not torch.equal(one.mean[:, 1], two.mean[:, 1])
    plain = MeanFieldGuide(model).double()
    assert torch.equal(plain.posterior(x, mask)["u"].mean[:, 1], torch.zeros(3, C, D).double())


# --- equivariance ----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("step", [1, -2])
@pytest.mark.parametrize(
    "topography",
    [lambda: CapsuleRoll(4, 0), lambda: CapsuleRoll(3, 1), lambda: Stationary((3, 2)), lambda: Torus((2, 2), (2, 2))],
    ids=["orbits", "roll", "stationary", "torus"],
)
@pytest.mark.parametrize("name", ["sequence", "mean field"])
def test_shifting_the_frames_shifts_the_posterior(
    name: str, topography: Callable[[], Topography], step: int, prior: str
) -> None:
    model, guide, x = pair(name, prior, topography())
    one, two = guide.posterior(x), guide.posterior(x.roll(step, dims=1))
    for site in one:
        for moment in ("mean", "stddev"):
            before, after = getattr(one[site], moment), getattr(two[site], moment)
            torch.testing.assert_close(after, before.roll(step, dims=1), rtol=1e-10, atol=1e-10)
    v, shifted = (encode(model, guide, frames) for frames in (x, x.roll(step, dims=1)))
    torch.testing.assert_close(shifted, v.roll(step, dims=1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "reaches"), [("sequence", True), ("mean field", False)])
def test_evidence_flows_through_the_topography_and_nowhere_else(name: str, reaches: bool) -> None:
    """A change in frame 1 is felt in the frames that share energy with it: 0 and 2 for kernel 3, 1 alone on a torus."""
    for topography, felt in ((CapsuleRoll(3, 0), {0, 1, 2}), (Torus((2, 2), (2, 2)), {1}), (NoTopography(), {1})):
        model = TVAE(FRAME, 5, C, D, topography).double()
        guide = undecided(GUIDES[name](model).double())
        x = torch.rand(2, 5, *FRAME, dtype=torch.float64)
        other = x.clone()
        other[:, 1] = torch.rand(2, *FRAME)
        change = guide.posterior(x)["z"].mean != guide.posterior(other)["z"].mean
        assert {frame for frame in range(5) if change[:, frame].any()} == (felt if reaches else {1})


def test_the_pool_is_the_transposed_matrix() -> None:
    w = torch.rand(S * D, S * D)
    guide = SequenceGuide(TVAE(FRAME, S, C, D, Matrix(w)))
    votes = torch.rand(2, S, C, D)
    evidence = guide.transposed.sum(guide.w, votes)
    for n in range(2):
        for c in range(C):
            torch.testing.assert_close(evidence[n, :, c].flatten(), w.T @ votes[n, :, c].flatten())


@pytest.mark.parametrize("mask", [None, *MASKS.values()], ids=["all", *MASKS])
def test_z_given_the_orbits_energies(mask: Tensor | None) -> None:
    model = orbits().double()
    guide = undecided(ConditionalOrbitGuide(model, initial_log_variance=-1.0).double())
    x = torch.rand(2, S, *FRAME, dtype=torch.float64)
    mask = None if mask is None else mask[..., :2, :] if mask.dim() == 2 else mask
    hidden = x if mask is None else torch.where(mask.expand(2, S)[..., None, None, None], x, math.nan)
    trace = poutine.trace(guide).get_trace(hidden, mask)
    trace.compute_log_prob()
    posterior = guide.posterior(x, mask)
    # By hand: e from its law, z from a law that knows e.
    e, z = trace.nodes["e"]["value"], trace.nodes["z"]["value"]
    distribution = posterior["z"]({"e": e})
    torch.testing.assert_close(trace.nodes["e"]["log_prob"], posterior["e"].log_prob(e).sum((-1, -2)))
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], distribution.log_prob(z).sum((-1, -2, -3)))
    other = posterior["z"]({"e": 2 * e})
    moved = distribution.mean.ne(other.mean).flatten(2).any(-1)
    assert torch.equal(moved, torch.ones(2, S).bool() if mask is None else mask.expand(2, S))
    # Each orbit moves the z of its own frames and positions through one network: member by member, by loops.
    standard = (e.log() - posterior["e"].loc) / posterior["e"].scale
    drawn = spread(standard, model.prior.index)
    for frame in range(S):
        for p in range(D):
            assert torch.equal(drawn[:, frame, :, p], standard[:, :, model.prior.index[frame, p]])
    assert torch.isfinite(encode(model, guide, hidden, mask)).all()


@pytest.mark.parametrize("mask", [None, *MASKS.values()], ids=["all", *MASKS])
def test_the_votes_of_frames_with_covariance_add_up(mask: Tensor | None) -> None:
    """Precision and location of log e by loops over frames and positions, and their Normal by torch's own."""
    model = orbits().double()
    guide = OrbitCovarianceGuide(model, rank=2, initial_log_variance=-1.0).double()
    x = torch.rand(2, S, *FRAME, dtype=torch.float64)
    mask = None if mask is None else mask[..., :2, :] if mask.dim() == 2 else mask
    hidden = x if mask is None else torch.where(mask.expand(2, S)[..., None, None, None], x, math.nan)
    q = guide.posterior(hidden, mask)["e"]
    assert isinstance(model.prior, OrbitEnergy)
    shift, log_precision = guide.outputs(x)[2:]
    factors = guide.gain * guide.factors(x).unflatten(-1, (C, D, 2))
    n = int(model.prior.index.max()) + 1
    seen = torch.ones(2, S).bool() if mask is None else mask.expand(2, S)
    for b in range(2):
        precision = torch.diag(guide.prior_precision.repeat(C))
        pull = torch.zeros(C * n, dtype=torch.float64)
        for frame in range(S):
            if not seen[b, frame]:
                continue
            where = torch.tensor([c * n + int(model.prior.index[frame, p]) for c in range(C) for p in range(D)])
            onto = torch.nn.functional.one_hot(where, C * n).double().T  # (orbits, latents of the frame)
            weight, columns = log_precision[b, frame].exp().flatten(), onto @ factors[b, frame].flatten(0, 1)
            precision = precision + onto @ torch.diag(weight) @ onto.T + columns @ columns.T
            pull = pull + onto @ (weight * shift[b, frame].flatten())
        location = guide.prior_location.repeat(C) + torch.linalg.solve(precision, pull)
        e = torch.rand(C, n, dtype=torch.float64) + 0.5
        expected = (
            torch.distributions.MultivariateNormal(location, torch.linalg.inv(precision)).log_prob(e.log().flatten())
            - e.log().sum()
        )
        torch.testing.assert_close(q.log_prob(e.expand(2, C, n))[b], expected)


def test_covariance_between_orbits_moves_with_the_sequence() -> None:
    model = orbits().double()
    guide = OrbitCovarianceGuide(model, initial_log_variance=-1.0).double()
    x = torch.rand(2, S, *FRAME, dtype=torch.float64)
    draws = torch.rand(2, C, S, dtype=torch.float64) + 0.5
    here, there = (guide.posterior(part)["e"] for part in (x, x.roll(1, 1)))
    # An orbit is a roll that starts at some position of frame 0: one frame later it started one position earlier.
    assert isinstance(model.prior, OrbitEnergy)
    order = model.prior.index[0][torch.arange(D)], model.prior.index[1][torch.arange(D)]
    moved = torch.empty_like(draws)
    moved[..., order[1]] = draws[..., order[0]]
    torch.testing.assert_close(here.log_prob(draws), there.log_prob(moved))
    assert not torch.allclose(here.log_prob(draws), there.log_prob(draws))


@pytest.mark.parametrize("rank", [0, 1.5, True])
def test_a_rank_that_is_none_is_refused(rank: object) -> None:
    with pytest.raises(ValueError, match="expected a whole number, at least 1"):
        OrbitCovarianceGuide(orbits(), rank=rank)  # type: ignore[arg-type]


VOTING: dict[str, tuple[type[Guide], dict[str, Any]]] = {
    "orbit": (OrbitGuide, {"prior": OrbitEnergy(), "topography": CapsuleRoll(D, 0)}),
    "orbit covariance": (OrbitCovarianceGuide, {"prior": OrbitEnergy(), "topography": CapsuleRoll(D, 0)}),
    "conditional orbit": (ConditionalOrbitGuide, {"prior": OrbitEnergy(), "topography": CapsuleRoll(D, 0)}),
    "radial": (RadialGuide, {"topography": CapsuleRoll(3)}),
    "gamma": (GammaGuide, {"prior": GammaEnergy(), "topography": CapsuleRoll(3)}),
    "sequence": (SequenceGuide, {"topography": CapsuleRoll(3)}),
}


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", VOTING)
def test_a_vote_beyond_all_bounds_leaves_the_bound_a_number(name: str, sign: float) -> None:
    """As an encoder gives it of one sequence in thousands: a log-precision of 107 ended a training of 12,759 steps."""
    kind, options = VOTING[name]
    torch.manual_seed(0)
    model = TVAE(FRAME, S, C, D, mu=100.0, **options)
    guide: Any = kind(model)
    x = torch.rand(3, S, *FRAME)
    encoder = guide.encoder if name == "sequence" else getattr(guide, guide.encoders[-1])
    biases = last_linear(encoder.network).bias
    bound = ELBO(model, guide)(x).objective
    with torch.no_grad():
        biases[-model.n_latents :] += 3.0  # as they are after a training
        assert not torch.equal(ELBO(model, guide)(x).objective, bound)
        biases[-model.n_latents :] += 300.0
        if name != "sequence":  # whose votes are features
            biases[-2 * model.n_latents : -model.n_latents] += 300.0 * sign
    loss = -ELBO(model, guide)(x).objective.sum()
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in guide.parameters())


def test_a_gamma_guide_that_says_nothing_is_the_prior() -> None:
    model = small("gamma")
    q = GammaGuide(model).posterior(torch.rand(2, S, *FRAME), MASKS["nothing"])
    torch.testing.assert_close(divergence(model, q), torch.zeros(2))
    # Control: the nearest log-normals do not cost nothing.
    other = MeanFieldGuide(model).posterior(torch.rand(2, S, *FRAME), MASKS["nothing"])
    torch.testing.assert_close(divergence(model, other), torch.full((2,), 0.1535 * S * C * D), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match=r"expected GammaEnergy \(prior=gamma\)"):
        GammaGuide(small())


# --- semi-amortised --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("observed", [None, MASKS["one for all"]], ids=["all seen", "half seen"])
def test_steps_improve_each_sequences_bound(prior: str, observed: Tensor | None) -> None:
    model = small(prior)
    guide = SemiAmortizedGuide(model, steps=40, step_size=0.1, num_particles=4, initial_log_variance=-1.0)
    x = torch.rand(6, S, *FRAME)
    before = log_weights(model, guide.start, x, 400, observed=observed).mean(0)
    after = log_weights(model, guide, x, 400, observed=observed).mean(0)
    assert (after > before).all()
    none = SemiAmortizedGuide(model, steps=0)
    for site, q in none.posterior(x).items():
        assert torch.equal(q.mean, none.start.posterior(x)[site].mean)


def test_refinement_is_a_function_of_the_sequence() -> None:
    model, guide, x = pair("semi-amortised")
    whole, alone = guide.posterior(x)["z"].mean, guide.posterior(x)["z"].mean
    assert torch.equal(whole, alone)
    with torch.inference_mode():
        assert torch.equal(guide.posterior(x)["z"].mean, whole)
    with torch.no_grad():
        assert torch.equal(guide.posterior(x)["z"].mean, whole)
    assert guide.posterior(x)["z"].mean.requires_grad
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_pair_copied_together_refines_with_its_own_model() -> None:
    model, guide, x = pair("semi-amortised")
    other, its_guide = copy.deepcopy((model, guide))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert not torch.equal(its_guide.posterior(x)["z"].mean, guide.posterior(x)["z"].mean)
    assert its_guide._model[0] is other


def test_a_refining_guide_is_for_no_other_model_than_the_one_it_looks_at(tmp_path: Path) -> None:
    """A copy that was made apart would refine by weights that are trained no further, and be saved with other ones."""
    model = small()
    guide = SemiAmortizedGuide(model, steps=2)
    x = torch.rand(2, S, *FRAME)
    for pair in ((copy.deepcopy(model), guide), (model, copy.deepcopy(guide))):
        for use in (
            lambda pair=pair: log_weights(*pair, x, 5),
            lambda pair=pair: save(tmp_path / "pair.safetensors", *pair),
            lambda pair=pair: fit(*pair, x, max_epochs=1, progress=False),
        ):
            with pytest.raises(ValueError, match=r"^SemiAmortizedGuide: it looks at another model than the one given"):
                use()
    together = copy.deepcopy((model, guide))
    assert torch.isfinite(log_weights(*together, x, 5)).all()


def test_refinement_takes_orbits_and_other_laws_of_z() -> None:
    for model in (
        TVAE(FRAME, S, C, D, CapsuleRoll(4, 0), prior=OrbitEnergy()),
        TVAE(FRAME, S, C, D, NoTopography(), latent=AutoregressiveLatent()),
    ):
        guide = SemiAmortizedGuide(model, steps=2)
        assert torch.isfinite(log_weights(model, guide, torch.rand(2, S, *FRAME), 5)).all()


# --- who fits whom ---------------------------------------------------------------------------------------------------


def orbits() -> TVAE:
    return TVAE(FRAME, S, C, D, CapsuleRoll(4, 0), prior=OrbitEnergy())


def plain() -> TVAE:
    return TVAE(FRAME, S, C, D, NoTopography())


COMPLAINTS: dict[str, tuple[str, Callable[[], object]]] = {
    **{
        f"{name} on orbits": ("use OrbitGuide for OrbitEnergy", lambda make=make: make(orbits()))
        for name, make in GUIDES.items()
        if name != "semi-amortised"
    },
    "conditional without energies": ("couples z with the energies", lambda: ConditionalGuide(plain())),
    "flow without energies": ("couples z with the energies", lambda: FlowGuide(plain())),
    "rank": ("rank is 0; expected at least 1", lambda: CovarianceGuide(small(), rank=0)),
    "many layers": ("layers is 1000000; expected at most 1000", lambda: FlowGuide(small(), layers=10**6)),
    "layers": ("layers is 0; expected at least 1", lambda: FlowGuide(small(), layers=0)),
    "steps": ("expected steps of 0 or more", lambda: SemiAmortizedGuide(small(), steps=-1)),
    "step size": ("a size above 0", lambda: SemiAmortizedGuide(small(), step_size=0)),
}


@pytest.mark.parametrize(("words", "call"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints_are_one_sentence(words: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["mean field", "shared trunk", "sequence", "low rank", "full covariance", "semi-amortised"]
)
def test_guides_without_couplings_take_the_plain_vae(name: str) -> None:
    model = plain()
    assert set(GUIDES[name](model)(torch.rand(2, S, *FRAME))) == {"z"}
