"""The command ``posterior``: draws of a run's posterior as a file for ArviZ, and a page of plots that judge them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pyro_tvae.inference.arviz_adapter import ArvizData, assemble, close
from pyro_tvae.inference.mcmc import guide_quality
from pyro_tvae.inference.mcmc import nuts as sample_nuts
from pyro_tvae.inference.netcdf import check_writes
from pyro_tvae.inference.pareto import UnreliableWeights
from pyro_tvae.inference.posterior import GROUPS, METHODS, expected_size, from_netcdf, to_arviz, to_netcdf
from pyro_tvae.judging import check_seed

from ..config.allowlist import PARTS_ONLY, Allowlist
from ..config.composition import data_settings
from ..datasets import SequenceDataModule
from ..datasets.renderers import MovingImages
from ..datasets.splits import given_by, scored_in_words
from ..reports.posterior_page import POSTERIOR, verdict, write_page
from ..runs.outputs import REQUEST, RESERVE, check_writable, replacing
from ..runs.run import Run

__all__ = ["posterior_run"]

LEAST_DRAWS = 4  # of ArviZ's diagnostics
FOR_K = 100  # draws that k is estimated from, at least: with few it is noise
FOR_THE_PAGE = {"sample_stats", "sequence_stats", "observed_data"}


def posterior_run(
    run: Path,
    *,
    draws: int = 100,
    sequences: int = 8,
    method: str = "guide",
    chains: int = 2,
    warmup: int = 300,
    thin: int = 1,
    seed: int = 0,
    groups: Collection[str] = GROUPS,
    variables: Collection[str] = (),
    output: Path | None = None,
    overwrite: bool = False,
    allow: Allowlist = PARTS_ONLY,
    data: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Write ``posterior.nc`` and ``posterior.html`` into a trained run's folder.

    Args:
        run: the run's folder.
        draws: draws per sequence (and chain, for NUTS), those that are kept.
        sequences: the first ones of the test split, in its order.
        method: ``"guide"``, ``"importance"`` or ``"nuts"``; see :func:`.to_arviz`.
        chains: of NUTS.
        warmup: adaptation steps of NUTS.
        thin: keep every so many draws of NUTS.
        seed: of the draws.
        groups: which groups to write.
        variables: which variables of ``posterior`` and ``prior`` to write; none means all.
        output: the file, by default ``posterior.nc`` in the run's folder; the page lies beside it.
        overwrite: replace a file that was made with other settings.
        allow: what the run's configuration may call.
        data: overrides of settings of its data, which may then be others than it was begun with.

    Returns:
        The paths of both files; how far the draws can be trusted is printed.

    Raises:
        FileNotFoundError: the folder is not a run's, or its training has not ended.
        FileExistsError: the file is there, made with other settings.
        ValueError: numbers that are too small, or what :func:`.to_arviz` refuses.
    """
    check_seed(seed, owner="posterior")
    stored = Run(run, allow, data_settings(data))
    if sequences < 1 or draws < LEAST_DRAWS or min(chains, warmup, thin) < 1:
        raise ValueError(
            f"posterior: sequences={sequences}, draws={draws}, chains={chains}, warmup={warmup}, thin={thin}; expected "
            f"at least {LEAST_DRAWS} draws, which diagnostics need, and 1 of the others."
        )
    if method not in METHODS or (thin > 1 and method != "nuts"):
        raise ValueError(
            f"posterior: method is {method!r} with thin={thin}; expected one of {', '.join(METHODS)}, and thin=1 but "
            "for nuts, whose neighboring draws resemble each other."
        )
    loaded = stored.load()
    config, model, guide, judged = loaded.config, loaded.model, loaded.guide, loaded.data
    file = output or run / POSTERIOR
    nuts = {"chains": chains, "warmup": warmup, "thin": thin} if method == "nuts" else {}
    request = {
        "draws": draws,
        "sequences": sequences,
        "method": method,
        **nuts,
        "seed": seed,
        "groups": sorted(groups),
        "variables": sorted(variables),
        "weights": loaded.weights,
        **({"data": loaded.others} if loaded.others else {}),
        **({"code": loaded.code} if loaded.code else {}),
    }
    page = file.with_suffix(".html")
    whole = {*groups} >= FOR_THE_PAGE and not variables
    with replacing(file, request, overwrite, page=page) as written:
        # Somebody may have added to it; what was asked for otherwise has been refused.
        kept = not overwrite and file.exists()
        batch = next(judged.batches("test", loaded.device, batch_size=sequences))
        given = given_by(batch, model, guide)
        if kept:
            print(f"{file} was made by this command, and stays as it is; its page is written anew", flush=True)
        if not (kept and whole):  # of a file that holds a part the page needs the rest
            show, coords = bool(config.fit.progress), _coordinates(judged, batch)
            asked: dict[str, Any] = {"groups": {*groups} | FOR_THE_PAGE, "coords": coords, "seed": seed}
            asked["attributes"] = {REQUEST: json.dumps(request), "run": str(config.name)}
            options: dict[str, Any] = {"draws": draws, "method": method}
            if whole:
                size = 0
                with suppress(OSError):  # a trial that has no place costs the estimate, not the draws
                    n_chains = chains if nuts else 1
                    of_file: dict[str, Any] = {"draws": draws, "num_chains": n_chains, "groups": groups}
                    size = expected_size(model, guide, batch["x"], **of_file, **given)
                    print(f"writing about {size / 1e6:.1f} MB to {file}", flush=True)
                if nuts:
                    written.keep_room(RESERVE + size)
            if nuts:  # a trial and a few draws of the guide meet what is refused, before those that take hours
                if not kept:
                    check_writable(file, check_writes)
                _selected(to_arviz(model, guide, batch["x"], draws=LEAST_DRAWS, **given, **asked), groups, variables)
                options = {"num_samples": draws * thin, "num_chains": chains, "warmup_steps": warmup}
                result = sample_nuts(model, batch["x"], init=guide, seed=seed, progress=show, **options, **given)
                quality = guide_quality(model, guide, batch["x"], result, seed=seed, **given)
                options = {"result": result, "thin": thin, "quality": quality}
            elif method == "guide":
                options["num_particles"] = max(draws, FOR_K)
            with nullcontext(file) if kept else written(page) as partial:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UnreliableWeights)  # the verdict says it
                    drawn = to_arviz(
                        model,
                        guide,
                        batch["x"],
                        **given,
                        **options,
                        **asked,
                        path=partial if whole else None,  # what the page takes and the file does not is held in memory
                        progress=show,
                    )
                print(verdict(drawn), flush=True)
                if whole:
                    close(drawn)
                elif not kept:
                    to_netcdf(_selected(drawn, groups, variables), partial)
        if whole:
            drawn = from_netcdf(file, lazy=True)
        if kept and whole:
            print(verdict(drawn), flush=True)
        times = f" and chain, {chains} chains" if nuts else ""
        facts = {
            "Sequences": f"items 0 to {len(batch['x']) - 1} of the test split{loaded.aside}",
            **({"Measured": scored} if (scored := scored_in_words(batch)) else {}),
            "Draws": f"{draws} per sequence{times}, method {method}, seed {seed}",
            "μ": "none, a plain VAE" if model.prior is None else f"{float(model.mu.detach()):.2f}, a point estimate",
        }
        return file, write_page(page, drawn, model, name=str(config.name), facts=facts, file=file.name)


def _coordinates(data: SequenceDataModule, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What labels the sequences of a batch of the test split: items, labels, and the values of their factors."""
    described = data.datasets["test"]
    coords: dict[str, Any] = {"item": np.arange(len(batch["x"])), "label": batch["label"]}
    # A factor may be called like a variable (x, scale), its index never is.
    coords |= {f"{name}_index": batch["index"][..., k] for k, name in enumerate(described.factor_names)}
    if isinstance(described.renderer, MovingImages):
        for k, (name, values) in enumerate(described.renderer.transformations.factors.items()):
            coords[f"{name}_value"] = np.asarray(values)[batch["index"][..., k].cpu().numpy() % len(values)]
    if described.factors is not None:
        known = described.factors.values(slice(len(batch["x"]))).expand(-1, described.n_frames, -1).numpy()
        coords |= {f"{name}_value": known[..., k] for k, name in enumerate(described.factors.names)}
    if described.moving:
        coords["moving"] = [described.moving[k] for k in batch["moving"].tolist()]
    return coords


def _selected(data: ArvizData, groups: Collection[str], variables: Collection[str]) -> ArvizData:
    """Some groups, and of the draws some variables."""
    chosen = {}
    for group in GROUPS:
        if group not in data or group not in groups:
            continue
        dataset = data[group]
        dataset = dataset.to_dataset() if hasattr(dataset, "to_dataset") else dataset
        if variables and group in ("posterior", "prior"):
            unknown = sorted({*variables} - {*dataset.data_vars})
            if unknown and group == "posterior":
                raise ValueError(
                    f"posterior: there is no variable {unknown[0]!r}; expected some of {', '.join(map(str, dataset))}."
                )
            dataset = dataset[[name for name in variables if name in dataset]]
        chosen[group] = dataset
    return assemble(chosen)
