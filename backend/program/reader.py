"""Reads the content of a program.json: every value by its type, every name by where it leads.

The compiler wrote the file, but it can be damaged, or edited by hand. A value that is read here
needs no further look: what is wrong is said with the file and the key.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from intaglio.backend.output.output import inside
from intaglio.backend.program.types import (
    PARTS,
    Block,
    Buffer,
    Cache,
    Instruction,
    Matrices,
    Parameter,
    Part,
    Program,
    Site,
    State,
)
from intaglio.dialects import formula, part_of, timeline
from intaglio.dialects.codes import DENSE_BITS, SLOT_BITS, WEIGHT_BITS
from intaglio.dialects.constant_rom import FORMS, PLAIN, Form
from intaglio.dialects.errors import UserError
from intaglio.dialects.fixed_point import Real
from intaglio.dialects.formats import FORMATS
from intaglio.dialects.gating import NO_DOMAIN
from intaglio.dialects.h_units import STATE_SCALES, STATES
from intaglio.dialects.isa.beat import MOST, WHOLE, WORDS, Beat
from intaglio.dialects.isa.check import Misfit, check_kinds
from intaglio.dialects.isa.parts import Store
from intaglio.dialects.isa.queues import COUNTERS, reductions_of
from intaglio.dialects.isa.registry import instruction_of
from intaglio.dialects.isa.values import Fixed, Value, read_value
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import VECTORS, Memory, memory_of, span_of
from intaglio.dialects.tiling import Piece

PROGRAM = "program.json"
_LONGEST = 10_000
"""Characters of a duration."""
_CODES = tuple({**WEIGHT_BITS, **SLOT_BITS, **DENSE_BITS})
_IN_ROM = "rom.tensor"
_STORES = (_IN_ROM, "rom.adapter")


def read_program(content: JSONFile, folder: Path) -> Program:
    """The program from the content of a program.json.

    Args:
        content: of the file.
        folder: the output folder.

    Raises:
        UserError: names the key that is missing or wrong.
    """
    machine = content["machine"].read_as(_machine, "description of a machine")
    parameters = {
        name: _parameter(name, one, folder) for name, one in content["parameters"].items()
    }
    caches = {name: _cache(name, one) for name, one in content["caches"].items()}
    if not caches and content.get("states") is None and content.get("matrices") is None:
        raise content["caches"].error("is empty: a decoder has caches or states")
    memories = {name: _memory(one) for name, one in content["memories"].items()}
    capacity = max((cache.capacity for cache in caches.values()), default=1)
    buffers = {
        name: _buffer(name, one, memories, capacity) for name, one in content["buffers"].items()
    }
    stated = content.get("states")
    states = {} if stated is None else {n: _state(n, one, memories) for n, one in stated.items()}
    _check_apart(content, states, buffers, machine)
    given = content.get("matrices")
    matrices = {} if given is None else {n: _matrices(n, one, machine) for n, one in given.items()}
    _check_matrices(content, matrices, memories, machine)
    logits = _named(content["logits"], buffers, "buffer")
    result = buffers[logits].type
    if not isinstance(result, Fixed):
        raise content["logits"].error(f"is the buffer '{logits}', which holds no fixed numbers")
    vocabulary = content["vocabulary"].count(1)
    if vocabulary != result.size:
        raise content["vocabulary"].error(f"is {vocabulary}, the logits have {result.size}")
    domains = {
        name: [_named(each, parameters, "parameter") for each in one.list()]
        for name, one in content["domains"].items()
    }
    found = content.get("residents")
    # A switch of nothing: where the next block has no domain.
    switched = [*domains, NO_DOMAIN] if domains else []
    stores = {
        **dict.fromkeys(switched, Store.DOMAIN),
        **{name: _store(one) for name, one in parameters.items()},
        **{
            name: Store.CACHE if one.static_scale is None else Store.STATIC_CACHE
            for name, one in caches.items()
        },
        **dict.fromkeys(states, Store.STATE),
        **dict.fromkeys(matrices, Store.MATRICES),
    }
    used = _Used({name: type(one.type) for name, one in buffers.items()}, stores)
    program = Program(
        machine=machine,
        memories=memories,
        name=content["name"].text(),
        vocabulary=vocabulary,
        parameters=parameters,
        caches=caches,
        buffers=buffers,
        blocks=[_block(one, used) for one in content["blocks"].list()],
        positions=content["positions"].counts(),
        logits=logits,
        token=_named(content["token"], buffers, "buffer"),
        domains=domains,
        sites={name: _site(name, one, parameters) for name, one in content["sites"].items()},
        residents=1 if found is None else found.count(1),
        states=states,
        matrices=matrices,
    )
    _check_parts(content, program)
    return program


def _check_parts(content: JSONFile, program: Program) -> None:
    """Parts lie within what they are parts of.

    Raises:
        UserError: names the buffer.
    """
    of = {name: one.of for name, one in program.buffers.items() if one.of is not None}
    kinds = {name: one.type for name, one in program.buffers.items()}
    places = {name: program.span(name) for name in program.buffers}
    for name in of:
        fault = part_of.fault(name, of, kinds, places, program.written)
        if fault is not None:
            raise content["buffers"][name].error(fault)


def _machine(content: JSONFile) -> Machine:
    for name, one in content.items():
        if isinstance(one.value, list):
            one.texts()
        elif not isinstance(one.value, str) or name not in _MACHINE_TEXTS:
            one.count()
    machine = Machine.from_dict({name: one.value for name, one in content.items()})
    machine.check()
    return machine


_MACHINE_TEXTS = frozenset(
    name for name, kind in Machine.__annotations__.items() if str(kind) == "str"
)


def _named(content: JSONFile, known: Container[str], kind: str) -> str:
    name = content.text()
    if name not in known:
        raise content.error(f"is '{name}', and there is no {kind} of this name")
    return name


def _parameter(name: str, content: JSONFile, folder: Path) -> Parameter:
    content.only(
        *("key", "store", "dims", "code", "bits", "group", "exponent", "zero", "pieces"),
        *("unit", "row", "scale", "constants", "offset_bits", "experts", *PARTS),
    )
    dims = tuple(one.count(1) for one in content["dims"].list())
    if not dims:
        raise content["dims"].error("is empty")
    group = content.get("group")
    exponent, zero = content.get("exponent"), content.get("zero")
    pieces = content.get("pieces")
    unit, row, scale = (content.get(key) for key in ("unit", "row", "scale"))
    constants = content.get("constants")
    parts = {key: content.get(key) for key in PARTS}
    offset_bits, experts = content.get("offset_bits"), content.get("experts")
    if experts is not None and dims[0] % experts.count(1):
        raise experts.error(f"is {experts.count(1)}, which {dims[0]} rows are not those of")
    return Parameter(
        name=name,
        key=content["key"].text(),
        store=content["store"].text(*_STORES),
        dims=dims,
        code=content["code"].text(*_CODES),
        bits=content["bits"].integer(1, 64),
        group=0 if group is None else group.count(),
        exponent=0 if exponent is None else exponent.integer(-1024, 1024),
        zero=None if zero is None else zero.integer(0, 255),
        pieces=() if pieces is None else tuple(_piece(one) for one in pieces.list()),
        unit=0 if unit is None else unit.count(),
        row=0 if row is None else row.count(),
        scale=0 if scale is None else scale.count(),
        constants=() if constants is None else tuple(_constant(one) for one in constants.list()),
        codes=_part(parts["codes"], folder),
        scales=_part(parts["scales"], folder),
        zeros=_part(parts["zeros"], folder),
        experts=1 if experts is None else experts.count(1),
        offset_bits=0 if offset_bits is None else offset_bits.integer(0, 64),
        offsets=_part(parts["offsets"], folder),
    )


def _constant(content: JSONFile) -> tuple[Form, int]:
    content.only("row", "form", "period", "negated")
    kind, period, negated = (content.get(key) for key in ("form", "period", "negated"))
    form = Form(
        PLAIN if kind is None else kind.text(*FORMS),
        0 if period is None else period.count(1),
        negated is not None and negated.boolean(),
    )
    return form, content["row"].count()


def _store(parameter: Parameter) -> Store:
    return Store.of_tensor(parameter.store == _IN_ROM, parameter.code, parameter.dims)


def _part(content: JSONFile | None, folder: Path) -> Part | None:
    if content is None:
        return None
    content.only("file", "offset", "size", "sha256")
    inside(folder, content["file"].text(), PROGRAM)
    return Part(
        content["file"].text(),
        content["offset"].count(),
        content["size"].count(),
        content["sha256"].digest(),
    )


def _piece(content: JSONFile) -> Piece:
    content.only("rows", "tiles", "split", "run", "at")
    (first_row, last_row), (first_tile, last_tile), (base, scale_base) = (
        [one.count() for one in content[key].list(2)] for key in ("rows", "tiles", "at")
    )
    for key, first, last in (("rows", first_row, last_row), ("tiles", first_tile, last_tile)):
        if not first < last:
            raise content[key].error(f"is {first} to {last}, which is nothing")
    return Piece(
        first_row,
        last_row - first_row,
        first_tile,
        last_tile - first_tile,
        content["split"].count(1),
        base,
        scale_base,
        0 if (run := content.get("run")) is None else run.count(1),
    )


def _cache(name: str, content: JSONFile) -> Cache:
    content.only(
        *("capacity", "heads", "width", "format", "row", "scale", "external"),
        *("static_scale", "static_inverse"),
    )
    scale, inverse = content.get("static_scale"), content.get("static_inverse")
    if (scale is None) != (inverse is None):
        raise content.error("has a static scale or its inverse, and not both")
    external = content.get("external")
    return Cache(
        name,
        content["capacity"].count(1),
        content["heads"].count(1),
        content["width"].count(1),
        content["format"].text(*FORMATS),
        content["row"].count(),
        content["scale"].count(),
        0 if external is None else external.count(),
        None if scale is None else _real(scale),
        None if inverse is None else _real(inverse),
    )


def _state(name: str, content: JSONFile, memories: Mapping[str, Memory]) -> State:
    content.only("size", "row")
    size, row = content["size"].count(1), content["row"].count()
    one = memories.get(VECTORS)
    if one is None or row + -(-size // one.lanes) > one.rows:
        raise content.error(f"lies outside of the memory {VECTORS}")
    return State(name, size, row)


def _matrices(name: str, content: JSONFile, machine: Machine) -> Matrices:
    sizes = ("heads", "key_width", "value_width")
    content.only(*sizes, "row", "scale")
    heads, key_width, value_width = (content[key].count(1) for key in sizes)
    row, scale = content["row"].count(), content["scale"].count()
    return Matrices(name, heads, key_width, value_width, row, scale)


def _check_matrices(
    content: JSONFile,
    matrices: Mapping[str, Matrices],
    memories: Mapping[str, Memory],
    machine: Machine,
) -> None:
    """States of linear attention lie in their memories, apart.

    Raises:
        UserError: one lies outside, or shares rows with another.
    """
    for memory, taken in (
        (STATES, {n: (one.row, one.shape(machine).rows) for n, one in matrices.items()}),
        (STATE_SCALES, {n: (one.scale, one.heads) for n, one in matrices.items()}),
    ):
        done, before = 0, ""
        for name, (first, rows) in sorted(taken.items(), key=lambda item: item[1]):
            if memory not in memories or first + rows > memories[memory].rows:
                raise content["matrices"][name].error(f"lies outside of the memory {memory}")
            if first < done:
                raise content["matrices"][name].error(f"shares rows with '{before}'")
            done, before = first + rows, name


def _check_apart(
    content: JSONFile,
    states: Mapping[str, State],
    buffers: Mapping[str, Buffer],
    machine: Machine,
) -> None:
    """States lie in rows of their own: they outlive a token, values do not.

    Raises:
        UserError: a value or another state has an element of it.
    """
    lanes = machine.vector_lanes
    ends = sorted((one.row, one.row + -(-one.size // lanes), name) for name, one in states.items())
    for name, one in buffers.items():
        if ends and one.memory == VECTORS and isinstance(one.type, Fixed):
            last = one.row + -(-(one.element + one.type.size) // lanes)
            ends.append((one.row, last, name))
    for name in states:
        first, last, _ = next(one for one in ends if one[2] == name)
        for begin, end, other in ends:
            if other != name and begin < last and first < end:
                raise content["states"][name].error(f"shares rows with '{other}'")


def _real(content: JSONFile) -> Real:
    mantissa, exponent = content.list(2)
    return Real(mantissa.integer(), exponent.integer(-1024, 1024))


def _memory(content: JSONFile) -> Memory:
    content.only("rows", "lanes", "bits", "units", "resident")
    rows, lanes, bits, units = (content[key].count(1) for key in ("rows", "lanes", "bits", "units"))
    return Memory(rows, lanes, bits, units, content["resident"].count())


def _buffer(name: str, content: JSONFile, memories: Mapping[str, Memory], capacity: int) -> Buffer:
    value = read_value(content["type"])
    if (memory := memory_of(value)) is None:
        content.only("type")
        return Buffer(name, value, None)
    content.only("memory", "row", "element", "of", "type")
    _ = content["memory"].text(memory)
    of = content.get("of")
    _ = _named(content["memory"], memories, "memory")
    row, found = content["row"].count(), content.get("element")
    element, one = 0 if found is None else found.count(), memories[memory]
    where = span_of(value, row, element, one.lanes, capacity)
    if where is not None and (end := one.row_after(where)) > one.rows:
        raise content.error(f"ends at row {end}, the memory {memory} has {one.rows}")
    return Buffer(name, value, memory, row, element, None if of is None else of.text())


def _site(name: str, content: JSONFile, parameters: Mapping[str, Parameter]) -> Site:
    content.only("a", "b", "rows", "columns", "rank", "matrix", "first_row", "onnx")
    a, b, matrix = (_named(content[key], parameters, "parameter") for key in ("a", "b", "matrix"))
    rows, columns, rank = (content[key].count(1) for key in ("rows", "columns", "rank"))
    for key, slot, dims in (("a", a, (rank, columns)), ("b", b, (rows, rank))):
        if parameters[slot].dims != dims:
            stated = list(parameters[slot].dims)
            raise content[key].error(f"is '{slot}' of {stated}, the site needs {list(dims)}")
    return Site(
        name=name,
        a=a,
        b=b,
        rows=rows,
        columns=columns,
        rank=rank,
        matrix=matrix,
        first_row=content["first_row"].count(),
        onnx=content["onnx"].texts(),
    )


@dataclass(frozen=True)
class _Used:
    """What instructions name: buffers; tensors, caches and power domains, each of its kind."""

    kinds: Mapping[str, type[Value]]
    stores: Mapping[str, Store]


def _block(content: JSONFile, used: _Used) -> Block:
    content.only("name", "sampled", "instances", "instructions")
    instances = [
        {slot: _named(to, used.stores, "tensor or power domain") for slot, to in one.items()}
        for one in content["instances"].list()
    ]
    issued = dict.fromkeys(COUNTERS, 0)
    instructions: list[Instruction] = []
    for one in content["instructions"].list():
        instructions.append(_instruction(one, used, instances, issued))
        issued[instructions[-1].queue] += 1
        of = reductions_of(instructions[-1].queue)
        issued[of] += instructions[-1].issue.reduces is not None
    for one, instruction in zip(content["instructions"].list(), instructions, strict=True):
        # They reach back into the instance before, and no further.
        for name in instruction.issue.waits:
            one["waits"][name].integer(-issued[name], issued[name])
    return Block(content["name"].text(), content["sampled"].boolean(), instances, instructions)


def _instruction(
    content: JSONFile,
    used: _Used,
    instances: Sequence[Mapping[str, str]],
    issued: Mapping[str, int],
) -> Instruction:
    content.only(
        *("opcode", "queue", "reads", "writes", "uses", "waits", "duration", "arguments"),
        *("onnx", "start", "finish", "pace", "reduces", "beat"),
    )
    opcode, queue = content["opcode"].text(), content["queue"].text()
    reads, writes = (
        [_named(one, used.kinds, "buffer") for one in content[key].list()]
        for key in ("reads", "writes")
    )
    uses = {role: slot.text() for role, slot in content["uses"].items()}
    for role, slot in uses.items():
        if not all(slot in instance for instance in instances):
            raise content["uses"][role].error(
                f"is '{slot}', which not every instance of the block has"
            )
    arguments = {name: one.value for name, one in content["arguments"].items()}
    onnx = [one.texts() for one in content["onnx"].list()]
    try:
        does = instruction_of(opcode, queue, reads, writes, uses, arguments)
        check_kinds(does, used.kinds, instances, used.stores)
    except Misfit as error:
        raise UserError(
            f"{content.place}: {error}",
            file=content.file,
            node=next((name for names in onnx for name in names), None),
            hint=content.hint,
        ) from error
    waits: dict[str, int] = {}
    for name, one in content["waits"].items():
        if name not in COUNTERS:
            raise content["waits"].error(f"has the unknown queue '{name}'")
        waits[name] = one.integer(-MOST, issued[name])
    duration = content["duration"].read_as(_duration, "duration")
    pace, reduces = (
        None if one is None else one.read_as(_duration, "duration")
        for one in (content.get("pace"), content.get("reduces"))
    )
    if reduces is not None and pace is None:
        raise content["reduces"].error("is there without a pace")
    beat = WHOLE
    if (stated := content.get("beat")) is not None:
        beat = Beat.read({n: one.integer(0, MOST) for n, one in stated.only(*WORDS).items()})
    return Instruction(
        does=does,
        onnx=onnx,
        issue=timeline.Issue(queue, waits, duration, pace, reduces),
        start=content["start"].counts(),
        finish=content["finish"].counts(),
        beat=beat,
    )


def _duration(content: JSONFile) -> formula.Formula:
    text = content.text()
    if len(text) > _LONGEST:
        raise content.error(f"has {len(text)} characters, at most {_LONGEST} are read")
    found = formula.parse(text)
    if (first := int(found(tokens=1, rank=0))) < 0:
        raise content.error(f"gives {first} cycles for the first token")
    return found
