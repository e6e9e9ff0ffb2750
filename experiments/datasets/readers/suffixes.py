"""Suffixes: which module reads which kind of file, and what is said where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pyro_tvae.memory import exhausted

from ..errors import DataNotFound, Unsuitable

__all__ = ["SUFFIXES", "complaints"]

SUFFIXES = {
    **dict.fromkeys((".npy", ".npz"), "numpy_files"),
    **dict.fromkeys((".h5", ".hdf5", ".hdf", ".he5"), "hdf5"),
    ".mat": "matlab",
    ".amat": "amat",
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".png", ".apng", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".ppm", ".pgm"), "pictures"),
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"), "video"),
}


@contextmanager
def complaints(path: Path, module: ModuleType) -> Iterator[None]:
    """Say in one sentence, with the file's name, what goes wrong while a module reads it."""
    what, how = module.WRITER
    try:
        yield
    except Unsuitable as error:
        raise ValueError(f"{path}: {error}") from error.__cause__
    except (DataNotFound, ImportError):
        raise
    # A hostile or truncated file may fail in any way; each means the same to its owner.
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            if exhausted(error):
                raise
            raise ValueError(
                f"{path} cannot be read ({error.strerror}); give the path of {what} that can be."
            ) from error
        if "pickle" in str(error) or "Python objects" in str(error):
            raise ValueError(
                f"{path} holds Python objects or is no array file, and nothing is ever unpickled; save a plain array "
                "of uint8 or floating point with numpy.save or numpy.savez."
            ) from error
        if isinstance(error, MemoryError):  # numpy's, of a size that the file says
            raise ValueError(
                f"{path} says that it holds more than there is memory for, and may be damaged; give a smaller file."
            ) from error
        if exhausted(error):
            raise
        raise ValueError(f"{path} cannot be read as {what} and may be damaged; write it again with {how}.") from error
