"""Encoders and decoders that are shipped: the exported program gives the same t, for any number of sequences."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from combinations import FRAME, GUIDES, LIKELIHOODS, NETWORKS, ORBITS, C, D, S, build, sensible
from torch import Tensor, nn
from torch.export import Dim

from pyro_tvae import TVAE, CapsuleRoll, Decoder, Encoder, MeanFieldGuide, encode
from pyro_tvae.topographies.base import ROWS

CLOSED = ("mean_field", "shared_trunk", "sequence", "gamma", "orbit", "orbit, shared trunk", "radial")
TOPOGRAPHIES = ("orbits", "roll", "learned", "truncated", "stationary", "torus", "velocity", "grid", "matrix", "none")


def priors(guide: str) -> tuple[str | None, ...]:
    return {"radial": ("gaussian",)}.get(guide, ("orbit",) if guide in ORBITS else ("gamma", "gaussian", None))


PAIRS = [
    (topography, prior, guide)
    for topography, guide in itertools.product(TOPOGRAPHIES, CLOSED)
    for prior in priors(guide)
    if sensible(topography, prior, guide)
]


def exported(module: nn.Module, example: Tensor, name: str) -> nn.Module:
    sizes = {name: {0: Dim("batch", min=1, max=1024)}}
    return torch.export.export(module.eval(), (example,), dynamic_shapes=sizes, strict=False).module()


@pytest.mark.parametrize("one", PAIRS, ids=["-".join(map(str, one)) for one in PAIRS])
def test_the_exported_encoder_says_what_encode_says(one: tuple[str, str | None, str]) -> None:
    topography, prior, guide = one
    network = list(NETWORKS)[PAIRS.index(one) % 2]
    model = build(topography, prior, network=network)
    own = GUIDES[guide](model)
    program = exported(Encoder(model, own), torch.rand(3, S, *FRAME), "x")
    for n in (1, 2, 7):
        x = torch.rand(n, S, *FRAME)
        torch.testing.assert_close(program(x), encode(model, own, x), rtol=1e-5, atol=1e-6)
    assert not any(name.startswith("model.decoder") for name in program.state_dict())
    assert torch.isfinite(encode(model, own, torch.rand(2, S, *FRAME))).all()  # nothing of the export is left behind


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_exported_decoder_says_what_decode_says(likelihood: str, network: str) -> None:
    if "binarised" in likelihood and torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 exports no program that makes a generator, as the thresholds' seed does")
    model = build("roll", "gaussian", likelihood, network=network, centered=True)
    program = exported(Decoder(model), torch.rand(3, S, C, D), "t")
    for n in (1, 2, 7):
        t = torch.randn(n, S, C, D)
        # They may multiply by two libraries, which round in another order.
        torch.testing.assert_close(program(t), model.decode(t).mean, rtol=1e-4, atol=2e-5)


OTHERS = [guide for guide in GUIDES if guide not in CLOSED]


@pytest.mark.parametrize("guide", OTHERS)
def test_a_guide_without_a_closed_mean_is_refused_by_name(guide: str) -> None:
    model = build("orbits", "orbit" if guide in ORBITS else "gaussian")
    own = GUIDES[guide](model)
    with pytest.raises(ValueError, match=f"the posterior mean of {type(own).__name__} takes (draws|gradients)"):
        Encoder(model, own)


@pytest.mark.parametrize("guide", CLOSED)
def test_onnx_says_the_same(guide: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = build("orbits", priors(guide)[0])
    own = GUIDES[guide](model)
    path = tmp_path / "encoder.onnx"
    example = torch.rand(3, S, *FRAME)
    sizes = {"x": {0: Dim("batch", min=1, max=1024)}}
    torch.onnx.export(Encoder(model, own).eval(), (example,), path, dynamo=True, dynamic_shapes=sizes, verbose=False)
    session = runtime.InferenceSession(str(path))
    for n in (1, 2, 7):
        x = torch.rand(n, S, *FRAME)
        (t,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(t), encode(model, own, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel", "boundary"), [(3, "circular"), (50, "truncate")])
def test_energies_that_are_summed_without_w_are_exported_too(kernel: int, boundary: str, tmp_path: Path) -> None:
    """A lattice too large for W: convolved, or transformed."""
    topography = CapsuleRoll(kernel, 1, boundary=boundary)
    model = TVAE((1, 2, 2), n_frames=60, n_capsules=1, capsule_dim=10, topography=topography)
    assert model.n_frames * model.capsule_dim > ROWS
    own, example, x = MeanFieldGuide(model), torch.rand(3, 60, 1, 2, 2), torch.rand(7, 60, 1, 2, 2)
    expected = encode(model, own, x)
    program = exported(Encoder(model, own), example, "x")
    torch.testing.assert_close(program(x), expected, rtol=1e-5, atol=1e-6)
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path, sizes = tmp_path / "encoder.onnx", {"x": {0: Dim("batch", min=1, max=1024)}}
    torch.onnx.export(Encoder(model, own).eval(), (example,), path, dynamo=True, dynamic_shapes=sizes, verbose=False)
    session = runtime.InferenceSession(str(path))
    (t,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(t), expected, rtol=1e-4, atol=1e-5)
