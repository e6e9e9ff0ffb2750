"""Fitting and judging a Topographic VAE: objectives, training, likelihood, equivariance."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .equivariance import (
        ForwardRoll,
        RollCorrelation,
        capsule_correlation,
        equivariance_error,
        forward_roll,
        roll_correlation,
    )
    from .likelihood import LogLikelihood, log_likelihood, log_weights
    from .objectives import ELBO, Terms
    from .training import Fitting, History, fit

_HOMES = {
    "equivariance": (
        "ForwardRoll",
        "RollCorrelation",
        "capsule_correlation",
        "equivariance_error",
        "forward_roll",
        "roll_correlation",
    ),
    "likelihood": ("LogLikelihood", "log_likelihood", "log_weights"),
    "objectives": ("ELBO", "Terms"),
    "training": ("Fitting", "History", "fit"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ELBO",
    "Fitting",
    "ForwardRoll",
    "History",
    "LogLikelihood",
    "RollCorrelation",
    "Terms",
    "capsule_correlation",
    "equivariance_error",
    "fit",
    "forward_roll",
    "log_likelihood",
    "log_weights",
    "roll_correlation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
