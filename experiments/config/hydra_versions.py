"""Hydra's versions: what 1.4, with OmegaConf 2.4, calls otherwise than 1.3, and warns of under the former names."""

from __future__ import annotations

from typing import Any

import hydra
import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["BEHAVIOUR", "instantiate", "register"]

NEWER = tuple(int(part) for part in hydra.__version__.split(".")[:2]) >= (1, 4)

# For hydra.main and initialize: 1.3 asks whose defaults it is to have, 1.4 has its own.
BEHAVIOUR: dict[str, Any] = {} if NEWER else {"version_base": "1.3"}

# For functions in configurations: ``register(name, function, replace=True)``.
register: Any = OmegaConf.register_resolver if NEWER else OmegaConf.register_new_resolver


def instantiate(node: Any) -> Any:
    """Build what a node describes, nested mappings as plain data.

    From 1.4 on Hydra asks what may be called: what was typed, and of what was stored only what the allowlist of this
    package has let through before. And it leaves an error as it is, with a note of the place.

    Raises:
        MissingMandatoryValue: a setting has no value.
        InstantiationException: what is called raised an error, its cause; the words end in ``full_key: PLACE``,
            but of a node without a parent.
    """
    trusted = {"_execution_whitelist_": vars(hydra.utils)["UNSAFE_DISABLE_EXECUTION_CHECKS"]} if NEWER else {}
    if isinstance(node, DictConfig):
        OmegaConf.to_container(node, throw_on_missing=True)  # 1.4 takes what lacks its _target_ for a plain mapping
    try:
        return hydra.utils.instantiate(node, _convert_="object", **trusted)
    except (InstantiationException, OmegaConfBaseException):
        raise
    except Exception as error:
        place = [note for note in getattr(error, "__notes__", ()) if note.startswith("full_key: ")][:1]
        raise InstantiationException("\n".join([f"{type(error).__name__}: {error}", *place])) from error
