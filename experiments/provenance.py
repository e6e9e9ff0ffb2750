"""Provenance: the machine and the packages that a number was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pyro
import torch

__all__ = ["hardware", "machine", "versions"]


def versions() -> dict[str, str]:
    """Of Python, and of the packages that numbers depend on."""
    packages = ("pyro-tvae", "pyro-ppl", "torch", "lightning", "hydra-core")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def hardware(device: torch.device) -> str:
    """The processor, its cores, and what computes: a number of threads or a named device."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{processor()}, {os.cpu_count()} cores, {where}"


def machine(threads: int) -> dict[str, Any]:
    """What the seconds of a benchmark depend on."""
    return {
        "cpu": processor(),
        "threads": threads,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def processor() -> str:
    """The processor's name: Linux hides it from the standard library."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
