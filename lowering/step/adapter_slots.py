"""`rom-adapter-slots`: puts empty slots for low-rank adapters beside the matrices of a model.

At each site (`lowering/step/sites.py`) y = W x becomes y + B (A x), where A [rank, K] and B [N,
rank] are slots: SRAM that the chip's load port fills while the program stays the same. The addition
is the last one before y is used: a residual that was added to y already is so first, and stays part
of the matrix product. Of the program without adapters every instruction stays as it is.

The pass runs on the float stage, before or after `rom-outline-layers`, with a `fabric.machine` for
the slots' format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, ModuleOp, StringAttr, SymbolRefAttr
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import machine_of
from intaglio.lowering.order import check_before
from intaglio.lowering.step.sites import (
    Body,
    Place,
    bodies,
    check_unique,
    families,
    matrix_name,
    names,
    selected,
)

KEY = "adapter::"
"""How keys of slots begin: `adapter::layers.0.q_proj.A`."""


@dataclass(frozen=True)
class RomAdapterSlots(ModulePass):
    """Adds slots, the products with them, and the declarations of the sites.

    Options: `rank`, the largest rank of an adapter; `modules`, the roles that get slots, such as
    q_proj (none: those that the target names); `residents`, how many adapters the slots hold at
    once, of which one is active.
    """

    name = "rom-adapter-slots"

    rank: int
    modules: tuple[str, ...] = ()
    residents: int = 1

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Changes the module in place.

        Raises:
            UserError: a module is unknown, or the rank or the number of residents is not positive.
        """
        if self.rank < 1:
            raise UserError(f"adapter slots have a rank of at least 1, not {self.rank}")
        if self.residents < 1:
            raise UserError(f"adapter slots hold at least 1 adapter, not {self.residents}")
        machine = machine_of(op)
        check_before("rom-legalize", op, self.name)
        if any(isinstance(one, rom.SiteOp) for one in op.ops):
            raise PassFailedException("the module has adapter slots already")
        found = bodies(op)
        roles = selected(found, self.modules, machine.adapter_sites, families(op))
        check_unique(found, roles)
        sites: list[rom.SiteOp] = []
        for body in found:
            places = [place for place in body.places if place.role in roles]
            slots = [_Slots(body, place, self.rank, machine.adapter) for place in places]
            for slot in slots:
                sites += slot.declare(op, self.residents)
            _insert(body, slots)
        order = {name: number for number, name in enumerate(names(found))}
        sites.sort(key=lambda site: order[site.site.data])
        Rewriter.insert_op(sites, InsertPoint.after(_buffers(op)[-1]))


def _buffers(module: ModuleOp) -> list[Operation]:
    return [op for op in module.ops if isinstance(op, rom.ParameterOp | rom.CacheOp | rom.StateOp)]


def _unique(name: str, taken: set[str]) -> str:
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


def _symbols(ops: Sequence[Operation]) -> set[str]:
    return {
        name.data for op in ops if isinstance(name := op.properties.get("sym_name"), StringAttr)
    }


@dataclass
class _Slots:
    """The two slots of a place and what is made of them."""

    body: Body
    place: Place
    rank: int
    code: str
    a: str = ""
    """What the place's block calls A."""
    b: str = ""

    @property
    def types(self) -> tuple[rom.AdapterType, rom.AdapterType]:
        """Of A and B."""
        place = self.place
        return (
            rom.AdapterType((self.rank, place.columns), self.code),
            rom.AdapterType((place.rows, self.rank), self.code),
        )

    def declare(self, module: ModuleOp, residents: int) -> list[rom.SiteOp]:
        """Declares the slots of all instances, binds them, and gives their sites."""
        body, place = self.body, self.place
        parameters: list[rom.ParameterOp] = []
        sites: list[rom.SiteOp] = []
        taken = _symbols(list(module.ops))
        for instance in range(len(body.first)):
            site = body.site(place, instance)
            for letter, type_ in zip("AB", self.types, strict=True):
                name = _unique(f"{site.replace('.', '_')}_{letter}", taken)
                taken.add(name)
                parameters.append(rom.ParameterOp(name, type_, f"{KEY}{site}.{letter}"))
            a, b = (p.sym_name.data for p in parameters[-2:])
            rows = place.first_row, place.first_row + place.rows
            nodes = ArrayAttr([place.linear.onnx.data[instance]])
            matrix = matrix_name(body, place, instance)
            sites.append(rom.SiteOp(site, matrix, rows, a, b, nodes, residents))
        known = [op for op in module.ops if isinstance(op, rom.ParameterOp)]
        Rewriter.insert_op(parameters, InsertPoint.after(known[-1]))
        if body.repeat is None:
            self.a, self.b = (p.sym_name.data for p in parameters)
        else:
            self.bind(body.repeat, [p.sym_name.data for p in parameters])
        return sites

    def bind(self, repeat: rom.RepeatOp, parameters: Sequence[str]) -> None:
        """Gives the layer a slot for A and one for B, and each instance its own parameters."""
        layer = repeat.body()
        slots = list(layer.slots)
        taken = _symbols(slots)
        self.a, self.b = (_unique(f"{self.place.role}_{letter}", taken) for letter in "AB")
        new = [rom.SlotOp(n, t) for n, t in zip((self.a, self.b), self.types, strict=True)]
        Rewriter.insert_op(new, InsertPoint.after(slots[-1]))
        instances: list[DictionaryAttr] = []
        for number, one in enumerate(repeat.instances):
            bound: dict[str, Attribute] = dict(one.data)
            bound[self.a] = SymbolRefAttr(parameters[2 * number])
            bound[self.b] = SymbolRefAttr(parameters[2 * number + 1])
            instances.append(DictionaryAttr(bound))
        repeat.instances = ArrayAttr(instances)


# --- operators ----------------------------------------------------------------------------------


def _insert(body: Body, slots: Sequence[_Slots]) -> None:
    """Adds the products of all places of a block.

    Sites of one input (q, k and v; gate and up) are kept together: their first products follow the
    matrices, their second ones come when the first of their results is needed. So each has the
    others' time to be quantised in between.
    """
    values = [_with_residual(slot.place) for slot in slots]
    inner: list[SSAValue] = []
    last: dict[Operation, Operation] = {}
    for slot in slots:
        linear = slot.place.linear
        size = rom.float_vector(slot.rank)
        first = rom.LinearOp(linear.input, slot.a, linear.onnx, size)
        # So that both products read the same codes.
        first.activation = linear.activation
        # After the matrix and what other sites of the same matrix have put behind it.
        Rewriter.insert_op(first, InsertPoint.after(last.get(linear, linear)))
        last[linear] = first
        inner.append(first.output)
    where = _second_products(body, slots, values)
    for slot, value, hidden, before in zip(slots, values, inner, where, strict=True):
        linear = slot.place.linear
        users = list(value.uses)
        size = rom.float_vector(slot.place.rows)
        second = rom.LinearOp(hidden, slot.b, linear.onnx, size)
        total = rom.AddOp(value, second.output, linear.onnx)
        Rewriter.insert_op([second, total], InsertPoint.before(before))
        for use in users:
            use.operation.operands[use.index] = total.output


def _second_products(
    body: Body, slots: Sequence[_Slots], values: Sequence[SSAValue]
) -> list[Operation]:
    """For each place the operator before which its result must be complete."""
    order = {op: number for number, op in enumerate(body.block.ops)}
    needed = [min((use.operation for use in v.uses), key=lambda op: order[op]) for v in values]
    earliest: dict[SSAValue, Operation] = {}
    for slot, op in zip(slots, needed, strict=True):
        x = slot.place.linear.input
        earliest[x] = min(earliest.get(x, op), op, key=lambda op: order[op])
    where: list[Operation] = []
    for slot, value, op in zip(slots, values, needed, strict=True):
        group = earliest[slot.place.linear.input]
        owner = value.owner
        assert isinstance(owner, Operation)
        where.append(group if order[owner] < order[group] else op)
    return where


def _with_residual(place: Place) -> SSAValue:
    """The place's value, with what is added to it at once, where that is known before it.

    Such an addition becomes part of the matrix product (`rom-fuse-residual`), and must stay so.
    """
    value = place.value
    uses = list(value.uses)
    if len(uses) != 1 or not isinstance(add := uses[0].operation, rom.AddOp):
        return value
    block, owner = add.parent_block(), value.owner
    assert block is not None and isinstance(owner, Operation)
    other = add.rhs if add.lhs is value else add.lhs
    maker = other.owner
    if isinstance(maker, Operation) and (
        maker.parent_block() is not block
        or block.get_operation_index(maker) > block.get_operation_index(owner)
    ):
        return value
    add.detach()
    Rewriter.insert_op(add, InsertPoint.after(owner))
    return add.output
