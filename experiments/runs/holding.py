"""Holding: one thread of one process at a time at a place, which it may hold several times over."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyro_tvae.locks import lock, unlock

__all__ = ["holding"]

_threads: dict[str, int] = {}  # by real path: the thread that holds it


@contextmanager
def holding(file: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a place for this thread, by a file in a folder that is there; held once more within the block, it is kept.

    Args:
        file: it is made where it is missing.
        wait: until whoever holds it lets go of it.

    Raises:
        BlockingIOError: another process or thread holds it.
        OSError: the file cannot be written.
    """
    key = os.path.realpath(file)
    if _threads.get(key) == threading.get_ident():
        yield
        return
    descriptor = lock(file, wait=wait)
    _threads[key] = threading.get_ident()
    try:
        yield
    finally:
        _threads.pop(key, None)  # a forked process has forgotten it
        unlock(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.clear)
