"""Judging leaves no trace: no public verb or function puts a model into Pyro's store, or keeps it alive."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyro_tvae
from pyro_tvae import TVAE, CapsuleRoll, Guide, MeanFieldGuide, OrbitEnergy, OrbitGuide, inference

FRAME, S, C, D = (1, 4, 4), 4, 2, 4

Use = Callable[[TVAE, Guide, Tensor, Path], object]

FEW: dict[str, Any] = {"annealing": inference.Annealing(1, 3)}

USES: dict[str, Use] = {
    "encode": lambda m, g, x, p: pyro_tvae.encode(m, g, x),
    "reconstruct": lambda m, g, x, p: pyro_tvae.reconstruct(m, g, x),
    "sample": lambda m, g, x, p: pyro_tvae.sample(m, 2),
    "traverse": lambda m, g, x, p: pyro_tvae.traverse(m, g, x),
    "interpolate": lambda m, g, x, p: pyro_tvae.interpolate(m, g, x[:2], x[2:]),
    "save": lambda m, g, x, p: pyro_tvae.save(p / "m.safetensors", m, g),
    "load": lambda m, g, x, p: pyro_tvae.load(pyro_tvae.save(p / "m.safetensors", m, g)),
    "with_n_frames": lambda m, g, x, p: (
        pyro_tvae.with_n_frames(m, g, 6) if isinstance(g, MeanFieldGuide) else pyro_tvae.with_n_frames(m, g, S)
    ),
    "default_guide": lambda m, g, x, p: pyro_tvae.default_guide(m),
    "Encoder": lambda m, g, x, p: pyro_tvae.Encoder(m, g)(x),
    "Decoder": lambda m, g, x, p: pyro_tvae.Decoder(m)(torch.rand(2, S, C, D)),
    "log_likelihood": lambda m, g, x, p: inference.log_likelihood(m, g, x, 3),
    "log_weights": lambda m, g, x, p: inference.log_weights(m, g, x, 3),
    "annealed_importance": lambda m, g, x, p: inference.annealed_importance(m, g, x, **FEW),
    "reverse_annealing": lambda m, g, x, p: inference.reverse_annealing(m, g, 2, **FEW),
    "bracket": lambda m, g, x, p: inference.bracket(m, g, 2, **FEW),
    "forward_roll": lambda m, g, x, p: inference.forward_roll(m, g, x, context=2),
    "roll_velocity_test": lambda m, g, x, p: inference.roll_velocity_test(m, g, x, n_shuffles=19),
    "equivariance_error": lambda m, g, x, p: inference.equivariance_error(pyro_tvae.encode(m, g, x)),
    "to_arviz": lambda m, g, x, p: inference.to_arviz(m, g, x, draws=3),
    "expected_size": lambda m, g, x, p: inference.expected_size(m, g, x, draws=3),
    "to_zarr": lambda m, g, x, p: inference.to_zarr(inference.to_arviz(m, g, x, draws=3), p / "d.zarr"),
    "compare": lambda m, g, x, p: inference.compare({"one": (m, g), "two": (m, g)}, x, 3, n_simulations=2),
    "bound_gap": lambda m, g, x, p: inference.bound_gap(m, g, inference.simulate(m, 2), 3),
    "predictive_check": lambda m, g, x, p: inference.predictive_check(m, pyro_tvae.encode(m, g, x), x, 3),
    "to_netcdf": lambda m, g, x, p: inference.to_netcdf(inference.to_arviz(m, g, x, draws=3), p / "d.nc"),
    "nuts": lambda m, g, x, p: inference.nuts(m, x, init=g, num_samples=4, warmup_steps=2, num_chains=1),
    "guide_quality": lambda m, g, x, p: inference.guide_quality(
        m, g, x, inference.nuts(m, x, init=g, num_samples=4, warmup_steps=2, num_chains=1), num_particles=5
    ),
    "calibration": lambda m, g, x, p: inference.calibration(m, g, n_simulations=4, n_draws=9),
    "identified": lambda m, g, x, p: inference.identified(m, inference.simulate(m, 2).latents),
    "simulate": lambda m, g, x, p: inference.simulate(m, 2),
    "fit": lambda m, g, x, p: inference.fit(m, g, x, max_epochs=1, progress=False),
    "ELBO": lambda m, g, x, p: inference.ELBO(m, g)(x).elbo.detach(),
    "IWAE": lambda m, g, x, p: inference.IWAE(m, g, 2)(x).elbo.detach(),
    "DReG": lambda m, g, x, p: inference.DReG(m, g, 2)(x).objective.sum().backward(),
    "MeanFieldELBO": lambda m, g, x, p: inference.MeanFieldELBO(m, g)(x).elbo.detach(),
}
# What takes t, draws or labels alone, and no model or guide: there is nothing that it could register.
WITHOUT_A_MODEL = {
    "active_latents",
    "commutation",
    "roll",
    "capsule_correlation",
    "roll_correlation",
    "roll_velocity",
    "binarized",
    "of_measured",
    "scored_alike",
    "of_seen",
    "seen_pixels",
    "class_selectivity",
    "neighbor_correlation",
    "preferred_class",
    "preferred_value",
    "pose_probe",
    "probe",
    "from_netcdf",
    "pareto_shape",
    "pareto_smooth",
    "frame_statistics",
}


def pair(prior: str) -> tuple[TVAE, Guide]:
    if prior == "orbit":
        model = TVAE(FRAME, S, C, D, CapsuleRoll(D, 0), prior=OrbitEnergy(), mu=1.0)
        return model, OrbitGuide(model)
    model = TVAE(FRAME, S, C, D, CapsuleRoll(3), mu=1.0)
    return model, MeanFieldGuide(model)


@pytest.mark.parametrize("prior", ["gaussian", "orbit"])
@pytest.mark.parametrize("name", USES)
def test_it_leaves_the_store_alone_and_the_model_free_to_go(name: str, prior: str, tmp_path: Path) -> None:
    model, guide = pair(prior)
    x = torch.rand(4, S, *FRAME)
    pyro.param("mine", torch.tensor(1.0))
    before = dict(pyro.get_param_store().named_parameters())
    USES[name](model, guide, x, tmp_path)
    assert dict(pyro.get_param_store().named_parameters()).keys() == before.keys()
    assert pyro.get_param_store()._params["mine"] is before["mine"]
    gone = weakref.ref(model), weakref.ref(guide)
    del model, guide
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_every_public_function_is_placed() -> None:
    """A new one has to be walked as well."""
    functions = {
        name
        for module in (pyro_tvae, inference)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    assert functions <= {*USES, *WITHOUT_A_MODEL}
    for name in WITHOUT_A_MODEL:
        home = pyro_tvae if name in pyro_tvae.__all__ else inference  # type: ignore[attr-defined]
        assert not {"model", "guide"} & {*inspect.signature(getattr(home, name)).parameters}
    objectives = {
        name
        for name in inference.__all__  # type: ignore[attr-defined]
        if isinstance(getattr(inference, name), type) and issubclass(getattr(inference, name), inference.Objective)
    }
    assert objectives - {"Objective"} <= {*USES}


def test_a_store_that_is_saved_after_a_fit_holds_a_named_pair(tmp_path: Path) -> None:
    """As after steps of SVI; of pairs without chosen names nothing is left in it."""

    def make() -> tuple[TVAE, MeanFieldGuide]:
        model = TVAE((1, 2, 2), 3, 1, 3, CapsuleRoll(3), mu=1.0, name="patches")
        return model, MeanFieldGuide(model, name="patches_guide")

    pyro.clear_param_store()
    x = torch.rand(8, 3, 1, 2, 2)
    model, guide = make()
    SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    names = {*pyro.get_param_store()}
    del model, guide
    gc.collect()
    pyro.clear_param_store()
    model, guide = make()
    inference.fit(model, guide, x, max_epochs=1, progress=False)
    assert {*pyro.get_param_store()} == names
    pyro.get_param_store().save(tmp_path / "store.pt")
    weights = [parameter.detach().clone() for parameter in (*model.parameters(), *guide.parameters())]
    del model, guide
    gc.collect()
    pyro.clear_param_store()
    model, guide = make()
    pyro.get_param_store().load(tmp_path / "store.pt")
    model()
    guide(x)
    parameters = [*model.parameters(), *guide.parameters()]
    assert all(map(torch.equal, weights, parameters))
