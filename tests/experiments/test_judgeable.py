"""What could be trained and not judged is refused before the first step; a picture that cannot be drawn is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pyro_tvae.experiments.commands.train import train_run
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.config.errors import ConfigurationError

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


def test_two_channels_are_judged_without_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train_run(compose([*SMALL, arrays(tmp_path, 40, 2)]), run)
    assert "figure reconstructions is left out: frames have shape" in capsys.readouterr().out
    assert json.loads((run / "evaluation.json").read_text())["verdict"]
    assert (run / "report.html").is_file()
    assert (run / "figures" / "training_curves.png").is_file()
