"""Former names: what settings, options and targets were called in configurations and commands of older versions.

Who renames a setting or an option adds a line here; public parts have theirs in :mod:`pyro_tvae.former_names`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pyro_tvae.former_names import current

__all__ = ["announced", "current_overrides", "current_settings"]

SETTINGS = {"model.centred": "model.centered"}
OPTIONS = {
    "guide": {"semi_amortised": "semi_amortized"},
    "likelihood": {"binarised_bernoulli": "binarized_bernoulli"},
}
# Settings that a part had no word for -> what it did without.
FORMERLY = {"pyro_tvae.experiments.datasets.arrays": {"axes": ["NHW", "NSCHW"]}}
PART = re.compile(r"(?<![\w.])pyro_tvae(\.\w+)+(?![\w.])")


def current_settings(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings under their present names, their targets too; those that are not called otherwise stay as they are.

    Args:
        settings: by dotted names, by sections within sections, or both.

    Example:
        >>> current_settings({"model.centred": True, "guide": {"_target_": "pyro_tvae.SemiAmortisedGuide"}})
        {'model.centered': True, 'guide': {'_target_': 'pyro_tvae.SemiAmortizedGuide'}}
    """
    present: dict[str, Any] = _current(settings)
    return present


def _current(node: Any, key: str = "", prefix: str = "") -> Any:
    if isinstance(node, Mapping):
        now = {part: SETTINGS[name].removeprefix(prefix) for part in node if (name := f"{prefix}{part}") in SETTINGS}
        settings = {now.get(part, part): _current(value, str(part), f"{prefix}{part}.") for part, value in node.items()}
        target = settings.get("_target_")
        return {**(FORMERLY.get(target, {}) if isinstance(target, str) else {}), **settings}
    if isinstance(node, list):
        return [_current(value) for value in node]
    return current(node) if isinstance(node, str) and key.endswith("_target_") else node


def current_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides in Hydra's grammar, under present names.

    Example:
        >>> current_overrides(["model.centred=false", "guide=orbit,semi_amortised", "seed=1"])
        ['model.centered=false', 'guide=orbit,semi_amortized', 'seed=1']
    """
    return [_override(text) for text in overrides]


def _override(text: str) -> str:
    sign, name, equals, value = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", text, flags=re.DOTALL).groups()  # type: ignore[union-attr]
    value = PART.sub(lambda part: current(part[0]), value)
    for former, option in OPTIONS.get(name, {}).items():
        value = re.sub(rf"(?<![\w.]){former}(?![\w.])", option, value)
    return f"{sign}{SETTINGS.get(name, name)}{equals}{value}"


def announced(overrides: Sequence[str]) -> list[str]:
    """Overrides under present names; each that was given under a former one is answered in a line on standard error."""
    present = current_overrides(overrides)
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return present  # one of several processes, of which the first has said it
    for former, text in zip(overrides, present, strict=True):
        if former != text:
            print(f"pyro-tvae: {former} is now {text}; the former name goes with the next version.", file=sys.stderr)
    return present
