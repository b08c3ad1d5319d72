"""Bytes of keys and values between the chip and external memory, as the program moves them.

What is read comes from what the durations of the attention's instructions are made of
(`lowering/schedule/durations.py`): whole blocks of `h_units` tokens, each vector in whole words of
the H-Units, for each instruction that passes over a cache. What is written is the vectors of the
new token, in whole words of the KV port. Scales stay on the die.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from intaglio.backend.program.program import Cache, Program
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.isa.attention import OverTokens
from intaglio.dialects.isa.parts import Access, Store
from intaglio.dialects.machine import Machine
from intaglio.lowering.schedule import durations

Bytes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Traffic:
    """Bytes of tokens at some positions, int64 [positions].

    Attributes:
        read: from external memory.
        written: to external memory.
        every: what would be read if no token were on the die.
    """

    read: Bytes
    written: Bytes
    every: Bytes


def traffic(program: Program, positions: npt.ArrayLike, on_die: int | None = None) -> Traffic:
    """The traffic of single tokens.

    Args:
        program: the compiled model, of a chip with external memory.
        positions: int [P].
        on_die: tokens on the die, a multiple of the H-Units; those of the chip by default.
    """
    machine = program.machine
    if on_die is not None:
        machine = replace(machine, kv_on_die=on_die)
    where = np.atleast_1d(np.asarray(positions, np.int64))
    read, written, every = (np.zeros_like(where) for _ in range(3))
    for (heads, width, kv, window), count in _passes(program).items():
        block = durations.block_fetch(machine, width, kv) * machine.external_bytes
        outside = durations.blocks_outside(machine, window)(tokens=where + 1)
        read = read + count * heads * block * outside
        blocks = durations.attended(window, machine.h_units)(tokens=where + 1)
        every = every + count * heads * block * blocks
    vectors = sum(
        cache.heads * _port_bytes(cache, machine) for cache, _ in _uses(program, Access.WRITE)
    )
    written = np.where(where >= machine.kv_on_die, vectors, 0)
    return Traffic(read, written, every)


def _passes(program: Program) -> Counter[tuple[int, int, str, int]]:
    """How often attention passes over a cache of so many heads, with such vectors and window."""
    return Counter(
        (cache.heads, cache.width, cache.format, window)
        for cache, window in _uses(program, Access.READ)
    )


def _uses(program: Program, access: Access) -> Iterator[tuple[Cache, int]]:
    """The caches whose codes instruction instances read or write, and windows; 0: all tokens."""
    for block in program.blocks:
        for one in block.whole:
            window = one.does.window if isinstance(one.does, OverTokens) else 0
            for slot in one.does.slots(Store.CACHE, access):
                for instance in block.instances:
                    yield program.caches[instance.get(slot, slot)], window


def _port_bytes(cache: Cache, machine: Machine) -> int:
    """Bytes of a vector's codes in whole words of the KV port."""
    size = -(-cache.width * FORMATS[cache.format].memory_bits // 8)
    return -(-size // machine.kv_port_bytes) * machine.kv_port_bytes
