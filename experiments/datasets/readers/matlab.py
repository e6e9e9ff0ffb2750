""".mat, MATLAB's files of any version, as cars3d's are: arrays in MATLAB's own order of axes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyro_tvae.locks import unlocked

from ..errors import Unsuitable
from .content import Content, Reopened, Request, Sliceable, Unchanged, choose_names
from .hdf5 import datasets_of, node, whole

__all__ = ["WRITER", "read"]

WRITER = "a .mat file", "MATLAB's save or scipy.io.savemat"
NUMBERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {"single", "double", "logical"}
COMPRESSED = 15
TYPES = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18)  # numbers and text, as the format numbers them
MOST_HEAD = 4096  # bytes before the values of a variable
# Of how MATLAB's users keep pictures; which one it is has to be said.
READINGS = {3: ("HWN", "HWS", "NHW"), 4: ("HWCN", "HWSN", "HWCS", "NHWC"), 5: ("HWCSN", "HWCNS", "NSHWC", "NSCHW")}


def read(path: Path, request: Request) -> Content:
    """The chosen variables, with the sizes that MATLAB's ``size`` gives."""
    import h5py

    pixels, labels, further = _version_7_3(path, request) if h5py.is_hdf5(path) else _version_5(path, request)
    axes = READINGS.get(len(pixels.shape), ())
    return Content(pixels, axes, labels=labels, label_name=request.labels_key or "", further=further)


Read = tuple[Sliceable, NDArray[Any] | None, dict[str, Sequence[Any]]]


def _version_5(path: Path, request: Request) -> Read:
    from scipy.io import loadmat, whosmat

    nodes = {name: (shape, kind) for name, shape, kind in whosmat(path) if kind in (*NUMBERS, "char")}
    key, labels_key = choose_names({name: shape for name, (shape, _) in nodes.items()}, request)
    if nodes[key][1] == "char":
        raise Unsuitable(f"{key!r} is text; expected numbers.")
    names = [name for name in (key, labels_key, *request.further) if name]
    _check_types(path, {*names})
    values = loadmat(path, variable_names=names, chars_as_strings=True)
    pixels = values[key].astype(bool) if nodes[key][1] == "logical" else values[key]
    return pixels, values.get(labels_key), {name: [values[name]] for name in request.further}


def _check_types(path: Path, names: set[str]) -> None:
    """Raise Unsuitable where a variable's values are of no type that the format knows, before anything reads them."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(126)
        order: Literal["little", "big"] = "little" if file.read(2) == b"IM" else "big"
        place = 128
        while place + 8 <= size:
            file.seek(place)
            kind, length = _tag(file.read(8), order)[:2]
            body = file.read(min(length, MOST_HEAD))
            if kind == COMPRESSED:
                body = zlib.decompressobj().decompress(body, MOST_HEAD)[8:]
            name, values = _name_and_type(body, order)
            if name in names and values not in TYPES:
                raise Unsuitable(f"the values of {name!r} are of no type that there is: it may be damaged.")
            place += 8 + length


def _name_and_type(body: bytes, order: Literal["little", "big"]) -> tuple[str, int]:
    """Of one variable: flags, sizes and name, elements of 8 bytes or multiples, lie before its values."""
    place, name = 0, b""
    for _ in range(3):
        _, length, start = _tag(body[place : place + 8], order)
        name = body[place + start : place + start + length]
        place += 8 if start == 4 else 8 + -(-length // 8) * 8
    return name.decode("latin-1"), _tag(body[place : place + 8], order)[0]


def _tag(eight: bytes, order: Literal["little", "big"]) -> tuple[int, int, int]:
    """Type and length of an element, and where it starts: at most four bytes lie within its tag."""
    first = int.from_bytes(eight[:4], order)
    if first >> 16:
        return first & 0xFFFF, first >> 16, 4
    return first, int.from_bytes(eight[4:], order), 8


def _version_7_3(path: Path, request: Request) -> Read:
    """HDF5, in which MATLAB's axes lie the other way round."""
    import h5py

    unchanged = Unchanged(path)
    with h5py.File(path, **unlocked(path)) as file:
        nodes = {name: node for name, node in datasets_of(file).items() if "#refs#" not in name}
        key, labels_key = choose_names({name: node.shape or () for name, node in nodes.items()}, request)
        for name in filter(None, (key, labels_key, *request.further)):
            if nodes[name].external or nodes[name].is_virtual or nodes[name].dtype.kind not in "buif":
                raise Unsuitable(f"{name!r} is no array of numbers in this file; give the name of one.")
        pixels = Reopened(unchanged, _reversed, path, key, nodes[key].attrs.get("MATLAB_class") == b"logical")
        further: dict[str, Sequence[Any]] = {
            name: [Reopened(unchanged, _reversed, path, name, False)] for name in request.further
        }
        return pixels, None if labels_key is None else whole(nodes[labels_key]).T, further


def _reversed(path: Path, name: str, logical: bool) -> Reversed:
    return Reversed(node(path, name), logical)


class Reversed:
    """A data set whose axes lie the other way round; true and false, where its bytes say these."""

    def __init__(self, dataset: Any, logical: bool) -> None:
        self.dataset, self.shape = dataset, dataset.shape[::-1]
        self.dtype = np.dtype(bool) if logical else dataset.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        index = index if isinstance(index, tuple) else (index,)
        index += (slice(None),) * (len(self.shape) - len(index))
        return np.asarray(self.dataset[index[::-1]]).T.astype(self.dtype, copy=False)
