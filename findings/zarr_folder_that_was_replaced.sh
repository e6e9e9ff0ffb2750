#!/usr/bin/env bash
# Expected: data that xarray has opened from a Zarr folder, and that are read when they are used, stay those of the folder that
#           was opened, or say that it is gone, when the folder is removed, or another one is put in its place by its name.
# Happens: chunks are looked up by name at every use. Of a folder that was removed all values are nan, and of one that was
#          replaced they are the other one's under the first one's attributes; neither says a word. A NetCDF file that is open stays
#          what it was.
# Versions: xarray 2025.9.0, zarr 3.1.3, numpy 2.3.3, h5netcdf 1.6.4, h5py 3.14.0.
# For users: from_netcdf(folder, lazy=True) of this package raises ValueError in both cases; elsewhere load() what is to last.
# Held by: tests/inference/test_arviz_files.py, test_a_zarr_folder_that_is_read_lazily_is_the_one_that_was_opened.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile xarray==2025.9.0 zarr==3.1.3 numpy==2.3.3 h5netcdf==1.6.4 h5py==3.14.0 2>/dev/null
cd "$work"
echo "running"
venv/bin/python - <<'PYTHON'
import shutil
import sys
import warnings

import numpy as np
import xarray

warnings.simplefilter("ignore")
print("Python", sys.version.split()[0], "xarray", xarray.__version__)


def data(number):
    return xarray.Dataset({"x": ("n", np.full(4, float(number)))}, attrs={"of": f"run {number}"})


def written(kind, number):
    shutil.rmtree("one", ignore_errors=True)
    if kind == "zarr":
        data(number).to_zarr("one", zarr_format=2, consolidated=False)
    else:
        data(number).to_netcdf("two.nc", engine="h5netcdf")
        shutil.move("two.nc", "one.nc")  # as whoever writes a file whole or not at all


def opened(kind):
    options = {"engine": "zarr", "consolidated": False} if kind == "zarr" else {"engine": "h5netcdf"}
    return xarray.open_dataset("one" if kind == "zarr" else "one.nc", **options)


answers = {}
for kind in ("zarr", "netcdf"):
    written(kind, 1)
    before = opened(kind)
    written(kind, 2)
    answers[kind] = before.x.values.tolist(), before.attrs["of"]
    print(f"{kind}, replaced: {answers[kind][1]} reads {answers[kind][0]}")
written("zarr", 1)
before = opened("zarr")
shutil.rmtree("one")
gone = before.x.values
print("zarr, removed:", gone.tolist())
same = answers == {"zarr": ([2.0] * 4, "run 1"), "netcdf": ([1.0] * 4, "run 1")} and bool(np.isnan(gone).all())
sys.exit(0 if same else 1)
PYTHON
