"""Factors: what a user's data say of what varies in them, frame by frame or item by item, beside the pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .axes import Axes
from .errors import Unsuitable
from .films import Clips
from .readers.content import Pieces
from .readers.ordered import Ordered
from .transformations import nearest

__all__ = ["NOTHING", "Factors", "Known", "Stored", "by_item"]

NOTHING = "nothing"  # moves in a sequence
ROWS = 4096  # at a time
SLACK = 1e-6  # of a period: what sums of steps are off by
LETTERS = "N (items), S or T (frames) and F (factors)"
LONGEST = 60  # characters of a name

Stored = Sequence[tuple[Any, int]]  # arrays, and of how many items each is


@dataclass(frozen=True)
class Factors:
    """The values of F factors in N sequences, as they were measured.

    Attributes:
        names: of the factors.
        periods: after which a factor's values begin again; None: they do not.
        steps: by how much each factor moves from one frame of a sequence to the next, where it moves: the median; 0
            where it never does.
        table: (frames of all films, F) float64; nan where it was not measured. Of still images a row each.
        place: (N,) row of each sequence's first frame.
        left: (N,) rows from there to the end of its film.
        n_frames: of a sequence; 1 of still images.
        dilation: rows from one frame of a sequence to the next.

    Example:
        >>> factors = Factors.of(torch.tensor([[0.0, 20.0, 40.0], [90.0, 90.0, 90.0]]).unsqueeze(-1), ["angle"], [360])
        >>> factors.steps, factors.motions[0]
        ((20.0,), ('nothing', 'angle'))
    """

    names: tuple[str, ...]
    periods: tuple[float | None, ...]
    steps: tuple[float, ...]
    table: Tensor
    place: Tensor
    left: Tensor
    n_frames: int
    dilation: int = 1

    @classmethod
    def of(cls, values: Tensor, names: Sequence[str], periods: Sequence[float | None] | None = None) -> Factors:
        """Those of sequences (N, S, F) that lie in memory."""
        n, n_frames, n_factors = values.shape
        table, periods = values.double().flatten(0, 1), [None] * n_factors if periods is None else [*periods]
        lengths = np.full(n, n_frames, np.int64)
        place = n_frames * torch.arange(n)
        steps = steps_of(table, lengths, 1, periods)
        return cls(tuple(names), tuple(periods), steps, table, place, torch.full((n,), n_frames), n_frames)

    def first(self, n: int) -> Factors:
        """Those of the first n sequences."""
        return replace(self, place=self.place[:n], left=self.left[:n])

    def values(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Of some sequences, (B, S, F); nan where there is no frame."""
        ahead = self.dilation * torch.arange(self.n_frames)
        values = self.table[(self.place[rows].unsqueeze(1) + ahead).clamp(max=len(self.table) - 1)]
        return torch.where((ahead < self.left[rows].unsqueeze(1)).unsqueeze(-1), values, math.nan)

    def cut(self, clips: Clips) -> Factors:
        """Of whole films, those of windows."""
        place, left = self.place[clips.film] + clips.start, self.left[clips.film] - clips.start
        return replace(self, place=place, left=left, n_frames=clips.n_frames or 1)

    @property
    def words(self) -> str:
        """What they are, such as ``factors angle (0 to 340, period 360, moves by 20 a frame)``."""
        parts = []
        for k, name in enumerate(self.names):
            values, period, step = self.table[:, k], self.periods[k], self.steps[k]
            known = values[~values.isnan()]
            words = [f"{float(known.min()):g} to {float(known.max()):g}" if len(known) else "never measured"]
            words += [] if period is None else [f"period {period:g}"]
            words += [f"moves by {step:g} a frame"] if step else []
            parts.append(f"{name} ({', '.join(words)})")
        return f"factors {', '.join(parts)}"

    @cached_property
    def motions(self) -> tuple[tuple[str, ...], Tensor]:
        """What moves in sequences, such as ``azimuth`` or ``x+y``, or ``nothing``; and which of these does, (N,)."""
        moved = [torch.zeros(0, len(self.names), dtype=torch.bool)]
        for rows in torch.arange(len(self.place)).split(ROWS):
            values = self.values(rows)
            moved.append(values.nan_to_num(-math.inf).amax(1) > values.nan_to_num(math.inf).amin(1))
        kinds, numbers = torch.unique(torch.cat(moved), dim=0, return_inverse=True)
        entries = ("+".join(name for name, own in zip(self.names, kind, strict=True) if own) for kind in kinds.tolist())
        return tuple(entry or NOTHING for entry in entries), numbers


@dataclass(frozen=True)
class Known:
    """What was said of the factors of a user's data; see :func:`.arrays` for each."""

    keys: tuple[str, ...] = ()
    names: Sequence[str | None] | None = None
    axes: Axes = None
    periods: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for option, value in (("factor_names", self.names), ("factor_axes", self.axes), ("periods", self.periods)):
            if value is not None and not self.keys:
                raise Unsuitable(
                    f"{option} is given, but not which array holds the factors; say it by factors_key "
                    "(data.source.factors_key=… on the command line)."
                )

    def read(
        self, arrays: Mapping[str, Stored], stored: Ordered, frames: Ordered, dilation: int, seen: Tensor | None
    ) -> Factors | None:
        """The factors of whole films, or of still images; None where none are asked for.

        Args:
            arrays: what is stored, by name.
            stored: the pixels, with all frames.
            frames: the same, with those that were picked.
            dilation: frames from one frame of a sequence to the next.
            seen: (all picked frames,) whether anything of them was measured; None: all.

        Raises:
            Unsuitable: they are no numbers, not finite where frames were measured, or do not fit the pixels.
        """
        if not self.keys:
            return None
        n_columns = len(self.names) if len(self.keys) == 1 and isinstance(self.names, list | tuple) else None
        items: list[list[NDArray[np.float64]]] = []
        called: list[str] = []
        for key in self.keys:
            own, fields = by_item(arrays[key], stored, key, "factors_key", self.axes, n_columns)
            short, n = PurePosixPath(key).stem, own[0].shape[1]
            called += fields if len(fields) == n else [short] if n == 1 else [f"{short}_{k}" for k in range(n)]
            items.append(own)
        chosen = columns(self.names, called)
        rows = [np.concatenate(parts, 1)[:, [k for k, _ in chosen]] for parts in zip(*items, strict=True)]
        if frames.picks is not None:
            rows = [row[picked] for row, picked in zip(rows, frames.picks, strict=True)]
        table, names = torch.from_numpy(np.concatenate(rows)), tuple(name for _, name in chosen)
        lacking = table.isnan() if seen is None else table.isnan() & seen.unsqueeze(1)
        if bool(lacking.any()):
            row, k = lacking.nonzero()[0].tolist()
            film = int(np.searchsorted(np.cumsum(frames.lengths), row, side="right"))
            frame = row - int(frames.lengths[:film].sum())
            raise Unsuitable(
                f"factor {names[k]} is nan in {f'frame {frame} of ' * frames.with_frames}item {film}; expected finite "
                "numbers wherever pixels were measured: leave such frames out by a mask (data.source.mask), or the "
                "factor by factor_names."
            )
        periods = check_periods(self.periods or {}, names, table)
        ends = tuple(periods.get(name) for name in names)
        steps = steps_of(table, frames.lengths, dilation, ends)
        left = torch.from_numpy(frames.lengths)
        return Factors(names, ends, steps, table, left.cumsum(0) - left, left, 1, dilation)


def steps_of(
    table: Tensor, lengths: NDArray[np.int64], dilation: int, periods: Sequence[float | None]
) -> tuple[float, ...]:
    """The median of how far each factor moves from one frame to the next of a sequence, of those moves that are any."""
    film = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    same = film[dilation:] == film[:-dilation]
    moves = (table[dilation:] - table[:-dilation])[same].unbind(-1)
    sizes = (signed(own, period).abs() for own, period in zip(moves, periods, strict=True))
    kept = (own[own > SLACK * (period or 0)] for own, period in zip(sizes, periods, strict=True))
    return tuple(float(own.median()) if len(own) else 0.0 for own in kept)


def signed(moves: Tensor, period: float | None) -> Tensor:
    """Differences of values, the shorter way around where there is a period."""
    return moves if period is None else moves - period * (moves / period).round()


def columns(names: Sequence[str | None] | None, found: Sequence[str]) -> list[tuple[int, str]]:
    """Which columns are factors, and their names: those that are said, where null leaves one out.

    Raises:
        Unsuitable: there are not as many names as columns, or a name cannot be one.
    """
    given = [*found] if names is None else names
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != len(found):
        raise Unsuitable(
            f"factor_names is {names!r}, but factors_key names {len(found)} columns ({', '.join(found)}); expected a "
            "name for each of them, or null for one that is no factor."
        )
    chosen = [(k, name) for k, name in enumerate(given) if name is not None]
    for _, name in chosen:
        sound = isinstance(name, str) and name.strip() == name != "" and name.isprintable() and len(name) <= LONGEST
        if not sound or set(name) & set("+/") or name == NOTHING:
            raise Unsuitable(
                f"a factor is to be called {name!r}; expected a word without + and /, other than {NOTHING!r}; say it "
                "by factor_names (data.source.factor_names=[…] on the command line)."
            )
    twice = sorted({name for _, name in chosen if [own for _, own in chosen].count(name) > 1})
    if twice or not chosen:
        what = f"two factors are called {twice[0]!r}" if twice else "factor_names leaves out all"
        raise Unsuitable(f"{what}; give each factor a name of its own by factor_names.")
    return [(k, str(name)) for k, name in chosen]


def check_periods(periods: Any, names: Sequence[str], table: Tensor) -> dict[str, float]:
    """The periods of some factors.

    Raises:
        Unsuitable: one is no number, of no factor, or less than what the values of that factor run through.
    """
    if not isinstance(periods, Mapping):
        raise Unsuitable(
            f"periods is {periods!r}; expected the period of each factor that is cyclic, such as {{{names[0]}: 360}} "
            f"('data.source.periods={{{names[0]}:360}}' on the command line), or null."
        )
    checked = {}
    for name, period in periods.items():
        if name not in names:
            raise Unsuitable(
                f"periods names {name!r}, which is no factor; expected one of {', '.join(names)}"
                f"{nearest(str(name), names)}."
            )
        number = isinstance(period, int | float) and not isinstance(period, bool)
        if not number or not 0 < period < math.inf:
            raise Unsuitable(
                f"the period of {name} is {period!r}; expected a number above 0, after which its values begin again."
            )
        values = table[:, names.index(name)]
        known = values[~values.isnan()]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        if high - low > period * (1 + SLACK):
            raise Unsuitable(
                f"the period of {name} is {period:g}, but its values run from {low:g} to {high:g}; give the period "
                "after which they begin again, or take them modulo that."
            )
        checked[str(name)] = float(period)
    return checked


def by_item(
    arrays: Stored, stored: Ordered, name: str, option: str, axes: Axes = None, n_columns: int | None = None
) -> tuple[list[NDArray[np.float64]], tuple[str, ...]]:
    """What arrays beside the pixels say of each frame: of every item (frame, F), and the names of the columns, if any.

    Args:
        arrays: in the order of the items.
        stored: the pixels.
        name, option: of the arrays, and of the setting that names them.
        axes: letters for their axes, N, S and F; of several words the one with as many letters is meant. None leaves
            it to their shape: the first axes are those of items and frames, in the order in which the pixels have
            these, and one that is as long as the sequences is theirs.
        n_columns: that there should be, where it is said.

    Raises:
        Unsuitable: they are no numbers, or their shape does not fit the pixels.
    """
    given = [] if axes is None else [axes] if isinstance(axes, str) else [*axes]
    words = [word.upper().replace("T", "S") if isinstance(word, str) else "?" for word in given]
    if any(not set(word) <= set("NSF") or len(set(word)) < len(word) for word in words):
        raise Unsuitable(
            f"factor_axes is {axes!r}; expected one letter for each axis, of {LETTERS} (data.source.factor_axes=NSF)."
        )
    items: list[NDArray[np.float64]] = []
    names: tuple[str, ...] = ()
    for array, n in _blocks(arrays):
        own, names = _numbers(array, name, option)
        lengths = stored.stored_lengths[len(items) : len(items) + n]
        order = "".join(letter for letter in stored.word if letter in "NS")
        items += _rows(own, words, order, lengths, stored.with_frames, name, option, n_columns)
    if len(items) != stored.n or len({part.shape[1] for part in items}) > 1:
        raise Unsuitable(
            f"{option} {name!r} is of {len(items)} items of {sorted({part.shape[1] for part in items})} columns; "
            f"expected {stored.n} items of as many columns each."
        )
    return items, names


def _blocks(arrays: Stored) -> list[tuple[Any, int]]:
    """Arrays whose items are of unlike lengths, item by item."""
    blocks: list[tuple[Any, int]] = []
    for array, n in arrays:
        if isinstance(array, Pieces) and array.lengths is not None:
            blocks += [(array.piece(place)[:], 1) for place in range(n)]
        else:
            blocks.append((array[:] if array.shape else array[()], n))
    return blocks


def _numbers(array: Any, name: str, option: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Finite numbers, or nan; the fields of a table are columns, behind the other axes."""
    values, names = np.asarray(array), tuple[str, ...]()
    if values.dtype.names:
        names = tuple(values.dtype.names)
        fields = [values[field] for field in names]
        kinds = {field.dtype.kind for field in fields}
        values = np.stack([field.astype(np.float64) for field in fields], -1) if kinds <= set("buif") else fields[0]
    if values.dtype.kind not in "buif":
        raise Unsuitable(
            f"{option} {name!r} has type {np.asarray(array).dtype}; expected numbers: number what is text, or name it "
            "by labels_key."
        )
    values = values.astype(np.float64)
    if np.isinf(values).any():
        raise Unsuitable(f"{option} {name!r} holds infinity; expected finite numbers.")
    return values, names


def _rows(
    values: NDArray[np.float64],
    said: Sequence[str],
    order: str,
    lengths: NDArray[np.int64],
    with_frames: bool,
    name: str,
    option: str,
    n_columns: int | None,
) -> list[NDArray[np.float64]]:
    """Of each of some items (frame, F)."""
    n, length = len(lengths), int(lengths[0]) if len({*lengths.tolist()}) == 1 else None
    order = order if with_frames else order.replace("S", "")
    bases = [order.replace("S", "")]  # one value an item
    if with_frames:
        bases.append(order if length is not None else "S")  # items of unlike lengths follow each other
    bases += [base.replace("N", "") for base in bases if n == 1]
    words = [*dict.fromkeys(base + column for base in reversed(bases) for column in ("", "F"))]
    sizes = {"N": n, "S": int(lengths.sum()) if length is None else length, "F": n_columns}

    def fits(letters: str, shape: Sequence[int]) -> bool:
        same = all(sizes[letter] in (size, None) for letter, size in zip(letters, shape, strict=False))
        return len(letters) == len(shape) and same and ("F" in letters or n_columns in (None, 1))

    tried = said or words
    for shape in dict.fromkeys([values.shape, tuple(size for size in values.shape if size > 1)]):
        for letters in tried:
            if not fits(letters, shape):
                continue
            own = values.reshape(shape)
            own = np.expand_dims(own, -1) if "F" not in letters else np.moveaxis(own, letters.index("F"), -1)
            rest = letters.replace("F", "")
            if length is None and "S" in rest:
                return np.split(own, np.cumsum(lengths)[:-1])
            own = own if "N" in rest else np.broadcast_to(own, (n, *own.shape))
            own = own.swapaxes(0, 1) if rest == "SN" else own
            own = own if "S" in rest else np.expand_dims(own, 1)
            return [np.broadcast_to(part, (frames, own.shape[-1])) for part, frames in zip(own, lengths, strict=True)]
    held = f"{n:,} items" + (f" of {sizes['S']:,} frames{' in all' * (length is None)}" if with_frames else "")
    counted = f", with {n_columns} columns, as factor_names says" if n_columns and option == "factors_key" else ""
    raise Unsuitable(
        f"{option} {name!r} has shape {values.shape}, but there are {held}"
        f"{counted}; expected {' or '.join(filter(None, tried))}, of {LETTERS}"
        f"{': say another order by factor_axes' if not said and option == 'factors_key' else ''}."
    )
