#!/usr/bin/env bash
# Expected: az.loo of log-likelihoods in float32 agrees with that of the same numbers in float64 to a few digits, or warns.
# Happens: where one item is heavy-tailed (Pareto k around 35) the float32 answer of 0.23 is elpd nan beside a largest k of
#          0.03, "good", and of 1.x a finite elpd 800 nats off beside k nan; float64 gives a finite elpd and the large k.
# Versions: ArviZ 0.23.4; ArviZ 1.3.0 (with arviz-base 1.3.1, arviz-stats 1.3.3).
# For users: log-likelihoods of whole sequences are thousands of nats with a wide spread, and torch computes in float32.
#            to_arviz hands the group log_likelihood over in float64; files of one's own are to be turned into it first.
# Held by: tests/inference/test_arviz_files.py, test_leaving_out_is_computed_in_double_precision.
# Exit status: 0 while it is so, 1 when the behaviour has changed. It needs Python 3.12 or later: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/old"
"${PYTHON:-python3}" -m venv "$work/new"
"$work/old/bin/python" -m pip install -q --no-compile "arviz==0.23.4" 2>/dev/null
"$work/new/bin/python" -m pip install -q --no-compile "arviz==1.3.0" "arviz-base==1.3.1" "arviz-stats==1.3.3" 2>/dev/null
cd "$work"
echo "running"
cat >loo.py <<'PYTHON'
import json
import warnings

warnings.simplefilter("ignore")
import arviz as az
import numpy as np
import xarray as xr

rng = np.random.default_rng(1)
t = xr.Dataset({"t": (("chain", "draw"), rng.normal(size=(4, 500)))})
single = xr.Dataset({"x": (("chain", "draw", "n"), (rng.normal(size=(4, 500, 30)) * 100 - 5000).astype(np.float32))})
answers = []
for log_likelihood in (single, single.astype(np.float64)):
    groups = {"posterior": t, "log_likelihood": log_likelihood}
    legacy = az.__version__.startswith("0.")
    said = az.loo(az.InferenceData(**groups) if legacy else xr.DataTree.from_dict(groups), pointwise=True)
    answers.append([float(said.elpd_loo if legacy else said.elpd), float(np.max(np.asarray(said.pareto_k)))])
print(json.dumps([az.__version__, *answers]))
PYTHON
old=$(old/bin/python loo.py 2>/dev/null | tail -n 1)
new=$(new/bin/python loo.py 2>/dev/null | tail -n 1)
printf 'version, [elpd, largest k] in float32, in float64\n%s\n%s\n' "$old" "$new"
new/bin/python - "$old" "$new" <<'PYTHON'
import json
import math
import sys

(_, before, double), (_, after, again) = map(json.loads, sys.argv[1:])
sound = all(math.isfinite(number) for number in (*double, *again)) and min(double[1], again[1]) > 10
legacy = math.isnan(before[0]) and before[1] < 0.5
newer = math.isnan(after[1]) and abs(after[0] - again[0]) > 100
sys.exit(0 if sound and legacy and newer else 1)
PYTHON
