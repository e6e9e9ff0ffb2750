"""Capture: a training step recorded once and replayed, so that Python does not launch its kernels one by one.

On CUDA a step is recorded into a graph; elsewhere by a tape of its tensor operations, which keeps to the same rules and
so tests them: the step reads and writes tensors that stay where they are, its numbers lie on the device, and what
Python decided while it was recorded holds for all replays. What breaks the rules is found before, in the warm-up.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = [
    "NOT_RECORDED",
    "Capture",
    "CudaGraphs",
    "NotRecordedError",
    "Recorder",
    "Tape",
    "Watch",
    "per_step_needs",
    "recorder_of",
]

WARM_UP = 3  # steps of a kind of batch before it is recorded: the first makes what is made once, the others are watched
AGAIN = 8  # times that changed settings may make a step be recorded anew
EACH_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
NOT_RECORDED = "fit: steps are not {} and run one operation at a time, since {}."
READS = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}
    | {"unique_consecutive", "repeat_interleave", "bincount", "allclose", "_linalg_check_errors"}
)  # operations that hand a value, or a shape that depends on one, to Python


class Watch(TorchDispatchMode):
    """Looks at every tensor operation of a step, its backward pass and its optimizer, for what cannot be replayed.

    Args:
        compares: keep what :meth:`difference` needs.

    Attributes:
        fault: the first one, in words; "" where there is none.
        ops: each operation, with shapes and numbers, and the part that called it.

    Example:
        >>> with Watch() as watch:
        ...     watch.fault, float(torch.ones(2).sum())
        ('', 2.0)
        >>> "reads a value of a tensor (_local_scalar_dense)" in watch.fault
        True
    """

    def __init__(self, compares: bool = True) -> None:
        super().__init__()
        self.fault, self.compares = "", compares
        self.ops: list[tuple[str, str]] = []
        self.looks = True
        self._calls = _Calls(self)

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """While something is done in a step that no replay has to do."""
        self.looks = False
        try:
            yield
        finally:
            self.looks = True

    def __enter__(self) -> Watch:
        self._calls.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if func.namespace == "profiler" or not self.looks:
            return out
        given, made = tree_flatten((args, kwargs))[0], tree_flatten(out)[0]
        if self.compares:
            values = [tuple(one.shape) if isinstance(one, Tensor) else one for one in given if not _handle(one)]
            self.ops.append((f"{name} {values}", _part()))
        if not self.fault:
            tensors = [one for one in (*given, *made) if isinstance(one, Tensor)]
            kinds = {one.device.type for one in tensors}
            if name in READS or (name == "index" and any(_mask(one) for one in given)):
                self.fault = f"{_part()} reads a value of a tensor ({name})"
            elif len(kinds) > 1 and "cpu" in kinds:
                self.fault = f"{_part()} computes with a tensor on the CPU ({name})"
        return out

    def difference(self, other: Watch) -> str:
        """What another step did otherwise, since Python decides it anew every time, in words; "" for nothing."""
        for (mine, part), (theirs, _) in zip(self.ops, other.ops, strict=False):
            if mine != theirs:
                return f"{part} computes otherwise from step to step ({theirs.partition(' ')[0]})"
        return "" if len(self.ops) == len(other.ops) else "the number of its operations changes from step to step"


class _Calls(TorchFunctionMode):
    """Sees what reaches no tensor operation: values handed to Python whole, and Python's numbers made a tensor."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        if self.watch.looks and not self.watch.fault:
            if name in ("tolist", "numpy", "__array__"):
                self.watch.fault = f"{_part()} reads the values of a tensor ({name})"
            elif name in ("tensor", "as_tensor", "new_tensor") and out.device.type != "cpu" and out is not args[0]:
                self.watch.fault = f"{_part()} copies numbers of Python's to the device ({name})"
        return out


def _handle(value: object) -> bool:
    """Whether an argument is an object of which no two steps have the same."""
    return isinstance(value, torch.Generator)


def _mask(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bool, torch.uint8)


def _part() -> str:
    """Which part of the model, or which optimizer, is at work, and where."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        owner, name = frame.f_locals.get("self"), str(frame.f_globals.get("__name__", ""))
        where = f"({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"
        if isinstance(owner, Optimizer):
            return f"the optimizer {type(owner).__name__}"
        if name.partition(".")[0] not in LIBRARIES and not name.startswith(__package__):
            if owner is not None:
                return f"{type(owner).__name__} {where}"
            return f"{frame.f_code.co_name} {where}"
        frame = frame.f_back
    return "the step"


LIBRARIES = ("torch", "pyro", "lightning", "lightning_utilities", "contextlib", "functools")


class Recorder:
    """How a step is recorded.

    Attributes:
        verb: what becomes of steps, a participle.
        most: kinds of batches, such as full ones and the last of an epoch, that are worth it.
        runs: recording a step takes it.
    """

    verb, most, runs = "captured", 4, True

    def aside(self) -> AbstractContextManager[object]:
        """Where steps run before one is recorded."""
        return nullcontext()

    def cut(self) -> None:
        """Called in steps that are no replays, when the gradients are there and the weights are what they were."""

    def record(self, step: Callable[[], object]) -> Callable[[], object]:
        """Run a step once, and return what runs it again.

        Raises:
            NotRecordedError: nothing can.
        """
        raise NotImplementedError


class NotRecordedError(Exception):
    """A step was taken, and cannot be replayed; the words say why."""


class Tape(Recorder):
    """Records the tensor operations of a step, and plays them again on the very same tensors, as a CUDA graph does.

    Nothing of Python's is run when it plays: a number that the step took from Python stays what it was.

    Example:
        >>> x, total = torch.ones(2), torch.zeros(2)
        >>> play = Tape().record(lambda: total.add_(2 * x))
        >>> x.fill_(5.0), play()
        (tensor([5., 5.]), None)
        >>> total
        tensor([12., 12.])
    """

    def record(self, step: Callable[[], object]) -> Callable[[], object]:
        taping = _Taping()
        with taping:
            step()
        return taping.play


class _Taping(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        writes = any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments)
        made = fresh(func, out)
        if func.namespace != "profiler" and (made or writes):  # a view of what stays where it is stays as well
            self.calls.append((func, args, kwargs or {}, made))
        return out

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, made in self.calls:
            for before, now in zip(made, fresh(func, func(*args, **kwargs)), strict=True):
                before.copy_(now)


def fresh(func: Any, out: Any) -> list[Tensor]:
    """What an operation returns and has made: neither what it was given nor a view of it."""
    many = out if isinstance(out, tuple) else (out,)
    fresh = [one for one, of in zip(many, func._schema.returns, strict=False) if of.alias_info is None]
    return [one for one in tree_flatten(fresh)[0] if isinstance(one, Tensor)]


class CudaGraphs(Recorder):
    """Records steps into CUDA graphs, which share their memory; warm-up steps run on the stream that records."""

    runs = False

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool: Any = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, step: Callable[[], object]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        # By thread: loaders have threads of their own, which may allocate.
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            step()
        self.pool = graph.pool()
        graph.replay()  # what is recorded has not run
        return graph.replay


def recorder_of(capture: bool | str, device: torch.device) -> Recorder | None:
    """What records steps on a device; None where none are to be.

    Args:
        capture: True, False, or ``"auto"``: where it is faster.
    """
    if capture and device.type == "cuda":
        return CudaGraphs(device)
    return Tape() if capture is True and device.type == "cpu" else None


@dataclass
class _Kind:
    """Batches of one structure, shapes and types: how far they are, and where the recorded step reads them."""

    warmed: int = 0
    watches: list[Watch] = field(default_factory=list)
    leaves: list[Any] = field(default_factory=list)
    batch: Any = None
    replay: Callable[[], object] | None = None

    def load(self, leaves: list[Any]) -> None:
        """Copy a batch to where the recorded step reads it."""
        for place, value in zip(self.leaves, leaves, strict=True):
            if isinstance(place, Tensor):
                place.copy_(value, non_blocking=True)


class Capture:
    """Steps of a fit: eager at first, then recorded, then replayed; eager for good where they cannot be recorded.

    Args:
        recorder: how.
        optimizer: whose settings are part of what is recorded: where one changes, the step is recorded anew.
        scheduled: whether the learning rate changes: it is then read from the device, where the optimizer can.

    Attributes:
        replaying: whether the step under way is a replay.
        replays: how many there were.
        fault: why steps stay eager; "" where they need not.
    """

    def __init__(self, recorder: Recorder, optimizer: Optimizer, *, scheduled: bool) -> None:
        self.recorder, self.optimizer, self.scheduled = recorder, optimizer, scheduled
        self.replaying, self.replays, self.fault, self.recorded = False, 0, "", 0
        self._leaves, self._structure = tree_flatten(None)
        self._renewed = 0
        self._kinds: dict[Any, _Kind] = {}
        self._kind = _Kind()
        self._recording = False
        self._watch: Watch | None = None
        self._numbers: dict[str, tuple[float, Tensor]] = {}
        self._settings: Any = None
        for parameter, state in optimizer.state.items():  # of a resumed run that was eager
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(parameter.device)

    def number(self, name: str, value: float, device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
        """A number of Python's as a scalar on the device, always the same one, set to its value of now."""
        before, scalar = self._numbers.get(name) or (None, torch.empty((), device=device, dtype=dtype))
        if before != value:
            scalar.fill_(value)
            self._numbers[name] = (value, scalar)
        return scalar

    def offer(self, batch: Any) -> None:
        """Say which batch the next step is for."""
        leaves, structure = tree_flatten(batch)
        key = tuple((tuple(one.shape), one.dtype) if isinstance(one, Tensor) else repr(one) for one in leaves)
        self._kind = self._kinds.setdefault((str(structure), key), _Kind())  # itself it has no hash in torch 2.6
        if self._kind.replay is not None:
            self._kind.load(leaves)
        self._leaves, self._structure = leaves, structure

    def batch(self, batch: Any) -> Any:
        """What a step computes with: the batch, or while it is recorded the tensors that later ones are copied to."""
        return self._kind.batch if self._recording else batch

    def step(self, whole: Callable[[], object], replay: Callable[[], object]) -> None:
        """Make one step.

        Args:
            whole: all of it: forward, backward, optimizer.
            replay: what Lightning wants to be run of it where it is replayed; has to call :meth:`play`.
        """
        kind, rates = self._kind, self._rates()
        settings = _settings(self.optimizer, [rate is not None for rate in rates])
        if settings != self._settings and not self.fault:
            if self._settings is not None:
                self._forget()
            self._settings = settings
        if kind.replay is not None and not self.fault:
            self.replaying = True
            try:
                replay()
            finally:
                self.replaying = False
            return
        with _lent(self.optimizer, rates):
            if self.fault or (kind.warmed >= WARM_UP and self.recorded >= self.recorder.most + self._renewed):
                whole()
            elif kind.warmed < WARM_UP:
                self._warm(kind, whole)
            else:
                self._record(kind, whole)

    def play(self) -> None:
        """Run the recorded step on the batch that was offered."""
        assert self._kind.replay is not None
        self._kind.replay()
        self.replays += 1

    def cut(self) -> None:
        """Say that a step's gradients are there, and that nothing has changed the weights yet."""
        with self._watch.looking_away() if self._watch is not None else nullcontext():
            self.recorder.cut()

    def _warm(self, kind: _Kind, whole: Callable[[], object]) -> None:
        watch = self._watch = Watch() if kind.warmed else None
        try:
            with self.recorder.aside(), watch or nullcontext():
                whole()
        finally:
            self._watch = None
        kind.warmed += 1
        if watch is not None:
            kind.watches.append(watch)
        if kind.warmed == WARM_UP:
            first, second = kind.watches
            kind.watches = []
            fault = first.fault or second.fault or first.difference(second)
            if fault:
                self.give_up(fault)

    def _record(self, kind: _Kind, whole: Callable[[], object]) -> None:
        kind.leaves = [one.clone() if isinstance(one, Tensor) else one for one in self._leaves]
        kind.batch = tree_unflatten(kind.leaves, self._structure)
        self._recording = True
        taken = True
        try:
            kind.replay = self.recorder.record(whole)
            self.recorded += 1
        except NotRecordedError as error:
            self.give_up(str(error))
        except RuntimeError as error:
            if self.recorder.runs:  # the step itself failed
                raise
            taken = False
            self.give_up((str(error).splitlines() or [type(error).__name__])[0])
        finally:
            self._recording = False
        if not taken:
            whole()
        elif self.recorder.runs:
            self.optimizer.zero_grad()  # as large as the weights, and replays have their own

    def give_up(self, fault: str) -> None:
        """Stay eager, and say why."""
        self.fault = fault
        self._kinds.clear()
        warnings.warn(NOT_RECORDED.format(self.recorder.verb, fault), stacklevel=2)

    def _forget(self) -> None:
        for kind in self._kinds.values():
            kind.replay = None
            if kind.warmed < WARM_UP:  # steps are compared under the same settings
                kind.warmed, kind.watches = min(kind.warmed, 1), []
        self._renewed += 1
        if self._renewed > AGAIN and not self.fault:
            self.give_up(f"the settings of the optimizer {type(self.optimizer).__name__} change again and again")

    def _rates(self) -> list[Tensor | None]:
        """The learning rates on the device, where they change and the optimizer can read them there."""
        rates: list[Tensor | None] = []
        for i, group in enumerate(self.optimizer.param_groups):
            device = group["params"][0].device if group["params"] else torch.device("cpu")
            reads = group.get("fused") or (device.type == "cuda" and "capturable" in group)
            if self.scheduled and reads and not isinstance(group["lr"], Tensor):
                dtype = torch.float64 if device.type == "cpu" else torch.float32  # what the kernels take
                rates.append(self.number(f"lr {i}", float(group["lr"]), device, dtype))
            else:
                rates.append(None)
        return rates


@contextmanager
def _lent(optimizer: Optimizer, rates: list[Tensor | None]) -> Iterator[None]:
    """An optimizer whose numbers lie on the device for a while; outside, and in checkpoints, it is as it was made."""
    before = [dict(group) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if rate is not None:
            group["lr"] = rate
        if "capturable" in group and any(parameter.is_cuda for parameter in group["params"]):
            group["capturable"] = True
    try:
        yield
    finally:
        for group, was in zip(optimizer.param_groups, before, strict=True):
            for name in ("lr", "capturable"):
                if name in was:
                    group[name] = was[name]


def _settings(optimizer: Optimizer, lent: list[bool]) -> list[list[tuple[str, object]]]:
    """What a recorded step took from an optimizer in plain numbers; learning rates that are lent it reads anew."""
    simple = bool | int | float | str | tuple | None
    return [
        [(name, value) for name, value in group.items() if isinstance(value, simple) and not (name == "lr" and reads)]
        for group, reads in zip(optimizer.param_groups, lent, strict=True)
    ]


def per_step_needs(trainer: Any, base: type) -> str:
    """What of a trainer needs Python, or other processes, at every step, in words; "" where nothing does.

    Args:
        trainer: Lightning's.
        base: its class of callbacks, whose hooks do nothing.
    """
    if trainer.accumulate_grad_batches != 1:
        return "gradients of several batches are summed up for one step (accumulate_grad_batches)"
    if trainer.world_size > 1:
        return "several processes train together"
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return "float16's gradients are rescaled from step to step; precision='bf16-mixed' needs no scale"
    for one in trainer.callbacks:
        if isinstance(one, GradientAccumulationScheduler):
            return "the number of batches to a step changes (GradientAccumulationScheduler)"
        for name in EACH_STEP:
            if getattr(type(one), name) is not getattr(base, name):
                return f"the callback {type(one).__name__} is to be called in every step ({name})"
    return ""
