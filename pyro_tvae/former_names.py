"""Former names: what classes and arguments are called in files of older versions, and what they are called now.

Who renames a public part adds a line to CLASSES, ``"pyro_tvae.Old": "pyro_tvae.New"``; the lines that stand here stay
as they are, since names are followed from line to line. Who renames an argument adds one to ARGUMENTS. Who moves a
class to another module adds nothing: files name it by its public path, ``pyro_tvae.New``, wherever it lives.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ARGUMENTS", "CLASSES", "current"]

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


def current(name: str, renamed: Mapping[str, str] = CLASSES) -> str:
    """What something is called now."""
    while name in renamed:
        name = renamed[name]
    return name
