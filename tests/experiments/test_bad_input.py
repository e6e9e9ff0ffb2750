"""Nonsense in data files, stored runs and on the command line: taken, or refused in one sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from complaints import answer, cases, damaged
from hydra.errors import InstantiationException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pyro_tvae.experiments.config.building import build
from pyro_tvae.experiments.config.composition import compose, make
from pyro_tvae.experiments.config.errors import ConfigurationError, plain_errors, sentence
from pyro_tvae.experiments.datasets import SequenceDataModule, Transformations, arrays, digits
from pyro_tvae.experiments.runs.files import read_record
from pyro_tvae.experiments.runs.run import Run

TYPES = ["u1", "f2", "f4", "f8", "i4", "u2", "b1", "c8", "U2", "M8[s]", "V3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all generated cases of this file, and for nothing else."""
    return tmp_path_factory.mktemp("generated")


@cases(400)
@given(
    st.lists(st.integers(0, 4), max_size=6),
    st.sampled_from(["u1", "f4", *TYPES]),
    st.sampled_from([0, 1, 255, 0.5, -0.1, 1.1, np.nan, np.inf]),
    st.sampled_from([0.0, 0.2, 0.5, 1.0, -1.0, np.nan]),
    st.sampled_from([None, "pixels", "labels", "nothing", ""]),
    st.booleans(),
)
def test_arrays_of_any_kind(
    folder: Path,
    shape: list[int],
    kind: str,
    value: float,
    share: float,
    key: str | None,
    archive: bool,
) -> None:
    path = folder / ("data.npz" if archive else "data.npy")
    array = np.zeros(shape, dtype=kind)
    if kind[0] in "uifb" and np.isfinite(value):
        array.reshape(-1)[:1] = np.asarray(value).astype(kind)
    elif kind[0] == "f":
        array.reshape(-1)[:1] = value
    if archive:
        np.savez(path, pixels=array, labels=np.zeros(len(array) if shape else 0, dtype="i8"))
    else:
        np.save(path, array)
    splits, sentence = answer(lambda: arrays(path, key=key, labels_key="labels" if archive else None, validation=share))
    if splits is not None:
        pixels = splits.train.pixels.float()
        assert torch.isfinite(pixels).all()
    else:
        assert sentence is not None


@cases(250)
@given(st.integers(0, 10**9), st.booleans())
def test_damaged_arrays(folder: Path, seed: int, archive: bool) -> None:
    path = folder / "damaged.npy"
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).random((6, 4, 4), dtype=np.float32)
    np.savez(buffer, pixels) if archive else np.save(buffer, pixels)  # type: ignore[func-returns-value]
    path.write_bytes(damaged(buffer.getvalue(), seed))
    _, sentence = answer(lambda: arrays(path))
    assert sentence is None or str(path) in sentence


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=2)
)


@cases(300)
@given(st.sampled_from(["rotation", "hue", "scale", "perspective", "moving"]), JUNK)
def test_transformations_of_anything(name: str, value: Any) -> None:
    answer(lambda: Transformations(**{"rotation": True, name: value}))


SPLITS = digits()


@cases(200)
@given(
    st.sampled_from(["n_frames", "batch_size", "eval_batch_size", "n_train", "n_validation", "num_workers", "seed"]),
    JUNK,
)
def test_numbers_of_a_data_module(name: str, value: Any) -> None:
    answer(lambda: SequenceDataModule(SPLITS, Transformations(rotation=True), **{name: value}))


STORED = OmegaConf.to_yaml(compose(), resolve=True)


@cases(150)
@given(st.integers(0, 10**9))
def test_damaged_configurations(folder: Path, seed: int) -> None:
    run = folder
    (run / "config.yaml").write_bytes(damaged(STORED.encode(), seed))
    _, sentence = answer(lambda: Run(run).config())
    assert sentence is None or "config.yaml" in sentence


def test_a_run_from_before_a_setting_was_made_without_it(tmp_path: Path) -> None:
    stored = yaml.safe_load(STORED)
    assert stored["model"].pop("centered") is True
    assert stored["fit"].pop("matmul_precision") == "highest"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert Run(tmp_path).config().model.centered is False
    assert Run(tmp_path).config().fit.matmul_precision == "highest"


PATHS = [
    "fit",
    "model",
    "data",
    "data.source",
    "topography",
    "evaluation",
    "baseline",
    "seed",
    "optimizer",
    "fit.max_steps",
]


@cases(150)
@given(st.sampled_from(PATHS), JUNK, st.booleans())
def test_configurations_of_anything(folder: Path, where: str, value: Any, removed: bool) -> None:
    run = folder
    stored = node = yaml.safe_load(STORED)
    *parents, last = where.split(".")
    for parent in parents:
        node = node[parent]
    if removed:
        del node[last]
    else:
        node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    answer(lambda: Run(run).config())


@cases(150)
@given(st.integers(0, 10**9))
def test_damaged_records(folder: Path, seed: int) -> None:
    path = folder / "history.json"
    record = json.dumps({"rows": [{"step": 10, "train/elbo": -3.5}], "seconds": 3.0})
    path.write_bytes(damaged(record.encode(), seed))
    _, sentence = answer(lambda: read_record(path, dict[str, Any]))
    assert sentence is None or str(path) in sentence


NAMES = [
    "fit.max_epochs",
    "model.eps",
    "topography",
    "data",
    "+new",
    "~seed",
    "fit",
    "experiment",
    "seed",
    "nme",
    "hydra.x",
]
VALUES = ["3", "", "null", "orbits", "[1", "{a:1}", "${seed}", "${nothing}", "'x", "a,b", "???", "=", "é"]


@cases(60)
@given(st.sampled_from(NAMES), st.sampled_from(VALUES))
def test_overrides_of_anything(name: str, value: str) -> None:
    answer(lambda: compose([f"{name}={value}"]))


STUMBLES = {
    "data.source.seed=-1": "seed is -1; expected a whole number of at least 0",
    "data.source.seed=text": "seed is 'text'; expected a whole number",
    "data.source.seed=null": "seed is None; expected a whole number",  # which would cut another split every time
    "data.transformations.moving=1": "moving is 1; expected a name or a list of names, of rotation, scale",
    "data.transformations.moving=[1]": "moving is [1]; expected a name or a list of names",
    "data.transformations=text": "transformations is 'text'; expected Transformations(…), or None",
    "data.test_transformations=[1]": "test_transformations is [1]; expected Transformations(…), or None",
    "data.source=null": "data cannot be made from source=None, ",
    "data.source=1": "data.source is 1, and its settings are missing",
    "model=text": "model is 'text', and its settings are missing",
    "fit=null": "fit is None, and its settings are missing",
    "optimizer.optimizer=1": "optimizer.optimizer is 1, and its settings are missing",
    "optimizer.schedule=1": "optimizer.schedule is 1, and its settings are missing",
    "optimizer.schedule=''": "optimizer.schedule is '', and its settings are missing",
    "topography=[]": "topography is left empty; expected one of ",
    "data=[]": "data is left empty; expected one of ",
}


@pytest.mark.parametrize("override", STUMBLES)
def test_a_setting_that_a_library_stumbles_over_is_named(override: str) -> None:
    with pytest.raises((ConfigurationError, InstantiationException)) as caught:
        make(compose([override]).data)
    assert STUMBLES[override] in str(sentence(caught.value))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("validation=-1", "validation is -1 and test is 0.2; expected two shares"),
        ("test=text", "validation is 0.2 and test is 'text'; expected two shares"),
        ("test=1.5", "test is 1.5; expected two shares"),
        ("seed=null", "seed is None; expected a whole number"),
        ("resize=99999999999", "frame_shape=(1, 99999999999, 99999999999)"),
    ],
)
def test_a_file_is_not_blamed_for_a_setting(override: str, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "films.npy", np.zeros((20, 4, 1, 6, 6), np.float32))
    films = ["data=sequences", f"data.source.path={tmp_path / 'films.npy'}", "data.n_frames=4"]
    with pytest.raises((TypeError, InstantiationException)) as caught:
        build(compose([*films, f"data.source.{override}"]))
    said = str(sentence(caught.value))
    assert words in said
    assert "damaged" not in said
    assert "frame #" not in said


@pytest.mark.parametrize("overrides", [["fit.max_epochs=many"], ["model.n_capsules=2.5"], ["data.n_frames=x"]])
def test_a_mistyped_number_ends_with_status_2(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from pyro_tvae.experiments.commands.train import train_run

    with pytest.raises(SystemExit) as caught, plain_errors():
        train_run(
            compose(["data.n_train=8", "data.n_validation=4", "data.n_test=4", *overrides]), Path("/proc/nowhere")
        )
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
