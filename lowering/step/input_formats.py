"""Which format the input of each product has, where single matrices are told another one.

`--set activations.NAME=FORMAT` names matrices as adapters' modules and `--weights` do: by the role
that `sites` finds (q_proj to down_proj, or a packed qkv_proj, gate_up_proj), as lm_head, experts or
router, or by a part of the name of an ONNX node or tensor. The first name that fits a matrix
decides. Products that share an input but not its format each read their own rounding of it.

`--set wide.NAME=3,17-20` names blocks of such an input whose codes have 16 bits, where it has an
exponent a block. On a chip whose activations have, int16 is that: all blocks are wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import Operation, SSAValue

from intaglio.dialects import rom
from intaglio.dialects.errors import UserError, meant
from intaglio.dialects.formats import BLOCK_FORMATS, FORMATS
from intaglio.dialects.machine import Machine
from intaglio.dialects.number_ranges import read_ranges
from intaglio.lowering.buffers import name_of
from intaglio.lowering.step.sites import PACKED, ROLES, bodies

HEAD, EXPERTS, ROUTER = "lm_head", "experts", "router"
"""Names of matrices that are no roles of a layer's own."""

ALL = "all"
"""All blocks."""
VALUES = {"activations": "FORMAT", "wide": "BLOCKS"}
"""What settings say of matrices, in messages."""
_OWN = {"activations": "a format of its own", "wide": "wide blocks"}

Product = rom.LinearOp | rom.ExpertLinearOp


def told_formats(module: ModuleOp, machine: Machine) -> Mapping[Operation, str]:
    """The formats of `Machine.activations_of` for products of a module of the float stage.

    Raises:
        UserError: a name fits no matrix, or only some of what layers share; or two names that one
            matrix holds have different formats.
    """
    return _told(module, machine.activations_of, "activations")


def wide_blocks(
    module: ModuleOp, machine: Machine, formats: Mapping[Operation, str]
) -> Mapping[Operation, frozenset[int]]:
    """Which blocks of the inputs of products of the float stage have codes of 16 bits.

    Args:
        module: the module.
        machine: the chip.
        formats: of `told_formats`.

    Raises:
        UserError: as of `told_formats`; or an input has no blocks, or not such a one.
    """
    told = dict(_told(module, machine.wide_of, "wide"))
    if machine.has_blocks:
        told |= {op: ALL for op, fmt in formats.items() if fmt == "int16" and op not in told}
    found: dict[Operation, frozenset[int]] = {}
    for op, text in told.items():
        assert isinstance(op, Product)
        size = rom.vector_size(op.input.type)
        if not machine.block or not FORMATS[input_format(op, machine, formats)].by_block:
            raise UserError(
                f"wide blocks are those of {' and '.join(BLOCK_FORMATS)}, and this input is "
                f"{input_format(op, machine, formats)}",
                node=_node(op),
                hint=f"--set activations={BLOCK_FORMATS[0]}",
            )
        every = frozenset(range(-(-size // machine.block)))
        found[op] = every if text == ALL else read_ranges(text)
        if more := found[op] - every:
            raise UserError(
                f"block {min(more)} is to be wide; an input of {size} has {len(every)} blocks of "
                f"{machine.block}, from 0 to {len(every) - 1}",
                node=_node(op),
            )
    return found


def input_format(op: Product, machine: Machine, told: Mapping[Operation, str]) -> str:
    """How an operator's input is rounded; `told` is of `told_formats`.

    What the graph itself rounds to int8 is rounded to int8 where the machine's integers are wider:
    int8 codes are int16 codes too; so it is where they have an exponent a block, since its sums are
    then those of the graph. Other formats stand in for it (see `legalize.substituted`).
    """
    if op in told:
        # Of blocks all are wide then (`wide_blocks`).
        wide = machine.has_blocks and told[op] == "int16"
        return machine.activations if wide else told[op]
    wanted = op.activation.data if isinstance(op, rom.LinearOp) and op.activation else None
    if wanted == "int8" and machine.activations == "int16":
        return wanted
    return machine.scaled_activations if wanted else machine.activations


def unheard(module: ModuleOp, machine: Machine) -> list[str]:
    """Warnings of settings that say nothing, since those before them decide all that they fit."""
    found: list[str] = []
    for setting, lines in (("activations", machine.activations_of), ("wide", machine.wide_of)):
        fitting = _fitting(module, lines, setting).values()
        heard = {one for held in fitting for one in held if one[1] == held[0][1]}
        for one in (line for held in fitting for line in held if line not in heard):
            before = next(held[0] for held in fitting if one in held)
            found.append(
                f"--set {setting}.{'='.join(one)} says nothing: {setting}.{'='.join(before)} comes "
                "before it and fits the same matrices; the first one decides"
            )
    return list(dict.fromkeys(found))


def _told(module: ModuleOp, lines: Sequence[str], setting: str) -> Mapping[Operation, str]:
    """What lines `NAME=VALUE` of a setting say of products."""
    return {op: held[0][1] for op, held in _fitting(module, lines, setting).items()}


def _fitting(
    module: ModuleOp, lines: Sequence[str], setting: str
) -> Mapping[Operation, list[tuple[str, str]]]:
    """The lines `NAME=VALUE` of a setting that fit each product, where any does."""
    if not lines:
        return {}
    told = [(name, value) for name, _, value in (one.partition("=") for one in lines)]
    roles = _roles(module)
    products = [op for op in module.walk() if isinstance(op, Product) and _engraved(op)]
    texts = {op: _texts(op) for op in products}
    found: dict[Operation, list[tuple[str, str]]] = {}
    used: set[str] = set()
    for op in products:
        held = roles.get(op, ())
        of = {name: fmt for name, fmt in told if _is_role(name, held)}
        if len(set(of.values())) > 1 and len(set(held) & set(ROLES)) > 1:
            raise UserError(
                f"{', '.join(f'{n} is told {f}' for n, f in of.items())}, but one matrix holds "
                "them, with one input",
                node=_node(op),
                hint=f"--set {setting}.{_packed(held)}={VALUES[setting]}",
            )
        for name, fmt in told:
            instances = [any(name in text for text in one) for one in texts[op]]
            if not _is_role(name, held) and not any(instances):
                continue
            if not _is_role(name, held) and not all(instances):
                raise UserError(
                    f"{setting}.{name} fits the matrices of some layers only, and layers share "
                    "their instructions",
                    node=_node(op),
                    hint="name what all of them have: "
                    + ", ".join(held or ("a part of the node",)),
                )
            used.add(name)
            found.setdefault(op, []).append((name, fmt))
    names = sorted({name for one in roles.values() for name in one})
    for name, _ in told:
        if name not in used:
            raise UserError(
                f"no matrix is called '{name}', so its input cannot have {_OWN[setting]}",
                hint=f"{meant(name, names)}this model has {', '.join(names)}; a part of the name "
                "of an ONNX node or tensor does too",
            )
    return found


def labels(module: ModuleOp) -> dict[Product, str]:
    """What to call the input of each product: that of its packed role, its role, or the part of its
    node's name that layers share."""
    roles = _roles(module)
    found: dict[Product, str] = {}
    for op in module.walk():
        if isinstance(op, Product) and _engraved(op):
            held = roles.get(op, ())
            packed = [name for name, parts in PACKED.items() if set(parts) & set(held)]
            found[op] = (*packed, *held, _shared_name(op))[0]
    return found


def _shared_name(op: Product) -> str:
    """The longest run of parts of the node's name that all instances have."""
    parts = [names[0].split("/") for names in rom.node_names(op.onnx)]
    runs, run = [""], list[str]()
    for column in zip(*parts, strict=False):
        run = [*run, column[0]] if len(set(column)) == 1 else []
        runs.append("/".join(run))
    return max(runs, key=len) or name_of(op.weights)


def _engraved(op: Product) -> bool:
    return isinstance(rom.resolve(op, op.weights).type, rom.ROMTensorType)


def _roles(module: ModuleOp) -> dict[Operation, tuple[str, ...]]:
    """The names of each product's matrix, a packed one's too."""
    found: dict[Operation, list[str]] = {}
    for body in bodies(module):
        for place in body.places:
            names = found.setdefault(place.linear, [])
            if place.role not in names:
                names.append(place.role)
    for names in found.values():
        names += [packed for packed, parts in PACKED.items() if set(parts) <= set(names)]
    for op in module.walk():
        match op:
            case rom.ExpertLinearOp():
                found.setdefault(op, []).append(EXPERTS)
            case rom.RouteOp() if (source := _linear(op.input)) is not None:
                found.setdefault(source, []).append(ROUTER)
            case rom.EmitOp() if (source := _linear(op.logits)) is not None:
                found.setdefault(source, []).append(HEAD)
            case _:
                pass
    return {op: tuple(names) for op, names in found.items()}


def _linear(value: SSAValue) -> rom.LinearOp | None:
    """The product that a value comes from, through what has one operand."""
    while isinstance(op := value.owner, Operation) and not isinstance(op, rom.LinearOp):
        if len(op.operands) != 1:
            return None
        value = op.operands[0]
    return op if isinstance(op, rom.LinearOp) else None


def _is_role(name: str, held: Sequence[str]) -> bool:
    """Whether a matrix with these roles is meant; a packed name means its parts where they are
    apart, too."""
    return name in held or any(part in held for part in PACKED.get(name, ()))


def _packed(held: Sequence[str]) -> str:
    return next((name for name in held if name in PACKED), held[0])


def _node(op: Product) -> str:
    return rom.node_names(op.onnx)[0][0]


def _texts(op: Product) -> list[list[str]]:
    """Names of nodes and tensors, of each instance."""
    slot = name_of(op.weights)
    tensors: list[str] = []
    layer = op.parent_op()
    module = None if layer is None else layer.parent_op()
    for repeat in () if module is None else module.walk():
        if isinstance(repeat, rom.RepeatOp) and repeat.body() is layer:
            for instance in repeat.instances:
                bound = instance.data.get(slot)
                tensors.append(name_of(bound) if isinstance(bound, SymbolRefAttr) else slot)
    nodes = rom.node_names(op.onnx)
    if len(tensors) != len(nodes):
        tensors = [slot] * len(nodes)
    return [[*names, tensor] for names, tensor in zip(nodes, tensors, strict=True)]
