"""Looks: frames cropped, resized and brought to gray or to colors when they are read, by torchvision's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .errors import Unsuitable

__all__ = ["Look"]

COLORS = {"gray": 1, "rgb": 3}
WHOLE = 1 - 1e-4  # of what a resized pixel is made of, rounding apart


@dataclass(frozen=True)
class Look:
    """What becomes of a frame when it is read: first it is cropped, then resized, then brought to gray or colors.

    Args:
        crop: pixels that are kept, [height, width] of the middle, one number for both, or [top, left, height, width].
        resize: to [height, width], or one number, to which the shorter side is brought, as
            ``torchvision.transforms.v2.Resize`` does it (bilinear, antialiased).
        color: ``"gray"`` or ``"rgb"``.

    Raises:
        Unsuitable: one of them is no such thing.

    Example:
        >>> Look(crop=8, resize=[4, 6], color="gray").shape((3, 10, 12))
        (1, 4, 6)
    """

    crop: int | Sequence[int] | None = None
    resize: int | Sequence[int] | None = None
    color: str | None = None

    def __post_init__(self) -> None:
        for name, value, numbers in (("crop", self.crop, (1, 2, 4)), ("resize", self.resize, (1, 2))):
            if value is None:
                continue
            sizes = _sizes(value)
            least = [0, 0, 1, 1] if len(sizes) == 4 else [1] * len(sizes)
            if len(sizes) not in numbers or any(size < most for size, most in zip(sizes, least, strict=True)):
                places = " or [top,left,height,width]" if name == "crop" else ""
                raise Unsuitable(
                    f"{name} is {value!r}; expected a number of pixels, [height,width]{places} "
                    f"('data.source.{name}=[64,64]' on the command line)."
                )
        if self.color not in (None, *COLORS):
            raise Unsuitable(f"color is {self.color!r}; expected gray or rgb (data.source.color=gray), or null.")

    @property
    def plain(self) -> bool:
        """Whether frames stay as they are."""
        return self.crop is None and self.resize is None and self.color is None

    def shape(self, frame: Sequence[int]) -> tuple[int, int, int]:
        """(channel, height, width) of what becomes of such a frame.

        Raises:
            Unsuitable: it is smaller than the crop, or has neither one channel nor three where these are to change.
        """
        channels, height, width = frame
        if self.crop is not None:
            top, left, *sides = self._box(height, width)
            if top < 0 or left < 0 or top + sides[0] > height or left + sides[1] > width:
                raise Unsuitable(
                    f"crop is {self.crop!r}, and frames have {height} x {width} pixels; expected a part of these "
                    f"('data.source.crop=[{height},{width}]' is all)."
                )
            height, width = sides
        if self.resize is not None:
            height, width = self._size(height, width)
        if self.color is not None:
            if channels not in COLORS.values():
                raise Unsuitable(
                    f"color is {self.color!r}, and frames have {channels} channels; expected 1 or 3: leave it out, or "
                    "say by axes which axis is that of channels."
                )
            channels = COLORS[self.color]
        return channels, height, width

    def words(self, frame: Sequence[int]) -> str:
        """What becomes of such a frame; empty where nothing does."""
        done = [("cropped", self.crop), ("resized", self.resize), (f"brought to {self.color}", self.color)]
        channels, height, width = self.shape(frame)
        verbs = " and ".join(verb for verb, value in done if value is not None)
        return f"frames {verbs}, {channels} channel{'s' * (channels > 1)}, {height} x {width}" if verbs else ""

    def __call__(self, frames: Tensor, *, mask: bool = False) -> Tensor:
        """Frames (…, channel, height, width), uint8 or floating point in [0, 1]; or booleans, what of them is measured.

        Of a mask a pixel stays true where all that it is made of was.
        """
        if self.plain:
            return frames
        from torchvision.transforms.v2 import functional  # takes a second, for which other data do not wait

        if self.crop is not None:
            top, left, height, width = self._box(*frames.shape[-2:])
            frames = frames[..., top : top + height, left : left + width]
        if self.resize is not None:
            size = self._size(*frames.shape[-2:])
            flat = frames.reshape(-1, *frames.shape[-3:])
            flat = functional.resize(flat.float() if mask else flat, [*size], antialias=True)
            frames = (flat > WHOLE if mask else flat).reshape(*frames.shape[:-3], *flat.shape[-3:])
        if self.color is None or frames.shape[-3] == COLORS[self.color]:
            return frames.contiguous()
        if mask:
            return frames.all(-3, keepdim=True) if self.color == "gray" else frames
        if self.color == "gray":
            return functional.rgb_to_grayscale(frames)
        return functional.grayscale_to_rgb(frames)

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is kept."""
        sizes = _sizes(self.crop)
        if len(sizes) == 4:
            return sizes[0], sizes[1], sizes[2], sizes[3]
        rows, columns = sizes[0], sizes[-1]
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def _size(self, height: int, width: int) -> tuple[int, int]:
        sizes = _sizes(self.resize)
        if len(sizes) == 2:
            return sizes[0], sizes[1]
        short = min(height, width)
        return int(sizes[0] * height / short), int(sizes[0] * width / short)


def _sizes(value: object) -> list[int]:
    """Whole numbers, one or several; none where they are something else."""
    values = [value] if isinstance(value, int) else [*value] if isinstance(value, Sequence) else []
    sound = not isinstance(value, str) and all(isinstance(one, int) and not isinstance(one, bool) for one in values)
    return [one for one in values if isinstance(one, int)] if sound else []
