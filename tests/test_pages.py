"""The pages: their Python runs as it stands, in order, and their commands and links name things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
}
# What a page is to print, so that an empty one would be noticed.
SAYS = {
    "README.md": ["nats per frame"],
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


@pytest.mark.parametrize("page", PAGES)
def test_the_python_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": Path(page).stem}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)
    printed = capsys.readouterr().out
    assert [words for words in SAYS[page] if words not in printed] == []
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


@pytest.mark.parametrize("page", PAGES)
def test_the_command_lines_compose(page: str) -> None:
    from pyro_tvae.experiments.config.composition import compose

    commands = [line.split("#")[0].split() for code in blocks(page, "sh") for line in code.splitlines()]
    trained = [words[2:] for words in commands if words[:2] == ["pyro-tvae", "train"]]
    assert len(trained) >= (4 if page == "README.md" else 0)
    for overrides in trained:
        compose([word for word in overrides if not word.startswith("--") and "," not in word])


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)):
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_is_left(page: str) -> None:
    assert "@@" not in PAGES[page]
