"""The allowlist: what a stored configuration may call. A folder can be a stranger's, and a target can name anything.

What was typed on the command line is allowed. A file may only name parts of the project, PyTorch's optimizers and
schedules, and what is defined in modules that the user named with ``--import``. Nothing is imported because a file says
so. A file may also name Lightning's loggers in their own group, where a fit alone makes them: see :mod:`.loggers`.
Data are read from where a file says, since a run of one's own is to be judged again, and never fetched because of it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

import pyro_tvae
import pyro_tvae.inference

__all__ = ["PARTS_ONLY", "Allowlist"]

# Services may be named, since a run of one's own is to be read again, but are not started by a stored file.
FILE_LOGGERS = tuple(f"lightning.pytorch.loggers.{name}Logger" for name in ("CSV", "TensorBoard"))
SERVICES = tuple(f"lightning.pytorch.loggers.{name}Logger" for name in ("Comet", "MLFlow", "Neptune", "Wandb"))


@dataclass(frozen=True)
class Allowlist:
    """What a stored configuration may call beside the parts of the project.

    Args:
        modules: whatever is defined in these modules of the user's.
        targets: these names, since they were typed.
        fetches: data may be fetched, since that was typed.
    """

    modules: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()
    fetches: bool = False

    @classmethod
    def importing(cls, names: Iterable[str]) -> Allowlist:
        """The list that allows modules which the user named; they are imported.

        Raises:
            ValueError: there is no such module.
        """
        for name in (names := tuple(names)):
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise ValueError(
                    f"--import {name}: {error}; expected a module on Python's path, such as my.module (PYTHONPATH=. "
                    "adds the current folder)."
                ) from None
        return cls(frozenset(names))

    def typed(self, *configs: DictConfig) -> Allowlist:
        """This list, and what configurations from the command line call or fetch: their runs may be read again."""
        containers = [OmegaConf.to_container(config, resolve=True) for config in configs]
        targets = {str(target) for container in containers for _, target in _targets(container)}
        fetches = any(node.get(FETCH) for container in containers for _, node in _calls(container))
        return replace(self, targets=self.targets | targets, fetches=self.fetches or fetches)

    def fetching(self, config: DictConfig, source: object) -> DictConfig:
        """A stored configuration that was checked, of which nothing is fetched, unless that was typed.

        Raises:
            ValueError: it hands arguments without their names to what can fetch.
        """
        if self.fetches:
            return config
        container = OmegaConf.to_container(config, resolve=False)
        for where, node in _calls(container):
            if node.get("_args_") and _can_fetch(node["_target_"]):
                raise ValueError(
                    f"{source}: {where}_args_ has no names of arguments; write {where}NAME for each of them."
                )
            if node.get(FETCH):
                node[FETCH] = False
        return OmegaConf.create(container)  # type: ignore[return-value]

    def naming(self, config: DictConfig) -> Allowlist:
        """This list, and the modules of what a built configuration calls beside the project's parts: it was typed."""
        named = {str(target) for _, target in _targets(OmegaConf.to_container(config, resolve=True))}
        foreign = {
            target.rpartition(".")[0]
            for target in named - {*FILE_LOGGERS, *SERVICES}
            # A part of one's own is allowed where it is imported, as here, and no later command imports it by itself.
            if not target.startswith(("pyro_tvae.", "torch.")) or not self._allows(target)
        }
        return replace(self, modules=self.modules | (foreign & {*sys.modules}))

    def check(self, config: DictConfig, source: object) -> None:
        """Refuse a stored configuration that names what it may not call, before anything of it is built.

        Raises:
            ValueError: it does, or it holds an interpolation, which could read the environment.
        """
        for key, target in _targets(OmegaConf.to_container(config, resolve=False)):
            if key.startswith("logger.") and key.count(".") == 2 and target in FILE_LOGGERS + SERVICES:
                continue
            if isinstance(target, str) and "${" in target:
                raise ValueError(
                    f"{source}: {key} is {target!r}; expected a plain value, as 'pyro-tvae train' stores it."
                )
            if not isinstance(target, str) or not (target in self.targets or self._allows(target)):
                module = str(target).rpartition(".")[0]
                foreign = module and module.partition(".")[0] not in sys.stdlib_module_names
                remedy = (
                    f"If it is yours, or you trust it, add --import {module}" if foreign else "Do not use this folder"
                )
                raise ValueError(
                    f"{source}: {key} is {target!r}, which is no part of pyro-tvae, and a stored configuration may "
                    f"call nothing else; nothing was run. {remedy}."
                )

    def _allows(self, target: str) -> bool:
        """Whether a dotted name is that of something a file may call. Looks at imported modules only."""
        # They take seconds to import, for which what reads no file does not wait.
        from torch.optim import Optimizer
        from torch.optim.lr_scheduler import LRScheduler

        from .. import datasets

        value = _called(target)
        home = str(getattr(value, "__module__", ""))
        if any(home == mine or home.startswith(f"{mine}.") for mine in self.modules):
            return callable(value)
        kinds = (pyro_tvae.Part, pyro_tvae.inference.Objective, Optimizer, LRScheduler)
        if isinstance(value, type) and issubclass(value, kinds):
            return True
        return any(value is getattr(datasets, public) for public in datasets.__all__)


PARTS_ONLY = Allowlist()
FETCH = "download"  # the argument of a source that makes it fetch what is not there


def _called(target: str) -> Any:
    """What a dotted name stands for among the modules that are imported; None for nothing."""
    module, _, name = target.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _can_fetch(target: str) -> bool:
    try:
        return FETCH in inspect.signature(_called(target)).parameters
    except (TypeError, ValueError):  # such as a class that is built in
        return False


def _calls(node: Any, prefix: str = "") -> Iterator[tuple[str, dict[Any, Any]]]:
    """(prefix of its settings, node) of every node that calls something."""
    if isinstance(node, dict | list):
        if isinstance(node, dict) and "_target_" in node:
            yield prefix, node
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _calls(value, f"{prefix}{key}.")


def _targets(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(where, value) of every ``_target_`` and of every interpolation that was not resolved."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_" or (isinstance(value, str) and "${" in value):
                yield f"{prefix}{key}", value
            else:
                yield from _targets(value, f"{prefix}{key}.")
