"""Nonsense handed to the model: every argument, tensor and file is taken or refused in one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from complaints import answer, cases, damaged
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import pyro_tvae
from pyro_tvae import TVAE, CapsuleRoll, NoTopography, OrbitEnergy, Stationary, Torus, default_guide

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.sampled_from([math.nan, math.inf, -math.inf, 2.5, -0.0, 1e300, 1j, object(), b"x", -(10**30)]),
    st.lists(st.integers(-1, 2), max_size=2),
)
SIZE = st.one_of(st.integers(-1, 3), st.integers(1, 3), JUNK)
NUMBER = st.one_of(st.floats(), st.integers(-2, 40), JUNK)
SHAPE = st.one_of(st.tuples(SIZE, SIZE, SIZE), st.just((1, 2, 2)), st.lists(SIZE, max_size=4), JUNK)


GOOD = {"frame_shape": (1, 2, 2), "n_frames": 2, "n_capsules": 1, "capsule_dim": 3, "mu": 3.0, "eps": 1e-6}
STRANGE = {"frame_shape": SHAPE, "mu": NUMBER, "eps": NUMBER} | dict.fromkeys(
    ("n_frames", "n_capsules", "capsule_dim"), SIZE
)


@cases(400)
@given(st.one_of([st.tuples(st.just(name), values) for name, values in STRANGE.items()]), st.booleans())
def test_arguments_of_a_model(odd: tuple[str, Any], plain: bool) -> None:
    arguments: dict[str, Any] = GOOD | dict([odd])
    model, _ = answer(lambda: TVAE(topography=NoTopography() if plain else CapsuleRoll(2, 0), **arguments))
    if model is not None and abs(arguments["mu"]) < 1e15:
        x = torch.rand(2, model.n_frames, *model.frame_shape)
        assert torch.isfinite(pyro_tvae.encode(model, default_guide(model), x)).all()


@cases(150)
@given(SIZE, SIZE, SIZE)
def test_sizes_alone(s: Any, c: Any, d: Any) -> None:
    answer(lambda: TVAE((1, 2, 2), s, c, d, CapsuleRoll(2, 0)))


PAIR = st.one_of(st.tuples(SIZE, SIZE), JUNK)
TOPOGRAPHIES = [
    lambda a, b, boundary, learned: CapsuleRoll(a, b, boundary=boundary, learned=learned),
    lambda a, b, boundary, learned: Stationary((a, b), boundary=boundary, learned=learned),
    lambda a, b, boundary, learned: Stationary(a, boundary=boundary, learned=learned),
    lambda a, b, boundary, learned: Torus((a, b), (2, 2), learned=learned),
    lambda a, b, boundary, learned: Torus((1, 1), a, learned=learned),
]


@cases(400)
@given(st.sampled_from(TOPOGRAPHIES), SIZE, SIZE, st.sampled_from(["circular", "truncate", "", None]), st.booleans())
def test_arguments_of_a_topography(make: Any, a: Any, b: Any, boundary: Any, learned: bool) -> None:
    topography, _ = answer(lambda: make(a, b, boundary, learned))
    if topography is not None:
        w, _ = answer(lambda: topography.neighborhood(2, 4))
        assert w is None or (w >= 0).all()


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool]
MODELS = {
    "plain": TVAE((1, 2, 2), 2, 1, 2, NoTopography()),
    "orbits": TVAE((1, 2, 2), 2, 1, 2, CapsuleRoll(2, 0), prior=OrbitEnergy()),
    "roll": TVAE((1, 2, 2), 2, 1, 2, CapsuleRoll(2, 0)),
}
GUIDES = {name: default_guide(model) for name, model in MODELS.items()}


@cases(300)
@given(
    st.sampled_from([*MODELS]),
    st.one_of(st.lists(st.integers(0, 3), max_size=7), st.tuples(st.integers(0, 3), *map(st.just, (2, 1, 2, 2)))),
    st.sampled_from([torch.float32, *DTYPES]),
    st.sampled_from(["encode", "reconstruct", "traverse", "model"]),
)
def test_sequences_of_any_shape_and_type(name: str, shape: Any, dtype: torch.dtype, verb: str) -> None:
    model, guide = MODELS[name], GUIDES[name]
    x = torch.ones(tuple(shape)).to(dtype)
    action = (lambda: model(x)) if verb == "model" else (lambda: getattr(pyro_tvae, verb)(model, guide, x))
    _, sentence = answer(action)
    fits = len(shape) == 5 and tuple(shape[1:]) == (2, 1, 2, 2) and dtype is torch.float32
    assert fits or sentence is not None


@cases(100)
@given(st.sampled_from(["encode", "reconstruct"]), st.one_of(JUNK, st.lists(st.floats(), max_size=3)))
def test_what_is_no_tensor(verb: str, x: Any) -> None:
    _, sentence = answer(lambda: getattr(pyro_tvae, verb)(MODELS["roll"], GUIDES["roll"], x))
    assert sentence is not None


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pyro_tvae.save(tmp_path_factory.mktemp("model") / "m.safetensors", MODELS["roll"], GUIDES["roll"])


@cases(300)
@given(st.integers(0, 10**9))
def test_damaged_model_files(saved: Path, seed: int) -> None:
    path = saved.with_name("damaged.safetensors")
    path.write_bytes(damaged(saved.read_bytes(), seed))
    _, sentence = answer(lambda: pyro_tvae.load(path))
    assert sentence is None or str(path) in sentence or "is not loaded" in sentence


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 4), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["part", "arguments", "model"]), inner)
    ),
    max_leaves=4,
)


@cases(300)
@given(
    st.sampled_from(["model", "guide"]),
    st.sampled_from(
        [
            (),
            ("part",),
            ("arguments",),
            ("arguments", "topography"),
            ("arguments", "n_frames"),
            ("arguments", "network"),
            ("arguments", "topography", "arguments", "kernel"),
        ]
    ),
    JSON,
)
def test_descriptions_of_anything(saved: Path, which: str, where: tuple[str, ...], value: Any) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    description = node = json.loads(metadata["description"])
    for key in (which, *where)[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else {}
    node[(which, *where)[-1]] = value
    path = saved.with_name("described.safetensors")
    save_file(tensors, path, metadata=metadata | {"description": json.dumps(description)})
    answer(lambda: pyro_tvae.load(path))


def test_a_folder_in_the_place_of_a_file_and_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "m.safetensors", tmp_path / "file" / "m.safetensors", Path("/proc/no/m.safetensors")):
        _, sentence = answer(lambda path=path: pyro_tvae.save(path, MODELS["roll"], GUIDES["roll"]))  # type: ignore[misc]
        assert sentence is not None
        assert f"{path} cannot be written" in sentence
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "m.safetensors"]


def test_a_full_disk_leaves_the_old_file(saved: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "m.safetensors"
    path.write_bytes(saved.read_bytes())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # writing more fails, as on a full disk
    try:
        _, sentence = answer(lambda: pyro_tvae.save(path, MODELS["orbits"], GUIDES["orbits"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sentence is not None
    assert "cannot be written" in sentence
    assert path.read_bytes() == saved.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]
