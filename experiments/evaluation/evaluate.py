"""Evaluation: every measure of a fitted model on the test split, beside its untrained self and a plain VAE."""

from __future__ import annotations

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tvae import TVAE, Bernoulli, Guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.inference import (
    ELBO,
    ForwardRoll,
    LogLikelihood,
    active_latents,
    capsule_correlation,
    commutation,
    equivariance_error,
    forward_roll,
    log_likelihood,
    pose_probe,
    probe,
    roll_correlation,
)
from pyro_tvae.inference.likelihood import concatenate, has_frame_weights, log_weights, seeded, summarize
from pyro_tvae.inference.objectives import divergence
from pyro_tvae.inference.own_programs import plain_program
from pyro_tvae.inference.progress import progress_bar
from pyro_tvae.posteriors import moments
from pyro_tvae.programs import is_bayesian
from pyro_tvae.verbs import point_estimate

from ..datasets import SequenceDataModule, SequenceDataset
from ..provenance import hardware, versions

__all__ = ["COLLAPSED", "Evaluation", "Measures", "Rival", "ends_of_explained", "evaluate", "measure"]

PUBLISHED_K = 10
CONDITIONAL_K = 10  # at most: log p(unseen frames | seen frames) takes two passes over all sequences
KL_DRAWS = 20  # per sequence, where a model's KL is known from its program alone
COLLAPSED = 0.05  # `explained` below this is called a collapse

Rival = tuple[TVAE, Guide]


@dataclass(frozen=True)
class Measures:
    """What one model scores on one split; nats per frame where not said otherwise."""

    elbo: float
    reconstruction: float
    kl: float
    iwae: float
    iwae_error: float
    ess: float
    explained: float
    e_eq: float
    roll: dict[str, float]
    roll_exact: dict[str, float]
    cap_corr: dict[str, float]
    commutation: dict[str, float]
    active: dict[str, float]
    probe: float
    pose: dict[str, float]
    frame_unnormalised: float


@dataclass(frozen=True)
class Evaluation:
    """A report's contents: ``record`` is plain data for JSON, the rest is for figures."""

    record: dict[str, Any]
    forward_roll: ForwardRoll | None


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
) -> Measures:
    """Score a model on a whole split; the encoders run once per batch, particles in chunks under a memory bound.

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
    kept: dict[str, list[Tensor]] = defaultdict(list)
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
                options: dict[str, Any] = {"estimator": "frame_unnormalised", "batch_size": len(x), "seed": seed}
                with warnings.catch_warnings():  # the table says in words what this number is not
                    warnings.simplefilter("ignore")
                    published.append(log_likelihood(model, guide, x, PUBLISHED_K, **options))
            further, known = dataset.moved_on(batch), moments(posterior)
            values = {
                "t": point_estimate(model, posterior),
                "z": known["z"].mean,
                "index": batch["index"],
                "moving": batch["moving"],
                "label": batch["label"],
                "kl": divergence(model, posterior) if plain_program(model) else program(x).kl,
            }
            values["mean"], values["best"] = ends_of_explained(model, mean_frame, x)
            for site in model.energies:
                energy = known[site].mean
                # Orbits belong to no frame; positive energies count by their logarithm.
                energy = energy if energy.dim() == 4 else energy.unsqueeze(1)
                values["energy"] = energy.log() if bool((energy > 0).all()) else energy
            if further is not None and model.n_frames > 1:
                values["further"] = point_estimate(model, posterior_of(guide, further["x"]))
            for name, value in values.items():
                kept[name].append(value.cpu())
    whole = {name: torch.cat(values) for name, values in kept.items()}
    likelihood = concatenate(estimates)
    n_frames = model.n_frames
    elbo = float(likelihood.elbo.mean()) / n_frames
    kl = float(whole["kl"].double().mean()) / n_frames
    mean, best = (float(whole[name].double().mean()) / n_frames for name in ("mean", "best"))
    roll, exact, cap_corr = _rolls(whole["t"], whole["index"], whole["moving"], dataset)
    label_probe, poses = _probes(model, guide, data, whole, dataset)
    return Measures(
        elbo=elbo,
        reconstruction=elbo + kl,
        kl=kl,
        iwae=likelihood.per_frame,
        iwae_error=likelihood.per_frame_error,
        ess=float(likelihood.ess.median()),
        explained=(elbo - mean) / (best - mean),
        e_eq=equivariance_error(whole["t"]) if n_frames > 1 else math.nan,
        roll=roll,
        roll_exact=exact,
        cap_corr=cap_corr,
        commutation=_commutations(whole, dataset),
        active={name: active_latents(whole[name]) for name in ("z", "energy") if name in whole},
        probe=label_probe,
        pose=poses,
        frame_unnormalised=concatenate(published).per_frame if published else math.nan,
    )


def ends_of_explained(model: TVAE, mean_frame: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Nats per sequence, each (B,), where ``explained`` is 0 (the mean frame) and 1 (the pixels themselves)."""
    at_mean = model.likelihood.at_mean
    return _nats(at_mean(mean_frame).log_prob(x)), _nats(at_mean(x).log_prob(x))


def _nats(log_probability: Tensor) -> Tensor:
    """Pixels to sequences: (B, S, channel, height, width) -> (B,)."""
    return log_probability.flatten(1).sum(-1)


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


def evaluate(
    model: TVAE,
    guide: Guide,
    data: SequenceDataModule,
    *,
    name: str = "model",
    untrained: Rival | None = None,
    plain_vae: Rival | None = None,
    split: str = "test",
    num_particles: int = 100,
    context: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Everything the report shows.

    Args:
        model, guide: the fitted model.
        data: its data module.
        name: of the run.
        untrained: the model before training, as a control.
        plain_vae: a plain VAE fitted to the same data, as the bar to clear.
        split: which split to judge on.
        num_particles: K of the importance-weighted bound.
        context: frames that ``forward_roll`` sees; half of them by default.
        seed: of the draws from the guide.
        progress: show progress bars.

    Returns:
        An :class:`Evaluation`.
    """
    start = time.monotonic()
    rivals: Mapping[str, Rival | None] = {"trained": (model, guide), "untrained": untrained, "plain_vae": plain_vae}
    scores = {
        role: measure(*rival, data, split=split, num_particles=num_particles, seed=seed, label=role, progress=progress)
        for role, rival in rivals.items()
        if rival is not None
    }
    device = model.like.device
    x = torch.cat([batch["x"] for batch in data.batches(split, device)])
    forecast = None
    if model.n_frames > 1:
        mean_frame = data.mean_frame(device)
        forecast = forward_roll(
            model,
            guide,
            x,
            context=context,
            mean_frame=mean_frame,
            baseline=plain_vae,
            num_particles=min(num_particles, CONDITIONAL_K),
            seed=seed,
        )
    collapsed = scores["trained"].explained < COLLAPSED
    record = {
        "schema": 1,
        "name": name,
        "collapsed": collapsed,
        "verdict": _verdict(scores, forecast),
        "data": {
            "name": name,
            "split": split,
            "n_sequences": len(data.datasets[split]),
            "n_frames": data.n_frames,
            "moving": list(data.datasets[split].moving),
        },
        "rows": _rows(scores, num_particles, model),
        "measures": {role: asdict(score) for role, score in scores.items()},
        "notes": _remarks(model, x),
        "seed": seed,
        "versions": versions(),
        "hardware": hardware(device),
        "seconds": {"evaluation": time.monotonic() - start},
        "parameters": sum(p.numel() for module in (model, guide) for p in module.parameters()),
    }
    if forecast is not None:
        record["forward_roll"] = {
            "context": forecast.context,
            "log_likelihood": {key: value.tolist() for key, value in forecast.log_likelihood.items()},
            "pixel_error": {key: value.tolist() for key, value in forecast.pixel_error.items()},
            "conditional": forecast.conditional._asdict() if forecast.conditional is not None else None,
        }
    return Evaluation(record, forecast)


def _rows(scores: dict[str, Measures], num_particles: int, model: TVAE) -> list[dict[str, Any]]:
    """The table: label, unit, which direction is better, and one value per model."""

    def row(key: str, label: str, unit: str, better: str, note: str = "", error: float | None = None) -> dict[str, Any]:
        path = key.split("/")
        values = {role: getattr(score, path[0]) for role, score in scores.items()}
        if len(path) > 1:
            values = {role: value.get(path[1], math.nan) for role, value in values.items()}
        return {
            "key": key,
            "label": label,
            "unit": unit,
            "better": better,
            "trained": values["trained"],
            "standard_error": error,
            "untrained": values.get("untrained"),
            "plain_vae": values.get("plain_vae"),
            "note": note,
        }

    nats = "nats / frame"
    rows = [
        row("explained", "explained", "share", "higher", "0: the mean frame; 1: a perfect code at no cost"),
        row(
            "iwae",
            f"IWAE, K = {num_particles}",
            nats,
            "higher",
            "importance-weighted bound of log p(sequence); the error is over test sequences",
            scores["trained"].iwae_error,
        ),
        row("ess", "effective sample size", f"of {num_particles}", "higher", "median over sequences"),
        row("elbo", "ELBO", nats, "higher"),
        row("reconstruction", "reconstruction", nats, "higher"),
        row("kl", "KL", nats, "", "0 is a collapse"),
        row("e_eq", "E_eq", "L1", "lower", "blind to collapse"),
    ]
    for name in scores["trained"].roll:
        rows += [
            row(f"roll/{name}", f"roll correlation, {name}", "circular r", "higher", "blind to collapse"),
            row(f"roll_exact/{name}", f"exact rolls, {name}", "share", "higher", "blind to collapse"),
            row(f"cap_corr/{name}", f"CapCorr, {name}", "Pearson r", "higher", "as published: the truth leaks in"),
        ]
    for name in scores["trained"].commutation:
        note = "rolling the code against encoding the moved input: 0 equivariant, 1 chance"
        rows.append(row(f"commutation/{name}", f"commutation, {name}", "ratio", "lower", note))
    note = "a linear map reads it from t; fitted on the validation split"
    rows.append(row("probe", "class probe", "accuracy", "higher", note))
    for name in scores["trained"].pose:
        rows.append(row(f"pose/{name}", f"pose probe, {name}", "R²", "higher", note))
    note = "posterior means (of log energies, where they are positive) whose variance over the data is above 0.01"
    for name in scores["trained"].active:
        rows.append(row(f"active/{name}", f"active latents, {name}", "count", "", note))
    note = "the published estimator, K = 10: per frame, without −log K; NOT a likelihood, for comparison with print"
    rows.append(row("frame_unnormalised", "frame_unnormalised", nats, "", note))
    return rows


def _remarks(model: TVAE, x: Tensor) -> list[str]:
    """What must be said beside the numbers; of zeros and ones a Bernoulli is the likelihood itself."""
    remark = model.likelihood.remark
    moot = type(model.likelihood) is Bernoulli and bool(((x == 0) | (x == 1)).all())
    return [remark] if remark and not moot else []


def _verdict(scores: dict[str, Measures], forecast: ForwardRoll | None) -> list[str]:
    trained = scores["trained"]
    share = f"{trained.explained:.2f} of what there is to explain beyond the mean frame"
    if trained.explained < COLLAPSED:
        sentences = [
            f"Collapsed: the model explains {share} (below {COLLAPSED}), with a KL of {trained.kl:.2f} nats per frame. "
            "Its measures of equivariance mean nothing; train longer, lengthen fit.warmup_steps or lower "
            "guide.initial_log_variance."
        ]
    else:
        sentences = [f"Not collapsed: the model explains {share}."]
    if forecast is not None:
        means = forecast.means()
        own = means.pop("model")
        best = max(means, key=lambda name: means[name])
        half, word = forecast.half, "better" if forecast.beats_floors() else "NOT better"
        sentences.append(
            f"Rolling the capsules forecasts the next {half} unseen frames {word} than every floor: {own:.1f} nats per "
            f"frame, against {means[best]:.1f} for the best floor ({best})."
        )
        if forecast.conditional is not None:
            mean, error = forecast.conditional
            sentences.append(
                "Beside that forecast, with every latent free to move, log p(unseen frames given seen ones) is about "
                f"{mean:.1f} ± {error:.1f} nats per unseen frame, over all {len(forecast.log_likelihood['model'])} of "
                "them: a difference of two importance-weighted bounds."
            )
    if trained.roll:
        untrained = scores.get("untrained")
        parts = []
        for name, value in trained.roll.items():
            before = f" (untrained {untrained.roll.get(name, math.nan):.2f})" if untrained else ""
            parts.append(f"{value:.2f} for {name}{before}")
        sentences.append(f"Roll correlation: {', '.join(parts)}.")
    return sentences
