"""Refitting: guides compared on one log p(x), each fitted to the same model, whose weights are held."""

from __future__ import annotations

import warnings

import torch

from pyro_tvae import TVAE
from pyro_tvae.inference import log_likelihood

from ..config.building import Parts, fit_parts
from ..config.composition import make
from ..datasets.splits import given_by
from ..runs.run import Run
from .cells import ANNEALED, added

__all__ = ["refit", "take_over"]

APART = ("prior.", "topography.")  # what two models of the same law may differ in


def take_over(model: TVAE, reference: TVAE) -> TVAE:
    """Give a model the weights of another, but for how its energies are represented, and hold them.

    Where both priors give V the same law, as Gaussian u, Gamma(½, ½) energies and one χ² energy per orbit do on
    disjoint orbits, both models then give x the same law.

    Raises:
        ValueError: they differ in more than the representation of their energies.
    """
    weights = {name: value for name, value in reference.state_dict().items() if not name.startswith(APART)}
    own = {name: value.shape for name, value in model.state_dict().items() if not name.startswith(APART)}
    if (
        own != {name: value.shape for name, value in weights.items()}
        or model.latent_shape != reference.latent_shape
        or not _same_sums(model, reference)
    ):
        raise ValueError(
            "refit: the model and its reference differ in more than their energies; expected the same sizes, networks, "
            "likelihood, topography and centring in both."
        )
    model.load_state_dict(weights, strict=False)
    return model.requires_grad_(False)


def _same_sums(model: TVAE, other: TVAE) -> bool:
    """Whether both topographies make the same V of terms without any pattern, as equal matrices W do."""
    terms = torch.rand(model.n_frames, 1, model.capsule_dim, generator=torch.Generator().manual_seed(0))
    v, its = (one.topography.pool(terms.to(one.like)) for one in (model, other))
    return torch.allclose(v, its, rtol=1e-5, atol=0)


def refit(run: Run, reference: Run, sequences: int) -> dict[str, float]:
    """Fit a run's guide anew to a reference's model, under the run's own recipe, and see what it leaves of the gap.

    Args:
        run: whose guide, prior and recipe are taken.
        reference: whose model takes the place of the run's own, annealed before.
        sequences: the first of the test split, on which the bounds are computed.

    Returns:
        ``elbo`` and ``iwae`` of the refitted guide, ``best``, the best estimate of the model's log p(x), and ``gap``,
        from the ELBO to it; in nats per frame.

    Raises:
        ValueError: the reference was not annealed, as where that failed: its best estimate is not known yet.
    """
    own, annealed = run.load(), added(reference, ANNEALED)
    if not annealed:
        raise ValueError(
            f"{reference.path / ANNEALED} is not made yet, by which the guides of the other runs are judged; give the "
            "command again once it is."
        )
    held, config = take_over(own.model, reference.load().model), own.config
    torch.manual_seed(config.seed)
    guide = make(config.guide)(held)
    with warnings.catch_warnings():  # Pyro notes every weight that is held
        warnings.filterwarnings("ignore", "(?s).*because requires_grad=False")
        fit_parts(config, Parts(held, guide, own.data))
    batch = next(own.data.batches("test", own.device, batch_size=sequences))
    bound = log_likelihood(held, guide, batch["x"], 1000, **given_by(batch, held, guide), seed=0)
    elbo, iwae = float(bound.elbo.mean()) / bound.n_frames, bound.per_frame
    best = max(
        value for value in (*(annealed.get(key) for key in ("ais", "laplace", "iwae")), iwae) if value is not None
    )
    return {"elbo": elbo, "iwae": iwae, "best": best, "gap": best - elbo}
