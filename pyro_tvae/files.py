"""Files: written whole or not at all, whatever happens to the process, the disk or the power in between."""

from __future__ import annotations

import errno
import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PARTIAL", "atomic_write"]

PARTIAL = ".partial"  # the suffix of a file that is still being written


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, and rename it to ``path`` where the block ends well.

    Readers see the old file or the new one, never a half. Missing folders are made, and what killed processes left of
    the same file is removed.

    Raises:
        OSError: the file cannot be written: a full or read-only disk, a folder in its place.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(f"{folder}/notes.txt") as partial:
        ...         _ = partial.write_text("all of it")
        ...     os.listdir(folder)
        ['notes.txt']
    """
    path = Path(path)
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder: only within one file system is a rename all or nothing.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-{os.getpid()}-", suffix=PARTIAL)
        os.close(handle)
        partial = Path(name)
        _clear(path)
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # else a power cut after the rename leaves an empty file under the good name
        os.chmod(partial, 0o644)  # mkstemp makes private files
        os.replace(partial, path)
    except OSError as error:
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a place that can be"
        blocked = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
        reason = f"{blocked} is no folder" if blocked is not None else error.strerror or str(error)
        raise type(error)(
            f"{path} cannot be written ({reason}); {remedy}. What was there before is as it was."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove what processes that are no more left of a file."""
    start = f".{path.name}-"
    for partial in path.parent.glob(f"{glob.escape(start)}*{PARTIAL}"):
        pid = partial.name.removeprefix(start).partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            partial.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere signal 0 is not a question
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
