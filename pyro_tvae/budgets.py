"""Budgets: how much may be made while a model file is read, whose few lines can ask for more than memory holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from itertools import zip_longest
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Budget"]

# Beside what a file holds: W of 10,000 frames times positions takes several times its 10,000² numbers.
FREE_NUMBERS, FREE_CALLS = 2**29, 10_000
# Of what it holds: a constructor makes a number about five times, and calls torch about twenty times for a tensor.
NUMBERS, CALLS = 100, 1_000
SIZED = ("empty", "zeros", "ones", "full", "rand", "randn", "new_empty", "new_zeros", "new_ones", "new_full")
POINTWISE = ("add", "radd", "sub", "rsub", "mul", "rmul", "div", "truediv", "eq", "ne", "lt", "le", "gt", "ge", "where")


class Budget(TorchFunctionMode):
    """A block of code in which torch makes no more than goes with what a file holds.

    What a call would make is counted before it is made, where sizes or broadcasting say it.

    Raises:
        ValueError: more is asked for.

    Example:
        >>> import torch
        >>> with Budget([torch.zeros(3)]):
        ...     _ = torch.zeros(10, 10)
        >>> with Budget([torch.zeros(3)]):
        ...     _ = torch.zeros(1_000_000, 1_000_000)
        Traceback (most recent call last):
        ...
        ValueError: it asks for more than fits the 3 numbers of its 1 tensors
    """

    def __init__(self, tensors: Collection[Tensor]) -> None:
        super().__init__()
        self.held, self.n_tensors = sum(value.numel() for value in tensors), len(tensors)
        self.numbers = FREE_NUMBERS + NUMBERS * self.held
        self.calls = FREE_CALLS + CALLS * self.n_tensors

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.calls -= 1
        self._check(_expected(getattr(func, "__name__", ""), args, kwargs))
        made = func(*args, **kwargs)
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor) and not one._is_view() and not any(one is given for given in args):
                self.numbers -= one.numel()
        self._check(0)
        return made

    def _check(self, numbers: int) -> None:
        if self.calls < 0 or numbers > self.numbers or self.numbers < 0:
            raise ValueError(f"it asks for more than fits the {self.held:,} numbers of its {self.n_tensors:,} tensors")


def _expected(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many numbers a call would make; 0 where that is not said by its arguments."""
    if name in SIZED:
        given = [*args, *kwargs.values()]
        sizes = next((one for one in given if isinstance(one, tuple | list)), given)
        return math.prod(abs(size) for size in sizes if isinstance(size, int) and not isinstance(size, bool))
    if name == "arange":
        return max((abs(int(end)) for end in args if isinstance(end, int)), default=0)
    shapes = [one.shape for one in args if isinstance(one, Tensor)]
    if name == "cartesian_prod":
        return len(shapes) * math.prod(map(math.prod, shapes))
    if name.strip("_") in POINTWISE:
        return math.prod(map(max, zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)))
    return 0
