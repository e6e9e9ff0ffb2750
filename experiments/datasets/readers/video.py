"""Video files of any kind that FFmpeg decodes, by PyAV, which brings it along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sources import Unsuitable
from .content import Content, Request, install

__all__ = ["WRITER", "frames", "read"]

WRITER = "a video file", "FFmpeg"


def read(path: Path, request: Request) -> Content:
    """All frames of the first picture stream, decoded to eight bits a channel."""
    if request.key is not None or request.labels_key is not None:
        raise Unsuitable("key and labels_key name what a file holds; leave them out, since there is one film.")
    return Content(np.stack([*frames(path)]), ("SHWC",))


def frames(path: Path) -> Iterator[NDArray[Any]]:
    """One frame after the other, (height, width, channel) uint8: gray where the film is, else red, green, blue."""
    try:
        import av
    except ImportError:
        raise install("video", path) from None
    # The path alone: a file cannot name others, such as a playlist's.
    with path.open("rb") as file, av.open(file) as container:
        if not container.streams.video:
            raise Unsuitable("it holds no pictures.")
        shape = None
        for frame in container.decode(video=0):
            gray = frame.format.name.startswith("gray")
            array = frame.to_ndarray(format="gray" if gray else "rgb24")
            array = np.rot90(array.reshape(*array.shape[:2], -1), round(frame.rotation / 90))
            if shape not in (None, array.shape):
                raise Unsuitable(f"it has frames of several sizes, {shape} and {array.shape}; bring them to one.")
            shape = array.shape
            yield array
        if shape is None:
            raise Unsuitable("it holds no pictures.")
