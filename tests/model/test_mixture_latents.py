"""Mixtures as laws of z: against sums over components, closed moments, and what they are good for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from scipy import stats
from torch import Tensor

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    LatentPrior,
    MeanFieldGuide,
    MixtureLatent,
    Normal,
    NormalLatent,
    NoTopography,
    PseudoInputLatent,
    load,
    save,
)
from pyro_tvae.inference import ELBO, MeanFieldELBO, TrainerOptions, fit, log_likelihood, log_weights
from pyro_tvae.mixture_latents import Mixture

FRAME, S, C, D, K = (1, 2, 3), 4, 2, 3, 3
FALSE_ALARM = 1e-4

MIXTURES: dict[str, Callable[[], LatentPrior]] = {
    "sequence": lambda: MixtureLatent(K, separation=6.0),
    "frame": lambda: MixtureLatent(K, per="frame", separation=6.0),
    "pseudo_inputs": lambda: PseudoInputLatent(K),
}
ALL = pytest.mark.parametrize("make", MIXTURES.values(), ids=MIXTURES)


def moved(latent: LatentPrior) -> TVAE:
    """A model in double precision whose law of z is none that it starts with."""
    model = TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=latent, mu=2.0).double()
    with torch.no_grad():
        for parameter in model.latent.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model


def components(model: TVAE) -> tuple[Tensor, list[dist.Normal], bool]:
    """Weights, the Normals (S, C, D) of each component, and whether frames choose by themselves: by the definition."""
    latent = model.latent
    if isinstance(latent, MixtureLatent):
        scales = latent.log_scales.exp()
        normals = [dist.Normal(latent.means[k].expand(S, C, D), scales[k].expand(S, C, D)) for k in range(K)]
        return latent.logits.softmax(0), normals, latent.per == "frame"
    assert isinstance(latent, PseudoInputLatent)
    read = [latent.encoder(latent.pseudo_inputs[k]) for k in range(K)]
    return torch.full((K,), 1 / K, dtype=torch.float64), [dist.Normal(m, (v / 2).exp()) for m, v in read], False


@ALL
def test_the_density_is_the_sum_over_components(make: Callable[[], LatentPrior]) -> None:
    model = moved(make())
    weights, normals, per_frame = components(model)
    z = 1.5 * torch.randn(5, 2, S, C, D, dtype=torch.float64)
    expected = torch.zeros(5, 2, dtype=torch.float64)
    for i in range(5):
        for b in range(2):
            terms = torch.stack([normal.log_prob(z[i, b]).sum((-1, -2)) for normal in normals])  # (K, S)
            if per_frame:
                expected[i, b] = (weights[:, None] * terms.exp()).sum(0).log().sum()
            else:
                expected[i, b] = (weights * terms.sum(-1).exp()).sum().log()
    distribution = model.prior_distributions()["z"]
    torch.testing.assert_close(distribution.log_prob(z), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(distribution.expand([2]).log_prob(z), expected, rtol=1e-12, atol=1e-12)
    assert distribution.expand([5, 2]).log_prob(z[0, 0]).shape == (5, 2)


@ALL
def test_the_density_integrates_to_one(make: Callable[[], LatentPrior]) -> None:
    """By importance sampling from a wide Normal, where the sum over components cannot share a mistake."""
    model = TVAE(FRAME, 1, 1, 2, NoTopography(), latent=make()).double()
    wide = dist.Normal(torch.zeros(1, 1, 2).double(), 6.0).to_event(3)
    z = wide.sample(torch.Size([100_000]))
    with torch.no_grad():
        ratio = (model.prior_distributions()["z"].log_prob(z) - wide.log_prob(z)).exp()
    error = float(ratio.std()) / len(z) ** 0.5
    assert abs(float(ratio.mean()) - 1) < 5 * error < 0.1


@ALL
def test_draws_have_the_moments_and_the_distribution_of_the_law(make: Callable[[], LatentPrior]) -> None:
    model = moved(make())
    weights, normals, _ = components(model)
    distribution = model.prior_distributions()["z"].expand([2])
    means = torch.stack([normal.mean for normal in normals])
    mean = torch.einsum("k,k...->...", weights, means)
    second = torch.einsum("k,k...->...", weights, means.square() + torch.stack([n.variance for n in normals]))
    torch.testing.assert_close(distribution.mean, mean.expand(2, S, C, D))
    torch.testing.assert_close(distribution.variance, (second - mean.square()).expand(2, S, C, D))
    draws = distribution.sample(torch.Size([10_000])).flatten(0, 1)
    assert draws.shape == (20_000, S, C, D)
    assert not draws.requires_grad
    # 24 coordinates, five standard errors: a false alarm once in 50,000 seeds.
    assert ((draws.mean(0) - distribution.mean[0]).abs() < 5 * (distribution.variance[0] / len(draws)).sqrt()).all()

    def cdf(value: object) -> object:
        at = torch.as_tensor(value)
        return (
            sum(
                w * n.cdf(at[:, None, None, None].expand(-1, S, C, D))[:, 1, 1, 2]
                for w, n in zip(weights.tolist(), normals, strict=True)
            )
            .detach()
            .numpy()
        )

    sample = draws[:, 1, 1, 2].numpy()
    assert stats.kstest(sample, cdf).pvalue > FALSE_ALARM
    assert stats.kstest(1.1 * sample, cdf).pvalue < FALSE_ALARM


@pytest.mark.parametrize("name", MIXTURES)
def test_frames_share_their_component_where_it_is_the_sequence_s(name: str) -> None:
    """Distances between means of frames 0 and 3 tell: components 60 standard deviations apart are never mistaken."""
    model = TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=MIXTURES[name]())
    latent = model.latent
    means = 20.0 * torch.arange(K).reshape(K, 1, 1, 1).expand(K, S, C, D)
    distribution = Mixture(
        torch.zeros(K), means, torch.ones(K, S, C, D), (S, C, D), per_frame=getattr(latent, "per", "") == "frame"
    )
    chosen = (distribution.sample(torch.Size([2000])).mean((-1, -2)) / 20).round()
    same = float((chosen[:, 0] == chosen[:, 3]).double().mean())
    if name == "frame":
        assert abs(same - 1 / K) < 5 * math.sqrt(2 / 9 / 2000)  # a false alarm once in a million seeds
    else:
        assert same == 1
        assert type(model.prior_distributions()["z"]) is Mixture
        assert not model.prior_distributions()["z"].per_frame


@pytest.mark.parametrize("per", ["sequence", "frame"])
def test_one_standard_component_is_the_standard_normal(per: str) -> None:
    mixture = TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=MixtureLatent(1, per=per, separation=0.0), mu=2.0)
    normal = TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=NormalLatent(), mu=2.0)
    normal.load_state_dict(mixture.state_dict(), strict=False)
    mixture, normal = mixture.double(), normal.double()
    z = torch.randn(7, S, C, D).double()
    torch.testing.assert_close(
        mixture.prior_distributions()["z"].log_prob(z),
        normal.prior_distributions()["z"].log_prob(z),
        rtol=1e-13,
        atol=1e-13,
    )
    guide, x = MeanFieldGuide(normal).double(), torch.rand(2, S, *FRAME).double()
    one, two = (log_weights(model, guide, x, 20, seed=3) for model in (mixture, normal))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@ALL
def test_the_elbo_is_that_of_pyro_with_many_particles(make: Callable[[], LatentPrior]) -> None:
    model = moved(make())
    guide, x = MeanFieldGuide(model, initial_log_variance=-1.0).double(), torch.rand(3, S, *FRAME).double()
    oracle = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        ours = torch.stack([ELBO(model, guide, 500)(x).elbo.sum() for _ in range(40)])
        theirs = torch.tensor([-oracle.loss(model, guide, x) for _ in range(40)])
    error = math.sqrt((float(ours.var()) + float(theirs.var())) / 40)
    # Five standard errors: a false alarm once in a million seeds.
    assert abs(float(ours.mean() - theirs.mean())) < 5 * error < 0.01 * abs(float(ours.mean()))


@ALL
def test_a_closed_form_is_refused_by_name(make: Callable[[], LatentPrior]) -> None:
    model = TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=make())
    with pytest.raises(ValueError, match="the KL of site 'z' from Normal to Mixture has no closed form; use ELBO"):
        MeanFieldELBO(model, MeanFieldGuide(model))


@ALL
def test_every_parameter_is_trained_by_pyro_s_own_svi(make: Callable[[], LatentPrior]) -> None:
    pyro.clear_param_store()
    model = TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=make(), mu=2.0)
    guide, x = MeanFieldGuide(model), torch.rand(4, S, *FRAME)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(max_plate_nesting=1))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(3):
        svi.step(x)
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []
    drawn = Predictive(model, num_samples=3)(n_sequences=2)
    assert drawn["z"].reshape(3, 2, S, C, D).isfinite().all()


@ALL
@pytest.mark.parametrize("centered", [False, True])
def test_a_copy_and_a_file_have_the_same_law(make: Callable[[], LatentPrior], centered: bool, tmp_path: Path) -> None:
    model = TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=make(), mu=2.0, centered=centered)
    guide, x = MeanFieldGuide(model), torch.rand(2, S, *FRAME)
    fit(model, guide, x, max_epochs=2, progress=False, trainer=TrainerOptions("cpu"))
    expected = log_weights(model, guide, x, 4, seed=1)
    for one, its_guide in (copy.deepcopy((model, guide)), load(save(tmp_path / "m.safetensors", model, guide))):
        assert torch.equal(log_weights(one, its_guide, x, 4, seed=1), expected)
        with torch.no_grad():
            next(one.latent.parameters()).add_(1.0)  # and shares nothing with the original
    assert torch.equal(log_weights(model, guide, x, 4, seed=1), expected)


def test_a_shared_encoder_is_the_vampprior() -> None:
    """``p(z) = 1/K Σ_k q(z | y_k)`` with the guide's own q, trained once, by Pyro's SVI as well."""
    model = TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=PseudoInputLatent(K), mu=2.0)
    guide, latent = MeanFieldGuide(model), model.latent
    assert isinstance(latent, PseudoInputLatent)
    assert not set(latent.parameters()) & set(guide.parameters())
    guide.z_encoder = latent.encoder
    x, z = torch.rand(4, S, *FRAME), torch.randn(5, S, C, D)

    def agree(model: TVAE, guide: MeanFieldGuide) -> None:
        latent = model.latent
        assert isinstance(latent, PseudoInputLatent)
        assert guide.z_encoder is latent.encoder
        with torch.no_grad():
            q = guide.posterior(latent.pseudo_inputs)["z"].to_event(3)
            expected = q.log_prob(z.unsqueeze(1)).logsumexp(-1) - math.log(K)
            torch.testing.assert_close(model.prior_distributions()["z"].log_prob(z), expected)

    agree(model, guide)
    parameters = list(ELBO(model, guide).parameters())
    assert len({*parameters}) == len(parameters)
    start = [value.detach().clone() for value in latent.encoder.parameters()]
    fit(model, guide, x, max_epochs=2, progress=False, trainer=TrainerOptions("cpu"))
    agree(model, guide)
    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(max_plate_nesting=1))
    svi.step(x)
    agree(model, guide)
    agree(*copy.deepcopy((model, guide)))
    assert not any(torch.equal(one, two) for one, two in zip(start, latent.encoder.parameters(), strict=True))


def test_two_kinds_of_sequences_are_told_better_by_a_mixture() -> None:
    """Sequences of one of two patterns with a little noise, two latents a frame: a Normal z has to bend into two."""
    torch.manual_seed(0)
    patterns = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]).reshape(2, 1, 1, 1, 3).expand(2, 3, 1, 1, 3)
    x = patterns[torch.arange(128) % 2] + 0.3 * torch.randn(128, 3, 1, 1, 1)
    found = {}
    for name, latent in (("normal", NormalLatent()), ("mixture", MixtureLatent(2))):
        torch.manual_seed(1)
        model = TVAE((1, 1, 3), 3, 1, 2, NoTopography(), latent=latent, likelihood=Normal(0.2))
        guide = MeanFieldGuide(model)
        optimizer = lambda parameters: torch.optim.Adam(parameters, 1e-2)  # noqa: E731
        fit(model, guide, x, max_epochs=40, batch_size=32, warmup_steps=20, optimizer=optimizer, progress=False, seed=1)
        found[name] = float(log_likelihood(model, guide, x, num_particles=200).iwae.mean())
    assert found["mixture"] > found["normal"] + 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MixtureLatent(0), "MixtureLatent: n_components is 0; expected a whole number of at least 1"),
        (lambda: MixtureLatent(2.5), "n_components is 2.5; expected a whole number"),  # type: ignore[arg-type]
        (lambda: MixtureLatent(per="capsule"), "per is 'capsule'; expected 'sequence' or 'frame'"),
        (lambda: MixtureLatent(separation=-1.0), "separation is -1.0; expected a finite number of at least 0"),
        (lambda: MixtureLatent(separation=math.nan), "separation is nan"),
        (lambda: PseudoInputLatent(0), "PseudoInputLatent: n_components is 0; expected a whole number"),
    ],
)
def test_mixtures_that_are_none_get_one_sentence(call: Callable[[], LatentPrior], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@ALL
def test_learned_laws_belong_to_one_lattice(make: Callable[[], LatentPrior]) -> None:
    latent = make()
    first = TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=latent)
    held = {name: value for name, value in first.named_parameters() if name.startswith("latent")}
    TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), latent=latent)
    assert all(value is held[name] for name, value in first.named_parameters() if name in held)
    with pytest.raises(ValueError, match=r"it belongs to a model with latents of shape .* make one for each model"):
        TVAE(FRAME, S, C, D + 1, CapsuleRoll(3, 1), latent=latent)
    if isinstance(latent, PseudoInputLatent):
        with pytest.raises(ValueError, match=r"it belongs to a model with frames of shape .* make one for each model"):
            TVAE((1, 3, 3), S, C, D, CapsuleRoll(3, 1), latent=latent)
