"""Evaluation: a fitted model on the test split, beside its untrained self and a plain VAE, as a record and in words."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pyro_tvae import TVAE, Bernoulli, Guide
from pyro_tvae.inference import ForwardRoll, forward_roll
from pyro_tvae.inference.two_levels import few_of
from pyro_tvae.judging import judges
from pyro_tvae.programs import accepted

from ..datasets import SequenceDataModule
from ..datasets.splits import Batch, given_by
from ..provenance import hardware, versions
from .attempts import Attempts
from .measures import COLLAPSED, Scores, score
from .record import EvaluationRecord, rows
from .scoring import ends_of_explained, measure

__all__ = ["COLLAPSED", "Evaluation", "Rival", "ends_of_explained", "evaluate", "measure", "remarks", "verdict"]

JUDGED = 1e9  # bytes of frames and codes that are kept, where sequences stay in a file or are cut from films
CODES, FEWEST_JUDGED = 6, 64  # t, z, energies, and those of the split that probes are fitted on

LEVEL = 0.05  # of tests

Rival = tuple[TVAE, Guide]


@dataclass(frozen=True)
class Evaluation:
    """A report's contents: ``record`` is plain data for JSON, the rest is for figures."""

    record: EvaluationRecord
    forward_roll: ForwardRoll | None


@judges
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
    attempts = Attempts()
    n_all = len(data.datasets[split])
    if not data.in_memory:  # the codes of all of them, and all frames for forecasts, may be larger than memory
        data = data.at_most(most_judged(model))

    of_trained: dict[str, Tensor] = {}

    def scored(role: str, rival: Rival, own: Attempts) -> Scores:
        return measure(
            *rival,
            data,
            split=split,
            num_particles=num_particles,
            seed=seed,
            label=role,
            progress=progress,
            attempts=own,
            of_sequences=of_trained if role == "trained" else None,
            boundary=model.topography.boundary,  # of all, so that what is rolled alike is compared
        )

    scores = {"trained": scored("trained", (model, guide), attempts)}
    for role, rival in (("untrained", untrained), ("plain_vae", plain_vae)):
        if rival is not None:
            own = Attempts()
            scores[role] = attempts(role, partial(scored, role, rival, own), {})
            attempts.add(own, f" ({role})")  # what the data are to blame for is said once
    device = model.like.device
    sequences = _sequences(data, split, device)
    x, given = sequences["x"], given_by(sequences, model, guide)

    def forecasts() -> ForwardRoll:
        return forward_roll(
            model,
            guide,
            x,
            **given,
            context=context,
            mean_frame=data.mean_frame(device),
            baseline=plain_vae,
            num_particles=few_of(num_particles),
            bounds=of_trained.get("bounds"),
            seed=seed + 1,  # the bounds are from the other's stream
        )

    forecast = attempts("forward_roll", forecasts, None) if model.n_frames > 1 else None
    explained = score(scores["trained"], "explained")
    record: EvaluationRecord = {
        "schema": 1,
        "name": name,
        "collapsed": explained < COLLAPSED if math.isfinite(explained) else None,
        "verdict": attempts("verdict", lambda: verdict(scores, forecast), []),
        "data": {
            "name": name,
            "split": split,
            "n_sequences": len(data.datasets[split]),
            "n_frames": data.n_frames,
            "moving": list(data.datasets[split].moving),
        },
        "rows": rows(scores, num_particles),
        "measures": scores,
        "notes": attempts("remarks", lambda: remarks(model, x, given["covariates"]), list[str]())
        + _fewer(n_all, len(x), split),
        "failed": attempts.failed,
        "transient": sorted(attempts.transient),
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


def most_judged(model: TVAE) -> int:
    """Sequences whose frames and codes take a part of memory that is always there."""
    floats = model.n_frames * (math.prod(model.frame_shape) + CODES * model.n_latents)
    return max(FEWEST_JUDGED, int(JUDGED // (4 * floats)))


def _sequences(data: SequenceDataModule, split: str, device: torch.device) -> Batch:
    """All sequences of a split, and what is known of them."""
    n, kept = len(data.datasets[split]), Batch()
    for row, batch in zip(range(0, n, data.eval_batch_size), data.batches(split, device), strict=True):
        for name, value in batch.items():  # a list of batches would be a second copy
            whole = kept.setdefault(name, value.new_ones(n, *value.shape[1:]))
            whole[row : row + data.eval_batch_size] = value
    return kept


def _fewer(n_all: int, n: int, split: str) -> list[str]:
    """What is to be said where not all sequences were judged."""
    words = f"Judged on the first {n:,} of {n_all:,} sequences of the {split} split, of which any prefix is stratified"
    return [f"{words}: as many as are kept in memory together."] if n < n_all else []


def verdict(scores: Mapping[str, Scores], forecast: ForwardRoll | None) -> list[str]:
    """Sentences on the trained model, beside the untrained one where that was scored."""
    trained, untrained = scores["trained"], scores.get("untrained")
    explained = score(trained, "explained")
    share = f"{explained:.2f} of what there is to explain beyond the mean frame"
    if not math.isfinite(explained):
        sentences = ["Whether the model has collapsed is not known: what it explains is undefined."]
    elif explained < COLLAPSED:
        sentences = [
            f"Collapsed: the model explains {share} (below {COLLAPSED}), with a KL of {score(trained, 'kl'):.2f} nats "
            "per frame. Its measures of equivariance mean nothing; train longer, lengthen fit.warmup_steps or lower "
            "guide.initial_log_variance."
        ]
    else:
        sentences = [f"Not collapsed: the model explains {share}."]
    if forecast is not None and math.isfinite((means := forecast.means())["model"]):
        own = means.pop("model")
        best = max(means, key=lambda name: means[name])
        word = "better" if forecast.beats_floors() else "NOT better"
        sentences.append(
            f"Rolling the capsules forecasts the next {forecast.half} unseen frames {word} than every floor: {own:.1f} "
            f"nats per frame, against {means[best]:.1f} for the best floor ({best})."
        )
        if forecast.conditional is not None:
            mean, error = forecast.conditional
            sentences.append(
                "Beside that forecast, with every latent free to move, log p(unseen frames given seen ones) is about "
                f"{mean:.1f} ± {error:.1f} nats per unseen frame, over all {len(forecast.log_likelihood['model'])} of "
                "them: a difference of two importance-weighted bounds."
            )
    roll = trained.get("roll")
    if isinstance(roll, dict) and roll:
        parts = []
        for name, value in roll.items():
            before = f" (untrained {score(untrained, f'roll/{name}'):.2f})" if untrained else ""
            parts.append(f"{value:.2f} for {name}{before}")
        sentences.append(f"Roll correlation: {', '.join(parts)}.")
    if math.isfinite(score(trained, "velocity")):
        sentences.append(_of_velocity(trained, untrained))
    return sentences


def _of_velocity(trained: Scores, untrained: Scores | None) -> str:
    """Whether capsules roll, and because of the order of the frames, in a sentence."""
    velocity, error, p = (score(trained, f"velocity{name}") for name in ("", "_error", "_p"))
    own, shuffled = (score(trained, f"velocity_{name}") for name in ("concentration", "shuffled"))
    word = "more" if p <= LEVEL else "NOT more"
    control = f", untrained {score(untrained, 'velocity_p'):.2f}" if untrained else ""
    return (
        f"Where no factor is known: capsules roll {velocity:.2f} ± {error:.2f} positions per frame, {word} of one mind "
        f"than with the frames shuffled (concentration {own:.2f}, shuffled {shuffled:.2f}; p = {p:.2f}{control})."
    )


def remarks(model: TVAE, x: Tensor, covariates: Mapping[str, Tensor] | None = None) -> list[str]:
    """What must be said beside the numbers; of zeros and ones a Bernoulli is the likelihood itself."""
    remark = model.likelihood.remark
    moot = type(model.likelihood) is Bernoulli and bool(((x == 0) | (x == 1)).all())
    said = [remark] if remark and not moot else []
    if taken := sorted(accepted(model) & {*(covariates or ())} - {"measured"}):
        said.append(f"The model is given {', '.join(taken)} beside x: what it observes of that is in its likelihoods.")
    return said
