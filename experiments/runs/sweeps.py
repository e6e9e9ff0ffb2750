"""Sweeps: what the folder of a ``--multirun`` holds beside its runs: its command, and the jobs that failed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TypedDict

from pyro_tvae.files import make_folder

from ..config.errors import ConfigurationError
from .codes import other_codes
from .files import read_record, write_text
from .names import REPORT, WEIGHTS
from .outputs import digest
from .run import Run, at_any_time, runs_in

__all__ = ["Failure", "Sweep", "begun", "check_recipes", "recipes_in"]

RECORD, FAILED = "sweep.json", ".failed.json"
OF_HYDRA = "multirun.yaml"  # which it writes after the record


class SweepRecord(TypedDict, total=False):
    """The content of ``sweep.json``: what was asked for, and whether all of it was done."""

    overrides: list[str]
    finished: bool
    recipes: dict[str, str]  # a digest of each file that jobs may be composed of


class FailureRecord(TypedDict):
    """The content of the file of a job that failed."""

    number: int
    overrides: list[str]
    sentence: str


@dataclass(frozen=True)
class Failure:
    """A job that failed: its number, the overrides that are its own, and what was wrong in a sentence."""

    number: int
    overrides: tuple[str, ...]
    sentence: str

    def write(self, sweep: Path) -> None:
        """Write it into the sweep's folder, by whatever process did the job: jobs may share the folder of a run."""
        record = {"number": self.number, "overrides": self.overrides, "sentence": self.sentence}
        write_text(sweep / f"{self.number}{FAILED}", json.dumps(record, indent=1))


@dataclass(frozen=True)
class Sweep:
    """A sweep, by the path of its folder."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def record(self) -> SweepRecord:
        """``overrides``, and whether it is ``finished``; empty where there is none yet, or none that can be read."""
        try:
            return read_record(self.path / RECORD, SweepRecord)
        except (OSError, ValueError):
            return {}

    def write(self, overrides: Sequence[str], recipes: Mapping[str, str], *, finished: bool) -> None:
        """Write the record."""
        record = {"overrides": [*overrides], "finished": finished, **({"recipes": {**recipes}} if recipes else {})}
        write_text(self.path / RECORD, json.dumps(record, indent=1))

    def failures(self) -> list[Failure]:
        """The jobs that failed since they were last forgotten, by number."""
        records = [read_record(path, FailureRecord, ("number",)) for path in self._failed()]
        read = [Failure(one["number"], tuple(one["overrides"]), one["sentence"]) for one in records]
        return sorted(read, key=lambda one: one.number)

    def forget_failures(self) -> None:
        """Remove what is written of jobs that failed, all of which are tried again."""
        for path in self._failed():
            path.unlink(missing_ok=True)

    def _failed(self) -> Iterator[Path]:
        return (path for path in self.path.glob(f"*{FAILED}") if path.name.removesuffix(FAILED).isdecimal())

    def progress(self, jobs: int | None) -> str:
        """How many of so many jobs, which not every sweeper tells, are done, and how many begun, in words."""
        runs = runs_in(self.path)
        done = sum(map(_is_done, runs))
        return f"{done}{'' if jobs is None else f' of {jobs}'} done, {len(runs) - done} begun"

    def begun(self) -> list[Run]:
        """The runs that are not done."""
        return [run for run in runs_in(self.path) if not _is_done(run)]

    def other_codes(self) -> list[str]:
        """What is to be said of runs whose parts of the user's own are of different code, a sentence each."""
        return other_codes(
            {str(run.path.relative_to(self.path)): run.path / WEIGHTS for run in runs_in(self.path)}, self
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, which is made, for this process; BlockingIOError where another one is at work on it."""
        make_folder(self.path)
        with ExitStack() as stack:
            try:
                stack.enter_context(Run(self.path).held())
            except BlockingIOError:
                raise BlockingIOError(
                    f"another sweep is at work in {self}; wait for its end or stop it, or choose another "
                    "hydra.sweep.dir."
                ) from None
            yield


@contextmanager
def begun(overrides: Sequence[str], folder: Path, timed: int) -> Iterator[Sweep]:
    """Hold the folder of a sweep of these overrides: the one that they began before and did not end, or a new one.

    Args:
        overrides: of the sweep, but for those that only say where and how it computes.
        folder: of a new one.
        timed: how many of the last names in its path are others at another time: those of other times are looked at,
            and a name that is taken gets the next one. With 0 no other folder will do.

    Raises:
        BlockingIOError: another process is at work in the folder that was given.
        FileExistsError: that folder holds another sweep, or one of another program.
    """
    with ExitStack() as stack:
        if not timed:
            sweep = Sweep(folder)
            stack.enter_context(sweep.held())
            if (folder / RECORD).exists() and "overrides" not in sweep.record():
                raise FileExistsError(
                    f"{folder / RECORD} is no record of a sweep, and is left as it is; choose another hydra.sweep.dir, "
                    "or move it away."
                )
            if os.path.lexists(folder / OF_HYDRA) and not (folder / RECORD).exists():
                raise FileExistsError(
                    f"{folder} holds {OF_HYDRA} of a sweep of another program, over which Hydra would write; choose "
                    "another hydra.sweep.dir, or move it away."
                )
            if sweep.record().get("overrides", [*overrides]) != [*overrides]:
                raise FileExistsError(
                    f"{sweep} holds a sweep of other overrides, which is left as it is; choose another "
                    "hydra.sweep.dir, or give the command that began it."
                )
        else:
            unfinished = [*overrides], False
            earlier = sorted((path.parent for path in at_any_time(folder, timed, RECORD)), reverse=True)
            going_on = (one for one in map(Sweep, earlier) if _asked(one) == unfinished)
            for sweep in chain(going_on, _free(folder)):
                # One at work; or somebody else's, in a folder that several people share, which is not to be written.
                with suppress(*((OSError, ValueError) if sweep.path.exists() else (BlockingIOError,))):
                    stack.enter_context(sweep.held())
                    if _asked(sweep) in (unfinished, (None, None)):  # nobody was faster
                        break
                    stack.pop_all().close()
        yield sweep


def recipes_in(folders: Sequence[Path]) -> dict[str, str]:
    """Name, such as ``experiment/mine.yaml``, -> digest of every file of option groups.

    Args:
        folders: that Hydra searches, the last one first.
    """
    names = {f"{file.relative_to(folder)}" for folder in folders for file in _yaml_in(folder)}
    return {name: _recipe(name, folders) for name in sorted(names)}


def check_recipes(used: Iterable[str], folders: Sequence[Path], then: Mapping[str, str]) -> None:
    """Raise ConfigurationError where a file that a job is composed of was edited since its sweep began.

    Args:
        used: names of the files.
        folders: as of :func:`recipes_in`.
        then: what that was when the sweep began.
    """
    if edited := next((name for name in used if name in then and _recipe(name, folders) != then[name]), None):
        raise ConfigurationError(
            f"{edited} was edited since this sweep began, so that its jobs would be of different settings; put it "
            "back, or begin a new sweep by another hydra.sweep.dir."
        )


def _recipe(name: str, folders: Sequence[Path]) -> str:
    """The digest of the file that Hydra takes by a name; an empty one where there is none."""
    return next((digest(folder / name) for folder in reversed(folders) if (folder / name).is_file()), "")


def _yaml_in(folder: Path) -> Iterator[Path]:
    """The files of option groups, also those in folders that are linked, as Hydra sees them."""
    above = {str(folder): {folder.resolve()}}  # path -> where it leads, and whatever it goes through
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root)
        places = {name: (here / name).resolve() for name in folders}
        folders[:] = [
            name
            for name, place in places.items()  # no link goes round in a circle
            if place not in above[root] and not here.resolve().is_relative_to(place)
        ]
        above |= {f"{here / name}": {*above[root], places[name]} for name in folders}
        yield from (here / name for name in names if name.endswith(".yaml"))


def _asked(sweep: Sweep) -> tuple[list[str] | None, bool | None]:
    """What a sweep was asked for, and whether it is finished; None where there is none yet."""
    record = sweep.record()
    return record.get("overrides"), record.get("finished")


def _is_done(run: Run) -> bool:
    """Whether a run has its page, and no part of it is to be tried again."""
    try:
        return run.has(REPORT) and not run.lacking()
    except (OSError, ValueError):  # its own command says what is wrong with it
        return False


def _free(folder: Path) -> Iterator[Sweep]:
    """Sweeps of this name and of the next ones, without end."""
    names = chain([folder.name], (f"{folder.name}-{number}" for number in count(1)))
    return (Sweep(path) for path in map(folder.with_name, names) if not path.exists())
