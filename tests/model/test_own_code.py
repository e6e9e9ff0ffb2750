"""Code of a user's classes that was edited since a file or a checkpoint was written is told of."""

import importlib.util
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

import pyro_tvae
from pyro_tvae import TVAE, CapsuleRoll, Guide
from pyro_tvae.inference import TrainerOptions, fit
from pyro_tvae.own_code import digests, edited
from pyro_tvae.storage import edited_since

HELPERS = "def twice(x):\n    return 2 * x\n"
MINE = """
from functools import cached_property, partialmethod, wraps
import torch
import own_helpers
from own_helpers import twice
from pyro_tvae import MeanFieldGuide

SCALE = 1.0
PAIR = (1, (2.0, "a"))
shape = 1
MANY = tuple(range(1_000_000))
shift = 0.5
hidden = type("Hidden", (dict,), {"__getattr__": dict.__getitem__})()
lazy = type("Lazy", (), {"__class__": property(lambda self: 1 / 0)})()
calls = 0
elsewhere = 0
seen = []
CACHE = {}
RATES = torch.ones(2)

def made(factor):
    count = 0
    def method(self, value):
        nonlocal count
        count += 1
        return factor * value
    return method

def powered(value, exponent=1):
    return value**exponent

def count():
    global elsewhere
    elsewhere += 1

class Twice:
    def __call__(self, value):
        return 2 * value

def logged(method):
    @wraps(method)
    def wrapper(self, *args):
        return 1.0 * method(self, *args)
    return wrapper

class Mine(MeanFieldGuide):
    "What it is."
    width = 3
    number = 0
    table = {}
    scaled = made(2.0)
    cubed = logged(lambda self, value: value**3)
    whole = property(lambda self: 8)
    once = cached_property(lambda self: 6)
    at_home = staticmethod(lambda: 9)
    again = Twice()
    kinds = (lambda value: value + 1, 2)
    squared = partialmethod(powered, exponent=2)

    def weight(self, *, power=1.0):
        hidden, elsewhere, MANY
        return power + shift + PAIR[0] + RATES[0]

    def posterior(self, x, *args, **kwargs):
        "What it gives."
        global calls
        calls += 1  # how often
        type(self).number += 1
        count()
        self.scaled(1.0)
        seen.append(calls)
        CACHE[calls] = self.table[calls] = calls
        x.shape
        inner = lambda value: twice(value) * own_helpers.twice(SCALE)
        assert inner(1.0)
        return super().posterior(x, *args, **kwargs)
"""
ALIKE = {
    "nothing": (MINE, HELPERS),
    "comments and lines": (MINE.replace("  # how often", "\n").replace("calls = 0", "calls = 0  # so far"), HELPERS),
    "docstrings": (MINE.replace("What it", "All that it"), HELPERS),
    "what is counted on": (MINE.replace("= 0\n", "= 7\n"), HELPERS),
    "what is called like an attribute": (MINE.replace("shape = 1", "shape = 2"), HELPERS),
    "what is filled": (MINE.replace("= []", "= [1]").replace("= {}", "= {1: 2}").replace("ones", "zeros"), HELPERS),
}
OTHERWISE = {
    "a method": (MINE.replace("twice(value) *", "twice(value) +"), HELPERS),
    "a number in it": (MINE.replace("inner(1.0)", "inner(3.0)"), HELPERS),
    "a constant": (MINE.replace("SCALE = 1.0", "SCALE = 2.0"), HELPERS),
    "a tuple": (MINE.replace('(2.0, "a")', '(2.0, "b")'), HELPERS),
    "a value of the module": (MINE.replace("shift = 0.5", "shift = 0.7"), HELPERS),
    "a value of the class": (MINE.replace("width = 3", "width = 4"), HELPERS),
    "what encloses a method": (MINE.replace("made(2.0)", "made(3.0)"), HELPERS),
    "a part of a method": (MINE.replace("exponent=2", "exponent=3"), HELPERS),
    "a decorator": (MINE.replace("1.0 * method", "2.0 * method"), HELPERS),
    "what is decorated": (MINE.replace("value**3", "value**4"), HELPERS),
    "a property": (MINE.replace("self: 8", "self: 7"), HELPERS),
    "a property that is kept": (MINE.replace("self: 6", "self: 5"), HELPERS),
    "an object that is called": (MINE.replace("return 2 * value", "return 3 * value"), HELPERS),
    "a function of a tuple": (MINE.replace("value + 1", "value + 2"), HELPERS),
    "a static method": (MINE.replace("lambda: 9", "lambda: 7"), HELPERS),
    "a default by keyword": (MINE.replace("power=1.0", "power=2.0"), HELPERS),
    "a function of another module": (MINE, HELPERS.replace("2", "3")),
    "one more method": (MINE + "\n    def more(self):\n        return 1\n", HELPERS),
}


FILED = """
import dataclasses
import torch
from pyro_tvae import MeanFieldGuide

@dataclasses.dataclass
class Options:
    scale: float

def scaled(**table):
    return lambda method: lambda *args: table["by"] * method(*args)

SIZE = 2
if SIZE:
    CFG = {"scale": 1.0, "also": [3, 4]}
CFG["more"] = 5
CFG.update(still=9)
SCALES: list[float] = [1.0, 2.0]
KERNEL = torch.ones(SIZE)
OPTIONS = Options(scale=1.0)
CACHE = {}
UNUSED = {"a": 1}

class Mine(MeanFieldGuide):
    table = {"a": 6}

    @scaled(by=7)
    def weight(self, x, rates=[8]):  # of the guide
        return CFG, SCALES, KERNEL, OPTIONS, rates

    def posterior(self, x, *args, **kwargs):
        CACHE[len(CACHE)] = self.table["b"] = x
        return super().posterior(x, *args, **kwargs)
"""
FILED_ALIKE = {
    "nothing": ("", ""),
    "comments": ("of the guide", "of it"),
    "lines": ("CACHE = {}", "\n\nCACHE = {\n}"),
    "what is named nowhere": ('"a": 1', '"a": 2'),
}
FILED_OTHERWISE = {
    "a table": ('"scale": 1.0', '"scale": 2.0'),
    "a table in it": ("[3, 4]", "[3, 5]"),
    "what is put into a table": ('["more"] = 5', '["more"] = 6'),
    "what a table is updated by": ("still=9", "still=8"),
    "a list with a type": ("[1.0, 2.0]", "[1.0, 3.0]"),
    "how a tensor is made": ("ones", "zeros"),
    "a number that a tensor is made of": ("SIZE = 2", "SIZE = 3"),
    "an object": ("Options(scale=1.0)", "Options(scale=2.0)"),
    "a table of the class": ('{"a": 6}', '{"a": 7}'),
    "what a decorator is given": ("by=7", "by=8"),
    "a default": ("[8]", "[9]"),
}


@pytest.fixture(autouse=True)
def away() -> Iterator[None]:
    yield
    for name in ("own_parts", "own_helpers", "own_file"):
        sys.modules.pop(name, None)


def own(code: str, helpers: str) -> tuple[TVAE, Guide]:
    """A pair whose guide is of a user's module of this code."""
    for name, text in (("own_helpers", helpers), ("own_parts", code)):
        module = sys.modules[name] = ModuleType(name)
        exec(compile(text, f"{name}.py", "exec"), vars(module))
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
    return model, sys.modules["own_parts"].Mine(model)


def of_a_file(path: Path, code: str) -> Any:
    """A module that was imported of a file with this code, as another process does."""
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told_of_loading(path: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pyro_tvae.load(path)
    return [str(one.message) for one in caught]


@pytest.mark.filterwarnings("ignore:load. the code of own_parts.Mine was edited")
@pytest.mark.parametrize("what", [*ALIKE, *OTHERWISE])
def test_code_that_was_edited_since_a_file_was_written_is_told_of(what: str, tmp_path: Path) -> None:
    path = pyro_tvae.save(tmp_path / "m.safetensors", *own(MINE, HELPERS))
    own(*(ALIKE | OTHERWISE)[what])
    told = told_of_loading(path)
    assert len(told) == (what in OTHERWISE)
    assert {*edited_since(path, *pyro_tvae.load(path))} == ({"own_parts.Mine"} if what in OTHERWISE else set())
    said = f"load: the code of own_parts.Mine was edited since {path} was written"
    assert all(text.startswith(said) for text in told)


@pytest.mark.parametrize("what", [*FILED_ALIKE, *FILED_OTHERWISE])
def test_what_a_file_makes_of_tables_and_tensors_counts(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of files that are written within a second of each other
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
    old, new = (FILED_ALIKE | FILED_OTHERWISE)[what]
    assert old in FILED
    before = digests(of_a_file(tmp_path / "own_file.py", FILED).Mine(model))
    module = of_a_file(tmp_path / "own_file.py", FILED.replace(old, new))
    guide = module.Mine(model)
    assert edited(digests(guide), before) == ["own_file.Mine"] * (what in FILED_OTHERWISE)
    # What the program fills, or what is edited while it runs, is no edit.
    now = digests(guide)
    guide(torch.rand(2, 3, 1, 2, 2))
    (tmp_path / "own_file.py").write_text("edited", encoding="utf-8")
    assert len(module.CACHE) == len(module.Mine.table) - 1 == 1
    assert digests(guide) == now


CONSTANTS = """
from functools import lru_cache
TABLE = [1.0, 2.0]

@lru_cache
def cached(value):
    return 3 * value
"""
IMPORTING = """
from own_helpers import TABLE as GIVEN, cached
from pyro_tvae import MeanFieldGuide

class Mine(MeanFieldGuide):
    def weight(self, x):
        return GIVEN, cached(x)
"""


@pytest.mark.parametrize("by", ["TABLE as GIVEN, cached", "*\nGIVEN = TABLE"])
@pytest.mark.parametrize("what", [("", ""), ("2.0]", "3.0]"), ("3 * value", "4 * value")])
def test_what_a_file_imports_of_another_counts(what: tuple[str, str], by: str, tmp_path: Path) -> None:
    model, made = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0)), []
    for code in (CONSTANTS, CONSTANTS.replace(*what)):
        module = of_a_file(tmp_path / "own_helpers.py", code)
        importing = IMPORTING.replace("TABLE as GIVEN, cached", by)
        made.append(digests(of_a_file(tmp_path / "own_file.py", importing).Mine(model)))
        assert module.cached.cache_info().currsize == 0
    assert edited(*reversed(made)) == ["own_file.Mine"] * (what != ("", ""))


def test_a_module_that_is_reloaded_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    model, file = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0)), tmp_path / "own_file.py"
    file.write_text(FILED, encoding="utf-8")
    module: Any = importlib.import_module("own_file")
    before = digests(module.Mine(model))
    file.write_text(FILED.replace("[1.0, 2.0]", "[1.0, 3.0]"), encoding="utf-8")
    assert edited(digests(module.Mine(model)), before) == []
    module = importlib.reload(module)
    assert edited(digests(module.Mine(model)), before) == ["own_file.Mine"]


@pytest.mark.parametrize("directory", [False, True])
def test_a_file_that_is_edited_while_a_fit_runs_is_saved_as_it_ran(directory: bool, tmp_path: Path) -> None:
    code = tmp_path / "own_file.py"
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
    guide = of_a_file(code, FILED).Mine(model)
    x = torch.rand(8, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    def edit(*_: Any) -> None:
        code.write_text(FILED.replace("[1.0, 2.0]", "[1.0, 3.0]"), encoding="utf-8")

    trainer = TrainerOptions("cpu", callbacks=[LambdaCallback(on_train_batch_end=edit)])
    options: dict[str, Any] = {"trainer": trainer, "max_epochs": 1, "seed": 1, "batch_size": 4, "progress": False}
    fit(model, guide, x, directory=tmp_path / "fit" if directory else None, **options)
    path = pyro_tvae.save(tmp_path / "m.safetensors", model, guide)
    of_a_file(code, FILED)
    assert told_of_loading(path) == []
    of_a_file(code, FILED.replace("[1.0, 2.0]", "[1.0, 3.0]"))
    with pytest.warns(UserWarning, match=r"^load: the code of own_file.Mine was edited since"):
        pyro_tvae.load(path)


@pytest.mark.parametrize("what", ["nothing", "a method"])
def test_a_fit_that_goes_on_with_edited_code_says_so(what: str, tmp_path: Path) -> None:
    trainer = TrainerOptions("cpu")
    options: dict[str, Any] = {"trainer": trainer, "directory": tmp_path, "seed": 1, "batch_size": 4, "progress": False}
    x = torch.rand(8, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    last = fit(*own(MINE, HELPERS), x, max_epochs=1, **options).last_checkpoint
    pair = own(*(ALIKE | OTHERWISE)[what])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(*pair, x, max_epochs=2, resume=last, **options)
    told = [text for one in caught if (text := str(one.message)).startswith("fit: goes on")]
    said = "fit: goes on with other code of own_parts.Mine: from here on it is not the fit that was stopped."
    assert told == [said] * (what in OTHERWISE)


def test_objects_that_do_not_let_themselves_be_looked_at_cost_no_file(tmp_path: Path) -> None:
    path = pyro_tvae.save(tmp_path / "m.safetensors", *own(MINE.replace("hidden, elsewhere, MANY", "lazy"), HELPERS))
    own(MINE.replace("power=1.0", "power=2.0"), HELPERS)
    assert told_of_loading(path) == []


def test_what_a_program_changes_while_it_runs_is_no_edit() -> None:
    model, guide = own(MINE, HELPERS)
    before = digests(model, guide)
    for _ in range(2):
        guide(torch.rand(2, 3, 1, 2, 2))
    module: Any = sys.modules["own_parts"]
    assert (module.calls, module.elsewhere, module.Mine.number, len(module.CACHE)) == (2, 2, 2, 2)
    module.Mine.of_others = torch.nn.Module.forward  # as a newer version of the package gives classes former names
    assert digests(model, guide) == before != {}


def test_functions_of_the_users_are_told_apart_too() -> None:
    one, other, same = (eval(f"lambda step: {value}", {"__name__": "own"}) for value in (1.0, 0.01, 1.0))
    assert digests(functions=[one]) == digests(functions=[same])
    assert [*digests(functions=[one])] == ["interpreter", "own.<lambda>"]
    assert digests(functions=[one, other]) != digests(functions=[one, one])
    assert digests(functions=[math.sqrt, torch.nn.functional.relu, None]) == {}


def test_parts_of_the_package_have_no_code_of_their_own() -> None:
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
    assert digests(model, pyro_tvae.default_guide(model)) == {}


def test_another_version_of_python_is_no_edit() -> None:
    now, then = ({"interpreter": version, "own.Mine": digest} for version, digest in (("1", "a"), ("2", "b")))
    assert edited(now, then) == []
    assert edited(now, {**then, "interpreter": "1"}) == ["own.Mine"]
