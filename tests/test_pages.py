"""The pages: their Python runs as it stands, in order, and their commands and links name things that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in (*GUIDES, "CONTRIBUTING.md", "CHANGELOG.md")}
# What a page is to print, so that an empty one would be noticed.
SAYS = {
    "README.md": ["nats per frame", "torch.Size([16, 6, 4, 6])"],
    "docs/parts.md": ["OneScale", "HalfNormalEnergy"],
    "docs/data.md": [
        "60 images, 3 channels, 16 x 16 pixels (axes=NHWC, as said)",
        "torch.Size([12, 18, 3, 16, 16])",
        "cut into windows of 6 frames a window every 3: ",
        "report.html",
    ],
    "docs/likelihoods.md": ["nats per frame"],
    "docs/posterior.md": ["log_p_diff", "Pareto k: [", "log_likelihood: ", "simulations", "prior sensitivity: t moves"],
    "docs/bring_your_own.md": [
        "of those never labeled",
        "Pyro's Trace_ELBO",
        "weights per sequence make no bound of the batch",
        "is outside the plate 'sequence'",
        "nats per unseen frame",
        "belongs to 4 frames",
    ],
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


@pytest.mark.parametrize("page", GUIDES)
def test_the_python_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": Path(page).stem}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)
    printed = capsys.readouterr().out
    assert [words for words in SAYS.get(page, []) if words not in printed] == []
    with pytest.raises(ValueError, match="constraint"):  # a page leaves torch's checks as they were
        torch.distributions.Normal(0.0, -1.0)


def test_the_first_example_is_short() -> None:
    assert len(blocks("README.md", "python")[0].strip().splitlines()) <= 18


def test_an_example_is_a_dozen_lines() -> None:
    """But for the first block, which makes the data, none is much longer."""
    _, *examples = (len(code.strip().splitlines()) for code in blocks("docs/bring_your_own.md", "python"))
    assert len(examples) >= 15
    assert max(examples) <= 36
    assert sorted(examples)[len(examples) // 2] <= 12


def commands(page: str) -> list[list[str]]:
    """What follows ``pyro-tvae`` in the page's shell blocks and within its sentences, word by word."""
    shell = [line.split("#")[0] for code in blocks(page, "sh") for line in code.splitlines()]
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    spans = [line.split("&&")[-1].split() for line in (*shell, *re.findall(r"`([^`]+)`", prose))]
    return [words[1:] for words in spans if words[:1] == ["pyro-tvae"] and len(words) > 1]


def parse(words: list[str]) -> dict[str, Any]:
    """The arguments of a command line as the command would have them; what it does not take is an error."""
    import typer

    from pyro_tvae.experiments.cli import app

    return typer.main.get_command(app).commands[words[0]].make_context(words[0], list(words[1:])).params  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES)
def test_the_command_lines_are_understood(page: str) -> None:
    from pyro_tvae.experiments.benchmarks import NAMES
    from pyro_tvae.experiments.cli import STUDY

    for words in commands(page):
        needed = ["all"] if words == ["reproduce"] else []  # a sentence that names the command
        given = parse([*words, *needed])
        assert set(given.get("names") or ()) <= set(NAMES)
        assert "name" not in given or given["name"] in re.split(r"\W+", STUDY), words


def test_the_pages_show_every_command() -> None:
    from pyro_tvae.experiments.cli import app

    shown = {words[0] for page in PAGES for words in commands(page)}
    assert shown == {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]


def test_a_command_line_that_is_wrong_would_be_noticed() -> None:
    for words in (["posterior", "RUN", "--drwas", "3"], ["reproduce"], ["tarin"], ["evaluate"]):
        with pytest.raises((Exception, SystemExit)):
            parse(words)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CONTRIBUTING.md"])  # it trains what it adds
def test_the_trained_command_lines_compose(page: str) -> None:
    from pyro_tvae.experiments.config.composition import compose, places_apart

    trained = [words[1:] for words in commands(page) if words[0] == "train"]
    assert len(trained) >= {"README.md": 4, "docs/parts.md": 11}.get(page, 0)
    for overrides in trained:
        compose(places_apart([word for word in overrides if not word.startswith("--") and "," not in word])[0])


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_is_left(page: str) -> None:
    assert "@@" not in PAGES[page]


def test_the_changelog_names_what_was_called_otherwise() -> None:
    import pyro_tvae.inference
    from pyro_tvae.experiments.config.former_names import OPTIONS, SETTINGS

    former = {*pyro_tvae.FORMER, *pyro_tvae.inference.FORMER, *SETTINGS}  # type: ignore[attr-defined]
    former |= {f"{group}={name}" for group, names in OPTIONS.items() for name in names}
    assert [name for name in former if name not in PAGES["CHANGELOG.md"]] == []
