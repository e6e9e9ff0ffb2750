"""Chunks: how many draws are decoded at once: as many as there is memory for, fewer where there proves to be less."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["CHUNK_BYTES", "chunk_of", "in_chunks", "placed"]

CHUNK_BYTES = 24 * 2**20  # of decoded pixels: small enough to stay in a processor's cache, large enough to fill it
MOST_BYTES = 512 * 2**20  # on a device, which larger chunks make no faster
SHARE = 16  # of the memory that is free: logits, probabilities and hidden layers are several times the pixels

T = TypeVar("T")


def chunk_of(x: Tensor, chunk_bytes: int | None = None) -> int:
    """Draws of sequences (B, S, channel, height, width) to be decoded at once, at least 1.

    Args:
        x: the sequences, whose pixels each draw has anew.
        chunk_bytes: bound on the decoded pixels; None sizes it by the processor's cache, or by a GPU's free memory.
    """
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES
        if x.device.type == "cuda":
            chunk_bytes = min(MOST_BYTES, max(CHUNK_BYTES, free_bytes(x.device) // SHARE))
    return max(1, chunk_bytes // (x.numel() * x.element_size()))


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that tensors can still have, what this process keeps for them included."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def placed(data: Tensor, device: torch.device) -> Tensor:
    """Data on a GPU, so that batches need not travel, where they leave it three quarters of its free memory."""
    return data.to(device) if 4 * data.numel() * data.element_size() <= free_bytes(device) else data


def in_chunks(total: int, size: int, make: Callable[[int, int], T], what: str = "draw") -> Iterator[T]:
    """``make(start, number)`` of chunks that make up a total; where memory runs out, they are halved from there on.

    Args:
        total: number of items.
        size: of a chunk.
        make: makes one; it must not keep anything of one that fails.
        what: an item, for what is said.

    Raises:
        torch.OutOfMemoryError: there is no room for a single item.

    Example:
        >>> list(in_chunks(5, 2, lambda start, number: (start, number)))
        [(0, 2), (2, 2), (4, 1)]
    """
    start = 0
    while start < total:
        number = min(size, total - start)
        try:
            made = make(start, number)
        except RuntimeError as error:
            if not _no_room(error):
                raise
            full = error if number == 1 else None
        else:
            yield made
            del made  # before the next is made
            start += number
            continue
        # Outside the handler, whose traceback holds what the failed chunk had made.
        if full is not None:
            if str(full).startswith(NO_ROOM):
                raise full
            raise torch.OutOfMemoryError(
                f"{NO_ROOM} for a single {what} at a time ({str(full).splitlines()[0]}); free memory on the device, "
                "use a smaller batch_size, or compute on the CPU."
            ) from None
        size = max(1, number // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


NO_ROOM = "there is no room in memory"


def _no_room(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
