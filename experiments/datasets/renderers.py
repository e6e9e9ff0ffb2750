"""Renderers: how still images and ready sequences become the frames of a draw of factor values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .films import Clips
from .splits import Batch, Frames, Images, Items, SequenceRenderer
from .transformations import Draw, Transformations

__all__ = ["MovingImages", "ReadySequences", "Unrolled", "renderer"]


@dataclass(frozen=True)
class Unrolled:
    """The ``index`` (N, S, F) of a draw, of which the first frames alone are kept, and rows are made when asked for."""

    transformations: Transformations
    phase: Tensor
    moving: Tensor
    n_frames: int

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self.transformations.unrolled(self.phase[rows], self.moving[rows], self.n_frames)


@dataclass(frozen=True)
class MovingImages:
    """Still images, moved by transformations."""

    images: Images
    transformations: Transformations

    @property
    def labels(self) -> Tensor:
        return self.images.labels

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.pixels.shape[-3:]
        return (max(channels, self.transformations.n_channels), height, width)

    @property
    def names(self) -> tuple[str, ...]:
        return self.transformations.names

    @property
    def periods(self) -> tuple[int, ...]:
        return self.transformations.periods

    @property
    def moving(self) -> tuple[str, ...]:
        return self.transformations.moving

    def first(self, n: int) -> MovingImages:
        return MovingImages(self.images.first(n), self.transformations)

    def draw(self, n_frames: int, generator: torch.Generator) -> Draw:
        if isinstance(self.images.pixels, Clips):  # as many as do not fit memory, whose factors might not either
            phase, moving = self.transformations.phases(len(self.labels), generator)
            index: Any = Unrolled(self.transformations, phase, moving, n_frames)
            return Draw(index, moving)
        return self.transformations.draw(len(self.labels), n_frames, generator)

    def pick(self, rows: Tensor) -> Batch:
        return {"image": self.images.pixels[rows]}

    def render(self, batch: Batch) -> Tensor:
        return self.transformations.render(batch["image"], batch["index"])


@dataclass(frozen=True)
class ReadySequences:
    """Sequences used as they are; their one factor is ``time``, the frame number, beside those that are known."""

    frames: Frames

    names = ("time",)

    @property
    def labels(self) -> Tensor:
        return self.frames.labels

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.frames.pixels.shape[-3:]
        return (channels, height, width)

    @property
    def periods(self) -> tuple[int, ...]:
        return (self.frames.pixels.shape[1],)

    @property
    def moving(self) -> tuple[str, ...]:
        return ("time",) if self.frames.factors is None else self.frames.factors.motions[0]

    def first(self, n: int) -> ReadySequences:
        return ReadySequences(self.frames.first(n))

    def draw(self, n_frames: int, generator: torch.Generator) -> Draw:
        n, factors = len(self.labels), self.frames.factors
        moving = torch.zeros(n, dtype=torch.long) if factors is None else factors.motions[1]
        return Draw(torch.arange(n_frames).reshape(1, -1, 1).expand(n, -1, 1), moving)

    def pick(self, rows: Tensor) -> Batch:
        observed = measured = None
        if isinstance(self.frames.pixels, Clips):
            pixels, observed, measured = self.frames.pixels.batch(rows)
        else:
            pixels = self.frames.pixels[rows]
        batch = {"x": pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()}
        masks = {"observed": observed, "measured": measured}
        return batch | {name: mask for name, mask in masks.items() if mask is not None}

    def render(self, batch: Batch) -> Tensor:
        return batch["x"]


def renderer(source: Items, transformations: Transformations | None, n_frames: int) -> SequenceRenderer:
    """The renderer of one split.

    Args:
        source: still images, ready sequences, or a renderer already.
        transformations: how still images become sequences; None leaves them as they are.
        n_frames: frames of a sequence, S.

    Raises:
        ValueError: ready sequences of another length; transformations of anything but still images; hue for images that
            have colors.
    """
    if isinstance(source, Images):
        transformations, channels = transformations or Transformations(), source.pixels.shape[1]
        if channels > 1 and transformations.n_channels > 1:
            raise ValueError(
                f"the images have {channels} channels, and hue colors gray ones; leave hue out "
                "(data.transformations.hue=null on the command line)."
            )
        twice = {*transformations.names} & {*(source.factors.names if source.factors else ())}
        if twice:
            raise ValueError(
                f"{min(twice)} is a factor of the images and of the transformations; call that of the images otherwise "
                "(data.source.factor_names=[…] on the command line)."
            )
        return MovingImages(source, transformations)
    if transformations is not None:
        ready = isinstance(source, Frames)
        kind = "ready sequences, used as they are" if ready else f"{type(source).__name__}, which move by themselves"
        raise ValueError(
            f"the source holds {kind}; leave transformations out (data.transformations=null on the command line)."
        )
    if not isinstance(source, Frames):
        return source
    if source.pixels.shape[1] != n_frames:
        raise ValueError(
            f"the source holds sequences of {source.pixels.shape[1]} frames, but n_frames is {n_frames!r}; set "
            f"n_frames to {source.pixels.shape[1]} (data.n_frames={source.pixels.shape[1]} on the command line, with "
            f"model.capsule_dim={source.pixels.shape[1]} for topography=orbits), or cut windows of {n_frames} frames "
            f"from them by stride (data.source.stride={n_frames})."
        )
    return ReadySequences(source)
