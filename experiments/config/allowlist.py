"""Trust: what a stored configuration may call. A folder can be a stranger's, and ``_target_`` can name any function.

What was typed on the command line is trusted. A file may only name parts of the project, PyTorch's optimizers and
schedules, and what is defined in modules that the user named with ``--import``. Nothing is imported because a file says
so. A file may also name Lightning's loggers in their own group, where a fit alone makes them: see :mod:`.loggers`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_tvae import Part
from pyro_tvae.inference import Objective

from .. import datasets

__all__ = ["check_stored", "trust_modules", "trust_targets"]

KINDS = (Part, Objective, Optimizer, LRScheduler)

# Services may be named, since a run of one's own is to be read again, but are not started by a stored file.
FILE_LOGGERS = tuple(f"lightning.pytorch.loggers.{name}" for name in ("CSVLogger", "TensorBoardLogger"))
LOGGERS = (
    *FILE_LOGGERS,
    *(f"lightning.pytorch.loggers.{name}" for name in ("CometLogger", "MLFlowLogger", "NeptuneLogger", "WandbLogger")),
)

_modules: set[str] = set()
_targets: set[str] = set()


def trust_modules(names: Iterable[str]) -> None:
    """Import modules that the user named; stored configurations may call what is defined in them.

    Raises:
        ValueError: there is no such module.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"--import {name}: {error}; expected a module on Python's path, such as my.module (PYTHONPATH=. adds "
                "the current folder)."
            ) from None
        _modules.add(name)


def trust_targets(config: DictConfig) -> None:
    """Remember the targets of a configuration from the command line: its run may be read again by this process."""
    _targets.update(str(target) for _, target in _named(OmegaConf.to_container(config, resolve=True)))


def check_stored(config: DictConfig, source: object) -> None:
    """Refuse a stored configuration that names what it may not call, before anything of it is built.

    Raises:
        ValueError: it does, or it holds an interpolation, which could read the environment.
    """
    for key, target in _named(OmegaConf.to_container(config, resolve=False)):
        if key.startswith("logger.") and key.count(".") == 2 and target in LOGGERS:
            continue
        if isinstance(target, str) and "${" in target:
            raise ValueError(f"{source}: {key} is {target!r}; expected a plain value, as 'pyro-tvae train' stores it.")
        if isinstance(target, str) and target in _targets:
            continue
        if not isinstance(target, str) or not _allowed(target):
            module = str(target).rpartition(".")[0]
            foreign = module and module.partition(".")[0] not in sys.stdlib_module_names
            remedy = f"If it is yours, or you trust it, add --import {module}" if foreign else "Do not use this folder"
            raise ValueError(
                f"{source}: {key} is {target!r}, which is no part of pyro-tvae, and a stored configuration may call "
                f"nothing else; nothing was run. {remedy}."
            )


def _allowed(target: str) -> bool:
    """Whether a dotted name is that of something a file may call. Looks at imported modules only."""
    module, _, name = target.rpartition(".")
    if module not in sys.modules:
        return False
    value = getattr(sys.modules[module], name, None)
    home = str(getattr(value, "__module__", ""))
    if any(home == trusted or home.startswith(f"{trusted}.") for trusted in _modules):
        return callable(value)
    if isinstance(value, type) and issubclass(value, KINDS):
        return True
    return any(value is getattr(datasets, public) for public in datasets.__all__)


def _named(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(where, value) of every ``_target_`` and of every interpolation that was not resolved."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_" or (isinstance(value, str) and "${" in value):
                yield f"{prefix}{key}", value
            else:
                yield from _named(value, f"{prefix}{key}.")
