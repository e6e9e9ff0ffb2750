"""The README: its Python runs as it stands, in order, and its commands and links name things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    assert "nats per frame" in capsys.readouterr().out
    assert len(blocks("python")[0].strip().splitlines()) <= 18


def test_the_command_lines_compose() -> None:
    from pyro_tvae.experiments.config import compose

    commands = [line.split("#")[0].split() for code in blocks("sh") for line in code.splitlines()]
    trained = [words[2:] for words in commands if words[:2] == ["pyro-tvae", "train"]]
    assert len(trained) >= 4
    for overrides in trained:
        compose([word for word in overrides if not word.startswith("--") and "," not in word])


def test_what_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README
