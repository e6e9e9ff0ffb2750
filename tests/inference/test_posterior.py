"""Posterior draws as ArviZ data: names, arithmetic, resampling against exact posteriors, and files other tools read."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from gaussian import Affine, Unsampled
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_tvae import TVAE, Bernoulli, CapsuleRoll, Guide, Likelihood, MeanFieldGuide, Normal, NoTopography, OrbitEnergy
from pyro_tvae.guides import default_guide
from pyro_tvae.inference import posterior
from pyro_tvae.inference.draws import systematic
from pyro_tvae.inference.mcmc import nuts
from pyro_tvae.inference.pareto import UnreliableWeights
from pyro_tvae.inference.posterior import GROUPS, ArvizData, from_netcdf, to_arviz, to_netcdf, to_zarr

FRAME = (1, 2, 3)
S, B = 4, 3
PIXELS = ("sequence", "frame", "channel", "height", "width")

MODELS: dict[str, Callable[[], TVAE]] = {
    "roll": lambda: TVAE(FRAME, S, 2, 4, CapsuleRoll(3, 1), mu=2.0),
    "orbits": lambda: TVAE(FRAME, S, 2, 4, CapsuleRoll(4, 0), prior=OrbitEnergy(), mu=2.0),
    "plain": lambda: TVAE(FRAME, S, 2, 4, NoTopography()),
    "normal": lambda: TVAE(FRAME, S, 2, 4, CapsuleRoll(3, 1), likelihood=Normal(0.3), mu=2.0).double(),
}


class Toy:
    """x[l] = A z[l] + noise, orthogonal A; the guide is the exact posterior, moved and widened by ``off``."""

    def __init__(self, off: float, sigma: float = 0.5) -> None:
        self.model = TVAE(FRAME, S, 1, 2, NoTopography(), likelihood=Normal(sigma), network=Affine()).double()
        self.guide = MeanFieldGuide(self.model).double()
        a = torch.linalg.qr(torch.randn(6, 2).double()).Q * torch.tensor([1.3, 0.7]).double()
        precision = 1 + a.square().sum(0) / sigma**2
        self.to_mean, self.sd = (a / sigma**2 / precision).T, precision.rsqrt()
        with torch.no_grad():
            self.model.decoder[0].weight.copy_(a)
            self.model.decoder[0].bias.zero_()
            layer = self.guide.z_encoder.network[1]
            layer.weight.copy_(torch.cat([self.to_mean, torch.zeros_like(self.to_mean)]))
            layer.bias.copy_(torch.cat([off * self.sd, -precision.log() + off]))

    def exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, S, 1, 2) and standard deviation (2,) of z given x."""
        return (x.flatten(-3) @ self.to_mean.T).unsqueeze(-2), self.sd


def made(kind: str, **options: object) -> tuple[TVAE, Guide, Tensor, ArvizData]:
    model = MODELS[kind]()
    dtype = next(model.parameters()).dtype
    guide = default_guide(model, initial_log_variance=-1.0).to(dtype)
    x = torch.rand(B, S, *FRAME, dtype=dtype)
    return model, guide, x, to_arviz(model, guide, x, **{"draws": 7, **options})  # type: ignore[arg-type]


def tensor(data: ArvizData, group: str, name: str) -> Tensor:
    return torch.from_numpy(data[group][name].values)


# --- what is in it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", ["guide", "importance"])
def test_every_group_has_its_variables_under_their_names(kind: str, method: str) -> None:
    _, _, x, data = made(kind, method=method, num_particles=20)
    site = {"orbits": "e", "plain": None}.get(kind, "u")
    latents = {"z", "t"} | ({site, "v"} if site else set())
    # The prior is one for all sequences: a dimension of sequences would repeat it.
    for group, sequences in (("posterior", ("sequence",)), ("prior", ())):
        assert set(data[group].data_vars) == latents
        for name in latents - {"e"}:
            assert data[group][name].dims == ("chain", "draw", *sequences, "frame", "capsule", "position")
            assert data[group][name].shape == (1, 7, *(B for _ in sequences), S, 2, 4)
        if site == "e":
            assert data[group]["e"].dims == ("chain", "draw", *sequences, "capsule", "orbit")
        predicted = data[f"{group}_predictive"]["x"]
        assert predicted.dims == ("chain", "draw", *sequences, *PIXELS[1:])
        assert predicted.shape == (1, 7, *(B for _ in sequences), *x.shape[1:])
    if site:  # a point estimate has no draws
        assert float(data["constant_data"]["mu"]) == 2
        assert data["constant_data"]["mu"].dims == ()
    else:
        assert "constant_data" not in data
    assert data["observed_data"]["x"].dims == PIXELS
    assert torch.equal(tensor(data, "observed_data", "x"), x)
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "sequence")
    assert data["sample_stats"]["log_weight"].dims == ("chain", "draw", "sequence")
    assert data["sample_stats"]["lp"].dims == ("chain", "draw")
    assert set(data["sample_stats"].data_vars) == {"log_weight", "lp"}
    assert {value.dims for value in data["sequence_stats"].data_vars.values()} == {("sequence",)}
    assert set(data["sequence_stats"].data_vars) >= {"ess", "pareto_k"}
    assert set(data["log_prior"].data_vars) == {"z", site} - {None}
    assert {value.dims for value in data["log_prior"].data_vars.values()} == {("chain", "draw", "sequence")}
    told = {"method": method, "num_particles": 20, "seed": 0, "thinning": 1, "dtype": str(x.dtype)[6:]}
    for group in GROUPS:
        assert group not in data or told.items() <= data[group].attrs.items(), group


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_summed_or_exponentiated_is_in_double_precision(kind: str) -> None:
    model, _, x, data = made(kind)
    for group in ("log_likelihood", "log_prior"):
        assert {value.dtype for value in data[group].data_vars.values()} == {np.dtype("float64")}
    assert {value.dtype for value in data["sample_stats"].data_vars.values()} == {np.dtype("float64")}
    assert {value.dtype for value in data["posterior"].data_vars.values()} == {
        np.dtype(str(x.dtype).removeprefix("torch."))
    }
    total = sum(value.sum("sequence") for group in ("log_likelihood", "log_prior") for value in data[group].values())
    np.testing.assert_allclose(data["sample_stats"]["lp"].values, total.values, rtol=1e-12)
    # Against the same draws scored by the same model in double precision: what is left is rounding of each term.
    exact = copy.deepcopy(model).double()
    values = {site: tensor(data, "posterior", site).double() for site in model.prior_distributions()}
    with torch.no_grad():
        expected = exact.decode(exact.compose(values)).log_prob(x.double()).sum(-1)
        torch.testing.assert_close(tensor(data, "log_likelihood", "x"), expected, rtol=2e-7, atol=0)
        for site, prior in exact.prior_distributions().items():
            expected = prior.log_prob(values[site])
            torch.testing.assert_close(tensor(data, "log_prior", site), expected, rtol=2e-6, atol=1e-6)


def test_an_item_names_its_sequence_in_every_group() -> None:
    """Joined by item, the numbers of the drawn sequences stand beside the pixels of the split that they are of."""
    model = MODELS["roll"]()
    guide, split = default_guide(model), torch.rand(6, S, *FRAME)
    order = [3, 0, 5, 1]
    label = np.array(list("abcdef"))
    data = to_arviz(
        model, guide, split[order], draws=4,
        coords={"item": order, "label": label[order], "angle": split[order, :, 0, 0, 0]},
    )  # fmt: skip
    for group in GROUPS:
        part = data[group]
        if "sequence" in part.sizes:
            assert part["item"].dims == ("sequence",)
            assert part["item"].values.tolist() == part["sequence"].values.tolist() == order, group
            assert part["label"].values.tolist() == label[order].tolist(), group
        assert ("angle" in part.coords) == ({"sequence", "frame"} <= set(part.sizes)), group
    whole = xarray.DataArray(split.numpy(), dims=("item", *PIXELS[1:]), coords={"item": np.arange(6)})
    observed = data["observed_data"]["x"].swap_dims(sequence="item")
    both, found = xarray.align(whole, observed.drop_vars("sequence"), join="inner")
    assert both.sizes["item"] == 4
    np.testing.assert_array_equal(both.values, found.transpose(*whole.dims).values)
    # Groups join by themselves: their sequences are called by their items.
    one = data["posterior"]["z"].sel(sequence=5)
    assert int(one["item"]) == 5
    np.testing.assert_array_equal(one.values, data["posterior"]["z"].values[:, :, 2])


def test_items_of_a_bayesian_model_are_the_names_of_its_sequences() -> None:
    model, guide, x, _ = made("roll", draws=1)
    data = to_arviz(model, guide, x, draws=2, coords={"item": [1, 1, 2], "sequence": [7, 8, 9]})
    assert data["posterior"]["sequence"].values.tolist() == [7, 8, 9]  # a name of one's own stays
    assert data["posterior"]["item"].values.tolist() == [1, 1, 2]


@pytest.mark.parametrize("kind", ["roll", "normal", "orbits"])
def test_energies_and_t_follow_from_the_draws(kind: str) -> None:
    model, _, x, data = made(kind)
    for group in ("posterior", "prior"):
        z, v, t = (tensor(data, group, name) for name in ("z", "v", "t"))
        if kind == "orbits":
            value = tensor(data, group, "e")
            index = model.prior.index  # type: ignore[union-attr]
            torch.testing.assert_close(v, value[..., index].movedim(-3, -2))
        else:
            value = tensor(data, group, "u")
            w = model.topography.neighborhood(S, 4).to(value)
            for capsule in range(2):  # v = W u², capsule by capsule
                torch.testing.assert_close(
                    v[..., capsule, :].flatten(-2), value[..., capsule, :].square().flatten(-2) @ w.T
                )
        with torch.no_grad():
            torch.testing.assert_close(t, (z + 2) / (v + 1e-6).sqrt())
            torch.testing.assert_close(t, model.compose({"z": z, "e" if kind == "orbits" else "u": value}))
            if group == "posterior":
                expected = model.decode(t).log_prob(x).sum(-1).double()
                torch.testing.assert_close(tensor(data, "log_likelihood", "x"), expected, rtol=1e-6, atol=1e-5)


def test_the_weights_of_the_draws_are_p_over_q() -> None:
    model, guide, x, data = made("normal")
    with torch.no_grad():
        terms = tensor(data, "log_likelihood", "x")
        for site, distribution in model.prior_distributions().items():
            value = tensor(data, "posterior", site)
            terms = terms + distribution.log_prob(value) - guide.posterior(x)[site].log_prob(value).sum((-3, -2, -1))
    torch.testing.assert_close(tensor(data, "sample_stats", "log_weight"), terms)


def test_predicted_frames_are_new_ones() -> None:
    for kind in ("roll", "normal"):
        _, _, x, data = made(kind)
        frames = tensor(data, "posterior_predictive", "x")
        assert not torch.equal(frames[0, 0], x)
        assert not torch.equal(frames[0, 0], frames[0, 1])
        assert ((frames - x).abs() > 1e-3).float().mean() > 0.5
    # Given t, pixels have the likelihood's scale: 0.3 within five standard errors of a standard deviation.
    model, _, _, data = made("normal", draws=200)
    with torch.no_grad():
        residual = tensor(data, "posterior_predictive", "x") - model.decode(tensor(data, "posterior", "t")).mean
    assert abs(float(residual.std()) - 0.3) < 5 * 0.3 / math.sqrt(2 * residual.numel())


def test_the_prior_is_the_prior() -> None:
    _, _, _, data = made("roll", draws=400)
    z = tensor(data, "prior", "z")
    # Five standard errors of a mean and of a variance: a false alarm once in a million seeds.
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel())
    assert abs(float(z.var()) - 1) < 5 * math.sqrt(2 / z.numel())


def test_groups_can_be_left_out() -> None:
    _, _, _, data = made("roll", groups=("posterior", "sequence_stats"))
    assert {"posterior", "sequence_stats"} == {group for group in GROUPS if group in data}
    _, _, _, bare = made("roll", groups=("log_likelihood",))
    assert bare["log_likelihood"]["x"].shape == (1, 7, B)


def test_seeds_repeat_and_leave_the_global_state_alone() -> None:
    model, guide, x, first = made("roll", method="importance", seed=3)
    state = torch.get_rng_state()
    again = to_arviz(model, guide, x, draws=7, method="importance", seed=3)
    other = to_arviz(model, guide, x, draws=7, method="importance", seed=4)
    assert torch.equal(state, torch.get_rng_state())
    for group in (group for group in GROUPS if group in first):
        assert first[group].equals(again[group])
    assert not first["posterior"]["z"].equals(other["posterior"]["z"])
    assert not first["posterior_predictive"]["x"].equals(other["posterior_predictive"]["x"])


@pytest.mark.parametrize("method", ["guide", "importance"])
def test_chunks_change_memory_not_the_law(method: str) -> None:
    # One draw per chunk: each chunk replaces what was kept with its share of the weights.
    toy = Toy(0.3)
    x = toy.model(n_sequences=2).detach()
    for chunk_bytes in (1, 2**24):
        data = to_arviz(
            toy.model, toy.guide, x, draws=300, num_particles=600, method=method, chunk_bytes=chunk_bytes,
            groups=("posterior", "sequence_stats"),
        )  # fmt: skip
        mean = tensor(data, "posterior", "z").mean((0, 1))
        expected = toy.exact(x)[0] + (0.3 * toy.sd if method == "guide" else 0)
        # 16 means per case; 5 standard errors, enlarged by the particles' own: one false alarm in 10,000 seeds.
        spread = toy.sd * math.sqrt(
            math.exp(0.3) / 300 + (method != "guide") / float(data["sequence_stats"]["ess"].min())
        )
        assert ((mean - expected).abs() < 5 * spread).all()


# --- resampling ------------------------------------------------------------------------------------------------------


def test_resampling_moves_a_biased_guide_to_the_exact_posterior() -> None:
    toy = Toy(0.5)
    x = toy.model(n_sequences=4).detach()
    mean, sd = toy.exact(x)
    options = {"draws": 1000, "groups": ("posterior", "sequence_stats")}
    biased = to_arviz(toy.model, toy.guide, x, **options)  # type: ignore[arg-type]
    moved = to_arviz(toy.model, toy.guide, x, method="importance", num_particles=20_000, **options)  # type: ignore[arg-type]
    ess = tensor(moved, "sequence_stats", "ess").reshape(4, 1, 1, 1)
    error = sd * (1 / 1000 + 1 / ess).sqrt()
    before = (tensor(biased, "posterior", "z").mean((0, 1)) - mean) / sd
    after = (tensor(moved, "posterior", "z").mean((0, 1)) - mean) / error
    assert before.min() > 0.3  # planted at 0.5 standard deviations
    # 32 means within 4.5 of their standard errors: one false alarm in 4,600 seeds.
    assert after.abs().max() < 4.5
    spread = tensor(moved, "posterior", "z").std((0, 1)) / sd
    # The guide's standard deviations are exp(0.25) = 1.28 times too wide; theirs have a standard error of about 0.03.
    assert (spread - 1).abs().max() < 0.15
    assert (tensor(moved, "sequence_stats", "pareto_k") < 0.7).all()


def test_every_sequence_is_resampled_by_its_own_weights() -> None:
    toy = Toy(0.3)
    x = toy.model(n_sequences=64).detach()
    data = to_arviz(
        toy.model,
        toy.guide,
        x,
        draws=500,
        method="importance",
        num_particles=500,
        groups=("sample_stats", "sequence_stats"),
    )  # fmt: skip
    kept = tensor(data, "sample_stats", "log_weight")[0]
    distinct = torch.tensor([len(column.unique()) for column in kept.T])
    # Own weights leave hundreds of particles in play; weights summed over 64 sequences would leave a handful.
    assert distinct.min() > 100
    assert (tensor(data, "sequence_stats", "ess") > 100).all()


def test_draws_are_copied_only_as_often_as_their_weights_ask() -> None:
    share = torch.rand(50, 4, dtype=torch.float64).pow(8)
    share[:, 3] = 0.0
    share[[3, 7], 3] = torch.tensor([0.25, 0.75], dtype=torch.float64)
    expected = 20 * share / share.sum(0)
    total = torch.zeros_like(share)
    for _ in range(400):
        chosen = systematic(share, 20)
        counts = torch.stack([torch.bincount(column, minlength=50) for column in chosen.T], 1)
        assert ((counts >= expected.floor() - 1e-9) & (counts <= expected.ceil() + 1e-9)).all()
        total += counts
    assert total[[3, 7], 3].tolist() == [2000, 6000]
    # Whatever is left to chance is 0 or 1: 148 means within 4.5 standard errors, one false alarm in 1,000 seeds.
    assert ((total / 400 - expected).abs() <= 4.5 * 0.5 / 20).all()
    first = torch.stack([systematic(share, 20)[0] for _ in range(400)])[:, 3]
    assert abs(float((first == 7).double().mean()) - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 400)  # in random order


@pytest.mark.parametrize(("off", "worst"), [(0.1, 1.1), (0.8, 1.1)])
def test_the_error_that_importance_draws_claim_is_the_true_one(off: float, worst: float) -> None:
    """Means of 1,600 latents against the exact ones: root mean square error in units of sd / √ess.

    Their standard error is below 0.03; systematic resampling errs a little less than it claims, 0.75 to 0.95.
    """
    toy = Toy(off)
    x = toy.model(n_sequences=200).detach()
    data = to_arviz(
        toy.model, toy.guide, x, draws=200, method="importance", groups=("posterior", "sample_stats", "sequence_stats")
    )
    mean, sd = toy.exact(x)
    error = (tensor(data, "posterior", "z").mean((0, 1)) - mean) / sd
    stats = {name: tensor(data, "sequence_stats", name) for name in ("ess", "pareto_k", "distinct_draws")}
    claimed = float((error.square().mean((1, 2, 3)) * stats["ess"])[stats["pareto_k"] < 0.7].mean().sqrt())
    assert 0.65 < claimed < worst
    # What 200 draws would claim that were no copies is wrong where the guide is.
    assert (float((200 * error.square()).mean().sqrt()) > 1.2) == (off > 0.5)
    kept = tensor(data, "sample_stats", "log_weight")[0]
    assert stats["distinct_draws"].tolist() == [len(column.unique()) for column in kept.T]
    assert (stats["ess"] <= 200).all()
    assert float(data["posterior"].attrs["num_particles"]) == 2000


def test_resampled_draws_have_the_weights_that_they_were_kept_for() -> None:
    """Draws made a second time are those that were weighted, whatever the size of a pass."""
    model = MODELS["normal"]()
    guide = default_guide(model).double()
    x = torch.rand(B, S, *FRAME, dtype=torch.float64)
    for chunk_bytes in (1, 7 * x.numel() * 8, 2**24):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnreliableWeights)
            data = to_arviz(
                model, guide, x, draws=9, method="importance", num_particles=40, chunk_bytes=chunk_bytes, seed=1
            )  # fmt: skip
        with torch.no_grad():
            expected = tensor(data, "log_likelihood", "x").double()
            for site, distribution in model.prior_distributions().items():
                value = tensor(data, "posterior", site)
                q = guide.posterior(x)[site].log_prob(value).sum((-3, -2, -1))
                expected = expected + distribution.log_prob(value) - q
        torch.testing.assert_close(tensor(data, "sample_stats", "log_weight"), expected)


def test_weights_that_cannot_be_trusted_are_told() -> None:
    toy = Toy(3.0)
    x = toy.model(n_sequences=3).detach()
    with pytest.warns(UnreliableWeights, match=r"3 of 3 sequences have a Pareto k above 0\.7 .* distinct") as told:
        to_arviz(toy.model, toy.guide, x, draws=20, method="importance", groups=("sequence_stats",))
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreliableWeights)
        to_arviz(toy.model, toy.guide, x, draws=20, groups=("sequence_stats",))  # as the guide says: no claim is made
        good = Toy(0.1)
        to_arviz(good.model, good.guide, x, draws=20, method="importance", groups=("sequence_stats",))


# --- coordinates -----------------------------------------------------------------------------------------------------


def test_coordinates_of_sequences_and_frames() -> None:
    angle = torch.arange(B * S).reshape(B, S)
    coords = {"label": ["a", "b", "c"], "angle": angle, "frame": [0, 20, 40, 60]}
    _, _, _, data = made("plain", coords=coords)
    assert data["posterior"]["label"].dims == ("sequence",)
    assert data["posterior"]["angle"].dims == ("sequence", "frame")
    assert data["posterior"]["z"].sel(frame=40).shape == (1, 7, B, 2, 4)
    assert list(data["log_likelihood"]["x"]["label"].values) == ["a", "b", "c"]
    _, _, _, mixed = made("roll", coords=coords)
    chosen = mixed["posterior"].sel(sequence=mixed["observed_data"]["label"] == "b")
    assert chosen["z"].shape == (1, 7, 1, S, 2, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coords": {"x": [0, 1, 2]}}, "'x', which is taken"),
        ({"coords": {"label": [0, 1]}}, "expected \\(3,\\)"),
        ({"coords": {"frame": [0, 1]}}, "2 values; expected 4"),
        ({"method": "magic"}, "expected one of guide, importance, nuts"),
        ({"groups": ("posterior", "prio")}, "no group 'prio'"),
        ({"draws": 0}, "at least 1"),
        ({"num_particles": 3}, "at least draws, 7"),
    ],
)
def test_mistakes_get_one_sentence(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        made("plain", **options)
    assert "\n" not in str(caught.value)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_a_file_is_read_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    _, _, _, data = made(kind, coords={"label": ["a", "b", "c"]})
    path = to_netcdf(data, tmp_path / "deep" / "posterior.nc")
    again = from_netcdf(path)
    for group in (group for group in GROUPS if group in data):
        before, after = (xarray.Dataset(d[group].data_vars, d[group].coords, d[group].attrs) for d in (data, again))
        xarray.testing.assert_identical(before, after)
        assert {name: v.dtype for name, v in before.data_vars.items()} == {
            name: v.dtype for name, v in after.data_vars.items()
        }
    to_netcdf(again, path)  # what was read holds no file open
    assert [entry.name for entry in path.parent.iterdir()] == ["posterior.nc"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    _, _, _, data = made("plain")
    path = to_netcdf(data, tmp_path / "posterior.nc")
    before = path.read_bytes()
    data["posterior"].attrs["bad"] = object()
    with pytest.raises(TypeError):
        to_netcdf(data, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["posterior.nc"]


def test_files_that_are_none_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        from_netcdf(tmp_path / "none.nc")
    (tmp_path / "bad.nc").write_bytes(b"not a file of numbers")
    with pytest.raises(ValueError, match="not a readable NetCDF file"):
        from_netcdf(tmp_path / "bad.nc")


# --- in pieces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["guide", "importance"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore::pyro_tvae.inference.UnreliableWeights")
def test_a_file_that_is_written_in_pieces_holds_what_memory_would(kind: str, method: str, tmp_path: Path) -> None:
    options = {"method": method, "coords": {"item": [4, 2, 9], "label": ["a", "b", "c"]}, "attributes": {"run": "r"}}
    torch.manual_seed(5)
    model, guide, x, whole = made(kind, **options, chunk_bytes=3 * B * S * 6 * 4)
    path = tmp_path / "deep" / "posterior.nc"
    lazy = to_arviz(
        model, guide, x, draws=7, path=path, chunk_bytes=3 * B * S * 6 * 4, **options  # type: ignore[arg-type]
    )  # fmt: skip
    assert [entry.name for entry in path.parent.iterdir()] == ["posterior.nc"]
    for data in (lazy, from_netcdf(path)):
        for group in (group for group in GROUPS if group in whole):
            one, other = (xarray.Dataset(d[group].data_vars, d[group].coords, d[group].attrs) for d in (whole, data))
            xarray.testing.assert_identical(one, other.load())
            assert {name: v.dtype for name, v in one.variables.items() if name != "label"} == {
                name: v.dtype for name, v in other.variables.items() if name != "label"
            }
            assert other.attrs["run"] == "r"
    assert len({group for group in GROUPS if group in whole}) == 10 - (kind == "plain")


def test_nuts_is_written_in_pieces_too(tmp_path: Path) -> None:
    model = MODELS["plain"]()
    guide, x = default_guide(model), torch.rand(2, S, *FRAME)
    options = {"draws": 3, "method": "nuts", "num_chains": 2, "warmup_steps": 5, "thin": 2, "chunk_bytes": 1}
    whole = to_arviz(model, guide, x, **options)  # type: ignore[arg-type]
    again = to_arviz(model, guide, x, path=tmp_path / "nuts.nc", **options)  # type: ignore[arg-type]
    assert whole["posterior"]["z"].shape == (2, 3, 2, S, 2, 4)
    assert whole["posterior"].attrs["thinning"] == 2
    assert again["sample_stats"]["diverging"].dtype == bool
    for group in (group for group in GROUPS if group in whole):
        assert whole[group].equals(again[group].load()), group
    dense = to_arviz(model, guide, x, **(options | {"draws": 6, "thin": 1}))  # type: ignore[arg-type]
    np.testing.assert_array_equal(dense["posterior"]["z"].values[:, 1::2], whole["posterior"]["z"].values)
    np.testing.assert_array_equal(dense["sample_stats"]["lp"].values[:, 1::2], whole["sample_stats"]["lp"].values)
    result = nuts(model, x, init=guide, num_samples=6, num_chains=2, warmup_steps=5, seed=0)
    thinned = to_arviz(model, guide, x, result=result, thin=2)
    np.testing.assert_array_equal(thinned["posterior"]["z"].values, result.draws["z"][:, 1::2].numpy())
    assert thinned["prior"].sizes["draw"] == 3
    assert thinned["posterior"].attrs["thinning"] == 2
    with pytest.raises(ValueError, match="thin is 2 with method='guide'; expected"):
        to_arviz(model, guide, x, thin=2)


def test_a_part_of_a_file_is_read_alone(tmp_path: Path) -> None:
    _, _, _, data = made("roll", path=tmp_path / "posterior.nc")
    part = from_netcdf(tmp_path / "posterior.nc", groups=["sample_stats", "sequence_stats"])
    assert {"sample_stats", "sequence_stats"} == {group for group in GROUPS if group in part}
    assert part["sequence_stats"].equals(data["sequence_stats"])
    with pytest.raises(ValueError, match=r"has no group .draws.; expected some of .*posterior_predictive"):
        from_netcdf(tmp_path / "posterior.nc", groups=["draws"])
    import h5py

    with h5py.File(tmp_path / "strange.nc", "w") as file:
        file.create_group("a\nb")
    with pytest.raises(ValueError, match=r"has no group .draws.; expected some of .a\\nb.\.$"):
        from_netcdf(tmp_path / "strange.nc", groups=["draws"])


def test_variables_can_be_left_out(tmp_path: Path) -> None:
    for path in (None, tmp_path / "posterior.nc"):
        _, _, _, data = made("roll", variables=["t"], path=path)
        assert set(data["posterior"].data_vars) == set(data["prior"].data_vars) == {"t"}
        assert set(data["log_prior"].data_vars) == {"z", "u"}
    with pytest.raises(ValueError, match="no variable 'w'; expected some of t, u, v, z"):
        made("roll", variables=["t", "w"])
    with pytest.raises(TypeError, match=r"such as \['t'\]"):
        made("roll", variables="t")


def test_pixels_of_zeros_and_ones_take_a_byte_and_are_read_as_before(tmp_path: Path) -> None:
    import h5py

    for road, path in (("pieces", tmp_path / "one.nc"), ("memory", tmp_path / "two.nc")):
        _, _, _, data = made("roll", draws=40, path=path if road == "pieces" else None)
        if road == "memory":
            to_netcdf(data, path)
        with h5py.File(path) as file:
            assert file["posterior_predictive/x"].dtype == np.int8
        frames = from_netcdf(path)["posterior_predictive"]["x"]
        assert frames.dtype == np.float32
        assert set(np.unique(frames.values)) == {0.0, 1.0}


class Gray(Bernoulli):
    """Draws gray frames, as an own likelihood may."""

    def forward(self, parameters: Tensor) -> TorchDistribution:
        return dist.ContinuousBernoulli(logits=parameters)


def test_gray_draws_of_a_subclass_of_bernoulli_are_not_packed(tmp_path: Path) -> None:
    model = TVAE((1, 4, 4), 3, 1, 3, likelihood=Gray())
    x = torch.rand(2, 3, 1, 4, 4)
    to_arviz(model, default_guide(model), x, draws=4, seed=0, path=tmp_path / "a.nc")
    frames = from_netcdf(tmp_path / "a.nc")["posterior_predictive"]["x"].values
    assert ((frames > 0) & (frames < 1)).all()


def test_zarr_holds_what_netcdf_does(tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="an extra of this package")
    _, _, _, data = made("orbits", coords={"label": ["a", "bcd", "naïve"]})
    for source in (data, from_netcdf(to_netcdf(data, tmp_path / "file.nc"), lazy=True)):
        path = to_zarr(source, tmp_path / f"{id(source)}.zarr")
        again = from_netcdf(path)
        for group in (group for group in GROUPS if group in data):
            xarray.testing.assert_equal(
                *(xarray.Dataset(d[group].data_vars, d[group].coords) for d in (data, again))
            )  # fmt: skip
        with pytest.raises(FileExistsError, match="choose another path"):
            to_zarr(data, path)


FRESH = """
import sys, warnings
warnings.simplefilter("ignore")
import matplotlib
matplotlib.use("Agg")
import arviz as az
data = az.from_netcdf(sys.argv[1])
assert data.posterior["t"].dims == ("chain", "draw", "sequence", "frame", "capsule", "position")
assert list(data.observed_data["label"].values) == ["a", "b", "c"]
table = az.summary(data, var_names=["z"])
assert len(table) == 3 * 4 * 2 * 4, len(table)
assert table["mean"].astype(float).notna().all()
loo = az.loo(data, pointwise=True)
assert len(loo.pareto_k) == 3
az.plot_forest(data, var_names=["z"], coords={"sequence": 0, "capsule": 0})
import matplotlib.pyplot as plt
plt.savefig(sys.argv[2])
assert not [name for name in sys.modules if name.startswith(("pyro", "torch"))]
"""


def test_a_fresh_process_with_arviz_alone_reads_it(tmp_path: Path) -> None:
    _, _, _, data = made("roll", draws=50, coords={"label": ["a", "b", "c"]})
    path = to_netcdf(data, tmp_path / "posterior.nc")
    command = [sys.executable, "-c", FRESH, str(path), str(tmp_path / "forest.png")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "forest.png").stat().st_size > 5000


def test_numbers_that_no_file_has_get_one_sentence() -> None:
    model = TVAE((1, 2, 2), 2, 1, 2, CapsuleRoll(2))
    guide = MeanFieldGuide(model).bfloat16()
    with pytest.raises(ValueError, match="of type bfloat16, which NumPy and files do not have; expected single"):
        to_arviz(model.bfloat16(), guide, torch.rand(2, 2, 1, 2, 2).bfloat16(), draws=2)


HOMELESS = """
import os, pwd
os.environ.pop("HOME", None)

def unknown(*_):
    raise KeyError("uid not found")

pwd.getpwuid = unknown  # as in a container that runs as any user
import torch
from pyro_tvae import TVAE, MeanFieldGuide
from pyro_tvae.inference import nuts, to_arviz
model = TVAE((1, 2, 2), 2, 1, 2)
guide, x = MeanFieldGuide(model), torch.rand(2, 2, 1, 2, 2)
guide.posterior = lambda *_: print("drawn")
for call in (lambda: to_arviz(model, guide, x, draws=2), lambda: nuts(model, x, init=guide)):
    try:
        call()
    except FileNotFoundError as error:
        print(error)
    except Exception as error:  # of the guide that is none
        print("imported")
"""


class Logged(TVAE):
    """Notes one number of a whole batch, which belongs to no sequence."""

    def heads(self, t: Tensor) -> None:
        pyro.deterministic("energy", t.square().sum())


class Scored(Likelihood):
    def forward(self, parameters: Tensor) -> TorchDistribution:
        return Unsampled(parameters, 1.0)


@pytest.mark.parametrize("method", ["guide", "importance", "nuts"])
@pytest.mark.parametrize("wrong", [Logged, partial(TVAE, likelihood=Scored())])
def test_what_fails_after_the_draws_fails_before(
    wrong: Callable[..., TVAE], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrong(FRAME, S, 1, 2, NoTopography())
    made: list[str] = []

    def counted(whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            made.append("")
            return whole(*given, **options)

        return call

    for name in ("guide_draws", "nuts"):
        monkeypatch.setattr(posterior, name, counted(getattr(posterior, name)))
    with pytest.raises((NotImplementedError, ValueError)):
        to_arviz(model, default_guide(model), torch.rand(B, S, *FRAME), method=method, draws=7)
    assert len(made) <= 1  # the few that are tried


@pytest.mark.skipif(sys.platform == "win32", reason="it has no pwd")
def test_without_a_home_arviz_is_missed_before_the_draws() -> None:
    """Some of its versions look for a cache in it when they are imported; others do not mind."""
    done = subprocess.run([sys.executable, "-c", HOMELESS], capture_output=True, text=True, timeout=300)
    sentence = (
        "ArviZ cannot be imported by a user without a home folder, as of a container; set HOME to a folder that is "
        "there (HOME=/tmp).\n"
    )
    assert done.stdout in (sentence * 2, "drawn\nimported\n" * 2), done.stderr
