"""Configuration: every option builds, mistakes get one sentence with the nearest names."""

from __future__ import annotations

import math
import re
from importlib.resources import files
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

import pyro_tvae
from pyro_tvae.experiments.commands import hydra_entry
from pyro_tvae.experiments.commands.evaluate import check_judgeable
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.commands.train import _plain_vae
from pyro_tvae.experiments.config.building import Parts, build, check_fit, fit_parts
from pyro_tvae.experiments.config.composition import CONF, compose, keys, make, options
from pyro_tvae.experiments.config.errors import ConfigurationError, plain_errors
from pyro_tvae.networks import Shift

TINY = ["data.n_train=16", "data.n_validation=8", "data.n_test=8", "model.n_capsules=2"]


def test_the_default_is_the_quickstart() -> None:
    parts = build(compose(TINY))
    assert isinstance(parts.model.prior, pyro_tvae.OrbitEnergy)
    assert isinstance(parts.guide, pyro_tvae.OrbitGuide)
    assert parts.guide.encoder is not None
    assert isinstance(parts.model.decoder[0], Shift)
    assert parts.model.frame_shape == (1, 28, 28)
    assert parts.model.latent_shape == (18, 2, 18)


LPARTIAL = ["topography=capsule_roll", "prior=gaussian", "guide=mean_field"]
SMALL = ["model.capsule_dim=6", "network.encoder_widths=[1]", "network.decoder_widths=[1]"]


@pytest.mark.parametrize(
    "overrides",
    [
        LPARTIAL,
        [*LPARTIAL, "prior=gamma"],
        [*LPARTIAL, "prior=gamma", "guide=gamma"],
        [*LPARTIAL, "prior=gamma", "prior.learned=true", "guide=low_rank"],
        *([*LPARTIAL, f"latent={name}"] for name in ("normal", "laplace", "student", "autoregressive")),
        *(
            [*LPARTIAL, f"guide={name}"]
            for name in ("shared_trunk", "sequence", "conditional", "flow", "semi_amortized")
        ),
        [*LPARTIAL, *SMALL, "guide=full_covariance"],
        [*LPARTIAL, "topography=velocity", "prior=gamma", "guide=sequence"],
        [*LPARTIAL, "topography=grid"],
        [*LPARTIAL, *SMALL, "topography=matrix", "topography.w=w.npy"],
        [*LPARTIAL, "topography=own", "topography._target_=pyro_tvae.Stationary", "+topography.kernel=[3,2]"],
        ["guide=semi_amortized", "guide.steps=2"],
        ["guide=conditional_orbit"],
        ["likelihood=binarized_bernoulli", "likelihood.seed=3"],
        ["network=convolutional", "network.channels=[4]"],
        ["topography=capsule_roll", "topography.learned=true", "prior=gaussian", "guide=mean_field"],
        ["topography=stationary", "prior=gaussian", "guide=mean_field"],
        ["topography=torus", "topography.grid=[3,6]", "prior=gaussian", "guide=mean_field"],
        ["experiment=plain_vae"],
        ["experiment=lpartial"],
        ["likelihood=normal"],
        ["likelihood=continuous_bernoulli"],
        ["network.encoder_widths=[2]", "network.decoder_widths=[1,1]"],
        ["optimizer=sgd"],
    ],
    ids=" ".join,
)
def test_every_choice_builds_trains_and_saves(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("w.npy", np.eye(18 * 6) + 0.1)
    config = compose([*TINY, *overrides])
    parts = build(config)
    x = next(parts.data.batches("train", batch_size=2))["x"]
    optimizer = make(config.optimizer.optimizer)([*parts.model.parameters(), *parts.guide.parameters()])
    terms = pyro_tvae.inference.ELBO(parts.model, parts.guide)(x)
    (-terms.elbo.sum()).backward()
    optimizer.step()
    model, guide = pyro_tvae.load(pyro_tvae.save(tmp_path / "model.safetensors", parts.model, parts.guide))
    expected = pyro_tvae.encode(parts.model, parts.guide, x)
    assert torch.equal(pyro_tvae.encode(model, guide, x), expected)


def test_the_same_seed_builds_the_same_weights() -> None:
    one, two, other = (build(compose([*TINY, f"seed={seed}"])) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.guide.parameters(), two.guide.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.guide.parameters(), other.guide.parameters(), strict=True))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("topografy=orbits", ["'topografy'", "did you mean topography"]),
        ("topography=orbit", ["no topography called 'orbit'", "orbits"]),
        ("fit.max_epoch=3", ["'fit.max_epoch'", "fit.max_epochs"]),
        ("max_epochs=3", ["'max_epochs'", "fit.max_epochs"]),
        ("experiment=lpartal", ["no experiment called 'lpartal'", "lpartial"]),
        ("three words here", ["not an override", "name=value"]),
    ],
)
def test_a_mistyped_override_gets_one_sentence(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        compose([override])
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["topography=capsule_roll"], "no disjoint orbits"),
        (["guide=mean_field"], "MeanFieldGuide: the model's energies are OrbitEnergy"),
        (["prior=gaussian", "topography=none"], "NoTopography has no energies"),
        (["guide=sequence"], "SequenceGuide: the model's energies are OrbitEnergy"),
        (["guide=own"], "guide._target_ has no default and was not given"),
        (["topography=matrix"], "topography.w has no default and was not given"),
        (["topography=grid", "model.capsule_dim=4", "prior=gaussian"], "GridRoll: grid 6 x 3 has 18 positions"),
        (["latent=autoregressive", "latent.coefficient=1"], "expected a number between −1 and 1"),
        (["data=mnist", "data.source.root=/nowhere"], "/nowhere"),
        (["data=arrays", "data.source.path=/nowhere.npy"], "/nowhere.npy"),
        (["model.n_capsules=0"], "n_capsules=0"),
        (["data=arrays"], "data.source.path"),
        (["topography=torus", "prior=gaussian", "guide=mean_field"], "Torus: grid 18 x 18"),
    ],
)
def test_parts_that_do_not_fit_get_one_sentence(
    overrides: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, plain_errors():
        build(compose([*TINY, *overrides] if "data=mnist" not in overrides else overrides))
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1
    assert "Error in call" not in text


GROUPS = ("topography", "prior", "latent", "guide", "likelihood", "network")


def test_every_part_can_be_chosen_by_name() -> None:
    """Each public part is the target of an option, and each group takes a class of the user's own."""
    targets = set()
    for group in GROUPS:
        names = options()[group]
        assert "own" in names
        for name in set(names) - {"own"}:
            targets.add(OmegaConf.to_container(compose([f"{group}={name}"])[group])["_target_"])
    bases = {"Topography", "EnergyPrior", "LatentPrior", "Guide", "Likelihood", "Network", "Part", "TVAE"}
    classes = {
        name
        for name in pyro_tvae.__all__  # type: ignore[attr-defined]
        if isinstance(getattr(pyro_tvae, name), type) and issubclass(getattr(pyro_tvae, name), pyro_tvae.Part)
    }
    judging = {"LaplaceGuide"}  # of fitted models: there is nothing in it to train
    assert {f"pyro_tvae.{name}" for name in classes - bases - judging} == targets


def test_recipes_of_ones_own_lie_in_a_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And count for what a command goes on with, as all that it says."""
    monkeypatch.chdir(tmp_path)
    folder = Path("my 'own', [1]")
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\noptimizer:\n  optimizer:\n    lr: 0.5\n")
    heard: list[DictConfig] = []
    monkeypatch.setattr(hydra_entry, "_one", lambda overrides, settings, config, *_: heard.append(config))
    for words in (["--config-dir", str(folder), "experiment=mine"], ["experiment=mine", f"--config-dir={folder}"]):
        run_with_hydra(words)
        assert heard.pop().optimizer.optimizer.lr == 0.5
    given = ["--config-dir", str(folder)]
    for words, told in (
        (
            [*given, "experiment=mine", "fit.max_epoch=3"],
            r"no setting called 'fit\.max_epoch'; did you mean fit\.max_epochs",
        ),
        ([*given, "experiment=min"], r"no experiment called 'min'; did you mean .*mine"),
        (["--config-dir", "nowhere"], "--config-dir is nowhere, which is no folder"),
        ([*given, "--config-name", "mine"], "--config-name asks for another configuration than this command's"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            run_with_hydra(words)
    assert not heard


def test_no_choice_in_the_defaults_is_null() -> None:
    """Of which Hydra 1.4 makes no part of another name; and from which the option none is no difference."""
    said = yaml.safe_load((files(CONF) / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = dict(item for entry in said if isinstance(entry, dict) for item in entry.items())
    assert None not in chosen.values()
    assert (chosen["experiment"], chosen["budget"]) == ("none", "none")
    both = ["experiment=tvae_2d_mnist", "budget=hour"]
    assert compose([*both, "budget=none"]) == compose(["experiment=tvae_2d_mnist"])
    with (files(CONF) / "budget" / "of" / "tvae_2d_mnist_hour.yaml").open(encoding="utf-8") as file:
        assert compose(both).fit.warmup_steps == yaml.safe_load(file)["fit"]["warmup_steps"]


def test_every_option_is_introduced_by_a_sentence() -> None:
    assert all(sentence for entries in options().values() for sentence in entries.values())


def test_the_published_experiment_has_the_published_settings() -> None:
    config = compose(["experiment=tvae_lpartial_mnist"])
    assert OmegaConf.to_container(config.topography)["kernel"] == 13
    assert (config.optimizer.optimizer.lr, config.optimizer.optimizer.momentum) == (1e-4, 0.9)
    assert (config.fit.max_epochs, config.data.batch_size, config.model.n_capsules) == (100, 8, 18)


WALKED = [
    name for name in keys(compose()) if name.partition(".")[0] in ("fit", "baseline", "evaluation") and "." in name
]


class Begun(BaseException):
    """Training would begin."""


@pytest.fixture(scope="module")
def walked() -> tuple[DictConfig, Parts]:
    sizes = ["data.n_frames=4", "model.capsule_dim=4", "network.encoder_widths=[4]", "network.decoder_widths=[4]"]
    config = compose([*TINY, *sizes, "fit.accelerator=cpu", "fit.max_steps=1", "fit.progress=false"])
    return config, build(config)


@pytest.mark.parametrize("name", WALKED)
def test_every_setting_is_taken_or_refused_by_name_before_the_first_step(
    name: str, walked: tuple[DictConfig, Parts], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise Begun

    monkeypatch.setattr(lightning.Trainer, "fit", begin)
    whole, parts = walked
    for value in (-1, 0, 1, 10**9, math.nan, "text", None):
        if (name, value) == ("fit.devices", 10**9):
            continue  # so many processes are what was asked for
        config = whole.copy()
        OmegaConf.update(config, name, value)
        begun, status = 0, None
        try:
            with plain_errors():
                check_fit(config)
                check_judgeable(config, parts)
                for one in (config, _plain_vae(config)) if config.baseline.enabled else (config,):
                    with pytest.raises(Begun):
                        fit_parts(one, parts)
                    begun += 1
        except SystemExit as refusal:
            status = refusal.code
        text = capsys.readouterr().err
        assert (status, text.count("\n")) in ((None, 0), (2, 1)), text
        assert status is None or name.rpartition(".")[2] in text.lower(), text
        assert begun != 1 or not config.baseline.enabled, "the model is trained, and then the baseline is refused"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["fit.precision=16-true"], "fit.precision is '16-true'; expected 32-true, bf16-mixed or 16-mixed"),
        (["fit.precision=bf16-true"], "fit.precision is 'bf16-true'"),
        (["fit.precision=64-true"], "fit.precision is '64-true'"),
        (["fit.precision=64"], "fit.precision is 64"),
        (["fit.precision=transformer-engine"], "fit.precision is 'transformer-engine'"),
        (["fit.precision=bf16-mixed", "fit.gradient_clip=1"], "add optimizer.optimizer.fused=false"),
        (["fit.precision=16", "fit.gradient_clip=1"], "fit.gradient_clip goes with fit.precision=16 only"),
        (
            ["optimizer.optimizer.lr=text"],
            "optimizer.optimizer cannot be made from lr='text', betas=[0.9, 0.99], fused=True",
        ),
        (["optimizer.optimizer.betas=''"], "optimizer.optimizer cannot be made from lr=0.001, betas='', fused=True: "),
        (["optimizer.schedule.warmup_steps=text"], "made from warmup_steps='text': WarmupCosineLR: T_max=1000000, war"),
        (["optimizer.schedule.warmup_steps=nan"], "optimizer.schedule cannot be made from warmup_steps=nan: Warmup"),
        (["optimizer=adam", "+optimizer.schedule.rise=1"], "optimizer.schedule cannot be made from rise=1: "),
        (["optimizer.optimizer.lr=-1"], "optimizer.optimizer cannot be made from lr=-1"),
    ],
)
def test_what_no_fit_could_compute_with_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        check_fit(compose(overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["fit.precision=bf16-mixed"],
        ["fit.precision=16-mixed", "fit.gradient_clip=1", "optimizer.optimizer.fused=false"],
        ["fit.precision=32", "fit.gradient_clip=1"],
        ["fit.precision=bf16", "fit.gradient_clip=1", "optimizer=sgd"],
    ],
)
def test_what_a_fit_can_compute_with_is_taken(overrides: list[str]) -> None:
    check_fit(compose(overrides))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        RuntimeError("DataLoader timed out after 1800.0 seconds"),
        ConnectionResetError(104, "reset"),
    ],
)
def test_a_worker_that_was_ended_is_a_sentence(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), plain_errors():
        raise error
    said = capsys.readouterr().err
    assert (
        "a process that reads the data was ended, or hands on nothing, as where the system wants memory; the s" in said
    )
    assert "\n" not in said.strip()


def test_a_lack_of_memory_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, plain_errors():
        torch.empty(2**50)
    assert caught.value.code == 2
    assert "there is not enough memory for this; lower" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="shapes"), plain_errors():
        torch.ones(2, 3) @ torch.ones(2, 3)


FILMS = ["data=sequences", "data.source.path=x", "data.n_frames=5"]


@pytest.mark.parametrize(
    ("overrides", "boundary", "kernel"),
    [
        ([], "circular", 18),
        (["data=dsprites", "model.capsule_dim=15"], "circular", 15),
        (["experiment=tvae_lpartial_mnist"], "circular", 13),
        (FILMS, "open", 9),
        ([*FILMS, "model.capsule_dim=7"], "open", 9),
        ([*FILMS, "closes=true", "model.capsule_dim=5"], "circular", 5),
        ([*FILMS, "topography.boundary=truncate"], "truncate", 9),
        ([*FILMS, "experiment=lpartial"], "truncate", 13),
        ([*FILMS, "experiment=lpartial", "topography.boundary=open"], "open", 13),
    ],
)
def test_the_boundary_is_what_the_motion_of_the_data_does(overrides: list[str], boundary: str, kernel: int) -> None:
    topography = OmegaConf.to_container(compose(overrides), resolve=True)["topography"]  # type: ignore[index,call-overload]
    assert (topography["boundary"], topography["kernel"]) == (boundary, kernel)


@pytest.mark.parametrize("size", [3, 5, 8])
def test_films_have_orbits_whatever_the_size_of_their_capsules(size: int) -> None:
    config = compose([*FILMS, f"model.capsule_dim={size}"])
    assert len(make(config.topography).orbits(5, size).size) == size + 4
