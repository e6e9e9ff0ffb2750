"""Holding: one process at a time at a place, by a lock that the system takes back however the process ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where places go unguarded
    fcntl = None  # type: ignore[assignment]

__all__ = ["holding"]

_locks: dict[str, tuple[int, int]] = {}  # by real path: the descriptor, and the thread that holds it
# Neither a pipe nor a link in the lock's place is waited for or followed.
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextmanager
def holding(lock: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a place for this thread, by a file in a folder that is there; held once more within the block, it is kept.

    Args:
        lock: the file; it is made where it is missing.
        wait: until whoever holds it lets go of it.

    Raises:
        BlockingIOError: another process or thread holds it.
        OSError: the file cannot be written.
    """
    key = os.path.realpath(lock)
    if key in _locks and _locks[key][1] == threading.get_ident():
        yield
        return
    descriptor = _locked(lock, wait)
    _locks[key] = descriptor, threading.get_ident()
    try:
        yield
    finally:
        del _locks[key]
        os.close(descriptor)


def _locked(lock: Path, wait: bool) -> int:
    while True:
        descriptor = os.open(lock, FLAGS, 0o666)
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
                # Who held it before may have removed it, and others may hold another file of that name by now.
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _let_go() -> None:
    """Close what a forked process inherited: it would hold the place on when its parent is no more."""
    for descriptor, _ in _locks.values():
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
