#!/usr/bin/env bash
# Expected: importance weights of data that are independent in a plate are taken item by item, so that how good a guide is
#           does not depend on how many items it is asked about.
# Happens: psis_diagnostic and vectorized_importance_weights add the log-weights of a whole plate before they weight. For one
#          guide and items that are alike, Pareto k grows from below 0 at 1 item to above 0.7 ("unreliable") at 256, and
#          log p estimated from 1,000 draws stays behind: not so when the same weights are taken item by item. RenyiELBO does
#          take them item by item.
# Versions: pyro-ppl 1.9.2, torch 2.14.1.
# For users: log_likelihood, its Pareto k and to_arviz weight each sequence by itself, for any batch size.
# Held by: tests/inference/test_likelihood.py; tests/inference/test_posterior.py,
#          test_every_sequence_is_resampled_by_its_own_weights.
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
from importlib.metadata import version

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import RenyiELBO
from pyro.infer.importance import psis_diagnostic, vectorized_importance_weights

print("Python", sys.version.split()[0], "pyro-ppl", version("pyro-ppl"), "torch", version("torch"))
pyro.set_rng_seed(0)
torch.set_default_dtype(torch.float64)
K = 1000


def model(x):
    with pyro.plate("items", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("items", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x / 2, 1.0))  # the posterior is Normal(x / 2, sqrt(1/2)): every weight is bounded


def median(values):
    return sorted(values)[len(values) // 2]


k, short = {}, {}
for n in (1, 16, 256):
    x = torch.randn(n) * math.sqrt(2)
    truth = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum().item()
    k[n] = median([float(psis_diagnostic(model, guide, x, num_particles=K, max_plate_nesting=1)) for _ in range(9)])
    log_w = [vectorized_importance_weights(model, guide, x, num_samples=K, max_plate_nesting=1)[0] for _ in range(9)]
    whole = median([float(w.logsumexp(0)) - math.log(K) - truth for w in log_w])
    renyi = RenyiELBO(alpha=0, num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    items = median([-renyi.loss(model, guide, x) - truth for _ in range(9)])
    short[n] = whole, items
    print(f"{n} items: k {k[n]:.2f}; log p estimated less its true value: {whole:.2f} over the plate, {items:.2f} by item")
sys.exit(0 if k[1] < 0.3 and k[256] > 0.7 and short[256][0] < -3 and abs(short[256][1]) < 0.5 else 1)
PYTHON
