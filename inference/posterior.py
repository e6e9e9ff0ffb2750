"""Posterior: draws of a model's latents and all that follows from them, as ArviZ data and NetCDF files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from pyro_tvae import TVAE, Guide
from pyro_tvae.files import atomic_write
from pyro_tvae.guides.base import check_judged, posterior_of
from pyro_tvae.model import tvae_of
from pyro_tvae.posteriors import Posterior, Program, draw
from pyro_tvae.programs import accepted, call, check_covariates, untouched_store

from .arviz_adapter import ArvizData, assemble, read, write
from .densities import log_prob, scored
from .likelihood import CHUNK_BYTES, log_weights, seeded, summarize
from .own_programs import in_plate, plain_program, rehearse
from .progress import progress_bar

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["from_netcdf", "to_arviz", "to_netcdf"]

GROUPS = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
)
METHODS = ("guide", "importance", "nuts")
SAMPLE = ("chain", "draw")
LATTICE = ("sequence", "frame", "capsule", "position")
PIXELS = ("sequence", "frame", "channel", "height", "width")
SITES = {"z": LATTICE, "u": LATTICE, "v": LATTICE, "t": LATTICE, "e": ("sequence", "capsule", "orbit"), "mu": ()}
STATISTICS = {
    "log_weight": (*SAMPLE, "sequence"),
    "diverging": SAMPLE,
    "pareto_k": ("sequence",),
    "ess": ("sequence",),
    "rhat": ("sequence",),
}


@dataclass(frozen=True)
class Draws:
    """Draws of the latent sites, and statistics of how they were made.

    Each is (chain, draw, sequence, *site), or (chain, draw, *site) where all sequences share it.
    """

    latents: dict[str, Tensor]
    stats: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def to_arviz(
    model: TVAE | Callable[..., object],
    guide: Guide | Callable[..., object],
    x: Tensor,
    *,
    covariates: Mapping[str, Tensor] | None = None,
    draws: int = 100,
    method: str = "guide",
    num_particles: int | None = None,
    num_chains: int = 2,
    warmup_steps: int = 300,
    groups: Collection[str] = GROUPS,
    coords: Mapping[str, Any] | None = None,
    seed: int | None = 0,
    chunk_bytes: int = CHUNK_BYTES,
    progress: bool = False,
) -> ArvizData:
    """Posterior and prior draws of a batch of sequences with named dimensions, for every function of ArviZ.

    Groups: ``posterior`` (z, u or e, ``v = W u²``, t, and μ, a point estimate repeated for every draw),
    ``posterior_predictive`` and ``prior_predictive`` (new frames x), ``log_likelihood`` (x: log p(x | t) in nats per
    sequence, higher is better), ``prior``, ``observed_data`` and ``sample_stats``. The latter has, per sequence,
    ``log_weight`` (of every draw, nats), ``ess`` (effective sample size of the weights, at most num_particles) and
    ``pareto_k`` (above 0.7 the guide misses so much of the posterior that no reweighting repairs it; Vehtari et al.
    2024); for NUTS ``ess`` (smallest bulk ESS of a latent), ``rhat`` (largest) and ``diverging`` (of every draw).

    ``az.loo`` leaves out whole sequences; since each has latents of its own, read its Pareto k before its sum.

    A model with statements of its own (:meth:`.TVAE.heads`, ``forward``, random weights, a handler around it) is run,
    so that nothing of it is left out: further latents, random weights and deterministic sites are variables beside z,
    with dimensions that ArviZ would name, further observed sites have their own entry beside x in ``observed_data``,
    ``posterior_predictive`` and ``log_likelihood``, and factors in the latter. The prior is that of Pyro's
    ``Predictive``: factors do not change what is drawn.

    Args:
        model: the generative program.
        guide: its posterior, or any Pyro program of x with the model's sites.
        x: (B, S, channel, height, width).
        covariates: what the programs take beside x by name, (B, …), such as labels.
        draws: draws per sequence and chain.
        method: ``"guide"``: as the guide says. ``"importance"``: the guide's draws, resampled with replacement, each
            sequence by its own weights, so that there is none for random weights. ``"nuts"``: Hamiltonian Monte Carlo
            from :func:`.nuts`, for small models.
        num_particles: draws from the guide that weights are computed of; by default ``draws`` for the guide, of which
            the first ``draws`` are kept, and ten times as many for importance.
        num_chains: chains of NUTS.
        warmup_steps: adaptation steps of NUTS per chain.
        groups: which groups to make; x takes most of the memory.
        coords: values to name things by: one of the dimensions, (length,); or any other name that is not a variable's,
            one value per sequence (B,) or per sequence and frame (B, S), such as labels and factors. The latter stand
            in ``observed_data`` and where every variable has these dimensions; select draws by
            ``data.posterior.sel(sequence=data.observed_data.label == 3)``.
        seed: of all draws; None uses torch's global generator.
        chunk_bytes: bound on the decoded pixels of one pass.
        progress: show a progress bar.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x, on the CPU; dimensions (chain, draw,
        sequence, frame, capsule, position, orbit, channel, height, width).

    Raises:
        ValueError: an unknown method, group or coordinate, too few draws, x that does not fit the model, or a term
            that belongs to no sequence.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> data = to_arviz(model, pyro_tvae.MeanFieldGuide(model), torch.rand(4, 6, 1, 8, 8), draws=10)
        >>> data.posterior["t"].dims
        ('chain', 'draw', 'sequence', 'frame', 'capsule', 'position')
    """
    tvae = tvae_of(model)
    check_judged(tvae, guide, x, None)
    check_covariates(model, guide, covariates, len(x))
    _check(method, groups, draws, num_particles, num_chains)
    own = None if plain_program(model) else _Own(model, x, covariates, chunk_bytes)
    shared = frozenset[str]() if own is None else own.shared
    if method == "importance" and shared:
        raise ValueError(
            f"to_arviz: all sequences share site {min(shared)!r}, and method='importance' resamples each sequence by "
            "its own weights; use method='guide' or 'nuts'."
        )
    observed_data = {"x": x} if own is None else own.observed
    names = _coordinates(coords or {}, tvae, x, {*observed_data})
    site = None if tvae.prior is None else tvae.prior.site
    with seeded(seed), untouched_store():
        if method == "nuts":
            sampled = _nuts(model, guide, x, covariates, draws, num_chains, warmup_steps, progress)
        else:
            resample = method == "importance"
            n = num_particles if num_particles is not None else draws * (10 if resample else 1)
            posterior = posterior_of(guide, x, None, covariates)
            sampled = _importance(model, posterior, x, covariates, draws, n, resample, shared, chunk_bytes, progress)
        if own is None:
            prior = {
                name: distribution.sample(torch.Size([1, draws, len(x)]))
                for name, distribution in tvae.prior_distributions().items()
            }
        else:
            prior = own.prior(draws)
        made: dict[str, dict[str, Tensor]] = {}
        wanted = set(groups)
        for latents, (group, predictive, likelihood) in (
            (sampled.latents, ("posterior", "posterior_predictive", "log_likelihood")),
            (prior, ("prior", "prior_predictive", "")),
        ):
            if own is not None:
                made[group], made[predictive], made[likelihood] = own.follow(
                    latents, predictive in wanted, likelihood in wanted
                )
                continue
            made[group] = _derived(tvae, latents, site) if group in wanted else {}
            pixels = _decoded(tvae, latents, site, x, predictive in wanted, likelihood in wanted, chunk_bytes)
            made[predictive], made[likelihood] = pixels
    made |= {"sample_stats": sampled.stats, "observed_data": observed_data}
    attributes = {
        "inference_library": "pyro-tvae",
        "inference_library_version": version("pyro-tvae"),
        "method": method,
        "seed": "none" if seed is None else seed,
    }
    return assemble(
        {group: _dataset(group, made[group], names, attributes, shared) for group in GROUPS if group in wanted}
    )


def _check(method: str, groups: Collection[str], draws: int, num_particles: int | None, num_chains: int) -> None:
    if method not in METHODS:
        raise ValueError(f"to_arviz: method is {method!r}; expected one of {', '.join(METHODS)}.")
    if isinstance(groups, str):
        raise TypeError(f"to_arviz: groups is {groups!r}; expected a list of names, such as [{groups!r}].")
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"to_arviz: there is no group {unknown[0]!r}; expected some of {', '.join(GROUPS)}.")
    if draws < 1 or num_chains < 1:
        raise ValueError(f"to_arviz: draws={draws} and num_chains={num_chains}; expected at least 1 of each.")
    if num_particles is not None and num_particles < draws:
        raise ValueError(f"to_arviz: num_particles is {num_particles!r}; expected at least draws, {draws}.")


# ---- draws


def shared_sites(model: Any, x: Tensor, covariates: Mapping[str, Tensor] | None) -> frozenset[str]:
    """Latents of a model that all sequences share, such as random weights."""
    if plain_program(model):
        return frozenset()
    sites = scored(rehearse(model, x, covariates))
    return frozenset(name for name, site in sites if not site["is_observed"] and not in_plate(site))


def weighted_particles(
    model: Any, posterior: Posterior | Program, x: Tensor, size: int, covariates: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Draws from a posterior, each (size, B, *site), and their log-weights (size, B), nats per sequence."""
    values: dict[str, Tensor] = {}

    def program(_: Tensor) -> None:
        values.update(draw(posterior))

    takes = accepted(model)  # the posterior has the guide's
    given = {name: value for name, value in (covariates or {}).items() if name in takes}
    whole = size * x.numel() * x.element_size()  # one chunk, so that the program runs once
    return values, log_weights(model, program, x, size, covariates=given, chunk_bytes=whole)


def _importance(
    model: Any,
    posterior: Posterior | Program,
    x: Tensor,
    covariates: Mapping[str, Tensor] | None,
    draws: int,
    n: int,
    resample: bool,
    shared: Collection[str],
    chunk_bytes: int,
    progress: bool,
) -> Draws:
    """The first of n weighted draws, or a resample of all; memory does not grow with n.

    Resampling is multinomial and needs one pass: after every chunk each of the kept draws gives way to one of the
    chunk's with the probability that the chunk's weights have among all weights so far.
    """
    chunk = max(1, chunk_bytes // (x.numel() * x.element_size()))
    column = torch.arange(len(x), device=x.device)
    kept: dict[str, Tensor] = {}
    kept_weight, weights = x.new_empty(0, len(x)), []
    total = x.new_full((len(x),), -torch.inf)
    with progress_bar(n, "draws from the guide", shown=progress, leave=False) as bar:
        for start in range(0, n, chunk):
            values, log_w = weighted_particles(model, posterior, x, min(chunk, n - start), covariates)
            weights.append(log_w)
            bar.update(len(log_w))
            if not resample:
                more = draws - len(kept_weight)
                kept = {name: torch.cat([kept[name], v[:more]]) if kept else v[:more] for name, v in values.items()}
                kept_weight = torch.cat([kept_weight, log_w[:more]])
                continue
            # A sequence is resampled by its own weights: a sum over the batch would weigh what belongs to others.
            share = log_w.logsumexp(0)
            total = torch.logaddexp(total, share)
            row = torch.distributions.Categorical(logits=log_w.T).sample(torch.Size([draws]))
            fresh = torch.rand(draws, len(x), device=x.device) < (share - total).exp()
            picked = {name: v[row, column] for name, v in values.items()}
            kept = {name: torch.where(_like(fresh, v), v, kept.get(name, v)) for name, v in picked.items()}
            kept_weight = torch.where(fresh, log_w[row, column], kept_weight if start else log_w[row, column])
    estimate = summarize(torch.cat(weights), x.shape[-4])
    stats = {"log_weight": kept_weight[None], "pareto_k": estimate.pareto_k, "ess": estimate.ess}
    kept = {name: value.squeeze(1) if name in shared else value for name, value in kept.items()}
    return Draws({name: value[None] for name, value in kept.items()}, stats)


def _like(mask: Tensor, value: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *(1,) * (value.dim() - mask.dim()))


def _nuts(
    model: Any,
    guide: Any,
    x: Tensor,
    covariates: Mapping[str, Tensor] | None,
    draws: int,
    num_chains: int,
    warmup_steps: int,
    progress: bool,
) -> Draws:
    from .mcmc import nuts

    result = nuts(
        model,
        x,
        init=guide,
        covariates=covariates,
        num_samples=draws,
        warmup_steps=warmup_steps,
        num_chains=num_chains,
        seed=None,  # the caller's
        progress=progress,
    )
    # What all sequences share is as much a latent of each of them.
    shared = shared_sites(model, x, covariates)
    ess, rhat = (
        [value.reshape(1 if name in shared else len(x), -1).expand(len(x), -1) for name, value in known.items()]
        for known in (result.ess, result.rhat)
    )
    worst = {
        "ess": torch.stack([value.amin(1) for value in ess]).amin(0),
        "rhat": torch.stack([value.amax(1) for value in rhat]).amax(0),
    }
    return Draws(result.draws, {"diverging": result.diverging, **worst})


# ---- what follows from draws


def _derived(model: TVAE, latents: Mapping[str, Tensor], site: str | None) -> dict[str, Tensor]:
    """All variables of a posterior or prior group: the sites, and v, t and μ, each (chain, draw, …)."""
    variables = dict(latents)
    if site is not None:
        # One draw at a time: composing all at once would double the memory.
        flat = zip(latents["z"].flatten(0, 1), latents[site].flatten(0, 1), strict=True)
        energies, composed = zip(*((model.energy(u), model.compose(z, u)) for z, u in flat), strict=True)
        shape = latents["z"].shape[:2]
        variables["v"] = torch.stack(energies).unflatten(0, shape)
        variables["t"] = torch.stack(composed).unflatten(0, shape)
        variables["mu"] = model.mu.detach().expand(shape)
    else:
        variables["t"] = latents["z"]
    return variables


def _decoded(
    model: TVAE,
    latents: Mapping[str, Tensor],
    site: str | None,
    x: Tensor,
    predict: bool,
    score: bool,
    chunk_bytes: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """New frames (chain, draw, B, S, channel, height, width) and log p(x | t) (chain, draw, B), where wanted."""
    if not predict and not score:
        return {}, {}
    shape = latents["z"].shape[:2]
    frames, nats = [], []
    for part in _chunks(latents, max(1, chunk_bytes // (x.numel() * x.element_size()))):
        # Straight from t: the program itself would hand back the observed x where it is conditioned on it.
        distribution = model.decode(model.compose(part["z"], None if site is None else part[site]))
        if predict:
            frames.append(distribution.sample().cpu())
        if score:
            nats.append(distribution.log_prob(x).sum(-1))
    made = [{"x": torch.cat(values).unflatten(0, shape)} if values else {} for values in (frames, nats)]
    return made[0], made[1]


def _chunks(latents: Mapping[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    names = list(latents)
    for parts in zip(*(latents[name].flatten(0, 1).split(size) for name in names), strict=True):
        yield dict(zip(names, parts, strict=True))


class _Own:
    """A model with statements of its own: what follows from draws is what its program says when it is given them.

    Attributes:
        shared: latents that have one value for all sequences.
        observed: what the model observes, by site, factors left out.
    """

    def __init__(self, model: Any, x: Tensor, covariates: Mapping[str, Tensor] | None, chunk_bytes: int) -> None:
        self.tvae, self.n_sequences = tvae_of(model), len(x)
        self.program = call(model, x, None, covariates)
        self.chunk = max(1, chunk_bytes // (x.numel() * x.element_size()))
        sites = scored(rehearse(model, x, covariates))
        self.latents = [name for name, site in sites if not site["is_observed"]]
        self.shared = frozenset(name for name, site in sites if not site["is_observed"] and not in_plate(site))
        known = [(name, site) for name, site in sites if site["is_observed"]]
        self.observed = {
            name: site["value"] for name, site in known if not isinstance(site["fn"], pyro.distributions.Unit)
        }

    def run(self, size: int, values: Mapping[str, Tensor]) -> poutine.Trace:
        """A run for so many draws at once, the latents at the values given, (size, …), or else from their prior."""
        rows = {name: value.unsqueeze(1) if name in self.shared else value for name, value in values.items()}
        with poutine.block(), pyro.plate("particles", size, dim=-2):
            return poutine.trace(poutine.condition(self.program, data=rows)).get_trace()

    def prior(self, draws: int) -> dict[str, Tensor]:
        """Draws of the latents from their prior, each (1, draws, …)."""
        parts = []
        for start in range(0, draws, self.chunk):
            trace = self.run(min(self.chunk, draws - start), {})
            sites: Mapping[str, Any] = trace.nodes
            parts.append({name: self._value(name, sites[name]["value"]) for name in self.latents})
        return {name: torch.cat([part[name] for part in parts])[None] for name in self.latents}

    def _value(self, name: str, value: Tensor) -> Tensor:
        return value.squeeze(1) if name in self.shared else value

    def follow(
        self, latents: Mapping[str, Tensor], predict: bool, score: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """All variables that follow from draws, new data, and log-probabilities of what was observed, where wanted."""
        shape, parts = latents["z"].shape[:2], []
        for part in _chunks(latents, self.chunk):
            trace = self.run(len(part["z"]), part)
            fixed, new, nats = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
            sites: Mapping[str, Any] = trace.nodes
            for name, site in sites.items():
                if site["type"] == "sample" and (site["infer"] or {}).get("_deterministic", False):
                    fixed[name] = site["value"] if in_plate(site) else site["value"].squeeze(1)
            if self.tvae.prior is not None:
                fixed["v"] = self.tvae.energy(part[self.tvae.prior.site])
            for name, site in scored(trace):
                # What the draws gave is observed in this run.
                if not site["is_observed"] or name in latents:
                    continue
                if predict and name in self.observed:
                    new[name] = _rows(site["fn"].sample(), site).cpu()
                if score:
                    nats[name] = _rows(log_prob(site), site)
            parts.append((fixed, new, nats))
        whole = [
            {name: torch.cat([part[i][name] for part in parts]).unflatten(0, shape) for name in parts[0][i]}
            for i in range(3)
        ]
        variables = dict(latents) | whole[0]
        if self.tvae.prior is not None:
            random = [s for s, (part, name) in self.tvae.weight_sites().items() if (part, name) == (self.tvae, "mu")]
            variables["mu"] = latents[random[0]] if random else self.tvae.mu.detach().expand(shape)
        return variables, whole[1], whole[2]


def _rows(value: Tensor, site: Mapping[str, Any]) -> Tensor:
    """(draw, sequence, …), or (draw, …) of a site that all sequences share."""
    return value if in_plate(site) else value.squeeze(1)


# ---- labelled arrays


def _dimensions(group: str, name: str, value: Tensor, shared: Collection[str]) -> tuple[str, ...]:
    if group == "sample_stats":
        return STATISTICS[name]
    if group == "observed_data":
        return PIXELS if name == "x" else ("sequence", *_own_dimensions(name, value.dim() - 1))
    if group == "log_likelihood" and name != "x":
        return (*SAMPLE, "sequence")[: value.dim()]
    if name in shared:
        return (*SAMPLE, *_own_dimensions(name, value.dim() - 2))
    if name == "x":
        return (*SAMPLE, "sequence") if group == "log_likelihood" else (*SAMPLE, *PIXELS)
    if name == "e" and value.dim() == len(SAMPLE) + len(LATTICE):  # one energy per latent, not per orbit
        return (*SAMPLE, *LATTICE)
    # An energy prior of a user's has dimensions of its own, named as ArviZ would.
    return (*SAMPLE, *SITES.get(name, ("sequence", *_own_dimensions(name, value.dim() - 3))))


def _own_dimensions(name: str, n: int) -> tuple[str, ...]:
    return tuple(f"{name}_dim_{i}" for i in range(n))


def _coordinates(
    coords: Mapping[str, Any], model: TVAE, x: Tensor, taken: Collection[str]
) -> dict[str, tuple[tuple[str, ...], NDArray[Any]]]:
    """User's coordinates as name -> (dimensions, values); those of a dimension replace its 0, 1, 2, …"""
    dimensions = {*PIXELS, *LATTICE, "orbit"}
    placed: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
    for name, given in coords.items():
        values = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
        if name in dimensions and values.ndim == 1:
            placed[name] = ((name,), values)
        elif name in {*SAMPLE, *dimensions, *SITES, *STATISTICS, *taken}:
            raise ValueError(f"to_arviz: a coordinate cannot be called {name!r}, which is taken; choose another name.")
        elif values.shape in ((len(x),), (len(x), model.n_frames)):
            placed[name] = (("sequence", "frame")[: values.ndim], values)
        else:
            raise ValueError(
                f"to_arviz: coordinate {name!r} has shape {values.shape}; expected ({len(x)},), one value per "
                f"sequence, or ({len(x)}, {model.n_frames}), one per sequence and frame."
            )
    return placed


def _dataset(
    group: str,
    variables: Mapping[str, Tensor],
    coords: Mapping[str, tuple[tuple[str, ...], NDArray[Any]]],
    attributes: Mapping[str, Any],
    shared: Collection[str],
) -> Dataset:
    from xarray import Dataset

    data = {
        name: (_dimensions(group, name, value, shared), value.detach().cpu().numpy())
        for name, value in variables.items()
    }
    sizes = {name: n for dims, value in data.values() for name, n in zip(dims, value.shape, strict=True)}
    for name, (_, values) in coords.items():
        if name in sizes and len(values) != sizes[name]:
            raise ValueError(f"to_arviz: coordinate {name!r} has {len(values)} values; expected {sizes[name]}.")
    index = {name: ((name,), np.arange(n)) for name, n in sizes.items()}
    # ArviZ 1.x cannot stack variables of which some have a coordinate and some (μ, energies of orbits) have not.
    shared = set.intersection(*(set(dims) for dims, _ in data.values())) if data else set()
    named = {name: entry for name, entry in coords.items() if name in sizes or set(entry[0]) <= shared}
    return Dataset(data, coords=index | named, attrs=dict(attributes))


# ---- files


def to_netcdf(data: ArvizData, path: str | Path) -> Path:
    """Write what :func:`to_arviz` made into one NetCDF file, whole or not at all; ``az.from_netcdf`` reads it.

    Example:
        >>> import pyro_tvae, tempfile
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> data = to_arviz(model, pyro_tvae.MeanFieldGuide(model), torch.rand(4, 6, 1, 8, 8), draws=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = from_netcdf(to_netcdf(data, f"{folder}/posterior.nc"))
        >>> bool((again.posterior["t"] == data.posterior["t"]).all())
        True
    """
    path = Path(path)
    with atomic_write(path) as partial:
        write(data, partial)
    return path


def from_netcdf(path: str | Path) -> ArvizData:
    """Read a file of :func:`to_netcdf` into memory, bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a NetCDF file.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected a file written by to_netcdf.")
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable NetCDF file ({error}); expected a file written by to_netcdf."
        ) from None
