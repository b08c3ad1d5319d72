"""What notebooks show: the lines of a report as a table."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_LEFT = 'style="text-align:left"'


def summary_html(title: str, lines: Iterable[str], column: int) -> str:
    """Lines as an HTML table.

    Args:
        title: stands above.
        lines: each a label of one word and, from `column` on, its text; or without a label a text
            that goes on there; or a sentence.
        column: where texts begin, counted from 0.
    """
    rows = "".join(f"<tr>{_cells(line, column)}</tr>" for line in lines)
    return f"<table><caption {_LEFT}>{escape(title)}</caption>{rows}</table>"


def _cells(line: str, column: int) -> str:
    label, text = line[:column].strip(), line[column:]
    if " " in label or (label and not line[column - 1 : column].isspace()):
        return f'<td colspan="2" {_LEFT}>{escape(line.strip())}</td>'
    return f"<th {_LEFT}>{escape(label)}</th><td {_LEFT}>{escape(text.strip())}</td>"
