"""Fitting and judging a Topographic VAE: objectives, training, likelihood, posteriors, equivariance."""

from typing import TYPE_CHECKING

from ..lazy import attach

CONTENTS = (
    "training",
    "objectives",
    "likelihood",
    "annealing",
    "comparison",
    "posterior",
    "mcmc",
    "predictive_checks",
    "simulation_based_calibration",
    "equivariance",
    "forecasts",
    "velocities",
    "pareto",
    "linear_probes",
    "schedules",
    "selectivity",
)
# For one version, two of these lie a floor above: strings are no imports, and whoever follows them is warned.
FORMER = {
    "NeighbourCorrelation": "NeighborCorrelation",
    "neighbour_correlation": "neighbor_correlation",
    "slant": "pyro_tvae.experiments.evaluation.handwriting:slant",
    "stroke_width": "pyro_tvae.experiments.evaluation.handwriting:stroke_width",
}

if TYPE_CHECKING:
    from .annealing import *
    from .comparison import *
    from .equivariance import *
    from .forecasts import *
    from .likelihood import *
    from .linear_probes import *
    from .mcmc import *
    from .objectives import *
    from .pareto import *
    from .posterior import *
    from .predictive_checks import *
    from .schedules import *
    from .selectivity import *
    from .simulation_based_calibration import *
    from .training import *
    from .velocities import *
else:
    __getattr__, __dir__ = attach(__name__, CONTENTS, former=FORMER)
