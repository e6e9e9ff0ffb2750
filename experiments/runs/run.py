"""A run's folder: what it holds, by name, how that is read and written, who may, and which one was not ended."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import yaml
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import pyro_tvae
from pyro_tvae.files import PARTIAL, atomic_write, check_stays, clear, leave, mkdir, reading, refusal, staying

from ..config.allowlist import PARTS_ONLY, Allowlist
from ..config.composition import CONF, ELSEWHERE, FILES, MATRIX, PLACES, compose, flat, keys, located, make
from ..config.errors import ConfigurationError, first_cause
from ..config.former_names import current_settings
from ..interruption import command, override
from .data import MATRIX as OF_MATRIX
from .data import Splits, fingerprints, in_words, made_fingerprints, matrix_fingerprint, other_splits
from .files import check_inside, finite, read_record, write_text
from .holding import holding
from .names import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    EVALUATION,
    HISTORY,
    HYDRA,
    LOCK,
    PICTURE,
    PLAIN_VAE,
    REPORT,
    ROOM,
    TRAINED,
    UNTRAINED,
    WEIGHTS,
    WRITTEN,
)
from .outputs import digest

if TYPE_CHECKING:
    import torch

    from pyro_tvae import TVAE, Guide

    from ..datasets import SequenceDataModule

__all__ = ["HistoryRecord", "Run", "Trained", "claimed", "device_of", "unfinished"]

Kind = TypeVar("Kind")


class HistoryRecord(TypedDict, total=False):
    """A training history: what was measured at which step, and how long all of it took."""

    rows: list[dict[str, float]]
    seconds: float


class Judged(TypedDict, total=False):
    """What of an evaluation says whether all of it is there."""

    transient: list[str]


@dataclass(frozen=True)
class Trained:
    """A run whose training has ended: its configuration, fitted model and guide, data, and the device they are on.

    ``weights`` is the digest of the file that model and guide were read from; ``code`` holds those of the code of the
    user's classes that was edited since, by name.
    ``others`` is empty where the data are those that it was begun with. Where other settings of the data were given it
    holds these, and the fingerprints of the splits, for whatever is written down about them.
    """

    config: DictConfig
    model: TVAE
    guide: Guide
    data: SequenceDataModule
    device: torch.device
    weights: str
    others: Mapping[str, Any]
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def aside(self) -> str:
        """What is to be said beside numbers of other data than the run's own, to go on a sentence; mostly empty."""
        given = ", ".join(f"{name}={value}" for name, value in self.others.get("given", {}).items())
        return f", of other data than the run's own: {given}" if given else ""


@dataclass(frozen=True)
class Run:
    """A run, by the path of its folder.

    Args:
        path: of the folder.
        allow: what its configuration may call beside parts of the project; the file can be a stranger's.
        given: settings of the data, (name, value), in the place of those that it stored.
        logs: overrides of loggers, as they were typed, which a stored configuration does not start by itself.
    """

    path: Path
    allow: Allowlist = PARTS_ONLY
    given: tuple[tuple[str, Any], ...] = ()
    logs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        """Whether the folder holds this file."""
        with reading(self.path / name):
            return (self.path / name).is_file()

    def names(self) -> set[str]:
        """What lies in the folder; nothing where there is none."""
        return {*os.listdir(self.path)} if self.path.is_dir() else set()

    def read(self, name: str, kind: type[Kind], needed: Collection[str] = ()) -> Kind:
        """A record in the folder; see :func:`.read_record`."""
        return read_record(self.path / name, kind, needed)

    def write(self, name: str, content: str | Mapping[str, Any]) -> Path:
        """Write text, or a record as JSON, whole or not at all."""
        text = content if isinstance(content, str) else json.dumps(finite(dict(content)), indent=1)
        return write_text(self.path / name, text)

    def history(self) -> HistoryRecord:
        """The training history, ``rows`` and ``seconds``; empty where there is none yet."""
        return self.read(HISTORY, HistoryRecord) if self.has(HISTORY) else {}

    def weights(self) -> dict[str, str]:
        """A digest of every file of weights in the folder, by its name."""
        return {name: digest(self.path / name) for name in (WEIGHTS, UNTRAINED, PLAIN_VAE) if self.has(name)}

    def fitted(self, device: torch.device) -> tuple[TVAE, Guide, str, dict[str, str]]:
        """Model and guide from their file, its digest, and those of the user's classes that were edited since.

        Raises:
            ValueError: it was replaced while it was read.
        """
        from pyro_tvae.storage import edited_since  # takes seconds, for which a list of runs does not wait

        path = self.path / WEIGHTS
        read = digest(path)
        model, guide = pyro_tvae.load(path, device)
        if digest(path) != read:
            raise ValueError(f"{path} was replaced while it was read; give the command again.")
        return model, guide, read, edited_since(path, model, guide)

    @contextmanager
    def kept(self) -> Iterator[Callable[[], None]]:
        """Put back, at the end or when what is yielded is called, what a run needs and lost meanwhile."""
        contents = {name: (self.path / name).read_bytes() for name in (CONFIG, DATA) if self.has(name)}

        def put_back() -> None:
            for name, content in contents.items():
                if not os.path.lexists(self.path / name):
                    with atomic_write(self.path / name) as partial:
                        partial.write_bytes(content)
                    print(f"{self.path / name} was removed meanwhile, and is there again as it was", flush=True)

        try:
            yield put_back
        finally:
            put_back()

    def end_training(self) -> None:
        """Write down what belongs together: the digests of configuration, history and weights."""
        self.write(TRAINED, {name: digest(self.path / name) for name in (CONFIG, HISTORY, WEIGHTS)})

    def changed(self) -> str | None:
        """Which of these are not what the training ended with, in words; None where all are, or an older run's."""
        ended = self.read(TRAINED, dict[str, str]) if self.has(TRAINED) else {}
        other = [
            name
            for name in (CONFIG, HISTORY, WEIGHTS)
            if name in ended and not (self.has(name) and digest(self.path / name) == ended[name])
        ]
        if not other:
            return None
        told = "is not what it was" if len(other) == 1 else "are not what they were"
        return f"{' and '.join(other)} in {self} {told} when the training ended"

    def other_weights(self, judged: Mapping[str, str] | None) -> str | None:
        """A file of weights that an evaluation does not name as it is; None where there is none, or it names none."""
        if not judged:
            return None
        return next((name for name, now in self.weights().items() if judged.get(name) != now), None)

    def check_weights(self, judged: Mapping[str, str] | None, besides: Collection[str] = ()) -> None:
        """Raise ValueError where an evaluation is of other weights; ``besides`` are files that are of those too."""
        if other := self.other_weights(judged):
            further = " and ".join(name for name in besides if self.has(name))
            raise ValueError(
                f"{self.path / EVALUATION} is of other weights than {other} holds now; "
                f"{f'so is {further} beside it: move that away, and ' if further else ''}judge the run again: "
                f"{command('evaluate', self.path, *self.imports)}"
            )

    def stored(self) -> DictConfig:
        """What ``config.yaml`` says, under present names; nothing in it is to be called before it is checked.

        Raises:
            FileNotFoundError: the folder is not a run's.
            ValueError: the file is damaged.
        """
        path = self.path / CONFIG
        if not self.path.is_dir():
            raise FileNotFoundError(f"there is no folder {self}; 'pyro-tvae list' shows the runs.")
        check_inside(self.path)
        with reading(self.path):
            there = path.is_file()
        if not there:
            raise FileNotFoundError(
                f"{self} is not a run's folder: it holds no {CONFIG}; 'pyro-tvae list' shows the runs."
            )
        with reading(path):
            content = path.read_bytes()
        try:
            text = content.decode()
            if "*" in text and _multiplies(text):
                raise yaml.YAMLError("its *aliases stand for aliases, and so for far more than is written")
            stored = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
            # OmegaConf takes words alone for a name without a value.
            if isinstance(stored, dict) and [*stored.values()] != [None]:
                if not _named(stored):
                    raise yaml.YAMLError("a setting's name is no text")
                return OmegaConf.create(current_settings(stored))
        # A hostile or damaged file may fail in any way; each means the same to its owner.
        except Exception as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"{path} cannot be read ({problem}); {EXPECTED}") from None
        raise ValueError(f"{path} holds no mapping; {EXPECTED}")

    def config(self) -> DictConfig:
        """What the run was made from: all settings, those that came later with what they were before.

        Raises:
            FileNotFoundError: the folder is not a run's.
            ValueError: the file is damaged, lacks a setting, or names what is not allowed; a setting that was given is
                none of its data.
        """
        config, path = self.stored(), self.path / CONFIG
        for name, value in self.given:
            if name not in (settings := keys(config)):
                possible = ", ".join(key for key in settings if key.startswith("data."))
                raise ValueError(f"{path} has no setting {name!r}; expected one of {possible}.")
            OmegaConf.update(config, name, value, merge=False)
        config = located(config) if self.given else config
        self.allow.check(config, path)
        config = self.allow.fetching(config, path)
        default = _default()
        for name, value in (LATER | {group: default[group] for group in LATER_GROUPS}).items():
            section, _, key = name.rpartition(".")
            node = config.get(section) if section else config
            if isinstance(node, DictConfig) and key not in node:
                node[key] = value
        names = {*keys(config)}
        for name in keys(default):
            section, _, key = name.partition(".")
            if name not in names and (not key or (section in PLAIN and "." not in key)):
                raise ValueError(f"{path} lacks the setting {name!r}; {EXPECTED}")
        return config

    def load(self, *, config: DictConfig | None = None, data: SequenceDataModule | None = None) -> Trained:
        """The trained run: weights from their file, and what is not at hand already.

        Args:
            config, data: of the run, where they are at hand.

        Raises:
            FileNotFoundError: the folder is not a run's, or its training has not ended; or its data are not there.
            ValueError: its data are not those that it was begun with, and no settings of the data were given.
        """
        from ..config.building import other_than_described  # takes seconds, for which a list of runs does not wait

        config = self.config() if config is None else config
        self.check_trained()
        device = device_of(config)
        model, guide, weights, code = self.fitted(device)
        others: dict[str, Any] = {}
        if data is None and self.given:
            data = self._made(config)
            splits = fingerprints(data)
            if not self.has(DATA) or other_splits(self.splits(), splits):
                others = {"given": dict(self.given), "splits": splits}
        data = self.data(config) if data is None else data
        ended = self.read(TRAINED, dict[str, str]) if self.has(TRAINED) else {}
        together = ended.get(WEIGHTS) == weights and ended.get(CONFIG) == digest(self.path / CONFIG)
        other = None if self.given or together else other_than_described(config, data, model, guide)
        if other:
            raise ValueError(
                f"{self.path / WEIGHTS} holds another model than {CONFIG} beside it describes: {other}; put the file "
                "back that the run was trained with, or the model into a folder with its own configuration."
            )
        return Trained(config, model, guide, data, device, weights, others, code)

    def begin(self, config: DictConfig, data: SequenceDataModule) -> None:
        """Write what the run is made from; in this order, so that a folder with a configuration holds both."""
        self.write(DATA, fingerprints(data, config))
        self.write(CONFIG, OmegaConf.to_yaml(config, resolve=True))

    def data(self, config: DictConfig) -> SequenceDataModule:
        """The data that the run was begun with, built anew.

        Raises:
            FileNotFoundError: they are not where the configuration says.
            ValueError: others are.
        """
        made = self._made(config)
        if self.has(DATA):
            self.check_data(config, fingerprints(made))
        return made

    def check_data(self, config: DictConfig, splits: Splits) -> None:
        """Raise ValueError where splits are others than the run was begun with; older runs do not say."""
        others = other_splits(self.splits(), splits)
        if not others:
            return
        if others == [OF_MATRIX]:
            raise ValueError(
                f"{self} was begun with another matrix than {MATRIX}={OmegaConf.select(config, MATRIX)} holds now; put "
                f"the former file back, or say by {MATRIX}=… where it lies now, or begin a new run by another name=… "
                "or hydra.run.dir=…."
            )
        name = _place(config) or "data.source._target_"
        told = f"{in_words(others)} {'are' if len(others) > 1 else 'is'}"
        remedy = f"put the former file back, or say by {name}=… where it lies now" if _place(config) else "use those"
        raise ValueError(
            f"{self} was begun with other data: its {told} not what {name}={OmegaConf.select(config, name)} gives now; "
            f"{remedy}, or begin a new run by another name=… or hydra.run.dir=…; 'pyro-tvae evaluate RUN "
            "data.SETTING=VALUE' judges the data that are named."
        )

    def check_matrix(self, config: DictConfig) -> None:
        """Raise where the file of W is another one than the run was begun with.

        Raises:
            FileNotFoundError: it is not where the configuration says, and the training has not ended.
            ValueError: it is another one.
        """
        place = OmegaConf.select(config, MATRIX)
        self.check_data(config, matrix_fingerprint(config))
        if isinstance(place, str) and not os.path.isfile(place) and not self.has(WEIGHTS):
            raise FileNotFoundError(
                f"there is no file {place}, the matrix of {self}; put it back, or add {MATRIX}=… to the command where "
                "it lies elsewhere now."
            )

    def splits(self) -> Splits:
        """The fingerprints of the data that it was begun with; empty where an older run does not say."""
        return self.read(DATA, Splits) if self.has(DATA) else {}

    def _made(self, config: DictConfig) -> SequenceDataModule:
        try:
            data: SequenceDataModule = make(config.data)
        except InstantiationException as error:
            from ..datasets import DataNotFound

            cause = first_cause(error)
            if not isinstance(cause, DataNotFound) or _place(config) is None:
                raise
            words = str(cause).rstrip(".")
            raise DataNotFound(
                f"{words}; where the data of {self} lie elsewhere now, add {_place(config)}=… to the command."
            ) from None
        return data

    def check_new(self) -> None:
        """Raise FileExistsError where the folder holds a run, or anything that a new one would write or go by."""
        if self.has(CONFIG):
            raise FileExistsError(
                f"{self} holds a run already, which is left as it is; choose another folder, or go on with: "
                f"{self.resume}"
            )
        part = next((name for name in WRITTEN if os.path.lexists(self.path / name)), None)
        if part == DATA and self._holds_splits():  # of a process that was killed before it wrote anything else
            part = next((name for name in WRITTEN if name != DATA and os.path.lexists(self.path / name)), None)
        if part is None and self._holds_others_hydra():
            part = f"{HYDRA} of another program"
        if part is not None:
            raise FileExistsError(
                f"{self} holds {part} and no {CONFIG}: a new run would write over it; choose another folder, or move "
                "that away."
            )

    def _holds_others_hydra(self) -> bool:
        """Whether Hydra wrote its settings there for another program, and not for a run that was killed right then."""
        try:
            return CONF not in (self.path / HYDRA / "hydra.yaml").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False

    def _holds_splits(self) -> bool:
        """Whether the fingerprints of data are a run's, and not another file by that name."""
        try:
            return bool(self.splits())
        except (OSError, ValueError):
            return False

    def check_trained(self) -> None:
        """Raise FileNotFoundError where the training has not ended."""
        if self.has(WEIGHTS):
            return
        if self.has(TRAINED):
            self.check_can_go_on()
            raise FileNotFoundError(
                f"{self} holds no {WEIGHTS}, with which its training ended; put it back, or have it made again from "
                f"the last checkpoint by: {self.resume}"
            )
        raise FileNotFoundError(f"{self} holds no {WEIGHTS}: its training has not ended; go on with: {self.resume}")

    def check_can_go_on(self) -> None:
        """Raise FileNotFoundError where a training that had ended would begin again from nothing."""
        if not self.has(TRAINED):
            return
        with reading(folder := self.path / CHECKPOINTS):
            begun = any((folder / f"{name}.ckpt").is_file() for name in ("last", "best"))
        if not begun:
            raise FileNotFoundError(
                f"{self} has lost {WEIGHTS} and its checkpoints, and its training had ended; put either of them back, "
                "or move the folder away to train anew."
            )

    def lacking(self) -> list[str]:
        """What its evaluation was to measure or draw, and could not for a cause that may pass."""
        return self.read(EVALUATION, Judged).get("transient") or [] if self.has(EVALUATION) else []

    def ended(self, config: DictConfig) -> bool:
        """Whether all that a run of this configuration makes is there; it may be judged before its plain VAE is."""
        steps = [EVALUATION, REPORT, *([PLAIN_VAE] if config.baseline.enabled else [])]
        return all(self.has(step) for step in steps) and not self.lacking()

    def is_of(self, config: DictConfig) -> bool:
        """Whether the folder is that of a run of exactly this configuration, wherever it was computed."""
        return self.has(CONFIG) and self.moved(config) is not None

    def moved(self, config: DictConfig) -> dict[str, str] | None:
        """Where the files lie now of a run of this configuration: empty where they are as stored; None of another one.

        As of a project that was moved: they are not where they were, and lie elsewhere under the same name. Of a file
        that is still there another one may be a version, which fingerprints of large files may not tell.
        """
        stored, here = self.stored(), located(config)
        if _computed(stored) == _computed(here):
            return {}
        places = self.places(here)
        for name, now in places.items():
            then = OmegaConf.select(stored, name)
            both_paths = isinstance(then, str) and isinstance(now, str)
            if not both_paths or Path(then).name != Path(now).name or os.path.lexists(then):
                return None
            OmegaConf.update(stored, name, now, merge=False)
        if not self.has(DATA) or _computed(stored) != _computed(here):
            return None
        begun = self.splits()
        try:
            made = made_fingerprints(here)
        except (InstantiationException, ConfigurationError):  # which a new run is going to say
            return None
        # Runs of former versions do not say of what matrix they are.
        unknown = MATRIX in places and not begun.keys() & made.keys() & {OF_MATRIX}
        return None if unknown or other_splits(begun, made) else places

    def places(self, config: DictConfig) -> dict[str, str]:
        """Where the files lie by a configuration, of those settings that are stored otherwise."""
        stored = self.stored()
        named = {name: OmegaConf.select(config, name) for name in FILES}
        return {name: now for name, now in named.items() if now not in (None, OmegaConf.select(stored, name))}

    def others_than(self, config: DictConfig) -> str:
        """Which settings of the folder's run are other than these, in words; none where only places are."""
        if self.is_of(config):
            return ""
        sides = (_computed(self.stored()), _computed(config))
        then, now = (dict(flat(OmegaConf.to_container(one, resolve=True))) for one in sides)
        names = [name for name in now | then if then.get(name) != now.get(name)]
        told = [f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in names[:3]]
        return ", ".join([*told, *(["…"] if len(names) > 3 else [])]) or "their order"

    @property
    def imports(self) -> list[str]:
        """The options of a command by which it knows the parts of one's own that the run is made of."""
        return [word for module in sorted(self.allow.modules) for word in ("--import", module)]

    @property
    def resume(self) -> str:
        """The command that goes on with the run."""
        places = (override(name, value) for name, value in self.given)
        return command("train", override("resume", self.path), *places, *self.logs, *self.imports)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process. The system lets go of it however the process ends, SIGKILL included.

        Raises:
            BlockingIOError: another process is at work on it.
            OSError: the folder cannot be written.
            ValueError: something in it leads out of it, or is no file.
        """
        with ExitStack() as stack:
            try:
                if self.path.is_dir():
                    check_inside(self.path)
                stack.enter_context(holding(self.path / LOCK))
            except BlockingIOError:
                raise BlockingIOError(
                    f"another process is at work on {self}; wait for its end or stop it, then give the command again."
                ) from None
            except OSError as error:
                raise type(error)(
                    f"{self} cannot be written ({error.strerror}); choose a folder that can be."
                ) from error
            stack.enter_context(staying(self.path))
            yield

    def sweep(self) -> None:
        """Remove what a killed process was still writing; posteriors and the like are written without the lock."""
        clear(self.path.rglob(f".*{PARTIAL}*"))

    @contextmanager
    def undone_after_mistakes(self) -> Iterator[None]:
        """Remove what was written meanwhile where an error comes before the first step; interruptions keep it."""
        before = self.names()
        try:
            yield
        except Exception:
            written = self.names() - before
            if written <= {HYDRA, LOCK, CONFIG, DATA, PICTURE, UNTRAINED}:
                for name in written & {UNTRAINED, PICTURE, CONFIG, DATA}:
                    (self.path / name).unlink(missing_ok=True)
            raise


def runs_in(folder: Path) -> list[Run]:
    """The runs in a folder, however deep."""
    return [Run(path.parent) for path in sorted(folder.rglob(CONFIG)) if path.parent.name != HYDRA]


def at_any_time(folder: Path, timed: int, name: str) -> Iterator[Path]:
    """The files of a name in folders that differ from this one in the last names of their path alone, so many."""
    return folder.parents[timed - 1].glob("/".join([*["*"] * timed, name])) if timed else iter(())


@contextmanager
def claimed(path: Path, *, automatic: bool = False) -> Iterator[Run]:
    """A new run, whose folder is made and held by this process before anything is written in it.

    A folder that was made for it and holds nothing in the end is removed again.

    Args:
        path: of the folder.
        automatic: nobody asked for this very name: where it is taken the run gets the next one, ``-1``, ``-2``, …

    Raises:
        BlockingIOError: another process is at work on the folder.
        FileExistsError: it holds a run, or parts of one, already.
        OSError: it cannot be made or written.
    """
    number = 0
    while True:
        run = Run(path.with_name(f"{path.name}-{number}") if number else path)
        check_stays(run.path)
        try:
            mkdir(run.path.parent)  # fails, too, where it is there and no folder
            try:
                run.path.mkdir()
                made = True
            except FileExistsError:
                made = False
        except OSError as error:
            raise type(error)(refusal(run.path, error)) from error
        number += automatic
        if automatic and not made:
            continue
        with ExitStack() as stack:
            locked = os.path.lexists(run.path / LOCK)
            try:
                stack.enter_context(run.held())
            except OSError as error:
                # Whoever asked for this very name was faster, or has just removed it.
                if (automatic and isinstance(error, BlockingIOError)) or not os.path.lexists(run.path):
                    continue
                raise
            try:
                try:
                    run.check_new()
                except FileExistsError:
                    if not locked:  # nothing is left in somebody's folder
                        (run.path / LOCK).unlink(missing_ok=True)
                    raise
                run.write(ROOM, " " * 2**16)  # Hydra writes first, and says that a disk is full in a traceback
                (run.path / ROOM).unlink()
                yield run
            finally:
                if made and run.path.is_dir() and run.names() <= {HYDRA, LOCK, ROOM, DATA}:
                    leave(run.path)
                    shutil.rmtree(run.path / HYDRA, ignore_errors=True)
                    for name in (ROOM, DATA, LOCK):
                        (run.path / name).unlink(missing_ok=True)
                    with suppress(OSError):  # somebody else has begun in it, or removed it, just now
                        run.path.rmdir()
                        print(f"{run} was removed again: nothing had been trained", flush=True)
        return


def device_of(config: DictConfig) -> torch.device:
    """Where a run computes: as ``fit.accelerator`` says, or the fastest device there is."""
    import torch  # takes seconds, for which a list of runs does not wait

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    # What was trained on a device that is not here is judged on what is.
    return accelerator if accelerator is not None and config.fit.accelerator != "cpu" else torch.device("cpu")


@contextmanager
def unfinished(config: DictConfig, folder: Path, timed: int) -> Iterator[Run | None]:
    """The latest run of exactly this configuration that was interrupted, held by this process; None if there is none.

    Of a project that was moved it is told where its files lie now.

    Args:
        config: of the run that would be started.
        folder: of that run, which may hold the interrupted one.
        timed: how many of the last names in its path are others at another time: those are looked at too.
    """
    others = sorted((path.parent for path in at_any_time(folder, timed, CONFIG)), reverse=True)
    begun: list[tuple[Run, dict[str, str]]] = []
    for run in map(Run, (folder, *others)):
        with suppress(OSError, ValueError, OmegaConfBaseException):  # none, or somebody else's
            if not run.ended(config) and (places := run.moved(config)) is not None:
                begun.append((run, places))

    def first(stack: ExitStack) -> Run | None:
        # One with its files where they were, if there is one.
        for run, places in sorted(begun, key=lambda one: bool(one[1])):
            try:
                stack.enter_context(run.held())
                if not run.ended(config) and run.moved(config) == places:  # nobody has ended or removed it meanwhile
                    return replace(run, given=tuple(places.items()))
                stack.close()
            except (OSError, ValueError, OmegaConfBaseException):
                continue  # removed, or at work
        return None

    with ExitStack() as stack:
        yield first(stack)


def _multiplies(text: str) -> bool:
    """Whether YAML repeats what repeats, which lets a few lines stand for more than memory holds."""
    within: list[bool] = []  # an &anchor, of every collection that is open
    for event in yaml.parse(text):
        if isinstance(event, yaml.CollectionStartEvent):
            within.append(event.anchor is not None or within[-1:] == [True])
        elif isinstance(event, yaml.CollectionEndEvent):
            within.pop()
        elif isinstance(event, yaml.AliasEvent) and within[-1:] == [True]:
            return True
    return False


def _named(node: object) -> bool:
    """Whether every name in plain data is a text: YAML's may be numbers."""
    if isinstance(node, dict):
        return all(isinstance(name, str) and _named(value) for name, value in node.items())
    return not isinstance(node, list) or all(map(_named, node))


def _place(config: DictConfig) -> str | None:
    """The setting that says where the data lie; None where they come with a package."""
    return next((name for name in PLACES if OmegaConf.select(config, name) is not None), None)


def _computed(config: DictConfig) -> DictConfig:
    """A configuration without the settings that only say where and how it computes."""
    config = located(config)
    for name in ELSEWHERE:
        OmegaConf.update(config, name, None, merge=False, force_add=True)  # data of somebody's own may lack one
    return config


EXPECTED = "expected the file that 'pyro-tvae train' wrote."
# Settings that older runs lack, and what they were made with.
LATER = {
    "model.centered": False,
    "fit.matmul_precision": "highest",
    "fit.capture": "auto",
    "fit.compile": False,
    "fit.subsample_frames": None,
    "evaluation.channels": None,
}
LATER_GROUPS = ("logger", "measure")  # at the top; as they are by default
PLAIN = ("model", "fit", "baseline", "evaluation")  # sections with the same settings in every run


@functools.cache
def _default() -> DictConfig:
    return compose()
