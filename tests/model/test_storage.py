"""Model files: what was saved comes back bit by bit, and a bad file gets one sentence and runs nothing."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from complaints import answer
from pyro.distributions import TorchDistribution
from pyro.nn import PyroParam, PyroSample
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import constraints
from torch.overrides import TorchFunctionMode

from pyro_tvae import (
    MLP,
    TVAE,
    Bernoulli,
    CapsuleRoll,
    ContinuousBernoulli,
    GammaEnergy,
    GammaGuide,
    Guide,
    Likelihood,
    MeanFieldGuide,
    Network,
    Normal,
    NoTopography,
    OrbitEnergy,
    SequenceGuide,
    Stationary,
    Topography,
    Torus,
    default_guide,
    load,
    save,
    storage,
)
from pyro_tvae.inference import ELBO, log_weights
from pyro_tvae.parts import describe

FRAME = (1, 2, 3)


class Tanh(Network):
    """A user's own network."""

    def __init__(self, width: int = 5, *, names: Sequence[str] = ("a", "b")) -> None:
        self.width, self.names = width, names

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(-3), nn.Linear(6, self.width), nn.Tanh(), nn.Linear(self.width, n_outputs))

    def decoder(self, n_latents: int, frame_shape: Sequence[int]) -> nn.Module:
        return nn.Sequential(
            nn.Linear(n_latents, self.width), nn.Tanh(), nn.Linear(self.width, 6), nn.Unflatten(-1, tuple(frame_shape))
        )


class Diagonal(Topography):
    """A user's own topography, with a subclassed constructor."""

    def __init__(self, steps: int = 2) -> None:
        self.steps = steps
        super().__init__(boundary="truncate")

    def offsets(self) -> list[tuple[int, ...]]:
        return [(step, 2 * step) for step in range(self.steps)]


def build(topography: Topography, **options: object) -> Callable[[], TVAE]:
    return lambda: TVAE(FRAME, 4, 2, 4, topography, **options)  # type: ignore[arg-type]


MODELS: dict[str, Callable[[], TVAE]] = {
    "roll": build(CapsuleRoll(3, 1)),
    "roll, truncated, learned": build(CapsuleRoll(3, 1, boundary="truncate", learned=True)),
    "stationary": build(Stationary((2, 3)), mu=3.5, eps=1e-3),
    "torus": build(Torus((2, 2), (2, 2)), likelihood=ContinuousBernoulli()),
    "none": build(NoTopography(), network=MLP((1.5,), (2,))),
    "orbits": build(CapsuleRoll(4, 0), prior=OrbitEnergy()),
    "normal": build(CapsuleRoll(2), likelihood=Normal(0.3, learned=True, activation="sigmoid")),
    "own parts": build(Diagonal(3), network=Tanh(7, names=["x"]), likelihood=Bernoulli()),
}


def scrambled(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_round_trip_changes_nothing(make: Callable[[], TVAE], tmp_path: Path) -> None:
    model = make()
    guide = default_guide(model, initial_log_variance=-2.0)
    scrambled(model)
    scrambled(guide)
    path = save(tmp_path / "new folder" / "model.safetensors", model, guide)
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    again, its_guide = load(path)
    assert not again.training
    assert not its_guide.training
    assert type(its_guide) is type(guide)
    assert again.arguments().keys() == model.arguments().keys()
    assert again.eps == model.eps
    x = torch.rand(3, 4, *FRAME)
    expected = log_weights(model, guide, x, 5, seed=7)
    assert torch.equal(log_weights(again, its_guide, x, 5, seed=7), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    # And the copy is a copy.
    scrambled(again)
    assert torch.equal(log_weights(model, guide, x, 5, seed=7), expected)


def test_a_file_holds_defaults_too(tmp_path: Path) -> None:
    """So that a later version with other defaults rebuilds the same model."""
    model = TVAE(FRAME, 4, 2, 4)
    description = described(save(tmp_path / "m.safetensors", model, MeanFieldGuide(model)))
    assert description["model"]["arguments"]["eps"] == 1e-6
    assert description["model"]["arguments"]["mu"] == 30.0
    assert "initial_log_variance" in description["guide"]["arguments"]


def test_a_guides_own_network_comes_back(tmp_path: Path) -> None:
    model = MODELS["roll"]()
    guide = MeanFieldGuide(model, network=Tanh(3), initial_log_variance=-1.0)
    again = load(save(tmp_path / "m.safetensors", model, guide))[1]
    assert again.arguments()["network"].width == 3
    assert again.arguments()["initial_log_variance"] == -1.0


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for mu in (1.0, 2.0):
        model = TVAE(FRAME, 4, 2, 4, CapsuleRoll(3), mu=mu)
        save(path, model, MeanFieldGuide(model))
    assert float(load(path)[0].mu.detach()) == 2.0
    assert list(tmp_path.iterdir()) == [path]


def test_equal_pairs_are_equal_files(tmp_path: Path) -> None:
    model = MODELS["roll"]()
    guide = MeanFieldGuide(model)
    # safetensors alone writes the eight entries of metadata in another order every time.
    assert len({save(tmp_path / "m.safetensors", model, guide).read_bytes() for _ in range(6)}) == 1


def test_a_part_that_cannot_be_described_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    model = TVAE(FRAME, 4, 2, 4, network=Tanh(names=nn.ReLU()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a ReLU cannot be written into a model file"):
        save(tmp_path / "m.safetensors", model, MeanFieldGuide(model))
    assert list(tmp_path.iterdir()) == []


# --- everything comes back, or is refused ----------------------------------------------------------------------------


class Loose(TVAE):
    """A user's model with a constructor that passes everything on."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]


class LooseGuide(MeanFieldGuide):
    """Its guide, whose constructor names no model."""

    def __init__(self, *args: TVAE, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]


class Mixed(Likelihood):
    """Positional-only, named, gathered and keyword arguments."""

    def __init__(self, first: float, /, second: float = 2.0, *more: float, last: float = 9.0, **rest: float) -> None:
        super().__init__()
        self.all = [first, second, *more, last, *rest.values()]

    def forward(self, parameters: Tensor) -> TorchDistribution:
        return dist.Normal(parameters, sum(self.all))


class Constrained(TVAE):
    """PyroParams of both kinds."""

    def __init__(self) -> None:
        super().__init__(FRAME, 4, 2, 4, CapsuleRoll(3), mu=1.0)
        self.gain = PyroParam(torch.tensor(2.0), constraint=constraints.positive)

    @PyroParam(constraint=constraints.positive)
    def late(self) -> Tensor:
        return torch.tensor(3.0)

    def compose(self, values: Mapping[str, Tensor], u: Tensor | None = None) -> Tensor:
        t: Tensor = super().compose(values) * self.gain * self.late
        return t


class Tied(MeanFieldGuide):
    """Both encoders are one."""

    def __init__(self, model: TVAE) -> None:
        super().__init__(model)
        self.u_encoder = self.z_encoder


def identical(one: nn.Module, two: nn.Module) -> None:
    for table in ("named_parameters", "named_buffers"):
        found, again = (dict(getattr(m, table)(remove_duplicate=False)) for m in (one, two))
        assert found.keys() == again.keys()
        for name, value in found.items():
            assert value.dtype == again[name].dtype, name
            assert value.requires_grad == again[name].requires_grad, name
            assert torch.equal(value, again[name]), name
        ties, twins = ([{n for n, v in f.items() if v is w} for w in f.values()] for f in (found, again))
        assert ties == twins


def comes_back(model: TVAE, guide: Guide, folder: Path) -> tuple[TVAE, Guide]:
    state = torch.get_rng_state()
    kept = dict(pyro.get_param_store().named_parameters())
    loaded = load(save(folder / "m.safetensors", model, guide))
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(pyro.get_param_store().named_parameters()).keys() == kept.keys()
    for one, two in zip((model, guide), loaded, strict=True):
        assert type(one) is type(two)
        identical(one, two)
    dtype = next(model.parameters()).dtype
    if dtype in (torch.float32, torch.float64):
        x = torch.rand(2, 4, *FRAME, dtype=dtype)
        assert torch.equal(log_weights(*loaded, x, 3, seed=1), log_weights(model, guide, x, 3, seed=1))
    return loaded


def test_constructors_with_gathered_arguments_come_back(tmp_path: Path) -> None:
    model = Loose(FRAME, 4, 2, 4, CapsuleRoll(3), mu=2.0, likelihood=Mixed(1.0, 0.1, 0.2, 0.3, last=0.4, other=0.5))
    again, _ = comes_back(model, LooseGuide(model, initial_log_variance=-1.0), tmp_path)
    assert list(again.likelihood.all) == [1.0, 0.1, 0.2, 0.3, 0.4, 0.5]  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_precision_comes_back(make: Callable[[], TVAE], dtype: torch.dtype, tmp_path: Path) -> None:
    model = make()
    guide = default_guide(model)
    comes_back(model.to(dtype), guide.to(dtype), tmp_path)


def test_frozen_parameters_stay_frozen_and_others_do_not(tmp_path: Path) -> None:
    model = MODELS["roll"]()
    guide = MeanFieldGuide(model)
    model.mu.requires_grad_(False)
    guide.z_encoder.requires_grad_(False)
    comes_back(model, guide, tmp_path)


def test_constrained_parameters_come_back(tmp_path: Path) -> None:
    model = Constrained()
    guide = MeanFieldGuide(model)
    model(torch.rand(2, 4, *FRAME))  # the late one is made
    with torch.no_grad():
        model.gain_unconstrained.add_(0.3)
        model.late_unconstrained.add_(0.2)
    again, _ = comes_back(model, guide, tmp_path)
    assert torch.equal(again.late, model.late)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["constructor", "hand", "across"])
def test_tied_parameters_come_back_tied_and_train_as_one(by: str, tmp_path: Path) -> None:
    model = MODELS["roll"]()
    guide = Tied(model) if by == "constructor" else MeanFieldGuide(model)
    if by == "hand":
        guide.u_encoder.network[1].weight = guide.z_encoder.network[1].weight  # type: ignore[union-attr, index]
    if by == "across":
        guide.z_encoder.network[-1].bias = model.decoder[0].bias = nn.Parameter(torch.rand(16))  # type: ignore[index]
    scrambled(model)
    again, its_guide = comes_back(model, guide, tmp_path)
    for one, two in ((model, guide), (again, its_guide)):
        objective = ELBO(one, two)
        optimizer = torch.optim.SGD(objective.parameters(), 1e-3)
        torch.manual_seed(4)
        (-objective(torch.rand(3, 4, *FRAME)).elbo.sum()).backward()
        optimizer.step()
    identical(model, again)
    identical(guide, its_guide)


@pytest.mark.parametrize("trained", [False, True])
def test_a_guide_that_read_its_models_weights_comes_back(trained: bool, tmp_path: Path) -> None:
    """Before or after they were learned: GammaGuide keeps the α, SequenceGuide the W, of when it was built."""
    for make in (GammaGuide, SequenceGuide):
        model = TVAE(FRAME, 4, 2, 4, CapsuleRoll(3, learned=True), prior=GammaEnergy(0.8, learned=True))
        guide = None if trained else make(model)
        scrambled(model)
        comes_back(model, guide or make(model), tmp_path)


class Statement(Likelihood):
    """A pyro.param statement where a parameter should be."""

    def forward(self, parameters: Tensor) -> TorchDistribution:
        return dist.Normal(parameters, pyro.param("noise", torch.tensor(0.1), constraint=constraints.positive))


def replaced(model: TVAE, guide: Guide) -> None:
    model.decoder = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Unflatten(-1, FRAME))


def untied(model: TVAE, guide: Guide) -> None:
    guide.u_encoder = copy.deepcopy(guide.z_encoder)


def viewed(model: TVAE, guide: Guide) -> None:
    flat = torch.rand(20)
    model.decoder[0].bias, model.extra = nn.Parameter(flat[:16]), nn.Parameter(flat[10:])  # type: ignore[index]


def altered(model: TVAE, guide: Guide) -> None:
    model.eps = 0.5


class Scaled(MeanFieldGuide):
    def __init__(self, model: TVAE) -> None:
        super().__init__(model)
        self.sizes = torch.ones(2)
        self.bend = torch.relu
        self.parts = {"z", "u"}
        self.offset = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        self._seen = 0
        self.width = PyroParam(torch.tensor(0.25), constraint=constraints.positive)


def scaled(model: TVAE, guide: Guide) -> None:
    guide.sizes = torch.zeros(2)


def bent(model: TVAE, guide: Guide) -> None:
    guide.bend = torch.tanh


def grouped(model: TVAE, guide: Guide) -> None:
    guide.parts = {"z"}


def wider(model: TVAE, guide: Guide) -> None:
    guide.offset = PyroSample(dist.Normal(torch.zeros(2), 2.0).to_event(1))


def constrained(model: TVAE, guide: Guide) -> None:
    guide.width = PyroParam(torch.tensor(0.25), constraint=constraints.unit_interval)


def sampled(model: TVAE, guide: Guide) -> None:
    model.scale = PyroSample(dist.Normal(0.0, 1.0))


def rebuffered(model: TVAE, guide: Guide) -> None:
    guide.w.add_(1)  # type: ignore[operator, union-attr]


def added(model: TVAE, guide: Guide) -> None:
    model.extra = PyroParam(torch.tensor(1.0), constraint=constraints.positive)


@pytest.mark.parametrize(
    ("spoil", "make", "words"),
    [
        (replaced, MeanFieldGuide, "model.decoder.1 is a Tanh where the constructors' arguments make a ReLU"),
        (untied, Tied, "tied to another tensor by the constructor"),
        (viewed, MeanFieldGuide, "shares its memory with"),
        (altered, MeanFieldGuide, "model.eps is not what the constructors' arguments make"),
        (scaled, Scaled, "guide.sizes is not what the constructors' arguments make"),
        (bent, Scaled, "guide.bend is not what the constructors' arguments make"),
        (grouped, Scaled, "guide.parts is not what the constructors' arguments make"),
        (wider, Scaled, "guide.offset has another prior"),
        (constrained, Scaled, "guide.width has another constraint"),
        (sampled, MeanFieldGuide, "model.scale was set after it was built"),
        (added, MeanFieldGuide, "model"),
        (rebuffered, SequenceGuide, "guide.w has a value that the constructors' arguments do not make"),
    ],
    ids=[
        "replaced",
        "untied",
        "views",
        "attribute",
        "tensor",
        "function",
        "set",
        "prior",
        "constraint",
        "sample",
        "added",
        "buffer",
    ],
)
def test_what_would_not_come_back_is_refused_and_nothing_is_written(
    spoil: Callable[[TVAE, Guide], None], make: Callable[[TVAE], Guide], words: str, tmp_path: Path
) -> None:
    model = MODELS["roll"]()
    guide = make(model)
    spoil(model, guide)
    with pytest.raises(ValueError, match=r"save: ") as caught:
        save(tmp_path / "m.safetensors", model, guide)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_was_defined_anew_is_told_of(tmp_path: Path) -> None:
    """As by a cell of a notebook that is run again, with or without a change."""

    def cell(bend: float) -> type[MeanFieldGuide]:
        class Bent(MeanFieldGuide):
            def posterior(self, x: Tensor, observed: Tensor | None = None) -> Any:
                return super().posterior(bend * x, observed)

        return Bent

    model = MODELS["roll"]()
    guide = cell(1.0)(model)
    save(tmp_path / "m.safetensors", model, guide)
    cell(0.5)
    with pytest.warns(UserWarning, match="^save: the class Bent was defined anew since guide was built, as by a cell"):
        save(tmp_path / "m.safetensors", model, guide)


def test_what_a_class_keeps_to_itself_is_told_of_where_it_has_changed(tmp_path: Path) -> None:
    """It may be a setting or a count, so that the weights of hours are written all the same."""
    model = MODELS["roll"]()
    guide = Scaled(model)
    save(tmp_path / "as_built.safetensors", model, guide)  # a warning would be an error
    guide._seen = 7
    with pytest.warns(UserWarning, match=r"^save: guide._seen is not what the constructors' arguments make, and no"):
        save(tmp_path / "m.safetensors", model, guide)
    _, twin = load(tmp_path / "m.safetensors")
    assert twin._seen == 0


def test_a_param_statement_of_a_part_is_refused_by_name(tmp_path: Path) -> None:
    model = TVAE(FRAME, 4, 2, 4, CapsuleRoll(3), likelihood=Statement())
    guide = MeanFieldGuide(model)
    with pytest.raises(ValueError, match=r"save: noise is a pyro.param statement .*PyroParam"):
        save(tmp_path / "m.safetensors", model, guide)
    assert list(tmp_path.iterdir()) == []
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_file_of_the_first_format_loads_bit_for_bit(make: Callable[[], TVAE], tmp_path: Path) -> None:
    """Written here as that version wrote it."""
    model = make()
    guide = default_guide(model)
    scrambled(model)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"guide.{name}": value for name, value in guide.state_dict().items()}
    description = {"model": describe(model), "guide": describe(guide)}
    for one in description.values():
        del one["arguments"]["name"]
    path = tmp_path / "m.safetensors"
    metadata = {"format": "pyro-tvae", "version": "1", "description": json.dumps(description)}
    save_file(tensors, path, metadata=metadata)
    for one, two in zip((model, guide), load(path), strict=True):
        identical(one, two)


# --- bad files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = MODELS["roll"]()
    return save(tmp_path / "m.safetensors", model, MeanFieldGuide(model))


def rewritten(path: Path, **changes: str | None) -> Path:
    """The same file with other metadata; None removes an entry."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in changes.items():
        if value is None:
            metadata.pop(name)
        else:
            metadata[name] = value
    save_file(tensors, path, metadata=metadata)
    return path


def described(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["description"])


def complaint(path: Path, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist; expected a file written by" in complaint(tmp_path / "no.safetensors", FileNotFoundError)
    assert f"{tmp_path} is no file" in complaint(tmp_path, FileNotFoundError)


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the description of one and the weights of another make a damaged file, or a pair that nobody trained."""
    path = tmp_path / "pair.safetensors"
    shutil.copy(saved, path)
    model, guide = load(saved)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    whole, opened = storage.safe_open, list[Path]()

    def replaced(file: Path, **options: Any) -> Any:
        if not opened:
            save(path, model, guide)
        opened.append(file)
        return whole(saved if len(opened) == 1 else file, **options)  # what is open is the former one

    monkeypatch.setattr(storage, "safe_open", replaced)
    again, _ = load(path)
    assert len(opened) == 2
    assert torch.equal(next(again.parameters()), next(model.parameters()))


def test_a_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("hello")
    assert "not a readable safetensors file" in complaint(path, ValueError)
    path.write_bytes(b"")
    assert "not a readable safetensors file" in complaint(path, ValueError)
    save_file({"weight": torch.zeros(3)}, path)
    assert "not a pyro-tvae model" in complaint(path, ValueError)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_truncated_file(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    assert "not a readable safetensors file" in complaint(saved, ValueError)


def test_what_a_file_says_of_itself_stays_within_one_line(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "a\n\x1b[31m" + 400 * " b", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    sentence = complaint(path, ValueError)  # present versions of safetensors quote all of it
    assert "unknown variant `a [31m b b" in sentence or "InvalidHeaderDeserialization" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 500 + len(str(path))


def test_a_newer_version(saved: Path) -> None:
    assert "format version 4, this pyro-tvae reads up to 3" in complaint(rewritten(saved, version="4"), ValueError)


def test_a_class_of_the_running_script_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another script finds none by that name, and could not load the file."""
    import __main__

    class Mine(TVAE):
        __module__, __qualname__ = "__main__", "Mine"

    monkeypatch.setattr(__main__, "Mine", Mine, raising=False)
    model = Mine((1, 4, 4), 3, 1, 3)
    with pytest.warns(UserWarning, match="a class of this model is defined in the script that runs, __main__"):
        save(tmp_path / "mine.safetensors", model, default_guide(model))


@pytest.mark.parametrize("how", ["hook", "method"])
def test_code_that_was_put_into_a_module_is_told_of(how: str, tmp_path: Path) -> None:
    model = TVAE((1, 4, 4), 3, 1, 3, CapsuleRoll(3))
    if how == "hook":
        model.decoder.register_forward_hook(lambda module, inputs, output: 2 * output)
    else:
        model.likelihood.forward = lambda *_: None  # type: ignore[method-assign]
    said = "model.decoder has a hook" if how == "hook" else "model.likelihood has a 'forward' of its own"
    with pytest.warns(UserWarning, match=f"save: {said}, which is code that no file holds"):
        save(tmp_path / "a", model, MeanFieldGuide(model))


def test_an_unknown_part(saved: Path) -> None:
    description = described(saved)
    description["model"]["arguments"]["topography"] = {"part": "somebody.Else", "arguments": {}}
    text = complaint(rewritten(saved, description=json.dumps(description)), LookupError)
    assert "'somebody.Else'" in text
    assert "import its module first" in text


def test_a_description_can_only_name_parts(saved: Path, tmp_path: Path) -> None:
    description = described(saved)
    witness = tmp_path / "witness"
    for name in ("os.system", "subprocess.run", "builtins.eval", "torch.nn.Linear", "antigravity"):
        description["model"]["arguments"]["network"] = {"part": name, "arguments": {"command": f"touch {witness}"}}
        complaint(rewritten(saved, description=json.dumps(description)), LookupError)
    assert not witness.exists()


def test_weights_that_do_not_fit(saved: Path) -> None:
    description = described(saved)
    description["model"]["arguments"]["n_capsules"] = 3
    with pytest.raises(ValueError, match="its weights do not fit the model that it describes"):
        load(rewritten(saved, description=json.dumps(description)))


@pytest.mark.parametrize(
    "changes",
    [
        {"description": None},
        {"description": "{not json"},
        {"description": "[]"},
        {"description": '{"model": 3, "guide": 4}'},
        {"version": "one"},
        {"description": '{"model": {"part": "pyro_tvae.model.TVAE", "arguments": {"sizes": 3}}, "guide": {}}'},
    ],
    ids=["no description", "no JSON", "no mapping", "no parts", "no number", "unknown argument"],
)
def test_damaged_metadata(saved: Path, changes: dict[str, str | None]) -> None:
    assert str(saved) in complaint(rewritten(saved, **changes), ValueError)


class Bomb:
    def __init__(self, witness: str) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (exec, (f"open({self.witness!r}, 'w').close()",))


def test_a_planted_pickle_is_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    bomb = Bomb(str(witness))
    plain, zipped = tmp_path / "plain.safetensors", tmp_path / "zipped.safetensors"
    plain.write_bytes(pickle.dumps(bomb))
    torch.save({"state_dict": bomb}, zipped)
    for path in (plain, zipped):
        complaint(path, ValueError)
    assert not witness.exists()
    pickle.loads(plain.read_bytes())  # the bomb is live: the test would have seen it
    assert witness.exists()


def test_a_guide_saved_beside_its_model_belongs_to_it(saved: Path) -> None:
    model, guide = load(saved)
    assert isinstance(guide, Guide)
    assert guide.n_frames == model.n_frames


# --- types and sizes -------------------------------------------------------------------------------------------------

JSON: dict[str, object] = {
    "null": None,
    "true": True,
    "whole": 7,
    "number": 2.5,
    "text": "seven",
    "list": [],
    "mapping": {},
}
OPTIONAL = {  # what may be null, or of a second type
    "name": ("null", "text"),
    "seed": ("null", "whole"),
    "max_logit": ("null", "number", "whole"),
    "rank": ("null", "whole"),
    "grid": ("null",),
    "velocity": ("whole", "number"),
    **dict.fromkeys(("topography", "prior", "latent", "likelihood", "network"), ("null",)),
}


def nodes(value: object, *path: str | int) -> list[tuple[tuple[str | int, ...], object]]:
    """Every value in plain data, and where it is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(path, value), *(node for key, one in items for node in nodes(one, *path, key))]


def kind(value: object) -> str:
    names = {bool: "true", int: "whole", float: "number", str: "text", list: "list", dict: "mapping"}
    return "null" if value is None else names[type(value)]


def test_a_field_of_another_type_is_refused_in_a_sentence(saved: Path) -> None:
    """Every value in what three files say of their pairs, replaced by one of JSON's types; of all files by each of them
    where PYRO_TVAE_BAD_INPUTS=20000 asks for it."""
    replaced, plain, every = 0, saved.parent / "plain.safetensors", "PYRO_TVAE_BAD_INPUTS" in os.environ
    folder, dice = Path(__file__).parents[1] / "files" / "v2", random.Random(0)
    few = [folder / f"{file}.safetensors" for file in ("frozen", "mixture", "tied")]
    for source in sorted(folder.glob("*.safetensors")) if every else few:
        with safe_open(source, framework="pt") as opened:
            said = {name: json.loads(text) for name, text in opened.metadata().items() if name != "format"}
        for path, value in nodes(said):
            for name, other in JSON.items() if every else dice.sample(sorted(JSON.items()), 1):
                allowed = OPTIONAL.get(str(path[-1]), ()) if path else ()
                if name == kind(value) or not path or name in allowed or (kind(value), name) == ("number", "whole"):
                    continue
                if path == ("version",) or path == ("derived",):  # a number as a text; and it may say nothing
                    continue
                changed = copy.deepcopy(said)
                node = changed
                for key in path[:-1]:
                    node = node[key]
                node[path[-1]] = other
                shutil.copyfile(source, plain)
                rewritten(plain, **{field: json.dumps(one) for field, one in changed.items()})
                _, sentence = answer(lambda: load(plain))
                assert sentence is not None, (source.name, path, name)
                replaced += 1
    print(f"{replaced} fields replaced, all refused")
    assert replaced > 60


def edited(path: Path, *where: str, value: object) -> Path:
    """The same file, whose description says something else at one place."""
    description = node = described(path)
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    return rewritten(path, description=json.dumps(description))


class Peak(TorchFunctionMode):
    """How often torch is called, and the most numbers of one tensor that it makes."""

    calls, most = 0, 0

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls += 1
        if isinstance(made, Tensor):
            self.most = max(self.most, made.untyped_storage().nbytes())
        return made


MUCH: dict[str, tuple[tuple[str, ...], object]] = {
    "layers": (
        ("model", "arguments", "network"),
        {"part": "pyro_tvae.MLP", "arguments": {"encoder_widths": [1] * 200_000}},
    ),
    "numbers": (
        ("model", "arguments", "network"),
        {"part": "pyro_tvae.MLP", "arguments": {"decoder_widths": [20_000, 20_000]}},
    ),
    "couplings": (("guide",), {"part": "pyro_tvae.FlowGuide", "arguments": {"layers": 2**20}}),
    "components": (
        ("model", "arguments", "latent"),
        {"part": "pyro_tvae.MixtureLatent", "arguments": {"n_components": 2**20}},
    ),
    "positions": (("model", "arguments", "capsule_dim"), 2**20),
    "frame": (("model", "arguments", "frame_shape"), [1, 2**20, 2**20]),
    "offsets": (("model", "arguments", "topography", "arguments"), {"kernel": 2**20, "width": 2**20}),
    "box": (
        ("model", "arguments", "topography"),
        {"part": "pyro_tvae.Stationary", "arguments": {"kernel": [2**20, 2**20]}},
    ),
    "axes": (
        ("model", "arguments", "topography"),
        {"part": "pyro_tvae.GridRoll", "arguments": {"grid": [1] * 60, "velocity": 0.5}},
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", MUCH)
def test_a_file_that_asks_for_more_than_it_holds_is_refused_before_it_is_made(what: str, saved: Path) -> None:
    where, value = MUCH[what]
    with Peak() as peak:
        sentence = complaint(edited(saved, *where, value=value), ValueError)
    assert len(sentence) < 1000
    assert peak.calls < 100_000
    assert peak.most < 2**30


class Slanted(Topography):
    """A user's topography whose code is another one later."""

    step = 2

    def offsets(self) -> list[tuple[int, ...]]:
        return [(k, self.step * k) for k in range(3)]


class Woven(Topography):
    """The same with a W of its own."""

    weight_beside = 1.0

    def offsets(self) -> list[tuple[int, ...]]:
        return [(0, 0)]

    def neighborhood(self, n_frames: int, n_positions: int) -> torch.Tensor:
        n = n_frames * n_positions
        return torch.eye(n) + self.weight_beside * torch.eye(n).roll(1, 0)


class Kept(MeanFieldGuide):
    """A guide with a buffer that is in no file."""

    numbers = 5.0

    def __init__(self, model: TVAE) -> None:
        super().__init__(model)
        self.register_buffer("ramp", torch.linspace(0, self.numbers, 7), persistent=False)


@pytest.mark.parametrize(
    ("owner", "name", "other", "said"),
    [
        (Slanted, "step", 3, r"model\.topography is no longer .* the code of Slanted"),
        (Woven, "weight_beside", 1.01, r"model\.topography is no longer .* the code of Woven"),
        (Kept, "numbers", 5.01, r"guide\.ramp is no longer .* the code of Kept"),
    ],
)
def test_code_that_has_changed_since_is_noticed(
    owner: type, name: str, other: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TVAE(FRAME, 4, 2, 6, owner() if issubclass(owner, Topography) else CapsuleRoll(3))
    guide = owner(model) if issubclass(owner, MeanFieldGuide) else MeanFieldGuide(model)
    path = save(tmp_path / "m.safetensors", model, guide)
    again = load(path)
    assert torch.equal(again[0].topography.neighborhood(4, 6), model.topography.neighborhood(4, 6))
    monkeypatch.setattr(owner, name, other)
    with pytest.raises(ValueError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    rewritten(path, marks=None)  # as a file of before
    load(path)


def test_one_bit_that_flips_is_noticed(tmp_path: Path) -> None:
    model = MODELS["roll"]()
    path = save(tmp_path / "m.safetensors", model, MeanFieldGuide(model))
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its weights are not those that were written"):
        load(path)
    rewritten(path, crc32=None)
    load(path)
