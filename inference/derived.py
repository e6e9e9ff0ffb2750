"""Derived quantities: what follows from draws of the latents, by a model's distributions or by its program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_tvae import TVAE
from pyro_tvae.model import tvae_of
from pyro_tvae.programs import call

from .densities import in_plate, log_prob, scored
from .inspection import plain_program, prior_trace

__all__ = ["consequences"]


def consequences(
    model: Any, x: Tensor, covariates: Mapping[str, Tensor] | None, chunk_bytes: int
) -> FromDistributions | FromProgram:
    """By its distributions where these are all of a model, else by running it."""
    chunk = max(1, chunk_bytes // (x.numel() * x.element_size()))
    if plain_program(model):
        return FromDistributions(model, x, chunk)
    return FromProgram(model, x, covariates, chunk)


class FromDistributions:
    """A model that is told by its distributions: t is composed of the latents, and x follows from t.

    Attributes:
        shared: latents that have one value for all sequences.
        observed: what the model observes, by site, factors left out.
    """

    shared = frozenset[str]()

    def __init__(self, model: TVAE, x: Tensor, chunk: int) -> None:
        self.model, self.x, self.chunk, self.observed = model, x, chunk, {"x": x}
        self.site = next(iter(model.energies), None)

    def prior(self, draws: int) -> dict[str, Tensor]:
        """Draws of the latents from their prior, each (1, draws, …)."""
        return {
            name: distribution.sample(torch.Size([1, draws, len(self.x)]))
            for name, distribution in self.model.prior_distributions().items()
        }

    def follow(
        self, latents: Mapping[str, Tensor], derive: bool, predict: bool, score: bool
    ) -> list[dict[str, Tensor]]:
        """All variables (the sites, v, t, μ, …), new data, and log-probabilities of what was observed, where wanted."""
        return [self._derived(latents) if derive else {}, *self._decoded(latents, predict, score)]

    def _derived(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model, site, variables = self.model, self.site, dict(latents)
        if site is not None:
            # One draw at a time: composing all at once would double the memory.
            flat = zip(latents["z"].flatten(0, 1), latents[site].flatten(0, 1), strict=True)
            energies, composed = zip(
                *((model.energy(u), model.compose({"z": z, site: u})) for z, u in flat), strict=True
            )
            shape = latents["z"].shape[:2]
            variables["v"] = torch.stack(energies).unflatten(0, shape)
            variables["t"] = torch.stack(composed).unflatten(0, shape)
            variables["mu"] = model.mu.detach().expand(shape)
        else:
            variables["t"] = latents["z"]
        return variables

    def _decoded(self, latents: Mapping[str, Tensor], predict: bool, score: bool) -> list[dict[str, Tensor]]:
        if not predict and not score:
            return [{}, {}]
        shape, x = latents["z"].shape[:2], self.x
        frames, nats = [], []
        for part in _chunks(latents, self.chunk):
            # Straight from t: the program itself would hand back the observed x where it is conditioned on it.
            distribution = self.model.decode(self.model.compose(part))
            if predict:
                frames.append(distribution.sample().cpu())
            if score:
                nats.append(distribution.log_prob(x).sum(-1))
        return [{"x": torch.cat(values).unflatten(0, shape)} if values else {} for values in (frames, nats)]


class FromProgram:
    """A model with statements of its own: what follows from draws is what its program says when it is given them."""

    def __init__(self, model: Any, x: Tensor, covariates: Mapping[str, Tensor] | None, chunk: int) -> None:
        self.tvae, self.chunk = tvae_of(model), chunk
        self.program = call(model, x, None, covariates)
        sites = scored(prior_trace(model, x, covariates))
        self.latents = [name for name, site in sites if not site["is_observed"]]
        self.shared = frozenset(name for name, site in sites if not site["is_observed"] and not in_plate(site))
        self.observed: dict[str, Tensor] = {
            name: site["value"]
            for name, site in sites
            if site["is_observed"] and not isinstance(site["fn"], pyro.distributions.Unit)
        }

    def run(self, size: int, values: Mapping[str, Tensor]) -> poutine.Trace:
        """A run for so many draws at once, the latents at the values given, (size, …), or else from their prior."""
        rows = {name: value.unsqueeze(1) if name in self.shared else value for name, value in values.items()}
        with poutine.block(), pyro.plate("particles", size, dim=-2):
            return poutine.trace(poutine.condition(self.program, data=rows)).get_trace()

    def prior(self, draws: int) -> dict[str, Tensor]:
        parts = []
        for start in range(0, draws, self.chunk):
            trace = self.run(min(self.chunk, draws - start), {})
            sites: Mapping[str, Any] = trace.nodes
            parts.append({name: self._value(name, sites[name]["value"]) for name in self.latents})
        return {name: torch.cat([part[name] for part in parts])[None] for name in self.latents}

    def _value(self, name: str, value: Tensor) -> Tensor:
        return value.squeeze(1) if name in self.shared else value

    def follow(
        self, latents: Mapping[str, Tensor], derive: bool, predict: bool, score: bool
    ) -> list[dict[str, Tensor]]:
        shape, parts = latents["z"].shape[:2], []
        for part in _chunks(latents, self.chunk):
            trace = self.run(len(part["z"]), part)
            fixed, new, nats = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
            sites: Mapping[str, Any] = trace.nodes
            for name, site in sites.items():
                if site["type"] == "sample" and (site["infer"] or {}).get("_deterministic", False):
                    fixed[name] = site["value"] if in_plate(site) else site["value"].squeeze(1)
            for name in self.tvae.energies:
                fixed["v"] = self.tvae.energy(part[name])
            for name, site in scored(trace):
                # What the draws gave is observed in this run.
                if not site["is_observed"] or name in latents:
                    continue
                if predict and name in self.observed:
                    new[name] = _rows(site["fn"].sample(), site).cpu()
                if score:
                    nats[name] = _rows(log_prob(site), site)
            parts.append((fixed, new, nats))
        whole = [
            {name: torch.cat([part[i][name] for part in parts]).unflatten(0, shape) for name in parts[0][i]}
            for i in range(3)
        ]
        variables = dict(latents) | whole[0]
        if self.tvae.energies:
            random = [s for s, (part, name) in self.tvae.weight_sites().items() if (part, name) == (self.tvae, "mu")]
            variables["mu"] = latents[random[0]] if random else self.tvae.mu.detach().expand(shape)
        return [variables, whole[1], whole[2]]


def _rows(value: Tensor, site: Mapping[str, Any]) -> Tensor:
    """(draw, sequence, …), or (draw, …) of a site that all sequences share."""
    return value if in_plate(site) else value.squeeze(1)


def _chunks(latents: Mapping[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    names = list(latents)
    for parts in zip(*(latents[name].flatten(0, 1).split(size) for name in names), strict=True):
        yield dict(zip(names, parts, strict=True))
