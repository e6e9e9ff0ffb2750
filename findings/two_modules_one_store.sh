#!/usr/bin/env bash
# Expected: two PyroModules made one after the other have parameters of their own, as two modules of torch have.
# Happens: the second takes over the values of the first when it is first called, without a word, and training the second
#          moves the first: both are called by the name of their attribute in one store. With
#          pyro.settings.set(module_local_params=True) they are apart.
# Versions: pyro-ppl 1.9.2, torch 2.14.1.
# For users: a study fits many models in one process. Models and guides of this package have names of their own in the store,
#            so that a baseline or a second seed never starts where the first one ended.
# Held by: tests/model/test_pyro.py, test_two_models_in_one_process_train_apart; tests/model/test_naming.py.
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
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam

print("Python", sys.version.split()[0], "pyro-ppl", version("pyro-ppl"), "torch", version("torch"))


class Point(PyroModule):
    def __init__(self, start):
        super().__init__()
        self.place = PyroParam(torch.tensor(start))

    def forward(self):
        pyro.factor("minus the square", -self.place.square())


def two():
    """Losses (the squared places) of points made at 1 and 2: when made, and after steps of the second alone."""
    pyro.clear_param_store()
    points = Point(1.0), Point(2.0)
    made = [point.place_unconstrained.item() ** 2 for point in points]
    first, second = (SVI(point, lambda: None, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO()) for point in points)
    called = [first.evaluate_loss(), second.evaluate_loss()]
    for _ in range(3):
        second.step()
    return made, called, [first.evaluate_loss(), second.evaluate_loss()]


for local in (False, True):
    with pyro.settings.context(module_local_params=local):
        made, called, stepped = two()
    print(f"module_local_params={local}: made {made}, when called {called}, after three steps of the second {stepped}")
    as_seen = (called == made and stepped[0] == 1.0) if local else (called == [1.0, 1.0] and stepped[0] == stepped[1] < 0.5)
    if made != [1.0, 4.0] or not as_seen:
        sys.exit(1)
PYTHON
