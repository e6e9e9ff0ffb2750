#!/usr/bin/env bash
# Expected: poutine.scale around the latents of a model weights their KL, whichever bound of Pyro is taken: the beta of a VAE.
# Happens: TraceMeanField_ELBO takes the scale (and the mask) of the guide's site alone; around the model it does nothing.
#          Trace_ELBO and TraceGraph_ELBO scale log p and leave log q whole, which is no KL and can be negative. Only the same
#          scale around both sites is a weight, under all three.
# Versions: pyro-ppl 1.9.2, torch 2.14.1.
# For users: anneal by beta of an objective or by warmup_steps of fit, which weight log q and log p together; a scale
#            of one's own inside a model is counted as Pyro's Trace_ELBO counts it, or refused by name.
# Held by: tests/inference/test_objectives.py, test_beta_weights_the_kl; tests/inference/test_every_handler_of_pyro.py,
#          test_a_handler_counts_as_pyro_counts_it_or_is_refused.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" "pyro-ppl==1.9.2" numpy 2>/dev/null
cd "$work"
echo "running"
venv/bin/python - <<'PYTHON'
import math
import sys
from contextlib import nullcontext
from importlib.metadata import version

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

print("Python", sys.version.split()[0], "pyro-ppl", version("pyro-ppl"), "torch", version("torch"))
pyro.set_rng_seed(0)
kl = math.log(1 / 0.5) + (0.5**2 + 1) / 2 - 0.5  # of Normal(1, 0.5) to Normal(0, 1)
around = {"nothing": nullcontext, "scale 0.1": lambda: poutine.scale(scale=0.1), "mask": lambda: poutine.mask(mask=False)}


def bound(kind, of_model, of_guide):
    def model():
        with around[of_model]():
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        with around[of_guide]():
            pyro.sample("z", dist.Normal(1.0, 0.5))

    return kind(num_particles=50_000, vectorize_particles=True, max_plate_nesting=0).loss(model, guide)


print(f"the KL is {kl:.3f}, a tenth of it {kl / 10:.3f}")
losses = {}
for kind in (TraceMeanField_ELBO, Trace_ELBO, TraceGraph_ELBO):
    for pair in (("nothing", "nothing"), ("scale 0.1", "nothing"), ("scale 0.1", "scale 0.1"), ("mask", "nothing")):
        losses[kind, pair] = bound(kind, *pair)
        print(f"{kind.__name__}, around the model {pair[0]}, around the guide {pair[1]}: {losses[kind, pair]:.3f}")


def near(kind, of_model, of_guide, value):
    return abs(losses[kind, (of_model, of_guide)] - value) < 0.03


plain, weight = ("nothing", "nothing"), ("scale 0.1", "scale 0.1")
same = all(near(kind, *plain, kl) and near(kind, *weight, kl / 10) for kind, _ in losses)
ignored = near(TraceMeanField_ELBO, "scale 0.1", "nothing", kl) and near(TraceMeanField_ELBO, "mask", "nothing", kl)
negative = all(losses[kind, ("scale 0.1", "nothing")] < -0.5 for kind in (Trace_ELBO, TraceGraph_ELBO))
sys.exit(0 if same and ignored and negative else 1)
PYTHON
