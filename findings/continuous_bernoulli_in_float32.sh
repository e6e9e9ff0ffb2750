#!/usr/bin/env bash
# Expected: a divergence is at least 0, the variance of a number in [0, 1] at most 1/4, and float32 costs some digits.
# Happens: torch's ContinuousBernoulli clamps its probability in float32 and in parts only: KL(logit 1 || logit 30) is
#          -4.2 for 9.2, KL(20 || 1) 5.2 for 1.6; beyond a logit of 16 mean and entropy stand still; near 1/2 the variance
#          of logit 0.0041 is 0.254. KL to the uniform law on [0, 1], its own member of logit 0, is infinite both ways.
# Versions: torch 2.14.1 (Pyro 1.9.2 takes them over).
# For users: black and white pixels drive a decoder's logits beyond 16. The ContinuousBernoulli of this package computes all
#            of these from the logit, and its divergences have no use for a clamped probability.
# Held by: tests/model/test_distributions.py, test_continuous_bernoulli_against_doubles.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" numpy 2>/dev/null
cd "$work"
echo "comparing with Simpson's rule in double precision"
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from torch.distributions import ContinuousBernoulli, Uniform, kl_divergence

print("Python", sys.version.split()[0], "torch", version("torch"))
x = torch.linspace(0, 1, 100_001, dtype=torch.float64)
simpson = torch.ones_like(x).index_fill(0, torch.arange(1, 100_000, 2), 4).index_fill(0, torch.arange(2, 100_000, 2), 2)
simpson = simpson / simpson.sum()


def density(logit):
    weight = torch.exp(logit * x - max(logit, 0))
    return weight / (weight * simpson).sum()


def exact(p, q):
    return float((density(p) * (density(p) / density(q)).log() * simpson).sum())


def of(logit):
    return ContinuousBernoulli(logits=torch.tensor(logit))


kl = {(p, q): (float(kl_divergence(of(p), of(q))), exact(p, q)) for p, q in ((1.0, 30.0), (20.0, 1.0), (0.5, 1.0))}
for (p, q), (said, right) in kl.items():
    print(f"KL(logit {p:g} || logit {q:g}): {said:.4f}, by quadrature {right:.4f}")
variance, mean = float(of(0.0041).variance), float((density(0.0041) * x * simpson).sum())
right = float((density(0.0041) * (x - mean) ** 2 * simpson).sum())
print(f"variance at logit 0.0041: {variance:.4f}, by quadrature {right:.4f}")
still = float(of(17.0).mean), float(of(30.0).mean), float((density(30.0) * x * simpson).sum())
print(f"mean at logit 17: {still[0]:.4f}, at 30: {still[1]:.4f}, by quadrature {still[2]:.4f}")
flat = Uniform(torch.tensor(0.0), torch.tensor(1.0))
infinite = float(kl_divergence(of(1.0), flat)), float(kl_divergence(flat, of(1.0)))
print(f"KL to and from the uniform law: {infinite}, by quadrature {exact(1.0, 0.0):.4f} and {exact(0.0, 1.0):.4f}")
sound = abs(kl[0.5, 1.0][0] - kl[0.5, 1.0][1]) < 1e-4
wrong = kl[1.0, 30.0][0] < -1 < 9 < kl[1.0, 30.0][1] and kl[20.0, 1.0][0] > 3 * kl[20.0, 1.0][1]
constant = still[0] == still[1] < still[2] - 0.02
sys.exit(0 if sound and wrong and variance > 0.25 and constant and infinite == (float("inf"),) * 2 else 1)
PYTHON
