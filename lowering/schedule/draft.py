"""Instructions before they have buffers: what the scheduler chooses, orders and places."""

from __future__ import annotations

from dataclasses import dataclass, field

from xdsl.ir import Attribute, SSAValue

from intaglio.dialects import rom
from intaglio.dialects.formula import Formula
from intaglio.dialects.hazards import CACHE_READS, CACHE_WRITES


@dataclass
class Draft:
    """An instruction whose operands are still values."""

    opcode: str
    queue: str
    reads: list[SSAValue]
    writes: list[SSAValue]
    uses: dict[str, str]
    duration: Formula
    onnx: rom.Nodes
    arguments: dict[str, Attribute] = field(default_factory=dict)
    in_place: tuple[SSAValue, ...] = ()
    """Values read element by element before the result's element is written."""
    also_waits: dict[str, int] = field(default_factory=dict)
    """What it waits for besides the buffers it shares: ROM that is on, the end of its use."""

    @property
    def written_caches(self) -> set[str]:
        """Slots of caches that it writes."""
        return {slot for role, slot in self.uses.items() if role == CACHE_WRITES.get(self.opcode)}

    @property
    def read_caches(self) -> set[str]:
        """Slots of caches that it reads."""
        return {slot for role, slot in self.uses.items() if role in CACHE_READS}


@dataclass
class DraftBlock:
    """A block before its instructions have buffers."""

    name: str
    drafts: list[Draft]
    instances: list[dict[str, str]]
    sampled: bool = False
