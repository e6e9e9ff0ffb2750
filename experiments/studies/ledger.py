"""The ledger of a study under way: which runs are done, here or in a kept record, and the files that say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pyro_tvae.files import atomic_write

from ..config.allowlist import PARTS_ONLY
from ..interruption import command
from ..runs.files import write_text
from ..runs.run import CONFIG, EVALUATION
from .comparison import as_csv, markdown
from .records import (
    Cell,
    check_settings,
    kept_cells,
    measured,
    read_kept,
    record_of,
    settings_of,
    stem_of,
    stored_settings,
    write_record,
)

__all__ = ["Ledger"]


class Ledger:
    """The runs of a study: ``(row, seed) in ledger`` where its kept record has them; :meth:`write` gathers all.

    Args:
        name, title, budget, overrides: of the study, see :func:`.record_of`.
        configurations: row -> its composed configuration; the seed does not matter.
        homes: row -> the folder of its runs, ``seed0``, ``seed1``, …
        folder: of the study's tables.
        records: a folder of kept records; None merges nothing.
        keep: also write the study's record, and the PNG files in ``folder``, into ``records``.
        complete: whether a run's folder holds all that the study needs of it.

    Raises:
        ValueError: the kept record, or a run that is there already, was made from other settings, or the record is
            none of this study.
    """

    def __init__(
        self,
        name: str,
        title: str,
        budget: str | None,
        overrides: Sequence[str],
        *,
        configurations: Mapping[str, DictConfig],
        homes: Mapping[str, Path],
        folder: Path,
        records: Path | None = None,
        keep: bool = False,
        complete: Callable[[Path], bool] = lambda run: True,
    ) -> None:
        if keep and records is None:
            raise ValueError("reproduce: keep=True, records=None; expected the folder of records to keep it in.")
        self.name, self.title, self.budget, self.overrides = name, title, budget, overrides
        self.homes, self.folder, self.keep, self.complete = homes, folder, keep, complete
        self.file = records / f"{stem_of(name, budget)}.json" if records is not None else None
        allow = PARTS_ONLY.typed(*configurations.values())  # what was typed may be in the runs' folders
        self.settings = {row: settings_of(config) for row, config in configurations.items()}
        self.kept = self._read()
        # A table of runs from other settings would compare nothing.
        remedy = f"choose another --output, or give again what {folder} was made with."
        for row, asked in self.settings.items():
            for path in sorted(homes[row].glob(f"seed*/{CONFIG}")):
                check_settings(path.parent, stored_settings(path.parent, allow), asked, remedy)

    def __contains__(self, cell: object) -> bool:
        return cell in self.kept

    def said(self, cells: Iterable[tuple[str, int]]) -> str:
        """How many of these cells need no run, in words; empty if none."""
        asked = list(cells)
        count = sum(cell in self for cell in asked)
        return f"{self.name}: {count} of {len(asked)} runs are in {self.file}" if count else ""

    def write(self, further: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write ``table.json``, ``table.md`` and ``table.csv``, and the kept record; the record is returned.

        Args:
            further: keys to add to the record.
        """
        self.kept = self._read()  # other processes may have added seeds
        known = {row: cell.settings for (row, _), cell in self.kept.items() if row not in self.settings}
        local = {cell: measured(run) for cell, run in self._local() if cell not in self.kept}
        cells = {**local, **self.kept}
        record = record_of(self.name, self.title, self.budget, self.overrides, {**self.settings, **known}, cells)
        record |= further or {}
        write_record(self.folder / "table.json", record)
        write_text(self.folder / "table.md", markdown(record))
        write_text(self.folder / "table.csv", as_csv(record))
        if self.keep and self.file is not None:
            write_record(self.file, record)
            for picture in self.folder.glob("*.png"):
                with atomic_write(self.file.with_name(f"{self.file.stem}-{picture.name}")) as partial:
                    partial.write_bytes(picture.read_bytes())
        return record

    def _local(self) -> Iterable[tuple[tuple[str, int], Path]]:
        """All runs that are there, asked for or not."""
        for row, home in self.homes.items():
            for path in home.glob(f"seed*/{EVALUATION}"):
                if self.complete(path.parent):
                    yield (row, int(path.parent.name.removeprefix("seed"))), path.parent

    def _read(self) -> dict[tuple[str, int], Cell]:
        """The cells of the study's kept record, if there is one."""
        if self.file is None or not self.file.is_file():
            return {}
        record = read_kept(self.file)
        if (record["kind"], record["study"], record["budget"]) != ("reproduction", self.name, self.budget):
            raise ValueError(
                f"{self.file} is a record of {command('reproduce', record['study'])}, budget {record['budget']}; give "
                "--fresh to leave it out, or move it away."
            )
        cells = kept_cells(record)
        for (row, _), cell in cells.items():
            check_settings(self.file, cell.settings, self.settings.get(row, {}), f"--fresh leaves it out ({row}).")
        return cells
