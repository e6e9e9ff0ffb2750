"""Folders: what a run's folder holds, by name, and how it is read and written."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import pyro_tvae
from pyro_tvae import TVAE, Guide
from pyro_tvae.files import PARTIAL, atomic_write

from ..config.allowlist import check_stored
from ..config.composition import compose, make
from ..config.composition import keys as keys_of
from ..datasets import SequenceDataModule
from ..interruption import command

__all__ = [
    "Trained",
    "configuration",
    "device_of",
    "finite",
    "history_of",
    "read_record",
    "sweep",
    "trained",
    "write_text",
]

CONFIG = "config.yaml"
WEIGHTS, UNTRAINED, PLAIN_VAE = "model.safetensors", "untrained.safetensors", "plain_vae.safetensors"
EVALUATION, HISTORY, REPORT = "evaluation.json", "history.json", "report.html"
SELECTIVITY = "selectivity.json"  # what .unit_map.organisation found, where a figure of the map was asked for


@dataclass(frozen=True)
class Trained:
    """A run whose training has ended: its configuration, fitted model and guide, data, and the device they are on."""

    config: DictConfig
    model: TVAE
    guide: Guide
    data: SequenceDataModule
    device: torch.device


def check_trained(run: Path) -> None:
    """Raise FileNotFoundError where a run's training has not ended."""
    if not (run / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{run} holds no {WEIGHTS}: its training has not ended; go on with: {command('train', f'resume={run}')}"
        )


def trained(run: Path) -> Trained:
    """Load a trained run from its folder.

    Raises:
        FileNotFoundError: the folder is not a run's, or its training has not ended.
    """
    config = configuration(run)
    check_trained(run)
    device = device_of(config)
    model, guide = pyro_tvae.load(run / WEIGHTS, device)
    return Trained(config, model, guide, make(config.data), device)


def configuration(run: Path) -> DictConfig:
    """What the run was made from. It can be a stranger's: it is refused where it would call what a file may not.

    Raises:
        FileNotFoundError: the folder is not a run's.
        ValueError: the file is damaged, lacks a setting, or names what :mod:`.allowlist` does not allow.
    """
    path = run / CONFIG
    if not run.is_dir():
        raise FileNotFoundError(f"there is no folder {run}; 'pyro-tvae list' shows the runs.")
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run's folder: it holds no {CONFIG}; 'pyro-tvae list' shows the runs.")
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError, RecursionError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path} cannot be read ({problem}); {EXPECTED}") from None
    if not isinstance(config, DictConfig) or _bare_words(config):
        raise ValueError(f"{path} holds no mapping; {EXPECTED}")
    check_stored(config, path)
    for name in LATER_GROUPS:
        if name not in config:
            config[name] = compose()[name]
    for name, value in LATER.items():
        group, _, key = name.partition(".")
        if isinstance(config.get(group), DictConfig) and key not in config[group]:
            config[group][key] = value
    for name in _settings():
        section = config if "." not in name else config.get(name.partition(".")[0])
        if not isinstance(section, DictConfig) or name.rpartition(".")[2] not in section:
            raise ValueError(f"{path} lacks the setting {name!r}; {EXPECTED}")
    return config


def _bare_words(config: DictConfig) -> bool:
    """Whether a file held words alone, which OmegaConf takes for a name without a value."""
    names = list(config)
    return len(names) == 1 and not OmegaConf.is_interpolation(config, str(names[0])) and config[names[0]] is None


EXPECTED = "expected the file that 'pyro-tvae train' wrote."
# Settings that older runs lack, and what they were made with.
LATER = {"model.centered": False, "fit.matmul_precision": "highest"}
LATER_GROUPS = ("logger", "measure")  # at the top; as they are by default
PLAIN = ("model", "fit", "baseline", "evaluation")  # sections with the same settings in every run


@functools.cache
def _settings() -> list[str]:
    """The settings that every run has: the names at the top, and those of the plain sections."""
    split = ((name, *name.partition(".")) for name in keys_of(compose()))
    return [name for name, section, _, rest in split if not rest or (section in PLAIN and "." not in rest)]


def history_of(run: Path) -> dict[str, Any]:
    """The training history, ``rows`` and ``seconds``; empty where there is none yet."""
    path = run / HISTORY
    return read_record(path) if path.is_file() else {}


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that holds one mapping; ValueError where it does not."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and make it again.") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}, not a record; delete it and make it again.")
    return record


def sweep(run: Path) -> None:
    """Remove what a killed process was still writing."""
    for partial in run.rglob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def device_of(config: DictConfig) -> torch.device:
    """Where a run computes: as ``fit.accelerator`` says, or the fastest device there is."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    # What was trained on a device that is not here is judged on what is.
    return accelerator if accelerator is not None and config.fit.accelerator != "cpu" else torch.device("cpu")


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all: readers see the old one or the new one, never a half."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def finite(value: Any) -> Any:
    """NaN and infinity as null: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
