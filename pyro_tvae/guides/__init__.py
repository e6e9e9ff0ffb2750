"""Guides: amortised posteriors over the latents of a sequence."""

from .base import Guide, Posterior
from .default import default_guide
from .flow import FlowGuide
from .gamma import GammaGuide
from .guide_list import GuideList
from .joint import ConditionalGuide, CovarianceGuide
from .laplace import LaplaceGuide
from .mean_field import MeanFieldGuide, SharedTrunkGuide
from .orbit import ConditionalOrbitGuide, OrbitCovarianceGuide, OrbitGuide
from .radial import RadialGuide
from .semi_amortized import SemiAmortizedGuide
from .sequence import SequenceGuide

__all__ = [
    "ConditionalGuide",
    "ConditionalOrbitGuide",
    "CovarianceGuide",
    "FlowGuide",
    "GammaGuide",
    "Guide",
    "GuideList",
    "LaplaceGuide",
    "MeanFieldGuide",
    "OrbitCovarianceGuide",
    "OrbitGuide",
    "Posterior",
    "RadialGuide",
    "SemiAmortizedGuide",
    "SequenceGuide",
    "SharedTrunkGuide",
    "default_guide",
]
