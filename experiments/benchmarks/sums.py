"""Sums: CPU time and memory of ``W u²`` and its gradient by themselves, run as a program on whichever version it meets.

``python -P sums.py '{"topography": …, "sizes": […], …}'`` prints a line of JSON. It needs nothing but ``pyro_tvae`` and
its topographies, so that a checkout of another version, first on PYTHONPATH, is measured by the same lines.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import pyro_tvae as p

__all__ = ["TOPOGRAPHIES", "costs"]

# All of 18 positions.
TOPOGRAPHIES: dict[str, Callable[[], p.Topography]] = {
    "capsule roll, kernel 13": lambda: p.CapsuleRoll(13, 1),
    "the same, truncated": lambda: p.CapsuleRoll(13, 1, boundary="truncate"),
    "the same, learned": lambda: p.CapsuleRoll(13, 1, learned=True),
    "capsule roll, kernel 5": lambda: p.CapsuleRoll(5, 1),
    "stationary, (5, 3)": lambda: p.Stationary((5, 3)),
    "torus, (3, 5) of 3 x 6": lambda: p.Torus((3, 5), (3, 6)),
    "velocity 0.5": lambda: p.GridRoll(13, velocity=0.5),
    "grid of 3 x 6, learned": lambda: p.GridRoll(13, 1, grid=(3, 6), velocity=(1, 0.5), learned=True),
    "capsule roll, kernel 100": lambda: p.CapsuleRoll(100, 1),
    "the same, truncated, learned": lambda: p.CapsuleRoll(100, 1, boundary="truncate", learned=True),
}


def costs(
    topography: str, sizes: Sequence[int], *, n_sequences: int = 1, dense: bool = False, seconds: float = 0.3
) -> dict[str, list[float]]:
    """CPU ``seconds`` of one energy and its gradient, and bytes of ``memory`` needed so far, for growing frames S.

    Args:
        topography: one of :data:`TOPOGRAPHIES`, of 18 capsules and 18 positions.
        sizes: the S.
        n_sequences: at once.
        dense: multiply with W itself.
        seconds: about how long each size is repeated, three times at least; the median counts.
    """
    torch.manual_seed(0)
    own = TOPOGRAPHIES[topography]()
    times, memory = [], []

    def once(u: torch.Tensor, slope: torch.Tensor) -> float:
        u.grad = None
        since = time.process_time()
        if dense:
            rows = u.square().transpose(-3, -2).flatten(-2) @ own.matrix(u.shape[1], 18, u).mT
            v = rows.unflatten(-1, (-1, 18)).transpose(-3, -2)
        else:
            v = own.energy(u)
        v.backward(slope)
        return time.process_time() - since

    once(*(torch.ones(1, 3, 18, 18, requires_grad=gradient) for gradient in (True, False)))  # torch's own memory
    before = _peak()
    for n_frames in sizes:
        u = torch.randn(n_sequences, n_frames, 18, 18, requires_grad=True)
        slope = torch.randn_like(u)
        first = once(u, slope)  # makes what is kept
        repeats = max(3, min(200, round(seconds / max(once(u, slope), 1e-6)))) if first < 60 else 1
        times.append(statistics.median(once(u, slope) for _ in range(repeats)))
        memory.append(float(max(_peak() - before, resource.getpagesize())))
    return {"seconds": times, "memory": memory}


def most_resident(process: int | str = "self") -> int | None:
    """Largest resident memory of a process in bytes; None where the system does not tell."""
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        return None
    (line,) = (line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _peak() -> int:
    """Largest resident memory in bytes; Linux hands what ``getrusage`` says on to programs that a process starts."""
    if (own := most_resident()) is not None:
        return own
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(costs(**json.loads(sys.argv[1]))))
