"""What a user brings to a fit: optimizers, pixels, missing frames, covariates, guides and loops of their own."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as lightning
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal, AutoNormalMessenger
from pyro.nn import PyroSample
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    get_worker_info,
)

from pyro_tvae import (
    TVAE,
    CapsuleRoll,
    ContinuousBernoulli,
    Decoder,
    Encoder,
    Guide,
    GuideList,
    Likelihood,
    MeanFieldGuide,
    Normal,
    default_guide,
    encode,
    reconstruct,
)
from pyro_tvae.experiments.datasets import from_torch
from pyro_tvae.inference import (
    ELBO,
    Annealing,
    Fitting,
    History,
    TrainerOptions,
    annealed_importance,
    fit,
    forward_roll,
    log_likelihood,
    log_weights,
    nuts,
    predictive_check,
    to_arviz,
)
from pyro_tvae.inference.progress import progress_bar
from pyro_tvae.opening import Opened

FRAME = (1, 2, 3)


def start(likelihood: Likelihood | None = None) -> tuple[TVAE, Guide]:
    torch.manual_seed(0)
    model = TVAE(FRAME, 4, 1, 4, CapsuleRoll(4, 0), likelihood=likelihood, mu=3.0)
    return model, default_guide(model)


def sequences(n: int = 16) -> Tensor:
    return torch.rand(n, 4, *FRAME, generator=torch.Generator().manual_seed(7))


def quick(model: TVAE, guide: Any, data: Any = None, **options: Any) -> History:
    options = {"max_epochs": 2, "seed": 1, "accelerator": "cpu", "progress": False} | options
    trainer = TrainerOptions(
        **{one.name: options.pop(one.name) for one in fields(TrainerOptions) if one.name in options}
    )
    return fit(model, guide, sequences() if data is None else data, trainer=trainer, **options)


def weights(*modules: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()]).clone()


# --- optimizers ------------------------------------------------------------------------------------------------------

TWINS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "Adam": (lambda: pyro.optim.Adam({"lr": 1e-2}), lambda p: torch.optim.Adam(p, lr=1e-2)),
    "SGD": (lambda: pyro.optim.SGD({"lr": 1e-2, "momentum": 0.9}), lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9)),
    "ClippedAdam": (
        lambda: pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.9}),
        lambda p: __import__("pyro.optim.clipped_adam", fromlist=["ClippedAdam"]).ClippedAdam(p, lr=1e-2, lrd=0.9),
    ),
    "AdagradRMSProp": (
        lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
        lambda p: __import__("pyro.optim.adagrad_rmsprop", fromlist=["A"]).AdagradRMSProp(p, eta=0.1),
    ),
}


@pytest.mark.parametrize(("theirs", "ours"), TWINS.values(), ids=TWINS)
def test_an_optimizer_of_pyro_is_the_torch_optimizer_that_it_wraps(
    theirs: Callable[[], Any], ours: Callable[..., Any]
) -> None:
    before = weights(*start())
    one, two = start(), start()
    quick(*one, optimizer=theirs())
    quick(*two, optimizer=ours)
    assert torch.equal(weights(*one), weights(*two))
    assert not torch.equal(weights(*one), before)


def test_arguments_by_parameter_are_those_of_their_names() -> None:
    model, guide = start()
    before, kept = weights(model), weights(guide)
    names: list[str] = []

    def rate(name: str) -> dict[str, float]:
        names.append(name)
        return {"lr": 0.1 if name.startswith(model._pyro_name) else 0.0}

    quick(model, guide, optimizer=pyro.optim.SGD(rate))
    assert not torch.equal(weights(model), before)
    assert torch.equal(weights(guide), kept)
    assert f"{model._pyro_name}.mu" in names


def test_gradients_are_clipped_parameter_by_parameter() -> None:
    model, guide = start()
    before = [p.detach().clone() for p in [*model.parameters(), *guide.parameters()]]
    quick(model, guide, max_steps=1, optimizer=pyro.optim.SGD({"lr": 1.0}, {"clip_norm": 0.01}))
    moved = [float((p.detach() - b).norm()) for p, b in zip([*model.parameters(), *guide.parameters()], before)]  # noqa: B905
    assert max(moved) == pytest.approx(0.01, rel=1e-3)
    assert sum(m > 0.009 for m in moved) > 1


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_scheduler_of_pyro_is_stepped_once_an_epoch() -> None:
    rates = Rates()
    scheduler = pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": 0.5})
    quick(*start(), optimizer=scheduler, callbacks=[rates])
    assert rates.seen == pytest.approx([0.01, 0.01, 0.005, 0.005])


def test_a_plateau_lowers_the_rate_by_the_validation_elbo() -> None:
    rates = Rates()

    def plateau(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", patience=0, threshold=1e6, threshold_mode="abs"
        )

    quick(*start(), validation=sequences(4), schedule=plateau, callbacks=[rates], max_epochs=3)
    assert rates.seen[0] == 1e-3
    assert rates.seen[-1] < 1e-3


REFUSED: dict[str, tuple[str, Callable[[TVAE, Guide], dict[str, Any]]]] = {
    "an instance": ("is of type Adam", lambda m, g: {"optimizer": torch.optim.Adam(m.parameters())}),
    "no return": ("made a NoneType", lambda m, g: {"optimizer": lambda p: None}),
    "none": ("holds 0 of", lambda m, g: {"optimizer": lambda p: torch.optim.SGD([torch.zeros(1)], lr=1)}),
    "some": ("leaves out", lambda m, g: {"optimizer": lambda p: torch.optim.SGD(m.parameters(), lr=1)}),
    "used": (
        "the state of another run",
        lambda m, g: {"optimizer": (o := pyro.optim.Adam({"lr": 1}), o.set_state({"a": {}}))[0]},
    ),
    "several": (
        "wraps no torch optimizer",
        lambda m, g: {"optimizer": pyro.optim.multi.MixedMultiOptimizer([(["a"], pyro.optim.Adam({"lr": 1}))])},
    ),
    "plateau": (
        "mode='max'",
        lambda m, g: {"schedule": lambda o, n: torch.optim.lr_scheduler.ReduceLROnPlateau(o)},
    ),
    "schedule": ("schedule made a NoneType", lambda m, g: {"schedule": lambda o, n: None}),
    "Renyi": ("RenyiELBO has no differentiable loss", lambda m, g: {"objective": RenyiELBO(num_particles=2)}),
    "patience": ("patience is 0", lambda m, g: {"patience": 0, "validation": sequences()}),
    "logger": ("expected a logger", lambda m, g: {"logger": "wandb"}),
    "[-1, 1]": (r"\(x \+ 1\) / 2", lambda m, g: {"data": sequences() * 2 - 1}),
    "bytes": ("divide bytes by 255", lambda m, g: {"data": sequences() * 255}),
    "validation": ("in validation, x holds", lambda m, g: {"validation": sequences() * 255}),
    "a loader": ("in validation", lambda m, g: {"validation": DataLoader(TensorDataset(sequences() * 9), 4)}),
    "empty loader": ("has no batches", lambda m, g: {"validation": DataLoader(TensorDataset(sequences(0)), 4)}),
}


@pytest.mark.parametrize(("sentence", "options"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_is_refused_before_the_first_step(
    sentence: str, options: Callable[[TVAE, Guide], dict[str, Any]]
) -> None:
    model, guide = start()
    before = weights(model, guide)
    with pytest.raises((TypeError, ValueError), match=sentence) as caught:
        quick(model, guide, **options(model, guide))
    assert "\n" not in str(caught.value)
    assert torch.equal(weights(model, guide), before)


def test_frozen_parameters_stay_and_the_others_are_trained() -> None:
    model, guide = start()
    model.decoder.requires_grad_(False)
    before, kept = weights(guide), weights(model.decoder)
    quick(model, guide, optimizer=lambda p: torch.optim.Adam([q for q in p if q.requires_grad]))  # type: ignore[attr-defined]
    assert torch.equal(weights(model.decoder), kept)
    assert not torch.equal(weights(guide), before)


def test_an_optimizer_that_moves_nothing_is_said() -> None:
    with pytest.warns(UserWarning, match="no parameter has moved in 4 steps"):
        quick(*start(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))


# --- pixels ----------------------------------------------------------------------------------------------------------

ENTRIES: dict[str, Callable[[TVAE, Guide, Tensor], object]] = {
    "encode": lambda m, g, x: encode(m, g, x),
    "log_likelihood": lambda m, g, x: log_likelihood(m, g, x, 2),
    "log_weights": lambda m, g, x: log_weights(m, g, x, 2),
    "to_arviz": lambda m, g, x: to_arviz(m, g, x, draws=2),
    "forward_roll": lambda m, g, x: forward_roll(m, g, x),
    "annealing": lambda m, g, x: annealed_importance(m, g, x, annealing=Annealing(num_temperatures=3)),
    "nuts": lambda m, g, x: nuts(m, x, init=g, num_samples=1, warmup_steps=1, num_chains=1),
    "fit": lambda m, g, x: quick(m, g, x, max_epochs=1),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize("likelihood", [None, ContinuousBernoulli()], ids=["Bernoulli", "continuous"])
def test_pixels_outside_the_likelihoods_interval_are_refused_everywhere(
    entry: Callable[[TVAE, Guide, Tensor], object], likelihood: Likelihood | None
) -> None:
    with pytest.raises(ValueError, match=r"x holds pixels from -\S+ to \S+; \w+ takes 0 to 1"):
        entry(*start(likelihood), sequences(4) * 2 - 1)


def test_normal_takes_any_pixels_and_ones_own_law_says_what_it_takes() -> None:
    class Exponential(Likelihood):
        def forward(self, parameters: Tensor) -> Any:
            return dist.Exponential(parameters.exp())

    x = sequences(4) * 4 - 2
    encode(*start(Normal()), x)
    assert Exponential().interval(x) == (0.0, float("inf"))
    with pytest.raises(ValueError, match="Exponential takes 0 to inf"):
        encode(*start(Exponential()), x)


# --- missing frames --------------------------------------------------------------------------------------------------


def gaps() -> Tensor:
    return torch.rand(16, 4, generator=torch.Generator().manual_seed(3)) < 0.7


def filled(value: float) -> Tensor:
    return torch.where(gaps()[..., None, None, None], sequences(), value)


def test_the_gradient_of_svi_does_not_depend_on_what_unseen_frames_hold() -> None:
    found = []
    for value in (float("nan"), 0.3, 1e9):
        model, guide = start()
        torch.manual_seed(4)
        Trace_ELBO()(model, guide)(filled(value), gaps()).backward()
        found.append(torch.cat([p.grad.flatten() for p in [*model.parameters(), *guide.parameters()]]))
    assert found[0].isfinite().all()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("mapping", [True, False])
def test_frames_that_are_missing_are_not_trained_on(mapping: bool) -> None:
    runs = []
    for value in (float("nan"), 0.3):
        data = TensorDataset(filled(value), gaps())
        loader = DataLoader(data, 8, collate_fn=lambda items: _collated(items, mapping))
        model, guide = start()
        history = quick(model, guide, loader, validation=loader, max_epochs=6)
        runs.append((weights(model, guide), history.rows))
    assert runs[0][0].isfinite().all()
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    everything = start()
    quick(*everything, DataLoader(TensorDataset(filled(0.3)), 8), max_epochs=6)
    assert not torch.equal(weights(*everything), runs[0][0])


def _collated(items: list[Any], mapping: bool) -> Any:
    x, observed = (torch.stack(part) for part in zip(*items))  # noqa: B905
    return {"x": x, "observed": observed} if mapping else (x, observed)


def test_values_are_per_frame_that_exists() -> None:
    model, guide = start()
    loader = DataLoader(TensorDataset(filled(0.3), gaps()), 5)
    torch.manual_seed(0)
    history = quick(model, guide, loader, validation=loader, max_epochs=1, optimizer=lambda p: torch.optim.SGD(p, 1e-9))
    with torch.no_grad():
        found = [ELBO(model, guide)(filled(0.3), gaps()).elbo.sum() / gaps().sum() for _ in range(200)]
    mean, spread = float(torch.stack(found).mean()), float(torch.stack(found).std())
    assert abs(history.column("val/elbo")[1][0] - mean) < 5 * spread  # one false alarm in a million seeds


def test_a_batch_without_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="no frame of batch 0 was observed"):
        quick(*start(), DataLoader(TensorDataset(sequences(), torch.zeros(16, 4, dtype=torch.bool)), 8))


# --- covariates, guides, objectives, loops ---------------------------------------------------------------------------


class Labeled(TVAE):
    covariates = frozenset({"label"})

    def forward(self, x: Any = None, observed: Any = None, *, label: Tensor, n_sequences: Any = None) -> Tensor:  # type: ignore[override]
        self.seen = label
        return super().forward(x, observed, n_sequences=n_sequences)


def test_covariates_reach_the_programs_that_take_them() -> None:
    model = Labeled(FRAME, 4, 1, 4, CapsuleRoll(4, 0))
    items = [{"x": x, "label": i, "index": i} for i, x in enumerate(sequences())]
    quick(model, default_guide(model), DataLoader(items, 8), max_steps=1)
    assert model.seen.tolist() == list(range(8))
    with pytest.raises(ValueError, match="the model needs 'label'"):
        quick(model, default_guide(model))


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_an_autoguide_has_its_parameters_when_the_optimizer_is_made(kind: Any) -> None:
    model, _ = start()
    guide = kind(pyro.poutine.block(model, hide=["x", "t"]))
    module = Fitting(model, guide)
    assert not list(guide.parameters())
    state = torch.get_rng_state()
    module.rehearse(sequences())
    assert torch.equal(torch.get_rng_state(), state)
    assert list(guide.parameters())
    held = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert all(id(p) in held for p in guide.parameters())


def test_a_parameter_of_pyros_store_alone_is_refused() -> None:
    class Own(TVAE):
        def forward(self, *arguments: Any, **options: Any) -> Tensor:
            pyro.param("bias", torch.zeros(1))
            return super().forward(*arguments, **options)

    model = Own(FRAME, 4, 1, 4, CapsuleRoll(4, 0))
    with pytest.raises(ValueError, match=r"the model has a statement pyro.param\('bias'\)"):
        quick(model, default_guide(model))


@pytest.mark.parametrize("objective", [Trace_ELBO, Trace_ELBO(), TraceMeanField_ELBO], ids=["class", "object", "mean"])
def test_an_elbo_of_pyro_is_an_objective(objective: Any) -> None:
    model, guide = start()
    x = sequences()
    module = Fitting(model, guide, objective=objective)
    module.objective.beta = 0.5
    ours = ELBO(model, guide, beta=0.5)
    found = torch.stack([module.objective(x).objective.sum().detach() for _ in range(300)])
    expected = torch.stack([ours(x).objective.sum().detach() for _ in range(300)])
    error = float((found.var() / 300 + expected.var() / 300).sqrt())
    assert abs(float(found.mean() - expected.mean())) < 5 * error  # one false alarm in a million seeds
    before = weights(model, guide)
    history = quick(model, guide, validation=x, objective=objective, max_epochs=6)
    assert not torch.equal(weights(model, guide), before)
    assert history.column("train/objective")[1]
    assert len(history.column("val/elbo")[1]) == 6


def test_gathered_gradients_are_those_of_a_larger_batch() -> None:
    one, two = start(), start()
    for parts, options in ((one, {"batch_size": 16}), (two, {"batch_size": 8, "accumulate_grad_batches": 2})):
        with torch.no_grad():
            for encoder in (parts[1].z_encoder, parts[1].u_encoder):
                encoder.network[-1].bias[4:] = -30.0  # no spread, so that draws do not matter
        history = quick(*parts, max_epochs=3, optimizer=lambda p: torch.optim.SGD(p, lr=1e-3), **options)
        assert history.rows == []
    assert torch.allclose(weights(*one), weights(*two), atol=1e-5)
    history = quick(*start(), accumulate_grad_batches=2, max_epochs=20)
    assert history.column("train/elbo")[0] == [10, 20]


def test_loggers_of_ones_own_take_the_place_of_the_usual(tmp_path: Path) -> None:
    quick(*start(), max_epochs=6, directory=tmp_path / "run", logger=CSVLogger(tmp_path / "mine"))
    assert list((tmp_path / "mine").rglob("metrics.csv"))
    assert not (tmp_path / "run" / "logs").exists()


def test_a_trainer_of_ones_own_trains_and_validates(tmp_path: Path) -> None:
    model, guide = start()
    before = weights(model, guide)
    loader = DataLoader(TensorDataset(sequences()), 8)
    trainer = lightning.Trainer(
        max_epochs=6, accelerator="cpu", logger=CSVLogger(tmp_path), enable_progress_bar=False, log_every_n_steps=10
    )
    trainer.fit(Fitting(model, guide), loader, loader)
    assert not torch.equal(weights(model, guide), before)
    assert "val/elbo" in trainer.callback_metrics


# --- going on, and failing -------------------------------------------------------------------------------------------


def test_a_learning_rate_given_anew_is_taken_over(tmp_path: Path) -> None:
    first = quick(*start(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-3), directory=tmp_path)
    rates = Rates()
    options = {"max_epochs": 3, "resume": first.last_checkpoint, "callbacks": [rates]}
    quick(*start(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-4), **options)
    assert rates.seen == [1e-4] * 2
    with pytest.raises(ValueError, match=r"the checkpoint's optimizer is torch.optim.adam.Adam of \d+ parameters"):
        quick(*start(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-4), **options)


def test_a_schedule_moves_with_the_learning_rate(tmp_path: Path) -> None:
    def cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)

    rates = [Rates(), Rates(), Rates()]
    quick(*start(), optimizer=lambda p: torch.optim.SGD(p, lr=0.02), schedule=cosine, callbacks=rates[:1], max_epochs=4)
    first = quick(*start(), optimizer=lambda p: torch.optim.SGD(p, lr=0.01), schedule=cosine, directory=tmp_path)
    options = {"schedule": cosine, "resume": first.last_checkpoint, "max_epochs": 4}
    quick(*start(), optimizer=lambda p: torch.optim.SGD(p, lr=0.02), callbacks=rates[1:2], **options)
    assert rates[1].seen == pytest.approx(rates[0].seen[4:])


def test_a_patience_given_anew_wins(tmp_path: Path) -> None:
    rising: Any = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.001, maximize=True), "validation": sequences()}
    first = quick(*start(), directory=tmp_path, patience=2, max_epochs=30, **rising)
    stopped = len(first.column("val/elbo")[0])
    assert stopped < 8
    options = {"resume": first.last_checkpoint, "max_epochs": 30, **rising}
    again = quick(*start(), directory=tmp_path, patience=6, **options)
    assert len(again.column("val/elbo")[0]) == stopped + 4


def test_what_was_trained_outlives_what_fails_after_it(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_end(self, *_: Any) -> None:
            raise RuntimeError("a fault")

    model, guide = start()
    before = weights(model, guide)
    with pytest.raises(RuntimeError, match="a fault") as caught:
        quick(model, guide, directory=tmp_path, callbacks=[Fails()], max_epochs=6)
    assert not torch.equal(weights(model, guide), before)
    assert caught.value.history.column("train/elbo")[0] == [10]  # type: ignore[attr-defined]
    assert "last.ckpt" in caught.value.__notes__[0]


class Without(lightning.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(sequences()), 8)


class Wrong(Without):
    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(sequences()[:, :3]), 8)


class Empty(Without):
    def val_dataloader(self) -> list[DataLoader]:
        return []


class Two(Without):
    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(TensorDataset(sequences()), 8) for _ in range(2)]


def test_data_modules_are_looked_at_before_the_first_step(tmp_path: Path) -> None:
    history = quick(*start(), Without(), directory=tmp_path)
    assert history.last_checkpoint is not None
    assert history.best_checkpoint is None
    faults = ((Wrong(), "this model expects"), (Empty(), "has no batches"), (Two(), "there are 2 validation loaders"))
    for data, sentence in faults:
        model, guide = start()
        before = weights(model, guide)
        with pytest.raises(ValueError, match=sentence):
            quick(model, guide, data)
        assert torch.equal(weights(model, guide), before)


def test_a_notebook_is_redrawn_as_often_as_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_bar(1, "bar").mininterval == 10
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    assert progress_bar(1, "bar").mininterval == 0.5


# --- what a first user of the page on bringing one's own met ---------------------------------------------------------


class Headed(TVAE):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.head = nn.Linear(self.n_latents, 3)

    def heads(self, t: Tensor, label: Tensor | None = None) -> None:
        if label is not None:
            pyro.sample("label", dist.Categorical(logits=self.head(t.flatten(-2).mean(-2))), obs=label)


def headed() -> tuple[TVAE, Guide]:
    model = Headed(FRAME, 4, 1, 4, CapsuleRoll(4, 0))
    return model, default_guide(model)


def labeled(name: str, shift: int = 0) -> DataLoader:
    return DataLoader([{"x": x, name: i % 3 + shift, "index": i} for i, x in enumerate(sequences())], 8)


def test_a_misspelt_entry_of_a_batch_is_refused_before_the_first_step() -> None:
    model, guide = headed()
    before, head = weights(model, guide), weights(model.head)
    with pytest.raises(ValueError, match="entry 'lable', which neither model nor guide takes, and none called 'label'"):
        quick(model, guide, labeled("lable"))
    assert torch.equal(weights(model, guide), before)
    quick(model, guide, labeled("label"))
    assert not torch.equal(weights(model.head), head)


def test_a_label_that_is_no_class_is_said_to_be_that() -> None:
    with pytest.raises(ValueError, match=r"within the support .* such as a label that is none of the cl") as caught:
        quick(*headed(), labeled("label", shift=5))
    assert "\n" not in str(caught.value)
    assert "encoder" not in str(caught.value)


def test_covariates_are_checked_wherever_they_are_taken() -> None:
    model, guide = headed()
    for judge in (encode, reconstruct, lambda *a, **k: log_likelihood(*a, 2, **k)):
        for given, sentence in (({"lable": torch.zeros(16)}, "taken neither"), ({"label": torch.zeros(3)}, "16 seq")):
            with pytest.raises(ValueError, match=sentence):
                judge(model, guide, sequences(), covariates=given)


def bayesian() -> tuple[TVAE, str]:
    model, _ = start()
    pyro.nn.module.to_pyro_module_(model.decoder)
    model.decoder[0].weight = pyro.nn.PyroSample(dist.Normal(0.0, 0.5).expand((8, 4)).to_event(2))
    return model, next(iter(model.weight_sites()))


def test_random_weights_are_judged_by_particles_whatever_the_store_holds() -> None:
    model, site = bayesian()
    guide = GuideList(default_guide(model), AutoNormal(poutine.block(model, expose=[site])))
    first, second = (log_likelihood(model, guide, sequences(), 3) for _ in range(2))
    assert first.iwae.isfinite().all()
    assert second.iwae.isfinite().all()
    with pytest.raises(ValueError, match=f"latent site '{site}' that the guide lacks"):
        log_likelihood(model, default_guide(model), sequences(), 3)


def pair_of_random_weights(model: TVAE) -> GuideList:
    weights = AutoNormal(poutine.block(model, expose=[*model.weight_sites()]), init_scale=0.01)
    return GuideList(default_guide(model), weights)


class Asked(ELBO):
    """Notes of how many sequences it was told."""

    told: list[int | None]

    def __init__(self, *pair: Any) -> None:
        super().__init__(*pair)
        self.told = []

    def forward(self, *given: Any, **options: Any) -> Any:
        self.told.append(self.dataset_size)
        return super().forward(*given, **options)


def test_random_weights_count_once_for_the_sequences_that_are_trained_on() -> None:
    data, some = TensorDataset(sequences(40)), [*range(16)]
    loaders = {
        "subset": DataLoader(Subset(data, some), 8, shuffle=True),
        "sampler": DataLoader(data, 8, sampler=SubsetRandomSampler(some)),
        "batches": DataLoader(Subset(data, some), batch_sampler=BatchSampler(RandomSampler(some), 8, False)),
    }
    for loader in loaders.values():
        made: list[Asked] = []
        model, _ = bayesian()
        fit(
            *(model, pair_of_random_weights(model), loader),
            objective=lambda *pair, made=made: made.append(Asked(*pair)) or made[-1],
            max_epochs=1,
            progress=False,
        )
        assert made[0].told[-2:] == [16, 16]


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(sequences(16))


def test_where_nobody_says_how_many_sequences_there_are_random_weights_are_told_of() -> None:
    model, _ = bayesian()
    for objective in (ELBO, partial(ELBO, dataset_size=16)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fit(
                *(model, pair_of_random_weights(model), DataLoader(Stream(), 8)),
                objective=objective,
                max_epochs=1,
                progress=False,
            )
        said = [str(one.message) for one in told if "random weights counts whole in every batch" in str(one.message)]
        assert len(said) == (objective is ELBO)


def test_data_that_do_not_say_where_an_epoch_ends_are_told_of(tmp_path: Path) -> None:
    given: dict[str, Any] = {"max_epochs": 1, "progress": False, "directory": tmp_path}
    with pytest.warns(UserWarning, match="where they have no end, let their iterator end after as many as an epoch"):
        fit(*start(), DataLoader(Stream(), 8), **given)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "fit: the data do not say")
        fit(*start(), DataLoader(Stream(), 8), **given | {"directory": None})  # which could not be gone on with
        fit(*start(), sequences(16), **given)


class Once(IterableDataset[Tensor]):
    def __init__(self) -> None:
        self.sequences = iter(sequences(16))

    def __iter__(self) -> Iterator[Tensor]:
        return self.sequences


@pytest.mark.parametrize("which", ["data", "validation"])
def test_a_stream_that_can_be_read_once_is_told_of(which: str) -> None:
    """Else nothing was trained from the second epoch on, or the best weights were those of the first."""
    given: Any = {"data": sequences(16), "validation": sequences(8)} | {which: DataLoader(Once(), 8)}
    fit(*start(), **given, max_epochs=1, progress=False)
    given[which] = DataLoader(Once(), 8)
    with pytest.raises(ValueError, match=r"loader gave no batch in epoch 1; .* let their __iter__ make a new iterator"):
        fit(*start(), **given, max_epochs=3, progress=False)


class Tempered(MeanFieldGuide):
    """Keeps a number as torch's modules do, beside its tensors; none before it has trained."""

    number: int | None = None

    def posterior(self, *given: Any, **options: Any) -> Any:
        self.number = (self.number or 0) + self.training
        return super().posterior(*given, **options)

    def get_extra_state(self) -> dict[str, int] | None:
        return {"number": self.number} if self.number else None

    def set_extra_state(self, state: dict[str, int] | None) -> None:
        self.number = 1000 if state else None


def test_what_modules_keep_beside_their_tensors_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    given: dict[str, Any] = {"validation": sequences(8), "progress": False, "directory": tmp_path}
    model, _ = start()
    last = fit(model, Tempered(model), sequences(16), max_epochs=1, **given).last_checkpoint
    model, _ = start()
    guide = Tempered(model)
    fit(model, guide, sequences(16), max_epochs=2, resume=last, **given)
    assert (guide.number or 0) >= 1000
    fit(*(model, guide), sequences(16), max_epochs=2, **given | {"directory": None})  # the best are in memory
    model, guide = start()
    with pytest.raises(ValueError, match=r"guide\._extra_state is no tensor there and nothing here"):
        fit(model, guide, sequences(16), max_epochs=2, resume=last, **given)


class Augmented(Dataset[Tensor]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, item: int) -> Tensor:
        return 0.9 * sequences(16)[item] + 0.1 * torch.rand(())


def test_another_part_of_data_that_are_others_at_every_reading_is_told_of(tmp_path: Path) -> None:
    halves = {first: DataLoader(Subset(Augmented(), range(first, first + 8)), 4) for first in (0, 8)}
    given: dict[str, Any] = {"progress": False, "directory": tmp_path}
    last = fit(*start(), halves[0], max_epochs=1, **given).last_checkpoint
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "fit: ")
        fit(*start(), halves[0], max_epochs=2, resume=last, **given)
    with pytest.warns(UserWarning, match="fit: goes on with other data"):
        fit(*start(), halves[8], max_epochs=3, resume=last, **given)


def test_an_export_holds_no_draw_of_a_random_weight() -> None:
    model, site = bayesian()
    with pytest.raises(ValueError, match=f"^Decoder: the model has a random weight '{site}', of which no exported"):
        Decoder(model)
    t = torch.rand(16, *model.latent_shape)
    with pytest.raises(ValueError, match=rf"^decode: the model has a random weight '{site}', and no value of it holds"):
        predictive_check(model, t, sequences())
    with model.held({site: torch.zeros(8, 4)}):
        assert predictive_check(model, t, sequences(), 19).n_replicates == 19
    model, guide = start()
    model.mu = PyroSample(dist.Normal(1.0, 0.1))
    Decoder(model)  # which leaves it out
    values = {site: torch.ones(4, 1, 4) for site in ("z", *model.energies)}
    with pytest.raises(ValueError, match=r"^compose: the model has a random weight '.*mu', and no value of it holds"):
        model.compose(values)
    with pytest.raises(ValueError, match=r"random weight '.*mu' that the guide lacks"):
        Encoder(model, guide)


def test_a_second_item_that_may_be_a_mask_is_told_of() -> None:
    x, mask = sequences(8), torch.ones(8, 4)
    mask[:, 2] = 0
    for other, told in ((mask, True), (mask.byte(), True), (mask.bool(), False), (mask + 0.5, False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(*start(), DataLoader(TensorDataset(x, other), 4), max_epochs=1, progress=False)
        assert any("where it says which frames exist" in str(one.message) for one in caught) == told


class Opening(Dataset[Tensor]):
    """Opens its file when it is first asked, so that every worker has one of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, cast("BufferedReader | None", None)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, item: int) -> Tensor:
        if self.file is None:
            self.file = self.path.open("rb")
        self.file.seek(item * 96)
        return torch.frombuffer(bytearray(self.file.read(96)), dtype=torch.float32).reshape(4, 1, 2, 3)


def test_files_that_workers_are_to_open_stay_closed_in_this_process(tmp_path: Path) -> None:
    """Open ones would be shared by workers that are forked, and with them the place that is read at."""
    (tmp_path / "frames").write_bytes(sequences(16).numpy().tobytes())
    one, two = Opening(tmp_path / "frames"), Opening(tmp_path / "frames")
    data: ConcatDataset[Tensor] = ConcatDataset([Subset(one, range(8)), two])
    workers = {"num_workers": 1, "multiprocessing_context": "fork"}
    fit(*start(), DataLoader(data, 8, **workers), max_epochs=1, directory=tmp_path / "fit", progress=False)
    assert one.file is two.file is None


class Place(Opening):
    """Each item is where its file was read at before."""

    def __getitem__(self, item: int) -> Any:
        place = 0 if self.file is None else self.file.tell()
        super().__getitem__(item)
        return place


def test_data_that_are_read_again_are_opened_in_every_process_that_reads(tmp_path: Path) -> None:
    (tmp_path / "frames").write_bytes(sequences(16).numpy().tobytes())
    places = Opened(Place(tmp_path / "frames"))
    assert [places[3], places[3]] == [0, 4 * 96]
    loader: Any = DataLoader(places, 1, num_workers=1, multiprocessing_context="fork")  # type: ignore[arg-type]
    assert [int(place) for place in loader][:2] == [0, 96]
    films = Opening(tmp_path / "frames")
    parts = from_torch(films, n_frames=4, memory=1e-9)
    first = parts.train.pixels[0]
    assert any(torch.equal(first, one) for one in sequences(16))
    assert films.file is None


class InWorkers(Opening):
    def __getitem__(self, item: int) -> Tensor:
        assert get_worker_info().id >= 0
        return super().__getitem__(item)


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_data_that_only_workers_can_read_are_trained_on(how: str, tmp_path: Path) -> None:
    (tmp_path / "frames").write_bytes(sequences(16).numpy().tobytes())
    loader = DataLoader(InWorkers(tmp_path / "frames"), 8, num_workers=1, multiprocessing_context=how)
    assert fit(*start(), loader, max_epochs=1, progress=False).seconds > 0


def test_guides_that_cannot_be_had_are_named() -> None:
    model, guide = start()
    with pytest.raises(TypeError, match="is of type AutoNormal, whose means take draws"):
        Encoder(model, AutoNormal(model))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MeanFieldGuide'> is no guide"):
        GuideList(MeanFieldGuide)
    with pytest.raises(ValueError, match="MeanFieldGuide draws site 'z', which a guide before it has drawn"):
        poutine.trace(GuideList(guide, default_guide(model))).get_trace(sequences())

    class Backwards(Guide):
        def posterior(self, x: Tensor, observed: Tensor | None = None) -> Any:
            return {"z": lambda draws: dist.Delta(draws["u"], event_dim=3)}

    with pytest.raises(TypeError, match="the posterior begins with a function"):
        Backwards(model)(sequences())


@pytest.mark.parametrize("kind", [AutoNormal, AutoNormalMessenger])
def test_an_autoguide_of_one_batch_is_not_trained_on_several(kind: type) -> None:
    model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3), mu=1.0)
    x = torch.rand(8, 3, 1, 2, 2)
    options: dict[str, Any] = {"max_epochs": 1, "progress": False}
    with pytest.raises(ValueError, match=r"AutoNormal.* 2 batches.*encoders"):
        fit(model, kind(model), x, batch_size=4, **options)
    with pytest.raises(ValueError, match="validation sequences"):
        fit(model, kind(model), x, batch_size=8, validation=x, **options)
    fit(model, kind(model), x, batch_size=8, **options)
    # Random weights are the same for all batches.
    model.mu = PyroSample(dist.Normal(1.0, 0.1))
    weights = kind(poutine.block(model, expose=list(model.weight_sites())))
    fit(model, GuideList(MeanFieldGuide(model), weights), x, batch_size=4, **options)
