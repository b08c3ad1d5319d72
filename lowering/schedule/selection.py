"""Which instruction an operator of the integer stage becomes, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.utils.exceptions import PassFailedException

from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import kv_vector_bytes, matrix_shape
from intaglio.dialects.formula import Formula
from intaglio.dialects.h_units import StateShape
from intaglio.dialects.isa.adapter import AdapterMatvec
from intaglio.dialects.isa.arguments import Integer
from intaglio.dialects.isa.attention import QueryKey, WeightedSum
from intaglio.dialects.isa.cache import Append
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.matrix import Embed, EmbedPosition, ExpertMatvec, Matvec
from intaglio.dialects.isa.queues import VECTOR
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.registry import INSTRUCTIONS
from intaglio.dialects.isa.touched import groups_of, passes_of, size_of
from intaglio.dialects.isa.values import Coded, Quantized, Scores, Value
from intaglio.dialects.isa.vector import (
    OverScores,
    Quantize,
    QuantizeBlocks,
    QuantizeHeads,
    Route,
    SoftmaxPlaces,
)
from intaglio.dialects.machine import Machine
from intaglio.dialects.program import plain_argument, value_of
from intaglio.dialects.semantics import pre_shift, query_key_bits, weighted_sum_bits
from intaglio.dialects.tiling import MatrixShape, Piece, step_floor
from intaglio.dialects.timeline import Times
from intaglio.lowering.buffers import name_of
from intaglio.lowering.schedule import durations
from intaglio.lowering.schedule.draft import Draft, Takes


@dataclass
class Selector:
    """Chooses the instruction of each operator of a block.

    As a rule it is the one of the operator's name, with operands and properties of the same names
    (`_named`). What is said here is what differs, and how long it takes.
    """

    module: ModuleOp
    machine: Machine
    pieces: dict[str, list[Piece]]
    instances: list[dict[str, str]] = field(default_factory=list)
    """What each instance binds the layer's slots to; other names are buffers of the module."""

    def pieces_of(self, slot: str) -> list[Piece]:
        """Pieces of all buffers that a slot may be bound to."""
        names = [one.get(slot, slot) for one in self.instances] or [slot]
        if missing := [name for name in names if name not in self.pieces]:
            raise PassFailedException(f"@{missing[0]} has no place; run fabric-place first")
        return [piece for name in dict.fromkeys(names) for piece in self.pieces[name]]

    def select(self, op: Operation) -> Draft | None:
        """The instruction of an operator; None for those that need none."""
        match op:
            case rom.DotOp() | rom.SliceOp() | rom.SlotOp():
                # Views, and dots, which the requantisation includes.
                return None
            case rom.RequantizeOp():
                return self.product(op)
            case rom.ExpertProductOp():
                type_ = rom.resolved_type(op, op.weights, rom.ROMTensorType)
                return self.rom_product(op, type_, _named(ExpertMatvec[SSAValue], op))
            case rom.RouteOp():
                return self.route(op)
            case rom.RowOp():
                type_ = rom.resolved_type(op, op.table, rom.ROMTensorType)
                # Words leave the array one after the other, so nothing starts behind it.
                duration = durations.embed(self.machine, matrix_shape(type_))
                does = (
                    _named(Embed[SSAValue], op)
                    if isinstance(op, rom.EmbedOp)
                    else _named(EmbedPosition[SSAValue], op)
                )
                return Draft(does, lambda _, __: Times(duration, duration), op.onnx)
            case rom.QuantizeOp():
                return self.quantize(op)
            case rom.AppendOp():
                size = self.vector_bytes(name_of(op.cache))

                def append(count: int, _: int) -> Times:
                    pace, duration = durations.append_beat(self.machine, size, count=count)
                    return Times(duration, pace)

                return Draft(_named(Append[SSAValue], op), append, op.onnx)
            case rom.QueryKeyOp():
                return self.query_key(op)
            case rom.SoftmaxOp() if op.output.type.format.data == "places8":
                return self.vector_draft(_named(SoftmaxPlaces[SSAValue], op), op.onnx)
            case rom.WeightedSumOp():
                return self.weighted_sum(op)
            case rom.LinearAttentionOp():
                return self.linear_attention(op)
            case _:
                return self.vector(op)

    def product(self, op: rom.RequantizeOp) -> Draft:
        dot = op.input.owner
        assert isinstance(dot, rom.DotOp)
        type_ = rom.resolved_type(op, op.weights, rom.ROMTensorType, rom.AdapterType)
        normed = op.norm is not None
        if isinstance(type_, rom.AdapterType):
            does = _named(AdapterMatvec[SSAValue], op, input=dot.input, normed=normed)
            pace, duration = self.adapter_product(op, type_)
            return Draft(does, lambda _, __: Times(duration, pace), op.onnx)
        (rounds, columns) = self.rounds(name_of(op.weights), matrix_shape(type_))
        does = _named(
            Matvec[SSAValue],
            op,
            input=dot.input,
            normed=normed,
            row_rounds=rounds,
            round_columns=columns,
        )
        return self.rom_product(op, type_, does)

    def rounds(self, slot: str, shape: MatrixShape) -> tuple[int, int] | tuple[None, None]:
        """In how many parts a product takes a row, and of how many columns; none: at once.

        Raises:
            UserError: matrices that one slot is bound to are dealt differently.
        """
        pieces = self.pieces_of(slot)
        found = {
            (one.rounds(shape, self.machine), one.round_columns(self.machine)) for one in pieces
        }
        if len(found) > 1:
            names = [one.get(slot, slot) for one in self.instances] or [slot]
            raise UserError(
                f"matrices {names[0]} to {names[-1]} are multiplied by one instruction of a layer, "
                "and their rows are dealt in different runs",
                hint="give all of them the same 'run' and 'split' in the mapping file",
            )
        ((rounds, columns),) = found
        return (rounds, columns) if columns else (None, None)

    def rom_product(
        self,
        op: rom.RequantizeOp | rom.ExpertProductOp,
        type_: rom.ROMTensorType,
        does: Matvec[SSAValue] | ExpertMatvec[SSAValue],
    ) -> Draft:
        """A product with a matrix in ROM, or with that of an expert."""
        pieces, shape = self.pieces_of(name_of(op.weights)), matrix_shape(type_)
        at_once = pieces[0].rows_per_step(self.machine)
        coded = _kind(does.input)
        assert isinstance(coded, Coded)

        def product(rows: int, number: int) -> Times:
            if number < passes_of(does) - 1:
                pace, duration = durations.product_round(
                    self.machine, shape, pieces, number, self.step_floor, coded
                )
                return Times(duration, pace)
            steps = -(-rows // at_once)
            pace, duration = durations.steps(
                self.machine, shape, pieces, steps, self.step_floor, coded
            )
            return Times(duration, pace)

        return Draft(does, product, op.onnx)

    def route(self, op: rom.RouteOp) -> Draft:
        """The choice of experts has the vector unit alone."""
        routing = op.output.type
        assert isinstance(routing, rom.RoutingType)
        duration = durations.route(
            self.machine, routing.experts.data, routing.chosen.data, every=op.over_all is not None
        )
        times = Times(duration, duration, duration)
        return Draft(_named(Route[SSAValue], op), lambda _, __: times, op.onnx)

    def adapter_product(
        self, op: rom.RequantizeOp, type_: rom.AdapterType
    ) -> tuple[Formula, Formula]:
        """Pace and duration of a product with a constant adapter, or one of the slots of a site."""
        shape, floor = matrix_shape(type_), self.score_floor
        if not type_.is_slot:
            return durations.adapter_beat(self.machine, shape, floor=floor)
        slot = name_of(op.weights)
        names = {one.get(slot, slot) for one in self.instances} or {slot}
        first = {name_of(s.a) for s in self.module.ops if isinstance(s, rom.SiteOp)}
        return durations.slot_beat(self.machine, shape, first=names <= first, floor=floor)

    def quantize(self, op: rom.QuantizeOp) -> Draft:
        cache = None if op.cache is None else name_of(op.cache)
        return self.vector_draft(_named(Quantize[SSAValue], op, scale_of=cache), op.onnx)

    def vector_bytes(self, slot: str) -> int:
        """Bytes of a token's vector of one head in the caches that a slot may be bound to."""
        names = [one.get(slot, slot) for one in self.instances] or [slot]
        caches = [c for c in self.module.ops if isinstance(c, rom.CacheOp)]
        return max(kv_vector_bytes(c) for c in caches if c.sym_name.data in names)

    def query_key(self, op: rom.QueryKeyOp) -> Draft:
        query, cache = op.query.type, rom.resolved_type(op, op.keys, rom.KVType)
        assert isinstance(query, rom.QuantizedType)
        kv = cache.format.data
        bits = query_key_bits(query.width.data, query.format.data, kv)
        does = _named(QueryKey[SSAValue], op, pre_shift=pre_shift(bits))
        sizes = query.groups.data, cache.heads.data, cache.width.data, does.window, kv

        def scores(count: int, _: int) -> Times:
            pace, duration = durations.query_key_beat(
                self.machine, *sizes, count=count, floor=self.score_floor
            )
            return Times(duration, pace)

        return Draft(does, scores, op.onnx)

    def weighted_sum(self, op: rom.WeightedSumOp) -> Draft:
        source, cache = op.probabilities.type, rom.resolved_type(op, op.values, rom.KVType)
        assert isinstance(source, rom.ProbabilitiesType)
        kv = cache.format.data
        bits = weighted_sum_bits(cache.capacity.data, source.format.data, kv)
        does = _named(WeightedSum[SSAValue], op, pre_shift=pre_shift(bits))
        sizes = source.heads.data, cache.heads.data, cache.width.data, does.window, kv

        def sums(count: int, _: int) -> Times:
            pace, duration = durations.weighted_sum_beat(
                self.machine, *sizes, count=count, floor=self.score_floor
            )
            return Times(duration, pace)

        return Draft(does, sums, op.onnx)

    def linear_attention(self, op: rom.LinearAttentionOp) -> Draft:
        """A pass that gives the result, and one that changes the state, have the H-Units alone."""
        state = rom.resolved_type(op, op.state, rom.MatricesType)
        key = op.key.type
        assert isinstance(key, rom.QuantizedType)
        gates = [*op.gates, None, None]
        does = _named(LinearAttention[SSAValue], op, gate=gates[0], beta=gates[1])
        shape, fmt = StateShape(self.machine, *state.dims), key.format.data

        def passes(_: int, number: int) -> Times:
            of = durations.change if number else durations.recall
            duration = of(self.machine, shape, fmt)
            return Times(duration, duration)

        return Draft(does, passes, op.onnx)

    @cached_property
    def step_floor(self) -> int:
        """What a step of a product takes at least (`tiling.step_floor`)."""
        return step_floor((one for own in self.pieces.values() for one in own), self.machine)

    @cached_property
    def score_floor(self) -> int:
        """What a block of a query and keys takes at least (`durations.score_drain`); 0: there is
        none."""
        return max(
            (
                durations.score_drain(self.machine, query.groups.data // cache.heads.data)
                for found in self.module.walk()
                if isinstance(found, rom.QueryKeyOp)
                for query in (found.query.type,)
                for cache in (rom.resolved_type(found, found.keys, rom.KVType),)
                if isinstance(query, rom.QuantizedType)
            ),
            default=0,
        )

    def vector(self, op: Operation) -> Draft:
        """An operator of the vector unit."""
        declared = _OF_OPERATORS.get(op.name)
        if declared is None or not isinstance(op, rom.OperatorOp):
            raise PassFailedException(f"{op.name} has no instruction; run rom-legalize first")
        return self.vector_draft(_named(declared, op), op.onnx)

    def vector_draft(self, does: Instruction[SSAValue], onnx: rom.Nodes) -> Draft:
        """A pass, or the passes, of the vector unit."""
        machine = self.machine
        if isinstance(does, OverScores):
            return Draft(does, self.softmax(does), onnx)
        if isinstance(does, QuantizeBlocks):
            return Draft(does, lambda n, _: durations.blocks_pass(machine, n), onnx)
        if isinstance(does, QuantizeHeads):
            head = _kind(does.output)
            assert isinstance(head, Quantized)
            width = head.width
            return Draft(does, lambda n, _: durations.heads_pass(machine, n, width), onnx)
        groups = groups_of(does, _kind)
        width = size_of(does, _kind, lambda _: 1) // groups
        return Draft(does, lambda n, _: durations.vector_pass(machine, n, groups, width), onnx)

    def softmax(self, does: OverScores[SSAValue]) -> Takes:
        """The passes of a softmax: the first one has a group for each head of the cache."""
        scores = _kind(does.scores)
        assert isinstance(scores, Scores)
        shared = scores.heads // self.cache_heads(does.values)

        def softmax(heads: int, number: int) -> Times:
            groups = heads if number else -(-heads // shared)
            return durations.softmax_pass(self.machine, groups, does.window)

        return softmax

    def cache_heads(self, slot: str) -> int:
        """Heads of the caches that a slot may be bound to, which are alike in this."""
        name = next(iter(self.instances), dict[str, str]()).get(slot, slot)
        (heads,) = {
            one.type.heads.data
            for one in self.module.ops
            if isinstance(one, rom.CacheOp)
            and isinstance(one.type, rom.KVType)
            and one.sym_name.data == name
        }
        return heads


_OF_OPERATORS = {f"rom.{one.opcode}": one for one in INSTRUCTIONS if one.queue == VECTOR}
"""Instructions of the vector unit by the operators of the same name."""


def _kind(value: SSAValue) -> Value:
    found = value_of(value.type)
    assert found is not None
    return found


D = TypeVar("D", bound=Instruction[SSAValue])


def _named(declared: type[D], op: Operation, **given: object) -> D:
    """The instruction with the operands, results and properties that an operator has by its names.

    An integer that the operator leaves out is 0.

    Args:
        declared: the instruction.
        op: the operator.
        given: what has another name there, or is not there.
    """
    form, content = declared.form, dict(given)
    for operand in (*form.reads, *form.writes):
        if operand.name not in given:
            content[operand.name] = getattr(op, operand.name)
    for role in form.roles:
        if role.name not in given:
            symbol: SymbolRefAttr | None = getattr(op, role.name)
            content[role.name] = None if symbol is None else name_of(symbol)
    for argument in form.arguments:
        if argument.name in given:
            continue
        value: Attribute | None = getattr(op, argument.name)
        if value is not None:
            content[argument.name] = argument.kind.read(plain_argument(value))
        elif isinstance(argument.kind, Integer):
            content[argument.name] = 0
    return declared(**content)
