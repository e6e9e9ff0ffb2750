"""The ledger of a study under way: which runs are done, here or in a kept record, and the files that say so."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import pairwise
from pathlib import Path

from hydra.errors import InstantiationException
from omegaconf import DictConfig

from pyro_tvae.files import atomic_write, check_stays, free_name

from ..config.allowlist import PARTS_ONLY
from ..config.composition import located
from ..interruption import command
from ..runs.codes import other_codes
from ..runs.data import Splits, in_words, made_fingerprints, other_splits
from ..runs.files import check_inside, inside, write_text
from ..runs.names import CONFIG, DATA, EVALUATION, SELECTIVITY
from ..runs.outputs import DAMAGED, put_aside, shown_on
from ..runs.run import Run
from .cells import (
    ADDED,
    ANNEALED,
    POINTS,
    REFITTED,
    Refitted,
    added,
    followed,
    last_weights,
    measured,
    weights_of,
)
from .comparison import as_csv, markdown
from .kept import check_kept, held, read_kept, with_additions, write_record
from .records import LEARNING_CURVES, TABLE, Cell, Record, Values, kept_cells, record_of, stem_of
from .registry import STUDIES, home
from .settings import Settings, check_settings, settings_of

__all__ = ["Ledger"]

FILES = {"few": ANNEALED, "held": REFITTED, "map": SELECTIVITY}  # where measures lie whose names begin so


class Ledger:
    """The runs of a study: ``(row, seed) in ledger`` where its kept record has all of them; :meth:`write` gathers them.

    Args:
        name: of the study.
        budget, overrides: see :func:`.record_of`.
        configurations: row -> its composed configuration; the seed does not matter.
        output: where studies are kept, a folder each.
        records: a folder of kept records; None merges nothing.
        keep: also write the study's record, and the PNG files in its folder, into ``records``.
        without: the configurations as they are without overrides; by default, there are none.

    Attributes:
        study, folder: the study, and where its tables go.
        homes: row -> the folder of its runs, ``seed0``, ``seed1``, …
        needed: the files that the folder of a run has that is done; training makes the first of them.
        unreadable: runs that are in no table, since a file of theirs is damaged or none of theirs: why, in a sentence.
        told: what :meth:`write` had to say, a sentence each.
        allow: what the runs' configurations may call.

    Raises:
        OSError: the record cannot be kept where it is to be.
        ValueError: the kept record, or a run that is there already, was made from other settings, or the record is
            none of this study.
    """

    def __init__(
        self,
        name: str,
        budget: str | None,
        overrides: Sequence[str],
        configurations: Mapping[str, DictConfig],
        output: Path,
        records: Path | None = None,
        keep: bool = False,
        without: Mapping[str, DictConfig] | None = None,
    ) -> None:
        if keep and records is None:
            raise ValueError("reproduce: keep=True, records=None; expected the folder of records to keep it in.")
        self.name, self.study, self.budget, self.overrides = name, STUDIES[name], budget, overrides
        self.folder = output / stem_of(name, budget)
        self.homes = {row: output / stem_of(home(name, row), budget) / row.replace(" ", "_") for row in configurations}
        for place in (self.folder, *self.homes.values()):
            inside(output, place.relative_to(output))
        study = self.study
        further = {ANNEALED: study.annealing, REFITTED: study.reference, SELECTIVITY: study.drawing == "map"}
        self.needed = [
            EVALUATION if study.labels is None else POINTS,
            *(file for file, used in further.items() if used),
        ]
        self.file = records / f"{stem_of(name, budget)}.json" if records is not None else None
        self.target = self.file if keep else None
        if self.target is not None:
            with held(self.target):  # OSError now, where it cannot be written, and not after the first run
                pass
        self.allow = PARTS_ONLY.typed(*configurations.values())  # what was typed may be in the runs' folders
        self.settings = {row: settings_of(config) for row, config in configurations.items()}
        self.without = {row: settings_of(config) for row, config in (without or configurations).items()}
        self.unreadable: dict[tuple[str, int], str] = {}
        self.told: list[str] = []
        self.kept = self._read()
        for folder in {self.folder, *self.homes.values()}:
            check_inside(folder)
        self._check_runs()

    def _check_runs(self) -> None:
        """Raise ValueError where runs are of other settings or data: a table of both compares nothing."""
        remedy = f"choose another --output, or give again what {self.folder} was made with."
        for row, asked in self.settings.items():
            for path in sorted(self.homes[row].glob(f"seed*/{CONFIG}")):
                config = Run(path.parent, self.allow).config()
                check_settings(path.parent, settings_of(config), asked, remedy, self.without[row])
                if _seed(path.parent) not in (None, config.seed):
                    raise ValueError(
                        f"{path.parent} holds the run of seed {config.seed}, by its {CONFIG}, and would count as one "
                        f"of its own; move it away, or call it seed{config.seed} again."
                    )
        for runs in self._splits().values():
            self._check_alike(runs)

    def check_data(self, row: str, config: DictConfig) -> None:
        """Raise ValueError where a run of a row would be of other data than those that are done: before it is made."""
        run, others = self.run(row, config.seed), self._splits().get(_data_of(self.settings[row]), [])
        if run.has(DATA) or not others:
            return
        with suppress(InstantiationException):  # of data that are not there, which the run says better
            differing = other_splits(others[0][1], made_fingerprints(located(config)))
            if differing:
                raise ValueError(
                    f"{run} would be of other data than {others[0][0]}, by its {in_words(differing)}, and "
                    f"all of {self.name} is to be of one data set; put the former data back, or choose another "
                    f"--output{' and give --fresh' if self.kept else ''}."
                )

    def _splits(self) -> dict[str, list[tuple[str, Splits]]]:
        """What the data's settings say -> the data of the runs with these settings, kept or here, after their names."""
        runs: dict[str, list[tuple[str, Splits]]] = {}
        for cell in self.kept.values():
            if splits := cell.run.get("splits"):
                runs.setdefault(_data_of(cell.settings), []).append((f"the runs in {self.file}", splits))
        for row, place in self.homes.items():
            for run in (Run(path.parent) for path in sorted(place.glob(f"seed*/{DATA}"))):
                runs.setdefault(_data_of(self.settings[row]), []).append((str(run), run.splits()))
        return runs

    def _check_alike(self, runs: Sequence[tuple[str, Splits]]) -> None:
        """Raise ValueError where runs of the same settings have other data: a path tells nothing of a file."""
        for (first, then), (other, now) in pairwise(runs):
            differing = other_splits(then, now)
            if differing:
                remedy = "move one of the two folders away"
                if first.endswith(str(self.file)):
                    remedy = "--fresh leaves that record out"
                raise ValueError(
                    f"{other} was begun with other data than {first}, by its {in_words(differing)}, and both "
                    f"of {self.name} are to be of one data set; {remedy}, or choose another --output."
                )

    def __contains__(self, cell: tuple[str, int]) -> bool:
        return cell in self.kept and not self._grows(*cell)

    def run(self, row: str, seed: int) -> Run:
        """The run of a cell, done or not."""
        return Run(self.homes[row] / f"seed{seed}", self.allow)

    def said(self, cells: Iterable[tuple[str, int]]) -> str:
        """How many of these cells need no run, in words; empty if none. And which of them a run that is here belies."""
        asked = {*cells}
        count = sum(cell in self for cell in asked)
        here = self._local(lambda cell: cell in self and cell in asked)
        belied = [self.run(*cell) for cell, own in here.items() if self._belied(cell, own)]
        others = (
            f"; those of {', '.join(map(str, belied))} are other ones than these runs have, and stand" if belied else ""
        )
        return f"{self.name}: {count} of {len(asked)} runs are in {self.file}{others}" if count else ""

    def write(self) -> Record:
        """Write the study's files, and the kept record; the record is returned, which names the figures of one."""
        self._check_runs()  # before what was run last, here or by another process, stands beside others
        shown = self.folder / ("table.json" if self.study.labels is None else "record.json")
        # Both: what another process has added to one or the other is not to be lost to what was read before.
        with held(shown), held(self.target) if self.target is not None else nullcontext():
            self.kept = self._read()  # other processes may have added seeds
            others = {row: cell.settings for (row, _), cell in self.kept.items() if row not in self.settings}
            self.unreadable = {}
            own = self._local(lambda cell: cell not in self, self.unreadable)
            cells = self.kept | {cell: self._grown(cell, one) for cell, one in own.items()}
            record = record_of(
                self.name,
                self.study.title,
                self.budget,
                self.overrides,
                {**self.settings, **others},
                cells,
                self.study.labels,
            )
            if self.study.drawing:
                record["figures"] = sorted(path.name for path in self.folder.glob("*.png"))
            if self.target is not None:
                check_kept(self.target, record)
                copies = self._copies(self.target)
                write_record(self.target, with_additions(record, self.target))
            self._keep_gone(shown)
            if self.study.labels is not None:
                write_record(shown, record)
            else:
                texts = {self.folder / "table.md": markdown(record), self.folder / "table.csv": as_csv(record)}
                if not shown.exists():  # which they would show
                    for path in filter(Path.exists, texts):
                        put_aside(path, "is none of this study")
                with shown_on(shown, *texts) as partial:
                    write_record(partial, record)
                for path, text in texts.items():
                    write_text(path, text)
            if self.target is not None:
                for kept, picture in copies.items():
                    with atomic_write(kept) as partial:
                        partial.write_bytes(picture.read_bytes())
        return record

    def other_codes(self) -> list[str]:
        """What is to be said of runs here whose parts of the user's own are of different code, a sentence each."""
        weights: dict[str, Path] = {}
        for row, place in self.homes.items():
            for path in sorted(place.glob("seed*")):
                if (seed := _seed(path)) is not None and (file := last_weights(Run(path))) is not None:
                    weights[f"{row}, seed {seed}"] = file
        return other_codes(weights, self.folder)

    def picture(self, row: str, seed: int) -> Path:
        """Where the picture of a run is drawn, without the ending of its name."""
        return self.folder / f"{row.replace(' ', '_')}-seed{seed}"

    def _copies(self, target: Path) -> dict[Path, Path]:
        """The pictures to be copied beside a kept record, by where each is to lie; to be asked before it is written.

        What lies there and is none of the record's, by the names that it held until now, is put aside.
        """
        pictures = {*self.folder.glob("*.png")}
        of_others = self._of_others(pictures)
        named = {*read_kept(target).get("figures", ())} if target.exists() else set()
        copies: dict[Path, Path] = {}
        for picture in sorted(pictures):
            kept = target.with_name(f"{target.stem}-{picture.name}")
            if kept.exists() and picture in of_others:
                continue
            if kept.exists() and picture.name not in named and kept.read_bytes() != picture.read_bytes():
                put_aside(kept, "is no picture of this record")
            copies[kept] = picture
        return copies

    def _of_others(self, pictures: Collection[Path]) -> set[Path]:
        """Those of cells that are kept of other runs than the ones here, as of another machine's."""
        drawn = {cell: path for cell in self.kept if (path := Path(f"{self.picture(*cell)}.png")) in pictures}
        here = self._local(lambda cell: cell in drawn)
        same = {cell for cell, own in here.items() if not self._belied(cell, own)}
        return {path for cell, path in drawn.items() if cell not in same}

    def _belied(self, cell: tuple[str, int], own: Cell) -> bool:
        """Whether a run that is here has other numbers than are kept of it."""
        kept, here = _numbers(self.kept[cell]), _numbers(own)
        common = kept.keys() & here.keys()
        curves = [one.run.get("points") for one in (self.kept[cell], own)]
        return not (common or curves[0]) or curves[0] != curves[1] or any(kept[key] != here[key] for key in common)

    def _grows(self, row: str, seed: int) -> bool:
        """Whether a kept cell lacks a part that the study asks for and the run that is here has, or can be asked for.

        Such as what annealing finds, of a run that was kept before the study annealed.
        """
        lacking = {FILES[part] for part in FILES.keys() - _parts(self.kept[row, seed])} & {*self.needed[1:]}
        if not lacking or row not in self.homes:
            return False
        run, reference = self.run(row, seed), self.study.reference
        if REFITTED in lacking and (reference is None or last_weights(self.run(reference, seed)) is None):
            return False
        with suppress(OSError, ValueError):  # what is wrong with the run costs the kept cell nothing
            there = run.has(self.needed[0]) and last_weights(run) is not None
            return there and not self._belied((row, seed), self._measured(run))
        return False

    def _grown(self, cell: tuple[str, int], own: Cell) -> Cell:
        """What a run that is here measured, with what a kept record says of it beside."""
        kept = self.kept.get(cell)
        return own if kept is None else Cell({**kept.values, **own.values}, {**kept.run, **own.run}, kept.settings)

    def _keep_gone(self, shown: Path) -> None:
        """Put a former table aside that has numbers of runs whose files are gone: they stand nowhere else."""
        try:
            former = kept_cells(read_kept(shown))
        except FileNotFoundError:
            return
        except ValueError:
            put_aside(shown, DAMAGED)
            return
        own = former.keys() - self.kept.keys()
        there = {cell for cell in own if cell[0] in self.homes and self._holds(self.run(*cell), former[cell])}
        gone = sorted(f"{row}, seed {seed}" for row, seed in own - there)
        if gone:
            other = free_name(shown)
            with atomic_write(other) as partial:
                partial.write_bytes(shown.read_bytes())
            self.told.append(f"{shown} leaves out {'; '.join(gone)}, whose files are gone, and {other} has them.")

    def _holds(self, run: Run, former: Cell) -> bool:
        """Whether a run's files hold all that a former table shows of it, which may be less than is asked for now."""
        return all(map(run.has, [self.needed[0], *(FILES[part] for part in _parts(former))]))

    def _local(
        self, wanted: Callable[[tuple[str, int]], bool], unreadable: dict[tuple[str, int], str] | None = None
    ) -> dict[tuple[str, int], Cell]:
        """What those of the runs measured that are wanted, here and done, asked for or not; why others are not."""
        cells: dict[tuple[str, int], Cell] = {}
        unreadable = {} if unreadable is None else unreadable
        for row, place in self.homes.items():
            for path in place.glob("seed*"):
                seed, run = _seed(path), Run(path)
                if seed is None or not wanted((row, seed)) or not run.has(self.needed[0]):
                    continue
                try:
                    if not run.lacking() and self._is_whole(run, seed):
                        cells[row, seed] = self._measured(run)
                except (OSError, ValueError) as error:
                    check_stays(path)
                    unreadable[row, seed] = str(error)
        return cells

    def _is_whole(self, run: Run, seed: int) -> bool:
        """Whether a run holds all that the study asks for, of its present weights and those of its reference.

        What is measured of weights is asked for no more where these are gone, as to free a disk.
        """
        gone = last_weights(run) is None
        of_weights = [name for name in self.needed if name in ADDED]
        if not all(run.has(name) for name in self.needed if name not in ADDED):
            return False
        if not gone and not all(added(run, name) for name in of_weights):
            return False
        if self.study.reference is None or REFITTED not in self.needed:
            return True
        of, now = run.read(REFITTED, Refitted).get("of"), weights_of(self.run(self.study.reference, seed))
        return None in (of, now) or of == now

    def _measured(self, run: Run) -> Cell:
        cell = measured(run) if self.study.labels is None else followed(run)
        if splits := run.splits():
            cell.run["splits"] = splits
        return cell

    def _read(self) -> dict[tuple[str, int], Cell]:
        """The cells of the study's kept record, if there is one."""
        if self.file is None or not self.file.is_file():
            return {}
        record = read_kept(self.file)
        kind = TABLE if self.study.labels is None else LEARNING_CURVES
        if (record["kind"], record["study"], record.get("budget")) != (kind, self.name, self.budget):
            raise ValueError(
                f"{self.file} is a record of {command('reproduce', record['study'])}, budget {record.get('budget')}; "
                "give --fresh to leave it out, or move it away."
            )
        cells = kept_cells(record)
        for (row, _), cell in cells.items():
            if row in self.settings:
                remedy = f"--fresh leaves it out ({row})."
                check_settings(self.file, cell.settings, self.settings[row], remedy, self.without[row])
        return cells


def _parts(cell: Cell) -> set[str]:
    """Those of what a study adds to evaluations, see :data:`FILES`, that a cell has measures of."""
    return FILES.keys() & {key.partition("/")[0] for key, value in cell.values.items() if value is not None}


def _seed(folder: Path) -> int | None:
    """The seed that a run's folder is named by; None where it is not."""
    text = folder.name.removeprefix("seed")
    return int(text) if text.isdecimal() and str(int(text)) == text else None


def _data_of(settings: Settings) -> str:
    """What settings say of the data, as a key."""
    return json.dumps({name: value for name, value in sorted(settings.items()) if name.startswith("data.")})


def _numbers(cell: Cell) -> Values:
    """What a run measured, but for wall-clock times."""
    return {name: value for name, value in cell.values.items() if not name.startswith("seconds") and value is not None}
