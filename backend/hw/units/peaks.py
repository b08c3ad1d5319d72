"""The largest magnitude of what a unit writes, taken at its write port.

A tree of comparators takes what is written in a cycle, and a register keeps the largest magnitude
so far; after the last element it is given to the vector unit, which keeps it among its reductions
(`vector/unit.py`). It is there `durations.peak` cycles after the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from intaglio.backend.hw.units.ports import Give, Take
from intaglio.backend.hw.units.vector.operations import FORMAT_CODES, LARGEST_SHIFT
from intaglio.backend.hw.wires.signal import ModuleBuilder, Signal, larger, mux, pipelined, tree
from intaglio.backend.program.types import Instruction, Program
from intaglio.dialects.descriptor import Field
from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.formulas.norms import norm_constants
from intaglio.dialects.isa.values import Fixed, Quantized
from intaglio.dialects.isa.vector import Quantize, RMSNorm

FIELDS = (
    Field("peak", 1, "1: the largest magnitude of what is written is taken"),
    Field("peak_last", 1, "1: with these elements it is complete"),
    Field("peak_entry", 12, "its entry in the files of groups"),
    Field("peak_shift", 8, "largest shift that normalises it", True),
    Field("peak_quantized", 1, "1: it is that of a quantisation, whose scale it gives"),
    Field("peak_fraction", 7, "fraction bits of what is written", True),
    Field("peak_format", 3, "number of the code's format in `FORMAT_CODES`"),
    Field("peak_scale", 20, "entry of the scale in the file of scales"),
)
"""Fields of the descriptor of what can leave a peak."""


def fields_of(*, quantized: bool) -> tuple[Field, ...]:
    """Those of `FIELDS` that count.

    Args:
        quantized: whether there are peaks of quantisations.
    """
    return FIELDS if quantized else FIELDS[:4]


def given_fields(*, quantized: bool) -> tuple[Field, ...]:
    """Those that go to the vector unit with the peak."""
    return fields_of(quantized=quantized)[2:]


TOP_BITS = FIXED_BITS
"""Width of a magnitude."""


def peak_fields(program: Program, one: Instruction, *, last: bool) -> dict[str, int]:
    """`FIELDS` of an instruction instance: all 0 where it leaves no peak.

    Args:
        program: the program.
        one: what writes.
        last: whether it writes the last element.
    """
    values = {field.name: 0 for field in FIELDS}
    reader = program.peak_reader(one)
    if reader is None:
        return values
    values |= {"peak": 1, "peak_last": int(last), "peak_entry": one.beat.peak - 1}
    match reader.does:
        case Quantize() as quantize:
            output = program.value(quantize.output, Quantized)
            return values | {
                "peak_shift": LARGEST_SHIFT,
                "peak_quantized": 1,
                "peak_fraction": program.fraction(quantize.input),
                "peak_format": FORMAT_CODES[output.format],
                "peak_scale": program.row_of(quantize.output, reader),
            }
        case RMSNorm() as norm:
            kind = program.value(norm.input, Fixed)
            constants = norm_constants(norm.eps, kind.size, kind.fraction)
            return values | {"peak_shift": constants.largest_shift}
        case _:
            return values


def port(queue: str, name: str) -> str:
    """The name of what a queue's unit gives with a peak: `valid`, `top`, or one of its fields."""
    return f"peak_of_{queue}_{name.removeprefix('peak_')}"


def _names(queue: str, quantized: bool) -> tuple[str, ...]:
    fields = given_fields(quantized=quantized)
    return tuple(port(queue, name) for name in ("valid", "top", *(one.name for one in fields)))


def given(queue: str, *, quantized: bool) -> tuple[Give, ...]:
    """The ports of a unit that leaves peaks."""
    return tuple(Give(name, name) for name in _names(queue, quantized))


def taken(queue: str, *, quantized: bool) -> tuple[Take, ...]:
    """The ports of the unit that keeps them."""
    return tuple(Take(name, name) for name in _names(queue, quantized))


def give(
    m: ModuleBuilder,
    queue: str,
    values: Sequence[Signal],
    *,
    on: Signal,
    last: Signal,
    fields: Mapping[str, Signal],
    quantized: bool,
    cycles: int,
) -> None:
    """The tree of comparators of a write port, and the ports `given`.

    Args:
        m: the unit.
        queue: its queue.
        values: what is written in this cycle, 0 where nothing is.
        on: whether it counts.
        last: with this cycle the value is complete.
        fields: of the instruction, those that are given among them.
        quantized: whether there are peaks of quantisations.
        cycles: from here to the peak, at least 1.
    """

    def most(*parts: Signal) -> Signal:
        sizes = [abs(part).cut() for part in parts]
        return tree(sizes, lambda a, b: larger(a, b).cut())

    (part,) = pipelined(lambda *parts: [most(*parts)], list(values), cycles - 1).outputs
    part = part.as_unsigned().truncate(TOP_BITS)
    counts = on.delay(cycles - 1, reset=0, name="peak_counts")
    over = last.delay(cycles - 1, reset=0, name="peak_over")
    best = m.register("peak_so_far", TOP_BITS)
    now = mux(counts, larger(best, part), best)
    best.drive(mux(over, 0, now).truncate(TOP_BITS))
    m.output(port(queue, "valid"), over.delay(reset=0, name="peak_valid"))
    m.output(port(queue, "top"), now.delay(name="peak_top"), TOP_BITS)
    for field in given_fields(quantized=quantized):
        late = fields[field.name].delay(cycles, name=f"{field.name}_over")
        m.output(port(queue, field.name), late.as_unsigned(), field.width)
