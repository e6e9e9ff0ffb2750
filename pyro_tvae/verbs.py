"""What one does with a fitted model: encode, reconstruct, sample, traverse, interpolate. No gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .guides.base import check_judged, posterior_of
from .judging import check_whole, judges, reads
from .model import TVAE
from .posteriors import Posterior, moments
from .programs import Program, is_bayesian, runnable, untouched_store, values_of

__all__ = ["encode", "interpolate", "reconstruct", "sample", "traverse"]

SHORT = 512  # frames of a sequence up to which it is encoded at once
PIECE = 4096  # frames of all sequences that are encoded together, where sequences are longer


@reads
def encode(
    model: TVAE,
    guide: Any,
    x: Tensor,
    observed: Tensor | None = None,
    *,
    covariates: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Topographic variables at the posterior mean of z and the posterior mean of the energies.

    Args:
        model: the generative program.
        guide: its posterior, or any Pyro program with the model's sites, whose means are then taken over 64 draws.
        x: (B, S, channel, height, width). Guides of single frames read long sequences piece by piece, so that x may be
            a file that is mapped into memory.
        observed: (S,) or (B, S) booleans, true where a frame was seen; None means all.
        covariates: what the guide takes beside them, by name.

    Returns:
        t of shape (B, S, C, D).
    """
    with _at_means(model, guide, x, observed, covariates) as means:
        return model.compose(means)


@contextmanager
def _at_means(
    model: TVAE, guide: Any, x: Tensor, observed: Tensor | None, covariates: Mapping[str, Tensor] | None
) -> Iterator[dict[str, Tensor]]:
    """The posterior means given x, random weights at theirs, after what can be seen to be wrong was refused."""
    check_judged(model, guide, x, observed, covariates)
    means = _posterior_means_of(model, guide, x, observed, covariates)
    with weights_at(model, means):
        yield means


def _posterior_means_of(
    model: TVAE,
    guide: Any,
    x: Tensor,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The posterior means given x: of a guide of single frames in pieces, so that x may be larger than memory."""
    n_frames, length = x.shape[1], max(1, PIECE // len(x))
    masks = covariates or {}
    by_frame = vars(type(guide)).get("by_frame") and masks.keys() <= {"measured"}  # which of others are, is not known
    if n_frames <= SHORT or n_frames <= length or not by_frame or is_bayesian(guide):
        return posterior_means(model, posterior_of(guide, x, observed, covariates))
    pieces = [slice(start, start + length) for start in range(0, n_frames, length)]
    seen = [None if observed is None else observed[..., piece] for piece in pieces]
    parts = [{name: mask.expand(x.shape)[:, piece] for name, mask in masks.items()} for piece in pieces]
    means = [
        posterior_means(model, posterior_of(guide, x[:, piece], frames, part or None))
        for piece, frames, part in zip(pieces, seen, parts, strict=True)
    ]
    return {site: torch.cat([one[site] for one in means], 1) for site in means[0]}


def point_estimate(model: TVAE, posterior: Posterior | Program) -> Tensor:
    """t (B, S, C, D) at the mean of z and the mean of the energies of a posterior computed before."""
    means = posterior_means(model, posterior)
    with weights_at(model, means):
        return model.compose(means)


def posterior_means(model: TVAE, posterior: Posterior | Program) -> dict[str, Tensor]:
    """Site -> posterior mean, of an energy the point whose V is the expected one."""
    sites = moments(posterior)
    for site in ("z", *model.energies):
        if site not in sites:
            raise ValueError(f"the model has a site {site!r} that the guide lacks; build the guide for this model.")
    weights = model.weight_sites() if is_bayesian(model) else {}
    means = {site: one.mean for site, one in sites.items() if site in ("z", *weights)}
    return means | {site: prior.point(sites[site]) for site, prior in model.energies.items()}


@contextmanager
def weights_at(model: TVAE, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Random weights at their values among these, for a block of code; nothing for a model that has none."""
    if not is_bayesian(model):
        yield
        return
    with untouched_store(), model.held(values):
        yield


@reads
def reconstruct(
    model: TVAE,
    guide: Any,
    x: Tensor,
    observed: Tensor | None = None,
    *,
    covariates: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Mean frames (B, S, channel, height, width) decoded from :func:`encode`, random weights at their means; pixels."""
    with _at_means(model, guide, x, observed, covariates) as means:
        return model.decode(model.compose(means)).mean


@judges
def sample(model: TVAE, n_sequences: int = 1, *, mean: bool | None = None) -> Tensor:
    """Sequences drawn from the model, ``x ~ p(x)``, or their mean frames ``E[x | t]`` for t drawn from the prior.

    The model's program is run, whatever it is; random weights are drawn once for all sequences.

    Args:
        model: the generative program.
        n_sequences: how many.
        mean: frames as the decoder says them, without the noise of their pixels. From the next version on the default
            is False, as the name says; until then it is True, with a DeprecationWarning.

    Returns:
        (n_sequences, S, channel, height, width), pixels.

    Raises:
        ValueError: fewer than one sequence.

    Example:
        >>> import pyro_tvae
        >>> sample(pyro_tvae.TVAE((1, 8, 8), 6, 2, 6), 3, mean=False).unique().tolist()
        [0.0, 1.0]
    """
    check_whole("sample", n_sequences=n_sequences)
    if mean is None:
        sentence = (
            "sample gives mean frames, and will draw their pixels from the next version on: say mean=True or False."
        )
        warnings.warn(sentence, DeprecationWarning, stacklevel=3)  # beyond the decorator
    frames, values = ancestral_sample(model, n_sequences)
    return values["x"] if mean is False else frames.mean


@torch.no_grad()
def ancestral_sample(model: TVAE, n_sequences: int) -> tuple[Any, dict[str, Tensor]]:
    """The distribution of the frames in a run of the model's program from the prior, and the values of all sites."""
    with untouched_store():
        trace = poutine.block(poutine.trace(runnable(model)).get_trace)(n_sequences=n_sequences)
    distribution: Any = trace.nodes["x"]["fn"]
    return distribution, values_of(trace)


@reads
def traverse(
    model: TVAE,
    guide: Any,
    x: Tensor,
    *,
    frame: int = 0,
    shifts: Tensor | Sequence[int] | None = None,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Capsule traversal: roll t of one frame through the capsule and decode every step, as :meth:`.TVAE.rolled` does.

    Args:
        x: (B, S, channel, height, width).
        frame: the frame whose t is rolled; −1 is the last one.
        shifts: whole positions to roll by, (R,); by default 0, 1, …, S − 1 counted from ``frame``, so that step l is
            the model's own forecast of frame l.
        observed: (S,) or (B, S) booleans, true where a frame was seen; None means all.
        covariates: what the guide takes beside x, by name.

    Returns:
        Mean frames (B, R, channel, height, width).

    Raises:
        ValueError: there is no such frame.
    """
    with _at_means(model, guide, x, observed, covariates) as means:
        if not isinstance(frame, Integral) or not -model.n_frames <= frame < model.n_frames:
            last = model.n_frames - 1
            raise ValueError(f"traverse: frame is {frame!r}; expected one from 0 to {last}, or from -1 backwards.")
        frame = int(frame) % model.n_frames
        shifts = torch.arange(model.n_frames) - frame if shifts is None else torch.as_tensor(shifts)
        t = model.compose(means)[:, frame]
        return model.decode(model.rolled(t.unsqueeze(1), shifts.to(t.device).reshape(1, -1, 1))).mean


PATHS = ("latent", "t")


@reads
def interpolate(model: TVAE, guide: Any, x_a: Tensor, x_b: Tensor, *, steps: int = 8, path: str = "latent") -> Tensor:
    """Sequences on the way from one to another, decoded at evenly spaced points of a path between their codes.

    ``path="latent"``: with weight w from 0 to 1, ``z = (1 − w) z_a + w z_b`` and, for energies that are positive,
    ``e = e_a^(1 − w) e_b^w``: a straight line in log e, the geodesic of a scale, which never leaves the support. u of
    the paper's model is real and goes straight; at the posterior mean of u² it is positive at both ends, so that its
    square, too, rises or falls all the way. ``path="t"``: ``t = (1 − w) t_a + w t_b``, what the decoder sees goes
    straight, whatever latents could make it.

    Args:
        x_a: (B, S, channel, height, width), where the path starts.
        x_b: of the same shape, where it ends.
        steps: points R on the path, 2 or more; the first and the last are :func:`reconstruct` of x_a and x_b.
        path: ``"latent"`` or ``"t"``.

    Returns:
        Mean frames (B, R, S, channel, height, width), pixels.

    Raises:
        ValueError: fewer than 2 steps, another word for ``path``, or x_a and x_b of different shapes.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
        >>> guide, (x_a, x_b) = pyro_tvae.MeanFieldGuide(model), torch.rand(2, 4, 6, 1, 8, 8)
        >>> interpolate(model, guide, x_a, x_b, steps=5).shape
        torch.Size([4, 5, 6, 1, 8, 8])
    """
    check_whole("interpolate", 2, steps=steps)
    if path not in PATHS:
        raise ValueError(f"interpolate: path is {path!r}; expected 'latent' or 't'.")
    for x in (x_a, x_b):
        check_judged(model, guide, x)
    if x_a.shape != x_b.shape:
        raise ValueError(
            f"interpolate: x_a has shape {tuple(x_a.shape)}, x_b {tuple(x_b.shape)}; expected equal shapes."
        )
    a, b = (_posterior_means_of(model, guide, x) for x in (x_a, x_b))
    weight = torch.linspace(0, 1, steps).to(a["z"])
    # The weights of a Bayesian decoder are the same at both ends.
    with weights_at(model, a):
        if path == "t":
            return model.decode(_straight(model.compose(a), model.compose(b), weight)).mean
        way = {"z": _straight(a["z"], b["z"], weight)}
        for site, prior in model.energies.items():
            way[site] = (_geometric if prior.positive else _straight)(a[site], b[site], weight)
        return model.decode(model.compose(way)).mean


def _straight(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """(B, R, …) between (B, …) and (B, …), with both ends exact."""
    return torch.lerp(a.unsqueeze(1), b.unsqueeze(1), weight.reshape(-1, *[1] * (a.dim() - 1)))


def _geometric(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The same along log, for positive numbers."""
    weight = weight.reshape(-1, *[1] * (a.dim() - 1))
    return a.unsqueeze(1).pow(1 - weight) * b.unsqueeze(1).pow(weight)
