"""Files: written whole or not at all, whatever happens to the process, the disk or the power in between."""

from __future__ import annotations

import errno
import functools
import glob
import itertools
import os
import platform
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeGuard

__all__ = [
    "NO_ROOM",
    "PARTIAL",
    "FolderMoved",
    "atomic_write",
    "check_readable",
    "check_room",
    "check_stays",
    "clear",
    "folder_beside",
    "free_name",
    "leave",
    "left_behind",
    "make_folder",
    "may_pass",
    "mkdir",
    "reading",
    "refusal",
    "start_of_partial",
    "state_of",
    "staying",
    "unreadable",
]

PARTIAL = ".partial"  # the suffix of a file that is still being written
FORGOTTEN = 7 * 24 * 3600  # seconds since it was written in, after which one of another machine is nobody's
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota, a limit of file sizes

_homes: list[_Home] = []  # folders that commands are at work in


class _Home(NamedTuple):
    """A folder that a command is at work in: where, and what says whether it is the same one.

    A descriptor holds what the system knows of it, which some file systems number anew when they have forgotten it.
    """

    path: Path
    then: os.stat_result | int

    def stays(self) -> bool:
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return False
        if isinstance(self.then, int):
            return os.path.samestat(now, os.fstat(self.then))
        return now.st_ino == self.then.st_ino  # every machine of a cluster numbers a shared disk itself


class FolderMoved(FileNotFoundError):
    """A folder was moved, renamed or removed while a command was at work in it."""


@contextmanager
def staying(folder: str | Path, there: os.stat_result | None = None) -> Iterator[None]:
    """Write nothing within the block into another folder that has this one's name by then: one made anew, a ghost.

    Args:
        folder: that is to stay.
        there: what the system said of it, where another process began with it; now, by default.

    Raises:
        FolderMoved: it was moved, renamed or removed, as was met when something was to be written or read.
    """
    descriptor = None
    if there is None:
        with suppress(OSError):  # a system that opens no folders, or one that may not be read
            descriptor = os.open(folder, os.O_RDONLY)
    home = _Home(Path(folder).absolute(), there or (os.stat(folder) if descriptor is None else descriptor))
    _homes.append(home)
    try:
        yield
    except Exception:
        check_stays(folder)  # which then is what was wrong, whatever a library made of it
        raise
    finally:
        _homes[:] = [one for one in _homes if one is not home]
        if descriptor is not None:
            os.close(descriptor)


def leave(folder: str | Path) -> None:
    """Expect a folder of :func:`staying` no more, where it is its command that removes it."""
    _homes[:] = [home for home in _homes if home.path != Path(folder).absolute()]


def check_stays(path: str | Path) -> None:
    """Raise :class:`FolderMoved` where a folder of :func:`staying` that a path lies in is not there any more."""
    for home in _homes:
        if Path(path).absolute().is_relative_to(home.path) and not home.stays():
            raise FolderMoved(
                f"{home.path} was moved, renamed or removed while this command was at work in it, and nothing is "
                "written in its place; give the command again with the folder where it lies now."
            )


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, and rename it to ``path`` where the block ends well.

    Readers see the old file or the new one, never a half, and may read the new one as they might the old. Missing
    folders are made, and what killed processes left of the same file is removed. Behind a link it is the file that the
    link leads to.

    Raises:
        OSError: the file cannot be written: a full or read-only disk or file; a folder, a pipe, a link to nothing in
            its place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(f"{folder}/notes.txt") as partial:
        ...         _ = partial.write_text("all of it")
        ...     os.listdir(folder)
        ['notes.txt']
    """
    path = Path(path)
    partial: Path | None = None
    check_stays(path)
    try:
        _check_kind(path)
        if path.is_symlink():  # which stays
            path = Path(os.path.realpath(path))
        mkdir(path.parent)
        # In the same folder: only within one file system is a rename all or nothing.
        name = f"{start_of_partial(path)}{uuid.uuid4().hex[:8]}{PARTIAL}"
        handle = os.open(path.parent / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)  # as the user's umask has it
        os.close(handle)
        with suppress(FileNotFoundError):  # a file that others may read, as of a group, stays one that they may
            mode = stat.S_IMODE(os.stat(path).st_mode)
        partial = path.parent / name
        clear(_left_of(path))
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # else a power cut after the rename leaves an empty file under the good name
        with suppress(OSError):  # of file systems without modes; no file is worth less for its mode
            os.chmod(partial, mode)  # some writers put a file of their own in its place
        os.replace(partial, path)
    except Exception as error:
        full = None if isinstance(error, OSError) and error.errno else _full(partial, error)
        if full is None and not isinstance(error, OSError):
            raise
        raise type(full or error)(refusal(path, full or error)) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """The first of ``name-1``, ``name-2``, … beside a file that nothing has."""
    return next(other for n in itertools.count(1) if not (other := path.with_stem(f"{path.stem}-{n}")).exists())


def state_of(path: Path) -> tuple[int, int]:
    """Size and time of a file, by which what was written over it or in its place is noticed; -1, -1 of none."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return -1, -1
    return state.st_size, state.st_mtime_ns


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a path, for what is to lie there when all of it is made; it goes with what it holds.

    What killed processes left of the same path is removed.

    Raises:
        OSError: it cannot be made.
    """
    mkdir(path.parent)
    clear(_left_of(path))
    with TemporaryDirectory(dir=path.parent, prefix=start_of_partial(path), suffix=PARTIAL) as folder:
        yield Path(folder)


def clear(partials: Iterable[Path]) -> None:
    """Remove those temporary files and folders that are of processes that are no more."""
    for partial in partials:
        if not left_behind(partial):
            continue
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _left_of(path: Path) -> Iterator[Path]:
    begins = glob.escape(f".{_short(path.name)}-")
    yield from path.parent.glob(f"{begins}*{PARTIAL}")
    yield from path.parent.glob(f".{begins}*{PARTIAL}*")  # of a partial file that was itself written so, or held


def start_of_partial(path: Path) -> str:
    """How the name of a temporary file or folder begins, beside the path that it becomes: it says who writes it."""
    return f".{_short(path.name)}-{os.getpid()}-{_here()}"


def _short(name: str) -> str:
    """As much of a name as leaves room for what is put around it: file systems take 255 bytes."""
    return os.fsencode(name)[:200].decode(errors="ignore")


def left_behind(partial: Path) -> bool:
    """Whether a temporary file or folder, by its name, is of a process that is no more.

    Of one on another machine, or in another container, whose number says nothing here, if it has long not grown.
    """
    writer = re.search(rf"-(\d+)-([0-9a-f]{{8}})[^-]*{re.escape(PARTIAL)}(\.lock)?$", partial.name)
    if writer is None:
        return False
    if writer[2] == _here() and os.name == "posix":  # elsewhere signal 0 is not a question
        return not _alive(int(writer[1]))
    try:
        return time.time() - os.lstat(partial).st_mtime > FORGOTTEN
    except FileNotFoundError:
        return False


@functools.cache
def _here() -> str:
    """Eight digits for this boot of this machine, and for the container within which its processes are numbered."""
    told = [platform.node()]
    with suppress(OSError):  # not on Linux
        told += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"), os.readlink("/proc/self/ns/pid")]
    return sha256("\n".join(told).encode()).hexdigest()[:8]


def check_room(partial: Path, size: int) -> None:
    """Raise OSError where a file that is being written cannot grow by so many bytes; what is in it stays.

    For writers that cannot be trusted with a full disk: HDF5 ends the process.
    """
    if hasattr(os, "posix_fallocate"):
        with open(partial, "r+b") as file:  # "ab" fails where the file system cannot, and the C library writes zeros
            end = file.seek(0, os.SEEK_END)
            try:
                os.posix_fallocate(file.fileno(), end, size)
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise
            file.truncate(end)


def _check_kind(path: Path) -> None:
    """Raise OSError where a rename would destroy what is no file, or a link to nothing."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise FileNotFoundError(errno.ENOENT, f"it is a link to {os.readlink(path)}, which is not there") from None
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device")
    os.close(os.open(path, os.O_WRONLY))  # what may not be written, a rename would replace all the same


def mkdir(path: Path) -> None:
    """Make a folder and those that it lies in, where they are not there.

    Raises:
        OSError: it cannot be made, or is an address, such as ``s3://bucket/run``, of which a path on this machine would
            be made, where nobody looks for what is written.
    """
    missing = [place for place in (path.absolute(), *path.absolute().parents) if not os.path.lexists(place)]
    if missing and re.fullmatch(r"[A-Za-z][\w+.-]+:", missing[-1].name) and missing[-1].parent == Path.cwd():
        raise OSError(errno.EINVAL, "it is an address, and files are written to folders of this machine")
    path.mkdir(parents=True, exist_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those that it lies in, where they are not there; OSError in one sentence where it cannot be."""
    try:
        mkdir(path)
    except OSError as error:
        raise type(error)(refusal(path, error)) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one sentence of a file or folder that may not or cannot be read that it is so."""
    try:
        yield
    except OSError as error:
        raise type(error)(unreadable(path, error)) from error


def unreadable(path: Path, error: OSError) -> str:
    """That a file or folder cannot be read, why, and what to do."""
    remedy = "see to it that it can be, and try again"
    if isinstance(error, PermissionError):
        remedy = "change its permissions, or ask its owner for a copy that can be"
    return f"{path} cannot be read ({error.strerror or error}); {remedy}."


def may_pass(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system could not read a file that may be whole, such as one on a network disk, or one in use.

    Nothing is known then of what is in it, which is not to be taken for nothing. Of a damaged file, libraries raise
    errors without the system's number.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)


def check_readable(path: Path) -> None:
    """Raise OSError in one sentence where a file may not be read, of which libraries say that it is none, or less."""
    with reading(path):
        path.open("rb").close()


def refusal(path: Path, error: Exception) -> str:
    """That a file or folder cannot be written, why, and what to do; and that what is there is the old one."""
    while getattr(error, "errno", None) is None and isinstance(error.__cause__, OSError):
        error = error.__cause__  # what was written into a temporary file has said it of that
    number = getattr(error, "errno", None)
    remedy = "make room" if number in NO_ROOM else "choose a place that can be"
    blocked = next((parent for parent in path.parents if os.path.lexists(parent) and not parent.is_dir()), None)
    reason = f"{blocked} is no folder" if blocked is not None else getattr(error, "strerror", None) or str(error)
    kept = " What was there before is as it was." if os.path.lexists(path) else ""
    return f"{path} cannot be written ({reason}); {remedy}.{kept}"


def _full(partial: Path | None, error: Exception) -> OSError | None:
    """That there is no room, where this is behind an error: libraries have types and words of their own for it."""
    for number in NO_ROOM:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    try:
        if partial is not None:  # asked itself; who failed may have said nothing of the cause
            with open(partial, "ab") as file:
                file.write(bytes(2**20))
                file.flush()
                os.fsync(file.fileno())  # some say so only here
    except OSError as answer:
        return answer if answer.errno in NO_ROOM else None
    return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process ever has such a number
        return False
    except OSError:
        pass
    return True
