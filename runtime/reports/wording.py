"""Words that reports share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def counted(number: int, noun: str) -> str:
    """A number of things: `1 layer`, `2 layers`, `1,024 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def edited_lines(edited: Sequence[str]) -> Iterator[str]:
    """Says that a result is not that of what the compiler wrote."""
    if edited:
        yield f"  edited       {', '.join(edited)}: not what the compiler wrote"
