"""Folders: pictures in ImageFolder's layout or one folder a sequence, or files of films and arrays, joined."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..axes import in_order
from ..sources import Unsuitable
from .content import Content, Pieces, Request
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
        sequences = False
        if request.n_frames == n:
            raise Unsuitable(f"it can be read as {stills} or as {films}; say which, such as axes=NHWC.")
    elif request.n_frames is not None and lengths == {request.n_frames}:
        sequences = True
    else:
        raise Unsuitable(
            f"it can be read as {stills} or as {films} of the frames in each folder; say which, such as axes=NHWC "
            "(data.source.axes=NHWC on the command line)."
        )
    files = [file for group in groups for file in group]
    if sequences:
        if len(lengths) > 1:
            raise Unsuitable(
                f"it holds sequences of {min(lengths)} to {max(lengths)} frames; expected as many in each: leave "
                "out those that are too many."
            )
        rows = [_stack(path, group, load) for group in groups]
        pixels = Pieces(lambda place: rows[place][:], [group[0].parent.relative_to(path) for group in groups])
        kinds = [group[0].parent.parent.name for group in groups] if depth == 2 else None
    else:
        pixels = _stack(path, files, load)
        kinds = [file.parent.name for file in files] if depth else None
    labels = None if kinds is None else np.array(kinds)
    return Content(pixels, ("NSHWC" if sequences else "NHWC",), labels, "of the folders", final=True)


def _stack(path: Path, files: Sequence[Path], load: Callable[[Path], NDArray[Any]]) -> Pieces:
    return Pieces(lambda place: load(files[place]), [file.relative_to(path) for file in files])


def _joined(path: Path, groups: Sequence[Sequence[Path]], request: Request, depth: int, module: ModuleType) -> Content:
    """Films and arrays, one after the other, each read as the first one is."""
    if depth == 2:
        raise Unsuitable("it holds films two folders down; keep them in one folder, or in one for each class.")
    parts: list[NDArray[Any]] = []
    labels: list[NDArray[Any]] = []
    word, names, label_name = "", [file for group in groups for file in group], "of the folders"
    for file in names:
        with complaints(file, module):
            content = module.read(file, request)
            word = word or content.word(request)
            if len(word) != len(content.pixels.shape):
                raise Unsuitable(
                    f"it has shape {content.pixels.shape}, unlike those before it; keep one kind in a folder."
                )
            part = in_order(np.asarray(content.pixels[:]), word)
        if parts and (part.shape[1:] != parts[0].shape[1:] or part.dtype != parts[0].dtype):
            raise Unsuitable(
                f"{file.relative_to(path)} has shape {part.shape} and type {part.dtype}, but "
                f"{names[0].relative_to(path)} has {parts[0].shape} and {parts[0].dtype}; bring all to one length, "
                "size and kind."
            )
        parts.append(part)
        if content.labels is not None:
            label_name = content.label_name
            labels.append(content.labels)
        elif depth:
            labels.append(np.full(len(part), file.parent.name))
    order = "NSCHW" if "S" in word else "NCHW"
    return Content(np.concatenate(parts), (order,), np.concatenate(labels) if labels else None, label_name, final=True)
