"""Names in Pyro's parameter store: one prefix per instance, so that two models never share a parameter."""

from __future__ import annotations

import copy
import itertools
from typing import Any, TypeVar

from pyro.nn import PyroModule
from pyro.nn.module import _Context

__all__ = ["NamedModule"]

_Self = TypeVar("_Self", bound="NamedModule")


class NamedModule(PyroModule):
    """A PyroModule whose parameters enter the store as ``<class>_<count>.…``.

    Pyro finds parameters by name and lets a stored one replace a module's own. Two models built alike would therefore
    share their weights without a word, and so would a deep copy and its original: both get a name of their own here.
    """

    _count = itertools.count()

    def __init__(self) -> None:
        super().__init__(name=self._fresh_name())

    @classmethod
    def _fresh_name(cls) -> str:
        return f"{cls.__name__}_{next(NamedModule._count)}"

    def __deepcopy__(self: _Self, memo: dict[int, Any]) -> _Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        twin._pyro_set_supermodule(self._fresh_name(), _Context())
        return twin
