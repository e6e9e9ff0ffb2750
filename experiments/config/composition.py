"""Composition: a configuration from its groups and overrides, with mistakes answered in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    pass

from .errors import ConfigurationError

__all__ = ["ELSEWHERE", "compose", "fitting_overrides", "keys", "make", "options"]

CONF = "pyro_tvae.experiments.conf"


def options() -> dict[str, dict[str, str]]:
    """Every group's options with the comment that introduces them: ``{group: {option: sentence}}``."""
    found: dict[str, dict[str, str]] = {}
    for folder in sorted(files(CONF).iterdir(), key=lambda entry: entry.name):
        if folder.is_dir() and not folder.name.startswith("_"):
            entries = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda entry: entry.name)
            found[folder.name] = {entry.name.removesuffix(".yaml"): _comment(entry.read_text()) for entry in entries}
    return found


def _comment(text: str) -> str:
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return lines[0] if lines else ""


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of a run.

    Args:
        overrides: in Hydra's grammar, such as ``topography=stationary`` or ``fit.max_epochs=5``.

    Raises:
        ConfigurationError: an override names nothing that exists, with the nearest names that do.
    """
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        try:
            return hydra_compose("config", overrides=list(overrides))
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            raise ConfigurationError(_explain(error, overrides)) from None


def fitting_overrides(recipe: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that set something which the configuration of a recipe has, or that add to it.

    Raises:
        ConfigurationError: one of them is no override at all, or the recipe is none.
    """
    known = {*keys(compose(recipe)), *options()}
    try:
        parsed = _parsed(overrides)
    except OverrideParseException as error:
        raise ConfigurationError(_explain(error, overrides)) from None
    return [
        text
        for text, override in zip(overrides, parsed, strict=True)
        if override.is_add() or str(override.key_or_group) in known
    ]


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    return _mistake(overrides) or " ".join(str(error).split())


def _mistake(overrides: Sequence[str]) -> str | None:
    """What is mistyped among overrides, in a sentence. Hydra has to be initialised."""
    groups = options()
    try:
        parsed = _parsed(overrides)
    except OverrideParseException as problem:
        name, equals, value = str(problem.override).partition("=")
        if not equals or not name:
            return f"{problem.override!r} is not an override; expected name=value, such as fit.max_epochs=5."
        if value.count("${") != value.count("}"):
            return f"the value of {name}, {value}, has a '${{' that no '}}' closes; close it, or give a plain value."
        return (
            f"the value of {name}, {value}, cannot be read; values with brackets, braces, '=', ',' or spaces go into "
            f"double quotes within single ones: '{name}=\"{value}\"'."
        )
    chosen = []
    for override in parsed:
        name, value = str(override.key_or_group), override.value()
        if name not in groups or override.is_sweep_override():
            continue
        if value is None:
            plain = "; a model without one is experiment=plain_vae" if name in ("prior", "topography") else ""
            return f"{name} is null; expected one of {', '.join(groups[name])} ({LIST}){plain}."
        if str(value) not in groups[name]:
            return f"there is no {name} called {str(value)!r}; {_nearest(str(value), groups[name], LIST)}"
        chosen.append(override.input_line)
    known = _keys_with(*chosen) or _keys_with()
    for override in parsed:
        name = str(override.key_or_group)
        if name in groups or name in known or override.is_add() or name.startswith("hydra"):
            continue
        group = name.partition(".")[0]
        others = [choice for choice in groups.get(group, ()) if name in _keys_with(f"{group}={choice}")]
        if others:
            return f"{name} is a setting of {group}={' or '.join(others)}, which was not chosen; give that too."
        return f"there is no setting called {name!r}; {_nearest(name, [*known, *groups], SETTINGS)}"
    return None


LIST = "'pyro-tvae list' shows them all"
SETTINGS = "'pyro-tvae train --cfg job' shows them all"


def _keys_with(*overrides: str) -> list[str]:
    try:
        return keys(hydra_compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException, ValueError, TypeError):
        return []


def _nearest(name: str, names: Sequence[str] | dict[str, str], where: str) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    tail = [full for full in names if full.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    close = list(dict.fromkeys([*tail, *close]))[:3]
    if close:
        return f"did you mean {' or '.join(close)}? ({where}.)"
    return f"expected one of {', '.join(list(names)[:12])} ({where})."


def keys(node: Any, prefix: str = "") -> list[str]:
    """Every setting of a configuration by its dotted name."""
    if not isinstance(node, DictConfig):
        return []
    names = []
    for key in map(str, node):
        if key.startswith("_"):
            continue
        names.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(node, key):
            names += keys(node[key], f"{prefix}{key}.")
    return names


def make(node: Any) -> Any:
    """Build the object that a node of the configuration describes; null makes None."""
    from hydra.utils import instantiate

    return instantiate(node, _convert_="object")


# Where and how a run computes: what may differ when it goes on, since it does not change what is computed.
ELSEWHERE = ("fit.accelerator", "fit.devices", "fit.strategy", "fit.progress", "logger")


def _parsed(overrides: Sequence[str]) -> list[Any]:
    return OverridesParser.create().parse_overrides(list(overrides))
