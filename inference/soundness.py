"""Soundness: whether the pixels, terms and gradients of a training step are numbers that the weights may learn from.

Where a look costs nothing, as on a CPU, each step is looked at before it reaches the weights. On a device it would make
Python wait for every step: there the first unsound step is noted on the device, and read every so many steps, before
every validation and before every checkpoint. The weights are then put back to those of the last look, when all was
sound, so that nothing unsound is ever judged or written. Compiled steps on a CPU note it too, and are looked at each.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_tvae.likelihoods import SLACK, Likelihood

from .batches import Batch
from .checks import NonFiniteError

__all__ = ["NOTHING_SEEN", "Moment", "Soundness"]

NOTHING_SEEN = "no frame of batch {} was observed; leave such sequences out."
NAMES = ("reconstruction", "kl", "objective", "seen", "least", "most")


class Moment(NamedTuple):
    """Where a fit is."""

    step: int
    batch: int
    epoch: int

    def __str__(self) -> str:
        return f"step {self.step}, batch {self.batch} of epoch {self.epoch}"


class Soundness:
    """Looks at the steps of a fit.

    Args:
        module: whose weights, buffers and gradients they are.
        likelihood: of the pixels.
        objective: its name.
        deferred: note what is unsound on the device, for :meth:`settle`, instead of raising at once.
    """

    def __init__(self, module: nn.Module, likelihood: Likelihood, objective: str, *, deferred: bool = False) -> None:
        self.module, self.likelihood, self.objective, self.deferred = module, likelihood, objective, deferred
        self._interval: tuple[float, float] | None = None
        self._evidence = torch.empty(0)
        self._moments: list[Moment] = []  # since the last look
        self._notes: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}  # first unsound step or -1, and its evidence
        self._counts: dict[torch.device, Tensor] = {}
        self._kept: list[tuple[Tensor, Tensor]] = []

    def bounded(self, x: Tensor) -> bool:
        """Whether there are pixels that the likelihood cannot score."""
        if self._interval is None:
            self._interval = self.likelihood.interval(x)
        return not (math.isinf(self._interval[0]) and math.isinf(self._interval[1]))

    @property
    def _bounds(self) -> tuple[float, float]:
        return self._interval or (-math.inf, math.inf)

    def extremes(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The least and the largest pixel of the frames that were seen, (B, S) booleans."""
        if observed is None:
            least, most = x.aminmax()
            return least, most
        low, high = self._bounds
        pixels, blank = (-3, -2, -1), min(max(self.likelihood.blank, low), high)
        return torch.where(observed, x.amin(pixels), blank).min(), torch.where(observed, x.amax(pixels), blank).max()

    def inside(self, least: Tensor | float, most: Tensor | float) -> Any:
        """Whether pixels lie where the likelihood can score them."""
        low, high = self._bounds
        return (least >= low - SLACK) & (most <= high + SLACK)

    def check_pixels(self, parts: Batch, moment: Moment) -> None:
        """Raise ValueError where the likelihood cannot score the pixels of a batch."""
        try:
            self.likelihood.check(parts.x, parts.observed)
        except ValueError as error:
            raise ValueError(f"batch {moment.batch} of epoch {moment.epoch}: {error}") from None

    def of_terms(self, values: Tensor, seen: Tensor | None, parts: Batch, moment: Moment) -> None:
        """Look at the terms of a step.

        Args:
            values: reconstruction, KL and objective in nats per frame, (3,).
            seen: number of frames that were observed; None where all were.
            parts: the batch.
            moment: for what is said.

        Raises:
            NonFiniteError: the objective is not finite, and checks are not deferred.
            ValueError: no frame was seen, or pixels are out of place, likewise.
        """
        mask = None if seen is None else parts.observed
        if self.bounded(parts.x):
            least, most = self.extremes(parts.x, mask)
        else:
            least = most = values.new_zeros(())
        known = values.new_ones(()) if seen is None else seen.to(values)
        evidence = torch.cat([values, torch.stack([known, least.to(values), most.to(values)])])
        if self.deferred:
            self._evidence = evidence
            return
        error = self._complaint(dict(zip(NAMES, evidence.tolist(), strict=True)), moment)
        if isinstance(error, ValueError) and seen is None:
            self.check_pixels(parts, moment)
        if error is not None:
            raise error

    def of_gradients(self, moment: Moment) -> None:
        """Look at the gradients of a step, before the optimizer can spread them into the weights.

        Raises:
            NonFiniteError: one is not finite, and checks are not deferred.
        """
        gradients = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        # A bias sums up what the weight beside it multiplies, so that it tells of both, and costs nothing.
        telling = {
            name: gradient
            for name, gradient in gradients.items()
            if not name.endswith("weight") or f"{name.removesuffix('weight')}bias" not in gradients
        }
        if self.deferred:
            # The largest entry: a sum of squares would overflow before its terms do.
            self._note(tuple(telling), torch.stack(torch._foreach_norm([*telling.values()], math.inf)))
        elif not torch.nn.utils.get_total_norm([*telling.values()]).isfinite():
            # The sum of squares overflows before its terms do: only what holds such a number is at fault.
            faulty = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
            if faulty:
                raise NonFiniteError(_of_gradient(faulty, len(gradients), moment))

    def expect(self, moment: Moment) -> None:
        """Say which step comes next, where checks are deferred."""
        self._moments.append(moment)

    def settle(self, optimizer: Optimizer | None = None) -> Exception | None:
        """What was unsound since the last look, the weights then being put back to it; None where nothing was.

        Args:
            optimizer: whose state is put back too.
        """
        if not self._moments:
            return None
        moments, self._moments = self._moments, []
        error: Exception | None = None
        first = len(moments)
        for names, (note, evidence) in self._notes.items():
            step = int(note)
            if 0 <= step < first:
                first = step
                told = dict(zip((*NAMES, *names), evidence.tolist(), strict=True))
                faulty = [name for name in names if not math.isfinite(told[name])]
                error = self._complaint(told, moments[step]) or NonFiniteError(
                    _of_gradient(faulty, len(names), moments[step])
                )
            note.fill_(-1)
        for count in self._counts.values():
            count.zero_()
        if error is None or not self._kept:  # else the look comes before the weights have learned from the step
            if self._kept:
                self.keep(optimizer)
            return error
        self._put_back(optimizer)
        error.add_note(f"fit: looked at after {moments[-1]}; the weights are those before {moments[0]}.")
        return error

    @torch.no_grad()
    def keep(self, optimizer: Optimizer | None) -> None:
        """Remember weights, buffers and the optimizer's state as sound."""
        held = _tensors(self.module, optimizer)
        if [one.data_ptr() for one in held] == [one.data_ptr() for one, _ in self._kept]:
            for one, copy in self._kept:
                copy.copy_(one)
        else:
            self._kept = [(one, one.clone()) for one in held]

    @torch.no_grad()
    def _put_back(self, optimizer: Optimizer | None) -> None:
        kept = {id(one) for one, _ in self._kept}
        for one, copy in self._kept:
            one.copy_(copy)
        for one in _tensors(self.module, optimizer):
            if id(one) not in kept:  # of the optimizer, which had made its first step since
                one.zero_()

    @torch.no_grad()
    def _note(self, names: tuple[str, ...], norms: Tensor) -> None:
        """Note on the device a step's evidence, where it is the first that is unsound."""
        evidence = torch.cat([self._evidence, norms.to(self._evidence)])
        count = self._counts.get(evidence.device)
        if count is None:
            count = self._counts[evidence.device] = torch.zeros((), dtype=torch.long, device=evidence.device)
        if names not in self._notes:
            self._notes[names] = (torch.full_like(count, -1), torch.zeros_like(evidence))
        note, kept = self._notes[names]
        told = dict(zip(NAMES, self._evidence.unbind(), strict=True))
        sound = told["objective"].isfinite() & norms.isfinite().all() & (told["seen"] > 0)
        sound = sound & self.inside(told["least"], told["most"])
        new = ~sound & (note < 0)
        note.copy_(torch.where(new, count, note))
        kept.copy_(torch.where(new, evidence, kept))
        count.add_(1)

    def _complaint(self, told: dict[str, float], moment: Moment) -> Exception | None:
        if not told["seen"]:
            return ValueError(NOTHING_SEEN.format(moment.batch))
        least, most = told["least"], told["most"]
        if not self.inside(least, most) and (refusal := self.likelihood.refusal(least, most, self._bounds)):
            return ValueError(f"batch {moment.batch} of epoch {moment.epoch}: {refusal}")
        if math.isfinite(told["objective"]):
            return None
        term, remedy = self.objective, "its reconstruction and KL are: look at what it does to them"
        if not math.isfinite(told["reconstruction"]) or not math.isfinite(told["kl"]):
            whole = math.isfinite(told["reconstruction"])
            term = "the KL of the latents" if whole else "the log-probability of site 'x'"
            remedy = "lower the learning rate, raise eps, or look at the data of that batch"
        return NonFiniteError(f"{term} is not finite at {moment}; {remedy}.")


def _of_gradient(faulty: list[str], n_gradients: int, moment: Moment) -> str:
    return (
        f"the gradient of {faulty[0].removeprefix('objective.')} ({len(faulty)} of {n_gradients} parameters) is not "
        f"finite at {moment}; lower the learning rate, raise eps or look at the data of that batch; the weights are "
        "those before it."
    )


def _tensors(module: nn.Module, optimizer: Optimizer | None) -> list[Tensor]:
    """Weights, buffers and the optimizer's state."""
    states = () if optimizer is None else optimizer.state.values()
    of_optimizer = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return [*module.parameters(), *module.buffers(), *of_optimizer]
