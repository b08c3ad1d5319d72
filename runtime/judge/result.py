"""The figures of a comparison, as notebooks and scripts get them."""

from __future__ import annotations

from typing import Any

from intaglio.runtime.judge.report import text_lines
from intaglio.runtime.notebook import summary_html

_COLUMN = 15
"""Where texts begin in the report."""


class CheckResult(dict[str, Any]):
    """The figures of `intaglio check --json` as a dictionary, which prints as the report."""

    def __repr__(self) -> str:
        if self["judge"] is None:
            return f"CheckResult({self['engine']}, not judged)"
        return (
            f"CheckResult({self['engine']}, {self['tokens_compared']:,} tokens, "
            f"top-1 {self['top1_agreement']:.1%} of {self['judge']}, "
            f"saturations {self['saturations']:,})"
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        first, *lines = self._lines()
        return summary_html(first, lines, _COLUMN)

    def _lines(self) -> list[str]:
        return list(text_lines(self))
