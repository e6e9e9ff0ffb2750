#!/usr/bin/env bash
# Expected: split="train" and split="test" of a data set of sequences hold different sequences, whole; the array that is
#           downloaded has the sequences first.
# Happens: torchvision's MovingMNIST cuts time: "train" is the first half of every sequence and "test" the second half of the
#          same sequences, so both have all of them; split_ratio counts frames. The file has frames first, then sequences,
#          without a channel; torchvision turns it to (sequence, frame, channel, height, width), as bytes.
# Versions: torchvision 0.29.1, torch 2.14.1.
# For users: a model judged on that "test" has trained on the same films, a second earlier. Transpose the file to (sequence,
#            frame), add a channel, and hand it over whole: data.source=arrays splits by sequences.
# Held by: tests/experiments/test_datasets.py, test_arrays_of_images_and_of_sequences.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" "torchvision==0.29.1" numpy 2>/dev/null
cd "$work"
echo "running"
venv/bin/python - <<'PYTHON'
import os
import sys
from importlib.metadata import version

import numpy as np
from torchvision.datasets import MovingMNIST

print("Python", sys.version.split()[0], "torchvision", version("torchvision"), "torch", version("torch"))
os.makedirs("root/MovingMNIST")
# A stand-in of five sequences in the layout of the real file, (frame, sequence, height, width): a pixel says which is which.
films = np.zeros((20, 5, 64, 64), np.uint8)
films += (10 * np.arange(20)[:, None] + np.arange(5)).astype(np.uint8)[..., None, None]
np.save("root/MovingMNIST/mnist_test_seq.npy", films)

found = {}
for options in ({}, {"split": "train"}, {"split": "test"}, {"split": "train", "split_ratio": 3}):
    data = MovingMNIST("root", **options)
    sequences = sorted({int(film[0, 0, 0, 0]) % 10 for film in data})
    frames = sorted({int(frame) // 10 for frame in data[2][:, 0, 0, 0]})
    found[tuple(options.values())] = (sequences, (frames[0], frames[-1]), tuple(data[2].shape))
    print(f"{options}: sequences {sequences}, frames {frames[0]} to {frames[-1]}, shape {tuple(data[2].shape)}")
everyone = list(range(5))
as_seen = {
    (): (everyone, (0, 19), (20, 1, 64, 64)),
    ("train",): (everyone, (0, 9), (10, 1, 64, 64)),
    ("test",): (everyone, (10, 19), (10, 1, 64, 64)),
    ("train", 3): (everyone, (0, 2), (3, 1, 64, 64)),
}
sys.exit(0 if found == as_seen else 1)
PYTHON
