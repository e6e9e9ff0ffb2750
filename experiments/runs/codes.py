"""Code of the user's own: whether runs that stand side by side are of the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["other_codes"]


def other_codes(weights: Mapping[str, Path], where: object) -> list[str]:
    """What is to be said of runs whose parts of the user's own are of different code, a sentence each.

    Args:
        weights: name of a run -> the file of its weights.
        where: they stand side by side.
    """
    from pyro_tvae.own_code import several  # takes seconds, for which a mistyped command does not wait
    from pyro_tvae.storage import code_in

    codes: dict[str, dict[str, str]] = {}
    for name, path in weights.items():
        with suppress(OSError, ValueError):  # it is not trained yet, or its own command says what is wrong with it
            codes[name] = code_in(path)
    return [
        f"the code of {cls} was edited between runs in {where}: {' / '.join('; '.join(one) for one in same)}. How they "
        "differ may be how it does."
        for cls, same in several(codes).items()
    ]
