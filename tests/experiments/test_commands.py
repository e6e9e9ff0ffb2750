"""Commands that are printed: whatever a folder is called, they can be pasted into a shell, and mean that folder."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from complaints import cases
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pyro_tvae.experiments.commands import evaluate, train
from pyro_tvae.experiments.commands.hydra_entry import run_with_hydra
from pyro_tvae.experiments.config.allowlist import PARTS_ONLY
from pyro_tvae.experiments.config.composition import compose, parsed
from pyro_tvae.experiments.interruption import command, override
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.parts import Part

NAMES = [
    "plain", "two words", "it's", 'a "quoted" one', "lr=0.1", "a,b", "[1]", "{a: 1}", "${name}", "$HOME", "100%",
    "é–名", "-x", "--help", "~", "~root", "#1", "a:b", "(a)", "a\\", "\\'", "\\${x}", "null", "True", "1e-3", "1_000",
    "nan", "*?", "a;b", "a&b|c", "<a>", "!", "`a`", "@file", " led", "trailed ", "a\tb", "..a", "+a", "???", "%20",
    "^a",
]  # fmt: skip


def pasted(text: str) -> list[str]:
    """The words that a shell makes of a command, without the program."""
    script = f"for word in {text}; do printf '%s\\0' \"$word\"; done"
    shell = subprocess.run(["sh", "-c", script], capture_output=True)
    program, *words = shell.stdout.decode().split("\0")[:-1]
    assert program == "pyro-tvae"
    assert [program, *words] == shlex.split(text)
    return words


def meant(word: str) -> str:
    """What Hydra makes of an override of ``resume``, as composing does."""
    (one,) = parsed([word])
    return str(OmegaConf.create({"resume": one.value()}).resume)


def test_a_printed_command_means_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = compose()
    for name in NAMES:
        run = Run(Path(name))
        run.path.mkdir()
        for file in ("config.yaml", "model.safetensors"):
            (run.path / file).write_text("name: x\n")
        assert Path(meant(pasted(run.resume)[1])).resolve() == tmp_path / name
        with monkeypatch.context() as patched:
            patched.setattr(Run, "config", lambda self: whole)
            with pytest.raises(FileNotFoundError) as caught:
                evaluate.report_run(run.path)
        first, folder = pasted(str(caught.value).partition("make it first: ")[2])
        assert first == "evaluate"
        assert not folder.startswith("-")  # which would be an option
        assert Path(folder).resolve() == tmp_path / name


@pytest.mark.parametrize("name", ["it's ${name}, [1]", "-x", "???"])
def test_a_printed_command_goes_on_with_the_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    called: list[Path] = []
    monkeypatch.setattr(train, "resume_run", lambda path, changes, allow, logs: called.append(path))
    words = pasted(Run(Path(name)).resume)
    monkeypatch.setattr(sys, "argv", ["pyro-tvae", *words])
    run_with_hydra(words[1:])
    assert [path.resolve() for path in called] == [tmp_path / name]


ODD = st.text(alphabet=st.sampled_from("ab/\\'\"${}[]()=,:#~ %-.@é1e|*?!&;\t<>^`+_"), min_size=1, max_size=9).filter(
    lambda text: text != "???"
)


@cases(200)
@given(ODD)
def test_an_override_means_its_value(value: str) -> None:
    _, word = pasted(command("train", override("resume", value)))
    assert meant(word) == value


@pytest.mark.parametrize("part", [None, Part])
def test_what_a_run_of_ones_own_parts_needs_is_named(
    part: type | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(["network=own", "network._target_=own_parts.Small"])
    monkeypatch.setitem(sys.modules, "own_parts", module := type(sys)("own_parts"))
    if part is not None:  # which is allowed in the process that has imported it, and in no later one
        vars(module)["Small"] = type("Small", (part,), {"__module__": "own_parts"})
    run = Run(tmp_path, PARTS_ONLY.naming(config))
    assert pasted(run.resume)[-2:] == ["--import", "own_parts"]
    assert Run(tmp_path, PARTS_ONLY.naming(compose())).allow == PARTS_ONLY
