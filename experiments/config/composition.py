"""Composition: a configuration from its groups and overrides, with mistakes answered in one sentence."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pyro_tvae.wording import in_words

from ..interruption import override
from .errors import ConfigurationError, first_cause, stumbled
from .former_names import current_overrides
from .hydra_versions import BEHAVIOUR, instantiate, register

__all__ = [
    "CONF",
    "ELSEWHERE",
    "FILES",
    "MATRIX",
    "PLACES",
    "check_names",
    "compose",
    "data_settings",
    "fitting_overrides",
    "flat",
    "keys",
    "located",
    "make",
    "matched",
    "options",
    "parsed",
    "places_apart",
]

CONF = "pyro_tvae.experiments.conf"
# Where and how a run computes: what may differ when it goes on, since it does not change what is computed.
ELSEWHERE = ("fit.accelerator", "fit.devices", "fit.strategy", "fit.progress", "data.num_workers", "logger")

# Where the data lie: a run goes on with its data wherever they lie now, see the fingerprints of its data.json.
PLACES = ("data.source.path", "data.source.root")
# So with the file of a matrix, whose fingerprint is there too. The value may be nested lists as well.
MATRIX = "topography.w"
FILES = (*PLACES, MATRIX)
PARTED = ("data.source", "optimizer.optimizer", "optimizer.schedule")
SECTIONS = ("data", "model", "optimizer", "fit", "baseline", "evaluation", *PARTED)


# What arithmetic and choice the files need.
register("boundary", lambda closes, other: "circular" if closes else other, replace=True)
register(
    "orbit",
    lambda boundary, n_frames, n_positions: n_positions if boundary == "circular" else 2 * n_frames - 1,
    replace=True,
)


def located(config: DictConfig, home: Path = Path()) -> DictConfig:
    """A copy whose paths are absolute, so that it means the same files wherever a later command is given.

    Args:
        config: of a run.
        home: the folder that relative paths start from; by default the working one.
    """
    config = config.copy()
    for name in FILES:
        value = OmegaConf.select(config, name)
        if isinstance(value, str | Path):
            OmegaConf.update(config, name, str((home / Path(value).expanduser()).absolute()), merge=False)
    return config


def places_apart(overrides: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Overrides that compose, and where the files of a resumed run lie, by setting, whatever kind of data it has.

    Raises:
        ConfigurationError: a place cannot be read.

    Example:
        >>> places_apart(["resume=RUN", "data.source.path=FILE"])
        (['resume=RUN'], {'data.source.path': 'FILE'})
    """
    resumes = any(text.startswith("resume=") for text in overrides)
    places = [text for text in overrides if resumes and text.startswith(tuple(f"{name}=" for name in FILES))]
    return [text for text in overrides if text not in places], dict(_given(places, FILES, "place of a file"))


def data_settings(overrides: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """(name, value) of overrides of settings of the data, in Hydra's grammar.

    Raises:
        ConfigurationError: one of them is something else.

    Example:
        >>> data_settings(["data.source.path=images.npy", "data.n_test=12"])
        (('data.source.path', 'images.npy'), ('data.n_test', 12))
    """
    return _given(overrides, ("data.",), "setting of the data")


def _given(overrides: Sequence[str], begins: tuple[str, ...], what: str) -> tuple[tuple[str, Any], ...]:
    try:
        read = parsed(overrides)
    except OverrideParseException as error:
        raise ConfigurationError(_explain(error, overrides)) from None
    for text, one in zip(overrides, read, strict=True):
        plain = not (one.is_add() or one.is_delete() or one.is_sweep_override())
        if not (plain and str(one.key_or_group).startswith(begins)):
            raise ConfigurationError(
                f"{text!r} is no {what}; expected data.SETTING=VALUE, such as data.source.path=FILE."
            )
    return tuple((str(one.key_or_group), one.value()) for one in read)


def options() -> dict[str, dict[str, str]]:
    """Every group's options with the comment that introduces them: ``{group: {option: sentence}}``."""
    groups: dict[str, dict[str, str]] = {}
    for folder in sorted(files(CONF).iterdir(), key=lambda entry: entry.name):
        if folder.is_dir() and not folder.name.startswith("_"):
            entries = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda entry: entry.name)
            groups[folder.name] = {
                entry.name.removesuffix(".yaml"): _comment(entry.read_text(encoding="utf-8")) for entry in entries
            }
    return groups


def _comment(text: str) -> str:
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return lines[0] if lines else ""


def compose(overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """The configuration of a run.

    Args:
        overrides: in Hydra's grammar, such as ``topography=stationary`` or ``fit.max_epochs=5``.
        with_hydra: with Hydra's own settings, which name the run's folder.

    Raises:
        ConfigurationError: an override names nothing that exists, with the nearest names that do.
    """
    overrides = current_overrides(overrides)
    with _initialized():
        try:
            config = hydra_compose("config", overrides=overrides, return_hydra_config=with_hydra)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            raise ConfigurationError(_explain(error, overrides)) from None
    for name in _default_groups():
        if name not in config:
            raise ConfigurationError(f"{name} is left empty; expected one of {', '.join(options()[name])} ({LIST}).")
    for name in SECTIONS:
        value = OmegaConf.select(config, name, default=None)
        if not isinstance(value, DictConfig) and (value is not None or "." not in name):  # a part of yours may lack it
            raise ConfigurationError(
                f"{name} is {value!r}, and its settings are missing; give them one by one, {name}.SETTING=VALUE "
                f"({SETTINGS})."
            )
    return config


@contextmanager
def _initialized() -> Iterator[None]:
    """Hydra, ready to compose; that of a sweep, whose job composes something, is there again afterwards."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONF, **BEHAVIOUR):
            yield
    finally:
        GlobalHydra.instance().hydra = before


@functools.cache
def _default_groups() -> tuple[str, ...]:
    """The groups of which every configuration has one option."""
    said = yaml.safe_load((files(CONF) / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    named = (item for entry in said if isinstance(entry, dict) for item in entry.items())
    return tuple(name for name, option in named if option not in (None, "none") and name in options())


def check_names(overrides: Sequence[str]) -> None:
    """Raise ConfigurationError at a mistyped name where several runs are asked for, whose values one cannot compose."""
    compose([override.input_line for override in parsed(overrides) if not override.is_sweep_override()])
    with _initialized():
        mistake = _mistake(overrides)
    if mistake:
        raise ConfigurationError(mistake)


def fitting_overrides(recipe: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that set something which the configuration of a recipe has, or that add to it.

    Raises:
        ConfigurationError: one of them is no override at all, or the recipe is none.
    """
    groups = options()
    try:
        read = parsed(current_overrides(overrides))
    except OverrideParseException as error:
        raise ConfigurationError(_explain(error, overrides)) from None
    chosen = [one for one in read if str(one.key_or_group).partition("/")[0] in groups]  # data/motion is of data
    config = compose([*recipe, *(one.input_line for one in chosen)])
    return [
        text
        for text, one in zip(overrides, read, strict=True)
        if one in chosen or one.is_add() or _holds(config, str(one.key_or_group))
    ]


def _holds(node: Any, name: str) -> bool:
    """Whether a configuration has a setting, such as ``network._target_``, whatever it is set to."""
    for key in name.split("."):
        if not isinstance(node, DictConfig) or key not in node.keys():  # noqa: SIM118  # "in" resolves what it is set to
            return False
        node = None if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key) else node[key]
    return True


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    return " ".join((_mistake(overrides) or str(error)).split())


def _mistake(overrides: Sequence[str]) -> str | None:
    """What is mistyped among overrides, in a sentence. Hydra has to be initialised."""
    try:
        read = parsed(overrides)
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
    groups = _groups(read)
    chosen = [one.input_line for one in _searchpaths(read)]
    for one in read:
        name, value = str(one.key_or_group), one.value()
        if name not in groups or one.is_sweep_override():
            continue
        if value is None:
            plain = "; a model without one is experiment=plain_vae" if name in ("prior", "topography") else ""
            return f"{name} is null; expected one of {', '.join(groups[name])} ({LIST}){plain}."
        if str(value) not in groups[name]:
            return f"there is no {name} called {str(value)!r}; {_nearest(str(value), groups[name], LIST)}"
        chosen.append(one.input_line)
    settings = _keys_with(*chosen) or _keys_with()
    for one in read:
        name = str(one.key_or_group)
        if name in groups or name in settings or one.is_add() or name.startswith("hydra"):
            continue
        owner, _, own = name.rpartition(".")
        if own.startswith("_") and owner in settings:  # such as topography._target_, which is no setting's name
            continue
        group = name.partition(".")[0]
        others = [choice for choice in groups.get(group, ()) if name in _keys_with(f"{group}={choice}")]
        if others:
            return f"{name} is a setting of {group}={' or '.join(others)}, which was not chosen; give that too."
        return f"there is no setting called {name!r}; {_nearest(name, [*settings, *groups], SETTINGS)}"
    return None


def _groups(read: Sequence[Any]) -> dict[str, dict[str, str]]:
    """Every group's options with those that lie in folders of a user's, which overrides name."""
    folders = [Path(str(place).removeprefix("file://")) for one in _searchpaths(read) for place in one.value() or ()]
    return {
        name: entries | {file.stem: "" for folder in folders for file in sorted((folder / name).glob("*.yaml"))}
        for name, entries in options().items()
    }


def _searchpaths(read: Sequence[Any]) -> list[Any]:
    return [one for one in read if str(one.key_or_group) == SEARCHPATH and not one.is_sweep_override()]


def matched(overrides: Sequence[str]) -> list[str]:
    """Overrides with the options that patterns match, of which Hydra sees none in folders of a user's.

    Raises:
        ConfigurationError: one matches nothing, and would run nothing.

    Example:
        >>> matched(["topography=glob(*roll)", "seed=0,1"])
        ['topography=capsule_roll', 'seed=0,1']
    """
    read = parsed(overrides)
    groups, found = _groups(read), [*overrides]
    for place, one in enumerate(read):
        name, value = str(one.key_or_group), one.value()
        if isinstance(value, Glob) and name in groups:
            options_found = value.filter(sorted(groups[name]))
            if not options_found:
                raise ConfigurationError(
                    f"{overrides[place]} matches no {name}; expected some of {', '.join(groups[name])} ({LIST})."
                )
            values = ",".join(override("", option).removeprefix("=") for option in options_found)
            found[place] = f"{overrides[place].partition('=')[0]}={values}"
    return found


SEARCHPATH = "hydra.searchpath"
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
        if not (OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key)):  # to what may be missing
            names += keys(node[key], f"{prefix}{key}.")
    return names


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration as plain data, a mapping, each with its dotted name."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def make(node: Any) -> Any:
    """Build the object that a node of the configuration describes; null makes None.

    Raises:
        ConfigurationError: what is to be built stumbles over a setting, with these settings.
        InstantiationException: it refuses one in words of its own.
    """
    try:
        return instantiate(node)
    except InstantiationException as error:
        cause, (_, said, place) = first_cause(error), str(error).rpartition("full_key: ")
        if not stumbled(cause):
            raise
        of = OmegaConf.select(node._get_root(), place) if said else node
        given = [
            f"{name}={of[name]!r}" for name in of if not (name.startswith("_") or isinstance(of[name], DictConfig))
        ]
        name = place if said else str(of["_target_"]).rpartition(".")[2]
        what = f"{name} cannot be made from {', '.join(given) or 'nothing'}"
        raise ConfigurationError(f"{what} ({in_words(cause)}); look at these settings.") from error


def parsed(overrides: Sequence[str]) -> list[Any]:
    """Hydra's override objects."""
    return OverridesParser.create().parse_overrides(list(overrides))
