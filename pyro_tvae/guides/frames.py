"""Guides whose encoders read single frames: what they share, be the latents independent of each other or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..model import TVAE
from ..networks import Network
from .base import Guide
from .encoders import FrameEncoder, coordinates, z_coordinate

__all__ = ["EncoderGuide", "FrameGuide"]


class EncoderGuide(Guide):
    """Base of guides with an encoder of single frames for each site, or one for all.

    Args:
        model: the TVAE it is for.
        biases: for each ``{key}_encoder``, what is added to its outputs before anything was learned.
        network: recipe of the encoders; the model's own by default.
        shared_trunk: one ``encoder`` has the outputs of all.
        name: see :class:`Guide`.
    """

    def __init__(
        self,
        model: TVAE,
        biases: Mapping[str, tuple[float, ...]],
        *,
        network: Network | None,
        shared_trunk: bool = False,
        name: str | None,
    ) -> None:
        super().__init__(model, name=name)
        self.z = z_coordinate(model)
        encoders = {f"{key}_encoder": numbers for key, numbers in biases.items()}
        if shared_trunk:
            encoders = {"encoder": sum(biases.values(), ())}
        for attribute, numbers in encoders.items():
            setattr(self, attribute, FrameEncoder(model, network, numbers))
        self.encoders = tuple(encoders)

    def couple(self, model: TVAE) -> None:
        """Called last by the constructors: make what a guide without arguments of its own has beside its encoders."""

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the encoders say of x, each number (B, S, C, D), frame by frame."""
        return tuple(output for attribute in self.encoders for output in getattr(self, attribute)(x))


class FrameGuide(EncoderGuide):
    """Base of guides that start from two numbers per latent, for z and for one energy per latent, frame by frame.

    Attributes:
        shared_trunk: one encoder for both.
        couples: z with the energies, so that there have to be some.
    """

    shared_trunk = False
    couples = False

    def __init__(
        self,
        model: TVAE,
        *,
        network: Network | None = None,
        initial_log_variance: float = -5.0,
        initial_z_log_variance: float | None = None,
        name: str | None = None,
    ) -> None:
        biases = self.biases(model, initial_log_variance)
        if initial_z_log_variance is not None:
            biases["z"] = (0.0, initial_z_log_variance)
        super().__init__(model, biases, network=network, shared_trunk=self.shared_trunk, name=name)
        self.coordinates = coordinates(model, type(self).__name__)
        self.couple(model)

    def biases(self, model: TVAE, initial_log_variance: float) -> dict[str, tuple[float, ...]]:
        """For each ``{key}_encoder``, what is added to its outputs before anything was learned.

        Raises:
            ValueError: the guide is not made for such a model.
        """
        sites = coordinates(model, type(self).__name__)
        if self.couples and len(sites) < 2:
            raise ValueError(
                f"{type(self).__name__}: it couples z with the energies, and a model with NoTopography has none; "
                "choose a topography or MeanFieldGuide."
            )
        return dict.fromkeys("zu"[: len(sites)], (0.0, initial_log_variance))

    def locate(self, outputs: Sequence[Tensor], mask: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Location and scale of every coordinate from the encoders' outputs, those of the prior in unseen frames."""
        pairs = zip(outputs[::2], outputs[1::2], strict=True)
        return [one.locate(pair, mask) for one, pair in zip(self.coordinates, pairs, strict=True)]
