"""Hydra's versions: what 1.4, with OmegaConf 2.4, calls otherwise than 1.3, and warns of under the former names."""

from __future__ import annotations

from typing import Any

import hydra
import hydra.utils
from omegaconf import OmegaConf

__all__ = ["BEHAVIOUR", "TRUSTED", "register"]

NEWER = tuple(int(part) for part in hydra.__version__.split(".")[:2]) >= (1, 4)

# For hydra.main and initialize: 1.3 asks whose defaults it is to have, 1.4 has its own.
BEHAVIOUR: dict[str, Any] = {} if NEWER else {"version_base": "1.3"}

# For instantiate, which asks from 1.4 on what may be called: what was typed, and of what was stored only what the
# allowlist of this package has let through before.
TRUSTED: dict[str, Any] = (
    {"_execution_whitelist_": vars(hydra.utils)["UNSAFE_DISABLE_EXECUTION_CHECKS"]} if NEWER else {}
)

# For functions in configurations: ``register(name, function, replace=True)``.
register: Any = OmegaConf.register_resolver if NEWER else OmegaConf.register_new_resolver
