"""Speed as ratios from one run: the step against its bare matrix products, making a batch, importance weights.

Seconds belong to a machine and an hour. What is compared here is measured in turns, within seconds of each other, so
that a machine that slows down slows both sides.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.inference.likelihood import log_weights
from pyro_tvae.inference.training import Optimizers

from ..datasets.transformations import Transformations
from ..reports.tables import plain_table, yes_or_no
from .timing import ONE_CPU, StepTimer, between, in_turns, measuring, seconds_of, spread

__all__ = [
    "PAPER",
    "TARGETS",
    "Setting",
    "linears",
    "make_batches",
    "print_record",
    "run",
    "step_products",
    "summary",
    "weight_products",
]

TARGETS: dict[str, float | None] = {"step": 1.3, "step_sgd": 1.3, "step_bfloat16": None, "batch": 0.05, "iwae": 1.3}
WHAT = {
    "step": "training step with the default Adam, Pyro and Lightning included, against its bare matrix products",
    "step_sgd": "the same with the paper's SGD with momentum",
    "step_bfloat16": "the default's with products in bfloat16 (fit.matmul_precision=medium), against those in float32",
    "batch": "making the step's batch (draw and render), against the step",
    "iwae": "importance weights of a batch, against the decoder's bare matrix products",
}
REMARK = "Ratios are medians over turns within one run; seconds are those of this machine at this hour."

WARM_UP_STEPS = 20
STEPS = 10  # of a turn: as many as fit averages into one reported value
MIN_REPEATS = 3
ROWS = 2048  # frames in one product of the decoder: large enough for full speed, small enough to stay in the cache


@dataclass(frozen=True)
class Setting:
    """The sizes that are timed; the defaults are the paper's MNIST configuration."""

    n_sequences: int = 8
    n_frames: int = 18
    image_size: int = 28
    n_capsules: int = 18
    capsule_dim: int = 18
    kernel: int = 13
    width: int = 1
    num_particles: int = 100

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Colour frames, since hue is one of the three factors."""
        return (3, self.image_size, self.image_size)

    def build(self) -> tuple[TVAE, MeanFieldGuide]:
        """The model and its guide, untrained."""
        topography = CapsuleRoll(self.kernel, self.width)
        model = TVAE(self.frame_shape, self.n_frames, self.n_capsules, self.capsule_dim, topography)
        return model, MeanFieldGuide(model)


PAPER = Setting()


@dataclass
class Products:
    """Matrix products ``a @ b`` into memory allocated beforehand: calling it multiplies and does nothing else."""

    operands: Sequence[tuple[Tensor, Tensor, Tensor]]

    def __call__(self) -> None:
        for a, b, out in self.operands:
            torch.mm(a, b, out=out)


def step_products(model: TVAE, guide: MeanFieldGuide, n_sequences: int) -> Products:
    """What forward and backward of one step have to multiply: every linear layer, and W's energies.

    A layer ``y = x Wᵀ`` costs ``x Wᵀ`` forward, ``gᵀ x`` for its weights and ``g W`` for its input. Layers that read
    pixels need no gradient of their input.
    """
    rows = n_sequences * model.n_frames
    forward: list[tuple[Tensor, Tensor, Tensor]] = []
    backward: list[tuple[Tensor, Tensor, Tensor]] = []
    networks = [(guide.z_encoder, True), (guide.u_encoder, True), (model.decoder, False)]
    for network, reads_pixels in networks:
        for position, layer in enumerate(linears(network)):
            n_out, n_in = layer.weight.shape
            x, g, weight = torch.randn(rows, n_in), torch.randn(rows, n_out), torch.randn(n_out, n_in)
            forward.append((x, weight.t(), torch.empty(rows, n_out)))
            backward.append((g.t(), x, torch.empty(n_out, n_in)))
            if position > 0 or not reads_pixels:
                backward.append((g, weight, torch.empty(rows, n_in)))
    n = model.n_frames * model.capsule_dim
    energies, w = torch.rand(n_sequences * model.n_capsules, n), torch.rand(n, n)
    forward.append((energies, w.t(), torch.empty_like(energies)))
    backward.append((energies, w, torch.empty_like(energies)))
    return Products(forward + backward[::-1])


def weight_products(model: TVAE, n_sequences: int, num_particles: int) -> Products:
    """What the decoder multiplies for ``num_particles`` draws of every frame of a batch, ``ROWS`` frames at a time."""
    frames = num_particles * n_sequences * model.n_frames
    most = min(ROWS, frames)
    layers = []
    for layer in linears(model.decoder):
        n_out, n_in = layer.weight.shape
        layers.append((torch.randn(most, n_in), torch.randn(n_out, n_in).t(), torch.empty(most, n_out)))
    passes = [min(most, frames - start) for start in range(0, frames, most)]
    return Products([(x[:rows], weight, out[:rows]) for rows in passes for x, weight, out in layers])


def run(*, threads: int = 2, seconds: float = 60.0, progress: bool = True, setting: Setting = PAPER) -> dict[str, Any]:
    """Measure in turns for about ``seconds``.

    Args:
        threads: of torch, for both sides of every ratio; put back afterwards.
        seconds: time to spend; every ratio is measured three times at least, so a very short time is exceeded.
        progress: show a progress bar with the time that is left.
        setting: the sizes; the paper's MNIST configuration by default.

    Returns:
        A mapping ready for JSON: ``measures`` (``step``, ``step_sgd``, ``batch`` and ``iwae``, each with ``ratio``,
        ``low``, ``high``, ``target``, ``met``, ``repeats`` and the ``seconds`` of both sides) and ``setting``.

    Raises:
        ValueError: no threads, or no time.
    """
    start = time.perf_counter()
    published = functools.partial(torch.optim.SGD, lr=1e-4, momentum=0.9, fused=True)  # the paper's optimizer
    with measuring(threads, seconds, progress) as report:
        model, guide = setting.build()
        n_parameters = sum(p.numel() for module in (model, guide) for p in module.parameters())
        measures: dict[str, Any] = {}
        for name, optimizer, precision, share in (
            ("step", None, "highest", 0.35),
            ("step_sgd", published, "highest", 0.55),
            ("step_bfloat16", None, "medium", 0.75),
        ):
            turns = _time_steps(model, guide, setting, optimizer, precision, start + share * seconds, report)
            measures[name] = summary(name, turns["step"], turns["products"])
            if name == "step":
                measures["batch"] = summary("batch", turns["batch"], turns["step"])
        x = make_batches(setting)()
        log_weights(model, guide, x, 1)  # the first calls allocate and plan
        turns_of_weights = in_turns(
            lambda: log_weights(model, guide, x, setting.num_particles),
            weight_products(model, setting.n_sequences, setting.num_particles),
            lambda count: count >= MIN_REPEATS and time.perf_counter() >= start + seconds,
            lambda weights, products: report("IWAE", weights / products),
        )
        measures["iwae"] = summary("iwae", *turns_of_weights)
    return {
        "measures": measures,
        "remark": REMARK,
        "setting": asdict(setting),
        "n_parameters": n_parameters,
        "seconds": time.perf_counter() - start,
    }


def summary(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """One measure from the seconds of its turns.

    Where ``below`` has one turn more than ``above``, the turns alternate: see :func:`.ratios`.

    Example:
        >>> summary("step", [3.0, 3.0], [1.0, 2.0, 4.0])["ratio"]
        1.5
    """
    if len(below) == len(above) + 1:
        below = between(below)
    ratios, target = spread([a / b for a, b in zip(above, below, strict=True)]), TARGETS[name]
    return {
        "what": WHAT[name],
        **ratios,
        "target": target,
        "met": None if target is None else ratios["ratio"] <= target,
        "seconds": statistics.median(above),
        "against_seconds": statistics.median(below),
    }


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table: what, measured, target, met or not."""
    headings = ("measured", "lowest to highest", "target", "met", "seconds here")
    table = plain_table("what", *headings, gap=1, wraps=True)
    for name, measure in record["measures"].items():
        show, target = functools.partial(_shown, name), measure["target"]
        table.add_row(
            Text(measure["what"]),
            Text(show(measure["ratio"]), "bold"),
            f"{show(measure['low'])} to {show(measure['high'])}",
            "–" if target is None else f"≤ {show(target)}",
            yes_or_no(measure["met"]),
            Text(f"{measure['seconds']:.3g} / {measure['against_seconds']:.3g}", "dim"),
        )
    size = record["setting"]
    console.print(table)
    console.print(
        Text(
            f"\n{size['n_sequences']} sequences of {size['n_frames']} colour frames of {size['image_size']} x "
            f"{size['image_size']}, {size['n_capsules']} capsules of {size['capsule_dim']}, "
            f"{record['n_parameters'] / 1e6:.1f} million parameters, K = {size['num_particles']}. {record['remark']}"
        )
    )


def _time_steps(
    model: TVAE,
    guide: MeanFieldGuide,
    setting: Setting,
    optimizer: Optimizers | None,
    precision: str,
    deadline: float,
    show: Callable[[str, float], None],
) -> dict[str, list[float]]:
    """Seconds of a step, of its products in float32 and of making its batch, in turns."""
    make = make_batches(setting)
    products = step_products(model, guide, setting.n_sequences)
    seconds_of(make, 3), seconds_of(products, 3)  # the first calls allocate and plan
    batches: list[float] = []

    def report(step: float, product: float) -> None:
        batches.append(seconds_of(make, STEPS))
        show("step", step / product)

    def in_float32() -> None:
        torch.set_float32_matmul_precision("highest")
        products()
        torch.set_float32_matmul_precision(precision)

    turns = StepTimer(
        in_float32,
        steps=STEPS,
        warm_up=WARM_UP_STEPS,
        enough=lambda count: count >= MIN_REPEATS and time.perf_counter() > deadline,
        report=report,
    )
    # The same few batches over and over, so that nothing but the step is timed; the clock stops the run.
    few = [make() for _ in range(4)]
    loader = DataLoader(TensorDataset(torch.stack(few)), batch_size=None, sampler=[*range(len(few))] * 250_000)
    turns.during(model, guide, loader, ONE_CPU, optimizer, precision)
    return {"step": turns.steps, "batch": batches, "products": turns.others}


def make_batches(setting: Setting) -> Callable[[], Tensor]:
    """Draws and renders one batch, one of three factors moving, from blots about as large and as grey as digits."""
    size, center = setting.image_size, (setting.image_size - 1) / 2
    distance = torch.arange(size).sub(center).square()
    near = (distance[:, None] + distance).sqrt() < size / 4
    images = (torch.randint(256, (setting.n_sequences, 1, size, size)) * near).to(torch.uint8)
    transformations = Transformations(rotation=True, hue=True, scale=True)
    return lambda: transformations.render(images, transformations.draw(len(images), setting.n_frames).index)


def linears(network: nn.Module | None) -> list[nn.Linear]:
    """The linear layers of a network, in order."""
    return [] if network is None else [module for module in network.modules() if isinstance(module, nn.Linear)]


def _shown(name: str, ratio: float) -> str:
    return f"{100 * ratio:.1f} %" if name == "batch" else f"{ratio:.2f} x"
