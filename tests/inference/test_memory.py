"""Freed memory is kept where the C library allows it, and a user's own setting stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pyro_tvae.memory import keep_freed_memory

# Sixteen blocks of 4 MiB, all freed before the next turn: what a step does with its gradients.
TURNS = """
import resource, torch
from pyro_tvae.memory import keep_freed_memory
made = keep_freed_memory()
def turn():
    blocks = [torch.ones(2**20) for _ in range(16)]
for _ in range(5):
    turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    turn()
print(made, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def turns(code: str = TURNS, **settings: str) -> tuple[bool, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | settings
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    made, faults = result.stdout.split()
    return made == "True", int(faults)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc, or its settings are the user's")
def test_freed_blocks_are_used_again() -> None:
    made, faults = turns()
    assert made
    # 164,000 pages of 4 KiB are written; without the setting 143,000 of them are fetched again. With it nearly none:
    # glibc 2.41 fetched three blocks more, 3,072 pages, while the heap settled.
    assert faults < 14_000


def test_a_users_own_setting_is_left_alone() -> None:
    made, _ = turns(MALLOC_TRIM_THRESHOLD_="1000000")
    assert not made


# Codes, and sequences, of 15 MiB in chunks of half a one, and what the process holds at most after each measure.
CODES = """
import resource, torch
from pyro_tvae import CapsuleRoll, TVAE, default_guide
torch.set_num_threads(1)
from pyro_tvae.inference import equivariance, linear_probes
linear_probes.CHUNK = equivariance.CHUNK = 2**16
from pyro_tvae.inference import active_latents, capsule_correlation, commutation, equivariance_error, pose_probe, probe
from pyro_tvae.inference import forward_roll, roll_correlation
model = TVAE((1, 12, 12), 9, 1, 3, CapsuleRoll(3), mu=3.0)
guide = default_guide(model)
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
def codes(n):
    t, moved = (torch.rand(n, 9, 4, 9, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    index = torch.arange(9).expand(n, 9).contiguous()
    return t, moved, index, torch.arange(n) % 10, torch.rand(n // 4, 9, 1, 12, 12)
def judge(t, moved, index, label, x):
    few = 1000
    yield "active", lambda: active_latents(t)
    yield "commutation", lambda: commutation(t, moved)
    yield "error", lambda: equivariance_error(t)
    yield "correlation", lambda: roll_correlation(t, index, 9)
    yield "published", lambda: capsule_correlation(t, index)
    yield "class", lambda: probe(t[:few], label[:few], t, label)
    yield "pose", lambda: pose_probe(t[:few], index[:few], t, index, 9)
    yield "forecast", lambda: forward_roll(model, guide, x, num_particles=2)
for _, small in judge(*codes(1000)):  # what every size needs: libraries, and chunks
    small()
given = codes(12_000)
size = given[0].numel() * 4 / 2**20
for name, large in judge(*given):
    before = most()
    large()
    print(name, (most() - before) / size)
"""


def test_a_measure_needs_little_beside_what_it_measures() -> None:
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "100000", "MALLOC_MMAP_THRESHOLD_": "100000"}
    result = subprocess.run([sys.executable, "-c", CODES], env=environment, capture_output=True, text=True, check=True)
    rises = {name: float(rise) for name, rise in map(str.split, result.stdout.splitlines())}
    assert len(rises) == 8
    # Copies in double precision, all of them at once, would be two to sixteen times the codes; forecasts of which
    # slices are kept, ten times the sequences.
    assert max(rises.values()) < 0.5, rises


LOOP = """
import resource, pyro, torch, pyro_tvae
model = pyro_tvae.TVAE((1, 64, 64), n_frames=4, n_capsules=4, capsule_dim=16)
guide, x = pyro_tvae.MeanFieldGuide(model), torch.rand(64, 4, 1, 64, 64)
svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO(max_plate_nesting=1))
for _ in range(3):
    svi.step(x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    svi.step(x)
print(True, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc, or its settings are the user's")
def test_a_loop_of_ones_own_fetches_no_pages_either() -> None:
    # A step's activations and gradients are some 70 MB, 18,000 pages of 4 KiB, which the kernel would hand out anew.
    # Up to 900 still are now and then, where a large block is cut.
    assert turns(LOOP)[1] < 4000
