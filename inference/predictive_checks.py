"""Predictive checks: do pictures drawn from the model look like those it was shown, statistic by statistic?

A check whose false-alarm rate is known: each sequence gets one draw of its posterior, and frames are drawn given that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_tvae import TVAE
from pyro_tvae.judging import check_whole, judges, seeded
from pyro_tvae.likelihoods import binarized, of_seen

from .chunks import chunk_of, in_chunks
from .simulation_based_calibration import Calibration, rank_among

__all__ = ["PredictiveCheck", "frame_statistics", "predictive_check"]

# What each statistic of a frame is, by name.
STATISTICS = {
    "ink": "mean pixel",
    "centroid_x": "center of mass across, pixels",
    "centroid_y": "center of mass down, pixels",
    "change": "energy of the difference to the next frame",
    "log_likelihood": "log p(frame | t)",
}


def frame_statistics(x: Tensor) -> dict[str, Tensor]:
    """Statistics of every frame: (…, B, S, channel, height, width) -> name -> (…, B, S), or (…, B, S − 1) of changes.

    ``ink``: mean pixel; ``centroid_x``, ``centroid_y``: center of mass, in pixels from the center; 0 of a frame without
    ink; ``change``: mean squared difference to the next frame.
    """
    gray = x.mean(-3)
    height, width = gray.shape[-2:]
    across = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    down = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2
    mass = gray.sum((-1, -2))
    # Pixels of a Normal likelihood may sum to nearly nothing, or less: moments by the mean of the absolute ink.
    whole = gray.abs().sum((-1, -2)).clamp(min=1e-6)
    return {
        "ink": mass / (height * width),
        "centroid_x": (gray.sum(-2) @ across) / whole,
        "centroid_y": (gray.sum(-1) @ down) / whole,
        "change": (x[..., 1:, :, :, :] - x[..., :-1, :, :, :]).square().mean((-1, -2, -3)),
    }


@dataclass(frozen=True)
class PredictiveCheck:
    """Observed statistics against replicates.

    Attributes:
        scores: statistic -> (B, S) z-scores: (observed − mean of replicates) / their standard deviation; 0 where
            neither varies, nan of frames of which nothing was seen.
        ranks: of the observed among R replicates, 0 … R, a probability integral transform: (B · S,) per statistic,
            for every second change alone, since neighboring ones share a frame; those frames are left out.
        n_replicates: R.
    """

    scores: dict[str, Tensor]
    ranks: Calibration

    @property
    def n_replicates(self) -> int:
        return self.ranks.n_draws

    def outside(self, name: str, level: float = 0.05) -> tuple[int, int]:
        """How many of the ranks lie in the outer tails, of at most this probability together, and how many there are.

        Of exactly this one where ``(R + 1) · level / 2`` is a whole number, as with 199 replicates.

        Raises:
            ValueError: so few replicates have no such tails.
        """
        ranks = self.ranks.ranks[name]
        n = self.n_replicates + 1
        each = math.floor(n * level / 2 + 1e-9)
        if not 1 <= each <= n / 2:
            raise ValueError(
                f"outside: level is {level!r}, and {self.n_replicates} replicates have no tails of half of that; "
                "expected at least 2 / level − 1 replicates, and a level between 0 and 1."
            )
        return int(((ranks < each) | (ranks >= n - each)).sum()), ranks.numel()


@judges
def predictive_check(
    model: TVAE,
    t: Tensor,
    x: Tensor,
    n_replicates: int = 199,
    *,
    seed: int | None = 0,
    chunk_bytes: int | None = None,
) -> PredictiveCheck:
    """Check statistics of frames x against frames drawn given one posterior draw of t.

    If t is a draw of the posterior of x, then x is a draw of ``p(x | t)``, whatever x is: ranks among replicates from
    the same ``p(x | t)`` are uniform and z-scores have mean 0 and variance 1, so that rates of alarms are those that
    they say (`Johnson 2007, Bayesian model assessment using pivotal quantities
    <https://doi.org/10.1214/07-BA229>`__). Replicates over many draws would be compared with data that had already
    shaped them, and alarm too seldom. An alarm says that the model, or the posterior's approximation, is wrong.

    Gray pixels under a Bernoulli likelihood are first drawn black or white with their value as the probability, as the
    likelihood takes them: a gray frame has less noise than any replicate, and would look wrong under the right model.

    Args:
        model: whose decoder and likelihood say ``p(x | t)``.
        t: (B, S, C, D), one posterior draw per sequence.
        x: (B, S, channel, height, width); nan where a pixel was not seen, which is left out of the replicates as well.
        n_replicates: R; R + 1 should be a multiple of the histogram's bins.
        seed: of the replicates; None uses torch's global generator.
        chunk_bytes: bound on the pixels of one pass; None sizes it by the memory there is.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> x, t = torch.rand(5, 3, 1, 4, 4), torch.randn(5, 3, 1, 3)
        >>> predictive_check(model, t, x, 19).scores["ink"].shape
        torch.Size([5, 3])
    """
    check_whole("predictive_check", 2, n_replicates=n_replicates)
    model.check(x)
    if t.shape != (len(x), *model.latent_shape):
        raise ValueError(
            f"predictive_check: t has shape {tuple(t.shape)}; expected one draw for each sequence of x, "
            f"{(len(x), *model.latent_shape)}."
        )
    with seeded(seed):
        frames, seen = model.decode(t.to(x)), ~x.isnan()
        some = seen.flatten(2).any(-1)  # frames of which something was seen
        whole = bool(seen.all())
        scored = frames if whole else of_seen(frames, None, seen)
        x = x if whole else torch.where(seen, x, model.likelihood.blank)
        if (binary := binarized(model.likelihood, x)) is not None:
            x = binary
        elif _is_binary(frames):
            x = torch.bernoulli(x.clamp(0, 1))
        observed = frame_statistics(x) | {"log_likelihood": scored.log_prob(x)}

        def make(_: int, size: int) -> dict[str, Tensor]:
            drawn = frames.sample(torch.Size([size]))
            drawn = drawn if whole else torch.where(seen, drawn, model.likelihood.blank)
            return frame_statistics(drawn) | {"log_likelihood": scored.log_prob(drawn)}

        parts = [*in_chunks(n_replicates, chunk_of(x, chunk_bytes), make, "replicate")]
        replicates = {name: torch.cat([part[name] for part in parts]).double() for name in observed}
        scores, ranks = {}, {}
        for name, value in observed.items():
            made, value = replicates[name], value.double()
            spread = made.std(0)
            off = value - made.mean(0)
            z = torch.where(spread > 0, off / spread, torch.where(off == 0, 0.0, off.sign() * torch.inf))
            there = some[:, 1:] & some[:, :-1] if name == "change" else some
            scores[name] = torch.where(there, z, torch.nan).cpu()
            place, step = rank_among(made, value), 2 if name == "change" else 1
            ranks[name] = place[:, ::step][there[:, ::step]].cpu()
    return PredictiveCheck(scores, Calibration(ranks, n_replicates))


def _is_binary(frames: Any) -> bool:
    """Whether what is drawn is zeros and ones."""
    drawn = frames.sample()
    return bool(((drawn == 0) | (drawn == 1)).all())
