"""What could be trained and not judged is refused before the first step; a picture that cannot be drawn is left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run
from pyro_tvae.experiments.commands.train import train_run
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.config.errors import ConfigurationError
from pyro_tvae.experiments.evaluation.scoring import SHUFFLED
from pyro_tvae.experiments.reports import figures, films
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.inference import ELBO, roll_velocity_test

SMALL = ["data=sequences", "data.n_frames=4", "model.n_capsules=2", "model.capsule_dim=4", "fit.max_epochs=1"]
SMALL += ["baseline.max_epochs=1", "evaluation.num_particles=5", "fit.progress=false", "fit.accelerator=cpu"]


def arrays(folder: Path, n: int, channels: int) -> str:
    path = folder / f"{n}-{channels}.npy"
    np.save(path, np.random.default_rng(0).random((n, 4, channels, 6, 6), dtype=np.float32))
    return f"data.source.path={path}"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.context=4", "evaluation.context is 4; expected 1 to 3"),
        ("evaluation.num_particles=0", "evaluation.num_particles is 0"),
        ("baseline.max_epochs=0", "baseline.max_epochs is 0"),
        (
            "evaluation.channels=flow",
            "evaluation.channels is 'flow', and frames have 1 channel; expected grid",
        ),
    ],
)
def test_what_could_not_be_judged_is_not_trained(override: str, words: str, tmp_path: Path) -> None:
    config = compose([*SMALL, arrays(tmp_path, 40, 1), override])
    with pytest.raises(ConfigurationError, match=words):
        train_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_split_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="sequences in the test split is 1; expected at least 2"):
        train_run(compose([*SMALL, arrays(tmp_path, 3, 1)]), tmp_path / "run")


FIGURES = ("training_curves", "reconstructions", "capsule_traversal", "forward_roll_curve", "forward_roll_strip")
FIGURES += ("capsule_stripes",)
FILM = "forward_roll_film"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on frames of two channels."""
    folder = tmp_path_factory.mktemp("judged")
    train_run(compose([*SMALL, arrays(folder, 40, 2)]), folder / "run")
    return folder / "run"


def test_two_channels_are_drawn(run: Path) -> None:
    record = json.loads((run / "evaluation.json").read_text())
    assert record["failed"] == {}
    assert record["verdict"]
    assert (run / "report.html").read_text().count("data:image/png") == len(FIGURES) + 1
    assert sorted(path.stem for path in (run / "figures").iterdir()) == sorted([*FIGURES, FILM])


def test_of_films_the_roll_velocity_is_measured_and_no_factor(run: Path) -> None:
    trained = Run(run).load()
    x = torch.cat([batch["x"] for batch in trained.data.batches("test")])
    assert len(x) <= SHUFFLED
    expected = roll_velocity_test(trained.model, trained.guide, x)
    record = json.loads((run / "evaluation.json").read_text())
    rows = {row["key"]: row for row in record["rows"]}
    assert rows["velocity"]["trained"] == pytest.approx(expected.velocity)
    assert rows["velocity"]["standard_error"] == pytest.approx(expected.standard_error)
    assert rows["velocity_p"]["trained"] == expected.p_value
    assert expected.null is not None
    assert rows["velocity_shuffled"]["trained"] == pytest.approx(float(expected.null.mean()))
    assert 0 < rows["velocity_p"]["untrained"] <= 1
    assert not [key for key in rows if key.startswith(("roll", "cap_corr", "pose"))]
    assert any("of one mind than with the frames shuffled" in sentence for sentence in record["verdict"])
    assert trained.model.topography.boundary == "open"


@pytest.mark.parametrize("broken", [*FIGURES, "save", "save_film"])
def test_a_figure_that_fails_costs_that_figure(
    broken: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("made to fail")

    for name in FIGURES:  # cheap ones beside it
        monkeypatch.setattr(figures, name, lambda *_: Figure((1, 1)))
    monkeypatch.setattr(films if broken == "save_film" else figures, broken, fails)
    evaluate_run(run)
    record = json.loads((run / "evaluation.json").read_text())
    lost = {f"figure {name}" for name in {"save": FIGURES, "save_film": (FILM,)}.get(broken, (broken,))}
    assert record["failed"] == dict.fromkeys(lost, "RuntimeError: made to fail")
    page = (run / "report.html").read_text()
    said = capsys.readouterr().err
    for name in lost:
        assert f"pyro-tvae: {name} is left out: RuntimeError: made to fail" in said
        assert f"{name} is left out: RuntimeError: made to fail" in page
    assert page.count("data:image/png") == len(FIGURES) + 1 - len(lost)
    report_run(run)  # which draws nothing again
    assert (run / "report.html").read_text() == page


def test_the_baseline_is_looked_at_before_the_model_is_trained(tmp_path: Path) -> None:
    for value in ("-1", "null", "text", "0.5"):
        config = compose([*SMALL, arrays(tmp_path, 40, 1), f"baseline.warmup_steps={value}"])
        with pytest.raises(ConfigurationError, match=r"baseline\.warmup_steps is"):
            train_run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


class OfEnergies(ELBO):
    """An objective that a plain VAE, which has no energies, cannot have."""

    def __call__(self, x: Any, **options: Any) -> Any:
        assert self.guide.posterior(x)["u"] is not None
        return super().__call__(x, **options)


def test_an_objective_that_takes_no_plain_vae_is_told_of_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "own_objectives", sys.modules[OfEnergies.__module__])
    own = ["objective._target_=own_objectives.OfEnergies", "prior=gaussian", "guide=mean_field"]
    said = r"^own_objectives\.OfEnergies cannot train the plain VAE, which is set beside the model"
    with pytest.raises(ConfigurationError, match=said):
        train_run(compose([*SMALL, arrays(tmp_path, 40, 1), *own]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train_run(compose([*SMALL, arrays(tmp_path, 40, 1), *own, "baseline.enabled=false"]), tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
