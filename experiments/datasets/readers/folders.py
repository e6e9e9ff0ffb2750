"""Folders: pictures in ImageFolder's layout or one folder a sequence, or files of films and arrays, joined."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsuitable
from .content import Content, Pieces, Request, Unchanged
from .ordered import Item, Ordered
from .suffixes import SUFFIXES, complaints

__all__ = ["WRITER", "read"]

WRITER = "a folder of pictures or films", "the program that made them"
PICTURES = ("pictures", "tiff")


def read(path: Path, request: Request) -> Content:
    """The files of a folder, or of its folders, in the order of the numbers in their names.

    Pictures: one folder a class (still images), one a sequence (their frames), or a class of such. Other files, such as
    films: joined, with their folder as their class.
    """
    groups, depth = _groups(path)
    files = [file for group in groups for file in group]
    if not files:
        raise Unsuitable("it holds no files that are read; expected pictures, films or arrays, or folders of them.")
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise Unsuitable(f"it holds files of {' and '.join(sorted(kinds))} side by side; keep one kind in a folder.")
    module = import_module(f".{kinds.pop()}", __package__)
    with_frames = module.count(files[0]) > 1 if module.__name__.rpartition(".")[2] in PICTURES else True
    if with_frames:
        return _joined(path, groups, request, depth, module)
    return _pictures(path, groups, request, depth, module.picture)


def _groups(path: Path) -> tuple[list[list[Path]], int]:
    """Files by the folder that they lie in, and how deep those folders are: 0, 1 or 2."""
    levels: list[list[list[Path]]] = [[], [], []]
    pending = [(path, 0)]
    while pending:
        folder, depth = pending.pop(0)
        files, folders = _listed(folder)
        if files:
            levels[depth].append(files)
        if folders and depth == 2:
            raise Unsuitable(f"it has folders in {folder.relative_to(path)}; expected files there, at the third level.")
        pending += [(inner, depth + 1) for inner in folders]
    depths = [depth for depth, groups in enumerate(levels) if groups]
    if len(depths) > 1:
        raise Unsuitable("it holds files beside folders of files; keep them at one level.")
    depth = depths[0] if depths else 0
    return levels[depth], depth


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=_numbered)
    files = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and not entry.is_dir()]
    for file in files:
        if not file.is_file():
            raise Unsuitable(
                f"it holds {file.name}, a pipe, a socket, a device or a link to nothing, which is not opened."
            )
    return files, [entry for entry in entries if entry.is_dir()]


def _numbered(path: Path) -> list[tuple[int, int | str]]:
    """Frame 10 comes after frame 9, not after frame 1."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _kind(file: Path) -> str:
    return SUFFIXES[file.suffix.lower()]


def _pictures(
    path: Path, groups: Sequence[Sequence[Path]], request: Request, depth: int, load: Callable[[Path], NDArray[Any]]
) -> Content:
    n, lengths = sum(map(len, groups)), {len(group) for group in groups}
    stills = f"{n} images, the folders their classes (axes=NHWC)" if depth else f"{n} images (axes=NHWC)"
    films = f"{len(groups)} sequence{'s' * (len(groups) > 1)} (axes=NSHWC)"
    if depth == 2:
        sequences = True
    elif request.axes:
        sequences = any("S" in word for word in request.axes)
    elif depth == 0:
        sequences = request.span is not None
        if request.n_frames == n and not sequences:
            raise Unsuitable(f"it can be read as {stills} or as {films}; say which, such as axes=NHWC.")
    elif request.span is not None or (request.n_frames is not None and lengths == {request.n_frames}):
        sequences = True
    else:
        raise Unsuitable(
            f"it can be read as {stills} or as {films} of the frames in each folder; say which, such as axes=NHWC "
            "(data.source.axes=NHWC on the command line)."
        )
    files = [file for group in groups for file in group]
    if sequences:
        rows = [_stack(path, group, load) for group in groups]
        names = [group[0].parent.relative_to(path) for group in groups]
        pixels = Pieces(rows.__getitem__, names, [len(group) for group in groups])
        kinds = [group[0].parent.parent.name for group in groups] if depth == 2 else None
    else:
        pixels = _stack(path, files, load)
        kinds = [file.parent.name for file in files] if depth else None
    labels = None if kinds is None else np.array(kinds)
    return Content(pixels, ("NSHWC" if sequences else "NHWC",), labels, "of the folders", final=True)


def _stack(path: Path, files: Sequence[Path], load: Callable[[Path], NDArray[Any]]) -> Pieces:
    states = [Unchanged(file) for file in files]
    return Pieces(partial(_nth, load, states), [file.relative_to(path) for file in files])


def _nth(load: Callable[[Path], NDArray[Any]], states: Sequence[Unchanged], place: int) -> NDArray[Any]:
    (path,) = states[place].paths
    try:
        states[place].check()
    except Unsuitable as error:
        raise Unsuitable(f"{path.name}: {error}") from None
    return load(path)


def _joined(path: Path, groups: Sequence[Sequence[Path]], request: Request, depth: int, module: ModuleType) -> Content:
    """Films and arrays, one after the other, each read as the first one is; films may be of unlike lengths."""
    if depth == 2:
        raise Unsuitable("it holds films two folders down; keep them in one folder, or in one for each class.")
    items: list[Item] = []
    owners: list[Path] = []
    labels: list[NDArray[Any]] = []
    shares: list[int] = []
    further: dict[str, list[Any]] = {}
    times: list[NDArray[np.float64] | None] = []
    word, names, label_name, budget = "", [file for group in groups for file in group], "of the folders", request.budget
    for file in names:
        with complaints(file, module):
            content = module.read(file, replace(request, budget=budget))
            word = word or content.word(request)
            if len(word) != len(content.pixels.shape):
                raise Unsuitable(
                    f"it has shape {content.pixels.shape}, unlike those before it; keep one kind in a folder."
                )
            part = Ordered(content.pixels, word)
        if isinstance(content.pixels, np.ndarray):
            budget -= content.pixels.nbytes
        items += [Item(part, row) for row in range(part.n)]
        owners += [file.relative_to(path)] * part.n
        shares.append(part.n)
        own = content.times or ()
        times += own if len(own) == part.n else [None] * part.n
        for name, arrays in content.further.items():
            further.setdefault(name, []).extend(arrays)
        if items and part.n and (part.frame_shape != items[0].ordered.frame_shape or part.dtype != items[0].dtype):
            shapes = [(*one.ordered.lengths[:1].tolist(), *one.ordered.frame_shape) for one in (items[-1], items[0])]
            raise Unsuitable(
                f"{file.relative_to(path)} has shape {shapes[0]} and type {part.dtype}, but "
                f"{names[0].relative_to(path)} has {shapes[1]} and {items[0].dtype}; bring all to one size and kind."
            )
        if content.labels is not None:
            label_name = content.label_name
            labels.append(content.labels)
        elif depth:
            labels.append(np.full(part.n, file.parent.name))
    order = "NSCHW" if "S" in word else "NCHW"
    lengths = [int(item.ordered.lengths[item.n]) for item in items] if "S" in word else None
    pixels = Pieces(items.__getitem__, owners, lengths)
    joined = np.concatenate(labels) if labels else None
    return Content(
        pixels,
        (order,),
        joined,
        label_name,
        final=True,
        further=further,
        shares=tuple(shares),
        times=times,
    )
