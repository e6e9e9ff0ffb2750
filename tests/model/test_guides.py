"""Guides: what a posterior looks like, what unseen frames may do to it, and how orbits follow the roll."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_tvae import (
    MLP,
    TVAE,
    CapsuleRoll,
    GammaEnergy,
    GammaGuide,
    Guide,
    MeanFieldGuide,
    NoTopography,
    OrbitEnergy,
    OrbitGuide,
    SharedTrunkGuide,
    Stationary,
    default_guide,
    roll,
)

FRAME = (1, 2, 3)
S, C, D = 4, 2, 4


def gaussian() -> TVAE:
    return TVAE(FRAME, S, C, D, CapsuleRoll(3, 1))


def orbits(topography: str = "roll") -> TVAE:
    return TVAE(FRAME, S, C, D, CapsuleRoll(4, 0) if topography == "roll" else Stationary((4, 1)), prior=OrbitEnergy())


def plain() -> TVAE:
    return TVAE(FRAME, S, C, D, NoTopography())


MODELS = {"gaussian": gaussian, "orbits": orbits, "orbits, stationary": lambda: orbits("stationary"), "plain": plain}
ALL = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def undecided(guide: Guide) -> Guide:
    """Encoders with large random weights, so that the posterior is far from the prior everywhere."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return guide


# --- shapes and types ------------------------------------------------------------------------------------------------


def test_mean_field_posterior_is_two_normals() -> None:
    q = MeanFieldGuide(gaussian()).posterior(torch.rand(3, S, *FRAME))
    assert set(q) == {"z", "u"}
    for distribution in q.values():
        assert isinstance(distribution, dist.Normal)
        assert distribution.batch_shape == (3, S, C, D)


def test_posterior_of_the_plain_vae_has_no_u() -> None:
    q = MeanFieldGuide(plain()).posterior(torch.rand(3, S, *FRAME))
    assert set(q) == {"z"}
    assert isinstance(q["z"], dist.Normal)


def test_orbit_posterior_is_one_log_normal_per_orbit() -> None:
    q = OrbitGuide(orbits()).posterior(torch.rand(3, S, *FRAME))
    assert set(q) == {"z", "e"}
    assert isinstance(q["z"], dist.Normal)
    assert type(q["e"]) is dist.LogNormal
    assert q["e"].batch_shape == (3, C, 4)


@ALL
def test_default_guide_has_the_sites_of_the_model(build: Callable[[], TVAE]) -> None:
    model = build()
    guide = default_guide(model)
    assert isinstance(guide, OrbitGuide if isinstance(model.prior, OrbitEnergy) else MeanFieldGuide)
    x = torch.rand(3, S, *FRAME)
    drawn = guide(x)
    trace = poutine.trace(model).get_trace(x)
    for site, value in drawn.items():
        assert value.shape == trace.nodes[site]["value"].shape
        assert trace.nodes[site]["fn"].event_dim == poutine.trace(guide).get_trace(x).nodes[site]["fn"].event_dim  # type: ignore[attr-defined]


def test_encoders_see_one_frame_each() -> None:
    guide = undecided(MeanFieldGuide(gaussian()))
    x = torch.rand(2, S, *FRAME)
    changed = x.clone()
    changed[:, 2] = torch.rand(2, *FRAME)
    before, after = guide.posterior(x), guide.posterior(changed)
    for site in ("z", "u"):
        same = (before[site].mean == after[site].mean).flatten(2).all(-1)
        assert same.tolist() == [[True, True, False, True]] * 2


def test_particles_cost_one_pass_of_the_encoders() -> None:
    guide = MeanFieldGuide(gaussian())
    passes = []
    guide.z_encoder.register_forward_hook(lambda *_: passes.append(1))
    with pyro.plate("particles", 7, dim=-2):
        drawn = guide(torch.rand(3, S, *FRAME))
    assert drawn["z"].shape == (7, 3, S, C, D)
    assert len(passes) == 1
    # Draws differ between particles and between sequences.
    assert len({round(float(v), 5) for v in drawn["z"][..., 0, 0, 0].flatten()}) == 21


def test_log_variances_start_where_they_were_put() -> None:
    for start in (0.0, -5.0):
        guide = MeanFieldGuide(gaussian(), initial_log_variance=start)
        with torch.no_grad():
            for encoder in (guide.z_encoder, guide.u_encoder):
                for parameter in encoder.network.parameters():
                    if parameter.dim() == 2:
                        parameter.zero_()
                bias = [m for m in encoder.network if isinstance(m, nn.Linear)][-1].bias
                assert abs(float(bias[C * D :].mean()) - start) < 0.4
                assert abs(float(bias[: C * D].mean())) < 0.4
    assert MeanFieldGuide(gaussian()).posterior(torch.rand(1, S, *FRAME))["z"].variance.max() < math.exp(-4)


@pytest.mark.parametrize("kind", [MeanFieldGuide, SharedTrunkGuide, GammaGuide])
def test_z_may_start_as_its_prior_and_the_energies_as_told(kind: type[MeanFieldGuide] | type[GammaGuide]) -> None:
    model = gaussian() if kind is not GammaGuide else TVAE(FRAME, S, C, D, CapsuleRoll(3, 1), prior=GammaEnergy())
    torch.manual_seed(0)
    before, x = kind(model, initial_log_variance=-5.0), torch.rand(1, S, *FRAME)
    torch.manual_seed(0)
    guide = kind(model, initial_log_variance=-5.0, initial_z_log_variance=0.0)
    was, is_now = before.posterior(x), guide.posterior(x)
    torch.testing.assert_close(is_now["z"].variance.log(), was["z"].variance.log() + 5)
    site = "e" if kind is GammaGuide else "u"
    torch.testing.assert_close(is_now[site].variance, was[site].variance)


def test_a_guide_may_have_its_own_network() -> None:
    guide = MeanFieldGuide(gaussian(), network=MLP(encoder_widths=(1,)))
    linear = [m for m in guide.z_encoder.network.modules() if isinstance(m, nn.Linear)]
    assert [layer.out_features for layer in linear] == [C * D, 2 * C * D]


# --- unseen frames ---------------------------------------------------------------------------------------------------

MASKS = {
    "one for all": torch.tensor([True, True, False, False]),
    "one each": torch.tensor([[True, True, False, False], [False, True, True, True], [True, False, False, True]]),
    "nothing": torch.zeros(S, dtype=torch.bool),
}


@ALL
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_unseen_pixels_have_no_influence(build: Callable[[], TVAE], mask: Tensor) -> None:
    guide = undecided(default_guide(build()))
    x = torch.rand(3, S, *FRAME)
    seen = mask.expand(3, S)
    other = torch.where(seen[..., None, None, None], x, torch.rand_like(x))
    one, two = guide.posterior(x, mask), guide.posterior(other, mask)
    for site in one:
        assert torch.equal(one[site].mean, two[site].mean)
        assert torch.equal(one[site].variance, two[site].variance)
    # Control: with the frames seen, the same change shows.
    assert any(not torch.equal(guide.posterior(x)[site].mean, guide.posterior(other)[site].mean) for site in one)


@ALL
def test_unseen_pixels_may_be_missing_values(build: Callable[[], TVAE]) -> None:
    guide = undecided(default_guide(build()))
    mask = MASKS["one each"]
    x = torch.rand(3, S, *FRAME)
    missing = torch.where(mask[..., None, None, None], x, math.nan)
    one, two = guide.posterior(x, mask), guide.posterior(missing, mask)
    for site in one:
        assert torch.equal(one[site].mean, two[site].mean)


@ALL
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_latents_of_unseen_frames_have_their_prior(build: Callable[[], TVAE], mask: Tensor) -> None:
    guide = undecided(default_guide(build()))
    x = torch.rand(3, S, *FRAME)
    q, full = guide.posterior(x, mask), guide.posterior(x)
    seen = mask.expand(3, S)
    for site in set(q) - {"e"}:
        assert (q[site].mean[~seen] == 0).all()
        assert (q[site].stddev[~seen] == 1).all()
        assert torch.equal(q[site].mean[seen], full[site].mean[seen])
        assert torch.equal(q[site].stddev[seen], full[site].stddev[seen])


@ALL
def test_seeing_everything_is_the_default(build: Callable[[], TVAE]) -> None:
    guide = undecided(default_guide(build()))
    x = torch.rand(3, S, *FRAME)
    one, two = guide.posterior(x), guide.posterior(x, torch.ones(S, dtype=torch.bool))
    for site in one:
        assert torch.equal(one[site].mean, two[site].mean)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(S), torch.ones(S - 1, dtype=torch.bool), torch.ones(1, 3, S, dtype=torch.bool), torch.tensor(True)],
    ids=["floats", "too few frames", "a dimension too many", "a scalar"],
)
def test_wrong_masks_get_one_sentence(mask: Tensor) -> None:
    with pytest.raises(ValueError, match="expected booleans of shape") as caught:
        default_guide(gaussian()).posterior(torch.rand(3, S, *FRAME), mask)
    assert "\n" not in str(caught.value)


def test_a_mask_for_another_number_of_sequences_gets_one_sentence() -> None:
    with pytest.raises(ValueError, match="expected booleans of shape"):
        default_guide(gaussian()).posterior(torch.rand(3, S, *FRAME), torch.ones(2, S, dtype=torch.bool))


# --- orbits ----------------------------------------------------------------------------------------------------------


TRUNKS = pytest.mark.parametrize("shared", [False, True], ids=["two encoders", "shared trunk"])


def orbit_map(index: Tensor, frame_step: int, position_step: int) -> Tensor:
    """Where each orbit goes when its cells move by that many frames and positions."""
    moved = torch.full((int(index.max()) + 1,), -1)
    for frame in range(S):
        for position in range(D):
            target = int(index[(frame + frame_step) % S, (position + position_step) % D])
            orbit = int(index[frame, position])
            assert moved[orbit] in (-1, target)  # a whole orbit moves together
            moved[orbit] = target
    return moved


@pytest.mark.parametrize("topography", ["roll", "stationary"])
@pytest.mark.parametrize("step", [1, 2, -1])
@TRUNKS
def test_shifting_the_frames_moves_the_orbits_along_the_roll(topography: str, step: int, shared: bool) -> None:
    model = orbits(topography).double()
    guide = undecided(OrbitGuide(model, shared_trunk=shared).double())
    x = torch.rand(3, S, *FRAME, dtype=torch.float64)
    one, two = guide.posterior(x), guide.posterior(x.roll(step, dims=1))
    moved = orbit_map(model.prior.index, step, 0)
    assert sorted(moved.tolist()) == list(range(4))
    if topography == "roll":
        assert moved.tolist() != list(range(4))
    for parameter in ("loc", "scale"):
        before, after = getattr(one["e"], parameter), getattr(two["e"], parameter)
        torch.testing.assert_close(after[..., moved], before, rtol=1e-12, atol=1e-12)
    # So the energies of the shifted sequence are the energies, shifted.
    v, shifted = model.energy(one["e"].mean), model.energy(two["e"].mean)
    torch.testing.assert_close(shifted, v.roll(step, dims=1), rtol=1e-12, atol=1e-12)
    if topography == "roll":
        torch.testing.assert_close(shifted, roll(v, -step), rtol=1e-12, atol=1e-12)


@TRUNKS
def test_the_orbit_posterior_pools_the_votes_of_its_members(shared: bool) -> None:
    model = orbits()
    guide = undecided(OrbitGuide(model, shared_trunk=shared))
    x = torch.rand(2, S, *FRAME)
    mask = torch.tensor([True, False, True, True])
    with torch.no_grad():
        q = guide.posterior(x, mask)["e"]
        location, log_variance, shift, log_precision = guide.outputs(x)
        of_z = guide.posterior(x)["z"]
        torch.testing.assert_close(of_z.mean, location)
        torch.testing.assert_close(of_z.stddev, (log_variance / 2).exp())
        nu = 4.0
        prior_location = float(torch.digamma(torch.tensor(nu / 2))) + math.log(2)
        prior_precision = 1 / float(torch.polygamma(1, torch.tensor(nu / 2)))
        for n in range(2):
            for c in range(C):
                for orbit in range(4):
                    precision, weighted = prior_precision, prior_precision * prior_location
                    for frame in range(S):
                        for p in range(D):
                            if mask[frame] and model.prior.index[frame, p] == orbit:
                                vote = math.exp(float(log_precision[n, frame, c, p]))
                                precision += vote
                                weighted += vote * (prior_location + float(shift[n, frame, c, p]))
                    assert float(q.loc[n, c, orbit]) == pytest.approx(weighted / precision, rel=1e-4)
                    assert float(q.scale[n, c, orbit]) == pytest.approx(precision**-0.5, rel=1e-4)


@pytest.mark.parametrize("topography", ["roll", "stationary"])
def test_with_nothing_observed_the_orbit_posterior_has_the_priors_log_moments(topography: str) -> None:
    model = orbits(topography)
    q = undecided(OrbitGuide(model)).posterior(torch.rand(2, S, *FRAME), MASKS["nothing"])["e"]
    draws = model.prior.distribution(torch.zeros((), dtype=torch.float64)).sample(torch.Size([100_000])).log()
    # Five standard errors on each of 8 means and 8 deviations: false alarms below one in 10,000. The deviation's error
    # uses its kurtosis-free value times two, since log χ² with 4 degrees of freedom has heavier tails than a normal.
    error = draws.std(0) / len(draws) ** 0.5
    assert ((q.loc.double() - draws.mean(0)).abs() < 5 * error).all()
    assert ((q.scale.double() - draws.std(0)).abs() < 2 * 5 * error / 2**0.5).all()


def test_a_shared_trunk_is_asked_for_by_a_truth_value() -> None:
    with pytest.raises(ValueError, match="OrbitGuide: shared_trunk is 'no'; expected True or False"):
        OrbitGuide(orbits(), shared_trunk="no")  # type: ignore[arg-type]


def test_a_shared_trunk_is_one_encoder_that_starts_where_two_do() -> None:
    model = orbits()
    two, one = (OrbitGuide(model, shared_trunk=shared, initial_log_variance=-3.0) for shared in (False, True))
    assert [{name.split(".")[0] for name, _ in guide.named_parameters()} for guide in (two, one)] == [
        {"z_encoder", "e_encoder"},
        {"encoder"},
    ]
    with torch.no_grad():
        for guide in (two, one):
            for parameter in guide.parameters():
                if parameter.dim() > 1:
                    parameter.zero_()  # so that the last layer's bias is the answer
            last = [module for module in guide.modules() if isinstance(module, nn.Linear)]
            assert len(last) == (6 if guide is two else 3)
        answers = [guide.outputs(torch.rand(2, S, *FRAME)) for guide in (two, one)]
    for a, b, expected in zip(*answers, (0.0, -3.0, 0.0, 3.0 - math.log(4)), strict=True):
        # Biases start within the inverse root of the layer's inputs of what is asked for.
        assert (a - expected).abs().max() < 0.3
        assert (b - expected).abs().max() < 0.3
        assert a.shape == b.shape == (2, S, C, D)


# --- who fits whom ---------------------------------------------------------------------------------------------------


def test_guides_for_other_priors_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="use OrbitGuide for OrbitEnergy"):
        MeanFieldGuide(orbits())
    for model in (gaussian(), plain()):
        with pytest.raises(ValueError, match=r"expected OrbitEnergy \(prior=orbit\)"):
            OrbitGuide(model)


def test_a_guide_is_described_without_its_model() -> None:
    assert "model" not in MeanFieldGuide(gaussian()).arguments()
    names = {name.split(".")[0] for name, _ in MeanFieldGuide(gaussian()).named_parameters()}
    assert names == {"z_encoder", "u_encoder"}
