"""Inspection: what a model or a guide says beyond its distributions, learned by running it.

What works from p(z), the prior of the energies and p(x | t) alone asks here first, whether that is all of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import Trace
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from pyro_tvae import TVAE
from pyro_tvae.programs import call, is_bayesian, untouched_store

from .densities import counts_plainly, in_plate, scored

__all__ = [
    "holds_sequences",
    "plain_program",
    "prior_trace",
    "refuse_fixed",
    "refuse_further_terms",
    "refuse_own_terms",
    "shared_sites",
]


def plain_program(model: object) -> bool:
    """Whether p(z), the energies' prior and p(x | t), which a TVAE tells without being run, are all of it."""
    kind: Any = type(model)
    return (
        isinstance(model, TVAE) and kind.forward is TVAE.forward and kind.heads is TVAE.heads and not is_bayesian(model)
    )


def prior_trace(model: Callable[..., object], x: Tensor, covariates: Mapping[str, Tensor] | None = None) -> Trace:
    """Trace of one run of a model given x, its latents drawn from their prior; leaves no trace of its own."""
    with torch.no_grad(), untouched_store(), torch.random.fork_rng():
        return poutine.block(poutine.trace(call(model, x, None, covariates)).get_trace)()


def refuse_further_terms(model: Any, x: Tensor, what: str, covariates: Mapping[str, Tensor] | None = None) -> None:
    """Raise where a model says more than p(z), the prior of the energies and p(x | t), from which ``what`` works."""
    if not isinstance(model, TVAE):
        raise TypeError(f"{what}: the model is a {type(model).__name__}; expected a TVAE without a handler around it.")
    first = {name: value[:1] for name, value in (covariates or {}).items()}
    expected = {"x", *model.prior_distributions()}
    for name, site in scored(prior_trace(model, x[:1], first)):
        if name not in expected or not counts_plainly(site):
            term = f"has a further site {name!r}" if name not in expected else f"scales or masks site {name!r}"
            raise ValueError(
                f"{what}: {type(model).__name__} {term}, which cannot be counted here; expected the sites "
                f"{', '.join(sorted(expected))} alone: use log_likelihood with the default estimator, which counts all."
            )


def refuse_own_terms(model: Any, x: Tensor, what: str) -> None:
    """Raise where a model says more than its distributions and ``decode`` say, or something else.

    Raises:
        TypeError: it is no TVAE, or one inside a handler.
        ValueError: it has a further site, random weights included, or its ``forward`` has distributions of its own.
    """
    refuse_further_terms(model, x, what)
    if type(model).forward is TVAE.forward:
        return
    first, distributions = x[:1], model.prior_distributions()
    trace = prior_trace(model, first)
    sites: dict[str, Any] = dict(scored(trace))
    with torch.no_grad():
        values = {name: sites[name]["value"] for name in distributions if name in sites}
        if len(values) == len(distributions):
            distributions["x"] = model.decode(model.compose(values)).to_event(1)
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


def shared_sites(model: Any, x: Tensor, covariates: Mapping[str, Tensor] | None) -> frozenset[str]:
    """Latents of a model that all sequences share, such as random weights."""
    if plain_program(model):
        return frozenset()
    sites = scored(prior_trace(model, x, covariates))
    return frozenset(name for name, site in sites if not site["is_observed"] and not in_plate(site))


def holds_sequences(guide: object) -> bool | None:
    """Whether a guide holds the latents of sequences, as an autoguide does, and does not read them off x.

    None where it cannot be told, since the guide has not been set up by a first call.
    """
    if not isinstance(guide, AutoGuide | GuideMessenger):
        return False
    trace = getattr(guide, "prototype_trace" if isinstance(guide, AutoGuide) else "trace", None)
    if trace is None:
        return None
    return any(in_plate(site) for _, site in scored(trace) if not site["is_observed"])


def refuse_fixed(guide: object, what: str) -> None:
    """Raise where a guide holds the posterior of the latents of fixed sequences, whatever it is shown."""
    for part in getattr(guide, "guides", (guide,)):
        if holds_sequences(part) is not False:
            raise ValueError(
                f"{what}: {type(part).__name__} holds the latents of the sequences that it was fitted to, whatever it "
                "is shown; expected a guide that reads them off x, such as a pyro_tvae.Guide."
            )
