"""Provenance: the machine and the packages that a number was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

__all__ = ["hardware", "versions"]


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    packages = ("pyro-tvae", "pyro-ppl", "torch", "lightning", "hydra-core")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def hardware(device: torch.device) -> str:
    """The processor, its cores, and what computes: a number of threads or a named device."""
    processor = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            processor = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{processor}, {os.cpu_count()} cores, {where}"
