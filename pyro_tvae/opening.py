"""Data sets that open files when they are first asked: every process that looks at one reads by files of its own.

Workers that are forked share what was open before with all others, and with it the place that is read at, so that rows
of one are taken for rows of another.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

__all__ = ["Opened", "PerProcess", "unopened"]


def unopened(dataset: Any) -> Any:
    """A data set with the same contents, for a look that leaves the files of the given one closed."""
    if not isinstance(dataset, Dataset):
        return dataset
    try:
        twin = copy.copy(dataset)
        for name, value in vars(twin).items():
            if isinstance(value, Dataset):
                vars(twin)[name] = unopened(value)
            elif isinstance(value, list) and any(isinstance(one, Dataset) for one in value):
                vars(twin)[name] = [*map(unopened, value)]
    except Exception:  # one that cannot be copied is looked at itself
        return dataset
    return twin


class PerProcess:
    """What a function makes, made anew in every process that asks; sent to another one it goes without.

    Args:
        make: a function of a module's top level, so that workers can be sent it.
        arguments: of it.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self.make, self.arguments = make, arguments
        self._made: tuple[int, Any] | None = None

    def __call__(self) -> Any:
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), self.make(*self.arguments)
        return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None}


class Opened:
    """The items of a data set by their places, which opens what it opens anew in every process that asks.

    Args:
        dataset: has a length; nothing was read from it yet.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = unopened(dataset)
        self._own = PerProcess(unopened, self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> Any:
        return self._own()[place]
