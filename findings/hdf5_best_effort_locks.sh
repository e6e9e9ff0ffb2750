#!/usr/bin/env bash
# Expected: on a file system without locks (NFS whose lock daemon does not run: flock answers ENOLCK) xarray writes and reads NetCDF
#           files all the same, at the latest with HDF5's locking set to "best effort", which is for disks where locks are disabled.
# Happens: to_netcdf and open_dataset end in OSError (errno 37), by default and with "best effort", which forgives ENOSYS alone (as of
#          Lustre without -o flock). HDF5_USE_FILE_LOCKING=FALSE helps, if it is set before HDF5 is imported; set later it does not.
#          to_netcdf has no argument for it, open_dataset has driver_kwds, and h5py and h5netcdf have locking=False, over which a
#          variable that says BEST_EFFORT wins.
# Versions: xarray 2026.9.0, h5netcdf 1.8.2, h5py 3.16.0 (HDF5 2.0.0). The file system is played by a flock that answers so, which
#           ziglang 0.13.0 compiles, for Linux.
# For users: draws that took a night are lost when they are to be written there. This package tells HDF5 of such disks itself.
# Held by: tests/inference/test_arviz_files.py
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "xarray==2026.9.0" "h5netcdf==1.8.2" "h5py==3.16.0" "ziglang==0.13.0" 2>/dev/null
cd "$work"
for answer in ENOLCK ENOSYS; do
    printf '#include <errno.h>\nint flock(int file, int operation) { errno = %s; return -1; }\n' "$answer" >flock.c
    HOME="$work" venv/bin/python -m ziglang cc -shared -fPIC -o "$answer.so" flock.c
done
cat >writes.py <<'PYTHON'
import os
import sys

import numpy as np
import xarray as xr

if "late" in sys.argv:
    import h5py

    os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
data = xr.Dataset({"z": ("draw", np.arange(3.0))})


def said(action):
    try:
        action()
    except OSError as error:
        return f"OSError {error.errno}"
    return "fine"


def by_h5py(locking):
    import h5py

    h5py.File("other.h5", "w", locking=locking).close()


print(
    said(lambda: data.to_netcdf("draws.nc", engine="h5netcdf")),
    said(lambda: xr.open_dataset("there.nc", engine="h5netcdf").close()),
    said(lambda: xr.open_dataset("there.nc", engine="h5netcdf", driver_kwds={"locking": False}).close()),
    said(lambda: by_h5py("best-effort")),
    said(lambda: by_h5py(False)),
    sep=", ",
)
PYTHON
venv/bin/python - <<'PYTHON'
import numpy as np
import xarray as xr

xr.Dataset({"z": ("draw", np.arange(3.0))}).to_netcdf("there.nc", engine="h5netcdf")
PYTHON
echo "running"
echo "to_netcdf, open_dataset, open_dataset with locking=False, h5py best-effort, h5py locking=False"
status=0
expect() { # what is set, what is expected, the command
    local found
    found=$("${@:3}")
    printf '%-34s %s\n' "$1" "$found"
    [ "$found" = "$2" ] || status=1
}
fails="OSError 37, OSError 37, fine, OSError 37, fine"
works="fine, fine, fine, fine, fine"
export LD_PRELOAD
LD_PRELOAD="$work/ENOLCK.so"
expect "ENOLCK" "$fails" venv/bin/python writes.py
expect "ENOLCK, BEST_EFFORT" "OSError 37, OSError 37, OSError 37, OSError 37, OSError 37" env HDF5_USE_FILE_LOCKING=BEST_EFFORT venv/bin/python writes.py
expect "ENOLCK, FALSE after the import" "$fails" venv/bin/python writes.py late
expect "ENOLCK, FALSE before the import" "$works" env HDF5_USE_FILE_LOCKING=FALSE venv/bin/python writes.py
LD_PRELOAD="$work/ENOSYS.so"
expect "ENOSYS" "$works" venv/bin/python writes.py
unset LD_PRELOAD
[ "$status" -eq 0 ] && echo "as found" || echo "the behaviour has changed"
exit "$status"
