"""Sphinx's configuration: guides in Markdown, the top level's pages, and a reference made from the tables of contents.

``python -m sphinx -W --keep-going -b html docs build/docs`` builds the pages.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pyro_tvae
import pyro_tvae.inference

project = "pyro-tvae"
author = "The pyro-tvae authors"
version = release = version_of("pyro-tvae")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme = "furo"
html_show_copyright = html_show_sphinx = False
html_title = f"pyro-tvae {release}"
exclude_patterns = ["_build"]
suppress_warnings = ["misc.highlighting_failure"]
myst_heading_anchors = 3
autosummary_generate = False  # the pages are written below, from CONTENTS
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # Lightning's and torch's pages are theirs; a guide's posterior is said at Guide's
autodoc_member_order = "bysource"
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

HERE = Path(__file__).parent
GENERATED = HERE / "generated"
# Pages that lie where a visitor of the repository looks for them, and are pages here, too.
ELSEWHERE = {
    "README.md": "readme",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "experiments/results/RESULTS.md": "results",
    "experiments/results/messages.md": "messages",
}
# Package -> its public modules. What a package of experiments offers, it lists itself.
PACKAGES = {
    "pyro_tvae": pyro_tvae.CONTENTS,
    "pyro_tvae.inference": pyro_tvae.inference.CONTENTS,
    "pyro_tvae.experiments": ("datasets",),
}


def underlined(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n"


def entry(package: str, name: str, value: object) -> str:
    """One name under which a user imports it, with the members of its own."""
    if isinstance(value, type):
        return f".. autoclass:: {package}.{name}\n   :members:\n   :show-inheritance:\n"
    return f".. auto{'function' if inspect.isroutine(value) else 'data'}:: {package}.{name}\n"


def page(package: str, module: str) -> str:
    """A module's sentence, its names with theirs, and each name in full."""
    home = import_module(f"{package}.{module}")
    # A name is documented where it is imported from: the package, but for those that only a package of experiments has.
    public = package if package != "pyro_tvae.experiments" else home.__name__
    names = sorted(home.__all__, key=str.lower)
    table = "\n".join(f"   {name}" for name in names)
    entries = "\n".join(entry(public, name, getattr(home, name)) for name in names)
    return (
        f"{underlined(home.__name__)}\n.. automodule:: {home.__name__}\n   :no-members:\n   :no-index:\n\n"
        f".. currentmodule:: {public}\n\n.. autosummary::\n   :nosignatures:\n\n{table}\n\n{entries}"
    )


def write(path: Path, text: str) -> None:
    """Only what has changed, so that a second build has little to do."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def relinked(text: str, folder: str) -> str:
    """A page of the repository's ``folder`` with its links as they are among these pages."""

    def link(match: re.Match[str]) -> str:
        path, mark, place = match[1].partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        if path in ELSEWHERE:
            path = f"/generated/{ELSEWHERE[path]}.md"
        else:
            path = path.removeprefix("docs") if path.startswith("docs/") else f"/../{path}"
        return f"]({path}{mark}{place})"

    return re.sub(r"\]\((?!https?://|#)([^)]+)\)", link, text)


def contents(package: str, modules: Sequence[str]) -> str:
    """A package's modules, each with the one idea that its first line says."""
    rows, tree = [], []
    for module in modules:
        name = f"{package}.{module}"
        idea = (import_module(name).__doc__ or "").splitlines()[0]
        rows.append(f"   * - :doc:`{module} <{name}>`\n     - {idea}\n")
        tree.append(f"   {module} <{name}>\n")
    return (
        f"{underlined(package)}\n.. automodule:: {package}\n   :no-members:\n   :no-index:\n\n"
        f".. list-table::\n   :widths: 25 75\n\n{''.join(rows)}\n.. toctree::\n   :hidden:\n\n{''.join(tree)}"
    )


def write_pages() -> None:
    """One page per package and per public module, and the pages from elsewhere."""
    GENERATED.mkdir(exist_ok=True)
    pages = {}
    for package, modules in PACKAGES.items():
        pages[f"{package}.rst"] = contents(package, modules)
        pages |= {f"{package}.{module}.rst": page(package, module) for module in modules}
    for source, name in ELSEWHERE.items():
        text = (HERE.parent / source).read_text(encoding="utf-8")
        pages[f"{name}.md"] = relinked(text, posixpath.dirname(source))
    for path in set(GENERATED.iterdir()) - {GENERATED / name for name in pages}:
        path.unlink()
    for name, text in pages.items():
        write(GENERATED / name, text)


write_pages()


def relink(app: Any, name: str, source: list[str]) -> None:
    if not name.startswith("generated/"):
        source[0] = relinked(source[0], "docs")


def plain(app: Any, what: str, name: str, value: object, options: Any, lines: list[str]) -> None:
    """What our docstrings say in their own way: a star in a shape such as (K, *site) is one, and opens no emphasis; of
    attributes that share a line, napoleon would take the first for the type of the others."""
    section = ""
    for number, line in enumerate(lines):
        section = line.strip() if re.fullmatch(r"\s*[A-Z]\w+:", line) else section
        if not line.lstrip().startswith((">>>", "...")):
            if section == "Attributes:" and (names := re.match(r"\s+\w+(, \w+)+:", line)):
                line = names[0].replace(", ", ",") + line[names.end() :]
            parts = re.split(r"(``.*?``)", line)
            lines[number] = "".join(
                part if part.startswith("``") else re.sub(r"(?<![\w*\\])\*(?=\w)", r"\*", part) for part in parts
            )


def keep(app: Any, what: str, name: str, value: object, options: Any, lines: list[str]) -> None:
    """A property's sentence may hold a colon, before which napoleon would see a type."""
    if what in ("attribute", "property"):
        PROSE[name] = list(lines)


def put_back(app: Any, what: str, name: str, value: object, options: Any, lines: list[str]) -> None:
    lines[:] = PROSE.pop(name, lines)


PROSE: dict[str, list[str]] = {}


def setup(app: Any) -> None:
    app.connect("source-read", relink)
    for priority, handler in ((400, plain), (410, keep), (600, put_back)):  # napoleon's own has 500
        app.connect("autodoc-process-docstring", handler, priority=priority)
