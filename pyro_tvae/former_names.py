"""Former names of classes, arguments and methods, and what they are called now.

Who renames a public part adds a line to CLASSES, ``"pyro_tvae.Old": "pyro_tvae.New"``; the lines that stand here stay
as they are, since names are followed from line to line. Who renames an argument adds one to ARGUMENTS. Who moves a
class to another module adds nothing: files name it by its public path, ``pyro_tvae.New``, wherever it lives.

Files of any version are read for good. In code, what was renamed is understood for one version, with a
DeprecationWarning: classes, arguments and methods of parts by these tables, names of ``inference`` by its ``FORMER``.
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ARGUMENTS", "CLASSES", "METHODS", "current", "follow_methods", "sites_of", "warn"]

# Former public path of a part -> public path, which may be a former one itself.
CLASSES: dict[str, str] = {
    # American spelling.
    "pyro_tvae.BinarisedBernoulli": "pyro_tvae.BinarizedBernoulli",
    "pyro_tvae.SemiAmortisedGuide": "pyro_tvae.SemiAmortizedGuide",
}

# Versions 1 and 2 named the modules that parts were defined in, "pyro_tvae.priors.GammaEnergy", wherever those lay.
MODULE = re.compile(r"^pyro_tvae\.(?!inference\b|experiments\b)\w+\.(?=[A-Z]\w*$)")

# Public path as it is now -> former argument -> argument, which may be a former one itself. Subclasses share them.
ARGUMENTS: dict[str, dict[str, str]] = {"pyro_tvae.TVAE": {"centred": "centered"}}

# The same of methods, which are understood when they are called and when a subclass overrides them.
METHODS: dict[str, dict[str, str]] = {
    "pyro_tvae.BinarizedBernoulli": {"binarise": "binarize"},
    "pyro_tvae.EnergyPrior": {"law": "distribution"},
    "pyro_tvae.LatentPrior": {"law": "distribution"},
    "pyro_tvae.TVAE": {"centre": "center", "laws": "prior_distributions"},
    "pyro_tvae.Topography": {"neighbourhood": "neighborhood"},
}


def current(name: str, renamed: Mapping[str, str] = CLASSES) -> str:
    """What something is called now; a part by its public path, where it is named by a module of this package."""
    name = MODULE.sub("pyro_tvae.", name)
    while name in renamed:
        name = renamed[name]
    return name


def warn(former: str, now: str, stacklevel: int) -> None:
    """Say what something is called now, to the code so many calls above the caller."""
    sentence = f"{former} is now {now}; the former name goes with the next version."
    warnings.warn(sentence, DeprecationWarning, stacklevel=stacklevel + 1)


def follow_methods(cls: Any) -> None:
    """Called for every new class of parts: give it the methods that it has under former names, and those names."""
    ours = [one.__name__ for one in cls.__mro__ if one.__module__.startswith("pyro_tvae")]
    for former, now in [pair for name in ours for pair in METHODS.get(f"pyro_tvae.{name}", {}).items()]:
        definer = next(one for one in cls.__mro__ if former in vars(one) or now in vars(one))
        if now not in vars(definer):
            warn(f"{cls.__name__}: the method {former!r} that it overrides", repr(now), 3)
            setattr(cls, now, vars(definer)[former])
        if now in vars(cls):
            setattr(cls, former, _former_method(cls, former, now))
    if "TVAE" in ours and "compose" in vars(cls):
        names = [*inspect.signature(cls.compose).parameters][1:]
        if names[:1] != ["values"] and (len(names) > 1 or names == ["z"]):
            warn(f"{cls.__name__}.compose(z, u)", "compose(values), of a mapping of sites to values", 3)
            cls.compose = _of_sites(cls.compose)


def _former_method(cls: type, former: str, now: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        warn(f"{cls.__name__}.{former}", repr(now), 2)
        # Reached past a class that has one of its own, this is a call by super(): the next in turn is meant, not the
        # last, which is where it comes from.
        last = next(one for one in type(self).__mro__ if former in vars(one)) is cls
        function = getattr(self, now) if last else vars(cls)[now].__get__(self, type(self))
        return function(*args, **kwargs)

    return method


def _of_sites(compose: Callable[..., Any]) -> Callable[..., Any]:
    """A model's ``compose`` that takes z and u, as it once did, for those who give it a mapping of sites."""

    @functools.wraps(compose)
    def of_sites(self: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(values, Mapping):
            return compose(self, values, *args, **kwargs)
        return compose(self, values["z"], *(values[site] for site in self.energies))

    return of_sites


def sites_of(model: Any, z: Any, u: Any) -> dict[str, Any]:
    """The mapping of sites that ``compose(z, u)`` means."""
    warn("compose(z, u)", "compose(values), of a mapping of sites to values", 3)
    return {"z": z} | ({} if u is None else dict.fromkeys(model.energies, u))
