"""What notebooks show: the lines of a report as a table."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_LABEL = 14
"""Columns that labels of a report's lines take at most."""
_CONTINUED = 6
"""Spaces at least before a line that goes on with the one before."""


def summary_html(title: str, lines: Iterable[str]) -> str:
    """Lines that begin with a label, or with spaces where they go on, as an HTML table."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(label)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for label, text in map(_parts, lines)
    )
    return f'<table><caption style="text-align:left">{escape(title)}</caption>{rows}</table>'


def _parts(line: str) -> tuple[str, str]:
    """A line's label and what follows it."""
    if line.startswith(" " * _CONTINUED) or not line.strip():
        return "", line.strip()
    label, gap, text = line.strip().partition("  ")
    if not gap or len(label) > _LABEL:
        label, _, text = line.strip().partition(" ")
    return label, text.strip()
