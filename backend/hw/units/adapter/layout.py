"""Where adapters lie in the H-Units, and what goes through the chip's load port.

How matrices lie on the H-Units is in `dialects/h_units.py`; their rows are the program's. An
element has `element_bits`: E4M3, or an integer less its zero point in two's complement; the rest of
a row's last word is 0. Where several adapters are resident, the slots of resident k lie
`k * slot_words` words, and `k * slot_scales` scales, after those of resident 0.

**The load port** takes a word of `load_bytes` in a cycle, with an address of
`AdapterPlaces.address_bits`:

| two upper bits | lower bits                      | data                                     |
|----------------|---------------------------------|------------------------------------------|
| 0: codes       | word of the SRAM, group, part   | words for the group's H-Units, or a part |
| 1: scales      | place among the scales, group   | a scale for each of the group's H-Units  |
| 2: sites       | number of the site              | rank, exponent of A, exponent of B       |
| 3: active      | (none)                          | number of the active resident            |

A group is as many H-Units, a power of two, as a load word has room for; no two matrices have words
of codes, or rows of scales, in one. An SRAM word wider than a load word has several equal parts
(low bits first). Lower bits stand in this order from the top; what has one value only has no bits.
Site registers are rank, then two exponents of `EXPONENT_BITS` in two's complement, low bits first.
The ranks are 0 after reset.

An adapter of rank r is loaded with the rows of A below r and the words of B with columns below r;
the registers of all sites come last. `load_cycles` counts that, `load_stream` makes it.

Of N > 1 residents every one has its registers: site s of resident k has the number
``k * (sites) + s``. The register `active` says which resident's words, scales and registers count;
N is none, and then all ranks are 0. It is N after reset, which leaves what was loaded where it is.
The word that sets it follows those of an adapter; alone it switches to a resident. With one
resident there is no such register, and no word of that kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from intaglio.backend.hw.units.refusals import refuse
from intaglio.backend.hw.wires.widths import index_bits, log2
from intaglio.dialects.codes import AdapterMatrix, Matrix
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.h_units import (
    ADAPTER_SCALES,
    ADAPTERS,
    AdapterShape,
    load_units,
    scale_units,
)
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.machine import Machine

if TYPE_CHECKING:
    from intaglio.backend.program.program import Parameter, Program, Site

SCALE_BITS = 16
"""Bits of a row's scale mantissa."""
EXPONENT_BITS = 10
"""Bits of a matrix's exponent, signed."""
CODES, SCALES, SITES, ACTIVE = range(4)
"""What the two upper bits of a load address mean."""
SWITCH_CYCLES = 1
"""In which the load port takes the word that makes a resident the active one."""

Bits = npt.NDArray[np.uint8]


class SiteLike(Protocol):
    """The adapter of a site, as `backend.images.adapter.SiteImage` has it."""

    @property
    def rank(self) -> int: ...
    @property
    def a(self) -> AdapterMatrix: ...
    @property
    def b(self) -> AdapterMatrix: ...


class MatricesLike(Protocol):
    """Where the contents of the graph's own adapters come from: `backend.images.read.Images`."""

    def matrix(self, name: str) -> Matrix:
        """A matrix of small codes."""
        ...


class LoadStream(NamedTuple):
    """Words for the load port, one a cycle."""

    addresses: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]
    """[words, load_bytes], low byte first."""

    def __len__(self) -> int:
        return len(self.addresses)


@dataclass(frozen=True)
class MatrixPlace:
    """A matrix in the H-Units.

    Attributes:
        parameter: what it is.
        shape: how it lies there.
        word: first word in every H-Unit's SRAM.
        scale: first place in every H-Unit's scale memory.
    """

    parameter: Parameter
    shape: AdapterShape
    word: int
    scale: int

    @property
    def unit(self) -> int:
        """The H-Unit of row 0."""
        return self.parameter.unit

    @property
    def words(self) -> int:
        """Of a row."""
        return self.shape.words

    @property
    def group_words(self) -> int:
        """Words under one scale."""
        return self.shape.group_words

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return self.shape.groups


@dataclass(frozen=True)
class AdapterPlaces:
    """All adapters of a program in the H-Units; `places_of` makes it.

    Attributes:
        machine: the chip.
        places: by the parameter's name.
        sites: of the program, in the order of their registers.
        element_bits: of an element in SRAM.
        depth: words of every H-Unit's adapter SRAM.
        scale_depth: of its scale memory.
        residents: adapters that the slots hold at once.
        slot_words: words of the slots of one of them.
        slot_scales: places of their scales.
    """

    machine: Machine
    places: Mapping[str, MatrixPlace]
    sites: tuple[Site, ...]
    element_bits: int
    depth: int
    scale_depth: int
    residents: int = 1
    slot_words: int = 0
    slot_scales: int = 0

    @property
    def word_bits(self) -> int:
        """Bits of an SRAM word."""
        return self.element_bits * self.machine.attention_lanes

    @property
    def _load_bits(self) -> int:
        return 8 * self.machine.load_bytes

    @cached_property
    def parts(self) -> int:
        """Parts in which an SRAM word is loaded."""
        return 1 << (-(-self.word_bits // self._load_bits) - 1).bit_length()

    @cached_property
    def load_units(self) -> int:
        """H-Units that a load word has SRAM words for."""
        return load_units(self.machine, self.word_bits)

    @cached_property
    def scale_units(self) -> int:
        """H-Units that a load word has scales for."""
        return scale_units(self.machine)

    @property
    def rank_bits(self) -> int:
        """Width of a rank register."""
        return max((site.rank for site in self.sites), default=1).bit_length()

    @property
    def registers(self) -> int:
        """Site registers, of all residents."""
        return self.residents * len(self.sites)

    @cached_property
    def shifts(self) -> tuple[int, int]:
        """Bits below the SRAM word's address and below the scale's."""
        units = self.machine.h_units
        return log2(units // self.load_units) + log2(self.parts), log2(units // self.scale_units)

    @cached_property
    def address_bits(self) -> int:
        """Width of a load address."""
        codes, scales = self.shifts
        return 2 + max(
            index_bits(self.depth) + codes,
            index_bits(self.scale_depth) + scales,
            index_bits(self.registers),
        )

    def _address(self, kind: int, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return np.asarray(index, np.int64) + (kind << (self.address_bits - 2))

    # The load port

    @property
    def site_addresses(self) -> range:
        """Load addresses of the registers of all sites, of all residents."""
        first = int(self._address(SITES, 0))
        return range(first, first + self.registers)

    def load_cycles(self, ranks: Mapping[str, int]) -> int:
        """Cycles in which an adapter is loaded, and is made the active one.

        Args:
            ranks: of the sites that it has, by name; none switches adapters off.
        """
        if self.residents > 1 and not any(ranks.values()):
            return SWITCH_CYCLES
        count = len(self.sites) + (SWITCH_CYCLES if self.residents > 1 else 0)
        for site in self.sites:
            if rank := ranks.get(site.name, 0):
                lanes = self.machine.attention_lanes
                a_words, b_words = self.places[site.a].words, -(-rank // lanes)
                for rows, words in ((rank, a_words), (site.rows, b_words)):
                    count += -(-rows // self.load_units) * self.parts * words
                    count += -(-rows // self.scale_units)
        return count

    def switch_stream(self, resident: int | None) -> LoadStream:
        """The word that makes a resident the active one; None: none is. For several residents."""
        value = self.residents if resident is None else resident
        if self.residents < 2 or not 0 <= value <= self.residents:
            raise CompilerBug(f"no resident {resident} among {self.residents}")
        bits = _to_bits(np.array([value]), self._load_bits)
        return LoadStream(self._address(ACTIVE, [0]), _packed(bits))

    def load_stream(self, sites: Mapping[str, SiteLike], resident: int = 0) -> LoadStream:
        """The words that load an adapter and make it the active one, or switch adapters off.

        Args:
            sites: the adapter, by the sites' names; one without any switches adapters off.
            resident: which one it becomes.

        Raises:
            UserError: the adapter has a site that the program has not, or is of another shape.
        """
        if not 0 <= resident < self.residents:
            raise CompilerBug(f"no resident {resident} among {self.residents}")
        if unknown := sorted(set(sites) - {site.name for site in self.sites}):
            raise UserError(f"the chip has no adapter slot at {', '.join(unknown)}")
        if self.residents > 1 and not any(site.rank for site in sites.values()):
            return self.switch_stream(None)
        chunks: list[LoadStream] = []
        registers = np.zeros((len(self.sites), self._load_bits), np.uint8)
        for number, site in enumerate(self.sites):
            image = sites.get(site.name)
            if image is None or not image.rank:
                continue
            shapes = image.a.codes.shape, image.b.codes.shape
            wanted = (image.rank, site.columns), (site.rows, image.rank)
            if image.rank > site.rank or shapes != wanted:
                raise UserError(
                    f"the adapter of {site.name} has matrices {shapes[0]} and {shapes[1]}; the "
                    f"slot takes up to [{site.rank}, {site.columns}] and [{site.rows}, {site.rank}]"
                )
            for name, matrix in ((site.a, image.a), (site.b, image.b)):
                place = self._of_resident(self.places[name], resident)
                chunks.append(self._codes(place, self._elements(place, matrix)))
                chunks.append(self._scales(place, matrix.scales))
            values = (
                (image.rank, self.rank_bits),
                (image.a.exponent, EXPONENT_BITS),
                (image.b.exponent, EXPONENT_BITS),
            )
            low = 0
            for value, size in values:
                if not -(1 << (EXPONENT_BITS - 1)) <= value < 1 << (EXPONENT_BITS - 1):
                    raise UserError(f"the adapter of {site.name} has an exponent of {value}")
                registers[number, low : low + size] = _to_bits(np.array([value]), size)[0]
                low += size
        numbers = resident * len(self.sites) + np.arange(len(self.sites))
        chunks.append(LoadStream(self._address(SITES, numbers), _packed(registers)))
        if self.residents > 1:
            chunks.append(self.switch_stream(resident))
        return LoadStream(
            np.concatenate([one.addresses for one in chunks]),
            np.concatenate([one.data for one in chunks]),
        )

    def _of_resident(self, place: MatrixPlace, resident: int) -> MatrixPlace:
        return replace(
            place,
            word=place.word + resident * self.slot_words,
            scale=place.scale + resident * self.slot_scales,
        )

    def _elements(self, place: MatrixPlace, matrix: AdapterMatrix) -> npt.NDArray[np.int64]:
        code = place.parameter.code
        if matrix.code != code:
            raise UserError(
                f"an adapter of {matrix.code} does not fit {place.parameter.name}, which is {code}"
            )
        return matrix.codes.astype(np.int64) if code == "fp8" else matrix.weights

    def _codes(self, place: MatrixPlace, elements: npt.NDArray[np.int64]) -> LoadStream:
        """The words of the first rows and columns of a matrix."""
        rows: int
        columns: int
        rows, columns = elements.shape
        machine, units = self.machine, self.load_units
        words = -(-columns // machine.attention_lanes)
        blocks, groups = -(-rows // machine.h_units), machine.h_units // units
        bits = self.word_rows(elements, blocks)[:, :, :words]
        bits = bits.reshape(blocks, groups, units, words, self.parts, -1)
        # A part of a word for one H-Unit, or words for several.
        bits = bits.transpose(0, 3, 1, 4, 2, 5).reshape(blocks, words, groups, self.parts, -1)
        used = np.arange(blocks * groups).reshape(blocks, 1, groups) * units < rows
        used = np.broadcast_to(used, (blocks, words, groups)).reshape(-1)
        index = place.word + np.arange(blocks)[:, None] * place.words + np.arange(words)
        index = index[..., None] * groups + np.arange(groups) + place.unit // units
        index = index.reshape(-1)[used][:, None] * self.parts + np.arange(self.parts)
        bits = bits.reshape(blocks * words * groups, self.parts, -1)[used]
        return self._stream(CODES, index.reshape(-1), bits.reshape(index.size, -1))

    def _scales(self, place: MatrixPlace, scales: npt.NDArray[np.int16]) -> LoadStream:
        machine, units = self.machine, self.scale_units
        # Of a group of H-Units the first may not be the matrix's.
        before, rows = place.unit % units, len(scales)
        blocks, groups = -(-(before + rows) // machine.h_units), machine.h_units // units
        full = np.zeros(blocks * machine.h_units, np.int64)
        full[before : before + rows] = scales
        bits = _to_bits(full, SCALE_BITS).reshape(blocks * groups, units * SCALE_BITS)
        used = -(-(before + rows) // units)
        index = (place.scale * groups) + np.arange(used) + place.unit // units
        return self._stream(SCALES, index, bits[:used])

    def _stream(self, kind: int, index: npt.NDArray[np.int64], bits: Bits) -> LoadStream:
        full = np.zeros((len(bits), self._load_bits), np.uint8)
        full[:, : bits.shape[1]] = bits
        return LoadStream(self._address(kind, index), _packed(full))

    # Contents

    def word_rows(self, elements: npt.NDArray[np.int64], blocks: int) -> Bits:
        """Elements [rows, columns] as words of the H-Units: bits [blocks, units, words, bits]."""
        rows, columns = elements.shape
        machine, lanes = self.machine, self.machine.attention_lanes
        words = -(-columns // lanes)
        full = np.zeros((blocks * machine.h_units, words * lanes), np.int64)
        full[:rows, :columns] = elements
        bits = _to_bits(full, self.element_bits)
        return bits.reshape(blocks, machine.h_units, words, self.word_bits)

    def contents(
        self, images: MatricesLike
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint16]]]:
        """What the H-Units hold of the graph's own adapters.

        Yields:
            The number of the H-Unit, its words as bytes [depth, bytes], its scales [depth].
        """
        units = self.machine.h_units
        words = np.zeros((units, self.depth, -(-self.word_bits // 8)), np.uint8)
        scales = np.zeros((units, self.scale_depth), np.uint16)
        for name, place in self.places.items():
            if place.parameter.is_slot:
                continue
            matrix = images.matrix(name)
            q = matrix.unpack().astype(np.int64)
            of_group = np.arange(matrix.columns) // matrix.group
            q -= matrix.zeros().take(of_group, axis=1)
            blocks = -(-matrix.rows // units)
            rows = self.word_rows(q, blocks)
            packed = np.packbits(rows, axis=-1, bitorder="little")
            last = place.word + blocks * place.words
            own, count = slice(place.unit, place.unit + place.shape.units), place.shape.units
            packed = packed.transpose(1, 0, 2, 3).reshape(units, blocks * place.words, -1)
            words[own, place.word : last] = packed[:count]
            full = np.zeros((blocks * units, place.groups), np.int16)
            full[: matrix.rows] = matrix.scales
            full = full.reshape(blocks, units, place.groups).transpose(1, 0, 2)
            last = place.scale + blocks * place.groups
            scales[own, place.scale : last] = full.reshape(units, -1).view(np.uint16)[:count]
        for unit in range(units):
            yield unit, words[unit], scales[unit]


def products(program: Program) -> list[str]:
    """Names of the adapters that instructions multiply with, in the program's order."""
    names = [
        instance.get(one.does.weights, one.does.weights)
        for block in program.blocks
        for instance in block.instances
        for one in block.instructions
        if isinstance(one.does, AdapterMatvec)
    ]
    return list(dict.fromkeys(names))


def places_of(program: Program) -> AdapterPlaces | None:
    """Where the adapters of a program lie; None when there is none.

    Raises:
        UserError: a size that the hardware does not take.
    """
    names = products(program)
    if not names:
        return None
    refuse(place_refusals(program))
    refuse(place_refusals(program))
    residents, machine = program.residents, program.machine
    places: dict[str, MatrixPlace] = {}
    for name in names:
        parameter = program.parameters[name]
        shape = parameter.shape(machine)
        places[name] = MatrixPlace(parameter, shape, parameter.row, parameter.scale)
    sites = tuple(program.sites.values())
    words, scales = program.memories[ADAPTERS], program.memories[ADAPTER_SCALES]
    return AdapterPlaces(
        machine,
        places,
        sites,
        words.bits,
        words.rows,
        scales.rows,
        residents,
        words.resident,
        scales.resident,
    )


def place_refusals(program: Program) -> list[UserError]:
    """Why the H-Units cannot hold adapters of these kinds, or not load them; whether they fit is
    not asked."""
    machine, lanes = program.machine, program.machine.attention_lanes
    found: list[UserError] = []
    for name in products(program):
        parameter = program.parameters[name]
        if parameter.code.startswith("fixed"):
            found.append(
                UserError(f"the hardware has no adapters of {parameter.code}: {parameter.key}")
            )
        if parameter.group and parameter.group < parameter.dims[1] and parameter.group % lanes:
            found.append(
                UserError(
                    f"the adapter {parameter.key} has groups of {parameter.group}; the hardware "
                    f"needs a multiple of h_unit.attention_lanes={lanes}"
                )
            )
    if not program.sites:
        return found
    rank_bits = max(site.rank for site in program.sites.values()).bit_length()
    least = max(SCALE_BITS, rank_bits + 2 * EXPONENT_BITS)
    if 8 * machine.load_bytes < least or machine.load_bytes & (machine.load_bytes - 1):
        found.append(
            UserError(
                f"h_unit.load_bytes is {machine.load_bytes}; the hardware needs a power of two and "
                f"{least} bits at least, the registers of a site"
            )
        )
    return found


def _to_bits(values: npt.NDArray[np.int64], bits: int) -> Bits:
    """Numbers [...] in two's complement, low bits first: [..., bits]."""
    return ((values[..., None] >> np.arange(bits)) & 1).astype(np.uint8)


def _packed(bits: Bits) -> npt.NDArray[np.uint8]:
    return np.packbits(bits, axis=-1, bitorder="little")
