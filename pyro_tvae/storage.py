"""Files of fitted models: weights as safetensors, the parts as JSON in the same file, written whole or not at all."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

# Whatever a file may describe has to be loaded: the parts that nothing else here imports.
from . import (  # noqa: F401
    convolution,
    flow_guide,
    gamma_guide,
    grids,
    joint_guides,
    mixture_latents,
    orbit_guides,
    refined_guide,
    sequence_guide,
)
from .files import whole
from .guides import Guide
from .model import TVAE
from .parts import UnknownPartError, build, describe

__all__ = ["load", "save"]

FORMAT, VERSION = "pyro-tvae", 1


class _NewerError(Exception):
    """The file is from a newer version."""


def save(path: str | Path, model: TVAE, guide: Guide) -> Path:
    """Write a model and its guide into one .safetensors file that :func:`load` rebuilds without running its contents.

    Raises:
        TypeError: a part was built from something that is not plain data.
        OSError: the file cannot be written; what was there before is as it was.
    """
    for name, given, kind in (("model", model, TVAE), ("guide", guide, Guide)):
        if not isinstance(given, kind):
            raise TypeError(
                f"save: {name} is of type {type(given).__name__}; expected a {kind.__name__}: save(path, model, guide)."
            )
    path = Path(path)
    description = {"model": describe(model), "guide": describe(guide)}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"guide.{name}": value for name, value in guide.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"format": FORMAT, "version": str(VERSION), "description": json.dumps(description)}
    with whole(path) as partial:
        try:
            save_file(tensors, partial, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None
    return path


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[TVAE, Guide]:
    """Read what :func:`save` wrote: (model, guide), in evaluation mode on ``device``.

    Own parts of yours are found if their module was imported before; nothing is imported or run because a file says so.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a pyro-tvae model, is damaged, or is from a newer version.
        LookupError: the file names a part that is not loaded.
    """
    path = Path(path)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"load: device is {device!r}, which torch cannot use here ({_line(error)}); cpu always works."
        ) from None
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected a file written by pyro_tvae.save.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); expected a file written by pyro_tvae.save."
        ) from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} holds weights, but not a pyro-tvae model; expected a file written by pyro_tvae.save.")
    try:
        version = int(metadata["version"])
        if version > VERSION:
            raise _NewerError
        description = json.loads(metadata["description"])
        model = build(description["model"])
        guide = build(description["guide"], model=model)
        if not isinstance(model, TVAE) or not isinstance(guide, Guide):
            raise TypeError("it describes neither a TVAE nor a Guide")
    except _NewerError:
        raise ValueError(
            f"{path} has format version {version}, this pyro-tvae reads up to {VERSION}; update pyro-tvae."
        ) from None
    except UnknownPartError as error:
        raise UnknownPartError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: its description of the model cannot be read ({_line(error)}); "
            "expected a file written by pyro_tvae.save."
        ) from None
    for prefix, module in (("model", model), ("guide", guide)):
        weights = {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{path} is damaged: its weights do not fit the {prefix} that it describes ({_line(error)}); expected "
                "a file written by pyro_tvae.save."
            ) from None
    return model.to(device).eval(), guide.to(device).eval()


def _line(error: Exception) -> str:
    """A library's message as part of a sentence."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 300)
