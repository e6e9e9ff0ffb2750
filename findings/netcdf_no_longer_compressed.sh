#!/usr/bin/env bash
# Expected: to_netcdf of what ArviZ makes writes the same file, more or less, under two releases.
# Happens: InferenceData.to_netcdf of 0.x compresses every number by default; what 1.x makes is a DataTree of xarray, whose
#          to_netcdf compresses nothing: 1.6 MB of equal numbers take 13 KB before and 1.6 MB after.
# Versions: ArviZ 0.23.4; ArviZ 1.3.0 with xarray 2026.9.0.
# For users: posterior.nc of many draws would be several times as large under 1.x; to_netcdf of this package compresses
#            numbers under either, and az.from_netcdf of either reads it.
# Held by: tests/inference/test_arviz_files.py, test_numbers_are_compressed_under_either_version.
# Exit status: 0 while it is so, 1 when the behaviour has changed. It needs Python 3.12 or later: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/old"
"${PYTHON:-python3}" -m venv "$work/new"
"$work/old/bin/python" -m pip install -q --no-compile "arviz==0.23.4" "h5py==3.16.0" 2>/dev/null
"$work/new/bin/python" -m pip install -q --no-compile "arviz==1.3.0" "arviz-base==1.3.1" "arviz-stats==1.3.3" "h5netcdf==1.8.2" "h5py==3.16.0" 2>/dev/null
cd "$work"
echo "running"
cat >size.py <<'PYTHON'
import json
import os
import warnings

warnings.simplefilter("ignore")
import arviz as az
import numpy as np
import xarray as xr

groups = {"posterior": xr.Dataset({"t": (("chain", "draw", "n"), np.zeros((4, 500, 100)))})}
legacy = az.__version__.startswith("0.")
data = az.InferenceData(**groups) if legacy else xr.DataTree.from_dict(groups)
data.to_netcdf("file.nc", engine="h5netcdf")
print(json.dumps([az.__version__, xr.__version__, os.path.getsize("file.nc")]))
PYTHON
old=$(old/bin/python size.py 2>/dev/null | tail -n 1)
new=$(new/bin/python size.py 2>/dev/null | tail -n 1)
printf 'ArviZ, xarray, bytes\n%s\n%s\n' "$old" "$new"
new/bin/python - "$old" "$new" <<'PYTHON'
import json
import sys

before, after = (json.loads(line)[-1] for line in sys.argv[1:])
sys.exit(0 if before < 100_000 and after > 1_600_000 else 1)
PYTHON
