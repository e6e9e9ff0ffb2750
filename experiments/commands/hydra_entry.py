"""Hydra's entry: a run under Hydra, with its folder and sweeps, or the unfinished one that the same command began."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ..config.allowlist import Allowlist
from ..config.composition import CONF, ELSEWHERE, check_names, compose, parsed, quoted
from ..config.errors import ConfigurationError, plain_errors
from ..config.former_names import announced
from ..runs.run import Run, claimed, unfinished

__all__ = ["run_with_hydra"]

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # as Lightning reads them, in this order


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
        _under_hydra(overrides, allow)
        return
    # Hydra prints a mistake as a page; composing first answers it in a sentence.
    config = compose(arguments.overrides)
    given = [str(override.key_or_group) for override in parsed(arguments.overrides)]
    if arguments.cfg or arguments.info or arguments.hydra_help or arguments.shell_completion:
        _under_hydra(overrides, allow)
    elif config.resume is not None:
        free = ("resume", "hydra", *ELSEWHERE)
        others = [name for name in given if not any(_touches([name], one) for one in free)]
        if others:
            raise ConfigurationError(
                f"resume goes on with the configuration that the run stored, so {others[0]} cannot be given beside it; "
                f"leave it out (only {', '.join(ELSEWHERE)} may differ), or train a new run."
            )
        _go_on(Run(Path(config.resume)), config, given, allow)
    else:
        _begin(arguments.overrides, overrides, config, given, allow)


def _under_hydra(overrides: Sequence[str], allow: Allowlist) -> None:
    """One run, or several, in folders that Hydra makes where they are not made yet."""
    GlobalHydra.instance().clear()
    typed = sys.argv

    def job(config: DictConfig) -> float | None:
        from .train import train_run  # its imports take seconds, for which a mistyped command does not wait

        sys.argv = typed  # Lightning starts further processes by the same command
        with plain_errors():
            return train_run(config, Path(HydraConfig.get().runtime.output_dir), allow)

    sys.argv = ["pyro-tvae train", *overrides]
    hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name="config")(job)()


def _begin(
    settings: Sequence[str], overrides: Sequence[str], config: DictConfig, given: Sequence[str], allow: Allowlist
) -> None:
    """A new run in a folder of its own, or the unfinished one that the same command began."""
    folder, automatic = Path(compose(settings, hydra=True).hydra.run.dir).absolute(), "hydra.run.dir" not in given
    ranks = [os.environ[name] for name in RANKS if name in os.environ]
    if ranks and ranks[0] != "0":  # the first of several processes writes, and tells the others where
        with TemporaryDirectory() as nowhere:
            place = [f"hydra.run.dir={quoted(nowhere)}"] if automatic else []
            _under_hydra(_with(overrides, settings, [*place, "hydra.output_subdir=null"]), allow)
        return
    if not ranks:  # several processes have to agree
        with unfinished(config, folder, beside=automatic) as begun:
            if begun is not None:
                print(
                    f"{begun}: this command was interrupted before, and goes on; another name=… starts anew", flush=True
                )
                sys.argv = [
                    *sys.argv,
                    f"hydra.run.dir={quoted(begun)}",
                ]  # for the processes that Lightning starts by it
                _go_on(begun, config, given, allow.typed(config))  # the stored one names what was typed
                return
    with claimed(folder, automatic=automatic) as run:
        _under_hydra(_with(overrides, settings, [f"hydra.run.dir={quoted(run)}"]), allow)


def _with(overrides: Sequence[str], settings: Sequence[str], others: Sequence[str]) -> list[str]:
    """Overrides with others after the last of them, since Hydra takes them in one row between its options."""
    at = max((place for place, word in enumerate(overrides) if word in settings), default=len(overrides) - 1) + 1
    return [*overrides[:at], *others, *overrides[at:]]


def _go_on(run: Run, config: DictConfig, given: Sequence[str], allow: Allowlist) -> None:
    from .train import resume_run

    changes = {name: OmegaConf.select(config, name) for name in ELSEWHERE if _touches(given, name)}
    resume_run(run.path, changes, allow)


def _touches(given: Sequence[str], name: str) -> bool:
    """Whether one of the names that were given is this one, or lies within it."""
    return any(one == name or one.startswith((f"{name}.", f"{name}/")) for one in given)
