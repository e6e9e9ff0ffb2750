"""Own files: what a user has, from an array to a folder of films, as images or sequences in splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .axes import Axes, in_order, in_words, parse
from .readers import read, reader
from .readers.content import Content, Request
from .readers.suffixes import complaints
from .sources import Unsuitable
from .splits import Frames, Images, Splits, split
from .values import number_labels, scale_pixels

__all__ = ["arrays"]

NO_LABEL = -1
MOST_NAMED = 8  # classes


def arrays(
    path: str | Path,
    key: str | None = None,
    labels_key: str | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    axes: Axes = None,
    range: Sequence[float] | None = None,
    label_column: int | None = None,
    n_frames: int | None = None,
) -> Splits:
    """A user's own file or folder: still images, or sequences, which are used as they are. Nothing is unpickled.

    .npy, .npz, HDF5, Zarr, .mat, .amat, smallNORB, PNG, JPEG, GIF, TIFF, video, a folder of them, or a Hugging Face
    data set on disk.

    Args:
        path: of the file or folder.
        key: name of the array in a file; needed where it holds several.
        labels_key: name of the labels (N,) in a file, whole numbers or text; they also stratify the split. Default:
            the folders' names, or none, all −1.
        validation: share of all items.
        test: share of all items.
        seed: of the split.
        axes: one letter for each axis of the array, in its order, such as NSHWC: N items, S or T frames, C channels,
            H height, W width. Of several words the one with as many letters is meant. Default: what the shape leaves.
        range: values of black and white, [low, high]. Default: 0 and 255 for uint8, 0 and 1 for floating point.
        label_column: of labels that are a table, counted from 0.
        n_frames: frames of a sequence, where sequences are wanted: leaves the readings that have as many.

    Raises:
        DataNotFound: there is no such file.
        ValueError: the file cannot be read, holds something else, or can be read in several ways.
        ImportError: reading it takes a package that is not installed.
    """
    path = Path(path).expanduser()
    request = Request(key, labels_key, parse(axes), n_frames)
    content = read(path, request)
    with complaints(path, reader(path)):
        whole = to_items(content, request, range, label_column, str(path))
    return split(whole, validation, test, seed)


def to_items(
    content: Content, request: Request, limits: Sequence[float] | None, label_column: int | None, name: str
) -> Images | Frames:
    """All of what is stored, in the order of axes and the range of values that everything else counts on.

    Raises:
        Unsuitable: its axes, values or labels are not what they should be.
    """
    shape = tuple(content.pixels.shape)
    if 0 in shape:
        raise Unsuitable(f"the array has shape {shape}; expected images or sequences, none of them empty.")
    word = content.word(request)
    view = in_order(np.asarray(content.pixels[:]), word)
    pixels, values = scale_pixels(view, limits)
    labels, classes, about_labels = np.full(len(pixels), NO_LABEL), content.classes, "no labels"
    if content.labels is not None:
        labels, names = number_labels(content.labels, len(pixels), content.label_name, label_column)
        kinds = [str(kind) for kind in (names or classes or np.unique(labels).tolist())]
        shown = ", ".join(kinds[:MOST_NAMED]) + ", …" * (len(kinds) > MOST_NAMED)
        about_labels = f"labels {content.label_name}: {len(kinds):,} kinds ({shown})"
    how = "inferred"
    if content.axes or request.axes:
        how = "as said" if request.axes and not content.final else "as this kind of file has it"
    about = f"{name} read as {in_words(shape, word)} (axes={word}, {how}); {values}; {about_labels}"
    kind = Frames if "S" in word else Images
    return kind(torch.from_numpy(pixels), torch.from_numpy(labels), about)
