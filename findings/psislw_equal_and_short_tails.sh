#!/usr/bin/env bash
# Expected: PSIS of any finite log-weights gives a Pareto k, or inf where the tail is too short to fit, as ArviZ 0.x does.
# Happens: arviz_stats raises ValueError for a tail that is equal and for one shorter than five, gives nan for a tail of
#          exactly five, rounds the length of the tail down where 0.x (and the article's ceil) rounds it up, and takes
#          log-likelihoods where 0.x takes log-weights: handed log-weights it answers for the other tail, without a word.
# Versions: arviz-stats 1.3.3.
# For users: k of a collapsed model, whose weights are equal, is 0 here and no exception; k does not depend on the ArviZ
#            that is installed, since it is fitted by pyro_tvae.inference.pareto.
# Held by: tests/inference/test_pareto.py, a table of tails against the published formulas in fifty digits.
# Exit status: 0 while it is so, 1 when the behaviour has changed. It needs Python 3.12 or later: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q "arviz-stats==1.3.3" 2>/dev/null
cd "$work"
venv/bin/python - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import numpy as np
from arviz_stats.base import array_stats

warnings.simplefilter("ignore")
print("Python", sys.version.split()[0], "arviz-stats", version("arviz-stats"))


def answer(log_w):
    try:
        return float(array_stats.psislw(-log_w)[1])
    except ValueError as error:
        return str(error)


normal = np.random.default_rng(0).normal(size=100)
heavy = np.random.default_rng(0).exponential(size=1000) * 0.9  # Pareto weights of shape 0.9
found = {
    "100 equal weights": answer(np.full(100, -3.0)),
    "20 weights, a tail of four": answer(normal[:20]),
    "25 weights, a tail of five": answer(normal[:25]),
    "30 weights, a tail of six": answer(normal[:30]),
    "1,000 weights of shape 0.9": answer(heavy),
    "the same, handed as log-weights": answer(-heavy),
}
for case, k in found.items():
    print(f"{case}: {k}")
equal, four, five, six, right, wrong = found.values()
same = isinstance(equal, str) and isinstance(four, str) and np.isnan(five) and np.isfinite(six)
sys.exit(0 if same and 0.6 < right < 1.2 and wrong < 0.3 else 1)
PYTHON
