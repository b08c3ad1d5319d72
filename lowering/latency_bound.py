"""The chain of products that a token's time is bounded by from below (`dialects/latency_bound.py`).

Read from the operators of the integer stage and the chip's figures; neither durations nor waits of
a schedule enter. Where products run beside one another, as attention and FFN of a parallel residual
do, the chain has ways to choose from.

Latencies are those of the arithmetic folded as far as it can be without other values than rounding
allows: a norm's root and a scale of codes wait for nothing but their own block, since they are
factors that can follow the product; products, exponents and table values of one run of operators
are one pass over a vector; a key or value can be multiplied as it is appended; a cached vector that
lies outside of the die was fetched before. Adapters add nothing. So a schedule of today's
operators is never below, and how far it is above is what there is to win.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, log2

from xdsl.dialects.builtin import IntegerAttr, ModuleOp, SymbolRefAttr
from xdsl.ir import Block, Operation, SSAValue

from intaglio.dialects import rom
from intaglio.dialects.codes import FORMATS
from intaglio.dialects.errors import CompilerBug
from intaglio.dialects.fabric import EngraveOp, machine_of, matrix_shape
from intaglio.dialects.formula import TOKENS, Formula, ceildiv, constant, maximum, minimum
from intaglio.dialects.latency_bound import Chain, Product, Way
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import Piece, activation_passes, lower_bound_cycles
from intaglio.lowering.buffers import name_of

EXPONENT_BLOCK = 32
"""Elements of a product's input that share an exponent in the folded arithmetic."""
FURTHER_PRODUCT = 3
"""Cycles of a second product in a pass: the product in two, a rounding shift."""
FIRST_PRODUCT = 2
"""Cycles of a pass of the vector unit that a product takes."""
SHIFT_AND_WRITE = 2

START = -1
"""Where a value comes from that no product has given yet: the embedding."""

PRODUCTS: dict[type[Operation], int] = {
    rom.RMSNormOp: 1,
    rom.LayerNormOp: 1,
    rom.RotaryOp: 2,
    rom.MulOp: 1,
    rom.ScaleOp: 1,
    rom.ActivateOp: 1,
    rom.SoftcapOp: 1,
    rom.AddOp: 0,
    rom.SliceOp: 0,
}
"""Operators of a pass over a vector, with the products of one element in them, one after another."""


@dataclass(frozen=True)
class Pipelines:
    """Figures of a chip that its `Machine` does not have.

    Attributes:
        adder_levels: levels of an adder tree in a cycle.
        unit_lanes: lanes of one vector unit.
    """

    adder_levels: int
    unit_lanes: int


def chain_of(module: ModuleOp, pipelines: Pipelines) -> Chain:
    """The chain of a module of the integer stage; with places, where it has them.

    Args:
        module: with `fabric.machine`.
        pipelines: what the machine does not say.
    """
    machine = machine_of(module)
    latencies = _Latencies(machine, pipelines)
    token = _Token(module, latencies)
    step = next(op for op in module.ops if isinstance(op, rom.StepOp))
    token.run(step.body.block, {})
    return _Chains(token, _Work(module, machine)).chain()


# --- latencies ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Latencies:
    """Of each kind of operator, on a chip."""

    machine: Machine
    pipelines: Pipelines

    @property
    def product(self) -> int:
        """From the last word of a product to its last result."""
        m = self.machine
        return m.broadcast + m.mac_pipeline + m.reduce + m.requantise + 1

    def embedding(self, elements: int) -> int:
        """A row that all L-Units that hold a part of it read at once."""
        m = self.machine
        leave = -(-elements // m.results_per_cycle)
        return m.broadcast + m.rom_read + leave + m.reduce + m.requantise + 1

    def codes(self, products: int) -> int:
        """A pass of so many products that ends in codes, an exponent for each block of them."""
        return self._exponents(products, EXPONENT_BLOCK, 1)

    def head_codes(self, products: int, width: int) -> int:
        """The same for a head, whose exponent passes the vector units that hold it."""
        return self._exponents(products, width, -(-width // self.pipelines.unit_lanes))

    def scaled_codes(self, products: int) -> int:
        """The same with a scale that is known before: nothing is to be found."""
        return self._pass(max(1, products)) + 1

    def _exponents(self, products: int, block: int, units: int) -> int:
        # What the operators before the codes multiply; their own shift takes a product's place.
        given = self._pass(products) if products else self.machine.vector_pipeline - FIRST_PRODUCT
        levels = ceil(log2(block) / self.pipelines.adder_levels) if block > 1 else 0
        # A tree over all lanes would do as well.
        largest = min(levels + units - 1, self.machine.vector_reduce)
        return max(1, given) + largest + SHIFT_AND_WRITE + 1

    def _pass(self, products: int) -> int:
        further = min(FURTHER_PRODUCT, self.machine.vector_pipeline)
        return self.machine.vector_pipeline + further * max(0, products - 1)

    def sample(self, products: int) -> int:
        """Arg-max of the last logits, to the token port."""
        return self._pass(products) + self.machine.vector_reduce + self.machine.sample


@dataclass(frozen=True)
class _Attention:
    """Of one KV head, the last one: those before it are done beside it.

    Attributes:
        shared: query heads of a KV head.
        kv_heads: KV heads.
        width: elements of a head.
        window: cached tokens that are read; 0: all.
        kv: format of the cache.
    """

    latencies: _Latencies
    shared: int
    kv_heads: int
    width: int
    window: int
    kv: str

    @property
    def tokens(self) -> Formula:
        """Cached tokens that are read."""
        return minimum(TOKENS, self.window) if self.window else TOKENS

    def work(self, operand: str) -> int:
        """Cycles in which the H-Units multiply a cached vector with the heads that share it."""
        m = self.latencies.machine
        passes = 1
        for name in (operand, self.kv):
            passes *= -(-FORMATS[name].memory_bits // m.multiplier_bits)
        words = -(-self.width // m.attention_lanes)
        return words * -(-self.shared // m.query_parallel) * passes

    @property
    def blocks(self) -> Formula:
        """Cached tokens by as many as there are H-Units."""
        return ceildiv(self.tokens, self.latencies.machine.h_units)

    @property
    def drain(self) -> int:
        """Cycles in which the scores of a block leave the array."""
        m = self.latencies.machine
        return -(-self.shared * m.h_units // m.results_per_cycle)

    @property
    def way(self) -> int:
        m = self.latencies.machine
        return m.broadcast + m.attention_pipeline + m.reduce + m.requantise

    def scores(self) -> Formula:
        """From the query to the last score."""
        block = max(self.work(self.latencies.machine.activations), self.drain)
        return self.way + self.drain + block * self.blocks

    def softmax(self) -> Formula:
        """From the last score to the last probability: the largest, then one pass."""
        m = self.latencies.machine
        beats = self.shared * ceildiv(self.tokens, m.vector_lanes)
        return m.vector_reduce + m.vector_pipeline + beats

    def sums(self) -> Formula:
        """From the last probability to the last sum over the values."""
        m = self.latencies.machine
        beat = min(m.attention_lanes * min(self.shared, m.query_parallel), m.results_per_cycle)
        leave = -(-self.shared * self.width // beat)
        return self.way + leave + self.work(m.probabilities) * self.blocks

    def beside(self) -> Formula:
        """What the other KV heads keep adders from, where products use the same."""
        m = self.latencies.machine
        if not m.shared_arrays:
            return constant(0)
        block = max(self.work(m.activations), self.drain) + self.work(m.probabilities)
        return (self.kv_heads - 1) * block * self.blocks


# --- what depends on what -------------------------------------------------------------------------


@dataclass(frozen=True)
class _From:
    """How a value follows from a product: the latency up to the last pass, products in that."""

    latency: Formula
    products: int = 0

    def then(self, cycles: Formula | int) -> _From:
        return _From(self.latency + cycles)

    def multiplied(self, products: int) -> _From:
        return _From(self.latency, self.products + products)


_Value = Mapping[int, _From]
"""By product, or `START`: the products that a value follows from without another between."""


def _later(*values: _Value) -> dict[int, _From]:
    """A value that needs all of some."""
    found: dict[int, _From] = {}
    for value in values:
        for source, one in value.items():
            if source in found:
                before = found[source]
                latency = before.latency
                if one.latency != latency:
                    latency = maximum(latency, one.latency)
                one = _From(latency, max(one.products, before.products))
            found[source] = one
    return found


@dataclass
class _Node:
    """A dense product of the token.

    Attributes:
        weights: the matrix.
        sources: latency from each product before it, or `START`, to its last input.
        ancestors: products that it needs, as bits.
        level: products on the longest way to it, itself included.
    """

    weights: str
    sources: dict[int, Formula]
    ancestors: int
    level: int
    busy: Formula = field(default_factory=lambda: constant(0))
    """Attention between it and what follows from it, on shared adders."""


class _Token:
    """Runs a step on what values follow from, instance by instance."""

    def __init__(self, module: ModuleOp, latencies: _Latencies) -> None:
        self.module = module
        self.latencies = latencies
        self.nodes: list[_Node] = []
        self.caches: dict[str, _Value] = {}
        self.scaled: set[SSAValue] = set()
        """Codes whose scale is that of a cache."""
        self.end: dict[int, Formula] = {}
        """Latency from each of the last products to the token."""

    def run(self, block: Block, bound: Mapping[str, str], values: tuple[_Value, ...] = ()) -> None:
        """The operators of a step."""
        self._block(block, bound, dict.fromkeys(block.args, {}))

    def _block(
        self, block: Block, bound: Mapping[str, str], values: dict[SSAValue, _Value]
    ) -> list[_Value]:
        """The operators of a block; what a layer yields."""
        for op in block.ops:
            match op:
                case rom.RepeatOp():
                    carried = [values[one] for one in op.inputs]
                    body = op.body().body.block
                    for instance in op.instances:
                        names = {k: name_of(v) for k, v in instance.data.items() if _is_symbol(v)}
                        inside = dict(zip(body.args, [{}, *carried], strict=True))
                        carried = self._block(body, names, inside)
                    values.update(zip(op.outputs, carried, strict=True))
                case rom.YieldOp():
                    return [values[one] for one in op.values]
                case rom.SlotOp() | rom.EmitOp():
                    pass
                case _:
                    self._operator(op, bound, values)
        return []

    def _operator(
        self, op: Operation, bound: Mapping[str, str], values: dict[SSAValue, _Value]
    ) -> None:
        def cache(symbol: SymbolRefAttr) -> str:
            return bound.get(name_of(symbol), name_of(symbol))

        result: _Value
        match op:
            case rom.EmbedOp():
                elements = rom.vector_size(op.output.type)
                result = {START: _From(constant(self.latencies.embedding(elements)))}
            case rom.QuantizeOp():
                # What takes the codes says how many share an exponent.
                result = values[op.input]
                if op.cache is not None:
                    self.scaled.add(op.output)
            case rom.DotOp():
                result = self._dot(op, bound, values[op.input])
            case rom.RequantizeOp():
                result = values[op.input]
                if op.residual is not None:
                    result = self._with_residual(result, values[op.residual])
            case rom.AppendOp():
                type_ = rom.resolve(op, op.cache).type
                assert isinstance(type_, rom.KVType)
                self.caches[cache(op.cache)] = self._heads(op.input, values, type_.width.data)
                return
            case rom.QueryKeyOp():
                one = self._attention(op, op.keys, op.query.type.groups.data)  # pyright: ignore[reportAttributeAccessIssue]
                queries = self._heads(op.query, values, one.width)
                ready = _later(queries, self.caches.get(cache(op.keys), {}))
                for source in ready:
                    if source != START:
                        node = self.nodes[source]
                        node.busy = maximum(node.busy, one.beside())
                result = {s: f.then(one.scores()) for s, f in ready.items()}
            case rom.SoftmaxOp():
                one = self._attention(op, op.values, op.scores.type.heads.data)  # pyright: ignore[reportAttributeAccessIssue]
                result = {s: f.then(one.softmax()) for s, f in values[op.scores].items()}
            case rom.WeightedSumOp():
                heads = op.probabilities.type.heads.data  # pyright: ignore[reportAttributeAccessIssue]
                one = self._attention(op, op.values, heads)
                cached = self.caches.get(cache(op.values), {})
                ready = _later(values[op.probabilities], cached)
                result = {s: f.then(one.sums()) for s, f in ready.items()}
            case rom.SampleOp():
                self.end = {
                    s: f.latency + self.latencies.sample(f.products)
                    for s, f in values[op.input].items()
                }
                return
            case _:
                if type(op) not in PRODUCTS:
                    raise CompilerBug(f"{op.name} has no place in the latency bound")
                taken = _later(*(values[one] for one in op.operands if one in values))
                result = {s: f.multiplied(PRODUCTS[type(op)]) for s, f in taken.items()}
        for one in op.results:
            values[one] = result

    def _dot(self, op: rom.DotOp, bound: Mapping[str, str], taken: _Value) -> _Value:
        type_ = rom.resolve(op, op.weights).type
        if isinstance(type_, rom.AdapterType):
            return taken
        name = name_of(op.weights)
        ancestors = level = 0
        sources: dict[int, Formula] = {}
        for source, one in taken.items():
            codes = self.latencies.codes(one.products)
            sources[source] = one.latency + codes
            if source != START:
                node = self.nodes[source]
                ancestors |= node.ancestors | 1 << source
                level = max(level, node.level)
        self.nodes.append(_Node(bound.get(name, name), sources, ancestors, level + 1))
        return {len(self.nodes) - 1: _From(constant(self.latencies.product))}

    def _with_residual(self, result: _Value, residual: _Value) -> _Value:
        """What the product's inputs need is there before its results."""
        needed = 0
        for source in result:
            if source != START:
                needed |= self.nodes[source].ancestors
        rest = {s: f for s, f in residual.items() if s != START and not needed >> s & 1}
        return _later(result, rest)

    def _heads(
        self, value: SSAValue, values: Mapping[SSAValue, _Value], width: int
    ) -> dict[int, _From]:
        """Codes of heads."""
        scaled = value in self.scaled
        return {
            source: _From(
                one.latency
                + (
                    self.latencies.scaled_codes(one.products)
                    if scaled
                    else self.latencies.head_codes(one.products, width)
                )
            )
            for source, one in values[value].items()
        }

    def _attention(self, op: Operation, symbol: SymbolRefAttr, heads: int) -> _Attention:
        cache = rom.resolve(op, symbol).type
        assert isinstance(cache, rom.KVType)
        attr = op.properties.get("window")
        window = attr.value.data if isinstance(attr, IntegerAttr) else 0
        kv_heads = cache.heads.data
        return _Attention(
            self.latencies, heads // kv_heads, kv_heads, cache.width.data, window, cache.format.data
        )


def _is_symbol(value: object) -> bool:
    return isinstance(value, SymbolRefAttr)


# --- work -----------------------------------------------------------------------------------------


class _Work:
    """Cycles in which lanes multiply matrices."""

    def __init__(self, module: ModuleOp, machine: Machine) -> None:
        self.machine = machine
        self.passes = activation_passes(machine.activations, machine)
        self.shapes = {
            op.sym_name.data: matrix_shape(op.type)
            for op in module.ops
            if isinstance(op, rom.ParameterOp) and isinstance(op.type, rom.ROMTensorType)
        }
        self.pieces: dict[str, list[Piece]] = {}
        if machine.placement == "packed":
            self.pieces = {
                name_of(op.buffer): [piece.piece for piece in op.pieces]
                for op in module.ops
                if isinstance(op, EngraveOp)
            }

    def of(self, names: list[str]) -> float:
        """Of matrices together: on all lanes, or the fullest tile's where each has its own."""
        if all(name in self.pieces for name in names) and names:
            tiles: dict[int, float] = {}
            for name in names:
                shape = self.shapes[name]
                every = lower_bound_cycles(shape, self.machine, self.passes) * self.machine.tiles
                for piece in self.pieces[name]:
                    for tile in range(piece.first_tile, piece.first_tile + piece.tiles):
                        share = every * piece.rows / shape.rows / piece.tiles
                        tiles[tile] = tiles.get(tile, 0.0) + share
            return max(tiles.values())
        return sum(lower_bound_cycles(self.shapes[n], self.machine, self.passes) for n in names)


# --- the chain ------------------------------------------------------------------------------------


class _Chains:
    """Products by level, cut where all that comes after needs all that was before."""

    def __init__(self, token: _Token, work: _Work) -> None:
        self.token = token
        self.nodes = token.nodes
        self.work = work
        self.own_lanes = bool(work.pieces)
        live = 0
        for source in token.end:
            if source != START:
                live |= self.nodes[source].ancestors | 1 << source
        self.live = [n for n in range(len(self.nodes)) if live >> n & 1]

    def chain(self) -> Chain:
        """The whole chain."""
        segments = list(self._segments())
        found: list[tuple[Way, ...]] = []
        for number, segment in enumerate(segments):
            later = self._inputs(segments[number + 1][0]) if number + 1 < len(segments) else None
            found.append(tuple(self._ways(segment, later or [self.token.end])))
        if not segments:
            end = self.token.end.get(START, constant(0))
            return Chain(end, (), constant(0), self.own_lanes)
        start = _least(one[START] for one in self._inputs(segments[0][0]) if START in one)
        readable = constant(self.token.latencies.product)
        return Chain(start, tuple(found), readable, self.own_lanes)

    def _segments(self) -> Iterator[list[list[int]]]:
        """Levels between two cuts."""
        levels: dict[int, list[int]] = {}
        for n in self.live:
            levels.setdefault(self.nodes[n].level, []).append(n)
        before, segment = 0, list[list[int]]()
        for level in sorted(levels):
            if segment and all(before & ~self.nodes[n].ancestors == 0 for n in levels[level]):
                yield segment
                segment = []
            segment.append(levels[level])
            before |= sum(1 << n for n in levels[level])
        if segment:
            yield segment

    def _inputs(self, level: list[int]) -> list[dict[int, Formula]]:
        """For each product of a level the latencies to its last input, by where it comes from."""
        return [self.nodes[n].sources for n in level]

    def _ways(self, segment: list[list[int]], later: list[dict[int, Formula]]) -> Iterator[Way]:
        """The ways through a segment; `later` are latencies to what follows it."""
        nodes = [n for level in segment for n in level]
        busy = self._busy(nodes)
        if len(segment) == 1:
            latency = _least(_most(one, nodes) for one in later)
            yield (Product(self._work(nodes), latency, busy),)
            return
        # All of them as one product; the last word may be of any.
        exits = [one[n] for one in later for n in nodes if n in one]
        leaving = _least(exits)
        yield (Product(self._work(nodes), leaving, busy),)
        for sink in nodes:
            if not any(self.nodes[n].ancestors >> sink & 1 for n in nodes):
                way = self._way(sink, nodes, leaving)
                if way is not None:
                    yield way

    def _way(self, sink: int, nodes: list[int], leaving: Formula) -> Way | None:
        """The products of a segment that one of its last products needs, and itself."""
        needed = [n for n in nodes if self.nodes[sink].ancestors >> n & 1]
        levels: dict[int, list[int]] = {}
        for n in (*needed, sink):
            levels.setdefault(self.nodes[n].level, []).append(n)
        order = [levels[level] for level in sorted(levels)]
        way: list[Product] = []
        for level, after in zip(order, order[1:], strict=False):
            if any(set(level) - set(self.nodes[n].sources) for n in after):
                return None
            latency = _least(_most(self.nodes[n].sources, level) for n in after)
            way.append(Product(self._work(level), latency, self._busy(level)))
        return (*way, Product(self._work([sink]), leaving, self._busy([sink])))

    def _work(self, nodes: list[int]) -> float:
        return self.work.of([self.nodes[n].weights for n in nodes])

    def _busy(self, nodes: list[int]) -> Formula:
        total: Formula = constant(0)
        for n in nodes:
            total = maximum(total, self.nodes[n].busy)
        return total


def _most(sources: Mapping[int, Formula], nodes: list[int]) -> Formula:
    """The longest latency from any of some products."""
    found = list(dict.fromkeys(sources[n] for n in nodes if n in sources))
    total = found[0]
    for one in found[1:]:
        total = maximum(total, one)
    return total


def _least(latencies: Iterator[Formula] | list[Formula]) -> Formula:
    """The shortest of some."""
    first, *rest = dict.fromkeys(latencies)
    for one in rest:
        first = minimum(first, one)
    return first
