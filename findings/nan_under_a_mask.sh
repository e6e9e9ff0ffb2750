#!/usr/bin/env bash
# Expected: poutine.mask takes what was not seen out of the likelihood, so that it may hold nan.
# Happens: the loss is finite and right, and its gradient nan: what is masked is computed and then set to 0, and on the way
#          back nothing times nan is nan. Validation, where it is on, refuses the nan before; with
#          validation off the weights are nan after one step of SVI. dist.MaskedDistribution does the same.
# Versions: pyro-ppl 1.9.2, torch 2.14.1.
# For users: frames that were not seen may hold nan here: what is missing is replaced before it is scored, and its gradient
#            is 0.
# Held by: tests/model/test_guide_families.py, test_gradients_survive_missing_values.
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
from pyro import poutine
from pyro.infer import Trace_ELBO

print("Python", sys.version.split()[0], "pyro-ppl", version("pyro-ppl"), "torch", version("torch"))
x, seen = torch.tensor([1.0, math.nan]), torch.tensor([True, False])
right = 0.5 + 0.5 * math.log(2 * math.pi)  # of the one that was seen, and its gradient is -1


def handler(loc, values):
    with pyro.plate("items", 2), poutine.mask(mask=seen):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=values)


def distribution(loc, values):
    with pyro.plate("items", 2):
        pyro.sample("x", dist.Normal(loc, 1.0).mask(seen), obs=values)


def ask(model, values, validate):
    loc = torch.tensor(0.0, requires_grad=True)
    with pyro.validation_enabled(validate):
        try:
            loss = Trace_ELBO().differentiable_loss(model, lambda *_: None, loc, values)
        except ValueError as error:
            return type(error).__name__, str(error).splitlines()[0]
    loss.backward()
    return loss.item(), loc.grad.item()


found = {}
for model in (handler, distribution):
    for name, values, validate in (("nan", x, True), ("nan", x, False), ("0", x.nan_to_num(0.0), True)):
        found[model, name, validate] = ask(model, values, validate)
        print(f"{model.__name__}, masked value {name}, validation {validate}: loss, gradient {found[model, name, validate]}")


def as_seen(model):
    refused, (loss, gradient), sound = (found[model, *how] for how in (("nan", True), ("nan", False), ("0", True)))
    replaced = abs(sound[0] - right) < 1e-5 and sound[1] == -1
    return refused[0] == "ValueError" and abs(loss - right) < 1e-5 and math.isnan(gradient) and replaced


sys.exit(0 if as_seen(handler) and as_seen(distribution) else 1)
PYTHON
