"""Lazy packages: a list of modules is the table of contents, and what they offer are the package's own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from .former_names import warn

__all__ = ["attach"]


def attach(
    package: str, contents: Sequence[str], *, below: Sequence[str] = (), former: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that loads its modules when one of their names is first used.

    Args:
        package: its ``__name__``.
        contents: its public modules; the names in their ``__all__`` are the package's, too.
        below: further modules and packages in it.
        former: what a name was called before -> its name, which for one version is given with a DeprecationWarning; one
            that has moved to another module is ``"package.module:name"``.
    """

    def offered() -> list[str]:
        return sorted({name for module in contents for name in import_module(f".{module}", package).__all__})

    def get(name: str) -> Any:
        if name in contents or name in below:
            return import_module(f".{name}", package)
        if name == "__version__":
            from importlib.metadata import version  # which takes as long as all else here

            return version(package.partition(".")[0].replace("_", "-"))
        if name == "__all__":
            return offered()
        if name in (former or {}):
            return _renamed(package, name, (former or {})[name])
        if not name.startswith("_"):
            for module in contents:
                home = import_module(f".{module}", package)
                if name in home.__all__:
                    value = getattr(home, name)
                    setattr(import_module(package), name, value)
                    return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(import_module(package)), *offered(), *contents})

    return get, names


def _renamed(package: str, old: str, new: str) -> Any:
    home, _, name = new.rpartition(":")
    home = home or package
    warn(f"{package}.{old}", f"{home}.{name}", 3)
    return getattr(import_module(home), name)
