"""What decays in an optimizer's state ends as zero, and weights do not notice."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from pyro_tvae import TVAE, MeanFieldGuide
from pyro_tvae.inference import TrainerOptions, fit
from pyro_tvae.inference.subnormals import sweep

OPTIMIZERS = {
    "adam": lambda parameters: Adam(parameters, lr=1e-3, fused=True),
    "sgd": lambda parameters: SGD(parameters, lr=1e-3, momentum=0.9),
}
MOMENT = {"adam": "exp_avg", "sgd": "momentum_buffer"}


def n_subnormal(value: Tensor) -> int:
    return int(((value != 0) & (value.abs() < torch.finfo(value.dtype).tiny)).sum())


class Plant(Callback):
    """After the first step, what a gradient leaves behind that is zero from then on."""

    def __init__(self, weight: nn.Parameter, name: str) -> None:
        self.weight, self.name, self.moment = weight, name, torch.empty(0)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        [optimizer] = trainer.optimizers
        self.moment = optimizer.state[self.weight][self.name]
        if trainer.global_step == 1:
            self.moment[:, 0] = 1e-28


def trained(data: Tensor, *, moment: str = "exp_avg", **options: object) -> tuple[list[Tensor], Tensor]:
    """Weights after a fit from the same start, and the moments of the first layer."""
    torch.manual_seed(0)
    model = TVAE((1, 4, 4), n_frames=3, n_capsules=2, capsule_dim=3)
    guide = MeanFieldGuide(model)
    plant = Plant(next(guide.z_encoder.parameters()), moment)
    fit(model, guide, data, warmup_steps=0, progress=False, trainer=TrainerOptions(callbacks=[plant]), **options)
    return [*model.parameters(), *guide.parameters()], plant.moment


def still_pixel() -> Tensor:
    """Four sequences with a pixel that is black in all images: its weights get no gradient."""
    x = torch.rand(4, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[..., 0, 0] = 0
    return x


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_moment_without_gradients_ends_as_zero(name: str) -> None:
    _, moments = trained(still_pixel(), moment=MOMENT[name], optimizer=OPTIMIZERS[name], max_epochs=301)
    # 1e-28 shrinks to 2e-42 in 300 steps, were it not swept out
    assert not moments[:, 0].any()
    assert moments[:, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_normal_stays(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = Adam([weight])
    tiny = torch.finfo(dtype).tiny
    moment = torch.tensor([tiny * 1e6, 1e-3, tiny * 10, tiny / 4], dtype=dtype)
    assert n_subnormal(moment) == 1
    kept = moment[:2].clone()
    optimizer.state[weight] = {"step": torch.tensor(7.0), "exp_avg": moment, "exp_avg_sq": moment.clone()}
    sweep(optimizer)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[weight][key][:2], kept)
        assert not optimizer.state[weight][key][2:].any()
    assert optimizer.state[weight]["step"] == 7


def test_state_of_any_kind_is_left_alone() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer: Optimizer = SGD([weight], lr=0.1)
    half = torch.tensor([1e-6, 1.0], dtype=torch.float16)
    sparse = torch.tensor([0.0, 1e-40]).to_sparse()
    optimizer.state[weight] = {"count": 3, "none": None, "half": half, "sparse": sparse, "list": [torch.zeros(1)]}
    sweep(optimizer)
    assert half[0] > 0
    assert sparse.to_dense()[1] > 0


def test_sweeping_moves_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    swept, moments = trained(still_pixel(), max_epochs=301)
    monkeypatch.setattr("pyro_tvae.inference.fitting.sweep", lambda optimizer: None)
    unswept, others = trained(still_pixel(), max_epochs=301)
    assert not moments[:, 0].any()
    assert n_subnormal(others[:, 0]) > 0
    assert all(torch.equal(one, other) for one, other in zip(swept, unswept, strict=True))


@pytest.mark.parametrize("epochs", [3, 4])
def test_a_resumed_run_sweeps_when_one_left_alone_does(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_tvae.inference.fitting.EVERY", 2)
    monkeypatch.setattr("pyro_tvae.inference.subnormals.MARGIN", 6.5e9)  # what is planted is swept out after step 4
    alone, moments = trained(still_pixel(), max_epochs=6)
    trained(still_pixel(), max_epochs=epochs, directory=tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    resumed, others = trained(still_pixel(), max_epochs=6, directory=tmp_path, resume=last)
    assert not moments[:, 0].any()
    assert torch.equal(moments, others)
    assert all(torch.equal(one, other) for one, other in zip(alone, resumed, strict=True))
