"""Sites: which matrices of a decoder adapters stand beside, and what they are called.

Low-rank adapters are trained for linear layers that people name q_proj, k_proj, v_proj, o_proj,
gate_proj, up_proj and down_proj. Graphs name them otherwise, or pack several into one matrix, so
the role of a matrix is found by what its results are for:

- q, k, v: what leads to an attention operator's query and to what is appended to its caches,
  through slices, norms and rotary embeddings. Of a packed projection each slice is a site.
- o: what the attention's output leads to.
- gate, up: the two factors of a gated network, the one under the activation is the gate; without a
  product, what leads to the activation is up.
- down: what the product, or the activation, leads to.

A site is `layers.<i>.<role>`; layers are counted by their attention operators, in order. A network
belongs to the attention before it, or to the one whose input it shares (parallel blocks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import Block, Operation, SSAValue
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import rom
from intaglio.dialects.errors import UserError

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What the matrices of a layer are for, in the order of a decoder."""

PACKED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Names of packed matrices and the roles that they hold."""


@dataclass(frozen=True)
class Place:
    """A role in a block: some rows of the product with a matrix.

    Attributes:
        role: one of `ROLES`.
        linear: the product.
        value: these rows of its result, the result itself or a slice of it.
        first_row: the first of the rows.
        number: of the layer, counted from the first attention operator that the block runs.
    """

    role: str
    linear: rom.LinearOp
    value: SSAValue
    first_row: int
    number: int

    @property
    def rows(self) -> int:
        """How many rows."""
        return rom.vector_size(self.value.type)

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return rom.vector_size(self.linear.input.type)


@dataclass(frozen=True)
class Body:
    """A block with sites: that of the step, or of a layer.

    Attributes:
        block: the block.
        repeat: what repeats it; None for the step's.
        places: in the order of layers and roles.
        first: for each instance the number of attention operators that run before it.
    """

    block: Block
    repeat: rom.RepeatOp | None
    places: Sequence[Place]
    first: Sequence[int]

    def site(self, place: Place, instance: int) -> str:
        """The name of a place's site in an instance."""
        return f"layers.{self.first[instance] + place.number}.{place.role}"


def bodies(module: ModuleOp) -> list[Body]:
    """All blocks of a module of the float stage that have sites.

    Raises:
        PassFailedException: a layer is repeated in several places.
    """
    found: list[Body] = []
    repeated: set[Block] = set()
    for step in module.ops:
        if not isinstance(step, rom.StepOp):
            continue
        block = step.body.block
        # The number of the layer that runs at each operator of the step itself.
        before: dict[Operation, int] = {}
        count = 0
        for op in block.ops:
            before[op] = count - 1
            if isinstance(op, rom.AttentionOp):
                before[op] = count
                count += 1
            elif isinstance(op, rom.RepeatOp):
                body = op.body().body.block
                if body in repeated:
                    raise PassFailedException(
                        f"@{op.layer.root_reference.data} is repeated in two places"
                    )
                repeated.add(body)
                attentions = sum(isinstance(o, rom.AttentionOp) for o in body.ops)
                first = [count + i * attentions for i in range(len(op.instances))]
                found.append(Body(body, op, _places(body, _numbers(body)), first))
                count += attentions * len(op.instances)
        found.append(Body(block, None, _places(block, before), [0]))
    return [body for body in found if body.places]


@dataclass(frozen=True)
class SiteShape:
    """Sites of one role and shape.

    Attributes:
        role: one of `ROLES`.
        rows: N of each.
        columns: K of each.
        sites: how many there are.
    """

    role: str
    rows: int
    columns: int
    sites: int


def site_shapes(module: ModuleOp) -> list[SiteShape]:
    """The sites that a module of the float stage has; none where slots are not possible."""
    try:
        found = bodies(module)
        check_unique(found)
    except (UserError, PassFailedException):
        return []
    counts: dict[tuple[int, int, int], int] = {}
    for body in found:
        for place in body.places:
            key = ROLES.index(place.role), place.rows, place.columns
            counts[key] = counts.get(key, 0) + len(body.first)
    return [
        SiteShape(ROLES[role], rows, columns, count)
        for (role, rows, columns), count in sorted(counts.items())
    ]


def names(found: Sequence[Body]) -> list[str]:
    """The names of all sites, in the order of layers and roles."""
    sites = [
        (body.first[instance] + place.number, ROLES.index(place.role), body.site(place, instance))
        for body in found
        for instance in range(len(body.first))
        for place in body.places
    ]
    return [name for *_, name in sorted(sites)]


def check_unique(found: Sequence[Body], roles: Set[str] = frozenset(ROLES)) -> None:
    """Whether each layer has one matrix of each role that is to get slots.

    Raises:
        UserError: two matrices of a layer have one of the roles.
    """
    nodes: dict[str, str] = {}
    for body in found:
        for place in body.places:
            if place.role not in roles:
                continue
            for instance in range(len(body.first)):
                node = ", ".join(text.data for text in place.linear.onnx.data[instance])
                site = body.site(place, instance)
                layer, _, role = site.rpartition(".")
                if site in nodes:
                    raise UserError(
                        f"two matrices of {layer} have the role {role}, so that adapters for it "
                        f"have no one place: those of '{nodes[site]}' and '{node}'",
                        hint="layers are counted by attention operators: those without one, such "
                        "as convolutions, count to the one before them; name the roles that each "
                        "layer has once, as in --adapter-slots 16:q_proj,v_proj",
                    )
                nodes[site] = node


def families(module: ModuleOp) -> list[str]:
    """The families of experts and the matrices of their routers, which can have no slots."""
    found: dict[str, None] = {}
    for op in module.walk():
        if isinstance(op, rom.ExpertLinearOp):
            found[op.weights.root_reference.data] = None
        elif isinstance(op, rom.RouteOp) and (source := _source(op.input)) is not None:
            found[source.linear.weights.root_reference.data] = None
    return list(found)


_NAMED = 8
"""Matrices without slots that are named."""
NO_EXPERT_SLOTS = (
    "experts share no A and B: slots beside each expert, and beside the router that chooses among "
    "them, are not built"
)
"""Why matrices of a mixture of experts have no slots."""


def without_slots(module: ModuleOp) -> list[str]:
    """A warning where a module with slots has matrices that can have none."""
    left = families(module)
    if not left:
        return []
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return [f"no adapter slots beside {', '.join(left[:_NAMED])}{more}: {NO_EXPERT_SLOTS}"]


def selected(
    found: Sequence[Body],
    modules: Sequence[str],
    policy: Sequence[str],
    without: Sequence[str] = (),
) -> set[str]:
    """The roles that get slots.

    Args:
        found: `bodies` of the module.
        modules: the roles, or packed matrices, that a user names; none leaves it to the target.
        policy: the roles that the target names; none means all. What the model does not have is
            no error here.
        without: `families` of the module, which say why a role is missing.

    Raises:
        UserError: a name is unknown, or there is no site.
    """
    there = {place.role for body in found for place in body.places}
    if not there:
        raise UserError(
            "the model has no matrices that adapter slots could stand beside",
            hint="they are found around attention operators and activations",
        )
    of_model = f"in this model {_ranges(found)}"
    roles: set[str] = set()
    for name in modules:
        meant = {role for role in PACKED.get(name, (name,)) if role in there}
        if not meant:
            # A mistyped name is no matrix of the experts.
            known = name in ROLES or name in PACKED or any(name in one for one in without)
            why = f"; {NO_EXPERT_SLOTS}" if without and known else ""
            raise UserError(
                f"no matrix has the role '{name}', so it can have no adapter slots{why}",
                hint=of_model,
            )
        roles |= meant
    if modules:
        return roles
    roles = there & set(policy) if policy else there
    if not roles:
        raise UserError(
            f"the target has adapters for {', '.join(policy)} only, which the model does not have",
            hint=f"name others, as in --adapter-slots 16:o_proj; {of_model}",
        )
    return roles


def _ranges(found: Sequence[Body]) -> str:
    """`layers 0 to 27 have q_proj, k_proj, ...`, layers of equal roles together."""
    layers: dict[str, list[str]] = {}
    for name in names(found):
        layer, _, role = name.rpartition(".")
        layers.setdefault(layer, []).append(role)
    parts: list[str] = []
    numbers = [(int(layer.rpartition(".")[2]), roles) for layer, roles in layers.items()]
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i][1] != numbers[start][1]:
            first, last, roles = numbers[start][0], numbers[i - 1][0], numbers[start][1]
            which = f"layer {first} has" if first == last else f"layers {first} to {last} have"
            parts.append(f"{which} {', '.join(roles)}")
            start = i
    return "; ".join(parts)


# --- roles --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where a value comes from: rows of a product; `direct` when only slices lie between."""

    linear: rom.LinearOp
    value: SSAValue
    first_row: int
    direct: bool


def _numbers(block: Block) -> dict[Operation, int]:
    """For each operator how many attention operators have run, less one; for those their own."""
    numbers: dict[Operation, int] = {}
    count = -1
    for op in block.ops:
        count += isinstance(op, rom.AttentionOp)
        numbers[op] = count
    return numbers


def _places(block: Block, numbers: Mapping[Operation, int]) -> list[Place]:
    finder = _Finder(numbers)
    for op in block.ops:
        if isinstance(op, rom.AttentionOp):
            finder.attention(op)
    for op in block.ops:
        if isinstance(op, rom.ActivateOp):
            finder.network(op)
    return sorted(finder.places, key=lambda place: (place.number, ROLES.index(place.role)))


@dataclass
class _Finder:
    numbers: Mapping[Operation, int]
    places: list[Place] = field(default_factory=list)
    inputs: dict[SSAValue, int] = field(default_factory=dict)
    """What enters the attention operators, before its norm, with their numbers."""

    def add(self, role: str, source: _Source, number: int) -> None:
        self.places.append(Place(role, source.linear, source.value, source.first_row, number))

    def attention(self, op: rom.AttentionOp) -> None:
        number = self.numbers[op]
        values = {"q_proj": op.query}
        block = op.parent_block()
        assert block is not None
        for other in block.ops:
            if isinstance(other, rom.AppendOp):
                for role, cache in (("k_proj", op.keys), ("v_proj", op.values)):
                    if other.cache == cache:
                        values[role] = other.input
        for role, value in values.items():
            if (source := _source(value)) is not None:
                self.add(role, source, number)
                self.inputs.setdefault(_stream(source.linear.input), number)
        for linear in _readers(op.output):
            self.add("o_proj", _Source(linear, linear.output, 0, True), number)

    def network(self, op: rom.ActivateOp) -> None:
        if (inner := _source(op.input)) is None:
            return
        product, factor = _product(op)
        number = self.inputs.get(_stream(inner.linear.input), self.numbers[op])
        if factor is None:
            found = {"up_proj": inner}
        elif (other := _source(factor)) is not None:
            found = {"gate_proj": inner, "up_proj": other}
        else:
            return
        down = list(_readers(product))
        if not down:
            return
        for role, source in found.items():
            self.add(role, source, max(number, 0))
        for linear in down:
            self.add("down_proj", _Source(linear, linear.output, 0, True), max(number, 0))


def _product(op: rom.ActivateOp) -> tuple[SSAValue, SSAValue | None]:
    """What leaves a network's nonlinear part, and the factor of the activation, if there is one."""
    value: SSAValue = op.output
    for _ in range(2):
        muls = [use.operation for use in value.uses if isinstance(use.operation, rom.MulOp)]
        if not muls:
            break
        (mul, *_) = muls
        other = mul.rhs if mul.lhs is value else mul.lhs
        value = mul.output
        if other is not op.input:
            return value, other
        # x * sigmoid(x) is the activation itself.
    return value, None


def _source(value: SSAValue) -> _Source | None:
    """The product with an engraved matrix that a value comes from."""
    op = value.owner
    match op:
        case rom.LinearOp() if isinstance(rom.resolve(op, op.weights).type, rom.ROMTensorType):
            return _Source(op, value, 0, True)
        case rom.SliceOp():
            source = _source(op.input)
            if source is None or not source.direct:
                return source
            return _Source(source.linear, value, source.first_row + op.offset.value.data, True)
        case rom.AddOp():
            # A constant low-rank branch, which ends in a matrix that is not engraved.
            found = [s for s in (_source(op.lhs), _source(op.rhs)) if s is not None]
            return _indirect(found[0]) if len(found) == 1 else None
        case rom.RMSNormOp() | rom.LayerNormOp() | rom.RotaryOp() | rom.ScaleOp() | rom.SoftcapOp():
            source = _source(op.input)
            return None if source is None else _indirect(source)
        case _:
            return None


def _indirect(source: _Source) -> _Source:
    return _Source(source.linear, source.value, source.first_row, False)


def _readers(value: SSAValue) -> Iterator[rom.LinearOp]:
    """The products with engraved matrices that a value leads to, not beyond an addition."""
    for use in value.uses:
        op = use.operation
        match op:
            case rom.LinearOp() if isinstance(rom.resolve(op, op.weights).type, rom.ROMTensorType):
                yield op
            case rom.SliceOp() | rom.RMSNormOp() | rom.LayerNormOp() | rom.ScaleOp() | rom.MulOp():
                yield from _readers(op.output)
            case _:
                pass


def _stream(value: SSAValue) -> SSAValue:
    """What a norm before a matrix reads."""
    while isinstance(op := value.owner, rom.RMSNormOp | rom.LayerNormOp | rom.ScaleOp):
        value = op.input
    return value


def matrix_name(body: Body, place: Place, instance: int) -> str:
    """The parameter of a place's matrix in an instance."""
    name = place.linear.weights.root_reference.data
    if body.repeat is None:
        return name
    bound = body.repeat.instances.data[instance].data.get(name)
    return bound.root_reference.data if isinstance(bound, SymbolRefAttr) else name
