"""How many fraction bits each fixed-point value gets: by the magnitudes of the model.

Values are 32 bits wide. `Machine.fraction_bits` is what most get. Where the importer knows that
values are small, they get more: `BITS_BELOW` bits under their root mean square. So the residual
stream of a model with a small embedding keeps what its first norm sees, and a norm with small
weights its result. Products of what is small get more where `LEAST_BELOW` bits would not be left
of them. Where a constant of the model is too large for that, the
value gets fewer. Values that an operator takes in one form (both sides of an addition, what layers
carry) are of one class and have the same fraction.

Of the embedding the rule is ``12 + ceil(-log2 rms)``: its rounding is then a seventh of a
thousandth of a typical element, less than activations of 16 bits lose behind it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from xdsl.dialects.builtin import FloatAttr, ModuleOp, SymbolRefAttr, TensorType
from xdsl.ir import Attribute, Block, Operation, SSAValue

from intaglio.dialects import rom
from intaglio.dialects.codes import mantissa_exponent
from intaglio.dialects.formulas.elementwise import ACTIVATIONS
from intaglio.dialects.formulas.products import ROTARY_FRAC
from intaglio.dialects.formulas.recurrence import DECAY_FRAC
from intaglio.dialects.machine import Machine
from intaglio.dialects.tables import GATE_FRAC
from intaglio.lowering.buffers import name_of
from intaglio.lowering.step.loss_warning import NOTEWORTHY, Loss, loss_warnings

BITS_BELOW = 12
"""Bits of a value's fraction under its root mean square."""
LEAST_BELOW = 8
"""Of them those that are kept where something large must fit too; an error of about 0.1 %."""
FRACTIONS = (8, 30)
"""The fewest and the most fraction bits."""
UNIT_KEY_BITS = 22
"""Fraction bits of what is read of a state by the delta rule with keys of length 1; up to 512."""
OUTLIERS = 8
"""Bits over the root mean square of a product that are kept for its largest elements."""


Size = tuple[float, float]
"""A low and a high estimate of a root mean square."""


@dataclass(frozen=True)
class Entry:
    """How an embedding enters a value.

    Attributes:
        table: where it is from.
        rms: root mean square of a typical row.
        largest: magnitude that no element exceeds.
    """

    table: rom.ParameterOp
    rms: float
    largest: float


@dataclass
class Class:
    """Values that have one fraction, and what is known of them.

    Attributes:
        entries: embeddings among them.
        norms: low estimates of the root mean square of results of norms.
        products: the same of what products with matrices give, and what is made of it.
        largest: what must fit.
        least: fraction bits that what takes them loses nothing of.
    """

    entries: list[Entry] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    largest: list[float] = field(default_factory=list)
    least: list[int] = field(default_factory=list)

    def fraction(self, usual: int) -> int:
        """How many fraction bits the values get: `usual`, unless magnitudes ask for others.

        An embedding alone counts where there is one: what is added to it only makes it larger.
        Products have a range that nobody knows before the model runs, so they get more fraction
        bits only where the usual ones leave less than `LEAST_BELOW` under their size.
        """
        low, high = FRACTIONS
        exact = [_bits(one.rms) for one in self.entries] or [_bits(one) for one in self.norms]
        rough = [] if self.entries else [_bits(one) for one in self.products]
        below = [*(BITS_BELOW + bits for bits in exact), *(LEAST_BELOW + bits for bits in rough)]
        wanted = max([usual, *below, *self.least])
        kept = max([LEAST_BELOW + bits for bits in (*exact, *rough)], default=low)
        fit = [*self.largest, *(one.largest for one in self.entries)]
        room = min((30 - math.ceil(math.log2(one)) for one in fit), default=high)
        return min(max(min(wanted, max(room, kept)), low), high)


def _bits(size: float) -> int:
    """Fraction bits at which a size is a step, or more."""
    return math.ceil(-math.log2(size))


@dataclass(frozen=True)
class Stream:
    """An embedding in the format of the values that it enters.

    Attributes:
        table: the tensor's key.
        rms: root mean square of a typical row.
        largest: magnitude that no element exceeds.
        fraction: fraction bits.
    """

    table: str
    rms: float
    largest: float
    fraction: int

    @property
    def steps(self) -> float:
        """The root mean square in steps of the format."""
        return math.ldexp(self.rms, self.fraction)

    @property
    def range(self) -> float:
        """What the format holds."""
        return math.ldexp(1.0, 31 - self.fraction)


def stream_warnings(streams: Iterable[Stream]) -> list[str]:
    """Warnings about embeddings that the format they enter does not hold well."""
    streams = list(streams)
    # Rounding is evenly spread over a step.
    losses = [
        (one, Loss(_tensor(one.table), min(1.0, 1 / (math.sqrt(12) * one.steps))))
        for one in streams
    ]
    found: list[str] = []
    for one, loss in losses:
        found += loss_warnings(
            [loss],
            f"as it enters the residual stream: its elements' root mean square is {one.rms:.2g}, "
            f"{one.steps:.2g} steps of {one.fraction} fraction bits",
            _more_bits(one),
        )
    found += [
        f"tensor '{_tensor(one.table)}' has elements up to {one.largest:.3g}; the residual stream "
        f"of {one.fraction} fraction bits holds less than {one.range:,.6g}: larger ones saturate; "
        f"{_fewer_bits(one)}"
        for one in streams
        if one.largest >= one.range
    ]
    return found


def _more_bits(one: Stream) -> str:
    """What helps where the embedding loses: more fraction bits only if enough of them exist."""
    enough = one.fraction + math.ceil(-math.log2(NOTEWORTHY * math.sqrt(12) * one.steps))
    if enough <= FRACTIONS[1] and one.largest < math.ldexp(1.0, 31 - enough):
        return f"scale the embedding up in the model, or compile with --set fraction_bits={enough}"
    return "scale the embedding up in the model: no number of fraction bits holds it well"


def _fewer_bits(one: Stream) -> str:
    """What helps where elements of the embedding are too large for the format."""
    enough = 30 - math.floor(math.log2(one.largest))
    if enough >= FRACTIONS[0]:
        return f"--set fraction_bits={enough} holds them"
    return "scale the embedding down in the model: no number of fraction bits holds them"


def _tensor(key: str) -> str:
    """A tensor's name in the model's file, from its key."""
    return key.split("::", 1)[-1]


@dataclass(frozen=True)
class Fractions:
    """What was chosen for a module.

    Attributes:
        of: fraction bits of each value of the float stage.
        streams: the embeddings.
        rotary: fraction bits of tables of cosines and sines.
    """

    of: dict[SSAValue, int]
    streams: tuple[Stream, ...]
    rotary: int


def fractions(module: ModuleOp, machine: Machine) -> Fractions:
    """Chooses the fraction bits of all values of the float stage, and of rotary tables.

    Where the machine's `fractions` are `set`, all values have its `fraction_bits`, whatever the
    model holds.
    """
    values = _Values(module)
    usual = machine.fraction_bits
    classes = values.classes()
    chosen = {
        root: usual if machine.fractions == "set" else one.fraction(usual)
        for root, one in classes.items()
    }
    streams = tuple(
        Stream(entry.table.source, entry.rms, entry.largest, chosen[root])
        for root, one in classes.items()
        for entry in one.entries
    )
    return Fractions(
        {value: chosen[values.root(value)] for value in values.parent}, streams, values.rotary()
    )


class _Values:
    """The values of a module in classes (a forest of parents), and the tensors they meet."""

    def __init__(self, module: ModuleOp) -> None:
        self.module = module
        self.bound = _bound(module)
        self.parent: dict[SSAValue, SSAValue] = {}
        for op in module.walk():
            for value in (*op.results, *(a for r in op.regions for b in r.blocks for a in b.args)):
                if isinstance(value.type, TensorType):
                    self.parent[value] = value
        constants: dict[rom.ParameterOp, SSAValue] = {}
        for op in module.walk():
            match op:
                case rom.AddOp():
                    self._join(op.lhs, op.rhs, op.output)
                case rom.SliceOp() | rom.RotaryOp() | rom.ClipOp() | rom.DelayOp():
                    self._join(op.input, op.output)
                case rom.WeighOp() if op.residual is not None:
                    self._join(op.residual, op.output)
                case rom.TapOp() if op.addend is not None:
                    self._join(op.addend, op.output)
                case rom.RepeatOp():
                    body = op.body().body.block
                    end = body.last_op
                    assert isinstance(end, rom.YieldOp)
                    for same in zip(op.inputs, op.outputs, body.args[1:], end.values, strict=True):
                        self._join(*same)
                case _:
                    # A tensor in ROM has one form, whoever reads it.
                    for one in self._constants(op):
                        self._join(op.results[0], constants.setdefault(one, op.results[0]))

    def root(self, value: SSAValue) -> SSAValue:
        """The value that stands for a class."""
        while (above := self.parent[value]) is not value:
            self.parent[value] = value = self.parent[above]
        return value

    def _join(self, first: SSAValue, *others: SSAValue) -> None:
        for other in others:
            self.parent[self.root(other)] = self.root(first)

    def _tensors(self, user: Operation, symbol: SymbolRefAttr) -> list[rom.ParameterOp]:
        """The tensors behind a symbol: one, or those of all instances of a layer."""
        return self.bound[rom.resolve(user, symbol)]

    def _constants(self, op: Operation) -> list[rom.ParameterOp]:
        """Tensors that are stored in the format of an operator's result."""
        match op:
            case rom.LinearOp() | rom.ExpertLinearOp() if op.bias is not None:
                return self._tensors(op, op.bias)
            case rom.LayerNormOp() if op.beta is not None:
                return self._tensors(op, op.beta)
            case rom.TapOp() if op.bias is not None:
                return self._tensors(op, op.bias)
            case _:
                return []

    def classes(self) -> dict[SSAValue, Class]:
        """What is known of the values of each class."""
        self._found = {self.root(value): Class() for value in self.parent}
        self._sizes: dict[SSAValue, Size] = {}
        self._cached: dict[str, Size] = {}
        for op in self.module.ops:
            if isinstance(op, rom.StepOp):
                self._measure(op.body.block)
        return self._found

    def _class(self, value: SSAValue) -> Class:
        return self._found[self.root(value)]

    def _measure(self, block: Block) -> None:
        """Goes through a block in order and estimates how large its values are."""
        for op in block.ops:
            for one in self._constants(op):
                if peak := _float(one.peak):
                    self._class(op.results[0]).largest.append(peak)
            match op:
                case rom.RowOp():
                    for table in self._tensors(op, op.table):
                        if (rms := _float(table.rms)) and (largest := _largest(table)):
                            self._enter(op.output, Entry(table, rms, largest))
                case rom.RMSNormOp() | rom.LayerNormOp():
                    self._norm(op)
                case rom.RepeatOp():
                    body = op.body().body.block
                    for x, argument, y in zip(op.inputs, body.args[1:], op.outputs, strict=True):
                        if x in self._sizes:
                            # Layers add: the first instance sees the smallest, others more.
                            small, large = self._sizes[x]
                            self._sizes[argument] = self._sizes[y] = small, max(large, 1.0)
                    self._measure(body)
                case rom.LinearAttentionOp():
                    self._gates(op)
                    if (size := self._product(op)) and size[0]:
                        self._sizes[op.output] = size
                        one = self._class(op.output)
                        one.products.append(size[0])
                        one.largest.append(math.ldexp(size[1], OUTLIERS))
                case rom.AppendOp() if op.input in self._sizes:
                    self._cached[name_of(op.cache)] = self._sizes[op.input]
                case _ if op.results and (size := self._product(op)) and size[0]:
                    self._sizes[op.results[0]] = size
                    one = self._class(op.results[0])
                    one.products.append(size[0])
                    one.largest.append(math.ldexp(size[1], OUTLIERS))
                case _:
                    pass

    def _gates(self, op: rom.LinearAttentionOp) -> None:
        """A decay's logarithm counts over and over: near 0 each bit of it, and of the softplus that
        it is a multiple of. With keys of length 1 the delta rule keeps results as small as values,
        which a norm magnifies."""
        if "delta" in op.rule.data and isinstance(op.key.owner, rom.RMSNormOp):
            self._class(op.output).least.append(UNIT_KEY_BITS)
        if op.beta is not None:
            self._class(op.beta).least.append(GATE_FRAC)
        if op.decay is None:
            return
        self._class(op.decay).least.append(DECAY_FRAC)
        owner = op.decay.owner
        if isinstance(owner, rom.TapOp):
            self._class(owner.input).least.append(GATE_FRAC)

    def _enter(self, value: SSAValue, entry: Entry) -> None:
        """Notes an embedding, and what it becomes where a constant scales it."""
        self._class(value).entries.append(entry)
        self._sizes[value] = entry.rms, entry.rms
        for use in value.uses:
            if isinstance(use.operation, rom.ScaleOp) and (
                factor := abs(_real(use.operation.factor))
            ):
                scaled = Entry(entry.table, entry.rms * factor, entry.largest * factor)
                self._enter(use.operation.output, scaled)

    def _norm(self, op: rom.RMSNormOp | rom.LayerNormOp) -> None:
        """No element exceeds the root of their number times the largest weight."""
        gammas = self._tensors(op, op.gamma)
        sizes = _known(one.rms for one in gammas)
        peaks = _known(one.peak for one in gammas)
        groups = op.groups.value.data if isinstance(op, rom.RMSNormOp) else 1
        one = self._class(op.output)
        if peaks:
            width = rom.vector_size(op.output.type) // groups
            one.largest.append(max(peaks) * math.sqrt(width))
        if sizes:
            # Epsilon counts where the input is small: behind the embedding, before layers add.
            small, _ = self._sizes.get(op.input, (math.inf, math.inf))
            share = 1 / math.sqrt(1 + _real(op.eps) / small**2)
            one.norms.append(min(sizes) * share)
            self._sizes[op.output] = min(sizes) * share, max(sizes)

    def _product(self, op: Operation) -> Size | None:
        """A low and a high estimate of the root mean square of an operator's result, or None."""
        of = [self._sizes[x] for x in op.operands if x in self._sizes]
        match op:
            case rom.LinearOp() | rom.ExpertLinearOp() if of:
                weights = _known(one.rms for one in self._tensors(op, op.weights))
                bias = [] if op.bias is None else self._tensors(op, op.bias)
                if not weights or any(one.rms is None for one in bias):
                    return None
                added = _known(one.rms for one in bias) or [0.0]
                # As many products as there are columns, taken for independent.
                root = math.sqrt(rom.vector_size(op.input.type))
                small, large = of[0]
                return (
                    math.hypot(small * min(weights) * root, min(added)),
                    math.hypot(large * max(weights) * root, max(added)),
                )
            case rom.LinearAttentionOp() if op.value in self._sizes:
                # Keys and queries of length 1; the latter as a rule over the root of their width.
                state = rom.resolved_type(op, op.state, rom.MatricesType)
                small, large = self._sizes[op.value]
                return small / math.sqrt(state.key_width.data), large
            case rom.AttentionOp():
                return self._cached.get(name_of(op.values))
            case rom.SliceOp() | rom.RotaryOp() | rom.ClipOp() | rom.WeighOp() | rom.DelayOp() if (
                of
            ):
                return of[0]
            case rom.TapOp() if of and op.input in self._sizes:
                weights = _known(one.rms for one in self._tensors(op, op.weights))
                if not weights:
                    return None
                (small, large), added = of[0], [0.0, 0.0]
                if op.addend is not None and op.addend in self._sizes:
                    added = list(self._sizes[op.addend])
                return (
                    math.hypot(small * min(weights), added[0]),
                    math.hypot(large * max(weights), added[1]),
                )
            case rom.ActivateOp() if of and op.kind.data == "relu2":
                # Of normal numbers; heavy tails square to values that no rms of theirs foretells,
                # so only the range is taken from it.
                return 1.0, 1.25 * of[0][1] ** 2
            case rom.ActivateOp() if of and ACTIVATIONS[op.kind.data].family in ("gate", "relu"):
                return of[0][0] / 2, of[0][1]
            case rom.MulOp() if len(of) == 2:
                return of[0][0] * of[1][0], of[0][1] * of[1][1]
            case rom.AddOp() if of:
                small, large = zip(*of, strict=True)
                return math.hypot(*small), math.hypot(*large)
            case _:
                return None

    def rotary(self) -> int:
        """Of all int16 tables of cosines and sines; fewer where they reach 2."""
        peaks: list[float] = []
        for op in self.module.walk():
            if isinstance(op, rom.RotaryOp):
                for one in (*self._tensors(op, op.cos), *self._tensors(op, op.sin)):
                    peaks += [_float(one.peak) or 1.0]
        return min(ROTARY_FRAC, mantissa_exponent(max(peaks, default=1.0), 16))


def _bound(module: ModuleOp) -> dict[Operation, list[rom.ParameterOp]]:
    """For each declaration, slots of layers too, the tensors it stands for."""
    bound: dict[Operation, list[rom.ParameterOp]] = defaultdict(list)
    for op in module.ops:
        if isinstance(op, rom.ParameterOp):
            bound[op] = [op]
    for op in module.walk():
        if isinstance(op, rom.RepeatOp):
            for slot, buffer in op.bound():
                if isinstance(buffer, rom.ParameterOp) and buffer not in bound[slot]:
                    bound[slot].append(buffer)
    return bound


def _known(attributes: Iterable[FloatAttr | None]) -> list[float]:
    return [value for one in attributes if (value := _float(one))]


def _float(attribute: FloatAttr | None) -> float:
    return 0.0 if attribute is None else float(attribute.value.data)


def _real(attribute: Attribute) -> float:
    if isinstance(attribute, FloatAttr):
        return float(attribute.value.data)
    assert isinstance(attribute, rom.RealAttr)
    return float(Fraction(attribute.mantissa.data) / 2**attribute.exponent.data)


def _largest(table: rom.ParameterOp) -> float:
    """A bound of a table's elements."""
    type_, peak = table.type, _float(table.peak)
    assert isinstance(type_, rom.ROMTensorType | rom.AdapterType)
    if not type_.is_matrix:
        return peak
    top = 2 if type_.code.data == "ternary" else (1 << type_.bits) - 1
    zero = 0 if table.zero is None else table.zero.value.data
    return peak * (top if type_.zeros.data else max(zero, top - zero))
