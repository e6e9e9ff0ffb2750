"""Sources: still images, or a user's own sequences, with labels, in seeded and stratified splits."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from .splits import Frames, Images, Splits, cuts

__all__ = ["DataNotFound", "arrays", "digits", "mnist"]

NO_LABEL = -1


class DataNotFound(FileNotFoundError):
    """A data set is not where it was looked for; the message says where that was and what to do."""


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
    return _split(Images(pixels, torch.as_tensor(raw.target, dtype=torch.long)), validation, test, seed)


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
        if _complete(raw):
            raise ValueError(f"mnist: files in {raw.absolute()} are damaged; delete and fetch them again.") from error
        raise DataNotFound(
            f"mnist: the four MNIST files are not in {raw.absolute()} and the download failed "
            f"({textwrap.shorten(str(error), 200)}); put them there by hand."
        ) from error
    parts = _split(Images(first.data.unsqueeze(1), first.targets.long()), validation, 0.0, seed)
    return parts._replace(test=Images(second.data.unsqueeze(1), second.targets.long()))


def _complete(raw: Path) -> bool:
    parts = (f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    return all((raw / part).is_file() for part in parts)


def arrays(
    path: str | Path,
    key: str | None = None,
    labels_key: str | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    """A user's own .npy or .npz file: images (N, height, width), or sequences (N, S, channel, height, width).

    Pixels are uint8 in 0..255, or floating point in [0, 1]. Sequences are used as they are. Nothing is unpickled.

    Args:
        path: the file.
        key: name of the array in an .npz; needed where it holds several.
        labels_key: name of whole-number labels (N,) in an .npz; they also stratify the split. Default: none, all −1.
        validation: share of all items.
        test: share of all items.
        seed: of the split.

    Raises:
        DataNotFound: there is no such file.
        ValueError: the file cannot be read, or holds something else.
    """
    path = Path(path).expanduser()
    array, stored_labels = _read(path, key, labels_key)
    pixels = _pixels(path, array)
    labels = np.full(len(pixels), NO_LABEL) if stored_labels is None else stored_labels
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: labels {labels_key!r} have shape {labels.shape} and type {labels.dtype}; expected one whole "
            f"number for each of the {len(pixels)} items."
        )
    tensors = torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))
    whole = Images(tensors[0].unsqueeze(1), tensors[1]) if pixels.ndim == 3 else Frames(*tensors)
    return _split(whole, validation, test, seed)


def _read(path: Path, key: str | None, labels_key: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The chosen array and labels; what else an .npz holds is not looked at."""
    if not (path.is_file() or path.is_dir()):
        what = "is a pipe, a socket or a device, and is not opened" if path.exists() else "does not exist"
        raise DataNotFound(f"{path.absolute()} {what}; give the path of an .npy or .npz file.")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            stored = {"": stored}
        names = list(stored)
        candidates = [name for name in names if name != labels_key]
        if key is None and len(candidates) == 1:
            key = candidates[0]
        chosen = [None if name is None or name not in names else stored[name] for name in (key, labels_key)]
    # A hostile or truncated file may fail in any way; each means the same to its owner.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(
                f"{path} cannot be read ({error.strerror}); give the path of an .npy or .npz file that can be."
            ) from error
        if "pickle" in str(error):
            raise ValueError(
                f"{path} holds Python objects or is no array file, and nothing is ever unpickled; save a plain array "
                "of uint8 or floating point with numpy.save or numpy.savez."
            ) from error
        raise ValueError(
            f"{path} cannot be read as an .npy or .npz file and may be damaged; write it again with numpy.save or "
            "numpy.savez."
        ) from error
    for option, name, array in (("key", key, chosen[0]), ("labels_key", labels_key, chosen[1])):
        if isinstance(array, np.ndarray) or (option == "labels_key" and name is None):
            continue
        holds = "one unnamed array" if names == [""] else f"the arrays {', '.join(names) or '(none)'}"
        advice = "leave it out" if names == [""] else f"set {option} to one of them"
        raise ValueError(f"{path}: {option} is {name!r}, but the file holds {holds}; {advice}.")
    return np.asarray(chosen[0]), chosen[1]


def _pixels(path: Path, array: np.ndarray) -> np.ndarray:
    """The array as uint8 or as float32 in [0, 1], of 3 or 5 dimensions."""
    if array.ndim not in (3, 5) or 0 in array.shape:
        raise ValueError(
            f"{path}: the array has shape {array.shape}; expected images (N, height, width) or sequences "
            "(N, frame, channel, height, width), none of them empty; reshape it and save it again."
        )
    if array.dtype == np.uint8:
        if array.max() == 1:  # a mask: dividing it by 255 would silently make it black
            raise ValueError(
                f"{path}: the uint8 pixels are at most 1; expected 0..255 for uint8; multiply them by 255 or convert "
                "them to float32, and save the file again."
            )
        return array
    if array.dtype.kind != "f":
        raise ValueError(
            f"{path}: the pixels have type {array.dtype}; expected uint8 (0..255) or floating point in [0, 1]; convert "
            "them and save the file again."
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also true for nan
        raise ValueError(
            f"{path}: the pixels run from {low:g} to {high:g}; expected finite values within [0, 1]; rescale them and "
            "save the file again."
        )
    return array.astype(np.float32)


def _split(whole: Images | Frames, validation: float, test: float, seed: int) -> Splits:
    parts = cuts(whole.labels, validation, test, seed)
    return Splits(*(type(whole)(whole.pixels[part], whole.labels[part]) for part in parts))
