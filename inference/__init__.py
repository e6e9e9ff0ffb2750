"""Fitting and judging a Topographic VAE: objectives, training, likelihood, posteriors, equivariance."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .annealing import AnnealedEstimate, Bracket, annealed_importance, bracket, reverse_annealing
    from .content import active_latents, commutation, pose_probe, probe
    from .equivariance import (
        ForwardRoll,
        RollCorrelation,
        capsule_correlation,
        equivariance_error,
        forward_roll,
        roll_correlation,
    )
    from .likelihood import LogLikelihood, log_likelihood, log_weights
    from .mcmc import GuideQuality, NUTSResult, guide_quality, nuts
    from .objectives import ELBO, IWAE, DReG, MeanFieldELBO, Objective, Terms
    from .posterior import from_netcdf, to_arviz, to_netcdf
    from .ranks import Calibration, calibration
    from .selectivity import (
        NeighbourCorrelation,
        class_selectivity,
        neighbour_correlation,
        preferred_class,
        preferred_value,
        slant,
        stroke_width,
    )
    from .training import Fitting, History, fit

_HOMES = {
    "annealing": ("AnnealedEstimate", "Bracket", "annealed_importance", "bracket", "reverse_annealing"),
    "content": ("active_latents", "commutation", "pose_probe", "probe"),
    "equivariance": (
        "ForwardRoll",
        "RollCorrelation",
        "capsule_correlation",
        "equivariance_error",
        "forward_roll",
        "roll_correlation",
    ),
    "likelihood": ("LogLikelihood", "log_likelihood", "log_weights"),
    "mcmc": ("GuideQuality", "NUTSResult", "guide_quality", "nuts"),
    "objectives": ("ELBO", "IWAE", "DReG", "MeanFieldELBO", "Objective", "Terms"),
    "posterior": ("from_netcdf", "to_arviz", "to_netcdf"),
    "ranks": ("Calibration", "calibration"),
    "selectivity": (
        "NeighbourCorrelation",
        "class_selectivity",
        "neighbour_correlation",
        "preferred_class",
        "preferred_value",
        "slant",
        "stroke_width",
    ),
    "training": ("Fitting", "History", "fit"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ELBO",
    "IWAE",
    "AnnealedEstimate",
    "Bracket",
    "Calibration",
    "DReG",
    "Fitting",
    "ForwardRoll",
    "GuideQuality",
    "History",
    "LogLikelihood",
    "MeanFieldELBO",
    "NUTSResult",
    "NeighbourCorrelation",
    "Objective",
    "RollCorrelation",
    "Terms",
    "active_latents",
    "annealed_importance",
    "bracket",
    "calibration",
    "capsule_correlation",
    "class_selectivity",
    "commutation",
    "equivariance_error",
    "fit",
    "forward_roll",
    "from_netcdf",
    "guide_quality",
    "log_likelihood",
    "log_weights",
    "neighbour_correlation",
    "nuts",
    "pose_probe",
    "preferred_class",
    "preferred_value",
    "probe",
    "reverse_annealing",
    "roll_correlation",
    "slant",
    "stroke_width",
    "to_arviz",
    "to_netcdf",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
