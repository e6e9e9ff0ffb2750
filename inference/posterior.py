"""Posterior: draws of a model's latents and all that follows from them, as ArviZ data and NetCDF files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_tvae import TVAE, Guide
from pyro_tvae.files import atomic_write, check_readable, check_room, check_stays, folder_beside, mkdir, refusal
from pyro_tvae.guides.base import check_judged, posterior_of
from pyro_tvae.judging import check_whole, judges, seeded
from pyro_tvae.locks import lock, unlock
from pyro_tvae.model import tvae_of
from pyro_tvae.programs import untouched_store

from .arviz_adapter import (
    ArvizData,
    InFile,
    InMemory,
    arviz,
    assemble,
    check_holds,
    close,
    names_of,
    read,
    write,
    write_zarr,
)
from .derived import Consequences, consequences
from .draws import guide_draws, nuts_draws
from .labels import Coordinates, check_apart, coordinates, layout
from .mcmc import GuideQuality, NUTSResult, check_drawn, check_quality, nuts
from .netcdf import check_writes
from .pareto import RELIABLE_PARETO_K, UnreliableWeights

__all__ = ["expected_size", "from_netcdf", "to_arviz", "to_netcdf", "to_zarr"]

OF_POSTERIOR = ("posterior", "posterior_predictive", "log_likelihood", "log_prior")
OF_PRIOR = ("prior", "prior_predictive")
GROUPS = (*OF_POSTERIOR, "sample_stats", "sequence_stats", *OF_PRIOR, "observed_data", "constant_data")
METHODS = ("guide", "importance", "nuts")
FEW = 2  # draws that are tried before many are made


@judges
def to_arviz(
    model: TVAE | Callable[..., object],
    guide: Guide | Callable[..., object],
    x: Tensor,
    *,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    draws: int = 100,
    method: str = "guide",
    num_particles: int | None = None,
    num_chains: int = 2,
    warmup_steps: int = 300,
    thin: int = 1,
    result: NUTSResult | None = None,
    quality: GuideQuality | None = None,
    groups: Collection[str] = GROUPS,
    variables: Collection[str] | None = None,
    coords: Mapping[str, Any] | None = None,
    attributes: Mapping[str, str | float] | None = None,
    seed: int | None = 0,
    chunk_bytes: int | None = None,
    path: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> ArvizData:
    """Posterior and prior draws of a batch of sequences with named dimensions, for every function of ArviZ about data.

    Groups:

    - ``posterior``: z, u or e, ``v = W u²``, t, (chain, draw, sequence, …).
    - ``posterior_predictive``: new frames x.
    - ``log_likelihood``: x, log p(x | t), and ``log_prior``: log p of each latent; (chain, draw, sequence), nats per
      sequence, higher is better. Sums of many terms, they are in double precision whatever the model's is.
    - ``sample_stats``, of every draw: ``log_weight`` (of the guide's, (chain, draw, sequence), nats), ``lp`` (log p(x,
      z, u) summed over all sequences, nats), and of NUTS ``energy``, ``tree_depth``, ``step_size``, ``acceptance_rate``
      and ``diverging``, see :class:`.NUTSResult`.
    - ``sequence_stats``, of every sequence: ``ess`` (effective sample size of the weights, at most num_particles) and
      ``pareto_k`` (above 0.7 the guide misses so much of the posterior that no reweighting repairs it, see
      :func:`.pareto_shape`); of importance also ``distinct_draws``, since draws of heavy weights are copied, and
      ``ess`` is that of the draws: a mean over them has the standard error ``sd / √ess``, whatever ``az.summary`` says,
      which takes copies for draws; of NUTS ``ess`` (smallest bulk ESS of a latent, of the draws that are kept) and
      ``rhat`` (largest, of all draws).
    - ``prior``, ``prior_predictive``: as the first two. Where they are the same for all sequences, they have no
      dimension of them.
    - ``observed_data``, and ``constant_data``: the point estimate μ.

    Sequences are called by their ``item``, so that ``data.posterior.sel(sequence=3)`` is item 3 and arrays are joined
    by xarray; by default 0, 1, 2, … as in x.

    ``az.loo`` leaves out whole sequences; since each has latents of its own, read its Pareto k before its sum.

    Functions that set one observation against its prediction and its score, such as ``az.loo_pit`` and
    ``az.loo_metrics``, take one number per sequence, since a score is a sequence's: put the mean of x over its pixels,
    or another statistic, under one name into ``observed_data`` and ``posterior_predictive``, and the score there into
    ``log_likelihood``. ``az.concat`` takes all groups but ``sequence_stats``, which are of one set of draws.

    A model with statements of its own (:meth:`.TVAE.heads`, ``forward``, random weights, a handler around it) is run,
    so that nothing of it is left out: further latents, random weights and deterministic sites are variables beside z,
    with dimensions that ArviZ would name, further observed sites have their own entry beside x in ``observed_data``,
    ``posterior_predictive`` and ``log_likelihood``, and factors in the latter. The prior is that of Pyro's
    ``Predictive``: factors do not change what is drawn.

    Args:
        model: the generative program.
        guide: its posterior, or any Pyro program of x with the model's sites.
        x: (B, S, channel, height, width).
        observed: (S,) or (B, S) booleans: the posterior given these frames alone, whose x is all that is scored; x in
            ``observed_data`` is nan in the others, and predicted in all. None means all.
        covariates: what the programs take beside x by name, (B, …), such as labels; with ``measured``, (B, S, channel
            or 1, height, width) booleans, the same holds for pixels.
        draws: draws per sequence and chain.
        method: ``"guide"``: as the guide says. ``"importance"``: the guide's draws, resampled by Pareto-smoothed
            weights, each sequence by its own, so that there is none for random weights (`Vehtari et al. 2024, Pareto
            smoothed importance sampling <https://arxiv.org/abs/1507.02646>`__). None is copied whose weight does not
            ask for it. Resampling without any copies (Gelman et al., "Bayesian data analysis", 3rd ed., section 10.4)
            is not done: it trades them for draws that lean towards the guide, unseen. ``"nuts"``: Hamiltonian Monte
            Carlo from :func:`.nuts`, for small models.
        num_particles: draws from the guide that weights are computed of; by default ``draws`` for the guide, of which
            the first ``draws`` are kept, and ten times as many for importance.
        num_chains: chains of NUTS.
        warmup_steps: adaptation steps of NUTS per chain.
        thin: of this many draws of NUTS one is kept; others are independent, and none is left out.
        result: what :func:`.nuts` drew for these sequences, taken as it is; the method is then ``"nuts"``.
        quality: what :func:`.guide_quality` said of the guide beside it: in ``sequence_stats`` its ``pareto_k``, and
            ``guide_mean_difference`` and ``guide_variance_ratio`` of the latent where the guide is worst.
        groups: which groups to make; x takes most of the memory.
        variables: which of the variables of ``posterior`` and ``prior`` to keep; None keeps all.
        coords: values to name things by: ``item``, the index of each sequence in its data set, (B,); one of the
            dimensions, (length,); or any other name that is not a variable's, one value per sequence (B,) or per
            sequence and frame (B, S), such as labels and factors. The latter stand in every group whose variables all
            have these dimensions; select draws by ``data.posterior.sel(sequence=data.observed_data.label == 3)``.
        attributes: what to say of every group beside the method, the seed, num_particles, …, such as a run's name.
        seed: of all draws but those of ``result``, whose own is then the attribute; None uses torch's global generator.
        chunk_bytes: bound on the decoded pixels of one pass; None sizes it by the memory there is.
        path: of a NetCDF file to write, whole or not at all. It is filled draw by draw, so that memory holds the
            latents and one pass alone.
        overwrite: replace a file that is there.
        progress: show a progress bar.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x, on the CPU; dimensions (chain, draw,
        sequence, frame, capsule, position, orbit, channel, height, width). With a path, what is in the file, read when
        it is used.

    Warns:
        UnreliableWeights: importance draws of sequences whose Pareto k is above 0.7.

    Raises:
        BlockingIOError: another call is writing ``path``.
        FileExistsError: a file is there.
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
    check_judged(tvae, guide, x, observed, covariates)
    check_whole("to_arviz", thin=thin)
    arviz()  # what fails in it does so before the draws, which would be lost
    if torch.bfloat16 in (x.dtype, tvae.like.dtype):
        raise ValueError(
            "to_arviz: the model's numbers or those of x are of type bfloat16, which NumPy and files do not have; "
            "expected single or double precision: model.float(), guide.float() and x.float()."
        )
    if result is not None and method in ("guide", "nuts"):  # the first by default
        method, draws = "nuts", result.diverging.shape[1] // thin
    if method != "nuts" and (result is not None or quality is not None):
        raise ValueError(
            f"to_arviz: 'result' and 'quality' are of draws by NUTS; expected none with method={method!r}."
        )
    _check(method, groups, draws, num_particles, num_chains, thin)
    following = consequences(model, x, observed, covariates, chunk_bytes)
    shared = following.shared
    if method == "importance" and shared:
        raise ValueError(
            f"to_arviz: all sequences share site {min(shared)!r}, and method='importance' resamples each sequence by "
            "its own weights; use method='guide' or 'nuts'."
        )
    if result is not None:
        check_drawn(result, model, x, observed, covariates, shared, "to_arviz")
    if quality is not None:
        check_quality(quality, model, guide, x, observed, covariates, "to_arviz")
    names = coordinates(coords or {}, tvae, x, {*following.observed})
    _check_variables(following, variables, names)
    alike: dict[str, Any] = {"observed": observed, "covariates": covariates, "groups": groups, "variables": variables}
    with ExitStack() as stack:
        if path is not None:
            # All that may fail in writing does so before the draws, which would be lost.
            stack.enter_context(_held(path := Path(path).expanduser(), overwrite))
            check_holds(names, attributes or {})
            partial = stack.enter_context(atomic_write(path))
            check_writes(partial)
            if method == "nuts" and result is None:
                size = expected_size(model, guide, x, draws=draws, num_chains=num_chains, **alike)
                check_room(partial, size)
        # What fails after the draws, which would be lost, fails before.
        if result is None and (draws > FEW or method == "nuts"):
            to_arviz(model, guide, x, draws=FEW, coords=coords, chunk_bytes=chunk_bytes, **alike)
        told_seed = seed if result is None else result.seed  # of the draws of the posterior
        stack.enter_context(seeded(seed))
        stack.enter_context(untouched_store())
        if method == "nuts":
            if result is None:
                number: dict[str, Any] = {"num_samples": draws * thin, "num_chains": num_chains}
                number["warmup_steps"] = warmup_steps
                result = nuts(
                    model,
                    x,
                    init=guide,
                    observed=observed,
                    covariates=covariates,
                    seed=None,
                    progress=progress,
                    **number,
                )
            sampled = nuts_draws(result.thinned(tvae, thin), len(x), shared, quality)
        else:
            resample = method == "importance"
            n = num_particles if num_particles is not None else draws * (10 if resample else 1)
            posterior = posterior_of(guide, x, observed, covariates)
            options = (draws, n, resample, shared, chunk_bytes, progress)
            sampled = guide_draws(model, posterior, x, observed, covariates, *options)
            if resample:
                _warn(sampled.sequence_stats, n, draws)
        told = {
            "inference_library": "pyro-tvae",
            "inference_library_version": version("pyro-tvae"),
            "method": method,
            "seed": "none" if told_seed is None else told_seed,
            "thinning": thin,
            "dtype": str(x.dtype).removeprefix("torch."),
            **sampled.facts,
            **(attributes or {}),
        }
        target = InMemory() if path is None else InFile(partial)
        stack.callback(target.close)  # before the file is named

        def lay(group: str, values: Mapping[str, Tensor], shape: tuple[int, ...] | None) -> Mapping[str, Any]:
            shapes = {name: tuple(v.shape) if shape is None else (*shape, *v.shape[1:]) for name, v in values.items()}
            dtypes = {name: np.dtype(str(v.dtype).removeprefix("torch.")) for name, v in values.items()}
            laid = layout(group, shapes, names, told, shared, following.one_prior)
            return target.open(group, laid, dtypes, following.chunk, following.binary and group.endswith("_predictive"))

        lp = _fill(following, sampled.latents, OF_POSTERIOR, groups, variables, lay)
        _fill(following, following.prior(draws), OF_PRIOR, groups, variables, lay)
        whole = {
            "sample_stats": {"lp": lp, **sampled.stats},
            "sequence_stats": sampled.sequence_stats,
            "observed_data": following.observed,
            "constant_data": following.constants,
        }
        for group, values in whole.items():
            if group in groups and values:
                places = lay(group, values, None)
                for name, value in values.items():
                    places[name][...] = value.detach().cpu().numpy()
    return assemble(target.groups) if isinstance(target, InMemory) else read(Path(path or ""), lazy=True)


@judges
def expected_size(
    model: TVAE | Callable[..., object],
    guide: Guide | Callable[..., object],
    x: Tensor,
    *,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    draws: int = 100,
    num_chains: int = 1,
    groups: Collection[str] = GROUPS,
    variables: Collection[str] | None = None,
) -> int:
    """Bytes of the file that :func:`to_arviz` would write: what a few draws of the guide take, times their number.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> size = expected_size(model, pyro_tvae.MeanFieldGuide(model), torch.rand(4, 6, 1, 8, 8), draws=1000)
        >>> 1e6 < size < 4e7
        True
    """
    check_whole("expected_size", draws=draws, num_chains=num_chains)
    few, more = FEW, 5 * FEW
    given: dict[str, Any] = {"observed": observed, "covariates": covariates, "groups": groups, "variables": variables}
    with TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.nc", Path(folder) / "large.nc"
        for n, path in ((few, small), (more, large)):
            close(to_arviz(model, guide, x, draws=n, path=path, **given))
        least = small.stat().st_size
        slope = (large.stat().st_size - least) / (more - few)
    return round(least + slope * (draws * num_chains - few))


def _fill(
    following: Consequences,
    latents: Mapping[str, Tensor],
    source: tuple[str, ...],
    groups: Collection[str],
    variables: Collection[str] | None,
    lay: Callable[[str, Mapping[str, Tensor], tuple[int, ...]], Mapping[str, Any]],
) -> Tensor:
    """Fill the groups that follow from latents, piece by piece; log p(x, latents), (chain, draw), where wanted."""
    shape = tuple(next(iter(latents.values())).shape[:2])
    lp = torch.zeros(shape, dtype=torch.float64)
    score = source is OF_POSTERIOR and bool({"log_likelihood", "log_prior", "sample_stats"} & set(groups))
    options = (source[0] in groups, source[1] in groups, score)
    places: dict[str, Mapping[str, Any]] = {}
    for piece in following.follow(latents, *options) if any(options) else ():
        rows = slice(piece.start, piece.start + piece.size)
        made = {group: values for group, values in zip(source, piece.groups, strict=False) if group in groups}
        if variables is not None and source[0] in made:
            made[source[0]] = {name: value for name, value in made[source[0]].items() if name in variables}
        if not places:
            places = {group: lay(group, values, shape) for group, values in made.items() if values}
        for group, values in made.items():
            for name, value in values.items():
                places[group][name][piece.chain, rows] = value.cpu().numpy()
        for term in (*piece.log_likelihood.values(), *piece.log_prior.values()):
            lp[piece.chain, rows] += term.reshape(piece.size, -1).sum(1).cpu()
        made.clear()  # before the next is made
        del piece
    return lp


def _check_variables(following: Consequences, variables: Collection[str] | None, names: Coordinates) -> None:
    """Raise ValueError where one is asked for that there is not, or is called like an axis: before there are draws."""
    if isinstance(variables, str):
        raise TypeError(f"to_arviz: variables is {variables!r}; expected a list of names, such as [{variables!r}].")
    with torch.random.fork_rng(), untouched_store():
        piece = next(iter(following.follow(following.prior(1), True, False, False)))
    check_apart({*piece.variables, *following.observed}, names)
    unknown = sorted({*(variables or ())} - {*piece.variables})
    if unknown:
        raise ValueError(
            f"to_arviz: there is no variable {unknown[0]!r}; expected some of {', '.join(sorted(piece.variables))}."
        )


def _warn(stats: Mapping[str, Tensor], n: int, draws: int) -> None:
    k = stats["pareto_k"]
    bad = ~(k <= RELIABLE_PARETO_K)
    if bad.any():
        distinct = stats["distinct_draws"][bad]
        warnings.warn(
            f"to_arviz: {int(bad.sum())} of {len(k)} sequences have a Pareto k above {RELIABLE_PARETO_K} (or none): "
            f"their {draws} draws, {int(distinct.min())} to {int(distinct.max())} of them distinct, are not the "
            "posterior and their effective sample sizes too large; take method='nuts' for a small model, train a "
            f"richer guide, or raise num_particles, {n}, and leave out what stays above (sequence_stats.pareto_k).",
            UnreliableWeights,
            stacklevel=4,
        )


def _check(
    method: str, groups: Collection[str], draws: int, num_particles: int | None, num_chains: int, thin: int
) -> None:
    if method not in METHODS:
        raise ValueError(f"to_arviz: method is {method!r}; expected one of {', '.join(METHODS)}.")
    if isinstance(groups, str):
        raise TypeError(f"to_arviz: groups is {groups!r}; expected a list of names, such as [{groups!r}].")
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"to_arviz: there is no group {unknown[0]!r}; expected some of {', '.join(GROUPS)}.")
    check_whole("to_arviz", draws=draws, num_chains=num_chains)
    if num_particles is not None:
        check_whole("to_arviz", num_particles=num_particles)
    if thin > 1 and method != "nuts":
        raise ValueError(
            f"to_arviz: thin is {thin!r} with method={method!r}; expected 1 for draws of a guide, which are "
            "independent."
        )
    if num_particles is not None and num_particles < draws:
        raise ValueError(f"to_arviz: num_particles is {num_particles!r}; expected at least draws, {draws}.")


@contextmanager
def _held(path: Path, overwrite: bool) -> Iterator[None]:
    """Hold a file that is not there, or may be replaced, so that nobody else writes it while draws are made.

    Raises:
        BlockingIOError: another process or thread is writing it.
        FileExistsError: something is there.
    """

    def check() -> None:
        if not overwrite and path.is_file() and path.stat().st_size:
            raise FileExistsError(
                f"to_arviz: {path} is there already, and would be lost; choose another path, or give overwrite=True."
            )

    check()
    check_stays(path)
    file, descriptor = path.with_name(f".{path.name}.lock"), -1
    try:
        mkdir(path.parent)
        descriptor = lock(file)
    except BlockingIOError:
        raise BlockingIOError(
            f"to_arviz: another call is writing {path}; wait for its end, or choose another path."
        ) from None
    except OSError:
        pass  # nothing can be written there, which is said in a moment
    try:
        check()  # another may have ended just now
        yield
    finally:
        unlock(descriptor, file)


def to_netcdf(data: ArvizData, path: str | Path) -> Path:
    """Write what :func:`to_arviz` made into one NetCDF file, whole or not at all; ``az.from_netcdf`` reads it.

    A file of that name is replaced, as xarray's ``to_netcdf`` does; ``to_arviz(path=…)`` replaces none.

    Example:
        >>> import pyro_tvae, tempfile
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> data = to_arviz(model, pyro_tvae.MeanFieldGuide(model), torch.rand(4, 6, 1, 8, 8), draws=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = from_netcdf(to_netcdf(data, f"{folder}/posterior.nc"))
        >>> bool((again.posterior["t"] == data.posterior["t"]).all())
        True
    """
    path = Path(path).expanduser()  # as xarray reads it
    with atomic_write(path) as partial:
        write(data, partial)
    return path


def to_zarr(data: ArvizData, path: str | Path) -> Path:
    """Write what :func:`to_arviz` made into a Zarr folder that is not there yet; :func:`from_netcdf` reads it as well.

    Raises:
        FileExistsError: something is there.
        ModuleNotFoundError: the package zarr is missing.
        OSError: it cannot be written.
    """
    path = Path(path).expanduser()  # as xarray reads it
    if os.path.lexists(path):  # a link to nothing too
        raise FileExistsError(f"{path} exists; choose another path, or move it away.")
    if find_spec("zarr") is None:
        raise ModuleNotFoundError("to_zarr needs the package zarr; pip install 'pyro-tvae[zarr]', or take to_netcdf.")
    try:
        with folder_beside(path) as folder:
            write_zarr(data, folder / "data")
            (folder / "data").rename(path)
    except OSError as error:
        raise type(error)(refusal(path, error)) from error
    return path


def from_netcdf(path: str | Path, groups: Collection[str] | None = None, *, lazy: bool = False) -> ArvizData:
    """Read a file of :func:`to_netcdf`, or a folder of :func:`to_zarr`, bit for bit.

    Args:
        path: of either.
        groups: which to read; None reads all.
        lazy: leave the arrays in the file until they are used, and the file open.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: it is not a NetCDF file, or has no such group.
    """
    path = Path(path).expanduser()  # as xarray reads it
    if not path.is_file() and not (path / ".zgroup").exists():
        what = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected a file written by to_netcdf.")
    if path.is_file():
        check_readable(path)
    try:
        return read(path, groups, lazy)
    except KeyError as error:
        raise ValueError(
            f"{path} has no group {error.args[0]!r}; expected some of {', '.join(map(repr, names_of(path)))}."
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable NetCDF file ({shorten(str(error), 300)}); expected a file written by to_netcdf."
        ) from None
