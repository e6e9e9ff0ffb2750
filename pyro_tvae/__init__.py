"""The Topographic VAE as a Pyro program: model, guides and the verbs one uses them with.

Names are loaded when first used, so that a command line that only prints its help does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convolution import Convolutional
    from .export import Decoder, Encoder
    from .flow_guide import FlowGuide
    from .gamma_guide import GammaGuide
    from .grids import GridRoll, Matrix
    from .guide_list import GuideList
    from .guides import Guide, MeanFieldGuide, OrbitGuide, SharedTrunkGuide, default_guide
    from .joint_guides import ConditionalGuide, CovarianceGuide
    from .latents import AutoregressiveLatent, LaplaceLatent, LatentPrior, NormalLatent, StudentLatent
    from .lengths import with_n_frames
    from .likelihoods import Bernoulli, BinarisedBernoulli, ContinuousBernoulli, Likelihood, Normal
    from .mixture_latents import MixtureLatent, PseudoInputLatent
    from .model import TVAE
    from .networks import MLP, Network
    from .orbit_guides import ConditionalOrbitGuide, OrbitCovarianceGuide
    from .parts import Part
    from .priors import EnergyPrior, GammaEnergy, GaussianEnergy, OrbitEnergy
    from .refined_guide import SemiAmortisedGuide
    from .sequence_guide import SequenceGuide
    from .storage import load, save
    from .topography import CapsuleRoll, NoTopography, Stationary, Topography, Torus, roll
    from .verbs import encode, interpolate, reconstruct, sample, traverse

_HOMES = {
    "convolution": ("Convolutional",),
    "export": ("Decoder", "Encoder"),
    "flow_guide": ("FlowGuide",),
    "gamma_guide": ("GammaGuide",),
    "grids": ("GridRoll", "Matrix"),
    "guide_list": ("GuideList",),
    "guides": ("Guide", "MeanFieldGuide", "OrbitGuide", "SharedTrunkGuide", "default_guide"),
    "joint_guides": ("ConditionalGuide", "CovarianceGuide"),
    "latents": ("AutoregressiveLatent", "LaplaceLatent", "LatentPrior", "NormalLatent", "StudentLatent"),
    "lengths": ("with_n_frames",),
    "likelihoods": ("Bernoulli", "BinarisedBernoulli", "ContinuousBernoulli", "Likelihood", "Normal"),
    "mixture_latents": ("MixtureLatent", "PseudoInputLatent"),
    "model": ("TVAE",),
    "networks": ("MLP", "Network"),
    "orbit_guides": ("ConditionalOrbitGuide", "OrbitCovarianceGuide"),
    "parts": ("Part",),
    "priors": ("EnergyPrior", "GammaEnergy", "GaussianEnergy", "OrbitEnergy"),
    "refined_guide": ("SemiAmortisedGuide",),
    "sequence_guide": ("SequenceGuide",),
    "storage": ("load", "save"),
    "topography": ("CapsuleRoll", "NoTopography", "Stationary", "Topography", "Torus", "roll"),
    "verbs": ("encode", "interpolate", "reconstruct", "sample", "traverse"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "MLP",
    "TVAE",
    "AutoregressiveLatent",
    "Bernoulli",
    "BinarisedBernoulli",
    "CapsuleRoll",
    "ConditionalGuide",
    "ConditionalOrbitGuide",
    "ContinuousBernoulli",
    "Convolutional",
    "CovarianceGuide",
    "Decoder",
    "Encoder",
    "EnergyPrior",
    "FlowGuide",
    "GammaEnergy",
    "GammaGuide",
    "GaussianEnergy",
    "GridRoll",
    "Guide",
    "GuideList",
    "LaplaceLatent",
    "LatentPrior",
    "Likelihood",
    "Matrix",
    "MeanFieldGuide",
    "MixtureLatent",
    "Network",
    "NoTopography",
    "Normal",
    "NormalLatent",
    "OrbitCovarianceGuide",
    "OrbitEnergy",
    "OrbitGuide",
    "Part",
    "PseudoInputLatent",
    "SemiAmortisedGuide",
    "SequenceGuide",
    "SharedTrunkGuide",
    "Stationary",
    "StudentLatent",
    "Topography",
    "Torus",
    "default_guide",
    "encode",
    "interpolate",
    "load",
    "reconstruct",
    "roll",
    "sample",
    "save",
    "traverse",
    "with_n_frames",
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
