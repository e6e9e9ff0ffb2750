"""Every measure gives the number of evaluation mode, whatever mode a pair is in, and leaves it and its statistics."""

from __future__ import annotations

import inspect
import math
import os
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pyro
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from pyro import poutine
from torch import Tensor, nn

import pyro_tvae
from pyro_tvae import inference, judging
from pyro_tvae.inference import Annealing, TrainerOptions, fit, log_likelihood
from pyro_tvae.judging import check_seed, in_turn

SHAPE = (1, 4, 4)
SHORT = Annealing(num_chains=2, num_temperatures=3, leapfrog_steps=1)


class Noisy(pyro_tvae.MLP):
    """Half of what the decoder sees is dropped, and what the encoder says is standardized, in training mode."""

    def encoder(self, *args: Any, **options: Any) -> nn.Module:
        return Standardized(super().encoder(*args, **options))

    def decoder(self, *args: Any, **options: Any) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), super().decoder(*args, **options))


class Standardized(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.norm = net, nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.norm(x.reshape(-1, 16)).reshape(x.shape))
        return out


def pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = pyro_tvae.TVAE(SHAPE, 3, 2, 3, pyro_tvae.CapsuleRoll(3), network=Noisy(), mu=1.0)
    return model, pyro_tvae.MeanFieldGuide(model)


def sequences(n: int = 4) -> Tensor:
    return torch.rand(n, 3, *SHAPE, generator=torch.Generator().manual_seed(1))


def forecast(model: Any, guide: Any) -> list[Tensor]:
    result = inference.forward_roll(model, guide, sequences(), baseline=(model, guide), num_particles=2)
    return [*result.log_likelihood.values(), torch.tensor(result.conditional)]


def draws(model: Any, guide: Any) -> Any:
    return inference.nuts(model, sequences(1), init=guide, num_samples=2, warmup_steps=2, num_chains=1)


X = sequences()
MEASURES: dict[str, Callable[[Any, Any], Any]] = {
    "encode": lambda m, g: pyro_tvae.encode(m, g, X),
    "reconstruct": lambda m, g: pyro_tvae.reconstruct(m, g, X),
    "sample": lambda m, g: pyro_tvae.sample(m, 3, mean=True),
    "traverse": lambda m, g: pyro_tvae.traverse(m, g, X),
    "interpolate": lambda m, g: pyro_tvae.interpolate(m, g, X, X.flip(0)),
    "log_likelihood": lambda m, g: log_likelihood(m, g, X, 5).iwae,
    "log_weights": lambda m, g: inference.log_weights(m, g, X, 5, seed=0),
    "to_arviz": lambda m, g: torch.tensor(inference.to_arviz(m, g, X, draws=3).log_likelihood["x"].values),
    "expected_size": lambda m, g: torch.tensor(inference.expected_size(m, g, X[:1], groups=["log_likelihood"])),
    "forward_roll": forecast,
    "compare": lambda m, g: inference.compare({"a": (m, g), "b": (m, g)}, X, 5, n_simulations=2).log_p,
    "bound_gap": lambda m, g: inference.bound_gap(m, g, inference.simulate(m, 2), 5),
    "annealed_importance": lambda m, g: inference.annealed_importance(m, g, X, annealing=SHORT).log_p,
    "reverse_annealing": lambda m, g: inference.reverse_annealing(m, g, 2, annealing=SHORT).log_p,
    "bracket": lambda m, g: inference.bracket(m, g, 2, annealing=SHORT).gap,
    "simulate": lambda m, g: inference.simulate(m, 2).x,
    "nuts": lambda m, g: draws(m, g).draws["z"],
    "guide_quality": lambda m, g: inference.guide_quality(m, g, X[:1], draws(m.eval(), g.eval())).pareto_k,
    "calibration": lambda m, g: inference.calibration(m, g, 4, 9).ranks["z"],
    "predictive_check": lambda m, g: inference.predictive_check(m, X.new_zeros(4, 3, 2, 3), X, 9).scores["ink"],
    "roll_velocity_test": lambda m, g: inference.roll_velocity_test(m, g, X, n_shuffles=5).null,
}
# What takes a model and judges nothing: it trains, keeps or rebuilds, or runs no network.
OTHERS = {"default_guide", "fit", "identified", "load", "save", "with_n_frames"}


def test_the_table_lacks_no_public_measure() -> None:
    names = set()
    for package in (pyro_tvae, inference):
        for name in dir(package):
            one = getattr(package, name)
            if inspect.isfunction(one) and {"model", "fitted"} & {*inspect.signature(one).parameters}:
                names.add(name)
    assert names - OTHERS == {*MEASURES}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_says_the_same_in_either_mode_and_leaves_the_pair_alone(name: str) -> None:
    expected, (model, guide) = MEASURES[name](*(one.eval() for one in pair())), pair()
    guide.eval()  # what is in evaluation mode stays in it
    model.decoder[1].eval()
    modes = [module.training for one in (model, guide) for module in one.modules()]
    state = {name: value.clone() for one in (model, guide) for name, value in one.state_dict().items()}
    if name == "guide_quality":
        found = inference.guide_quality(model, guide, X[:1], draws(*(one.eval() for one in pair()))).pareto_k
    else:
        if name == "sample":
            pair()  # which seeds
        found = MEASURES[name](model, guide)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert [module.training for one in (model, guide) for module in one.modules()] == modes
    after = {name: value for one in (model, guide) for name, value in one.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in state.items())


def test_a_number_is_the_same_before_and_after_a_file_and_modes_come_back_from_a_fit(tmp_path: Path) -> None:
    for trains in (True, False):
        model, guide = pair()
        guide.train(trains)
        fit(model, guide, X, validation=X, max_epochs=1, progress=False)
        assert model.training
        assert all(module.training == trains for module in guide.modules())
        before = log_likelihood(model, guide, X, 20).per_frame
        again = pyro_tvae.load(pyro_tvae.save(tmp_path / "pair.safetensors", model, guide))
        assert log_likelihood(*again, X, 20).per_frame == before


def test_modes_come_back_where_a_measure_or_a_fit_fails() -> None:
    model, guide = pair()
    guide.eval()
    for fails in (lambda: log_likelihood(model, guide, X[:, :2]), lambda: fit(model, guide, X * math.nan)):
        with pytest.raises((ValueError, FloatingPointError), match=r"x has shape|not finite|nan"):
            fails()
        assert (model.training, guide.training) == (True, False)


def test_a_handler_around_the_model_does_not_hide_its_modules() -> None:
    model, guide = pair()
    scaled = poutine.scale(model, scale=1.0)
    assert log_likelihood(scaled, guide, X, 5).per_frame == log_likelihood(model.eval(), guide.eval(), X, 5).per_frame


def propose(guide: Any, x: Tensor) -> Any:
    return guide(x)


@pytest.mark.parametrize("kind", ["partial", "partial by name", "method"])
def test_a_guide_that_is_a_partial_or_a_method_hides_no_modules(kind: str) -> None:
    model, guide = pair()
    program: Any = {
        "partial": partial(propose, guide),
        "partial by name": partial(lambda x, guide: guide(x), guide=guide),
        "method": guide.forward,
    }[kind]
    found = log_likelihood(model, program, X, 5).per_frame
    assert guide.training
    assert found == log_likelihood(model, program, X, 5).per_frame
    guide.eval()
    assert found == log_likelihood(model, program, X, 5).per_frame


def test_threads_take_turns_so_that_the_same_seed_gives_the_same_number() -> None:
    model, guide = pair()
    expected, state = log_likelihood(model, guide, X, 20, seed=0).per_frame, torch.get_rng_state()
    found: list[object] = []

    def work() -> None:
        for _ in range(4):
            try:
                found.append(log_likelihood(model, guide, X, 20, seed=0).per_frame)
            except Exception as error:
                found.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 12
    assert torch.equal(torch.get_rng_state(), state)


def test_fits_of_two_threads_are_those_of_one_after_the_other() -> None:
    def fitted(seed: int) -> list[float]:
        return fit(*pairs[seed], X, validation=X, max_epochs=2, seed=seed, progress=False).column("val/elbo")[1]

    pairs = [pair() for _ in range(2)]
    expected = [fitted(seed) for seed in range(2)]
    pairs, found = [pair() for _ in range(2)], {}
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: fitted(seed)})) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[0], found[1]] == expected


class Encoded(torch.utils.data.Dataset[Tensor]):
    """Each item is read by a measure, as in a worker of a loader, which is forked while the fit has its turn."""

    def __init__(self, *pair: Any) -> None:
        self.pair = pair

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, item: int) -> Tensor:
        return pyro_tvae.reconstruct(*self.pair, X[item : item + 1])[0]


@pytest.mark.timeout(60)
def test_a_worker_that_is_forked_during_a_fit_does_not_wait_for_its_turn() -> None:
    loader = torch.utils.data.DataLoader(Encoded(*pair()), batch_size=2, num_workers=1, multiprocessing_context="fork")
    assert fit(*pair(), loader, max_epochs=1, progress=False).seconds > 0
    with in_turn():
        assert len([*loader]) == 2


class Asking(Callback):
    """Waits for what another thread measures, for as long as that takes to say that it waits."""

    def __init__(self, measured: threading.Thread, told: threading.Event) -> None:
        self.measured, self.told = measured, told

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.measured.start()
        assert self.told.wait(30)


@pytest.mark.timeout(60)
def test_a_thread_that_a_fit_may_wait_for_says_that_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "LONG", 0.1)
    said, told, measured = [], threading.Event(), []

    def warn(message: object, *_: object, **__: object) -> None:
        if "has waited" in str(message):  # Lightning warns of other things
            said.append(str(message))
            told.set()

    monkeypatch.setattr(judging.warnings, "warn", warn)
    thread = threading.Thread(target=lambda: measured.append(log_likelihood(*pair(), X, 2, seed=0).per_frame))
    fit(*pair(), X, max_epochs=1, progress=False, trainer=TrainerOptions(callbacks=[Asking(thread, told)]))
    thread.join()
    [text] = said
    assert text.startswith("a thread has waited 0.1 s for the fit or the measure of another one")
    assert measured == [log_likelihood(*pair(), X, 2, seed=0).per_frame]


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True, "0"])
def test_a_seed_that_is_none_is_refused_in_one_sentence(seed: Any) -> None:
    model, guide = pair()
    calls: list[Callable[[], object]] = [
        lambda: log_likelihood(model, guide, X, 2, seed=seed),
        lambda: inference.compare({"a": (model, guide), "b": (model, guide)}, X, 2, seed=seed),
        lambda: inference.simulate(model, 2, seed=seed),
        lambda: inference.roll_velocity_test(model, guide, X, n_shuffles=1, seed=seed),
        lambda: inference.to_arviz(model, guide, X, draws=1, seed=seed),
        lambda: fit(model, guide, X, max_epochs=1, seed=seed, progress=False),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"seed is .*; expected a whole number from 0 to \d+"):
            call()
    check_seed(np.int64(3))


INSIDE: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "log_likelihood in a trace": ("called inside a trace", lambda m, g: traced(lambda: log_likelihood(m, g, X, 2))),
    "log_likelihood in a plate": ("inside the plate 'd'", lambda m, g: plated(lambda: log_likelihood(m, g, X, 2))),
    "sample in a plate": ("inside the plate 'd'", lambda m, g: plated(lambda: pyro_tvae.sample(m, 2, mean=True))),
    "log_likelihood in a scale": ("handler 'scale'", lambda m, g: within(poutine.scale(scale=0.1), m, g)),
    "log_likelihood in a mask": ("handler 'mask'", lambda m, g: within(poutine.mask(mask=torch.tensor(False)), m, g)),
    "log_likelihood in a condition": ("handler 'condition'", lambda m, g: within(poutine.condition(data={}), m, g)),
    "encode in vmap": ("torch.vmap", lambda m, g: torch.vmap(lambda x: pyro_tvae.encode(m, g, x[None]))(X)),
    "log_likelihood in vmap": ("torch.vmap", lambda m, g: torch.vmap(lambda x: log_likelihood(m, g, x[None]).iwae)(X)),
}


def within(handler: Any, model: Any, guide: Any) -> None:
    with handler:
        log_likelihood(model, guide, X, 2)


def traced(call: Callable[[], object]) -> None:
    with poutine.trace():
        call()


def plated(call: Callable[[], object]) -> None:
    with pyro.plate("d", 5):
        call()


@pytest.mark.parametrize("case", INSIDE)
def test_what_a_measure_cannot_be_called_inside_of_is_named(case: str) -> None:
    said, call = INSIDE[case]
    with pytest.raises(ValueError, match=said) as caught:
        call(*pair())
    assert "\n" not in str(caught.value)


def test_what_draws_nothing_may_be_asked_inside_a_program() -> None:
    model, guide = pair()
    expected = pyro_tvae.encode(model, guide, X)
    with pyro.plate("d", 5), poutine.trace():
        assert torch.equal(pyro_tvae.encode(model, guide, X), expected)


@pytest.mark.parametrize("name", ["nuts", "annealed_importance", "fit"])
def test_what_needs_gradients_is_refused_in_inference_mode(name: str) -> None:
    model, guide = pair()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch.inference_mode, in which there are no"):
        MEASURES[name](model, guide) if name in MEASURES else fit(model, guide, X, max_epochs=1, progress=False)


def test_a_pair_that_was_made_in_inference_mode_is_refused_by_a_fit() -> None:
    with torch.inference_mode():
        model, guide = pair()
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode"):
        fit(model, guide, X, max_epochs=1, progress=False)


def test_a_fit_with_a_seed_leaves_generators_and_environment_as_they_were(tmp_path: Path) -> None:
    """A bootstrap loop draws new indices every time, and the fits of one seed are one."""

    def turn(**options: Any) -> tuple[list[int], float, float, list[float]]:
        drawn = torch.randint(1000, (3,)).tolist(), random.random(), float(np.random.rand())  # noqa: NPY002
        history = fit(*pair_of_loop, X, validation=X, max_epochs=2, progress=False, **options)
        return *drawn, history.column("val/elbo")[1]

    environment, turns = dict(os.environ), []
    for _ in range(3):
        state = torch.get_rng_state()
        pair_of_loop = pair()
        torch.set_rng_state(state)
        turns.append(turn(seed=0, directory=tmp_path))
    assert dict(os.environ) == environment
    assert all(len({str(one[k]) for one in turns}) == 3 for k in range(3))  # new draws
    assert turns[0][3] == turns[1][3] == turns[2][3]  # the same fit
    pair_of_loop = pair()
    state, last = torch.get_rng_state(), tmp_path / "checkpoints" / "last.ckpt"
    fit(*pair_of_loop, X, validation=X, max_epochs=3, resume=last, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    fit(*pair_of_loop, X, max_epochs=1, progress=False)  # which draws from the global ones
    assert not torch.equal(torch.get_rng_state(), state)


NUMBERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "num_particles": lambda m, g, n: inference.log_weights(m, g, X, n),
    "draws": lambda m, g, n: inference.to_arviz(m, g, X, draws=n),
    "context": lambda m, g, n: inference.forward_roll(m, g, X, context=n),
    "batch_size": lambda m, g, n: inference.forward_roll(m, g, X, batch_size=n),
    "n_simulations": lambda m, g, n: inference.compare({"a": (m, g), "b": (m, g)}, X, 2, n_simulations=n),
    "n_sequences": lambda m, g, n: pyro_tvae.sample(m, n),
    "steps": lambda m, g, n: pyro_tvae.interpolate(m, g, X, X, steps=n),
    "n_draws": lambda m, g, n: inference.calibration(m, g, 4, n),
    "num_samples": lambda m, g, n: inference.nuts(m, X, init=g, num_samples=n),
    "n_shuffles": lambda m, g, n: inference.roll_velocity_test(m, g, X, n_shuffles=n),
    "n_replicates": lambda m, g, n: inference.predictive_check(m, X.new_zeros(4, 3, 2, 3), X, n),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_what_counts_is_a_whole_number_everywhere(name: str) -> None:
    for value in (2.0, 2.5, -3, True):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected a whole number of at least"):
            NUMBERS[name](*pair(), value)


def test_what_is_compared_is_a_mapping_of_names() -> None:
    model, guide = pair()
    for fitted in ("ab", [(model, guide)] * 2, {"a": model, "b": model}):
        with pytest.raises(TypeError, match="expected a mapping of names to pairs"):
            inference.compare(fitted, X)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a model is called \('a', 0\); expected a name, such as \"\('a', 0\)\"\."):
        inference.compare({("a", 0): (model, guide), ("b", 0): (model, guide)}, X)  # type: ignore[dict-item]
    both = inference.compare({"a": (model, guide), "b": (model, guide)}, X, 2, n_simulations=2)
    with pytest.raises(ValueError, match=r"there is no model 'c'; choose two of 'a', 'b'\."):
        both.difference("a", "c")
