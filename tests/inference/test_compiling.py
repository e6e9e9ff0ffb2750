"""Compiled steps: they give what eager ones do to rounding, and what cannot be compiled is named and trained eagerly.

Inductor takes a minute for each program. So most tests run the program of a step as it is written down, and one has it
compiled; PYRO_TVAE_COMPILE=inductor (or aot_eager) in the environment compiles everywhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from combinations import FRAME, GUIDES, S, build
from recording import Counted, Halve, Reads, Stop, cosine, fitted
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_tvae.inference import ELBO, IWAE, History
from pyro_tvae.inference import compiling as compiling_module
from pyro_tvae.inference.compiling import Compiled, missing_compiler
from pyro_tvae.inference.training import NonFiniteError
from pyro_tvae.products import Linear

BACKEND = os.environ.get("PYRO_TVAE_COMPILE", "")
REAL = torch.compile


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that compiles nothing, and needs none for C++; or the one of the environment."""
    torch.compiler.reset()
    if not BACKEND:
        monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    elif BACKEND != "inductor":
        monkeypatch.setattr(compiling_module, "COMPILER", {"backend": BACKEND})
    if BACKEND != "inductor":
        monkeypatch.setenv("CXX", "sh")


def sequences(n: int = 22) -> Tensor:
    return torch.rand(n, S, *FRAME, generator=torch.Generator().manual_seed(1))


def trained(
    compiles: bool, parts: tuple[Any, Any] | None = None, data: Any = None, **options: Any
) -> tuple[list[Tensor], History, Counted]:
    torch.manual_seed(0)
    if parts is None:
        model = build("roll", "gaussian")
        parts = model, GUIDES["mean_field"](model)
    return fitted(parts, sequences() if data is None else data, compile=compiles, **options)


def assert_close(one: tuple[list[Tensor], History, Any], two: tuple[list[Tensor], History, Any]) -> None:
    """Equal to the rounding of sums, which some steps of Adam carry on."""
    for mine, theirs in zip(one[0], two[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    assert len(one[1].rows) == len(two[1].rows) > 0
    for row, other in zip(one[1].rows, two[1].rows, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


PARTS: dict[str, tuple[tuple[str, str], str, dict[str, Any]]] = {
    "mean_field": (("roll", "gaussian"), "mean_field", {"gradient_clip": 1.0, "validation": sequences(6)}),
    "orbit": (("orbits", "orbit"), "orbit", {"schedule": cosine, "subsample_frames": 2}),
    "radial": (("roll", "gaussian"), "radial", {"objective": IWAE, "num_particles": 2}),
    "learned": (
        ("learned", "gaussian"),
        "sequence",
        {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)},
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_compiled_steps_give_what_eager_ones_do(name: str, recwarn: pytest.WarningsRecorder) -> None:
    of_model, guide, options = PARTS[name]

    def run(compiles: bool) -> tuple[list[Tensor], History, Counted]:
        torch.manual_seed(0)
        model = build(*of_model)
        return trained(compiles, (model, GUIDES[guide](model)), **options)

    eager, compiled = run(False), run(True)
    assert_close(compiled, eager)
    capture = compiled[2].module.capture
    # 3 epochs of 5 full batches: 3 steps warm up, one is recorded. The short batches stay eager.
    assert (capture.fault, capture.replays) == ("", 15 - 4)
    assert not [one for one in recwarn if "compiled" in str(one.message)]


def test_by_inductor_a_step_is_what_it_is_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way through the C++ compiler, for a step of a few kernels with a draw and a product."""
    monkeypatch.setattr(torch, "compile", REAL)
    if BACKEND != "inductor":
        monkeypatch.delenv("CXX")
    if missing := missing_compiler(torch.device("cpu")):
        pytest.skip(missing)
    losses: list[list[float]] = []
    for compiles in (False, True):
        torch.manual_seed(0)
        layer = Linear(6, 5)
        optimizer, x, values = torch.optim.SGD(layer.parameters(), lr=0.1), torch.rand(4, 6), torch.zeros(1)
        recorder = Compiled()

        def step(
            layer: nn.Module = layer,
            optimizer: Any = optimizer,
            x: Tensor = x,
            values: Tensor = values,
            recorder: Compiled = recorder,
        ) -> None:
            optimizer.zero_grad()
            loss = (layer(x + 0.1 * torch.randn(4, 6)).exp() - 1).square().mean()
            loss.backward()
            values.copy_(loss.detach())
            recorder.cut()
            optimizer.step()

        take: Callable[[], object] = recorder.record(step) if compiles else step
        if not compiles:
            take()
        losses.append([float(values)])
        for _ in range(5):
            take()
            losses[-1].append(float(values))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len({*losses[0]}) == 6


def test_a_compiled_fit_that_was_stopped_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": cosine, "max_epochs": 3}
    whole = trained(True, directory=tmp_path / "whole", **options)

    with pytest.raises(KeyboardInterrupt):
        trained(True, callbacks=(Stop(),), directory=tmp_path / "cut", **options)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    for compiles in (True, False):  # a checkpoint does not say how its steps were taken
        assert_close(trained(compiles, directory=tmp_path / f"{compiles}", resume=last, **options), whole)


def test_where_the_optimizer_is_told_otherwise_nothing_is_compiled_again() -> None:
    compiled = trained(True, callbacks=(Halve(),))
    assert_close(compiled, trained(False, callbacks=(Halve(),)))
    capture = compiled[2].module.capture
    assert (capture.recorded, len(capture.recorder._programs)) == (2, 1)
    assert capture.replays == 15 - 4 - 1


# ---- what cannot be compiled


class Own(ELBO):
    """Draws from a generator of its own."""

    def forward(self, x: Tensor, observed: Tensor | None = None, **options: Any) -> Any:
        terms = super().forward(x, observed, **options)
        generator = torch.Generator().manual_seed(0)
        return terms._replace(objective=terms.objective + 0 * torch.rand((), generator=generator))


EAGER: dict[str, tuple[dict[str, Any], str]] = {
    "a part that reads": ({"objective": Reads}, r"Reads \(recording.py, line \d+\) reads a value of a tensor"),
    "a generator": ({"objective": Own}, "a part draws from a generator of its own"),
    "an optimizer": ({"optimizer": torch.optim.Adam}, "the optimizer Adam reads a value"),
}


@pytest.mark.parametrize("name", EAGER)
def test_what_cannot_be_compiled_is_named_and_trained_all_the_same(name: str) -> None:
    options, words = EAGER[name]
    eager, history, _ = trained(False, max_epochs=1, **options)
    with pytest.warns(UserWarning, match=rf"^fit: steps are not compiled and run one .*, since {words}.*\.$") as caught:
        weights, compiled, counted = trained(True, max_epochs=1, **options)
    assert len([one for one in caught if "compiled" in str(one.message)]) == 1
    assert all(torch.equal(one, two) for one, two in zip(eager, weights, strict=True))
    assert compiled.rows == history.rows
    assert counted.module.capture.replays == 0


def failing(module: Any, **_: Any) -> Any:
    raise OSError("no space left\non device")


def wrong(module: Any, **_: Any) -> Any:
    return lambda *given: [2 * one for one in module(*given)]


def drawing(module: Any, **_: Any) -> Any:
    return lambda *given: (torch.rand(1), module(*given))[1]


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (failing, "torch.compile failed: .*no space left on device"),
        (wrong, "the compiled step has other gradients than an eager one"),
        (drawing, "the compiled step draws other random numbers than an eager one"),
    ],
)
def test_a_compiler_that_fails_or_errs_is_not_used(backend: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", backend)
    eager, _, _ = trained(False, max_epochs=1)
    with pytest.warns(UserWarning, match=rf"^fit: steps are not compiled .*, since {words}.*\.$"):
        weights, _, counted = trained(True, max_epochs=1)
    assert all(torch.equal(one, two) for one, two in zip(eager, weights, strict=True))
    assert counted.module.capture.replays == 0


def test_without_a_compiler_for_cpp_steps_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(
        UserWarning, match=r"^fit: steps are not compiled .*, since there is no C\+\+ compiler \(no-such"
    ):
        trained(True, max_epochs=1)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert "there is no C++ compiler (g++ or clang++)" in missing_compiler(torch.device("cpu"))


def test_other_words_than_true_and_false_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^fit: compile is 'yes'; expected True or False\.$"):
        trained("yes")  # type: ignore[arg-type]


# ---- what is not sound


@pytest.mark.parametrize(("batch", "pixel"), [(2, math.nan), (7, math.nan), (7, 7.0)])
def test_a_step_that_is_not_sound_is_named_before_the_weights_learn_from_it(batch: int, pixel: float) -> None:
    x = sequences(40)
    x[4 * batch, 1] = pixel
    loader = DataLoader(TensorDataset(x), batch_size=4)
    torch.manual_seed(0)
    model = build("roll", "gaussian")
    parts = model, GUIDES["mean_field"](model)
    kind, words = (NonFiniteError, f"not finite at step {batch}, ") if math.isnan(pixel) else (ValueError, " to 7; ")
    with pytest.raises(kind, match=words) as caught:
        trained(True, parts, loader, max_epochs=1, warmup_steps=0)
    assert "looked at after" not in "".join(getattr(caught.value, "__notes__", ()))  # at each step, not later
    expected, _, _ = trained(False, data=loader, max_epochs=1, max_steps=batch, warmup_steps=0)
    for mine, theirs in zip((p for part in parts for p in part.parameters()), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
