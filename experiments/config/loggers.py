"""Loggers: where training curves go. A fit alone makes them, and for a stored file only those that are harmless."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .allowlist import FILE_LOGGERS
from .composition import make
from .errors import ConfigurationError

__all__ = ["check_loggers", "check_stored_loggers", "files_only", "log_folders", "loggers"]

PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet_ml", "NeptuneLogger": "neptune"}


def loggers(config: DictConfig, directory: Path | None) -> list[Any]:
    """Lightning loggers of a configuration; those without a ``save_dir`` of their own write to the run's ``logs``."""
    logs = str((directory if directory is not None else Path()) / "logs")
    made = []
    for node in _nodes(config).values():
        inside = "save_dir" in node and node["save_dir"] is None
        if directory is None and node["_target_"] in FILE_LOGGERS and inside:
            continue  # a fit that writes nothing
        made.append(make(OmegaConf.create({**node, "save_dir": logs} if inside else node)))
    return made


def check_loggers(config: DictConfig) -> None:
    """Raise ConfigurationError, before anything is trained, where a logger's package is not installed."""
    for name, node in _nodes(config).items():
        kind = str(node["_target_"]).rpartition(".")[2]
        package = PACKAGES.get(kind)
        if package is not None and find_spec(package) is None:
            raise ConfigurationError(
                f"logger.{name} is {kind}, whose package is not installed; pip install {package.replace('_', '-')}, or "
                "choose another logger, such as logger=csv_tensorboard."
            )


def check_stored_loggers(config: DictConfig, run: Path) -> None:
    """Refuse to start what a stored configuration logs to, unless it is files in the run's own folder.

    The folder can be a stranger's, and his service or path would be told of the training, or written to.
    """
    for name, node in _nodes(config).items():
        plain = node["_target_"] in FILE_LOGGERS and {*node} <= {"_target_", "save_dir", "name"}
        inside = node.get("save_dir") is None and str(node.get("name")) in ("csv", "tensorboard")
        if not (plain and inside):
            raise ConfigurationError(
                f"{run} logs to {name} ({node['_target_']}), which a stored configuration may not start by itself; say "
                "it again beside resume, as logger=…, or choose logger=csv_tensorboard."
            )


def files_only(config: DictConfig) -> dict[str, Any]:
    """The loggers that write files: a baseline's curves go to no service, whose run is the model's."""
    return {name: node for name, node in _nodes(config).items() if node["_target_"] in FILE_LOGGERS}


def log_folders(config: DictConfig) -> list[Path]:
    """Where loggers write that do not write to the run's folder, as far as they say."""
    return [Path(str(node["save_dir"])) for node in _nodes(config).values() if node.get("save_dir") is not None]


def _nodes(config: DictConfig) -> dict[str, dict[str, Any]]:
    """Logger by name, from the group ``logger``."""
    nodes = OmegaConf.to_container(config.logger, resolve=True, throw_on_missing=True) if config.logger else {}
    named: dict[str, Any] = {str(key): node for key, node in nodes.items()} if isinstance(nodes, dict) else {"": nodes}
    for name, node in named.items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigurationError(
                f"logger.{name} is {node!r}; expected a Lightning logger by its import path, as in "
                f"+logger.{name}._target_=lightning.pytorch.loggers.CSVLogger."
            )
    return named
