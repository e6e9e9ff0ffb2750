"""Safety: a run's folder, a model or data from a stranger is looked at and never executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from complaints import refused
from tiny import TINY

import pyro_tvae
from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run
from pyro_tvae.experiments.commands.likelihood import likelihood_run
from pyro_tvae.experiments.commands.posterior import posterior_run
from pyro_tvae.experiments.commands.train import resume_run, train_run
from pyro_tvae.experiments.config.allowlist import PARTS_ONLY, Allowlist
from pyro_tvae.experiments.config.composition import compose, make
from pyro_tvae.experiments.datasets import arrays
from pyro_tvae.experiments.reports.style import canvas, gridded, save
from pyro_tvae.experiments.runs.files import read_record
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.experiments.studies.comparison import as_csv, markdown
from pyro_tvae.experiments.studies.kept import read_kept
from pyro_tvae.experiments.studies.results import write_results
from pyro_tvae.inference import from_netcdf


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
    bomb, weights = Bomb(witness), (run / "model.safetensors").read_bytes()
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
        if name == "model.safetensors":  # of which an evaluation has to be
            (run / name).write_bytes(weights)
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
        "a: &a [x, x]\nb: &b [*a, *a]",
        "a: !!int x",
        "a: !!int ''",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!set [1]",
        f"seed: {'9' * 5000}",
        "1: 2",
        "data: {true: 2}",
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


@pytest.mark.parametrize("name", ["history.json", "evaluation.json", "figures/reconstructions.png"])
def test_a_folder_in_the_place_of_a_file_is_no_file(name: str, run: Path) -> None:
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir(parents=True)
    if name == "evaluation.json":
        assert "holds no evaluation.json" in refused(lambda: report_run(run))
    else:
        assert ("Figure: Reconstructions" in report_run(run).read_text()) is (name == "history.json")
    with pytest.raises(ValueError, match=r"is a folder; expected a file: move it away\.$"):
        read_record(run / name, dict[str, Any])


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


# --- what lies outside the folder -------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[Path], object]] = {
    "evaluate": evaluate_run,
    "report": report_run,
    "posterior": posterior_run,
    "likelihood": likelihood_run,
    "resume": resume_run,
}
FORMER = Path(__file__).parents[1] / "files" / "v2"


def plant(kind: str, path: Path, secret: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero" if kind == "device" else secret)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
@pytest.mark.parametrize(
    "name", ["figures/x.png", "history.json", "config.yaml", "model.safetensors", "checkpoints/last.ckpt"]
)
def test_no_command_reads_through_a_link_or_opens_a_pipe(name: str, kind: str, command: str, tmp_path: Path) -> None:
    run, secret = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(FORMER / "ended", run)
    secret.write_text("the reader's own")
    plant(kind, run / name, secret)
    names = sorted(path.name for path in tmp_path.rglob("*"))
    text = refused(lambda: COMMANDS[command](run))
    assert name in text
    assert "leads out of" in text or "is not opened" in text
    assert sorted(path.name for path in tmp_path.rglob("*")) == names
    assert secret.read_text() == "the reader's own"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stored_configuration_fetches_nothing_and_makes_no_folder(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    fetched: list[object] = []
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda self: fetched.append(self))
    run, root = tmp_path / "run", tmp_path / "nowhere"
    shutil.copytree(FORMER / ("interrupted" if command == "resume" else "ended"), run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    source = {"_target_": "pyro_tvae.experiments.datasets.mnist", "root": str(root), "download": True}
    config["data"]["source"] = source
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if command == "report":
        report_run(run)  # which reads no data
    else:
        with pytest.raises(Exception, match=r"MNIST files are not in .*nowhere.*a stored one fetches nothing"):
            COMMANDS[command](run)
    assert not fetched
    assert not root.exists()
    assert Run(run).stored().data.source.download is True  # the file is left as it is
    config["data"]["source"] = {"_target_": source["_target_"], "_args_": [str(root), True]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "data.source._args_ has no names" in refused(lambda: COMMANDS[command](run))
    # Whoever types it, means it.
    typed = compose(["data=mnist", f"data.source.root={root}", "data.source.download=true"])
    stored = PARTS_ONLY.typed(typed).fetching(typed.copy(), run)
    assert stored.data.source.download is True
    assert PARTS_ONLY.fetching(typed.copy(), run).data.source.download is False


def test_no_part_fetches_at_any_depth(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    fetching = {"_target_": "pyro_tvae.experiments.datasets.mnist", "download": True}
    config["fit"]["callbacks"] = [fetching]
    config["topography"]["a.b"] = {"c": [fetching]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    config = Run(run).config()
    assert config.fit.callbacks[0].download is False
    assert config.topography["a.b"].c[0].download is False


def test_the_baseline_of_a_stored_run_logs_into_its_folder(tmp_path: Path) -> None:
    """Where the training has ended and that of the plain VAE has not, its loggers are still to be made."""
    run = tmp_path / "run"
    shutil.copytree(FORMER / "ended", run)
    (run / "evaluation.json").unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["baseline"] = {"enabled": True, "max_epochs": 1, "warmup_steps": 1}
    config["logger"] = {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path / "out")}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "may not start by itself" in refused(lambda: resume_run(run))
    assert not (tmp_path / "out").exists()


def test_a_path_in_a_model_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, path = tmp_path / "w.npy", tmp_path / "model.safetensors"
    np.save(numbers, np.eye(6, dtype=np.float32))
    topography = pyro_tvae.Matrix(str(numbers))  # typed, it is read
    model = pyro_tvae.TVAE((1, 4, 4), 2, n_capsules=1, capsule_dim=3, topography=topography)
    pyro_tvae.save(path, model, pyro_tvae.MeanFieldGuide(model))
    assert str(numbers) not in path.read_bytes().decode("latin-1")
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    said = json.loads(header["__metadata__"]["description"])
    said["model"]["arguments"]["topography"]["arguments"]["w"] = str(numbers)
    header["__metadata__"]["description"] = json.dumps(said)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    def opened(*_: object, **__: object) -> object:
        raise AssertionError("it was opened")

    monkeypatch.setattr(np.lib.format, "read_array", opened)
    monkeypatch.setattr(np, "load", opened)
    assert "no path in a model file is opened" in refused(lambda: pyro_tvae.load(path))


def test_a_pipe_is_not_opened_as_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    assert "is a pipe" in refused(lambda: arrays(tmp_path / "pipe.npy"))
    assert "is no file" in refused(lambda: pyro_tvae.Matrix(str(tmp_path / "pipe.npy")))
    assert "is no file" in refused(lambda: pyro_tvae.load(tmp_path / "pipe.npy"))
    assert "is no file" in refused(lambda: from_netcdf(tmp_path / "pipe.npy"))


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "record", "words"),
    [
        ("history.json", {"rows": ["x"], "seconds": 1.0}, "rows[0] is text, expected a mapping"),
        ("history.json", {"rows": [{"step": [1]}]}, "rows[0].step is a list, expected a number"),
        ("history.json", {"rows": [{"step": 10**400}]}, "rows[0].step is a number of more than 100 digits"),
        ("history.json", {"rows": 3}, "rows is a whole number, expected a list"),
        ("evaluation.json", {"rows": [{"trained": "x"}]}, "rows[0].trained is text, expected a number"),
        ("evaluation.json", {"data": {"n_sequences": 1.5}}, "data.n_sequences is a number, expected a whole number"),
        ("evaluation.json", {"verdict": ["a \x1b[31m b"]}, "verdict[0] holds a control character"),
        ("evaluation.json", {"name": "\ud800"}, "name holds a control character"),
        ("evaluation.json", {"forward_roll": {"log_likelihood": {"model": 3}}}, "model is a whole number"),
    ],
)
def test_a_record_of_another_kind_is_refused_by_what_is_wrong(
    name: str, record: dict[str, Any], words: str, tmp_path: Path
) -> None:
    shutil.copytree(FORMER / "ended", tmp_path / "run")
    (tmp_path / "run" / name).write_text(json.dumps(record))
    text = refused(lambda: report_run(tmp_path / "run"))
    assert f"{name} is damaged: " in text
    assert words in text


def test_what_is_undefined_in_a_history_is_none(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text('{"rows": [{"step": 1, "val/elbo": NaN, "val/kl": 1e999}], "seconds": null}')
    assert Run(tmp_path).history() == {"rows": [{"step": 1, "val/elbo": None, "val/kl": None}], "seconds": None}


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "data module": lambda saved: saved["SequenceDataModule"].update(epoch="x"),
    "loops": lambda saved: saved["loops"].pop("fit_loop"),
    "callbacks": lambda saved: saved["callbacks"].update({name: [1] for name in saved["callbacks"]}),
    "optimizers": lambda saved: saved["optimizer_states"][0].pop("state"),
    "schedulers": lambda saved: saved["lr_schedulers"].__setitem__(0, 3),
    "our own": lambda saved: saved["pyro_tvae"].update(recent=3),
}


@pytest.mark.parametrize("state", DAMAGE)
def test_a_damaged_state_in_a_checkpoint_is_named(state: str, tmp_path: Path) -> None:
    """In a file of a version that did not list what it holds."""
    shutil.copytree(FORMER / "interrupted", tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    DAMAGE[state](saved)
    torch.save(saved, path)
    assert "last.ckpt holds a state that cannot be put into place" in refused(lambda: resume_run(tmp_path / "run"))


# --- what is shown of a record ----------------------------------------------------------------------------------------


def test_a_record_is_text_wherever_it_is_shown(tmp_path: Path) -> None:
    names = ["=1+1", "@x", "-a", "<b>x</b>", "a|b", "[x](http://a.b)", "`c`", "$x^$", "plain"]
    values = {"iwae": [-3.2], "elbo": [-4.5]}
    forecast = {"context": 1, "log_likelihood": {"model": [-1.0, -2.0], "mean frame": [-3.0, -3.0]}}
    runs = [{"hardware": "<i>y</i>", "notes": ["<u>z</u>\n\n# no heading"], "forward_roll": forecast}]
    record = {
        "schema": 2,
        "kind": "reproduction",
        "study": "mine",
        "title": "<script>alert(1)</script> | $\\frac{$",
        "command": "pyro-tvae `x` <b>",
        "settings": {"fit.max_epochs": "<s>3</s>"},
        "figures": ["<b>.png"],
        "rows": [{"name": name, "settings": {}, "seeds": [0], "values": values, "runs": runs} for name in names],
    }
    (tmp_path / "mine.json").write_text(json.dumps(record))
    kept = read_kept(tmp_path / "mine.json")
    for text in (write_results(tmp_path).read_text(), markdown(kept)):
        outside_code = "".join(text.split("``")[::2])
        for tag in ("<script", "<b>", "<i>", "<s>", "<u>", "x](http"):
            assert tag not in outside_code
        assert "\n# no" not in text
        for line in text.splitlines():
            if line.startswith("| IWAE") or ("=1+1" in line and line.startswith("| ")):
                assert line.replace("\\|", "").count("|") == len(names) + 2
    assert (tmp_path / "mine-forward_roll.png").is_file()  # with the names of the rows in it
    lines = as_csv(kept).splitlines()[1:]
    assert {line[0] for line in lines}.isdisjoint("=+-@\t")
    assert lines[0] == "'=1+1,0,iwae,-3.2"  # a number stays one


def test_a_figure_shows_dollar_signs(tmp_path: Path) -> None:
    figure = canvas(1)
    axis = figure.subplots()
    axis.plot([0, 1], label="$\\frac{$")
    axis.legend()
    axis.set_xticks([0, 1], ["$a^$", "b"])
    gridded(axis, "$x^ and $ \\frac")
    assert save(figure, tmp_path / "a.png").is_file()
