"""Fitting and judging a Topographic VAE: objectives, training, likelihood, posteriors, equivariance."""

from typing import TYPE_CHECKING

from ..lazy import attach

CONTENTS = (
    "training",
    "objectives",
    "likelihood",
    "annealing",
    "posterior",
    "mcmc",
    "simulation_based_calibration",
    "equivariance",
    "linear_probes",
    "selectivity",
)
FORMER = {"NeighbourCorrelation": "NeighborCorrelation", "neighbour_correlation": "neighbor_correlation"}

if TYPE_CHECKING:
    from .annealing import *
    from .equivariance import *
    from .likelihood import *
    from .linear_probes import *
    from .mcmc import *
    from .objectives import *
    from .posterior import *
    from .selectivity import *
    from .simulation_based_calibration import *
    from .training import *
else:
    __getattr__, __dir__ = attach(__name__, CONTENTS, former=FORMER)
