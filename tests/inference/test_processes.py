"""Several processes: two that share a batch compute what one does with all of it, on data and noise of their own."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.inference import TrainerOptions, fit

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without distributed")

# Children of one process that has imported everything, and never used a thread.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["pyro_tvae.inference.training", "pyro_tvae.experiments.commands.train", "tensorboard.summary"]
)

CODE = """
import os, warnings
os.environ.update(ENVIRONMENT)
import torch
torch.set_num_threads(1)
from lightning.pytorch.callbacks import Callback
from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.inference import fit

torch.manual_seed(0)
model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0), mu=3.0)
guide = MeanFieldGuide(model, initial_log_variance=SPREAD)
x = torch.rand(8, 3, 1, 2, 2, generator=torch.Generator().manual_seed(7))

class Witness(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        seen.append((batch[0].clone(), torch.randn(3, generator=torch.Generator().set_state(torch.get_rng_state()))))

seen = []
with warnings.catch_warnings(record=True) as told:
    fit(model, guide, x, batch_size=8 // N, max_epochs=EPOCHS, directory=FOLDER, resume=RESUME, seed=1,
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9), warmup_steps=0, accelerator="cpu", devices=N,
        strategy=STRATEGY if N > 1 else "auto", progress=False, callbacks=[Witness()])
rank = int(os.environ.get("LOCAL_RANK", 0))
weights = [p.detach() for m in (model, guide) for p in m.parameters()]
torch.save({"seen": seen, "weights": weights, "told": [str(one.message) for one in told]}, f"{FOLDER}/{rank}.pt")
"""


def trained(
    folder: Path, n: int, *, epochs: int = 3, resume: Path | None = None, spread: float = -60.0, strategy: str = "ddp"
) -> list[dict[str, Any]]:
    """What each of n processes saw and ended with."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    processes = []
    for rank in range(n):
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        names = {
            "ENVIRONMENT": where if n > 1 else {},
            "N": n,
            "EPOCHS": epochs,
            "FOLDER": str(folder),
            "RESUME": resume and str(resume),
            "SPREAD": spread,
            "STRATEGY": strategy,
        }
        processes.append(CONTEXT.Process(target=exec, args=(CODE, names)))
        processes[-1].start()
    for process in processes:
        process.join(240)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0] * n
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(n)]


def close(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process with the whole batch and next to no noise, so that results can be compared."""
    return trained(tmp_path_factory.mktemp("alone"), 1)[0]


def test_two_processes_take_the_steps_of_one_with_the_doubled_batch(alone: dict[str, Any], tmp_path: Path) -> None:
    both = trained(tmp_path / "both", 2)
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"0.pt", "1.pt", "checkpoints", "logs"}
    for rank in both:
        assert close(rank["weights"], alone["weights"])
    assert not close(alone["weights"], trained(tmp_path / "less", 1, epochs=2)[0]["weights"])  # three steps do matter


def test_each_process_has_its_own_data_and_its_own_noise(tmp_path: Path) -> None:
    first, second = (rank["seen"] for rank in trained(tmp_path / "noisy", 2, spread=-1.0))
    assert len(first) == len(second) == 3
    for (x, noise), (other_x, other_noise) in zip(first, second, strict=True):
        pixels = torch.cat([x, other_x]).flatten(1)
        assert len(pixels.unique(dim=0)) == 8
        assert not torch.equal(noise, other_noise)


def test_a_fit_of_one_process_goes_on_with_two_and_back(alone: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "moves"
    last = folder / "checkpoints" / "last.ckpt"
    trained(folder, 1, epochs=1)
    first, _ = trained(folder, 2, epochs=2, resume=last)
    assert len(torch.load(last, weights_only=True)["callbacks"]["RandomStates"]["ranks"]) == 2
    said = "fit: goes on with processes=2, which was 1; batch_size=4, which was 8: from here on it is not the fit that"
    assert any(text.startswith(said) for text in first["told"])
    final = trained(folder, 1, epochs=3, resume=last)
    assert close(final[0]["weights"], alone["weights"])


def test_two_processes_resumed_end_as_two_that_were_not(tmp_path: Path) -> None:
    """With every strategy of several processes that is not refused."""
    whole = trained(tmp_path / "whole", 2, spread=-1.0, strategy="ddp_find_unused_parameters_false")
    trained(tmp_path / "parts", 2, epochs=2, spread=-1.0, strategy="ddp_find_unused_parameters_true")
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    parts = trained(tmp_path / "parts", 2, resume=last, spread=-1.0)
    for one, two in zip(whole, parts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one["weights"], two["weights"], strict=True))
        assert torch.equal(one["seen"][-1][1], two["seen"][-1][1])


WHOLE = {"ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"}  # of which the tests above are


@pytest.mark.parametrize("name", sorted({*StrategyRegistry.available_strategies()} - WHOLE))
def test_every_other_strategy_of_lightnings_is_refused_or_trains_here(name: str) -> None:
    """A name that Lightning gets anew has to be placed: it fails, or its history is home."""
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0), mu=3.0)
    options = TrainerOptions("cpu", devices=1 if name == "single_device" else 2, strategy=name)
    if name == "single_device":
        assert fit(model, MeanFieldGuide(model), torch.rand(80, 3, 1, 2, 2), max_epochs=1, trainer=options).rows
        return
    with pytest.raises(ValueError, match=f"^fit: the strategy '{name}' .*'ddp'") as caught:
        fit(model, MeanFieldGuide(model), torch.rand(8, 3, 1, 2, 2), trainer=options)
    assert "\n" not in str(caught.value)


def test_a_notebooks_several_devices_are_refused_however_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0), mu=3.0)
    guide, x = MeanFieldGuide(model), torch.rand(8, 3, 1, 2, 2)
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    for strategy in ("auto", "ddp", "ddp_notebook", DDPStrategy(start_method="fork")):
        with pytest.raises(ValueError, match=r"in a notebook devices=1\.$"):
            fit(model, guide, x, trainer=TrainerOptions("cpu", devices=2, strategy=strategy))  # type: ignore[arg-type]
    ready = lightning.Trainer(accelerator="cpu", devices=2, logger=False, max_epochs=1)
    with pytest.raises(ValueError, match=r"in a notebook devices=1\.$"):
        fit(model, guide, x, trainer=ready)
