"""Signal to noise of the guide's gradients over K: IWAE against its doubly reparametrised form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.inference import IWAE, DReG, Objective, TrainerOptions, fit
from pyro_tvae.inference.progress import progress_bar

from ..datasets import SequenceDataModule, Transformations, digits
from ..reports.tables import plain_table
from .timing import isolated

__all__ = ["print_record", "run", "signal_to_noise"]

OBJECTIVES: dict[str, type[Objective]] = {"IWAE": IWAE, "DReG": DReG}
GROUPS = 10  # of repeats, left out one at a time for the standard error


def run(
    *,
    threads: int = 2,
    progress: bool = True,
    particles: Sequence[int] = (1, 4, 16, 64, 256, 1024),
    repeats: int = 200,
    epochs: int = 6,
) -> dict[str, Any]:
    """Gradients of one test sequence, many times over, on a small model fitted to scikit-learn's digits.

    Signal to noise is ``‖E g‖ / sqrt(E ‖g − E g‖²)`` over all parameters of the guide; the square of the mean's own
    noise is taken off the numerator, so that 0 means nothing but noise. IWAE's falls as 1/√K (Rainforth et al. 2018),
    DReG's grows as √K (Tucker et al. 2019), once K is large.

    Args:
        threads: of torch.
        progress: show progress bars.
        particles: the K.
        repeats: gradients per K and objective.
        epochs: passes over the data before anything is measured.

    Returns:
        A mapping ready for JSON: ``particles``, and ``signal_to_noise`` with a list of [value, standard error] for
        each objective.
    """
    with isolated(threads):
        data = SequenceDataModule(digits(size=14), Transformations(rotation=True), n_frames=6, n_test=1, seed=0)
        model = TVAE(data.frame_shape, 6, 4, 6, CapsuleRoll(5, 1), mu=5.0)
        guide = MeanFieldGuide(model)
        on_cpu = TrainerOptions(accelerator="cpu")
        fit(model, guide, data, max_epochs=epochs, warmup_steps=300, progress=progress, trainer=on_cpu)
        x = next(data.batches("test", torch.device("cpu")))["x"][:1]
        total = len(OBJECTIVES) * repeats * len(particles)
        ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in OBJECTIVES}
        with progress_bar(total, "gradients", shown=progress) as bar:
            for k in particles:
                for name, objective in OBJECTIVES.items():
                    ratios[name].append(signal_to_noise(_gradients(objective(model, guide, k), x, repeats, bar)))
    return {
        "particles": list(particles),
        "repeats": repeats,
        "signal_to_noise": ratios,
        "setting": f"digits of 14 x 14, 6 frames, 4 capsules of 6, {epochs} epochs, one test sequence, seed 0",
    }


def _gradients(objective: Objective, x: Tensor, repeats: int, bar: tqdm) -> Tensor:
    """Gradients of the guide's parameters: (repeats, parameters)."""
    parameters = list(objective.guide.parameters())
    rows = []
    for _ in range(repeats):
        gradient = torch.autograd.grad(objective(x).objective.sum(), parameters)
        rows.append(torch.cat([part.flatten() for part in gradient]))
        bar.update()
    return torch.stack(rows)


def signal_to_noise(gradients: Tensor) -> tuple[float, float]:
    """``‖E g‖ / sqrt(E ‖g − E g‖²)`` of gradients (R, P) and its jackknife standard error; at least 20 of them.

    Example:
        >>> value, error = signal_to_noise(3.0 + torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)))
        >>> abs(value - 3.0) < 4 * error < 0.3
        True
    """
    gradients = gradients.double()
    groups = torch.arange(len(gradients), device=gradients.device) % GROUPS
    without = torch.stack([_ratio(gradients[groups != group]) for group in range(GROUPS)])
    error = ((GROUPS - 1) * without.var(correction=0)).sqrt()
    return float(_ratio(gradients)), float(error)


def _ratio(gradients: Tensor) -> Tensor:
    noise = gradients.var(0).sum()
    signal = (gradients.mean(0).square().sum() - noise / len(gradients)).clamp(min=0)
    return (signal / noise).sqrt()


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    ratios = record["signal_to_noise"]
    table = plain_table("signal to noise of the guide's gradient: K", *ratios, "DReG / IWAE", gap=3)
    for k, *entries in zip(record["particles"], *ratios.values(), strict=True):
        (iwae, _), (dreg, _) = entries
        ratio = f"{dreg / iwae:.1f}" if iwae > 0 else "–"
        table.add_row(f"{k:,}", *(f"{value:.3f} ± {error:.3f}" for value, error in entries), ratio)
    console.print(table)
    console.print(f"Higher is better; {record['repeats']} gradients each; {record['setting']}.")
