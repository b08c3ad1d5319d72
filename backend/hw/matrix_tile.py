"""A tile of the matrix array: L-Units, ROM fused with multipliers, and the tree over them.

Both modules are the same for every tile and L-Unit of an array; what differs lies in the ROMs.
"""

from __future__ import annotations

from intaglio.backend.hw.matrix_plan import MatrixConfig, log2
from intaglio.backend.hw.signal import Design, ModuleBuilder, Signal, add_all, cat, choose, mux
from intaglio.backend.hw.signal import pipelined, repeat
from intaglio.dialects.fabric import SCALE_BITS

TREE_LEVELS = 4
"""Levels of the adder tree between two registers, where there are so many."""


def gate(enable: Signal, value: Signal) -> Signal:
    """The value where `enable` is 1, else 0: an AND for each wire."""
    masked = value.as_unsigned() & repeat(enable, value.width)
    return masked.truncate(value.width, value.signed)


def _sum(cut: object, parts: list[Signal], kept: list[Signal]) -> tuple[Signal, list[Signal]]:
    """The sum of the parts, with a cut after every `TREE_LEVELS` levels but the last."""
    assert callable(cut)
    level = 0
    while len(parts) > 1:
        if level and level % TREE_LEVELS == 0:
            everything = cut(*parts, *kept)
            parts, kept = list(everything[: len(parts)]), list(everything[len(parts) :])
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts, level = pairs + parts[len(pairs) * 2 :], level + 1
    return parts[0], kept


def build_l_unit(design: Design, config: MatrixConfig) -> ModuleBuilder:
    """The module `l_unit`: a bank of ROM and the multipliers at its side.

    A word of `lanes` codes (of one bit plane) is multiplied with `lanes` parts of activations::

        total = sum(code[i] * x[i]) - (first ? zero * xsum : 0)
        sum  += total * scale << (plane_bits * plane + pass_bits * part)

    where `zero` is the group's zero point or the matrix's, `xsum` the sum of the parts, and
    `first` marks the code's lowest plane, so that the zero point is subtracted once for each part.
    The sum is modulo 2 to the accumulator's width: it is exact in the end, whatever the order.

    Ports (cycle 0 is that of the addresses, r the latency of the ROM, m `mac_pipeline`):

    - 0: `code_address`, `scale_address`
    - r: `x` (lane i at bits ``i * part_bits``), `xsum`, `first`; `zero` at any time stable
    - m - 1: `plane`, `part` (which shift), `accumulate`, `clear` (begin with 0)
    - m: the sum has this word; `capture` one cycle later or in this one makes it `result` one
      cycle after that
    - r: out `word`, `scale`: what the ROMs gave
    """
    machine = config.machine
    m = design.module("l_unit", "A bank of ROM fused with its multipliers.")
    code_address = m.input("code_address", max(1, (config.code_words - 1).bit_length()))
    scale_address = m.input("scale_address", max(1, (config.scale_words - 1).bit_length()))
    lanes, bits, plane_bits = machine.lanes, config.part_bits, machine.plane_bits
    x_bus = m.input("x", lanes * bits)
    xsum = m.input("xsum", bits + log2(lanes), signed=True)
    zero_bits = max(config.zero_bits, dict(config.fields).get("zero", 0))
    first = m.input("first", 1) if zero_bits else None
    zero = m.input("zero", dict(config.fields)["zero"]) if "zero" in dict(config.fields) else None

    word = m.rom("codes", config.code_words, config.word_bits, code_address, machine.rom_read)
    group = m.rom("scales", config.scale_words, config.scale_bits, scale_address, machine.rom_read)
    m.output("word", word)
    m.output("scale", group)

    codes = [word[i * plane_bits : (i + 1) * plane_bits] for i in range(lanes)]
    x = [x_bus[i * bits : (i + 1) * bits].as_signed() for i in range(lanes)]
    mantissa = group[:SCALE_BITS].as_signed()
    offset = m.constant(0)
    if config.zero_bits:
        offset = group[SCALE_BITS:]
    if zero is not None:
        offset = offset | zero
    if first is not None:
        offset = gate(first, offset)

    def product(cut: object, *inputs: Signal) -> Signal:
        assert callable(cut)
        codes, x = inputs[:lanes], inputs[lanes : 2 * lanes]
        mantissa, offset, xsum = inputs[2 * lanes :]
        products = [c * a for c, a in zip(codes, x, strict=True)]
        *products, mantissa, zeros = cut(*products, mantissa, offset * xsum)
        total, (mantissa, zeros) = _sum(cut, products, [mantissa, zeros])
        total, mantissa = cut(total - zeros, mantissa)
        (scaled,) = cut(total * mantissa)
        return scaled

    depth = machine.mac_pipeline - machine.rom_read - 1
    (scaled,) = pipelined(product, [*codes, *x, mantissa, offset, xsum], depth).outputs
    scaled = scaled.named("scaled")

    width = config.accumulator_bits
    if config.planes > 1:
        plane = m.input("plane", log2(config.planes * 2 - 1))
        scaled = choose(plane, [scaled << plane_bits * p for p in range(config.planes)])
    if config.passes > 1:
        part = m.input("part", log2(config.passes * 2 - 1))
        scaled = choose(part, [scaled << config.pass_bits * a for a in range(config.passes)])
    accumulate, clear = m.input("accumulate", 1), m.input("clear", 1)
    accumulator = m.register("accumulator", width, signed=True, reset=None)
    before = mux(clear, m.constant(0, width), accumulator)
    accumulator.drive((before + scaled).truncate(width, True), accumulate)
    capture = m.input("capture", 1)
    m.output("result", accumulator.delay(enable=capture, name="captured"))
    return m


def build_matrix_unit(design: Design, config: MatrixConfig) -> ModuleBuilder:
    """The module `matrix_unit`: one tile, its L-Units and the adder tree over them.

    Slice s of a row is on L-Unit ``slot * split + s``; the tree adds the L-Units of each slot. It
    delivers `tile_lanes` results at a time, and for `embed` one L-Unit's words.

    Ports besides those that go to every L-Unit (there are `x`, `xsum` and `scale_address` for each
    port of the memory of quantised vectors):

    - `split` (number in `MatrixConfig.splits`, stable), `beat` (which of the tile's groups of
      results), `deliver`: one cycle later the results are on `result0`, ..., else 0
    - `unit`, `fetch`: in the cycle in which the ROMs give their words; one cycle later those of
      the L-Unit are on `word` and `scale`, else 0
    """
    machine, splits = config.machine, config.splits
    unit_module = design.shared("l_unit", lambda _: None) if "l_unit" in design.modules else None
    unit_module = unit_module or build_l_unit(design, config)
    m = design.module("matrix_unit", "A tile: L-Units and the adder tree over them.")
    ports = [p for p in unit_module.ports if not p.output and p.name not in ("clk", "rst")]
    replicated = {"x", "xsum", "scale_address"}
    given: list[dict[str, Signal]] = [{} for _ in range(config.ports)]
    for port in ports:
        if port.name in replicated:
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

    split = m.input("split", log2(len(splits) * 2 - 1)) if len(splits) > 1 else m.constant(0)
    deliver = m.input("deliver", 1)
    sums = {1: [unit["result"] for unit in units]}
    for size in (1 << i for i in range(1, log2(machine.l_units) + 1)):
        if size <= max(splits):
            pairs = sums[size // 2]
            sums[size] = [
                # The whole is no wider than the widest accumulator, so its parts wrap unharmed.
                (a + b).truncate(config.accumulator_bits, True)
                for a, b in zip(pairs[::2], pairs[1::2], strict=True)
            ]
    lanes = config.tile_lanes
    beats = max(1, machine.l_units // min(splits) // lanes)
    beat = m.input("beat", log2(beats)) if beats > 1 else m.constant(0)
    for lane in range(lanes):
        options = [choose(beat, sums[s][lane::lanes] or [m.constant(0)]) for s in splits]
        m.output(f"result{lane}", gate(deliver, choose(split, options)).delay(name=f"result{lane}"))

    if config.table_planes:
        fetch = m.input("fetch", 1)
        unit = m.input("unit", log2(machine.l_units)) if machine.l_units > 1 else m.constant(0)
        for name in ("word", "scale"):
            value = choose(unit, [one[name] for one in units])
            m.output(name, gate(fetch, value).delay(name=f"fetched_{name}"))
    return m


__all__ = ["add_all", "build_l_unit", "build_matrix_unit", "cat", "gate"]
