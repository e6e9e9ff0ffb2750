"""The Topographic VAE as a Pyro program: model, guides and the verbs one uses them with.

Names are loaded when first used, so that a command line that only prints its help does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .guides import Guide, MeanFieldGuide, OrbitGuide, default_guide
    from .likelihoods import Bernoulli, ContinuousBernoulli, Likelihood, Normal
    from .model import TVAE
    from .networks import MLP, Network
    from .parts import Part
    from .priors import EnergyPrior, GaussianEnergy, OrbitEnergy
    from .storage import load, save
    from .topography import CapsuleRoll, NoTopography, Stationary, Topography, Torus, roll
    from .verbs import encode, reconstruct, sample, traverse

_HOMES = {
    "guides": ("Guide", "MeanFieldGuide", "OrbitGuide", "default_guide"),
    "likelihoods": ("Bernoulli", "ContinuousBernoulli", "Likelihood", "Normal"),
    "model": ("TVAE",),
    "networks": ("MLP", "Network"),
    "parts": ("Part",),
    "priors": ("EnergyPrior", "GaussianEnergy", "OrbitEnergy"),
    "storage": ("load", "save"),
    "topography": ("CapsuleRoll", "NoTopography", "Stationary", "Topography", "Torus", "roll"),
    "verbs": ("encode", "reconstruct", "sample", "traverse"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "MLP",
    "TVAE",
    "Bernoulli",
    "CapsuleRoll",
    "ContinuousBernoulli",
    "EnergyPrior",
    "GaussianEnergy",
    "Guide",
    "Likelihood",
    "MeanFieldGuide",
    "Network",
    "NoTopography",
    "Normal",
    "OrbitEnergy",
    "OrbitGuide",
    "Part",
    "Stationary",
    "Topography",
    "Torus",
    "default_guide",
    "encode",
    "load",
    "reconstruct",
    "roll",
    "sample",
    "save",
    "traverse",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in ("inference", "experiments"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
