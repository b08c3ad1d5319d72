"""Where the bytes of parameters come from: row-chunked readers that never hold a whole tensor.

A `ParameterSource` stands behind each `rom.parameter` by its key. Whoever writes ROM or SRAM images
reads it some rows at a time, so that memory stays small whatever the size of the model.

The canonical layout of a matrix [N, K] of codes in containers of b bits (2, 4 or 8; 3-bit codes
take 4, 6-bit codes 8): row n holds output n; element k of a row
stands in bits (k*b mod 8) and up of byte k*b // 8 (low bits first); a row is padded with zero bits
to a whole byte. Codes are unsigned, and with g = k // group

    weight[n, k] = scale[n, g] * (code[n, k] - zero[n, g])

where the zero point is a code, or any number (`real_zeros`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

CHUNK_BYTES = 1 << 20
"""About how much of a tensor is looked at in one go."""


@runtime_checkable
class ParameterSource(Protocol):
    """Reads one tensor of the model, some rows at a time.

    `dims` is the shape, (N, K) for a matrix; `code` is one of `rom.WEIGHT_CODES` for a matrix of
    small integers, or `float32` for a dense tensor, which has only `values`.
    """

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape; a matrix is (rows N, columns K)."""
        ...

    @property
    def code(self) -> str:
        """The code of an element."""
        ...

    def packed_rows(self, r0: int, r1: int) -> UInt8Array:
        """Codes of rows r0 to r1 in the canonical layout: uint8 [r1 - r0, ceil(K * b / 8)].

        The result may be a read-only view of the model file.
        """
        ...

    def scales(self, r0: int, r1: int) -> Float32Array:
        """Scales of rows r0 to r1: float32 [r1 - r0, groups]; they may be negative."""
        ...

    def zeros(self, r0: int, r1: int) -> UInt8Array | None:
        """Zero points of rows r0 to r1: uint8 [r1 - r0, groups]; None where all share one."""
        ...

    def real_zeros(self, r0: int, r1: int) -> Float32Array | None:
        """Zero points that are no codes: float32 [r1 - r0, groups]; None where all are codes."""
        ...

    def values(self, r0: int, r1: int) -> Float32Array:
        """Elements r0 to r1 along the first axis of a dense tensor: float32 [r1 - r0, ...]."""
        ...


def row_chunks(rows: int, row_bytes: int, budget: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Cuts `rows` rows into ranges of about `budget` bytes, at least one row each."""
    step = max(1, budget // max(1, row_bytes))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
