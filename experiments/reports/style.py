"""Style: the canvas, the colours and the axes that all figures share, and how a figure is written to a file."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from pyro_tvae.files import atomic_write

__all__ = [
    "BLUE",
    "COLORS",
    "DASHES",
    "DPI",
    "GRAY",
    "MARKERS",
    "SKY",
    "VERMILLION",
    "WIDTH",
    "canvas",
    "gridded",
    "literal",
    "save",
    "whole_numbers",
    "wrap",
]

DPI = 150
WIDTH = 9.0  # inches

# Okabe & Ito's palette: eight colours that stay apart under every common colour vision deficiency.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BLUE, VERMILLION, SKY = COLORS[0], COLORS[1], COLORS[5]
DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (2, 2)))
MARKERS = "s^Dv*X"
GRAY = "#555555"


def canvas(height: float, width: float = WIDTH, dpi: int = DPI) -> Figure:
    """A figure of so many inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def gridded(axis: Axes, title: str, size: float = 11) -> None:
    """Axes to read values from: lines behind the curves, no frame, a title above."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)
    axis.set_title(title, loc="left", fontsize=size)


def whole_numbers(axis: Axis, most: int | Literal["auto"] = "auto") -> None:
    """Ticks at whole numbers, of which there may be one alone."""
    axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))


def wrap(text: str, width: float, size: float = 11) -> str:
    """Text of a font size, broken into lines that fit a width in inches."""
    return textwrap.fill(text, max(20, int(width * 72 / (0.56 * size))))


def literal(figure: Figure) -> Figure:
    """The figure, whose texts are shown as they are: between two dollar signs matplotlib expects mathematics, and a
    name from a file may hold anything."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def save(figure: Figure, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a figure atomically: readers see the old file or the whole new one, never a half.

    Args:
        figure: any matplotlib figure.
        path: where to; the suffix chooses the format (``.png``, ``.pdf``, ``.svg``). Missing folders are made.
        metadata: to be kept in the file, as :meth:`~matplotlib.figure.Figure.savefig` takes it.

    Returns:
        The path.
    """
    path = Path(path)
    with atomic_write(path) as partial:
        ending = path.suffix.removeprefix(".")
        literal(figure).savefig(partial, format=ending, dpi=DPI, facecolor="white", metadata=metadata)
    return path
