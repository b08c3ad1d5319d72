"""Figures of a target as reports state them: with their origin, and with what they hang on."""

from __future__ import annotations

from typing import Any

from intaglio.backend.target.formula import names
from intaglio.backend.target.report import source_keys
from intaglio.backend.target.target import Target


def figure(target: Target, name: str) -> dict[str, Any] | None:
    """A figure with its origin, or None where the target does not state it."""
    if name not in target.parameters:
        return None
    one = target.parameters[name]
    return {"value": one.value, "origin": one.origin, "source": source_keys(one.source)}


def depends(target: Target, name: str) -> list[str]:
    """A figure and all that its formula hangs on, in order of their depth."""
    found = [name]
    for one in found:
        formula = target.parameters[one].formula
        found += [other for other in names(formula or "0") if other not in found]
    return found
