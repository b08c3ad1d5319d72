"""The chain of products that a token's time is bounded by from below (`dialects/latency_bound.py`).

Read from the operators of the integer stage and the chip's figures; neither durations nor waits of
a schedule enter. Where products run beside one another, as attention and FFN of a parallel residual
do, the chain has ways to choose from.

Q, K and V count as one product, as do gate and up: the chip can multiply their rows in turns.
Adapters add nothing. How far a schedule is above the bound is what there is to win.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from xdsl.dialects.builtin import IntegerAttr, ModuleOp, SymbolRefAttr
from xdsl.ir import Attribute, Block, Operation, SSAValue

from intaglio.dialects import rom
from intaglio.dialects.fabric import EngraveOp, machine_of, matrix_shape
from intaglio.dialects.formula import Formula, constant, maximum, minimum
from intaglio.dialects.isa.values import Coded
from intaglio.dialects.latency_bound import NOTHING, Chain, Product, Way
from intaglio.dialects.machine import Machine
from intaglio.dialects.program import value_of
from intaglio.dialects.tiling import Piece, Reads, lower_bound_cycles
from intaglio.lowering.buffers import name_of
from intaglio.lowering.folded_latencies import Attention, Latencies, Pipelines

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
    rom.ClipOp: 0,
    rom.WeighOp: 1,
    rom.AddOp: 0,
    rom.SliceOp: 0,
}
"""Operators of a pass over a vector, with the products of an element, one after another; others
take no time in the bound."""


def chain_of(module: ModuleOp, pipelines: Pipelines) -> Chain:
    """The chain of a module of the integer stage; with places, where it has them.

    Args:
        module: with `fabric.machine`.
        pipelines: what the machine does not say.
    """
    machine = machine_of(module)
    latencies = Latencies(machine, pipelines)
    token = _Token(module, latencies)
    step = next(op for op in module.ops if isinstance(op, rom.StepOp))
    token.run(step.body.block)
    return _Chains(token, _Work(module, machine)).chain()


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
    busy: Formula = NOTHING
    """Attention between it and what follows from it, on shared adders."""


class _Token:
    """Runs a step on what values follow from, instance by instance."""

    def __init__(self, module: ModuleOp, latencies: Latencies) -> None:
        self.module = module
        self.latencies = latencies
        self.nodes: list[_Node] = []
        self.caches: dict[str, _Value] = {}
        self.scaled: set[SSAValue] = set()
        """Codes whose scale is that of a cache."""
        self.end: dict[int, Formula] = {}
        """Latency from each of the last products to the token."""

    def run(self, block: Block) -> None:
        """The operators of a step."""
        self._block(block, {}, {argument: {} for argument in block.args})

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
                        names = {
                            slot: name_of(buffer)
                            for slot, buffer in instance.data.items()
                            if isinstance(buffer, SymbolRefAttr)
                        }
                        inside: dict[SSAValue, _Value] = {body.args[0]: {}}
                        inside.update(zip(body.args[1:], carried, strict=True))
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
            case rom.RowOp():
                elements = rom.vector_size(op.output.type)
                result = {START: _From(constant(self.latencies.embedding(elements)))}
            case rom.QuantizeOp():
                # What takes the codes says how many share an exponent.
                result = values[op.input]
                if op.cache is not None:
                    self.scaled.add(op.output)
            case rom.QuantizeBlocksOp() | rom.QuantizeHeadsOp():
                result = values[op.input]
            case rom.RMSScaleOp():
                # It follows the products.
                result = {}
            case rom.DotOp():
                result = self._dot(op, bound, values[op.input])
            case rom.ExpertProductOp():
                result = self._dot(op, bound, _later(values[op.input], values[op.routing]))
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
                one = self._attention(op, op.keys, op.query.type)
                queries = self._heads(op.query, values, one.width)
                ready = _later(queries, self.caches.get(cache(op.keys), {}))
                for source in ready:
                    if source != START:
                        node = self.nodes[source]
                        node.busy = maximum(node.busy, one.beside())
                result = {s: f.then(one.scores()) for s, f in ready.items()}
            case rom.SoftmaxOp():
                one = self._attention(op, op.values, op.scores.type)
                result = {s: f.then(one.softmax()) for s, f in values[op.scores].items()}
            case rom.WeightedSumOp():
                one = self._attention(op, op.values, op.probabilities.type)
                cached = self.caches.get(cache(op.values), {})
                ready = _later(values[op.probabilities], cached)
                result = {s: f.then(one.sums()) for s, f in ready.items()}
            case rom.DelayOp():
                # What the last token left.
                result = {}
            case rom.SampleOp():
                self.end = {
                    s: f.latency + self.latencies.sample(f.products)
                    for s, f in values[op.input].items()
                }
                return
            case _:
                taken = _later(*(values[one] for one in op.operands if one in values))
                products = PRODUCTS.get(type(op), 0)
                result = {s: f.multiplied(products) for s, f in taken.items()}
        for one in op.results:
            values[one] = result

    def _dot(
        self, op: rom.DotOp | rom.ExpertProductOp, bound: Mapping[str, str], taken: _Value
    ) -> _Value:
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

    def _attention(self, op: Operation, symbol: SymbolRefAttr, type_: Attribute) -> Attention:
        """Of queries, scores or probabilities over a cache."""
        if isinstance(type_, rom.QuantizedType):
            heads = type_.groups.data
        else:
            assert isinstance(type_, rom.ScoresType | rom.ProbabilitiesType)
            heads = type_.heads.data
        cache = rom.resolve(op, symbol).type
        assert isinstance(cache, rom.KVType)
        attr = op.properties.get("window")
        window = attr.value.data if isinstance(attr, IntegerAttr) else 0
        kv_heads = cache.heads.data
        return Attention(
            self.latencies, heads // kv_heads, kv_heads, cache.width.data, window, cache.format.data
        )


# --- work -----------------------------------------------------------------------------------------


def multiplied(module: ModuleOp, machine: Machine) -> dict[str, Reads]:
    """How often words of each engraved tensor are read for what it is multiplied with; of several
    vectors for the one that takes longest."""
    found: dict[str, Reads] = {}

    def take(op: Operation, bound: Mapping[str, Attribute]) -> None:
        if not isinstance(op, rom.DotOp | rom.ExpertProductOp):
            return
        coded, weights = op.input.type, bound.get(name_of(op.weights), op.weights)
        assert isinstance(weights, SymbolRefAttr)
        value = value_of(coded)
        assert isinstance(value, Coded)
        reads, before = Reads.of(value, machine), found.get(name_of(weights))
        if before is None or reads.of_row(value.size) > before.of_row(value.size):
            found[name_of(weights)] = reads

    for step in module.ops:
        for op in step.walk() if isinstance(step, rom.StepOp) else ():
            take(op, {})
            if isinstance(op, rom.RepeatOp):
                for instance in op.instances:
                    for inner in op.body().walk():
                        take(inner, instance.data)
    return found


class _Work:
    """Cycles in which lanes multiply matrices."""

    def __init__(self, module: ModuleOp, machine: Machine) -> None:
        self.machine = machine
        self.reads = multiplied(module, machine)
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
                every = (
                    lower_bound_cycles(shape, self.machine, self.reads[name]) * self.machine.tiles
                )
                for piece in self.pieces[name]:
                    for tile in range(piece.first_tile, piece.first_tile + piece.tiles):
                        share = every * piece.rows / shape.rows / piece.tiles
                        tiles[tile] = tiles.get(tile, 0.0) + share
            return max(tiles.values())
        return sum(lower_bound_cycles(self.shapes[n], self.machine, self.reads[n]) for n in names)


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
            end = self.token.end.get(START, NOTHING)
            return Chain(end, (), NOTHING, self.own_lanes)
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
        for level, after in pairwise(order):
            if any(set(level) - set(self.nodes[n].sources) for n in after):
                return None
            latency = _least(_most(self.nodes[n].sources, level) for n in after)
            way.append(Product(self._work(level), latency, self._busy(level)))
        return (*way, Product(self._work([sink]), leaving, self._busy([sink])))

    def _work(self, nodes: list[int]) -> float:
        return self.work.of([self.nodes[n].weights for n in nodes])

    def _busy(self, nodes: list[int]) -> Formula:
        total: Formula = NOTHING
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
