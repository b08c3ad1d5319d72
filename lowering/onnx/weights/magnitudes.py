"""How large the elements of tensors are, from some of their rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import container_bits, unpack
from intaglio.lowering.onnx.weights.sources import DenseSource, Source

SAMPLES = 256
"""Rows of a table that are looked at."""
BLOCK = 8
"""Rows of a matrix that are."""
OUTLIER = 4
"""Times the median from which a row counts no more than this."""


def typical_rms(source: Source, *, table: bool) -> float | None:
    """Root mean square of a tensor's elements; None where all that are looked at are zero.

    All of a vector; of a matrix a block of rows in its middle; of a `table`, of which a token sees
    one row, evenly spaced rows. Rows of zeros (tokens that nobody uses) do not count, and no row
    for more than `OUTLIER` times the median: one large element would hide the others.
    """
    rows = source.dims[0]
    if len(source.dims) == 1:
        found = np.array([_rms(source.values(0, rows))])
    elif table:
        step = max(1, rows // SAMPLES)
        found = np.array([_rms(_rows(source, row, row + 1)) for row in range(0, rows, step)])
    else:
        first = max(0, (rows - BLOCK) // 2)
        found = _rms(_rows(source, first, min(rows, first + BLOCK)), axis=1)
    sizes = found[found > 0]
    if not sizes.size:
        return None
    return float(_rms(np.minimum(sizes, OUTLIER * np.median(sizes))))


def _rms(values: npt.NDArray[np.floating], axis: int | None = None) -> npt.NDArray[np.float64]:
    return np.sqrt(np.mean(np.square(values, dtype=np.float64), axis=axis))


def _rows(source: Source, first: int, last: int) -> npt.NDArray[np.floating]:
    """Rows of a table or matrix as floats."""
    if isinstance(source, DenseSource):
        return source.values(first, last)
    columns = source.dims[1]
    codes = unpack(source.packed_rows(first, last), container_bits(source.bits), columns)
    zeros = source.real_zeros(first, last) if source.has_real_zeros else source.zeros(first, last)
    group = source.group or columns
    offset = source.zero if zeros is None else np.repeat(zeros, group, axis=1)[:, :columns]
    scales = np.repeat(source.scales(first, last), group, axis=1)[:, :columns]
    return (codes.astype(np.float64) - np.float64(offset)) * scales
