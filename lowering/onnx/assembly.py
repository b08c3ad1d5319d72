"""Puts the imported module together: parameters, caches and the step."""

from __future__ import annotations

import math

from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import Operation, Region

from intaglio.dialects import rom
from intaglio.dialects.codes import OffsetForm
from intaglio.dialects.errors import UserError
from intaglio.lowering.onnx.graph.model import Node
from intaglio.lowering.onnx.report import Report
from intaglio.lowering.onnx.step import Cache, Declared, Step, real
from intaglio.lowering.onnx.values import Vector
from intaglio.lowering.onnx.weights.magnitudes import typical_rms
from intaglio.lowering.onnx.weights.offsets import forms
from intaglio.lowering.onnx.weights.sources import DenseSource, Source
from intaglio.lowering.parameters import ParameterSource
from intaglio.lowering.step.used_scales import Uses, largest_used_scale

DEFAULT_CONTEXT = 1024
"""Capacity of the caches where neither the caller nor the model states one."""

SCOPE = "onnx"
"""Keys of parameters that come from the model are `onnx::NAMES`."""


def finish(step: Step, logits: Vector, head: Node) -> None:
    """Emits what follows the logits, and removes what nothing reads."""
    sample = step.emit(rom.SampleOp(logits.ssa, rom.nodes(head.name)))
    step.emit(rom.EmitOp(logits.ssa, sample.token))
    for op in reversed(list(step.block.ops)):
        if _is_unused(op):
            op.detach()
            op.erase()


def assemble(
    step: Step, report: Report, context: int | None
) -> tuple[ModuleOp, dict[str, ParameterSource]]:
    """The module, and who reads each of its parameters, by key.

    Raises:
        UserError: a context that the model does not allow.
        UserErrors: weights that are not finite.
    """
    used = {
        attribute.root_reference.data
        for op in step.block.ops
        for attribute in op.properties.values()
        if isinstance(attribute, SymbolRefAttr)
    }
    tables = {op.table.root_reference.data for op in step.block.ops if isinstance(op, rom.RowOp)}
    operations: list[Operation] = []
    parameters: dict[str, ParameterSource] = {}
    wanted: list[Declared] = []
    for declared in step.declared.values():
        if declared.symbol in step.parted and declared.symbol not in used:
            continue
        if declared.symbol not in used:
            # Only its shape was read.
            report.warnings.append(
                f"tensor '{declared.parameter.names[0]}' has no effect on any output and is left "
                "out"
            )
            continue
        wanted.append(declared)
    peaks = {one.parameter.source: _peak(report, one) for one in wanted}
    report.raise_errors()
    offsets = forms(peaks)
    for declared in wanted:
        source = declared.parameter.source
        form = offsets.get(source, OffsetForm(0, peaks[source]))
        operation, key = _parameter(declared, parameters, form, declared.symbol in tables)
        parameters[key] = source
        operations.append(operation)
    capacity = _capacity(step, report, context)
    operations += [_cache(cache, capacity) for cache in step.caches.values()]
    operations += [
        rom.StateOp(symbol, type_) for states in step.states.values() for symbol, type_ in states
    ]
    # Without caches nothing else says how long a sequence may be.
    positions = step.positions if step.caches else capacity
    operations.append(rom.StepOp("decode", positions, Region(step.block)))
    return ModuleOp(operations), parameters


def _peak(report: Report, declared: Declared) -> float:
    """The largest magnitude of a scale that a weight uses, or of a value; reports what is none."""
    source = declared.parameter.source
    peak = source.peak()
    if not math.isfinite(peak):
        kind = "values" if isinstance(source, DenseSource) else source.read_from
        report.error(
            f"tensor '{declared.parameter.names[0]}' has {kind} that are not finite",
            declared.node,
        )
    elif not isinstance(source, DenseSource) and source.group and source.may_have_unused:
        peak = largest_used_scale(Uses(source, source.group, source.zero), peak)
    return peak


def _parameter(
    declared: Declared, known: dict[str, ParameterSource], form: OffsetForm, table: bool
) -> tuple[rom.ParameterOp, str]:
    source = declared.parameter.source
    key = f"{SCOPE}::{','.join(declared.parameter.names)}"
    number = 1
    while key in known:
        number += 1
        key = f"{SCOPE}::{','.join(declared.parameter.names)}#{number}"
    return (
        rom.ParameterOp(
            declared.symbol,
            _type(source, declared.adapter, form.bits),
            key,
            peak=form.peak,
            zero=source.zero,
            zero_fraction=None if isinstance(source, DenseSource) else source.zero_fraction,
            rms=_rms(source, table),
        ),
        key,
    )


def _rms(source: Source, table: bool) -> float | None:
    """How large elements are, where formats follow from it: not of tables of angles."""
    angles = isinstance(source, DenseSource) and len(source.dims) > 1 and not table
    return None if angles else typical_rms(source, table=table)


def _cache(cache: Cache, capacity: int) -> rom.CacheOp:
    type_ = rom.KVType(capacity, cache.heads, cache.width, cache.format)
    scale = None if cache.static_scale is None else real(cache.static_scale)
    return rom.CacheOp(cache.symbol, type_, scale)


def _capacity(step: Step, report: Report, context: int | None) -> int:
    positions = step.positions
    if context is None:
        return positions or DEFAULT_CONTEXT
    if context < 1 or (positions and context > positions):
        limit = f"from 1 to {positions}, its rows by position" if positions else "positive"
        raise UserError(
            f"a context of {context} tokens is not possible; it must be {limit}", file=report.file
        )
    return context


def _type(source: Source, adapter: bool, offsets: int) -> rom.ROMTensorType | rom.AdapterType:
    dense = isinstance(source, DenseSource)
    group, zeros = (0, False) if dense else (source.group, source.zero is None)
    if adapter:
        return rom.AdapterType(source.dims, source.code, group, zeros)
    experts = 1 if dense else source.experts
    return rom.ROMTensorType(source.dims, source.code, group, zeros, offsets, experts)


def _is_unused(op: Operation) -> bool:
    return bool(op.results) and not any(result.uses.get_length() for result in op.results)
