"""Locks: one holder at a time of a file or a folder; the system takes a lock back however the process ends."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .files import check_stays

try:
    import fcntl
except ImportError:  # Windows, where nothing is guarded
    fcntl = None  # type: ignore[assignment]

__all__ = ["lock", "unlock"]

# Neither a pipe nor a link in a file's place is waited for or followed.
FILE = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_held = set[int]()


def lock(path: Path, *, folder: bool = False, wait: bool = False) -> int:
    """Hold a file or a folder, made where it is missing: a descriptor, for :func:`unlock`.

    Args:
        path: of the file, in a folder that is there; or of the folder.
        folder: which of them.
        wait: until whoever holds it lets go of it.

    Raises:
        BlockingIOError: another process or thread holds it.
        OSError: it cannot be made or written.
    """
    while True:
        if folder:
            check_stays(path)
            path.mkdir(parents=True, exist_ok=True)
            if fcntl is None:  # a folder cannot be opened
                return -1
        try:
            descriptor = os.open(path, os.O_RDONLY if folder else FILE, 0o666)
        except FileNotFoundError:
            if folder:  # removed by one that had made it
                continue
            raise
        try:
            if fcntl is not None:
                try:
                    # Not lockf, whose locks go with the first descriptor of the file that the process closes.
                    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    raise
                except OSError:
                    pass  # a file system that knows no locks
            with suppress(FileNotFoundError):
                # Who held it before may have removed it, and others may hold another of that name by now.
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    _held.add(descriptor)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def unlock(descriptor: int) -> None:
    """Let go of what :func:`lock` holds; nothing happens where a fork has."""
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)


def _forget() -> None:
    """Close what a forked process inherited: it would hold on when its parent is no more, as a loader's worker may."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
