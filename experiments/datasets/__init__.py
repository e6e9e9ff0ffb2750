"""Data: images in splits, transformations and sprites as tensor programs, and the sequences made of them."""

from pyro_tvae.lazy import attach

from .errors import DataNotFound
from .factors import Factors
from .films import Clips
from .own_files import arrays
from .renderers import MovingImages, ReadySequences
from .sequences import EpochSampler, SequenceDataModule, SequenceDataset
from .sources import digits, mnist
from .splits import Frames, Images, SequenceRenderer, Splits
from .sprites import Sprites, dsprites
from .torch_data import from_torch
from .transformations import HUE, PERSPECTIVE, ROTATION, SCALE, Draw, Transformations

__all__ = [
    "HUE",
    "PERSPECTIVE",
    "ROTATION",
    "SCALE",
    "Clips",
    "DataNotFound",
    "Draw",
    "EpochSampler",
    "Factors",
    "Frames",
    "Images",
    "MovingImages",
    "ReadySequences",
    "SequenceDataModule",
    "SequenceDataset",
    "SequenceRenderer",
    "Splits",
    "Sprites",
    "Transformations",
    "arrays",
    "digits",
    "dsprites",
    "from_torch",
    "mnist",
]

__getattr__, _ = attach(__name__, (), former={"SequenceMaker": "SequenceRenderer"})
