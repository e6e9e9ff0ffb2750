"""PNG, JPEG and other pictures, and GIF, animated PNG and WebP, the films among them; by Pillow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsuitable
from .content import Content, Request, Unchanged, by_place

__all__ = ["WRITER", "count", "picture", "pixels_of", "read"]

WRITER = "a picture or an animation", "Pillow"
# Those that are pixels and nothing else: Pillow opens others by programs of the system.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM")
PLAIN = {"1", "L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16L", "I;16B"}


def read(path: Path, request: Request) -> Content:
    """The frames of an animation, in colors unless all are gray; or one picture."""
    if request.key is not None or request.labels_key is not None:
        raise Unsuitable("key and labels_key name what a file holds; leave them out, since there is one film.")
    unchanged = Unchanged(path)
    with _opened(path) as image:
        n = getattr(image, "n_frames", 1)
        if n == 1:
            return Content(pixels_of(image), ("HWC",))
        shape = (n, image.height, image.width, 3)
    if math.prod(shape) <= request.budget:
        shown, decoded = zip(*_frames(path, n), strict=True)
        film = np.stack(decoded)
        # A palette knows no gray: what is gray throughout was.
        gray = all(map(_is_gray, film))
        return Content(film[..., :1] if gray else film, ("SHWC",), times=[_starts(shown)])
    shown, grays = zip(*((seconds, _is_gray(frame)) for seconds, frame in _frames(path, n)), strict=True)
    animation = Animation(path, (*shape[:3], 1 if all(grays) else 3), unchanged)
    return Content(animation, ("SHWC",), times=[_starts(shown)])


def _starts(shown: Sequence[float]) -> NDArray[np.float64] | None:
    """When each frame is first shown, in seconds, by for how long; None where the file does not say that of all."""
    return np.cumsum([0.0, *shown[:-1]]) if all(shown[:-1]) else None


class Animation:
    """The frames of a file, decoded from the first one on each time: it keeps what changes from one to the next."""

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, shape: tuple[int, ...], unchanged: Unchanged) -> None:
        self.path, self.shape, self.unchanged = path, shape, unchanged

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return by_place(index, self.shape[:1], self.shape[1:], self._read)

    def _read(self, places: list[int]) -> NDArray[Any]:
        self.unchanged.check()
        wanted, frames = {*places}, enumerate(_frames(self.path, max(places, default=-1) + 1))
        kept = {place: frame[..., : self.shape[3]] for place, (_, frame) in frames if place in wanted}
        return np.array([kept[place] for place in places], self.dtype)


def _frames(path: Path, n: int) -> Iterator[tuple[float, NDArray[Any]]]:
    """For how many seconds each of the first n frames is shown, 0 where that is not said; it, (height, width, 3)."""
    with _opened(path) as image:
        for place in range(n):
            image.seek(place)
            frame = np.asarray(image.convert("RGB"))
            yield float(image.info.get("duration") or 0) / 1000, frame  # in milliseconds, and known once it is read


def _is_gray(frame: NDArray[Any]) -> bool:
    return bool((frame[..., :1] == frame).all())


def count(path: Path) -> int:
    """Frames in a file."""
    with _opened(path) as image:
        return int(getattr(image, "n_frames", 1))


def picture(path: Path) -> NDArray[Any]:
    """Of a file, (height, width, channel)."""
    with _opened(path) as image:
        return pixels_of(image)


def _opened(path: Path) -> Any:
    from PIL import Image

    return Image.open(path, formats=FORMATS)


def pixels_of(image: Any) -> NDArray[Any]:
    """Of one of Pillow's pictures, (height, width, channel), turned as its camera says it was held."""
    from PIL import ImageOps

    # What is said of the pixels before they are read: of these Pillow drops the lower byte without a word.
    if image.mode in ("LA", "RGB", "RGBA") and any(str(tile[3]).endswith(";16B") for tile in image.tile):
        raise Unsuitable("its channels have 16 bits each, of which 8 would be lost; keep it as TIFF, .npy or HDF5.")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA"):  # a palette's numbers are no brightness
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    if image.mode not in PLAIN:
        raise Unsuitable(f"it has pixels of kind {image.mode}; expected gray or red, green and blue; convert it.")
    array = np.asarray(image)
    return array.reshape(*array.shape[:2], -1)
