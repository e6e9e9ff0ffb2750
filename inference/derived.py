"""Derived quantities: what follows from draws of the latents, by a model's distributions or by its program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_tvae import TVAE
from pyro_tvae.likelihoods import Bernoulli, of_seen, seen_pixels
from pyro_tvae.model import mask_of, tvae_of
from pyro_tvae.programs import call

from .chunks import chunk_of, in_chunks
from .densities import in_double, in_plate, log_prob, scored
from .inspection import plain_program, prior_trace

__all__ = ["Consequences", "Piece", "consequences"]


class Piece(NamedTuple):
    """What follows from the draws ``start`` to ``start + size`` of a chain: name -> (draw, …), empty where not wanted.

    Attributes:
        variables: the sites, v, t, …
        predicted: new data by site.
        log_likelihood: log-probabilities of what was observed, factors included, in double precision, (draw, B); nats.
        log_prior: log-probabilities of the latents, in double precision, (draw, B), or (draw,) of shared ones; nats.
    """

    chain: int
    start: int
    size: int
    variables: dict[str, Tensor]
    predicted: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    log_prior: dict[str, Tensor]

    @property
    def groups(self) -> tuple[dict[str, Tensor], ...]:
        """Variables, predictions, log-likelihood and log-prior."""
        return self.variables, self.predicted, self.log_likelihood, self.log_prior


def consequences(
    model: Any,
    x: Tensor,
    observed: Tensor | None,
    covariates: Mapping[str, Tensor] | None,
    chunk_bytes: int | None,
) -> Consequences:
    """By its distributions where these are all of a model, else by running it."""
    chunk = chunk_of(x, chunk_bytes)
    mask = mask_of(observed, x)
    measured = (covariates or {}).get("measured")
    made: Consequences
    if plain_program(model):
        made = FromDistributions(model, x, chunk, mask, measured)
    else:
        made = FromProgram(model, x, observed, covariates, chunk)
    if (seen := seen_pixels(mask, measured)) is not None:
        made.observed["x"] = torch.where(seen, x, math.nan)
    return made


class FromDistributions:
    """A model that is told by its distributions: t is composed of the latents, and x follows from t.

    Attributes:
        chunk: draws in a piece.
        binary: whether what is predicted is zeros and ones.
        shared: latents that have one value for all sequences.
        observed: what the model observes, by site, factors left out; nan where x was not seen.
        constants: what has neither draws nor sequences: μ, a point estimate.
        one_prior: whether the prior is one for all sequences, whose draws then have no dimension of sequences.
    """

    shared = frozenset[str]()
    one_prior = True

    def __init__(self, model: TVAE, x: Tensor, chunk: int, mask: Tensor | None, measured: Tensor | None) -> None:
        self.model, self.chunk, self.observed = model, chunk, {"x": x}
        self.seen, pixels = (mask, measured), seen_pixels(mask, measured)
        self.x = x if pixels is None else torch.where(pixels, x, model.likelihood.blank)
        self.site = next(iter(model.energies), None)
        self.constants = {} if self.site is None else {"mu": model.mu.detach()}
        law = model.likelihood(torch.zeros_like(x[:1, :1]))  # of a subclass it may be another one
        self.binary = isinstance(model.likelihood, Bernoulli) and isinstance(law, torch.distributions.Bernoulli)

    def prior(self, draws: int) -> dict[str, Tensor]:
        """Draws of the latents from their prior, each (1, draws, …)."""
        return {
            name: distribution.sample(torch.Size([1, draws]))
            for name, distribution in self.model.prior_distributions().items()
        }

    def follow(self, latents: Mapping[str, Tensor], derive: bool, predict: bool, score: bool) -> Iterator[Piece]:
        """What follows from latents (chain, draw, …), in pieces whose pixels take bounded memory."""
        model = self.model

        def make(chain: int, start: int, part: dict[str, Tensor]) -> Piece:
            piece = Piece(chain, start, len(part["z"]), {}, {}, {}, {})
            t = model.compose(part)
            if derive:
                energy = {} if self.site is None else {"v": model.energy(part[self.site])}
                piece.variables.update(part | energy | {"t": t})
            if predict or score:
                # Straight from t: the program itself would hand back the observed x where it is conditioned on it.
                distribution = model.decode(t)
                if score:  # first, since it needs the most memory
                    piece.log_likelihood["x"] = in_double(of_seen(distribution, *self.seen).to_event(1), self.x)
                if predict:
                    piece.predicted["x"] = distribution.sample()
                del distribution
            if score:
                priors = model.prior_distributions().items()
                piece.log_prior.update({name: in_double(prior, part[name]) for name, prior in priors})
            return piece

        yield from _pieces(latents, self.chunk, make)


class FromProgram:
    """A model with statements of its own: what follows from draws is what its program says when it is given them."""

    one_prior = False
    binary = False

    def __init__(
        self,
        model: Any,
        x: Tensor,
        observed: Tensor | None,
        covariates: Mapping[str, Tensor] | None,
        chunk: int,
    ) -> None:
        self.tvae, self.chunk = tvae_of(model), chunk
        self.program = call(model, x, observed, covariates)
        sites = scored(prior_trace(model, x, covariates))
        self.latents = [name for name, site in sites if not site["is_observed"]]
        self.shared = frozenset(name for name, site in sites if not site["is_observed"] and not in_plate(site))
        self.observed: dict[str, Tensor] = {
            name: site["value"]
            for name, site in sites
            if site["is_observed"] and not isinstance(site["fn"], pyro.distributions.Unit)
        }
        tvae = self.tvae
        self.random_mu = next(
            (s for s, (part, name) in tvae.weight_sites().items() if (part, name) == (tvae, "mu")), ""
        )
        self.constants = {"mu": tvae.mu.detach()} if tvae.energies and not self.random_mu else {}

    def run(self, size: int, values: Mapping[str, Tensor]) -> poutine.Trace:
        """A run for so many draws at once, the latents at the values given, (size, …), or else from their prior."""
        rows = {name: value.unsqueeze(1) if name in self.shared else value for name, value in values.items()}
        with poutine.block(), pyro.plate("particles", size, dim=-2):
            return poutine.trace(poutine.condition(self.program, data=rows)).get_trace()

    def prior(self, draws: int) -> dict[str, Tensor]:
        def make(_: int, size: int) -> dict[str, Tensor]:
            sites: Mapping[str, Any] = self.run(size, {}).nodes
            return {name: self._value(name, sites[name]["value"]) for name in self.latents}

        parts = [*in_chunks(draws, self.chunk, make)]
        return {name: torch.cat([part[name] for part in parts])[None] for name in self.latents}

    def _value(self, name: str, value: Tensor) -> Tensor:
        return value.squeeze(1) if name in self.shared else value

    def follow(self, latents: Mapping[str, Tensor], derive: bool, predict: bool, score: bool) -> Iterator[Piece]:
        def make(chain: int, start: int, part: dict[str, Tensor]) -> Piece:
            trace = self.run(len(part["z"]), part)
            piece = Piece(chain, start, len(part["z"]), {}, {}, {}, {})
            sites: Mapping[str, Any] = trace.nodes
            if derive:
                piece.variables.update(part)
                for name, site in sites.items():
                    if site["type"] == "sample" and (site["infer"] or {}).get("_deterministic", False):
                        piece.variables[name] = _rows(site["value"], site)
                for name in self.tvae.energies:
                    piece.variables["v"] = self.tvae.energy(part[name])
                if self.random_mu:
                    piece.variables["mu"] = part[self.random_mu]
            for name, site in scored(trace):
                # What the draws gave is observed in this run.
                if name in latents:
                    if score:
                        piece.log_prior[name] = _rows(log_prob(site, precise=True), site)
                    continue
                if not site["is_observed"]:
                    continue
                if predict and name in self.observed:
                    piece.predicted[name] = _rows(site["fn"].sample(), site)
                if score:
                    piece.log_likelihood[name] = _rows(log_prob(site, precise=True), site)
            return piece

        yield from _pieces(latents, self.chunk, make)


Consequences: TypeAlias = FromDistributions | FromProgram


def _rows(value: Tensor, site: Mapping[str, Any]) -> Tensor:
    """(draw, sequence, …), or (draw, …) of a site that all sequences share."""
    return value if in_plate(site) else value.squeeze(1)


def _pieces(
    latents: Mapping[str, Tensor], size: int, make: Callable[[int, int, dict[str, Tensor]], Piece]
) -> Iterator[Piece]:
    """``make(chain, start, latents of the piece)`` for all draws."""
    chains, draws = next(iter(latents.values())).shape[:2]
    for chain in range(chains):

        def of_chain(start: int, size: int, chain: int = chain) -> Piece:
            return make(chain, start, {name: value[chain, start : start + size] for name, value in latents.items()})

        yield from in_chunks(draws, size, of_chain)
