"""What the bits of the power controller switch: domains, or the banks of one at an address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intaglio.backend.program.types import Program
from intaglio.dialects.isa.power import WakeChosen
from intaglio.dialects.isa.values import Routing


@dataclass(frozen=True)
class PowerBit:
    """A bit of the power controller.

    Attributes:
        domain: the power domain whose banks it switches.
        row: only those at this number, of all L-Units; None: all of the domain.
        experts: of these ranges of experts, both ends included, any has words in the banks: a
            family each.
        words: code words of the banks that are in use, by family.
    """

    domain: str
    row: int | None = None
    experts: tuple[tuple[int, int], ...] = ()
    words: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def label(self) -> str:
        """Its name."""
        return self.domain if self.row is None else f"{self.domain}_row{self.row}"

    def wakes(self, expert: int) -> bool:
        """Whether a chosen expert has the banks switched on."""
        return any(low <= expert <= high for low, high in self.experts)

    @property
    def count(self) -> int:
        """How many experts have words in the banks."""
        return len({e for low, high in self.experts for e in range(low, high + 1)})


def by_choice(program: Program) -> dict[str, int]:
    """The domains of which only chosen experts' banks are woken, and how many are chosen."""
    found: dict[str, int] = {}
    for block in program.blocks:
        for one in block.instructions:
            if isinstance(one.does, WakeChosen):
                chosen = program.value(one.does.routing, Routing).chosen
                for instance in block.instances:
                    domain = one.does.bound(instance).domain
                    if domain in program.domains:
                        found[domain] = max(found.get(domain, 0), chosen)
    return found


def power_bits(program: Program) -> tuple[PowerBit, ...]:
    """The bits of a program's domains, in their order."""
    chosen, machine = by_choice(program), program.machine
    found: list[PowerBit] = []
    for domain, tensors in program.domains.items():
        if domain not in chosen:
            found.append(PowerBit(domain))
            continue
        size = machine.bank_words
        ranges: dict[int, list[tuple[int, int]]] = {}
        words: dict[int, dict[str, int]] = {}
        for name in tensors:
            parameter = program.parameters[name]
            shape = parameter.rom_shape
            for piece in parameter.pieces:
                end = piece.base + piece.code_words(shape, machine)
                for row in range(piece.base // size, -(-end // size)):
                    first, last = max(piece.base, row * size), min(end, (row + 1) * size) - 1
                    experts = piece.experts_in(first, last, shape, machine)
                    assert experts is not None
                    ranges.setdefault(row, []).append(experts)
                    own = words.setdefault(row, {})
                    own[name] = own.get(name, 0) + (last - first + 1) * piece.tiles
        found += [
            PowerBit(domain, row, tuple(dict.fromkeys(ranges[row])), words[row])
            for row in sorted(ranges)
        ]
    return tuple(found)
