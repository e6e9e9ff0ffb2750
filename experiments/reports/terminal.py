"""The terminal: consoles that are wide enough, and tables without frames."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["plain_table", "wide_console", "yes_or_no"]


def wide_console(least: int = 100) -> Console:
    """Standard output; at least so many columns wide where it is no terminal (a pipe, a file)."""
    console = Console()
    return console if console.is_terminal else Console(width=max(least, console.width))


def plain_table(first: str, *headings: str, gap: int, wraps: bool = False) -> Table:
    """A table with names in the first column, which may wrap, and numbers in the others, which never do."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, gap, 0, 0))
    table.add_column(first, no_wrap=not wraps)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def yes_or_no(met: bool | None) -> Text:
    """Whether a target was met, in its colour; a dash where there is none."""
    if met is None:
        return Text("–")
    return Text("yes", "green") if met else Text("no", "bold red")
