#!/usr/bin/env bash
# Expected: what xarray writes to Zarr without an error can be read back by xarray.
# Happens: scope, in NumPyro as in Pyro, calls a site "block/z". Zarr takes a slash for a path: Dataset.to_zarr writes it without
#          a word into a group "block", and open_zarr gives back a Dataset without it. NetCDF and DataTree refuse the name.
# Versions: NumPyro 0.22.0, xarray 2026.9.0, zarr 3.1.6, h5netcdf 1.8.2.
# For users: draws of a model of one's own with scoped sites are lost in a Zarr store; rename the variables first. to_netcdf
#            writes NetCDF, where such a name is refused.
# Held by: no test: no site of this package has a slash in its name.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "numpyro==0.22.0" "xarray==2026.9.0" "zarr==3.1.6" "h5netcdf==1.8.2" "h5py==3.16.0" 2>/dev/null
cd "$work"
echo "running"
venv/bin/python - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from numpyro.handlers import scope, seed, trace

print("Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in ("numpyro", "xarray", "zarr", "h5netcdf")))


def model():
    numpyro.sample("w", dist.Normal(0.0, 1.0))
    with scope(prefix="block"):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


sites = list(trace(seed(model, jax.random.PRNGKey(0))).get_trace())
data = xr.Dataset({name: ("draw", np.arange(3.0)) for name in sites})
data.to_zarr("store")
back = list(xr.open_zarr("store"))
print(f"sites {sites}; read back from Zarr: {back}")


def refuses(write):
    try:
        write()
    except ValueError as error:
        print("ValueError:", str(error)[:100])
        return True
    return False


netcdf = refuses(lambda: data.to_netcdf("file.nc", engine="h5netcdf"))
tree = refuses(lambda: xr.DataTree.from_dict({"posterior": data}))
sys.exit(0 if sites == ["w", "block/z"] and back == ["w"] and netcdf and tree else 1)
PYTHON
