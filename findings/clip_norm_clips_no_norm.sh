#!/usr/bin/env bash
# Expected: clip_norm shortens a gradient to that norm and keeps its direction, over all parameters, as
#           torch.nn.utils.clip_grad_norm_ does; a learning rate decays after a step.
# Happens: clip_norm of pyro.optim.ClippedAdam clamps every element (gradient (30, 4) becomes (5, 4)) and lrd is already in
#          the first step; clip_norm in clip_args of any other optimizer of Pyro takes the norm of one parameter at a time, so
#          that gradients 3 and 4 of two parameters become 1 and 1 and not 0.6 and 0.8.
# Versions: pyro-ppl 1.9.2, torch 2.14.1.
# For users: fit(optimizer=...) takes the optimizers of Pyro and does with each what Pyro does; for a clipped direction give
#            gradient_clip_val to the trainer.
# Held by: tests/inference/test_every_optimizer_of_pyro.py, test_it_stands_where_it_was_placed.
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
import sys
from importlib.metadata import version

import pyro
import torch
from pyro.optim import SGD
from pyro.optim.clipped_adam import ClippedAdam

print("Python", sys.version.split()[0], "pyro-ppl", version("pyro-ppl"), "torch", version("torch"))
weight = torch.nn.Parameter(torch.zeros(2))
weight.grad = torch.tensor([30.0, 4.0])
adam = ClippedAdam([weight], lr=0.1, clip_norm=5.0, lrd=0.5)
adam.step()
clamped, step = weight.grad.tolist(), float(weight.detach()[0])
print(f"ClippedAdam, clip_norm=5: gradient (30, 4) became {clamped}; first step {step:.3f} at lr=0.1, lrd=0.5")

weight.grad = torch.tensor([30.0, 4.0])
torch.nn.utils.clip_grad_norm_([weight], 5.0)
shortened = weight.grad.tolist()
print(f"torch.nn.utils.clip_grad_norm_ to 5: it became {shortened}")

pair = [pyro.param(name, torch.zeros(1)).unconstrained() for name in "ab"]
for parameter, gradient in zip(pair, (3.0, 4.0)):
    parameter.grad = torch.tensor([gradient])
SGD({"lr": 1.0}, {"clip_norm": 1.0})(pair)
moved = [-parameter.item() for parameter in pair]
print(f"SGD of Pyro, clip_args clip_norm=1, lr=1: gradients 3 and 4 of two parameters moved them by {moved}")
kept = abs(shortened[0] / shortened[1] - 7.5) < 1e-3
close = all(abs(step - 1) < 1e-3 for step in moved)
sys.exit(0 if clamped == [5.0, 4.0] and abs(step + 0.05) < 1e-6 and kept and close else 1)
PYTHON
