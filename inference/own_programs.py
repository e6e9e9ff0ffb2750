"""Own programs: what a model says beyond p(z), the energies' prior and p(x | t), found by running it.

Whatever works from the laws alone asks here first; whatever can, runs the program instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_tvae import TVAE
from pyro_tvae.programs import call, is_bayesian, untouched_store
from pyro_tvae.verbs import composed

from .densities import refuse_further_terms, scored

__all__ = ["in_plate", "plain_program", "refuse_fixed", "refuse_own_terms", "rehearse"]


def plain_program(model: object) -> bool:
    """Whether p(z), the energies' prior and p(x | t), which a TVAE tells without being run, are all of it."""
    kind: Any = type(model)
    return (
        isinstance(model, TVAE) and kind.forward is TVAE.forward and kind.heads is TVAE.heads and not is_bayesian(model)
    )


def rehearse(model: Callable[..., object], x: Tensor, covariates: Mapping[str, Tensor] | None = None) -> Trace:
    """Trace of one run of a model given x, its latents drawn from their prior; leaves no trace of its own."""
    with torch.no_grad(), untouched_store(), torch.random.fork_rng():
        return poutine.block(poutine.trace(call(model, x, None, covariates)).get_trace)()


def in_plate(site: Mapping[str, Any]) -> bool:
    """Whether a site has one value per sequence, and not one for all."""
    return any(frame.vectorized and frame.dim == -1 for frame in site["cond_indep_stack"])


def refuse_own_terms(model: Any, x: Tensor, what: str) -> None:
    """Raise where a model says more than its laws and ``decode`` say, or something else.

    Raises:
        TypeError: it is no TVAE, or one inside a handler.
        ValueError: it has a further site, random weights included, or its ``forward`` has laws of its own.
    """
    refuse_further_terms(model, x, what)
    if type(model).forward is TVAE.forward:
        return
    first, distributions = x[:1], model.prior_distributions()
    trace = rehearse(model, first)
    sites: dict[str, Any] = dict(scored(trace))
    with torch.no_grad():
        values = {name: sites[name]["value"] for name in distributions if name in sites}
        if len(values) == len(distributions):
            distributions["x"] = model.decode(composed(model, values)).to_event(1)
        for name, distribution in distributions.items():
            site = sites.get(name)
            said = None if site is None else (site["fn"].log_prob(site["value"]), distribution.log_prob(site["value"]))
            if said is None or not torch.allclose(said[0].sum(), said[1].sum(), rtol=1e-4):
                by = "decode" if name == "x" else "prior_distributions"
                raise ValueError(
                    f"{what}: the forward of {type(model).__name__} gives site {name!r} another distribution than its "
                    f"method '{by}', which is what can be counted here; override '{by}' instead, or use "
                    "log_likelihood, which runs the program."
                )


def refuse_fixed(guide: object, what: str) -> None:
    """Raise where a guide holds the posterior of the latents of fixed sequences, whatever it is shown."""
    for part in _parts(guide):
        if isinstance(part, AutoGuide | GuideMessenger) and not _of_weights_alone(part):
            raise ValueError(
                f"{what}: {type(part).__name__} holds the latents of the sequences that it was fitted to, whatever it "
                "is shown; expected a guide that reads them off x, such as a pyro_tvae.Guide."
            )


def _parts(guide: Any) -> Iterator[object]:
    yield from getattr(guide, "guides", (guide,))


def _of_weights_alone(guide: Any) -> bool:
    trace = getattr(guide, "prototype_trace", None)
    if trace is None:  # not set up: what it is blocked to is seen when it is run
        return False
    return not any(in_plate(site) for _, site in scored(trace) if not site["is_observed"])
