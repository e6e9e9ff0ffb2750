"""Settings: what a number was made from, flat, without what only says where and how it was computed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ..config.composition import ELSEWHERE, flat
from ..runs.files import finite

__all__ = ["Settings", "check_settings", "portable", "settings_of", "shared_settings"]

Settings = Mapping[str, object]

# Where and how a run computes, and what it is called; none of it changes what is computed.
LOCAL = (*ELSEWHERE, "data.source.root", "data.source.download", "name", "seed", "resume")
FILES = ("data.source.path", "topography.w")  # which file it is matters; the folder it lies in does not


def settings_of(config: DictConfig) -> Settings:
    """All settings by their dotted names, without those that only say where and how a run computes.

    Example:
        >>> settings_of(OmegaConf.create({"seed": 3, "data": {"source": {"root": "/mine", "path": "/mine/x.npz"}}}))
        {'data.source.path': 'x.npz'}
    """
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    own = {name: value for name, value in flat(container) if name not in LOCAL and not name.startswith("hydra.")}
    for name in FILES:
        own |= {name: _file(own[name])} if name in own else {}
    return dict(sorted(json.loads(json.dumps(finite(own))).items()))


def shared_settings(settings: Iterable[Settings]) -> Settings:
    """What several settings agree on.

    Example:
        >>> shared_settings([{"a": 1, "b": 2}, {"a": 1, "b": 3}])
        {'a': 1}
    """
    first, *others = [*settings] or [{}]
    return {key: value for key, value in first.items() if all(key in own and own[key] == value for own in others)}


def check_settings(where: Path, made: Settings, asked: Settings, remedy: str, without: Settings) -> None:
    """Refuse numbers that were made from other settings.

    Args:
        where: what was made.
        made, asked: their settings, and those that are wanted.
        remedy: ends the sentence.
        without: those that would be wanted without overrides: what ``made`` does not say of them, since they came
            later, is no difference.

    Raises:
        ValueError: a setting differs, or one side alone has it.
    """
    nothing = "nothing of the kind"
    untrained = made.get("baseline.enabled") is asked.get("baseline.enabled") is False
    for name in sorted(made.keys() | asked.keys()):
        if untrained and name.startswith("baseline."):
            continue
        was, now = made.get(name, nothing), asked.get(name, nothing)
        was = _file(was) if name in FILES else was  # older records hold the path of a matrix
        later = name not in made and name in without and without[name] == now
        if was != now and not later:
            raise ValueError(f"{where} was made with {name}={was}, and {now} is asked for; {remedy}")


def _file(value: object) -> object:
    return Path(value).name if isinstance(value, str | Path) else value


def portable(overrides: Sequence[str]) -> list[str]:
    """Overrides without the paths of one machine.

    Example:
        >>> portable(["data.source.root=/mine", "data.source.path=/mine/x.npz", "fit.beta=2"])
        ['data.source.path=x.npz', 'fit.beta=2']
    """
    without = []
    for override in overrides:
        name, _, value = override.partition("=")
        if name.lstrip("+~") in LOCAL:
            continue
        without.append(f"{name}={Path(value).name}" if name.lstrip("+~") in FILES and value else override)
    return without
