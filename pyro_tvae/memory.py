"""Memory: how its lack is told, and freed blocks kept by the process, so that a loop does not fetch new pages.

Left alone, glibc gives large freed blocks back to the kernel, which hands out zeroed pages again for the next step's
gradients and activations: measured at the paper's size, 7,500 page faults and a fifth of the time of a training step.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys

__all__ = ["exhausted", "keep_freed_memory", "no_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc accepts no more


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc once per process to keep freed blocks of up to 32 MiB for reuse; elsewhere do nothing.

    The most memory that the process ever holds stays the same; it falls back later. Settings of one's own in the
    environment (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``) are left alone.

    Returns:
        Whether the setting was made.
    """
    chosen = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if sys.platform != "linux" or any(name in os.environ for name in chosen):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD))


def exhausted(error: BaseException) -> bool:
    """Whether the process got no more memory, or no more open files, so that what it read is not to blame."""
    files = isinstance(error, OSError | RuntimeError) and os.strerror(errno.EMFILE).lower() in str(error).lower()
    return files or getattr(error, "errno", None) in (errno.ENOMEM, errno.ENFILE) or no_memory(error)


def no_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch says so with a RuntimeError, and Python where it loads a library of C."""
    words = (
        "allocate memory",
        "out of memory",
        "not enough memory",
        "bad_alloc",
        "alloc_failed",
        "failed to map segment",
        "could not create a primitive",  # oneDNN's
    )
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(word in str(error).lower() for word in words)
    )
