"""Densities: what a run of a guide and of its model says, term by term as Pyro counts it, for each sequence.

Every sample statement counts, with its scale and mask: the latents, x, factors, further observed sites, auxiliary sites
of the guide. What cannot be told for a sequence is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyro_tvae.guides.base import blanked
from pyro_tvae.posteriors import JOINT
from pyro_tvae.programs import SEQUENCE, auxiliary, call, is_plate, propose

__all__ = [
    "Densities",
    "both",
    "counts_plainly",
    "densities",
    "in_double",
    "in_plate",
    "log_prob",
    "matched_sites",
    "refuse_plates",
    "refuse_shared",
    "reparametrized",
    "replay",
    "run",
    "scored",
]

PARTICLES = "particles"
Site = Mapping[str, Any]


class Densities(NamedTuple):
    """Terms of the joint density over the plates: (B,), or (K, B) in a plate of particles; nats per sequence.

    Attributes:
        likelihood: what the model says of all that was observed, factors included.
        kl: ``log q − log p`` of the latents, or their divergence where it was asked for in closed form.
    """

    likelihood: Tensor
    kl: Tensor


def run(
    model: Any,
    guide: Any,
    x: Tensor,
    observed: Tensor | None = None,
    shown: Tensor | None = None,
    covariates: Mapping[str, Tensor] | None = None,
    subsample: Tensor | None = None,
) -> tuple[Trace, Trace]:
    """Traces of the guide and of the model replayed against it.

    Args:
        x: (B, S, channel, height, width).
        observed: frames that there are, (S,) or (B, S) booleans: the guide sees and the model scores no others.
        shown: frames that the guide sees, if fewer.
        covariates: what the programs take beside these, by name.
        subsample: frames that the model scores in place of all, see :class:`~pyro_tvae.TVAE`.
    """
    proposal = propose(call(guide, blanked(x, covariates), both(observed, shown), covariates), x)
    program: Any = call(model, x, observed, covariates)
    return proposal, replay(program if subsample is None else partial(program, subsample=subsample), proposal)


def both(observed: Tensor | None, shown: Tensor | None) -> Tensor | None:
    """Frames in both masks; None is all frames."""
    return shown if observed is None else observed if shown is None else observed & shown


def replay(program: Callable[[], object], proposal: Trace) -> Trace:
    """Trace of a program replayed against a guide's draws.

    Raises:
        ValueError: the guide observes a site that the program samples, so that nothing was drawn for it, or the program
            cannot take several particles of what all sequences share.
    """
    try:
        return poutine.trace(poutine.replay(program, trace=proposal)).get_trace()
    except RuntimeError as error:
        match = re.match(r"site (\S+) must be sampled in trace", str(error))
        if match is not None:
            raise ValueError(
                f"the guide observes or replaces site {match[1]!r}, which is a latent of the model; expected a draw of "
                "it: take the handler (condition, equalize, reparam) from the guide, or put the same one around the "
                "model."
            ) from error
        for name in _drawn(proposal):
            site = proposal.nodes[name]
            if not auxiliary(proposal, name) and not in_plate(site) and site["cond_indep_stack"]:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"the model cannot be run with several particles of site {name!r}, which all sequences share "
                    f"({reason}); expected random weights of the decoder or a random mu by PyroSample, which can, or "
                    "ELBO with one particle."
                ) from error
        raise


def densities(
    proposal: Trace,
    model: Trace,
    x: Tensor,
    *,
    closed_form: bool = False,
    n_sequences: int | None = None,
    weights: bool = False,
) -> Densities:
    """All terms of a pair of traces.

    Args:
        proposal: of the guide.
        model: of the model, replayed against it.
        x: the sequences, (B, S, channel, height, width).
        closed_form: take the KL of a latent in closed form where one is registered; right for mean-field guides.
        n_sequences: number among which a latent that all sequences share is divided: those of the data set, or of x.
        weights: terms of importance weights, each of which belongs to one sequence. What all share then counts whole,
            as for that sequence alone, and what belongs to all of them at once is refused.

    Raises:
        ValueError: sites that do not match, or a term that no sequence can be given.
    """
    terms = _terms(proposal, model, x, closed_form, n_sequences, weights)
    likelihood, kl = x.new_zeros(x.shape[-5]), x.new_zeros(())
    for name, term in terms.of_model.items():
        if name not in terms.latents:
            likelihood = likelihood + term
    for name in terms.latents:
        kl = kl + terms.exact[name] if name in terms.exact else kl + terms.of_guide[name] - terms.of_model[name]
    for name, term in terms.of_guide.items():
        if name not in terms.latents:
            kl = kl + term
    return Densities(
        likelihood, kl.to(likelihood)
    )  # under autocast it may come in half precision, to be weighed in full


def log_weight(proposal: Trace, model: Trace, x: Tensor) -> Tensor:
    """``log p − log q`` of a pair of traces in a plate of K particles, (K, B), summed in the order of the programs.

    Raises:
        ValueError: sites that do not match, or a term that no sequence can be given.
    """
    terms = _terms(proposal, model, x, weights=True)
    total = x.new_zeros(x.shape[-5])
    for term in terms.of_model.values():
        total = total + term
    for term in terms.of_guide.values():
        total = total - term
    return total


class _Terms(NamedTuple):
    """Site -> its term of every sequence, in the order of the programs; ``exact``: divergences in closed form."""

    latents: list[str]
    of_model: dict[str, Tensor]
    of_guide: dict[str, Tensor]
    exact: dict[str, Tensor]


def _terms(
    proposal: Trace,
    model: Trace,
    x: Tensor,
    closed_form: bool = False,
    n_sequences: int | None = None,
    weights: bool = False,
) -> _Terms:
    b = x.shape[-5]
    share = 1 if weights else n_sequences or b
    terms = _Terms(matched_sites(proposal, model), {}, {}, {})
    if weights and b > 1:
        _refuse_joint_latents(model, terms.latents)
    for name, site in scored(model):
        if name not in terms.latents:
            terms.of_model[name] = _of_sequence(log_prob(site), name, site, b, b, alone=weights)
        elif closed_form and (exact := _divergence(proposal.nodes[name], site)) is not None:
            terms.exact[name] = _of_sequence(exact, name, site, b, share)
        else:
            terms.of_model[name] = _of_sequence(log_prob(site), name, site, b, share)
    for name, site in scored(proposal):
        if name in terms.latents:
            if name not in terms.exact:
                terms.of_guide[name] = _of_sequence(log_prob(site), name, site, b, share)
        elif name not in terms.of_model:  # a messenger guide runs the model, so that it holds what that observes
            # Alone, what stands behind shared latents counts as they do; what stands behind those of sequences cannot.
            alone = weights and (site["is_observed"] or _draws_for_sequences(proposal, terms.latents))
            terms.of_guide[name] = _of_sequence(log_prob(site), name, site, b, share, alone=alone)
    return terms


def _refuse_joint_latents(model: Trace, latents: list[str]) -> None:
    """Raise where a shared latent holds those of all sequences, as in a model inside NeuTra's reparametrisation.

    It is told from random weights by the point masses in the plate that carry the densities of its transforms.
    """
    shared = next((name for name in latents if not in_plate(model.nodes[name])), None)
    for name, site in scored(model):
        distribution: Any = site["fn"]
        if (
            shared
            and site["is_observed"]
            and in_plate(site)
            and isinstance(distribution, Delta)
            and (distribution.log_density != 0).any()
        ):
            raise ValueError(
                f"site {shared!r} is outside the plate 'sequence', and the latent {name!r} of each sequence is made "
                "from it, so that its share of one sequence's weight cannot be told; take one sequence at a time, or "
                "judge by ELBO, which needs the sum alone."
            )


def in_plate(site: Site) -> bool:
    """Whether a site has one value per sequence, and not one for all."""
    return any(frame.dim == -1 for frame in site["cond_indep_stack"])


def _draws_for_sequences(proposal: Trace, latents: list[str]) -> bool:
    """Whether latents of sequences follow from auxiliary draws that are not known to be in their plate."""
    placed = {name for name, site in scored(proposal) if in_plate(site)}
    return any(
        name in placed
        and isinstance(proposal.nodes[name]["fn"], Delta)
        and not {JOINT, f"{name}_unconstrained"} & placed
        for name in latents
    )


def scored(trace: Trace) -> list[tuple[str, Site]]:
    """Sample sites but plates and deterministic ones, whose point mass adds nothing."""
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not is_plate(site) and not (site["infer"] or {}).get("_deterministic", False)
    ]


def log_prob(site: Site, precise: bool = False) -> Tensor:
    """A site's log-probability as Pyro counts it, scaled and masked; where asked for, summed in double precision."""
    if precise:
        log_p = in_double(site["fn"], site["value"], *site["args"], **site["kwargs"])
    else:
        log_p = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return log_p if counts_plainly(site) else scale_and_mask(log_p, site["scale"], site["mask"])


def in_double(distribution: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Log-probabilities summed over event dimensions, the first of them in double precision.

    A sequence's are tens of thousands of terms: in single precision their sum is known to hundredths of a nat. Those of
    one frame are added as they are, which costs neither time nor memory.
    """
    dims = 0
    while isinstance(distribution, Independent):
        dims += distribution.reinterpreted_batch_ndims
        distribution = distribution.base_dist
    log_p = distribution.log_prob(value, *args, **kwargs)
    if dims > 1:
        log_p = log_p.sum(tuple(range(1 - dims, 0)))
    return log_p.double().sum(-1) if dims else log_p.double()


def counts_plainly(site: Site) -> bool:
    """Whether a site is neither scaled nor masked."""
    return isinstance(site["scale"], float | int) and site["scale"] == 1 and site["mask"] is None


def _divergence(q: Site, p: Site) -> Tensor | None:
    """KL of a latent in closed form; None where none is registered, or where both sides count it differently."""
    if not (counts_plainly(q) and counts_plainly(p)) and not (q["scale"] is p["scale"] and q["mask"] is p["mask"]):
        return None
    try:
        return scale_and_mask(kl_divergence(q["fn"], p["fn"]), p["scale"], p["mask"])
    except NotImplementedError:
        return None


def _of_sequence(term: Tensor, name: str, site: Site, b: int, share: int, *, alone: bool = False) -> Tensor:
    """A site's term as (B,) or (K, B); what all sequences share as (1,) or (K, 1), divided among ``share``."""
    plates = {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized}
    rows = [frame for frame in plates.values() if frame.dim == -1]
    if (SEQUENCE in plates and plates[SEQUENCE].dim != -1) or any(frame.size != b for frame in rows):
        raise ValueError(
            f"site {name!r} is in a plate of {rows[0].size if rows else b} entries at dim={-1 if rows else 'other'}; "
            f"expected the {b} sequences at dim=-1, and frames, capsules and positions in event dimensions (to_event)."
        )
    further = [frame.dim for frame in plates.values() if frame.dim != -1 and frame.name != PARTICLES]
    if rows:
        if further:
            kept = tuple(dim for dim in further if -dim <= term.dim())
            term = term.sum(kept, keepdim=True) if kept else term
            term = term.reshape(term.shape[-2:] if PARTICLES in plates else term.shape[-1:])
        if term.dim() > (2 if PARTICLES in plates else 1) or (term.dim() and term.shape[-1] not in (1, b)):
            raise ValueError(
                f"site {name!r} has log-probabilities of shape {tuple(term.shape)}; expected (particles, sequences): "
                "keep frames in event dimensions (to_event) and sequences in a plate at dim=-1."
            )
        return term
    if alone and b > 1:
        raise ValueError(
            f"site {name!r} is outside the plate 'sequence', so that its share of one sequence's weight cannot be told "
            "(an autoguide that draws all latents at once has such a site); put it inside the plate, take one sequence "
            "at a time, or judge by ELBO, which needs the sum alone."
        )
    if PARTICLES in plates:
        return (term.movedim(-2, 0).flatten(1).sum(1) / share).unsqueeze(-1)
    return (term.sum() / share).unsqueeze(-1)


def refuse_plates(trace: Trace, n_sequences: int) -> None:
    """Raise where a guide has a plate beside those of particles and sequences."""
    for name in trace.stochastic_nodes:
        for frame in trace.nodes[name]["cond_indep_stack"]:
            if frame.name != PARTICLES and (frame.dim, frame.size) != (-1, n_sequences):
                raise ValueError(INNER_PLATE)


INNER_PLATE = (
    "the guide has a plate beside 'sequence'; expected frames, capsules and positions in event dimensions (to_event) "
    "and sequences in a plate at dim=-1, since a weight belongs to a whole sequence."
)


def refuse_shared(proposal: Trace, what: str) -> None:
    """Raise where the guide draws what all sequences share, such as random weights: a weight is then no sequence's."""
    for name, site in scored(proposal):
        if site["is_observed"] or in_plate(site):
            continue
        raise ValueError(
            f"{what}: site {name!r} is drawn once for all sequences, so that weights per sequence make no bound of the "
            "batch; train with ELBO."
        )


def reparametrized(proposal: Trace, model: Trace) -> None:
    """Raise where a latent's draw cannot be differentiated: no objective here has a score-function term."""
    observed = {name for name, site in scored(model) if site["is_observed"]}
    for name, site in scored(proposal):
        distribution: Any = site["fn"]
        if name not in observed and not distribution.has_rsample:
            family = type(getattr(distribution, "base_dist", distribution)).__name__
            raise ValueError(
                f"the guide draws site {name!r} from {family}, which is not reparametrised; expected a distribution "
                "with rsample, or train with pyro.infer.Trace_ELBO."
            )


def matched_sites(proposal: Trace, model: Trace) -> list[str]:
    """Latent sites of a model, which its guide has to draw; auxiliary sites of the guide alone are left out.

    Raises:
        ValueError: one has a site that the other lacks, so that their densities do not belong together.
    """
    of_guide, of_model = _drawn(proposal), _drawn(model)
    for name in sorted({*of_guide} ^ {*of_model}):
        if name in of_guide and auxiliary(proposal, name):
            continue
        has, lacks = ("guide", "model") if name in of_guide else ("model", "guide")
        raise ValueError(
            f"the {has} has a latent site {name!r} that the {lacks} lacks; expected the same sites in both: build the "
            "guide for this model."
        )
    return [name for name in of_guide if name in of_model]


def _drawn(trace: Trace) -> list[str]:
    return [name for name, site in scored(trace) if not site["is_observed"]]
