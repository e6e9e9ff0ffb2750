"""The published dSprites file, read in one pass that keeps only the images that are wanted, eight pixels a byte."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pyro_tvae.memory import exhausted

from .errors import DataNotFound, Unsuitable
from .silhouettes import latents

__all__ = ["FILE_SHAPE", "packed_images", "unpack"]

FILE_SHAPE = (737280, 64, 64)
BLOCK = 4096  # images decompressed at a time


def packed_images(path: str | Path, wanted: Tensor, sha256: str | None = None) -> Tensor:
    """The wanted images of dSprites' .npz, packed.

    The file's 3 GB of pixels are one compressed member, which can only be read from its start to its end: that takes
    about ten seconds, and no more memory than one block beside what is wanted. Of its other members
    only ``latents_classes`` is looked at, to see that the images lie in the order that everything here counts on.

    Args:
        path: the file.
        wanted: places of images, (n,) int64, from 0 to 737,279.
        sha256: of the whole file, in hexadecimal; None does not check it. The members' own checksums always are.

    Returns:
        (n, bytes) uint8, in the order of ``wanted``; see :func:`unpack`.

    Raises:
        DataNotFound: there is no such file.
        ValueError: the file has another digest, is damaged, or holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataNotFound(
            f"dsprites: {path.absolute()} {what}; give the path of the published .npz file, or leave path out "
            "to have the sprites drawn."
        )
    if sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256.lower():
            raise ValueError(f"dsprites: {path} has the SHA-256 {digest}; expected {sha256}; fetch the file again.")
    try:
        stored = np.load(path, allow_pickle=False)
        with stored:  # an .npy is an array, and no context
            _check_order(stored["latents_classes"])
            with stored.zip.open("imgs.npy") as member:
                return _packed(member, wanted.numpy())
    except Unsuitable as error:
        raise ValueError(f"dsprites: {path} {error}; expected the published .npz file.") from None
    # A hostile or truncated file may fail in any way; each means the same to its owner.
    except Exception as error:
        if exhausted(error):
            raise
        raise ValueError(
            f"dsprites: {path} cannot be read as the published .npz file, and nothing is ever unpickled; fetch it "
            "again."
        ) from error


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Pixels again: (..., bytes) uint8 -> (..., *shape) float32, zeros and ones."""
    bits = packed.unsqueeze(-1) >> torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    n_pixels = int(np.prod(shape))
    return (bits & 1).flatten(-2)[..., :n_pixels].float().reshape(*packed.shape[:-1], *shape)


def _check_order(classes: np.ndarray) -> None:
    expected = latents(torch.arange(FILE_SHAPE[0])).numpy()
    if classes.shape != (FILE_SHAPE[0], 6) or not np.array_equal(classes[:, 1:], expected):
        raise Unsuitable(f"holds its images in another order (latents_classes of shape {classes.shape})")


def _packed(member: IO[bytes], wanted: np.ndarray) -> Tensor:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if shape != FILE_SHAPE or fortran or dtype != np.uint8:
        raise Unsuitable(f"holds imgs of shape {shape} and type {dtype}, not {FILE_SHAPE} and uint8")
    n_pixels = int(np.prod(FILE_SHAPE[1:]))
    kept = np.empty((len(wanted), -(-n_pixels // 8)), np.uint8)
    order = np.argsort(wanted, kind="stable")
    ranked = wanted[order]
    for start in range(0, FILE_SHAPE[0], BLOCK):
        n = min(BLOCK, FILE_SHAPE[0] - start)
        content = member.read(n * n_pixels)
        if len(content) < n * n_pixels:
            raise Unsuitable("ends before its last image")
        block = np.frombuffer(content, np.uint8).reshape(n, n_pixels)
        if block.max() > 1:
            raise Unsuitable(f"holds pixels of up to {block.max()}, not zeros and ones")
        here = slice(*np.searchsorted(ranked, (start, start + n)))
        kept[order[here]] = np.packbits(block[ranked[here] - start], axis=1)
    return torch.from_numpy(kept)
