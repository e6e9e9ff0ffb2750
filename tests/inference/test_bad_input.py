"""Nonsense handed to fits and estimates: taken, or refused in one sentence."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from complaints import answer, cases, damaged
from hypothesis import assume, given
from hypothesis import strategies as st

from pyro_tvae import TVAE, CapsuleRoll, Guide, default_guide
from pyro_tvae.inference import Fitting, TrainerOptions, fit, from_netcdf, log_likelihood
from pyro_tvae.inference.checkpoints import KEY, read_checkpoint


def start() -> tuple[TVAE, Guide]:
    model = TVAE((1, 2, 2), 2, 1, 2, CapsuleRoll(2, 0))
    return model, default_guide(model)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A last.ckpt."""
    folder = tmp_path_factory.mktemp("fit")
    history = fit(
        *start(),
        torch.rand(4, 2, 1, 2, 2),
        max_epochs=1,
        directory=folder,
        trainer=TrainerOptions("cpu"),
        progress=False,
    )
    assert history.last_checkpoint is not None
    return history.last_checkpoint


MODULE = Fitting(*start())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all generated cases of this file, and for nothing else."""
    return tmp_path_factory.mktemp("generated")


@cases(200)
@given(st.integers(0, 10**9))
def test_damaged_checkpoints(written: Path, seed: int) -> None:
    path = written.with_name("damaged.ckpt")
    path.write_bytes(damaged(written.read_bytes(), seed))
    _, sentence = answer(lambda: read_checkpoint(path, MODULE))
    assert sentence is None or str(path) in sentence


@cases(200)
@given(
    st.sampled_from(["epoch", "state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers", KEY, "all"]),
    st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.none(), max_size=2), st.just({"version": 9})),
    st.booleans(),
)
def test_foreign_checkpoints(written: Path, key: str, value: Any, removed: bool) -> None:
    state = torch.load(written, weights_only=True)
    if key == "all":
        state = value
    elif removed:
        del state[key]
    else:
        state[key] = value
    path = written.with_name("foreign.ckpt")
    torch.save(state, path)
    _, sentence = answer(lambda: read_checkpoint(path, MODULE))
    if removed and key != "all":
        assert sentence is not None
        assert str(path) in sentence


def test_a_newer_checkpoint_and_one_of_another_model(written: Path, tmp_path: Path) -> None:
    state = torch.load(written, weights_only=True)
    torch.save(state | {KEY: {"version": 4, "recent": []}}, tmp_path / "newer.ckpt")
    with pytest.raises(ValueError, match="has version 4, this pyro-tvae reads up to 3; update pyro-tvae"):
        fit(*start(), torch.rand(4, 2, 1, 2, 2), resume=tmp_path / "newer.ckpt")
    model = TVAE((1, 2, 2), 2, 2, 2, CapsuleRoll(2, 0))
    with pytest.raises(ValueError, match=r"is of another model: .* is .* there and .* here"):
        fit(model, default_guide(model), torch.rand(4, 2, 1, 2, 2), resume=written)


ODD: Any = st.sampled_from([None, -1, 0, 1, 3, 2.5, math.nan, math.inf, -math.inf, "x", "", [], True])
OPTIONS = [
    "max_epochs",
    "max_steps",
    "batch_size",
    "warmup_steps",
    "beta",
    "num_particles",
    "frame_dropout",
    "subsample_frames",
    "gradient_clip",
    "patience",
    "seed",
    "accelerator",
    "devices",
    "strategy",
    "precision",
    "matmul_precision",
    "compile",
    "resume",
    "data",
    "validation",
]


@cases(60)
@given(st.sampled_from(OPTIONS), ODD)
def test_options_of_a_fit(name: str, value: Any) -> None:
    assume((name, value) != ("devices", 3))  # a fit on three processes would start this test twice more
    data = torch.rand(4, 2, 1, 2, 2)
    options: dict[str, Any] = {
        "data": data,
        "max_epochs": 1,
        "max_steps": 1,
        "accelerator": "cpu",
        "devices": 1,
        "progress": False,
        "validation": data if name == "patience" else None,
    }
    options[name] = value
    own = {one.name: options.pop(one.name) for one in fields(TrainerOptions) if one.name in options}
    answer(
        lambda: fit(*start(), **options, trainer=TrainerOptions(**own)),
        deep=name in ("accelerator", "devices", "strategy", "precision"),
    )


@cases(150)
@given(st.sampled_from(["num_particles", "batch_size", "estimator", "seed", "observed", "x"]), ODD)
def test_options_of_a_likelihood(name: str, value: Any) -> None:
    model, guide = start()
    options: dict[str, Any] = {"x": torch.rand(2, 2, 1, 2, 2), "num_particles": 2, name: value}
    answer(lambda: log_likelihood(model, guide, options.pop("x"), **options))


@cases(60)
@given(st.integers(0, 10**9))
def test_files_that_hold_no_posterior(folder: Path, seed: int) -> None:
    path = folder / "posterior.nc"
    path.write_bytes(damaged(b"\x89HDF\r\n\x1a\n" + bytes(200), seed))
    _, sentence = answer(lambda: from_netcdf(path))
    assert sentence is not None
    assert str(path) in sentence
