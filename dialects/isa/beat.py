"""Which part of an instruction's work a queue takes at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WORDS = ("of", "pass", "first", "count", "entry", "more", "peak")
"""The words of a beat in a program."""
MOST = (1 << 24) - 1
"""The largest number of a beat."""


@dataclass(frozen=True)
class Beat:
    """A beat of an instruction: a pass, and what of the result it is about.

    What is counted is the instruction's own (`touched.size_of`): elements of a vector, query heads
    of a softmax, heads of a cache.

    Attributes:
        number: of the pass, from 0.
        first: the first of what is counted.
        count: how many; None: all from there on.
        entry: where the groups' reductions are kept: the entry of the instruction's first group.
        ends: the beat that stands for the instruction: that of its last part, which need not be
            taken last.
        of_instruction: the number of the instruction in its block, which all its beats have. What
            is computed is that of the instructions one after the other, in this order.
        peak: where the largest magnitude of what the instruction writes is left, which is taken
            while it is written: an entry, counted from 1. The norm or quantisation that reads the
            value there needs no pass for it; 0: it is not taken.
    """

    number: int = 0
    first: int = 0
    count: int | None = None
    entry: int = 0
    ends: bool = True
    of_instruction: int = 0
    peak: int = 0

    @property
    def words(self) -> dict[str, int]:
        """As in program.json: what differs from `WHOLE`."""
        content = {"of": self.of_instruction, "pass": self.number}
        content |= {"first": self.first, "count": self.count or 0}
        content |= {"entry": self.entry, "more": int(not self.ends)}
        content |= {"peak": self.peak}
        return {name: value for name, value in content.items() if value}

    @staticmethod
    def read(words: Mapping[str, int]) -> Beat:
        """From `words`.

        Raises:
            ValueError: a word is unknown, or a number negative or too large.
        """
        for name, value in words.items():
            if name not in WORDS:
                raise ValueError(f"a beat has no '{name}', only {', '.join(WORDS)}")
            if not 0 <= value <= MOST:
                raise ValueError(f"'{name}' of a beat is {value}, not from 0 to {MOST}")
        of = words.get
        count, ends = of("count", 0) or None, not of("more", 0)
        number, first, entry = of("pass", 0), of("first", 0), of("entry", 0)
        return Beat(number, first, count, entry, ends, of("of", 0), of("peak", 0))

    def of(self, whole: int) -> tuple[int, int]:
        """The first, and how many.

        Args:
            whole: how many the instruction has.

        Raises:
            ValueError: it has not so many.
        """
        count = whole - self.first if self.count is None else self.count
        if not (self.first >= 0 and count > 0 and self.first + count <= whole):
            raise ValueError(f"a beat of {count} from {self.first} on, of {whole}")
        return self.first, count


WHOLE = Beat()
"""All of an instruction of one pass."""
