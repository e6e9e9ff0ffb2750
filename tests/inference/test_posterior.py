"""Posterior draws as ArviZ data: names, arithmetic, resampling against exact posteriors, and files other tools read."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import xarray
from torch import Tensor, nn

from pyro_tvae import TVAE, CapsuleRoll, Guide, MeanFieldGuide, Network, Normal, NoTopography, OrbitEnergy
from pyro_tvae.guides import default_guide
from pyro_tvae.inference.posterior import GROUPS, ArvizData, from_netcdf, to_arviz, to_netcdf

FRAME = (1, 2, 3)
S, B = 4, 3

MODELS: dict[str, Callable[[], TVAE]] = {
    "roll": lambda: TVAE(FRAME, S, 2, 4, CapsuleRoll(3, 1), mu=2.0),
    "orbits": lambda: TVAE(FRAME, S, 2, 4, CapsuleRoll(4, 0), prior=OrbitEnergy(), mu=2.0),
    "plain": lambda: TVAE(FRAME, S, 2, 4, NoTopography()),
    "normal": lambda: TVAE(FRAME, S, 2, 4, CapsuleRoll(3, 1), likelihood=Normal(0.3), mu=2.0).double(),
}


class Affine(Network):
    """Decoder and encoders of one affine layer: with Normal pixels and no topography, the posterior is Gaussian."""

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(-3), nn.Linear(math.prod(frame_shape), n_outputs))

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        return nn.Sequential(nn.Linear(n_latents, math.prod(frame_shape)), nn.Unflatten(-1, tuple(frame_shape)))


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
    latents = {"z", "t"} | ({site, "v", "mu"} if site else set())
    lattice = ("chain", "draw", "sequence", "frame", "capsule", "position")
    pixels = ("sequence", "frame", "channel", "height", "width")
    for group in ("posterior", "prior"):
        assert set(data[group].data_vars) == latents
        for name in latents - {"e", "mu"}:
            assert data[group][name].dims == lattice
            assert data[group][name].shape == (1, 7, B, S, 2, 4)
        if site == "e":
            assert data[group]["e"].dims == ("chain", "draw", "sequence", "capsule", "orbit")
        if site:
            assert data[group]["mu"].dims == ("chain", "draw")
            assert (data[group]["mu"] == 2).all()
    for group in ("posterior_predictive", "prior_predictive"):
        assert data[group]["x"].dims == ("chain", "draw", *pixels)
        assert data[group]["x"].shape == (1, 7, *x.shape)
    assert data["observed_data"]["x"].dims == pixels
    assert torch.equal(tensor(data, "observed_data", "x"), x)
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "sequence")
    assert data["sample_stats"]["log_weight"].dims == ("chain", "draw", "sequence")
    assert data["sample_stats"]["pareto_k"].dims == data["sample_stats"]["ess"].dims == ("sequence",)
    assert data["posterior"].attrs["method"] == method


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
                expected = model.decode(t).log_prob(x).sum(-1)
                torch.testing.assert_close(tensor(data, "log_likelihood", "x"), expected.double())


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
    _, _, _, data = made("roll", groups=("posterior", "sample_stats"))
    assert {"posterior", "sample_stats"} == {group for group in GROUPS if group in data}
    _, _, _, bare = made("roll", groups=("log_likelihood",))
    assert bare["log_likelihood"]["x"].shape == (1, 7, B)


def test_seeds_repeat_and_leave_the_global_state_alone() -> None:
    model, guide, x, first = made("roll", method="importance", seed=3)
    state = torch.get_rng_state()
    again = to_arviz(model, guide, x, draws=7, method="importance", seed=3)
    other = to_arviz(model, guide, x, draws=7, method="importance", seed=4)
    assert torch.equal(state, torch.get_rng_state())
    for group in GROUPS:
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
            groups=("posterior", "sample_stats"),
        )  # fmt: skip
        mean = tensor(data, "posterior", "z").mean((0, 1))
        expected = toy.exact(x)[0] + (0.3 * toy.sd if method == "guide" else 0)
        # 16 means per case; 5 standard errors, enlarged by the particles' own: one false alarm in 10,000 seeds.
        spread = toy.sd * math.sqrt(
            math.exp(0.3) / 300 + (method != "guide") / float(data["sample_stats"]["ess"].min())
        )
        assert ((mean - expected).abs() < 5 * spread).all()


# --- resampling ------------------------------------------------------------------------------------------------------


def test_resampling_moves_a_biased_guide_to_the_exact_posterior() -> None:
    toy = Toy(0.5)
    x = toy.model(n_sequences=4).detach()
    mean, sd = toy.exact(x)
    options = {"draws": 1000, "groups": ("posterior", "sample_stats")}
    biased = to_arviz(toy.model, toy.guide, x, **options)  # type: ignore[arg-type]
    moved = to_arviz(toy.model, toy.guide, x, method="importance", num_particles=20_000, **options)  # type: ignore[arg-type]
    ess = tensor(moved, "sample_stats", "ess").reshape(4, 1, 1, 1)
    error = sd * (1 / 1000 + 1 / ess).sqrt()
    before = (tensor(biased, "posterior", "z").mean((0, 1)) - mean) / sd
    after = (tensor(moved, "posterior", "z").mean((0, 1)) - mean) / error
    assert before.min() > 0.3  # planted at 0.5 standard deviations
    # 32 means within 4.5 of their standard errors: one false alarm in 4,600 seeds.
    assert after.abs().max() < 4.5
    spread = tensor(moved, "posterior", "z").std((0, 1)) / sd
    # The guide's standard deviations are exp(0.25) = 1.28 times too wide; theirs have a standard error of about 0.03.
    assert (spread - 1).abs().max() < 0.15
    assert (tensor(moved, "sample_stats", "pareto_k") < 0.7).all()


def test_every_sequence_is_resampled_by_its_own_weights() -> None:
    toy = Toy(0.3)
    x = toy.model(n_sequences=64).detach()
    data = to_arviz(
        toy.model, toy.guide, x, draws=500, method="importance", num_particles=500, groups=("sample_stats",)
    )
    kept = tensor(data, "sample_stats", "log_weight")[0]
    distinct = torch.tensor([len(column.unique()) for column in kept.T])
    # Own weights leave hundreds of particles in play; weights summed over 64 sequences would leave a handful.
    assert distinct.min() > 100
    assert (tensor(data, "sample_stats", "ess") > 100).all()


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
    for group in GROUPS:
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


FRESH = """
import sys, warnings
warnings.simplefilter("ignore")
import matplotlib
matplotlib.use("Agg")
import arviz as az
data = az.from_netcdf(sys.argv[1])
assert data.posterior["t"].dims == ("chain", "draw", "sequence", "frame", "capsule", "position")
assert list(data.observed_data["label"].values) == ["a", "b", "c"]
table = az.summary(data, var_names=["mu", "z"])
assert len(table) == 1 + 3 * 4 * 2 * 4, len(table)
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


COMPARE = """
import sys, warnings
warnings.simplefilter("ignore")
import arviz as az
fitted = {name: az.from_netcdf(f"{name}.nc") for name in ("orbits", "roll")}
table = az.compare(fitted)
LINES
columns = ["elpd_loo", "p_loo", "elpd_diff", "dse", "warning"]
assert list(shown.columns) == columns, shown
best, other = shown["elpd_loo"]
assert best >= other
# ArviZ 1.x shows as many digits of each number as its standard error leaves.
digits = 0.25 + (0 if az.__version__.startswith("0") else 0.5 * float(shown["dse"].iloc[1]) + 0.01 * abs(best))
assert abs(abs(shown["elpd_diff"].iloc[1]) - (best - other)) < digits, shown
"""


def test_the_pages_comparison_reads_either_version(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/likelihoods.md").read_text(encoding="utf-8")
    start = page.index(">>> names = ")
    lines = [line.removeprefix(">>> ") for line in page[start:].splitlines()[:2]]
    for kind in ("orbits", "roll"):
        to_netcdf(made(kind, draws=120)[3], tmp_path / f"{kind}.nc")
    code = COMPARE.replace("LINES", f"{lines[0]}\nshown = {lines[1]}")
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
