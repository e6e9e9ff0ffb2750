"""Hydra's entry: a job under Hydra, with run folders and sweeps, or the unfinished run that the same command began."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from ..config.composition import CONF, ELSEWHERE, _mistake, _parsed, compose
from ..config.errors import ConfigurationError

__all__ = ["run_with_hydra"]


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
    from ..runs.unfinished import unfinished
    from .allowlist import trust_targets

    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        folder = hydra_compose("config", overrides=list(overrides), return_hydra_config=True).hydra.run.dir
    begun = unfinished(config, Path(folder).absolute(), beside="hydra.run.dir" not in given)
    if begun is not None:
        trust_targets(config)  # it names what was typed
    return begun
