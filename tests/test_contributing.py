"""CONTRIBUTING.md, followed to the letter on a copy of the package: what it adds trains, is judged and comes back."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^`(?P<file>[\w/.]+)`\n\n```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = {"pyro_tvae": "pyro_tvae", "inference": "pyro_tvae/inference", "experiments": "pyro_tvae/experiments"}

PARTS = """
import doctest, torch, pyro_tvae, pyro_tvae.experiments.datasets as datasets
from pyro_tvae.guides import homoscedastic
from pyro_tvae.inference import sparsity
from pyro_tvae.inference import fit, log_likelihood

assert {"HomoscedasticGuide", "Diagonal"} <= set(pyro_tvae.__all__) and "bars" in datasets.__all__
torch.manual_seed(0)
x = datasets.bars(n=20).train.pixels
topography = pyro_tvae.Diagonal(2)
assert torch.equal(topography.neighborhood(6, 6)[0].nonzero().flatten(), torch.tensor([0, 8]))
model = pyro_tvae.TVAE((1, 8, 8), 6, n_capsules=2, capsule_dim=6, topography=topography)
guide = pyro_tvae.HomoscedasticGuide(model)
before = guide.log_variance.detach().clone()
fit(model, guide, x, max_epochs=1, progress=False)
assert not torch.equal(guide.log_variance, before)
again = pyro_tvae.load(pyro_tvae.save("m.safetensors", model, guide))
assert torch.equal(log_likelihood(*again, x, 5).iwae, log_likelihood(model, guide, x, 5).iwae)
try:
    pyro_tvae.HomoscedasticGuide(pyro_tvae.TVAE((1, 8, 8), 6, 2, 6, prior=pyro_tvae.GammaEnergy()))
except ValueError as error:
    assert "GaussianEnergy" in str(error)
else:
    raise AssertionError("refused nothing")
for module in (homoscedastic, sparsity):
    examples = doctest.testmod(module)
    assert examples.attempted and not examples.failed
"""
TRAIN = ["train", "data=bars", "experiment=lpartial", "topography=diagonal", "guide=homoscedastic"]
TRAIN += ["model.n_capsules=2", "model.capsule_dim=6", "data.n_train=16", "fit.max_epochs=1", "baseline.max_epochs=1"]
TRAIN += ["fit.accelerator=cpu", "evaluation.num_particles=3", "fit.progress=false", "hydra.run.dir=run"]


def change(text: str, diff: str) -> str:
    """A file with a page's diff applied: added lines go in below the line above them, and in place of removed ones."""
    lines, at = text.splitlines(), 0
    for line in diff.splitlines():
        sign, content = line[:1], line[1:]
        if sign == "+":
            lines.insert(at, content)
            at += 1
        else:
            assert lines.count(content) == 1, f"{content!r} stands {lines.count(content)} times in the file"
            at = lines.index(content) + (sign == " ")
            if sign == "-":
                del lines[at]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with everything that the page adds, where Python finds it by PYTHONPATH."""
    folder = tmp_path_factory.mktemp("copy")
    for name, inside in FOLDERS.items():
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, folder / inside, dirs_exist_ok=True, ignore=ignored)
    for block in BLOCK.finditer(PAGE):
        top, _, rest = block["file"].partition("/")
        file = folder / FOLDERS[top] / rest
        if block["language"] == "diff":
            file.write_text(change(file.read_text(encoding="utf-8"), block["text"]), encoding="utf-8")
        else:
            assert not file.exists(), f"{block['file']} is there already"
            file.write_text(block["text"], encoding="utf-8")
    return folder


def python(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_block_is_applied() -> None:
    files = [block["file"] for block in BLOCK.finditer(PAGE)]
    assert len(files) >= 12
    shown = re.findall(r"^```(?:python|diff|yaml)$", PAGE, re.MULTILINE)
    assert len(shown) == len(files)


def test_each_addition_touches_at_most_three_places() -> None:
    for title, section in re.findall(r"^## (Add .*?)\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL):
        assert 1 <= len(BLOCK.findall(section)) <= 3, title


def test_the_diffs_are_understood() -> None:
    assert change("a\nb\nc\n", " a\n+1\n+2\n-c\n+3\n") == "a\n1\n2\nb\n3\n"
    for diff in (" d\n+1\n", "-a\n"):
        with pytest.raises(AssertionError, match="times in the file"):
            change("a\na\n", diff)


def test_guide_topography_and_data_set_are_public_train_and_come_back(copy: Path) -> None:
    python(copy, "-c", PARTS)


def test_the_command_line_trains_and_judges_with_them(copy: Path) -> None:
    assert "guide=homoscedastic" in python(copy, "-m", "pyro_tvae.experiments.cli", "list")
    python(copy, "-m", "pyro_tvae.experiments.cli", *TRAIN)
    evaluation = json.loads((copy / "run/evaluation.json").read_text(encoding="utf-8"))
    row = next(row for row in evaluation["rows"] if row["key"] == "excess_kurtosis")
    assert all(math.isfinite(row[model]) for model in ("trained", "untrained", "plain_vae"))
    assert "excess kurtosis of t" in (copy / "run/report.html").read_text(encoding="utf-8")
