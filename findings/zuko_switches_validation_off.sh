#!/usr/bin/env bash
# Expected: importing a library of normalising flows changes nothing of the distributions of torch and Pyro.
# Happens: "import zuko" switches argument validation off in the whole process, for every distribution of torch and of Pyro: a
#          negative scale, refused before, is taken, and a value outside of the support is scored.
# Versions: zuko 1.6.0, torch 2.14.1, pyro-ppl 1.9.2.
# For users: import zuko within pyro.validation_enabled(), as docs/bring_your_own.md does, which switches it on again. This
#            package neither imports zuko nor needs it.
# Held by: tests/test_pages.py, which runs that page.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" "pyro-ppl==1.9.2" "zuko==1.6.0" numpy 2>/dev/null
cd "$work"
echo "running"
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import pyro.distributions
import torch

print("Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in ("zuko", "torch", "pyro-ppl")))


def refused(make):
    try:
        make()
    except ValueError:
        return True
    return False


def strict():
    return [
        refused(lambda: torch.distributions.Normal(0.0, -1.0)),
        refused(lambda: pyro.distributions.Normal(0.0, -1.0)),
        refused(lambda: torch.distributions.Gamma(1.0, 1.0).log_prob(torch.tensor(-1.0))),
    ]


before = strict()
import zuko  # noqa: E402, F401

after = strict()
torch.distributions.Distribution.set_default_validate_args(True)
again = strict()
print("refused (torch's scale, Pyro's scale, a negative draw of a Gamma) before the import, after it, switched on again:")
print(before, after, again)
sys.exit(0 if all(before) and not any(after) and again[0] and again[2] else 1)
PYTHON
