"""Buffers that are a part of another buffer's value: a slice is no copy, it lies within.

Such a buffer says of which one it is a part (`program.buffer`: `of`), since its place alone does
not: other values lie at the same rows at other times, and beats are taken in another order than the
model's. Nobody writes it but through the whole.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from intaglio.dialects.isa.values import Fixed, Value
from intaglio.dialects.memories import Span


def fault(
    name: str,
    of: Mapping[str, str],
    kinds: Mapping[str, Value],
    places: Mapping[str, Span | None],
    written: Container[str],
) -> str | None:
    """What is wrong with a part; None: nothing.

    Args:
        name: of the part.
        of: for each part the buffer that it is a part of.
        kinds: of the buffers' values.
        places: where they lie.
        written: buffers that instructions write.
    """
    whole = of[name]
    if whole not in kinds:
        return f"is a part of '{whole}', and there is no buffer of this name"
    if whole in of:
        return f"is a part of '{whole}', itself a part of '{of[whole]}'"
    part, all_ = kinds[name], kinds[whole]
    if not isinstance(part, Fixed) or not isinstance(all_, Fixed):
        return f"is a part of '{whole}', and only fixed-point numbers have parts"
    if part.fraction != all_.fraction:
        return (
            f"has {part.fraction} fraction bits, '{whole}', of which it is a part, {all_.fraction}"
        )
    inner, outer = places[name], places[whole]
    assert inner is not None and outer is not None
    if not outer.first <= inner.first <= inner.last <= outer.last:
        return f"does not lie within '{whole}', of which it is a part"
    if name in written:
        return f"is written by an instruction, and is a part of '{whole}'"
    return None


def elements(part: Span, whole: Span) -> slice:
    """Which elements of the whole a part is."""
    return slice(part.first - whole.first, part.last - whole.first)
