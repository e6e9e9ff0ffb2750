"""Former names of classes, arguments and methods, and what they are called now.

Who renames a public part adds a line to CLASSES, ``"pyro_tvae.Old": "pyro_tvae.New"``; the lines that stand here stay
as they are, since names are followed from line to line. Who renames an argument adds one to ARGUMENTS. Who moves a
class to another module adds nothing: files name it by its public path, ``pyro_tvae.New``, wherever it lives.

Files of any version are read for good. In code, what was renamed is understood for one version, with a
DeprecationWarning: arguments and methods of parts by these tables, names of the package by its ``FORMER``.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ARGUMENTS", "CLASSES", "METHODS", "current", "follow_methods", "sites_of", "warn"]

# Former dotted name -> public path, which may be a former one itself.
CLASSES: dict[str, str] = {
    # Versions 1 and 2 named the modules that classes were defined in.
    "pyro_tvae.convolution.Convolutional": "pyro_tvae.Convolutional",
    "pyro_tvae.flow_guide.FlowGuide": "pyro_tvae.FlowGuide",
    "pyro_tvae.gamma_guide.GammaGuide": "pyro_tvae.GammaGuide",
    "pyro_tvae.grids.GridRoll": "pyro_tvae.GridRoll",
    "pyro_tvae.grids.Matrix": "pyro_tvae.Matrix",
    "pyro_tvae.guides.MeanFieldGuide": "pyro_tvae.MeanFieldGuide",
    "pyro_tvae.guides.OrbitGuide": "pyro_tvae.OrbitGuide",
    "pyro_tvae.guides.SharedTrunkGuide": "pyro_tvae.SharedTrunkGuide",
    "pyro_tvae.joint_guides.ConditionalGuide": "pyro_tvae.ConditionalGuide",
    "pyro_tvae.joint_guides.CovarianceGuide": "pyro_tvae.CovarianceGuide",
    "pyro_tvae.latents.AutoregressiveLatent": "pyro_tvae.AutoregressiveLatent",
    "pyro_tvae.latents.LaplaceLatent": "pyro_tvae.LaplaceLatent",
    "pyro_tvae.latents.NormalLatent": "pyro_tvae.NormalLatent",
    "pyro_tvae.latents.StudentLatent": "pyro_tvae.StudentLatent",
    "pyro_tvae.likelihoods.Bernoulli": "pyro_tvae.Bernoulli",
    "pyro_tvae.likelihoods.BinarisedBernoulli": "pyro_tvae.BinarisedBernoulli",
    "pyro_tvae.likelihoods.ContinuousBernoulli": "pyro_tvae.ContinuousBernoulli",
    "pyro_tvae.likelihoods.Normal": "pyro_tvae.Normal",
    "pyro_tvae.mixture_latents.MixtureLatent": "pyro_tvae.MixtureLatent",
    "pyro_tvae.mixture_latents.PseudoInputLatent": "pyro_tvae.PseudoInputLatent",
    "pyro_tvae.model.TVAE": "pyro_tvae.TVAE",
    "pyro_tvae.networks.MLP": "pyro_tvae.MLP",
    "pyro_tvae.orbit_guides.ConditionalOrbitGuide": "pyro_tvae.ConditionalOrbitGuide",
    "pyro_tvae.orbit_guides.OrbitCovarianceGuide": "pyro_tvae.OrbitCovarianceGuide",
    "pyro_tvae.priors.GammaEnergy": "pyro_tvae.GammaEnergy",
    "pyro_tvae.priors.GaussianEnergy": "pyro_tvae.GaussianEnergy",
    "pyro_tvae.priors.OrbitEnergy": "pyro_tvae.OrbitEnergy",
    "pyro_tvae.refined_guide.SemiAmortisedGuide": "pyro_tvae.SemiAmortisedGuide",
    "pyro_tvae.sequence_guide.SequenceGuide": "pyro_tvae.SequenceGuide",
    "pyro_tvae.topography.CapsuleRoll": "pyro_tvae.CapsuleRoll",
    "pyro_tvae.topography.NoTopography": "pyro_tvae.NoTopography",
    "pyro_tvae.topography.Stationary": "pyro_tvae.Stationary",
    "pyro_tvae.topography.Torus": "pyro_tvae.Torus",
    # American spelling.
    "pyro_tvae.BinarisedBernoulli": "pyro_tvae.BinarizedBernoulli",
    "pyro_tvae.SemiAmortisedGuide": "pyro_tvae.SemiAmortizedGuide",
}

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
    """What something is called now."""
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
