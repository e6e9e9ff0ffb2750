"""Programs: how a model or a guide is run, whoever wrote it: what it takes, and what running it leaves behind.

Models and guides of this package run by their bare ``forward``: their modules hold the parameters, so that Pyro's
parameter store need not be asked at every access, which is most of what Pyro costs per step. Everything else, such as
a function with ``pyro.sample`` statements, an autoguide, a model inside a handler, or one with random weights
(``PyroSample``), runs as Pyro would run it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import pyro
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from .naming import NamedModule

__all__ = [
    "OnePlate",
    "Program",
    "accepted",
    "call",
    "check_covariates",
    "is_bayesian",
    "keywords",
    "propose",
    "runnable",
    "taken",
    "untouched_store",
]

T = TypeVar("T")
Runnable = Callable[..., object]
SEQUENCE = "sequence"
SHAPES = "Trace Shapes:"
CALLS = (NamedModule.__call__, PyroModule.__call__)  # those that run forward and nothing of a class's own
PLATE_TWICE = (
    "a plate 'sequence' was made before this guide made its own, as AutoGuideList does; put guides side by side in a "
    "pyro_tvae.GuideList."
)
OWN = ("self", "x", "observed", "n_sequences", "subsample", "t")  # parameters that are no covariates


def is_bayesian(module: object) -> bool:
    """Whether a module has random weights: ``PyroSample`` attributes of its own or of a part."""
    return isinstance(module, nn.Module) and any(
        isinstance(part, PyroModule) and part.__dict__.get("_pyro_samples") for part in module.modules()
    )


def runnable(program: Any) -> Runnable:
    """What to call to run a model or a guide: its bare forward where that is all of it, else the object itself.

    Random weights become sample sites in a call only, in which their values are kept. A forward that is not of this
    package may ask for the parameters as Pyro has them, as ``poutine.lift`` does, and is called too. What is made of
    programs has a method ``bare``, which runs each of them so.
    """
    kind = type(program)
    if hasattr(kind, "bare"):
        bare: Runnable = program.bare
        return bare
    ours = vars(_definer(kind)).get("bare_forward", False) and kind.__call__ in CALLS
    return program.forward if ours and not is_bayesian(program) else program


def _definer(kind: type) -> type:
    """The class that a method ``forward`` is from; the class itself where there is none."""
    return next((base for base in kind.__mro__ if "forward" in vars(base)), kind)


def accepted(program: Any) -> frozenset[str]:
    """Names of the covariates that a model or a guide takes beside x and observed, as keyword arguments."""
    program = inspect.unwrap(program)
    told = getattr(program, "covariates", None)
    if told is not None:
        return frozenset(told)
    function = type(program).forward if isinstance(program, nn.Module) else program
    return keywords(function) if callable(program) else frozenset()


def taken(covariates: Mapping[str, T] | None, *programs: Any) -> dict[str, T]:
    """Those of the covariates that any of these programs takes."""
    if not covariates:
        return {}
    names = frozenset[str]().union(*map(accepted, programs))
    return {name: value for name, value in covariates.items() if name in names}


def keywords(function: Any) -> frozenset[str]:
    """Names that can be given by keyword, those of x and its like left out."""
    names = _keywords.get(function)
    if names is None:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return frozenset()
        named = (p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        names = _keywords[function] = frozenset(name for name in named if name not in OWN)
    return names


# Weak, since a function may be a closure around a model.
_keywords: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()


def check_covariates(model: Any, guide: Any, covariates: Mapping[str, Any] | None, n_sequences: int) -> None:
    """Raise where a covariate is taken by neither program, or has not one entry per sequence."""
    if not covariates:
        return
    names = accepted(model) | accepted(guide)
    for name, value in covariates.items():
        if name not in names:
            takes = f"they take {', '.join(sorted(names))}" if names else "they take none"
            raise ValueError(
                f"covariate {name!r} is taken neither by the model nor by the guide; {takes}: give it to the model's "
                "heads or forward, or to the guide's posterior, as a keyword of that name."
            )
        if not isinstance(value, Tensor) or value.dim() < 1 or len(value) != n_sequences:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise ValueError(
                f"covariate {name!r} has {what}; expected a tensor with one entry for each of {n_sequences} sequences."
            )


def call(
    program: Any,
    x: Tensor,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    *,
    whole: bool = False,
) -> Callable[[], object]:
    """The program with its arguments: x, observed where there is one, and the covariates that it takes.

    Args:
        whole: call the object, where its bare forward would do.

    Raises:
        TypeError: the program has no place for ``observed``.
    """
    run = program if whole else runnable(program)
    positional: tuple[Tensor, ...] = (x,)
    if observed is not None:
        if not _takes_two(inspect.unwrap(program)):
            raise TypeError(
                f"the guide {_name(program)} takes x alone, so that it cannot be told which frames were observed; give "
                "it a second parameter, observed=None."
            )
        positional = (x, observed)
    return functools.partial(run, *positional, **taken(covariates, program))


def _takes_two(program: Any) -> bool:
    try:
        signature = inspect.signature(program.forward if isinstance(program, nn.Module) else program)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind_partial(None, None)
    except TypeError:
        return False
    return True


def _name(program: Any) -> str:
    return getattr(program, "__name__", type(program).__name__)


@contextmanager
def untouched_store() -> Iterator[None]:
    """Leave Pyro's parameter store with the names that it had: judging a model does not keep it alive for good."""
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    finally:
        for name in set(store.keys()) - before:
            del store[name]


def propose(program: Callable[[], object], x: Tensor) -> poutine.Trace:
    """Trace of a guide's program for the sequences x.

    Raises:
        ValueError: it cannot be run on them, or its plate of sequences is for another number of them.
    """
    try:
        trace = poutine.trace(program).get_trace()
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        if reason in (PLATE_TWICE, f"Multiple sample sites named {SEQUENCE!r}"):
            raise ValueError(PLATE_TWICE) from error
        inner: Any = getattr(program, "func", program)
        guide = getattr(inner, "__self__", inner)
        if not isinstance(guide, AutoGuide | GuideMessenger):
            if isinstance(error, ValueError) and SHAPES in str(error):
                # Pyro adds a table of shapes to whatever a traced program raises: a sentence stays one.
                raise ValueError(str(error).partition(SHAPES)[0].strip()) from error
            raise
        raise ValueError(
            f"the {type(guide).__name__} cannot be run on {x.shape[-5]} sequences ({reason}); an autoguide serves the "
            "sequences that it was set up on by its first call: pass those, all at once, or a guide with encoders."
        ) from error
    for name in trace.stochastic_nodes:
        site: Any = trace.nodes[name]
        if is_plate(site) and name == SEQUENCE and len(site["value"]) != x.shape[-5]:
            raise ValueError(
                f"the guide's plate {name!r} has {len(site['value'])} entries, x has {x.shape[-5]} sequences; expected "
                "a guide for these sequences: one that was set up on others (an autoguide) serves those alone, all in "
                "one batch."
            )
    return trace


class OnePlate(Messenger):
    """Lets programs that each make a plate of the same name stand side by side: traces outside see the first alone."""

    def __init__(self) -> None:
        super().__init__()
        self._plates: set[str | None] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if is_plate(msg):
            msg["stop"] = msg["stop"] or msg["name"] in self._plates
            self._plates.add(msg["name"])


@dataclass(frozen=True)
class Program:
    """The posterior of a guide that is a program only: it can be drawn from, and has no distributions to look at.

    Attributes:
        guide: a Pyro program with the model's sites and a plate ``sequence`` at dim −1.
        x: (B, S, channel, height, width).
        observed: (S,) or (B, S) booleans, or None.
        covariates: further arguments that the guide takes.
    """

    guide: Any
    x: Tensor
    observed: Tensor | None = None
    covariates: Mapping[str, Tensor] = field(default_factory=dict)

    def program(self) -> Callable[[], object]:
        """The guide with its arguments."""
        return call(self.guide, self.x, self.observed, self.covariates)

    def draw(self) -> dict[str, Tensor]:
        """One draw of every site that is no auxiliary one, as sample statements."""
        # Not the program's return value, which may be anything.
        trace = propose(self.program(), self.x)
        return {name: value for name, value in values_of(trace).items() if not auxiliary(trace, name)}


def values_of(trace: poutine.Trace) -> dict[str, Tensor]:
    """The values of all sample sites that are not observed, plates left out."""
    sites: Mapping[str, Mapping[str, Any]] = trace.nodes
    return {name: sites[name]["value"] for name in trace.stochastic_nodes if not is_plate(sites[name])}


def is_plate(site: Mapping[str, Any]) -> bool:
    """Whether a site is a plate's choice of indices."""
    return type(site["fn"]).__name__ == "_Subsample"


def auxiliary(trace: poutine.Trace, name: str) -> bool:
    """Whether a site is of the guide alone."""
    return bool((trace.nodes[name]["infer"] or {}).get("is_auxiliary", False))
