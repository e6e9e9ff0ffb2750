"""Configuration: composed by Hydra from its groups, turned into parts, with mistakes answered in one sentence."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from .interruption import NOTHING, goes_on_with

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from pyro_tvae import TVAE, Guide
    from pyro_tvae.inference import History

    from .datasets import SequenceDataModule

__all__ = [
    "ELSEWHERE",
    "ConfigurationError",
    "Parts",
    "build",
    "compose",
    "fit_parts",
    "fitting_overrides",
    "keys",
    "make",
    "options",
    "plain_errors",
    "run_with_hydra",
]

CONF = "pyro_tvae.experiments.conf"


class ConfigurationError(ValueError):
    """A configuration that cannot be, explained in one sentence."""


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


@dataclass(frozen=True)
class Parts:
    """What a configuration describes, built."""

    model: TVAE
    guide: Guide
    data: SequenceDataModule


def make(node: Any) -> Any:
    """Build the object that a node of the configuration describes; null makes None."""
    from hydra.utils import instantiate

    return instantiate(node, _convert_="object")


def build(config: DictConfig, data: SequenceDataModule | None = None) -> Parts:
    """Build data, model and guide, the weights drawn from the configuration's seed."""
    from lightning.pytorch import seed_everything

    from pyro_tvae import TVAE

    data = data if data is not None else make(config.data)
    assert data is not None
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise ConfigurationError(f"seed is {config.seed!r}; expected a whole number from 0 to 4294967295.")
    seed_everything(config.seed, workers=True, verbose=False)
    model = TVAE(
        data.frame_shape,
        data.n_frames,
        config.model.n_capsules,
        config.model.capsule_dim,
        make(config.topography),
        prior=make(config.prior),
        latent=make(config.latent),
        likelihood=make(config.likelihood),
        network=make(config.network),
        mu=config.model.mu,
        eps=config.model.eps,
        centred=config.model.centred,
    )
    return Parts(model, make(config.guide)(model), data)


def fit_parts(
    config: DictConfig, parts: Parts, directory: Path | None = None, callbacks: Sequence[Callback] = ()
) -> History:
    """Fit as a configuration says, from the last checkpoint in the directory where there is one."""
    from pyro_tvae.inference import fit

    from .loggers import loggers

    last = directory / "checkpoints" / "last.ckpt" if directory is not None else None
    options = OmegaConf.to_container(config.fit, resolve=True)
    assert isinstance(options, dict)
    return fit(
        parts.model,
        parts.guide,
        parts.data,
        optimizer=make(config.optimizer.optimizer),
        schedule=make(config.optimizer.schedule),
        objective=make(config.objective),
        directory=directory,
        resume=last if last is not None and last.is_file() else None,
        seed=config.seed,
        logger=loggers(config, directory) or None,
        callbacks=callbacks,
        **{str(name): value for name, value in options.items()},
    )


PLAIN = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    FloatingPointError,  # a fit that is no longer finite
    InstantiationException,
    OmegaConfBaseException,
)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what a user can cause into one sentence on standard error and exit status 2.

    HYDRA_FULL_ERROR=1 in the environment shows the traceback instead.
    """
    try:
        with goes_on_with(NOTHING):
            yield
    except PLAIN as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, MissingMandatoryValue):
            name = str(cause.full_key)
            cause = ConfigurationError(f"{name} has no default and was not given; add {name}=… to the command.")
        text = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
        print(f"pyro-tvae: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None


# Where and how a run computes: what may differ when it goes on, since it does not change what is computed.
ELSEWHERE = ("fit.accelerator", "fit.devices", "fit.strategy", "fit.progress", "logger")


def run_with_hydra(
    job: Callable[[DictConfig], float | None], resume: Callable[[str, dict[str, Any]], None], overrides: Sequence[str]
) -> None:
    """Run a job under Hydra, with its run folders, ``--multirun``, launchers, and sweepers that go by what it returns.

    With ``resume=RUN`` among the overrides, ``resume`` is called with the folder and further settings instead, and
    Hydra makes no folder. So it is where a run of exactly this configuration was interrupted.

    Raises:
        ConfigurationError: a mistyped override, or one that a resumed run cannot follow.
    """
    import hydra
    from hydra._internal.utils import get_args_parser

    arguments = get_args_parser().parse_args(list(overrides))
    if not arguments.multirun:
        # Hydra prints a mistake as a page; composing first answers it in a sentence.
        config = compose(arguments.overrides)
        given = [str(override.key_or_group) for override in _parsed(arguments.overrides)]
        changes = {name: OmegaConf.select(config, name) for name in ELSEWHERE if _touches(given, name)}
        shown = arguments.cfg or arguments.info
        if config.resume is None and not shown and (begun := _begun(config, arguments.overrides, given)) is not None:
            print(f"{begun}: this command was interrupted before, and goes on; another name=… starts anew", flush=True)
            sys.argv = [*sys.argv, f"hydra.run.dir={begun}"]  # for the further processes that Lightning starts by it
            resume(str(begun), changes)
            return
        if config.resume is not None and not shown:
            free = ("resume", "hydra", *ELSEWHERE)
            others = [name for name in given if not any(_touches([name], one) for one in free)]
            if others:
                raise ConfigurationError(
                    f"resume goes on with the configuration that the run stored, so {others[0]} cannot be given "
                    f"beside it; leave it out (only {', '.join(ELSEWHERE)} may differ), or train a new run."
                )
            resume(str(config.resume), changes)
            return
        GlobalHydra.instance().clear()
    else:
        _check_names(arguments.overrides)
    typed = sys.argv

    def with_the_typed_command(config: DictConfig) -> float | None:
        sys.argv = typed  # Lightning starts further processes by the same command
        return job(config)

    sys.argv = ["pyro-tvae train", *overrides]
    hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name="config")(with_the_typed_command)()


def _touches(given: Sequence[str], name: str) -> bool:
    """Whether one of the names that were given is this one, or lies within it."""
    return any(one == name or one.startswith((f"{name}.", f"{name}/")) for one in given)


def _check_names(overrides: Sequence[str]) -> None:
    """Answer a mistyped name in a sentence where several runs are asked for, whose values one cannot compose."""
    compose([override.input_line for override in _parsed(overrides) if not override.is_sweep_override()])
    with initialize_config_module(CONF, version_base="1.3"):
        mistake = _mistake(overrides)
    if mistake:
        raise ConfigurationError(mistake)


def _begun(config: DictConfig, overrides: Sequence[str], given: Sequence[str]) -> Path | None:
    """The run that the same command began and did not end."""
    if not {"LOCAL_RANK", "SLURM_PROCID"}.isdisjoint(os.environ):
        return None  # one of several processes, which have to agree
    from .trust import trust_targets
    from .unfinished import unfinished

    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        folder = hydra_compose("config", overrides=list(overrides), return_hydra_config=True).hydra.run.dir
    begun = unfinished(config, Path(folder).absolute(), beside="hydra.run.dir" not in given)
    if begun is not None:
        trust_targets(config)  # it names what was typed
    return begun


def _parsed(overrides: Sequence[str]) -> list[Any]:
    return OverridesParser.create().parse_overrides(list(overrides))
