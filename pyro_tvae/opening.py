"""Data sets that open files when they are first asked: every process that looks at one reads by files of its own.

Workers that are forked share what was open before with all others, and with it the place that is read at, so that rows
of one are taken for rows of another.
"""

from __future__ import annotations

import copy
import os
from typing import Any

from torch.utils.data import Dataset

__all__ = ["Opened", "unopened"]


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


class Opened:
    """The items of a data set by their places, which opens what it opens anew in every process that asks.

    Args:
        dataset: has a length; nothing was read from it yet.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = unopened(dataset)
        self._own: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> Any:
        if self._own is None or self._own[0] != os.getpid():
            self._own = os.getpid(), unopened(self.dataset)
        return self._own[1][place]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_own": None}
