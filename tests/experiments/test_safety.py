"""Safety: a run's folder, a model or data from a stranger is looked at and never executed."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import pyro_tvae
from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run
from pyro_tvae.experiments.commands.train import resume_run, train_run
from pyro_tvae.experiments.config.allowlist import PARTS_ONLY, Allowlist
from pyro_tvae.experiments.config.composition import compose, make
from pyro_tvae.experiments.datasets import arrays
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.inference import from_netcdf

TINY = [
    "data.n_train=16",
    "data.n_validation=8",
    "data.n_test=12",
    "model.n_capsules=2",
    "fit.max_epochs=1",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "baseline.enabled=false",
    "evaluation.num_particles=2",
]


class Bomb:
    """Leaves a witness where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = str(witness)

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({self.witness!r}, 'w').close()",))


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A file that must not come to be; the bombs are live, as the last test shows."""
    return tmp_path / "witness"


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a finished run."""
    run = tmp_path_factory.mktemp("run")
    train_run(compose(TINY), run)
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.fixture
def run(trained_run: dict[str, bytes], tmp_path: Path) -> Path:
    """A copy of it."""
    for name, content in trained_run.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "run"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(action: Callable[[], object]) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- pickles ---------------------------------------------------------------------------------------------------------


def plain_pickle(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb))


def torch_file(bomb: Bomb, path: Path) -> None:
    with open(path, "wb") as file:
        torch.save({"state_dict": bomb, "pyro_tvae": {"version": 1}, "bomb": bomb}, file)


def old_torch_file(bomb: Bomb, path: Path) -> None:
    with open(path, "wb") as file:
        torch.save({"state_dict": bomb}, file, _use_new_zipfile_serialization=False)


def numpy_file(bomb: Bomb, path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.array([bomb], dtype=object), allow_pickle=True)


def numpy_archive(bomb: Bomb, path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, pixels=np.array([bomb], dtype=object), allow_pickle=True)  # type: ignore[call-overload]


def pickle_in_a_zip(bomb: Bomb, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(bomb))
        archive.writestr("../../escaped.npy", pickle.dumps(bomb))


BOMBS = [plain_pickle, torch_file, old_torch_file, numpy_file, numpy_archive, pickle_in_a_zip]
NAMES = [bomb.__name__ for bomb in BOMBS]


@pytest.mark.parametrize("plant", BOMBS, ids=NAMES)
def test_a_pickle_in_any_file_is_not_run(plant: Callable[[Bomb, Path], None], run: Path, witness: Path) -> None:
    bomb = Bomb(witness)
    (run / "model.safetensors").unlink()  # so that the run would go on from its checkpoint
    plant(bomb, run / "checkpoints" / "last.ckpt")
    assert "last.ckpt is" in refused(lambda: resume_run(run))
    for name, action in (
        ("model.safetensors", lambda: pyro_tvae.load(run / "model.safetensors")),
        ("images.npy", lambda: arrays(run / "images.npy")),
        ("images.npz", lambda: arrays(run / "images.npz", key="pixels")),
        ("posterior.nc", lambda: from_netcdf(run / "posterior.nc")),
        ("model.safetensors", lambda: evaluate_run(run)),
        ("history.json", lambda: report_run(run)),
        ("evaluation.json", lambda: report_run(run)),
        ("config.yaml", lambda: report_run(run)),
    ):
        plant(bomb, run / name)
        assert name in refused(action)
    assert not witness.exists()
    assert not list(run.parent.rglob("escaped*"))
    pickle.loads(pickle.dumps(bomb))
    assert witness.exists()


def test_a_pickle_in_the_best_checkpoint_is_not_run(run: Path, witness: Path) -> None:
    """It is read where a resumed fit has nothing better to offer."""
    (run / "model.safetensors").unlink()
    torch_file(Bomb(witness), run / "checkpoints" / "best.ckpt")
    refused(lambda: resume_run(run))
    assert not witness.exists()


# --- configurations --------------------------------------------------------------------------------------------------

TARGETS = {
    "a shell": "os.system",
    "a shell by way of the project": "pyro_tvae.experiments.config.errors.os.system",
    "exec": "builtins.exec",
    "a writer of files": "pyro_tvae.save",
    "another writer of files": "pyro_tvae.experiments.runs.files.write_text",
    "a class outside": "subprocess.Popen",
    "Hydra's own": "hydra.utils.call",
    "torch's unpickler": "torch.load",
    "a module in the folder": "evil.run",
    "no name": None,
    "a list": ["os", "system"],
}
PLACES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "data": lambda config: config["data"],
    "topography": lambda config: config["topography"],
    "deep in a list": lambda config: config["fit"].setdefault("callbacks", [{}])[0],
}
CASES = [(target, PLACES["topography"]) for target in TARGETS.values()]
CASES += [("os.system", place) for place in PLACES.values()]


@pytest.mark.parametrize(("target", "place"), CASES, ids=[*TARGETS, *PLACES])
def test_a_stored_configuration_calls_parts_only(
    target: object, place: Callable, run: Path, witness: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(run)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    (run / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()\ndef run(*a, **k): pass\n")
    config = yaml.safe_load((run / "config.yaml").read_text())
    place(config)["_target_"] = target
    place(config)["command"] = f"touch {witness}"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "evaluation.json").unlink()
    before = files(run)
    for command in (evaluate_run, report_run, resume_run, lambda run: Run(run).load()):
        assert "config.yaml" in refused(lambda command=command: command(run))  # type: ignore[misc]
    assert files(run) == before
    assert not witness.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch WITNESS']",
        "!!python/object/new:subprocess.Popen [['touch', 'WITNESS']]",
        "!!python/name:os.system",
        "data: {path: '${oc.env:HOME}'}",
        "{name: '${hydra:runtime.cwd}', seed: 0}",
        "a: &a [*a]",
        "- a list",
        "just words",
        "{unclosed: [",
        "\x00",
        "",
        "{name: x}",
    ],
)
def test_a_stored_configuration_is_plain_data(text: str, run: Path, witness: Path) -> None:
    (run / "config.yaml").write_text(text.replace("WITNESS", str(witness)))
    assert "config.yaml" in refused(lambda: Run(run).config())
    assert not witness.exists()


def test_parts_of_ones_own_are_found_where_their_module_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_parts.py").write_text(
        "import pyro_tvae\n"
        "from pyro_tvae.experiments.datasets import digits\n"
        "class Mine(pyro_tvae.CapsuleRoll):\n    pass\n"
        "def data(seed=0):\n    return digits(seed)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["source"]["_target_"] = "my_parts.data"
    config["topography"]["_target_"] = "my_parts.Mine"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "add --import my_parts" in refused(lambda: Run(run).config())
    assert "my_parts" not in sys.modules
    allow = Allowlist.importing(["my_parts"])
    assert type(make(Run(run, allow).config().topography)).__name__ == "Mine"
    assert len(make(Run(run, allow).config().data.source).train.labels) > 1000
    # What one command was allowed, the next is not.
    assert "add --import my_parts" in refused(lambda: Run(run).config())
    assert "add --import my_parts" in refused(lambda: Run(run, Allowlist.importing([])).config())
    # What that module merely imported is not its own.
    config["data"]["source"]["_target_"] = "my_parts.pyro_tvae.save"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    refused(lambda: Run(run, allow).config())
    assert "there" in refused(lambda: Allowlist.importing(["not_there"]))


def test_what_the_command_line_named_may_be_read_again_by_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_source.py").write_text(
        "from pyro_tvae.experiments.datasets import digits\ndef data(seed=0):\n    return digits(seed)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = compose([*TINY, "data.source._target_=my_source.data"])
    train_run(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()
    (tmp_path / "run" / "evaluation.json").unlink()
    assert "which is no part of pyro-tvae" in refused(lambda: resume_run(tmp_path / "run"))
    resume_run(tmp_path / "run", allow=PARTS_ONLY.typed(config))
    assert (tmp_path / "run" / "evaluation.json").is_file()


def test_a_page_shows_what_a_file_says_and_does_not_run_it(run: Path) -> None:
    record = json.loads((run / "evaluation.json").read_text())
    record["name"] = record["verdict"][0] = "<script>alert(1)</script>"
    (run / "evaluation.json").write_text(json.dumps(record))
    report_run(run)
    assert "<script>alert" not in (run / "report.html").read_text()
