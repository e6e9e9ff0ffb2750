"""Unfinished runs: the same command goes on with the run that it had begun."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..config.composition import ELSEWHERE
from .run import CONFIG, EVALUATION, REPORT, Run

__all__ = ["unfinished"]


def unfinished(config: DictConfig, folder: Path, *, beside: bool) -> Run | None:
    """The latest run of exactly this configuration that was interrupted and that nobody is at work on.

    Args:
        config: of the run that would be started.
        folder: of that run, which may hold the interrupted one.
        beside: look at the folders beside it too.
    """
    wanted = _computed(config)
    others = sorted((path.parent for path in folder.parent.glob(f"*/{CONFIG}")), reverse=True) if beside else []
    for run in map(Run, (folder, *others)):
        try:
            if not (run.has(EVALUATION) and run.has(REPORT)) and _computed(run.stored()) == wanted:
                with run.held():
                    return run
        except (OSError, ValueError, OmegaConfBaseException):
            continue  # none, somebody else's, or at work
    return None


def _computed(config: DictConfig) -> DictConfig:
    """A configuration without the settings that only say where and how it computes."""
    config = config.copy()
    for name in ELSEWHERE:
        OmegaConf.update(config, name, None, merge=False)
    return config
