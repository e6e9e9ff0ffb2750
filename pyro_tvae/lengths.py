"""Other lengths: a pair for sequences of more or fewer frames than it was built for, with the same weights."""

from __future__ import annotations

from .guides.base import Guide
from .model import TVAE
from .storage import rebuild, record

__all__ = ["with_n_frames"]


def with_n_frames(model: TVAE, guide: Guide, n_frames: int) -> tuple[TVAE, Guide]:
    """A copy of a pair for sequences of ``n_frames`` frames: encoders and decoder see one frame, whatever the length.

    The topography is said by offsets, so that ``v[l, p] = Σ weight[dt, dp] u[l + dt, p + dp]²`` holds for any length;
    circular frames then wrap at the new one. Weights are copied: what trains one pair leaves the other alone. Parts
    whose numbers belong to a length are refused: a matrix, orbits that close after S frames, weights of a shape with S.

    Args:
        model: the generative program.
        guide: its posterior.
        n_frames: frames of the new pair's sequences.

    Returns:
        (model, guide), in the mode, training or evaluation, and on the device that they had.

    Raises:
        ValueError: a part that belongs to a length, or a pair that :func:`~pyro_tvae.save` refuses.

    Example:
        >>> from pyro_tvae import CapsuleRoll, MeanFieldGuide
        >>> model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6, topography=CapsuleRoll(3))
        >>> longer, its_guide = with_n_frames(model, MeanFieldGuide(model), 9)
        >>> longer(n_sequences=2).shape
        torch.Size([2, 9, 1, 8, 8])
    """
    contents = record(model, guide)
    arguments = contents.description["model"]["arguments"]
    if "n_frames" not in arguments:
        raise ValueError(
            f"with_n_frames: the constructor of {type(model).__name__} has no argument n_frames; expected one, so that "
            "it can be built for another length."
        )
    arguments["n_frames"] = n_frames
    try:
        pair = rebuild(contents)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"with_n_frames: {type(model).__name__} with {type(model.topography).__name__} and {type(guide).__name__} "
            f"belongs to {model.n_frames} frames and cannot be had for {n_frames} ({' '.join(str(error).split())}); "
            "choose parts that are relative in time."
        ) from None
    if pair[0].n_frames != n_frames:
        raise ValueError(f"with_n_frames: {type(model).__name__} makes {pair[0].n_frames} frames, not {n_frames}.")
    device = model.like.device
    return pair[0].to(device).train(model.training), pair[1].to(device).train(guide.training)
