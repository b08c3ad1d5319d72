"""The KV cache in the hardware: places of the program, external memory, contents to read and write.

How a cache lies on the H-Units is in `dialects/h_units.py`; its rows are the program's. Word
``r * planes + p`` of a vector holds byte p of elements ``r * lanes`` and following.

External memory has rows of `external_bytes`, a *block* (the vectors of one head and `h_units`
tokens) after the other: head h of block b is the ``b * heads + h``-th of the cache's region. A
block begins with word 0 of all its tokens in the H-Units' order, word 1 follows, and so on, so that
what comes in a cycle is for different H-Units.

In the memory of scales row ``scale_row + h * scale_rows + t div W`` holds, at lane t mod W, the
scale of head h of token t, 8 bits of exponent above 24 bits of mantissa; where all caches with
scales have half steps, a byte (`formulas.heads.byte_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.hw.units.refusals import refuse
from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, Write
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import SCALE_BITS, SCALE_BYTES, Ints, Scale
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.formulas import heads
from intaglio.dialects.formulas.arrays import Arrays
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.dialects.h_units import EXTERNAL, KV, KV_SCALES, CacheShape
from intaglio.dialects.machine import KV_FORMATS, Machine

if TYPE_CHECKING:
    from intaglio.backend.program.program import Cache, Program

SCALE_WORD = 8 * SCALE_BYTES
"""Bits of a scale as units have it: mantissa below exponent."""
EXPONENT_BITS = SCALE_WORD - SCALE_BITS


_KINDS = {"int8": np.int8, "int16": "<i2", "fp8": np.uint8, "half8": np.int8}
"""Of codes, in numpy."""


@dataclass(frozen=True)
class CachePlace:
    """A cache in hardware: where the program says it lies, and what follows from its shape.

    Attributes:
        cache: what it is.
        shape: how it lies on the H-Units.
        scale_bits: of a scale in the memory of scales.
    """

    cache: Cache
    shape: CacheShape
    scale_bits: int = SCALE_WORD

    @property
    def word(self) -> int:
        """First word in every H-Unit's SRAM."""
        return self.cache.row

    @property
    def planes(self) -> int:
        """Bytes of an element."""
        return self.shape.planes

    @property
    def reads(self) -> int:
        """Words of a plane of a vector."""
        return self.shape.reads

    @property
    def words(self) -> int:
        """Words of a vector."""
        return self.shape.words

    @property
    def scale_row(self) -> int:
        """First row in the memory of scales; 0 for a static cache."""
        return self.cache.scale

    @property
    def scale_rows(self) -> int:
        """Rows of a head there."""
        return self.shape.scale_rows

    @property
    def inside(self) -> int:
        """Tokens on the die; a multiple of the H-Units, or all."""
        return self.shape.inside

    @property
    def external(self) -> int:
        """First row in external memory."""
        return self.cache.external

    @property
    def beats(self) -> int:
        """Rows of a block there; 0 when all tokens are on the die."""
        return self.shape.beats

    @property
    def static(self) -> bool:
        """Whether all codes share a scale known at compile time."""
        return self.shape.static


@dataclass(frozen=True)
class KVPlaces:
    """All caches by name, and the memories' sizes.

    Attributes:
        places: by the cache's name.
        depth: words of every H-Unit's SRAM that are used.
        scale_depth: rows of the memory of scales.
        external_depth: rows of external memory; 0 without.
        scale_bits: of a scale in the memory of scales.
    """

    places: dict[str, CachePlace]
    depth: int
    scale_depth: int
    external_depth: int
    scale_bits: int

    def __getitem__(self, name: str) -> CachePlace:
        return self.places[name]


def kv_places(program: Program) -> KVPlaces:
    """The places of a program's caches.

    Raises:
        UserError: a format or a size that the hardware does not take.
    """
    refuse(cache_refusals(program.machine, program.caches.values()))
    bits = program.memories[KV_SCALES].bits
    places = {
        name: CachePlace(cache, cache.shape(program.machine), bits)
        for name, cache in program.caches.items()
    }
    rows = {name: one.rows for name, one in program.memories.items()}
    return KVPlaces(places, rows[KV], rows[KV_SCALES], rows.get(EXTERNAL, 0), bits)


def cache_refusals(machine: Machine, caches: Iterable[Cache]) -> list[UserError]:
    """Why the hardware cannot hold caches of these kinds; whether they fit is not asked."""
    caches = list(caches)
    found: list[UserError] = []
    for cache in caches:
        if cache.format not in KV_FORMATS:
            found.append(
                UserError(
                    f"the hardware has no KV cache of {cache.format}",
                    hint=f"--set kv=... takes {', '.join(KV_FORMATS)}",
                )
            )
        elif FORMATS[cache.format].bits > 8 and cache.width % machine.kv_port_bytes:
            found.append(
                UserError(
                    f"{cache.format} caches of heads {cache.width} wide do not fill the KV port",
                    hint=f"h_unit.kv_port_bytes={machine.kv_port_bytes} must divide the head's "
                    "width",
                )
            )
    if machine.kv_on_die and any(cache.capacity > machine.kv_on_die for cache in caches):
        found += _external_refusals(machine)
    return found


def _external_refusals(machine: Machine) -> list[UserError]:
    size, row = machine.external_bytes, machine.h_units * machine.attention_lanes
    found: list[str] = []
    if size < 1 or size & (size - 1) or size > row:
        found.append(
            f"external memory gives {size} bytes a cycle; the hardware takes a power of two, at "
            f"most a word of {machine.attention_lanes} bytes for each of {machine.h_units} H-Units"
        )
    if machine.external_latency < 1:
        found.append("the latency of external memory is 0; the hardware needs 1 at least")
    if machine.kv_on_die % machine.h_units:
        found.append(
            f"{machine.kv_on_die} tokens on the die are no multiple of {machine.h_units} H-Units"
        )
    return [UserError(what) for what in found]


def external_kv(design: Design, machine: Machine, depth: int) -> ModuleBuilder:
    """The module `external_kv`: stands for the DRAM chip, and is no part of the die.

    What is real of it is the interface, with the timing that the target description states: rows of
    `external_bytes`, data `external_latency` cycles after the address, a row in every cycle, reads
    and writes at the same time. Refresh and bank conflicts are in that latency. Inside is a memory
    that a synthesis would leave out.

    Ports: `read_address`, out `read_data`; `write_enable`, `write_address`, `write_data`,
    `write_mask` (a bit for each `kv_port_bytes`, where a row holds several).
    """
    parts = external_parts(machine)

    def build(m: ModuleBuilder) -> None:
        bits = (depth - 1).bit_length()
        address = m.input("read_address", bits)
        write = Write(
            m.input("write_address", bits),
            m.input("write_data", 8 * machine.external_bytes),
            m.input("write_enable", 1),
            m.input("write_mask", parts) if parts > 1 else None,
        )
        late = address.delay(machine.external_latency - 1, name="on_its_way")
        (data,) = m.ram(
            "memory", depth, 8 * machine.external_bytes, [late], [write], parts if parts > 1 else 0
        )
        m.output("read_data", data)

    return design.shared("external_kv", build)


def external_parts(machine: Machine) -> int:
    """Parts of a row of external memory that the KV port writes one by one."""
    return max(1, machine.external_bytes // machine.kv_port_bytes)


def read_cache(
    memory: Callable[[str], npt.NDArray[Any]],
    machine: Machine,
    place: CachePlace,
    external: npt.NDArray[Any] | None = None,
) -> tuple[Ints, Scale | None]:
    """The content of a cache, as the simulator's `Store` holds it.

    Args:
        memory: a memory of the attention unit by its name in it (`h_unit0/kv`, `scales`), as
            `runtime.engines.running.Model.memory` gives it.
        machine: the chip.
        place: of the cache.
        external: the content of external memory, where the cache has tokens there.

    Returns:
        Codes [heads, capacity, width] (fp8: 0 to 255) and scales [heads, capacity]; None for a
        static cache.
    """
    cache, units, lanes = place.cache, machine.h_units, machine.attention_lanes
    blocks = -(-place.inside // units)
    end = place.word + blocks * cache.heads * place.words
    shape = (blocks, cache.heads, place.reads, place.planes, lanes)
    by_unit = [
        word_bytes(memory(f"h_unit{unit}/kv"), lanes)[place.word : end].reshape(shape)
        for unit in range(units)
    ]
    # [blocks, units, heads, reads, planes, lanes] -> [heads, tokens, reads, lanes, planes]
    raw = np.stack(by_unit, axis=1).transpose(2, 0, 1, 3, 5, 4)
    raw = raw.reshape(cache.heads, blocks * units, place.reads * lanes, place.planes)
    if place.beats:
        assert external is not None
        far = -(-(cache.capacity - place.inside) // units)
        rows = word_bytes(external, machine.external_bytes)[place.external :]
        rows = rows[: far * cache.heads * place.beats]
        # [blocks, heads, reads, planes, units, lanes] -> [heads, tokens, reads, lanes, planes]
        outside = rows.reshape(far, cache.heads, place.reads, place.planes, units, lanes)
        outside = outside.transpose(1, 0, 4, 2, 5, 3)
        outside = outside.reshape(cache.heads, far * units, place.reads * lanes, place.planes)
        raw = np.concatenate([raw, outside], axis=1)
    raw = np.ascontiguousarray(raw[:, : cache.capacity, : cache.width])
    kind = np.dtype(_KINDS[cache.format])
    codes = raw.view(kind)[..., 0].astype(np.int64)
    if place.static:
        return codes, None
    rows = word_bytes(memory("scales"), place.scale_bits // 8 * machine.vector_lanes)
    rows = rows[place.scale_row : place.scale_row + cache.heads * place.scale_rows]
    kind = "<u4" if place.scale_bits == SCALE_WORD else "u1"
    words = np.ascontiguousarray(rows).view(kind).reshape(cache.heads, -1)[:, : cache.capacity]
    if place.scale_bits < SCALE_WORD:
        scale = heads.scale_of(Arrays(), words.astype(np.int64))
        return codes, Scale(scale.mantissa, scale.exponent)
    mantissa = (words & ((1 << SCALE_BITS) - 1)).astype(np.int64)
    exponent = words.view("<i4").astype(np.int64) >> SCALE_BITS
    return codes, Scale(mantissa, exponent)


def write_cache(
    memory: Callable[[str], npt.NDArray[Any]],
    machine: Machine,
    place: CachePlace,
    codes: npt.NDArray[Any],
    scale: Scale | None,
    external: npt.NDArray[Any] | None = None,
) -> None:
    """Gives a cache the content that `read_cache` reads back.

    Args:
        memory: as in `read_cache`.
        machine: the chip.
        place: of the cache.
        codes: [heads, capacity, width].
        scale: [heads, capacity]; None for a static cache.
        external: content of external memory, where the cache has tokens there.
    """
    cache, units, lanes = place.cache, machine.h_units, machine.attention_lanes
    blocks, far = -(-place.inside // units), -(-(cache.capacity - place.inside) // units)
    kind = np.dtype(_KINDS[cache.format])
    raw = np.zeros(
        (cache.heads, (blocks + far) * units, place.reads * lanes, place.planes), np.uint8
    )
    given = np.ascontiguousarray(codes.astype(kind))[..., None].view(np.uint8)
    # Tokens on the die fill their last block, or are all of a multiple of the units.
    raw[:, : cache.capacity, : cache.width] = given
    # [heads, blocks, units, reads, lanes, planes]
    by_block = raw.reshape(cache.heads, blocks + far, units, place.reads, lanes, place.planes)
    for unit in range(units):
        inside = by_block[:, :blocks, unit].transpose(1, 0, 2, 4, 3)
        write_words(memory(f"h_unit{unit}/kv"), place.word, inside.reshape(-1, lanes))
    if place.beats:
        assert external is not None
        outside = by_block[:, blocks:].transpose(1, 0, 3, 5, 2, 4)
        write_words(external, place.external, outside.reshape(-1, machine.external_bytes))
    if place.static:
        return
    assert scale is not None
    size = place.scale_bits // 8 * machine.vector_lanes
    words = np.zeros((cache.heads, place.scale_rows * machine.vector_lanes), np.int64)
    if place.scale_bits < SCALE_WORD:
        byte = heads.byte_of(Arrays(), ScaleOf(scale.mantissa, scale.exponent))
        words[:, : cache.capacity] = np.where(scale.mantissa, byte, 0)
        rows = words.astype("u1").reshape(-1, size)
    else:
        mantissa = scale.mantissa & ((1 << SCALE_BITS) - 1)
        words[:, : cache.capacity] = mantissa | scale.exponent << SCALE_BITS
        rows = (words & ((1 << SCALE_WORD) - 1)).astype("<u4").view(np.uint8).reshape(-1, size)
    write_words(memory("scales"), place.scale_row, rows)


def write_words(memory: npt.NDArray[Any], first: int, rows: npt.NDArray[np.uint8]) -> None:
    """Writes words of a memory, given as bytes [n, size], low byte first."""
    count, size = rows.shape
    if memory.ndim == 2:
        memory[first : first + count, :size] = rows
        return
    whole = np.zeros((count, memory.itemsize), np.uint8)
    whole[:, :size] = rows
    memory[first : first + count] = whole.view(memory.dtype)[:, 0]


def word_bytes(memory: npt.NDArray[Any], size: int) -> npt.NDArray[np.uint8]:
    """The words of a memory as bytes [depth, size], low byte first."""
    if memory.ndim == 2:
        return memory[:, :size]
    return np.ascontiguousarray(memory).view(np.uint8).reshape(len(memory), -1)[:, :size]
