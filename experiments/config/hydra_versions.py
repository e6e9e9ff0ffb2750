"""Hydra's versions: what 1.4, with OmegaConf 2.4, calls otherwise than 1.3, and warns of under the former names."""

from __future__ import annotations

from typing import Any

import hydra
import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

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
        InstantiationException: what is called raised an error, its cause; the words end in ``full_key: PLACE``.
    """
    trusted = {"_execution_whitelist_": vars(hydra.utils)["UNSAFE_DISABLE_EXECUTION_CHECKS"]} if NEWER else {}
    try:
        return hydra.utils.instantiate(node, _convert_="object", **trusted)
    except Exception as error:
        place = next((note for note in getattr(error, "__notes__", ()) if note.startswith("full_key: ")), None)
        if place is None or isinstance(error, InstantiationException):
            raise
        raise InstantiationException(f"{type(error).__name__}: {error}\n{place}") from error
