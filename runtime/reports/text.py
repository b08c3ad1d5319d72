"""`intaglio inspect` for people at a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any

from intaglio.runtime.reports.tables import all_tables, headline, summary_lines

if TYPE_CHECKING:
    from rich.console import Console

    from intaglio.runtime.adapters.budget import Table

WIDTH = 100
"""Columns that the tables need."""
_HANGING: dict[str, Any] = {
    "subsequent_indent": " " * 10,
    "break_long_words": False,
    "break_on_hyphens": False,
}
"""How a line of the summary goes on: below its text, not below its name."""


def inspect_text(content: Mapping[str, Any], width: int = WIDTH) -> str:
    """What `inspect_json` gives as tables, at most `width` columns wide."""

    def write(console: Console) -> None:
        for line in headline(content):
            console.print(line)
        console.print()
        for line in summary_lines(content):
            console.print(fill(f"  {line}", width, **_HANGING), soft_wrap=True)
        for table in all_tables(content):
            _print(console, table)

    return _text(write, width)


def table_text(table: Table, width: int = WIDTH) -> str:
    """A table by itself, at most `width` columns wide."""
    return _text(lambda console: _print(console, table), width)


def _text(write: Callable[[Console], None], width: int) -> str:
    """What is written on a console, without colours."""
    from rich.console import Console

    stream = io.StringIO()
    write(Console(file=stream, width=width, highlight=False, markup=False, color_system=None))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _print(console: Console, table: Table) -> None:
    """A table whose first column is text and whose other columns are numbers."""
    from rich.box import SIMPLE
    from rich.table import Table as Grid

    title, columns, rows, note = table
    grid = Grid(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for number, column in enumerate(columns):
        grid.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console.print()
    if rows:
        console.print(grid)
    else:
        console.print(title)
    for line in note.splitlines():
        console.print(line)
