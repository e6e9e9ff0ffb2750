"""Locks: one holder at a time of a file; the system takes a lock back however the process ends."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is guarded
    fcntl = None  # type: ignore[assignment]

__all__ = ["lock", "unlock", "unlocked"]

TRIES = 1000  # to hold the file that has the name: others that come and go are through with it long before

# Neither a pipe nor a link in a file's place is waited for or followed; NFS locks nothing that is open for reading
# alone, such as a folder.
FILE = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_held = set[int]()


def lock(path: Path, *, wait: bool = False) -> int:
    """Hold a file, made where it is missing: a descriptor, for :func:`unlock`.

    Args:
        path: of the file, in a folder that is there.
        wait: until whoever holds it lets go of it.

    Warns:
        UserWarning: its file system knows no locks.

    Raises:
        BlockingIOError: another process or thread holds it.
        OSError: it cannot be made or written.
    """
    tried = 0
    while True:
        tried += 1
        descriptor = os.open(path, FILE, 0o666)
        try:
            if fcntl is not None:
                try:
                    # Not lockf, whose locks go with the first descriptor of the file that the process closes.
                    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    raise
                except OSError as error:
                    warnings.warn(
                        f"{path} cannot be locked ({error.strerror}): see to it yourself that no other process writes "
                        "beside it.",
                        stacklevel=2,
                    )
            with suppress(FileNotFoundError):
                # Who held it before may have removed it, and others may hold another of that name by now.
                # Or its file system numbers a file anew at every look, as some network disks do.
                if tried == TRIES or os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    _held.add(descriptor)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def unlock(descriptor: int, remove: Path | None = None) -> None:
    """Let go of what :func:`lock` holds, and remove its file, by its path; nothing happens where a fork has."""
    if descriptor in _held:
        _held.remove(descriptor)
        with suppress(OSError):  # another file may have its name by now
            if remove is not None and os.path.samestat(os.fstat(descriptor), os.stat(remove)):
                remove.unlink()
        with suppress(OSError):  # a forked process that has not come to closing its copy yet would hold on
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def unlocked(path: Path) -> dict[str, bool]:
    """What a library that opens HDF5 files is to be told of one: ``locking=False`` where its file system has no locks.

    HDF5 opens nothing there, though nobody could have locked the file; elsewhere nothing is told.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # which the library says in its own words
        return {}
    try:
        if fcntl is None:
            return {}
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return {}
    except OSError:
        return {"locking": False}
    finally:
        os.close(descriptor)
    return {}


def _forget() -> None:
    """Close what a forked process inherited: it would hold on when its parent is no more, as a loader's worker may."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
