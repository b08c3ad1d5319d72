"""Instructions before they have buffers: what the scheduler chooses, orders and places."""

from __future__ import annotations

from dataclasses import dataclass, field

from xdsl.ir import SSAValue

from intaglio.dialects import rom
from intaglio.dialects.formula import Formula
from intaglio.dialects.isa.instruction import Instruction


@dataclass
class Draft:
    """An instruction whose operands are still values."""

    does: Instruction[SSAValue]
    duration: Formula
    onnx: rom.Nodes
    also_waits: dict[str, int] = field(default_factory=dict)
    """What it waits for besides the buffers it shares: ROM that is on, the end of its use."""

    @property
    def queue(self) -> str:
        """Where it stands."""
        return self.does.queue

    @property
    def reads(self) -> tuple[SSAValue, ...]:
        """The values that it reads."""
        return self.does.reads

    @property
    def writes(self) -> tuple[SSAValue, ...]:
        """The values that it writes."""
        return self.does.writes


@dataclass
class DraftBlock:
    """A block before its instructions have buffers."""

    name: str
    drafts: list[Draft]
    instances: list[dict[str, str]]
    sampled: bool = False
