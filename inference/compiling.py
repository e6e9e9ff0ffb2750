"""Compiling: a training step listed once as a graph of tensor operations, and compiled by torch's Inductor.

What Pyro's handlers and autograd did is in the graph, and they are gone from it: rendering, forward, backward and the
notes of what is not sound become one program, which draws the random numbers of an eager step, in their order. What
follows the look at the gradients, clipping and the optimizer, is few operations on large tensors, which a compiler
would have copied: they are called one by one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from .capture import NotRecordedError, Recorder, fresh

__all__ = ["Compiled", "missing_compiler"]

# Inductor, which draws as eager steps do.
COMPILER: dict[str, Any] = {"backend": "inductor", "options": {"fallback_random": True}}


def missing_compiler(device: torch.device) -> str:
    """Why nothing can be compiled for a device, in words; "" where it can."""
    named = os.environ.get("CXX")
    if device.type != "cpu" or any(map(shutil.which, [named] if named else ["g++", "clang++"])):
        return ""
    return f"there is no C++ compiler ({named or 'g++ or clang++'}); install one, or name it in the variable CXX"


class Compiled(Recorder):
    """Records a step by taking it, compiles it, and compares a run of the program with what was recorded.

    Args:
        look: called in every step once the gradients are there; it may raise.
        told: called with None when a program is about to be compiled, and with the seconds that it took.

    Example:
        >>> Compiled().verb
        'compiled'
    """

    verb, most = "compiled", 1  # the last batch of an epoch does not pay for a program of its own

    def __init__(
        self, look: Callable[[], object] = lambda: None, told: Callable[[float | None], object] = lambda _: None
    ) -> None:
        self.look, self.told = look, told
        self._listing: _Listing | None = None
        self._programs: dict[Any, Callable[..., Sequence[Tensor]]] = {}

    def cut(self) -> None:
        if self._listing is None:
            self.look()
        else:
            self._listing.cut(self.look)

    def record(self, step: Callable[[], object]) -> Callable[[], object]:
        self._listing = listing = _Listing()
        try:
            with listing:
                step()
        finally:
            self._listing = None
        end = len(listing.calls) if listing.end is None else listing.end
        calls, others = listing.calls[:end], listing.calls[end:]
        later = {id(one) for call in others for one in call.given}
        handed = list({id(one): one for call in calls for one in call.made if id(one) in later}.values())
        head, tail = Graph.of(calls, listing, wanted=handed), Graph.of(others, listing, first=handed)
        # Where a step is recorded anew, since the optimizer is told otherwise, its first part is mostly as it was.
        key = head.module.code, *((one.shape, one.stride(), one.dtype, one.device) for one in head.places)
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._compiled(head, handed, listing)
        look, reads, writes, rest = self.look, head.places, tail.places, tail.module

        @torch.no_grad()
        def play() -> None:
            gradients = program(*reads)
            look()
            rest(*gradients, *writes)

        return play

    def _compiled(self, head: Graph, handed: list[Tensor], listing: _Listing) -> Callable[..., Sequence[Tensor]]:
        since = time.monotonic()
        self.told(None)
        try:
            program: Any = torch.compile(head.module, fullgraph=True, dynamic=False, **COMPILER)
            difference = listing.difference(program, head.places, handed)
        except Exception as error:
            raise NotRecordedError(f"torch.compile failed: {' '.join(str(error).split())[:200]}") from error
        finally:
            self.told(time.monotonic() - since)
        if difference:
            raise NotRecordedError(f"the compiled step {difference}")
        return program


class Call(NamedTuple):
    """One tensor operation of a step, and what it returned."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def given(self) -> list[Tensor]:
        return _tensors((self.args, self.kwargs))

    @property
    def made(self) -> list[Tensor]:
        return _tensors(self.out)


class _Listing(TorchDispatchMode):
    """Lists the tensor operations of a step, and keeps what it needs to take the step up to the cut once more."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.end: int | None = None  # calls before the cut
        self.storages: set[int] = set()  # that the step made
        self._paused = False
        self._met: set[int] = set()  # storages that the first part read or made
        self._before: dict[int, Any] = {}  # storages before they were first written over
        self._after: dict[int, Any] = {}  # the same at the cut
        self._states = [_states()]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused or func.namespace == "profiler":
            return func(*args, **kwargs)
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for one in _tensors(args[i] if i < len(args) else kwargs.get(argument.name)):
                    self._keep(one)
        out = func(*args, **kwargs)
        self.calls.append(Call(func, args, kwargs, out))
        self.storages.update(map(_storage, fresh(func, out)))
        return out

    def _keep(self, one: Tensor) -> None:
        """Copy what is about to be written over, where the first part was given it, or has handed it on."""
        place = _storage(one)
        wanted = place not in self.storages if self.end is None else place in self._met
        if wanted and place not in self._before:
            self._before[place] = one.untyped_storage().clone()

    def cut(self, look: Callable[[], object]) -> None:
        """Look at the step, and list what follows as its second part."""
        self._paused = True
        try:
            self.end = len(self.calls)
            places = {_storage(one): one.untyped_storage() for call in self.calls for one in call.given}
            self._after = {place: places[place].clone() for place in self._before}
            self._met = self.storages | {*places}
            self._states.append(_states())
            look()
        finally:
            self._paused = False

    @torch.no_grad()
    def difference(self, program: Callable[..., Sequence[Tensor]], reads: list[Tensor], handed: list[Tensor]) -> str:
        """Take the step once more by a program, from where it began, and say how its numbers differ; "" for hardly.

        Nothing that the step read or wrote is changed.
        """
        given = [_on(one, self._before.get(_storage(one))) for one in reads]
        now = _states()
        try:
            _restore(self._states[0])
            results = program(*given)
            drawn = _states()
        finally:
            _restore(now)
        then = self._states[1] if len(self._states) > 1 else now
        if not all(map(torch.equal, drawn, then)):
            return "draws other random numbers than an eager one"
        pairs = [(_on(one, self._before.get(_storage(one))), two) for one, two in zip(handed, results, strict=True)]
        places = self._before if self.end is None else self._after
        written = [(one, two) for one, two in zip(reads, given, strict=True) if _storage(one) in places]
        pairs += [(_on(one, self._after.get(_storage(one))), two) for one, two in written]
        floats = [one.dtype for call in self.calls for one in call.made if one.is_floating_point()]
        # Half of the digits: sums are added up in another order, and draws in another order are no digits at all.
        tolerance = max((torch.finfo(one).eps for one in floats), default=0.0) ** 0.5
        size, error = 0.0, 0.0
        for one, two in pairs:
            size += float(one.double().square().sum())
            error += float((two.double() - one.double()).square().sum())
        return "" if error <= tolerance**2 * size else "has other gradients than an eager one"


class Graph(NamedTuple):
    """Tensor operations as a program, and the tensors that it reads and writes, which stay where they are."""

    module: fx.GraphModule
    places: list[Tensor]

    @classmethod
    def of(
        cls, calls: list[Call], listing: _Listing, *, wanted: Sequence[Tensor] = (), first: Sequence[Tensor] = ()
    ) -> Graph:
        """The program of some calls.

        Args:
            calls: in their order.
            listing: they are of.
            wanted: what it returns.
            first: what it takes before the places.

        Raises:
            NotRecordedError: it cannot be written down.
        """
        graph, places = fx.Graph(), list[Tensor]()
        nodes = {id(one): graph.placeholder(f"handed_{i}") for i, one in enumerate(first)}
        made, known = set(nodes), dict[Any, fx.Node]()
        for call in calls:
            for one in call.given:
                if id(one) in made or id(one) in nodes:
                    continue
                if _storage(one) in listing.storages:
                    raise NotRecordedError(f"{_name(call.func)} takes a tensor of the step that no operation returned")
                key = (_storage(one), one.storage_offset(), one.shape, one.stride(), one.dtype)
                if key not in known:
                    known[key] = graph.placeholder(f"place_{len(places)}")
                    places.append(one.detach())
                nodes[id(one)] = known[key]
            made.update(map(id, call.made))

        def node(one: Any) -> Any:
            if isinstance(one, torch.Generator):
                raise NotRecordedError("a part draws from a generator of its own")
            return nodes[id(one)] if isinstance(one, Tensor) else one

        for func, args, kwargs, out in calls:
            if func is ONEDNN and args[3] == "none":
                func, args = torch.ops.pyro_tvae.product.default, args[:3]
            result = graph.call_function(func, tree_map(node, args), tree_map(node, kwargs))
            if isinstance(out, Tensor):
                nodes.setdefault(id(out), result)
            elif isinstance(out, list | tuple):
                for i, one in enumerate(out):
                    if isinstance(one, Tensor):
                        nodes.setdefault(id(one), graph.call_function(getitem, (result, i)))
        graph.output(tuple(nodes[id(one)] for one in wanted))
        return cls(fx.GraphModule({}, graph), places)


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in tree_flatten(tree)[0] if isinstance(one, Tensor)]


def _storage(one: Tensor) -> int:
    """Which memory a tensor lies in, in whatever part of it."""
    return one.untyped_storage()._cdata


def _on(one: Tensor, storage: Any) -> Tensor:
    """The same part of other memory; of its own where there is none."""
    if storage is None:
        return one
    return torch.empty(0, dtype=one.dtype, device=one.device).set_(
        storage, one.storage_offset(), one.shape, one.stride()
    )


def _states() -> list[Tensor]:
    """Of torch's generators, which a step draws from."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def _restore(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__)


# The product that linear layers take from oneDNN. Inductor knows it for weights that never change; under a name that it
# does not know it calls it as it is.
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) and torch.ops.mkldnn._linear_pointwise.default
torch.library.define("pyro_tvae::product", "(Tensor a, Tensor b, Tensor? c) -> Tensor")


@torch.library.impl("pyro_tvae::product", "CPU")
def _product(a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, c, "none", [], "")
    return product


@torch.library.register_fake("pyro_tvae::product")
def _shape_of_product(a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
    return a.new_empty(len(a), len(b))
