"""Forecasts: does rolling capsules foretell frames that nobody has shown? Scored on pixels, beside floors to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_tvae.guides.base import Guide, check_judged, posterior_of
from pyro_tvae.judging import check_whole, judges, seeded
from pyro_tvae.likelihoods import of_seen, scored_alike, seen_pixels
from pyro_tvae.model import TVAE, mask_of
from pyro_tvae.verbs import posterior_means, weights_at

from . import likelihood
from .inspection import refuse_fixed

__all__ = ["Conditional", "ForwardRoll", "forward_roll"]

MODEL, REPEAT = "model", "repeat last frame"
MIXTURES = [k / 10 for k in range(11)]  # weights of the mean frame in the floor that repeats the last frame


def half(unseen: Tensor | Sequence[float]) -> int:
    """Half of the unseen frames, rounded up: as far as a forecast is judged."""
    return (len(unseen) + 1) // 2


class Conditional(NamedTuple):
    """Mean over sequences of log p(unseen frames | seen frames), nats per unseen frame, and its standard error.

    Higher is better. The difference of two lower bounds is no bound itself; both tighten with num_particles.
    """

    mean: float
    standard_error: float


@dataclass(frozen=True, eq=False)
class ForwardRoll:
    """Scores of forecasts of the frames that come 1, 2, …, H after the context; ``model`` first, then its floors.

    All are nan at a distance at which no frame was observed, which means and comparisons leave out.

    Attributes:
        context: number of frames that were encoded.
        log_likelihood: name -> (H,), nats per unseen frame; higher is better.
        pixel_error: name -> (H,), squared error per pixel; lower is better.
        frames: name -> (n_examples, H, channel, height, width), mean frames forecast for the first sequences.
        conditional: log p(unseen frames | seen frames) where ``num_particles`` was given, else None.
    """

    context: int
    log_likelihood: dict[str, Tensor]
    pixel_error: dict[str, Tensor]
    frames: dict[str, Tensor]
    conditional: Conditional | None = None

    @property
    def floors(self) -> list[str]:
        """Names of the forecasts that the model has to beat."""
        return [name for name in self.log_likelihood if name != MODEL]

    @property
    def half(self) -> int:
        """Half of the unseen frames, rounded up: as far as a forecast is judged."""
        return half(self.log_likelihood[MODEL])

    def means(self) -> dict[str, float]:
        """Mean log-likelihood of the first half of the unseen frames, of the model and of every floor."""
        return {name: float(values[: self.half].nanmean()) for name, values in self.log_likelihood.items()}

    def gain(self, name: str) -> Tensor:
        """Log-likelihood of the model minus that of a floor, (H,), nats per unseen frame; higher is better."""
        if name not in self.floors:
            raise ValueError(f"gain: there is no floor {name!r}; choose one of {', '.join(map(repr, self.floors))}.")
        return self.log_likelihood[MODEL] - self.log_likelihood[name]

    def beats_floors(self, horizon: int | None = None) -> bool:
        """Whether the log-likelihood of the first ``horizon`` unseen frames together exceeds every floor's.

        Half of the unseen frames by default, rounded up. It compares means over sequences, without their errors;
        :meth:`gain` shows single horizons.
        """
        n, first = len(self.log_likelihood[MODEL]), self.half if horizon is None else horizon
        if not 1 <= first <= n:
            raise ValueError(f"beats_floors: horizon is {horizon!r}; expected 1 to {n}, the number of unseen frames.")
        return all(float(self.gain(name)[:first].double().nanmean()) > 0 for name in self.floors)


@judges
def forward_roll(
    model: TVAE,
    guide: Guide | Callable[..., object],
    x: Tensor,
    *,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    context: int | None = None,
    mean_frame: Tensor | None = None,
    baseline: tuple[TVAE, Guide] | None = None,
    batch_size: int = 64,
    n_examples: int = 8,
    num_particles: int | None = None,
    bounds: Tensor | None = None,
    seed: int | None = 0,
) -> ForwardRoll:
    """Forecast unseen frames by rolling capsules: the claim of the paper's first figure as a number.

    `Keller & Welling 2021, Topographic VAEs learn equivariant capsules <https://arxiv.org/abs/2109.01394>`__.
    Only the first m frames are encoded; ``decode(Roll_h(t[m − 1]))`` is the forecast of frame m − 1 + h, h = 1…S − m,
    scored by the true frame. Where the topography's boundary is open, positions that a roll brings in were never seen,
    and stand at their prior expectation (:meth:`.TVAE.rolled`). The same frames score these floors:

    - ``repeat last frame``: the model's family at the mean ``(1 − a) · last seen frame + a · mean_frame``, of a pixel
      the last value that was seen, or that of ``mean_frame``; a = 0 alone can cost infinitely many nats. The best a of
      0, 0.1, …, 1 is picked for every horizon and score on the very data scored: more than a forecaster could know,
      because a floor that is too strong errs on the honest side;
    - ``mean frame``: the family at ``mean_frame``;
    - ``hold``: the model's own t[m − 1], decoded without a roll; what rolling adds;
    - ``plain VAE, rolled`` and ``plain VAE, held``: the same two forecasts of ``baseline``.

    Args:
        model: the generative program; random weights are at their posterior means.
        guide: its posterior, or any Pyro program of x and observed with the model's sites, whose means are then taken
            over 64 draws.
        x: (N, S, channel, height, width), on the model's device. Unseen frames are masked, and zeros to the guides.
        observed: (S,) or (N, S) booleans: other frames of the context are not shown, and others of those after it not
            scored. None means all.
        covariates: what the programs take beside them by name, (N, …), such as labels; with ``measured``, (N, S,
            channel or 1, height, width) booleans, the other pixels are neither shown nor scored.
        context: m, from 1 to S − 1; S // 2 by default.
        mean_frame: (channel, height, width), of the training set; by default the mean of the seen frames of x.
        baseline: (model, guide) of a plain VAE (``NoTopography``) with the same family of likelihoods.
        batch_size: sequences at a time; every sequence weighs the same whatever it is.
        n_examples: sequences whose forecasts are kept for figures.
        num_particles: also estimate ``conditional`` from so many importance weights per sequence,
            ``log p(all frames) − log p(seen frames)``; all the latents may move, not only roll.
        bounds: the former of the two, (N,), nats per sequence, where it is at hand, from as many weights of its own.
        seed: of these weights.

    Raises:
        ValueError: x, context or mean_frame does not fit, the baseline's likelihood is of another family, a guide holds
            the latents of fixed sequences, unseen frames included, or nothing of the context, or of what comes after
            it, was observed.

    Example:
        >>> from pyro_tvae import CapsuleRoll, MeanFieldGuide
        >>> model = TVAE((1, 4, 4), n_frames=6, n_capsules=2, capsule_dim=6, topography=CapsuleRoll(3))
        >>> result = forward_roll(model, MeanFieldGuide(model), torch.rand(5, 6, 1, 4, 4))
        >>> result.gain("hold").shape
        torch.Size([3])
    """
    if x.dim() != 5 or len(x) == 0 or x.shape[1] < 2:
        raise ValueError(
            f"forward_roll: x has shape {tuple(x.shape)}; expected (sequence, frame, channel, height, width) with one "
            "sequence and two frames or more."
        )
    m = x.shape[1] // 2 if context is None else context
    check_whole("forward_roll", batch_size=batch_size, context=m)
    check_whole("forward_roll", 0, n_examples=n_examples, num_particles=num_particles or 0)
    check_judged(model, guide, x, observed, covariates)
    for one in (guide, *([] if baseline is None else baseline[1:])):
        refuse_fixed(one, "forward_roll")
    n = len(x)
    if m >= x.shape[1]:
        raise ValueError(f"forward_roll: context is {m!r}; expected 1 to {x.shape[1] - 1}, so that frames stay unseen.")
    if mean_frame is not None and mean_frame.shape != x.shape[2:]:
        raise ValueError(
            f"forward_roll: mean_frame has shape {tuple(mean_frame.shape)}; expected one frame, {tuple(x.shape[2:])}."
        )
    if bounds is not None and bounds.shape != (n,):
        raise ValueError(
            f"forward_roll: bounds has shape {tuple(bounds.shape)}; expected one for each of {n} sequences."
        )
    if baseline is not None:
        own, its = model.likelihood, baseline[0].likelihood
        if type(its) is not type(own) or not scored_alike(own, its, x):
            raise ValueError(
                f"forward_roll: the baseline's likelihood is {type(its).__name__}, the model's is {type(own).__name__}"
                "; nats of two families, or of other binarized pixels, do not compare: give both the same one."
            )
    mask = mask_of(observed, x, each=True)
    measured = (covariates or {}).get("measured")
    seen = seen_pixels(mask, measured)
    if seen is not None:
        x = torch.where(seen, x, 0)
        for part, what in ((seen[:, :m], f"the context of {m} frames"), (seen[:, m:], "the frames after the context")):
            if not bool(part.any()):
                raise ValueError(f"forward_roll: nothing of {what} was observed; expected some: give another context.")
    if mean_frame is None:
        counted = n * m if seen is None else seen[:, :m].expand_as(x[:, :m]).sum((0, 1)).clamp(min=1)
        mean_frame = x[:, :m].sum((0, 1)) / counted
    mean_frame = mean_frame.to(x)
    n_frames, n_pixels = (torch.zeros(x.shape[1] - m, dtype=torch.float64) for _ in range(2))  # that were scored
    log_likelihood: dict[str, Tensor] = {}
    squared_error: dict[str, Tensor] = {}
    examples: dict[str, list[Tensor]] = {}
    for start in range(0, n, batch_size):
        rows = slice(start, start + batch_size)
        truth, of_rows = x[rows, m:], {name: v[rows] for name, v in (covariates or {}).items()}
        given, unseen = (
            Segment(x[rows, of], *(None if one is None else one[rows, of] for one in (mask, measured)))
            for of in (slice(None, m), slice(m, None))
        )
        scored = truth.new_ones(1, 1, 1, 1, 1, dtype=torch.bool) if unseen.seen is None else unseen.seen
        counted = scored.expand_as(truth).flatten(2).sum(-1).double().cpu()
        n_frames, n_pixels = n_frames + (counted > 0).sum(0), n_pixels + counted.sum(0)
        for name, candidates in _forecasts(model, guide, given, truth.shape[1], mean_frame, baseline, of_rows).items():
            means = torch.stack([p.mean.expand_as(truth) for p in candidates])
            nats = torch.stack([unseen.log_prob(p) for p in candidates])
            error = torch.where(scored, (means - truth).square(), 0).flatten(3).sum(-1)
            log_likelihood[name] = log_likelihood.get(name, 0) + nats.cpu().double().sum(1)  # (candidates, H)
            squared_error[name] = squared_error.get(name, 0) + error.cpu().double().sum(1)
            if start < n_examples:  # a copy: a slice, an empty one too, would keep all of means
                examples.setdefault(name, []).append(means[:, : n_examples - start].cpu().clone())
    frames = {}
    for name, kept in examples.items():
        best = log_likelihood[name].argmax(0)  # which candidate, for every horizon
        frames[name] = torch.cat(kept, 1)[best, :, torch.arange(len(best))].transpose(0, 1)
    conditional = None
    if num_particles:
        in_context = torch.arange(x.shape[1], device=x.device) < m
        options: dict[str, Any] = {"covariates": covariates, "batch_size": batch_size, "seed": None}
        bound = partial(likelihood.log_likelihood, model, guide, x, num_particles, **options)
        with seeded(seed):  # one stream for both, so that their errors are independent
            whole = bound(observed=mask).iwae if bounds is None else bounds
            gains = whole - bound(observed=in_context if mask is None else mask & in_context).iwae
        lengths = torch.full_like(gains, x.shape[1] - m) if mask is None else mask[:, m:].sum(1).to(gains)
        mean = float(gains.mean() / lengths.mean())
        conditional = Conditional(mean, likelihood.ratio_error(gains, lengths))
    return ForwardRoll(
        context=m,
        log_likelihood={name: total.amax(0) / n_frames for name, total in log_likelihood.items()},
        pixel_error={name: total.amin(0) / n_pixels for name, total in squared_error.items()},
        frames=frames,
        conditional=conditional,
    )


class Segment(NamedTuple):
    """Some frames of sequences, (B, n, …), blank where they were not seen, and what of them was; None means all."""

    x: Tensor
    observed: Tensor | None
    measured: Tensor | None

    @property
    def seen(self) -> Tensor | None:
        """Which pixels count."""
        return seen_pixels(self.observed, self.measured)

    def log_prob(self, frames: TorchDistribution) -> Tensor:
        """Of what was seen, (B, n), under a distribution of pixels or of frames."""
        if frames.event_shape:
            return of_seen(frames, self.observed, self.measured).log_prob(self.x)
        nats = frames.log_prob(self.x)
        return (nats if self.seen is None else torch.where(self.seen, nats, 0)).flatten(2).sum(-1)

    def last(self, otherwise: Tensor) -> Tensor:
        """The last value of every pixel, (B, 1, channel, height, width), of another frame where it has none."""
        if self.seen is None:
            return self.x[:, -1:]
        number = torch.arange(self.x.shape[1], device=self.x.device).reshape(-1, 1, 1, 1)
        latest = torch.where(self.seen, number, -1).amax(1, keepdim=True).expand_as(self.x[:, :1])
        return torch.where(latest < 0, otherwise, self.x.gather(1, latest.clamp(min=0)))


def _forecasts(
    model: TVAE,
    guide: Any,
    given: Segment,
    n_unseen: int,
    mean_frame: Tensor,
    baseline: tuple[TVAE, Guide] | None,
    covariates: Mapping[str, Tensor],
) -> dict[str, list[TorchDistribution]]:
    """The candidates of every forecast, given the seen frames alone; batch shapes broadcast to (B, H)."""
    rolled, held = _rolled_and_held(model, guide, given, n_unseen, covariates)
    at_mean, last = model.likelihood.at_mean, given.last(mean_frame)
    forecasts = {
        MODEL: [rolled],
        REPEAT: [at_mean(torch.lerp(last, mean_frame, a)) for a in MIXTURES],
        "mean frame": [at_mean(mean_frame.expand_as(last))],
        "hold": [held],
    }
    if baseline is not None:
        rolled, held = _rolled_and_held(*baseline, given, n_unseen, covariates)
        forecasts |= {"plain VAE, rolled": [rolled], "plain VAE, held": [held]}
    return forecasts


def _rolled_and_held(
    model: TVAE, guide: Any, given: Segment, n_unseen: int, covariates: Mapping[str, Tensor]
) -> tuple[TorchDistribution, TorchDistribution]:
    """Decode t of the last seen frame, rolled by 1…H (batch shape (B, H)) and as it is (B, 1)."""
    n, m = given.x.shape[:2]
    x = torch.cat([given.x, given.x.new_zeros(n, n_unseen, *given.x.shape[2:])], dim=1)
    observed = torch.arange(x.shape[1], device=x.device) < m
    if given.observed is not None:
        observed = torch.cat([given.observed, given.observed.new_zeros(n, n_unseen)], dim=1)
    means = posterior_means(model, posterior_of(guide, x, observed, covariates))
    with weights_at(model, means):
        t = model.compose(means)[:, m - 1 : m]
        shifts = torch.arange(1, n_unseen + 1, device=t.device)
        return model.decode(model.rolled(t, shifts.unsqueeze(-1))), model.decode(t)
