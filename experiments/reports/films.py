"""Films: sequences that move, in truth, reconstructed and forecast side by side, as one animated picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_tvae.files import atomic_write

from .mosaics import Array, Floats, as_frames, pick

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["film", "save_film"]

MOST_FRAMES = 64
MOST_BYTES = 2**21  # of a file; a page holds it as text, a third longer
TILE = 112  # pixels of the longer side of a frame
GAP, HEAD, SIZE = 8, 34, 13
PAUSE = 4  # frames that the last one stays
INK, QUIET, EDGE, UNSEEN = "#1c1f23", "#5a6068", "#d5d9de", "#d55e00"


def film(
    x: Array,
    reconstruction: Array,
    forecast: Array,
    context: int,
    *,
    most: int = 4,
    channels: str | None = None,
) -> list[Image]:
    """Frames of an animation: a row per sequence, and columns for truth, reconstruction and forecast.

    Until the context is over the forecast's column shows the true frames, which the model has seen; then a frame drawn
    around it says that what is in it is foretold.

    Args:
        x: (N, S, channel, height, width), pixels in [0, 1].
        reconstruction: same shape.
        forecast: (N, S − context, channel, height, width), of the frames that were not seen.
        context: frames that were.
        most: sequences, the first ones.
        channels: as in :func:`.channels.pictures`.

    Raises:
        ValueError: the shapes do not fit.
    """
    from PIL import Image, ImageDraw, ImageFont

    truth, decoded, ahead = (as_frames(value, channels)[:most] for value in (x, reconstruction, forecast))
    n, n_frames = truth.shape[:2]
    if decoded.shape != truth.shape or ahead.shape != (n, n_frames - context, *truth.shape[2:]):
        raise ValueError(
            f"film: true frames have shape {truth.shape}, reconstructed ones {decoded.shape} and forecast ones "
            f"{ahead.shape}, with a context of {context}; expected those of the same sequences."
        )
    columns = {"true": truth, "reconstructed": decoded, "forecast": np.concatenate([truth[:, :context], ahead], 1)}
    height, width = truth.shape[3:]
    scale = max(1, round(TILE / max(height, width)))
    height, width = height * scale, width * scale
    font = ImageFont.load_default(SIZE)
    across = max(width, math.ceil(font.getlength("reconstructed")))
    size = (GAP + (across + GAP) * len(columns), HEAD + (height + GAP) * n + SIZE + GAP)
    images = []
    for frame in pick(n_frames, MOST_FRAMES).tolist():
        image = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(image)
        seen = frame < context
        for column, (name, values) in enumerate(columns.items()):
            left = GAP + (across + GAP) * column
            word = "seen" if name == "forecast" and seen else name
            draw.text((left, GAP), word, fill=UNSEEN if name == "forecast" and not seen else INK, font=font)
            for row in range(n):
                top = HEAD + (height + GAP) * row
                image.paste(Image.fromarray(_bytes(values[row, frame], scale)), (left, top))
                draw.rectangle((left - 1, top - 1, left + width, top + height), outline=EDGE)
                if name == "forecast" and not seen:
                    draw.rectangle((left - 3, top - 3, left + width + 2, top + height + 2), outline=UNSEEN, width=2)
        draw.text((GAP, size[1] - SIZE - GAP), f"frame {frame} of 0 to {n_frames - 1}", fill=QUIET, font=font)
        images.append(image)
    return images


def save_film(
    path: Path,
    x: Array,
    reconstruction: Array,
    forecast: Array,
    context: int,
    *,
    most: int = 4,
    channels: str | None = None,
    milliseconds: int = 250,
) -> Path:
    """Write :func:`film` as an animated PNG of 2 MiB at most, atomically.

    Where it would take more, fewer frames are shown, each for longer, and then fewer sequences.

    Args:
        path: where to.
        x, reconstruction, forecast, context, most, channels: as :func:`film` takes them.
        milliseconds: for which each frame is shown.

    Raises:
        ValueError: the shapes do not fit, or a few frames of one sequence alone take more.
    """
    for rows in range(most, 0, -1):
        images = film(x, reconstruction, forecast, context, most=rows, channels=channels)
        for step in (1, 2, 4, 8):
            content = _encoded(images[::step], milliseconds * step)
            if len(content) <= MOST_BYTES:
                with atomic_write(path) as partial:
                    partial.write_bytes(content)
                return path
    raise ValueError(f"the film of one sequence takes more than {MOST_BYTES // 2**20} MiB; look at the strip.")


def _encoded(images: Sequence[Image], milliseconds: int) -> bytes:
    durations = [milliseconds] * (len(images) - 1) + [milliseconds * PAUSE]
    buffer = io.BytesIO()
    images[0].save(buffer, format="PNG", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _bytes(frame: Floats, scale: int) -> Any:
    """(1 or 3, height, width) in [0, 1] as what Pillow takes, larger."""
    colors = np.broadcast_to(frame, (3, *frame.shape[1:])).transpose(1, 2, 0)
    return (255 * colors.repeat(scale, 0).repeat(scale, 1)).round().astype(np.uint8)
