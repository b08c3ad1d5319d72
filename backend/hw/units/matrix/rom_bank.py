"""ROM as logic: a truth table for each bank, and what makes banks the ROM of an L-Unit.

A bank is a module of its own, ``tile<t>_l_unit<u>_bank<b>``: an address of `bank_words` words in,
`bank_bits` bits out, no clock. Its body comes from a `BankBody`: `table_body` writes the table as
it is and leaves the gates to synthesis, `rom_network.shared_body` writes the compiler's own gates.
The ROM module of an L-Unit, ``tile<t>_rom<u>``, sets banks side by side where a word is wider than
one, and one after the other by the upper address bits; bank ``row * columns + column`` holds the
words from ``row * bank_words`` on, and of them the bits from ``column * bank_bits`` on. It switches
the word of a bank that is off to 0, as isolation cells do, and registers the word. Banks that hold
nothing, or nothing but zeros, do not exist.

Scales lie in tables of the same depth, ``tile<t>_l_unit<u>_scales<r>``, that are always on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from xdsl.dialects import hw
from xdsl.dialects.builtin import IntegerType

from intaglio.backend.hw.units.matrix.plan import BankRow, LUnitImage, MatrixConfig
from intaglio.backend.hw.units.matrix.rom_network import shared_body
from intaglio.backend.hw.units.matrix.tile import only
from intaglio.backend.hw.wires.circt_ops import AggregateConstantOp, Words, WordsAttr
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Signal, cat, mux, tree
from intaglio.backend.hw.wires.widths import choice_bits, index_bits, log2

BankBody: TypeAlias = Callable[[ModuleBuilder, Signal, Sequence[int], int], Signal]
"""Makes the logic of a bank: of the module, the address, the words from address 0 on (what lies
beyond is 0) and their bits, the word."""


def table_body(m: ModuleBuilder, address: Signal, words: Sequence[int], bits: int) -> Signal:
    """A bank as a constant array: a case statement in SystemVerilog."""
    if not any(words):
        return m.constant(0, bits)
    size = 1 << choice_bits(len(words))
    if size == 1:
        return only(address == 0, m.constant(words[0], bits))
    full = (*words, *[0] * (size - len(words)))
    type_ = hw.ArrayType(IntegerType(bits), size)
    m.insert(table := AggregateConstantOp(WordsAttr(Words(full, bits)), type_))
    get = hw.ArrayGetOp(table.result, address.truncate(log2(size)).value)
    m.insert(get)
    word = Signal(m, get.result, bits, False)
    inside = address < size
    return word if inside.constant else only(inside, word)


@dataclass(frozen=True)
class LogicROM:
    """Where the logic of ROM banks comes from.

    Attributes:
        images: the contents of the ROMs of a tile (`plan.tile_images`).
        written: the banks whose logic is written, as (tile, L-Unit, bank); None: all. Others are
            external modules. Scales are written for an L-Unit of which a bank is.
        body: makes the logic of a bank, and of scales.
        shared: the banks that are written as the compiler's own gates instead; None: all.
    """

    images: Callable[[int], Iterable[LUnitImage]]
    written: Collection[tuple[int, int, int]] | None = None
    body: BankBody = table_body
    shared: Collection[tuple[int, int, int]] | None = ()

    def units(self, tile: int) -> Mapping[int, LUnitImage]:
        """The contents of the L-Units of a tile of which something is written."""
        if self.written is None:
            return {image.l_unit: image for image in self.images(tile)}
        wanted = {unit for other, unit, _ in self.written if other == tile}
        if not wanted:
            return {}
        return {one.l_unit: one for one in self.images(tile) if one.l_unit in wanted}

    def writes(self, tile: int, unit: int, bank: int) -> bool:
        """Whether the logic of a bank is written."""
        return self.written is None or (tile, unit, bank) in self.written

    def body_of(self, tile: int, unit: int, bank: int) -> BankBody:
        """What makes the logic of a bank."""
        if self.shared is None or (tile, unit, bank) in self.shared:
            return shared_body
        return self.body


def bank_columns(config: MatrixConfig) -> int:
    """Banks side by side in an L-Unit."""
    return -(-config.word_bits // config.machine.bank_bits)


def bank_name(tile: int, unit: int, bank: int) -> str:
    """The module of a bank."""
    return f"tile{tile}_l_unit{unit}_bank{bank}"


def bank_width(config: MatrixConfig, bank: int) -> int:
    """Bits of a bank's words; the last column may be narrower than the others."""
    low = bank % bank_columns(config) * config.machine.bank_bits
    return min(config.machine.bank_bits, config.word_bits - low)


def bank_words(
    config: MatrixConfig, tile: int, bank: int, codes: npt.NDArray[np.unsignedinteger]
) -> list[int]:
    """The truth table of a bank: its words from address 0 on, up to the last that is used.

    Args:
        config: of the array.
        tile: of the bank.
        bank: its number.
        codes: of its L-Unit (`LUnitImage.codes`).
    """
    row, column = divmod(bank, bank_columns(config))
    place = config.banks[tile][row]
    first = row * config.machine.bank_words
    part = codes[first : first + (place.words if place else 0)]
    if part.ndim == 1:
        words = part.tolist()
    else:
        words = [int.from_bytes(word.tobytes(), "little") for word in part]
    low = column * config.machine.bank_bits
    mask = (1 << bank_width(config, bank)) - 1
    return [(word >> low) & mask for word in words]


class _Table(NamedTuple):
    """A truth table in a row of them: the names of its module and instance, its words and body."""

    name: str
    instance: str
    bits: int
    words: Sequence[int] | None
    """None: the module is external."""
    body: BankBody = table_body

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return self.words is not None and not any(self.words)


class _Row(NamedTuple):
    """Tables side by side."""

    number: int
    domain: int | None
    tables: Sequence[_Table]


def build_unit_rom(
    design: Design,
    config: MatrixConfig,
    tile: int,
    unit: int,
    source: LogicROM | None,
    image: LUnitImage | None,
) -> ModuleBuilder | None:
    """The ROM module of an L-Unit; None if there is nothing in it.

    Ports: `word_address`, `scale_address`, `power` (a bit for each domain) and `read`; `rom_read`
    cycles after a cycle with `read`, `word` and `scale` are what lies there. Without they may stay.
    What is 0 at all addresses has no ports.

    Args:
        design: gets the module and those of its banks.
        config: of the array.
        tile: of the L-Unit.
        unit: its number.
        source: what makes the banks' logic; None: all are external.
        image: the L-Unit's contents, if one of its banks is written.
    """
    codes = _code_rows(config, tile, unit, source, image)
    scales = _scale_rows(config, tile, unit, source, image) if config.grouped else []
    if not codes and not scales:
        return None
    m = design.module(f"tile{tile}_rom{unit}", f"The ROM of L-Unit {unit} of tile {tile}.")
    read = m.input("read", 1)
    later = config.machine.rom_read - 1
    # Of several cycles the first is the address's.
    first = min(1, later)

    def given(name: str, width: int) -> Signal:
        return m.input(name, width).delay(first, enable=read)

    power = None
    if any(row.domain is not None for row in codes):
        power = given("power", len(config.domains))
    enable = read.delay(first, reset=0)
    for name, rows, words in (
        ("word", codes, config.code_words),
        ("scale", scales, config.scale_words),
    ):
        if rows:
            address = given(f"{name}_address", index_bits(words))
            word = _word(m, rows, address, power, config.machine.bank_words)
            m.output(name, word.delay(enable=enable, name=f"{name}_read").delay(later - first))
    return m


def _code_rows(
    config: MatrixConfig, tile: int, unit: int, source: LogicROM | None, image: LUnitImage | None
) -> list[_Row]:
    """The rows of banks in which anything is."""
    found: list[_Row] = []
    columns = bank_columns(config)
    for row, place in enumerate(config.banks[tile]):
        if place is None:
            continue
        tables: list[_Table] = []
        for bank in range(row * columns, (row + 1) * columns):
            name, width = bank_name(tile, unit, bank), bank_width(config, bank)
            table = _Table(name, f"bank{bank}", width, None)
            if source is not None and image is not None and source.writes(tile, unit, bank):
                words = bank_words(config, tile, bank, image.codes)
                table = table._replace(words=words, body=source.body_of(tile, unit, bank))
            tables.append(table)
        found.append(_Row(row, place.domain, tables))
    return [row for row in found if not all(table.empty for table in row.tables)]


def _scale_rows(
    config: MatrixConfig, tile: int, unit: int, source: LogicROM | None, image: LUnitImage | None
) -> list[_Row]:
    """The tables of scales in which anything is."""
    size = config.machine.bank_words
    body = table_body if source is None else source.body
    found: list[_Row] = []
    for row in range(-(-config.scale_words // size)):
        words = None if image is None else image.scales[row * size : (row + 1) * size].tolist()
        name = f"tile{tile}_l_unit{unit}_scales{row}"
        found.append(
            _Row(row, None, [_Table(name, f"scales{row}", config.scale_bits, words, body)])
        )
    return [row for row in found if not row.tables[0].empty]


def _word(
    m: ModuleBuilder,
    rows: Sequence[_Row],
    address: Signal,
    power: Signal | None,
    size: int,
) -> Signal:
    """The word at an address of tables in rows of `size` words; 0 where a row is off."""
    place = address.truncate(max(1, log2(size)))
    words: list[Signal] = []
    for row in rows:
        here = (address >> log2(size)) == row.number
        if power is not None and row.domain is not None:
            here = here & power[row.domain]
        parts: list[Signal] = []
        for table in row.tables:
            if table.empty:
                parts.append(m.constant(0, table.bits))
                continue
            module = _module(m.design, table, place.width)
            parts.append(m.instance(table.instance, module, {"address": place})["word"])
        words.append(only(here, cat(*parts[::-1])))
    return tree(words, lambda a, b: a | b)


def _module(design: Design, table: _Table, address_bits: int) -> ModuleBuilder:
    """The module of a table: its logic, or its ports alone."""
    if table.words is None:
        return design.external(table.name, {"address": address_bits}, {"word": table.bits})
    m = design.module(table.name)
    address = m.input("address", address_bits)
    m.output("word", table.body(m, address, table.words, table.bits), table.bits)
    return m


def powered(address: Signal, rows: Sequence[BankRow | None], power: Signal, size: int) -> Signal:
    """Whether the bank at an address is on, of a ROM that is one memory.

    Args:
        address: of a code word.
        rows: of a tile's banks.
        power: a bit for each domain.
        size: words of a bank.
    """
    on = power.module.constant(1)
    domain: int | None = None
    for row, place in enumerate(rows):
        # Nobody reads where nothing lies.
        if place is None or (row and place.domain == domain):
            continue
        domain = place.domain
        here = power.module.constant(1) if domain is None else power[domain]
        on = mux(address >= row * size, here, on)
    return on
