#!/usr/bin/env bash
# Expected: az.compare of the same two models reads the same under two releases of ArviZ.
# Happens: elpd_loo, p_loo and warning (a truth value) are elpd, p and diag_elpd (words) in 1.x, and elpd_diff, which was how
#          much worse a model is (positive), has become its difference from the best (negative); numbers are rounded.
# Versions: ArviZ 1.3.0 (with arviz-base 1.3.1, arviz-stats 1.3.3), against 0.23.4.
# For users: a script that sorts or filters by elpd_diff > 0 keeps nothing under 1.x, without an error. The comparison
#            in docs/likelihoods.md renames the columns and says which sign is meant.
# Held by: tests/inference/test_posterior.py, test_the_pages_comparison_reads_either_version.
# Exit status: 0 while it is so, 1 when the behaviour has changed. It needs Python 3.12 or later: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/old"
"${PYTHON:-python3}" -m venv "$work/new"
"$work/old/bin/python" -m pip install -q "arviz==0.23.4" 2>/dev/null
"$work/new/bin/python" -m pip install -q "arviz==1.3.0" "arviz-base==1.3.1" "arviz-stats==1.3.3" 2>/dev/null
cd "$work"
cat >two.py <<'PYTHON'
import json
import warnings

warnings.simplefilter("ignore")
import arviz as az
import numpy as np
import xarray as xr

rng = np.random.default_rng(0)
models = {}
for name, shift in (("good", 0.0), ("bad", 2.0)):
    groups = {
        "posterior": xr.Dataset({"t": (("chain", "draw"), rng.normal(size=(1, 200)))}),
        "log_likelihood": xr.Dataset({"x": (("chain", "draw", "n"), rng.normal(size=(1, 200, 30)) * 0.3 - 50 - shift)}),
    }
    old = az.__version__.startswith("0.")
    models[name] = az.InferenceData(**groups) if old else xr.DataTree.from_dict(groups)
table = az.compare(models)
print(json.dumps([az.__version__, list(table.columns), float(table["elpd_diff"]["bad"])]))
PYTHON
old=$(old/bin/python two.py 2>/dev/null | tail -n 1)
new=$(new/bin/python two.py 2>/dev/null | tail -n 1)
printf '%s\n%s\n' "$old" "$new"
new/bin/python - "$old" "$new" <<'PYTHON'
import json
import sys

(_, old, before), (_, new, after) = map(json.loads, sys.argv[1:])
renamed = {"elpd_loo", "p_loo", "warning"} <= set(old) and {"elpd", "p", "diag_elpd"} <= set(new)
sys.exit(0 if renamed and "elpd_loo" not in new and before > 0 > after else 1)
PYTHON
