"""Scoring: every measure of one model on one split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.inference import (
    ELBO,
    RollVelocity,
    active_latents,
    capsule_correlation,
    commutation,
    equivariance_error,
    pose_probe,
    probe,
    roll_correlation,
    roll_velocity_test,
)
from pyro_tvae.inference.equivariance import MOST_PAIRS
from pyro_tvae.inference.inspection import plain_program
from pyro_tvae.inference.likelihood import has_frame_weights, log_weights, log_weights_by_frame
from pyro_tvae.inference.objectives import divergence
from pyro_tvae.inference.progress import progress_bar
from pyro_tvae.inference.two_levels import TwoLevels
from pyro_tvae.judging import judges, seeded
from pyro_tvae.likelihoods import binarized, seen_pixels
from pyro_tvae.posteriors import Moments, moments
from pyro_tvae.programs import is_bayesian
from pyro_tvae.verbs import point_estimate

from ..datasets import SequenceDataModule, SequenceDataset
from ..datasets.factors import NOTHING, Factors, signed
from ..datasets.splits import given_by
from .attempts import Attempts
from .measures import Scores, score

__all__ = ["ends_of_explained", "explained_share", "measure"]

T = TypeVar("T")

PUBLISHED_K = 10
ROUNDING = 1e-6  # of sums of log-probabilities in float32, relative
WHOLE = 1e-3  # steps: values that are this near to whole multiples of a step count them
OF_PARTS = ("roll", "roll_error", "roll_exact", "cap_corr", "commutation", "active", "pose")
OF_FACTORS = ("roll", "roll_exact", "cap_corr", "pose", "commutation")  # what takes a factor that is known
VELOCITY = {
    "": "velocity",
    "_error": "standard_error",
    "_spread": "spread",
    "_concentration": "concentration",
    "_shuffled": "null",
    "_p": "p_value",
}
SHUFFLED = 32  # sequences, the first ones, whose frames are shuffled
UNSEEN = "no sequence was observed in all its frames, so that no roll between frames can be seen."
TOLERANCE = 0.05  # nats per frame: an error of a mean bound that is small enough, whatever more particles would cost
KL_DRAWS = 20  # per sequence, where a model's KL is known from its program alone


@judges
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
    attempts: Attempts | None = None,
    of_sequences: dict[str, Tensor] | None = None,
    boundary: str | None = None,
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
        attempts: keeps what went wrong with a measure, which is then nan, or without parts.
        of_sequences: keeps the importance-weighted bounds of as few particles as all sequences get (see
            :class:`pyro_tvae.inference.two_levels.TwoLevels`), ``bounds``, (N,), nats per sequence.
        boundary: at which capsules are rolled; that of the model's topography by default.
    """
    if is_bayesian(model):
        raise ValueError(
            f"evaluate: {type(model).__name__} has random weights, which all sequences share, so that the table's KL "
            "and reconstruction are no sequence's; use log_likelihood, to_arviz and forward_roll."
        )
    attempts = Attempts() if attempts is None else attempts
    boundary = boundary or model.topography.boundary
    program = ELBO(model, guide, num_particles=KL_DRAWS)  # of a model with statements of its own
    device, n_frames = model.like.device, model.n_frames
    dataset, mean_frame = data.datasets[split], data.mean_frame(device)
    published = plain_program(model)
    levels = TwoLevels(len(dataset), num_particles, seed=seed, tolerance=TOLERANCE * n_frames)
    kept: dict[str, Tensor] = {}
    of_batches = Attempts()

    def batches(places: list[int] | None = None) -> Iterator[dict[str, Tensor]]:
        total = math.ceil((len(dataset) if places is None else len(places)) / data.eval_batch_size)
        drawn = data.batches(split, device, places=places)
        return progress_bar(total, label, shown=progress, unit="batch", leave=False, iterable=drawn)

    def bounds(batch: Mapping[str, Tensor], k: int, posterior: Any = None, by_frame: Tensor | None = None) -> Tensor:
        """Those of k particles, of which some may have been weighed frame by frame already."""
        drawn = [] if by_frame is None else [by_frame[:k].sum(-1)]
        if lacking := k - sum(map(len, drawn)):
            given = given_by(batch, model, guide)
            drawn.append(log_weights(model, guide, batch["x"], lacking, posterior=posterior, **given))
        return levels.bounds(torch.cat(drawn))

    def all_particles() -> None:
        for places in levels.rounds(kept["likelihood"]):
            row = 0
            for batch in batches(places.tolist()):
                kept["likelihood"][places[row : row + len(batch["x"])]] = bounds(batch, num_particles)
                row += len(batch["x"])

    def scored(batch: dict[str, Tensor]) -> dict[str, Callable[[], Any]]:
        """What is kept of a batch, in the order in which it draws."""
        x, (observed, given) = batch["x"], given_by(batch, model, guide).values()
        posterior, marginals = posterior_of(guide, x, observed, given), cache(lambda: moments(posterior))
        kinds: dict[str, Callable[[], Any]] = {"likelihood": lambda: bounds(batch, levels.first, posterior)}
        if published and not given and observed is None and has_frame_weights(model, posterior):
            by_frame = cache(lambda: log_weights_by_frame(model, guide, x, PUBLISHED_K, posterior))
            kinds = {
                "likelihood": lambda: bounds(batch, levels.first, posterior, by_frame()),
                "published": lambda: by_frame().double().logsumexp(0).sum(-1),  # no −log K: no likelihood either
            }
        if observed is not None:
            kinds["observed"] = lambda: observed
        kinds |= {
            "t": lambda: point_estimate(model, posterior),
            "z": lambda: marginals()["z"].mean,
            **{name: partial(batch.__getitem__, name) for name in ("index", "moving", "label")},
            "kl": lambda: divergence(model, posterior) if published else program(x, observed, **given).kl,
            "ends": lambda: torch.stack(ends_of_explained(model, mean_frame, x, observed, given.get("measured")), -1),
        }
        if model.energies:
            kinds["energy"] = lambda: _energy(model, marginals())
        if n_frames > 1 and (further := dataset.moved_on(batch)) is not None:
            moved = given_by(further, model, guide)["covariates"]
            kinds["further"] = lambda: point_estimate(model, posterior_of(guide, further["x"], None, moved))
        return kinds

    with torch.inference_mode(), seeded(seed):
        row = 0
        for batch in batches():
            for name, make in scored(batch).items():
                value = None if name in of_batches.failed else of_batches(name, make, None)
                if value is not None:
                    if name not in kept:  # made once: a list of batches would be a second copy, scattered over the heap
                        kept[name] = torch.empty(len(dataset), *value.shape[1:], dtype=value.dtype)
                    kept[name][row : row + len(value)] = value
            row += len(batch["x"])
        if "likelihood" not in of_batches.failed:
            of_batches("likelihood", all_particles, None)

    def has(name: str) -> bool:
        """Whether the model has such a thing, even if it failed."""
        return name in kept or name in of_batches.failed

    def whole(name: str) -> Tensor:
        of_batches.check(name)
        return kept[name]

    def taken(name: str) -> Tensor:
        """The same, let go of: such codes are nearly as large as the data."""
        of_batches.check(name)
        return kept.pop(name)

    @cache
    def frames() -> float:
        """Frames of a sequence, of those that were observed."""
        return float(whole("observed").sum(1).double().mean()) if has("observed") else float(n_frames)

    def mean(values: Tensor) -> float:
        return float(values.double().mean()) / frames()

    def complete(name: str) -> Tensor:
        """Of sequences all of whose frames were observed, between which alone a roll can be seen."""
        values = whole(name)
        if not has("observed"):
            return values
        rows = whole("observed").all(1)
        if not bool(rows.any()):
            raise ValueError(UNSEEN)
        return values[rows]

    def by_factor(compute: Callable[[Tensor, Tensor, float], T], indexed: bool = False) -> dict[str, T]:
        """A measure of t, phase and period for what moves; of factors that count their values alone where asked for."""
        if film:
            complete("label")  # for what it raises
            own = motions().items()
            rolled = {name: motion for name, motion in own if not indexed or motion.indexed}
            return {name: compute(whole("t")[one.rows], one.phase, one.period) for name, one in rolled.items()}
        return _by_factor(complete("t"), complete("index"), complete("moving"), dataset, compute)

    def values() -> Tensor:
        """Of a user's factors (N, S, F), nan where a frame was not observed."""
        assert factors is not None
        return _observed(factors, n_frames, whole("observed") if has("observed") else None)

    def active(means: Tensor) -> int:
        some = whole("observed") if has("observed") and means.shape[1] == n_frames else None  # orbits are of no frame
        return active_latents(means, some)

    def labels() -> Tensor:
        """The class of every frame, (N, S); that of frames that were not observed is as good as unknown."""
        return _of_frames(whole("label"), whole("observed") if has("observed") else torch.ones(len(dataset), n_frames))

    def poses() -> dict[str, float]:
        if (own := codes()) is None:
            return {}
        drawn = (own.drawn, whole("index"), dataset.factor_names, dataset.periods)
        read = {} if film else _poses(own.t, whole("t"), *drawn)
        if factors is None:
            return read
        return read | _poses(own.t, whole("t"), own.values, values(), factors.names, factors.periods)

    likelihood = cache(lambda: levels.mean(whole("likelihood")))

    def off() -> Tensor:
        """Bounds less what a sequence's observed frames have on average: the error of a ratio, by the delta method."""
        bounds = whole("likelihood")
        if not has("observed"):
            return bounds
        share = likelihood().iwae / frames() * whole("observed").sum(1, keepdim=True)
        return torch.cat([bounds[:, :1], bounds[:, 1:3] - share.to(bounds), bounds[:, 3:]], 1)

    factors = dataset.factors  # of a user's own data
    film = dataset.factor_names == ("time",)  # of what moves nothing is known but these
    motions = cache(lambda: {} if factors is None else _motions(factors, values(), model.capsule_dim))
    velocity = cache(lambda: _velocity(model, guide, data, split, seed, boundary))
    compare = partial(roll_correlation, boundary=boundary, max_pairs=MOST_PAIRS)
    rolls = cache(lambda: by_factor(lambda t, phase, period: compare(t, phase, period, turn=period)))
    e_eq = cache(lambda: equivariance_error(complete("t"), boundary=boundary, max_pairs=MOST_PAIRS))
    codes = cache(lambda: _codes(model, guide, data, dataset))
    scores: dict[str, float | dict[str, float]] = {}
    if of_sequences is not None and has("likelihood") and "likelihood" not in of_batches.failed:
        of_sequences["bounds"] = kept["likelihood"][:, 1]
    makers: dict[str, Callable[[], Any]] = {
        # First, since nothing else needs these two.
        "active": lambda: {name: active(taken(name)) for name in ("z", "energy") if has(name)},
        "elbo": lambda: likelihood().elbo / frames(),
        "kl": lambda: mean(whole("kl")),
        "reconstruction": lambda: score(scores, "elbo") + score(scores, "kl"),
        "iwae": lambda: likelihood().iwae / frames(),
        "iwae_error": lambda: levels.mean(off()).iwae_error / frames(),
        "ess": lambda: likelihood().ess,
        "iwae_sequences": lambda: float(likelihood().n_drawn),
        "explained": lambda: explained_share(score(scores, "elbo"), *map(mean, whole("ends").unbind(-1))),
        "e_eq": lambda: e_eq() if n_frames > 1 else math.nan,
        "roll": lambda: {name: result.correlation for name, result in rolls().items()},
        "roll_exact": lambda: {name: result.exact for name, result in rolls().items()},
        "cap_corr": lambda: by_factor(lambda t, phase, _: capsule_correlation(t, phase), indexed=True),
        "commutation": lambda: (
            _commutations(whole("t"), whole("further"), whole("moving"), dataset, boundary) if has("further") else {}
        ),
        "probe": lambda: math.nan if (own := codes()) is None else probe(own.t, own.label, whole("t"), labels()),
        "pose": poses,
        "frame_unnormalised": lambda: mean(whole("published")) if has("published") else math.nan,
    }
    if film:
        left_out = OF_FACTORS if factors is None else ("commutation",)
        makers = {name: make for name, make in makers.items() if name not in left_out}
        known = factors is not None and {*factors.motions[0]} - {NOTHING}
        if not known and n_frames > 1 and model.capsule_dim > 1:
            makers |= {f"velocity{name}": partial(_read, velocity, field) for name, field in VELOCITY.items()}
    if n_frames * (n_frames - 1) // 2 > MOST_PAIRS:
        makers["e_eq_error"] = lambda: e_eq().standard_error
        if "roll" in makers:
            makers["roll_error"] = lambda: {name: result.correlation_error for name, result in rolls().items()}
    for name, make in makers.items():
        scores[name] = attempts(name, make, {} if name in OF_PARTS else math.nan)
    return scores


def _energy(model: TVAE, marginals: Mapping[str, Moments]) -> Tensor:
    """Mean energies, which count by their logarithm where they are positive; orbits belong to no frame."""
    of_energy = marginals[[*model.energies][-1]]
    # Where both signs are alike, as of RadialGuide, what x says is in the squares.
    energy = of_energy.mean if bool(of_energy.mean.any()) else of_energy.variance
    energy = energy if energy.dim() == 4 else energy.unsqueeze(1)
    return energy.log() if bool((energy > 0).all()) else energy


def explained_share(elbo: float, mean: float, best: float) -> float:
    """How far an ELBO lies from that of the mean frame to that of the pixels themselves, all in nats per frame.

    Raises:
        ValueError: there is nothing to explain.
    """
    if best - mean <= ROUNDING * (abs(best) + abs(mean)):
        raise ValueError(
            "every frame equals the mean frame of the training split, so that there is nothing to explain beyond it."
        )
    return (elbo - mean) / (best - mean)


def ends_of_explained(
    model: TVAE, mean_frame: Tensor, x: Tensor, observed: Tensor | None = None, measured: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Nats per sequence, each (B,), where ``explained`` is 0 (the mean frame) and 1 (the pixels as scored).

    Of the frames that were observed, (B, S), and the pixels that were measured, (B, S, channel or 1, height, width).
    """
    seen, binary = seen_pixels(observed, measured), binarized(model.likelihood, x)
    nats = (model.likelihood.at_mean(frames).log_prob(x) for frames in (mean_frame, x if binary is None else binary))
    mean, best = ((one if seen is None else torch.where(seen, one, 0)).flatten(1).sum(-1) for one in nats)
    return mean, best


def _velocity(
    model: TVAE, guide: Guide, data: SequenceDataModule, split: str, seed: int, boundary: str
) -> RollVelocity:
    """Of the first sequences of a split that were observed in all their frames, against their shuffled frames."""
    parts, lacking = list[dict[str, Tensor]](), SHUFFLED
    for batch in data.batches(split, model.like.device, batch_size=SHUFFLED):
        given = {"x": batch["x"]} | given_by(batch, model, guide)["covariates"]
        whole = batch["observed"].all(1) if "observed" in batch else slice(None)
        parts.append({name: value[whole][:lacking] for name, value in given.items()})
        lacking -= len(parts[-1]["x"])
        if not lacking:
            break
    if lacking == SHUFFLED:
        raise ValueError(UNSEEN)
    covariates = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    options: dict[str, Any] = {"boundary": boundary, "batch_size": SHUFFLED, "seed": seed}
    return roll_velocity_test(model, guide, covariates.pop("x"), covariates=covariates, **options)


def _read(velocity: Callable[[], RollVelocity], field: str) -> float:
    value = getattr(velocity(), field)
    return float(value.mean() if isinstance(value, Tensor) else value)


class Motion(NamedTuple):
    """Sequences in which a factor moves, and where in its cycle it is, counted in the steps of a frame.

    Attributes:
        rows: which sequences, (N,).
        phase: of these, (n, S), whole numbers where its values are whole multiples of such a step.
        period: after which capsules are alike again.
        indexed: whether the factor counts its values, as CapCorr takes it.
    """

    rows: Tensor
    phase: Tensor
    period: float
    indexed: bool


def _motions(factors: Factors, values: Tensor, size: int) -> dict[str, Motion]:
    """What moves in a user's sequences, by the values of their factors (N, S, F).

    The unit is what a factor moves from one frame to the next (the median of it), in which a capsule rolls by one
    position. A cycle of at most as many steps as a capsule has positions is compared around that cycle; a longer one,
    and a factor without a period, around the capsule's, whose rolls are seen modulo its positions.
    """
    moved = {}
    for k, (name, period, step) in enumerate(zip(factors.names, factors.periods, factors.steps, strict=True)):
        value = values[..., k]
        rows = value.isfinite().all(1) & (value.amax(1) > value.amin(1))
        if not step or not bool(rows.any()):
            continue
        value, turn = value[rows], math.inf if period is None else period / step
        short = turn <= size * (1 + ROUNDING)
        if not short:
            steps = signed(value.diff(dim=1), period).cumsum(1)
            value, turn = torch.cat([value[:, :1], value[:, :1] + steps], 1), float(size)
        phase = value / step
        if bool(((phase - phase.round()).abs() < WHOLE).all()) and abs(turn - round(turn)) < WHOLE:
            phase, turn = phase.round().long(), round(turn)
        indexed = short and not phase.is_floating_point()
        moved[name] = Motion(rows, phase % turn if indexed else phase, turn, indexed)
    return moved


def _observed(factors: Factors, n_frames: int, observed: Tensor | None) -> Tensor:
    """Values of factors (N, S, F), nan where a frame was not observed."""
    values = factors.values().expand(-1, n_frames, -1)
    return values if observed is None else torch.where(observed.cpu().unsqueeze(-1), values, math.nan)


def _by_factor(
    t: Tensor, index: Tensor, moving: Tensor, data: SequenceDataset, compute: Callable[[Tensor, Tensor, float], T]
) -> dict[str, T]:
    """A measure of t, phase and period, for the sequences of every moving factor."""
    values = {}
    for k, name in enumerate(data.moving):
        chosen = moving == k
        if t.shape[1] > 1 and bool(chosen.any()):
            factor = data.factor_names.index(name.split("+")[0])
            values[name] = compute(t[chosen], index[chosen][..., factor], data.periods[factor])
    return values


def _commutations(t: Tensor, further: Tensor, moving: Tensor, data: SequenceDataset, boundary: str) -> dict[str, float]:
    """Commutation of rolling and transforming, for the sequences of every moving factor."""
    rows = {name: moving == k for k, name in enumerate(data.moving)}
    return {
        name: commutation(t[chosen], further[chosen], boundary=boundary) if int(chosen.sum()) > 1 else math.nan
        for name, chosen in rows.items()
    }


class Codes(NamedTuple):
    """What linear probes are fitted on: t, index and label of frames, and the values of a user's factors."""

    t: Tensor
    drawn: Tensor
    label: Tensor
    values: Tensor


def _of_frames(label: Tensor, observed: Tensor) -> Tensor:
    """Labels (N,) as those of frames (N, S), −1 where these were not observed."""
    return torch.where(observed.bool().cpu(), label.cpu().unsqueeze(-1), -1)


@torch.inference_mode()
def _codes(model: TVAE, guide: Guide, data: SequenceDataModule, judged: SequenceDataset) -> Codes | None:
    """Those of the validation split; None where no probe can be fitted."""
    fitted = data.datasets["validation"]
    if judged is fitted or min(len(fitted), len(judged)) < 2 or fitted.factor_names != judged.factor_names:
        return None
    parts = [
        (
            point_estimate(model, posterior_of(guide, batch["x"], *given_by(batch, model, guide).values())).cpu(),
            batch["index"].cpu(),
            batch["label"].cpu(),
            batch["observed"].cpu() if "observed" in batch else torch.ones(batch["x"].shape[:2], dtype=torch.bool),
        )
        for batch in data.batches("validation", model.like.device)
    ]
    t, index, label, observed = (torch.cat(column) for column in zip(*parts, strict=True))
    factors = fitted.factors
    label = _of_frames(label, observed)
    return Codes(t, index, label, torch.empty(0) if factors is None else _observed(factors, t.shape[1], observed))


def _poses(
    t: Tensor,
    judged_t: Tensor,
    index: Tensor,
    judged_index: Tensor,
    names: Sequence[str],
    periods: Sequence[float | None],
) -> dict[str, float]:
    """Linear probes of pose: fitted on one split's codes, judged on another's."""
    return {
        name: pose_probe(t, index[..., k], judged_t, judged_index[..., k], period)
        for k, (name, period) in enumerate(zip(names, periods, strict=True))
    }
