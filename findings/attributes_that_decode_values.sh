#!/usr/bin/env bash
# Expected: attributes are notes: whatever stands in them, values that InferenceData writes are read back as they were.
# Happens: some are taken for instructions when the file is read. missing_value=3 makes every 3 a nan, scale_factor=2 doubles,
#          dtype="bool" makes counts true or false, units="days since 2000-01-01" makes days dates, without a word.
# Versions: ArviZ 0.23.4, xarray 2025.6.1, h5netcdf 1.6.4, h5py 3.14.0.
# For users: to_netcdf and to_zarr of this package refuse such attributes by name; before others, rename them.
# Held by: tests/inference/test_arviz_files.py, test_attributes_that_would_change_values_when_they_are_read_are_refused.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "arviz==0.23.4" "xarray==2025.6.1" "h5netcdf==1.6.4" "h5py==3.14.0" 2>/dev/null
cd "$work"
echo "running"
cat >attributes.py <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
import arviz
import numpy as np
import xarray

print("Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in ("arviz", "xarray", "h5netcdf", "h5py")))
ATTRIBUTES = {"missing_value": 3, "scale_factor": 2.0, "dtype": "bool", "units": "days since 2000-01-01", "comment": "mine"}
same = {}
for name, value in ATTRIBUTES.items():
    counts = np.array([[1.0, 2.0, 3.0]])
    posterior = xarray.Dataset({"count": (("chain", "draw"), counts, {name: value})})
    arviz.InferenceData(posterior=posterior).to_netcdf("draws.nc", engine="h5netcdf")
    again = arviz.from_netcdf("draws.nc", engine="h5netcdf").posterior["count"]
    same[name] = again.dtype == counts.dtype and bool((again.values == counts).all())
    print(f"[1 2 3] with {name}={value!r} is read as {again.values[0]}")
sys.exit(0 if same.pop("comment") and not any(same.values()) else 1)
PYTHON
venv/bin/python attributes.py 2>/dev/null
