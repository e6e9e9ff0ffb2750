"""Make the files that later versions have to read: ``python tests/files/make.py tests/files/v3``.

It writes with whatever version of pyro-tvae is importable, one model per line of MODELS, and beside them what that
version said of them: log-weights of fixed input. Folders that are there already are history, and are not made anew: v1
was written by commit 11520c3, v2 by a4e2ea5. A new public part gets a line in MODELS, and its file alone is written by
``python tests/files/make.py tests/files/v2 NAME``. Beside the models are two folders of one run: as it was interrupted
in its third epoch, and as it ended. They hold no path and no log, since those say where they were made.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_tvae as p
from pyro_tvae import TVAE, Guide
from pyro_tvae.inference import log_weights

SAID = "log_weights.json"


def images(model: TVAE) -> Tensor:
    """(2, S, channel, height, width) in [0, 1], of whole numbers alone: the same whatever draws random ones."""
    shape = (2, model.n_frames, *model.frame_shape)
    values = torch.arange(torch.Size(shape).numel()) * 37 % 101
    return (values.reshape(shape) / 100).to(next(model.parameters()).dtype)


def judged(model: TVAE, guide: Guide) -> list[list[float]]:
    """Log-weights (K=3, B=2) of fixed input and seed, nats per sequence."""
    weights: list[list[float]] = log_weights(model, guide, images(model), 3, seed=7).tolist()
    return weights


def build(topography: object, dim: int = 3, **parts: object) -> TVAE:
    parts.setdefault("network", p.MLP((1.0,), (1.0,)))
    return TVAE((1, 4, 4), 3, 2, dim, topography, mu=2.0, **parts)  # type: ignore[arg-type]


def tied() -> tuple[TVAE, Guide]:
    """The encoder of the pseudo-inputs is the guide's."""
    model = build(p.CapsuleRoll(3), latent=p.PseudoInputLatent(2))
    guide = p.MeanFieldGuide(model)
    guide.z_encoder = model.latent.encoder
    return model, guide


def frozen() -> tuple[TVAE, Guide]:
    """Parameters without a gradient, and names in the store of one's own, in double precision."""
    model = build(p.CapsuleRoll(3, 1, learned=True), name="mine").double()
    guide = p.MeanFieldGuide(model, name="its").double()
    model.decoder.requires_grad_(False)
    return model, guide


def pair(guide: Callable[[TVAE], Guide], *arguments: object, **options: object) -> Callable[[], tuple[TVAE, Guide]]:
    def make() -> tuple[TVAE, Guide]:
        model = build(*(one() if callable(one) else one for one in arguments), **{k: v() for k, v in options.items()})
        return model, guide(model)

    return make


MODELS: dict[str, Callable[[], tuple[TVAE, Guide]]] = {
    "mean_field": pair(p.MeanFieldGuide, lambda: p.CapsuleRoll(3, 1), latent=p.NormalLatent, likelihood=p.Bernoulli),
    "no_topography": pair(
        lambda model: p.MeanFieldGuide(model, network=p.MLP((1.5,), (1.0,))),
        p.NoTopography,
        latent=p.LaplaceLatent,
        likelihood=lambda: p.Normal(0.3, learned=True, activation="sigmoid"),
        network=lambda: p.Convolutional((3,), 1),
    ),
    "shared_trunk": pair(
        p.SharedTrunkGuide,
        lambda: p.Stationary((2, 3)),
        latent=p.StudentLatent,
        likelihood=p.ContinuousBernoulli,
    ),
    "orbit": pair(
        lambda model: p.OrbitGuide(model, shared_trunk=True),
        lambda: p.CapsuleRoll(3, 0),
        prior=p.OrbitEnergy,
        likelihood=lambda: p.BinarizedBernoulli(seed=1),
        centered=lambda: True,
    ),
    "orbit_covariance": pair(
        lambda model: p.OrbitCovarianceGuide(model, rank=2), lambda: p.CapsuleRoll(3, 0), prior=p.OrbitEnergy
    ),
    "conditional_orbit": pair(p.ConditionalOrbitGuide, lambda: p.Stationary((3, 1)), prior=p.OrbitEnergy),
    "gamma": pair(p.GammaGuide, lambda: p.Torus((2, 2), (2, 2)), 4, prior=lambda: p.GammaEnergy(0.8, learned=True)),
    "sequence": pair(
        p.SequenceGuide,
        lambda: p.GridRoll(3, velocity=0.5),
        prior=p.GaussianEnergy,
        latent=p.AutoregressiveLatent,
    ),
    "low_rank": pair(
        lambda model: p.CovarianceGuide(model, rank=2),
        lambda: p.GridRoll(3, grid=(2, 2), velocity=(1, 0)),
        4,
        prior=p.GammaEnergy,
        likelihood=lambda: p.BinarizedBernoulli(0.4),
    ),
    "full_covariance": pair(
        lambda model: p.CovarianceGuide(model, rank=None), lambda: p.Matrix((torch.eye(9) + 0.1).tolist())
    ),
    "conditional": pair(p.ConditionalGuide, lambda: p.CapsuleRoll(3, 1, boundary="truncate", learned=True)),
    "flow": pair(lambda model: p.FlowGuide(model, layers=1), lambda: p.CapsuleRoll(3, 1), centered=lambda: True),
    "semi_amortised": pair(
        lambda model: p.SemiAmortizedGuide(model, steps=2, num_particles=1), lambda: p.CapsuleRoll(3, 1)
    ),
}
if hasattr(p, "MixtureLatent"):  # which version 1 lacks, and names, and ties
    MODELS |= {
        "mixture": pair(p.MeanFieldGuide, lambda: p.CapsuleRoll(3, 1), latent=lambda: p.MixtureLatent(3, per="frame")),
        "tied": tied,
        "frozen": frozen,
    }
if hasattr(p, "RadialGuide"):
    MODELS["radial"] = pair(
        lambda model: p.RadialGuide(model, shared_trunk=True),
        lambda: p.CapsuleRoll(3, 1),
        network=lambda: p.MLP((1.0,), (1.0,), activation="silu"),
    )
if hasattr(p, "LaplaceGuide"):
    MODELS["laplace"] = pair(
        lambda model: p.LaplaceGuide(model, p.OrbitGuide(model), max_iterations=3),
        lambda: p.CapsuleRoll(3, 0),
        prior=p.OrbitEnergy,
    )


def write(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    said = json.loads((folder / SAID).read_text()) if (folder / SAID).is_file() else {}
    for seed, (name, make) in enumerate(MODELS.items()):
        if name in names:
            torch.manual_seed(seed)
            model, guide = make()
            with torch.no_grad():  # so that no value is the one that a constructor would make
                for value in dict.fromkeys((*model.parameters(), *guide.parameters())):
                    value.add_(0.1 * torch.rand_like(value))
            p.save(folder / f"{name}.safetensors", model, guide)
            said[name] = judged(*p.load(folder / f"{name}.safetensors"))
    (folder / SAID).write_text(json.dumps(said, indent=1) + "\n")


RUN = [
    "data.n_train=16",
    "data.n_validation=4",
    "data.n_test=4",
    "data.n_frames=3",
    "model.n_capsules=2",
    "model.capsule_dim=3",
    "likelihood=binarized_bernoulli",
    "network.encoder_widths=[0.5]",
    "network.decoder_widths=[0.5]",
    "fit.max_epochs=3",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "baseline.enabled=false",
    "evaluation.num_particles=2",
]
KEPT = {
    "interrupted": ("config.yaml", "untrained.safetensors", "checkpoints/last.ckpt", "checkpoints/best.ckpt"),
    "ended": ("config.yaml", "untrained.safetensors", "model.safetensors", "history.json", "evaluation.json"),
}


def runs(folder: Path) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from pyro_tvae.experiments.config import compose  # type: ignore[attr-defined]
    from pyro_tvae.experiments.runs import train_run  # type: ignore[attr-defined]

    steps = 0

    def interrupt(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:  # two steps an epoch
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as scratch:
        made = {name: Path(scratch).resolve() / name for name in KEPT}
        train_run(compose(RUN), made["ended"])
        hook = register_optimizer_step_post_hook(interrupt)
        with suppress(KeyboardInterrupt, SystemExit):
            train_run(compose(RUN), made["interrupted"])
        hook.remove()
        for name, kept in KEPT.items():
            for file in kept:
                (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made[name] / file, folder / name / file)
        for file in (folder / "interrupted" / "checkpoints").iterdir():
            torch.save(elsewhere(torch.load(file, weights_only=True), f"{made['interrupted']}/"), file)


def elsewhere(value: Any, start: str) -> Any:
    """The same without the folder that it was made in."""
    if isinstance(value, str):
        return value.replace(start, "")
    if isinstance(value, dict):
        for key in list(value):  # in place, since a state's dict has attributes of its own
            value[elsewhere(key, start)] = elsewhere(value.pop(key), start)
        return value
    return type(value)(elsewhere(item, start) for item in value) if type(value) in (list, tuple) else value


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    if not sys.argv[2:] and not (target / "ended").exists():
        runs(target)
    chosen = sys.argv[2:] or [name for name in MODELS if not (target / f"{name}.safetensors").exists()]
    write(target, chosen)
