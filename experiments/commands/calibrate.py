"""The command ``calibrate``: simulation-based calibration of a run's guide, or of NUTS, batch by batch, and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_tvae.files import atomic_write
from pyro_tvae.inference import Calibration, calibration
from pyro_tvae.inference.netcdf import open_dataset, write_datasets
from pyro_tvae.inference.progress import progress_bar
from pyro_tvae.judging import check_seed

from ..config.allowlist import PARTS_ONLY, Allowlist
from ..reports.calibration_page import verdict, write_page
from ..runs.outputs import (
    DAMAGED,
    REQUEST,
    check_nothing_added,
    damaged,
    put_aside,
    refuse_unread,
    replacing,
    request_of,
    unfinished,
)
from ..runs.run import Run, device_of

__all__ = ["CALIBRATION", "calibrate_run"]

CALIBRATION = "calibration.nc"
ATTRIBUTES = DRAWS, RANKS = "n_draws", "ranks"  # of the file: how many, and which variables they are
BATCH = {"guide": 20, "nuts": 4}  # sequences at a time; those of NUTS share a chain


def calibrate_run(
    run: Path,
    *,
    simulations: int = 200,
    draws: int = 99,
    bins: int = 10,
    method: str = "guide",
    warmup: int = 300,
    thin: int = 5,
    seed: int = 0,
    output: Path | None = None,
    overwrite: bool = False,
    allow: Allowlist = PARTS_ONLY,
) -> tuple[Path, Path, str]:
    """Rank simulated latents among posterior draws, see :func:`.calibration`; given again, it goes on where it was cut.

    Every batch is kept when it is done, in a file beside that of the ranks, and has a seed of its own: an interrupted
    calibration ends with the same ranks as one that was left alone, and more simulations are added to those that are
    there. What was there before stays until all are done.

    Args:
        run: the run's folder.
        simulations: how many sequences to simulate, at least five per bin.
        draws: from the posterior of each; one less than a multiple of the bins.
        bins: of the histograms.
        method: ``"guide"`` or ``"nuts"``.
        warmup: adaptation steps of NUTS.
        thin: keep every so many draws of NUTS.
        seed: of everything.
        output: the file of ranks, by default ``calibration.nc`` in the run's folder; the page lies beside it.
        overwrite: replace a file that was made with other settings.
        allow: what the run's configuration may call.

    Returns:
        The file of ranks, the page, and the page's verdict.

    Raises:
        FileNotFoundError: the folder is not a run's, or its training has not ended.
        FileExistsError: the file is there, made with other settings.
        ValueError: numbers that do not fit, or what :func:`.calibration` refuses.
    """
    check_seed(seed, 2**38, "calibrate")  # every batch has one that begins with it
    if method not in BATCH:
        raise ValueError(f"calibrate: method is {method!r}; expected {' or '.join(BATCH)}.")
    if min(draws, warmup, thin) < 1 or bins < 2 or (draws + 1) % bins:
        raise ValueError(
            f"calibrate: draws={draws}, warmup={warmup}, thin={thin}, bins={bins}; expected at least 1 of each and two "
            f"bins, and one draw less than a multiple of the bins, such as {max(1, round(draws / bins)) * bins - 1}."
        )
    if simulations < 5 * bins:
        raise ValueError(
            f"calibrate: simulations is {simulations}; expected at least {5 * bins}, five for each of {bins} bins."
        )
    own = Run(run, allow)
    config = own.config()
    own.check_trained()
    model, guide, weights, code = own.fitted(device_of(config))  # it makes its own data
    nuts = {"warmup": warmup, "thin": thin} if method == "nuts" else {}
    request: dict[str, Any] = {"method": method, "draws": draws, **nuts, "seed": seed, "weights": weights}
    request |= {"code": code} if code else {}
    file = output or own.path / CALIBRATION
    page = file.with_suffix(".html")
    with replacing(file, request, overwrite, page=page) as written:
        begun = unfinished(file, request)
        stored = _read(file, request, lenient=overwrite)
        begun_ranks = _read(begun, request, lenient=True)
        if begun.exists() and not begun_ranks:
            put_aside(begun, DAMAGED)
        ranks = max(stored, begun_ranks, key=_number)
        done, size = _number(ranks), BATCH[method]
        if max(done, simulations) > _number(stored) and not overwrite:  # it will be written anew
            check_nothing_added(file, ranks, (REQUEST, *ATTRIBUTES))
        bar = progress_bar(simulations, "calibration", shown=bool(config.fit.progress), initial=min(done, simulations))
        with bar:
            for start in range(done, simulations, size):
                # Whole batches, each with its own seed: the same ranks wherever it was cut, and whatever is added.
                part = calibration(
                    model,
                    guide,
                    size,
                    draws,
                    method=method,
                    batch_size=size,
                    warmup_steps=warmup,
                    thin=thin,
                    seed=(seed << 24) + start,
                )
                ranks = {
                    name: torch.cat([ranks[name], value]) if ranks else value for name, value in part.ranks.items()
                }
                with atomic_write(begun) as partial:
                    _write(partial, ranks, request)
                bar.update(min(size, simulations - start))
        if _number(ranks) > _number(stored):
            with written(page) as partial:
                _write(partial, ranks, request)
        begun.unlink(missing_ok=True)
        result = Calibration({name: value[:simulations] for name, value in ranks.items()}, draws)
        facts = {
            "Simulations": f"{simulations}, from the model's prior",
            "Posterior": f"{draws} draws each, method {method}, seed {seed}",
            "Smallest p": ", ".join(f"{name}: {result.p_value(name, bins):.2g}" for name in result.ranks),
        }
        write_page(page, result, model, name=str(config.name), facts=facts, file=file.name, bins=bins)
        return file, page, verdict(result, bins)


def _read(path: Path, request: dict[str, Any], *, lenient: bool) -> dict[str, torch.Tensor]:
    """The ranks in a file that was made for this; none where it is missing, or was made for something else.

    What somebody added to it are none. A damaged one has none either where ``lenient``; else ValueError says so.

    Raises:
        OSError: it cannot be read, for a cause that may pass.
    """
    if request_of(path) != request:
        return {}
    try:
        with open_dataset(path) as data:
            # Older files do not name them.
            own = {str(name): value for name, value in data.items() if value.dtype.kind == "i"}
            like_ranks = [name for name, value in own.items() if value.dims == _dims(name, value.ndim)]
            names = json.loads(data.attrs[RANKS]) if RANKS in data.attrs else like_ranks
            return {name: torch.from_numpy(np.asarray(data[name].values, dtype=np.int64)) for name in names}
    except Exception as error:  # which HDF5 says in any way
        refuse_unread(path, error)
        if lenient:
            return {}
        raise ValueError(damaged(path, error)) from None


def _dims(name: str, number: int) -> tuple[str, ...]:
    """Of a variable of ranks."""
    return ("simulation", *(f"{name}_dim_{i}" for i in range(number - 1)))


def _number(ranks: dict[str, torch.Tensor]) -> int:
    """Of the simulations in them."""
    return len(next(iter(ranks.values()), ()))


def _write(path: Path, ranks: dict[str, torch.Tensor], request: dict[str, Any]) -> None:
    from xarray import Dataset

    variables = {name: (_dims(name, value.dim()), value.numpy().astype(np.int32)) for name, value in ranks.items()}
    attributes = {REQUEST: json.dumps(request), DRAWS: request["draws"], RANKS: json.dumps([*ranks])}
    write_datasets(path, {None: Dataset(variables, attrs=attributes)}, {None: {name: {"zlib": True} for name in ranks}})
