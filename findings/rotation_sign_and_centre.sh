#!/usr/bin/env bash
# Expected: +30 degrees turns an image the same way in every library, about the same point, and within one library always.
# Happens: torchvision's rotate turns counter-clockwise and its affine, with the same angle=30, clockwise. kornia, SciPy,
#          scikit-image, Pillow and OpenCV side with rotate, to 2e-4. OpenCV takes the centre in pixel centres: the width/2
#          that one would pass is half a pixel off (at 90 degrees a whole pixel). SciPy's own spline, which is its default,
#          leaves values outside of [0, 1] in a picture of values in [0, 1].
# Versions: torch 2.14.1, torchvision 0.29.1, kornia 0.9.0, SciPy 1.17.1, scikit-image 0.26.0, Pillow 13.0.0, OpenCV 5.0.0.93.
# For users: a roll of a capsule has a sign. Sequences of one's own made by affine roll the other way than those made by
#            rotate, and pixels above 1 are no data for a Bernoulli. Transformations turns counter-clockwise about
#            (width - 1)/2, bilinear.
# Held by: tests/experiments/test_transformations.py, test_quarter_turns_are_exact_and_counter_clockwise and
#          test_render_agrees_with_a_pixel_by_pixel_twin.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" "torchvision==0.29.1" "kornia==0.9.0" "scipy==1.17.1" \
    "scikit-image==0.26.0" "pillow==13.0.0" "opencv-python-headless==5.0.0.93" 2>/dev/null
cd "$work"
echo "turning"
venv/bin/python - <<'PYTHON'
import math
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
import cv2
import kornia
import numpy as np
import scipy.ndimage
import skimage.transform
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

names = ("torch", "torchvision", "kornia", "scipy", "scikit-image", "pillow", "opencv-python-headless")
print("Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in names))
image = np.zeros((28, 28), np.float32)
image[9:12, 16:22], image[6:9, 14:16] = 1, 0.5
tensor, bilinear = torch.tensor(image)[None, None], InterpolationMode.BILINEAR


def turned(degrees):
    """Counter-clockwise as displayed, about the middle of the picture, bilinear, zero outside: by definition."""
    middle, angle = (len(image) - 1) / 2, math.radians(degrees)
    y, x = np.mgrid[: len(image), : len(image)] - middle
    row, column = math.sin(angle) * x + math.cos(angle) * y, math.cos(angle) * x - math.sin(angle) * y
    return scipy.ndimage.map_coordinates(image, [row + middle, column + middle], order=1, mode="constant")


def opencv(degrees, centre):
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((centre, centre), degrees, 1), image.shape)


def ways(a):
    return {
        "torchvision rotate": functional.rotate(tensor, a, bilinear)[0, 0].numpy(),
        "torchvision affine": functional.affine(tensor, a, [0, 0], 1.0, [0, 0], bilinear)[0, 0].numpy(),
        "kornia rotate": kornia.geometry.rotate(tensor, torch.tensor([float(a)]))[0, 0].numpy(),
        "scipy rotate, order 1": scipy.ndimage.rotate(image, a, reshape=False, order=1),
        "scipy rotate": scipy.ndimage.rotate(image, a, reshape=False),
        "scikit-image rotate": skimage.transform.rotate(image, a, order=1),
        "Pillow rotate": np.asarray(Image.fromarray(image).rotate(a, Image.BILINEAR)),
        "OpenCV about (width - 1)/2": opencv(a, 13.5),
        "OpenCV about width/2": opencv(a, 14.0),
    }


off = {}
for name, picture in ways(30).items():
    off[name] = float(abs(picture - turned(30)).max()), float(abs(picture - turned(-30)).max())
    print(f"{name}: {off[name][0]:.4f} from +30, {off[name][1]:.4f} from -30, values {picture.min():.2f}..{picture.max():.2f}")
odd = off.pop("torchvision affine"), off.pop("scipy rotate"), off.pop("OpenCV about width/2")
quarter = ways(90)
moved = float(abs(quarter["OpenCV about width/2"] - np.rot90(image)).max())
agree = all(there < 5e-3 for there, _ in off.values()) and all(away > 0.5 for _, away in off.values())
print("OpenCV about width/2 at 90 degrees:", moved, "from the quarter turn")
over = ways(30)["scipy rotate"].max()
sys.exit(0 if agree and odd[0][1] < 5e-3 < 0.5 < odd[0][0] and odd[2][0] > 0.1 and moved == 1 and over > 1.1 else 1)
PYTHON
