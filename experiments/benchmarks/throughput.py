"""Throughput: training sequences and importance-weighted particles per second, against the rates of bare products."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from pyro_tvae.inference import log_likelihood

from ..datasets import SequenceDataModule, Transformations, digits
from ..reports.tables import plain_table
from .speed import PAPER, Setting, step_products, weight_products
from .timing import ONE_CPU, StepTimer, in_turns, measuring, ratios, spread

__all__ = ["measure", "print_record", "rates_in_words", "run", "turning_digits"]

STEPS, WARM_UP_STEPS = 10, 20
MIN_REPEATS = 3
WHAT = {
    "sequences": "training sequences: draw, render, step",
    "particles": "particles of log_likelihood",
}


def run(*, threads: int = 2, progress: bool = True, seconds: float = 40.0, setting: Setting = PAPER) -> dict[str, Any]:
    """Measure both rates in turns with bare matrix products for about ``seconds``.

    Training sequences come from ``fit`` with a data module: scikit-learn's digits, one of three factors moving, drawn
    and rendered afresh for every step. What they are compared with multiplies the step's matrices and does nothing
    else; for particles, the decoder's.

    Args:
        threads: of torch, for both sides; put back afterwards.
        progress: show a progress bar with the time that is left.
        seconds: time to spend; every rate is measured three times at least, so a very short time is exceeded.
        setting: the sizes; the paper's MNIST configuration by default.

    Returns:
        A mapping ready for JSON: ``measures`` (``sequences`` and ``particles``, each with the ``rate`` per second, the
        ``bare_rate`` of the products, and ``ratio``, ``low``, ``high`` of the two: higher is better, 1 would be nothing
        but products) and ``setting``.

    Raises:
        ValueError: no threads, or no time.
    """
    n, k = setting.n_sequences, setting.num_particles
    start = time.perf_counter()
    with measuring(threads, seconds, progress) as report:
        model, guide = setting.build()
        turns = StepTimer(
            step_products(model, guide, n),
            steps=STEPS,
            warm_up=WARM_UP_STEPS,
            enough=lambda count: count >= MIN_REPEATS and time.perf_counter() > start + 0.6 * seconds,
            report=lambda step, products: report("sequences", products / step),
        )
        turns.during(model, guide, turning_digits(setting), ONE_CPU)
        x = next(turning_digits(setting).batches("train", batch_size=n))["x"]
        products = weight_products(model, n, k)
        log_likelihood(model, guide, x, 1, batch_size=n)  # the first calls allocate and plan
        weights, bare = in_turns(
            lambda: log_likelihood(model, guide, x, k, batch_size=n),
            products,
            lambda count: count >= MIN_REPEATS and time.perf_counter() >= start + seconds,
            lambda weighing, product: report("particles", product / weighing),
        )
    return {
        "measures": {
            "sequences": measure("sequences", n, turns.steps, turns.others),
            "particles": measure("particles", n * k, weights, bare),
        },
        "setting": asdict(setting),
        "seconds": time.perf_counter() - start,
    }


def turning_digits(setting: Setting, n_train: int | None = None) -> SequenceDataModule:
    """scikit-learn's digits at the sizes of the setting, one of rotation, hue and scale moving."""
    return SequenceDataModule(
        digits(size=setting.image_size),
        Transformations(rotation=True, hue=True, scale=True),
        n_frames=setting.n_frames,
        batch_size=setting.n_sequences,
        n_train=n_train,
        n_validation=setting.n_sequences,
        n_test=1,
        seed=0,
    )


def measure(name: str, count: int, seconds: Sequence[float], bare: Sequence[float]) -> dict[str, Any]:
    """One rate beside that of the bare products.

    Args:
        name: of the rate.
        count: what one call brings.
        seconds: of one call, per turn.
        bare: of the products, before and after every turn.

    Example:
        >>> measure("particles", 12, [3.0, 6.0, 4.0], [2.0, 2.0, 2.0, 2.0])["rate"]
        3.0
    """
    return {
        "what": WHAT[name],
        "rate": count / statistics.median(seconds),
        "bare_rate": count / statistics.median(bare),
        **spread([1 / ratio for ratio in ratios(seconds, bare)]),
    }


def rates_in_words(what: str, rates: Iterable[float], ratio: Mapping[str, Any]) -> tuple[str | Text, ...]:
    """A line of a table: rates per second, and their ratio with its range, as in :func:`.spread`."""
    shares = (Text(f"{ratio['ratio']:.2f}", "bold"), f"{ratio['low']:.2f} to {ratio['high']:.2f}")
    return (what, *(f"{rate:,.0f}" for rate in rates), *shares)


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """Print a record of :func:`run` as a table."""
    table = plain_table("per second, end to end", "here", "bare products", "share of them", "lowest to highest", gap=1)
    for rate in record["measures"].values():
        table.add_row(*rates_in_words(rate["what"], (rate["rate"], rate["bare_rate"]), rate))
    console.print(table)
    size = record["setting"]
    console.print(
        f"Higher is better, 1 is nothing but products; batches of {size['n_sequences']}, K = {size['num_particles']}."
    )
