"""Unfinished runs: the same command goes on with the run that it had begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from ..config.composition import ELSEWHERE
from ..config.former_names import current_settings
from .run import CONFIG, EVALUATION, REPORT, Run

__all__ = ["unfinished"]


def unfinished(config: DictConfig, folder: Path, *, beside: bool) -> Run | None:
    """The latest run of exactly this configuration that was interrupted and that nobody is at work on.

    Args:
        config: of the run that would be started.
        folder: of that run, which may hold the interrupted one.
        beside: look at the folders beside it too.
    """
    wanted = _comparable(OmegaConf.to_yaml(config, resolve=True))
    others = sorted((path.parent for path in folder.parent.glob(f"*/{CONFIG}")), reverse=True) if beside else []
    for run in map(Run, (folder, *others)):
        if not run.has(CONFIG) or (run.has(EVALUATION) and run.has(REPORT)):
            continue
        try:
            if _comparable((run.path / CONFIG).read_text(encoding="utf-8")) == wanted:
                with run.held():
                    return run
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue  # somebody else's, or at work
    return None


def _comparable(text: str) -> Any:
    """Stored settings under present names, without those that only say where and how a run computes."""
    stored = yaml.safe_load(text)
    if not isinstance(stored, dict):
        return None
    stored = current_settings(stored)
    for name in ELSEWHERE:
        section, _, key = name.partition(".")
        if not key:
            stored.pop(section, None)
        elif isinstance(stored.get(section), dict):
            stored[section].pop(key, None)
    return stored
