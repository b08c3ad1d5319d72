"""The memories that units share: each a module around `seq.firmem` with the ports that are used.

A `Bank` is a memory under construction: units get the data wires of their read ports before it is
known where the addresses come from, so that units and memories can be connected in any order. Data
come one cycle after the address. A write is seen by reads that come in the same cycle or later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from intaglio.backend.hw.wires.signal import ModuleBuilder, Operand, Signal, Wire, Write, cat
from intaglio.backend.hw.wires.widths import fit
from intaglio.dialects.errors import CompilerBug


class Bank:
    """A memory of words that consist of named parts.

    Args:
        module: gets the memory.
        name: of the instance.
        depth: words, 2 at least.
        parts: name and width of the parts of a word, the first in the lowest bits; the last may be
            signed (its name says nothing of it: readers see wires).
        lanes: equal lanes that write masks enable; 0 for none.
    """

    def __init__(
        self,
        module: ModuleBuilder,
        name: str,
        depth: int,
        parts: Mapping[str, int],
        lanes: int = 0,
    ) -> None:
        self._module, self.name, self._depth = module, name, depth
        self._parts, self._lanes = dict(parts), lanes
        self._reads: list[tuple[Wire, Signal | None]] = []
        self._writes: list[Write] = []

    @property
    def width(self) -> int:
        """Bits of a word."""
        return sum(self._parts.values())

    @property
    def address_bits(self) -> int:
        """Wires of an address."""
        return max(1, (self._depth - 1).bit_length())

    def read(self) -> tuple[int, dict[str, Signal]]:
        """A new read port: its number, and the parts of its data."""
        number = len(self._reads)
        wire = self._module.wire(f"{self.name}_read{number}", self.width)
        self._reads.append((wire, None))
        parts: dict[str, Signal] = {}
        place = 0
        for name, bits in self._parts.items():
            parts[name] = wire[place : place + bits]
            place += bits
        return number, parts

    def address(self, number: int, address: Signal) -> None:
        """Connects the address of a read port."""
        wire, known = self._reads[number]
        if known is not None:
            raise CompilerBug(f"read port {number} of {self.name} has two addresses")
        self._reads[number] = wire, fit(address, self.address_bits)

    def write(
        self,
        address: Signal,
        values: Mapping[str, Operand],
        enable: Signal,
        mask: Signal | None = None,
    ) -> None:
        """A new write port; where two write one word in a cycle, the one made last wins."""
        data: list[Signal] = []
        for name, bits in reversed(self._parts.items()):
            value = values[name]
            signal = value if isinstance(value, Signal) else self._module.constant(int(value))
            data.append(fit(signal, bits))
        self._writes.append(Write(fit(address, self.address_bits), cat(*data), enable, mask))

    def build(self) -> None:
        """Makes the memory and drives the wires of the read ports."""
        addresses: list[Signal] = []
        for number, (_, address) in enumerate(self._reads):
            if address is None:
                raise CompilerBug(f"read port {number} of {self.name} has no address")
            addresses.append(address)
        data = self._module.ram(
            self.name, self._depth, self.width, addresses, self._writes, self._lanes
        )
        for (wire, _), signal in zip(self._reads, data, strict=True):
            wire.assign(signal)


def build_all(banks: Sequence[Bank]) -> None:
    """Makes all memories."""
    for bank in banks:
        bank.build()
