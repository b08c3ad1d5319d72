"""How many wires a number takes, and numbers on so many wires."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intaglio.dialects.errors import CompilerBug

if TYPE_CHECKING:
    from intaglio.backend.hw.wires.signal import Signal


def index_bits(count: int) -> int:
    """Wires of a number below `count`; one at least, since no signal has none."""
    return max(1, choice_bits(count))


def choice_bits(count: int) -> int:
    """Bits that choose one of `count`: none where there is nothing to choose."""
    return (count - 1).bit_length()


def log2(number: int) -> int:
    """The logarithm of a power of two."""
    if number < 1 or number & (number - 1):
        raise CompilerBug(f"{number} is no power of two")
    return number.bit_length() - 1


def fit(signal: Signal, width: int) -> Signal:
    """The signal on `width` wires, unsigned; what is too large never counts."""
    return signal.truncate(width).extend(width, False)


def up(counter: Signal) -> Signal:
    """The counter's next number, on as many wires."""
    return (counter + 1).truncate(counter.width)
