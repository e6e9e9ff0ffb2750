#!/usr/bin/env bash
# Expected: a package called h5netcdf, installed by pip, can write and read NetCDF files through xarray's engine of that name.
# Happens: from 1.8 on it installs no backend; xarray lists the engine, and writing ends in an ImportError that asks for h5py.
# Versions: h5netcdf 1.8.2, xarray 2026.9.0 (Python 3.11 and later).
# For users: ArviZ 1.x does not install h5py either. This package declares h5py itself, so that posterior.nc can be written.
# Held by: tests/test_house.py, test_what_libraries_open_by_themselves_is_there.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q "xarray==2026.9.0" "h5netcdf==1.8.2" 2>/dev/null
cd "$work"
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import xarray

print("Python", sys.version.split()[0], "xarray", version("xarray"), "h5netcdf", version("h5netcdf"))
data = xarray.Dataset({"a": ("b", [1.0, 2.0])})
print("engines:", sorted(xarray.backends.list_engines()))
try:
    data.to_netcdf("file.nc", engine="h5netcdf")
except ImportError as error:
    print("ImportError:", error)
    sys.exit(0 if "h5py" in str(error) else 1)
print("written: the behaviour has changed")
sys.exit(1)
PYTHON
