"""program.json: the program, the machine and the images' layout, for whatever runs the chip.

The file is the whole interface between compiler and runtime: the simulator reads it and the images,
and never the IR. Keys are those of the dialects; reals are [mantissa, exponent].
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import PassFailedException

from intaglio.backend.program.types import SCHEMA
from intaglio.dialects import rom
from intaglio.dialects.fabric import (
    ConstantOp,
    DomainOp,
    EngraveOp,
    ReserveOp,
    machine_of,
    memories,
    places,
)
from intaglio.dialects.program import BlockOp, BufferOp, InstructionOp, ProgramOp
from intaglio.lowering.buffers import matrices_of, name_of, state_sizes
from intaglio.lowering.place.mapping import form_content, piece_content
from intaglio.lowering.place.sram import residents_of


def program_content(module: ModuleOp) -> dict[str, Any]:
    """The content of program.json for a scheduled module.

    Raises:
        PassFailedException: the module holds no program.
    """
    programs = [op for op in module.ops if isinstance(op, ProgramOp)]
    if len(programs) != 1:
        raise PassFailedException(
            f"expected one program, found {len(programs)}; run program-schedule first"
        )
    (program,) = programs
    pieces = {
        place.buffer.root_reference.data: [piece_content(attr.piece) for attr in place.pieces]
        for place in places(module)
        if isinstance(place, EngraveOp)
    }
    reserved = {
        place.buffer.root_reference.data: place
        for place in places(module)
        if isinstance(place, ReserveOp)
    }
    constants: dict[str, list[dict[str, Any]]] = {}
    for place in places(module):
        if isinstance(place, ConstantOp):
            own = {"row": place.first_row, **form_content(place.content)}
            constants.setdefault(place.buffer.root_reference.data, []).append(own)
    buffers = {buffer.sym_name.data: _buffer(buffer) for buffer in program.buffers}
    logits = program.logits.root_reference.data
    residents = residents_of(module)
    states = {
        name: {"size": size, "row": reserved[name].first_row}
        for name, size in state_sizes(module).items()
    }
    matrices = {name: _matrices(one, reserved[name]) for name, one in matrices_of(module).items()}
    return {
        "schema": SCHEMA,
        "machine": machine_of(module).to_dict(),
        "memories": {name: asdict(one) for name, one in memories(module).items()},
        "parameters": {
            op.sym_name.data: _parameter(
                op,
                pieces.get(op.sym_name.data),
                reserved.get(op.sym_name.data),
                constants.get(op.sym_name.data),
            )
            for op in module.ops
            if isinstance(op, rom.ParameterOp)
        },
        "caches": {
            op.sym_name.data: _cache(op, reserved[op.sym_name.data])
            for op in module.ops
            if isinstance(op, rom.CacheOp)
        },
        **({"states": states} if states else {}),
        **({"matrices": matrices} if matrices else {}),
        "sites": {
            op.site.data: _site(op, module) for op in module.ops if isinstance(op, rom.SiteOp)
        },
        **({"residents": residents} if residents != 1 else {}),
        "domains": {
            op.sym_name.data: list(op.names) for op in module.ops if isinstance(op, DomainOp)
        },
        "name": program.sym_name.data,
        "vocabulary": buffers[logits]["type"]["size"],
        "positions": list(program.positions.get_values()),
        "logits": logits,
        "token": program.token.root_reference.data,
        "buffers": buffers,
        "blocks": [_block(block) for block in program.blocks],
    }


def _parameter(
    op: rom.ParameterOp,
    pieces: list[dict[str, Any]] | None,
    place: ReserveOp | None,
    constants: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    type_ = op.type
    assert isinstance(type_, rom.ROMTensorType | rom.AdapterType)
    content: dict[str, Any] = {
        "key": op.source,
        "store": type_.name,
        "dims": list(type_.dims),
        "code": type_.code.data,
        "bits": type_.bits,
    }
    if type_.is_matrix:
        content["group"] = type_.group.data
        if type_.offsets.data:
            content["offset_bits"] = type_.offsets.data
        if type_.experts.data != 1:
            content["experts"] = type_.experts.data
    if op.exponent is not None:
        content["exponent"] = op.exponent.value.data
    if op.zero is not None:
        content["zero"] = op.zero.value.data
    if pieces is not None:
        content["pieces"] = pieces
    if constants is not None:
        content["constants"] = constants
    if place is not None:
        content["unit"], content["row"] = place.first_unit, place.first_row
        content["scale"] = place.first_scale
    images = {
        "codes": op.codes,
        "scales": op.scales,
        "zeros": op.zeros,
        "offsets": op.offsets,
    }
    for part, image in images.items():
        if image is not None:
            content[part] = {
                "file": image.file.data,
                "offset": image.offset.data,
                "size": image.size.data,
                "sha256": image.sha256.data,
            }
    return content


def _site(op: rom.SiteOp, module: ModuleOp) -> dict[str, Any]:
    slot = rom.resolve(op, op.a).type
    assert isinstance(slot, rom.AdapterType)
    rank, columns = slot.dims
    first, last = op.first_row.value.data, op.last_row.value.data
    return {
        "a": name_of(op.a),
        "b": name_of(op.b),
        "rows": last - first,
        "columns": columns,
        "rank": rank,
        "matrix": name_of(op.matrix),
        "first_row": first,
        "onnx": rom.node_names(op.onnx)[0],
    }


def _cache(op: rom.CacheOp, place: ReserveOp) -> dict[str, Any]:
    assert isinstance(op.type, rom.KVType)
    content: dict[str, Any] = {
        "capacity": op.type.capacity.data,
        "heads": op.type.heads.data,
        "width": op.type.width.data,
        "format": op.type.format.data,
        "row": place.first_row,
        "scale": place.first_scale,
        **({} if place.external is None else {"external": place.first_external}),
    }
    if isinstance(op.static_scale, rom.RealAttr) and op.static_inverse is not None:
        content["static_scale"] = _real(op.static_scale)
        content["static_inverse"] = _real(op.static_inverse)
    return content


def _matrices(type_: rom.MatricesType, place: ReserveOp) -> dict[str, Any]:
    heads, key_width, value_width = type_.dims
    return {
        "heads": heads,
        "key_width": key_width,
        "value_width": value_width,
        "row": place.first_row,
        "scale": place.first_scale,
    }


def _real(attribute: rom.RealAttr) -> list[int]:
    return [attribute.mantissa.data, attribute.exponent.data]


def _buffer(op: BufferOp) -> dict[str, Any]:
    content: dict[str, Any] = {"type": op.value.plain}
    if op.memory is not None:
        row, element = op.place
        content["memory"], content["row"] = op.memory.root_reference.data, row
        if element:
            content["element"] = element
    if op.of is not None:
        content["of"] = op.of.root_reference.data
    return content


def _block(op: BlockOp) -> dict[str, Any]:
    return {
        "name": op.sym_name.data,
        "sampled": op.sampled is not None,
        "instances": op.bindings,
        "instructions": [_instruction(instruction) for instruction in op.instructions],
    }


def _instruction(op: InstructionOp) -> dict[str, Any]:
    does = op.does
    times = {"pace": op.pace, "reduces": op.reduces}
    return {
        "opcode": does.opcode,
        "queue": does.queue,
        "reads": list(does.reads),
        "writes": list(does.writes),
        "uses": does.uses,
        "waits": dict(op.issue.waits),
        "duration": op.duration.data,
        **{name: one.data for name, one in times.items() if one is not None},
        **({"beat": op.part.words} if op.beat is not None else {}),
        "arguments": does.arguments,
        "onnx": rom.node_names(op.onnx),
        "start": [] if op.start is None else list(op.start.get_values()),
        "finish": [] if op.finish is None else list(op.finish.get_values()),
    }
