"""Data: images in splits, transformations and sprites as tensor programs, and the sequences made of them."""

from .renderers import MovingImages, ReadySequences, SequenceMaker
from .sequences import EpochSampler, SequenceDataModule, SequenceDataset
from .sources import DataNotFound, Frames, Images, Splits, arrays, digits, mnist
from .sprites import Sprites, dsprites
from .transformations import HUE, PERSPECTIVE, ROTATION, SCALE, Draw, Transformations

__all__ = [
    "HUE",
    "PERSPECTIVE",
    "ROTATION",
    "SCALE",
    "DataNotFound",
    "Draw",
    "EpochSampler",
    "Frames",
    "Images",
    "MovingImages",
    "ReadySequences",
    "SequenceDataModule",
    "SequenceDataset",
    "SequenceMaker",
    "Splits",
    "Sprites",
    "Transformations",
    "arrays",
    "digits",
    "dsprites",
    "mnist",
]
