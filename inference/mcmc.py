"""NUTS: Hamiltonian Monte Carlo for a few sequences of a small model, and how far a guide is from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import init_to_value
from torch import Tensor, nn

from pyro_tvae import TVAE, GaussianEnergy, Guide
from pyro_tvae.guides.base import check_judged, posterior_of
from pyro_tvae.judging import check_whole, judges, refuse_inference_mode, seeded
from pyro_tvae.model import frame_mask, tvae_of
from pyro_tvae.parts import describe
from pyro_tvae.posteriors import draw, moments
from pyro_tvae.programs import call, untouched_store

from .arviz_adapter import diagnose
from .chunks import chunk_of, in_chunks
from .densities import scored
from .fingerprints import Fingerprint, alike, fingerprint
from .inspection import prior_trace, shared_sites
from .likelihood import summarize, weighted_particles
from .progress import progress_bar

__all__ = ["GuideQuality", "NUTSResult", "guide_quality", "identified", "nuts"]

RECORDED = ("potential", "energy", "tree_depth", "step_size", "acceptance_rate")


@dataclass(frozen=True)
class NUTSResult:
    """Draws of the latents with their diagnostics.

    Attributes:
        draws: site -> (chain, draw, B, *site); of what all sequences share, such as random weights, (chain, draw,
            *site).
        rhat: identified latent -> (B, *site); below 1.01 the chains agree, nan for one draw (`Vehtari et al. 2021,
            Rank-normalization, folding, and localization <https://arxiv.org/abs/1903.08008>`__).
        ess: identified latent -> (B, *site), bulk effective sample size; higher is better, 400 is enough for means.
        diverging: (chain, draw) booleans; a divergence says that the chain missed a part of the posterior.
        lp: (chain, draw), ``log p(x, latents)`` of all sequences together, constants included, nats.
        energy: (chain, draw), the Hamiltonian ``−log p(x, y) + |momentum|² / 2`` of the draw as the sampler moves it, y
            its unconstrained coordinates (positive latents as logarithms, Jacobian included); nats. Draws that change
            it slowly do not reach the tails, which ``az.bfmi`` measures.
        tree_depth: (chain, draw), doublings of the trajectory; at ``max_tree_depth`` it was cut short.
        step_size: (chain, draw), of the integrator, in units of the adapted scale of each coordinate.
        acceptance_rate: (chain, draw), mean acceptance probability along the trajectory, which the step size is adapted
            to bring to 0.8.
        given: what tells the sequences that were seen, and the weights of the model, from others; None, in results of
            one's own making, fits all.
        seed: of the draws, where there was one.
    """

    draws: dict[str, Tensor]
    rhat: dict[str, Tensor]
    ess: dict[str, Tensor]
    diverging: Tensor
    lp: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    energy: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    tree_depth: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    step_size: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    acceptance_rate: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    given: Fingerprint | None = None
    seed: int | None = None

    def thinned(self, model: TVAE, thin: int) -> NUTSResult:
        """Every ``thin``-th draw of every chain, with the ESS of these; R-hat, of the chains, stays that of all."""
        if thin == 1:
            return self
        draws = {name: value[:, thin - 1 :: thin] for name, value in self.draws.items()}
        stats: dict[str, Any] = {name: value[:, thin - 1 :: thin] for name, value in self.stats.items()}
        return replace(self, draws=draws, ess=_diagnosed(model, draws, "ess"), **stats)

    @property
    def stats(self) -> dict[str, Tensor]:
        """What was recorded of every draw, by ArviZ's names, each (chain, draw)."""
        names = ("lp", "energy", "tree_depth", "step_size", "acceptance_rate", "diverging")
        return {name: value for name in names if (value := getattr(self, name)).shape == self.diverging.shape}


class _Recorded(NUTS):
    """Pyro's kernel, which keeps of each transition what it computes on the way and forgets."""

    potential: float | None = None  # of the point where the chain is

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        self._points: list[tuple[Tensor, float, float, float]] = []
        if self.potential is None:
            self.potential = self.potential_fn(params).item()
        drawn: dict[str, Tensor] = super().sample(params)
        self.energy = self._start
        self.acceptance_rate = sum(probability for *_, probability in self._points) / len(self._points)
        # Of n doublings all but the last are whole, and the last has at least one point.
        self.tree_depth = len(self._points).bit_length()
        for value, energy, potential, _ in self._points:
            if value is next(iter(drawn.values())):  # the draw is a point of its trajectory, or where that starts
                self.energy, self.potential = energy, potential
        return drawn

    def _build_basetree(
        self,
        z: dict[str, Tensor],
        r: object,
        z_grads: object,
        log_slice: Tensor,
        direction: int,
        energy_current: Tensor,
    ) -> Any:
        """One more point of the trajectory."""
        point = super()._build_basetree(z, r, z_grads, log_slice, direction, energy_current)
        self._start = energy_current.item()
        value = next(iter(point.z_proposal.values()))
        energy, probability = -point.weight - log_slice, point.sum_accept_probs
        self._points.append((value, energy.item(), point.z_proposal_pe.item(), probability.item()))
        return point


def identified(model: TVAE, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Latents with u replaced by u²: x says nothing of u's sign, so the posterior of u has two mirrored modes."""
    if not isinstance(model.prior, GaussianEnergy):
        return dict(latents)
    return {"u_squared" if name == "u" else name: v.square() if name == "u" else v for name, v in latents.items()}


@judges
def nuts(
    model: TVAE | Callable[..., object],
    x: Tensor,
    *,
    init: Guide | Callable[..., object],
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    num_samples: int = 500,
    warmup_steps: int = 500,
    num_chains: int = 2,
    max_tree_depth: int = 8,
    seed: int | None = 0,
    progress: bool = False,
) -> NUTSResult:
    """Draw from the posterior of the latents by NUTS, the model's parameters fixed.

    `Hoffman & Gelman 2014, The No-U-Turn sampler <https://arxiv.org/abs/1111.4246>`__. The first chain starts at the
    guide's mean, every other at a draw from the guide: R-hat can only notice what different starts allow. All sequences
    share one chain and its step size, so keep them few and alike. R-hat and ESS are of z and u² (or e), see
    :func:`identified`. The program itself is run, so that every sample statement counts: factors, further sites and
    random weights, whose draws belong to all sequences at once.

    Args:
        model: the generative program, a handler around it included.
        x: (B, S, channel, height, width).
        init: where the chains start: a guide, or any Pyro program of x with the model's sites.
        observed: (S,) or (B, S) booleans: the posterior given these frames alone. None means all.
        covariates: what the programs take beside x by name, (B, …), such as labels; with ``measured``, (B, S, channel
            or 1, height, width) booleans, the posterior given these pixels alone.
        num_samples: draws per chain.
        warmup_steps: adaptation steps per chain, thrown away.
        num_chains: chains, run one after the other.
        max_tree_depth: at most 2 to this power gradients per draw.
        seed: of all draws; None uses torch's global generator.
        progress: show a progress bar.

    Returns:
        :class:`NUTSResult`, on the CPU.

    Raises:
        ValueError: numbers below one, x that does not fit the model, or a start without one of its sites.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 2, 2), 3, 1, 3, pyro_tvae.CapsuleRoll(3), mu=1.0)
        >>> guide = pyro_tvae.MeanFieldGuide(model)
        >>> result = nuts(model, torch.rand(2, 3, 1, 2, 2), init=guide, num_samples=5, warmup_steps=5, num_chains=1)
        >>> result.draws["z"].shape
        torch.Size([1, 5, 2, 3, 1, 3])
    """
    refuse_inference_mode("nuts")
    diagnose("ess", torch.eye(4))  # what fails in it would lose the draws
    tvae = tvae_of(model)
    check_judged(tvae, init, x, observed, covariates)
    numbers = {"num_samples": num_samples, "warmup_steps": warmup_steps, "num_chains": num_chains}
    check_whole("nuts", **numbers, max_tree_depth=max_tree_depth)
    runs, diverging = [], torch.zeros(num_chains, num_samples, dtype=torch.bool)
    recorded = torch.zeros(num_chains, num_samples, len(RECORDED), dtype=torch.float64)
    bar = progress_bar(num_chains * (num_samples + warmup_steps), "NUTS", shown=progress, leave=False)
    # Gradients are what NUTS moves by, whatever the caller has switched off.
    with seeded(seed), torch.enable_grad(), untouched_store(), bar:
        for chain, start in enumerate(_starts(model, init, x, observed, covariates, num_chains)):
            divergences: list[int] = []

            def watch(
                kernel: _Recorded,
                _: object,
                stage: str,
                draw: int,
                row: Tensor = recorded[chain],
                divergences: list[int] = divergences,
            ) -> None:
                bar.update()
                if stage.startswith("Sample"):
                    divergences[:] = kernel.diagnostics()["divergences"]
                    row[draw] = row.new_tensor([getattr(kernel, name) for name in RECORDED])

            # The bare forward, where that is all of it: nothing of the model is trained.
            kernel = _Recorded(
                call(model, x, observed, covariates),
                init_strategy=partial(init_to_value, values=start),
                max_plate_nesting=1,
                max_tree_depth=max_tree_depth,
            )
            mcmc = MCMC(kernel, num_samples=num_samples, warmup_steps=warmup_steps, disable_progbar=True, hook_fn=watch)
            mcmc.run()
            sampled = mcmc.get_samples()
            recorded[chain, :, 0] = _jacobian(kernel, sampled) - recorded[chain, :, 0]
            runs.append({name: value.detach().cpu() for name, value in sampled.items()})
            diverging[chain, divergences] = True
    draws = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    lp, energy, depth, step_size, acceptance_rate = recorded.unbind(-1)
    return NUTSResult(
        draws,
        rhat=_diagnosed(tvae, draws, "rhat"),
        ess=_diagnosed(tvae, draws, "ess"),
        diverging=diverging,
        lp=lp,
        energy=energy,
        tree_depth=depth.long(),
        step_size=step_size,
        acceptance_rate=acceptance_rate,
        given=_given(model, x, observed, covariates),
        seed=seed,
    )


def _diagnosed(model: TVAE, draws: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """R-hat or ESS of what the draws identify."""
    return {name: diagnose(kind, value) for name, value in identified(model, draws).items()}


@torch.no_grad()
def _jacobian(kernel: NUTS, sampled: Mapping[str, Tensor]) -> Tensor:
    """Log-determinants of what makes the draws unconstrained, (draw,), which a potential energy holds."""
    total = torch.zeros((), dtype=torch.float64)
    for name, transform in kernel.transforms.items():
        value = sampled[name]
        terms = transform.log_abs_det_jacobian(value, transform(value)).cpu().double()
        total = total + terms.reshape(len(value), -1).sum(1)  # a random scalar has no further dimension
    return total


@torch.no_grad()
def _starts(
    model: Any,
    init: Any,
    x: Tensor,
    observed: Tensor | None,
    covariates: Mapping[str, Tensor] | None,
    num_chains: int,
) -> list[dict[str, Tensor]]:
    """The guide's mean, and draws from it, one value for every site of the model."""
    posterior = posterior_of(init, x, observed, covariates)
    starts = [{name: of_site.mean for name, of_site in moments(posterior).items()}]
    starts += [draw(posterior) for _ in range(num_chains - 1)]
    # Discrete sites are summed out by Pyro, and have no start.
    shapes = {
        name: tuple(site["value"].shape)
        for name, site in scored(prior_trace(model, x, covariates))
        if not site["is_observed"] and not site["fn"].has_enumerate_support
    }
    fitted = [_fitted(start, shapes) for start in starts]
    program = call(model, x, observed, covariates)
    for number, start in enumerate(fitted, start=1):  # of all chains, since one that cannot start ends those before it
        with torch.random.fork_rng():
            score = poutine.trace(poutine.condition(program, data=start)).get_trace().log_prob_sum()
        if not bool(torch.as_tensor(score).isfinite()):
            where = "the mean of" if number == 1 else "a draw from"
            raise ValueError(
                f"nuts: chain {number} would start at {where} the guide 'init', where log p(x, latents) is "
                f"{float(score)}; train the guide, or give another one, fewer chains or another seed."
            )
    return fitted


def _fitted(start: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A start in the shapes that the model draws: a guide's mean of a shared site has a leading 1."""
    for name in {*start} ^ {*shapes}:
        has, lacks = ("model", "guide") if name in shapes else ("guide", "model")
        raise ValueError(
            f"nuts: the {has} has a latent site {name!r} that the {lacks} 'init' lacks; expected a start for every "
            "latent: build the guide for this model, or put guides side by side in a pyro_tvae.GuideList."
        )
    for name, shape in shapes.items():
        if start[name].numel() != math.prod(shape):
            raise ValueError(
                f"nuts: the guide 'init' gives site {name!r} the shape {tuple(start[name].shape)}; expected {shape}: "
                "build the guide for this model and these sequences."
            )
    return {name: start[name].reshape(shape) for name, shape in shapes.items()}


def check_drawn(
    result: NUTSResult,
    model: Any,
    x: Tensor,
    observed: Tensor | None,
    covariates: Mapping[str, Tensor] | None,
    shared: Collection[str],
    what: str,
) -> None:
    """Raise ValueError where a result is of other sequences than these, other frames of them, or another model."""
    of_sequences = (value.shape[2] for name, value in result.draws.items() if name not in shared)
    drawn = next((n for n in of_sequences if n != len(x)), None)
    if drawn is not None:
        raise ValueError(f"{what}: the draws are of {drawn} sequences, x has {len(x)}; expected the same sequences.")
    if result.given is not None and not alike(result.given, _given(model, x, observed, covariates)):
        raise ValueError(
            f"{what}: the draws are of other sequences than x, of other frames or covariates of them, or of another "
            "model; expected the model, x, 'observed' and 'covariates' that nuts was given."
        )


def _given(
    model: Any, x: Tensor, observed: Tensor | None, covariates: Mapping[str, Tensor] | None, guide: Any = None
) -> Fingerprint:
    """The fingerprint of the frames that are scored, of which they are, of covariates, and of the model.

    Of a model in a handler also how much each site counts, and what it is told; with a guide of its weights too.
    """
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if observed is not None:
        mask = mask & frame_mask(observed, *mask.shape).to(x.device)
    seen = torch.where(mask[..., None, None, None], x.double(), 0.0)
    beside = [torch.as_tensor(value) for _, value in sorted((covariates or {}).items())]
    tvae = tvae_of(model)
    with suppress(TypeError):  # of parts that no file can describe
        beside.append(torch.frombuffer(bytearray(json.dumps(describe(tvae)).encode()), dtype=torch.uint8))
    if model is not tvae:
        sites = [site for _, site in scored(prior_trace(model, x, covariates))]
        beside += [torch.as_tensor(site["scale"]).double() for site in sites]
        beside.append(torch.tensor([site["mask"] is not None for site in sites]))
        told = [site for site in sites if site["is_observed"] and site["name"] != "x"]  # as by poutine.condition
        beside += [torch.as_tensor(site["value"]).double() for site in told]
    weights = [*tvae.parameters(), *(guide.parameters() if isinstance(guide, nn.Module) else ())]
    return fingerprint([seen, mask, *beside, *(weight.double() for weight in weights)])


@dataclass(frozen=True)
class GuideQuality:
    """How far a guide is from NUTS draws of the same posterior.

    Attributes:
        mean_difference: identified latent -> (B, *site): (guide's mean − posterior's mean) / posterior's standard
            deviation; 0 is exact.
        variance_ratio: identified latent -> (B, *site): guide's variance / posterior's; below 1 it is overconfident.
        pareto_k: (B,), of the guide's importance weights; below 0.7 they can be trusted.
        given: what tells the sequences, the model and the guide from others; None, of one's own making, fits all.
    """

    mean_difference: dict[str, Tensor]
    variance_ratio: dict[str, Tensor]
    pareto_k: Tensor
    given: Fingerprint | None = None


def check_quality(
    quality: GuideQuality,
    model: Any,
    guide: Any,
    x: Tensor,
    observed: Tensor | None,
    covariates: Mapping[str, Tensor] | None,
    what: str,
) -> None:
    """Raise ValueError where a quality is that of another guide or model, or on other sequences."""
    if quality.given is not None and not alike(quality.given, _given(model, x, observed, covariates, guide)):
        raise ValueError(
            f"{what}: 'quality' is of other sequences than x, of another model or of another guide; expected what "
            "guide_quality says of these."
        )


@judges
def guide_quality(
    model: TVAE | Callable[..., object],
    guide: Guide | Callable[..., object],
    x: Tensor,
    result: NUTSResult,
    *,
    observed: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    num_particles: int = 1000,
    seed: int | None = 0,
) -> GuideQuality:
    """Compare a guide with what :func:`nuts` drew for the same x, latent by latent; u as u².

    Args:
        model: the generative program.
        guide: its posterior.
        x: (B, S, channel, height, width), as given to :func:`nuts`.
        result: what it returned; look at its R-hat first.
        observed, covariates: as given to it.
        num_particles: draws from the guide.
        seed: of these draws.

    Raises:
        ValueError: the result is of other sequences.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 2, 2), 3, 1, 3, pyro_tvae.CapsuleRoll(3), mu=1.0)
        >>> guide, x = pyro_tvae.MeanFieldGuide(model), torch.rand(2, 3, 1, 2, 2)
        >>> result = nuts(model, x, init=guide, num_samples=5, warmup_steps=5, num_chains=1)
        >>> guide_quality(model, guide, x, result).variance_ratio["u_squared"].shape
        torch.Size([2, 3, 1, 3])
    """
    tvae = tvae_of(model)
    check_judged(tvae, guide, x, observed, covariates)
    shared = shared_sites(model, x, covariates)
    check_drawn(result, model, x, observed, covariates, shared, "guide_quality")
    with seeded(seed):
        posterior = posterior_of(guide, x, observed, covariates)

        def make(_: int, size: int) -> tuple[dict[str, Tensor], Tensor]:
            return weighted_particles(model, posterior, x, size, covariates, observed)

        chunks, weights = zip(*in_chunks(num_particles, chunk_of(x), make), strict=True)
    log_w = torch.cat(weights)
    values = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    values = {name: value.squeeze(1) if name in shared else value for name, value in values.items()}
    proposed = {name: value.cpu().double() for name, value in identified(tvae, values).items()}
    difference, ratio = {}, {}
    for name, draws in identified(tvae, result.draws).items():
        exact = draws.flatten(0, 1).double()
        difference[name] = (proposed[name].mean(0) - exact.mean(0)) / exact.std(0)
        ratio[name] = proposed[name].var(0) / exact.var(0)
    given = _given(model, x, observed, covariates, guide)
    return GuideQuality(difference, ratio, summarize(log_w, tvae.n_frames).pareto_k, given)
