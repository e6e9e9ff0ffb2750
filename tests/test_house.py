"""The house rules: who may import whom, what lies at the top, and that every public name explains itself."""

from __future__ import annotations

import ast
import configparser
import doctest
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import pyro_tvae
import pyro_tvae.inference

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"pyro_tvae": "pyro_tvae", "inference": "pyro_tvae.inference", "experiments": "pyro_tvae.experiments"}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]


def imported(source: str, package: str) -> Iterator[str]:
    """Dotted names that a module in ``package`` imports, relative ones resolved, import_module("…") included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)


def package_of(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).parent.parts
    return ".".join([FOLDERS[folder], *rest])


def module_of(path: Path) -> str:
    return package_of(path) if path.stem == "__init__" else f"{package_of(path)}.{path.stem}"


def forbidden(path: Path, source: str) -> list[str]:
    """Imports that go up the stairs: experiments → inference → pyro_tvae is the one direction."""
    floor = path.relative_to(ROOT).parts[0]
    upstairs = {
        "pyro_tvae": ("pyro_tvae.inference", "pyro_tvae.experiments"),
        "inference": ("pyro_tvae.experiments",),
        "experiments": (),
    }[floor]
    # The folders are never imported by their bare names: they would be global modules of the user's.
    bare = ("inference", "experiments")
    return [
        name
        for name in imported(source, package_of(path))
        if any(name == up or name.startswith(f"{up}.") for up in (*upstairs, *bare))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_lower_imports_anything_higher(name: str) -> None:
    assert forbidden(ROOT / name, (ROOT / name).read_text()) == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("pyro_tvae/model.py", "from pyro_tvae.inference import fit"),
        ("pyro_tvae/model.py", "from .inference import fit"),
        ("pyro_tvae/model.py", "from . import inference"),
        ("pyro_tvae/model.py", "def f():\n    import pyro_tvae.experiments.cli"),
        ("pyro_tvae/model.py", "import importlib\nimportlib.import_module('pyro_tvae.inference')"),
        ("inference/training.py", "from ..experiments import cli"),
        ("inference/training.py", "from pyro_tvae import experiments"),
        ("inference/training.py", "import inference"),
        ("experiments/datasets/sources.py", "from inference import fit"),
    ],
)
def test_imports_up_the_stairs_would_be_noticed(where: str, source: str) -> None:
    assert forbidden(ROOT / where, source)


def test_imports_down_the_stairs_are_fine() -> None:
    assert forbidden(ROOT / "inference/training.py", "from pyro_tvae import TVAE\nfrom .objectives import ELBO") == []
    assert forbidden(ROOT / "experiments/cli.py", "from pyro_tvae.inference import fit\nfrom . import tables") == []


# --- the rooms of experiments/, one level down ------------------------------------------------------------------------

# From the lowest to the highest: each may use those before it, and itself.
LAYERS = (
    ("interruption", "outlets", "provenance"),
    ("datasets",),
    ("config",),
    ("runs",),
    ("evaluation",),
    ("reports",),
    ("commands",),
    ("studies", "benchmarks"),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
ROOMS = [name for name in NAMES if name.startswith("experiments/") and Path(name).parts[1] != "__init__.py"]


def room_of(dotted: str) -> str | None:
    """The room of experiments/ that a module lies in; None for one that lies elsewhere, or is experiments itself."""
    parts = dotted.split(".")
    return parts[2] if parts[:2] == ["pyro_tvae", "experiments"] and len(parts) > 2 else None


def climbing(path: Path, source: str) -> list[str]:
    """Imports of experiments/ that go up, or across to another room of the same layer."""
    own = room_of(module_of(path))
    assert own is not None
    rooms = {name: room_of(name) for name in imported(source, package_of(path))}
    return [name for name, room in rooms.items() if room not in (None, own) and LEVEL[room] >= LEVEL[own]]


@pytest.mark.parametrize("name", [name for name in ROOMS if not name.startswith("experiments/conf/")])
def test_no_room_imports_a_higher_one(name: str) -> None:
    assert climbing(ROOT / name, (ROOT / name).read_text()) == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("experiments/datasets/sources.py", "from ..config.composition import compose"),
        ("experiments/runs/run.py", "from ..commands import train"),
        ("experiments/config/loggers.py", "def f():\n    from ..runs.run import Run"),
        ("experiments/config/loggers.py", "if TYPE_CHECKING:\n    from pyro_tvae.experiments.cli import app"),
        ("experiments/studies/ledger.py", "from ..benchmarks import timing"),
    ],
)
def test_imports_up_the_rooms_would_be_noticed(where: str, source: str) -> None:
    assert climbing(ROOT / where, source)


def test_only_a_few_modules_lie_on_the_shelf_of_experiments() -> None:
    shelf = {path.name for path in (ROOT / "experiments").glob("*.py")}
    assert shelf == {"__init__.py", "cli.py", "interruption.py", "outlets.py", "provenance.py"}
    rooms = {path.name for path in (ROOT / "experiments").iterdir() if (path / "__init__.py").is_file()}
    assert rooms == {room for room in LEVEL if f"{room}.py" not in shelf} | {"conf"}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach each other: strongly connected components of more than one module."""
    reach = {module: {*names} for module, names in imports.items()}
    for middle in reach:  # Warshall: whoever reaches the middle reaches what it reaches
        for names in reach.values():
            if middle in names:
                names |= reach[middle]
    return sorted(sorted(reach[a] & {b for b in reach if a in reach[b]}) for a in reach if a in reach[a])


def graph(sources: dict[str, tuple[str, str]]) -> dict[str, set[str]]:
    """Module -> modules that it imports anywhere: at its top, in functions, for type checkers alone.

    Of ``from . import name`` the module ``name`` is meant where there is one; that the package's own ``__init__`` runs
    before it is no dependence of text.
    """
    imports: dict[str, set[str]] = {}
    for module, (source, package) in sources.items():
        names = {*imported(source, package)} & {*sources} - {module}
        imports[module] = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
    return imports


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {module_of(path): (path.read_text(), package_of(path)) for path in SOURCES}
    assert circles(graph(sources)) == []


def test_a_circle_would_be_noticed() -> None:
    package = "pyro_tvae.inference"
    a = "from __future__ import annotations\nif TYPE_CHECKING:\n    from .b import B"
    sources = {f"{package}.a": (a, package), f"{package}.b": ("def f():\n    from .a import A", package)}
    assert circles(graph(sources)) == [[f"{package}.a", f"{package}.b"]] * 2
    assert circles(graph({f"{package}.a": (a, package), f"{package}.b": ("from .c import A", package)})) == []


def test_a_module_that_asks_its_lazy_package_for_another_may_be_the_first() -> None:
    """Looked for among the names of all modules, the other would be sought in the one that is half loaded."""
    asking = [
        module_of(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path.parent.name == "pyro_tvae"
        and isinstance(node, ast.ImportFrom)
        and (node.level, node.module) == (1, None)
    ]
    assert asking == ["pyro_tvae.likelihoods"]
    subprocess.run([sys.executable, "-c", f"import {asking[0]}"], check=True, timeout=120)


def test_the_model_is_loaded_without_the_floors_above() -> None:
    code = (
        "import sys, pyro_tvae; pyro_tvae.TVAE; "
        "assert not [m for m in sys.modules if m.startswith(('pyro_tvae.inference', 'pyro_tvae.experiments'))]; "
        "assert 'lightning' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


ALLOWED = {
    "pyro_tvae",
    "inference",
    "experiments",
    "tests",
    "setup.cfg",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "findings",
    "docs",
    ".ci",
    ".gitignore",
    "LICENSE",
    "CITATION.cff",
}


def test_the_top_level_holds_nothing_else() -> None:
    try:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.split("\0") if name}
    assert top - ALLOWED == set()
    assert {"pyro_tvae", "inference", "experiments", "tests", "setup.cfg", "README.md"} <= top


# --- what is imported is declared, and the other way round ------------------------------------------------------------


def declared(extras: tuple[str, ...] = ()) -> dict[str, str]:
    """Distribution -> lowest version, from the file that the metadata are made of; those of extras in their place."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    groups = [parser["options.extras_require"][name] for name in extras] or [parser["options"]["install_requires"]]
    return dict(line.split(">=") for group in groups for line in group.split())


def open_xarrays_engine(folder: Path) -> None:
    from xarray import Dataset, open_dataset

    data = Dataset({"a": ("b", [1.0, 2.0])})
    data.to_netcdf(folder / "file.nc", engine="h5netcdf")
    with open_dataset(folder / "file.nc", engine="h5netcdf") as again:
        assert data.equals(again)


def open_lightnings_loggers(folder: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    for logger in (CSVLogger(folder, "csv"), TensorBoardLogger(folder, "tensorboard")):
        logger.log_metrics({"a": 1.0}, 0)
        logger.save()
        logger.finalize("success")
    assert list(folder.glob("csv/*/metrics.csv"))
    assert list(folder.glob("tensorboard/*/events.*"))


def open_matplotlibs_backends(folder: Path) -> None:
    from matplotlib.figure import Figure

    for name in ("figure.png", "figure.pdf"):
        Figure().savefig(folder / name)
        assert (folder / name).stat().st_size > 500


# What no import of ours names: (who opens it, and what that is).
OPENED: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "xarray's engine h5netcdf": (open_xarrays_engine, ("h5netcdf", "h5py")),
    "Lightning's loggers": (open_lightnings_loggers, ("tensorboard",)),
    "Matplotlib's backends": (open_matplotlibs_backends, ("matplotlib",)),
}


def from_outside(source: str, package: str) -> set[str]:
    """Top-level modules that are neither ours nor Python's."""
    tops = {name.split(".")[0] for name in imported(source, package)}
    return tops - sys.stdlib_module_names - {"pyro_tvae", ""}


def undeclared(modules: set[str]) -> set[str]:
    providers, known = packages_distributions(), set(declared())
    return {name for name in modules if not {d.lower().replace("_", "-") for d in providers.get(name, [])} & known}


def test_every_module_that_is_imported_is_declared() -> None:
    used = {name for path in SOURCES for name in from_outside(path.read_text(), package_of(path))}
    assert len(used) > 15
    # Readers of files, and a benchmark, ask for theirs where it is missing, by the extra that brings it.
    assert undeclared(used) - set(declared(("zarr", "tiff", "video", "huggingface", "jax"))) == set()
    # And nothing is declared that neither an import nor a library opens.
    providers = packages_distributions()
    serving = {d.lower().replace("_", "-") for name in used for d in providers.get(name, [])}
    assert set(declared()) - serving - {name for _, names in OPENED.values() for name in names} == set()


def test_an_import_that_is_not_declared_would_be_noticed() -> None:
    assert undeclared(from_outside("def f():\n    import pytest.mark", "pyro_tvae")) == {"pytest"}
    assert (
        undeclared(from_outside("from importlib import import_module as i\nx.import_module('setuptools')", "a"))
        != set()
    )
    assert undeclared(from_outside("import torch.nn\nimport yaml, os\nfrom . import b", "pyro_tvae")) == set()


@pytest.mark.parametrize("who", OPENED)
def test_what_libraries_open_by_themselves_is_there(who: str, tmp_path: Path) -> None:
    opened, names = OPENED[who]
    assert set(names) <= set(declared())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened(tmp_path)


def test_one_module_knows_arviz() -> None:
    knowing = []
    for name, path in zip(NAMES, SOURCES, strict=True):
        modules = imported(path.read_text(), package_of(path))
        knowing += [name] * any(module.split(".")[0].startswith("arviz") for module in modules)
    assert knowing == ["inference/arviz_adapter.py"]


PUBLIC = [(module, name) for module in (pyro_tvae, pyro_tvae.inference) for name in module.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[f"{m.__name__}.{n}" for m, n in PUBLIC])
def test_every_public_name_imports_and_explains_itself(module: types.ModuleType, name: str) -> None:
    value = getattr(module, name)
    assert name in dir(module)
    text = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__  # not one inherited from a base
    assert text
    first = inspect.cleandoc(text).splitlines()[0]
    assert len(first) > 15
    # Dataclasses and named tuples make up a docstring of their own signature: that is no sentence.
    assert not first.startswith(f"{name}(")


@pytest.mark.parametrize("module", [pyro_tvae, pyro_tvae.inference], ids=lambda module: module.__name__)
def test_unknown_names_are_attribute_errors(module: types.ModuleType) -> None:
    assert not hasattr(module, "no_such_name")
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_its_one_idea_in_its_first_line(name: str) -> None:
    text = (ROOT / name).read_text()
    doc = ast.get_docstring(ast.parse(text)) if text.strip() else "an empty package"
    assert doc
    assert doc.splitlines()[0].strip()


@pytest.mark.parametrize("name", NAMES)
def test_no_device_is_written_into_the_code(name: str) -> None:
    text = (ROOT / name).read_text()
    assert ".cuda(" not in text
    assert 'to("cuda' not in text


@pytest.mark.parametrize("name", NAMES)
def test_nothing_unpickles_what_a_user_hands_in(name: str) -> None:
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {"pickle", "dill", "cloudpickle", "joblib"} & {module.split(".")[0] for module in modules}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False"


MODULES = [module_of(path) for path in SOURCES]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_to_run() -> None:
    finder = doctest.DocTestFinder()
    count = sum(bool(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert count >= 6


def test_a_warning_from_our_own_code_is_an_error() -> None:
    for module in ("pyro_tvae.model", "pyro_tvae.inference.training", "pyro_tvae.experiments.commands.train"):
        with pytest.raises(UserWarning, match="ours"):
            exec("import warnings; warnings.warn('ours')", {"__name__": module})
    with pytest.warns(UserWarning, match="theirs"):
        exec("import warnings; warnings.warn('theirs')", {"__name__": "somebody.else"})


def test_what_a_docstring_sends_its_reader_to_can_be_imported() -> None:
    """A role's target is a public name of a package, of the class that it stands in, or a dotted name.

    Where the reader is inside anyway (what no package offers), it may be of the same module or, in experiments, of any.
    """
    modules = {package_of(path) + f".{path.stem}" * (path.stem != "__init__"): path for path in SOURCES}
    homes = {name: importlib.import_module(name) for name in modules}

    def members(value: object) -> Iterator[str]:
        yield from (*dir(value), *getattr(value, "__dataclass_fields__", ())) if isinstance(value, type) else ()

    def missing(prefix: str, name: str, value: object, module: types.ModuleType) -> list[tuple[str, str]]:
        upstairs = module.__name__.startswith("pyro_tvae.experiments")
        targets = re.findall(
            r":(?:class|func|meth|attr|mod|data|obj):`[~.]?([^`]+)`", getattr(value, "__doc__", "") or ""
        )
        return [
            (f"{module.__name__}:{name}", target)
            for target in targets
            if not {target, f"{prefix}.{target}"} & offered
            and ("." not in target or pydoc.locate(target) is None)
            and (prefix in offered or not {target, f"{prefix}.{target}"} & {*vars(module), *inside})
            and not (upstairs and any(f".{one}".endswith(f".{target}") for one in above))
        ]

    def names(module: types.ModuleType, public: list[str]) -> set[str]:
        values = {name: getattr(module, name) for name in public}
        return {*values} | {f"{name}.{member}" for name, value in values.items() for member in members(value)}

    offered = {name for package in (pyro_tvae, pyro_tvae.inference) for name in names(package, package.__all__)}
    inside, above, lost = set[str](), set[str](), list[tuple[str, str]]()
    for full, module in homes.items():
        if full.startswith("pyro_tvae.experiments"):
            above |= {full} | {f"{full}.{name}" for name in names(module, getattr(module, "__all__", []))}
    for full, module in homes.items():
        inside = names(module, getattr(module, "__all__", []))
        lost += missing("", full, module, module)
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            lost += missing(name, name, value, module)
            for member in members(value):
                if not member.startswith("_") and member in vars(value):
                    lost += missing(name, member, vars(value)[member], module)
    assert lost == [], "\n".join(map(str, lost))
