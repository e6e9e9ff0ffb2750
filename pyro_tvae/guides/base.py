"""The base of guides: an amortised posterior over the latents of a sequence.

A guide says ``posterior(x)``: one distribution per sample site. Everything else, being a Pyro program for SVI and
drawing many particles from one pass of the encoders, follows from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..model import TVAE, check_finite
from ..naming import NamedModule, check_store
from ..parts import Part
from ..posteriors import Posterior, Program, draw, for_sequences
from ..programs import check_covariates, is_bayesian, keywords, taken

__all__ = ["Guide", "LookingGuide", "Posterior", "blanked", "check_judged", "posterior_of"]


class Guide(Part, NamedModule):
    """Base of all guides: subclasses define :meth:`posterior`.

    Args:
        model: the TVAE it is for.
        name: what its parameters are called in Pyro's store, for those who save and load that store; one of its own by
            default. See :class:`~pyro_tvae.naming.NamedModule`.

    Attributes:
        mean_field: the sites are independent given x, so that KL terms are taken site by site in closed form. Where it
            is False they are sampled, and ``MeanFieldELBO`` refuses the guide. Pyro's own ``TraceMeanField_ELBO`` takes
            it and stays right for the guides here, since the model's sites are independent a priori and each site of
            the guide is given by those before it.
        by_frame: what it says of a frame rests on that frame alone, so that long sequences are encoded in pieces. Every
            class says it for itself: it is not inherited.
    """

    bare_forward = True  # see programs.py
    mean_field = True
    by_frame = False

    def __init__(self, model: TVAE, *, name: str | None = None) -> None:
        super().__init__(name)
        self.n_frames, self.n_capsules, self.capsule_dim = model.latent_shape
        self.frame_shape = model.frame_shape

    def check(self, model: TVAE) -> None:
        """Raise ValueError where this guide was made for sequences or latents of another shape."""
        made = ((self.n_frames, *self.frame_shape), (self.n_frames, self.n_capsules, self.capsule_dim))
        asked = ((model.n_frames, *model.frame_shape), model.latent_shape)
        for name, own, wanted in zip(("sequences", "latents"), made, asked, strict=True):
            if own != wanted:
                raise ValueError(
                    f"the guide was made for {name} of shape {own}, the model has {wanted}; build the guide for this "
                    "model."
                )

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> Posterior:
        """Site name -> distribution with batch shape (B, *site); q of the latents given the observed frames.

        An entry may also be a function of the draws of the entries before it; see :mod:`pyro_tvae.posteriors`.

        Args:
            x: (B, S, channel, height, width).
            observed: (S,) or (B, S) booleans, true where a frame was seen; None means all. What x holds in unseen
                frames has no influence.
        """
        raise NotImplementedError

    @property
    def covariates(self) -> frozenset[str]:
        """Names of what the guide takes beside x and observed: keyword arguments of ``posterior`` or ``forward``."""
        return keywords(type(self).posterior) | keywords(type(self).forward)

    def forward(self, x: Tensor, observed: Tensor | None = None, **covariates: Any) -> dict[str, Tensor]:
        """The Pyro program: one draw of every site. Covariates that only the model takes are left to it.

        As of ``measured``, but for what x holds in the other pixels, in place of which a guide is shown zeros.
        """
        posterior = self.posterior(blanked(x, covariates), observed, **taken(covariates, self))
        return self.draw(posterior if isinstance(posterior, Program) else for_sequences(posterior, x.shape[-5]))

    def draw(self, posterior: Posterior) -> dict[str, Tensor]:
        """Sample every site of a posterior computed before, so that many particles cost one pass of the encoders."""
        return draw(posterior)

    def arguments(self) -> dict[str, Any]:
        # The model is described beside the guide, not inside it.
        return {name: value for name, value in super().arguments().items() if name != "model"}


class LookingGuide(Guide):
    """Base of guides whose posterior looks at the model itself: copies of both have to be made together."""

    def __init__(self, model: TVAE, *, name: str | None = None) -> None:
        super().__init__(model, name=name)
        # In a tuple, so that the model's parameters do not become the guide's.
        self._model = (model,)

    def check(self, model: TVAE) -> None:
        super().check(model)
        if self._model[0] is not model:
            raise ValueError(
                f"{type(self).__name__}: it looks at another model than the one given; copy both together, as in "
                "copy.deepcopy((model, guide)), or build the guide for this model."
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._model[0].agree_with_store()  # before it is looked at
        return super().__call__(*args, **kwargs)


def posterior_of(
    guide: Any, x: Tensor, observed: Tensor | None = None, covariates: Mapping[str, Tensor] | None = None
) -> Posterior | Program:
    """The posterior that a guide says of x: its distributions, or where it is a program only, that program.

    A posterior with a batch of one, which says the same of every sequence, is taken for each of them. A guide is not
    told which pixels were measured, and is shown zeros in place of the others, as in training.
    """
    x = blanked(x, covariates)
    given = taken(covariates, guide)
    plain = type(guide).forward is Guide.forward if isinstance(guide, Guide) else hasattr(guide, "posterior")
    if not plain or is_bayesian(guide):
        return Program(guide, x, observed, given)
    return for_sequences(guide.posterior(x, observed, **given), x.shape[-5])


def blanked(x: Tensor, covariates: Mapping[str, Tensor] | None) -> Tensor:
    """What a guide is shown of sequences: zeros in place of the pixels that were not ``measured``."""
    measured = (covariates or {}).get("measured")
    return x if measured is None else torch.where(measured, x, 0)


def check_judged(
    model: TVAE,
    guide: object,
    x: Tensor,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise ValueError or TypeError where x is nothing for the model and its likelihood, or the guide is another's.

    The same for covariates that neither takes. Any object with a posterior will do for a guide; only a :class:`Guide`
    knows what it was made for.
    """
    if not hasattr(model, "check"):
        raise TypeError(
            f"the model is of type {type(model).__name__}; expected a TVAE without a handler around it, whose latents "
            "and decoder can be asked for; log_likelihood, to_arviz and nuts take handlers."
        )
    model.check(x)
    if isinstance(guide, Guide):
        guide.check(model)
    check_store(guide)
    check_covariates(model, guide, covariates, x.shape[-5])
    x = blanked(x, covariates)
    check_finite(x, observed)
    model.likelihood.check(x, observed)
