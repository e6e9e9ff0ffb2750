"""Video files of any kind that FFmpeg decodes, by PyAV, which brings it along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from operator import lt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsuitable
from .content import Content, Request, Unchanged, by_place, install

__all__ = ["WRITER", "Film", "frames", "read"]

WRITER = "a video file", "FFmpeg"
NO_PICTURES = "it holds no pictures."


def read(path: Path, request: Request) -> Content:
    """All frames of the first picture stream, decoded to eight bits a channel."""
    if request.key is not None or request.labels_key is not None:
        raise Unsuitable("key and labels_key name what a file holds; leave them out, since there is one film.")
    unchanged = Unchanged(path)
    first = next(frames(path))
    with _opened(path) as container:
        stream = container.streams.video[0]
        seconds, rate = stream.time_base, stream.average_rate
        packets = [
            (packet.pts, packet.pts if packet.dts is None else packet.dts, packet.is_keyframe)
            for packet in container.demux(video=0)
            if packet.size
        ]
    if len(packets) * first.nbytes <= request.budget:
        shown, decoded = zip(*timed(path), strict=True)
        return Content(np.stack(decoded), ("SHWC",), times=[_seconds(shown, seconds, rate)])
    if any(time is None for time, _, _ in packets):
        raise Unsuitable("its frames do not say when they are shown; write it again with FFmpeg, as .mp4 or .mkv.")
    film = Film(path, packets, first.shape, unchanged)
    return Content(film, ("SHWC",), times=[_seconds(film.times.tolist(), seconds, rate)])


def _seconds(shown: Sequence[int | None], base: Fraction | None, rate: Fraction | None) -> NDArray[np.float64] | None:
    """When frames are shown, counted by the file's clock; by its rate where they do not say when."""
    ticks = [time for time in shown if time is not None]
    if base is not None and len(ticks) == len(shown) and all(map(lt, ticks, ticks[1:])):
        return (np.array(ticks) - ticks[0]) * float(base)
    return np.arange(len(shown)) / float(rate) if rate else None


class Film:
    """A film that is decoded where it is wanted, from the last frame before that stands by itself.

    Args:
        path: of the file.
        packets: (when its frame is shown, when it is decoded, whether it stands by itself), which takes no decoding.
        frame: shape of a frame.
        unchanged: the file as it was before that was read; by default, as it is.

    Raises:
        Unsuitable: while it is read: frames are not where their packets say.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        path: Path,
        packets: Sequence[tuple[int, int, bool]],
        frame: Sequence[int],
        unchanged: Unchanged | None = None,
    ) -> None:
        self.path, self.unchanged = path, unchanged or Unchanged(path)
        self.times = np.array(sorted(shown for shown, _, _ in packets), np.int64)
        self.keys = sorted((shown, decoded) for shown, decoded, by_itself in packets if by_itself)
        self.shape = (len(packets), *frame)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return by_place(index, self.shape[:1], self.shape[1:], self._read)

    def _read(self, places: list[int]) -> NDArray[Any]:
        self.unchanged.check()
        film = np.empty((len(places), *self.shape[1:]), self.dtype)
        rows = {int(self.times[place]): row for row, place in enumerate(places)}
        before = [decoded for shown, decoded in self.keys if rows and shown <= min(rows)]
        for since in (*before[-1:], None):  # where that is not to be relied on, from the first frame on
            for time, frame in timed(self.path, since) if rows else ():
                if time in rows:
                    film[rows.pop(time)] = frame
                if not rows:
                    break
        if rows:
            raise Unsuitable("not all of its frames can be decoded one by one; write it again with FFmpeg.")
        return film


def frames(path: Path) -> Iterator[NDArray[Any]]:
    """One frame after the other, (height, width, channel) uint8: gray where the film is, else red, green, blue."""
    return (frame for _, frame in timed(path))


def timed(path: Path, since: int | None = None) -> Iterator[tuple[int | None, NDArray[Any]]]:
    """When each frame is shown, in units of the file's own, and the frame; from before a time on, or from the first."""
    with _opened(path) as container:
        if not container.streams.video:
            raise Unsuitable(NO_PICTURES)
        if since is not None:
            container.seek(since, stream=container.streams.video[0])
        shape = None
        for frame in container.decode(video=0):
            gray = frame.format.name.startswith("gray")
            array = frame.to_ndarray(format="gray" if gray else "rgb24")
            array = np.rot90(array.reshape(*array.shape[:2], -1), round(frame.rotation / 90))
            if shape not in (None, array.shape):
                raise Unsuitable(f"it has frames of several sizes, {shape} and {array.shape}; bring them to one.")
            shape = array.shape
            yield frame.pts, array
        if shape is None and since is None:
            raise Unsuitable(NO_PICTURES)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise install("video", path) from None
    # The path alone: a file cannot name others, such as a playlist's.
    with path.open("rb") as file, av.open(file) as container:
        yield container
