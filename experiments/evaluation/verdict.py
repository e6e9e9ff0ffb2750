"""The verdict: what the numbers of an evaluation say, in words, first of all whether the model has collapsed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pyro_tvae import TVAE, Bernoulli
from pyro_tvae.inference import ForwardRoll

from .measures import COLLAPSED, Scores, score

__all__ = ["remarks", "verdict"]


def verdict(scores: Mapping[str, Scores], forecast: ForwardRoll | None) -> list[str]:
    """Sentences on the trained model, beside the untrained one where that was scored."""
    trained, untrained = scores["trained"], scores.get("untrained")
    explained = score(trained, "explained")
    share = f"{explained:.2f} of what there is to explain beyond the mean frame"
    if explained < COLLAPSED:
        sentences = [
            f"Collapsed: the model explains {share} (below {COLLAPSED}), with a KL of {score(trained, 'kl'):.2f} nats "
            "per frame. Its measures of equivariance mean nothing; train longer, lengthen fit.warmup_steps or lower "
            "guide.initial_log_variance."
        ]
    else:
        sentences = [f"Not collapsed: the model explains {share}."]
    if forecast is not None:
        means = forecast.means()
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
    roll = trained["roll"]
    if isinstance(roll, dict) and roll:
        parts = []
        for name, value in roll.items():
            before = f" (untrained {score(untrained, f'roll/{name}'):.2f})" if untrained else ""
            parts.append(f"{value:.2f} for {name}{before}")
        sentences.append(f"Roll correlation: {', '.join(parts)}.")
    return sentences


def remarks(model: TVAE, x: Tensor) -> list[str]:
    """What must be said beside the numbers; of zeros and ones a Bernoulli is the likelihood itself."""
    remark = model.likelihood.remark
    moot = type(model.likelihood) is Bernoulli and bool(((x == 0) | (x == 1)).all())
    return [remark] if remark and not moot else []
