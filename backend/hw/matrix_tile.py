"""A tile of the matrix array: L-Units, ROM fused with multipliers, and the tree over them.

Both modules are the same for every tile and L-Unit of an array; what differs lies in the ROMs.
"""

from __future__ import annotations

from intaglio.backend.hw.matrix_plan import MatrixConfig, log2
from intaglio.backend.hw.signal import (
    Design,
    ModuleBuilder,
    Signal,
    choose,
    mux,
    pipelined,
    repeat,
)
from intaglio.dialects.fabric import SCALE_BITS

TREE_LEVELS = 4
"""Levels of the adder tree between two places for a register."""


def only(enable: Signal, value: Signal) -> Signal:
    """The value where `enable` is 1, else 0: an AND for each wire."""
    masked = value.as_unsigned() & repeat(enable, value.width)
    return masked.truncate(value.width, value.signed)


def index_bits(count: int) -> int:
    """Bits of a number below `count`; 0 if there is only one."""
    return (count - 1).bit_length()


def index_input(m: ModuleBuilder, name: str, count: int) -> Signal:
    """An input for a number below `count`: none when there is nothing to choose."""
    return m.input(name, index_bits(count)) if count > 1 else m.constant(0)


def build_l_unit(design: Design, config: MatrixConfig) -> ModuleBuilder:
    """The module `l_unit`: a bank of ROM and the multipliers at its side.

    A word of `lanes` codes (of one bit plane) is multiplied with `lanes` parts of activations::

        total = sum(code[i] * x[i]) - (first ? zero * xsum : 0)
        sum  += total * scale << (plane_bits * plane + pass_bits * part)

    where `zero` is the group's zero point or the matrix's, `xsum` the sum of the parts, and `first`
    marks the code's lowest plane, so that the zero point is subtracted once for each part. The sum
    is modulo 2 to the accumulator's width: exact in the end, whatever the order.

    Ports (cycle 0 is that of the addresses; r is the ROM's latency `rom_read`, m `mac_pipeline`):

    - 0: `code_address`, `scale_address`
    - r: `x` (lane i at bits ``i * part_bits``), `xsum`, `first`; `zero` does not change
    - r: out `word`, `scale`: what the ROMs gave
    - m - 1: `plane`, `part` (which shift), `accumulate`, `clear` (begin with 0)
    - m: the sum has this word; with `capture` in this cycle it is on `result` from the next one on
    """
    machine, fields = config.machine, dict(config.fields)
    m = design.module("l_unit", "A bank of ROM fused with its multipliers.")
    code_address = m.input("code_address", max(1, index_bits(config.code_words)))
    scale_address = m.input("scale_address", max(1, index_bits(config.scale_words)))
    lanes, bits, plane_bits = machine.lanes, config.part_bits, machine.plane_bits
    x_bus = m.input("x", lanes * bits)

    word = m.rom("codes", config.code_words, config.word_bits, code_address, machine.rom_read)
    group = m.rom("scales", config.scale_words, config.scale_bits, scale_address, machine.rom_read)
    if config.table_planes:
        m.output("word", word)
        m.output("scale", group)
    codes = [word[i * plane_bits : (i + 1) * plane_bits] for i in range(lanes)]
    x = [x_bus[i * bits : (i + 1) * bits].as_signed() for i in range(lanes)]
    offset = group[SCALE_BITS:] if config.zero_bits else m.constant(0)
    if "zero" in fields:
        # One of the two is 0.
        offset = offset | m.input("zero", fields["zero"])
    xsum = m.constant(0)
    if config.zero_bits or "zero" in fields:
        offset = only(m.input("first", 1), offset)
        xsum = m.input("xsum", bits + log2(lanes), signed=True)

    def scaled_total(*inputs: Signal) -> Signal:
        parts = [(code * a).cut() for code, a in zip(inputs[:lanes], inputs[lanes:-3], strict=True)]
        mantissa, zero, sum_of_x = inputs[-3:]
        zeros = (zero * sum_of_x).cut()
        levels = log2(lanes)
        for level in range(levels):
            parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
            if (level + 1) % TREE_LEVELS == 0 and level + 1 < levels:
                parts = [part.cut() for part in parts]
        return ((parts[0] - zeros).cut() * mantissa).cut()

    depth = machine.mac_pipeline - machine.rom_read - 1
    inputs = [*codes, *x, group[:SCALE_BITS].as_signed(), offset, xsum]
    scaled = pipelined(scaled_total, inputs, depth).outputs[0].named("scaled")

    if config.planes > 1:
        plane = index_input(m, "plane", config.planes)
        scaled = choose(plane, [scaled << plane_bits * p for p in range(config.planes)])
    if config.passes > 1:
        part = index_input(m, "part", config.passes)
        scaled = choose(part, [scaled << config.pass_bits * a for a in range(config.passes)])
    accumulate, clear, capture = (m.input(n, 1) for n in ("accumulate", "clear", "capture"))
    accumulator = m.register("accumulator", config.accumulator_bits, signed=True, reset=None)
    total = mux(clear, m.constant(0), accumulator) + scaled
    accumulator.drive(total.truncate(config.accumulator_bits, True), accumulate)
    m.output("result", accumulator.delay(enable=capture, name="captured"))
    return m


def build_matrix_unit(design: Design, config: MatrixConfig) -> ModuleBuilder:
    """The module `matrix_unit`: one tile, its L-Units and the adder tree over them.

    Slice s of a row is on L-Unit ``slot * split + s``; the tree adds the L-Units of each slot. The
    tile delivers `tile_lanes` results at a time, and for `embed` one L-Unit's words.

    Ports besides those of every L-Unit (of `x`, `xsum` and `scale_address` there is one for each
    port of the memory of quantised vectors):

    - `split` (a number in `MatrixConfig.splits`, does not change), `beat` (which of the tile's
      groups of results) and `deliver`: one cycle later the results are on `result0`, ...; else 0
    - `unit` and `fetch`, in the cycle in which the ROMs give their words: one cycle later those of
      the L-Unit are on `word` and `scale`; else 0
    """
    machine, splits = config.machine, config.splits
    unit_module = build_l_unit(design, config)
    unit_module.finish()
    m = design.module("matrix_unit", "A tile: L-Units and the adder tree over them.")
    given: list[dict[str, Signal]] = [{} for _ in range(config.ports)]
    for port in unit_module.ports:
        if port.output or port.clock:
            continue
        if port.name in REPLICATED:
            for number, inputs in enumerate(given):
                inputs[port.name] = m.input(f"{port.name}{number}", port.width, port.signed)
        else:
            signal = m.input(port.name, port.width, port.signed)
            for inputs in given:
                inputs[port.name] = signal
    units = [
        m.instance(f"l_unit{u}", unit_module, given[u % config.ports])
        for u in range(machine.l_units)
    ]

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
        for name in ("word", "scale"):
            value = only(fetch, choose(unit, [one[name] for one in units]))
            m.output(name, value.delay(name=f"fetched_{name}"))
    return m


REPLICATED = ("x", "xsum", "scale_address")
"""Inputs of L-Units that depend on the slice of a row that they hold."""
