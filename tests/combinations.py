"""Every sensible combination of topography, prior, guide, likelihood, law of z and network, at the smallest size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch

from pyro_tvae import (
    MLP,
    TVAE,
    AutoregressiveLatent,
    Bernoulli,
    BinarizedBernoulli,
    CapsuleRoll,
    ConditionalGuide,
    ConditionalOrbitGuide,
    ContinuousBernoulli,
    Convolutional,
    CovarianceGuide,
    EnergyPrior,
    FlowGuide,
    GammaEnergy,
    GammaGuide,
    GaussianEnergy,
    GridRoll,
    Guide,
    LaplaceLatent,
    LatentPrior,
    Likelihood,
    Matrix,
    MeanFieldGuide,
    MixtureLatent,
    Network,
    Normal,
    NormalLatent,
    NoTopography,
    OrbitCovarianceGuide,
    OrbitEnergy,
    OrbitGuide,
    PseudoInputLatent,
    RadialGuide,
    SemiAmortizedGuide,
    SequenceGuide,
    SharedTrunkGuide,
    Stationary,
    StudentLatent,
    Topography,
    Torus,
)

FRAME, S, C, D = (1, 6, 6), 4, 2, 4

TOPOGRAPHIES: dict[str, Callable[[], Topography]] = {
    "orbits": lambda: CapsuleRoll(4, 0),
    "roll": lambda: CapsuleRoll(3, 1),
    "learned": lambda: CapsuleRoll(3, 1, learned=True),
    "truncated": lambda: CapsuleRoll(3, 1, boundary="truncate"),
    "stationary": lambda: Stationary((3, 2)),
    "torus": lambda: Torus((2, 2), (2, 2)),
    "velocity": lambda: GridRoll(3, velocity=0.5),
    "grid": lambda: GridRoll(3, grid=(2, 2), velocity=(1, 0)),
    "matrix": lambda: Matrix(torch.eye(S * D) + 0.1),
    "none": NoTopography,
}
PRIORS: dict[str, Callable[[], EnergyPrior]] = {
    "gaussian": GaussianEnergy,
    "gamma": GammaEnergy,
    "gamma, learned": lambda: GammaEnergy(0.8, learned=True),
    "orbit": OrbitEnergy,
}
ROLLS = {Matrix: 1}  # of what is no list of offsets
GUIDES: dict[str, Callable[[TVAE], Guide]] = {
    "mean_field": MeanFieldGuide,
    "orbit": OrbitGuide,
    "orbit, shared trunk": lambda model: OrbitGuide(model, shared_trunk=True),
    "conditional_orbit": ConditionalOrbitGuide,
    "orbit_covariance": lambda model: OrbitCovarianceGuide(model, rank=2),
    "gamma": GammaGuide,
    "radial": lambda model: RadialGuide(model, velocity=ROLLS.get(type(model.topography))),
    "shared_trunk": SharedTrunkGuide,
    "sequence": SequenceGuide,
    "low_rank": lambda model: CovarianceGuide(model, rank=2),
    "full_covariance": lambda model: CovarianceGuide(model, rank=None),
    "conditional": ConditionalGuide,
    "flow": FlowGuide,
    "semi_amortized": lambda model: SemiAmortizedGuide(model, steps=2, num_particles=1),
}
LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": Bernoulli,
    "binarised": lambda: BinarizedBernoulli(seed=1),
    "continuous_bernoulli": ContinuousBernoulli,
    "normal": lambda: Normal(0.3, learned=True),
}
LATENTS: dict[str, Callable[[], LatentPrior]] = {
    "normal": NormalLatent,
    "laplace": LaplaceLatent,
    "student": StudentLatent,
    "autoregressive": AutoregressiveLatent,
    "mixture": lambda: MixtureLatent(3),
    "pseudo_input": lambda: PseudoInputLatent(2),
}
NETWORKS: dict[str, Callable[[], Network]] = {
    "mlp": lambda: MLP((1.0,), (1.0,)),
    "convolutional": lambda: Convolutional((3,), 1),
}


ORBITS = ("orbit", "orbit, shared trunk", "conditional_orbit", "orbit_covariance")


KINDS = {"gamma": "gamma", "radial": "gaussian"}  # of energies that a guide is made for


def sensible(topography: str, prior: str | None, guide: str) -> bool:
    if topography == "none":
        return prior is None and guide not in (*ORBITS, "gamma", "radial", "conditional", "flow")
    if prior == "orbit":
        # The torus's kernel covers its whole grid, so that a frame is one orbit.
        return topography in ("orbits", "torus") and guide in (*ORBITS, "semi_amortized")
    return prior is not None and guide not in ORBITS and KINDS.get(guide, prior) in prior


TRIPLES = list(itertools.product(TOPOGRAPHIES, (*PRIORS, None), GUIDES))


def combinations() -> Iterator[tuple[str, str | None, str, str, str, str]]:
    """Every sensible topography x prior x guide x likelihood; laws of z and networks take turns along the way."""
    turn = 0
    for topography, prior, guide in TRIPLES:
        if sensible(topography, prior, guide):
            for likelihood in LIKELIHOODS:
                latent, network = list(LATENTS)[turn % len(LATENTS)], list(NETWORKS)[turn % 3 % 2]
                yield topography, prior, guide, likelihood, latent, network
                turn += 1
            turn += 1  # so that no law of z is always met with the same likelihood


def build(
    topography: str,
    prior: str | None,
    likelihood: str = "bernoulli",
    latent: str = "normal",
    network: str = "mlp",
    centered: bool = False,
) -> TVAE:
    return TVAE(
        FRAME,
        S,
        C,
        D,
        TOPOGRAPHIES[topography](),
        prior=None if prior is None else PRIORS[prior](),
        latent=LATENTS[latent](),
        likelihood=LIKELIHOODS[likelihood](),
        network=NETWORKS[network](),
        mu=2.0,
        centered=centered,
    )


ALL = list(combinations())
