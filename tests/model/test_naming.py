"""Names in Pyro's store: what is copied, pickled, loaded or named alike trains by itself and nothing else."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from pyro.optim import Adam
from torch import Tensor, nn

import pyro_tvae
from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    ConditionalGuide,
    CovarianceGuide,
    FlowGuide,
    GammaEnergy,
    GammaGuide,
    Guide,
    MeanFieldGuide,
    OrbitCovarianceGuide,
    OrbitEnergy,
    OrbitGuide,
    SemiAmortizedGuide,
    SequenceGuide,
    SharedTrunkGuide,
    load,
    save,
)
from pyro_tvae.guides.orbit import ConditionalOrbitGuide
from pyro_tvae.inference import TrainerOptions, fit, log_likelihood, to_arviz

FRAME = (1, 2, 3)
Pair = tuple[TVAE, Guide]


def pair(name: str | None = None, guide: Callable[..., Guide] = MeanFieldGuide) -> Pair:
    model = TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, 1), mu=1.0, name=name)
    return model, guide(model, name=None if name is None else f"{name}_guide")


def step(model: TVAE, guide: Guide, x: Tensor, lr: float = 1.0) -> float:
    return float(SVI(model, guide, pyro.optim.SGD({"lr": lr}), Trace_ELBO()).step(x))


def loss(model: TVAE, guide: Guide, x: Tensor) -> float:
    torch.manual_seed(3)
    return float(Trace_ELBO(num_particles=4).loss(model, guide, x))


def weights(*modules: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


def moved(before: list[Tensor], after: list[Tensor]) -> list[bool]:
    return [not torch.equal(one, two) for one, two in zip(before, after, strict=True)]


def through_torch(given: Pair) -> Pair:
    buffer = io.BytesIO()
    torch.save(given, buffer)
    buffer.seek(0)
    loaded: Pair = torch.load(buffer, weights_only=False)
    return loaded


def through_joblib(given: Pair) -> Pair:
    joblib = pytest.importorskip("joblib")
    buffer = io.BytesIO()
    joblib.dump(given, buffer)
    buffer.seek(0)
    loaded: Pair = joblib.load(buffer)
    return loaded


ROADS: dict[str, Callable[[Pair], Pair]] = {
    "pickle": lambda given: pickle.loads(pickle.dumps(given)),
    "torch": through_torch,
    "joblib": through_joblib,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("name", [None, "mine"])
@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_what_was_restored_trains_apart_from_the_original(
    road: Callable[[Pair], Pair], name: str | None, used: bool
) -> None:
    model, guide = pair(name)
    x = torch.rand(8, 4, *FRAME)
    if used:
        step(model, guide, x, 1e-3)
    twin, its_guide = road((model, guide))
    assert not any(moved(weights(model, guide), weights(twin, its_guide)))
    step(model, guide, x, 1e-3)
    still, start = weights(model, guide), weights(twin, its_guide)
    step(twin, its_guide, x)
    assert all(moved(start, weights(twin, its_guide)))
    assert not any(moved(still, weights(model, guide)))


@pytest.mark.parametrize("name", [None, "mine"])
def test_what_was_unpickled_keeps_its_weights_whatever_the_store_holds(name: str | None) -> None:
    model, guide = pair(name)
    x = torch.rand(8, 4, *FRAME)
    stored, kept = pickle.dumps((model, guide)), weights(model, guide)
    step(model, guide, x)  # the store goes on from there, and outlives the pair
    del model, guide
    gc.collect()
    twin, its_guide = pickle.loads(stored)
    loss(twin, its_guide, x)
    assert not any(moved(kept, weights(twin, its_guide)))


def in_a_worker(given: Pair) -> tuple[list[bool], list[bool]]:
    """The worker's own pair comes first, so that its names are the unpickled pair's old ones."""
    torch.manual_seed(0)
    x = torch.rand(8, 4, *FRAME)
    own = pair()
    step(*own, x, 1e-3)
    start, still = weights(*given), weights(*own)
    step(*given, x)
    return moved(start, weights(*given)), moved(still, weights(*own))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_pair_trains_in_the_worker_of_a_pool(start: str) -> None:
    if start == "fork":
        torch.set_num_threads(1)  # torch's own threads do not survive a fork
    with ProcessPoolExecutor(1, mp_context=get_context(start)) as pool:
        trained, others = pool.submit(in_a_worker, pair()).result(timeout=300)
    assert all(trained)
    assert not any(others)


def test_a_shallow_copy_is_the_same_weights() -> None:
    model, guide = pair()
    x = torch.rand(8, 4, *FRAME)
    twin = copy.copy(model)
    step(twin, guide, x)
    step(model, guide, x)
    assert len(pyro.get_param_store()) == len(weights(model, guide))
    assert twin.mu is model.mu


def test_a_copy_of_a_used_module_with_pyro_modules_inside() -> None:
    """Pyro itself refuses to name a part anew that was in use."""

    class Own(TVAE):
        def __init__(self) -> None:
            super().__init__(FRAME, 4, 2, 4, CapsuleRoll(3), mu=1.0)
            self.decoder = PyroModule[nn.Sequential](PyroModule[nn.Linear](8, 6), nn.Unflatten(-1, FRAME))  # type: ignore[call-arg]

    model = Own()
    guide = MeanFieldGuide(model)
    x = torch.rand(8, 4, *FRAME)
    step(model, guide, x, 1e-3)
    twin, its_guide = copy.deepcopy((model, guide))
    still = weights(model)
    start = weights(twin)
    step(twin, its_guide, x)
    assert all(moved(start, weights(twin)))
    assert not any(moved(still, weights(model)))


# --- the store's own files -------------------------------------------------------------------------------------------

SCRIPT = """
import sys, pyro, torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
folder, what = sys.argv[1:]
torch.manual_seed(0)
x = torch.rand(8, 4, 1, 2, 3)
torch.manual_seed(1 if what == "train" else 2)  # other weights at the start, and other counts
others = [] if what == "train" else [TVAE((1, 2, 3), 4, 2, 4) for _ in range(3)]
if what == "load first":
    pyro.get_param_store().load(f"{folder}/store")
model = TVAE((1, 2, 3), 4, 2, 4, CapsuleRoll(3), mu=1.0, name="model")
guide = MeanFieldGuide(model, name="guide")
svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
if what == "train":
    for _ in range(60):
        svi.step(x)
    pyro.get_param_store().save(f"{folder}/store")
if what == "load after use":
    svi.step(x)
    pyro.get_param_store().load(f"{folder}/store")
if what == "load":
    pyro.get_param_store().load(f"{folder}/store")
torch.manual_seed(3)
found = Trace_ELBO(num_particles=4).loss(model, guide, x)
before = [p.detach().clone() for m in (model, guide) for p in m.parameters()]
bare = float(sum(p.double().sum() for p in before))
for _ in range(3):
    svi.step(x)
assert not any(torch.equal(a, b) for a, b in zip(before, (p for m in (model, guide) for p in m.parameters())))
print(found.hex(), bare.hex())
"""


def test_pyros_store_restores_a_named_pair_exactly_in_a_fresh_process(tmp_path: Path) -> None:
    """Before or after the pair is built or used: the same loss, the same weights in the modules, and they train on."""

    def run(what: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path), what], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    trained = run("train")
    assert run("nothing") != trained
    for what in ("load", "load first", "load after use"):
        assert run(what) == trained, what


GUIDES: dict[str, tuple[Callable[..., Guide], str]] = {
    "mean_field": (MeanFieldGuide, "gaussian"),
    "shared_trunk": (SharedTrunkGuide, "gaussian"),
    "sequence": (SequenceGuide, "gaussian"),
    "covariance": (CovarianceGuide, "gaussian"),
    "conditional": (ConditionalGuide, "gaussian"),
    "flow": (FlowGuide, "gaussian"),
    "semi_amortized": (SemiAmortizedGuide, "gaussian"),
    "gamma": (GammaGuide, "gamma"),
    "orbit": (OrbitGuide, "orbit"),
    "conditional_orbit": (ConditionalOrbitGuide, "orbit"),
    "orbit_covariance": (OrbitCovarianceGuide, "orbit"),
}
PRIORS: dict[str, Callable[[], TVAE]] = {
    "gaussian": lambda: TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, 1), mu=1.0, name="model"),
    "gamma": lambda: TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, 1), mu=1.0, prior=GammaEnergy(), name="model"),
    "orbit": lambda: TVAE(FRAME, 4, 2, 4, CapsuleRoll(4, 0), mu=1.0, prior=OrbitEnergy(), name="model"),
}


@pytest.mark.parametrize(("make", "prior"), GUIDES.values(), ids=GUIDES)
def test_every_guide_takes_a_name_and_comes_back_from_the_store(
    make: Callable[..., Guide], prior: str, tmp_path: Path
) -> None:
    x = torch.rand(4, 4, *FRAME)
    model = PRIORS[prior]()
    guide = make(model, name="guide")
    assert {key.split(".")[0] for key in (step(model, guide, x, 1e-3), pyro.get_param_store().keys())[1]} == {
        "model",
        "guide",
    }
    expected, kept = loss(model, guide, x), weights(model, guide)
    pyro.get_param_store().save(str(tmp_path / "store"))
    del model, guide
    pyro.clear_param_store()
    torch.manual_seed(99)
    model = PRIORS[prior]()
    guide = make(model, name="guide")
    assert loss(model, guide, x) != expected
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store"))
    assert loss(model, guide, x) == expected
    assert not any(moved(kept, weights(model, guide)))


def test_a_store_of_another_shape_is_refused(tmp_path: Path) -> None:
    x = torch.rand(4, 4, *FRAME)
    step(*pair("mine"), x)
    gc.collect()
    model = TVAE(FRAME, 4, 2, 3, CapsuleRoll(3), name="mine")
    with pytest.raises(ValueError, match=r"holds mine\.decoder.* of shape .*clear_param_store"):
        model(x)


def test_a_living_modules_name_is_refused_and_a_dead_ones_is_free() -> None:
    model, guide = pair("mine")
    with pytest.raises(ValueError, match="TVAE: the name 'mine' is that of a living module"):
        pair("mine")
    with pytest.raises(ValueError, match="MeanFieldGuide: the name 'mine' is that of a living module"):
        MeanFieldGuide(model, name="mine")
    cycle: list[object] = [model, guide]
    cycle.append(cycle)
    del model, guide, cycle
    pair("mine")


@pytest.mark.parametrize("name", ["", "a.b", "a$b", 3])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a word without"):
        pair(name)


def test_an_unnamed_module_takes_nothing_over_from_the_store() -> None:
    model, _ = pair()
    number = int(model._pyro_name.removeprefix("TVAE_"))
    for later in range(number + 1, number + 20):
        pyro.param(f"TVAE_{later}.mu", torch.tensor(77.0))
    other = pair()[0]
    other(n_sequences=1)
    assert float(other.mu.detach()) == 1.0


def test_what_was_replaced_in_a_module_trains() -> None:
    """The store knows the old one, and would train that."""
    model, guide = pair()
    x = torch.rand(8, 4, *FRAME)
    step(model, guide, x, 1e-3)
    model.decoder = nn.Sequential(nn.Linear(8, 6), nn.Unflatten(-1, FRAME))
    model.mu = nn.Parameter(torch.tensor(2.0))
    start = weights(model)
    step(model, guide, x)
    assert all(moved(start, weights(model)))


def test_a_file_keeps_a_chosen_name_where_it_is_free(tmp_path: Path) -> None:
    model, guide = pair("mine")
    path, kept = save(tmp_path / "m.safetensors", model, guide), weights(model, guide)
    twin, its_guide = load(path)
    assert twin._pyro_name != "mine"  # taken
    step(model, guide, torch.rand(8, 4, *FRAME))
    del twin, its_guide, model, guide
    gc.collect()
    again, its_guide = load(path)
    assert again._pyro_name != "mine"  # the store has other weights below it
    loss(again, its_guide, torch.rand(8, 4, *FRAME))
    assert not any(moved(kept, weights(again, its_guide)))
    del again, its_guide
    pyro.clear_param_store()
    assert [module._pyro_name for module in load(path)] == ["mine", "mine_guide"]


def tiny(name: str | None = None) -> TVAE:
    return TVAE((1, 4, 4), 3, 1, 3, CapsuleRoll(3, 0), mu=1.0, name=name)


def test_what_fit_trains_stays_whatever_a_former_module_of_its_name_left() -> None:
    """As in a loop over folds, and in a notebook whose cells run again."""
    x = torch.rand(8, 3, 1, 4, 4)
    options: dict[str, Any] = {"max_epochs": 1, "progress": False, "trainer": TrainerOptions("cpu")}
    for fold in range(2):
        model = tiny(f"fold of {id(x)}".replace(" ", "_"))
        guide = MeanFieldGuide(model)
        if fold:
            with pytest.warns(
                UserWarning, match=r"^fit: Pyro's parameter store held other values of fold_of_.*own are"
            ):
                fit(model, guide, x, **options)
        else:
            fit(model, guide, x, **options)
        trained = [parameter.clone() for parameter in model.parameters()]
        model(n_sequences=1)
        assert all(map(torch.equal, trained, model.parameters()))
        model = guide = None  # type: ignore[assignment]
        gc.collect()


@pytest.mark.parametrize("use", ["fit", "log_likelihood", "to_arviz"])
def test_an_autoguide_does_not_become_another_one_of_its_class(use: str) -> None:
    x = torch.rand(8, 3, 1, 4, 4)
    one, two = tiny(), tiny()
    guides = AutoNormal(one), AutoNormal(two)
    pyro.clear_param_store()
    guides[1](x)
    pyro.clear_param_store()
    before = [parameter.clone() for parameter in guides[1].parameters()]
    SVI(one, guides[0], pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(x)
    function = {
        "fit": partial(fit, max_epochs=1, progress=False),
        "log_likelihood": log_likelihood,
        "to_arviz": to_arviz,
    }
    with pytest.raises(
        ValueError, match=r"^Pyro's parameter store holds another AutoNormal\..* than this AutoNormal has"
    ):
        function[use](two, guides[1], x)
    assert all(map(torch.equal, before, guides[1].parameters()))
    pyro.clear_param_store()
    log_likelihood(two, guides[1], x, 2)
    assert all(map(torch.equal, before, guides[1].parameters()))


USES: dict[str, Callable[[TVAE, MeanFieldGuide, Tensor], Tensor]] = {
    "encode": pyro_tvae.encode,
    "log_likelihood": lambda model, guide, x: log_likelihood(model, guide, x, 4).iwae,
    "sample": lambda model, guide, x: _drawn(model),
    "save": lambda model, guide, x: _saved(model, guide, x),
}


def _drawn(model: TVAE) -> Tensor:
    torch.manual_seed(2)
    return pyro_tvae.sample(model, 2, mean=True)


def _saved(model: TVAE, guide: MeanFieldGuide, x: Tensor) -> Tensor:
    with TemporaryDirectory() as folder:
        return pyro_tvae.encode(*pyro_tvae.load(pyro_tvae.save(Path(folder) / "m.safetensors", model, guide)), x)


@pytest.mark.parametrize("use", USES)
def test_what_was_loaded_into_the_store_is_judged_before_any_call(use: str) -> None:
    """As a call would take it over; and the store goes on holding it."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model = TVAE((1, 4, 4), 4, 2, 4, CapsuleRoll(4, 0), name="judged_model")
    guide, x = MeanFieldGuide(model, name="judged_guide"), torch.rand(3, 4, 1, 4, 4)
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO())
    svi.step(x)
    before, stored = USES[use](model, guide, x), pyro.get_param_store().get_state()
    stored = copy.deepcopy(stored)
    for _ in range(5):
        svi.step(x)
    assert not torch.equal(USES[use](model, guide, x), before)
    pyro.get_param_store().set_state(stored)
    assert torch.equal(USES[use](model, guide, x), before)
    assert {*pyro.get_param_store().keys()} == {*stored["params"]}
    svi.step(x)
    assert not torch.equal(USES[use](model, guide, x), before)
