"""Outlets: what a command prints may meet a full disk, a reader that left or letters unknown there; it goes on."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["outlasting"]

UNREAD = (errno.EPIPE, errno.EINVAL)  # whoever read it has read enough; the second is how Windows says so


class Outlet(io.FileIO):
    """An open file of this process that takes everything: what cannot be written is dropped, and so is what follows."""

    lost: OSError | None = None

    def write(self, text: Any, /) -> int:
        """Write as much as there is room for; all of it, once something was lost."""
        try:
            return super().write(text)  # None where it would block, which the buffer above knows
        except OSError as error:
            if not (error.errno in UNREAD or (error.errno == errno.EIO and self._is_terminal())):
                self.lost = self.lost or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for what libraries and further processes print, too
            os.close(nowhere)
            return len(memoryview(text).cast("B"))

    def _is_terminal(self) -> bool:
        """Whether it was one, also once it was closed, when it says of itself that it is none."""
        return stat.S_ISCHR(os.fstat(self.fileno()).st_mode)


@contextmanager
def outlasting(*, tells: bool = True) -> Iterator[None]:
    """Let a command end its work whatever becomes of what it prints: results are in files.

    Letters that standard output has no place for are printed as question marks.

    Args:
        tells: whether what was lost makes a failure of a command that had ended well.

    Raises:
        SystemExit: something that was printed was lost to a full disk or the like, where the command had ended well.
    """
    _stand_in()
    own = {name: stream for name in ("stdout", "stderr") if _is_own(stream := getattr(sys, name))}
    outlets: list[Outlet] = []
    for name, stream in own.items():
        with suppress(OSError):
            stream.flush()
            outlets.append(Outlet(stream.fileno(), "w", closefd=False))
            errors = "replace" if stream.errors in ("strict", "surrogateescape") else stream.errors
            options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            buffered = io.BufferedWriter(outlets[-1])
            setattr(sys, name, io.TextIOWrapper(buffered, encoding=stream.encoding, errors=errors, **options))
    try:
        ended: SystemExit | None = None
        try:
            yield
        except SystemExit as end:
            if end.code:
                raise
            ended = end
        for name in own:
            getattr(sys, name).flush()
        lost = next((one.lost for one in outlets if one.lost is not None), None)
        if lost is not None and tells:
            said = f"what was printed could not be written ({lost.strerror}); what the command makes is in its files"
            print(f"pyro-tvae: {said}", file=sys.stderr, flush=True)
            raise SystemExit(1)
        if ended is not None:
            raise ended
    finally:
        for name, stream in own.items():
            with suppress(OSError, ValueError):
                getattr(sys, name).flush()
            setattr(sys, name, stream)


def _stand_in() -> None:
    """Give a process that was started without them (``2>&-``, some schedulers) outlets that take everything.

    Otherwise a file that is opened next gets such an outlet's number, and what a library prints lands in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)  # a file has it already
                nowhere = os.open(os.devnull, os.O_RDWR)
            except OSError:
                nowhere = os.open(os.devnull, os.O_RDWR)  # which gets the lowest free number, that one
            setattr(sys, name, os.fdopen(nowhere, "r" if number == 0 else "w", closefd=False))


def _is_own(stream: object) -> bool:
    """Whether it is what this process was started with, and not a test's or a notebook's."""
    return isinstance(stream, io.TextIOWrapper) and stream in (sys.__stdout__, sys.__stderr__)
