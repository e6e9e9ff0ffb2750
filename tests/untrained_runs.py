"""Runs' folders as training leaves them, with untrained weights, for tests of the commands that judge a run."""

from __future__ import annotations

from pathlib import Path

import pyro_tvae
from pyro_tvae.experiments.config.building import build
from pyro_tvae.experiments.config.composition import compose
from pyro_tvae.experiments.runs.files import write_text

SMALL = ["data.n_train=8", "data.n_validation=4", "data.n_test=6", "model.n_capsules=2", "fit.accelerator=cpu"]
KINDS = {
    "orbits": [],
    "roll": ["topography=capsule_roll", "prior=gaussian", "guide=mean_field"],
    "plain": ["experiment=plain_vae"],
    "mixture": ["latent=mixture"],
    "conditional": ["guide=conditional_orbit"],
}


def make_run(folder: Path, kind: str) -> Path:
    """A run's folder as training leaves it, with untrained weights and a name that wants escaping."""
    from omegaconf import OmegaConf

    config = compose([*SMALL, *KINDS[kind]])
    config.name = "a <b> & c"
    parts = build(config)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    pyro_tvae.save(folder / "model.safetensors", parts.model, parts.guide)
    return folder
