"""Files of fitted models: weights as safetensors, the parts as JSON in the same file, written whole or not at all.

A pair is rebuilt from what is to be written before anything is written: what would not come back the same is refused.
"""

from __future__ import annotations

import inspect
import json
import textwrap
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .budgets import Budget
from .files import atomic_write, check_readable, state_of
from .guides.base import Guide
from .judging import in_turn
from .marks import TOPOGRAPHY, checksum, marks, other_mark
from .model import TVAE
from .naming import restoring
from .own_code import digests, edited
from .parts import Part, UnknownPartError, build, describe, dotted
from .products import Linear

__all__ = ["load", "save"]

# Version 2 has, beside what version 1 has: ties, frozen parameters, dtypes of what is not stored, and the order.
# Version 3 names parts by their public path.
FORMAT, VERSION = "pyro-tvae", 3
# Fields of a record that are JSON in a file, and what they are.
SAID = {"description": dict, "ties": dict, "frozen": list, "derived": dict, "trained_first": bool}


class _NewerError(Exception):
    """The file is from a newer version."""


class _UnfitError(RuntimeError):
    """Weights that are not those of what is described."""


@dataclass
class Record:
    """All that a file says of a pair; names of tensors begin with ``model.`` or ``guide.``.

    Attributes:
        description: of ``model`` and ``guide``, as :func:`~pyro_tvae.parts.describe` gives it.
        tensors: name -> value, one name for each memory.
        ties: name -> the name in ``tensors`` of the very same parameter or buffer.
        frozen: parameters without a gradient; None in files of version 1, which do not say.
        derived: non-persistent buffer -> its dtype; their values follow from the description.
        trained_first: the guide was built for the weights as they are, not as they were when the model was built.
    """

    description: dict[str, Any]
    tensors: dict[str, Tensor]
    ties: dict[str, str] = field(default_factory=dict)
    frozen: list[str] | None = None
    derived: dict[str, str] = field(default_factory=dict)
    trained_first: bool = False


def save(path: str | Path, model: TVAE, guide: Guide) -> Path:
    """Write a model and its guide into one .safetensors file that :func:`load` rebuilds without running its contents.

    Values, precision, frozen parameters and parameters that are shared come back as they are. The pair is rebuilt in
    memory first, and what would not come back the same is refused by name.

    Warns:
        UserWarning: a class is the running script's own; a module has a hook, or a method that was replaced.

    Raises:
        TypeError: a part was built from something that is not plain data.
        ValueError: the pair is not what its constructors' arguments make it, or trains parameters that are in neither.
        OSError: the file cannot be written; what was there before is as it was.
    """
    for name, given, kind in (("model", model, TVAE), ("guide", guide, Guide)):
        if not isinstance(given, kind):
            raise TypeError(
                f"save: {name} is of type {type(given).__name__}; expected a {kind.__name__}: save(path, model, guide)."
            )
    path = Path(path).expanduser()
    with in_turn():  # it runs the guide, and Pyro's handlers are the whole process's
        contents = record(model, guide)
    said = {name: json.dumps(getattr(contents, name)) for name in SAID}
    if any('"__main__.' in text for text in said.values()):
        warnings.warn(
            "save: a class of this model is defined in the script that runs, __main__, where no other script finds it; "
            "move it into a module, and import it from there, so that the file can be loaded elsewhere.",
            stacklevel=2,
        )
    # Beside what a pair is built from, so that files of before, which lack them, are read as they were.
    made = marks(model, _pair(model, guide), contents.derived)
    kept = {"marks": json.dumps(made), "crc32": str(checksum(contents.tensors))}
    if code := digests(model, guide):
        kept["code"] = json.dumps(code)
    metadata = {"format": FORMAT, "version": str(VERSION), **said, **kept}
    with atomic_write(path) as partial:
        try:
            save_file(contents.tensors, partial, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None
        _sort_header(Path(partial))
    return path


def _sort_header(path: Path) -> None:
    """Put what is said of the tensors in order: safetensors writes it in another order every time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = dict(sorted(header.pop("__metadata__").items()))
        ordered = json.dumps({"__metadata__": metadata, **header}, ensure_ascii=False, separators=(",", ":")).encode()
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def record(model: TVAE, guide: Guide) -> Record:
    """All that a file has to say of a pair.

    Raises:
        TypeError: a part was built from something that is not plain data.
        ValueError: something of it would not come back the same.
    """
    for part in (model, guide):
        part.follow_store()
    return _recorded(model, guide)


def check_storable(model: TVAE, guide: Guide) -> None:
    """Raise what :func:`save` would, TypeError or ValueError, of a pair as it is now; nothing is written."""
    with in_turn(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which save gives
        _recorded(model, guide)


def _recorded(model: TVAE, guide: Guide) -> Record:
    guide.check(model)
    description = {"model": describe(model), "guide": describe(guide, {"model": model})}
    pair = _pair(model, guide)
    state = pair.state_dict()
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    objects = _objects(pair)
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or isinstance(value, _LAZY):
            raise _refusal(name, f"is of type {type(value).__name__}", "a file holds dense tensors")
        home = objects.get(name)
        if home is not None and id(home) in first:
            ties[name] = first[id(home)]
            continue
        if home is not None:
            first[id(home)] = name
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    _refuse_overlap({name: state[name] for name in tensors})
    frozen = [name for name, value in objects.items() if isinstance(value, nn.Parameter) and not value.requires_grad]
    # Buffers that are in no state dict, since they follow from how a module was built.
    derived = {name: str(value.dtype).removeprefix("torch.") for name, value in objects.items() if name not in state}
    contents = Record(description, tensors, ties, frozen, derived)
    fault: ValueError | None = None
    # A guide may have read the weights that its model had when it was built: those of the start, or these.
    for contents.trained_first in (False, True):
        try:
            _verify(contents, model, guide)
        except ValueError as error:
            fault = fault or error
        else:
            return contents
    assert fault is not None
    raise fault


_DTYPES = {str(one).removeprefix("torch."): one for one in vars(torch).values() if isinstance(one, torch.dtype)}
_LAZY = (nn.UninitializedParameter, nn.UninitializedBuffer)
_INTERNAL = {*vars(nn.Module()), *vars(PyroModule())}


def _refusal(name: str, what: str, remedy: str) -> ValueError:
    return ValueError(f"save: {name} {what}, and would not come back from the file the same; {remedy}.")


def _pair(model: nn.Module, guide: nn.Module) -> nn.ModuleDict:
    """Both as one module, in which everything has the name that it has in a file."""
    return nn.ModuleDict({"model": model, "guide": guide})


def _objects(pair: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by each of its names, as the object itself."""
    return {
        f"{path}.{name}": value
        for path, module in pair.named_modules(remove_duplicate=False)
        for name, value in {**module._parameters, **module._buffers}.items()
        if value is not None
    }


def _refuse_overlap(state: Mapping[str, Tensor]) -> None:
    """Refuse different tensors of one memory, such as views of each other: they would come back apart."""
    spans: dict[tuple[Any, int], list[tuple[int, int, str]]] = {}
    for name, value in state.items():
        if value.numel():
            start = value.data_ptr()
            last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
            key = (value.device, value.untyped_storage().data_ptr())
            spans.setdefault(key, []).append((start, start + (last + 1) * value.element_size(), name))
    for intervals in spans.values():
        intervals.sort()
        for (_, end, one), (start, _, two) in pairwise(intervals):
            if start < end:
                raise _refusal(f"{two}", f"shares its memory with {one}", "tie them by making them one nn.Parameter")


def rebuild(contents: Record) -> tuple[TVAE, Guide]:
    """Build the pair that a record describes, and give it its weights; torch's generators are left alone."""
    values = dict(contents.tensors) | {name: contents.tensors[home] for name, home in contents.ties.items()}
    dtypes = {name: value.dtype for name, value in values.items()}
    dtypes |= {name: _DTYPES[dtype] for name, dtype in contents.derived.items()}
    model, guide = _built(contents, values if contents.trained_first else {}, dtypes)
    precisions = {dtype for dtype in dtypes.values() if dtype.is_floating_point}
    if contents.frozen is None and len(precisions) == 1:  # of version 1, which does not say that of derived buffers
        (precision,) = precisions
        model, guide = model.to(precision), guide.to(precision)
    _fill(model, "model", values, dtypes)
    _fill(guide, "guide", values, dtypes)
    pair = _pair(model, guide)
    homes = _objects(pair)
    for name, home in contents.ties.items():
        path, _, key = name.rpartition(".")
        module = pair.get_submodule(path)
        (module._parameters if key in module._parameters else module._buffers)[key] = homes[home]  # type: ignore[assignment]
    if contents.frozen is not None:
        frozen = {*contents.frozen}
        if frozen - values.keys():
            raise _UnfitError(f"{min(frozen - values.keys())} is frozen, and it holds no such parameter")
        for name, value in _objects(pair).items():
            if isinstance(value, nn.Parameter):
                value.requires_grad_(name not in frozen)
    return model, guide


def _built(
    contents: Record, values: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype] | None = None
) -> tuple[TVAE, Guide]:
    """The pair as its constructors make it; given values are the model's before the guide is built."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), restoring(), Budget(contents.tensors.values()):
        model = build(contents.description["model"])
        if not isinstance(model, TVAE):
            raise TypeError("it describes no TVAE")
        if values:
            _fill(model, "model", values, dtypes or {})
        guide = build(contents.description["guide"], model=model)
        if not isinstance(guide, Guide):
            raise TypeError("it describes no Guide")
    return model, guide


def _fill(module: nn.Module, prefix: str, values: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Give a module the values of its names, in the precision in which they were stored.

    Raises:
        _UnfitError: names or shapes differ.
    """
    own = {name.removeprefix(f"{prefix}."): value for name, value in values.items() if name.startswith(f"{prefix}.")}
    for name in own:
        # A PyroParam that is a method's makes its parameter when it is first looked at.
        path, _, key = name.rpartition(".")
        constrained = key.removesuffix("_unconstrained")
        owner = dict(module.named_modules()).get(path) if constrained != key else None
        if isinstance(inspect.getattr_static(type(owner), constrained, None), PyroParam):
            getattr(owner, constrained)
    for path, part in module.named_modules(prefix=prefix):
        for table in (part._parameters, part._buffers):
            for key, value in table.items():
                dtype = dtypes.get(f"{path}.{key}")
                if value is not None and dtype is not None and value.dtype != dtype:
                    value.data = value.data.to(dtype)
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise _UnfitError(f"its weights do not fit the {prefix} that it describes ({_line(error)})") from None


def _verify(contents: Record, model: TVAE, guide: Guide) -> None:
    """Rebuild the pair from its record and raise ValueError at the first thing that is not the same."""
    pair = _pair(model, guide)
    try:
        twins = rebuild(contents)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, _UnfitError):  # without its weights, the part to blame can be named
            _compare(pair, _pair(*_built(contents, {})))
        raise ValueError(
            f"save: the model or the guide cannot be built again from the arguments of its constructor as it is now "
            f"({_line(error)}); build it with the parts it is to have, so that the arguments say them, or keep "
            "its state_dict by torch.save."
        ) from None
    _compare(pair, _pair(*twins))
    old, new = _objects(pair), _objects(_pair(*twins))
    homes: dict[int, int] = {}
    for name, value in old.items():
        twin = new[name]
        if homes.setdefault(id(value), id(twin)) != id(twin):
            raise _refusal(name, "is tied to another tensor", "tie them in the constructor")
        if isinstance(value, nn.Parameter) != isinstance(twin, nn.Parameter) or not _same(value, twin):
            raise _refusal(name, "has a value that the constructors' arguments do not make", "build it anew with them")
    if len({*homes.values()}) != len(homes):
        counts = [name for name, value in new.items() if sum(id(value) == one for one in homes.values()) > 1]
        raise _refusal(counts[0], "is tied to another tensor by the constructor, and here is not", "tie them again")
    loose = _param_statements(*twins)
    if loose:
        raise ValueError(
            f"save: {loose[0]} is a pyro.param statement of the program and in neither module, so that no file would "
            "hold it; make it an attribute instead: a torch.nn.Parameter, or a pyro.nn.PyroParam with its constraint."
        )


def _compare(pair: nn.ModuleDict, twins: nn.ModuleDict) -> None:
    """Raise ValueError where parts, parameters or buffers of a pair and its twins differ in name, kind or shape."""
    for prefix in pair:
        _compare_parts(prefix, pair[prefix], twins[prefix])
    old, new = ({n: value.shape for n, value in _objects(one).items()} for one in (pair, twins))
    if old != new:
        name = min(name for name in {*old} | {*new} if old.get(name) != new.get(name))
        raise _refusal(name, "is not what the constructors' arguments make", "make it in the constructor")


def _same(one: Tensor, two: Tensor) -> bool:
    """Bit for bit, nan included."""
    if one.shape != two.shape or one.dtype != two.dtype or one.requires_grad != two.requires_grad:
        return False
    pair = [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for value in (one, two)]
    return torch.equal(*pair)


def _kind(module: nn.Module) -> type[nn.Module]:
    """The class of a module, that of a linear layer whatever library multiplies."""
    return nn.Linear if type(module) is Linear else type(module)


def _compare_parts(prefix: str, one: nn.Module, two: nn.Module) -> None:
    """Modules of the same classes in the same places, whose plain attributes say the same."""
    twins = dict(two.named_modules(prefix=prefix, remove_duplicate=False))
    others = dict(twins)
    for path, module in one.named_modules(prefix=prefix, remove_duplicate=False):
        twin = others.pop(path, None)
        if twin is None or dotted(_kind(module)) != dotted(_kind(twin)):
            made = "nothing" if twin is None else f"a {type(twin).__name__}"
            raise _refusal(
                path,
                f"is a {type(module).__name__} where the constructors' arguments make {made}",
                "build it by a Network or another part that is an argument, or in a constructor of your own class",
            )
        if _kind(twin) is not _kind(module):
            warnings.warn(
                f"save: the class {type(module).__name__} was defined anew since {path} was built, as by a cell that "
                "is run again, and what is loaded is of the new one; where that computes something else, go back to "
                "the definition of then before you load.",
                stacklevel=4,
            )
    for path, module in one.named_modules(prefix=prefix, remove_duplicate=False):
        twin = twins[path]
        for key, value in _attributes(module).items():
            if key in vars(twin) and _plain(value) != _plain(vars(twin)[key]):
                remedy = (
                    f"give {type(module).__name__} that value when it is built, or, where it moves in training, make "
                )
                remedy += f"it a buffer, or call it _{key}, which no file holds"
                raise _refusal(f"{path}.{key}", "is not what the constructors' arguments make", remedy)
        for key in _private(module).keys() & _private(twin).keys():
            if _plain(vars(module)[key]) != _plain(vars(twin)[key]):  # a constant as well as what a method counts
                warnings.warn(
                    f"save: {path}.{key} is not what the constructors' arguments make, and no file holds it, so that "
                    "what is loaded has what they make; where it changes what the module gives, make it an argument.",
                    stacklevel=4,
                )
        hooks = ("_forward_hooks", "_forward_pre_hooks")
        hooked = any(len(vars(module)[key]) > len(vars(twin)[key]) for key in hooks)
        replaced = [key for key, value in _attributes(module).items() if callable(value) and key not in vars(twin)]
        replaced = [key for key in replaced if hasattr(type(module), key)]
        if hooked or replaced:
            what = "a hook" if hooked else f"a {replaced[0]!r} of its own"
            warnings.warn(
                f"save: {path} has {what}, which is code that no file holds, so that what is loaded does without; "
                "where it changes what the module gives, write it into a class of your own.",
                stacklevel=4,
            )
        for table in ("_pyro_params", "_pyro_samples"):
            if isinstance(module, PyroModule) and isinstance(twin, PyroModule):
                extra = {*getattr(module, table)} ^ {*getattr(twin, table)}
                if extra:
                    raise _refusal(f"{path}.{min(extra)}", "was set after it was built", "set it in the constructor")
        if isinstance(module, PyroModule) and isinstance(twin, PyroModule):
            for key, (constraint, _) in module._pyro_params.items():
                if str(constraint) != str(twin._pyro_params[key][0]):
                    raise _refusal(f"{path}.{key}", "has another constraint", "give it in the constructor")
            for key, prior in module._pyro_samples.items():
                if _plain(prior) != _plain(twin._pyro_samples[key]):
                    raise _refusal(f"{path}.{key}", "has another prior", "give it in the constructor")
    if others:
        raise _refusal(min(others), "was taken away after it was built", "build the pair without it")


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}


def _private(module: nn.Module) -> dict[str, Any]:
    """What a class keeps to itself, but for containers, which are caches as a rule."""
    own = {key: value for key, value in vars(module).items() if key.startswith("_") and key not in _INTERNAL}
    return {
        key: value for key, value in own.items() if isinstance(value, bool | int | float | str | Tensor | np.ndarray)
    }


def _plain(value: Any) -> Any:
    """Numbers, strings, sequences and descriptions of parts as something to compare; what is none of these as None."""
    if isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Tensor):
        return [str(value.dtype), value.shape, value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist()]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [str(value.dtype), value.shape, value.tobytes()]
    if inspect.isroutine(value):
        return [getattr(value, "__module__", ""), getattr(value, "__qualname__", "")]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, torch.distributions.Distribution):
        own = {name: _plain(getattr(value, name, None)) for name in value.arg_constraints}
        return [dotted(type(value)), value.batch_shape, own, _plain(getattr(value, "base_dist", None))]
    if isinstance(value, dict):
        return {repr(key): _plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return [_plain(getattr(value, one.name)) for one in fields(value)]
    if isinstance(value, Part) and not isinstance(value, nn.Module):
        return json.dumps(describe(value))
    return None


def _param_statements(model: TVAE, guide: Guide) -> list[str]:
    """Names of the param statements of the pair's programs whose parameters are in neither module: one run on zeros."""
    own = {id(parameter) for one in (model, guide) for parameter in one.parameters()}
    x = model.blank_sequence
    loose: list[str] = []
    for program in (guide.eval().forward, model.eval().forward):
        store = pyro.get_param_store()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), store.scope(), poutine.trace() as tracer:
            with suppress(Exception):  # a program that wants more than x: what it said until then counts
                program(x)
            nodes: Mapping[str, Mapping[str, Any]] = tracer.trace.nodes
            for name, site in nodes.items():
                if site["type"] == "param":
                    value = site["value"]
                    bare = value.unconstrained() if hasattr(value, "unconstrained") else value
                    loose += [] if id(bare) in own else [name]
    return loose


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[TVAE, Guide]:
    """Read what :func:`save` wrote: (model, guide), in evaluation mode on ``device``.

    Own parts of yours are found if their module was imported before; because a file says so, nothing is imported or run
    but public parts of this package.

    Warns:
        UserWarning: the code of a class of yours was edited since.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ValueError: the file is not a pyro-tvae model, is damaged, or is from a newer version; or code that makes what
            the file does not hold, such as the offsets of a topography of yours, has changed since.
        LookupError: the file names a part that is not loaded.
    """
    path = Path(path).expanduser()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"load: device is {device!r}, which torch cannot use here ({_line(error)}); cpu always works."
        ) from None
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected a file written by pyro_tvae.save.")
    check_readable(path)
    try:
        metadata, tensors = _contents(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({_quoted(str(error))}); expected a file written by "
            "pyro_tvae.save."
        ) from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} holds weights, but not a pyro-tvae model; expected a file written by pyro_tvae.save.")
    try:
        version = int(metadata["version"])
        if version > VERSION:
            raise _NewerError
        contents = Record(tensors=tensors, **_said(metadata, version))
        then = _marks_of(metadata)
        with in_turn():
            model, guide = rebuild(contents)
        changed = other_mark(marks(model, _pair(model, guide), contents.derived), then) if then else None
        others = edited(digests(model, guide), _code_of(metadata))
    except _NewerError:
        raise ValueError(
            f"{path} has format version {version}, this pyro-tvae reads up to {VERSION}; update pyro-tvae."
        ) from None
    except UnknownPartError as error:
        raise UnknownPartError(f"{path}: {error}") from None
    except _UnfitError as error:
        raise ValueError(f"{path} is damaged: {error}; expected a file written by pyro_tvae.save.") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged: its description of the model cannot be read ({_line(error)}); "
            "expected a file written by pyro_tvae.save."
        ) from None
    if changed is not None:
        owner = _pair(model, guide).get_submodule(changed if changed == TOPOGRAPHY else changed.rpartition(".")[0])
        raise ValueError(
            f"{path} holds a pair whose {changed} is no longer what it was when it was saved: the code of "
            f"{type(owner).__name__} makes another one now; load it with the code of then."
        )
    if "crc32" in metadata and metadata["crc32"] != str(checksum(tensors)):
        raise ValueError(
            f"{path} is damaged: its weights are not those that were written; expected a file as pyro_tvae.save wrote "
            "it. To change weights, load the pair, change them there, and save it."
        )
    if others:
        warnings.warn(
            f"load: the code of {', '.join(others)} was edited since {path} was written, so that the pair may compute "
            "something else than what was trained; where it does, load it with the code of then.",
            stacklevel=2,
        )
    return model.to(device).eval(), guide.to(device).eval()


def edited_since(path: str | Path, model: TVAE, guide: Guide) -> dict[str, str]:
    """Class -> digest of its code, of a user's classes whose code was edited since :func:`save` wrote a file."""
    now = digests(model, guide)
    return {name: now[name] for name in edited(now, code_in(path))} if now else {}


def code_in(path: str | Path) -> dict[str, str]:
    """Digests that a file has of the code of a user's classes; none in files of parts of this package.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _code_of(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({_quoted(str(error))}).") from None


def _contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a file says of itself, and its tensors; again where another process put a new one in its place meanwhile."""
    while True:
        before = state_of(path)
        try:
            with safe_open(path, framework="pt") as file:  # which opens it twice
                contents = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            if state_of(path) == before:
                raise
        else:
            if state_of(path) == before:
                return contents


def _marks_of(metadata: Mapping[str, str]) -> dict[str, list[float]]:
    """What a file says of what its code makes anew; nothing in files that do not say.

    Raises:
        ValueError: something else than lists of numbers by name.
    """
    said = json.loads(metadata.get("marks", "{}"))
    lists = said.values() if isinstance(said, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(x, int | float) for x in one) and one for one in lists):
        raise ValueError(f"marks is {_quoted(str(said))}; expected lists of numbers by name")
    return said


def _code_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file says of the code of the user's classes; nothing in files of parts of this package.

    Raises:
        ValueError: something else than digests by name.
    """
    said = json.loads(metadata.get("code", "{}"))
    if not (isinstance(said, dict) and all(isinstance(one, str) for one in said.values())):
        raise ValueError(f"code is {_quoted(str(said))}; expected digests by name")
    return said


def _said(metadata: Mapping[str, str], version: int) -> dict[str, Any]:
    """What a file says of its pair beside tensors, of the types that it has to be.

    Raises:
        KeyError: a field is missing.
        ValueError: one is no JSON, or of another type.
    """
    if version < 1:
        raise ValueError(f"its version is {version}")
    # Files of version 1 have no more than a description and tensors.
    said = {name: json.loads(metadata[name]) for name in (SAID if version > 1 else ("description",))}
    for name, kind in SAID.items():
        value = said.get(name, kind())
        texts = value if name == "frozen" else value.values() if name in ("ties", "derived") else ()
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} is {_quoted(str(value))}; expected a {kind.__name__}{' of texts' * bool(texts)}")
    if said["description"].keys() != {"model", "guide"}:
        raise ValueError(f"description is of {', '.join(said['description']) or 'nothing'}; expected of model, guide")
    return said


def _line(error: Exception) -> str:
    """A library's message as part of a sentence."""
    return _quoted(f"{type(error).__name__}: {error}")


def _quoted(text: str) -> str:
    """A message on one line, without what would steer a terminal: it may quote a stranger's file."""
    return textwrap.shorten("".join(char if char.isprintable() else " " for char in text), 300)
