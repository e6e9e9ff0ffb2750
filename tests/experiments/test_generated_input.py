"""Files of a stranger, damaged by the thousand: each is taken, or refused in one sentence that names it.

2,000 cases by default, the same every time; ``PYRO_TVAE_BAD_INPUTS=20000 python -m pytest -s`` on this file tries more,
and prints what became of them.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import random
import shutil
import signal
import struct
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from complaints import answer
from matplotlib.figure import Figure
from mutations import TEXTS, changed, junk, spoiled, spoiled_json

import pyro_tvae
from pyro_tvae.experiments.commands.evaluate import report_run, write_page
from pyro_tvae.experiments.config.building import build
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.datasets import arrays
from pyro_tvae.experiments.evaluation.record import EvaluationRecord
from pyro_tvae.experiments.reports.tables import print_evaluation
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.experiments.studies import results
from pyro_tvae.experiments.studies.cells import ANNEALED, REFITTED, measured
from pyro_tvae.experiments.studies.comparison import as_csv, markdown
from pyro_tvae.experiments.studies.kept import read_kept
from pyro_tvae.inference import Fitting
from pyro_tvae.inference.checkpoints import read_checkpoint

FILES = Path(__file__).parents[1] / "files" / "v2"
RECORDS = Path(__file__).parents[2] / "experiments" / "results"
CASES = int(os.environ.get("PYRO_TVAE_BAD_INPUTS", "2000"))
LIMIT = 20  # seconds of one case, after which it counts as hanging
SECRET = base64.b64encode(b"the reader's own")[:12]  # as a page would hold it
DRAWN = ("training_curves", "forward_roll_curve")  # by a page, unless their pictures are there


class Stranger:
    """A run, a checkpoint and a study's records that are whole, and the reader's own file beside them."""

    def __init__(self, home: Path) -> None:
        self.home, self.run, self.records = home, home / "run", home / "records"
        shutil.copytree(FILES / "ended", self.run)
        shutil.copytree(FILES / "interrupted", home / "interrupted")
        (self.run / "figures").mkdir()
        for name in ("reconstructions", *DRAWN):
            Figure((1, 1)).savefig(self.run / "figures" / f"{name}.png")
        for name in (ANNEALED, REFITTED):
            (self.run / name).write_text(json.dumps({"elbo": -3.0, "iwae": -2.5, "ais": None, "seconds": 3.0}))
        (home / "outside").mkdir()
        (home / "outside" / "mine").write_text("the reader's own")
        self.records.mkdir()
        report_run(self.run)
        self.whole = {name: (home / name).read_bytes() for name in self.now()}
        self.config = yaml.safe_load((self.run / "config.yaml").read_text())
        self.kept = {name: json.loads((RECORDS / f"{name}.json").read_text()) for name in ("priors", "recipe")}
        for record in self.kept.values():  # a small one is damaged in as many ways
            for row in record["rows"]:
                for run in row["runs"]:
                    run["points"] = run["points"][:2] if "points" in run else []
        self.checkpoint = torch.load(home / "interrupted" / "checkpoints" / "last.ckpt", weights_only=True)
        self.typed = Run(self.run).config()
        parts = build(Run(home / "interrupted").config())
        self.module = Fitting(parts.model, parts.guide)
        with open(self.run / "model.safetensors", "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self.header, self.weights = json.loads(file.read(length)), file.read()

    def now(self) -> dict[str, tuple[int, ...]]:
        """What is there, by when and where it was last written; nothing is opened."""
        return {name: (one.st_mtime_ns, one.st_size, one.st_ino) for name, one in _entries(str(self.home))}

    def mend(self, names: set[str]) -> None:
        """Put back what these files were."""
        for name in names:
            path = self.home / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if name in self.whole:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.whole[name])


def _entries(folder: str, under: str = "") -> Iterator[tuple[str, os.stat_result]]:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path, f"{under}{entry.name}/")
        else:
            yield f"{under}{entry.name}", entry.stat(follow_symlinks=False)


Made = tuple[set[str], Callable[[], object], list[str]]  # files that may differ, what is done, what a sentence names


def config_yaml(stranger: Stranger, dice: random.Random) -> Made:
    dump = functools.partial(yaml.safe_dump, allow_unicode=True)
    (stranger.run / "config.yaml").write_bytes(spoiled_json(stranger.config, dice, dump))
    return {"run/config.yaml"}, lambda: Run(stranger.run).config(), ["config.yaml"]


def record_of_a_run(stranger: Stranger, dice: random.Random) -> Made:
    name = dice.choice(("history.json", "evaluation.json", "evaluation.json"))
    path = stranger.run / name
    path.write_bytes(spoiled_json(json.loads(stranger.whole[f"run/{name}"]), dice))
    files = {f"run/{name}", "run/report.html"}
    if dice.random() < 0.015:  # pictures take longer than all else
        files |= {f"run/figures/{picture}.png" for picture in DRAWN}
        for picture in DRAWN:
            (stranger.run / "figures" / f"{picture}.png").unlink()

    def looked_at() -> None:
        with redirect_stdout(io.StringIO()):
            run = Run(stranger.run)
            write_page(run, stranger.typed, record := run.read("evaluation.json", EvaluationRecord), run.history())
            print_evaluation(record)

    return files, looked_at, [name, "the evaluation has schema"]


def record_of_a_study(stranger: Stranger, dice: random.Random) -> Made:
    name = dice.choice(sorted(stranger.kept))
    path = stranger.records / f"{name}.json"
    path.write_bytes(spoiled_json(stranger.kept[name], dice))
    draws = dice.random() < 0.05

    def looked_at() -> None:
        with pytest.MonkeyPatch.context() as patch:
            if not draws:
                patch.setattr(results, "recipe_curves", lambda record: None)
                patch.setattr(results, "forecast_curves", lambda record: None)
            record = read_kept(path)
            text = markdown(record) + results.write_results(stranger.records).read_text(encoding="utf-8")
            assert "<b>" not in text
            if record["kind"] == "reproduction":
                assert not any(line.startswith("=") for line in as_csv(record).splitlines())

    made = {f"records/{file}" for file in (path.name, "RESULTS.md", f"{name}-curves.png", f"{name}-forward_roll.png")}
    return made, looked_at, [path.name]


def measures_of_a_run(stranger: Stranger, dice: random.Random) -> Made:
    name = dice.choice(("history.json", "evaluation.json", ANNEALED, REFITTED))
    (stranger.run / name).write_bytes(spoiled_json(json.loads(stranger.whole[f"run/{name}"]), dice))
    return {f"run/{name}"}, lambda: measured(Run(stranger.run)), [name]


def model_file(stranger: Stranger, dice: random.Random) -> Made:
    path = stranger.run / "model.safetensors"
    if dice.random() < 0.2:
        path.write_bytes(spoiled(path.read_bytes(), dice))
    else:
        said = {**stranger.header["__metadata__"]}
        name = dice.choice(sorted(said))
        try:
            said[name] = json.dumps(changed(json.loads(said[name]), dice))
        except ValueError:
            said[name] = dice.choice(["", "x", "9", "-1"])
        header = stranger.header | {"__metadata__": said}
        text = json.dumps(changed(header, dice) if dice.random() < 0.2 else header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + stranger.weights)
    return {"run/model.safetensors"}, lambda: pyro_tvae.load(path), ["model.safetensors"]


def checkpoint(stranger: Stranger, dice: random.Random) -> Made:
    path = stranger.home / "interrupted" / "checkpoints" / "last.ckpt"
    if dice.random() < 0.3:
        path.write_bytes(spoiled(path.read_bytes(), dice))
    else:
        buffer = io.BytesIO()
        torch.save(changed(stranger.checkpoint, dice), buffer)
        path.write_bytes(buffer.getvalue())
    return {"interrupted/checkpoints/last.ckpt"}, lambda: read_checkpoint(path, stranger.module), ["last.ckpt"]


def data_file(stranger: Stranger, dice: random.Random) -> Made:
    path, buffer = stranger.home / "outside" / "data.npy", io.BytesIO()
    pixels = np.random.default_rng(0).random((6, 4, 4), dtype=np.float32)
    np.savez(buffer, pixels) if dice.random() < 0.5 else np.save(buffer, pixels)  # type: ignore[func-returns-value]
    content = buffer.getvalue()
    if dice.random() < 0.3 and content.startswith(b"\x93"):  # a header that promises more, or is no header
        words = (b"(6, 4, 4)", b"(6, 4, 99999999999)", b"(-6, 4, 4)", b"__import__('os')", b"(6,)", b"'<O8'")
        content = content.replace(b"(6, 4, 4)", dice.choice(words))
    path.write_bytes(spoiled(content, dice))
    return {"outside/data.npy"}, lambda: arrays(path), ["data.npy"]


def places(stranger: Stranger, dice: random.Random) -> Made:
    """What is no file where a file should be, or leads out of the folder."""
    inside = sorted(name for name in stranger.whole if name.startswith(("run/", "interrupted/")))
    name = dice.choice([name for name in inside if not name.endswith("report.html")])
    path, folder = stranger.home / name, stranger.home / name.partition("/")[0]
    path.unlink()
    kind = dice.choice(("link", "folder link", "pipe", "folder", "empty", "missing", "loop", "device"))
    if kind == "link":
        path.symlink_to(stranger.home / "outside" / "mine")
    elif kind == "folder link":
        path.symlink_to(stranger.home / "outside")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")

    def looked_at() -> None:
        run = Run(folder)
        run.config()
        if run.has("evaluation.json"):
            assert SECRET not in report_run(folder).read_bytes()
        pyro_tvae.load(folder / "untrained.safetensors")

    # An empty model is left for evaluate, and a picture that is none is shown as one.
    return {name, f"{folder.name}/report.html"}, looked_at, [path.name, folder.name]


def typed_settings(stranger: Stranger, dice: random.Random) -> Made:
    names = [
        "fit.max_epochs",
        "model",
        "topography",
        "+new.deep",
        "~seed",
        "data.source",
        "hydra.x",
        "nme",
        "fit..a",
        "",
    ]
    values = [*TEXTS[:-1], "[1", "{a:1}", "${seed}", "${oc.env:HOME}", "???", "'x", "1e999", "null", repr(junk(dice))]
    name = dice.choice(names)
    return set(), lambda: compose([f"{name}={dice.choice(values)}"]), [""]


# kind -> how many of 2,000 cases
KINDS: dict[Callable[[Stranger, random.Random], Made], int] = {
    record_of_a_study: 200,
    record_of_a_run: 250,
    measures_of_a_run: 350,
    config_yaml: 100,
    model_file: 450,
    checkpoint: 160,
    data_file: 390,
    places: 70,
    typed_settings: 30,
}


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """End what hangs."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_: object) -> None:
        raise AssertionError(f"it hung for {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    return Stranger(tmp_path_factory.mktemp("stranger"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_a_stranger_made_is_taken_or_refused_in_a_sentence(
    kind: Callable[[Stranger, random.Random], Made], stranger: Stranger
) -> None:
    ends: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(KINDS[kind] * CASES // 2000):
        dice = random.Random(f"{kind.__name__} {number}")
        files, action, names = kind(stranger, dice)
        before = stranger.now()
        try:
            with warnings.catch_warnings(), alarm(LIMIT):
                warnings.simplefilter("ignore")  # of letters that a font lacks, and numbers that overflow
                _, sentence = answer(action)
            ends["taken" if sentence is None else "refused"] += 1
            assert sentence is None or any(name in sentence for name in names), sentence
            after = stranger.now()
            others = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - files
            assert not others, others
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(f"{number}: {type(error).__name__} {str(error)[:300]!r} at {where.filename}:{where.lineno}")
        finally:
            stranger.mend(files | (stranger.now().keys() - stranger.whole.keys()))
    print(f"{kind.__name__}: {sum(ends.values())} cases, {dict(ends)}, {len(failures)} failed")
    assert not failures, "\n".join([f"{len(failures)} of them:", *failures[:40]])
    assert min(ends["taken"], ends["refused"]) > 0, ends
