"""Data: images in splits, transformations as tensor programs, and the sequences made of both."""

from .sequences import EpochSampler, SequenceDataModule, SequenceDataset
from .sources import DataNotFound, Frames, Images, Splits, arrays, digits, mnist
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
    "SequenceDataModule",
    "SequenceDataset",
    "Splits",
    "Transformations",
    "arrays",
    "digits",
    "mnist",
]
