"""The published experiments: every row has its file, which says what was published, and runs from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import pyro_tvae
from pyro_tvae.experiments import datasets
from pyro_tvae.experiments.commands.train import train_run
from pyro_tvae.experiments.config.building import build
from pyro_tvae.experiments.config.composition import compose, make, options
from pyro_tvae.experiments.config.errors import plain_errors
from pyro_tvae.experiments.datasets import SCALE, Images, Splits
from pyro_tvae.networks import Shift

SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1e-4, "momentum": 0.9}
ALONE = ("rotation", "hue", "scale")
BOTH = ("rotation+hue",)


@dataclass(frozen=True)
class Row:
    """What was published of one experiment; MNIST with one of three factors unless said otherwise."""

    topography: str
    arguments: dict[str, Any]
    source: str = "mnist"
    frame: tuple[int, int, int] = (3, 28, 28)
    capsules: tuple[int, int] = (18, 18)
    n_frames: int = 18
    moving: tuple[str, ...] = ALONE
    tested: tuple[str, ...] = ALONE
    mu: float | None = 30.0
    eps: float = 1e-6
    sizes_tested: tuple[float, ...] = ()
    batch: int = 8
    epochs: int = 100


def sprite_row(topography: str, arguments: dict[str, Any], **options: Any) -> Row:
    factors = ("scale", "orientation", "x", "y")
    size: dict[str, Any] = {"frame": (1, 64, 64), "capsules": (15, 15), "n_frames": 15}
    return Row(topography, arguments, source="dsprites", moving=factors, tested=factors, **size, **options)


PARTIAL = ("CapsuleRoll", {"kernel": 13, "width": 1})
ROUNDED = (0.6, 0.64, 0.68, 0.72, 0.76, 0.79, 0.83, 0.87, 0.91, 0.95, 0.99, 1.03, 1.07, 1.11, 1.14, 1.18, 1.22, 1.26)
ROWS = {
    "tvae_2d_mnist": Row(
        "Torus",
        {"kernel": (5, 5), "grid": (18, 18)},
        frame=(1, 28, 28),
        capsules=(1, 324),
        n_frames=1,
        moving=(),
        tested=(),
        mu=10.0,
        batch=128,
        epochs=250,
    ),
    "tvae_lhalf_mnist": Row("CapsuleRoll", {"kernel": 18, "width": 1}, sizes_tested=ROUNDED),
    "tvae_lpartial_mnist": Row(*PARTIAL, sizes_tested=ROUNDED),
    "tvae_lshort_mnist": Row("CapsuleRoll", {"kernel": 5, "width": 1}, sizes_tested=ROUNDED),
    "bubbles_mnist": Row("Stationary", {"kernel": (5, 3)}, sizes_tested=ROUNDED),
    "tvae_l0_mnist": Row("Stationary", {"kernel": (1, 3)}, sizes_tested=ROUNDED),
    "nontvae_mnist": Row("NoTopography", {}, mu=None, sizes_tested=ROUNDED),
    "tvae_lhalf_dsprites": sprite_row("CapsuleRoll", {"kernel": 15, "width": 0}),
    "tvae_lpartial_dsprites": sprite_row("CapsuleRoll", {"kernel": 10, "width": 0}),
    "tvae_lshort_dsprites": sprite_row("CapsuleRoll", {"kernel": 5, "width": 0}),
    "bubbles_dsprites": sprite_row("Stationary", {"kernel": (5, 5)}),
    "tvae_l0_dsprites": sprite_row("Stationary", {"kernel": (1, 3)}, eps=1e-3),
    "nontvae_dsprites": sprite_row("NoTopography", {}, mu=None),
    "tvae_lpartial_mnist_generalization": Row(*PARTIAL, tested=BOTH, sizes_tested=(1.0,)),
    "tvae_lpartial_rotcolor_mnist": Row(*PARTIAL, moving=BOTH, tested=BOTH),
    "tvae_lpartial_perspective_mnist": Row(*PARTIAL, moving=("perspective+hue",), tested=("perspective+hue",)),
}


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in place of digits: the tests need no file."""

    def source(root: str, download: bool, seed: int) -> Splits:
        pixels = torch.randint(256, (12, 1, 28, 28), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        return Splits(*3 * [Images(pixels, torch.arange(12) % 10)])

    monkeypatch.setattr(datasets, "mnist", source)


def differences(name: str, row: Row) -> list[str]:
    """Where the experiment of that name is not what was published; empty where it is."""
    if name not in options()["experiment"]:
        return [f"there is no experiment called {name}"]
    config = compose([f"experiment={name}", "data.n_validation=null", "data.n_test=null"])
    source = config.data.source["_target_"].rsplit(".", 1)[-1]
    parts = build(config)
    model, guide, data = parts.model, parts.guide, parts.data
    topography = model.topography
    plain = row.topography == "NoTopography"
    n, n_pixels = model.n_latents, row.frame[0] * row.frame[1] * row.frame[2]
    encoder = [(3 * n, n_pixels), (2 * n, 3 * n), (2 * n, 2 * n)]
    decoder = [(2 * n, n), (3 * n, 2 * n), (n_pixels, 3 * n)]
    found: dict[str, tuple[Any, Any]] = {
        "name": (config.name, name),
        "source": (source, row.source),
        "frame": (model.frame_shape, row.frame),
        "sizes": (model.latent_shape, (row.n_frames, *row.capsules)),
        "frames of the data": (next(data.batches("test"))["x"].shape[1:], (row.n_frames, *row.frame)),
        "topography": (type(topography).__name__, row.topography),
        "arguments": ({key: getattr(topography, key) for key in row.arguments}, row.arguments),
        "boundary": (topography.boundary, "circular"),
        "learned": (topography.raw_weight, None),
        "prior": (type(model.prior), type(None) if plain else pyro_tvae.GaussianEnergy),
        "guide": (type(guide), pyro_tvae.MeanFieldGuide),
        "log-variance": (config.guide.initial_log_variance, 0.0),
        "likelihood": (type(model.likelihood), pyro_tvae.Bernoulli),
        "dearest pixel": (
            pytest.approx(float(-model.likelihood(torch.tensor(-1e3)).log_prob(torch.tensor(1.0)))),
            15.942385,
        ),
        "mu": (None if plain else pytest.approx(model.mu.item()), row.mu),
        "eps": (model.eps, row.eps),
        "encoder": (weights(guide.z_encoder), encoder),
        "decoder": (weights(model.decoder), decoder),
        "centered": (isinstance(model.decoder[0], Shift), False),
        "output biases": ([*model.decoder.parameters()][-1].shape, (row.frame[0], 1, 1)),
        "sizes tested": (sizes(data.datasets["test"].renderer), row.sizes_tested),
        "training": ((data.moving, data.datasets["validation"].moving), (row.moving, row.moving)),
        "test": (data.datasets["test"].moving, row.tested),
        "batch": (data.batch_size, row.batch),
        "epochs": ((config.fit.max_epochs, config.fit.max_steps), (row.epochs, -1)),
        "warm-up": ((config.fit.warmup_steps, config.fit.frame_dropout), (0, 0.0)),
        "particles": ((config.fit.num_particles, config.fit.gradient_clip, config.fit.patience), (1, None, None)),
        "optimizer": (OmegaConf.to_container(config.optimizer), {"optimizer": SGD, "schedule": None}),
        "all training data": (config.data.n_train, None),
        "baseline": (config.baseline.enabled, False),
    }
    return [f"{name}: {what} is {is_}, published {was}" for what, (is_, was) in found.items() if is_ != was]


def sizes(renderer: Any) -> tuple[float, ...]:
    """The values of scale that sequences are rendered with; none where they keep their size."""
    transformations = getattr(renderer, "transformations", None)
    return () if transformations is None else transformations.factors.get("scale", ())


def weights(network: torch.nn.Module) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, torch.nn.Linear)]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_what_was_published(name: str) -> None:
    assert differences(name, ROWS[name]) == []


def test_there_are_sixteen_rows() -> None:
    assert len(ROWS) == 16


CHANGES: list[Callable[[Row], Row]] = [
    lambda row: replace(row, mu=10.0),
    lambda row: replace(row, eps=1e-3),
    lambda row: replace(row, arguments={"kernel": 13, "width": 0}),
    lambda row: replace(row, topography="Stationary"),
    lambda row: replace(row, source="dsprites"),
    lambda row: replace(row, capsules=(15, 18)),
    lambda row: replace(row, tested=BOTH),
    lambda row: replace(row, moving=ALONE[:2]),
    lambda row: replace(row, batch=128),
    lambda row: replace(row, epochs=250),
    lambda row: replace(row, sizes_tested=SCALE),
]


def test_a_row_that_differs_or_has_no_file_would_be_noticed() -> None:
    row = ROWS["tvae_lpartial_mnist"]
    for change in CHANGES:
        assert len(differences("tvae_lpartial_mnist", change(row))) == 1
    assert differences("tvae_lpartal_mnist", row) == ["there is no experiment called tvae_lpartal_mnist"]
    assert differences("lpartial", row)


TINY = [
    "data.n_train=4",
    "data.n_validation=2",
    "data.n_test=8",
    "data.batch_size=2",
    "fit.max_steps=2",
    "fit.progress=false",
    "evaluation.num_particles=2",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs_from_end_to_end(name: str, tmp_path: Path) -> None:
    """Two capsules only, and the torus 4 x 4: files of the published size take longer to write than to compute."""
    small = ["model.capsule_dim=16", "topography.grid=[4,4]"] if name == "tvae_2d_mnist" else ["model.n_capsules=2"]
    train_run(compose([f"experiment={name}", *TINY, *small]), tmp_path)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["name"] == name
    assert record["data"]["n_frames"] == ROWS[name].n_frames
    assert record["data"]["moving"] == list(ROWS[name].tested)
    keys = {row["key"] for row in record["rows"]}
    assert {"explained", "iwae"} <= keys
    assert {key.removeprefix("roll/") for key in keys if key.startswith("roll/")} <= set(ROWS[name].tested)
    assert ("forward_roll" in record) == (ROWS[name].n_frames > 1)
    assert (tmp_path / "report.html").is_file()
    assert not (tmp_path / "plain_vae.safetensors").exists()


def test_a_budget_changes_data_length_and_recipe_alone() -> None:
    for name in ("tvae_2d_mnist", "tvae_lpartial_rotcolor_mnist", "tvae_l0_dsprites", "nontvae_dsprites"):
        published = OmegaConf.to_container(compose([f"experiment={name}"]))
        assert OmegaConf.to_container(compose([f"experiment={name}", "budget=paper"])) == published
        still, plain = name == "tvae_2d_mnist", name == "nontvae_dsprites"
        of_an_hour = (6000 if still else 5000, 1500 if plain else 500)
        for budget, length in (("hour", of_an_hour), ("minutes", (500, 50))):
            config = compose([f"experiment={name}", f"budget={budget}"])
            assert (config.fit.max_epochs, config.fit.max_steps, config.fit.warmup_steps) == (-1, *length)
            # Sequences of a single frame are many: d′ needs images of every class; and there is no half of a frame.
            assert (config.data.n_train is None, config.data.n_test >= 1000) == (still, still)
            assert config.fit.subsample_frames == (None if still else 0.5)
            assert config.guide.initial_log_variance == (-5 if plain and budget == "hour" else 0)
            adam = make(config.optimizer.optimizer)([torch.nn.Parameter(torch.zeros(1))])
            assert isinstance(adam, torch.optim.Adam)
            assert (adam.defaults["lr"], [*adam.defaults["betas"]], adam.defaults["fused"]) == (1e-3, [0.9, 0.99], True)
            changed = OmegaConf.to_container(config)
            assert isinstance(changed, dict)
            assert isinstance(published, dict)
            for part, keys in {
                "data": ("n_train", "n_validation", "n_test"),
                "model": ("centered",),
                "fit": ("max_epochs", "max_steps", "warmup_steps", "subsample_frames"),
                "guide": ("initial_log_variance",),
            }.items():
                for key in keys:
                    changed[part][key] = published[part][key]
            assert changed | {"optimizer": None} == published | {"optimizer": None}


def test_the_command_line_has_the_last_word() -> None:
    config = compose(["budget=hour", "experiment=tvae_lhalf_mnist", "optimizer=sgd", "fit.max_steps=7", "model.mu=5"])
    assert config.optimizer.optimizer["_target_"] == "torch.optim.SGD"
    assert (config.fit.max_steps, config.model.mu, config.topography.kernel) == (7, 5, 18)


@pytest.mark.filterwarnings("ignore")
def test_a_plain_vae_beside_a_row_is_fitted_like_it(tmp_path: Path) -> None:
    overrides = ["experiment=tvae_lshort_mnist", *TINY, "model.n_capsules=2", "baseline.enabled=true"]
    config = compose([*overrides, "guide.initial_log_variance=-2"])
    train_run(config, tmp_path)
    _, guide = pyro_tvae.load(tmp_path / "plain_vae.safetensors")
    means, log_variances = list(guide.z_encoder.parameters())[-1].detach().chunk(2)
    assert means.mean().item() == pytest.approx(0, abs=0.2)
    assert log_variances.mean().item() == pytest.approx(-2, abs=0.2)
    assert (config.baseline.max_epochs, config.baseline.warmup_steps) == (100, 0)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert "plain VAE, rolled" in record["forward_roll"]["log_likelihood"]


def test_sprites_train_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyro_tvae.experiments.cli", "train"]
    arguments = ["experiment=tvae_lpartial_dsprites", "budget=minutes", *TINY, "model.n_capsules=2"]
    result = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "roll correlation, orientation" in result.stdout


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("data.source.path=/nowhere/dsprites.npz", "/nowhere/dsprites.npz does not exist; give the path"),
        ("data.source.moving=[rotation]", "moving names 'rotation', which is not a factor here; expected one of scale"),
        ("data.n_test=5000", "n_test is 5000, but the test split holds 4048; expected 1 to 4048"),
        ("experiment=tvae_lpartial_dsprite", "did you mean tvae_lpartial_dsprites"),
        ("budget=our", "did you mean hour"),
    ],
)
def test_a_mistake_in_a_row_is_one_sentence(mistake: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), plain_errors():
        build(compose(["experiment=tvae_lpartial_dsprites", *TINY, mistake]))
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1
