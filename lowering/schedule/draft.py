"""Instructions before they have buffers: what the scheduler chooses, orders and places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from xdsl.ir import SSAValue

from intaglio.dialects import rom
from intaglio.dialects.isa.beat import WHOLE, Beat
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.touched import Touched
from intaglio.dialects.timeline import Issue, Times

Takes = Callable[[int, int], Times]
"""What a beat takes, by how much of what the instruction's beats count it has, and its pass."""


@dataclass
class Draft:
    """An instruction whose operands are still values, or a beat of one.

    Attributes:
        does: the instruction.
        takes: what beats of it take.
        onnx: the nodes that it stands for.
        also_waits: what it waits for besides the buffers it shares: ROM that is on, the end of its
            use.
        beat: which part of the instruction.
        size: how much of what beats count it has; 0: it is not cut.
        touched: what it touches; None: all of what it names.
    """

    does: Instruction[SSAValue]
    takes: Takes
    onnx: rom.Nodes
    also_waits: dict[str, int] = field(default_factory=dict)
    beat: Beat = WHOLE
    size: int = 0
    touched: Touched[SSAValue] | None = None

    @property
    def queue(self) -> str:
        """Where it stands."""
        return self.does.queue

    @property
    def times(self) -> Times:
        """What it takes."""
        return self.takes(self.size, self.beat.number)

    @property
    def flows(self) -> bool:
        """Whether others may start behind it before it has finished."""
        return self.times.pace is not None

    @property
    def reads(self) -> tuple[SSAValue, ...]:
        """The values that it reads."""
        return self.does.reads if self.touched is None else tuple(self.touched.reads)

    @property
    def writes(self) -> tuple[SSAValue, ...]:
        """The values that it writes."""
        return self.does.writes if self.touched is None else tuple(self.touched.writes)

    def issue(self, waits: Mapping[str, int]) -> Issue:
        """What the timeline needs of it."""
        return Issue(self.queue, waits, *self.times)


@dataclass
class DraftBlock:
    """A block before its instructions have buffers."""

    name: str
    drafts: list[Draft]
    instances: list[dict[str, str]]
    sampled: bool = False
