"""NUTS: Hamiltonian Monte Carlo for a few sequences of a small model, and how far a guide is from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyro_tvae import TVAE, GaussianEnergy, Guide
from pyro_tvae.guides import check_judged
from pyro_tvae.posteriors import moments

from .arviz_adapter import diagnose
from .likelihood import seeded, summarise
from .posterior import weighted_particles
from .progress import progress_bar

__all__ = ["GuideQuality", "NUTSResult", "guide_quality", "identified", "nuts"]


@dataclass(frozen=True)
class NUTSResult:
    """Draws of the latents with their diagnostics.

    Attributes:
        draws: site -> (chain, draw, B, *site).
        rhat: identified latent -> (B, *site); below 1.01 the chains agree (Vehtari et al. 2021), nan for one draw.
        ess: identified latent -> (B, *site), bulk effective sample size; higher is better, 400 is enough for means.
        diverging: (chain, draw) booleans; a divergence says that the chain missed a part of the posterior.
    """

    draws: dict[str, Tensor]
    rhat: dict[str, Tensor]
    ess: dict[str, Tensor]
    diverging: Tensor


def identified(model: TVAE, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Latents with u replaced by u²: x says nothing of u's sign, so the posterior of u has two mirrored modes."""
    if not isinstance(model.prior, GaussianEnergy):
        return dict(latents)
    return {"u_squared" if name == "u" else name: v.square() if name == "u" else v for name, v in latents.items()}


def nuts(
    model: TVAE,
    x: Tensor,
    *,
    init: Guide,
    num_samples: int = 500,
    warmup_steps: int = 500,
    num_chains: int = 2,
    max_tree_depth: int = 8,
    seed: int | None = 0,
    progress: bool = False,
) -> NUTSResult:
    """Draw from the posterior of the latents by NUTS (Hoffman & Gelman 2014), the model's parameters fixed.

    The first chain starts at the guide's mean, every other at a draw from the guide: R-hat can only notice what
    different starts allow. All sequences share one chain and its step size, so keep them few and alike. R-hat and ESS
    are of z and u² (or e), see :func:`identified`.

    Args:
        model: the generative program.
        x: (B, S, channel, height, width).
        init: where the chains start.
        num_samples: draws per chain.
        warmup_steps: adaptation steps per chain, thrown away.
        num_chains: chains, run one after the other.
        max_tree_depth: at most 2 to this power gradients per draw.
        seed: of all draws; None uses torch's global generator.
        progress: show a progress bar.

    Returns:
        :class:`NUTSResult`, on the CPU.

    Raises:
        ValueError: numbers below one, or x that does not fit the model.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 2, 2), 3, 1, 3, pyro_tvae.CapsuleRoll(3), mu=1.0)
        >>> guide = pyro_tvae.MeanFieldGuide(model)
        >>> result = nuts(model, torch.rand(2, 3, 1, 2, 2), init=guide, num_samples=5, warmup_steps=5, num_chains=1)
        >>> result.draws["z"].shape
        torch.Size([1, 5, 2, 3, 1, 3])
    """
    check_judged(model, init, x, None)
    if min(num_samples, warmup_steps, num_chains, max_tree_depth) < 1:
        raise ValueError(
            f"nuts: num_samples={num_samples}, warmup_steps={warmup_steps}, num_chains={num_chains}, "
            f"max_tree_depth={max_tree_depth}; expected at least 1 of each."
        )
    runs, diverging = [], torch.zeros(num_chains, num_samples, dtype=torch.bool)
    steps = num_chains * (num_samples + warmup_steps)
    # Gradients are what NUTS moves by, whatever the caller has switched off.
    with seeded(seed), torch.enable_grad(), progress_bar(steps, "NUTS", shown=progress, leave=False) as bar:
        with torch.no_grad():
            posterior = init.posterior(x)
            starts = [{name: known.mean for name, known in moments(posterior).items()}]
            starts += [init.draw(posterior) for _ in range(num_chains - 1)]
        for chain, start in enumerate(starts):
            # The bare forward: Pyro's parameter store has no part in this, and nothing of the model is trained.
            kernel = NUTS(
                model.forward,
                init_strategy=partial(init_to_value, values=start),
                max_plate_nesting=1,
                max_tree_depth=max_tree_depth,
            )
            mcmc = MCMC(
                kernel,
                num_samples=num_samples,
                warmup_steps=warmup_steps,
                disable_progbar=True,
                hook_fn=lambda *_: bar.update(),
            )
            mcmc.run(x)
            runs.append({name: value.detach().cpu() for name, value in mcmc.get_samples().items()})
            diverging[chain, mcmc.diagnostics()["divergences"]["chain 0"]] = True
    draws = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    known = identified(model, draws)
    rhat, ess = ({name: _diagnose(kind, value) for name, value in known.items()} for kind in ("rhat", "ess"))
    return NUTSResult(draws, rhat, ess, diverging)


def _diagnose(kind: str, draws: Tensor) -> Tensor:
    """ArviZ's rank-normalised R-hat or bulk ESS of (chain, draw, …), one value per latent."""
    values = torch.from_numpy(diagnose(kind, draws.flatten(2).double().numpy()))
    return values.reshape(draws.shape[2:])


@dataclass(frozen=True)
class GuideQuality:
    """How far a guide is from NUTS draws of the same posterior.

    Attributes:
        mean_difference: identified latent -> (B, *site): (guide's mean − posterior's mean) / posterior's standard
            deviation; 0 is exact.
        variance_ratio: identified latent -> (B, *site): guide's variance / posterior's; below 1 it is overconfident.
        pareto_k: (B,), of the guide's importance weights; below 0.7 they can be trusted.
    """

    mean_difference: dict[str, Tensor]
    variance_ratio: dict[str, Tensor]
    pareto_k: Tensor


@torch.no_grad()
def guide_quality(
    model: TVAE, guide: Guide, x: Tensor, result: NUTSResult, *, num_particles: int = 1000, seed: int | None = 0
) -> GuideQuality:
    """Compare a guide with what :func:`nuts` drew for the same x, latent by latent; u as u².

    Args:
        model: the generative program.
        guide: its posterior.
        x: (B, S, channel, height, width), as given to :func:`nuts`.
        result: what it returned; look at its R-hat first.
        num_particles: draws from the guide.
        seed: of these draws.

    Raises:
        ValueError: the result is of other sequences.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 2, 2), 3, 1, 3, pyro_tvae.CapsuleRoll(3), mu=1.0)
        >>> guide, x = pyro_tvae.MeanFieldGuide(model), torch.rand(2, 3, 1, 2, 2)
        >>> result = nuts(model, x, init=guide, num_samples=5, warmup_steps=5, num_chains=1)
        >>> guide_quality(model, guide, x, result).variance_ratio["u_squared"].shape
        torch.Size([2, 3, 1, 3])
    """
    check_judged(model, guide, x, None)
    if any(value.shape[2] != len(x) for value in result.draws.values()):
        raise ValueError(
            f"guide_quality: the draws are of {next(iter(result.draws.values())).shape[2]} sequences, x has {len(x)}; "
            "expected the same sequences."
        )
    with seeded(seed):
        values, log_w = weighted_particles(model, guide, guide.posterior(x), x, num_particles)
    proposed = {name: value.cpu().double() for name, value in identified(model, values).items()}
    difference, ratio = {}, {}
    for name, draws in identified(model, result.draws).items():
        exact = draws.flatten(0, 1).double()
        difference[name] = (proposed[name].mean(0) - exact.mean(0)) / exact.std(0)
        ratio[name] = proposed[name].var(0) / exact.var(0)
    return GuideQuality(difference, ratio, summarise(log_w, model.n_frames).pareto_k)
