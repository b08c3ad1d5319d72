"""Words that reports share."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number of things: `1 layer`, `2 layers`, `1,024 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
