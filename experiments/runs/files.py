"""Files of a run: written whole or not at all, read with a sentence where damaged, and never outside its folder."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar, cast

from pyro_tvae.files import atomic_write, reading

from .schema import problem

__all__ = ["MEND", "check_inside", "finite", "inside", "read_record", "write_text"]

SERVICES = "logs"  # below it services keep links of their own, which nothing here reads or writes
OWN_LOGS = ("csv", "tensorboard")
# Whatever is damaged may have taken hours to make, and most of it may be sound.
MEND = "mend it, take it again from version control or a copy, or move it away to have it made anew."
Kind = TypeVar("Kind")


def inside(folder: Path, name: str | Path) -> Path:
    """The path of a file or folder in a folder, which no link leads out of, and which is no pipe and no device.

    The folder itself may be a link, or lie behind one: that is its owner's choice, what lies in it can be a stranger's.
    A path where nothing is yet is good.

    Raises:
        ValueError: there is such a link, or what is neither a file nor a folder.
    """
    path, home = folder / name, os.path.realpath(folder)
    real = os.path.realpath(path)
    if os.path.commonpath([home, real]) != home:
        link = next(
            (p for p in (*reversed(path.parents), path) if p.is_symlink() and _leads_out(home, folder, p)), path
        )
        raise ValueError(
            f"{link} leads out of {folder}, to {os.path.realpath(link)}, which is neither read nor written; put in its "
            "place what it should hold, or remove it."
        )
    try:
        mode = os.stat(real).st_mode
    except FileNotFoundError:
        return path
    except NotADirectoryError:
        file = next(parent for parent in path.parents if os.path.lexists(parent) and not parent.is_dir())
        raise ValueError(f"{path} cannot be there, since {file} is no folder; choose another place.") from None
    except OSError as error:  # such as a link to itself
        raise ValueError(f"{path} cannot be looked at ({error.strerror}); remove it.") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path} is a pipe, a socket or a device, and is not opened; expected a file: remove it.")
    return path


def _leads_out(home: str, folder: Path, link: Path) -> bool:
    """Whether a link below a folder ends outside it."""
    return folder in link.parents and os.path.commonpath([home, os.path.realpath(link)]) != home


def check_inside(folder: Path) -> None:
    """Raise ValueError, as :func:`inside` does, where anything in a run's folder leads out of it or is no file."""
    for place, folders, files in os.walk(folder):
        where = Path(place)
        for name in (*folders, *files):
            entry = where / name
            with reading(entry):
                plain = entry.is_file() and not entry.is_symlink()
            if not plain:
                inside(folder, entry.relative_to(folder))
        if where == folder / SERVICES:
            folders[:] = [name for name in folders if name in OWN_LOGS]


def read_record(path: Path, kind: type[Kind], needed: Collection[str] = ()) -> Kind:
    """A JSON file that holds one mapping; what is no finite number in it comes back as None.

    Args:
        path: of the file.
        kind: what it has to be like, a TypedDict or ``dict[str, …]``; see :mod:`.schema`.
        needed: keys that it has to have beside those that its kind requires.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, of another kind, no file, or leads out of its folder.
    """
    file = inside(path.parent, path.name)
    if file.is_dir():
        raise ValueError(f"{path} is a folder; expected a file: move it away.")
    text = ""
    try:
        with reading(path):
            text = file.read_text(encoding="utf-8")
        record = finite(json.loads(text, object_pairs_hook=_once))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({_merged(text) or error}); {MEND}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}, not a record; {MEND}")
    missing = next((f"it has no {key}" for key in needed if record.get(key) is None), None)
    fault = problem(record, kind) or missing
    if fault:
        raise ValueError(f"{path} is damaged: {fault}; {MEND}")
    return cast(Kind, record)


def _merged(text: str) -> str | None:
    """Where a merge has left its marks between two versions of a file, in words; None where there are none."""
    marked = (number for number, line in enumerate(text.splitlines(), 1) if line.startswith(("<<<<<<<", ">>>>>>>")))
    first = next(marked, None)
    return None if first is None else f"a merge has left both versions in it, from line {first} on: keep one"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping, unless a name stands in it twice, as where a merge has kept both sides: one would be dropped."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands there twice")
    return record


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all: readers see the old one or the new one, never a half."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them.

    Example:
        >>> finite({"elbo": float("nan"), "counts": (1, 2.5)})
        {'elbo': None, 'counts': [1, 2.5]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
