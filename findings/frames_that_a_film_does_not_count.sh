#!/usr/bin/env bash
# Expected: the number of frames that a stream states is how many are decoded.
# Happens: it is 0 for Matroska and WebM, whatever they hold, since those containers do not store it; MP4 and AVI do.
# Versions: PyAV 18.1.0, NumPy 2.4.6.
# For users: a film's length is what was decoded; windows and splits cannot be planned from what a file states.
# Held by: tests/experiments/test_readers.py, test_films_of_a_video_codec.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "av==18.1.0" "numpy==2.4.6" 2>/dev/null
cd "$work"
echo "running"
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import av
import numpy as np

print("Python", sys.version.split()[0], "PyAV", version("av"), "NumPy", version("numpy"))
said = {}
for suffix, codec in ((".mp4", "mpeg4"), (".avi", "mpeg4"), (".mkv", "ffv1"), (".webm", "libvpx")):
    path = f"film{suffix}"
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for k in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * k, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(path) as container:
        said[suffix] = container.streams.video[0].frames, sum(1 for _ in container.decode(video=0))
    print(f"{suffix}: states {said[suffix][0]} frames, {said[suffix][1]} are decoded")
sys.exit(0 if said == {".mp4": (12, 12), ".avi": (12, 12), ".mkv": (0, 12), ".webm": (0, 12)} else 1)
PYTHON
