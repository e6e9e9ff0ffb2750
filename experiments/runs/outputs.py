"""Outputs: a file says what it was asked for, so that a repeat may replace it and nothing else does unasked.

What stands under a file's name is whole: until a new one is, it is written under a name of its own, which the same
command takes up again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pyro_tvae.files import (
    atomic_write,
    check_readable,
    check_stays,
    folder_beside,
    free_name,
    may_pass,
    reading,
    refusal,
    state_of,
    staying,
    unreadable,
)
from pyro_tvae.inference.netcdf import open_dataset
from pyro_tvae.locks import unlocked
from pyro_tvae.memory import exhausted
from pyro_tvae.wording import in_words

from .files import read_record
from .holding import holding
from .names import CONFIG, WRITTEN

__all__ = [
    "DAMAGED",
    "REQUEST",
    "additions",
    "aside",
    "check_nothing_added",
    "check_replaceable",
    "check_writable",
    "damaged",
    "digest",
    "put_aside",
    "refuse_unread",
    "replacing",
    "request_of",
    "room_kept",
    "shown_on",
    "unfinished",
]

WEIGHTS = (".safetensors", ".ckpt")
DAMAGED = "could not be read"  # why a file is put aside
RESERVE = 2**18  # bytes that a record and its page take, with room to spare
BLOCK = 2**24  # bytes that are written at a time
REQUEST = "request"  # key of a record, or attribute of a file's groups


def digest(path: Path) -> str:
    """Of a file's content, to tell weights apart."""
    with reading(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def unfinished(path: Path, request: Mapping[str, Any]) -> Path:
    """Where a file is written until all that was asked for is in it; another request's has another name.

    Example:
        >>> print(unfinished(Path("run/likelihood.json"), {"particles": [1, 10]}))
        run/likelihood.unfinished-433da9d6.json
    """
    asked = hashlib.sha256(json.dumps(dict(request), sort_keys=True).encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}.unfinished-{asked}{path.suffix}")


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """Yield a folder beside another one, for what is to lie in that when all of it is made; it goes with what it holds.

    Raises:
        OSError: it cannot be made.
    """
    check_stays(folder)
    with ExitStack() as stack:
        try:
            place = stack.enter_context(folder_beside(folder))
        except OSError as error:
            raise type(error)(refusal(folder, error)) from error
        yield place


@contextmanager
def shown_on(path: Path, *pages: Path, since: tuple[int, int] | None = None) -> Iterator[Path]:
    """Yield where a file is written that pages show; those of the old file go just before the new one takes its place.

    So no page lies beside a file that it does not show, whenever the process is killed: it is written afterwards.

    Args:
        path: of the file.
        pages: that show it.
        since: how the file was when what goes into it was begun, see :func:`.state_of`; by default, how it is now.

    Raises:
        ValueError: something else wrote the file meanwhile; what was made has another name then.
    """
    with atomic_write(path) as place:
        before = since or state_of(path)
        yield place
        if state_of(path) != before:
            os.replace(place, kept := free_name(path))
            raise ValueError(f"{path} was written by something else meanwhile, and stays; what was made is {kept}.")
        for page in pages:
            page.unlink(missing_ok=True)


def put_aside(path: Path, why: str) -> None:
    """Give a file another name, since another one is to have its own, and say so."""
    os.replace(path, other := free_name(path))
    print(f"{path} {why}, and is {other} now", flush=True)


def request_of(path: Path) -> dict[str, Any] | None:
    """What a file was asked for; None where it does not say, or is not there.

    Raises:
        OSError: it cannot be read, for a cause that may pass.
    """
    try:
        if path.is_dir():  # a Zarr store, whose attributes lie in JSON files of their own
            found = [json.loads(file.read_text()) for name in (".zattrs", "zarr.json") for file in path.rglob(name)]
            texts = [node.get(REQUEST) or node.get("attributes", {}).get(REQUEST) for node in found]
            stored: Any = json.loads(next(text for text in texts if text))
        elif path.suffix == ".json" or not _is_hdf5(path):
            stored = read_record(path, dict[str, Any]).get(REQUEST)
        else:
            import h5py

            with h5py.File(path, **unlocked(path)) as file:
                stored = json.loads(
                    next(node.attrs[REQUEST] for node in (file, *file.values()) if REQUEST in node.attrs)
                )
    except Exception as error:  # of a damaged one HDF5 says so in any way
        refuse_unread(path, error)
        return None
    return stored if isinstance(stored, dict) else None


def _is_hdf5(path: Path) -> bool:
    import h5py

    return bool(h5py.is_hdf5(path))


def check_replaceable(path: Path, request: Mapping[str, Any], overwrite: bool, *, page: Path | None = None) -> None:
    """Raise an error where a file cannot be written, before what goes into it is computed.

    Args:
        path: of the file.
        request: what is asked for.
        overwrite: replace what was asked for otherwise.
        page: is written beside it.

    Raises:
        FileExistsError: there is one that was asked for otherwise, or a page that is not its own.
        OSError: it cannot be written.
        ValueError: the page would take its place, or it is a file of another kind.
    """
    if page == path:
        raise ValueError(f"{path} is where the page goes; choose another suffix, such as {path.with_suffix('.nc')}.")
    _check_not_of_a_run(path)
    check_writable(path)
    if not overwrite and page is not None and page.exists() and not path.exists():
        raise FileExistsError(
            f"{page} is there already, where the page goes; give --overwrite to replace it, or --output for another "
            "file."
        )
    if overwrite or not path.exists():
        return
    stored = request_of(path)
    wanted = json.loads(json.dumps(dict(request)))
    if stored == wanted:
        return  # the same command again: what it writes is what is there
    differs = [] if stored is None else sorted(name for name in wanted | stored if wanted.get(name) != stored.get(name))
    why = f"was made with other {', '.join(differs)}" if differs else "is there already"
    raise FileExistsError(f"{path} {why}; give --overwrite to replace it, or --output for another file.")


def additions(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a hand has added to the JSON file of the same request whose place a record takes, to be kept in it."""
    with suppress(OSError, ValueError):  # none there, or none that can be read
        former = read_record(path, dict[str, Any])
        if former.get(REQUEST) == json.loads(json.dumps(record[REQUEST])):
            return {name: value for name, value in former.items() if name not in record}
    return {}


def refuse_unread(path: Path, error: Exception) -> None:
    """Raise what says nothing of a file's content: that there was no memory, or the system could not read it now."""
    if exhausted(error):
        raise error
    if may_pass(error):
        raise type(error)(unreadable(path, error)) from error


def damaged(path: Path, error: Exception) -> str:
    """What is said of a file that cannot be read, since of such errors HDF5 makes any kind."""
    return f"{path} is damaged ({in_words(error)}); put a copy of it back, or give --overwrite to write it anew."


def check_nothing_added(path: Path, variables: Collection[str], attributes: Collection[str]) -> None:
    """Raise FileExistsError where an HDF5 file that is to be written anew has more in it than its command wrote.

    Args:
        path: of the file, which may be missing.
        variables: that it has from its command, in its root.
        attributes: that it has from its command.
    """
    if not path.exists():
        return
    import h5py

    check_readable(path)
    try:
        with h5py.File(path, **unlocked(path)) as file:
            added = {name for name, node in file.items() if isinstance(node, h5py.Group)}
        with open_dataset(path) as data:
            added |= {*map(str, data.variables)} - {*variables} | {*map(str, data.attrs)} - {*attributes}
    except Exception as error:  # which HDF5 says in any way
        refuse_unread(path, error)
        raise FileExistsError(damaged(path, error)) from None
    if added:
        raise FileExistsError(
            f"{path} holds {', '.join(sorted(added))}, which was added to it and would be lost; give --overwrite to "
            "write it anew, or --output for another file."
        )


@contextmanager
def room_kept(path: Path, size: int = RESERVE) -> Iterator[None]:
    """Keep so many bytes of a file's disk while what goes into it is computed, should it be full by then.

    Raises:
        OSError: there is no room, or nothing can be written.
    """
    with aside(path) as place:
        try:
            with open(place / "room", "wb") as file:
                for start in range(0, size, BLOCK):  # a file system may take no room for what is not written
                    file.write(bytes(min(BLOCK, size - start)))
                os.fsync(file.fileno())
        except OSError as error:
            raise type(error)(refusal(path, error)) from error
        yield


class Held:
    """A file that is held while what goes into it is computed; called, it yields where that is written.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.since, self._room = path, state_of(path), ExitStack()

    def keep_room(self, size: int) -> None:
        """As :func:`room_kept`, until the file is written."""
        self.free_room()
        self._room.enter_context(room_kept(self.path, size))

    def free_room(self) -> None:
        """Keep no room any more."""
        self._room.close()

    @contextmanager
    def __call__(self, *pages: Path) -> Iterator[Path]:
        self.free_room()
        with shown_on(self.path, *pages, since=self.since) as place:
            yield place


@contextmanager
def replacing(path: Path, request: Mapping[str, Any], overwrite: bool, *, page: Path | None = None) -> Iterator[Held]:
    """Hold a file that may be written, while what goes into it is computed; for the rest see :func:`check_replaceable`.

    So nobody else writes it meanwhile, whose result would be replaced unasked. The lock is a file beside it, which is
    not left behind.

    Yields:
        What keeps room for it, and takes the pages that show the file and yields where it is written, as
        :func:`shown_on`; what something else has written since stays.

    Raises:
        BlockingIOError: another process is making it.
    """
    check_replaceable(path, request, overwrite, page=page)
    lock = path.with_name(f".{path.name}.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(lock))
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is making {path}; wait for its end, or give --output for another file."
            ) from None
        try:
            check_replaceable(path, request, overwrite, page=page)  # another may have ended just now
            held = Held(path)
            stack.callback(held.free_room)
            held.keep_room(RESERVE)
            with staying(path.parent):
                yield held
        finally:
            lock.unlink(missing_ok=True)


def _check_not_of_a_run(path: Path) -> None:
    """Raise ValueError where a file is what a training has made, which nothing asked for by name may replace."""
    of_a_run = path.name in (CONFIG, *WRITTEN) and (path.parent / CONFIG).exists()
    if path.exists() and (of_a_run or path.suffix in WEIGHTS):
        raise ValueError(
            f"{path} is what a training made, and --overwrite replaces none of it; choose another name for --output."
        )


class _UnwrittenError(Exception):
    """The file could be written."""


def check_writable(path: Path, *checks: Callable[[Path], object]) -> None:
    """Raise OSError, in the words of :func:`.atomic_write`, where a file could not be written; what is there stays.

    Args:
        path: of the file.
        checks: take an empty file beside it, and raise an error where what is to be written could not be.
    """
    with suppress(_UnwrittenError), atomic_write(path) as place:
        for check in checks:
            check(place)
        raise _UnwrittenError
