"""Scoring: every measure of one model on one split."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.inference import (
    ELBO,
    LogLikelihood,
    active_latents,
    capsule_correlation,
    commutation,
    equivariance_error,
    log_likelihood,
    pose_probe,
    probe,
    roll_correlation,
)
from pyro_tvae.inference.inspection import plain_program
from pyro_tvae.inference.likelihood import concatenate, has_frame_weights, log_weights, seeded, summarize
from pyro_tvae.inference.objectives import divergence
from pyro_tvae.inference.progress import progress_bar
from pyro_tvae.posteriors import moments
from pyro_tvae.programs import is_bayesian
from pyro_tvae.verbs import point_estimate

from ..datasets import SequenceDataModule, SequenceDataset
from .measures import Scores

__all__ = ["ends_of_explained", "measure"]

PUBLISHED_K = 10
KL_DRAWS = 20  # per sequence, where a model's KL is known from its program alone


def measure(
    model: TVAE,
    guide: Guide,
    data: SequenceDataModule,
    *,
    split: str = "test",
    num_particles: int = 100,
    seed: int = 0,
    label: str = "evaluate",
    progress: bool = True,
) -> Scores:
    """Score a model on a whole split: measure -> number, or a number per part; nats per frame if not said otherwise.

    The encoders run once per batch, particles in chunks under a memory bound. What each number is called and means,
    :mod:`.measures` says.

    Args:
        model, guide: what to score.
        data: its splits.
        split: ``"validation"`` for choosing a model, ``"test"`` once it is chosen.
        num_particles: K of the importance-weighted bound.
        seed: of the draws from the guide.
        label: of the progress bar.
        progress: show it.
    """
    if is_bayesian(model):
        raise ValueError(
            f"evaluate: {type(model).__name__} has random weights, which all sequences share, so that the table's KL "
            "and reconstruction are no sequence's; use log_likelihood, to_arviz and forward_roll."
        )
    program = ELBO(model, guide, num_particles=KL_DRAWS)  # of a model with statements of its own
    device = model.like.device
    estimates: list[LogLikelihood] = []
    whole: dict[str, Tensor] = {}
    row = 0
    mean_frame = data.mean_frame(device)
    dataset = data.datasets[split]
    published: list[LogLikelihood] = []
    n_batches = math.ceil(len(data.datasets[split]) / data.eval_batch_size)
    with torch.inference_mode(), seeded(seed):
        batches = progress_bar(
            n_batches, label, shown=progress, unit="batch", leave=False, iterable=data.batches(split, device)
        )
        for batch in batches:
            x = batch["x"]
            posterior = posterior_of(guide, x)
            weights = log_weights(model, guide, x, num_particles, posterior=posterior)
            estimates.append(summarize(weights.cpu(), model.n_frames))
            if plain_program(model) and has_frame_weights(model, posterior):
                with warnings.catch_warnings():  # the table says in words what this number is not
                    warnings.simplefilter("ignore")
                    published.append(
                        log_likelihood(
                            model, guide, x, PUBLISHED_K, estimator="frame_unnormalised", batch_size=len(x), seed=seed
                        )
                    )
            further, marginals = dataset.moved_on(batch), moments(posterior)
            values = {
                "t": point_estimate(model, posterior),
                "z": marginals["z"].mean,
                "index": batch["index"],
                "moving": batch["moving"],
                "label": batch["label"],
                "kl": divergence(model, posterior) if plain_program(model) else program(x).kl,
            }
            values["mean"], values["best"] = ends_of_explained(model, mean_frame, x)
            for site in model.energies:
                energy = marginals[site].mean
                # Orbits belong to no frame; positive energies count by their logarithm.
                energy = energy if energy.dim() == 4 else energy.unsqueeze(1)
                values["energy"] = energy.log() if bool((energy > 0).all()) else energy
            if further is not None and model.n_frames > 1:
                values["further"] = point_estimate(model, posterior_of(guide, further["x"]))
            for name, value in values.items():
                if name not in whole:  # made once: a list of batches would be a second copy, scattered over the heap
                    whole[name] = torch.empty(len(dataset), *value.shape[1:], dtype=value.dtype)
                whole[name][row : row + len(x)] = value
            row += len(x)
    # The codes are nearly as large as the data: each is let go of as soon as it is judged.
    active: dict[str, float] = {name: active_latents(whole.pop(name)) for name in ("z", "energy") if name in whole}
    likelihood = concatenate(estimates)
    n_frames = model.n_frames
    elbo = float(likelihood.elbo.mean()) / n_frames
    kl = float(whole["kl"].double().mean()) / n_frames
    mean, best = (float(whole[name].double().mean()) / n_frames for name in ("mean", "best"))
    roll, exact, cap_corr = _rolls(whole["t"], whole["index"], whole["moving"], dataset)
    label_probe, poses = _probes(model, guide, data, whole, dataset)
    return {
        "elbo": elbo,
        "reconstruction": elbo + kl,
        "kl": kl,
        "iwae": likelihood.per_frame,
        "iwae_error": likelihood.per_frame_error,
        "ess": float(likelihood.ess.median()),
        "explained": (elbo - mean) / (best - mean),
        "e_eq": equivariance_error(whole["t"]) if n_frames > 1 else math.nan,
        "roll": roll,
        "roll_exact": exact,
        "cap_corr": cap_corr,
        "commutation": _commutations(whole, dataset),
        "active": active,
        "probe": label_probe,
        "pose": poses,
        "frame_unnormalised": concatenate(published).per_frame if published else math.nan,
    }


def ends_of_explained(model: TVAE, mean_frame: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Nats per sequence, each (B,), where ``explained`` is 0 (the mean frame) and 1 (the pixels themselves)."""
    at_mean = model.likelihood.at_mean
    mean, best = (at_mean(frames).log_prob(x).flatten(1).sum(-1) for frames in (mean_frame, x))
    return mean, best


def _rolls(
    t: Tensor, index: Tensor, moving: Tensor, data: SequenceDataset
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Roll correlation, its share of exact hits, and CapCorr, for the sequences of every moving factor."""
    correlation, exact, published = {}, {}, {}
    for k, name in enumerate(data.moving):
        chosen = moving == k
        if t.shape[1] < 2 or not bool(chosen.any()):
            continue
        factor = data.factor_names.index(name.split("+")[0])
        phase, period = index[chosen][..., factor], data.periods[factor]
        result = roll_correlation(t[chosen], phase, period, turn=period)
        correlation[name], exact[name] = result.correlation, result.exact
        published[name] = capsule_correlation(t[chosen], phase)
    return correlation, exact, published


def _commutations(whole: Mapping[str, Tensor], data: SequenceDataset) -> dict[str, float]:
    """Commutation of rolling and transforming, for the sequences of every moving factor."""
    if "further" not in whole:
        return {}
    rows = {name: whole["moving"] == k for k, name in enumerate(data.moving)}
    return {
        name: commutation(whole["t"][chosen], whole["further"][chosen]) if int(chosen.sum()) > 1 else math.nan
        for name, chosen in rows.items()
    }


@torch.inference_mode()
def _probes(
    model: TVAE, guide: Guide, data: SequenceDataModule, whole: Mapping[str, Tensor], judged: SequenceDataset
) -> tuple[float, dict[str, float]]:
    """Linear probes of class and pose: fitted on the validation split's codes, judged on the whole of a split."""
    fitted = data.datasets["validation"]
    if judged is fitted or min(len(fitted), len(judged)) < 2 or fitted.factor_names != judged.factor_names:
        return math.nan, {}
    device = model.like.device
    parts = [
        (point_estimate(model, posterior_of(guide, batch["x"])).cpu(), batch["index"].cpu(), batch["label"].cpu())
        for batch in data.batches("validation", device)
    ]
    t, index, label = (torch.cat(column) for column in zip(*parts, strict=True))
    factors = zip(fitted.factor_names, fitted.periods, strict=True)
    poses = {
        name: pose_probe(t, index[..., k], whole["t"], whole["index"][..., k], period)
        for k, (name, period) in enumerate(factors)
    }
    return probe(t, label, whole["t"], whole["label"]), poses
