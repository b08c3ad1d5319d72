"""All instructions, and the instruction that a program's words stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from intaglio.dialects.isa import adapter, attention, cache, matrix, power, recurrence, vector
from intaglio.dialects.isa.check import Misfit, build
from intaglio.dialects.isa.instruction import Instruction, V

INSTRUCTIONS: tuple[type[Instruction[Any]], ...] = (
    matrix.Embed,
    matrix.EmbedPosition,
    matrix.Matvec,
    matrix.ExpertMatvec,
    adapter.AdapterMatvec,
    vector.RMSNorm,
    vector.LayerNorm,
    vector.Quantize,
    vector.QuantizeBlocks,
    vector.QuantizeHeads,
    vector.RMSScale,
    vector.Rotary,
    vector.Activate,
    vector.Add,
    vector.Mul,
    vector.ScaleBy,
    vector.Softcap,
    vector.Clip,
    vector.Route,
    vector.Weigh,
    vector.Tap,
    vector.Delay,
    vector.Copy,
    vector.Softmax,
    vector.SoftmaxPlaces,
    vector.Sample,
    cache.Append,
    attention.QueryKey,
    attention.WeightedSum,
    recurrence.LinearAttention,
    power.Wake,
    power.WakeChosen,
    power.Sleep,
)
"""All declarations. An opcode may stand for one in each queue."""

OPCODES: tuple[str, ...] = tuple(dict.fromkeys(one.opcode for one in INSTRUCTIONS))
"""All opcodes."""

_DECLARED = {(one.opcode, one.queue): one for one in INSTRUCTIONS}


def declared(opcode: str, queue: str) -> type[Instruction[Any]]:
    """The declaration of an opcode in a queue.

    Raises:
        Misfit: there is none.
    """
    if opcode not in OPCODES:
        raise Misfit(f"unknown opcode '{opcode}', known are {', '.join(OPCODES)}")
    if (opcode, queue) not in _DECLARED:
        raise Misfit(f"'{opcode}' cannot stand in queue '{queue}'")
    return _DECLARED[opcode, queue]


def instruction_of(
    opcode: str,
    queue: str,
    reads: Sequence[V],
    writes: Sequence[V],
    uses: Mapping[str, str],
    arguments: Mapping[str, object],
) -> Instruction[V]:
    """The instruction that these words stand for; see `instruction.build`.

    Raises:
        Misfit: they are not as the instruction is declared.
    """
    return build(declared(opcode, queue), reads, writes, uses, arguments)
