"""Blocks of products' inputs in which one channel stands out, found on a text.

A block's exponent is that of its largest element, so beside a channel that is many times as large
as the others these have as many bits less. Such channels of trained models are the same ones for
all tokens: what counts is each channel's root mean square over the text, and in a block the largest
of them over their median. Where that is `STANDS_OUT` or more in any of the layers that share the
instruction, 16 bits for that block (`--set wide.NAME=BLOCKS`) may pay; what they pay is measured
(`sensitivity.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from xdsl.dialects.builtin import ModuleOp

from intaglio.backend.program.program import Instruction, Program
from intaglio.dialects import rom
from intaglio.dialects.isa.matrix import ExpertMatvec, Matvec

STANDS_OUT = 8.0
"""A channel over the median of its block: the others have three bits of seven less."""

Squares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """The blocks of an input that stand out.

    Attributes:
        label: what the input is called (`input_formats.labels`).
        blocks: their numbers, ascending.
        count: of the input's blocks.
        times: the largest channel over its block's median, of any of them.
    """

    label: str
    blocks: tuple[int, ...]
    count: int
    times: float


def names_of(one: Instruction) -> Iterable[str]:
    """The ONNX nodes that an instruction stands for, of all instances."""
    return (name for names in one.onnx for name in names)


class Channels:
    """Sums of squares of the channels of products' inputs, gathered while a program runs.

    Args:
        program: whose instructions `observe` is called with; its products read vectors with one
            scale, which are fine enough to tell small channels beside large ones.
        module: the float stage that it was lowered from.
    """

    def __init__(self, program: Program, module: ModuleOp) -> None:
        from intaglio.lowering.step.input_formats import labels

        of_node = {
            name: label
            for op, label in labels(module).items()
            for names in rom.node_names(op.onnx)
            for name in names
        }
        self._labels: dict[str, set[str]] = {}
        for block in program.blocks:
            for one in block.whole:
                if isinstance(one.does, Matvec | ExpertMatvec):
                    found = {of_node[name] for name in names_of(one) if name in of_node}
                    self._labels.setdefault(one.does.input, set()).update(found)
        self._squares: dict[tuple[str, str, int], Squares] = {}

    def observe(self, one: Instruction, instance: int, written: Sequence[Any]) -> None:
        """Takes what an instruction wrote: values [S, N]."""
        for buffer, value in zip(one.writes, written, strict=False):
            for label in self._labels.get(buffer, ()):
                sums = (np.asarray(value, np.float64) ** 2).sum(axis=0)
                key = label, buffer, instance
                self._squares[key] = self._squares.get(key, 0.0) + sums

    def standing(self, block: int, wide: Mapping[str, Iterable[int]]) -> list[Standing]:
        """The inputs that have blocks that stand out.

        Args:
            block: elements of a block.
            wide: blocks that have 16 bits already, by label.
        """
        found: dict[str, dict[int, float]] = {}
        counts: dict[str, int] = {}
        for (label, _, _), squares in self._squares.items():
            times = _times(np.sqrt(squares), block)
            counts[label] = len(times)
            mine = found.setdefault(label, {})
            for number in np.flatnonzero(times >= STANDS_OUT).tolist():
                if number not in wide.get(label, ()):
                    mine[number] = max(mine.get(number, 0.0), float(times[number]))
        return [
            Standing(label, tuple(sorted(blocks)), counts[label], max(blocks.values()))
            for label, blocks in found.items()
            if blocks
        ]


def _times(channels: Squares, block: int) -> Squares:
    """Of each block its largest channel over the median of its channels; 0 where that is 0, since
    there is nothing beside the channel that could lose bits."""
    parts = [channels[first : first + block] for first in range(0, len(channels), block)]
    largest, medians = (np.array([of(one) for one in parts]) for of in (np.max, np.median))
    return np.divide(largest, medians, out=np.zeros_like(largest), where=medians > 0)
