"""Sources: the still images of known data sets, with labels, in seeded and stratified splits."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch
from torch.nn import functional

from pyro_tvae.memory import exhausted

from .errors import DataNotFound
from .splits import Images, Splits, split

__all__ = ["digits", "mnist"]


def digits(seed: int = 0, size: int = 28, validation: float = 0.2, test: float = 0.2) -> Splits:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: no download.

    They fill their 8 x 8 pixels, so they are enlarged to a box of 20/28 of the side, centred, as MNIST's digits are: a
    digit then stays inside when it turns or grows.

    Args:
        seed: of the split.
        size: side of the square images in pixels, at least 8.
        validation: share of all images.
        test: share of all images.

    Raises:
        ValueError: a size below 8, or shares that leave nothing to train on.
    """
    if size < 8:
        raise ValueError(f"digits: size is {size!r}; expected at least 8 pixels, the side of the originals.")
    from sklearn.datasets import load_digits  # slow to import, and needed by this source alone

    raw = load_digits()
    small = torch.as_tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    # Strokes touch the border of the originals: one ring of zeros around them lets their ends fade like other edges.
    small = functional.pad(small, (1, 1, 1, 1))
    box = round(size * 20 / 28 * 10 / 8)
    before = (size - box) // 2
    after = size - box - before
    pixels = functional.interpolate(small, (box, box), mode="bilinear", align_corners=False, antialias=True)
    pixels = functional.pad(pixels, (before, after, before, after)).clamp(0, 1)
    return split(Images(pixels, torch.as_tensor(raw.target, dtype=torch.long)), validation, test, seed)


def mnist(root: str | Path = "data", download: bool = False, validation: float = 0.2, seed: int = 0) -> Splits:
    """MNIST, 28 x 28: its 60,000 images split into training and validation, its 10,000 are the test split.

    Args:
        root: folder; the files lie in ROOT/MNIST/raw.
        download: fetch the files where they are missing. Nothing is ever fetched otherwise.
        validation: share of the 60,000.
        seed: of that split.

    Raises:
        DataNotFound: the files are not there, or could not be fetched.
        ValueError: the files are there and damaged.
    """
    root = Path(root).expanduser()
    raw = root / "MNIST" / "raw"
    if not download and not _complete(raw):
        raise DataNotFound(
            f"mnist: the four MNIST files are not in {raw.absolute()}; pass download=True (data.source.download=true "
            "for a new run; a stored one fetches nothing), or put them there."
        )
    from torchvision.datasets import MNIST  # slow to import, and needed by this source alone

    try:
        first, second = MNIST(str(root), train=True, download=download), MNIST(str(root), train=False)
    except Exception as error:
        if exhausted(error):  # which says nothing about the files
            raise
        if _complete(raw):
            raise ValueError(f"mnist: files in {raw.absolute()} are damaged; delete and fetch them again.") from error
        raise DataNotFound(
            f"mnist: the four MNIST files are not in {raw.absolute()} and the download failed "
            f"({textwrap.shorten(str(error), 200)}); put them there by hand."
        ) from error
    parts = split(Images(first.data.unsqueeze(1), first.targets.long()), validation, 0.0, seed)
    return parts._replace(test=Images(second.data.unsqueeze(1), second.targets.long()))


def _complete(raw: Path) -> bool:
    parts = (f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return all((raw / part).is_file() for part in parts)
