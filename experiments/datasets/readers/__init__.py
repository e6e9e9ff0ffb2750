"""Readers: what a file or folder of a user's holds, by the library that its field uses, imported when it is needed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ..errors import DataNotFound
from .content import Content, Request
from .suffixes import SUFFIXES, complaints

__all__ = ["read", "reader", "said"]

# What files begin with, which says more than their names.
BEGINNINGS = {
    b"\x93NUMPY": "numpy_files",
    b"PK\x03\x04": "numpy_files",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"MATLAB 7.3": "matlab",
    b"MATLAB 5.0": "matlab",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"\x89PNG\r\n": "pictures",
    b"\xff\xd8\xff": "pictures",
    b"GIF8": "pictures",
}
KINDS = ".npy, .npz, HDF5, Zarr, .mat, .amat, smallNORB, PNG, JPEG, GIF, TIFF, video, or a folder of them"


def read(path: Path, request: Request) -> Content:
    """What a file or a folder holds.

    Raises:
        DataNotFound: there is none.
        ValueError: it cannot be read, or holds something else.
        ImportError: reading it takes a package that is not installed.
    """
    module = reader(path)
    with complaints(path, module):
        content: Content = module.read(path, request)
        return content


def said(path: Path) -> AbstractContextManager[None]:
    """Say in one sentence, with the file's name, what goes wrong while its values are read."""
    return complaints(path, reader(path))


def reader(path: Path) -> ModuleType:
    """The module that reads a file or folder, by what it begins with or its suffix.

    Raises:
        DataNotFound: there is none.
        ValueError: neither says what it is.
    """
    if not (path.is_file() or path.is_dir()):
        what = "is a pipe, a socket or a device, and is not opened" if path.exists() else "does not exist"
        raise DataNotFound(f"{path.absolute()} {what}; give the path of a file or folder of data ({KINDS}).")
    return import_module(f".{_kind(path)}", __name__)


def _kind(path: Path) -> str:
    if path.is_dir():
        from . import hugging_face, zarr_stores

        for name, module in (("zarr_stores", zarr_stores), ("hugging_face", hugging_face)):
            if any((path / file).is_file() for file in module.METADATA):
                return name
        return "folders"
    suffix = SUFFIXES.get(path.suffix.lower())
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give the path of a file that can be.") from error
    by_content = next((kind for beginning, kind in BEGINNINGS.items() if start.startswith(beginning)), None)
    if suffix == "matlab" and (by_content in (None, "hdf5", "matlab")):
        from .norb import MAGIC

        marks = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
        return "norb" if marks & set(MAGIC) else "matlab"
    if by_content is None and suffix is None:
        raise ValueError(f"{path} is of no kind that is read; expected {KINDS}.")
    return by_content or suffix or ""
