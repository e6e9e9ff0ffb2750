"""Own files: what a user has, from an array to a folder of films, as images or sequences in splits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .axes import Axes, in_words, parse
from .errors import Unsuitable
from .factors import Known
from .films import Clips, InFile
from .looks import Look
from .masks import Mask, by_nan, mask_of
from .rates import paced, times_of
from .readers import read, said
from .readers.content import Content, Request
from .readers.ordered import Ordered
from .splits import Frames, Images, Splits
from .values import number_labels, scale_of
from .windows import Cut

__all__ = ["Reading", "arrays", "to_splits"]

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
    stride: int | None = None,
    dilation: int = 1,
    short: str | None = None,
    split: str | None = None,
    gap: int | None = None,
    mask: str | None = None,
    crop: int | Sequence[int] | None = None,
    resize: int | Sequence[int] | None = None,
    color: str | None = None,
    memory: float | None = None,
    factors_key: str | Sequence[str] | None = None,
    factor_names: Sequence[str | None] | None = None,
    factor_axes: str | Sequence[str] | None = None,
    periods: Mapping[str, float] | None = None,
    frame_rate: float | None = None,
    rates_key: str | None = None,
    times_key: str | None = None,
) -> Splits:
    """A user's own file or folder: still images, or sequences, which are used as they are. Nothing is unpickled.

    .npy, .npz, HDF5, Zarr, .mat, .amat, smallNORB, PNG, JPEG, GIF, TIFF, video, a folder of them, or a Hugging Face
    data set on disk. Films are cut into windows where ``stride`` is given: no frame of one part is seen in another.

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
        stride: cut films into windows of ``n_frames``, so many frames from the start of one to that of the next.
        dilation: frames from one frame of a window to the next.
        short: films that are shorter than a window, ``"leave"`` them out or ``"pad"`` them with frames that were not
            observed. Default: left out where films are cut, refused where not.
        split: of films that are cut, by ``"film"`` or each by ``"time"``. Default: by film, from three films on.
        gap: frames that are left out between parts of a film that is split by time. Default: as many as a window spans.
        mask: what was measured: ``"isnan"``, all that is not nan; or an array that is true where it was, by its name in
            the file or the name of a file beside it. It has the axes of the pixels, or those without channels, of
            frames (N, S), or of pixels (height, width).
        crop: pixels that are kept of a frame, [height, width] of its middle or [top, left, height, width].
        resize: of a frame, to [height, width], or one number for its shorter side.
        color: ``"gray"`` or ``"rgb"``, to which frames are brought.
        memory: gigabytes of pixels that are read into memory at once; more stay in the file, from which batches are
            read (not of .amat, compressed .npz and MATLAB before 7.3). Default: all.
        factors_key: name of an array of what varies in the data, or names of several, in the file or of files beside
            it: one value an item, or a frame, or a column for each factor. What is measured then is
            :class:`.Factors`.
        factor_names: of its columns, or of all columns of several arrays; None leaves a column out. Default: those of
            the fields of a table, or the names of the arrays.
        factor_axes: one letter for each axis of such an array, N, S or T, and F for its columns, such as NSF; of
            several words the one with as many letters is meant. Default: what the shape leaves, in the order of the
            pixels' own N and S.
        periods: of cyclic factors, after which their values begin again, such as ``{"azimuth": 360}``.
        frame_rate: frames per second to which films are brought, by picking the frame that is nearest in time; lengths,
            ``stride``, ``dilation`` and ``gap`` then count these. Default: all frames as they are.
        rates_key: name of an array of frames per second, one for each film or for all, in the file or beside it.
            Default: what video files, GIF, animated PNG and WebP say.
        times_key: likewise, of when each frame is shown, in seconds.

    Raises:
        DataNotFound: there is no such file.
        ValueError: the file cannot be read, holds something else, or can be read in several ways.
        ImportError: reading it takes a package that is not installed.
    """
    path = Path(path).expanduser()
    cut = Cut(n_frames, stride, dilation, short, split, gap)
    keys = [factors_key] if isinstance(factors_key, str) else [] if factors_key is None else [*factors_key]
    with said(path) if path.exists() else nullcontext():
        reading = Reading(
            range,
            label_column,
            mask,
            Look(crop, resize, color),
            cut,
            memory,
            (validation, test),
            seed,
            Known(tuple(keys), factor_names, factor_axes, periods),
            frame_rate,
            rates_key,
            times_key,
        )
    beside = {name: path.parent / name for name in reading.further if name == mask or Path(name).suffix}
    beside = {name: file for name, file in beside.items() if file.exists()}
    inside = {name: option for name, option in reading.further.items() if name not in beside}
    length, span = n_frames, cut.span
    if frame_rate is not None:  # films have as many frames, or more
        length, span = None, span or n_frames
    request = Request(key, labels_key, parse(axes), length, span, inside, reading.bytes)
    content = read(path, request)
    further = dict(content.further)
    for name, file in beside.items():
        of_pixels = name == mask
        words = request.axes if content.axes and of_pixels else ()
        own = read(file, Request(axes=words, n_frames=length, span=span))
        further[name] = [Ordered(own.pixels, own.axes[0]) if own.axes and of_pixels else own.pixels]
    content = dataclasses.replace(content, further=further)
    with said(path):
        return to_splits(content, request, reading, str(path), partial(said, path))


@dataclass(frozen=True)
class Reading:
    """What is to be made of what is stored; see :func:`arrays` for each."""

    limits: Sequence[float] | None = None
    label_column: int | None = None
    mask: str | int | None = None
    look: Look = field(default_factory=Look)
    cut: Cut = field(default_factory=Cut)
    memory: float | None = None
    shares: tuple[float, float] = (0.2, 0.2)
    seed: int = 0
    known: Known = field(default_factory=Known)
    frame_rate: float | None = None
    rates_key: str | None = None
    times_key: str | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.memory, int | float) and not isinstance(self.memory, bool)
        if self.memory is not None and not (number and self.memory >= 0):
            raise Unsuitable(
                f"memory is {self.memory!r}; expected gigabytes of pixels, at least 0 (data.source.memory=1), or null "
                "for all."
            )
        if self.rates_key is not None and self.times_key is not None:
            raise Unsuitable("rates_key and times_key say the same of films; give one of them.")

    @property
    def further(self) -> dict[str, str]:
        """Names of arrays beside the pixels, and the setting that names each."""
        asked: dict[str, Any] = {} if self.mask is None or by_nan(self.mask) else {str(self.mask): "mask"}
        asked |= dict.fromkeys(self.known.keys, "factors_key")
        asked |= {self.rates_key: "rates_key"} if self.rates_key is not None else {}
        return asked | ({self.times_key: "times_key"} if self.times_key is not None else {})

    @property
    def bytes(self) -> float:
        """Of pixels that may be in memory."""
        return math.inf if self.memory is None else self.memory * 1e9


def to_splits(
    content: Content,
    request: Request,
    reading: Reading,
    name: str,
    said: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Splits:
    """What is stored in the order of axes and the range of values that everything else counts on, in splits.

    Args:
        content: what is stored.
        request, reading: what was said of it.
        name: of it, for messages.
        said: a context in which what goes wrong while pixels are read later on is said in a sentence.

    Raises:
        Unsuitable: its axes, values, labels, mask or lengths are not what they should be.
    """
    shape = tuple(content.pixels.shape)
    if 0 in shape:
        raise Unsuitable(f"the array has shape {shape}; expected images or sequences, none of them empty.")
    word = content.word(request)
    stored, cut = Ordered(content.pixels, word), reading.cut
    read_as = f"{in_words(shape, word, stored.lengths.tolist())} (axes={word}"
    if not stored.with_frames and (cut.stride is not None or reading.mask is not None):
        what = "stride cuts films" if reading.mask is None else "mask is for sequences"
        raise Unsuitable(
            f"{what}, and this is read as {read_as}); say by axes which axis is that of frames, such as axes=THWC, or "
            "leave it out."
        )
    if not stored.regular and word[1:2] != "S":
        raise Unsuitable(
            f"axes is {word}, and items are of unlike lengths along their first axis; expected that to be the axis of "
            "frames, S."
        )
    reading.look.shape(stored.frame_shape)
    for beside, option in reading.further.items():
        if beside not in content.further:
            raise Unsuitable(
                f"{option} is {beside!r}, but what this holds has no names, and no such file lies beside it; put one "
                "there, or leave it out."
            )
    arrays = {beside: _shares(beside, content, stored.n) for beside in content.further}
    times = content.times if len(content.times or ()) == stored.n else None
    if reading.rates_key is not None or reading.times_key is not None:
        key = str(reading.rates_key or reading.times_key)
        by_rate, by_time = arrays.get(str(reading.rates_key)), arrays.get(str(reading.times_key))
        times = times_of(by_rate, by_time, stored, key)
    pace = paced(times, stored, reading.frame_rate)
    whole = stored
    if pace.picks is not None:
        stored = Ordered(stored.array, word, pace.picks)
    if stored.nbytes <= reading.bytes:
        stored = stored.loaded()
    masks = [] if reading.mask is None or by_nan(reading.mask) else arrays[str(reading.mask)]
    if len(masks) > 1:
        raise Unsuitable("mask names an array of each file; expected one of all, in a file or folder beside it.")
    mask = mask_of(reading.mask, masks[0][0] if masks else None, stored)
    scale = scale_of(stored.dtype, _measured(stored, mask), reading.limits)
    labels, about_labels = _labels(content, reading.label_column, stored.n)
    known = reading.known.read(arrays, whole, stored, cut.dilation, None if mask is None else mask.seen)
    windows = cut.windows(stored.lengths, labels, reading.shares, reading.seed)
    n_frames = None
    if stored.with_frames:
        n_frames = cut.n_frames if cut.n_frames and (cut.stride or cut.short) else int(stored.lengths[0])
    padded = n_frames is not None and cut.short == "pad" and bool((stored.lengths < (cut.span or n_frames)).any())
    in_file = InFile(stored, scale, reading.look, mask, said)
    fits = in_file.nbytes <= reading.bytes
    films = in_file.loaded() if fits else in_file
    how = "inferred"
    if content.axes or request.axes:
        how = "as said" if request.axes and not content.final else "as this kind of file has it"
    words = [f"{name} read as {read_as}, {how})", scale.words, about_labels, reading.look.words(stored.frame_shape)]
    words += ["" if known is None else known.words, pace.words, "" if mask is None else mask.words, windows.about]
    size = in_file.nbytes / 1e9
    stay = "which stay where they are and are read batch by batch"
    words += ["" if fits else f"{size:,.3g} GB, {stay} (data.source.memory={math.ceil(size)} reads all at once)"]
    about, parts = "; ".join(filter(None, words)), []
    kind = Images if n_frames is None else Frames
    for film, start in windows.parts:
        clips = Clips(films, film, start, n_frames, cut.dilation, padded)
        clips = clips.take(clips.shown())
        plain = fits and mask is None and cut.stride is None and not padded
        pixels = clips.batch(torch.arange(len(film)))[0] if plain else clips
        parts.append(kind(pixels, labels[clips.film], about, None if known is None else known.cut(clips)))
    return Splits(*parts)


def _shares(name: str, content: Content, n: int) -> list[tuple[Any, int]]:
    """Arrays of a name, and of how many items each is."""
    arrays, shares = content.further[name], content.shares
    return [*zip(arrays, shares, strict=True)] if len(arrays) == len(shares) else [(arrays[0], n)]


def _measured(stored: Ordered, mask: Mask | None) -> Iterator[NDArray[np.generic]]:
    """All values that were measured, a piece at a time."""
    for items, frames, pixels in stored.pieces():
        yield pixels if mask is None else pixels[np.broadcast_to(mask.look(pixels, items, frames), pixels.shape)]


def _labels(content: Content, column: int | None, n: int) -> tuple[Tensor, str]:
    """Labels (n,), and what they are in words."""
    if content.labels is None:
        return torch.full((n,), NO_LABEL), "no labels"
    labels, names = number_labels(content.labels, n, content.label_name, column)
    kinds = [str(kind) for kind in (names or content.classes or np.unique(labels).tolist())]
    shown = ", ".join(kinds[:MOST_NAMED]) + ", …" * (len(kinds) > MOST_NAMED)
    return torch.from_numpy(labels), f"labels {content.label_name}: {len(kinds):,} kinds ({shown})"
