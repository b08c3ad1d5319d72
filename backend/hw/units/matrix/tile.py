"""A tile of the matrix array: L-Units, ROM fused with multipliers, and the tree over them.

Both modules are the same for every tile and L-Unit of an array; what differs lies in the ROMs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from intaglio.backend.hw.units.matrix.plan import MatrixConfig
from intaglio.backend.hw.wires.reader import Wires
from intaglio.backend.hw.wires.signal import (
    RESET,
    Design,
    ModuleBuilder,
    Signal,
    choose,
    mux,
    pipelined,
    repeat,
)
from intaglio.backend.hw.wires.widths import choice_bits, index_bits, log2
from intaglio.dialects.formats import EXPONENTS
from intaglio.dialects.formulas.blocks import EXPONENT_BITS, Block, integer
from intaglio.dialects.memories import STEP_BITS
from intaglio.dialects.tiling import SCALE_BITS

TREE_LEVELS = 4
"""Levels of the adder tree between two places for a register."""


def only(enable: Signal, value: Signal) -> Signal:
    """The value where `enable` is 1, else 0: an AND for each wire."""
    masked = value.as_unsigned() & repeat(enable, value.width)
    return masked.truncate(value.width, value.signed)


def index_input(m: ModuleBuilder, name: str, count: int) -> Signal:
    """An input for a number below `count`: none when there is nothing to choose."""
    return m.input(name, choice_bits(count)) if count > 1 else m.constant(0)


def ternary(digit: Signal, x: Signal) -> Signal:
    """A number by what a ternary cell holds: added (01), subtracted (10) or skipped (00)."""
    return mux(digit[1], -x, only(digit[0], x))


def build_l_unit(design: Design, config: MatrixConfig) -> ModuleBuilder:
    """The module `l_unit`: the multipliers at the side of a bank of ROM, and the bank.

    A word of `lanes` codes (of one bit plane) is multiplied with `lanes` parts of activations::

        total = sum(code[i] * x[i]) - (first ? zero * xsum : 0)
        sum  += (total * scale - (first ? offset * xsum : 0))
                * plane_weight[plane] << pass_bits * part
                (times the step of the word's block, where it has one)

    where `zero` is the group's zero point or the matrix's, `offset` the group's where its zero
    point is no code, `xsum` the sum of the parts, and `first` marks the code's lowest plane (which
    counts once), so that both are subtracted once for each part. Ternary cells have no zero
    point; an array without group scales has no product with them, one in which no group has an
    offset none with those. The sum is modulo 2 to the accumulator's width: exact in the end,
    whatever the order.

    A word of several blocks is brought to one unit before they are added: products are added
    within each block, its sum is multiplied by its step, and `xsum` is of the integers that the
    activations stand for. So there is one product with the scale, of wider numbers.

    Ports (cycle 0 is that of the addresses; r is the ROM's latency `rom_read`, m `mac_pipeline`):

    - 0: `code_address`, `scale_address`
    - r: `steps` and `blocked`, where a word has several blocks (see m - 2)
    - r: `valid`: the word is multiplied; registers load only then. `powered`: 0 when the bank is
      off, which reads as 0. `x` (lane i at bits ``i * part_bits``), `xsum`, `first`; `zero`,
      `single` and `mantissa` (in place of a group's scale) do not change
    - r: out `word`, `scale`: what the ROMs gave. Where the ROM is logic they are inputs `rom_word`
      and `rom_scale` instead of the addresses: each L-Unit has a ROM module of its own.
    - m - 2: `steps`: exponent and step of the word's block; `blocked`: 0 where it has none. Exist
      where inputs have exponents of blocks. Of several blocks the first one is at the low bits
    - m - 1: `plane`, `part` (which shift), `clear` (begin with 0), `sum` (which accumulator; where
      there are several)
    - m: the sum has this word; with `capture` in this cycle it is on `result` from the next one on
    """
    machine, fields = config.machine, config.fields
    comment = "The multipliers of a bank of ROM."
    m = design.module("l_unit", comment if config.logic else "ROM fused with its multipliers.")
    lanes, bits, plane_bits = machine.lanes, config.part_bits, machine.plane_bits
    word, group = _rom(m, config)
    x_bus = m.input("x", lanes * bits)
    codes = [word[i * plane_bits : (i + 1) * plane_bits] for i in range(lanes)]
    x = [x_bus[i * bits : (i + 1) * bits].as_signed() for i in range(lanes)]
    zero = offset = xsum = m.constant(0)
    single = m.input("single", 1) if "single" in fields else m.constant(0)
    if has_sums(config):
        first = m.input("first", 1)
        if config.zero_bits:
            zero = mux(single, 0, group[SCALE_BITS : config.offset_place])
        if "zero" in fields:
            # One of the two is 0.
            zero = zero | m.input("zero", fields["zero"])
        zero = only(first, zero)
        if config.offset_bits:
            offset = only(first & ~single, group[config.offset_place :].as_signed())
        xsum = m.input("xsum", config.sum_bits, signed=True)
    mantissa = group[:SCALE_BITS].as_signed() if config.grouped else m.constant(1)
    if "single" in fields:
        mantissa = mux(single, m.input("mantissa", SCALE_BITS, True), mantissa)

    several: list[Signal] = []
    if config.word_blocks > 1:
        several = [m.input("steps", config.word_blocks * STEP_BITS), m.constant(1)]
        if config.unblocked:
            several[1] = m.input("blocked", 1)

    # The step of a whole word is a stage behind the product with the scale.
    behind = config.steps > 0 and not several
    depth = machine.mac_pipeline - machine.rom_read - 1 - behind
    inputs = [*codes, *x, mantissa, zero, offset, xsum, *several]
    (scaled,), accumulate, _ = pipelined(
        partial(_scaled_total, m, config), inputs, depth, m.input("valid", 1)
    )
    assert accumulate is not None
    scaled = scaled.named("scaled")
    if behind:
        steps = m.input("steps", STEP_BITS)
        blocked = m.input("blocked", 1) if config.unblocked else m.constant(1)
        (moved,) = aligned(m, [scaled], (steps, blocked), config)
        scaled = moved.delay(enable=accumulate, name="aligned")
        accumulate = accumulate.delay(reset=0, name="accumulates")

    if config.planes > 1:
        plane = index_input(m, "plane", config.planes)
        scaled = choose(plane, [_times(scaled, weight) for weight in config.plane_weights])
    if config.passes > 1:
        part = index_input(m, "part", config.passes)
        scaled = choose(part, [scaled << config.pass_bits * a for a in range(config.passes)])
    clear, capture = m.input("clear", 1), m.input("capture", 1)
    width, count = config.accumulator_bits, config.sums + 1
    number = index_input(m, "sum", count)
    sums = [
        m.register(f"accumulator{n}" if n else "accumulator", width, signed=True, reset=None)
        for n in range(count)
    ]
    total = (mux(clear, m.constant(0), choose(number, sums)) + scaled).truncate(width, True)
    for n, one in enumerate(sums):
        one.drive(total, accumulate & (number == n) if config.sums else accumulate)
    taken = choose(number.delay(), sums) if config.sums else sums[0]
    m.output("result", taken.delay(enable=capture, name="captured"))
    return m


def _scaled_total(m: ModuleBuilder, config: MatrixConfig, *inputs: Signal) -> Signal:
    """A word's sum of products, with its scale: of codes, as many activations, the scale, zero
    point, offset, the sum of activations, and steps of several blocks."""
    lanes = config.machine.lanes
    times = ternary if config.ternary else Signal.__mul__
    pairs = zip(inputs[:lanes], inputs[lanes : 2 * lanes], strict=True)
    parts = [times(code, a).cut() for code, a in pairs]
    mantissa, zero, offset, sum_of_x, *several = inputs[2 * lanes :]
    zeros = (zero * sum_of_x).cut()
    offsets = (offset * sum_of_x).cut()
    levels = log2(lanes)
    for level in range(levels):
        if several and len(parts) == config.word_blocks:
            parts = [part.cut() for part in aligned(m, parts, several, config)]
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
        if (level + 1) % TREE_LEVELS == 0 and level + 1 < levels:
            parts = [part.cut() for part in parts]
    return ((parts[0] - zeros).cut() * mantissa - offsets).cut()


def aligned(
    m: ModuleBuilder, sums: Sequence[Signal], steps: Sequence[Signal], config: MatrixConfig
) -> list[Signal]:
    """Sums of blocks' codes in the unit of all blocks: `formulas.blocks.integer`.

    Args:
        m: what the signals belong to.
        sums: of a word's blocks.
        steps: `STEP_BITS` of each, the first at the low bits; 0 where codes have no exponents.
        config: of the array.
    """
    (words, blocked), found = steps, list[Signal]()
    for number, one in enumerate(sums):
        step = words[number * STEP_BITS : (number + 1) * STEP_BITS]
        exponent, half = step[:EXPONENT_BITS].as_unsigned(), step[EXPONENT_BITS:].as_unsigned()
        moved = integer(Wires(m), one, Block(exponent, half), config.steps)
        most = config.steps << EXPONENTS - 1
        moved = moved.assume(min(0, one.low) * most, max(0, one.high) * most)
        found.append(mux(blocked, moved, one) if config.unblocked else moved)
    return found


def _times(x: Signal, weight: int) -> Signal:
    """A number times a power of 2, or of 3 by shifts and sums."""
    if weight & (weight - 1) == 0:
        return x << weight.bit_length() - 1
    if weight % 9 == 0:
        ninth = _times(x, weight // 9)
        return (ninth << 3) + ninth
    third = _times(x, weight // 3)
    return (third << 1) + third


def has_sums(config: MatrixConfig) -> bool:
    """Whether sums of activations are needed: for zero points that are not part of what a cell
    holds, or offsets."""
    return bool(config.zero_bits or config.offset_bits) or "zero" in config.fields


def _rom(m: ModuleBuilder, config: MatrixConfig) -> tuple[Signal, Signal]:
    """Code word and scale word of an L-Unit, `rom_read` cycles after their addresses."""
    latency = config.machine.rom_read
    if config.logic:
        word = m.input("rom_word", config.word_bits)
        return word, m.input("rom_scale", config.scale_bits) if config.grouped else m.constant(0)
    address = m.input("code_address", index_bits(config.code_words))
    word = m.rom("codes", config.code_words, config.word_bits, address, latency)
    if config.domains:
        word = only(m.input("powered", 1), word)
    scale = m.constant(0)
    if config.grouped:
        address = m.input("scale_address", index_bits(config.scale_words))
        scale = m.rom("scales", config.scale_words, config.scale_bits, address, latency)
    if config.table_planes:
        m.output("word", word)
        if config.grouped:
            m.output("scale", scale)
    return word, scale


def build_matrix_unit(design: Design, config: MatrixConfig) -> ModuleBuilder:
    """The module `matrix_unit`: one tile, its L-Units and the adder tree over them.

    Slice s of a row is on L-Unit ``slot * split + s``; the tree adds the L-Units of each slot. The
    tile delivers `tile_lanes` results at a time, and for `embed` one L-Unit's words.

    Ports besides those of every L-Unit (of `x`, `xsum`, `scale_address` and `steps` there is one
    for each slice, of `rom_word` and `rom_scale` one for each L-Unit):

    - `split` (a number in `MatrixConfig.splits`, does not change), `beat` (which of the tile's
      groups of results) and `deliver`: one cycle later the results are on `result0`, ...; else 0
    - `unit` and `fetch`, in the cycle in which the ROMs give their words: one cycle later those of
      the L-Unit are on `word` and `scale`; else 0
    """
    machine, splits = config.machine, config.splits
    unit_module = build_l_unit(design, config)
    unit_module.finish()
    m = design.module("matrix_unit", "A tile: L-Units and the adder tree over them.")
    given: list[dict[str, Signal]] = [{} for _ in range(machine.l_units)]
    for port in unit_module.ports:
        if port.output or port.clock or port.name == RESET:
            continue
        copies = 1
        if port.name in REPLICATED:
            copies = config.ports
        elif port.name in OWN:
            copies = machine.l_units
        several = port.name in (*REPLICATED, *OWN)
        signals = [
            m.input(f"{port.name}{n}" if several else port.name, port.width, port.signed)
            for n in range(copies)
        ]
        for number, inputs in enumerate(given):
            inputs[port.name] = signals[number % copies]
    units = [m.instance(f"l_unit{u}", unit_module, given[u]) for u in range(machine.l_units)]

    split = index_input(m, "split", len(splits))
    deliver = m.input("deliver", 1)
    sums = {1: [unit["result"] for unit in units]}
    while (size := max(sums)) < max(splits):
        # The whole is no wider than the widest accumulator, so its parts wrap unharmed.
        sums[2 * size] = [
            (a + b).truncate(config.accumulator_bits, True)
            for a, b in zip(sums[size][::2], sums[size][1::2], strict=True)
        ]
    lanes = config.tile_lanes
    beat = index_input(m, "beat", config.tile_beats)
    for lane in range(lanes):
        options = [choose(beat, sums[s][lane::lanes] or [m.constant(0)]) for s in splits]
        result = only(deliver, choose(split, options).extend(config.accumulator_bits, True))
        m.output(f"result{lane}", result.delay(name=f"delivered{lane}"))
    if config.table_planes:
        fetch, unit = m.input("fetch", 1), index_input(m, "unit", machine.l_units)
        for name, words in _read(units, given, config).items():
            value = only(fetch, choose(unit, words))
            m.output(name, value.delay(name=f"fetched_{name}"))
    return m


def _read(
    units: Sequence[Mapping[str, Signal]],
    given: Sequence[Mapping[str, Signal]],
    config: MatrixConfig,
) -> dict[str, list[Signal]]:
    """What the ROMs of the L-Units gave: words, and scales if there are any."""
    names = ["word", "scale"] if config.grouped else ["word"]
    if config.logic:
        return {name: [inputs[f"rom_{name}"] for inputs in given] for name in names}
    return {name: [unit[name] for unit in units] for name in names}


REPLICATED = ("x", "xsum", "scale_address", "steps")
"""Inputs of L-Units that depend on the slice of a row that they hold."""
OWN = ("rom_word", "rom_scale")
"""Inputs of L-Units that each has for itself."""
