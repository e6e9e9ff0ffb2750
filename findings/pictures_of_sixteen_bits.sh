#!/usr/bin/env bash
# Expected: a PNG of 16 bits a channel comes as 16 bits, as a gray one does (mode I;16), or is refused.
# Happens: red, green and blue of 16 bits come as 8, by dropping the lower byte: 256 and 511 are both 1, and no warning is raised.
# Versions: Pillow 13.0.0, NumPy 2.4.6.
# For users: data.source.path refuses such pictures in a sentence; colors of 16 bits are kept as TIFF, .npy or HDF5.
# Held by: tests/experiments/test_readers.py, test_colors_of_sixteen_bits_are_not_cut_to_eight.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "pillow==13.0.0" "numpy==2.4.6" 2>/dev/null
cd "$work"
echo "running"
venv/bin/python -W error - <<'PYTHON'
import struct
import sys
import zlib
from importlib.metadata import version

import numpy as np
from PIL import Image

print("Python", sys.version.split()[0], "Pillow", version("pillow"), "NumPy", version("numpy"))


def written(path, pixels, kind):
    """A PNG as its specification says: sixteen bits a channel, highest byte first, no filter."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


values = np.array([[0, 256, 511, 65535]])
written("gray.png", values, 0)
written("color.png", np.repeat(values[..., None], 3, axis=2), 2)
gray, color = Image.open("gray.png"), Image.open("color.png")
print(f"gray: mode {gray.mode}, {np.asarray(gray)[0].tolist()}; red of a color one: mode {color.mode}, ", end="")
red = np.asarray(color)[0, :, 0]
print(red.dtype, red.tolist())
kept = gray.mode == "I;16" and np.asarray(gray)[0].tolist() == values[0].tolist()
cut = color.mode == "RGB" and red.dtype == np.uint8 and red.tolist() == [0, 1, 1, 255]
sys.exit(0 if kept and cut else 1)
PYTHON
