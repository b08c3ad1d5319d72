"""Zero points that are no codes: how wide the offsets are that they become in ROM."""

from __future__ import annotations

from collections.abc import Mapping

from intaglio.dialects.codes import OffsetForm, offset_form, offset_spill
from intaglio.lowering.onnx.weights.sources import Matrix, Source
from intaglio.lowering.parameters import row_chunks


def form_of(source: Matrix, peak: float) -> OffsetForm:
    """The form of a matrix's offsets; its zero points are real numbers.

    Args:
        source: the matrix.
        peak: the largest magnitude of a scale that a weight uses. Where none is used, the zero
            point is a code, inside the range.
    """
    spill = 0.0
    for r0, r1 in row_chunks(source.dims[0], 8 * source.groups):
        zeros = source.real_zeros(r0, r1)
        assert zeros is not None
        spill = max(spill, offset_spill(source.scales(r0, r1), zeros, source.bits))
    return offset_form(source.bits, peak, spill)


def forms(peaks: Mapping[Source, float]) -> dict[Source, OffsetForm]:
    """Each matrix that has offsets with their form.

    All of one code are as wide as the widest, so that layers stay alike; a chip's ROM has one width
    for all in any case.

    Args:
        peaks: tensors with their peaks, finite.
    """
    found = {
        one: form_of(one, peak)
        for one, peak in peaks.items()
        if isinstance(one, Matrix) and one.has_real_zeros
    }
    widest: dict[str, int] = {}
    for one, form in found.items():
        widest[one.code] = max(form.bits, widest.get(one.code, 0))
    return {one: form._replace(bits=widest[one.code]) for one, form in found.items()}
