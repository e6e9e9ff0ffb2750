"""Hydra's entry: a run or a sweep under Hydra, with its folder, or the unfinished one that the same command began."""

from __future__ import annotations

import math
import os
import random
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pyro_tvae.files import FolderMoved, check_stays, staying

from ..config.allowlist import Allowlist
from ..config.composition import (
    CONF,
    ELSEWHERE,
    FILES,
    MATRIX,
    check_names,
    compose,
    located,
    matched,
    parsed,
    places_apart,
)
from ..config.errors import ConfigurationError, failing, plain_errors
from ..config.former_names import announced
from ..config.hydra_versions import BEHAVIOUR
from ..config.loggers import check_stored_loggers
from ..config.processes import place_among
from ..interruption import end_with_parent, goes_on_with, interruption_of, leave_to_parent, override, typed
from ..outlets import outlasting
from ..runs.data import files_of, made_fingerprints
from ..runs.files import write_text
from ..runs.names import CONFIG, DATA, HYDRA, LOCK
from ..runs.run import Run, claimed, runs_in, unfinished
from ..runs.sweeps import Failure, begun, check_recipes, recipes_in

__all__ = ["run_with_hydra"]

SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # the one that does not go by what jobs return
FAILURES = "hydra.sweeper.max_failure_rate"  # where a sweeper has it: the share of failed jobs with which it goes on


def run_with_hydra(overrides: Sequence[str], imports: Sequence[str] = ()) -> None:
    """Train under Hydra, with its run folders, ``--multirun``, launchers, and sweepers that go by what a run returns.

    With ``resume=RUN`` among the overrides that run goes on instead, and Hydra makes no folder. So does one of exactly
    this configuration that was interrupted, and a sweep of exactly these overrides that was, or of which jobs failed.

    Args:
        overrides: in Hydra's grammar, and its options.
        imports: modules of the user's that a stored configuration may call.

    Raises:
        ConfigurationError: a mistyped override, or one that a resumed run cannot follow.
        ValueError: there is no such module.
        OSError: the folder given for a sweep holds another one, or a process is at work in it.
        SystemExit: jobs of a sweep failed, which are listed; the others were done.
    """
    allow = Allowlist.importing(imports)
    overrides = _with_folder(announced(overrides))
    arguments = get_args_parser().parse_intermixed_args(overrides)
    words = [word for word in overrides if word not in arguments.overrides]
    sweeps = arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides
    if sweeps:
        check_names(arguments.overrides)
        arguments.overrides = matched(arguments.overrides)
    overrides = [*words, *arguments.overrides]  # Hydra takes overrides in one row, after its options
    if sweeps:
        common = [one.input_line for one in parsed(arguments.overrides) if not one.is_sweep_override()]
        if not (arguments.cfg or arguments.info or place_among(compose(common))[1] > 1):
            _swept(overrides, arguments, allow)
            return
    elif not (arguments.hydra_help or arguments.shell_completion):
        settings, places = places_apart(arguments.overrides)
        # Hydra prints a mistake as a page; composing first answers it in a sentence.
        config = compose(settings)
        if not (arguments.cfg or arguments.info):
            _one(overrides, settings, config, allow, places)
            return
    _under_hydra(overrides, allow)


def _with_folder(words: Sequence[str]) -> list[str]:
    """Words with ``--config-dir`` as an override, as which every composition has it, that of an interrupted run too.

    Raises:
        ConfigurationError: it is no folder; or another configuration than this project's was asked for.
    """
    arguments = get_args_parser().parse_intermixed_args(words)
    others = ("config_name", "config_path", "experimental_rerun")
    if other := next((name for name in others if getattr(arguments, name) is not None), None):
        raise ConfigurationError(
            f"--{other.replace('_', '-')} asks for another configuration than this command's, of which no run could go "
            "on; write your settings as DIR/experiment/NAME.yaml, and give --config-dir DIR experiment=NAME."
        )
    if (folder := arguments.config_dir) is None:
        return [*words]
    if not Path(folder).is_dir():
        raise ConfigurationError(
            f"--config-dir is {folder}, which is no folder; expected one that holds option groups."
        )
    rest = iter(words)
    kept = []
    for word in rest:
        if word in ("--config-dir", "-cd"):
            next(rest)
        elif not word.startswith(("--config-dir=", "-cd=")):
            kept.append(word)
    place = override("", f"file://{folder}").removeprefix("=")
    return [*kept, f"hydra.searchpath=[{place}]"]


def _under_hydra(overrides: Sequence[str], allow: Allowlist) -> None:
    """A run, or a sweep of one of several processes, in the folder that Hydra names."""
    before = sys.argv

    def job(config: DictConfig) -> float | None:
        from .train import train_run  # its imports take seconds, for which a mistyped command does not wait

        sys.argv = before  # Lightning starts further processes by the same command
        if config.resume is not None:
            with plain_errors():
                return _named(config, allow)
        path = Path(HydraConfig.get().runtime.output_dir)
        with plain_errors():
            _check_no_ghost(path, path)
            return train_run(config, path, allow, _of_loggers(config, HydraConfig.get().overrides.task))

    _hydra(overrides, job)


def _hydra(overrides: Sequence[str], job: Callable[[DictConfig], float | None]) -> None:
    def at_home(config: DictConfig) -> float | None:
        # hydra.job.chdir=true has gone into the run's folder, where paths that were typed mean nothing.
        return job(located(config, Path(HydraConfig.get().runtime.cwd)))

    GlobalHydra.instance().clear()
    sys.argv = ["pyro-tvae train", *overrides]
    hydra.main(**BEHAVIOUR, config_path=f"pkg://{CONF}", config_name="config")(at_home)()


def _swept(overrides: Sequence[str], arguments: Namespace, allow: Allowlist) -> None:
    """All jobs of a sweep that are not done yet, in the folder where the same command began it."""
    again, before = typed(), sys.argv
    read = parsed(arguments.overrides)
    given = [str(one.key_or_group) for one in read]
    elsewhere = ("hydra/launcher", "hydra.launcher", "hydra.sweep.dir", *ELSEWHERE)
    own = [one.input_line for one in read if not _touches([str(one.key_or_group)], *elsewhere)]
    common = {str(one.key_or_group) for one in read if not one.is_sweep_override()}
    settings = compose([one.input_line for one in read if not one.is_sweep_override()], with_hydra=True).hydra
    directions = OmegaConf.select(settings, "sweeper.direction", default=None)
    if isinstance(directions, ListConfig) and len(directions) > 1:
        raise ConfigurationError(
            "hydra.sweeper.direction asks for several numbers of each run, which returns one, its measure; expected "
            "maximize or minimize."
        )
    jobs, subdir = _number_of_jobs(read, settings), settings.output_subdir
    subdir_of = f"hydra.sweep.subdir={_written(settings.sweep, 'subdir')}"
    jobs_of = [*(one for one in own if not one.startswith("hydra.run.")), subdir_of]
    if timed := next((one for one in jobs_of if "${now:" in one), None):
        raise ConfigurationError(
            f"{timed} names a time, by which no job would be found again where the sweep goes on; name the time in "
            "hydra.sweep.dir alone."
        )
    random.seed(0)  # by which shuffle(…) puts jobs in the same order where the sweep goes on

    def job(config: DictConfig) -> float | None:
        sys.argv = before
        try:
            # A launcher's processes know of neither yet.
            with outlasting(tells=False), staying(home, there):
                _check_no_ghost(Path(HydraConfig.get().runtime.output_dir), home)
                measure = _job(config, home, allow, common, subdir, recipes)
                check_stays(home)
                return measure
        except FolderMoved:
            raise SystemExit(2) from None  # after an error Hydra would begin the next job, in a folder made anew

    with begun(own, Path(settings.sweep.dir), _timed(settings.sweep)) as sweep:
        # A job may be in another working folder, its own by hydra.job.chdir=true.
        home, there = sweep.path.absolute(), os.stat(sweep.path)
        if sweep.record():
            print(f"{sweep}: this command was begun before, and goes on with what is missing", flush=True)
        recipes = sweep.record().get("recipes") or recipes_in(_searched(settings))
        sweep.forget_failures()
        sweep.write(own, recipes, finished=False)
        # All jobs lie in one folder, also where a name that is part of its path differs between them. Hydra would write
        # its files into a job's folder before anything can refuse it, over those of the run that is there.
        added = [override("hydra.sweep.dir", sweep.path), "hydra.output_subdir=null"]
        if FAILURES.rpartition(".")[2] in (settings.sweeper or {}) and FAILURES not in given:
            added.append(f"{FAILURES}=1.0")
        status: object = None
        with goes_on_with(
            lambda: f"what is done is in {sweep} ({sweep.progress(jobs)}); go on with: {again}", decides=True
        ):
            try:
                own_folder = [text for text in overrides if text.partition("=")[0] != "hydra.sweep.dir"]
                _hydra([*own_folder, *added], job)
            except SystemExit as error:
                if (asked := interruption_of(error)) is not None:
                    raise asked from None
                status = error.code  # of a sweeper that gave up
        check_stays(sweep.path)
        for told in sweep.other_codes():
            print(f"pyro-tvae: {told}", file=sys.stderr)
        failures = sweep.failures()
        sweep.write(own, recipes, finished=not failures and not status)
        if settings.sweeper._target_ != SWEEPER and not (failures or status):
            for run in sweep.begun():
                resume = replace(run, allow=allow).resume
                print(f"{run} was begun before, and not proposed again; go on with it by: {resume}", flush=True)
        if status:
            # As where a process of a launcher's is killed, whose error Hydra shows in a traceback.
            said = f"{sweep} ended early, with status {status} ({sweep.progress(jobs)})"
            if "n_jobs" in (settings.launcher or {}):
                said += (
                    "; where the system killed a process of its launcher, which then ends all, for want of memory, a "
                    "smaller hydra.launcher.n_jobs needs less"
                )
            print(f"pyro-tvae: the sweep in {said}; go on with: {again}", file=sys.stderr)
    if failures:
        lines = [f"  {one.number}  {' '.join(one.overrides)}: {one.sentence}" for one in failures]
        number = f"{len(failures)} jobs" if len(failures) > 1 else "1 job"
        print(
            "\n".join([f"pyro-tvae: {number} failed in {sweep}; the same command tries again: {again}", *lines]),
            file=sys.stderr,
        )
    if failures or status:
        raise SystemExit(2 if failures else status)


def _check_no_ghost(path: Path, home: Path) -> None:
    """Raise FolderMoved, and remove what Hydra has just made of a job's folder anew, where its home was renamed."""
    try:
        check_stays(path)
    except FolderMoved:
        # Unless somebody has begun another one by that name.
        if Run(path).names() <= {HYDRA} and not (home / LOCK).exists():
            shutil.rmtree(path / HYDRA, ignore_errors=True)
            for folder in (path, *path.parents):
                if folder.is_relative_to(home):
                    with suppress(OSError):
                        folder.rmdir()
        raise


def _number_of_jobs(read: Sequence[Any], settings: DictConfig) -> int | None:
    """How many a sweep has, by its overrides; None for sweepers that decide for themselves, and their settings."""
    swept = [one for one in read if one.is_sweep_override()]
    if settings.sweeper._target_ != SWEEPER or settings.sweeper.params or not all(map(_listed, swept)):
        return None
    return math.prod(sum(1 for _ in one.sweep_string_iterator()) for one in swept)


def _listed(one: Any) -> bool:
    """Whether an override lists its values; a pattern, glob(…), is one for Hydra to match."""
    return bool(one.is_discrete_sweep()) and not isinstance(one.value(), Glob)


def _job(
    config: DictConfig,
    home: Path,
    allow: Allowlist,
    common: Collection[str],
    subdir: str | None,
    recipes: Mapping[str, str],
) -> float | None:
    """One job of a sweep, unless it is done: its measure. A failure is written down, and does not stop the others.

    Args:
        config: of the job.
        home: the folder of the sweep.
        allow: what a stored configuration may call.
        common: the settings that all jobs were given, so that they tell nothing of this one.
        subdir: where Hydra's own files lie in a job's folder; None for nowhere.
        recipes: the files that jobs may be composed of, as they were when the sweep began.
    """
    leave_to_parent()
    settings = HydraConfig.get()
    path = Path(settings.runtime.output_dir)
    own = [text for text in settings.overrides.task if text.lstrip("+~").partition("=")[0] not in common]
    told: list[str] = []
    with failing(told.append):
        check_recipes(_composed_of(settings), _searched(settings, Path(settings.runtime.cwd)), recipes)
        return _trained(config, path, allow, subdir, home, proposed=settings.sweeper._target_ != SWEEPER)
    [said] = told
    failure = Failure(int(settings.job.num), tuple(own), said)
    failure.write(home)
    print(f"pyro-tvae: job {failure.number} failed: {said}", file=sys.stderr, flush=True)
    if settings.sweeper._target_ == SWEEPER:
        return math.nan  # it would stop at an error, after the batch
    raise HydraException(f"job {failure.number} failed: {said}")  # the sweeper's to count, without a traceback


def _searched(settings: Any, home: Path = Path()) -> list[Path]:
    """Folders of option groups: the user's, which Hydra's settings name from home on, and the package's, its first."""
    places = [place for place in map(str, settings.searchpath or ()) if not place.startswith(("pkg:", "structured:"))]
    return [*(home / place.removeprefix("file://") for place in places), Path(str(files(CONF)))]


def _composed_of(settings: Any) -> list[str]:
    """The files that a job is composed of, also those that its recipes name, by their names within option groups."""
    given = [*settings.overrides.task, *settings.overrides.hydra]
    loader = GlobalHydra.instance().config_loader()
    chosen = loader.compute_defaults_list(settings.job.config_name, given, RunMode.MULTIRUN).defaults
    return [f"{one.config_path}.yaml" for one in chosen]


def _trained(
    config: DictConfig,
    path: Path,
    allow: Allowlist,
    subdir: str | None,
    home: Path | None = None,
    *,
    proposed: bool = False,
) -> float | None:
    """The measure of a run that is begun, gone on with, or done.

    Args:
        config: of the job.
        path: of its folder.
        allow: what a stored configuration may call.
        subdir: where Hydra's own files lie in it; None for nowhere.
        home: the folder of the sweep; by default the one that the run's folder lies in.
        proposed: by a sweeper that counts from 0 again with other trials, as from its storage, or without a seed.
    """
    from .train import measured, resume_run, train_run  # their imports take seconds

    run = Run(path)
    if config.resume is not None:
        return _named(config, allow)
    taken = run.has(CONFIG)
    if not taken or (proposed and run.others_than(config)):
        if taken and (same := _proposed_before(config, path)) is not None:
            return _trained(config, same, allow, subdir, home)
        _check_alike(config, home or path.parent)
        with claimed(path, automatic=taken) as run:
            if subdir is not None:
                _write_settings(config, run.path / subdir)
            return train_run(config, run.path, allow)
    if others := run.others_than(config):
        # The command to go on with names where its data are now.
        run = Run(path, allow, tuple(run.places(config).items()))
        raise FileExistsError(
            f"{run} holds a run with other settings than this job has now ({others}), as where jobs share a "
            "hydra.sweep.subdir, a default has changed since or a sampler has no seed, and is left as it is; go on "
            f"with it by: {run.resume}; or begin a new sweep with the same command and another hydra.sweep.dir."
        )
    if run.ended(config):
        if run.has(DATA):
            with suppress(InstantiationException):  # data that are not there any more are no other ones
                run.check_data(config, made_fingerprints(located(config)))
        print(f"run: {run} is done", flush=True)
        return measured(run.history(), config.measure)
    changes = {name: OmegaConf.select(config, name) for name in ELSEWHERE}
    return measured(resume_run(path, {**changes, **(run.moved(config) or {})}, allow.typed(config)), config.measure)


def _named(config: DictConfig, allow: Allowlist) -> float | None:
    """The measure of the run that a job of a sweep names, gone on with."""
    from .train import measured, resume_run  # their imports take seconds

    given = [str(one.key_or_group) for one in parsed(HydraConfig.get().overrides.task)]
    _check_beside_resume(given, "measure", *ELSEWHERE, *FILES)
    changes = {name: OmegaConf.select(config, name) for name in (*ELSEWHERE, *FILES) if _touches(given, name)}
    return measured(resume_run(Path(config.resume), changes, allow), config.measure)


def _proposed_before(config: DictConfig, path: Path) -> Path | None:
    """The folder of a run of exactly these settings beside that of another trial, unless somebody is at work on it."""
    for run in map(Run, sorted(file.parent for file in path.parent.glob(f"*/{CONFIG}"))):
        with suppress(OSError, ValueError, OmegaConfBaseException):  # of others
            if run.is_of(config):
                with run.held():
                    return run.path
    return None


def _check_alike(config: DictConfig, home: Path) -> None:
    """Raise ValueError where a job that says the same of its data as another was begun with others, as a replaced file.

    Args:
        config: of the job.
        home: the folder of the sweep.
    """
    here, said = located(config), ("data", MATRIX)
    if not files_of(here):  # what code draws may be other data every time
        return
    for run in runs_in(home):
        with suppress(OSError, ValueError, OmegaConfBaseException):  # of others
            then = run.stored()
            if run.has(DATA) and all(OmegaConf.select(then, name) == OmegaConf.select(here, name) for name in said):
                break
    else:
        return
    with suppress(InstantiationException):  # which the job says better
        run.check_data(here, made_fingerprints(here))


def _write_settings(config: DictConfig, folder: Path) -> None:
    """What Hydra writes of a job: its settings, Hydra's own, and the overrides that it was given."""
    own = HydraConfig.get()
    for name, part in (("config", config), ("hydra", {"hydra": own}), ("overrides", own.overrides.task)):
        write_text(folder / f"{name}.yaml", OmegaConf.to_yaml(part))


def _one(
    overrides: Sequence[str], settings: Sequence[str], config: DictConfig, allow: Allowlist, places: Mapping[str, Any]
) -> None:
    """The run that is named, or that the same command began and did not end, gone on with; or a new one.

    Args:
        overrides: as they were given, with Hydra's options.
        settings: those among them that are no options.
        config: what they compose.
        allow: what a stored configuration may call.
        places: where the files of a run lie that is gone on with.
    """
    given = [str(one.key_or_group) for one in parsed(settings)]
    if os.environ.get("LOCAL_RANK", "0") != "0" and "RANK" not in os.environ:
        end_with_parent()  # started by Lightning's first process, for which it would wait half an hour
    if config.resume is not None:
        _check_beside_resume(given, *ELSEWHERE)
        changes = {name: OmegaConf.select(config, name) for name in ELSEWHERE if _touches(given, name)}
        _go_on(Run(Path(config.resume)), config, settings, allow, {**changes, **places})
        return
    of_hydra = compose(settings, with_hydra=True).hydra
    place = of_hydra.run
    if of_hydra.mode == RunMode.MULTIRUN:
        raise ConfigurationError(
            "hydra.mode is MULTIRUN in a file of yours, of which no record would be kept to go on by; leave it out "
            "there, and give --multirun."
        )
    folder, timed = Path(place.dir).absolute(), _timed(place)
    rank, several = place_among(config)
    if rank:  # the first of several processes writes, and tells the others where
        with TemporaryDirectory() as nowhere:
            own = [override("hydra.run.dir", nowhere)] if timed else []
            _under_hydra([*overrides, *own, "hydra.output_subdir=null"], allow)
        return
    if several == 1:  # others could not know which one goes on
        with unfinished(config, folder, timed) as run:
            if run is not None:
                print(
                    f"{run}: this command was interrupted before, and goes on; another name=… starts anew", flush=True
                )
                # For the further processes that Lightning starts by it.
                sys.argv = [*sys.argv, override("hydra.run.dir", run.path)]
                # As this command says, also by what it does not: Lightning starts further processes by its words.
                changes = {name: OmegaConf.select(config, name) for name in ELSEWHERE} | dict(run.given)
                # The stored one names what was typed.
                _go_on(run, config, settings, allow.typed(config), changes)
                return
    with claimed(folder, automatic=timed > 0) as run:
        _under_hydra([*overrides, override("hydra.run.dir", run.path)], allow)


def _timed(place: DictConfig) -> int:
    """How many of the last names in the path of a folder, as it is set, are others at another time; 0 of a fixed one.

    Example:
        >>> _timed(OmegaConf.create({"dir": "runs/${name}/${now:%Y-%m-%d}/${now:%H-%M-%S}"}))
        2
    """
    names = Path(_written(place, "dir")).parts
    return next((len(names) - number for number, name in enumerate(names) if "${now:" in name), 0)


def _written(node: DictConfig, name: str) -> str:
    """A setting as it is written, not as what it interpolates is now."""
    container: Any = OmegaConf.to_container(node)
    return str(container[name])


def _check_beside_resume(given: Sequence[str], *fitting: str) -> None:
    """Raise ConfigurationError where a setting was given that a run that is gone on with does not follow."""
    others = [name for name in given if not _touches([name], "resume", "hydra", *fitting)]
    if others:
        raise ConfigurationError(
            f"resume goes on with the configuration that the run stored, so {others[0]} cannot be given beside it; "
            f"leave it out (only {', '.join((*ELSEWHERE, *FILES))} may differ), or train a new run."
        )


def _of_loggers(config: DictConfig, settings: Sequence[str]) -> tuple[str, ...]:
    """What has to be said again where a run goes on: overrides of loggers that no stored configuration may start."""
    try:
        check_stored_loggers(config, Path())
    except ConfigurationError:
        return tuple(text for text in settings if _touches([text.lstrip("+~").partition("=")[0]], "logger"))
    return ()


def _go_on(run: Run, config: DictConfig, settings: Sequence[str], allow: Allowlist, changes: Mapping[str, Any]) -> None:
    from .train import resume_run

    resume_run(run.path, changes, allow, _of_loggers(config, settings))


def _touches(given: Sequence[str], *names: str) -> bool:
    """Whether one of the names that were given is one of these, or lies within it."""
    return any(one == name or one.startswith((f"{name}.", f"{name}/")) for one in given for name in names)
