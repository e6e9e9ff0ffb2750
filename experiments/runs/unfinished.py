"""Unfinished runs: the same command goes on with the run that it had begun, and no two processes work on one folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from ..config.composition import ELSEWHERE
from ..interruption import command
from .folder import CONFIG, EVALUATION, REPORT, UNTRAINED

try:
    import fcntl
except ImportError:  # Windows, where folders go unguarded
    fcntl = None  # type: ignore[assignment]

__all__ = ["no_folder_for_mistakes", "occupied", "unfinished"]

LOCK = ".lock"


@contextmanager
def occupied(run: Path) -> Iterator[None]:
    """Hold a run's folder for this process. The system lets go of it however the process ends, SIGKILL included.

    Raises:
        BlockingIOError: another process is at work on it.
        OSError: the folder cannot be written.
    """
    try:
        file = open(run / LOCK, "ab")  # noqa: SIM115 - the errors of opening are not those of the block
    except OSError as error:
        raise type(error)(f"{run} cannot be written ({error.strerror}); choose a folder that can be.") from error
    with file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise BlockingIOError(
                    f"another process is at work on {run}; wait for its end or stop it, then: "
                    f"{command('train', f'resume={run}')}"
                ) from None
            except OSError:
                pass  # a file system that knows no locks
        yield


@contextmanager
def no_folder_for_mistakes(run: Path) -> Iterator[None]:
    """Remove the folder of a run that ends by an error before its first step; interruptions keep theirs."""
    try:
        yield
    except Exception:
        if run.is_dir() and {path.name for path in run.iterdir()} <= {".hydra", LOCK, CONFIG, UNTRAINED}:
            shutil.rmtree(run, ignore_errors=True)
            print(f"{run} was removed again: nothing had been trained", flush=True)
        raise


def unfinished(config: DictConfig, folder: Path, *, beside: bool) -> Path | None:
    """The latest run of exactly this configuration that was interrupted and that nobody is at work on.

    Args:
        config: of the run that would be started.
        folder: of that run, which may hold the interrupted one.
        beside: look at the folders beside it too.
    """
    wanted = _comparable(OmegaConf.to_yaml(config, resolve=True))
    others = sorted((path.parent for path in folder.parent.glob(f"*/{CONFIG}")), reverse=True) if beside else []
    for run in (folder, *others):
        if not (run / CONFIG).is_file() or ((run / EVALUATION).is_file() and (run / REPORT).is_file()):
            continue
        try:
            if _comparable((run / CONFIG).read_text(encoding="utf-8")) == wanted:
                with occupied(run):
                    return run
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue  # somebody else's, or at work
    return None


def _comparable(text: str) -> Any:
    stored = yaml.safe_load(text)
    for name in ELSEWHERE:
        section, _, key = name.partition(".")
        if isinstance(stored, dict) and not key:
            stored.pop(section, None)
        elif isinstance(stored, dict) and isinstance(stored.get(section), dict):
            stored[section].pop(key, None)
    return stored
