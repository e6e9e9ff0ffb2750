#!/usr/bin/env bash
# Expected: the same tensors and the same metadata give the same file, so that files can be compared by their hash.
# Happens: with two or more entries of metadata the bytes differ from save to save in one process: the entries stand in the
#          header in the order of a hash table that is seeded anew each time. With one entry or none the bytes are the same.
# Versions: safetensors 0.8.0.
# For users: files of one's own are to be compared by their tensors. pyro_tvae.save puts the header in order, so that equal
#            pairs are equal files.
# Held by: tests/model/test_storage.py, test_equal_pairs_are_equal_files.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "safetensors==0.8.0" "numpy==2.4.6" 2>/dev/null
cd "$work"
echo "running"
venv/bin/python - <<'PYTHON'
import hashlib
import sys
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save, save_file

print("Python", sys.version.split()[0], "safetensors", version("safetensors"), "numpy", version("numpy"))
tensors = {"weight": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
entries = {f"entry {i}": str(i) for i in range(6)}
kinds, contents = {}, set()
for n in (0, 1, 2, 6):
    metadata = dict(list(entries.items())[:n]) or None
    files = set()
    for _ in range(40):
        written = save(tensors, metadata)
        save_file(tensors, "again.safetensors", metadata)
        with open("again.safetensors", "rb") as file:
            files |= {hashlib.sha256(written).hexdigest(), hashlib.sha256(file.read()).hexdigest()}
        contents.add(tuple((name, array.tobytes()) for name, array in sorted(load(written).items())))
    kinds[n] = len(files)
    print(f"{n} entries of metadata: {kinds[n]} different files of 80")
sys.exit(0 if kinds[0] == kinds[1] == 1 and kinds[2] > 1 and kinds[6] > 10 and len(contents) == 1 else 1)
PYTHON
