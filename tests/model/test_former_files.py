"""Files of former versions: every model and every run's folder that one wrote is read, and says what it said then."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from files.make import SAID, judged
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

import pyro_tvae
from pyro_tvae import MLP, Network, Part, load, save
from pyro_tvae.experiments.commands.evaluate import evaluate_run, report_run
from pyro_tvae.experiments.commands.train import resume_run
from pyro_tvae.experiments.config.allowlist import PARTS_ONLY
from pyro_tvae.former_names import ARGUMENTS, CLASSES, MODULE, current
from pyro_tvae.parts import UnknownPartError, build, describe

FILES = Path(__file__).resolve().parents[1] / "files"
MODELS = sorted(FILES.glob("v*/*.safetensors"))
NAMES = [f"{path.parent.name}/{path.stem}" for path in MODELS]
RUNS = sorted(path.parent for path in FILES.glob("v*/ended"))
KINDS = {"EnergyPrior", "Guide", "LatentPrior", "Likelihood", "Network", "Part", "Topography"}  # no object is just that
PARTS = {
    f"pyro_tvae.{name}"
    for name in {*pyro_tvae.__all__} - KINDS  # type: ignore[attr-defined]
    if isinstance(value := getattr(pyro_tvae, name), type) and issubclass(value, Part)
}


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def parts(node: Any) -> Iterator[str]:
    """Every name of a part in a description."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from (value,) if key == "part" else parts(value)


def named(path: Path) -> set[str]:
    return {*parts(json.loads(metadata(path)["description"]))}


@pytest.mark.parametrize("path", MODELS, ids=NAMES)
def test_a_model_says_what_it_said_then_and_is_saved_under_its_public_path(path: Path, tmp_path: Path) -> None:
    said = torch.tensor(json.loads((path.parent / SAID).read_text())[path.stem], dtype=torch.float64)
    model, guide = load(path)
    now = judged(model, guide)
    # Its noise is now the same for all sequences, so that a sequence's posterior no longer depends on its batch.
    assert now == pytest.approx(said, rel=1e-4 if "semi_amorti" in path.stem else 1e-5)
    again = save(tmp_path / "m.safetensors", model, guide)
    assert named(again) == {current(name) for name in named(path)} <= PARTS
    assert judged(*load(again)) == now
    old, new = metadata(path), metadata(again)
    assert new["version"] >= old["version"] == path.parent.name.removeprefix("v")
    assert all(new[key] == old[key] for key in ("ties", "frozen", "derived", "trained_first") if key in old)
    before, after = load_file(path), load_file(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_new_process_reads_them_all() -> None:
    """Whatever a file names is loaded for it: nothing else here has imported the modules of guides and topographies."""
    code = "import sys, pyro_tvae\nfor path in sys.argv[1:]: pyro_tvae.load(path)"
    for paths in (MODELS, MODELS[::-1]):
        subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, timeout=120)


def test_every_public_part_is_in_a_file() -> None:
    written = {current(name) for path in MODELS if path.parent.name != "v1" for name in named(path)}
    assert not PARTS - written, (
        f"no file holds {', '.join(sorted(PARTS - written))}: give each a line in MODELS of tests/files/make.py, run "
        "'python tests/files/make.py tests/files/v3 NAME' with the names of those lines, and commit the files it "
        "writes, so that later versions go on reading them"
    )


def test_every_file_has_its_words() -> None:
    for version in {path.parent for path in MODELS}:
        assert json.loads((version / SAID).read_text()).keys() == {path.stem for path in version.glob("*.safetensors")}


def test_every_former_name_is_one_of_a_file() -> None:
    written = {name for path in MODELS for name in named(path)}
    assert {*CLASSES} <= {MODULE.sub("pyro_tvae.", name) for name in written} | {*CLASSES.values()}
    assert {current(name) for name in CLASSES} <= PARTS
    assert {*ARGUMENTS} <= PARTS


class Made(Network):
    """A part whose name and argument were others."""

    def __init__(self, width: int = 1, *, color: str = "red") -> None:
        self.width, self.color = width, color


class Passing(Made):
    """A user's, which hands on what it is given."""

    def __init__(self, *args: Any, extra: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)


class Keeping(Made):
    """A user's, whose own argument has the former name."""

    def __init__(self, colour: str = "blue") -> None:
        super().__init__(color=colour)


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyro_tvae, "Made", Made, raising=False)
    monkeypatch.setattr(pyro_tvae, "__all__", [*pyro_tvae.__all__, "Made"])  # type: ignore[attr-defined]
    monkeypatch.setitem(CLASSES, "pyro_tvae.Older", "pyro_tvae.Old")
    monkeypatch.setitem(CLASSES, "pyro_tvae.Old", "pyro_tvae.Made")
    monkeypatch.setitem(ARGUMENTS, "pyro_tvae.Made", {"colour": "tint", "tint": "color"})


@pytest.mark.usefixtures("renamed")
@pytest.mark.parametrize("name", ["pyro_tvae.moved.Older", "pyro_tvae.Old", "pyro_tvae.Made"])
@pytest.mark.parametrize("argument", ["colour", "tint", "color"])
def test_names_and_arguments_are_followed_to_what_they_are_now(name: str, argument: str) -> None:
    part = build({"part": name, "arguments": {"width": 3, argument: "green"}})
    assert (type(part), part.width, part.color) == (Made, 3, "green")
    assert describe(part) == {"part": "pyro_tvae.Made", "arguments": {"width": 3, "color": "green"}}


@pytest.mark.usefixtures("renamed")
def test_classes_of_others_keep_their_names_and_their_own_arguments() -> None:
    passing = describe(Passing(3, color="green"))
    assert passing["part"] == f"{__name__}.Passing"
    passing["arguments"]["options"] = {"colour": "green"}
    again = build(passing)
    assert (type(again), again.width, again.color) == (Passing, 3, "green")
    kept = describe(Keeping("green"))
    assert kept["arguments"] == {"colour": "green"}
    assert build(kept).color == "green"


def test_a_class_of_others_is_not_taken_for_ours_of_the_same_name() -> None:
    own = type("MLP", (Network,), {"__module__": __name__, "encoder": MLP.encoder, "decoder": MLP.decoder})
    assert describe(own())["part"] == f"{__name__}.MLP"
    assert describe(MLP())["part"] == "pyro_tvae.MLP"


NO_PARTS = [
    *(f"pyro_tvae.{name}" for name in ("load", "save", "inference", "experiments", "Part", "Encoder", "_HOME", "roll")),
    *("pyro_tvae", "pyro_tvae.", ".MLP", "pyro_tvae.model.torch", "pyro_tvae.parts.inspect", "pyro_tvae.networks.nn"),
    *("pyro_tvae.model.Tensor", "pyro_tvae.inference.TVAE", "pyro_tvae.any.Part"),
    *("torch.nn.Linear", "os.system", "antigravity"),
]


@pytest.mark.parametrize("name", NO_PARTS)
def test_what_is_no_part_is_refused_in_one_sentence(name: str) -> None:
    remedy = "update pyro-tvae" if name.startswith("pyro_tvae.") else "import its module first"
    with pytest.raises(UnknownPartError, match=f"a part {name!r} that is not loaded; {remedy}") as caught:
        build({"part": name, "arguments": {}})
    assert "\n" not in str(caught.value)


def test_what_is_no_part_is_not_imported_either() -> None:
    code = (
        "import sys\nfrom pyro_tvae.parts import UnknownPartError, build\nbefore = {*sys.modules}\n"
        "for name in sys.argv[1:]:\n"
        "    try: build({'part': name, 'arguments': {}})\n"
        "    except UnknownPartError: continue\n"
        "    raise SystemExit(name)\n"
        "others = {name for name in {*sys.modules} - before if name.startswith('pyro_tvae.')}\n"
        "assert not others & {'pyro_tvae.inference', 'pyro_tvae.experiments'}, others\n"
        "assert 'antigravity' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, *NO_PARTS], check=True, timeout=120)


@pytest.mark.parametrize("path", sorted(PARTS))
def test_a_stored_configuration_may_name_every_public_part(path: str) -> None:
    PARTS_ONLY.check(OmegaConf.create({"part": {"_target_": path}}), "config.yaml")


def numbers(run: Path) -> dict[str, float]:
    trained = json.loads((run / "evaluation.json").read_text())["measures"]["trained"]
    return {name: trained[name] for name in ("elbo", "reconstruction", "kl", "iwae", "e_eq")}


@pytest.mark.parametrize("version", RUNS, ids=lambda path: path.name)
def test_an_ended_run_is_judged_and_reported_again(version: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(version / "ended", tmp_path / "run"))
    report_run(run)
    assert (run / "report.html").is_file()
    before = numbers(run)
    (run / "evaluation.json").unlink()
    evaluate_run(run)
    assert numbers(run) == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("version", RUNS, ids=lambda path: path.name)
def test_an_interrupted_run_goes_on_to_the_end_that_it_would_have_had(version: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(version / "interrupted", tmp_path / "run"))
    resume_run(run)
    rows, whole = (json.loads((one / "history.json").read_text())["rows"] for one in (run, version / "ended"))
    assert len(rows) == len(whole) == 3
    for row, expected in zip(rows, whole, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    assert numbers(run) == pytest.approx(numbers(version / "ended"), rel=1e-4)


def test_no_file_says_where_it_was_made() -> None:
    for path in (path for path in FILES.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")):
        if path.suffix == ".ckpt":
            assert not [text for text in texts(torch.load(path, weights_only=True)) if text.startswith("/")], path
        else:
            assert not any(root in path.read_bytes() for root in (b"/tmp/", b"/home/", b"/var/", b"/root/")), path


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from texts(one)
