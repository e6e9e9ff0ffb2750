"""Messages: every mistake below is made once, and answered in one sentence that names it.

PYRO_TVAE_MESSAGES=FILE in the environment also writes them into FILE, to be read as the person who made the mistake.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import yaml
from complaints import answer
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pyro_tvae
import pyro_tvae.inference
from pyro_tvae import TVAE, CapsuleRoll, ContinuousBernoulli, NoTopography, OrbitEnergy, default_guide
from pyro_tvae.experiments import datasets
from pyro_tvae.experiments.cli import app
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.studies.reproduce import reproduce
from pyro_tvae.inference import ELBO, TrainerOptions, fit
from pyro_tvae.inference.checkpoints import KEY

PARTS = """
TVAE((1, 2), 3, 1, 3)
TVAE((1, 2, 2), 0, 1, 3)
TVAE((1, 2, 2), 3, 1.5, 3)
TVAE((1, 2, 2), 3, 1, 3, mu="x")
TVAE((1, 2, 2), 3, 1, 3, eps=-1)
TVAE((1, 2, 2), 3, 1, 3, centered="no")
TVAE((1, 2, 2), 3, 1, 3, kernel=3)
TVAE((1, 2, 2), 3, 1, 3, topography=5)
TVAE((1, 2, 2), 3, 1, 3, NoTopography(), prior=OrbitEnergy())
TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(2, 1), prior=OrbitEnergy())
CapsuleRoll(0)
CapsuleRoll(3, 1, boundary="closed")
Stationary((0, 3))
Torus((2, 2), (3,))
Torus((2, 2), (3, 3)).neighborhood(2, 4)
Matrix(torch.zeros(2, 2))
Matrix(-torch.eye(4))
Matrix(torch.eye(4)).neighborhood(3, 3)
roll(torch.rand(2, 3, 1, 3), 0.5)
CapsuleRoll(3, 0).energy(torch.rand(3))
GammaGuide(model)
OrbitGuide(model)
FlowGuide(model, layers=0)
FlowGuide(plain)
ConditionalGuide(plain)
CovarianceGuide(model, rank=0)
OrbitGuide(orbits, shared_trunk="no")
OrbitCovarianceGuide(orbits, rank=0)
SemiAmortizedGuide(model, steps=-1)
GammaEnergy(0)
AutoregressiveLatent(2)
StudentLatent(-1)
BinarizedBernoulli(2)
Normal(-1)
Normal(1, activation="tanh")
Convolutional(channels=())
MixtureLatent(0)
MixtureLatent(3, per="pixel")
PseudoInputLatent(0)
TVAE((1, 2, 2), 3, 1, 3, name="a.b")
GuideList(3)
"""
VERBS = """
sample(model, 0)
plain.energy(torch.rand(1, 3, 1, 3))
model.compose({"z": torch.rand(1, 3, 1, 3)})
model.compose({"z": torch.rand(1, 3, 1, 3), "u": torch.rand(2, 2)})
model.decode(torch.rand(2, 2))
encode(model, guide, [1])
encode(model, guide, x[0])
encode(model, guide, (x * 255).byte())
encode(model, guide, x.double())
model(x, observed=3)
model(x, observed=torch.ones(2, 2, dtype=torch.bool))
traverse(model, guide, x[:, :1])
encode(model, default_guide(orbits), x)
encode(wider, guide, x)
encode(model, guide, x * float("nan"))
encode(model, guide, x[:0])
encode(model, guide, x * 2 - 1)
encode(model, guide, x * 255)
encode(model, autoguide, torch.rand(2, 3, 1, 2, 2))
encode(model, guide, x, covariates={"label": x})
model(x, label=x)
ELBO(model, GuideList(guide, default_guide(model)))(x)
interpolate(model, guide, x[:2], x[2:], steps=1)
interpolate(model, guide, x[:2], x[2:], path="straight")
with_n_frames(orbits, default_guide(orbits), 9)
with_n_frames(model, guide, 0)
Encoder(model, FlowGuide(model))
Encoder(model, autoguide)
"""
FILES = """
save("file/model.safetensors", model, guide)
save("swapped.safetensors", guide, model)
load("nothing.safetensors")
load("model.safetensors", device="gpu")
load(".")
load("junk.safetensors")
load("foreign.safetensors")
load("newer.safetensors")
load("damaged.safetensors")
load("misfit.safetensors")
load("unknown.safetensors")
"""
FITTING = """
fit(model, guide, x, max_epochs="many")
fit(model, guide, x, max_epochs=0)
fit(model, guide, x, beta=float("nan"))
fit(model, guide, x, seed=-1)
fit(model, guide, x, gradient_clip=0)
fit(model, guide, "x")
fit(model, guide, x, seed=2**32)
fit(model, guide, x, optimizer="adam")
fit(model, guide, x, optimizer=torch.optim.Adam(model.parameters()))
fit(model, guide, x, optimizer=lambda parameters: None, **once)
fit(model, guide, x, optimizer=lambda parameters: torch.optim.Adam([torch.zeros(1, requires_grad=True)]), **once)
fit(model, guide, x, objective=pyro.infer.RenyiELBO, **once)
fit(model, guide, x * 2 - 1, **once)
fit(model, guide, x, validation=x.double(), **once)
fit(model, guide, x, patience=0, validation=x, **once)
fit(model, guide, x, trainer=TrainerOptions(logger="wandb"))
fit(model, guide, x, trainer=TrainerOptions(accumulate_grad_batches=0))
fit(model, guide, x, trainer="gpu")
fit(model, guide, x, max_epoch=1)
fit(model, pyro.infer.autoguide.AutoNormal(model), x, batch_size=2, **once)
fit(model, guide, x, objective=ELBO(model, guide))
fit(model, guide, x, resume=3)
fit(model, guide, x, patience=2, **once)
fit(model, guide, x[:0], **once)
fit(model, guide, x, frame_dropout=2, **once)
fit(model, guide, x, num_particles=0, **once)
fit(model, guide, torch.utils.data.DataLoader([{"y": x[0]}]), **once)
fit(model, guide, x, max_epochs=-1, progress=False, schedule=lambda optimizer, steps: None)
fit(model, guide, x, trainer=TrainerOptions(accelerator="abacus"))
fit(model, guide, x, matmul_precision="bfloat16")
fit(model, guide, x, objective=Nan, **once)
fit(model, guide, x * float("nan"), **once)
fit(continuous, default_guide(continuous), x * 255, **once)
fit(model, guide, torch.utils.data.DataLoader([{"x": (x[0] * 255).byte()}]), **once)
fit(model, guide, x, resume="nothing.ckpt", **once)
fit(model, guide, x, resume=".", **once)
fit(model, guide, x, resume="junk.ckpt", **once)
fit(model, guide, x, resume="foreign.ckpt", **once)
fit(model, guide, x, resume="newer.ckpt", **once)
fit(model, guide, x, resume="lacks.ckpt", **once)
fit(wider, default_guide(wider), x, resume="last.ckpt", **once)
"""
JUDGING = """
log_likelihood(model, guide, x, 0)
log_likelihood(model, guide, x, 2, estimator="magic")
log_likelihood(model, guide, x, 2, batch_size=0)
log_likelihood(model, guide, x[:0], 2)
log_likelihood(model, guide, x * float("nan"), 2)
log_weights(model, guide, x, 0)
log_weights(model, guide, x[:0], 2)
log_weights(model, default_guide(orbits), x, 2)
annealed_importance(model, guide, x, annealing=Annealing(num_temperatures=1))
annealed_importance(model, FlowGuide(model), x)
MeanFieldELBO(model, FlowGuide(model))
annealed_importance(model, guide, x[:0])
bracket(model, guide, 0)
bracket(model, guide, x)
log_likelihood(model, guide, x * 2 - 1, 2)
log_likelihood(model, guide, x, 2, covariates={"label": x})
log_likelihood(model, joint, x, 2)
log_likelihood(factored, guide, x, 2, estimator="frame")
annealed_importance(factored, guide, x)
IWAE(model, joint)(x)
DReG(model, pyro.infer.autoguide.AutoNormalMessenger(model))
ELBO(pyro.poutine.scale(model, scale=2.0), guide)
MeanFieldELBO(model, autoguide)
calibration(model, guide, method="magic")
calibration(model, guide, n_draws=0)
compare({"alone": (model, guide)}, x)
compare({"mass": (model, guide), "density": (continuous, guide)}, x)
predictive_check(model, torch.rand(4, 3, 1, 3), x, 1)
to_arviz(model, guide, x, method="magic")
to_arviz(model, guide, x, draws=0)
to_arviz(model, guide, x, groups=["x"])
to_arviz(model, guide, x, groups="posterior")
to_arviz(model, guide, x[:0])
to_arviz(model, guide, x, draws=9, method="importance", num_particles=3)
to_arviz(model, guide, x, coords={"z": [1]})
to_arviz(model, guide, x, coords={"label": [1]})
from_netcdf("nothing.nc")
from_netcdf("junk.nc")
equivariance_error(torch.rand(2, 3))
equivariance_error(torch.full((2, 3, 1, 3), float("nan")))
equivariance_error(torch.rand(2, 3, 1, 3), boundary="closed")
equivariance_error(torch.rand(2, 3, 2, 1), boundary="open")
roll_correlation(torch.rand(2, 3, 1, 3), torch.zeros(2, 3).long(), 0)
roll_correlation(torch.rand(2, 3, 1, 3), torch.zeros(2).long(), 3)
forward_roll(model, guide, x, context=9)
forward_roll(model, guide, x, context=1, batch_size=0)
forward_roll(model, guide, x, context=1, observed=torch.arange(3) > 0)
active_latents(torch.rand(3))
"""
DATA = """
mnist("nowhere")
arrays("nothing.npy")
arrays(".")
arrays("junk.npy")
arrays("objects.npy")
arrays("integers.npy")
arrays("mask.npy")
arrays("large.npy")
arrays("flat.npy")
arrays("two.npz")
arrays("two.npz", key="c")
arrays("two.npz", key="a", labels_key="b")
arrays("images.npy", validation=2)
arrays("images.npy", axes="NHX")
arrays("images.npy", axes="NSHW")
arrays("images.npy", range=[1, 0])
arrays("frames_first.npy")
arrays("colors.npy")
arrays("sixteen.npy")
arrays("deep.npy")
arrays("labels.npz", key="x", labels_key="objects")
arrays("labels.npz", key="x", labels_key="table")
arrays("labels.npz", key="x", labels_key="table", label_column=5)
arrays("labels.npz", key="x", factors_key="table", factor_names=["azimuth"])
arrays("labels.npz", key="x", factors_key="table", periods={"azimut": 360})
arrays("labels.npz", key="x", factors_key="objects")
arrays("labels.npz", key="x", axes="SHW", frame_rate=10)
arrays("weights.pt")
arrays("what.xyz")
arrays("pictures")
arrays("pictures", axes="NSHWC")
arrays("empty")
arrays("junk.h5")
arrays("junk.mat")
from_torch([torch.rand(3, 4), torch.rand(3, 5)])
from_torch([(x[0], 1)], labels_key=2)
digits(size=3)
dsprites(path="nothing.npz")
dsprites(path="junk.npy")
dsprites(path=".")
dsprites(sha256="a")
dsprites(moving=())
Transformations(rotation="x")
Transformations(rotation=True, moving=("hue",))
SequenceDataModule(digits(), Transformations(rotation=True), batch_size=0)
SequenceDataModule(digits(), Transformations(rotation=True), batch_size="x")
SequenceDataModule(digits(), Transformations(rotation=True), n_frames=0)
SequenceDataModule(digits(), Transformations(rotation=True), n_train=10**6)
SequenceDataModule(arrays("sequences.npy"), Transformations(rotation=True), n_frames=3)
SequenceDataModule(arrays("sequences.npy"), n_frames=5)
next(SequenceDataModule(digits(), Transformations(rotation=True)).batches("all"))
reproduce("table3")
reproduce("table1", seeds=[])
reproduce("table1", budget="day")
"""
COMMANDS = """
trian
train fit.max_epoch=3
train fit.max_epochs=many
train topography=capsule_rol
train topography=5
train topography=none
train prior=null
train seed=-1
train model.centered=no
train data=arrays data.source.path=x.npy fit.max_epoch=3
train data=arrays data.source.path=images(1).npy
train --multirun seed=0,1 fit.max_epoch=3
train --multirun fit.max_epoch=3,4
train fit
train fit.max_epochs=${x
train guide=orbit prior=gaussian
train data.source.path=nothing.npy
train data=arrays
train data=arrays data.source.path=nothing.npy
train data=mnist data.source.root=nowhere
train data.n_train=1000000
train fit.accelerator=abacus
train experiment=tvae_mnist
train resume=nowhere
train resume=unfinished seed=3
train --import not_there
evaluate nowhere
evaluate words
evaluate hostile
evaluate lacking
evaluate unfinished
report unfinished
posterior unfinished --sequences 0
posterior unfinished --draws many
posterior unfinished --draws 3
posterior unfinished --thin 2
calibrate unfinished --draws 100
calibrate unfinished --simulations 10
calibrate unfinished --method magic
compare unfinished
compare unfinished words --temperatures 1
likelihood unfinished --particles 0
reproduce table3
reproduce table1 --seeds one
reproduce table1 --budget day
reproduce table1 fit.max_step=3
results --records nowhere
benchmark sped
benchmark speed --threads 0
"""
GROUPS = {
    "Parts": PARTS,
    "Verbs": VERBS,
    "Files of models": FILES,
    "Fitting": FITTING,
    "Judging": JUDGING,
    "Data": DATA,
}
CASES = [(group, line) for group, lines in GROUPS.items() for line in lines.strip().splitlines()]


class Factored(TVAE):
    def heads(self, t: torch.Tensor) -> None:
        pyro.factor("slow", -t.square().sum((-1, -2, -3)))


class Nan(ELBO):
    def forward(self, x: torch.Tensor, observed: torch.Tensor | None = None) -> Any:
        terms = super().forward(x, observed)
        return terms._replace(objective=terms.objective * float("nan"))


def damaged_models() -> None:
    weights = load_file("model.safetensors")
    with Path("model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    described = json.loads(header["description"])
    Path("junk.safetensors").write_text("hello")
    save_file({"w": torch.zeros(2)}, "foreign.safetensors")
    save_file(weights, "newer.safetensors", metadata=header | {"version": "9"})
    save_file(weights, "damaged.safetensors", metadata=header | {"description": "{"})
    described["model"]["arguments"]["n_capsules"] = 2
    save_file(weights, "misfit.safetensors", metadata=header | {"description": json.dumps(described)})
    described["model"]["arguments"]["topography"] = {"part": "you.Yours", "arguments": {}}
    save_file(weights, "unknown.safetensors", metadata=header | {"description": json.dumps(described)})


def damaged_checkpoints() -> None:
    whole = torch.load("last.ckpt", weights_only=True)
    torch.save(whole | {KEY: {"version": 9, "recent": []}}, "newer.ckpt")
    torch.save({"a": 1}, "foreign.ckpt")
    torch.save({name: value for name, value in whole.items() if name != "loops"}, "lacks.ckpt")
    Path("junk.ckpt").write_text("junk")


def wrong_data() -> None:
    np.save("integers.npy", np.zeros((9, 4, 4), "i4"))
    np.save("mask.npy", np.ones((9, 4, 4), "u1"))
    np.save("large.npy", np.full((9, 4, 4), 3.0))
    np.save("flat.npy", np.zeros(3))
    np.savez("two.npz", a=np.zeros((9, 4, 4)), b=np.full(9, 0.5))
    np.save("objects.npy", np.array([None]), allow_pickle=True)
    np.save("frames_first.npy", np.zeros((8, 40, 1, 6, 6)))
    np.save("colors.npy", np.zeros((9, 3, 8, 8)))
    np.save("sixteen.npy", np.full((9, 6, 6), 15, "u1"))
    np.save("deep.npy", np.full((9, 6, 6), 900, "u2"))
    np.savez("labels.npz", x=np.zeros((9, 6, 6)), objects=np.array([None] * 9), table=np.zeros((9, 2)))
    torch.save(torch.zeros(9, 6, 6), "weights.pt")
    Path("empty").mkdir()
    for number in range(3):
        Path("pictures", "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((6, 6), "u1")).save(f"pictures/{'ab'[number % 2]}/{number}.png")
    np.save("images.npy", np.random.default_rng(0).random((20, 4, 4)))
    np.save("sequences.npy", np.random.default_rng(0).random((20, 3, 1, 2, 2)))
    for name in ("junk.npy", "junk.nc", "junk.h5", "junk.mat", "what.xyz", "file"):
        Path(name).write_text("junk")


def broken_runs() -> None:
    text = OmegaConf.to_yaml(compose(), resolve=True)
    hostile, lacking = yaml.safe_load(text), yaml.safe_load(text)
    hostile["topography"]["_target_"] = "os.system"
    del lacking["seed"]
    texts = {"words": "just words", "unfinished": text}
    for name, config in (texts | {"hostile": yaml.safe_dump(hostile), "lacking": yaml.safe_dump(lacking)}).items():
        Path(name).mkdir()
        Path(name, "config.yaml").write_text(config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A folder with what is wrong in every way, to stand in; and the names that the lines above use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("place"))
        torch.manual_seed(0)
        model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
        guide, x = default_guide(model), torch.rand(4, 3, 1, 2, 2)
        once = {"max_epochs": 1, "trainer": TrainerOptions(accelerator="cpu"), "progress": False}
        pyro_tvae.save("model.safetensors", model, guide)
        fit(model, guide, x, directory=".", **once)  # type: ignore[arg-type]
        Path("checkpoints/last.ckpt").rename("last.ckpt")
        damaged_models()
        damaged_checkpoints()
        wrong_data()
        broken_runs()
        names = {name: getattr(module, name) for module in (pyro_tvae, pyro_tvae.inference) for name in module.__all__}
        names |= {name: getattr(datasets, name) for name in datasets.__all__}
        names |= {"model": model, "guide": guide, "x": x, "once": once, "torch": torch, "reproduce": reproduce}
        names["plain"] = TVAE((1, 2, 2), 3, 1, 3, NoTopography())
        names["orbits"] = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0), prior=OrbitEnergy())
        names["continuous"] = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0), likelihood=ContinuousBernoulli())
        names["wider"] = TVAE((1, 2, 2), 3, 2, 3, CapsuleRoll(3, 0))
        names["autoguide"], names["joint"] = (
            kind(model) for kind in (pyro.infer.autoguide.AutoNormal, pyro.infer.autoguide.AutoMultivariateNormal)
        )
        for one in ("autoguide", "joint"):
            names[one](x)
        names["factored"] = Factored((1, 2, 2), 3, 1, 3, CapsuleRoll(3, 0))
        yield names | {"Nan": Nan, "pyro": pyro}


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Iterator[dict[str, list[tuple[str, str]]]]:
    """Group -> what was typed and what was answered, written at the end where that was asked for."""
    messages: dict[str, list[tuple[str, str]]] = {}
    home = request.config.invocation_params.dir
    yield messages
    wanted = os.environ.get("PYRO_TVAE_MESSAGES")
    if wanted:
        lines = [
            "# Messages",
            "",
            "Every mistake made once, and its answer; written by",
            "`PYRO_TVAE_MESSAGES=FILE python -m pytest tests/test_messages.py`.",
        ]
        for group, pairs in messages.items():
            lines += ["", f"## {group}", ""]
            lines += [line for typed, said in pairs for line in (f"- `{typed}`", f"  {said}")]
        (home / wanted).write_text("\n".join(lines) + "\n", encoding="utf-8")


def files() -> list[Path]:
    return sorted(path for path in Path().rglob("*") if path.is_file())


def tidy(text: str) -> str:
    return " ".join(text.replace(str(Path.cwd()), "HERE").split())


@pytest.mark.parametrize(("group", "line"), CASES, ids=[line for _, line in CASES])
def test_a_mistake_is_answered_in_a_sentence(
    group: str, line: str, place: dict[str, Any], found: dict[str, list[tuple[str, str]]]
) -> None:
    _, said = answer(lambda: eval(line, dict(place)), deep="abacus" in line)
    assert said, "it was taken"
    assert said[-1] in ".)", said
    found.setdefault(group, []).append((line, tidy(said)))


@pytest.mark.parametrize("line", COMMANDS.strip().splitlines())
def test_a_mistyped_command_is_answered_in_a_sentence(
    line: str, place: dict[str, Any], found: dict[str, list[tuple[str, str]]]
) -> None:
    before = files()
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code != 0
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert files() == before, "nothing is left behind"
    found.setdefault("Commands", []).append((f"pyro-tvae {line}", tidy(result.output)))
