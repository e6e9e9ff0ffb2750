"""Hydra's entry: a run under Hydra, with its folder and sweeps, or the unfinished one that the same command began."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ..config.allowlist import Allowlist
from ..config.composition import CONF, ELSEWHERE, check_names, compose, parsed
from ..config.errors import ConfigurationError, plain_errors
from ..config.former_names import announced
from ..runs.run import Run, unfinished

__all__ = ["run_with_hydra"]


def run_with_hydra(overrides: Sequence[str], imports: Sequence[str] = ()) -> None:
    """Train under Hydra, with its run folders, ``--multirun``, launchers, and sweepers that go by what a run returns.

    With ``resume=RUN`` among the overrides that run goes on instead, and Hydra makes no folder. So does one of exactly
    this configuration that was interrupted.

    Args:
        overrides: in Hydra's grammar, and its options.
        imports: modules of the user's that a stored configuration may call.

    Raises:
        ConfigurationError: a mistyped override, or one that a resumed run cannot follow.
        ValueError: there is no such module.
    """
    allow = Allowlist.importing(imports)
    overrides = announced(overrides)
    arguments = get_args_parser().parse_args(overrides)
    if arguments.multirun:
        check_names(arguments.overrides)
    elif _resumed(arguments, allow):
        return
    GlobalHydra.instance().clear()
    typed = sys.argv

    def job(config: DictConfig) -> float | None:
        from .train import train_run  # its imports take seconds, for which a mistyped command does not wait

        sys.argv = typed  # Lightning starts further processes by the same command
        with plain_errors():
            return train_run(config, Path(HydraConfig.get().runtime.output_dir), allow)

    sys.argv = ["pyro-tvae train", *overrides]
    hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name="config")(job)()


def _resumed(arguments: Namespace, allow: Allowlist) -> bool:
    """Go on with the run that is named, or that the same command began and did not end; whether there is one."""
    # Hydra prints a mistake as a page; composing first answers it in a sentence.
    config = compose(arguments.overrides)
    if arguments.cfg or arguments.info:
        return False
    given = [str(override.key_or_group) for override in parsed(arguments.overrides)]
    if config.resume is None:
        if not {"LOCAL_RANK", "SLURM_PROCID"}.isdisjoint(os.environ):
            return False  # one of several processes, which have to agree
        folder = Path(compose(arguments.overrides, hydra=True).hydra.run.dir).absolute()
        begun = unfinished(config, folder, beside="hydra.run.dir" not in given)
        if begun is None:
            return False
        print(f"{begun}: this command was interrupted before, and goes on; another name=… starts anew", flush=True)
        sys.argv = [*sys.argv, f"hydra.run.dir={begun}"]  # for the further processes that Lightning starts by it
        allow = allow.typed(config)  # the stored one names what was typed
    else:
        begun = Run(Path(config.resume))
        free = ("resume", "hydra", *ELSEWHERE)
        others = [name for name in given if not any(_touches([name], one) for one in free)]
        if others:
            raise ConfigurationError(
                f"resume goes on with the configuration that the run stored, so {others[0]} cannot be given beside it; "
                f"leave it out (only {', '.join(ELSEWHERE)} may differ), or train a new run."
            )
    from .train import resume_run

    changes = {name: OmegaConf.select(config, name) for name in ELSEWHERE if _touches(given, name)}
    resume_run(begun.path, changes, allow)
    return True


def _touches(given: Sequence[str], name: str) -> bool:
    """Whether one of the names that were given is this one, or lies within it."""
    return any(one == name or one.startswith((f"{name}.", f"{name}/")) for one in given)
