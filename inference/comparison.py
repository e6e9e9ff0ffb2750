"""Comparison: which of several models explains the same sequences better, and whether bounds can tell."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from pyro import poutine
from scipy import stats
from torch import Tensor, nn

from pyro_tvae import TVAE, Guide
from pyro_tvae.guides.base import posterior_of
from pyro_tvae.judging import check_whole, judges, seeded
from pyro_tvae.likelihoods import scored_alike, seen_pixels
from pyro_tvae.model import frame_mask, tvae_of
from pyro_tvae.posteriors import JOINT, Program, draw
from pyro_tvae.programs import check_covariates, taken, untouched_store

from .annealing import Annealing, Simulated, annealed_importance, bracket, check_annealing, simulate
from .chunks import chunk_of
from .densities import counts_plainly, scored
from .frame_averages import frame_averaged_weights
from .inspection import plain_program, prior_trace
from .likelihood import check_likelihood, log_likelihood, log_weights
from .pareto import RELIABLE_PARETO_K

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Comparison", "Difference", "bound_gap", "compare"]

PER_FRAME = 10  # draws of z per frame that are tried where there are energies
Pair = tuple[TVAE | Callable[..., object], Guide | Callable[..., object]]


class Difference(NamedTuple):
    """Difference of two models' mean log p(x), nats per sequence.

    Attributes:
        mean: of the bounds, sequence by sequence.
        standard_error: of that mean over sequences, which are paired: what both models find hard cancels.
        low: lower end of an interval for the difference of log p(x) itself, the looseness of both bounds included.
        high: upper end; nan where a looseness is not known, as is ``low``.
        warning: why the sign is not decided, or "".
    """

    mean: float
    standard_error: float
    low: float
    high: float
    warning: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """Lower bounds of log p(x) of M models on the same N sequences, latents integrated out; nats per sequence.

    Attributes:
        names: of the models, as they were given.
        log_p: (M, N), higher is better.
        pareto_k: (M, N), of the importance weights, see :class:`.LogLikelihood`; nan for annealing.
        looseness: (M,), mean gap between an upper and this lower bound on sequences that the model itself made, which
            is how far the bound may lie below log p(x); nan where it makes none, or they cannot be scored.
        looseness_error: (M,), its standard error over those sequences.
        n_frames: S, to convert to nats per frame; of frames that were observed in part, their mean number.
        level: of the intervals, over all pairs of models together.
    """

    names: tuple[str, ...]
    log_p: Tensor
    pareto_k: Tensor
    looseness: Tensor
    looseness_error: Tensor
    n_frames: float
    level: float = 0.95

    def difference(self, one: str, other: str) -> Difference:
        """Mean log p(x) of one model minus that of the other.

        With lower bounds ``L``, log p lies between ``L`` and ``L`` plus the looseness g, so that::

            L_1 − L_2 − g_2 − c s_2  ≤  log p_1 − log p_2  ≤  L_1 − L_2 + g_1 + c s_1

        where s combines the standard errors of the difference and of the looseness, and c is a quantile of Student's t,
        with Bonferroni's correction where there are more than two models: all intervals hold together in a share of at
        least :attr:`level` of data sets.
        """
        for name in (one, other):
            if name not in self.names:
                named = ", ".join(map(repr, self.names))
                raise ValueError(f"difference: there is no model {name!r}; choose two of {named}.")
        i, j = self.names.index(one), self.names.index(other)
        gaps = self.log_p[i] - self.log_p[j]
        mean, n = float(gaps.mean()), gaps.numel()
        error = float(gaps.std()) / math.sqrt(n) if n > 1 else math.nan
        pairs = len(self.names) * (len(self.names) - 1) / 2
        c = float(stats.t.ppf(1 - (1 - self.level) / (2 * pairs), max(n - 1, 1)))
        reach = [
            max(0.0, float(self.looseness[k])) + c * math.hypot(error, float(self.looseness_error[k])) for k in (i, j)
        ]
        low, high = mean - reach[1], mean + reach[0]
        # The bound of the model that seems worse is the one that may hide more than the difference.
        if math.isnan(error):
            warning = "one sequence has no standard error"
        elif abs(mean) <= c * error:
            warning = "within the error over sequences"
        elif math.isnan(low) or math.isnan(high):
            warning = "looseness not known"
        elif low <= 0 <= high:
            warning = "within the bounds' looseness"
        else:
            warning = ""
        return Difference(mean, error, low, high, warning)

    @property
    def table(self) -> DataFrame:
        """The comparison as ``az.compare`` lays it out, a row for each model, best first; means in nats per sequence.

        Columns: ``rank``; ``log_p`` and its standard error ``se``; ``log_p_diff`` from the best, 0 or less, with its
        paired standard error ``dse``, and ``low`` and ``high``, an interval for the difference of log p(x) itself;
        ``looseness`` of the model's own bound; ``bad_k``, the share of sequences whose Pareto k is above 0.7; and
        ``warning``, why the difference from the best is not decided.
        """
        means = self.log_p.mean(1)
        order = means.argsort(descending=True).tolist()
        best = self.names[order[0]]
        differences = [self.difference(self.names[k], best) if k != order[0] else None for k in order]
        known = ~self.pareto_k.isnan()
        bad = torch.where(
            known.any(1), (self.pareto_k > RELIABLE_PARETO_K).sum(1) / known.sum(1).clamp(min=1), math.nan
        )
        n = self.log_p.shape[1]
        columns: dict[str, list[Any]] = {
            "rank": [*range(len(order))],
            "log_p": means[order].tolist(),
            "se": (self.log_p[order].std(1) / math.sqrt(n)).tolist() if n > 1 else [math.nan] * len(order),
            "log_p_diff": [0.0 if d is None else d.mean for d in differences],
            "dse": [0.0 if d is None else d.standard_error for d in differences],
            "low": [0.0 if d is None else d.low for d in differences],
            "high": [0.0 if d is None else d.high for d in differences],
            "looseness": self.looseness[order].tolist(),
            "bad_k": bad[order].tolist(),
            "warning": ["" if d is None else d.warning for d in differences],
        }
        return _rows(columns, [self.names[k] for k in order])


def _rows(columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> DataFrame:
    from xarray import Dataset

    values = {name: ("model", [*column]) for name, column in columns.items()}
    return Dataset(values, coords={"model": [*names]}).to_dataframe()


@judges
def compare(
    fitted: Mapping[str, Pair],
    x: Tensor,
    num_particles: int = 1000,
    *,
    annealing: Annealing | None = None,
    n_simulations: int = 32,
    frame_averages: bool = True,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    batch_size: int = 16,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Compare models by log p(x) with the latents integrated out, sequence by sequence.

    Each model gets a lower bound of every sequence's log p(x): importance-weighted (`Burda et al. 2016, Importance
    weighted autoencoders <https://arxiv.org/abs/1509.00519>`__) or annealed; and its looseness, the gap between an
    upper bound and the same lower one on sequences simulated from the model, see :func:`bound_gap` and
    :func:`.bracket`. Importance weights are of whole sequences, or average z frame by frame (:func:`.log_likelihood`)
    with as many draws, whichever has the smaller gap there: a plain VAE, whose frames are independent, gains most. On
    other sequences the guide may be worse than on those: Pareto k tells.

    ``az.loo`` of a file of :func:`.to_arviz` asks for the same number in a worse way: the weights are fixed and each
    sequence has latents of its own, so leaving a sequence out leaves its latents to their prior, and ``elpd_loo`` is
    the sum of log p(x) itself, estimated by the harmonic mean of p(x | t) over posterior draws.

    Args:
        fitted: name -> (model, guide), two or more.
        x: (N, S, channel, height, width), the same sequences for all; not those that the models were fitted to.
        num_particles: draws K from each guide per sequence, for importance weights.
        annealing: walk from the guides to the posteriors instead: tighter and slower.
        n_simulations: sequences that looseness is measured on, 2 or more.
        frame_averages: try those too where a model has them, and not weights of whole sequences alone.
        observed: (S,) or (N, S) booleans: log p of these frames alone. None means all. Looseness is then that of
            simulated sequences of which as much is seen, the masks of x taken in turn.
        covariates: what the programs take beside x by name, (N, …); each pair is given what it takes. A pair that takes
            other than ``measured``, (N, S, channel or 1, height, width) booleans: log p of these pixels alone, has no
            looseness, since nothing tells what belongs to simulated sequences.
        batch_size: sequences per pass.
        level: that all intervals together hold the differences.
        seed: of all draws; every model has its own.
        progress: show progress bars.

    Raises:
        ValueError: fewer than two models, numbers that are too small, a sequence of which nothing was observed, or
            likelihoods that score x in another measure, such as mass for one and density for the other.

    Example:
        >>> import pyro_tvae
        >>> fitted = {}
        >>> for name, topography in {"rolling": pyro_tvae.CapsuleRoll(3), "plain": pyro_tvae.NoTopography()}.items():
        ...     model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3, topography=topography)
        ...     fitted[name] = model, pyro_tvae.default_guide(model)
        >>> compare(fitted, torch.rand(4, 3, 1, 4, 4), 50).table.columns[:5].tolist()
        ['rank', 'log_p', 'se', 'log_p_diff', 'dse']
    """
    named: Any = fitted
    if not isinstance(named, Mapping) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in named.values()):
        raise TypeError(
            f"compare: fitted is of type {type(fitted).__name__}; expected a mapping of names to pairs, such as "
            "{'one': (model, guide), 'other': (model, guide)}."
        )
    if others := [name for name in named if not isinstance(name, str)]:  # which no table may be able to hold
        raise TypeError(f"compare: a model is called {others[0]!r}; expected a name, such as {str(others[0])!r}.")
    _rows({"rank": [0]}, ["one"])  # what fails in it would lose what is computed
    check_whole("compare", num_particles=num_particles, batch_size=batch_size)
    check_whole("compare", 2, n_simulations=n_simulations)
    if len(fitted) < 2 or not 0 < level < 1:
        raise ValueError(
            f"compare: {len(fitted)} models, level={level}; expected two models or more, and a level between 0 and 1."
        )
    covariates = dict(covariates or {})
    told = [taken(covariates, *pair) for pair in fitted.values()]
    known = frozenset[str]().union(*told) - {"measured"}  # which all have to take
    for_all = {name: value for name, value in covariates.items() if name not in known}
    for pair, given in zip(fitted.values(), told, strict=True):
        check_covariates(*pair, for_all | given, len(x))
    for name, pair in fitted.items():
        _check_finite(name, *pair)
    _check_measures({name: model for name, (model, _) in fitted.items()}, x, told)
    measured = covariates.get("measured")
    whole = None if observed is None else frame_mask(observed, *x.shape[:2]).expand(len(x), -1)
    masks: dict[str, Any] = {"observed": whole, "measured": measured}
    if (seen := seen_pixels(whole, measured)) is not None and not bool((some := seen.flatten(1).any(1)).all()):
        raise ValueError(
            f"compare: nothing of {int((~some).sum())} of the {len(x)} sequences was observed, of which no model says "
            "anything; leave them out."
        )
    turns = torch.arange(n_simulations) % len(x)
    of_simulated: dict[str, Any] = {
        name: None if one is None else one[turns.to(one.device)] for name, one in masks.items()
    }
    pairs = [*fitted.values()]
    for (model, guide), given in zip(pairs, told, strict=True):  # what one is refused for, before others run
        if annealing is not None:
            check_annealing(cast(Any, model), cast(Any, guide), x, whole, given)
        else:
            check_likelihood(model, guide, x, whole, given)
    # Of other covariates nothing tells what belongs to simulated sequences.
    simulable = [
        given.keys() <= {"measured"} and _simulates(model) for (model, _), given in zip(pairs, told, strict=True)
    ]
    bounds, ks, gaps = [], [], []
    unknown = torch.full((n_simulations,), math.nan, dtype=torch.float64)
    for index, ((name, (model, guide)), given, simulates) in enumerate(
        zip(fitted.items(), told, simulable, strict=True)
    ):
        own: dict[str, Any] = {"seed": seed + index, "progress": progress}  # its own noise: independent errors
        if annealing is None:
            options = (n_simulations, batch_size, seed + index)
            numbers = _numbers(model, guide, x, num_particles, frame_averages and simulates)
            tried = {}
            for one in numbers:
                tried[one] = unknown
                try:
                    tried[one] = _gap(model, guide, *one, *options, **of_simulated) if simulates else unknown
                except ValueError as error:  # as of latents that a guide cannot draw: no reason to lose other models
                    if one == numbers[0]:
                        warnings.warn(
                            f"compare: the looseness of {name!r} is not known, since its guide cannot be "
                            f"judged on simulated sequences: {textwrap.shorten(str(error), 120)}",
                            stacklevel=3,
                        )
            k, m = min(tried, key=lambda one: float(tried[one].mean().nan_to_num(math.inf)))
            own |= {"observed": observed, "covariates": given, "batch_size": batch_size}
            found = log_likelihood(model, guide, x, k, frame_particles=m, **own)
            bounds.append(found.iwae)
            ks.append(found.pareto_k)
            gaps.append(tried[k, m])
        else:
            walked: Any = model  # annealing refuses what it cannot walk
            by: Any = guide
            own["annealing"] = annealing
            bounds.append(annealed_importance(walked, by, x, observed=whole, covariates=given, **own).log_p)
            ks.append(torch.full_like(bounds[-1], math.nan))
            gaps.append(bracket(walked, by, n_simulations, **of_simulated, **own).gap if simulates else unknown)
    return Comparison(
        tuple(fitted),
        torch.stack(bounds),
        torch.stack(ks),
        torch.stack([gap.mean() for gap in gaps]),
        torch.stack([gap.std() / math.sqrt(len(gap)) for gap in gaps]),
        x.shape[-4] if whole is None else float(whole.sum(1).double().mean()),
        level,
    )


def _check_finite(name: str, *pair: Any) -> None:
    """Raise ValueError where weights are no numbers, as after a step that was too long: before others are judged."""
    for module in (tvae_of(pair[0]), pair[1]):
        weights = module.named_parameters() if isinstance(module, nn.Module) else ()
        bad = next((one for one, value in weights if not bool(value.isfinite().all())), None)
        if bad is not None:
            whose = "model" if module is not pair[1] else "guide"
            raise ValueError(
                f"compare: {name!r} has weights that are not finite ({bad} of its {whose}), and nothing can be said of "
                "it; leave it out, or train it anew with a lower learning rate."
            )


def _check_measures(models: Mapping[str, Any], x: Tensor, told: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise ValueError where two likelihoods score x in another measure: their nats are of different things."""
    for (one, first), (other, second) in combinations(models.items(), 2):
        a, b = tvae_of(first).likelihood, tvae_of(second).likelihood
        if not scored_alike(a, b, x):
            raise ValueError(
                f"compare: {one!r} scores pixels by {type(a).__name__} and {other!r} by {type(b).__name__}, whose nats "
                "are of different things (mass, density, or other binarized pixels); expected models that score the "
                "same pixels alike."
            )
    scaled = {name: _scales(model, x, given) for (name, model), given in zip(models.items(), told, strict=True)}
    if len({*scaled.values()}) > 1:
        name = next(name for name, value in scaled.items() if value)
        raise ValueError(
            f"compare: {name!r} scales or masks site 'x' and others do not, so that nats are of different things; "
            "expected models that count all of x, or all the same part."
        )


def _simulates(model: Any) -> bool:
    """Whether sequences can be made of a model: a likelihood of the user's may score pixels, and draw none."""
    try:
        return plain_program(model) and bool(len(simulate(model, 1).x))
    except NotImplementedError:
        return False


def _scales(model: Any, x: Tensor, given: Mapping[str, Tensor]) -> bool:
    """Whether a program counts other than all of x, or more of it than it is."""
    if plain_program(model):
        return False
    first = {name: value[:1] for name, value in given.items() if name != "measured"}
    return any(name == "x" and not counts_plainly(site) for name, site in scored(prior_trace(model, x[:1], first)))


def _numbers(model: Any, guide: Any, x: Tensor, num_particles: int, frame_averages: bool) -> list[tuple[int, int]]:
    """Draws of the energies, and of z per frame within each, that cost as much as so many of whole sequences."""
    whole = [(num_particles, 1)]
    if num_particles < 2 or not frame_averages:
        return whole
    try:
        check_likelihood(model, guide, x, frame_particles=2)
    except (TypeError, ValueError):  # covariates, or frames that are coupled otherwise
        return whole
    m = min(PER_FRAME, num_particles) if tvae_of(model).energies else num_particles
    return [*whole, (num_particles // m, m)]


def _gap(
    model: Any,
    guide: Any,
    num_particles: int,
    frame_particles: int,
    n: int,
    batch_size: int,
    seed: int,
    observed: Tensor | None = None,
    measured: Tensor | None = None,
) -> Tensor:
    """Gaps on simulated sequences (n,); nan where the guide has what cannot be scored."""
    simulated = simulate(model, n, seed=seed)
    parts = []
    for start in range(0, n, batch_size):
        rows = slice(start, start + batch_size)
        latents = {site: value[rows] for site, value in simulated.latents.items()}
        part = Simulated(simulated.x[rows], latents)
        given: dict[str, Any] = {"frame_particles": frame_particles, "seed": seed + start}
        for name, mask in (("observed", observed), ("measured", measured)):
            given[name] = None if mask is None else mask[rows].to(part.x.device)
        parts.append(bound_gap(model, guide, part, num_particles, **given))
    return torch.cat(parts)


@judges
def bound_gap(
    model: TVAE,
    guide: Guide | Callable[..., object],
    simulated: Simulated,
    num_particles: int,
    *,
    frame_particles: int = 1,
    observed: Tensor | None = None,
    measured: Tensor | None = None,
    seed: int | None = 0,
) -> Tensor:
    """Upper minus lower importance-weighted bound of log p(x) on sequences whose latents were drawn with them.

    ``log (w_1 + … + w_K) / K`` is a lower bound of log p(x) in expectation where all latents come from the guide, and
    an upper one where one of them is an exact draw from the posterior, as are the latents that made x (`Sobolev &
    Vetrov 2019, Importance weighted hierarchical variational inference <https://arxiv.org/abs/1905.03290>`__). Both
    ends share the other K − 1 draws, so that the gap is less noisy than either.

    Args:
        model: the generative program.
        guide: its posterior, by distributions of the model's sites.
        simulated: from :func:`.simulate`, N sequences.
        num_particles: K.
        frame_particles: M draws of z per frame within each, see :func:`.log_likelihood`; in each frame one of the first
            M is exact too.
        observed: (S,) or (N, S) booleans: of log p of these frames alone, which the same latents made. None means all.
        measured: (N, S, channel or 1, height, width) booleans: of these pixels alone.
        seed: of the draws; None uses torch's global generator.

    Returns:
        (N,), nats per sequence; nearer to 0 is better. nan where the guide is a program or has sites of
        its own.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> bound_gap(model, pyro_tvae.MeanFieldGuide(model), simulate(model, 2), 10).shape
        torch.Size([2])
    """
    x, latents = simulated
    covariates = {} if measured is None else {"measured": measured}
    posterior = posterior_of(guide, x, observed, covariates)
    if frame_particles > 1:
        numbers = num_particles, frame_particles
        log_w, exact = _by_frames(model, posterior, simulated, *numbers, seed, observed, measured)
    else:
        trace = _given(posterior, latents)
        if trace is None:
            return torch.full((len(x),), math.nan, dtype=torch.float64)
        given: dict[str, Any] = {"observed": observed, "covariates": covariates}
        log_w = log_weights(model, guide, x, num_particles, seed=seed, **given).cpu().double()

        def made(x: Tensor, observed: Tensor | None = None) -> None:
            with poutine.replay(trace=trace):
                draw(posterior_of(guide, x, observed, covariates))

        exact = log_weights(model, made, x, 1, **given).cpu().double()
    return torch.cat([exact, log_w[1:]]).logsumexp(0) - log_w.logsumexp(0)


def _by_frames(
    model: TVAE,
    posterior: Any,
    simulated: Simulated,
    num_particles: int,
    frame_particles: int,
    seed: int | None,
    observed: Tensor | None,
    measured: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Frame-averaged log-weights (K, N), and those (1, N) of the exact latents; all draws of a plain VAE count as M."""
    x = simulated.x
    k, m = (num_particles, frame_particles) if model.energies else (1, num_particles * frame_particles)
    chunk = max(1, chunk_of(x) // k)
    weights = []
    for number, exact in ((k, None), (1, simulated.latents)):
        with seeded(seed), untouched_store():  # the same draws again, as far as their number is
            drawn = frame_averaged_weights(model, posterior, x, observed, number, m, chunk, exact, measured)
        weights.append(drawn.cpu().double())
    return weights[0], weights[1]


def _given(posterior: Any, latents: Mapping[str, Tensor]) -> poutine.Trace | None:
    """A trace that gives a guide's sites these values; None where it has sites whose values these do not tell."""
    if isinstance(posterior, Program) or {*posterior} - {JOINT} != {*latents}:
        return None
    values = {site: value.unsqueeze(0) for site, value in latents.items()}
    if JOINT in posterior:
        values[JOINT] = torch.stack([values[site] for site in posterior if site != JOINT], -3)
    trace = poutine.Trace()
    for site, value in values.items():
        infer = {"is_auxiliary": site == JOINT}
        trace.add_node(site, name=site, type="sample", value=value, is_observed=False, infer=infer)
    return trace
