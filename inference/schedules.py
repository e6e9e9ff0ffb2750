"""Learning rates over a whole fit: a rise over the first steps, then a cosine."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["WarmupCosineLR"]


class WarmupCosineLR(LRScheduler):
    """A learning rate that rises linearly over the first steps and falls to 0 along a cosine.

    ``lr(k) = lr · min(1, (k + 1) / w) · ½ (1 + cos(π k / T))``. Adam's first steps are as long as all others, whatever
    the gradients say; energies, which enter the bound by their exponentials, can be thrown so far then that they take
    thousands of steps to come back.

    Args:
        optimizer: whose rates are set.
        T_max: length T of the fit in steps.
        warmup_steps: w, shortened to a tenth of the fit where that is less.
        last_epoch: the step to go on from; −1 begins.

    Raises:
        ValueError: no steps, or a warm-up below 0.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = WarmupCosineLR(optimizer, 40, warmup_steps=2)
        >>> rates = []
        >>> for _ in range(3):
        ...     rates.append(round(schedule.get_last_lr()[0], 3))
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.5, 0.998, 0.994]
    """

    def __init__(self, optimizer: Optimizer, T_max: int, *, warmup_steps: int = 100, last_epoch: int = -1) -> None:
        if T_max < 1 or not (isinstance(warmup_steps, int | float) and warmup_steps >= 0):
            raise ValueError(
                f"WarmupCosineLR: T_max={T_max}, warmup_steps={warmup_steps!r}; expected at least one step, and a "
                "warm-up of at least 0."
            )
        self.T_max, self.warmup_steps = T_max, warmup_steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        return self._get_closed_form_lr()

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        step, rise = self.last_epoch, max(1.0, min(self.warmup_steps, self.T_max / 10))
        share = min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * min(step, self.T_max) / self.T_max))
        return [rate * share for rate in self.base_lrs]
