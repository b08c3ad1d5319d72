"""How large the elements of tensors are, from some of their rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from intaglio.dialects.codes import container_bits, unpack
from intaglio.lowering.onnx.sources import DenseSource, Source

SAMPLES = 256
"""Rows of a table that are looked at."""
OUTLIER = 4
"""Times the median from which a row counts no more than this."""


def typical_rms(source: Source) -> float | None:
    """Root mean square of a tensor's elements, of evenly spaced rows; a vector is one row.

    Rows of zeros (tokens that nobody uses) do not count, and no row for more than `OUTLIER` times
    the median: one large element would hide the others. None where all rows are zero.
    """
    rows = source.dims[0]
    if len(source.dims) == 1:
        found = [_rms(source.values(0, rows))]
    else:
        step = max(1, rows // SAMPLES)
        found = [_rms(_row(source, row)) for row in range(0, rows, step)][:SAMPLES]
    sizes = np.array([size for size in found if size > 0])
    if not sizes.size:
        return None
    return _rms(np.minimum(sizes, OUTLIER * np.median(sizes)))


def _rms(values: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _row(source: Source, row: int) -> npt.NDArray[np.floating]:
    """Row `row` of a table or matrix as floats."""
    if isinstance(source, DenseSource):
        return source.values(row, row + 1)
    columns = source.dims[1]
    codes = unpack(source.packed_rows(row, row + 1), container_bits(source.bits), columns)
    zeros = source.zeros(row, row + 1)
    group = source.group or columns
    offset = source.zero if zeros is None else np.repeat(zeros, group, axis=1)[:, :columns]
    scales = np.repeat(source.scales(row, row + 1), group, axis=1)[:, :columns]
    return (codes.astype(np.float64) - np.float64(offset)) * scales
