"""Captured steps: nothing of a step waits for Python, a replay is the step, and what cannot be replayed is named.

A CPU records by a tape, which keeps to the rules of a CUDA graph. PYRO_TVAE_STEPS=1000 in the environment looks at so
many combinations of parts for host reads, of some 1,000, instead of a few of each kind.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from combinations import ALL, FRAME, GUIDES, LATENTS, LIKELIHOODS, PRIORS, S, build
from lightning.pytorch.callbacks import Callback
from recording import Counted, Halve, Reads, Stop, cosine, fitted
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.experiments.datasets import SequenceDataModule, Transformations, digits
from pyro_tvae.inference import ELBO, IWAE, DReG, Fitting, History, TrainerOptions, fit
from pyro_tvae.inference.batches import batch_of
from pyro_tvae.inference.capture import Capture, CudaGraphs, Recorder, Tape, Watch, recorder_of
from pyro_tvae.inference.soundness import Moment
from pyro_tvae.inference.training import NonFiniteError

STEPS = int(os.environ.get("PYRO_TVAE_STEPS", "0"))
OBJECTIVES = {"ELBO": (ELBO, 1), "ELBO of two": (ELBO, 2), "IWAE": (IWAE, 2), "DReG": (DReG, 2)}
NO_DREG = ("semi_amortized",)  # a part that DReG refuses


# ---- nothing waits for Python


def chosen() -> list[tuple[Any, ...]]:
    """Combinations that meet every guide with every prior, and every likelihood, law of z and topography; or more."""
    if STEPS:
        return random.Random(0).sample(ALL, min(STEPS, len(ALL)))
    return covering(
        ALL, lambda one: {(one[2], one[1]), ("likelihood", one[3]), ("law", one[4]), ("topography", one[0])}
    )


def covering(many: list[Any], of: Callable[[Any], set[tuple[str, str | None]]]) -> list[Any]:
    """Some of many that have, together, whatever all of them have."""
    met: set[tuple[str, str | None]] = set()
    some = []
    for one in random.Random(0).sample(many, len(many)):
        if of(one) - met:
            some.append(one)
            met |= of(one)
    return some


SOME = chosen()
# Another device is slow to try: every part there, without every pair of them. A learned W is rebuilt from the CPU.
FEW = covering([one for one in SOME if one[0] != "learned"], lambda one: {(str(i), one[i]) for i in (1, 2, 3, 4)})


def one_step(combination: tuple[Any, ...], objective: str, device: str) -> Watch:
    """A whole step as fit takes it when it captures: draws of frame dropout, terms, gradients, clipping, optimizer."""
    topography, prior, name, likelihood, latent, network = combination
    model = build(topography, prior, likelihood, latent, network)
    kind, particles = OBJECTIVES[objective]
    part = 2 if issubclass(kind, ELBO) else None
    guide = GUIDES[name](model)
    module = Fitting(
        model,
        guide,
        objective=kind,
        num_particles=particles,
        frame_dropout=0.5,
        subsample_frames=part,
        warmup_steps=4,
    ).to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    module.capture, module.soundness.deferred = Capture(Tape(), optimizer, scheduled=False), True
    module._values = torch.zeros(3, device=device)
    batch = {"x": torch.rand(2, S, *FRAME).to(device), "observed": torch.ones(2, S, dtype=torch.bool).to(device)}

    def step() -> None:
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        if device == "meta" and name == "gamma":
            return  # the gamma distribution's gradient is not written for this device
        loss.backward()
        module.soundness.of_gradients(module._moment)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    with pyro.validation_enabled(False):
        module.on_train_batch_start(batch, 0)
        step()  # makes what is made once
        module.on_train_batch_start(batch, 1)
        with Watch(compares=False) as watch:
            step()
    return watch


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_reads_nothing_back_and_copies_nothing_between_devices(device: str) -> None:
    if device == "meta" and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 draws no Gamma variables on meta")
    faults = {}
    for i, combination in enumerate(SOME if device == "cpu" else FEW):
        names = [name for name in OBJECTIVES if name != "DReG" or combination[2] not in NO_DREG]
        for objective in names if STEPS else [names[i % len(names)]]:
            fault = one_step(combination, objective, device).fault
            if fault:
                faults[(combination, objective)] = fault
    assert not faults


def test_the_steps_that_are_looked_at_meet_every_part() -> None:
    if not STEPS:
        for index, parts in ((2, GUIDES), (3, LIKELIHOODS), (4, LATENTS), (1, (*PRIORS, None))):
            assert {one[index] for one in SOME} == {*parts}


META = torch.device("meta")
FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "a value": (lambda: float(torch.ones(2).sum()), "reads a value"),
    "a decision": (lambda: bool((torch.ones(2) > 0).all()), "reads a value"),
    "a shape": (lambda: torch.ones(3)[torch.tensor([True, False, True])], "reads a value"),
    "places": (lambda: torch.ones(3).nonzero(), "reads a value"),
    "a root's check": (lambda: torch.linalg.cholesky(torch.eye(2)), "reads a value"),
    "a list": (lambda: torch.ones(2).tolist(), "reads the values"),
    "an array": (lambda: torch.ones(2).numpy(), "reads the values"),
    "a copy": (lambda: torch.ones(2).to(META), "computes with a tensor on the CPU"),
    "a tensor of the CPU": (lambda: torch.ones(2, device=META) * torch.ones(()), "computes with a tensor on the CPU"),
    "numbers": (lambda: torch.ones(2, device=META).new_tensor([1.0, 2.0]), "copies numbers"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_graph_cannot_hold_is_seen(name: str) -> None:
    action, words = FAULTS[name]
    with Watch() as watch:
        action()
    assert words in watch.fault
    assert "test_capture.py, line" in watch.fault


@pytest.mark.parametrize(
    "harmless",
    [
        lambda: torch.ones(2, device=META) + 1.5,
        lambda: torch.full((2,), 2.0, device=META),
        lambda: torch.randn(2).exp(),
    ],
)
def test_what_a_graph_can_hold_is_no_fault(harmless: Callable[[], object]) -> None:
    with Watch() as watch:
        harmless()
    assert watch.fault == ""


# ---- a replay is the step


def sequences(n: int = 22) -> Tensor:
    return torch.rand(n, 3, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def trained(
    captures: bool, parts: tuple[TVAE, Any] | None = None, data: Any = None, **options: Any
) -> tuple[list[Tensor], History, Counted]:
    torch.manual_seed(0)
    if parts is None:
        model = TVAE((1, 4, 4), 3, 2, 3, CapsuleRoll(3, 1), mu=2.0)
        parts = model, MeanFieldGuide(model)
    return fitted(parts, sequences() if data is None else data, capture=captures, **options)


def half_seen() -> DataLoader:
    observed = torch.rand(22, 3, generator=torch.Generator().manual_seed(2)) < 0.7
    observed[:, 0] = True
    return DataLoader(TensorDataset(sequences(), observed), batch_size=4)


SAME: dict[str, dict[str, Any]] = {
    "the default": {"gradient_clip": 1.0, "validation": sequences(6)},
    "particles and a schedule": {"objective": IWAE, "num_particles": 3, "schedule": cosine},
    "momentum": {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)},
    "bfloat16": {"precision": "bf16-mixed", "matmul_precision": "medium"},
    "frames that were not seen": {"data": half_seen()},
}


@pytest.mark.parametrize("name", SAME)
def test_replayed_steps_give_the_weights_of_eager_ones_bit_by_bit(name: str) -> None:
    eager, history, _ = trained(False, **SAME[name])
    found, replayed, counted = trained(True, **SAME[name])
    assert all(torch.equal(one, two) for one, two in zip(eager, found, strict=True))
    assert replayed.rows == history.rows
    # 3 epochs of 5 full batches and a short one: 3 steps warm up each kind, and one records the full ones.
    assert counted.replays == 15 - 4
    assert counted.module.capture.fault == ""


def turning(captures: bool) -> tuple[list[Tensor], History, Counted]:
    data = SequenceDataModule(
        digits(size=8), Transformations(rotation=True, hue=True), 3, batch_size=4, n_train=20, n_validation=4, n_test=1
    )
    torch.manual_seed(0)
    model = TVAE((3, 8, 8), 3, 2, 3, CapsuleRoll(3, 1), mu=2.0)
    return trained(captures, (model, MeanFieldGuide(model)), data)


def test_a_captured_step_renders_its_batch() -> None:
    eager, history, _ = turning(False)
    found, replayed, counted = turning(True)
    assert all(torch.equal(one, two) for one, two in zip(eager, found, strict=True))
    assert replayed.rows == history.rows
    assert counted.replays == 15 - 4
    assert counted.module.renders


def test_a_captured_fit_that_was_stopped_ends_as_one_left_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": cosine, "max_epochs": 3}
    whole, history, _ = trained(True, directory=tmp_path / "whole", **options)

    with pytest.raises(KeyboardInterrupt):
        trained(True, callbacks=(Stop(),), directory=tmp_path / "cut", **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    for captures in (True, False):  # a checkpoint does not say how its steps were taken
        found, resumed, _ = trained(captures, directory=tmp_path / f"{captures}", resume=last, **options)
        assert all(torch.equal(one, two) for one, two in zip(whole, found, strict=True))
        assert resumed.rows == history.rows
    group = torch.load(last, weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert isinstance(group["lr"], float)


def test_a_rate_that_is_set_by_hand_is_recorded_anew() -> None:
    eager, _, _ = trained(False, callbacks=(Halve(),))
    found, _, counted = trained(True, callbacks=(Halve(),))
    assert all(torch.equal(one, two) for one, two in zip(eager, found, strict=True))
    assert counted.module.capture.recorded == 2
    assert counted.replays == 15 - 4 - 1


# ---- what cannot be captured


class Counts(ELBO):
    """Adds another number in every step, which a replay would not know of."""

    steps = 0

    def forward(self, x: Tensor, observed: Tensor | None = None, **options: Any) -> Any:
        self.steps += 1
        terms = super().forward(x, observed, **options)
        return terms._replace(objective=terms.objective * (1 + self.steps / 100))


class Each(Callback):
    def on_after_backward(self, *_: Any) -> None:
        """Whatever it does."""


EAGER: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "a part that reads": (
        lambda: {"objective": Reads},
        r"Reads \(recording.py, line \d+\) reads a value of a tensor",
    ),
    "a part that counts": (
        lambda: {"objective": Counts},
        r"Counts \(test_capture.py, line \d+\) computes otherwise from",
    ),
    "an optimizer": (lambda: {"optimizer": torch.optim.Adam}, "the optimizer Adam reads a value"),
    "a callback": (
        lambda: {"callbacks": (Each(),)},
        "the callback Each is to be called in every step .on_after_backward",
    ),
}


@pytest.mark.parametrize("name", EAGER)
def test_what_cannot_be_captured_is_named_and_trained_all_the_same(name: str) -> None:
    options, words = EAGER[name]
    eager, history, _ = trained(False, max_epochs=2, **options())
    with pytest.warns(UserWarning, match=rf"^fit: steps are not captured .*, since {words}.*\.$") as caught:
        found, replayed, counted = trained(True, max_epochs=2, **options())
    assert len([one for one in caught if "captured" in str(one.message)]) == 1
    assert all(torch.equal(one, two) for one, two in zip(eager, found, strict=True))
    assert replayed.rows == history.rows
    assert counted.replays == 0


def test_several_batches_to_a_step_are_not_captured() -> None:
    options = TrainerOptions("cpu", accumulate_grad_batches=2)
    model = TVAE((1, 4, 4), 3, 2, 3, CapsuleRoll(3, 1))
    with pytest.warns(UserWarning, match=r"captured .* since gradients of several batches .* .accumulate_grad_batches"):
        fit(model, MeanFieldGuide(model), sequences(8), max_epochs=1, progress=False, capture=True, trainer=options)


def test_on_a_cpu_steps_are_captured_only_where_that_is_asked_for() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert recorder_of("auto", cpu) is None
    assert recorder_of(False, cuda) is None
    assert isinstance(recorder_of(True, cpu), Tape)
    with pytest.raises(ValueError, match=r"^fit: capture is 'always'; expected 'auto', True or False\.$"):
        trained("always")  # type: ignore[arg-type]


# ---- what is not sound


def poisoned(pixel: float, at: int, n: int = 60) -> DataLoader:
    x = sequences(n)
    x[at, 1] = pixel
    return DataLoader(TensorDataset(x), batch_size=4)


UNSOUND: dict[str, tuple[float, type[Exception], str]] = {
    "a pixel that is nan": (math.nan, NonFiniteError, "the log-probability of site 'x' is not finite at {step}; "),
    "a pixel out of place": (
        7.0,
        ValueError,
        r"batch {batch} of epoch 0: x holds pixels from .* to 7; Bernoulli takes",
    ),
}


# In a replay, and in the warm-up.
@pytest.mark.parametrize(("name", "batch"), [("a pixel that is nan", 12), ("a pixel out of place", 2)])
def test_a_step_that_is_not_sound_is_named_and_undone(name: str, batch: int, tmp_path: Path) -> None:
    pixel, kind, words = UNSOUND[name]
    torch.manual_seed(0)
    model = TVAE((1, 4, 4), 3, 2, 3, CapsuleRoll(3, 1), mu=2.0)
    parts = (model, MeanFieldGuide(model))
    words = words.format(step=f"step {batch}, batch {batch} of epoch 0", batch=batch)
    with pytest.raises(kind, match=words) as caught:
        trained(True, parts, poisoned(pixel, 4 * batch), directory=tmp_path, max_epochs=1, warmup_steps=2)
    # Looked at after steps 9 and 19: the weights are those of 0 or 10 steps, as eager ones would be.
    sound = 10 * (batch // 10)
    assert f"the weights are those before step {sound}, " in "".join(caught.value.__notes__)
    found = [p.detach().clone() for p in [*parts[0].parameters(), *parts[1].parameters()]]
    assert not list(tmp_path.rglob("*.ckpt"))
    if sound:
        expected, _, _ = trained(False, data=poisoned(pixel, 4 * batch), max_epochs=1, max_steps=sound, warmup_steps=2)
    else:
        torch.manual_seed(0)
        model = TVAE((1, 4, 4), 3, 2, 3, CapsuleRoll(3, 1), mu=2.0)
        expected = [*model.parameters(), *MeanFieldGuide(model).parameters()]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


class Burst(ELBO):
    """An objective that is finite while its gradient is not, once a sequence is bright."""

    def forward(self, x: Tensor, observed: Tensor | None = None, **options: Any) -> Any:
        terms = super().forward(x, observed, **options)
        dark = (x.amax() < 0.9995).to(x)
        return terms._replace(objective=terms.objective + (self.model.mu * 0 + dark).sqrt() * 0)


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    x = sequences(32) * 0.99
    x[25] = 1.0  # batch 6 of each epoch; of the second epoch, it is after the first checkpoint
    loader = DataLoader(TensorDataset(x), batch_size=4)
    with pytest.raises(
        NonFiniteError, match=r"^the gradient of model.mu \(1 of \d+ parameters\) is not finite at step 6, "
    ):
        trained(True, data=loader, directory=tmp_path, objective=Burst, max_epochs=2)
    assert not list(tmp_path.rglob("*.ckpt"))  # 8 steps an epoch: it is found at its end, before anything is written


def test_one_look_says_the_first_step_that_was_not_sound() -> None:
    model = TVAE((1, 4, 4), 3, 2, 3, CapsuleRoll(3, 1))
    module = Fitting(model, MeanFieldGuide(model))
    module.soundness.deferred = True
    module.soundness.keep(None)
    before = [p.detach().clone() for p in module.parameters()]
    for step in range(4):
        module.soundness.expect(moment := Moment(step, step, 0))
        x = torch.full((1, 3, 1, 4, 4), 0.5 if step != 2 else 2.0)
        module.soundness.of_terms(torch.zeros(3) + (math.inf if step == 3 else 0), None, batch_of(x), moment)
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        module.soundness.of_gradients(moment)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1.0)
    error = module.soundness.settle()
    assert "batch 2 of epoch 0: x holds pixels from 2 to 2" in str(error)
    assert all(torch.equal(one, two) for one, two in zip(before, module.parameters(), strict=True))
    assert module.soundness.settle() is None


# ---- the recorder of a GPU, as far as it goes without one


def test_a_graph_is_recorded_once_and_launched_for_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[Any] = []

    class Stream:
        def __init__(self, *_: Any) -> None:
            pass

        def wait_stream(self, other: Any) -> None:
            log.append("wait")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

        def pool(self) -> str:
            return "pool"

    @contextmanager
    def graph(_: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        log.append(("begin", pool))
        yield
        log.append("end")

    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        yield

    for name, fake in (
        ("Stream", Stream), ("CUDAGraph", Graph), ("graph", graph), ("stream", on), ("current_stream", Stream),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    recorder = CudaGraphs(torch.device("cuda"))
    replay = recorder.record(lambda: log.append("step"))
    replay()
    recorder.record(lambda: log.append("other"))
    assert log == [("begin", None), "step", "end", "replay", "replay", ("begin", "pool"), "other", "end", "replay"]
    with recorder.aside():
        log.clear()
    assert log == ["wait"]


def test_a_recording_that_fails_leaves_the_step_to_be_taken() -> None:
    class Broken(Recorder):
        runs = False

        def record(self, step: Callable[[], object]) -> Any:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    recording, taken = Capture(Broken(), optimizer, scheduled=False), []

    def steps() -> None:
        for _ in range(6):
            recording.offer(torch.zeros(2))
            recording.step(lambda: taken.append(1), lambda: None)

    with pytest.warns(UserWarning, match=r"since CUDA error: operation not permitted when stream is capturing\.$"):
        steps()
    assert len(taken) == 6
