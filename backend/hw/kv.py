"""Where the KV cache lies in the H-Units' SRAM and in the memory of its scales.

Token t of a cache is on tile t mod tiles; there head h of its n-th token (n = t div tiles) is
vector ``n * heads + h`` of the cache's region. A vector is ``reads * planes`` words of
`attention_lanes` bytes: word ``r * planes + p`` holds byte p of elements ``r * lanes`` and
following. Regions follow one another in the order of the caches' addresses (`fabric.reserve`).

Scales, which that address map counts with the codes, have a memory of their own beside the vector
units: row ``scale_row + h * scale_rows + t div W`` holds, at lane t mod W, the scale of head h of
token t, 8 bits of exponent above 24 bits of mantissa. Static caches have no scales there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import FORMATS
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import SCALE_BITS, Ints, Scale
from intaglio.dialects.machine import Machine

if TYPE_CHECKING:
    from intaglio.backend.program import Cache

KV_FORMATS = ("int8", "int16", "fp8")
"""Formats that the KV SRAM holds."""
SCALE_WORD = 32
"""Bits of a scale in the memory of scales: mantissa below exponent."""
EXPONENT_BITS = SCALE_WORD - SCALE_BITS


@dataclass(frozen=True)
class CachePlace:
    """A cache in hardware.

    Attributes:
        cache: what it is.
        word: first word in every tile's SRAM.
        planes: bytes of an element.
        reads: words of a plane of a vector.
        scale_row: first row in the memory of scales; 0 for a static cache.
        scale_rows: rows of a head there.
    """

    cache: Cache
    word: int
    planes: int
    reads: int
    scale_row: int
    scale_rows: int

    @property
    def words(self) -> int:
        """Words of a vector."""
        return self.planes * self.reads

    @property
    def static(self) -> bool:
        """Whether all codes share a scale known at compile time."""
        return self.cache.static_scale is not None


@dataclass(frozen=True)
class KVPlaces:
    """All caches by name, and the memories' sizes.

    Attributes:
        places: by the cache's name.
        depth: words of every tile's SRAM that are used.
        scale_depth: rows of the memory of scales.
    """

    places: dict[str, CachePlace]
    depth: int
    scale_depth: int

    def __getitem__(self, name: str) -> CachePlace:
        return self.places[name]


def kv_places(machine: Machine, caches: Iterable[Cache]) -> KVPlaces:
    """Gives every cache its place.

    Raises:
        UserError: a format or a size that the hardware does not take.
    """
    lanes, places = machine.attention_lanes, {}
    word = row = 0
    for cache in sorted(caches, key=lambda one: (one.address, one.name)):
        if cache.format not in KV_FORMATS:
            raise UserError(
                f"the hardware has no KV cache of {cache.format}",
                hint=f"--set kv=... takes {', '.join(KV_FORMATS)}",
            )
        planes = FORMATS[cache.format].bits // 8
        if planes > 1 and cache.width % machine.kv_port_bytes:
            raise UserError(
                f"{cache.format} caches of heads {cache.width} wide do not fill the KV port",
                hint=f"h_unit.kv_port_bytes={machine.kv_port_bytes} must divide the head's width",
            )
        static = cache.static_scale is not None
        scale_rows = -(-cache.capacity // machine.vector_lanes)
        place = CachePlace(
            cache, word, planes, -(-cache.width // lanes), 0 if static else row, scale_rows
        )
        places[cache.name] = place
        word += -(-cache.capacity // machine.tiles) * cache.heads * place.words
        row += 0 if static else cache.heads * scale_rows
    if word * lanes > machine.sram_bytes:
        raise UserError(
            f"the KV cache takes {word} words of {lanes} bytes in every H-Unit, more than "
            f"{machine.sram_bytes} bytes: vectors begin in a word of their own",
            hint="a shorter --context, or fewer h_unit.attention_lanes",
        )
    return KVPlaces(places, max(2, word), max(2, row))


def read_cache(
    memory: Callable[[str], npt.NDArray[Any]], machine: Machine, place: CachePlace
) -> tuple[Ints, Scale | None]:
    """The content of a cache, as the simulator's `Store` holds it.

    Args:
        memory: a memory of the attention unit by its name in it (`tile0/kv`, `scales`), as
            `runtime.model.Model.memory` gives it.
        machine: the chip.
        place: of the cache.

    Returns:
        Codes [heads, capacity, width] (fp8: 0 to 255) and scales [heads, capacity]; None for a
        static cache.
    """
    cache, tiles, lanes = place.cache, machine.tiles, machine.attention_lanes
    blocks = -(-cache.capacity // tiles)
    end = place.word + blocks * cache.heads * place.words
    shape = (blocks, cache.heads, place.reads, place.planes, lanes)
    by_tile = [
        word_bytes(memory(f"tile{tile}/kv"), lanes)[place.word : end].reshape(shape)
        for tile in range(tiles)
    ]
    # [blocks, tiles, heads, reads, planes, lanes] -> [heads, tokens, reads, lanes, planes]
    raw = np.stack(by_tile, axis=1).transpose(2, 0, 1, 3, 5, 4)
    raw = raw.reshape(cache.heads, blocks * tiles, place.reads * lanes, place.planes)
    raw = np.ascontiguousarray(raw[:, : cache.capacity, : cache.width])
    kind = np.dtype({"int8": np.int8, "int16": "<i2", "fp8": np.uint8}[cache.format])
    codes = raw.view(kind)[..., 0].astype(np.int64)
    if place.static:
        return codes, None
    rows = word_bytes(memory("scales"), SCALE_WORD // 8 * machine.vector_lanes)
    rows = rows[place.scale_row : place.scale_row + cache.heads * place.scale_rows]
    words = np.ascontiguousarray(rows).view("<u4").reshape(cache.heads, -1)[:, : cache.capacity]
    mantissa = (words & ((1 << SCALE_BITS) - 1)).astype(np.int64)
    exponent = words.view("<i4").astype(np.int64) >> SCALE_BITS
    return codes, Scale(mantissa, exponent)


def word_bytes(memory: npt.NDArray[Any], size: int) -> npt.NDArray[np.uint8]:
    """The words of a memory as bytes [depth, size], low byte first."""
    if memory.ndim == 2:
        return memory[:, :size]
    return np.ascontiguousarray(memory).view(np.uint8).reshape(len(memory), -1)[:, :size]
