"""Checks: what can be told of a fit before its first step."""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.model_helpers import is_overridden
from pyro import poutine
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyro_tvae import TVAE
from pyro_tvae.model import check_finite, frame_mask
from pyro_tvae.programs import SEQUENCE, accepted, call, untouched_store

from .batches import Batch, is_mask
from .inspection import holds_sequences
from .randomness import random_states, restore
from .trainer import TrainerOptions

__all__ = [
    "NonFiniteError",
    "check_batch",
    "check_data",
    "check_directory",
    "check_makers",
    "check_names",
    "check_options",
    "check_precision",
    "check_sequences",
    "check_trainer",
    "covariates",
    "dry_run",
    "named",
]

MATMUL_PRECISIONS = ("highest", "high", "medium")


class NonFiniteError(FloatingPointError):
    """The objective or its gradient became infinite or NaN."""


def check_directory(directory: Path) -> None:
    """Raise ValueError where what writes into a fit's directory would read two places out of its path."""
    if "::" in str(directory):
        raise ValueError(
            f"fit: directory is {directory}, in which Lightning takes '::' for a chain of addresses; choose "
            "another name."
        )
    if (variables := os.path.expandvars(directory)) != str(directory):
        raise ValueError(
            f"fit: directory is {directory}, which TensorBoard takes for {variables}; give one of the two by "
            "os.path.expandvars, or choose another name."
        )


def check_options(
    whole: Mapping[str, Any], real: Mapping[str, Any], optional: Mapping[str, Any], places: Mapping[str, Any]
) -> None:
    """Raise ValueError or TypeError where an option of fit is nothing that it could be."""
    integral = all(isinstance(value, Integral) and not isinstance(value, bool) for value in whole.values())
    if not integral or not all(isinstance(value, Real) and math.isfinite(value) for value in real.values()):
        raise ValueError(
            f"fit: {named({**whole, **real})}; expected whole numbers, and finite ones for {' and '.join(real)}."
        )
    limits = [whole[name] for name in ("max_epochs", "max_steps")]
    if min(limits) < -1 or 0 in limits or whole["batch_size"] < 1 or min(whole["warmup_steps"], real["beta"]) < 0:
        raise ValueError(
            f"fit: {named({**whole, 'beta': real['beta']})}; expected at least one epoch, step and sequence "
            "(-1 means no limit), warmup_steps >= 0 and a finite beta >= 0."
        )
    for name, value in optional.items():
        counts = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (counts and 0 <= int(value) < 2**32):
            raise ValueError(f"fit: {name} is {value!r}; expected a whole number from 0 to 4294967295, or None.")
    if optional["patience"] == 0 and optional["patience"] is not None:
        raise ValueError("fit: patience is 0, which stops at the first epoch; expected at least 1, or None.")
    for name, place in places.items():
        if not isinstance(place, str | Path | None):
            raise TypeError(f"fit: {name} is a {type(place).__name__}; expected a path.")


def check_makers(schedule: object, objective: object) -> None:
    """Raise TypeError where schedule or objective is no function."""
    for name, maker, example in (
        ("schedule", schedule, "a function of the optimizer and the number of steps that makes one"),
        ("objective", objective, "a class or a function of model, guide and num_particles, such as DReG"),
    ):
        if maker is not None and (not callable(maker) or isinstance(maker, nn.Module)):
            made = "" if isinstance(maker, str) else ", not what it makes"
            raise TypeError(f"fit: {name} is of type {type(maker).__name__}; expected {example}{made}.")


def check_precision(matmul: object, clip: object) -> None:
    """Raise ValueError where these options of fit are nothing that they could be."""
    if matmul not in (*MATMUL_PRECISIONS, None):
        expected = ", ".join(map(repr, MATMUL_PRECISIONS))
        raise ValueError(f"fit: matmul_precision is {matmul!r}; expected {expected}, or None.")
    if clip is not None and not (isinstance(clip, Real) and 0 < float(clip) < math.inf):
        raise ValueError(f"fit: gradient_clip is {clip!r}; expected a finite number above 0, or None.")


def check_trainer(trainer: object, own: Mapping[str, object], resume: object) -> None:
    """Raise where trainer is none, or a ready one keeps no values, has run to its end or is told what is its own."""
    if isinstance(trainer, TrainerOptions | None):
        return
    if not isinstance(trainer, lightning.Trainer):
        raise TypeError(
            f"fit: trainer is of type {type(trainer).__name__}; expected TrainerOptions or a lightning.pytorch.Trainer."
        )
    if getattr(trainer, "barebones", False):
        raise ValueError(
            "fit: the Trainer is barebones, so that it keeps no values for the history or the best weights; leave "
            "barebones=True out."
        )
    given = {name: value for name, value in own.items() if value is not None}
    if given:
        raise ValueError(
            f"fit: {named(given)} beside a ready Trainer, which has its own; expected lightning.Trainer(max_epochs=…, "
            "gradient_clip_val=…), or TrainerOptions in its place."
        )
    limits = ((trainer.current_epoch, trainer.max_epochs), (trainer.global_step, trainer.max_steps))
    if resume is None and any(limit is not None and 0 <= limit <= reached for reached, limit in limits):
        raise ValueError(
            f"fit: the Trainer has nothing left to do after {trainer.current_epoch} epochs and {trainer.global_step} "
            "steps; expected one with a higher limit, or a fresh one."
        )


def check_data(given: Mapping[str, object], patience: object) -> bool:
    """Whether there is something to validate on.

    Raises:
        TypeError: data or validation is of no kind that fit takes.
        ValueError: a loader is empty, or there is patience and nothing to validate on.
    """
    for name, data in given.items():
        if data is None and name == "validation":
            continue
        if not isinstance(data, Tensor | DataLoader | lightning.LightningDataModule):
            raise TypeError(f"fit: {name} is a {type(data).__name__}; expected a tensor, a loader or a data module.")
        if isinstance(data, DataLoader) and sized_len(data) == 0:  # a stream has no length
            raise ValueError(f"fit: the loader of {name} has no batches; give it sequences, or a smaller batch_size.")
    data, validates = given["data"], given["validation"] is not None
    if isinstance(data, lightning.LightningDataModule):
        validates = is_overridden("val_dataloader", data, lightning.LightningDataModule)
    if patience is not None and not validates:
        raise ValueError("fit: patience needs validation data; pass validation=… or leave patience out.")
    return validates


def check_sequences(guide: Any, n_batches: float, validates: bool) -> None:
    """Raise ValueError where a guide has parameters for each sequence of one batch, and others are to come."""
    if n_batches <= 1 and not validates:
        return
    for part in getattr(guide, "guides", (guide,)):
        if holds_sequences(part) and SEQUENCE not in getattr(part, "amortized_plates", ()):
            others = f"{n_batches} batches" if n_batches > 1 else "validation sequences beside it"
            raise ValueError(
                f"fit: {type(part).__name__} has parameters for each sequence of the batch that it was set up on, and "
                f"there are {others}; pass all sequences as one batch (batch_size "
                "at least their number) without validation, or a guide with encoders, such as MeanFieldGuide."
            )


def check_batch(model: TVAE, batch: Batch, what: str) -> None:
    """Raise where a batch, or a whole data set, is nothing for the model or its likelihood."""
    model.check(batch.x)
    if batch.observed is not None:
        frame_mask(batch.observed, *batch.x.shape[:2])
    try:
        check_finite(batch.x, batch.observed)
    except ValueError as error:
        raise NonFiniteError(f"fit: in {what}, {error}") from None
    try:
        model.likelihood.check(batch.x, batch.observed)
    except ValueError as error:
        raise ValueError(f"fit: in {what}, {error}") from None


def covariates(others: Mapping[str, Any], model: object, guide: object) -> dict[str, Any]:
    """Those further entries of a batch that the model's or the guide's program takes.

    Raises:
        ValueError: a program needs an entry that the batch lacks.
    """
    taken: dict[str, Any] = {}
    for owner, program in (("model", model), ("guide", guide)):
        names = accepted(program)
        if not names:
            continue
        taken |= {name: others[name] for name in names if name in others}
        lacking = [name for name in _required(program) if name in names and name not in others]
        if lacking:
            raise ValueError(
                f"fit: the {owner} needs {lacking[0]!r}, and a batch has {', '.join(['x', *others])}; hand in batches "
                f"that are mappings with an entry {lacking[0]!r}."
            )
    mask = others.get("measured")
    if "measured" not in taken and is_mask(mask):
        raise ValueError(
            f"fit: a batch says which pixels were measured, and {type(model).__name__} has no place for that, so that "
            "the others would be scored; give its forward a keyword argument measured, as that of TVAE has."
        )
    return taken


def check_names(others: Mapping[str, Any], model: object, guide: object) -> None:
    """Raise ValueError where an entry of a batch that nobody takes is nearly the name of one that the batch lacks.

    Further entries, such as an index, are no fault; a misspelt label would be dropped without a word.
    """
    taken = accepted(model) | accepted(guide)
    for name in sorted({*others} - taken):
        meant = difflib.get_close_matches(name, sorted(taken - {*others}), 1, 0.75)
        if meant:
            raise ValueError(
                f"fit: a batch has an entry {name!r}, which neither model nor guide takes, and none called "
                f"{meant[0]!r}; rename one of them."
            )


def _required(program: object) -> list[str]:
    try:
        parameters = inspect.signature(getattr(program, "forward", program)).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in kinds]


@torch.no_grad()
def dry_run(owner: nn.Module, model: Any, guide: Any, batch: Batch, taken: Mapping[str, Any]) -> None:
    """Run guide and model once and forget it: a guide that makes its parameters at its first call has them then.

    Randomness and buffers are left as they were.

    Raises:
        ValueError: a ``pyro.param`` statement, whose parameter no module of the fit holds.
    """
    device = next(owner.parameters(), torch.empty(0)).device
    x = batch.x.to(device)
    observed = None if batch.observed is None else batch.observed.to(device)
    states = random_states()
    buffers = [(buffer, buffer.clone()) for buffer in owner.buffers()]
    sites: dict[str, dict[str, Any]] = {"guide": {}, "model": {}}
    try:
        for name, program in (("guide", guide), ("model", model)):
            traced = poutine.trace(call(program, x, observed, taken), param_only=True)
            with untouched_store():
                traced.get_trace()
            sites[name] = dict(traced.trace.nodes)
    except Exception:  # the first step meets it too, before any weight moves, and says what it is
        pass
    finally:
        restore(states)
        for buffer, before in buffers:
            buffer.copy_(before)
    held = {parameter.data_ptr() for parameter in owner.parameters()}
    for name, nodes in sites.items():
        for site, node in nodes.items():
            if node.get("type") != "param" or not isinstance(node.get("value"), Tensor):
                continue
            value = node["value"]
            if (value.unconstrained() if hasattr(value, "unconstrained") else value).data_ptr() not in held:
                raise ValueError(
                    f"fit: the {name} has a statement pyro.param({site!r}), which lies in Pyro's store alone, "
                    "so that it would be neither trained nor kept; make it an attribute of a module: nn.Parameter or "
                    "pyro.nn.PyroParam."
                )


def named(values: Mapping[str, object]) -> str:
    """name=value, name=value."""
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
